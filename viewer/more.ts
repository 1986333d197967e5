// The owner of the More menu: the numbers of the connection, the desktop's restart and end, the
// ways out.

import { byId, copyText } from "./dom.ts";
import { measureRoundTrip, type Meter, type Rates, type Reading, ratesBetween } from "./meter.ts";
import type { Panels } from "./panels.ts";
import type { Reply } from "./rules.ts";
import { formatDuration, formatRate, type Text, type TextKey } from "./text.ts";
import type { Toast } from "./toast.ts";

export interface MorePorts {
  text: Text;
  toast: Toast;
  panels: Panels;
  meter: Meter;
  version: string;
  healthUrl: string;
  /** The state of the page, as a word of the program. */
  state(): string;
  ask(): Promise<Reply>;
  order(what: "restart" | "stop"): Promise<boolean>;
  /** The page is about to be left because the reader wants it. */
  leaving(): void;
}

const refreshMs = 1000;

// Only while somebody looks; often enough to see a change.
const roundTripMs = 3000;

export function createMoreMenu(ports: MorePorts): void {
  const { text, toast, panels } = ports;
  const ask = createQuestion();
  for (const what of ["restart", "stop"] as const) {
    byId(`${what}-entry`, HTMLElement).addEventListener("click", async () => {
      panels.close();
      const isSure = await ask(text(`more.${what}`));
      if (isSure && !(await ports.order(what))) {
        toast.show(text("action.refused"));
      }
    });
  }
  const { auth = "", hubHome = "" } = document.body.dataset;
  const hub = byId("hub-entry", HTMLAnchorElement);
  const logout = byId("logout-form", HTMLFormElement);
  hub.hidden = hubHome === "";
  hub.href = hubHome;
  // Where the file system is the guard there is nothing to log out of.
  logout.hidden = auth === "open";
  byId("account", HTMLElement).hidden = hub.hidden && logout.hidden;
  logout.addEventListener("submit", (event) => {
    ports.leaving();
    // The Hub may be on another host, to which the page's policy lets no form lead.
    if (auth === "hub") {
      event.preventDefault();
      location.assign(logout.action);
    }
  });
  const numbers = new Numbers(ports);
  panels.on("numbers", { opened: () => numbers.start(), closed: () => numbers.stop() });
}

/** Asks in a dialog, with the way back as the first choice. */
function createQuestion(): (title: string) => Promise<boolean> {
  const dialog = byId("confirm", HTMLDialogElement);
  return (title) => {
    byId("confirm-title", HTMLElement).textContent = title;
    byId("confirm-yes", HTMLElement).textContent = title;
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((resolve) => {
      const closed = () => resolve(dialog.returnValue === "yes");
      dialog.addEventListener("close", closed, { once: true });
    });
  };
}

class Numbers {
  #ports: MorePorts;
  #list = byId("numbers-list", HTMLElement);
  #timers: ReturnType<typeof setInterval>[] = [];
  #before: Reading;
  #rates: Rates | null = null;
  #roundTrip: number | null = null;

  constructor(ports: MorePorts) {
    this.#ports = ports;
    this.#before = ports.meter.read();
    byId("numbers-copy", HTMLElement).addEventListener("click", () => void this.#copy());
  }

  start(): void {
    this.#before = this.#ports.meter.read();
    this.#rates = null;
    this.#roundTrip = null;
    this.#show();
    void this.#measure();
    this.#timers = [
      setInterval(() => this.#count(), refreshMs),
      setInterval(() => void this.#measure(), roundTripMs),
    ];
  }

  stop(): void {
    for (const timer of this.#timers) {
      clearInterval(timer);
    }
  }

  #count(): void {
    const now = this.#ports.meter.read();
    this.#rates = ratesBetween(this.#before, now);
    this.#before = now;
    this.#show();
  }

  async #measure(): Promise<void> {
    this.#roundTrip = await measureRoundTrip(this.#ports.healthUrl);
    this.#show();
  }

  #show(): void {
    const { text, meter } = this.#ports;
    const rates = this.#rates;
    const rows: [TextKey, string | null | undefined][] = [
      ["numbers.state", byId("status", HTMLElement).textContent],
      ["numbers.round-trip", this.#roundTrip && formatDuration(this.#roundTrip, text)],
      ["numbers.frames", rates && text("unit.frames", { n: Math.round(rates.framesPerSecond) })],
      ["numbers.received", rates && formatRate(rates.receivedPerSecond, text)],
      ["numbers.sent", rates && formatRate(rates.sentPerSecond, text)],
      ["numbers.encoding", meter.encoding],
      ["numbers.size", sizes()],
    ].map(([key, value]) => [key as TextKey, value as string | null]);
    this.#list.replaceChildren(
      ...rows.flatMap(([key, value]) => [element("dt", text(key)), element("dd", value ?? "–")]),
    );
  }

  // In English and in the program's own words, for who reads it may not be who sent it.
  async #copy(): Promise<void> {
    const { ports, rates } = { ports: this.#ports, rates: this.#rates };
    const reply = await ports.ask();
    const status = reply.kind === "status" ? reply.status : null;
    const lines = [
      `jupyter-desktop ${ports.version}`,
      `time: ${new Date().toISOString()}`,
      `page: ${ports.state()}`,
      `desktop: ${status?.state ?? reply.kind}, cause: ${status?.cause ?? "none"}, attempt: ${status?.attempt ?? "?"}`,
      `server: ${status?.version ?? "?"}`,
      `round trip: ${this.#roundTrip === null ? "?" : `${Math.round(this.#roundTrip)} ms`}`,
      `received: ${Math.round(rates?.receivedPerSecond ?? 0)} B/s, sent: ${Math.round(rates?.sentPerSecond ?? 0)} B/s`,
      `pictures: ${Math.round(rates?.framesPerSecond ?? 0)}/s, encoding: ${ports.meter.encoding ?? "?"}`,
      `size: ${sizes()}`,
      `window: ${innerWidth} × ${innerHeight} at ${devicePixelRatio}`,
      `secure context: ${isSecureContext}`,
      `browser: ${navigator.userAgent}`,
      `languages: ${navigator.languages.join(", ")}`,
    ];
    const isCopied = await copyText(lines.join("\n"));
    const key = isCopied ? "clipboard.copied" : "clipboard.copy-failed";
    ports.toast.show(ports.text(key));
  }
}

function sizes(): string | null {
  const canvas = document.querySelector<HTMLCanvasElement>("#screen canvas");
  return canvas === null ? null : `${canvas.width} × ${canvas.height}`;
}

function element(name: string, text: string): HTMLElement {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
