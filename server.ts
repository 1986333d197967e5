#!/usr/bin/env bun
/**
 * jupyter-desktop: a Linux desktop in the browser. One process serves the page with the viewer, carries the
 * page's WebSocket to a VNC server, and owns that VNC server and the desktop in it.
 *
 *   bunx jupyter-desktop            serve on http://127.0.0.1:6080 and print the address
 *   bunx jupyter-desktop setup      install a VNC server and a desktop
 *   bunx jupyter-desktop doctor     say what is missing, and what mends it
 *
 * Map: limits, config, pure helpers, log, auth, bridge, vnc, routes, setup, doctor, main.
 * Each section uses only the sections above it; `main` alone reads argv, env and signals.
 *
 *   argv + env -> loadConfig -> Config -> main -> Supervisor, Bridge -> createApp -> Bun.serve
 *   request    -> security headers -> authorize -> route -> page | asset | status | upgrade
 *   upgrade    -> supervisor.ready() -> dial VNC -> greeting is RFB -> server.upgrade -> replay -> bytes both ways
 *   signal     -> stop listening -> bridge.closeAll(1001) -> supervisor.close() -> exit code
 */
import { createCipheriv, createHash, randomBytes, timingSafeEqual } from "node:crypto";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { parseArgs } from "node:util";
import { brotliDecompressSync, gzipSync } from "node:zlib";
import type { Server, ServerWebSocket, Socket, SocketHandler, Subprocess } from "bun";
import { type Context, Hono, type MiddlewareHandler } from "hono";
import { getCookie, setCookie } from "hono/cookie";
import { secureHeaders } from "hono/secure-headers";
import { streamSSE } from "hono/streaming";
import { z } from "zod";
import packageJson from "./package.json" with { type: "json" };
import bundledXstartup from "./xstartup" with { type: "text" };

export const VERSION = packageJson.version;

// --- limits ---
// Every number of the program, with the reason for it.

/** The first Bun with pause() and resume() on a server's WebSocket; without them an upload has no bound. */
const MIN_BUN = "1.4.4";
const DEFAULT_PORT = 6080; // noVNC's and websockify's, so that people guess right
const DIAL_TIMEOUT_MS = 5_000; // a live local VNC server greets in a few ms
const COMMAND_READY_TIMEOUT_MS = 30_000; // a --vnc-command may be a slow wrapper: Debian's waits as long itself
const XVNC_READY_TIMEOUT_MS = 15_000; // Xvnc takes 50 ms; a cold network disk takes seconds
const PRE_OPEN_BYTES = 4_096; // what a VNC server may say before the browser speaks: greeting and security types
const MAX_FRAME_BYTES = 1 << 20; // noVNC sends 10 KiB at a time; only a paste by another client is larger
const MAX_BACKLOG_BYTES = 1 << 20; // to the browser: the VNC socket pauses at the first full send, so this is a net
const MAX_UPLOAD_QUEUE_BYTES = 4 << 20; // frames that were decoded already when the WebSocket was paused
const WS_IDLE_SECONDS = 60; // Bun pings within this time and drops a viewer that does not answer
const STOP_GRACE_MS = 2_000; // XFCE saves its session in well under a second
const KILL_WAIT_MS = 2_000; // after SIGKILL only a process in uninterruptible sleep is left
const REAP_POLL_MS = 20; // processes that are not our children give no notice of their end
const RETRY_FIRST_MS = 1_000;
const RETRY_MAX_MS = 30_000;
const GIVE_UP_FAILURES = 5; // quick failures within the window: it will not mend itself
const GIVE_UP_WINDOW_MS = 120_000;
const QUICK_EXIT_MS = 5_000; // an xstartup that ends well this fast was put into the background by its author
const LOG_TAIL_LINES = 40;
const LOG_LINE_CHARS = 500;
const TOKEN_BYTES = 24; // 192 bits: not guessable, still one line in a terminal
const MIN_TOKEN_CHARS = 8;
const GUESS_DELAY_FIRST_MS = 100;
const GUESS_DELAY_MAX_MS = 5_000;
const GUESSES_IN_FLIGHT = 16; // more wrong tokens than this at once are refused unread
const SOCKET_PATH_BYTES = 100; // sun_path holds 107; room for a suffix
const COOKIE_MAX_AGE_S = 30 * 24 * 3600;
const SSE_BEAT_MS = 25_000; // proxies end a connection that is silent for a minute
const RFB_GREETING = /^RFB \d{3}\.\d{3}\n$/; // RFC 6143, 7.1.1: 12 bytes
const RFB_GREETING_BYTES = 12;
const NO_AUTH = 1; // security types of RFC 6143, 7.1.2
const VNC_AUTH = 2;

// --- config ---
// One table; the parser, the environment look-up, --help and the README's table come from it.

/** Where a VNC server listens. */
export type Target = { kind: "unix"; path: string } | { kind: "tcp"; host: string; port: number };
type VncChoice = { kind: "auto" } | Target;

interface OptionSpec {
  readonly type: z.ZodType;
  readonly group: "Listen" | "Desktop" | "Security" | "Other";
  readonly help: string;
  /** Shown after the flag; none for a switch. */
  readonly hint?: string;
  readonly default?: string;
  readonly short?: string;
  readonly multiple?: true;
  /** Environment only: a secret on the command line is seen by everyone in `ps`. */
  readonly envOnly?: true;
  /** Another name of the environment variable, tried after ours. */
  readonly envAlias?: string;
}

const text = z.string().min(1, "must not be empty");
const toggle = z
  .enum(["true", "false", "1", "0"], "must be true or false")
  .transform((value) => /true|1/.test(value));
const file = text.transform((value) => path.resolve(value));
const choice = <const T extends readonly [string, ...string[]]>(...values: T) =>
  z.enum(values, `must be ${values.slice(0, -1).join(", ")} or ${values.at(-1)}`);

export const OPTIONS = {
  host: {
    type: text,
    group: "Listen",
    hint: "ADDRESS",
    default: "127.0.0.1",
    help: "address to listen on",
  },
  port: {
    type: z
      .string()
      .regex(/^\d{1,5}$/, "must be a number from 0 to 65535")
      .transform(Number)
      .refine((port) => port <= 65_535, "must be a number from 0 to 65535"),
    group: "Listen",
    hint: "PORT",
    short: "p",
    default: String(DEFAULT_PORT),
    help: "TCP port to listen on; 0 takes a free one",
  },
  unixSocket: {
    type: file.refine(
      (p) => Buffer.byteLength(p) <= SOCKET_PATH_BYTES,
      `must be at most ${SOCKET_PATH_BYTES} bytes long`,
    ),
    group: "Listen",
    hint: "PATH",
    help: "listen on a unix socket (mode 0600) instead of TCP",
  },
  baseUrl: {
    type: z
      .string()
      .transform((value) => `/${value}/`.replace(/\/{2,}/g, "/"))
      .refine(
        (value) => /^[\w\-.~%!$&'()*+,;=:@/]+$/.test(value),
        "must be a URL path such as /desk/",
      ),
    group: "Listen",
    hint: "PATH",
    default: "/",
    help: "path prefix that a reverse proxy keeps",
  },
  open: {
    type: toggle,
    group: "Listen",
    help: "open the page in a browser (default: when there is one on this screen)",
  },
  vnc: {
    type: z.string().transform((value, ctx): VncChoice => {
      const target = parseTarget(value);
      if (target) return target;
      ctx.addIssue("must be auto, unix:/path or tcp:host:port");
      return z.NEVER;
    }),
    group: "Desktop",
    hint: "TARGET",
    default: "auto",
    help: "VNC server to show: auto starts one; unix:/path or tcp:host:port attaches to one that runs",
  },
  vncCommand: {
    type: text,
    group: "Desktop",
    hint: "COMMAND",
    help: "shell command that starts the VNC server, listening where --vnc says, or on $JUPYTER_DESKTOP_VNC_SOCKET",
  },
  vncArg: {
    type: z.array(text),
    group: "Desktop",
    hint: "ARG",
    multiple: true,
    help: "further argument for Xvnc; may be repeated",
  },
  xstartup: {
    type: file,
    group: "Desktop",
    hint: "FILE",
    envAlias: "JUPYTER_REMOTE_DESKTOP_PROXY_XSTARTUP",
    help: "script that starts the desktop (default: ~/.vnc/xstartup if executable, else the bundled one)",
  },
  geometry: {
    type: z
      .string()
      .regex(/^[1-9]\d{1,4}x[1-9]\d{1,4}$/, "must be WIDTHxHEIGHT such as 1680x1050")
      .refine(
        (value) => value.split("x").every((side) => Number(side) <= 16_384),
        "must be at most 16384x16384",
      ),
    group: "Desktop",
    hint: "WxH",
    default: "1680x1050",
    help: "size of the desktop until a viewer's window sets it",
  },
  start: {
    type: choice("now", "visit"),
    group: "Desktop",
    hint: "WHEN",
    default: "now",
    help: "start the desktop now, or at the first visit",
  },
  vncPasswordFile: {
    type: file,
    group: "Security",
    hint: "FILE",
    help: "file with the password of the VNC server that --vnc or --vnc-command names",
  },
  token: {
    type: z.string().min(MIN_TOKEN_CHARS, `must have at least ${MIN_TOKEN_CHARS} characters`),
    group: "Security",
    envOnly: true,
    help: "the token that visitors need (default: a new one at each start)",
  },
  tokenFile: { type: file, group: "Security", hint: "FILE", help: "file with that token" },
  auth: {
    type: choice("auto", "token", "none"),
    group: "Security",
    hint: "MODE",
    default: "auto",
    help: "auto: a token on TCP, the file system on a unix socket; token: always; none: anyone",
  },
  allowNoAuth: {
    type: toggle,
    group: "Security",
    default: "false",
    help: "let --auth none hold on TCP, where every local user, or the network, can reach it",
  },
  allowOrigin: {
    type: z.array(
      z.string().regex(/^https?:\/\/[^/\s]+$/, "must be an origin such as https://lab.example.org"),
    ),
    group: "Security",
    hint: "ORIGIN",
    multiple: true,
    help: "another origin whose pages may connect; may be repeated",
  },
  logLevel: {
    type: choice("error", "warn", "info", "debug"),
    group: "Other",
    hint: "LEVEL",
    default: "info",
    help: "what to log on stderr; debug adds the desktop's own output",
  },
  yes: { type: toggle, group: "Other", short: "y", default: "false", help: "setup: do not ask" },
  help: { type: toggle, group: "Other", short: "h", default: "false", help: "show this help" },
  version: { type: toggle, group: "Other", short: "V", default: "false", help: "show the version" },
} as const satisfies Record<string, OptionSpec>;

type OptionName = keyof typeof OPTIONS;
type OptionValue<K extends OptionName> =
  | z.output<(typeof OPTIONS)[K]["type"]>
  | ((typeof OPTIONS)[K] extends { default: string } | { multiple: true } ? never : undefined);
const COMMANDS = ["serve", "setup", "doctor"] as const;
/** All options, checked; `command` is the subcommand, `vncPassword` the content of its file. */
export type Config = { readonly [K in OptionName]: OptionValue<K> } & {
  readonly command: (typeof COMMANDS)[number];
  readonly vncPassword: string | undefined;
};

/** The command line or the environment is wrong; the message lists all that is. Exit code 2. */
export class UsageError extends Error {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join("\n"));
    this.problems = problems;
  }
}

const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
const envName = (name: string) =>
  `JUPYTER_DESKTOP_${kebab(name).replaceAll("-", "_").toUpperCase()}`;
const isSwitch = (spec: OptionSpec) => !spec.hint && !spec.envOnly;
const specs = Object.entries(OPTIONS) as [OptionName, OptionSpec][];

interface RawOption {
  readonly value: string | string[];
  readonly from: string;
}

