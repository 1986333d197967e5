import { afterEach, beforeEach, describe, expect, type Mock, mock, spyOn, test } from "bun:test";
import { createHash, randomBytes } from "node:crypto";
import { brotliCompressSync, brotliDecompressSync, gunzipSync } from "node:zlib";
import type { Server } from "bun";
import {
  type AppOptions,
  type AuthPolicy,
  attach,
  Bridge,
  createApp,
  createLog,
  createMetrics,
  type Launch,
  LogTail,
  type Session,
  Supervisor,
  VERSION,
  type ViewerAssets,
  VncError,
} from "../server.ts";
import { BEARER, fakeVnc, TOKEN } from "./_helpers.ts";

const HOST = "desk.test:6080";
const COOKIE = "jupyter-desktop-6080";
const WITH_COOKIE = { cookie: `${COOKIE}=${TOKEN}` };
const UPGRADE = {
  connection: "Upgrade",
  upgrade: "websocket",
  "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
  "sec-websocket-version": "13",
};
const FOREIGN = { origin: "https://evil.test" };
const NOWHERE = attach({ kind: "unix", path: "/nonexistent/vnc.sock" });
const HASH = "0123456789ab";
const LOGIN_STYLE = "'sha256-bWFkZSB1cCBmb3IgdGhpcyB0ZXN0'";

const FILES = {
  "dist/viewer.js": ["text/javascript; charset=utf-8", Buffer.from("let ü = 1;\n".repeat(200))],
  "dist/index.css": ["text/css; charset=utf-8", Buffer.from("body { margin: 0 }\n")],
  "clipboard.svg": ["image/svg+xml", Buffer.from("<svg/>")],
  "jupyter-logo.svg": ["image/svg+xml", randomBytes(1_000)],
} as const;

const ASSETS: ViewerAssets = {
  hash: HASH,
  index: 'index base="{{base_url}}" title="{{title}}" version="{{version}}" hash="{{hash}}"',
  login: 'login base="{{base_url}}" title="{{title}}" message="{{message}}"',
  message: 'message "{{message}}" link="{{link}}" {{link_text}} title="{{title}}"',
  loginStyle: LOGIN_STYLE,
  files: Object.fromEntries(
    Object.entries(FILES).map(([name, [type, bytes]]) => [
      name,
      { type, br: brotliCompressSync(bytes).toString("base64") },
    ]),
  ),
};

type Init = Omit<RequestInit, "headers"> & { headers?: Record<string, string> };

/** The app with a desktop that starts nothing, and with a Bun server that upgrades nothing. */
function desk(change: Partial<AppOptions> = {}, launcher: Launch = NOWHERE) {
  const lines: string[] = [];
  const log = createLog({ level: "debug" }, [], (line) => lines.push(line));
  const launch = mock(launcher);
  const supervisor = new Supervisor(launch, new LogTail(log), log);
  const bridge = change.bridge ?? new Bridge(log);
  const server = {
    upgrade: mock((_: Request, __: { data: Session; headers?: unknown }) => true),
    timeout: mock((_: Request, __: number) => {}),
  };
  const policy: AuthPolicy = { kind: "token", token: TOKEN, allowOrigins: ["https://lab.test"] };
  const app = createApp({
    baseUrl: "/",
    title: "Desktop",
    policy,
    cookieName: COOKIE,
    vncPassword: undefined,
    assets: ASSETS,
    supervisor,
    bridge,
    log,
    ...change,
  });
  const ask = async (to: string, { headers, ...init }: Init = {}) => {
    const request = new Request(`http://${HOST}${to}`, {
      ...init,
      headers: { host: HOST, ...headers },
    });
    return app.fetch(request, { server: server as unknown as Server<Session> });
  };
  /** That nothing of the desktop was reached. */
  const expectUntouched = () => {
    expect(launch).not.toHaveBeenCalled();
    expect(server.upgrade).not.toHaveBeenCalled();
    expect(server.timeout).not.toHaveBeenCalled();
    expect([supervisor.status.state, bridge.size]).toEqual(["idle", 0]);
  };
  return { app, ask, bridge, expectUntouched, launch, lines, server, supervisor };
}

/** A wrong token is answered late; here nobody waits for it. */
let sleep: Mock<typeof Bun.sleep>;
beforeEach(() => {
  sleep = spyOn(Bun, "sleep").mockImplementation(() => Promise.resolve());
});
afterEach(() => sleep.mockRestore());

/** Every route but the open ones, and its answer to those who may come in. */
const ROUTES: readonly (readonly [method: "GET" | "POST", path: string, status: number])[] = [
  ["GET", "/", 200],
  ["GET", "/desktop", 302],
  ["GET", "/desktop/", 200],
  ["GET", "/desktop-websockify", 426],
  ["GET", "/desktop-websockify/", 426],
  ["GET", "/desktop/api/status", 200],
  ["POST", "/desktop/api/start", 200],
  ["POST", "/desktop/api/stop", 200],
  ["POST", "/desktop/api/restart", 200],
  ["GET", "/desktop/api/keyboard", 409],
  ["POST", "/desktop/api/keyboard", 400],
  ["POST", "/desktop/api/scale", 400],
  ["GET", "/desktop/static/dist/viewer.js", 200],
  ["GET", "/desktop/static/dist/index.css", 200],
  ["GET", "/desktop/static/clipboard.svg", 200],
  ["GET", "/desktop/static/jupyter-logo.svg", 200],
  ["GET", "/desktop/static/manifest.webmanifest", 200],
  ["POST", "/logout", 303],
];

const GUARDED: readonly (readonly [method: string, path: string])[] = [
  ...ROUTES.map(([method, path]) => [method, path] as const),
  ["POST", "/"],
  ["DELETE", "/desktop/api/status"],
  ["GET", "/nothing/here"],
];

const STRANGERS: [string, Record<string, string>, number, string][] = [
  ["no token", {}, 401, "needs a token"],
  ["an empty cookie", { cookie: `${COOKIE}=` }, 401, "needs a token"],
  ["the cookie of another port", { cookie: `jupyter-desktop-6081=${TOKEN}` }, 401, "needs a token"],
  ["another scheme", { authorization: `Basic ${btoa(`:${TOKEN}`)}` }, 401, "needs a token"],
  ["a bad bearer", { authorization: "Bearer wrong-token" }, 403, "token is wrong"],
  ["a bad cookie", { cookie: `${COOKIE}=wrong-token` }, 403, "token is wrong"],
];

