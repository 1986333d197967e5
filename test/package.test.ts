/** What is published: packed, put into a registry, and started by bunx and npx where nothing else is. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { SERVER, tempDir } from "./_helpers.ts";
import {
  network,
  only,
  pack,
  PROJECT,
  REGISTRY,
  run,
  seeDesktop,
  withBun,
  withNode,
} from "./_package.ts";

setDefaultTimeout(60_000);
const LAUNCHER = path.join(PROJECT, "jupyter-desktop");
const FETCHED = /^fetched=(\S+)/m.exec(fs.readFileSync(LAUNCHER, "utf8"))?.[1] ?? "";

const dir = tempDir();
let tarball = "";
let packed = { files: [""], bytes: 0 };

/** A registry with this package in it; for others it sends its clients to the real one. */
function registry() {
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch({ url }) {
      const { pathname, origin } = new URL(url);
      if (pathname === `/${path.basename(tarball)}`) return new Response(Bun.file(tarball));
      if (pathname !== "/jupyter-desktop")
        return Response.redirect(new URL(`.${pathname}`, REGISTRY).href);
      const { name, version, bin } = packageJson;
      const dist = { tarball: `${origin}/jupyter-desktop-${version}.tgz` };
      const versions = { [version]: { name, version, bin, dist } };
      return Response.json({ name, "dist-tags": { latest: version }, versions });
    },
  });
  return { url: server.url.href, [Symbol.asyncDispose]: () => server.stop(true) };
}

beforeAll(async () => {
  tarball = await pack(dir.path);
  const files = [...(await new Bun.Archive(await Bun.file(tarball).bytes()).files()).keys()];
  packed = {
    files: files.map((name) => name.replace("package/", "")),
    bytes: Bun.file(tarball).size,
  };
});
afterAll(() => dir[Symbol.dispose]());

describe("The package", () => {
  test("has the launcher, one file of code, the licences and what a person reads", () => {
    expect(packed.files.toSorted()).toEqual([
      "CHANGELOG.md",
      "LICENSE",
      "README.md",
      "dist/THIRD-PARTY-LICENSES",
      "dist/server.js",
      "jupyter-desktop",
      "package.json",
    ]);
  });

  test("is under 400 kB and depends on nothing", () => {
    expect(packed.bytes).toBeLessThan(400_000);
    expect(Object.keys(packageJson)).not.toContainAnyValues([
      "dependencies",
      "optionalDependencies",
      "peerDependencies",
    ]);
  });

  test("has the licence of all that is bundled in it", async () => {
    const text = await Bun.file(path.join(PROJECT, "dist/THIRD-PARTY-LICENSES")).text();
    for (const [name, version] of Object.entries(packageJson.devDependencies))
      expect(text).toContain(`\n${name} ${version} (`);
    expect(text).toContain("Mozilla Public License Version 2.0");
    expect(text).toContain("--- @novnc/novnc: vendor/pako/LICENSE ---");
  });

  test("asks for one version of Bun everywhere", async () => {
    const read = (name: string) => fs.readFileSync(path.join(PROJECT, name), "utf8");
    const needed = packageJson.engines.bun.replace(">=", "");
    expect(/^needed=(\S+)/m.exec(read("jupyter-desktop"))?.[1]).toBe(needed);
    expect(/^const MIN_BUN = "(.*)";/m.exec(read(path.basename(SERVER)))?.[1]).toBe(needed);
    expect(/oven\/bun:([\d.]+)-slim/.exec(read("Dockerfile"))?.[1]).toBe(FETCHED);
    for (const name of ["test", "release"]) {
      const named = read(`.github/workflows/${name}.yml`).matchAll(/bun-version: (\S+)/g);
      expect([...new Set([...named].map(([, version]) => version))]).toEqual([FETCHED]);
    }
    expect(Bun.semver.satisfies(FETCHED, packageJson.engines.bun)).toBeTrue();
  });

  test("gives a desktop by bunx where there is Bun alone, and fetches no other Bun", async () => {
    await using from = registry();
    const home = fs.mkdtempSync(path.join(dir.path, "home-"));
    const env = { HOME: home, PATH: withBun(dir.path), NPM_CONFIG_REGISTRY: from.url };
    const { said } = await seeDesktop(["bunx", "jupyter-desktop"], env);
    expect(said.stderr).not.toContain("fetches");
    expect(fs.existsSync(path.join(home, ".cache/jupyter-desktop"))).toBeFalse();
  });

  test("gives a desktop by npx where there is Node alone, and again without a network", async () => {
    const home = fs.mkdtempSync(path.join(dir.path, "home-"));
    const env = { ...network, HOME: home, PATH: withNode(dir.path) };
    const command = ["npx", "--yes", "jupyter-desktop"];
    await using from = registry();
    const first = await seeDesktop(command, { ...env, npm_config_registry: from.url });
    expect(first.said.stderr).toContain(
      `npm fetches ${FETCHED}, this once, into ${home}/.cache/jupyter-desktop`,
    );
    expect(fs.readdirSync(path.join(home, ".cache/jupyter-desktop"))).toEqual([`bun-${FETCHED}`]);
    await from[Symbol.asyncDispose]();
    const nowhere = { npm_config_registry: from.url, npm_config_offline: "true" };
    const again = await seeDesktop(command, { ...env, ...nowhere });
    expect(again.said.stderr).not.toContain("fetches");
  });
});

