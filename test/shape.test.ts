import { describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { SERVER, tempDir } from "./_helpers.ts";

const source = fs.readFileSync(SERVER, "utf8");

/** The code without its comments and without what stands in plain strings; every line keeps its number. */
const code = source
  .replace(/\/\*\*?[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, ""))
  .replace(/"(?:[^"\\\n]|\\.)*"/g, '""')
  .replace(/(^|\s)\/\/(?! --- ).*$/gm, "$1");

/** Name and code of each section, in their order; the header comes first. */
const [imports = "", ...parts] = code.split(/^\/\/ --- (.+) ---$/m);
const sections = parts.flatMap((name, i) => (i % 2 === 0 ? [[name, parts[i + 1] ?? ""]] : []));
const beforeMain = [imports, ...sections.filter(([name]) => name !== "main").flat()].join("\n");

const declared = (text: string) =>
  [...text.matchAll(/^(?:export )?(?:async )?(?:const|function|class|interface|type) (\w+)/gm)].map(
    ([, name]) => String(name),
  );

/** The lines of `text` where `pattern` is found. */
const found = (pattern: RegExp, text = code) =>
  text.split("\n").flatMap((line) => (pattern.test(line) ? [line.trim()] : []));

describe("server.ts", () => {
  test("has the sections that its map names, in that order", () => {
    const header = /^#!.*\n\/\*\*([\s\S]*?)\*\//.exec(source)?.[1] ?? "";
    const map = /Map: ([^.]*)\./.exec(header)?.[1]?.split(/,\s*(?:\*\s*)?/);
    expect(map).toEqual(sections.map(([name]) => String(name)));
    expect(sections.at(-1)?.[0]).toBe("main");
  });

  test("uses in each section only the sections above it", () => {
    const upward = sections.flatMap(([name, text], i) =>
      sections.slice(i + 1).flatMap(([below, later = ""]) =>
        declared(later)
          .filter((word) => new RegExp(`(?<![.\\w$])${word}\\b(?!\\??:)`).test(text ?? ""))
          .map((word) => `${name} uses ${word} of ${below}`),
      ),
    );
    expect(upward).toEqual([]);
  });

  test("does nothing when it is imported", async () => {
    using dir = tempDir();
    const script = `
      const before = process.eventNames().length;
      const { main } = await import(${JSON.stringify(SERVER)});
      if (typeof main !== "function") throw new Error("there is no main");
      if (process.eventNames().length > before) throw new Error("it listens for signals");
    `;
    const child = Bun.spawn([process.execPath, "-e", script], {
      cwd: dir.path,
      env: {
        ...{ HOME: dir.path, TMPDIR: dir.path, XDG_RUNTIME_DIR: dir.path },
        BUN_RUNTIME_TRANSPILER_CACHE_PATH: "0", // Bun's own files
      },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 10_000, // what holds the process open is found by this
    });
    const said = await Promise.all([child.stdout.text(), child.stderr.text()]);
    expect(said).toEqual(["", ""]);
    expect([await child.exited, child.signalCode]).toEqual([0, null]);
    expect(fs.readdirSync(dir.path)).toEqual([]);
  });

  test("has declarations at its top level, and the entry guard for the only effect", () => {
    const word = /^(import|export|const|function|async function|class|interface|type)\b/;
    // A script in a template string has lines that begin at the margin, too.
    const typescript = code.replace(/^const \w+ = `[^`]*`;$/gm, "const");
    expect(found(/^[^\s/)}\]#]/, typescript).filter((line) => !word.test(line))).toEqual([
      "if (import.meta.main) process.exit(await main(process.argv.slice(2), process.env));",
    ]);
    expect(code.trimEnd().split("\n").at(-1)).toStartWith("if (import.meta.main)");
  });

  test("has no variable at its top level", () => {
    expect(found(/^(export )?(let|var)\b/)).toEqual([]);
    expect(found(/^\s*(static (?!readonly )|(public |private )?static (let|var))/)).toEqual([]);
  });

  test("has no Map or Set at its top level that could change", () => {
    const made = found(/^(export )?const .*\bnew (Weak)?(Map|Set)\b/);
    expect(made.filter((line) => !/: Readonly(Map|Set)<.*> = new/.test(line))).toEqual([]);
    expect(found(/static readonly .*new (Weak)?(Map|Set)\b/)).toEqual([]);
  });

  test("changes nothing that is declared at its top level", () => {
    const constants = [...code.matchAll(/^(?:export )?const (\w+)/gm)].map(([, name]) => name);
    const named = `(?<![.\\w$])(${constants.join("|")})`;
    const changed = [
      ...found(new RegExp(`${named}(\\.\\w+|\\[[^\\]]*\\])+ [-+*/|&?]*=[^=>]`)),
      ...found(
        new RegExp(`${named}\\.(push|pop|shift|unshift|splice|sort|reverse|fill|add|clear)\\(`),
      ),
      ...found(
        new RegExp(
          `${named}\\.(set|delete)\\(|\\bdelete ${named}\\b|Object\\.assign\\(${named}\\b`,
        ),
      ),
    ];
    expect(changed).toEqual([]);
  });

  test("reads argv, env and signals in its last section only", () => {
    const own =
      /\b(process\.(env|argv|argv0|exit|exitCode|abort|on|once|addListener|stdout|stderr|umask|chdir|title)\b|Bun\.(env|argv|main)\b|import\.meta\.(env|main)\b|console\.)/;
    expect(found(own, beforeMain)).toEqual([]);
    expect(found(own).length).toBeGreaterThan(5);
  });

  test("takes out of `process` only what has no other way", () => {
    const uses = [...beforeMain.matchAll(/\bprocess\.(\w+)/g)].map(([, name]) => name);
    expect([...new Set(uses)].toSorted()).toEqual([
      ...["cpuUsage", "getuid", "kill", "memoryUsage", "stdin", "uptime"],
    ]);
  });

  test("has no any, no default export, no enum, no namespace and no inheritance but of Error", () => {
    expect(found(/([:<|&,([]|\bas|=>)\s*any\b(?!\w)|\bany\[\]/)).toEqual([]);
    expect(
      found(/^export default|^\s*(export )?(const )?enum\b|^\s*(declare )?namespace\b/),
    ).toEqual([]);
    expect(found(/\bclass \w+ extends (?!Error\b)/)).toEqual([]);
    expect(found(/@ts-(ignore|expect-error|nocheck)|biome-ignore/, source)).toEqual([]);
  });
});
