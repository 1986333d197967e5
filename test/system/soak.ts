/**
 * bun test/system/soak.ts [--seconds 600]: viewers that come, go, stall and send garbage, against a real Xvnc with a
 * desktop that draws all the time. A server that is dead, hangs or has grown at the end is an exit code of 1.
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { parseArgs } from "node:util";
import {
  HANDSHAKE,
  openWebSocket,
  processesWith,
  startServer,
  tempDir,
  until,
} from "../_helpers.ts";

const { values } = parseArgs({ options: { seconds: { type: "string", default: "600" } } });
const SECONDS = Number(values.seconds);
const AT_ONCE = 12;
/** Xvnc and the garbage collector settle within so many viewers. */
const WARM_UP = 400;
/** How much more memory the server may have than after the warm-up: its heap breathes by this much. */
const GROWTH_KIB = 24 * 1024;
/** So long without a descriptor less: Xvnc sees the end of a viewer within its next turn. */
const SETTLE_MS = 1_500;
/** How late the status may come while all of this goes on, on a machine that does other things too. */
const SLOWEST_MS = 5_000;

/** Something new on the screen, for ever, by a program that every X has: the root's colour changes. */
const DRAWS = "while :; do for c in red green blue; do xsetroot -solid $c; sleep 0.05; done; done";

type Server = Awaited<ReturnType<typeof startServer>>;
type Viewer = Awaited<ReturnType<typeof openWebSocket>>;

const read = (file: string) => fs.readFileSync(file, "utf8");
const random = (below: number) => Math.floor(Math.random() * below);
const noise = (bytes: number) => crypto.getRandomValues(new Uint8Array(bytes));

/** The handshake; returns the size of the desktop. */
async function shakeHands({ ws, inbox }: Viewer) {
  ws.send(Buffer.from("RFB 003.008\n\x01\x01"));
  const [types = 0] = (await inbox.read(12 + 1)).subarray(12);
  await inbox.read(types + 4);
  const init = await inbox.read(24);
  await inbox.read(init.readUInt32BE(20));
  return `${init.readUInt16BE(0)}x${init.readUInt16BE(2)}`;
}

const KEY = Uint8Array.of(4, 1, 0, 0, 0, 0, 0xff, 0xe1);
const pointer = () => Uint8Array.of(5, 0, 0, random(256), 0, random(256));
/** The whole screen, raw: as much as a viewer can ask for. */
const ALL = Uint8Array.of(3, 0, 0, 0, 0, 0, 6, 144, 4, 26);
/** EnableContinuousUpdates: Xvnc then sends without being asked, as it does to noVNC. */
const ENCODINGS = Buffer.from("02000002fffffec7fffffecc", "hex");
const CONTINUOUS = Uint8Array.of(150, 1, 0, 0, 0, 0, 6, 144, 4, 26);
const size = (width: number, height: number) => {
  const message = Buffer.alloc(24);
  message[0] = 251;
  message[6] = 1;
  for (const at of [2, 16]) message.writeUInt16BE(width, at);
  for (const at of [4, 18]) message.writeUInt16BE(height, at);
  return message;
};

/** Bytes as they are, over TCP, to the server's port; then the connection is reset. */
async function raw(url: URL, bytes: Uint8Array | string, lastsMs: number) {
  const closed = Promise.withResolvers<void>();
  const socket = await Bun.connect({
    hostname: url.hostname,
    port: Number(url.port),
    socket: { data() {}, close: () => closed.resolve(), error() {} },
  });
  socket.write(bytes);
  await Promise.race([closed.promise, Bun.sleep(lastsMs)]);
  socket.terminate();
}

const handshake = (url: URL) => {
  const lines = Object.entries(HANDSHAKE).map(([name, value]) => `${name}: ${value}\r\n`);
  return `GET /${url.search} HTTP/1.1\r\nHost: ${url.host}\r\n${lines.join("")}\r\n`;
};

type Fault = (server: Server) => Promise<void>;
const withViewer =
  (use: (viewer: Viewer) => Promise<unknown> | unknown): Fault =>
  async (server) => {
    await using viewer = await openWebSocket(server.url);
    await use(viewer);
  };

