import { afterAll, describe, expect, spyOn, test } from "bun:test";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import {
  backoffMs,
  type Config,
  createLog,
  desktopEnv,
  escapeHtml,
  installLines,
  isRfbGreeting,
  loadConfig,
  OPTIONS,
  parseTarget,
  renderHelp,
  renderOptionTable,
  renderPage,
  safeEqual,
  UsageError,
  vncAuthResponse,
  xauthority,
} from "../server.ts";
import { tempDir } from "./_helpers.ts";

type OptionName = keyof typeof OPTIONS;

const names = Object.keys(OPTIONS) as OptionName[];
const dir = tempDir();
const tokenFile = path.join(dir.path, "token");
const otherTokenFile = path.join(dir.path, "other-token");
fs.writeFileSync(tokenFile, "token-of-the-file\nsecond line\n");
fs.writeFileSync(otherTokenFile, "another-token-of-a-file\n");
afterAll(() => dir[Symbol.dispose]());

/** Written a second time here, so that a change of the rule that makes the names is seen. */
const ENV_NAMES: Record<OptionName, string> = {
  host: "JUPYTER_DESKTOP_HOST",
  port: "JUPYTER_DESKTOP_PORT",
  unixSocket: "JUPYTER_DESKTOP_UNIX_SOCKET",
  baseUrl: "JUPYTER_DESKTOP_BASE_URL",
  open: "JUPYTER_DESKTOP_OPEN",
  vnc: "JUPYTER_DESKTOP_VNC",
  vncCommand: "JUPYTER_DESKTOP_VNC_COMMAND",
  vncArg: "JUPYTER_DESKTOP_VNC_ARG",
  xstartup: "JUPYTER_DESKTOP_XSTARTUP",
  geometry: "JUPYTER_DESKTOP_GEOMETRY",
  start: "JUPYTER_DESKTOP_START",
  maxSize: "JUPYTER_DESKTOP_MAX_SIZE",
  maxViewers: "JUPYTER_DESKTOP_MAX_VIEWERS",
  idleDisconnect: "JUPYTER_DESKTOP_IDLE_DISCONNECT",
  idleStop: "JUPYTER_DESKTOP_IDLE_STOP",
  idleExit: "JUPYTER_DESKTOP_IDLE_EXIT",
  keep: "JUPYTER_DESKTOP_KEEP",
  name: "JUPYTER_DESKTOP_NAME",
  title: "JUPYTER_DESKTOP_TITLE",
  files: "JUPYTER_DESKTOP_FILES",
  uploadDir: "JUPYTER_DESKTOP_UPLOAD_DIR",
  maxUpload: "JUPYTER_DESKTOP_MAX_UPLOAD",
  share: "JUPYTER_DESKTOP_SHARE",
  vncPasswordFile: "JUPYTER_DESKTOP_VNC_PASSWORD_FILE",
  clipboard: "JUPYTER_DESKTOP_CLIPBOARD",
  token: "JUPYTER_DESKTOP_TOKEN",
  tokenFile: "JUPYTER_DESKTOP_TOKEN_FILE",
  auth: "JUPYTER_DESKTOP_AUTH",
  frameAncestors: "JUPYTER_DESKTOP_FRAME_ANCESTORS",
  tlsCert: "JUPYTER_DESKTOP_TLS_CERT",
  tlsKey: "JUPYTER_DESKTOP_TLS_KEY",
  activity: "JUPYTER_DESKTOP_ACTIVITY",
  passHubToken: "JUPYTER_DESKTOP_PASS_HUB_TOKEN",
  allowNoAuth: "JUPYTER_DESKTOP_ALLOW_NO_AUTH",
  allowOrigin: "JUPYTER_DESKTOP_ALLOW_ORIGIN",
  sysPrefix: "JUPYTER_DESKTOP_SYS_PREFIX",
  system: "JUPYTER_DESKTOP_SYSTEM",
  labTab: "JUPYTER_DESKTOP_LAB_TAB",
  websockify: "JUPYTER_DESKTOP_WEBSOCKIFY",
  print: "JUPYTER_DESKTOP_PRINT",
  json: "JUPYTER_DESKTOP_JSON",
  logLevel: "JUPYTER_DESKTOP_LOG_LEVEL",
  logFormat: "JUPYTER_DESKTOP_LOG_FORMAT",
  metrics: "JUPYTER_DESKTOP_METRICS",
  yes: "JUPYTER_DESKTOP_YES",
  help: "JUPYTER_DESKTOP_HELP",
  version: "JUPYTER_DESKTOP_VERSION",
};

function problemsOf(argv: readonly string[], env: NodeJS.ProcessEnv = {}): readonly string[] {
  try {
    loadConfig(argv, env);
    return [];
  } catch (error) {
    if (error instanceof UsageError) return error.problems;
    throw error;
  }
}

interface Precedence {
  readonly flag: readonly string[];
  readonly env: string;
  readonly fromFlag: unknown;
  readonly fromEnv: unknown;
  readonly byDefault: unknown;
  /** What else has to be there for the option to be allowed. */
  readonly besides?: readonly string[];
}

// The type asks for a row for each option, so that none is added without one.
const PRECEDENCE: Record<
  Exclude<OptionName, "token" | "tlsCert" | "tlsKey" | "help" | "version">,
  Precedence
