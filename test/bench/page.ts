// From the click to the painted desktop, in Chromium, for our page and for upstream's; and XFCE
// alone, which no page can beat. One criterion of "painted" for all three.

import { join } from "node:path";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { logIn, startHub } from "../e2e/_hub.ts";
import {
  endpointOf,
  freshDir,
  pageToken,
  root,
  spawn,
  spawnJupyter,
  spawnOurs,
  untilListening,
  venv,
} from "./bridges.ts";
import { type Endpoint, Viewer } from "./client.ts";

const viewport = { width: 1280, height: 800 };
/** XFCE's panel is 26 pixels high; its lower edge is left out. */
const stripHeight = 24;
const centre = { width: 320, height: 200 };
const pollMs = 25;
const paintLimitMs = 60_000;
/** XFCE goes on starting things after it is painted; a visit to a desktop that is up comes later. */
const desktopSettleMs = 2000;
/** What a page still loads after the desktop is there belongs to its weight too. */
const afterPaintMs = 500;

/**
 * The desktop is painted when the middle shows a wallpaper (many colours) and the top shows a panel:
 * some writing on one plain colour that is not the wallpaper's. Positions do not matter, so this
 * works on a canvas and on raw rectangles alike. Runs in the page too: it may use nothing outside.
 */
function painted(strip: ArrayLike<number>, middle: ArrayLike<number>): boolean {
  const count = (pixels: ArrayLike<number>) => {
    const counts = new Map<number, number>();
    for (let i = 0; i + 3 < pixels.length; i += 4) {
      const colour = ((pixels[i] ?? 0) << 16) | ((pixels[i + 1] ?? 0) << 8) | (pixels[i + 2] ?? 0);
      counts.set(colour, (counts.get(colour) ?? 0) + 1);
    }
    let main = -1;
    for (const [colour, times] of counts) if (times > (counts.get(main) ?? 0)) main = colour;
    const share = (4 * (counts.get(main) ?? 0)) / Math.max(1, pixels.length);
    return { colours: counts.size, main, share };
  };
  const panel = count(strip);
  const wallpaper = count(middle);
  const hasPanel = panel.colours > 20 && panel.share > 0.4;
  return hasPanel && wallpaper.colours > 20 && panel.main !== wallpaper.main;
}

/** Looks at the largest canvas on the page and says when it is painted, in milliseconds of the clock. */
const watchPage = `{
  const painted = ${painted};
  const copy = (canvas, x, y, width, height) => {
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, x, y, width, height, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
  const timer = setInterval(() => {
    const [canvas] = [...document.querySelectorAll("canvas")]
      .filter((canvas) => canvas.width > ${centre.width} && canvas.checkVisibility())
      .sort((a, b) => b.width * b.height - a.width * a.height);
    if (!canvas) return;
    const strip = copy(canvas, 0, 0, canvas.width, ${stripHeight});
    const x = (canvas.width - ${centre.width}) >> 1;
    const y = (canvas.height - ${centre.height}) >> 1;
    if (!painted(strip, copy(canvas, x, y, ${centre.width}, ${centre.height}))) return;
    clearInterval(timer);
    console.log("bench: painted at " + Date.now());
  }, ${pollMs});
}`;

// --- a screen without a browser ---

/** A region of the screen as raw pixels, by RFB; the rectangles' order does not matter. */
class Screen {
  #viewer: Viewer;
  #bytes: Buffer[];
  #taken = 0;
  width = 0;
  height = 0;

  private constructor(viewer: Viewer, bytes: Buffer[]) {
    this.#viewer = viewer;
    this.#bytes = bytes;
  }

  static async open(endpoint: Endpoint): Promise<Screen> {
    const bytes: Buffer[] = [];
    const viewer = await Viewer.open(endpoint, (part) => bytes.push(part));
    const screen = new Screen(viewer, bytes);
    await screen.#take(12);
    screen.#send(Buffer.from("RFB 003.008\n"));
    await screen.#take((await screen.#take(1)).readUInt8());
    screen.#send(Buffer.from([1]));
    await screen.#take(4);
    // Shared: another viewer may be there.
    screen.#send(Buffer.from([1]));
    const init = await screen.#take(24);
    await screen.#take(init.readUInt32BE(20));
    screen.width = init.readUInt16BE(0);
    screen.height = init.readUInt16BE(2);
    // SetEncodings with Raw alone.
    screen.#send(Buffer.from([2, 0, 0, 1, 0, 0, 0, 0]));
    return screen;
  }

