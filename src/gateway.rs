//! The gateway: five functions over headers that take a request from a client to a backend and
//! its answer back. It opens no socket, and reads no body but the one document that it rewrites,
//! the short 400 that may tell of a lost session and, on a route with a policy, the message that it
//! judges.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::backend::{Backend, BackendName, For};
use crate::compatibility::{ExpiredSessionStatus, HeldAnswer};
use crate::cors::OriginGrant;
use crate::discovery::WellKnown;
use crate::exchange::{BoundSession, Connection, Exchange, SessionOutcome};
use crate::fields::Fields;
use crate::headers::{
    accepts_anything, accepts_event_stream, authority, forwarded, has_one_meaning, host_header,
    is_event_stream, join_cookies, remove_private, remove_untrusted, take_request, take_response,
};
use crate::load::Load;
use crate::mcp::header::MCP_SESSION_ID;
use crate::mcp::{BackendSessionId, Call, ClientSessionId, Era};
use crate::message::{Body, MalformedBody};
use crate::metrics::LookupOutcome;
use crate::rejection::Rejection;
use crate::route::{HostHeader, Route};
use crate::rules::Rules;
use crate::session::{
    Binding, Opened, Reaping, SealError, SessionSettings, SessionStore, StoreError,
};

/// Decides for each request where it goes and what each side sees.
///
/// Call the five functions in this order, with one [`Exchange`] a request:
/// [`admit`](Self::admit), [`route`](Self::route), [`to_backend`](Self::to_backend),
/// [`from_backend`](Self::from_backend), [`to_client`](Self::to_client). An answer that does not
/// come from a backend goes through `to_client` too, and a backend that cannot be connected to
/// through [`another_backend`](Self::another_backend), before `route` is called again. Each connect
/// is told by [`backend_connected`](Self::backend_connected) or
/// [`backend_failed`](Self::backend_failed), and a request that fails asks
/// [`session_lost`](Self::session_lost) before it is answered. The body of
/// a backend's answer goes through [`body_from_backend`](Self::body_from_backend); where the answer
/// [is held](Exchange::is_held), the client gets [`held_answer`](Self::held_answer). The body of a
/// request to a route with a policy goes through [`judge`](Self::judge), before `route` is called,
/// and each part of any other through [`body_from_client`](Self::body_from_client), or `max_body`
/// holds only for what has a `Content-Length`. Where a client leaves before it has an answer,
/// [`client_left`](Self::client_left) gives up the session that this opened.
#[derive(Debug)]
pub struct Gateway {
    rules: ArcSwap<Rules>,
    store: Arc<dyn SessionStore>,
    load: Load,
    lost_after: Duration,
    reaping: Option<Reaping>,
}

/// What is to be done with an admitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admission {
    /// Send it to a backend.
    Forward,
    /// Read its body, have it judged by [`Gateway::judge`], and send it to a backend if it is good.
    /// [`proxy::judge`](crate::proxy::judge) does that. Otherwise no backend is given for it.
    Judge,
    /// Answer it with [`Gateway::preflight`].
    Preflight,
}

impl Gateway {
    /// A gateway that goes by `rules` and keeps its sessions in `store`.
    pub fn new(rules: Rules, store: Arc<dyn SessionStore>) -> Self {
        Self {
            load: Load::new(&rules.limits),
            rules: ArcSwap::from_pointee(rules),
            store,
            lost_after: SessionSettings::default().lost_after.0,
            reaping: None,
        }
    }

    /// Goes by `rules` from the next request on. Requests that are under way end as they began,
    /// and sessions stay, but for those whose route or backend is there no more. So do connections
    /// and streams, also where fewer may be opened now.
    pub fn replace(&self, mut rules: Rules) {
        rules.succeed(&self.rules.load());
        self.load.limit(&rules.limits);
        self.rules.store(Arc::new(rules));
    }

    /// What it goes by now.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Where it keeps its sessions.
    pub fn store(&self) -> &dyn SessionStore {
        &*self.store
    }

