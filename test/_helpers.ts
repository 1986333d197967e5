/** What the test files share. Each thing that is opened here is torn down by `await using`. */
import * as fs from "node:fs";
import * as path from "node:path";
import type { Socket } from "bun";
import type { Target } from "../server.ts";

export const SERVER = path.join(import.meta.dir, "../server.ts");
export const TOKEN = "a-token-of-the-tests";
export const BEARER = { authorization: `Bearer ${TOKEN}` };

/** The headers of a WebSocket handshake, to see by fetch how it is refused. */
export const HANDSHAKE = {
  connection: "Upgrade",
  upgrade: "websocket",
  "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
  "sec-websocket-version": "13",
};

/** Waits until the condition holds, and returns what it returned. */
export async function until<T>(what: string, condition: () => T | Promise<T>, ms = 15_000) {
  for (const deadline = Date.now() + ms; Date.now() < deadline; await Bun.sleep(10)) {
    const result = await condition();
    if (result) return result;
  }
  throw new Error(`not within ${ms} ms: ${what}`);
}

/** An empty directory that every user may write to, as /tmp is. */
export function tempDir() {
  const dir = fs.mkdtempSync("/tmp/jd-");
  fs.chmodSync(dir, 0o1777);
  return { path: dir, [Symbol.dispose]: () => fs.rmSync(dir, { recursive: true, force: true }) };
}

/** The processes that live and have this text in their environment or on their command line. */
export const processesWith = (text: string) =>
  fs.readdirSync("/proc").filter((pid) => {
    try {
      const files = /^\d+$/.test(pid) ? ["environ", "cmdline"] : [];
      return files.some((name) => fs.readFileSync(`/proc/${pid}/${name}`, "latin1").includes(text));
    } catch {
      return false; // ended meanwhile
    }
  });

/** Bytes as they arrive, to be read in order; with a socket, the VNC server's end of a connection. */
export class Inbox {
  readonly socket: Socket<Inbox> | undefined;
  #chunks: Uint8Array[] = [];
  #left = 0;
  total = 0;
  over = false;
  changed = Promise.withResolvers<void>();

  constructor(socket?: Socket<Inbox>) {
    this.socket = socket;
  }

  /** Takes a chunk; without one, notes that there will be no more. */
  push(chunk?: Uint8Array): void {
    if (chunk) this.#chunks.push(Uint8Array.from(chunk));
    else this.over = true;
    this.total += chunk?.length ?? 0;
    this.#left += chunk?.length ?? 0;
    this.wake();
  }

  wake(): void {
    this.changed.resolve();
    this.changed = Promise.withResolvers();
  }

