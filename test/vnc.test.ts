/** Real VNC servers and desktops, most of them with an xstartup of one line. */
import { afterEach, describe, expect, jest, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import {
  type DesktopOptions,
  findXvnc,
  launchDesktop,
  LogTail,
  VncError,
  type Xvnc,
  xvncArgs,
} from "../server.ts";
import { asUser, openWebSocket, processesWith, startServer, tempDir, until } from "./_helpers.ts";

const PATH = process.env.PATH ?? "";
const UID = process.getuid?.();
const ROOT = UID === 0;
const asRoot = test.skipIf(!ROOT);
setDefaultTimeout(30_000);
const quiet = () => {};
const mode = (file: string) => fs.statSync(file).mode & 0o777;
/** An executable script. */
function script(file: string, body: string, bits = 0o755): string {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, `#!/bin/sh\n${body}\n`, { mode: bits });
  return file;
}
const run = async (command: string[], env: Record<string, string> = {}) => {
  const child = Bun.spawn(command, { env: { PATH, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const said = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, said: said.join("") };
};

afterEach(() => {
  jest.useRealTimers();
});

interface Given extends Partial<DesktopOptions> {
  /** The body of xstartup; without one, xstartup is chosen as usual. */
  readonly session?: string;
  readonly vars?: Record<string, string>;
}

/** A desktop by launchDesktop, in a directory of its own that is its HOME too. */
async function launch({ session, vars, ...given }: Given, prepare: (home: string) => void = quiet) {
  const dir = tempDir();
  prepare(dir.path);
  const tail = new LogTail(quiet);
  const runtimeDir = path.join(dir.path, "run");
  const running = await launchDesktop({
    runtimeDir,
    geometry: "800x600",
    vncArgs: [],
    xstartup: session && script(path.join(dir.path, "xstartup"), session),
    env: { PATH, HOME: dir.path, ...vars },
    tail,
    ...given,
  });
  const cookie = {
    DISPLAY: running.display ?? "",
    XAUTHORITY: path.join(runtimeDir, "Xauthority"),
  };
  const stop = async () => {
    await running.stop();
    dir[Symbol.dispose]();
  };
  return { running, tail, dir: dir.path, runtimeDir, cookie, [Symbol.asyncDispose]: stop };
}

/** What a session writes into `file` of its HOME, once it has written all of it. */
async function written(file: string): Promise<string> {
  await until(`${file} to be written`, () => fs.existsSync(file));
  return fs.readFileSync(file, "utf8");
}
/** The status, once it is this state. */
async function reached(server: Awaited<ReturnType<typeof startServer>>, state: string) {
  let last: unknown;
  const arrived = async () => {
    last = await (await server.ask("desktop/api/status")).json();
    return typeof last === "object" && last && "state" in last && last.state === state;
  };
  await until(`the state ${state}`, arrived, 8_000);
  return last;
}
const REPORT = 'env >"$HOME/part"; mv "$HOME/part" "$HOME/env"; exec sleep 1000';

describe("launchDesktop keeps the display private:", () => {
  test("a socket of mode 0600 in a directory of mode 0700, and no TCP port", async () => {
    await using desk = await launch({ session: "exec sleep 1000" });
    const socket = path.join(desk.runtimeDir, "vnc.sock");
    expect(desk.running.target).toEqual({ kind: "unix", path: socket });
    expect(desk.running.vnc).toStartWith("TigerVNC 1.");
    expect(fs.statSync(socket).isSocket()).toBe(true);
    expect(mode(socket)).toBe(0o600);
    expect(mode(desk.runtimeDir)).toBe(0o700);
    expect(mode(path.join(desk.runtimeDir, "Xauthority"))).toBe(0o600);
    const xvnc = processesWith(socket);
    const { said } = await run(["ss", "-Hlntup"]);
    for (const pid of xvnc) expect(said).not.toContain(`pid=${pid},`);
    expect(xvnc).not.toHaveLength(0);
  });

  test("the X server lets in who has the cookie, and nobody else", async () => {
    await using desk = await launch({ session: "exec sleep 1000" });
    const stranger = { DISPLAY: desk.cookie.DISPLAY, XAUTHORITY: "/dev/null" };
    expect((await run(["xdpyinfo"], stranger)).code).not.toBe(0);
    const owner = await run(["xdpyinfo"], desk.cookie);
    expect(owner.code).toBe(0);
    expect(owner.said).toContain("800x600 pixels");
  });

  test("the desktop has nothing of another session, and no secret", async () => {
    const foreign = {
      JUPYTER_DESKTOP_TOKEN: "secret",
      JUPYTERHUB_API_TOKEN: "secret",
      JPY_API_TOKEN: "secret",
      DISPLAY: ":99",
      XAUTHORITY: "/foreign",
      WAYLAND_DISPLAY: "foreign",
      SESSION_MANAGER: "foreign",
      DBUS_SESSION_BUS_ADDRESS: "unix:path=/foreign",
      XDG_SESSION_ID: "foreign",
      LD_LIBRARY_PATH: "/foreign",
      PYTHONHOME: "/foreign",
      GTK_PATH: "/foreign",
      LANG: "C.UTF-8",
      MY_OWN: "kept",
    };
    await using desk = await launch({ session: REPORT, vars: foreign });
    const env = (await written(path.join(desk.dir, "env"))).split("\n");
    expect(env.filter((line) => /secret|foreign|=:99$/.test(line))).toEqual([]);
    expect(env).toContainValues([
      "MY_OWN=kept",
      "LANG=C.UTF-8",
      `DISPLAY=${desk.cookie.DISPLAY}`,
      `XAUTHORITY=${desk.cookie.XAUTHORITY}`,
    ]);
  });
});

describe("launchDesktop says why the desktop ended:", () => {
  test("an xstartup that exits at once, with its code, its time and its last words", async () => {
    await using desk = await launch({ session: "echo no such session >&2; exit 3" });
    const cause = await desk.running.exited;
    expect(cause.code).toBe("desktop-exited");
    expect(cause.detail).toMatchObject({ code: 3, xstartup: path.join(desk.dir, "xstartup") });
    expect(cause.detail.afterMs).toBeLessThan(5_000);
    await until("its last words", () => desk.tail.lines().includes("no such session"));
  });

  test.each([0o644, undefined])("an xstartup that cannot be run (mode %p)", async (bits) => {
    using dir = tempDir();
    const xstartup = path.join(dir.path, "xstartup");
    if (bits) script(xstartup, "exit 0", bits);
    await using desk = await launch({ xstartup });
    const { code, detail } = await desk.running.exited;
    expect([code, detail.xstartup]).toEqual(["desktop-exited", xstartup]);
    expect(detail.error).toBeString();
  });

  test.each([
    [1_000, "desktop-exited"],
    [60_000, "logged-out"],
  ])("an xstartup that ends well after %p ms is %s", async (ms, code) => {
    await using desk = await launch({ session: 'until [ -e "$HOME/go" ]; do sleep 0.05; done' });
    jest.setSystemTime(Date.now() + ms);
    fs.writeFileSync(path.join(desk.dir, "go"), "");
    expect((await desk.running.exited).code).toBe(code);
  });

  test("a VNC server that is killed", async () => {
    await using desk = await launch({ session: "exec sleep 1000" });
    const socket = path.join(desk.runtimeDir, "vnc.sock");
    for (const pid of processesWith(socket)) process.kill(Number(pid), "SIGKILL");
    expect(await desk.running.exited).toMatchObject({
      code: "vnc-exited",
      detail: { signal: "SIGKILL" },
    });
  });

  test("a VNC server that does not start, without leaving anything", async () => {
    using dir = tempDir();
    const tail = new LogTail(quiet);
    const runtimeDir = path.join(dir.path, "run");
    const outcome = launchDesktop({
      runtimeDir,
      geometry: "800x600",
      vncArgs: ["-no-such-option"],
      xstartup: undefined,
      env: { PATH, HOME: dir.path },
      tail,
    });
    const error = await outcome.catch((error: unknown) => error);
    expect(error).toBeInstanceOf(VncError);
    expect(error).toMatchObject({ reason: { code: "vnc-exited", detail: { code: 1 } } });
    await until("its complaint", () => tail.lines().join().includes("no-such-option"));
    expect(processesWith(dir.path)).toEqual([]);
  });
});

describe("launchDesktop leaves nothing behind:", () => {
  const STUBBORN = [
    "setsid sleep 1001 &",
    "setsid sh -c 'trap \"\" TERM; while :; do sleep 1002; done' &",
    "(setsid setsid sleep 1003 &)",
    'touch "$HOME/up"; exec sleep 1000',
  ].join("\n");

  test("stop() ends children that have left its process group, and one that ignores SIGTERM", async () => {
    await using desk = await launch({ session: STUBBORN });
    await until("the session", () => fs.existsSync(path.join(desk.dir, "up")));
    expect(processesWith(desk.runtimeDir).length).toBeGreaterThanOrEqual(6);
    await desk.running.stop();
    expect(processesWith(desk.runtimeDir)).toEqual([]);
  });

  test("a SIGKILL of the server ends the whole desktop and removes its directory", async () => {
    using dir = tempDir();
    const xstartup = script(path.join(dir.path, "xstartup"), STUBBORN);
    await using server = await startServer(["--xstartup", xstartup]);
    await until("the session", () => fs.existsSync(path.join(server.dir, "up")));
    const places = fs.readdirSync(path.join(server.dir, `jupyter-desktop-${UID}`));
    expect(places).toEqual([`tcp-127.0.0.1-${server.url.port}`]);
    server.child.kill("SIGKILL");
    await until("the end of all processes", () => processesWith(server.dir).length === 0);
    expect(fs.readdirSync(path.join(server.dir, `jupyter-desktop-${UID}`))).toEqual([]);
  });
});

describe("The desktop starts", () => {
  const REPORT_PLACES = [
    'for name in HOME XDG_RUNTIME_DIR; do eval "dir=\\$$name"; [ -d "$dir" ] && [ -w "$dir" ] && echo "$name"; done >"$OUT/part"',
    '[ -n "$USER" ] && echo USER >>"$OUT/part"; mv "$OUT/part" "$OUT/places"; exec sleep 1000',
  ].join("\n");

  /** A server with this session is started, reached, and its report read. */
  async function reach(vars: (dir: string) => Record<string, string>, as: string[] = []) {
    using dir = tempDir();
    const xstartup = script(path.join(dir.path, "xstartup"), REPORT_PLACES);
    const env = { OUT: dir.path, ...vars(dir.path) };
    await using server = await startServer(["--xstartup", xstartup], env, as);
    const places = await written(path.join(dir.path, "places"));
    await using viewer = await openWebSocket(server.url);
    expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
    expect(places.split("\n")).toEqual(["HOME", "XDG_RUNTIME_DIR", "USER", ""]);
    return server.said.stderr;
  }
  const none = () => ({});

  test("for whoever runs it", () => reach(none));
  asRoot("for an ordinary user", () => reach(none, asUser(65_534)));
  asRoot("for a user without a passwd entry", () => reach(none, asUser(12_345)));
  asRoot("without HOME", () => reach(() => ({ HOME: "" }), asUser(12_345)));
  asRoot("with a HOME that cannot be written", () =>
    reach(() => ({ HOME: "/root" }), asUser(65_534)),
  );
  asRoot("with a HOME that is not there", () =>
    reach(() => ({ HOME: "/nonexistent" }), asUser(65_534)),
  );
  test("with a TMPDIR that is too long for a socket's path", () =>
    reach((dir) => {
      const long = path.join(dir, "l".repeat(120));
      fs.mkdirSync(long);
      return { TMPDIR: long };
    }));
  asRoot("with an XDG_RUNTIME_DIR that cannot be written", () =>
    reach((dir) => {
      const closed = path.join(dir, "closed");
      fs.mkdirSync(closed, { mode: 0o555 });
      return { XDG_RUNTIME_DIR: closed };
    }, asUser(65_534)),
  );

  asRoot.each([
    ["is open to others", 65_534, 0o777],
    ["belongs to another, though root could use it", 0, 0o700],
  ])("but not in a runtime directory that %s", async (_, uid, mode) => {
    using dir = tempDir();
    const place = path.join(dir.path, `jupyter-desktop-${uid}`);
    fs.mkdirSync(place);
    fs.chmodSync(place, mode);
    fs.chownSync(place, 65_534, 65_534);
    const env = { TMPDIR: dir.path };
    await using server = await startServer(["--start", "visit"], env, asUser(uid));
    expect(server.url.port).not.toBe("");
    expect(fs.readdirSync(place)).toEqual([]);
  });

  test("XFCE, though conda's broken D-Bus comes first on the PATH", async () => {
    using conda = tempDir();
    for (const name of ["dbus-daemon", "dbus-launch", "dbus-run-session", "dbus-send"])
      script(path.join(conda.path, name), "echo conda is broken >&2; exit 1");
    await using desk = await launch({ vars: { PATH: `${conda.path}:${PATH}` } });
    await until("a window manager", async () => {
      const { said } = await run(["xprop", "-root", "_NET_SUPPORTING_WM_CHECK"], desk.cookie);
      return said.includes("window id");
    });
    await until("the panel", () =>
      processesWith("xfce4-panel").some((pid) => processesWith(desk.runtimeDir).includes(pid)),
    );
    expect(desk.tail.lines().join("\n")).not.toContain("conda is broken");
  });

  test("the user's own ~/.vnc/xstartup, if it is executable", async () => {
    await using desk = await launch({}, (home) =>
      script(path.join(home, ".vnc/xstartup"), "echo my own; exec sleep 1000"),
    );
    await until("its first words", () => desk.tail.lines().includes("my own"));
  });

  test("the bundled one, if it is not", async () => {
    await using desk = await launch({}, (home) =>
      script(path.join(home, ".vnc/xstartup"), "echo my own; exec sleep 1000", 0o644),
    );
    await until("its first words", () =>
      desk.tail.lines().join().includes("starting xfce4-session"),
    );
    expect(desk.tail.lines()).not.toContain("my own");
  });
});

describe("The VNC server", () => {
  const OPTIONS: DesktopOptions = {
    runtimeDir: "/run/x",
    geometry: "800x600",
    vncArgs: ["-extra"],
    xstartup: undefined,
    env: {},
    tail: new LogTail(quiet),
  };
  const args = (xvnc: Xvnc) => xvncArgs(xvnc, OPTIONS);

  test("of TurboVNC is told apart by what it says, and is not told of a TCP port", async () => {
    using dir = tempDir();
    const version = "TurboVNC Server (Xvnc) 64-bit v3.1.2 (build 20240801)";
    script(path.join(dir.path, "Xvnc"), `echo "${version}" >&2; exit 1`);
    const xvnc = await findXvnc(dir.path);
    expect(xvnc).toEqual({
      file: path.join(dir.path, "Xvnc"),
      kind: "TurboVNC",
      version: "3.1.2",
    });
    expect(xvnc && args(xvnc)).not.toContain("-rfbport");
    expect(xvnc && args(xvnc).at(-1)).toBe("-extra");
  });

  test("of TigerVNC is told to open no TCP port", async () => {
    const xvnc = await findXvnc(PATH);
    expect(xvnc).toMatchObject({ kind: "TigerVNC", version: expect.stringMatching(/^\d+\.\d+/) });
    expect(xvnc && args(xvnc).join(" ")).toContain(" -rfbport -1 ");
  });

  test.each([
    ["both", "", ""],
    ["in", "-SendCutText=0", "-noclipboardsend"],
    ["out", "-AcceptCutText=0 -SetPrimary=0", "-noclipboardrecv"],
    ["off", "-AcceptCutText=0 -SetPrimary=0 -SendCutText=0", "-noclipboardrecv -noclipboardsend"],
  ] as const)("is told of --clipboard %s in its own words", (clipboard, tiger, turbo) => {
    const told = (kind: Xvnc["kind"]) =>
      xvncArgs({ file: "Xvnc", kind, version: "" }, { ...OPTIONS, clipboard })
        .filter((arg) => /CutText|SetPrimary|noclipboard/.test(arg))
        .join(" ");
    expect([told("TigerVNC"), told("TurboVNC")]).toEqual([tiger, turbo]);
  });

  test("is not found where there is none", async () => {
    using dir = tempDir();
    expect(await findXvnc(dir.path)).toBeUndefined();
  });

  test("that is not installed: the status has the command that installs it", async () => {
    const hide = 'mount --bind /dev/null /usr/bin/Xtigervnc && exec "$@"';
    const hidden = ["unshare", ROOT ? "-m" : "-rm", "sh", "-c", hide, "sh"];
    await using server = await startServer([], {}, hidden);
    const status = await reached(server, "failed");
    expect(status).toMatchObject({
      cause: "no-vnc-server",
      detail: { command: expect.stringContaining("tigervnc-standalone-server") },
    });
    expect(processesWith(server.dir)).toEqual([String(server.child.pid)]);
  });

  const COMMAND =
    'exec Xtigervnc -rfbunixpath "$JUPYTER_DESKTOP_VNC_SOCKET" -SecurityTypes None -rfbport -1 -displayfd 3 3>&1';

  test("of --vnc-command is started, shown, and ended with the server", async () => {
    await using server = await startServer(["--vnc-command", COMMAND]);
    await using viewer = await openWebSocket(server.url);
    expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
    server.child.kill();
    expect(await server.code).toBe(0);
    expect(processesWith(server.dir)).toEqual([]);
  });

  test("of --vnc-command has the user's environment, and no secret", async () => {
    const secrets = ["JPY_API_TOKEN", "JUPYTER_TOKEN", "JUPYTERHUB_API_TOKEN"];
    const named = [...secrets, "CONFIGPROXY_AUTH_TOKEN"].map((name) => [name, "secret"]);
    const vars = { ...Object.fromEntries(named), MY_OWN: "kept", DISPLAY: ":99" };
    const command = 'env >"$HOME/env.new"; mv "$HOME/env.new" "$HOME/env"; exec sleep 1000';
    await using server = await startServer(["--vnc-command", command], vars);
    const file = path.join(server.dir, "env");
    await until("its environment", () => fs.existsSync(file));
    const env = fs.readFileSync(file, "utf8").split("\n");
    expect(env).toContainValues(["MY_OWN=kept", "DISPLAY=:99"]);
    expect(env.filter((line) => line.includes("TOKEN"))).toEqual([]);
  });

  test.each([
    ["fails", "echo cannot >&2; exit 7", { code: 7 }],
    ["is killed", "kill -9 $$", { signal: "SIGKILL" }],
  ])("of a --vnc-command that %s: the status says so at once", async (_, command, detail) => {
    await using server = await startServer(["--vnc-command", command]);
    const status = await reached(server, "backoff");
    expect(status).toMatchObject({ cause: "vnc-exited", detail: { command, ...detail } });
  });

  test.skipIf(!Bun.which("x11vnc") || !Bun.which("Xvfb"))(
    "x11vnc shows a display that is there already",
    async () => {
      const command = [
        'exec 3>"$HOME/display"; Xvfb -displayfd 3 -screen 0 640x480x24 & exec 3>&-',
        'until [ -s "$HOME/display" ]; do sleep 0.05; done',
        'exec x11vnc -display ":$(cat "$HOME/display")" -unixsock "$JUPYTER_DESKTOP_VNC_SOCKET" -rfbport 0 -forever',
      ].join("\n");
      await using server = await startServer(["--vnc-command", command]);
      await using viewer = await openWebSocket(server.url);
      expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
    },
  );
});

describe("A VNC server that runs already", () => {
  /** Xtigervnc of somebody else's; it says which display it took. */
  async function other(...args: string[]) {
    const dir = tempDir();
    const command = ["Xtigervnc", "-displayfd", "1", "-localhost=1", ...args];
    const child = Bun.spawn(command, {
      cwd: dir.path,
      env: { PATH },
      stdio: ["ignore", "pipe", "ignore"],
    });
    const { value } = await child.stdout.getReader().read();
    const display = Number(Buffer.from(value ?? "").toString());
    const stop = async () => {
      child.kill();
      await child.exited;
      dir[Symbol.dispose]();
    };
    return { child, display, dir: dir.path, [Symbol.asyncDispose]: stop };
  }

  /** Shows it, asks the server to stop it, ends the server: it runs on. */
  async function showAndLeave(target: string, xvnc: Awaited<ReturnType<typeof other>>) {
    {
      await using server = await startServer(["--vnc", target]);
      await using viewer = await openWebSocket(server.url);
      expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
      expect((await server.ask("desktop/api/stop", { method: "POST" })).status).toBe(200);
    }
    await using server = await startServer(["--vnc", target]);
    await using viewer = await openWebSocket(server.url);
    expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
    expect(xvnc.child.exitCode).toBeNull();
  }

  test("on TCP is shown and never ended", async () => {
    await using xvnc = await other("-SecurityTypes", "None");
    await showAndLeave(`tcp:127.0.0.1:${5900 + xvnc.display}`, xvnc);
  });

  test("on a unix socket is shown and never ended", async () => {
    using dir = tempDir();
    const socket = path.join(dir.path, "vnc.sock");
    await using xvnc = await other(
      "-SecurityTypes",
      "None",
      "-rfbport",
      "-1",
      "-rfbunixpath",
      socket,
    );
    await showAndLeave(`unix:${socket}`, xvnc);
  });

  test("with a password is shown with the right one only", async () => {
    using dir = tempDir();
    const file = (name: string, content: string | Uint8Array) => {
      fs.writeFileSync(path.join(dir.path, name), content);
      return path.join(dir.path, name);
    };
    // "password", as vncpasswd writes it: DES with a key that all VNC servers know.
    const known = file("known", Buffer.from("dbd83cfd727a1458", "hex"));
    await using xvnc = await other("-SecurityTypes", "VncAuth", "-PasswordFile", known);
    const target = `tcp:127.0.0.1:${5900 + xvnc.display}`;
    for (const [password, right] of [
      ["password", true],
      ["guess", false],
    ] as const) {
      const args = ["--vnc", target, "--vnc-password-file", file("password", `${password}\n`)];
      await using server = await startServer(args);
      const opened = openWebSocket(server.url);
      if (!right) {
        expect(await opened.then(() => "open", String)).toContain("refused");
        await until("the reason in the log", () =>
          server.said.stderr.includes("cause=vnc-password"),
        );
        continue;
      }
      await using viewer = await opened;
      viewer.ws.send(Buffer.from("RFB 003.008\n\x01\x01"));
      // The prelude, then ServerInit of the real server: its size first.
      await viewer.inbox.read(12 + 2 + 4);
      expect((await viewer.inbox.read(4)).readUInt16BE()).toBeGreaterThan(0);
    }
  });
});
