// What the page decides about sizes, keys and layouts, without a DOM.

export interface Size {
  width: number;
  height: number;
}

/** Fits the window by resizing, is scaled to it, is shown pixel by pixel, or has a size of its own. */
export type Fit = "window" | "scale" | "actual" | Size;

// Rounding must not take a pixel off 1000 × 1.15.
const roundingSlack = 0.01;

/** What was chosen, from its name; what is no name of ours is the default. */
export function parseFit(name: string | null): Fit {
  if (name === "scale" || name === "actual") {
    return name;
  }
  const [, width, height] = /^(\d{3,5})x(\d{3,5})$/.exec(name ?? "") ?? [];
  return width !== undefined && height !== undefined
    ? { width: Number(width), height: Number(height) }
    : "window";
}

/** The size to ask the server for; null when it is to stay as it is. */
export function wantedSize(fit: Fit, area: Size, ratio: number): Size | null {
  if (typeof fit === "object") {
    return fit;
  }
  if (fit !== "window" || area.width < 1 || area.height < 1) {
    return null;
  }
  return {
    width: Math.floor(area.width * ratio + roundingSlack),
    height: Math.floor(area.height * ratio + roundingSlack),
  };
}

/** The scale for the desktop's programs, in quarters: no finer one makes a difference to the eye. */
export function scaleFor(fit: Fit, ratio: number): number {
  return fit === "window" ? Math.min(4, Math.max(1, Math.round(ratio * 4) / 4)) : 1;
}

// SetDesktopSize (rfbproto): type, padding, width, height, number of screens, padding; then for a
// screen its id, x, y, width, height and flags.
export const sizeMessageType = 251;
export const sizeMessageBytes = 24;

export const encodingsMessageType = 2;

// The pseudo-encodings of JPEG quality levels 0 to 9 (rfbproto).
const lowestQuality = -32;
const highestQuality = -23;

/** The same SetEncodings (RFC 6143, 7.5.2) without a JPEG quality: what is asked for none, nothing is lost of. */
export function withoutQuality(message: Uint8Array): Uint8Array<ArrayBuffer> {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const kept: number[] = [];
  for (let at = 4; at + 4 <= message.length; at += 4) {
    const encoding = view.getInt32(at);
    if (encoding < lowestQuality || encoding > highestQuality) {
      kept.push(encoding);
    }
  }
  const copy = new DataView(new ArrayBuffer(4 + 4 * kept.length));
  copy.setUint8(0, encodingsMessageType);
  copy.setUint16(2, kept.length);
  for (const [index, encoding] of kept.entries()) {
    copy.setInt32(4 + 4 * index, encoding);
  }
  return new Uint8Array(copy.buffer);
}

/** The same message, for another size. */
export function resizeMessage(
  message: Uint8Array,
  { width, height }: Size,
): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(message);
  const view = new DataView(copy.buffer);
  for (const at of [2, 16]) {
    view.setUint16(at, width);
    view.setUint16(at + 2, height);
  }
  return copy;
}

interface Choice {
  /** "de" or "de:nodeadkeys". */
  value: string;
  title: string;
}

/** All layouts with their variants, by title; what is not of the expected form is left out. */
export function layoutChoices(value: unknown): Choice[] {
  const layouts = Array.isArray(value) ? value.filter(isNamed) : [];
  const choices = layouts.flatMap(({ name, title, variants }) => [
    { value: name, title },
    ...(Array.isArray(variants) ? variants.filter(isNamed) : []).map((variant) => ({
      value: `${name}:${variant.name}`,
      title: variant.title,
    })),
  ]);
  return choices.toSorted((a, b) => a.title.localeCompare(b.title, "en"));
}

function isNamed(value: unknown): value is { name: string; title: string; variants?: unknown } {
  return isValues(value) && typeof value.name === "string" && typeof value.title === "string";
}

export function isValues(value: unknown): value is Record<string, string> {
  return typeof value === "object" && value !== null;
}

/** Whether this key pastes, on any of the systems that a browser or a desktop runs on. */
export function isPasteKey(
  event: Record<"ctrlKey" | "metaKey" | "altKey" | "shiftKey", boolean> & { key: string },
): boolean {
  const { key, ctrlKey, metaKey, altKey, shiftKey } = event;
  if (altKey) {
    return false;
  }
  return ctrlKey || metaKey ? key.toLowerCase() === "v" : shiftKey && key === "Insert";
}
