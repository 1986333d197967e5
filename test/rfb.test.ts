import { describe, expect, test } from "bun:test";
import { ClientFilter, clientMessageLength, limitDesktopSize } from "../server.ts";

const limit = { width: 8192, height: 8192, pixels: 33_177_600 };
/** Its second is ExtendedDesktopSize, -308, without which no size may be asked for. */
const setEncodings = Buffer.from([2, 0, 0, 2, 0, 0, 0, 7, 255, 255, 254, 204]);
const hello = Buffer.concat([Buffer.from("RFB 003.008\n"), Buffer.from([1, 1])]);
const handshake = Buffer.concat([hello, setEncodings]);

function key(sym: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes[0] = 4;
  bytes[1] = 1;
  bytes.writeUInt32BE(sym, 4);
  return bytes;
}

function pointer(mask: number, x: number, more: number[] = []): Buffer {
  return Buffer.from([5, mask, x >> 8, x & 255, 0, 1, ...more]);
}

function cutText(length: number): Buffer {
  const bytes = Buffer.alloc(8 + Math.abs(length), 0x61);
  bytes.fill(0, 0, 4);
  bytes[0] = 6;
  bytes.writeInt32BE(length, 4);
  return bytes;
}

function desktopSize(width: number, height: number): Buffer {
  const bytes = Buffer.alloc(24);
  bytes[0] = 251;
  bytes.writeUInt16BE(width, 2);
  bytes.writeUInt16BE(height, 4);
  bytes[6] = 1;
  bytes.writeUInt16BE(width, 16);
  bytes.writeUInt16BE(height, 18);
  return bytes;
}

const fence = Buffer.from([248, 0, 0, 0, 0, 0, 0, 1, 3, 9, 9, 9]);
const qemuKey = Buffer.from([255, 0, 0, 1, 0, 0, 0, 97, 0, 0, 0, 30]);
const qemuAudio = Buffer.from([255, 1, 0, 2, 1, 2, 0, 0, 172, 68]);
const request = Buffer.from([3, 1, 0, 0, 0, 0, 4, 0, 3, 0]);
const pixelFormat = Buffer.alloc(20, 0);
const continuous = Buffer.from([150, 1, 0, 0, 0, 0, 4, 0, 3, 0]);
const xvp = Buffer.from([250, 0, 1, 2]);

/** A filter, what it let through, and how often it told of input. */
function filterWith(mayResize: () => boolean = () => true, mayPaste = () => true) {
  const seen = { input: 0, unreadable: 0 };
  const filter = new ClientFilter(limit, {
    input: () => seen.input++,
    mayResize,
    mayPaste,
    unreadable: () => seen.unreadable++,
  });
  return { filter, seen };
}

/** The filter of a guest who came by a link. */
function guestFilter(role: "watch" | "control") {
  const may = () => role === "control";
  const seen = { unreadable: 0 };
  const events = { input: () => {}, mayResize: may, mayPaste: may };
  const unreadable = () => seen.unreadable++;
  return { filter: new ClientFilter(limit, { ...events, unreadable }, role), seen };
}

function feed(filter: ClientFilter, bytes: Buffer, chunk = bytes.length): Buffer {
  const out: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += chunk) {
    // A copy, as Bun gives one with every message: the filter may change it.
    out.push(Buffer.from(filter.feed(Buffer.from(bytes.subarray(at, at + chunk)))));
  }
  return Buffer.concat(out);
}

describe("clientMessageLength", () => {
  test.each([
    ["SetPixelFormat", pixelFormat],
    ["SetEncodings", setEncodings],
    ["FramebufferUpdateRequest", request],
    ["KeyEvent", key(97)],
    ["PointerEvent", pointer(1, 300)],
    ["PointerEvent with extended buttons", pointer(0x81, 300, [1])],
    ["ClientCutText", cutText(5)],
    ["ClientCutText of the extended clipboard", cutText(-12)],
    ["EnableContinuousUpdates", continuous],
    ["Fence", fence],
    ["xvp", xvp],
    ["SetDesktopSize", desktopSize(800, 600)],
    ["QEMU key", qemuKey],
    ["QEMU audio format", qemuAudio],
  ])("knows the length of %s", (_, message) => {
    expect(clientMessageLength(message, 0)).toBe(message.length);
    expect(clientMessageLength(Buffer.concat([xvp, message, xvp]), xvp.length)).toBe(
      message.length,
    );
  });

  test("needs more where the header is not complete, and has no end for an unknown type", () => {
    expect(clientMessageLength(cutText(5).subarray(0, 7), 0)).toBe(0);
    expect(clientMessageLength(Buffer.from([77]), 0)).toBe(Number.POSITIVE_INFINITY);
  });
});

