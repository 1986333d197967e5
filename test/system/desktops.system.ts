/**
 * Every desktop that the bundled xstartup knows and Debian 12 has, in the page: it is painted, it asks nothing at its
 * first start, it has a terminal, no lock screen is in it, and its log-out is one. Those that xstartup would prefer
 * are hidden from it in a mount namespace. `sh test/system/setup.sh` installs the desktops and the lock screens.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { asUser, processesWith, startServer, tempDir, until } from "../_helpers.ts";
import {
  ARTIFACTS,
  type Desk,
  ensureViewer,
  inState,
  launchBrowser,
  processesOf,
  screenshot,
  settles,
  SLOW_MS,
  statusOf,
  typeKeys,
  withPage,
} from "../e2e/_browser.ts";

setDefaultTimeout(4 * SLOW_MS);

/** The desktops are an ordinary user's: as root, MATE's file manager does not stay. */
const USER = 65_534;

/** In the order in which xstartup looks for them. */
const SESSIONS = ["xfce4-session", "lxqt-session", "mate-session", "openbox", "icewm-session"];

interface Desktop {
  readonly name: string;
  readonly session: string;
  /** Its window manager's process. */
  readonly manager: string;
  /** Starts a terminal; without it xstartup has started one. */
  readonly terminal?: readonly string[];
  readonly logOut: readonly string[];
  /** The key that answers its question whether to log out. */
  readonly confirm?: string;
  /** Its panel never rests: clock and graphs go on every second. */
  readonly isRestless?: true;
}

const bus = (to: string, place: string, call: string) =>
  `dbus-send --print-reply --dest=${to} ${place} ${call}`.split(" ");

const DESKTOPS: readonly Desktop[] = [
  {
    name: "XFCE",
    session: "xfce4-session",
    manager: "xfwm4",
    terminal: ["xfce4-terminal", "--disable-server"],
    logOut: ["xfce4-session-logout", "--logout"],
  },
  {
    name: "LXQt",
    session: "lxqt-session",
    manager: "openbox",
    terminal: ["qterminal"],
    logOut: bus("org.lxqt.session", "/LXQtSession", "org.lxqt.session.logout"),
  },
  {
    name: "MATE",
    session: "mate-session",
    manager: "marco",
    terminal: ["mate-terminal", "--disable-factory"],
    logOut: ["mate-session-save", "--force-logout"],
  },
  {
    name: "Openbox",
    session: "openbox",
    manager: "openbox",
    logOut: ["openbox", "--exit"],
  },
  {
    name: "IceWM",
    session: "icewm-session",
    manager: "icewm",
    logOut: ["icesh", "-r", "logout"],
    confirm: "Alt+o", // OK
    isRestless: true,
  },
];

/** noVNC, cut off by the log-out while it was drawing. */
const LATE = /^Got data while disconnected$/;

/** As `ps -o comm` names them. */
const LOCKERS = ["light-locker", "xscreensaver", "mate-screensave", "xfce4-screensav"];

const MISSING = [...SESSIONS, "light-locker", "xscreensaver", "mate-screensaver"].filter(
  (name) => !Bun.which(name),
);
if (MISSING.length > 0)
  throw new Error(`${MISSING.join(", ")} is missing. Type: sh test/system/setup.sh`);

let browser: Browser;
const dirs: string[] = [];

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  browser = await launchBrowser();
}, SLOW_MS);

afterAll(async () => {
  await browser?.close();
  expect(dirs.flatMap(processesWith)).toEqual([]);
}, SLOW_MS);

/**
 * What runs a command where these sessions are not installed, and where every lock screen is started with a desktop:
 * Debian 12 has no xfce4-screensaver, so that an entry of its name stands for it, which leaves the file `locked`.
 */
function without(dir: string, sessions: readonly string[]): string[] {
  const nothing = path.join(dir, "nothing");
  const autostart = path.join(dir, "autostart");
  fs.writeFileSync(nothing, "");
  fs.cpSync("/etc/xdg/autostart", autostart, { recursive: true });
  fs.writeFileSync(
    path.join(autostart, "xfce4-screensaver.desktop"),
    `[Desktop Entry]\nType=Application\nName=Locker\nExec=touch ${path.join(dir, "locked")}\n`,
  );
  const mounts = [
    `mount --bind '${autostart}' /etc/xdg/autostart`,
    ...sessions.map((name) => `mount --bind '${nothing}' '${Bun.which(name)}'`),
  ];
  const namespace = ["unshare", "--mount", "sh", "-ec", `${mounts.join("\n")}\nexec "$@"`, "sh"];
  return [...namespace, ...asUser(USER)];
}

/** The environment of the desktop's programs, as its window manager has it. */
async function sessionEnv(desk: Desk, manager: string): Promise<Record<string, string>> {
  const environ = await until(
    `${manager} runs`,
    () => {
      const [pid] = processesOf(desk, manager);
      return pid ? fs.readFileSync(`/proc/${pid}/environ`, "utf8") : "";
    },
    SLOW_MS,
  );
  const entries = environ.split("\0").filter((entry) => entry.includes("="));
  return Object.fromEntries(entries.map((entry) => entry.split(/=(.*)/s, 2) as [string, string]));
}

