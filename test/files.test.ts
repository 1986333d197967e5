/** Uploads in pieces and downloads: nothing leaves the folder, nothing is overwritten, nothing is half. */
import { beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash, randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { $ } from "bun";
import { Files, numberedName } from "../server.ts";
import { startServer, tempDir, TOKEN, until } from "./_helpers.ts";

setDefaultTimeout(60_000);

const MB = 1_000_000;
const MAX_CHUNK = 8 << 20;
const JSON_TYPE = { "content-type": "application/json" };
const hash = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

interface Answer {
  id: string;
  offset: number;
  done: string | null;
  error: string;
  detail: Record<string, unknown>;
}

/** A server with no desktop to speak of, whose files are in `dir`. */
async function open(...args: string[]) {
  const dir = tempDir();
  const root = path.join(dir.path, "Desktop");
  fs.mkdirSync(root);
  const common = ["--start", "visit", "--upload-dir", root];
  const server = await startServer([...common, ...args]);
  const api = (to: string, init: RequestInit = {}) => server.ask(`desktop/api/files${to}`, init);
  const answer = async (response: Response) => {
    const body = (await response.json()) as Answer;
    return { status: response.status, ...body };
  };
  const begin = async (name: string, size: number) => {
    const body = JSON.stringify({ path: name, size });
    return answer(await api("/uploads", { method: "POST", headers: JSON_TYPE, body }));
  };
  const put = async (id: string, offset: number, body: Uint8Array<ArrayBuffer>) =>
    answer(await api(`/uploads/${id}?offset=${offset}`, { method: "PUT", body }));
  const state = async (id: string) => answer(await api(`/uploads/${id}`));
  /** The whole of it, as the page does it. */
  const upload = async (name: string, content: Uint8Array<ArrayBuffer>) => {
    let last = await begin(name, content.length);
    while (last.done === null && last.status < 300)
      last = await put(
        last.id,
        last.offset,
        content.subarray(last.offset, last.offset + MAX_CHUNK),
      );
    return last;
  };
  const stop = async () => {
    await server[Symbol.asyncDispose]();
    dir[Symbol.dispose]();
  };
  const all = () => fs.readdirSync(root, { recursive: true }).map(String).toSorted();
  return { ...server, root, api, begin, put, state, upload, all, [Symbol.asyncDispose]: stop };
}

describe("an upload", () => {
  test("arrives as it was, in pieces, and only then has its name", async () => {
    await using desk = await open();
    const content = randomBytes(20 * MB);
    const { id } = await desk.begin("a picture.png", content.length);
    const first = await desk.put(id, 0, content.subarray(0, MAX_CHUNK));
    expect(first).toMatchObject({ status: 200, offset: MAX_CHUNK, done: null });
    expect(desk.all()).toEqual([expect.stringMatching(/^\.jupyter-desktop-[\w-]{16}\.part$/)]);
    const again = await desk.put(id, 0, content.subarray(0, 1_000));
    expect(again).toMatchObject({ status: 409, error: "offset", detail: { offset: MAX_CHUNK } });
    await desk.put(id, MAX_CHUNK, content.subarray(MAX_CHUNK, 2 * MAX_CHUNK));
    const last = await desk.put(id, 2 * MAX_CHUNK, content.subarray(2 * MAX_CHUNK));
    expect(last).toMatchObject({ status: 200, offset: content.length, done: "a picture.png" });
    expect(desk.all()).toEqual(["a picture.png"]);
    expect(hash(fs.readFileSync(path.join(desk.root, "a picture.png")))).toBe(hash(content));
    // An answer that was lost on the way can be had again.
    expect(await desk.put(id, 0, content.subarray(0, 10))).toMatchObject({ done: "a picture.png" });
    expect(await desk.state(id)).toMatchObject({ done: "a picture.png" });
  });

  test("goes on where its connection broke off", async () => {
    await using desk = await open();
    const content = randomBytes(2 * MB);
    const { id } = await desk.begin("f", content.length);
    const { hostname, port } = desk.url;
    const socket = await Bun.connect({ hostname, port: Number(port), socket: { data() {} } });
    const head = [
      `PUT /desktop/api/files/uploads/${id}?offset=0 HTTP/1.1`,
      `Host: ${desk.url.host}`,
    ];
    const more = [`Authorization: Bearer ${TOKEN}`, `Content-Length: ${content.length}`, "", ""];
    socket.write([...head, ...more].join("\r\n"));
    socket.write(content.subarray(0, 100_000));
    await until("what was sent is on the disk", async () => (await desk.state(id)).offset > 50_000);
    const busy = await desk.put(id, (await desk.state(id)).offset, content.subarray(0, 1));
    expect(busy).toMatchObject({ status: 409, error: "busy" });
    socket.terminate();
    await until("the end of the broken piece", async () => {
      const { offset } = await desk.state(id);
      const next = await desk.put(id, offset, content.subarray(offset));
      return next.done === "f";
    });
    expect(hash(fs.readFileSync(path.join(desk.root, "f")))).toBe(hash(content));
    expect(desk.said.stderr).not.toContain("request failed");
  });

  test("never overwrites, not even one that arrives at the same time", async () => {
    await using desk = await open();
    fs.writeFileSync(path.join(desk.root, "report.tar.gz"), "before");
    fs.mkdirSync(path.join(desk.root, "folder"));
    fs.symlinkSync("/nonexistent", path.join(desk.root, "dangling"));
    const contents = Array.from({ length: 8 }, (_, n) => Buffer.from(`content ${n}`));
    const done = await Promise.all(
      contents.map((content) => desk.upload("report.tar.gz", content)),
    );
    const names = done.map((each) => String(each.done));
    const expected = Array.from({ length: 8 }, (_, n) => `report.tar (${n + 2}).gz`);
    expect(names.toSorted()).toEqual(expected);
    for (const [n, name] of names.entries())
      expect(fs.readFileSync(path.join(desk.root, name), "utf8")).toBe(`content ${n}`);
    expect(fs.readFileSync(path.join(desk.root, "report.tar.gz"), "utf8")).toBe("before");
    expect((await desk.upload("folder", Buffer.from("x"))).done).toBe("folder (2)");
    expect((await desk.upload("dangling", Buffer.from("x"))).done).toBe("dangling (2)");
    expect(fs.existsSync("/nonexistent")).toBe(false);
  });

  test("keeps the folders it comes in, and may be empty", async () => {
    await using desk = await open();
    await desk.upload("data/raw/ü 漢字 😀.csv", Buffer.from("1"));
    await desk.upload("data/raw/empty", Buffer.alloc(0));
    await desk.upload("data/.hidden", Buffer.from("2"));
    expect(desk.all()).toEqual(
      ["data", "data/.hidden", "data/raw", "data/raw/empty", "data/raw/ü 漢字 😀.csv"].toSorted(),
    );
  });

  test("leads nowhere else, by no name and by no symbolic link", async () => {
    await using desk = await open();
    const outside = path.join(desk.root, "../outside");
    fs.mkdirSync(outside);
    fs.writeFileSync(path.join(outside, "secret"), "secret");
    fs.symlinkSync(outside, path.join(desk.root, "link"));
    fs.symlinkSync(path.join(outside, "secret"), path.join(desk.root, "file"));
    fs.writeFileSync(path.join(desk.root, "plain"), "");
    const bad = [
      "",
      "/",
      "..",
      ".",
      "../x",
      "a/../../x",
      "/etc/x",
      "a//b",
      "a/",
      "a\0b",
      "a\nb",
      "a\x7f",
    ];
    const long = ["x".repeat(256), "ü".repeat(128), Array(33).fill("d").join("/")];
    for (const name of [...bad, ...long])
      expect([name, await desk.begin(name, 1)]).toEqual([
        name,
        expect.objectContaining({ status: 400, error: "bad-name" }),
      ]);
    for (const name of ["link/x", "plain/x", "file/x"])
      expect(await desk.begin(name, 1)).toMatchObject({ status: 409, error: "no-folder" });
    expect(fs.readdirSync(outside)).toEqual(["secret"]);
    for (const name of [
      "link/secret",
      "file",
      "../outside/secret",
      "/etc/passwd",
      "link",
      "%2e%2e/x",
    ]) {
      const answer = await desk.api(`/download?path=${encodeURIComponent(name)}`);
      expect([name, answer.status < 500 && answer.status >= 400]).toEqual([name, true]);
      expect(await answer.text()).not.toContain("secret");
    }
    for (const name of ["link", "..", "plain", "nowhere"])
      expect((await desk.api(`?path=${name}`)).status).toBeGreaterThanOrEqual(400);
    const { entries } = (await (await desk.api("")).json()) as { entries: { name: string }[] };
    expect(entries.map((entry) => entry.name)).toEqual(["plain"]);
    expect(desk.all().filter((name) => name.includes(".part"))).toEqual([]);
  });

  test("is held to its size, to the cap and to a piece's size", async () => {
    await using desk = await open("--max-upload", "3M");
    const tooLarge = await desk.begin("f", 3 * MB + 1);
    expect(tooLarge).toMatchObject({ status: 413, error: "too-large", detail: { limit: 3 * MB } });
    const { id } = await desk.begin("f", 10);
    expect(await desk.put(id, 0, Buffer.alloc(11))).toMatchObject({
      status: 413,
      error: "too-much",
    });
    expect(await desk.put(id, 0, Buffer.alloc(MAX_CHUNK + 1))).toMatchObject({ status: 413 });
    for (const offset of [-1, 1, Number.NaN, 1e20])
      expect(await desk.put(id, offset, Buffer.alloc(1))).toMatchObject({
        status: 409,
        error: "offset",
      });
    for (const size of [-1, 1.5, Number.MAX_VALUE, "10"])
      expect(await desk.begin("g", size as number)).toMatchObject({
        status: 400,
        error: "bad-request",
      });
  });

  test("of which too many are open is refused, until one of them is cancelled", async () => {
    await using desk = await open();
    const begun = [];
    for (let n = 0; n < 32; n++) begun.push(await desk.begin(`f${n}`, 1));
    expect(await desk.begin("one more", 1)).toMatchObject({
      status: 429,
      error: "too-many-uploads",
    });
    const cancelled = await desk.api(`/uploads/${begun[0]?.id}`, { method: "DELETE" });
    expect(cancelled.status).toBe(200);
    expect(await desk.state(String(begun[0]?.id))).toMatchObject({
      status: 404,
      error: "no-such-upload",
    });
    expect(desk.all()).toHaveLength(31);
    expect((await desk.begin("one more", 1)).status).toBe(201);
  });

  test("that a server left half is cleared away: at its end, and later where it was killed", async () => {
    await using desk = await open();
    await desk.begin("f", 10);
    const stale = path.join(desk.root, ".jupyter-desktop-0123456789abcdef.part");
    const fresh = path.join(desk.root, ".jupyter-desktop-fedcba9876543210.part");
    for (const file of [stale, fresh]) fs.writeFileSync(file, "half");
    const dayBefore = Date.now() / 1_000 - 25 * 3_600;
    fs.utimesSync(stale, dayBefore, dayBefore);
    await desk.begin("g", 10);
    expect(fs.existsSync(stale)).toBe(false);
    expect(desk.all()).toHaveLength(3);
    desk.child.kill();
    await desk.code;
    expect(desk.all()).toEqual([path.basename(fresh)]);
  });

  test("needs the token, and no page of another site's may send one", async () => {
    await using desk = await open();
    const url = new URL("desktop/api/files/uploads", desk.url.origin);
    const init = {
      method: "POST",
      headers: JSON_TYPE,
      body: JSON.stringify({ path: "f", size: 0 }),
    };
    expect((await fetch(url, init)).status).toBe(401);
    const foreign = { ...JSON_TYPE, origin: "https://evil.test" };
    expect((await desk.api("/uploads", { ...init, headers: foreign })).status).toBe(403);
    const form = { "content-type": "text/plain" };
    expect((await desk.api("/uploads", { ...init, headers: form })).status).toBe(415);
    expect(desk.all()).toEqual([]);
  });

  test("of 300 MB does not make the server grow", async () => {
    await using desk = await open();
    const memory = () => {
      const status = fs.readFileSync(`/proc/${desk.child.pid}/status`, "utf8");
      return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]) / 1_000;
    };
    await desk.upload("warm", randomBytes(MAX_CHUNK));
    const before = memory();
    const piece = randomBytes(MAX_CHUNK);
    const size = 36 * MAX_CHUNK;
    const { id } = await desk.begin("large", size);
    let most = before;
    for (let offset = 0; offset < size; offset += MAX_CHUNK) {
      await desk.put(id, offset, piece);
      most = Math.max(most, memory());
    }
    console.log(`RSS before ${before.toFixed(0)} MB, at most ${most.toFixed(0)} MB`);
    expect(fs.statSync(path.join(desk.root, "large")).size).toBe(size);
    // Measured: 40 to 60 MB, a few pieces that the collector has not taken yet.
    expect(most - before).toBeLessThan(128);
  });
});

