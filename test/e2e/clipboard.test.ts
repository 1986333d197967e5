/** Copying here and pasting there, and the other way, with real keys, Chromium's own clipboard, and programs of X. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Frame, Page } from "playwright-core";
import { processesWith, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  ensureViewer,
  inState,
  launchBrowser,
  overflow,
  type PageOptions,
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

const GRANTED = { permissions: ["clipboard-read", "clipboard-write"] };
const TEXT = "dürfen – “x” € 😀 👩‍👩‍👧 日本";
/** 200 KiB, of which no two lines are the same. */
const LONG = Array.from({ length: 6400 }, (_, at) => `line ${at} of a text with ü`.padEnd(31))
  .join("\n")
  .slice(0, 200 * 1024);

/** Chromium's clipboard, as another page with all permissions has it. */
async function otherPage() {
  const context = await browser.newContext(GRANTED);
  const page = await context.newPage();
  await page.goto(new URL("/healthz", desk.url).href);
  return {
    write: (text: string) =>
      page.bringToFront().then(() => page.evaluate(writeText(text))) as Promise<void>,
    read: () =>
      page.bringToFront().then(() => page.evaluate<string>("navigator.clipboard.readText()")),
    [Symbol.asyncDispose]: () => context.close(),
  };
}

const writeText = (text: string) => `navigator.clipboard.writeText(${JSON.stringify(text)})`;

const withDesktop = (options: PageOptions & { at?: Light }, use: (page: Page) => Promise<void>) =>
  withPage(browser, options, async (page) => {
    await page.goto((options.at ?? desk).url.href);
    await inState(page, "connected");
    await use(page);
  });

const PASTES = [
  "*VT100.translations: #override Ctrl<Key>v: insert-selection(CLIPBOARD)",
  "Shift<Key>Insert: insert-selection(CLIPBOARD)",
].join("\\n ");

/** A terminal that writes what is typed and pasted into a file; without a window manager it has the keys below the mouse. */
async function terminal(page: Page, at = desk) {
  const file = path.join(at.dir, `typed-${crypto.randomUUID()}`);
  const script = `stty -echo -icanon; echo > ${file}.ready; exec cat > ${file}`;
  const options = ["-u8", "-geometry", "80x24+0+0", "-xrm", PASTES];
  const child = at.start(["env", "LC_ALL=C.UTF-8", "xterm", ...options, "-e", "sh", "-c", script]);
  await until("the terminal", () => fs.existsSync(`${file}.ready`));
  const box = await page.locator("canvas, iframe").first().boundingBox();
  await page.mouse.click((box?.x ?? 0) + 60, (box?.y ?? 0) + 60);
  return {
    text: () => (fs.existsSync(file) ? fs.readFileSync(file, "utf8") : ""),
    async [Symbol.asyncDispose]() {
      child.kill();
      await child.exited;
    },
  };
}

/** Copies here, and pastes there between two keys, again and again. */
async function pastes(page: Page, keys = "Control+v") {
  await using other = await otherPage();
  await using typed = await terminal(page);
  let all = "";
  for (const text of [TEXT, "short", `${TEXT} again`]) {
    await other.write(text);
    await page.bringToFront();
    await page.keyboard.press("a");
    await page.keyboard.press(keys);
    await page.keyboard.press("b");
    // X's programs ask for the clipboard, and go on with the keys meanwhile.
    const either = [`${all}a${text}b`, `${all}ab${text}`];
    all = await until(`one of ${either}`, () => either.find((good) => good === typed.text()));
  }
  expect(await desk.clipboard()).toBe(`${TEXT} again`);
}

test("where the browser allows all, the usual keys paste there what was copied here", () =>
  withDesktop(GRANTED, (page) => pastes(page)));

test("where the browser allows nothing, they do so as well", () =>
  withDesktop({ permissions: [] }, (page) => pastes(page)));

test("so does Shift with Insert", () => withDesktop({}, (page) => pastes(page, "Shift+Insert")));

/** The page in a frame of another page of the same origin, as JupyterLab has it. */
async function framed(page: Page): Promise<Frame> {
  const outside = new URL("/outside", desk.url).href;
  await page.route(outside, (route) =>
    route.fulfill({
      contentType: "text/html",
      body: '<!doctype html><title>outside</title><iframe src="/" width="1000" height="640"></iframe>',
    }),
  );
  await page.goto(desk.url.href); // for the cookie
  await page.goto(outside);
  const frame = await until("the frame", () =>
    page.frames().find((each) => each !== page.mainFrame()),
  );
  await frame.locator('body[data-state="connected"]').waitFor();
  return frame;
}

test("in a frame of the same origin, both ways work", () =>
  withPage(browser, GRANTED, async (page) => {
    const frame = await framed(page);
    await pastes(page);
    await using other = await otherPage();
    await page.bringToFront();
    await frame.locator("canvas").click();
    await copiedThere(frame, "out of a frame: ü 😀");
    expect(await other.read()).toBe("out of a frame: ü 😀");
  }));

/** Copies on the desktop, and waits until this computer has it. */
async function copiedThere(page: Page | Frame, text: string) {
  const here = () => page.evaluate<string>("navigator.clipboard.readText()");
  await until(
    "the text here",
    async () => {
      // What the desktop holds while the page connects is old news to it: so it may be copied twice.
      await desk.copy(text);
      await until("it", async () => (await here()) === text, 1_000).catch(() => {});
      return (await here()) === text;
    },
    10_000,
  );
}

