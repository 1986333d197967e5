/** Sharing by links: who may do what, and that VNC itself and the bridge hold a watcher to watching. */
import {
  afterAll,
  afterEach,
  beforeAll,
  describe,
  expect,
  jest,
  mock,
  setDefaultTimeout,
  test,
} from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Server } from "bun";
import {
  type AppOptions,
  attach,
  Bridge,
  CLOSE,
  createApp,
  createLog,
  Files,
  type Launch,
  LogTail,
  type Session,
  Shares,
  Supervisor,
  VncError,
} from "../server.ts";
import { BEARER, openWebSocket, startServer, tempDir, TOKEN, until } from "./_helpers.ts";

setDefaultTimeout(30_000);
afterEach(() => {
  jest.useRealTimers();
});

const HOST = "desk.test:6080";
const COOKIE = "jupyter-desktop-6080";
const UPGRADE = {
  connection: "Upgrade",
  upgrade: "websocket",
  "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
  "sec-websocket-version": "13",
};
const NOWHERE = attach({ kind: "unix", path: "/nonexistent/vnc.sock" });
const LINK = { role: "watch", minutes: 60, name: "Ada" } as const;

type Init = Omit<RequestInit, "headers"> & { headers?: Record<string, string> };

/** The app with a desktop that starts nothing, and with a Bun server that upgrades nothing. */
function desk(change: Partial<AppOptions> = {}, launcher: Launch = NOWHERE) {
  const lines: string[] = [];
  const log = createLog({ level: "debug" }, [], (line) => lines.push(line));
  const launch = mock(launcher);
  const supervisor = new Supervisor(launch, new LogTail(log), log);
  const bridge = new Bridge(log);
  const shares = new Shares();
  const upgrade = mock(() => true);
  const server = { upgrade, timeout: () => {} } as unknown as Server<Session>;
  const app = createApp({
    baseUrl: "/",
    title: "Desktop",
    policy: { kind: "token", token: TOKEN, allowOrigins: [] },
    cookieName: COOKIE,
    vncPassword: undefined,
    assets: {
      hash: "0",
      index: "{{role}} {{features}}",
      login: "login: {{message}}",
      message: "{{message}}",
      loginStyle: "''",
      files: { "dist/viewer.js": { type: "text/javascript", br: "CwKAYWJjZGUD" } },
    },
    supervisor,
    bridge,
    log,
    files: new Files(() => "/nonexistent", 1),
    shares,
    ...change,
  });
  const ask = async (to: string, { headers, ...init }: Init = {}) =>
    app.fetch(
      new Request(`http://${HOST}${to}`, { ...init, headers: { host: HOST, ...headers } }),
      {
        server,
      },
    );
  return { app, ask, bridge, launch, lines, shares, supervisor, upgrade };
}

const nameOf = (shares: Shares) => `${COOKIE}-share-${shares.name}`;
const cookieOf = (shares: Shares, token: string) => ({ cookie: `${nameOf(shares)}=${token}` });
/** A cookie as a browser sends it back. */
const setCookie = (answer: Response) =>
  answer.headers
    .getSetCookie()
    .find((set) => set.includes("-share-"))
    ?.split(";")[0] ?? "";

