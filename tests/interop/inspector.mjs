// The command line of the MCP inspector, which connects, asks once and ends: it lists and calls, and no more.
//
//     node inspector.mjs URL ERA
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { TOOLS, Unsupported, era, expect, fact, need, url } from "./matrix.mjs";

const SCRIPT = new URL("node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js", import.meta.url);
const protocol = era === "session" ? "legacy" : "auto";

async function ask(...question) {
  const target = [SCRIPT.pathname, "--cli", url, "--transport", "http", "--protocol-era", protocol];
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [...target, "--format", "json", ...question]);
    return JSON.parse(stdout).result;
  } catch ({ code, stderr }) {
    const { error } = JSON.parse(stderr);
    const what = error.status ? `HTTP ${error.status}` : error.code;
    throw new Error(`error: ${what}, exit code ${code}`, { cause: stderr });
  }
}

async function echo(text) {
  const { content } = await ask("--method", "tools/call", "--tool-name", "echo", "--tool-arg", `text=${text}`);
  expect(text, content[0].text);
}

const unsupported = async () => {
  throw new Unsupported("client");
};

let tools = [];
await fact("connect", async () => {
  ({ tools } = await ask("--method", "tools/list"));
});
await fact("list", () => expect(TOOLS, tools.map(({ name }) => name).sort().join(" ")));
await fact("call", () => echo("through and back ✓"));
for (const name of ["progress", "elicitation", "sampling", "notification", "resumption", "cancellation", "end", "404"]) {
  await fact(name, unsupported);
}
for (const [name, event] of [["502", "stop"], ["503", "refuse"]]) {
  await need(event);
  await fact(name, () => echo("after"));
  await need("start");
}
process.exit(0);
