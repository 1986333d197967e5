/** The desktop in a real JupyterLab 4 and Notebook 7: installed, clicked, used, and reached from a notebook. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, BrowserContext, Frame, Page } from "playwright-core";
import {
  openWebSocket,
  processesWith,
  SERVER,
  startServer,
  tempDir,
  TOKEN,
  until,
} from "../_helpers.ts";
import {
  ARTIFACTS,
  ensureViewer,
  inState,
  launchBrowser,
  screenshot,
  seesDesktop,
  SIZE,
  SLOW_MS,
  typeKeys,
} from "./_browser.ts";

const CACHE = path.join(import.meta.dir, "../../.cache/jupyter");
const BIN = path.join(CACHE, "venv/bin");
const AUTH = { authorization: `token ${TOKEN}` };
setDefaultTimeout(3 * SLOW_MS);

/** A desktop of one terminal: where it is not the desktop that is tested. */
const LIGHT = "#!/bin/sh\nexec xterm\n";

interface Home {
  readonly dir: string;
  readonly env: Record<string, string>;
  /** Runs `jupyter-desktop` to its end. */
  cli(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }>;
  [Symbol.dispose](): void;
}

/** A home in which nothing of Jupyter's is yet, with `jupyter-desktop` and this Jupyter on PATH. */
function newHome(): Home {
  const made = tempDir();
  const dir = made.path;
  fs.mkdirSync(path.join(dir, "bin"));
  fs.mkdirSync(path.join(dir, "tmp"));
  fs.writeFileSync(
    path.join(dir, "bin/jupyter-desktop"),
    `#!/bin/sh\nexec ${process.execPath} ${SERVER} "$@"\n`,
    { mode: 0o755 },
  );
  const env = {
    HOME: dir,
    TMPDIR: path.join(dir, "tmp"),
    JUPYTER_CONFIG_DIR: path.join(dir, ".jupyter"),
    PATH: `${dir}/bin:${BIN}:/usr/bin:/bin`,
  };
  const cli = async (...args: string[]) => {
    const child = Bun.spawn([process.execPath, SERVER, ...args], {
      env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { code: await child.exited, stdout, stderr };
  };
  return { dir, env, cli, [Symbol.dispose]: made[Symbol.dispose] };
}

/** A Jupyter server with all of its pages (`/lab`, `/tree`), once it answers. */
async function startJupyter(home: Home, baseUrl: string, env: Record<string, string> = {}) {
  const settings = {
    "ServerApp.base_url": baseUrl,
    "ServerApp.allow_root": "True",
    "ServerApp.port": "0",
    "ServerApp.ip": "127.0.0.1",
    "IdentityProvider.token": TOKEN,
  };
  const args = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
  const child = Bun.spawn([path.join(BIN, "python"), "-m", "jupyterlab", "--no-browser", ...args], {
    cwd: home.dir,
    env: { ...home.env, ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const said = { text: "" };
  const follow = (async () => {
    for await (const chunk of child.stderr) said.text += Buffer.from(chunk).toString();
  })();
  const port = await until(
    "Jupyter's address",
    () => {
      if (child.exitCode !== null) throw new Error(said.text);
      return /http:\/\/127\.0\.0\.1:(\d+)\//.exec(said.text)?.[1];
    },
    SLOW_MS,
  );
  const url = new URL(`http://127.0.0.1:${port}${baseUrl}`);
  // It says the address before it listens.
  await until("its answer", () => fetch(new URL("api", url)).catch(() => undefined), SLOW_MS);
  const ask = (to: string, init: BunFetchRequestInit = {}) =>
    fetch(new URL(to, url), { redirect: "manual", ...init, headers: { ...AUTH, ...init.headers } });
  const stop = async () => {
    child.kill();
    await child.exited;
    await follow;
    await until("the end of all that it started", () => processesWith(home.dir).length === 0);
  };
  return { url, ask, said, child, [Symbol.asyncDispose]: stop };
}

type Jupyter = Awaited<ReturnType<typeof startJupyter>>;

/** An operator's own entry, with a prefix that Jupyter keeps. */
function addKeptEntry(to: Home): void {
  const command = [process.execPath, SERVER, "--unix-socket", "{unix_socket}"];
  const kept = {
    command: [...command, "--base-url", "{base_url}kept/", "--vnc", "unix:/nonexistent/vnc.sock"],
    unix_socket: 1,
    absolute_url: 1,
    timeout: 60,
  };
  fs.appendFileSync(
    path.join(to.dir, ".jupyter/jupyter_server_config.py"),
    `c.ServerProxy.servers.update(${JSON.stringify({ kept }).replace(/(_url|_socket)":1/g, '$1":True')})\n`,
  );
}

let browser: Browser;
/** The Jupyter that most tests use, with the entry as `install` writes it. */
let home: Home;
let jupyter: Jupyter;
let context: BrowserContext;

beforeAll(async () => {
  if (!fs.existsSync(path.join(CACHE, "installed")))
    throw new Error("there is no Jupyter to test with: run test/setup.sh");
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  home = newHome();
  expect((await home.cli("install", "--geometry", "1024x768")).code).toBe(0);
  addKeptEntry(home);
  [browser, jupyter] = await Promise.all([launchBrowser(), startJupyter(home, "/user/x@y.z/")]);
  context = await browser.newContext({
    viewport: SIZE,
    permissions: ["clipboard-read", "clipboard-write"],
  });
}, 2 * SLOW_MS);

afterAll(async () => {
  await browser?.close();
  await jupyter?.[Symbol.asyncDispose]();
  home?.[Symbol.dispose]();
}, SLOW_MS);

/** Opens JupyterLab as a person does: with its log-in page. */
async function logIn(to: BrowserContext, { url }: Jupyter): Promise<Page> {
  const page = await to.newPage();
  page.setDefaultTimeout(SLOW_MS);
  await page.goto(new URL("lab", url).href);
  await page.locator("#password_input").fill(TOKEN);
  await page.locator("#login_submit").click();
  return page;
}

const tile = (page: Page) => page.locator('.jp-LauncherCard[title*="Desktop"]');

/** Collects what a page of ours says on its console that should not be there. */
function listen(page: Page): string[] {
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => {
    const isOurs = message.location().url.includes("/desktop/");
    const isNoise = /^Canvas2D: Multiple readback/.test(message.text());
    if (isOurs && !isNoise && ["error", "warning"].includes(message.type()))
      problems.push(message.text());
  });
  return problems;
}

/** Runs a cell in a new kernel of this Jupyter, and returns what it printed. */
async function runCell(code: string): Promise<string> {
  const answer = await jupyter.ask("api/kernels", { method: "POST", body: "{}" });
  const { id } = (await answer.json()) as { id: string };
  const script = `
import sys
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sys.argv[1])
client.load_connection_file()
client.start_channels()
client.wait_for_ready(timeout=30)
client.execute_interactive(sys.stdin.read(), timeout=40)
`;
  const runtime = path.join(home.dir, ".local/share/jupyter/runtime");
  const child = Bun.spawn(
    [path.join(BIN, "python"), "-c", script, path.join(runtime, `kernel-${id}.json`)],
    { env: home.env, stdio: [Buffer.from(code), "pipe", "pipe"] },
  );
  const [said, wrong] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return said + wrong;
}

/** Runs a program on the desktop, as from a terminal of the same user. */
async function onDesktop(...command: string[]) {
  const { stdout } = await home.cli("run", "--", ...command);
  return stdout.trim();
}

const windows = () => onDesktop("xwininfo", "-root", "-tree");

// In this order: the first of them finds no desktop yet.

test("a cell of three lines has the windows of a kernel on the desktop, which it starts", async () => {
  expect((await home.cli("status")).code).toBe(1);
  const said = await runCell(`
import json, os, subprocess
os.environ.update(json.loads(subprocess.check_output(["jupyter-desktop", "env", "--json"])))
import tkinter
window = tkinter.Tk()
window.title("from a notebook")
window.update()
print("shown on", os.environ["DISPLAY"])
`);
  expect(said).toMatch(/^shown on :\d+\n$/);
  expect(await windows()).toContain('"from a notebook"');
});

test("in a notebook, run gives back the program's own exit code and output", async () => {
  const said = await runCell(`
import subprocess
done = subprocess.run(["jupyter-desktop", "run", "--", "sh", "-c", "xdpyinfo | grep -c ^name; exit 7"], capture_output=True, text=True)
print(done.returncode, done.stdout, done.stderr)
`);
  expect(said.trim()).toBe("7 1");
  expect(await home.cli("run", "--", "no-such-program")).toMatchObject({ code: 127, stdout: "" });
});

test("the launcher has the tile with its icon, and a click shows the desktop in a new tab", async () => {
  const lab = await logIn(context, jupyter);
  await tile(lab).waitFor();
  const icon = "document.querySelector('.jp-LauncherCard[title*=\"Desktop\"] img')";
  await until("the icon", () => lab.evaluate<boolean>(`${icon}?.naturalWidth > 0`));
  await tile(lab).scrollIntoViewIfNeeded();
  await screenshot(lab, "jupyter-launcher.png");
  const [page] = await Promise.all([context.waitForEvent("page"), tile(lab).click()]);
  const problems = listen(page);
  await seesDesktop(page);
  expect(page.url()).toBe(new URL("desktop/", jupyter.url).href);

  const file = path.join(home.dir, "typed.txt");
  const terminal = home.cli("run", "--", "xterm", "-T", "reader", "-e", `head -n 1 > ${file}`);
  await until("a terminal with the keyboard", async () =>
    (await onDesktop("xdotool", "getactivewindow", "getwindowname")).includes("reader"),
  );
  await typeKeys(page, "Hello, Jupyter {1}!\n");
  expect(await terminal).toMatchObject({ code: 0 });
  expect(fs.readFileSync(file, "utf8")).toBe("Hello, Jupyter {1}!\n");

  await page.evaluate('navigator.clipboard.writeText("from here: ü 🐭")');
  await page.evaluate('window.dispatchEvent(new Event("focus"))');
  await until(
    "the pasted text",
    async () =>
      (await onDesktop("xclip", "-selection", "clipboard", "-o", "-target", "UTF8_STRING")) ===
      "from here: ü 🐭",
    SLOW_MS,
  );

  await page.reload();
  await seesDesktop(page);
  await screenshot(page, "jupyter-desktop.png");
  expect(problems).toEqual([]);
  await page.locator("[data-home]").click();
  await page.waitForURL(/\/user\/x@y\.z\/lab(\/|$)/);
  await Promise.all([page.close(), lab.close()]);
});

test("an entry with absolute_url is served under the prefix that it keeps", async () => {
  const page = await jupyter.ask("kept/", { headers: { accept: "text/html" } });
  expect(page.status).toBe(200);
  expect(await page.text()).toContain('data-base="./"');
  expect((await jupyter.ask("kept/desktop")).headers.get("location")).toBe("desktop/");
  expect(await (await jupyter.ask("kept/healthz")).text()).toBe("ok\n");
});

test("Notebook 7 has it in its menu New", async () => {
  const page = await context.newPage();
  page.setDefaultTimeout(SLOW_MS);
  await page.goto(new URL("tree", jupyter.url).href);
  await page.getByText("New", { exact: true }).click();
  const item = page.locator(".lm-Menu-item", { hasText: /Desktop/ });
  await item.waitFor();
  await screenshot(page, "jupyter-notebook.png");
  const [opened] = await Promise.all([context.waitForEvent("page"), item.click()]);
  await seesDesktop(opened);
  await Promise.all([opened.close(), page.close()]);
});

test("a server of one's own is reached through Jupyter's /proxy/PORT/, and its cookie stays there", async () => {
  const xstartup = path.join(home.dir, "light");
  fs.writeFileSync(xstartup, LIGHT, { mode: 0o755 });
  await using desk = await startServer(["--xstartup", xstartup]);
  const page = await context.newPage();
  page.setDefaultTimeout(SLOW_MS);
  const at = new URL(`proxy/${desk.url.port}/`, jupyter.url);
  await page.goto(`${at}?token=${TOKEN}`);
  await inState(page, "connected");
  expect(page.url()).toBe(at.href);
  const wayBack = "document.querySelector('[data-home]').href";
  expect(await page.evaluate<string>(wayBack)).toBe(jupyter.url.href);
  const cookies = await context.cookies();
  const own = cookies.filter(({ name }) => name.startsWith("jupyter-desktop-"));
  expect(own.map(({ path: where }) => where)).toEqual([at.pathname]);
  await page.close();
});

test("the entry's options: in a tab of the Lab, the old address, no Bun on PATH, no desktop before a visit", async () => {
  using other = newHome();
  const xstartup = path.join(other.dir, "light {1}");
  fs.writeFileSync(xstartup, LIGHT, { mode: 0o755 });
  const entry = ["--lab-tab", "--websockify", "--xstartup", xstartup, "--start", "visit"];
  expect((await other.cli("install", ...entry)).code).toBe(0);
  addKeptEntry(other);
  await using lab = await startJupyter(other, "/user/x%40y.z/lab/", { PATH: "/nonexistent" });
  expect((await lab.ask("kept/desktop/", { headers: { accept: "text/html" } })).status).toBe(200);

  // Jupyter's probe of the socket, and looking at the status, start nothing; the latter keeps nobody awake either.
  const status = async () => {
    const answer = await lab.ask("desktop/desktop/api/status");
    if (!answer.ok) throw new Error(`${await answer.text()} ${lab.said.text}`);
    return (await answer.json()) as { state: string };
  };
  expect((await status()).state).toBe("idle");
  const activity = async () =>
    ((await (await lab.ask("api/status")).json()) as { last_activity: string }).last_activity;
  const before = await activity();
  expect((await status()).state).toBe("idle");
  expect(await activity()).toBe(before);

  const old = await openWebSocket(new URL("desktop-websockify/", lab.url), { headers: AUTH });
  expect((await old.inbox.read(12)).toString()).toBe("RFB 003.008\n");
  expect(await activity()).not.toBe(before);
  await old[Symbol.asyncDispose]();

  await using inLab = await browser.newContext({ viewport: SIZE });
  const shown = await logIn(inLab, lab);
  await tile(shown).click();
  const frame = await until(
    "the desktop in a tab of the Lab",
    () => shown.frames().find((inner: Frame) => inner.url().endsWith("/desktop/")),
    SLOW_MS,
  );
  await frame.locator('body[data-state="connected"]').waitFor();
  expect(shown.context().pages()).toHaveLength(1);
  await shown.locator(".jp-ServerProxy iframe").click();
  await typeKeys(shown, `echo in the lab > ${path.join(other.dir, "typed.txt")}\n`);
  await until("what was typed in the frame", () =>
    fs.existsSync(path.join(other.dir, "typed.txt")),
  );
  await screenshot(shown, "jupyter-lab-tab.png");
});

test("after uninstall and a restart the tile is gone", async () => {
  using other = newHome();
  expect((await other.cli("install")).code).toBe(0);
  expect((await other.cli("uninstall")).code).toBe(0);
  await using lab = await startJupyter(other, "/");
  const answer = await lab.ask("server-proxy/servers-info");
  expect(await answer.json()).toEqual({ server_processes: [] });
  expect((await lab.ask("desktop/healthz")).status).toBe(404);
});

test("a forgotten tab with a clock keeps Jupyter awake only until --idle-disconnect; an ended desktop never does", async () => {
  using other = newHome();
  const xstartup = path.join(other.dir, "clock");
  const clock = "while :; do date +%N; sleep 0.1; done";
  fs.writeFileSync(xstartup, `#!/bin/sh\nexec xterm -e '${clock}'\n`, { mode: 0o755 });
  expect((await other.cli("install", "--xstartup", xstartup, "--idle-disconnect", "2s")).code).toBe(
    0,
  );
  await using lab = await startJupyter(other, "/");
  const activity = async () => {
    const status = await (await lab.ask("api/status")).json();
    return Date.parse((status as { last_activity: string }).last_activity);
  };
  /** Whether Jupyter sees nothing of the page for as long as this. */
  const isSilent = async (ms: number) => {
    const last = await activity();
    await until("so much time without activity, or some", async () => {
      return Date.now() - last > ms || (await activity()) !== last;
    });
    return (await activity()) === last;
  };
  await using own = await browser.newContext({ viewport: SIZE });
  const page = await own.newPage();
  page.setDefaultTimeout(SLOW_MS);
  await page.goto(`${new URL("desktop/", lab.url)}?token=${TOKEN}`);
  await inState(page, "connected");
  expect(await isSilent(1_000)).toBe(false);
  await inState(page, "stopped"); // paused: Jupyter's proxy swallows the code that says so
  await page.getByRole("button", { name: "Continue" }).waitFor();
  expect(await isSilent(3_000)).toBe(true);
  await lab.ask("desktop/desktop/api/stop", { method: "POST" });
  await page.reload();
  await inState(page, "connected"); // a visit starts it again
  await lab.ask("desktop/desktop/api/stop", { method: "POST" });
  await inState(page, "stopped");
  expect(await isSilent(3_000)).toBe(true);
});
