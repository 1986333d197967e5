/** How large the desktop is, how it is shown, and how fine: Chromium before a real Xvnc with a pattern of lines. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import type { Browser, Page } from "playwright-core";
import { startServer, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  ensureViewer,
  inState,
  launchBrowser,
  type Desk,
  onDesktop,
  type PageOptions,
  screenshot,
  withPage,
} from "./_browser.ts";
import { type Light, lightDesk, Narrow } from "./_light.ts";

setDefaultTimeout(60_000);

let browser: Browser;
let desk: Light;

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  [browser, desk] = await Promise.all([launchBrowser(), lightDesk()]);
});

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
  await browser?.close();
});

const VIEWPORT = { width: 1003, height: 701 };

const withDesktop = (options: PageOptions, use: (page: Page) => Promise<void>) =>
  withPage(browser, { viewport: VIEWPORT, ...options }, async (page) => {
    await page.goto(desk.url.href);
    await inState(page, "connected");
    await use(page);
  });

interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

const boxOf = (page: Page, selector: string) =>
  page.evaluate<Box>(`document.querySelector("${selector}").getBoundingClientRect().toJSON()`);

const sizeIs = (width: number, height: number) =>
  until(
    `a desktop of ${width}x${height}`,
    async () => String(await desk.size()) === String([width, height]),
  );

/** The page's pixels, as the screen has them: how each row of them changes colour, by counting in another page. */
async function linesIn(page: Page, clip: Box) {
  const png = (await page.screenshot({ clip, animations: "disabled" })).toString("base64");
  await using context = await browser.newContext();
  const reader = await context.newPage();
  return await reader.evaluate<{ width: number; height: number; row: number[]; column: number[] }>(
    `(async () => {
      const image = new Image();
      image.src = "data:image/png;base64,${png}";
      await image.decode();
      const { width, height } = image;
      const context = new OffscreenCanvas(width, height).getContext("2d");
      context.drawImage(image, 0, 0);
      const grey = (x, y, w, h) => [...new Uint32Array(context.getImageData(x, y, w, h).data.buffer)].map((p) => p & 255);
      // Beside the lines that run along them.
      const calm = [...Array(16).keys()].map((at) => [grey(0, at, width, 1), grey(at, 0, 1, height)]);
      const least = (lines) => lines.sort((a, b) => a.reduce((s, v) => s + v, 0) - b.reduce((s, v) => s + v, 0))[0];
      return { width, height, row: least(calm.map(([row]) => row)), column: least(calm.map(([, column]) => column)) };
    })()`,
  );
}

/** White where a line is, one pixel of the screen wide, and black between: nothing else, and no line missing. */
function expectLines(values: number[]) {
  const first = values.indexOf(255);
  expect(first).toBeLessThan(16);
  expect(values).toEqual(values.map((_, at) => (at % 16 === first ? 255 : 0)));
}

test.each([1, 1.5, 2])(
  "at a pixel ratio of %d the desktop has the screen's pixels, a line of one is one there, and the pointer hits it",
  (deviceScaleFactor) =>
    withDesktop({ deviceScaleFactor }, async (page) => {
      const area = await boxOf(page, "#screen");
      const size = [area.width, area.height].map((side) => Math.floor(side * deviceScaleFactor));
      await sizeIs(size[0] ?? 0, size[1] ?? 0);
      await until("a canvas of that size", () =>
        page.evaluate<boolean>(`document.querySelector("#screen canvas").width === ${size[0]}`),
      );
      const lines = await until("lines on the screen", async () => {
        // From whole pixels of the screen, at each ratio: Chromium blurs a picture of parts of them.
        const y = 2 * Math.ceil(area.y / 2);
        const found = await linesIn(page, { x: 0, y, width: 320, height: 320 });
        return found.row.includes(255) && found.column.includes(255) ? found : undefined;
      });
      expectLines(lines.row);
      expectLines(lines.column);
      for (const [x, y] of [
        [0, 0],
        [17, 5],
        [501, 333],
        [area.width - 1, area.height - 1],
      ] as const) {
        await page.mouse.move(area.x + x, area.y + y);
        const wanted = [x, y].map((at) => Math.floor(at * deviceScaleFactor));
        await until(
          `the pointer at ${wanted}`,
          async () => String(await desk.pointer()) === String(wanted),
        );
      }
    }),
);

test("a size of its own is scaled to the window, and shown pixel by pixel it scrolls; the pointer hits both times", () =>
  withDesktop({}, async (page) => {
    const area = await boxOf(page, "#screen");
    await page.getByRole("button", { name: "Display" }).click();
    const fit = page.getByLabel("Size");
    await fit.selectOption("1920x1080");
    await sizeIs(1920, 1080);
    await until(
      "all of it in the window",
      async () => Math.abs((await boxOf(page, "#screen canvas")).width - area.width) < 1,
    );
    await screenshot(page, "display.png");
    const hits = async (x: number, y: number) => {
      const canvas = await boxOf(page, "#screen canvas");
      const scale = canvas.width / 1920;
      // Chromium's mouse is at whole pixels of the window.
      const [left, top] = [canvas.x + x * scale, canvas.y + y * scale].map(Math.round);
      const [across = 0, down = 0] = [left, top];
      await page.mouse.move(across, down);
      const wanted = [(across - canvas.x) / scale, (down - canvas.y) / scale].map(Math.floor);
      await until(
        `the pointer at ${wanted}, for ${x}, ${y}`,
        async () => String(await desk.pointer()) === String(wanted),
      );
    };
    await page.keyboard.press("Escape");
    await hits(100, 50);
    await hits(1900, 1070);

    await page.getByRole("button", { name: "Display" }).click();
    await fit.selectOption("actual");
    await page.keyboard.press("Escape");
    await until(
      "a canvas of its full size",
      async () => (await boxOf(page, "#screen canvas")).width === 1920,
    );
    expect(await desk.size()).toEqual([1920, 1080]);
    await hits(100, 50);
    await page.evaluate('document.querySelector("#screen").scrollTo(9999, 9999)');
    await hits(1900, 1060);
    await screenshot(page, "display-actual.png");

    // Remembered by this browser: the next visit leaves the size alone.
    await page.reload();
    await inState(page, "connected");
    await until(
      "a canvas of its full size again",
      async () => (await boxOf(page, "#screen canvas")).width === 1920,
    );
    await page.getByRole("button", { name: "Display" }).click();
    await fit.selectOption("scale");
    await until(
      "all of it in the window again",
      async () => Math.abs((await boxOf(page, "#screen canvas")).width - area.width) < 1,
    );
    expect(await desk.size()).toEqual([1920, 1080]);
    await fit.selectOption("window");
    await sizeIs(area.width, area.height);
  }));