    /// What the request of `exchange` goes by, from its beginning to its end.
    pub(crate) fn rules_of<'e>(&self, exchange: &'e mut Exchange) -> &'e Arc<Rules> {
        exchange.rules.get_or_insert_with(|| self.rules.load_full())
    }

    /// Keeps what a [`Reaper`](crate::reaper::Reaper) is to tell backends, as `sessions.reap` says.
    /// The store keeps its own.
    pub fn with_reaping(self, sessions: &SessionSettings) -> Self {
        let reaping = |settings| Reaping::new(settings, sessions);
        Self {
            reaping: sessions.reap.0.map(reaping),
            ..self
        }
    }

    pub(crate) fn reaping(&self) -> Option<&Reaping> {
        self.reaping.as_ref()
    }

    /// Counts the sessions of a backend that has been down for this long as lost, in place of the
    /// default time.
    pub fn with_lost_after(self, lost_after: Duration) -> Self {
        Self { lost_after, ..self }
    }

    /// How much clients have now. Each clone shows the same.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Looks at a request's header and finds its route, its era and its session.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn admit(
        &self,
        request: &RequestHeader,
        connection: Connection,
        exchange: &mut Exchange,
    ) -> Result<Admission, Rejection> {
        exchange.connection = connection;
        let known = exchange.rules.take();
        let rules = known.unwrap_or_else(|| self.rules.load_full());
        let admitted = self.examine(&rules, request, exchange).await;
        exchange.rules = Some(rules);
        exchange.rejection = admitted.err();
        admitted
    }

    async fn examine(
        &self,
        rules: &Rules,
        request: &RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<Admission, Rejection> {
        let reach = exchange.connection.reach;
        exchange.origin = rules.cors.judge(&request.headers, reach);
        if exchange.origin == OriginGrant::Denied {
            return Err(Rejection::OriginForbidden);
        }
        if !rules.hosts.allows(authority(request), reach) {
            return Err(Rejection::HostForbidden);
        }
        let fields = Fields::of(request);
        fields.have_one_meaning()?;
        fields.are_within(&rules.limits)?;
        // Before the path is looked at: a page cannot read that it is wrong unless the preflight
        // is right (Fetch, CORS protocol).
        if request.method == Method::OPTIONS {
            return Ok(Admission::Preflight);
        }
        let Some(route) = rules.routes.find(request.uri.path()) else {
            return Err(Rejection::UnknownPath);
        };
        exchange.route = Some(Arc::clone(route));
        exchange.is_at_endpoint = request.uri.path() == route.path.as_str();
        exchange.call = Call::of(&request.method).ok_or(Rejection::MethodNotAllowed)?;
        let length = fields.content_length();
        if is_longer(length, route.limits.max_body.0) {
            return Err(Rejection::BodyTooLarge);
        }
        if is_discovery(request.uri.path()) {
            if exchange.call != Call::Get {
                return Err(Rejection::MethodNotAllowed);
            }
            exchange.call = Call::Discover;
            return Ok(Admission::Forward);
        }
        let era = fields.era();
        exchange.era = Some(era);
        match era {
            Era::Session => {
                self.admit_to_session(rules, &fields, route, exchange)
                    .await?;
                remembered_405(route, exchange)?;
            }
            Era::Stateless if fields.is_listen() => exchange.call = Call::Listen,
            Era::Stateless => {}
        }
        if matches!(exchange.call, Call::Get | Call::Listen) {
            let session = exchange.session.as_ref().map(|session| session.id);
            let most = rules.limits.max_streams_per_session;
            let age = route.timeouts.max_stream_age.0;
            let stream = self.load.streams.open(session, most, age)?;
            exchange.stream = Some(stream);
        }
        let Some(policy) = exchange.policy() else {
            self.check_backend(exchange).await?;
            return Ok(Admission::Forward);
        };
        policy.judge_headers(&request.headers, length)?;
        Ok(Admission::Judge)
    }

    /// Refuses a bound request whose backend is down. After all other checks: the one that is let
    /// through to try the backend has to go there, or nobody tries it for a while.
    async fn check_backend(&self, exchange: &mut Exchange) -> Result<(), Rejection> {
        let backend = exchange.backend.as_ref();
        if backend.is_none_or(|backend| backend.may_be_asked()) {
            return Ok(());
        }
        let lost = self.session_lost(exchange).await;
        Err(lost.unwrap_or(Rejection::BackendUnreachable))
    }

    /// The session era's own checks, and the lookup of the session.
    async fn admit_to_session(
        &self,
        rules: &Rules,
        fields: &Fields<'_>,
        route: &Route,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        if exchange.call == Call::Get && !accepts_event_stream(fields.all()) {
            return Err(Rejection::StreamNotAccepted);
        }
        if let Some(reaping) = &self.reaping {
            exchange.authorization = reaping.authorization_of(fields.all());
        }
        let Some(id) = fields.session_id()? else {
            return match exchange.call {
                Call::Delete => Err(Rejection::SessionIdMissing),
                // What opens a session cannot be told from what does not, but by the answer. Where
                // backends give sessions, a request without one is to open it.
                Call::Post if route.opens_sessions() => {
                    let room = self.store.check_room(exchange.connection.network());
                    Ok(room.await?)
                }
                Call::Post | Call::Get | Call::Listen | Call::Discover => Ok(()),
            };
        };
        let mut header = id.clone();
        header.set_sensitive(true);
        let (id, seal) = ClientSessionId::split(id).map_err(|_| Rejection::UnknownSession)?;
        exchange.client_id = Some(id);
        let found = self.find(id, exchange).await;
        // One that does not answer is not asked again.
        let is_missing = found == Ok(None);
        let binding = match found {
            Ok(Some(kept)) if kept.route == route.path && kept.is_sealed_with(seal) => kept,
            found => unseal(id, seal, route, rules, found)?,
        };
        let backend = match route.pool.get(&binding.backend) {
            Err(Rejection::UnknownSession)
                if route.pool.may_come(&binding.backend, binding.opened.age()) =>
            {
                return Err(Rejection::BackendUnreachable);
            }
            found => found?,
        };
        if is_missing && !backend.is_lost(self.lost_after) {
            self.adopt(id, &binding, route, exchange).await;
        }
        self.keep_authorization(&binding, exchange);
        exchange.session = Some(BoundSession { id, binding });
        exchange.session_header = Some(header);
        exchange.backend = Some(backend);
        Ok(())
    }

    /// Spares the next request of a session that was sealed in its id from opening that. Where the
    /// store does not take it, it is served without.
    async fn adopt(
        &self,
        id: ClientSessionId,
        binding: &Binding,
        route: &Route,
        exchange: &Exchange,
    ) {
        route.note_session();
        let client = exchange.connection.network();
        if let Err(error) = self.store.adopt(id, binding.clone(), client).await {
            log::debug!("session not adopted: {error}");
        }
    }

    /// Judges the body of a request that was admitted as [`Admission::Judge`], by its route's
    /// policy. `body` is the whole of it: 64 KiB at most, and none where it is longer.
    ///
    /// # Errors
    /// The refusal to answer with: [`Rejection::answer_to`] the exchange's
    /// [`request_id`](Exchange::request_id).
    pub async fn judge(
        &self,
        request: &RequestHeader,
        body: Option<&[u8]>,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        let judged = match judge_body(request, body, exchange) {
            Ok(()) => self.check_backend(exchange).await,
            refused => refused,
        };
        exchange.is_judged = judged.is_ok();
        judged.map_err(|rejection| exchange.refuse(rejection))
    }

    /// Looks a session up. The time that it took is noted where the request's is.
    async fn find(
        &self,
        id: ClientSessionId,
        exchange: &mut Exchange,
    ) -> Result<Option<Binding>, StoreError> {
        if exchange.arrived.is_none() {
            return self.store.find(id).await;
        }
        let begun = Instant::now();
        let found = self.store.find(id).await;
        let outcome = match found {
            Ok(Some(_)) => LookupOutcome::Found,
            Ok(None) => LookupOutcome::Missing,
            Err(StoreError) => LookupOutcome::Error,
        };
        exchange.lookup = Some((outcome, begun.elapsed()));
        found
    }

    /// The backend that the request goes to: its session's own; for one that may open a session, the
    /// one with the fewest; for any other, the one with the fewest requests in flight.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn route<'e>(&self, exchange: &'e mut Exchange) -> Result<&'e Backend, Rejection> {
        // Not before: what waits for its client has no connection to a backend yet.
        if exchange.place.is_none() {
            exchange.place = self.load.requests.hold();
        }
        if exchange.place.is_none() {
            return Err(exchange.refuse(Rejection::RequestsFull));
        }
        let is_unjudged = exchange.policy().is_some() && !exchange.is_judged;
        let (Some(route), false) = (&exchange.route, is_unjudged) else {
            return Err(exchange.refuse(Rejection::Internal));
        };
        let chosen = match exchange.backend.take() {
            Some(backend) => Ok(backend),
            None => {
                let live = |backend: &BackendName| self.store.sessions_at(&route.path, backend);
                let purpose = match (exchange.call, exchange.era) {
                    (Call::Post, Some(Era::Session)) => For::Session(&live),
                    _ => For::Request,
                };
                route.pool.pick(&exchange.unreachable, purpose)
            }
        };
        exchange.body_length = 0;
        match chosen {
            Ok(backend) => Ok(exchange.backend.insert(backend)),
            Err(rejection) => Err(exchange.refuse(rejection)),
        }
    }

    /// The backend cannot be connected to: whether [`route`](Self::route) has another. A session
    /// has none, as nobody else knows it.
    pub fn another_backend(&self, exchange: &mut Exchange) -> bool {
        if exchange.session.is_some() {
            return false;
        }
        let (Some(route), Some(backend)) = (&exchange.route, &exchange.backend) else {
            return false;
        };
        exchange.unreachable.push(backend.name().clone());
        if !route.pool.has_another(&exchange.unreachable) {
            return false;
        }
        exchange.backend = None;
        true
    }

    /// The backend that the request is at was connected to.
    pub fn backend_connected(&self, exchange: &Exchange) {
        if let Some(backend) = &exchange.backend {
            backend.connected();
        }
    }

    /// The backend that the request is at cannot be connected to, and that is not this machine's
    /// fault. After some of these in a row it counts as down.
    pub fn backend_failed(&self, exchange: &Exchange) {
        if let Some(backend) = &exchange.backend {
            backend.failed();
        }
    }

    /// Whether the session of a request that failed is lost with its backend, so that its client is
    /// to start over: the refusal that says so.
    pub async fn session_lost(&self, exchange: &mut Exchange) -> Option<Rejection> {
        let backend = exchange.backend.as_ref()?;
        if !backend.is_lost(self.lost_after) {
            return None;
        }
        let BoundSession { id, binding } = exchange.session.clone()?;
        Some(self.forget(id, &binding, exchange).await)
    }

    /// Forgets a session that is lost, and refuses its request with what has a client start over.
    async fn forget(
        &self,
        id: ClientSessionId,
        binding: &Binding,
        exchange: &mut Exchange,
    ) -> Rejection {
        exchange.outcome = SessionOutcome::Lost;
        if let Some(reaping) = &self.reaping {
            reaping.take_authorization(binding);
        }
        if let Err(error) = self.store.remove(id).await {
            log::warn!("session not updated: {error}");
        }
        exchange.refuse(Rejection::UnknownSession)
    }

    /// Turns a client's request header into the backend's. It may be called again for another
    /// backend, with the client's header.
    ///
    /// # Errors
    /// The target that results is none, or Pingora refuses a header.
    pub fn to_backend(
        &self,
        request: &mut RequestHeader,
        exchange: &Exchange,
    ) -> pingora_core::Result<()> {
        let (Some(route), Some(backend)) = (&exchange.route, &exchange.backend) else {
            return pingora_core::Error::e_explain(NO_ROUTE, "no backend was chosen");
        };
        let Some(uri) = route.backend_uri(&request.uri, backend) else {
            return pingora_core::Error::e_explain(NO_ROUTE, "the path does not fit the backend");
        };
        let host = host_header(request);
        let mut parts = take_request(request);
        parts.uri = uri;
        let headers = &mut parts.headers;
        remove_untrusted(headers, backend);
        join_cookies(headers)?;
        if route.host == HostHeader::Backend {
            headers.insert(header::HOST, backend.host().clone());
        }
        match &exchange.session {
            Some(session) => headers.insert(MCP_SESSION_ID, session.binding.session.to_header()),
            None => headers.remove(MCP_SESSION_ID),
        };
        if matches!(exchange.call, Call::Post | Call::Listen) && accepts_anything(headers) {
            headers.insert(header::ACCEPT, HeaderValue::from_static(POST_ACCEPT));
        }
        if exchange.call == Call::Discover && route.public_url.is_some() {
            // A compressed document could not be rewritten.
            headers.remove(header::ACCEPT_ENCODING);
        }
        // Where the map is full, also a header that takes another's place makes it grow: this comes
        // after those that do.
        forwarded(headers, host, &exchange.connection);
        for (name, value) in backend.headers() {
            headers.insert(name, value.clone());
        }
        *request = parts.into();
        Ok(())
    }

    /// Takes the next part of the body of a client's request, which passes as it is. `is_end` says that
    /// it is the last.
    ///
    /// # Errors
    /// The refusal to answer with: with this part, it is longer than the route takes.
    pub fn body_from_client(
        &self,
        body: Option<&Bytes>,
        is_end: bool,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        if let Some(upload) = &exchange.upload {
            upload.note_part(is_end);
        }
        exchange.body_length += body.map_or(0, |part| part.len() as u64);
        let route = exchange.route.as_ref();
        let most = route.and_then(|route| route.limits.max_body.0);
        if is_longer(Some(exchange.body_length), most) {
            return Err(exchange.refuse(Rejection::BodyTooLarge));
        }
        Ok(())
    }

    /// Takes from a backend's answer what is not the client's, and opens, keeps or ends the
    /// session. A session is in the store before this returns.
    ///
    /// # Errors
    /// The refusal to answer with instead: a session was opened and cannot be kept.
    pub async fn from_backend(
        &self,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        let mut parts = take_response(response);
        // Whatever the backend speaks (RFC 9112 2.3).
        parts.version = Version::HTTP_11;
        let has_no_body = parts.status == StatusCode::NO_CONTENT || parts.status.is_informational();
        let headers = &mut parts.headers;
        let has_one_meaning = has_one_meaning(headers);
        remove_private(headers);
        if has_no_body {
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(header::TRANSFER_ENCODING);
        }
        let given = headers.remove(MCP_SESSION_ID);
        let is_stream = is_event_stream(headers);
        if is_stream {
            // With a length, Pingora holds small chunks back until it is reached.
            headers.remove(header::CONTENT_LENGTH);
        }
        *response = parts.into();
        // No request that leaves here asks for an upgrade (RFC 9110 15.2.2).
        if response.status == StatusCode::SWITCHING_PROTOCOLS || !has_one_meaning {
            return Err(exchange.refuse(Rejection::BackendAnswerInvalid));
        }
        if response.status.is_informational() {
            return Ok(());
        }
        exchange.is_stream = is_stream;
        if publish(response, exchange).is_err() {
            return Err(exchange.refuse(Rejection::Internal));
        }
        exchange.outcome = match (&exchange.session, given, opening_era(response, exchange)) {
            (Some(session), given, _) => self.settle(session, given, response, exchange.call).await,
            (None, Some(given), Some(Era::Session)) => {
                let opened = self.open(&given, exchange).await;
                opened.map_err(|rejection| exchange.refuse(rejection))?
            }
            // A server that took it for a request of the other era. No client hears of it.
            (None, Some(given), Some(Era::Stateless)) => {
                let binding = bind(BackendSessionId::of_any_form(&given), exchange);
                self.abandon(binding?, exchange).await;
                SessionOutcome::None
            }
            (None, _, _) => SessionOutcome::None,
        };
        if let (Some(_), Some(backend)) = (exchange.get_405_memory, &exchange.backend)
            && response.status == StatusCode::METHOD_NOT_ALLOWED
        {
            backend.get_refusal.note();
        }
        if may_be_expired(exchange) {
            exchange.held = HeldAnswer::of(response);
        }
        Ok(())
    }

    /// The answer in place of one that was held back, its body whole: the 404 that clients start
    /// over on where it says that the session has expired, else the answer as it was.
    ///
    /// # Errors
    /// As [`Rejection::answer`].
    pub async fn held_answer(
        &self,
        exchange: &mut Exchange,
    ) -> pingora_core::Result<(ResponseHeader, Bytes)> {
        match (exchange.held.take(), &exchange.session) {
            (Some(held), Some(session)) if held.is_expired_session() => {
                let BoundSession { id, binding } = session.clone();
                self.forget(id, &binding, exchange).await.answer()
            }
            (Some(held), _) => Ok(held.into_parts()),
            (None, _) => exchange.refuse(Rejection::Internal).answer(),
        }
    }

    /// Takes the next part of the body of a backend's answer. It passes as it is, but for the one
    /// document that names the server's URL: that is held back until it is whole, and rewritten.
    /// One of more than 64 KiB is none, and passes too. Where the answer [is
    /// held](Exchange::is_held), nothing of it passes.
    pub fn body_from_backend(
        &self,
        body: &mut Option<Bytes>,
        is_end: bool,
        exchange: &mut Exchange,
    ) {
        if let Some(held) = &mut exchange.held {
            held.push(&body.take().unwrap_or_default());
            return;
        }
        let Some(mut document) = exchange.document.take() else {
            return;
        };
        document.extend_from_slice(&body.take().unwrap_or_default());
        if document.len() > MAX_DOCUMENT {
            *body = Some(document.freeze());
        } else if !is_end {
            exchange.document = Some(document);
        } else {
            let public_url = exchange.public_url();
            let rewritten = public_url.and_then(|url| url.rewrite_document(&document));
            *body = Some(rewritten.map_or_else(|| document.freeze(), Bytes::from));
        }
    }

    /// Keeps, ends or re-binds the session of a bound request by its answer.
    async fn settle(
        &self,
        session: &BoundSession,
        given: Option<HeaderValue>,
        response: &ResponseHeader,
        call: Call,
    ) -> SessionOutcome {
        let outcome = outcome_of_bound(response, call);
        let stored = match (outcome, given) {
            (SessionOutcome::Kept, Some(given)) if response.status.is_success() => {
                self.rebind(session, &given).await
            }
            (SessionOutcome::None | SessionOutcome::Opened(_) | SessionOutcome::Kept, _) => Ok(()),
            // Left behind, it goes with the backend's 404 to the session's next request.
            (SessionOutcome::Ended | SessionOutcome::Lost, _) => {
                if let Some(reaping) = &self.reaping {
                    reaping.take_authorization(&session.binding);
                }
                self.store.remove(session.id).await
            }
        };
        if let Err(error) = stored {
            log::warn!("session not updated: {error}");
        }
        outcome
    }

    /// Follows a backend that gives its session another id, as clients that talk to it directly
    /// do.
    async fn rebind(&self, session: &BoundSession, given: &HeaderValue) -> Result<(), StoreError> {
        if session.binding.session == *given {
            return Ok(());
        }
        let Ok(id) = BackendSessionId::try_from(given) else {
            return Ok(());
        };
        // A sealed one may be served without being kept. In a store that is full, it is not followed.
        if self.store.find(session.id).await?.is_none() {
            return Ok(());
        }
        let mut binding = session.binding.clone();
        binding.session = id;
        self.store.insert(session.id, binding).await
    }

    /// Mints the client's id for the session that the backend calls `given`.
    async fn open(
        &self,
        given: &HeaderValue,
        exchange: &mut Exchange,
    ) -> Result<SessionOutcome, Rejection> {
        let (Some(rules), Some(route)) = (&exchange.rules, &exchange.route) else {
            return Err(Rejection::Internal);
        };
        let Ok(session) = BackendSessionId::try_from(given) else {
            let session = BackendSessionId::of_any_form(given);
            self.abandon(bind(session, exchange)?, exchange).await;
            return Err(Rejection::BackendAnswerInvalid);
        };
        let id = ClientSessionId::mint();
        let mut binding = bind(session, exchange)?;
        binding.seal = rules.seals.seal(id, &binding);
        let header = match &binding.seal {
            Some(seal) => seal.to_header(id),
            None => id.to_header(),
        };
        route.note_session();
        let client = exchange.connection.network();
        if let Err(error) = self.store.open(id, binding.clone(), client).await {
            self.abandon(binding, exchange).await;
            return Err(error.into());
        }
        self.keep_authorization(&binding, exchange);
        exchange.session_header = Some(header);
        Ok(SessionOutcome::Opened(id))
    }

    /// The client has left and never had the answer: a session that this opened is nobody's.
    /// [`proxy::give_up_unheard`](crate::proxy::give_up_unheard) finds out whether it is so.
    pub async fn client_left(&self, exchange: &mut Exchange) {
        let SessionOutcome::Opened(id) = exchange.outcome else {
            return;
        };
        exchange.outcome = SessionOutcome::None;
        let taken = match self.store.find(id).await {
            Ok(Some(binding)) => {
                let removed = self.store.remove(id).await;
                self.abandon(binding, exchange).await;
                removed
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            log::warn!("session not updated: {error}");
        }
    }

    /// Has a backend told that nobody uses the session that it has just opened.
    async fn abandon(&self, binding: Binding, exchange: &Exchange) {
        self.keep_authorization(&binding, exchange);
        if let Some(reaping) = &self.reaping {
            reaping.push(binding);
        }
    }

    fn keep_authorization(&self, session: &Binding, exchange: &Exchange) {
        if let (Some(reaping), Some(authorization)) = (&self.reaping, &exchange.authorization) {
            reaping.keep(session, authorization);
        }
    }

    /// Restarts the idle time of a session that has a stream open.
    pub(crate) async fn touch(&self, session: ClientSessionId) -> Result<(), StoreError> {
        let binding = self.store.touch(session).await?;
        if let (Some(reaping), Some(binding)) = (&self.reaping, binding) {
            reaping.touch(&binding);
        }
        Ok(())
    }

    /// Completes an answer for the client, whoever gave it.
    pub fn to_client(&self, response: &mut ResponseHeader, exchange: &Exchange) {
        if response.status.is_informational() {
            return;
        }
        let mut parts = take_response(response);
        let headers = &mut parts.headers;
        match &exchange.rules {
            Some(rules) => rules.cors.apply(&exchange.origin, headers),
            None => self.rules.load().cors.apply(&exchange.origin, headers),
        }
        if let Some(id) = &exchange.session_header {
            headers.insert(MCP_SESSION_ID, id.clone());
        }
        if is_event_stream(headers) {
            let no_transform = HeaderValue::from_static("no-cache, no-transform");
            headers.entry(header::CACHE_CONTROL).or_insert(no_transform);
            let no = HeaderValue::from_static("no");
            headers.entry(X_ACCEL_BUFFERING).or_insert(no);
        }
        *response = parts.into();
    }

    /// The answer to a request that was admitted as [`Admission::Preflight`].
    ///
    /// # Errors
    /// As [`CorsPolicy::preflight`](crate::cors::CorsPolicy::preflight).
    pub fn preflight(&self, request: &RequestHeader) -> pingora_core::Result<ResponseHeader> {
        self.rules.load().cors.preflight(&request.headers)
    }
}

