/** The scripts of docs/recipes and docs/systemd as they stand there, run as the programs that they are for run them. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { installLines } from "../server.ts";
import {
  fakeVnc,
  HANDSHAKE,
  openWebSocket,
  processesWith,
  SERVER,
  startServer,
  tempDir,
  TOKEN,
  until,
} from "./_helpers.ts";
import { ensureViewer } from "./e2e/_browser.ts";

const DOCS = path.join(import.meta.dir, "../docs");
const GREETING = Buffer.from("RFB 003.008\n");
const doc = (name: string) => fs.readFileSync(path.join(DOCS, name), "utf8");
setDefaultTimeout(30_000);

const vnc = fakeVnc((peer) => peer.socket?.write(GREETING));
const dir = tempDir();
const at = (name: string) => path.join(dir.path, name);

/** A `jupyter-desktop` for PATH. */
function install(name: string, script: string) {
  fs.mkdirSync(at(name), { recursive: true });
  fs.writeFileSync(path.join(at(name), "jupyter-desktop"), script, { mode: 0o755 });
  return `${at(name)}:${process.env.PATH}`;
}

beforeAll(ensureViewer);
afterAll(() => {
  vnc[Symbol.dispose]();
  dir[Symbol.dispose]();
});

test("every recipe says at its top whether it was run, and what goes wrong", () => {
  const recipes = [...new Bun.Glob("recipes/*/README.md").scanSync(DOCS)];
  expect(recipes).toHaveLength(6);
  for (const recipe of recipes) {
    expect(doc(recipe)).toMatch(/^# .*\n\n\*\*(Run by a test|Not run)\b/);
    expect(doc(recipe)).toContain("**What goes wrong:**");
  }
});

test("a Dockerfile in the recipes installs what setup installs", () => {
  const install = installLines(["vnc", "desktop"], (name) => (name === "apt-get" ? name : null));
  const packages = install?.at(-1)?.replace(/^.*--no-install-recommends /, "");
  const dockerfile = doc("recipes/zero-to-jupyterhub/Dockerfile").replace(/ \\\n +/g, " ");
  expect(dockerfile).toContain(`--no-install-recommends ${packages} &&`);
});

test("the image's entry point is the server, to which Kubernetes and KubeSpawner give arguments", () => {
  const dockerfile = fs.readFileSync(path.join(DOCS, "../Dockerfile"), "utf8");
  const entry = /^ENTRYPOINT (\[.*\])$/m.exec(dockerfile)?.[1] ?? "[]";
  expect(JSON.parse(entry).at(-1)).toBe("/opt/jupyter-desktop/docker-entrypoint.sh");
});

// --- Open OnDemand ---

/** What the job script of its "basic" template is, as far as an app sees it. */
const OOD_JOB = `
export host port
find_port() { echo "$FREE_PORT"; }
create_passwd() { tr -dc A-Za-z0-9 </dev/urandom | head -c "$1"; }
wait_until_port_used() { until (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null; do sleep 0.1; done; }
host=$(hostname)
source ./before.sh
./script.sh &
trap 'kill $!' TERM
source ./after.sh
(umask 077; printf '{"host":"%s","port":"%s","password":"%s"}' "$host" "$port" "$password" >connection)
wait $! || wait $!
`;

test("the app for Open OnDemand starts a server that the portal's button opens", async () => {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const free = listener.port;
  listener.stop(true);
  fs.cpSync(path.join(DOCS, "recipes/open-ondemand/template"), at("ood"), { recursive: true });
  const PATH = install("ood-bin", `#!/bin/sh\nexec '${process.execPath}' '${SERVER}' "$@"\n`);
  const job = Bun.spawn(["bash", "-c", OOD_JOB], {
    cwd: at("ood"),
    env: {
      PATH,
      HOME: at("ood"),
      TMPDIR: at("ood"),
      FREE_PORT: String(free),
      JUPYTER_DESKTOP_VNC: vnc.name,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = Promise.all([job.stdout.text(), job.stderr.text()]);
  const file = path.join(at("ood"), "connection");
  await until("what the portal is told", () => {
    if (job.exitCode !== null) throw new Error(`the job ended with ${job.exitCode}`);
    return fs.existsSync(file) && fs.readFileSync(file, "utf8").endsWith("}");
  });
  const connection = JSON.parse(fs.readFileSync(file, "utf8")) as Record<string, string>;
  const view = doc("recipes/open-ondemand/view.html.erb").replace(
    /<%= (\w+) %>/g,
    (_, name) => connection[name] ?? "",
  );
  const action = /action="(.*?)" method="post"/.exec(view)?.[1] ?? "";
  const [, name = "", password = ""] = /name="(.*?)" value="(.*?)"/.exec(view) ?? [];
  expect(action).toBe(`/node/${os.hostname()}/${free}/login`);
  expect(password).toHaveLength(32);

  // As the portal's Apache asks: the path is kept, Host is the node, and Origin is what the browser said.
  const node = `http://127.0.0.1:${free}`;
  const portal = {
    host: `${os.hostname()}:${free}`,
    origin: "https://ondemand.example.edu",
    "x-forwarded-proto": "https",
  };
  const form = {
    method: "POST",
    body: new URLSearchParams({ [name]: password }),
    redirect: "manual",
  } as const;
  const foreign = await fetch(node + action, {
    ...form,
    headers: { ...portal, origin: "https://evil.example" },
  });
  expect(foreign.status).toBe(403);
  const response = await fetch(node + action, { ...form, headers: portal });
  expect([response.status, response.headers.get("location")]).toEqual([303, "./"]);
  const cookie = response.headers.get("set-cookie") ?? "";
  expect(cookie).toContain(`; Path=/node/${os.hostname()}/${free}/;`);
  expect(cookie).toContain("; Secure");

  const headers = { ...portal, cookie: cookie.split(";")[0] ?? "" };
  const socket = new URL("desktop-websockify/", new URL(action, node));
  const refused = await fetch(socket, {
    headers: { ...HANDSHAKE, ...headers, origin: "https://evil.example" },
  });
  expect([refused.status, vnc.peers.length]).toEqual([403, 0]);
  {
    await using viewer = await openWebSocket(socket, { headers });
    expect(await viewer.inbox.read(GREETING.length)).toEqual(GREETING);
  }
  job.kill();
  await job.exited;
  await until("the end of all that it started", () => processesWith(at("ood")).length === 0);
  expect((await said).join("")).not.toContain(password);
});

// --- BatchSpawner ---

test("jupyter-desktop-batch tells the Hub its port, and becomes the server at that port", async () => {
  const told: { path: string; token: string | null; body: unknown }[] = [];
  await using hub = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const { pathname } = new URL(request.url);
      told.push({
        path: pathname,
        token: request.headers.get("authorization"),
        body: await request.json(),
      });
      return Response.json({}, { status: 201 });
    },
  });
  install("batch", '#!/bin/sh\necho "$JUPYTERHUB_SERVICE_URL" "$@"\n');
  const script = at("batch/jupyter-desktop-batch");
  fs.copyFileSync(path.join(DOCS, "recipes/slurm/jupyter-desktop-batch"), script);
  const child = Bun.spawn([script], {
    env: {
      ...process.env,
      JUPYTERHUB_API_URL: `${hub.url}hub/api`,
      JUPYTERHUB_API_TOKEN: TOKEN,
      JUPYTERHUB_SERVICE_URL: "http://0.0.0.0:0/user/x%40y.z/",
    },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const said = await child.stdout.text();
  expect(await child.exited).toBe(0);
  const port = /^http:\/\/0\.0\.0\.0:(\d+)\/user\/x%40y\.z\/ --auth hub\n$/.exec(said)?.[1];
  expect(told).toEqual([
    { path: "/hub/api/batchspawner", token: `token ${TOKEN}`, body: { port: Number(port) } },
  ]);
  expect(doc("recipes/slurm/jupyter-desktop-batch")).not.toMatch(/^curl .*TOKEN/m);
});

// --- systemd ---

test("the systemd unit makes a token that only its owner reads, once, and starts with it", async () => {
  const unit = doc("systemd/jupyter-desktop.service");
  /** systemd's own escapes; the rest of the line is as a shell reads it. */
  const line = (key: string) =>
    (new RegExp(`^${key}=(.*)$`, "m").exec(unit)?.[1] ?? "")
      .replaceAll("%E", dir.path)
      .replaceAll("$$", "$");
  const file = at("jupyter-desktop/token");
  const before = () => {
    const { exitCode, stderr } = Bun.spawnSync(["sh", "-c", line("ExecStartPre")]);
    expect([exitCode, stderr.toString()]).toEqual([0, ""]);
    return fs.readFileSync(file, "utf8");
  };
  const token = before();
  expect(token).toMatch(/^[\w-]{32}\n$/);
  expect(before()).toBe(token);
  expect(fs.statSync(file).mode & 0o777).toBe(0o600);
  expect(fs.statSync(path.dirname(file)).mode & 0o777).toBe(0o700);

  const [command, ...args] = line("ExecStart").split(" ");
  expect(command).toBe("%h/.local/bin/jupyter-desktop");
  await using server = await startServer([...args, "--vnc", vnc.name], {
    JUPYTER_DESKTOP_TOKEN: "",
  });
  const headers = { authorization: `Bearer ${token.trim()}` };
  expect((await fetch(new URL("/desktop/", server.url), { headers })).status).toBe(200);
  // Both go to the journal.
  expect(Object.values(server.said).join("")).not.toContain(token.trim());
});
