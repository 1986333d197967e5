/** Files and links under a real JupyterHub: the owner's page has the ticket for them, a guest needs no account. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser } from "playwright-core";
import { until } from "../_helpers.ts";
import { ensureViewer, inState, launchBrowser, SLOW_MS, withPage } from "./_browser.ts";
import { logIn, spawn, startHub, type TestHub } from "./_hub.ts";

setDefaultTimeout(4 * SLOW_MS);

/** The Hub's own pages load what this project cannot answer for. */
const HUB_NOISE = [/favicon/, /status of 40[13]/, /status of 503/];

let browser: Browser;
let hub: TestHub;
beforeAll(async () => {
  await ensureViewer();
  [browser, hub] = await Promise.all([
    launchBrowser(),
    startHub({
      env: { "*": { JUPYTER_DESKTOP_SHARE: "true" } },
      xstartup: "#!/bin/sh\nexec sleep 1000\n",
    }),
  ]);
  await spawn(hub, "alice");
}, 4 * SLOW_MS);
afterAll(async () => {
  await browser?.close();
  await hub?.[Symbol.asyncDispose]();
}, SLOW_MS);

test("with --share a guest comes in by a link, and the owner's files go up and down", () =>
  withPage(browser, { noise: HUB_NOISE }, async (owner) => {
    await owner.goto(new URL("user/alice/", hub.url).href);
    await logIn(owner, "alice");
    await inState(owner, "connected");
    const content = Buffer.alloc(3_000_000, 7);
    const file = { name: "data.bin", mimeType: "application/octet-stream", buffer: content };
    await owner.locator("#files-input").setInputFiles(file);
    const arrived = path.join(hub.home("alice"), "Desktop/data.bin");
    await until("the file", () => fs.existsSync(arrived) && fs.statSync(arrived).size > 0);
    expect(fs.readFileSync(arrived).equals(content)).toBe(true);
    await owner.getByRole("button", { name: "Files", exact: true }).click();
    const [download] = await Promise.all([
      owner.waitForEvent("download"),
      owner.getByRole("link", { name: "data.bin" }).click(),
    ]);
    expect(fs.readFileSync(await download.path()).equals(content)).toBe(true);

    await owner.getByRole("button", { name: "Share", exact: true }).click();
    await owner.getByRole("button", { name: "Make a link" }).click();
    const address = owner.getByRole("textbox", { name: "The link" });
    await address.waitFor();
    const link = await address.inputValue();
    await withPage(browser, { noise: HUB_NOISE }, async (guest) => {
      await guest.goto(link);
      await inState(guest, "connected");
      expect(guest.url()).toBe(new URL("user/alice/desktop/", hub.url).href);
      await guest.getByText("You are watching").waitFor();
      await owner.getByRole("button", { name: /^End the link/ }).click();
      await inState(guest, "stopped");
      await guest.getByRole("heading", { name: "This link has ended" }).waitFor();
    });
  }));
