/** JupyterHub's contract against a small stand-in for its API, where the real one cannot be made to misbehave. */
import { afterAll, afterEach, describe, expect, mock, setSystemTime, test } from "bun:test";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { brotliCompressSync } from "node:zlib";
import type { Server } from "bun";
import {
  type AppOptions,
  attach,
  Bridge,
  createApp,
  createLog,
  desktopEnv,
  grantsScope,
  Hub,
  LogTail,
  loadConfig,
  type Session,
  Supervisor,
  UsageError,
  type ViewerAssets,
} from "../server.ts";
import { fakeVnc, HANDSHAKE, spawnServer, startServer, tempDir, until } from "./_helpers.ts";

const API_TOKEN = "0123456789abcdef0123456789abcdef";
const OWN_SCOPE = "access:servers!server=alice/";
const ALICE = "jupyterhub-user-alice";
const HOST = "hub.test";
const PAGE = { accept: "text/html", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document" };
const FETCH = { accept: "*/*", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty" };

const ASSETS: ViewerAssets = {
  hash: "0",
  index: 'home="{{hub_home}}" ticket="{{ticket}}"',
  login: "login",
  message: '{{message}} href="{{link}}" {{link_text}}',
  loginStyle: "'sha256-eA=='",
  files: {
    "dist/viewer.js": { type: "text/javascript", br: brotliCompressSync("1").toString("base64") },
  },
};

afterEach(() => {
  setSystemTime();
});

/** A Hub that knows tokens and codes, tells what it was asked, and fails on request. */
function fakeHub(tls?: Bun.TLSOptions) {
  const users = new Map<string, { kind: string; name: string; scopes: string[] }>();
  const codes = new Map<string, { token: string; challenge: string }>();
  const asked: string[] = [];
  const activity: Record<string, unknown>[] = [];
  const set = { status: 0 };
  const routes: Record<string, (request: Request) => Promise<Response> | Response> = {
    "GET /hub/api/": () => Response.json({}, { headers: { "x-jupyterhub-version": "6.1.1" } }),
    "GET /hub/api/user": ({ headers }) => {
      const user = users.get(headers.get("authorization")?.replace("token ", "") ?? "");
      return user ? Response.json(user) : new Response("{}", { status: 403 });
    },
    "POST /hub/api/oauth2/token": async (request) => {
      const form = new URLSearchParams(await request.text());
      const given = Object.fromEntries(form);
      const code = codes.get(given.code ?? "");
      codes.delete(given.code ?? "");
      const challenge = createHash("sha256")
        .update(given.code_verifier ?? "")
        .digest("base64url");
      expect(request.headers.get("content-type")).toStartWith("application/x-www-form-urlencoded");
      const isGood =
        code?.challenge === challenge &&
        given.client_secret === API_TOKEN &&
        given.client_id === ALICE &&
        given.grant_type === "authorization_code" &&
        given.redirect_uri === "/user/alice/oauth_callback";
      return isGood
        ? Response.json({ access_token: code?.token })
        : Response.json({ error: "invalid_grant" }, { status: 400 });
    },
    "POST /hub/api/users/alice/activity": async (request) => {
      expect(request.headers.get("authorization")).toBe(`token ${API_TOKEN}`);
      activity.push((await request.json()) as Record<string, unknown>);
      return new Response("", { headers: { "content-type": "application/json" } }); // as the Hub has it
    },
  };
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    ...(tls ? { tls } : {}),
    fetch(request) {
      const what = `${request.method} ${new URL(request.url).pathname}`;
      asked.push(what);
      if (set.status > 0) return new Response("no", { status: set.status });
      return routes[what]?.(request) ?? new Response("no", { status: 404 });
    },
  });
  const env: Record<string, string> = {
    JUPYTERHUB_API_TOKEN: API_TOKEN,
    JUPYTERHUB_API_URL: `${server.url.origin}/hub/api`,
    JUPYTERHUB_CLIENT_ID: ALICE,
    JUPYTERHUB_HOST: "",
    JUPYTERHUB_OAUTH_CALLBACK_URL: "/user/alice/oauth_callback",
    JUPYTERHUB_OAUTH_ACCESS_SCOPES: JSON.stringify([OWN_SCOPE]),
    JUPYTERHUB_USER: "alice",
    JUPYTERHUB_SERVER_NAME: "",
    JUPYTERHUB_ACTIVITY_URL: `${server.url.origin}/hub/api/users/alice/activity`,
    JUPYTERHUB_BASE_URL: "/",
    JUPYTERHUB_SERVICE_PREFIX: "/user/alice/",
    JUPYTERHUB_SERVICE_URL: "http://127.0.0.1:0/user/alice/",
  };
  const know = (token: string, name: string, scopes = [OWN_SCOPE]) =>
    users.set(token, { kind: "user", name, scopes });
  return {
    users,
    codes,
    asked,
    activity,
    set,
    env,
    know,
    server,
    [Symbol.asyncDispose]: () => server.stop(true),
  };
}

type Fake = ReturnType<typeof fakeHub>;

