/** A desktop that is there at once: no more than a pattern on the screen, and what a test starts on it. */
import * as fs from "node:fs";
import * as path from "node:path";
import { processesWith, startServer, tempDir, until } from "../_helpers.ts";

/** Lines of one pixel, white on black, on every sixteenth column and row. */
const PATTERN = "xsetroot -mod 16 16 -fg white -bg black; exec sleep infinity";

export type Light = Awaited<ReturnType<typeof lightDesk>>;

export async function lightDesk(...args: string[]) {
  const dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, `#!/bin/sh\n${PATTERN}\n`, { mode: 0o755 });
  const server = await startServer(["--xstartup", xstartup, ...args]);
  const env = await until("the environment of the desktop", () => sessionEnv(server.dir));
  const spawn = (command: string[], stdin = "") =>
    Bun.spawn(command, { env, cwd: server.dir, stdio: [Buffer.from(stdin), "pipe", "inherit"] });
  return {
    ...server,
    env,
    /** Runs a program on it to its end, and returns what it printed. */
    run: (command: string[], stdin = "") => spawn(command, stdin).stdout.text(),
    /** Starts a program on it that stays. */
    start: (command: string[]) =>
      Bun.spawn(command, { env, cwd: server.dir, stdio: ["ignore", "ignore", "ignore"] }),
    async size() {
      const said = await spawn(["xrandr", "--current"]).stdout.text();
      return /current (\d+) x (\d+)/.exec(said)?.slice(1).map(Number);
    },
    async pointer() {
      const said = await spawn(["xdotool", "getmouselocation", "--shell"]).stdout.text();
      return [/X=(\d+)/, /Y=(\d+)/].map((part) => Number(part.exec(said)?.[1]));
    },
    async clipboard() {
      const said = spawn(["xclip", "-selection", "clipboard", "-o", "-target", "UTF8_STRING"]);
      return said.stdout.text();
    },
    /** Copies on it. xclip stays in the background to hand the text out: it must not hold our pipe. */
    async copy(text: string) {
      const stdio = [Buffer.from(text), "ignore", "ignore"] as const;
      await Bun.spawn(["xclip", "-selection", "clipboard", "-i"], { env, stdio: [...stdio] })
        .exited;
    },
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      dir[Symbol.dispose]();
    },
  };
}

/** The environment of what runs on the display, as the display's own programs have it. */
function sessionEnv(dir: string): Record<string, string> | undefined {
  const environs = processesWith(dir).map((pid) => {
    try {
      return fs.readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").filter(Boolean);
    } catch {
      return []; // ended meanwhile
    }
  });
  const found = environs.find((entries) => entries.some((entry) => entry.startsWith("DISPLAY=:")));
  return (
    found &&
    Object.fromEntries(
      found.map((entry) => [entry.split("=", 1)[0], entry.slice(entry.indexOf("=") + 1)]),
    )
  );
}
