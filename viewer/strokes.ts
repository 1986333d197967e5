// What keys are and what strokes on them mean, without a DOM.

// Keysyms of X11's keysymdef.h, and the codes of UI Events for servers that want scan codes.
const keys = {
  ctrl: [0xffe3, "ControlLeft"],
  alt: [0xffe9, "AltLeft"],
  shift: [0xffe1, "ShiftLeft"],
  super: [0xffeb, "MetaLeft"],
  esc: [0xff1b, "Escape"],
  tab: [0xff09, "Tab"],
  delete: [0xffff, "Delete"],
  print: [0xff61, "PrintScreen"],
  left: [0xff51, "ArrowLeft"],
  up: [0xff52, "ArrowUp"],
  right: [0xff53, "ArrowRight"],
  down: [0xff54, "ArrowDown"],
  home: [0xff50, "Home"],
  end: [0xff57, "End"],
  pageUp: [0xff55, "PageUp"],
  pageDown: [0xff56, "PageDown"],
  w: [0x77, "KeyW"],
  f4: [0xffc1, "F4"],
} as const satisfies Record<string, readonly [number, string]>;

export type KeyName = keyof typeof keys;
export type ModifierName = "ctrl" | "alt" | "shift" | "super";

export const modifierNames = ["ctrl", "alt", "shift", "super"] as const satisfies ModifierName[];

export type SendKey = (keysym: number, code: string, isDown: boolean) => void;

/** What may be held down on the desktop though no finger is on it: till the next key, or till let go. */
export class Modifiers {
  #send: SendKey;
  #held = new Map<ModifierName, "once" | "locked">();
  #listeners: (() => void)[] = [];

  constructor(send: SendKey) {
    this.#send = send;
  }

  isHeld(name: ModifierName): boolean {
    return this.#held.has(name);
  }

  get isAnyHeld(): boolean {
    return this.#held.size > 0;
  }

  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  toggle(name: ModifierName, how: "once" | "locked"): void {
    const isDown = !this.#held.delete(name);
    if (isDown) {
      this.#held.set(name, how);
    }
    this.#say(name, isDown);
    this.#changed();
  }

  /** A key went out: what was held for it alone is let go. */
  used(): void {
    this.#release((how) => how === "once");
  }

  release(): void {
    this.#release(() => true);
  }

  /** The line that they were held on is gone: nobody has to be told. */
  forget(): void {
    if (this.#held.size > 0) {
      this.#held.clear();
      this.#changed();
    }
  }

  #release(which: (how: "once" | "locked") => boolean): void {
    const names = [...this.#held].filter(([, how]) => which(how)).map(([name]) => name);
    for (const name of names) {
      this.#held.delete(name);
      this.#say(name, false);
    }
    if (names.length > 0) {
      this.#changed();
    }
  }

  #say(name: ModifierName, isDown: boolean): void {
    const [keysym, code] = keys[name];
    this.#send(keysym, code, isDown);
  }

  #changed(): void {
    for (const listener of this.#listeners) {
      listener();
    }
  }
}

/** Presses these keys one after another, and lets them go in the opposite order. */
export function pressKeys(names: readonly KeyName[], send: SendKey): void {
  for (const name of names) {
    send(keys[name][0], keys[name][1], true);
  }
  for (const name of names.toReversed()) {
    send(keys[name][0], keys[name][1], false);
  }
}

/** As much of a KeyboardEvent as tells the chord. */
export interface Stroke {
  type: string;
  key: string;
  ctrlKey: boolean;
  altKey: boolean;
  shiftKey: boolean;
}

const chordKeys: readonly string[] = ["Control", "Alt", "Shift"];

/** Finds out when Ctrl, Alt and Shift are pressed and let go with no other key between. */
export class Chord {
  #isArmed = false;

  /** Takes each key event in turn; true when the chord is complete. */
  take(event: Stroke): boolean {
    if (event.type === "keyup") {
      const isDone = this.#isArmed;
      this.#isArmed = false;
      return isDone;
    }
    const { ctrlKey, altKey, shiftKey } = event;
    this.#isArmed = chordKeys.includes(event.key) && ctrlKey && altKey && shiftKey;
    return false;
  }
}

// An empty field gives no event for backspace. A zero-width space is no letter, so that no
// keyboard takes the filling for the beginning of a word.
export const filling = "\u200b".repeat(32);

const returnKeysym = 0xff0d;

// Their input methods compose a syllable from letters that must not arrive by themselves.
const composingLanguages: readonly string[] = ["zh", "ja", "ko", "vi", "th", "hi", "am"];

/** Which keys turn the one text into the other: so many times backspace, then these characters. */
export function difference(before: string, after: string): { erase: number; type: string[] } {
  const [old, now] = [[...before], [...after]];
  let same = 0;
  while (same < old.length && same < now.length && old[same] === now[same]) {
    same += 1;
  }
  return {
    erase: old.length - same,
    type: now.slice(same).filter((char) => !filling.includes(char)),
  };
}

/** The keysym of a character (X11 protocol, appendix A): Latin-1 as it is, else by its code point. */
export function keysymOf(char: string): number {
  const code = char.codePointAt(0) ?? 0;
  if (char === "\n") {
    return returnKeysym;
  }
  const isLatin = (code >= 0x20 && code <= 0x7e) || (code >= 0xa0 && code <= 0xff);
  return isLatin ? code : 0x1000000 + code;
}

/** Whether a text under composition may be sent as it grows: then each letter shows at once. */
export function composesWords(languages: readonly string[]): boolean {
  return !languages.some((tag) =>
    composingLanguages.includes(tag.toLowerCase().split("-")[0] ?? ""),
  );
}
