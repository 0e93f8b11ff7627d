//! `McpProxy`: the gateway as a Pingora HTTP proxy. This is the one place that knows Pingora's
//! `Session`, and the one that writes an answer of the proxy's own.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{EXPECT, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::timeout;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::backend::Upload;
use crate::connections::header_arrived;
use crate::exchange::{Connection, Exchange};
use crate::gateway::{Admission, Gateway};
use crate::headers::take_request;
use crate::host::Reach;
use crate::mcp::Call;
use crate::metrics::Connected;
use crate::observe::{Observer, Transfer};
use crate::rejection::{REFUSED, Rejection};
use crate::setting::Limit;

/// An MCP gateway that a Pingora server can host.
///
/// To add filters of your own, implement `ProxyHttp` yourself with an [`Exchange`] in its
/// context and call the [`Gateway`]'s functions as this type does.
#[derive(Debug)]
pub struct McpProxy {
    gateway: Arc<Gateway>,
    observer: Observer,
}

impl McpProxy {
    /// Serves what `gateway` routes. Keep an `Arc` of it to replace its rules later.
    pub fn new(gateway: impl Into<Arc<Gateway>>) -> Self {
        Self {
            gateway: gateway.into(),
            observer: Observer::default(),
        }
    }

    /// Tells `observer` of each request.
    #[must_use]
    pub fn with_observer(self, observer: Observer) -> Self {
        Self { observer, ..self }
    }

    /// What it serves.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }
}

impl From<Gateway> for McpProxy {
    fn from(gateway: Gateway) -> Self {
        Self::new(gateway)
    }
}

impl From<Arc<Gateway>> for McpProxy {
    fn from(gateway: Arc<Gateway>) -> Self {
        Self::new(gateway)
    }
}

#[async_trait]
impl ProxyHttp for McpProxy {
    /// In a box, as Pingora has room for three in the memory of each request.
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Box<Exchange> {
        Box::default()
    }

    /// No modules: an empty set costs nothing a request, and nothing may compress a stream.
    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        self.observer.arrived(exchange);
        begin(&self.gateway, session, exchange);
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<bool> {
        let connection = connection(session);
        let request = session.req_header();
        let (header, body) = match self.gateway.admit(request, connection, exchange).await {
            Ok(Admission::Forward) => {
                expect_next(session, exchange);
                read_ahead(&self.gateway, session, exchange).await?;
                return Ok(false);
            }
            Ok(Admission::Judge) => {
                expect_next(session, exchange);
                return judge(&self.gateway, session, exchange).await;
            }
            Ok(Admission::Preflight) => (self.gateway.preflight(request)?, Bytes::new()),
            Err(rejection) => rejection.answer()?,
        };
        respond(&self.gateway, session, exchange, header, body).await?;
        Ok(true)
    }

    async fn upstream_peer(
        &self,
        _: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        self.gateway.route(exchange)?;
        self.observer.routed(exchange);
        Ok(Box::new(exchange.peer()?))
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.observer.connect_failed(exchange);
        if !is_own_fault(&error) {
            self.gateway.backend_failed(exchange);
        }
        // Nothing of the request has been read or sent, so that another backend may have it.
        if self.gateway.another_backend(exchange) {
            error.set_retry(true);
            log::warn!(
                "trying another backend: {:?}, cause {}",
                exchange.unreachable(),
                cause(&error)
            );
        }
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        is_reused: bool,
        _: &HttpPeer,
        _: RawFd,
        _: Option<&Digest>,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        let connected = match is_reused {
            true => Connected::Reused,
            false => Connected::New,
        };
        self.observer.connected(exchange, connected);
        self.gateway.backend_connected(exchange);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        self.gateway.to_backend(request, exchange)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        let body = body.as_ref();
        Ok(self.gateway.body_from_client(body, is_end, exchange)?)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        take_header(&self.gateway, session, response, exchange).await
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        exchange: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        take_body(&self.gateway, body, is_end, exchange)?;
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        if session.req_header().version == Version::HTTP_10
            && response.remove_header(&TRANSFER_ENCODING).is_some()
        {
            // An HTTP/1.0 client knows no chunks: the connection's end is the body's
            // (RFC 9112 6.1, 6.3).
            session.set_keepalive(None);
        }
        if !response.status.is_informational() {
            self.observer.answered(exchange);
        }
        self.gateway.to_client(response, exchange);
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Self::CTX,
    ) -> FailToProxy {
        log_failure(error, exchange);
        answer_failure(&self.gateway, session, error, exchange).await
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        exchange: &mut Self::CTX,
    ) {
        give_up_unheard(&self.gateway, session, error, exchange).await;
        let transfer = Transfer {
            request: session.req_header(),
            status: session.response_written().map(|header| header.status),
            received: session.body_bytes_read() as u64,
            sent: session.body_bytes_sent() as u64,
        };
        // An answer that was held back is one, as any other.
        let error = error.filter(|error| *error.etype() != HELD);
        self.observer.finished(exchange, transfer, error);
    }

