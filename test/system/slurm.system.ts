/**
 * docs/recipes/slurm on a real Slurm of one node: the documented script is what sbatch is given.
 * `sh test/system/setup.sh` installs it. Controller, node and munge are this test's own: no service, no cgroups.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { processesWith, SERVER, tempDir, TOKEN, until } from "../_helpers.ts";
import { ensureViewer } from "../e2e/_browser.ts";

const RECIPE = path.join(import.meta.dir, "../../docs/recipes/slurm");
/** What `sh test/system/recipes.sh` installed: JupyterHub with BatchSpawner, and its proxy. */
const CACHE = path.join(import.meta.dir, "../../.cache/recipes");
const PATH = `${process.env.PATH}:/usr/sbin`;
const MISSING = ["munged", "slurmctld", "slurmd", "sbatch", "curl"].filter(
  (name) => !Bun.which(name, { PATH }),
);
if (MISSING.length > 0)
  throw new Error(`${MISSING.join(", ")} is missing. Type: sh test/system/setup.sh`);
if (!fs.existsSync(path.join(CACHE, "installed")))
  throw new Error("JupyterHub is missing. Type: sh test/system/recipes.sh");
setDefaultTimeout(60_000);

const dir = tempDir();
const at = (name: string) => path.join(dir.path, name);
/** Bun's own userInfo() says "unknown" without USER in the environment. */
const username = Bun.spawnSync(["id", "-un"]).stdout.toString().trim();
/** As a person has it after log-in, with the server installed. */
const env = {
  PATH: `${at("bin")}:${PATH}`,
  HOME: at("home"),
  USER: username,
  TMPDIR: at("tmp"),
  SLURM_CONF: at("slurm.conf"),
};
const daemons: Bun.Subprocess[] = [];

function freePort() {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  listener.stop(true);
  return listener.port;
}

const run = (command: string[], cwd = env.HOME) => {
  const { stdout, stderr, exitCode } = Bun.spawnSync(command, { env, cwd });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
  return stdout.toString().trim();
};

function startDaemon(...command: string[]) {
  const log = fs.openSync(at(`${path.basename(command[0] ?? "")}.log`), "w");
  const child = Bun.spawn(command, { env, cwd: dir.path, stdio: ["ignore", log, log] });
  fs.closeSync(log);
  daemons.push(child);
}

const logOf = (daemon: string) => fs.readFileSync(at(`${daemon}.log`), "utf8");

beforeAll(async () => {
  await ensureViewer();
  fs.chmodSync(dir.path, 0o755); // munge wants no directory above its socket that others may write to
  for (const name of ["bin", "home", "tmp", "state", "spool"]) fs.mkdirSync(at(name));
  fs.writeFileSync(
    at("bin/jupyter-desktop"),
    `#!/bin/sh\nexec '${process.execPath}' '${SERVER}' "$@"\n`,
    { mode: 0o755 },
  );
  fs.writeFileSync(at("munge.key"), randomBytes(1024), { mode: 0o600 });
  fs.writeFileSync(
    at("slurm.conf"),
    `ClusterName=test
SlurmctldHost=localhost
SlurmUser=${username}
SlurmdUser=${username}
AuthInfo=socket=${at("munge.sock")}
SlurmctldPort=${freePort()}
SlurmdPort=${freePort()}
SlurmctldPidFile=${at("slurmctld.pid")}
SlurmdPidFile=${at("slurmd.pid")}
StateSaveLocation=${at("state")}
SlurmdSpoolDir=${at("spool")}
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
KillWait=10
NodeName=localhost CPUs=2 RealMemory=5000
PartitionName=all Nodes=ALL Default=YES
`,
  );
  const munge = ["key-file", "socket", "pid-file", "log-file", "seed-file"].map(
    (name) =>
      `--${name}=${at(`munge.${name === "key-file" ? "key" : name === "socket" ? "sock" : name}`)}`,
  );
  startDaemon("munged", "--foreground", "--force", ...munge);
  await until("munge's socket", () => fs.existsSync(at("munge.sock")));
  startDaemon("slurmctld", "-D");
  startDaemon("slurmd", "-D", "-N", "localhost");
  await until("a node that is idle", () => {
    if (daemons.some(({ exitCode }) => exitCode !== null))
      throw new Error(["munged", "slurmctld", "slurmd"].map(logOf).join("\n"));
    const { stdout } = Bun.spawnSync(["sinfo", "-h", "-o", "%T"], { env });
    return stdout.toString().trim() === "idle";
  });
});

