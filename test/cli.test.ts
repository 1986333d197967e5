/** The program as a person starts it: its words, its exit codes, its signals, and what it does with bad input. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import packageJson from "../package.json" with { type: "json" };
import {
  BEARER,
  asUser,
  fakeVnc,
  HANDSHAKE,
  openWebSocket,
  processesWith,
  spawnServer,
  startServer,
  tempDir,
  TOKEN,
  until,
} from "./_helpers.ts";
import type { VncStatus } from "../server.ts";

const UID = process.getuid?.();
const ROOT = UID === 0;
setDefaultTimeout(30_000);
const quiet = () => {};
const PAGE = { accept: "text/html" };
const NO_DESKTOP = ["--vnc", "unix:/nonexistent/vnc.sock"];
const healthy = async (server: { url: URL }) =>
  expect(await (await fetch(new URL("healthz", server.url))).text()).toBe("ok\n");
/** Runs a command where these lines of shell have changed the file system. */
const where = (change: string, ...as: string[]) => [
  "unshare",
  ROOT ? "-m" : "-rm",
  "sh",
  "-c",
  `${change} && exec "$@"`,
  "sh",
  ...as,
];
const NO_VNC = "mount --bind /dev/null /usr/bin/Xtigervnc";

/** Runs to the end. */
async function run(...given: Parameters<typeof spawnServer>) {
  await using server = spawnServer(...given);
  const code = await server.code;
  return { code, ...server.said };
}

