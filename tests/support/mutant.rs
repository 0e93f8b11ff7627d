//! A proxy with one rule broken, to prove that a test notices: an embedder of `McpProxy` that
//! calls its filters and undoes or falsifies one thing before or after.
//!
//! A filter that `McpProxy` gains is to be called here, too: `Mutation::Nothing` fails without.
//!
//! `PINGORA_MCP_MUTATION=<name>` has the tests of a file run against it; `tests/mutations.rs` sets
//! it to each [`Mutation`] in turn.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_core::modules::http::{HttpModule, HttpModuleBuilder, HttpModules, Module};
use pingora_core::protocols::Digest;
use pingora_core::services::Service;
use pingora_core::services::listening;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_mcp::cors::OriginGrant;
use pingora_mcp::host::Reach;
use pingora_mcp::mcp::{Call, ClientSessionId, Era, header::MCP_SESSION_ID};
use pingora_mcp::{Config, Exchange, Gateway, McpProxy};
use pingora_proxy::{
    FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session, http_proxy_service_with_name,
};

use super::mutation::Mutation;

/// A service with `mutation`, to host in place of the real one. `config` is the gateway's own.
pub fn service(
    conf: &Arc<pingora_core::server::configuration::ServerConf>,
    gateway: Arc<Gateway>,
    config: Config,
    mutation: Mutation,
) -> Box<dyn Service> {
    let listeners = config.listeners.clone();
    let mutant = Mutant {
        real: McpProxy::new(gateway),
        mutation,
        config,
        last_session: Mutex::default(),
    };
    let mut service: listening::Service<HttpProxy<Mutant>> =
        http_proxy_service_with_name(conf, mutant, "mutant");
    for listener in listeners.iter() {
        service.add_listener(listener.endpoint());
    }
    Box::new(service)
}

struct Mutant {
    real: McpProxy,
    mutation: Mutation,
    config: Config,
    last_session: Mutex<Option<HeaderValue>>,
}

#[derive(Default)]
struct Context {
    exchange: Box<Exchange>,
    /// The client's header as it came.
    asked: HeaderMap,
    /// The backend's header as it came.
    given: HeaderMap,
    /// The backend's status as it came.
    status: StatusCode,
    /// What is held back of a body.
    held: Vec<u8>,
}

impl Mutant {
    fn breaks(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }

    /// What the real proxy is to see of a request that it would refuse, or treat otherwise.
    fn disguise(&self, request: &mut RequestHeader) {
        let id = request.headers.get(MCP_SESSION_ID).cloned();
        match self.mutation {
            Mutation::OriginUnchecked => {
                let grant = self.config.cors.judge(&request.headers, Reach::Loopback);
                if grant == OriginGrant::Denied {
                    request.remove_header(&header::ORIGIN);
                }
            }
            Mutation::HostUnchecked => set(request, header::HOST, "localhost"),
            Mutation::PreflightSent if request.method == Method::OPTIONS => {
                request.set_method(Method::POST);
            }
            Mutation::OtherMethodSent if is_other(&request.method) => {
                request.set_method(Method::POST);
            }
            Mutation::UnacceptedStreamSent => set(request, header::ACCEPT, "text/event-stream"),
            Mutation::UnnamedDeleteSent if id.is_none() && request.method == Method::DELETE => {
                set(request, VERSION, STATELESS)
            }
            Mutation::NothingSwapped => drop(request.remove_header(&MCP_SESSION_ID)),
            Mutation::OtherSessionJoined => {
                let mut last = self
                    .last_session
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(id) = id {
                    *last = Some(id);
                } else if let (&Method::GET, Some(id)) = (&request.method, &*last) {
                    request.insert_header(MCP_SESSION_ID, id.clone()).unwrap();
                }
            }
            Mutation::SecondIdIgnored => keep_first(request, MCP_SESSION_ID),
            Mutation::SecondVersionIgnored => keep_first(request, VERSION),
            _ => {}
        }
    }

