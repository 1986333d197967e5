// How finely pictures are packed: a choice of the reader's, or by what the line carries.

import type RFB from "@novnc/novnc";
import { AutoQuality, busyBytesPerSecond, type Level, levels } from "./auto.ts";
import { encodingsMessageType, withoutQuality } from "./choices.ts";
import { type Meter, measureRoundTrip, type Reading, ratesBetween } from "./meter.ts";
import { loadSetting, saveSetting } from "./settings.ts";

export interface QualityPorts {
  meter: Meter;
  /** Something small that the server answers at once. */
  probeUrl: string;
  isVisible(): boolean;
}

const sampleMs = 1000;

export class Quality {
  #select: HTMLSelectElement;
  #ports: QualityPorts;
  #rfb: RFB | null = null;
  #auto = new AutoQuality();
  #timer: ReturnType<typeof setInterval> | undefined;
  #last: Reading;
  #isAsking = false;

  constructor(select: HTMLSelectElement, ports: QualityPorts) {
    this.#select = select;
    this.#ports = ports;
    this.#last = ports.meter.read();
    select.value = loadSetting("quality") ?? "auto";
    if (select.value === "") {
      select.value = "auto";
    }
    select.addEventListener("change", () => {
      saveSetting("quality", select.value);
      this.#apply();
    });
  }

  /** What pictures are packed with now. */
  get level(): Level {
    const { value } = this.#select;
    return isLevel(value) ? value : this.#auto.level;
  }

  /** Takes noVNC's quality off this socket where none is wanted; noVNC has to get it after this. */
  guard(socket: WebSocket): void {
    const send = socket.send.bind(socket);
    socket.send = (data) => {
      const isEncodings = data instanceof Uint8Array && data[0] === encodingsMessageType;
      send(isEncodings && this.level === "lossless" ? withoutQuality(data) : data);
    };
  }

  use(rfb: RFB): void {
    this.#rfb = rfb;
    this.#last = this.#ports.meter.read();
    clearInterval(this.#timer);
    this.#timer = setInterval(() => void this.#look(), sampleMs);
    this.#apply();
  }

  release(): void {
    clearInterval(this.#timer);
    this.#rfb = null;
  }

  #apply(): void {
    if (this.#rfb === null) {
      return;
    }
    const { quality, compression } = levels[this.level];
    this.#rfb.qualityLevel = quality;
    this.#rfb.compressionLevel = compression;
    this.#select.dataset.level = this.level;
  }

  // Nothing is sent for a tab that nobody sees, nor on a quiet line that is at its best.
  async #look(): Promise<void> {
    if (this.#isAsking || this.#select.value !== "auto" || !this.#ports.isVisible()) {
      return;
    }
    const reading = this.#ports.meter.read();
    const { receivedPerSecond: bytesPerSecond } = ratesBetween(this.#last, reading);
    this.#last = reading;
    const isWorthIt = bytesPerSecond > busyBytesPerSecond || this.#auto.level !== "high";
    if (!isWorthIt) {
      return;
    }
    this.#isAsking = true;
    const roundTrip = await measureRoundTrip(this.#ports.probeUrl);
    this.#isAsking = false;
    this.#auto.take({ at: performance.now(), roundTrip, bytesPerSecond });
    this.#apply();
  }
}

function isLevel(value: string): value is Level {
  return Object.hasOwn(levels, value);
}