describe("where the disk is full or closed,", () => {
  const ROOT = process.getuid?.() === 0;
  const small = tempDir();
  let isMounted = false;
  beforeAll(async () => {
    if (ROOT)
      isMounted =
        (await $`mount -t tmpfs -o size=2m tmpfs ${small.path}`.nothrow().quiet()).exitCode === 0;
    return async () => {
      if (isMounted) await $`umount ${small.path}`.quiet();
      small[Symbol.dispose]();
    };
  });

  test("it is said at once, or when the room is gone, and what came is not lost", async () => {
    if (!isMounted)
      throw new Error("this test mounts a file system: run it as root, with CAP_SYS_ADMIN");
    const files = new Files(() => small.path, 1e12);
    const refused = () => files.start({ path: "f", size: 3 * MB });
    expect(refused).toThrow(expect.objectContaining({ message: "disk-full", status: 507 }));
    const { id } = files.start({ path: "f", size: 1_800_000 });
    fs.writeFileSync(path.join(small.path, "other"), Buffer.alloc(1 * MB));
    const content = randomBytes(1_800_000);
    const write = (offset: number) =>
      files.write(id, offset, new Blob([content.subarray(offset)]).stream());
    const error = await write(0).catch((error: unknown) => error);
    expect(error).toMatchObject({ message: "disk-full", status: 507 });
    const { offset } = files.state(id);
    expect(offset).toBeGreaterThan(500_000);
    fs.rmSync(path.join(small.path, "other"));
    expect((await write(offset)).done).toBe("f");
    expect(hash(fs.readFileSync(path.join(small.path, "f")))).toBe(hash(content));
    files.close();
  });
});

