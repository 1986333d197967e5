/** The page in Firefox, by WebDriver BiDi (w3c.github.io/webdriver-bidi): it shows the desktop, types, and pastes. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { tempDir, until } from "../_helpers.ts";
import { ARTIFACTS, ensureViewer } from "./_browser.ts";
import { type Light, lightDesk } from "./_light.ts";

setDefaultTimeout(60_000);

/** Keys of WebDriver that are no characters. */
const [CONTROL, SHIFT, INSERT] = ["\uE009", "\uE008", "\uE016"] as const;

interface Answer {
  id?: number;
  type: string;
  message?: string;
  result?: Record<string, unknown>;
  method?: string;
  params?: { level?: string; text?: string };
}

/** A Firefox with one tab. */
class Firefox {
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  readonly #stop: () => Promise<void>;
  /** Errors and warnings of its console. */
  readonly problems: string[] = [];
  #last = 0;
  #tab = "";

  private constructor(socket: WebSocket, stop: () => Promise<void>) {
    this.#socket = socket;
    this.#stop = stop;
    socket.onmessage = ({ data }) => {
      const answer: Answer = JSON.parse(String(data));
      if (answer.id !== undefined) this.#waiting.get(answer.id)?.(answer);
      else if (answer.method === "log.entryAdded" && answer.params?.level === "error")
        this.problems.push(answer.params.text ?? "");
    };
  }

  static async start() {
    const dir = tempDir();
    const program = Bun.which("firefox-esr") ?? Bun.which("firefox") ?? "firefox-esr";
    const options = ["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile"];
    const child = Bun.spawn([program, ...options, dir.path], {
      env: { PATH: process.env.PATH, HOME: dir.path, TMPDIR: dir.path },
      stdio: ["ignore", "ignore", "pipe"],
    });
    let said = "";
    void (async () => {
      for await (const chunk of child.stderr) said += Buffer.from(chunk).toString();
    })();
    const url = await until(
      "the address of WebDriver",
      () => /WebDriver BiDi listening on (ws:\S+)/.exec(said)?.[1],
      40_000,
    );
    const socket = new WebSocket(`${url}/session`);
    await new Promise((resolve) => socket.addEventListener("open", resolve));
    const stop = async () => {
      child.kill();
      await child.exited;
      dir[Symbol.dispose]();
    };
    const firefox = new Firefox(socket, stop);
    await firefox.#send("session.new", { capabilities: {} });
    await firefox.#send("session.subscribe", { events: ["log.entryAdded"] });
    const { contexts } = (await firefox.#send("browsingContext.getTree", {})) as {
      contexts: { context: string }[];
    };
    firefox.#tab = contexts[0]?.context ?? "";
    return firefox;
  }

  async #send(method: string, params: object) {
    const id = ++this.#last;
    const { promise, resolve } = Promise.withResolvers<Answer>();
    this.#waiting.set(id, resolve);
    this.#socket.send(JSON.stringify({ id, method, params }));
    const answer = await promise;
    if (answer.type !== "success") throw new Error(`${method}: ${answer.message}`);
    return answer.result ?? {};
  }

  go(url: string) {
    return this.#send("browsingContext.navigate", { context: this.#tab, url, wait: "complete" });
  }

  /** What a piece of script gives, as by a click of the person's. */
  async run<T extends string | number | boolean>(expression: string) {
    const { result } = (await this.#send("script.evaluate", {
      expression,
      target: { context: this.#tab },
      awaitPromise: true,
      userActivation: true,
    })) as { result: { value: T } };
    return result.value;
  }

  /** Presses one key after the other; those of a list are held together. */
  async press(...strokes: (string | string[])[]) {
    const actions = strokes.flatMap((stroke) => {
      const keys = [stroke].flat();
      return [
        ...keys.map((value) => ({ type: "keyDown", value })),
        ...keys.toReversed().map((value) => ({ type: "keyUp", value })),
      ];
    });
    const source = { type: "key", id: "keyboard", actions };
    await this.#send("input.performActions", { context: this.#tab, actions: [source] });
  }

  async click(x: number, y: number) {
    const actions = [
      { type: "pointerMove", x, y },
      { type: "pointerDown", button: 0 },
      { type: "pointerUp", button: 0 },
    ];
    const source = { type: "pointer", id: "mouse", actions };
    await this.#send("input.performActions", { context: this.#tab, actions: [source] });
  }

  async screenshot(name: string) {
    const { data } = await this.#send("browsingContext.captureScreenshot", { context: this.#tab });
    fs.writeFileSync(path.join(ARTIFACTS, name), Buffer.from(String(data), "base64"));
  }

  async [Symbol.asyncDispose]() {
    this.#socket.close();
    await this.#stop();
  }
}

