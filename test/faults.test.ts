/** Faults: what is killed, stopped, full, stale, in the way or another's. Real servers and Xvnc, no browser. */
import { afterEach, describe, expect, jest, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { attach, Bridge, createApp, LogTail, Supervisor, type Target } from "../server.ts";
import { noticeForStatus } from "../viewer/notice.ts";
import { parseStatus } from "../viewer/rules.ts";
import { createText } from "../viewer/text.ts";
import {
  asUser,
  fakeVnc,
  HANDSHAKE,
  type Inbox,
  openWebSocket,
  processesWith,
  spawnServer,
  startServer,
  tempDir,
  until,
} from "./_helpers.ts";

const UID = process.getuid?.();
const ROOT = UID === 0;
const asRoot = test.skipIf(!ROOT);
const NOBODY = 65_534;
const NAMELESS = 54_321;
const STRANGER = 12_345;
setDefaultTimeout(30_000);
const quiet = () => {};
type Server = Awaited<ReturnType<typeof startServer>>;

afterEach(() => {
  jest.useRealTimers();
});

// --- the place, the server and what is in it ---

/** A file's text; empty when it is gone, as the files of a process are after its end. */
const read = (file: string) => {
  try {
    return fs.readFileSync(file, "utf8");
  } catch {
    return "";
  }
};

const signalTo = (pids: string[], signal: NodeJS.Signals) => {
  for (const pid of pids) process.kill(Number(pid), signal);
};

/** HOME and TMPDIR of servers that come and go, with the xstartup of their desktops. */
function home(session = "exec sleep 1000") {
  const dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, `#!/bin/sh\n${session}\n`, { mode: 0o755 });
  const env = { HOME: dir.path, TMPDIR: dir.path };
  const all = () => processesWith(dir.path);
  const stop = async () => {
    await until("the end of all that is left", () => {
      for (const pid of all()) Bun.spawnSync(["kill", "-9", pid]);
      return all().length === 0;
    });
    dir[Symbol.dispose]();
  };
  return {
    dir: dir.path,
    env,
    /** The directories of its servers, one in it for each of them. */
    runtime: path.join(dir.path, `jupyter-desktop-${UID}`),
    all,
    /** Its processes of this name. */
    named: (name: string) => all().filter((pid) => read(`/proc/${pid}/comm`) === `${name}\n`),
    start: (args: string[] = [], own: Record<string, string> = {}) =>
      startServer(["--xstartup", xstartup, ...args], { ...env, ...own }),
    [Symbol.asyncDispose]: stop,
  };
}

interface Status {
  state: string;
  cause: string | null;
  detail: Record<string, unknown>;
  display: string;
  viewers: number;
}

const statusOf = async (server: Server) =>
  (await (await server.ask("desktop/api/status")).json()) as Status;
const post = async (server: Server, action: "start" | "stop" | "restart") =>
  (await server.ask(`desktop/api/${action}`, { method: "POST" })).json();

/** The status, once it is this state. */
const reached = (server: Server, state: string, ms?: number) =>
  until(
    `the state ${state}`,
    async () => {
      const status = await statusOf(server);
      return status.state === state ? status : undefined;
    },
    ms,
  );

/** The states that the log tells of, in its order. */
const logged = (server: Server) =>
  [...server.said.stderr.matchAll(/^\S+ \w+ desktop (\w+)/gm)].map(([, state]) => state);

/** Ends the server as no handler can see it, and waits for that. */
async function kill9(server: Server) {
  server.child.kill("SIGKILL");
  await server.code;
}

/** The windows of a desktop, as xwininfo lists them. */
async function windows(runtimeDir: string, display: string) {
  const env = { PATH: process.env.PATH, DISPLAY: display, XAUTHORITY: `${runtimeDir}/Xauthority` };
  const child = Bun.spawn(["xwininfo", "-root", "-tree"], {
    env,
    stdio: ["ignore", "pipe", "ignore"],
  });
  return child.stdout.text();
}

// --- viewers ---

const KEY = Uint8Array.of(4, 1, 0, 0, 0, 0, 0, 65);
const UPDATE_REQUEST = Uint8Array.of(3, 1, 0, 0, 0, 0, 0, 1, 0, 1);
/** SetEncodings with ExtendedDesktopSize alone, without which a server takes no size. */
const ENCODINGS = Buffer.from("02000001fffffecc", "hex");

function sizeMessage(width: number, height: number) {
  const message = Buffer.alloc(24);
  message[0] = 251;
  message[6] = 1;
  for (const at of [2, 16]) message.writeUInt16BE(width, at);
  for (const at of [4, 18]) message.writeUInt16BE(height, at);
  return message;
}

/** A viewer past the handshake, and the size that ServerInit told it. */
async function watch(server: { url: URL }) {
  const viewer = await openWebSocket(server.url);
  viewer.ws.send(Buffer.from("RFB 003.008\n\x01\x01"));
  const [types = 0] = (await viewer.inbox.read(12 + 1)).subarray(12);
  await viewer.inbox.read(types + 4);
  const init = await viewer.inbox.read(24);
  await viewer.inbox.read(init.readUInt32BE(20));
  const size = { width: init.readUInt16BE(0), height: init.readUInt16BE(2) };
  return { ...viewer, size };
}

/** A VNC server that does the handshake, and keeps what each viewer says after it. */
function recorder() {
  const said: Buffer[] = [];
  const vnc = fakeVnc(async (peer: Inbox) => {
    const at = said.push(Buffer.alloc(0)) - 1;
    peer.socket?.write("RFB 003.008\n");
    await peer.read(12);
    peer.socket?.write(Uint8Array.of(1, 1));
    await peer.read(1);
    peer.socket?.write(new Uint8Array(4));
    await peer.read(1);
    const init = Buffer.alloc(24);
    init.writeUInt16BE(800, 0);
    init.writeUInt16BE(600, 2);
    peer.socket?.write(init);
    for (;;) said[at] = Buffer.concat([said[at] ?? Buffer.alloc(0), await peer.read(1)]);
  });
  return { said, name: vnc.name, [Symbol.dispose]: vnc[Symbol.dispose] };
}