describe("a guest", () => {
  /** What a guest of either role may reach; all else is the owner's. */
  const OPEN_TO_GUESTS: ReadonlySet<string> = new Set([
    "GET /",
    "GET /desktop",
    "GET /desktop/",
    "GET /desktop-websockify",
    "GET /desktop-websockify/",
    "GET /desktop/api/status",
    "GET /desktop/static/dist/viewer.js",
    "GET /healthz",
    "GET /login",
    "POST /login",
    "POST /logout",
    "GET /desktop/static/manifest.webmanifest",
  ]);
  const routes = [
    ...new Set(
      desk()
        .app.routes.filter(({ method }) => method !== "ALL")
        .map(({ method, path: to }) => `${method} ${to.replace(":id", "some-id")}`),
    ),
  ];

  test.each(["watch", "control"] as const)(
    "who may %s reaches only what is named here",
    async (role) => {
      expect(routes.length).toBeGreaterThan(OPEN_TO_GUESTS.size + 8);
      for (const route of routes) {
        const [method = "", to = ""] = route.split(" ");
        const { ask, launch, shares, supervisor } = desk();
        const { token } = shares.create({ ...LINK, role });
        const answer = await ask(to, { method, headers: cookieOf(shares, token) });
        const refused = answer.status === 403 && (await answer.text()).includes("owner-only");
        expect([route, refused]).toEqual([route, !OPEN_TO_GUESTS.has(route)]);
        expect([shares.links.length, supervisor.status.state]).toEqual([1, "idle"]);
        expect(launch).not.toHaveBeenCalled();
      }
    },
  );

  test("is nobody without a link: all of it asks for a token", async () => {
    for (const route of routes) {
      const [method = "", to = ""] = route.split(" ");
      const isOpen = ["GET /healthz", "GET /login", "POST /login"].includes(route);
      const { ask, shares } = desk();
      shares.create(LINK);
      const { status } = await ask(to, { method });
      if (!isOpen) expect([route, status]).toEqual([route, 401]);
    }
  });

  test("starts no desktop, neither by the page nor by the WebSocket", async () => {
    const { ask, launch, shares, upgrade } = desk();
    const guest = cookieOf(shares, shares.create(LINK).token);
    const page = await ask("/desktop/", { headers: { ...guest, accept: "text/html" } });
    expect(await page.text()).toBe("watch ");
    expect((await ask("/desktop-websockify/", { headers: { ...guest, ...UPGRADE } })).status).toBe(
      503,
    );
    expect(launch).not.toHaveBeenCalled();
    expect(upgrade).not.toHaveBeenCalled();
    const owner = await ask("/desktop/", { headers: { ...BEARER, accept: "text/html" } });
    expect(await owner.text()).toBe("owner files share");
    expect(launch).toHaveBeenCalledTimes(1);
  });

  test("learns neither log nor paths from the status", async () => {
    const why = { path: "/home/secret", code: 127, command: "secret" };
    const { ask, shares, supervisor } = desk({}, () =>
      Promise.reject(new VncError("unwritable", why)),
    );
    await supervisor.start();
    const status = async (headers: Record<string, string>) =>
      (await ask("/desktop/api/status", { headers })).json();
    expect(await status(BEARER)).toMatchObject({ cause: "unwritable", detail: why });
    const seen = await status(cookieOf(shares, shares.create(LINK).token));
    expect(seen).toMatchObject({
      state: "failed",
      cause: "unwritable",
      detail: { code: 127 },
      log: [],
    });
    expect(JSON.stringify(seen)).not.toContain("secret");
  });

  test("is held to the Origin as the owner is", async () => {
    const { ask, shares, upgrade, supervisor } = desk();
    await supervisor.start();
    const guest = cookieOf(shares, shares.create({ ...LINK, role: "control" }).token);
    const headers = { ...guest, ...UPGRADE, origin: "https://evil.test" };
    expect((await ask("/desktop-websockify/", { headers })).status).toBe(403);
    expect(upgrade).not.toHaveBeenCalled();
  });

  test("watches no VNC server that cannot hold one to watching", async () => {
    const { ask, shares, supervisor, upgrade } = desk();
    const guest = cookieOf(shares, shares.create(LINK).token);
    await supervisor.start();
    const answer = await ask("/desktop-websockify/", { headers: { ...guest, ...UPGRADE } });
    expect([answer.status, await answer.json()]).toEqual([
      502,
      { cause: "no-watching", detail: {} },
    ]);
    expect(upgrade).not.toHaveBeenCalled();
    const make = { method: "POST", body: JSON.stringify(LINK) };
    const headers = { ...BEARER, "content-type": "application/json" };
    const made = await ask("/desktop/api/shares", { ...make, headers });
    expect([made.status, await made.json()]).toEqual([409, { error: "no-watching", detail: {} }]);
    const wanted = JSON.stringify({ ...LINK, role: "control" });
    expect((await ask("/desktop/api/shares", { ...make, headers, body: wanted })).status).toBe(201);
  });
});

