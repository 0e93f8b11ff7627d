//! Streams that can be ended from here, silent ones too.
//!
//! Pingora wakes a filter when a byte comes, and a stream may have none for hours. What waits for
//! the byte is the connection, so that is where the end is made: for whoever reads it, the backend
//! has closed. The proxy then closes the client's body in order.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::l4::Connect;
use pingora_core::protocols::l4::ext::{connect, set_tcp_keepalive};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// What ends all streams of a process at once.
#[derive(Debug)]
pub struct Ending(watch::Sender<bool>);

impl Default for Ending {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Ending {
    /// Ends all streams, and each new one at once.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// When one stream ends: with all, or at the age of `most`.
    pub fn stream(&self, most: Option<Duration>) -> Ends {
        Ends {
            with_all: self.0.subscribe(),
            at: most.map(|age| Instant::now() + age),
            ended: Arc::default(),
        }
    }
}

/// When one stream is ended, and whether it was.
#[derive(Clone, Debug)]
pub struct Ends {
    with_all: watch::Receiver<bool>,
    at: Option<Instant>,
    ended: Arc<AtomicBool>,
}

impl Ends {
    /// Whether the proxy has ended the stream, and not one of its sides.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether all streams are to end.
    pub(crate) fn with_all(&self) -> bool {
        *self.with_all.borrow()
    }

    /// Has `peer` connected to by a connection that ends with the stream. It is none of the pool,
    /// neither before nor after.
    pub(crate) fn attach(&self, peer: &mut HttpPeer) {
        // Its descriptor is none to Pingora either, so that the pool never hands it out again.
        peer.group_key ^= OF_STREAMS;
        peer.options.custom_l4 = Some(Arc::new(EndingConnect {
            ends: self.clone(),
            limit: peer.options.connection_timeout,
        }));
    }

    async fn wait(mut self) {
        let all = async {
            if self.with_all.wait_for(|begun| *begun).await.is_err() {
                // Nobody is left to say so.
                std::future::pending::<()>().await;
            }
        };
        match self.at {
            None => all.await,
            Some(at) => drop(tokio::time::timeout_at(at, all).await),
        }
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Connects to the backend of one stream.
#[derive(Debug)]
struct EndingConnect {
    ends: Ends,
    limit: Option<Duration>,
}

#[async_trait]
impl Connect for EndingConnect {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectError, "not an address of a network");
        };
        let connecting = connect(address, None);
        let connected = match self.limit {
            Some(limit) => tokio::time::timeout(limit, connecting).await,
            None => Ok(connecting.await),
        };
        let Ok(connected) = connected else {
            return Error::e_explain(ErrorType::ConnectTimedout, "connecting for a stream");
        };
        let socket = EndingSocket {
            socket: connected?,
            end: Box::pin(tokio::task::unconstrained(self.ends.clone().wait())),
        };
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

/// A connection that is at its end when `end` is.
struct EndingSocket {
    socket: TcpStream,
    end: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl AsyncRead for EndingSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What has come goes on to the client before the end does.
        match Pin::new(&mut self.socket).poll_read(context, buffer) {
            Poll::Pending => self.end.as_mut().poll(context).map(Ok),
            ready => ready,
        }
    }
}

impl AsyncWrite for EndingSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl VirtualSocket for EndingSocket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.socket.set_nodelay(true),
            VirtualSockOpt::KeepAlive(keepalive) => {
                set_tcp_keepalive(&self.socket, &keepalive).map_err(io::Error::other)
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for EndingSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(formatter)
    }
}

/// Keeps the connections of streams apart from those that the pool hands out again.
const OF_STREAMS: u64 = 1;
