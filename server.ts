#!/usr/bin/env bun
/**
 * jupyter-desktop: a Linux desktop in the browser. One process serves the page with the viewer, carries the
 * page's WebSocket to a VNC server, and owns that VNC server and the desktop in it.
 *
 *   bunx jupyter-desktop            serve on http://127.0.0.1:6080 and print the address
 *   bunx jupyter-desktop setup      install a VNC server and a desktop
 *   bunx jupyter-desktop doctor     say what is missing, and what mends it
 *   bunx jupyter-desktop install    put it into JupyterLab's launcher
 *
 * Map: limits, pure helpers, config, log, auth, rfb, bridge, vnc, settings, metrics, files, share, hub,
 * routes, jupyter, setup, doctor, run, main.
 * Each section uses only the sections above it; `main` alone reads argv, env and signals.
 *
 *   argv + env -> loadConfig -> Config -> main -> Supervisor, Bridge -> createApp -> Bun.serve
 *   request    -> security headers -> authorize -> route -> page | asset | status | upgrade
 *   upgrade    -> supervisor.ready() -> dial VNC -> greeting is RFB -> server.upgrade -> replay -> bytes both ways
 *   signal     -> stop listening -> bridge.closeAll(1001) -> supervisor.close() -> exit code
 */
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  hkdfSync,
  randomBytes,
  timingSafeEqual,
  X509Certificate,
} from "node:crypto";
import * as fs from "node:fs";
import { isIP } from "node:net";
import * as os from "node:os";
import * as path from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { brotliDecompressSync, gzipSync } from "node:zlib";
import type { Server, ServerWebSocket, Socket, SocketHandler, Subprocess } from "bun";
import { type Context, Hono, type MiddlewareHandler } from "hono";
import { accepts } from "hono/accepts";
import { bodyLimit } from "hono/body-limit";
import { compress } from "hono/compress";
import { deleteCookie, getCookie, setCookie } from "hono/cookie";
import { HTTPException } from "hono/http-exception";
import { secureHeaders } from "hono/secure-headers";
import { streamSSE } from "hono/streaming";
import type { CookieOptions } from "hono/utils/cookie";
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
const BUSY_SOCKET_MS = 3_000; // Xvnc's queue holds five: all pages come back at the same moment, on a busy machine
const COMMAND_READY_TIMEOUT_MS = 30_000; // a --vnc-command may be a slow wrapper: Debian's waits as long itself
const XVNC_READY_TIMEOUT_MS = 15_000; // Xvnc takes 50 ms; a cold network disk takes seconds
const PRE_OPEN_BYTES = 4_096; // what a VNC server may say before the browser speaks: greeting and security types
const MAX_FRAME_BYTES = 1 << 20; // noVNC sends 10 KiB at a time; only a paste by another client is larger
const MAX_BACKLOG_BYTES = 1 << 20; // to the browser: the VNC socket pauses at the first full send, so this is a net
const MAX_UPLOAD_QUEUE_BYTES = 4 << 20; // frames that were decoded already when the WebSocket was paused
const WS_IDLE_SECONDS = 120; // Bun's own net under the heartbeat
const HEARTBEAT_MS = 20_000; // proxies end a connection that is silent for a minute
const DEAD_VIEWER_MS = 65_000; // three pings without an answer
const MAX_VIEWERS = 50;
const MAX_CLOSED_PAGES = 200; // pages that may still ask how their session ended, which they do at once
const PAGE_WORD = /^[\w-]{8,64}$/;
const OWN_CLOSE_CODES = 4000; // from here on they are the application's (RFC 6455, 7.4.2)
const MAX_DESKTOP_PIXELS = 33_177_600; // 8K UHD; at 16384x16384 Xvnc takes 2 GB
const STOP_GRACE_MS = 2_000; // XFCE saves its session in well under a second
const KILL_WAIT_MS = 2_000; // after SIGKILL only a process in uninterruptible sleep is left
const REAP_POLL_MS = 20; // processes that are not our children give no notice of their end
const RETRY_FIRST_MS = 1_000;
const RETRY_MAX_MS = 30_000;
const GIVE_UP_FAILURES = 5; // quick failures within the window: it will not mend itself
const GIVE_UP_WINDOW_MS = 120_000;
const QUICK_EXIT_MS = 5_000; // an xstartup that ends well this fast was put into the background by its author
const BUS_START_MS = 3_000; // a session has its D-Bus in a tenth of it
const SESSION_START_MS = 10_000; // until the panel is there, on a busy machine
const SESSION_POLL_MS = 100;
const PANEL_START_MS = 500; // in its first moments it cannot be told to end
const LOG_TAIL_LINES = 40;
const LOG_LINE_CHARS = 500;
const SAME_SIGNAL_MS = 500;
const MAX_FORM_BYTES = 4_096; // of the log-in form, which strangers may send
const MARK_BYTES = 12;
const ADOPTED_POLL_MS = 500; // how late the end of a desktop of an earlier server is seen
const MAX_LOG_BYTES = 1 << 20; // of a kept desktop's file
const LOG_CAP_INTERVAL_MS = 60_000;
const TOKEN_BYTES = 24; // 192 bits: not guessable, still one line in a terminal
const MIN_TOKEN_CHARS = 8;
const GUESS_DELAY_FIRST_MS = 100;
const GUESS_DELAY_MAX_MS = 5_000;
const GUESSES_IN_FLIGHT = 16; // more wrong tokens than this at once are refused unread
const SOCKET_PATH_BYTES = 100; // sun_path holds 107; room for a suffix
const COOKIE_MAX_AGE_S = 30 * 24 * 3600;
const LOOP_SAMPLE_MS = 20; // of the event loop's lag, with --metrics
const MAX_CHUNK_BYTES = 8 << 20; // of an upload: proxies hold a whole body in memory, some refuse more than 10 MB
const MAX_OPEN_UPLOADS = 32; // a page sends one file at a time
const UPLOAD_IDLE_MS = 3_600_000; // a page that was left, or a laptop that sleeps over lunch
const STALE_PART_MS = 24 * 3_600_000; // what a killed server left half
const MAX_NAME_BYTES = 255; // NAME_MAX of every file system that holds a home
const MAX_DEPTH = 32;
const MAX_LISTED = 1_000;
const MAX_JSON_BYTES = 16_384; // a path is the longest thing in a request, 4 KiB
const MAX_SHARE_MINUTES = 7 * 24 * 60;
const MAX_SHARES = 100;
const MAX_VIEWERS_BY_LINK = 10; // whoever has one must not use up --max-viewers
const HUB_TIMEOUT_MS = 10_000; // a busy Hub takes seconds
const HUB_USER_MS = 300_000; // how long the Hub's word on a token holds: what its own single-user server takes
const HUB_USERS = 1_000; // whose word is remembered
const HUB_LOGIN_MS = 600_000; // a person may have to find their password
const HUB_LOGINS = 8; // begun in one browser: a header has no room for many cookies
const HUB_NEXT_CHARS = 1_024; // the same room
const HUB_IDLE = "30m"; // what --idle-disconnect is under a Hub, whose culler sees an open tab as work
const HUB_RETRY_S = 5;
const SEAL_NONCE_BYTES = 12; // of AES-GCM (NIST SP 800-38D)
const SEAL_TAG_BYTES = 16;
const ACTIVITY_INTERVAL_S = 300; // what JupyterHub's own single-user server takes
const ACTIVITY_RETRY_MAX_MS = 15_000;
const ACTIVITY_GIVE_UP_MS = 60_000;
const COOKIE_LIMIT_S = 400 * 24 * 3600; // browsers keep none for longer
const START_ANSWER_S = 60; // a stop, and the slowest start after it; Bun ends a silent request after 10 s
const SSE_BEAT_MS = 25_000; // proxies end a connection that is silent for a minute
const JUPYTER_READY_S = 60; // a cold Bun on a network disk, twice over; Jupyter's own 5 s are too few for that
const JUPYTER_TIMEOUT_MS = 20_000; // a Python on a cold network disk says its paths
const BUS_WAIT_MS = 2_000; // D-Bus is there some 100 ms after the display
const EXIT_NO_EXEC = 126; // as POSIX has them for env, and the shells
const EXIT_NOT_FOUND = 127;
const RFB_GREETING = /^RFB \d{3}\.\d{3}\n$/; // RFC 6143, 7.1.1: 12 bytes
const RFB_GREETING_BYTES = 12;
const NO_AUTH = 1; // security types of RFC 6143, 7.1.2
const VNC_AUTH = 2;

// --- pure helpers ---

/** The largest desktop that a viewer may ask for: memory of the X server grows with it. */
export interface SizeLimit {
  readonly width: number;
  readonly height: number;
  readonly pixels: number;
}

/** Where a VNC server listens. */
export type Target = { kind: "unix"; path: string } | { kind: "tcp"; host: string; port: number };
type VncChoice = { kind: "auto" } | Target;

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

/** What an error says, with its code where the message leaves it out (Bun's "Failed to connect"). */
const errorText = (error: unknown) => {
  if (!(error instanceof Error)) return String(error);
  const code = errorCode(error);
  return !code || error.message.includes(code) ? error.message : `${error.message} (${code})`;
};

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

/** A VNC password as a password file has it: hidden, not secret, with the key that all VNC programs share. */
const vncPasswordBytes = (password: string) =>
  vncAuthResponse("\x17\x52\x6b\x06\x23\x4e\x58\x07", Buffer.from(password.padEnd(8, "\0")));

// --- config ---
// One table; the parser, the environment look-up, --help and the README's table come from it.

interface OptionSpec {
  readonly type: z.ZodType;
  readonly group: "Listen" | "Desktop" | "Security" | "Jupyter" | "Other";
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

const count = z
  .string()
  .regex(/^\d{1,6}$/, "must be a whole number")
  .transform(Number);
const UNIT_MS: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: 3_600_000 };
const UNIT_BYTES: Readonly<Record<string, number>> = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
const size = z
  .string()
  .regex(/^[1-9]\d{0,5}[kMGT]?$/, "must be a size such as 500M or 10G")
  .transform((value) => Number.parseInt(value, 10) * (UNIT_BYTES[value.slice(-1)] ?? 1));
/** A time in ms; off is 0. */
const duration = z
  .string()
  .regex(/^(off|0|\d{1,6}[smh])$/, "must be a time such as 90s, 30m or 2h, or off")
  .transform((value) => (Number.parseInt(value, 10) || 0) * (UNIT_MS[value.slice(-1)] ?? 0));

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
      .regex(/^(?!.*:\/)[\w\-.~%!$&'()+,=:@/]+$/, "must be a URL path such as /desk/")
      .transform((value) => `/${value}/`.replace(/\/{2,}/g, "/")),
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
      .regex(/^[1-9]\d{1,4}x[1-9]\d{1,4}$/, {
        error: "must be WIDTHxHEIGHT such as 1680x1050",
        abort: true,
      })
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
  maxSize: {
    type: z
      .string()
      .regex(/^[1-9]\d{1,4}x[1-9]\d{1,4}$/, "must be WIDTHxHEIGHT such as 3840x2160")
      .transform((value): SizeLimit => {
        const [width = 0, height = 0] = value.split("x").map(Number);
        return { width, height, pixels: MAX_DESKTOP_PIXELS };
      }),
    group: "Desktop",
    hint: "WxH",
    default: "8192x8192",
    help: "largest size that a viewer may ask for, and never more than 33 megapixels",
  },
  maxViewers: {
    type: count.refine((viewers) => viewers > 0, "must be at least 1"),
    group: "Desktop",
    hint: "N",
    default: String(MAX_VIEWERS),
    help: "how many viewers may see the desktop at once",
  },
  idleDisconnect: {
    type: duration,
    group: "Desktop",
    hint: "TIME",
    default: "off",
    help: "pause a viewer without input for so long (30m, 90s, 2h); a click resumes it",
  },
  idleStop: {
    type: duration,
    group: "Desktop",
    hint: "TIME",
    default: "off",
    help: "stop the desktop after so long without a viewer and without input",
  },
  idleExit: {
    type: toggle,
    group: "Desktop",
    default: "false",
    help: "exit when --idle-stop has stopped the desktop",
  },
  keep: {
    type: toggle,
    group: "Desktop",
    default: "false",
    help: "let the desktop outlive a server that is killed; the next one takes it back",
  },
  name: {
    type: z
      .string()
      .regex(
        /^(?!\.{1,2}$)[\w.-]{1,40}$/,
        "must be at most 40 letters, digits, dots, hyphens and underscores",
      ),
    group: "Desktop",
    hint: "NAME",
    help: "what this server is called by status and stop, and where --keep finds it again (default: by its address)",
  },
  title: {
    type: text.max(80, "must be at most 80 characters"),
    group: "Desktop",
    hint: "TEXT",
    default: "Desktop",
    help: "what the page, its tab and its installed app are called",
  },
  files: {
    type: toggle,
    group: "Security",
    help: "let people drop files on the desktop, and download from there (default: unless --clipboard restricts text, or --vnc names another machine)",
  },
  uploadDir: {
    type: file,
    group: "Security",
    hint: "DIR",
    help: "where dropped files go, and where downloads come from (default: the desktop's own folder, ~/Desktop)",
  },
  maxUpload: {
    type: size,
    group: "Security",
    hint: "SIZE",
    default: "10G",
    help: "largest file that is taken (500M, 2G)",
  },
  share: {
    type: toggle,
    group: "Security",
    help: "let the owner make links by which others watch or control the desktop, for a time (default: unless under JupyterHub)",
  },
  vncPasswordFile: {
    type: file,
    group: "Security",
    hint: "FILE",
    help: "file with the password of the VNC server that --vnc or --vnc-command names",
  },
  clipboard: {
    type: choice("both", "in", "out", "off"),
    group: "Security",
    hint: "WAY",
    default: "both",
    help: "which way text may be copied: in: only into the desktop; out: only out of it",
  },
  token: {
    type: z.string().min(MIN_TOKEN_CHARS, `must have at least ${MIN_TOKEN_CHARS} characters`),
    group: "Security",
    envOnly: true,
    help: "the token that visitors need (default: a new one at each start)",
  },
  tokenFile: { type: file, group: "Security", hint: "FILE", help: "file with that token" },
  auth: {
    type: choice("auto", "token", "hub", "none"),
    group: "Security",
    hint: "MODE",
    default: "auto",
    help: "auto: a token on TCP, the file system on a unix socket; token: always; hub: as JupyterHub's single-user server; none: anyone",
  },
  allowNoAuth: {
    type: toggle,
    group: "Security",
    default: "false",
    help: "let --auth none hold on TCP, where every local user, or the network, can reach it",
  },
  allowOrigin: {
    type: z.array(
      z
        .string()
        .refine(
          (value) => /^https?:\/\/[^/\\\s?#@,*]+$/i.test(value) && URL.canParse(value),
          "must be an origin such as https://lab.example.org",
        )
        .transform((value) => new URL(value).origin),
    ),
    group: "Security",
    hint: "ORIGIN",
    multiple: true,
    help: "another origin whose pages may connect; may be repeated",
  },
  sysPrefix: {
    type: toggle,
    group: "Jupyter",
    default: "false",
    help: "install, uninstall: for the Python environment of this Jupyter (default: for this user)",
  },
  system: {
    type: toggle,
    group: "Jupyter",
    default: "false",
    help: "install, uninstall: for all users of this machine",
  },
  labTab: {
    type: toggle,
    group: "Jupyter",
    default: "false",
    help: "install: open the desktop inside JupyterLab, not in a browser tab",
  },
  websockify: {
    type: toggle,
    group: "Jupyter",
    default: "false",
    help: "install: serve the address desktop-websockify/ of jupyter-remote-desktop-proxy, too",
  },
  print: {
    type: toggle,
    group: "Jupyter",
    default: "false",
    help: "install: only show what would be written",
  },
  json: {
    type: toggle,
    group: "Jupyter",
    default: "false",
    help: "env: as JSON, for a notebook",
  },
  frameAncestors: {
    type: choice("self", "none"),
    group: "Security",
    hint: "WHO",
    default: "self",
    help: "whose pages may hold this one in a frame: self, those of its origin; none (with --auth hub the default)",
  },
  tlsCert: {
    type: file,
    group: "Security",
    hint: "FILE",
    help: "certificate, with its chain, to serve https with; needs --tls-key",
  },
  tlsKey: { type: file, group: "Security", hint: "FILE", help: "private key of that certificate" },
  activity: {
    type: choice("input", "connected", "off"),
    group: "Security",
    hint: "WHAT",
    default: "input",
    help: "what JupyterHub hears of as activity: somebody's input, a viewer that is connected, or nothing",
  },
  passHubToken: {
    type: toggle,
    group: "Security",
    default: "false",
    help: "give the desktop's programs JupyterHub's variables, with the token that acts as this server",
  },
  logLevel: {
    type: choice("error", "warn", "info", "debug"),
    group: "Other",
    hint: "LEVEL",
    default: "info",
    help: "what to log on stderr; debug adds the desktop's own output",
  },
  logFormat: {
    type: choice("text", "json"),
    group: "Other",
    hint: "FORMAT",
    default: "text",
    help: "one line an event, for people or as JSON for programs",
  },
  metrics: {
    type: toggle,
    group: "Other",
    default: "false",
    help: "answer /metrics, in Prometheus' text format, to whoever may use the desktop",
  },
  yes: { type: toggle, group: "Other", short: "y", default: "false", help: "setup: do not ask" },
  help: { type: toggle, group: "Other", short: "h", default: "false", help: "show this help" },
  version: { type: toggle, group: "Other", short: "V", default: "false", help: "show the version" },
} as const satisfies Record<string, OptionSpec>;

type OptionName = keyof typeof OPTIONS;
type OptionValue<K extends OptionName> =
  | z.output<(typeof OPTIONS)[K]["type"]>
  | ((typeof OPTIONS)[K] extends { default: string } | { multiple: true } ? never : undefined);
const COMMANDS = [
  "serve",
  "setup",
  "doctor",
  "install",
  "uninstall",
  "run",
  "env",
  "status",
  "stop",
] as const;
/**
 * All options, checked; `command` is the subcommand, `vncPassword` the content of its file, `flags` what was given on
 * the command line, in one spelling, and `app` the program to run with its arguments.
 */
export type Config = { readonly [K in OptionName]: OptionValue<K> } & {
  readonly command: (typeof COMMANDS)[number];
  readonly vncPassword: string | undefined;
  readonly flags: readonly Flag[];
  readonly app: readonly string[];
  readonly tls: Tls | undefined;
  readonly hub: HubConfig | undefined;
};

/** An option as it was given on the command line: its arguments there, paths made absolute. */
interface Flag {
  readonly name: OptionName;
  readonly args: readonly string[];
}

/** Certificate and key in PEM; with `ca`, whose certificates both sides of a connection must have. */
export interface Tls {
  readonly cert: string;
  readonly key: string;
  readonly ca?: string;
}

const fromJson = <T extends z.ZodType>(schema: T) =>
  z
    .string()
    .transform((value, ctx): unknown => {
      try {
        return JSON.parse(value);
      } catch {
        ctx.addIssue("must be JSON");
        return z.NEVER;
      }
    })
    .pipe(schema);
const one = z.string().transform((value) => value === "1");

/** Tornado's names for the options of a cookie, in any case, as an operator writes them. */
const cookieOptions = z
  .record(z.string(), z.unknown())
  .transform((given) =>
    Object.fromEntries(Object.entries(given).map(([name, value]) => [name.toLowerCase(), value])),
  )
  .pipe(
    z.object({
      samesite: z
        .string()
        .toLowerCase()
        .pipe(z.enum(["lax", "strict", "none"]))
        .optional(),
      secure: z.boolean().optional(),
      domain: z.string().optional(),
      path: z.string().startsWith("/").optional(),
      max_age: z.int().nonnegative().nullish(),
      expires_days: z.number().nonnegative().nullish(),
    }),
  )
  .transform(({ samesite: sameSite, secure, domain, path, max_age, expires_days }) => {
    const seconds = max_age ?? (expires_days == null ? undefined : expires_days * 86_400);
    const maxAge = seconds === undefined ? undefined : Math.min(seconds, COOKIE_LIMIT_S);
    const all = { sameSite, secure, domain, path, maxAge };
    return Object.fromEntries(
      Object.entries(all).filter(([, value]) => value !== undefined),
    ) as CookieOptions;
  });

/** The variables of JupyterHub's Spawner.get_env, JUPYTERHUB_API_TOKEN being apiToken. */
const HUB = z.object({
  apiToken: z.string(),
  apiUrl: z.url({ protocol: /^https?$/, error: "must be an http or https address" }),
  clientId: z.string().regex(/^[\w!#$%&'*.^`|~+-]+$/, "must be good for a cookie's name"),
  user: z.string(),
  servicePrefix: z.string().regex(/^\/.*\/$/, "must begin and end with a slash"),
  /** Where to listen: `http://:8888/user/x/` is every address. */
  serviceUrl: z
    .string()
    .regex(
      /^https?:\/\/(\[[\da-fA-F:.]+\]|[\w.-]*)(:\d{1,5})?(\/|$)/,
      "must be an address to listen on",
    )
    .transform((value) => {
      const [, scheme, host = "", port] =
        /^(https?):\/\/\[?([^\]/]*?)\]?(?::(\d+))?(?:\/|$)/.exec(value) ?? [];
      return { host: host || "0.0.0.0", port: port ?? (scheme === "https" ? "443" : "80") };
    }),
  oauthCallbackUrl: z.string(),
  oauthAccessScopes: fromJson(z.array(z.string()).min(1, "must name a scope")),
  activityUrl: z.url("must be an address").optional(),
  activityInterval: z.coerce
    .number("must be a number of seconds")
    .positive("must be a number of seconds")
    .default(ACTIVITY_INTERVAL_S),
  allowTokenInUrl: one.default(false),
  baseUrl: z.string().default("/"),
  cookieHostPrefixEnabled: one.default(false),
  cookieOptions: fromJson(cookieOptions).default({}),
  host: z.string().default(""),
  publicUrl: z.string().default(""),
  serverName: z.string().default(""),
  sslKeyfile: z.string().optional(),
  sslCertfile: z.string().optional(),
  sslClientCa: z.string().optional(),
});
/** What JupyterHub tells a server that it starts. */
export type HubConfig = z.output<typeof HUB>;

/** The command line or the environment is wrong; the message lists all that is. Exit code 2. */
export class UsageError extends Error {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join("\n"));
    this.problems = problems;
  }
}

const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
const snake = (name: string) => kebab(name).replaceAll("-", "_").toUpperCase();
const envName = (name: string) => `JUPYTER_DESKTOP_${snake(name)}`;
/** An option by both its names, for messages. */
const both = (name: OptionName) =>
  name === "token" ? envName(name) : `--${kebab(name)} (${envName(name)})`;
const isSwitch = (spec: OptionSpec) => !spec.hint && !spec.envOnly;
const specs = Object.entries(OPTIONS) as [OptionName, OptionSpec][];

interface RawOption {
  readonly value: string | string[];
  readonly from: string;
}

/** The table in the form that node:util's parseArgs takes. */
const parserOptions = Object.fromEntries(
  specs.map(([name, { hint, envOnly, short }]) => [
    kebab(name),
    { type: hint || envOnly ? "string" : "boolean", ...(short ? { short } : {}) } as const,
  ]),
);

const byFlag: ReadonlyMap<string, { name: OptionName; spec: OptionSpec }> = new Map(
  specs.map(([name, spec]) => [kebab(name), { name, spec }]),
);

interface FlagToken {
  readonly rawName: string;
  readonly name: string;
  readonly value: string | undefined;
  readonly inlineValue: boolean | undefined;
}

function readFlags(argv: readonly string[], problems: string[]) {
  const given = new Map<string, RawOption>();
  const words: string[] = [];
  const args = { args: [...argv], strict: false, tokens: true, options: parserOptions } as const;
  for (const token of parseArgs(args).tokens) {
    if (token.kind === "positional") words.push(token.value);
    if (token.kind === "option") problems.push(...readFlag(token, given));
  }
  return { given, words };
}

/** Notes one flag in `given`; returns what is wrong with it as it was written. */
function readFlag(token: FlagToken, given: Map<string, RawOption>): string[] {
  const { rawName: from, name: flag, value, inlineValue } = token;
  const negated = flag.startsWith("no-");
  const entry = byFlag.get(negated ? flag.slice(3) : flag);
  if (!entry || (negated && (entry.spec.hint || inlineValue)))
    return [`${from}: there is no such option`];
  const { name, spec } = entry;
  if (spec.envOnly)
    return [`${from}: everyone sees it in the list of processes; set ${envName(name)} instead`];
  // "--xstartup --open" has forgotten the file: it does not mean one of the name --open.
  const forgot = value === undefined || (!inlineValue && value.startsWith("--"));
  if (spec.hint && forgot) return [`${both(name)}: needs a value (${spec.hint})`];
  const last = value ?? String(!negated);
  const list = [...(given.get(name)?.value ?? []), last];
  given.set(name, { value: spec.multiple ? list : last, from });
  return [];
}

/** Kubernetes sets this in all pods beside a Service of the name jupyter-desktop. */
const isServiceLink = (key: string, value: string) =>
  key === envName("port") && value.startsWith("tcp://");

function readEnv(env: NodeJS.ProcessEnv, given: Map<string, RawOption>) {
  for (const [name, spec] of specs) {
    if (given.has(name) || name === "help" || name === "version") continue;
    for (const key of [envName(name), spec.envAlias]) {
      const value = key && env[key];
      if (!value || given.has(name) || isServiceLink(key, value)) continue;
      given.set(name, {
        value: spec.multiple ? value.split(/\s+/).filter(Boolean) : value,
        from: key,
      });
    }
  }
}

/** A flag sets the variable of another option aside: a container may set JUPYTER_DESKTOP_PORT for all that it runs. */
const SETS_ASIDE: readonly (readonly [OptionName, OptionName])[] = [
  ["port", "unixSocket"],
  ["host", "unixSocket"],
  ["unixSocket", "port"],
  ["unixSocket", "host"],
  ["tokenFile", "token"],
  ["tokenFile", "auth"],
];

function dropSetAside(given: Map<string, RawOption>): void {
  for (const [flag, variable] of SETS_ASIDE) {
    if (isFlag(given, flag) && !isFlag(given, variable)) given.delete(variable);
  }
}

const isFlag = (given: Given, name: string) => given.get(name)?.from.startsWith("-") ?? false;

type Given = ReadonlyMap<string, RawOption>;
type Rule = [broken: boolean, problem: string];

/** Rules between the options of who may come in, and where. */
function accessRules({ unixSocket, auth, allowNoAuth }: Partial<Config>, given: Given): Rule[] {
  return [
    ...(["port", "host"] as const).map((name): Rule => [
      unixSocket !== undefined && given.has(name),
      `${both("unixSocket")}: cannot be combined with ${both(name)}`,
    ]),
    [
      auth === "none" && !given.has("unixSocket") && allowNoAuth === false,
      `${both("auth")}: "none" on a TCP address lets in every user of this machine; add ${both("allowNoAuth")} if that is meant`,
    ],
    ...(["token", "tokenFile"] as const).map((name): Rule => [
      auth === "none" && given.has(name) && isFlag(given, name) === isFlag(given, "auth"),
      `${both(name)}: is of no use with ${both("auth")} none`,
    ]),
    ...(["unixSocket", "baseUrl", "tlsCert", "tokenFile"] as const).map((name): Rule => [
      auth === "hub" && isFlag(given, name),
      `${both(name)}: cannot be combined with ${both("auth")} hub, where JupyterHub says how it reaches this server`,
    ]),
    ...(["tlsCert", "tlsKey"] as const).map((name): Rule => [
      given.has(name) && given.has("unixSocket"),
      `${both(name)}: is of no use with ${both("unixSocket")}`,
    ]),
    [
      given.has("tokenFile") && given.has("token"),
      `${both("tokenFile")}: cannot be combined with ${both("token")}`,
    ],
  ];
}

/** Rules between the options of the desktop: what cannot be done with somebody else's VNC server is no silence. */
function desktopRules(config: Partial<Config>, given: Given): Rule[] {
  const { vnc, vncCommand, idleExit, idleStop, clipboard } = config;
  const attached = vncCommand !== undefined || (vnc !== undefined && vnc.kind !== "auto");
  const attachedBy = vncCommand === undefined ? both("vnc") : both("vncCommand");
  return [
    [
      idleExit === true && idleStop === 0,
      `${both("idleExit")}: needs ${both("idleStop")} with a time, such as 2h`,
    ],
    ...(["xstartup", "geometry", "vncArg", "keep"] as const).map((name): Rule => [
      attached && given.has(name) && config[name] !== false,
      `${both(name)}: works only with the VNC server that jupyter-desktop starts itself, not with ${attachedBy}`,
    ]),
    [
      attached && (clipboard === "in" || clipboard === "off"),
      `${both("clipboard")}: "${clipboard}" works only with the VNC server that jupyter-desktop starts itself: what ${attachedBy} sends cannot be held back; "out" works with both`,
    ],
    [
      vnc?.kind === "auto" && !attached && given.has("vncPasswordFile"),
      `${both("vncPasswordFile")}: works only with ${both("vnc")} unix:/path or tcp:host:port; the VNC server that jupyter-desktop starts has no password, it has a private socket`,
    ],
  ];
}

const HUB_TLS = ["JUPYTERHUB_SSL_CERTFILE", "JUPYTERHUB_SSL_KEYFILE"] as const;

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
  const shown = spec.envOnly ? "" : `, not "${[value].flat().join(" ")}"`;
  problems.push(...result.error.issues.map((issue) => `${both(name)}: ${issue.message}${shown}`));
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
      `${both(name)}: the token in ${file} must have at least ${MIN_TOKEN_CHARS} characters`,
    );
  } catch (error) {
    problems.push(`${both(name)}: cannot read ${file}: ${errorText(error)}`);
  }
  return undefined;
}

