//! Connections to backends that something else may end than one of their two sides.
//!
//! Pingora waits for a backend's next byte, and no filter of its runs until that comes. So what is to
//! end the wait is awaited by the connection itself.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
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

/// What may end one connection.
pub(super) trait Watch: Send + Sync + Unpin + 'static {
    /// Ready when the connection is at its end for whoever reads it: as if the backend had closed it,
    /// or with an error. Asked only while the backend is silent, and nothing waits to be written.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The backend was sent something.
    fn note_sent(&mut self) {}
}

/// Has `peer` connected to by a connection that what `begin` makes for it may end. It is none of the
/// pool, neither before nor after.
pub(super) fn connect_watched<W: Watch>(
    peer: &mut HttpPeer,
    begin: impl Fn() -> W + Send + Sync + 'static,
) {
    // Its descriptor is none to Pingora either, so that the pool never hands it out again.
    peer.group_key ^= WATCHED;
    peer.options.custom_l4 = Some(Arc::new(WatchedConnect {
        begin,
        limit: peer.options.connection_timeout,
    }));
}

struct WatchedConnect<B> {
    begin: B,
    limit: Option<Duration>,
}

impl<B> fmt::Debug for WatchedConnect<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { begin: _, limit } = self;
        formatter
            .debug_struct("WatchedConnect")
            .field("limit", limit)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<W: Watch, B: Fn() -> W + Send + Sync> Connect for WatchedConnect<B> {
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
            return Error::e_explain(ErrorType::ConnectTimedout, "connecting");
        };
        let socket = WatchedSocket {
            socket: connected?,
            watch: (self.begin)(),
        };
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

struct WatchedSocket<W> {
    socket: TcpStream,
    watch: W,
}

impl<W: Watch> AsyncRead for WatchedSocket<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What has come goes on to the client before the end does.
        match Pin::new(&mut self.socket).poll_read(context, buffer) {
            Poll::Pending => self.watch.poll_end(context),
            ready => ready,
        }
    }
}

impl<W: Watch> AsyncWrite for WatchedSocket<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.socket).poll_write(context, bytes));
        self.watch.note_sent();
        Poll::Ready(sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl<W: Watch> VirtualSocket for WatchedSocket<W> {
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

impl<W> fmt::Debug for WatchedSocket<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(formatter)
    }
}

/// Keeps these connections apart from those that the pool hands out again.
const WATCHED: u64 = 1;