describe("createApp", () => {
  test("has no route that the table of this test does not know", () => {
    const open = ["GET /healthz", "GET /login", "POST /login"];
    const routes = desk().app.routes.filter(({ method }) => method !== "ALL");
    // A middleware for one route stands in the list, too.
    const named = new Set(routes.map(({ method, path }) => `${method} ${path}`));
    expect([...named].toSorted()).toEqual(
      [...ROUTES.map(([method, path]) => `${method} ${path}`), ...open].toSorted(),
    );
  });

  describe.each(GUARDED)("guards %s %s:", (method, path) => {
    test.each(STRANGERS)("%s is refused, and reaches nothing", async (...row) => {
      const [, headers, status, sentence] = row;
      const { ask, expectUntouched } = desk();
      for (const more of [{}, { accept: "text/event-stream" }, UPGRADE]) {
        const answer = await ask(path, { method, headers: { ...headers, ...more } });
        expect(answer.status).toBe(status);
        expect(answer.headers.has("set-cookie")).toBe(false);
        // One plain sentence.
        expect(await answer.text()).toMatch(new RegExp(`^[^\n.<>{}]*${sentence}[^\n.<>{}]*\\.\n$`));
      }
      expectUntouched();
    });

    test("a person without a token gets the log-in page, and reaches nothing", async () => {
      const { ask, expectUntouched } = desk();
      const answer = await ask(path, { method, headers: { accept: "text/html,*/*" } });
      expect(answer.status).toBe(401);
      expect(answer.headers.get("content-type")).toStartWith("text/html");
      expect(answer.headers.get("cache-control")).toBe("no-store");
      expect(await answer.text()).toStartWith("login base=");
      expectUntouched();
    });

    test("a bad token in the query is refused, and reaches nothing", async () => {
      const { ask, expectUntouched } = desk();
      expect((await ask(`${path}?token=wrong-token`, { method })).status).toBe(403);
      expectUntouched();
    });

    test("an upgrade from a foreign Origin is refused even with the token", async () => {
      const { ask, expectUntouched } = desk();
      for (const origin of ["https://evil.test", "null", "http://desk.test:8888"]) {
        const headers = { ...WITH_COOKIE, ...UPGRADE, origin };
        const answer = await ask(path, { method, headers });
        expect([answer.status, await answer.text()]).toEqual([
          403,
          expect.stringMatching(/^A page of another site may not use this desktop.*\.\n$/),
        ]);
      }
      expectUntouched();
    });
  });

  test.each(ROUTES)("answers %s %s with %d to the token, however it comes", async (...row) => {
    const [method, path, status] = row;
    for (const headers of [
      BEARER,
      WITH_COOKIE,
      { authorization: `token ${TOKEN}` },
      { cookie: `a=b; ${COOKIE}=${TOKEN}; ${COOKIE}2=c` },
    ])
      expect((await desk().ask(path, { method, headers })).status).toBe(status);
    expect(sleep).not.toHaveBeenCalled();
  });

  test.each(ROUTES)("answers %s %s with %d to everyone when it is open", async (...row) => {
    const [method, path, status] = row;
    const { ask } = desk({ policy: { kind: "open", allowOrigins: [] } });
    expect((await ask(path, { method })).status).toBe(status);
  });

  test.each(["start", "stop", "restart"])("takes POST %s from the own page only", async (what) => {
    const { ask, expectUntouched } = desk();
    const post = (headers: Record<string, string>) =>
      ask(`/desktop/api/${what}`, { method: "POST", headers: { ...BEARER, ...headers } });
    expect((await post(FOREIGN)).status).toBe(403);
    expect((await post({ origin: "null" })).status).toBe(403);
    expect((await ask(`/desktop/api/${what}`, { headers: BEARER })).status).toBe(405);
    expectUntouched();
    for (const origin of [`http://${HOST}`, "https://lab.test"])
      expect((await post({ origin })).status).toBe(200);
    expect((await post({})).status).toBe(200);
  });

  describe.each(GUARDED)(
    "refuses a name of another's that leads here at %s %s:",
    (method, path) => {
      test.each([{}, { accept: "text/html" }, UPGRADE, BEARER])("with %j", async (headers) => {
        const hosts = ["lab.test", "127.0.0.2"];
        const { ask, expectUntouched, lines } = desk({
          policy: { kind: "open", allowOrigins: [], hosts },
        });
        for (const host of [HOST, "evil.test", "lab.test.evil.test"]) {
          const sent = { ...headers, host, origin: `http://${host}` };
          const answer = await ask(`${path}?token=${TOKEN}`, { method, headers: sent });
          expect([answer.status, answer.headers.has("set-cookie")]).toEqual([403, false]);
          expect(await answer.text()).toMatch(
            /^This desktop is not served under this name: .*\.\n$/,
          );
        }
        expect(lines).toHaveLength(3);
        for (const line of lines) expect(line).toContain("warn refused reason=host ");
        expectUntouched();
      });
    },
  );

  test.each(ROUTES)("answers %s %s with %d under a name that is known", async (...row) => {
    const [method, path, status] = row;
    const { ask } = desk({ policy: { kind: "open", allowOrigins: [], hosts: ["lab.test"] } });
    for (const host of ["lab.test:6080", "localhost:6080", "127.0.0.1", "[::1]:6080"])
      expect((await ask(path, { method, headers: { host } })).status).toBe(status);
  });

  test("guards against foreign Origins when it is open to everyone, too", async () => {
    const { ask, expectUntouched } = desk({ policy: { kind: "open", allowOrigins: [] } });
    expect((await ask("/desktop/api/stop", { method: "POST", headers: FOREIGN })).status).toBe(403);
    expect((await ask("/", { headers: { ...UPGRADE, ...FOREIGN } })).status).toBe(403);
    expect((await ask("/login", { method: "POST", headers: FOREIGN })).status).toBe(403);
    expectUntouched();
  });

  test("writes why it refused into the log, and not with what", async () => {
    const { ask, lines } = desk();
    await ask("/desktop/?token=wrong-token", { headers: { authorization: "Bearer wrong-too" } });
    await ask("/desktop/", { headers: { ...UPGRADE, ...FOREIGN } });
    expect(lines).toEqual([
      expect.stringContaining("warn refused reason=wrong-token method=GET path=/desktop/\n"),
      expect.stringContaining("warn refused reason=origin method=GET path=/desktop/\n"),
    ]);
  });
});

describe("the start of the desktop", () => {
  const page = { accept: "text/html" };

  test("waits for a visitor who may come in and wants the page", async () => {
    const { ask, expectUntouched, launch } = desk();
    await ask("/", { headers: page });
    await ask("/", { headers: BEARER });
    await ask("/desktop/api/status", { headers: { ...BEARER, ...page } });
    await ask("/desktop/static/dist/viewer.js", { headers: { ...BEARER, ...page } });
    await ask("/desktop-websockify/", { headers: { ...BEARER, ...page } });
    await ask(`/?token=${TOKEN}`, { headers: page });
    expectUntouched();
    await ask("/", { headers: { ...BEARER, ...page } });
    expect(launch).toHaveBeenCalledTimes(1);
  });

  test("may take longer than Bun lets a silent request live, and only for who may come in", async () => {
    const calls = [
      ["/desktop/api/start", { method: "POST" }],
      ["/desktop/api/restart", { method: "POST" }],
      ["/desktop-websockify/", { headers: UPGRADE }],
    ] as const;
    for (const [to, init] of calls) {
      const { ask, expectUntouched, server } = desk();
      await ask(to, init);
      expectUntouched();
      await ask(to, { ...init, headers: { ...UPGRADE, ...BEARER } });
      const [[, seconds = 0] = []] = server.timeout.mock.calls;
      expect(seconds).toBeGreaterThan(45); // of a stop, and of a --vnc-command
    }
  });

  test("is done once for all visitors", async () => {
    const { ask, launch } = desk();
    await ask("/", { headers: { ...BEARER, ...page } });
    await ask("/desktop/", { headers: { ...BEARER, ...page } });
    await ask("/desktop/api/start", { method: "POST", headers: BEARER });
    expect(launch).toHaveBeenCalledTimes(1);
  });
});

/** Headers by name, the Content-Security-Policy by directive. */
function headersOf(answer: Response) {
  const csp = answer.headers.get("content-security-policy") ?? "";
  return {
    csp: Object.fromEntries(csp.split(/\s*;\s*/).map((part) => part.split(/ (.*)/s).slice(0, 2))),
    frame: answer.headers.get("x-frame-options"),
    referrer: answer.headers.get("referrer-policy"),
    sniff: answer.headers.get("x-content-type-options"),
    resource: answer.headers.get("cross-origin-resource-policy"),
    opener: answer.headers.get("cross-origin-opener-policy"),
    transport: answer.headers.get("strict-transport-security"),
  };
}

/** A form without the boundary between its fields. */
const GARBLED = { "content-type": "multipart/form-data" };

const SAFE = {
  csp: {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": `'self' ${LOGIN_STYLE}`,
    "connect-src": "'self'",
    "font-src": "'self'",
    "img-src": "'self' data: blob:",
    "manifest-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",
  },
  frame: "SAMEORIGIN",
  referrer: "same-origin", // with less, a browser sends the log-in form with "Origin: null"
  sniff: "nosniff",
  resource: "same-origin",
  opener: "same-origin",
  transport: null, // a proxy's to say
};