/** The app under this Hub, with a desktop that starts nothing, as a browser with cookies comes to it. */
function desk(fake: Fake, more: Record<string, string> = {}, change: Partial<AppOptions> = {}) {
  const lines: string[] = [];
  const log = createLog({ level: "debug" }, [API_TOKEN], (line) => lines.push(line));
  const launch = mock(attach({ kind: "unix", path: "/nonexistent/vnc.sock" }));
  const supervisor = new Supervisor(launch, new LogTail(log), log);
  const server = { upgrade: mock(() => true), timeout: mock(() => {}) };
  const config = loadConfig(["--auth", "hub"], { ...fake.env, ...more });
  if (!config.hub) throw new Error("no Hub");
  const hub = new Hub(config.hub, undefined, log);
  const app = createApp({
    baseUrl: config.baseUrl,
    title: "Desktop",
    policy: { kind: "hub", allowOrigins: [] },
    cookieName: "unused",
    vncPassword: undefined,
    assets: ASSETS,
    supervisor,
    bridge: new Bridge(log),
    log,
    frameAncestors: config.frameAncestors,
    hub,
    ...change,
  });
  const jar = new Map<string, string>();
  const ask = async (to: string, headers: Record<string, string> = PAGE, method = "GET") => {
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join("; ");
    const request = new Request(`http://${HOST}${to}`, {
      method,
      headers: { host: HOST, ...(cookie ? { cookie } : {}), ...headers },
    });
    const response = await app.fetch(request, { server: server as unknown as Server<Session> });
    for (const line of response.headers.getSetCookie()) {
      const [name = "", value = ""] = line.split(";", 1)[0]?.split("=") ?? [];
      if (/max-age=0/i.test(line)) jar.delete(name);
      else jar.set(name, value);
    }
    return response;
  };
  /** Comes to a page, and back from the Hub as this user. */
  const logIn = async (token = "token-of-alice", to = "/user/alice/") => {
    const begun = new URL((await ask(to)).headers.get("location") ?? "", "http://hub");
    const [state, challenge] = ["state", "code_challenge"].map(
      (name) => begun.searchParams.get(name) ?? "",
    );
    fake.codes.set("the-code", { token, challenge: challenge ?? "" });
    return ask(`/user/alice/oauth_callback?code=the-code&state=${state}`);
  };
  const expectUntouched = () => {
    expect(launch).not.toHaveBeenCalled();
    expect(server.upgrade).not.toHaveBeenCalled();
    expect([supervisor.status.state]).toEqual(["idle"]);
  };
  return { ask, logIn, jar, hub, lines, launch, server, expectUntouched };
}

const begins = (response: Response) =>
  response.status === 302 &&
  response.headers.get("location")?.startsWith("/hub/api/oauth2/authorize?");

const ticketOf = async (response: Response) => /ticket="([^"]*)"/.exec(await response.text())?.[1];

describe("the log-in by JupyterHub", () => {
  test("begins with a state, PKCE and a cookie for ten minutes, and starts nothing", async () => {
    await using fake = fakeHub();
    const { ask, expectUntouched } = desk(fake);
    const response = await ask("/user/alice/desktop/?a=1");
    expect(response.status).toBe(302);
    const url = new URL(response.headers.get("location") ?? "", "http://hub");
    expect(url.pathname).toBe("/hub/api/oauth2/authorize");
    expect(Object.fromEntries(url.searchParams)).toEqual({
      client_id: ALICE,
      redirect_uri: "/user/alice/oauth_callback",
      response_type: "code",
      state: expect.stringMatching(/^[\w-]{32}$/),
      code_challenge: expect.stringMatching(/^[\w-]{43}$/),
      code_challenge_method: "S256",
    });
    const [cookie] = response.headers.getSetCookie();
    expect(cookie).toMatch(
      /^jupyterhub-user-alice-oauth-state-[\w-]{8}=[\w-]+; Max-Age=600; Path=\/user\/alice\/; HttpOnly; SameSite=Lax$/,
    );
    expectUntouched();
    expect(fake.asked).toEqual([]);
  });

  test("ends at the page that was asked for, with the token sealed in a cookie of this path", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, logIn, jar, lines } = desk(fake);
    const response = await logIn("token-of-alice", "/user/alice/desktop/?a=1&token=not-passed-on");
    expect([response.status, response.headers.get("location")]).toEqual([
      302,
      "/user/alice/desktop/?a=1",
    ]);
    const cookie = response.headers.getSetCookie().find((line) => line.startsWith(`${ALICE}=`));
    expect(cookie).toMatch(
      /^jupyterhub-user-alice=[\w-]{50,}; Path=\/user\/alice\/; HttpOnly; SameSite=Lax$/,
    );
    expect([...jar.keys()]).toEqual([ALICE]);
    expect(Buffer.from(jar.get(ALICE) ?? "", "base64url").toString("latin1")).not.toContain(
      "token-of-alice",
    );
    expect((await ask("/user/alice/")).status).toBe(200);
    expect(lines.join("")).not.toMatch(/token-of-alice|the-code|0123456789abcdef/);
  });

  test.each(["/user/x@y.z/", "/user/x%40y.z/"])(
    "ends in the Hub's spelling of the path %s",
    async (prefix) => {
      await using fake = fakeHub();
      const { ask, hub, jar } = desk(fake, { JUPYTERHUB_SERVICE_PREFIX: prefix });
      for (const asked of [
        "/user/x@y.z/desktop/",
        "/user/x%40y.z/desktop/",
        "//user/x@y.z/desktop/",
      ]) {
        jar.clear();
        const response = await ask(asked);
        if (asked.startsWith("//")) {
          expect(response.status).toBe(404);
          continue;
        }
        const state = new URL(
          response.headers.get("location") ?? "",
          "http://hub",
        ).searchParams.get("state");
        const [sealed] = jar.values();
        expect(hub.findLogin(String(state), sealed)?.next).toBe(`${prefix}desktop/`);
        expect(response.headers.getSetCookie()[0]).toContain(`Path=${prefix};`);
      }
    },
  );

  test("is refused with another state, another browser, an old cookie or a changed one", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, jar, hub, expectUntouched } = desk(fake);
    const begun = await ask("/user/alice/");
    const state =
      new URL(begun.headers.get("location") ?? "", "http://hub").searchParams.get("state") ?? "";
    const [[name = "", sealed = ""] = []] = [...jar];
    const back = async (given: string, cookie = sealed, at = name) => {
      jar.clear();
      if (cookie) jar.set(at, cookie);
      const response = await ask(`/user/alice/oauth_callback?code=the-code&state=${given}`);
      expect(jar.has(ALICE)).toBe(false);
      return [response.status, (await response.text()).split(":", 1)[0]];
    };
    const stale = [403, "That log-in took too long, or was not begun in this browser"];
    expect(await back(state.slice(0, 31) + (state.endsWith("A") ? "B" : "A"))).toEqual(stale);
    expect(await back(state, "")).toEqual(stale);
    const other = hub.beginLogin("/user/alice/");
    expect(await back(state, other.sealed)).toEqual(stale);
    expect(await back(state, hub.seal("token", sealed))).toEqual(stale);
    const changed = Buffer.from(sealed, "base64url");
    changed[40] = (changed[40] ?? 0) ^ 1;
    expect(await back(state, changed.toString("base64url"))).toEqual(stale);
    setSystemTime(Date.now() + 601_000);
    expect(await back(state)).toEqual(stale);
    setSystemTime();
    expect(fake.asked).toEqual([]);
    for (const query of [
      "error=access_denied&state=x",
      `state=${state}`,
      "code=a",
      "code=a&state=..",
      "",
    ])
      expect((await ask(`/user/alice/oauth_callback?${query}`)).status).toBe(400);
    expect(fake.asked).toEqual([]);
    expectUntouched();
  });

  test("is refused for a code that was used, without a loop", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, jar, logIn } = desk(fake);
    const begun = await ask("/user/alice/");
    const before = new Map(jar);
    const state = new URL(begun.headers.get("location") ?? "", "http://hub").searchParams.get(
      "state",
    );
    await logIn();
    jar.clear();
    for (const [name, value] of before) jar.set(name, value);
    const response = await ask(`/user/alice/oauth_callback?code=the-code&state=${state}`);
    expect([response.status, response.headers.get("location")]).toEqual([403, null]);
    expect(jar.has(ALICE)).toBe(false);
  });

  test("goes into no loop when the Hub does not know the token that it gave", async () => {
    await using fake = fakeHub();
    const { logIn, jar } = desk(fake);
    const response = await logIn("unknown");
    expect([response.status, response.headers.get("location"), jar.has(ALICE)]).toEqual([
      403,
      null,
      false,
    ]);
  });

  test("leaves no more than eight cookies of log-ins that were begun", async () => {
    await using fake = fakeHub();
    const { ask, jar } = desk(fake);
    const counts: number[] = [];
    for (let i = 0; i < 12; i++) {
      await ask("/user/alice/");
      counts.push(jar.size);
    }
    expect(Math.max(...counts)).toBe(8);
    expect(
      (await ask(`/user/alice/?${"x".repeat(8_000)}`)).headers.getSetCookie().join("").length,
    ).toBeLessThan(3_000);
  });

  test("is for a person's browser: a program and a page's request get 403, and the Hub is not asked", async () => {
    await using fake = fakeHub();
    const { ask, expectUntouched } = desk(fake);
    for (const [to, method, headers] of [
      ["", "GET", FETCH],
      ["", "GET", {}],
      ["", "HEAD", PAGE],
      ["", "POST", PAGE],
      ["desktop/api/status", "GET", FETCH],
      ["desktop/static/dist/viewer.js", "GET", { accept: "*/*", "sec-fetch-mode": "no-cors" }],
      ["desktop/api/stop", "POST", FETCH],
      ["desktop-websockify/", "GET", { ...HANDSHAKE, "sec-fetch-mode": "websocket" }],
      ["", "GET", { ...PAGE, ...HANDSHAKE }],
      ["nothing/here", "DELETE", {}],
    ] as const) {
      const response = await ask(`/user/alice/${to}`, headers, method);
      expect([to, method, response.status, response.headers.getSetCookie()]).toEqual([
        to,
        method,
        403,
        [],
      ]);
    }
    expect(fake.asked).toEqual([]);
    expectUntouched();
  });
});