describe("The launcher", () => {
  /** It as it is installed, with a program that says what it was given. */
  function installed(name = "a b") {
    const place = fs.mkdtempSync(path.join(dir.path, `${name}-`));
    fs.mkdirSync(path.join(place, "dist"));
    fs.copyFileSync(LAUNCHER, path.join(place, "jupyter-desktop"));
    const program =
      "console.log(JSON.stringify([process.argv.slice(2), process.env.SET ?? '', Bun.version]));";
    fs.writeFileSync(path.join(place, "dist/server.js"), program);
    return path.join(place, "jupyter-desktop");
  }
  const bunOfVersion = (version: string) => {
    const bin = only(dir.path, `bun-${version}`);
    fs.writeFileSync(path.join(bin, "bun"), `#!/bin/sh\necho ${version}\n`, { mode: 0o755 });
    return bin;
  };

  test("hands on every argument as it is, from a path with spaces and through links", async () => {
    const launcher = installed();
    const link = path.join(dir.path, "one link");
    fs.symlinkSync(launcher, `${link} more`);
    fs.symlinkSync("one link more", link);
    const args = ["--title", "a  b", "$HOME", "", "*"];
    const env = { PATH: `${withBun(dir.path)}:/usr/bin:/bin`, HOME: dir.path };
    for (const file of [launcher, link]) {
      const { stdout, stderr } = await run([file, ...args], { env });
      expect([JSON.parse(stdout)[0], stderr]).toEqual([args, ""]);
    }
  });

  test("is the server itself in the end, so that a signal reaches it", async () => {
    const env = { PATH: withBun(dir.path), HOME: dir.path };
    const launcher = installed();
    fs.writeFileSync(
      path.join(path.dirname(launcher), "dist/server.js"),
      "console.log(process.pid)",
    );
    const child = Bun.spawn([launcher], { env, stdout: "pipe" });
    expect(Number(await child.stdout.text())).toBe(child.pid);
  });

  test("starts a single-user server of a Hub under the name that spawners use", async () => {
    const link = path.join(dir.path, "jupyterhub-singleuser");
    fs.symlinkSync(installed(), link);
    const { stdout } = await run([link, "--port", "1"], {
      env: { PATH: withBun(dir.path), HOME: dir.path },
    });
    expect(JSON.parse(stdout)[0]).toEqual(["--auth", "hub", "--port", "1"]);
  });

  test("does not heed a .env or a bunfig.toml where it is started", async () => {
    const cwd = fs.mkdtempSync(path.join(dir.path, "project-"));
    fs.writeFileSync(path.join(cwd, ".env"), "SET=by-the-folder\n");
    fs.writeFileSync(path.join(cwd, "bunfig.toml"), 'preload = ["./stop.ts"]\n');
    fs.writeFileSync(path.join(cwd, "stop.ts"), "process.exit(9);\n");
    const { code, stdout } = await run([installed()], {
      cwd,
      env: { PATH: withBun(dir.path), HOME: dir.path },
    });
    expect([code, JSON.parse(stdout)[1]]).toEqual([0, ""]);
  });

  test("finds a Bun that is not on PATH, in ~/.bun and beside itself", async () => {
    const home = fs.mkdtempSync(path.join(dir.path, "home-"));
    fs.mkdirSync(path.join(home, ".bun/bin"), { recursive: true });
    fs.symlinkSync(process.execPath, path.join(home, ".bun/bin/bun"));
    const launcher = installed();
    const byHome = await run([launcher], { env: { PATH: only(dir.path, "tools"), HOME: home } });
    expect([byHome.code, byHome.stderr]).toEqual([0, ""]);
    fs.symlinkSync(process.execPath, path.join(path.dirname(launcher), "bun"));
    const beside = await run([launcher], { env: { PATH: only(dir.path, "tools") } });
    expect([beside.code, beside.stderr]).toEqual([0, ""]);
  });

  test.each(["1.3.14", "1.4.3", "0.9.99"])(
    "refuses Bun %s, and says what to type",
    async (version) => {
      const env = { PATH: bunOfVersion(version), HOME: dir.path };
      const { code, stdout, stderr } = await run([installed()], { env });
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toContain(
        `it needs Bun 1.4.4 or newer, and ${env.PATH}/bun is ${version}. Type`,
      );
      expect(stderr).toContain("\n  bun upgrade ");
      expect(stderr).toContain("\n  npm install -g bun@latest ");
    },
  );

  test.each(["1.4.4", "1.4.10", "1.10.0", "2.0.0", "1.5.0-canary.7"])(
    "takes Bun %s",
    async (version) => {
      const env = { PATH: bunOfVersion(version), HOME: dir.path };
      expect(await run([installed()], { env })).toEqual({
        code: 0,
        stdout: `${version}\n`,
        stderr: "",
      });
    },
  );

  test.each([
    ["is not set", {}],
    ["cannot be written", { HOME: "/dev/null" }],
  ])("says what to type where HOME %s and it would have to fetch Bun", async (_, home) => {
    const { code, stderr } = await run([installed()], {
      env: { PATH: withNode(dir.path), ...home },
    });
    expect(code).toBe(1);
    expect(stderr).toMatch(/cannot write to .*\n?.*Type: XDG_CACHE_HOME=/);
  });

  test("fetches Bun whole when two are started at once", async () => {
    const home = fs.mkdtempSync(path.join(dir.path, "home-"));
    const cache = path.join(dir.path, "npm-cache"); // npm's own, so that this is quick
    const env = {
      ...network,
      PATH: withNode(dir.path),
      HOME: home,
      npm_config_cache: cache,
      npm_config_registry: REGISTRY,
    };
    const launcher = installed();
    const both = await Promise.all([run([launcher, "1"], { env }), run([launcher, "2"], { env })]);
    for (const [i, { code, stdout }] of both.entries())
      expect([code, JSON.parse(stdout)]).toEqual([0, [[`${i + 1}`], "", FETCHED]]);
    expect(fs.readdirSync(path.join(home, ".cache/jupyter-desktop"))).toEqual([`bun-${FETCHED}`]);
  });
});

