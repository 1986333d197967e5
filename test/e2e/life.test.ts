/** A page that lives through what happens to its server, its line and its machine. Chromium, and real desktops. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { processesWith, startServer, tempDir, until } from "../_helpers.ts";
import {
  type Desk,
  ensureViewer,
  inState,
  launchBrowser,
  listeners,
  onDesktop,
  openTerminal,
  processesOf,
  seesDesktop,
  SLOW_MS,
  statusOf,
  typeKeys,
  Wire,
  withPage,
} from "./_browser.ts";

const DROPS = 50;
setDefaultTimeout(3 * SLOW_MS);

// What the console may say in a test that causes it.

/** Chromium itself, of a request to a server that is not there. */
const OFFLINE = /^Failed to load resource: net::ERR_/;
/** Chromium, and then noVNC, of a WebSocket to a server that is not there, or has no desktop yet. */
const REFUSED = [
  /^WebSocket connection to '.*' failed/,
  /^WebSocket on-error event$/,
  /^Failed when connecting: Connection closed/,
];
/** noVNC, cut off while it was drawing. */
const LATE = /^Got data while disconnected$/;
const NOISE = [OFFLINE, ...REFUSED, LATE];

let browser: Browser;
/** A desktop that is one terminal, which writes each line that is typed into the file `typed` of its HOME. */
let light: Desk;

/** HOME and TMPDIR of servers that come and go. */
function home() {
  const dir = tempDir();
  const stop = async () => {
    await until("the end of all that is left", () => {
      const pids = processesWith(dir.path);
      for (const pid of pids) Bun.spawnSync(["kill", "-9", pid]);
      return pids.length === 0;
    });
    dir[Symbol.dispose]();
  };
  const start = async (...args: string[]) => ({
    ...(await startServer(args, { HOME: dir.path, TMPDIR: dir.path })),
    dir: dir.path,
  });
  return { dir: dir.path, start, [Symbol.asyncDispose]: stop };
}

/** A terminal over all of the screen; without a window manager the keys go to what is under the pointer. */
const TERMINAL = `#!/bin/sh
exec xterm -geometry 300x100+0+0 -e sh -c 'exec cat >"$HOME/typed"'
`;

async function startLight(...args: string[]): Promise<Desk> {
  using dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, TERMINAL, { mode: 0o755 });
  const desk = await startServer(["--xstartup", xstartup, ...args]);
  await until("the terminal", () => fs.existsSync(path.join(desk.dir, "typed")), SLOW_MS);
  return desk;
}

beforeAll(async () => {
  await ensureViewer();
  [browser, light] = await Promise.all([launchBrowser(), startLight()]);
}, SLOW_MS);

afterAll(async () => {
  await light?.[Symbol.asyncDispose]();
  await browser?.close();
}, SLOW_MS);

/** A page that is connected, at this address. */
const withConnected = (url: URL, use: (page: Page) => Promise<void>) =>
  withPage(browser, { noise: NOISE }, async (page) => {
    await page.goto(url.href);
    await inState(page, "connected");
    await use(page);
  });

const typedOn = (desk: Desk) => fs.readFileSync(path.join(desk.dir, "typed"), "utf8");

/** Counts the WebSockets that the page opens from now on. */
function countSockets(page: Page) {
  const sockets = { count: 0 };
  page.on("websocket", () => {
    sockets.count += 1;
  });
  return sockets;
}

/** Counts the requests that the page makes from now on, to addresses that end so. */
function countRequests(page: Page, end = "") {
  const requests = { count: 0 };
  page.on("request", (request) => {
    if (new URL(request.url()).pathname.endsWith(end)) requests.count += 1;
  });
  return requests;
}

test("a kill -9 of the server, with --keep: the same window with its unsaved text is back by itself", async () => {
  await using place = home();
  await using first = await place.start("--keep");
  await withPage(browser, { noise: NOISE }, async (page) => {
    await page.goto(first.url.href);
    await seesDesktop(page);
    await openTerminal(first);
    await typeKeys(page, "echo an unsaved");
    const active = () => onDesktop(first, ["xdotool", "getactivewindow"]);
    const window = await active();
    const xvnc = processesOf(first, "Xtigervnc");
    first.child.kill("SIGKILL");
    await page.getByRole("heading", { name: "The server does not answer" }).waitFor();
    await using second = await place.start("--keep", "--port", first.url.port);
    await seesDesktop(page);
    expect(await active()).toBe(window);
    expect(processesOf(second, "Xtigervnc")).toEqual(xvnc);
    await typeKeys(page, " text > saved.txt\n");
    const saved = path.join(place.dir, "saved.txt");
    await until("the whole text", () => fs.existsSync(saved) && fs.statSync(saved).size > 0);
    expect(fs.readFileSync(saved, "utf8")).toBe("an unsaved text\n");
    expect(await page.locator("canvas").count()).toBe(1);
    second.child.kill("SIGINT");
    expect(await second.code).toBe(0);
    expect(processesWith(place.dir)).toEqual([]);
  });
});

