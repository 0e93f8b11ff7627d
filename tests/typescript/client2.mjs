// The official TypeScript SDK 2.x as a client of the official example server, directly or through a proxy, in its
// automatic mode: it first asks in the stateless era (`server/discover`) and falls back to `initialize`.
//
//     node client2.mjs URL [STATUS]
//
// STATUS and the output are those of client.mjs.
import assert from "node:assert/strict";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { callEndedSession, observedFetch, report, step, useTools } from "./steps.mjs";

await report(async () => {
  const url = new URL(process.argv[2]);
  const endedStatus = Number(process.argv[3] ?? 404);

  const errors = [];
  const ids = new Set();
  let probe;
  const transport = new StreamableHTTPClientTransport(url, {
    fetch: observedFetch(({ request, response }) => {
      const id = response.headers.get("mcp-session-id");
      if (id) ids.add(id);
      if (request.get("mcp-method") === "server/discover") probe = { status: response.status, id };
    }),
  });
  const client = new Client(
    { name: "typescript-2.x", version: "1.0.0" },
    { capabilities: { elicitation: {} }, versionNegotiation: { mode: "auto" } },
  );
  client.onerror = (error) => errors.push(error.message);
  client.setRequestHandler("elicitation/create", () => ({ action: "accept", content: { name: "Ada" } }));

  const call = async (name, args = {}, options = {}) => {
    const result = await client.callTool({ name, arguments: args }, options);
    assert.ok(!result.isError, `${name} answered an error: ${JSON.stringify(result.content)}`);
    return result.content.map(({ text }) => text).join("\n");
  };

  await step("connect", () => client.connect(transport));
  assert.ok(probe, "the client did not probe for the stateless era");
  const era = client.getProtocolEra();
  assert.equal(era, "legacy", "the example server knows only the session era");
  const sessionId = transport.sessionId;
  assert.match(sessionId ?? "", /^[\x21-\x7e]+$/, "the server opened no session");

  const { tools, progress } = await useTools(client, call);

  const elicited = await step("answer an elicitation", () => call("trigger-elicitation-request"));
  assert.match(elicited, /Name: Ada/);

  assert.deepEqual([...ids], [sessionId], "not every answer carried the id of this session");
  assert.deepEqual(errors, [], "the client reported errors");

  const protocolVersion = client.getNegotiatedProtocolVersion();
  await step("end the session", () => transport.terminateSession());
  const ended = await step("call the ended session", () => callEndedSession(url, sessionId, protocolVersion));
  assert.equal(ended.status, endedStatus, "status of a call to an ended session");
  if (endedStatus === 404) assert.equal(ended.code, -32001, "JSON-RPC error code of a call to an ended session");
  await step("close", () => client.close());

  return { sdk: "2.x", era, probe, sessionId, protocolVersion, tools, progress, elicited: true, ended };
});
