/**
 * docs/recipes/slurm on a real Slurm of one node: the documented script is what sbatch is given.
 * `sh test/system/setup.sh` installs it. Controller, node and munge are this test's own: no service, no cgroups.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { processesWith, SERVER, tempDir, until } from "../_helpers.ts";
import { ensureViewer } from "../e2e/_browser.ts";

const RECIPE = path.join(import.meta.dir, "../../docs/recipes/slurm");
const PATH = `${process.env.PATH}:/usr/sbin`;
const MISSING = ["munged", "slurmctld", "slurmd", "sbatch", "curl"].filter(
  (name) => !Bun.which(name, { PATH }),
);
if (MISSING.length > 0)
  throw new Error(`${MISSING.join(", ")} is missing. Type: sh test/system/setup.sh`);
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
  const log = fs.openSync(at(`${command[0]}.log`), "w");
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
