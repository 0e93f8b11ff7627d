//! Connections of clients: how many there may be, and how long one may take for its TLS handshake,
//! to send a header, and to take what is written.
//!
//! Pingora bounds none of these: it accepts without end, a handshake has a fixed minute, its read
//! timeout starts anew with each byte, and it writes headers without a limit. So the handshake is
//! made here, and each connection is wrapped in one that counts, and that knows when a header is
//! awaited.

use std::future::ready;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::Error;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::gateway::Gateway;
use crate::limits::{Bound, ClientTimeouts, Held};
use crate::listener::{Handshakes, Listeners};
use crate::load::Load;
use crate::rejection::Rejection;
use crate::setting::Most;

/// An HTTP application behind the bounds of its clients' connections.
pub struct Connections<A> {
    app: Arc<A>,
    handshakes: Handshakes,
    gateway: Arc<Gateway>,
    load: Load,
    refusing: Arc<Bound>,
    failures: Mutex<Failures>,
    /// Turns true when connections without a request are to close.
    closes: watch::Sender<bool>,
}

/// TLS handshakes that failed.
#[derive(Debug, Default)]
struct Failures {
    told: Option<Instant>,
    /// Since then, without a word at `info`.
    untold: u64,
}

impl<A> Connections<A> {
    /// `app` with the limits that `gateway` has when a connection begins, counted in its load, and
    /// the TLS of `listeners`, which Pingora is to listen on without. It must call
    /// [`begin`](crate::proxy::begin) for each request, or a body counts as more of the header.
    pub fn new(app: A, listeners: &Listeners, gateway: Arc<Gateway>) -> Self {
        Self {
            app: Arc::new(app),
            handshakes: Handshakes::of(listeners),
            load: gateway.load().clone(),
            gateway,
            refusing: Arc::new(Bound::new(MOST_REFUSALS)),
            failures: Mutex::default(),
            closes: watch::Sender::new(false),
        }
    }