describe("who the Hub lets in", () => {
  test.each<[string[], boolean]>([
    [["access:servers!server=alice/"], true],
    [["access:servers!user=alice"], true],
    [["access:servers"], true],
    [["self", "read:users", "access:servers!user=alice"], true],
    [[], false],
    [["access:servers!server=alice/named"], false],
    [["access:servers!server=bob/"], false],
    [["access:servers!user=bob"], false],
    [["access:servers!group=class"], false],
    [["access:services"], false],
    [["access:server"], false],
    [["access:servers!user=alic"], false],
    [["servers!user=alice"], false],
  ])("the scopes %j grant the server alice/: %j", (scopes, granted) => {
    expect(grantsScope(scopes, "access:servers!server=alice/")).toBe(granted);
  });

  test("the owner is the user of the server; another is in control", async () => {
    await using fake = fakeHub();
    const { hub } = desk(fake);
    fake.know("a", "alice");
    fake.know("b", "bob");
    fake.users.set("s", { kind: "service", name: "alice", scopes: ["access:servers"] });
    const who = async (token: string) => hub.identify(token, "");
    const is = (role: string, name: string) =>
      ({ kind: "visitor", visitor: { role, name } }) as never;
    expect(await who("a")).toEqual(is("owner", "alice"));
    expect(await who("b")).toEqual(is("control", "bob"));
    expect(await who("s")).toEqual(is("control", "alice"));
  });

  test("a user without the scope gets 403 everywhere, a way to log out, and no redirect", async () => {
    await using fake = fakeHub();
    fake.know("token-of-bob", "bob", ["access:servers!user=bob"]);
    const { ask, logIn, expectUntouched } = desk(fake);
    expect((await logIn("token-of-bob")).status).toBe(302);
    const page = await ask("/user/alice/desktop/");
    expect([page.status, page.headers.get("location")]).toEqual([403, null]);
    expect(await page.text()).toContain('href="../logout" Log out');
    expect((await ask("/user/alice/desktop/api/stop", FETCH, "POST")).status).toBe(403);
    expect((await ask("/user/alice/desktop-websockify/", HANDSHAKE)).status).toBe(403);
    const own = { ...HANDSHAKE, authorization: "token token-of-bob" };
    expect((await ask("/user/alice/desktop-websockify/", own)).status).toBe(403);
    expectUntouched();
    fake.know("token-of-bob", "bob"); // a share that is given now holds now
    expect((await ask("/user/alice/")).status).toBe(200);
  });

  test("a token in the header is good for everything, and a wrong one for nothing", async () => {
    await using fake = fakeHub();
    fake.know("t", "alice");
    const { ask, expectUntouched, server } = desk(fake);
    for (const wrong of ["token x", "bearer x", "basic t", "t", "token"])
      expect((await ask("/user/alice/desktop/api/status", { authorization: wrong })).status).toBe(
        403,
      );
    expectUntouched();
    for (const authorization of ["token t", "Bearer t"]) {
      expect((await ask("/user/alice/desktop/api/status", { authorization })).status).toBe(200);
      expect((await ask("/user/alice/desktop/api/stop", { authorization }, "POST")).status).toBe(
        200,
      );
    }
    const response = await ask("/user/alice/desktop-websockify/", {
      ...HANDSHAKE,
      authorization: "token t",
    });
    expect([response.status, server.upgrade.mock.calls.length]).toEqual([502, 0]); // it came as far as the desktop
  });

  test("a token in the address is for WebSockets; for pages only where the Hub allows it", async () => {
    await using fake = fakeHub();
    fake.know("t", "alice");
    const { ask, jar } = desk(fake);
    const refused = await ask("/user/alice/desktop/?a=1&token=t");
    expect(begins(refused)).toBe(true);
    expect((await ask("/user/alice/desktop/api/status?token=t", FETCH)).status).toBe(403);
    expect((await ask("/user/alice/desktop-websockify/?token=t", HANDSHAKE)).status).toBe(502);
    expect((await ask("/user/alice/desktop-websockify/?token=x", HANDSHAKE)).status).toBe(403);
    jar.clear();
    const lenient = desk(fake, { JUPYTERHUB_ALLOW_TOKEN_IN_URL: "1" });
    const response = await lenient.ask("/user/alice/desktop/?a=1&token=t");
    expect([response.status, response.headers.get("location")]).toEqual([303, "./?a=1"]);
    expect((await lenient.ask("/user/alice/desktop/")).status).toBe(200);
  });

  test("a foreign Origin is refused before the Hub is asked, whatever the token", async () => {
    await using fake = fakeHub();
    fake.know("t", "alice");
    const { ask, expectUntouched } = desk(fake);
    const foreign = { origin: "https://evil.test", authorization: "token t" };
    for (const [to, method, headers] of [
      ["desktop-websockify/", "GET", HANDSHAKE],
      ["", "GET", HANDSHAKE],
      ["desktop/api/stop", "POST", {}],
    ] as const)
      expect((await ask(`/user/alice/${to}`, { ...headers, ...foreign }, method)).status).toBe(403);
    expect(fake.asked).toEqual([]);
    expectUntouched();
  });

  test("a cookie is worth nothing to another server, and holds after a restart of this one", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { logIn, jar } = desk(fake);
    await logIn();
    const cookie = { cookie: `${ALICE}=${jar.get(ALICE)}` };
    expect((await desk(fake).ask("/user/alice/", { ...PAGE, ...cookie })).status).toBe(200);
    const asked = fake.asked.length;
    const other = desk(fake, { JUPYTERHUB_API_TOKEN: "another-token-of-another-server" });
    expect(begins(await other.ask("/user/alice/", { ...PAGE, ...cookie }))).toBe(true);
    const plain = { cookie: `${ALICE}=token-of-alice` };
    expect(begins(await desk(fake).ask("/user/alice/", { ...PAGE, ...plain }))).toBe(true);
    expect(fake.asked.length).toBe(asked);
  });

  test("a login's cookie does not pass for a token's", async () => {
    await using fake = fakeHub();
    const { hub } = desk(fake);
    const sealed = hub.seal("attempt", "t");
    expect([hub.open("attempt", sealed), hub.open("token", sealed)]).toEqual(["t", undefined]);
    for (const junk of [undefined, "", "x", sealed.slice(0, -1), sealed.slice(0, 30)])
      expect(hub.open("attempt", junk)).toBeUndefined();
  });

  test("the Hub's word holds for five minutes, and in one of its log-ins", async () => {
    await using fake = fakeHub();
    fake.know("t", "alice");
    const { hub } = desk(fake);
    const count = () => fake.asked.length;
    await Promise.all([hub.identify("t", "s"), hub.identify("t", "s")]);
    await hub.identify("t", "s");
    expect(count()).toBe(1);
    await hub.identify("t", "another-log-in");
    expect(count()).toBe(2);
    setSystemTime(Date.now() + 299_000);
    await hub.identify("t", "s");
    expect(count()).toBe(2);
    fake.users.delete("t"); // logged out
    setSystemTime(Date.now() + 2_000);
    expect(await hub.identify("t", "s")).toEqual({ kind: "unknown" });
    expect(count()).toBe(3);
  });

  test("no more than a thousand answers are remembered", async () => {
    await using fake = fakeHub();
    const { hub } = desk(fake);
    for (let i = 0; i <= 1_000; i++) fake.know(`t${i}`, "alice");
    for (let i = 0; i <= 1_000; i += 50)
      await Promise.all(Array.from({ length: 50 }, (_, j) => hub.identify(`t${i + j}`, "")));
    const before = fake.asked.length;
    await hub.identify("t1000", "");
    expect(fake.asked.length).toBe(before);
    await hub.identify("t0", "");
    expect(fake.asked.length).toBe(before + 1);
  });
});

