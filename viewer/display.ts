// The owner of the desktop's size and of how large it is shown. noVNC only scales what comes into
// the stage, an element of the size that fits; which size is asked for is decided here.

import type RFB from "@novnc/novnc";
import {
  type Fit,
  parseFit,
  resizeMessage,
  type Size,
  scaleFor,
  sizeMessageBytes,
  sizeMessageType,
  wantedSize,
} from "./choices.ts";
import { loadSetting, saveSetting } from "./settings.ts";

export interface DisplayParts {
  screen: HTMLElement;
  stage: HTMLElement;
  fit: HTMLSelectElement;
  sharp: HTMLInputElement;
  sharpLabel: HTMLElement;
}

export interface DisplayPorts {
  /** Who only watches has the size that others set. */
  mayResize: boolean;
  /** Has the desktop's programs draw larger; false where that cannot be done. Never rejects. */
  setScale(factor: number, signal: AbortSignal): Promise<boolean>;
}

// A window that is being dragged asks for a size at every step.
const askPauseMs = 100;

// A server that resizes at all does it in this time; longer, the desktop would be kept from view.
const firstSizeMs = 500;

// Programs draw all of theirs anew for another scale: a window should have come to rest before.
const scalePauseMs = 500;

export class Display {
  #parts: DisplayParts;
  #ports: DisplayPorts;
  #fit: Fit;
  // Null: sharp wherever the desktop can draw larger.
  #sharp: boolean | null;
  #canScale = true;
  #scaled: number | null = null;
  #rfb: RFB | null = null;
  #canvas: HTMLCanvasElement | null = null;
  #socket: WebSocket | null = null;
  // noVNC's own message, which has the screen's id.
  #message: Uint8Array<ArrayBuffer> | null = null;
  #connection = new AbortController();
  #isShown = false;
  #isZoomed = false;
  #shownTimer: ReturnType<typeof setTimeout> | undefined;
  #askTimer: ReturnType<typeof setTimeout> | undefined;
  #scaleTimer: ReturnType<typeof setTimeout> | undefined;
  #watcher = new MutationObserver(() => this.#sized());

  constructor(parts: DisplayParts, ports: DisplayPorts) {
    this.#parts = parts;
    this.#ports = ports;
    const fit = this.#allowed(loadSetting("fit") ?? "window");
    const sharp = loadSetting("sharp");
    this.#fit = parseFit(fit);
    for (const option of [...parts.fit.options]) {
      option.hidden = this.#allowed(option.value) !== option.value;
    }
    this.#sharp = sharp === null ? null : sharp === "true";
    parts.fit.value = fit;
    parts.fit.addEventListener("change", () => {
      saveSetting("fit", parts.fit.value);
      this.#fit = parseFit(parts.fit.value);
      this.#changed();
    });
    parts.sharp.addEventListener("change", () => {
      saveSetting("sharp", String(parts.sharp.checked));
      this.#sharp = parts.sharp.checked;
      this.#changed();
    });
    new ResizeObserver(() => this.#changed()).observe(parts.screen);
    // The page is zoomed, or was moved to a screen of other pixels.
    window.addEventListener("resize", () => this.#changed());
    this.#lay();
  }

  /** Takes noVNC's requests for a size off this socket; noVNC has to get it after this. */
  guard(socket: WebSocket): void {
    const send = socket.send.bind(socket);
    this.#socket = socket;
    this.#message = null;
    socket.send = (data) => {
      if (!isSizeMessage(data)) {
        send(data);
        return;
      }
      this.#message ??= new Uint8Array(data);
      const wanted = this.#wanted();
      if (wanted !== null && !this.#isSize(wanted)) {
        send(resizeMessage(this.#message, wanted));
      }
      // From here on the sizes are asked for here.
      queueMicrotask(() => {
        if (this.#socket === socket && this.#rfb !== null) {
          this.#rfb.resizeSession = false;
        }
      });
    };
  }

  /** A connection begins on the guarded socket. */
  use(rfb: RFB, canvas: HTMLCanvasElement | null): void {
    this.#rfb = rfb;
    this.#canvas = canvas;
    this.#connection = new AbortController();
    this.#scaled = null;
    rfb.scaleViewport = true;
    rfb.resizeSession = true;
    if (canvas !== null) {
      this.#watcher.observe(canvas, { attributeFilter: ["width", "height"] });
    }
    this.#hide();
    this.#lay();
  }

  /** The connection stands: the first picture is shown when it has the size that was asked for. */
  connected(): void {
    clearTimeout(this.#shownTimer);
    this.#shownTimer = setTimeout(() => {
      this.#show();
      this.#ask();
    }, firstSizeMs);
    this.#sized();
  }

  /** The connection is over. */
  release(): void {
    this.#watcher.disconnect();
    this.#connection.abort();
    for (const timer of [this.#shownTimer, this.#askTimer, this.#scaleTimer]) {
      clearTimeout(timer);
    }
    this.#rfb = null;
    this.#canvas = null;
    this.#socket = null;
    this.#show();
  }

  /** Zoomed, the screen is larger than its window: the picture has to grow, and not the desktop. */
  set isZoomed(isZoomed: boolean) {
    this.#isZoomed = isZoomed;
    this.#changed();
  }

  #allowed(name: string): string {
    return this.#ports.mayResize || name === "actual" ? name : "scale";
  }

  get #isSharp(): boolean {
    return this.#sharp ?? this.#canScale;
  }

  // Desktop pixels in a CSS pixel.
  get #ratio(): number {
    return this.#isSharp ? window.devicePixelRatio : 1;
  }

  #wanted(): Size | null {
    if (this.#isZoomed) {
      return null;
    }
    return wantedSize(this.#fit, this.#parts.screen.getBoundingClientRect(), this.#ratio);
  }

  #isSize({ width, height }: Size): boolean {
    return this.#canvas?.width === width && this.#canvas.height === height;
  }

