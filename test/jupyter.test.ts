/** install, uninstall, run and env without Jupyter: what is written and taken back, and what is said. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { jupyterConfigDir, renderJupyterEntry, withoutBlock } from "../server.ts";
import { SERVER, startServer, tempDir, until } from "./_helpers.ts";

setDefaultTimeout(30_000);

const ENTRY = {
  program: ["/opt/bun", "/opt/{a}/server.ts"],
  args: ["--vnc-arg={x}"],
  icon: "/etc/{icon}.svg",
  labTab: false,
  websockify: false,
};

/** A home with a Jupyter that knows these directories; `cli` runs jupyter-desktop there. */
function newHome({ config = ["$HOME/.jupyter"], script = SERVER, tmp = "" } = {}) {
  const dir = tempDir();
  const file = path.join(dir.path, ".jupyter/jupyter_server_config.py");
  const paths = { config: config.map((name) => name.replace("$HOME", dir.path)), data: [] };
  fs.mkdirSync(path.join(dir.path, "bin"));
  fs.mkdirSync(path.dirname(file));
  const jupyter = `#!/bin/sh\necho '${JSON.stringify(paths)}'\n`;
  fs.writeFileSync(path.join(dir.path, "bin/jupyter"), jupyter, { mode: 0o755 });
  const cli = async (args: string[], env: Record<string, string> = {}) => {
    const child = Bun.spawn([process.execPath, script, ...args], {
      cwd: dir.path,
      env: {
        HOME: dir.path,
        TMPDIR: tmp || dir.path,
        PATH: `${dir.path}/bin:/usr/bin:/bin`,
        ...env,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { code: await child.exited, stdout, stderr, signal: child.signalCode };
  };
  const read = () => fs.readFileSync(file, "utf8");
  return { dir: dir.path, file, cli, read, [Symbol.dispose]: dir[Symbol.dispose] };
}

describe("the entry in Jupyter's configuration", () => {
  test("doubles each brace of Jupyter's template but those of the socket", () => {
    const text = renderJupyterEntry(ENTRY);
    expect(text).toContain('"/opt/{{a}}/server.ts"');
    expect(text).toContain('"--vnc-arg={{x}}"');
    expect(text).toContain('"{unix_socket}"');
    expect(text).toContain('"icon_path": "/etc/{icon}.svg"'); // no template
  });

  test("opens a browser's tab, or one of the Lab", () => {
    expect(renderJupyterEntry(ENTRY)).toContain('"new_browser_tab": True');
    expect(renderJupyterEntry({ ...ENTRY, labTab: true })).toContain('"new_browser_tab": False');
  });

  test("goes where this Jupyter reads it: for the user, the environment, the system", () => {
    const paths = {
      config: ["/u/.jupyter", "/u/.local/etc/jupyter", "/opt/conda/etc/jupyter", "/etc/jupyter"],
      data: ["/u/.local/share/jupyter", "/opt/conda/share/jupyter", "/usr/share/jupyter"],
    };
    const env = { HOME: "/u", VIRTUAL_ENV: "/venv" };
    expect(jupyterConfigDir("user", env, paths)).toBe("/u/.jupyter");
    expect(jupyterConfigDir("user", { ...env, JUPYTER_CONFIG_DIR: "/c" }, paths)).toBe("/c");
    expect(jupyterConfigDir("sysPrefix", env, paths)).toBe("/opt/conda/etc/jupyter");
    expect(jupyterConfigDir("sysPrefix", env)).toBe("/venv/etc/jupyter");
    expect(() => jupyterConfigDir("sysPrefix", { HOME: "/u" })).toThrow("activate the environment");
    expect(jupyterConfigDir("system", env, paths)).toBe("/usr/local/etc/jupyter");
  });

  test("is not found in a file without one", () => {
    expect(withoutBlock("c.ServerProxy.servers = {}\n", "x")).toBeUndefined();
  });
});

describe("install", () => {
  test("says where it wrote, and what is missing, and what to do then", async () => {
    using home = newHome();
    const { code, stdout } = await home.cli(["install", "--xstartup", "mine", "--no-keep"]);
    expect(code).toBe(0);
    // Before it there may be a note that Bun is in a cache, as it is under npx.
    expect(stdout).toMatch(new RegExp(`^Wrote ${RegExp.escape(home.file)}$`, "m"));
    expect(stdout).toMatch(
      /no jupyter-server-proxy.*\n {2}.*-m pip install jupyter-server-proxy\n/,
    );
    expect(stdout).toEndWith("Restart Jupyter: its launcher then has a Desktop tile.\n");
    expect(home.read()).toContain(`"--xstartup=${home.dir}/mine"`);
    expect(home.read()).toContain('"--no-keep"');
    expect(fs.readdirSync(path.dirname(home.file)).toSorted()).toEqual([
      "jupyter-desktop",
      "jupyter_server_config.py",
    ]);
  });

  test("says which file of a higher rank hides the entry", async () => {
    using home = newHome({ config: ["$HOME/above", "$HOME/.jupyter"] });
    const above = path.join(home.dir, "above/jupyter_server_config.json");
    fs.mkdirSync(path.dirname(above));
    fs.writeFileSync(above, '{"ServerProxy": {"servers": {}}}');
    expect((await home.cli(["install"])).stdout).toContain(`${above} sets ServerProxy.servers`);
  });

  test("says that jupyter-remote-desktop-proxy takes its address, and how to end that", async () => {
    using home = newHome();
    const theirs = "jupyter_server_config.d/jupyter_remote_desktop_proxy.json";
    const file = path.join(path.dirname(home.file), theirs);
    fs.mkdirSync(path.dirname(file));
    fs.writeFileSync(file, "{}");
    expect((await home.cli(["install"])).stdout).toContain(
      "uninstall jupyter-remote-desktop-proxy\n",
    );
  });

  test("with --print shows it, and writes nothing", async () => {
    using home = newHome();
    const { code, stdout } = await home.cli(["install", "--print", "--websockify"]);
    expect(code).toBe(0);
    expect(stdout).toStartWith(`# ${home.file}\n`);
    expect(stdout).toContain('"desktop-websockify": {');
    expect(fs.readdirSync(path.dirname(home.file))).toEqual([]);
  });

  test("refuses what Jupyter decides, and places that exclude each other, all at once", async () => {
    using home = newHome();
    const wrong = ["--port", "1", "--token-file", "x", "--sys-prefix", "--system", "--keep"];
    const { code, stderr } = await home.cli(["install", ...wrong]);
    expect(code).toBe(2);
    for (const flag of ["--port", "--token-file", "--sys-prefix", "--keep"])
      expect(stderr).toContain(`jupyter-desktop: ${flag} (`);
    expect(fs.existsSync(home.file)).toBe(false);
  });

  test("from the cache of bunx keeps a copy, which serves when the cache is gone", async () => {
    using cache = tempDir();
    const bunx = path.join(cache.path, "bunx-0-jupyter-desktop@latest");
    const script = path.join(bunx, "node_modules/jupyter-desktop/server.js");
    const build = Bun.spawnSync([
      ...[process.execPath, "build", SERVER, "--target", "bun", "--outfile", script],
    ]);
    expect(build.exitCode).toBe(0);
    using home = newHome({ script });
    const shown = (await home.cli(["install", "--print"])).stdout;
    expect((await home.cli(["install"])).stderr).toBe("");
    expect(shown).toBe(`# ${home.file}${home.read()}`);
    fs.rmSync(bunx, { recursive: true });
    const words = /"command": (\[[\s\S]*?\])/.exec(home.read())?.[1] ?? "[]";
    const unix = path.join(home.dir, "http.sock");
    const command = (JSON.parse(words) as string[]).map((word) =>
      word === "{unix_socket}" ? unix : word,
    );
    const child = Bun.spawn([...command, "--vnc", "unix:/nonexistent/vnc.sock"], {
      env: { HOME: home.dir, TMPDIR: home.dir, PATH: "/nonexistent" },
      stdio: ["ignore", "ignore", "ignore"],
    });
    const ask = () => fetch("http://localhost/healthz", { unix }).catch(() => undefined);
    const answer = await until("its answer", ask);
    expect(await answer.text()).toBe("ok\n");
    child.kill();
    expect(await child.exited).toBe(0);
    expect((await home.cli(["--version"])).code).not.toBe(0); // the cache is gone indeed
  });
});

describe("uninstall", () => {
  test.each([
    ["nothing", undefined],
    ["a file of other settings", "c.ServerApp.port = 1\n"],
    ["a last line without an end", "c.ServerApp.port = 1"],
  ])("leaves %s as it was before install, and before a second one", async (_, before) => {
    using home = newHome();
    if (before !== undefined) fs.writeFileSync(home.file, before);
    await home.cli(["install"]);
    await home.cli(["install", "--geometry", "800x600"]);
    expect(home.read().match(/>>> jupyter-desktop/g)).toHaveLength(1);
    expect(home.read()).toContain("--geometry=800x600");
    expect((await home.cli(["uninstall"])).code).toBe(0);
    if (before !== undefined) expect(home.read()).toBe(before);
    expect(fs.readdirSync(path.dirname(home.file))).toEqual(
      before === undefined ? [] : [path.basename(home.file)],
    );
    const again = await home.cli(["uninstall"]);
    expect(again.code).toBe(1);
    expect(again.stdout).toContain("--sys-prefix, --system, or neither");
  });

  test("touches nothing that was changed by hand, and says so; install neither", async () => {
    using home = newHome();
    await home.cli(["install"]);
    const changed = home.read().replace('"timeout": 60', '"timeout": 90');
    fs.writeFileSync(home.file, changed);
    for (const command of ["uninstall", "install"]) {
      const { code, stderr } = await home.cli([command]);
      expect(stderr).toContain(`the lines of jupyter-desktop in ${home.file} were changed by hand`);
      expect(code).toBe(1);
    }
    expect(home.read()).toBe(changed);
  });

  test("leaves a link a link, its file's mode, and an icon of the user's own", async () => {
    using home = newHome();
    const real = path.join(home.dir, "dotfile.py");
    fs.writeFileSync(real, "c.x = 1\n", { mode: 0o600 });
    fs.symlinkSync(real, home.file);
    await home.cli(["install"]);
    const icon = path.join(home.dir, ".jupyter/jupyter-desktop/desktop.svg");
    fs.writeFileSync(icon, "<svg/>");
    expect((await home.cli(["uninstall"])).stdout).toContain(path.dirname(icon));
    expect(fs.readFileSync(icon, "utf8")).toBe("<svg/>");
    expect(fs.lstatSync(home.file).isSymbolicLink()).toBe(true);
    expect(fs.statSync(real).mode & 0o777).toBe(0o600);
    expect(fs.readFileSync(real, "utf8")).toBe("c.x = 1\n");
  });
});

describe("run and env", () => {
  const LIGHT = "#!/bin/sh\nexec dbus-run-session -- xterm\n";
  const desktop = async (name: string, more: Record<string, string> = {}) => {
    const scripts = tempDir();
    const xstartup = path.join(scripts.path, "xstartup");
    fs.writeFileSync(xstartup, LIGHT, { mode: 0o755 });
    const server = await startServer(
      ["--name", name, "--xstartup", xstartup, "--start", "visit"],
      more,
    );
    const stop = async () => {
      await server[Symbol.asyncDispose]();
      scripts[Symbol.dispose]();
    };
    return { ...server, [Symbol.asyncDispose]: stop };
  };

  test("without a server say what to type", async () => {
    using home = newHome();
    for (const command of [["env"], ["run", "--", "true"]]) {
      const { code, stdout, stderr } = await home.cli(command);
      expect(stderr).toMatch(/^jupyter-desktop: no desktop of this user.*"jupyter-desktop"/);
      expect([code, stdout]).toEqual([1, ""]);
    }
    expect((await home.cli(["run"])).stderr).toContain("run -- xterm");
  });

  test("start the desktop, and give a program what it takes to show its window there", async () => {
    await using server = await desktop("one");
    using home = newHome({ tmp: server.dir });
    const { stdout } = await home.cli(["env"]);
    const sh = `${stdout} WAYLAND=$WAYLAND_DISPLAY; echo "$DISPLAY $XAUTHORITY"; xdpyinfo | grep -c ^name`;
    const shell = Bun.spawnSync(["sh", "-c", sh]);
    expect(shell.stdout.toString()).toMatch(/^:\d+ \/.*\/one\/Xauthority\n1\n$/);
    const json = JSON.parse((await home.cli(["env", "--json"])).stdout) as Record<string, string>;
    expect(Object.keys(json)).toEqual(["DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS"]);
    // No viewer is told where the cookie of the display lies.
    expect(await (await server.ask("desktop/api/status")).text()).not.toContain("Xauthority");

    const other = {
      WAYLAND_DISPLAY: "wayland-0",
      MPLBACKEND: "module://matplotlib_inline.backend_inline",
    };
    const print = 'echo "$DISPLAY$WAYLAND_DISPLAY$MPLBACKEND|$(pwd)|$KEPT|$0 $1"; exit 7';
    const run = ["run", "--", "sh", "-c", print, "zero", "--json"];
    const ran = await home.cli(run, { ...other, KEPT: "yes" });
    expect(ran).toEqual({
      ...{ code: 7, signal: null, stderr: "" },
      stdout: `${json.DISPLAY}|${home.dir}|yes|zero --json\n`,
    });
    const killed = await home.cli(["run", "--", "sh", "-c", "kill -TERM $$"]);
    expect(killed.signal).toBe("SIGTERM");
    const script = path.join(home.dir, "no-program");
    fs.writeFileSync(script, "no program", { mode: 0o755 });
    expect(await home.cli(["run", "--", script])).toMatchObject({ code: 126 });
    expect(await home.cli(["run", "--", "not-there"])).toMatchObject({ code: 127 });
  });

  test("ask for a name where several servers run, and take it", async () => {
    await using one = await desktop("one");
    await using two = await desktop("two", { TMPDIR: one.dir });
    using home = newHome({ tmp: one.dir });
    const { code, stderr } = await home.cli(["env"]);
    expect(stderr).toMatch(/--name (one or two|two or one)/);
    expect(code).toBe(1);
    expect((await home.cli(["env", "--name", "two"])).stdout).toContain("/two/Xauthority");
    expect((await two.ask("desktop/api/status")).status).toBe(200);
  });

  test("say why a desktop does not start, with its last lines", async () => {
    await using server = await startServer(["--xstartup", "/nonexistent", "--start", "visit"]);
    using home = newHome({ tmp: server.dir });
    const { code, stderr } = await home.cli(["run", "--", "true"]);
    expect(stderr).toMatch(
      /^jupyter-desktop: the desktop does not start \([\w-]+\): type "jupyter-desktop doctor"/,
    );
    expect(code).toBe(1);
  });
});