describe("the ticket of a page", () => {
  /** With what they answer when they reach the desktop, which has been stopped by then. */
  const ACTS = [
    ["desktop/api/status", "GET", FETCH, 200],
    ["desktop/api/status", "GET", { ...FETCH, accept: "text/html" }, 200],
    ["desktop/api/start", "POST", FETCH, 200],
    ["desktop/api/stop", "POST", FETCH, 200],
    ["desktop-websockify/", "GET", { ...HANDSHAKE, origin: `http://${HOST}` }, 503],
    ["", "GET", { ...HANDSHAKE, ...PAGE }, 503],
    ["", "GET", FETCH, 200],
    ["desktop/", "HEAD", PAGE, 200],
  ] as const;

  test("is needed for all that a page does with its cookie", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, logIn, hub, expectUntouched } = desk(fake);
    await logIn();
    const ticket = hub.ticket("alice", "");
    const wrong = [
      "",
      "?t=",
      "?t=x",
      `?t=${hub.ticket("bob", "")}`,
      `?t=${hub.ticket("alice", "another")}`,
    ];
    for (const [to, method, headers] of ACTS)
      for (const query of wrong)
        expect((await ask(`/user/alice/${to}${query}`, headers, method)).status).toBe(403);
    expectUntouched();
    for (const [to, method, headers, status] of ACTS)
      expect((await ask(`/user/alice/${to}?t=${ticket}`, headers, method)).status).toBe(status);
  });

  test("is not needed for the files of the page, and for its address in a person's browser", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, logIn } = desk(fake);
    await logIn();
    const script = { accept: "*/*", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script" };
    expect((await ask("/user/alice/desktop/static/dist/viewer.js", script)).status).toBe(200);
    expect((await ask("/user/alice/desktop/", PAGE)).status).toBe(200);
    const old = { accept: "text/html,*/*" }; // or http without TLS: no Sec-Fetch-*
    expect((await ask("/user/alice/", old)).status).toBe(200);
    expect((await ask("/user/alice/x/desktop/static/dist/viewer.js", script)).status).toBe(403);
    expect((await ask("/user/alice/desktop/static/x", { ...script, ...HANDSHAKE })).status).toBe(
      403,
    );
  });

  test("is given to a page that a person opens, which no cache keeps, and to none in a frame", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, logIn, hub } = desk(fake);
    await logIn();
    const page = await ask("/user/alice/");
    expect(page.headers.get("cache-control")).toBe("no-store");
    expect(page.headers.get("cross-origin-opener-policy")).toBe("noopener-allow-popups");
    expect(page.headers.get("content-security-policy")).toContain("frame-ancestors 'none'");
    expect(page.headers.get("x-frame-options")).toBe("DENY");
    expect(await ticketOf(page)).toBe(hub.ticket("alice", ""));
    const FRAME = { ...PAGE, "sec-fetch-dest": "iframe" };
    expect(await ticketOf(await ask("/user/alice/", FRAME))).toBe("");
    expect(
      await ticketOf(await ask("/user/alice/", { ...FRAME, "sec-fetch-dest": "object" })),
    ).toBe("");
    const framed = desk(fake, { JUPYTER_DESKTOP_FRAME_ANCESTORS: "self" });
    await framed.logIn();
    const inFrame = await framed.ask("/user/alice/", FRAME);
    expect(inFrame.headers.get("content-security-policy")).toContain("frame-ancestors 'self'");
    expect(await ticketOf(inFrame)).toBe(hub.ticket("alice", ""));
  });
});

