// What README.md and docs/ say of the program, held against the program.

import { expect, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { Bridge, createMetrics, loadConfig, LogTail, OPTIONS, Supervisor } from "../server.ts";

const root = path.join(import.meta.dir, "..");
const DOCS = ["README.md", ...new Bun.Glob("docs/**/*.{md,json,yaml,yml,service}").scanSync(root)];
const texts = DOCS.map((name) => ({ name, text: fs.readFileSync(path.join(root, name), "utf8") }));
const markdown = texts.filter(({ name }) => name.endsWith(".md"));

/** Variables that the program sets for others, and reads nowhere. */
const SET_BY_US = ["VNC_SOCKET", "RUNTIME_DIR", "USER_PATH", "SESSION"];

test.each(markdown)("$name links only to what is there", ({ name, text }) => {
  const links = [...text.matchAll(/\]\((?!https?:|mailto:|#)([^)#\s]+)[^)]*\)/g)].flatMap(
    ([, link]) => link ?? [],
  );
  const missing = links.filter((link) => !fs.existsSync(path.join(root, path.dirname(name), link)));
  expect(missing).toEqual([]);
});

test.each(texts)("$name names only environment variables that the program knows", ({ text }) => {
  const known = Object.keys(OPTIONS).map((name) =>
    name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase(),
  );
  const named = [...text.matchAll(/\bJUPYTER_DESKTOP_([A-Z][A-Z_]*[A-Z])/g)].map(
    ([, name]) => name,
  );
  expect(named.filter((name) => ![...known, ...SET_BY_US].includes(name ?? ""))).toEqual([]);
});

/** Command lines of the documents: in code, up to the end of the line or a shell's operator. */
const PROGRAM = /(?:^ {4,}|^|`|&& )(?:bunx |npx )?(?:jupyter-desktop|bun server\.ts|bun start)/;
const WORDS = /((?: (?:'[^']*'|[^\s`|&;#<>()']+))*)/;
const commands = markdown.flatMap(({ name, text }) =>
  [...text.matchAll(new RegExp(PROGRAM.source + WORDS.source, "gm"))]
    .map(([line, words = ""]) => ({
      name,
      line: line.trim(),
      words: [...words.matchAll(/'([^']*)'|(\S+)/g)].map(
        ([, quoted, bare]) => quoted ?? bare ?? "",
      ),
    }))
    .filter(({ words }) => words.some((word) => word.startsWith("--"))),
);

test.each(commands)("$name: $line is a right command line", ({ words }) => {
  try {
    loadConfig(words, {});
  } catch (error) {
    // A file of the example's is not here; all else has to hold.
    if (!/cannot read/.test(String(error))) throw error;
  }
});

test("docs/monitoring.md and docs/grafana.json name only metrics that there are, and all of them", () => {
  const log = () => {};
  const supervisor = new Supervisor(() => Promise.reject(new Error("none")), new LogTail(log), log);
  const said = createMetrics(supervisor, new Bridge(log))();
  const there = [...said.matchAll(/^# TYPE jupyter_desktop_(\w+)/gm)].map(([, name]) => name ?? "");
  const of = (name: string) => texts.find((each) => each.name === name)?.text ?? "";
  const page = of("docs/monitoring.md");
  const named = [page, of("docs/grafana.json")].flatMap((text) =>
    [...text.matchAll(/jupyter_desktop_(\w+)/g)].map(([, name]) => name ?? ""),
  );
  expect(named.filter((name) => !there.includes(name.replace(/_$/, "")) && name !== "")).toEqual(
    [],
  );
  expect(there.filter((name) => !new RegExp(`\`${name}[{\`]`).test(page))).toEqual([]);
});