    /// The request to the backend, made by the real proxy, falsified.
    fn falsify_request(&self, request: &mut RequestHeader, context: &Context) {
        let asked = |name| context.asked.get(name).cloned();
        let is_stateless = context.exchange.era() == Some(Era::Stateless);
        match self.mutation {
            Mutation::LastEventIdDropped => drop(request.remove_header("last-event-id")),
            Mutation::MethodDropped => drop(request.remove_header("mcp-method")),
            Mutation::NameDropped => drop(request.remove_header("mcp-name")),
            Mutation::NameDecoded if asked(NAME).is_some_and(|name| name == "=?base64?w6k=?=") => {
                request.insert_header(NAME, "é".as_bytes()).unwrap();
            }
            Mutation::ParametersDropped => drop(request.remove_header("mcp-param-region")),
            Mutation::VersionDropped => drop(request.remove_header(&VERSION)),
            Mutation::VersionInvented if asked(VERSION).is_none() => {
                set(request, VERSION, "2025-11-25");
            }
            Mutation::VersionChanged if asked(VERSION).is_some() => {
                set(request, VERSION, STATELESS);
            }
            Mutation::AcceptDropped => drop(request.remove_header(&header::ACCEPT)),
            Mutation::AuthorizationDropped => drop(request.remove_header(&header::AUTHORIZATION)),
            Mutation::OriginDropped => drop(request.remove_header(&header::ORIGIN)),
            Mutation::UnknownHeaderDropped => drop(request.remove_header("x-unknown")),
            Mutation::ConfiguredHeadersLose => {
                restore(request, header::AUTHORIZATION, &context.asked)
            }
            Mutation::ForwardedBelieved => restore(request, FORWARDED_FOR, &context.asked),
            Mutation::HostKept => restore(request, header::HOST, &context.asked),
            Mutation::LookalikePasses => restore(request, LOOKALIKE, &context.asked),
            Mutation::ClientIdSent | Mutation::NothingSwapped => {
                restore(request, MCP_SESSION_ID, &context.asked);
            }
            Mutation::StrayIdSent if is_stateless => {
                restore(request, MCP_SESSION_ID, &context.asked);
            }
            _ => {}
        }
    }

    /// The status that the real proxy is to see in place of the backend's.
    fn disguised_status(&self, status: StatusCode, context: &Context) -> StatusCode {
        let call = context.exchange.call();
        let is_bound = context.asked.contains_key(MCP_SESSION_ID);
        match self.mutation {
            Mutation::EndedSessionKept if call == Call::Delete && status.is_success() => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Mutation::LostSessionKept if status == StatusCode::NOT_FOUND => StatusCode::BAD_REQUEST,
            Mutation::RefusedDeleteEnds if status == StatusCode::METHOD_NOT_ALLOWED => {
                StatusCode::OK
            }
            Mutation::ErrorOpensSession if status.as_u16() >= 400 && !is_bound => StatusCode::OK,
            _ => status,
        }
    }

    /// The answer of a backend's, as the client is to get it from the real proxy, falsified.
    fn falsify_answer(&self, answer: &mut ResponseHeader, context: &Context) {
        let status = answer.status;
        let is_error = status.as_u16() >= 400;
        let is_stateless = context.exchange.era() == Some(Era::Stateless);
        let has_id = answer.headers.contains_key(MCP_SESSION_ID);
        let new_id = || ClientSessionId::mint().to_header();
        let is_bound = context.asked.contains_key(MCP_SESSION_ID);
        match self.mutation {
            Mutation::BackendIdShown | Mutation::NothingSwapped => {
                restore(answer, MCP_SESSION_ID, &context.given);
            }
            Mutation::ThrowawayIdPasses if is_error && !is_bound => {
                restore(answer, MCP_SESSION_ID, &context.given);
            }
            Mutation::InterimIdPasses if status.is_informational() => {
                restore(answer, MCP_SESSION_ID, &context.given);
            }
            Mutation::StrayIdPasses if is_stateless => {
                restore(answer, MCP_SESSION_ID, &context.given);
            }
            Mutation::StatelessIdMinted if is_stateless => {
                answer.insert_header(MCP_SESSION_ID, new_id()).unwrap();
            }
            Mutation::IdChanges if has_id => {
                answer.insert_header(MCP_SESSION_ID, new_id()).unwrap();
            }
            Mutation::IdForgotten if is_bound => {
                answer.remove_header(&MCP_SESSION_ID);
            }
            Mutation::NotFoundBecomesBadGateway if status == StatusCode::NOT_FOUND => {
                answer.set_status(StatusCode::BAD_GATEWAY).unwrap();
            }
            Mutation::ChallengeDropped => drop(answer.remove_header(&header::WWW_AUTHENTICATE)),
            Mutation::ChallengeUnpublished => {
                restore(answer, header::WWW_AUTHENTICATE, &context.given);
            }
            Mutation::ServerShown => restore(answer, header::SERVER, &context.given),
            Mutation::LengthKept => restore(answer, header::CONTENT_LENGTH, &context.given),
            Mutation::BufferingAllowed => drop(answer.remove_header("x-accel-buffering")),
            Mutation::BackendCorsKept => {
                for value in context.given.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
                    let name = header::ACCESS_CONTROL_ALLOW_ORIGIN;
                    answer.append_header(name, value.clone()).unwrap();
                }
            }
            _ => {}
        }
    }
}

