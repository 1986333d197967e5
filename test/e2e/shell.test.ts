/** The page around the desktop: its bar, panels, keys and fingers. Chromium, and an Xvnc whose xev tells what arrived. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, CDPSession, Page } from "playwright-core";
import { fakeVnc, processesWith, startServer, tempDir, TOKEN, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  type Desk,
  ensureViewer,
  inState,
  launchBrowser,
  overflow,
  type PageOptions,
  screenshot,
  SLOW_MS,
  withPage,
} from "./_browser.ts";

setDefaultTimeout(3 * SLOW_MS);

const TITLE = "Ada's lab";
const PHONE = { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true };
const PANELS = ["Clipboard", "Keys", "Display", "Files", "Share", "More"];
const TOOLS = PANELS.toSpliced(5, 0, "Fullscreen");

/** All of the screen is one window that writes down each key and button; the pointer gives it the keyboard. */
const XEV = `#!/bin/sh
exec stdbuf -oL xev -geometry 4000x4000+0+0 >"$HOME/xev"
`;

/** noVNC, cut off while it was drawing; Chromium, of a server that has no desktop for a moment, or asks for the token. */
const NOISE = [
  /^Got data while disconnected$/,
  /^WebSocket connection to '.*' failed/,
  /^WebSocket on-error event$/,
  /^Failed when connecting: Connection closed/,
  /^Failed to load resource: the server responded with a status of 401 \(Unauthorized\)$/,
];

const dir = tempDir();
let browser: Browser;
let desk: Desk;

async function startXev(...args: string[]): Promise<Desk> {
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, XEV, { mode: 0o755 });
  const started = await startServer(["--title", TITLE, "--xstartup", xstartup, ...args]);
  await until("xev", () => fs.existsSync(path.join(started.dir, "xev")), SLOW_MS);
  return started;
}

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  [browser, desk] = await Promise.all([launchBrowser(), startXev()]);
}, SLOW_MS);

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
  await browser?.close();
  dir[Symbol.dispose]();
  expect(processesWith(desk.dir)).toEqual([]);
}, SLOW_MS);

/** A page that shows the desktop, with the pointer on it. */
const withDesktop = (
  use: (page: Page) => Promise<void>,
  { on = desk, ...options }: PageOptions & { on?: Desk } = {},
) =>
  withPage(browser, { noise: NOISE, ...options }, async (page) => {
    await page.goto(on.url.href);
    await inState(page, "connected");
    await page.mouse.move(300, 300);
    await use(page);
  });

/** What xev wrote since this was called: +keysym and -keysym, +button and -button. */
function listen(on = desk) {
  const file = path.join(on.dir, "xev");
  const from = fs.statSync(file).size;
  const said = () => fs.readFileSync(file, "utf8").slice(from);
  const events = () =>
    [
      ...said().matchAll(
        /^(Key|Button)(Press|Release) event[\s\S]*?(?:keysym 0x\w+, (\w+)\)|button (\d))/gm,
      ),
    ].map(([, , what, keysym, button]) => (what === "Press" ? "+" : "-") + (keysym ?? button));
  const arrives = (expected: string) =>
    until(`"${expected}" on the desktop`, () => events().join(" ") === expected, SLOW_MS).catch(
      () => expect(events().join(" ")).toBe(expected),
    );
  return { said, events, arrives };
}

const button = (page: Page, name: string) =>
  page.locator("#bar").getByRole("button", { name, exact: true });
const panel = (page: Page, id: string) => page.locator(`#${id}:popover-open`);
const focused = (page: Page) =>
  page.evaluate<string>("document.activeElement?.id || document.activeElement?.tagName");

async function openPanel(page: Page, name: string) {
  await button(page, name).click();
  await panel(page, name.toLowerCase()).waitFor();
}

test("the bar names the desktop and its state, and each of its buttons opens what it says", () =>
  withDesktop(async (page) => {
    await page.locator("#bar").getByText(TITLE, { exact: true }).waitFor();
    const status = page.locator("#status");
    expect([await status.textContent(), await status.getAttribute("aria-live")]).toEqual([
      "Connected",
      "polite",
    ]);
    const names = await page.locator("#tools button:visible").allTextContents();
    expect(names.map((name) => name.trim()).filter(Boolean)).toEqual(TOOLS);
    for (const name of PANELS) {
      await openPanel(page, name);
      await screenshot(page, `shell-${name.toLowerCase()}.png`);
      await page.keyboard.press("Escape");
      await panel(page, name.toLowerCase()).waitFor({ state: "detached" });
      await until("the focus on the desktop", async () => (await focused(page)) === "CANVAS");
    }
  }));

