// Sends files to the desktop, one after the other and each in pieces, and goes on where a piece was
// lost. It has no DOM: all that it touches comes in as ports.

import type { ApiReply, callApi } from "./api.ts";

/** A file to send, and the folders that it was dropped with. */
export interface Source {
  path: string;
  file: Blob;
}

export type UploadState = "waiting" | "sending" | "stalled" | "done" | "failed" | "cancelled";

export interface Upload {
  readonly path: string;
  readonly size: number;
  readonly state: UploadState;
  /** Bytes that have arrived. */
  readonly offset: number;
  /** What the file is called there: not as here, where that name was taken. */
  readonly name: string | null;
  /** Why it failed. */
  readonly code: string;
  readonly detail: Record<string, unknown>;
}

export interface UploadsPorts {
  call: typeof callApi;
  /** The address of what stands below the API's uploads. */
  address(below: string): string;
  /** Waits so long, or less when the network comes back. */
  wait(ms: number): Promise<void>;
  changed(): void;
}

// Small enough that the first bar moves at once, and for a proxy that takes bodies of 1 MiB only.
const firstPieceBytes = 1 << 20;

// The server takes no more: some proxies hold a whole body in memory.
const maxPieceBytes = 8 << 20;
const minPieceBytes = 64 << 10;

// A piece that is through in less than this may be larger; one that takes longer is lost too often.
const quickMs = 1000;
const slowMs = 8000;

const retryDelaysMs: readonly number[] = [500, 1000, 2000, 4000, 8000, 15_000];
const tooLargeStatus = 413;

// The server gives a dead connection up after ten seconds.
const busyMs = 1000;

class Item {
  readonly path: string;
  readonly file: Blob;
  readonly size: number;
  readonly abort = new AbortController();
  state: UploadState = "waiting";
  offset = 0;
  id: string | null = null;
  name: string | null = null;
  code = "";
  detail: Record<string, unknown> = {};

  constructor(source: Source) {
    this.path = source.path;
    this.file = source.file;
    this.size = source.file.size;
  }
}

export class Uploads {
  #ports: UploadsPorts;
  #items: Item[] = [];
  #isRunning = false;
  #pieceBytes = firstPieceBytes;
  /** What a proxy on the way has refused. */
  #tooLargeBytes = Number.POSITIVE_INFINITY;

  constructor(ports: UploadsPorts) {
    this.#ports = ports;
  }

  get all(): readonly Upload[] {
    return this.#items;
  }

  get isBusy(): boolean {
    return this.#items.some(({ state }) => !isOver(state));
  }

