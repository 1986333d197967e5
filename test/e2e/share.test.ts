/** Sharing as two people have it, each with a browser of their own: one watches, one controls, and both are sent away. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { startServer, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  type Desk,
  ensureViewer,
  inState,
  launchBrowser,
  screenshot,
  SLOW_MS,
  withPage,
} from "./_browser.ts";

setDefaultTimeout(3 * SLOW_MS);

/** Chromium itself, of what is refused to who is not let in any more. */
const REFUSED =
  /^Failed to load resource: the server responded with a status of 40[13] \((Unauthorized|Forbidden)\)$/;

let browser: Browser;
let desk: Desk;

/** A desktop of one terminal, which writes what is typed into a file. */
const XSTARTUP = `#!/bin/sh
xsetroot -solid teal
xterm -geometry 80x24+0+0 -e sh -c 'cat > "$HOME/typed"' &
exec sleep 1000
`;

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  const xstartup = path.join(ARTIFACTS, "share-xstartup");
  fs.writeFileSync(xstartup, XSTARTUP, { mode: 0o755 });
  [browser, desk] = await Promise.all([launchBrowser(), startServer(["--xstartup", xstartup])]);
}, SLOW_MS);

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
  await browser?.close();
}, SLOW_MS);

const typed = () => {
  const file = path.join(desk.dir, "typed");
  return fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
};

/** Types a line at the terminal, whose window has the keyboard while the pointer is on it. */
async function typeLine(page: Page, line: string) {
  await page.locator("#screen canvas").click({ position: { x: 60, y: 60 } });
  await page.keyboard.type(`${line}\n`);
}

/** Makes a link in the panel, and returns its address. */
async function makeLink(page: Page, role: string, name: string) {
  await page.getByRole("button", { name: "Share", exact: true }).click();
  await page.getByLabel("Whoever has the link may").selectOption({ label: role });
  await page.getByLabel("Who it is for").fill(name);
  await page.getByRole("button", { name: "Make a link" }).click();
  const address = page.getByRole("textbox", { name: "The link" });
  await address.waitFor();
  return await address.inputValue();
}

test("a guest watches, another controls, the owner sees both and sends them away", () =>
  withPage(browser, { permissions: ["clipboard-read", "clipboard-write"] }, async (owner) => {
    await owner.goto(desk.url.href);
    await inState(owner, "connected");
    await typeLine(owner, "the owner was here");
    await until("the owner's line", () => typed() === "the owner was here\n");

    const watch = await makeLink(owner, "only watch", "Ada");
    expect(await owner.evaluate<string>("navigator.clipboard.readText()")).toBe(watch);
    expect(watch).toStartWith(new URL("/desktop/?share=", desk.url).href);
    await owner.keyboard.press("Escape");
    const control = await makeLink(owner, "use mouse and keyboard", "Bob");

    const noise = [REFUSED];
    await withPage(browser, { noise, viewport: { width: 900, height: 600 } }, async (ada) => {
      await ada.goto(watch);
      await inState(ada, "connected");
      expect(ada.url()).toBe(new URL("/desktop/", desk.url).href);
      await ada.getByRole("status").getByText("You are watching").waitFor();
      for (const name of ["Clipboard", "Keys", "Files", "Share"])
        expect(await ada.getByRole("button", { name, exact: true }).count()).toBe(0);
      await typeLine(ada, "not from who watches");
      await screenshot(ada, "share-watching.png");
      await ada.getByRole("button", { name: "More" }).click();
      await ada.getByRole("button", { name: "Leave" }).waitFor();
      expect(await ada.getByRole("button", { name: "Restart" }).count()).toBe(0);
      await ada.keyboard.press("Escape");

      await withPage(browser, { noise }, async (bob) => {
        await bob.goto(control);
        await inState(bob, "connected");
        await bob.getByRole("status").getByText("You are a guest").waitFor();
        expect(await bob.getByRole("button", { name: "Files", exact: true }).count()).toBe(0);
        await typeLine(bob, "but from who controls");
        await until("Bob's line", () => typed() === "the owner was here\nbut from who controls\n");

        const people = owner.locator("#share-people li");
        await owner.locator("#share-people").getByText("Bob").waitFor();
        expect(await people.count()).toBe(3);
        await screenshot(owner, "share-panel.png");

        const since = performance.now();
        await owner.getByRole("button", { name: "End the link of Ada" }).click();
        await inState(ada, "stopped");
        expect(performance.now() - since).toBeLessThan(1_000);
        await ada.getByRole("heading", { name: "This link has ended" }).waitFor();
        expect(await ada.locator("#frame canvas").count()).toBe(0);
        await screenshot(ada, "share-ended.png");
        await ada.getByRole("button", { name: "Reload the page" }).click();
        await ada.getByText("This link to the desktop has expired or was revoked").waitFor();

        await inState(bob, "connected");
        await owner.locator("#share-people").getByText("Ada").waitFor({ state: "detached" });
        expect(await people.count()).toBe(2);
        await bob.getByRole("button", { name: "More" }).click();
        await bob.getByRole("button", { name: "Leave" }).click();
        await bob.getByText("needs a token").or(bob.getByRole("textbox")).first().waitFor();
      });
    });
    expect(typed()).not.toContain("watches");
  }));
