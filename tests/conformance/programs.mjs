// Programs that run beside this one. Each is ended by its own pid, also where this one fails or is told to end.
import { spawn } from "node:child_process";
import { resolve } from "node:path";

export const ROOT = resolve(import.meta.dirname, "../..");
/** Where cargo puts what it builds. */
export const BUILT = resolve(ROOT, process.env.CARGO_TARGET_DIR ?? "target", "debug");

/** A program that runs until `end()`. */
export class Program {
  /** All that it has written, to stdout and stderr. */
  output = "";
  #child;
  #changed = () => {};

  constructor(command, args, options = {}) {
    this.#child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
    running.add(this.#child);
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream.setEncoding("utf8").on("data", (text) => {
        this.output += text;
        this.#changed();
      });
    }
    this.ended = new Promise((resolve) => {
      this.#child.once("error", (error) => {
        running.delete(this.#child);
        this.output += error.message;
        resolve(null);
      });
      this.#child.once("close", (code) => {
        running.delete(this.#child);
        resolve(code);
      });
    });
  }

  /** The first match of `pattern` in its output; fails if it ends, or `seconds` pass, before that. */
  async says(pattern, seconds = 30) {
    const match = new Promise((resolve) => {
      this.#changed = () => {
        const match = pattern.exec(this.output);
        if (match) resolve(match);
      };
      this.#changed();
    });
    const ended = this.ended.then((code) => {
      throw new Error(`ended with code ${code} before it said ${pattern}:\n${this.output}`);
    });
    return within(seconds, `a program that says ${pattern}`, Promise.race([match, ended]));
  }

  async end() {
    this.#child.kill("SIGKILL");
    await this.ended;
  }
}

/** Runs a program to its end; gives its exit code and its output. */
export async function run(command, args, options, seconds) {
  const program = new Program(command, args, options);
  try {
    const code = await within(seconds, `${command} ${args.join(" ")}`, program.ended);
    return { code, output: program.output };
  } finally {
    await program.end();
  }
}

/** The value of `promise`; fails with the name of `what` after `seconds`. */
export async function within(seconds, what, promise) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${seconds} s: ${what}`)), seconds * 1000);
  });
  try {
    return await Promise.race([promise, limit]);
  } finally {
    clearTimeout(timer);
  }
}

const running = new Set();
process.once("exit", () => running.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
