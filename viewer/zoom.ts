// The owner of the zoomed view: the screen becomes larger than its window, and is moved behind it.

export interface ZoomPorts {
  /** While zoomed, the desktop keeps its size, and its picture is drawn larger. */
  zoomed(isZoomed: boolean): void;
}

const maxZoom = 6;

// Fingers never close to exactly where they began.
const nearlyOne = 1.06;

export class Zoom {
  #screen: HTMLElement;
  #window: HTMLElement;
  #ports: ZoomPorts;
  #factor = 1;
  #x = 0;
  #y = 0;

  constructor(screen: HTMLElement, ports: ZoomPorts) {
    this.#screen = screen;
    this.#window = screen.parentElement ?? document.body;
    this.#ports = ports;
    window.addEventListener("resize", () => this.pan(0, 0));
  }

  get isZoomed(): boolean {
    return this.#factor > 1;
  }

  /** Where on the page the view is. */
  get view(): DOMRect {
    return this.#window.getBoundingClientRect();
  }

  /** Enlarges the view around a point of the page. */
  by(factor: number, x: number, y: number): void {
    const wanted = Math.min(Math.max(this.#factor * factor, 1), maxZoom);
    const next = wanted < nearlyOne && factor < 1 ? 1 : wanted;
    if (next === this.#factor) {
      return;
    }
    const { left, top } = this.view;
    const ratio = next / this.#factor;
    const isFirst = this.#factor === 1;
    this.#x = x - left - (x - left - this.#x) * ratio;
    this.#y = y - top - (y - top - this.#y) * ratio;
    this.#factor = next;
    // Told before the screen grows, or the desktop would grow with it; and after it is small again.
    if (isFirst) {
      this.#ports.zoomed(true);
    }
    this.pan(0, 0);
    if (next === 1) {
      this.#ports.zoomed(false);
    }
  }

  /** Moves the view as far as there is something to see; gives how far that was. */
  pan(dx: number, dy: number): { x: number; y: number } {
    const { width, height } = this.view;
    const [oldX, oldY] = [this.#x, this.#y];
    this.#x = Math.min(0, Math.max(this.#x + dx, width * (1 - this.#factor)));
    this.#y = Math.min(0, Math.max(this.#y + dy, height * (1 - this.#factor)));
    const { style } = this.#screen;
    const isZoomed = this.#factor > 1;
    style.inset = isZoomed ? "auto" : "";
    style.left = isZoomed ? `${this.#x}px` : "";
    style.top = isZoomed ? `${this.#y}px` : "";
    style.width = isZoomed ? `${width * this.#factor}px` : "";
    style.height = isZoomed ? `${height * this.#factor}px` : "";
    return { x: this.#x - oldX, y: this.#y - oldY };
  }

  reset(): void {
    this.by(0, 0, 0);
  }
}
