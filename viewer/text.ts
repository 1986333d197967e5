// Every sentence that the page shows, in one table. A further language is a further table.

const english = {
  "bar.home": "Home",
  "bar.clipboard": "Clipboard",
  "screen.label": "Remote desktop",

  "clipboard.title": "Clipboard",
  "clipboard.help":
    "This is the desktop’s clipboard. What you type or paste here can be pasted there, and what is copied there appears here.",
  "clipboard.copy": "Copy to this computer",
  "clipboard.paste": "Paste from this computer",
  "clipboard.copied": "Copied.",
  "clipboard.pasted": "Pasted.",
  "clipboard.copy-failed": "The browser did not allow it: select the text and copy it by hand.",
  "clipboard.paste-failed": "The browser did not allow it: paste the text into the field by hand.",
  "clipboard.large": "This is a long text: many VNC servers cut it after 256 KiB.",
  "clipboard.offline": "It is sent when the connection is back.",

  "connecting.title": "Connecting to the desktop",
  "connected.title": "Connected",
  "lost.title": "The connection was lost",
  "lost.body": "Reconnecting by itself.",
  "unreachable.title": "The server does not answer",
  "unreachable.body": "The page keeps trying, and goes on by itself.",
  "offline.title": "You are offline",
  "offline.body": "The page goes on by itself when the network is back.",
  "login.title": "Your log-in has expired",
  "login.body": "Log in again to go on. The desktop keeps running meanwhile.",
  "paused.title": "Paused",
  "paused.body": "Nobody used the desktop for a while. It keeps running: go on where you left off.",
  "protocol.title": "The connection was refused",

  "close.1003":
    "A text message arrived where only binary ones belong. Something between this browser and the server changes WebSocket messages.",
  "close.1009":
    "A message was larger than the server accepts. A very long clipboard text can cause that.",
  "close.4400":
    "The server did not understand what this page sent. Reload the page; if it comes back, this page and the server do not fit together.",
  "close.other": "The server ended the connection with the code {code}.",

  "state.idle": "The desktop is not running",
  "state.starting": "The desktop is starting",
  "state.ready": "The desktop is ready",
  "state.ended": "The desktop session has ended",
  "state.backoff": "The desktop stopped, and starts again by itself",
  "state.failed": "The desktop could not be started",
  "state.stopping": "The desktop is shutting down",

  "backoff.soon": "The next start follows in about {duration}.",
  "failed.given-up": "It was tried {attempt} times.",

  "cause.no-vnc-server": "No VNC server is installed. TigerVNC and TurboVNC both serve well.",
  "cause.no-desktop": "No desktop environment is installed, not even a bare window manager.",
  "cause.desktop-exited": "The desktop session {exit}{after}.",
  "cause.vnc-exited": "The VNC server {exit}{after}.",
  "cause.internal": "Something went wrong in the server itself.",
  "cause.vnc-timeout": "The VNC server was started, but did not answer within {timeout}.",
  "cause.vnc-unreachable": "The VNC server at {target} cannot be reached: {error}.",
  "cause.not-vnc": "Something answers at {target}, but it is not a VNC server.",
  "cause.unwritable": "The folder {path} cannot be written to.",
  "cause.disk-full": "The disk that holds {path} is full. Free some space on it, then try again.",
  "cause.logged-out": "You logged out. Your files are still there.",
  "cause.stopped": "It was stopped on request. Your files are still there.",
  "cause.idle": "It was stopped because nobody used it. Your files are still there.",
  "cause.vnc-password":
    "The VNC server asks for a password. Start this server with --vnc-password-file and a file that holds it.",
  "cause.too-many-viewers":
    "{limit} people see this desktop, and it takes no more. Close a page that shows it, or start the server with a higher --max-viewers.",
  "cause.unknown": "The server gives this reason: {cause}.",

  "exit.code": "ended with exit code {code}",
  "exit.signal": "was ended by the signal {signal}",
  "exit.unknown": "ended",
  "exit.after": " after {duration}",
  "detail.xstartup": "It was started by {xstartup}.",
  "detail.command": "It was started with this command: {command}.",
  "detail.error": "The system says: {error}.",
  "hint.126": "Exit code 126 means that a file is there, but must not be executed.",
  "hint.127": "Exit code 127 means that a command was not found: the log below names it.",

  "command.intro": "Type this in a terminal, then try again:",
  "command.copy": "Copy",
  "command.copied": "Copied",
  "log.title": "Last lines of the log",

  "action.start": "Start a new session",
  "action.restart": "Try again",
  "action.retry": "Try now",
  "action.resume": "Continue",
  "action.reload": "Reload the page",
  "action.login": "Log in",
  "action.refused": "The server refused that.",

  "unit.milliseconds": "{n} ms",
  "unit.seconds": "{n} s",
  "unit.minutes": "{n} min",
  "unit.hours": "{n} h",
};

export type TextKey = keyof typeof english;
export type Values = Record<string, string | number>;
export type Text = (key: TextKey, values?: Values) => string;

const tables: Record<string, Record<TextKey, string>> = { en: english };

/** The cause codes that have a sentence of their own. */
export const causeCodes: readonly string[] = Object.keys(english)
  .filter((key) => key.startsWith("cause.") && key !== "cause.unknown")
  .map((key) => key.slice("cause.".length));

/** Gives the look-up for the first of the reader's languages that has a table. */
export function createText(languages: readonly string[]): Text {
  const known = languages.map((tag) => tag.toLowerCase().split("-")[0] ?? "");
  const language = known.find((tag) => Object.hasOwn(tables, tag)) ?? "en";
  const table = tables[language] ?? english;
  return (key, values = {}) => fill(table[key], values);
}

/** Tells a key of the table from any other string: markup names keys in data-text attributes. */
export function isTextKey(key: string): key is TextKey {
  return Object.hasOwn(english, key);
}

/** Writes a time span as a person says it: 280 ms, 1.5 s, 2 min. */
export function formatDuration(ms: number, text: Text): string {
  if (ms < 1000) {
    return text("unit.milliseconds", { n: Math.round(ms) });
  }
  if (ms < 10_000) {
    return text("unit.seconds", { n: Math.round(ms / 100) / 10 });
  }
  if (ms < 120_000) {
    return text("unit.seconds", { n: Math.round(ms / 1000) });
  }
  if (ms < 7_200_000) {
    return text("unit.minutes", { n: Math.round(ms / 60_000) });
  }
  return text("unit.hours", { n: Math.round(ms / 3_600_000) });
}

// A sentence with a hole says "?" rather than "undefined": the server may know less than it could.
function fill(sentence: string, values: Values): string {
  return sentence.replace(/\{(\w+)\}/g, (_, name: string) => String(values[name] ?? "?"));
}
