// The official TypeScript SDK 1.x as a client of the official example server, directly or through a proxy.
//
//     node client.mjs URL [STATUS]
//
// STATUS is the answer expected to a call of an ended session: 404, as MCP asks for and as the proxy answers, unless
// given. The example server itself answers 400. Prints one line of JSON with what it saw and exits with 0, or says
// what failed on stderr and exits with 1.
import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  ResourceUpdatedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { callEndedSession, observedFetch, report, signal, step, useTools } from "./steps.mjs";

const RESOURCE = "demo://resource/dynamic/text/1";
const ROOT = { uri: "file:///srv/project", name: "project" };

await report(async () => {
  const url = new URL(process.argv[2]);
  const endedStatus = Number(process.argv[3] ?? 404);

  const errors = [];
  const ids = new Set();
  const getStream = signal();
  const transport = new StreamableHTTPClientTransport(url, {
    fetch: observedFetch(({ method, response }) => {
      const id = response.headers.get("mcp-session-id");
      if (id) ids.add(id);
      if (method === "GET") getStream.arrive(response);
    }),
  });
  const client = new Client(
    { name: "typescript-1.x", version: "1.0.0" },
    { capabilities: { sampling: {}, elicitation: {}, roots: { listChanged: true } } },
  );
  client.onerror = (error) => errors.push(error.message);

  const updated = signal();
  client.setRequestHandler(ElicitRequestSchema, () => ({ action: "accept", content: { name: "Ada" } }));
  client.setRequestHandler(ListRootsRequestSchema, () => ({ roots: [ROOT] }));
  client.setRequestHandler(CreateMessageRequestSchema, () => ({
    model: "stand-in",
    role: "assistant",
    content: { type: "text", text: "sampled by the client" },
  }));
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => updated.arrive(params.uri));

  const call = async (name, args = {}, options = {}) => {
    const result = await client.callTool({ name, arguments: args }, undefined, options);
    assert.ok(!result.isError, `${name} answered an error: ${JSON.stringify(result.content)}`);
    return result.content.map(({ text }) => text).join("\n");
  };

  await step("connect", () => client.connect(transport));
  const sessionId = transport.sessionId;
  assert.match(sessionId ?? "", /^[\x21-\x7e]+$/, "the server opened no session");

  const stream = await step("open the GET stream", () => getStream.arrived);
  assert.equal(stream.status, 200);
  assert.match(stream.headers.get("content-type"), /^text\/event-stream/);

  const { tools, progress } = await useTools(client, call);

  await step("read a resource", async () => {
    const { contents } = await client.readResource({ uri: RESOURCE });
    assert.equal(contents[0].uri, RESOURCE);
    assert.ok(contents[0].text.length > 0, "the resource is empty");
  });

  const prompt = await step("get a prompt", async () => {
    const { messages } = await client.getPrompt({ name: "args-prompt", arguments: { city: "Lisbon" } });
    return messages[0].content.text;
  });
  assert.equal(prompt, "What's weather in Lisbon?");

  // The server asks on the stream of the call's own POST, and goes on only when the answer reaches it by another POST.
  const elicited = await step("answer an elicitation", () => call("trigger-elicitation-request"));
  assert.match(elicited, /"action": "accept"/);
  assert.match(elicited, /Name: Ada/);
  const sampled = await step("answer a sampling request", () => call("trigger-sampling-request", { prompt: "hello" }));
  assert.match(sampled, /sampled by the client/);

  // The server asks for roots, and notifies subscribers, on the GET stream.
  const roots = await step("answer a request for roots", () => call("get-roots-list"));
  assert.match(roots, /file:\/\/\/srv\/project/);
  await step("subscribe to a resource", () => client.subscribeResource({ uri: RESOURCE }));
  await step("toggle subscriber updates", () => call("toggle-subscriber-updates"));
  const updatedResource = await step("receive a notification on the GET stream", () => updated.arrived);
  assert.equal(updatedResource, RESOURCE);

  assert.deepEqual([...ids], [sessionId], "not every answer carried the id of this session");
  assert.deepEqual(errors, [], "the client reported errors");

  const protocolVersion = transport.protocolVersion;
  await step("end the session", () => transport.terminateSession());
  const ended = await step("call the ended session", () => callEndedSession(url, sessionId, protocolVersion));
  assert.equal(ended.status, endedStatus, "status of a call to an ended session");
  if (endedStatus === 404) assert.equal(ended.code, -32001, "JSON-RPC error code of a call to an ended session");
  await step("close", () => client.close());

  return {
    sdk: "1.x",
    sessionId,
    protocolVersion,
    tools,
    progress,
    elicited: true,
    sampled: true,
    roots: true,
    updatedResource,
    ended,
  };
});