/** The sizes among the messages that a recorder kept: of these tests' messages, only they have a 251. */
function sizesIn(said: Buffer | undefined) {
  const sizes: string[] = [];
  for (let at = said?.indexOf(251) ?? -1; said && at >= 0; at = said.indexOf(251, at + 24))
    sizes.push(`${said.readUInt16BE(at + 2)}x${said.readUInt16BE(at + 4)}`);
  return sizes;
}

describe("A killed server", () => {
  const STUBBORN = [
    "setsid sleep 1001 &",
    "setsid sh -c 'trap \"\" TERM; while :; do sleep 1002; done' &",
    "(setsid setsid sleep 1003 &)",
    'touch "$HOME/up"; exec sleep 1000',
  ].join("\n");

  test("without --keep leaves nothing, and is followed at once by one on its port", async () => {
    await using place = home(STUBBORN);
    await using first = await place.start();
    await until("the session", () => fs.existsSync(path.join(place.dir, "up")));
    const old = place.all();
    expect(old.length).toBeGreaterThanOrEqual(7);
    await kill9(first);
    await using second = await place.start(["--port", first.url.port]);
    await reached(second, "ready");
    await until("the end of all of the first", () => !place.all().some((pid) => old.includes(pid)));
    // The reaper of the first has done its work, and left the directory of the second alone.
    await using viewer = await watch(second);
    expect(viewer.size.width).toBeGreaterThan(0);
  });

  test("without --keep leaves the directory of one that starts at once, but no desktop yet", async () => {
    await using place = home();
    await using first = await place.start();
    await reached(first, "ready");
    const reaper = place.all().filter((pid) => read(`/proc/${pid}/cmdline`).includes("-reaper"));
    expect(reaper).toHaveLength(1);
    await kill9(first);
    await using second = await place.start(["--port", first.url.port, "--start", "visit"]);
    await until("the end of the reaper", () => !reaper.some((pid) => place.all().includes(pid)));
    const dir = path.join(place.runtime, `tcp-127.0.0.1-${second.url.port}`);
    expect(fs.statSync(path.join(dir, "control.sock")).isSocket()).toBe(true);
  });

  test("without --keep takes nothing from the next one when its Xvnc ends late", async () => {
    await using place = home();
    await using first = await place.start();
    await reached(first, "ready");
    const [old] = place.named("Xtigervnc");
    signalTo([String(old)], "SIGSTOP"); // as on a machine that swaps
    await kill9(first);
    await using second = await place.start(["--port", first.url.port]);
    await reached(second, "ready");
    // The next server, or the reaper, may have ended it already.
    Bun.spawnSync(["kill", "-CONT", String(old)]);
    await until("the end of the first", () => !place.all().includes(String(old)));
    await using viewer = await watch(second);
    expect(viewer.size.width).toBeGreaterThan(0);
  });

  test("with --keep leaves the desktop, which the next one takes back and Ctrl-C ends", async () => {
    await using place = home("exec xterm -T 'a kept window' -e sleep 1000");
    await using first = await place.start(["--keep"]);
    const runtime = path.join(place.runtime, `tcp-127.0.0.1-${first.url.port}`);
    const { display } = await reached(first, "ready");
    const window = async () => /0x\w+ "a kept window"/.exec(await windows(runtime, display))?.[0];
    const shown = await until("the window", window);
    const xvnc = place.named("Xtigervnc");
    await kill9(first);
    await using second = await place.start(["--keep", "--port", first.url.port]);
    expect(await reached(second, "ready")).toMatchObject({ display, cause: null });
    expect(place.named("Xtigervnc")).toEqual(xvnc);
    expect(await window()).toBe(shown);
    await using viewer = await watch(second);
    expect(viewer.size.width).toBeGreaterThan(0);
    second.child.kill("SIGINT");
    expect(await second.code).toBe(0);
    expect(place.all()).toEqual([]);
    expect(fs.existsSync(runtime)).toBe(false);
  });

  test("with --keep is followed by one that sees the end of what it took back", async () => {
    await using place = home("exec sleep 1000");
    await using first = await place.start(["--keep"]);
    await reached(first, "ready");
    await kill9(first);
    await using second = await place.start(["--keep", "--port", first.url.port]);
    await reached(second, "ready");
    const [old] = place.named("Xtigervnc");
    signalTo([String(old)], "SIGKILL");
    await until("another Xvnc", async () => {
      const pids = place.named("Xtigervnc");
      return pids.length === 1 && pids[0] !== old && (await statusOf(second)).state === "ready";
    });
    expect(logged(second).slice(0, 5)).toEqual([
      "starting",
      "ready",
      "stopping",
      "backoff",
      "starting",
    ]);
  });

  test("with --keep, killed while Xvnc is only starting, leaves nothing that stays for ever", async () => {
    await using place = home();
    const bin = path.join(place.dir, "bin");
    fs.mkdirSync(bin);
    const hang = `[ "$1" = -version ] && exec ${Bun.which("Xtigervnc")} -version; exec sleep 1004`;
    fs.writeFileSync(path.join(bin, "Xtigervnc"), `#!/bin/sh\n${hang}\n`, { mode: 0o755 });
    await using first = await place.start(["--keep"], { PATH: `${bin}:${process.env.PATH}` });
    const [hanging] = await until("an Xvnc that hangs", () => {
      const pids = place.named("sleep");
      return pids.length > 0 ? pids : undefined;
    });
    await kill9(first);
    await using second = await place.start(["--keep", "--port", first.url.port]);
    await reached(second, "ready");
    expect(place.all()).not.toContain(hanging);
  });

  /** What a desktop.json can be that nobody should believe; `foreign` is a live process without the mark. */
  const TAMPERED: [string, (kept: Record<string, unknown>, foreign: number) => unknown][] = [
    ["is no JSON", () => undefined],
    ["is JSON of something else", () => ({ hello: "world" })],
    ["has a process with another start time", (kept) => ({ ...kept, vncStart: "1" })],
    ["has a session with another start time", (kept) => ({ ...kept, sessionStart: "1" })],
    ["has a process that is dead", (kept) => ({ ...kept, vncPid: 4_194_303 })],
    [
      "has another's process for its Xvnc",
      (kept, foreign) => ({ ...kept, vncPid: foreign, vncStart: startOf(foreign) }),
    ],
    [
      "has another's process for its session",
      (kept, foreign) => ({ ...kept, sessionPid: foreign, sessionStart: startOf(foreign) }),
    ],
    ["has a display that is none", (kept) => ({ ...kept, display: "evil:0" })],
    ["was begun with another --clipboard", (kept) => ({ ...kept, clipboard: "off" })],
  ];
  const startOf = (pid: number) => {
    const stat = read(`/proc/${pid}/stat`);
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  };

  test.each(TAMPERED)(
    "with --keep whose desktop.json %s: not trusted, all fresh",
    async (_, tamper) => {
      await using place = home();
      await using foreign = Bun.spawn(["sleep", "1005"]);
      await using first = await place.start(["--keep", "--name", "kept"]);
      await reached(first, "ready");
      const old = place.all();
      await kill9(first);
      const file = path.join(place.runtime, "kept/desktop.json");
      const tampered = tamper(JSON.parse(fs.readFileSync(file, "utf8")), foreign.pid);
      fs.writeFileSync(file, tampered ? JSON.stringify(tampered) : "{");
      await using second = await place.start(["--keep", "--name", "kept"]);
      await reached(second, "ready");
      expect(place.named("Xtigervnc")).toHaveLength(1);
      expect(place.all().filter((pid) => old.includes(pid))).toEqual([]);
      expect(foreign.exitCode).toBeNull();
      expect(foreign.signalCode).toBeNull();
      await using viewer = await watch(second);
      expect(viewer.size.width).toBeGreaterThan(0);
    },
  );

  test("with --keep whose desktop has ended since: the next one starts a fresh one", async () => {
    await using place = home();
    await using first = await place.start(["--keep", "--name", "kept"]);
    await reached(first, "ready");
    await kill9(first);
    const old = place.all();
    signalTo(old, "SIGKILL");
    await until("the end of the desktop", () => place.all().length === 0);
    await using second = await place.start(["--keep", "--name", "kept"]);
    await reached(second, "ready");
    await using viewer = await watch(second);
    expect(viewer.size.width).toBeGreaterThan(0);
  });

  test("with --keep made a token that lives on: an old cookie opens the next one too", async () => {
    await using place = home();
    const made = { JUPYTER_DESKTOP_TOKEN: "" };
    await using first = await place.start(["--keep"], made);
    const entered = await fetch(first.url, { redirect: "manual" });
    const cookie = entered.headers.getSetCookie()[0]?.split(";")[0] ?? "";
    expect(entered.status).toBe(303);
    await kill9(first);
    await using second = await place.start(["--keep", "--port", first.url.port], made);
    const at = new URL("desktop/api/status", second.url);
    expect((await fetch(at, { headers: { cookie } })).status).toBe(200);
    expect((await fetch(at)).status).toBe(401);
  });

  test("with --keep that was killed while it wrote its token: the next one makes another", async () => {
    await using place = home();
    const made = { JUPYTER_DESKTOP_TOKEN: "" };
    await using first = await place.start(["--keep", "--name", "kept"], made);
    await kill9(first);
    fs.truncateSync(path.join(place.runtime, "kept/token"));
    await using second = await place.start(["--keep", "--name", "kept"], made);
    expect(second.url.searchParams.get("token")).toMatch(/^[\w-]{32}$/);
  });
});