> = {
  host: {
    flag: ["--host", "0.0.0.0"],
    env: "::1",
    fromFlag: "0.0.0.0",
    fromEnv: "::1",
    byDefault: "127.0.0.1",
  },
  port: { flag: ["-p", "0"], env: "8080", fromFlag: 0, fromEnv: 8080, byDefault: 6080 },
  unixSocket: {
    flag: ["--unix-socket=/run/a.sock"],
    env: "b.sock",
    fromFlag: "/run/a.sock",
    fromEnv: path.resolve("b.sock"),
    byDefault: undefined,
  },
  baseUrl: {
    flag: ["--base-url", "/flag"],
    env: "env/",
    fromFlag: "/flag/",
    fromEnv: "/env/",
    byDefault: "/",
  },
  open: { flag: ["--no-open"], env: "true", fromFlag: false, fromEnv: true, byDefault: undefined },
  vnc: {
    flag: ["--vnc", "unix:/run/vnc.sock"],
    env: "tcp:vnc.test:5901",
    fromFlag: { kind: "unix", path: "/run/vnc.sock" },
    fromEnv: { kind: "tcp", host: "vnc.test", port: 5901 },
    byDefault: { kind: "auto" },
  },
  vncCommand: {
    flag: ["--vnc-command", "x11vnc -display :0"],
    env: "vncserver",
    fromFlag: "x11vnc -display :0",
    fromEnv: "vncserver",
    byDefault: undefined,
  },
  vncArg: {
    flag: ["--vnc-arg=-a", "--vnc-arg", "-b c"],
    env: " -dpi 96\t-a,b\n",
    fromFlag: ["-a", "-b c"],
    fromEnv: ["-dpi", "96", "-a,b"],
    byDefault: [],
  },
  xstartup: {
    flag: ["--xstartup", "/opt/flag"],
    env: "/opt/env",
    fromFlag: "/opt/flag",
    fromEnv: "/opt/env",
    byDefault: undefined,
  },
  geometry: {
    flag: ["--geometry", "800x600"],
    env: "1024x768",
    fromFlag: "800x600",
    fromEnv: "1024x768",
    byDefault: "1680x1050",
  },
  start: {
    flag: ["--start", "now"],
    env: "visit",
    fromFlag: "now",
    fromEnv: "visit",
    byDefault: "now",
  },
  maxSize: {
    flag: ["--max-size", "3840x2160"],
    env: "800x600",
    fromFlag: { width: 3840, height: 2160, pixels: 33_177_600 },
    fromEnv: { width: 800, height: 600, pixels: 33_177_600 },
    byDefault: { width: 8192, height: 8192, pixels: 33_177_600 },
  },
  maxViewers: {
    flag: ["--max-viewers", "1"],
    env: "200",
    fromFlag: 1,
    fromEnv: 200,
    byDefault: 50,
  },
  idleDisconnect: {
    flag: ["--idle-disconnect", "90s"],
    env: "2h",
    fromFlag: 90_000,
    fromEnv: 7_200_000,
    byDefault: 0,
  },
  idleStop: {
    flag: ["--idle-stop=off"],
    env: "30m",
    fromFlag: 0,
    fromEnv: 1_800_000,
    byDefault: 0,
  },
  idleExit: {
    flag: ["--idle-exit"],
    env: "false",
    fromFlag: true,
    fromEnv: false,
    byDefault: false,
    besides: ["--idle-stop", "2h"],
  },
  keep: { flag: ["--no-keep"], env: "true", fromFlag: false, fromEnv: true, byDefault: false },
  name: {
    flag: ["--name", "of-the.flag_1"],
    env: "x".repeat(40),
    fromFlag: "of-the.flag_1",
    fromEnv: "x".repeat(40),
    byDefault: undefined,
  },
  title: {
    flag: ["--title", "Ada's lab"],
    env: "é".repeat(80),
    fromFlag: "Ada's lab",
    fromEnv: "é".repeat(80),
    byDefault: "Desktop",
  },
  vncPasswordFile: {
    flag: ["--vnc-password-file", tokenFile],
    env: otherTokenFile,
    fromFlag: tokenFile,
    fromEnv: otherTokenFile,
    byDefault: undefined,
    besides: ["--vnc", "tcp:vnc.test:5901"],
  },
  files: {
    flag: ["--no-files"],
    env: "true",
    fromFlag: false,
    fromEnv: true,
    byDefault: undefined,
  },
  uploadDir: {
    flag: ["--upload-dir", "/srv/in"],
    env: "in",
    fromFlag: "/srv/in",
    fromEnv: path.resolve("in"),
    byDefault: undefined,
  },
  maxUpload: {
    flag: ["--max-upload", "500M"],
    env: "2k",
    fromFlag: 500_000_000,
    fromEnv: 2_000,
    byDefault: 10_000_000_000,
  },
  share: {
    flag: ["--no-share"],
    env: "true",
    fromFlag: false,
    fromEnv: true,
    byDefault: undefined,
  },
  clipboard: {
    flag: ["--clipboard", "in"],
    env: "off",
    fromFlag: "in",
    fromEnv: "off",
    byDefault: "both",
  },
  tokenFile: {
    flag: ["--token-file", tokenFile],
    env: otherTokenFile,
    fromFlag: tokenFile,
    fromEnv: otherTokenFile,
    byDefault: undefined,
  },
  auth: {
    flag: ["--auth", "token"],
    env: "none",
    fromFlag: "token",
    fromEnv: "none",
    byDefault: "auto",
    besides: ["--allow-no-auth"],
  },
  allowNoAuth: {
    flag: ["--no-allow-no-auth"],
    env: "1",
    fromFlag: false,
    fromEnv: true,
    byDefault: false,
  },
  allowOrigin: {
    flag: ["--allow-origin", "https://a.test", "--allow-origin", "http://b.test:1"],
    env: " https://c.test\thttps://d.test\n",
    fromFlag: ["https://a.test", "http://b.test:1"],
    fromEnv: ["https://c.test", "https://d.test"],
    byDefault: [],
  },
  logFormat: {
    flag: ["--log-format", "json"],
    env: "text",
    fromFlag: "json",
    fromEnv: "text",
    byDefault: "text",
  },
  metrics: { flag: ["--metrics"], env: "0", fromFlag: true, fromEnv: false, byDefault: false },
  frameAncestors: {
    flag: ["--frame-ancestors", "self"],
    env: "none",
    fromFlag: "self",
    fromEnv: "none",
    byDefault: "self",
  },
  activity: {
    flag: ["--activity=off"],
    env: "connected",
    fromFlag: "off",
    fromEnv: "connected",
    byDefault: "input",
  },
  passHubToken: {
    flag: ["--no-pass-hub-token"],
    env: "true",
    fromFlag: false,
    fromEnv: true,
    byDefault: false,
  },
  logLevel: {
    flag: ["--log-level", "error"],
    env: "debug",
    fromFlag: "error",
    fromEnv: "debug",
    byDefault: "info",
  },
  sysPrefix: {
    flag: ["--sys-prefix"],
    env: "false",
    fromFlag: true,
    fromEnv: false,
    byDefault: false,
  },
  system: { flag: ["--system"], env: "false", fromFlag: true, fromEnv: false, byDefault: false },
  labTab: { flag: ["--lab-tab"], env: "false", fromFlag: true, fromEnv: false, byDefault: false },
  websockify: {
    flag: ["--websockify"],
    env: "false",
    fromFlag: true,
    fromEnv: false,
    byDefault: false,
  },
  print: { flag: ["--print"], env: "false", fromFlag: true, fromEnv: false, byDefault: false },
  json: { flag: ["--json"], env: "false", fromFlag: true, fromEnv: false, byDefault: false },
  yes: { flag: ["-y"], env: "false", fromFlag: true, fromEnv: false, byDefault: false },
};

