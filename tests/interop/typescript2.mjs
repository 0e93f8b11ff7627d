// The official TypeScript SDK 2.x, which knows both eras. The stateless one is asked for as by default: by a probe.
//
//     node typescript2.mjs URL ERA
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { answers, era, expect, run, textOf, url } from "./matrix.mjs";

async function connect({ toolsChanged }) {
  const transport = new StreamableHTTPClientTransport(new URL(url));
  const client = new Client(
    { name: "typescript-2.x", version: "1.0.0" },
    {
      capabilities: { elicitation: {}, sampling: {} },
      versionNegotiation: { mode: era === "session" ? "legacy" : "auto" },
    },
  );
  client.setRequestHandler("elicitation/create", answers.elicitation);
  client.setRequestHandler("sampling/createMessage", answers.sampling);
  client.setNotificationHandler("notifications/tools/list_changed", toolsChanged);
  await client.connect(transport);
  expect(era === "session" ? "legacy" : "modern", client.getProtocolEra());
  return {
    list: async () => (await client.listTools()).tools.map(({ name }) => name),
    call: async (name, args, options) => textOf(await client.callTool({ name, arguments: args }, options)),
    listen: async () => {
      if (era === "stateless") await client.listen({ toolsListChanged: true });
    },
    close: async () => {
      await transport.terminateSession();
      await client.close();
    },
  };
}

await run(connect);
process.exit(0);
