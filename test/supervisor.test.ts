/** The life of a desktop, with desktops that start and end when the test says so, and a clock of its own. */
import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";
import { type Cause, LogTail, type Running, Supervisor, type Target, VncError } from "../server.ts";

const TARGET: Target = { kind: "unix", path: "/run/vnc.sock" };
const CRASH: Cause = { code: "vnc-exited", detail: { code: 1 } };
const LOG_OUT: Cause = { code: "logged-out", detail: {} };
const quiet = () => {};
/** Lets all that waits for a promise go on. */
const settle = async () => {
  for (let i = 0; i < 50; i++) await Promise.resolve();
};

beforeEach(() => {
  jest.useFakeTimers();
});
afterEach(() => {
  jest.useRealTimers();
});

/** One launch of a desktop, under the test's control. */
class FakeDesktop {
  readonly #up = Promise.withResolvers<Running>();
  readonly #exited = Promise.withResolvers<Cause>();
  readonly #gone = Promise.withResolvers<void>();
  readonly launched = this.#up.promise;
  stops = 0;
  /** A stop takes until gone() is called. */
  lingers = false;

  up(): void {
    const stop = () => {
      this.stops += 1;
      if (!this.lingers) this.gone();
      return this.#gone.promise;
    };
    const { promise: exited } = this.#exited;
    this.#up.resolve({ target: TARGET, display: ":7", vnc: "TigerVNC 1.12", exited, stop });
  }

  fail = (error: unknown) => this.#up.reject(error);
  exit = (cause: Cause) => this.#exited.resolve(cause);
  gone = () => this.#gone.resolve();
}

/** A supervisor, the desktops it launched, and its states in their order. */
function supervise() {
  const desktops: FakeDesktop[] = [];
  const states: string[] = [];
  const launch = () => {
    const desktop = new FakeDesktop();
    desktops.push(desktop);
    return desktop.launched;
  };
  const tail = new LogTail(quiet);
  const supervisor = new Supervisor(launch, tail, quiet);
  supervisor.onChange(() => states.push(supervisor.status.state));
  const desktop = (number = desktops.length) => {
    const found = desktops[number - 1];
    if (!found) throw new Error(`there was no launch ${number}`);
    return found;
  };
  /** Starts one that is up. */
  const started = async () => {
    void supervisor.start();
    await settle();
    desktop().up();
    await settle();
  };
  return { supervisor, tail, desktops, desktop, states, started };
}

describe("Supervisor starts", () => {
  test("nothing by itself", async () => {
    const { supervisor, desktops } = supervise();
    await settle();
    expect(supervisor.status).toMatchObject({ state: "idle", cause: null, display: null });
    expect(desktops).toHaveLength(0);
  });

  test("a desktop, from idle over starting to ready", async () => {
    const { supervisor, desktop, states } = supervise();
    const done = supervisor.start();
    await settle();
    expect(states).toEqual(["starting"]);
    desktop().up();
    await done;
    expect(states).toEqual(["starting", "ready"]);
    expect(supervisor.status).toMatchObject({
      state: "ready",
      cause: null,
      attempt: 0,
      nextRetryMs: null,
      display: ":7",
      vnc: "TigerVNC 1.12",
    });
  });

  test("one for the first that asks for its target", async () => {
    const { supervisor, desktops, desktop } = supervise();
    const target = supervisor.ready();
    await settle();
    expect(desktops).toHaveLength(1);
    desktop().up();
    expect(await target).toEqual(TARGET);
  });

  test("one for all that ask at the same time", async () => {
    const { supervisor, desktops, desktop } = supervise();
    const calls = [supervisor.start(), supervisor.ready(), supervisor.start(), supervisor.ready()];
    supervisor.visit();
    await settle();
    desktop().up();
    expect(await Promise.all(calls)).toEqual([undefined, TARGET, undefined, TARGET]);
    await supervisor.start();
    expect(await supervisor.ready()).toEqual(TARGET);
    expect(desktops).toHaveLength(1);
  });

  test("one at a visit after a log-out, but not at a question for its target", async () => {
    const { supervisor, desktops, desktop, started } = supervise();
    await started();
    desktop().exit(LOG_OUT);
    await settle();
    expect(await supervisor.ready()).toBeUndefined();
    expect(desktops).toHaveLength(1);
    supervisor.visit();
    await settle();
    expect(desktops).toHaveLength(2);
  });

  test("none at a visit while it is up, waits to try again or gave up", async () => {
    const { supervisor, desktops, desktop, started } = supervise();
    await started();
    supervisor.visit();
    await settle();
    desktop().exit(CRASH);
    await settle();
    expect(supervisor.status.state).toBe("backoff");
    supervisor.visit();
    await settle();
    expect(desktops).toHaveLength(1);
    void supervisor.start();
    await settle();
    desktop().fail(new VncError("no-vnc-server"));
    await settle();
    expect(supervisor.status.state).toBe("failed");
    supervisor.visit();
    await settle();
    expect(desktops).toHaveLength(2);
  });

  test("with an empty log tail", async () => {
    const { supervisor, tail, desktop } = supervise();
    void supervisor.start();
    await settle();
    await tail.follow(new Response("Fatal server error\n").body ?? new ReadableStream(), "vnc");
    desktop().fail(new VncError("vnc-exited"));
    await settle();
    expect(supervisor.status.log).toEqual(["Fatal server error"]);
    void supervisor.start();
    await settle();
    expect(supervisor.status.log).toEqual([]);
  });
});

