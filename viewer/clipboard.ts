// The owner of the clipboard: the panel's text, the desktop's and, where the browser allows it,
// the system's are kept the same, and no text goes back to where it came from.

import { copyText } from "./dom.ts";
import type { Text, TextKey } from "./text.ts";

export interface ClipboardParts {
  field: HTMLTextAreaElement;
  note: HTMLElement;
  copy: HTMLButtonElement;
  paste: HTMLButtonElement;
}

export interface ClipboardPorts {
  text: Text;
  /** False when there is no connection to send it over. */
  send(text: string): boolean;
}

// Long enough to swallow a burst of keys, short enough to feel live.
const debounceMs = 200;

// TigerVNC's MaxCutText in characters at most; TurboVNC takes 1 MiB.
const largeLength = 262_144;

// What a server tells while connecting is old news: it must not replace what this computer holds.
const settleMs = 1000;

export class Clipboard {
  #parts: ClipboardParts;
  #ports: ClipboardPorts;
  // What the desktop is known to hold, what this computer is known to hold.
  #remote: string | null = null;
  #system: string | null = null;
  #isUnsent = false;
  #sendTimer: ReturnType<typeof setTimeout> | undefined;
  #settledAt = 0;

  constructor(parts: ClipboardParts, ports: ClipboardPorts) {
    this.#parts = parts;
    this.#ports = ports;
    parts.field.addEventListener("input", () => this.#edited());
    parts.field.addEventListener("blur", () => this.#flush());
    parts.copy.addEventListener("click", () => void this.#copy());
    parts.paste.addEventListener("click", () => void this.#paste());
    parts.paste.hidden = navigator.clipboard?.readText === undefined;
    window.addEventListener("focus", () => void this.#readQuietly());
  }

  /** A new connection stands: what was written meanwhile goes out now. */
  connected(): void {
    this.#settledAt = performance.now() + settleMs;
    this.#flush();
  }

  /** The desktop's clipboard changed. */
  received(text: string): void {
    const isNew = text !== this.#remote;
    this.#remote = text;
    if (this.#isUnsent) {
      // An edit under way is newer than this, and goes out in a moment.
      return;
    }
    if (this.#parts.field.value !== text) {
      // Set by script: that fires no input event, so nothing is echoed.
      this.#parts.field.value = text;
      this.#say(null);
    }
    if (isNew && performance.now() > this.#settledAt) {
      void this.#writeQuietly(text);
    }
  }

  /** The panel was opened: the text is ready to be replaced. */
  opened(): void {
    this.#say(null);
    this.#parts.field.focus();
    this.#parts.field.select();
  }

  /** The panel was closed. */
  closed(): void {
    this.#flush();
  }

  #edited(): void {
    this.#isUnsent = true;
    this.#say(this.#parts.field.value.length > largeLength ? "clipboard.large" : null);
    clearTimeout(this.#sendTimer);
    this.#sendTimer = setTimeout(() => this.#flush(), debounceMs);
  }

  #flush(): void {
    clearTimeout(this.#sendTimer);
    if (!this.#isUnsent) {
      return;
    }
    const text = this.#parts.field.value;
    if (this.#ports.send(text)) {
      this.#isUnsent = false;
      this.#remote = text;
    } else {
      this.#say("clipboard.offline");
    }
  }

  async #copy(): Promise<void> {
    const text = this.#parts.field.value;
    const isCopied = await copyText(text);
    this.#system = isCopied ? text : this.#system;
    this.#say(isCopied ? "clipboard.copied" : "clipboard.copy-failed");
  }

  async #paste(): Promise<void> {
    try {
      this.#take(await navigator.clipboard.readText());
      this.#say("clipboard.pasted");
    } catch {
      // The reader said no to the browser's question, or the browser asks nothing here.
      this.#say("clipboard.paste-failed");
    }
  }

  async #writeQuietly(text: string): Promise<void> {
    if (!document.hasFocus() || !(await isGranted("clipboard-write"))) {
      return;
    }
    try {
      await navigator.clipboard.writeText(text);
      this.#system = text;
    } catch {
      // Lost the focus meanwhile, or a policy of the frame: the panel has the text anyway.
    }
  }

  async #readQuietly(): Promise<void> {
    if (!(await isGranted("clipboard-read"))) {
      return;
    }
    try {
      const text = await navigator.clipboard.readText();
      const isNew = text !== "" && normalize(text) !== this.#system;
      if (isNew) {
        this.#take(text);
      } else if (this.#remote !== null && this.#remote !== this.#system) {
        await this.#writeQuietly(this.#remote);
      }
    } catch {
      // Not focused any more, or not text: there is nothing to take over.
    }
  }

  // This computer holds a text that the desktop may not have.
  #take(raw: string): void {
    const text = normalize(raw);
    this.#system = text;
    if (text === this.#remote) {
      return;
    }
    this.#parts.field.value = text;
    this.#isUnsent = true;
    this.#flush();
  }

  #say(key: TextKey | null): void {
    this.#parts.note.textContent = key === null ? "" : this.#ports.text(key);
  }
}

// Windows puts CRLF on its clipboard; compared as it is, every text would look new.
function normalize(text: string): string {
  return text.replaceAll("\r\n", "\n");
}

// Only Chromium knows these names: elsewhere the quiet way stays shut, and nothing ever asks.
async function isGranted(name: "clipboard-read" | "clipboard-write"): Promise<boolean> {
  if (navigator.clipboard === undefined) {
    return false;
  }
  try {
    const permission = await navigator.permissions.query({ name: name as PermissionName });
    return permission.state === "granted";
  } catch {
    // TypeError: this browser has no such permission.
    return false;
  }
}
