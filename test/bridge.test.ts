/** The bridge over real sockets: a WebSocket client, the routes' upgrade, and a fake VNC server. */
import { afterEach, describe, expect, jest, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import {
  attach,
  Bridge,
  createApp,
  LogTail,
  Supervisor,
  type Target,
  VncError,
} from "../server.ts";
import { fakeVnc, HANDSHAKE, type Inbox, openWebSocket, tempDir, until } from "./_helpers.ts";

const GREETING = Buffer.from("RFB 003.008\n");
const MIB = 1 << 20;
const KINDS = ["unix", "tcp"] as const;
/** What makes the fakes below go on. */
const ASK = Uint8Array.of(1);
setDefaultTimeout(30_000);
const quiet = () => {};
const sha = (bytes: Uint8Array) => Bun.SHA256.hash(bytes, "hex");
/** One turn of the event loop, in which what was written is sent and read. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

afterEach(() => {
  jest.useRealTimers();
});

/** The app on a port of its own, with one target that is there already. */
async function serve(target: Target, password?: string) {
  const bridge = new Bridge(quiet);
  const supervisor = new Supervisor(attach(target), new LogTail(quiet), quiet);
  await supervisor.start();
  const app = createApp({
    baseUrl: "/",
    title: "",
    policy: { kind: "open", allowOrigins: [] },
    cookieName: "",
    vncPassword: password,
    assets: { hash: "", index: "", login: "", message: "", loginStyle: "", files: {} },
    supervisor,
    bridge,
    log: quiet,
  });
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    websocket: Bridge.websocket,
    fetch: (request, self) => app.fetch(request, { server: self }),
  });
  const url = new URL("desktop-websockify/", server.url);
  return { bridge, url, [Symbol.asyncDispose]: () => server.stop(true) };
}

/** Writes all of it as fast as the bridge takes it; `taken` is told what the kernel took. */
async function pour(peer: Inbox, bytes: Uint8Array, taken: (count: number) => void = quiet) {
  for (let at = 0; at < bytes.length;) {
    const count = peer.socket?.write(bytes, at, bytes.length - at) ?? -1;
    if (count < 0 || peer.over) throw new Error("the bridge closed the connection");
    at += count;
    taken(at);
    if (at < bytes.length) await peer.changed.promise;
  }
}

const greet = (peer: Inbox) => pour(peer, GREETING);
/** A VNC server that sends this screen at the first byte that it is sent. */
const show = (screen: Uint8Array) => async (peer: Inbox) => {
  await greet(peer);
  await peer.read(1);
  await pour(peer, screen);
};
const nextPeer = (vnc: { peers: Inbox[] }) => until("a connection to VNC", () => vnc.peers[0]);

/** Waits until `value` has been the same for a tenth of a second: nothing moves any more. */
async function still(value: () => number) {
  let last = Number.NaN;
  let same = 0;
  await until("a standstill", () => {
    same = value() === last ? same + 1 : 0;
    last = value();
    return same >= 10;
  });
  return last;
}

describe("Bridge carries bytes", () => {
  test.each(KINDS)("to the browser unchanged, from a %s socket", async (kind) => {
    const screen = randomBytes(24 * MIB);
    using vnc = fakeVnc(show(screen), kind);
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    browser.ws.send(ASK);
    expect(await browser.inbox.read(12)).toEqual(GREETING);
    expect(sha(await browser.inbox.read(screen.length))).toBe(sha(screen));
  });

  test.each(KINDS)("from the browser unchanged, to a %s socket", async (kind) => {
    const input = randomBytes(16 * MIB);
    using vnc = fakeVnc(greet, kind);
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    for (let at = 0, size = 1; at < input.length; at += size, size = (size * 7 + 3) % 300_000)
      browser.ws.send(input.subarray(at, at + size));
    const peer = await nextPeer(vnc);
    expect(sha(await peer.read(input.length))).toBe(sha(input));
  });

  test("when VNC sends its greeting one byte at a time", async () => {
    using vnc = fakeVnc(async (peer) => {
      for (const byte of Buffer.concat([GREETING, Buffer.from("rest")])) {
        await pour(peer, Uint8Array.of(byte));
        await turn();
      }
    });
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    expect((await browser.inbox.read(16)).toString()).toBe(`${GREETING}rest`);
  });

  test("when the browser sends one byte at a time", async () => {
    const input = randomBytes(500);
    using vnc = fakeVnc(greet);
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    for (const byte of input) {
      browser.ws.send(Uint8Array.of(byte));
      if (byte % 4 === 0) await turn();
    }
    const peer = await nextPeer(vnc);
    expect(await peer.read(input.length)).toEqual(input);
  });

  test("that came together with the greeting", async () => {
    using vnc = fakeVnc((peer) => pour(peer, Buffer.concat([GREETING, Buffer.from([1, 1])])));
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    expect(await browser.inbox.read(14)).toEqual(Buffer.concat([GREETING, Buffer.from([1, 1])]));
  });

  test("and echoes the subprotocol binary when it is offered, among others or alone", async () => {
    using vnc = fakeVnc(greet);
    await using desk = await serve(vnc.target);
    for (const [protocols, chosen] of [
      [["binary"], "binary"],
      [["base64", "binary"], "binary"],
      [[], ""],
    ] as const) {
      await using browser = await openWebSocket(desk.url, { protocols: [...protocols] });
      expect(browser.ws.protocol).toBe(chosen);
    }
  });
});

