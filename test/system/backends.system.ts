/**
 * Real VNC servers of Debian 12, each through our server and our page in Chromium: what a person can do with it, and
 * what not. Each line of the README's table is one of these tests. `sh test/system/setup.sh` installs the servers.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { asUser, HANDSHAKE, processesWith, startServer, tempDir, until } from "../_helpers.ts";
import {
  ensureViewer,
  inState,
  launchBrowser,
  processesOf,
  SIZE,
  SLOW_MS,
  statusOf,
  typeKeys,
  withPage,
} from "../e2e/_browser.ts";

const MISSING = ["x11vnc", "Xvfb", "Xtightvnc", "qemu-system-x86_64", "wayvnc"].filter(
  (name) => !Bun.which(name),
);
if (MISSING.length > 0)
  throw new Error(`${MISSING.join(", ")} is missing. Type: sh test/system/setup.sh`);

/** Every character that an American keyboard has. */
const PRINTABLE = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).join("");
const LATIN = "Grüße, señor: £ ½ «ß»";
const UNICODE = "漢字, – “curly” € and 🐭, after Grüße";
const PASSWORD = "secret12";
const SWAY_USER = 4321;
const CLICK_AT = { x: 60, y: 60 };
const OTHER_SIZE = { width: 1000, height: 700 };

setDefaultTimeout(3 * SLOW_MS);

// What the console may say in a test that causes it.

/** Chromium and noVNC, of a WebSocket that the server refuses because VNC is not there, or not for us. */
const REFUSED = [
  /^WebSocket connection to '.*' failed: Error during WebSocket handshake: Unexpected response code: 50[23]$/,
  /^WebSocket on-error event$/,
  /^Failed when connecting: Connection closed \(code: 1006\)$/,
];

/** noVNC, of a server that cannot take the window's size, and says so. */
const FIXED_SIZE =
  /^Server did not accept the resize request: (Resize is administratively prohibited|Invalid screen layout)$/;

/** What noVNC makes of a text for a server that knows Latin-1 alone. */
const asked = (text: string) => text.replace(/[^\0-\xff]/gu, "?");

let browser: Browser;
const boxes: string[] = [];

beforeAll(async () => {
  await ensureViewer();
  browser = await launchBrowser();
}, SLOW_MS);

afterAll(async () => {
  await browser?.close();
  expect(boxes.flatMap(processesWith)).toEqual([]);
  expect(boxes.filter((dir) => fs.existsSync(dir))).toEqual([]);
}, SLOW_MS);

// --- the servers ---

/** A directory, and the programs that were started in it: all of them end with it. */
function box() {
  const dir = tempDir();
  boxes.push(dir.path);
  const env: Record<string, string> = {
    PATH: process.env.PATH ?? "",
    HOME: dir.path,
    LANG: "C.UTF-8",
  };
  const start = (command: string[]) =>
    Bun.spawn(command, {
      env,
      cwd: dir.path,
      stdio: ["ignore", "ignore", "ignore"],
    });
  /** Runs a program to its end, and returns what it printed; one that hangs printed nothing. */
  const bytes = async (command: string[]) => {
    const stdio: ["ignore", "pipe", "ignore"] = ["ignore", "pipe", "ignore"];
    const child = Bun.spawn(command, { env, cwd: dir.path, stdio, timeout: 5_000 });
    return Buffer.from(await child.stdout.bytes());
  };
  const run = async (command: string[]) => (await bytes(command)).toString();
  /** Hands a text to a program that goes on in the background with it, so that its output must not be awaited. */
  const give = async (command: string[], stdin: string | Buffer) => {
    const stdio: [Buffer, "ignore", "ignore"] = [Buffer.from(stdin), "ignore", "ignore"];
    expect(await Bun.spawn(command, { env, cwd: dir.path, stdio }).exited).toBe(0);
  };
  const file = (name: string) => path.join(dir.path, name);
  /** What is in a file once there is something. */
  const content = (name: string) =>
    until(`something in ${name}`, () =>
      fs.existsSync(file(name)) ? fs.readFileSync(file(name), "utf8") : "",
    );
  const end = async () => {
    await until("the end of all in the box", () => {
      const left = processesWith(dir.path).map(Number);
      for (const pid of left) {
        try {
          process.kill(pid, "SIGKILL");
        } catch {} // ended meanwhile
      }
      return left.length === 0;
    });
    dir[Symbol.dispose]();
  };
  return {
    env,
    start,
    bytes,
    run,
    give,
    file,
    content,
    [Symbol.asyncDispose]: end,
  };
}
type Box = ReturnType<typeof box>;

