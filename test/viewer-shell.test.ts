import { describe, expect, mock, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { brotliCompressSync, brotliDecompressSync, gzipSync } from "node:zlib";
import { buildViewer } from "../viewer/build.ts";
import { type Finger, type GesturePorts, Gestures } from "../viewer/gestures.ts";
import { encodingOf, ratesBetween } from "../viewer/rates.ts";
import {
  Chord,
  composesWords,
  difference,
  filling,
  keysymOf,
  Modifiers,
  pressKeys,
} from "../viewer/strokes.ts";
import {
  chooseLanguage,
  createText,
  formatDuration,
  formatRate,
  languages,
  type TextKey,
  textKeys,
} from "../viewer/text.ts";

const VIEWER = path.join(import.meta.dir, "../viewer");

describe("the page's sentences", () => {
  const tables = languages.map((language) => [language, createText([language])] as const);
  const raw = (key: TextKey) => tables.map(([, text]) => text(key));

  /** What is the same in two languages because it is the same word or name. */
  const shared =
    /^(key|unit)\.|^(screen\.label|bar\.(display|more|files)|numbers\.(encoding|state|size)|command\.copy)$/;

  test("are there in every language, none empty", () => {
    for (const key of textKeys) expect([key, raw(key).filter(Boolean).length]).toEqual([key, 4]);
  });

  test("have in every language the same holes to fill", () => {
    for (const key of textKeys) {
      const holes = tables.map(([, text]) => {
        const seen: string[] = [];
        const values = new Proxy({}, { get: (_, name) => seen.push(String(name)) });
        text(key, values);
        return seen.toSorted();
      });
      for (const hole of holes) expect([key, hole]).toEqual([key, holes[0] ?? []]);
    }
  });

  test("are translated, and not English again", () => {
    const same = textKeys.filter(
      (key) => !shared.test(key) && new Set(raw(key)).size < languages.length,
    );
    expect(same).toEqual([]);
  });

  test.each([
    [["de-AT", "en"], "de"],
    [["FR"], "fr"],
    [["pt-BR", "es-419"], "es"],
    [["ja", "zh"], "en"],
    [[], "en"],
  ])("are for %j in %s", (wanted, language) => {
    expect(chooseLanguage(wanted)).toBe(language as "en");
  });

  test("write numbers as the language does, and codes without a mark", () => {
    expect(formatDuration(1500, createText(["de"]))).toBe("1,5 s");
    expect(formatDuration(1500, createText(["en"]))).toBe("1.5 s");
    expect(createText(["de"])("close.other", { code: 4400 })).toContain("Code 4400 ");
  });

  test.each([
    [0, "0 B/s", "0 o/s"],
    [999.4, "999 B/s", "999 o/s"],
    [1000, "1 kB/s", "1 ko/s"],
    [2_340_000, "2.3 MB/s", "2,3 Mo/s"],
  ])("say %d bytes a second as %s", (rate, english, french) => {
    expect([formatRate(rate, createText(["en"])), formatRate(rate, createText(["fr"]))]).toEqual([
      english,
      french,
    ]);
  });
});

describe("the page", () => {
  test("is at most 90 kB with brotli and 105 kB with gzip", async () => {
    const { index, files } = await buildViewer();
    const parts = [
      Buffer.from(index),
      ...Object.values(files).map(({ br }) => brotliDecompressSync(Buffer.from(br, "base64"))),
    ];
    const sum = (pack: (part: Buffer) => Uint8Array) =>
      parts.reduce((total, part) => total + pack(part).length, 0);
    expect(sum((part) => brotliCompressSync(part))).toBeLessThan(90_000);
    expect(sum((part) => gzipSync(part, { level: 9 }))).toBeLessThan(105_000);
  });
});

/** The page's own modules, by name, without their comments. */
const modules = fs
  .readdirSync(VIEWER)
  .filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts") && name !== "build.ts")
  .map((name) => {
    const text = fs.readFileSync(path.join(VIEWER, name), "utf8");
    return { name, text: text.replace(/^\s*(\/\/|\/?\*).*$/gm, "") };
  });

describe("what the page asks of the server", () => {
  test("goes out from four modules, and from the meter to what is open to all", () => {
    const asking = modules.filter(({ text }) =>
      /\b(fetch|EventSource|WebSocket|XMLHttpRequest|sendBeacon|importScripts|Worker)\(/.test(text),
    );
    expect(asking.map(({ name }) => name).toSorted()).toEqual([
      "api.ts",
      "meter.ts",
      "screen.ts",
      "status.ts",
    ]);
    const probes = modules.flatMap(
      ({ text }) => text.match(/(?:health|probe)Url: [^;]*?,$/gm) ?? [],
    );
    expect(probes.length).toBe(2);
    expect(probes.filter((line) => !line.endsWith("healthz`,"))).toEqual([]);
  });

  test("carries the page's ticket, but for the files that it is made of", () => {
    const addresses = modules.flatMap(({ text }) => text.match(/^.*\}desktop[-/].*$/gm) ?? []);
    expect(addresses.length).toBeGreaterThanOrEqual(5);
    const without = addresses.filter((line) => !/withTicket\(|desktop\/static\//.test(line));
    expect(without).toEqual([]);
  });
});

describe("Chord", () => {
  const take = (chord: Chord, ...strokes: string[]) =>
    strokes.map((stroke) => {
      const [type = "", key = "", held = ""] = stroke.split(" ");
      const flags = {
        ctrlKey: held.includes("c"),
        altKey: held.includes("a"),
        shiftKey: held.includes("s"),
      };
      return chord.take({ type, key, ...flags });
    });

  test.each<[string[]]>([
    [["keydown Control c", "keydown Alt ca", "keydown Shift cas", "keyup Shift ca"]],
    [["keydown Shift s", "keydown Control cs", "keydown Alt cas", "keyup Control as"]],
  ])("is complete when all three were down and one goes up: %j", (strokes) => {
    expect(take(new Chord(), ...strokes)).toEqual([false, false, false, true]);
  });

  test.each<[string, string[]]>([
    ["another key between", ["keydown Shift cas", "keydown ArrowLeft cas", "keyup ArrowLeft cas"]],
    ["two of them", ["keydown Control c", "keydown Alt ca", "keyup Alt c"]],
    ["its second release", ["keydown Shift cas", "keyup Shift ca", "keyup Alt c"]],
  ])("is not %s", (_, strokes) => {
    expect(take(new Chord(), ...strokes).at(-1)).toBe(false);
  });
});

describe("Modifiers", () => {
  const stage = () => {
    const sent: string[] = [];
    const modifiers = new Modifiers((_, code, isDown) => {
      sent.push(`${isDown ? "+" : "-"}${code}`);
    });
    const did = () => sent.splice(0).join(" ");
    return { modifiers, did };
  };

  test("holds one for the next key, another until it is let go", () => {
    const { modifiers, did } = stage();
    modifiers.toggle("ctrl", "once");
    modifiers.toggle("super", "locked");
    expect(did()).toBe("+ControlLeft +MetaLeft");
    modifiers.used();
    expect([did(), modifiers.isHeld("ctrl"), modifiers.isHeld("super")]).toEqual([
      "-ControlLeft",
      false,
      true,
    ]);
    modifiers.toggle("super", "locked");
    expect([did(), modifiers.isAnyHeld]).toEqual(["-MetaLeft", false]);
  });

  test("lets go of all at a blur, and tells a new line nothing of the old", () => {
    const { modifiers, did } = stage();
    const changed = mock(() => {});
    modifiers.onChange(changed);
    modifiers.toggle("alt", "locked");
    modifiers.release();
    expect(did()).toBe("+AltLeft -AltLeft");
    modifiers.toggle("alt", "locked");
    did();
    modifiers.forget();
    expect([did(), modifiers.isAnyHeld]).toEqual(["", false]);
    expect(changed).toHaveBeenCalledTimes(4);
  });

  test("presses keys together in order, and lets go in the opposite one", () => {
    const sent: string[] = [];
    pressKeys(["ctrl", "alt", "delete"], (keysym, _, isDown) => {
      sent.push(`${isDown ? "+" : "-"}${keysym.toString(16)}`);
    });
    expect(sent.join(" ")).toBe("+ffe3 +ffe9 +ffff -ffff -ffe9 -ffe3");
  });
});

describe("typing on a screen", () => {
  test.each<[string, string, number, string]>([
    ["", "h", 0, "h"],
    ["hel", "hello", 0, "lo"],
    ["teh", "the", 2, "he"],
    ["hello", "hell", 1, ""],
    [filling, filling.slice(1), 1, ""],
    [`${filling}ni`, `${filling}你`, 2, "你"],
    ["a👍", "a👍🏽", 0, "🏽"],
    ["a👍", "a", 1, ""],
  ])("from %j to %j takes %d times backspace, then %j", (...row) => {
    const [before, after, erase, type] = row;
    expect(difference(before, after)).toEqual({ erase, type: [...type] });
  });

  test.each([
    ["a", 0x61],
    ["ß", 0xdf],
    ["€", 0x10020ac],
    ["\n", 0xff0d],
    ["你", 0x1004f60],
    ["🐭", 0x101f42d],
    ["\u0080", 0x1000080],
  ])("%j is the keysym %d", (char, keysym) => {
    expect(keysymOf(char)).toBe(keysym);
  });

  test("waits for the end of a composition where letters make a syllable", () => {
    expect([["en-GB", "de"], ["fr"], ["ja-JP", "en"], ["en", "zh-TW"]].map(composesWords)).toEqual([
      true,
      true,
      false,
      false,
    ]);
  });
});

describe("Gestures", () => {
  const stage = () => {
    const did: string[] = [];
    const timers: { ms: number; run: () => void }[] = [];
    const round = Math.round;
    const ports: GesturePorts = {
      move: (dx, dy) => did.push(`move ${round(dx)},${round(dy)}`),
      button: (button, isDown) => did.push(`${isDown ? "+" : "-"}${button}`),
      scroll: (dx, dy) => did.push(`scroll ${round(dx)},${round(dy)}`),
      zoom: (factor) => did.push(`zoom ${factor.toFixed(2)}`),
      after: (ms, run) => {
        const timer = { ms, run };
        timers.push(timer);
        return () => {
          const index = timers.indexOf(timer);
          if (index >= 0) timers.splice(index, 1);
        };
      },
    };
    const gestures = new Gestures(ports);
    const finger = (id: number, x: number, y: number): Finger => ({ id, x, y });
    return {
      gestures,
      down: (...[id, x, y, at = 0]: [id: number, x: number, y: number, at?: number]) =>
        gestures.down(finger(id, x, y), at),
      move: (...fingers: [number, number, number][]) =>
        gestures.move(fingers.map((each) => finger(...each))),
      up: (id: number, at: number) => gestures.up(id, at),
      fire: () => {
        for (const { run } of timers.splice(0)) run();
      },
      did: () => did.splice(0).join(" "),
    };
  };

  test("a finger that moves moves the pointer, faster than itself, and presses nothing", () => {
    const { down, move, up, did } = stage();
    down(1, 100, 100);
    move([1, 104, 100]);
    expect(did()).toBe("");
    move([1, 120, 90]);
    move([1, 130, 90]);
    up(1, 5000);
    expect(did()).toBe("move 30,-15 move 15,0");
  });

  test("a tap clicks; its button goes up once no drag can follow", () => {
    const { down, up, fire, did } = stage();
    down(1, 100, 100);
    up(1, 100);
    expect(did()).toBe("+0");
    fire();
    expect(did()).toBe("-0");
  });

  test("two taps are a double click", () => {
    const { down, up, fire, did } = stage();
    down(1, 100, 100);
    up(1, 80);
    down(1, 101, 100, 160);
    up(1, 240);
    fire();
    expect(did()).toBe("+0 -0 +0 -0");
  });

  test("a tap and a move make a drag", () => {
    const { down, move, up, fire, did } = stage();
    down(1, 100, 100);
    up(1, 80);
    down(1, 100, 100, 160);
    move([1, 140, 100]);
    move([1, 160, 100]);
    up(1, 900);
    fire();
    expect(did()).toBe("+0 move 60,0 move 30,0 -0");
  });

  test("a finger that lies still takes hold, and lets go when it is lifted", () => {
    const { down, move, up, fire, did } = stage();
    down(1, 100, 100);
    fire();
    expect(did()).toBe("+0");
    move([1, 120, 100]);
    up(1, 2000);
    expect(did()).toBe("move 30,0 -0");
  });

  test.each([
    [2, "+2 -2"],
    [3, "+1 -1"],
  ])("a tap of %d fingers is %s", (count, buttons) => {
    const { down, up, did } = stage();
    for (let id = 1; id <= count; id++) down(id, 100 + 40 * id, 100);
    for (let id = 1; id <= count; id++) up(id, 120);
    expect(did()).toBe(buttons);
  });

  test("two fingers side by side scroll, and what is left of them does not move the pointer", () => {
    const { down, move, up, did } = stage();
    down(1, 100, 100);
    down(2, 150, 100);
    move([1, 100, 120], [2, 150, 120]);
    move([1, 100, 130], [2, 150, 130]);
    up(2, 300);
    move([1, 200, 200]);
    up(1, 400);
    expect(did()).toBe("scroll 0,20 scroll 0,10");
  });

  test("two fingers that part zoom", () => {
    const { down, move, up, did } = stage();
    down(1, 100, 100);
    down(2, 200, 100);
    move([1, 80, 100], [2, 220, 100]);
    move([1, 60, 100], [2, 240, 100]);
    up(1, 300);
    up(2, 300);
    expect(did()).toBe("zoom 1.40 zoom 1.29");
  });

  test("a touch that is taken away lets go of what it held", () => {
    const { gestures, down, fire, up, did } = stage();
    down(1, 100, 100);
    fire();
    gestures.cancel();
    up(1, 600);
    expect(did()).toBe("+0 -0");
  });
});

describe("the connection's numbers", () => {
  test("are rates between two readings", () => {
    const before = { at: 1000, received: 500, sent: 100, frames: 10 };
    const after = { at: 3000, received: 4500, sent: 300, frames: 70 };
    expect(ratesBetween(before, after)).toEqual({
      receivedPerSecond: 2000,
      sentPerSecond: 100,
      framesPerSecond: 30,
    });
    expect(ratesBetween(before, before).receivedPerSecond).toBe(0);
  });

  const message = (hex: string) => {
    const bytes = Uint8Array.fromHex(hex.replaceAll(" ", ""));
    return bytes.buffer as ArrayBuffer;
  };

  test.each([
    ["a picture", "00 00 0001 0000 0000 0040 0010 00000007 80 112233", "Tight"],
    [
      "a fence before a picture",
      "f8 000000 80000001 01 01 00 00 ffff 0000 0000 0040 0010 00000010",
      "ZRLE",
    ],
    ["a pseudo-encoding", "00 00 0001 0000 0000 0040 0010 fffffecc", null],
    ["the middle of a picture", "a7 11 0001 0000 0000 0040 0010 00000007", null],
    ["a fence alone", "f8 000000 80000001 01 01", null],
    ["nothing", "", null],
  ])("know the encoding of %s", (_, hex, encoding) => {
    expect(encodingOf(message(hex))).toBe(encoding);
  });
});
