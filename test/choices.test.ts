/** What the page decides by numbers alone: how fine pictures are, how large the desktop is, which keys paste. */
import { describe, expect, test } from "bun:test";
import { AutoQuality } from "../viewer/auto.ts";
import {
  isPasteKey,
  layoutChoices,
  parseFit,
  resizeMessage,
  scaleFor,
  wantedSize,
  withoutQuality,
} from "../viewer/choices.ts";

/** Seconds of a line that answers in `roundTrip` ms and carries so many KB a second; the levels after each. */
function line(auto: AutoQuality, clock: { at: number }) {
  return (seconds: number, roundTrip: number | null, kilobytes: number) =>
    Array.from({ length: seconds }, () => {
      clock.at += 1000;
      return auto.take({ at: clock.at, roundTrip, bytesPerSecond: kilobytes * 1000 });
    });
}

const started = () => line(new AutoQuality(), { at: 50_000 });

describe("The quality that is chosen by the line", () => {
  test("begins in the middle, and rises when nothing is in the way", () => {
    const over = started();
    expect(over(5, 20, 900).every((level) => level === "medium")).toBe(true);
    expect(over(2, 20, 900).at(-1)).toBe("high");
    expect(over(60, 20, 900).every((level) => level === "high")).toBe(true);
  });

  test("falls after two looks at a full line, a step at a time, and rises when it is free again", () => {
    const over = started();
    over(10, 20, 900);
    expect(over(4, 180, 100)).toEqual(["high", "medium", "medium", "low"]);
    expect(over(20, 180, 100).every((level) => level === "low")).toBe(true);
    expect(over(8, 20, 100)).toContain("medium");
    expect(over(20, 20, 100).at(-1)).toBe("high");
  });

  test("takes one late answer for what it is", () => {
    const over = started();
    over(10, 20, 900);
    for (let hiccup = 0; hiccup < 10; hiccup++) {
      expect([...over(1, 700, 900), ...over(2, 20, 900)]).toEqual(["high", "high", "high"]);
    }
  });

  test("does not take a long way for a full line, once it is known", () => {
    const over = started();
    expect(over(30, 250, 900).at(-1)).toBe("high");
  });

  test("takes an answer that does not come, or takes very long from the start, for a full line", () => {
    expect(started()(4, null, 100).at(-1)).toBe("low");
    expect(started()(4, 900, 100).at(-1)).toBe("low");
  });

  test("is not moved by a quiet line that is slow, nor by a fast one that is full", () => {
    const quiet = started();
    quiet(10, 20, 1);
    expect(quiet(10, 400, 1).at(-1)).toBe("high");
    const fast = started();
    fast(10, 20, 1);
    expect(fast(10, 120, 20_000).at(-1)).toBe("high");
  });

  test("rises ever later on a line that is full at every rise, and soon again on another", () => {
    const over = started();
    over(10, 20, 900);
    over(4, 180, 100);
    const waits: number[] = [];
    for (let rise = 0; rise < 5; rise++) {
      let seconds = 0;
      while (over(1, 20, 100)[0] === "low" && seconds < 200) seconds += 1;
      waits.push(seconds);
      expect(over(2, 180, 100).at(-1)).toBe("low");
    }
    expect(waits.toSorted((a, b) => a - b)).toEqual(waits);
    expect(waits[0]).toBeLessThanOrEqual(6);
    expect(waits[4]).toBeGreaterThan(30);
    expect(waits[4]).toBeLessThanOrEqual(61);
  });
});

describe("The size that is asked for", () => {
  const area = { width: 1003.2, height: 667 };

  test.each([
    [1, { width: 1003, height: 667 }],
    [1.5, { width: 1504, height: 1000 }],
    [2, { width: 2006, height: 1334 }],
  ])("is the window's in the screen's pixels, %d in one", (ratio, size) => {
    expect(wantedSize("window", area, ratio)).toEqual(size);
  });

  test("loses no pixel to a rounding error", () => {
    expect(wantedSize("window", { width: 1000, height: 100 }, 1.15)?.width).toBe(1150);
  });

  test("is none where it is to stay, or the window has none, and a fixed one at any ratio", () => {
    expect(wantedSize("scale", area, 2)).toBeNull();
    expect(wantedSize("actual", area, 2)).toBeNull();
    expect(wantedSize("window", { width: 0, height: 667 }, 2)).toBeNull();
    expect(wantedSize(parseFit("1920x1080"), area, 2)).toEqual({ width: 1920, height: 1080 });
  });

  test("is the window's for any word that is no choice", () => {
    for (const name of [null, "", "window", "x", "1x1", "99999999x1"])
      expect(parseFit(name)).toBe("window");
  });

  test("goes into noVNC's message in both places, and leaves its screen alone", () => {
    const message = Uint8Array.from({ length: 24 }, (_, at) => at);
    const other = resizeMessage(message, { width: 0x1234, height: 0x5678 });
    const changed = [...other].flatMap((byte, at) => (byte === message[at] ? [] : [at]));
    expect(changed).toEqual([2, 3, 4, 5, 16, 17, 18, 19]);
    expect([...other.slice(16, 20)]).toEqual([0x12, 0x34, 0x56, 0x78]);
  });

  test.each([
    [0.8, 1],
    [1, 1],
    [1.1, 1],
    [1.3333, 1.25],
    [1.5, 1.5],
    [2, 2],
    [9, 4],
  ])("of %d pixels in one has programs draw at %d", (ratio, factor) => {
    expect(scaleFor("window", ratio)).toBe(factor);
    expect(scaleFor("scale", ratio)).toBe(1);
  });
});

test("what is lossless is asked for without a JPEG quality, and else as before", () => {
  const message = (...encodings: number[]) => {
    const bytes = Buffer.alloc(4 + 4 * encodings.length);
    bytes.writeUInt8(2);
    bytes.writeUInt16BE(encodings.length, 2);
    for (const [at, encoding] of encodings.entries()) bytes.writeInt32BE(encoding, 4 + 4 * at);
    return new Uint8Array(bytes);
  };
  expect(withoutQuality(message(1, 7, -23, -32, -247, -33, -22))).toEqual(
    message(1, 7, -247, -33, -22),
  );
});

test("the keys that paste are those of all systems, and no others", () => {
  const none = { ctrlKey: false, metaKey: false, altKey: false, shiftKey: false };
  const is = (key: string, ...held: (keyof typeof none)[]) =>
    isPasteKey({ ...none, key, ...Object.fromEntries(held.map((name) => [name, true])) });
  expect(is("v", "ctrlKey")).toBe(true);
  expect(is("V", "ctrlKey", "shiftKey")).toBe(true);
  expect(is("v", "metaKey")).toBe(true);
  expect(is("Insert", "shiftKey")).toBe(true);
  expect(is("v")).toBe(false);
  expect(is("c", "ctrlKey")).toBe(false);
  expect(is("v", "ctrlKey", "altKey")).toBe(false);
  expect(is("Insert")).toBe(false);
});

test("layouts are offered by title, variants among them, and nonsense not at all", () => {
  const variants = [{ name: "nodeadkeys", title: "German (no dead keys)" }, { name: 7 }];
  expect(
    layoutChoices([
      { name: "us", title: "English (US)", variants: [] },
      { name: "de", title: "German", variants },
      null,
      "x",
      { name: "at", title: "German (Austria)" },
    ]).map(({ value }) => value),
  ).toEqual(["us", "de", "at", "de:nodeadkeys"]);
  expect(layoutChoices(undefined)).toEqual([]);
});
