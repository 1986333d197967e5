// The page's wiring: finds the parts, makes the owners, and binds each listener once for life.

import { Bar } from "./bar.ts";
import { Card, isFocusFree } from "./card.ts";
import { Clipboard, type ClipboardPorts, parseWay } from "./clipboard.ts";
import { Display } from "./display.ts";
import { byId, createIcon } from "./dom.ts";
import logo from "./jupyter-logo.svg" with { type: "text" };
import { bindDrop, createFiles } from "./files.ts";
import { Keyboard } from "./keyboard.ts";
import { bindUnloadQuestion, createKeysPanel } from "./keys.ts";
import { type LayoutPorts, Layouts } from "./layout.ts";
import { Meter } from "./meter.ts";
import { createMoreMenu } from "./more.ts";
import type { Notice } from "./notice.ts";
import { Panels } from "./panels.ts";
import { Quality } from "./quality.ts";
import { type Status, websocketUrl, withTicket } from "./rules.ts";
import { Screen, type ScreenEvents } from "./screen.ts";
import { type Ports, Session, type State } from "./session.ts";
import { bindToggle } from "./settings.ts";
import { Share } from "./share.ts";
import { askStatus, postJson, postOrder, StatusFeed } from "./status.ts";
import { Modifiers } from "./strokes.ts";
import { chooseLanguage, createText, isTextKey, type Text, type TextKey } from "./text.ts";
import { Toast } from "./toast.ts";
import { TouchKeyboard } from "./touch.ts";
import { Trackpad } from "./trackpad.ts";
import { Zoom } from "./zoom.ts";

const reloadedKey = "jupyter-desktop:reloaded-for";

/** Starts the page. */
function start(): void {
  const { base = "./", version = "", role = "owner", ticket = "" } = document.body.dataset;
  const text = role === "owner" ? createText(navigator.languages) : guestText(role);
  dress(text, base);
  const title = createTitle();
  const server = createServer(base, ticket);

  const panels = new Panels({
    focusDesktop: () => session.focus(),
    closed: () => bar.settle(),
  });
  const bar: Bar = new Bar({
    isPanelOpen: () => panels.isAnyOpen,
    focusDesktop: () => session.focus(),
    fullscreen: (isOn) => hands.fullscreen(isOn),
  });
  const meter = new Meter();
  const toast = new Toast();
  const clipboard = createClipboard(panels, {
    text,
    tell: (sentence, action) => toast.show(sentence, action),
    send: (value) => session.sendClipboard(value),
    focusDesktop: () => session.focus(),
  });
  const layouts = createLayouts(panels, { text, url: server.address("keyboard") });
  const display = createDisplay(server.address("scale"), role !== "watch");
  const screen = createScreen(
    { base, meter, display, label: text("screen.label"), isWatching: role === "watch" },
    { clipboard: (value) => clipboard.received(value), desktopName: title.setName },
  );
  const card = createCard(text, (action) => session.act(action));
  const feed = new StatusFeed(
    server.address("status"),
    (status) => session.heard(status),
    () => session.feedLost(),
  );
  const session: Session = new Session({
    text,
    connect: (events) => screen.connect(server.socketUrl(), events),
    ...server,
    feed,
    show: (state, told) => {
      const notice = role === "owner" ? told : withoutOrders(told);
      card.show(state, notice);
      title.setState(state, notice);
      hands.forget();
      if (state === "connected") {
        clipboard.connected();
        void layouts?.connected();
        takeFocus(session);
      }
    },
    forgetFrame: () => screen.forgetFrame(),
    reload: () => {
      unload.leave();
      location.reload();
    },
    isOutdated: (status) => isOutdated(status, version),
    ...browserPorts,
  });
  const hands = createHands({ text, toast, session, bar, display });
  const unload = bindUnloadQuestion(() => session.state === "connected");
  createMoreMenu({
    ...{ text, toast, panels, meter, version, ...server },
    healthUrl: `${base}healthz`,
    state: () => session.state,
    leaving: unload.leave,
  });
  offerFeatures(panels, text, base);
  bindWakeUps(session);
  session.start();
}

