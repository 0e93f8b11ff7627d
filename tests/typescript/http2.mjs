// Has a client of this folder speak HTTP/2, and exit with 1 where it could not:
//
//     NODE_OPTIONS=--import=./http2.mjs node client.mjs https://...
import assert from "node:assert/strict";
import { subscribe } from "node:diagnostics_channel";
import { Agent, setGlobalDispatcher } from "undici";

setGlobalDispatcher(new Agent({ allowH2: true }));
subscribe("undici:client:connected", ({ socket }) => assert.equal(socket.alpnProtocol, "h2"));
