/** --clipboard against clients that do not keep to it: raw RFB on a WebSocket, real Xvnc, and xclip on the other side. */
import { expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { BEARER, openWebSocket, processesWith, startServer, until } from "./_helpers.ts";
import { type Light, lightDesk } from "./e2e/_light.ts";

setDefaultTimeout(30_000);

const CUT_TEXT = 3; // ServerCutText, RFC 6143, 7.6.4

const cutText = (text: string) => {
  const bytes = Buffer.from(text, "latin1");
  const header = Buffer.from([6, 0, 0, 0, 0, 0, 0, 0]);
  header.writeUInt32BE(bytes.length, 4);
  return Buffer.concat([header, bytes]);
};

/** The same by the extended clipboard: word that there is text, which the server would then ask for. */
const notify = Buffer.from([6, 0, 0, 0, 255, 255, 255, 252, 8, 0, 0, 1]);
const rawOnly = Buffer.from([2, 0, 0, 1, 0, 0, 0, 0]);
const extended = Buffer.from([2, 0, 0, 2, 0, 0, 0, 0, 0xc0, 0xa1, 0xe5, 0xce]);

/** A viewer that has done the handshake, and asks for no picture. */
async function rawViewer(url: URL, encodings = rawOnly) {
  const viewer = await openWebSocket(new URL("desktop-websockify/", url), { headers: BEARER });
  const { ws, inbox } = viewer;
  await inbox.read(12);
  ws.send(Buffer.from("RFB 003.008\n"));
  const types = await inbox.read((await inbox.read(1)).readUInt8());
  expect([...types]).toContain(1);
  ws.send(Uint8Array.of(1));
  expect((await inbox.read(4)).readUInt32BE()).toBe(0);
  ws.send(Uint8Array.of(1));
  const init = await inbox.read(24);
  await inbox.read(init.readUInt32BE(20));
  ws.send(encodings);
  return viewer;
}

type Raw = Awaited<ReturnType<typeof rawViewer>>;

const send = (viewer: Raw, bytes: Buffer<ArrayBuffer>) => viewer.ws.send(bytes);

/** Moves the pointer, and waits until it is there: all that was sent before has been read then. */
async function isRead(viewer: Raw, desk: Light) {
  const [x = 0] = await desk.pointer();
  const next = x === 100 ? 200 : 100;
  send(viewer, Buffer.from([5, 0, 0, next, 0, 50]));
  await until("the pointer there", async () => (await desk.pointer())[0] === next);
}

/** Waits until text that is copied would have come: the desktop has handed it out, and the server answered since. */
async function isToldOrNot(viewer: Raw, desk: Light, text: string) {
  for (let turn = 0; turn < 3; turn++) {
    await until("the text on the desktop", async () => (await desk.clipboard()) === text);
    await isRead(viewer, desk);
  }
}

test.each(["both", "in"])("--clipboard %s lets a viewer's text in", async (way) => {
  await using desk = await lightDesk("--clipboard", way);
  await using viewer = await rawViewer(desk.url);
  send(viewer, cutText("from a raw viewer"));
  await until("the text on the desktop", async () =>
    (await desk.clipboard()).startsWith("from a raw viewer"),
  );
});

test.each(["out", "off"])("--clipboard %s lets no text of a viewer in", async (way) => {
  await using desk = await lightDesk("--clipboard", way);
  for (const encodings of [rawOnly, extended]) {
    await using viewer = await rawViewer(desk.url, encodings);
    await desk.copy("of the desktop");
    send(viewer, cutText("from a raw viewer"));
    send(viewer, notify);
    await isRead(viewer, desk);
    expect(await desk.clipboard()).toBe("of the desktop");
  }
});

test.each(["both", "out"])("--clipboard %s tells a viewer what was copied", async (way) => {
  await using desk = await lightDesk("--clipboard", way);
  await using viewer = await rawViewer(desk.url);
  await desk.copy("of the desktop");
  await isToldOrNot(viewer, desk, "of the desktop");
  const told = await viewer.inbox.read(8);
  expect(told[0]).toBe(CUT_TEXT);
  expect((await viewer.inbox.read(told.readUInt32BE(4))).toString()).toBe("of the desktop");
});

test.each(["in", "off"])(
  "--clipboard %s tells a viewer nothing of what was copied",
  async (way) => {
    await using desk = await lightDesk("--clipboard", way);
    for (const encodings of [rawOnly, extended]) {
      await using viewer = await rawViewer(desk.url, encodings);
      await isRead(viewer, desk);
      const before = viewer.inbox.total;
      await desk.copy("of the desktop");
      await isToldOrNot(viewer, desk, "of the desktop");
      expect(viewer.inbox.total).toBe(before);
    }
  },
);

test("--clipboard out holds for somebody else's VNC server as well, which would take the text", async () => {
  await using desk = await lightDesk();
  const socket = await until("its socket", () => {
    const [pid] = processesWith(`${desk.dir}/`).filter((each) =>
      commandLine(each).includes("-rfbunixpath"),
    );
    return pid && /-rfbunixpath\0([^\0]+)/.exec(commandLine(pid))?.[1];
  });
  await using attached = await startServer(["--vnc", `unix:${socket}`, "--clipboard", "out"]);
  await using viewer = await rawViewer(attached.url);
  await desk.copy("of the desktop");
  send(viewer, cutText("from a raw viewer"));
  await isRead(viewer, desk);
  expect(await desk.clipboard()).toBe("of the desktop");
  // And a viewer of an old protocol, whose messages cannot be told apart, gets no further.
  const old = await openWebSocket(new URL("desktop-websockify/", attached.url), {
    headers: BEARER,
  });
  old.ws.send(Buffer.from("RFB 003.003\n"));
  expect((await old.closed).code).toBe(4400);
});

const commandLine = (pid: string) => {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return ""; // ended meanwhile
  }
};
