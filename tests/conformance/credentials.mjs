// How the client comes by a token, in each way that a scenario of the suite asks for.
import { ClientCredentialsProvider, DpopSession, PrivateKeyJwtProvider } from "@modelcontextprotocol/client";

/** A provider for a scenario; its context says what is agreed on beforehand. */
export async function credentials(scenario, { client_id, client_secret, private_key_pem, signing_algorithm }) {
  switch (scenario) {
    case "auth/client-credentials-basic":
      return new ClientCredentialsProvider({ clientId: client_id, clientSecret: client_secret });
    case "auth/client-credentials-jwt":
      return new PrivateKeyJwtProvider({
        clientId: client_id,
        privateKey: private_key_pem,
        algorithm: signing_algorithm ?? "ES256",
      });
    case "auth/dpop":
    case "auth/dpop-nonce": {
      const session = await DpopSession.create();
      return Object.assign(new UserCredentials(), { dpop: () => session });
    }
    default:
      return new UserCredentials(client_id && { client_id, client_secret });
  }
}

/** A user who lets the client in whenever a server asks; its browser follows one redirect. */
class UserCredentials {
  #client;
  #tokens;
  #verifier;
  #callback;

  clientMetadataUrl = "https://conformance-test.local/client-metadata.json"; // as the suite has it
  redirectUrl = "http://localhost:3000/callback";
  clientMetadata = { client_name: "conformance", redirect_uris: [this.redirectUrl] };

  constructor(client) {
    this.#client = client;
  }

  clientInformation() {
    return this.#client;
  }

  saveClientInformation(client) {
    this.#client = client;
  }

  tokens() {
    return this.#tokens;
  }

  saveTokens(tokens) {
    this.#tokens = tokens;
  }

  codeVerifier() {
    return this.#verifier;
  }

  saveCodeVerifier(verifier) {
    this.#verifier = verifier;
  }

  async redirectToAuthorization(url) {
    const response = await fetch(url, { redirect: "manual" });
    this.#callback = new URL(response.headers.get("location")).searchParams;
  }

  /** The parameters that the browser came back with, once. */
  takeCallback() {
    const callback = this.#callback;
    this.#callback = undefined;
    return callback;
  }
}