/** A session of one line, in a file of its own. */
function session(body: string) {
  const dir = tempDir();
  const file = path.join(dir.path, "xstartup");
  fs.writeFileSync(file, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  return { file, dir: dir.path, [Symbol.dispose]: dir[Symbol.dispose] };
}

describe("jupyter-desktop answers", () => {
  test("--help on stdout, whatever else is wrong on the line", async () => {
    const { code, stdout, stderr } = await run(["--port", "x", "--help"]);
    expect(stdout).toStartWith("Usage: jupyter-desktop");
    expect(stdout).toContain("--vnc-password-file");
    expect(stderr).toBe("");
    expect(code).toBe(0);
  });

  test("--version with the version of package.json", async () => {
    expect(await run(["--version"])).toEqual({
      code: 0,
      stdout: `${packageJson.version}\n`,
      stderr: "",
    });
  });

  test("a wrong line with all that is wrong on it, and code 2", async () => {
    const { code, stdout, stderr } = await run(["--port", "99999", "--geometry", "big", "--what"]);
    for (const flag of ["--port", "--geometry", "--what", "JUPYTER_DESKTOP_PORT"])
      expect(stderr).toContain(flag);
    expect(stdout).toBe("");
    expect(code).toBe(2);
  });

  test("--auth none on TCP with the flag that it takes besides", async () => {
    const { code, stderr } = await run(["--auth", "none"]);
    expect(stderr).toContain("--allow-no-auth");
    expect(code).toBe(2);
  });

  test("setup with nothing when nothing is missing", async () => {
    expect(await run(["setup"])).toEqual({ code: 0, stdout: "", stderr: "" });
  });

  test.skipIf(!ROOT)("setup of a user who is not root with the line to type", async () => {
    const { code, stdout, stderr } = await run(["setup"], {}, where(NO_VNC, ...asUser(65_534)));
    expect(stderr).toMatch(/sudo apt-get install .*tigervnc-standalone-server/);
    expect(stdout).toBe("");
    expect(code).toBe(1);
  });

  test("doctor with a line a check, and 0 when a desktop can start", async () => {
    const { code, stdout } = await run(["doctor"]);
    expect(stdout).toMatch(/^ok {7}VNC server: TigerVNC 1\..*\(\/usr\/bin\/Xtigervnc\)$/m);
    expect(stdout).not.toContain("MISSING");
    expect(code).toBe(0);
  });

  test("doctor with what mends it, and 1 when there is no VNC server", async () => {
    const { code, stdout } = await run(["doctor"], {}, where(NO_VNC));
    expect(stdout).toMatch(/^MISSING {2}VNC server: none\n +to mend it: .*apt-get install /m);
    expect(code).toBe(1);
  });
});

describe("jupyter-desktop listens", () => {
  test("on the port that its line says, with the token that it made in the address", async () => {
    await using server = await startServer(NO_DESKTOP, { JUPYTER_DESKTOP_TOKEN: "" });
    const [line = ""] = server.said.stdout.split("\n");
    expect(line).toMatch(/^Desktop: http:\/\/127\.0\.0\.1:\d+\/\?token=[\w-]{32}$/);
    expect((await fetch(line.slice(9), { redirect: "manual" })).status).toBe(303);
  });

  test("and opens it with --open by a private file, with no token on a command line", async () => {
    using bin = tempDir();
    const seen = path.join(bin.path, "seen");
    const opener = `#!/bin/sh\nstat -c %a "$1" >${seen}.new; cat "$1" >>${seen}.new; mv ${seen}.new ${seen}\n`;
    fs.writeFileSync(path.join(bin.path, "xdg-open"), opener, { mode: 0o755 });
    const env = { PATH: `${bin.path}:${process.env.PATH}`, DISPLAY: ":none" };
    await using server = await startServer([...NO_DESKTOP, "--open"], env);
    const said = await until(
      "what was opened",
      () => fs.existsSync(seen) && fs.readFileSync(seen, "utf8"),
    );
    expect(said).toStartWith("600\n");
    expect(said).toContain(`;url=http://127.0.0.1:${server.url.port}/?token=${TOKEN}">`);
  });

  test("without showing a token that was given", async () => {
    await using server = await startServer(NO_DESKTOP);
    expect(server.said.stdout.split("\n")[0]).toBe(`Desktop: http://127.0.0.1:${server.url.port}/`);
    expect(Object.values(server.said).join("")).not.toContain(TOKEN);
  });

  test("not on a port that is taken, and says so in one sentence", async () => {
    await using first = await startServer(NO_DESKTOP);
    const { code, stdout, stderr } = await run([...NO_DESKTOP, "--port", first.url.port]);
    expect(stderr).toMatch(/^jupyter-desktop: another program listens on 127\.0\.0\.1:\d+: .*\n$/);
    expect(stdout).toBe("");
    expect(code).toBe(1);
    await healthy(first);
  });

  test("under a base URL that was given without slashes", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using server = await startServer(["--base-url", "my/desk", "--vnc", vnc.name]);
    expect(server.url.pathname).toBe("/my/desk/");
    await healthy(server);
    expect((await server.ask("", { headers: PAGE })).status).toBe(200);
    expect((await server.ask("/", { headers: PAGE })).status).toBe(404);
    const socket = new URL("desktop-websockify/", server.url);
    await using viewer = await openWebSocket(socket, { headers: BEARER });
    expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
  });

  test("on a unix socket of mode 0600, without a token, and removes it at the end", async () => {
    using dir = tempDir();
    const unix = path.join(dir.path, "http.sock");
    {
      await using server = await startServer([...NO_DESKTOP, "--unix-socket", unix]);
      expect(server.said.stdout).toBe(`Desktop: unix:${unix}\n`);
      expect(fs.statSync(unix).mode & 0o777).toBe(0o600);
      const answer = await fetch("http://localhost/desktop/api/status", { unix });
      expect(answer.status).toBe(200);
    }
    expect(fs.existsSync(unix)).toBe(false);
  });

  test("on a unix socket that a killed server left behind, but not on a live one", async () => {
    using dir = tempDir();
    const unix = path.join(dir.path, "http.sock");
    const args = [...NO_DESKTOP, "--unix-socket", unix];
    {
      await using killed = await startServer(args);
      killed.child.kill("SIGKILL");
      await killed.code;
      expect(fs.statSync(unix).isSocket()).toBe(true);
    }
    await using server = await startServer(args);
    const second = await run(args);
    expect(second.stderr).toContain(`another server listens on ${unix}`);
    expect(second.code).toBe(1);
    expect((await fetch("http://localhost/healthz", { unix })).status).toBe(200);
    expect(server.child.exitCode).toBeNull();
  });

  test("never in the place of a file that is no socket", async () => {
    using dir = tempDir();
    const file = path.join(dir.path, "precious");
    fs.writeFileSync(file, "data");
    const { code, stderr } = await run([...NO_DESKTOP, "--unix-socket", file]);
    expect(stderr).toContain(`${file} is there and is no socket`);
    expect(code).toBe(1);
    expect(fs.readFileSync(file, "utf8")).toBe("data");
  });

  /** What the status says once the desktop could not be started. */
  async function failure(server: Awaited<ReturnType<typeof startServer>>): Promise<VncStatus> {
    return until("the failure", async () => {
      const status = (await (await server.ask("desktop/api/status")).json()) as VncStatus;
      return status.state === "failed" ? status : undefined;
    });
  }

  test.skipIf(!ROOT)("although no runtime directory can be written, and says so", async () => {
    const readOnly = where("mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp");
    await using server = await startServer([], { TMPDIR: "" }, readOnly);
    const { cause, detail } = await failure(server);
    expect(cause).toBe("unwritable");
    expect(detail.path).toStartWith("/tmp/jupyter-desktop-");
    expect(detail.error).toContain("EROFS");
  });

  test.skipIf(!ROOT).each([
    ["is open to others", 0o777, true],
    ["is another's", 0o700, false],
  ])("although its runtime directory %s, and puts nothing there", async (_, mode, own) => {
    const uid = 1_000_000 + process.pid; // nobody's, so that its directory in /tmp is ours to spoil
    const place = `/tmp/jupyter-desktop-${uid}`;
    await using _place = {
      [Symbol.asyncDispose]: () => fs.promises.rm(place, { recursive: true }),
    };
    fs.mkdirSync(place);
    fs.chmodSync(place, mode);
    if (own) fs.chownSync(place, uid, uid);
    await using server = await startServer([], { TMPDIR: "" }, asUser(uid));
    const { cause, detail } = await failure(server);
    expect({ cause, path: detail.path }).toEqual({ cause: "unwritable", path: place });
    expect(fs.readdirSync(place)).toEqual([]);
  });
});

