/** JupyterHub, its proxy and its idle culler, each the real one, with this project's server for each user. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Browser, Page } from "playwright-core";
import { HANDSHAKE, SERVER, until } from "../_helpers.ts";
import {
  type Desk,
  ensureViewer,
  inState,
  launchBrowser,
  openTerminal,
  processesOf,
  screenshot,
  seesDesktop,
  SLOW_MS,
  typeKeys,
  withPage,
} from "./_browser.ts";
import { ADMIN_TOKEN, logIn, PYTHON, serverOf, spawn, startHub, type TestHub } from "./_hub.ts";

/** The Hub's own pages load what this project cannot answer for. */
const HUB_NOISE = [/favicon/, /status of 403/, /status of 503/];

/** A desktop that is there at once, and whose picture never stands still. */
const BLINKING = `#!/bin/sh
exec xterm -geometry 60x10 -e sh -c 'while :; do date +%N; sleep 0.2; done'
`;

let browser: Browser;
beforeAll(async () => {
  await ensureViewer();
  browser = await launchBrowser();
});
afterAll(() => browser.close());

const at = (hub: TestHub, user: string, rest = "") => new URL(`user/${user}/${rest}`, hub.url);

/** The desktop of a user, for what looks at it from inside. */
const deskOf = (hub: TestHub, user: string) => ({ dir: hub.home(user) }) as Desk;

/** Comes to a user's desktop without a log-in, and logs in as that user. */
const visit = (hub: TestHub, user: string, use: (page: Page) => Promise<void>) =>
  visitOf(hub, [user, user], use);
const visitOf = (
  hub: TestHub,
  [owner, user]: [string, string],
  use: (page: Page) => Promise<void>,
) =>
  withPage(browser, { noise: HUB_NOISE }, async (page) => {
    await page.goto(at(hub, owner).href);
    await logIn(page, user);
    await use(page);
  });

