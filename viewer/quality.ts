// How finely pictures are packed: a choice of the reader's, or by what the line carries.

import type RFB from "@novnc/novnc";
import { type Meter, measureRoundTrip, type Reading, ratesBetween } from "./meter.ts";
import { loadSetting, saveSetting } from "./settings.ts";

/** noVNC's quality (JPEG) and compression (zlib), each 0 to 9; 9 and 0 have nothing lost. */
export const levels = {
  low: { quality: 3, compression: 6 },
  medium: { quality: 6, compression: 2 },
  high: { quality: 8, compression: 1 },
  lossless: { quality: 9, compression: 0 },
} as const;

export type Level = keyof typeof levels;

/** One look at the line. */
export interface Sample {
  /** In ms, of any clock that only goes forward. */
  at: number;
  /** In ms; null when it was not measured, or no answer came. */
  roundTrip: number | null;
  bytesPerSecond: number;
}

// The steps of Auto; what is lossless only ever a person asks for.
const steps = ["low", "medium", "high"] as const satisfies Level[];

// Less than this is a clock or a cursor: it says nothing of what the line could carry.
const busyBytesPerSecond = 16_384;

// A line that carries this is none that a smaller picture would help.
const fastBytesPerSecond = 4_000_000;

// Waiting in a queue, in ms: VNC servers keep it near 50 when the line is full.
const queueMs = 60;

// A round trip that is longer from the start, in ms, is taken for a queue as well.
const distantMs = 300;

// The line may have become another one: how much the best round trip is forgotten, in ms a sample.
const forgetMs = 0.5;

const samplesToFall = 2;
const firstHoldMs = 5000;
const longestHoldMs = 60_000;

/** Decides by samples: down at once where the line is full, up again after a while without that. */
export class AutoQuality {
  #step = 1;
  #best = Number.POSITIVE_INFINITY;
  #fullInARow = 0;
  #quietSince: number | null = null;
  #holdMs = firstHoldMs;
  #roseAt: number | null = null;

  get level(): Level {
    return steps[this.#step] ?? "medium";
  }

  take(sample: Sample): Level {
    const { at } = sample;
    this.#quietSince ??= at;
    if (this.#isFull(sample)) {
      this.#fullInARow += 1;
      this.#quietSince = at;
    } else {
      this.#fullInARow = 0;
    }
    if (this.#fullInARow >= samplesToFall && this.#step > 0) {
      this.#fall(at);
    } else if (at - this.#quietSince >= this.#holdMs && this.#step < steps.length - 1) {
      this.#step += 1;
      this.#quietSince = at;
      this.#roseAt = at;
    }
    return this.level;
  }

  // A step that was taken too early is not taken again so soon.
  #fall(at: number): void {
    const wasHasty = this.#roseAt !== null && at - this.#roseAt < 2 * this.#holdMs;
    this.#holdMs = wasHasty ? Math.min(2 * this.#holdMs, longestHoldMs) : firstHoldMs;
    this.#step -= 1;
    this.#fullInARow = 0;
    this.#roseAt = null;
  }

  #isFull({ roundTrip, bytesPerSecond }: Sample): boolean {
    const isBusy = bytesPerSecond > busyBytesPerSecond && bytesPerSecond < fastBytesPerSecond;
    if (roundTrip === null) {
      return isBusy;
    }
    this.#best = Math.min(this.#best + forgetMs, roundTrip);
    const base = Math.min(this.#best, distantMs);
    return isBusy && roundTrip - base > Math.max(queueMs, base / 2);
  }
}

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