/** The options that an entry in Jupyter's configuration may have: the others are Jupyter's, or the entry's own. */
const isEntryOption = (name: OptionName) =>
  ["vncPasswordFile", "allowOrigin", "logLevel", "name"].includes(name) ||
  (OPTIONS[name].group === "Desktop" && name !== "idleExit");

/** Rules of the commands around Jupyter. */
function jupyterRules({ command, flags, app, keep, name, sysPrefix, system }: Config): Rule[] {
  if (command === "run")
    return [[app.length === 0, "run: name the program to run, such as: run -- xterm"]];
  const places: Rule = [
    sysPrefix && system,
    `${both("sysPrefix")}: cannot be combined with ${both("system")}`,
  ];
  if (command !== "install") return [places];
  const strange = flags.map((flag) => flag.name).filter((given) => !isEntryOption(given));
  return [
    places,
    [keep && name === undefined, `${both("keep")}: needs ${both("name")}, to be found again`],
    ...strange
      .filter((given) => OPTIONS[given].group !== "Jupyter" && given !== "yes")
      .map((given): Rule => [
        true,
        `${both(given)}: cannot be installed; Jupyter decides where the desktop listens, who comes in, and when it ends`,
      ]),
  ];
}

/** What was given on the command line, as a command line of another place. */
function flagsOf(given: Given, values: Readonly<Record<string, unknown>>): Flag[] {
  return specs.flatMap(([name, spec]) => {
    const raw = given.get(name);
    if (raw === undefined || !isFlag(given, name)) return [];
    if (isSwitch(spec)) return [{ name, args: [`--${values[name] ? "" : "no-"}${kebab(name)}`] }];
    const checked = values[name]; // the absolute path of a file
    const list = [typeof checked === "string" ? checked : raw.value].flat();
    return [{ name, args: list.map((value) => `--${kebab(name)}=${value}`) }];
  });
}

/**
 * Certificate and key from their files; undefined when none is named.
 * `names` are what the person knows the two by.
 */
function readTls(
  [certFile, keyFile, caFile]: (string | undefined)[],
  names: readonly [cert: string, key: string],
  problems: string[],
): Tls | undefined {
  if (certFile === undefined && keyFile === undefined) return undefined;
  if (certFile === undefined || keyFile === undefined) {
    const [missing, there] = certFile === undefined ? names : [names[1], names[0]];
    problems.push(`${missing}: is missing, and ${there} needs it`);
    return undefined;
  }
  const read = (what: string, file: string, check: (pem: string) => unknown) => {
    try {
      const pem = fs.readFileSync(file, "utf8");
      check(pem);
      return pem;
    } catch (error) {
      problems.push(`${what}: cannot use ${file}: ${errorText(error)}`);
      return undefined;
    }
  };
  const cert = read(names[0], certFile, (pem) => new X509Certificate(pem));
  const key = read(names[1], keyFile, (pem) => createPrivateKey(pem));
  const ca =
    caFile === undefined
      ? ""
      : read("JUPYTERHUB_SSL_CLIENT_CA", caFile, (pem) => new X509Certificate(pem));
  if (cert === undefined || key === undefined || ca === undefined) return undefined;
  if (new X509Certificate(cert).checkPrivateKey(createPrivateKey(key)))
    return { cert, key, ...(ca ? { ca } : {}) };
  problems.push(`${names[1]}: ${keyFile} is not the key of the certificate in ${certFile}`);
  return undefined;
}

/**
 * What JupyterHub says of this server. It stands before our own variables, which a container may have for all that it
 * runs, and after flags.
 */
function readHub(
  env: NodeJS.ProcessEnv,
  given: Map<string, RawOption>,
  problems: string[],
): HubConfig | undefined {
  const names = Object.keys(HUB.shape);
  const raw = Object.fromEntries(
    names.map((name) => [name, env[`JUPYTERHUB_${snake(name)}`] || undefined]),
  );
  raw.oauthAccessScopes ??= env.JUPYTERHUB_OAUTH_SCOPES || undefined; // its name before JupyterHub 3
  raw.oauthCallbackUrl ??= raw.servicePrefix && `${raw.servicePrefix}oauth_callback`;
  const result = HUB.safeParse(raw);
  if (!result.success) {
    problems.push(...hubProblems(result.error.issues, raw));
    return undefined;
  }
  const from = "JUPYTERHUB_SERVICE_URL";
  const set = (name: string, value: string) => given.set(name, { value, from });
  const { servicePrefix: baseUrl, serviceUrl } = result.data;
  for (const [name, value] of Object.entries({ ...serviceUrl, baseUrl }))
    if (!isFlag(given, name)) set(name, value);
  for (const name of ["unixSocket", "tlsCert", "tlsKey"])
    if (!isFlag(given, name)) given.delete(name);
  for (const [name, value] of HUB_DEFAULTS) if (!given.has(name)) set(name, value);
  return result.data;
}

/** What is another default when JupyterHub starts this server. */
const HUB_DEFAULTS = [
  ["idleDisconnect", HUB_IDLE],
  ["frameAncestors", "none"], // as its own single-user server: other users' pages have the same origin
] as const;

function hubProblems(
  issues: readonly z.core.$ZodIssue[],
  raw: Readonly<Record<string, string | undefined>>,
): string[] {
  const named = issues.map(({ path: [name], message }) => ({ name: String(name), message }));
  const missing = named.filter(({ name }) => raw[name] === undefined);
  const list = missing.map(({ name }) => `JUPYTERHUB_${snake(name)}`).join(", ");
  const wrong = named.filter((issue) => !missing.includes(issue));
  return [
    ...(list === ""
      ? []
      : [
          `${both("auth")}: hub is for a server that JupyterHub starts (c.Spawner.cmd), and here is not set: ${list}`,
        ]),
    ...wrong.map(({ name, message }) => `JUPYTERHUB_${snake(name)}: ${message}`),
  ];
}

/**
 * The configuration from flags, then JUPYTER_DESKTOP_* variables, then defaults.
 * @throws UsageError listing every problem, each with its flag and its variable.
 */
