//! Who hears that a list changed: all who listen at this server, or at any that shares its broker.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::broadcast::{Receiver, Sender};

/// A list that is not what it was.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Tools,
    Prompts,
}

/// Where changes are told and heard.
#[derive(Clone)]
pub(crate) struct Changes {
    here: Sender<Change>,
    broker: Option<Arc<OwnedWriteHalf>>,
}

impl Changes {
    /// The changes of this server alone.
    pub(crate) fn of_this_server() -> Self {
        Self {
            here: Sender::new(CHANGES),
            broker: None,
        }
    }

    /// The changes of all servers that are connected to `broker`, which sends each byte that it
    /// gets to all of them, also to the one that it got it from.
    pub(crate) fn of_all(broker: TcpStream) -> Self {
        let (mut from_broker, to_broker) = broker.into_split();
        let changes = Self {
            broker: Some(to_broker.into()),
            ..Self::of_this_server()
        };
        let here = changes.here.clone();
        tokio::spawn(async move {
            while let Ok(byte) = from_broker.read_u8().await {
                let change = if byte == TOOLS {
                    Change::Tools
                } else {
                    Change::Prompts
                };
                let _nobody_listens = here.send(change);
            }
        });
        changes
    }

    pub(super) fn listen(&self) -> Receiver<Change> {
        self.here.subscribe()
    }

    pub(super) async fn tell(&self, change: Change) -> io::Result<()> {
        let Some(broker) = &self.broker else {
            let _nobody_listens = self.here.send(change);
            return Ok(());
        };
        let byte = match change {
            Change::Tools => TOOLS,
            Change::Prompts => PROMPTS,
        };
        broker.writable().await?;
        broker.try_write(&[byte]).map(|_one| ())
    }
}

/// How many changes a listener may lag behind.
const CHANGES: usize = 16;
const TOOLS: u8 = b't';
const PROMPTS: u8 = b'p';
