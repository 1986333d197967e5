// The owner of the Files panel, of dropping files on the page, and of the box that shows how far they are.

import { callApi, refusalSentence } from "./api.ts";
import { byId, createIcon } from "./dom.ts";
import type { Text } from "./text.ts";
import { isOver, type Source, type Upload, Uploads } from "./uploads.ts";

export interface FilesPorts {
  text: Text;
  /** The address of what stands below the API's files. */
  address(below: string): string;
  /** The address of a drawing. */
  icon(name: string): string;
}

// Long enough to read what a file came to be called.
const goneMs = 8000;

// Of many files those count that move or failed, and the last that arrived.
const maxRows = 6;

const units = ["B", "kB", "MB", "GB", "TB"] as const;

/** The files of the desktop: to it by dropping or choosing, from it by a list. */
export function createFiles(ports: FilesPorts): { opened(): void } {
  const list = new FileList(ports);
  const box = new UploadBox(ports, () => list.refresh());
  const choose = (button: string, input: string) => {
    const field = byId(input, HTMLInputElement);
    byId(button, HTMLButtonElement).addEventListener("click", () => field.click());
    field.addEventListener("change", () => {
      const files = [...(field.files ?? [])];
      box.add(files.map((file) => ({ path: file.webkitRelativePath || file.name, file })));
      // So that the same file can be chosen again.
      field.value = "";
    });
  };
  choose("files-choose", "files-input");
  choose("files-choose-folder", "files-folder-input");
  bindDrop((sources) => box.add(sources));
  return { opened: () => list.refresh() };
}

/** Takes files that are dropped anywhere on the page; with null it only keeps the browser from leaving for them. */
export function bindDrop(take: ((sources: Source[]) => void) | null): void {
  const overlay = byId("drop", HTMLElement);
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  const show = (isShown: boolean) => {
    overlay.hidden = !isShown;
  };
  // Captured, because noVNC stops events at its canvas.
  window.addEventListener(
    "dragover",
    (event) => {
      if (!hasFiles(event) || event.dataTransfer === null) {
        return;
      }
      event.preventDefault();
      event.dataTransfer.dropEffect = take === null ? "none" : "copy";
      show(take !== null);
    },
    { capture: true },
  );
  // Nothing comes after it when the pointer left the window.
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false), {
    capture: true,
  });
  window.addEventListener(
    "drop",
    (event) => {
      show(false);
      if (hasFiles(event) && event.dataTransfer !== null) {
        event.preventDefault();
        // What was dropped is gone after this event: the reading has to begin in it.
        void readDropped(event.dataTransfer).then((sources) => take?.(sources));
      }
    },
    { capture: true },
  );
}

async function readDropped(dropped: DataTransfer): Promise<Source[]> {
  const found = [...dropped.items].map((item) => {
    const entry = item.webkitGetAsEntry();
    return entry === null ? fromFile(item.getAsFile()) : fromEntry(entry);
  });
  return (await Promise.all(found)).flat();
}

const fromFile = (file: File | null): Source[] =>
  file === null ? [] : [{ path: file.name, file }];