test("what is copied there is here, 200 KiB as well, and does not come back there", () =>
  withDesktop(GRANTED, async (page) => {
    await page.locator("canvas").click();
    for (const text of [TEXT, LONG]) await copiedThere(page, text);
    const owners = () =>
      processesWith(desk.dir).filter(
        (pid) => fs.readFileSync(`/proc/${pid}/comm`, "utf8") === "xclip\n",
      );
    await until("one owner of it", () => owners().length === 1);
    await page.evaluate('window.dispatchEvent(new Event("focus"))');
    await page.locator("canvas").click();
    // xclip ends as soon as another owns the clipboard; a way round the server would have ended it.
    await page.evaluate("navigator.clipboard.readText()");
    expect(owners()).toHaveLength(1);
    expect(await desk.clipboard()).toBe(LONG);
  }));

test("200 KiB that are pasted arrive, and a text that the server does not take is told", () =>
  withDesktop({}, async (page) => {
    await using other = await otherPage();
    const paste = async (text: string) => {
      await other.write(text);
      await page.bringToFront();
      await page.locator("canvas").click();
      await page.keyboard.press("Control+v");
    };
    await paste(LONG);
    await until("the long text there", async () => (await desk.clipboard()) === LONG);
    await paste(LONG.repeat(2));
    await page.getByRole("status").filter({ hasText: "longer than 256 KiB" }).first().waitFor();
  }));

test("where the browser forbids it, one click copies here what was copied there", () =>
  withDesktop({ permissions: [] }, async (page) => {
    await page.evaluate(
      'navigator.clipboard.writeText = () => Promise.reject(new DOMException("no", "NotAllowedError"))',
    );
    await using other = await otherPage();
    await page.bringToFront();
    await page.locator("canvas").click();
    const button = page.locator("#toast").getByRole("button", { name: "Copy to this computer" });
    await until("the offer", async () => {
      await page.keyboard.press("Shift");
      await desk.copy(`copied there ${TEXT} ${Date.now()}`);
      return await button.waitFor({ timeout: 1_000 }).then(
        () => true,
        () => false,
      );
    });
    await screenshot(page, "clipboard-offer.png");
    await button.click();
    await until("the keyboard back at the desktop", () =>
      page.evaluate<boolean>('document.activeElement.matches("canvas")'),
    );
    await until("the text here", async () => (await other.read()).startsWith("copied there"));
  }));

test("with --clipboard in, nothing comes out, and the page offers only what works", async () => {
  await using at = await lightDesk("--clipboard", "in");
  await withDesktop({ ...GRANTED, at }, async (page) => {
    await using typed = await terminal(page, at);
    await page.evaluate(writeText("goes in"));
    await page.keyboard.press("Control+v");
    await until("the text there", () => typed.text() === "goes in");
    await at.copy("stays there");
    await page.getByRole("button", { name: "Clipboard" }).click();
    await page.getByText("Nothing can be copied out of it.").waitFor();
    expect(await page.getByRole("button", { name: "Copy to this computer" }).count()).toBe(0);
    await screenshot(page, "clipboard-in.png");
    await page.keyboard.press("Escape");
    await until("the keyboard back at the desktop", () =>
      page.evaluate<boolean>('document.activeElement.matches("canvas")'),
    );
    await page.keyboard.press("x");
    await until("a key, after which all would have come", () => typed.text() === "goes inx");
    expect(await page.locator("#clipboard-text").inputValue()).toBe("goes in");
    expect(await page.evaluate<string>("navigator.clipboard.readText()")).toBe("goes in");
  });
});

test("with --clipboard out, nothing goes in, and the keys still work", async () => {
  await using at = await lightDesk("--clipboard", "out");
  await withDesktop({ ...GRANTED, at }, async (page) => {
    await using typed = await terminal(page, at);
    await at.copy("of the desktop");
    await page.evaluate(writeText("must not go in"));
    await page.locator("canvas").click({ position: { x: 60, y: 60 } });
    await page.keyboard.press("Control+v");
    await until("what the desktop has", () => typed.text() === "of the desktop");
    await page.getByRole("button", { name: "Clipboard" }).click();
    await page.getByText("Nothing can be pasted into it.").waitFor();
    expect(await page.getByRole("textbox").isEditable()).toBe(false);
    expect(await page.getByRole("button", { name: "Paste from this computer" }).count()).toBe(0);
  });
});

test("with --clipboard off, the page has no clipboard", async () => {
  await using at = await lightDesk("--clipboard", "off");
  await withDesktop({ at }, async (page) => {
    await page.getByRole("button", { name: "Keys" }).waitFor();
    expect(await page.getByRole("button", { name: "Clipboard" }).count()).toBe(0);
  });
});

test.each([
  ["light", 1000],
  ["dark", 1000],
  ["light", 360],
  ["dark", 360],
] as const)("panels are drawn, %s, %d pixels wide", (colorScheme, width) =>
  withDesktop(
    { colorScheme, viewport: { width, height: 700 }, deviceScaleFactor: 2 },
    async (page) => {
      for (const name of ["clipboard", "display"]) {
        const button = page.locator(`#${name}-button`);
        if (await button.isVisible()) await button.click();
        else {
          await page.getByRole("button", { name: "More" }).click();
          await page.locator(`#${name}-entry`).click();
        }
        await page.locator(`#${name}`).waitFor();
        await screenshot(page, `panel-${name}-${colorScheme}-${width}.png`);
        expect(await overflow(page, `#${name}`)).toBe(0);
        await page.keyboard.press("Escape");
      }
    },
  ),
);