describe("loadConfig", () => {
  test.each(Object.entries(PRECEDENCE))(
    "takes %s from the flag, then the environment",
    (...row) => {
      const [name, { flag, env, besides = [], ...expected }] = row;
      const value = (argv: readonly string[], vars: NodeJS.ProcessEnv): unknown =>
        loadConfig([...besides, ...argv], vars)[name as OptionName];
      const vars = { [ENV_NAMES[name as OptionName]]: env };
      expect(value(flag, vars)).toEqual(expected.fromFlag);
      expect(value(flag, {})).toEqual(expected.fromFlag);
      expect(value([], vars)).toEqual(expected.fromEnv);
      expect(value([], {})).toEqual(expected.byDefault);
      expect(value([], { [ENV_NAMES[name as OptionName]]: "" })).toEqual(expected.byDefault);
    },
  );

  test("takes the token from the environment, or the first line of the file", () => {
    expect(loadConfig([], {}).token).toBeUndefined();
    expect(loadConfig([], { JUPYTER_DESKTOP_TOKEN: "of-the-environment" }).token).toBe(
      "of-the-environment",
    );
    expect(loadConfig(["--token-file", tokenFile], {}).token).toBe("token-of-the-file");
  });

  test("takes the VNC password from the first line of its file, however short", () => {
    const file = path.join(dir.path, "vnc-password");
    fs.writeFileSync(file, "pw\n");
    const config = loadConfig(["--vnc", "tcp:h:5900", "--vnc-password-file", file], {});
    expect(config.vncPassword).toBe("pw");
    expect(loadConfig([], {}).vncPassword).toBeUndefined();
  });

  test("takes the script of people who come from upstream, after our own variable", () => {
    const upstream = { JUPYTER_REMOTE_DESKTOP_PROXY_XSTARTUP: "/opt/upstream" };
    const both = { ...upstream, JUPYTER_DESKTOP_XSTARTUP: "/opt/ours" };
    expect(loadConfig([], upstream).xstartup).toBe("/opt/upstream");
    expect(loadConfig([], both).xstartup).toBe("/opt/ours");
    expect(loadConfig(["--xstartup", "/opt/flag"], both).xstartup).toBe("/opt/flag");
  });

  test("resolves a file's name against the working directory", () => {
    expect(loadConfig(["--xstartup", "start.sh"], {}).xstartup).toBe(path.resolve("start.sh"));
  });

  test("takes the last of a flag that is given twice", () => {
    const config = loadConfig(["--port", "1", "-p2", "--open", "--no-open", "--port=3"], {});
    expect([config.port, config.open]).toEqual([3, false]);
  });

  test("reads neither --help nor --version from the environment", () => {
    const { help, version } = loadConfig([], {
      JUPYTER_DESKTOP_HELP: "true",
      JUPYTER_DESKTOP_VERSION: "true",
    });
    expect([help, version]).toEqual([false, false]);
    expect(loadConfig(["-h", "-V"], {})).toMatchObject({ help: true, version: true });
  });

  test.each<[string[], Config["command"]]>([
    [[], "serve"],
    [["serve"], "serve"],
    [["setup"], "setup"],
    [["doctor"], "doctor"],
    [["status"], "status"],
    [["stop", "--name", "a"], "stop"],
    [["install", "--sys-prefix", "--geometry", "800x600"], "install"],
    [["uninstall", "--system"], "uninstall"],
    [["run", "--name", "a", "--", "xterm", "-e", "top"], "run"],
    [["env", "--json"], "env"],
    [["--port", "1", "setup", "-y"], "setup"],
  ])("reads the command of %j as %s", (argv, command) => {
    expect(loadConfig(argv, {}).command).toBe(command);
  });

  test.each([
    ["desk", "/desk/"],
    ["/desk", "/desk/"],
    ["desk/", "/desk/"],
    ["//desk//sub/", "/desk/sub/"],
    ["/user/x@y.z/desk/", "/user/x@y.z/desk/"],
    ["/user/x%40y.z/desk/", "/user/x%40y.z/desk/"],
    ["/", "/"],
    ["///", "/"],
  ])("writes the base URL %j as %s", (given, expected) => {
    expect(loadConfig(["--base-url", given], {}).baseUrl).toBe(expected);
  });

  test.each([
    ["off", 0],
    ["0", 0],
    ["0s", 0],
    ["1s", 1_000],
    ["90s", 90_000],
    ["30m", 1_800_000],
    ["2h", 7_200_000],
    ["999999h", 3_599_996_400_000],
  ])("reads the time %s as %d ms", (given, expected) => {
    const { idleStop, idleDisconnect } = loadConfig(
      ["--idle-stop", given, "--idle-disconnect", given],
      {},
    );
    expect([idleStop, idleDisconnect]).toEqual([expected, expected]);
  });

  test.each([
    ["https://lab.test:443", "https://lab.test"],
    ["http://lab.test:80", "http://lab.test"],
    ["HTTPS://Lab.Test:8443", "https://lab.test:8443"],
    ["http://[::0001]:1", "http://[::1]:1"],
    ["https://müsli.test", "https://xn--msli-0ra.test"],
  ])("writes the origin %s as a browser does: %s", (given, expected) => {
    expect(loadConfig(["--allow-origin", given], {}).allowOrigin).toEqual([expected]);
    const env = { JUPYTER_DESKTOP_ALLOW_ORIGIN: given };
    expect(loadConfig([], env).allowOrigin).toEqual([expected]);
  });
});

/** Of each option: what is refused, and the rule as the message tells it. */
const REFUSED: readonly [OptionName, string, string][] = [
  ["host", "", "must not be empty"],
  ["port", "", "must be a number from 0 to 65535"],
  ["port", "http", "must be a number from 0 to 65535"],
  ["port", "-1", "must be a number from 0 to 65535"],
  ["port", "80.5", "must be a number from 0 to 65535"],
  ["port", "65536", "must be a number from 0 to 65535"],
  ["port", "0x50", "must be a number from 0 to 65535"],
  ["unixSocket", "", "must not be empty"],
  ["unixSocket", `/${"s".repeat(100)}`, "must be at most 100 bytes long"],
  ["unixSocket", `/${"ö".repeat(50)}`, "must be at most 100 bytes long"],
  ["baseUrl", "/desk?x=1", "must be a URL path"],
  ["baseUrl", "/desk#x", "must be a URL path"],
  ["baseUrl", "/a desk", "must be a URL path"],
  ["baseUrl", '/"><script>', "must be a URL path"],
  ["baseUrl", "https://lab.test/desk/", "must be a URL path"],
  ["baseUrl", "//x://", "must be a URL path"],
  ["baseUrl", "/desk;Secure/", "must be a URL path"],
  ["baseUrl", "/*/", "must be a URL path"],
  ["baseUrl", "\\desk", "must be a URL path"],
  ["open", "maybe", "must be true or false"],
  ["vnc", "", "must be auto, unix:/path or tcp:host:port"],
  ["vnc", "localhost:5900", "must be auto, unix:/path or tcp:host:port"],
  ["vncCommand", "", "must not be empty"],
  ["vncArg", "", "must not be empty"],
  ["xstartup", "", "must not be empty"],
  ["geometry", "1680", "must be WIDTHxHEIGHT"],
  ["geometry", "0x0", "must be WIDTHxHEIGHT"],
  ["geometry", "1680x1050 -listen tcp", "must be WIDTHxHEIGHT"],
  ["geometry", "16385x600", "must be at most 16384x16384"],
  ["geometry", "600x16385", "must be at most 16384x16384"],
  ["start", "later", "must be now or visit"],
  ["maxSize", "big", "must be WIDTHxHEIGHT"],
  ["maxSize", "8192", "must be WIDTHxHEIGHT"],
  ["maxSize", "0x600", "must be WIDTHxHEIGHT"],
  ["maxSize", "800x600x2", "must be WIDTHxHEIGHT"],
  ["maxViewers", "0", "must be at least 1"],
  ["maxViewers", "-1", "must be a whole number"],
  ["maxViewers", "1.5", "must be a whole number"],
  ["maxViewers", "many", "must be a whole number"],
  ["maxUpload", "0", "must be a size such as 500M or 10G"],
  ["maxUpload", "1.5G", "must be a size such as 500M or 10G"],
  ["maxUpload", "2g", "must be a size such as 500M or 10G"],
  ["files", "maybe", "must be true or false"],
  ["idleDisconnect", "90", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleDisconnect", "-1s", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleDisconnect", "1.5h", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleStop", "2d", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleStop", "30 m", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleStop", "", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleStop", "never", "must be a time such as 90s, 30m or 2h, or off"],
  ["idleExit", "yes", "must be true or false"],
  ["keep", "always", "must be true or false"],
  ["name", "", "must be at most 40 letters"],
  ["name", "a/b", "must be at most 40 letters"],
  ["name", "../x", "must be at most 40 letters"],
  ["name", "a b", "must be at most 40 letters"],
  ["name", "x".repeat(41), "must be at most 40 letters"],
  ["auth", "nobody", "must be auto, token, hub or none"],
  ["auth", "NONE", "must be auto, token, hub or none"],
  ["allowNoAuth", "yes", "must be true or false"],
  ["allowOrigin", "lab.example.org", "must be an origin"],
  ["allowOrigin", "https://lab.example.org/", "must be an origin"],
  ["allowOrigin", "null", "must be an origin"],
  ["allowOrigin", "*", "must be an origin"],
  ["allowOrigin", "ftp://lab.example.org", "must be an origin"],
  ["allowOrigin", "https://a.test,https://b.test", "must be an origin"],
  ["allowOrigin", "https://lab.example.org:port", "must be an origin"],
  ["logLevel", "all", "must be error, warn, info or debug"],
  ["yes", "y", "must be true or false"],
];

