// What the page asks of the server's API: the status once, the stream of statuses, and orders.

import { parseStatus, type Reply, type Status } from "./rules.ts";

// Longer than a slow hub takes to answer, short enough to go on with the back-off.
const askTimeoutMs = 10_000;

/** Asks for the status once; whatever goes wrong is an answer too. */
export async function askStatus(url: string): Promise<Reply> {
  try {
    const response = await fetch(url, {
      headers: { Accept: "application/json" },
      cache: "no-store",
      credentials: "same-origin",
      // A hub answers an expired log-in with a redirect to its log-in page.
      redirect: "manual",
      signal: AbortSignal.timeout(askTimeoutMs),
    });
    if (isLogin(response)) {
      return { kind: "login" };
    }
    const status = response.ok ? parseStatus(await response.json()) : null;
    return status === null ? { kind: "unreachable" } : { kind: "status", status };
  } catch {
    // No network, a time-out, or a body that is no JSON: none of them says anything certain.
    return { kind: "unreachable" };
  }
}

/** Sends an order; false when it was refused or did not arrive. */
export async function postOrder(url: string): Promise<boolean> {
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { Accept: "application/json" },
      credentials: "same-origin",
      redirect: "manual",
    });
    return response.ok;
  } catch {
    // No network: the status that is asked for next tells the same.
    return false;
  }
}

/** The stream of statuses; open and close any number of times, one stream at most. */
export class StatusFeed {
  #url: string;
  #heard: (status: Status) => void;
  #lost: () => void;
  #source: EventSource | null = null;

  constructor(url: string, heard: (status: Status) => void, lost: () => void) {
    this.#url = url;
    this.#heard = heard;
    this.#lost = lost;
  }

  open(): void {
    if (this.#source !== null) {
      return;
    }
    const source = new EventSource(this.#url);
    this.#source = source;
    source.addEventListener("message", (event: MessageEvent<string>) => {
      const status = parseJson(event.data);
      if (this.#source === source && status !== null) {
        this.#heard(status);
      }
    });
    // The browser would try again at its own fixed pace: the session's back-off does better.
    source.addEventListener("error", () => {
      if (this.#source === source) {
        this.close();
        this.#lost();
      }
    });
  }

  close(): void {
    this.#source?.close();
    this.#source = null;
  }
}

function isLogin(response: Response): boolean {
  return response.status === 401 || response.status === 403 || response.type === "opaqueredirect";
}

function parseJson(text: string): Status | null {
  try {
    return parseStatus(JSON.parse(text));
  } catch {
    // Not JSON: a proxy's own words, and no status.
    return null;
  }
}

/** What a route of settings answered: its own words, or with `isOk` false a cause and its detail. */
export interface Answer {
  isOk: boolean;
  body: Record<string, unknown>;
}

export const getJson = (url: string): Promise<Answer> => exchange(url, { cache: "no-store" });

export const postJson = (
  url: string,
  body: object,
  signal: AbortSignal | null = null,
): Promise<Answer> =>
  exchange(url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

async function exchange(url: string, init: RequestInit): Promise<Answer> {
  try {
    const response = await fetch(url, { ...init, credentials: "same-origin", redirect: "manual" });
    return { isOk: response.ok, body: await response.json() };
  } catch {
    // No network, or a proxy's own page.
    return { isOk: false, body: {} };
  }
}
