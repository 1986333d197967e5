// The owner of the Keys panel: keys that the browser or the system keeps for itself, modifiers that
// stay down, and what else there is to choose about the keyboard.

import { byId } from "./dom.ts";
import { isMac, type Keyboard } from "./keyboard.ts";
import { bindSwitch } from "./settings.ts";
import {
  type KeyName,
  type ModifierName,
  modifierNames,
  type Modifiers,
  pressKeys,
  type SendKey,
} from "./strokes.ts";
import type { Text } from "./text.ts";
import type { Toast } from "./toast.ts";

const combinations: readonly (readonly KeyName[])[] = [
  ["ctrl", "alt", "delete"],
  ["alt", "tab"],
  ["alt", "f4"],
  ["ctrl", "w"],
  ["esc"],
  ["tab"],
  ["super"],
  ["print"],
];

const firstFunctionKey = 0xffbe;

/** A button that holds a modifier, and shows whether it is held. */
export function createModifierButton(
  modifiers: Modifiers,
  name: ModifierName,
  { text, how }: { text: Text; how: "once" | "locked" },
): HTMLButtonElement {
  const button = createButton(text(`key.${name}`), () => modifiers.toggle(name, how));
  const show = () => button.setAttribute("aria-pressed", String(modifiers.isHeld(name)));
  modifiers.onChange(show);
  show();
  return button;
}

/** A button that sends a key, or keys together. */
export function createKeyButton(
  names: readonly KeyName[],
  { text, send }: { text: Text; send: SendKey },
): HTMLButtonElement {
  const label = names.map((name) => keyLabel(name, text)).join("+");
  return createButton(label, () => pressKeys(names, send));
}

export interface KeysPorts {
  text: Text;
  toast: Toast;
  send: SendKey;
  modifiers: Modifiers;
  keyboard: Keyboard;
}

/** Fills the Keys panel; gives what has to know of fullscreen. */
export function createKeysPanel(ports: KeysPorts): { fullscreen(isOn: boolean): void } {
  const { text, send, modifiers } = ports;
  byId("keys-send", HTMLElement).append(
    ...combinations.map((names) => createKeyButton(names, { text, send })),
  );
  byId("keys-function", HTMLElement).append(
    ...Array.from({ length: 12 }, (_, index) => {
      const label = `F${index + 1}`;
      return createButton(label, () => {
        send(firstFunctionKey + index, label, true);
        send(firstFunctionKey + index, label, false);
      });
    }),
  );
  byId("keys-hold", HTMLElement).append(
    ...modifierNames.map((name) => createModifierButton(modifiers, name, { text, how: "locked" })),
  );
  const button = byId("keys-button", HTMLElement);
  modifiers.onChange(() => button.toggleAttribute("data-held", modifiers.isAnyHeld));
  window.addEventListener("blur", () => modifiers.release());
  bindMac(ports.keyboard);
  return bindLock(ports);
}

function bindMac(keyboard: Keyboard): void {
  byId("keys-mac-row", HTMLElement).hidden = !isMac();
  bindSwitch(byId("keys-mac", HTMLInputElement), "mac-command", {
    otherwise: true,
    changed: (isOn) => {
      keyboard.isCommandControl = isMac() && isOn;
    },
  });
}

// The Keyboard Lock API: in Chromium only, and no part of TypeScript's library.
interface KeyboardLock {
  lock(): Promise<void>;
  unlock(): void;
}

function bindLock({ text, toast }: KeysPorts): { fullscreen(isOn: boolean): void } {
  const { keyboard } = navigator as Navigator & { keyboard?: KeyboardLock };
  const lock = keyboard?.lock === undefined ? undefined : keyboard;
  byId("keys-lock-row", HTMLElement).hidden = lock === undefined;
  let isWanted = false;
  const apply = () => {
    if (document.fullscreenElement === null || !isWanted) {
      lock?.unlock();
      return;
    }
    // Refused in a frame without the permission: the keys stay with the browser, as ever.
    lock?.lock().catch(() => {});
  };
  bindSwitch(byId("keys-lock", HTMLInputElement), "keyboard-lock", {
    otherwise: true,
    changed: (isOn) => {
      isWanted = isOn;
      apply();
    },
  });
  return {
    fullscreen: (isOn) => {
      apply();
      const isLocked = lock !== undefined && isWanted;
      const name = isLocked ? "told-lock" : "told-edge";
      if (isOn) {
        toast.showOnce(name, text(isLocked ? "fullscreen.locked" : "fullscreen.edge"));
      }
    },
  };
}

/** The question of the browser before a page is closed, when the reader wants it. */
export function bindUnloadQuestion(isNeeded: () => boolean): { leave(): void } {
  const ask = (event: BeforeUnloadEvent) => {
    if (isNeeded()) {
      event.preventDefault();
    }
  };
  const leave = () => window.removeEventListener("beforeunload", ask);
  bindSwitch(byId("keys-unload", HTMLInputElement), "ask-before-unload", {
    otherwise: false,
    // Bound only when it is wanted: some browsers keep no page for "back" that has such a listener.
    changed: (isOn) => (isOn ? window.addEventListener("beforeunload", ask) : leave()),
  });
  return { leave };
}

function keyLabel(name: KeyName, text: Text): string {
  return name === "w" || name === "f4" ? name.toUpperCase() : text(`key.${name}`);
}

function createButton(label: string, act: () => void): HTMLButtonElement {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", act);
  return button;
}
