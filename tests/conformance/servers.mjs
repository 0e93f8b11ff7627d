// The servers that the suite tests, several processes of one at a time.
import net from "node:net";
import { join } from "node:path";
import { BUILT, Program } from "./programs.mjs";

/** What to call a server, and how `count` processes of it are started: gives their `urls`, and `end()`. */
export const SERVERS = new Map([
  ["demo server", startDemoServers],
  ["server-everything", startExampleServers],
]);

async function startDemoServers(count) {
  const broker = await startBroker();
  const servers = Array.from({ length: count }, (_, index) => {
    return new Program(join(BUILT, "examples/demo_server"), ["127.0.0.1:0", `demo-${index}`, broker.address]);
  });
  const { urls, end } = await allListen(servers);
  const endAll = async () => {
    await end();
    broker.close();
  };
  return { urls: urls.map((url) => String(new URL("/conformance", url))), end: endAll };
}

function startExampleServers(count) {
  const script = join(import.meta.dirname, "../typescript/everything.mjs");
  return allListen(Array.from({ length: count }, () => new Program(process.execPath, [script])));
}

async function allListen(servers) {
  const matches = await Promise.all(servers.map((server) => server.says(/^listening on (http\S+)\n/m)));
  return {
    urls: matches.map(([, url]) => url),
    end: () => Promise.all(servers.map((server) => server.end())),
  };
}

// What the demo servers tell each other of changes by, as servers of one service do by a message broker: a listener at
// one of them hears what was changed at another, which is asked of a service and not of its processes.
async function startBroker() {
  const sockets = new Set();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("data", (bytes) => sockets.forEach((other) => other.write(bytes)));
    socket.on("error", () => socket.destroy()); // one was ended
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { address: `127.0.0.1:${server.address().port}`, close: () => server.close() };
}