describe("a Hub that is down", () => {
  test.each<[string, (fake: Fake) => unknown, number]>([
    ["answers 500", (fake) => Object.assign(fake.set, { status: 500 }), 502],
    ["is gone", (fake) => fake.server.stop(true), 503],
    ["answers what is no user", (fake) => fake.users.set("t", {} as never), 502],
  ])("that %s gives a page that says so, and nobody comes in", async (_, break_, status) => {
    await using fake = fakeHub();
    const { ask, expectUntouched, jar, hub } = desk(fake);
    await break_(fake);
    jar.set(ALICE, hub.seal("token", "t"));
    const page = await ask("/user/alice/");
    expect([page.status, page.headers.get("refresh"), page.headers.get("retry-after")]).toEqual([
      status,
      "5",
      "5",
    ]);
    expect(await page.text()).toContain("JupyterHub does not answer just now");
    const act = await ask("/user/alice/desktop/api/status", FETCH);
    expect([act.status, act.headers.get("refresh"), act.headers.get("retry-after")]).toEqual([
      status,
      null,
      "5",
    ]);
    expect((await ask("/user/alice/desktop-websockify/", HANDSHAKE)).status).toBe(status);
    expectUntouched();
    expect(jar.has(ALICE)).toBe(true); // to come in with when the Hub is back
  });

  test("keeps a log-in's cookie, so that a second try can end it", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, jar } = desk(fake);
    const begun = new URL((await ask("/user/alice/")).headers.get("location") ?? "", "http://hub");
    const challenge = begun.searchParams.get("code_challenge") ?? "";
    const back = `/user/alice/oauth_callback?code=c&state=${begun.searchParams.get("state")}`;
    fake.set.status = 503;
    expect((await ask(back)).status).toBe(502);
    fake.set.status = 0;
    fake.codes.set("c", { token: "token-of-alice", challenge });
    expect((await ask(back)).status).toBe(302);
    expect(jar.has(ALICE)).toBe(true);
  });

  test("still lets in whom it named within five minutes", async () => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, logIn } = desk(fake);
    await logIn();
    await fake.server.stop(true);
    setSystemTime(Date.now() + 250_000);
    expect((await ask("/user/alice/")).status).toBe(200);
    setSystemTime(Date.now() + 60_000);
    expect((await ask("/user/alice/")).status).toBe(503);
  });

  test("a token that it no longer knows begins a new log-in, and is forgotten", async () => {
    await using fake = fakeHub();
    const { ask, jar, hub } = desk(fake);
    jar.set(ALICE, hub.seal("token", "revoked"));
    expect((await ask("/user/alice/desktop/api/status", FETCH)).status).toBe(403);
    expect(begins(await ask("/user/alice/"))).toBe(true);
    expect(jar.has(ALICE)).toBe(false);
  });
});

describe("what is open to all", () => {
  test("tells the Hub that the server is up, with its version, also before it could ask for it", async () => {
    await using fake = fakeHub();
    const { ask, lines } = desk(fake);
    fake.set.status = 500;
    const first = await ask("/user/alice/api", {});
    expect([first.status, first.headers.get("x-jupyterhub-version")]).toEqual([200, null]);
    fake.set.status = 0;
    const response = await ask("/user/alice/api", {});
    expect([response.status, response.headers.get("x-jupyterhub-version")]).toEqual([200, "6.1.1"]);
    expect(await response.json()).toEqual({ version: expect.any(String) });
    await ask("/user/alice/api", {});
    expect(fake.asked.length).toBe(2);
    expect(lines.filter((line) => line.includes("refused"))).toEqual([]);
  });

  test.each(["GET", "POST"])("logs out by %s: here, and then at the Hub", async (method) => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask, logIn, jar } = desk(fake, {
      JUPYTERHUB_BASE_URL: "/jhub/",
      JUPYTERHUB_HOST: "https://hub.example.org",
    });
    jar.set(ALICE, "x");
    const response = await ask("/user/alice/logout", {}, method);
    expect([response.status, response.headers.get("location")]).toEqual([
      303,
      "https://hub.example.org/jhub/hub/logout",
    ]);
    expect(jar.has(ALICE)).toBe(false);
    await logIn();
    expect(await (await ask("/user/alice/")).text()).toContain(
      'home="https://hub.example.org/jhub/hub/home"',
    );
  });
});

