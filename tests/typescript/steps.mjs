// Runs a client's flow as named steps: each has a time limit, so that none can hang, and the first failure ends it.

import assert from "node:assert/strict";

/** Runs one step; fails with the step's name if it fails or takes longer than `seconds`. */
export async function step(name, run, seconds = 10) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${seconds} s`)), seconds * 1000);
  });
  try {
    return await Promise.race([run(), limit]);
  } catch (error) {
    throw new Error(`step "${name}": ${error.message}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}

/** Runs the whole flow: its facts as one line of JSON on stdout and exit code 0, or the error on stderr and 1. */
export async function report(flow) {
  try {
    const facts = await flow();
    process.stdout.write(`${JSON.stringify(facts)}\n`, () => process.exit(0));
  } catch (error) {
    process.stderr.write(`${describe(error)}\n`, () => process.exit(1));
  }
}

/** A value that arrives later: `arrive(value)` settles `arrived`. */
export function signal() {
  let arrive;
  const arrived = new Promise((resolve) => {
    arrive = resolve;
  });
  return { arrive, arrived };
}

/** A `fetch` that tells `observe({ request, response })` of every answer: status and headers, never the body. */
export function observedFetch(observe) {
  return async (url, init) => {
    const response = await fetch(url, init);
    observe({ request: new Headers(init?.headers), method: init?.method ?? "GET", response });
    return response;
  };
}

/** Lists the example server's tools and calls two by `call`; gives their number and the progress that arrived. */
export async function useTools(client, call) {
  const tools = await step("list tools", async () => {
    const names = (await client.listTools()).tools.map(({ name }) => name);
    assert.ok(names.includes("echo"), `no tool "echo" among ${names}`);
    return names.length;
  });

  const echo = await step("call echo", () => call("echo", { message: "through and back ✓" }));
  assert.equal(echo, "Echo: through and back ✓");

  const progress = [];
  await step("call a tool that reports progress", () =>
    call("trigger-long-running-operation", { duration: 0.5, steps: 5 }, { onprogress: (p) => progress.push(p.progress) }),
  );
  assert.deepEqual(progress, [1, 2, 3, 4, 5], "progress is missing, late or out of order");

  return { tools, progress };
}

/** Calls the endpoint with an ended session's id; gives the status and the JSON-RPC error code of the refusal. */
export async function callEndedSession(url, sessionId, protocolVersion) {
  const response = await fetch(url, {
    method: "POST",
    headers: {
      accept: "application/json, text/event-stream",
      "content-type": "application/json",
      "mcp-protocol-version": protocolVersion,
      "mcp-session-id": sessionId,
    },
    body: JSON.stringify({ jsonrpc: "2.0", id: "after-the-end", method: "ping" }),
  });
  const body = await response.json();
  return { status: response.status, code: body.error?.code };
}

function describe(error) {
  return error.cause ? `${error.message}\ncaused by: ${error.cause.stack ?? error.cause}` : String(error.stack ?? error);
}
