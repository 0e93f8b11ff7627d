// The official conformance suite: what it tests, and its checks of one server or one client.
import { existsSync, globSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ROOT, run } from "./programs.mjs";

/** A version of the suite, as an npm package. */
export class Suite {
  #program;

  constructor(name) {
    const folder = join(import.meta.dirname, "node_modules", name);
    if (!existsSync(folder)) throw new Error("the suite is missing: run `make conformance`, which installs it");
    this.version = JSON.parse(readFileSync(join(folder, "package.json"))).version;
    this.#program = join(folder, "dist/index.js");
  }

  /** The scenarios of a side, `server` or `client`: `{ scenario, revisions }` each. */
  async scenarios(side) {
    const { output } = await this.#run(["list", `--${side}`], 30);
    const lines = [...output.matchAll(/^ {2}- (\S+) \[(\S+)\]$/gm)];
    return lines.map(([, scenario, revisions]) => ({ scenario, revisions: revisions.split(",") }));
  }

  /** Tests the server at `url`; gives the checks of each scenario, by its name. */
  async testServer(url, revision, folder) {
    const results = this.#emptied(folder);
    const options = ["--suite", "all", "--spec-version", revision, "-o", results];
    const { output } = await this.#run(["server", "--url", url, ...options], 300);
    if (!/^Total: /m.test(output)) throw new Error(`the suite did not come to its end:\n${output}`);
    const files = globSync("server-*/checks.json", { cwd: results });
    return new Map(files.map((file) => [file.slice("server-".length, -STAMP), checksOf(join(results, file))]));
  }

  /** Tests the client that `command` starts in one scenario; gives the checks. */
  async testClient(command, scenario, revision, folder) {
    const results = this.#emptied(folder);
    const options = ["--scenario", scenario, "-o", results, ...(revision ? ["--spec-version", revision] : [])];
    const { output } = await this.#run(["client", "--command", command, ...options], 90);
    const [file] = globSync("**/checks.json", { cwd: results });
    if (!file) throw new Error(`the suite wrote no checks of ${scenario}:\n${output}`);
    return checksOf(join(results, file));
  }

  #emptied(folder) {
    const results = join(ROOT, "target/conformance", this.version, folder);
    rmSync(results, { recursive: true, force: true });
    mkdirSync(results, { recursive: true });
    return results;
  }

  #run(args, seconds) {
    // Node keeps what it compiles of the suite and of its clients, which start hundreds of times.
    const env = { ...process.env, NODE_COMPILE_CACHE: join(ROOT, "target/conformance/compiled") };
    return run(process.execPath, [this.#program, ...args], { cwd: import.meta.dirname, env }, seconds);
  }
}

function checksOf(file) {
  return JSON.parse(readFileSync(file));
}

/** The length of what follows a scenario's name in the path of its checks. */
const STAMP = "-2026-11-25T13-32-08-698Z/checks.json".length;