describe("A desktop that", () => {
  test("loses its Xvnc to kill -9 is back by itself, with another", async () => {
    await using place = home();
    await using server = await place.start();
    await reached(server, "ready");
    await using viewer = await watch(server);
    const [old] = place.named("Xtigervnc");
    signalTo([String(old)], "SIGKILL");
    // 1011 where the end of the socket is seen before that of the process: the page asks for the status then.
    expect([1011, 4411]).toContain((await viewer.closed).code);
    expect(await reached(server, "backoff")).toMatchObject({
      cause: "vnc-exited",
      detail: { signal: "SIGKILL" },
      attempt: 1,
    });
    expect(await reached(server, "ready")).toMatchObject({ cause: null, attempt: 1 });
    expect(place.named("Xtigervnc")).toHaveLength(1);
    expect(place.named("Xtigervnc")).not.toContain(old);
    await using again = await watch(server);
    expect(again.size.width).toBeGreaterThan(0);
  });

  test("loses its session to kill -9 is back by itself, with another", async () => {
    await using place = home();
    await using server = await place.start();
    await reached(server, "ready");
    await using viewer = await watch(server);
    const [old] = await until("the session", () => {
      const pids = place.named("sleep");
      return pids.length > 0 ? pids : undefined;
    });
    signalTo([String(old)], "SIGKILL");
    expect(await viewer.closed).toMatchObject({ code: 4411, reason: "desktop-exited" });
    await reached(server, "backoff");
    await reached(server, "ready");
    await until("another session", () => place.named("sleep").length === 1);
    expect(place.named("sleep")).not.toContain(old);
  });

  test("lost its files to a cleaner of /tmp can still be asked, and restarted", async () => {
    await using place = home();
    await using server = await place.start(["--keep"]);
    await reached(server, "ready");
    fs.rmSync(place.runtime, { recursive: true });
    expect((await server.ask("desktop-websockify/", { headers: HANDSHAKE })).status).toBe(502);
    const pids = place.named("Xtigervnc");
    expect(await post(server, "restart")).toMatchObject({ state: "ready" });
    expect(place.named("Xtigervnc")).not.toEqual(pids);
    await using viewer = await watch(server);
    expect(viewer.size.width).toBeGreaterThan(0);
    fs.rmSync(place.runtime, { recursive: true });
    signalTo(place.named("Xtigervnc"), "SIGKILL");
    expect(await reached(server, "backoff")).toMatchObject({ cause: "vnc-exited" });
    await reached(server, "ready");
  });

  test("is stopped, started and restarted by POST tells each step, once, in order", async () => {
    await using place = home();
    await using server = await place.start(["--start", "visit"]);
    const told: string[] = [];
    const abort = new AbortController();
    const stream = await server.ask("desktop/api/status", {
      headers: { accept: "text/event-stream" },
      signal: abort.signal,
    });
    const reading = (async () => {
      let rest = "";
      for await (const chunk of stream.body ?? []) {
        const parts = (rest + Buffer.from(chunk).toString()).split("\n\n");
        rest = parts.pop() ?? "";
        for (const part of parts) told.push(JSON.parse(part.replace(/^data: /, "")).state);
      }
    })().catch(quiet);
    expect(await post(server, "start")).toMatchObject({ state: "ready" });
    const first = place.named("Xtigervnc");
    expect(await post(server, "start")).toMatchObject({ state: "ready" });
    expect(place.named("Xtigervnc")).toEqual(first);
    expect(await post(server, "restart")).toMatchObject({ state: "ready" });
    expect(place.named("Xtigervnc")).toHaveLength(1);
    expect(place.named("Xtigervnc")).not.toEqual(first);
    expect(await post(server, "stop")).toMatchObject({ state: "ended", cause: "stopped" });
    expect(place.all()).toEqual([String(server.child.pid)]);
    expect(await post(server, "stop")).toMatchObject({ state: "ended", cause: "stopped" });
    const steps = [
      ...["starting", "ready"],
      ...["stopping", "ended", "starting", "ready"],
      ...["stopping", "ended"],
    ];
    await until("the last step", () => told.length > steps.length);
    abort.abort();
    await reading;
    expect(told).toEqual(["idle", ...steps]);
    expect(logged(server)).toEqual(steps);
  });

  test("somebody logged out of starts again no slower than it first did", async () => {
    await using place = home('until [ -e "$HOME/out" ]; do sleep 0.02; done; rm "$HOME/out"');
    await using server = await place.start(["--start", "visit"]);
    const timed = async () => {
      const asked = performance.now();
      expect(await post(server, "start")).toMatchObject({ state: "ready" });
      return performance.now() - asked;
    };
    const first = await timed();
    await using viewer = await watch(server);
    await Bun.sleep(5_100); // sooner an end of xstartup is a failure, and not a log-out
    fs.writeFileSync(path.join(place.dir, "out"), "");
    expect(await viewer.closed).toEqual({ code: 4410, reason: "logged-out" });
    expect(await reached(server, "ended")).toMatchObject({ cause: "logged-out", attempt: 0 });
    expect(place.all()).toEqual([String(server.child.pid)]);
    expect(await timed()).toBeLessThan(2 * first + 500);
  });
});

