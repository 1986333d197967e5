// Which quality a line carries, decided by numbers alone.

/** noVNC's quality (JPEG) and compression (zlib), each 0 to 9. Lossless ones are asked for without the first. */
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
export const busyBytesPerSecond = 16_384;

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
