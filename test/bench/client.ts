// The browser's side, as cheap as it can be made: a raw socket and WebSocket frames by hand, masked
// before the clock starts. Bun's own WebSocket client would cost more than some of the bridges.

import type { Socket } from "bun";

type Address = { unix: string } | { hostname: string; port: number };

/** Where a viewer connects: a bridge's WebSocket, or (framed: false) the target itself. */
export interface Endpoint {
  address: Address;
  path: string;
  headers: Record<string, string>;
  framed: boolean;
}

const cutTextHeaderBytes = 8;
const serverInitBytes = 24;
/** The target's whole greeting: version, security types, result, ServerInit with its name. */
const handshakeBytes = 12 + 2 + 4 + serverInitBytes + 5;

/** One RFB ClientCutText of exactly `bytes` bytes, so that a bridge that frames RFB accepts it. */
export function cutText(bytes: number, text = ""): Buffer {
  const message = Buffer.alloc(bytes, "x");
  message.fill(0, 1, 4);
  message[0] = 6;
  message.writeUInt32BE(bytes - cutTextHeaderBytes, 4);
  message.write(text, cutTextHeaderBytes, "latin1");
  return message;
}

/** One masked binary frame (RFC 6455, 5.2). */
function maskedFrame(payload: Uint8Array): Buffer {
  const extra = payload.length < 126 ? 0 : payload.length < 65_536 ? 2 : 8;
  const frame = Buffer.alloc(2 + extra + 4 + payload.length);
  frame[0] = 0x82;
  frame[1] = 0x80 | (extra === 0 ? payload.length : extra === 2 ? 126 : 127);
  if (extra === 2) frame.writeUInt16BE(payload.length, 2);
  if (extra === 8) frame.writeBigUInt64BE(BigInt(payload.length), 2);
  const key = crypto.getRandomValues(new Uint8Array(4));
  frame.set(key, 2 + extra);
  const start = 6 + extra;
  payload.forEach((byte, i) => {
    frame[start + i] = byte ^ (key[i % 4] ?? 0);
  });
  return frame;
}

/** One viewer: a socket, the WebSocket on it, and a count of the payload that arrived. */
export class Viewer {
  received = 0;
  /** Rejects when the connection ends before `close` was called. */
  readonly broken: Promise<never>;
  #onPayload: ((bytes: Buffer) => void) | undefined;
  #socket: Socket<undefined> | undefined;
  #framed: boolean;
  #break: (error: Error) => void;
  #closed = false;
  #upgrading: string | undefined;
  #goal = Number.POSITIVE_INFINITY;
  #reached: () => void = () => {};
  #tail: Buffer | undefined;
  #sent: () => void = () => {};
  #header = Buffer.alloc(10);
  #headerBytes = 0;
  #payloadLeft = 0;
  #isData = false;

  private constructor(framed: boolean) {
    const { promise, reject } = Promise.withResolvers<never>();
    // It is only raced; without a reader of its own a break would be an unhandled rejection.
    promise.catch(() => {});
    this.broken = promise;
    this.#break = reject;
    this.#framed = framed;
    this.#upgrading = framed ? "" : undefined;
  }