    /// The connection after its TLS handshake, if that is made and in time.
    async fn shake_hands(&self, stream: Stream, limit: Duration) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        // While the socket is open, or the address may be another's.
        let client = digest.as_ref().and_then(|digest| digest.peer_addr());
        // Boxed, as are refusals: each connection would have room for the largest of them in its memory.
        let handshake = Box::pin(async {
            tokio::select! {
                biased;
                accepted = timeout(limit, self.handshakes.accept(stream)) => Some(accepted),
                () = closing(&self.closes) => None,
            }
        });
        let (rejection, reason) = match handshake.await? {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => (Rejection::TlsHandshake, reason(&error)),
            Err(_) => (
                Rejection::TlsHandshakeTimeout,
                format!("not within {limit:?}"),
            ),
        };
        self.load.note_refused_connection(rejection);
        let client = client.map_or_else(|| "a client".to_owned(), ToString::to_string);
        self.tell(&format!("TLS handshake failed: {client}: {reason}"));
        None
    }

    /// Tells of a handshake that failed. Once a second, as who scans is not to fill a disk; of each at
    /// `debug`.
    fn tell(&self, failure: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.told.is_some_and(|told| told.elapsed() < TELLING) {
            failures.untold += 1;
            return log::debug!("{failure}");
        }
        failures.told = Some(Instant::now());
        match std::mem::take(&mut failures.untold) {
            0 => log::info!("{failure}"),
            more => log::info!("{failure}; {more} more since the last one that was told"),
        }
    }

    /// Answers a connection whose request is not read, and closes it.
    async fn refuse(&self, stream: impl Future<Output = Option<Stream>>, rejection: Rejection) {
        log::debug!("connection refused: {}", rejection.name());
        self.load.note_refused_connection(rejection);
        let Some(_held) = self.refusing.hold() else {
            return;
        };
        let refusal = async {
            let mut stream = stream.await?;
            let is_http_1 = !matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
            if is_http_1 {
                // What fails is that the client is gone.
                last_words(&mut stream, rejection).await.ok()?;
            }
            Some(())
        };
        let _ = timeout(REFUSAL_LIMIT, refusal).await;
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Connections<A> {
    /// Serves a connection to its end, or refuses it where it does not count, as there are too many.
    async fn serve(&self, stream: Stream, held: Option<Held>, shutdown: &ShutdownWatch) {
        // Not the rules themselves: a connection that stays open would keep them, too.
        let (timeouts, max_header_size) = {
            let rules = self.gateway.rules();
            (rules.timeouts, rules.limits.max_header_size.0)
        };
        let Some(held) = held else {
            let stream = self.shake_hands(stream, timeouts.tls_handshake.0);
            return Box::pin(self.refuse(stream, Rejection::ConnectionsFull)).await;
        };
        let Some(stream) = self.shake_hands(stream, timeouts.tls_handshake.0).await else {
            return;
        };
        let app = Watched::new(&self.app, timeouts.keep_alive.0, max_header_size);
        let app = Arc::new(app);
        let (give_up, given_up) = oneshot::channel();
        let stream = ClientStream {
            is_http_2: matches!(stream.selected_alpn_proto(), Some(ALPN::H2)),
            stream,
            peeked: Bytes::new(),
            awaited: AtomicU8::new(Awaited::Request as u8),
            received: 0,
            deadline: Box::pin(sleep(timeouts.first_byte.0)),
            idle: timeouts.first_byte.0,
            is_blocked: false,
            writing: None,
            timeouts,
            max_header_size,
            give_up: Some(give_up),
            _held: held,
        };
        tokio::select! {
            // First, as what has been given up looks closed to the application.
            biased;
            Ok((stream, rejection)) = given_up => Box::pin(self.refuse(ready(Some(stream)), rejection)).await,
            () = app.serve(stream, shutdown, &self.closes) => {}
        }
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ServerApp for Connections<A> {
    /// Pingora's task has room for a TLS handshake of its own, 9 KiB that would be held to the end of
    /// the connection. So it ends here.
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        // Counted before: a process that ends waits for what is counted.
        let held = self.load.connections.hold();
        let (connections, shutdown) = (Arc::clone(self), shutdown.clone());
        tokio::spawn(async move { connections.serve(stream, held, &shutdown).await });
        None
    }

    /// Called once nothing is listened on any more. Pingora then closes the connections that are
    /// idle, also one on which a request is on its way: those are given a moment to arrive, to be
    /// answered with `Connection: close`.
    async fn cleanup(&self) {
        let _ = timeout(LAST_REQUESTS, self.load.connections.emptied()).await;
        self.closes.send_replace(true);
        self.app.http_cleanup().await;
    }
}

/// Tells the connection before each request that its header is awaited. Each connection has its own,
/// as Pingora asks it for what HTTP/2 limits.
struct Watched<A> {
    app: Arc<A>,
    options: HttpServerOptions,
    max_header_size: u64,
}

impl<A: HttpServerApp> Watched<A> {
    fn new(app: &Arc<A>, keep_alive: Duration, max_header_size: u64) -> Self {
        let mut options = app.server_options().cloned().unwrap_or_default();
        options.h2_idle_timeout = Some(keep_alive);
        Self {
            app: Arc::clone(app),
            options,
            max_header_size,
        }
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Watched<A> {
    /// Pingora's loop has room for a connection of HTTP/2, 3 KiB that would be held to the end of one
    /// of HTTP/1, too. So only what may be HTTP/2 goes there.
    async fn serve(
        self: &Arc<Self>,
        mut stream: ClientStream,
        shutdown: &ShutdownWatch,
        closes: &watch::Sender<bool>,
    ) {
        if stream.is_http_2 || self.options.h2c {
            if Box::pin(stream.begins(closes)).await {
                self.process_new(Box::new(stream), shutdown).await;
            }
            return;
        }
        let mut next = self.first_request(stream, shutdown);
        while let Some(reused) = next.await {
            next = self.next_request(reused, shutdown);
        }
    }

    fn first_request<'c>(
        self: &'c Arc<Self>,
        stream: ClientStream,
        shutdown: &'c ShutdownWatch,
    ) -> Served<'c> {
        let mut session = ServerSession::new_http1(Box::new(stream));
        session.set_keepalive((!*shutdown.borrow()).then_some(WITHOUT_LIMIT));
        session.set_keepalive_reuses_remaining(self.options.keepalive_request_limit);
        self.process_new_http(session, shutdown)
    }

    fn next_request<'c>(
        self: &'c Arc<Self>,
        reused: ReusedHttpStream,
        shutdown: &'c ShutdownWatch,
    ) -> Served<'c> {
        let (stream, settings) = reused.consume();
        let mut session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        self.process_new_http(session, shutdown)
    }
}

