// Counts what goes over the connection. It only counts: who wants a rate takes two readings.

/** Totals since the page was loaded; `at` is in ms. */
export interface Reading {
  at: number;
  received: number;
  sent: number;
  /** Screen refreshes of this computer in which something arrived: pictures, nearly always. */
  frames: number;
}

export interface Rates {
  receivedPerSecond: number;
  sentPerSecond: number;
  framesPerSecond: number;
}

// RFC 6143, 7.7, and the registry for the rest: what noVNC asks for.
const encodings: Readonly<Record<number, string>> = {
  0: "Raw",
  1: "CopyRect",
  2: "RRE",
  5: "Hextile",
  6: "Zlib",
  7: "Tight",
  16: "ZRLE",
  21: "JPEG",
  50: "H.264",
  [-260]: "TightPNG",
};

// FramebufferUpdate (RFC 6143, 7.6.1): its header, and that of its first rectangle.
const updateBytes = 16;

// A probe that takes longer says nothing about the line any more.
const roundTripTimeoutMs = 10_000;

export class Meter {
  #received = 0;
  #sent = 0;
  #frames = 0;
  #encoding: string | null = null;
  #isFrameCounted = false;

  /** Counts this socket from now on; noVNC has to get it after this. */
  watch(socket: WebSocket): void {
    socket.addEventListener("message", (event: MessageEvent<unknown>) => {
      if (event.data instanceof ArrayBuffer) {
        this.#heard(event.data);
      }
    });
    const send = socket.send.bind(socket);
    socket.send = (data) => {
      this.#sent += data instanceof Blob ? data.size : byteLength(data);
      send(data);
    };
  }

  read(): Reading {
    return {
      at: performance.now(),
      received: this.#received,
      sent: this.#sent,
      frames: this.#frames,
    };
  }

  /** How the last picture that could be recognised was packed. */
  get encoding(): string | null {
    return this.#encoding;
  }

  #heard(data: ArrayBuffer): void {
    this.#received += data.byteLength;
    this.#encoding = encodingOf(data) ?? this.#encoding;
    if (!this.#isFrameCounted) {
      this.#isFrameCounted = true;
      requestAnimationFrame(() => {
        this.#isFrameCounted = false;
        this.#frames += 1;
      });
    }
  }
}

/** What happened between two readings, a second. */
export function ratesBetween(before: Reading, after: Reading): Rates {
  const seconds = Math.max(0.001, (after.at - before.at) / 1000);
  return {
    receivedPerSecond: (after.received - before.received) / seconds,
    sentPerSecond: (after.sent - before.sent) / seconds,
    framesPerSecond: (after.frames - before.frames) / seconds,
  };
}

/** The encoding of the picture that begins with this message, when one begins here. */
export function encodingOf(data: ArrayBuffer): string | null {
  if (data.byteLength < updateBytes) {
    return null;
  }
  const view = new DataView(data);
  // Type 0, one byte of padding, and at least one rectangle; all else is the middle of something.
  if (view.getUint16(0) !== 0 || view.getUint16(2) === 0) {
    return null;
  }
  return encodings[view.getInt32(12)] ?? null;
}

/** How long the server takes to answer a request, in ms; null when it does not. */
export async function measureRoundTrip(url: string): Promise<number | null> {
  const start = performance.now();
  try {
    const response = await fetch(url, {
      method: "HEAD",
      cache: "no-store",
      signal: AbortSignal.timeout(roundTripTimeoutMs),
    });
    return response.ok ? performance.now() - start : null;
  } catch {
    // No network, or too late: no figure.
    return null;
  }
}

function byteLength(data: string | ArrayBufferLike | ArrayBufferView): number {
  return typeof data === "string" ? new Blob([data]).size : data.byteLength;
}
