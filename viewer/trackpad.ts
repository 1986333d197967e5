// The owner of fingers on the screen: in trackpad mode they move a pointer instead of pointing, and
// in both modes two of them zoom the view.

import { type Button, type Finger, Gestures } from "./gestures.ts";
import type { Zoom } from "./zoom.ts";

// A pointer that comes this near to the edge of a zoomed view draws the view along.
const edgePx = 40;

/** What noVNC tells of its own gestures. */
interface GestureDetail {
  type: string;
  clientX: number;
  clientY: number;
  magnitudeX: number;
  magnitudeY: number;
}

export class Trackpad {
  #screen: HTMLElement;
  #zoom: Zoom;
  #isOn = false;
  #x = 0;
  #y = 0;
  #buttons = 0;
  #gestures: Gestures;
  #last = { spread: 0, x: 0, y: 0 };

  constructor(screen: HTMLElement, zoom: Zoom) {
    this.#screen = screen;
    this.#zoom = zoom;
    this.#gestures = new Gestures({
      move: (dx, dy) => this.#move(dx, dy),
      button: (button, isDown) => this.#press(button, isDown),
      scroll: (dx, dy) => this.#scroll(dx, dy),
      zoom: (factor, x, y) => zoom.by(factor, x, y),
      after: (ms, run) => {
        const timer = setTimeout(run, ms);
        return () => clearTimeout(timer);
      },
    });
    for (const type of ["touchstart", "touchmove", "touchend", "touchcancel"] as const) {
      screen.addEventListener(type, (event) => this.#touched(event), {
        capture: true,
        passive: false,
      });
    }
    for (const type of ["gesturestart", "gesturemove", "gestureend"]) {
      screen.addEventListener(type, (event) => this.#pinched(event), { capture: true });
    }
  }

  get isOn(): boolean {
    return this.#isOn;
  }

  set isOn(isOn: boolean) {
    this.#isOn = isOn;
    this.#gestures.cancel();
    const box = this.#screen.getBoundingClientRect();
    [this.#x, this.#y] = [box.left + box.width / 2, box.top + box.height / 2];
    if (isOn) {
      this.#say("mousemove");
    }
  }

  #touched(event: TouchEvent): void {
    if (!this.#isOn) {
      return;
    }
    // noVNC must not see them: to it a finger is where the pointer is.
    event.stopPropagation();
    event.preventDefault();
    const fingers = [...event.changedTouches].map(fingerOf);
    if (event.type === "touchmove") {
      this.#gestures.move(fingers);
    } else if (event.type === "touchcancel") {
      this.#gestures.cancel();
    } else {
      for (const finger of fingers) {
        if (event.type === "touchstart") {
          this.#gestures.down(finger, event.timeStamp);
        } else {
          this.#gestures.up(finger.id, event.timeStamp);
        }
      }
    }
  }

  // noVNC sends a pinch to the desktop as Ctrl with the wheel, where few programs mind it.
  #pinched(event: Event): void {
    const { type, clientX, clientY, magnitudeX, magnitudeY } = detailOf(event) ?? {};
    const isPan = type === "twodrag" && this.#zoom.isZoomed;
    if (clientX === undefined || clientY === undefined || (type !== "pinch" && !isPan)) {
      return;
    }
    event.stopPropagation();
    const now = isPan
      ? { spread: 0, x: magnitudeX ?? 0, y: magnitudeY ?? 0 }
      : { spread: Math.hypot(magnitudeX ?? 0, magnitudeY ?? 0), x: clientX, y: clientY };
    if (event.type === "gesturemove") {
      if (isPan) {
        this.#zoom.pan(now.x - this.#last.x, now.y - this.#last.y);
      } else {
        this.#zoom.by(now.spread / Math.max(1, this.#last.spread), clientX, clientY);
      }
    }
    this.#last = now;
  }

  #move(dx: number, dy: number): void {
    const box = this.#canvasBox();
    const view = this.#zoom.view;
    this.#x = clamp(this.#x + dx, box.left, box.right - 1);
    this.#y = clamp(this.#y + dy, box.top, box.bottom - 1);
    const [overX, overY] = [
      overshoot(this.#x, view.left + edgePx, view.right - edgePx),
      overshoot(this.#y, view.top + edgePx, view.bottom - edgePx),
    ];
    if (this.#zoom.isZoomed && (overX !== 0 || overY !== 0)) {
      const moved = this.#zoom.pan(-overX, -overY);
      this.#x += moved.x;
      this.#y += moved.y;
    }
    this.#say("mousemove");
  }

  #press(button: Button, isDown: boolean): void {
    const bit = { 0: 1, 1: 4, 2: 2 }[button];
    this.#buttons = isDown ? this.#buttons | bit : this.#buttons & ~bit;
    this.#say(isDown ? "mousedown" : "mouseup", button);
  }

  #scroll(dx: number, dy: number): void {
    if (this.#zoom.isZoomed) {
      this.#zoom.pan(dx, dy);
      return;
    }
    const init = { ...this.#init(), deltaX: -dx * 2, deltaY: -dy * 2 };
    this.#screen.querySelector("canvas")?.dispatchEvent(new WheelEvent("wheel", init));
  }

  // noVNC captures the mouse at a press: from then on it listens to the window.
  #say(type: string, button = 0): void {
    const canvas = this.#screen.querySelector("canvas");
    const isCaptured = type === "mouseup" || (type === "mousemove" && this.#buttons !== 0);
    (isCaptured ? window : canvas)?.dispatchEvent(
      new MouseEvent(type, { ...this.#init(), button }),
    );
  }

  #init(): MouseEventInit {
    return {
      clientX: this.#x,
      clientY: this.#y,
      buttons: this.#buttons,
      bubbles: true,
      cancelable: true,
    };
  }

  #canvasBox(): DOMRect {
    return (this.#screen.querySelector("canvas") ?? this.#screen).getBoundingClientRect();
  }
}

function fingerOf({ identifier, clientX, clientY }: Touch): Finger {
  return { id: identifier, x: clientX, y: clientY };
}

// Safari has events of the same name without a detail.
function detailOf(event: Event): Partial<GestureDetail> | null {
  return event instanceof CustomEvent ? event.detail : null;
}

const clamp = (value: number, low: number, high: number) =>
  Math.min(Math.max(value, low), Math.max(low, high));

const overshoot = (value: number, low: number, high: number) =>
  value < low ? value - low : value > high ? value - high : 0;