  /**
   * Connects and upgrades; resolves on the first payload. `onPayload` sees every payload, for what
   * needs the bytes and not only their number.
   */
  static async open(endpoint: Endpoint, onPayload?: (bytes: Buffer) => void): Promise<Viewer> {
    const viewer = new Viewer(endpoint.framed);
    viewer.#onPayload = onPayload;
    viewer.#socket = await viewer.#connect(endpoint.address);
    const host = "port" in endpoint.address ? `127.0.0.1:${endpoint.address.port}` : "localhost";
    const headers = {
      Host: host,
      Origin: `http://${host}`,
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": Buffer.from(crypto.getRandomValues(new Uint8Array(16))).toString(
        "base64",
      ),
      "Sec-WebSocket-Protocol": "binary",
      ...endpoint.headers,
    };
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    const greeted = viewer.arrived(1);
    if (endpoint.framed) {
      viewer.#socket.write(`GET ${endpoint.path} HTTP/1.1\r\n${lines.join("")}\r\n`);
    }
    await greeted;
    return viewer;
  }

  /** Like `open`, then through the RFB handshake with `target.ts`. */
  static async openRfb(endpoint: Endpoint): Promise<Viewer> {
    const viewer = await Viewer.open(endpoint);
    await viewer.arrived(12);
    viewer.send(viewer.prepare(Buffer.from("RFB 003.008\n")));
    await viewer.arrived(14);
    viewer.send(viewer.prepare(Buffer.from([1])));
    await viewer.arrived(18);
    viewer.send(viewer.prepare(Buffer.from([1])));
    await viewer.arrived(handshakeBytes);
    return viewer;
  }

  /** The bytes to send for one payload, framed when there is a WebSocket. */
  prepare(payload: Uint8Array): Buffer {
    return this.#framed ? maskedFrame(payload) : Buffer.from(payload);
  }

  /** Tells the target what to do. */
  command(text: string) {
    this.send(this.prepare(cutText(cutTextHeaderBytes + text.length, text)));
  }

  /** Sends what `prepare` made; true when the socket took it all. */
  send(bytes: Buffer): boolean {
    if (this.#tail !== undefined) throw new Error("sent before the last message was taken");
    const taken = Math.max(0, this.#socket?.write(bytes) ?? 0);
    if (taken === bytes.length) return true;
    this.#tail = bytes.subarray(taken);
    return false;
  }

  /** Calls once when `total` bytes of payload have arrived since the start. */
  when(total: number, reached: () => void) {
    if (this.received >= total) {
      reached();
      return;
    }
    this.#goal = total;
    this.#reached = reached;
  }

  arrived(total: number): Promise<void> {
    const reached = new Promise<void>((resolve) => this.when(total, resolve));
    return Promise.race([reached, this.broken]);
  }

  /** Sends the same bytes again and again, as fast as they are taken. */
  flood(bytes: Buffer, times: number) {
    let left = times;
    this.#sent = () => {
      while (left > 0) {
        left -= 1;
        if (!this.send(bytes)) return;
      }
      this.#sent = () => {};
    };
    this.#sent();
  }

  /** Stops reading, as a viewer whose machine hangs. */
  stall() {
    this.#socket?.pause();
  }

  close() {
    this.#closed = true;
    this.#socket?.terminate();
  }

  #connect(address: Address): Promise<Socket<undefined>> {
    const socket = {
      data: (_socket: Socket<undefined>, bytes: Buffer) => this.#receive(bytes),
      drain: () => this.#flush(),
      close: () => this.#end("the bridge closed the connection"),
      error: (_socket: Socket<undefined>, error: Error) => this.#end(error.message),
    };
    return "unix" in address
      ? Bun.connect({ ...address, socket })
      : Bun.connect({ ...address, socket });
  }

  #end(reason: string) {
    if (!this.#closed) this.#break(new Error(reason));
  }

  #flush() {
    const tail = this.#tail;
    this.#tail = undefined;
    if (tail === undefined || this.send(tail)) this.#sent();
  }

  #count(bytes: Buffer) {
    this.received += bytes.length;
    this.#onPayload?.(bytes);
    if (this.received < this.#goal) return;
    const reached = this.#reached;
    this.#goal = Number.POSITIVE_INFINITY;
    reached();
  }

  #receive(bytes: Buffer) {
    if (this.#upgrading !== undefined) {
      this.#upgrading += bytes.toString("latin1");
      const end = this.#upgrading.indexOf("\r\n\r\n");
      if (end < 0) return;
      const rest = this.#upgrading.slice(end + 4);
      const status = this.#upgrading.slice(0, this.#upgrading.indexOf("\r\n"));
      this.#upgrading = undefined;
      if (!status.includes(" 101 ")) this.#end(`no upgrade: ${status}`);
      else this.#unframe(Buffer.from(rest, "latin1"));
    } else if (this.#framed) {
      this.#unframe(bytes);
    } else {
      this.#count(bytes);
    }
  }

  #unframe(bytes: Buffer) {
    let at = 0;
    while (at < bytes.length) {
      if (this.#payloadLeft > 0) {
        const end = Math.min(bytes.length, at + this.#payloadLeft);
        this.#payloadLeft -= end - at;
        if (this.#isData) this.#count(bytes.subarray(at, end));
        at = end;
      } else {
        this.#header[this.#headerBytes] = bytes[at] ?? 0;
        this.#headerBytes += 1;
        at += 1;
        this.#parseHeader();
      }
    }
  }

  #parseHeader() {
    if (this.#headerBytes < 2) return;
    const length = (this.#header[1] ?? 0) & 0x7f;
    const headerBytes = length === 127 ? 10 : length === 126 ? 4 : 2;
    if (this.#headerBytes < headerBytes) return;
    this.#headerBytes = 0;
    const opcode = (this.#header[0] ?? 0) & 0x0f;
    if (opcode === 8) this.#end("the bridge sent a close frame");
    // Pings are not answered: no measure lasts as long as a peer waits for a pong.
    this.#isData = opcode < 8;
    if (length === 127) this.#payloadLeft = Number(this.#header.readBigUInt64BE(2));
    else this.#payloadLeft = length === 126 ? this.#header.readUInt16BE(2) : length;
  }
}