async function fromEntry(entry: FileSystemEntry): Promise<Source[]> {
  try {
    if (isFile(entry)) {
      const file = await new Promise<File>((resolve, reject) => entry.file(resolve, reject));
      return [{ path: entry.fullPath.replace(/^\//, ""), file }];
    }
    if (!isFolder(entry)) {
      return [];
    }
    const reader = entry.createReader();
    const sources: Source[] = [];
    // It gives some entries at a time, and none at the end.
    for (;;) {
      const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
        reader.readEntries(resolve, reject),
      );
      if (some.length === 0) {
        return sources;
      }
      for (const inner of some) {
        sources.push(...(await fromEntry(inner)));
      }
    }
  } catch {
    // Not to be read, such as a broken link: the others still are.
    return [];
  }
}

const isFile = (entry: FileSystemEntry): entry is FileSystemFileEntry => entry.isFile;
const isFolder = (entry: FileSystemEntry): entry is FileSystemDirectoryEntry => entry.isDirectory;

/** The box at the foot of the page: what is being sent, how far it is, and what became of it. */
class UploadBox {
  #ports: FilesPorts;
  #arrived: () => void;
  #box = byId("uploads", HTMLElement);
  #title = byId("uploads-title", HTMLElement);
  #rows = byId("uploads-list", HTMLElement);
  #close = byId("uploads-close", HTMLButtonElement);
  #row = new Map<Upload, ReturnType<typeof createRow>>();
  #uploads: Uploads;
  #isDrawing = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(ports: FilesPorts, arrived: () => void) {
    this.#ports = ports;
    this.#arrived = arrived;
    this.#uploads = new Uploads({
      call: callApi,
      address: (below) => ports.address(`/uploads${below}`),
      wait: waitOnline,
      changed: () => this.#draw(),
    });
    this.#close.addEventListener("click", () => this.#clear());
  }

  add(sources: readonly Source[]): void {
    clearTimeout(this.#timer);
    window.addEventListener("beforeunload", askBeforeUnload);
    void this.#uploads.add(sources).then(() => {
      if (this.#uploads.isBusy) {
        return;
      }
      // Not bound for ever: with it, browsers keep no page to go back to.
      window.removeEventListener("beforeunload", askBeforeUnload);
      this.#arrived();
      if (this.#uploads.all.every(({ state }) => state !== "failed")) {
        this.#timer = setTimeout(() => this.#clear(), goneMs);
      }
    });
  }

  #clear(): void {
    clearTimeout(this.#timer);
    this.#uploads.clear();
  }

  // A hundred small files a second are drawn once a frame.
  #draw(): void {
    if (!this.#isDrawing) {
      this.#isDrawing = true;
      requestAnimationFrame(() => {
        this.#isDrawing = false;
        this.#drawNow();
      });
    }
  }

  #drawNow(): void {
    const { text } = this.#ports;
    const all = this.#uploads.all.filter(({ state }) => state !== "cancelled");
    const done = all.filter(({ state }) => state === "done").length;
    const isBusy = this.#uploads.isBusy;
    this.#box.hidden = all.length === 0;
    this.#close.hidden = isBusy;
    const key = isBusy ? "uploads.busy" : "uploads.done";
    const title = text(key, { done, all: all.length });
    if (this.#title.textContent !== title) {
      this.#title.textContent = title;
    }
    const shown = chooseRows(all);
    const rows = shown.map((upload) => {
      const row = this.#row.get(upload) ?? this.#newRow(upload);
      row.draw();
      return row.element;
    });
    const isSame = rows.length === this.#rows.childElementCount;
    if (!isSame || rows.some((row, at) => row !== this.#rows.children[at])) {
      this.#rows.replaceChildren(...rows);
    }
    for (const upload of this.#row.keys()) {
      if (!shown.includes(upload)) {
        this.#row.delete(upload);
      }
    }
  }

  #newRow(upload: Upload) {
    const row = createRow(upload, this.#ports, () => this.#uploads.cancel(upload));
    this.#row.set(upload, row);
    return row;
  }
}

/** Of many: what failed, what arrived last, what moves, and what comes next. */
function chooseRows(all: readonly Upload[]): Upload[] {
  const failed = all.filter(({ state }) => state === "failed").slice(1 - maxRows);
  const others = all.filter(({ state }) => state !== "failed");
  const room = maxRows - failed.length;
  const first = others.findIndex(({ state }) => state !== "done");
  const from = Math.min(first < 0 ? others.length : first - 1, others.length - room);
  return [...failed, ...others.slice(Math.max(0, from)).slice(0, room)];
}

function createRow(upload: Upload, { text, icon }: FilesPorts, cancel: () => void) {
  const element = document.createElement("li");
  const name = document.createElement("span");
  const bar = document.createElement("progress");
  const note = document.createElement("span");
  const stop = document.createElement("button");
  name.className = "name";
  name.textContent = upload.path;
  bar.max = Math.max(1, upload.size);
  bar.setAttribute("aria-label", upload.path);
  note.className = "note";
  stop.type = "button";
  stop.setAttribute("aria-label", text("uploads.cancel", { name: upload.path }));
  stop.title = text("cancel");
  stop.append(createIcon(icon("close")));
  stop.addEventListener("click", cancel);
  element.append(name, stop, bar, note);
  return {
    element,
    draw: () => {
      bar.value = upload.state === "done" ? bar.max : upload.offset;
      bar.hidden = isOver(upload.state);
      stop.hidden = isOver(upload.state);
      element.dataset.state = upload.state;
      note.textContent = noteFor(upload, text);
    },
  };
}