describe("What takes its time:", () => {
  test.concurrent(
    "an Xvnc that hangs refuses viewers within the dial timeout, and serves them after it",
    async () => {
      await using place = home();
      await using server = await place.start();
      await reached(server, "ready");
      await using before = await watch(server);
      const xvnc = place.named("Xtigervnc");
      signalTo(xvnc, "SIGSTOP");
      const asked = performance.now();
      const answer = await server.ask("desktop-websockify/", { headers: HANDSHAKE });
      expect(performance.now() - asked).toBeWithin(4_500, 8_000);
      expect(answer.status).toBe(502);
      expect(await answer.json()).toMatchObject({ cause: "vnc-unreachable" });
      expect(await statusOf(server)).toMatchObject({
        state: "ready",
        cause: "vnc-unreachable",
        viewers: 1,
      });
      signalTo(xvnc, "SIGCONT");
      await using after = await watch(server);
      expect(after.size.width).toBeGreaterThan(0);
      expect(await statusOf(server)).toMatchObject({ state: "ready", cause: null, viewers: 2 });
      const had = before.inbox.total;
      before.ws.send(Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 1, 0, 1));
      await until("an answer on the old line", () => before.inbox.total > had);
    },
  );

  test.concurrent("a hanging Xvnc is ended by a stop all the same", async () => {
    await using place = home();
    await using server = await place.start();
    await reached(server, "ready");
    signalTo(place.named("Xtigervnc"), "SIGSTOP");
    expect(await post(server, "stop")).toMatchObject({ state: "ended" });
    expect(place.all()).toEqual([String(server.child.pid)]);
  });

  test.concurrent(
    "an xstartup that fails five times is given up, told as such, and tried again when asked",
    async () => {
      await using place = home("exec /bin/false");
      await using server = await place.start();
      const status = await reached(server, "failed", 28_000);
      expect(status).toMatchObject({ cause: "desktop-exited", attempt: 5, nextRetryMs: null });
      expect(status.detail).toMatchObject({ code: 1, xstartup: path.join(place.dir, "xstartup") });
      expect(place.all()).toEqual([String(server.child.pid)]);
      const round = ["starting", "ready", "stopping", "backoff"];
      const rounds = Array.from({ length: 5 }, () => round).flat();
      expect(logged(server)).toEqual([...rounds.slice(0, -1), "failed"]);
      fs.writeFileSync(path.join(place.dir, "xstartup"), "#!/bin/sh\nexec sleep 1000\n");
      expect(await post(server, "restart")).toMatchObject({ state: "ready", attempt: 0 });
    },
  );

  test.concurrent("a viewer is told by 4412 when the desktop is given up", async () => {
    await using place = home('until [ -e "$HOME/go" ]; do sleep 0.02; done; exit 69');
    await using server = await place.start(["--log-level", "debug"]);
    const codes: number[] = [];
    for (let crash = 1; crash <= 5; crash++) {
      await using viewer = await until("a viewer", () => watch(server).catch(() => undefined));
      fs.writeFileSync(path.join(place.dir, "go"), "");
      codes.push((await viewer.closed).code);
      fs.rmSync(path.join(place.dir, "go"));
    }
    expect(codes).toEqual([4411, 4411, 4411, 4411, 4412]);
    await reached(server, "failed");
  });

  test.concurrent(
    "--idle-disconnect pauses who does nothing, and asking for pictures is nothing",
    async () => {
      await using place = home();
      await using server = await place.start(["--idle-disconnect", "1s"]);
      await reached(server, "ready");
      await using idle = await watch(server);
      await using busy = await watch(server);
      let open = true;
      const work = (async () => {
        for (; open; await Bun.sleep(100)) {
          idle.ws.send(UPDATE_REQUEST);
          busy.ws.send(KEY);
        }
      })();
      expect(await idle.closed).toEqual({ code: 4408, reason: "paused: no input" });
      open = false;
      await work;
      expect(busy.ws.readyState).toBe(WebSocket.OPEN);
      expect(await statusOf(server)).toMatchObject({ state: "ready", viewers: 1 });
    },
  );

  test.concurrent(
    "--idle-stop stops a desktop that nobody sees, and not one that somebody does",
    async () => {
      await using place = home();
      await using server = await place.start(["--idle-stop", "1s"]);
      {
        await using viewer = await watch(server);
        await Bun.sleep(2_500);
        expect(viewer.ws.readyState).toBe(WebSocket.OPEN);
        expect(await statusOf(server)).toMatchObject({ state: "ready" });
      }
      expect(await reached(server, "ended")).toMatchObject({ cause: "idle" });
      expect(place.all()).toEqual([String(server.child.pid)]);
      expect(await post(server, "start")).toMatchObject({ state: "ready" });
    },
  );

  test.concurrent("--idle-stop with --idle-exit ends the server as well, with code 0", async () => {
    await using place = home();
    await using server = await place.start(["--idle-stop", "1s", "--idle-exit"]);
    expect(await server.code).toBe(0);
    expect(logged(server)).toEqual(["starting", "ready", "stopping", "ended"]);
    expect(server.said.stderr).toContain("cause=idle");
    expect(place.all()).toEqual([]);
  });

  test.concurrent(
    "a short soak of viewers that come, go, stall and send garbage loses none, and nothing grows",
    async () => {
      const soak = path.join(import.meta.dir, "system/soak.ts");
      const child = Bun.spawn([process.execPath, soak, "--seconds", "20"], {
        stdio: ["ignore", "pipe", "pipe"],
      });
      const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
      expect(stderr).toBe("");
      expect(stdout).toMatch(/^tried \d{3,}, survived \d+, lost 0$/m);
      expect(await child.exited).toBe(0);
    },
    90_000,
  );
});