describe("Bridge holds back", () => {
  test.each(KINDS)(
    "a VNC server on %s while the browser does not read, and loses nothing",
    async (kind) => {
      const screen = randomBytes(48 * MIB);
      let taken = 0;
      using vnc = fakeVnc(async (peer) => {
        await greet(peer);
        await peer.read(1);
        await pour(peer, screen, (count) => {
          taken = count;
        });
      }, kind);
      await using desk = await serve(vnc.target);
      await using browser = await openWebSocket(desk.url);
      await browser.inbox.read(12);
      browser.ws.pause();
      browser.ws.send(ASK);
      // The bridge and the kernel hold this; TCP's buffers grow to 10 MiB a connection.
      expect(await still(() => taken)).toBeLessThan((kind === "tcp" ? 24 : 12) * MIB);
      browser.ws.resume();
      expect(sha(await browser.inbox.read(screen.length))).toBe(sha(screen));
    },
  );

  test.each(KINDS)("a browser while VNC on %s does not read, and loses nothing", async (kind) => {
    const input = randomBytes(32 * MIB);
    using vnc = fakeVnc(async (peer) => {
      await greet(peer);
      peer.socket?.pause();
    }, kind);
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    for (let at = 0; at < input.length; at += 20_480)
      browser.ws.send(input.subarray(at, at + 20_480));
    await still(() => browser.ws.bufferedAmount);
    expect(input.length - browser.ws.bufferedAmount).toBeLessThan((kind === "tcp" ? 24 : 14) * MIB);
    const peer = await nextPeer(vnc);
    peer.socket?.resume();
    expect(sha(await peer.read(input.length))).toBe(sha(input));
    expect(browser.ws.readyState).toBe(WebSocket.OPEN);
  });

  test("only the session whose browser does not read", async () => {
    const screen = randomBytes(16 * MIB);
    using vnc = fakeVnc(show(screen));
    await using desk = await serve(vnc.target);
    await using slow = await openWebSocket(desk.url);
    slow.ws.pause();
    slow.ws.send(ASK);
    await using quick = await openWebSocket(desk.url);
    quick.ws.send(ASK);
    await quick.inbox.read(12);
    expect(sha(await quick.inbox.read(screen.length))).toBe(sha(screen));
    expect(slow.inbox.total).toBeLessThan(screen.length);
  });
});