function noteFor(upload: Upload, text: Text): string {
  switch (upload.state) {
    case "waiting":
      return formatBytes(upload.size);
    case "sending":
      return `${formatBytes(upload.offset)} / ${formatBytes(upload.size)}`;
    case "stalled":
      return text("uploads.stalled");
    case "done":
      return upload.name === upload.path.split("/").at(-1)
        ? formatBytes(upload.size)
        : text("uploads.renamed", { name: upload.name ?? "" });
    default:
      return refusalSentence(upload.code, limitAsText(upload.detail), text);
  }
}

// The only limit that a person reads is one of bytes.
const limitAsText = (detail: Record<string, unknown>) =>
  typeof detail.limit === "number" && detail.limit > 1000
    ? { ...detail, limit: formatBytes(detail.limit) }
    : detail;

/** What is in the folder, to be downloaded. */
class FileList {
  #ports: FilesPorts;
  #list = byId("files-list", HTMLElement);
  #path = byId("files-path", HTMLElement);
  #up = byId("files-up", HTMLButtonElement);
  #note = byId("files-note", HTMLElement);
  #folder = "";

  constructor(ports: FilesPorts) {
    this.#ports = ports;
    this.#up.addEventListener("click", () => {
      this.#folder = this.#folder.split("/").slice(0, -1).join("/");
      void this.refresh();
    });
  }

  async refresh(): Promise<void> {
    const { text, address } = this.#ports;
    const folder = this.#folder;
    const reply = await callApi(address(`?path=${encodeURIComponent(folder)}`));
    if (folder !== this.#folder) {
      return;
    }
    this.#path.textContent = folder === "" ? text("files.desktop") : folder;
    this.#up.hidden = folder === "";
    if (reply.kind !== "ok") {
      this.#list.replaceChildren();
      this.#note.textContent =
        reply.kind === "refused"
          ? refusalSentence(reply.code, reply.detail, text)
          : text("unreachable.title");
      return;
    }
    const { entries, total } = reply.body;
    const shown = Array.isArray(entries) ? entries.filter(isEntry) : [];
    this.#list.replaceChildren(...shown.map((entry) => this.#row(entry)));
    const isCut = typeof total === "number" && total > shown.length;
    const more = isCut ? text("files.more", { n: total - shown.length }) : "";
    this.#note.textContent = shown.length === 0 ? text("files.empty") : more;
  }

  #row(entry: Entry): HTMLElement {
    const { address, icon } = this.#ports;
    const path = this.#folder === "" ? entry.name : `${this.#folder}/${entry.name}`;
    const row = document.createElement("li");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = entry.name;
    const label = [createIcon(icon(entry.type === "folder" ? "files" : "download")), name];
    if (entry.type === "folder") {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...label);
      button.addEventListener("click", () => {
        this.#folder = path;
        void this.refresh();
      });
      row.append(button);
      return row;
    }
    const link = document.createElement("a");
    link.href = address(`/download?path=${encodeURIComponent(path)}`);
    link.download = entry.name;
    const size = document.createElement("span");
    size.className = "note";
    size.textContent = formatBytes(entry.size);
    link.title = new Date(entry.modified).toLocaleString(document.documentElement.lang);
    link.append(...label, size);
    row.append(link);
    return row;
  }
}

interface Entry {
  name: string;
  type: "file" | "folder";
  size: number;
  modified: string;
}

function isEntry(value: unknown): value is Entry {
  const { name, type, size, modified } = (value ?? {}) as Record<string, unknown>;
  return (
    typeof name === "string" &&
    (type === "file" || type === "folder") &&
    typeof size === "number" &&
    typeof modified === "string"
  );
}

/** Writes a number of bytes as a person says it: 740 kB, 1.5 GB. */
export function formatBytes(bytes: number): string {
  const power = Math.min(units.length - 1, bytes < 1000 ? 0 : Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** power;
  const digits = power === 0 || value >= 100 ? 0 : 1;
  const number = value.toLocaleString(document.documentElement.lang, {
    maximumFractionDigits: digits,
  });
  return `${number} ${units[power]}`;
}

const askBeforeUnload = (event: Event) => event.preventDefault();

function waitOnline(ms: number): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    window.addEventListener("online", done);
  });
}