  /** Puts files into the queue. Resolves when the queue is empty again. */
  async add(sources: readonly Source[]): Promise<void> {
    this.#items.push(...sources.map((source) => new Item(source)));
    this.#ports.changed();
    if (this.#isRunning) {
      return;
    }
    this.#isRunning = true;
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      await this.#send(next);
    }
    this.#isRunning = false;
  }

  cancel(upload: Upload): void {
    const item = this.#items.find((one) => one === upload);
    if (item === undefined || isOver(item.state)) {
      return;
    }
    this.#enter(item, "cancelled");
    item.abort.abort();
    this.#drop(item.id);
  }

  /** Forgets what is over. */
  clear(): void {
    this.#items = this.#items.filter(({ state }) => !isOver(state));
    this.#ports.changed();
  }

  #call(below: string, call?: Parameters<typeof callApi>[1]): Promise<ApiReply> {
    return this.#ports.call(this.#ports.address(below), call);
  }

  #next(): Item | undefined {
    return this.#items.find(({ state }) => state === "waiting");
  }

  async #send(item: Item): Promise<void> {
    this.#enter(item, "sending");
    let lost = 0;
    while (!isOver(item.state)) {
      const reply = await (item.id === null || lost > 0 ? this.#locate(item) : this.#piece(item));
      if (isOver(item.state)) {
        // Cancelled before it was known what to cancel.
        this.#drop(item.id === null && reply.kind === "ok" ? reply.body.id : null);
      } else if (isLost(reply)) {
        this.#enter(item, "stalled");
        await this.#ports.wait(retryDelaysMs[Math.min(lost, retryDelaysMs.length - 1)] ?? 0);
        lost += 1;
      } else {
        lost = 0;
        await this.#take(item, reply);
      }
    }
  }

  /** Begins an upload, which is not broken off: its id would be lost. Or asks how far it has come. */
  #locate(item: Item): Promise<ApiReply> {
    return item.id === null
      ? this.#call("", { method: "POST", json: { path: item.path, size: item.size } })
      : this.#call(`/${item.id}`, { signal: item.abort.signal });
  }

  async #piece(item: Item): Promise<ApiReply> {
    const end = Math.min(item.offset + this.#pieceBytes, item.size);
    let bytes: ArrayBuffer;
    try {
      bytes = await item.file.slice(item.offset, end).arrayBuffer();
    } catch {
      // It was removed, or changed, since it was chosen; or it is a folder that came as a file.
      return { kind: "refused", code: "unreadable", detail: {} };
    }
    const startedAt = performance.now();
    const reply = await this.#call(`/${item.id}?offset=${item.offset}`, {
      method: "PUT",
      bytes,
      signal: item.abort.signal,
    });
    this.#fit(bytes.byteLength, reply, performance.now() - startedAt);
    return reply;
  }

  /** Chooses the size of the next piece by how this one fared. */
  #fit(bytes: number, reply: ApiReply, ms: number): void {
    if (reply.kind === "unreachable" && reply.status === tooLargeStatus) {
      this.#tooLargeBytes = Math.min(this.#tooLargeBytes, bytes);
      this.#pieceBytes = Math.max(minPieceBytes, Math.floor(bytes / 2));
    } else if (reply.kind !== "ok" || ms > slowMs) {
      this.#pieceBytes = Math.max(minPieceBytes, Math.floor(this.#pieceBytes / 2));
    } else if (ms < quickMs && this.#pieceBytes * 2 < this.#tooLargeBytes) {
      this.#pieceBytes = Math.min(maxPieceBytes, this.#pieceBytes * 2);
    }
  }

  async #take(item: Item, reply: ApiReply): Promise<void> {
    if (reply.kind === "ok") {
      const { id, offset, done } = reply.body;
      item.id = typeof id === "string" ? id : null;
      item.offset = typeof offset === "number" ? offset : 0;
      item.name = typeof done === "string" ? done : null;
      this.#enter(item, item.name === null ? "sending" : "done");
    } else if (reply.kind === "refused") {
      await this.#refused(item, reply);
    } else if (this.#tooLargeBytes <= minPieceBytes) {
      // A proxy that takes not even the smallest piece will not take any.
      this.#fail(item, "proxy", {});
    }
  }

  async #refused(item: Item, { code, detail }: ApiReply & { kind: "refused" }): Promise<void> {
    switch (code) {
      case "no-such-upload":
        // The server was started anew, or it waited for too long.
        item.id = null;
        item.offset = 0;
        return;
      case "busy":
      case "offset":
        // The server still reads a piece whose connection is dead, or had more of it than we know.
        item.offset = Number(detail.offset) || 0;
        await this.#ports.wait(code === "busy" ? busyMs : 0);
        return;
      case "broken-off":
        return;
      default:
        this.#fail(item, code, detail);
    }
  }

  #drop(id: unknown): void {
    if (typeof id === "string") {
      void this.#call(`/${id}`, { method: "DELETE" });
    }
  }

  #fail(item: Item, code: string, detail: Record<string, unknown>): void {
    item.code = code;
    item.detail = detail;
    this.#enter(item, "failed");
    this.#drop(item.id);
  }

  #enter(item: Item, state: UploadState): void {
    item.state = state;
    this.#ports.changed();
  }
}

// What a proxy says of a piece that it finds too large is an answer to that piece.
const isLost = (reply: ApiReply) => reply.kind === "unreachable" && reply.status !== tooLargeStatus;

export const isOver = (state: UploadState) =>
  state === "done" || state === "failed" || state === "cancelled";