test("the tab says the title and the state, and the browser would install it as an app", () =>
  withDesktop(async (page) => {
    expect(await page.title()).toStartWith(`● ${TITLE}`);
    const icon = () => page.locator('link[rel="icon"]').getAttribute("href");
    const connected = await icon();
    expect(connected).toStartWith("data:image/svg+xml,");
    const chromium = await page.context().newCDPSession(page);
    const { data, errors } = await chromium.send("Page.getAppManifest");
    expect([JSON.parse(data ?? "{}").name, errors]).toEqual([TITLE, []]);
    // Nothing of a private window, as the test's is, can be installed.
    const { installabilityErrors } = await chromium.send("Page.getInstallabilityErrors");
    expect(installabilityErrors.map(({ errorId }) => errorId)).toEqual(["in-incognito"]);
    await page.evaluate("window.dispatchEvent(new Event('offline'))");
    expect(await icon()).toBe(connected);
  }));

test("every key of the panel arrives, and what is held down stays down until it is let go", () =>
  withDesktop(async (page) => {
    await openPanel(page, "Keys");
    const press = async (name: string, expected: string) => {
      const { arrives } = listen();
      await panel(page, "keys").getByRole("button", { name, exact: true }).first().click();
      await page.mouse.move(300, 300);
      await arrives(expected);
    };
    await press("Ctrl+Alt+Del", "+Control_L +Alt_L +Delete -Delete -Alt_L -Control_L");
    await press("Alt+Tab", "+Alt_L +Tab -Tab -Alt_L");
    await press("Alt+F4", "+Alt_L +F4 -F4 -Alt_L");
    await press("Ctrl+W", "+Control_L +w -w -Control_L");
    await press("Esc", "+Escape -Escape");
    await press("Tab", "+Tab -Tab");
    await press("Super", "+Super_L -Super_L");
    await press("Print", "+Print -Print");
    await press("F1", "+F1 -F1");
    await press("F12", "+F12 -F12");

    await press("Ctrl", "+Control_L");
    const hold = panel(page, "keys").getByRole("button", { name: "Ctrl", exact: true });
    expect(await hold.getAttribute("aria-pressed")).toBe("true");
    await page.keyboard.press("Escape");
    await until("the focus on the desktop", async () => (await focused(page)) === "CANVAS");
    const { arrives } = listen();
    await page.keyboard.press("c");
    await arrives("+c -c");
    await openPanel(page, "Keys");
    await press("Ctrl", "-Control_L");
    await press("Shift", "+Shift_L");
    const blurred = listen();
    await page.evaluate("window.dispatchEvent(new Event('blur'))");
    await blurred.arrives("-Shift_L");
    expect(await page.locator("#keys-hold [aria-pressed=true]").count()).toBe(0);
  }));

test("no key stays down when the focus leaves the desktop, and a chord leads to the bar", () =>
  withDesktop(async (page) => {
    const down = listen();
    await page.keyboard.down("Shift");
    await page.keyboard.down("KeyA");
    await down.arrives("+Shift_L +A");
    await button(page, "Clipboard").focus();
    await until("all keys are up", () => down.events().length === 4);
    // Without Shift, the key that goes up is a small one.
    expect(down.events().slice(2)).toEqual(["-Shift_L", "-a"]);
    await page.keyboard.up("KeyA");
    await page.keyboard.up("Shift");

    await page.locator("#screen canvas").focus();
    const chord = listen();
    await page.keyboard.press("Control+Alt+Shift");
    await until("the focus on the bar", async () => (await focused(page)) === "clipboard-button");
    await until("all keys are up", () => chord.events().length === 6);
    expect(
      chord
        .events()
        .slice(3)
        .every((event) => event.startsWith("-")),
    ).toBe(true);

    // With a key between, the chord is the desktop's own.
    await page.locator("#screen canvas").focus();
    const own = listen();
    await page.keyboard.press("Control+Alt+Shift+ArrowLeft");
    await until("all keys are up", () => own.events().length === 8);
    expect(await focused(page)).toBe("CANVAS");
  }));