    /// Pingora's own lines quote what a backend sent, ids included, and whole request targets:
    /// `log_failure` writes one in their place.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Self::CTX,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// Takes up a request whose header has come, for `ProxyHttp::early_request_filter`: gives it its
/// limits, and forgets how its names and its target were spelt.
pub fn begin(gateway: &Gateway, session: &mut Session, exchange: &mut Exchange) {
    header_arrived(session.as_downstream());
    let request = session.req_header_mut();
    *request = take_request(request).into();
    let timeouts = &gateway.rules_of(exchange).timeouts;
    // A connection that the client wants closed stays so.
    if session.get_keepalive().is_some() {
        let seconds = timeouts.keep_alive.0.as_secs_f64().ceil();
        session.set_keepalive(Some(seconds as u64));
    }
    let version = session.req_header().version;
    // A client of HTTP/1.0 knows neither interim answers nor what asks for one (RFC 9110 10.1.1,
    // 15.2), and over HTTP/2 Pingora passes none.
    if matches!(version, Version::HTTP_10 | Version::HTTP_2) {
        session.req_header_mut().remove_header(&EXPECT);
        session.set_ignore_info_resp(true);
    }
    // Otherwise Pingora drops requests that come before the answer to the one before.
    session.set_pipelining_enabled(true);
    session.set_read_timeout(timeouts.body.0);
    session.set_write_timeout(Some(timeouts.write.0));
    session.set_total_drain_timeout(Some(timeouts.drain.0));
}

/// Lets another request follow on the connection before this one is answered, unless the answer is a
/// stream: nothing can follow one without an end, and while something waits to, Pingora does not
/// see that the client leaves.
fn expect_next(session: &mut Session, exchange: &Exchange) {
    let is_stream = matches!(exchange.call(), Call::Get | Call::Listen);
    session.set_pipelining_enabled(!is_stream);
}

/// Reads what a body over HTTP/2 begins with, mostly all of it, within the limit of its silence:
/// Pingora has none there, and who sends nothing would hold a request at a backend. So would who stops
/// later, and the silence of what is left is limited at the backend's connection
/// ([`Exchange::peer`]). For `ProxyHttp::request_filter`, on [`Admission::Forward`]. Pingora sends the
/// backend what was read here.
///
/// # Errors
/// The body cannot be read, or not in time.
pub async fn read_ahead(
    gateway: &Gateway,
    session: &mut Session,
    exchange: &mut Exchange,
) -> Result<()> {
    let Limit(silence) = gateway.rules_of(exchange).timeouts.body;
    let (Some(silence), Some(_)) = (silence, session.as_downstream().as_http2()) else {
        return Ok(());
    };
    session.enable_retry_buffering();
    let mut length = 0;
    while length < READ_AHEAD {
        let read = timeout(silence, session.read_request_body()).await;
        let late = |_| Error::new(ErrorType::ReadTimedout);
        let Some(part) = read.map_err(late).flatten().map_err(Error::into_down)? else {
            return Ok(());
        };
        length += part.len();
    }
    exchange.upload = Some(Upload::new(silence));
    Ok(())
}

/// Reads the body of a request that was admitted as [`Admission::Judge`], has it judged, and
/// answers where it is refused. For `ProxyHttp::request_filter`, and as there, `true` says that the
/// request is answered. Pingora sends the backend what was read here.
///
/// # Errors
/// The body cannot be read, or not in time, or the client not written to.
pub async fn judge(
    gateway: &Gateway,
    session: &mut Session,
    exchange: &mut Exchange,
) -> Result<bool> {
    let read = timeout(CLIENT_MESSAGE_TIMEOUT, read_message(session)).await;
    let late = |_| Error::new(ErrorType::ReadTimedout);
    let body = read.map_err(late).flatten().map_err(Error::into_down)?;
    let judged = gateway.judge(session.req_header(), body.as_deref(), exchange);
    let Err(rejection) = judged.await else {
        return Ok(false);
    };
    let (header, body) = rejection.answer_to(exchange.request_id())?;
    respond(gateway, session, exchange, header, body).await?;
    Ok(true)
}

/// The whole body. `None` where it is longer than what Pingora keeps to send it on.
async fn read_message(session: &mut Session) -> Result<Option<Bytes>> {
    session.enable_retry_buffering();
    if session.req_header_mut().remove_header(&EXPECT).is_some() {
        // Or Pingora takes this for an answer to a request that it need not read.
        session.set_close_on_response_before_downstream_finish(false);
        session.write_continue_response().await?;
    }
    while session.read_request_body().await?.is_some() {
        if session.retry_buffer_truncated() {
            return Ok(None);
        }
    }
    Ok(Some(session.get_retry_buffer().unwrap_or_default()))
}

/// Writes an answer of the proxy's own. The connection goes on where the client lets it.
///
/// # Errors
/// The client cannot be written to.
pub async fn respond(
    gateway: &Gateway,
    session: &mut Session,
    exchange: &Exchange,
    mut header: ResponseHeader,
    body: Bytes,
) -> Result<()> {
    gateway.to_client(&mut header, exchange);
    // Over HTTP/1, Pingora reads what is left of the request's body, unless the client waits to be
    // asked for it.
    let waits = session.req_header().headers.contains_key(EXPECT);
    session.set_close_on_response_before_downstream_finish(waits);
    let is_whole = body.is_empty();
    let written = session.write_response_header(Box::new(header), is_whole);
    written.await.map_err(Error::into_down)?;
    if !is_whole {
        let written = session.write_response_body(Some(body), true);
        written.await.map_err(Error::into_down)?;
    }
    // Over HTTP/2 it would reset the stream, on which many clients forget the answer. With an error,
    // the client has left.
    if session.as_downstream().as_http2().is_some() {
        let drained = session.as_downstream_mut().drain_request_body();
        if let Err(error) = drained.await {
            log::debug!("rest of the request not read: {error}");
        }
    }
    Ok(())
}

/// Takes the header of a backend's answer, for `ProxyHttp::upstream_response_filter`, and keeps that
/// of an answer that is held back from the client. Pingora has no such thing: it sends a header
/// before a body's first filter runs. But it can be told to drop interim answers, so `response` is
/// made one.
///
/// # Errors
/// The gateway refuses the answer.
pub async fn take_header(
    gateway: &Gateway,
    session: &mut Session,
    response: &mut ResponseHeader,
    exchange: &mut Exchange,
) -> Result<()> {
    gateway.from_backend(response, exchange).await?;
    if exchange.is_held() {
        session.set_ignore_info_resp(true);
        *response = ResponseHeader::build(StatusCode::EARLY_HINTS, None)?;
    }
    Ok(())
}

/// Takes the next part of its body, for `ProxyHttp::upstream_response_body_filter`.
///
/// # Errors
/// The answer is held back, and whole: [`answer_failure`] answers in its place.
pub fn take_body(
    gateway: &Gateway,
    body: &mut Option<Bytes>,
    is_end: bool,
    exchange: &mut Exchange,
) -> Result<()> {
    gateway.body_from_backend(body, is_end, exchange);
    if is_end && exchange.is_held() {
        return Error::e_explain(HELD, "the answer is held back and whole");
    }
    Ok(())
}

/// Answers a request that failed on its way, for `ProxyHttp::fail_to_proxy`: with the answer that
/// was held back, else with the refusal of the gateway's if there was one, else by what went wrong.
/// A client that has left gets nothing.
pub async fn answer_failure(
    gateway: &Gateway,
    session: &mut Session,
    error: &Error,
    exchange: &mut Exchange,
) -> FailToProxy {
    let failed = |error_code| FailToProxy {
        error_code,
        can_reuse_downstream: false,
    };
    let is_answered = session
        .response_written()
        .is_some_and(|header| !header.status.is_informational());
    if is_answered && exchange.is_ended() {
        // The backend's part ended here, in mid-body; the client's ends in order.
        if let Err(error) = session.as_downstream_mut().finish_body().await {
            log::debug!("stream not ended in order: {error}");
        }
    }
    if is_client_gone(error) || is_answered {
        return failed(0);
    }
    let answer = if *error.etype() == HELD {
        gateway.held_answer(exchange).await
    } else {
        let rejection = match exchange.rejection() {
            Some(refused) => refused,
            None if exchange.is_ended() => Rejection::NoBackend,
            None if exchange.is_stalled() => Rejection::RequestTimeout,
            None => {
                let lost = gateway.session_lost(exchange).await;
                lost.unwrap_or_else(|| Rejection::of(error))
            }
        };
        exchange.refuse(rejection).answer()
    };
    // Pingora closes the connection after an error; the client is told so.
    session.set_keepalive(None);
    let answered = match answer {
        Ok((header, body)) => {
            let status = header.status.as_u16();
            let answered = respond(gateway, session, exchange, header, body).await;
            answered.map(|()| status)
        }
        Err(error) => Err(error),
    };
    let status = match answered {
        Ok(status) => status,
        Err(error) => {
            log::debug!("answer not written: {error}");
            return failed(0);
        }
    };
    // Closed with bytes unread, the connection would be reset, and the answer lost on its way.
    if session.as_downstream().as_http2().is_none()
        && let Err(error) = session.as_downstream_mut().drain_request_body().await
    {
        log::debug!("rest of the request not read: {error}");
    }
    failed(status)
}

/// Ends the session that a request has opened whose client left without the answer that tells its id,
/// for `ProxyHttp::logging`. `error` is what that is called with.
pub async fn give_up_unheard(
    gateway: &Gateway,
    session: &Session,
    error: Option<&Error>,
    exchange: &mut Exchange,
) {
    let header = session.response_written();
    let is_told = header.is_some_and(|header| !header.status.is_informational());
    // Who has the id may resume a stream; what is lost of any other answer is lost for good.
    let is_lost = !(is_told && exchange.is_stream);
    if is_lost && error.is_some_and(is_client_gone) {
        gateway.client_left(exchange).await;
    }
}

/// A client that leaves is no failure; a refusal, an end and an answer that is held back were decided
/// on.
fn log_failure(error: &Error, exchange: &Exchange) {
    let is_decided = [REFUSED, HELD].contains(error.etype());
    let is_intended = is_decided || exchange.is_ended() || exchange.is_stalled();
    if *error.esource() == ErrorSource::Downstream || is_intended {
        return;
    }
    let failure = Rejection::of(error).name();
    let cause = cause(error);
    match exchange.backend() {
        Some(backend) => log::warn!("{failure}: backend {backend}, cause {cause}"),
        None => log::warn!("{failure}: cause {cause}"),
    }
}

/// What went wrong, without anything that was sent. Of TLS, its reason is told too: nothing but
/// names can be in it.
fn cause(error: &Error) -> &str {
    match (error.etype(), &error.context) {
        (ErrorType::TLSHandshakeFailure, Some(reason)) => reason.as_str(),
        (kind, _) => kind.as_str(),
    }
}

/// How the client of `session` is connected. A Unix socket counts as loopback.
pub fn connection(session: &Session) -> Connection {
    let ip = |address: Option<&pingora_core::protocols::l4::socket::SocketAddr>| {
        Some(address?.as_inet()?.ip().to_canonical())
    };
    let digest = session.digest();
    Connection {
        client: ip(session.client_addr()),
        reach: match ip(session.server_addr()) {
            Some(ip) if !ip.is_loopback() => Reach::Network,
            _ => Reach::Loopback,
        },
        tls: digest.is_some_and(|digest| digest.ssl_digest.is_some()),
    }
}

/// Whether a connect failed for want of something on this machine, as descriptors.
fn is_own_fault(error: &Error) -> bool {
    use ErrorType::{BindError, InternalError, SocketError};
    matches!(error.etype(), BindError | InternalError | SocketError)
}

fn is_client_gone(error: &Error) -> bool {
    use ErrorType::{ConnectionClosed, H2Error, ReadError, WriteError, WriteTimedout};
    *error.esource() == ErrorSource::Downstream
        && matches!(
            error.etype(),
            // Over HTTP/2, a stream that was reset is an H2Error.
            ConnectionClosed | H2Error | ReadError | WriteError | WriteTimedout
        )
}

/// The type of the error that ends the exchange with a backend whose answer is held back.
const HELD: ErrorType = ErrorType::Custom("AnswerHeld");

/// With one frame more (RFC 9113 6.5.2, `SETTINGS_MAX_FRAME_SIZE`), not above the 64 KiB that
/// Pingora keeps to send on.
const READ_AHEAD: usize = 48 * 1024;

/// How long a message that is judged may take to arrive.
const CLIENT_MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