/// The binding that a client brings along in `seal`, as what the store has, where it has something,
/// is of another seal. What it has of this session is newer: a backend may change its id.
fn unseal(
    id: ClientSessionId,
    seal: &[u8],
    route: &Route,
    rules: &Rules,
    found: Result<Option<Binding>, StoreError>,
) -> Result<Binding, Rejection> {
    match (rules.seals.open(id, seal, &route.path), found) {
        (Ok(_), Ok(Some(kept))) if kept.route == route.path => Ok(kept),
        (Ok(sealed), _) => Ok(sealed),
        (Err(SealError::KeyUnknown), Err(StoreError)) => Err(Rejection::StoreUnavailable),
        (Err(_), _) => Err(Rejection::UnknownSession),
    }
}

fn judge_body(
    request: &RequestHeader,
    body: Option<&[u8]>,
    exchange: &mut Exchange,
) -> Result<(), Rejection> {
    let body = body.ok_or(Rejection::MessageTooLarge)?;
    let body = Body::parse(body).map_err(|MalformedBody| Rejection::MessageMalformed)?;
    if let Body::Message(message) = &body {
        exchange.request_id = message.id().cloned();
    }
    let policy = exchange.policy().ok_or(Rejection::Internal)?;
    let era = exchange.era.ok_or(Rejection::Internal)?;
    policy.judge(&body, era, &request.headers)
}