test("the first picture that is shown has the window's size already", async () => {
  await using own = await lightDesk("--geometry", "1680x1050");
  await withPage(browser, { viewport: VIEWPORT }, async (page) => {
    // What a person sees in each frame: the canvas's size, and whether it can be seen.
    await page.addInitScript(`{
      const seen = (window.seen = new Set());
      const look = () => {
        const canvas = document.querySelector("#screen canvas");
        if (canvas?.width > 0 && getComputedStyle(canvas).opacity === "1") seen.add(canvas.width + "x" + canvas.height);
        requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    }`);
    await page.goto(own.url.href);
    await inState(page, "connected");
    const area = await boxOf(page, "#screen");
    const seen = await until("a first picture", async () => {
      const sizes = await page.evaluate<string[]>("[...window.seen]");
      return sizes.length > 0 && sizes;
    });
    expect(seen).toEqual([`${area.width}x${area.height}`]);
  });
});

test("the quality falls on a narrow line, and rises when the line is free again", async () => {
  using line = new Narrow(desk.url);
  await withPage(browser, { viewport: { width: 800, height: 600 } }, async (page) => {
    // The JPEG quality that noVNC asked for last, -32 to -23 for 0 to 9.
    let asked: number | undefined;
    page.on("websocket", (socket) =>
      socket.on("framesent", ({ payload }) => {
        if (typeof payload === "string" || payload[0] !== 2) return;
        const count = payload.readUInt16BE(2);
        const all = Array.from({ length: count }, (_, at) => payload.readInt32BE(4 + 4 * at));
        asked = all.find((encoding) => encoding >= -32 && encoding <= -23);
      }),
    );
    await page.goto(line.url.href);
    await inState(page, "connected");
    // A screen full of letters that change ten times a second.
    const letters = "while :; do head -c 1500 /dev/urandom | base64; sleep 0.1; done";
    const moving = desk.start(["xterm", "-geometry", "120x40+0+0", "-e", "sh", "-c", letters]);
    const quality = page.locator("#display-quality");
    const becomes = (level: string) =>
      until(level, async () => (await quality.getAttribute("data-level")) === level, 30_000);
    await becomes("high");
    expect(asked).toBe(-24);
    line.narrow({ bytesPerSecond: 60_000, delayMs: 20 });
    await becomes("low");
    expect(asked).toBe(-29);
    line.free();
    await becomes("high");
    await page.getByRole("button", { name: "Display" }).click();
    await page.getByLabel("Picture quality").selectOption("lossless");
    await becomes("lossless");
    expect(asked).toBeUndefined();
    line.narrow({ bytesPerSecond: 60_000, delayMs: 20 });
    await page.reload();
    await inState(page, "connected");
    await becomes("lossless");
    moving.kill();
    await moving.exited;
  });
});

/** What XFCE draws with, from its own settings. */
const scaleOf = async (at: Desk) => {
  const [factor, dpi] = await Promise.all(
    ["/Gdk/WindowScalingFactor", "/Xft/DPI"].map((name) =>
      onDesktop(at, ["xfconf-query", "-c", "xsettings", "-p", name]),
    ),
  );
  return `${factor?.trim()} ${dpi?.trim()}`;
};

/** How high its upper panel is, which is as wide as the window, in pixels of the desktop. */
async function panelOf(at: Desk) {
  const tree = await onDesktop(at, ["xwininfo", "-root", "-tree"]);
  const sizes = [...tree.matchAll(/"xfce4-panel".*? (\d+)x(\d+)[+-]/g)];
  return sizes
    .map(([, width, height]) => ({ width: Number(width), height: Number(height) }))
    .find(({ width }) => width >= VIEWPORT.width)?.height;
}

test("XFCE draws as large as the screen's pixels ask for, and as it did before for the next screen", async () => {
  await using xfce = await startServer([]);
  const visit = (deviceScaleFactor: number, scale: string, panel: "large" | "small") =>
    withPage(browser, { viewport: VIEWPORT, deviceScaleFactor }, async (page) => {
      await page.goto(xfce.url.href);
      await inState(page, "connected");
      await until(`the scale ${scale}`, async () => (await scaleOf(xfce)) === scale);
      // Its height is that of its letters, give or take a pixel or two.
      await until(`a ${panel} panel`, async () => {
        const height = await panelOf(xfce);
        return height && (panel === "large" ? height > 50 : height < 35);
      });
      await screenshot(page, `display-xfce-${deviceScaleFactor}.png`);
    });
  await visit(2, "2 96", "large");
  await visit(1.5, "1 144", "small");
  await visit(1, "1 96", "small");
  // Before anything of the session's own runs: its panel has to come at the right size as well.
  await xfce.ask("desktop/api/restart", { method: "POST" });
  await visit(2, "2 96", "large");
});