describe("a link", () => {
  const enter = (token: string, headers: Record<string, string> = {}) => ({
    to: `/desktop/?a=b&share=${token}`,
    init: { headers: { accept: "text/html", ...headers } },
  });

  test("is exchanged for a cookie that ends when it does, and leaves the address", async () => {
    const { ask, shares } = desk();
    const { token } = shares.create({ ...LINK, minutes: 5 });
    const { to, init } = enter(token);
    const answer = await ask(to, init);
    expect([answer.status, answer.headers.get("location")]).toEqual([303, "./?a=b"]);
    const cookie = answer.headers
      .getSetCookie()
      .find((set) => set.startsWith(`${nameOf(shares)}=`));
    expect(cookie).toMatch(/; Max-Age=(300|299); Path=\/; HttpOnly; SameSite=Lax$/);
    const page = await ask("/desktop/", { headers: { cookie: cookie?.split(";")[0] ?? "" } });
    expect(await page.text()).toBe("watch ");
  });

  test("is refused when anything in it was changed, or when another server made it", async () => {
    const { ask, shares } = desk();
    const { token } = shares.create(LINK);
    const [id = "", role = "", expires = "", signature = ""] = token.split(".");
    const later = (Number.parseInt(expires, 36) + 1e9).toString(36);
    const forged = [
      [id, "control", expires, signature],
      [id, role, later, signature],
      [id, role, expires, signature.toLowerCase()],
      [id, role, expires],
      ["other", role, expires, signature],
      [new Shares().create(LINK).token],
    ].map((parts) => parts.join("."));
    for (const bad of forged) {
      const { to, init } = enter(bad);
      const answer = await ask(to, init);
      expect([answer.status, answer.headers.has("set-cookie")]).toEqual([403, false]);
      expect(await answer.text()).toBe(
        "login: This link to the desktop has expired or was revoked: ask its owner for a new one.",
      );
      expect((await ask("/desktop/api/status", { headers: cookieOf(shares, bad) })).status).toBe(
        403,
      );
    }
    expect((await ask("/desktop/api/status", { headers: cookieOf(shares, token) })).status).toBe(
      200,
    );
  });

  test("does not make a guest of the owner, and sets a token of an earlier server aside", async () => {
    const { ask, shares } = desk();
    const { token } = shares.create(LINK);
    const own = enter(token, { cookie: `${COOKIE}=${TOKEN}` });
    expect((await ask(own.to, own.init)).headers.has("set-cookie")).toBe(false);
    const stale = enter(token, { cookie: `${COOKIE}=the-token-of-before` });
    const cookies = (await ask(stale.to, stale.init)).headers.getSetCookie();
    expect(cookies.find((set) => set.startsWith(`${COOKIE}=;`))).toContain("Max-Age=0");
    expect(cookies.some((set) => set.startsWith(`${nameOf(shares)}=${token}`))).toBe(true);
  });

  test("lets nobody try tokens: a wrong one is refused with a good link, too", async () => {
    const { ask, shares } = desk();
    const both = `${nameOf(shares)}=${shares.create(LINK).token}; ${COOKIE}=a-wrong-token`;
    expect((await ask("/desktop/api/status", { headers: { cookie: both } })).status).toBe(403);
  });

  test("makes a guest where everyone else is the owner, until the guest leaves", async () => {
    const { ask, shares } = desk({ policy: { kind: "open", allowOrigins: [] } });
    const { token, id } = shares.create(LINK);
    const { to, init } = enter(token);
    const cookie = setCookie(await ask(to, init));
    const page = async (headers: Record<string, string>) => ask("/desktop/", { headers });
    expect(await (await page({ cookie })).text()).toBe("watch ");
    shares.revoke(id);
    expect((await page({ cookie })).status).toBe(403);
    const left = await ask("/desktop/?share=", { headers: { cookie } });
    expect(left.headers.get("set-cookie")).toContain(`${nameOf(shares)}=; Max-Age=0`);
    expect(await (await page({})).text()).toBe("owner files share");
  });

  test("opens the door beside a Hub's log-in, and no further", async () => {
    const { ask, shares } = desk({ policy: { kind: "hub", allowOrigins: [] } });
    const { token, id } = shares.create(LINK);
    const { to, init } = enter(token);
    const cookie = setCookie(await ask(to, init));
    expect(await (await ask("/desktop/", { headers: { cookie } })).text()).toBe("watch ");
    const make = { method: "POST", headers: { cookie, "content-type": "application/json" } };
    expect((await ask("/desktop/api/shares", make)).status).toBe(403);
    shares.revoke(id);
    const after = await ask("/desktop/api/status", { headers: { cookie } });
    expect([after.status, await after.text()]).toEqual([
      403,
      expect.stringContaining("not logged in"),
    ]);
  });

  test("of one server is no business of another on the same host, nor is its cookie", async () => {
    const policy = { kind: "open", allowOrigins: [] } as const;
    const [mine, other] = [desk({ policy }), desk({ policy })];
    const { to, init } = enter(other.shares.create(LINK).token);
    const cookie = setCookie(await other.ask(to, init));
    expect(await (await mine.ask("/desktop/", { headers: { cookie } })).text()).toContain("owner");
    // Behind a proxy that takes the prefix off, and one that leaves it on.
    const pathOf = async (prefix: string, baseUrl = "/") => {
      const { ask, shares } = desk({ policy, baseUrl });
      const address = `${baseUrl}desktop/?share=${shares.create(LINK).token}`;
      const answer = await ask(address, { headers: { "x-forwarded-prefix": prefix } });
      return /; Path=([^;]*)/.exec(answer.headers.get("set-cookie") ?? "")?.[1];
    };
    expect(await pathOf("/user/a@b.c/desktop")).toBe("/user/a@b.c/desktop/");
    expect(await pathOf("/user/ada/desktop/")).toBe("/user/ada/desktop/");
    expect(await pathOf("/user/ada", "/user/ada/desk/")).toBe("/user/ada/desk/");
    expect(await pathOf("/x; Domain=evil.test")).toBe("/");
    expect(await pathOf("//evil.test")).toBe("/");
  });

  test("ends what came by it when its time is over", () => {
    jest.useFakeTimers();
    const shares = new Shares();
    const { token } = shares.create({ ...LINK, minutes: 1 });
    const visitor = shares.visitor(token);
    if (visitor === "over") throw new Error("over at once");
    jest.advanceTimersByTime(59_000);
    expect([visitor.over?.aborted, shares.links.length]).toEqual([false, 1]);
    jest.advanceTimersByTime(1_000);
    expect([visitor.over?.aborted, shares.links.length]).toEqual([true, 0]);
    expect(shares.visitor(token)).toBe("over");
  });

  test("outlives a server that keeps its desktop, and so does its end", () => {
    using dir = tempDir();
    const file = path.join(dir.path, "shares.json");
    const before = new Shares(() => file);
    const [good, bad] = [before.create(LINK), before.create({ ...LINK, role: "control" })];
    before.revoke(bad.id);
    expect(fs.statSync(file).mode & 0o777).toBe(0o600);
    const after = new Shares(() => file);
    expect(after.visitor(good.token)).toMatchObject({ role: "watch", name: "Ada", link: good.id });
    expect(after.visitor(bad.token)).toBe("over");
    expect(new Shares().visitor(good.token)).toBe("over");
  });

  test.each<[unknown, string]>([
    [{ ...LINK, role: "owner" }, "role"],
    [{ ...LINK, minutes: 0 }, "minutes"],
    [{ ...LINK, minutes: 10_081 }, "minutes"],
    [{ ...LINK, name: "x".repeat(61) }, "name"],
    [{ ...LINK, name: "a\nb" }, "name"],
    [{ ...LINK, more: 1 }, ""],
    ["no object", ""],
  ])("is not made of %j", async (body, field) => {
    const { ask, shares } = desk();
    const headers = { ...BEARER, "content-type": "application/json" };
    const init = { method: "POST", headers, body: JSON.stringify(body) };
    const answer = await ask("/desktop/api/shares", init);
    expect([answer.status, await answer.json()]).toEqual([
      400,
      { error: "bad-request", detail: { field } },
    ]);
    expect(shares.links).toEqual([]);
  });

  test("is made by JSON only, and a hundred at most", async () => {
    const { ask, shares } = desk();
    const form = { ...BEARER, "content-type": "text/plain" };
    const init = { method: "POST", body: JSON.stringify(LINK) };
    expect((await ask("/desktop/api/shares", { ...init, headers: form })).status).toBe(415);
    for (let n = 0; n < 100; n++) shares.create(LINK);
    const headers = { ...BEARER, "content-type": "application/json" };
    expect((await ask("/desktop/api/shares", { ...init, headers })).status).toBe(429);
  });
});

