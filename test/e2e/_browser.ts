/** The parts of the browser tests: Chromium's pages, the desktop's inside, and the ways between them. */
import { expect } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Socket, TCPSocketListener } from "bun";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { buildViewer } from "../../viewer/build.ts";
import { type startServer, TOKEN, until } from "../_helpers.ts";

export type Desk = Awaited<ReturnType<typeof startServer>>;

const ROOT = path.join(import.meta.dir, "../..");
export const ARTIFACTS = path.join(ROOT, "test/artifacts");
export const README_PICTURE = path.join(
  ROOT,
  process.env.UPDATE_SCREENSHOT === "1" ? "docs/desktop.png" : "test/artifacts/readme.png",
);
export const SIZE = { width: 1280, height: 800 };
/** On a machine that builds something else at the same time, XFCE takes many times its two seconds. */
export const SLOW_MS = 40_000;

/** So many pictures without a change, each of about 50 ms: XFCE pauses between its parts, but not that long. */
const CALM = 12;

/** Builds the page, unless what is built is newer than all that it is made of. */
export async function ensureViewer() {
  const dir = path.join(ROOT, "viewer");
  const made = fs.statSync(path.join(dir, "dist/assets.json"), { throwIfNoEntry: false });
  const sources = fs.readdirSync(dir, { withFileTypes: true }).filter((file) => file.isFile());
  const touched = sources.map(({ name }) => fs.statSync(path.join(dir, name)).mtimeMs);
  if ((made?.mtimeMs ?? 0) <= Math.max(...touched)) await buildViewer();
}