const flagOf = (name: string) =>
  `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

describe("loadConfig refuses", () => {
  test.each(REFUSED)("the %s %j, and names flag, variable, rule and value", (name, value, rule) => {
    const problems = problemsOf([`${flagOf(name)}=${value}`]);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toStartWith(`${flagOf(name)} (${ENV_NAMES[name]}): `);
    expect(problems[0]).toContain(`"${value}"`);
    expect(problems[0]).toContain(rule);
    if (value) expect(problemsOf([], { [ENV_NAMES[name]]: value })).toEqual(problems);
  });

  test("a value that breaks two rules with one sentence", () => {
    expect(problemsOf(["--geometry", "big"])).toHaveLength(1);
  });

  // It is a part of a path, and what stands there is removed at the end.
  test.each([".", ".."])("the name %s, which is another directory", (name) => {
    expect(problemsOf(["--name", name])).toHaveLength(1);
  });

  // None of them is ever the Origin of a browser, so that they would be allowed in vain.
  test.each([
    "https://c.test,",
    "https://ada@lab.test",
    "https://lab.test?x",
    "https://lab.test#x",
    "https://*.lab.test",
  ])("the origin %s, which is none", (origin) => {
    expect(problemsOf(["--allow-origin", origin])).toHaveLength(1);
  });

  test("an origin of the environment in a list of good ones", () => {
    const problems = problemsOf([], { JUPYTER_DESKTOP_ALLOW_ORIGIN: "https://a.test b.test" });
    expect(problems).toHaveLength(1);
    expect(problems[0]).toContain("--allow-origin (JUPYTER_DESKTOP_ALLOW_ORIGIN)");
  });

  test("everything that is wrong at once", () => {
    const problems = problemsOf(
      [
        "--port=http",
        "--nonsense",
        "--geometry",
        "16x16",
        "--start",
        "x",
        "paint",
        "now",
        "--host",
      ],
      { JUPYTER_DESKTOP_AUTH: "nobody", JUPYTER_DESKTOP_TOKEN: "short" },
    );
    const wrong = ["--nonsense", "--host", "paint", "now:", "--port", "--start"];
    for (const name of [...wrong, "JUPYTER_DESKTOP_AUTH", "JUPYTER_DESKTOP_TOKEN"])
      expect(problems.filter((problem) => problem.includes(name))).toHaveLength(1);
    expect(problems).toHaveLength(8);
  });

  test("to tell its problems in anything but one error, a line each", () => {
    const error = new UsageError(["a", "b"]);
    expect([error.message, error.problems]).toEqual(["a\nb", ["a", "b"]]);
  });

  test.each([
    ["--nonsense", "--nonsense: there is no such option"],
    ["-x", "-x: there is no such option"],
    ["--no-port", "--no-port: there is no such option"],
    ["--no-open=true", "--no-open: there is no such option"],
    ["--no-open=", "--no-open: there is no such option"],
    ["--no-token", "--no-token: everyone sees it"],
    ["--port", "--port (JUPYTER_DESKTOP_PORT): needs a value (PORT)"],
    ["-p", "--port (JUPYTER_DESKTOP_PORT): needs a value (PORT)"],
    ["--xstartup --open", "--xstartup (JUPYTER_DESKTOP_XSTARTUP): needs a value (FILE)"],
    ["--vnc-arg --port=1", "--vnc-arg (JUPYTER_DESKTOP_VNC_ARG): needs a value (ARG)"],
    ["--vnc-arg -- x", "--vnc-arg (JUPYTER_DESKTOP_VNC_ARG): needs a value (ARG)"],
  ])("the flag %s", (flags, problem) => {
    const [first = "", ...more] = problemsOf(flags.split(" "));
    expect(first).toStartWith(problem);
    if (!flags.endsWith(" x")) expect(more).toEqual([]);
  });

  test("no value that begins with hyphens and comes after an equals sign", () => {
    expect(loadConfig(["--vnc-command=--x"], {}).vncCommand).toBe("--x");
    expect(loadConfig(["--vnc-arg=--x", "--vnc-arg", "-y"], {}).vncArg).toEqual(["--x", "-y"]);
  });

  test.each([
    ["too-few", [], { JUPYTER_DESKTOP_TOKEN: "too-few" }],
    ["s3cr3t!", ["--token-file", "SHORT"], {}],
  ])("a token with less than 8 characters, without showing it", (secret, argv, env) => {
    const short = path.join(dir.path, "short-token");
    fs.writeFileSync(short, `${secret}\n`);
    const [problem, ...more] = problemsOf(
      argv.map((word) => word.replace("SHORT", short)),
      env,
    );
    expect(more).toEqual([]);
    expect(problem).toContain("must have at least 8 characters");
    expect(problem).toContain("JUPYTER_DESKTOP_TOKEN");
    expect(problem).not.toContain(secret);
  });

  test.each(["token-file", "vnc-password-file"])("a --%s that cannot be read", (name) => {
    const missing = path.join(dir.path, "missing");
    const argv = ["--vnc", "tcp:h:1", `--${name}`, missing];
    expect(problemsOf(argv)).toEqual([
      expect.stringMatching(new RegExp(`^--${name} \\(JUPYTER_DESKTOP_.*cannot read ${missing}: `)),
    ]);
    expect(problemsOf([...argv.slice(0, 3), dir.path])).toHaveLength(1);
  });

  test("a token on the command line, since everyone sees it in ps", () => {
    const problems = problemsOf(["--token=not-to-be-shown"]);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toStartWith("--token: ");
    expect(problems.join()).not.toContain("not-to-be-shown");
  });

  test("to show a token that was given as a flag of two words", () => {
    const problems = problemsOf(["--token", "not-to-be-shown"]);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toStartWith("--token: ");
    expect(problems[0]).toContain("set JUPYTER_DESKTOP_TOKEN instead");
    expect(problems.join()).not.toContain("not-to-be-shown");
  });
});

const TOKEN_ENV = { JUPYTER_DESKTOP_TOKEN: "a-good-token" };

/** An option by both its names. */
const both = (name: OptionName) =>
  name === "token" ? ENV_NAMES.token : `${flagOf(name)} (${ENV_NAMES[name]})`;

const NO_AUTH_RULE = `"none" on a TCP address lets in every user of this machine; add ${both("allowNoAuth")}`;
const OWN_ONLY = "works only with the VNC server that jupyter-desktop starts itself";
const NO_USE = `is of no use with ${both("auth")} none`;
const NO_AUTH = ["--auth", "none", "--allow-no-auth"];
const NO_AUTH_ENV = { JUPYTER_DESKTOP_AUTH: "none", JUPYTER_DESKTOP_ALLOW_NO_AUTH: "1" };

describe("loadConfig lets a flag set aside the variable of", () => {
  test.each([
    [
      ["--unix-socket", "s"],
      { JUPYTER_DESKTOP_PORT: "1", JUPYTER_DESKTOP_HOST: "h" },
      { port: 6080 },
    ],
    [["--port", "1"], { JUPYTER_DESKTOP_UNIX_SOCKET: "/s" }, { unixSocket: undefined, port: 1 }],
    [
      ["--token-file", tokenFile],
      { JUPYTER_DESKTOP_TOKEN: "another-token" },
      { token: "a-file-token" },
    ],
    [
      ["--token-file", tokenFile],
      { JUPYTER_DESKTOP_AUTH: "none", JUPYTER_DESKTOP_ALLOW_NO_AUTH: "1" },
      { auth: "auto", token: "a-file-token" },
    ],
  ])("another option: %j with %j", (argv, env, expected) => {
    fs.writeFileSync(tokenFile, "a-file-token\n");
    expect(loadConfig(argv, env)).toMatchObject(expected);
  });
});

describe("loadConfig weighs options against each other and", () => {
  test.each<[string[], NodeJS.ProcessEnv, OptionName, string]>([
    [
      ["--unix-socket", "s", "--port", "1"],
      {},
      "unixSocket",
      `cannot be combined with ${both("port")}`,
    ],
    [
      ["--unix-socket", "s", "--host", "h"],
      {},
      "unixSocket",
      `cannot be combined with ${both("host")}`,
    ],
    [
      [],
      { JUPYTER_DESKTOP_UNIX_SOCKET: "/s", JUPYTER_DESKTOP_PORT: "1" },
      "unixSocket",
      `cannot be combined with ${both("port")}`,
    ],
    [
      [],
      { JUPYTER_DESKTOP_UNIX_SOCKET: "/s", JUPYTER_DESKTOP_HOST: "h" },
      "unixSocket",
      `cannot be combined with ${both("host")}`,
    ],
    [["--auth", "none"], {}, "auth", NO_AUTH_RULE],
    [["--auth", "none", "--host", "127.0.0.1"], {}, "auth", NO_AUTH_RULE],
    [["--auth", "none", "--host", "0.0.0.0"], {}, "auth", NO_AUTH_RULE],
    [["--auth", "none", "--no-allow-no-auth"], {}, "auth", NO_AUTH_RULE],
    [[], { JUPYTER_DESKTOP_AUTH: "none" }, "auth", NO_AUTH_RULE],
    [[...NO_AUTH, "--token-file", tokenFile], {}, "tokenFile", NO_USE],
    [[], { ...NO_AUTH_ENV, JUPYTER_DESKTOP_TOKEN_FILE: tokenFile }, "tokenFile", NO_USE],
    [[], { ...NO_AUTH_ENV, ...TOKEN_ENV }, "token", NO_USE],
    [["--unix-socket", "s"], { ...NO_AUTH_ENV, ...TOKEN_ENV }, "token", NO_USE],
    [
      [],
      { ...TOKEN_ENV, JUPYTER_DESKTOP_TOKEN_FILE: tokenFile },
      "tokenFile",
      `cannot be combined with ${both("token")}`,
    ],
    [
      ["--vnc", "tcp:h:1", "--xstartup", "x"],
      {},
      "xstartup",
      `${OWN_ONLY}, not with ${both("vnc")}`,
    ],
    [
      ["--vnc", "tcp:h:1", "--geometry", "80x60"],
      {},
      "geometry",
      `${OWN_ONLY}, not with ${both("vnc")}`,
    ],
    [["--vnc", "unix:/v", "--vnc-arg=-a"], {}, "vncArg", `${OWN_ONLY}, not with ${both("vnc")}`],
    [["--vnc", "unix:/v", "--keep"], {}, "keep", `${OWN_ONLY}, not with ${both("vnc")}`],
    [
      ["--vnc-command", "c", "--vnc-arg=-a"],
      {},
      "vncArg",
      `${OWN_ONLY}, not with ${both("vncCommand")}`,
    ],
    [
      ["--vnc-command", "c"],
      { JUPYTER_DESKTOP_KEEP: "1" },
      "keep",
      `${OWN_ONLY}, not with ${both("vncCommand")}`,
    ],
    [["--vnc", "tcp:h:1", "--clipboard", "in"], {}, "clipboard", `"in" ${OWN_ONLY}`],
    [
      ["--vnc-command", "c"],
      { JUPYTER_DESKTOP_CLIPBOARD: "off" },
      "clipboard",
      `"off" ${OWN_ONLY}: what ${both("vncCommand")} sends`,
    ],
    [["--vnc-password-file", tokenFile], {}, "vncPasswordFile", `works only with ${both("vnc")}`],
    [["--idle-exit"], {}, "idleExit", `needs ${both("idleStop")} with a time`],
    [["--idle-exit", "--idle-stop", "off"], {}, "idleExit", `needs ${both("idleStop")}`],
    [[], { JUPYTER_DESKTOP_IDLE_EXIT: "1" }, "idleExit", `needs ${both("idleStop")}`],
  ])("refuses %j with %j", (...row) => {
    const [argv, env, name, rule] = row;
    const [problem, ...more] = problemsOf(argv, env);
    expect(more).toEqual([]);
    expect(problem).toStartWith(`${both(name)}: `);
    expect(problem).toContain(rule);
  });

  test.each<[string[], NodeJS.ProcessEnv]>([
    [NO_AUTH, {}],
    [["--auth", "none"], { JUPYTER_DESKTOP_ALLOW_NO_AUTH: "true" }],
    [["--auth", "none", "--unix-socket", "s"], {}],
    [["--unix-socket", "s"], TOKEN_ENV],
    [["--vnc-command", "c", "--vnc", "tcp:h:1"], {}],
    [["--vnc-command", "c", "--vnc-password-file", tokenFile], {}],
    [["--vnc", "auto", "--geometry", "800x600", "--xstartup", "x", "--vnc-arg=-a", "--keep"], {}],
    [["--vnc", "tcp:h:1", "--clipboard", "out"], {}],
    [["--idle-exit"], { JUPYTER_DESKTOP_IDLE_STOP: "30m" }],
    [["--vnc", "tcp:h:1", "--idle-stop", "1h", "--max-size", "800x600", "--max-viewers", "1"], {}],
  ])("allows %j with %j", (argv, env) => {
    expect(problemsOf(argv, env)).toEqual([]);
  });

  test("takes the variable that Kubernetes sets for a Service of its name for no port", () => {
    const env = { JUPYTER_DESKTOP_PORT: "tcp://10.0.0.7:6080" };
    expect(loadConfig([], env).port).toBe(6080);
    expect(problemsOf(["--port", "tcp://10.0.0.7:6080"])).toHaveLength(1);
  });

  test("lets --unix-socket win over the variables of TCP", () => {
    const env = { JUPYTER_DESKTOP_PORT: "80", JUPYTER_DESKTOP_HOST: "0.0.0.0" };
    expect(loadConfig(["--unix-socket", "/s"], env).unixSocket).toBe("/s");
  });

  test("lets --auth none win over the variables of a token", () => {
    for (const env of [TOKEN_ENV, { JUPYTER_DESKTOP_TOKEN_FILE: tokenFile }])
      expect(loadConfig(NO_AUTH, env).auth).toBe("none");
  });

  test("leaves nobody without the token that --token-file asks for", () => {
    const argv = ["--token-file", tokenFile];
    const open = problemsOf(argv, NO_AUTH_ENV).length === 0;
    expect(open && loadConfig(argv, NO_AUTH_ENV).auth).not.toBe("none");
  });

  test.each([
    ["--port", "1"],
    ["--host", "::1"],
  ])("lets %s win over the variable of --unix-socket", (flag, value) => {
    expect(
      loadConfig([flag, value], { JUPYTER_DESKTOP_UNIX_SOCKET: "/s" }).unixSocket,
    ).toBeUndefined();
  });

  test("tells all of these problems at once too", () => {
    const argv = ["--vnc", "tcp:h:1", "--xstartup", "x", "--geometry", "80x60", "--auth", "none"];
    expect(problemsOf(argv)).toHaveLength(3);
  });

  test("tells them together with what is wrong in itself", () => {
    const argv = ["--port", "http", "--nonsense", "--unix-socket", "s", "--idle-exit", "paint"];
    const problems = problemsOf(argv, { JUPYTER_DESKTOP_KEEP: "on" });
    const wrong = ["--nonsense: ", "paint: ", `${both("port")}: `, `${both("keep")}: `];
    for (const start of [...wrong, `${both("unixSocket")}: `, `${both("idleExit")}: `])
      expect(problems.filter((problem) => problem.startsWith(start))).toHaveLength(1);
    expect(problems).toHaveLength(6);
  });

  test.each<[OptionName, string[]]>([
    ["vnc", ["--vnc", "h:5900", "--vnc-password-file", tokenFile]],
    ["unixSocket", ["--unix-socket", `/${"s".repeat(100)}`, "--auth", "none"]],
    ["allowNoAuth", ["--allow-no-auth=maybe", "--auth", "none"]],
  ])("blames no other option for a wrong %s", (name, argv) => {
    expect(problemsOf(argv)).toEqual([expect.stringContaining(`${both(name)}: must be `)]);
  });
});

describe("renderHelp", () => {
  const help = renderHelp();

  test.each(names)("names the option %s, its words and its default", (name) => {
    const spec: { help: string; short?: string; hint?: string; default?: string } = OPTIONS[name];
    const line = help.split("\n").find((each) => each.includes(spec.help)) ?? "";
    expect(line).toContain(
      name === "token"
        ? ENV_NAMES.token
        : flagOf(name).replace(/^--(open|files|share)$/, "--[no-]$1"),
    );
    if (spec.short) expect(line).toContain(`-${spec.short}, --`);
    if (spec.hint) expect(line).toContain(`${flagOf(name)} ${spec.hint}`);
    if (spec.hint && spec.default) expect(line).toContain(`(default: ${spec.default})`);
  });

  test("names the commands, the groups, the variables and the exit codes", () => {
    for (const word of ["serve", "setup", "doctor", "status", "stop"])
      expect(help).toMatch(new RegExp(`^  ${word} {2,}\\w`, "m"));
    for (const word of ["Listen:", "Desktop:", "Security:", "Other:"])
      expect(help).toContain(`\n${word}\n`);
    expect(help).toMatch(/--base-url is JUPYTER_DESKTOP_BASE_URL/);
    expect(help).toMatch(/Exit codes: 0 .*1 .*2 /);
    expect(help).toEndWith("\n");
  });

  test("offers no flag for the token", () => {
    expect(help).not.toMatch(/--token(?!-file)/);
  });
});

describe("renderOptionTable", () => {
  test.each(names)("has one row for %s, with its variable unless it has none", (name) => {
    const rows = renderOptionTable().split("\n");
    const own = rows.filter((row) => row.includes(`| ${OPTIONS[name].help} |`));
    expect(own).toHaveLength(1);
    expect(own[0]?.includes(`\`${ENV_NAMES[name]}\``)).toBe(!["help", "version"].includes(name));
  });
});

