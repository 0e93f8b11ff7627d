// The differences that must be, and why. Any other fails the run, and so does one of these that is no more.

/** `checks` of `scenarios` may differ for a `subject`, a server or the client; all checks where none are named. */
export const EXPLAINED = [
  {
    subject: "server-everything",
    scenarios: ["dns-rebinding-protection"],
    checks: ["localhost-host-rebinding-rejected"],
    reason: "The server lets any `Host` and `Origin` in. The proxy does not, and passes.",
  },
  {
    subject: "server-everything",
    scenarios: ["server-session-lifecycle"],
    checks: ["server-session-terminated-returns-404"],
    reason: "The server answers 400 to the id of an ended session. The proxy knows that it ended, says 404, and passes.",
  },
  {
    subject: "client",
    scenarios: [
      "auth/metadata-default",
      "auth/metadata-var1",
      "auth/metadata-var2",
      "auth/metadata-var3",
      "auth/token-endpoint-auth-basic",
      "auth/token-endpoint-auth-none",
      "auth/token-endpoint-auth-post",
    ],
    checks: ["resource-parameter-matches-prm"],
    reason:
      "The suite compares the resource that the client asks a token for with its own URL. A client of the proxy must " +
      "name the proxy's (RFC 8707 2), which it finds in the metadata there.",
  },
  {
    subject: "client",
    scenarios: ["auth/resource-mismatch"],
    reason: "The server's metadata names a wrong resource. With `public_url` the proxy puts its own URL there.",
  },
  {
    subject: "client",
    scenarios: ["auth/2025-03-26-oauth-metadata-backcompat"],
    reason:
      "The server is its own authorization server. Its metadata comes through the proxy and names the server as issuer; " +
      "the client asked the proxy for it, and must refuse it (RFC 8414 3.3).",
  },
  {
    subject: "client",
    scenarios: ["auth/2025-03-26-oauth-endpoint-fallback"],
    reason:
      "The server is its own authorization server and has no metadata, so that the client guesses `/register`, " +
      "`/authorize` and `/token`. The proxy has the MCP endpoint and OAuth's discovery, and no others.",
  },
  {
    subject: "client",
    scenarios: ["auth/dpop", "auth/dpop-nonce"],
    checks: ["sep-1932-client-fresh-proof", "sep-1932-client-rs-nonce"],
    reason:
      "A proof names the URL that the client calls (RFC 9449 4.2), which is the proxy's. The suite compares it with " +
      "its own; a server behind a proxy must know its public one.",
  },
];
