//! The rules that tests must notice to be broken, each by its name and in words.

use clap::ValueEnum;

/// What is broken. The only list of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mutation {
    /// nothing: the embedder alone passes all tests
    Nothing,

    // What a backend is sent.
    /// `Last-Event-ID` is dropped
    LastEventIdDropped,
    /// `Mcp-Method` is dropped
    MethodDropped,
    /// `Mcp-Name` is dropped
    NameDropped,
    /// `Mcp-Name` is decoded on its way
    NameDecoded,
    /// `Mcp-Param-*` is dropped
    ParametersDropped,
    /// `MCP-Protocol-Version` is dropped
    VersionDropped,
    /// a `MCP-Protocol-Version` is made up where there is none
    VersionInvented,
    /// `MCP-Protocol-Version` is raised to the newest
    VersionChanged,
    /// `Accept` is dropped
    AcceptDropped,
    /// `Authorization` is dropped
    AuthorizationDropped,
    /// `Origin` is dropped
    OriginDropped,
    /// a header that nobody knows is dropped
    UnknownHeaderDropped,
    /// the client's headers win over the configured ones
    ConfiguredHeadersLose,
    /// `X-Forwarded-For` is what the client claims
    ForwardedBelieved,
    /// the backend gets the client's `Host`
    HostKept,
    /// a name that a CGI backend reads as `Mcp-Session-Id` passes
    LookalikePasses,
    /// the body is held back until it is whole
    UploadHeldBack,

    // Sessions.
    /// no id is swapped, either way
    NothingSwapped,
    /// the client sees the backend's id
    BackendIdShown,
    /// the backend gets the client's id
    ClientIdSent,
    /// the client gets a new id with each answer
    IdChanges,
    /// answers of a session lack its id
    IdForgotten,
    /// a request of a session goes to another backend
    OtherBackend,
    /// a session lives on after DELETE
    EndedSessionKept,
    /// a session lives on after its backend's 404
    LostSessionKept,
    /// a 405 to DELETE ends the session
    RefusedDeleteEnds,
    /// an id on an answer of 4xx or 5xx opens a session
    ErrorOpensSession,
    /// an id on an answer of 4xx or 5xx passes
    ThrowawayIdPasses,
    /// an id on an interim answer passes
    InterimIdPasses,
    /// an id is minted for the stateless era
    StatelessIdMinted,
    /// a stray id of the stateless era goes to the backend
    StrayIdSent,
    /// an id that the backend gives in the stateless era passes
    StrayIdPasses,
    /// GET without an id joins the session that was used last
    OtherSessionJoined,
    /// of two ids, the first counts
    SecondIdIgnored,
    /// of two versions, the first counts
    SecondVersionIgnored,
    /// the 404 of an unknown session is not the one that clients start over on
    UnknownSessionUnsaid,
    /// a failure of the store is told as 404
    OutageToldAsNotFound,
    /// DELETE without an id goes to a backend
    UnnamedDeleteSent,

    // Answers.
    /// a backend's 404 becomes 502
    NotFoundBecomesBadGateway,
    /// the body of a backend's 400 is replaced
    ErrorBodyReplaced,
    /// a 202 gets a body
    AcceptedGetsBody,
    /// `WWW-Authenticate` is dropped
    ChallengeDropped,
    /// a challenge names the backend's metadata
    ChallengeUnpublished,
    /// a protected resource's document names the backend
    DocumentUnpublished,
    /// a backend's `Server` is shown
    ServerShown,
    /// a failed request is not answered
    FailureUnanswered,
    /// only one backend is tried
    NoOtherBackendTried,
    /// a refusal closes the client's connection
    RefusalCloses,
    /// a silent backend is waited for on DELETE
    DeleteWaits,

    // Streams.
    /// each piece is held back until the next arrives
    EventsHeldBack,
    /// two pieces arrive as one
    EventsMerged,
    /// each piece arrives a minute late
    EventsDelayed,
    /// keep-alive comments are dropped
    CommentsDropped,
    /// `retry:` is dropped
    RetryDropped,
    /// `Content-Length` stays on a stream
    LengthKept,
    /// `X-Accel-Buffering` is not said
    BufferingAllowed,
    /// a silent GET stream is cut
    IdleStreamCut,
    /// a silent subscription is cut
    IdleSubscriptionCut,
    /// a client's leaving is not passed on
    LeavingIgnored,
    /// a client's leaving is not passed on in the stateless era, where it cancels
    CancellationIgnored,

    // Who may come in, and what browsers are told.
    /// `Origin` is not checked
    OriginUnchecked,
    /// `Host` is not checked
    HostUnchecked,
    /// refusals lack CORS headers
    RefusalsWithoutCors,
    /// a backend's CORS headers are added to
    BackendCorsKept,
    /// a preflight goes to a backend
    PreflightSent,
    /// a preflight does not allow `Mcp-Method`
    PreflightWithoutMethod,
    /// a preflight does not allow `Mcp-Name`
    PreflightWithoutName,
    /// a preflight does not allow `Mcp-Param-*`
    PreflightWithoutParameters,
    /// another method goes to a backend
    OtherMethodSent,
    /// GET that does not accept a stream goes to a backend
    UnacceptedStreamSent,
}

impl Mutation {
    /// The one that the environment asks for.
    pub fn from_environment() -> Option<Self> {
        let name = std::env::var(VARIABLE).ok()?;
        let known = Self::from_str(&name, false);
        Some(known.unwrap_or_else(|_| panic!("{VARIABLE}={name}: there is none of this name")))
    }
}

/// The environment variable that names a mutation.
pub const VARIABLE: &str = "PINGORA_MCP_MUTATION";