fn is_longer(length: Option<u64>, most: Option<u64>) -> bool {
    let most = most.unwrap_or(u64::MAX);
    length.is_some_and(|length| length > most)
}

/// The era of a request whose answer opens the session that it gives an id of.
fn opening_era(response: &ResponseHeader, exchange: &Exchange) -> Option<Era> {
    exchange.era.filter(|_| response.status.is_success())
}

/// The session that the backend of `exchange` has just opened.
fn bind(session: BackendSessionId, exchange: &Exchange) -> Result<Binding, Rejection> {
    let (Some(route), Some(backend)) = (&exchange.route, &exchange.backend) else {
        return Err(Rejection::Internal);
    };
    Ok(Binding {
        route: route.path.clone(),
        backend: backend.name().clone(),
        session,
        opened: Opened::now(),
        seal: None,
    })
}

/// Puts the public URL into the answer where the route has one: into its challenges at once, into
/// a document once it is whole. What a challenge said before of where the document is, is noted, as
/// the client will ask for it at the usual place.
fn publish(response: &mut ResponseHeader, exchange: &mut Exchange) -> pingora_core::Result<()> {
    let (Some(route), Some(public_url)) = (&exchange.route, exchange.public_url()) else {
        return Ok(());
    };
    let challenges = response.headers.get_all(header::WWW_AUTHENTICATE);
    let challenges: Vec<_> = challenges.into_iter().cloned().collect();
    response.remove_header(&header::WWW_AUTHENTICATE);
    for challenge in challenges {
        // Below the endpoint, a server may put in what the client asked for.
        if exchange.is_at_endpoint
            && let Some(target) = public_url.metadata_target(&challenge)
        {
            route.note_metadata(target);
        }
        let public = public_url
            .rewrite_challenge(&challenge)
            .unwrap_or(challenge);
        response.append_header(header::WWW_AUTHENTICATE, public)?;
    }
    if exchange.call == Call::Discover && response.status.is_success() {
        response.remove_header(&header::CONTENT_LENGTH);
        exchange.document = Some(BytesMut::new());
    }
    Ok(())
}