export const launchBrowser = () =>
  chromium.launch({
    executablePath: Bun.which("chromium") ?? Bun.which("chromium-browser") ?? "chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });

// --- what runs in the page, as text: the tests' types know no DOM ---

/** Before anything else in every page: keeps CSP violations, counts what window and document listen to. */
const WATCH = `{
  const bound = new Map([[window, new Set()], [document, new Set()]]);
  const ids = new WeakMap();
  let last = 0;
  const key = (type, listener, options) => {
    if (!ids.has(listener)) ids.set(listener, ++last);
    return [type, ids.get(listener), Boolean(options?.capture ?? options)].join();
  };
  const { addEventListener, removeEventListener } = EventTarget.prototype;
  EventTarget.prototype.addEventListener = function (type, listener, options) {
    if (listener) bound.get(this ?? window)?.add(key(type, listener, options));
    return addEventListener.call(this ?? window, type, listener, options);
  };
  EventTarget.prototype.removeEventListener = function (type, listener, options) {
    if (listener) bound.get(this ?? window)?.delete(key(type, listener, options));
    return removeEventListener.call(this ?? window, type, listener, options);
  };
  const violations = [];
  addEventListener.call(document, "securitypolicyviolation", (event) => {
    violations.push(event.violatedDirective + " " + event.blockedURI);
  });
  window.watched = {
    violations,
    listeners: () => [...bound.values()].reduce((sum, { size }) => sum + size, 0),
  };
}`;

/** Whether the canvas shows wallpaper (many colours) with a panel above it (writing on one plain colour). */
const painted = (canvas: string) => `(() => {
  const canvas = document.querySelector(${JSON.stringify(canvas)});
  if (!canvas?.width || !canvas.height) return false;
  // A copy is read, not noVNC's own canvas: reading that would take it off the GPU, with a warning.
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const look = (x, y, width, height) => {
    const pixels = new Uint32Array(copy.getImageData(x, y, width, height).data.buffer);
    const counts = new Map();
    for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
    const [[main, times]] = [...counts].sort((a, b) => b[1] - a[1]);
    return { colours: counts.size, main, share: times / pixels.length };
  };
  const panel = look(0, 0, width, 24);
  // Two places of the wallpaper: after a change of size, one side of it is painted before the other.
  const walls = [0, 3].map((side) => look((side * width) >> 2, height >> 1, width >> 2, height >> 2));
  return panel.colours > 20 && panel.share > 0.2
    && walls.every((wall) => wall.colours > 20 && wall.main !== panel.main);
})()`;

const FILLED = `(() => {
  const screen = document.querySelector("#screen");
  const canvas = document.querySelector("#screen canvas");
  return canvas?.width === screen.clientWidth && canvas.height === screen.clientHeight
    && canvas.clientWidth === screen.clientWidth && screen.clientHeight > innerHeight - 60;
})()`;

// --- pages ---

export interface PageOptions extends BrowserContextOptions {
  /** What the console may say in this test, each with its reason. */
  noise?: readonly RegExp[];
}

/** Read back from a canvas that is on the GPU when the window changes its size: noVNC's, and harmless. */
const READBACK = /^Canvas2D: Multiple readback operations using getImageData are faster/;

/** One page in a context of its own. After the test it must have said nothing, on the console or else. */
export async function withPage(
  browser: Browser,
  options: PageOptions,
  use: (page: Page) => Promise<void>,
) {
  const { noise = [], ...context } = options;
  await using opened = await browser.newContext({ viewport: SIZE, ...context });
  await opened.addInitScript(WATCH);
  const page = await opened.newPage();
  page.setDefaultTimeout(SLOW_MS);
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(`thrown: ${error.message}`));
  page.on("console", (message) => {
    const text = message.text();
    const isLoud = ["error", "warning", "assert"].includes(message.type());
    const isNoise = [READBACK, ...noise].some((known) => known.test(text));
    if ((isLoud || /security policy/i.test(text)) && !isNoise)
      problems.push(`${message.type()}: ${text}`);
  });
  await use(page);
  expect(problems).toEqual([]);
  expect(await page.evaluate<string[]>("watched.violations")).toEqual([]);
}

export const inState = (page: Page, state: "connected" | "connecting" | "waiting" | "stopped") =>
  page.locator(`body[data-state="${state}"]`).waitFor();

/** Waits in the test, not in the page: its CSP lets no text be run as a script there. */
const holds = (page: Page, what: string, condition: string) =>
  until(what, () => page.evaluate<boolean>(condition), SLOW_MS);

/** The desktop is there: connected, wallpaper and panel painted, and nothing lies over it. */
export async function seesDesktop(page: Page) {
  await inState(page, "connected");
  await holds(page, "wallpaper and panel are painted", painted("#screen canvas"));
  await page.locator("#frame canvas").waitFor({ state: "detached" });
  await page.locator("#notice").waitFor({ state: "hidden" });
}

export const fillsWindow = (page: Page) => holds(page, "the desktop fills the window", FILLED);

/** Whether the last picture is kept, and how strongly it shows. */
export const keptFrame = async (page: Page) => ({
  painted: await page.evaluate<boolean>(painted("#frame canvas")),
  opacity: await page.evaluate<string>(
    'getComputedStyle(document.querySelector("#frame canvas")).opacity',
  ),
});

/** By how many pixels a part of the page holds more than it shows. */
export const overflow = (page: Page, part: string) =>
  page.evaluate<number>(
    `(part => part.scrollWidth - part.clientWidth)(document.querySelector("${part}"))`,
  );

/** The colour behind the middle of the panel, 0 to 255 of grey: XFCE's default theme has a light one. */
export const panelShade = (page: Page) =>
  page.evaluate<number>(`(() => {
    const canvas = document.querySelector("#screen canvas");
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    return copy.getImageData(canvas.width >> 1, 12, 1, 1).data[0];
  })()`);

/** How many listeners are bound to window and document. */
export const listeners = (page: Page) => page.evaluate<number>("watched.listeners()");

export const screenshot = (page: Page, name: string) =>
  page.screenshot({ path: path.join(ARTIFACTS, name), animations: "disabled" });

/** Waits until the page looks the same many times in a row: panel and icons come after the wallpaper. */
export async function settles(page: Page) {
  let last = "";
  let same = 0;
  await until(
    "the desktop is drawn to the end",
    async () => {
      const now = Bun.SHA256.hash(await page.screenshot(), "hex");
      same = now === last ? same + 1 : 0;
      last = now;
      return same >= CALM;
    },
    SLOW_MS,
  );
}

/** As fingers do it: Shift is held for what is printed on the upper half of a key. */
export async function typeKeys(page: Page, text: string) {
  for (const char of text) {
    const isShifted = /[A-Z~!@#$%^&*()_+{}|:"<>?]/.test(char);
    const key = char === "\n" ? "Enter" : char === " " ? "Space" : char;
    await page.keyboard.press(isShifted ? `Shift+${key}` : key);
  }
}

// --- the desktop from inside ---

const read = (file: string) => {
  try {
    return fs.readFileSync(file, "utf8");
  } catch {
    return ""; // ended meanwhile
  }
};

/** The processes of this desktop with this name, as in `ps -o comm`. */
export const processesOf = (desk: Desk, name: string) =>
  fs
    .readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid) && read(`/proc/${pid}/comm`).trim() === name)
    .filter((pid) => read(`/proc/${pid}/environ`).includes(desk.dir));

