// The owner of the choice of the desktop's keyboard layout: remembered by this browser, and set on
// each connection once one was chosen.

import { isValues, layoutChoices } from "./choices.ts";
import { loadSetting, saveSetting } from "./settings.ts";
import { type Answer, getJson, postJson } from "./status.ts";
import type { Text } from "./text.ts";

export interface LayoutParts {
  slot: HTMLElement;
  select: HTMLSelectElement;
  note: HTMLElement;
}

export interface LayoutPorts {
  text: Text;
  url: string;
}

export class Layouts {
  #parts: LayoutParts;
  #ports: LayoutPorts;
  #isFilled = false;

  constructor(parts: LayoutParts, ports: LayoutPorts) {
    this.#parts = parts;
    this.#ports = ports;
    parts.slot.hidden = false;
    parts.select.addEventListener("change", () => void this.#chosen());
  }

  /** The panel was opened. */
  async opened(): Promise<void> {
    const { select } = this.#parts;
    const answer = await getJson(this.#ports.url);
    this.#say(answer);
    if (!answer.isOk) {
      select.disabled = true;
      return;
    }
    select.disabled = false;
    if (!this.#isFilled) {
      this.#isFilled = true;
      const choices = layoutChoices(answer.body.layouts);
      select.replaceChildren(...choices.map(({ value, title }) => new Option(title, value)));
    }
    const { layout, variant } = answer.body;
    select.value = variant === "" ? String(layout) : `${layout}:${variant}`;
  }

  /** A connection stands: the desktop may be another than the last time. */
  async connected(): Promise<void> {
    const saved = loadSetting("layout");
    if (saved !== null) {
      await this.#set(saved);
    }
  }

  async #chosen(): Promise<void> {
    const { value } = this.#parts.select;
    const answer = await this.#set(value);
    this.#say(answer);
    if (answer.isOk) {
      saveSetting("layout", value);
    }
  }

  #set(value: string): Promise<Answer> {
    const [layout = "", variant = ""] = value.split(":");
    return postJson(this.#ports.url, { layout, variant });
  }

  #say({ isOk, body }: Answer): void {
    const { note } = this.#parts;
    note.hidden = isOk;
    const detail = isValues(body.detail) ? body.detail : {};
    const key = body.cause === "no-program" ? "layout.no-program" : "layout.failed";
    note.textContent = isOk ? "" : this.#ports.text(key, { error: "", ...detail });
  }
}