describe("ClientFilter", () => {
  test("lets no size through before its sender named ExtendedDesktopSize", () => {
    for (const chunk of [1, 5, 100]) {
      const { filter } = filterWith();
      const old = Buffer.from([2, 0, 0, 1, 255, 255, 255, 33]);
      const before = Buffer.concat([hello, desktopSize(800, 600), old, desktopSize(800, 600)]);
      expect(feed(filter, before, chunk)).toEqual(Buffer.concat([hello, old]));
      expect(filter.claimSize()).toBeUndefined();
      const after = Buffer.concat([setEncodings, desktopSize(800, 600)]);
      expect(feed(filter, after, chunk)).toEqual(after);
    }
  });

  const everything = Buffer.concat([
    handshake,
    ...[pixelFormat, setEncodings, request, key(97), pointer(0, 5), cutText(300), cutText(-40)],
    ...[fence, qemuKey, qemuAudio, continuous, xvp, desktopSize(1024, 768), pointer(0x81, 7, [1])],
    key(98),
  ]);

  test.each([1, 2, 3, 7, 13, 64, 100_000])(
    "passes everything as it came, in pieces of %d",
    (chunk) => {
      const { filter, seen } = filterWith();
      expect(feed(filter, everything, chunk).equals(everything)).toBe(true);
      expect(seen.input).toBe(7);
    },
  );

  test("passes a whole piece without a copy", () => {
    const { filter } = filterWith();
    feed(filter, handshake);
    const piece = Buffer.concat([request, key(97)]);
    expect(filter.feed(piece)).toBe(piece);
  });

  test("makes every viewer a sharing one", () => {
    const { filter } = filterWith();
    const alone = Buffer.from(hello);
    alone[13] = 0;
    expect(feed(filter, alone).at(-1)).toBe(1);
  });

  test("sees past the answer to a VncAuth challenge", () => {
    const { filter, seen } = filterWith();
    const bytes = Buffer.concat([
      Buffer.from("RFB 003.008\n"),
      Buffer.from([2]),
      Buffer.alloc(16, 4), // the type of a key event: it must not be taken for one
      Buffer.from([1]),
      key(97),
    ]);
    expect(feed(filter, bytes, 5).equals(bytes)).toBe(true);
    expect(seen.input).toBe(1);
  });

  test.each([
    ["a viewer of RFB 3.3", Buffer.from("RFB 003.003\n\x01more")],
    ["another security type", Buffer.from("RFB 003.008\n\x13more")],
    ["something that is no RFB", Buffer.from("GET / HTTP/1.1\r\n\r\n")],
    ["an unknown message", Buffer.concat([handshake, Buffer.from([77, 251, 0, 1, 2])])],
  ])("passes %s unseen, and counts it as input from then on", (_, bytes) => {
    const { filter, seen } = filterWith();
    expect(feed(filter, bytes).equals(bytes)).toBe(true);
    const later = desktopSize(60_000, 60_000);
    expect(feed(filter, later).equals(later)).toBe(true);
    expect(seen.input).toBe(1);
  });

  test("does not take a pointer that rests for input", () => {
    const { filter, seen } = filterWith();
    feed(filter, Buffer.concat([handshake, pointer(0, 5), pointer(0, 5), pointer(0, 5)]));
    expect(seen.input).toBe(1);
    feed(filter, Buffer.concat([pointer(0, 6), request, fence, setEncodings, continuous]));
    expect(seen.input).toBe(2);
  });

  test.each([1, 5, 100])("holds a size to the limit, in pieces of %d", (chunk) => {
    const { filter } = filterWith();
    const bytes = Buffer.concat([handshake, key(97), desktopSize(16_384, 16_384), key(98)]);
    const out = feed(filter, bytes, chunk);
    expect(out.length).toBe(bytes.length);
    const size = out.subarray(handshake.length + 8, handshake.length + 8 + 24);
    const [width, height] = [size.readUInt16BE(2), size.readUInt16BE(4)];
    expect(width * height).toBeLessThanOrEqual(limit.pixels);
    expect(width).toBe(5760);
    expect([size.readUInt16BE(16), size.readUInt16BE(18)]).toEqual([width, height]);
    expect(out.subarray(-8).equals(key(98))).toBe(true);
  });

  test.each([1, 9, 1000])(
    "keeps back the size of a viewer that does not drive it, in pieces of %d",
    (chunk) => {
      let drives = false;
      const { filter } = filterWith(() => drives);
      const wanted = desktopSize(900, 700);
      const quiet = Buffer.concat([handshake, request, wanted, request]);
      expect(feed(filter, quiet, chunk).equals(Buffer.concat([handshake, request, request]))).toBe(
        true,
      );
      // Its first input makes it the driver, and its size goes before that input.
      expect(feed(filter, key(97), chunk).equals(Buffer.concat([wanted, key(97)]))).toBe(true);
      drives = true;
      expect(feed(filter, key(98), chunk).equals(key(98))).toBe(true);
    },
  );

  test.each([1, 5, 12, 64, 100_000])(
    "leaves out text for a desktop that takes none, but not what asks for text, in pieces of %d",
    (chunk) => {
      const { filter, seen } = filterWith(undefined, () => false);
      const extended = (action: number) => {
        const message = cutText(-40);
        message.writeUInt32BE(((action << 24) | 1) >>> 0, 8);
        return message;
      };
      const [caps, asks, peeks, notifies, provides] = [1, 2, 4, 8, 16].map(extended);
      const asked = [handshake, key(97), caps, key(98), asks, key(99)] as Buffer[];
      const text = [cutText(300), peeks, notifies, provides, cutText(0), cutText(2)] as Buffer[];
      const [first, ...others] = asked as [Buffer, ...Buffer[]];
      const mixed = Buffer.concat([
        first,
        ...others.flatMap((message, at) => [message, ...text.slice(at)]),
        key(100),
      ]);
      const passed = feed(filter, mixed, chunk);
      expect(passed.equals(Buffer.concat([...asked, key(100)]))).toBe(true);
      expect(seen).toEqual({ input: 4, unreadable: 0 });
    },
  );

  test.each([
    ["a viewer of RFB 3.3", Buffer.from("RFB 003.003\n\x01more")],
    ["an unknown message", Buffer.concat([handshake, Buffer.from([77]), cutText(5)])],
  ])("passes nothing of %s to a desktop that takes no text", (_, bytes) => {
    const { filter, seen } = filterWith(undefined, () => false);
    const passed = feed(filter, bytes);
    expect(handshake.subarray(0, passed.length).equals(passed)).toBe(true);
    expect(feed(filter, cutText(5)).length).toBe(0);
    expect(seen.unreadable).toBe(1);
  });

  test.each([1, 2, 3, 7, 13, 64, 100_000])(
    "lets a watcher ask for pictures, and do nothing else, in pieces of %d",
    (chunk) => {
      const { filter, seen } = guestFilter("watch");
      const asked = [handshake, pixelFormat, setEncodings, request, fence, continuous, request];
      expect(feed(filter, everything, chunk).equals(Buffer.concat(asked.slice(0, -1)))).toBe(true);
      // What is left out may be longer than a piece, and what follows it is seen again.
      const more = Buffer.concat([cutText(70_000), request, cutText(-70_000), key(97), request]);
      expect(feed(filter, more, chunk * 100).equals(Buffer.concat([request, request]))).toBe(true);
      expect(seen.unreadable).toBe(0);
    },
  );

  test.each([
    ["RFB 3.3", Buffer.from("RFB 003.003\n\x01more")],
    ["another security type", Buffer.from("RFB 003.008\n\x13more")],
    ["an unknown message", Buffer.concat([handshake, Buffer.from([77]), key(97)])],
  ])("passes nothing more of a guest after %s", (_, bytes) => {
    for (const role of ["watch", "control"] as const) {
      const { filter, seen } = guestFilter(role);
      const passed = feed(filter, bytes);
      expect(handshake.subarray(0, passed.length).equals(passed)).toBe(true);
      expect(feed(filter, Buffer.concat([key(97), xvp, request])).length).toBe(0);
      expect(seen.unreadable).toBe(1);
    }
  });

  test("takes from a guest who may control all but what resets the machine", () => {
    const { filter } = guestFilter("control");
    const { filter: owners } = filterWith();
    expect(feed(owners, everything).length).toBe(everything.length);
    const bytes = feed(filter, everything);
    expect(bytes.length).toBe(everything.length - xvp.length);
    expect(bytes.includes(xvp)).toBe(false);
  });

  test("gives the wanted size only between two messages", () => {
    const { filter } = filterWith(() => false);
    expect(filter.claimSize()).toBeUndefined();
    feed(filter, Buffer.concat([handshake, desktopSize(900, 700)]));
    expect(filter.claimSize()?.equals(desktopSize(900, 700))).toBe(true);
    feed(filter, cutText(100).subarray(0, 50));
    expect(filter.claimSize()).toBeUndefined();
  });
});

describe("limitDesktopSize", () => {
  test("leaves what is within the limit, and a size of nothing, alone", () => {
    expect(limitDesktopSize(desktopSize(8192, 4050), limit).equals(desktopSize(8192, 4050))).toBe(
      true,
    );
    expect(limitDesktopSize(desktopSize(0, 0), limit).equals(desktopSize(0, 0))).toBe(true);
  });

  test("keeps the proportions of what is too large", () => {
    const limited = limitDesktopSize(desktopSize(4000, 2000), {
      width: 1000,
      height: 1000,
      pixels: 1e9,
    });
    expect([limited.readUInt16BE(2), limited.readUInt16BE(4)]).toEqual([1000, 500]);
  });
});