describe("parseTarget", () => {
  test.each<[string, ReturnType<typeof parseTarget>]>([
    ["auto", { kind: "auto" }],
    ["unix:/run/vnc.sock", { kind: "unix", path: "/run/vnc.sock" }],
    ["unix:/with a:colon", { kind: "unix", path: "/with a:colon" }],
    ["tcp:localhost:5900", { kind: "tcp", host: "localhost", port: 5900 }],
    ["tcp:10.0.0.1:1", { kind: "tcp", host: "10.0.0.1", port: 1 }],
    ["tcp:my-host.example.org:65535", { kind: "tcp", host: "my-host.example.org", port: 65_535 }],
    ["tcp:[::1]:5901", { kind: "tcp", host: "::1", port: 5901 }],
    ["tcp:[fe80::ffff:10.0.0.1]:5901", { kind: "tcp", host: "fe80::ffff:10.0.0.1", port: 5901 }],
  ])("reads %s", (value, expected) => {
    expect(parseTarget(value)).toEqual(expected);
  });

  test.each([
    "",
    "Auto",
    "auto ",
    "unix:",
    "unix:relative.sock",
    "tcp:localhost",
    "tcp:localhost:",
    "tcp::5900",
    "tcp:localhost:0",
    "tcp:localhost:65536",
    "tcp:localhost:123456",
    "tcp:localhost:59a",
    "tcp:::1:5900",
    "tcp:[]:5900",
    "tcp:[evil/../]:5900",
    "tcp:user@host:5900",
    "localhost:5900",
    "vnc://localhost:5900",
  ])("takes %j for no target", (value) => {
    expect(parseTarget(value)).toBeUndefined();
  });
});