/** What viewers do, by what the report calls it. */
const FAULTS: Record<string, Fault> = {
  "comes, works and goes": withViewer(async (viewer) => {
    await shakeHands(viewer);
    viewer.ws.send(ENCODINGS);
    viewer.ws.send(CONTINUOUS);
    for (let i = 0; i < 10; i++) {
      viewer.ws.send(i % 3 ? pointer() : KEY);
      viewer.ws.send(ALL);
      await Bun.sleep(20);
    }
    viewer.ws.close();
    await viewer.closed;
  }),
  "vanishes in the middle of a picture": withViewer(async (viewer) => {
    await shakeHands(viewer);
    const had = viewer.inbox.total;
    viewer.ws.send(ALL);
    await until("the first bytes of it", () => viewer.inbox.total > had || viewer.inbox.over);
  }),
  "vanishes during the handshake": withViewer(({ ws }) => void ws.send(Buffer.from("RFB 003"))),
  "stalls while pictures come": withViewer(async (viewer) => {
    await shakeHands(viewer);
    viewer.ws.pause();
    for (let i = 0; i < 8; i++) viewer.ws.send(ALL);
    await Bun.sleep(300 + random(700));
  }),
  "stalls, and reads on": withViewer(async (viewer) => {
    await shakeHands(viewer);
    const had = viewer.inbox.total;
    viewer.ws.pause();
    viewer.ws.send(ALL);
    await Bun.sleep(300);
    viewer.ws.resume();
    await until("the picture", () => viewer.inbox.total - had > 1000 || viewer.inbox.over);
  }),
  "asks for many sizes": withViewer(async (viewer) => {
    await shakeHands(viewer);
    viewer.ws.send(ENCODINGS);
    for (let i = 0; i < 4; i++) {
      viewer.ws.send(KEY);
      viewer.ws.send(size(640 + random(1000), 480 + random(600)));
      await Bun.sleep(30);
    }
  }),
  "sends garbage for a handshake": withViewer(async (viewer) => {
    viewer.ws.send(noise(64));
    await Promise.race([viewer.closed, Bun.sleep(500)]);
  }),
  "sends garbage for messages": withViewer(async (viewer) => {
    await shakeHands(viewer);
    for (let i = 0; i < 5; i++) viewer.ws.send(noise(1 + random(3000)));
    await Promise.race([viewer.closed, Bun.sleep(500)]);
  }),
  "sends a message cut into bytes": withViewer(async (viewer) => {
    await shakeHands(viewer);
    for (const byte of [...pointer(), ...KEY, ...ALL]) viewer.ws.send(Uint8Array.of(byte));
    await Bun.sleep(20);
  }),
  "sends text": withViewer(async ({ ws, closed }) => {
    ws.send("hello");
    if ((await closed).code !== 1003) throw new Error("text was not refused with 1003");
  }),
  "sends two megabytes in one message": withViewer(async ({ ws, closed }) => {
    ws.send(noise(2 << 20));
    await closed;
  }),
  "pastes as fast as it can": withViewer(async (viewer) => {
    await shakeHands(viewer);
    const paste = Buffer.alloc(8 + 200_000, 97);
    paste.writeUInt32BE(6 << 24, 0);
    paste.writeUInt32BE(200_000, 4);
    for (let i = 0; i < 20; i++) viewer.ws.send(paste);
    await Bun.sleep(100);
  }),
  "resets before the answer": ({ url }) => raw(url, handshake(url), 0),
  "resets when it is open": ({ url }) => raw(url, handshake(url), 200),
  "speaks no HTTP": ({ url }) => raw(url, noise(500), 200),
  "sends frames that are none": ({ url }) =>
    raw(url, Buffer.concat([Buffer.from(handshake(url)), noise(200)]), 200),
  "watches the status and leaves": async (server) => {
    const abort = new AbortController();
    const headers = { accept: "text/event-stream" };
    const stream = await server.ask("desktop/api/status", { headers, signal: abort.signal });
    await stream.body?.getReader().read();
    abort.abort();
  },
};

// --- the measures ---

interface Status {
  state: string;
  viewers: number;
}

async function statusOf(server: Server) {
  const asked = performance.now();
  const answer = await server.ask("desktop/api/status", { signal: AbortSignal.timeout(30_000) });
  const status = (await answer.json()) as Status;
  return { ...status, ms: performance.now() - asked };
}

const pssKib = (pid: number | string) =>
  Number(/^Pss_Anon: +(\d+) kB$/m.exec(read(`/proc/${pid}/smaps_rollup`))?.[1]);

