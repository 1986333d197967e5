// The page's wiring: finds the parts, makes the owners, and binds each listener once for life.

import { Card, isFocusFree } from "./card.ts";
import { Clipboard } from "./clipboard.ts";
import { byId } from "./dom.ts";
import type { Notice } from "./notice.ts";
import { type Status, websocketUrl, withTicket } from "./rules.ts";
import { Screen } from "./screen.ts";
import { type Ports, Session, type State } from "./session.ts";
import { askStatus, postOrder, StatusFeed } from "./status.ts";
import { createText, isTextKey, type Text } from "./text.ts";

const reloadedKey = "jupyter-desktop:reloaded-for";

/** Starts the page. */
function start(): void {
  const { base = "./", version = "", ticket = "" } = document.body.dataset;
  const text = createText(navigator.languages);
  fillLabels(text);
  const title = createTitle();
  const statusUrl = withTicket(`${base}desktop/api/status`, ticket);
  // By this word the page asks how its connection ended: a proxy may pass no close code on.
  const page = crypto.getRandomValues(new Uint32Array(4)).join("-");

  const clipboard = createClipboard(text, {
    send: (value) => session.sendClipboard(value),
    closed: () => session.focus(),
  });
  const screen = new Screen(
    {
      container: byId("screen", HTMLElement),
      frame: byId("frame", HTMLElement),
      label: text("screen.label"),
    },
    { clipboard: (value) => clipboard.received(value), desktopName: title.setName },
  );
  const card = createCard(text, (action) => session.act(action));
  const feed = new StatusFeed(
    statusUrl,
    (status) => session.heard(status),
    () => session.feedLost(),
  );
  const session: Session = new Session({
    text,
    connect: (events) =>
      screen.connect(
        withTicket(`${websocketUrl(location.href, base)}?page=${page}`, ticket),
        events,
      ),
    ask: () => askStatus(withTicket(`${base}desktop/api/status?page=${page}`, ticket)),
    order: (what) => postOrder(withTicket(`${base}desktop/api/${what}`, ticket)),
    feed,
    show: (state, notice) => {
      card.show(state, notice);
      title.setState(state, notice);
      if (state === "connected") {
        clipboard.connected();
        takeFocus(session);
      }
    },
    forgetFrame: () => screen.forgetFrame(),
    reload: () => location.reload(),
    isOutdated: (status) => isOutdated(status, version),
    ...browserPorts,
  });
  bindWakeUps(session);
  session.start();
}

const browserPorts = {
  isVisible: () => document.visibilityState === "visible",
  isOnline: () => navigator.onLine,
  after: (ms, run) => {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
  random: Math.random,
} satisfies Partial<Ports>;

function bindWakeUps(session: Session): void {
  const wake = () => session.wake();
  window.addEventListener("online", wake);
  window.addEventListener("pageshow", wake);
  document.addEventListener("visibilitychange", wake);
  // Captured, because noVNC stops these events at its canvas.
  const touched = () => session.touched();
  window.addEventListener("keydown", touched, { capture: true, passive: true });
  window.addEventListener("pointerdown", touched, { capture: true, passive: true });
}

// In a frame of another page, such as a panel of JupyterLab, the focus is only kept, never stolen.
function takeFocus(session: Session): void {
  if (isFocusFree() && (document.hasFocus() || window === window.top)) {
    session.focus();
  }
}

// One reload a version: should a proxy's cache answer with the old page, it must not go on for ever.
function isOutdated(status: Status, version: string): boolean {
  if (status.version === "" || version === "" || status.version === version) {
    return false;
  }
  try {
    const isTried = sessionStorage.getItem(reloadedKey) === status.version;
    sessionStorage.setItem(reloadedKey, status.version);
    return !isTried;
  } catch {
    // Storage is shut off: without the guard, stay on the old page.
    return false;
  }
}

function fillLabels(text: Text): void {
  for (const element of document.querySelectorAll<HTMLElement>("[data-text], [data-label]")) {
    const { text: textKey = "", label = "" } = element.dataset;
    if (isTextKey(textKey)) {
      element.textContent = text(textKey);
    }
    if (isTextKey(label)) {
      element.setAttribute("aria-label", text(label));
    }
  }
}

function createTitle() {
  const title = document.title;
  let name = "";
  let prefix = "";
  const write = () => {
    document.title = `${prefix}${title}${name === "" ? "" : ` – ${name}`}`;
  };
  return {
    setName: (next: string) => {
      name = next;
      write();
    },
    setState: (state: State, notice: Notice | null) => {
      prefix = state === "connected" ? "● " : "○ ";
      name = notice === null ? name : notice.title;
      write();
    },
  };
}

function createClipboard(
  text: Text,
  ports: { send(value: string): boolean; closed(): void },
): Clipboard {
  return new Clipboard(
    {
      panel: byId("clipboard", HTMLElement),
      field: byId("clipboard-text", HTMLTextAreaElement),
      note: byId("clipboard-note", HTMLElement),
      copy: byId("clipboard-copy", HTMLButtonElement),
      paste: byId("clipboard-paste", HTMLButtonElement),
    },
    { text, ...ports },
  );
}

function createCard(text: Text, act: ConstructorParameters<typeof Card>[1]["act"]): Card {
  return new Card(
    {
      status: byId("status", HTMLElement),
      overlay: byId("notice", HTMLElement),
      title: byId("notice-title", HTMLElement),
      body: byId("notice-body", HTMLElement),
      command: byId("notice-command", HTMLElement),
      commandText: byId("notice-command-text", HTMLElement),
      commandCopy: byId("notice-command-copy", HTMLButtonElement),
      log: byId("notice-log", HTMLDetailsElement),
      logText: byId("notice-log-text", HTMLElement),
      action: byId("notice-action", HTMLButtonElement),
    },
    { text, act },
  );
}

start();
