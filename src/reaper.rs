//! Tells backends of sessions that have ended without them: forgotten by the store, or of clients that
//! never had them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode, header};
use pingora::http::RequestHeader;
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::background::BackgroundService;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::backend::Backend;
use crate::gateway::Gateway;
use crate::mcp::Call;
use crate::mcp::header::MCP_SESSION_ID;
use crate::metrics::{Metrics, Reaped};
use crate::rejection::Rejection;
use crate::session::{Abandoned, Binding, Claim, ReapSettings};

/// Sends a DELETE for each session that a gateway and its store have given up. A task for
/// `pingora_core::services::background::background_service`.
#[derive(Debug)]
pub struct Reaper(Arc<Teller>);

struct Teller {
    gateway: Arc<Gateway>,
    settings: ReapSettings,
    connector: Connector,
    metrics: Option<Arc<Metrics>>,
}

impl Reaper {
    /// The reaper of `gateway`'s sessions, that counts in `metrics`. `None` where
    /// [`with_reaping`](Gateway::with_reaping) has not told the gateway to keep anything for it.
    pub fn new(
        conf: &ServerConf,
        gateway: Arc<Gateway>,
        metrics: Option<Arc<Metrics>>,
    ) -> Option<Self> {
        let settings = gateway.reaping()?.settings();
        let options = ConnectorOptions::from_server_conf(conf);
        Some(Self(Arc::new(Teller {
            gateway,
            settings,
            connector: Connector::new(Some(options)),
            metrics,
        })))
    }

    async fn run(&self) {
        let Self(teller) = self;
        let settings = &teller.settings;
        let (rate, most) = (
            clamp(settings.max_per_second.0),
            clamp(settings.max_waiting.0),
        );
        // A backend that hangs holds up its own sessions alone, and only so many of them.
        let mut places = HashMap::new();
        let mut told = JoinSet::new();
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            while told.try_join_next().is_some() {}
            places.retain(|_, places: &mut Arc<Semaphore>| Arc::strong_count(places) > 1);
            for (session, claim) in teller.take(rate).await {
                let backend = (session.route.clone(), session.backend.clone());
                let places = places.entry(backend).or_insert_with(|| {
                    let most = clamp(settings.max_per_backend.0);
                    Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))
                });
                let waiting = Arc::strong_count(places) - 1;
                let places = (waiting < most).then(|| Arc::clone(places));
                told.spawn(Arc::clone(teller).end(session, claim, places));
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Reaper {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = self.run() => (),
            _ = shutdown.changed() => (),
        }
    }
}

impl Teller {
    /// The next sessions, those first that only this process knows of.
    async fn take(&self, most: usize) -> Vec<(Binding, Option<Claim>)> {
        let own = self.gateway.reaping().map(|reaping| reaping.take(most));
        let own = own.unwrap_or_default();
        let abandoned = self.gateway.store().abandoned(most - own.len()).await;
        let abandoned = abandoned.unwrap_or_else(|error| {
            log::debug!("no session taken to be ended: {error}");
            Vec::new()
        });
        let claimed = |Abandoned { claim, binding }| (binding, Some(claim));
        let own = own.into_iter().map(|session| (session, None));
        own.chain(abandoned.into_iter().map(claimed)).collect()
    }

    /// Has `session` ended at its backend, in one of the backend's `places`. Without, too many wait for
    /// these; what was claimed in a shared store is left to whoever claims it once the lease is over.
    async fn end(
        self: Arc<Self>,
        session: Binding,
        claim: Option<Claim>,
        places: Option<Arc<Semaphore>>,
    ) {
        let Some(places) = places else {
            return self.count(Reaped::Dropped);
        };
        let authorization = match self.gateway.reaping() {
            Some(reaping) => reaping.take_authorization(&session),
            None => None,
        };
        let outcome = self.tell(&session, authorization.as_ref(), &places).await;
        self.count(outcome);
        if let Some(claim) = claim
            && let Err(error) = self.gateway.store().settle(claim).await
        {
            log::debug!("ended session not settled: {error}");
        }
    }

    fn count(&self, outcome: Reaped) {
        if let Some(metrics) = &self.metrics {
            metrics.session_reaped(outcome);
        }
    }

