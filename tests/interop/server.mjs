// A server on the official TypeScript SDK 2.x, with the tools of the matrix: sessions for the revisions up to
// 2025-11-25, and none for 2026-07-28.
//
//     node server.mjs ADDRESS
//
// Port 0 takes a free one. Prints `listening on http://127.0.0.1:<port>/mcp` when it accepts connections.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { localhostHostValidation, toNodeHandler } from "@modelcontextprotocol/node";
import {
  McpServer,
  WebStandardStreamableHTTPServerTransport,
  acceptedContent,
  createMcpHandler,
  fromJsonSchema,
  inputRequired,
  inputResponse,
  isLegacyRequest,
} from "@modelcontextprotocol/server";

/** What became of each call of `hold`: "held", "opened" or "cancelled", and how to open it. */
const gates = new Map();

function matrixServer() {
  const server = new McpServer(
    { name: "typescript", version: "1.0.0" },
    { capabilities: { tools: { listChanged: true } } },
  );
  const tool = (name, parameters, run) => {
    const properties = Object.fromEntries(parameters.map((parameter) => [parameter, { type: "string" }]));
    const inputSchema = fromJsonSchema({ type: "object", properties, required: parameters });
    server.registerTool(name, { inputSchema }, run);
  };

  tool("echo", ["text"], ({ text: said }) => text(said));

  tool("hold", ["gate"], async ({ gate }, context) => {
    const { _meta, notify, signal } = context.mcpReq;
    const ended = new Promise((end) => {
      gates.set(gate, { fate: "held", open: () => end("opened") });
      signal.addEventListener("abort", () => end("cancelled"));
    });
    for (const progress of [1, 2, 3]) {
      const params = { progressToken: _meta?.progressToken, progress };
      if (_meta?.progressToken !== undefined) await notify({ method: "notifications/progress", params });
    }
    gates.get(gate).fate = await ended;
    return text(gates.get(gate).fate);
  });
  tool("open", ["gate"], ({ gate }) => {
    gates.get(gate)?.open();
    return text(gates.has(gate) ? "opened" : "unknown");
  });
  tool("fate", ["gate"], ({ gate }) => text(gates.get(gate)?.fate ?? "unknown"));

  tool("ask", [], (_, { mcpReq }) => {
    const answer = acceptedContent(mcpReq.inputResponses, "name");
    if (answer) return text(`Hello, ${answer.name}!`);
    const requestedSchema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
    return inputRequired({
      inputRequests: { name: inputRequired.elicit({ message: "What is your name?", requestedSchema }) },
    });
  });
  tool("sample", [], (_, { mcpReq }) => {
    const answer = inputResponse(mcpReq.inputResponses, "answer");
    if (answer.kind === "sampling") return text(`The model says ${answer.result.content.text}.`);
    const messages = [{ role: "user", content: { type: "text", text: "Say something." } }];
    return inputRequired({ inputRequests: { answer: inputRequired.createMessage({ messages, maxTokens: 10 }) } });
  });

  tool("announce", [], async (_, { sessionId }) => {
    if (sessionId) await server.server.sendToolListChanged();
    else stateless.notify.toolsChanged();
    return text("announced");
  });
  tool("hang_up", [], (_, { http }) => {
    http.closeSSE?.();
    return text("answered on a resumed stream");
  });
  tool("session", [], (_, { sessionId }) => text(sessionId ?? ""));
  return server;
}

const text = (text) => ({ content: [{ type: "text", text }] });

/** Keeps every event for ever: what a client asks for comes within the same second. */
class Events {
  #events = [];

  async storeEvent(streamId, message) {
    return String(this.#events.push({ streamId, message }) - 1);
  }

  async getStreamIdForEventId(id) {
    return this.#events[Number(id)]?.streamId;
  }

  async replayEventsAfter(lastId, { send }) {
    const { streamId } = this.#events[Number(lastId)];
    for (const [id, event] of this.#events.entries()) {
      const isMissed = id > Number(lastId) && event.streamId === streamId && event.message.jsonrpc;
      if (isMissed) await send(String(id), event.message);
    }
    return streamId;
  }
}

const stateless = createMcpHandler(matrixServer, { legacy: "reject" });
const sessions = new Map();

async function inSession(request) {
  const id = request.headers.get("mcp-session-id");
  if (id) {
    const transport = sessions.get(id);
    if (transport) return transport.handleRequest(request);
    const error = { code: -32001, message: "Session not found" };
    return Response.json({ jsonrpc: "2.0", id: null, error }, { status: 404 });
  }
  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => sessions.set(id, transport),
    onsessionclosed: (id) => sessions.delete(id),
    eventStore: new Events(),
    retryInterval: 10,
  });
  await matrixServer().connect(transport);
  return transport.handleRequest(request);
}

const handler = toNodeHandler({
  fetch: async (request) => ((await isLegacyRequest(request)) ? inSession(request) : stateless.fetch(request)),
});
const isLocal = localhostHostValidation();
const server = createServer((request, response) => isLocal(request, response) && handler(request, response));
const [host, port] = process.argv[2].split(":");
server.listen(Number(port), host, () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}/mcp`);
});