/** What is shown: how to reach it, and how to look at it from inside. */
interface Backend {
  /** Options of our server. */
  readonly args: string[];
  /** The process that must outlive our server. */
  readonly pid: number;
  readonly target: { unix: string } | { hostname: string; port: number };
  /** Opens something that has the keyboard; then what the typed line was. */
  keyboard(): Promise<() => Promise<string>>;
  copy(text: string): Promise<void>;
  paste(): Promise<string>;
  size(): Promise<number[] | undefined>;
}

/** A port that nobody listens on now. */
function freePort() {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  listener.stop(true);
  return listener.port;
}

/** A display that nobody has now. */
function freeDisplay() {
  const taken = fs.readFileSync("/proc/net/unix", "utf8");
  for (let number = 200; ; number += 1)
    if (!taken.includes(`/tmp/.X11-unix/X${number}\n`) && !fs.existsSync(`/tmp/.X${number}-lock`))
      return number;
}

/** Whether an RFB server greets there. wayvnc 0.5 dies of a connection that ends before its greeting. */
async function greets(target: Backend["target"]) {
  const greeting = Promise.withResolvers<string>();
  const data = (_: unknown, bytes: Buffer) => greeting.resolve(bytes.toString("latin1"));
  const close = () => greeting.resolve("");
  try {
    const handlers = { data, close, error: close };
    const socket = await ("unix" in target
      ? Bun.connect({ ...target, socket: handlers })
      : Bun.connect({ ...target, socket: handlers }));
    const said = await greeting.promise;
    socket.end();
    return said.startsWith("RFB 003.00");
  } catch {
    return false; // nobody listens
  }
}
const listening = (target: Backend["target"]) =>
  until("a VNC server that greets", () => greets(target), SLOW_MS);

/** A socket in the box or a TCP port, as what it is for each of those that need to know. */
function place(inside: Box, kind: "unix" | "tcp") {
  if (kind === "unix") {
    const unix = inside.file("vnc.sock");
    return { target: { unix }, args: ["--vnc", `unix:${unix}`], port: "-1" };
  }
  const port = freePort();
  const target = { hostname: "127.0.0.1", port };
  return { target, args: ["--vnc", `tcp:127.0.0.1:${port}`], port: String(port) };
}

/** Starts an X server that chooses its display itself; DISPLAY is then known to all in the box. */
async function xserver(inside: Box, command: string[]) {
  fs.rmSync(inside.file("display"), { force: true }); // of one that ended
  const child = inside.start(["sh", "-c", 'exec "$@" -displayfd 3 3>display', "sh", ...command]);
  inside.env.DISPLAY = `:${(await inside.content("display")).trim()}`;
  return child;
}

/** The insides of an X display. Without a window manager, what is under the pointer has the keyboard. */
const xsession = (inside: Box) => ({
  keyboard: async () => {
    const terminal = ["xterm", "-geometry", "80x24+0+0", "-T", "typing"];
    inside.start([...terminal, "-e", "sh", "-c", "head -n 1 >typed"]);
    const look = ["xwininfo", "-name", "typing"];
    await until("a terminal", async () => (await inside.run(look)).includes("IsViewable"), SLOW_MS);
    return () => inside.content("typed");
  },
  copy: (text: string) => inside.give(["xclip", "-selection", "clipboard", "-i"], text),
  paste: () => inside.run(["xclip", "-selection", "clipboard", "-o", "-target", "UTF8_STRING"]),
  size: async () =>
    /dimensions: +(\d+)x(\d+) /
      .exec(await inside.run(["xdpyinfo"]))
      ?.slice(1)
      .map(Number),
});

