// The built proxy, as it is shipped, in front of servers of one endpoint.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BUILT, Program } from "./programs.mjs";

/** Starts a proxy on a free loopback port; clients know its endpoint by the `url` that it gives. */
export async function startProxy(backends) {
  // Between the look for a free port and the proxy's own bind, anybody may take it; then another is tried.
  for (let attempt = 0; attempt < 5; attempt++) {
    const port = await freePort();
    const url = `http://127.0.0.1:${port}${new URL(backends[0]).pathname}`;
    const folder = mkdtempSync(join(tmpdir(), "pingora-mcp-"));
    const file = join(folder, "edge.yaml");
    writeFileSync(file, configuration(port, url, backends));
    const program = new Program(join(BUILT, "pingora-mcp"), ["-c", file]);
    const isReady = await listens(program);
    rmSync(folder, { recursive: true });
    if (isReady) return { url, end: () => program.end() };
    if (!program.output.includes("cannot listen on")) throw new Error(`it did not start: ${program.output}`);
  }
  throw new Error("each port was taken before the proxy could bind it");
}

// JSON is YAML.
function configuration(port, url, backends) {
  const named = backends.map((url, index) => ({ name: `backend-${index}`, url }));
  const routes = [{ path: new URL(url).pathname, backends: named, public_url: url }];
  return JSON.stringify({ version: 1, mcp: { listeners: [{ address: `127.0.0.1:${port}` }], routes } });
}

async function freePort() {
  const server = net.createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Waits until `program` says that it accepts connections; says no if it ends before that. */
async function listens(program) {
  const deadline = Date.now() + 30_000;
  let isRunning = true;
  program.ended.then(() => (isRunning = false));
  while (isRunning) {
    if (program.output.includes("listening on")) return true;
    if (Date.now() > deadline) throw new Error(`the proxy is not ready within 30 s: ${program.output}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return false;
}
