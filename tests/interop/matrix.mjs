// The steps of the matrix, for any client of TypeScript's. The other clients speak the same protocol:
//
//     CLIENT URL ERA      ERA: session (up to 2025-11-25) or stateless (2026-07-28)
//
// A client prints one line of JSON for each step when it is over, `{ step, fact }`, in the order of `STEPS` in main.rs.
// It asks the runner for something with `{ need }`, and goes on when it reads a line. A fact is "ok", "unsupported
// by ..." or "error: ...", and is the same each time: no ids, no addresses, no times.
import { once } from "node:events";
import { createInterface } from "node:readline";
import { signal, step } from "../typescript/steps.mjs";

const runner = createInterface({ input: process.stdin });

/** Where and how this client is to connect. */
export const [url, era] = process.argv.slice(2);

/** How this client answers the server's questions. */
export const answers = {
  elicitation: () => ({ action: "accept", content: { name: "Ada" } }),
  sampling: () => ({ model: "stand-in", role: "assistant", content: { type: "text", text: "hello" } }),
};

/**
 * Goes through all steps with a client that `connect({ toolsChanged })` connects anew each time. It has:
 *
 * - `list()`: the names of the tools
 * - `call(name, arguments, { onprogress, signal })`: the text of the result
 * - `listen()`: opens what the server's notifications come on, if that is not open already
 * - `close()`: ends the session and all else
 */
export async function run(connect, { passesCancellationOn = true } = {}) {
  let toolsChanged = () => {};
  const connected = () => connect({ toolsChanged: () => toolsChanged() });
  let client;

  await fact("connect", async () => {
    client = await connected();
  });
  if (!client) return;

  await fact("list", async () => expect(TOOLS, (await client.list()).sort().join(" ")));
  await fact("call", async () => expect("through and back ✓", await client.call("echo", { text: "through and back ✓" })));
  await fact("progress", async () => {
    const seen = [];
    const call = held(client, "progress", { onprogress: ({ progress }) => seen.push(progress) });
    // The call ends only after this, so that all progress has come before its result.
    await until(() => seen.length === 3 || call.over());
    await until(() => oneAnswers("opened", client, "open", { gate: "progress" }));
    expect("opened", await call.result);
    expect("1 2 3", seen.join(" "));
  });
  await fact("elicitation", async () => expect("Hello, Ada!", await client.call("ask")));
  await fact("sampling", async () => expect("The model says hello.", await client.call("sample")));
  await fact("notification", async () => {
    let isHeard = false;
    toolsChanged = () => {
      isHeard = true;
    };
    await client.listen();
    await until(async () => {
      if (!isHeard) await oneAnswers("announced", client, "announce");
      return isHeard;
    });
  });
  await fact("resumption", async () => {
    if (era === "stateless") throw new Unsupported("era");
    expect("answered on a resumed stream", supported(await client.call("hang_up")));
  });
  const session = await client.call("session").catch(() => "");
  await fact("cancellation", async () => {
    if (!passesCancellationOn) throw new Unsupported("client");
    // Each request has a server to itself, which hears of no other.
    if (era === "session" && session === "") throw new Unsupported("server");
    const cancel = new AbortController();
    const started = signal();
    const call = held(client, "cancellation", { signal: cancel.signal, onprogress: started.arrive });
    await Promise.race([started.arrived, call.result]);
    cancel.abort();
    await until(() => oneAnswers("cancelled", client, "fate", { gate: "cancellation" }));
  });
  await fact("end", () => client.close(), { session });

  // What is answered, or not, in the place of a backend that was there a moment ago.
  for (const [name, event] of [["404", "restart"], ["502", "stop"], ["503", "refuse"]]) {
    await fact(name, async () => {
      const client = await connected();
      try {
        await client.call("echo", { text: "before" });
        await need(event);
        expect("after", await client.call("echo", { text: "after" }));
      } finally {
        await step("close", () => client.close());
      }
    });
    await need("start");
  }
}

/** Prints what came of a step. */
export async function fact(name, check, more = {}) {
  let fact = "ok";
  try {
    await step(name, check, LIMIT_SECONDS);
  } catch (error) {
    console.error(error);
    fact = classOf(error.cause ?? error);
  }
  console.log(JSON.stringify({ step: name, fact, ...more }));
}

/** Has the runner do something to the server. */
export async function need(what) {
  const done = once(runner, "line");
  console.log(JSON.stringify({ need: what }));
  await done;
}

/** A call that ends when its gate is opened or when it is cancelled. */
function held(client, gate, options) {
  let isOver = false;
  const result = client.call("hold", { gate }, options);
  const over = () => {
    isOver = true;
  };
  result.then(over, over);
  return { result, over: () => isOver };
}

/**
 * Whether one of several calls at once has this answer. Of two servers behind a proxy only one holds a call or a
 * listener, and a lone call goes to the one that is less busy: always to the other.
 */
async function oneAnswers(wanted, client, tool, args) {
  const found = await Promise.all(Array.from({ length: 4 }, () => client.call(tool, args)));
  return found.map(supported).includes(wanted);
}

/** Asks until the answer is yes; the limit is the step's. */
async function until(isTrue) {
  while (!(await isTrue())) await new Promise((resolve) => setTimeout(resolve, 20));
}

export class Unsupported extends Error {
  constructor(by) {
    super(`unsupported by ${by}`);
  }
}

function supported(result) {
  if (result === "unsupported") throw new Unsupported("server");
  return result;
}

export function expect(wanted, found) {
  if (found !== wanted) throw new Error(`error: ${JSON.stringify(found)} is not ${JSON.stringify(wanted)}`);
}

/** The text of a tool's result. */
export function textOf({ isError, content }) {
  const text = content.map(({ text }) => text).join("\n");
  if (isError) throw new Error("error: the tool failed", { cause: text });
  return text;
}

/** What is the same each time in an error: a status or a code. */
function classOf(error) {
  if (/^(unsupported by|error:|no answer within)/.test(error.message)) return error.message;
  for (let cause = error; cause; cause = cause.cause ?? cause.data?.cause) {
    const code = cause.data?.status ?? cause.code;
    if (Number.isInteger(code)) return code < 0 ? `error: JSON-RPC ${code}` : `error: HTTP ${code}`;
    if (code === "ECONNREFUSED") return "error: connection refused";
  }
  return `error: ${error.name} ${error.code ?? ""}`.trim();
}

export const TOOLS = "announce ask echo fate hang_up hold open sample session";
const LIMIT_SECONDS = 20;
