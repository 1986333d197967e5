// The owner of typing on a screen: a hidden field that raises the system's keyboard, and a row of
// the keys that such a keyboard has not.

import { byId } from "./dom.ts";
import { createKeyButton, createModifierButton } from "./keys.ts";
import {
  composesWords,
  difference,
  filling,
  type KeyName,
  keysymOf,
  type ModifierName,
  type Modifiers,
  type SendKey,
} from "./strokes.ts";
import type { Text } from "./text.ts";

export interface TouchPorts {
  text: Text;
  modifiers: Modifiers;
  send: SendKey;
  focusDesktop(): void;
}

const rowKeys: readonly KeyName[] = ["left", "up", "down", "right"];
const moreKeys: readonly KeyName[] = ["delete", "home", "end", "pageUp", "pageDown"];

const backspaceKeysym = 0xff08;

// Past this the field is emptied, at a moment when no word is under way.
const maxLength = 256;

export class TouchKeyboard {
  #ports: TouchPorts;
  #button = byId("touch-button", HTMLButtonElement);
  #row = byId("keybar", HTMLElement);
  #field = byId("touch-field", HTMLTextAreaElement);
  #sent = filling;
  #isComposing = false;
  #isLive = composesWords(navigator.languages);

  constructor(ports: TouchPorts) {
    this.#ports = ports;
    this.#fillRow();
    this.#button.addEventListener("click", () => this.#toggle(this.#field.hidden === true));
    const field = this.#field;
    field.addEventListener("input", () => this.#changed());
    field.addEventListener("compositionstart", () => {
      this.#isComposing = true;
    });
    field.addEventListener("compositionend", () => {
      this.#isComposing = false;
      this.#changed();
    });
    field.addEventListener("keydown", (event) => this.#pressed(event));
    // The back key of a phone puts its keyboard away and the focus stays: a new tap raises it again.
    field.addEventListener("blur", () => this.#reset());
    window.visualViewport?.addEventListener("resize", () => this.#lift());
  }

  #fillRow(): void {
    const { text, modifiers } = this.#ports;
    const send: SendKey = (keysym, code, isDown) => {
      this.#ports.send(keysym, code, isDown);
      if (!isDown) {
        modifiers.used();
      }
    };
    const key = (name: KeyName) => createKeyButton([name], { text, send });
    const modifier = (name: ModifierName) =>
      createModifierButton(modifiers, name, { text, how: "once" });
    this.#row.append(
      ...[key("esc"), key("tab"), modifier("ctrl"), modifier("alt")],
      ...rowKeys.map((name) => labelled(key(name), name)),
      ...[modifier("shift"), modifier("super")],
      ...moreKeys.map(key),
    );
    // The focus stays in the field, or the system's keyboard would go.
    this.#row.addEventListener("pointerdown", (event) => event.preventDefault());
    this.#row.addEventListener("mousedown", (event) => event.preventDefault());
  }

  #toggle(isOn: boolean): void {
    this.#row.hidden = !isOn;
    this.#field.hidden = !isOn;
    this.#button.setAttribute("aria-pressed", String(isOn));
    if (isOn) {
      this.#reset();
      this.#field.focus({ preventScroll: true });
      this.#lift();
    } else {
      this.#ports.modifiers.used();
      this.#ports.focusDesktop();
    }
  }

  #changed(): void {
    if (this.#isComposing && !this.#isLive) {
      return;
    }
    const { erase, type } = difference(this.#sent, this.#field.value);
    for (let count = 0; count < erase; count++) {
      this.#press(backspaceKeysym, "Backspace");
    }
    for (const char of type) {
      this.#press(keysymOf(char), char === "\n" ? "Enter" : "");
    }
    this.#sent = this.#field.value;
    const isLong = this.#sent.length > maxLength || this.#sent.length < filling.length / 2;
    if (!this.#isComposing && (isLong || type.includes("\n"))) {
      this.#reset();
    }
  }

  // Android sends 229 for all that its keyboard types, which the field gets as text; a key with a
  // name of its own, or one with Ctrl from a real keyboard, is the desktop's.
  #pressed(event: KeyboardEvent): void {
    const isText = event.isComposing || event.keyCode === 229 || event.key === "Unidentified";
    const isNamed = event.key.length > 1 && event.key !== "Dead" && event.key !== "Process";
    if (isText || !(isNamed || event.ctrlKey || event.metaKey)) {
      return;
    }
    event.preventDefault();
    const canvas = document.querySelector("#screen canvas");
    const isModifier = ["Control", "Alt", "Shift", "Meta"].includes(event.key);
    canvas?.dispatchEvent(new KeyboardEvent("keydown", event));
    if (!isModifier) {
      canvas?.dispatchEvent(new KeyboardEvent("keyup", event));
      this.#ports.modifiers.used();
      return;
    }
    const up = (later: KeyboardEvent) => {
      if (later.code === event.code) {
        canvas?.dispatchEvent(new KeyboardEvent("keyup", later));
        this.#field.removeEventListener("keyup", up);
      }
    };
    this.#field.addEventListener("keyup", up);
  }

  #press(keysym: number, code: string): void {
    this.#ports.send(keysym, code, true);
    this.#ports.send(keysym, code, false);
    this.#ports.modifiers.used();
  }

  #reset(): void {
    this.#isComposing = false;
    this.#sent = filling;
    this.#field.value = filling;
    this.#field.setSelectionRange(filling.length, filling.length);
  }

  // Safari lays its keyboard over the page: the row has to stand above it.
  #lift(): void {
    const { visualViewport: view } = window;
    const covered = view === null ? 0 : window.innerHeight - view.height - view.offsetTop;
    document.body.style.setProperty("--covered", `${Math.max(0, Math.round(covered))}px`);
  }
}

// Arrows are drawn, and named for who does not see them.
function labelled(button: HTMLButtonElement, name: KeyName): HTMLButtonElement {
  button.setAttribute("aria-label", button.textContent ?? "");
  button.textContent = { left: "←", up: "↑", down: "↓", right: "→" }[String(name)] ?? "";
  return button;
}