test("who comes by keyboard or by ear is told of the way out, once", () =>
  withDesktop(async (page) => {
    const way = "Ctrl+Alt+Shift moves the focus to the bar.";
    const chromium = await page.context().newCDPSession(page);
    const { nodes } = await chromium.send("Accessibility.getFullAXTree");
    const screen = nodes.find(({ role }) => role?.value === "application");
    expect([screen?.name?.value, screen?.description?.value]).toEqual(["Remote desktop", way]);
    const told = listen();
    await page.keyboard.press("Tab");
    await told.arrives("+Tab -Tab");
    await page.locator("#toast").getByText(way).waitFor();
    await page.reload();
    await inState(page, "connected");
    await until("the focus on the desktop", async () => (await focused(page)) === "CANVAS");
    const again = listen();
    await page.keyboard.press("Tab");
    await again.arrives("+Tab -Tab");
    expect(await page.locator("#toast").textContent()).toBe("");
  }));

test("in a frame the logo leads nowhere, since the way back is the page around it", () =>
  withDesktop(async (page) => {
    expect(await page.locator("#bar").getByRole("link").getAttribute("href")).toBe("./");
    await page.route("**/around", (route) =>
      route.fulfill({
        contentType: "text/html",
        body: '<!doctype html><title>around</title><iframe src="/" width="900" height="600"></iframe>',
      }),
    );
    await page.goto(new URL("around", desk.url).href);
    const inner = page.frameLocator("iframe");
    await inner.locator("body[data-state=connected]").waitFor();
    expect(await inner.locator("#bar").getByRole("link").count()).toBe(0);
    expect(await inner.locator("#home img").isVisible()).toBe(true);
  }));

test("on a Mac, ⌘ is Ctrl unless the reader wants it otherwise", () =>
  withPage(browser, {}, async (page) => {
    await page.addInitScript("Object.defineProperty(navigator, 'platform', { value: 'MacIntel' })");
    await page.goto(desk.url.href);
    await inState(page, "connected");
    await page.mouse.move(300, 300);
    const first = listen();
    await page.keyboard.press("Meta+c");
    await first.arrives("+Control_L +c -c -Control_L");
    await openPanel(page, "Keys");
    await page.getByLabel("⌘ is Ctrl on the desktop").uncheck();
    await page.keyboard.press("Escape");
    await until("the focus on the desktop", async () => (await focused(page)) === "CANVAS");
    await page.mouse.move(300, 300);
    const second = listen();
    await page.keyboard.press("Meta+c");
    // noVNC's own choice for a Mac.
    await second.arrives("+Alt_L +c -c -Alt_L");
  }));

test("in fullscreen the bar goes, comes back at the edge, and all keys are the desktop's", () =>
  withPage(browser, {}, async (page) => {
    await page.addInitScript(`
      window.locks = [];
      navigator.keyboard.lock = async () => void window.locks.push("lock");
      navigator.keyboard.unlock = () => void window.locks.push("unlock");
    `);
    await page.goto(desk.url.href);
    await inState(page, "connected");
    const bar = page.locator("#bar");
    await page.evaluate("window.locks.splice(0)");
    await button(page, "Fullscreen").click();
    await page.mouse.move(600, 300);
    await bar.waitFor({ state: "hidden" });
    await page.getByText("Hold Esc to leave fullscreen.").waitFor();
    expect(await page.evaluate<string[]>("window.locks")).toContain("lock");
    const main = () => page.evaluate<number>("document.querySelector('main').clientHeight");
    expect(await main()).toBe(await page.evaluate<number>("innerHeight"));
    await page.mouse.move(600, 0);
    await bar.waitFor({ state: "visible" });
    await page.mouse.move(600, 400);
    await bar.waitFor({ state: "hidden" });
    // By the keyboard alone.
    await page.locator("#screen canvas").focus();
    await page.keyboard.press("Control+Alt+Shift");
    await bar.waitFor({ state: "visible" });
    await button(page, "Keys").focus();
    await page.keyboard.press("Enter");
    await panel(page, "keys").waitFor();
    await page.mouse.move(600, 500);
    expect(await bar.isVisible()).toBe(true);
    expect(await button(page, "Fullscreen").getAttribute("aria-pressed")).toBe("true");
    await screenshot(page, "shell-fullscreen.png");
    await page.keyboard.press("Escape");
    await button(page, "Fullscreen").click();
    await until("the window", () => page.evaluate<boolean>("document.fullscreenElement === null"));
    expect(await bar.isVisible()).toBe(true);
    const lastLock = async () => (await page.evaluate<string[]>("window.locks")).at(-1);
    await until("the keys are the browser's again", async () => (await lastLock()) === "unlock");
    // Told once.
    await page.locator("#toast:empty").waitFor({ state: "attached" });
    await button(page, "Fullscreen").click();
    await page.mouse.move(600, 300);
    await bar.waitFor({ state: "hidden" });
    expect(await page.locator("#toast").textContent()).toBe("");
  }));

