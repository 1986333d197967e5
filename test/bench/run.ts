// Our bridge beside its peers, in one run: `bun run bench [--repeats N] [--only echo,page]`.
// Every repeat measures every peer once, in an order that turns, so that what else the machine does
// hits all alike. A ratio is the median of the ratios within each repeat.

import { mkdirSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Browser } from "playwright-core";
import {
  type Bridge,
  direct,
  peers,
  removeRun,
  root,
  runDir,
  type Running,
  startBridge,
  startTarget,
  type Target,
  type TargetKind,
  targetKinds,
} from "./bridges.ts";
import { bulk, echo, fifty, footprint, quantile, stall, startUp } from "./measures.ts";
import {
  launchBrowser,
  oursAtVisit,
  oursInHub,
  oursInJupyter,
  oursReady,
  upstream,
  upstreamInHub,
  xfceAlone,
} from "./page.ts";

/** Fewer repeats than this are no ground for a claim on a machine with other work. */
const claimRepeats = 10;
const measureNames = ["echo", "fifty", "bulk", "memory", "stall", "start", "page", "hub"] as const;
type MeasureName = (typeof measureNames)[number];

// --- what was measured ---

interface Metric {
  name: string;
  unit: string;
  /** By column (a peer, direct, upstream, …), then by repeat; a failed measure leaves a hole. */
  samples: Record<string, (number | undefined)[]>;
}

interface Results {
  metrics: Map<string, Metric>;
  failures: string[];
  repeat: number;
}

function record(results: Results, column: string, values: Record<string, [number, string]>) {
  for (const [name, [value, unit]] of Object.entries(values)) {
    const metric = results.metrics.get(name) ?? { name, unit, samples: {} };
    results.metrics.set(name, metric);
    metric.samples[column] ??= [];
    metric.samples[column][results.repeat] = value;
  }
}

/** One peer's failure is reported and does not end the run. */
async function attempt(results: Results, what: string, measure: () => Promise<void>) {
  try {
    await measure();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    results.failures.push(`${what}, repeat ${results.repeat + 1}: ${message}`);
    console.error(`failed: ${results.failures.at(-1)}`);
  }
}

function present(samples: (number | undefined)[] | undefined): number[] {
  return (samples ?? []).filter(
    (value): value is number => value !== undefined && Number.isFinite(value),
  );
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return (quantile(sorted, 0.5) + (sorted[Math.ceil(middle) - 1] ?? Number.NaN)) / 2;
}

/** Ours over a peer's, repeat by repeat. */
function ratios(metric: Metric, peer: string): number[] {
  const ours = metric.samples.ours ?? [];
  const theirs = metric.samples[peer] ?? [];
  return present(ours.map((value, i) => (value ?? Number.NaN) / (theirs[i] ?? Number.NaN)));
}

// --- the run ---

interface Plan {
  server: string;
  repeats: number;
  only: readonly MeasureName[];
}

interface Context {
  plan: Plan;
  results: Results;
  target: Target;
  bridges: { peer: string; kind: TargetKind; bridge: Bridge }[];
  browser: Browser | undefined;
}

/** The same list with another first each time. */
function turned<T>(items: readonly T[], by: number): T[] {
  const start = by % Math.max(1, items.length);
  return [...items.slice(start), ...items.slice(0, start)];
}

/** What runs on bridges that stay up: the client and they are warm after the first repeat. */
async function throughBridges({ plan, results, target, bridges }: Context) {
  const endpoints = [
    ...bridges.map(({ peer, kind, bridge }) => ({
      peer,
      kind,
      endpoint: bridge.endpoint,
      pid: bridge.pid,
    })),
    ...targetKinds.map((kind) => ({
      peer: "direct",
      kind,
      endpoint: direct(target, kind),
      pid: undefined,
    })),
  ];
  const each = async (
    name: MeasureName,
    measure: (at: (typeof endpoints)[number]) => Promise<void>,
  ) => {
    if (!plan.only.includes(name)) return;
    for (const at of turned(endpoints, results.repeat)) {
      await attempt(results, `${name} ${at.peer} ${at.kind}`, () => measure(at));
    }
  };
  await each("echo", async ({ peer, kind, endpoint }) => {
    const { p50, p99 } = await echo(endpoint);
    record(results, peer, {
      [`echo p50, ${kind}`]: [p50, "µs"],
      [`echo p99, ${kind}`]: [p99, "µs"],
    });
  });
  await each("fifty", async ({ peer, kind, endpoint }) => {
    for (const [label, bytes] of [
      ["64 B", 64],
      ["16 KiB", 16_384],
    ] as const) {
      record(results, peer, {
        [`50 viewers, ${label}, ${kind}`]: [await fifty(endpoint, bytes), "/s"],
      });
    }
  });
  await each("bulk", async ({ peer, kind, endpoint, pid }) => {
    const { down, up } = await bulk(endpoint, pid);
    record(results, peer, {
      [`bulk to browser, ${kind}`]: [down.mbps, "MB/s"],
      [`bulk from browser, ${kind}`]: [up.mbps, "MB/s"],
      [`CPU to browser, ${kind}`]: [down.cpuPerGb, "s/GB"],
      [`CPU from browser, ${kind}`]: [up.cpuPerGb, "s/GB"],
    });
  });
}

