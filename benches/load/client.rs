//! One client: a connection, requests on it, and a strict look at what comes back.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Outcome;
use super::message::{Message, SESSION};

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http1OverTls,
    Http2,
}

/// Where clients connect to, and how.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

/// A connection, or a share of one. With a session, all requests are of it.
pub(crate) struct Client {
    sender: Sender,
    uri: Uri,
    host: HeaderValue,
    session: Option<HeaderValue>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(crate) async fn connect(target: &Target) -> Outcome<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let sender = match target.protocol {
            Protocol::Http1 => Sender::Http1(http1(stream).await?),
            Protocol::Http1OverTls => Sender::Http1(http1(handshake(stream, target).await?).await?),
            Protocol::Http2 => {
                let stream = TokioIo::new(handshake(stream, target).await?);
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        };
        let host = target.address.to_string();
        let uri = match &sender {
            Sender::Http1(_) => PATH.parse()?,
            Sender::Http2(_) => format!("https://{host}{PATH}").parse()?,
        };
        Ok(Self {
            sender,
            uri,
            host: host.try_into()?,
            session: None,
        })
    }

    /// Another client on the same connection, where the protocol has room for it.
    pub(crate) fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => Some(Self {
                sender: Sender::Http2(sender.clone()),
                uri: self.uri.clone(),
                host: self.host.clone(),
                session: None,
            }),
        }
    }

    pub(crate) fn with_session(mut self, session: Option<HeaderValue>) -> Self {
        self.session = session;
        self
    }

    pub(crate) fn session(&self) -> Option<HeaderValue> {
        self.session.clone()
    }

    /// Opens a session, which the client then has.
    pub(crate) async fn initialize(&mut self) -> Outcome<()> {
        self.session = None;
        let response = self.send(Message::Initialize).await?;
        let session = response.headers().get(SESSION).cloned();
        check(Message::Initialize, response).await?;
        self.session = Some(session.ok_or("initialize was answered without a session id")?);
        Ok(())
    }

    /// Sends `message` and reads its answer, which has to be the right one.
    pub(crate) async fn call(&mut self, message: Message) -> Outcome<()> {
        let response = self.send(message).await?;
        if message != Message::End {
            self.check_session(message, &response)?;
        }
        check(message, response).await
    }

    /// Opens the stream of the session.
    pub(crate) async fn listen(&mut self) -> Outcome<Incoming> {
        let response = self.send(Message::Listen).await?;
        self.check_session(Message::Listen, &response)?;
        check_head(Message::Listen, &response)?;
        Ok(response.into_body())
    }

    /// Sends `message` as the last one of the connection.
    pub(crate) async fn call_and_close(&mut self, message: Message) -> Outcome<()> {
        let mut request = self.request(message)?;
        request
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        let response = self.send_request(request).await?;
        check(message, response).await
    }

    async fn send(&mut self, message: Message) -> Outcome<Response<Incoming>> {
        let request = self.request(message)?;
        self.send_request(request).await
    }

    fn request(&self, message: Message) -> Outcome<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(message.body()));
        *request.method_mut() = message.method();
        *request.uri_mut() = self.uri.clone();
        match self.sender {
            Sender::Http1(_) => drop(request.headers_mut().insert(HOST, self.host.clone())),
            Sender::Http2(_) => *request.version_mut() = Version::HTTP_2,
        }
        let headers = message.headers().iter().cloned();
        request.headers_mut().extend(headers);
        if message.is_of_a_session() {
            let session = self.session.clone().ok_or("the client has no session")?;
            request.headers_mut().insert(SESSION, session);
        }
        Ok(request)
    }

    async fn send_request(&mut self, request: Request<Full<Bytes>>) -> Outcome<Response<Incoming>> {
        Ok(match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// The answer has the id that the client knows, and has none without a session.
    fn check_session(&self, message: Message, response: &Response<Incoming>) -> Outcome<()> {
        let session = match message.is_of_a_session() {
            true => self.session.as_ref(),
            false => None,
        };
        if response.headers().get(SESSION) == session {
            return Ok(());
        }
        Err(format!("{message:?} was answered with another session's id").into())
    }
}

async fn http1<S>(stream: S) -> Outcome<http1::SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn handshake(
    stream: TcpStream,
    target: &Target,
) -> Outcome<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut config = rustls::ClientConfig::clone(&target.tls);
    let protocol = match target.protocol {
        Protocol::Http2 => "h2",
        Protocol::Http1 | Protocol::Http1OverTls => "http/1.1",
    };
    config.alpn_protocols = vec![protocol.into()];
    let name = ServerName::try_from("localhost")?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector.connect(name, stream).await?)
}

async fn check(message: Message, response: Response<Incoming>) -> Outcome<()> {
    check_head(message, &response)?;
    let body = response.into_body().collect().await?.to_bytes();
    if body != message.answer() {
        let body = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned();
        return Err(format!("{message:?} was answered with another body: {body}").into());
    }
    Ok(())
}

fn check_head(message: Message, response: &Response<Incoming>) -> Outcome<()> {
    if response.status() != StatusCode::OK {
        return Err(format!("{message:?} was answered by {}", response.status()).into());
    }
    if response.headers().get(CONTENT_TYPE) != message.content_type().as_ref() {
        return Err(format!("{message:?} was answered with another content type").into());
    }
    Ok(())
}

const PATH: &str = "/mcp";

/// The most of a wrong body that is shown.
const SHOWN: usize = 300;