/** The same where the VNC server knows X11's old cut buffer only: autocutsel carries it to the clipboard and back. */
function cutBufferSession(inside: Box) {
  inside.start(["autocutsel"]);
  const clipboard = ["xclip", "-selection", "clipboard", "-target", "STRING"];
  return {
    ...xsession(inside),
    copy: (text: string) => inside.give([...clipboard, "-i"], Buffer.from(text, "latin1")),
    paste: async () => (await inside.bytes([...clipboard, "-o"])).toString("latin1"),
  };
}

/** A file with the password in the form that these servers read, and one with it as it is. */
async function passwordFiles(inside: Box, password = PASSWORD) {
  fs.writeFileSync(inside.file("plain"), `${password}\n`, { mode: 0o600 });
  const hidden = Bun.spawn(["tightvncpasswd", "-f"], {
    stdio: [Buffer.from(`${PASSWORD}\n`), "pipe", "ignore"],
  });
  fs.writeFileSync(inside.file("hidden"), await hidden.stdout.bytes(), { mode: 0o600 });
  return ["--vnc-password-file", inside.file("plain")];
}

const TIGER = "Xtigervnc -geometry 800x600 -depth 24 -AlwaysShared -nolisten tcp".split(" ");
const XVFB = "Xvfb -screen 0 800x600x24 -nolisten tcp".split(" ");

async function tigervnc(inside: Box, kind: "unix" | "tcp", password?: string) {
  const { target, args, port } = place(inside, kind);
  const command = [...TIGER, "-rfbport", port, "-localhost"];
  if (kind === "unix") command.push("-rfbunixpath", inside.file("vnc.sock"));
  if (password === undefined) command.push("-SecurityTypes", "None");
  else {
    args.push(...(await passwordFiles(inside, password)));
    command.push("-SecurityTypes", "VncAuth", "-PasswordFile", inside.file("hidden"));
  }
  const again = async () => {
    const { pid } = await xserver(inside, command);
    await listening(target);
    return pid;
  };
  return { ...xsession(inside), pid: await again(), target, args, again };
}

async function x11vnc(inside: Box, kind: "unix" | "tcp"): Promise<Backend> {
  const { target, args, port } = place(inside, kind);
  await xserver(inside, XVFB);
  const listen =
    kind === "unix"
      ? ["-unixsock", inside.file("vnc.sock"), "-rfbport", "0", "-rfbportv6", "0"]
      : ["-rfbport", port, "-localhost"];
  const { pid } = inside.start(["x11vnc", "-forever", "-shared", ...listen]);
  await listening(target);
  return { ...cutBufferSession(inside), pid, target, args };
}

async function tightvnc(inside: Box, password: string): Promise<Backend> {
  const { target, args, port } = place(inside, "tcp");
  args.push(...(await passwordFiles(inside, password)));
  inside.env.DISPLAY = `:${freeDisplay()}`;
  const size = ["-geometry", "800x600", "-depth", "24", "-alwaysshared", "-nolisten", "tcp"];
  const listen = ["-rfbport", port, "-localhost", "-rfbauth", inside.file("hidden")];
  const { pid } = inside.start(["Xtightvnc", inside.env.DISPLAY, ...size, ...listen]);
  await listening(target);
  return { ...cutBufferSession(inside), pid, target, args };
}

/** A machine whose whole system is a boot sector: what is typed goes to the screen, and to port 0xe9, QEMU's log. */
const BOOT = "31c0 cd16 e6e9 b40e cd10 ebf4"; // xor ax,ax; int 16h; out 0e9h,al; mov ah,0eh; int 10h; jmp 0