describe("the security headers", () => {
  const etag = { ...BEARER, "if-none-match": "" };
  test.each<[number, string, Init]>([
    [200, "/", { headers: BEARER }],
    [200, "/healthz", {}],
    [200, "/desktop/static/dist/viewer.js", { headers: BEARER }],
    [200, "/desktop/api/status", { headers: BEARER, method: "HEAD" }],
    [302, "/desktop", { headers: BEARER }],
    [303, `/?token=${TOKEN}`, {}],
    [304, "/desktop/static/dist/viewer.js", { headers: etag }],
    [401, "/", {}],
    [401, "/", { headers: { accept: "text/html" } }],
    [302, "/login", {}],
    [401, "/login", { method: "POST" }],
    [400, "/login", { method: "POST", headers: GARBLED, body: "garbled" }],
    [413, "/login", { method: "POST", body: new URLSearchParams({ token: "x".repeat(5_000) }) }],
    [403, "/", { headers: { cookie: `${COOKIE}=wrong` } }],
    [403, "/desktop/api/stop", { method: "POST", headers: { ...BEARER, ...FOREIGN } }],
    [404, "/nothing", { headers: BEARER }],
    [405, "/", { method: "PUT", headers: BEARER }],
    [405, "/login", { method: "DELETE" }],
    [405, "/healthz", { method: "POST" }],
    [426, "/desktop-websockify/", { headers: BEARER }],
    [502, "/desktop-websockify/", { headers: { ...BEARER, ...UPGRADE } }],
  ])("are on the answer %d of %s %j", async (status, to, { headers, ...init }) => {
    const { ask, supervisor } = desk();
    await supervisor.start();
    const first = await ask("/desktop/static/dist/viewer.js", { headers: BEARER });
    const own = headers && {
      ...headers,
      ...("if-none-match" in headers ? { "if-none-match": String(first.headers.get("etag")) } : {}),
    };
    const answer = await ask(to, own ? { ...init, headers: own } : init);
    expect(answer.status).toBe(status);
    expect(headersOf(answer)).toEqual(SAFE);
  });

  test("are on the answer 500, which tells nothing of the reason", async () => {
    const { ask, lines } = desk({ assets: { ...ASSETS, index: "{{hole}}" } });
    const answer = await ask("/", { headers: BEARER });
    expect(answer.status).toBe(500);
    expect(headersOf(answer)).toEqual(SAFE);
    expect(await answer.text()).toBe(
      "Something went wrong in jupyter-desktop: its log has the reason.\n",
    );
    expect(lines.join("")).toContain('no value for \\"hole\\"');
  });

  test("are on the answers 429, 400 and 503", async () => {
    const broken = desk({}, () => Promise.reject(new VncError("no-vnc-server", {})));
    await broken.supervisor.start();
    const unavailable = await broken.ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect([unavailable.status, headersOf(unavailable)]).toEqual([503, SAFE]);

    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    const left = desk({}, attach(vnc.target));
    await left.supervisor.start();
    left.server.upgrade.mockReturnValue(false);
    const bad = await left.ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect([bad.status, headersOf(bad)]).toEqual([400, SAFE]);

    const { promise, resolve } = Promise.withResolvers<void>();
    sleep.mockReturnValue(promise);
    const besieged = desk();
    const guesses = Array.from({ length: 16 }, () => besieged.ask("/?token=wrong"));
    const busy = await besieged.ask("/");
    expect([busy.status, headersOf(busy)]).toEqual([429, SAFE]);
    resolve();
    await Promise.all(guesses);
  });

  test("are on the answer 404 outside of the base URL, too", async () => {
    const answer = await desk({ baseUrl: "/desk/" }).ask("/elsewhere");
    expect(answer.status).toBe(404);
    expect(headersOf(answer)).toEqual(SAFE);
  });

  test("are on the answers for the base without its slash", async () => {
    const { ask } = desk({ baseUrl: "/desk/" });
    for (const [status, init] of [
      [302, { headers: BEARER }],
      [401, {}],
      [405, { method: "POST", headers: BEARER }],
    ] as const) {
      const answer = await ask("/desk", init);
      expect([answer.status, headersOf(answer)]).toEqual([status, SAFE]);
    }
  });

  test("are on the answer 403 to a name that is not known", async () => {
    const answer = await desk({ policy: { kind: "open", allowOrigins: [], hosts: [] } }).ask("/");
    expect([answer.status, headersOf(answer)]).toEqual([403, SAFE]);
  });
});

const locationOf = (answer: Response) => answer.headers.get("location");

describe("the token in the address", () => {
  test("is exchanged for a cookie, and the address is asked for again without it", async () => {
    const { ask, expectUntouched } = desk();
    const answer = await ask(`/desktop/?token=${TOKEN}&lang=de&x=%26`, {
      headers: { accept: "text/html" },
    });
    expect([answer.status, locationOf(answer)]).toEqual([303, "./?lang=de&x=%26"]);
    const [pair, ...attributes] = (answer.headers.get("set-cookie") ?? "").split("; ");
    expect(pair).toBe(`${COOKIE}=${TOKEN}`);
    expect(attributes.toSorted()).toEqual([
      "HttpOnly",
      "Max-Age=2592000",
      "Path=/",
      "SameSite=Lax",
    ]);
    expect(await answer.text()).toBe("");
    expectUntouched();
    const then = await ask("/desktop/?lang=de", { headers: { cookie: String(pair) } });
    expect(then.status).toBe(200);
  });

  test.each([
    ["/", "./"],
    ["/?a=1", "./?a=1"],
    ["/desktop", "desktop"],
    ["/desktop?a=1", "desktop?a=1"],
    ["/desktop/", "./"],
    ["/desktop/api/status", "status"],
    ["//evil.test/", "./"],
  ])("of %s leads to %s, relative to it", async (to, expected) => {
    const answer = await desk().ask(`${to}${to.includes("?") ? "&" : "?"}token=${TOKEN}`);
    expect(answer.status).toBe(303);
    const resolved = (where: string | null) =>
      new URL(String(where), `http://${HOST}${to.replace(/^\/\//, "/x/")}`).href;
    expect(resolved(locationOf(answer))).toBe(resolved(expected));
    expect(locationOf(answer)).not.toMatch(/^[/\\]|token/);
  });

  test.each([
    [`/?token=${TOKEN}&a=1&a=2`, "./?a=1&a=2"],
    [`/https:evil.test?token=${TOKEN}`, "./https:evil.test"],
  ])("is exchanged with care: %s leads to %s", async (to, expected) => {
    const answer = await desk().ask(to);
    expect(locationOf(answer)).toBe(expected);
  });

  test("is in a cookie for https only where the browser came by https", async () => {
    const { ask } = desk();
    const cookie = async (headers: Record<string, string>) =>
      (await ask(`/?token=${TOKEN}`, { headers })).headers.get("set-cookie");
    expect(await cookie({ "x-forwarded-proto": "https" })).toContain("; Secure");
    expect(await cookie({ "x-forwarded-proto": "http" })).not.toContain("Secure");
    expect(await cookie({})).not.toContain("Secure");
  });

  test("is in a cookie for the base URL only", async () => {
    const { ask } = desk({ baseUrl: "/desk/" });
    const answer = await ask(`/desk/?token=${TOKEN}`);
    expect(answer.headers.get("set-cookie")).toContain("; Path=/desk/;");
  });

  test("opens a WebSocket without a detour", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    const { ask, bridge, server, supervisor } = desk({}, attach(vnc.target));
    await supervisor.start();
    await ask(`/desktop-websockify/?token=${TOKEN}`, { headers: UPGRADE });
    expect(server.upgrade).toHaveBeenCalledTimes(1);
    bridge.closeAll(1001, "end of the test");
  });

  test("makes nobody wait when it is right, and one who guesses wait ever longer", async () => {
    const { ask } = desk();
    await ask(`/?token=${TOKEN}`);
    expect(sleep).not.toHaveBeenCalled();
    for (const headers of [{ cookie: `${COOKIE}=a` }, { authorization: "Bearer b" }])
      await ask("/", { headers });
    await ask("/?token=c");
    expect(sleep.mock.calls.map(([ms]) => Number(ms))).toEqual([100, 200, 400]);
  });

  test("that is right makes up for those that were wrong", async () => {
    const { ask } = desk();
    for (const token of ["a", "b", TOKEN, "c", "d"]) await ask(`/?token=${token}`);
    expect(sleep.mock.calls.map(([ms]) => Number(ms))).toEqual([100, 200, 100, 200]);
  });

  test("is not even looked at while sixteen wrong ones wait", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    sleep.mockReturnValue(promise);
    const { ask, expectUntouched } = desk();
    const guesses = Array.from({ length: 16 }, () => ask("/?token=wrong"));
    for (const [to, init] of [
      ["/", { headers: BEARER }],
      ["/?token=wrong", {}],
      ["/login", { method: "POST", body: new URLSearchParams({ token: TOKEN }) }],
    ] as const) {
      const answer = await ask(to, init);
      expect([answer.status, answer.headers.has("set-cookie")]).toEqual([429, false]);
      expect(await answer.text()).toMatch(/^Too many wrong tokens at once.*\n$/);
    }
    expect((await ask("/healthz")).status).toBe(200);
    expectUntouched();
    resolve();
    for (const guess of await Promise.all(guesses)) expect(guess.status).toBe(403);
    expect((await ask("/", { headers: BEARER })).status).toBe(200);
  });
});

