// What can be told from counts and bytes of a connection, without a DOM.

/** Totals since the page was loaded; `at` is in ms. */
export interface Reading {
  at: number;
  received: number;
  sent: number;
  /** Screen refreshes of this computer in which something arrived: pictures, nearly always. */
  frames: number;
}

export interface Rates {
  receivedPerSecond: number;
  sentPerSecond: number;
  framesPerSecond: number;
}

// RFC 6143, 7.7, and the registry for the rest: what noVNC asks for and packs pictures.
const encodings: Readonly<Record<number, string>> = {
  0: "Raw",
  2: "RRE",
  5: "Hextile",
  6: "Zlib",
  7: "Tight",
  16: "ZRLE",
  21: "JPEG",
  50: "H.264",
  [-260]: "TightPNG",
};

// FramebufferUpdate (RFC 6143, 7.6.1): its header, and that of its first rectangle.
const updateBytes = 16;

// ServerFence, an extension that the RFB registry names.
const fenceType = 248;

/** What happened between two readings, a second. */
export function ratesBetween(before: Reading, after: Reading): Rates {
  const seconds = Math.max(0.001, (after.at - before.at) / 1000);
  return {
    receivedPerSecond: (after.received - before.received) / seconds,
    sentPerSecond: (after.sent - before.sent) / seconds,
    framesPerSecond: (after.frames - before.frames) / seconds,
  };
}

/** The encoding of the picture that begins with this message, when one begins here. */
export function encodingOf(data: ArrayBuffer): string | null {
  const view = new DataView(data);
  let at = 0;
  // A server that measures the line puts fences before its pictures: 8 bytes, and a text with its length.
  while (at + 9 <= view.byteLength && view.getUint8(at) === fenceType) {
    at += 9 + view.getUint8(at + 8);
  }
  // Type 0, one byte of padding, and at least one rectangle; all else is the middle of something.
  const isUpdate =
    at + updateBytes <= view.byteLength && view.getUint16(at) === 0 && view.getUint16(at + 2) > 0;
  return isUpdate ? (encodings[view.getInt32(at + 12)] ?? null) : null;
}
