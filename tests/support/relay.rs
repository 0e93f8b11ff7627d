//! A relay in front of the proxy, for what no filter of `ProxyHttp` can break: that a client's
//! leaving reaches the backend.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::mutation::Mutation;

/// An address in front of `proxy`, where a mutation asks for it; else `proxy` itself.
pub fn in_front_of(proxy: SocketAddr) -> SocketAddr {
    let ignored: &'static [u8] = match Mutation::from_environment() {
        Some(Mutation::LeavingIgnored) => b"",
        Some(Mutation::CancellationIgnored) => b"2026-07-28",
        _ => return proxy,
    };
    let socket = std::net::TcpListener::bind((proxy.ip(), 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // By the address that the client chose, as the proxy judges by it.
            let chosen = client.local_addr().unwrap().ip();
            let proxy = SocketAddr::new(chosen, proxy.port());
            tokio::spawn(relay(client, proxy, ignored));
        }
    });
    address
}

/// Both ways until the proxy closes, or a client that has not sent `ignored` leaves.
async fn relay(client: TcpStream, proxy: SocketAddr, ignored: &[u8]) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_proxy, mut to_proxy) = TcpStream::connect(proxy).await?.into_split();
    let answers = async {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = from_proxy.read(&mut piece).await {
            // A client that has left is none of the proxy's business.
            let _ = to_client.write_all(&piece[..length]).await;
        }
    };
    let requests = async {
        let mut sent = Vec::new();
        while let Ok(length @ 1..) = from_client.read_buf(&mut sent).await {
            let new = sent.len() - length;
            if to_proxy.write_all(&sent[new..]).await.is_err() {
                break;
            }
        }
        let is_ignored = ignored.is_empty() || sent.windows(ignored.len()).any(|at| at == ignored);
        if is_ignored {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = answers => {}
        () = requests => {}
    }
    Ok(())
}