describe("the log-in form", () => {
  const post = (token: string, headers: Record<string, string> = {}) => ({
    method: "POST",
    headers,
    body: new URLSearchParams({ username: "jupyter-desktop", token }),
  });

  test.each([TOKEN, ` ${TOKEN}\n`])(
    "takes the token %j, and leads to the desktop",
    async (token) => {
      const { ask, expectUntouched } = desk();
      const answer = await ask("/login", post(token, { origin: `http://${HOST}` }));
      expect([answer.status, locationOf(answer)]).toEqual([303, "./"]);
      expect(answer.headers.get("set-cookie")).toMatch(
        new RegExp(`^${COOKIE}=${TOKEN}; .*HttpOnly.*SameSite=Lax`),
      );
      expectUntouched();
    },
  );

  test("refuses a wrong token with the reason, later and later", async () => {
    const { ask, expectUntouched } = desk();
    for (const _ of [1, 2]) {
      const answer = await ask("/login", post("wrong-token"));
      expect([answer.status, answer.headers.has("set-cookie")]).toEqual([403, false]);
      expect(await answer.text()).toMatch(/^login base="\.\/" .* message="That token is wrong/);
    }
    expect(sleep.mock.calls.map(([ms]) => Number(ms))).toEqual([100, 200]);
    expectUntouched();
    await ask("/login", post(TOKEN));
    await ask("/login", post("wrong-token"));
    expect(sleep.mock.calls.map(([ms]) => Number(ms))).toEqual([100, 200, 100]);
  });

  test("asks again when there is no token in it", async () => {
    const { ask } = desk();
    for (const init of [post(""), { method: "POST" }, { method: "POST", body: "token" }]) {
      const answer = await ask("/login", init);
      expect([answer.status, answer.headers.has("set-cookie")]).toEqual([401, false]);
      expect(await answer.text()).toStartWith("login base=");
    }
    expect(sleep).not.toHaveBeenCalled();
  });

  test("takes no file for a token", async () => {
    const body = new FormData();
    body.set("token", new File([TOKEN], "token"));
    expect((await desk().ask("/login", { method: "POST", body })).status).toBe(401);
  });

  test.each(["https://evil.test", "null", "http://desk.test:8888"])(
    "of the Origin %s is refused, even with the token",
    async (origin) => {
      const { ask, expectUntouched } = desk();
      const answer = await ask("/login", post(TOKEN, { origin, accept: "text/html" }));
      expect([answer.status, answer.headers.has("set-cookie")]).toEqual([403, false]);
      expect(await answer.text()).toMatch(/^A page of another site/);
      expectUntouched();
    },
  );

  test.each([
    ["/login", WITH_COOKIE],
    ["/login", {}],
    ["/login", { accept: "text/html" }],
    ["/login", UPGRADE],
    ["/login", { cookie: `${COOKIE}=wrong` }],
    ["/login?token=wrong", {}],
    [`/login?token=${TOKEN}`, {}],
  ])("leads from GET %s with %j to the desktop, which asks who it is", async (to, headers) => {
    for (const baseUrl of ["/", "/desk/"]) {
      const { ask, expectUntouched } = desk({ baseUrl });
      const answer = await ask(`${baseUrl.slice(0, -1)}${to}`, { headers });
      expect([answer.status, locationOf(answer), await answer.text()]).toEqual([302, "./", ""]);
      expect(answer.headers.has("set-cookie")).toBe(false);
      expectUntouched();
    }
    expect(sleep).not.toHaveBeenCalled();
  });

  test("is not taken from an address, where it would stay", async () => {
    const answer = await desk().ask(`/login?token=${TOKEN}`, { method: "POST" });
    expect([answer.status, answer.headers.has("set-cookie")]).toEqual([401, false]);
  });

  test("that is garbled is the sender's fault", async () => {
    const { ask, expectUntouched } = desk();
    const answer = await ask("/login", { method: "POST", headers: GARBLED, body: "garbled" });
    expect([answer.status, await answer.text()]).toEqual([400, "That is no log-in form.\n"]);
    expectUntouched();
  });

  test("has a bound, since strangers may send it", async () => {
    const { ask, expectUntouched } = desk();
    const headers = { "content-type": "application/x-www-form-urlencoded" };
    const send = async (body: string | ReadableStream) =>
      (await ask("/login", { method: "POST", headers, body })).status;
    const padded = (length: number) => `token=${TOKEN}&x=`.padEnd(length, "x");
    expect(await send(padded(4_096))).toBe(303);
    expect(await send(padded(4_097))).toBe(413);
    expect(await send(padded(1 << 20))).toBe(413);
    // In pieces, of which nobody said how many come.
    expect(await send(new Blob([padded(4_096)]).stream())).toBe(303);
    expect(await send(new Blob([padded(4_097)]).stream())).toBe(413);
    expectUntouched();
  });

  test("is refused under a name of another's that leads here", async () => {
    const policy: AuthPolicy = { kind: "open", allowOrigins: [], hosts: ["lab.test"] };
    const { ask, lines } = desk({ policy });
    const answer = await ask("/login", post(TOKEN, { accept: "text/html" }));
    expect([answer.status, await answer.text()]).toEqual([
      403,
      expect.stringMatching(/^This desktop is not served under this name/),
    ]);
    expect(lines.join("")).toContain("warn refused reason=host method=POST path=/login\n");
    expect((await ask("/login", post("", { host: "lab.test" }))).status).toBe(303);
  });
});

describe("the log-out", () => {
  test("takes the cookie back from where the log-in put it, and leads to the base", async () => {
    for (const baseUrl of ["/", "/user/x@y.z/desk/"]) {
      const { ask } = desk({ baseUrl });
      const init = { method: "POST", headers: WITH_COOKIE };
      const answer = await ask(`${baseUrl}logout`, init);
      expect([answer.status, locationOf(answer)]).toEqual([303, "./"]);
      const [cookie = "", ...attributes] = (answer.headers.get("set-cookie") ?? "").split("; ");
      expect(cookie).toBe(`${COOKIE}=`);
      expect(attributes.toSorted()).toEqual(["Max-Age=0", `Path=${baseUrl}`]);
    }
  });

  test("is not for a page of another site, and not for a link", async () => {
    const { ask } = desk();
    const foreign = { ...WITH_COOKIE, origin: "https://evil.test" };
    const refused = await ask("/logout", { method: "POST", headers: foreign });
    expect([refused.status, refused.headers.has("set-cookie")]).toEqual([403, false]);
    const link = await ask("/logout", { headers: WITH_COOKIE });
    expect([link.status, link.headers.has("set-cookie")]).toEqual([405, false]);
  });
});

describe("the manifest", () => {
  test("names the desktop as --title says, and hangs on its own address", async () => {
    const { ask } = desk({ title: 'Ada\'s "lab"', baseUrl: "/desk/" });
    const to = "/desk/desktop/static/manifest.webmanifest";
    const answer = await ask(to, { headers: BEARER });
    expect(answer.headers.get("content-type")).toBe("application/manifest+json");
    const manifest = (await answer.json()) as Record<string, unknown>;
    expect(manifest).toMatchObject({ name: 'Ada\'s "lab"', display: "standalone" });
    const from = new URL(to, `http://${HOST}`);
    for (const key of ["start_url", "scope"])
      expect(new URL(String(manifest[key]), from).pathname).toBe("/desk/");
    const [icon] = manifest.icons as { src: string }[];
    expect((await ask(new URL(icon?.src ?? "", from).pathname, { headers: BEARER })).status).toBe(
      200,
    );
  });
});

describe("the way back to Jupyter", () => {
  const assets = { ...ASSETS, index: "{{home}} {{auth}} [{{hub_home}}]" };

  test.each([
    [undefined, "/", "./"],
    ["/user/ada/desktop", "/", "./../"],
    ["/user/ada/desktop", "/desktop/", "../../"],
    ["/user/ada/proxy/6080", "/", "./../../"],
    ["/proxy/absolute/6080/", "/", "./../../../"],
    ["javascript:alert(1)", "/", "./"],
  ])("for jupyter-server-proxy's %p and the page %s is %s", async (context, to, home) => {
    const headers = { ...BEARER, ...(context ? { "x-proxycontextpath": context } : {}) };
    const answer = await desk({ assets }).ask(to, { headers });
    expect(await answer.text()).toBe(`${home} token []`);
  });

  test("where nobody logs in, the page knows it", async () => {
    const answer = await desk({ assets, policy: { kind: "open", allowOrigins: [] } }).ask("/");
    expect(await answer.text()).toBe("./ open []");
  });
});

describe("the page", () => {
  const title = `<script>"Ada's" & co</script>`;

  test.each([
    ["/", "./"],
    ["/desktop/", "../"],
  ])("at %s hangs on %s, with everything in it escaped", async (to, base) => {
    for (const baseUrl of ["/", "/user/x@y.z/desk/"]) {
      const { ask } = desk({ baseUrl, title });
      const answer = await ask(`${baseUrl.slice(0, -1)}${to}`, { headers: BEARER });
      expect(await answer.text()).toBe(
        `index base="${base}" title="&#60;script&#62;&#34;Ada&#39;s&#34; &#38; co&#60;/script&#62;" version="${VERSION}" hash="${HASH}"`,
      );
      expect(answer.headers.get("content-type")).toStartWith("text/html");
      expect(answer.headers.get("cache-control")).toBe("no-cache");
    }
  });

  test("is answered to HEAD without a body", async () => {
    const answer = await desk().ask("/", { method: "HEAD", headers: BEARER });
    expect([answer.status, await answer.text()]).toEqual([200, ""]);
  });

  test.each([
    ["/", "./"],
    ["/desktop", "./"],
    ["/desktop/", "../"],
    ["/desktop/api/status", "../../"],
    ["/any/where/at/all", "../../../"],
  ])("to log in hangs on the base at %s", async (to, base) => {
    for (const baseUrl of ["/", "/desk/"]) {
      const { ask } = desk({ baseUrl, title });
      const headers = { accept: "text/html" };
      const body = await (await ask(`${baseUrl.slice(0, -1)}${to}`, { headers })).text();
      expect(body).toStartWith(`login base="${base}" title="&#60;script&#62;`);
      expect(body).toEndWith('message=""');
    }
  });

  test("has no hole: a placeholder without a value is an error", async () => {
    const { ask } = desk({ assets: { ...ASSETS, login: "{{user}}" } });
    expect((await ask("/", { headers: { accept: "text/html" } })).status).toBe(500);
  });
});

describe("/desktop", () => {
  test.each([
    ["", "desktop/"],
    ["?a=1&a=2&b=%26%20ü", "desktop/?a=1&a=2&b=%26%20%C3%BC"],
  ])("leads with the query %j to %s", async (query, expected) => {
    for (const baseUrl of ["/", "/desk/"]) {
      const { ask } = desk({ baseUrl });
      const answer = await ask(`${baseUrl}desktop${query}`, { headers: BEARER });
      expect([answer.status, locationOf(answer)]).toEqual([302, expected]);
    }
  });
});

describe("the base URL", () => {
  const upgrade = { headers: { ...BEARER, ...UPGRADE } };
  const requests: [string, Init, number][] = [
    ["", { headers: BEARER }, 200],
    ["desktop", { headers: BEARER }, 302],
    ["desktop/", { headers: BEARER }, 200],
    ["desktop/static/dist/viewer.js", { headers: BEARER }, 200],
    ["desktop/api/status", { headers: BEARER }, 200],
    ["desktop-websockify/", { headers: BEARER }, 426],
    ["desktop-websockify/", upgrade, 502],
    ["", upgrade, 502],
    ["healthz", {}, 200],
    ["", {}, 401],
    ["login", { method: "POST" }, 401],
  ];

  test.each(["/desk/", "/a/b/c/", "/user/x@y.z/desk/", "/user/x%40y.z/desk/"])(
    "%s is before every address",
    async (baseUrl) => {
      const { ask, supervisor } = desk({ baseUrl });
      await supervisor.start();
      for (const [to, init, status] of requests)
        expect([to, (await ask(`${baseUrl}${to}`, init)).status]).toEqual([to, status]);
    },
  );

  test("is found where a proxy encoded it once more", async () => {
    const { ask } = desk({ baseUrl: "/user/x%40y.z/lab/kept/" });
    const page = await ask("/user/x%2540y.z/lab/kept/desktop/", { headers: BEARER });
    expect(page.status).toBe(200);
    expect(await page.text()).toContain('base="../"');
    expect((await ask("/user/x%2541y.z/lab/kept/desktop/", { headers: BEARER })).status).toBe(404);
  });

  test("answers nothing outside of it", async () => {
    const { ask, expectUntouched } = desk({ baseUrl: "/desk/" });
    for (const [to, init] of requests)
      for (const before of ["/", "/desk", "/desktop/", "/other/desk/"])
        if (`${before}${to}` !== "/desk")
          expect((await ask(`${before}${to}`, init)).status).toBe(404);
    expectUntouched();
  });

  test.each([
    ["/desk/", "/desk", "./desk/"],
    ["/desk/", "/desk?a=1&a=2&b=%26%20ü", "./desk/?a=1&a=2&b=%26%20%C3%BC"],
    ["/a/b/c/", "/a/b/c?x=%2F", "./c/?x=%2F"],
    ["/user/x@y.z/", "/user/x@y.z", "./x%40y.z/"],
    ["/user/x@y.z/", "/user/x%40y.z", "./x%40y.z/"],
    ["/user/https:x/", "/user/https:x", "./https%3Ax/"],
  ])("%s without its slash, %s, leads to %s", async (baseUrl, to, expected) => {
    const { ask, expectUntouched } = desk({ baseUrl });
    for (const method of ["GET", "HEAD"]) {
      const answer = await ask(to, { method, headers: { ...BEARER, accept: "text/html" } });
      expect([answer.status, locationOf(answer)]).toEqual([302, expected]);
    }
    for (const method of ["POST", "PUT", "OPTIONS"]) {
      const answer = await ask(to, { method, headers: BEARER });
      expect([answer.status, answer.headers.get("allow")]).toEqual([405, "GET, HEAD"]);
    }
    expectUntouched();
  });

  test.each(STRANGERS)("without its slash is guarded: %s", async (...row) => {
    const [, headers, status, sentence] = row;
    const { ask, expectUntouched } = desk({ baseUrl: "/desk/" });
    for (const more of [{}, UPGRADE]) {
      const answer = await ask("/desk", { headers: { ...headers, ...more } });
      expect([answer.status, locationOf(answer)]).toEqual([status, null]);
      expect(await answer.text()).toContain(sentence);
    }
    expectUntouched();
  });

  /** Goes where the answers lead, as a browser with cookies; the last answer, and its address. */
  async function browse(ask: ReturnType<typeof desk>["ask"], to: string) {
    const cookies: { pair: string; path: string }[] = [];
    let url = new URL(to, `http://${HOST}`);
    for (let step = 0; step < 5; step += 1) {
      const sent = cookies.filter(({ path }) => url.pathname.startsWith(path));
      const cookie = sent.map(({ pair }) => pair).join("; ");
      const headers = { accept: "text/html", ...(cookie ? { cookie } : {}) };
      const answer = await ask(`${url.pathname}${url.search}`, { headers });
      const [, pair = "", path = ""] =
        /^([^;]+);.* Path=([^;]+)/.exec(answer.headers.get("set-cookie") ?? "") ?? [];
      if (pair) cookies.push({ pair, path });
      const next = locationOf(answer);
      if (next === null) return { answer, url };
      url = new URL(next, url);
    }
    throw new Error("it leads in circles");
  }

  test.each(["/desk/", "/a/b/"])("%s with a token leads a browser in", async (baseUrl) => {
    const { answer, url } = await browse(desk({ baseUrl }).ask, `${baseUrl}?token=${TOKEN}&a=1`);
    expect([answer.status, url.pathname, url.search]).toEqual([200, baseUrl, "?a=1"]);
  });

  // The cookie is for /desk/, and the address that it is followed by is /desk.
  test.each(["/desk", "/a/b"])("%s with a token leads a browser in, too", async (base) => {
    const { ask } = desk({ baseUrl: `${base}/` });
    const { answer, url } = await browse(ask, `${base}?token=${TOKEN}&a=1`);
    expect([answer.status, url.pathname, url.search]).toEqual([200, `${base}/`, "?a=1"]);
  });

  test.each(["/desk", "/a/b"])("%s has a log-in page that hangs on the base", async (base) => {
    const { answer, url } = await browse(desk({ baseUrl: `${base}/` }).ask, base);
    const [, hangsOn = ""] = /^login base="([^"]*)"/.exec(await answer.text()) ?? [];
    expect([answer.status, new URL(`${hangsOn}login`, url).pathname]).toEqual([
      401,
      `${base}/login`,
    ]);
  });

  // The Hub writes %40, and a browser sends either, by what stands in the link.
  test.each([
    ["/user/x@y.z/desk/", "/user/x%40y.z/desk/"],
    ["/user/x%40y.z/desk/", "/user/x@y.z/desk/"],
  ])("%s is the same as %s", async (baseUrl, sent) => {
    const { ask } = desk({ baseUrl });
    const page = await ask(`${sent}desktop/`, { headers: BEARER });
    expect([page.status, await page.text()]).toEqual([200, expect.stringContaining('"../"')]);
    const exchange = await ask(`${sent}?token=${TOKEN}`);
    // A browser compares the cookie's path with the address as it was written.
    expect(exchange.headers.get("set-cookie")).toContain(`; Path=${sent};`);
  });
});