function readFlags(argv: readonly string[], problems: string[]) {
  const given = new Map<string, RawOption>();
  const flags = specs.filter(([, spec]) => !spec.envOnly);
  const byFlag = new Map(flags.map(([name, spec]) => [kebab(name), { name, spec }]));
  const { tokens } = parseArgs({
    args: [...argv],
    strict: false,
    tokens: true,
    options: Object.fromEntries(
      flags.map(([name, { short, hint }]) => [
        kebab(name),
        { type: hint ? "string" : "boolean", ...(short ? { short } : {}) } as const,
      ]),
    ),
  });
  /** Notes one flag; returns what is wrong with it. */
  const take = (rawName: string, name: string, text: string | undefined): string[] => {
    const negated = name.startsWith("no-");
    const entry = byFlag.get(negated ? name.slice(3) : name);
    if (!entry || (negated && entry.spec.hint)) return [`${rawName}: there is no such option`];
    const value = text ?? (entry.spec.hint ? undefined : String(!negated));
    if (value === undefined) return [`${rawName}: needs a value (${entry.spec.hint})`];
    const list = [...(given.get(entry.name)?.value ?? []), value];
    given.set(entry.name, { value: entry.spec.multiple ? list : value, from: rawName });
    return [];
  };
  const words: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") words.push(token.value);
    if (token.kind === "option") problems.push(...take(token.rawName, token.name, token.value));
  }
  return { given, words };
}

function readEnv(env: NodeJS.ProcessEnv, given: Map<string, RawOption>) {
  for (const [name, spec] of specs) {
    if (given.has(name) || name === "help" || name === "version") continue;
    for (const key of [envName(name), spec.envAlias]) {
      const value = key && env[key];
      if (!value || given.has(name)) continue;
      given.set(name, {
        value: spec.multiple ? value.split(/[\s,]+/).filter(Boolean) : value,
        from: key,
      });
    }
  }
}

/** Rules that hold between options; `given` tells a choice from a default. */
function crossCheck(config: Config, given: ReadonlyMap<string, RawOption>): string[] {
  const from = (name: string) => given.get(name)?.from ?? `--${kebab(name)}`;
  const attached = config.vnc.kind !== "auto" || config.vncCommand !== undefined;
  const rules: [boolean, string][] = [
    [
      config.unixSocket !== undefined && (given.has("port") || given.has("host")),
      `${from("unixSocket")}: cannot be combined with ${from(given.has("port") ? "port" : "host")}`,
    ],
    [
      config.auth === "none" && config.unixSocket === undefined && !config.allowNoAuth,
      `${from("auth")}: "none" on a TCP address lets in every user of this machine; add --allow-no-auth (${envName("allowNoAuth")}=true) if that is meant`,
    ],
    [
      config.auth === "none" && given.has("tokenFile"),
      `${from("tokenFile")}: is of no use with ${from("auth")} none`,
    ],
    [
      given.has("tokenFile") && given.has("token"),
      `${from("tokenFile")}: cannot be combined with ${envName("token")}`,
    ],
    ...(["xstartup", "geometry", "vncArg"] as const).map((name): [boolean, string] => [
      attached && given.has(name),
      `${from(name)}: works only with the VNC server that jupyter-desktop starts itself, not with ${from(config.vnc.kind === "auto" ? "vncCommand" : "vnc")}`,
    ]),
    [
      !attached && given.has("vncPasswordFile"),
      `${from("vncPasswordFile")}: works only with ${from("vnc")} unix:/path or tcp:host:port; the VNC server that jupyter-desktop starts has no password, it has a private socket`,
    ],
  ];
  return rules.filter(([broken]) => broken).map(([, problem]) => problem);
}

/** The checked value of one option, or undefined when it has none or a wrong one. */
function parseOption(
  [name, spec]: [OptionName, OptionSpec],
  raw: RawOption | undefined,
  problems: string[],
): unknown {
  const value = raw?.value ?? spec.default ?? (spec.multiple ? [] : undefined);
  if (value === undefined) return undefined;
  const result = spec.type.safeParse(value);
  if (result.success) return result.data;
  const names = spec.envOnly ? envName(name) : `--${kebab(name)} (${envName(name)})`;
  const shown = spec.envOnly ? "" : `, not "${[value].flat().join(" ")}"`;
  problems.push(...result.error.issues.map((issue) => `${names}: ${issue.message}${shown}`));
  return undefined;
}

/** The first line of the file that an option names. */
function readSecret(
  name: "tokenFile" | "vncPasswordFile",
  file: unknown,
  problems: string[],
): string | undefined {
  if (typeof file !== "string") return undefined;
  try {
    const secret = fs.readFileSync(file, "utf8").split("\n", 1)[0]?.trim() ?? "";
    if (name === "vncPasswordFile" || secret.length >= MIN_TOKEN_CHARS) return secret;
    problems.push(
      `--${kebab(name)} (${envName(name)}): the token in ${file} must have at least ${MIN_TOKEN_CHARS} characters`,
    );
  } catch (error) {
    problems.push(`--${kebab(name)} (${envName(name)}): cannot read ${file}: ${errorText(error)}`);
  }
  return undefined;
}

/**
 * The configuration from flags, then JUPYTER_DESKTOP_* variables, then defaults.
 * @throws UsageError listing every problem, each with its flag and its variable.
 */
export function loadConfig(argv: readonly string[], env: NodeJS.ProcessEnv): Config {
  const problems: string[] = [];
  const { given, words } = readFlags(argv, problems);
  readEnv(env, given);
  const command = COMMANDS.find((name) => name === (words[0] ?? "serve"));
  if (!command)
    problems.push(`${words[0]}: there is no such command; there are ${COMMANDS.join(", ")}`);
  for (const word of words.slice(1)) problems.push(`${word}: is one word too many`);
  const options = specs.map((entry) => [
    entry[0],
    parseOption(entry, given.get(entry[0]), problems),
  ]);
  const values = Object.fromEntries(options);
  const token = values.token ?? readSecret("tokenFile", values.tokenFile, problems);
  const vncPassword = readSecret("vncPasswordFile", values.vncPasswordFile, problems);
  const config: Config = { ...values, command, token, vncPassword };
  if (problems.length === 0) problems.push(...crossCheck(config, given));
  if (problems.length > 0) throw new UsageError(problems);
  return config;
}

function optionFlags(name: string, spec: OptionSpec): string {
  if (spec.envOnly) return "";
  const flag = `${isSwitch(spec) && spec.default === undefined ? "[no-]" : ""}${kebab(name)}`;
  return `${spec.short ? `-${spec.short}, ` : ""}--${flag}${spec.hint ? ` ${spec.hint}` : ""}`;
}

/** The text of --help. */
export function renderHelp(): string {
  const lines = [
    "Usage: jupyter-desktop [command] [options]",
    "",
    "  jupyter-desktop                         a desktop at http://127.0.0.1:6080/",
    "  jupyter-desktop --vnc tcp:127.0.0.1:5900   show a VNC server that runs already",
    "",
    "Commands:",
    "  serve      serve the desktop (default)",
    "  setup      install a VNC server and a desktop with this machine's package manager",
    "  doctor     check what a desktop needs, and say what mends it",
  ];
  for (const group of ["Listen", "Desktop", "Security", "Other"] as const) {
    lines.push("", `${group}:`);
    for (const [name, spec] of specs.filter(([, spec]) => spec.group === group)) {
      const note = spec.default && !isSwitch(spec) ? ` (default: ${spec.default})` : "";
      if (!spec.envOnly) lines.push(`  ${optionFlags(name, spec).padEnd(29)} ${spec.help}${note}`);
      else lines.push(`  ${envName(name).padEnd(29)} ${spec.help} (environment only)`);
    }
  }
  lines.push(
    "",
    "Each option has an environment variable: --base-url is JUPYTER_DESKTOP_BASE_URL. A flag wins over it.",
  );
  lines.push(
    "Exit codes: 0 asked to stop, 1 failed, 2 wrong usage; doctor: 1 when a desktop could not start.",
  );
  return `${lines.join("\n")}\n`;
}

/** The README's table of options, in Markdown. */
export function renderOptionTable(): string {
  const rows = specs.map(([name, spec]) => {
    const flags = spec.envOnly ? "" : `\`${optionFlags(name, spec)}\``;
    const env = name === "help" || name === "version" ? "" : `\`${envName(name)}\``;
    const value = spec.default && !isSwitch(spec) ? `\`${spec.default}\`` : "";
    return `| ${flags} | ${env} | ${value} | ${spec.help.replaceAll("|", "\\|")} |`;
  });
  return [
    "| flag | environment | default | what it does |",
    "| --- | --- | --- | --- |",
    ...rows,
  ].join("\n");
}

// --- pure helpers ---

/** `auto`, `unix:/path` or `tcp:host:port` (an IPv6 host in brackets); undefined for anything else. */
export function parseTarget(value: string): VncChoice | undefined {
  if (value === "auto") return { kind: "auto" };
  const unix = /^unix:(\/.+)$/.exec(value)?.[1];
  if (unix) return { kind: "unix", path: unix };
  const tcp = /^tcp:(?:\[([\da-fA-F:.]+)\]|([\w.-]+)):(\d{1,5})$/.exec(value);
  const host = tcp?.[1] ?? tcp?.[2];
  const port = Number(tcp?.[3]);
  return host && port >= 1 && port <= 65_535 ? { kind: "tcp", host, port } : undefined;
}

const targetText = (target: Target) =>
  target.kind === "unix" ? `unix:${target.path}` : `tcp:${joinHostPort(target.host, target.port)}`;

const joinHostPort = (host: string, port: number) =>
  `${host.includes(":") ? `[${host}]` : host}:${port}`;

export const escapeHtml = (value: string) =>
  value.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);

/**
 * Fills {{name}} in a page, escaped.
 * @throws Error for a name without a value, so that no page is served with a hole in it.
 */
export function renderPage(template: string, values: Readonly<Record<string, string>>): string {
  return template.replace(/\{\{(\w+)\}\}/g, (_, name: string) => {
    const value = values[name];
    if (value === undefined) throw new Error(`page template: no value for "${name}"`);
    return escapeHtml(value);
  });
}

/** Equal strings? In a time that does not depend on where they differ. */
export function safeEqual(left: string, right: string): boolean {
  const digest = (value: string) => createHash("sha256").update(value).digest();
  return timingSafeEqual(digest(left), digest(right));
}

/** Time to wait before try number `attempt` (from 1), in ms. */
export const backoffMs = (attempt: number) =>
  Math.min(RETRY_FIRST_MS * 2 ** (attempt - 1), RETRY_MAX_MS);

export const isRfbGreeting = (bytes: Uint8Array) =>
  RFB_GREETING.test(Buffer.from(bytes).toString("latin1"));

const errorText = (error: unknown) => (error instanceof Error ? error.message : String(error));

const errorCode = (error: unknown) =>
  error instanceof Error && "code" in error && typeof error.code === "string"
    ? error.code
    : undefined;

/**
 * A VncAuth answer (RFC 6143, 7.2.2): the 16-byte challenge, DES-encrypted with the first 8 bytes of the password,
 * the bits of each key byte in reverse, as every VNC server has them.
 */
export function vncAuthResponse(password: string, challenge: Uint8Array): Buffer {
  const key = Buffer.alloc(8);
  key.set(Buffer.from(password, "latin1").subarray(0, 8));
  for (const [i, byte] of key.entries())
    key[i] = Number.parseInt(byte.toString(2).padStart(8, "0").split("").reverse().join(""), 2);
  return createCipheriv("des-ecb", key, null).setAutoPadding(false).update(challenge);
}

// --- log ---
// One line an event on stderr: time, level, what, key=value. Secrets never pass.

const LEVELS = ["error", "warn", "info", "debug"] as const;
type Level = (typeof LEVELS)[number];
export type Log = (level: Level, event: string, fields?: Readonly<Record<string, unknown>>) => void;

