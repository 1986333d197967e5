import { describe, expect, test } from "bun:test";
import { type AuthDecision, type AuthPolicy, authorize, GuessLimiter } from "../server.ts";

const TOKEN = "the-right-token";
const HOST = "desk.test:6080";
const LAB = "https://lab.test";

const open: AuthPolicy = { kind: "open", allowOrigins: [LAB] };
const byToken: AuthPolicy = { kind: "token", token: TOKEN, allowOrigins: [LAB] };

const refused = (status: 401 | 403, reason: "no-token" | "wrong-token" | "origin" | "host") =>
  ({ ok: false, status, reason }) as const;
const passed = { ok: true, visitor: { role: "owner", name: "" } } as const;

const tokens: [string, string | undefined, AuthDecision][] = [
  ["no", undefined, refused(401, "no-token")],
  ["an empty", "", refused(401, "no-token")],
  ["a bad", "the-wrong-token", refused(403, "wrong-token")],
  ["the beginning of the", TOKEN.slice(0, -1), refused(403, "wrong-token")],
  ["a longer", `${TOKEN}x`, refused(403, "wrong-token")],
  ["the good", TOKEN, passed],
];

const origins: [string, string | undefined, string, boolean][] = [
  ["no Origin", undefined, HOST, true],
  ["the same Origin", `http://${HOST}`, HOST, true],
  ["the same Origin behind a TLS proxy", "https://desk.test", "desk.test", true],
  ["the default port in the Host only", "https://desk.test", "desk.test:443", true],
  ["the default port of http in the Host only", "http://desk.test", "desk.test:80", true],
  ["the default port in the Origin only", "https://desk.test:443", "desk.test", true],
  ["a Host in capitals", `http://${HOST}`, HOST.toUpperCase(), true],
  ["an IPv6 Host", "http://[::1]:6080", "[::1]:6080", true],
  ["an allowed Origin", LAB, HOST, true],
  ["a foreign Origin", "https://evil.test", HOST, false],
  ['the Origin "null"', "null", HOST, false],
  ["an empty Origin", "", HOST, false],
  ["an Origin that is none", "desk.test:6080", HOST, false],
  ["an Origin of another port of the Host", "http://desk.test:8888", HOST, false],
  ["an Origin without the Host's port", "http://desk.test", HOST, false],
  ["an Origin of the default port for another", "https://desk.test", "desk.test:8443", false],
  ["an Origin that begins as the Host", `http://${HOST}.evil.test`, HOST, false],
  ["an Origin that ends as the Host", "http://evil-desk.test:6080", HOST, false],
  ["an Origin with the Host for a user", `http://${HOST}@evil.test`, HOST, false],
  ["an Origin above the Host", "http://test:6080", HOST, false],
  ["the allowed Origin over http", "http://lab.test", HOST, false],
  ["an Origin that begins as the allowed", `${LAB}.evil.test`, HOST, false],
  ["two Origins", `http://${HOST}, https://evil.test`, HOST, false],
];

const requests: [string, { method: string; upgrade: boolean }, boolean][] = [
  ["GET", { method: "GET", upgrade: false }, false],
  ["HEAD", { method: "HEAD", upgrade: false }, false],
  ["OPTIONS", { method: "OPTIONS", upgrade: false }, false],
  ["POST", { method: "POST", upgrade: false }, true],
  ["PUT", { method: "PUT", upgrade: false }, true],
  ["DELETE", { method: "DELETE", upgrade: false }, true],
  ["a method of the future", { method: "MEND", upgrade: false }, true],
  ["an upgrade", { method: "GET", upgrade: true }, true],
];

describe.each([open, byToken])("authorize with the policy $kind", (policy) => {
  describe.each(requests)("for %s", (_, request, changes) => {
    test.each(origins)("with %s weighs every token", (...row) => {
      const [, origin, host, friendly] = row;
      const decisions = tokens.map(([name, token]) => [
        name,
        authorize({ ...request, host, origin, token }, policy),
      ]);
      const expected = tokens.map(([name, , decided]) => {
        if (changes && !friendly) return [name, refused(403, "origin")];
        return [name, policy.kind === "open" ? passed : decided];
      });
      expect(decisions).toEqual(expected);
    });
  });
});

describe("authorize", () => {
  test("allows no Origin but the own when none is named", () => {
    const policy: AuthPolicy = { kind: "open", allowOrigins: [] };
    const request = { method: "GET", upgrade: true, host: HOST, token: undefined };
    expect(authorize({ ...request, origin: LAB }, policy)).toEqual(refused(403, "origin"));
    expect(authorize({ ...request, origin: `http://${HOST}` }, policy)).toEqual(passed);
  });

  test.each([undefined, "", "desk test", "@"])(
    "takes no Origin for that of the Host %j",
    (host) => {
      const request = { method: "POST", upgrade: false, host, token: TOKEN };
      const decision = authorize({ ...request, origin: `http://${HOST}` }, byToken);
      expect(decision).toEqual(refused(403, "origin"));
    },
  );
});

const hosts: [string | undefined, boolean][] = [
  ["localhost", true],
  ["LOCALHOST:6080", true],
  ["127.0.0.1:6080", true],
  ["127.0.0.1", true],
  ["10.1.2.3:80", true],
  ["[::1]:6080", true],
  ["[fe80::1]", true],
  ["desk.test", true],
  ["desk.test:6080", true],
  ["Desk.Test:443", true],
  ["lab.test", true],
  [undefined, false],
  ["", false],
  ["evil.test", false],
  ["evil.test:6080", false],
  ["a.desk.test", false],
  ["desk.test.evil.test", false],
  ["evil-desk.test", false],
  ["test", false],
  ["localhost.evil.test", false],
  ["evil.localhost.test", false],
  ["127.0.0.1.evil.test", false],
  ["127-0-0-1.evil.test", false],
  ["::1", false],
  ["desk test", false],
  ["desk.test, evil.test", false],
];