describe("Supervisor stops", () => {
  test("what runs, and says that it was asked to", async () => {
    const { supervisor, desktop, states, started } = supervise();
    await started();
    await supervisor.stop();
    expect(desktop().stops).toBe(1);
    expect(states).toEqual(["starting", "ready", "stopping", "ended"]);
    expect(supervisor.status).toMatchObject({ state: "ended", cause: "stopped", display: null });
    expect(await supervisor.ready()).toBeUndefined();
  });

  test("once for all that ask at the same time", async () => {
    const { supervisor, desktop, states, started } = supervise();
    await started();
    await Promise.all([supervisor.stop(), supervisor.stop(), supervisor.stop()]);
    await supervisor.stop();
    expect(desktop().stops).toBe(1);
    expect(states.filter((state) => state === "ended")).toHaveLength(1);
  });

  test("what is only starting, as soon as it is up", async () => {
    const { supervisor, desktop, desktops } = supervise();
    void supervisor.start();
    await settle();
    const stopped = supervisor.stop();
    await settle();
    desktop().up();
    await stopped;
    expect(desktop().stops).toBe(1);
    expect(supervisor.status).toMatchObject({ state: "ended", cause: "stopped" });
    expect(desktops).toHaveLength(1);
  });

  test("and does not take the exit that it caused for a crash", async () => {
    const { supervisor, desktop, desktops, started } = supervise();
    await started();
    desktop().lingers = true;
    const stopped = supervisor.stop();
    await settle();
    expect(supervisor.status.state).toBe("stopping");
    desktop().exit(CRASH);
    await settle();
    desktop().gone();
    await stopped;
    jest.advanceTimersByTime(60_000);
    await settle();
    expect(supervisor.status).toMatchObject({ state: "ended", cause: "stopped" });
    expect(desktops).toHaveLength(1);
  });

  test("the wait for another try", async () => {
    const { supervisor, desktop, desktops, started } = supervise();
    await started();
    desktop().exit(CRASH);
    await settle();
    await supervisor.stop();
    expect(supervisor.status).toMatchObject({ state: "ended", nextRetryMs: null });
    jest.advanceTimersByTime(60_000);
    await settle();
    expect(desktops).toHaveLength(1);
  });

  test("the next desktop too, after a stop when none ran", async () => {
    const { supervisor, desktop, started } = supervise();
    void supervisor.start();
    await settle();
    desktop().fail(new VncError("no-vnc-server"));
    await settle();
    await supervisor.stop();
    await started();
    await supervisor.stop();
    expect(desktop(2).stops).toBe(1);
    expect(supervisor.status.state).toBe("ended");
  });

  test("nothing that never started", async () => {
    const { supervisor, states } = supervise();
    await supervisor.stop();
    expect(states).toEqual([]);
  });

  test("before it starts the next: a start while it is stopping waits", async () => {
    const { supervisor, desktop, desktops, started, states } = supervise();
    await started();
    desktop().lingers = true;
    const stopped = supervisor.stop();
    await settle();
    const calls = [supervisor.start(), supervisor.start()];
    await settle();
    expect(desktops).toHaveLength(1);
    desktop(1).gone();
    await stopped;
    await settle();
    desktop(2).up();
    await Promise.all(calls);
    expect(desktops).toHaveLength(2);
    expect(states.slice(2)).toEqual(["stopping", "ended", "starting", "ready"]);
  });

  test("and starts at a restart, with one new desktop for all that ask", async () => {
    const { supervisor, desktop, desktops, started } = supervise();
    await started();
    const calls = [supervisor.restart(), supervisor.restart()];
    await settle();
    desktop(2).up();
    await Promise.all(calls);
    expect(desktops.map(({ stops }) => stops)).toEqual([1, 0]);
    expect(supervisor.status.state).toBe("ready");
  });

  test("for good, when a stop is asked for in the middle of a restart", async () => {
    const { supervisor, desktop, desktops, started } = supervise();
    await started();
    desktop().lingers = true;
    void supervisor.restart();
    const stopped = supervisor.stop();
    await settle();
    desktop(1).gone();
    await stopped;
    await settle();
    expect(desktops).toHaveLength(1);
    expect(supervisor.status).toMatchObject({ state: "ended", cause: "stopped" });
  });
});