export function createLog(
  level: Level,
  secrets: readonly string[],
  write: (line: string) => void,
): Log {
  return (at, event, fields = {}) => {
    if (LEVELS.indexOf(at) > LEVELS.indexOf(level)) return;
    const pairs = Object.entries(fields)
      .filter(([, value]) => value !== undefined && value !== null)
      .map(
        ([key, value]) =>
          ` ${key}=${/^[\w.:/@%+,-]+$/.test(String(value)) ? value : JSON.stringify(String(value))}`,
      );
    const line = `${new Date().toISOString()} ${at} ${event}${pairs.join("")}`;
    write(`${secrets.reduce((safe, secret) => safe.replaceAll(secret, "***"), line)}\n`);
  };
}

// --- auth ---
// Who may come in: a pure decision, which the routes' middleware carries out.

/** `open`: whoever can reach the listener is the user (a 0600 unix socket), or --auth none. */
export type AuthPolicy =
  | { kind: "open"; allowOrigins: readonly string[] }
  | { kind: "token"; token: string; allowOrigins: readonly string[] };

export type AuthDecision =
  { ok: true } | { ok: false; status: 401 | 403; reason: "no-token" | "wrong-token" | "origin" };

export interface AuthRequest {
  readonly method: string;
  readonly host: string | undefined;
  readonly origin: string | undefined;
  readonly upgrade: boolean;
  /** From the Authorization header, the query or the cookie, in this order. */
  readonly token: string | undefined;
}

/**
 * May this request pass? The Origin is checked on every upgrade and on every method that changes something: a
 * browser sends the cookie along from any page, and Bun upgrades whatever the Origin (RFC 6455, 10.2). Only hosts
 * are compared, since a TLS proxy changes the scheme.
 */
export function authorize(request: AuthRequest, policy: AuthPolicy): AuthDecision {
  const changes = request.upgrade || !["GET", "HEAD", "OPTIONS"].includes(request.method);
  if (changes && request.origin !== undefined && !policy.allowOrigins.includes(request.origin)) {
    const host = URL.canParse(request.origin) ? new URL(request.origin).host : undefined;
    const own = URL.canParse(`http://${request.host}`)
      ? new URL(`http://${request.host}`).host
      : undefined;
    // The default port is not part of an Origin, but it may be part of a Host: compare both ways of writing it.
    const same = host !== undefined && (host === own || `${host}:443` === own);
    if (!same) return { ok: false, status: 403, reason: "origin" };
  }
  if (policy.kind === "open") return { ok: true };
  if (!request.token) return { ok: false, status: 401, reason: "no-token" };
  if (!safeEqual(request.token, policy.token))
    return { ok: false, status: 403, reason: "wrong-token" };
  return { ok: true };
}

/** Makes guessing slow: each wrong token in a row is answered later than the one before, and few at a time. */
export class GuessLimiter {
  #wrong = 0;
  #inFlight = 0;

  /** More wrong answers wait than are let in: nothing is compared, so nothing is learned. */
  get full(): boolean {
    return this.#inFlight >= GUESSES_IN_FLIGHT;
  }

  /** Waits as long as a wrong token costs now, in all at most GUESS_DELAY_MAX_MS. */
  async punish(sleep: (ms: number) => Promise<void> = Bun.sleep): Promise<void> {
    const delay = Math.min(GUESS_DELAY_FIRST_MS * 2 ** this.#wrong, GUESS_DELAY_MAX_MS);
    this.#wrong += 1;
    this.#inFlight += 1;
    await sleep(delay);
    this.#inFlight -= 1;
  }

  forgive(): void {
    this.#wrong = 0;
  }
}

// --- bridge ---
// Moves bytes between a browser's WebSocket and a VNC socket. Knows nothing of HTTP, auth or the supervisor.

/** Why a WebSocket ended, in its close code; the page decides by it what to do next. */
export const CLOSE = {
  goingDown: 1001,
  textFrame: 1003,
  vncLost: 1011,
  tooLarge: 1009,
  desktopEnded: 4410,
  desktopCrashed: 4411,
  gaveUp: 4412,
} as const;

/** Why the desktop is not there: a code that the page turns into a sentence, and its parameters. */
export interface Cause {
  readonly code: string;
  readonly detail: Readonly<Record<string, string | number | null>>;
}

/** The VNC server or the desktop cannot be had. */
export class VncError extends Error {
  readonly reason: Cause;

  constructor(code: string, detail: Cause["detail"] = {}) {
    super(`${code} ${JSON.stringify(detail)}`);
    this.reason = { code, detail };
  }
}

const connect = <T>(target: Target, socket: SocketHandler<T>, data: T) =>
  target.kind === "unix"
    ? Bun.connect<T>({ unix: target.path, socket, data })
    : Bun.connect<T>({ hostname: target.host, port: target.port, socket, data });

type BrowserSocket = ServerWebSocket<Session>;
type VncSocket = Socket<Session>;

// One set of handlers for all sessions: each socket carries its session as its data.
const vncHandlers: SocketHandler<Session> = {
  binaryType: "uint8array",
  open: (socket) => socket.data.vncOpen(socket),
  data: (socket, bytes) => socket.data.fromVnc(bytes),
  drain: (socket) => socket.data.vncDrained(),
  end: (socket) => socket.data.end(CLOSE.vncLost, "the VNC server closed the connection"),
  close: (socket) => socket.data.end(CLOSE.vncLost, "the VNC server closed the connection"),
  error: (socket, error) => socket.data.end(CLOSE.vncLost, error.message),
};

/**
 * One browser with one VNC socket. It dials first, so that a dead VNC server is an HTTP error and not a broken
 * WebSocket, and so that nothing of the browser's has to be buffered. end() is the only place where it ends.
 */
export class Session {
  readonly #onEnd: (session: Session) => void;
  #vnc: VncSocket | undefined;
  #browser: BrowserSocket | undefined;
  #ended: { code: number; reason: string } | undefined;
  /** What VNC said before the WebSocket was open. */
  #early: Buffer = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  /** Bytes for VNC that its socket has not taken: whole frames, of the first of them the part from #sent on. */
  readonly #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #sent = 0;
  /** With a VNC password, the part of the handshake that the browser still expects of us. */
  #greeting: "version" | "security" | undefined;
  #greetingBytes = 0;

  constructor(onEnd: (session: Session) => void) {
    this.#onEnd = onEnd;
  }