test("the bar that is tucked away leaves a tab, and stays away in the next visit", () =>
  withDesktop(async (page) => {
    await button(page, "Hide the bar").click();
    await page.locator("#bar").waitFor({ state: "hidden" });
    await page.reload();
    await inState(page, "connected");
    expect(await page.locator("#bar").isVisible()).toBe(false);
    await screenshot(page, "shell-tucked.png");
    const moves = () =>
      page.evaluate<string>("getComputedStyle(document.querySelector('#bar')).transitionDuration");
    expect(await moves()).toContain("0.16s");
    await page.emulateMedia({ reducedMotion: "reduce" });
    expect(await moves()).toBe("0s");
    await page.getByRole("button", { name: "Show the bar" }).click();
    await page.locator("#bar").waitFor({ state: "visible" });
    await page.reload();
    await inState(page, "connected");
    expect(await page.locator("#bar").isVisible()).toBe(true);
  }));

test("the browser asks before the page is closed, but only if the reader wants that", () =>
  withDesktop(async (page) => {
    const asked: string[] = [];
    page.on("dialog", (dialog) => {
      asked.push(dialog.type());
      void dialog.accept();
    });
    await page.locator("#screen canvas").click();
    await page.reload();
    await inState(page, "connected");
    expect(asked).toEqual([]);
    await openPanel(page, "Keys");
    await page.getByLabel("Ask before this page is closed").check();
    await page.reload();
    await inState(page, "connected");
    expect(asked).toEqual(["beforeunload"]);
  }));

// --- fingers ---

interface Point {
  x: number;
  y: number;
}

/** Fingers on the screen, as Chromium gets them from the system. */
async function fingers(page: Page) {
  const chromium = await page.context().newCDPSession(page);
  const touch = (type: "touchStart" | "touchMove" | "touchEnd", ...touchPoints: Point[]) =>
    chromium.send("Input.dispatchTouchEvent", { type, touchPoints });
  const tap = async (...points: Point[]) => {
    await touch("touchStart", ...points);
    await touch("touchEnd");
  };
  /** From one place to another in steps, as a hand does. */
  const slide = async (from: Point[], to: Point[], steps = 8) => {
    await touch("touchStart", ...from);
    for (let step = 1; step <= steps; step++) {
      const at = from.map(({ x, y }, index) => ({
        x: x + (((to[index]?.x ?? x) - x) * step) / steps,
        y: y + (((to[index]?.y ?? y) - y) * step) / steps,
      }));
      await touch("touchMove", ...at);
    }
    await touch("touchEnd");
  };
  return { chromium, tap, slide };
}