// --- with a real server and a real Xvnc ---

const REPORT = 'env >"$HOME/part"; mv "$HOME/part" "$HOME/env"; exec sleep 1000';
type Desk = Awaited<ReturnType<typeof startServer>>;

/** A server whose desktop is nothing but the X server. */
async function start(...args: string[]) {
  const dir = tempDir();
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, `#!/bin/sh\n${REPORT}\n`, { mode: 0o755 });
  const server = await startServer(["--geometry", "640x480", "--xstartup", xstartup, ...args]);
  const env = await sessionEnv(server);
  const stop = async () => {
    await server[Symbol.asyncDispose]();
    dir[Symbol.dispose]();
  };
  return { ...server, env, xstartup, [Symbol.asyncDispose]: stop };
}

async function sessionEnv({ dir }: Pick<Desk, "dir">): Promise<Record<string, string>> {
  const file = path.join(dir, "env");
  await until("the session's environment", () => fs.existsSync(file));
  const pairs = fs.readFileSync(file, "utf8").trim().split("\n");
  return Object.fromEntries(pairs.map((line) => [line.split("=")[0], line.replace(/^.*?=/, "")]));
}

/** Makes a link, and goes in by it: what the browser would then have for a cookie. */
async function link(server: Desk, role: "watch" | "control", name = "") {
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ role, minutes: 60, name });
  const made = await server.ask("desktop/api/shares", { method: "POST", headers, body });
  expect(made.status).toBe(201);
  const { id, address } = (await made.json()) as { id: string; address: string };
  const entered = await fetch(new URL(address, server.url.origin), { redirect: "manual" });
  expect(entered.status).toBe(303);
  const cookie = entered.headers.getSetCookie().find((set) => set.includes("-share-"));
  return { id, cookie: cookie?.split(";")[0] ?? "" };
}