describe("authorize with the policy open and the names that it is reached by", () => {
  const policy: AuthPolicy = { ...open, hosts: ["desk.test", "lab.test"] };
  const request = { origin: undefined, token: undefined };

  describe.each(requests)("for %s", (_, sent, changes) => {
    test.each(hosts)("weighs the Host %j", (host, known) => {
      const expected = known ? passed : refused(403, "host");
      expect(authorize({ ...request, ...sent, host }, policy)).toEqual(expected);
      // A foreign name that leads here: Origin and Host agree, unless the Host is none.
      const origin = `http://${host}`;
      const decision = authorize({ ...request, ...sent, host, origin }, policy);
      expect(decision).toEqual(
        changes && !URL.canParse(origin) ? refused(403, "origin") : expected,
      );
    });

    test("refuses a foreign Origin for that reason, where it asks", () => {
      const foreign = { ...request, ...sent, origin: "https://foreign.test" };
      for (const [host, known] of hosts)
        expect(authorize({ ...foreign, host }, policy)).toEqual(
          changes ? refused(403, "origin") : known ? passed : refused(403, "host"),
        );
    });
  });

  test("takes an allowed Origin's name for a Host only when it is listed", () => {
    const { hosts: _, ...anyHost } = policy;
    const asked = { ...request, method: "GET", upgrade: false, host: "lab.test" };
    expect(authorize(asked, { ...policy, hosts: [] })).toEqual(refused(403, "host"));
    expect(authorize(asked, { ...policy, hosts: ["lab.test"] })).toEqual(passed);
    expect(authorize({ ...asked, host: "evil.test" }, anyHost)).toEqual(passed);
  });

  test("needs no entry for an address, even when none is listed", () => {
    const asked = { ...request, method: "POST", upgrade: false };
    for (const host of ["localhost:1", "127.0.0.1:1", "[::1]:1"])
      expect(authorize({ ...asked, host }, { ...policy, hosts: [] })).toEqual(passed);
  });

  test.each(tokens)("is passed by no token: %s token", (_, token) => {
    const asked = { method: "GET", upgrade: true, origin: undefined, token };
    expect(authorize({ ...asked, host: "evil.test" }, policy)).toEqual(refused(403, "host"));
    expect(authorize({ ...asked, host: "desk.test" }, policy)).toEqual(passed);
  });

  // --host MyBox is listed as it was written, and a URL's name is in small letters.
  test("knows a name that is listed in capitals", () => {
    const asked = { ...request, method: "GET", upgrade: false, host: "desk.test" };
    expect(authorize(asked, { ...policy, hosts: ["Desk.Test"] })).toEqual(passed);
  });
});

/** A clock that goes on when the test says so. */
function clock() {
  const waits: number[] = [];
  const wakes: (() => void)[] = [];
  const sleep = (ms: number) => {
    waits.push(ms);
    return new Promise<void>((resolve) => wakes.push(resolve));
  };
  return { waits, sleep, wake: () => wakes.shift()?.() };
}

describe("GuessLimiter", () => {
  test("answers each wrong token later than the one before, up to five seconds", async () => {
    const limiter = new GuessLimiter();
    const waits: number[] = [];
    for (let guess = 0; guess < 9; guess += 1)
      await limiter.punish(async (ms) => void waits.push(ms));
    expect(waits).toEqual([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
  });

  test("stays at five seconds, however many guesses there were", async () => {
    const limiter = new GuessLimiter();
    const waits: number[] = [];
    for (let guess = 0; guess < 2_000; guess += 1)
      await limiter.punish(async (ms) => void waits.push(ms));
    expect(new Set(waits.slice(6))).toEqual(new Set([5_000]));
  });

  test("makes guesses at the same time wait as long as guesses in a row", () => {
    const limiter = new GuessLimiter();
    const { waits, sleep } = clock();
    for (let guess = 0; guess < 3; guess += 1) void limiter.punish(sleep);
    expect(waits).toEqual([100, 200, 400]);
  });

  test("does not answer before the time is over", async () => {
    const { sleep, wake } = clock();
    let answered = false;
    const punished = new GuessLimiter().punish(sleep).then(() => {
      answered = true;
    });
    await Promise.resolve();
    expect(answered).toBe(false);
    wake();
    await punished;
    expect(answered).toBe(true);
  });

  test("is full with sixteen guesses in flight, and has room again when one is answered", async () => {
    const limiter = new GuessLimiter();
    const { sleep, wake } = clock();
    const guesses: Promise<void>[] = [];
    for (let guess = 0; guess < 16; guess += 1) {
      expect(limiter.full).toBe(false);
      guesses.push(limiter.punish(sleep));
    }
    expect(limiter.full).toBe(true);
    wake();
    await guesses[0];
    expect(limiter.full).toBe(false);
  });

  test("forgives after a right token", async () => {
    const limiter = new GuessLimiter();
    const waits: number[] = [];
    const note = async (ms: number) => void waits.push(ms);
    await limiter.punish(note);
    await limiter.punish(note);
    limiter.forgive();
    await limiter.punish(note);
    expect(waits).toEqual([100, 200, 100]);
  });
});