describe("Bridge ends a session", () => {
  test.each([
    ["a text frame", "text", 1003],
    ["a frame of more than 1 MiB", new Uint8Array(MIB + 1), 1009],
  ])("with its own code after %s, on both sides", async (_, frame, code) => {
    using vnc = fakeVnc(greet);
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    browser.ws.send(frame);
    expect((await browser.closed).code).toBe(code);
    const peer = await nextPeer(vnc);
    await until("the end of the VNC connection", () => peer.over);
    expect(peer.total).toBe(0);
    expect(desk.bridge.size).toBe(0);
  });

  test.each(["reads", "was slow"])(
    "with 1011 after the last byte of a VNC server that closes, when the browser %s",
    async (how) => {
      const screen = randomBytes(8 * MIB);
      using vnc = fakeVnc(async (peer) => {
        await show(screen)(peer);
        peer.socket?.end();
      });
      await using desk = await serve(vnc.target);
      await using browser = await openWebSocket(desk.url);
      if (how === "was slow") browser.ws.pause();
      browser.ws.send(ASK);
      if (how === "was slow") await still(() => browser.inbox.total);
      browser.ws.resume();
      await browser.inbox.read(12);
      expect(sha(await browser.inbox.read(screen.length))).toBe(sha(screen));
      expect((await browser.closed).code).toBe(1011);
    },
  );

  test("with 1011 after all that a VNC server said that hangs up at once", async () => {
    const refusal = Buffer.from("RFB 003.003\n\0\0\0\0\0\0\0\x1aToo many security failures");
    using vnc = fakeVnc(async (peer) => {
      await pour(peer, refusal);
      peer.socket?.end();
    });
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    expect((await browser.closed).code).toBe(1011);
    expect(await browser.inbox.read(refusal.length)).toEqual(refusal);
  });

  test.each(["closes", "vanishes"])("when the browser %s: the VNC socket ends", async (how) => {
    using vnc = fakeVnc(greet);
    await using desk = await serve(vnc.target);
    await using browser = await openWebSocket(desk.url);
    const peer = await nextPeer(vnc);
    if (how === "closes") browser.ws.close(1000);
    else browser.ws.terminate();
    await until("the end of the VNC connection", () => peer.over);
    expect(desk.bridge.size).toBe(0);
  });

  test("when the browser vanishes before the greeting has come", async () => {
    using vnc = fakeVnc(quiet);
    await using desk = await serve(vnc.target);
    const leaving = new AbortController();
    const asked = fetch(desk.url, { headers: HANDSHAKE, signal: leaving.signal }).catch(quiet);
    const peer = await nextPeer(vnc);
    leaving.abort();
    await asked;
    await pour(peer, GREETING);
    await until("the end of the VNC connection", () => peer.over);
    expect(desk.bridge.size).toBe(0);
  });

  test("in time when the browser vanishes while VNC takes nothing more from it", async () => {
    using vnc = fakeVnc(async (peer) => {
      await greet(peer);
      peer.socket?.pause();
    });
    await using desk = await serve(vnc.target);
    jest.useFakeTimers();
    await using browser = await openWebSocket(desk.url);
    for (let i = 0; i < 3; i++) browser.ws.send(new Uint8Array(MIB));
    for (let turns = 0; turns < 200; turns++) await turn(); // the bridge reads until VNC's side is full
    browser.ws.terminate();
    for (let seconds = 0; seconds < 120 && desk.bridge.size > 0; seconds++) {
      jest.advanceTimersByTime(1_000);
      await turn();
    }
    expect(desk.bridge.size).toBe(0);
  });

  test("and all of them at closeAll, with its code and reason", async () => {
    using vnc = fakeVnc(greet);
    await using desk = await serve(vnc.target);
    await using one = await openWebSocket(desk.url);
    await using two = await openWebSocket(desk.url);
    expect(desk.bridge.size).toBe(2);
    desk.bridge.closeAll(1001, "bye");
    expect(await one.closed).toEqual({ code: 1001, reason: "bye" });
    expect(await two.closed).toEqual({ code: 1001, reason: "bye" });
    expect(desk.bridge.size).toBe(0);
  });

  test("and leaves no descriptor open after 50 of them, however they end", async () => {
    using vnc = fakeVnc(async (peer) => {
      await greet(peer);
      const [how] = await peer.read(1);
      if (how === 0) peer.socket?.end();
      if (how === 1) await pour(peer, new Uint8Array(8 * MIB)); // the browser has left: never taken
      if (how === 2) throw new Error("a reset");
    });
    await using desk = await serve(vnc.target);
    const descriptors = () => fs.readdirSync("/proc/self/fd").length;
    const before = descriptors();
    for (let i = 0; i < 50; i++) {
      await using browser = await openWebSocket(desk.url);
      if (i % 4 === 1) browser.ws.pause();
      browser.ws.send(Uint8Array.of(i % 4));
      if (i % 4 === 0) await browser.closed;
      if (i % 4 === 2) await browser.closed;
    }
    await until("the end of all sessions", () => desk.bridge.size === 0);
    await until("as few descriptors as before", () => descriptors() <= before);
    expect(vnc.peers).toHaveLength(50);
  });
});