describe("an unknown address or method", () => {
  test.each(["/x", "/desktop/x", "/desktop/static/", "/desktop/static/x.js", "/desktop/api/"])(
    "%s is nowhere",
    async (to) => {
      const answer = await desk().ask(to, { headers: BEARER });
      expect([answer.status, await answer.text()]).toEqual([
        404,
        "There is nothing at this address.\n",
      ]);
    },
  );

  test.each([
    ["PUT", "/", "GET, HEAD"],
    ["POST", "/desktop", "GET, HEAD"],
    ["POST", "/desktop/", "GET, HEAD"],
    ["OPTIONS", "/desktop-websockify", "GET, HEAD"],
    ["POST", "/desktop-websockify/", "GET, HEAD"],
    ["DELETE", "/desktop/api/status", "GET, HEAD"],
    ["POST", "/desktop/static/dist/viewer.js", "GET, HEAD"],
    ["GET", "/desktop/api/start", "POST"],
    ["HEAD", "/desktop/api/stop", "POST"],
    ["OPTIONS", "/desktop/api/restart", "POST"],
  ])("%s %s is answered with what is allowed: %s", async (method, to, allow) => {
    const { ask, expectUntouched } = desk();
    const answer = await ask(to, { method, headers: BEARER });
    expect([answer.status, answer.headers.get("allow")]).toEqual([405, allow]);
    expectUntouched();
  });

  test.each([
    ["PUT", "/login", "GET, HEAD, POST"],
    ["DELETE", "/login", "GET, HEAD, POST"],
    ["OPTIONS", "/login", "GET, HEAD, POST"],
    ["POST", "/healthz", "GET, HEAD"],
    ["OPTIONS", "/healthz", "GET, HEAD"],
  ])("%s %s is answered to everyone with what is allowed: %s", async (method, to, allow) => {
    for (const headers of [{}, BEARER, { cookie: `${COOKIE}=wrong` }, FOREIGN]) {
      const { ask, expectUntouched } = desk();
      const answer = await ask(to, { method, headers });
      expect([answer.status, answer.headers.get("allow")]).toEqual([405, allow]);
      expect(await answer.text()).toBe(`This address takes ${allow} only.\n`);
      expectUntouched();
    }
    expect(sleep).not.toHaveBeenCalled();
  });
});

