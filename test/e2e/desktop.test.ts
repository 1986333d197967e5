/** The whole of it, as a person has it: Chromium, the page, the server, Xvnc and XFCE, all of them real. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { processesWith, startServer, tempDir, TOKEN, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  copyOnDesktop,
  type Desk,
  desktopClipboard,
  desktopSize,
  ensureViewer,
  fillsWindow,
  inState,
  keptFrame,
  launchBrowser,
  listeners,
  logOut,
  openTerminal,
  overflow,
  panelShade,
  type PageOptions,
  processesOf,
  README_PICTURE,
  reverseProxy,
  screenshot,
  seesDesktop,
  settles,
  SIZE,
  SLOW_MS,
  statusOf,
  typeKeys,
  Wire,
  withPage,
} from "./_browser.ts";

const PREFIX = "/user/x@y.z/desktop/";
const DROPS = 12;
/** Every character that an American keyboard has. */
const PRINTABLE = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).join("");
const TEXTS = [
  "Grüße aus Köln, 'single' and \"double\" quotes, a \\ and a tab\tin it",
  "two lines\nof 漢字, かな und 한글 – “curly” €",
  "an emoji 🐭, a family 👩‍👩‍👧, a flag 🇩🇪",
];

// More than one wait of each test may need: Bun ends the browser of all tests with one that is over time.
setDefaultTimeout(3 * SLOW_MS);

// What the console may say in a test that causes it, with the reason.

/** Chromium itself, of a WebSocket that was refused because the desktop is down; then noVNC, of the same. */
const REFUSED = [
  /^WebSocket connection to '.*' failed: Error during WebSocket handshake: Unexpected response code: 50[23]$/,
  /^WebSocket on-error event$/,
  /^Failed when connecting: Connection closed \(code: 1006\)$/,
];
/** Chromium itself, of a page that came with the status of its refusal. */
const UNAUTHORIZED =
  /^Failed to load resource: the server responded with a status of (401 \(Unauthorized\)|403 \(Forbidden\))$/;
/** Chromium itself, of a request for the status while the line is down. */
const OFFLINE =
  /^Failed to load resource: net::ERR_(SOCKET_NOT_CONNECTED|CONNECTION_RESET|EMPTY_RESPONSE)$/;
/** noVNC, cut off while it was drawing: it goes on with what it has already, to no effect. */
const LATE = /^Got data while disconnected$/;

let browser: Browser;
/** The desktop that most tests look at; each takes it as it is, and leaves it running. */
let desk: Desk;
const dirs: string[] = [];

const start: typeof startServer = async (...args) => {
  const server = await startServer(...args);
  dirs.push(server.dir);
  return server;
};

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  [browser, desk] = await Promise.all([launchBrowser(), start([])]);
}, SLOW_MS);

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
  await browser?.close();
  expect(dirs.flatMap(processesWith)).toEqual([]);
  expect(dirs.filter((dir) => fs.existsSync(dir))).toEqual([]);
}, SLOW_MS);

/** A page that shows the desktop already. */
const withDesktop = (
  use: (page: Page) => Promise<void>,
  { url = desk.url, ...options }: PageOptions & { url?: URL } = {},
) =>
  withPage(browser, options, async (page) => {
    await page.goto(url.href);
    await seesDesktop(page);
    await use(page);
  });

test("the printed address shows the desktop, fills the window with it, and keeps no token", () =>
  withDesktop(async (page) => {
    expect(page.url()).toBe(new URL("/", desk.url).href);
    expect(await page.title()).toContain("●");
    await fillsWindow(page);
    await settles(page);
    await screenshot(page, "desktop.png");
    // A panel that comes before XFCE's settings daemon is dark, and stays so.
    expect(await panelShade(page)).toBeGreaterThan(200);
  }));

test("what is typed arrives in a terminal, each character of the keyboard", () =>
  withDesktop(async (page) => {
    const file = path.join(desk.dir, "typed.txt");
    await openTerminal(desk);
    const quoted = PRINTABLE.replaceAll("'", "'\\''");
    await typeKeys(page, `echo '${quoted}' > ${path.basename(file)}\n`);
    const typed = await until("the typed line", () =>
      fs.existsSync(file) ? Bun.file(file).text() : "",
    );
    expect(typed).toBe(`${PRINTABLE}\n`);
    await typeKeys(page, "exit\n");
    await until("the end of the terminal", () => !processesOf(desk, "xfce4-terminal").length);
  }));

test("text goes both ways through the clipboard panel, also after a reconnect", async () => {
  using wire = new Wire(desk.url);
  await withDesktop(
    async (page) => {
      const field = page.getByRole("textbox", { name: "Clipboard" });
      const exchange = async (text: string) => {
        await page.getByRole("button", { name: "Clipboard" }).click();
        await field.fill(text);
        await until("the text on the desktop", async () => (await desktopClipboard(desk)) === text);
        const back = `${text} and back`;
        await copyOnDesktop(desk, back);
        await until("the text in the panel", async () => (await field.inputValue()) === back);
        await page.keyboard.press("Escape");
        await field.waitFor({ state: "hidden" });
      };
      for (const text of TEXTS) await exchange(text);
      await reconnects(page, () => wire.cut());
      for (const text of TEXTS) await exchange(`${text} again`);
    },
    { url: wire.url },
  );
});