describe("Bridge remembers for a page", () => {
  const greets = () => fakeVnc((peer) => peer.socket?.write("RFB 003.008\n"));

  test("the code of its own with which it closed the last session, until the next one", async () => {
    using vnc = greets();
    const bridge = new Bridge(quiet);
    const play = async (page: string, code: number) => {
      const session = await bridge.connect(vnc.target, undefined);
      bridge.isOf(session, page);
      const meanwhile = bridge.closeCode(page);
      session.end(code, "");
      return [meanwhile, bridge.closeCode(page)];
    };
    expect(await play("page-one", 4408)).toEqual([null, 4408]);
    expect(await play("page-two", 1006)).toEqual([null, null]);
    expect(await play("page-one", 1001)).toEqual([null, null]);
    expect(await play("no word", 4408)).toEqual([null, null]);
    expect(bridge.closeCode(undefined)).toBeNull();
  });

  test("no more than the last pages", async () => {
    using vnc = greets();
    const bridge = new Bridge(quiet);
    for (let i = 0; i < 201; i++) {
      const session = await bridge.connect(vnc.target, undefined);
      bridge.isOf(session, `a-page-${i}`);
      session.end(4408, "");
    }
    expect(bridge.closeCode("a-page-0")).toBeNull();
    expect(bridge.closeCode("a-page-1")).toBe(4408);
  });
});

describe("Bridge refuses, before there is a WebSocket,", () => {
  /** How the bridge fails, and what the browser is answered. */
  async function refusal(target: Target) {
    const bridge = new Bridge(quiet);
    const error = await bridge.connect(target, undefined).catch((error: unknown) => error);
    if (!(error instanceof VncError)) throw new Error(`no VncError but ${error}`);
    expect(bridge.size).toBe(0);
    await using desk = await serve(target);
    const answer = await fetch(desk.url, { headers: HANDSHAKE });
    expect(answer.status).toBe(502);
    expect(await answer.json()).toMatchObject({ cause: error.reason.code });
    return error.reason;
  }

  test.each([
    ["another protocol", "HTTP/1.1 200 OK\r\n\r\n"],
    ["a version that is no number", "RFB 003.abc\n"],
    ["a greeting without its end of line", "RFB 003.0081"],
    ["zeros", "\0".repeat(100)],
  ])("a target that greets with %s", async (_, said) => {
    using vnc = fakeVnc((peer) => pour(peer, Buffer.from(said)));
    expect(await refusal(vnc.target)).toMatchObject({
      code: "not-vnc",
      detail: { target: expect.stringContaining(vnc.target.kind) },
    });
    await until("the end of both connections", () => vnc.peers.every((peer) => peer.over));
  });

  test("a unix socket that is not there", async () => {
    using dir = tempDir();
    const target: Target = { kind: "unix", path: path.join(dir.path, "none.sock") };
    expect((await refusal(target)).code).toBe("vnc-unreachable");
  });

  test.each(KINDS)("a %s socket on which nobody listens any more", async (kind) => {
    const vnc = fakeVnc(quiet, kind);
    vnc[Symbol.dispose]();
    expect((await refusal(vnc.target)).code).toBe("vnc-unreachable");
  });

  test.each(["", "RFB 003"])("a target that closes after %p", async (said) => {
    using vnc = fakeVnc(async (peer) => {
      if (said) await pour(peer, Buffer.from(said));
      peer.socket?.end();
    });
    expect(await refusal(vnc.target)).toMatchObject({
      code: "vnc-unreachable",
      detail: { error: expect.stringContaining("closed") },
    });
  });

  test("a target that never answers, after the dial timeout", async () => {
    jest.useFakeTimers();
    using vnc = fakeVnc(quiet);
    const bridge = new Bridge(quiet);
    const outcome = bridge.connect(vnc.target, undefined).catch((error: unknown) => error);
    while (!vnc.peers[0]) await turn();
    jest.advanceTimersByTime(4_999);
    await turn();
    expect(vnc.peers[0].over).toBe(false);
    jest.advanceTimersByTime(1);
    expect(await outcome).toMatchObject({
      reason: { code: "vnc-unreachable", detail: { error: expect.stringContaining("5000 ms") } },
    });
    while (!vnc.peers[0].over) await turn();
  });
});