  #send(message: Buffer) {
    this.#viewer.send(this.#viewer.prepare(message));
  }

  async #take(count: number): Promise<Buffer> {
    await this.#viewer.arrived(this.#taken + count);
    const all = Buffer.concat(this.#bytes);
    this.#bytes.length = 0;
    this.#bytes.push(all.subarray(count));
    this.#taken += count;
    return all.subarray(0, count);
  }

  async #capture(region: [x: number, y: number, width: number, height: number]): Promise<Buffer> {
    const request = Buffer.alloc(10);
    request[0] = 3;
    region.forEach((value, i) => {
      request.writeUInt16BE(value, 2 + 2 * i);
    });
    this.#send(request);
    for (;;) {
      const type = (await this.#take(1)).readUInt8();
      if (type === 0) break;
      // ServerCutText; a Bell (2) has nothing more.
      if (type === 3) await this.#take((await this.#take(7)).readUInt32BE(3));
      else if (type !== 2) throw new Error(`unexpected RFB message ${type}`);
    }
    const parts: Buffer[] = [];
    const rectangles = (await this.#take(3)).readUInt16BE(1);
    for (let i = 0; i < rectangles; i++) {
      const header = await this.#take(12);
      parts.push(await this.#take(4 * header.readUInt16BE(4) * header.readUInt16BE(6)));
    }
    return Buffer.concat(parts);
  }

  async untilPainted() {
    const deadline = Date.now() + paintLimitMs;
    while (Date.now() < deadline) {
      const strip = await this.#capture([0, 0, this.width, stripHeight]);
      const x = (this.width - centre.width) >> 1;
      const y = (this.height - centre.height) >> 1;
      if (painted(strip, await this.#capture([x, y, centre.width, centre.height]))) return;
      await Bun.sleep(pollMs);
    }
    throw new Error("the desktop was never painted");
  }

  close() {
    this.#viewer.close();
  }
}

/** Xvnc and the bundled xstartup with nothing around them: milliseconds until painted. */
export async function xfceAlone(): Promise<number> {
  const home = freshDir("alone");
  const socket = join(home, "vnc.sock");
  const size = `${viewport.width}x${viewport.height}`;
  const options = `-displayfd 1 -rfbport -1 -SecurityTypes None -geometry ${size}`.split(" ");
  const start = performance.now();
  await using xvnc = spawn(["Xtigervnc", ...options, "-rfbunixpath", socket], { HOME: home });
  const display = `:${await xvnc.line}`;
  const env = { HOME: home, DISPLAY: display, JUPYTER_DESKTOP_RUNTIME_DIR: home };
  await using _desktop = spawn([join(root, "xstartup")], env);
  const address = { unix: socket };
  const screen = await Screen.open({ address, path: "/", headers: {}, framed: false });
  await screen.untilPainted();
  const elapsed = performance.now() - start;
  screen.close();
  return elapsed;
}

// --- in the browser ---

export async function launchBrowser(): Promise<Browser> {
  const flags =
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking " +
    "--disable-component-update --disable-sync";
  const home = freshDir("chromium");
  const env = { PATH: process.env.PATH ?? "", HOME: home, TMPDIR: home };
  const executablePath = "/usr/bin/chromium";
  // Ours to end on SIGINT, with all else.
  const args = flags.split(" ");
  const browser = await chromium.launch({ executablePath, args, env, handleSIGINT: false });
  // The first page of a browser is slow, whoever's it is.
  await using context = await browser.newContext({ viewport });
  await (await context.newPage()).goto("data:text/html,<canvas></canvas>");
  return browser;
}

interface Visit {
  page: Page;
  ms: number;
  /** All that came over HTTP, headers too; not the WebSocket. */
  bytes: number;
}

/** Counts what the page loads, as Chromium's own network panel does. */
async function countBytes(page: Page, encoding?: string): Promise<() => number> {
  const cdp = await page.context().newCDPSession(page);
  const bytes = new Map<string, number>();
  const add = (id: string, count: number) => bytes.set(id, (bytes.get(id) ?? 0) + count);
  await cdp.send("Network.enable");
  if (encoding) {
    const headers = { "Accept-Encoding": encoding };
    await cdp.send("Network.setExtraHTTPHeaders", { headers });
  }
  cdp.on("Network.requestWillBeSent", (event) => {
    const redirect = event.redirectResponse;
    if (redirect) add(`${event.requestId} ${redirect.url}`, redirect.encodedDataLength);
  });
  // A stream never finishes: until it does, its parts are what there is.
  cdp.on("Network.dataReceived", (event) => add(event.requestId, event.encodedDataLength));
  cdp.on("Network.loadingFinished", (event) => bytes.set(event.requestId, event.encodedDataLength));
  return () => bytes.values().reduce((sum, count) => sum + count, 0);
}

/** Milliseconds from an action to the painted desktop, over as many pages as lie between. */
async function untilPainted(page: Page, action: () => Promise<unknown>): Promise<number> {
  const message = page.waitForEvent("console", {
    predicate: (event) => event.text().startsWith("bench: painted"),
    timeout: paintLimitMs,
  });
  const start = Date.now();
  const [at] = await Promise.all([message, action()]);
  return Number(at.text().split(" ").at(-1)) - start;
}

async function visit(context: BrowserContext, url: string, encoding?: string): Promise<Visit> {
  const page = await context.newPage();
  const bytes = await countBytes(page, encoding);
  const ms = await untilPainted(page, () => page.goto(url));
  await Bun.sleep(afterPaintMs);
  return { page, ms, bytes: bytes() };
}

async function newContext(browser: Browser): Promise<BrowserContext> {
  const context = await browser.newContext({ viewport });
  await context.addInitScript(watchPage);
  return context;
}

async function coldAndWarm(browser: Browser, base: string) {
  await using context = await newContext(browser);
  const first = await visit(context, `${base}?token=${pageToken()}`);
  await first.page.close();
  await Bun.sleep(desktopSettleMs);
  const second = await visit(context, base);
  return { cold: first.ms, warm: second.ms, bytes: first.bytes };
}

/** Our page when the click starts everything, and the second visit; and its weight without brotli. */
export async function oursAtVisit(browser: Browser, server: string) {
  await using running = spawnOurs(server, ["--start", "visit"]);
  const base = `http://127.0.0.1:${await untilListening(running)}/`;
  const times = await coldAndWarm(browser, base);
  await using context = await newContext(browser);
  const { bytes } = await visit(context, `${base}?token=${pageToken()}`, "gzip");
  return { ...times, gzipBytes: bytes };
}

/** Our page when the server runs already and has started the desktop by itself. */
export async function oursReady(browser: Browser, server: string): Promise<number> {
  await using running = spawnOurs(server, ["--start", "now"]);
  const port = await untilListening(running);
  const screen = await Screen.open(endpointOf("ours", port));
  await screen.untilPainted();
  screen.close();
  await Bun.sleep(desktopSettleMs);
  await using context = await newContext(browser);
  return (await visit(context, `http://127.0.0.1:${port}/?token=${pageToken()}`)).ms;
}

/** Upstream's page in a Jupyter that runs; the click starts its VNC server and desktop. */
export const upstream = (browser: Browser) => inJupyter(browser, freshDir("upstream"), []);

/** Our page in the same Jupyter, with the entry that `install` writes; the click starts our server, too. */
export async function oursInJupyter(browser: Browser, server: string) {
  const home = freshDir("ours");
  const env = {
    PATH: process.env.PATH ?? "",
    HOME: home,
    JUPYTER_CONFIG_DIR: join(home, "jupyter"),
  };
  const install = Bun.spawnSync([process.execPath, server, "install"], { env });
  if (install.exitCode !== 0) throw new Error(install.stderr.toString());
  // Upstream's package takes the same address before any entry.
  const off = "--ServerApp.jpserver_extensions=jupyter_remote_desktop_proxy=False";
  return await inJupyter(browser, home, [off]);
}

async function inJupyter(browser: Browser, home: string, settings: string[]) {
  await using jupyter = spawnJupyter(home, settings);
  const base = `http://127.0.0.1:${await untilListening(jupyter)}`;
  // Listening comes before the extensions are loaded; the click comes after.
  await (await fetch(`${base}/api`, { signal: AbortSignal.timeout(paintLimitMs) })).text();
  return await coldAndWarm(browser, `${base}/desktop/`);
}

// --- as JupyterHub's single-user server ---

/** Our server is what the Hub starts: no Python between its proxy and the desktop. */
export const oursInHub = (browser: Browser, server: string) =>
  inHub(browser, [process.execPath, server, "--auth", "hub"]);

/** Upstream in JupyterHub's own single-user server, which leads to its page. */
export const upstreamInHub = (browser: Browser) =>
  inHub(
    browser,
    [join(venv, "bin", "jupyterhub-singleuser"), "--allow-root"],
    'c.Spawner.default_url = "/desktop"',
  );

/** From "Start My Server" on the Hub's home page to the desktop; then a visit while all of it runs. */
async function inHub(browser: Browser, command: string[], config = "") {
  // The Hub's own interval, not the short one of the tests: each report costs both servers something.
  const env = { "*": { JUPYTERHUB_ACTIVITY_INTERVAL: "300" } };
  await using hub = await startHub({ command, env, config });
  // Ctrl-C and TERM end this process at once; a Hub that ends takes the proxy and the servers with it.
  using atExit = new DisposableStack();
  const end = () => hub.child.kill();
  process.once("exit", end);
  atExit.defer(() => process.off("exit", end));
  await using context = await newContext(browser);
  const page = await context.newPage();
  await page.goto(new URL("hub/login?next=/hub/home", hub.url).href);
  await logIn(page, "alice");
  const start = page.getByRole("button", { name: "Start My Server" });
  await start.waitFor();
  const cold = await untilPainted(page, () => start.click());
  await page.close();
  await Bun.sleep(desktopSettleMs);
  const second = await visit(context, new URL("user/alice/desktop/", hub.url).href);
  return { cold, warm: second.ms };
}
