/** Files as a person brings and takes them: dropped, chosen, cancelled, on a line that breaks, and downloaded. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { createHash, randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { startServer, tempDir, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  type Desk,
  ensureViewer,
  inState,
  launchBrowser,
  screenshot,
  SLOW_MS,
  Wire,
  withPage,
} from "./_browser.ts";

setDefaultTimeout(3 * SLOW_MS);

/** Chromium itself, of requests while the line is down; then noVNC, of its WebSocket. */
const OFFLINE = [
  /^Failed to load resource: net::ERR_/,
  /^WebSocket connection to '.*' failed: /,
  /^WebSocket on-error event$/,
  /^Failed when connecting: Connection closed/,
  /^Got data while disconnected$/,
];
const MB = 1_000_000;
const hash = (file: string | Uint8Array) =>
  createHash("sha256")
    .update(typeof file === "string" ? fs.readFileSync(file) : file)
    .digest("hex");

let browser: Browser;
let desk: Desk;
let folder: string;
const here = tempDir();

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  const xstartup = path.join(here.path, "xstartup");
  fs.writeFileSync(xstartup, "#!/bin/sh\nexec sleep 1000\n", { mode: 0o755 });
  [browser, desk] = await Promise.all([launchBrowser(), startServer(["--xstartup", xstartup])]);
  folder = path.join(desk.dir, "Desktop");
}, SLOW_MS);

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
  await browser?.close();
  here[Symbol.dispose]();
}, SLOW_MS);

/** Drags files and folders of this computer over the desktop, and drops them, as Chromium does it for a hand. */
async function drop(page: Page, files: string[], onTheWay: () => Promise<void> = async () => {}) {
  const cdp = await page.context().newCDPSession(page);
  const data = { items: [], files, dragOperationsMask: 1 };
  const at = { x: 400, y: 300, data };
  await cdp.send("Input.dispatchDragEvent", { type: "dragEnter", ...at });
  await cdp.send("Input.dispatchDragEvent", { type: "dragOver", ...at });
  await onTheWay();
  await cdp.send("Input.dispatchDragEvent", { type: "drop", ...at });
}

const withDesk = (
  use: (page: Page) => Promise<void>,
  { url = desk.url, noise = [] as readonly RegExp[] } = {},
) =>
  withPage(browser, { noise }, async (page) => {
    await page.goto(url.href);
    await inState(page, "connected");
    await use(page);
  });

const title = (page: Page, text: string | RegExp) =>
  page.locator("#uploads-title", { hasText: text });

test("files and folders that are dropped on the desktop are on it, and nothing is overwritten", () =>
  withDesk(async (page) => {
    const large = path.join(here.path, "large.bin");
    fs.writeFileSync(large, randomBytes(20 * MB));
    fs.mkdirSync(path.join(here.path, "data/raw"), { recursive: true });
    fs.writeFileSync(path.join(here.path, "data/raw/ü 漢字.csv"), "1,2");
    fs.writeFileSync(path.join(here.path, "data/empty"), "");
    await drop(page, [large, path.join(here.path, "data")], async () => {
      await page.getByText("Drop the files to put them on the desktop").waitFor();
      await screenshot(page, "files-drop.png");
    });
    await title(page, "Uploaded: 3 of 3").waitFor();
    expect(hash(path.join(folder, "large.bin"))).toBe(hash(large));
    expect(fs.readFileSync(path.join(folder, "data/raw/ü 漢字.csv"), "utf8")).toBe("1,2");
    expect(fs.readFileSync(path.join(folder, "data/empty"), "utf8")).toBe("");
    expect(await page.locator("#drop").isVisible()).toBe(false);

    fs.writeFileSync(large, "another");
    await drop(page, [large]);
    await page.getByText("Saved as large (2).bin").waitFor();
    await screenshot(page, "files-done.png");
    expect(fs.readFileSync(path.join(folder, "large (2).bin"), "utf8")).toBe("another");
    expect(fs.statSync(path.join(folder, "large.bin")).size).toBe(20 * MB);
  }));

