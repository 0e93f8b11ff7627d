// What differs between two runs of one scenario, check by check.

/** The checks whose outcomes differ: `{ check, direct, proxied }` each, the outcomes as text. */
export function differences(direct, proxied) {
  const [before, after] = [outcomes(direct), outcomes(proxied)];
  const ids = new Set([...before.keys(), ...after.keys()]);
  return [...ids]
    .map((check) => ({ check, direct: text(before.get(check)), proxied: text(after.get(check)) }))
    .filter(({ direct, proxied }) => direct !== proxied);
}

/** How often each status came up. */
export function count(checks) {
  const counts = { SUCCESS: 0, FAILURE: 0, SKIPPED: 0, WARNING: 0 };
  for (const { status } of checks.filter(isVerdict)) counts[status]++;
  return counts;
}

function outcomes(checks) {
  const byId = Map.groupBy(checks.filter(isVerdict), ({ id }) => id);
  return new Map([...byId].map(([id, checks]) => [id, checks.map(outcome).sort()]));
}

function outcome({ status, errorMessage }) {
  return errorMessage ? `${status} (${withoutAddresses(errorMessage)})` : status;
}

function text(outcomes = []) {
  const times = Map.groupBy(outcomes, (outcome) => outcome);
  return [...times].map(([outcome, { length }]) => (length > 1 ? `${length} x ${outcome}` : outcome)).join(", ") || "none";
}

/** INFO is what the suite notes on its way: each request and answer. */
function isVerdict({ status }) {
  return status !== "INFO";
}

/** No two runs have the same ports. */
function withoutAddresses(message) {
  return message.replaceAll(/(127\.0\.0\.1|localhost):\d+/g, "HOST");
}
