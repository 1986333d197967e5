// The owner of the choice of the desktop's keyboard layout: remembered by this browser, and set on
// each connection once one was chosen.

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

interface Choice {
  /** "de" or "de:nodeadkeys". */
  value: string;
  title: string;
}

/** All layouts with their variants, by title; what is not of the expected form is left out. */
export function layoutChoices(value: unknown): Choice[] {
  const layouts = Array.isArray(value) ? value.filter(isNamed) : [];
  const choices = layouts.flatMap(({ name, title, variants }) => [
    { value: name, title },
    ...(Array.isArray(variants) ? variants.filter(isNamed) : []).map((variant) => ({
      value: `${name}:${variant.name}`,
      title: variant.title,
    })),
  ]);
  return choices.toSorted((a, b) => a.title.localeCompare(b.title, "en"));
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

function isNamed(value: unknown): value is { name: string; title: string; variants?: unknown } {
  return isValues(value) && typeof value.name === "string" && typeof value.title === "string";
}

function isValues(value: unknown): value is Record<string, string> {
  return typeof value === "object" && value !== null;
}
