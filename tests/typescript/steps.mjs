// Runs a client's flow as named steps: each has a time limit, so that none can hang, and the first failure ends it.

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
