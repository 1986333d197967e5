/**
 * docs/systemd/jupyter-desktop.service under a real `systemd --user`, in namespaces of its own: no service of this
 * machine is touched, and systemd need not be its PID 1. Only root can make them.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import * as path from "node:path";
import { processesWith, SERVER, tempDir, until } from "../_helpers.ts";
import { ensureViewer } from "../e2e/_browser.ts";

if (process.getuid?.() !== 0)
  throw new Error("These tests need root. Type: sudo bun run test:system");
if (!Bun.which("/lib/systemd/systemd"))
  throw new Error("systemd is missing. Type: sh test/system/recipes.sh");
setDefaultTimeout(60_000);

const UNIT = path.join(import.meta.dir, "../../docs/systemd/jupyter-desktop.service");
const TOKEN = ".config/jupyter-desktop/token";
const home = tempDir();
const at = (name: string) => path.join(home.path, name);
const env = { PATH: process.env.PATH ?? "", HOME: home.path, XDG_RUNTIME_DIR: "/run/user/0" };
const isUnified = fs.existsSync("/sys/fs/cgroup/cgroup.controllers");
const cgroup = `/sys/fs/cgroup${isUnified ? "" : "/systemd"}/${path.basename(home.path)}`;
/** It wants a cgroup that is its own, and to be told that the machine was booted with systemd. */
const BOX = `set -e
mkdir "$1" && echo $$ >"$1/cgroup.procs"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && mkdir -p -m 700 "$XDG_RUNTIME_DIR"
/lib/systemd/systemd --user & wait`;
const UNSHARE = "unshare --mount --pid --fork --kill-child --mount-proc sh -c".split(" ");

const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
const url = `http://127.0.0.1:${listener.port}/`;
let box: Bun.Subprocess;
let inside = "";

/** What systemctl says, in there. */
function systemctl(...args: string[]) {
  const enter = ["nsenter", "--target", inside, "--mount", "--pid", "systemctl", "--user", ...args];
  const { exitCode, stdout, stderr } = Bun.spawnSync(enter, { env });
  return { code: exitCode, said: (stdout.toString() + stderr.toString()).trim() };
}
const show = (property: string) =>
  systemctl("show", "--value", "--property", property, "jupyter-desktop").said;

/** The state of the desktop; undefined while no server listens. */
async function state() {
  const headers = { authorization: `Bearer ${fs.readFileSync(at(TOKEN), "utf8").trim()}` };
  const response = await fetch(new URL("desktop/api/status", url), { headers }).catch(
    () => undefined,
  );
  return response?.ok ? ((await response.json()) as { state: string }).state : undefined;
}

/** Puts the server where the unit expects it, with these options: the unit has no port. */
function install(...options: string[]) {
  fs.mkdirSync(at(".local/bin"), { recursive: true });
  const command = [process.execPath, SERVER, ...options].map((word) => `'${word}'`).join(" ");
  const script = `#!/bin/sh\nexec ${command} "$@"\n`;
  fs.writeFileSync(at(".local/bin/jupyter-desktop"), script, { mode: 0o755 });
}

beforeAll(async () => {
  await ensureViewer();
  listener.stop(true);
  fs.mkdirSync(at(".config/systemd/user"), { recursive: true });
  fs.copyFileSync(UNIT, at(".config/systemd/user/jupyter-desktop.service"));
  const log = fs.openSync(at("systemd.log"), "w");
  box = Bun.spawn([...UNSHARE, BOX, "sh", cgroup], { env, stdio: ["ignore", log, log] });
  fs.closeSync(log);
  await until("systemd", () => {
    if (box.exitCode !== null) throw new Error(fs.readFileSync(at("systemd.log"), "utf8"));
    inside = fs.readFileSync(`/proc/${box.pid}/task/${box.pid}/children`, "utf8").trim();
    return inside !== "" && systemctl("is-system-running").said === "running";
  });
});

afterAll(async () => {
  box.kill("SIGKILL"); // the namespace's first process with it, and so all that are in it
  await box.exited;
  await until("the end of all that it started", () => processesWith(home.path).length === 0);
  const groups = [...new Bun.Glob("**/").scanSync({ cwd: cgroup, onlyFiles: false })];
  for (const group of groups.sort((a, b) => b.length - a.length))
    fs.rmdirSync(path.join(cgroup, group));
  fs.rmdirSync(cgroup);
  home[Symbol.dispose]();
});

test("the unit gives a desktop, starts it again when the server was killed, and stops all of it", async () => {
  install("--port", String(listener.port));
  expect(systemctl("start", "jupyter-desktop")).toEqual({ code: 0, said: "" });
  await until("a desktop", async () => (await state()) === "ready");
  const first = show("MainPID");
  const token = fs.readFileSync(at(TOKEN), "utf8");

  systemctl("kill", "--signal=KILL", "--kill-whom=main", "jupyter-desktop");
  await until("another server", () => show("NRestarts") === "1" && show("SubState") === "running");
  await until("a desktop again", async () => (await state()) === "ready");
  expect(show("MainPID")).not.toBe(first);
  expect(fs.readFileSync(at(TOKEN), "utf8")).toBe(token);

  expect(systemctl("stop", "jupyter-desktop")).toEqual({ code: 0, said: "" });
  expect([show("ActiveState"), show("Result")]).toEqual(["inactive", "success"]);
  // A cgroup with a process in it could not be removed.
  expect(fs.existsSync(`${cgroup}/app.slice/jupyter-desktop.service`)).toBe(false);
});

test("a wrong option is not tried again and again", async () => {
  install("--geometry", "wide");
  systemctl("start", "jupyter-desktop");
  await until("the end of it", () => show("ActiveState") === "failed");
  expect([show("ExecMainStatus"), show("NRestarts")]).toEqual(["2", "0"]);
});