/** Ways to look at a desktop from inside. */
function inside(desk: Desk, env: Record<string, string>) {
  const start = (command: readonly string[]) =>
    Bun.spawn([...asUser(USER), ...command], {
      env,
      cwd: desk.dir,
      stdio: ["ignore", "ignore", "ignore"],
    }).unref();
  const run = (command: readonly string[]) =>
    Bun.spawn([...asUser(USER), ...command], {
      env,
      stdio: ["ignore", "pipe", "ignore"],
      timeout: 5_000,
    }).stdout.text();
  /** Of each window that the window manager manages: its class and what kind of window it is. */
  const windows = async () => {
    const list = (await run(["xprop", "-root", "_NET_CLIENT_LIST"])).match(/0x[0-9a-f]+/g) ?? [];
    return Promise.all(
      list.map(async (id) => {
        const said = await run(["xprop", "-id", id, "WM_CLASS", "WM_NAME", "_NET_WM_WINDOW_TYPE"]);
        return { id, said, isFurniture: /_TYPE_(DESKTOP|DOCK)/.test(said) };
      }),
    );
  };
  return { start, run, windows };
}
type Inside = ReturnType<typeof inside>;

/** An empty root window has one or two, a terminal some more. */
const FEW_COLOURS = 20;
const COLOURS = `(() => {
  const { width, height } = document.querySelector("#screen canvas");
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(document.querySelector("#screen canvas"), 0, 0);
  return new Set(new Uint32Array(copy.getImageData(0, 0, width, height).data.buffer)).size;
})()`;
const colours = (page: Page) => page.evaluate<number>(COLOURS);

/** The windows that a person has to deal with. */
const opened = async ({ windows }: Inside) => (await windows()).filter((one) => !one.isFurniture);

/** A terminal that has the keyboard, whoever started it. */
const hasTerminal = (desktop: Inside) =>
  until(
    "a terminal that has the keyboard",
    async () => {
      const [, active] =
        /(0x[0-9a-f]+)/.exec(await desktop.run(["xprop", "-root", "_NET_ACTIVE_WINDOW"])) ?? [];
      return (await opened(desktop)).some(({ id, said }) => id === active && /term/i.test(said));
    },
    SLOW_MS,
  );

test
  .skipIf(process.getuid?.() !== 0)
  .each(DESKTOPS.map((desktop) => [desktop.name, desktop] as const))(
  "%s is painted, asks nothing, has a terminal, does not lock, and can be left",
  async (name, { session, manager, terminal, logOut, confirm, isRestless }) => {
    using dir = tempDir();
    const hidden = without(dir.path, SESSIONS.slice(0, SESSIONS.indexOf(session)));
    await using desk = await startServer(["--log-level", "debug"], {}, hidden);
    dirs.push(desk.dir);
    await withPage(browser, { noise: [LATE] }, async (page) => {
      await page.goto(desk.url.href);
      await inState(page, "connected");
      const desktop = inside(desk, await sessionEnv(desk, manager));
      expect(desk.said.stderr).toContain(`jupyter-desktop: starting ${session}`);
      const check = ["xprop", "-root", "_NET_SUPPORTING_WM_CHECK"];
      await until("a window manager", async () => /0x/.test(await desktop.run(check)), SLOW_MS);
      if (!terminal) await hasTerminal(desktop);
      await until("something painted", async () => (await colours(page)) > FEW_COLOURS, SLOW_MS);
      if (!isRestless) await settles(page);
      await screenshot(page, `desktop-${name.toLowerCase()}.png`);
      // The first start asks nothing: there is no window but the desktop's own, or the terminal of xstartup.
      const windows = await opened(desktop);
      expect(windows.filter(({ said }) => terminal !== undefined || !/term/i.test(said))).toEqual(
        [],
      );

      const saver = await desktop.run(["xset", "q"]);
      expect(saver).toMatch(/timeout: +0 /);
      expect(saver).not.toMatch(/DPMS is Enabled/);
      if (terminal) desktop.start(terminal);
      await hasTerminal(desktop);
      await desktop.run(["xset", "s", "1"]);
      await desktop.run(["xset", "s", "activate"]); // now, as after that time without input
      await typeKeys(page, "echo not locked > typed\n");
      const typed = path.join(desk.dir, "typed");
      await until("what was typed", () => fs.existsSync(typed) && fs.statSync(typed).size > 0);
      expect(fs.readFileSync(typed, "utf8")).toBe("not locked\n");
      expect(LOCKERS.flatMap((locker) => processesOf(desk, locker))).toEqual([]);
      expect(fs.existsSync(path.join(dir.path, "locked"))).toBeFalse();
      await screenshot(page, `desktop-${name.toLowerCase()}-terminal.png`);

      await until(
        "the end of the session",
        async () => {
          if ((await statusOf(desk)).state === "ended") return true;
          desktop.start(logOut);
          await Bun.sleep(500); // XFCE refuses until it has started all of its programs
          if (confirm) await page.keyboard.press(confirm);
          return false;
        },
        SLOW_MS,
      );
      expect(await statusOf(desk)).toMatchObject({ state: "ended", cause: "logged-out" });
      await page.getByRole("button", { name: "Start a new session" }).waitFor();
    });
  },
);