describe("Bridge logs in to VNC with a password", () => {
  const PASSWORD = "password";
  const CHALLENGE = Buffer.from("000102030405060708090a0b0c0d0e0f", "hex");
  /** Of this challenge and password, by OpenSSL: DES-ECB with the key's bits reversed byte by byte. */
  const ANSWER = Buffer.from("b866924125c8eebb9debc1db61c538e2", "hex");
  const OK = Buffer.alloc(4);
  const FAILED = Buffer.from([0, 0, 0, 1]);

  interface Login {
    version: string;
    types: number[];
  }

  /** Offers the security types; returns the one that is chosen. */
  async function offer(peer: Inbox, { version, types }: Login): Promise<number | undefined> {
    if (version !== "003.003") {
      await pour(peer, Uint8Array.from([types.length, ...types]));
      return (await peer.read(1))[0];
    }
    await pour(peer, Uint8Array.from([0, 0, 0, ...types]));
    return types[0];
  }

  /** The VNC server's side of the handshake; afterwards it only listens. */
  const logIn = (login: Login, seen: string[]) => async (peer: Inbox) => {
    await pour(peer, Buffer.from(`RFB ${login.version}\n`));
    seen.push(`${await peer.read(12)}`.trim());
    const type = await offer(peer, login);
    seen.push(`type ${type}`);
    if (type === 1) return login.version === "003.008" ? pour(peer, OK) : undefined;
    await pour(peer, CHALLENGE);
    const right = (await peer.read(16)).equals(ANSWER);
    seen.push(right ? "right" : "wrong");
    return pour(peer, right ? OK : FAILED);
  };

  const LOGINS: [string, Login, string[]][] = [
    ["RFB 3.3", { version: "003.003", types: [2] }, ["RFB 003.003", "type 2"]],
    ["RFB 3.7", { version: "003.007", types: [16, 2] }, ["RFB 003.007", "type 2"]],
    ["RFB 3.8", { version: "003.008", types: [1, 2] }, ["RFB 003.008", "type 2"]],
    ["RFB 3.889 of macOS", { version: "003.889", types: [30, 2] }, ["RFB 003.008", "type 2"]],
  ];

  test.each(LOGINS)("by %s", async (_, login, expected) => {
    const seen: string[] = [];
    using vnc = fakeVnc(logIn(login, seen));
    const bridge = new Bridge(quiet);
    const session = await bridge.connect(vnc.target, PASSWORD);
    session.end(1000, "");
    expect(seen).toEqual([...expected, "right"]);
  });

  test.each(LOGINS)("by %s, and says so when it is wrong", async (_, login, expected) => {
    const seen: string[] = [];
    using vnc = fakeVnc(logIn(login, seen));
    await using desk = await serve(vnc.target, "guessed");
    const answer = await fetch(desk.url, { headers: HANDSHAKE });
    expect(answer.status).toBe(502);
    expect(await answer.json()).toMatchObject({ cause: "vnc-password" });
    expect(seen).toEqual([...expected, "wrong"]);
    await until("the end of the VNC connection", () => vnc.peers.every((peer) => peer.over));
  });

  test.each(["003.003", "003.007", "003.008"])(
    "and needs none where RFB %s offers none",
    async (version) => {
      const seen: string[] = [];
      using vnc = fakeVnc(logIn({ version, types: [1] }, seen));
      await using desk = await serve(vnc.target, PASSWORD);
      await using browser = await openWebSocket(desk.url);
      expect((await browser.inbox.read(12)).toString()).toBe("RFB 003.008\n");
      expect(seen.at(-1)).toBe("type 1");
    },
  );

  test("and refuses a server that offers only what it does not know", async () => {
    using vnc = fakeVnc(logIn({ version: "003.008", types: [30] }, []));
    const bridge = new Bridge(quiet);
    const outcome = await bridge.connect(vnc.target, PASSWORD).catch((error: unknown) => error);
    expect(outcome).toMatchObject({ reason: { code: "vnc-password" } });
  });

  test.each([
    ["all at once", [12 + 1 + 5]],
    ["one byte at a time", Array.from({ length: 18 }, () => 1)],
    ["across its messages", [5, 8, 3, 2]],
  ])("and shows the browser a server without one, whose answers come %s", async (_, sizes) => {
    using vnc = fakeVnc(logIn({ version: "003.008", types: [2] }, []));
    await using desk = await serve(vnc.target, PASSWORD);
    await using browser = await openWebSocket(desk.url);
    const said = Buffer.from("RFB 003.008\n\x01input");
    let at = 0;
    for (const size of sizes) {
      browser.ws.send(said.subarray(at, at + size));
      at += size;
    }
    const prelude = Buffer.from("RFB 003.008\n\x01\x01\0\0\0\0");
    expect(await browser.inbox.read(prelude.length)).toEqual(prelude);
    const peer = await nextPeer(vnc);
    // The first byte is ClientInit, which is made to share.
    expect((await peer.read(5)).toString()).toBe("\x01nput");
    await pour(peer, Buffer.from("screen"));
    expect((await browser.inbox.read(6)).toString()).toBe("screen");
  });
});