/** A program's environment as the desktop's own programs have it, once the desktop is there. */
async function sessionEnv(desk: Desk): Promise<Record<string, string>> {
  const environ = await until(
    "a session to run programs in",
    () => read(`/proc/${processesOf(desk, "xfwm4")[0]}/environ`),
    SLOW_MS,
  );
  return Object.fromEntries(
    environ
      .split("\0")
      .filter(Boolean)
      .map((entry) => [entry.slice(0, entry.indexOf("=")), entry.slice(entry.indexOf("=") + 1)]),
  );
}

/** Runs a program on the desktop to its end, and returns what it printed. */
export async function onDesktop(desk: Desk, command: string[], stdin = "") {
  const child = Bun.spawn(command, {
    env: await sessionEnv(desk),
    stdio: [Buffer.from(stdin), "pipe", "ignore"],
  });
  return await child.stdout.text();
}

/** Starts a program on the desktop that stays. */
export async function startOnDesktop(desk: Desk, command: string[]) {
  Bun.spawn(command, {
    env: await sessionEnv(desk),
    cwd: desk.dir,
    stdio: ["ignore", "ignore", "ignore"],
  }).unref();
}

export const desktopClipboard = (desk: Desk) =>
  onDesktop(desk, ["xclip", "-selection", "clipboard", "-o", "-target", "UTF8_STRING"]);

/** Copies on the desktop. xclip goes to the background to hand the text out: it must not hold our pipe. */
export async function copyOnDesktop(desk: Desk, text: string) {
  const child = Bun.spawn(["xclip", "-selection", "clipboard", "-i"], {
    env: await sessionEnv(desk),
    stdio: [Buffer.from(text), "ignore", "ignore"],
  });
  expect(await child.exited).toBe(0);
}

export async function desktopSize(desk: Desk) {
  const said = await onDesktop(desk, ["xrandr", "--current"]);
  return /current (\d+) x (\d+)/.exec(said)?.slice(1).map(Number);
}

export async function statusOf(desk: Desk) {
  const response = await desk.ask("desktop/api/status");
  return (await response.json()) as { state: string; since: string; viewers: number };
}

/** Sooner than this after its start, the server takes the end of a desktop for a failure, not for a log-out. */
const YOUNG_MS = 6_000;

/** Logs out, as the panel's menu does it. XFCE refuses that until it has started all of its own programs. */
export async function logOut(desk: Desk) {
  const state = "dbus-send --print-reply --dest=org.xfce.SessionManager /org/xfce/SessionManager";
  const ask = [...state.split(" "), "org.xfce.Session.Manager.GetState"];
  await until(
    "a session that can be left",
    async () => {
      const { since } = await statusOf(desk);
      const isOld = Date.now() - Date.parse(since) > YOUNG_MS;
      return isOld && (await onDesktop(desk, ask)).includes("uint32 1");
    },
    SLOW_MS,
  );
  await startOnDesktop(desk, ["xfce4-session-logout", "--logout"]);
}

/** A terminal on the desktop that has the keyboard. */
export async function openTerminal(desk: Desk, ...options: string[]) {
  await startOnDesktop(desk, ["xfce4-terminal", "--disable-server", ...options]);
  await until(
    "the terminal has the keyboard",
    async () => {
      const id = (await onDesktop(desk, ["xdotool", "getactivewindow"])).trim();
      const name = id && (await onDesktop(desk, ["xprop", "-id", id, "WM_CLASS"]));
      return name.includes("xfce4-terminal");
    },
    SLOW_MS,
  );
}

// --- the ways between ---

type Leg = Socket<{ other: Leg | undefined; held: Uint8Array[] }>;

/** A wire between browser and server: it can be cut, be down, or swallow all that is said, like a dead Wi-Fi. */
export class Wire {
  #mode: "up" | "down" | "silent" = "up";
  #legs = new Set<Leg>();
  #listener: TCPSocketListener<Leg["data"]>;
  readonly url: URL;