test("on a phone one types with the system's keyboard, and with a row of what it has not", () =>
  withDesktop(async (page) => {
    const chromium: CDPSession = await page.context().newCDPSession(page);
    await page.locator("#screen canvas").tap({ position: { x: 150, y: 200 } });
    await button(page, "On-screen keyboard").tap();
    await until("the hidden field", async () => (await focused(page)) === "touch-field");
    const typed = listen();
    await chromium.send("Input.insertText", { text: "aß€" });
    await typed.arrives("+a -a +ssharp -ssharp +U20AC -U20AC");
    // A word that a keyboard composes, corrects, and ends.
    const composed = listen();
    const compose = (text: string) =>
      chromium.send("Input.imeSetComposition", {
        text,
        selectionStart: text.length,
        selectionEnd: text.length,
      });
    for (const text of ["t", "te", "the"]) await compose(text);
    await chromium.send("Input.insertText", { text: "the" });
    await composed.arrives("+t -t +e -e +BackSpace -BackSpace +h -h +e -e");
    // Android's keyboard names no key: 229, and what the field then holds.
    const erased = listen();
    await chromium.send("Input.dispatchKeyEvent", {
      type: "rawKeyDown",
      windowsVirtualKeyCode: 229,
      key: "Unidentified",
    });
    await page.evaluate("document.execCommand('delete')");
    await erased.arrives("+BackSpace -BackSpace");
    const entered = listen();
    await page.keyboard.press("Enter");
    await entered.arrives("+Return -Return");
    const row = page.getByRole("group", { name: "Further keys" });
    const control = listen();
    await row.getByRole("button", { name: "Ctrl" }).tap();
    await chromium.send("Input.insertText", { text: "c" });
    await row.getByRole("button", { name: "Esc" }).tap();
    await row.getByRole("button", { name: "Left" }).tap();
    await control.arrives("+Control_L +c -c -Control_L +Escape -Escape +Left -Left");
    expect(await focused(page)).toBe("touch-field");
    for (const each of await page.locator("#bar button:visible, #keybar button").all()) {
      const box = await each.boundingBox();
      expect(Math.min(box?.width ?? 0, box?.height ?? 0)).toBeGreaterThanOrEqual(44);
    }
    expect(await overflow(page, "html")).toBe(0);
    await screenshot(page, "shell-touch.png");
  }, PHONE));

test("nothing stands under the notch of a phone, nor under the bar at its foot", () =>
  withDesktop(async (page) => {
    const chromium = await page.context().newCDPSession(page);
    const box = async (part: string) => {
      const found = await page.locator(part).boundingBox();
      const { x, y, width, height } = found ?? { x: 0, y: 0, width: 0, height: 0 };
      return [x, y, x + width, y + height];
    };
    const insets = { top: 40, left: 30, right: 20, bottom: 34 };
    await chromium.send("Emulation.setSafeAreaInsetsOverride", { insets });
    expect(await box("main")).toEqual([30, 90, 340, 606]);
    const [left = 0, top = 0, , bottom = 0] = await box("#home");
    expect([left, top >= 40, bottom <= 90]).toEqual([30, true, true]);
    await page.locator("#touch-button").tap();
    expect((await box("main")).slice(0, 3)).toEqual([30, 90, 340]);
    expect((await box("#keybar button:first-child"))[3]).toBe(606);
    await screenshot(page, "shell-notch.png");
  }, PHONE));

test("where syllables are composed, only what was composed arrives", () =>
  withDesktop(
    async (page) => {
      const chromium = await page.context().newCDPSession(page);
      await page.locator("#screen canvas").tap({ position: { x: 150, y: 200 } });
      await button(page, "On-screen keyboard").tap();
      const typed = listen();
      for (const text of ["n", "ni"])
        await chromium.send("Input.imeSetComposition", {
          text,
          selectionStart: 0,
          selectionEnd: 0,
        });
      await chromium.send("Input.insertText", { text: "你" });
      await typed.arrives("+U4F60 -U4F60");
    },
    { ...PHONE, locale: "zh-CN" },
  ));

test("in trackpad mode a finger moves the pointer, and taps are clicks where the pointer is", () =>
  withDesktop(async (page) => {
    const { tap, slide } = await fingers(page);
    await button(page, "More").tap();
    await page.getByRole("button", { name: "Trackpad mode" }).tap();
    await page.keyboard.press("Escape");
    const start = listen();
    await slide([{ x: 100, y: 300 }], [{ x: 140, y: 300 }]);
    const places = () => [...start.said().matchAll(/MotionNotify[\s\S]*?root:\((\d+),(\d+)\)/g)];
    await until("the pointer moved", () => places().length > 1);
    const last = places().at(-1)?.slice(1).map(Number) ?? [];
    // From the middle of the screen, by more than the finger moved; and not to where the finger is.
    expect(last[0]).toBeGreaterThan(180 + 40);
    const clicked = listen();
    await tap({ x: 60, y: 500 });
    await clicked.arrives("+1 -1");
    expect(clicked.said()).toContain(`root:(${last[0]},${last[1]})`);
    const right = listen();
    await tap({ x: 60, y: 500 }, { x: 120, y: 500 });
    await right.arrives("+3 -3");
    const wheel = listen();
    await slide(
      [
        { x: 100, y: 300 },
        { x: 160, y: 300 },
      ],
      [
        { x: 100, y: 500 },
        { x: 160, y: 500 },
      ],
    );
    await until("the wheel", () => wheel.events().includes("+4"));
    expect(wheel.events()).not.toContain("+1");
  }, PHONE));