    /// Tells the backend of `session`, again where it is not reached: to end a session twice does no
    /// harm (RFC 9110 9.2.2).
    async fn tell(
        &self,
        session: &Binding,
        authorization: Option<&HeaderValue>,
        places: &Semaphore,
    ) -> Reaped {
        let mut pauses = PAUSES.into_iter();
        loop {
            let place = places.acquire().await;
            let told = self.try_to_tell(session, authorization).await;
            drop(place);
            match (told, pauses.next()) {
                (Ok(outcome), _) => break outcome,
                (Err(_), None) => break Reaped::Failed,
                (Err(error), Some(pause)) => {
                    let cause = error.etype().as_str();
                    log::debug!(
                        "session not ended: backend {}, cause {cause}",
                        session.backend
                    );
                    sleep(pause).await;
                }
            }
        }
    }

    async fn try_to_tell(
        &self,
        session: &Binding,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reaped> {
        let rules = self.gateway.rules();
        let mut routes = rules.routes.iter();
        let Some(route) = routes.find(|route| route.path == session.route) else {
            return Ok(Reaped::Gone);
        };
        let backend = match route.pool.get(&session.backend) {
            Ok(backend) => backend,
            Err(Rejection::UnknownSession) => return Ok(Reaped::Gone),
            Err(rejection) => return Err(rejection.into()),
        };
        let request = request(&backend, session, authorization)?;
        let sent = timeout(LONGEST, self.send(request, backend.peer(Call::Delete)));
        let status = sent
            .await
            .map_err(|_| Error::new(ErrorType::ReadTimedout))??;
        Ok(match status {
            StatusCode::NOT_FOUND => Reaped::Gone,
            StatusCode::METHOD_NOT_ALLOWED => Reaped::Refused,
            status if status.is_success() => Reaped::Ended,
            _ => Reaped::Failed,
        })
    }

    /// The status of the answer to `request`.
    async fn send(&self, request: RequestHeader, peer: HttpPeer) -> Result<StatusCode> {
        let (mut connection, _) = self.connector.get_http_session(&peer).await?;
        connection.set_read_timeout(peer.options.read_timeout);
        connection.set_write_timeout(peer.options.write_timeout);
        connection.write_request_header(Box::new(request)).await?;
        connection.finish_request_body().await?;
        let status = loop {
            connection.read_response_header().await?;
            match connection.response_header().map(|header| header.status) {
                Some(status) if status.is_informational() => {}
                Some(status) => break status,
                None => return Err(Error::new(ErrorType::InvalidHTTPHeader)),
            }
        };
        let mut left = MAX_BODY;
        while let Some(part) = connection.read_response_body().await? {
            let Some(less) = left.checked_sub(part.len()) else {
                // Not worth a connection: it closes.
                return Ok(status);
            };
            left = less;
        }
        if let HttpSession::H1(connection) = &mut connection {
            connection.respect_keepalive();
        }
        let idle_timeout = peer.options.idle_timeout;
        let released = self
            .connector
            .release_http_session(connection, &peer, idle_timeout);
        released.await;
        Ok(status)
    }
}

impl fmt::Debug for Teller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(formatter)
    }
}

/// As a client's own DELETE would be, but for `MCP-Protocol-Version`: what was agreed on is not known
/// here, and without it servers take the session's.
fn request(
    backend: &Backend,
    session: &Binding,
    authorization: Option<&HeaderValue>,
) -> Result<RequestHeader> {
    let mut request = RequestHeader::build(Method::DELETE, b"/", None)?;
    request.set_uri(backend.uri().clone());
    request.insert_header(header::HOST, backend.host().clone())?;
    request.insert_header(MCP_SESSION_ID, session.session.to_header())?;
    if let Some(authorization) = authorization {
        request.insert_header(header::AUTHORIZATION, authorization.clone())?;
    }
    for (name, value) in backend.headers() {
        request.insert_header(name.clone(), value.clone())?;
    }
    Ok(request)
}

fn clamp(count: u64) -> usize {
    count.try_into().unwrap_or(usize::MAX)
}

/// How often it is asked who has ended.
const TURN: Duration = Duration::from_secs(1);

/// How long a backend that was not reached is left alone, each time.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(25),
];

/// The longest that one attempt may take, whatever the route's limits are.
const LONGEST: Duration = Duration::from_secs(60);

/// The longest body of an answer that is read to keep its connection, in bytes.
const MAX_BODY: usize = 64 * 1024;
