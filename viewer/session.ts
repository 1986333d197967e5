// The page's one state machine: when to connect, to wait, to ask and to stop. It has no DOM: all
// that it touches comes in as ports, so that a test drives it without a browser.

import {
  type Action,
  type Notice,
  noticeForEnding,
  noticeForRetry,
  noticeForStatus,
  noticeForStop,
  noticeForUnreachable,
  simpleNotice,
} from "./notice.ts";
import {
  closeCodes,
  decide,
  type Ending,
  isNews,
  type Reply,
  retryDelayMs,
  type Status,
  type StopReason,
  withOwnCode,
} from "./rules.ts";
import type { Text } from "./text.ts";

export type State = "connecting" | "connected" | "waiting" | "stopped";

/** One attempt at a connection, from its socket's first byte to its end. */
export interface Connection {
  /** Ends it without waiting for the other side; `ended` is reported at once. */
  drop(): void;
  /** Finds out whether the line is still alive, and drops it when it is not. */
  probe(): void;
  focus(): void;
  /** A key by its keysym and the code of where it is on a keyboard. */
  sendKey(keysym: number, code: string, isDown: boolean): void;
  /** False when the text could not be sent. */
  sendClipboard(text: string): boolean;
}

export interface ConnectionEvents {
  connected(): void;
  ended(ending: Ending): void;
}

export interface Ports {
  text: Text;
  connect(events: ConnectionEvents): Connection;
  /** Asks for the status once; never rejects. */
  ask(): Promise<Reply>;
  /** Asks for a start or a restart; false when that was refused. Never rejects. */
  order(what: "start" | "restart"): Promise<boolean>;
  /** The event stream of statuses, which reports to `heard` and `feedLost`. */
  feed: { open(): void; close(): void };
  show(state: State, notice: Notice | null): void;
  /** Forgets the last picture of the desktop. */
  forgetFrame(): void;
  reload(): void;
  /** Whether the server has become another version than the page's, and a reload may help. */
  isOutdated(status: Status): boolean;
  isVisible(): boolean;
  isOnline(): boolean;
  /** Runs something later; gives the way to cancel it. */
  after(ms: number, run: () => void): () => void;
  random(): number;
}

// A connection that takes longer than a blink is worth an event stream that tells why.
const slowConnectMs = 1000;

// The server may be starting the desktop before it answers the upgrade; past this it hangs.
const connectTimeoutMs = 30_000;

export class Session {
  #ports: Ports;
  #state: State = "connecting";
  #why: StopReason | null = null;
  #connection: Connection | null = null;
  #ending: Ending | null = null;
  #status: Status | null = null;
  #attempt = 0;
  // Counts every turn that the session takes; an answer to an older turn is stale.
  #turn = 0;
  #cancelTimer: () => void = () => {};
  #next: () => void = () => this.#connect();

  constructor(ports: Ports) {
    this.#ports = ports;
  }

  get state(): State {
    return this.#state;
  }

  start(): void {
    this.#connect();
  }

  focus(): void {
    this.#connection?.focus();
  }

  sendKey(keysym: number, code: string, isDown: boolean): void {
    if (this.#state === "connected") {
      this.#connection?.sendKey(keysym, code, isDown);
    }
  }

  sendClipboard(text: string): boolean {
    return this.#state === "connected" && (this.#connection?.sendClipboard(text) ?? false);
  }

  /** The tab was shown or hidden, came out of the cache, or the network is back. */
  wake(): void {
    if (!this.#ports.isVisible()) {
      this.#ports.feed.close();
      // A connection under way goes on; all else can wait until somebody looks.
      if (this.#state !== "connecting") {
        this.#cancelTimer();
      }
      return;
    }
    if (this.#state === "connected") {
      this.#connection?.probe();
    } else if (this.#state === "waiting") {
      this.#next();
    } else if (this.#why === "desktop") {
      this.#check(null);
    }
  }

  /** The user does something: if the line is dead, that is the moment to find out. */
  touched(): void {
    this.#connection?.probe();
  }

