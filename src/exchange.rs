//! The facts of one request. Each is written by one phase and only read by later ones.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::HeaderValue;
use pingora_core::upstreams::peer::HttpPeer;

use crate::backend::{Backend, BackendName, Lease, Upload};
use crate::compatibility::HeldAnswer;
use crate::cors::OriginGrant;
use crate::discovery::PublicUrl;
use crate::host::Reach;
use crate::limits::Held;
use crate::mcp::{Call, ClientSessionId, Era};
use crate::message::RequestId;
use crate::metrics::{CountedStream, LookupOutcome};
use crate::policy::Policy;
use crate::rejection::Rejection;
use crate::route::Route;
use crate::rules::Rules;
use crate::session::{Binding, ClientNetwork};
use crate::streams::OpenStream;

/// What is known of one request, from its header's arrival to its log line. Begin each request
/// with a new one.
#[derive(Debug, Default)]
pub struct Exchange {
    // Written when the request's header has come, where somebody observes.
    pub(crate) arrived: Option<Instant>,
    // Written by `begin`, or else by `admit`.
    pub(crate) rules: Option<Arc<Rules>>,
    // Written by `admit`.
    pub(crate) connection: Connection,
    pub(crate) origin: OriginGrant,
    pub(crate) route: Option<Arc<Route>>,
    /// Whether its path is the route's own, and not one below.
    pub(crate) is_at_endpoint: bool,
    pub(crate) call: Call,
    pub(crate) era: Option<Era>,
    pub(crate) lookup: Option<(LookupOutcome, Duration)>,
    /// The id that the client gave, whether it is known or not.
    pub(crate) client_id: Option<ClientSessionId>,
    pub(crate) session: Option<BoundSession>,
    /// The client's own, where it is kept for its session's end.
    pub(crate) authorization: Option<HeaderValue>,
    /// The client's id as it stands on the wire, seal included. Written by `from_backend` where that
    /// opens the session.
    pub(crate) session_header: Option<HeaderValue>,
    /// How long a 405 to this request is remembered, where it is.
    pub(crate) get_405_memory: Option<Duration>,
    pub(crate) stream: Option<OpenStream>,
    // Written by `read_ahead`, where there is more.
    pub(crate) upload: Option<Upload>,
    // Written by `judge`.
    pub(crate) request_id: Option<RequestId>,
    pub(crate) is_judged: bool,
    // Written by `route`: its place among the requests at all backends.
    pub(crate) place: Option<Held>,
    // Written by `admit` for a bound request, by `route` for any other.
    pub(crate) backend: Option<Lease>,
    // Begun by `route`, counted by `body_from_client`.
    pub(crate) body_length: u64,
    // Written when there is a backend, where somebody observes.
    pub(crate) counted_stream: Option<CountedStream>,
    // Written by `another_backend`.
    pub(crate) unreachable: Vec<BackendName>,
    // Written by `from_backend`; by `admit`, `judge`, `held_answer` and `session_lost` where they find
    // the session lost, and by `client_left`.
    pub(crate) outcome: SessionOutcome,
    pub(crate) is_stream: bool,
    // Written when the backend's answer goes to the client, where somebody observes.
    pub(crate) first_byte: Option<Duration>,
    // Begun by `from_backend`, filled by `body_from_backend`: the document that is rewritten.
    pub(crate) document: Option<BytesMut>,
    // The same: the answer that is held back.
    pub(crate) held: Option<HeldAnswer>,
    // Written by the phase that refuses.
    pub(crate) rejection: Option<Rejection>,
}

/// How the client is connected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    /// The client's address. `None` on a Unix socket.
    pub client: Option<IpAddr>,
    /// How the client reached this machine.
    pub reach: Reach,
    /// Whether the client speaks TLS.
    pub tls: bool,
}

impl Connection {
    /// Whose sessions those of the client are counted with.
    pub(crate) fn network(&self) -> Option<ClientNetwork> {
        self.client.map(ClientNetwork::from)
    }
}

