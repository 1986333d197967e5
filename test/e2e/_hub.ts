/** A real JupyterHub with its proxy, from .cache/jupyter (see test/jupyter.sh), whose users' servers are this project's. */
import * as fs from "node:fs";
import * as path from "node:path";
import type { Page } from "playwright-core";
import { processesWith, SERVER, tempDir, until } from "../_helpers.ts";

const CACHE = path.join(import.meta.dir, "../../.cache/jupyter");
export const PYTHON = path.join(CACHE, "venv/bin/python");
const PROXY = path.join(CACHE, "node/node_modules/.bin/configurable-http-proxy");
export const ADMIN_TOKEN = "the-token-of-the-tests-service";
export const PASSWORD = "a-password-of-the-tests";

/** JupyterHub and its proxy take no port 0: a free one is found, and bound a moment later. */
function freePort(): number {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  listener.stop(true);
  return listener.port;
}

export interface HubOptions {
  /** What starts a server; the PATH begins with the hub's own directory. */
  command?: string[];
  /** Variables of the servers: by user, `*` for all. */
  env?: Record<string, Record<string, string>>;
  /** The script that starts every desktop. */
  xstartup?: string;
  /** Further lines of jupyterhub_config.py. */
  config?: string;
}

/** Starts JupyterHub, with its users' homes in a directory of its own. */
export async function startHub({ command, env = {}, xstartup, config = "" }: HubOptions = {}) {
  if (!fs.existsSync(PYTHON) || !fs.existsSync(PROXY))
    throw new Error("there is no JupyterHub to test with: type sh test/jupyter.sh");
  const tmp = tempDir();
  const [port, hubPort, apiPort] = [freePort(), freePort(), freePort()];
  const file = path.join(tmp.path, "jupyterhub_config.py");
  const cmd = command ?? [process.execPath, SERVER, "--auth", "hub"];
  const script = path.join(tmp.path, "xstartup");
  if (xstartup !== undefined) fs.writeFileSync(script, xstartup, { mode: 0o755 });
  const own = {
    TMPDIR: tmp.path,
    JUPYTERHUB_ACTIVITY_INTERVAL: "1",
    ...(xstartup === undefined ? {} : { JUPYTER_DESKTOP_XSTARTUP: script }),
  };
  fs.writeFileSync(
    file,
    `
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:${port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:${hubPort}"
c.ConfigurableHTTPProxy.command = [${JSON.stringify(PROXY)}]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:${apiPort}"
c.ConfigurableHTTPProxy.pid_file = "${tmp.path}/proxy.pid"
c.JupyterHub.db_url = "sqlite:///${tmp.path}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "${tmp.path}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = "${PASSWORD}"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = "${tmp.path}/home/{username}"
c.Spawner.cmd = ${JSON.stringify(cmd)}
c.Spawner.environment = ${JSON.stringify(own)}
def before(spawner):
    env = ${JSON.stringify(env)}
    spawner.environment = {**spawner.environment, **env.get("*", {}), **env.get(spawner.user.name, {})}
c.Spawner.pre_spawn_hook = before
c.JupyterHub.services = [{"name": "tests", "api_token": "${ADMIN_TOKEN}"}]
c.JupyterHub.load_roles = [
    {"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "shares", "tokens"]},
    {"name": "user", "scopes": ["self", "shares!user", "read:users:name"]},
]
${config}
`,
  );
  const out = fs.openSync(path.join(tmp.path, "log"), "a");
  const child = Bun.spawn([PYTHON, "-m", "jupyterhub", "-f", file], {
    cwd: tmp.path,
    env: { PATH: `${tmp.path}:${process.env.PATH}`, HOME: tmp.path, TMPDIR: tmp.path },
    stdio: ["ignore", out, out],
  });
  fs.closeSync(out);
  const log = () => fs.readFileSync(path.join(tmp.path, "log"), "utf8");
  const url = new URL(`http://127.0.0.1:${port}/`);
  const api = async (where: string, init: RequestInit = {}) => {
    const headers = { authorization: `token ${ADMIN_TOKEN}`, ...init.headers };
    const response = await fetch(new URL(`hub/api${where}`, url), { ...init, headers });
    if (!response.ok)
      throw new Error(`${where}: ${response.status} ${await response.text()}\n${log()}`);
    return response;
  };
  const stop = async () => {
    child.kill(); // ends the proxy and the servers, unless the test has killed it
    await child.exited;
    const left = () =>
      processesWith(tmp.path)
        .map(Number)
        .filter((pid) => pid !== process.pid);
    for (const pid of left()) {
      try {
        process.kill(pid);
      } catch {
        // it has ended meanwhile
      }
    }
    await until("the end of all that the hub started", () => left().length === 0);
    tmp[Symbol.dispose]();
  };
  try {
    await until(
      "JupyterHub",
      () => {
        if (child.exitCode !== null) throw new Error(log());
        return fetch(new URL("hub/api/", url)).then(
          ({ ok }) => ok,
          () => false,
        );
      },
      60_000,
    );
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    child,
    url,
    api,
    log,
    dir: tmp.path,
    home: (user: string) => path.join(tmp.path, "home", user),
    [Symbol.asyncDispose]: stop,
  };
}

export type TestHub = Awaited<ReturnType<typeof startHub>>;

interface HubServer {
  ready: boolean;
  last_activity: string;
  started: string;
}

/** What the Hub knows of a user's default server; undefined when there is none. */
export async function serverOf(hub: TestHub, user: string): Promise<HubServer | undefined> {
  const model = (await (await hub.api(`/users/${user}`)).json()) as {
    servers: Record<string, HubServer>;
  };
  return model.servers[""];
}

/** Starts a user's server, which `logIn` would do as well. */
export async function spawn(hub: TestHub, user: string) {
  await hub.api(`/users/${user}`, { method: "POST" });
  await hub.api(`/users/${user}/server`, { method: "POST" });
  await until("a server that runs", async () => (await serverOf(hub, user))?.ready, 40_000);
}

/** Fills in the Hub's form, wherever it was met. */
export async function logIn(page: Page, user: string) {
  await page.locator("#username_input").fill(user);
  await page.locator("#password_input").fill(PASSWORD);
  await page.locator("#login_submit").click();
}