describe("the assets", () => {
  const decode = {
    br: brotliDecompressSync,
    gzip: gunzipSync,
    identity: (bytes: Uint8Array) => Buffer.from(bytes),
  };
  const VIEWER = "/desktop/static/dist/viewer.js";
  const get = (to: string, headers: Record<string, string> = {}) =>
    desk().ask(to, { headers: { ...BEARER, ...headers } });
  const encodingOf = async (accepted: string | undefined) => {
    const answer = await get(VIEWER, accepted === undefined ? {} : { "accept-encoding": accepted });
    return answer.headers.get("content-encoding") ?? "identity";
  };

  test.each(Object.entries(FILES))("have %s in every encoding", async (name, [type, bytes]) => {
    for (const [encoding, decoded] of Object.entries(decode)) {
      const answer = await get(`/desktop/static/${name}`, { "accept-encoding": encoding });
      expect(answer.headers.get("content-encoding") ?? "identity").toBe(encoding);
      expect(answer.headers.get("content-type")).toBe(type);
      expect(answer.headers.get("vary")).toMatch(/accept-encoding/i);
      expect(decoded(await answer.bytes()).equals(bytes)).toBe(true);
    }
  });

  test.each([
    ["gzip, deflate, br, zstd", "br"],
    ["br;q=1.0, gzip;q=1.0", "br"],
    ["gzip, deflate", "gzip"],
    ["x-gzip, gzip", "gzip"],
    ["br;q=0, gzip", "gzip"],
    ["br; q=0.0,gzip", "gzip"],
    ["br ;q=0.000, gzip;q=0", "identity"],
    ["deflate, zstd", "identity"],
    ["identity", "identity"],
    ["brotli", "identity"],
    ["", "identity"],
    [undefined, "identity"],
  ])("are sent for %p as %s", async (accepted, expected) => {
    expect(await encodingOf(accepted)).toBe(expected);
  });

  test.each([
    ["gzip;q=0.8, br;q=0.9", "br"],
    ["br;q=0.5", "br"],
    ["BR", "br"],
  ])("are sent for %p as %s", async (accepted, expected) => {
    expect(await encodingOf(accepted)).toBe(expected);
  });

  test("are not sent again to one who has them", async () => {
    const etag = String((await get(VIEWER)).headers.get("etag"));
    expect(etag).toMatch(/^"[\w-]{16,}"$/);
    const again = await get(VIEWER, { "if-none-match": etag, "accept-encoding": "br" });
    expect([again.status, await again.text()]).toEqual([304, ""]);
    expect(again.headers.get("etag")).toBe(etag);
    expect(again.headers.get("cache-control")).toBe("no-cache");
    expect(again.headers.get("vary")).toMatch(/accept-encoding/i);
    expect((await get(VIEWER, { "if-none-match": '"another"' })).status).toBe(200);
  });

  test("have each a tag of its own, which changes with the bytes", async () => {
    const tags = await Promise.all(
      Object.keys(FILES).map(async (name) =>
        (await get(`/desktop/static/${name}`)).headers.get("etag"),
      ),
    );
    expect(new Set(tags).size).toBe(4);
    const expected = createHash("sha256").update(FILES["dist/viewer.js"][1]).digest("base64url");
    expect(tags[0]?.slice(1, -1)).toBe(expected.slice(0, Number(tags[0]?.length) - 2));
  });

  test.each([(tag: string) => `W/${tag}`, (tag: string) => `"x", ${tag}`, () => "*"])(
    "are not sent again to one who has them by a proxy's tag, a list, or a star",
    async (written) => {
      const etag = String((await get(VIEWER)).headers.get("etag"));
      expect((await get(VIEWER, { "if-none-match": written(etag) })).status).toBe(304);
    },
  );

  test.each([
    [`?v=${HASH}`, "public, max-age=31536000, immutable"],
    ["", "no-cache"],
    ["?v=", "no-cache"],
    ["?v=old", "no-cache"],
  ])("with %j are kept: %s", async (query, expected) => {
    expect((await get(`${VIEWER}${query}`)).headers.get("cache-control")).toBe(expected);
  });

  test("are answered to HEAD without a body", async () => {
    const init = { method: "HEAD", headers: { ...BEARER, "accept-encoding": "br" } };
    const answer = await desk().ask(VIEWER, init);
    expect([answer.status, await answer.text()]).toEqual([200, ""]);
    expect(answer.headers.get("content-encoding")).toBe("br");
  });

  test.each([
    "/desktop/static/../../server.ts",
    "/desktop/static/..%2f..%2fserver.ts",
    "/desktop/static/..%2F..%2Fpackage.json",
    "/desktop/static/%2e%2e/%2e%2e/server.ts",
    "/desktop/static/..%5c..%5cserver.ts",
    "/desktop/static/%252e%252e%252fserver.ts",
    "/desktop/static//etc/passwd",
    "/desktop/static/%2fetc%2fpasswd",
    "/desktop/static/dist/viewer.js%00.svg",
    "/desktop/static/dist/viewer.js/",
    "/desktop/static/dist%2f..%2f..%2fserver.ts",
    "/desktop/static/constructor",
    "/desktop/static/__proto__",
  ])("are a closed set: %s is nowhere", async (to) => {
    expect((await get(to)).status).toBe(404);
  });
});