test("where the browser allows it, the clipboards of both computers are one", () =>
  withDesktop(
    async (page) => {
      const here = () => page.evaluate<string>("navigator.clipboard.readText()");
      // What the desktop holds while the page connects is old news to it: so more than one text is copied.
      await until("a text that was copied there", async () => {
        await copyOnDesktop(desk, `from there ${Date.now()}`);
        return (await here()).startsWith("from there");
      });
      const last = "the last from there: ü 🐭";
      await copyOnDesktop(desk, last);
      await until("the text that was copied last", async () => (await here()) === last);
      await page.evaluate('navigator.clipboard.writeText("from here: ü 🐭")');
      await page.evaluate('window.dispatchEvent(new Event("focus"))');
      await until(
        "the text on the desktop",
        async () => (await desktopClipboard(desk)) === "from here: ü 🐭",
      );
    },
    { permissions: ["clipboard-read", "clipboard-write"] },
  ));

test("the desktop follows the size of the window", () =>
  withDesktop(async (page) => {
    for (const [width, height] of [
      [900, 600],
      [1600, 1000],
      [SIZE.width, SIZE.height],
    ] as const) {
      await page.setViewportSize({ width, height });
      const bar = (await page.locator("#bar").boundingBox())?.height ?? 0;
      await until(
        `a desktop of ${width}x${height - bar}`,
        async () => String(await desktopSize(desk)) === String([width, height - bar]),
      );
      await fillsWindow(page);
    }
  }));

/** Does something that ends the connection, and waits for the desktop on the next one. */
async function reconnects(page: Page, end: () => void) {
  const next = page.waitForEvent("websocket");
  end();
  await next;
  await seesDesktop(page);
}

test("a cut line leaves the last picture, dimmed, and the desktop is back by itself", async () => {
  using wire = new Wire(desk.url);
  await withDesktop(
    async (page) => {
      wire.down();
      await inState(page, "waiting");
      await page.getByRole("heading", { name: "The server does not answer" }).waitFor();
      expect(await keptFrame(page)).toEqual({ painted: true, opacity: "0.35" });
      expect(await page.locator("canvas").count()).toBe(1);
      await screenshot(page, "cut.png");
      wire.up();
      await seesDesktop(page);
      expect(await page.locator("canvas").count()).toBe(1);
    },
    { url: wire.url, noise: [OFFLINE, LATE] },
  );
});

test("a line that went silent is noticed by the next key, and the desktop is back with the line", async () => {
  using wire = new Wire(desk.url);
  await withDesktop(
    async (page) => {
      wire.silence();
      await until(
        "the page notices that nobody answers",
        async () => {
          await page.keyboard.press("Shift", { delay: 100 });
          return (await page.locator("body").getAttribute("data-state")) === "waiting";
        },
        SLOW_MS,
      );
      expect(await keptFrame(page)).toEqual({ painted: true, opacity: "0.35" });
      wire.up();
      await seesDesktop(page);
      expect(await page.locator("canvas").count()).toBe(1);
    },
    { url: wire.url, noise: [LATE] },
  );
});

test(`${DROPS} drops in a row leave one canvas, one connection and not one listener more`, async () => {
  using wire = new Wire(desk.url);
  await withDesktop(
    async (page) => {
      await reconnects(page, () => wire.cut());
      const before = await listeners(page);
      for (let drop = 0; drop < DROPS; drop++) await reconnects(page, () => wire.cut());
      expect(await page.locator("canvas").count()).toBe(1);
      expect(await listeners(page)).toEqual(before);
      expect(await statusOf(desk)).toMatchObject({ state: "ready", viewers: 1 });
    },
    { url: wire.url, noise: [LATE] },
  );
});

test("after the VNC server was killed, the page says so and is back by itself", () =>
  withDesktop(async (page) => {
    const [pid] = processesOf(desk, "Xtigervnc");
    process.kill(Number(pid), "SIGKILL");
    await page
      .getByRole("heading", { name: "The desktop stopped, and starts again by itself" })
      .waitFor();
    await seesDesktop(page);
    await fillsWindow(page);
    expect(processesOf(desk, "Xtigervnc")).not.toContain(pid);
    expect(await page.locator("canvas").count()).toBe(1);
  }));

