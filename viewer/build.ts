#!/usr/bin/env bun
// Bundles the page into one file, viewer/dist/assets.json: the templates as text, and each
// asset once, compressed as hard as brotli can. The same sources give the same bytes.

import { createHash } from "node:crypto";
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { brotliCompressSync, brotliDecompressSync, constants, gzipSync } from "node:zlib";
import type { BunPlugin } from "bun";

export interface Asset {
  type: string;
  /** The bytes, compressed with brotli, in base64. */
  br: string;
}

export interface Assets {
  /** Names the whole content; a change of any byte of the page changes it. */
  hash: string;
  index: string;
  login: string;
  message: string;
  /** Allows the own style of these two in a Content-Security-Policy; the quotes are part of it. */
  loginStyle: string;
  files: Record<string, Asset>;
}

const folder = import.meta.dir;

// Enough of a SHA-256 that two builds never share it, short enough for an address.
const hashLength = 12;

const scriptType = "text/javascript; charset=utf-8";
const styleType = "text/css; charset=utf-8";
const imageType = "image/svg+xml";

/** Builds viewer/dist/assets.json and gives what it wrote. */
export async function buildViewer(): Promise<Assets> {
  const [script, style, loginCss, license] = await Promise.all([
    bundle("viewer.ts"),
    bundle("index.css"),
    bundle("login.css"),
    novncNotice(),
  ]);
  const [clipboard, icons, logo, index, loginTemplate, messageTemplate] = await Promise.all([
    readText("clipboard.svg"),
    readText("icons.svg"),
    readText("jupyter-logo.svg"),
    readText("index.html"),
    readText("login.html"),
    readText("message.html"),
  ]);
  const [login, message] = [loginTemplate, messageTemplate].map((template) =>
    embed(embed(template, "style", loginCss), "logo", dataUrl(logo)),
  ) as [string, string];
  const sources: [string, string, string][] = [
    ["dist/viewer.js", scriptType, `${license}\n${script}`],
    ["dist/index.css", styleType, style],
    ["clipboard.svg", imageType, clipboard],
    ["icons.svg", imageType, icons],
    ["jupyter-logo.svg", imageType, logo],
  ];
  const hash = createHash("sha256");
  for (const [name, type, text] of [
    ...sources,
    ["index", "", index] as const,
    ["login", "", login] as const,
    ["message", "", message] as const,
  ]) {
    // Lengths keep two pieces from being mistaken for one.
    hash.update(`${name}\n${type}\n${text.length}\n${text}`);
  }
  const assets: Assets = {
    hash: hash.digest("hex").slice(0, hashLength),
    index,
    login,
    message,
    loginStyle: `'sha256-${createHash("sha256").update(styleOf(login)).digest("base64")}'`,
    files: Object.fromEntries(sources.map(([name, type, text]) => [name, { type, br: br(text) }])),
  };
  await writeWhole(join(folder, "dist", "assets.json"), `${JSON.stringify(assets)}\n`);
  return assets;
}

// The server logs in to VNC itself, so that noVNC's ciphers are a tenth of the page for nothing. What
// offers none of the kinds that the server knows is told as what asks for a password.
const withoutCiphers: BunPlugin = {
  name: "noVNC without ciphers",
  setup(build) {
    build.onLoad({ filter: /novnc\/core\/crypto\/crypto\.js$/ }, () => ({
      loader: "js",
      contents: "export default {};",
    }));
    build.onLoad({ filter: /novnc\/core\/ra2\.js$/ }, () => ({
      loader: "js",
      contents: `export default class extends EventTarget {
        checkInternalEvents() {}
        disconnect() {}
        async negotiateRA2neAuthAsync() {
          this.hasStarted = true;
          this.dispatchEvent(new CustomEvent("credentialsrequired", { detail: { types: [] } }));
        }
      }`,
    }));
  },
};

async function bundle(name: string): Promise<string> {
  const result = await Bun.build({
    entrypoints: [join(folder, name)],
    target: "browser",
    // noVNC awaits at its top level, which only a module may.
    format: "esm",
    minify: true,
    throw: true,
    plugins: name.endsWith(".ts") ? [withoutCiphers] : [],
  });
  const [output, ...others] = result.outputs;
  if (output === undefined || others.length > 0) {
    throw new Error(`Bundling "${name}" gave ${result.outputs.length} files instead of one`);
  }
  return output.text();
}

// The marks differ from the server's own, {{name}}, which stay in the text for it to fill.
function embed(template: string, name: string, text: string): string {
  const mark = `[[${name}]]`;
  if (!template.includes(mark) || /\{\{|<\//.test(text)) {
    throw new Error(`Embedding "${name}" failed: no place for it, or a text that would break out`);
  }
  return template.replaceAll(mark, () => text);
}

// As the browser hashes it: all that stands in the element, white space included.
function styleOf(page: string): string {
  const style = /<style>(.*?)<\/style>/s.exec(page)?.[1];
  if (style === undefined) {
    throw new Error("Hashing the log-in page's style failed: the page has no <style>");
  }
  return style;
}

function dataUrl(svg: string): string {
  const oneLine = svg.trim().replace(/\s+/g, " ").replaceAll("> <", "><").replaceAll('"', "'");
  return `data:image/svg+xml,${oneLine.replace(/[#%<>]/g, (char) => encodeURIComponent(char))}`;
}

async function readText(name: string): Promise<string> {
  const text = await Bun.file(join(folder, name)).text();
  if (text.trim() === "") {
    throw new Error(`Reading "${name}" gave nothing: the file is empty`);
  }
  return text;
}

// The MPL asks that whoever gets the bundle learns where the sources of its part are.
async function novncNotice(): Promise<string> {
  const path = join(folder, "../node_modules/@novnc/novnc/package.json");
  const { version, license } = await Bun.file(path).json();
  return `/*! Contains noVNC ${version} without its ciphers (${license}), https://github.com/novnc/noVNC */`;
}

function br(text: string): string {
  const bytes = Buffer.from(text);
  const params = {
    [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
    [constants.BROTLI_PARAM_MODE]: constants.BROTLI_MODE_TEXT,
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
  return brotliCompressSync(bytes, { params }).toString("base64");
}

// Two builds may run at once: whoever reads the file gets the whole of one of them.
async function writeWhole(path: string, text: string): Promise<void> {
  await mkdir(join(path, ".."), { recursive: true });
  const temporary = `${path}.${process.pid}.${crypto.randomUUID()}`;
  try {
    await Bun.write(temporary, text);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

async function main(): Promise<void> {
  const assets = await buildViewer();
  const rows: [string, Buffer][] = [
    ["index", Buffer.from(assets.index)],
    ...Object.entries(assets.files).map(([name, { br }]): [string, Buffer] => [
      name,
      brotliDecompressSync(Buffer.from(br, "base64")),
    ]),
  ];
  const total = { plain: 0, gzip: 0, brotli: 0 };
  for (const [name, bytes] of rows) {
    const gzip = gzipSync(bytes, { level: 9 }).length;
    const brotli = brotliCompressSync(bytes).length;
    total.plain += bytes.length;
    total.gzip += gzip;
    total.brotli += brotli;
    print(name, bytes.length, gzip, brotli);
  }
  print(`total ${assets.hash}`, total.plain, total.gzip, total.brotli);
}

function print(name: string, ...sizes: number[]): void {
  console.log([name.padEnd(24), ...sizes.map((size) => String(size).padStart(8))].join(""));
}

if (import.meta.main) {
  await main();
}