const socketUrl = ({ url }: Desk) => new URL("/desktop-websockify/", url.origin);

/** Pseudo-encodings: what a client takes beside pictures. */
const EXTENDED_SIZE = -308;
const EXTENDED_CLIPBOARD = 0xc0a1e5ce | 0;
const setEncodings = (...encodings: number[]) => {
  const bytes = Buffer.alloc(4 + 4 * encodings.length);
  bytes[0] = 2;
  bytes.writeUInt16BE(encodings.length, 2);
  for (const [n, encoding] of encodings.entries()) bytes.writeInt32BE(encoding, 4 + 4 * n);
  return bytes;
};
/** The one pixel at 0,0: the answer tells that all before it was read, and has 20 bytes. */
const PIXEL = Buffer.from([3, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
const PIXEL_ANSWER = 20;

/** A client that speaks RFB and nothing else, past the handshake. */
async function rawClient(server: Desk, headers: Record<string, string>, encodings = [0]) {
  const client = await openWebSocket(socketUrl(server), { headers });
  const { ws, inbox } = client;
  await inbox.read(12);
  ws.send(Buffer.from("RFB 003.008\n"));
  const types = await inbox.read((await inbox.read(1)).readUInt8());
  ws.send(Uint8Array.of(1));
  expect([types.includes(1), (await inbox.read(4)).readUInt32BE()]).toEqual([true, 0]);
  ws.send(Uint8Array.of(1));
  const init = await inbox.read(24);
  await inbox.read(init.readUInt32BE(20));
  ws.send(setEncodings(...encodings));
  return client;
}

/** Waits until VNC has read all that the client sent; the bytes that came until then. */
async function drained({ ws, inbox }: Awaited<ReturnType<typeof rawClient>>, extra = 0) {
  ws.send(PIXEL);
  const bytes = await inbox.read(PIXEL_ANSWER + extra);
  expect(bytes.subarray(extra, extra + 4)).toEqual(Buffer.from([0, 0, 0, 1]));
  return bytes.subarray(0, extra);
}

const keyEvent = (sym: number, down: number) => {
  const bytes = Buffer.from([4, down, 0, 0, 0, 0, 0, 0]);
  bytes.writeUInt32BE(sym, 4);
  return bytes;
};
const cutText = (text: string) =>
  Buffer.concat([Buffer.from([6, 0, 0, 0, 0, 0, 0, text.length]), Buffer.from(text)]);
const size = (width: number, height: number) => {
  const bytes = Buffer.alloc(24);
  bytes[0] = 251;
  bytes[6] = 1;
  for (const at of [2, 16]) bytes.writeUInt16BE(width, at);
  for (const at of [4, 18]) bytes.writeUInt16BE(height, at);
  return bytes;
};
/** All that would change the desktop: keys by both messages, a pointer, text and a size. */
const MEDDLING = [
  keyEvent(0x61, 1),
  keyEvent(0x61, 0),
  Buffer.from([255, 0, 0, 1, 0, 0, 0, 0x62, 0, 0, 0, 48]),
  Buffer.from([255, 0, 0, 0, 0, 0, 0, 0x62, 0, 0, 0, 48]),
  Buffer.from([5, 0, 0, 17, 0, 23]),
  cutText("pasted by a client"),
  size(800, 600),
];

describe("with a real VNC server,", () => {
  let server: Awaited<ReturnType<typeof start>>;
  beforeAll(async () => {
    server = await start();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const run = async (...command: string[]) => {
    const child = Bun.spawn(command, {
      env: { PATH: process.env.PATH ?? "", ...server.env },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 5_000,
    });
    return await child.stdout.text();
  };
  const copy = async (text: string) => {
    const child = Bun.spawn(["xclip", "-selection", "clipboard", "-i"], {
      env: { PATH: process.env.PATH ?? "", ...server.env },
      stdio: [Buffer.from(text), "ignore", "ignore"],
    });
    expect(await child.exited).toBe(0);
  };
  const desktop = async () => ({
    pointer: /x:(\d+) y:(\d+)/
      .exec(await run("xdotool", "getmouselocation"))
      ?.slice(1)
      .join(),
    size: /current (\d+) x (\d+)/
      .exec(await run("xrandr", "--current"))
      ?.slice(1)
      .join(),
    text: await run("xclip", "-selection", "clipboard", "-o"),
  });
  /** What keys arrive on the desktop. */
  const watchKeys = async () => {
    const child = Bun.spawn(["xev", "-root"], {
      env: { PATH: process.env.PATH ?? "", ...server.env },
      stdio: ["ignore", "pipe", "ignore"],
    });
    const seen = { text: "" };
    void (async () => {
      for await (const chunk of child.stdout) seen.text += Buffer.from(chunk).toString();
    })();
    // It is there once it sees something: a marker of ours, which the owner types.
    await using owner = await rawClient(server, BEARER);
    await until("xev to see keys", () => {
      owner.ws.send(Buffer.concat([keyEvent(0x7a, 1), keyEvent(0x7a, 0)]));
      return seen.text.includes("keysym 0x7a");
    });
    return { seen, [Symbol.dispose]: () => child.kill() };
  };

  test("a raw client with a watch link sees, but cannot type, point, paste or resize; with a control link it can", async () => {
    await copy("on the desktop");
    using keys = await watchKeys();
    const before = await desktop();
    const watch = await link(server, "watch");
    await using watcher = await rawClient(server, { cookie: watch.cookie });
    await drained(watcher);
    // Whole, and cut into single bytes.
    watcher.ws.send(Buffer.concat(MEDDLING));
    for (const byte of Buffer.concat(MEDDLING)) watcher.ws.send(Uint8Array.of(byte));
    await drained(watcher);
    // Word through the X server, to be sure that all of it would have come through.
    expect(await desktop()).toEqual(before);
    expect(keys.seen.text).not.toMatch(/keysym 0x6[12],/);

    const control = await link(server, "control");
    await using controller = await rawClient(server, { cookie: control.cookie }, [
      0,
      EXTENDED_SIZE,
    ]);
    controller.ws.send(Buffer.concat(MEDDLING));
    await until("the control link's client to change it all", async () => {
      const { pointer, size, text } = await desktop();
      return pointer === "17,23" && size === "800,600" && text === "pasted by a client";
    });
    await until(
      "its keys",
      () => /keysym 0x61,/.test(keys.seen.text) && /keysym 0x62,/.test(keys.seen.text),
    );
    controller.ws.send(size(640, 480));
    await until("the first size", async () => (await desktop()).size === "640,480");
  });

  test("a raw client with a watch link gets no clipboard, and the owner does", async () => {
    const watch = await link(server, "watch");
    await using owner = await rawClient(server, BEARER);
    await using watcher = await rawClient(server, { cookie: watch.cookie });
    await using extended = await rawClient(server, { cookie: watch.cookie }, [
      0,
      EXTENDED_CLIPBOARD,
    ]);
    await drained(owner);
    await drained(watcher);
    // What the server can do with clipboards: 8 bytes of header, 4 of flags, 4 of a size. No text.
    expect((await drained(extended, 16)).readInt32BE(4)).toBe(-8);
    await copy("for the owner's eyes only");
    expect((await owner.inbox.read(33)).toString("latin1", 8)).toBe("for the owner's eyes only");
    // Asked for it in so many words, and asked to tell of it.
    const ask = (flags: number) => {
      const bytes = Buffer.alloc(12);
      bytes[0] = 6;
      bytes.writeInt32BE(-4, 4);
      bytes.writeUInt32BE(flags, 8);
      return bytes;
    };
    extended.ws.send(Buffer.concat([ask((1 << 25) | 1), ask((1 << 26) | 1)]));
    const got = [watcher.inbox.total, extended.inbox.total];
    await drained(watcher);
    await drained(extended);
    expect([watcher.inbox.total, extended.inbox.total]).toEqual(got.map((n) => n + PIXEL_ANSWER));
  });

  test.each<[string, (ws: WebSocket) => void]>([
    ["RFB 3.3", (ws) => ws.send(Buffer.from("RFB 003.003\n"))],
    ["no RFB", (ws) => ws.send(Buffer.from("GET / HTTP/1"))],
    [
      "another security type",
      (ws) => ws.send(Buffer.concat([Buffer.from("RFB 003.008\n"), Buffer.of(19)])),
    ],
    [
      "a password that was not asked for, with keys in it",
      (ws) =>
        ws.send(Buffer.concat([Buffer.from("RFB 003.008\n"), Buffer.of(2), Buffer.alloc(16, 1)])),
    ],
    [
      "a message that is not known",
      (ws) =>
        ws.send(
          Buffer.concat([Buffer.from("RFB 003.008\n"), Buffer.of(1, 1, 77), keyEvent(0x61, 1)]),
        ),
    ],
  ])("a watcher that sends %s is ended with 4400", async (_, send) => {
    const watch = await link(server, "watch");
    await using watcher = await openWebSocket(socketUrl(server), {
      headers: { cookie: watch.cookie },
    });
    await watcher.inbox.read(12);
    send(watcher.ws);
    expect((await watcher.closed).code).toBe(CLOSE.malformed);
  });

  test("revoking a link ends its sockets and streams within a second, and nobody else's", async () => {
    const [ada, bob] = [await link(server, "watch", "Ada"), await link(server, "control", "Bob")];
    await using first = await rawClient(server, { cookie: ada.cookie });
    await using second = await rawClient(server, { cookie: ada.cookie });
    await using other = await rawClient(server, { cookie: bob.cookie });
    const stream = await fetch(new URL("/desktop/api/status", server.url.origin), {
      headers: { cookie: ada.cookie, accept: "text/event-stream" },
    });
    const body = stream.text();
    const list = await (await server.ask("desktop/api/shares")).json();
    expect(list).toMatchObject({ canWatch: true, isOpen: false });
    const people = (list as { people: { role: string; name: string; link: string | null }[] })
      .people;
    expect(people.filter(({ link: id }) => id === ada.id)).toHaveLength(2);
    expect(people).toContainEqual(
      expect.objectContaining({ role: "control", name: "Bob", link: bob.id }),
    );

    const since = performance.now();
    const revoked = await server.ask(`desktop/api/shares/${ada.id}`, { method: "DELETE" });
    expect(revoked.status).toBe(200);
    expect([(await first.closed).code, (await second.closed).code]).toEqual([4401, 4401]);
    expect(await body).toContain("data: {");
    expect(performance.now() - since).toBeLessThan(1_000);
    await drained(other);
    const refused = await fetch(new URL("/desktop/", server.url.origin), {
      headers: { cookie: ada.cookie },
    });
    expect(refused.status).toBe(403);
    const again = await server.ask(`desktop/api/shares/${ada.id}`, { method: "DELETE" });
    expect([again.status, await again.json()]).toEqual([
      404,
      { error: "no-such-link", detail: {} },
    ]);
  });

  test("a link takes no more than ten viewers, so that its holder cannot keep the owner out", async () => {
    const watch = await link(server, "watch");
    const open = () => openWebSocket(socketUrl(server), { headers: { cookie: watch.cookie } });
    const guests = await Promise.all(Array.from({ length: 10 }, open));
    await expect(open()).rejects.toThrow("refused");
    const answer = await fetch(socketUrl(server), {
      headers: { ...UPGRADE, cookie: watch.cookie },
    });
    expect(await answer.json()).toEqual({ cause: "too-many-viewers", detail: { limit: 10 } });
    await using owner = await rawClient(server, BEARER);
    await drained(owner);
    const status = await (await server.ask("desktop/api/status")).json();
    expect(status).toMatchObject({ state: "ready", cause: null });
    for (const guest of guests) await guest[Symbol.asyncDispose]();
  });

  test("the password for watching is in a file of mode 0600, and on no command line", async () => {
    const runtime = String(server.env.XAUTHORITY).replace(/\/[^/]*$/, "");
    expect(fs.statSync(path.join(runtime, "passwd")).mode & 0o777).toBe(0o600);
    expect(fs.statSync(path.join(runtime, "passwd")).size).toBe(16);
    expect(server.said.stderr).not.toContain("share=");
  });

  test("a server without sharing offers no password at all, and makes no links", async () => {
    await using closed = await start("--no-share");
    const runtime = String(closed.env.XAUTHORITY).replace(/\/[^/]*$/, "");
    expect(fs.existsSync(path.join(runtime, "passwd"))).toBe(false);
    expect((await closed.ask("desktop/api/shares")).status).toBe(404);
  });

  test("a desktop that is kept can be watched by the same link after its server was killed", async () => {
    using dir = tempDir();
    const vars = { TMPDIR: dir.path, HOME: dir.path };
    const args = ["--keep", "--name", "kept", "--xstartup", server.xstartup];
    const first = await startServer(args, vars);
    await sessionEnv({ dir: dir.path });
    const watch = await link(first, "watch");
    first.child.kill("SIGKILL");
    await first.code;
    await using second = await startServer(args, vars);
    const port = (cookie: string) => cookie.replace(/-\d+-share/, `-${second.url.port}-share`);
    await using watcher = await rawClient(second, { cookie: port(watch.cookie) });
    watcher.ws.send(Buffer.concat(MEDDLING));
    await drained(watcher);
  });
});
