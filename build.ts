// Builds what is shipped: the whole server with the page in it as one file (dist/server.js), and the licences of what
// is in there. With --exe, also one executable for each processor. viewer/build.ts has built the page before.

import { mkdir, rename } from "node:fs/promises";
import { join } from "node:path";
import packageJson from "./package.json" with { type: "json" };

const folder = import.meta.dir;
const dist = join(folder, "dist");

// What is bundled: the tools of the tests are in test/package.json.
const bundled = Object.keys(packageJson.devDependencies);

// Bun's plain x64 build wants AVX2, which many a virtual machine of a cluster does not show.
const executables = {
  "jupyter-desktop-linux-x64": "bun-linux-x64-baseline",
  "jupyter-desktop-linux-arm64": "bun-linux-arm64",
} as const;

async function buildServer(): Promise<void> {
  const { outputs, metafile } = await Bun.build({
    entrypoints: [join(folder, "server.ts")],
    target: "bun",
    // Names stay, so that a stack trace in an issue can be read.
    minify: { syntax: true, whitespace: true },
    metafile: true,
    throw: true,
  });
  const [output, ...rest] = outputs;
  if (!output || rest.length > 0) throw new Error(`${outputs.length} files instead of one`);
  const found = Object.keys(metafile?.inputs ?? {}).flatMap(
    (path) => /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(`/${path}`)?.[1] ?? [],
  );
  const others = [...new Set(found)].filter((name) => !bundled.includes(name));
  if (others.length > 0) {
    throw new Error(`In the server, but not in package.json's devDependencies: ${others.join()}`);
  }
  await writeWhole("server.js", await output.text());
}

/** The text of every licence of every bundled package, and of what these packages bring along. */
async function writeLicenses(): Promise<void> {
  const parts = [
    `jupyter-desktop (see LICENSE) contains the following. Their sources are at the addresses named.`,
  ];
  for (const name of bundled) {
    const from = join(folder, "node_modules", name);
    const { version, license, homepage } = await Bun.file(join(from, "package.json")).json();
    const files = await Array.fromAsync(new Bun.Glob("**/{LICENSE*,AUTHORS}").scan(from));
    if (files.length === 0) throw new Error(`No licence found in ${from}`);
    parts.push(`${name} ${version} (${license}), ${homepage}`);
    for (const file of files.toSorted()) {
      parts.push(`--- ${name}: ${file} ---\n\n${await Bun.file(join(from, file)).text()}`);
    }
  }
  await writeWhole("THIRD-PARTY-LICENSES", `${parts.join("\n\n")}\n`);
}

// Two builds may run at once: whoever reads the file gets the whole of one of them.
async function writeWhole(name: string, text: string): Promise<void> {
  const temporary = join(dist, `.${name}.${process.pid}`);
  await Bun.write(temporary, text);
  await rename(temporary, join(dist, name));
  console.log(`dist/${name.padEnd(21)} ${String(text.length).padStart(6)}`);
}

async function buildExecutables(): Promise<void> {
  for (const [name, target] of Object.entries(executables)) {
    const outfile = join(dist, name);
    // A .env or bunfig.toml in the folder where it happens to be started changes nothing.
    await Bun.build({
      entrypoints: [join(folder, "server.ts")],
      compile: {
        target,
        outfile,
        autoloadDotenv: false,
        autoloadBunfig: false,
      },
      minify: { syntax: true, whitespace: true },
      throw: true,
    });
    console.log(`dist/${name} ${Bun.file(outfile).size}`);
  }
}

await mkdir(dist, { recursive: true });
await Promise.all([buildServer(), writeLicenses()]);
if (process.argv.includes("--exe")) await buildExecutables();