/** What needs a bridge of its own, fresh. On a unix socket: the usual case. */
async function onFreshBridges({ plan, results, target }: Context) {
  const to = { target, kind: "unix" as const };
  for (const peer of turned(peers, results.repeat)) {
    if (plan.only.includes("start")) {
      await attempt(results, `start ${peer}`, async () => {
        const { listening, answering } = await startUp(peer, plan.server, target);
        record(results, peer, {
          "start to listening": [listening, "ms"],
          "start to first answer": [answering, "ms"],
        });
      });
    }
    if (plan.only.includes("memory")) {
      await attempt(results, `memory ${peer}`, async () => {
        await using bridge = await startBridge(peer, plan.server, to);
        for (const { viewers, mib, processes } of await footprint(bridge)) {
          const who = viewers === 1 ? "1 viewer" : `${viewers} viewers`;
          record(results, peer, {
            [`memory, ${who}`]: [mib, "MiB"],
            [`processes, ${who}`]: [processes, ""],
          });
        }
      });
    }
    if (plan.only.includes("stall")) {
      await attempt(results, `stall ${peer}`, async () => {
        await using bridge = await startBridge(peer, plan.server, to);
        const { growthMib, slowdown } = await stall(bridge);
        record(results, peer, {
          "stalled viewer, growth": [growthMib, "MiB"],
          "stalled viewer, others' echo": [slowdown, "× before"],
        });
      });
    }
  }
}

async function onPages({ plan, results, browser }: Context) {
  if (browser === undefined || !plan.only.includes("page")) return;
  const steps: [string, () => Promise<void>][] = [
    [
      "page ours at visit",
      async () => {
        const { cold, warm, bytes, gzipBytes } = await oursAtVisit(browser, plan.server);
        record(results, "ours", {
          "page, click starts all": [cold, "ms"],
          "page, second visit": [warm, "ms"],
          "page weight, br": [bytes / 1000, "kB"],
          "page weight, gzip": [gzipBytes / 1000, "kB"],
        });
      },
    ],
    [
      "page ours ready",
      async () => {
        record(results, "ours", {
          "page, server up": [await oursReady(browser, plan.server), "ms"],
        });
      },
    ],
    [
      "page ours in Jupyter",
      async () => {
        const { cold, warm } = await oursInJupyter(browser, plan.server);
        record(results, "ours", {
          "Jupyter, click starts all": [cold, "ms"],
          "Jupyter, second visit": [warm, "ms"],
        });
      },
    ],
    [
      "page upstream",
      async () => {
        const { cold, warm, bytes } = await upstream(browser);
        record(results, "upstream", {
          "page, click starts all": [cold, "ms"],
          "Jupyter, click starts all": [cold, "ms"],
          "Jupyter, second visit": [warm, "ms"],
          // Upstream cannot start a desktop before the click, and does not compress.
          "page, server up": [cold, "ms"],
          "page, second visit": [warm, "ms"],
          "page weight, br": [bytes / 1000, "kB"],
          "page weight, gzip": [bytes / 1000, "kB"],
        });
      },
    ],
    [
      "page XFCE alone",
      async () => {
        record(results, "XFCE alone", { "page, click starts all": [await xfceAlone(), "ms"] });
      },
    ],
  ];
  for (const [what, step] of turned(steps, results.repeat)) await attempt(results, what, step);
}

async function underHub({ plan, results, browser }: Context) {
  if (browser === undefined || !plan.only.includes("hub")) return;
  const columns = [
    ["ours", () => oursInHub(browser, plan.server)],
    ["upstream", () => upstreamInHub(browser)],
  ] as const;
  for (const [column, measure] of turned(columns, results.repeat)) {
    await attempt(results, `hub ${column}`, async () => {
      const { cold, warm } = await measure();
      record(results, column, {
        "Hub, Start My Server starts all": [cold, "ms"],
        "Hub, second visit": [warm, "ms"],
      });
    });
  }
}

// --- the report ---