describe("the cookies", () => {
  const cookieOf = async (env: Record<string, string>, headers: Record<string, string> = {}) => {
    await using fake = fakeHub();
    fake.know("token-of-alice", "alice");
    const { ask } = desk(fake, { ...env, JUPYTERHUB_ALLOW_TOKEN_IN_URL: "1" });
    const response = await ask("/user/alice/?token=token-of-alice", { ...PAGE, ...headers });
    return response.headers.getSetCookie()[0]?.replace(/=[^;]*/, "");
  };
  const base = `${ALICE}; Path=/user/alice/; HttpOnly`;

  test.each<[string, Record<string, string>, Record<string, string>, string]>([
    ["plain http", {}, {}, `${base}; SameSite=Lax`],
    ["a proxy with TLS", {}, { "x-forwarded-proto": "https" }, `${base}; Secure; SameSite=Lax`],
    ["two proxies", {}, { "x-forwarded-proto": "https,http" }, `${base}; Secure; SameSite=Lax`],
    ["TLS behind plain http", {}, { "x-forwarded-proto": "http,https" }, `${base}; SameSite=Lax`],
    [
      "a public address",
      { JUPYTERHUB_PUBLIC_URL: "https://x.test/user/alice/" },
      {},
      `${base}; Secure; SameSite=Lax`,
    ],
    [
      "options",
      {
        JUPYTERHUB_COOKIE_OPTIONS:
          '{"SameSite": "None", "Secure": true, "expires_days": 1, "httponly": false}',
      },
      {},
      `${ALICE}; Max-Age=86400; Path=/user/alice/; HttpOnly; Secure; SameSite=None`,
    ],
    [
      "a session's options",
      { JUPYTERHUB_COOKIE_OPTIONS: '{"expires_days": null}' },
      {},
      `${base}; SameSite=Lax`,
    ],
    [
      "the prefix __Host-",
      {
        JUPYTERHUB_COOKIE_HOST_PREFIX_ENABLED: "1",
        JUPYTERHUB_COOKIE_OPTIONS: '{"domain": "x.test", "path": "/y/", "secure": false}',
      },
      {},
      `__Host-${ALICE}; Path=/; HttpOnly; Secure; SameSite=Lax`,
    ],
  ])("are right with %s", async (...[, env, headers, expected]) => {
    expect(await cookieOf(env, headers)).toBe(expected);
  });
});

describe("activity", () => {
  /** Reports for as long as the test needs, every 20 ms. */
  async function report(
    lastUseMs: () => number,
    more: Record<string, string>,
    use: (fake: Fake) => Promise<void>,
  ) {
    await using fake = fakeHub();
    const { hub } = desk(fake, { JUPYTERHUB_ACTIVITY_INTERVAL: "0.02", ...more });
    const over = new AbortController();
    const reporting = hub.reportActivity(lastUseMs, over.signal);
    await use(fake);
    over.abort();
    await reporting; // it ends when it is told to
  }

  test("is told at once, and then only when there was some: with its own time", async () => {
    let use = Date.parse("2026-11-24T09:00:00.123Z");
    let looks = 0;
    const look = () => {
      looks += 1;
      return use;
    };
    await report(look, {}, async ({ activity }) => {
      const at = (last_activity: string) => ({ servers: { "": { last_activity } }, last_activity });
      await until("five looks", () => looks >= 5);
      expect(activity).toEqual([at("2026-11-24T09:00:00.123Z")]);
      use += 60_000;
      await until("the second report", () => activity.length > 1);
      const then = looks;
      await until("more looks", () => looks >= then + 4);
      expect(activity).toEqual([at("2026-11-24T09:00:00.123Z"), at("2026-11-24T09:01:00.123Z")]);
    });
  });

  test("is told of a named server by its name", async () => {
    await report(
      () => 0 + Date.UTC(2026, 0),
      { JUPYTERHUB_SERVER_NAME: "big" },
      async ({ activity }) => {
        await until("the report", () => activity.length > 0);
        expect(activity[0]?.servers).toEqual({
          big: { last_activity: "2026-01-01T00:00:00.000Z" },
        });
      },
    );
  });

  test("is told again a second after the Hub gave no answer", async () => {
    await report(
      () => Date.UTC(2026, 0),
      {},
      async (fake) => {
        const began = Date.now();
        fake.set.status = 500;
        await until("the first try", () => fake.asked.length > 0);
        fake.set.status = 0;
        await until("the report", () => fake.activity.length > 0);
        expect(Date.now() - began).toBeWithin(900, 5_000);
        expect(fake.asked.length).toBe(2);
      },
    );
  });
});

/** What a Hub that is not there has set. */
const ENV_OF_A_SERVER = ((): Record<string, string> => {
  const fake = fakeHub();
  void fake.server.stop(true);
  return { ...fake.env, JUPYTERHUB_SERVICE_URL: "http://127.0.0.1:54321/user/alice/" };
})();

// --- as a process ---