describe("a download", () => {
  test("comes as it is, also a part of it, and never as a page", async () => {
    await using desk = await open();
    const name = "sub/it's (ü) 100%.html";
    fs.mkdirSync(path.join(desk.root, "sub"));
    fs.writeFileSync(path.join(desk.root, name), "<script>alert(1)</script>");
    const get = (headers: Record<string, string> = {}) =>
      desk.api(`/download?path=${encodeURIComponent(name)}`, { headers });
    const whole = await get();
    expect(Object.fromEntries(whole.headers)).toMatchObject({
      "content-type": "application/octet-stream",
      "content-disposition": "attachment; filename*=UTF-8''it%27s%20%28%C3%BC%29%20100%25.html",
      "x-content-type-options": "nosniff",
      "content-security-policy": "sandbox; default-src 'none'",
      "cache-control": "no-store",
      "content-length": "25",
    });
    expect(await whole.text()).toBe("<script>alert(1)</script>");
    const part = await get({ range: "bytes=8-12" });
    expect([part.status, part.headers.get("content-range"), await part.text()]).toEqual([
      206,
      "bytes 8-12/25",
      "alert",
    ]);
  });

  test("is chosen from a list: folders first, hidden and special files left out", async () => {
    await using desk = await open();
    for (const folder of ["b", ".config"]) fs.mkdirSync(path.join(desk.root, folder));
    for (const file of ["c.txt", "A.txt", ".env", "b/inner"])
      fs.writeFileSync(path.join(desk.root, file), "12345");
    await $`mkfifo ${path.join(desk.root, "pipe")}`;
    const latin1 = Buffer.concat([Buffer.from(`${desk.root}/`), Buffer.of(0xfc, 0x2e, 0x74)]);
    fs.writeFileSync(latin1, "a name that is no UTF-8");
    const list = async (folder: string) => {
      const answer = (await (await desk.api(`?path=${folder}`)).json()) as {
        entries: { name: string; type: string; size: number; modified: string }[];
        total: number;
      };
      for (const { modified } of answer.entries) expect(Date.parse(modified)).toBeGreaterThan(0);
      return answer.entries.map(({ name, type, size }) =>
        type === "file" ? [name, size] : [name],
      );
    };
    expect(await list("")).toEqual([["b"], ["A.txt", 5], ["c.txt", 5]]);
    expect(await list("b")).toEqual([["inner", 5]]);
  });
});