describe("Viewers", () => {
  test("are told by their close code that the desktop was stopped, and that the server went", async () => {
    await using place = home();
    await using server = await place.start();
    await using first = await watch(server);
    await post(server, "stop");
    expect(await first.closed).toEqual({ code: 4410, reason: "stopped" });
    await post(server, "start");
    await using second = await watch(server);
    server.child.kill("SIGINT");
    expect(await second.closed).toMatchObject({ code: 1001 });
  });

  test("are refused past --max-viewers, with the reason, and taken when one has left", async () => {
    using vnc = recorder();
    await using server = await startServer(["--vnc", vnc.name, "--max-viewers", "2"]);
    await using _stays = await watch(server);
    {
      await using _leaves = await watch(server);
      const refused = await server.ask("desktop-websockify/", { headers: HANDSHAKE });
      expect(refused.status).toBe(503);
      expect(await refused.json()).toEqual({ cause: "too-many-viewers", detail: { limit: 2 } });
      expect(await statusOf(server)).toMatchObject({
        state: "ready",
        cause: "too-many-viewers",
        viewers: 2,
      });
    }
    await until("room", async () => (await statusOf(server)).viewers === 1);
    await using _next = await watch(server);
    expect(await statusOf(server)).toMatchObject({ cause: null, viewers: 2 });
    expect(vnc.said).toHaveLength(3);
  });

  test("set the size when they were the last to do something, or are the last that are left", async () => {
    using vnc = recorder();
    await using server = await startServer(["--vnc", vnc.name]);
    const sizes = () => vnc.said.map(sizesIn);
    await using one = await watch(server);
    one.ws.send(ENCODINGS);
    one.ws.send(sizeMessage(1000, 700));
    await until("the size of the only one", () => String(sizes()) === "1000x700");
    {
      await using two = await watch(server);
      two.ws.send(ENCODINGS);
      two.ws.send(sizeMessage(500, 400));
      two.ws.send(UPDATE_REQUEST);
      await until("its other message", () =>
        vnc.said[1]?.equals(Buffer.concat([ENCODINGS, UPDATE_REQUEST])),
      );
      two.ws.send(KEY);
      await until("its size, at its first key", () => String(sizes()[1]) === "500x400");
      one.ws.send(sizeMessage(1100, 800));
      one.ws.send(UPDATE_REQUEST);
      await until(
        "its other message",
        () => vnc.said[0]?.length === ENCODINGS.length + 24 + UPDATE_REQUEST.length,
      );
      expect(sizes()).toEqual([["1000x700"], ["500x400"]]);
    }
    await until(
      "the size of the one that is left",
      () => String(sizes()[0]) === "1000x700,1100x800",
    );
  });

  test("that set a size without naming that they know sizes do not take Xvnc down", async () => {
    await using place = home();
    await using server = await place.start();
    await reached(server, "ready");
    const [before] = place.named("Xtigervnc");
    await using rude = await watch(server);
    rude.ws.send(sizeMessage(1000, 700));
    rude.ws.send(UPDATE_REQUEST);
    await rude.inbox.read(4); // the picture: what came before it was taken
    expect(place.named("Xtigervnc")).toEqual([before ?? ""]);
    expect(await statusOf(server)).toMatchObject({ state: "ready" });
  });

  test("that ask for 16384x16384 get a real desktop of 33 megapixels at most", async () => {
    await using place = home();
    await using server = await place.start();
    await using greedy = await watch(server);
    greedy.ws.send(ENCODINGS);
    greedy.ws.send(sizeMessage(16_384, 16_384));
    const size = await until("another size", async () => {
      await using other = await watch(server);
      return other.size.width === greedy.size.width ? undefined : other.size;
    });
    expect(size.width * size.height).toBeWithin(30_000_000, 33_177_601);
    expect(Math.max(size.width, size.height)).toBeLessThanOrEqual(8192);
    const [pid] = place.named("Xtigervnc");
    const kib = /^Rss: +(\d+) kB$/m.exec(read(`/proc/${pid}/smaps_rollup`))?.[1];
    expect(Number(kib)).toBeLessThan(600 * 1024);
  });

  test("that come and go, 50 at a time and some of them rudely, leave neither descriptors nor memory", async () => {
    await using place = home();
    await using server = await place.start(["--max-viewers", "100"]);
    await reached(server, "ready");
    const proc = `/proc/${server.child.pid}`;
    const descriptors = () => fs.readdirSync(`${proc}/fd`).length;
    const kib = () => Number(/^Pss_Anon: +(\d+) kB$/m.exec(read(`${proc}/smaps_rollup`))?.[1]);
    const round = async () => {
      const viewers = Array.from({ length: 50 }, async (_, i) => {
        if (i % 5 === 4) return rude(server.url);
        await using viewer = await watch(server);
        viewer.ws.send(i % 2 ? UPDATE_REQUEST : KEY);
        if (i % 5 === 3) viewer.ws.close();
      });
      await Promise.all(viewers);
      await until("the end of all", async () => (await statusOf(server)).viewers === 0);
    };
    for (let warm = 0; warm < 3; warm++) await round();
    const before = { descriptors: descriptors(), kib: kib() };
    for (let count = 0; count < 5; count++) await round();
    await until("as few descriptors as before", () => descriptors() <= before.descriptors);
    expect(kib() - before.kib).toBeLessThan(16 * 1024);
    expect(await statusOf(server)).toMatchObject({ state: "ready", viewers: 0 });
  });

  /** Asks for a WebSocket and resets the connection before there can be an answer. */
  async function rude(url: URL) {
    const closed = Promise.withResolvers<void>();
    const socket = await Bun.connect({
      hostname: url.hostname,
      port: Number(url.port),
      socket: { data: quiet, close: () => closed.resolve(), error: quiet },
    });
    const headers = Object.entries(HANDSHAKE).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.write(`GET /${url.search} HTTP/1.1\r\nHost: ${url.host}\r\n${headers.join("")}\r\n`);
    socket.terminate();
    await closed.promise;
  }

  /** The app in this process, so that its clock can be moved. */
  async function serve(target: Target) {
    const bridge = new Bridge(quiet);
    const supervisor = new Supervisor(attach(target), new LogTail(quiet), quiet);
    await supervisor.start();
    const app = createApp({
      baseUrl: "/",
      title: "",
      policy: { kind: "open", allowOrigins: [] },
      cookieName: "",
      vncPassword: undefined,
      assets: { hash: "", index: "", login: "", message: "", loginStyle: "", files: {} },
      supervisor,
      bridge,
      log: quiet,
    });
    const server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      websocket: Bridge.websocket,
      fetch: (request, self) => app.fetch(request, { server: self }),
    });
    return { bridge, url: server.url, [Symbol.asyncDispose]: () => server.stop(true) };
  }

  test("that answer no ping are dropped, and those that do stay", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using desk = await serve(vnc.target);
    jest.useFakeTimers();
    const answered = Promise.withResolvers<void>();
    const dead = await Bun.connect({
      hostname: "127.0.0.1",
      port: Number(desk.url.port),
      socket: { data: () => answered.resolve(), close: quiet, error: quiet }, // answers nothing, ever
    });
    const headers = Object.entries(HANDSHAKE).map(([name, value]) => `${name}: ${value}\r\n`);
    dead.write(`GET / HTTP/1.1\r\nHost: ${desk.url.host}\r\n${headers.join("")}\r\n`);
    await answered.promise;
    await using alive = await openWebSocket(desk.url);
    expect(desk.bridge.size).toBe(2);
    let seconds = 0;
    for (; seconds < 300 && desk.bridge.size > 1; seconds++) {
      jest.advanceTimersByTime(1_000);
      // Pings and pongs travel over real sockets.
      for (let turns = 0; turns < 20; turns++)
        await new Promise<void>((resolve) => setImmediate(resolve));
    }
    expect(seconds).toBeWithin(60, 90);
    expect(desk.bridge.size).toBe(1);
    expect(alive.ws.readyState).toBe(WebSocket.OPEN);
    dead.terminate();
  });
});

