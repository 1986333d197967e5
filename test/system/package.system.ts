/**
 * The package from a real registry (verdaccio), beside what its peer is installed from: how long from a command with
 * nothing in any cache to an address that answers. Everything is fetched anew each time; the registries are the same
 * distance away for all three.
 *   bun test ./test/system/package.system.ts
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import packageJson from "../../package.json" with { type: "json" };
import { tempDir, until } from "../_helpers.ts";
import { pack, PROJECT, REGISTRY, run, seeDesktop, withBun, withNode } from "../_package.ts";

setDefaultTimeout(600_000);
const VERDACCIO = "6.1.6";
const ROUNDS = 5;
const PEER = "jupyter-remote-desktop-proxy";

const dir = tempDir();
const took: Record<string, number[]> = {};
let verdaccio: Bun.Subprocess | undefined;
let registry = "";

const seconds = (ms: number) => (ms / 1000).toFixed(2);
const note = (what: string, ms: number) => {
  took[what] ??= [];
  took[what].push(ms);
};

/** Verdaccio with an empty storage; what it has not, it has the real registry send. */
async function startVerdaccio() {
  const place = path.join(PROJECT, ".cache/verdaccio");
  fs.mkdirSync(place, { recursive: true });
  // It asks for node-fetch by a tag that not every mirror of the registry has.
  fs.writeFileSync(path.join(place, "package.json"), '{ "overrides": { "node-fetch": "2.7.0" } }');
  const install = [process.execPath, "add", "--silent", "--exact", `verdaccio@${VERDACCIO}`];
  const { code, stderr } = await run(install, {
    cwd: place,
    env: process.env as Record<string, string>,
  });
  if (code !== 0) throw new Error(stderr);
  const config = path.join(dir.path, "verdaccio.yaml");
  const rule = { access: "$all", publish: "$anonymous" };
  fs.writeFileSync(
    config,
    JSON.stringify({
      storage: path.join(dir.path, "storage"),
      uplinks: { npmjs: { url: REGISTRY } },
      packages: { "jupyter-desktop": rule, "**": { ...rule, proxy: "npmjs" } },
      log: { type: "stdout", format: "json", level: "http" },
    }),
  );
  const script = `require("verdaccio").runServer(${JSON.stringify(config)}).then((app) => {
    const server = app.listen(0, "127.0.0.1", () => console.log("port " + server.address().port));
  })`;
  const child = Bun.spawn(["node", "-e", script], {
    cwd: place,
    stdio: ["ignore", "pipe", "inherit"],
  });
  verdaccio = child;
  let said = "";
  void (async () => {
    for await (const chunk of child.stdout) said += Buffer.from(chunk).toString();
  })();
  const port = await until("verdaccio's port", () => /^port (\d+)$/m.exec(said)?.[1], 60_000);
  return `http://127.0.0.1:${port}/`;
}

const emptyHome = () => fs.mkdtempSync(path.join(dir.path, "home-"));

beforeAll(async () => {
  registry = await startVerdaccio();
  const tarball = await pack(dir.path);
  const token = `--${registry.replace("http:", "")}:_authToken=anyone`;
  const publish = ["npm", "publish", "--silent", "--registry", registry, token, tarball];
  const { code, stderr } = await run(publish, { env: process.env as Record<string, string> });
  if (code !== 0) throw new Error(stderr);
});

afterAll(async () => {
  verdaccio?.kill();
  await verdaccio?.exited;
  dir[Symbol.dispose]();
  for (const [what, all] of Object.entries(took)) {
    const sorted = all.toSorted((a, b) => a - b);
    const [least = 0, middle = 0, most = 0] = [0, sorted.length >> 1, sorted.length - 1].map(
      (i) => sorted[i] ?? 0,
    );
    console.log(
      `${what}: median ${seconds(middle)} s (${seconds(least)} to ${seconds(most)}, ${all.length} runs)`,
    );
  }
});

describe("From a registry, with nothing in a cache", () => {
  test("the package is there as it was published", async () => {
    const answer = await fetch(new URL("jupyter-desktop", registry));
    const found = (await answer.json()) as { versions: Record<string, { dependencies?: object }> };
    expect(Object.keys(found.versions)).toEqual([packageJson.version]);
    expect(found.versions[packageJson.version]?.dependencies ?? {}).toEqual({});
  });

  for (let round = 1; round <= ROUNDS; round++) {
    test(`bunx gives a desktop, with Bun alone (${round})`, async () => {
      const env = { HOME: emptyHome(), PATH: withBun(dir.path), NPM_CONFIG_REGISTRY: registry };
      const { listeningMs } = await seeDesktop(["bunx", "jupyter-desktop"], env);
      note("bunx jupyter-desktop to its address", listeningMs);
    });

    test(`npx gives a desktop, with Node alone (${round})`, async () => {
      const env = { HOME: emptyHome(), PATH: withNode(dir.path), npm_config_registry: registry };
      const { listeningMs, said } = await seeDesktop(["npx", "--yes", "jupyter-desktop"], env);
      expect(said.stderr).toContain("npm fetches");
      note("npx jupyter-desktop to its address, Bun fetched", listeningMs);
    });

    test(`pip installs ${PEER} (${round})`, async () => {
      const home = emptyHome();
      const env = { ...(process.env as Record<string, string>), HOME: home };
      const made = await run(["python3", "-m", "venv", path.join(home, "venv")], { env });
      expect(made.code).toBe(0);
      const pip = [path.join(home, "venv/bin/pip"), "install", "--quiet", "--no-cache-dir"];
      const began = performance.now();
      const { code, stderr } = await run([...pip, PEER], { env });
      note(`pip install ${PEER}`, performance.now() - began);
      if (code !== 0) throw new Error(stderr);
    });
  }
});