test("an upload goes on by itself when the line was cut and the network was away", async () => {
  using wire = new Wire(desk.url);
  await withDesk(
    async (page) => {
      const file = path.join(here.path, "through.bin");
      fs.writeFileSync(file, randomBytes(40 * MB));
      const half = () => fs.readdirSync(folder).find((name) => name.endsWith(".part"));
      const arrived = () => fs.statSync(path.join(folder, half() ?? "")).size;
      await drop(page, [file]);
      await until("a beginning", () => half() && arrived() > MB);
      wire.down();
      await page.getByText("The connection was lost. It goes on by itself.").waitFor();
      await screenshot(page, "files-stalled.png");
      expect(fs.existsSync(path.join(folder, "through.bin"))).toBe(false);
      expect(arrived()).toBeLessThan(40 * MB);
      wire.up();
      await title(page, "Uploaded: 1 of 1").waitFor();
      expect(hash(path.join(folder, "through.bin"))).toBe(hash(file));
      expect(half()).toBeUndefined();
    },
    { url: wire.url, noise: OFFLINE },
  );
});

test("an upload that is cancelled leaves nothing, and the next one follows", async () => {
  using wire = new Wire(desk.url);
  await withDesk(
    async (page) => {
      const [first, second] = ["first.bin", "second.txt"].map((name) => path.join(here.path, name));
      fs.writeFileSync(String(first), Buffer.alloc(60 * MB));
      fs.writeFileSync(String(second), "second");
      wire.silence();
      await drop(page, [String(first), String(second)]);
      await page.locator("#uploads").getByText("first.bin").waitFor();
      await screenshot(page, "files-sending.png");
      await page.getByRole("button", { name: "Cancel first.bin" }).click();
      wire.up();
      await title(page, "Uploaded: 1 of 1").waitFor();
      expect(fs.readFileSync(path.join(folder, "second.txt"), "utf8")).toBe("second");
      expect(fs.existsSync(path.join(folder, "first.bin"))).toBe(false);
      await until(
        "the end of the half",
        () => !fs.readdirSync(folder).some((name) => name.endsWith(".part")),
      );
    },
    { url: wire.url, noise: OFFLINE },
  );
});

test("the panel uploads what is chosen, lists what is there, and downloads it", () =>
  withDesk(async (page) => {
    fs.mkdirSync(path.join(folder, "results"), { recursive: true });
    fs.writeFileSync(path.join(folder, "results/page.html"), "<script>alert(1)</script>");
    await page.getByRole("button", { name: "Files", exact: true }).click();
    await page.getByRole("button", { name: "Upload files" }).waitFor();
    const chosen = path.join(here.path, "chosen.txt");
    fs.writeFileSync(chosen, "chosen");
    await page.locator("#files-input").setInputFiles(chosen);
    const list = page.locator("#files-list");
    await list.getByText("chosen.txt").waitFor();
    await screenshot(page, "files-panel.png");
    await list.getByRole("button", { name: "results" }).click();
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      list.getByRole("link", { name: "page.html" }).click(),
    ]);
    expect(download.suggestedFilename()).toBe("page.html");
    const saved = path.join(here.path, "saved");
    await download.saveAs(saved);
    expect(fs.readFileSync(saved, "utf8")).toBe("<script>alert(1)</script>");
    await page.getByRole("button", { name: "One folder up" }).click();
    await list.getByText("chosen.txt").waitFor();
  }));

test("what cannot be taken is said in words", async () => {
  const xstartup = path.join(here.path, "xstartup");
  await using small = await startServer(["--xstartup", xstartup, "--max-upload", "1M"]);
  await withDesk(
    async (page) => {
      const file = path.join(here.path, "too-large.bin");
      fs.writeFileSync(file, Buffer.alloc(2 * MB));
      await drop(page, [file]);
      await page
        .getByText("It is larger than 1 MB, which is the most that this server takes.")
        .waitFor();
      await screenshot(page, "files-refused.png");
      await page.getByRole("button", { name: "Close the list" }).click();
      await page.locator("#uploads").waitFor({ state: "hidden" });
    },
    { url: small.url, noise: [/^Failed to load resource: .* 413 /] },
  );
});

test("where files are off, one that is dropped changes nothing and opens nothing", async () => {
  const xstartup = path.join(here.path, "xstartup");
  await using closed = await startServer(["--xstartup", xstartup, "--no-files"]);
  await withDesk(
    async (page) => {
      expect(await page.getByRole("button", { name: "Files", exact: true }).count()).toBe(0);
      await drop(page, [path.join(here.path, "xstartup")]);
      await inState(page, "connected");
      expect(page.url()).toBe(`${closed.url.origin}/`);
      expect(await page.locator("#uploads").isVisible()).toBe(false);
    },
    { url: closed.url },
  );
});
