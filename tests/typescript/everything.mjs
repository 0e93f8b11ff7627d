// Starts the official example server on a free loopback port.
//
//     node everything.mjs
//
// Prints `listening on http://127.0.0.1:<port>/mcp` on stdout when it accepts connections, and nothing else there;
// the server's own log goes to stderr. Started by itself, the example server would listen on every interface at the
// port in `PORT` and, told port 0, would not say which one it got.
import net from "node:net";

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (_port, ready) {
  this.once("listening", () => {
    process.stdout.write(`listening on http://127.0.0.1:${this.address().port}/mcp\n`);
  });
  return listen.call(this, { host: "127.0.0.1", port: 0 }, ready);
};
console.log = console.error;

await import("@modelcontextprotocol/server-everything/dist/transports/streamableHttp.js");