describe("files are", () => {
  const offered = async (...args: string[]) => {
    await using server = await startServer(["--start", "visit", ...args]);
    return (await server.ask("desktop/api/files")).status === 200;
  };

  test("on by default, in the folder that the desktop's own settings name", async () => {
    await using server = await startServer(["--start", "visit"]);
    fs.mkdirSync(path.join(server.dir, ".config"));
    const body = JSON.stringify({ path: "f", size: 0 });
    const post = () =>
      server.ask("desktop/api/files/uploads", { method: "POST", headers: JSON_TYPE, body });
    expect((await post()).status).toBe(201);
    expect(fs.existsSync(path.join(server.dir, "Desktop/f"))).toBe(true);
    fs.writeFileSync(
      path.join(server.dir, ".config/user-dirs.dirs"),
      'XDG_DESKTOP_DIR="$HOME/Bureau"\n',
    );
    expect((await post()).status).toBe(201);
    expect(fs.existsSync(path.join(server.dir, "Bureau/f"))).toBe(true);
  });

  test.each<[boolean, string[]]>([
    [false, ["--no-files"]],
    [false, ["--clipboard", "out"]],
    [true, ["--clipboard", "off", "--files"]],
    [false, ["--vnc", "tcp:vnc.example.org:5900"]],
    [true, ["--vnc", "tcp:vnc.example.org:5900", "--files"]],
    [true, ["--vnc", "tcp:127.0.0.1:5900"]],
  ])("on: %p with %j", async (isOn, args) => {
    expect(await offered(...args)).toBe(isOn);
  });
});

test.each([
  ["report.pdf", "report (2).pdf"],
  ["no extension", "no extension (2)"],
  [".bashrc", ".bashrc (2)"],
  [`${"ü".repeat(125)}.txt`, `${"ü".repeat(123)} (2).txt`],
  [`${"😀".repeat(63)}ab`, `${"😀".repeat(62)} (2)`],
])("the second %s is %s, and no name is longer than 255 bytes", (name, second) => {
  expect(numberedName(name, 2)).toBe(second);
  expect(Buffer.byteLength(second)).toBeLessThanOrEqual(255);
});