/** Runs a command where these lines of shell have changed the file system. */
const where = (change: string, ...as: string[]) => [
  "unshare",
  ROOT ? "-m" : "-rm",
  "sh",
  "-c",
  `{ ${change}; } && exec "$@"`,
  "sh",
  ...as,
];
/** Makes the socket files of displays 0 to 20, each without a server behind it. */
const STALE = `${process.execPath} -e 'for (let i = 0; i <= 20; i++) Bun.listen({ unix: "/tmp/.X11-unix/X" + i, socket: { data() {} } }); process.kill(process.pid, "SIGKILL")' || :`;

/** Mounts a /tmp with nothing in it but this directory, and the copies of the server for other users. */
const otherTmp = (dir: string, size = "100%") =>
  [
    `mount --bind /tmp /mnt; mount -t tmpfs -o mode=1777,size=${size} tmpfs /tmp`,
    `for d in /mnt/${path.basename(dir)} /mnt/jd-all-*; do [ ! -d $d ] || { mkdir /tmp/\${d#/mnt/}; mount --bind $d /tmp/\${d#/mnt/}; }; done`,
    "umount /mnt",
  ].join("; ");
/** What runs a command in the server's mount namespace. */
const inside = (server: Server) => ["nsenter", "-m", "-r", "-w", "-t", String(server.child.pid)];

