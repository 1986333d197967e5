/** docs/proxy/ as it stands there, run by the real nginx and the real Caddy; other ports and certificates are filled in. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { fakeVnc, HANDSHAKE, type Inbox, openWebSocket } from "./_helpers.ts";
import { processesWith, startServer, tempDir, TOKEN, until } from "./_helpers.ts";
import {
  ensureViewer,
  launchBrowser,
  seesDesktop,
  SIZE,
  SLOW_MS,
  withPage,
} from "./e2e/_browser.ts";

const DOCS = path.join(import.meta.dir, "../docs/proxy");
const PREFIX = "/desk/";
const KINDS = ["nginx", "caddy"] as const;
const PREFIXES = ["kept", "stripped"] as const;
const CASES = KINDS.flatMap((kind) =>
  PREFIXES.flatMap((prefix) => [false, true].map((tls) => ({ kind, prefix, tls }))),
);
type Case = (typeof CASES)[number];

const GREETING = Buffer.from("RFB 003.008\n");
/** What RFC 6143, 7.1 has a viewer say before it sees the desktop, and one cut text of 64 KiB (7.5.6). */
const SAYS = Buffer.concat([
  GREETING,
  Buffer.from([1, 1, 6, 0, 0, 0, 0, 1, 0, 0]),
  Buffer.alloc(1 << 16, "é"),
]);
const SCREEN = randomBytes(4 << 20);
const MIB = 1 << 20;
const EVIL = "https://desktop.example.org.evil.example";

const MISSING = [...KINDS, "openssl"].filter(
  (name) => !Bun.which(name, { PATH: `${process.env.PATH}:/usr/sbin` }),
);
if (MISSING.length > 0) throw new Error(`${MISSING.join(", ")} is missing. Type: sh test/setup.sh`);
setDefaultTimeout(30_000);

const dir = tempDir();
const cert = path.join(dir.path, "cert.pem");
const key = path.join(dir.path, "key.pem");
let ca = "";

/** A viewer's side of a connection to VNC: greets, agrees to no password, shows a screen when it was heard out. */
const vnc = fakeVnc(async (peer: Inbox) => {
  peer.socket?.write(GREETING);
  await peer.read(GREETING.length);
  peer.socket?.write(Uint8Array.of(1, 1));
  await peer.read(1);
  peer.socket?.write(Uint8Array.of(0, 0, 0, 0));
  await peer.read(SAYS.length - GREETING.length - 1);
  for (let at = 0; at < SCREEN.length;) {
    at += peer.socket?.write(SCREEN, at, SCREEN.length - at) ?? 0;
    if (at < SCREEN.length) await peer.changed.promise;
  }
});

type Server = Awaited<ReturnType<typeof startServer>>;
const servers = {} as Record<(typeof PREFIXES)[number], Server>;

beforeAll(async () => {
  await ensureViewer();
  const request =
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost";
  const names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert];
  const { success, stderr } = Bun.spawnSync(["openssl", ...request.split(" "), ...names]);
  if (!success) throw new Error(stderr.toString());
  ca = fs.readFileSync(cert, "utf8");
  servers.kept = await startServer(["--vnc", vnc.name, "--base-url", PREFIX]);
  servers.stripped = await startServer(["--vnc", vnc.name]);
});

afterAll(async () => {
  await Promise.all(Object.values(servers).map((server) => server[Symbol.asyncDispose]()));
  vnc[Symbol.dispose]();
  dir[Symbol.dispose]();
});

// --- the proxies ---

function freePort() {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  listener.stop(true);
  return listener.port;
}

/** Puts one text in the place of another, which must be there: a changed document must not pass untested. */
function fill(text: string, values: readonly (readonly [string, string])[]) {
  return values.reduce((filled, [from, to]) => {
    if (!filled.includes(from)) throw new Error(`docs/proxy: there is no ${JSON.stringify(from)}`);
    return filled.replaceAll(from, to);
  }, text);
}

interface Ports {
  port: number;
  plain: number;
}

/** nginx's main configuration around the document's, which is for conf.d. */
function nginxCommand({ tls }: Case, text: string, { port, plain, at }: Ports & { at: string }) {
  const listens = tls
    ? ([
        ["listen 443 ssl", `listen 127.0.0.1:${port} ssl`],
        ["listen 80", `listen 127.0.0.1:${plain}`],
      ] as const)
    : ([["listen 80", `listen 127.0.0.1:${port}`]] as const);
  const own = [
    ["desktop.example.org;", "localhost;"],
    ["/var/log/nginx/", `${at}/`],
  ] as const;
  const temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (name) => `${name}_temp_path ${at}/${name};`,
  );
  fs.writeFileSync(path.join(at, "desktop.conf"), fill(text, [...listens, ...own]));
  fs.writeFileSync(
    path.join(at, "nginx.conf"),
    `daemon off; master_process off; pid ${at}/pid; error_log ${at}/start.log;
    ${process.getuid?.() === 0 ? "user root;" : ""} events {} http { ${temp.join(" ")} include ${at}/desktop.conf; }`,
  );
  return ["nginx", "-p", at, "-e", `${at}/start.log`, "-c", `${at}/nginx.conf`];
}