/// The session that a request belongs to.
#[derive(Clone, Debug)]
pub(crate) struct BoundSession {
    pub(crate) id: ClientSessionId,
    pub(crate) binding: Binding,
}

/// What a backend's answer did to a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionOutcome {
    /// There is no session, or no answer yet.
    #[default]
    None,
    /// The answer opened one.
    Opened(ClientSessionId),
    /// The request's session goes on.
    Kept,
    /// The client ended it.
    Ended,
    /// The backend knows it no more.
    Lost,
}

impl Exchange {
    /// What the client asked for.
    pub fn call(&self) -> Call {
        self.call
    }

    /// The era that the request follows. `None` where it follows none: a preflight, OAuth discovery,
    /// and what was refused before.
    pub fn era(&self) -> Option<Era> {
        self.era
    }

    /// The id of the JSON-RPC request, where the route has a policy.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }

    /// The backend that the request is at.
    pub fn backend(&self) -> Option<&Backend> {
        self.backend.as_deref()
    }

    /// Where Pingora is to connect for it, once a backend was chosen. The connection of a stream, and of
    /// what [`read_ahead`](crate::proxy::read_ahead) has left unread, can be ended from here. For a request that [`to_backend`](crate::Gateway::to_backend) has made: it is what
    /// removes hop-by-hop headers, and not Pingora.
    ///
    /// # Errors
    /// None was chosen.
    pub fn peer(&self) -> Result<HttpPeer, Rejection> {
        let backend = self.backend.as_ref().ok_or(Rejection::Internal)?;
        let mut peer = backend.peer(self.call);
        if let Some(stream) = &self.stream {
            stream.ends.attach(&mut peer);
        } else if let Some(upload) = &self.upload {
            upload.attach(&mut peer);
        }
        Ok(peer)
    }

    /// Whether the proxy has ended it, a stream that its age or the end of all has come to.
    pub fn is_ended(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_some_and(|stream| stream.ends.is_ended())
    }

    /// Whether the proxy has ended it as its client stopped sending.
    pub fn is_stalled(&self) -> bool {
        self.upload.as_ref().is_some_and(Upload::is_stalled)
    }

    /// Whether that was the end of all streams, and not its age.
    pub(crate) fn is_drained(&self) -> bool {
        let stream = self.stream.as_ref();
        self.is_ended() && stream.is_some_and(|stream| stream.ends.with_all())
    }

    /// The backends that could not be connected to, in the order of the attempts.
    pub fn unreachable(&self) -> &[BackendName] {
        &self.unreachable
    }

    /// What the answer did to the session.
    pub fn outcome(&self) -> SessionOutcome {
        self.outcome
    }

    /// Whether the backend's answer is held back until its body is whole: its header must not be
    /// passed on, and [`held_answer`](crate::Gateway::held_answer) takes its place.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Why the proxy answered itself, if it did.
    pub fn rejection(&self) -> Option<Rejection> {
        self.rejection
    }

    /// Notes that the proxy answers with `rejection`, and returns it.
    pub fn refuse(&mut self, rejection: Rejection) -> Rejection {
        self.rejection = Some(rejection);
        rejection
    }

    /// The policy that the request's body is judged by, where it has one.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        let policy = self.route.as_ref()?.policy.as_ref()?;
        matches!(self.call, Call::Post | Call::Listen).then_some(policy)
    }

    /// The URL by which clients know the request's route, where it has one.
    pub(crate) fn public_url(&self) -> Option<&PublicUrl> {
        self.route.as_ref()?.public_url.as_ref()
    }

    /// The session that the answer is of, or was to be of, by the client's id.
    pub(crate) fn client_session(&self) -> Option<ClientSessionId> {
        match self.outcome {
            SessionOutcome::Opened(id) => Some(id),
            SessionOutcome::None
            | SessionOutcome::Kept
            | SessionOutcome::Ended
            | SessionOutcome::Lost => self.client_id,
        }
    }
}