#[async_trait]
impl ProxyHttp for Mutant {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            exchange: self.real.new_ctx(),
            ..Context::default()
        }
    }

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        self.real.init_downstream_modules(modules);
        modules.add_module(Box::new(OwnAnswers(self.mutation)));
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> Result<()> {
        let filtered = self
            .real
            .early_request_filter(session, &mut context.exchange);
        filtered.await
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let asked = session.req_header().clone();
        context.asked = asked.headers.clone();
        if self.breaks(Mutation::RefusalCloses) {
            session.set_keepalive(None);
        }
        self.disguise(session.req_header_mut());
        let filtered = self.real.request_filter(session, &mut context.exchange);
        let is_answered = filtered.await;
        *session.req_header_mut() = asked;
        is_answered
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Context,
    ) -> Result<()> {
        if self.breaks(Mutation::UploadHeldBack) {
            hold_back(body, is_end, &mut context.held);
        }
        let exchange = &mut context.exchange;
        let filtered = self
            .real
            .request_body_filter(session, body, is_end, exchange);
        filtered.await
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        let exchange = &mut context.exchange;
        let mut peer = self.real.upstream_peer(session, exchange).await?;
        let call = exchange.call();
        match self.mutation {
            Mutation::OtherBackend if context.asked.contains_key(MCP_SESSION_ID) => {
                let route = self.config.routes.find(session.req_header().uri.path());
                let own = exchange.backend().unwrap().name();
                let mut backends = route.unwrap().pool.iter();
                if let Some(other) = backends.find(|backend| backend.name() != own) {
                    peer = Box::new(other.peer(call));
                }
            }
            Mutation::IdleStreamCut if call == Call::Get => {
                peer.options.read_timeout = Some(CUT_AFTER);
            }
            Mutation::IdleSubscriptionCut if call == Call::Listen => {
                peer.options.read_timeout = Some(CUT_AFTER);
            }
            Mutation::DeleteWaits if call == Call::Delete => peer.options.read_timeout = None,
            _ => {}
        }
        Ok(peer)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        context: &mut Context,
        error: Box<Error>,
    ) -> Box<Error> {
        if self.breaks(Mutation::NoOtherBackendTried) {
            return error;
        }
        let exchange = &mut context.exchange;
        self.real.fail_to_connect(session, peer, exchange, error)
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        is_reused: bool,
        peer: &HttpPeer,
        fd: RawFd,
        digest: Option<&Digest>,
        context: &mut Context,
    ) -> Result<()> {
        let exchange = &mut context.exchange;
        let connected = self
            .real
            .connected_to_upstream(session, is_reused, peer, fd, digest, exchange);
        connected.await
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        let exchange = &mut context.exchange;
        let filtered = self
            .real
            .upstream_request_filter(session, request, exchange);
        filtered.await?;
        self.falsify_request(request, context);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let status = response.status;
        context.status = status;
        context.given = response.headers.clone();
        if self.breaks(Mutation::AcceptedGetsBody) && status == StatusCode::ACCEPTED {
            let mut header = ResponseHeader::build(status, None)?;
            header.insert_header(header::CONTENT_LENGTH, "2")?;
            session
                .write_response_header(Box::new(header), false)
                .await?;
            session
                .write_response_body(Some(Bytes::from_static(b"{}")), true)
                .await?;
            return Error::e_explain(ErrorType::InternalError, "answered already");
        }
        response.set_status(self.disguised_status(status, context))?;
        let exchange = &mut context.exchange;
        let filtered = self
            .real
            .upstream_response_filter(session, response, exchange);
        filtered.await?;
        response.set_status(status)
    }

    fn upstream_response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Context,
    ) -> Result<Option<Duration>> {
        let given = body.clone();
        let exchange = &mut context.exchange;
        let real = &self.real;
        let delay = real.upstream_response_body_filter(session, body, is_end, exchange)?;
        if self.breaks(Mutation::DocumentUnpublished) {
            *body = given;
        }
        Ok(delay)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let exchange = &mut context.exchange;
        let filtered = self.real.response_filter(session, response, exchange);
        filtered.await?;
        self.falsify_answer(response, context);
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Context,
    ) -> Result<Option<Duration>> {
        let held = &mut context.held;
        match self.mutation {
            Mutation::EventsHeldBack => {
                let last = std::mem::replace(held, body.take().unwrap_or_default().into());
                *body = Some(last.into());
                if is_end {
                    let whole = [&*body.take().unwrap_or_default(), held].concat();
                    *body = Some(whole.into());
                }
            }
            Mutation::EventsMerged => {
                let is_second = !held.is_empty();
                hold_back(body, is_end || is_second, held);
            }
            Mutation::CommentsDropped => drop_lines(body, b':'),
            Mutation::RetryDropped => drop_lines(body, b'r'),
            Mutation::ErrorBodyReplaced if context.status == StatusCode::BAD_REQUEST => {
                *body = body.take().map(|body| "x".repeat(body.len()).into());
            }
            Mutation::EventsDelayed if is_event_stream(&context.given) => {
                return Ok(Some(Duration::from_secs(60)));
            }
            _ => {}
        }
        let exchange = &mut context.exchange;
        self.real
            .response_body_filter(session, body, is_end, exchange)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Context,
    ) -> FailToProxy {
        if self.breaks(Mutation::FailureUnanswered) {
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        }
        let exchange = &mut context.exchange;
        self.real.fail_to_proxy(session, error, exchange).await
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        let exchange = &mut context.exchange;
        self.real.logging(session, error, exchange).await
    }

    fn suppress_error_log(&self, session: &Session, context: &Context, error: &Error) -> bool {
        let exchange = &context.exchange;
        self.real.suppress_error_log(session, exchange, error)
    }

    fn suppress_proxy_warn_log(
        &self,
        session: &Session,
        context: &Context,
        error: &Error,
        log: ProxyWarnLogContext,
    ) -> bool {
        let exchange = &context.exchange;
        self.real
            .suppress_proxy_warn_log(session, exchange, error, log)
    }
}