let firefox: Firefox;
let desk: Light;

beforeAll(async () => {
  await ensureViewer();
  fs.mkdirSync(ARTIFACTS, { recursive: true });
  [firefox, desk] = await Promise.all([Firefox.start(), lightDesk()]);
  await firefox.go(desk.url.href);
  await until("the desktop", () =>
    firefox.run<boolean>('document.body.dataset.state === "connected"'),
  );
}, 60_000);

afterAll(async () => {
  await desk?.[Symbol.asyncDispose]();
  await firefox?.[Symbol.asyncDispose]();
});

const TEXT = "dürfen – “x” € 😀 日本";

test("Firefox shows the desktop in the window's size, in the pattern's two colours", async () => {
  const area = await until("a canvas of the window's size", () =>
    firefox.run<string>(`(() => {
      const canvas = document.querySelector("#screen canvas");
      const { width, height } = document.querySelector("#screen").getBoundingClientRect();
      return canvas.width === Math.floor(width) && canvas.height === Math.floor(height) ? width + "," + height : "";
    })()`),
  );
  expect(String(await desk.size())).toBe(area);
  const colours = await until("the pattern", () =>
    firefox.run<string>(`(() => {
      const copy = new OffscreenCanvas(64, 64).getContext("2d");
      copy.drawImage(document.querySelector("#screen canvas"), 0, 0);
      const pixels = new Uint32Array(copy.getImageData(0, 0, 64, 64).data.buffer);
      return pixels.includes(0xffffffff) ? String([...new Set(pixels)].map((pixel) => pixel.toString(16)).sort()) : "";
    })()`),
  );
  expect(colours).toBe("ff000000,ffffffff");
  await firefox.screenshot("firefox.png");
});

test("in Firefox keys arrive, and the usual ones paste what was copied here, with no permission", async () => {
  const file = path.join(desk.dir, "typed-in-firefox");
  const pastes = [
    "*VT100.translations: #override Ctrl<Key>v: insert-selection(CLIPBOARD)",
    "Shift<Key>Insert: insert-selection(CLIPBOARD)",
  ].join("\\n ");
  const script = `stty -echo -icanon; : > ${file}.ready; exec cat > ${file}`;
  const options = ["-u8", "-geometry", "80x24+0+0", "-xrm", pastes, "-e", "sh", "-c", script];
  const terminal = desk.start(["env", "LC_ALL=C.UTF-8", "xterm", ...options]);
  await until("the terminal", () => fs.existsSync(`${file}.ready`));
  const typed = () => fs.readFileSync(file, "utf8");
  await firefox.click(60, 100);
  await firefox.press("a", [SHIFT, "b"], "1");
  await until("the keys", () => typed() === "aB1");
  await firefox.run(`navigator.clipboard.writeText(${JSON.stringify(TEXT)})`);
  await firefox.click(60, 100);
  await firefox.press([CONTROL, "v"]);
  await until("the text there", () => typed() === `aB1${TEXT}`);
  await firefox.run('navigator.clipboard.writeText("again")');
  await firefox.click(60, 100);
  await firefox.press([SHIFT, INSERT]);
  // Firefox tells a page of this key only where something can be edited: it pastes what the desktop has.
  const either = [TEXT, "again"].map((text) => `aB1${TEXT}${text}`);
  await until("what the desktop has, or the next text", () => either.includes(typed()));
  terminal.kill();
  await terminal.exited;
});

test("in Firefox what was copied there is in the panel, and the page had nothing to complain of", async () => {
  await firefox.press(SHIFT);
  await desk.copy(`copied there ${TEXT}`);
  const isHere = `document.querySelector("#clipboard-text").value === ${JSON.stringify(`copied there ${TEXT}`)}`;
  await until("it in the panel", () => firefox.run<boolean>(isHere));
  expect(firefox.problems).toEqual([]);
});