test("a server that stands still for some seconds: the page stays on its line, and no key is lost", () =>
  withConnected(light.url, async (page) => {
    const sockets = countSockets(page);
    await page.mouse.move(600, 400);
    await typeKeys(page, "before\n");
    await until("the first line", () => typedOn(light).endsWith("before\n"));
    light.child.kill("SIGSTOP");
    await typeKeys(page, "meanwhile\n");
    await Bun.sleep(3_000);
    expect(await page.locator("body").getAttribute("data-state")).toBe("connected");
    light.child.kill("SIGCONT");
    await until("the second line", () => typedOn(light).endsWith("before\nmeanwhile\n"));
    await inState(page, "connected");
    expect(sockets.count).toBe(0);
  }));

test("a page that waits tries at once when the network, the tab or the page comes back", async () => {
  using wire = new Wire(light.url);
  await withConnected(wire.url, async (page) => {
    const asked = countRequests(page, "/desktop/api/status");
    wire.down();
    await inState(page, "waiting");
    await until("a wait of seconds", () => asked.count >= 5);
    for (const [target, event] of [
      ["window", "online"],
      ["document", "visibilitychange"],
      ["window", "pageshow"],
    ]) {
      // Let the last answer arrive: a page that is asking already has no reason to ask again.
      await page.waitForTimeout(300);
      const before = asked.count;
      await page.evaluate(`${target}.dispatchEvent(new Event("${event}"))`);
      await until(`a request at ${event}`, () => asked.count > before, 700);
    }
    await page.waitForTimeout(300);
    wire.up();
    await page.evaluate(`window.dispatchEvent(new Event("online"))`);
    const back = performance.now();
    await inState(page, "connected");
    expect(performance.now() - back).toBeLessThan(2_500);
  });
});

test("a page that is paused says so, sends nothing at all, and goes on at a click", async () => {
  await using desk = await startLight("--idle-disconnect", "2s");
  await withConnected(desk.url, async (page) => {
    await page.getByRole("heading", { name: "Paused", exact: true }).waitFor();
    const [requests, sockets] = [countRequests(page), countSockets(page)];
    expect(await statusOf(desk)).toMatchObject({ state: "ready", viewers: 0 });
    for (const [target, event] of [
      ["window", "online"],
      ["document", "visibilitychange"],
      ["window", "pageshow"],
    ])
      await page.evaluate(`${target}.dispatchEvent(new Event("${event}"))`);
    await page.waitForTimeout(4_000);
    expect([requests.count, sockets.count]).toEqual([0, 0]);
    expect(await page.locator("canvas").count()).toBe(1);
    await page.locator("#notice").click({ position: { x: 5, y: 5 } });
    await inState(page, "connected");
    expect(sockets.count).toBe(1);
    expect(await statusOf(desk)).toMatchObject({ state: "ready", viewers: 1 });
  });
});

test(`${DROPS} drops in a row leave one canvas, one socket, and nothing that grows`, async () => {
  using wire = new Wire(light.url);
  await withConnected(wire.url, async (page) => {
    const chromium = await page.context().newCDPSession(page);
    await chromium.send("Performance.enable");
    /** What a page may leak, after its garbage is gone. */
    const measure = async () => {
      await chromium.send("HeapProfiler.collectGarbage");
      const { metrics } = await chromium.send("Performance.getMetrics");
      const value = (name: string) => metrics.find((metric) => metric.name === name)?.value ?? 0;
      return {
        listeners: await listeners(page),
        allListeners: value("JSEventListeners"),
        nodes: value("Nodes"),
        descriptors: fs.readdirSync(`/proc/${light.child.pid}/fd`).length,
      };
    };
    const drop = async () => {
      const next = page.waitForEvent("websocket");
      wire.cut();
      await next;
      await inState(page, "connected");
      await page.locator("#frame canvas").waitFor({ state: "detached" });
    };
    for (let warm = 0; warm < 3; warm++) await drop();
    const before = await measure();
    const sockets = countSockets(page);
    for (let count = 0; count < DROPS; count++) await drop();
    expect(sockets.count).toBe(DROPS);
    expect(await page.locator("canvas").count()).toBe(1);
    expect(await statusOf(light)).toMatchObject({ state: "ready", viewers: 1 });
    const after = await measure();
    expect(after.listeners).toBe(before.listeners);
    // The browser keeps a few of the last ones for itself; one a drop would be fifty.
    expect(after.allListeners).toBeLessThan(before.allListeners + 10);
    expect(after.nodes).toBeLessThan(before.nodes + 20);
    expect(after.descriptors).toBeLessThan(before.descriptors + 5);
  });
});

test("an old page that meets a newer server loads itself again, once", async () => {
  using wire = new Wire(light.url);
  await withPage(browser, { noise: NOISE }, async (page) => {
    let loads = 0;
    page.on("load", () => {
      loads += 1;
    });
    // Every status says that the server is newer, while the page is served as it was: as by a proxy's cache.
    await page.route(/\/desktop\/api\/status/, async (route) => {
      if (route.request().headers().accept?.includes("event-stream")) return route.abort();
      const response = await route.fetch();
      await route.fulfill({ response, json: { ...(await response.json()), version: "99.0.0" } });
    });
    await page.goto(wire.url.href);
    await inState(page, "connected");
    expect(loads).toBe(1);
    for (let cut = 0; cut < 3; cut++) {
      const next = page.waitForEvent("websocket");
      wire.cut();
      await next;
      await inState(page, "connected");
    }
    expect(loads).toBe(2);
  });
});