  /**
   * Connects to the target and waits for its RFB greeting; with a password, logs in to it.
   * @throws VncError when it cannot be reached, is no VNC server, or refuses the password.
   */
  async dial(target: Target, password: string | undefined): Promise<void> {
    const name = targetText(target);
    const timer = setTimeout(
      () => this.end(CLOSE.vncLost, `no answer in ${DIAL_TIMEOUT_MS} ms`),
      DIAL_TIMEOUT_MS,
    );
    try {
      void connect(target, vncHandlers, this).catch((error) =>
        this.end(CLOSE.vncLost, errorText(error)),
      );
      const greeting = await this.#read(RFB_GREETING_BYTES);
      if (!isRfbGreeting(greeting)) throw new VncError("not-vnc", { target: name });
      if (password === undefined) this.#early = Buffer.concat([greeting, this.#early]);
      else await this.#logIn(greeting, password);
      this.#vnc?.pause();
    } catch (error) {
      this.end(CLOSE.vncLost, errorText(error));
      if (error instanceof VncError) throw error;
      throw new VncError("vnc-unreachable", {
        target: name,
        error: this.#ended?.reason ?? errorText(error),
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** The VNC side of the security handshake (RFC 6143, 7.1.2); the browser is then shown one without a password. */
  async #logIn(greeting: Buffer, password: string): Promise<void> {
    const minor = Number(greeting.toString("latin1", 8, 11));
    const version = minor >= 8 ? 8 : minor === 7 ? 7 : 3; // 3.5 is to be taken for 3.3, says the RFC
    this.#vnc?.write(`RFB 003.00${version}\n`);
    const type = await this.#chooseSecurity(version);
    if (type === VNC_AUTH) this.#vnc?.write(vncAuthResponse(password, await this.#read(16)));
    // Up to 3.7 there is no result after "None".
    const result = type === VNC_AUTH || version === 8 ? (await this.#read(4)).readUInt32BE() : 0;
    if (result !== 0)
      throw new VncError("vnc-password", { error: "the VNC server refused the password" });
    this.#early = Buffer.concat([Buffer.from("RFB 003.008\n"), this.#early]);
    this.#greeting = "version";
  }

  async #chooseSecurity(version: 3 | 7 | 8): Promise<number> {
    const offered =
      version === 3
        ? [(await this.#read(4)).readUInt32BE()]
        : [...(await this.#read((await this.#read(1)).readUInt8()))];
    const type = [VNC_AUTH, NO_AUTH].find((known) => offered.includes(known));
    if (type === undefined)
      throw new VncError("vnc-password", { error: "the VNC server offers no VncAuth" });
    if (version !== 3) this.#vnc?.write(Uint8Array.of(type));
    return type;
  }

  #untilChange(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    return promise;
  }

  async #read(count: number): Promise<Buffer> {
    while (this.#early.length < count && !this.#ended) await this.#untilChange();
    if (this.#ended) throw new Error(this.#ended.reason);
    const bytes = this.#early.subarray(0, count);
    this.#early = this.#early.subarray(count);
    return bytes;
  }

  vncOpen(socket: VncSocket): void {
    if (this.#ended) return void socket.terminate(); // the dial timed out before
    this.#vnc = socket;
    socket.setNoDelay(true);
    this.#wake?.();
  }

  fromVnc(bytes: Uint8Array): void {
    const browser = this.#browser;
    if (!browser) return this.#beforeOpen(bytes);
    const sent = browser.send(bytes);
    // Bun: -1 is queued but full, 0 is dropped. After a drop the stream is broken for good.
    if (sent === -1) this.#vnc?.pause();
    else if (sent === 0) this.end(CLOSE.vncLost, "bytes for the browser were lost");
  }

  #beforeOpen(bytes: Uint8Array): void {
    this.#early = Buffer.concat([this.#early, bytes]);
    if (this.#early.length > PRE_OPEN_BYTES)
      this.end(CLOSE.vncLost, "the VNC server sent too much before the handshake");
    this.#wake?.();
  }

  browserOpen(browser: BrowserSocket): void {
    this.#browser = browser;
    if (this.#ended) return void browser.close(this.#ended.code, this.#ended.reason);
    const early = this.#early;
    this.#early = Buffer.alloc(0);
    browser.send(early);
    this.#vnc?.resume();
  }

  fromBrowser(message: string | Uint8Array): void {
    if (typeof message === "string") return this.end(CLOSE.textFrame, "text frame: RFB is binary");
    if (this.#greeting) return this.#greet(message);
    this.#toVnc(message);
  }

  /** Plays the server of an RFB 3.8 handshake without a password, since ours with VNC is done. */
  #greet(message: Uint8Array): void {
    const wanted = this.#greeting === "version" ? RFB_GREETING_BYTES : 1;
    const part = message.subarray(0, wanted - this.#greetingBytes);
    this.#greetingBytes += part.length;
    if (this.#greetingBytes < wanted) return;
    this.#greetingBytes = 0;
    if (this.#greeting === "version") {
      this.#greeting = "security";
      this.#browser?.send(Uint8Array.of(1, NO_AUTH)); // a list of one
    } else {
      this.#greeting = undefined;
      this.#browser?.send(new Uint8Array(4)); // SecurityResult: OK
    }
    if (part.length < message.length) this.fromBrowser(message.subarray(part.length));
  }

  #toVnc(bytes: Uint8Array): void {
    if (!this.#vnc) return;
    const taken = this.#queuedBytes > 0 ? 0 : this.#vnc.write(bytes);
    if (taken === bytes.length) return;
    if (taken < 0) return this.end(CLOSE.vncLost, "the VNC server closed the connection");
    if (this.#queue.length === 0) {
      this.#sent = taken;
      this.#browser?.pause();
    }
    this.#queue.push(bytes);
    this.#queuedBytes += bytes.length - taken;
    if (this.#queuedBytes > MAX_UPLOAD_QUEUE_BYTES)
      this.end(CLOSE.tooLarge, "more input than the VNC server takes");
  }

  vncDrained(): void {
    while (this.#vnc && this.#queue[0]) {
      const head = this.#queue[0];
      const taken = this.#vnc.write(head, this.#sent, head.length - this.#sent);
      if (taken < 0) return this.end(CLOSE.vncLost, "the VNC server closed the connection");
      this.#sent += taken;
      this.#queuedBytes -= taken;
      if (this.#sent < head.length) return;
      this.#queue.shift();
      this.#sent = 0;
      if (this.#queue.length === 0) this.#browser?.resume();
    }
  }

  browserDrained(): void {
    // Only resume: a send of 16 KiB or more made here can stall for ever (oven-sh/bun#38177).
    this.#vnc?.resume();
  }

  /** Ends both sides, once. The reason goes to the browser, in at most 123 bytes (RFC 6455, 5.5). */
  end(code: number, reason: string): void {
    if (this.#ended) return;
    this.#ended = { code, reason: Buffer.from(reason).subarray(0, 120).toString() };
    this.#vnc?.end();
    this.#browser?.close(code, this.#ended.reason);
    this.#queue.length = 0;
    this.#wake?.();
    this.#onEnd(this);
  }

  get outcome(): { code: number; reason: string } | undefined {
    return this.#ended;
  }
}

/** The sessions of one desktop. */
export class Bridge {
  readonly #sessions = new Set<Session>();
  readonly #log: Log;
  readonly #onChange: () => void;

  constructor(log: Log, onChange: () => void = () => {}) {
    this.#log = log;
    this.#onChange = onChange;
  }

  get size(): number {
    return this.#sessions.size;
  }

  /**
   * A session whose VNC side is up, ready for the upgrade.
   * @throws VncError
   */
  async connect(target: Target, password: string | undefined): Promise<Session> {
    const session = new Session((ended) => {
      if (!this.#sessions.delete(ended)) return;
      this.#log("info", "viewer left", { ...ended.outcome, viewers: this.size });
      this.#onChange();
    });
    await session.dial(target, password);
    this.#sessions.add(session);
    this.#log("info", "viewer came", { viewers: this.size });
    this.#onChange();
    return session;
  }

  closeAll(code: number, reason: string): void {
    for (const session of [...this.#sessions]) session.end(code, reason);
  }

  /** What Bun.serve needs; the session travels as the WebSocket's data. */
  static readonly websocket = {
    maxPayloadLength: MAX_FRAME_BYTES,
    backpressureLimit: MAX_BACKLOG_BYTES,
    closeOnBackpressureLimit: true,
    idleTimeout: WS_IDLE_SECONDS,
    sendPings: true,
    perMessageDeflate: false, // the encodings of VNC are compressed already
    open: (browser: BrowserSocket) => browser.data.browserOpen(browser),
    message: (browser: BrowserSocket, message: string | Buffer<ArrayBuffer>) =>
      browser.data.fromBrowser(message),
    drain: (browser: BrowserSocket) => browser.data.browserDrained(),
    close: (browser: BrowserSocket, code: number, reason: string) =>
      browser.data.end(code, reason || "the viewer left"),
  };
}

// --- vnc ---
// Starts the VNC server and the desktop, watches them, and ends them without a trace.

type VncState = "idle" | "starting" | "ready" | "ended" | "backoff" | "failed" | "stopping";

/** What runs now. `exited` tells why it came to its end by itself; `stop` ends all of it. */
export interface Running {
  readonly target: Target;
  readonly display: string | null;
  readonly vnc: string | null;
  readonly exited: Promise<Cause>;
  stop(): Promise<void>;
}

/** Causes that trying again does not mend before somebody did something. */
const FINAL_CAUSES: ReadonlySet<string> = new Set([
  "no-vnc-server",
  "no-desktop",
  "unwritable",
  "disk-full",
  "vnc-password",
  "internal",
]);

/** The last lines of what VNC server and desktop printed, for the page. */
export class LogTail {
  #lines: string[] = [];
  readonly #log: Log;

  constructor(log: Log) {
    this.#log = log;
  }

  get lines(): readonly string[] {
    return this.#lines;
  }

  clear(): void {
    this.#lines = [];
  }

  /** Reads a child's output to its end. */
  async follow(stream: ReadableStream<Uint8Array>, from: string): Promise<void> {
    let rest = "";
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = (lines.pop() ?? "").slice(0, LOG_LINE_CHARS);
      for (const line of lines) this.#add(line, from);
    }
    this.#add(rest, from);
  }

  #add(raw: string, from: string): void {
    const line = raw.trimEnd().slice(0, LOG_LINE_CHARS);
    if (!line) return;
    this.#lines.push(line);
    if (this.#lines.length > LOG_TAIL_LINES) this.#lines.shift();
    this.#log("debug", "output", { from, line });
  }
}

/** The shape of desktop/api/status, but for what the routes add. */
export interface VncStatus {
  readonly state: VncState;
  readonly since: string;
  readonly cause: string | null;
  readonly detail: Cause["detail"];
  readonly attempt: number;
  readonly nextRetryMs: number | null;
  readonly log: readonly string[];
  readonly display: string | null;
  readonly vnc: string | null;
}

/**
 * The life of one desktop: idle -> starting -> ready -> ended | backoff | failed, and stopping from each of them.
 * It is given `launch`, which starts one; it decides when.
 */
export class Supervisor {
  readonly #launch: () => Promise<Running>;
  readonly #tail: LogTail;
  readonly #log: Log;
  readonly #listeners = new Set<() => void>();
  #state: VncState = "idle";
  #since = new Date();
  #cause: Cause | undefined;
  #running: Running | undefined;
  #starting: Promise<void> | undefined;
  #stopping: Promise<void> | undefined;
  /** When it failed, in ms; of the last GIVE_UP_WINDOW_MS only. */
  #failures: number[] = [];
  #retry: { timer: Timer; at: number } | undefined;

  constructor(launch: () => Promise<Running>, tail: LogTail, log: Log) {
    this.#launch = launch;
    this.#tail = tail;
    this.#log = log;
  }

  get status(): VncStatus {
    return {
      state: this.#state,
      since: this.#since.toISOString(),
      cause: this.#cause?.code ?? null,
      detail: this.#cause?.detail ?? {},
      attempt: this.#failures.length,
      nextRetryMs: this.#retry ? Math.max(0, this.#retry.at - Date.now()) : null,
      log: this.#state === "ready" ? [] : this.#tail.lines,
      display: this.#running?.display ?? null,
      vnc: this.#running?.vnc ?? null,
    };
  }

  /** Calls `listener` after every transition; returns what ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The target, once it is up: undefined when there is none and none is being started. */
  async ready(): Promise<Target | undefined> {
    if (this.#state === "idle") void this.start();
    await this.#starting;
    return this.#state === "ready" ? this.#running?.target : undefined;
  }

  /** Somebody opened the page: a desktop that was not started, or that ended, is started. */
  visit(): void {
    if (this.#state === "idle" || this.#state === "ended") void this.start();
  }

  /** Starts the desktop, unless it is up or starting. */
  async start(): Promise<void> {
    await this.#stopping;
    if (this.#state === "ready" || this.#state === "starting") return this.#starting;
    this.#failures = [];
    return this.#begin();
  }

  async restart(): Promise<void> {
    await this.stop();
    return this.start();
  }

  /** Ends the desktop and all that belongs to it; the state is then `ended`, with the cause `stopped`. */
  async stop(): Promise<void> {
    await this.#starting;
    await this.#stopping;
    if (this.#state === "idle" || this.#state === "ended") return;
    await this.#winding(() => this.#enter("ended", { code: "stopped", detail: {} }));
  }

  /** The one way down: ends what runs, then enters the state that `then` chooses. */
  #winding(then: () => void, cause?: Cause): Promise<void> {
    this.#cancelRetry();
    this.#stopping ??= (async () => {
      if (this.#running) {
        this.#enter("stopping", cause);
        await this.#running.stop();
        this.#running = undefined;
      }
      this.#stopping = undefined;
      then();
    })();
    return this.#stopping;
  }

  #begin(): Promise<void> {
    this.#cancelRetry();
    this.#tail.clear();
    this.#enter("starting");
    this.#starting = this.#run().finally(() => {
      this.#starting = undefined;
    });
    return this.#starting;
  }

  async #run(): Promise<void> {
    try {
      const running = await this.#launch();
      this.#running = running;
      this.#enter("ready");
      void running.exited.then((cause) => {
        if (this.#running !== running || this.#stopping) return; // stop() is at it
        void this.#winding(() => this.#fell(cause), cause);
      });
    } catch (error) {
      this.#fell(
        error instanceof VncError
          ? error.reason
          : { code: "internal", detail: { error: errorText(error) } },
      );
    }
  }

  /** After it came to its end by itself: a log-out ends it, anything else is tried again, ever later. */
  #fell(cause: Cause): void {
    if (cause.code === "logged-out") return this.#enter("ended", cause);
    const now = Date.now();
    this.#failures = [...this.#failures.filter((at) => now - at < GIVE_UP_WINDOW_MS), now];
    if (FINAL_CAUSES.has(cause.code) || this.#failures.length >= GIVE_UP_FAILURES)
      return this.#enter("failed", cause);
    const wait = backoffMs(this.#failures.length);
    this.#retry = { at: now + wait, timer: setTimeout(() => void this.#begin(), wait) };
    this.#enter("backoff", cause);
  }

  #cancelRetry(): void {
    clearTimeout(this.#retry?.timer);
    this.#retry = undefined;
  }

  #enter(state: VncState, cause?: Cause): void {
    this.#state = state;
    this.#since = new Date();
    this.#cause = cause;
    this.#log(state === "failed" || state === "backoff" ? "warn" : "info", `desktop ${state}`, {
      cause: cause?.code,
      ...cause?.detail,
      display: this.#running?.display,
    });
    for (const listener of this.#listeners) listener();
  }
}

/** Starts nothing: the server runs already, is somebody else's, and is never stopped. */
export const attach = (target: Target) => async (): Promise<Running> => ({
  target,
  display: null,
  vnc: null,
  exited: new Promise(() => {}),
  stop: async () => {},
});

export interface DesktopOptions {
  readonly runtimeDir: string;
  readonly geometry: string;
  readonly vncArgs: readonly string[];
  readonly xstartup: string | undefined;
  readonly env: NodeJS.ProcessEnv;
  readonly tail: LogTail;
}

/** Every process of a desktop has this variable in its environment: by it all of them are found and ended. */
const MARK = "JUPYTER_DESKTOP_SESSION";

/** Processes of this mark that live; a zombie's environment reads as empty. */
function markedPids(mark: string): number[] {
  const entry = `${MARK}=${mark}\0`;
  return fs.readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      return fs.readFileSync(`/proc/${name}/environ`, "latin1").includes(entry)
        ? [Number(name)]
        : [];
    } catch {
      return []; // ended meanwhile, or another user's
    }
  });
}

function signalAll(pids: readonly number[], signal: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // ended meanwhile
    }
  }
}

/** TERM to all of a desktop, KILL to what is left after a grace; waits until nothing is left. */
async function endMarked(mark: string): Promise<void> {
  for (const [signal, graceMs] of [
    ["SIGTERM", STOP_GRACE_MS],
    ["SIGKILL", KILL_WAIT_MS],
  ] as const) {
    const deadline = Date.now() + graceMs;
    const signalled = new Set<number>();
    for (
      let pids = markedPids(mark);
      pids.length > 0 && Date.now() < deadline;
      pids = markedPids(mark)
    ) {
      // What starts while the rest ends (a D-Bus service, say) is signalled too, each process once.
      signalAll(
        pids.filter((pid) => !signalled.has(pid)),
        signal,
      );
      for (const pid of pids) signalled.add(pid);
      await Bun.sleep(REAP_POLL_MS);
    }
  }
}

// Waits for the end of this server, however it comes: its end of the pipe closes even after SIGKILL.
const REAPER = `trap '' INT TERM HUP; read -r _
for signal in TERM KILL; do
  found=$(grep -lsze "^${MARK}=$1\\$" /proc/[0-9]*/environ)
  [ -n "$found" ] || break
  for file in $found; do pid=\${file#/proc/}; kill -"$signal" "\${pid%/environ}" 2>/dev/null; done
  sleep 1
done
[ "$(cat "$2/mark" 2>/dev/null)" = "$1" ] && rm -rf "$2"`;

/**
 * Makes the runtime directory, and a tiny process that ends what carries the mark and removes the directory once
 * this server is gone. The file `mark` in it tells whose it is, should another server have taken it over by then.
 */
function startReaper(mark: string, runtimeDir: string): { stop(): Promise<void> } {
  try {
    fs.mkdirSync(runtimeDir, { mode: 0o700, recursive: true });
    fs.writeFileSync(path.join(runtimeDir, "mark"), mark, { mode: 0o600 });
  } catch (error) {
    throw placeError(runtimeDir, error);
  }
  const reaper = Bun.spawn(["/bin/sh", "-c", REAPER, "jupyter-desktop-reaper", mark, runtimeDir], {
    stdio: ["pipe", "ignore", "ignore"],
    env: { PATH: SYSTEM_PATH },
    cwd: "/",
    detached: true,
  });
  return {
    stop: async () => {
      await endMarked(mark);
      await reaper.stdin.end();
      await reaper.exited;
    },
  };
}

const SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/**
 * Variables that a desktop must not have from whoever starts it: another session's (its display, its bus), library
 * paths of conda and Python that break GTK and D-Bus, and secrets.
 */
const NOT_FOR_DESKTOP =
  /^(DISPLAY|XAUTHORITY|WAYLAND_DISPLAY|SESSION_MANAGER|DBUS_|DESKTOP_SESSION|GDMSESSION|XDG_(SESSION_|CURRENT_DESKTOP|MENU_PREFIX|DATA_DIRS|SEAT|VTNR)|WINDOWID|LD_|PYTHON(HOME|PATH)|QT_|GTK_|GDK_|GIO_|GSETTINGS_|FONTCONFIG_|JPY_API_TOKEN|JUPYTERHUB_|JUPYTER_DESKTOP_|npm_|NODE_ENV|BUN_|INIT_CWD|TMUX|STY|TERM)/;

/** The desktop's environment: whose it is, where things are, and nothing of another session's. */
export function desktopEnv(env: NodeJS.ProcessEnv, runtimeDir: string): Record<string, string> {
  const kept = Object.entries(env).filter(([name]) => !NOT_FOR_DESKTOP.test(name));
  const userPath = env.PATH || SYSTEM_PATH;
  const uid = process.getuid?.() ?? 0;
  const user = env.USER || env.LOGNAME || userName() || `uid${uid}`;
  return {
    ...(Object.fromEntries(kept) as Record<string, string>),
    USER: user,
    LOGNAME: user,
    SHELL: env.SHELL || "/bin/bash",
    HOME: usableHome(env, runtimeDir),
    XDG_RUNTIME_DIR: isDir(env.XDG_RUNTIME_DIR) ? String(env.XDG_RUNTIME_DIR) : runtimeDir,
    XDG_SESSION_TYPE: "x11",
    // System directories first, or conda's dbus-daemon is taken for the system's and XFCE does not start.
    PATH: [...new Set([...SYSTEM_PATH.split(":"), ...userPath.split(":")])].join(":"),
    JUPYTER_DESKTOP_USER_PATH: userPath,
    JUPYTER_DESKTOP_RUNTIME_DIR: runtimeDir,
  };
}

function userName(): string | undefined {
  try {
    return os.userInfo().username;
  } catch {
    return undefined; // no passwd entry, as with `docker run --user 12345`
  }
}

const isDir = (name: string | undefined) =>
  name !== undefined && (fs.statSync(name, { throwIfNoEntry: false })?.isDirectory() ?? false);

function writable(name: string): boolean {
  try {
    fs.accessSync(name, fs.constants.W_OK | fs.constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** HOME, or a private one for as long as the desktop lives when there is none that can be written. */
function usableHome(env: NodeJS.ProcessEnv, runtimeDir: string): string {
  const home = env.HOME || "/";
  if (home !== "/" && isDir(home) && writable(home)) return home;
  const own = path.join(runtimeDir, "home");
  fs.mkdirSync(own, { mode: 0o700, recursive: true });
  return own;
}

/** Package managers, and what each installs. apt was run; the lists of the others are by their package indexes. */
const PACKAGES = {
  "apt-get": {
    refresh: "apt-get update",
    install: "apt-get install -y --no-install-recommends",
    vnc: "tigervnc-standalone-server",
    desktop:
      "xfce4 xfce4-terminal dbus-x11 x11-xserver-utils adwaita-icon-theme fonts-dejavu-core libgl1-mesa-dri",
  },
  dnf: {
    install: "dnf install -y",
    vnc: "tigervnc-server-minimal",
    desktop:
      "xfce4-session xfwm4 xfdesktop xfce4-panel xfce4-settings xfce4-terminal Thunar dbus-daemon xset dejavu-sans-fonts",
  },
  apk: {
    install: "apk add",
    vnc: "tigervnc",
    desktop: "xfce4 xfce4-terminal dbus dbus-x11 xset font-dejavu adwaita-icon-theme",
  },
  pacman: {
    install: "pacman -Sy --needed --noconfirm",
    vnc: "tigervnc",
    desktop: "xfce4 xfce4-terminal xorg-xset ttf-dejavu",
  },
  zypper: {
    install: "zypper --non-interactive install --no-recommends",
    vnc: "xorg-x11-Xvnc",
    desktop:
      "xfce4-session xfwm4 xfdesktop xfce4-panel xfce4-settings xfce4-terminal thunar dbus-1 xset dejavu-fonts",
  },
};

type PackageManager = keyof typeof PACKAGES;
type PackageGroup = "vnc" | "desktop";

/** The command lines that install these groups here; undefined without a package manager that is known. */
export function installLines(
  groups: readonly PackageGroup[],
  which = (name: string) => Bun.which(name, { PATH: SYSTEM_PATH }),
): string[] | undefined {
  const manager = (Object.keys(PACKAGES) as PackageManager[]).find((name) => which(name));
  if (!manager) return undefined;
  const entry: { install: string; refresh?: string } & Record<PackageGroup, string> =
    PACKAGES[manager];
  const install = [entry.install, ...groups.map((group) => entry[group])].join(" ");
  return entry.refresh ? [entry.refresh, install] : [install];
}

/** The same as one line to type, with sudo where it is needed. */
function installCommand(...groups: PackageGroup[]): string {
  const sudo = process.getuid?.() === 0 ? "" : "sudo ";
  const lines = installLines(groups);
  return lines
    ? lines.map((line) => `${sudo}${line}`).join(" && ")
    : "install TigerVNC (Xvnc) and a desktop such as XFCE with your package manager";
}

export interface Xvnc {
  readonly file: string;
  readonly kind: "TigerVNC" | "TurboVNC" | "Xvnc";
  readonly version: string;
}

/** The VNC server on this machine, told apart by what it says of itself. */
export async function findXvnc(pathList: string): Promise<Xvnc | undefined> {
  const names = ["Xtigervnc", "Xvnc"].map((name) => Bun.which(name, { PATH: pathList }));
  for (const file of [...names, Bun.which("/opt/TurboVNC/bin/Xvnc")]) {
    if (!file) continue;
    const asked = Bun.spawn([file, "-version"], {
      stdio: ["ignore", "pipe", "pipe"],
      timeout: DIAL_TIMEOUT_MS,
    });
    const said = (
      await Promise.all([new Response(asked.stdout).text(), new Response(asked.stderr).text()])
    ).join("\n");
    const match = /(TigerVNC|TurboVNC)\D*(\d+(?:\.\d+)+)/.exec(said);
    return {
      file,
      kind: match?.[1] === "TurboVNC" ? "TurboVNC" : match ? "TigerVNC" : "Xvnc",
      version: match?.[2] ?? "",
    };
  }
  return undefined;
}

export function xvncArgs(xvnc: Xvnc, options: DesktopOptions): string[] {
  const own = [
    ["-displayfd", "3"],
    ["-rfbunixpath", path.join(options.runtimeDir, "vnc.sock")],
    ["-rfbunixmode", "0600"],
    ["-auth", path.join(options.runtimeDir, "Xauthority")],
    ["-SecurityTypes", "None"], // the socket is in a directory that only this user can enter
    ["-geometry", options.geometry],
    ["-depth", "24"],
    ["-desktop", "Desktop"],
    ["-nolisten", "tcp"],
    ["-AlwaysShared"],
    ["-noreset"], // a desktop's first client may come and go before the next
    ["-s", "0"], // no blank screen
  ];
  // TigerVNC opens a TCP port for all unless told not to (GHSA-vrq4-9hc3-cgp7); TurboVNC opens none and refuses -1.
  if (xvnc.kind !== "TurboVNC")
    own.push(["-rfbport", "-1"], ["-AcceptSetDesktopSize=1"], ["-SendPrimary=0"]);
  return [...own.flat(), ...options.vncArgs];
}

/** An Xauthority file with one cookie for every display: the number is not known before Xvnc runs (field family "wild"). */
export function xauthority(cookie: Uint8Array): Buffer {
  const field = (bytes: Uint8Array) =>
    Buffer.concat([Buffer.from([bytes.length >> 8, bytes.length & 255]), bytes]);
  const wild = Buffer.from([0xff, 0xff]);
  return Buffer.concat([
    wild,
    field(Buffer.alloc(0)),
    field(Buffer.alloc(0)),
    field(Buffer.from("MIT-MAGIC-COOKIE-1")),
    field(cookie),
  ]);
}

/** Turns "cannot write there" into the sentence for it. */
function placeError(place: string, error: unknown): VncError {
  if (errorCode(error) === "ENOSPC" || errorCode(error) === "EDQUOT")
    return new VncError("disk-full", { path: place });
  return new VncError("unwritable", { path: place, error: errorText(error) });
}

/** How a child ended, as parameters of a cause. */
const exitDetail = (child: Subprocess, startedMs: number): Cause["detail"] => ({
  code: child.exitCode,
  signal: child.signalCode ?? null,
  afterMs: Date.now() - startedMs,
});

/** The script that starts the desktop: the option's, the user's own, or the bundled one (undefined). */
function chooseXstartup(options: DesktopOptions): string | undefined {
  if (options.xstartup) return options.xstartup;
  const { HOME = "/", XDG_CONFIG_HOME = path.join(HOME, ".config") } = options.env;
  const own = [path.join(HOME, ".vnc/xstartup"), path.join(XDG_CONFIG_HOME, "tigervnc/xstartup")];
  return own.find((name) => {
    try {
      fs.accessSync(name, fs.constants.X_OK);
      return fs.statSync(name).isFile();
    } catch {
      return false;
    }
  });
}

/** What xstartup exits with when no desktop is installed (EX_UNAVAILABLE of sysexits.h). */
const NO_DESKTOP_EXIT = 69;

function startSession(
  options: DesktopOptions,
  env: Record<string, string>,
): { exited: Promise<Cause> } {
  const script = chooseXstartup(options);
  const startedMs = Date.now();
  let child: Subprocess<"ignore", "pipe", "pipe">;
  try {
    // The bundled script needs no file: it goes to sh as its -c.
    const command = script ? [script] : ["/bin/sh", "-c", bundledXstartup, "xstartup"];
    const cwd = env.HOME ?? "/";
    child = Bun.spawn(command, { env, cwd, stdio: ["ignore", "pipe", "pipe"], detached: true });
  } catch (error) {
    const detail = {
      code: null,
      signal: null,
      afterMs: 0,
      xstartup: script ?? "",
      error: errorText(error),
    };
    return { exited: Promise.resolve({ code: "desktop-exited", detail }) };
  }
  void options.tail.follow(child.stdout, "desktop");
  void options.tail.follow(child.stderr, "desktop");
  const exited = child.exited.then((code): Cause => {
    if (!script && code === NO_DESKTOP_EXIT)
      return { code: "no-desktop", detail: { command: installCommand("desktop") } };
    if (code === 0 && Date.now() - startedMs > QUICK_EXIT_MS)
      return { code: "logged-out", detail: {} };
    return {
      code: "desktop-exited",
      detail: { ...exitDetail(child, startedMs), xstartup: script ?? "" },
    };
  });
  return { exited };
}

/** The display number, when Xvnc has said it; a VncError when it ends or is silent instead. */
async function displayNumber(
  child: Subprocess<"ignore", "pipe", "pipe">,
  startedMs: number,
): Promise<string> {
  const timer = setTimeout(() => child.kill("SIGKILL"), XVNC_READY_TIMEOUT_MS);
  let said = "";
  for await (const chunk of child.stdout) {
    said += Buffer.from(chunk).toString();
    if (said.includes("\n")) break;
  }
  clearTimeout(timer);
  if (/^\d+\n/.test(said)) return `:${said.trim()}`;
  await child.exited;
  if (Date.now() - startedMs >= XVNC_READY_TIMEOUT_MS)
    throw new VncError("vnc-timeout", { ms: XVNC_READY_TIMEOUT_MS });
  throw new VncError("vnc-exited", exitDetail(child, startedMs));
}

/** Writes the display's cookie; returns the environment of all that may use it. */
function prepareDisplay(options: DesktopOptions, mark: string): Record<string, string> {
  const authFile = path.join(options.runtimeDir, "Xauthority");
  try {
    fs.writeFileSync(authFile, xauthority(randomBytes(16)), { mode: 0o600 });
    return { ...desktopEnv(options.env, options.runtimeDir), XAUTHORITY: authFile, [MARK]: mark };
  } catch (error) {
    throw placeError(options.runtimeDir, error);
  }
}

/**
 * Starts Xvnc on a private socket and the desktop in it.
 * @throws VncError
 */
export async function launchDesktop(options: DesktopOptions): Promise<Running> {
  const { runtimeDir, tail } = options;
  const xvnc = await findXvnc(`${options.env.PATH ?? ""}:${SYSTEM_PATH}`);
  if (!xvnc) throw new VncError("no-vnc-server", { command: installCommand("vnc", "desktop") });
  const mark = randomBytes(12).toString("hex");
  const { stop } = startReaper(mark, runtimeDir);
  try {
    const env = prepareDisplay(options, mark);
    const startedMs = Date.now();
    // The shell makes descriptor 3 of the pipe that we read and then becomes Xvnc.
    const command = [
      "/bin/sh",
      "-c",
      'exec "$@" 3>&1 1>&2',
      "sh",
      xvnc.file,
      ...xvncArgs(xvnc, options),
    ];
    const child = Bun.spawn(command, {
      env,
      cwd: runtimeDir,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    void tail.follow(child.stderr, "vnc");
    const display = await displayNumber(child, startedMs);
    const session = startSession(options, { ...env, DISPLAY: display });
    const vncExited = child.exited.then(() => ({
      code: "vnc-exited",
      detail: exitDetail(child, startedMs),
    }));
    return {
      target: { kind: "unix", path: path.join(runtimeDir, "vnc.sock") },
      display,
      vnc: `${xvnc.kind} ${xvnc.version}`.trim(),
      exited: Promise.race([vncExited, session.exited]),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Does something accept connections there? */
async function accepts(target: Target): Promise<boolean> {
  try {
    const socket = await connect(target, { data() {}, error() {} }, undefined);
    socket.end();
    return true;
  } catch {
    return false;
  }
}

/**
 * Starts the user's own command and waits until something listens on the target.
 * @throws VncError
 */
export async function launchCommand(
  command: string,
  target: Target,
  options: DesktopOptions,
): Promise<Running> {
  const mark = randomBytes(12).toString("hex");
  const { stop } = startReaper(mark, options.runtimeDir);
  const startedMs = Date.now();
  // The user's environment but for our secrets: the command may be for the display of this very session.
  const {
    JUPYTER_DESKTOP_TOKEN: _,
    JUPYTERHUB_API_TOKEN: __,
    JPY_API_TOKEN: ___,
    ...inherited
  } = options.env;
  const socket = target.kind === "unix" ? { JUPYTER_DESKTOP_VNC_SOCKET: target.path } : {};
  const env = { ...inherited, ...socket, [MARK]: mark };
  const child = Bun.spawn(["/bin/sh", "-c", command], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  void options.tail.follow(child.stdout, "vnc");
  void options.tail.follow(child.stderr, "vnc");
  // A wrapper such as vncserver may end well and leave the server running, so only a failure ends the wait.
  while (child.exitCode === null || child.exitCode === 0) {
    if (await accepts(target)) {
      const exited = child.exited.then((code) =>
        code === 0 && markedPids(mark).length > 0
          ? new Promise<Cause>(() => {})
          : { code: "vnc-exited", detail: exitDetail(child, startedMs) },
      );
      return { target, display: null, vnc: null, exited, stop };
    }
    if (Date.now() - startedMs > COMMAND_READY_TIMEOUT_MS) {
      await stop();
      throw new VncError("vnc-timeout", {
        ms: COMMAND_READY_TIMEOUT_MS,
        target: targetText(target),
      });
    }
    await Bun.sleep(REAP_POLL_MS);
  }
  await stop();
  throw new VncError("vnc-exited", { ...exitDetail(child, startedMs), command });
}

/**
 * The directory of this server's sockets, cookie and state: the same after a restart, private, and short enough for
 * a socket's path.
 * @throws VncError when no place can be written, or when it belongs to somebody else.
 */
export function chooseRuntimeDir(name: string, env: NodeJS.ProcessEnv): string {
  const uid = process.getuid?.() ?? 0;
  const places = [
    ...(env.XDG_RUNTIME_DIR ? [path.join(env.XDG_RUNTIME_DIR, "jupyter-desktop")] : []),
    ...[env.TMPDIR, "/tmp"].flatMap((tmp) =>
      tmp ? [path.join(tmp, `jupyter-desktop-${uid}`)] : [],
    ),
  ];
  let problem: VncError | undefined;
  for (const place of places) {
    const dir = path.join(place, name);
    if (Buffer.byteLength(path.join(dir, "vnc.sock")) > SOCKET_PATH_BYTES) continue;
    try {
      fs.mkdirSync(place, { mode: 0o700, recursive: true });
      const stat = fs.lstatSync(place);
      // Anyone may make a directory of this name in /tmp before us, and read what we then put there.
      if (!stat.isDirectory() || stat.uid !== uid || (stat.mode & 0o077) !== 0) {
        throw new Error("it is not a private directory of this user (mode 0700)");
      }
      fs.mkdirSync(dir, { mode: 0o700, recursive: true });
      fs.accessSync(dir, fs.constants.W_OK);
      return dir;
    } catch (error) {
      problem ??= placeError(place, error);
    }
  }
  throw (
    problem ??
    new VncError("unwritable", {
      path: places.join(", "),
      error: "every path is too long for a socket",
    })
  );
}

// --- routes ---
// The one place where auth, bridge and supervisor meet.

/** viewer/dist/assets.json, as viewer/build.ts writes it. */
export interface ViewerAssets {
  readonly hash: string;
  readonly index: string;
  readonly login: string;
  /** CSP hash of the log-in page's style, which is in the page: a stranger gets no other file. */
  readonly loginStyle: string;
  readonly files: Readonly<Record<string, { readonly type: string; readonly br: string }>>;
}

interface Asset {
  readonly type: string;
  readonly etag: string;
  readonly br: Uint8Array<ArrayBuffer>;
  readonly gzip: Uint8Array<ArrayBuffer>;
  readonly raw: Uint8Array<ArrayBuffer>;
}

export interface AppOptions {
  readonly baseUrl: string;
  readonly title: string;
  readonly policy: AuthPolicy;
  readonly cookieName: string;
  readonly vncPassword: string | undefined;
  readonly assets: ViewerAssets;
  readonly supervisor: Supervisor;
  readonly bridge: Bridge;
  readonly log: Log;
}

type Env = { Bindings: { server: Server<Session> } };

const SENTENCES = {
  "no-token":
    "This desktop needs a token: it is in the address that jupyter-desktop printed at its start.",
  "wrong-token":
    "That token is wrong: the right one is in the address that jupyter-desktop printed at its start.",
  origin: "A page of another site may not use this desktop: add its origin with --allow-origin.",
  busy: "Too many wrong tokens at once: try again in a few seconds.",
} as const;

const wantsPage = (c: Context) => /\btext\/html\b/.test(c.req.header("accept") ?? "");
const isUpgrade = (c: Context) => c.req.header("upgrade")?.toLowerCase() === "websocket";

function securityHeaders(assets: ViewerAssets): MiddlewareHandler<Env> {
  return secureHeaders({
    contentSecurityPolicy: {
      defaultSrc: ["'none'"],
      scriptSrc: ["'self'"],
      styleSrc: ["'self'", assets.loginStyle],
      connectSrc: ["'self'"],
      fontSrc: ["'self'"],
      imgSrc: ["'self'", "data:", "blob:"],
      manifestSrc: ["'self'"],
      baseUri: ["'none'"],
      formAction: ["'self'"],
      frameAncestors: ["'self'"],
    },
    referrerPolicy: "same-origin", // not less: the log-in form would then send Origin: null
    strictTransportSecurity: false, // the proxy's to decide, for its whole host
    xFrameOptions: "SAMEORIGIN",
  });
}

function requestToken(c: Context, cookieName: string): string | undefined {
  const bearer = /^(?:bearer|token) +(\S+)$/i.exec(c.req.header("authorization") ?? "")?.[1];
  return bearer ?? c.req.query("token") ?? getCookie(c, cookieName);
}

/** Guards every route that is mounted after it. */
function guard(options: AppOptions, limiter: GuessLimiter): MiddlewareHandler<Env> {
  const { policy, cookieName, log } = options;
  return async (c, next) => {
    if (limiter.full) return c.text(`${SENTENCES.busy}\n`, 429);
    const { method } = c.req;
    const token = requestToken(c, cookieName);
    const facts = {
      method,
      host: c.req.header("host"),
      origin: c.req.header("origin"),
      upgrade: isUpgrade(c),
      token,
    };
    const decision = authorize(facts, policy);
    if (decision.ok) {
      if (
        method !== "GET" ||
        isUpgrade(c) ||
        c.req.query("token") === undefined ||
        policy.kind !== "token"
      )
        return next();
      return exchangeToken(c, options);
    }
    log("warn", "refused", { reason: decision.reason, method, path: c.req.path });
    if (decision.reason === "wrong-token") await limiter.punish();
    const sentence = SENTENCES[decision.reason];
    if (decision.reason !== "origin" && wantsPage(c)) return loginPage(c, options, decision);
    return c.text(`${sentence}\n`, decision.status);
  };
}

/** Puts the token into a cookie and takes it out of the address, so that it stays in no history and no log. */
function exchangeToken(c: Context, { policy, cookieName, baseUrl }: AppOptions): Response {
  if (policy.kind === "token") {
    const secure =
      c.req.header("x-forwarded-proto") === "https" || new URL(c.req.url).protocol === "https:";
    setCookie(c, cookieName, policy.token, {
      path: baseUrl,
      httpOnly: true,
      sameSite: "Lax",
      secure,
      maxAge: COOKIE_MAX_AGE_S,
    });
  }
  const query = new URLSearchParams(c.req.query());
  query.delete("token");
  // Relative, so that it holds behind a proxy that strips a prefix: the last part of the path, or this directory.
  const here = c.req.path.split("/").at(-1) || "./";
  return c.redirect(query.size > 0 ? `${here}?${query}` : here, 303);
}

function loginPage(
  c: Context,
  { assets, title, baseUrl }: AppOptions,
  decision: { status: 401 | 403; reason: keyof typeof SENTENCES },
): Response | Promise<Response> {
  const values = {
    title,
    base_url: relativeBase(c.req.path, baseUrl),
    hash: assets.hash,
    message: decision.reason === "wrong-token" ? SENTENCES["wrong-token"] : "",
  };
  c.header("cache-control", "no-store");
  return c.html(renderPage(assets.login, values), decision.status);
}

/** From a path under the base back to the base: "./", "../", … */
const relativeBase = (requestPath: string, baseUrl: string) =>
  "../".repeat(Math.max(0, requestPath.slice(baseUrl.length).split("/").length - 1)) || "./";

function openAssets({ files }: ViewerAssets): Map<string, Asset> {
  return new Map(
    Object.entries(files).map(([name, { type, br }]) => {
      const compressed = new Uint8Array(Buffer.from(br, "base64"));
      const raw = new Uint8Array(brotliDecompressSync(compressed));
      const etag = `"${createHash("sha256").update(raw).digest("base64url").slice(0, 16)}"`;
      return [
        name,
        { type, etag, br: compressed, gzip: new Uint8Array(gzipSync(raw, { level: 9 })), raw },
      ];
    }),
  );
}

function serveAsset(c: Context, asset: Asset, hash: string): Response {
  c.header("etag", asset.etag);
  c.header("vary", "accept-encoding");
  c.header(
    "cache-control",
    c.req.query("v") === hash ? "public, max-age=31536000, immutable" : "no-cache",
  );
  if (c.req.header("if-none-match") === asset.etag) return c.body(null, 304);
  const accepted = c.req.header("accept-encoding") ?? "";
  const encoding = (["br", "gzip"] as const).find((name) =>
    new RegExp(`\\b${name}\\b(?!\\s*;\\s*q=0(?:\\.0*)?\\b)`).test(accepted),
  );
  if (encoding) c.header("content-encoding", encoding);
  c.header("content-type", asset.type);
  return c.body(asset[encoding ?? "raw"]);
}

/** The upgrade: VNC first, so that its failure is an answer and not a dead WebSocket. */
async function upgrade(
  c: Context<Env>,
  { supervisor, bridge, vncPassword, log }: AppOptions,
): Promise<Response> {
  const target = await supervisor.ready();
  if (!target)
    return c.text(
      `The desktop is not running (${supervisor.status.state}): see desktop/api/status.\n`,
      503,
    );
  let session: Session;
  try {
    session = await bridge.connect(target, vncPassword);
  } catch (error) {
    if (!(error instanceof VncError)) throw error;
    log("warn", "vnc not reached", { cause: error.reason.code, ...error.reason.detail });
    return c.json({ cause: error.reason.code, detail: error.reason.detail }, 502);
  }
  const offered = (c.req.header("sec-websocket-protocol") ?? "").split(/\s*,\s*/);
  const headers = offered.includes("binary") ? { "Sec-WebSocket-Protocol": "binary" } : undefined;
  const done = c.env.server.upgrade(c.req.raw, { data: session, ...(headers ? { headers } : {}) });
  // Bun answers the request itself after an upgrade; this Response is not sent.
  if (done) return new Response(null);
  session.end(CLOSE.vncLost, "the browser left before the WebSocket was open");
  return c.text("That is no valid WebSocket handshake.\n", 400);
}

/** The whole HTTP side: a Hono app, with Bun's server in its bindings. */
export function createApp(options: AppOptions): Hono<Env> {
  const { baseUrl, assets, supervisor, bridge, log, title } = options;
  const app = new Hono<Env>({ strict: true }).basePath(baseUrl);
  const files = openAssets(assets);
  const status = () => ({ ...supervisor.status, viewers: bridge.size, version: VERSION });
  const index = (c: Context<Env>) => {
    if (isUpgrade(c)) return upgrade(c, options);
    if (wantsPage(c)) supervisor.visit();
    const values = {
      title,
      base_url: relativeBase(c.req.path, baseUrl),
      version: VERSION,
      hash: assets.hash,
    };
    return c.html(renderPage(assets.index, values), 200, { "cache-control": "no-cache" });
  };
  const socket = (c: Context<Env>) =>
    isUpgrade(c)
      ? upgrade(c, options)
      : c.text("This address takes WebSockets only.\n", 426, {
          upgrade: "websocket",
          connection: "Upgrade",
        });
  const routes: Record<
    string,
    {
      GET?: (c: Context<Env>) => Response | Promise<Response>;
      POST?: (c: Context<Env>) => Response | Promise<Response>;
    }
  > = {
    "/": { GET: index },
    "/desktop": { GET: (c) => c.redirect(`desktop/${new URL(c.req.url).search}`) },
    "/desktop/": { GET: index },
    "/desktop-websockify": { GET: socket },
    "/desktop-websockify/": { GET: socket },
    "/desktop/api/status": {
      GET: (c) =>
        /text\/event-stream/.test(c.req.header("accept") ?? "")
          ? statusStream(c, options, status)
          : c.json(status(), 200, { "cache-control": "no-store" }),
    },
    "/desktop/api/start": { POST: (c) => act(c, supervisor.start()) },
    "/desktop/api/stop": { POST: (c) => act(c, supervisor.stop()) },
    "/desktop/api/restart": { POST: (c) => act(c, supervisor.restart()) },
  };
  const act = async (c: Context<Env>, work: Promise<void>) => {
    await work;
    return c.json(status());
  };
  const limiter = new GuessLimiter();
  app.use(securityHeaders(assets));
  app.get("/healthz", (c) => c.text("ok\n"));
  app.post("/login", (c) => login(c, options, limiter));
  app.use(guard(options, limiter));
  app.get("/login", (c) => c.redirect("./"));
  for (const [name, asset] of files) {
    routes[`/desktop/static/${name}`] = { GET: (c) => serveAsset(c, asset, assets.hash) };
  }
  for (const [route, methods] of Object.entries(routes)) {
    if (methods.GET) app.get(route, methods.GET);
    if (methods.POST) app.post(route, methods.POST);
    const allow = Object.keys(methods)
      .flatMap((method) => (method === "GET" ? ["GET", "HEAD"] : [method]))
      .join(", ");
    app.all(route, (c) => c.text(`This address takes ${allow} only.\n`, 405, { allow }));
  }
  app.notFound((c) => c.text("There is nothing at this address.\n", 404));
  app.onError((error, c) => {
    log("error", "request failed", { path: c.req.path, error: errorText(error) });
    return c.text("Something went wrong in jupyter-desktop: its log has the reason.\n", 500);
  });
  return app;
}

/** The log-in form: the token goes into the cookie, and the person to the desktop. */
async function login(
  c: Context<Env>,
  options: AppOptions,
  limiter: GuessLimiter,
): Promise<Response> {
  const { policy } = options;
  if (limiter.full) return c.text(`${SENTENCES.busy}\n`, 429);
  const form = await c.req.parseBody();
  const token = typeof form.token === "string" ? form.token.trim() : undefined;
  const facts = {
    method: "POST",
    host: c.req.header("host"),
    origin: c.req.header("origin"),
    upgrade: false,
    token,
  };
  const decision = authorize(facts, policy);
  if (!decision.ok) {
    options.log("warn", "refused", { reason: decision.reason, method: "POST", path: c.req.path });
    if (decision.reason === "origin") return c.text(`${SENTENCES.origin}\n`, 403);
    if (decision.reason === "wrong-token") await limiter.punish();
    return loginPage(c, options, decision);
  }
  limiter.forgive();
  const response = exchangeToken(c, options);
  response.headers.set("location", "./");
  return response;
}

/** The status at once and after every change, as server-sent events. */
function statusStream(
  c: Context<Env>,
  { supervisor }: AppOptions,
  status: () => unknown,
): Response {
  c.env.server.timeout(c.req.raw, 0); // Bun ends a silent response after 10 s
  c.header("x-accel-buffering", "no"); // nginx would hold the events back
  return streamSSE(c, async (stream) => {
    const { promise: gone, resolve } = Promise.withResolvers<void>();
    const send = () => void stream.writeSSE({ data: JSON.stringify(status()) });
    const stop = supervisor.onChange(send);
    stream.onAbort(resolve);
    send();
    const beat = setInterval(() => void stream.write(": alive\n\n"), SSE_BEAT_MS);
    await gone;
    clearInterval(beat);
    stop();
  });
}

// --- setup ---
// Installs what is missing, by the machine's own package manager.

/** The groups of packages without which there is no desktop here. */
async function missingGroups(env: NodeJS.ProcessEnv): Promise<PackageGroup[]> {
  const pathList = `${SYSTEM_PATH}:${env.PATH ?? ""}`;
  const missing: PackageGroup[] = [];
  if (!(await findXvnc(pathList))) missing.push("vnc");
  if (!findDesktop(pathList)) missing.push("desktop");
  return missing;
}

/** The desktops that the bundled xstartup knows, in its order. */
const DESKTOPS = [
  "xfce4-session",
  "lxqt-session",
  "mate-session",
  "openbox",
  "icewm-session",
  "fluxbox",
  "twm",
] as const;

const findDesktop = (pathList: string) =>
  DESKTOPS.find((name) => Bun.which(name, { PATH: pathList }));

/** The setup command. Returns the exit code. */
async function setup(
  config: Config,
  env: NodeJS.ProcessEnv,
  say: (line: string) => void,
): Promise<number> {
  const missing = await missingGroups(env);
  if (missing.length === 0) return 0;
  const lines = installLines(missing);
  if (!lines) {
    say(
      `There is no ${missing.join(" and no ")} here, and no package manager that jupyter-desktop knows.\nTo mend it: ${installCommand(...missing)}`,
    );
    return 1;
  }
  if (process.getuid?.() !== 0) {
    say(
      `A desktop needs packages that only root can install. Type:\n\n  ${installCommand(...missing)}\n\nand then the same command again.`,
    );
    return 1;
  }
  say(
    `A desktop needs packages that are not here. To run:\n\n${lines.map((line) => `  ${line}`).join("\n")}\n`,
  );
  const asked = !config.yes && process.stdin.isTTY;
  if (asked && !/^(y(es)?)?$/i.test(prompt("Install them now? [Y/n]") ?? "n")) return 1;
  for (const line of lines) {
    const run = Bun.spawn(line.split(" "), {
      stdio: ["ignore", 2, 2], // stdout is for answers
      env: { ...env, DEBIAN_FRONTEND: "noninteractive" },
    });
    if ((await run.exited) !== 0) {
      say(`This failed with ${run.exitCode}: ${line}\nIts own message is above.`);
      return 1;
    }
  }
  return 0;
}

// --- doctor ---
// Checks what a desktop needs, and prints the command that mends each.

interface Check {
  readonly what: string;
  /** Without it no desktop starts. */
  readonly needed: boolean;
  readonly ok: boolean;
  readonly found: string;
  readonly mend?: string;
}

/** What OpenGL programs would draw with: Xvnc's own GLX renders in software, with Mesa. */
function openGlCheck(pathList: string): Check {
  const pattern = new Bun.Glob("{*-linux-gnu*/,}{dri/,}{swrast_dri,libgallium-*}.so");
  const mesa = ["/usr/lib", "/usr/lib64"]
    .filter(isDir)
    .some((dir) => !pattern.scanSync({ cwd: dir, onlyFiles: false }).next().done);
  const gpu = fs.existsSync("/dev/nvidia0")
    ? "an NVIDIA GPU"
    : fs.existsSync("/dev/dri")
      ? "a GPU in /dev/dri"
      : "no GPU";
  const vgl = Bun.which("vglrun", { PATH: pathList }) ? ", VirtualGL" : "";
  const found = `${mesa ? "llvmpipe (software)" : "no Mesa driver"}, ${gpu}${vgl}`;
  return {
    what: "OpenGL renderer",
    needed: false,
    ok: mesa,
    found,
    mend: installCommand("desktop"),
  };
}

/** Where X clients look for their server: root makes it once, and everyone may add to it. */
function socketDirCheck(): Check {
  const dir = "/tmp/.X11-unix";
  const stat = fs.statSync(dir, { throwIfNoEntry: false });
  const mode = stat ? (stat.mode & 0o7777).toString(8) : "";
  const ok = stat === undefined ? writable("/tmp") : mode === "1777" || writable(dir);
  return {
    what: dir,
    needed: true,
    ok,
    found: stat ? `mode ${mode}` : "not there yet: Xvnc makes it",
    mend: `sudo mkdir -p ${dir} && sudo chmod 1777 ${dir}`,
  };
}

function runtimeDirCheck(env: NodeJS.ProcessEnv): Check {
  const what = "runtime directory";
  try {
    const dir = chooseRuntimeDir("doctor", env);
    fs.rmdirSync(dir);
    return { what, needed: true, ok: true, found: path.dirname(dir) };
  } catch (error) {
    return {
      what,
      needed: true,
      ok: false,
      found: errorText(error),
      mend: "export TMPDIR=$(mktemp -d)",
    };
  }
}

/** The doctor command: a line a check. Returns the exit code: 1 when a desktop could not start. */
async function doctor(env: NodeJS.ProcessEnv, say: (line: string) => void): Promise<number> {
  const pathList = `${SYSTEM_PATH}:${env.PATH ?? ""}`;
  const which = (...names: string[]) =>
    names.map((name) => Bun.which(name, { PATH: pathList })).find((found) => found !== null);
  const xvnc = await findXvnc(pathList);
  const desktop = findDesktop(pathList);
  const bus = which("dbus-run-session", "dbus-launch");
  const fonts = ["/usr/share/fonts", "/usr/local/share/fonts"].find(
    (dir) => isDir(dir) && fs.readdirSync(dir).length > 0,
  );
  const checks: Check[] = [
    {
      what: "VNC server",
      needed: true,
      ok: xvnc !== undefined,
      found: xvnc ? `${xvnc.kind} ${xvnc.version} (${xvnc.file})` : "none",
      mend: installCommand("vnc"),
    },
    {
      what: "desktop",
      needed: true,
      ok: desktop !== undefined,
      found: desktop ?? "none",
      mend: installCommand("desktop"),
    },
    {
      what: "D-Bus",
      needed: desktop === "xfce4-session",
      ok: bus !== undefined,
      found: bus ?? "no dbus-run-session",
      mend: installCommand("desktop"),
    },
    {
      what: "fonts",
      needed: false,
      ok: fonts !== undefined,
      found: fonts ?? "none: text shows as boxes",
      mend: installCommand("desktop"),
    },
    socketDirCheck(),
    runtimeDirCheck(env),
    openGlCheck(pathList),
  ];
  for (const { what, ok, needed, found, mend } of checks) {
    say(`${ok ? "ok     " : needed ? "MISSING" : "warning"}  ${what}: ${found}`);
    if (!ok && mend) say(`         to mend it: ${mend}`);
  }
  return checks.some((check) => check.needed && !check.ok) ? 1 : 0;
}

// --- main ---
// The only part that reads argv, env and signals. Importing this file does nothing.

/** The page as it was built, or the command that builds it. */
async function loadAssets(): Promise<ViewerAssets> {
  try {
    return (await import("./viewer/dist/assets.json")).default;
  } catch (error) {
    throw new Error(`the viewer is not built: type "bun run build" (${errorText(error)})`);
  }
}

const usesToken = (config: Config) =>
  config.auth === "token" || (config.auth === "auto" && config.unixSocket === undefined);

/** What launches the VNC server that the configuration asks for. */
function chooseLaunch(config: Config, options: DesktopOptions): () => Promise<Running> {
  const own: Target = { kind: "unix", path: path.join(options.runtimeDir, "vnc.sock") };
  const target = config.vnc.kind === "auto" ? own : config.vnc;
  const { vncCommand } = config;
  if (vncCommand !== undefined) return () => launchCommand(vncCommand, target, options);
  return config.vnc.kind === "auto" ? () => launchDesktop(options) : attach(config.vnc);
}

/** A socket file that a killed server left behind is removed; a live one is not. */
async function clearStaleSocket(file: string): Promise<void> {
  const stat = fs.lstatSync(file, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isSocket())
    throw new Error(`${file} is there and is no socket: choose another path for --unix-socket`);
  if (await accepts({ kind: "unix", path: file }))
    throw new Error(`another server listens on ${file}: stop it, or choose another --unix-socket`);
  fs.unlinkSync(file);
}

type Fetch = (request: Request, server: Server<Session>) => Response | Promise<Response>;

async function listen(config: Config, fetch: Fetch): Promise<Server<Session>> {
  const common = { fetch, websocket: Bridge.websocket };
  if (config.unixSocket === undefined) {
    try {
      return Bun.serve({ ...common, hostname: config.host, port: config.port });
    } catch (error) {
      const where = joinHostPort(config.host, config.port);
      if (errorCode(error) !== "EADDRINUSE")
        throw new Error(`cannot listen on ${where}: ${errorText(error)}`);
      throw new Error(
        `another program listens on ${where}: stop it, or add --port 0 to take a free port`,
      );
    }
  }
  await clearStaleSocket(config.unixSocket);
  const umask = process.umask(0o177); // the socket is private from its first moment
  try {
    return Bun.serve({ ...common, unix: config.unixSocket });
  } catch (error) {
    throw new Error(`cannot listen on ${config.unixSocket}: ${errorText(error)}`);
  } finally {
    process.umask(umask);
  }
}

/** Says where the desktop is, and opens it where there is a screen to open it on. */
function announce(config: Config, url: URL, env: NodeJS.ProcessEnv): void {
  console.log(`Desktop: ${config.unixSocket ? `unix:${config.unixSocket}` : url.href}`);
  if (config.unixSocket) return;
  const screen = (env.DISPLAY || env.WAYLAND_DISPLAY) && !env.SSH_CONNECTION;
  const opener = Bun.which("xdg-open");
  const wanted = config.open ?? (screen && process.stdout.isTTY);
  if (wanted && screen && opener) {
    Bun.spawn([opener, url.href], {
      stdio: ["ignore", "ignore", "ignore"],
      detached: true,
    }).unref();
  } else if (process.stdout.isTTY || env.SSH_CONNECTION || config.open) {
    const sshHost = env.SSH_CONNECTION?.split(" ")[2] ?? os.hostname();
    console.log(
      `From another machine, type there: ssh -L ${url.port}:${joinHostPort(url.hostname, Number(url.port))} ${userName() ?? "user"}@${sshHost}`,
    );
  }
}

/** Resolves with 0 at the first signal that asks to stop; a second one ends the process at once. */
function untilSignal(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let asked = false;
  for (const [signal, number] of [
    ["SIGINT", 2],
    ["SIGTERM", 15],
    ["SIGHUP", 1],
  ] as const) {
    process.on(signal, () => {
      if (asked) process.exit(128 + number);
      asked = true;
      resolve();
    });
  }
  return promise;
}

/** Tells the viewers of a desktop that went down why, in a close code. */
function closeViewers(supervisor: Supervisor, bridge: Bridge): void {
  const { state, cause } = supervisor.status;
  if (state === "ended") bridge.closeAll(CLOSE.desktopEnded, cause ?? "");
  if (state === "backoff") bridge.closeAll(CLOSE.desktopCrashed, cause ?? "");
  if (state === "failed") bridge.closeAll(CLOSE.gaveUp, cause ?? "");
}

/** The serve command: until a signal. */
async function serve(config: Config, env: NodeJS.ProcessEnv): Promise<number> {
  const stopped = untilSignal(); // first of all: as PID 1 a signal without a handler is ignored
  const token = usesToken(config)
    ? (config.token ?? randomBytes(TOKEN_BYTES).toString("base64url"))
    : undefined;
  const secrets = [token, config.vncPassword].flatMap((secret) => secret || []);
  const log = createLog(config.logLevel, secrets, (line) => process.stderr.write(line));
  const assets = await loadAssets();
  const allowOrigins = config.allowOrigin;
  let handler: Fetch = () => new Response("starting\n", { status: 503 });
  const server = await listen(config, (request, self) => handler(request, self));
  const place = config.unixSocket
    ? `unix-${createHash("sha256").update(config.unixSocket).digest("hex").slice(0, 12)}`
    : `tcp-${config.host}-${server.port}`;
  const tail = new LogTail(log);
  const runtimeDir = chooseRuntimeDir(place, env);
  const options = {
    runtimeDir,
    geometry: config.geometry,
    vncArgs: config.vncArg,
    xstartup: config.xstartup,
    env,
    tail,
  };
  const supervisor = new Supervisor(chooseLaunch(config, options), tail, log);
  const bridge = new Bridge(log);
  supervisor.onChange(() => closeViewers(supervisor, bridge));
  const app = createApp({
    baseUrl: config.baseUrl,
    title: "Desktop",
    policy:
      token === undefined ? { kind: "open", allowOrigins } : { kind: "token", token, allowOrigins },
    cookieName: `jupyter-desktop-${server.port ?? "unix"}`, // a browser sends cookies to all ports of a host
    vncPassword: config.vncPassword,
    assets,
    supervisor,
    bridge,
    log,
  });
  handler = (request, self) => app.fetch(request, { server: self });
  if (config.start === "now") void supervisor.start();
  const url = new URL(`http://${joinHostPort(config.host, server.port ?? 0)}${config.baseUrl}`);
  if (token !== undefined) url.searchParams.set("token", token);
  if (token === undefined && !config.unixSocket)
    log("warn", "no authentication: whoever reaches this address has the desktop", {
      address: url.host,
    });
  announce(config, url, env);
  await stopped;
  bridge.closeAll(CLOSE.goingDown, "the server goes down");
  await server.stop(true);
  await supervisor.stop();
  fs.rmSync(runtimeDir, { recursive: true, force: true });
  return 0;
}

/** Runs the command line; resolves with the exit code. */
export async function main(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  if (Bun.semver.order(Bun.version, MIN_BUN) < 0) {
    console.error(
      `jupyter-desktop needs Bun ${MIN_BUN} or newer, and this is ${Bun.version}: type "bun upgrade" or "npm install -g bun@latest"`,
    );
    return 1;
  }
  // These answer whatever else is wrong on the line.
  if (argv.some((word) => word === "--help" || word === "-h")) {
    process.stdout.write(renderHelp());
    return 0;
  }
  if (argv.some((word) => word === "--version" || word === "-V")) {
    console.log(VERSION);
    return 0;
  }
  try {
    const config = loadConfig(argv, env);
    if (config.command === "setup") return await setup(config, env, console.error);
    if (config.command === "doctor") return await doctor(env, console.log);
    return await serve(config, env);
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(
        `${error.problems.map((problem) => `jupyter-desktop: ${problem}`).join("\n")}\nFor all options: jupyter-desktop --help`,
      );
      return 2;
    }
    console.error(`jupyter-desktop: ${errorText(error)}`);
    return 1;
  }
}

if (import.meta.main) process.exit(await main(process.argv.slice(2), process.env));
