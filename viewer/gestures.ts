// What fingers on a trackpad mean, without a DOM: touches go in, moves and buttons come out.

/** The buttons of a mouse as DOM events number them. */
export type Button = 0 | 1 | 2;

export interface Finger {
  id: number;
  x: number;
  y: number;
}

export interface GesturePorts {
  move(dx: number, dy: number): void;
  button(button: Button, isDown: boolean): void;
  scroll(dx: number, dy: number): void;
  /** Two fingers spread (over 1) or closed (under 1) around this point. */
  zoom(factor: number, x: number, y: number): void;
  after(ms: number, run: () => void): () => void;
}

// A finger that lies still moves by less than this.
const slackPx = 8;

// Two fingers that turn from scrolling to zooming differ by more than they tremble.
const spreadPx = 28;

const tapMs = 300;

// A second touch within this time makes a drag, or a double click, of the first.
const doubleMs = 220;

const holdMs = 500;

// A small pad has to reach over a whole screen.
const speed = 1.5;

type Mode = "idle" | "touched" | "moving" | "dragging" | "pair" | "scrolling" | "zooming" | "done";

export class Gestures {
  #ports: GesturePorts;
  #mode: Mode = "idle";
  #fingers = new Map<number, Finger>();
  #startedAt = 0;
  #most = 0;
  #start = { x: 0, y: 0, spread: 0 };
  #last = { x: 0, y: 0, spread: 0 };
  /** The left button is down since a tap, and goes up soon unless a drag follows. */
  #cancelRelease: (() => void) | null = null;
  #cancelHold: () => void = () => {};

  constructor(ports: GesturePorts) {
    this.#ports = ports;
  }

  down(finger: Finger, at: number): void {
    if (this.#fingers.size === 0) {
      this.#begin(at);
    }
    this.#fingers.set(finger.id, finger);
    this.#most = Math.max(this.#most, this.#fingers.size);
    this.#start = this.#measure();
    this.#last = this.#start;
    this.#cancelHold();
    if (this.#fingers.size === 1) {
      this.#cancelHold = this.#ports.after(holdMs, () => this.#held());
    } else if (this.#mode === "touched" || this.#mode === "moving") {
      this.#mode = "pair";
    }
  }

  move(fingers: readonly Finger[]): void {
    for (const finger of fingers) {
      if (this.#fingers.has(finger.id)) {
        this.#fingers.set(finger.id, finger);
      }
    }
    const now = this.#measure();
    this.#decide(now);
    const [dx, dy] = [now.x - this.#last.x, now.y - this.#last.y];
    switch (this.#mode) {
      case "moving":
      case "dragging":
        this.#ports.move(dx * speed, dy * speed);
        break;
      case "scrolling":
        this.#ports.scroll(dx, dy);
        break;
      case "zooming":
        this.#ports.zoom(now.spread / Math.max(1, this.#last.spread), now.x, now.y);
        break;
      default:
        return;
    }
    this.#last = now;
  }

  up(id: number, at: number): void {
    this.#fingers.delete(id);
    this.#cancelHold();
    if (this.#fingers.size > 0) {
      // What is left of two fingers must not begin to move the pointer.
      this.#mode = this.#mode === "pair" ? "pair" : "done";
      return;
    }
    const mode = this.#mode;
    this.#mode = "idle";
    if (mode === "dragging") {
      this.#ports.button(0, false);
    } else if ((mode === "touched" || mode === "pair") && at - this.#startedAt < tapMs) {
      this.#tapped();
    }
  }

  /** The touch was taken over by something else. */
  cancel(): void {
    this.#cancelHold();
    if (this.#mode === "dragging") {
      this.#ports.button(0, false);
    }
    this.#fingers.clear();
    this.#mode = "idle";
  }

  #begin(at: number): void {
    this.#mode = "touched";
    this.#startedAt = at;
    this.#most = 0;
  }

  #decide(now: { x: number; y: number; spread: number }): void {
    const moved = Math.hypot(now.x - this.#start.x, now.y - this.#start.y);
    if (this.#mode === "touched" && moved > slackPx) {
      this.#cancelHold();
      this.#mode = this.#takeTap() ? "dragging" : "moving";
    } else if (this.#mode === "pair") {
      const isSpread = Math.abs(now.spread - this.#start.spread) > spreadPx;
      this.#mode = isSpread ? "zooming" : moved > slackPx ? "scrolling" : "pair";
    }
  }

  #held(): void {
    if (this.#mode === "touched") {
      this.#finishTap();
      this.#ports.button(0, true);
      this.#mode = "dragging";
    }
  }

  #tapped(): void {
    this.#finishTap();
    if (this.#most > 1) {
      const button = this.#most === 2 ? 2 : 1;
      this.#ports.button(button, true);
      this.#ports.button(button, false);
      return;
    }
    this.#ports.button(0, true);
    const cancel = this.#ports.after(doubleMs, () => this.#finishTap());
    this.#cancelRelease = cancel;
  }

  /** Takes over the button that a tap left down; false when there is none. */
  #takeTap(): boolean {
    const isDown = this.#cancelRelease !== null;
    this.#cancelRelease?.();
    this.#cancelRelease = null;
    return isDown;
  }

  #finishTap(): void {
    if (this.#takeTap()) {
      this.#ports.button(0, false);
    }
  }

  #measure(): { x: number; y: number; spread: number } {
    const fingers = [...this.#fingers.values()];
    const [first, second] = fingers;
    const count = Math.max(1, fingers.length);
    const x = fingers.reduce((sum, finger) => sum + finger.x, 0) / count;
    const y = fingers.reduce((sum, finger) => sum + finger.y, 0) / count;
    const spread =
      first === undefined || second === undefined
        ? 0
        : Math.hypot(first.x - second.x, first.y - second.y);
    return { x, y, spread };
  }
}
