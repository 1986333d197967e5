/**
 * The files in docs/ that are for other programs, read by these programs: systemd, Kubernetes' schemas, KubeSpawner,
 * BatchSpawner, repo2docker. Nothing is run but what reads them. `sh test/system/recipes.sh` installs them.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { installLines } from "../../server.ts";
import { tempDir } from "../_helpers.ts";

const ROOT = path.join(import.meta.dir, "../..");
const DOCS = path.join(ROOT, "docs");
const BIN = path.join(ROOT, ".cache/recipes/bin");
if (!fs.existsSync(path.join(BIN, "kubernetes-validate")) || !Bun.which("systemd-analyze"))
  throw new Error("The tools for the recipes are missing. Type: sh test/system/recipes.sh");
setDefaultTimeout(60_000);

function run(command: string[], env: Record<string, string> = {}) {
  const child = Bun.spawnSync(command, { env: { ...process.env, ...env }, cwd: ROOT });
  return { code: child.exitCode, stdout: child.stdout.toString(), stderr: child.stderr.toString() };
}

/** What recipes.py says. */
function read<T>(command: "pod" | "job" | "dockerfile", file: string) {
  const script = path.join(import.meta.dir, "recipes.py");
  const { code, stdout, stderr } = run([
    path.join(BIN, "python"),
    script,
    command,
    path.join(DOCS, file),
  ]);
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as T;
}

/** Whether Kubernetes' schema has all that is in this file, and nothing misspelt is in it. */
function validate(file: string) {
  const { code, stdout, stderr } = run([path.join(BIN, "kubernetes-validate"), "--strict", file]);
  return { code, said: stdout + stderr };
}

test("the systemd unit has nothing that systemd does not know", async () => {
  using home = tempDir();
  fs.mkdirSync(path.join(home.path, ".local/bin"), { recursive: true });
  fs.writeFileSync(path.join(home.path, ".local/bin/jupyter-desktop"), "#!/bin/sh\n", {
    mode: 0o755,
  });
  const verify = (file: string) =>
    run(["systemd-analyze", "verify", "--user", file], {
      HOME: home.path,
      XDG_RUNTIME_DIR: home.path,
    });
  const unit = path.join(DOCS, "systemd/jupyter-desktop.service");
  // It ends with 0 in spite of what it warns of.
  expect(verify(unit)).toEqual({ code: 0, stdout: "", stderr: "" });
  const wrong = path.join(home.path, "wrong.service");
  fs.writeFileSync(wrong, (await Bun.file(unit).text()).replace("OOMPolicy=", "OomPolicy="));
  expect(verify(wrong).stderr).toContain("OomPolicy");
});

test("the Kubernetes manifest is valid", async () => {
  using dir = tempDir();
  const manifest = path.join(DOCS, "kubernetes/jupyter-desktop.yaml");
  const { code, said } = validate(manifest);
  expect({ code, said }).toEqual({
    code: 0,
    said: expect.stringContaining("service/jupyter-desktop"),
  });
  expect(said.match(/ passed for resource /g)).toHaveLength(3);
  const wrong = path.join(dir.path, "wrong.yaml");
  const text = await Bun.file(manifest).text();
  fs.writeFileSync(wrong, text.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"));
  expect(validate(wrong).code).not.toBe(0);
});

interface Pod {
  spec: {
    enableServiceLinks: boolean;
    containers: { args?: string[]; image: string; volumeMounts: { mountPath: string }[] }[];
  };
}

for (const [values, args, home] of [
  ["desktop-only", ["--auth", "hub", "--idle-disconnect", "30m"], "/home/desktop"],
  ["beside-lab", ["jupyterhub-singleuser"], "/home/jovyan"],
] as const) {
  test(`KubeSpawner makes a valid pod of zero-to-jupyterhub/${values}.yaml`, () => {
    using dir = tempDir();
    const pod = read<Pod>("pod", `recipes/zero-to-jupyterhub/${values}.yaml`);
    const file = path.join(dir.path, "pod.json");
    fs.writeFileSync(file, JSON.stringify(pod));
    expect(validate(file)).toEqual({ code: 0, said: expect.stringContaining("passed") });
    expect(pod.spec.enableServiceLinks).toBe(false);
    const [container] = pod.spec.containers;
    expect(container?.args).toEqual([...args]);
    expect(container?.volumeMounts.map(({ mountPath }) => mountPath)).toEqual([home, "/dev/shm"]);
  });
}

test("BatchSpawner makes a job that starts jupyter-desktop-batch", () => {
  const { script, hub } = read<{ script: string; hub: string }>(
    "job",
    "recipes/slurm/jupyterhub_config.py",
  );
  expect(hub).toBe("batchspawner.SlurmSpawner");
  expect(script).toContain("\nsrun  /opt/jupyter-desktop/jupyter-desktop-batch\n");
  expect(script).toContain("#SBATCH --mem=4G\n");
  expect(script).not.toContain("batchspawner-singleuser");
});

test("repo2docker makes a Dockerfile of the Binder recipe, with all of its packages", () => {
  const { text, postBuild } = read<{ text: string; postBuild: string[] }>(
    "dockerfile",
    "recipes/binder",
  );
  const install = installLines(["vnc", "desktop"], (name) =>
    name === "apt-get" ? name : null,
  )?.at(-1);
  const packages = install?.split(" ").filter((word) => !/^-|^apt-get$|^install$/.test(word)) ?? [];
  expect(packages.length).toBeGreaterThan(5);
  for (const name of packages) expect(text.split(/\s+/)).toContain(name);
  expect(postBuild).toEqual([".binder/postBuild"]);
});
