// Turns endings and statuses into what the page says about them, without a DOM.

import { closeCodes, type Ending, type Status, type StopReason } from "./rules.ts";
import { formatDuration, isTextKey, type Text } from "./text.ts";

/** start and restart ask the server; retry, resume and reload stay in the page. */
export type Action = "start" | "restart" | "retry" | "resume" | "reload";

/** All that the card over the screen shows. */
export interface Notice {
  title: string;
  body: string[];
  command: string | null;
  log: string[];
  isLogOpen: boolean;
  action: { what: Action; label: string } | null;
  /** Something goes on without the reader. */
  isBusy: boolean;
}

const busyStates: readonly string[] = ["starting", "backoff", "stopping", "ready"];

/** One title, one sentence, maybe one button. */
export function simpleNotice(title: string, body: string[] = []): Notice {
  return { title, body, command: null, log: [], isLogOpen: false, action: null, isBusy: true };
}

/** What the page says between a close and the server's word on it. */
export function noticeForEnding(ending: Ending, text: Text): Notice {
  switch (ending.code) {
    case closeCodes.ended:
      return { ...withAction(text("state.ended"), "start", text("action.start")), isBusy: false };
    case closeCodes.restarting:
      return simpleNotice(text("state.backoff"));
    case closeCodes.gaveUp:
      return {
        ...withAction(text("state.failed"), "restart", text("action.restart")),
        isBusy: false,
      };
    default:
      return simpleNotice(text("lost.title"), [text("lost.body")]);
  }
}

/** What the page says when only a person can go on; the desktop's own end has its status. */
export function noticeForStop(
  why: Exclude<StopReason, "desktop">,
  ending: Ending | null,
  text: Text,
): Notice {
  const still = { isBusy: false };
  if (why === "login") {
    const notice = withAction(text("login.title"), "reload", text("action.login"));
    return { ...notice, ...still, body: [text("login.body")] };
  }
  if (why === "paused") {
    const notice = withAction(text("paused.title"), "resume", text("action.resume"));
    return { ...notice, ...still, body: [text("paused.body")] };
  }
  const notice = withAction(text("protocol.title"), "reload", text("action.reload"));
  return { ...notice, ...still, body: [protocolSentence(ending, text)] };
}

/** What the page says when the desktop runs, but the way to it failed; the server may know why. */
export function noticeForRetry(status: Status | null, text: Text): Notice {
  const why = status?.cause
    ? [
        causeSentence(status.cause, status.detail, text),
        ...detailSentences(status.cause, status.detail, text),
      ]
    : [];
  return simpleNotice(text("lost.title"), [...why, text("lost.body")]);
}

/** What the page says while the server cannot be asked. */
export function noticeForUnreachable(isOnline: boolean, text: Text): Notice {
  if (!isOnline) {
    return simpleNotice(text("offline.title"), [text("offline.body")]);
  }
  const notice = withAction(text("unreachable.title"), "retry", text("action.retry"));
  return { ...notice, body: [text("unreachable.body")] };
}

/** The whole story of a status: what happened, why, what to type, the log, the way on. */
export function noticeForStatus(status: Status, text: Text): Notice {
  return {
    title: text(`state.${status.state}`),
    body: sentencesFor(status, text),
    command: status.cause === "vnc-exited" ? null : filled(status.detail.command),
    log: status.log,
    isLogOpen: status.state === "failed" || status.state === "backoff",
    action: actionFor(status, text),
    isBusy: busyStates.includes(status.state),
  };
}

/** Why it happened, from the cause code and its parameters. */
export function causeSentence(cause: string, detail: Status["detail"], text: Text): string {
  const key = `cause.${cause}`;
  if (!isTextKey(key)) {
    return text("cause.unknown", { cause });
  }
  return text(key, {
    cause,
    exit: exitPhrase(detail, text),
    after: afterPhrase(detail.afterMs, text),
    timeout: typeof detail.ms === "number" ? formatDuration(detail.ms, text) : "?",
    target: word(detail.target),
    error: word(detail.error),
    path: word(detail.path),
    limit: word(detail.limit),
  });
}

function sentencesFor(status: Status, text: Text): string[] {
  const sentences: string[] = [];
  if (status.cause !== null && status.state !== "starting" && status.state !== "ready") {
    sentences.push(causeSentence(status.cause, status.detail, text));
    sentences.push(...detailSentences(status.cause, status.detail, text));
  }
  if (status.state === "backoff" && status.nextRetryMs !== null) {
    const duration = formatDuration(Math.max(1000, status.nextRetryMs), text);
    sentences.push(text("backoff.soon", { duration }));
  }
  if (status.state === "failed" && status.attempt > 1) {
    sentences.push(text("failed.given-up", { attempt: status.attempt }));
  }
  return sentences;
}

function detailSentences(cause: string, detail: Status["detail"], text: Text): string[] {
  const sentences: string[] = [];
  const [xstartup, command, error] = [
    filled(detail.xstartup),
    cause === "vnc-exited" ? filled(detail.command) : null,
    cause === "vnc-unreachable" ? null : filled(detail.error),
  ];
  if (xstartup !== null) {
    sentences.push(text("detail.xstartup", { xstartup }));
  }
  if (command !== null) {
    sentences.push(text("detail.command", { command }));
  }
  if (error !== null) {
    sentences.push(text("detail.error", { error }));
  }
  const hint = `hint.${String(detail.code)}`;
  if (isTextKey(hint)) {
    sentences.push(text(hint));
  }
  return sentences;
}

function actionFor(status: Status, text: Text): Notice["action"] {
  switch (status.state) {
    case "idle":
    case "ended":
      return { what: "start", label: text("action.start") };
    case "backoff":
    case "failed":
      return { what: "restart", label: text("action.restart") };
    default:
      return null;
  }
}

function protocolSentence(ending: Ending | null, text: Text): string {
  if (ending?.cause !== undefined) {
    return causeSentence(ending.cause, {}, text);
  }
  const code = ending?.code ?? closeCodes.abnormal;
  const key = `close.${code}`;
  return isTextKey(key) ? text(key) : text("close.other", { code });
}

function withAction(title: string, what: Action, label: string): Notice {
  return { ...simpleNotice(title), action: { what, label } };
}

function exitPhrase(detail: Status["detail"], text: Text): string {
  const signal = detail.signal;
  if (typeof signal === "string" || typeof signal === "number") {
    return text("exit.signal", { signal });
  }
  const code = detail.code;
  return typeof code === "number" ? text("exit.code", { code }) : text("exit.unknown");
}

function afterPhrase(ms: unknown, text: Text): string {
  return typeof ms === "number" ? text("exit.after", { duration: formatDuration(ms, text) }) : "";
}

function filled(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}

function word(value: unknown): string {
  return typeof value === "string" || typeof value === "number" ? String(value) : "?";
}