async function qemu(inside: Box): Promise<Backend> {
  const { target, args } = place(inside, "unix");
  const sector = Buffer.alloc(512);
  sector.write(BOOT.replaceAll(" ", ""), "hex");
  sector.writeUInt16LE(0xaa55, 510);
  fs.writeFileSync(inside.file("boot.img"), sector);
  const machine =
    "qemu-system-x86_64 -accel tcg -m 16 -net none -vga std -display none -monitor none";
  const { pid } = inside.start([
    ...machine.split(" "),
    ...["-drive", "file=boot.img,format=raw", "-debugcon", "file:typed"],
    ...["-vnc", `unix:${inside.file("vnc.sock")}`],
  ]);
  await listening(target);
  const noAgent = () => Promise.reject(new Error("no agent in the machine"));
  const line = async () => /^.*\r/.exec(await inside.content("typed"))?.[0];
  return {
    pid,
    target,
    args,
    keyboard: async () => async () => (await until("a line", line)).replace("\r", "\n"),
    copy: noAgent,
    paste: noAgent,
    size: async () => [720, 400], // of the text mode
  };
}

/** A Wayland compositor without a screen; `run` are the lines of its configuration that start something. */
async function sway(inside: Box, run = "") {
  const runtime = inside.file("run");
  fs.mkdirSync(runtime, { mode: 0o700 });
  const isRoot = process.getuid?.() === 0; // whom sway refuses
  if (isRoot) fs.chownSync(runtime, SWAY_USER, SWAY_USER);
  const as = isRoot ? asUser(SWAY_USER) : [];
  const lines = ["output HEADLESS-1 resolution 800x600", "xwayland disable", run, ""];
  fs.writeFileSync(inside.file("sway"), lines.join("\n"));
  const headless = {
    WLR_BACKENDS: "headless",
    WLR_LIBINPUT_NO_DEVICES: "1",
    WLR_RENDERER: "pixman",
  };
  Object.assign(inside.env, headless, { XDG_RUNTIME_DIR: runtime });
  const { pid } = inside.start([...as, "sway", "-c", inside.file("sway")]);
  const socket = (name: RegExp) =>
    until("a socket of sway's", () => fs.readdirSync(runtime).find((entry) => name.test(entry)));
  inside.env.WAYLAND_DISPLAY = await socket(/^wayland-\d+$/);
  inside.env.SWAYSOCK = path.join(runtime, await socket(/^sway-ipc/));
  const ask = (what: string) => inside.run([...as, "swaymsg", "-r", "-t", what]);
  const size = async () => {
    const { rect } = JSON.parse(await ask("get_outputs"))[0];
    return [rect.width, rect.height];
  };
  return { pid, as, ask, size };
}

async function wayvnc(inside: Box): Promise<Backend> {
  const { target, args } = place(inside, "unix");
  const { pid, as, ask, size } = await sway(inside, `exec wayvnc -u ${inside.file("vnc.sock")}`);
  await listening(target);
  return {
    pid,
    target,
    args,
    size,
    keyboard: async () => {
      inside.start([...as, "foot", "sh", "-c", "head -n 1 >typed"]);
      await until("a terminal", async () => /"app_id": "foot"/.test(await ask("get_tree")));
      return () => inside.content("typed");
    },
    copy: (text) => inside.give([...as, "wl-copy"], text),
    paste: () => inside.run([...as, "wl-paste", "--no-newline"]),
  };
}

// --- the page ---

const notice = (page: Page, text: string | RegExp) =>
  page.locator("#notice").filter({ hasText: text }).waitFor();

/** The panel with the desktop's clipboard, open for as long as it is used. */
async function withPanel<T>(page: Page, use: (field: ReturnType<Page["locator"]>) => Promise<T>) {
  const field = page.getByRole("textbox", { name: "Clipboard" });
  await page.getByRole("button", { name: "Clipboard" }).click();
  const result = await use(field);
  await page.keyboard.press("Escape");
  await field.waitFor({ state: "hidden" });
  return result;
}