/** What is asked of the server, and where. */
function createServer(base: string, ticket: string) {
  // By this word the page asks how its connection ended: a proxy may pass no close code on.
  const page = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const address = (what: string) => withTicket(`${base}desktop/api/${what}`, ticket);
  return {
    address,
    socketUrl: () => withTicket(`${websocketUrl(location.href, base)}?page=${page}`, ticket),
    ask: () => askStatus(address(`status?page=${page}`)),
    order: (what: string) => postOrder(address(what)),
  };
}

function createScreen(
  parts: { base: string; meter: Meter; display: Display; label: string; isWatching: boolean },
  events: ScreenEvents,
): Screen {
  const { base, meter, display, label, isWatching } = parts;
  const quality = new Quality(byId("display-quality", HTMLSelectElement), {
    meter,
    probeUrl: `${base}healthz`,
    isVisible: browserPorts.isVisible,
  });
  const [container, frame] = [byId("stage", HTMLElement), byId("frame", HTMLElement)];
  const attachments = [display, quality];
  return new Screen({ container, frame, label, meter, isWatching, attachments }, events);
}

/** What this visitor may use, as the server says: files and sharing are the owner's. */
function offerFeatures(panels: Panels, text: Text, base: string): void {
  const { role = "owner", features = "", ticket = "" } = document.body.dataset;
  const offered = features.split(" ");
  if (offered.includes("files")) {
    const icon = (name: string) => iconAddress(base, name);
    const address = (below: string) => withTicket(`${base}desktop/api/files${below}`, ticket);
    panels.on("files", createFiles({ text, address, icon }));
    panels.offer("files");
  } else {
    bindDrop(null);
  }
  if (offered.includes("share")) {
    const address = (below: string) => withTicket(`${base}desktop/api/shares${below}`, ticket);
    const share = new Share({ text, address, base });
    panels.on("share", { opened: () => share.opened(), closed: () => share.closed() });
    panels.offer("share");
  }
  if (role === "watch") {
    panels.offer("clipboard", false);
    panels.offer("keys", false);
  }
  byId("orders", HTMLElement).hidden = !isOwnDesktop();
  if (role !== "owner") {
    byId("logout-form", HTMLElement).hidden = false;
    byId("account", HTMLElement).hidden = false;
  }
}

/** What a guest reads where the owner reads something else. */
function guestText(role: string): Text {
  const text = createText(navigator.languages);
  const own: Partial<Record<TextKey, TextKey>> = {
    "connected.title": role === "watch" ? "guest.watch" : "guest.control",
    "login.title": "guest.over",
    "login.body": "guest.over-body",
    "action.login": "action.reload",
    "more.logout": "guest.leave",
  };
  return (key, values) => text(own[key] ?? key, values);
}

/** A guest starts no desktop. */
const withoutOrders = (notice: Notice | null): Notice | null =>
  notice?.action?.what === "start" || notice?.action?.what === "restart"
    ? { ...notice, action: null }
    : notice;

