// What was measured, as the tables of docs/conformance.md.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { count } from "./compare.mjs";
import { EXPLAINED } from "./explained.mjs";
import { ROOT } from "./programs.mjs";

const DOCUMENT = join(ROOT, "docs/conformance.md");
const MEASURED = /(?<=<!-- measured -->\n).*(?=<!-- end of measured -->)/s;

/** The tables, of runs of servers and of clients in their order. */
export function tables(servers, clients) {
  return [
    "\nServers, each check as passed / failed / skipped / warned about:\n",
    table(
      ["server", "suite", "revision", "scenarios", "direct", "one backend", "three backends"],
      servers.map((run) => [...names(run), ...cells(run, ["direct", "one", "three"])]),
    ),
    "\nClient, the same:\n",
    table(
      ["suite", "revision", "scenarios", "direct", "through the proxy"],
      clients.map((run) => [...names(run).slice(1), ...cells(run, ["direct", "proxied"])]),
    ),
    "\nDifferences, all of them:\n",
    table(
      ["of", "scenario", "checks", "why"],
      EXPLAINED.map(({ subject, scenarios, checks = ["all"], reason }) => {
        return [subject, scenarios.map(code).join(", "), checks.map((c) => (c === "all" ? c : code(c))).join(", "), reason];
      }),
    ),
    "",
  ].join("\n");
}

export function isKept(tables) {
  return MEASURED.exec(readFileSync(DOCUMENT, "utf8"))?.[0] === tables;
}

export function keep(tables) {
  writeFileSync(DOCUMENT, readFileSync(DOCUMENT, "utf8").replace(MEASURED, () => tables));
}

function names({ subject, suite, revision, direct }) {
  return [subject, suite.version, revision, direct.size];
}

function cells(run, ways) {
  return ways.map((way) => Object.values(count([...run[way].values()].flat())).join(" / "));
}

function table(head, rows) {
  return [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

function code(text) {
  return `\`${text}\``;
}
