// The owner of the bar: whether it is there, fullscreen, and the way to it from the desktop's keys.

import { byId } from "./dom.ts";
import { loadSetting, saveSetting } from "./settings.ts";

export interface BarPorts {
  /** An open panel holds the bar. */
  isPanelOpen(): boolean;
  focusDesktop(): void;
  /** Fullscreen was entered or left. */
  fullscreen(isOn: boolean): void;
}

// A pointer thrown at the top edge stops within this many pixels.
const edgePx = 2;

// The bar goes when the pointer is this far below it: a hand that slips must not lose it.
const awayPx = 40;

export class Bar {
  #ports: BarPorts;
  #bar = byId("bar", HTMLElement);
  #tab = byId("bar-tab", HTMLButtonElement);
  #isTucked = loadSetting("bar") === "tucked";
  /** It is out for a moment, over the desktop. */
  #isPeeking = false;

  constructor(ports: BarPorts) {
    this.#ports = ports;
    for (const button of document.querySelectorAll<HTMLElement>("[data-tuck]")) {
      button.addEventListener("click", () => this.#tuck(true));
    }
    this.#tab.addEventListener("click", () => this.#untuck());
    for (const button of document.querySelectorAll<HTMLElement>("[data-fullscreen]")) {
      button.hidden = !document.fullscreenEnabled;
      button.addEventListener("click", () => void toggleFullscreen());
    }
    document.addEventListener("fullscreenchange", () => {
      this.#isPeeking = false;
      this.#show();
      ports.fullscreen(isFullscreen());
    });
    // Captured, because noVNC stops these events at its canvas.
    window.addEventListener("pointermove", (event) => this.#pointed(event), {
      capture: true,
      passive: true,
    });
    this.#bar.addEventListener("focusin", () => this.#peek(true));
    this.#bar.addEventListener("focusout", (event) => {
      if (!(event.relatedTarget instanceof Node && this.#bar.contains(event.relatedTarget))) {
        this.settle();
      }
    });
    // In a frame, such as a tab of JupyterLab, the way back is the page around: no Lab inside Lab.
    if (window !== window.top) {
      for (const name of ["href", "aria-label", "title"]) {
        byId("home", HTMLElement).removeAttribute(name);
      }
    }
    this.#show();
    // A bar that was tucked away in the last visit is not seen leaving in this one.
    for (const move of this.#bar.getAnimations()) {
      move.finish();
    }
  }

  /** Brings the bar out and puts the focus on it. */
  focus(): void {
    this.#peek(true);
    const buttons = [...this.#bar.querySelectorAll<HTMLElement>("#tools button")];
    buttons.find((button) => button.checkVisibility())?.focus();
  }

  /** A panel was closed, or the focus went: is there a reason left for the bar to stay out? */
  settle(): void {
    const isHeld = this.#bar.contains(document.activeElement) || this.#ports.isPanelOpen();
    if (!isHeld) {
      this.#peek(false);
    }
  }

  get #floats(): boolean {
    return this.#isTucked || isFullscreen();
  }

  #pointed(event: PointerEvent): void {
    if (!this.#floats || event.pointerType === "touch") {
      return;
    }
    if (event.clientY <= edgePx && event.buttons === 0) {
      this.#peek(true);
    } else if (this.#isPeeking && event.clientY > this.#bar.offsetHeight + awayPx) {
      this.settle();
    }
  }

  #peek(isOut: boolean): void {
    if (this.#isPeeking !== isOut) {
      this.#isPeeking = isOut;
      this.#show();
    }
  }

  #tuck(isTucked: boolean): void {
    this.#isTucked = isTucked;
    this.#isPeeking = false;
    saveSetting("bar", isTucked ? "tucked" : null);
    this.#show();
  }

  #untuck(): void {
    if (isFullscreen()) {
      this.#peek(true);
    } else {
      this.#tuck(false);
    }
    this.focus();
  }

  #show(): void {
    const isHidden = this.#floats && !this.#isPeeking;
    if (isHidden && this.#bar.contains(document.activeElement)) {
      this.#ports.focusDesktop();
    }
    document.body.toggleAttribute("data-bar-floats", this.#floats);
    document.body.toggleAttribute("data-bar-hidden", isHidden);
    this.#tab.hidden = !isHidden;
    for (const button of document.querySelectorAll("[data-fullscreen]")) {
      button.setAttribute("aria-pressed", String(isFullscreen()));
    }
  }
}

const isFullscreen = () => document.fullscreenElement !== null;

async function toggleFullscreen(): Promise<void> {
  try {
    await (isFullscreen()
      ? document.exitFullscreen()
      : document.documentElement.requestFullscreen({ navigationUI: "hide" }));
  } catch {
    // A policy of the frame around the page: the button did nothing, and says so by that.
  }
}
