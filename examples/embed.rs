//! The two ways to have MCP in a Pingora server of your own.
//!
//! ```text
//! cargo run --example embed CONFIGURATION          McpProxy as one of the server's services
//! cargo run --example embed CONFIGURATION own      a ProxyHttp of your own around the gateway
//! ```
//!
//! The second asks every client for an API key before anything else is looked at.

use std::error::Error;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_core::Result;
use pingora_core::protocols::Digest;
use pingora_core::server::Server;
use pingora_core::services::background::background_service;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_mcp::proxy::{
    answer_failure, begin, connection, give_up_unheard, judge, read_ahead, respond, take_body,
    take_header,
};
use pingora_mcp::reaper::Reaper;
use pingora_mcp::{Admission, Exchange, Gateway, Settings, server};
use pingora_proxy::{FailToProxy, ProxyHttp, Session, http_proxy_service};

fn main() -> std::result::Result<(), Box<dyn Error>> {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a configuration file")?;
    let Settings {
        server: conf, mcp, ..
    } = Settings::load(&path)?;
    let (listeners, sessions) = (mcp.listeners.clone(), mcp.sessions.clone());
    let gateway = Arc::new(server::gateway(mcp));
    let certificates = server::certificate_watch(&listeners, Arc::clone(&gateway));
    let backends = server::backend_watch(&conf, Arc::clone(&gateway));
    let streams = server::stream_watch(&sessions, Arc::clone(&gateway));

    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server.add_service(background_service("certificates", certificates));
    server.add_service(background_service("backends", backends));
    server.add_service(background_service("streams", streams));
    if let Some(reaper) = Reaper::new(&server.configuration, Arc::clone(&gateway), None) {
        server.add_service(background_service("reaper", reaper));
    }
    if arguments.next().is_some() {
        let mut service = http_proxy_service(&server.configuration, ApiKeyProxy { gateway });
        for listener in listeners.iter() {
            service.add_listener(listener.endpoint());
        }
        server.add_service(service);
    } else {
        let service = server::proxy_service(&server.configuration, gateway, &listeners);
        server.add_service(service);
    }
    server.run_forever();
}

/// Lets in who has the key. The gateway's functions are called in the order of Pingora's filters.
struct ApiKeyProxy {
    gateway: Arc<Gateway>,
}

#[async_trait]
impl ProxyHttp for ApiKeyProxy {
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Box<Exchange> {
        Box::default()
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
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
        let admitted = self.gateway.admit(request, connection, exchange).await;
        let (header, body) = match admitted {
            // A preflight carries no key, so that it is answered before one is asked for.
            Ok(Admission::Preflight) => (self.gateway.preflight(request)?, Bytes::new()),
            Ok(Admission::Judge) if has_key(request) => {
                return judge(&self.gateway, session, exchange).await;
            }
            Ok(_) if has_key(request) => {
                read_ahead(&self.gateway, session, exchange).await?;
                return Ok(false);
            }
            Ok(_) => {
                let mut header = ResponseHeader::build(401, None)?;
                header.insert_header("WWW-Authenticate", "ApiKey")?;
                header.insert_header("Content-Length", "0")?;
                (header, Bytes::new())
            }
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
        Ok(Box::new(exchange.peer()?))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        request.remove_header("X-Api-Key");
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
        _: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        self.gateway.to_client(response, exchange);
        Ok(())
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: RawFd,
        _: Option<&Digest>,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        self.gateway.backend_connected(exchange);
        Ok(())
    }

    /// Before anything was sent, another backend may have the request.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Self::CTX,
        mut error: Box<pingora_core::Error>,
    ) -> Box<pingora_core::Error> {
        self.gateway.backend_failed(exchange);
        error.set_retry(self.gateway.another_backend(exchange));
        error
    }

    /// Without this, Pingora's own error page would lack CORS, and a body.
    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &pingora_core::Error,
        exchange: &mut Self::CTX,
    ) -> FailToProxy {
        answer_failure(&self.gateway, session, error, exchange).await
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&pingora_core::Error>,
        exchange: &mut Self::CTX,
    ) {
        give_up_unheard(&self.gateway, session, error, exchange).await;
    }

    /// Pingora's own line quotes what a backend sent, its session ids included.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, error: &pingora_core::Error) -> bool {
        log::warn!("request failed: {}", error.etype().as_str());
        true
    }
}

fn has_key(request: &RequestHeader) -> bool {
    let key = request.headers.get("X-Api-Key");
    key.is_some_and(|key| key == "demo-key")
}