test("two fingers zoom the view and not the desktop, and a tap hits what is seen there", () =>
  withDesktop(async (page) => {
    const { slide, tap } = await fingers(page);
    const size = () =>
      page.evaluate<number[]>(
        "(({ width, height, clientWidth }) => [width, height, clientWidth])(document.querySelector('#screen canvas'))",
      );
    const [width = 0, height = 0] = await size();
    await slide(
      [
        { x: 150, y: 300 },
        { x: 210, y: 300 },
      ],
      [
        { x: 60, y: 300 },
        { x: 300, y: 300 },
      ],
    );
    await until("a larger picture", async () => ((await size())[2] ?? 0) > 1.5 * width);
    expect((await size()).slice(0, 2)).toEqual([width, height]);
    await screenshot(page, "shell-zoomed.png");
    const box = (await page.locator("#screen canvas").boundingBox()) ?? { x: 0, y: 0, width: 1 };
    const scale = box.width / width;
    const clicked = listen();
    await tap({ x: 200, y: 400 });
    await clicked.arrives("+1 -1");
    const [x = 0, y = 0] =
      /ButtonPress[\s\S]*?root:\((\d+),(\d+)\)/.exec(clicked.said())?.slice(1).map(Number) ?? [];
    expect(Math.abs(x - (200 - box.x) / scale)).toBeLessThan(2);
    expect(Math.abs(y - (400 - box.y) / scale)).toBeLessThan(2);
    await slide(
      [
        { x: 20, y: 300 },
        { x: 340, y: 300 },
      ],
      [
        { x: 170, y: 300 },
        { x: 190, y: 300 },
      ],
    );
    await until("the whole picture", async () => (await size())[2] === width);
    expect(await page.locator("#screen").getAttribute("style")).toBe("");
  }, PHONE));

// --- more ---

test("the numbers are there for who asks, and can be copied without a secret", () =>
  withDesktop(
    async (page) => {
      await openPanel(page, "More");
      await page.getByRole("button", { name: "Connection numbers" }).click();
      const row = (name: string) =>
        panel(page, "numbers").locator("dt", { hasText: name }).locator("+ dd").textContent();
      await until("a round trip", async () => / m?s$/.test((await row("Round trip")) ?? ""));
      await until("a rate", async () => /\d a second/.test((await row("Pictures")) ?? ""));
      expect(await row("State")).toBe("Connected");
      expect(await row("Size")).toMatch(/^\d+ × \d+$/);
      await screenshot(page, "shell-numbers.png");
      await page.getByRole("button", { name: "Copy for support" }).click();
      await page.locator("#toast").getByText("Copied.").waitFor();
      const text = await page.evaluate<string>("navigator.clipboard.readText()");
      for (const part of ["jupyter-desktop 0.", "desktop: ready, cause: none", "page: connected"])
        expect(text).toContain(part);
      expect(text).toContain(await page.evaluate<string>("navigator.userAgent"));
      expect(text).not.toContain(TOKEN);
    },
    { permissions: ["clipboard-read", "clipboard-write"] },
  ));

test("the desktop is restarted and stopped from the page, after a question", async () => {
  await using own = await startXev();
  await withDesktop(
    async (page) => {
      const state = async () => {
        const answer = await own.ask("desktop/api/status");
        return (await answer.json()) as { state: string; since: string };
      };
      const order = async (name: string, answer: string) => {
        await openPanel(page, "More");
        await panel(page, "more").getByRole("button", { name }).click();
        const question = page.getByRole("dialog", { name });
        await question.waitFor();
        await question.getByRole("button", { name: answer }).click();
        await question.waitFor({ state: "hidden" });
      };
      const orders: string[] = [];
      page.on("request", (request) => {
        if (request.method() === "POST") orders.push(new URL(request.url()).pathname);
      });
      const before = await state();
      await order("Restart the desktop", "Cancel");
      await order("Restart the desktop", "Restart the desktop");
      await until("another desktop", async () => (await state()).since !== before.since, SLOW_MS);
      await inState(page, "connected");
      await order("Stop the desktop", "Stop the desktop");
      await page.getByText("It was stopped on request.").waitFor();
      await page.getByRole("button", { name: "Start a new session" }).waitFor();
      await until("the end", async () => (await state()).state === "ended", SLOW_MS);
      expect(orders.filter((path) => !path.endsWith("/scale"))).toEqual([
        "/desktop/api/restart",
        "/desktop/api/stop",
      ]);
      await screenshot(page, "shell-ended.png");
    },
    { on: own },
  );
});

