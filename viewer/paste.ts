// Stands before noVNC for the keys that paste: what this computer holds goes ahead of them. The
// browser's own paste event tells it, which needs no permission; noVNC would keep it from coming.

import { isPasteKey } from "./choices.ts";

export interface PastePorts {
  /** The text that this computer holds; it is on its way to the desktop when this returns. */
  take(text: string): void;
  /** Reads this computer's clipboard where that is allowed already, else null. Never rejects. */
  read(): Promise<string | null>;
}

// Reading is a matter of some ms; no key waits for longer.
const readTimeoutMs = 300;

export class PasteKeys {
  #screen: HTMLElement;
  #ports: PastePorts;
  #held: KeyboardEvent | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(screen: HTMLElement, ports: PastePorts) {
    this.#screen = screen;
    this.#ports = ports;
    window.addEventListener("keydown", (event) => this.#pressed(event), { capture: true });
    // A key that comes after must not overtake.
    window.addEventListener("keyup", () => this.#release(), { capture: true });
    window.addEventListener("blur", () => this.#release());
    window.addEventListener("paste", (event) => this.#pasted(event), { capture: true });
  }

  #pressed(event: KeyboardEvent): void {
    if (!event.isTrusted) {
      return;
    }
    this.#release();
    const isHere = event.target instanceof Node && this.#screen.contains(event.target);
    if (!isHere || !isPasteKey(event)) {
      return;
    }
    event.stopImmediatePropagation();
    this.#held = event;
    // The paste event comes before anything else can; when it does not, the key still does.
    this.#timer = setTimeout(() => void this.#read(event), 0);
  }

  #pasted(event: ClipboardEvent): void {
    if (this.#held === null) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (text !== "") {
      this.#ports.take(text);
    }
    this.#release();
  }

  async #read(event: KeyboardEvent): Promise<void> {
    this.#timer = setTimeout(() => this.#release(), readTimeoutMs);
    const text = await this.#ports.read();
    if (this.#held === event) {
      if (text !== null && text !== "") {
        this.#ports.take(text);
      }
      this.#release();
    }
  }

  #release(): void {
    clearTimeout(this.#timer);
    const event = this.#held;
    this.#held = null;
    if (event === null) {
      return;
    }
    const { key, code, location, ctrlKey, metaKey, shiftKey, repeat } = event;
    // noVNC compares the locks with the desktop's, and would turn there what is not told here.
    const locks = {
      modifierCapsLock: event.getModifierState("CapsLock"),
      modifierNumLock: event.getModifierState("NumLock"),
    };
    const init = { key, code, location, ctrlKey, metaKey, shiftKey, repeat, ...locks };
    this.#screen
      .querySelector("canvas")
      ?.dispatchEvent(new KeyboardEvent("keydown", { ...init, bubbles: true, cancelable: true }));
  }
}
