//! Clients of a fleet, that of the official SDK among them, and the load balancer in front of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rmcp::model::{CallToolRequestParams, ClientConfig};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientLifecycleMode, ClientServiceExt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::world::{Home, Reply, Session, World, random};
use crate::support::{LOOPBACK, within};

/// A client that makes calls until the world is over.
pub(crate) struct Client {
    world: Arc<World>,
    answered: Arc<AtomicUsize>,
}

impl Client {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        world.answered.lock().unwrap().push(Arc::clone(&answered));
        Self {
            world: Arc::clone(world),
            answered,
        }
    }

    fn goes_on(&self) -> bool {
        !self.world.is_over.load(Ordering::SeqCst)
    }

    /// Calls at any proxy, and returns its session, which all proxies serve then.
    pub(crate) async fn spray(self) -> Session {
        let turn = self.world.turns.acquire().await.unwrap();
        let mut session = self.world.open().await;
        drop(turn);
        while self.goes_on() {
            let _turn = self.world.turns.acquire().await.unwrap();
            match self.world.call(random(3), &session).await {
                Reply::Is(..) => _ = self.answered.fetch_add(1, Ordering::SeqCst),
                Reply::StartOver => session = self.world.open().await,
                Reply::TryLater => {}
            }
        }
        for proxy in 0..3 {
            let last = self.world.call(proxy, &session).await;
            assert!(matches!(last, Reply::Is(..)), "{last:?}");
        }
        session
    }

    /// The official SDK's client, which knows one address, and starts over by itself.
    pub(crate) async fn live_by_the_sdk(self, address: SocketAddr) {
        let transport = StreamableHttpClientTransport::from_uri(format!("http://{address}/mcp"));
        let client = ClientConfig::default()
            .serve_with_lifecycle(transport, ClientLifecycleMode::Initialize);
        let client = within("a session", client).await.unwrap();
        let mut home: Option<Home> = None;
        while self.goes_on() {
            let _turn = self.world.turns.acquire().await.unwrap();
            let then = self.world.outages();
            let called = client.call_tool(CallToolRequestParams::new("whoami"));
            match tokio::time::timeout(SDK_PATIENCE, called).await {
                Ok(Ok(result)) => {
                    let told = serde_json::to_value(&result.content).unwrap();
                    let told = Home(told[0]["text"].as_str().unwrap().to_owned());
                    if let Some(home) = home.replace(told.clone()) {
                        let is_right = home == told || self.world.has_lost(&home);
                        assert!(is_right, "{told:?} in place of {home:?}");
                    }
                    self.answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(Err(error)) => {
                    let is_all_there = then.iter().all(|then| then % 2 == 0);
                    let was_all_there = is_all_there && then == self.world.outages();
                    assert!(!was_all_there, "{error:?}");
                }
                // It waits for an answer of a connection that was lost. The next call is answered.
                Err(_) => {}
            }
        }
        client.cancel().await.unwrap();
    }
}

/// A load balancer that knows nothing but connections: each goes to a proxy that takes it.
pub(crate) async fn balancer(world: &Arc<World>) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let world = Arc::clone(world);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let first = random(3);
                for proxy in [first, first + 1, first + 2] {
                    if let Ok(mut proxy) = TcpStream::connect(world.addresses[proxy % 3]).await {
                        // What fails is that one of them has left.
                        let _ = copy_bidirectional(&mut client, &mut proxy).await;
                        break;
                    }
                }
            });
        }
    });
    address
}

/// After this, what the SDK waits for will not come.
const SDK_PATIENCE: Duration = Duration::from_secs(5);