/** Puts the text on the session's clipboard by way of the page; returns what arrives there. */
const pasteInto = (page: Page, { paste }: Backend, text: string) =>
  withPanel(page, async (field) => {
    const before = await paste();
    await field.fill(text);
    return until("another text in the session", async () => {
      const now = await paste();
      return now !== before && now;
    });
  });

/** Copies in the session; returns what the page then shows. */
const copyFrom = (page: Page, { copy }: Backend, text: string) =>
  withPanel(page, async (field) => {
    const before = await field.inputValue();
    await copy(text);
    return until(
      "another text in the page",
      async () => {
        const now = await field.inputValue();
        return now !== before && now;
      },
      SLOW_MS,
    );
  });

const sizeOf = (page: Page, part: string, sides: string) =>
  page.evaluate<number[]>(
    `(part => ${sides}.map((side) => part[side]))(document.querySelector("${part}"))`,
  );
const canvasSize = (page: Page) => sizeOf(page, "#screen canvas", '["width", "height"]');
const windowSize = (page: Page) => sizeOf(page, "#screen", '["clientWidth", "clientHeight"]');

async function connects(page: Page, url: URL, { size }: Pick<Backend, "size">) {
  await page.goto(url.href);
  await inState(page, "connected");
  await until("a picture of the session's size", async () =>
    Bun.deepEquals(await canvasSize(page), await size()),
  );
}

async function types(page: Page, { keyboard }: Backend) {
  const line = await keyboard();
  await page.locator("#screen canvas").click({ position: CLICK_AT });
  await typeKeys(page, `${PRINTABLE}\n`);
  expect(await line()).toBe(`${PRINTABLE}\n`);
}

async function resizes(page: Page, { size }: Backend) {
  for (const window of [OTHER_SIZE, SIZE]) {
    await page.setViewportSize(window);
    await until("the size of the window", async () =>
      Bun.deepEquals(await size(), await windowSize(page)),
    );
    await until("a picture of that size", async () =>
      Bun.deepEquals(await canvasSize(page), await size()),
    );
  }
}

/** Whatever follows on the same connection has to be answered before it is known that the size was not taken. */
async function keepsSize(page: Page, { size }: Backend, answered: () => Promise<unknown>) {
  const before = await size();
  await page.setViewportSize(OTHER_SIZE);
  await answered();
  expect(await size()).toEqual(before);
  expect(await canvasSize(page)).toEqual(before ?? []);
}

/** Our server has ended; the one that it showed has not, and greets. */
async function livesOn({ pid, target }: Backend) {
  process.kill(pid, 0);
  expect(await greets(target)).toBeTrue();
}

/** One backend with one page that shows it, then our server's end. */
async function showing(
  start: (inside: Box) => Promise<Backend>,
  use: (page: Page, backend: Backend, url: URL) => Promise<void>,
) {
  await using inside = box();
  const backend = await start(inside);
  {
    await using server = await startServer(backend.args);
    await withPage(browser, { noise: [FIXED_SIZE] }, async (page) => {
      await connects(page, server.url, backend);
      await use(page, backend, server.url);
    });
  }
  await livesOn(backend);
}

// --- what each of them does ---