/// Answers a GET in place of a backend that said a while ago that it has no stream. All backends of
/// a route offer the same, so that without a session the word of one is enough.
fn remembered_405(route: &Route, exchange: &mut Exchange) -> Result<(), Rejection> {
    // Below the route's path, there may be something else at each path.
    if exchange.call != Call::Get || !exchange.is_at_endpoint {
        return Ok(());
    }
    exchange.get_405_memory = route.compatibility.get_405_memory.0;
    let Some(memory) = exchange.get_405_memory else {
        return Ok(());
    };
    let is_refused = match &exchange.backend {
        Some(backend) => backend.get_refusal.is_within(memory),
        None => {
            let mut backends = route.pool.iter();
            backends.any(|backend| backend.get_refusal.is_within(memory))
        }
    };
    if is_refused {
        return Err(Rejection::NoEventStream);
    }
    Ok(())
}

/// Whether a 400 to this request may mean that its session has expired.
fn may_be_expired(exchange: &Exchange) -> bool {
    let status = exchange
        .route
        .as_ref()
        .map(|route| route.compatibility.expired_session_status);
    exchange.session.is_some() && status == Some(ExpiredSessionStatus::BadRequest)
}

/// What the answer to a bound request says of its session (MCP 2025-11-25, Session Management 3
/// to 5). A 405 to DELETE keeps it.
fn outcome_of_bound(response: &ResponseHeader, call: Call) -> SessionOutcome {
    if response.status == StatusCode::NOT_FOUND {
        return SessionOutcome::Lost;
    }
    if call == Call::Delete && response.status.is_success() {
        return SessionOutcome::Ended;
    }
    SessionOutcome::Kept
}

/// A discovery path, also the one below an endpoint that some clients try.
fn is_discovery(path: &str) -> bool {
    WellKnown::parse(path).is_some() || path.ends_with("/.well-known/openid-configuration")
}

/// A document of OAuth discovery has a few hundred bytes.
const MAX_DOCUMENT: usize = 64 * 1024;

const NO_ROUTE: pingora_core::ErrorType = pingora_core::ErrorType::Custom("RequestNotRouted");

/// MCP 2025-11-25, Sending Messages 2.
const POST_ACCEPT: &str = "application/json, text/event-stream";

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
