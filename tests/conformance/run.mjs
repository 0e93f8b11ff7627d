// The official conformance suite against servers and a client, directly and through the built proxy: no check may differ.
//
//     node run.mjs [--write]
//
// Prints the tables of docs/conformance.md, which must be what is there; `--write` puts them there. Exits with 1, and
// says why, where a check differs that explained.mjs does not explain.
import { differences } from "./compare.mjs";
import { EXPLAINED } from "./explained.mjs";
import { startProxy } from "./proxy.mjs";
import { isKept, keep, tables } from "./report.mjs";
import { SERVERS } from "./servers.mjs";
import { Suite } from "./suite.mjs";

const SUITES = [new Suite("suite-0.1"), new Suite("suite-0.2")];
const REVISIONS = ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "extension"];
/** Of the scenarios of extensions, those of which client.mjs knows the extension. */
const EXTENSIONS = ["auth/client-credentials-basic", "auth/client-credentials-jwt", "auth/dpop", "auth/dpop-nonce"];
/** How many runs there are at a time. */
const LANES = 2;

const servers = await plan("server", [...SERVERS.keys()], ({ revision }) => revision !== "extension");
const clients = await plan("client", ["client"], ({ revision, scenario }) => {
  return revision !== "extension" || EXTENSIONS.includes(scenario);
});
await inLanes([...serverJobs(), ...clientJobs()]);

const problems = judge();
const measured = tables(servers, clients);
console.log(measured);
if (problems.length === 0 && process.argv.includes("--write")) keep(measured);
if (!isKept(measured)) {
  problems.push("docs/conformance.md has other tables: `make conformance WRITE=1` puts these there, if they are as meant");
}
for (const problem of problems) console.error(`conformance: ${problem}`);
process.exit(problems.length > 0 ? 1 : 0);

/** The runs of a side: `{ subject, suite, revision, scenarios }` each, to which the checks are added by the ways. */
async function plan(side, subjects, isRun) {
  const runs = [];
  for (const suite of SUITES) {
    const all = await suite.scenarios(side);
    for (const revision of REVISIONS) {
      const known = all.filter(({ revisions }) => revisions.includes(revision)).map(({ scenario }) => scenario);
      const scenarios = known.filter((scenario) => isRun({ revision, scenario }));
      if (scenarios.length > 0) runs.push({ suite, revision, scenarios });
    }
  }
  return subjects.flatMap((subject) => runs.map((run) => ({ subject, ...run })));
}

/** One job for each server and way: the same processes serve all runs of it. */
function serverJobs() {
  const ways = { direct: 1, one: 1, three: 3 };
  return [...SERVERS].flatMap(([subject, start]) =>
    Object.entries(ways).map(([way, count]) => async () => {
      const group = await start(count);
      const proxy = way === "direct" ? undefined : await startProxy(group.urls);
      for (const run of servers.filter((run) => run.subject === subject)) {
        const { suite, revision, scenarios } = run;
        const url = proxy?.url ?? group.urls[0];
        run[way] = await suite.testServer(url, revision, `${subject}/${revision}/${way}`);
        const missing = scenarios.filter((scenario) => !run[way].has(scenario));
        if (missing.length > 0) throw new Error(`${suite.version} wrote no checks of ${missing}`);
      }
      await proxy?.end();
      await group.end();
      console.log(`${subject}, ${way}: done`);
    }),
  );
}

/** One job for each scenario. */
function clientJobs() {
  return clients.flatMap((run) => {
    const { suite, revision, scenarios } = run;
    [run.direct, run.proxied] = [new Map(), new Map()];
    return scenarios.map((scenario) => async () => {
      for (const way of ["direct", "proxied"]) {
        const folder = `client/${revision}/${scenario}/${way}`;
        const asked = revision === "extension" ? undefined : revision;
        run[way].set(scenario, await suite.testClient(`node client.mjs ${way}`, scenario, asked, folder));
      }
      if (run.proxied.size === scenarios.length) console.log(`client, ${suite.version}, ${revision}: done`);
    });
  });
}

async function inLanes(jobs) {
  const lane = async () => {
    for (let job = jobs.shift(); job; job = jobs.shift()) await job();
  };
  await Promise.all(Array.from({ length: LANES }, lane));
}

/** What differs without an explanation, and what is explained and does not differ. */
function judge() {
  const unused = new Set(EXPLAINED);
  const unexplained = [];
  for (const run of [...servers, ...clients]) {
    for (const way of ["one", "three", "proxied"].filter((way) => run[way])) {
      for (const scenario of run.scenarios) {
        for (const { check, direct, proxied } of differences(run.direct.get(scenario), run[way].get(scenario))) {
          const found = EXPLAINED.filter(({ subject, scenarios, checks }) => {
            return subject === run.subject && scenarios.includes(scenario) && (checks?.includes(check) ?? true);
          });
          for (const explanation of found) unused.delete(explanation);
          if (found.length > 0) continue;
          const where = `${run.subject}, ${run.suite.version}, ${run.revision}, ${way}: ${scenario}, ${check}`;
          unexplained.push(`${where}: direct ${direct}; through the proxy ${proxied}`);
        }
      }
    }
  }
  const stale = [...unused].map(({ scenarios }) => `explained.mjs explains what does not differ: ${scenarios}`);
  return [...unexplained, ...stale];
}