/// A request that is being served. The connection goes on with another where it gives that.
type Served<'c> = Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'c>>;

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> HttpServerApp for Watched<A> {
    /// Not `async`: the future of `app` is passed on as it is, without one around it.
    fn process_new_http<'s, 'w, 'f>(
        self: &'s Arc<Self>,
        mut session: ServerSession,
        shutdown: &'w ShutdownWatch,
    ) -> Served<'f>
    where
        's: 'f,
        'w: 'f,
        Self: 'f,
    {
        if let Some(stream) = client_stream(&session) {
            stream.wait_for(Awaited::Request);
            // The connection has its own limit, in finer steps. None is a connection to be closed.
            if session.get_keepalive().is_some() {
                session.set_keepalive(Some(WITHOUT_LIMIT));
            }
        }
        self.app.process_new_http(session, shutdown)
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = self.app.h2_options().unwrap_or_else(default_h2_options);
        options.max_header_list_size(self.max_header_size.try_into().unwrap_or(u32::MAX));
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    async fn http_cleanup(&self) {
        self.app.http_cleanup().await;
    }
}

/// The header of the request of `session` has arrived: its body may take longer.
pub(crate) fn header_arrived(session: &ServerSession) {
    if let Some(stream) = client_stream(session) {
        stream.wait_for(Awaited::Nothing);
    }
}

/// `None` over HTTP/2, and where the server was not made with [`Connections`].
fn client_stream(session: &ServerSession) -> Option<&ClientStream> {
    match session {
        ServerSession::H1(session) => (**session.stream()).as_any().downcast_ref(),
        ServerSession::H2(_) | ServerSession::Subrequest(_) | ServerSession::Custom(_) => None,
    }
}

/// What is awaited of a client, beside what the application limits itself.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Awaited {
    /// The first byte of a request, from now on.
    Request,
    /// The same, since before.
    Byte,
    /// The rest of its header, from now on.
    Rest,
    /// The same, since before.
    Header,
    Nothing,
}

/// A client's connection, which counts as open until it is dropped.
#[derive(Debug)]
struct ClientStream {
    stream: Stream,
    is_http_2: bool,
    /// What has been read of it to see that, and is to be read again.
    peeked: Bytes,
    /// An [`Awaited`]: the session, which tells it, has the stream by a shared reference only.
    awaited: AtomicU8,
    /// The bytes of the header so far.
    received: u64,
    deadline: Pin<Box<Sleep>>,
    /// The limit of the next wait for a request.
    idle: Duration,
    /// Whether a write waits for the client, and its limit, once there was one that did.
    is_blocked: bool,
    writing: Option<Pin<Box<Sleep>>>,
    timeouts: ClientTimeouts,
    max_header_size: u64,
    give_up: Option<oneshot::Sender<(Stream, Rejection)>>,
    _held: Held,
}

impl ClientStream {
    fn wait_for(&self, awaited: Awaited) {
        self.awaited.store(awaited as u8, Ordering::Relaxed);
    }

    fn is_awaited(&self, awaited: Awaited) -> bool {
        self.awaited.load(Ordering::Relaxed) == awaited as u8
    }

    /// Whether a first byte comes, and before connections without a request close: Pingora waits for
    /// that of HTTP/2 whatever ends. The client is the first to speak there, too (RFC 9113 3.4).
    async fn begins(&mut self, closes: &watch::Sender<bool>) -> bool {
        let mut byte = [0];
        let read = tokio::select! {
            biased;
            read = self.read(&mut byte) => read.unwrap_or_default(),
            () = closing(closes) => 0,
        };
        // It is counted when it is read again.
        self.received = 0;
        self.peeked = Bytes::copy_from_slice(&byte[..read]);
        read > 0
    }

    /// Reads a header, or what comes before it.
    fn poll_header(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_awaited(Awaited::Request) {
            self.received = 0;
        }
        // Had the header been complete, it would not be awaited any more.
        if self.received > self.max_header_size && !self.is_http_2 {
            return self.hand_back(Rejection::HeaderTooLarge);
        }
        let before = buffer.filled().len();
        match self.poll_stream(context, buffer) {
            Poll::Pending => {
                self.begin_to_wait();
                task::ready!(self.deadline.as_mut().poll(context));
                match self.is_awaited(Awaited::Byte) {
                    // For who reads, the client has closed.
                    true => Poll::Ready(Ok(())),
                    false => self.hand_back(Rejection::RequestTimeout),
                }
            }
            Poll::Ready(read) => {
                self.receive(buffer.filled().len() - before);
                Poll::Ready(read)
            }
        }
    }

    fn poll_stream(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.peeked.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.peeked.len().min(buffer.remaining());
        buffer.put_slice(&self.peeked.split_to(length));
        Poll::Ready(Ok(()))
    }

