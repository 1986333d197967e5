// Stands between this computer's keyboard and noVNC: no key stays down behind a focus that is gone,
// a chord leads out of the desktop, and on a Mac ⌘ may stand for Ctrl.

import { Chord } from "./strokes.ts";

export interface KeyboardPorts {
  /** Ctrl, Alt and Shift were pressed together, and nothing else. */
  leave(): void;
  /** Tab was pressed: it is the desktop's, though in other pages it leads on. */
  tabbed(): void;
}

export class Keyboard {
  #screen: HTMLElement;
  #ports: KeyboardPorts;
  #chord = new Chord();
  // What noVNC was told is down, by code, with the key that it was told.
  #down = new Map<string, string>();
  #isCommandControl = false;

  constructor(screen: HTMLElement, ports: KeyboardPorts) {
    this.#screen = screen;
    this.#ports = ports;
    for (const type of ["keydown", "keyup"] as const) {
      // Captured above noVNC's canvas, which stops these events.
      screen.addEventListener(type, (event) => this.#take(event), { capture: true });
    }
    screen.addEventListener("focusout", () => this.release());
    // noVNC lets go of all keys itself then.
    window.addEventListener("blur", () => this.#down.clear());
  }

  /** Whether the Mac's ⌘ is sent as Ctrl. */
  set isCommandControl(isOn: boolean) {
    this.release();
    this.#isCommandControl = isOn;
  }

  /** Lets go of all keys that are down. */
  release(): void {
    for (const [code, key] of [...this.#down]) {
      this.#say("keyup", { code, key });
    }
    this.#down.clear();
  }

  #take(event: KeyboardEvent): void {
    if (event.isTrusted && this.#chord.take(event) && !event.getModifierState("AltGraph")) {
      event.stopPropagation();
      event.preventDefault();
      this.release();
      this.#ports.leave();
      return;
    }
    if (event.isTrusted && this.#isCommandControl && event.key === "Meta") {
      event.stopPropagation();
      event.preventDefault();
      const isRight = event.code === "MetaRight";
      const code = isRight ? "ControlRight" : "ControlLeft";
      this.#say(event.type, { code, key: "Control", location: isRight ? 2 : 1 });
      return;
    }
    if (event.type === "keydown") {
      if (event.key === "Tab") {
        this.#ports.tabbed();
      }
      this.#down.set(event.code, event.key);
    } else {
      this.#down.delete(event.code);
    }
  }

  #say(type: string, init: KeyboardEventInit): void {
    const canvas = this.#screen.querySelector("canvas");
    canvas?.dispatchEvent(new KeyboardEvent(type, { ...init, bubbles: true, cancelable: true }));
  }
}

/** Whether this computer has a ⌘ key, as far as a page can know. */
export const isMac = (): boolean => /mac/i.test(navigator.platform);
