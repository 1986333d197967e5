// The owner of the panels under the bar: which one is open, where it stands, where the focus goes.
//
// A panel is a <section popover id="NAME" class="panel" aria-labelledby="…"> in index.html, with a
// <button id="NAME-button" popovertarget="NAME"> in the bar, and for narrow screens an entry of the
// More menu, <button id="NAME-entry" data-opens="NAME">. A button that is hidden in the markup
// shows from `offer(NAME)` on.

import { byId } from "./dom.ts";

export interface PanelHooks {
  opened?(): void;
  closed?(): void;
}

export interface PanelsPorts {
  focusDesktop(): void;
  /** The last open panel was closed. */
  closed(): void;
}

export class Panels {
  #hooks = new Map<string, PanelHooks>();
  #ports: PanelsPorts;
  #opener: HTMLElement | null = null;

  constructor(ports: PanelsPorts) {
    this.#ports = ports;
    for (const panel of document.querySelectorAll<HTMLElement>("section[popover]")) {
      panel.addEventListener("beforetoggle", (event) => {
        if (event.newState === "open") {
          this.#place(panel);
        }
      });
      panel.addEventListener("toggle", (event) => this.#toggled(panel, event.newState === "open"));
    }
    for (const entry of document.querySelectorAll<HTMLElement>("[data-opens]")) {
      entry.addEventListener("click", () => this.open(entry.dataset.opens ?? ""));
    }
  }

  /** Tells a panel's module of each opening and closing. */
  on(id: string, hooks: PanelHooks): void {
    this.#hooks.set(id, hooks);
  }

  /** Shows the panel's button, or takes it away. */
  offer(id: string, isOffered = true): void {
    for (const name of [`${id}-button`, `${id}-entry`]) {
      document.getElementById(name)?.toggleAttribute("hidden", !isOffered);
    }
  }

  get isAnyOpen(): boolean {
    return openPanel() !== null;
  }

  open(id: string): void {
    this.close();
    byId(id, HTMLElement).showPopover({ source: openerOf(id) });
  }

  close(): void {
    openPanel()?.hidePopover();
  }

  #place(panel: HTMLElement): void {
    const opener = openerOf(panel.id);
    // Only who walks by keyboard wants to stand on the button again; all others want the desktop.
    this.#opener = document.activeElement?.matches("button:focus-visible") ? opener : null;
    const end = document.documentElement.clientWidth - opener.getBoundingClientRect().right;
    panel.style.setProperty("--end", `${Math.round(end)}px`);
  }

  #toggled(panel: HTMLElement, isOpen: boolean): void {
    const hooks = this.#hooks.get(panel.id);
    openerOf(panel.id).toggleAttribute("data-open", isOpen);
    if (isOpen) {
      hooks?.opened?.();
      return;
    }
    hooks?.closed?.();
    const active = document.activeElement;
    const isFree = active === null || active === document.body || active === openerOf(panel.id);
    if (this.isAnyOpen) {
      return;
    }
    // A click elsewhere has put the focus where it belongs.
    if (isFree || panel.contains(active)) {
      this.#returnFocus();
    }
    this.#ports.closed();
  }

  #returnFocus(): void {
    if (this.#opener === null) {
      this.#ports.focusDesktop();
    } else {
      this.#opener.focus();
    }
  }
}

const openPanel = () => document.querySelector<HTMLElement>("section[popover]:popover-open");

// On a narrow screen a panel's own button is not there, and More stands for it.
function openerOf(id: string): HTMLElement {
  const button = document.getElementById(`${id}-button`);
  return button !== null && button.offsetParent !== null
    ? button
    : byId("more-button", HTMLElement);
}