  #changed(): void {
    this.#lay();
    clearTimeout(this.#askTimer);
    this.#askTimer = setTimeout(() => {
      this.#ask();
      this.#sized();
    }, askPauseMs);
  }

  // The stage has the desktop's own proportions where a pixel of it is to be one of the screen.
  #lay(): void {
    const { screen, stage, sharp, sharpLabel } = this.#parts;
    const isActual = this.#fit === "actual" && !this.#isZoomed;
    const ratio = this.#ratio;
    const exact = isActual ? this.#canvas : this.#fit === "window" ? this.#wanted() : null;
    stage.style.width = exact === null ? "100%" : `${exact.width / ratio}px`;
    stage.style.height = exact === null ? "100%" : `${exact.height / ratio}px`;
    screen.toggleAttribute("data-scrolls", isActual);
    const isExact = exact !== null && this.#isSize(exact) && ratio === window.devicePixelRatio;
    stage.toggleAttribute("data-exact", isExact);
    sharp.checked = this.#isSharp;
    sharpLabel.hidden = window.devicePixelRatio === 1;
    if (this.#rfb !== null) {
      // noVNC looks at whole pixels only for whether it has to scale anew: set again, it always does.
      this.#rfb.scaleViewport = true;
    }
  }

  #ask(): void {
    const wanted = this.#wanted();
    if (this.#rfb === null || wanted === null || this.#isSize(wanted)) {
      return;
    }
    if (this.#message === null) {
      this.#provoke(this.#rfb);
    } else if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(this.#message);
    }
  }

  // noVNC asks for nothing when the size is right already, as it sees it: shown another, it asks.
  #provoke(rfb: RFB): void {
    this.#parts.stage.style.width = "1px";
    rfb.resizeSession = false;
    rfb.resizeSession = true;
    this.#lay();
  }

  #sized(): void {
    this.#lay();
    const wanted = this.#wanted();
    const isRight = wanted === null || this.#isSize(wanted);
    clearTimeout(this.#scaleTimer);
    if (!isRight) {
      // Another viewer has it its way, or the answer is under way.
      this.#scaled = null;
      return;
    }
    this.#show();
    if (this.#rfb !== null) {
      this.#scaleTimer = setTimeout(() => void this.#scale(), scalePauseMs);
    }
  }

  async #scale(): Promise<void> {
    const factor = scaleFor(this.#fit, this.#ratio);
    if (factor === this.#scaled || !this.#canScale) {
      return;
    }
    this.#scaled = factor;
    const { signal } = this.#connection;
    if (!(await this.#ports.setScale(factor, signal)) && !signal.aborted) {
      // All would be tiny.
      this.#canScale = false;
      this.#changed();
    }
  }

  #hide(): void {
    this.#isShown = false;
    this.#parts.stage.toggleAttribute("data-sizing", true);
  }

  #show(): void {
    if (!this.#isShown) {
      this.#isShown = true;
      this.#parts.stage.toggleAttribute("data-sizing", false);
    }
  }
}

function isSizeMessage(data: unknown): data is Uint8Array {
  return (
    data instanceof Uint8Array && data.length === sizeMessageBytes && data[0] === sizeMessageType
  );
}