describe("jupyter-desktop stops", () => {
  test.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
    "at %s with code 0, and leaves no process and no file",
    async (signal) => {
      using own = session(`setsid sleep 1000 & touch "${"$"}{0%/*}/up"; exec sleep 1000`);
      await using server = await startServer(["--xstartup", own.file]);
      await until("the session", () => fs.existsSync(path.join(own.dir, "up")));
      await using viewer = await openWebSocket(server.url);
      expect(processesWith(server.dir).length).toBeGreaterThan(3);
      server.child.kill(signal);
      expect(await viewer.closed).toEqual({ code: 1001, reason: "the server goes down" });
      expect(await server.code).toBe(0);
      expect(processesWith(server.dir)).toEqual([]);
      expect(fs.readdirSync(path.join(server.dir, `jupyter-desktop-${UID}`))).toEqual([]);
    },
  );

  test("soon, even while the VNC server is only starting", async () => {
    await using server = await startServer(["--vnc-command", "exec sleep 1000"]);
    await until("server, reaper and command", () => processesWith(server.dir).length === 3);
    server.child.kill();
    await until("its end", () => server.child.exitCode !== null, 8_000);
    expect(server.child.exitCode).toBe(0);
  });

  test("its desktop when asked, and tells the viewers that it ended", async () => {
    using own = session("exec sleep 1000");
    await using server = await startServer(["--xstartup", own.file]);
    await using viewer = await openWebSocket(server.url);
    expect((await server.ask("desktop/api/stop", { method: "POST" })).status).toBe(200);
    expect((await viewer.closed).code).toBe(4410);
    expect(processesWith(server.dir)).toEqual([String(server.child.pid)]);
    await healthy(server);
  });

  test("no viewer's hope when the desktop crashes: it is told that another try comes", async () => {
    using own = session(`until [ -e "${"$"}{0%/*}/go" ]; do sleep 0.05; done; exit 1`);
    await using server = await startServer(["--xstartup", own.file]);
    await using viewer = await openWebSocket(server.url);
    fs.writeFileSync(path.join(own.dir, "go"), "");
    expect((await viewer.closed).code).toBe(4411);
  });
});