describe("The image's entry point", () => {
  const hub = { JUPYTERHUB_API_TOKEN: "t", JUPYTERHUB_SERVICE_PREFIX: "/user/a/" };
  const all = "0.0.0.0";
  test.each([
    ["the server, for the container's network", {}, [], ["jupyter-desktop", all]],
    ["the server with options", {}, ["--port", "1"], ["jupyter-desktop", all, "--port", "1"]],
    ["a command of it, also one that a system has", {}, ["env"], ["jupyter-desktop", all, "env"]],
    [
      "the address that is asked for",
      { JUPYTER_DESKTOP_HOST: "::1" },
      [],
      ["jupyter-desktop", "::1"],
    ],
    [
      "the default address in Apptainer",
      { APPTAINER_CONTAINER: "/x.sif" },
      [],
      ["jupyter-desktop", ""],
    ],
    [
      "the default address in Singularity",
      { SINGULARITY_CONTAINER: "/x" },
      [],
      ["jupyter-desktop", ""],
    ],
    [
      "a Hub's server, for the name",
      {},
      ["jupyterhub-singleuser", "a b"],
      ["jupyterhub-singleuser", all, "a b"],
    ],
    [
      "a Hub's server, for the variables",
      hub,
      ["--debug"],
      ["jupyterhub-singleuser", all, "--debug"],
    ],
    ["a command under a Hub", hub, ["status"], ["jupyter-desktop", all, "status"]],
    ["a shell", {}, ["sh", "-c", "echo hello"], ["hello"]],
  ])("starts %s", async (...row) => {
    const [, env, args, expected] = row;
    const bin = only(dir.path, "image");
    for (const name of ["jupyter-desktop", "jupyterhub-singleuser"]) {
      const script = `#!/bin/sh\nprintf '%s\\n' ${name} "$JUPYTER_DESKTOP_HOST" "$@"\n`;
      fs.writeFileSync(path.join(bin, name), script, { mode: 0o755 });
    }
    const command = [path.join(PROJECT, "docker-entrypoint.sh"), ...args];
    const { code, stdout, stderr } = await run(command, { env: { PATH: bin, ...env } });
    expect([code, stdout, stderr]).toEqual([0, `${expected.join("\n")}\n`, ""]);
  });
});