describe("under JupyterHub", () => {
  let hub: TestHub;
  let evil: Bun.Server<undefined>;
  beforeAll(async () => {
    evil = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: evilPage });
    hub = await startHub({
      config: `c.JupyterHub.services.append({"name": "evil", "url": "http://127.0.0.1:${evil.port}", "oauth_no_confirm": True})`,
    });
    await spawn(hub, "alice");
  }, 60_000);
  afterAll(async () => {
    await hub[Symbol.asyncDispose]();
    await evil.stop(true);
  }, 30_000);

  test("a person logs in, sees the desktop, types, reloads and logs out", async () => {
    await visit(hub, "alice", async (page) => {
      await seesDesktop(page);
      expect(page.url()).toBe(at(hub, "alice").href);
      expect(await page.locator("body").getAttribute("data-hub-home")).toBe("/hub/home");
      await openTerminal(deskOf(hub, "alice"));
      await typeKeys(page, "echo typed >through-the-hub\n");
      const typed = path.join(hub.home("alice"), "through-the-hub");
      await until("what was typed", () => fs.existsSync(typed), SLOW_MS);
      await page.reload();
      await seesDesktop(page);
      await screenshot(page, "hub-desktop.png");

      await page.goto(at(hub, "alice", "logout").href);
      await page.locator("#username_input").waitFor();
      expect(new URL(page.url()).pathname).toBe("/hub/login");
      expect(
        (await page.context().cookies(at(hub, "alice").href)).map(({ name }) => name),
      ).not.toContain("jupyterhub-user-alice");
      await page.goto(at(hub, "alice").href);
      await page.locator("#username_input").waitFor();
    });
  }, 90_000);

  test("the desktop's programs do not have the Hub's variables", () => {
    const desk = deskOf(hub, "alice");
    const [pid] = processesOf(desk, "xfwm4");
    const environ = fs.readFileSync(`/proc/${pid}/environ`, "latin1");
    expect(environ).toContain(`HOME=${desk.dir}`);
    expect(environ).not.toMatch(/JUPYTERHUB_|JPY_API_TOKEN/);
  });

  test("the Hub hears when somebody last typed, and not that a page is open", async () => {
    await visit(hub, "alice", async (page) => {
      await inState(page, "connected");
      const before = Date.now();
      await page.mouse.move(300, 300);
      await page.mouse.move(320, 330);
      const after = Date.now();
      const heard = () => serverOf(hub, "alice").then((it) => Date.parse(it?.last_activity ?? ""));
      await until("the activity", async () => (await heard()) >= before);
      // The last of it may be in the next report, which is due within a second.
      await until("time for a report", () => Date.now() > after + 1_500);
      const heardMs = await heard();
      expect(heardMs).toBeWithin(before, after + 500);
      // Two more reports were due; CHP's own times are not asked for in five minutes.
      await until("time for two reports", () => Date.now() > after + 4_000);
      expect(await heard()).toBe(heardMs);
      expect(await page.locator("body").getAttribute("data-state")).toBe("connected");
    });
  }, 60_000);

  test("a page whose desktop was started anew connects by itself, without being loaded again", async () => {
    await visit(hub, "alice", async (page) => {
      await inState(page, "connected");
      await page.evaluate("window.loaded = 'once'");
      const restart = `fetch("desktop/api/restart?t=" + document.body.dataset.ticket, { method: "POST" })`;
      expect(await page.evaluate<number>(`${restart}.then(({ status }) => status)`)).toBe(200);
      await seesDesktop(page);
      expect(await page.evaluate<string>("window.loaded")).toBe("once");
    });
  }, 60_000);

  test("all that the page asks for by itself carries its ticket, and its log-out is the Hub's", async () => {
    await visit(hub, "alice", async (page) => {
      await inState(page, "connected");
      await page.reload();
      const base = at(hub, "alice").href;
      const asked: string[] = [];
      const refused: string[] = [];
      page.on("websocket", (socket) => asked.push(socket.url().replace(/^ws/, "http")));
      page.on("request", (request) => {
        if (request.resourceType() !== "document") asked.push(request.url());
      });
      page.on("response", (response) => {
        if (response.status() >= 400) refused.push(response.url());
      });
      const open = async (name: string) => {
        await page.locator("#bar").getByRole("button", { name, exact: true }).click();
        return page.locator(`#${name.toLowerCase()}:popover-open`);
      };
      const heard = (part: string) =>
        until(part, () => asked.some((url) => url.startsWith(`${base}desktop${part}`)), SLOW_MS);
      await inState(page, "connected");
      const keys = await open("Keys");
      await heard("/api/keyboard");
      await keys.getByRole("combobox").selectOption({ label: "German" });
      await page.keyboard.press("Escape");
      const files = await open("Files");
      await page
        .locator("#files-input")
        .setInputFiles({ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("alice's") });
      const download = page.waitForEvent("download");
      await files.getByRole("link", { name: "a.txt" }).click();
      expect(fs.readFileSync(await (await download).path(), "utf8")).toBe("alice's");
      asked.push((await download).url());
      await page.keyboard.press("Escape");
      await open("More");
      await page.getByRole("button", { name: "Connection numbers" }).click();
      await until("a round trip", () => asked.includes(`${base}healthz`), SLOW_MS);
      await page.keyboard.press("Escape");
      await open("More");
      await page.getByRole("button", { name: "Restart the desktop" }).click();
      await page.locator("#confirm-yes").click();
      await heard("/api/restart");
      await heard("/api/status");
      await seesDesktop(page);

      const ticket = await page.locator("body").getAttribute("data-ticket");
      const isOpen = (url: string) =>
        url === `${base}healthz` || url.startsWith(`${base}desktop/static/`);
      const without = asked.filter(
        (url) =>
          url.startsWith(base) && !isOpen(url) && new URL(url).searchParams.get("t") !== ticket,
      );
      expect(without).toEqual([]);
      expect(refused).toEqual([]);
      for (const part of [
        "-websockify/",
        "/api/files?",
        "/api/files/uploads",
        "/api/files/download",
      ])
        await heard(part);

      await open("More");
      await page.getByRole("button", { name: "Log out" }).click();
      await page.locator("#username_input").waitFor();
      expect(new URL(page.url()).pathname).toBe("/hub/login");
    });
  }, 90_000);

  test("another user gets 403 on HTTP and on the WebSocket", async () => {
    await visitOf(hub, ["alice", "bob"], async (page) => {
      await page.getByRole("heading", { name: "403" }).waitFor();
      const { token } = (await (await hub.api("/users/bob/tokens", { method: "POST" })).json()) as {
        token: string;
      };
      const ask = async (rest: string, init: RequestInit = {}) => {
        const headers = {
          authorization: `token ${token}`,
          origin: hub.url.origin,
          ...init.headers,
        };
        const response = await fetch(at(hub, "alice", rest), {
          ...init,
          headers,
          redirect: "manual",
        });
        return [response.status, await response.text()];
      };
      const refused = [403, expect.stringContaining("This desktop is not yours")];
      expect(await ask("")).toEqual(refused);
      expect(await ask("desktop/api/status")).toEqual(refused);
      expect(await ask("desktop/static/dist/viewer.js")).toEqual(refused);
      expect(await ask("desktop/api/stop", { method: "POST" })).toEqual(refused);
      expect(await ask("desktop-websockify/", { headers: HANDSHAKE })).toEqual(refused);
      expect(await ask(`desktop-websockify/?token=${token}`, { headers: HANDSHAKE })).toEqual(
        refused,
      );
    });
  }, 60_000);

  test("a user with whom the server is shared gets in", async () => {
    await hub.api("/users/carol", { method: "POST" });
    await hub.api("/shares/alice/", { method: "POST", body: JSON.stringify({ user: "carol" }) });
    await visitOf(hub, ["alice", "carol"], async (page) => {
      await page.getByRole("button", { name: "Authorize" }).click();
      await seesDesktop(page);
      expect(page.url()).toBe(at(hub, "alice").href);
    });
  }, 60_000);

  test("a page of another user's, on the same origin, gets nowhere with a person's cookie", async () => {
    const noise = [
      ...HUB_NOISE,
      /ERR_CACHE_MISS/,
      /response code: 403/,
      /"frame-ancestors 'none'"/,
    ];
    await withPage(browser, { noise }, async (page) => {
      await page.goto(at(hub, "alice").href);
      await logIn(page, "alice");
      await inState(page, "connected");
      const popup = page.context().waitForEvent("page");
      await page.goto(new URL("services/evil/", hub.url).href);
      const look = () => page.evaluate<Record<string, unknown>>("window.found");
      await until("what the page tried", async () => (await look()).popup, SLOW_MS);
      await inState(await popup, "connected"); // the person's own, once more
      expect(await (await popup).locator("body").getAttribute("data-ticket")).toMatch(/^.{43}$/);
      expect(await page.evaluate<string[]>("window.reach()")).toEqual([]);
      expect(await look()).toEqual({
        page: 403,
        cached: "none",
        status: 403,
        stop: 403,
        websocket: "refused",
        popup: "opened",
      });
      await inState(await popup, "connected");
    });
  }, 60_000);

  test("while the Hub is down, what runs goes on, and who comes is told", async () => {
    await visit(hub, "alice", async (page) => {
      await seesDesktop(page);
      hub.child.kill("SIGKILL");
      await hub.child.exited;
      await openTerminal(deskOf(hub, "alice"));
      await typeKeys(page, "echo typed >without-the-hub\n");
      const typed = path.join(hub.home("alice"), "without-the-hub");
      await until("what was typed", () => fs.existsSync(typed), SLOW_MS);
      const token = { authorization: "token of-nobody-that-is-known" };
      const answer = await fetch(at(hub, "alice"), { headers: { ...token, accept: "text/html" } });
      expect([answer.status, answer.headers.get("refresh")]).toEqual([503, "5"]);
      expect(await answer.text()).toContain("JupyterHub does not answer");
    });
  }, 90_000);
});