describe("jupyter-desktop guards", () => {
  test("its token: it is in no line of the log, at debug either", async () => {
    await using server = await startServer([...NO_DESKTOP, "--log-level", "debug"]);
    await fetch(server.url, { redirect: "manual" });
    await server.ask(`nothing/${TOKEN}?token=${TOKEN}`);
    await fetch(new URL(`desktop/${TOKEN}`, server.url), { headers: PAGE });
    await fetch(server.url.href.replace("token=", "token=not-"), { headers: HANDSHAKE });
    await fetch(server.url, { headers: { ...HANDSHAKE, origin: `http://${TOKEN}.example` } });
    await fetch(server.url, { headers: HANDSHAKE });
    await until("the last line", () => server.said.stderr.includes("cause=vnc-unreachable"));
    expect(server.said.stderr).not.toContain(TOKEN);
    expect(server.said.stdout).not.toContain(TOKEN);
  });

  test("a token that it made itself, which is long and a new one at each start", async () => {
    const made = async () => {
      await using server = await startServer(NO_DESKTOP, { JUPYTER_DESKTOP_TOKEN: "" });
      const token = server.url.searchParams.get("token") ?? "";
      expect((await fetch(server.url, { redirect: "manual" })).status).toBe(303);
      expect(server.said.stderr).not.toContain(token);
      return token;
    };
    const [first, second] = [await made(), await made()];
    expect(first).toMatch(/^[\w-]{32}$/);
    expect(second).not.toBe(first);
  });

  test("against guesses, slower and slower, while the right token is served at once", async () => {
    await using server = await startServer(NO_DESKTOP);
    const guess = async () => {
      const asked = performance.now();
      const answer = await fetch(new URL("?token=a-guess-of-mine", server.url));
      expect(answer.status).toBe(403);
      expect(await answer.text()).toMatch(/^[^\n]+\n$/);
      return performance.now() - asked;
    };
    const times = [await guess(), await guess(), await guess(), await guess()];
    // A timer is late on a busy machine, but never early.
    for (const [i, ms] of times.entries()) expect(ms).toBeGreaterThan(99 * 2 ** i);
    let answered = false;
    const waiting = guess().then(() => {
      answered = true;
    });
    expect((await server.ask("desktop/api/status")).status).toBe(200);
    expect(answered).toBe(false);
    await waiting;
  });

  test("the desktop of --start visit: a stranger starts nothing, the first page does", async () => {
    using own = session("exec sleep 1000");
    await using server = await startServer(["--start", "visit", "--xstartup", own.file]);
    const at = (to: string) => new URL(to, server.url);
    expect((await fetch(at("/"), { headers: PAGE })).status).toBe(401);
    expect((await fetch(at("/?token=a-guess-of-mine"), { headers: PAGE })).status).toBe(403);
    expect((await fetch(at("/desktop-websockify/"), { headers: HANDSHAKE })).status).toBe(401);
    expect((await fetch(at("/desktop/api/start"), { method: "POST" })).status).toBe(401);
    const foreign = { origin: "http://evil.example" };
    const start = { method: "POST", headers: { ...BEARER, ...foreign } };
    expect((await fetch(at("/desktop/api/start"), start)).status).toBe(403);
    const foreignSocket = { headers: { ...HANDSHAKE, ...foreign } };
    expect((await server.ask("desktop-websockify/", foreignSocket)).status).toBe(403);
    expect(await (await server.ask("desktop/api/status")).json()).toMatchObject({ state: "idle" });
    expect(processesWith(server.dir)).toEqual([String(server.child.pid)]);
    expect((await server.ask("", { headers: PAGE })).status).toBe(200);
    await using viewer = await openWebSocket(server.url);
    expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
  });

  test("nothing but starts it for a WebSocket that has the token too", async () => {
    using own = session("exec sleep 1000");
    await using server = await startServer(["--start", "visit", "--xstartup", own.file]);
    await using viewer = await openWebSocket(server.url);
    expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
  });

  test("the WebSocket against pages of other sites, before it asks VNC for anything", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    const args = ["--vnc", vnc.name, "--allow-origin", "https://lab.example"];
    await using server = await startServer(args);
    const evil = { headers: { ...HANDSHAKE, origin: "http://evil.example" } };
    expect((await server.ask("desktop-websockify/", evil)).status).toBe(403);
    const evilSocket = openWebSocket(server.url, { headers: { origin: evil.headers.origin } });
    expect(await evilSocket.then(() => "open", String)).toContain("refused");
    expect(vnc.peers).toHaveLength(0);
    for (const origin of [server.url.origin, "https://lab.example"]) {
      await using viewer = await openWebSocket(server.url, { headers: { origin } });
      expect((await viewer.inbox.read(12)).toString()).toBe("RFB 003.008\n");
    }
  });

  test("nothing with --auth none --allow-no-auth, and warns of it", async () => {
    await using server = await startServer([...NO_DESKTOP, "--auth", "none", "--allow-no-auth"]);
    expect(server.url.search).toBe("");
    expect((await fetch(server.url)).status).toBe(200);
    expect(server.said.stderr).toContain(" warn no authentication");
  });
});