const certs = tempDir();
afterAll(() => certs[Symbol.dispose]());
/** A CA, and certificates of it for this machine, as JupyterHub's internal_ssl makes them. */
function makeCerts() {
  const run = (...args: string[]) => {
    const { success, stderr } = Bun.spawnSync(["openssl", ...args], { cwd: certs.path });
    if (!success) throw new Error(stderr.toString());
  };
  const newKey = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(" ");
  run("req", "-x509", ...newKey, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=tests");
  for (const name of ["own", "other"])
    run(
      "req",
      "-x509",
      ...newKey,
      "-keyout",
      `${name}.key`,
      "-out",
      `${name}.crt`,
      "-subj",
      `/CN=${name}`,
      "-addext",
      "subjectAltName=DNS:localhost,IP:127.0.0.1",
      "-CA",
      "ca.crt",
      "-CAkey",
      "ca.key",
    );
}
const cert = (name: string) => path.join(certs.path, name);
const pem = (name: string) => fs.readFileSync(cert(name), "utf8");

describe("the server as JupyterHub starts it", () => {
  test("listens where the Hub says, lets in by its word, and keeps its token out of the log", async () => {
    await using fake = fakeHub();
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    fake.know("t", "alice");
    await using server = await startServer(
      ["--vnc", vnc.name, "--auth", "hub", "--log-level", "debug"],
      fake.env,
    );
    expect(server.url.pathname).toBe("/user/alice/");
    expect((await fetch(new URL("api", server.url))).status).toBe(200);
    expect((await fetch(new URL("desktop/api/status", server.url))).status).toBe(403);
    expect(
      (await server.ask("desktop/api/status", { headers: { authorization: "token t" } })).status,
    ).toBe(200);
    await until("the report at the start", () => fake.activity.length > 0);
    expect(server.said.stdout + server.said.stderr).not.toContain(API_TOKEN);
    expect(fs.readFileSync(`/proc/${server.child.pid}/cmdline`, "latin1")).not.toContain(API_TOKEN);
  });

  test("ends when --idle-stop has stopped the desktop, and with 0", async () => {
    await using fake = fakeHub();
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using server = spawnServer(
      ["--vnc", vnc.name, "--auth", "hub", "--idle-stop", "1s"],
      fake.env,
    );
    expect(await server.code).toBe(0);
  });

  test("reports nothing with --activity off", async () => {
    await using fake = fakeHub();
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using server = spawnServer(
      ["--vnc", vnc.name, "--auth", "hub", "--idle-stop", "1s", "--activity", "off"],
      fake.env,
    );
    expect(await server.code).toBe(0);
    expect(fake.asked).toEqual([]);
  });

  test("with --activity connected tells of a viewer that does nothing", async () => {
    await using fake = fakeHub();
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    fake.know("t", "alice");
    const env = { ...fake.env, JUPYTERHUB_ACTIVITY_INTERVAL: "0.1" };
    await using server = await startServer(
      ["--vnc", vnc.name, "--auth", "hub", "--activity", "connected"],
      env,
    );
    const ws = new WebSocket(
      new URL("desktop-websockify/?token=t", server.url).href.replace("http", "ws"),
    );
    const before = fake.activity.length;
    await until("reports of a viewer that is there", () => fake.activity.length > before + 3);
    ws.close();
  });

  test("gives the desktop's programs the Hub's variables only when it is asked to", () => {
    const env = { ...ENV_OF_A_SERVER, JPY_API_TOKEN: API_TOKEN, LANG: "C.UTF-8" };
    const hubs = (passed?: boolean) =>
      Object.entries(desktopEnv(env, certs.path, passed)).flatMap(([name, value]) =>
        name.startsWith("JUPYTERHUB_") || value.includes(API_TOKEN) ? [name] : [],
      );
    expect(hubs()).toEqual([]);
    expect(hubs(true).toSorted()).toEqual(Object.keys(ENV_OF_A_SERVER).toSorted());
  });

  test("is a usage error by hand, which names all that is missing", async () => {
    await using server = spawnServer(["--auth", "hub", "--port", "0"], {
      JUPYTERHUB_USER: "alice",
    });
    expect(await server.code).toBe(2);
    expect(server.said.stderr).toContain(
      "JUPYTERHUB_API_TOKEN, JUPYTERHUB_API_URL, JUPYTERHUB_CLIENT_ID",
    );
    expect(server.said.stderr).not.toContain("JUPYTERHUB_USER");
  });

  test("speaks TLS both ways with internal_ssl, and with nobody without a certificate of its CA", async () => {
    makeCerts();
    const own = { cert: pem("own.crt"), key: pem("own.key"), ca: pem("ca.crt") };
    await using fake = fakeHub({ ...own, requestCert: true, rejectUnauthorized: true });
    fake.know("t", "alice");
    const env = {
      ...fake.env,
      JUPYTERHUB_SERVICE_URL: "https://127.0.0.1:0/user/alice/",
      JUPYTERHUB_SSL_KEYFILE: cert("own.key"),
      JUPYTERHUB_SSL_CERTFILE: cert("own.crt"),
      JUPYTERHUB_SSL_CLIENT_CA: cert("ca.crt"),
    };
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using server = await startServer(["--vnc", vnc.name, "--auth", "hub"], env);
    expect(server.url.protocol).toBe("https:");
    const status = (tls: Bun.TLSOptions) =>
      server.ask("desktop/api/status", { headers: { authorization: "token t" }, tls }).then(
        (it) => it.status,
        () => "refused",
      );
    expect(await status({ ca: own.ca })).toBe("refused");
    expect(await status(own)).toBe(200);
    await until("the report at the start", () => fake.activity.length > 0);
  });
});

describe("--tls-cert and --tls-key", () => {
  test("serve https, and say so", async () => {
    makeCerts();
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    await using server = await startServer([
      "--vnc",
      vnc.name,
      "--tls-cert",
      cert("own.crt"),
      "--tls-key",
      cert("own.key"),
    ]);
    expect(server.url.protocol).toBe("https:");
    const page = await fetch(server.url, { tls: { ca: pem("ca.crt") }, redirect: "manual" });
    expect([page.status, page.headers.getSetCookie()[0]]).toEqual([
      303,
      expect.stringContaining("; Secure;"),
    ]);
  });

  test("are wrong alone, unreadable, no certificate, or of two pairs", () => {
    makeCerts();
    const problems = (...argv: string[]) => {
      try {
        loadConfig(argv, {});
        return [];
      } catch (error) {
        return error instanceof UsageError ? error.problems : [String(error)];
      }
    };
    const [C, K] = ["--tls-cert (JUPYTER_DESKTOP_TLS_CERT)", "--tls-key (JUPYTER_DESKTOP_TLS_KEY)"];
    const pair = (c: string, k: string) => ["--tls-cert", cert(c), "--tls-key", cert(k)];
    expect(problems(...pair("own.crt", "own.key"))).toEqual([]);
    expect(problems("--tls-cert", cert("own.crt"))).toEqual([
      `${K}: is missing, and ${C} needs it`,
    ]);
    expect(problems("--tls-key", cert("own.key"))).toEqual([`${C}: is missing, and ${K} needs it`]);
    expect(problems(...pair("own.crt", "other.key"))).toEqual([
      `${K}: ${cert("other.key")} is not the key of the certificate in ${cert("own.crt")}`,
    ]);
    expect(problems(...pair("none.crt", "ca.key"))).toEqual([
      expect.stringMatching(/cert.*cannot use .*none\.crt: .*ENOENT/),
    ]);
    expect(problems(...pair("own.key", "own.crt"))).toEqual([
      expect.stringContaining(`${C}: cannot use`),
      expect.stringContaining(`${K}: cannot use`),
    ]);
    expect(problems(...pair("own.crt", "own.key"), "--unix-socket", "/tmp/x")).toHaveLength(2);
  });
});

describe("loadConfig under a Hub", () => {
  const ENV = ENV_OF_A_SERVER;
  const HUB = ["--auth", "hub"];

  test("is not what inherited variables alone make", () => {
    const config = loadConfig([], ENV);
    expect([config.hub, config.auth, config.port, config.baseUrl]).toEqual([
      undefined,
      "auto",
      6080,
      "/",
    ]);
    expect(loadConfig(["doctor", ...HUB], {}).hub).toBeUndefined();
  });

  test.each([
    ["http://127.0.0.1:54321/user/alice/", "127.0.0.1", 54321],
    ["http://:8888/user/alice/", "0.0.0.0", 8888],
    ["http://0.0.0.0/user/alice/", "0.0.0.0", 80],
    ["https://node-1.test/", "node-1.test", 443],
    ["http://[::1]:8888/user/alice/", "::1", 8888],
    ["http://h:8888", "h", 8888],
  ])("listens at %s", (url, host, port) => {
    const config = loadConfig(HUB, { ...ENV, JUPYTERHUB_SERVICE_URL: url });
    expect([config.host, config.port, config.baseUrl]).toEqual([host, port, "/user/alice/"]);
  });

  test("lets flags win over the Hub, and the Hub over our variables", () => {
    const ours = {
      ...ENV,
      JUPYTER_DESKTOP_AUTH: "hub",
      JUPYTER_DESKTOP_PORT: "6080",
      JUPYTER_DESKTOP_HOST: "10.0.0.1",
      JUPYTER_DESKTOP_BASE_URL: "/x/",
      JUPYTER_DESKTOP_UNIX_SOCKET: "/tmp/x",
    };
    const config = loadConfig([], ours);
    expect([config.host, config.port, config.baseUrl, config.unixSocket]).toEqual([
      "127.0.0.1",
      54321,
      "/user/alice/",
      undefined,
    ]);
    const byFlag = loadConfig([...HUB, "--host", "::", "--port", "1"], ours);
    expect([byFlag.host, byFlag.port]).toEqual(["::", 1]);
  });

  test("pauses a viewer after half an hour, and lets nobody frame the page, unless it is told otherwise", () => {
    const config = loadConfig(HUB, ENV);
    expect([config.idleDisconnect, config.frameAncestors]).toEqual([1_800_000, "none"]);
    const other = loadConfig(
      [...HUB, "--idle-disconnect", "off", "--frame-ancestors", "self"],
      ENV,
    );
    expect([other.idleDisconnect, other.frameAncestors]).toEqual([0, "self"]);
  });

  test("takes the names that older Hubs use", () => {
    const {
      JUPYTERHUB_OAUTH_ACCESS_SCOPES: scopes = "",
      JUPYTERHUB_OAUTH_CALLBACK_URL: _,
      ...rest
    } = ENV;
    const { hub } = loadConfig(HUB, { ...rest, JUPYTERHUB_OAUTH_SCOPES: scopes });
    expect([hub?.oauthAccessScopes, hub?.oauthCallbackUrl]).toEqual([
      [OWN_SCOPE],
      "/user/alice/oauth_callback",
    ]);
  });

  test.each([
    ["JUPYTERHUB_API_URL", "hub/api", "must be an http or https address"],
    ["JUPYTERHUB_CLIENT_ID", "a;b", "must be good for a cookie's name"],
    ["JUPYTERHUB_SERVICE_PREFIX", "user/alice", "must begin and end with a slash"],
    ["JUPYTERHUB_SERVICE_URL", "unix:/tmp/x", "must be an address to listen on"],
    ["JUPYTERHUB_SERVICE_URL", "http://h:x/", "must be an address to listen on"],
    ["JUPYTERHUB_OAUTH_ACCESS_SCOPES", "[", "must be JSON"],
    ["JUPYTERHUB_OAUTH_ACCESS_SCOPES", "[]", "must name a scope"],
    ["JUPYTERHUB_ACTIVITY_INTERVAL", "0", "must be a number of seconds"],
    ["JUPYTERHUB_COOKIE_OPTIONS", "no", "must be JSON"],
  ])("refuses %s=%s", (name, value, problem) => {
    expect(() => loadConfig(HUB, { ...ENV, [name]: value })).toThrow(`${name}: ${problem}`);
  });

  test.each([
    ["--unix-socket", "/tmp/x"],
    ["--base-url", "/x/"],
    ["--token-file", "/dev/null"],
  ])("refuses the flag %s", (flag, value) => {
    expect(() => loadConfig([...HUB, flag, value], ENV)).toThrow(
      "cannot be combined with --auth (JUPYTER_DESKTOP_AUTH) hub",
    );
  });
});