  /** The event stream told a status. */
  heard(status: Status): void {
    if (this.#state === "connected" || (this.#state === "stopped" && this.#why !== "desktop")) {
      return;
    }
    const news = isNews(this.#status, status);
    this.#status = status;
    if (this.#state === "connecting") {
      const notice = noticeForStatus(status, this.#ports.text);
      this.#show("connecting", status.state === "ready" ? this.#connectingNotice() : notice);
    } else if (news || status.state !== "ready") {
      this.#follow(null, { kind: "status", status });
    }
  }

  /** The event stream broke off: from here on the back-off asks. */
  feedLost(): void {
    if (this.#state === "waiting" || this.#why === "desktop") {
      this.#later(() => this.#check(null));
    }
  }

  /** A button of the card was pressed. */
  act(action: Action): void {
    this.#attempt = 0;
    switch (action) {
      case "reload":
        this.#ports.reload();
        return;
      case "resume":
        this.#connect();
        return;
      case "retry":
        this.#next();
        return;
      case "start":
      case "restart":
        void this.#order(action);
    }
  }

  #connect(): void {
    const turn = this.#begin();
    this.#ports.feed.close();
    this.#why = null;
    this.#show("connecting", this.#connectingNotice());
    try {
      this.#connection = this.#ports.connect({
        connected: () => turn === this.#turn && this.#connected(),
        ended: (ending) => turn === this.#turn && this.#ended(ending),
      });
    } catch {
      // The browser forbids WebSockets here, or the last one left something behind: as good as cut.
      this.#ended(unknownEnding);
      return;
    }
    this.#cancelTimer = this.#ports.after(slowConnectMs, () => {
      if (this.#ports.isVisible()) {
        this.#ports.feed.open();
      }
      this.#cancelTimer = this.#ports.after(connectTimeoutMs, () => this.#connection?.drop());
    });
  }

  #connected(): void {
    this.#cancelTimer();
    this.#ports.feed.close();
    this.#attempt = 0;
    this.#status = null;
    this.#show("connected", null);
  }

  #ended(ending: Ending): void {
    this.#begin();
    this.#connection = null;
    if (ending.code === closeCodes.paused) {
      this.#stop("paused", ending);
      return;
    }
    this.#show("waiting", noticeForEnding(ending, this.#ports.text));
    this.#check(ending);
  }

  #check(ending: Ending | null): void {
    const turn = this.#begin();
    this.#ending = ending;
    this.#next = () => this.#check(this.#ending);
    void this.#ports.ask().then((reply) => {
      if (turn === this.#turn) {
        this.#follow(ending, reply);
      }
    });
  }

  async #order(what: "start" | "restart"): Promise<void> {
    const turn = this.#begin();
    this.#ports.feed.close();
    this.#why = null;
    this.#next = () => this.#check(null);
    this.#show("waiting", simpleNotice(this.#ports.text("state.starting")));
    const isDone = await this.#ports.order(what);
    const reply = await this.#ports.ask();
    if (turn !== this.#turn) {
      return;
    }
    this.#follow(null, reply);
    if (!isDone && this.#why === "desktop" && reply.kind === "status") {
      const notice = noticeForStatus(reply.status, this.#ports.text);
      const body = [this.#ports.text("action.refused"), ...notice.body];
      this.#show("stopped", { ...notice, body });
    }
  }

  #follow(ending: Ending | null, reply: Reply): void {
    this.#status = reply.kind === "status" ? reply.status : null;
    if (this.#status !== null && this.#ports.isOutdated(this.#status)) {
      this.#ports.reload();
      return;
    }
    const decision = decide(ending, reply);
    switch (decision.next) {
      case "connect":
        this.#connect();
        return;
      case "retry":
        this.#wait(() => this.#connect(), noticeForRetry(this.#status, this.#ports.text));
        return;
      case "check":
        this.#wait(() => this.#check(null), this.#waitingNotice());
        return;
      case "stop":
        this.#stop(decision.why, ending && withOwnCode(ending, reply));
    }
  }

  #wait(next: () => void, notice: Notice): void {
    this.#begin();
    this.#why = null;
    this.#show("waiting", notice);
    this.#openFeed();
    this.#later(next);
  }

  #stop(why: StopReason, ending: Ending | null): void {
    this.#begin();
    this.#why = why;
    if (why !== "paused") {
      // A log-in that expired must not leave the desktop on view, nor an ended one its picture.
      this.#ports.forgetFrame();
    }
    if (why !== "desktop") {
      this.#ports.feed.close();
      this.#show("stopped", noticeForStop(why, ending, this.#ports.text));
      return;
    }
    const text = this.#ports.text;
    const notice =
      this.#status === null
        ? noticeForEnding(ending ?? unknownEnding, text)
        : noticeForStatus(this.#status, text);
    this.#show("stopped", notice);
    this.#openFeed();
    if (this.#status === null) {
      this.#later(() => this.#check(null));
    }
  }

  // A stream from a server that just did not answer would only fail as well: then the timer asks.
  #openFeed(): void {
    if (this.#status !== null && this.#ports.isVisible()) {
      this.#ports.feed.open();
    } else {
      this.#ports.feed.close();
    }
  }

  #later(next: () => void): void {
    this.#cancelTimer();
    this.#next = next;
    if (this.#ports.isVisible()) {
      const delay = retryDelayMs(this.#attempt, this.#ports.random());
      this.#attempt += 1;
      this.#cancelTimer = this.#ports.after(delay, next);
    }
  }

  #begin(): number {
    this.#cancelTimer();
    this.#cancelTimer = () => {};
    this.#turn += 1;
    return this.#turn;
  }

  #connectingNotice(): Notice {
    return simpleNotice(this.#ports.text("connecting.title"));
  }

  #waitingNotice(): Notice {
    if (this.#status === null) {
      return noticeForUnreachable(this.#ports.isOnline(), this.#ports.text);
    }
    return this.#status.state === "ready"
      ? noticeForRetry(this.#status, this.#ports.text)
      : noticeForStatus(this.#status, this.#ports.text);
  }

  #show(state: State, notice: Notice | null): void {
    this.#state = state;
    this.#ports.show(state, notice);
  }
}

const unknownEnding: Ending = { code: closeCodes.abnormal };