/** What a stranger's page can try in the browser of a person who is logged in. */
function evilPage(request: Request): Response {
  const isScript = new URL(request.url).pathname.endsWith(".js");
  const headers = {
    "content-type": isScript ? "text/javascript" : "text/html",
    // Of the same value as another page's, it would keep a hold on what it opens.
    "cross-origin-opener-policy": "same-origin",
  };
  return new Response(isScript ? EVIL : "<script type=module src=evil.js></script>", { headers });
}

const EVIL = `
  const target = "/user/alice/";
  const found = (window.found = {});
  const html = { accept: "text/html" };
  const statusOf = async (rest, init) => (await fetch(target + rest, { headers: html, ...init })).status;
  found.page = await statusOf("");
  found.cached = await fetch(target, { cache: "only-if-cached", mode: "same-origin", headers: html })
    .then((it) => it.text(), () => "none");
  found.status = await statusOf("desktop/api/status");
  found.stop = await statusOf("desktop/api/stop", { method: "POST" });
  found.websocket = await new Promise((resolve) => {
    const ws = new WebSocket("ws://" + location.host + target + "desktop-websockify/");
    ws.onopen = () => resolve("open");
    ws.onclose = () => resolve("refused");
  });
  const frame = document.createElement("iframe");
  frame.src = target;
  await new Promise((resolve) => {
    frame.onload = resolve;
    document.body.append(frame);
  });
  const popup = window.open(target);
  const ways = { frame: () => frame.contentDocument, popup: () => popup.document };
  window.reach = () => Object.keys(ways).filter((way) => {
    try {
      return ways[way]().body.dataset.base !== undefined;
    } catch {
      return false;
    }
  });
  found.popup = popup === null ? "none" : "opened";
`;