export function loadConfig(argv: readonly string[], env: NodeJS.ProcessEnv): Config {
  const problems: string[] = [];
  // What follows "--" belongs to the program that is run.
  const end = argv.includes("--") ? argv.indexOf("--") : argv.length;
  const { given, words } = readFlags(argv.slice(0, end), problems);
  readEnv(env, given);
  dropSetAside(given);
  const command = COMMANDS.find((name) => name === (words[0] ?? "serve"));
  if (!command)
    problems.push(`${words[0]}: there is no such command; there are ${COMMANDS.join(", ")}`);
  const app = command === "run" ? [...words.slice(1), ...argv.slice(end + 1)] : [];
  const tooMany = command === "run" ? [] : [...words.slice(1), ...argv.slice(end + 1)];
  for (const word of tooMany) problems.push(`${word}: is one word too many`);
  const isHub = command === "serve" && given.get("auth")?.value === "hub";
  const hub = isHub ? readHub(env, given, problems) : undefined;
  const options = specs.map((entry) => [
    entry[0],
    parseOption(entry, given.get(entry[0]), problems),
  ]);
  const values = Object.fromEntries(options);
  const token = values.token ?? readSecret("tokenFile", values.tokenFile, problems);
  const vncPassword = readSecret("vncPasswordFile", values.vncPasswordFile, problems);
  const tls = hub
    ? readTls([hub.sslCertfile, hub.sslKeyfile, hub.sslClientCa], HUB_TLS, problems)
    : readTls([values.tlsCert, values.tlsKey], [both("tlsCert"), both("tlsKey")], problems);
  const flags = flagsOf(given, values);
  const config: Config = { ...values, command, token, vncPassword, flags, app, tls, hub };
  const rules = [
    ...accessRules(config, given),
    ...desktopRules(config, given),
    ...jupyterRules(config),
  ];
  problems.push(...rules.filter(([broken]) => broken).map(([, problem]) => problem));
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
    "  install    put a Desktop tile into JupyterLab's launcher; options of serve given here are its own",
    "  uninstall  take that back",
    "  run        run a program on the desktop: run -- app arguments",
    "  env        print DISPLAY and XAUTHORITY of the desktop, for a shell or a notebook",
    "  status     say what this user's servers are doing",
    "  stop       stop the desktop of this user's server (of --name, where there are several)",
  ];
  for (const group of ["Listen", "Desktop", "Security", "Jupyter", "Other"] as const) {
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
    "Exit codes: 0 asked to stop, 1 failed, 2 wrong usage; doctor: 1 when a desktop could not start; run: the program's.",
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

// --- log ---
// One line an event on stderr: time, level, what, key=value or the same as JSON. Secrets never pass.

const LEVELS = ["error", "warn", "info", "debug"] as const;
type Level = (typeof LEVELS)[number];
type LogFields = Readonly<Record<string, unknown>>;
export type Log = (level: Level, event: string, fields?: LogFields) => void;

function textLine(fields: LogFields): string {
  const { time, level, event, ...rest } = fields;
  const pairs = Object.entries(rest).map(
    ([key, value]) =>
      ` ${key}=${/^[\w.:/@%+,-]+$/.test(String(value)) ? value : JSON.stringify(String(value))}`,
  );
  return `${time} ${level} ${event}${pairs.join("")}\n`;
}

export function createLog(
  { level, format = "text" }: { level: Level; format?: "text" | "json" },
  secrets: readonly string[],
  write: (line: string) => void,
): Log {
  const hide = (value: unknown) =>
    typeof value === "number" || typeof value === "boolean"
      ? value
      : secrets.reduce((safe, secret) => safe.replaceAll(secret, "***"), String(value));
  return (at, event, fields = {}) => {
    if (LEVELS.indexOf(at) > LEVELS.indexOf(level)) return;
    const entries = Object.entries({ event, ...fields })
      .filter(([, value]) => value !== undefined && value !== null)
      .map(([key, value]) => [key, hide(value)]);
    const line = { time: new Date().toISOString(), level: at, ...Object.fromEntries(entries) };
    write(format === "json" ? `${JSON.stringify(line)}\n` : textLine(line));
  };
}

// --- auth ---
// Who may come in: a pure decision, which the routes' middleware carries out.

/**
 * `open`: whoever can reach the listener is the user (a 0600 unix socket), or --auth none. Then `hosts` are the names
 * that a page may have reached us by: a foreign site can point a name of its own at 127.0.0.1 (DNS rebinding), and
 * Origin and Host agree then. Addresses and localhost need no entry; without `hosts` every name is good.
 */
export type AuthPolicy =
  | { kind: "open"; allowOrigins: readonly string[]; hosts?: readonly string[] }
  | { kind: "token"; token: string; allowOrigins: readonly string[] }
  /** Nobody but by the Hub's word, which the routes ask for. */
  | { kind: "hub"; allowOrigins: readonly string[] };

/** Who a request comes from: the desktop's owner, or somebody who was let in, to control it or only to watch. */
export interface Visitor {
  readonly role: "owner" | "control" | "watch";
  /** For the list of who is here; empty where there is no name. */
  readonly name: string;
  /** The link that they came by. */
  readonly link?: string;
  /** Aborts when that link expires or is revoked. */
  readonly over?: AbortSignal;
}
const OWNER: Visitor = { role: "owner", name: "" };

const RANK: Readonly<Record<Visitor["role"], number>> = { watch: 0, control: 1, owner: 2 };
/** Whether a visitor may do what this role may do; nobody is no visitor. */
const mayActAs = (visitor: Visitor | undefined, role: Visitor["role"]) =>
  visitor !== undefined && RANK[visitor.role] >= RANK[role];

export type AuthDecision =
  | { ok: true; visitor: Visitor }
  | {
      ok: false;
      status: 401 | 403;
      reason: "no-token" | "wrong-token" | "origin" | "host" | "link" | "no-login";
    };

export interface AuthRequest {
  readonly method: string;
  readonly host: string | undefined;
  readonly origin: string | undefined;
  readonly upgrade: boolean;
  /** From the Authorization header, the query or the cookie, in this order. */
  readonly token: string | undefined;
  /** Who a shared link lets in; over when it has expired or was revoked. */
  readonly guest?: Visitor | "over" | undefined;
}

/**
 * May this request pass? The Origin is checked on every upgrade and on every method that changes something: a
 * browser sends the cookie along from any page, and Bun upgrades whatever the Origin (RFC 6455, 10.2). Only hosts
 * are compared, since a TLS proxy changes the scheme.
 */
export function authorize(request: AuthRequest, policy: AuthPolicy): AuthDecision {
  const changes = request.upgrade || !["GET", "HEAD", "OPTIONS"].includes(request.method);
  if (changes && !isOwnOrigin(request, policy.allowOrigins))
    return { ok: false, status: 403, reason: "origin" };
  if (policy.kind === "open" && policy.hosts && !isKnownHost(request.host, policy.hosts))
    return { ok: false, status: 403, reason: "host" };
  if (policy.kind !== "token" || !request.token) return withoutToken(request.guest, policy.kind);
  if (!safeEqual(request.token, policy.token))
    return { ok: false, status: 403, reason: "wrong-token" };
  return { ok: true, visitor: OWNER };
}

/** Who comes by a link stays a guest where all the others are owners. */
function withoutToken(guest: AuthRequest["guest"], kind: AuthPolicy["kind"]): AuthDecision {
  if (guest && guest !== "over") return { ok: true, visitor: guest };
  if (kind === "hub") return { ok: false, status: 403, reason: "no-login" };
  if (guest) return { ok: false, status: 403, reason: "link" };
  return kind === "open"
    ? { ok: true, visitor: OWNER }
    : { ok: false, status: 401, reason: "no-token" };
}

/** No Origin is a program's request, not a page's. */
function isOwnOrigin({ origin, host }: AuthRequest, allowed: readonly string[]): boolean {
  if (origin === undefined || allowed.includes(origin)) return true;
  if (!URL.canParse(origin) || !URL.canParse(`http://${host}`)) return false;
  const [from, own] = [new URL(origin).host, new URL(`http://${host}`).host];
  // The default port is no part of an Origin, but it may be one of a Host.
  return from !== "" && (from === own || `${from}:443` === own);
}

function isKnownHost(host: string | undefined, known: readonly string[]): boolean {
  if (!URL.canParse(`http://${host}`)) return false;
  const { hostname } = new URL(`http://${host}`);
  return (
    hostname === "localhost" ||
    isIP(hostname.replace(/^\[|\]$/g, "")) !== 0 ||
    known.some((name) => name.toLowerCase() === hostname)
  );
}

/** Makes guessing slow: each wrong token is answered later than the one before, until a right one; few at a time. */
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

// --- rfb ---
// Finds the messages in what a viewer sends, to count input and to hold sizes. What VNC sends is never parsed.

/** Types of client messages that the filter looks at (RFC 6143, 7.5; rfbproto for 248 and up). */
const CLIENT_MESSAGE = {
  setEncodings: 2,
  key: 4,
  pointer: 5,
  cutText: 6,
  fence: 248,
  xvp: 250,
  setDesktopSize: 251,
  qemu: 255,
} as const;

/** How long a client message is, when so many bytes of it are known (RFC 6143, 7.5; rfbproto for 150 and up). */
interface MessageShape {
  readonly header: number;
  readonly length: (bytes: Buffer, at: number) => number;
}
const always = (bytes: number): MessageShape => ({ header: 1, length: () => bytes });
const CLIENT_MESSAGES: Readonly<Record<number, MessageShape>> = {
  0: always(20), // SetPixelFormat
  [CLIENT_MESSAGE.setEncodings]: {
    header: 4,
    length: (bytes, at) => 4 + 4 * bytes.readUInt16BE(at + 2),
  },
  3: always(10), // FramebufferUpdateRequest
  [CLIENT_MESSAGE.key]: always(8),
  [CLIENT_MESSAGE.pointer]: {
    header: 2, // the highest bit of the mask announces a further byte of buttons
    length: (bytes, at) => 6 + (bytes.readUInt8(at + 1) >> 7),
  },
  [CLIENT_MESSAGE.cutText]: {
    header: 8, // a negative length is the extended clipboard's, whose actions come next
    length: (bytes, at) => {
      const size = bytes.readInt32BE(at + 4);
      return size < 0 && bytes.length - at < 12 ? 0 : 8 + Math.abs(size);
    },
  },
  150: always(10), // EnableContinuousUpdates
  [CLIENT_MESSAGE.fence]: { header: 9, length: (bytes, at) => 9 + bytes.readUInt8(at + 8) },
  [CLIENT_MESSAGE.xvp]: always(4),
  [CLIENT_MESSAGE.setDesktopSize]: {
    header: 8,
    length: (bytes, at) => 8 + 16 * bytes.readUInt8(at + 6),
  },
  [CLIENT_MESSAGE.qemu]: {
    header: 4, // 0 is a key, 1 is audio, whose operation 2 has a format
    length: (bytes, at) => {
      if (bytes.readUInt8(at + 1) === 0) return 12;
      return bytes.readUInt16BE(at + 2) === 2 ? 10 : 4;
    },
  },
};

/** Length of the client message that starts at `at`: 0 when more is needed to tell, infinite for an unknown type. */
export function clientMessageLength(bytes: Buffer, at: number): number {
  const shape = CLIENT_MESSAGES[bytes.readUInt8(at)];
  if (!shape) return Number.POSITIVE_INFINITY;
  return bytes.length - at < shape.header ? 0 : shape.length(bytes, at);
}

/** What the filter tells, and asks, the session that it belongs to. */
export interface FilterEvents {
  /** A key, a pointer that moved or clicked, or pasted text: a person is there. */
  input(): void;
  /** May this viewer set the desktop's size now? */
  mayResize(): boolean;
  /** May this viewer put text on the desktop's clipboard? */
  mayPaste(): boolean;
  /** What follows cannot be told apart, so that none of it may pass from a guest, or to a desktop that takes no text. */
  unreadable(): void;
}

/** The actions of the extended clipboard that only ask for what is on the desktop: caps and request (rfbproto). */
const CLIPBOARD_ASKS: readonly number[] = [1, 2];

/** What is left out of a visitor's messages. */
const FORBIDDEN: Readonly<Record<Visitor["role"], readonly number[]>> = {
  owner: [],
  control: [CLIENT_MESSAGE.xvp], // it shuts down, or resets, the machine that is shown
  watch: [
    CLIENT_MESSAGE.key,
    CLIENT_MESSAGE.pointer,
    CLIENT_MESSAGE.cutText,
    CLIENT_MESSAGE.xvp,
    CLIENT_MESSAGE.setDesktopSize,
    CLIENT_MESSAGE.qemu,
  ],
};

const EMPTY = Buffer.alloc(0);
const EXTENDED_DESKTOP_SIZE = -308; // rfbproto: only who names it may set the size

type Phase = "version" | "security" | "auth" | "init" | "messages" | "opaque";
/** Lengths of the client's parts of the handshake (RFC 6143, 7.1 to 7.3), in bytes. */
const HANDSHAKE_BYTES: Readonly<Record<Phase, number>> = {
  version: RFB_GREETING_BYTES,
  security: 1,
  auth: 16,
  init: 1,
  messages: 0,
  opaque: 0,
};

/**
 * One viewer's bytes on their way to VNC. Messages pass as they came, but for SetDesktopSize: it is held to the
 * limit, and kept back while another viewer drives the size. What is no RFB that it knows (another security type,
 * a message of a later protocol) passes unseen from there on, and all of it counts as input; from a guest it does
 * not pass, and neither does what FORBIDDEN names.
 */
export class ClientFilter {
  readonly #limit: SizeLimit;
  readonly #events: FilterEvents;
  readonly #role: Visitor["role"];
  #phase: Phase = "version";
  /** The start of something whose end has not come. */
  #held: Buffer = EMPTY;
  /** Bytes of a long message that are still to pass, or to be left out. */
  #passing = 0;
  #isBarred = false;
  #pointer = "";
  /** The size that this viewer wants, as its message. */
  #wanted: Buffer | undefined;
  /** It has named ExtendedDesktopSize: TigerVNC 1.12 crashes of a size from a viewer that has not. */
  #knowsSizes = false;

  constructor(limit: SizeLimit, events: FilterEvents, role: Visitor["role"] = "owner") {
    this.#limit = limit;
    this.#events = events;
    this.#role = role;
  }

  /** What goes on to VNC now. */
  feed(chunk: Buffer): Buffer {
    const bytes = this.#held.length > 0 ? Buffer.concat([this.#held, chunk]) : chunk;
    this.#held = EMPTY;
    if (this.#passing === Number.POSITIVE_INFINITY) this.#events.input();
    const kept: Buffer[] = [];
    let at = Math.min(this.#passing, bytes.length);
    let from = this.#isBarred ? at : 0; // what stands before has been kept or left out
    this.#passing = Math.max(0, this.#passing - bytes.length);
    while (at < bytes.length) {
      const length = this.#lengthAt(bytes, at);
      if (length === 0) break;
      const { before, isOut } = this.#pass(bytes.subarray(at, at + length), length);
      if (before) kept.push(bytes.subarray(from, at), before);
      if (isOut) from = at + length;
      else if (before) from = at;
      this.#passing = Math.max(0, at + length - bytes.length);
      at = Math.min(at + length, bytes.length);
    }
    if (at < bytes.length) this.#held = bytes.subarray(at);
    else if (kept.length === 0 && from === 0) return bytes;
    return Buffer.concat([...kept, bytes.subarray(from, at)]);
  }

  /** The message for the size that this viewer wants, if VNC may get one between two of its messages now. */
  claimSize(): Buffer | undefined {
    return this.#phase === "messages" && this.#held.length === 0 && this.#passing === 0
      ? this.#wanted
      : undefined;
  }

  /** What goes to VNC before a message, and whether the message itself is left out. */
  #pass(message: Buffer, length: number): { before: Buffer | undefined; isOut: boolean } {
    const isUnknown = length === Number.POSITIVE_INFINITY;
    this.#isBarred =
      this.#isForbidden(message) ||
      (isUnknown && this.#role !== "owner") ||
      ((isUnknown || this.#isText(message)) && !this.#events.mayPaste());
    if (this.#isBarred && isUnknown) this.#events.unreadable();
    if (this.#isBarred || (this.#isSize(message) && !this.#knowsSizes))
      return { before: EMPTY, isOut: true };
    if (this.#isEncodings(message)) this.#knowsSizes ||= namesSizes(message);
    if (this.#isSize(message)) return { before: this.#size(message), isOut: true };
    return { before: this.#look(message), isOut: false };
  }

  #isForbidden(message: Buffer): boolean {
    return this.#phase === "messages" && FORBIDDEN[this.#role].includes(message.readUInt8());
  }

  /** Text for the desktop's clipboard, or word that there is some. */
  #isText(message: Buffer): boolean {
    if (this.#phase !== "messages" || message[0] !== CLIENT_MESSAGE.cutText) return false;
    const isExtended = message.readInt32BE(4) < 0;
    return !isExtended || !CLIPBOARD_ASKS.includes(message[8] ?? 0);
  }

  #isSize(message: Buffer): boolean {
    return this.#phase === "messages" && message[0] === CLIENT_MESSAGE.setDesktopSize;
  }

  #isEncodings(message: Buffer): boolean {
    return this.#phase === "messages" && message[0] === CLIENT_MESSAGE.setEncodings;
  }

  /** Length of what starts at `at`, 0 when more is needed. A size may be changed, encodings are read: they have to be whole. */
  #lengthAt(bytes: Buffer, at: number): number {
    if (this.#phase !== "messages") return this.#handshake(bytes, at);
    const length = clientMessageLength(bytes, at);
    const message = bytes.subarray(at);
    const isWhole = at + length <= bytes.length;
    return !isWhole && (this.#isSize(message) || this.#isEncodings(message)) ? 0 : length;
  }

  /** Length of the part of the handshake that starts at `at`; past the last part begin the messages. */
  #handshake(bytes: Buffer, at: number): number {
    const length = HANDSHAKE_BYTES[this.#phase];
    const isRfb =
      this.#phase !== "version" || "RFB 003.00".startsWith(bytes.toString("latin1", at, at + 10));
    if (isRfb && bytes.length - at < length) return 0;
    const part = bytes.subarray(at, at + length);
    const next = this.#afterHandshake(part);
    if (this.#phase === "init") part[0] = 1; // shared: a viewer that asks to be alone would throw the others out
    this.#phase = next;
    return next === "opaque" ? Number.POSITIVE_INFINITY : length;
  }

  #afterHandshake(part: Buffer): Phase {
    switch (this.#phase) {
      case "version": // RFB 3.3 has no security message, so that what follows cannot be told
        return /^RFB 003\.00[78]\n$/.test(part.toString("latin1")) ? "security" : "opaque";
      case "security":
        return part[0] === NO_AUTH ? "init" : part[0] === VNC_AUTH ? "auth" : "opaque";
      case "auth":
        return "init";
      default:
        return "messages";
    }
  }

  /** Keeps the size that is asked for; returns what goes to VNC: that, or nothing while another viewer drives it. */
  #size(message: Buffer): Buffer {
    this.#wanted = Buffer.from(limitDesktopSize(message, this.#limit));
    return this.#events.mayResize() ? this.#wanted : EMPTY;
  }

  /** Tells of input. The first input of a viewer that did not drive the size is preceded by its size. */
  #look(message: Buffer): Buffer | undefined {
    if (this.#phase !== "messages" || !this.#isInput(message)) return undefined;
    const drove = this.#events.mayResize();
    this.#events.input();
    return drove ? undefined : this.#wanted;
  }

  #isInput(message: Buffer): boolean {
    if (message[0] !== CLIENT_MESSAGE.pointer) {
      return (
        message[0] === CLIENT_MESSAGE.key ||
        this.#isText(message) ||
        (message[0] === CLIENT_MESSAGE.qemu && message[1] === 0)
      );
    }
    const before = this.#pointer;
    this.#pointer = message.toString("latin1");
    return this.#pointer !== before;
  }
}

/** Is ExtendedDesktopSize among the encodings? */
function namesSizes(message: Buffer): boolean {
  for (let at = 4; at < message.length; at += 4)
    if (message.readInt32BE(at) === EXTENDED_DESKTOP_SIZE) return true;
  return false;
}

/**
 * Holds a SetDesktopSize message (rfbproto: type, padding, width, height, number of screens, padding, then id, x, y,
 * width, height and flags of each) to the limit, in place: the sides first, then the area, in proportion.
 */
export function limitDesktopSize(message: Buffer, limit: SizeLimit): Buffer {
  const asked = { width: message.readUInt16BE(2), height: message.readUInt16BE(4) };
  const scale = Math.min(
    1,
    limit.width / asked.width,
    limit.height / asked.height,
    Math.sqrt(limit.pixels / (asked.width * asked.height)),
  );
  if (!(scale < 1)) return message;
  const width = Math.max(1, Math.floor(asked.width * scale));
  const height = Math.max(1, Math.floor(asked.height * scale));
  message.writeUInt16BE(width, 2);
  message.writeUInt16BE(height, 4);
  for (let at = 8; at + 16 <= message.length; at += 16) {
    const x = Math.min(message.readUInt16BE(at + 4), width - 1);
    const y = Math.min(message.readUInt16BE(at + 6), height - 1);
    message.writeUInt16BE(x, at + 4);
    message.writeUInt16BE(y, at + 6);
    message.writeUInt16BE(Math.min(message.readUInt16BE(at + 8), width - x), at + 8);
    message.writeUInt16BE(Math.min(message.readUInt16BE(at + 10), height - y), at + 10);
  }
  return message;
}

// --- bridge ---
// Moves bytes between a browser's WebSocket and a VNC socket. Knows nothing of HTTP, auth or the supervisor.

/** Why a WebSocket ended, in its close code; the page decides by it what to do next. */
export const CLOSE = {
  goingDown: 1001,
  textFrame: 1003,
  vncLost: 1011,
  tooLarge: 1009,
  malformed: 4400,
  letInOver: 4401,
  paused: 4408,
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

/** What a bridge has carried since its start, in bytes, and for how many viewers. */
export interface Traffic {
  viewers: number;
  toBrowser: number;
  fromBrowser: number;
}

/** What a session needs of the bridge that it belongs to. */
interface SessionOwner {
  readonly sizeLimit: SizeLimit;
  readonly idleDisconnectMs: number;
  readonly traffic: Traffic;
  input(session: Session): void;
  readonly mayPaste: boolean;
  mayResize(session: Session): boolean;
  ended(session: Session): void;
}

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
  readonly #owner: SessionOwner;
  readonly #filter: ClientFilter;
  #vnc: VncSocket | undefined;
  #browser: BrowserSocket | undefined;
  #ended: { code: number; reason: string } | undefined;
  /** What VNC said before the WebSocket was open. */
  #early: Buffer = EMPTY;
  #wake: (() => void) | undefined;
  /** Bytes for VNC that its socket has not taken: whole frames, of the first of them the part from #sent on. */
  readonly #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #sent = 0;
  /** With a VNC password, the part of the handshake that the browser still expects of us. */
  #greeting: "version" | "security" | undefined;
  #greetingBytes = 0;
  #lastInputMs = Date.now();
  #heardMs = Date.now();
  #heart: Timer | undefined;
  readonly visitor: Visitor;
  readonly since = new Date();
  readonly #over = () => this.end(CLOSE.letInOver, "the link has ended");

  constructor(owner: SessionOwner, visitor: Visitor) {
    this.#owner = owner;
    this.visitor = visitor;
    const events: FilterEvents = {
      input: () => {
        if (this.#ended || !this.mayControl) return;
        this.#lastInputMs = Date.now();
        owner.input(this);
      },
      mayResize: () => owner.mayResize(this),
      mayPaste: () => owner.mayPaste && this.mayControl,
      unreadable: () => this.end(CLOSE.malformed, "not RFB 3.7 or 3.8 as this server knows it"),
    };
    this.#filter = new ClientFilter(owner.sizeLimit, events, visitor.role);
    visitor.over?.addEventListener("abort", this.#over);
  }

  get lastInputMs(): number {
    return this.#lastInputMs;
  }

  get mayControl(): boolean {
    return mayActAs(this.visitor, "control");
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
      void this.#reach(target);
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
        error: errorText(error),
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Connects. A unix socket refuses whoever comes while its queue is full, as one does without a server behind it. */
  async #reach(target: Target): Promise<void> {
    for (
      const deadline = Date.now() + BUSY_SOCKET_MS;
      !this.#ended;
      await Bun.sleep(REAP_POLL_MS)
    ) {
      try {
        return void (await connect(target, vncHandlers, this));
      } catch (error) {
        const mayBeBusy = target.kind === "unix" && errorCode(error) === "ECONNREFUSED";
        if (!mayBeBusy || Date.now() > deadline) this.end(CLOSE.vncLost, errorText(error));
      }
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
    // None at all, or 0 in RFB 3.3: it refuses, and says why (too many wrong passwords, mostly).
    if (!offered[0]) throw new Error(await this.#readText());
    // A watcher's password is what makes VNC itself hold it to watching: without one it would have all rights.
    const known = this.mayControl ? [VNC_AUTH, NO_AUTH] : [VNC_AUTH];
    const type = known.find((one) => offered.includes(one));
    if (type === undefined)
      throw new VncError("vnc-password", { error: "the VNC server offers no VncAuth" });
    if (version !== 3) this.#vnc?.write(Uint8Array.of(type));
    return type;
  }

  async #readText(): Promise<string> {
    return (await this.#read((await this.#read(4)).readUInt32BE())).toString();
  }

  #untilChange(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    return promise;
  }

  async #read(count: number): Promise<Buffer> {
    while (this.#early.length < count && !this.#ended) await this.#untilChange();
    if (this.#early.length < count) throw new Error(this.#ended?.reason); // its last words may be there still
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
    this.#owner.traffic.toBrowser += bytes.length;
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
    this.#early = EMPTY;
    browser.send(early);
    this.#lastInputMs = this.#heardMs = Date.now();
    const beatMs = Math.min(HEARTBEAT_MS, this.#owner.idleDisconnectMs || HEARTBEAT_MS);
    this.#heart = setInterval(() => this.#beat(browser), beatMs);
    this.#vnc?.resume();
  }

  /** Asks the browser for a sign of life; drops it without one, and pauses it without input for long. */
  #beat(browser: BrowserSocket): void {
    const now = Date.now();
    const { idleDisconnectMs } = this.#owner;
    if (now - this.#heardMs > DEAD_VIEWER_MS) return void browser.terminate();
    if (idleDisconnectMs > 0 && now - this.#lastInputMs >= idleDisconnectMs)
      return this.end(CLOSE.paused, "paused: no input");
    browser.ping();
  }

  browserAlive(): void {
    this.#heardMs = Date.now();
  }

  fromBrowser(message: string | Buffer): void {
    if (typeof message === "string") return this.end(CLOSE.textFrame, "text frame: RFB is binary");
    this.#owner.traffic.fromBrowser += message.length;
    const bytes = this.#filter.feed(message);
    if (this.#greeting) this.#greet(bytes);
    else if (bytes.length > 0) this.#toVnc(bytes);
  }

  /** This viewer drives the size from now on: its own window's is asked for. */
  takeSize(): void {
    const message = this.#filter.claimSize();
    if (message && !this.#ended) this.#toVnc(message);
  }

  /** Plays the server of an RFB 3.8 handshake without a password, since ours with VNC is done. */
  #greet(message: Uint8Array): void {
    if (!this.#greeting) return this.#toVnc(message);
    const wanted = this.#greeting === "version" ? RFB_GREETING_BYTES : 1;
    const part = message.subarray(0, wanted - this.#greetingBytes);
    this.#greetingBytes += part.length;
    if (this.#greetingBytes < wanted) return;
    this.#greetingBytes = 0;
    // The filter takes 16 bytes for the password of another security type; to VNC they would be messages.
    if (this.#greeting === "security" && part[0] !== NO_AUTH)
      return this.end(CLOSE.malformed, "a security type that was not offered");
    if (this.#greeting === "version") {
      this.#greeting = "security";
      this.#browser?.send(Uint8Array.of(1, NO_AUTH)); // a list of one
    } else {
      this.#greeting = undefined;
      this.#browser?.send(new Uint8Array(4)); // SecurityResult: OK
    }
    if (part.length < message.length) this.#greet(message.subarray(part.length));
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
    this.visitor.over?.removeEventListener("abort", this.#over);
    this.#wake?.();
    this.#owner.ended(this);
  }

  /** The WebSocket is gone; a closing one that nobody reads is still watched until here. */
  browserClosed(code: number, reason: string): void {
    clearInterval(this.#heart);
    this.end(code, reason || "the viewer left");
  }

  /** Did it get as far as a WebSocket? */
  get isOpen(): boolean {
    return this.#browser !== undefined;
  }

  get outcome(): { code: number; reason: string } | undefined {
    return this.#ended;
  }
}

export interface BridgeOptions {
  readonly sizeLimit: SizeLimit;
  readonly maxViewers: number;
  /** Without input for so long a viewer is paused; 0: never. */
  readonly idleDisconnectMs: number;
  /** May viewers put text on the desktop's clipboard? */
  readonly mayPaste: boolean;
}

const BRIDGE_DEFAULTS: BridgeOptions = {
  sizeLimit: { width: 8192, height: 8192, pixels: MAX_DESKTOP_PIXELS },
  maxViewers: MAX_VIEWERS,
  idleDisconnectMs: 0,
  mayPaste: true,
};

/** The sessions of one desktop, and which of them drives its size: the one that was used last. */
export class Bridge implements SessionOwner {
  readonly #sessions = new Set<Session>();
  readonly #options: BridgeOptions;
  readonly #log: Log;
  readonly #listeners = new Set<() => void>();
  readonly #pages = new WeakMap<Session, string>();
  readonly #closed = new Map<string, number>();
  #driver: Session | undefined;
  #refusal: Cause | undefined;
  #lastInputMs = Date.now();
  readonly traffic: Traffic = { viewers: 0, toBrowser: 0, fromBrowser: 0 };

  constructor(log: Log, options: Partial<BridgeOptions> = {}) {
    this.#log = log;
    this.#options = { ...BRIDGE_DEFAULTS, ...options };
  }

  get size(): number {
    return this.#sessions.size;
  }

  get full(): boolean {
    return this.size >= this.#options.maxViewers;
  }

  /** Why the last viewer that came got no connection, until one gets one: a browser cannot see why itself. */
  get refusal(): Cause | undefined {
    return this.#refusal;
  }

  /** Who sees the desktop now. */
  get people(): { visitor: Visitor; since: Date }[] {
    return [...this.#sessions].filter(({ isOpen }) => isOpen);
  }

  /** When somebody last typed, pointed or pasted, in ms since the epoch. */
  get lastInputMs(): number {
    return this.#lastInputMs;
  }

  get sizeLimit(): SizeLimit {
    return this.#options.sizeLimit;
  }

  get idleDisconnectMs(): number {
    return this.#options.idleDisconnectMs;
  }

  get mayPaste(): boolean {
    return this.#options.mayPaste;
  }

  /** Calls `listener` when a viewer came or left; returns what ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * A session whose VNC side is up, ready for the upgrade. A watcher needs a password that lets it only watch.
   * @throws VncError
   */
  async connect(
    target: Target,
    password: string | undefined,
    visitor: Visitor = OWNER,
  ): Promise<Session> {
    if (visitor.over?.aborted) throw new VncError("link-over");
    if (visitor.role === "watch" && password === undefined) throw new VncError("no-watching");
    const isSame = (session: Session) => session.visitor.link === visitor.link;
    if (visitor.link && [...this.#sessions].filter(isSame).length >= MAX_VIEWERS_BY_LINK)
      throw new VncError("too-many-viewers", { limit: MAX_VIEWERS_BY_LINK });
    let session: Session | undefined;
    try {
      if (this.full) throw new VncError("too-many-viewers", { limit: this.#options.maxViewers });
      session = new Session(this, visitor);
      this.#sessions.add(session); // it counts while it dials, or a rush could pass the limit
      await session.dial(target, password);
      this.#refusal = undefined;
    } catch (error) {
      if (error instanceof VncError && mayActAs(visitor, "control")) this.#refusal = error.reason;
      this.#changed();
      throw error;
    }
    if (session.mayControl) this.#driver ??= session;
    this.traffic.viewers += 1;
    const { role, link } = visitor;
    this.#log("info", "viewer came", { viewers: this.size, ...(link ? { role, link } : {}) });
    this.#changed();
    return session;
  }

  input(session: Session): void {
    this.#driver = session;
    this.#lastInputMs = Date.now();
  }

  mayResize(session: Session): boolean {
    return this.#driver === session;
  }

  /** Whose session it is: a page by the word that it made up for itself. */
  isOf(session: Session, page: string | undefined): void {
    if (page === undefined || !PAGE_WORD.test(page)) return;
    this.#pages.set(session, page);
    this.#closed.delete(page);
  }

  /** The code with which this server closed a page's last session: jupyter-server-proxy passes none on. */
  closeCode(page: string | undefined): number | null {
    return this.#closed.get(page ?? "") ?? null;
  }

  #noteClose(session: Session): void {
    const page = this.#pages.get(session);
    const code = session.outcome?.code ?? 0;
    if (page === undefined || code < OWN_CLOSE_CODES) return;
    this.#closed.set(page, code);
    const [oldest] = this.#closed.keys();
    if (this.#closed.size > MAX_CLOSED_PAGES && oldest !== undefined) this.#closed.delete(oldest);
  }

  ended(session: Session): void {
    this.#sessions.delete(session);
    this.#noteClose(session);
    if (session.isOpen)
      this.#log("info", "viewer left", { ...session.outcome, viewers: this.size });
    if (this.#driver === session) {
      const drivers = [...this.#sessions].filter(({ mayControl }) => mayControl);
      const lastUsedFirst = drivers.sort((a, b) => b.lastInputMs - a.lastInputMs);
      this.#driver = lastUsedFirst[0];
      this.#driver?.takeSize();
    }
    this.#changed();
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
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
    perMessageDeflate: false, // the encodings of VNC are compressed already
    open: (browser: BrowserSocket) => browser.data.browserOpen(browser),
    message: (browser: BrowserSocket, message: string | Buffer<ArrayBuffer>) =>
      browser.data.fromBrowser(message),
    drain: (browser: BrowserSocket) => browser.data.browserDrained(),
    pong: (browser: BrowserSocket) => browser.data.browserAlive(),
    close: (browser: BrowserSocket, code: number, reason: string) =>
      browser.data.browserClosed(code, reason),
  };
}

// --- vnc ---
// Starts the VNC server and the desktop, watches them, and ends them without a trace.

const VNC_STATES = ["idle", "starting", "ready", "ended", "backoff", "failed", "stopping"] as const;
type VncState = (typeof VNC_STATES)[number];

/** What runs now. `exited` tells why it came to its end by itself; `stop` ends all of it. */
export interface Running {
  readonly target: Target;
  readonly display: string | null;
  readonly vnc: string | null;
  /** With this password its VNC server lets a viewer only watch; none where that cannot be had. */
  readonly watchPassword?: string | undefined;
  readonly exited: Promise<Cause>;
  /** What its own programs have in their environment; undefined while there are none, or they are not ours. */
  env?(): Record<string, string> | undefined;
  stop(): Promise<void>;
}

/** Starts a desktop; it gives up, with whatever error, when the signal aborts. */
export type Launch = (abort: AbortSignal) => Promise<Running>;

/** Causes that trying again does not mend before somebody did something. */
const FINAL_CAUSES: ReadonlySet<string> = new Set([
  "no-vnc-server",
  "no-desktop",
  "unwritable",
  "disk-full",
  "vnc-password",
  "internal",
]);

/** Lines of TigerVNC's about itself, which would push those that matter out of the tail. */
const NOISE =
  /^ *(EncodeManager|ComparingUpdateTracker|TcpSocket|Connections|VNCSConnST|SConnection|XserverDesktop):|^ {10,}|^\[mi\]/;

/** A file's text; empty without one: a cleaner of /tmp takes what is old, or its writer was killed before. */
function readIfThere(file: string): string {
  try {
    return fs.readFileSync(file, "utf8");
  } catch {
    return "";
  }
}

/** The last lines of what VNC server and desktop printed, for the page. */
export class LogTail {
  #lines: { from: string; line: string }[] = [];
  #file: string | undefined;
  #cap: Timer | undefined;
  readonly #log: Log;

  constructor(log: Log) {
    this.#log = log;
  }

  /** The last lines, or those of one part; Xvnc's statistics, which say nothing, left out. */
  lines(from?: "vnc" | "desktop"): string[] {
    if (this.#file === undefined)
      return this.#lines.flatMap((entry) => (!from || entry.from === from ? [entry.line] : []));
    const lines = readIfThere(this.#file).split("\n");
    return lines.filter((line) => line.trim() && !NOISE.test(line)).slice(-LOG_TAIL_LINES);
  }

  clear(): void {
    this.#lines = [];
    this.#file = undefined;
    clearInterval(this.#cap);
  }

  /** From now on the lines are those of a file, which the desktop writes itself. */
  readFrom(file: string): void {
    this.#file = file;
    clearInterval(this.#cap);
    this.#cap = setInterval(() => {
      // Its writers append, so that they go on at the new end.
      const size = fs.statSync(file, { throwIfNoEntry: false })?.size ?? 0;
      if (size > MAX_LOG_BYTES) fs.truncateSync(file);
    }, LOG_CAP_INTERVAL_MS);
  }

  /** Reads a child's output to its end; a child that writes to a file has none here. */
  async follow(
    stream: ReadableStream<Uint8Array> | number | undefined,
    from: string,
  ): Promise<void> {
    if (!(stream instanceof ReadableStream)) return;
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
    if (!line || NOISE.test(line)) return;
    this.#lines.push({ from, line });
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
  readonly #launch: Launch;
  readonly #tail: LogTail;
  readonly #log: Log;
  readonly #listeners = new Set<() => void>();
  /** How often it entered each state. */
  readonly entered = Object.fromEntries(VNC_STATES.map((state) => [state, 0])) as Record<
    VncState,
    number
  >;
  #state: VncState = "idle";
  #since = new Date();
  #cause: Cause | undefined;
  #running: Running | undefined;
  #starting: Promise<void> | undefined;
  #abort = new AbortController();
  #stopping: Promise<void> | undefined;
  #stopsAsked = 0;
  /** When it failed, in ms; of the last GIVE_UP_WINDOW_MS only. */
  #failures: number[] = [];
  #retry: { timer: Timer; at: number } | undefined;

  constructor(launch: Launch, tail: LogTail, log: Log) {
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
      // Why a desktop ended stands in its own lines, not in those of the VNC server that it took along.
      log:
        this.#state === "ready"
          ? []
          : this.#tail.lines(this.#cause?.code === "desktop-exited" ? "desktop" : undefined),
      display: this.#running?.display ?? null,
      vnc: this.#running?.vnc ?? null,
    };
  }

  /** The environment of a program on the desktop: undefined when none is up, or when it is somebody else's. */
  get desktopEnv(): Record<string, string> | undefined {
    return this.#state === "ready" ? this.#running?.env?.() : undefined;
  }

  /** Calls `listener` after every transition; returns what ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get watchPassword(): string | undefined {
    return this.#running?.watchPassword;
  }

  /** The target, once it is up: undefined when there is none and none is being started. */
  async ready(mayStart = true): Promise<Target | undefined> {
    await (this.#state === "idle" && mayStart ? this.start() : this.#starting);
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

  /** Stops and starts it, unless somebody asks for a stop meanwhile. */
  async restart(): Promise<void> {
    const stopped = this.stop();
    const asked = this.#stopsAsked;
    await stopped;
    if (this.#stopsAsked === asked) await this.start();
  }

  /** Ends the desktop and all that belongs to it; the state is then `ended`, for that cause. */
  async stop(code: "stopped" | "idle" = "stopped"): Promise<void> {
    this.#stopsAsked += 1;
    if (this.#starting) this.#abort.abort();
    await this.#starting;
    await this.#stopping;
    if (this.#state === "idle" || this.#state === "ended") return;
    await this.#winding(() => this.#enter("ended", { code, detail: {} }));
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
      then();
    })().finally(() => {
      this.#stopping = undefined;
    });
    return this.#stopping;
  }

  #begin(): Promise<void> {
    this.#cancelRetry();
    this.#tail.clear();
    this.#enter("starting");
    this.#abort = new AbortController();
    this.#starting = this.#run().finally(() => {
      this.#starting = undefined;
    });
    return this.#starting;
  }

  async #run(): Promise<void> {
    try {
      const running = await this.#launch(this.#abort.signal);
      this.#running = running;
      this.#enter("ready");
      void running.exited.then((cause) => {
        if (this.#running !== running || this.#stopping) return; // stop() is at it
        void this.#winding(() => this.#fell(cause), cause);
      });
    } catch (error) {
      if (this.#abort.signal.aborted) return; // stop() says what follows
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
    const isLast = this.isLast(cause.code);
    const now = Date.now();
    this.#failures = [...this.#recent(), now];
    if (isLast) return this.#enter("failed", cause);
    const wait = backoffMs(this.#failures.length);
    this.#retry = { at: now + wait, timer: setTimeout(() => void this.#begin(), wait) };
    this.#enter("backoff", cause);
  }

  /** Would a failure for this cause, now, be one that is not tried again? */
  isLast(cause: string): boolean {
    return FINAL_CAUSES.has(cause) || this.#recent().length + 1 >= GIVE_UP_FAILURES;
  }

  #recent(): number[] {
    return this.#failures.filter((at) => Date.now() - at < GIVE_UP_WINDOW_MS);
  }

  #cancelRetry(): void {
    clearTimeout(this.#retry?.timer);
    this.#retry = undefined;
  }

  #enter(state: VncState, cause?: Cause): void {
    this.#state = state;
    this.entered[state] += 1;
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
export const attach =
  (target: Target): Launch =>
  async () => ({
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
  /** The desktop outlives a server that is killed, and the next one takes it back. */
  readonly keep?: boolean;
  readonly clipboard?: Config["clipboard"];
  /** The VNC server is to know a password that lets a viewer only watch. */
  readonly watchable?: boolean;
  /** Its programs get JupyterHub's variables. */
  readonly passHubToken?: boolean;
  readonly abort?: AbortSignal;
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

/**
 * The environment that the programs of a desktop have: of its session, once there is one, since that has the address
 * of its D-Bus; before, that of the script that starts it.
 */
function markedEnv(mark: string): Record<string, string> | undefined {
  const found = markedPids(mark).flatMap((pid) => {
    const entries = readIfThere(`/proc/${pid}/environ`).split("\0").filter(Boolean);
    const pairs = entries.map((entry) => [entry.split("=", 1)[0], entry.replace(/^.*?=/s, "")]);
    const env: Record<string, string> = Object.fromEntries(pairs);
    return env.DISPLAY ? [env] : [];
  });
  return found.find((env) => env.DBUS_SESSION_BUS_ADDRESS) ?? found[0];
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
    // A session manager that is ended leaves its socket.
    for (const pid of signalled) fs.rmSync(`/tmp/.ICE-unix/${pid}`, { force: true });
  }
}

// Waits for the end of this server, however it comes: its end of the pipe closes even after SIGKILL.
const REAPER = `trap '' INT TERM HUP; read -r _
for signal in TERM KILL; do
  found=$(grep -lsze "^${MARK}=$1\\$" /proc/[0-9]*/environ)
  [ -n "$found" ] || break
  for file in $found; do
    pid=\${file#/proc/}; pid=\${pid%/environ}
    kill -"$signal" "$pid" 2>/dev/null; rm -f "/tmp/.ICE-unix/$pid"
  done
  sleep 1
done
[ "$(cat "$2/mark" 2>/dev/null)" = "$1" ] && rm -rf "$2"`;

/** Where the mark of an earlier server's desktop is moved to, so that its reaper leaves the directory alone. */
const EARLIER_MARK = "mark.before";

/**
 * Makes the runtime directory, and a tiny process that ends what carries the mark and removes the directory once
 * this server is gone. The file `mark` in it tells whose it is, should another server have taken it over by then.
 * With `keep` there is no such process: the desktop is to outlive a server that was killed.
 */
async function startReaper(
  mark: string,
  { runtimeDir, keep }: DesktopOptions,
): Promise<{ stop(): Promise<void> }> {
  const before = ["mark", EARLIER_MARK].map((name) => readIfThere(path.join(runtimeDir, name)));
  try {
    fs.mkdirSync(runtimeDir, { mode: 0o700, recursive: true });
    fs.writeFileSync(path.join(runtimeDir, "mark"), mark, { mode: 0o600 });
  } catch (error) {
    throw placeError(runtimeDir, error);
  }
  // What a killed server left: with --keep nobody else ends it, and an Xvnc that ends later removes the new socket.
  for (const old of before) if (/^[0-9a-f]{24}$/.test(old)) await endMarked(old);
  if (keep) return { stop: () => endKept(mark, runtimeDir) };
  const reaper = Bun.spawn(["/bin/sh", "-c", REAPER, "jupyter-desktop-reaper", mark, runtimeDir], {
    stdio: ["pipe", "ignore", "ignore"],
    env: { PATH: SYSTEM_PATH },
    cwd: "/",
    detached: true,
  });
  return {
    stop: async () => {
      await endMarked(mark);
      reaper.kill("SIGKILL"); // it ignores the others; the directory is still this server's
      await reaper.exited;
    },
  };
}

// --keep: what a later server needs to know of a desktop. It is checked before it is trusted.
const keptDesktop = z.object({
  mark: z.string().regex(/^[0-9a-f]{24}$/),
  display: z.string().regex(/^:\d+$/),
  vnc: z.string(),
  vncPid: z.int().positive(),
  sessionPid: z.int().positive(),
  /** Start times of both processes: a process id alone is used again, in a container soon. */
  vncStart: z.string(),
  sessionStart: z.string(),
  clipboard: z.string(),
  watchPassword: z.string().optional(),
});
type KeptDesktop = z.output<typeof keptDesktop>;

const keptFile = (runtimeDir: string) => path.join(runtimeDir, "desktop.json");

async function endKept(mark: string, runtimeDir: string): Promise<void> {
  await endMarked(mark);
  fs.rmSync(keptFile(runtimeDir), { force: true });
}

/** When a process started, in clock ticks since boot (field 22 of proc(5)'s stat); undefined when there is none. */
function processStart(pid: number): string | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    const [state, ...rest] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return state === "Z" || state === "X" ? undefined : rest[18]; // state is field 3
  } catch {
    return undefined;
  }
}

function readKept(runtimeDir: string): KeptDesktop | undefined {
  try {
    return keptDesktop.safeParse(JSON.parse(fs.readFileSync(keptFile(runtimeDir), "utf8"))).data;
  } catch {
    return undefined; // none was kept
  }
}

const isAlive = ({ vncPid, vncStart, sessionPid, sessionStart }: KeptDesktop) =>
  processStart(vncPid) === vncStart && processStart(sessionPid) === sessionStart;

/** The desktop that an earlier server left, if it is alive and is the one that the file tells of. */
async function adoptKept({
  runtimeDir,
  tail,
  clipboard,
}: DesktopOptions): Promise<Running | undefined> {
  const kept = readKept(runtimeDir);
  if (!kept) return undefined;
  const { mark, display, vnc, vncPid, sessionPid, vncStart, watchPassword } = kept;
  const target: Target = { kind: "unix", path: path.join(runtimeDir, "vnc.sock") };
  const pids = markedPids(mark);
  // Xvnc was told at its start what may be copied: one that was told otherwise is not taken back.
  if (
    kept.clipboard !== (clipboard ?? "both") ||
    !isAlive(kept) ||
    !pids.includes(vncPid) ||
    !pids.includes(sessionPid) ||
    !(await isListening(target))
  ) {
    await endKept(mark, runtimeDir);
    return undefined;
  }
  tail.readFrom(path.join(runtimeDir, "desktop.log"));
  // It is no child of this server, so that its end must be looked for.
  const { promise: exited, resolve } = Promise.withResolvers<Cause>();
  const watch = setInterval(() => {
    if (isAlive(kept)) return;
    clearInterval(watch);
    const isVnc = processStart(vncPid) !== vncStart;
    resolve({
      code: isVnc ? "vnc-exited" : "logged-out",
      detail: isVnc ? { code: null, signal: null } : {},
    });
  }, ADOPTED_POLL_MS);
  const stop = async () => {
    clearInterval(watch);
    await endKept(mark, runtimeDir);
  };
  return { target, display, vnc, watchPassword, exited, stop, env: () => markedEnv(mark) };
}

const SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** With these one acts as the user's Jupyter, as JupyterHub's server, or comes in here. */
const SECRETS =
  /^(JPY_API_TOKEN|JUPYTER_TOKEN|CONFIGPROXY_AUTH_TOKEN|JUPYTERHUB_API_TOKEN|JUPYTER_DESKTOP_TOKEN)$/;

/**
 * Variables that a desktop must not have from whoever starts it: another session's (its display, its bus), library
 * paths of conda and Python that break GTK and D-Bus, and secrets.
 */
const NOT_FOR_DESKTOP =
  /^(DISPLAY|XAUTHORITY|WAYLAND_DISPLAY|SESSION_MANAGER|DBUS_|DESKTOP_SESSION|GDMSESSION|XDG_(SESSION_|CURRENT_DESKTOP|MENU_PREFIX|DATA_DIRS|SEAT|VTNR)|WINDOWID|LD_|PYTHON(HOME|PATH)|QT_|GTK_|GDK_|GIO_|GSETTINGS_|FONTCONFIG_|JPY_API_TOKEN|JUPYTER_TOKEN$|CONFIGPROXY_AUTH_TOKEN|JUPYTERHUB_|JUPYTER_DESKTOP_|npm_|NODE_ENV|BUN_|INIT_CWD|TMUX|STY|TERM)/;

/** The desktop's environment: whose it is, where things are, and nothing of another session's. */
export function desktopEnv(
  env: NodeJS.ProcessEnv,
  runtimeDir: string,
  passHubToken = false,
): Record<string, string> {
  const isHubs = (name: string) => passHubToken && name.startsWith("JUPYTERHUB_");
  const kept = Object.entries(env).filter(([name]) => !NOT_FOR_DESKTOP.test(name) || isHubs(name));
  const userPath = env.PATH || SYSTEM_PATH;
  const uid = process.getuid?.() ?? 0;
  const user = env.USER || env.LOGNAME || userName() || `uid${uid}`;
  return {
    ...(Object.fromEntries(kept) as Record<string, string>),
    USER: user,
    LOGNAME: user,
    SHELL: env.SHELL || "/bin/bash",
    HOME: usableHome(env, runtimeDir),
    XDG_RUNTIME_DIR: usable(env.XDG_RUNTIME_DIR) ? env.XDG_RUNTIME_DIR : runtimeDir,
    XDG_SESSION_TYPE: "x11",
    // System directories first, or conda's dbus-daemon is taken for the system's and XFCE does not start.
    PATH: [...new Set([...SYSTEM_PATH.split(":"), ...userPath.split(":")])].join(":"),
    JUPYTER_DESKTOP_USER_PATH: userPath,
    JUPYTER_DESKTOP_RUNTIME_DIR: runtimeDir,
  };
}

function userName(): string | undefined {
  try {
    const { username } = os.userInfo();
    if (username !== "unknown") return username; // Bun's word where USER is not set
    return Bun.spawnSync(["/usr/bin/id", "-un"]).stdout.toString().trim() || undefined;
  } catch {
    return undefined; // no passwd entry, as with `docker run --user 12345`
  }
}

const isDir = (name: string | undefined) =>
  name !== undefined && (fs.statSync(name, { throwIfNoEntry: false })?.isDirectory() ?? false);

const usable = (name: string | undefined): name is string =>
  name !== undefined && isDir(name) && writable(name);

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
  if (home !== "/" && usable(home)) return home;
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
    tools: "x11-xkb-utils x11-xserver-utils",
    desktop:
      "xfce4 xfce4-terminal dbus-x11 x11-xserver-utils adwaita-icon-theme librsvg2-common fonts-dejavu-core libgl1-mesa-dri",
  },
  dnf: {
    install: "dnf install -y",
    vnc: "tigervnc-server-minimal",
    tools: "setxkbmap xrdb",
    desktop:
      "xfce4-session xfwm4 xfdesktop xfce4-panel xfce4-settings xfce4-terminal Thunar dbus-daemon xset dejavu-sans-fonts",
  },
  apk: {
    install: "apk add",
    vnc: "tigervnc",
    tools: "setxkbmap xrdb",
    desktop: "xfce4 xfce4-terminal dbus dbus-x11 xset font-dejavu adwaita-icon-theme",
  },
  pacman: {
    install: "pacman -Sy --needed --noconfirm",
    vnc: "tigervnc",
    tools: "xorg-setxkbmap xorg-xrdb",
    desktop: "xfce4 xfce4-terminal xorg-xset ttf-dejavu",
  },
  zypper: {
    install: "zypper --non-interactive install --no-recommends",
    vnc: "xorg-x11-Xvnc",
    tools: "setxkbmap xrdb",
    desktop:
      "xfce4-session xfwm4 xfdesktop xfce4-panel xfce4-settings xfce4-terminal thunar dbus-1 xset dejavu-fonts",
  },
};

type PackageManager = keyof typeof PACKAGES;
type PackageGroup = "vnc" | "desktop" | "tools";

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

/** All that a program prints when it is asked with one argument. */
async function ask(file: string, argument: string): Promise<string> {
  const child = Bun.spawn([file, argument], {
    stdio: ["ignore", "pipe", "pipe"],
    timeout: DIAL_TIMEOUT_MS,
  });
  const said = [new Response(child.stdout).text(), new Response(child.stderr).text()];
  return (await Promise.all(said)).join("\n");
}

/** The VNC server on this machine, told apart by what it says of itself. */
export async function findXvnc(pathList: string): Promise<Xvnc | undefined> {
  const names = ["Xtigervnc", "Xvnc"].map((name) => Bun.which(name, { PATH: pathList }));
  const file = [...names, Bun.which("/opt/TurboVNC/bin/Xvnc")].find((found) => found !== null);
  if (!file) return undefined;
  const banner = /(TigerVNC|TurboVNC).*?(\d+(?:\.\d+)+)/;
  // TigerVNC 1.15 says nothing to -version.
  const match = banner.exec(await ask(file, "-version")) ?? banner.exec(await ask(file, "-help"));
  const kind = match?.[1] === "TurboVNC" ? "TurboVNC" : match ? "TigerVNC" : "Xvnc";
  return { file, kind, version: match?.[2] ?? "" };
}

/** TigerVNC sends a viewer with the second password of its file no clipboard, and takes nothing from it. */
const watchable = ({ kind }: Xvnc, options: DesktopOptions) =>
  options.watchable === true && kind === "TigerVNC";
const watchFile = (runtimeDir: string) => path.join(runtimeDir, "passwd");

/** Writes the password file: the first password, for all rights, is known to nobody. */
function writeWatchPassword(runtimeDir: string): string {
  const password = () => randomBytes(6).toString("base64url"); // 8 characters, all that VncAuth looks at
  const watchPassword = password();
  const passwords = [password(), watchPassword].map(vncPasswordBytes);
  fs.writeFileSync(watchFile(runtimeDir), Buffer.concat(passwords), { mode: 0o600 });
  return watchPassword;
}

export function xvncArgs(xvnc: Xvnc, options: DesktopOptions): string[] {
  const own = [
    ["-displayfd", "3"],
    ["-rfbunixpath", path.join(options.runtimeDir, "vnc.sock")],
    ["-rfbunixmode", "0600"],
    ["-auth", path.join(options.runtimeDir, "Xauthority")],
    ["-SecurityTypes", watchable(xvnc, options) ? "None,VncAuth" : "None"], // the socket is this user's only
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
    own.push(
      ["-rfbport", "-1"],
      ["-AcceptSetDesktopSize=1"],
      ["-SendPrimary=0"],
      // All viewers come from one host to it: five that left early would lock out everybody for seconds.
      ["-BlacklistThreshold=1000000"],
    );
  if (watchable(xvnc, options)) own.push(["-PasswordFile", watchFile(options.runtimeDir)]);
  const { clipboard = "both" } = options;
  const isTurbo = xvnc.kind === "TurboVNC";
  if (clipboard === "out" || clipboard === "off")
    own.push(isTurbo ? ["-noclipboardrecv"] : ["-AcceptCutText=0", "-SetPrimary=0"]);
  if (clipboard === "in" || clipboard === "off")
    own.push(isTurbo ? ["-noclipboardsend"] : ["-SendCutText=0"]); // SendPrimary is off anyway
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

/** "Cannot write there" as a cause, with what to type: to see what fills the disk, or to get the directory. */
function placeError(place: string, error: unknown): VncError {
  if (errorCode(error) === "ENOSPC" || errorCode(error) === "EDQUOT") {
    const dir = path.dirname(place);
    return new VncError("disk-full", {
      path: place,
      command: `df -h ${dir}; du -xhd2 ${dir} | sort -h | tail`,
    });
  }
  const command = `sudo install -d -m 700 -o ${process.getuid?.() ?? 0} ${place}`;
  return new VncError("unwritable", { path: place, error: errorText(error), command });
}

/** How a child ended, as parameters of a cause. */
const exitDetail = (child: Subprocess, startedMs: number): Cause["detail"] => ({
  code: child.exitCode,
  signal: child.signalCode ?? null,
  afterMs: Date.now() - startedMs,
});

/** The script that starts the desktop: the option's, the user's own, or the bundled one (undefined). */
function chooseXstartup(options: Pick<DesktopOptions, "xstartup" | "env">): string | undefined {
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

/** Where the output of the desktop goes: to the tail through pipes, or with --keep to a file that outlives us. */
function openLog({ keep, runtimeDir, tail }: DesktopOptions): number | "pipe" {
  if (!keep) return "pipe";
  const file = path.join(runtimeDir, "desktop.log");
  tail.readFrom(file);
  return fs.openSync(file, "a", 0o600);
}

/** Spawns a part of the desktop, in a process group of its own. */
function spawnPart(
  command: string[],
  env: Record<string, string>,
  { out, cwd }: { out: "pipe" | number; cwd: string },
) {
  return Bun.spawn(command, { env, cwd, stdio: ["ignore", out, out], detached: true });
}

function startSession(options: DesktopOptions, env: Record<string, string>, out: "pipe" | number) {
  const script = chooseXstartup(options);
  const xstartup = script ?? "";
  const startedMs = Date.now();
  try {
    // The bundled script needs no file: it goes to sh as its -c.
    const command = script ? [script] : ["/bin/sh", "-c", bundledXstartup, "xstartup"];
    const child = spawnPart(command, env, { out, cwd: env.HOME ?? "/" });
    void options.tail.follow(child.stdout, "desktop");
    void options.tail.follow(child.stderr, "desktop");
    const exited = child.exited.then((code): Cause => {
      if (!script && code === NO_DESKTOP_EXIT)
        return { code: "no-desktop", detail: { command: installCommand("desktop") } };
      // The bundled script never puts its desktop into the background.
      if (code === 0 && (!script || Date.now() - startedMs > QUICK_EXIT_MS))
        return { code: "logged-out", detail: {} };
      return { code: "desktop-exited", detail: { ...exitDetail(child, startedMs), xstartup } };
    });
    return { pid: child.pid, exited };
  } catch (error) {
    const detail = { code: null, signal: null, afterMs: 0, xstartup, error: errorText(error) };
    return { pid: 0, exited: Promise.resolve({ code: "desktop-exited", detail }) };
  }
}

/** Starts Xvnc; its display number is known when it is up. A VncError when it ends or is silent instead. */
async function startXvnc(xvnc: Xvnc, options: DesktopOptions, env: Record<string, string>) {
  const startedMs = Date.now();
  const err = openLog(options);
  // The shell makes descriptor 3 of the pipe that we read, and then becomes Xvnc.
  const child = Bun.spawn(
    ["/bin/sh", "-c", 'exec "$@" 3>&1 1>&2', "sh", xvnc.file, ...xvncArgs(xvnc, options)],
    {
      env,
      cwd: options.runtimeDir,
      stdio: ["ignore", "pipe", err],
      detached: true,
    },
  );
  void options.tail.follow(child.stderr, "vnc");
  const timer = setTimeout(() => child.kill("SIGKILL"), XVNC_READY_TIMEOUT_MS);
  options.abort?.addEventListener("abort", () => child.kill("SIGKILL"));
  let said = "";
  for await (const chunk of child.stdout) {
    said += Buffer.from(chunk).toString();
    if (said.includes("\n")) break;
  }
  clearTimeout(timer);
  const exited = child.exited.then((): Cause => ({
    code: "vnc-exited",
    detail: exitDetail(child, startedMs),
  }));
  if (/^\d+\n/.test(said)) return { pid: child.pid, display: `:${said.trim()}`, exited, out: err };
  const { code, detail } = await exited;
  if (Date.now() - startedMs < XVNC_READY_TIMEOUT_MS) throw new VncError(code, detail);
  throw new VncError("vnc-timeout", { ms: XVNC_READY_TIMEOUT_MS });
}

/** Writes the display's cookie; returns the environment of all that may use it. */
function prepareDisplay(options: DesktopOptions, mark: string): Record<string, string> {
  const authFile = path.join(options.runtimeDir, "Xauthority");
  try {
    fs.writeFileSync(authFile, xauthority(randomBytes(16)), { mode: 0o600 });
    const { env, runtimeDir, passHubToken } = options;
    return { ...desktopEnv(env, runtimeDir, passHubToken), XAUTHORITY: authFile, [MARK]: mark };
  } catch (error) {
    throw placeError(options.runtimeDir, error);
  }
}

/**
 * Starts Xvnc on a private socket and the desktop in it.
 * @throws VncError
 */
export async function launchDesktop(options: DesktopOptions): Promise<Running> {
  const { runtimeDir, keep } = options;
  const adopted = keep ? await adoptKept(options) : undefined;
  if (adopted) return adopted;
  const xvnc = await findXvnc(`${options.env.PATH ?? ""}:${SYSTEM_PATH}`);
  if (!xvnc) throw new VncError("no-vnc-server", { command: installCommand("vnc", "desktop") });
  const mark = randomBytes(MARK_BYTES).toString("hex");
  const { stop } = await startReaper(mark, options);
  try {
    const env = prepareDisplay(options, mark);
    const watchPassword = watchable(xvnc, options) ? writeWatchPassword(runtimeDir) : undefined;
    const server = await startXvnc(xvnc, options, env);
    const { display } = server;
    const session = startSession(options, { ...env, DISPLAY: display }, server.out);
    if (typeof server.out === "number") fs.closeSync(server.out);
    const vnc = `${xvnc.kind} ${xvnc.version}`.trim();
    const starts = { vncStart: processStart(server.pid), sessionStart: processStart(session.pid) };
    const pids = { vncPid: server.pid, sessionPid: session.pid };
    const told = { clipboard: options.clipboard ?? "both", watchPassword };
    const kept = { mark, display, vnc, ...told, ...pids, ...starts };
    if (keep) fs.writeFileSync(keptFile(runtimeDir), JSON.stringify(kept), { mode: 0o600 });
    const target: Target = { kind: "unix", path: path.join(runtimeDir, "vnc.sock") };
    const exited = Promise.race([server.exited, session.exited]);
    const sessionEnv = () => markedEnv(mark) ?? { ...env, DISPLAY: display };
    return { target, display, vnc, watchPassword, exited, stop, env: sessionEnv };
  } catch (error) {
    await stop();
    throw error instanceof VncError ? error : placeError(runtimeDir, error);
  }
}

/** Does something accept connections there? */
async function isListening(target: Target): Promise<boolean> {
  try {
    const socket = await connect(target, { data() {}, error() {} }, undefined);
    socket.end();
    return true;
  } catch {
    return false;
  }
}

/** Does a VNC server greet there? Silence counts as one: dial() tells what it is. */
async function greets(target: Target): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => resolve(true), DIAL_TIMEOUT_MS);
  try {
    // It is heard out: wayvnc 0.5 dies of a connection that ends before its greeting.
    const no = () => resolve(false);
    const socket = await connect(
      target,
      { data: () => resolve(true), close: no, error: no },
      undefined,
    );
    const greeted = await promise;
    socket.end();
    return greeted;
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Starts the user's own command and waits until a VNC server greets on the target.
 * @throws VncError
 */
export async function launchCommand(
  command: string,
  target: Target,
  options: DesktopOptions,
): Promise<Running> {
  const mark = randomBytes(MARK_BYTES).toString("hex");
  const { stop } = await startReaper(mark, options);
  const startedMs = Date.now();
  // The user's environment but for secrets: the command may be for the display of this very session.
  const inherited = Object.fromEntries(
    Object.entries(options.env).filter(([name]) => !SECRETS.test(name)),
  );
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
  while (child.signalCode === null && (child.exitCode === null || child.exitCode === 0)) {
    if (await greets(target)) {
      const exited = child.exited.then((code) =>
        code === 0 && markedPids(mark).length > 0
          ? new Promise<Cause>(() => {})
          : { code: "vnc-exited", detail: exitDetail(child, startedMs) },
      );
      return { target, display: null, vnc: null, exited, stop };
    }
    if (options.abort?.aborted || Date.now() - startedMs > COMMAND_READY_TIMEOUT_MS) {
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

/** Where the directories of this user's servers may be, the best first. */
function runtimePlaces(env: NodeJS.ProcessEnv): string[] {
  const own = `jupyter-desktop-${process.getuid?.() ?? 0}`;
  const inTmp = [env.TMPDIR, "/tmp"].flatMap((tmp) => (tmp ? [path.join(tmp, own)] : []));
  return [
    ...(env.XDG_RUNTIME_DIR ? [path.join(env.XDG_RUNTIME_DIR, "jupyter-desktop")] : []),
    ...new Set(inTmp),
  ];
}

/**
 * The directory of this server's sockets, cookie and state: the same after a restart, private, and short enough for
 * a socket's path.
 * @throws VncError when no place can be written, or when it belongs to somebody else.
 */
export function chooseRuntimeDir(name: string, env: NodeJS.ProcessEnv): string {
  const uid = process.getuid?.() ?? 0;
  const places = runtimePlaces(env);
  let problem: VncError | undefined;
  for (const place of places) {
    const dir = path.join(place, name);
    if (Buffer.byteLength(path.join(dir, "vnc.sock")) > SOCKET_PATH_BYTES) continue;
    try {
      fs.mkdirSync(place, { mode: 0o700, recursive: true });
      const stat = fs.lstatSync(place);
      // Anyone may make a directory of this name in /tmp before us, and read what we then put there.
      if (!stat.isDirectory() || stat.uid !== uid || (stat.mode & 0o022) !== 0) {
        throw new Error("it is not a private directory of this user (mode 0700)");
      }
      fs.chmodSync(place, 0o700);
      fs.mkdirSync(dir, { mode: 0o700, recursive: true });
      const probe = path.join(dir, "probe");
      fs.writeFileSync(probe, "x".repeat(4096)); // a full disk takes names, but no content
      fs.rmSync(probe);
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

// --- settings ---
// Keyboard layout and scale of a desktop that runs, by the programs that set them there.

/** A keyboard layout that X knows; the titles are X's own. */
export interface Layout {
  readonly name: string;
  readonly title: string;
  readonly variants: readonly { readonly name: string; readonly title: string }[];
}

const XKB_RULES = ["base", "evdev"].map((name) => `/usr/share/X11/xkb/rules/${name}.lst`);

/** Reads X's list of layouts: "! layout" begins lines of name and title, "! variant" those of name, layout, title. */
export function parseLayouts(rules: string): Layout[] {
  const parts = rules.split(/^! */m);
  const lines = (part: string) =>
    (parts.find((text) => text.startsWith(`${part}\n`)) ?? "").split("\n").slice(1);
  const variants = lines("variant").flatMap((line) => {
    const [, name, layout, title] = /^ +(\S+) +(\w+): (.+)$/.exec(line) ?? [];
    return name && layout && title ? [{ name, layout, title }] : [];
  });
  return lines("layout").flatMap((line) => {
    const [, name, title] = /^ +(\w+) +(.+)$/.exec(line) ?? [];
    if (!name || !title) return [];
    const own = variants.filter(({ layout }) => layout === name);
    return [{ name, title, variants: own.map(({ name, title }) => ({ name, title })) }];
  });
}

type DesktopEnv = Readonly<Record<string, string>>;

/**
 * Runs a program of the desktop's to its end; what it printed.
 * @throws VncError when it is not installed, or fails.
 */
async function runTool(env: DesktopEnv, command: [string, ...string[]], input = "") {
  const [program, ...args] = command;
  const file = Bun.which(program, { PATH: env.PATH ?? SYSTEM_PATH });
  if (!file) throw new VncError("no-program", { program, command: installCommand("tools") });
  const child = Bun.spawn([file, ...args], {
    env,
    stdio: [Buffer.from(input), "pipe", "pipe"],
    timeout: DIAL_TIMEOUT_MS,
  });
  const [said, error] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  if ((await child.exited) === 0) return said;
  throw new VncError("program-failed", { program, error: error.trim().slice(0, LOG_LINE_CHARS) });
}

/** The layouts to choose from, and the one that is set: the first, where there are several. */
async function readKeyboard(env: DesktopEnv) {
  const said = await runTool(env, ["setxkbmap", "-query"]);
  const first = (name: string) => new RegExp(`^${name}: +([^,\\s]*)`, "m").exec(said)?.[1] ?? "";
  const rules = XKB_RULES.map(readIfThere).find(Boolean) ?? "";
  return { layout: first("layout"), variant: first("variant"), layouts: parseLayouts(rules) };
}

const keyboardChoice = z.object({
  layout: z.string().regex(/^\w{1,40}$/),
  variant: z
    .string()
    .regex(/^[\w-]{0,40}$/)
    .default(""),
});

/** Sets a layout, if it is one that X knows. */
async function setKeyboard(env: DesktopEnv, choice: z.output<typeof keyboardChoice>) {
  const { layout, variant } = choice;
  const { layouts } = await readKeyboard(env);
  const known = layouts.find(({ name }) => name === layout);
  if (!known || (variant && !known.variants.some(({ name }) => name === variant)))
    throw new VncError("unknown-layout", { layout, variant });
  await runTool(env, ["setxkbmap", "-layout", layout, "-variant", variant]);
  return { layout, variant };
}

const scaleChoice = z.object({ factor: z.number().min(1).max(4) });

const X_DPI = 96; // what X programs take for the scale of 1

/** The environment of a desktop once it has its D-Bus, or is too old to get one. */
async function settledEnv(supervisor: Supervisor): Promise<DesktopEnv | undefined> {
  for (;;) {
    const env = supervisor.desktopEnv;
    const isYoung = Date.now() - Date.parse(supervisor.status.since) < BUS_START_MS;
    if (!env || env.DBUS_SESSION_BUS_ADDRESS || !isYoung) return env;
    await Bun.sleep(SESSION_POLL_MS);
  }
}

/**
 * Makes the programs of the desktop draw larger, for a screen with small pixels. A factor of 1 takes back what was set
 * here before, and leaves alone what the person set.
 */
async function setScale(
  env: DesktopEnv,
  { factor }: z.output<typeof scaleChoice>,
  restart: typeof restartXfceParts,
) {
  if (env.XDG_CURRENT_DESKTOP === "XFCE" && env.DBUS_SESSION_BUS_ADDRESS) {
    // Not waited for; what fails of it is a panel that stays as large as it was.
    if (await scaleXfce(env, factor)) void restart(env).catch(() => {});
    return { factor };
  }
  // Programs that start from now on read this; it is all that desktops have in common.
  const isSet = /^Xft\.dpi:/m.test(await runTool(env, ["xrdb", "-query"]));
  const dpi = Math.round(X_DPI * factor);
  if (factor > 1 || isSet) await runTool(env, ["xrdb", "-merge"], `Xft.dpi: ${dpi}\n`);
  return { factor };
}

/** GTK takes whole factors for all that it draws, and letters of any size besides. Has the whole one changed? */
async function scaleXfce(env: DesktopEnv, factor: number): Promise<boolean> {
  const xfconf = (channel: string, name: string, ...more: string[]) =>
    runTool(env, ["xfconf-query", "-c", channel, "-p", name, ...more]);
  const get = (channel: string, name: string) =>
    xfconf(channel, name).then(
      (said) => said.trim(),
      () => "", // it fails for what is not set
    );
  const set = (channel: string, name: string, value: string | number) =>
    xfconf(
      channel,
      name,
      "-n",
      "-t",
      typeof value === "number" ? "int" : "string",
      "-s",
      `${value}`,
    );
  const [ours, whole] = ["jupyter-desktop", Math.floor(factor)] as const;
  const [last = "", lastMark] = (await get(ours, "/scale")).split(" ");
  const isSame = Number(last || 1) === factor && (lastMark === env[MARK] || !last);
  if (isSame) return false;
  if (!last) {
    const [scale, dpi] = await Promise.all([
      get("xsettings", "/Gdk/WindowScalingFactor"),
      get("xsettings", "/Xft/DPI"),
    ]);
    await set(ours, "/before", `${scale || 1} ${dpi || X_DPI}`);
  }
  const [scale = 1, dpi = X_DPI] =
    factor > 1
      ? [whole, Math.round((X_DPI * factor) / whole)]
      : (await get(ours, "/before")).split(" ").map(Number);
  await set("xsettings", "/Gdk/WindowScalingFactor", scale);
  await set("xsettings", "/Xft/DPI", dpi); // never without one: XFCE takes that for 50
  if (/^Default(-xhdpi)?$/.test(await get("xfwm4", "/general/theme")))
    await set("xfwm4", "/general/theme", scale > 1 ? "Default-xhdpi" : "Default");
  if (factor > 1) await set(ours, "/scale", `${factor} ${env[MARK]}`);
  else await xfconf(ours, "/scale", "-r");
  const wasWhole = lastMark === env[MARK] ? Math.floor(Number(last)) : 1;
  return wasWhole !== scale;
}

/** XFCE's panel and desktop are the two GTK programs that see a change of the scale only at their start. */
async function restartXfceParts(env: DesktopEnv): Promise<void> {
  const parts = ["xfce4-panel", "xfdesktop"];
  const running = () => {
    const names = markedPids(env[MARK] ?? "").map((pid) => readIfThere(`/proc/${pid}/comm`).trim());
    return parts.filter((name) => names.includes(name));
  };
  const waitFor = async (count: number) => {
    const deadline = Date.now() + SESSION_START_MS;
    while (running().length !== count && Date.now() < deadline) await Bun.sleep(SESSION_POLL_MS);
  };
  await waitFor(parts.length); // a session that has just begun starts them in a moment
  await Bun.sleep(PANEL_START_MS);
  const found = running();
  await Promise.all(found.map((name) => runTool(env, [name, "--quit"])));
  await waitFor(0); // a second one ends itself while there is a first
  const stdio: ["ignore", "ignore", "ignore"] = ["ignore", "ignore", "ignore"];
  for (const name of found) Bun.spawn([name], { env, stdio, detached: true }).unref();
}

// --- metrics ---
// For those who run many of these: Prometheus' text format, version 0.0.4.

type Metric = readonly [
  name: string,
  type: "gauge" | "counter",
  help: string,
  /** By its labels, in braces. */
  value: number | Readonly<Record<string, number>>,
];

/** @returns what renders the metrics of one server; the event loop is watched from here on. */
export function createMetrics(supervisor: Supervisor, bridge: Bridge): () => string {
  const loop = monitorEventLoopDelay({ resolution: LOOP_SAMPLE_MS });
  loop.enable();
  const byState = (value: (state: VncState) => number) =>
    Object.fromEntries(VNC_STATES.map((state) => [`{state="${state}"}`, value(state)]));
  return () => {
    const { user, system } = process.cpuUsage();
    const { viewers, toBrowser, fromBrowser } = bridge.traffic;
    const is = byState((state) => Number(supervisor.status.state === state));
    const entered = byState((state) => supervisor.entered[state]);
    const bytes = { '{to="browser"}': toBrowser, '{to="vnc"}': fromBrowser };
    const metrics: Metric[] = [
      ["info", "gauge", "Always 1.", { [`{version="${VERSION}"}`]: 1 }],
      ["state", "gauge", "1 for the state that the desktop is in.", is],
      ["transitions_total", "counter", "How often it entered each state.", entered],
      ["viewers", "gauge", "Viewers that are connected.", bridge.size],
      ["viewers_total", "counter", "Viewers that came.", viewers],
      ["bytes_total", "counter", "Bytes that the bridge carried.", bytes],
      ["last_input_seconds", "gauge", "When somebody typed or pointed.", bridge.lastInputMs / 1e3],
      ["loop_lag_p99_seconds", "gauge", "Since it was asked last.", loop.percentile(99) / 1e9],
      ["loop_lag_max_seconds", "gauge", "Since it was asked last.", loop.max / 1e9],
      ["memory_bytes", "gauge", "Resident memory of the server.", process.memoryUsage.rss()],
      ["cpu_seconds_total", "counter", "CPU time of the server.", (user + system) / 1e6],
      ["start_seconds", "gauge", "When it started.", Date.now() / 1e3 - process.uptime()],
    ];
    loop.reset();
    return metrics.map(renderMetric).join("");
  };
}

function renderMetric([name, type, help, value]: Metric): string {
  const full = `jupyter_desktop_${name}`;
  const samples = typeof value === "number" ? { "": value } : value;
  const lines = Object.entries(samples).map(([labels, each]) => `${full}${labels} ${each}\n`);
  return `# HELP ${full} ${help}\n# TYPE ${full} ${type}\n${lines.join("")}`;
}

// --- files ---
// Takes files for the desktop in pieces, and hands its files out. No path leads out of the one folder.

/** What a call of the API is refused for: a code that the page turns into a sentence, and its parameters. */
export class ApiError extends Error {
  readonly status: 400 | 403 | 404 | 409 | 413 | 415 | 429 | 507;
  readonly detail: Cause["detail"];

  constructor(status: ApiError["status"], code: string, detail: Cause["detail"] = {}) {
    super(code);
    this.status = status;
    this.detail = detail;
  }
}

/** The errors of the file system that a person can do something about. */
const FILE_ERRORS: readonly (readonly [codes: RegExp, ApiError["status"], code: string])[] = [
  [/^(ENOSPC|EDQUOT)$/, 507, "disk-full"],
  [/^(ENOENT|ENOTDIR)$/, 404, "no-such-file"],
  [/^(EACCES|EPERM|EROFS)$/, 409, "unwritable"],
  [/^ENAMETOOLONG$/, 400, "bad-name"],
  [/^AbortError$/, 400, "broken-off"], // the browser left in the middle of a piece
];

/** @throws ApiError for an error of the file system that has a code in the page; else the error itself. */
function throwFileError(error: unknown): never {
  const name = errorCode(error) ?? (error instanceof Error ? error.name : "");
  const known = FILE_ERRORS.find(([codes]) => codes.test(name));
  throw known ? new ApiError(known[1], known[2]) : error;
}

/** @throws ApiError for a path that is none, or would lead somewhere else. */
function pathParts(written: string): string[] {
  const parts = written.split("/");
  const isBad = (part: string) =>
    /^\.{0,2}$|\p{Cc}|\p{Cs}/u.test(part) || Buffer.byteLength(part) > MAX_NAME_BYTES;
  if (parts.length > MAX_DEPTH || parts.some(isBad)) throw new ApiError(400, "bad-name");
  return parts;
}

/** The name for number `n` of the files that want it: "report (2).pdf". */
export function numberedName(name: string, n: number): string {
  if (n === 1) return name;
  const { name: start, ext } = path.parse(name);
  const [stem, end] = [[...start], ` (${n})${ext}`];
  while (Buffer.byteLength(stem.join("") + end) > MAX_NAME_BYTES && stem.length > 1) stem.pop();
  return stem.join("") + end;
}

export const newUpload = z.strictObject({ path: z.string(), size: z.int().nonnegative() });

interface Upload {
  readonly id: string;
  readonly dir: string;
  readonly name: string;
  readonly size: number;
  readonly part: string;
  offset: number;
  touchedMs: number;
  isBusy: boolean;
  /** What the file is called now that it is whole. */
  done?: string;
}

const lstat = (name: string) => fs.lstatSync(name, { throwIfNoEntry: false });

/** The folder that people drop files into, and the uploads that are under way. */
export class Files {
  readonly #uploads = new Map<string, Upload>();
  readonly #root: () => string;
  readonly #maxBytes: number;

  constructor(root: () => string, maxBytes: number) {
    this.#root = root;
    this.#maxBytes = maxBytes;
  }

  /** A folder below the root. Each on the way must be a real one: a symbolic link could lead anywhere. */
  #folder(parts: readonly string[], make: boolean): string {
    let dir = this.#root();
    if (make) fs.mkdirSync(dir, { recursive: true });
    for (const part of parts) {
      dir = path.join(dir, part);
      if (make && !lstat(dir)) fs.mkdirSync(dir);
      if (!lstat(dir)?.isDirectory())
        throw new ApiError(make ? 409 : 404, make ? "no-folder" : "no-such-file");
    }
    return dir;
  }

  /** Begins an upload. @throws ApiError */
  start({ path: written, size }: z.output<typeof newUpload>) {
    this.#sweep();
    const parts = pathParts(written);
    if (size > this.#maxBytes) throw new ApiError(413, "too-large", { limit: this.#maxBytes });
    try {
      const dir = this.#folder(parts.slice(0, -1), true);
      const { blocks, bavail, bsize } = fs.statfsSync(dir); // some network file systems tell nothing
      if (blocks > 0 && size > bavail * bsize) throw new ApiError(507, "disk-full");
      removeStaleParts(dir);
      const id = randomBytes(12).toString("base64url");
      // Beside the file to come, and so on its disk: the last step is one rename.
      const part = path.join(dir, `.jupyter-desktop-${id}.part`);
      fs.closeSync(fs.openSync(part, "wx", 0o644));
      const name = parts.at(-1) ?? "";
      const fresh = { id, dir, name, size, part, offset: 0, touchedMs: Date.now(), isBusy: false };
      this.#uploads.set(id, fresh);
      if (size === 0) finish(fresh);
      return view(fresh);
    } catch (error) {
      return throwFileError(error);
    }
  }

  #get(id: string): Upload {
    const upload = this.#uploads.get(id);
    if (!upload) throw new ApiError(404, "no-such-upload");
    return upload;
  }

  /** How far an upload has come: from there it goes on. */
  state = (id: string) => view(this.#get(id));

  /** Takes a piece; the last one makes the file. What came of a piece that broke off counts. @throws ApiError */
  async write(id: string, offset: number, body: AsyncIterable<Uint8Array>) {
    const upload = this.#get(id);
    if (upload.done !== undefined) return view(upload); // the answer to the last piece was lost
    if (upload.isBusy || offset !== upload.offset)
      throw new ApiError(409, upload.isBusy ? "busy" : "offset", { offset: upload.offset });
    upload.isBusy = true;
    try {
      await this.#append(upload, body);
      if (upload.offset === upload.size) finish(upload);
      return view(upload);
    } catch (error) {
      return throwFileError(error);
    } finally {
      upload.isBusy = false;
      upload.touchedMs = Date.now();
    }
  }

  async #append(upload: Upload, body: AsyncIterable<Uint8Array>): Promise<void> {
    const { O_WRONLY, O_NOFOLLOW } = fs.constants;
    await using file = await fs.promises.open(upload.part, O_WRONLY | O_NOFOLLOW);
    let left = Math.min(MAX_CHUNK_BYTES, upload.size - upload.offset);
    for await (const bytes of body) {
      left -= bytes.length;
      if (left < 0) throw new ApiError(413, "too-much", { limit: MAX_CHUNK_BYTES });
      for (let at = 0; at < bytes.length;) {
        if (!this.#uploads.has(upload.id)) throw new ApiError(404, "no-such-upload"); // cancelled
        const { bytesWritten } = await file.write(bytes, at, bytes.length - at, upload.offset);
        at += bytesWritten;
        upload.offset += bytesWritten;
      }
    }
  }

  cancel(id: string): void {
    const { part } = this.#get(id);
    this.#uploads.delete(id);
    fs.rmSync(part, { force: true });
  }

  /** Makes room: uploads that nobody goes on with, and all but the last of those that are done. */
  #sweep(): void {
    const uploads = [...this.#uploads.values()];
    const done = uploads.filter((upload) => upload.done !== undefined);
    const left = uploads.filter(
      ({ isBusy, touchedMs }) => !isBusy && Date.now() - touchedMs > UPLOAD_IDLE_MS,
    );
    for (const { id } of [...left, ...done.slice(0, -MAX_OPEN_UPLOADS)]) this.cancel(id);
    if (this.#uploads.size - done.length >= MAX_OPEN_UPLOADS)
      throw new ApiError(429, "too-many-uploads", { limit: MAX_OPEN_UPLOADS });
  }

  close(): void {
    for (const id of [...this.#uploads.keys()]) this.cancel(id);
  }

  /** What is in a folder, folders first; hidden files and special ones are left out. @throws ApiError */
  list(folder: string) {
    try {
      const dir = this.#folder(folder === "" ? [] : pathParts(folder), folder === "");
      const shown = fs
        .readdirSync(dir, { withFileTypes: true })
        .filter((entry) => !entry.name.startsWith(".") && (entry.isFile() || entry.isDirectory()))
        .sort((a, b) => +b.isDirectory() - +a.isDirectory() || a.name.localeCompare(b.name));
      const entries = shown.slice(0, MAX_LISTED).flatMap((entry) => {
        const stat = lstat(path.join(dir, entry.name)); // none where the name is no UTF-8, or it was just removed
        const type = entry.isFile() ? ("file" as const) : ("folder" as const);
        const { size = 0, mtime } = stat ?? {};
        return mtime ? [{ name: entry.name, type, size, modified: mtime.toISOString() }] : [];
      });
      return { entries, total: shown.length };
    } catch (error) {
      return throwFileError(error);
    }
  }

  /** A file to download. @throws ApiError */
  open(written: string): { file: Bun.BunFile; name: string } {
    const parts = pathParts(written);
    const name = parts.at(-1) ?? "";
    const full = path.join(this.#folder(parts.slice(0, -1), false), name);
    if (!lstat(full)?.isFile()) throw new ApiError(404, "no-such-file");
    return { file: Bun.file(full), name };
  }
}

const view = ({ id, offset, size, done }: Upload) => ({ id, offset, size, done: done ?? null });

/** Gives a whole upload its name, or the first like it that is free: an empty file claims it, and is replaced. */
function finish(upload: Upload): void {
  for (let n = 1; ; n++) {
    const name = numberedName(upload.name, n);
    const target = path.join(upload.dir, name);
    try {
      fs.closeSync(fs.openSync(target, "wx", 0o644));
    } catch (error) {
      if (errorCode(error) === "EEXIST") continue;
      throw error;
    }
    try {
      fs.renameSync(upload.part, target);
    } catch (error) {
      fs.rmSync(target, { force: true }); // cancelled in its last moment, or a cleaner took the part
      throw error;
    }
    upload.done = name;
    return;
  }
}

/** Halves that a killed server left in a folder. */
function removeStaleParts(dir: string): void {
  for (const name of fs.readdirSync(dir)) {
    const part = path.join(dir, name);
    const isPart = /^\.jupyter-desktop-[\w-]{16}\.part$/.test(name);
    if (isPart && Date.now() - (lstat(part)?.mtimeMs ?? Date.now()) > STALE_PART_MS)
      fs.rmSync(part);
  }
}

// --- share ---
// Links by which the owner lets others watch or control the desktop: signed, for a time, and revocable.

const guestRole = z.enum(["watch", "control"]);
const guestName = z
  .string()
  .trim()
  .max(60)
  .regex(/^\P{C}*$/u);
export const newShare = z.strictObject({
  role: guestRole,
  minutes: z.int().min(1).max(MAX_SHARE_MINUTES),
  name: guestName.default(""),
});

const sharedLink = newShare
  .omit({ minutes: true })
  .extend({ id: z.string(), expiresMs: z.number() });
type SharedLink = z.output<typeof sharedLink>;
const shareState = z.object({ key: z.string().min(43), links: z.array(sharedLink) });

/** The links that are good. With a file they outlive this server, and so does that one was revoked. */
export class Shares {
  readonly #links = new Map<string, { link: SharedLink; over: AbortController; timer: Timer }>();
  readonly #file: (() => string) | undefined;
  readonly #key: string;
  /** Of no use to make a link with, but no other server has it. */
  readonly name: string;

  constructor(file?: () => string) {
    this.#file = file;
    const state = readShares(file);
    this.#key = state?.key ?? randomBytes(32).toString("base64url");
    this.name = createHash("sha256").update(this.#key).digest("hex").slice(0, 8);
    for (const link of state?.links ?? []) this.#add(link);
  }

  get links(): SharedLink[] {
    return [...this.#links.values()].map(({ link }) => link);
  }

  /** A new link: what it is called here, and the secret that its address carries. @throws ApiError */
  create({ role, minutes, name }: z.output<typeof newShare>): SharedLink & { token: string } {
    if (this.#links.size >= MAX_SHARES)
      throw new ApiError(429, "too-many-links", { limit: MAX_SHARES });
    const id = randomBytes(9).toString("base64url");
    const link = { id, role, name, expiresMs: Date.now() + minutes * 60_000 };
    this.#add(link);
    this.#save();
    return { ...link, token: this.#token(link) };
  }

  #add(link: SharedLink): void {
    const timer = setTimeout(() => this.#end(link.id), Math.max(0, link.expiresMs - Date.now()));
    timer.unref();
    this.#links.set(link.id, { link, over: new AbortController(), timer });
  }

  /** Ends a link, and whatever came by it; false when there is none of this id. */
  revoke(id: string): boolean {
    const isKnown = this.#end(id);
    if (isKnown) this.#save();
    return isKnown;
  }

  #end(id: string): boolean {
    const found = this.#links.get(id);
    clearTimeout(found?.timer);
    found?.over.abort();
    return this.#links.delete(id);
  }

  /** Who comes with this secret; over when it is none, has expired or was revoked. */
  visitor(token: string): Visitor | "over" {
    const found = this.#links.get(token.split(".", 1)[0] ?? "");
    if (!found || found.link.expiresMs <= Date.now()) return "over";
    const { id: link, role, name } = found.link;
    if (!safeEqual(token, this.#token(found.link))) return "over";
    return { role, name, link, over: found.over.signal };
  }

  /** How long a visitor's cookie is of use, in seconds. */
  secondsLeft({ link = "" }: Visitor): number {
    const { expiresMs = 0 } = this.#links.get(link)?.link ?? {};
    return Math.ceil((expiresMs - Date.now()) / 1_000);
  }

  #token({ id, role, expiresMs }: SharedLink): string {
    const payload = `${id}.${role}.${expiresMs.toString(36)}`;
    const signature = createHmac("sha256", this.#key).update(payload).digest("base64url");
    return `${payload}.${signature}`;
  }

  #save(): void {
    if (!this.#file) return;
    const file = this.#file();
    const state = JSON.stringify({ key: this.#key, links: this.links });
    fs.writeFileSync(`${file}.new`, state, { mode: 0o600 });
    fs.renameSync(`${file}.new`, file);
  }
}

function readShares(file: (() => string) | undefined) {
  try {
    return file && shareState.safeParse(JSON.parse(fs.readFileSync(file(), "utf8"))).data;
  } catch {
    return undefined; // none were kept
  }
}

// --- hub ---
// JupyterHub's single-user server: who visits, by the Hub's word, and what the Hub hears of activity.
// The contract is that of jupyterhub.services.auth and of Spawner.get_env; none of its Python is on the path.

/** The Hub gave no answer (503), or none that can be used (502). */
interface HubDown {
  readonly kind: "down";
  readonly status: 502 | 503;
}

/** Whom the Hub knows a token as: unknown has to log in, a stranger may not come in. */
export type HubAnswer =
  | { readonly kind: "visitor"; readonly visitor: Visitor }
  | { readonly kind: "stranger"; readonly name: string }
  | { readonly kind: "unknown" }
  | HubDown;

/** A log-in that was begun: it travels as a sealed cookie, so that strangers who begin many cost no memory. */
const HubLogin = z.object({
  state: z.string(),
  verifier: z.string(),
  next: z.string(),
  untilMs: z.number(),
});

const HubUser = z.object({
  kind: z.string(),
  name: z.string(),
  scopes: z.array(z.string()).default([]),
});

const sha256 = (value: string) => createHash("sha256").update(value).digest("base64url");

/**
 * Does one of these scopes grant the wanted one? `access:servers!server=x/y` is granted by itself, by
 * `access:servers!user=x` and by `access:servers`. A filter by group cannot be resolved here, and grants nothing.
 */
export function grantsScope(scopes: readonly string[], wanted: string): boolean {
  const [name, filter = ""] = wanted.split("!");
  const user = /^server=([^/]*)\//.exec(filter)?.[1];
  return [wanted, name, ...(user === undefined ? [] : [`${name}!user=${user}`])].some(
    (scope) => scope !== undefined && scopes.includes(scope),
  );
}

/** The Hub that started this server. */
export class Hub {
  readonly #config: HubConfig;
  readonly #tls: Tls | undefined;
  readonly #log: Log;
  readonly #answers = new Map<string, { answer: Promise<HubAnswer>; untilMs: number }>();
  #version: Promise<string | undefined> | undefined;

  constructor(config: HubConfig, tls: Tls | undefined, log: Log) {
    this.#config = config;
    this.#tls = tls;
    this.#log = log;
  }

  get config(): HubConfig {
    return this.#config;
  }

  /** An address of the Hub's own, as browsers reach it. */
  url(page: "home" | "logout" | "api/oauth2/authorize"): string {
    return `${this.#config.host}${this.#config.baseUrl}hub/${page}`;
  }

  /** Per use, and the same after a restart with the same API token: people stay logged in. */
  #key(use: string): Buffer {
    return Buffer.from(hkdfSync("sha256", this.#config.apiToken, "", `jupyter-desktop ${use}`, 32));
  }

  /** Encrypted and signed, for a cookie; `use` keeps what was made for one from passing for another. */
  seal(use: "token" | "attempt", value: string): string {
    const nonce = randomBytes(SEAL_NONCE_BYTES);
    const cipher = createCipheriv("aes-256-gcm", this.#key(use), nonce);
    const sealed = Buffer.concat([cipher.update(value), cipher.final()]);
    return Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString("base64url");
  }

  /** What was sealed, or undefined for anything else. */
  open(use: "token" | "attempt", sealed: string | undefined): string | undefined {
    const bytes = Buffer.from(sealed ?? "", "base64url");
    const start = SEAL_NONCE_BYTES + SEAL_TAG_BYTES;
    if (bytes.length <= start) return undefined;
    try {
      const nonce = bytes.subarray(0, SEAL_NONCE_BYTES);
      const cipher = createDecipheriv("aes-256-gcm", this.#key(use), nonce);
      cipher.setAuthTag(bytes.subarray(SEAL_NONCE_BYTES, start));
      return Buffer.concat([cipher.update(bytes.subarray(start)), cipher.final()]).toString();
    } catch {
      return undefined; // of another server, or changed
    }
  }

  /**
   * What a page needs to act, beside its cookie: another page of the same origin has the cookie too. It holds until
   * the person logs out of the Hub, so that a page never has to be loaded again for it.
   */
  ticket(name: string, session: string): string {
    return createHmac("sha256", this.#key("ticket"))
      .update(`${name}\n${session}`)
      .digest("base64url");
  }

  /** Begins a log-in: where to send the browser, the state in it, and what a cookie has to keep meanwhile. */
  beginLogin(next: string): { url: string; state: string; sealed: string } {
    const [state, verifier] = [randomBytes(24), randomBytes(32)].map((bytes) =>
      bytes.toString("base64url"),
    ) as [string, string];
    const query = new URLSearchParams({
      client_id: this.#config.clientId,
      redirect_uri: this.#config.oauthCallbackUrl,
      response_type: "code",
      state,
      code_challenge: sha256(verifier), // PKCE (RFC 7636); a Hub before 6 takes no notice
      code_challenge_method: "S256",
    });
    const attempt: z.output<typeof HubLogin> = {
      state,
      verifier,
      next: next.length > HUB_NEXT_CHARS ? this.#config.servicePrefix : next,
      untilMs: Date.now() + HUB_LOGIN_MS,
    };
    const sealed = this.seal("attempt", JSON.stringify(attempt));
    return { url: `${this.url("api/oauth2/authorize")}?${query}`, state, sealed };
  }

  /** The log-in that this cookie keeps, if it is the one of this state, and not too old. */
  findLogin(
    state: string,
    sealed: string | undefined,
  ): { verifier: string; next: string } | undefined {
    const kept = this.open("attempt", sealed);
    if (kept === undefined) return undefined;
    const attempt = HubLogin.parse(JSON.parse(kept));
    return safeEqual(attempt.state, state) && attempt.untilMs > Date.now() ? attempt : undefined;
  }

  /** The token for a code of the Hub's; unknown when it takes the code for wrong, or used. */
  async redeem(
    code: string,
    verifier: string,
  ): Promise<string | Extract<HubAnswer, { kind: "unknown" | "down" }>> {
    const { clientId, apiToken, oauthCallbackUrl } = this.#config;
    const body = new URLSearchParams({
      client_id: clientId,
      client_secret: apiToken,
      grant_type: "authorization_code",
      code,
      redirect_uri: oauthCallbackUrl,
      code_verifier: verifier,
    });
    const reply = await this.#ask("/oauth2/token", { method: "POST", body });
    if ("kind" in reply) return reply;
    if (reply.status !== 200) {
      this.#log("warn", "JupyterHub refused a log-in", { status: reply.status });
      return { kind: "unknown" };
    }
    const token = z.object({ access_token: z.string() }).safeParse(reply.body);
    return token.success ? token.data.access_token : this.#useless("/oauth2/token");
  }

  /** Whose token this is; the Hub is asked once in five minutes, and sooner in another of its log-ins. */
  identify(token: string, session: string): Promise<HubAnswer> {
    const key = sha256(`${session}\n${token}`);
    const known = this.#answers.get(key);
    if (known && known.untilMs > Date.now()) return known.answer;
    const answer = this.#identify(token);
    this.#answers.delete(key); // the new one comes last
    this.#answers.set(key, { answer, untilMs: Date.now() + HUB_USER_MS });
    const [oldest] = this.#answers.keys();
    if (this.#answers.size > HUB_USERS && oldest !== undefined) this.#answers.delete(oldest);
    // Only who may come in is remembered: a share that is given now holds now.
    void answer.then(({ kind }) => {
      if (kind !== "visitor" && this.#answers.get(key)?.answer === answer)
        this.#answers.delete(key);
    });
    return answer;
  }

  async #identify(token: string): Promise<HubAnswer> {
    const reply = await this.#ask("/user", { headers: { authorization: `token ${token}` } });
    if ("kind" in reply) return reply;
    if (reply.status !== 200) return { kind: "unknown" };
    const user = HubUser.safeParse(reply.body);
    if (!user.success) return this.#useless("/user");
    const { kind, name, scopes } = user.data;
    const { oauthAccessScopes, user: owner } = this.#config;
    if (!oauthAccessScopes.some((wanted) => grantsScope(scopes, wanted)))
      return { kind: "stranger", name };
    const role = kind === "user" && name === owner ? "owner" : "control";
    return { kind: "visitor", visitor: { role, name } };
  }

  /** The Hub's version, as it says it in a header. */
  version(): Promise<string | undefined> {
    this.#version ??= this.#ask("/").then((reply) => {
      if ("kind" in reply) this.#version = undefined; // asked again
      return "kind" in reply ? undefined : (reply.version ?? undefined);
    });
    return this.#version;
  }

  /** Asks the Hub's API; whatever has no usable answer is a HubDown. */
  async #ask(where: string, init: BunFetchRequestInit = {}): Promise<HubReply | HubDown> {
    const url = where.startsWith("/") ? `${this.#config.apiUrl}${where}` : where;
    let status = 0;
    try {
      const signal = AbortSignal.timeout(HUB_TIMEOUT_MS);
      const tls = this.#tls ? { tls: this.#tls } : {};
      const response = await fetch(url, { ...init, ...tls, redirect: "manual", signal });
      const { headers } = response;
      status = response.status;
      const text = await response.text();
      if (status >= 500) throw new Error(`it answered ${status}`);
      const isJson = /\bjson\b/.test(headers.get("content-type") ?? "");
      const version = headers.get("x-jupyterhub-version");
      return { status, version, body: isJson && text ? JSON.parse(text) : undefined };
    } catch (error) {
      this.#log("error", "JupyterHub gave no answer", { url, error: errorText(error) });
      return { kind: "down", status: status > 0 ? 502 : 503 };
    }
  }

  #useless(where: string): HubDown {
    this.#log("error", "JupyterHub gave an answer that cannot be used", {
      url: `${this.#config.apiUrl}${where}`,
    });
    return { kind: "down", status: 502 };
  }

  /**
   * Tells the Hub when the desktop was last used, at once and then about every JUPYTERHUB_ACTIVITY_INTERVAL: the time
   * of the use, not of the telling, and nothing when there was none since. Until the signal.
   */
  async reportActivity(lastUseMs: () => number, signal: AbortSignal): Promise<void> {
    const { activityUrl, activityInterval } = this.#config;
    if (activityUrl === undefined) return;
    for (let toldMs = 0; !signal.aborted;) {
      const useMs = lastUseMs();
      if (useMs > toldMs && (await this.#tellActivity(activityUrl, useMs, signal))) toldMs = useMs;
      // Many servers start at the same moment, as a class does: a spread of a tenth keeps them apart.
      await pause(activityInterval * 1_000 * (0.9 + 0.2 * Math.random()), signal);
    }
  }

  async #tellActivity(url: string, useMs: number, signal: AbortSignal): Promise<boolean> {
    const last_activity = new Date(useMs).toISOString();
    const body = JSON.stringify({
      servers: { [this.#config.serverName]: { last_activity } },
      last_activity,
    });
    const headers = {
      authorization: `token ${this.#config.apiToken}`,
      "content-type": "application/json",
    };
    const deadline = Date.now() + ACTIVITY_GIVE_UP_MS;
    for (
      let waitMs = RETRY_FIRST_MS;
      !signal.aborted;
      waitMs = Math.min(2 * waitMs, ACTIVITY_RETRY_MAX_MS)
    ) {
      const reply = await this.#ask(url, { method: "POST", headers, body });
      if (!("kind" in reply) && reply.status < 300) return true;
      if (!("kind" in reply))
        this.#log("warn", "JupyterHub refused the time of activity", { status: reply.status });
      if (Date.now() + waitMs > deadline) return false;
      await pause(waitMs, signal);
    }
    return false;
  }
}

interface HubReply {
  readonly status: number;
  readonly version: string | null;
  readonly body: unknown;
}

/** Waits, or until the signal; keeps no process alive. */
const pause = (ms: number, signal: AbortSignal) =>
  delay(ms, undefined, { signal, ref: false }).catch(() => {}); // aborted

// --- routes ---
// The one place where auth, bridge and supervisor meet.

/** viewer/dist/assets.json, as viewer/build.ts writes it. */
export interface ViewerAssets {
  readonly hash: string;
  readonly index: string;
  readonly login: string;
  readonly message: string;
  /** CSP hash of the style of these two, which is in the page: a stranger gets no other file. */
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
  readonly clipboard?: Config["clipboard"];
  /** The desktop is started here, and its settings can be set: the default. */
  readonly isOwn?: boolean;
  readonly assets: ViewerAssets;
  readonly supervisor: Supervisor;
  readonly bridge: Bridge;
  readonly log: Log;
  /** What answers /metrics; nothing does without it. */
  readonly metrics?: (() => string) | undefined;
  /** None where files are not to be dropped and downloaded. */
  readonly files?: Files | undefined;
  /** None where nothing is shared by links. */
  readonly shares?: Shares | undefined;
  readonly frameAncestors?: "self" | "none";
  readonly hub?: Hub;
}

type Env = {
  Bindings: { server: Server<Session> };
  Variables: { visitor: Visitor; ticket: string | undefined };
};

const SENTENCES = {
  "no-token":
    "This desktop needs a token: it is in the address that jupyter-desktop printed at its start.",
  "wrong-token":
    "That token is wrong: the right one is in the address that jupyter-desktop printed at its start.",
  origin: "A page of another site may not use this desktop: add its origin with --allow-origin.",
  host: "This desktop is not served under this name: open it by its address, or add the name with --allow-origin.",
  link: "This link to the desktop has expired or was revoked: ask its owner for a new one.",
  busy: "Too many wrong tokens at once: try again in a few seconds.",
  "no-login": "You are not logged in: open this desktop's page, and JupyterHub asks who you are.",
  "no-ticket": "This does not come from the desktop's own page: load that page again.",
  "hub-stranger":
    "This desktop is not yours. Its owner can share it with you in JupyterHub, or you can log in as somebody else.",
  "hub-stale": "That log-in took too long, or was not begun in this browser: try again.",
  "hub-error": "JupyterHub did not log you in: try again.",
  "hub-down":
    "JupyterHub does not answer just now, and nobody can be let in without it. What runs on the desktop goes on, and this page tries again by itself.",
} as const;

const wantsPage = (c: Context) => /\btext\/html\b/.test(c.req.header("accept") ?? "");
const isUpgrade = (c: Context) => c.req.header("upgrade")?.toLowerCase() === "websocket";

/** Is this a person's browser on its way to a page? A browser without Sec-Fetch-Mode is taken by what it accepts. */
const isNavigation = (c: Context) =>
  c.req.method === "GET" &&
  !isUpgrade(c) &&
  (c.req.header("sec-fetch-mode") ?? (wantsPage(c) ? "navigate" : "")) === "navigate";

/** What the browser speaks, which is its first proxy's word. */
const isHttps = (c: Context, publicUrl = "") =>
  /^https:/.test(publicUrl) ||
  (c.req.header("x-forwarded-proto")?.split(",", 1)[0] ?? new URL(c.req.url).protocol).startsWith(
    "https",
  );

function securityHeaders({
  assets,
  frameAncestors = "self",
  hub,
}: AppOptions): MiddlewareHandler<Env> {
  return secureHeaders({
    // Other users' servers have this origin too: a page of theirs that opens this one gets no hold on it.
    ...(hub ? { crossOriginOpenerPolicy: "noopener-allow-popups" } : {}),
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
      frameAncestors: [`'${frameAncestors}'`],
    },
    referrerPolicy: "same-origin", // not less: the log-in form would then send Origin: null
    overwrite: false, // a download has a stricter one
    strictTransportSecurity: false, // the proxy's to decide, for its whole host
    xFrameOptions: frameAncestors === "none" ? "DENY" : "SAMEORIGIN",
  });
}

const bearerToken = (c: Context) =>
  /^(?:bearer|token) +(\S+)$/i.exec(c.req.header("authorization") ?? "")?.[1];

function requestToken(c: Context, cookieName: string): string | undefined {
  return bearerToken(c) ?? c.req.query("token") ?? getCookie(c, cookieName);
}

/** Guards every route that is mounted after it. */
function guard(options: AppOptions, limiter: GuessLimiter): MiddlewareHandler<Env> {
  const { policy, cookieName } = options;
  return async (c, next) => {
    if (limiter.full) return c.text(`${SENTENCES.busy}\n`, 429);
    const { method } = c.req;
    if (isSharedLink(c, options)) return enterByLink(c, options, limiter);
    const request = authRequest(c, requestToken(c, cookieName));
    const decision = authorize({ ...request, guest: guestOf(c, options) }, policy);
    if (decision.ok) {
      c.set("visitor", decision.visitor);
      const inAddress = policy.kind === "token" && c.req.query("token") !== undefined;
      if (!inAddress || method !== "GET" || isUpgrade(c)) return next();
      limiter.forgive();
      return exchangeToken(c, options);
    }
    if (decision.reason === "no-login") return hubGuard(c, next, options);
    if (decision.reason === "wrong-token") await limiter.punish();
    return refuse(c, options, decision);
  };
}

/** Why somebody may not come in; where a token would help, with a form for it. */
function refuse(
  c: Context<Env>,
  options: AppOptions,
  decision: { status: 401 | 403; reason: Exclude<keyof typeof SENTENCES, "busy"> },
): Response | Promise<Response> {
  const { status, reason } = decision;
  options.log("warn", "refused", { reason, method: c.req.method, path: c.req.path });
  const asksToken = reason !== "origin" && reason !== "host" && options.policy.kind === "token";
  if (asksToken && wantsPage(c)) return loginPage(c, options, decision);
  return c.text(`${SENTENCES[reason]}\n`, status);
}

/** Named after its server: one on a host that many share is no business of the others'. */
const shareCookie = ({ cookieName, shares }: AppOptions) => `${cookieName}-share-${shares?.name}`;

const isSharedLink = (c: Context, { shares }: AppOptions) =>
  shares !== undefined &&
  c.req.method === "GET" &&
  !isUpgrade(c) &&
  c.req.query("share") !== undefined;

/** Who the link of this browser's cookie lets in. */
function guestOf(c: Context, options: AppOptions): Visitor | "over" | undefined {
  const token = getCookie(c, shareCookie(options));
  return token === undefined ? undefined : options.shares?.visitor(token);
}

/**
 * Puts a link's secret into a cookie, and takes it out of the address. Whoever has the token stays the owner. An empty
 * secret is the way out for whose link is over, where everyone else is the owner.
 */
async function enterByLink(
  c: Context<Env>,
  options: AppOptions,
  limiter: GuessLimiter,
): Promise<Response> {
  const { policy, cookieName, shares } = options;
  const asked = authorize(authRequest(c, requestToken(c, cookieName)), policy);
  if (!asked.ok && asked.reason === "wrong-token") await limiter.punish(); // a link is no way to try tokens
  if (!asked.ok && asked.reason === "host") return refuse(c, options, asked);
  const token = c.req.query("share") ?? "";
  const visitor = token === "" ? undefined : shares?.visitor(token);
  if (visitor === "over") return refuse(c, options, { status: 403, reason: "link" });
  const set = ownCookie(c, options);
  if (!visitor) deleteCookie(c, shareCookie(options), set);
  else if (!asked.ok || policy.kind === "open") {
    if (!asked.ok) deleteCookie(c, cookieName, set); // that of an earlier server would be refused as a wrong token
    const maxAge = shares?.secondsLeft(visitor) ?? 0;
    setCookie(c, shareCookie(options), token, { ...set, maxAge });
  }
  return c.redirect(withoutQuery(c, options, "share"), 303);
}

/** What the decision needs to know of a request. */
const authRequest = (c: Context, token: string | undefined): AuthRequest => ({
  method: c.req.method,
  host: c.req.header("host"),
  origin: c.req.header("origin"),
  upgrade: isUpgrade(c),
  token,
});

/**
 * What a proxy took off the path, where it says so (jupyter-server-proxy does): without it the cookie would go to
 * all of the proxy's host, which on a JupyterHub is to other people's servers.
 */
function strippedPrefix(c: Context): string {
  const prefix = c.req.header("x-forwarded-prefix")?.replace(/\/+$/, "") ?? "";
  const isPath = /^(\/[\w\-.~%!$&'()+,=:@]+)+$/.test(prefix);
  return isPath && !new URL(c.req.url).pathname.startsWith(`${prefix}/`) ? prefix : "";
}

/** The base as the browser wrote it: a cookie's path is compared as text. */
const cookiePath = (c: Context, baseUrl: string) =>
  `${strippedPrefix(c)}${new URL(c.req.url).pathname
    .split("/")
    .slice(0, baseUrl.split("/").length - 1)
    .join("/")}/`;

/** Takes the cookies back; the base then asks for the token. */
function logout(c: Context<Env>, options: AppOptions): Response {
  const { cookieName, baseUrl } = options;
  const isSent = (name: string) => getCookie(c, name) !== undefined;
  for (const name of [cookieName, shareCookie(options)].filter(isSent))
    deleteCookie(c, name, { path: cookiePath(c, baseUrl) });
  return c.redirect("./", 303);
}

/** Puts the token into a cookie and takes it out of the address, so that it stays in no history and no log. */
function exchangeToken(c: Context, options: AppOptions): Response {
  const { policy, cookieName } = options;
  if (policy.kind === "token") {
    const set = ownCookie(c, options);
    setCookie(c, cookieName, policy.token, { ...set, maxAge: COOKIE_MAX_AGE_S });
  }
  return c.redirect(withoutQuery(c, options, "token"), 303);
}

function ownCookie(c: Context, { baseUrl }: AppOptions) {
  const [path, secure] = [cookiePath(c, baseUrl), isHttps(c)];
  return { path, httpOnly: true, sameSite: "Lax", secure } as const;
}

/** This address without its secret. */
function withoutQuery(c: Context, { baseUrl }: AppOptions, secret: "token" | "share"): string {
  const query = new URL(c.req.url).searchParams;
  query.delete(secret);
  // Relative, so that it holds behind a proxy that strips a prefix: the last part of the path, or this directory.
  const here =
    c.req.path.length < samePath(baseUrl).length
      ? relativeBase(c.req.path, baseUrl) // the cookie is not for the address without the slash
      : `./${new URL(c.req.url).pathname.split("/").at(-1)}`;
  return query.size > 0 ? `${here}?${query}` : here;
}

function hubCookie(c: Context, { config }: Hub): CookieOptions {
  const { servicePrefix: path, publicUrl, cookieOptions, cookieHostPrefixEnabled } = config;
  const secure = isHttps(c, publicUrl);
  const options = { path, sameSite: "Lax", secure, ...cookieOptions, httpOnly: true } as const;
  if (!cookieHostPrefixEnabled) return options;
  const { domain, ...hostOnly } = options;
  return { ...hostOnly, path: "/", secure: true };
}

const hubCookieName = ({ config }: Hub) =>
  `${config.cookieHostPrefixEnabled ? "__Host-" : ""}${config.clientId}`;
const hubLoginCookieName = (hub: Hub, state: string) =>
  `${hubCookieName(hub)}-oauth-state-${state.slice(0, 8)}`;
/** Changes with each log-in to the Hub; only where the Hub shares its host with this server. */
const hubSession = (c: Context) => getCookie(c, "jupyterhub-session-id") ?? "";

/** Sends the browser to the Hub's log-in. */
function beginHubLogin(c: Context, hub: Hub): Response {
  const asked = new URL(c.req.url);
  asked.searchParams.delete("token");
  // In the Hub's spelling of the path, for which the cookie is; and one slash, or it would name another host.
  const rest = samePath(asked.pathname).slice(samePath(hub.config.servicePrefix).length);
  const { url, state, sealed } = hub.beginLogin(
    `${hub.config.servicePrefix}${rest}${asked.search}`,
  );
  const options = hubCookie(c, hub);
  const begun = Object.keys(getCookie(c)).filter((name) =>
    name.startsWith(hubLoginCookieName(hub, "")),
  );
  if (begun.length >= HUB_LOGINS) for (const name of begun) deleteCookie(c, name, options);
  setCookie(c, hubLoginCookieName(hub, state), sealed, {
    ...options,
    maxAge: HUB_LOGIN_MS / 1_000,
  });
  deleteCookie(c, hubCookieName(hub), options);
  return c.redirect(url);
}

/** The Hub sends the browser back here, with a code for a token. */
async function endHubLogin(c: Context<Env>, options: AppOptions, hub: Hub): Promise<Response> {
  const { code, state = "", error } = c.req.query();
  if (error !== undefined || !code || !/^[\w-]{32}$/.test(state))
    return hubPage(c, options, 400, "hub-error");
  const name = hubLoginCookieName(hub, state);
  const login = hub.findLogin(state, getCookie(c, name));
  if (!login) return hubPage(c, options, 403, "hub-stale");
  const token = await hub.redeem(code, login.verifier);
  const answer = typeof token === "string" ? await hub.identify(token, hubSession(c)) : token;
  if (answer.kind === "down") return hubPage(c, options, answer.status, "hub-down");
  deleteCookie(c, name, hubCookie(c, hub));
  // Not back to the page: it would begin the next log-in, and so on.
  if (typeof token !== "string" || answer.kind === "unknown")
    return hubPage(c, options, 403, "hub-stale");
  setCookie(c, hubCookieName(hub), hub.seal("token", token), hubCookie(c, hub));
  return c.redirect(login.next);
}

/** The sentence as a page, or as a line of text where a program asks. */
function hubPage(
  c: Context,
  { assets, title, baseUrl, log }: AppOptions,
  ...[status, reason]: [400 | 403 | 502 | 503, keyof typeof SENTENCES]
): Response | Promise<Response> {
  log("warn", "refused", { reason, status, method: c.req.method, path: c.req.path });
  c.header("cache-control", "no-store");
  if (status >= 500) c.header("retry-after", String(HUB_RETRY_S));
  if (!isNavigation(c)) return c.text(`${SENTENCES[reason]}\n`, status);
  if (status >= 500) c.header("refresh", String(HUB_RETRY_S));
  const base_url = relativeBase(c.req.path, baseUrl);
  const message = SENTENCES[reason];
  const link = reason === "hub-stranger" ? `${base_url}logout` : base_url;
  const link_text = reason === "hub-stranger" ? "Log out" : "Try again";
  return c.html(renderPage(assets.message, { title, message, link, link_text }), status);
}

/** The token of a request, and whether it is from the cookie, which a browser sends along by itself. */
function hubToken(c: Context, hub: Hub): { token: string | undefined; byCookie: boolean } {
  const inUrl = hub.config.allowTokenInUrl || isUpgrade(c) ? c.req.query("token") : undefined;
  const given = bearerToken(c) ?? inUrl;
  if (given) return { token: given, byCookie: false };
  return { token: hub.open("token", getCookie(c, hubCookieName(hub))), byCookie: true };
}

/** The guard of a server that JupyterHub started; the Origin has been checked before. */
async function hubGuard(
  c: Context<Env>,
  next: () => Promise<void>,
  options: AppOptions,
): Promise<Response | undefined> {
  const { hub } = options;
  if (!hub) return c.text(`${SENTENCES["no-login"]}\n`, 403);
  const { token, byCookie } = hubToken(c, hub);
  const answer = token ? await hub.identify(token, hubSession(c)) : { kind: "unknown" as const };
  if (answer.kind === "down") return hubPage(c, options, answer.status, "hub-down");
  if (answer.kind === "stranger") return hubPage(c, options, 403, "hub-stranger");
  if (answer.kind === "unknown")
    return isNavigation(c) ? beginHubLogin(c, hub) : hubPage(c, options, 403, "no-login");
  const ticket = hub.ticket(answer.visitor.name, hubSession(c));
  if (byCookie && needsTicket(c, options) && !safeEqual(c.req.query("t") ?? "", ticket))
    return hubPage(c, options, 403, "no-ticket");
  if (token && !byCookie && isNavigation(c) && c.req.query("token") !== undefined) {
    setCookie(c, hubCookieName(hub), hub.seal("token", token), hubCookie(c, hub));
    return c.redirect(withoutQuery(c, options, "token"), 303);
  }
  c.set("visitor", answer.visitor);
  if (getsTicket(c, options)) c.set("ticket", ticket);
  await next();
}

/** All that a page does by itself: a page of the same origin could do it too, with the person's cookie. */
const needsTicket = (c: Context, { baseUrl }: AppOptions) =>
  !isNavigation(c) &&
  (isUpgrade(c) || !c.req.path.startsWith(`${samePath(baseUrl)}desktop/static/`));

/** A page that a person opened; one in a frame, which the page around it can read, only where frames are meant. */
function getsTicket(c: Context, { frameAncestors }: AppOptions): boolean {
  const holder = c.req.header("sec-fetch-dest") ?? "document";
  return (
    isNavigation(c) && (holder === "document" || (holder === "iframe" && frameAncestors === "self"))
  );
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
    message: decision.reason === "no-token" ? "" : SENTENCES[decision.reason],
  };
  c.header("cache-control", "no-store");
  return c.html(renderPage(assets.login, values), decision.status);
}

/** A path in one spelling: "@" and "%40" are the same (RFC 3986, 6.2.2.2). */
const samePath = (written: string) =>
  written.replace(/%[\da-fA-F]{2}|[^\w\-.~/%]+/g, (part) => {
    try {
      return encodeURIComponent(decodeURIComponent(part));
    } catch {
      return part.toUpperCase(); // a part of a longer character
    }
  });

/** The path in that spelling. With absolute_url jupyter-server-proxy 4.6 encodes once more, so that %40 comes as %2540. */
function pathUnder(base: string, written: string): string {
  const asked = samePath(written);
  const once = asked.startsWith(base) ? asked : samePath(written.replaceAll("%25", "%"));
  return once.startsWith(base) ? once : asked;
}

/** From a path under the base back to the base: "./", "../", … */
function relativeBase(requestPath: string, baseUrl: string): string {
  const base = samePath(baseUrl);
  if (requestPath.length < base.length) return `./${base.split("/").at(-2)}/`; // the base without its slash
  return "../".repeat(requestPath.slice(base.length).split("/").length - 1) || "./";
}

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
  const known = (c.req.header("if-none-match") ?? "")
    .split(",")
    .map((tag) => tag.trim().replace(/^W\//, ""));
  if (known.includes(asset.etag) || known.includes("*")) return c.body(null, 304);
  const encoding = accepts(c, {
    header: "Accept-Encoding",
    supports: ["br", "gzip"],
    default: "",
    match: (accepted) =>
      ["br", "gzip"].find((name) =>
        accepted.some(({ type, q }) => type.toLowerCase() === name && q > 0),
      ) ?? "",
  });
  if (encoding) c.header("content-encoding", encoding);
  c.header("content-type", asset.type);
  return c.body(encoding === "br" || encoding === "gzip" ? asset[encoding] : asset.raw);
}

/** The upgrade: VNC first, so that its failure is an answer and not a dead WebSocket. */
async function upgrade(
  c: Context<Env>,
  { supervisor, bridge, vncPassword, log }: AppOptions,
): Promise<Response> {
  const visitor = c.get("visitor");
  if (supervisor.status.state !== "ready") c.env.server.timeout(c.req.raw, START_ANSWER_S);
  const target = await supervisor.ready(mayActAs(visitor, "owner"));
  if (!target)
    return c.text(
      `The desktop is not running (${supervisor.status.state}): see desktop/api/status.\n`,
      503,
    );
  let session: Session;
  try {
    const password = visitor.role === "watch" ? supervisor.watchPassword : vncPassword;
    session = await bridge.connect(target, password, visitor);
    bridge.isOf(session, c.req.query("page"));
  } catch (error) {
    if (!(error instanceof VncError)) throw error;
    log("warn", "viewer refused", { cause: error.reason.code, ...error.reason.detail });
    const { code: cause, detail } = error.reason;
    return c.json({ cause, detail }, cause === "too-many-viewers" ? 503 : 502);
  }
  const offered = (c.req.header("sec-websocket-protocol") ?? "").split(/\s*,\s*/);
  const headers = offered.includes("binary") ? { "Sec-WebSocket-Protocol": "binary" } : undefined;
  const done = c.env.server.upgrade(c.req.raw, { data: session, ...(headers ? { headers } : {}) });
  // Bun answers the request itself after an upgrade; this Response is not sent.
  if (done) return new Response(null);
  session.end(CLOSE.vncLost, "the browser left before the WebSocket was open");
  return c.text("That is no valid WebSocket handshake.\n", 400);
}

type Handler = (c: Context<Env>) => Response | Promise<Response>;

interface Mounted {
  /** The role that it takes; the owner's when none is said. */
  readonly needs?: Visitor["role"] | "nobody";
  readonly GET?: Handler;
  readonly POST?: Handler;
  readonly PUT?: Handler;
  readonly DELETE?: Handler;
}

/** Mounts an address: what answers its methods, and for any other method a 405 that names these. */
function mount(app: Hono<Env>, address: string, { needs = "owner", ...handlers }: Mounted) {
  const methods = Object.entries(handlers);
  for (const [method, handler] of methods) {
    app.on(method, address, (c) =>
      needs === "nobody" || mayActAs(c.get("visitor"), needs)
        ? handler(c)
        : c.json({ error: "owner-only", detail: {} }, 403),
    );
  }
  const allow = methods.flatMap(([name]) => (name === "GET" ? ["GET", "HEAD"] : name)).join(", ");
  app.all(address, (c) => c.text(`This address takes ${allow} only.\n`, 405, { allow }));
}

/** What is open to all under a Hub: the end of its log-in, its look whether the server is up, and logging out. */
function mountHub(app: Hono<Env>, options: AppOptions, hub: Hub): void {
  const logout: Handler = (c) => {
    deleteCookie(c, hubCookieName(hub), hubCookie(c, hub));
    // A guest goes, and stays logged in to the Hub, if ever.
    const isGuest = getCookie(c, shareCookie(options)) !== undefined;
    if (isGuest) deleteCookie(c, shareCookie(options), ownCookie(c, options));
    return c.redirect(isGuest ? "./" : hub.url("logout"), 303);
  };
  mount(app, "/oauth_callback", { needs: "nobody", GET: (c) => endHubLogin(c, options, hub) });
  mount(app, "/logout", { needs: "nobody", GET: logout, POST: logout });
  mount(app, "/api", {
    needs: "nobody",
    GET: async (c) => {
      const version = await hub.version();
      if (version) c.header("x-jupyterhub-version", version);
      return c.json({ version: VERSION });
    },
  });
}

/** The page: the base and desktop/. */
function servePage(c: Context<Env>, options: AppOptions): Response | Promise<Response> {
  const { assets, title, baseUrl, supervisor, hub, policy, clipboard = "both" } = options;
  if (isUpgrade(c)) return upgrade(c, options);
  const { role } = c.get("visitor");
  const isOwner = role === "owner";
  if (wantsPage(c) && isOwner) supervisor.visit();
  const base_url = relativeBase(c.req.path, baseUrl);
  const ticket = c.get("ticket") ?? "";
  const home = base_url + wayBack(c.req.header("x-proxycontextpath"));
  const offered = isOwner ? [options.files && "files", options.shares && "share"] : [];
  const values = {
    ...{ title, base_url, home, version: VERSION, hash: assets.hash },
    ...{ auth: policy.kind, hub_home: hub?.url("home") ?? "", ticket, role },
    features: offered.filter(Boolean).join(" "),
    desktop: (options.isOwn ?? true) && isOwner ? "own" : "",
    clipboard: role === "watch" ? "off" : clipboard,
  };
  // A page of the same origin could take the ticket out of the browser's cache.
  const cache = ticket ? "no-store" : "no-cache";
  return c.html(renderPage(assets.index, values), 200, { "cache-control": cache });
}

/** From the base to Jupyter's own page: jupyter-server-proxy names the part of the address that is its own. */
const wayBack = (proxied: string | undefined) =>
  "../".repeat(
    /\/(proxy\/(absolute\/)?\d+|[^/]+)\/?$/.exec(proxied ?? "")?.[1]?.split("/").length ?? 0,
  );

/** What a browser needs to install the page as an app; its addresses hang on its own. */
const serveManifest = (c: Context<Env>, { title }: AppOptions) =>
  c.body(
    JSON.stringify({
      name: title,
      start_url: "../../",
      scope: "../../",
      display: "standalone",
      background_color: "#17191c",
      theme_color: "#22262b",
      icons: [{ src: "jupyter-logo.svg", sizes: "any", type: "image/svg+xml" }],
    }),
    200,
    { "content-type": "application/manifest+json", "cache-control": "no-cache" },
  );

function serveSocket(c: Context<Env>, options: AppOptions): Response | Promise<Response> {
  if (isUpgrade(c)) return upgrade(c, options);
  const headers = { upgrade: "websocket", connection: "Upgrade" };
  return c.text("This address takes WebSockets only.\n", 426, headers);
}

/** The status as JSON, or for an EventSource as a stream. */
function serveStatus(c: Context<Env>, options: AppOptions): Response {
  const isStream = /text\/event-stream/.test(c.req.header("accept") ?? "");
  // Hono has HEAD answered by GET's handler, and a stream without a reader would never end.
  if (isStream && c.req.raw.method === "GET") return statusStream(c, options);
  const page = c.req.query("page");
  const closed = page === undefined ? {} : { closed: options.bridge.closeCode(page) };
  return c.json({ ...fullStatus(options, c.get("visitor")), ...closed }, 200, {
    "cache-control": "no-store",
  });
}

/** The status for this visitor: paths, commands and the log's lines are the owner's. */
function fullStatus({ supervisor, bridge }: AppOptions, visitor: Visitor) {
  const { status } = supervisor;
  const refusal = status.state === "ready" ? bridge.refusal : undefined;
  const why = refusal && { cause: refusal.code, detail: refusal.detail };
  const full = { ...status, ...why, viewers: bridge.size, version: VERSION };
  if (visitor.role === "owner") return full;
  const numbers = Object.entries(full.detail).filter(([, value]) => typeof value === "number");
  return { ...full, detail: Object.fromEntries(numbers), log: [], display: null };
}

/**
 * The JSON of a request, checked. Its type must say that it is JSON: a form of another site's cannot.
 * @throws ApiError
 */
async function readJson<T extends z.ZodType>(c: Context, type: T): Promise<z.output<T>> {
  if (!/^application\/json\b/i.test(c.req.header("content-type") ?? ""))
    throw new ApiError(415, "not-json");
  const written = await c.req.text();
  const parsed = type.safeParse(await new Response(written).json().catch(() => undefined));
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ApiError(400, "bad-request", { field: issue?.path.join(".") ?? "" });
}

/** The addresses of files: a list, downloads, and uploads in pieces. */
function mountFiles(app: Hono<Env>, files: Files): void {
  const uploads = "/desktop/api/files/uploads";
  app.use(uploads, bodyLimit({ maxSize: MAX_JSON_BYTES }));
  const id = (c: Context) => c.req.param("id") ?? "";
  mount(app, "/desktop/api/files", {
    GET: (c) => c.json(files.list(c.req.query("path") ?? "")),
  });
  mount(app, "/desktop/api/files/download", { GET: (c) => download(c, files) });
  mount(app, uploads, {
    POST: async (c) => c.json(files.start(await readJson(c, newUpload)), 201),
  });
  mount(app, `${uploads}/:id`, {
    GET: (c) => c.json(files.state(id(c))),
    PUT: async (c) => {
      if (Number(c.req.header("content-length")) > MAX_CHUNK_BYTES)
        throw new ApiError(413, "too-much", { limit: MAX_CHUNK_BYTES });
      const body = c.req.raw.body ?? new Blob().stream();
      return c.json(await files.write(id(c), Number(c.req.query("offset")), body));
    },
    DELETE: (c) => {
      files.cancel(id(c));
      return c.json({});
    },
  });
}

/** A file as what is saved, never as a page of this origin. Bun answers a Range itself. */
function download(c: Context<Env>, files: Files): Response {
  const { file, name } = files.open(c.req.query("path") ?? "");
  // RFC 6266, and of RFC 8187 the characters that encodeURIComponent leaves and it does not
  const quoted = encodeURIComponent(name).replace(
    /['()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16)}`,
  );
  return new Response(file, {
    headers: {
      "content-type": "application/octet-stream",
      "content-disposition": `attachment; filename*=UTF-8''${quoted}`,
      "content-security-policy": "sandbox; default-src 'none'",
      "cache-control": "no-store",
    },
  });
}

/** The addresses of sharing, the owner's all of them. */
function mountShares(app: Hono<Env>, shares: Shares, options: AppOptions): void {
  const { bridge, supervisor, policy, log } = options;
  // A desktop that is not up yet may turn out to be one that can be watched.
  const canWatch = () => supervisor.status.state !== "ready" || Boolean(supervisor.watchPassword);
  app.use("/desktop/api/shares", bodyLimit({ maxSize: MAX_JSON_BYTES }));
  mount(app, "/desktop/api/shares", {
    GET: (c) => {
      const people = bridge.people.map(({ visitor: { role, name, link = null }, since }) => ({
        ...{ role, name, link },
        since: since.toISOString(),
      }));
      const links = shares.links.map(({ expiresMs, ...link }) => ({
        ...link,
        expires: new Date(expiresMs).toISOString(),
      }));
      const isOpen = policy.kind === "open";
      return c.json({ links, people, canWatch: canWatch(), isOpen }, 200, {
        "cache-control": "no-store",
      });
    },
    POST: async (c) => {
      const wanted = await readJson(c, newShare);
      if (wanted.role === "watch" && !canWatch()) throw new ApiError(409, "no-watching");
      const { token, expiresMs, ...link } = shares.create(wanted);
      const expires = new Date(expiresMs).toISOString();
      log("info", "link made", { ...link, expires });
      return c.json({ ...link, expires, address: `desktop/?share=${token}` }, 201);
    },
  });
  mount(app, "/desktop/api/shares/:id", {
    DELETE: (c) => {
      const id = c.req.param("id") ?? "";
      if (!shares.revoke(id)) throw new ApiError(404, "no-such-link");
      log("info", "link ended", { id });
      return c.json({});
    },
  });
}

/** Which of these causes is the asker's own, and which is the machine's. */
const SETTING_STATUS = {
  "unknown-layout": 400,
  "no-program": 501,
  "not-own-desktop": 409,
} as const;

/** A handler that reads or sets something on a desktop of our own, and answers what went wrong with a code. */
function onDesktop<T extends z.ZodType>(
  { supervisor, log }: AppOptions,
  body: T,
  work: (env: DesktopEnv, body: z.output<T>) => Promise<object>,
): Handler {
  return async (c) => {
    const isPost = c.req.raw.method === "POST";
    const given = body.safeParse(isPost ? await c.req.json().catch(() => undefined) : undefined);
    if (!given.success) return c.json({ cause: "bad-request", detail: {} }, 400);
    try {
      const env = supervisor.desktopEnv;
      if (!env) throw new VncError("not-own-desktop");
      return c.json(await work(env, given.data), 200, { "cache-control": "no-store" });
    } catch (error) {
      if (!(error instanceof VncError)) throw error;
      const { code: cause, detail } = error.reason;
      log("warn", "setting failed", { path: c.req.path, cause, ...detail });
      const status = SETTING_STATUS[cause as keyof typeof SETTING_STATUS] ?? 502;
      return c.json({ cause, detail }, status);
    }
  };
}

/** The same work, but a call waits for the end of the one before. */
function oneByOne<A, R>(work: (argument: A) => Promise<R>): (argument: A) => Promise<R> {
  let last: Promise<unknown> = Promise.resolve();
  return (argument) => {
    const next = last.then(() => work(argument));
    last = next.catch(() => {});
    return next;
  };
}

/** All that guests may reach: the page with what it is made of, the WebSocket, the status, and the way out. */
function mountForGuests(app: Hono<Env>, options: AppOptions): void {
  const { assets } = options;
  const routes: Record<string, Omit<Mounted, "needs">> = {
    "/desktop": { GET: (c) => c.redirect(`desktop/${new URL(c.req.url).search}`) },
    "/desktop/api/status": { GET: (c) => serveStatus(c, options) },
    "/desktop/static/manifest.webmanifest": { GET: (c) => serveManifest(c, options) },
    "/logout": { POST: (c) => logout(c, options) },
  };
  for (const address of ["/", "/desktop/"]) {
    app.use(address, compress()); // it is made anew for each visitor, and so not compressed before
    routes[address] = { GET: (c) => servePage(c, options) };
  }
  for (const address of ["/desktop-websockify", "/desktop-websockify/"])
    routes[address] = { GET: (c) => serveSocket(c, options) };
  for (const [name, asset] of openAssets(assets))
    routes[`/desktop/static/${name}`] = { GET: (c) => serveAsset(c, asset, assets.hash) };
  for (const [address, handlers] of Object.entries(routes))
    mount(app, address, { needs: "watch", ...handlers });
}

/** The whole HTTP side: a Hono app, with Bun's server in its bindings. */
export function createApp(options: AppOptions): Hono<Env> {
  const { supervisor, log } = options;
  const base = samePath(options.baseUrl);
  const getPath = (request: Request) => pathUnder(base, new URL(request.url).pathname);
  const root = new Hono<Env>({ strict: true, getPath }).use(securityHeaders(options));
  const app = root.basePath(base);
  const limiter = new GuessLimiter();
  const act =
    (work: () => Promise<void>): Handler =>
    async (c) => {
      c.env.server.timeout(c.req.raw, START_ANSWER_S);
      await work();
      return c.json(fullStatus(options, c.get("visitor")));
    };

  mount(app, "/healthz", { needs: "nobody", GET: (c) => c.text("ok\n") });
  if (options.hub) mountHub(app, options, options.hub);
  app.use("/login", bodyLimit({ maxSize: MAX_FORM_BYTES }));
  mount(app, "/login", {
    needs: "nobody",
    GET: (c) => c.redirect("./"),
    POST: (c) => login(c, options, limiter),
  });
  app.use(guard(options, limiter));
  mountForGuests(app, options);
  const { metrics } = options;
  if (metrics)
    mount(app, "/metrics", {
      GET: (c) => c.body(metrics(), 200, { "content-type": "text/plain; version=0.0.4" }),
    });
  mount(app, "/desktop/api/start", { POST: act(() => supervisor.start()) });
  mount(app, "/desktop/api/stop", { POST: act(() => supervisor.stop()) });
  mount(app, "/desktop/api/restart", { POST: act(() => supervisor.restart()) });
  app.use("/desktop/api/keyboard", bodyLimit({ maxSize: MAX_FORM_BYTES }));
  app.use("/desktop/api/scale", bodyLimit({ maxSize: MAX_FORM_BYTES }));
  mount(app, "/desktop/api/keyboard", {
    GET: onDesktop(options, z.undefined(), readKeyboard),
    POST: onDesktop(options, keyboardChoice, setKeyboard),
  });
  const restart = oneByOne(restartXfceParts);
  // Two at once would each take what the other set for what the person had before.
  const scale = oneByOne(async (choice: z.output<typeof scaleChoice>) => {
    const env = await settledEnv(supervisor);
    if (!env) throw new VncError("not-own-desktop"); // it was stopped meanwhile
    return setScale(env, choice, restart);
  });
  mount(app, "/desktop/api/scale", {
    POST: onDesktop(options, scaleChoice, (_, choice) => scale(choice)),
  });
  if (options.files) mountFiles(app, options.files);
  if (options.shares) mountShares(app, options.shares, options);
  const last = base.split("/").at(-2);
  if (last) {
    const redirect: Handler = (c) => c.redirect(`./${last}/${new URL(c.req.url).search}`);
    mount(root, base.slice(0, -1), { needs: "nobody", GET: redirect });
  }
  root.notFound((c) => c.text("There is nothing at this address.\n", 404));
  root.onError((error, c) => {
    if (error instanceof HTTPException) return error.getResponse();
    if (error instanceof ApiError)
      return c.json({ error: error.message, detail: error.detail }, error.status);
    log("error", "request failed", { path: c.req.path, error: errorText(error) });
    return c.text("Something went wrong in jupyter-desktop: its log has the reason.\n", 500);
  });
  return root;
}

/** The log-in form: the token goes into the cookie, and the person to the desktop. */
async function login(
  c: Context<Env>,
  options: AppOptions,
  limiter: GuessLimiter,
): Promise<Response> {
  const { policy } = options;
  if (limiter.full) return c.text(`${SENTENCES.busy}\n`, 429);
  const form = await c.req.parseBody().catch(() => undefined);
  if (!form) return c.text("That is no log-in form.\n", 400);
  const token = typeof form.token === "string" ? form.token.trim() : undefined;
  const decision = authorize(authRequest(c, token), policy);
  if (!decision.ok) {
    options.log("warn", "refused", { reason: decision.reason, method: "POST", path: c.req.path });
    if (decision.reason === "wrong-token") await limiter.punish();
    else if (decision.reason !== "no-token") return c.text(`${SENTENCES[decision.reason]}\n`, 403);
    return loginPage(c, options, decision);
  }
  limiter.forgive();
  const response = exchangeToken(c, options);
  response.headers.set("location", "./");
  return response;
}

/** The status at once and after every change, as server-sent events. */
function statusStream(c: Context<Env>, options: AppOptions): Response {
  const { supervisor, bridge } = options;
  c.env.server.timeout(c.req.raw, 0); // Bun ends a silent response after 10 s
  c.header("x-accel-buffering", "no"); // nginx would hold the events back
  return streamSSE(c, async (stream) => {
    const { promise: gone, resolve } = Promise.withResolvers<void>();
    const visitor = c.get("visitor");
    let [isSending, isNews] = [false, false];
    // One at a time, and then the newest: a reader that stalls would have all of them kept for it.
    const send = async () => {
      isNews = true;
      if (isSending) return;
      for (isSending = true; isNews;) {
        isNews = false;
        await stream.writeSSE({ data: JSON.stringify(fullStatus(options, visitor)) });
      }
      isSending = false;
    };
    const over = () => resolve();
    visitor.over?.addEventListener("abort", over);
    const stops = [supervisor.onChange(send), bridge.onChange(send)];
    stream.onAbort(resolve);
    void send();
    const beat = setInterval(() => void (isSending || stream.write(": alive\n\n")), SSE_BEAT_MS);
    await gone;
    clearInterval(beat);
    visitor.over?.removeEventListener("abort", over);
    for (const stop of stops) stop();
  });
}

// --- jupyter ---
// The tile in JupyterLab's launcher: an entry in Jupyter's own configuration, written and taken back.

/** Where the entry goes: for this user, for one Python environment, for all users. */
type Scope = "user" | "sysPrefix" | "system";
const scopeOf = ({ sysPrefix, system }: Config): Scope =>
  system ? "system" : sysPrefix ? "sysPrefix" : "user";

/** What `jupyter --paths --json` says, each list with the best first. */
const jupyterPaths = z.object({ config: z.array(z.string()), data: z.array(z.string()) });
type JupyterPaths = z.infer<typeof jupyterPaths>;

/** The Jupyter on PATH, asked for its directories: only it knows them (conda, pyenv, its own variables). */
async function askJupyter(env: NodeJS.ProcessEnv): Promise<JupyterPaths | undefined> {
  const jupyter = Bun.which("jupyter", { PATH: env.PATH ?? SYSTEM_PATH });
  if (!jupyter) return undefined;
  try {
    const child = Bun.spawn([jupyter, "--paths", "--json"], {
      env,
      stdio: ["ignore", "pipe", "ignore"],
      timeout: JUPYTER_TIMEOUT_MS,
    });
    return jupyterPaths.parse(await child.stdout.json());
  } catch {
    return undefined; // a broken Jupyter is like none
  }
}

/** The prefix of the Python that runs this Jupyter: the directory with both its etc/jupyter and its share/jupyter. */
function pythonPrefix(paths: JupyterPaths | undefined, env: NodeJS.ProcessEnv): string | undefined {
  const userBase = env.PYTHONUSERBASE ?? path.join(env.HOME ?? "/", ".local");
  const prefixes = (paths?.config ?? []).flatMap(
    (dir) => /^(.*)\/etc\/jupyter$/.exec(dir)?.[1] ?? [],
  );
  return (
    prefixes.find(
      (prefix) => prefix !== userBase && paths?.data.includes(path.join(prefix, "share/jupyter")),
    ) ??
    env.VIRTUAL_ENV ??
    env.CONDA_PREFIX
  );
}

/** The directory whose jupyter_server_config.py gets the entry. */
export function jupyterConfigDir(
  scope: Scope,
  env: NodeJS.ProcessEnv,
  paths?: JupyterPaths,
): string {
  if (scope === "system") return "/usr/local/etc/jupyter";
  if (scope === "user")
    return env.JUPYTER_CONFIG_DIR ?? path.join(env.HOME ?? os.homedir(), ".jupyter");
  const prefix = pythonPrefix(paths, env);
  if (prefix !== undefined) return path.join(prefix, "etc/jupyter");
  const why = "there is no jupyter on PATH, and no active environment (VIRTUAL_ENV, CONDA_PREFIX)";
  throw new UsageError([`${both("sysPrefix")}: ${why}; activate the environment, and try again`]);
}

const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect x="2" y="4" width="28" height="19" rx="2" fill="#616161"/>
<rect x="4" y="6" width="24" height="15" fill="#e3f2fd"/>
<rect x="4" y="6" width="24" height="3" fill="#f37726"/>
<rect x="6" y="11" width="10" height="7" rx="1" fill="#1976d2"/>
<path d="M13 23h6v3h4v2H9v-2h4z" fill="#616161"/>
</svg>
`;

export interface JupyterEntry {
  /** Bun and server.ts, or one executable, by absolute paths: Jupyter's PATH may have neither. */
  readonly program: readonly string[];
  /** Options of serve. */
  readonly args: readonly string[];
  readonly icon: string;
  readonly labTab: boolean;
  readonly websockify: boolean;
}

/**
 * The lines of Python that make the tile. They update the dictionary of servers, whoever set it: a plain value, as
 * JSON would be, replaces what other files of Jupyter's say about other servers.
 */
export function renderJupyterEntry(entry: JupyterEntry): string {
  const literal = (text: string) => text.replaceAll("{", "{{").replaceAll("}", "}}");
  const server = {
    // Jupyter's template: every other brace is doubled.
    command: [
      ...entry.program.map(literal),
      ...["--unix-socket", "{unix_socket}"],
      ...entry.args.map(literal),
    ],
    unix_socket: true,
    timeout: JUPYTER_READY_S,
    launcher_entry: { title: "Desktop", path_info: "desktop/", icon_path: entry.icon },
    new_browser_tab: !entry.labTab,
    // A tab that shows the desktop keeps Jupyter awake; --idle-disconnect ends that for one that is forgotten.
    update_last_activity: true,
    // One that only waits for news of a desktop that is down does not.
    exclude_last_activity_patterns: [".*/desktop/api/status$", ".*/healthz$"],
  };
  const python = (value: unknown) =>
    JSON.stringify(value, null, 4)
      .replace(/(?<=: )true(?=,?$)/gm, "True")
      .replace(/(?<=: )false(?=,?$)/gm, "False");
  if (!entry.websockify) return `c.ServerProxy.servers.update(${python({ desktop: server })})\n`;
  // Two entries that share a socket: it needs a path of its own for each Jupyter that runs, in a private directory.
  const second = { unix_socket: "SOCKET", launcher_entry: { enabled: false } };
  const both = { desktop: { ...server, unix_socket: "SOCKET" }, "desktop-websockify": second };
  return [
    "import atexit, os, shutil, tempfile",
    "",
    'jupyter_desktop_dir = tempfile.mkdtemp(prefix="jupyter-desktop-")',
    "atexit.register(shutil.rmtree, jupyter_desktop_dir, ignore_errors=True)",
    `c.ServerProxy.servers.update(${python(both).replaceAll('"SOCKET"', 'os.path.join(jupyter_desktop_dir, "socket")')})`,
    "",
  ].join("\n");
}

const blockHash = (body: string) => createHash("sha256").update(body).digest("hex").slice(0, 16);

/** The entry between two lines by which it is found again; the first tells whether somebody changed it since. */
const renderBlock = (body: string) =>
  `\n# >>> jupyter-desktop ${blockHash(body)}: written by its install command, taken back by uninstall >>>\n${body}# <<< jupyter-desktop <<<\n`;

const BLOCK = /\n?# >>> jupyter-desktop ([0-9a-f]{16}): .*\n([\s\S]*?)# <<< jupyter-desktop <<<\n/;

/**
 * The file's text without the entry; undefined when there is none.
 * @throws Error when somebody has changed the entry by hand.
 */
export function withoutBlock(text: string, file: string): string | undefined {
  const found = BLOCK.exec(text);
  if (!found) return undefined;
  const [block, hash, body = ""] = found;
  if (blockHash(body) !== hash)
    throw new Error(
      `the lines of jupyter-desktop in ${file} were changed by hand: take them out with an editor, from ">>> jupyter-desktop" to "<<< jupyter-desktop", and try again`,
    );
  return text.replace(block, () => "");
}

/** Writes a file so that nobody ever reads half of it; a link and the mode of an old file stay. */
function writeWhole(file: string, text: string): void {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const old = fs.statSync(file, { throwIfNoEntry: false });
  const real = old ? fs.realpathSync(file) : file;
  const fresh = `${real}.${randomBytes(MARK_BYTES).toString("hex")}`;
  fs.writeFileSync(fresh, text, { mode: old ? old.mode & 0o777 : 0o644 });
  fs.renameSync(fresh, real);
}

/** Files that come and go: what bunx and npx fetch. A click months later must not depend on them. */
const PASSING = /\/(bunx-\d+-[^/]*|_npx)\//;

/** How this program was started, and where it says what it did. */
interface Terminal {
  readonly bun: string;
  readonly script: string;
  say(line: string): void;
}

const PROGRAM_COPY = "server.js";
/** A .env or a bunfig.toml in the directory in which Jupyter was started is not for this program. */
const AS_IT_IS = ["--no-env-file", "--config=/dev/null"];

/**
 * The command that starts this very program again. From bunx's or npx's cache it is copied into `dir`, as one file:
 * the cache goes away, and to fetch it anew at a click takes a network and time.
 */
function ownCommand(dir: string, { bun, script }: Terminal): string[] {
  if (script.startsWith("/$bunfs/")) return [bun]; // an executable made by `bun build --compile`
  return [bun, ...AS_IT_IS, PASSING.test(script) ? path.join(dir, PROGRAM_COPY) : script];
}

/** The copy, where that command needs one. */
async function keepProgram(dir: string, { bun, script, say }: Terminal): Promise<void> {
  if (PASSING.test(bun))
    say(`note: Bun itself is in a cache (${bun}). To keep it, type: npm install -g bun`);
  if (!PASSING.test(script)) return;
  const built = await Bun.build({ entrypoints: [script], target: "bun" });
  writeWhole(path.join(dir, PROGRAM_COPY), (await built.outputs[0]?.text()) ?? "");
}

/** Files that Jupyter reads after ours and that set the servers anew, so that ours does not count. */
function hidingFiles(dir: string, paths: JupyterPaths): string[] {
  const above = paths.config.slice(0, Math.max(0, paths.config.indexOf(dir)));
  const files = [
    ...above.flatMap((other) => ["py", "json"].map((kind) => `${other}/x.${kind}`)),
    `${dir}/x.json`,
  ];
  return files
    .map((file) => file.replace(/x(?=\.\w+$)/, "jupyter_server_config"))
    .filter((file) => /ServerProxy[\s\S]*servers["']?\s*[:=]/.test(readIfThere(file)));
}

/** What is still to do before the tile shows. */
function jupyterAdvice(dir: string, paths: JupyterPaths | undefined, env: NodeJS.ProcessEnv) {
  if (!paths)
    return [
      "There is no Jupyter on PATH. The tile shows in JupyterLab 4 or Notebook 7 with jupyter-server-proxy:",
      "  pip install jupyterlab jupyter-server-proxy",
    ];
  const hiding = hidingFiles(dir, paths);
  const prefix = pythonPrefix(paths, env) ?? "/usr";
  const hasProxy = paths.config.some((other) =>
    fs.existsSync(path.join(other, "jupyter_server_config.d/jupyter-server-proxy.json")),
  );
  const install = fs.existsSync(path.join(prefix, "conda-meta"))
    ? `conda install -p ${prefix} -c conda-forge jupyter-server-proxy`
    : `${prefix}/bin/python3 -m pip install jupyter-server-proxy`;
  const hasUpstream = paths.config.some((other) =>
    fs.existsSync(path.join(other, "jupyter_server_config.d/jupyter_remote_desktop_proxy.json")),
  );
  return [
    ...(hasUpstream
      ? [
          "jupyter-remote-desktop-proxy takes the same address, before this entry. Type:",
          `  ${prefix}/bin/python3 -m pip uninstall jupyter-remote-desktop-proxy`,
        ]
      : []),
    ...(paths.config.includes(dir)
      ? []
      : [`The Jupyter on PATH does not read ${dir}; it reads: ${paths.config.join(", ")}`]),
    ...hiding.map(
      (file) =>
        `${file} sets ServerProxy.servers and hides this entry: add these lines there instead (install --print)`,
    ),
    ...(hasProxy
      ? []
      : ["This Jupyter has no jupyter-server-proxy, which the tile needs. Type:", `  ${install}`]),
    "Restart Jupyter: its launcher then has a Desktop tile.",
  ];
}

/** Parts of a path that other users cannot pass. */
const closedParts = (file: string): string[] =>
  file === "/"
    ? []
    : [
        ...closedParts(path.dirname(file)),
        ...((fs.statSync(file).mode & 0o005) === 0o005 ? [] : [file]),
      ];

/** The install command. Returns the exit code. */
async function installEntry(
  config: Config,
  env: NodeJS.ProcessEnv,
  terminal: Terminal,
): Promise<number> {
  const { say } = terminal;
  const paths = await askJupyter(env);
  const dir = jupyterConfigDir(scopeOf(config), env, paths);
  const file = path.join(dir, "jupyter_server_config.py");
  const own = path.join(dir, "jupyter-desktop");
  const icon = path.join(own, "desktop.svg");
  const { labTab, websockify, print, flags } = config;
  const args = flags.filter(({ name }) => isEntryOption(name)).flatMap((flag) => flag.args);
  const old = readIfThere(file);
  const rest = withoutBlock(old, file) ?? old;
  const program = ownCommand(own, terminal);
  const block = renderBlock(renderJupyterEntry({ program, args, icon, labTab, websockify }));
  if (print) {
    say(`# ${file}${block.trimEnd()}`);
    return 0;
  }
  await keepProgram(own, terminal);
  writeWhole(icon, ICON);
  writeWhole(file, `${rest}${block}`);
  say(`Wrote ${file}${rest === "" ? "" : " (its other lines are as they were)"}`);
  for (const line of jupyterAdvice(dir, paths, env)) say(line);
  const closed = config.system ? program.flatMap(closedParts) : [];
  if (closed.length > 0)
    say(
      `Other users cannot reach ${closed[0]}: install Bun and jupyter-desktop where all can read`,
    );
  return 0;
}

/** The uninstall command. Returns the exit code. */
async function uninstallEntry(
  config: Config,
  env: NodeJS.ProcessEnv,
  say: (line: string) => void,
): Promise<number> {
  const dir = jupyterConfigDir(scopeOf(config), env, await askJupyter(env));
  const file = path.join(dir, "jupyter_server_config.py");
  const rest = withoutBlock(readIfThere(file), file);
  if (rest === undefined) {
    say(`Nothing of jupyter-desktop is in ${file}: is it --sys-prefix, --system, or neither?`);
    return 1;
  }
  if (rest === "") fs.rmSync(file);
  else writeWhole(file, rest);
  say(`Took the entry out of ${file}. Restart Jupyter, and the tile is gone.`);
  const own = path.join(dir, "jupyter-desktop");
  const icon = path.join(own, "desktop.svg");
  if (readIfThere(icon) === ICON) fs.rmSync(icon);
  fs.rmSync(path.join(own, PROGRAM_COPY), { force: true });
  if (isDir(own) && fs.readdirSync(own).length > 0)
    say(`Left ${own}: there is something in it that jupyter-desktop did not write`);
  else fs.rmSync(own, { recursive: true, force: true });
  return 0;
}

// --- setup ---
// Installs what is missing, by the machine's own package manager.

/** The groups of packages without which there is no desktop here. */
async function missingGroups(config: Config, env: NodeJS.ProcessEnv): Promise<PackageGroup[]> {
  const pathList = `${SYSTEM_PATH}:${env.PATH ?? ""}`;
  const missing: PackageGroup[] = [];
  if (!(await findXvnc(pathList))) missing.push("vnc");
  const own = chooseXstartup({ xstartup: config.xstartup, env });
  if (!own && !findDesktop(pathList)) missing.push("desktop");
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
  const missing = await missingGroups(config, env);
  if (missing.length === 0) return 0;
  const lines = installLines(missing);
  if (!lines) {
    say(
      `There is no ${missing.join(" and no ")} here, and no package manager that jupyter-desktop knows.\nTo mend it: ${installCommand(...missing)}`,
    );
    return 1;
  }
  const untried = lines[0]?.startsWith("apt-get")
    ? ""
    : "\nThis list was made from the distribution's index and was not tried there: tell us how it went.";
  if (process.getuid?.() !== 0) {
    say(
      `A desktop needs packages that only root can install. Type:\n\n  ${installCommand(...missing)}\n\nand then the same command again.${untried}`,
    );
    return 1;
  }
  say(
    `A desktop needs packages that are not here. To run:\n\n${lines.map((line) => `  ${line}`).join("\n")}\n${untried}`,
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
  const mesa = ["lib/*-linux-gnu/", "lib64/", "lib/"]
    .flatMap((dir) => [
      `${dir}dri/swrast_dri.so`,
      `${dir}libgallium-*.so`,
      `${dir}dri/libgallium-*.so`,
    ])
    .some(
      (pattern) => !new Bun.Glob(pattern).scanSync({ cwd: "/usr", onlyFiles: false }).next().done,
    );
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

// --- run ---
// Finds this user's servers by their runtime directories, and runs programs on their desktops.

type ServerStatus = VncStatus & { viewers: number };

/** Asks the server of a directory; undefined when none runs there. */
async function askServer(
  dir: string,
  action: "status" | "start" | "stop",
): Promise<ServerStatus | undefined> {
  try {
    const response = await fetch(`http://localhost/desktop/api/${action}`, {
      unix: path.join(dir, "control.sock"),
      method: action === "status" ? "GET" : "POST",
    });
    return (await response.json()) as ServerStatus;
  } catch {
    return undefined; // nobody listens: the server was killed
  }
}

function statusText(status: ServerStatus | undefined): string | undefined {
  if (!status) return undefined;
  const { state, cause, display, viewers } = status;
  const more = [cause && `cause ${cause}`, display && `display ${display}`].filter(Boolean);
  return [state, `${viewers} viewers`, ...more].join(", ");
}

/** The directories of this user's servers, of this name if one is given. */
function serverDirs(config: Config, env: NodeJS.ProcessEnv): string[] {
  const dirs = runtimePlaces(env).flatMap((place) =>
    isDir(place) ? fs.readdirSync(place).map((name) => path.join(place, name)) : [],
  );
  return dirs.filter((dir) => config.name === undefined || path.basename(dir) === config.name);
}

/** Those where a server answers. */
async function liveServers(config: Config, env: NodeJS.ProcessEnv): Promise<string[]> {
  const asked = serverDirs(config, env).map(async (dir) =>
    (await askServer(dir, "status")) ? [dir] : [],
  );
  return (await Promise.all(asked)).flat();
}

/** A process and all above it. */
function lineOf(pid: string): string[] {
  const parent = /^PPid:\s*(\d+)/m.exec(readIfThere(`/proc/${pid}/status`))?.[1];
  return [pid, ...(parent && parent !== "0" ? lineOf(parent) : [])];
}

/** What a Jupyter server writes about itself into its runtime directory, for its user alone. */
const jupyterInfo = z.object({
  pid: z.number(),
  url: z.string(),
  token: z.string(),
  sock: z.string(),
});
type JupyterInfo = z.infer<typeof jupyterInfo>;

/** The Jupyter server to which this kernel or terminal belongs. */
function ownJupyter(env: NodeJS.ProcessEnv): JupyterInfo | undefined {
  const home = env.XDG_DATA_HOME ?? path.join(env.HOME ?? "/", ".local/share");
  const dir =
    env.JUPYTER_RUNTIME_DIR ?? path.join(env.JUPYTER_DATA_DIR ?? `${home}/jupyter`, "runtime");
  for (const pid of [env.JPY_PARENT_PID, ...lineOf("self")]) {
    const info = readIfThere(path.join(dir, `jpserver-${pid}.json`));
    const { data } = jupyterInfo.safeParse(info && JSON.parse(info));
    if (data) return data;
  }
  return undefined;
}

/** Has Jupyter start the server behind its tile, as a click on it does. Is there one? */
async function openTile(
  { url, token, sock }: JupyterInfo,
  env: NodeJS.ProcessEnv,
): Promise<boolean> {
  try {
    const response = await fetch(new URL("desktop/healthz", url), {
      headers: { authorization: `token ${token || env.JUPYTERHUB_API_TOKEN || ""}` },
      redirect: "manual",
      tls: { rejectUnauthorized: false }, // this user's own server on this machine, often with a made-up certificate
      ...(sock ? { unix: sock } : {}),
    });
    return response.ok;
  } catch {
    return false;
  }
}

/**
 * The directory of the server that is meant: the one with the given name, the one of this Jupyter (its tile is opened
 * for it), or the only one.
 */
async function chooseServer(config: Config, env: NodeJS.ProcessEnv): Promise<string> {
  const jupyter = config.name === undefined ? ownJupyter(env) : undefined;
  let found = await liveServers(config, env);
  const isOwn = (dir: string) =>
    jupyter !== undefined &&
    lineOf(readIfThere(path.join(dir, "pid"))).includes(String(jupyter.pid));
  if (jupyter && !found.some(isOwn) && (await openTile(jupyter, env)))
    found = await liveServers(config, env);
  if (found.some(isOwn)) found = found.filter(isOwn);
  const [first, ...more] = found;
  if (first === undefined)
    throw new Error(
      jupyter
        ? 'no desktop runs here, and this Jupyter has no Desktop tile: type "jupyter-desktop install" and restart Jupyter'
        : 'no desktop of this user, or of this name, runs here: start one in another terminal with "jupyter-desktop", and try again',
    );
  if (more.length > 0)
    throw new Error(
      `several servers run here: choose one with --name ${found.map((dir) => path.basename(dir)).join(" or ")}`,
    );
  return first;
}

/** The address of the desktop's D-Bus, from one of its processes; a desktop that has just started may have none yet. */
async function sessionBus(dir: string, { since }: ServerStatus): Promise<string | undefined> {
  for (;;) {
    const address = markedEnv(readIfThere(path.join(dir, "mark")))?.DBUS_SESSION_BUS_ADDRESS;
    if (address || Date.now() - Date.parse(since) > BUS_WAIT_MS) return address;
    await Bun.sleep(REAP_POLL_MS);
  }
}

/** The variables by which a program finds the desktop, which is started if it is not up. */
async function desktopVariables(
  config: Config,
  env: NodeJS.ProcessEnv,
): Promise<Record<string, string>> {
  const dir = await chooseServer(config, env);
  const status = await askServer(dir, "start");
  if (status?.state !== "ready") {
    const log = status?.log.slice(-5).map((line) => `\n  ${line}`) ?? [];
    throw new Error(
      `the desktop does not start (${status?.cause ?? "its server is gone"}): type "jupyter-desktop doctor"${log.join("")}`,
    );
  }
  if (status.display === null)
    throw new Error(
      "that desktop is a VNC server that jupyter-desktop did not start: its DISPLAY is known to whoever started it",
    );
  const bus = await sessionBus(dir, status);
  return {
    DISPLAY: status.display,
    XAUTHORITY: path.join(dir, "Xauthority"),
    ...(bus ? { DBUS_SESSION_BUS_ADDRESS: bus } : {}),
  };
}

const quoteShell = (value: string) =>
  /^[\w./:,=@%+-]+$/.test(value) ? value : `'${value.replaceAll("'", "'\\''")}'`;

/** The env command: for `eval "$(jupyter-desktop env)"`, or as JSON. */
async function printVariables(
  config: Config,
  env: NodeJS.ProcessEnv,
  say: (line: string) => void,
): Promise<number> {
  const variables = await desktopVariables(config, env);
  const words = Object.entries(variables).map(([name, value]) => `${name}=${quoteShell(value)}`);
  say(config.json ? JSON.stringify(variables) : `export ${words.join(" ")}`);
  return 0;
}

/** Of another session, or of the notebook: with it a program would not show its window on the desktop. */
const NOT_FOR_APP = /^(WAYLAND_DISPLAY|SESSION_MANAGER|MPLBACKEND=module:\/\/matplotlib_inline)/;

/** The program to run, by its path, and its environment; undefined when there is no such program. */
async function prepareApp(config: Config, env: NodeJS.ProcessEnv) {
  const file = Bun.which(config.app[0] ?? "", { PATH: env.PATH ?? SYSTEM_PATH });
  if (!file) return undefined;
  const kept = Object.entries(env).filter(([name, value]) => !NOT_FOR_APP.test(`${name}=${value}`));
  const variables = await desktopVariables(config, env);
  return { file, env: { ...Object.fromEntries(kept), ...variables } };
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

/** Was it started under the name that JupyterHub's spawners start by default, as a link to this file or executable? */
function isSingleuser(): boolean {
  // Bun puts the file behind a link into argv, the kernel the name that was called.
  const words = readIfThere("/proc/self/cmdline").split("\0").slice(0, 2);
  return words.some((word) => path.basename(word) === "jupyterhub-singleuser");
}

const usesToken = (config: Config) =>
  config.auth === "token" || (config.auth === "auto" && config.unixSocket === undefined);

/** Links are on, but not under a Hub by themselves: they let in people whom the Hub does not know. */
const offersShares = ({ share, hub }: Config) => share ?? hub === undefined;

/**
 * What launches the VNC server that the configuration asks for. The directory is chosen at each launch: that it cannot
 * be written is then a cause which the page shows, and not the end of the server.
 */
function chooseLaunch(config: Config, { env, tail, name }: Served): Launch {
  const { vnc, vncCommand } = config;
  if (vnc.kind !== "auto" && vncCommand === undefined) return attach(vnc);
  return async (abort) => {
    const { geometry, vncArg: vncArgs, xstartup, keep, clipboard, passHubToken } = config;
    const runtimeDir = chooseRuntimeDir(name, env);
    const watchable = offersShares(config);
    const more = { keep, clipboard, watchable, passHubToken, abort };
    const options = { runtimeDir, geometry, vncArgs, xstartup, env, tail, ...more };
    if (vncCommand === undefined) return launchDesktop(options);
    const own: Target = { kind: "unix", path: path.join(runtimeDir, "vnc.sock") };
    return launchCommand(vncCommand, vnc.kind === "auto" ? own : vnc, options);
  };
}

/** A socket file that a killed server left behind is removed; a live one is not. */
async function clearStaleSocket(file: string): Promise<void> {
  const stat = fs.lstatSync(file, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isSocket())
    throw new Error(`${file} is there and is no socket: choose another path for --unix-socket`);
  if (await isListening({ kind: "unix", path: file }))
    throw new Error(`another server listens on ${file}: stop it, or choose another --unix-socket`);
  fs.unlinkSync(file);
}

type Fetch = (request: Request, server: Server<Session>) => Response | Promise<Response>;

/** Listens on a unix socket that only this user can open, from its first moment. */
async function listenUnix(file: string, fetch: Fetch): Promise<Server<Session>> {
  await clearStaleSocket(file);
  const umask = process.umask(0o177);
  try {
    return Bun.serve({ fetch, websocket: Bridge.websocket, unix: file });
  } catch (error) {
    throw new Error(`cannot listen on ${file}: ${errorText(error)}`);
  } finally {
    process.umask(umask);
  }
}

async function listen(config: Config, fetch: Fetch): Promise<Server<Session>> {
  const { unixSocket, host: hostname, port, tls: pair } = config;
  if (unixSocket !== undefined) return listenUnix(unixSocket, fetch);
  const tls = pair?.ca ? { ...pair, requestCert: true, rejectUnauthorized: true } : pair;
  try {
    return Bun.serve({
      fetch,
      websocket: Bridge.websocket,
      hostname,
      port,
      ...(tls ? { tls } : {}),
    });
  } catch (error) {
    const where = joinHostPort(hostname, port);
    if (errorCode(error) !== "EADDRINUSE")
      throw new Error(`cannot listen on ${where}: ${errorText(error)}`);
    throw new Error(
      `another program listens on ${where}: stop it, or add --port 0 to take a free port`,
    );
  }
}

/** Opens an address by a private file that leads on: on a command line everyone would see its token in `ps`. */
function openPage(opener: string, url: URL, { env, name }: Pick<Served, "env" | "name">): void {
  try {
    const page = path.join(chooseRuntimeDir(name, env), "open.html");
    const leadOn = `<meta http-equiv="refresh" content="0;url=${escapeHtml(url.href)}">`;
    fs.writeFileSync(page, leadOn, { mode: 0o600 });
    Bun.spawn([opener, page], { stdio: ["ignore", "ignore", "ignore"], detached: true }).unref();
  } catch {
    // There is no place for it. The address stands in the terminal, and why the desktop cannot start, on the page.
  }
}

/** Says where the desktop is, and opens it where there is a screen to open it on. */
function announce(
  config: Config,
  url: URL,
  { env, name, token }: Pick<Served, "env" | "name"> & { token: string | undefined },
): void {
  const withToken = new URL(url);
  if (token !== undefined) withToken.searchParams.set("token", token);
  // A token that was given is known already, and this line may go into a log.
  const shown = config.token === undefined ? withToken : url;
  console.log(`Desktop: ${config.unixSocket ? `unix:${config.unixSocket}` : shown.href}`);
  if (config.unixSocket) return;
  const screen = (env.DISPLAY || env.WAYLAND_DISPLAY) && !env.SSH_CONNECTION;
  const opener = Bun.which("xdg-open");
  const wanted = config.open ?? (screen && process.stdout.isTTY);
  if (wanted && screen && opener) {
    openPage(opener, withToken, { env, name });
  } else if (process.stdout.isTTY || env.SSH_CONNECTION || config.open) {
    const sshHost = env.SSH_CONNECTION?.split(" ")[2] ?? os.hostname();
    console.log(
      `From another machine, type there: ssh -L ${url.port}:${joinHostPort(url.hostname, Number(url.port))} ${env.USER || userName() || "user"}@${sshHost}`,
    );
  }
}

/** Calls `stop` when a signal asks to stop; a second one, later, ends the process at once. */
function onStopSignal(stop: () => void): void {
  let askedMs: number | undefined;
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => {
      // One Ctrl-C comes twice: from the terminal, and passed on by `bun run`.
      if (askedMs !== undefined && performance.now() - askedMs > SAME_SIGNAL_MS)
        process.exit(128 + os.constants.signals[signal]);
      askedMs ??= performance.now();
      stop();
    });
  }
  const npx = npxAbove(process.ppid);
  if (npx === undefined) return;
  const watch = setInterval(() => processStart(npx) === undefined && stop(), ADOPTED_POLL_MS);
  watch.unref();
}

/** The npx that started this server, if one did: its shell in between passes no SIGTERM on, so that it is watched. */
function npxAbove(pid: number): number | undefined {
  try {
    if (pid <= 1) return undefined;
    if (/^npm (exec|run)/.test(fs.readFileSync(`/proc/${pid}/cmdline`, "latin1"))) return pid;
    const status = fs.readFileSync(`/proc/${pid}/status`, "latin1");
    return npxAbove(Number(/^PPid:\s*(\d+)/m.exec(status)?.[1]));
  } catch {
    return undefined; // an ancestor ended meanwhile
  }
}

/** The close code for a desktop that begins to go down for this cause; without one it was asked to. */
function endingCode(supervisor: Supervisor, cause: string | null): number {
  if (cause === null || cause === "logged-out") return CLOSE.desktopEnded;
  return supervisor.isLast(cause) ? CLOSE.gaveUp : CLOSE.desktopCrashed;
}

/** Tells the viewers of a desktop that went down why, in a close code. */
function closeViewers(supervisor: Supervisor, bridge: Bridge): void {
  const { state, cause } = supervisor.status;
  // Already at the beginning of the end: when Xvnc is gone, a viewer only learns that it lost it.
  if (state === "stopping") bridge.closeAll(endingCode(supervisor, cause), cause ?? "stopped");
  if (state === "ended") bridge.closeAll(CLOSE.desktopEnded, cause ?? "");
  if (state === "backoff") bridge.closeAll(CLOSE.desktopCrashed, cause ?? "");
  if (state === "failed") bridge.closeAll(CLOSE.gaveUp, cause ?? "");
}

/** What the serve command works with. */
interface Served {
  readonly env: NodeJS.ProcessEnv;
  readonly log: Log;
  readonly tail: LogTail;
  readonly name: string;
}

/** Stops a desktop that nobody has seen or touched for long; `stopped` is called then. */
function watchIdle(idleMs: number, bridge: Bridge, stopped: () => void): void {
  if (idleMs === 0) return;
  let since = Date.now();
  bridge.onChange(() => {
    since = Date.now();
  });
  const check = () => {
    if (bridge.size > 0 || Date.now() - Math.max(since, bridge.lastInputMs) < idleMs) return;
    since = Date.now();
    stopped();
  };
  setInterval(check, Math.min(idleMs, HEARTBEAT_MS));
}

function choosePolicy(config: Config, token: string | undefined): AuthPolicy {
  const { auth, host, unixSocket, allowOrigin: allowOrigins } = config;
  if (auth === "hub") return { kind: "hub", allowOrigins };
  if (token !== undefined) return { kind: "token", token, allowOrigins };
  const hosts = [host, ...allowOrigins.map((origin) => new URL(origin).hostname)];
  return { kind: "open", allowOrigins, ...(unixSocket ? {} : { hosts }) };
}

/** When the desktop was last used, as --activity understands use. */
function lastUse(activity: Config["activity"], bridge: Bridge): () => number {
  if (activity === "input") return () => bridge.lastInputMs;
  let seenMs = Date.now();
  bridge.onChange(() => {
    seenMs = Date.now();
  });
  return () => (bridge.size > 0 ? Date.now() : seenMs);
}

/**
 * The token: given, or kept by an earlier server of this name so that its pages come back, or a new one.
 * undefined when none is needed.
 */
function chooseToken(
  config: Config,
  { env, name }: Pick<Served, "env" | "name">,
): string | undefined {
  if (!usesToken(config)) return undefined;
  if (config.token !== undefined) return config.token;
  const fresh = randomBytes(TOKEN_BYTES).toString("base64url");
  if (!config.keep) return fresh;
  const file = path.join(chooseRuntimeDir(name, env), "token");
  const kept = readIfThere(file);
  if (kept.length === fresh.length) return kept;
  fs.writeFileSync(file, fresh, { mode: 0o600 });
  return fresh;
}

/** @throws Error when a live server has this name: two of them would share one directory, and one desktop. */
async function refuseSecond({ name, env }: Pick<Served, "env" | "name">): Promise<void> {
  for (const place of runtimePlaces(env)) {
    const control: Target = { kind: "unix", path: path.join(place, name, "control.sock") };
    if (await isListening(control))
      throw new Error(
        `another server of the name ${name} runs here: stop it, or add another --name`,
      );
  }
}

/** A second listener of this server, private to its user, for the status and stop commands. */
async function listenControl(
  { env, name, log }: Served,
  fetch: Fetch,
): Promise<Server<Session> | undefined> {
  try {
    const dir = chooseRuntimeDir(name, env);
    // The reaper of a server that was killed just now must not take this directory along.
    const mark = path.join(dir, "mark");
    if (fs.existsSync(mark)) fs.renameSync(mark, path.join(dir, EARLIER_MARK));
    fs.writeFileSync(path.join(dir, "pid"), String(process.pid), { mode: 0o600 }); // tells whose child it is
    return await listenUnix(path.join(dir, "control.sock"), fetch);
  } catch (error) {
    log("warn", "no control socket: the status and stop commands will not find this server", {
      error: errorText(error),
    });
    return undefined;
  }
}

/** Files are on, unless text may not pass either, or the desktop is another machine's: they would come to this one. */
const offersFiles = ({ files, vnc, clipboard }: Config) =>
  files ??
  (clipboard === "both" && (vnc.kind !== "tcp" || /^(localhost|127\..*|::1)$/.test(vnc.host)));

/** The desktop's own folder: ~/Desktop, or what it is called in the language of its user. */
function desktopFolder(env: NodeJS.ProcessEnv, runtimeDir: string): string {
  const home = usableHome(env, runtimeDir);
  const named = readIfThere(path.join(env.XDG_CONFIG_HOME ?? `${home}/.config`, "user-dirs.dirs"));
  const [, folder = "Desktop"] = /^XDG_DESKTOP_DIR="\$HOME\/(.+)"$/m.exec(named) ?? [];
  return path.join(home, folder);
}

/** What the serve command works with beside the desktop. */
function offers(config: Config, { env, name }: Pick<Served, "env" | "name">) {
  const dir = () => chooseRuntimeDir(name, env);
  const root = () => config.uploadDir ?? desktopFolder(env, dir());
  const files = offersFiles(config) ? new Files(root, config.maxUpload) : undefined;
  const kept = config.keep ? () => path.join(dir(), "shares.json") : undefined;
  const shares = offersShares(config) ? new Shares(kept) : undefined;
  return { files, shares };
}

function logTo(out: NodeJS.WriteStream, config: Config, token: string | undefined): Log {
  const { logLevel: level, logFormat: format, vncPassword, hub } = config;
  const secrets = [token, vncPassword, hub?.apiToken].flatMap((secret) => secret || []);
  return createLog({ level, format }, secrets, (line) => out.write(line));
}

const bridgeOptions = ({ clipboard, ...config }: Config): BridgeOptions => ({
  sizeLimit: config.maxSize,
  maxViewers: config.maxViewers,
  idleDisconnectMs: config.idleDisconnect,
  mayPaste: clipboard === "both" || clipboard === "in",
});

/** What the page may offer of the desktop: it cannot set what somebody else's VNC server shows. */
const pageOptions = ({ clipboard, vnc, vncCommand }: Config) => ({
  clipboard,
  isOwn: vnc.kind === "auto" && vncCommand === undefined,
});

/** The serve command: until a signal. */
async function serve(config: Config, env: NodeJS.ProcessEnv): Promise<number> {
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
  onStopSignal(stop); // first of all: as PID 1 a signal without a handler is ignored
  const assets = await loadAssets();
  let handler: Fetch = () => new Response("starting\n", { status: 503 });
  const server = await listen(config, (request, self) => handler(request, self));
  const name = config.name ?? defaultName(config, server.port ?? 0);
  await refuseSecond({ env, name });
  const token = chooseToken(config, { env, name });
  const log = logTo(process.stderr, config, token);
  const tail = new LogTail(log);
  const served = { env, log, tail, name };
  const supervisor = new Supervisor(chooseLaunch(config, served), tail, log);
  const bridge = new Bridge(log, bridgeOptions(config));
  supervisor.onChange(() => closeViewers(supervisor, bridge));
  watchIdle(config.idleStop, bridge, () => {
    void supervisor.stop("idle").then(() => (config.idleExit || config.hub) && stop());
  });
  const common = {
    title: config.title,
    cookieName: `jupyter-desktop-${server.port ?? "unix"}`, // a browser sends cookies to all ports of a host
    vncPassword: config.vncPassword,
    ...pageOptions(config),
    assets,
    supervisor,
    bridge,
    log,
    metrics: config.metrics ? createMetrics(supervisor, bridge) : undefined,
    ...offers(config, served),
    frameAncestors: config.frameAncestors,
  };
  const hub = config.hub && new Hub(config.hub, config.tls, log);
  const policy = choosePolicy(config, token);
  const app = createApp({ ...common, baseUrl: config.baseUrl, policy, ...(hub ? { hub } : {}) });
  handler = (request, self) => app.fetch(request, { server: self });
  const controlApp = createApp({
    ...common,
    baseUrl: "/",
    policy: { kind: "open", allowOrigins: [] },
  });
  const control = await listenControl(served, (request, self) =>
    controlApp.fetch(request, { server: self }),
  );
  if (config.start === "now") void supervisor.start();
  const scheme = config.tls ? "https" : "http";
  const url = new URL(
    `${scheme}://${joinHostPort(config.host, server.port ?? 0)}${config.baseUrl}`,
  );
  if (policy.kind === "open" && !config.unixSocket)
    log("warn", "no authentication: whoever reaches this address has the desktop", {
      address: url.host,
    });
  announce(config, url, { env, name, token });
  const ending = new AbortController();
  if (config.activity !== "off")
    void hub?.reportActivity(lastUse(config.activity, bridge), ending.signal);
  await stopped;
  ending.abort();
  bridge.closeAll(CLOSE.goingDown, "the server goes down");
  await Promise.all([server.stop(true), control?.stop(true)]);
  common.files?.close();
  await supervisor.stop();
  removeRuntimeDir(name, env);
  return 0;
}

/** The name by which a server of this address is found again. */
const defaultName = ({ unixSocket, host }: Config, port: number) =>
  unixSocket === undefined
    ? `tcp-${host}-${port}`.replaceAll(":", "_")
    : `unix-${createHash("sha256").update(unixSocket).digest("hex").slice(0, 12)}`;

function removeRuntimeDir(name: string, env: NodeJS.ProcessEnv): void {
  for (const place of runtimePlaces(env)) {
    fs.rmSync(path.join(place, name), { recursive: true, force: true });
  }
}

/** The directories of this user's servers, and what is there: a server, or a desktop that a killed one left. */
async function findServers(config: Config, env: NodeJS.ProcessEnv) {
  const asked = serverDirs(config, env).map(async (dir) => {
    const status = statusText(await askServer(dir, "status"));
    const left = status === undefined ? readKept(dir) : undefined;
    const kept = left && isAlive(left) ? left : undefined;
    return {
      dir,
      name: path.basename(dir),
      kept,
      status: status ?? (kept && "no server, but the desktop that it kept"),
    };
  });
  return (await Promise.all(asked)).filter(({ status }) => status !== undefined);
}

/**
 * The run command: this process becomes the program, so that its exit code, its signals and its terminal are the
 * program's own. Returns the exit code when it cannot, as POSIX has it for `env`.
 */
async function runApp(config: Config, env: NodeJS.ProcessEnv): Promise<number> {
  const app = await prepareApp(config, env);
  if (!app) {
    console.error(`jupyter-desktop: cannot run ${config.app[0]}: there is no such program on PATH`);
    return EXIT_NOT_FOUND;
  }
  try {
    process.execve?.(app.file, [...config.app], app.env);
  } catch (error) {
    console.error(`jupyter-desktop: cannot run ${app.file}: ${errorText(error)}`);
  }
  return EXIT_NO_EXEC;
}

/** The status and stop commands. Returns the exit code. */
async function control(
  config: Config,
  env: NodeJS.ProcessEnv,
  say: (line: string) => void,
): Promise<number> {
  const found = await findServers(config, env);
  if (found.length === 0) say("No server of this user, or of this name, runs here.");
  else if (config.command === "status")
    for (const { name, status } of found) say(`${name}: ${status}`);
  else if (found.length > 1)
    say(
      `Several servers run here: choose one with --name ${found.map(({ name }) => name).join(" or ")}`,
    );
  else {
    for (const { dir, name, kept } of found) {
      if (kept) await endKept(kept.mark, dir);
      say(`${name}: ${statusText(await askServer(dir, "stop")) ?? "ended"}`);
    }
  }
  return found.length === 0 || (config.command === "stop" && found.length > 1) ? 1 : 0;
}

/** The subcommands. Resolves with the exit code. */
async function runCommand(config: Config, env: NodeJS.ProcessEnv): Promise<number> {
  switch (config.command) {
    case "setup":
      return setup(config, env, console.error);
    case "doctor":
      return doctor(env, console.log);
    case "install":
      await loadAssets(); // an entry for a page that is not built would fail at the click
      return installEntry(config, env, {
        bun: process.execPath,
        script: import.meta.path,
        say: console.log,
      });
    case "uninstall":
      return uninstallEntry(config, env, console.log);
    case "run":
      return runApp(config, env);
    case "env":
      return printVariables(config, env, console.log);
    case "status":
    case "stop":
      return control(config, env, console.log);
  }
  if (config.keep && process.pid === 1) {
    const why = "a container ends with its first process, so that nothing can be kept";
    throw new UsageError([`${both("keep")}: ${why}`]);
  }
  // At a terminal somebody is there to be asked; Jupyter's or a container's server installs nothing by itself.
  const isOwn = config.vnc.kind === "auto" && config.vncCommand === undefined;
  const code = isOwn && process.stdin.isTTY ? await setup(config, env, console.error) : 0;
  return code === 0 ? serve(config, env) : code;
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
  if (argv.includes("--help") || argv.includes("-h")) {
    process.stdout.write(renderHelp());
    return 0;
  }
  if (argv.includes("--version") || argv.includes("-V")) {
    console.log(VERSION);
    return 0;
  }
  try {
    const args = isSingleuser() ? ["--auth", "hub", ...argv] : argv;
    return await runCommand(loadConfig(args, env), env);
  } catch (error) {
    if (error instanceof UsageError) {
      const problems = error.problems.map((problem) => `jupyter-desktop: ${problem}`);
      console.error([...problems, "For all options: jupyter-desktop --help"].join("\n"));
      return 2;
    }
    const { path: place, error: why } = error instanceof VncError ? error.reason.detail : {};
    console.error(`jupyter-desktop: ${place ? `cannot use ${place}: ${why}` : errorText(error)}`);
    return 1;
  }
}

if (import.meta.main) process.exit(await main(process.argv.slice(2), process.env));
