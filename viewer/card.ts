// The owner of the bar's sentence and of the card over the screen.

import { copyText } from "./dom.ts";
import type { Action, Notice } from "./notice.ts";
import type { State } from "./session.ts";
import type { Text } from "./text.ts";

export interface CardParts {
  status: HTMLElement;
  overlay: HTMLElement;
  title: HTMLElement;
  body: HTMLElement;
  command: HTMLElement;
  commandText: HTMLElement;
  commandCopy: HTMLButtonElement;
  log: HTMLDetailsElement;
  logText: HTMLElement;
  action: HTMLButtonElement;
}

export interface CardPorts {
  text: Text;
  act(action: Action): void;
}

// Long enough to be read, short enough to be a label again when it is needed.
const copiedMs = 2000;

export class Card {
  #parts: CardParts;
  #ports: CardPorts;
  #shown = "";
  #action: Action | null = null;
  #isLogOpen = false;

  constructor(parts: CardParts, ports: CardPorts) {
    this.#parts = parts;
    this.#ports = ports;
    parts.action.addEventListener("click", () => this.#act());
    parts.commandCopy.addEventListener("click", () => void this.#copyCommand());
    // Coming back from a pause takes a click, wherever it lands.
    parts.overlay.addEventListener("click", (event) => {
      if (this.#action === "resume" && event.target === parts.overlay) {
        this.#act();
      }
    });
  }

  show(state: State, notice: Notice | null): void {
    // Told the same again, an open log must stay open and a screen reader stay silent.
    const asText = JSON.stringify([state, notice]);
    if (asText === this.#shown) {
      return;
    }
    this.#shown = asText;
    document.body.dataset.state = state;
    this.#parts.status.textContent = notice?.title ?? this.#ports.text("connected.title");
    this.#action = notice?.action?.what ?? null;
    this.#parts.overlay.hidden = notice === null;
    if (notice !== null) {
      this.#fill(notice);
    }
    if (state === "stopped" && isFocusFree()) {
      this.#focus();
    }
  }

  #fill(notice: Notice): void {
    const parts = this.#parts;
    parts.overlay.toggleAttribute("data-busy", notice.isBusy);
    parts.title.textContent = notice.title;
    parts.body.replaceChildren(...notice.body.map(paragraph));
    parts.command.hidden = notice.command === null;
    parts.commandText.replaceChildren(...words(notice.command ?? ""));
    parts.log.hidden = notice.log.length === 0;
    parts.logText.textContent = notice.log.join("\n");
    // What the reader opened or closed stays so until the story changes.
    if (notice.isLogOpen !== this.#isLogOpen) {
      this.#isLogOpen = notice.isLogOpen;
      parts.log.open = notice.isLogOpen;
    }
    parts.logText.scrollTop = parts.logText.scrollHeight;
    parts.action.hidden = notice.action === null;
    parts.action.textContent = notice.action?.label ?? "";
  }

  // On the button only where a stray key does no harm: somebody may still be typing at a desktop
  // that just ended, and must not start a new one with the space bar.
  #focus(): void {
    if (this.#action === "resume") {
      this.#parts.action.focus();
    } else {
      this.#parts.title.focus();
    }
  }

  #act(): void {
    if (this.#action !== null) {
      this.#ports.act(this.#action);
    }
  }

  async #copyCommand(): Promise<void> {
    const button = this.#parts.commandCopy;
    if (await copyText(this.#parts.commandText.textContent ?? "")) {
      button.textContent = this.#ports.text("command.copied");
      setTimeout(() => {
        button.textContent = this.#ports.text("command.copy");
      }, copiedMs);
    }
  }
}

/** Whether nobody holds the keyboard who would miss it. */
export function isFocusFree(): boolean {
  const active = document.activeElement;
  return active === null || active === document.body || active.closest("#screen, #notice") !== null;
}

function paragraph(sentence: string): HTMLElement {
  const element = document.createElement("p");
  element.textContent = sentence;
  return element;
}

function words(command: string): (HTMLElement | string)[] {
  return command.split(" ").flatMap((word, index) => {
    const element = document.createElement("span");
    element.textContent = word;
    return index === 0 ? [element] : [" ", element];
  });
}
