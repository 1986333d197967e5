/** The keyboard layout and the scale of a desktop that runs: the routes, and the programs that they run. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { parseLayouts } from "../server.ts";
import { BEARER, startServer, tempDir, until } from "./_helpers.ts";
import { type Light, lightDesk } from "./e2e/_light.ts";

setDefaultTimeout(30_000);

let desk: Light;

beforeAll(async () => {
  desk = await lightDesk();
});

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
});

const set = (name: "keyboard" | "scale", body: unknown, at: Pick<Light, "ask"> = desk) =>
  at.ask(`desktop/api/${name}`, { method: "POST", body: JSON.stringify(body) });
const layoutOf = async (at = desk) => {
  const said = await at.run(["setxkbmap", "-query"]);
  return [/layout: +(\S+)/.exec(said)?.[1], /variant: +(\S+)/.exec(said)?.[1]];
};

test("X's list of layouts is read with its variants, and nothing else of it", () => {
  const rules = [
    "! model\n  pc105           Generic 105-key PC\n",
    "! layout\n  de              German\n  al              Albanian\n",
    "! variant\n  nodeadkeys      de: German (no dead keys)\n  odd             German\n",
    "! option\n  grp             Switching to another layout\n",
  ].join("\n");
  expect(parseLayouts(rules)).toEqual([
    {
      name: "de",
      title: "German",
      variants: [{ name: "nodeadkeys", title: "German (no dead keys)" }],
    },
    { name: "al", title: "Albanian", variants: [] },
  ]);
  expect(parseLayouts("")).toEqual([]);
});

test("the layouts to choose from are those that X knows, with the one that is set", async () => {
  await desk.run(["setxkbmap", "-layout", "fr,us", "-variant", "oss,"]);
  const response = await desk.ask("desktop/api/keyboard");
  expect(response.headers.get("cache-control")).toBe("no-store");
  const told = (await response.json()) as { layouts: { name: string }[] };
  expect(told).toMatchObject({ layout: "fr", variant: "oss" });
  const names = told.layouts.map(({ name }) => name);
  for (const name of ["us", "de", "fr", "es", "gb"]) expect(names).toContain(name);
});

test("a layout that is chosen is the session's, with and without a variant", async () => {
  const first = await set("keyboard", { layout: "de", variant: "nodeadkeys" });
  expect([first.status, await first.json()]).toEqual([
    200,
    { layout: "de", variant: "nodeadkeys" },
  ]);
  expect(await layoutOf()).toEqual(["de", "nodeadkeys"]);
  expect((await set("keyboard", { layout: "es" })).status).toBe(200);
  expect(await layoutOf()).toEqual(["es", undefined]);
});

test.each([
  ["unknown-layout", { layout: "zz" }],
  ["unknown-layout", { layout: "de", variant: "oss" }],
  ["bad-request", { layout: "de -option x" }],
  ["bad-request", { layout: "de", variant: "$(touch x)" }],
  ["bad-request", { layout: "-help" }],
  ["bad-request", { layout: ["de"] }],
  ["bad-request", "de"],
  ["bad-request", undefined],
])("what is no layout is refused as %s, and changes nothing: %j", async (cause, body) => {
  const before = await layoutOf();
  const response = await set("keyboard", body);
  expect([response.status, await response.json()]).toMatchObject([400, { cause }]);
  expect(await layoutOf()).toEqual(before);
});

test("who has no token, or comes from another site, sets nothing", async () => {
  const before = await layoutOf();
  const address = new URL("/desktop/api/keyboard", desk.url);
  const init = { method: "POST", body: JSON.stringify({ layout: "gb" }) };
  expect((await fetch(address, init)).status).toBe(401);
  const foreign = { ...BEARER, origin: "https://evil.example" };
  expect((await fetch(address, { ...init, headers: foreign })).status).toBe(403);
  expect(await layoutOf()).toEqual(before);
});

test("programs that start from now on are told of the scale, and 1 takes it back", async () => {
  const dpi = async () => /Xft\.dpi:\s*(\d+)/.exec(await desk.run(["xrdb", "-query"]))?.[1];
  expect((await set("scale", { factor: 1 })).status).toBe(200);
  expect(await dpi()).toBeUndefined();
  expect((await set("scale", { factor: 1.5 })).status).toBe(200);
  expect(await dpi()).toBe("144");
  expect((await set("scale", { factor: 1 })).status).toBe(200);
  expect(await dpi()).toBe("96");
  for (const factor of [0, 0.5, 5, "2", null]) {
    expect((await set("scale", { factor })).status).toBe(400);
  }
});

test("XFCE's scale that two pages set at once is taken back to what the person had before", async () => {
  using dir = tempDir();
  // XFCE's settings as files. The first page's letters take long to set: the second comes in the middle of it.
  const tool = [
    'file="$HOME/xfconf-$(echo "$2$4" | tr / _)"; value=; verb=get',
    "shift 4",
    'while [ "$#" -gt 0 ]; do case "$1" in -s) verb=set; value=$2 ;; -r) verb=reset ;; esac; shift; done',
    '[ "$value" != 96 ] || sleep 1',
    'case "$verb" in get) cat "$file" 2>/dev/null ;; set) echo "$value" >"$file" ;; reset) rm "$file" ;; esac',
  ];
  fs.writeFileSync(path.join(dir.path, "xfconf-query"), `#!/bin/sh\n${tool.join("\n")}\n`, {
    mode: 0o755,
  });
  const session = [
    `export XDG_CURRENT_DESKTOP=XFCE DBUS_SESSION_BUS_ADDRESS=unix:path=/none PATH="${dir.path}:$PATH"`,
    'echo 1 >"$HOME/xfconf-xsettings_Gdk_WindowScalingFactor"; echo 120 >"$HOME/xfconf-xsettings_Xft_DPI"',
    "exec sleep infinity",
  ];
  const xstartup = path.join(dir.path, "xstartup");
  fs.writeFileSync(xstartup, `#!/bin/sh\n${session.join("\n")}\n`, { mode: 0o755 });
  await using server = await startServer(["--xstartup", xstartup]);
  const drawn = () =>
    ["Gdk_WindowScalingFactor", "Xft_DPI"].map((name) =>
      fs.readFileSync(path.join(server.dir, `xfconf-xsettings_${name}`), "utf8").trim(),
    );
  const scale = async (factor: number) => (await set("scale", { factor }, server)).status;
  await until("the desktop", async () => (await scale(1)) === 200);
  const first = scale(2);
  await until("the first page's scale", () => drawn()[0] === "2");
  expect(await Promise.all([first, scale(1.5)])).toEqual([200, 200]);
  expect(drawn()).toEqual(["1", "144"]);
  expect(await scale(1)).toBe(200);
  expect(drawn()).toEqual(["1", "120"]);
});

test("somebody else's VNC server is not told what to do, nor is a desktop that was stopped", async () => {
  await using attached = await startServer(["--vnc", "unix:/nonexistent/vnc.sock"]);
  await using stopped = await lightDesk();
  await stopped.ask("desktop/api/stop", { method: "POST" });
  for (const server of [attached, stopped]) {
    for (const response of [
      await server.ask("desktop/api/keyboard"),
      await set("keyboard", { layout: "de" }, server),
      await set("scale", { factor: 2 }, server),
    ])
      expect([response.status, await response.json()]).toMatchObject([
        409,
        { cause: "not-own-desktop" },
      ]);
  }
  expect(await (await attached.ask("", { headers: { accept: "text/html" } })).text()).toContain(
    'data-desktop=""',
  );
});

test.skipIf(process.getuid?.() !== 0)(
  "a program that is missing is named, with what installs it",
  async () => {
    using dir = tempDir();
    const xstartup = path.join(dir.path, "xstartup");
    fs.writeFileSync(xstartup, "#!/bin/sh\nexec sleep infinity\n", { mode: 0o755 });
    const hide = 'mount --bind /dev/null /usr/bin/setxkbmap && exec "$@"';
    const hidden = ["unshare", "-m", "sh", "-c", hide, "sh"];
    await using server = await startServer(["--xstartup", xstartup], {}, hidden);
    await until("the desktop", async () => {
      const status = await server.ask("desktop/api/status");
      return ((await status.json()) as { state: string }).state === "ready";
    });
    const response = await server.ask("desktop/api/keyboard");
    expect([response.status, await response.json()]).toMatchObject([
      501,
      {
        cause: "no-program",
        detail: { program: "setxkbmap", command: expect.stringContaining("x11-xkb-utils") },
      },
    ]);
  },
);
