// The official TypeScript SDK 1.x, which knows the session era only; over HTTP, or over stdio through mcp-remote, which
// speaks either era to the server:
//
//     node typescript1.mjs URL ERA [mcp-remote]
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ToolListChangedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { answers, era, run, textOf, url } from "./matrix.mjs";

const isBridged = process.argv[4] === "mcp-remote";
// mcp-remote leaves a request of the stateless era open, which is cancelled by closing it.
const passesCancellationOn = !isBridged || era === "session";

async function connect ({ toolsChanged }) {
  const transport = isBridged ? bridge() : new StreamableHTTPClientTransport(new URL(url));
  const client = new Client(
    { name: "typescript-1.x", version: "1.0.0" },
    { capabilities: { elicitation: {}, sampling: {} } },
  );
  client.setRequestHandler(ElicitRequestSchema, answers.elicitation);
  client.setRequestHandler(CreateMessageRequestSchema, answers.sampling);
  client.setNotificationHandler(ToolListChangedNotificationSchema, toolsChanged);
  await client.connect(transport);
  return {
    list: async () => (await client.listTools()).tools.map(({ name }) => name),
    call: async (name, args, options) => textOf(await client.callTool({ name, arguments: args }, undefined, options)),
    listen: () => {},
    close: async () => {
      if (!isBridged) await transport.terminateSession();
      await client.close();
    },
  };
}

function bridge() {
  const script = new URL("node_modules/mcp-remote/dist/proxy.js", import.meta.url).pathname;
  const protocol = era === "session" ? "legacy" : "auto";
  const args = [script, url, "--transport", "http-only", "--protocol", protocol, "--silent"];
  return new StdioClientTransport({ command: process.execPath, args, env: process.env });
}

await run(connect, { passesCancellationOn });
process.exit(0);