/// Falsifies the answers that the proxy gives itself: no filter of `ProxyHttp` sees them.
struct OwnAnswers(Mutation);

impl HttpModuleBuilder for OwnAnswers {
    fn init(&self) -> Module {
        Box::new(OwnAnswers(self.0))
    }
}

#[async_trait]
impl HttpModule for OwnAnswers {
    async fn response_header_filter(&mut self, answer: &mut ResponseHeader, _: bool) -> Result<()> {
        let content_type = answer.headers.get(header::CONTENT_TYPE);
        let is_refusal = content_type.is_some_and(|value| value == "application/problem+json");
        match self.0 {
            Mutation::RefusalsWithoutCors if is_refusal => {
                answer.remove_header(&header::ACCESS_CONTROL_ALLOW_ORIGIN);
                answer.remove_header(&header::ACCESS_CONTROL_EXPOSE_HEADERS);
            }
            Mutation::PreflightWithoutMethod => disallow(answer, ", Mcp-Method"),
            Mutation::PreflightWithoutName => disallow(answer, ", Mcp-Name"),
            Mutation::PreflightWithoutParameters => disallow(answer, ", Mcp-Param-Region"),
            Mutation::OutageToldAsNotFound if answer.status == 503 => answer.set_status(404)?,
            Mutation::UnknownSessionUnsaid if answer.status == 404 => answer.set_status(400)?,
            _ => {}
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Holds `body` back until `is_end`.
fn hold_back(body: &mut Option<Bytes>, is_end: bool, held: &mut Vec<u8>) {
    held.extend(body.take().unwrap_or_default());
    *body = Some(match is_end {
        true => std::mem::take(held).into(),
        false => Bytes::new(),
    });
}

/// Drops the lines that begin with `first`.
fn drop_lines(body: &mut Option<Bytes>, first: u8) {
    let Some(whole) = body else { return };
    let lines = whole.split_inclusive(|byte| *byte == b'\n');
    let kept: Vec<_> = lines.filter(|line| line[0] != first).collect();
    *body = Some(kept.concat().into());
}

fn disallow(answer: &mut ResponseHeader, name: &str) {
    let Some(allowed) = answer.headers.get(header::ACCESS_CONTROL_ALLOW_HEADERS) else {
        return;
    };
    let allowed = allowed.to_str().unwrap().replace(name, "");
    let name = header::ACCESS_CONTROL_ALLOW_HEADERS;
    answer.insert_header(name, allowed).unwrap();
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value == "text/event-stream")
}

fn is_other(method: &Method) -> bool {
    *method != Method::OPTIONS && Call::of(method).is_none()
}

fn set(request: &mut RequestHeader, name: HeaderName, value: &'static str) {
    let value = HeaderValue::from_static(value);
    request.insert_header(name, value).unwrap();
}

fn keep_first(request: &mut RequestHeader, name: HeaderName) {
    if let Some(first) = request.headers.get(&name).cloned() {
        request.insert_header(name, first).unwrap();
    }
}

/// Puts back what `name` was before.
fn restore(header: &mut impl Headers, name: HeaderName, before: &HeaderMap) {
    header.remove(&name);
    for value in before.get_all(&name) {
        header.append(name.clone(), value.clone());
    }
}

/// What a request's and an answer's header have in common.
trait Headers {
    fn remove(&mut self, name: &HeaderName);
    fn append(&mut self, name: HeaderName, value: HeaderValue);
}

impl Headers for RequestHeader {
    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.append_header(name, value).unwrap();
    }
}

impl Headers for ResponseHeader {
    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.append_header(name, value).unwrap();
    }
}

const CUT_AFTER: Duration = Duration::from_millis(100);

const STATELESS: &str = "2026-07-28";

const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const LOOKALIKE: HeaderName = HeaderName::from_static("mcp_session_id");
