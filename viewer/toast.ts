// The owner of the short message at the foot of the page. A new one takes the place of the last.

import { byId } from "./dom.ts";
import { loadSetting, saveSetting } from "./settings.ts";

/** A button in the message. */
export interface ToastAction {
  label: string;
  act(): void;
}

// Two lines are read in this time; what a button offers may take a decision.
const readMs = 5000;
const decideMs = 12_000;

export class Toast {
  #element = byId("toast", HTMLElement);
  #timer: ReturnType<typeof setTimeout> | undefined;

  show(sentence: string, action?: ToastAction): void {
    clearTimeout(this.#timer);
    const words = document.createElement("span");
    words.textContent = sentence;
    this.#element.replaceChildren(words);
    if (action !== undefined) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = action.label;
      button.addEventListener("click", () => {
        this.hide();
        action.act();
      });
      this.#element.append(button);
    }
    this.#timer = setTimeout(() => this.hide(), action === undefined ? readMs : decideMs);
  }

  /** Shows what a browser's reader has to be told one time only. */
  showOnce(name: string, sentence: string): void {
    if (loadSetting(name) === null) {
      saveSetting(name, "1");
      this.show(sentence);
    }
  }

  hide(): void {
    clearTimeout(this.#timer);
    this.#element.replaceChildren();
  }
}