describe("Supervisor, when the desktop ends by itself,", () => {
  test("takes a log-out as its end: what is left is stopped and nothing is tried again", async () => {
    const { supervisor, desktop, desktops, started } = supervise();
    await started();
    desktop().exit(LOG_OUT);
    await settle();
    expect(desktop().stops).toBe(1);
    expect(supervisor.status).toMatchObject({ state: "ended", cause: "logged-out", attempt: 0 });
    jest.advanceTimersByTime(600_000);
    await settle();
    expect(desktops).toHaveLength(1);
  });

  test("starts it again after a crash, and says when and why", async () => {
    const { supervisor, desktop, desktops, started, states } = supervise();
    await started();
    desktop().exit(CRASH);
    await settle();
    expect(desktop().stops).toBe(1);
    expect(supervisor.status).toMatchObject({
      state: "backoff",
      cause: "vnc-exited",
      detail: { code: 1 },
      attempt: 1,
      nextRetryMs: 1_000,
    });
    jest.advanceTimersByTime(999);
    await settle();
    expect(supervisor.status).toMatchObject({ state: "backoff", nextRetryMs: 1 });
    jest.advanceTimersByTime(1);
    await settle();
    expect(supervisor.status).toMatchObject({ state: "starting", cause: null, nextRetryMs: null });
    desktop(2).up();
    await settle();
    expect(states.slice(2)).toEqual(["stopping", "backoff", "starting", "ready"]);
    expect(desktops).toHaveLength(2);
  });

  test("sees the crash of the next one too, after a stop when none ran", async () => {
    const { supervisor, desktop, started } = supervise();
    await started();
    desktop().exit(CRASH);
    await settle();
    await supervisor.stop();
    await started();
    desktop(2).exit(CRASH);
    await settle();
    expect(supervisor.status.state).toBe("backoff");
  });

  test("waits twice as long after each failure, and gives up after the fifth", async () => {
    const { supervisor, desktop, desktops } = supervise();
    void supervisor.start();
    const waits: (number | null)[] = [];
    for (let failure = 1; failure <= 5; failure++) {
      await settle();
      desktop(failure).fail(new VncError("vnc-timeout"));
      await settle();
      waits.push(supervisor.status.nextRetryMs);
      jest.advanceTimersByTime(supervisor.status.nextRetryMs ?? 0);
    }
    expect(waits).toEqual([1_000, 2_000, 4_000, 8_000, null]);
    expect(supervisor.status).toMatchObject({ state: "failed", cause: "vnc-timeout", attempt: 5 });
    jest.advanceTimersByTime(600_000);
    await settle();
    expect(desktops).toHaveLength(5);
    expect(await supervisor.ready()).toBeUndefined();
  });

  test("does not give up over failures that are far between", async () => {
    const { supervisor, desktop, started } = supervise();
    await started();
    for (let failure = 1; failure <= 8; failure++) {
      jest.advanceTimersByTime(60_000);
      desktop().exit(CRASH);
      await settle();
      expect(supervisor.status.state).toBe("backoff");
      jest.advanceTimersByTime(supervisor.status.nextRetryMs ?? 0);
      await settle();
      desktop().up();
      await settle();
    }
    expect(supervisor.status.state).toBe("ready");
  });

  test("counts from nothing again after a start that was asked for", async () => {
    const { supervisor, desktop } = supervise();
    for (let round = 0; round < 2; round++) {
      void supervisor.start();
      await settle();
      desktop().fail(new VncError("vnc-timeout"));
      await settle();
      expect(supervisor.status).toMatchObject({ state: "backoff", attempt: 1, nextRetryMs: 1_000 });
    }
    jest.advanceTimersByTime(0);
  });

  test.each(["no-vnc-server", "no-desktop", "unwritable", "disk-full", "vnc-password"])(
    "does not try %s again, since only a person can mend it",
    async (code) => {
      const { supervisor, desktop, desktops } = supervise();
      void supervisor.start();
      await settle();
      desktop().fail(new VncError(code, { command: "apt-get install it" }));
      await settle();
      expect(supervisor.status).toMatchObject({
        state: "failed",
        cause: code,
        detail: { command: "apt-get install it" },
        nextRetryMs: null,
      });
      jest.advanceTimersByTime(600_000);
      await settle();
      expect(desktops).toHaveLength(1);
      void supervisor.start();
      await settle();
      expect(desktops).toHaveLength(2);
    },
  );

  test("shows an error of our own as internal, and stays", async () => {
    const { supervisor, desktop } = supervise();
    const done = supervisor.start();
    await settle();
    desktop().fail(new TypeError("oops"));
    await done;
    expect(supervisor.status).toMatchObject({
      state: "failed",
      cause: "internal",
      detail: { error: "oops" },
    });
  });
});

test("Supervisor tells its listeners of each transition, until they leave", async () => {
  const { supervisor, desktop } = supervise();
  const seen: string[] = [];
  const leave = supervisor.onChange(() => seen.push(supervisor.status.state));
  void supervisor.start();
  await settle();
  leave();
  desktop().up();
  await settle();
  expect(seen).toEqual(["starting"]);
});
