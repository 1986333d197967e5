/** What the tests of the package share: packing it, and starting it where little else is. */
import { expect } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { tempDir, TOKEN, until } from "./_helpers.ts";

export const PROJECT = path.join(import.meta.dir, "..");
export const REGISTRY = process.env.npm_config_registry ?? "https://registry.npmjs.org/";
/** A machine may reach the registry through a proxy with a CA of its own. */
export const network = Object.fromEntries(
  ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "HTTPS_PROXY", "https_proxy"].flatMap((name) =>
    process.env[name] === undefined ? [] : [[name, process.env[name]]],
  ),
);
/** What every system has, and the launcher may use. */
const TOOLS = "sh env id readlink dirname uname grep mktemp mkdir mv rm".split(" ");

export async function run(
  command: string[],
  options: { cwd?: string; env: Record<string, string> },
) {
  const child = Bun.spawn(command, { stdio: ["ignore", "pipe", "pipe"], ...options });
  const [stdout, stderr, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}

/** A directory for PATH with these programs alone. */
export function only(dir: string, name: string, ...programs: string[]): string {
  const bin = path.join(dir, name);
  fs.mkdirSync(bin, { recursive: true });
  for (const program of [...TOOLS, ...programs]) {
    const found = Bun.which(program);
    if (!found)
      throw new Error(`${program} is missing: test/setup.sh installs what the tests need`);
    const place = path.join(bin, program);
    if (!fs.existsSync(place)) fs.symlinkSync(fs.realpathSync(found), place);
  }
  return bin;
}

export const withNode = (dir: string) => only(dir, "node-only", "node", "npm", "npx");

/** Bun, as its own installer puts it: one file, and bunx a link to it. */
export function withBun(dir: string): string {
  const bin = only(dir, "bun-only");
  for (const name of ["bun", "bunx"])
    if (!fs.existsSync(path.join(bin, name)))
      fs.symlinkSync(process.execPath, path.join(bin, name));
  return bin;
}

/** Starts a desktop with this command line, in an empty directory, looks at it, and ends it. */
export async function seeDesktop(command: string[], env: Record<string, string>) {
  using dir = tempDir();
  const cwd = dir.path;
  const began = performance.now();
  const [program = "", ...args] = command;
  const child = Bun.spawn([path.join(env.PATH ?? "", program), ...args, "--port", "0"], {
    cwd,
    env: { TMPDIR: cwd, JUPYTER_DESKTOP_TOKEN: TOKEN, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = { stdout: "", stderr: "" };
  const follow = async (name: "stdout" | "stderr") => {
    for await (const chunk of child[name]) said[name] += Buffer.from(chunk).toString();
  };
  const ended = Promise.all([child.exited, follow("stdout"), follow("stderr")]);
  try {
    const line = await until(
      "the line with the address",
      () => {
        if (child.exitCode !== null) throw new Error(said.stderr);
        return /^Desktop: (.*)\n/m.exec(said.stdout)?.[1];
      },
      50_000,
    );
    const listeningMs = performance.now() - began;
    const ask = (to: string) =>
      fetch(new URL(to, line), { headers: { authorization: `Bearer ${TOKEN}` } });
    expect(await (await ask("healthz")).text()).toBe("ok\n");
    const page = await (await ask("desktop/")).text();
    expect(page).toContain("<title>Desktop");
    const script = /src="(?:\.\.\/)?desktop\/(static\/dist\/viewer\.js[^"]*)"/.exec(page)?.[1];
    expect((await ask(`desktop/${script}`)).status).toBe(200);
    await until("a desktop that is ready", async () => {
      const status = (await (await ask("desktop/api/status")).json()) as { state: string };
      return status.state === "ready";
    });
    return { listeningMs, said };
  } finally {
    child.kill("SIGTERM"); // to npx or bunx, as a supervisor does: they hand it on, or are the server by now
    await ended;
  }
}

/** Packs the project as it would be published; returns the file. */
export async function pack(to: string): Promise<string> {
  const env = { ...process.env, HOME: to } as Record<string, string>;
  const command = [process.execPath, "pm", "pack", "--destination", to, "--quiet"];
  const { code, stderr } = await run(command, { cwd: PROJECT, env });
  if (code !== 0) throw new Error(stderr);
  return path.join(to, `jupyter-desktop-${packageJson.version}.tgz`);
}