describe("the idle culler", () => {
  test("ends the server of a tab that was left open, and not one that is used", async () => {
    await using hub = await startHub({
      command: ["jupyterhub-singleuser"],
      xstartup: BLINKING,
      env: {
        "*": { JUPYTER_DESKTOP_IDLE_DISCONNECT: "2s" },
        open: { JUPYTER_DESKTOP_IDLE_DISCONNECT: "off" },
      },
      // The Hub takes CHP's times, which every byte from a browser renews, as it does else every five minutes.
      config: "c.JupyterHub.last_activity_interval = 1",
    });
    fs.symlinkSync(SERVER, path.join(hub.dir, "jupyterhub-singleuser"));
    const users = ["forgotten", "open", "x@y.z"];
    for (const user of users) await spawn(hub, user);
    await visitOf(hub, ["x%40y.z", "x@y.z"], async (used) => {
      await inState(used, "connected");
      expect(used.url()).toBe(at(hub, "x@y.z").href); // as the Hub spells it, and its cookie's path
      using _ = typing(used);
      await visit(hub, "open", async (open) => {
        await inState(open, "connected");
        await visit(hub, "forgotten", async (forgotten) => {
          await inState(forgotten, "connected");
          await forgotten.getByText("Paused").first().waitFor();
          await using _ = startCuller(hub);
          const alive = async () => {
            const servers = await Promise.all(users.map((user) => serverOf(hub, user)));
            return servers.map((server) => server?.ready ?? false);
          };
          await until("the end of a server", async () => (await alive()).includes(false), SLOW_MS);
          expect(await alive()).toEqual([false, true, true]);
          await inState(forgotten, "stopped");
          await forgotten.getByText("Paused").first().waitFor(); // it asks nothing, and so notices nothing
          for (const page of [open, used]) await inState(page, "connected");
        });
      });
    });
  }, 90_000);
});

/** Somebody who types all the time. */
function typing(page: Page) {
  const timer = setInterval(() => void page.keyboard.press("a"), 300);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** The real one, impatient. */
function startCuller(hub: TestHub) {
  const command = [PYTHON, "-m", "jupyterhub_idle_culler", "--timeout=4", "--cull-every=1"];
  const env = {
    JUPYTERHUB_API_TOKEN: ADMIN_TOKEN,
    JUPYTERHUB_API_URL: new URL("hub/api", hub.url).href,
  };
  const child = Bun.spawn(command, { env, stdio: ["ignore", "ignore", "ignore"] });
  const stop = async () => {
    child.kill();
    await child.exited;
  };
  return { [Symbol.asyncDispose]: stop };
}
