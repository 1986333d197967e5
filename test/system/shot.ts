// bun shot.ts URL FILE [RRGGBB]: waits until the page at URL shows a painted desktop, and a good part of it in that
// colour if one is given, and keeps a screenshot of it.

import { chromium } from "playwright-core";

const [url, file, colour] = process.argv.slice(2);
if (!url || !file) throw new Error("usage: bun shot.ts URL FILE [RRGGBB]");

/** A wallpaper and a panel have many colours, an empty root window has one or two. */
const fewestColours = 200;
const coloured = colour
  ? `pixels.filter((pixel) => (pixel & 0xffffff) === 0x${colour.replace(/(..)(..)(..)/, "$3$2$1")}).length > pixels.length / 5`
  : `new Set(pixels).size >= ${fewestColours}`;
const painted = `(() => {
  const canvas = document.querySelector("canvas");
  if (!canvas?.width || !canvas.height) return false;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint32Array(data.buffer);
  return ${coloured};
})()`;
/** XFCE draws its icons and panel after the wallpaper. */
const settleMs = 2000;

const browser = await chromium.launch({
  executablePath: Bun.which("chromium") ?? Bun.which("chromium-browser") ?? "chromium",
  args: ["--no-sandbox"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.goto(url);
  const deadline = Date.now() + 60_000;
  while (!(await page.evaluate<boolean>(painted))) {
    if (Date.now() > deadline) throw new Error("the page shows no painted desktop after 60 s");
    await Bun.sleep(200);
  }
  await Bun.sleep(settleMs);
  await page.screenshot({ path: file });
} finally {
  await browser.close();
}