/** How many descriptors a process holds, once it lets go of no more; what draws comes and goes meanwhile. */
async function settled(pid: number | string) {
  let fewest = Number.POSITIVE_INFINITY;
  for (let since = Date.now(); Date.now() - since < SETTLE_MS; await Bun.sleep(10)) {
    const count = fs.readdirSync(`/proc/${pid}/fd`).length;
    if (count < fewest) [fewest, since] = [count, Date.now()];
  }
  return fewest;
}

/** What server and Xvnc hold while nobody is there, the desktop being of one size. */
async function measure(server: Server, xvnc: string) {
  await until("a size that is always the same", async () => {
    await using viewer = await openWebSocket(server.url);
    if ((await shakeHands(viewer)) === "1280x800") return true;
    viewer.ws.send(ENCODINGS);
    viewer.ws.send(KEY);
    viewer.ws.send(size(1280, 800));
    await Bun.sleep(100);
    return false;
  });
  await until("the end of all viewers", async () => (await statusOf(server)).viewers === 0, 30_000);
  return {
    "descriptors of the server": await settled(server.child.pid),
    "descriptors of Xvnc": await settled(xvnc),
    "KiB of the server (its own)": pssKib(server.child.pid),
    "KiB of Xvnc (its own)": pssKib(xvnc),
  };
}

// --- the run ---

interface Tally {
  tried: number;
  failed: string[];
}

/** One viewer after the other, of any kind, until `enough`. */
async function keepComing(server: Server, tallies: Map<string, Tally>, enough: () => boolean) {
  const faults = Object.entries(FAULTS);
  while (!enough()) {
    const [name, fault] = faults[random(faults.length)] ?? ["", async () => {}];
    const tally = tallies.get(name) ?? { tried: 0, failed: [] };
    tallies.set(name, tally);
    tally.tried += 1;
    await fault(server).catch((error: unknown) => tally.failed.push(String(error)));
  }
}

async function soak(say: (line: string) => void): Promise<string[]> {
  using dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, `#!/bin/sh\n${DRAWS}\n`, { mode: 0o755 });
  await using server = await startServer(["--xstartup", xstartup]);
  await until("the desktop", async () => (await statusOf(server)).state === "ready");
  const xvnc = processesWith(server.dir).find((pid) => read(`/proc/${pid}/comm`) === "Xtigervnc\n");
  if (!xvnc) throw new Error("there is no Xtigervnc");

  const tallies = new Map<string, Tally>();
  const tried = () => [...tallies.values()].reduce((sum, tally) => sum + tally.tried, 0);
  const crowd = (enough: () => boolean) =>
    Promise.all(Array.from({ length: AT_ONCE }, () => keepComing(server, tallies, enough)));
  await crowd(() => tried() >= WARM_UP);
  const before = await measure(server, xvnc);

  let slowest = 0;
  const deadline = Date.now() + SECONDS * 1000;
  const enough = () => Date.now() > deadline;
  const asking = (async () => {
    for (; !enough(); await Bun.sleep(200))
      slowest = Math.max(slowest, (await statusOf(server)).ms);
  })();
  await Promise.all([crowd(enough), asking]);
  const after = await measure(server, xvnc);

  for (const [name, tally] of [...tallies].sort())
    say(`${String(tally.tried).padStart(7)}  a viewer ${name}`);
  const failed = [...tallies].flatMap(([name, tally]) =>
    tally.failed.map((why) => `a viewer ${name}: ${why}`),
  );
  say(`tried ${tried()}, survived ${tried() - failed.length}, lost ${failed.length}`);
  for (const [name, count] of Object.entries(after))
    say(`${name}: ${before[name as keyof typeof before]} at the start, ${count} at the end`);
  say(`slowest status: ${Math.round(slowest)} ms`);
  return [
    ...new Set(failed),
    ...grown(before, after),
    ...(slowest > SLOWEST_MS ? [`the status took ${Math.round(slowest)} ms`] : []),
    ...((await statusOf(server)).state === "ready" ? [] : ["the desktop is not ready any more"]),
    ...(fs.existsSync(`/proc/${xvnc}`) ? [] : ["Xvnc is another one"]),
  ];
}

type Measures = Awaited<ReturnType<typeof measure>>;
function grown(before: Measures, after: Measures): string[] {
  return Object.entries(after).flatMap(([name, count]) => {
    const most = before[name as keyof Measures] + (name.startsWith("KiB") ? GROWTH_KIB : 0);
    return count > most ? [`${name}: ${count}, and at most ${most} were expected`] : [];
  });
}

const problems = await soak(console.log);
for (const problem of problems) console.error(problem);
process.exit(problems.length > 0 ? 1 : 0);