function caddyCommand({ tls }: Case, text: string, { port, plain, at }: Ports & { at: string }) {
  const address = tls ? "\ndesktop.example.org {" : "\nhttp://desktop.example.org {";
  const scheme = tls ? "https" : "http";
  const values = [
    ["{\n\tlog {", `{\n\tadmin off\n\thttp_port ${tls ? plain : port}\n\tlog {`],
    [address, `\n${scheme}://localhost:${port} {\n\tbind 127.0.0.1`],
  ] as const;
  fs.writeFileSync(path.join(at, "Caddyfile"), fill(text, values));
  return ["caddy", "run", "--adapter", "caddyfile", "--config", path.join(at, "Caddyfile")];
}

/** Starts the proxy of a case before this address, which takes the place of 127.0.0.1:6080 in the document. */
async function startProxy(
  which: Case,
  server: string,
  more: readonly (readonly [string, string])[] = [],
) {
  const { kind, prefix, tls } = which;
  const extension = kind === "nginx" ? "conf" : "caddyfile";
  const file = path.join(DOCS, `${kind}-${prefix}${tls ? "-tls" : ""}.${extension}`);
  const ports = { port: freePort(), plain: freePort() };
  const at = fs.mkdtempSync(path.join(dir.path, `${kind}-`));
  const certs = tls
    ? ([
        ["/etc/ssl/desktop/cert.pem", cert],
        ["/etc/ssl/desktop/key.pem", key],
      ] as const)
    : [];
  const addresses = more.length > 0 ? more : ([["127.0.0.1:6080", server]] as const);
  const text = fill(fs.readFileSync(file, "utf8"), [...addresses, ...certs]);
  const command = (kind === "nginx" ? nginxCommand : caddyCommand)(which, text, { ...ports, at });
  const child = Bun.spawn(command, {
    env: { PATH: `${process.env.PATH}:/usr/sbin`, HOME: at, TMPDIR: at },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = { text: "" };
  const follow = async (stream: ReadableStream<Uint8Array>) => {
    for await (const chunk of stream) said.text += Buffer.from(chunk).toString();
  };
  const ended = Promise.all([child.exited, follow(child.stdout), follow(child.stderr)]);
  const url = new URL(PREFIX, `${tls ? "https" : "http"}://localhost:${ports.port}`);
  const ask = (to: string, init: BunFetchRequestInit = {}) =>
    fetch(new URL(to, url), { redirect: "manual", tls: { ca }, ...init });
  const stop = async () => {
    child.kill("SIGKILL"); // Caddy waits without an end for what is open
    await ended;
  };
  /** All that it wrote anywhere. */
  const logs = () =>
    said.text +
    fs
      .readdirSync(at)
      .filter((name) => name.endsWith(".log"))
      .map((name) => fs.readFileSync(path.join(at, name), "utf8"))
      .join("");
  await until(`${kind} answers`, async () => {
    if (child.exitCode !== null) throw new Error(logs());
    return ask("/").then(
      () => true,
      () => false,
    );
  });
  return { url, ask, logs, plain: ports.plain, [Symbol.asyncDispose]: stop };
}
type Proxy = Awaited<ReturnType<typeof startProxy>>;

/** Follows the link with the token as a browser does, and returns the cookie that it gets on the way. */
async function logIn(proxy: Proxy, link = `?token=${TOKEN}`) {
  let cookie = "";
  let at = new URL(link, proxy.url);
  for (let hops = 0; hops < 4; hops += 1) {
    const response = await proxy.ask(at.href, { headers: { cookie, accept: "text/html" } });
    const set = response.headers.get("set-cookie");
    if (set) cookie = set.split(";")[0] ?? "";
    const location = response.headers.get("location");
    if (location === null) return { cookie, set: set ?? "", at, response };
    at = new URL(location, at);
    if (set) return { cookie, set, at, response };
  }
  throw new Error(`too many redirects: ${at}`);
}

for (const which of CASES) {
  const { kind, prefix, tls } = which;
  describe(`${kind}, the prefix ${prefix}, ${tls ? "with" : "without"} TLS`, () => {
    let proxy: Proxy;
    let cookie: string;

    beforeAll(async () => {
      const { port } = servers[prefix].url;
      proxy = await startProxy(which, `127.0.0.1:${port}`);
      ({ cookie } = await logIn(proxy));
    });
    afterAll(() => proxy[Symbol.asyncDispose]());

    const socketUrl = () => new URL("desktop-websockify/", proxy.url);

    test("the page and all that it loads come through", async () => {
      for (const page of ["", "desktop/"]) {
        const at = new URL(page, proxy.url);
        const response = await proxy.ask(at.href, { headers: { cookie, accept: "text/html" } });
        expect(response.status).toBe(200);
        const html = await response.text();
        const assets = [...html.matchAll(/(?:src|href)="([^"#]*static[^"]*)"/g)].map(
          ([, to]) => new URL(to ?? "", at),
        );
        expect(assets.length).toBeGreaterThan(2);
        for (const asset of assets) {
          const { status, headers } = await proxy.ask(asset.href, { headers: { cookie } });
          expect([asset.pathname, status]).toEqual([asset.pathname, 200]);
          const isRendered = asset.pathname.endsWith(".webmanifest");
          if (!isRendered) expect(headers.get("etag")).toMatch(/^"/);
        }
      }
    });

    test("addresses without their slash lead to the one with it, under the prefix and the scheme, with the query", async () => {
      for (const [from, to] of [
        ["/desk", "/desk/"],
        ["/desk?a=b", "/desk/?a=b"],
        ["/desk/desktop?a=b", "/desk/desktop/?a=b"],
      ] as const) {
        const response = await proxy.ask(from, { headers: { cookie } });
        expect([301, 302, 308]).toContain(response.status);
        const location = new URL(response.headers.get("location") ?? "", new URL(from, proxy.url));
        expect(location.href.replace(/\?$/, "")).toBe(new URL(to, proxy.url).href);
      }
    });

    test("behind a mapped port, or a further proxy, it redirects to the address that was asked for", async () => {
      const asked = new URL("https://localhost:8443/desk");
      const { headers } = await proxy.ask("/desk", { headers: { cookie, host: asked.host } });
      const location = new URL(headers.get("location") ?? "", asked);
      expect(location.href.replace(/\?$/, "")).toBe(`${asked}/`);
    });

    test("the link with the token gives a cookie for the prefix alone, Secure with TLS", async () => {
      for (const link of [`?token=${TOKEN}`, `/desk?token=${TOKEN}`, `desktop/?token=${TOKEN}`]) {
        const { set, at } = await logIn(proxy, link);
        expect(set).toMatch(/; Path=\/desk\/(;|$)/);
        expect(set).toContain("HttpOnly");
        expect(/; Secure/.test(set)).toBe(tls);
        expect(at.href).toBe(new URL(link.startsWith("desktop") ? "desktop/" : "", proxy.url).href);
      }
      expect((await proxy.ask("desktop/api/status")).status).toBe(401);
    });

    test("the log-in form takes the token", async () => {
      const init = {
        method: "POST",
        body: new URLSearchParams({ token: TOKEN }),
        headers: { origin: proxy.url.origin },
      };
      const response = await proxy.ask("login", init);
      expect(response.status).toBe(303);
      expect(response.headers.get("set-cookie")).toMatch(/; Path=\/desk\/(;|$)/);
    });

    test("a WebSocket carries bytes both ways, unchanged", async () => {
      const headers = { cookie, origin: proxy.url.origin };
      const before = vnc.peers.length;
      await using viewer = await openWebSocket(socketUrl(), { headers, tls: { ca } });
      expect(await viewer.inbox.read(GREETING.length)).toEqual(GREETING);
      viewer.ws.send(SAYS);
      await viewer.inbox.read(6);
      const screen = await viewer.inbox.read(SCREEN.length);
      expect(Bun.SHA256.hash(screen, "hex")).toBe(Bun.SHA256.hash(SCREEN, "hex"));
      expect(vnc.peers[before]?.total).toBe(SAYS.length);
    });

    test("events come at once", async () => {
      const headers = { cookie, accept: "text/event-stream" };
      const leave = new AbortController();
      const events = await proxy.ask("desktop/api/status", { headers, signal: leave.signal });
      expect(events.headers.get("content-type")).toContain("text/event-stream");
      const reader = events.body?.getReader();
      const next = async () => Buffer.from((await reader?.read())?.value ?? []).toString();
      expect(await next()).toContain('"viewers":0');
      // The second event is sent while the stream stays open: a proxy that held it back would hold it for good.
      await using _viewer = await openWebSocket(socketUrl(), { headers: { cookie }, tls: { ca } });
      expect(await next()).toContain('"viewers":1');
      leave.abort();
    });

    test("a foreign Origin is refused before anything reaches VNC", async () => {
      const before = vnc.peers.length;
      const headers = { ...HANDSHAKE, cookie };
      const { status } = await proxy.ask(socketUrl().href, {
        headers: { ...headers, origin: EVIL },
      });
      expect(status).toBe(403);
      // A page of another port of the same host is foreign too.
      const otherPort = new URL(proxy.url.origin);
      otherPort.port = "1";
      for (const origin of [EVIL, otherPort.origin]) {
        const post = await proxy.ask("desktop/api/restart", {
          method: "POST",
          headers: { cookie, origin },
        });
        expect([origin, post.status]).toEqual([origin, 403]);
      }
      expect(vnc.peers.length).toBe(before);
      const own = { cookie, origin: proxy.url.origin };
      expect((await proxy.ask("desktop/api/start", { method: "POST", headers: own })).status).toBe(
        200,
      );
    });

    test("8 MiB are taken in one request", async () => {
      const headers = { cookie, origin: proxy.url.origin };
      const body = new Uint8Array(8 * MIB);
      const { status } = await proxy.ask("desktop/api/start", { method: "POST", headers, body });
      expect(status).toBe(200);
    });

    if (tls) {
      test("plain HTTP is sent to HTTPS, to the same path", async () => {
        const { status, headers } = await fetch(`http://localhost:${proxy.plain}/desk/?a=b`, {
          redirect: "manual",
        });
        expect([301, 308]).toContain(status);
        const location = new URL(headers.get("location") ?? "");
        expect([location.protocol, location.hostname, location.pathname + location.search]).toEqual(
          ["https:", "localhost", "/desk/?a=b"],
        );
      });
    }

    test("the proxy logs no token, not even when the server is down", async () => {
      await using alone = await startProxy(which, `127.0.0.1:${freePort()}`);
      for (const to of ["/desk", "/desk/", "/desk/desktop/"])
        await alone.ask(`${to}?a=b&token=${TOKEN}`);
      expect((await alone.ask(`?token=${TOKEN}`)).status).toBe(502);
      if (kind === "nginx") expect(alone.logs()).toContain("GET /desk/ 502");
      else await until("Caddy's line", () => alone.logs().includes("connection refused"));
      expect(alone.logs()).not.toContain(TOKEN);
      expect(proxy.logs()).not.toContain(TOKEN);
    });
  });
}

// --- a unix socket between proxy and server ---

for (const kind of KINDS) {
  test(`${kind} reaches the server on a unix socket, which asks for the token`, async () => {
    const readme = fs.readFileSync(path.join(DOCS, "README.md"), "utf8");
    const line = /^ {4}jupyter-desktop (.*)$/m.exec(readme)?.[1] ?? "";
    const directive = kind === "nginx" ? "proxy_pass" : "reverse_proxy";
    const upstream = new RegExp(`^ {4}(${directive} .*)$`, "m").exec(readme)?.[1] ?? "";
    const named = "/run/user/1000/desktop.sock";
    const unix = path.join(dir.path, `${kind}.sock`);
    const args = fill(line, [[named, unix]]).split(" ");
    await using server = await startServer([...args, "--vnc", vnc.name]);
    expect(fs.statSync(unix).mode & 0o777).toBe(0o600);
    const old =
      kind === "nginx"
        ? "proxy_pass http://127.0.0.1:6080;"
        : "reverse_proxy @desktop 127.0.0.1:6080";
    await using proxy = await startProxy({ kind, prefix: "kept", tls: false }, "", [
      [old, fill(upstream, [[named, unix]])],
    ]);
    expect((await proxy.ask("desktop/")).status).toBe(401);
    const { cookie } = await logIn(proxy);
    await using viewer = await openWebSocket(new URL("desktop-websockify/", proxy.url), {
      headers: { cookie, origin: proxy.url.origin },
    });
    expect(await viewer.inbox.read(GREETING.length)).toEqual(GREETING);
    expect(server.said.stderr).not.toContain(TOKEN);
  });
}

// --- as a person has it ---

test(
  "in Chromium, a desktop shows behind nginx with TLS and a stripped prefix",
  async () => {
    const desk = await startServer(["--geometry", `${SIZE.width}x${SIZE.height}`]);
    await using _desk = desk;
    await using proxy = await startProxy(
      { kind: "nginx", prefix: "stripped", tls: true },
      desk.url.host,
    );
    await using browser = await launchBrowser();
    await withPage(browser, { ignoreHTTPSErrors: true }, async (page) => {
      await page.goto(new URL(`?token=${TOKEN}`, proxy.url).href);
      await seesDesktop(page);
      expect(page.url()).toBe(proxy.url.href);
      await page.reload();
      await seesDesktop(page);
    });
  },
  3 * SLOW_MS,
);

test("nothing that was started here is left", () => {
  const left = processesWith(dir.path).filter((pid) => pid !== String(process.pid));
  expect(left).toEqual([]);
});