describe("the WebSocket", () => {
  const greet = (peer: { socket: { write(text: string): unknown } | undefined }) =>
    peer.socket?.write("RFB 003.008\n");
  const addresses = ["/", "/desktop/", "/desktop-websockify", "/desktop-websockify/"];

  test.each(addresses)("of %s is upgraded with a session that VNC has greeted", async (to) => {
    using vnc = fakeVnc(greet);
    const { ask, bridge, launch, server, supervisor } = desk({}, attach(vnc.target));
    await supervisor.start();
    await ask(to, { headers: { ...BEARER, ...UPGRADE, origin: `http://${HOST}` } });
    expect([launch.mock.calls.length, bridge.size, vnc.peers.length]).toEqual([1, 1, 1]);
    const [request, options] = server.upgrade.mock.calls[0] ?? [];
    expect(request?.url).toBe(`http://${HOST}${to}`);
    expect(options?.data.outcome).toBeUndefined();
    bridge.closeAll(1001, "end of the test");
    expect([options?.data.outcome?.code, bridge.size]).toEqual([1001, 0]);
  });

  test.each([
    [undefined, undefined],
    ["binary", { "Sec-WebSocket-Protocol": "binary" }],
    ["base64, binary", { "Sec-WebSocket-Protocol": "binary" }],
    ["base64", undefined],
    ["binary2", undefined],
  ])("that offers the protocols %p is given %p", async (offered, expected) => {
    using vnc = fakeVnc(greet);
    const { ask, bridge, server, supervisor } = desk({}, attach(vnc.target));
    await supervisor.start();
    const protocols: Record<string, string> =
      offered === undefined ? {} : { "sec-websocket-protocol": offered };
    await ask("/", { headers: { ...BEARER, ...UPGRADE, ...protocols } });
    expect(server.upgrade.mock.calls[0]?.[1].headers).toEqual(expected);
    bridge.closeAll(1001, "end of the test");
  });

  test.each(addresses.slice(2))("of %s is told so when it is none", async (to) => {
    const { ask, expectUntouched } = desk();
    const answer = await ask(to, { headers: BEARER });
    expect([answer.status, answer.headers.get("upgrade")]).toEqual([426, "websocket"]);
    expect(await answer.text()).toBe("This address takes WebSockets only.\n");
    const head = await ask(to, { method: "HEAD", headers: BEARER });
    expect([head.status, await head.text()]).toEqual([426, ""]);
    const other = await ask(to, { headers: { ...BEARER, ...UPGRADE, upgrade: "h2c" } });
    expect(other.status).toBe(426);
    expectUntouched();
  });

  test("is 502 with the cause when VNC cannot be reached", async () => {
    const { ask, bridge, lines, server, supervisor } = desk();
    await supervisor.start();
    const answer = await ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect(answer.status).toBe(502);
    expect(await answer.json()).toEqual({
      cause: "vnc-unreachable",
      detail: { target: "unix:/nonexistent/vnc.sock", error: expect.any(String) },
    });
    expect([server.upgrade.mock.calls.length, bridge.size]).toEqual([0, 0]);
    expect(lines.join("")).toContain("warn viewer refused cause=vnc-unreachable");
  });

  test("is 502 when what listens there is no VNC server", async () => {
    using ssh = fakeVnc((peer) => peer.socket?.write("SSH-2.0-OpenSSH_9.2\r\n"));
    const { ask, bridge, server, supervisor } = desk({}, attach(ssh.target));
    await supervisor.start();
    const answer = await ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect([answer.status, await answer.json()]).toEqual([
      502,
      { cause: "not-vnc", detail: { target: ssh.name } },
    ]);
    expect([server.upgrade.mock.calls.length, bridge.size]).toEqual([0, 0]);
  });

  test("is 503 when there is no desktop and none is started", async () => {
    const none = () => Promise.reject(new VncError("no-vnc-server", { command: "apt-get" }));
    const { ask, server, supervisor } = desk({}, none);
    await supervisor.start();
    const answer = await ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect([answer.status, await answer.text()]).toEqual([
      503,
      "The desktop is not running (failed): see desktop/api/status.\n",
    ]);
    expect(server.upgrade).not.toHaveBeenCalled();
  });

  test("that is the first visit waits for the desktop that it starts", async () => {
    using vnc = fakeVnc(greet);
    const { ask, bridge, launch, server } = desk({}, attach(vnc.target));
    await ask("/", { headers: { ...BEARER, ...UPGRADE } });
    bridge.closeAll(1001, "end of the test");
    expect([launch.mock.calls.length, server.upgrade.mock.calls.length]).toEqual([1, 1]);
  });

  /** The app with a bridge that takes so many. */
  const roomFor = (maxViewers: number, launcher: Launch) =>
    desk(
      {
        bridge: new Bridge(
          createLog({ level: "error" }, [], () => {}),
          { maxViewers },
        ),
      },
      launcher,
    );

  test("is 503 with the cause when there are as many viewers as there may be", async () => {
    using vnc = fakeVnc(greet);
    const { ask, bridge, lines, server, supervisor } = roomFor(2, attach(vnc.target));
    await supervisor.start();
    const come = () => ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect([await come(), bridge.full, await come(), bridge.full]).toEqual([
      expect.any(Response),
      false,
      expect.any(Response),
      true,
    ]);
    const answer = await come();
    expect(answer.status).toBe(503);
    expect(headersOf(answer)).toEqual(SAFE);
    expect(await answer.json()).toEqual({ cause: "too-many-viewers", detail: { limit: 2 } });
    expect(lines.at(-1)).toContain("warn viewer refused cause=too-many-viewers limit=2");
    expect([server.upgrade.mock.calls.length, vnc.peers.length, bridge.size]).toEqual([2, 2, 2]);
    server.upgrade.mock.calls[0]?.[1].data.end(1000, "leaves");
    expect(bridge.full).toBe(false);
    await come();
    expect([server.upgrade.mock.calls.length, bridge.size]).toEqual([3, 2]);
    bridge.closeAll(1001, "end of the test");
  });

  test.each([true, false])(
    "is 503 for whom there is no room in a rush (started: %p)",
    async (up) => {
      using vnc = fakeVnc(greet);
      const { ask, bridge, launch, server, supervisor } = roomFor(2, attach(vnc.target));
      if (up) await supervisor.start();
      const rush = Array.from({ length: 5 }, () =>
        ask("/", { headers: { ...BEARER, ...UPGRADE } }),
      );
      const statuses = (await Promise.all(rush)).map(({ status }) => status);
      expect(statuses.toSorted()).toEqual([200, 200, 503, 503, 503]);
      expect([launch, server.upgrade].map(({ mock: { calls } }) => calls.length)).toEqual([1, 2]);
      expect(bridge.size).toBe(2);
      bridge.closeAll(1001, "end of the test");
    },
  );

  test("is no room taken by one who got no connection", async () => {
    const { ask, bridge, supervisor } = roomFor(1, NOWHERE);
    await supervisor.start();
    for (const _ of [1, 2, 3])
      expect((await ask("/", { headers: { ...BEARER, ...UPGRADE } })).status).toBe(502);
    expect([bridge.size, bridge.full]).toEqual([0, false]);
  });

  test("leaves no session behind when the browser has left meanwhile", async () => {
    using vnc = fakeVnc(greet);
    const { ask, bridge, server, supervisor } = desk({}, attach(vnc.target));
    await supervisor.start();
    server.upgrade.mockReturnValue(false);
    const answer = await ask("/", { headers: { ...BEARER, ...UPGRADE } });
    expect([answer.status, bridge.size]).toEqual([400, 0]);
    expect(vnc.peers).toHaveLength(1);
    await expect(vnc.peers[0]?.read(1)).rejects.toThrow("closed");
  });
});

