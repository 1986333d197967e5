// Counts what goes over the connection. It only counts: who wants a rate takes two readings.

import { encodingOf, type Reading } from "./rates.ts";

export { type Rates, type Reading, ratesBetween } from "./rates.ts";

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
