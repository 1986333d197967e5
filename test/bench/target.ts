// A stand-in for a VNC server, in a process of its own so that its work is not counted to a bridge.
// It speaks RFB 3.8 up to ServerInit; the text of the first ClientCutText then says what to do:
//   echo        send every later byte back
//   source N    send N bytes as fast as they are taken
//   sink N      count N bytes, then answer with one Bell
// Usage: bun target.ts SOCKET; prints the TCP port it listens on as well.

import type { Socket } from "bun";

type Stage = "version" | "security" | "init" | "command" | "echo" | "source" | "sink";

interface State {
  stage: Stage;
  /** Bytes of an unfinished handshake message. */
  input: Buffer;
  /** What the socket did not take yet. */
  output: Buffer;
  /** What is left to send (source) or to receive (sink). */
  left: number;
}

const cutTextHeaderBytes = 8;
const bell = Buffer.from([2]);
const securityNone = Buffer.from([1, 1]);
const securityOk = Buffer.from([0, 0, 0, 0]);
/** About what a VNC server writes at once. */
const block = Buffer.alloc(65_536, 7);

function serverInit(): Buffer {
  const message = Buffer.alloc(24 + 5);
  message.writeUInt16BE(1280, 0);
  message.writeUInt16BE(800, 2);
  // 32 bits a pixel, depth 24, true colour, eight bits a channel.
  message.set([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0], 4);
  message.writeUInt32BE(5, 20);
  message.write("bench", 24);
  return message;
}

function send(socket: Socket<State>, bytes: Buffer) {
  const state = socket.data;
  if (state.output.length > 0) {
    state.output = Buffer.concat([state.output, bytes]);
    return;
  }
  const taken = Math.max(0, socket.write(bytes));
  if (taken < bytes.length) state.output = bytes.subarray(taken);
}

function pump(socket: Socket<State>) {
  const state = socket.data;
  while (state.left > 0 && state.output.length === 0) {
    const bytes = state.left < block.length ? block.subarray(0, state.left) : block;
    state.left -= bytes.length;
    send(socket, bytes);
  }
}

/** Answers one handshake message and returns its length, or 0 while it is incomplete. */
function handshake(socket: Socket<State>, input: Buffer): number {
  const state = socket.data;
  if (state.stage === "version") {
    if (input.length < 12) return 0;
    send(socket, securityNone);
    state.stage = "security";
    return 12;
  }
  if (state.stage === "security") {
    send(socket, securityOk);
    state.stage = "init";
    return 1;
  }
  if (state.stage === "init") {
    send(socket, serverInit());
    state.stage = "command";
    return 1;
  }
  if (input.length < cutTextHeaderBytes) return 0;
  const length = cutTextHeaderBytes + input.readUInt32BE(4);
  if (input.length < length) return 0;
  const [word, count] = input.toString("latin1", cutTextHeaderBytes, length).split(" ");
  if (word !== "echo" && word !== "source" && word !== "sink") {
    throw new Error(`unknown command "${word}"`);
  }
  state.stage = word;
  state.left = Number(count ?? 0);
  return length;
}

function hasCommand({ stage }: State): boolean {
  return stage === "echo" || stage === "source" || stage === "sink";
}

function work(socket: Socket<State>, bytes: Buffer) {
  const state = socket.data;
  if (state.stage === "echo") {
    if (bytes.length > 0) send(socket, bytes);
  } else if (state.stage === "source") {
    pump(socket);
  } else if (state.left > 0) {
    state.left -= bytes.length;
    if (state.left <= 0) send(socket, bell);
  }
}

const handlers = {
  open(socket: Socket<State>) {
    socket.data = {
      stage: "version",
      input: Buffer.alloc(0),
      output: Buffer.alloc(0),
      left: 0,
    };
    send(socket, Buffer.from("RFB 003.008\n"));
  },
  data(socket: Socket<State>, bytes: Buffer) {
    const state = socket.data;
    if (hasCommand(state)) {
      work(socket, bytes);
      return;
    }
    let input = Buffer.concat([state.input, bytes]);
    while (!hasCommand(state)) {
      const used = input.length === 0 ? 0 : handshake(socket, input);
      if (used === 0) break;
      input = input.subarray(used);
    }
    if (hasCommand(state)) work(socket, input);
    else state.input = input;
  },
  drain(socket: Socket<State>) {
    const { output } = socket.data;
    socket.data.output = Buffer.alloc(0);
    if (output.length > 0) send(socket, output);
    if (socket.data.stage === "source") pump(socket);
  },
  error(_socket: Socket<State>, error: Error) {
    console.error(error.message);
  },
};

if (import.meta.main) {
  const path = process.argv[2];
  if (path === undefined) throw new Error("usage: bun target.ts SOCKET");
  Bun.listen<State>({ unix: path, socket: handlers });
  const tcp = Bun.listen<State>({ hostname: "127.0.0.1", port: 0, socket: handlers });
  console.log(tcp.port);
}