test("where the desktop is somebody else's, the page does not offer to end it", async () => {
  using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
  await using other = await startServer(["--vnc", vnc.name]);
  await withPage(browser, { noise: NOISE }, async (page) => {
    await page.goto(other.url.href);
    await openPanel(page, "More");
    const names = await page.locator("#more button:visible").allTextContents();
    expect(names.map((name) => name.trim())).toEqual(["Connection numbers", "Log out"]);
  });
});

// --- for everybody ---

test("from the load to the log-out one needs nothing but a keyboard", () =>
  withDesktop(async (page) => {
    await until("the focus on the desktop", async () => (await focused(page)) === "CANVAS");
    await page.keyboard.press("Control+Alt+Shift");
    const walked: string[] = [];
    for (let step = 0; step < 8; step++) {
      walked.push(await focused(page));
      await page.keyboard.press("Tab");
    }
    expect(walked).toEqual([
      "clipboard-button",
      "keys-button",
      "display-button",
      "files-button",
      "share-button",
      "fullscreen-button",
      "more-button",
      "tuck-button",
    ]);
    // Each panel opens by Enter, is walked by Tab, and Escape leads back to its button.
    for (const name of PANELS) {
      await button(page, name).focus();
      await page.keyboard.press("Enter");
      await panel(page, name.toLowerCase()).waitFor();
      await page.keyboard.press("Tab");
      expect(
        await page.evaluate<boolean>("document.activeElement.closest('.panel') !== null"),
      ).toBe(true);
      await page.keyboard.press("Escape");
      await until(
        `the focus on ${name}`,
        async () => (await focused(page)) === `${name.toLowerCase()}-button`,
      );
    }
    await page.keyboard.press("Enter");
    await panel(page, "more").waitFor();
    for (let step = 0; (await focused(page)) !== "logout-entry"; step++) {
      expect(step).toBeLessThan(12);
      await page.keyboard.press("Tab");
    }
    await page.keyboard.press("Enter");
    await page.getByLabel("Token").waitFor();
    expect(await violations(page)).toEqual([]);
    await screenshot(page, "shell-logged-out.png");
    expect(await page.context().cookies()).toEqual([]);
    await page.goto(new URL("/", desk.url).href);
    await page.getByLabel("Token").waitFor();
  }));

const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** What breaks WCAG's A or AA on the page as it is now. */
async function violations(page: Page): Promise<string[]> {
  await page.evaluate(`${AXE};0`);
  return page.evaluate<string[]>(`
    axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] }).then(
      ({ violations }) => violations.flatMap(({ id, nodes }) =>
        nodes.map(({ target, failureSummary }) => id + " " + target + ": " + failureSummary)))
  `);
}

