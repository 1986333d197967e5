/** A desktop that is there at once: no more than a pattern on the screen, and what a test starts on it. */
import * as fs from "node:fs";
import * as path from "node:path";
import type { Socket, TCPSocketListener } from "bun";
import { processesWith, startServer, tempDir, until } from "../_helpers.ts";

/** Lines of one pixel, white on black, on every sixteenth column and row. */
const PATTERN = "xsetroot -mod 16 16 -fg white -bg black; exec sleep infinity";

export type Light = Awaited<ReturnType<typeof lightDesk>>;

export async function lightDesk(...args: string[]) {
  const dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, `#!/bin/sh\n${PATTERN}\n`, { mode: 0o755 });
  const server = await startServer(["--xstartup", xstartup, ...args]);
  const first = await until("the environment of the desktop", () => sessionEnv(server.dir));
  // Started again, it may be on another display.
  const env = () => sessionEnv(server.dir) ?? first;
  const spawn = (command: string[], stdin = "") =>
    Bun.spawn(command, {
      env: env(),
      cwd: server.dir,
      stdio: [Buffer.from(stdin), "pipe", "inherit"],
    });
  return {
    ...server,
    /** Runs a program on it to its end, and returns what it printed. */
    run: (command: string[], stdin = "") => spawn(command, stdin).stdout.text(),
    /** Starts a program on it that stays. */
    start: (command: string[]) =>
      Bun.spawn(command, { env: env(), cwd: server.dir, stdio: ["ignore", "ignore", "ignore"] }),
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
      await Bun.spawn(["xclip", "-selection", "clipboard", "-i"], { env: env(), stdio: [...stdio] })
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

interface End {
  other?: Socket<End>;
  lane: Lane;
}

/** One direction of a line: whatever connection it is of, what comes first goes first. */
interface Lane {
  readonly queue: { to: Socket<End>; bytes: Uint8Array; at: number }[];
  /** How many bytes may go now. */
  credit: number;
}

/** What waits before the senders are told to wait: a small buffer, as routers have it. */
const QUEUE_BYTES = 32 * 1024;
const TICK_MS = 5;

interface Shape {
  bytesPerSecond: number;
  delayMs: number;
}

/** A line to the server that can be made narrow towards the browser, and slow both ways. */
export class Narrow {
  #shape: Shape | undefined;
  readonly #up: Lane = { queue: [], credit: 0 };
  readonly #down: Lane = { queue: [], credit: 0 };
  readonly #ends = new Set<Socket<End>>();
  readonly #listener: TCPSocketListener<End>;
  readonly #clock: Timer;
  readonly url: URL;

  constructor(server: URL) {
    const close = (end: Socket<End>) => {
      this.#ends.delete(end);
      end.data.other?.end();
    };
    const handlers: Bun.SocketHandler<End> = {
      data: ({ data: { other, lane } }, bytes) => {
        if (other) lane.queue.push({ to: other, bytes: Uint8Array.from(bytes), at: Date.now() });
        this.#tick(0);
      },
      drain: () => this.#tick(0),
      close,
      error: close,
    };
    const open = async (near: Socket<End>) => {
      near.pause();
      const far = await Bun.connect<End>({
        hostname: server.hostname,
        port: Number(server.port),
        data: { other: near, lane: this.#down },
        socket: handlers,
      });
      near.data.other = far;
      this.#ends.add(near).add(far);
      near.resume();
    };
    this.#listener = Bun.listen<End>({
      hostname: "127.0.0.1",
      port: 0,
      data: { lane: this.#up },
      socket: {
        ...handlers,
        open: (near) => {
          near.data = { lane: this.#up };
          return open(near);
        },
      },
    });
    this.#clock = setInterval(() => this.#tick(TICK_MS), TICK_MS);
    this.url = new URL(server);
    this.url.port = String(this.#listener.port);
  }

  narrow(shape: Shape) {
    this.#shape = shape;
  }

  free() {
    this.#shape = undefined;
    this.#tick(0);
  }

  #tick(ms: number) {
    const rate = this.#shape ? this.#shape.bytesPerSecond / 1000 : Number.POSITIVE_INFINITY;
    this.#up.credit = Number.POSITIVE_INFINITY;
    // Not saved up for long: a pause makes the line no wider.
    this.#down.credit = this.#shape
      ? Math.min(8 * TICK_MS * rate, this.#down.credit + ms * rate)
      : Number.POSITIVE_INFINITY;
    for (const lane of [this.#up, this.#down]) {
      this.#pass(lane);
      const waiting = lane.queue.reduce((sum, { bytes }) => sum + bytes.length, 0);
      for (const end of this.#ends) {
        if (end.data.lane !== lane) continue;
        if (waiting > QUEUE_BYTES) end.pause();
        else end.resume();
      }
    }
  }

  #pass(lane: Lane) {
    for (let first = lane.queue[0]; first && lane.credit >= 1; first = lane.queue[0]) {
      if (this.#shape && Date.now() - first.at < this.#shape.delayMs) return;
      const part = first.bytes.subarray(0, Math.min(first.bytes.length, Math.floor(lane.credit)));
      const written = first.to.write(part);
      if (written < 0) {
        lane.queue.shift(); // that connection is over
        continue;
      }
      lane.credit -= written;
      if (written === first.bytes.length) lane.queue.shift();
      else first.bytes = first.bytes.subarray(written);
      if (written < part.length) return;
    }
  }

  [Symbol.dispose]() {
    clearInterval(this.#clock);
    this.#listener.stop(true);
    for (const end of this.#ends) end.terminate();
  }
}
