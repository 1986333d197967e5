// What the page decides, without a DOM: addresses, delays, and what follows a close or a status.

export type DesktopState =
  "idle" | "starting" | "ready" | "ended" | "backoff" | "failed" | "stopping";

/** The server's answer at `desktop/api/status`, read leniently: only `state` must be known. */
export interface Status {
  state: DesktopState;
  since: string;
  cause: string | null;
  detail: Record<string, unknown>;
  attempt: number;
  nextRetryMs: number | null;
  log: string[];
  version: string;
  /** The code with which the server closed this page's last connection, where it was the server. */
  closed: number | null;
}

/** What came back when the page asked for the status. */
export type Reply =
  { kind: "status"; status: Status } | { kind: "login" } | { kind: "unreachable" };

export type StopReason = "login" | "paused" | "protocol" | "desktop";

/**
 * connect: at once. retry: a connection after the back-off. check: the status again after the
 * back-off, or when the event stream says so. stop: a person has to do something.
 */
export type Decision =
  { next: "connect" } | { next: "retry" } | { next: "check" } | { next: "stop"; why: StopReason };

/** How a connection ended; a `cause` is one that the page found itself. */
export interface Ending {
  code: number;
  cause?: "vnc-password";
}

/** The WebSocket close codes that the page treats in their own way. */
export const closeCodes = {
  textFrame: 1003,
  // What a browser reports for a refused upgrade or a cut line.
  abnormal: 1006,
  tooLarge: 1009,
  malformed: 4400,
  loginExpired: 4401,
  paused: 4408,
  ended: 4410,
  restarting: 4411,
  gaveUp: 4412,
} as const;

// From here on the codes are the application's; below they are what browser or proxy made of them.
const ownCodes = 4000;

const protocolCodes: readonly number[] = [
  closeCodes.textFrame,
  closeCodes.tooLarge,
  closeCodes.malformed,
];

const desktopStates: readonly string[] = [
  "idle",
  "starting",
  "ready",
  "ended",
  "backoff",
  "failed",
  "stopping",
] satisfies DesktopState[];

// Short at first, because most drops are a blink of the network; long in the end, because a page
// that is left open must not load a server that is down.
const retryDelaysMs: readonly number[] = [500, 1000, 2000, 4000, 8000, 15_000];

// Many pages lose one proxy at the same moment: a spread of a quarter keeps them apart.
const jitter = 0.25;

/** An address with the page's ticket, where the server gave it one: beside the cookie, which pages share. */
export function withTicket(url: string, ticket: string): string {
  return ticket === "" ? url : `${url}${url.includes("?") ? "&" : "?"}t=${ticket}`;
}

/** The WebSocket's absolute address, hung on the page's own address and its relative base. */
export function websocketUrl(pageUrl: string, base: string, ticket = ""): string {
  const url = new URL(withTicket(`${base}desktop-websockify/`, ticket), pageUrl);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/** How long to wait before try number `attempt` (from 0); `random` is in [0, 1). */
export function retryDelayMs(attempt: number, random: number): number {
  const index = Math.min(Math.max(0, attempt), retryDelaysMs.length - 1);
  const delay = retryDelaysMs[index] ?? 0;
  return Math.round(delay * (1 - jitter + 2 * jitter * random));
}

/** Reads a status; null when the value is not one. */
export function parseStatus(value: unknown): Status | null {
  if (!isRecord(value) || typeof value.state !== "string" || !isDesktopState(value.state)) {
    return null;
  }
  return {
    state: value.state,
    since: typeof value.since === "string" ? value.since : "",
    cause: typeof value.cause === "string" ? value.cause : null,
    detail: isRecord(value.detail) ? value.detail : {},
    attempt: typeof value.attempt === "number" ? value.attempt : 0,
    nextRetryMs: typeof value.nextRetryMs === "number" ? value.nextRetryMs : null,
    log: Array.isArray(value.log) ? value.log.filter((line) => typeof line === "string") : [],
    version: typeof value.version === "string" ? value.version : "",
    closed: typeof value.closed === "number" ? value.closed : null,
  };
}

/**
 * What follows an ended connection (or, with null, a look at the status by itself). The status
 * outranks the codes of a desktop that ended: proxies swallow codes, and another page may have
 * started the desktop again meanwhile.
 */
export function decide(came: Ending | null, reply: Reply): Decision {
  const ending = came && withOwnCode(came, reply);
  if (ending?.code === closeCodes.paused) {
    return { next: "stop", why: "paused" };
  }
  if (ending?.code === closeCodes.loginExpired || reply.kind === "login") {
    return { next: "stop", why: "login" };
  }
  if (ending !== null && (ending.cause !== undefined || protocolCodes.includes(ending.code))) {
    return { next: "stop", why: "protocol" };
  }
  if (reply.kind === "status") {
    // The same wrong password again and again would have VNC lock this server out.
    if (reply.status.state === "ready" && reply.status.cause === "vnc-password") {
      return { next: "check" };
    }
    return decideByState(reply.status.state, ending === null);
  }
  if (ending?.code === closeCodes.ended || ending?.code === closeCodes.gaveUp) {
    return { next: "stop", why: "desktop" };
  }
  return { next: "check" };
}

/** The ending with the server's own code, if a proxy on the way has swallowed it. */
export function withOwnCode(ending: Ending, reply: Reply): Ending {
  const closed = reply.kind === "status" ? reply.status.closed : null;
  return closed === null || ending.code >= ownCodes ? ending : { ...ending, code: closed };
}

function decideByState(state: DesktopState, atOnce: boolean): Decision {
  switch (state) {
    case "ready":
      // A connection that just failed against a ready desktop waits, or it would spin.
      return { next: atOnce ? "connect" : "retry" };
    case "starting":
    case "backoff":
    case "stopping":
      return { next: "check" };
    case "idle":
    case "ended":
    case "failed":
      return { next: "stop", why: "desktop" };
  }
}

/** Whether `next` tells something that `last` did not: the same state and moment is an echo. */
export function isNews(last: Status | null, next: Status): boolean {
  return last === null || last.state !== next.state || last.since !== next.since;
}

function isDesktopState(value: string): value is DesktopState {
  return desktopStates.includes(value);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