describe("A start is not stopped by", () => {
  test("a dead vnc.sock, a dead control socket and litter in the runtime directory", async () => {
    await using place = home();
    const dir = path.join(place.runtime, "old");
    fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
    const code = `for (const name of ["vnc.sock", "control.sock"]) Bun.listen({ unix: "${dir}/" + name, socket: { data() {} } }); process.kill(process.pid, "SIGKILL")`;
    Bun.spawnSync([process.execPath, "-e", code]);
    for (const name of ["vnc.sock", "control.sock"])
      expect(fs.statSync(path.join(dir, name)).isSocket()).toBe(true);
    for (const name of ["mark", "Xauthority", "desktop.json", "probe"])
      fs.writeFileSync(path.join(dir, name), "litter", { mode: 0o400 });
    await using server = await place.start(["--name", "old"]);
    await reached(server, "ready");
    await using viewer = await watch(server);
    expect(viewer.size.width).toBeGreaterThan(0);
    expect(server.said.stderr).not.toContain("no control socket");
  });

  asRoot.each([
    ["its own", []],
    ["another user's", asUser(NOBODY)],
  ])("socket files of dead displays that are %s", async (_, as) => {
    await using place = home();
    const change = `mount -t tmpfs -o mode=1777 tmpfs /tmp/.X11-unix; ${STALE}`;
    const args = ["--xstartup", path.join(place.dir, "xstartup")];
    await using server = await startServer(args, place.env, where(change, ...as));
    const { display } = await reached(server, "ready");
    await using viewer = await watch(server);
    expect(viewer.size.width).toBeGreaterThan(0);
    const there = Bun.spawnSync([...inside(server), "ls", "-ln", "/tmp/.X11-unix"]);
    const owners = new Map(
      [...`${there.stdout}`.matchAll(/^s\S+ +\d+ +(\d+) .* X(\d+)$/gm)].map(([, uid, x]) => [
        x,
        uid,
      ]),
    );
    expect(owners.get(display.slice(1))).toBe(as.length > 0 ? String(NOBODY) : "0");
    const others = [...owners].filter(([x]) => x !== display.slice(1));
    expect(others.every(([, uid]) => uid === "0")).toBe(true);
    if (as.length > 0) expect(others).toHaveLength(21);
  });

  test("displays that are taken as abstract sockets only", async () => {
    const taken = Array.from({ length: 40 }, (_, i) => {
      try {
        const unix = `\0/tmp/.X11-unix/X${i}`;
        return { display: `:${i}`, listener: Bun.listen({ unix, socket: { data: quiet } }) };
      } catch {
        return undefined; // a real display
      }
    }).filter((entry) => entry !== undefined);
    using _held = {
      [Symbol.dispose]: () => {
        for (const { listener } of taken) listener.stop(true);
      },
    };
    await using place = home();
    await using server = await place.start();
    const { display } = await reached(server, "ready");
    expect(taken.map((entry) => entry.display)).not.toContain(display);
    expect(taken.length).toBeGreaterThan(3);
  });

  asRoot.each([
    ["root", []],
    ["an ordinary user", asUser(NOBODY)],
  ])("a /tmp without .X11-unix, for %s", async (_, as) => {
    await using place = home();
    const args = ["--xstartup", path.join(place.dir, "xstartup")];
    await using server = await startServer(args, place.env, where(otherTmp(place.dir), ...as));
    await reached(server, "ready");
    await using viewer = await watch(server);
    expect(viewer.size.width).toBeGreaterThan(0);
  });

  asRoot(
    "a full disk for ever: the page names it, and a try after there is room succeeds",
    async () => {
      await using place = home();
      const full = `${otherTmp(place.dir, "4m")}; head -c 8M /dev/zero >/tmp/fill 2>/dev/null || :`;
      const places = { TMPDIR: "/tmp/own", XDG_RUNTIME_DIR: "/tmp/run" };
      const args = ["--xstartup", path.join(place.dir, "xstartup")];
      await using server = await startServer(args, places, where(full));
      const status = await reached(server, "failed");
      expect(status).toMatchObject({
        cause: "disk-full",
        detail: { path: "/tmp/run/jupyter-desktop" },
      });
      const shown = parseStatus(status);
      const notice = shown && noticeForStatus(shown, createText(["en"]));
      expect(notice?.body).toContain(
        "The disk that holds /tmp/run/jupyter-desktop is full. Free some space on it, then try again.",
      );
      expect(notice?.command).toContain("df -h /tmp/run");
      expect(notice?.action).toMatchObject({ what: "restart" });
      expect(Bun.spawnSync([...inside(server), "rm", "/tmp/fill"]).exitCode).toBe(0);
      expect(await post(server, "restart")).toMatchObject({ state: "ready", cause: null });
    },
  );
});

describe("XFCE, for an ordinary user", () => {
  const processesOf = (uid: number) =>
    fs
      .readdirSync("/proc")
      .filter((pid) =>
        new RegExp(`^State:\\s+[^Z].*^Uid:\\s+${uid}\\s`, "ms").test(
          read(`/proc/${pid}/status`) ?? "",
        ),
      );

  // Of a user without a name nothing is known: that D-Bus starts is libnss-wrapper's work.
  asRoot.each([
    ["with a name", NOBODY],
    ["whose uid has no name", NAMELESS],
  ])("%s is there, and is gone without a trace", async (_, uid) => {
    await using place = home();
    const env = { ...place.env, HOME: place.dir };
    await using server = await startServer([], env, asUser(uid));
    await reached(server, "ready");
    const panel = () =>
      processesOf(uid).some((pid) => read(`/proc/${pid}/comm`) === "xfce4-panel\n");
    await until("XFCE's panel", panel);
    expect(await post(server, "stop")).toMatchObject({ state: "ended" });
    // The kernel takes a moment to end a process whose memory is gone already.
    const own = [String(server.child.pid)];
    await until("the end of the others", () => Bun.deepEquals(processesOf(uid), own));
  });
});