describe("through the page", () => {
  test.each([
    ["TigerVNC on a unix socket", (inside: Box) => tigervnc(inside, "unix")],
    ["TigerVNC on TCP", (inside: Box) => tigervnc(inside, "tcp")],
    ["TigerVNC with a password", (inside: Box) => tigervnc(inside, "unix", PASSWORD)],
  ] as const)("%s takes keys, takes and gives any text, and takes the window's size", (_, start) =>
    showing(start, async (page, backend) => {
      await types(page, backend);
      for (const text of [LATIN, UNICODE]) {
        expect(await pasteInto(page, backend, text)).toBe(text);
        expect(await copyFrom(page, backend, `${text} and back`)).toBe(`${text} and back`);
      }
      await resizes(page, backend);
    }),
  );

  test.each([
    ["x11vnc on a unix socket", (inside: Box) => x11vnc(inside, "unix")],
    ["x11vnc on TCP", (inside: Box) => x11vnc(inside, "tcp")],
    ["Xtightvnc with a password", (inside: Box) => tightvnc(inside, PASSWORD)],
  ] as const)("%s takes keys, takes and gives Latin-1 alone, and keeps its size", (_, start) =>
    showing(start, async (page, backend) => {
      await types(page, backend);
      expect(await pasteInto(page, backend, LATIN)).toBe(LATIN);
      expect(await copyFrom(page, backend, `${LATIN} back`)).toBe(`${LATIN} back`);
      expect(await pasteInto(page, backend, UNICODE)).toBe(asked(UNICODE));
      await keepsSize(page, backend, () => pasteInto(page, backend, "after the size"));
    }),
  );

  test("wayvnc takes keys, takes and gives ASCII alone, and keeps its size", () =>
    showing(wayvnc, async (page, backend) => {
      await types(page, backend);
      expect(await pasteInto(page, backend, PRINTABLE)).toBe(PRINTABLE);
      expect(await copyFrom(page, backend, `${PRINTABLE} back`)).toBe(`${PRINTABLE} back`);
      // It takes the Latin-1 of the protocol for UTF-8, and sends its UTF-8 for Latin-1.
      expect(await pasteInto(page, backend, LATIN)).toBe(Buffer.from(LATIN, "latin1").toString());
      expect(await copyFrom(page, backend, LATIN)).toBe(Buffer.from(LATIN).toString("latin1"));
      await keepsSize(page, backend, () => pasteInto(page, backend, "after the size"));
    }));

  test("QEMU takes keys, hands any text from viewer to viewer, and keeps its machine's size", () =>
    showing(qemu, async (page, backend, url) => {
      await types(page, backend);
      await withPage(browser, { noise: [FIXED_SIZE] }, async (other) => {
        await connects(other, url, backend);
        const field = other.getByRole("textbox", { name: "Clipboard", includeHidden: true });
        const passes = async (text: string) => {
          await withPanel(page, (own) => own.fill(text));
          await until("the text at the other", async () => (await field.inputValue()) === text);
        };
        for (const text of [LATIN, UNICODE]) await passes(text);
        await keepsSize(page, backend, () => passes("after the size"));
      });
    }));
});

describe("an attached server that", () => {
  test("is killed is named by the page, and is back by itself once it runs again", async () => {
    await using inside = box();
    const backend = await tigervnc(inside, "unix");
    await using server = await startServer(backend.args);
    await withPage(browser, { noise: REFUSED }, async (page) => {
      await connects(page, server.url, backend);
      process.kill(backend.pid, "SIGKILL");
      await inState(page, "waiting");
      await notice(page, /The VNC server at unix:\S+vnc\.sock cannot be reached: .*ECONNREFUSED/);
      expect(await statusOf(server)).toMatchObject({ cause: "vnc-unreachable" });
      await backend.again();
      await inState(page, "connected");
      expect(await statusOf(server)).toMatchObject({ state: "ready", cause: null });
    });
  });

  test.each([
    ["TigerVNC", (inside: Box) => tigervnc(inside, "unix", "wrong")],
    ["Xtightvnc", (inside: Box) => tightvnc(inside, "wrong")],
  ] as const)("is %s and refuses the password says so on the page", async (_, start) => {
    await using inside = box();
    const backend = await start(inside);
    await using server = await startServer(backend.args);
    await withPage(browser, { noise: REFUSED }, async (page) => {
      await page.goto(server.url.href);
      await notice(page, "The VNC server asks for a password.");
      await notice(page, "the VNC server refused the password");
      expect(await statusOf(server)).toMatchObject({
        cause: "vnc-password",
        detail: { error: "the VNC server refused the password" },
      });
    });
  });

  test("locks us out after wrong passwords is heard: its own words are the cause", async () => {
    await using inside = box();
    const backend = await tigervnc(inside, "tcp", "wrong");
    await using server = await startServer(backend.args);
    let error = "";
    await until("another answer than that to a wrong password", async () => {
      const response = await server.ask("desktop-websockify/", { headers: HANDSHAKE });
      expect(response.status).toBe(502);
      error = ((await response.json()) as { detail: { error: string } }).detail.error;
      return error !== "the VNC server refused the password";
    });
    expect(error).toMatch(/too many/i);
  });

  test("asks for a password that was not given says how to give it", async () => {
    await using inside = box();
    const backend = await tigervnc(inside, "unix", PASSWORD);
    await using server = await startServer(backend.args.slice(0, 2));
    await withPage(browser, {}, async (page) => {
      await page.goto(server.url.href);
      await inState(page, "stopped");
      await notice(page, "Start this server with --vnc-password-file");
    });
  });
});

