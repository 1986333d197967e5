// The owner of the clipboard: the panel's text, the desktop's and, where the browser allows it,
// the system's are kept the same, and no text goes back to where it came from.

import { copyText } from "./dom.ts";
import { PasteKeys } from "./paste.ts";
import { loadSetting, saveSetting } from "./settings.ts";
import type { Text, TextKey } from "./text.ts";
import type { ToastAction } from "./toast.ts";

export interface ClipboardParts {
  screen: HTMLElement;
  help: HTMLElement;
  field: HTMLTextAreaElement;
  note: HTMLElement;
  copy: HTMLButtonElement;
  paste: HTMLButtonElement;
}

export interface ClipboardPorts {
  text: Text;
  /** Which way the server lets text go. */
  way: ClipboardWay;
  /** False when there is no connection to send it over. */
  send(text: string): boolean;
  tell(sentence: string, action?: ToastAction): void;
  focusDesktop(): void;
}

export type ClipboardWay = "both" | "in" | "out" | "off";

/** Which way it is, by its name; what is no name of ours keeps nothing from being tried. */
export const parseWay = (name = ""): ClipboardWay =>
  name === "in" || name === "out" || name === "off" ? name : "both";

// Long enough to swallow a burst of keys, short enough to feel live.
const debounceMs = 200;

// TigerVNC's MaxCutText, with CRLF at each line's end; TurboVNC takes 1 MiB.
const largeBytes = 262_144;

// Later than this after a key or a click, it was a program that copied, and nobody waits for it.
const attentiveMs = 3000;

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
  #touchedAt = Number.NEGATIVE_INFINITY;
  #isAsked = false;

  constructor(parts: ClipboardParts, ports: ClipboardPorts) {
    const { field, copy, paste, help, screen } = parts;
    this.#parts = parts;
    this.#ports = ports;
    copy.addEventListener("click", () => void this.#copy());
    paste.addEventListener("click", () => void this.#paste());
    copy.hidden = !this.#leads("out");
    paste.hidden = !this.#leads("in") || navigator.clipboard?.readText === undefined;
    field.readOnly = !this.#leads("in");
    help.textContent = ports.text(helpKeys[ports.way]);
    for (const type of ["keydown", "pointerdown"]) {
      screen.addEventListener(type, () => this.#touched(), { capture: true, passive: true });
    }
    window.addEventListener("focus", () => void this.#readQuietly());
    if (this.#leads("in")) {
      field.addEventListener("input", () => this.#edited());
      field.addEventListener("blur", () => this.#flush());
      new PasteKeys(screen, {
        take: (text) => this.#pasted(text),
        read: () => this.#readIfGranted(),
      });
    }
  }

  #leads(way: "in" | "out"): boolean {
    return this.#ports.way === "both" || this.#ports.way === way;
  }

  /** A new connection stands: what was written meanwhile goes out now. */
  connected(): void {
    this.#settledAt = performance.now() + settleMs;
    this.#flush();
  }

  /** The desktop's clipboard changed. */
  received(text: string): void {
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
    // Also when it is the same as before: this computer may hold another by now.
    if (performance.now() > this.#settledAt) {
      void this.#hand(text);
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
    this.#say(isLarge(this.#parts.field.value) ? "clipboard.large" : null);
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

  // Puts the desktop's text on this computer's clipboard, or where a click is needed offers that.
  async #hand(text: string): Promise<void> {
    if (!document.hasFocus() || (await this.#writeQuietly(text))) {
      return;
    }
    if (performance.now() - this.#touchedAt < attentiveMs) {
      const { tell, text: words } = this.#ports;
      tell(words("clipboard.offer"), { label: words("clipboard.copy"), act: () => this.#accept() });
    }
  }

  async #accept(): Promise<void> {
    await this.#copy();
    this.#ports.focusDesktop();
  }

  async #writeQuietly(text: string): Promise<boolean> {
    try {
      await navigator.clipboard.writeText(text);
      this.#system = text;
      return true;
    } catch {
      // Plain http, no permission, no key or click just now, or a policy of the frame.
      return false;
    }
  }

  async #readQuietly(): Promise<void> {
    const text = this.#leads("in") ? await this.#readIfGranted() : null;
    if (text !== null && text !== "" && normalize(text) !== this.#system) {
      this.#take(text);
    } else if (this.#remote !== null && this.#remote !== this.#system && document.hasFocus()) {
      await this.#writeQuietly(this.#remote);
    }
  }

  async #readIfGranted(): Promise<string | null> {
    if ((await readPermission()) !== "granted") {
      return null;
    }
    try {
      return await navigator.clipboard.readText();
    } catch {
      // Not focused any more, or not text.
      return null;
    }
  }

  // Somebody is at it. Chromium is asked once whether this page may look at the clipboard: keys
  // paste without that, but the menus of the desktop's programs do not.
  #touched(): void {
    this.#touchedAt = performance.now();
    if (this.#isAsked || !this.#leads("in")) {
      return;
    }
    this.#isAsked = true;
    if (loadSetting("clipboard-asked") !== null) {
      return;
    }
    void readPermission().then(async (state) => {
      if (state !== "prompt") {
        return;
      }
      saveSetting("clipboard-asked", "true");
      try {
        this.#take(await navigator.clipboard.readText());
      } catch {
        // The answer was no.
      }
    });
  }

  // A key is about to paste this.
  #pasted(raw: string): void {
    this.#take(raw);
    if (isLarge(raw)) {
      this.#ports.tell(this.#ports.text("clipboard.large"));
    }
  }

  // This computer holds a text that the desktop may not have.
  #take(raw: string): void {
    const text = normalize(raw);
    this.#system = text;
    if (text === this.#remote || text === "") {
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

const helpKeys = {
  both: "clipboard.help",
  in: "clipboard.help-in",
  out: "clipboard.help-out",
  off: "clipboard.help-out",
} as const satisfies Record<ClipboardWay, TextKey>;

function isLarge(text: string): boolean {
  const lineEnds = text.split("\n").length - 1;
  return new TextEncoder().encode(text).length + lineEnds > largeBytes;
}

// Only Chromium knows this name: elsewhere the quiet way stays shut, and nothing ever asks.
async function readPermission(): Promise<PermissionState | null> {
  if (navigator.clipboard === undefined) {
    return null;
  }
  try {
    const name = "clipboard-read" as PermissionName;
    return (await navigator.permissions.query({ name })).state;
  } catch {
    // TypeError: this browser has no such permission.
    return null;
  }
}