describe("desktop/api/status", () => {
  test("tells the state in one shape", async () => {
    const { ask, supervisor } = desk();
    const status = async () => {
      const answer = await ask("/desktop/api/status", { headers: BEARER });
      expect(answer.headers.get("content-type")).toStartWith("application/json");
      expect(answer.headers.get("cache-control")).toBe("no-store");
      return answer.json();
    };
    const idle = {
      state: "idle",
      since: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
      cause: null,
      detail: {},
      attempt: 0,
      nextRetryMs: null,
      log: [],
      display: null,
      vnc: null,
      viewers: 0,
      version: VERSION,
    };
    expect(await status()).toEqual(idle);
    await supervisor.start();
    expect(await status()).toEqual({ ...idle, state: "ready" });
    await supervisor.stop();
    expect(await status()).toEqual({ ...idle, state: "ended", cause: "stopped" });
  });

  test("tells why it failed, and what mends it", async () => {
    const detail = { command: "apt-get install tigervnc-standalone-server" };
    const { ask, supervisor } = desk({}, () =>
      Promise.reject(new VncError("no-vnc-server", detail)),
    );
    await supervisor.start();
    const answer = await ask("/desktop/api/status", { headers: BEARER });
    expect(await answer.json()).toMatchObject({
      state: "failed",
      cause: "no-vnc-server",
      detail,
      attempt: 1,
    });
  });

  test("counts the viewers", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    const { ask, bridge, supervisor } = desk({}, attach(vnc.target));
    await supervisor.start();
    for (const _ of [1, 2]) await ask("/", { headers: { ...BEARER, ...UPGRADE } });
    const status = await ask("/desktop/api/status", { headers: BEARER });
    expect(await status.json()).toMatchObject({ state: "ready", viewers: 2 });
    bridge.closeAll(1001, "end of the test");
  });

  test("tells why the last viewer got no connection, until one gets one", async () => {
    let greeting = "SSH-2.0-OpenSSH_9.2\r\n";
    using vnc = fakeVnc((peer) => peer.socket?.write(greeting));
    const bridge = new Bridge(
      createLog({ level: "error" }, [], () => {}),
      { maxViewers: 1 },
    );
    const { ask, supervisor } = desk({ bridge }, attach(vnc.target));
    const come = () => ask("/", { headers: { ...BEARER, ...UPGRADE } });
    const status = async () =>
      (await ask("/desktop/api/status", { headers: BEARER })).json() as Promise<unknown>;
    await supervisor.start();
    await come();
    const notVnc = { state: "ready", cause: "not-vnc", detail: { target: vnc.name }, viewers: 0 };
    expect(await status()).toMatchObject(notVnc);
    greeting = "RFB 003.008\n";
    await come();
    expect(await status()).toMatchObject({ state: "ready", cause: null, detail: {}, viewers: 1 });
    await come();
    const full = { cause: "too-many-viewers", detail: { limit: 1 } };
    expect(await status()).toMatchObject({ state: "ready", ...full, viewers: 1 });
    await supervisor.stop();
    expect(await status()).toMatchObject({ state: "ended", cause: "stopped", detail: {} });
    bridge.closeAll(1001, "end of the test");
  });

  test("is what start, stop and restart answer with, when they are done", async () => {
    const { ask, launch } = desk();
    const post = async (what: string) =>
      (await ask(`/desktop/api/${what}`, { method: "POST", headers: BEARER })).json();
    expect(await post("start")).toMatchObject({ state: "ready", viewers: 0, version: VERSION });
    expect(await post("stop")).toMatchObject({ state: "ended", cause: "stopped" });
    expect(await post("restart")).toMatchObject({ state: "ready", cause: null });
    expect(launch).toHaveBeenCalledTimes(2);
  });

  /** The app, who listens to its supervisor and its bridge, and a promise that nobody does any more. */
  function watched() {
    const stage = desk();
    const listening = new Set<object>();
    const silence = Promise.withResolvers<void>();
    for (const source of [stage.supervisor, stage.bridge]) {
      const onChange = source.onChange.bind(source);
      spyOn(source, "onChange").mockImplementation((listener) => {
        const stop = onChange(listener);
        listening.add(stop);
        return () => {
          stop();
          listening.delete(stop);
          if (listening.size === 0) silence.resolve();
        };
      });
    }
    return { ...stage, listening, silence: silence.promise };
  }

  /** The events of a stream, one by one. */
  function eventsOf(answer: Response) {
    const reader = (answer.body ?? new ReadableStream<Uint8Array>()).getReader();
    let text = "";
    const event = async () => {
      while (!text.includes("\n\n")) text += Buffer.from((await reader.read()).value ?? []);
      const [first = "", ...rest] = text.split("\n\n");
      text = rest.join("\n\n");
      return JSON.parse(first.replace(/^data: /, ""));
    };
    return { event, leave: () => reader.cancel() };
  }
  const STREAM = { ...BEARER, accept: "text/event-stream" };

  test("comes as events at once and after every change, until nobody listens", async () => {
    const { ask, listening, server, silence, supervisor } = watched();
    const answer = await ask("/desktop/api/status", { headers: STREAM });
    expect(answer.headers.get("content-type")).toStartWith("text/event-stream");
    expect(answer.headers.get("cache-control")).toBe("no-cache");
    expect(answer.headers.get("x-accel-buffering")).toBe("no");
    expect(server.timeout.mock.calls.map(([, seconds]) => seconds)).toEqual([0]);
    const { event, leave } = eventsOf(answer);
    const idle = await event();
    expect(idle).toMatchObject({ state: "idle", viewers: 0, version: VERSION });
    const json = await ask("/desktop/api/status", { headers: BEARER });
    expect(idle).toEqual(await json.json());
    await supervisor.start();
    expect([(await event()).state, (await event()).state]).toEqual(["starting", "ready"]);
    expect(listening.size).toBe(2);
    await leave();
    await silence;
    expect(listening.size).toBe(0);
  });

  test("comes as an event when a viewer comes or leaves", async () => {
    using vnc = fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));
    const { ask, bridge, server, supervisor } = desk({}, attach(vnc.target));
    await supervisor.start();
    const { event, leave } = eventsOf(await ask("/desktop/api/status", { headers: STREAM }));
    expect(await event()).toMatchObject({ state: "ready", viewers: 0 });
    for (const viewers of [1, 2]) {
      await ask("/", { headers: { ...BEARER, ...UPGRADE } });
      expect(await event()).toMatchObject({ state: "ready", viewers });
    }
    server.upgrade.mock.calls[0]?.[1].data.end(1000, "leaves");
    expect(await event()).toMatchObject({ state: "ready", viewers: 1 });
    bridge.closeAll(1001, "end of the test");
    expect(await event()).toMatchObject({ state: "ready", viewers: 0 });
    await leave();
  });

  test("is kept for a reader that stalls in its newest form only", async () => {
    const { ask, bridge, supervisor } = desk();
    const { event, leave } = eventsOf(await ask("/desktop/api/status", { headers: STREAM }));
    const nowhere = { kind: "unix", path: "/nonexistent/vnc.sock" } as const;
    for (let i = 0; i < 100; i++)
      await expect(bridge.connect(nowhere, undefined)).rejects.toThrow("vnc-unreachable");
    await supervisor.start();
    let events = 1;
    while ((await event()).state !== "ready") events += 1;
    expect(events).toBeLessThan(10);
    await leave();
  });

  test("comes not as events to HEAD, which would listen for ever", async () => {
    const { ask, listening } = watched();
    const headers = { ...BEARER, accept: "text/event-stream" };
    const answer = await ask("/desktop/api/status", { method: "HEAD", headers });
    expect([answer.status, listening.size]).toEqual([200, 0]);
  });
});

describe("/metrics", () => {
  const asked = (metrics?: () => string) => desk({ metrics });

  test("is not there unless asked for", async () => {
    expect((await asked().ask("/metrics", { headers: BEARER })).status).toBe(404);
  });

  test("tells strangers nothing", async () => {
    const metrics = mock(() => "jupyter_desktop_viewers 0\n");
    const { ask } = asked(metrics);
    expect((await ask("/metrics")).status).toBe(401);
    expect((await ask("/metrics?token=wrong-token")).status).toBe(403);
    expect(metrics).not.toHaveBeenCalled();
  });

  test("counts states, viewers and bytes, each line in Prometheus' form", async () => {
    const { supervisor, bridge, lines } = desk();
    const { ask } = asked(createMetrics(supervisor, bridge));
    await supervisor.start();
    bridge.traffic.toBrowser += 12;
    const response = await ask("/metrics", { headers: BEARER });
    expect(response.headers.get("content-type")).toStartWith("text/plain; version=0.0.4");
    const said = await response.text();
    for (const line of said.trimEnd().split("\n"))
      expect(line).toMatch(
        /^(# HELP \w+ [\w ]+\.|# TYPE \w+ (gauge|counter)|\w+(\{\w+="[\w.+-]+"\})? [\d.e+-]+)$/,
      );
    expect(said).toContain('\njupyter_desktop_state{state="ready"} 1\n');
    expect(said).toContain('\njupyter_desktop_state{state="idle"} 0\n');
    expect(said).toContain('\njupyter_desktop_transitions_total{state="starting"} 1\n');
    expect(said).toContain('\njupyter_desktop_bytes_total{to="browser"} 12\n');
    expect(said).toContain("\njupyter_desktop_viewers 0\n");
    expect(lines.join("")).not.toContain("error");
  });

  test("shows by how much the event loop was late since it was asked last", async () => {
    const { supervisor, bridge } = desk();
    const metrics = createMetrics(supervisor, bridge);
    const worst = () => Number(/^jupyter_desktop_loop_lag_max_seconds (\S+)/m.exec(metrics())?.[1]);
    metrics();
    const turn = () => new Promise<void>((resolve) => setTimeout(resolve, 25));
    await turn();
    for (const until = performance.now() + 120; performance.now() < until;);
    await turn();
    await turn();
    expect(worst()).toBeGreaterThan(0.09);
    expect(worst()).toBeLessThan(0.09);
  });
});

describe("healthz", () => {
  test("says ok to everyone, and nothing else", async () => {
    for (const launcher of [NOWHERE, () => Promise.reject(new Error("broken"))]) {
      const { ask, expectUntouched, supervisor } = desk({}, launcher);
      for (const headers of [{}, { ...FOREIGN, cookie: `${COOKIE}=wrong` }, UPGRADE]) {
        const answer = await ask("/healthz?token=wrong", { headers });
        expect([answer.status, await answer.text()]).toEqual([200, "ok\n"]);
        expect(answer.headers.has("set-cookie")).toBe(false);
      }
      expectUntouched();
      await supervisor.start();
      expect(await (await ask("/healthz")).text()).toBe("ok\n");
      await supervisor.stop();
    }
    expect(sleep).not.toHaveBeenCalled();
  });
});