  async read(count: number): Promise<Buffer> {
    while (this.#left < count && !this.over) await this.changed.promise;
    if (this.#left < count) throw new Error(`closed ${count - this.#left} bytes too early`);
    const all = Buffer.concat(this.#chunks);
    this.#chunks = [all.subarray(count)];
    this.#left -= count;
    return all.subarray(0, count);
  }
}

/** A VNC server that does what the script says with each connection. */
export function fakeVnc(script: (peer: Inbox) => unknown, kind: "unix" | "tcp" = "unix") {
  const dir = tempDir();
  const unix = path.join(dir.path, "vnc.sock");
  const peers: Inbox[] = [];
  const socket: Bun.SocketHandler<Inbox> = {
    open(opened) {
      opened.data = new Inbox(opened);
      peers.push(opened.data);
      void (async () => script(opened.data))().catch(() => opened.terminate());
    },
    data: ({ data }, bytes) => data.push(bytes),
    drain: ({ data }) => data.wake(),
    close: ({ data }) => data.push(),
  };
  const tcp = kind === "tcp" && Bun.listen<Inbox>({ hostname: "127.0.0.1", port: 0, socket });
  const listener = tcp || Bun.listen<Inbox>({ unix, socket });
  const target: Target = tcp
    ? { kind: "tcp", host: "127.0.0.1", port: tcp.port }
    : { kind: "unix", path: unix };
  const stop = () => {
    listener.stop(true);
    dir[Symbol.dispose]();
  };
  const name = tcp ? `tcp:127.0.0.1:${tcp.port}` : `unix:${unix}`;
  return { target, name, peers, [Symbol.dispose]: stop };
}

/** A WebSocket that is open; rejects when the server refuses it. */
export async function openWebSocket(url: string | URL, options: Bun.WebSocketOptions = {}) {
  const ws = new WebSocket(String(url).replace(/^http/, "ws"), options);
  ws.binaryType = "arraybuffer";
  const inbox = new Inbox();
  const opened = Promise.withResolvers<void>();
  const closed = Promise.withResolvers<{ code: number; reason: string }>();
  ws.onopen = () => opened.resolve();
  ws.onmessage = ({ data }) => inbox.push(new Uint8Array(data));
  ws.onclose = ({ code, reason }) => {
    inbox.push();
    closed.resolve({ code, reason });
    opened.reject(new Error(`WebSocket refused: ${code} ${reason}`));
  };
  await opened.promise;
  const leave = async () => {
    ws.terminate();
    await closed.promise;
  };
  return { ws, inbox, closed: closed.promise, [Symbol.asyncDispose]: leave };
}

/** What runs a command as this user, with or without a passwd entry; only root can. */
export const asUser = (uid: number) =>
  `setpriv --reuid=${uid} --regid=${uid} --clear-groups --`.split(" ");

/**
 * Bun and the server where every user can read them, also with another /tmp: the checkout, or npx's Bun, may be in a
 * closed home or in /tmp.
 */
const forAll = (() => {
  let command: [string, string] | undefined;
  return () => {
    if (command) return command;
    const dir = fs.mkdtempSync("/var/tmp/jd-all-");
    process.on("exit", () => fs.rmSync(dir, { recursive: true, force: true }));
    command = [path.join(dir, "bun"), path.join(dir, "server.js")];
    fs.copyFileSync(process.execPath, command[0]);
    const build = [process.execPath, "build", SERVER, "--target", "bun", "--outfile", command[1]];
    const { success, stderr } = Bun.spawnSync(build);
    if (!success) throw new Error(stderr.toString());
    fs.chmodSync(dir, 0o755);
    return command;
  };
})();

/** `bun server.ts` with these arguments in an environment of its own; `as` is what runs it. */
export function spawnServer(args: string[], env: Record<string, string> = {}, as: string[] = []) {
  const tmp = tempDir();
  const own = { PATH: process.env.PATH, HOME: tmp.path, TMPDIR: tmp.path };
  const isOther = as.length > 0;
  const command = isOther ? forAll() : [process.execPath, SERVER];
  const child = Bun.spawn([...as, ...command, ...args], {
    cwd: isOther ? "/" : process.cwd(),
    env: { ...own, JUPYTER_DESKTOP_TOKEN: TOKEN, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = { stdout: "", stderr: "" };
  const follow = async (name: "stdout" | "stderr") => {
    for await (const chunk of child[name]) said[name] += Buffer.from(chunk).toString();
  };
  const ended = Promise.all([child.exited, follow("stdout"), follow("stderr")]);
  const stop = async () => {
    child.kill();
    const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
    await ended;
    clearTimeout(timer);
    await until("the end of all that it started", () => processesWith(tmp.path).length === 0);
    tmp[Symbol.dispose]();
  };
  return {
    child,
    said,
    dir: tmp.path,
    code: ended.then(([code]) => code),
    [Symbol.asyncDispose]: stop,
  };
}

/** The same once it listens on `url`; `ask` sends the token along. */
export async function startServer(args: string[], ...more: [Record<string, string>?, string[]?]) {
  const port = args.includes("--unix-socket") ? [] : ["--port", "0"];
  const server = spawnServer([...port, ...args], ...more);
  const line = await until("the line with the address", () => {
    if (server.child.exitCode !== null) throw new Error(server.said.stderr);
    return /^Desktop: (.*)\n/m.exec(server.said.stdout)?.[1];
  });
  const url = new URL(line);
  // The line does not show a token that was given.
  const given = more[0]?.JUPYTER_DESKTOP_TOKEN ?? TOKEN;
  if (given && !args.includes("none")) url.searchParams.set("token", given);
  const ask = (to: string, init: BunFetchRequestInit = {}) =>
    fetch(new URL(to, url), { ...init, headers: { ...BEARER, ...init.headers } });
  return { ...server, url, ask };
}