test("after a log-out the page says so, and its button brings a new session", () =>
  withDesktop(async (page) => {
    await logOut(desk);
    await page.getByRole("heading", { name: "The desktop session has ended" }).waitFor();
    await page.getByText("You logged out.").waitFor();
    // It says so while the last of it still ends; then nothing of the picture and of Xvnc is left.
    await page.locator("canvas").waitFor({ state: "detached" });
    await until("the end of Xvnc", () => processesOf(desk, "Xtigervnc").length === 0);
    await page.getByRole("button", { name: "Start a new session" }).waitFor();
    await screenshot(page, "ended.png");
    await page.getByRole("button", { name: "Start a new session" }).click();
    await seesDesktop(page);
    await fillsWindow(page);
  }));

test("a desktop that fails is told with its cause and its own words", async () => {
  using dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, "#!/bin/sh\necho 'xfce5: command not found' >&2\nexit 1\n", {
    mode: 0o755,
  });
  await using failing = await start(["--xstartup", xstartup]);
  await withPage(browser, { noise: REFUSED }, async (page) => {
    await page.goto(failing.url.href);
    await page
      .locator("#notice")
      .filter({ hasText: "The desktop session ended with exit code 1" })
      .filter({ hasText: `It was started by ${xstartup}.` })
      .filter({ hasText: "xfce5: command not found" })
      .filter({ has: page.getByRole("button", { name: "Try again" }) })
      .waitFor();
    await screenshot(page, "failing.png");
  });
});

test("a VNC server that cannot be reached is named", async () => {
  await using failing = await start(["--vnc", "unix:/nonexistent/vnc.sock"]);
  await withPage(browser, { noise: REFUSED }, async (page) => {
    await page.goto(failing.url.href);
    await page
      .getByText("The VNC server at unix:/nonexistent/vnc.sock cannot be reached")
      .waitFor();
    await screenshot(page, "unreachable.png");
  });
});

test("without the token the page asks for it, and refuses a wrong one", () =>
  withPage(browser, { noise: [UNAUTHORIZED] }, async (page) => {
    await page.goto(desk.url.origin);
    await screenshot(page, "login.png");
    await page.getByLabel("Token").fill("not the token");
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByRole("alert").filter({ hasText: "That token is wrong" }).waitFor();
    await screenshot(page, "login-wrong.png");
    await page.getByLabel("Token").fill(TOKEN);
    await page.getByLabel("Token").press("Enter");
    await seesDesktop(page);
    expect(page.url()).toBe(new URL("/", desk.url).href);
  }));

/** All that a page asks for, the WebSocket too, must stay under the proxy's prefix. */
async function staysUnder(prefix: string, url: URL) {
  await withPage(browser, {}, async (page) => {
    const asked: string[] = [];
    page.on("request", (request) => asked.push(request.url()));
    page.on("websocket", (socket) => asked.push(socket.url()));
    await page.goto(url.href);
    await seesDesktop(page);
    expect(page.url()).toBe(url.origin + prefix);
    expect(asked.length).toBeGreaterThan(4);
    expect(asked.filter((address) => !new URL(address).pathname.startsWith(prefix))).toEqual([]);
  });
}

test("all of it works behind a proxy that takes a prefix off", async () => {
  await using proxy = reverseProxy(desk.url, PREFIX, true);
  await staysUnder(PREFIX, proxy.url);
});

test("all of it works behind a proxy that leaves the base URL on", async () => {
  await using based = await start(["--base-url", PREFIX]);
  await using proxy = reverseProxy(based.url, PREFIX, false);
  await staysUnder(PREFIX, proxy.url);
});

test("on a phone the bar and the clipboard panel fit", () =>
  withDesktop(
    async (page) => {
      await fillsWindow(page);
      await settles(page);
      await screenshot(page, "phone.png");
      await page.getByRole("button", { name: "Clipboard" }).click();
      await page.getByRole("textbox", { name: "Clipboard" }).waitFor();
      await screenshot(page, "phone-clipboard.png");
      for (const part of ["html", "#bar", "#clipboard"]) {
        expect(await overflow(page, part)).toBe(0);
      }
    },
    { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true },
  ));

test("in the dark, the page is dark", () =>
  withDesktop(
    async (page) => {
      await page.getByRole("button", { name: "Clipboard" }).click();
      await page.getByRole("textbox", { name: "Clipboard" }).waitFor();
      await screenshot(page, "dark.png");
      const colour = "getComputedStyle(document.querySelector('#bar')).backgroundColor";
      const brightness = (await page.evaluate<string>(colour)).match(/\d+/g)?.map(Number);
      expect(Math.max(...(brightness ?? [255]))).toBeLessThan(80);
    },
    { colorScheme: "dark" },
  ));

// UPDATE_SCREENSHOT=1 bun test test/e2e -t README draws it where the README has it.
test("the README's picture is drawn", () =>
  withDesktop(async (page) => {
    fs.writeFileSync(path.join(desk.dir, ".bashrc"), "PS1='\\w $ '\n");
    await openTerminal(desk, "--geometry", "76x16+250+150");
    await typeKeys(page, "grep PRETTY /etc/os-release\necho Hello from the browser\n");
    await settles(page);
    await page.screenshot({ path: README_PICTURE });
  }));