function number(value: number): string {
  if (!Number.isFinite(value)) return "-";
  if (Number.isInteger(value)) return String(value);
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

function spread(values: number[]): string {
  if (values.length === 0) return "-";
  return `${number(median(values))} (${number(Math.min(...values))}–${number(Math.max(...values))})`;
}

function table(header: string[], rows: string[][]): string {
  const all = [header, ...rows];
  const widths = header.map((_, i) => Math.max(...all.map((row) => (row[i] ?? "").length)));
  const line = (row: string[]) =>
    `| ${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join(" | ")} |`;
  return [
    line(header),
    `|${widths.map((w) => "-".repeat(w + 2)).join("|")}|`,
    ...rows.map(line),
  ].join("\n");
}

function columnsOf(metrics: Metric[]): string[] {
  const known = [...peers, "direct", "upstream", "XFCE alone"];
  return known.filter((column) => metrics.some((metric) => metric.samples[column]));
}

function report(metrics: Metric[]): string {
  const columns = columnsOf(metrics);
  const others = columns.filter((column) => column !== "ours");
  const medians = metrics.map((metric) => [
    `${metric.name}${metric.unit && ` [${metric.unit}]`}`,
    ...columns.map((column) => spread(present(metric.samples[column]))),
  ]);
  const quotients = metrics.map((metric) => [
    metric.name,
    ...others.map((column) => spread(ratios(metric, column))),
  ]);
  return [
    "median (min–max)\n",
    table(["measure", ...columns], medians),
    "\nours ÷ peer, median (min–max) of the ratios within each repeat\n",
    table(["ours ÷", ...others], quotients),
  ].join("\n");
}

// --- the goals ---

interface Check {
  metric: string;
  /** Ours over this column; over each of them, when there are several; ours itself, when none. */
  against?: readonly string[];
  /** A difference instead: ours less this column. */
  minus?: string;
  atMost?: number;
  atLeast?: number;
}

const bridgePeers = peers.filter((peer) => peer !== "ours");

/** Each goal is met by any one of its checks. */
function goals(): Check[][] {
  const one = (metric: string, rest: Omit<Check, "metric">): Check[] => [{ metric, ...rest }];
  const perKind = targetKinds.flatMap((kind) => [
    one(`echo p50, ${kind}`, { against: ["websockify"], atMost: 0.65 }),
    one(`echo p50, ${kind}`, { against: ["lighttpd"], atMost: 1.15 }),
    one(`50 viewers, 64 B, ${kind}`, { against: ["websockify"], atLeast: 2.5 }),
    one(`50 viewers, 16 KiB, ${kind}`, { against: ["websockify"], atLeast: 2.5 }),
    one(`50 viewers, 64 B, ${kind}`, { against: ["raw socket"], atLeast: 4 }),
    one(`50 viewers, 16 KiB, ${kind}`, { against: ["raw socket"], atLeast: 3.2 }),
    one(`bulk from browser, ${kind}`, { against: ["websockify"], atLeast: 2 }),
    one(`CPU to browser, ${kind}`, { against: bridgePeers, atMost: 1 }),
    one(`CPU from browser, ${kind}`, { against: bridgePeers, atMost: 1 }),
  ]);
  return [
    ...perKind,
    one("bulk to browser, unix", { against: ["websockify"], atLeast: 1.1 }),
    one("memory, 50 viewers", { against: ["websockify"], atMost: 0.25 }),
    one("stalled viewer, growth", { atMost: 16 }),
    // "Not slowed" within the noise that the echo goal allows too.
    one("stalled viewer, others' echo", { atMost: 1.15 }),
    [
      { metric: "page, click starts all", against: ["upstream"], atMost: 0.7 },
      { metric: "page, click starts all", minus: "XFCE alone", atMost: 400 },
    ],
    one("page, server up", { against: ["upstream"], atMost: 0.3 }),
    one("page, second visit", { against: ["upstream"], atMost: 0.8 }),
    one("page weight, br", { atMost: 75 }),
    one("page weight, gzip", { atMost: 85 }),
  ];
}

/** The value that is held against the limit: the worst of them for several peers. */
function measured(check: Check, metric: Metric): number {
  const ours = metric.samples.ours ?? [];
  if (check.minus !== undefined) {
    const base = metric.samples[check.minus] ?? [];
    return median(present(ours.map((value, i) => (value ?? Number.NaN) - (base[i] ?? Number.NaN))));
  }
  if (check.against === undefined) return median(present(ours));
  const values = check.against.map((peer) => median(ratios(metric, peer)));
  return check.atMost === undefined ? Math.min(...values) : Math.max(...values);
}

function judge(check: Check, metric: Metric) {
  const value = measured(check, metric);
  const most = check.atMost !== undefined;
  const limit = check.atMost ?? check.atLeast ?? Number.NaN;
  const met = most ? value <= limit : value >= limit;
  const base = check.minus ? ` - ${check.minus}` : check.against ? ` ÷ ${check.against}` : "";
  const unit = check.against ? "×" : ` ${metric.unit}`;
  const text = `${check.metric}${base}: ${number(value)}${unit} (goal ${most ? "≤" : "≥"} ${limit})`;
  return { text, met, off: Math.abs(value / limit - 1) * 100 };
}

interface Verdict {
  line: string;
  met: boolean;
}

function verdicts(metrics: Map<string, Metric>, repeats: number): Verdict[] {
  const claim = repeats >= claimRepeats ? "" : ` (no claim: ${repeats} of ${claimRepeats} repeats)`;
  return goals().flatMap((goal) => {
    const parts = goal.flatMap((check) => {
      const metric = metrics.get(check.metric);
      return metric?.samples.ours ? [judge(check, metric)] : [];
    });
    if (parts.length === 0) return [];
    const met = parts.some((part) => part.met);
    const off = Math.min(...parts.map((part) => part.off));
    const by = met ? "" : `, by ${number(off)} %`;
    const text = parts.map((part) => part.text).join(" or ");
    return [{ met, line: `${met ? "met   " : "MISSED"} ${text}${by}${claim}` }];
  });
}

// --- main ---

function parsePlan(argv: string[]): Plan {
  const { values } = parseArgs({
    args: argv,
    options: {
      repeats: { type: "string", default: String(claimRepeats) },
      only: { type: "string", default: measureNames.join(",") },
      server: { type: "string", default: join(root, "server.ts") },
    },
  });
  const repeats = Number(values.repeats);
  if (!Number.isInteger(repeats) || repeats < 1) throw new Error("--repeats: not a count");
  const only = values.only.split(",").map((word) => {
    const name = measureNames.find((known) => known === word);
    if (name === undefined) throw new Error(`--only: "${word}" is not of ${measureNames}`);
    return name;
  });
  return { server: values.server, repeats, only };
}

async function run(plan: Plan, results: Results) {
  const { running, target: ready } = startTarget();
  const started: Running[] = [running];
  const needsBrowser = plan.only.includes("page") || plan.only.includes("hub");
  const browser = needsBrowser ? await launchBrowser() : undefined;
  const context: Context = { plan, results, target: await ready, bridges: [], browser };
  try {
    if (plan.only.some((name) => name === "echo" || name === "fifty" || name === "bulk")) {
      for (const kind of targetKinds) {
        for (const peer of peers) {
          const bridge = await startBridge(peer, plan.server, { target: context.target, kind });
          started.push(bridge);
          context.bridges.push({ peer, kind, bridge });
        }
      }
    }
    for (let repeat = 0; repeat < plan.repeats; repeat++) {
      results.repeat = repeat;
      const start = Date.now();
      await throughBridges(context);
      await onFreshBridges(context);
      await onPages(context);
      await underHub(context);
      const seconds = ((Date.now() - start) / 1000).toFixed(0);
      console.error(`repeat ${repeat + 1} of ${plan.repeats}: ${seconds} s`);
    }
  } finally {
    await browser?.close();
    await Promise.all(started.map((one) => one[Symbol.asyncDispose]()));
  }
}

async function main() {
  const plan = parsePlan(process.argv.slice(2));
  const setup = Bun.spawnSync(["sh", join(import.meta.dir, "setup.sh")], { stderr: "inherit" });
  if (!setup.success) throw new Error("test/bench/setup.sh failed");
  mkdirSync(runDir, { recursive: true, mode: 0o700 });
  // Playwright puts the browser's profile there.
  process.env.TMPDIR = runDir;
  const results: Results = { metrics: new Map(), failures: [], repeat: 0 };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => void removeRun().finally(() => process.exit(130)));
  }
  try {
    await run(plan, results);
  } finally {
    await removeRun();
  }
  const metrics = [...results.metrics.values()];
  const judged = verdicts(results.metrics, plan.repeats);
  const machine = `${cpus().length} × ${cpus()[0]?.model}, Bun ${Bun.version}`;
  console.log(`${plan.repeats} repeats, interleaved, on ${machine}\n`);
  console.log(report(metrics));
  console.log(`\n${judged.map(({ line }) => line).join("\n")}`);
  for (const failure of results.failures) console.log(`failed: ${failure}`);
  const file = join(root, "test", "artifacts", "bench.json");
  mkdirSync(join(root, "test", "artifacts"), { recursive: true });
  const { repeats } = plan;
  const data = { date: new Date().toISOString(), machine, repeats, metrics, verdicts: judged };
  await Bun.write(file, JSON.stringify({ ...data, failures: results.failures }, null, 2));
  process.exitCode = results.failures.length > 0 ? 1 : 0;
}

if (import.meta.main) await main();
