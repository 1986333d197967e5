/** The page's uploads by their decisions alone: pieces, proxies that refuse them, servers that forget. */
import { describe, expect, test } from "bun:test";
import type { ApiReply, callApi } from "../viewer/api.ts";
import { Uploads } from "../viewer/uploads.ts";

const MiB = 1 << 20;

interface Call {
  method: string;
  url: string;
  bytes: number;
}

/** A server that keeps what it is sent; `meddle` may answer in its place. */
function server(meddle: (call: Call, at: number) => ApiReply | undefined = () => undefined) {
  const calls: Call[] = [];
  const files = new Map<string, { size: number; offset: number; name: string }>();
  const waits: number[] = [];
  let made = 0;
  const answer = (call: Call, json: unknown): ApiReply => {
    if (call.method === "POST") {
      const { path, size } = json as { path: string; size: number };
      files.set(`id${++made}`, { size, offset: 0, name: path });
      return state(`id${made}`);
    }
    const id = /id\d+/.exec(call.url)?.[0] ?? "";
    const file = files.get(id);
    if (!file) return { kind: "refused", code: "no-such-upload", detail: {} };
    if (call.method === "DELETE") files.delete(id);
    if (call.method === "PUT") {
      const offset = Number(/offset=(\d+)/.exec(call.url)?.[1]);
      if (offset !== file.offset)
        return { kind: "refused", code: "offset", detail: { offset: file.offset } };
      file.offset += call.bytes;
    }
    return state(id);
  };
  const state = (id: string): ApiReply => {
    const { size = 0, offset = 0, name = "" } = files.get(id) ?? {};
    return { kind: "ok", body: { id, offset, size, done: offset === size ? name : null } };
  };
  const call: typeof callApi = async (url, { method = "GET", json, bytes, signal } = {}) => {
    const made = { method, url, bytes: bytes?.byteLength ?? 0 };
    calls.push(made);
    const reply = meddle(made, calls.length) ?? answer(made, json);
    return signal?.aborted ? { kind: "unreachable", status: 0 } : reply;
  };
  const uploads = new Uploads({
    call,
    address: (below) => `api/files/uploads${below}`,
    wait: async (ms) => void waits.push(ms),
    changed: () => {},
  });
  const sizes = () => calls.filter(({ method }) => method === "PUT").map(({ bytes }) => bytes);
  return { uploads, calls, files, waits, sizes };
}

const source = (path: string, size: number) => ({ path, file: new Blob([new Uint8Array(size)]) });
const lost: ApiReply = { kind: "unreachable", status: 0 };
const tooLarge: ApiReply = { kind: "unreachable", status: 413 };

describe("Uploads", () => {
  test("sends one file after the other, in pieces that grow to 8 MiB", async () => {
    const { uploads, calls, sizes } = server();
    await uploads.add([source("a", 24 * MiB), source("b", 10), source("empty", 0)]);
    expect(uploads.all.map(({ state, name }) => [state, name])).toEqual([
      ["done", "a"],
      ["done", "b"],
      ["done", "empty"],
    ]);
    expect(sizes()).toEqual([1, 2, 4, 8, 8, 1].map((n) => n * MiB).concat(10));
    expect(calls.map(({ method }) => method).join()).toBe(
      "POST,PUT,PUT,PUT,PUT,PUT,PUT,POST,PUT,POST",
    );
  });

  test("asks how far it came after each lost piece, waits ever longer, and goes on from there", async () => {
    const { uploads, calls, waits } = server((_, at) => (at >= 3 && at <= 6 ? lost : undefined));
    await uploads.add([source("a", 2 * MiB)]);
    expect(uploads.all[0]?.state).toBe("done");
    expect(calls.slice(2, 7).map(({ method }) => method)).toEqual([
      "PUT",
      "GET",
      "GET",
      "GET",
      "GET",
    ]);
    expect(waits).toEqual([500, 1000, 2000, 4000]);
  });

  test("makes pieces smaller for a proxy that refuses them, and gives up when none is small enough", async () => {
    const nginx = server((call) => (call.bytes > 300_000 ? tooLarge : undefined));
    await nginx.uploads.add([source("a", 2 * MiB)]);
    expect(nginx.uploads.all[0]?.state).toBe("done");
    expect(nginx.sizes().slice(0, 4)).toEqual([MiB, MiB / 2, MiB / 4, MiB / 4]);
    const wall = server((call) => (call.method === "PUT" ? tooLarge : undefined));
    await wall.uploads.add([source("a", 2 * MiB)]);
    expect(wall.uploads.all[0]).toMatchObject({ state: "failed", code: "proxy" });
  });

  test("begins anew where a server that was started again knows nothing of it", async () => {
    const { uploads, files, calls } = server((_, at) => void (at === 3 && files.clear()));
    await uploads.add([source("a", 3 * MiB)]);
    expect(uploads.all[0]?.state).toBe("done");
    expect(calls.filter(({ method }) => method === "POST")).toHaveLength(2);
  });

  test("fails one file for its own reason, and sends the others", async () => {
    const full: ApiReply = { kind: "refused", code: "disk-full", detail: {} };
    const { uploads, calls } = server((call) => (call.bytes === 7 ? full : undefined));
    await uploads.add([source("a", 7), source("b", 8)]);
    expect(uploads.all.map(({ state, code }) => [state, code])).toEqual([
      ["failed", "disk-full"],
      ["done", ""],
    ]);
    expect(calls.map(({ method }) => method)).toEqual(["POST", "PUT", "DELETE", "POST", "PUT"]);
  });

  test("that are cancelled leave nothing there, whenever it was", async () => {
    for (const moment of [1, 2]) {
      const { uploads, files, calls } = server((_, at) => {
        const [first] = uploads.all;
        if (at === moment && first) uploads.cancel(first);
        return undefined;
      });
      await uploads.add([source("a", MiB), source("b", 1)]);
      expect(uploads.all.map(({ state }) => state)).toEqual(["cancelled", "done"]);
      expect([...files.values()].map(({ name }) => name)).toEqual(["b"]);
      expect(calls.filter(({ method }) => method === "DELETE")).toHaveLength(1);
    }
    const waiting = server();
    const added = waiting.uploads.add([source("a", 1), source("b", 1)]);
    const [, second] = waiting.uploads.all;
    if (second) waiting.uploads.cancel(second);
    await added;
    expect([...waiting.files.values()].map(({ name }) => name)).toEqual(["a"]);
  });
});