describe("a server that our command starts", () => {
  test("and that is killed is started again by itself, after the page told why", async () => {
    const command = `exec ${TIGER.join(" ")} -SecurityTypes None -displayfd 3 3>"$HOME/display" -rfbport -1 -rfbunixpath "$JUPYTER_DESKTOP_VNC_SOCKET"`;
    await using server = await startServer(["--vnc-command", command]);
    boxes.push(server.dir);
    await withPage(browser, { noise: REFUSED }, async (page) => {
      await page.goto(server.url.href);
      await inState(page, "connected");
      const [pid] = processesOf(server, "Xtigervnc");
      process.kill(Number(pid), "SIGKILL");
      await notice(page, /The VNC server was ended by the signal SIGKILL/);
      await inState(page, "connected");
      expect(processesOf(server, "Xtigervnc")).not.toEqual([pid ?? ""]);
    });
  });

  test("is the README's x11vnc: it opens no port, and viewers may come, be two, and come again", async () => {
    const readme = fs.readFileSync(path.join(import.meta.dir, "../../README.md"), "utf8");
    const [, command = ""] = /--vnc-command '(x11vnc [^']+)'/.exec(readme) ?? [];
    await using inside = box();
    await xserver(inside, XVFB);
    const { DISPLAY = "" } = inside.env;
    await using server = await startServer(["--vnc-command", command.replace(":0", DISPLAY)]);
    boxes.push(server.dir);
    let pid: string | undefined;
    const first = { size: xsession(inside).size };
    await withPage(browser, { noise: [FIXED_SIZE] }, async (page) => {
      await connects(page, server.url, first);
      await withPage(browser, { noise: [FIXED_SIZE] }, (other) =>
        connects(other, server.url, first),
      );
      await inState(page, "connected");
      [pid] = processesOf(server, "x11vnc");
      expect(pid).toBeDefined();
      expect(await inside.run(["ss", "-Hltnp"])).not.toContain(`pid=${pid},`);
    });
    await until("nobody to watch", async () => (await statusOf(server)).viewers === 0);
    await withPage(browser, { noise: [FIXED_SIZE] }, (page) => connects(page, server.url, first));
    expect(processesOf(server, "x11vnc")).toEqual([pid ?? ""]);
  });

  test("is wayvnc, which dies of a connection that ends at once: it is looked at with care", async () => {
    await using inside = box();
    const { size } = await sway(inside);
    const socket = path.join(inside.env.XDG_RUNTIME_DIR ?? "", inside.env.WAYLAND_DISPLAY ?? "");
    const env = `XDG_RUNTIME_DIR='${inside.env.XDG_RUNTIME_DIR}' WAYLAND_DISPLAY='${socket}'`;
    const command = `${env} exec wayvnc -u "$JUPYTER_DESKTOP_VNC_SOCKET"`;
    await using server = await startServer(["--vnc-command", command]);
    boxes.push(server.dir);
    await withPage(browser, { noise: [FIXED_SIZE] }, (page) =>
      connects(page, server.url, { size }),
    );
    expect(await statusOf(server)).toMatchObject({ state: "ready", attempt: 0 });
  });
});