test.each<[string, PageOptions]>([
  ["by day", {}],
  ["by night", { colorScheme: "dark" }],
  ["on a phone", PHONE],
  ["on a phone in German by night", { ...PHONE, locale: "de-DE", colorScheme: "dark" }],
])("nothing breaks WCAG AA %s, whatever is open", (name, options) =>
  withDesktop(async (page) => {
    const check = async (what: string) => {
      expect([what, await violations(page)]).toEqual([what, []]);
      expect([what, await overflow(page, "html")]).toEqual([what, 0]);
      await screenshot(page, `axe-${name}-${what}.png`.replaceAll(" ", "-"));
    };
    await check("bar");
    const ids = await page.evaluate<string[]>(
      "[...document.querySelectorAll('section[popover]')].map(({ id }) => id)",
    );
    expect(ids).toEqual([...PANELS.map((name) => name.toLowerCase()), "numbers"]);
    for (const id of ids) {
      await page.evaluate(`document.querySelector("#${id}").showPopover()`);
      await panel(page, id).waitFor();
      await check(id);
      expect([id, await overflow(page, `#${id}`)]).toEqual([id, 0]);
      await page.evaluate(`document.querySelector("#${id}").hidePopover()`);
    }
    await page.locator("#more-button").click();
    await page.locator("#stop-entry").click();
    await check("confirm");
    await page.keyboard.press("Escape");
    // A link, a file and an upload, each with a name that is too long for its place.
    const long = "Zwischenablagenverwaltungsprogrammverzeichnis".repeat(2);
    await page.locator("#files-input").setInputFiles({
      name: `${name} ${long}.txt`,
      mimeType: "text/plain",
      buffer: Buffer.from("text"),
    });
    await page.locator('#uploads-list [data-state="done"]').waitFor();
    await page.evaluate("document.querySelector('#files').showPopover()");
    await panel(page, "files").getByRole("link").first().waitFor();
    await check("files-full");
    expect(await overflow(page, "#files")).toBe(0);
    await page.evaluate("document.querySelector('#share').showPopover()");
    await page.locator("#share-name").fill(long.slice(0, 60));
    await page.keyboard.press("Enter");
    await page.locator("#share-address").waitFor();
    await check("share-full");
    expect(await overflow(page, "#share")).toBe(0);
    await page.evaluate("document.querySelector('#share').hidePopover()");
    if (options.hasTouch) {
      await page.locator("#touch-button").tap();
      await check("touch");
    }
  }, options),
);

/** What the page is told of a desktop that is not there, and the code that closed its WebSocket. */
const TOLD: Record<string, [number, Record<string, unknown>]> = {
  starting: [4411, { state: "starting" }],
  ended: [4410, { state: "ended", cause: "logged-out" }],
  failed: [
    4412,
    {
      ...{ state: "failed", cause: "desktop-exited", attempt: 5 },
      detail: { code: 127, afterMs: 280, xstartup: "/home/ada/.config/jupyter-desktop/xstartup" },
      log: ["dbus-launch: not found", "x".repeat(200)],
    },
  ],
  "no-desktop": [
    4412,
    {
      ...{ state: "failed", cause: "no-desktop" },
      detail: { command: "sudo apt-get install -y xfce4 dbus-x11 tigervnc-standalone-server" },
    },
  ],
  paused: [4408, { state: "ready" }],
  expired: [4401, { state: "ready" }],
};

test.each<[string, PageOptions]>([
  ["by day", {}],
  ["on a phone in German by night", { ...PHONE, locale: "de-DE", colorScheme: "dark" }],
])("nor does %s what the page says when there is no desktop to see", (name, options) =>
  withPage(browser, { noise: NOISE, ...options }, async (page) => {
    let [code, status]: [number, object] = [4411, {}];
    await page.routeWebSocket(/websockify/, (socket) => socket.close({ code, reason: "told" }));
    await page.route("**/api/status*", (route) =>
      /event-stream/.test(route.request().headers().accept ?? "")
        ? route.fulfill({ contentType: "text/event-stream", body: ": nothing\n\n" })
        : route.fulfill({ json: { since: "2026-01-31T12:00:00Z", closed: code, ...status } }),
    );
    for (const [what, told] of Object.entries(TOLD)) {
      [code, status] = told;
      await page.goto(desk.url.href);
      await inState(page, what === "starting" ? "waiting" : "stopped");
      // At first the connection is lost, for a reason that the page has yet to ask for.
      if (what === "starting")
        await page.locator("#notice-body:empty").waitFor({ state: "attached" });
      const title = await page.locator("#notice-title").textContent();
      expect(await page.locator("#status").textContent()).toBe(title);
      expect(title).not.toBe("");
      await page.evaluate(
        "document.querySelector('.card').getAnimations().forEach((move) => move.finish())",
      );
      expect([what, await violations(page)]).toEqual([what, []]);
      expect([what, await overflow(page, "html"), await overflow(page, "#notice")]).toEqual([
        ...[what, 0, 0],
      ]);
      await screenshot(page, `told-${name}-${what}.png`.replaceAll(" ", "-"));
    }
  }),
);