    fn receive(&mut self, bytes: usize) {
        if bytes > 0 && (self.is_awaited(Awaited::Request) || self.is_awaited(Awaited::Byte)) {
            self.wait_for(Awaited::Rest);
            self.idle = self.timeouts.keep_alive.0;
        }
        self.received += bytes as u64;
        // What follows in HTTP/2 is bounded by Pingora's own idle timeout.
        if self.is_http_2 && self.received >= HTTP_2_PREFACE.len() as u64 {
            self.wait_for(Awaited::Nothing);
        }
    }

    /// Sets the limit of what is awaited from now on. A header that comes whole needs none, and the
    /// limits of the waits for requests only ever move on, which is cheap.
    fn begin_to_wait(&mut self) {
        let limit = if self.is_awaited(Awaited::Request) {
            self.wait_for(Awaited::Byte);
            self.idle
        } else if self.is_awaited(Awaited::Rest) {
            self.wait_for(Awaited::Header);
            self.timeouts.header.0
        } else {
            return;
        };
        self.deadline.as_mut().reset(Instant::now() + limit);
    }

    /// Fails a write of `length` bytes that takes too long until it is whole. Pingora limits those of
    /// bodies over HTTP/1 alone, and who takes no header would hold the connection.
    fn poll_whole(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            if !written.as_ref().is_ok_and(|written| *written < length) {
                self.is_blocked = false;
            }
            return Poll::Ready(written);
        }
        let limit = self.timeouts.write.0;
        let deadline = self.writing.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !std::mem::replace(&mut self.is_blocked, true) {
            deadline.as_mut().reset(Instant::now() + limit);
        }
        task::ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Gives the connection to who has it refused, and reads no more until it is dropped for that.
    fn hand_back(&mut self, rejection: Rejection) -> Poll<io::Result<()>> {
        if let Some(give_up) = self.give_up.take() {
            let nothing: Stream = Box::new(Cursor::new(Vec::new()));
            let stream = std::mem::replace(&mut self.stream, nothing);
            drop(give_up.send((stream, rejection)));
        }
        Poll::Pending
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_awaited(Awaited::Nothing) {
            return self.poll_stream(context, buffer);
        }
        self.poll_header(context, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.poll_whole(context, written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        let length = bytes.iter().map(|part| part.len()).sum();
        self.poll_whole(context, written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        let flushed = flushed.map_ok(|()| 0);
        self.poll_whole(context, flushed, 0).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.stream).poll_shutdown(context);
        let shut_down = shut_down.map_ok(|()| 0);
        self.poll_whole(context, shut_down, 0).map_ok(drop)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

#[async_trait]
impl Peek for ClientStream {
    /// Whether HTTP/2 begins here, which is all that it is asked for: the read ends with the first
    /// byte that says no. Within the limits of a header, which a read of the stream is without.
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut read = 0;
        while read < buffer.len() && HTTP_2_PREFACE.starts_with(&buffer[..read]) {
            let length = self.read(&mut buffer[read..]).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            read += length;
        }
        self.peeked = Bytes::copy_from_slice(&buffer[..read]);
        self.is_http_2 = self.peeked == HTTP_2_PREFACE;
        Ok(true)
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for ClientStream {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.set_socket_digest(digest);
    }
}

/// Why a handshake failed, as rustls says it, without Pingora's words around that.
fn reason(error: &Error) -> String {
    let told = error.to_string();
    let reason = told.rsplit_once("tls connect error: ");
    reason
        .map_or(told.as_str(), |(_, reason)| reason)
        .to_owned()
}

/// Returns when connections without a request are to close.
async fn closing(closes: &watch::Sender<bool>) {
    // It is never dropped while a connection is served.
    let _ = closes.subscribe().wait_for(|closes| *closes).await;
}

/// Sends the refusal, and reads until the client has closed: with bytes unread, the connection
/// would be reset, and the refusal lost on its way.
async fn last_words(stream: &mut Stream, rejection: Rejection) -> io::Result<()> {
    let (header, body) = rejection.answer().map_err(io::Error::other)?;
    let status = header.status;
    let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    header.header_to_h1_wire(&mut answer);
    answer.extend(b"\r\n");
    answer.extend(body);
    stream.write_all(&answer).await?;
    AsyncWriteExt::shutdown(stream).await?;
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Connections that are being refused at a time, beside those that count as open. Beyond it, one is
/// closed without a word.
const MOST_REFUSALS: Most = Most(Some(64));

/// How long a client may take to hear that it is refused.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// How often the log tells of a TLS handshake that failed.
const TELLING: Duration = Duration::from_secs(1);

/// How long idle connections are kept open after the listeners have closed.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Pingora's word for a connection that is kept without a limit.
const WITHOUT_LIMIT: u64 = 0;

/// RFC 9113 3.4.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
