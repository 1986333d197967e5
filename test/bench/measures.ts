// What is measured of one bridge, each in one call that returns numbers.

import { cpuSeconds, memory, spawnBridge, untilListening } from "./bridges.ts";
import type { Bridge, Peer, Target } from "./bridges.ts";
import { cutText, Viewer } from "./client.ts";
import type { Endpoint } from "./client.ts";

const warmUpTrips = 500;
const echoTrips = 4000;
const echoBytes = 64;
const connections = 50;
const loadMs = 1500;
const frameBytes = 16_384;
/** Frames sent in one write, so that the client is not what is slow. */
const framesPerWrite = 16;
const bulkDownBytes = 2 ** 30;
const bulkUpBytes = 2 ** 28;
const stallBytes = 2 ** 30;
const stallMs = 4000;
/** Long enough for lazy set-up after a connection to be over. */
const settleMs = 300;
const limitMs = 60_000;

export function quantile(values: number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
}

/** Waits for work on these viewers, but not for ever and not past the end of one of them. */
async function finish<T>(viewers: Viewer[], work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error("the measure took too long")), limitMs);
  });
  try {
    return await Promise.race([work, late, ...viewers.map((viewer) => viewer.broken)]);
  } finally {
    clearTimeout(timer);
  }
}

/** One message out, the same back, again and again; `done` is asked before each. */
function roundTrips(viewer: Viewer, bytes: number, done: (us: number) => boolean): Promise<void> {
  const frame = viewer.prepare(cutText(bytes));
  return new Promise((resolve) => {
    const next = () => {
      const sent = Bun.nanoseconds();
      viewer.when(viewer.received + bytes, () => {
        if (done((Bun.nanoseconds() - sent) / 1000)) resolve();
        else next();
      });
      viewer.send(frame);
    };
    next();
  });
}

async function openMany(endpoint: Endpoint, count: number): Promise<Viewer[]> {
  const viewers: Viewer[] = [];
  for (let i = 0; i < count; i++) viewers.push(await finish([], Viewer.openRfb(endpoint)));
  return viewers;
}

function closeAll(viewers: Viewer[]) {
  for (const viewer of viewers) viewer.close();
}

async function echoTimes(viewer: Viewer, count: number): Promise<number[]> {
  const times: number[] = [];
  await finish(
    [viewer],
    roundTrips(viewer, echoBytes, (us) => times.push(us) >= count),
  );
  return times;
}

/** Round trip of 64 bytes on one connection, in microseconds. */
export async function echo(endpoint: Endpoint) {
  const [viewer] = await openMany(endpoint, 1);
  if (viewer === undefined) throw new Error("no viewer");
  viewer.command("echo");
  await echoTimes(viewer, warmUpTrips);
  const times = await echoTimes(viewer, echoTrips);
  viewer.close();
  return { p50: quantile(times, 0.5), p99: quantile(times, 0.99) };
}

/** Round trips a second over 50 connections. */
export async function fifty(endpoint: Endpoint, bytes: number): Promise<number> {
  const viewers = await openMany(endpoint, connections);
  for (const viewer of viewers) viewer.command("echo");
  const start = performance.now() + settleMs;
  let trips = 0;
  const all = viewers.map((viewer) =>
    roundTrips(viewer, bytes, () => {
      const now = performance.now();
      if (now >= start && now < start + loadMs) trips += 1;
      return now >= start + loadMs;
    }),
  );
  await finish(viewers, Promise.all(all));
  closeAll(viewers);
  return trips / (loadMs / 1000);
}

/** MB/s and CPU seconds of the bridge per GB; `pid` is absent when there is no bridge. */
export async function bulk(endpoint: Endpoint, pid?: number) {
  const cpu = () => (pid === undefined ? Number.NaN : cpuSeconds(pid));
  const measure = async (bytes: number, transfer: (viewer: Viewer) => Promise<void>) => {
    const [viewer] = await openMany(endpoint, 1);
    if (viewer === undefined) throw new Error("no viewer");
    const before = cpu();
    const start = performance.now();
    await finish([viewer], transfer(viewer));
    const seconds = (performance.now() - start) / 1000;
    const cpuUsed = cpu() - before;
    viewer.close();
    return { mbps: bytes / 1e6 / seconds, cpuPerGb: cpuUsed / (bytes / 1e9) };
  };
  const down = await measure(bulkDownBytes, (viewer) => {
    const arrived = viewer.arrived(viewer.received + bulkDownBytes);
    viewer.command(`source ${bulkDownBytes}`);
    return arrived;
  });
  const up = await measure(bulkUpBytes, (viewer) => {
    const frame = viewer.prepare(cutText(frameBytes));
    const bytes = Buffer.concat(Array.from({ length: framesPerWrite }, () => frame));
    const answered = viewer.arrived(viewer.received + 1);
    viewer.command(`sink ${bulkUpBytes}`);
    viewer.flood(bytes, bulkUpBytes / frameBytes / framesPerWrite);
    return answered;
  });
  return { down, up };
}

export const viewerCounts = [0, 1, 50, 200];

/** Memory and processes of a fresh bridge with this many idle viewers. */
export async function footprint(bridge: Bridge) {
  const viewers: Viewer[] = [];
  const steps: { viewers: number; mib: number; processes: number }[] = [];
  for (const count of viewerCounts) {
    viewers.push(...(await openMany(bridge.endpoint, count - viewers.length)));
    await Bun.sleep(settleMs);
    steps.push({ viewers: count, ...memory(bridge.pid) });
  }
  closeAll(viewers);
  return steps;
}

/** One viewer stops reading while the target offers 1 GiB; another goes on working. */
export async function stall(bridge: Bridge) {
  const viewers = await openMany(bridge.endpoint, 2);
  const [working, stalled] = viewers;
  if (working === undefined || stalled === undefined) throw new Error("no viewer");
  working.command("echo");
  await echoTimes(working, warmUpTrips);
  const before = quantile(await echoTimes(working, echoTrips), 0.5);
  const start = memory(bridge.pid).mib;
  let peak = start;
  stalled.stall();
  stalled.command(`source ${stallBytes}`);
  const times: number[] = [];
  const end = performance.now() + stallMs;
  const during = roundTrips(working, echoBytes, (us) => {
    times.push(us);
    return performance.now() >= end;
  });
  while (performance.now() < end) {
    await Bun.sleep(stallMs / 10);
    peak = Math.max(peak, memory(bridge.pid).mib);
  }
  await finish(viewers, during);
  closeAll(viewers);
  return { growthMib: peak - start, slowdown: quantile(times, 0.5) / before };
}

/** Milliseconds from the start of the process until it listens, and until it answers HTTP. */
export async function startUp(peer: Peer, server: string, target: Target) {
  const start = performance.now();
  await using running = spawnBridge(peer, server, { target, kind: "unix" });
  const port = await untilListening(running);
  const listening = performance.now() - start;
  const signal = AbortSignal.timeout(limitMs);
  await (await fetch(`http://127.0.0.1:${port}/`, { redirect: "manual", signal })).text();
  return { listening, answering: performance.now() - start };
}