describe("escapeHtml", () => {
  test("leaves nothing with which to leave an element or an attribute", () => {
    expect(escapeHtml(`<a href="x" id='y'>&amp;</a>`)).not.toMatch(/[<>"']|&(?!#\d+;)/);
    expect(escapeHtml("Jörg's")).toBe("Jörg&#39;s");
    expect(escapeHtml("<&>\"'")).toBe("&#60;&#38;&#62;&#34;&#39;");
  });
});

describe("renderPage", () => {
  test("fills every placeholder, escaped", () => {
    const page = renderPage('<a href="{{url}}">{{title}} {{title}}</a>', {
      url: '"><script>',
      title: "{{url}} & $&",
    });
    expect(page).toBe(
      '<a href="&#34;&#62;&#60;script&#62;">{{url}} &#38; $&#38; {{url}} &#38; $&#38;</a>',
    );
  });

  test("fills with an empty text", () => {
    expect(renderPage("[{{message}}]", { message: "" })).toBe("[]");
  });

  test.each(["{{unknown}}", "{{title}} {{titel}}"])("throws on the hole in %s", (template) => {
    expect(() => renderPage(template, { title: "x" })).toThrow(/no value for "(unknown|titel)"/);
  });
});

describe("safeEqual", () => {
  test.each([
    ["same", "same", true],
    ["", "", true],
    ["ü", "ü", true],
    ["same", "Same", false],
    ["same", "same ", false],
    ["same", "", false],
    ["a", "a much longer one", false],
  ])("compares %j with %j: %p", (left, right, expected) => {
    expect(safeEqual(left, right)).toBe(expected);
  });
});

describe("backoffMs", () => {
  test("doubles from one second and stays at thirty", () => {
    expect([1, 2, 3, 4, 5, 6, 7, 100, 5_000].map(backoffMs)).toEqual([
      1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000,
    ]);
  });
});

describe("isRfbGreeting", () => {
  test.each([
    ["RFB 003.008\n", true],
    ["RFB 003.003\n", true],
    ["RFB 004.001\n", true],
    ["RFB 003.008", false],
    ["RFB 003.008\r\n", false],
    ["RFB 003.008\n\n", false],
    [" RFB 003.008\n", false],
    ["rfb 003.008\n", false],
    ["RFB 0x3.008\n", false],
    ["SSH-2.0-Open", false],
    ["HTTP/1.1 400", false],
    ["", false],
  ])("says of %j: %p", (text, expected) => {
    expect(isRfbGreeting(Buffer.from(text))).toBe(expected);
  });
});

describe("vncAuthResponse", () => {
  const counted = (from: number) => Uint8Array.from({ length: 16 }, (_, i) => from + i);

  // Made with `openssl enc -des-ecb -provider legacy -nopad -K KEY`, KEY being the password's bytes with their
  // bits in reverse, reversed by hand in Python.
  test.each<[string, Uint8Array, string]>([
    ["password", counted(0), "b866924125c8eebb9debc1db61c538e2"],
    ["ab", new Uint8Array(16).fill(255), "431849e250c6193e431849e250c6193e"],
    ["longer than eight", counted(16), "cd9b4db297616e800e2e813a6bd68db0"],
    ["", new Uint8Array(16), "8ca64de9c1b123a78ca64de9c1b123a7"],
  ])("encrypts the challenge with %j as every VNC server does", (password, challenge, expected) => {
    expect(vncAuthResponse(password, challenge).toString("hex")).toBe(expected);
  });

  test("looks at the first eight characters only", () => {
    const [long, short] = ["eight!!!", "eight!!! and more"].map((password) =>
      vncAuthResponse(password, counted(0)),
    );
    expect(long).toEqual(short as Buffer);
  });
});

describe("xauthority", () => {
  test("writes one cookie for every host and every display", () => {
    const name = Buffer.from("MIT-MAGIC-COOKIE-1").toString("hex");
    const cookie = Uint8Array.from({ length: 16 }, (_, i) => i);
    // Family "wild", no address, no number, the name's length and the name, the cookie's length and the cookie.
    expect(xauthority(cookie).toString("hex")).toBe(
      `ffff00000000${"0012"}${name}0010000102030405060708090a0b0c0d0e0f`,
    );
  });
});

describe("desktopEnv", () => {
  const home = path.join(dir.path, "home");
  const runtime = path.join(dir.path, "runtime");
  fs.mkdirSync(home);
  fs.mkdirSync(runtime);
  const made = (env: NodeJS.ProcessEnv) => desktopEnv({ HOME: home, USER: "ada", ...env }, runtime);

  test.each([
    "DISPLAY",
    "XAUTHORITY",
    "WAYLAND_DISPLAY",
    "SESSION_MANAGER",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SESSION_BUS_PID",
    "XDG_SESSION_ID",
    "XDG_CURRENT_DESKTOP",
    "XDG_DATA_DIRS",
    "XDG_SEAT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONHOME",
    "PYTHONPATH",
    "QT_PLUGIN_PATH",
    "GTK_PATH",
    "GIO_MODULE_DIR",
    "GSETTINGS_SCHEMA_DIR",
    "FONTCONFIG_PATH",
    "NODE_ENV",
    "npm_config_registry",
    "BUN_INSTALL",
    "TMUX",
    "TERM",
  ])("takes nothing of another session's or conda's: %s", (name) => {
    expect(made({ [name]: "leaked" })).not.toHaveProperty([name]);
  });

  test.each([
    "JUPYTER_DESKTOP_TOKEN",
    "JUPYTER_DESKTOP_TOKEN_FILE",
    "JUPYTER_DESKTOP_VNC_PASSWORD_FILE",
    "JUPYTERHUB_API_TOKEN",
    "JUPYTERHUB_CLIENT_ID",
    "JPY_API_TOKEN",
  ])("passes no secret on: %s", (name) => {
    expect(Object.values(made({ [name]: "s3cr3t" }))).not.toContain("s3cr3t");
  });

  test("keeps what is the user's", () => {
    const env = { LANG: "de_DE.UTF-8", TZ: "UTC", CONDA_PREFIX: "/opt/conda", SHELL: "/bin/zsh" };
    expect(made(env)).toMatchObject({ ...env, USER: "ada", LOGNAME: "ada", HOME: home });
  });

  test("puts the system's directories first in PATH, each once", () => {
    const env = made({ PATH: "/opt/conda/bin:/usr/bin:/home/ada/bin" });
    expect(env.PATH).toBe(
      "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/conda/bin:/home/ada/bin",
    );
    expect(env.JUPYTER_DESKTOP_USER_PATH).toBe("/opt/conda/bin:/usr/bin:/home/ada/bin");
    expect(made({ PATH: undefined }).PATH).toStartWith("/usr/local/sbin:");
  });

  test("says that it is an X11 session, and where its runtime directory is", () => {
    const gone = path.join(dir.path, "gone");
    expect(made({ XDG_SESSION_TYPE: "wayland" }).XDG_SESSION_TYPE).toBe("x11");
    expect(made({ XDG_RUNTIME_DIR: home }).XDG_RUNTIME_DIR).toBe(home);
    expect(made({ XDG_RUNTIME_DIR: gone }).XDG_RUNTIME_DIR).toBe(runtime);
    expect(made({}).XDG_RUNTIME_DIR).toBe(runtime);
    expect(made({}).JUPYTER_DESKTOP_RUNTIME_DIR).toBe(runtime);
  });

  test.each([undefined, "", "/", "/nonexistent"])("makes a private HOME instead of %j", (HOME) => {
    const env = desktopEnv({ HOME }, runtime);
    expect(env.HOME).toBe(path.join(runtime, "home"));
    expect(fs.statSync(path.join(runtime, "home")).mode & 0o777).toBe(0o700);
  });

  test("has a user even without a passwd entry", () => {
    using nobody = spyOn(os, "userInfo").mockImplementation(() => {
      throw new Error("ENOENT: no entry for this user");
    });
    const env = desktopEnv({ HOME: home }, runtime);
    expect(nobody).toHaveBeenCalled();
    expect([env.USER, env.LOGNAME]).toEqual(Array(2).fill(`uid${process.getuid?.()}`));
    expect(desktopEnv({ HOME: home, LOGNAME: "eve" }, runtime).USER).toBe("eve");
  });
});

describe("installLines", () => {
  const having = (...managers: string[]) => {
    const which = (name: string) => (managers.includes(name) ? `/usr/bin/${name}` : null);
    return installLines(["vnc", "desktop"], which);
  };

  test.each([
    ["apt-get", ["apt-get update", "apt-get install -y"], "tigervnc-standalone-server"],
    ["dnf", ["dnf install -y"], "tigervnc-server-minimal"],
    ["apk", ["apk add"], "tigervnc"],
    ["pacman", ["pacman -Sy --needed --noconfirm"], "tigervnc"],
    ["zypper", ["zypper --non-interactive install"], "xorg-x11-Xvnc"],
  ])("asks nothing with %s, and installs a VNC server and XFCE", (manager, starts, vnc) => {
    const lines = having(manager) ?? [];
    expect(lines).toHaveLength(starts.length);
    for (const [i, start] of starts.entries()) expect(lines[i]).toStartWith(start);
    const words = lines.at(-1)?.split(" ") ?? [];
    expect(words).toContain(vnc);
    expect(words.some((word) => /^xfce4/.test(word))).toBe(true);
    expect(words).toContain("xfce4-terminal");
    // Each line is run without a shell, cut at its spaces.
    expect(lines.join("\n")).not.toMatch(/["'$`|&;<>*\\]| {2}/);
  });

  test("installs only what is asked for", () => {
    const lines = installLines(["vnc"], () => "/usr/bin/apt-get");
    expect(lines?.at(-1)).toEndWith("tigervnc-standalone-server");
    expect(lines?.join()).not.toContain("xfce4");
  });

  test("knows no line without a package manager that it knows", () => {
    expect(having("emerge", "nix-env")).toBeUndefined();
  });
});

describe("createLog", () => {
  type How = Parameters<typeof createLog>[0];
  function logged(level: How["level"], secrets: string[] = [], format: How["format"] = "text") {
    const lines: string[] = [];
    return { lines, log: createLog({ level, format }, secrets, (line) => lines.push(line)) };
  }

  test("writes one line an event: time, level, what, key=value", () => {
    const { lines, log } = logged("info");
    log("info", "viewer came", { viewers: 2, target: "tcp:[::1]:1", none: null, no: undefined });
    expect(lines).toEqual([
      expect.stringMatching(
        /^\d{4}-\d\d-\d\dT[\d:.]+Z info viewer came viewers=2 target="tcp:\[::1\]:1"\n$/,
      ),
    ]);
  });

  test("lets no value make a second line or a second field", () => {
    const { lines, log } = logged("info");
    log("warn", "refused", { path: "/\n2026 info all is well", reason: 'x" ok="true' });
    expect(lines.join("").match(/\n/g)).toHaveLength(1);
    expect(lines[0]).toContain(String.raw`path="/\n2026 info all is well" reason="x\" ok=\"true"`);
  });

  test.each([
    ["error", 1],
    ["warn", 2],
    ["info", 3],
    ["debug", 4],
  ] as const)("at the level %s writes %d of the four", (level, count) => {
    const { lines, log } = logged(level);
    for (const each of ["error", "warn", "info", "debug"] as const) log(each, "event");
    expect(lines).toHaveLength(count);
  });

  test("shows no secret, wherever it stands and however often", () => {
    const { lines, log } = logged("debug", ["t0k3n", "passw0rd"]);
    log("info", "t0k3n", {
      path: "/?token=t0k3n&t0k3n",
      error: "refused passw0rd, twice passw0rd",
    });
    expect(lines.join("")).not.toMatch(/t0k3n|passw0rd/);
    expect(lines[0]).toContain("refused ***, twice ***");
  });

  test("shows no secret that has a quote or a backslash in it", () => {
    const { lines, log } = logged("debug", [String.raw`t0k"3n\pass`]);
    log("info", "event", { error: String.raw`refused: t0k"3n\pass` });
    expect(lines[0]).toContain("***");
    expect(lines[0]).not.toContain("3n");
  });

  test("as JSON writes one object an event, numbers as numbers, and no secret either", () => {
    const { lines, log } = logged("info", ['t0k"3n'], "json");
    log("info", "viewer came", { viewers: 2, none: null, path: 'a\n"b"', error: 't0k"3n' });
    const { time, ...rest } = JSON.parse(lines.join(""));
    expect(new Date(time).toISOString()).toBe(time);
    expect(rest).toEqual({
      level: "info",
      event: "viewer came",
      viewers: 2,
      path: 'a\n"b"',
      error: "***",
    });
    expect(lines.join("").match(/\n/g)).toHaveLength(1);
  });
});
