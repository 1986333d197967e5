// The bridges that are compared, each started as its own documentation says, and what the kernel
// knows of their processes. Nothing here has a fixed port: a bridge listens on port 0 and its port
// is read from /proc.

import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Endpoint } from "./client.ts";

export const root = join(import.meta.dir, "..", "..");
export const venv = join(root, ".cache", "bench-venv");

/** USER_HZ: fixed by the kernel's interface, whatever the kernel's own tick. */
const ticksPerSecond = 100;
/** Jupyter takes 1 to 3 s to listen on an idle machine. */
const startTimeoutMs = 60_000;
const stopGraceMs = 4000;

/**
 * Everything this run started has this folder in its environment (as HOME), and nothing else has.
 * Not in TMPDIR: sockets lie below it, and a socket's path has at most 107 bytes.
 */
export const runDir = join("/tmp", `jd-bench-${crypto.randomUUID().slice(0, 8)}`);

export function freshDir(name: string): string {
  const path = join(runDir, `${name}-${crypto.randomUUID().slice(0, 4)}`);
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return path;
}

// --- processes ---

/** Fields of /proc/PID/stat after the name, which may itself hold spaces and brackets. */
function statFields(pid: number): string[] {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

function allPids(): number[] {
  return readdirSync("/proc").map(Number).filter(Number.isInteger);
}

/** A process and all its descendants. */
export function processTree(pid: number): number[] {
  const children = new Map<number, number[]>();
  for (const child of allPids()) {
    try {
      const parent = Number(statFields(child)[1]);
      children.set(parent, [...(children.get(parent) ?? []), child]);
    } catch {
      // It ended while we looked.
    }
  }
  const tree = [pid];
  for (const member of tree) tree.push(...(children.get(member) ?? []));
  return tree;
}

/** CPU time of a tree, with that of children that ended and were waited for. */
export function cpuSeconds(pid: number): number {
  let ticks = 0;
  for (const member of processTree(pid)) {
    try {
      const times = statFields(member).slice(11, 15);
      ticks += times.reduce((sum, value) => sum + Number(value), 0);
    } catch {
      // It ended while we looked.
    }
  }
  return ticks / ticksPerSecond;
}

/** Proportional set size of a tree: what it really costs, shared pages counted once. */
export function memory(pid: number): { mib: number; processes: number } {
  let kib = 0;
  let processes = 0;
  for (const member of processTree(pid)) {
    try {
      const pss = /^Pss: +(\d+) kB/m.exec(readFileSync(`/proc/${member}/smaps_rollup`, "latin1"));
      kib += Number(pss?.[1] ?? 0);
      processes += 1;
    } catch {
      // It ended while we looked.
    }
  }
  return { mib: kib / 1024, processes };
}

function openSockets(pid: number): Set<string> {
  const links = new Set<string>();
  try {
    for (const descriptor of readdirSync(`/proc/${pid}/fd`)) {
      links.add(readlinkSync(`/proc/${pid}/fd/${descriptor}`));
    }
  } catch {
    // The process ended or closed one while we looked; the next look will be whole.
  }
  return links;
}

/** The TCP port a process listens on, or undefined while it does not. */
function listeningPort(pid: number): number | undefined {
  const sockets = openSockets(pid);
  for (const table of ["tcp", "tcp6"]) {
    for (const line of readFileSync(`/proc/net/${table}`, "latin1").trim().split("\n")) {
      const fields = line.trim().split(/\s+/);
      const port = fields[1]?.split(":")[1];
      // 0A is TCP_LISTEN; the tenth field is the socket's inode.
      if (fields[3] === "0A" && port && sockets.has(`socket:[${fields[9]}]`)) {
        return Number.parseInt(port, 16);
      }
    }
  }
  return undefined;
}

function marked(mark: string): number[] {
  return allPids().filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/environ`, "latin1").includes(`=${mark}`);
    } catch {
      // It ended while we looked.
      return false;
    }
  });
}

function signal(pids: number[], name: "SIGTERM" | "SIGKILL") {
  for (const pid of pids) {
    try {
      process.kill(pid, name);
    } catch {
      // It ended while we looked.
    }
  }
}

/** Ends all that has a folder of this run in its environment: a desktop leaves its process group. */
async function sweep(mark: string) {
  const found = marked(mark);
  // TERM first: an X server that is killed leaves its lock file behind.
  signal(found, "SIGTERM");
  const deadline = Date.now() + stopGraceMs;
  while (marked(mark).length > 0 && Date.now() < deadline) await Bun.sleep(20);
  signal(marked(mark), "SIGKILL");
  // XFCE's session manager leaves this socket, in a place that no TMPDIR changes.
  for (const pid of found) rmSync(`/tmp/.ICE-unix/${pid}`, { force: true });
}

/** Ends what this run started and removes its files. */
export async function removeRun() {
  await sweep(runDir);
  rmSync(runDir, { recursive: true, force: true });
}

export interface Running extends AsyncDisposable {
  pid: number;
  home: string;
  /** The first line on stdout, for what prints where it listens. */
  line: Promise<string>;
  /** The exit code once it ended. */
  exited: Promise<number>;
}

/** Resolves with the first line; goes on reading, or the writer would die of a closed pipe. */
function firstLine(stream: ReadableStream<Uint8Array>): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const read = async () => {
    let text = "";
    const decoder = new TextDecoder();
    for await (const bytes of stream) {
      if (!text.includes("\n")) text += decoder.decode(bytes, { stream: true });
      if (text.includes("\n")) resolve(text.split("\n")[0] ?? "");
    }
    resolve(text);
  };
  void read();
  return promise;
}

/** Starts a process with a HOME of its own; disposing of it ends all that it started. */
export function spawn(command: string[], env: Record<string, string> = {}): Running {
  const home = env.HOME ?? freshDir("home");
  const log = Bun.file(join(home, "stderr.log"));
  const child = Bun.spawn(command, {
    cwd: root,
    env: { PATH: process.env.PATH ?? "", LANG: "C.UTF-8", HOME: home, TMPDIR: home, ...env },
    detached: true,
    stdin: "ignore",
    stdout: "pipe",
    stderr: log,
  });
  return {
    pid: child.pid,
    home,
    line: firstLine(child.stdout),
    exited: child.exited,
    [Symbol.asyncDispose]: () => sweep(home),
  };
}

/** Waits until a process listens on TCP; looks often, since this is also the start-up measure. */
export async function untilListening(running: Running): Promise<number> {
  const deadline = Date.now() + startTimeoutMs;
  while (Date.now() < deadline) {
    // Before the look at /proc, which is empty after the end.
    await Bun.sleep(1);
    if (Bun.peek.status(running.exited) !== "pending") break;
    const port = listeningPort(running.pid);
    if (port !== undefined) return port;
  }
  const log = readFileSync(join(running.home, "stderr.log"), "utf8").slice(-2000);
  throw new Error(`bridge did not listen:\n${log}`);
}

// --- bridges ---

export const peers = ["ours", "websockify", "lighttpd", "raw socket"] as const;
export type Peer = (typeof peers)[number];
export const targetKinds = ["unix", "tcp"] as const;
export type TargetKind = (typeof targetKinds)[number];

export interface Target {
  unix: string;
  tcp: number;
}

/** A running bridge and how to reach a target through it. */
export interface Bridge extends Running {
  endpoint: Endpoint;
}

const token = crypto.randomUUID();

export function startTarget(): { running: Running; target: Promise<Target> } {
  const unix = join(freshDir("target"), "vnc.sock");
  const running = spawn([process.execPath, join(import.meta.dir, "target.ts"), unix]);
  return { running, target: running.line.then((line) => ({ unix, tcp: Number(line) })) };
}

/** The target without a bridge: the client's own ceiling. */
export function direct(target: Target, kind: TargetKind): Endpoint {
  const tcp = { hostname: "127.0.0.1", port: target.tcp };
  return {
    address: kind === "unix" ? { unix: target.unix } : tcp,
    path: "/",
    headers: {},
    framed: false,
  };
}

/** Jupyter with the settings, data and runtime files of this run only. */
export function spawnJupyter(home: string, settings: string[]): Running {
  // As a person's shell has it with the venv active: upstream looks for vncserver on PATH.
  const path = `${join(venv, "bin")}:${process.env.PATH ?? ""}`;
  return spawn(
    [
      join(venv, "bin", "jupyter-server"),
      "--allow-root",
      "--ServerApp.ip=127.0.0.1",
      "--ServerApp.port=0",
      `--ServerApp.root_dir=${home}`,
      `--IdentityProvider.token=${token}`,
      ...settings,
    ],
    {
      HOME: home,
      PATH: path,
      JUPYTER_CONFIG_DIR: join(home, "jupyter"),
      JUPYTER_DATA_DIR: join(home, "jupyter"),
      JUPYTER_RUNTIME_DIR: join(home, "jupyter"),
    },
  );
}

export function spawnOurs(server: string, args: string[], env: Record<string, string> = {}) {
  const options = ["--host", "127.0.0.1", "--port", "0", ...args];
  return spawn([process.execPath, server, ...options], { JUPYTER_DESKTOP_TOKEN: token, ...env });
}

export function pageToken(): string {
  return token;
}

function spawnWebsockify(target: Target, kind: TargetKind): Running {
  const where = kind === "unix" ? [`--unix-target=${target.unix}`] : [`127.0.0.1:${target.tcp}`];
  return spawn(["/usr/bin/websockify", "127.0.0.1:0", ...where]);
}

function spawnLighttpd(target: Target, kind: TargetKind): Running {
  const home = freshDir("lighttpd");
  const host =
    kind === "unix"
      ? `"socket" => "${target.unix}"`
      : `"host" => "127.0.0.1", "port" => ${target.tcp}`;
  // lighttpd takes port 0 for 80; the kernel will not give the same free port out again so soon.
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const { port } = probe;
  probe.stop(true);
  const config = `server.modules = ("mod_wstunnel")
server.document-root = "${home}"
server.bind = "127.0.0.1"
server.port = ${port}
wstunnel.server = ("/" => ((${host})))
wstunnel.frame-type = "binary"
`;
  writeFileSync(join(home, "lighttpd.conf"), config);
  return spawn(["/usr/sbin/lighttpd", "-D", "-f", join(home, "lighttpd.conf")], { HOME: home });
}

function spawnRawSocket(target: Target, kind: TargetKind): Running {
  const home = freshDir("jupyter");
  const where = kind === "unix" ? `"unix_socket": "${target.unix}"` : `"port": ${target.tcp}`;
  const config = `c.ServerProxy.servers = {"bench": {${where}, "raw_socket_proxy": True}}\n`;
  const file = join(home, "bench_config.py");
  writeFileSync(file, config);
  return spawnJupyter(home, [`--config=${file}`]);
}

/** Starts a bridge without waiting for it. */
export function spawnBridge(peer: Peer, server: string, to: { target: Target; kind: TargetKind }) {
  const { target, kind } = to;
  if (peer === "websockify") return spawnWebsockify(target, kind);
  if (peer === "lighttpd") return spawnLighttpd(target, kind);
  if (peer === "raw socket") return spawnRawSocket(target, kind);
  const vnc = kind === "unix" ? `unix:${target.unix}` : `tcp:127.0.0.1:${target.tcp}`;
  return spawnOurs(server, ["--max-viewers", "1000", "--vnc", vnc]);
}

export function endpointOf(peer: Peer, port: number): Endpoint {
  const address = { hostname: "127.0.0.1", port };
  const base = { address, path: "/", headers: {}, framed: true };
  if (peer === "ours") {
    const headers = { Authorization: `Bearer ${token}` };
    return { ...base, path: "/desktop-websockify/", headers };
  }
  if (peer === "raw socket") {
    return { ...base, path: "/bench/", headers: { Authorization: `token ${token}` } };
  }
  return base;
}

export async function startBridge(
  peer: Peer,
  server: string,
  to: { target: Target; kind: TargetKind },
): Promise<Bridge> {
  const running = spawnBridge(peer, server, to);
  try {
    const port = await untilListening(running);
    return { ...running, endpoint: endpointOf(peer, port) };
  } catch (error) {
    await running[Symbol.asyncDispose]();
    throw error;
  }
}
