// The owner of the Share panel: makes links, lists them and who is here, and ends them.

import { callApi, refusalSentence } from "./api.ts";
import { byId, copyText } from "./dom.ts";
import type { Text, TextKey } from "./text.ts";

export interface SharePorts {
  text: Text;
  /** The address of what stands below the API's shares. */
  address(below: string): string;
  /** The address that a link's own hangs on. */
  base: string;
}

type Role = "owner" | "control" | "watch";

interface Link {
  id: string;
  role: Role;
  name: string;
  expires: string;
}

interface Person {
  role: Role;
  name: string;
  since: string;
  link: string | null;
}

// Whoever comes or goes is seen this soon, while the panel is open.
const refreshMs = 3000;

export class Share {
  #ports: SharePorts;
  #form = byId("share-form", HTMLFormElement);
  #role = byId("share-role", HTMLSelectElement);
  #minutes = byId("share-minutes", HTMLSelectElement);
  #name = byId("share-name", HTMLInputElement);
  #made = byId("share-made", HTMLElement);
  #address = byId("share-address", HTMLInputElement);
  #note = byId("share-note", HTMLElement);
  #open = byId("share-open", HTMLElement);
  #links = byId("share-links", HTMLElement);
  #people = byId("share-people", HTMLElement);
  #timer: ReturnType<typeof setInterval> | undefined;
  #last = "";

  constructor(ports: SharePorts) {
    this.#ports = ports;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#make();
    });
    byId("share-copy", HTMLElement).addEventListener("click", () => void this.#copy());
    this.#address.addEventListener("focus", () => this.#address.select());
  }

  opened(): void {
    this.#say("");
    void this.#refresh();
    this.#timer = setInterval(() => void this.#refresh(), refreshMs);
  }

  closed(): void {
    clearInterval(this.#timer);
    // A secret does not stay on view.
    this.#address.value = "";
    this.#made.hidden = true;
  }

  async #make(): Promise<void> {
    const { text, address, base } = this.#ports;
    const reply = await callApi(address(""), {
      method: "POST",
      json: {
        role: this.#role.value,
        minutes: Number(this.#minutes.value),
        name: this.#name.value,
      },
    });
    if (reply.kind !== "ok" || typeof reply.body.address !== "string") {
      this.#say(
        reply.kind === "refused"
          ? refusalSentence(reply.code, reply.detail, text)
          : text("unreachable.title"),
      );
      return;
    }
    this.#address.value = new URL(`${base}${reply.body.address}`, location.href).href;
    this.#made.hidden = false;
    this.#name.value = "";
    await this.#refresh();
    await this.#copy();
  }

  async #copy(): Promise<void> {
    const isCopied = await copyText(this.#address.value);
    this.#say(this.#ports.text(isCopied ? "share.copied" : "clipboard.copy-failed"));
  }

  async #end(id: string): Promise<void> {
    const reply = await callApi(this.#ports.address(`/${id}`), { method: "DELETE" });
    const isDone =
      reply.kind === "ok" || (reply.kind === "refused" && reply.code === "no-such-link");
    this.#say(this.#ports.text(isDone ? "share.ended" : "unreachable.title"));
    await this.#refresh();
  }

  async #refresh(): Promise<void> {
    const reply = await callApi(this.#ports.address(""));
    const seen = JSON.stringify(reply);
    // Drawn anew only when something changed, so that a button keeps the focus.
    if (reply.kind !== "ok" || seen === this.#last) {
      return;
    }
    this.#last = seen;
    const { links, people, canWatch, isOpen } = reply.body;
    this.#open.hidden = isOpen !== true;
    const watch = this.#role.querySelector<HTMLOptionElement>('[value="watch"]');
    if (watch !== null && canWatch !== true) {
      watch.disabled = true;
      this.#role.value = "control";
    }
    this.#links.replaceChildren(...(links as Link[]).map((link) => this.#linkRow(link)));
    this.#people.replaceChildren(...(people as Person[]).map((person) => this.#personRow(person)));
  }

  #linkRow({ id, role, name, expires }: Link): HTMLElement {
    const { text } = this.#ports;
    const until = text("share.until", { time: formatTime(expires) });
    const row = createRow(name || text("share.anyone"), `${text(roleKeys[role])}, ${until}`);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text("share.end");
    button.setAttribute("aria-label", text("share.end-of", { name: name || text("share.anyone") }));
    button.addEventListener("click", () => void this.#end(id));
    row.append(button);
    return row;
  }

  #personRow({ role, name, since, link }: Person): HTMLElement {
    const { text } = this.#ports;
    const nobody = link === null ? text("share.owner") : text("share.guest");
    const when = text("share.since", { time: formatTime(since) });
    return createRow(name || nobody, link === null ? when : `${text(roleKeys[role])}, ${when}`);
  }

  #say(sentence: string): void {
    this.#note.textContent = sentence;
  }
}

const roleKeys = {
  owner: "share.owner",
  control: "share.controls",
  watch: "share.watches",
} as const satisfies Record<Role, TextKey>;

function createRow(title: string, note: string): HTMLElement {
  const row = document.createElement("li");
  const words = document.createElement("span");
  const small = document.createElement("span");
  words.className = "name";
  words.textContent = title;
  small.className = "note";
  small.textContent = note;
  row.append(words, small);
  return row;
}

function formatTime(iso: string): string {
  const time = new Date(iso);
  const isToday = time.toDateString() === new Date().toDateString();
  return time.toLocaleString(document.documentElement.lang, {
    ...(isToday ? {} : { weekday: "short" }),
    hour: "numeric",
    minute: "2-digit",
  });
}
