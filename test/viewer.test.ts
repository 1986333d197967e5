import { describe, expect, test } from "bun:test";
import {
  type Action,
  causeSentence,
  type Notice,
  noticeForStatus,
  noticeForStop,
} from "../viewer/notice.ts";
import {
  closeCodes,
  decide,
  isNews,
  parseStatus,
  type Reply,
  retryDelayMs,
  type Status,
  websocketUrl,
  withTicket,
} from "../viewer/rules.ts";
import { type ConnectionEvents, type Ports, Session, type State } from "../viewer/session.ts";
import { causeCodes, createText, formatDuration } from "../viewer/text.ts";

const text = createText(["en"]);

const detailByCause: Record<string, Record<string, unknown>> = {
  "no-vnc-server": { command: "apt-get install tigervnc-standalone-server" },
  "no-desktop": { command: "apt-get install xfce4" },
  "desktop-exited": { code: 127, signal: null, afterMs: 280, xstartup: "/home/ada/.vnc/xstartup" },
  "vnc-exited": { code: null, signal: "SIGKILL", afterMs: 4200 },
  "vnc-timeout": { ms: 10_000 },
  "vnc-unreachable": { target: "tcp:host:5901", error: "connection refused" },
  "not-vnc": { target: "tcp:host:22" },
  unwritable: { path: "/run/user/1000", command: "chmod u+w /run/user/1000" },
  "disk-full": { path: "/tmp" },
  "logged-out": {},
  stopped: {},
  idle: {},
  "vnc-password": {},
  "too-many-viewers": { limit: 50 },
  internal: { error: "out of descriptors" },
};

function status(values: Partial<Status> = {}): Status {
  return {
    state: "ready",
    since: "2026-01-31T12:00:00Z",
    cause: null,
    detail: {},
    attempt: 0,
    nextRetryMs: null,
    log: [],
    version: "0.1.0",
    closed: null,
    ...values,
  };
}

const reply = (values: Partial<Status> = {}): Reply => ({ kind: "status", status: status(values) });

describe("withTicket", () => {
  test.each([
    ["./desktop/api/status", "", "./desktop/api/status"],
    ["./desktop/api/status", "a-b_c", "./desktop/api/status?t=a-b_c"],
    ["./desktop/api/status?page=1", "a-b_c", "./desktop/api/status?page=1&t=a-b_c"],
  ])("makes %s with the ticket %j", (url, ticket, expected) => {
    expect(withTicket(url, ticket)).toBe(expected);
  });
});

describe("websocketUrl", () => {
  test.each([
    ["http://localhost:6080/", "./", "ws://localhost:6080/desktop-websockify/"],
    ["http://localhost:6080/desktop/", "../", "ws://localhost:6080/desktop-websockify/"],
    ["https://hub/user/ada/desktop/", "./", "wss://hub/user/ada/desktop/desktop-websockify/"],
    [
      "https://hub/user/ada/proxy/6080/desktop/",
      "../",
      "wss://hub/user/ada/proxy/6080/desktop-websockify/",
    ],
    ["https://host/desktop/?lang=de#top", "../", "wss://host/desktop-websockify/"],
  ])("hangs on the page %s and the base %s", (page, base, expected) => {
    expect(websocketUrl(page, base)).toBe(expected);
  });
});

