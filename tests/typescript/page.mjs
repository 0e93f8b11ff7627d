// A web page that uses an MCP server on another origin, by the official TypeScript SDK 2.x.
//
//     page.html?url=URL&era=legacy|auto
//
// Reports what it saw, as JSON, to `/report` at its own origin: its facts, or its error.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const query = new URLSearchParams(location.search);

async function use(url, mode) {
  const logged = Promise.withResolvers();
  const progress = [];
  const transport = new StreamableHTTPClientTransport(new URL(url));
  const client = new Client({ name: "page", version: "1.0.0" }, { versionNegotiation: { mode } });
  client.setNotificationHandler("notifications/message", ({ params }) => logged.resolve(params.data));

  await client.connect(transport);
  const era = client.getProtocolEra();
  const counted = await client.callTool(
    { name: "count", arguments: { steps: 3, interval_ms: 50 } },
    { onprogress: (step) => progress.push(step.progress) },
  );
  const facts = { era, counted: counted.content[0].text, progress };
  if (era === "legacy") {
    facts.sessionId = transport.sessionId;
    await client.callTool({ name: "announce", arguments: { message: "dinner" } });
    facts.announced = await logged.promise;
    await transport.terminateSession();
  }
  await client.close();
  return facts;
}

const facts = await use(query.get("url"), query.get("era")).catch((error) => ({ error: error.message }));
await fetch("/report", { method: "POST", body: JSON.stringify(facts) });
