//! One end of a TCP connection, for a backend or a client whose every byte the test decides on.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::within;

/// A connection, and what has arrived on it without having been looked at.
pub struct Wire {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Wire {
    /// A client's end.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    /// A backend's end, with the request's header read.
    pub async fn accept(backend: &TcpListener) -> (Self, String) {
        let accepted = within("a connection to the backend", backend.accept()).await;
        let mut wire = Self::new(accepted.unwrap().0);
        let header = wire.receive("\r\n\r\n").await;
        (wire, header)
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// Sends `bytes` as they are.
    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Sends `bytes` as one chunk of a chunked body; none are its end.
    pub async fn send_chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend(bytes);
        chunk.extend(b"\r\n");
        self.stream.write_all(&chunk).await.unwrap();
    }

    /// Sends chunks until the other end has closed.
    pub async fn flood(mut self) {
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let flood = async { while self.stream.write_all(chunk.as_bytes()).await.is_ok() {} };
        within("the end of a flood", flood).await;
    }

    /// All that arrives up to `end`, with it.
    pub async fn receive(&mut self, end: &str) -> String {
        let end = end.as_bytes();
        loop {
            let found = self.received.windows(end.len()).position(|at| at == end);
            if let Some(start) = found {
                let rest = self.received.split_off(start + end.len());
                let received = std::mem::replace(&mut self.received, rest);
                return String::from_utf8(received).unwrap();
            }
            let what = "the next bytes of the other end";
            let read = within(what, self.stream.read_buf(&mut self.received)).await;
            assert_ne!(read.unwrap(), 0, "closed after {:?}", self.received);
        }
    }

    /// The next answer: its header, and its body, which must have a `Content-Length`.
    pub async fn answer(&mut self) -> String {
        let header = self.receive("\r\n\r\n").await;
        let mut lines = header.lines();
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse::<usize>().unwrap())
        });
        let length = length.expect("a final answer of a known length");
        while self.received.len() < length {
            let read = within("the body", self.stream.read_buf(&mut self.received)).await;
            assert_ne!(read.unwrap(), 0, "closed within the body of {header}");
        }
        let rest = self.received.split_off(length);
        let body = std::mem::replace(&mut self.received, rest);
        header + &String::from_utf8(body).unwrap()
    }

    /// Ends what this end sends, and goes on to receive.
    pub async fn finish_sending(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Waits until the other end closes, and panics where it sends anything before.
    pub async fn closed_in_silence(mut self) {
        let what = "the end of the connection";
        let read = within(what, self.stream.read_buf(&mut self.received)).await;
        let received = String::from_utf8_lossy(&self.received);
        assert!(
            matches!(read, Ok(0) | Err(_)) && received.is_empty(),
            "{received}"
        );
    }

    /// All that arrives until the other end closes.
    pub async fn until_end(mut self) -> String {
        let what = "the end of the connection";
        while let Ok(1..) = within(what, self.stream.read_buf(&mut self.received)).await {}
        String::from_utf8(self.received).unwrap()
    }

    /// Waits until the other end closes, whatever it sends before.
    pub async fn until_closed(self) {
        self.until_end().await;
    }

    /// Sends one byte of `bytes` after the other, with a pause after each, and stops where the other
    /// end has closed. What it has sent by then is returned.
    pub async fn trickle(&mut self, bytes: &str, pause: Duration) -> String {
        let mut arrived = [0; 1024];
        for byte in bytes.as_bytes() {
            if self.stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            match tokio::time::timeout(pause, self.stream.read(&mut arrived)).await {
                Err(_) => {}
                Ok(Ok(count @ 1..)) => self.received.extend(&arrived[..count]),
                Ok(_) => break,
            }
        }
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    /// Closes the connection in order: all that was sent arrives before its end.
    pub async fn close(mut self) {
        self.stream.shutdown().await.unwrap();
        self.until_closed().await;
    }

    /// Breaks the connection off, as the kernel does for a program that died with unread bytes.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}