describe("retryDelayMs", () => {
  test("doubles from half a second and stays at fifteen", () => {
    const delays = [0, 1, 2, 3, 4, 5, 6, 100].map((attempt) => retryDelayMs(attempt, 0.5));
    expect(delays).toEqual([500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
  });

  test("spreads by a quarter to either side", () => {
    expect(retryDelayMs(1, 0)).toBe(750);
    expect(retryDelayMs(1, 0.999_999)).toBe(1250);
  });
});

describe("parseStatus", () => {
  test("reads what the server sends", () => {
    const sent = status({ state: "backoff", cause: "vnc-exited", log: ["a", "b"], attempt: 2 });
    expect(parseStatus(JSON.parse(JSON.stringify(sent)))).toEqual(sent);
  });

  test("fills what is missing, so that an older server still speaks", () => {
    expect(parseStatus({ state: "ready" })).toEqual(status({ since: "", version: "" }));
  });

  test.each([[null], [[]], ["ready"], [{}], [{ state: "unheard-of" }], [{ state: 1 }]])(
    "takes %j for no status",
    (value) => {
      expect(parseStatus(value)).toBeNull();
    },
  );
});

describe("decide", () => {
  const cases: [string, number | null, Reply, ReturnType<typeof decide>][] = [
    ["a going server with a ready desktop is tried again", 1001, reply(), { next: "retry" }],
    ["a cut line with a ready desktop is tried again", 1006, reply(), { next: "retry" }],
    ["a lost VNC server with a ready desktop is tried again", 1011, reply(), { next: "retry" }],
    ["a cut line without an answer asks again", 1006, { kind: "unreachable" }, { next: "check" }],
    ["a text frame stops", 1003, reply(), { next: "stop", why: "protocol" }],
    ["a frame that is too large stops", 1009, reply(), { next: "stop", why: "protocol" }],
    ["a malformed message stops", 4400, reply(), { next: "stop", why: "protocol" }],
    ["an expired log-in stops", 4401, reply(), { next: "stop", why: "login" }],
    [
      "a refused status stops, whatever the code",
      1006,
      { kind: "login" },
      { next: "stop", why: "login" },
    ],
    ["a pause stops, whatever the status", 4408, reply(), { next: "stop", why: "paused" }],
    ["an ended desktop stops", 4410, reply({ state: "ended" }), { next: "stop", why: "desktop" }],
    ["an ended desktop that was started again is tried", 4410, reply(), { next: "retry" }],
    [
      "an ended desktop stops without an answer too",
      4410,
      { kind: "unreachable" },
      { next: "stop", why: "desktop" },
    ],
    ["a crashed desktop waits", 4411, reply({ state: "backoff" }), { next: "check" }],
    ["a crashed desktop that is back is tried", 4411, reply(), { next: "retry" }],
    [
      "a desktop that gave up stops",
      4412,
      reply({ state: "failed" }),
      { next: "stop", why: "desktop" },
    ],
    [
      "a swallowed code stops by the status",
      1006,
      reply({ state: "ended" }),
      { next: "stop", why: "desktop" },
    ],
    ["a starting desktop is waited for", 1006, reply({ state: "starting" }), { next: "check" }],
    ["a stopping desktop is waited for", null, reply({ state: "stopping" }), { next: "check" }],
    [
      "a desktop that nobody started stops",
      null,
      reply({ state: "idle" }),
      { next: "stop", why: "desktop" },
    ],
    [
      "a ready desktop is connected to at once when nothing failed",
      null,
      reply(),
      { next: "connect" },
    ],
  ];
  test.each(cases)("%s", (...[, code, answer, expected]) => {
    expect(decide(code === null ? null : { code }, answer)).toEqual(expected);
  });

  test("stops for a password that the page cannot give", () => {
    const ending = { code: closeCodes.abnormal, cause: "vnc-password" } as const;
    expect(decide(ending, reply())).toEqual({ next: "stop", why: "protocol" });
  });

  test("takes the server's own close code where a proxy swallowed it, and never over one that came", () => {
    const paused = reply({ closed: 4408 });
    expect(decide({ code: 1005 }, paused)).toEqual({ next: "stop", why: "paused" });
    expect(decide({ code: 1006 }, reply({ closed: 4401 }))).toEqual({ next: "stop", why: "login" });
    expect(decide({ code: 4400 }, paused)).toEqual({ next: "stop", why: "protocol" });
    expect(decide({ code: 1005 }, reply())).toEqual({ next: "retry" });
    expect(decide(null, paused)).toEqual({ next: "connect" });
  });
});

describe("isNews", () => {
  test("tells a new state or moment from an echo", () => {
    expect(isNews(null, status())).toBe(true);
    expect(isNews(status(), status({ log: ["more"] }))).toBe(false);
    expect(isNews(status(), status({ since: "2026-01-31T12:00:01Z" }))).toBe(true);
    expect(isNews(status(), status({ state: "ended" }))).toBe(true);
  });
});

describe("the sentences", () => {
  test("have an example for every cause, and a cause for every example", () => {
    expect(Object.keys(detailByCause).sort()).toEqual([...causeCodes].sort());
  });

  test.each(Object.entries(detailByCause))("tell %s without a hole", (cause, detail) => {
    const notice = noticeForStatus(status({ state: "failed", cause, detail, attempt: 5 }), text);
    const all = [notice.title, ...notice.body].join(" ");
    expect(all).not.toMatch(/[{}?]|undefined|null|\.\./);
    expect(all).not.toContain(text("cause.unknown", { cause }));
  });

  test("name a cause that they do not know", () => {
    expect(causeSentence("sun-spots", {}, text)).toContain("sun-spots");
    expect(causeSentence("unknown", {}, text)).toContain("unknown");
  });

  test("survive a cause without its details", () => {
    for (const cause of causeCodes) {
      expect(causeSentence(cause, {}, text)).not.toContain("undefined");
    }
  });

  test("say how the desktop exited", () => {
    const exited = (detail: Record<string, unknown>) => causeSentence("vnc-exited", detail, text);
    expect(exited({ code: 1, signal: null, afterMs: 280 })).toBe(
      "The VNC server ended with exit code 1 after 280 ms.",
    );
    expect(exited({ code: null, signal: "SIGSEGV" })).toBe(
      "The VNC server was ended by the signal SIGSEGV.",
    );
    expect(exited({})).toBe("The VNC server ended.");
  });

  test("give a line to type only where there is one", () => {
    const command = (cause: string, detail: Record<string, unknown>) =>
      noticeForStatus(status({ state: "failed", cause, detail }), text).command;
    expect(command("no-desktop", { command: "apt-get install xfce4" })).toBe(
      "apt-get install xfce4",
    );
    expect(command("not-vnc", {})).toBeNull();
    // There it is the command that failed, not one to type.
    expect(command("vnc-exited", { command: "x11vnc" })).toBeNull();
  });

  test.each([
    ["failed", "restart", true],
    ["backoff", "restart", true],
    ["ended", "start", false],
    ["idle", "start", false],
    ["starting", undefined, false],
    ["stopping", undefined, false],
  ] as const)("offer for the state %s the action %s", (state, what, isLogOpen) => {
    const notice = noticeForStatus(status({ state, log: ["last words"] }), text);
    expect(notice.action?.what).toBe(what as Action);
    expect(notice.isLogOpen).toBe(isLogOpen);
    expect(notice.log).toEqual(["last words"]);
  });

  test.each([1003, 1009, 4400])("have one of its own for the close code %d", (code) => {
    const notice = noticeForStop("protocol", { code }, text);
    expect(notice.body[0]).not.toBe(text("close.other", { code }));
  });

  test("are English for a language without a table", () => {
    expect(createText(["tlh", "en-GB"])("action.retry")).toBe("Try now");
    expect(createText(["constructor"])("action.retry")).toBe("Try now");
    expect(createText([])("action.retry")).toBe("Try now");
  });

  test.each([
    [280, "280 ms"],
    [1540, "1.5 s"],
    [9940, "9.9 s"],
    [15_000, "15 s"],
    [180_000, "3 min"],
    [10_800_000, "3 h"],
  ])("write %d ms as %s", (ms, expected) => {
    expect(formatDuration(ms, text)).toBe(expected);
  });
});

/** A session with a browser and a server that the test plays. */
function stage(answers: Reply[] = []) {
  const log: string[] = [];
  const lines: ConnectionEvents[] = [];
  const shown: { state: State; notice: Notice | null }[] = [];
  const timers = new Map<number, { ms: number; run: () => void }>();
  const world = { isVisible: true, isOnline: true, isOutdated: false, isOrderDone: true };
  let timerId = 0;
  const ports: Ports = {
    text,
    connect: (events) => {
      log.push("connect");
      lines.push(events);
      return {
        drop: () => events.ended({ code: closeCodes.abnormal }),
        probe: () => log.push("probe"),
        focus: () => {},
        sendKey: () => {},
        sendClipboard: () => true,
      };
    },
    ask: async () => {
      log.push("ask");
      return answers.shift() ?? { kind: "unreachable" };
    },
    order: async (what) => {
      log.push(what);
      return world.isOrderDone;
    },
    feed: { open: () => log.push("feed open"), close: () => {} },
    show: (state, notice) => shown.push({ state, notice }),
    forgetFrame: () => log.push("forget frame"),
    reload: () => log.push("reload"),
    isOutdated: () => world.isOutdated,
    isVisible: () => world.isVisible,
    isOnline: () => world.isOnline,
    after: (ms, run) => {
      timerId += 1;
      const id = timerId;
      timers.set(id, { ms, run });
      return () => timers.delete(id);
    },
    random: () => 0.5,
  };
  const session = new Session(ports);
  return {
    session,
    log,
    shown,
    timers,
    world,
    /** The events of the newest connection. */
    line: () => lines.at(-1) as ConnectionEvents,
    /** What was done since the last call. */
    did: () => log.splice(0),
    delays: () => [...timers.values()].map(({ ms }) => ms),
    fire: () => {
      for (const [id, { run }] of [...timers]) {
        timers.delete(id);
        run();
      }
    },
    settle: async () => {
      for (let turn = 0; turn < 10; turn += 1) {
        await Promise.resolve();
      }
    },
    title: () => shown.at(-1)?.notice?.title,
  };
}

/** A session that was connected, and then was not. */
async function dropped(code: number, ...answers: Reply[]) {
  const play = stage(answers);
  play.session.start();
  play.line().connected();
  play.did();
  play.line().ended({ code });
  await play.settle();
  return play;
}

describe("Session", () => {
  test("connects at once, and asks nothing when that works", async () => {
    const play = stage();
    play.session.start();
    expect(play.session.state).toBe("connecting");
    play.line().connected();
    await play.settle();
    expect(play.session.state).toBe("connected");
    expect(play.did()).toEqual(["connect"]);
    expect(play.timers.size).toBe(0);
  });

  test("listens for the reason when a connection takes long, and gives up one that hangs", async () => {
    const play = stage([reply({ state: "starting" })]);
    play.session.start();
    play.fire();
    expect(play.did()).toEqual(["connect", "feed open"]);
    play.session.heard(status({ state: "starting" }));
    expect(play.session.state).toBe("connecting");
    expect(play.title()).toBe(text("state.starting"));
    play.fire();
    await play.settle();
    expect(play.session.state).toBe("waiting");
  });

  test("asks once after a close, then waits ever longer, and resets that on a connection", async () => {
    const play = await dropped(1006, reply(), reply(), reply());
    expect(play.did()).toEqual(["ask", "feed open"]);
    expect(play.delays()).toEqual([500]);
    play.fire();
    play.line().ended({ code: 1006 });
    await play.settle();
    expect(play.delays()).toEqual([1000]);
    play.fire();
    play.line().connected();
    play.line().ended({ code: 1006 });
    await play.settle();
    expect(play.delays()).toEqual([500]);
  });

  test("goes on at once when the tab is shown or the network is back", async () => {
    const play = await dropped(1001);
    expect(play.delays()).toEqual([500]);
    play.did();
    play.session.wake();
    expect(play.did()).toEqual(["ask"]);
  });

  test("keeps no timer in a hidden tab", async () => {
    const play = await dropped(1001, reply(), reply());
    play.world.isVisible = false;
    play.session.wake();
    expect(play.timers.size).toBe(0);
    play.did();
    play.world.isVisible = true;
    play.session.wake();
    expect(play.did()).toEqual(["connect"]);
  });

  test("sends nothing while paused, whatever happens, and connects on a click", async () => {
    const play = await dropped(closeCodes.paused, reply());
    expect(play.session.state).toBe("stopped");
    play.session.wake();
    play.session.feedLost();
    play.session.heard(status({ since: "later" }));
    await play.settle();
    expect(play.did()).toEqual([]);
    expect(play.timers.size).toBe(0);
    play.session.act("resume");
    expect(play.did()).toEqual(["connect"]);
  });

  test("sends nothing once the log-in expired, and takes the picture away", async () => {
    const play = await dropped(closeCodes.loginExpired, { kind: "login" });
    expect(play.did()).toEqual(["ask", "forget frame"]);
    play.session.wake();
    await play.settle();
    expect(play.did()).toEqual([]);
    play.session.act("reload");
    expect(play.did()).toEqual(["reload"]);
  });

  test("connects at once when the stream tells that a crashed desktop is ready", async () => {
    const play = await dropped(closeCodes.restarting, reply({ state: "backoff" }));
    expect(play.did()).toEqual(["ask", "feed open"]);
    play.session.heard(status({ since: "later" }));
    expect(play.did()).toEqual(["connect"]);
  });

  test("takes no haste from a stream that repeats what is known", async () => {
    const play = await dropped(1011, reply());
    play.did();
    play.session.heard(status());
    expect(play.did()).toEqual([]);
    expect(play.delays()).toEqual([500]);
  });

  test("asks by the back-off when the stream breaks off", async () => {
    const play = await dropped(closeCodes.restarting, reply({ state: "backoff" }));
    play.did();
    play.session.feedLost();
    play.fire();
    expect(play.did()).toEqual(["ask"]);
  });

  test("starts an ended desktop, and connects when it is ready", async () => {
    const play = await dropped(closeCodes.ended, reply({ state: "ended" }), reply());
    expect(play.did()).toEqual(["ask", "forget frame", "feed open"]);
    play.session.act("start");
    expect(play.title()).toBe(text("state.starting"));
    await play.settle();
    expect(play.did()).toEqual(["start", "ask", "connect"]);
  });

  test("says so when a start is refused", async () => {
    const play = await dropped(
      closeCodes.ended,
      reply({ state: "ended" }),
      reply({ state: "ended" }),
    );
    play.world.isOrderDone = false;
    play.session.act("start");
    await play.settle();
    expect(play.shown.at(-1)?.notice?.body).toContain(text("action.refused"));
  });

  test("shows why a desktop gave up", async () => {
    const failed = reply({ state: "failed", cause: "no-desktop", detail: { command: "do it" } });
    const play = await dropped(closeCodes.gaveUp, failed);
    expect(play.shown.at(-1)).toMatchObject({ state: "stopped", notice: { command: "do it" } });
  });

  test("reloads when the server is of another version", async () => {
    const play = stage([reply({ version: "0.2.0" })]);
    play.world.isOutdated = true;
    play.session.start();
    play.line().ended({ code: 1001 });
    await play.settle();
    expect(play.did()).toEqual(["connect", "ask", "reload"]);
  });

  test("ignores what an older connection still says", async () => {
    const play = await dropped(1006, reply());
    const old = play.line();
    play.fire();
    old.connected();
    old.ended({ code: closeCodes.paused });
    expect(play.session.state).toBe("connecting");
  });

  test("probes the line when the user is back, and only then", async () => {
    const play = stage();
    play.session.start();
    play.line().connected();
    play.did();
    play.session.wake();
    play.session.touched();
    expect(play.did()).toEqual(["probe", "probe"]);
  });
});
