// The client that the suite tests: the official TypeScript SDK's, which uses all that the server of a scenario offers.
//
//     node client.mjs direct|proxied URL
//
// The suite appends the URL. `proxied`, a proxy of its own is put in front of that, and the client knows only its URL.
import { Client, StreamableHTTPClientTransport, UnauthorizedError } from "@modelcontextprotocol/client";
import { credentials } from "./credentials.mjs";
import { within } from "./programs.mjs";
import { startProxy } from "./proxy.mjs";

const REVISION = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION ?? "2025-11-25";
const CONTEXT = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? "{}");
const OPTIONS = {
  capabilities: { elicitation: { form: { applyDefaults: true } } },
  versionNegotiation: { mode: REVISION < "2026-07-28" ? "legacy" : { pin: REVISION } },
};

try {
  await within(20, "the client's calls", use(...process.argv.slice(2)));
  process.exit(0);
} catch (error) {
  console.error(error);
  process.exit(1); // what a scenario may well expect
}

async function use(way, served) {
  const { url } = way === "proxied" ? await startProxy([served]) : { url: served };
  const authProvider = await credentials(process.env.MCP_CONFORMANCE_SCENARIO, CONTEXT);
  let client, transport;

  // What a user does in a browser: once for what the server asks for, and again where it asks for more.
  const authorized = async (call) => {
    for (let attempt = 0; ; attempt++) {
      try {
        return await call();
      } catch (error) {
        const callback = authProvider.takeCallback?.();
        if (!(error instanceof UnauthorizedError) || !callback || attempt === 2) throw error;
        await transport.finishAuth(callback);
      }
    }
  };

  await authorized(() => {
    transport = new StreamableHTTPClientTransport(new URL(url), { authProvider });
    client = new Client({ name: "conformance", version: "1.0.0" }, OPTIONS);
    client.setRequestHandler("elicitation/create", () => ({ action: "accept", content: {} }));
    return client.connect(transport);
  });
  const { tools } = await authorized(() => client.listTools());
  const calls = CONTEXT.toolCalls ?? tools.map((tool) => ({ name: tool.name, arguments: fitting(tool, tools) }));
  for (const call of calls) await authorized(() => client.callTool(call));

  const offered = client.getServerCapabilities() ?? {};
  if (offered.resources) {
    const { resources } = await client.listResources();
    for (const { uri } of resources) await client.readResource({ uri });
  }
  if (offered.prompts) {
    const { prompts } = await client.listPrompts();
    for (const { name } of prompts) await client.getPrompt({ name });
  }
  await client.close();
}

/** Arguments that a tool takes. One that takes an object is given a schema, to see it come back as it was. */
function fitting({ inputSchema: { properties = {} } }, tools) {
  const values = { string: "text", number: 1, integer: 1, boolean: true, object: tools[0].inputSchema };
  return Object.fromEntries(Object.entries(properties).map(([name, { type }]) => [name, values[type]]));
}
