/** Keys of other keyboards than the American, as Chromium tells them, and the layout that the desktop is given. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, CDPSession, Page } from "playwright-core";
import { until } from "../_helpers.ts";
import {
  ARTIFACTS,
  ensureViewer,
  inState,
  launchBrowser,
  screenshot,
  withPage,
} from "./_browser.ts";
import { type Light, lightDesk } from "./_light.ts";

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

/** A character, the key that it is on, and what is held for it; after a dead key, the character that comes of both. */
type Stroke = [char: string, code: string, held?: "AltGr" | "Shift" | "Dead"];

/** Where the characters are that programmers need, and some with accents, by what is printed on the keys. */
const KEYBOARDS: Record<string, Stroke[]> = {
  de: [
    ["z", "KeyY"],
    ["@", "KeyQ", "AltGr"],
    ["|", "IntlBackslash", "AltGr"],
    ["\\", "Minus", "AltGr"],
    ["{", "Digit7", "AltGr"],
    ["}", "Digit0", "AltGr"],
    ["~", "BracketRight", "AltGr"],
    ["€", "KeyE", "AltGr"],
    ["ß", "Minus"],
    ["ö", "Semicolon"],
    ["Ä", "Quote", "Shift"],
    ["é", "KeyE", "Dead"],
    ["y", "KeyZ"],
  ],
  fr: [
    ["a", "KeyQ"],
    ["@", "Digit0", "AltGr"],
    ["|", "Digit6", "AltGr"],
    ["\\", "Digit8", "AltGr"],
    ["{", "Digit4", "AltGr"],
    ["}", "Equal", "AltGr"],
    ["~", "KeyN", "Dead"],
    ["€", "KeyE", "AltGr"],
    ["ß", "KeyS", "AltGr"],
    ["é", "Digit2"],
    ["1", "Digit1", "Shift"],
    ["ê", "KeyE", "Dead"],
    ["m", "Semicolon"],
  ],
  es: [
    ["ñ", "Semicolon"],
    ["@", "Digit2", "AltGr"],
    ["|", "Digit1", "AltGr"],
    ["\\", "Backquote", "AltGr"],
    ["{", "Quote", "AltGr"],
    ["}", "Backslash", "AltGr"],
    ["~", "Digit4", "AltGr"],
    ["€", "KeyE", "AltGr"],
    ["ß", "KeyS", "AltGr"],
    ["¿", "Equal", "Shift"],
    ["á", "KeyA", "Dead"],
    ["ü", "KeyU", "Dead"],
    ["-", "Slash"],
  ],
};

const held = {
  AltGr: { key: "AltGraph", code: "AltRight", location: 2 },
  Shift: { key: "Shift", code: "ShiftLeft", location: 1 },
} as const;

/** Types as a keyboard with these keys does it: each event with the character that the keyboard makes of it. */
async function type(keyboard: CDPSession, strokes: Stroke[]) {
  const send = (type: "rawKeyDown" | "keyUp", key: object) =>
    keyboard.send("Input.dispatchKeyEvent", { type, ...key });
  for (const [char, code, with_] of strokes) {
    if (with_ === "Dead") {
      // Chromium tells a dead key, and then the character that it has made with the next.
      const dead = { key: "Dead", code: "BracketLeft" };
      await send("rawKeyDown", dead);
      await send("keyUp", dead);
    } else if (with_) await send("rawKeyDown", held[with_]);
    const modifiers = with_ === "Shift" ? 8 : 0;
    await send("rawKeyDown", { key: char, code, modifiers });
    await send("keyUp", { key: char, code, modifiers });
    if (with_ && with_ !== "Dead") await send("keyUp", held[with_]);
  }
}

/** A terminal under the mouse, which writes what is typed into a file. */
async function terminal(page: Page) {
  const file = path.join(desk.dir, `typed-${crypto.randomUUID()}`);
  const script = `stty -echo -icanon; : > ${file}.ready; exec cat > ${file}`;
  const child = desk.start([
    "env",
    "LC_ALL=C.UTF-8",
    "xterm",
    "-u8",
    "-geometry",
    "80x24+0+0",
    "-e",
    "sh",
    "-c",
    script,
  ]);
  await until("the terminal", () => fs.existsSync(`${file}.ready`));
  const box = await page.locator("canvas").boundingBox();
  await page.mouse.click((box?.x ?? 0) + 60, (box?.y ?? 0) + 60);
  return {
    text: () => (fs.existsSync(file) ? fs.readFileSync(file, "utf8") : ""),
    async [Symbol.asyncDispose]() {
      child.kill();
      await child.exited;
    },
  };
}

const layoutOf = async () => /layout: +(\S+)/.exec(await desk.run(["setxkbmap", "-query"]))?.[1];

const withDesktop = (use: (page: Page) => Promise<void>) =>
  withPage(browser, {}, async (page) => {
    await page.goto(desk.url.href);
    await inState(page, "connected");
    await use(page);
  });

const cases = Object.keys(KEYBOARDS).flatMap((name) => [
  [name, name],
  [name, "us"],
]) as [string, string][];

test.each(cases)("what is typed on a keyboard of %s arrives on a desktop of %s", (name, layout) =>
  withDesktop(async (page) => {
    await desk.run(["setxkbmap", "-layout", layout, "-variant", ""]);
    await using typed = await terminal(page);
    const keyboard = await page.context().newCDPSession(page);
    const strokes = KEYBOARDS[name] ?? [];
    const wanted = strokes.map(([char]) => char).join("");
    await type(keyboard, [...strokes, ...strokes]);
    await until(`all of ${wanted}`, () => typed.text().length >= 2 * wanted.length, 5_000).catch(
      () => {},
    );
    expect(typed.text()).toBe(wanted + wanted);
  }),
);

test("a layout that is chosen in the panel is the desktop's, also after a restart of it", () =>
  withDesktop(async (page) => {
    await desk.run(["setxkbmap", "-layout", "us", "-variant", ""]);
    const open = () => page.getByRole("button", { name: "Keys" }).click();
    const choice = page.getByLabel("Keyboard layout of the desktop");
    const shows = (value: string) =>
      until(value, async () => (await choice.inputValue()) === value);
    await open();
    await shows("us");
    await choice.selectOption({ label: "German" });
    await until("the German layout", async () => (await layoutOf()) === "de");
    await screenshot(page, "keys-layout.png");
    await desk.ask("desktop/api/restart", { method: "POST" });
    await inState(page, "connected");
    await until("the German layout again", async () => (await layoutOf()) === "de");
    await choice.selectOption("fr:oss");
    await until("the French layout", async () => (await layoutOf()) === "fr");
    await page.reload();
    await inState(page, "connected");
    await open();
    await shows("fr:oss");
  }));

test("who has chosen no layout leaves it alone", () =>
  withDesktop(async (page) => {
    await desk.run(["setxkbmap", "-layout", "gb", "-variant", ""]);
    await page.reload();
    await inState(page, "connected");
    await page.getByRole("button", { name: "Keys" }).click();
    await until(
      "the layout in the panel",
      async () => (await page.getByLabel("Keyboard layout of the desktop").inputValue()) === "gb",
    );
    expect(await layoutOf()).toBe("gb");
  }));