  constructor(server: URL) {
    const close = (leg: Leg) => {
      this.#legs.delete(leg);
      leg.data.other?.end();
    };
    const socket: Bun.SocketHandler<Leg["data"]> = {
      open: (leg) => {
        this.#legs.add(leg);
      },
      data: (leg, bytes) => {
        leg.data.held.push(Uint8Array.from(bytes));
        this.#pass(leg);
      },
      drain: (leg) => leg.data.other && this.#pass(leg.data.other),
      close,
      error: close,
    };
    const near: Bun.SocketHandler<Leg["data"]> = {
      ...socket,
      open: async (leg) => {
        leg.data = { other: undefined, held: [] };
        if (this.#mode === "down") return leg.terminate();
        this.#legs.add(leg);
        leg.data.other = await Bun.connect<Leg["data"]>({
          hostname: server.hostname,
          port: Number(server.port),
          data: { other: leg, held: [] },
          socket,
        });
        this.#pass(leg);
      },
    };
    this.#listener = Bun.listen<Leg["data"]>({ hostname: "127.0.0.1", port: 0, socket: near });
    this.url = new URL(server);
    this.url.port = String(this.#listener.port);
  }

  /** How many connections it carries now. */
  get size() {
    return this.#legs.size / 2;
  }

  #pass(leg: Leg) {
    const { other, held } = leg.data;
    for (let bytes = held[0]; other && this.#mode === "up" && bytes; bytes = held[0]) {
      const written = Math.max(0, other.write(bytes));
      if (written < bytes.length) {
        held[0] = bytes.subarray(written);
        return;
      }
      held.shift();
    }
  }

  /** Ends all connections at once; new ones are taken. */
  cut() {
    for (const leg of this.#legs) leg.terminate();
  }

  /** Ends all connections, and takes no new ones. */
  down() {
    this.#mode = "down";
    this.cut();
  }

  /** Nothing comes through any more, and nobody is told. */
  silence() {
    this.#mode = "silent";
  }

  /** All is well again; what was held back is passed on, as TCP does it. */
  up() {
    this.#mode = "up";
    for (const leg of this.#legs) this.#pass(leg);
  }

  [Symbol.dispose]() {
    this.#listener.stop(true);
    this.cut();
  }
}

interface Relay {
  far: WebSocket;
  near?: Bun.ServerWebSocket<Relay>;
  early: (string | Uint8Array)[];
}

/** A reverse proxy as people put before a server, under a path that it takes off or leaves on. */
export function reverseProxy(server: URL, prefix: string, strips: boolean) {
  const proxy = Bun.serve<Relay>({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0,
    async fetch(request, self) {
      const asked = new URL(request.url);
      if (!asked.pathname.startsWith(prefix)) return new Response("not here", { status: 404 });
      const pathname = strips ? `/${asked.pathname.slice(prefix.length)}` : asked.pathname;
      const target = new URL(pathname + asked.search, server.origin);
      const { headers, method } = request;
      if (headers.get("upgrade") === "websocket") return relay(self, request, target);
      const body = method === "POST" ? await request.arrayBuffer() : null;
      const init = { method, headers, body, redirect: "manual", decompress: false } as const;
      const { status, headers: answered, body: stream } = await fetch(target, init);
      return new Response(stream, { status, headers: answered });
    },
    websocket: {
      open(near) {
        near.data.near = near;
        for (const bytes of near.data.early.splice(0)) near.send(bytes);
      },
      message: ({ data }, bytes) => data.far.send(bytes),
      close: ({ data }) => data.far.close(),
    },
  });
  return {
    url: new URL(`${prefix}?token=${TOKEN}`, proxy.url),
    [Symbol.asyncDispose]: () => proxy.stop(true),
  };
}

async function relay(self: Bun.Server<Relay>, request: Request, target: URL) {
  target.protocol = "ws:";
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const headers = Object.fromEntries(
    ["host", "origin", "cookie"].flatMap((name) => {
      const value = request.headers.get(name);
      return value === null ? [] : [[name, value]];
    }),
  );
  const far = new WebSocket(target, { headers });
  const data: Relay = { far, early: [] };
  far.binaryType = "arraybuffer";
  far.onopen = () => resolve(true);
  far.onmessage = ({ data: bytes }) => {
    if (data.near) data.near.send(bytes);
    else data.early.push(bytes);
  };
  far.onclose = ({ code, reason }) => {
    resolve(false);
    data.near?.close(code === 1006 ? 1001 : code, reason);
  };
  if (!(await promise)) return new Response("the server refused it", { status: 502 });
  return self.upgrade(request, { data })
    ? undefined
    : new Response("no WebSocket", { status: 400 });
}
