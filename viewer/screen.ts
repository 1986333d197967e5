// The owner of noVNC and of the canvas: one connection at a time, and the last picture between two.

import RFB from "@novnc/novnc";
import type { Meter } from "./meter.ts";
import { closeCodes, type Ending } from "./rules.ts";
import type { Connection, ConnectionEvents } from "./session.ts";

/** What the screen tells besides the connection's own life. */
export interface ScreenEvents {
  clipboard(text: string): void;
  desktopName(name: string): void;
}

/** What goes along with each connection: how large and how fine its pictures are. */
export interface Attachment {
  /** Before noVNC has the socket. */
  guard?(socket: WebSocket): void;
  use(rfb: RFB, canvas: HTMLCanvasElement | null): void;
  connected?(): void;
  release(): void;
}

interface Parts {
  container: HTMLElement;
  frame: HTMLElement;
  label: string;
  meter: Meter;
  attachments: readonly Attachment[];
  /** Whether this viewer may only watch. */
  isWatching: boolean;
}

// A line that answers at all answers in this time; a dead one may stay silent for many minutes.
const probeTimeoutMs = 5000;

// What was heard this recently needs no probe.
const aliveMs = 5000;

// Waiting longer for a first picture would only hide a desktop that is there.
const firstFrameTimeoutMs = 3000;

// FramebufferUpdateRequest (RFB 7.5.3), not incremental, for the one pixel at 0,0: a server has to
// answer it. noVNC has no ping, and sends whole messages only, so this one cannot land inside one.
const pixelRequest = Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 1, 0, 1);

export class Screen {
  #parts: Parts;
  #events: ScreenEvents;

  constructor(parts: Parts, events: ScreenEvents) {
    this.#parts = parts;
    this.#events = events;
  }

  /** @throws Error when the browser forbids the WebSocket, or noVNC cannot use it. */
  connect(url: string, events: ConnectionEvents): Connection {
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.#parts.meter.watch(socket);
    for (const attachment of this.#parts.attachments) {
      attachment.guard?.(socket);
    }
    const line = new Line(socket, events, this.#parts);
    line.rfb.addEventListener("clipboard", (event) => this.#events.clipboard(event.detail.text));
    line.rfb.addEventListener("desktopname", (event) =>
      this.#events.desktopName(event.detail.name),
    );
    return line;
  }

  forgetFrame(): void {
    this.#parts.frame.replaceChildren();
  }
}

/** One WebSocket with the RFB on it. */
class Line implements Connection {
  readonly rfb: RFB;
  #socket: WebSocket;
  #events: ConnectionEvents;
  #frame: HTMLElement;
  #attachments: readonly Attachment[];
  #canvas: HTMLCanvasElement | null;
  #phase: "connecting" | "connected" | "ended" = "connecting";
  #heardAt = 0;
  #probeTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(socket: WebSocket, events: ConnectionEvents, parts: Parts) {
    this.#socket = socket;
    this.#events = events;
    this.#frame = parts.frame;
    this.#attachments = parts.attachments;
    // Bound before noVNC's own handlers, so that the code is known and the canvas still there.
    socket.addEventListener("close", (event) => this.#end({ code: event.code }));
    socket.addEventListener("message", () => {
      this.#heardAt = performance.now();
    });
    this.rfb = new RFB(parts.container, socket, { shared: true });
    this.rfb.background = "var(--screen)";
    this.rfb.viewOnly = parts.isWatching;
    this.#canvas = parts.container.querySelector("canvas");
    this.#canvas?.setAttribute("role", "application");
    this.#canvas?.setAttribute("aria-label", parts.label);
    // How to get out again, which stands in the Keys panel; read out also while that is closed.
    this.#canvas?.setAttribute("aria-describedby", "keys-leave");
    for (const attachment of parts.attachments) {
      attachment.use(this.rfb, this.#canvas);
    }
    this.rfb.addEventListener("connect", () => this.#connected());
    this.rfb.addEventListener("credentialsrequired", () => {
      this.#end({ code: closeCodes.abnormal, cause: "vnc-password" });
      this.rfb.disconnect();
    });
    // noVNC ends by itself after a protocol error, before the socket closes.
    this.rfb.addEventListener("disconnect", () => this.#end({ code: closeCodes.abnormal }));
  }

  drop(): void {
    if (this.#phase !== "ended") {
      this.#end({ code: closeCodes.abnormal });
      this.rfb.disconnect();
    }
  }

  probe(): void {
    const now = performance.now();
    const isOpen = this.#phase === "connected" && this.#socket.readyState === WebSocket.OPEN;
    if (!isOpen || this.#probeTimer !== undefined || now - this.#heardAt < aliveMs) {
      return;
    }
    this.#socket.send(pixelRequest);
    this.#probeTimer = setTimeout(() => {
      this.#probeTimer = undefined;
      if (this.#heardAt < now) {
        this.drop();
      }
    }, probeTimeoutMs);
  }

  focus(): void {
    this.rfb.focus({ preventScroll: true });
  }

  sendKey(keysym: number, code: string, isDown: boolean): void {
    this.rfb.sendKey(keysym, code, isDown);
  }

  sendClipboard(text: string): boolean {
    if (this.#phase !== "connected") {
      return false;
    }
    this.rfb.clipboardPasteFrom(text);
    return true;
  }

  #connected(): void {
    this.#phase = "connected";
    this.#heardAt = performance.now();
    if (this.#frame.hasChildNodes()) {
      this.#revealAt(performance.now() + firstFrameTimeoutMs);
    }
    for (const attachment of this.#attachments) {
      attachment.connected?.();
    }
    this.#events.connected();
  }

  // noVNC has no event for a first picture; its canvas is transparent until something is drawn.
  #revealAt(deadline: number): void {
    if (this.#phase === "ended") {
      return;
    }
    if (performance.now() > deadline || (this.#canvas !== null && isDrawn(this.#canvas))) {
      this.#frame.replaceChildren();
      return;
    }
    requestAnimationFrame(() => this.#revealAt(deadline));
  }

  #end(ending: Ending): void {
    if (this.#phase === "ended") {
      return;
    }
    const hadPicture = this.#phase === "connected";
    this.#phase = "ended";
    clearTimeout(this.#probeTimer);
    for (const attachment of this.#attachments) {
      attachment.release();
    }
    if (hadPicture && this.#canvas !== null) {
      // Moved and not copied: no blink, no encoding. noVNC lets go of it by itself.
      this.#frame.replaceChildren(this.#canvas);
    }
    this.#events.ended(ending);
  }
}

// Read through a canvas of our own: reading noVNC's back would make Chromium take it off the GPU.
function isDrawn(canvas: HTMLCanvasElement): boolean {
  if (canvas.width === 0 || canvas.height === 0) {
    return false;
  }
  const pixel = document.createElement("canvas");
  pixel.width = 1;
  pixel.height = 1;
  const context = pixel.getContext("2d", { willReadFrequently: true });
  if (context === null) {
    return true;
  }
  const [x, y] = [Math.floor(canvas.width / 2), Math.floor(canvas.height / 2)];
  context.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data[3] !== 0;
}
