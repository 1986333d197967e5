/**
 * The files in docs/ that are for other programs, read by these programs: systemd, Kubernetes' schemas, KubeSpawner,
 * BatchSpawner, repo2docker. Nothing is run but what reads them. `sh test/system/recipes.sh` installs them.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { installLines } from "../../server.ts";
import { processesWith, SERVER, tempDir, until } from "../_helpers.ts";
import { ensureViewer } from "../e2e/_browser.ts";

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

interface Manifest {
  kind: string;
  spec: {
    template: {
      spec: {
        securityContext: { runAsUser: number; runAsGroup: number; fsGroup: number };
        containers: {
          args: string[];
          env: { name: string; value: string }[];
          volumeMounts: { name: string; mountPath: string }[];
          readinessProbe: { httpGet: { path: string } };
        }[];
      };
    };
  };
}

/** A container as the manifest has it, without its image: $1 user, $2 group, $3 of the volumes, then their places. */
const CONTAINER = `set -e
uid=$1 gid=$2 volumes=$3
shift 3
mount --make-rprivate /
for place in /home /run; do mount -t tmpfs tmpfs "$place"; done
while [ "$1" != -- ]; do
  mkdir -p "$1"
  mount -t tmpfs -o "mode=2777,gid=$volumes" tmpfs "$1"
  shift
done
shift
install -m 0440 -g "$volumes" /dev/stdin /run/secrets/jupyter-desktop/token
for place in /home /run; do mount -o remount,ro "$place"; done
mount -o remount,bind,ro /
cd /
exec setpriv --reuid="$uid" --regid="$gid" --groups="$volumes" --no-new-privs --bounding-set=-all --inh-caps=-all "$@"`;

test("a desktop comes with the manifest's user, rights and mounts, and a root that is read-only", async () => {
  if (process.getuid?.() !== 0)
    throw new Error("This test needs root. Type: sudo bun run test:system");
  await ensureViewer();
  const text = await Bun.file(path.join(DOCS, "kubernetes/jupyter-desktop.yaml")).text();
  const deployment = (Bun.YAML.parse(text) as Manifest[]).find(({ kind }) => kind === "Deployment");
  const pod = deployment?.spec.template.spec;
  const container = pod?.containers[0];
  if (!pod || !container) throw new Error("the manifest has no Deployment with a container");
  // Where none of the mounts hides it.
  const dir = fs.mkdtempSync("/opt/jd-");
  using _dir = { [Symbol.dispose]: () => fs.rmSync(dir, { recursive: true }) };
  const [bun, server] = [path.join(dir, "bun"), path.join(dir, "server.js")];
  fs.copyFileSync(process.execPath, bun);
  const built = run([process.execPath, "build", SERVER, "--target", "bun", "--outfile", server]);
  expect([built.code, built.stderr]).toEqual([0, ""]);
  fs.chmodSync(dir, 0o755);

  const token = "a-token-of-the-tests";
  const { runAsUser, runAsGroup, fsGroup } = pod.securityContext;
  const mounts = container.volumeMounts.map(({ mountPath }) => mountPath);
  const ids = [runAsUser, runAsGroup, fsGroup].map(String);
  const own = container.env.map(({ name, value }) => `${name}=${value}`);
  const env = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", ...own];
  const command = [...env, bun, server, ...container.args, "--port", "0"];
  const box = "unshare --mount --pid --fork --kill-child --mount-proc sh -c".split(" ");
  const child = Bun.spawn([...box, CONTAINER, "sh", ...ids, ...mounts, "--", ...command], {
    stdio: [Buffer.from(token), "pipe", "pipe"],
  });
  const children = `/proc/${child.pid}/task/${child.pid}/children`;
  // Another user's, so that it does not die with unshare; all that it started dies with it.
  const first = () => Number(fs.existsSync(children) && fs.readFileSync(children, "utf8"));
  using _child = { [Symbol.dispose]: () => first() > 0 && process.kill(first(), "SIGKILL") };
  const said = { text: "", errors: "" };
  const follow = async (stream: ReadableStream<Uint8Array>, to: keyof typeof said) => {
    for await (const chunk of stream) said[to] += Buffer.from(chunk).toString();
  };
  const ended = Promise.all([follow(child.stdout, "text"), follow(child.stderr, "errors")]);
  const port = await until("the address", () => {
    if (child.exitCode !== null) throw new Error(said.errors);
    return /^Desktop: http:\/\/[^/]*:(\d+)\//m.exec(said.text)?.[1];
  });
  const url = `http://127.0.0.1:${port}`;
  expect((await fetch(url + container.readinessProbe.httpGet.path)).status).toBe(200);
  const headers = { authorization: `Bearer ${token}` };
  await until("a desktop", async () => {
    const response = await fetch(`${url}/desktop/api/status`, { headers });
    const status = (await response.json()) as { state: string; log: string[] };
    if (status.state === "failed") throw new Error(status.log.join("\n"));
    return status.state === "ready";
  });
  // Its first process, which the kubelet tells to stop, and its root as it sees it.
  const home = own.find((entry) => entry.startsWith("HOME="))?.slice(5);
  const settings = `/proc/${first()}/root${home}/.config/xfce4`;
  await until("XFCE's settings in the home", () => fs.existsSync(settings));
  process.kill(first());
  expect(await child.exited).toBe(0);
  await ended;
  expect(processesWith(dir)).toEqual([]);
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