/** Keyboard and fingers: all that sends keys and points. */
function createHands(parts: {
  text: Text;
  toast: Toast;
  session: Session;
  bar: Bar;
  display: Display;
}) {
  const { text, toast, session, bar, display } = parts;
  const container = byId("screen", HTMLElement);
  const send: Session["sendKey"] = (keysym, code, isDown) => session.sendKey(keysym, code, isDown);
  const modifiers = new Modifiers(send);
  const keyboard = new Keyboard(container, {
    leave: () => bar.focus(),
    tabbed: () => toast.showOnce("told-leave", text("screen.leave")),
  });
  const keysPanel = createKeysPanel({ text, toast, send, modifiers, keyboard });
  const zoom = new Zoom(container, {
    zoomed: (isZoomed) => {
      display.isZoomed = isZoomed;
    },
  });
  const trackpad = new Trackpad(container, zoom);
  new TouchKeyboard({ text, modifiers, send, focusDesktop: () => session.focus() });
  bindToggle(byId("trackpad-entry", HTMLButtonElement), "trackpad", (isOn) => {
    trackpad.isOn = isOn;
  });
  return {
    fullscreen: keysPanel.fullscreen,
    /** The connection changed: what was held down on the old one is not. */
    forget: () => modifiers.forget(),
  };
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

/** Puts words and drawings where the markup names them. */
function dress(text: Text, base: string): void {
  document.documentElement.lang = chooseLanguage(navigator.languages);
  fillLabels(text);
  drawIcons(base);
}

function fillLabels(text: Text): void {
  for (const element of document.querySelectorAll<HTMLElement>("[data-text], [data-label]")) {
    const { text: textKey = "", label = "" } = element.dataset;
    if (isTextKey(textKey)) {
      element.textContent = text(textKey);
    }
    if (isTextKey(label)) {
      element.setAttribute("aria-label", text(label));
      element.title = text(label);
    }
  }
}

function drawIcons(base: string): void {
  for (const element of document.querySelectorAll<HTMLElement>("[data-icon]")) {
    element.prepend(createIcon(iconAddress(base, element.dataset.icon ?? "")));
  }
}

function iconAddress(base: string, name: string): string {
  const file = name === "clipboard" ? "clipboard.svg" : "icons.svg";
  return `${base}desktop/static/${file}${new URL(import.meta.url).search}#${name}`;
}

// The logo, with a dot for the state: told apart in a row of tabs also without a name.
const iconColours: Record<State, string> = {
  connecting: "#868e99",
  waiting: "#d68a00",
  connected: "#1a9f45",
  stopped: "#c5362b",
};

function createTitle() {
  const title = document.title;
  let name = "";
  let prefix = "";
  const icon = document.querySelector<HTMLLinkElement>('link[rel="icon"]');
  const drawIcon = (state: State) => {
    const dot = `<circle cx="25" cy="25" r="6" fill="${iconColours[state]}" stroke="#fff"/></svg>`;
    icon?.setAttribute(
      "href",
      `data:image/svg+xml,${encodeURIComponent(logo.replace("</svg>", dot))}`,
    );
  };
  const write = () => {
    document.title = `${prefix}${title}${name === "" ? "" : ` – ${name}`}`;
  };
  return {
    setName: (next: string) => {
      name = next;
      write();
    },
    setState: (state: State, notice: Notice | null) => {
      drawIcon(state);
      prefix = state === "connected" ? "● " : "○ ";
      name = notice === null ? name : notice.title;
      write();
    },
  };
}

function createClipboard(
  panels: Panels,
  ports: Pick<ClipboardPorts, "text" | "tell" | "send" | "focusDesktop">,
): Clipboard {
  const way = parseWay(document.body.dataset.clipboard);
  const clipboard = new Clipboard(
    {
      screen: byId("screen", HTMLElement),
      help: byId("clipboard-help", HTMLElement),
      field: byId("clipboard-text", HTMLTextAreaElement),
      note: byId("clipboard-note", HTMLElement),
      copy: byId("clipboard-copy", HTMLButtonElement),
      paste: byId("clipboard-paste", HTMLButtonElement),
    },
    { ...ports, way },
  );
  panels.offer("clipboard", way !== "off");
  panels.on("clipboard", { opened: () => clipboard.opened(), closed: () => clipboard.closed() });
  return clipboard;
}

// What somebody else's VNC server shows cannot be told what to do.
const isOwnDesktop = () => document.body.dataset.desktop === "own";

function createDisplay(scaleUrl: string, mayResize: boolean): Display {
  return new Display(
    {
      screen: byId("screen", HTMLElement),
      stage: byId("stage", HTMLElement),
      fit: byId("display-fit", HTMLSelectElement),
      sharp: byId("display-sharp", HTMLInputElement),
      sharpLabel: byId("display-sharp-label", HTMLElement),
    },
    {
      mayResize,
      setScale: async (factor, signal) =>
        isOwnDesktop() && (await postJson(scaleUrl, { factor }, signal)).isOk,
    },
  );
}

function createLayouts(panels: Panels, ports: LayoutPorts): Layouts | null {
  if (!isOwnDesktop()) {
    return null;
  }
  const layouts = new Layouts(
    {
      slot: byId("keys-layout", HTMLElement),
      select: byId("keys-layout-select", HTMLSelectElement),
      note: byId("keys-layout-note", HTMLElement),
    },
    ports,
  );
  panels.on("keys", { opened: () => void layouts.opened() });
  return layouts;
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