describe("jupyter-desktop goes on after", () => {
  test.each([
    ["bytes that are no HTTP", "\x16\x03\x01\x02\0\x01\0\xff\xfe\r\n\r\n"],
    ["a greeting of VNC", "RFB 003.008\n"],
    ["half a request", "GET / HTTP/1.1\r\nHost: x\r\nUpgr"],
    ["frames where a handshake belongs", "\x82\x85\0\0\0\0hello"],
  ])("%s", async (_, bytes) => {
    await using server = await startServer(NO_DESKTOP);
    const closed = Promise.withResolvers<void>();
    const socket = await Bun.connect({
      hostname: "127.0.0.1",
      port: Number(server.url.port),
      socket: { data: quiet, close: () => closed.resolve(), end: () => closed.resolve() },
    });
    socket.write(Buffer.from(bytes, "latin1"));
    socket.end();
    await closed.promise;
    await healthy(server);
  });

  test("a handshake without a key: 400, and VNC is let go", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using server = await startServer(["--vnc", vnc.name]);
    const headers = { connection: "Upgrade", upgrade: "websocket" };
    const answer = await server.ask("desktop-websockify/", { headers });
    expect(answer.status).toBe(400);
    await until("the end of the VNC connection", () => vnc.peers.every((peer) => peer.over));
    await healthy(server);
  });

  test.each([
    ["is not VNC", "HTTP/1.1 400 Bad Request\r\n\r\n", "not-vnc"],
    ["never answers", "", "vnc-unreachable"],
  ])("a target that %s", async (_, said, cause) => {
    using vnc = fakeVnc((peer) => said && peer.socket?.write(said));
    await using server = await startServer(["--vnc", vnc.name]);
    const asked = server.ask("desktop-websockify/", { headers: HANDSHAKE });
    await until("the dial", () => vnc.peers.length > 0);
    await healthy(server);
    const answer = await asked;
    expect(answer.status).toBe(502);
    expect(await answer.json()).toMatchObject({ cause, detail: { target: vnc.name } });
    await healthy(server);
  });

  test("a target that is dead", async () => {
    const dead = fakeVnc(quiet, "tcp");
    dead[Symbol.dispose]();
    await using server = await startServer(["--vnc", dead.name]);
    const answer = await server.ask("desktop-websockify/", { headers: HANDSHAKE });
    expect(answer.status).toBe(502);
    expect(await answer.json()).toMatchObject({ cause: "vnc-unreachable" });
    await healthy(server);
  });
});