afterAll(async () => {
  for (const daemon of daemons.reverse()) {
    daemon.kill();
    await daemon.exited;
  }
  dir[Symbol.dispose]();
});

const stateOf = (job: string) => run(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"]);

test("sbatch starts a desktop on the node, and says how to get there without showing the token", async () => {
  const job = run(["sbatch", "--parsable", path.join(RECIPE, "desktop.sbatch")]);
  const log = () => {
    const file = path.join(env.HOME, `desktop-${job}.log`);
    return fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
  };
  const [, port, hidden] = await until("what the job says", () => {
    if (["FAILED", "COMPLETED"].includes(stateOf(job))) throw new Error(log());
    return /-L (\d+):127\.0\.0\.1:\1 \S+@localhost\n[\s\S]*\n {4}cat (\S+)\n/.exec(log());
  });

  const file = hidden ?? "";
  expect(fs.statSync(file).mode & 0o777).toBe(0o600);
  const url = new URL(/^Desktop: (\S+)/.exec(fs.readFileSync(file, "utf8"))?.[1] ?? "");
  expect(url.port).toBe(port ?? "");
  const token = url.searchParams.get("token") ?? "";
  expect(token.length).toBeGreaterThan(20);
  expect(log()).not.toContain(token);

  expect((await fetch(new URL("/", url))).status).toBe(401);
  const page = await fetch(url, { redirect: "manual" });
  expect([page.status, page.headers.get("location")]).toEqual([303, "./"]);
  const headers = { authorization: `Bearer ${token}` };
  await until("a desktop on the node", async () => {
    const status = await fetch(new URL("desktop/api/status", url), { headers });
    return ((await status.json()) as { state: string }).state === "ready";
  });
  const inJob = processesWith(`SLURM_JOB_ID=${job}`);
  expect(inJob.length).toBeGreaterThan(3);

  run(["scancel", job]);
  await until("the end of the job", () => stateOf(job) === "CANCELLED");
  await until(
    "the end of all that it started",
    () => processesWith(env.HOME).length <= daemons.length,
  );
  expect(processesWith(`SLURM_JOB_ID=${job}`)).toEqual([]);
  expect(fs.existsSync(file)).toBe(false);
});

test("a server that cannot start ends the job, with the reason in its log", async () => {
  const script = path.join(RECIPE, "desktop.sbatch");
  const wrong = ["--export=ALL,JUPYTER_DESKTOP_GEOMETRY=wide"];
  const job = run(["sbatch", "--parsable", ...wrong, script]);
  await until("the end of the job", () => stateOf(job) === "FAILED");
  const log = fs.readFileSync(path.join(env.HOME, `desktop-${job}.log`), "utf8");
  expect(log).toContain("JUPYTER_DESKTOP_GEOMETRY");
});

// --- BatchSpawner ---

/** What the jobs of BatchSpawner printed. */
const jobLogs = () =>
  [...new Bun.Glob("jupyterhub_slurmspawner_*.log").scanSync(env.HOME)]
    .map((name) => fs.readFileSync(path.join(env.HOME, name), "utf8"))
    .join("");

/** The documented configuration, and what is other on this machine: addresses, places, and who may log in. */
const hubConfig = (ports: { proxy: number; api: number; hub: number }) => `
import batchspawner
load_subconfig(${JSON.stringify(path.join(RECIPE, "jupyterhub_config.py"))})
c.JupyterHub.bind_url = "http://127.0.0.1:${ports.proxy}/"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:${ports.hub}"
c.JupyterHub.hub_connect_ip = "127.0.0.1"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:${ports.api}"
c.ConfigurableHTTPProxy.command = [${JSON.stringify(path.join(CACHE, "node/node_modules/.bin/configurable-http-proxy"))}]
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "test", "api_token": "${TOKEN}"}]
c.JupyterHub.load_roles = [{"name": "test", "services": ["test"], "scopes": ["admin:servers", "admin:users", "tokens", "access:servers"]}]
c.SlurmSpawner.cmd = [${JSON.stringify(at("bin/jupyter-desktop-batch"))}]
# Who runs this test is the only user, and no other home is touched.
c.SlurmSpawner.exec_prefix = ""
c.SlurmSpawner.environment = {"SLURM_CONF": "${env.SLURM_CONF}"}
c.SlurmSpawner.req_homedir = ${JSON.stringify(env.HOME)}
c.SlurmSpawner.req_prologue = "export HOME=${env.HOME} TMPDIR=${env.TMPDIR}"
c.SlurmSpawner.batch_script = batchspawner.SlurmSpawner.batch_script.default_value.replace("#SBATCH --get-user-env=L\\n", "")
`;

test("JupyterHub starts a desktop in a job by BatchSpawner, for its user alone", async () => {
  fs.copyFileSync(path.join(RECIPE, "jupyter-desktop-batch"), at("bin/jupyter-desktop-batch"));
  const ports = { proxy: freePort(), api: freePort(), hub: freePort() };
  fs.writeFileSync(at("jupyterhub_config.py"), hubConfig(ports));
  startDaemon(path.join(CACHE, "bin/jupyterhub"), "--config", at("jupyterhub_config.py"));
  const hub = `http://127.0.0.1:${ports.proxy}`;
  const api = async (to: string, method = "GET") => {
    const headers = { authorization: `token ${TOKEN}` };
    const response = await fetch(`${hub}/hub/api/${to}`, { method, headers });
    return {
      status: response.status,
      json: (await response.json().catch(() => ({}))) as Record<string, unknown>,
    };
  };
  await until(
    "the Hub",
    () =>
      api("").then(
        ({ status }) => status === 200,
        () => false,
      ),
    30_000,
  );
  await api(`users/${username}`, "POST");
  const { status: asked } = await api(`users/${username}/server`, "POST");
  if (asked !== 201 && asked !== 202) throw new Error(logOf("jupyterhub"));
  await until(
    "the user's server",
    async () => {
      const { json } = await api(`users/${username}`);
      const [server] = Object.values((json.servers ?? {}) as Record<string, { ready: boolean }>);
      if (!server) throw new Error(logOf("jupyterhub") + jobLogs());
      return server.ready;
    },
    40_000,
  );

  const base = `${hub}/user/${username}/`;
  const stranger = await fetch(base, { redirect: "manual", headers: { accept: "text/html" } });
  expect(stranger.headers.get("location")).toContain("/hub/api/oauth2/authorize?");
  const tokenOf = async (user: string) => ({
    authorization: `token ${(await api(`users/${user}/tokens`, "POST")).json.token}`,
  });
  await api("users/mallory", "POST");
  const foreign = await fetch(`${base}desktop/api/status`, { headers: await tokenOf("mallory") });
  expect(foreign.status).toBe(403);
  const headers = await tokenOf(username);
  await until("a desktop in the job", async () => {
    const response = await fetch(`${base}desktop/api/status`, { headers });
    const status = (await response.json()) as { state: string };
    return status.state === "ready";
  });
  const job = run(["squeue", "-h", "-t", "R", "-n", "spawner-jupyterhub", "-o", "%A"]);
  expect(job).toMatch(/^\d+$/);

  await api(`users/${username}/server`, "DELETE");
  await until("the end of the job", () => !["RUNNING", "COMPLETING"].includes(stateOf(job)));
  await until(
    "the end of all that it started",
    () => processesWith(`SLURM_JOB_ID=${job}`).length === 0,
  );
});