describe("Another user of this host", () => {
  asRoot.each([
    [0, NOBODY],
    [NOBODY, STRANGER],
  ])("opens nothing of user %d's", async (owner, stranger) => {
    await using place = home();
    const args = ["--xstartup", path.join(place.dir, "xstartup")];
    const as = owner === 0 ? [] : asUser(owner);
    await using server = await startServer(args, place.env, as);
    const { display } = await reached(server, "ready");
    const name = `tcp-127.0.0.1-${server.url.port}`;
    const runtime = path.join(place.dir, `jupyter-desktop-${owner}`);
    const may = async (uid: number, command: string[], env: Record<string, string> = {}) => {
      const child = Bun.spawn([...(uid === 0 ? [] : asUser(uid)), ...command], {
        env: { PATH: process.env.PATH, ...env },
        stdio: ["ignore", "pipe", "pipe"],
      });
      const said = await Promise.all([child.stdout.text(), child.stderr.text()]);
      return { code: await child.exited, said: said.join("") };
    };
    const connect = (file: string) => [
      process.execPath,
      "-e",
      `await Bun.connect({ unix: ${JSON.stringify(file)}, socket: { data() {} } }); console.log("open"); process.exit()`,
    ];
    const xauthority = path.join(runtime, name, "Xauthority");
    const ways: [string[], Record<string, string>?][] = [
      [["ls", runtime]],
      [["cat", xauthority]],
      [connect(path.join(runtime, name, "vnc.sock"))],
      [connect(path.join(runtime, name, "control.sock"))],
      [["xdpyinfo"], { DISPLAY: display, XAUTHORITY: xauthority }],
    ];
    for (const [command, env] of ways) {
      expect(await may(owner, command, env)).toMatchObject({ code: 0 });
      expect((await may(stranger, command, env)).code).not.toBe(0);
    }
    const refused = await may(stranger, ["xdpyinfo"], { DISPLAY: display });
    expect(refused.said).toMatch(/Authorization required|No protocol specified/);
    for (const to of ["", "desktop/api/status", "desktop/static/dist/viewer.js"])
      expect((await fetch(new URL(to, server.url.origin))).status).toBe(401);
    const upgrade = await fetch(server.url.origin, { headers: HANDSHAKE });
    expect(upgrade.status).toBe(401);
    // The commands of the stranger find nothing either, and end nothing.
    for (const command of ["status", "stop"]) {
      await using asked = spawnServer([command], place.env, asUser(stranger));
      expect(await asked.code).toBe(1);
    }
    expect(await statusOf(server)).toMatchObject({ state: "ready" });
  });
});

describe("The commands status and stop", () => {
  async function command(place: ReturnType<typeof home>, ...args: string[]) {
    await using asked = spawnServer(args, place.env);
    const code = await asked.code;
    return { code, ...asked.said };
  }
  const NONE = {
    code: 1,
    stdout: "No server of this user, or of this name, runs here.\n",
    stderr: "",
  };

  test("say that there is no server, with code 1", async () => {
    await using place = home();
    expect(await command(place, "status")).toEqual(NONE);
    expect(await command(place, "stop")).toEqual(NONE);
  });

  test("find the only server, and stop its desktop, not itself", async () => {
    await using place = home();
    await using server = await place.start();
    const { display } = await reached(server, "ready");
    const name = `tcp-127.0.0.1-${server.url.port}`;
    expect(await command(place, "status")).toEqual({
      code: 0,
      stdout: `${name}: ready, 0 viewers, display ${display}\n`,
      stderr: "",
    });
    expect(await command(place, "stop")).toEqual({
      code: 0,
      stdout: `${name}: ended, 0 viewers, cause stopped\n`,
      stderr: "",
    });
    expect(place.all()).toEqual([String(server.child.pid)]);
    expect(await statusOf(server)).toMatchObject({ state: "ended", cause: "stopped" });
  });

  test("ask for the name where there are several servers, and leave the others alone", async () => {
    await using place = home();
    await using one = await place.start(["--name", "one"]);
    await using two = await place.start(["--name", "two"]);
    await Promise.all([reached(one, "ready"), reached(two, "ready")]);
    const both = await command(place, "status");
    expect(both.stdout).toMatch(/^one: ready, .*\ntwo: ready, .*\n$/);
    const unclear = await command(place, "stop");
    expect(unclear.code).toBe(1);
    expect(unclear.stdout).toContain("--name one or two");
    expect(await command(place, "stop", "--name", "two")).toMatchObject({ code: 0 });
    expect(await statusOf(one)).toMatchObject({ state: "ready" });
    expect(await statusOf(two)).toMatchObject({ state: "ended" });
    expect(await command(place, "stop", "--name", "three")).toEqual(NONE);
  });

  test("tell of a desktop that outlived its server, and end it", async () => {
    await using place = home();
    await using server = await place.start(["--keep", "--name", "kept"]);
    await reached(server, "ready");
    await kill9(server);
    expect(await command(place, "status")).toEqual({
      code: 0,
      stdout: "kept: no server, but the desktop that it kept\n",
      stderr: "",
    });
    expect(place.named("Xtigervnc")).toHaveLength(1);
    expect(await command(place, "stop")).toEqual({ code: 0, stdout: "kept: ended\n", stderr: "" });
    expect(place.all()).toEqual([]);
    expect(await command(place, "status")).toEqual(NONE);
  });

  test("tell of no desktop that is dead, though its file says that it was kept", async () => {
    await using place = home();
    await using server = await place.start(["--keep", "--name", "kept"]);
    await reached(server, "ready");
    await kill9(server);
    signalTo(place.all(), "SIGKILL");
    await until("the end of the desktop", () => place.all().length === 0);
    expect(await command(place, "status")).toEqual(NONE);
  });

  test("a second server of a name is refused while the first lives, and takes nothing from it", async () => {
    await using place = home();
    await using first = await place.start(["--keep", "--name", "kept"]);
    await reached(first, "ready");
    const pids = place.named("Xtigervnc");
    {
      await using second = spawnServer(["--port", "0", "--keep", "--name", "kept"], place.env);
      expect(await second.code).toBe(1);
      expect(second.said.stderr).toContain("another server");
    }
    expect(place.named("Xtigervnc")).toEqual(pids);
    await using viewer = await watch(first);
    expect(viewer.size.width).toBeGreaterThan(0);
  });
});
