//! The one connection to the store that all requests share: made in the background, watched, and
//! made anew when it is lost.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntGauge};
use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use redis::{
    ErrorKind, FromRedisValue, PushInfo, PushKind, RedisError, RedisResult, ScriptInvocation, Value,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::settings::RedisSettings;

/// What operations go through.
pub(super) struct Link {
    state: watch::Sender<State>,
    /// Something has failed that may be the connection's fault.
    doubt: Arc<Notify>,
    most: Duration,
    durations: HistogramVec,
    is_reached: IntGauge,
    /// What was last answered in place of what was asked.
    refusal: Mutex<Option<String>>,
    /// Until it runs.
    keeper: Mutex<Option<Keeper>>,
}

#[derive(Clone, Debug)]
enum State {
    /// A connection is being made; who needs it waits.
    Connecting,
    Connected(Connection),
    /// None can be made; nobody waits for it.
    Away,
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Server(_) => "Server",
            Self::Cluster(_) => "Cluster",
        })
    }
}

/// What is asked, as metrics name it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Insert,
    Find,
    Remove,
    Claim,
    Settle,
}

/// Why an operation has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Unreached,
    /// The server's memory.
    Full,
}

impl Link {
    /// A link to the store of `settings` that hears of what is told on `channel`. It calls on
    /// `listener` from the task that keeps it.
    pub(super) fn new(
        settings: RedisSettings,
        (channel, nothing): (String, Vec<String>),
        listener: Arc<dyn Listener>,
    ) -> Self {
        let doubt = Arc::new(Notify::new());
        let durations = HistogramOpts::new(
            "pingora_mcp_store_operation_duration_seconds",
            "Time that the shared session store took for an operation.",
        );
        let durations = HistogramVec::new(
            durations.buckets(BUCKETS.to_vec()),
            &["operation", "outcome"],
        );
        let is_reached = IntGauge::new(
            "pingora_mcp_store_reached",
            "Whether the shared session store is reached: 1, or 0.",
        );
        Self {
            state: watch::Sender::new(State::Connecting),
            doubt: Arc::clone(&doubt),
            most: settings.timeout.0,
            durations: durations.expect("its names and buckets are good"),
            is_reached: is_reached.expect("its name is good"),
            refusal: Mutex::new(None),
            keeper: Mutex::new(Some(Keeper {
                settings,
                channel,
                nothing,
                doubt,
                listener,
            })),
        }
    }

    /// What is measured of it.
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.durations.clone()),
            Box::new(self.is_reached.clone()),
        ]
    }

    pub(super) fn is_away(&self) -> bool {
        matches!(*self.state.borrow(), State::Away)
    }

    /// Has the store run a script. It never takes longer than an operation may.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        operation: Operation,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let result = match timeout(self.most, self.try_twice(script)).await {
            Ok(result) => result,
            Err(_) => {
                self.doubt.notify_one();
                Err(Failure::Unreached)
            }
        };
        let outcome = match result {
            Ok(_) => "ok",
            Err(Failure::Full) => "full",
            Err(Failure::Unreached) => "error",
        };
        self.durations
            .with_label_values(&[operation.name(), outcome])
            .observe(begun.elapsed().as_secs_f64());
        result
    }

    /// Each script may be run again, as it asks for a state and not for a change. So one that a
    /// connection took with it is, over the next.
    async fn try_twice<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Failure> {
        match self.attempt(script).await {
            Err(error) if error.is_unrecoverable_error() => {
                self.attempt(script).await.map_err(|error| failure(&error))
            }
            result => result.map_err(|error| failure(&error)),
        }
    }

    async fn attempt<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> RedisResult<T> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Connecting));
        let state = state.await.map_or(State::Away, |state| state.clone());
        let result = match state {
            State::Connected(Connection::Server(mut server)) => {
                script.invoke_async(&mut server).await
            }
            State::Connected(Connection::Cluster(mut cluster)) => {
                script.invoke_async(&mut cluster).await
            }
            State::Connecting | State::Away => {
                return Err((ErrorKind::Client, "the store is away").into());
            }
        };
        if let Err(error) = &result
            && !is_full(error)
        {
            self.suspect(error);
        }
        result
    }

    /// Has the connection looked at that an operation failed on.
    fn suspect(&self, error: &RedisError) {
        if error.is_unrecoverable_error() {
            // It is of no use to anybody. That of a cluster mends itself.
            self.state.send_if_modified(|state| {
                let is_lost = matches!(state, State::Connected(Connection::Server(_)));
                if is_lost {
                    *state = State::Connecting;
                }
                is_lost
            });
        } else if let Some(code) = error.code() {
            *self.refusal() = Some(code.to_owned());
        }
        self.doubt.notify_one();
    }

    fn refusal(&self) -> MutexGuard<'_, Option<String>> {
        let refusal = self.refusal.lock();
        refusal.unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection for as long as this is polled. Where another keeps it already, it
    /// returns at once.
    pub(super) async fn keep(&self) {
        let keeper = self.keeper.lock();
        let keeper = keeper.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            let (told, mut heard) = mpsc::channel(TOLD);
            let listener = Arc::clone(&keeper.listener);
            let hear = async {
                while let Some(message) = heard.recv().await {
                    listener.hear(message).await;
                }
            };
            tokio::join!(self.connect_for_ever(&keeper, &told), hear);
        }
    }

    /// Whether nobody keeps a connection yet.
    pub(super) fn is_unkept(&self) -> bool {
        let keeper = self.keeper.lock();
        keeper.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    async fn connect_for_ever(&self, keeper: &Keeper, told: &mpsc::Sender<Vec<u8>>) {
        let mut pause = FIRST_PAUSE;
        let mut is_told = false;
        let mut was_connected = false;
        loop {
            match keeper.connect(told).await {
                Ok(connection) => {
                    self.is_reached.set(1);
                    self.state
                        .send_replace(State::Connected(connection.clone()));
                    if !is_told {
                        log::info!("the session store is reached");
                        is_told = true;
                    }
                    pause = FIRST_PAUSE;
                    was_connected = true;
                    self.watch(keeper, connection).await;
                    // Whether this was more than a lost connection, the next attempt tells.
                    self.state.send_replace(State::Connecting);
                }
                // What ended the last connection may have ended this one on its way.
                Err(error) if was_connected && !error.is_timeout() => {
                    was_connected = false;
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    was_connected = false;
                    if !self.is_away() {
                        let reason = reason(&error);
                        log::error!("the session store is away: {reason}");
                    }
                    is_told = false;
                    self.is_reached.set(0);
                    self.state.send_replace(State::Away);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Returns when `connection` is lost.
    async fn watch(&self, keeper: &Keeper, connection: Connection) {
        let mut is_refusal_told = false;
        loop {
            tokio::select! {
                () = self.doubt.notified() => {}
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
            }
            let probe = keeper.probe(&connection);
            if let Err(error) = within(self.most, probe).await {
                log::debug!("the session store does not answer: {}", reason(&error));
                return;
            }
            if let Some(code) = self.refusal().take()
                && !is_refusal_told
            {
                log::error!("the session store refuses what it is asked: it answers {code}");
                is_refusal_told = true;
            }
            // Who doubted had lost the connection before this one.
            self.state.send_if_modified(|state| {
                let is_doubted = matches!(state, State::Connecting);
                if is_doubted {
                    *state = State::Connected(connection.clone());
                }
                is_doubted
            });
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut link = formatter.debug_struct("Link");
        link.field("state", &*self.state.borrow());
        link.finish_non_exhaustive()
    }
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Find => "find",
            Self::Remove => "remove",
            Self::Claim => "claim",
            Self::Settle => "settle",
        }
    }
}

/// Who is told of what is heard.
#[async_trait::async_trait]
pub(super) trait Listener: Send + Sync {
    /// From now on, messages are heard. Before, some may have been missed.
    fn listens(&self);

    async fn hear(&self, message: Vec<u8>);
}

/// Makes connections, and finds out when one is lost.
struct Keeper {
    settings: RedisSettings,
    channel: String,
    /// A key that holds nothing, in each part of a cluster.
    nothing: Vec<String>,
    doubt: Arc<Notify>,
    listener: Arc<dyn Listener>,
}

impl Keeper {
    async fn connect(&self, told: &mpsc::Sender<Vec<u8>>) -> RedisResult<Connection> {
        let connect = async {
            let mut connection = self.settings.connect(self.push(told)).await?;
            match &mut connection {
                Connection::Server(server) => server.subscribe(&self.channel).await?,
                Connection::Cluster(cluster) => cluster.subscribe(&self.channel).await?,
            }
            self.probe(&connection).await?;
            Ok(connection)
        };
        // A name to be looked up, a Sentinel to be asked, a connection, a handshake.
        within(self.settings.timeout.0 * 4, connect).await
    }

    /// Takes what the server sends by itself.
    fn push(&self, told: &mpsc::Sender<Vec<u8>>) -> impl Fn(PushInfo) -> Result<(), ()> + use<> {
        let (told, doubt) = (told.clone(), Arc::clone(&self.doubt));
        let listener = Arc::clone(&self.listener);
        move |push| {
            match (push.kind, push.data.into_iter().next_back()) {
                (PushKind::Message, Some(Value::BulkString(message))) => {
                    let is_missed = told.try_send(message).is_err();
                    if is_missed {
                        listener.listens();
                    }
                }
                // By a cluster also when the node that told of removals is lost.
                (PushKind::Subscribe, _) => listener.listens(),
                (PushKind::Disconnection, _) => doubt.notify_one(),
                _ => {}
            }
            Ok(())
        }
    }

    /// A write without an effect: a replica refuses it, and so does a server that cannot save, but
    /// not one whose memory is full, as its sessions can still be found. A cluster that has lost a
    /// part serves the others.
    async fn probe(&self, connection: &Connection) -> RedisResult<()> {
        let keys = match connection {
            Connection::Server(_) => &self.nothing[..1],
            Connection::Cluster(_) => &self.nothing,
        };
        let mut probes = JoinSet::new();
        for key in keys {
            let mut probe = redis::cmd("DEL");
            probe.arg(key);
            let connection = connection.clone();
            probes.spawn(async move {
                match connection {
                    Connection::Server(mut server) => probe.query_async::<()>(&mut server).await,
                    Connection::Cluster(mut cluster) => probe.query_async(&mut cluster).await,
                }
            });
        }
        let mut last = Err((ErrorKind::Client, "nothing was asked").into());
        while let Some(probe) = probes.join_next().await {
            last = probe.unwrap_or_else(|error| Err(io::Error::from(error).into()));
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

async fn within<T>(
    most: Duration,
    attempt: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let late = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    timeout(most, attempt).await.map_err(late)?
}

fn failure(error: &RedisError) -> Failure {
    if is_full(error) {
        Failure::Full
    } else {
        Failure::Unreached
    }
}

fn is_full(error: &RedisError) -> bool {
    error.code() == Some("OOM")
}

/// What is wrong, without the words of the server: these may repeat what it was sent.
fn reason(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("it answers {code}"),
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}

/// Messages that wait to be heard. Where there are more, near entries are looked up again.
const TOLD: usize = 1024;

const PROBE_INTERVAL: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

const BUCKETS: [f64; 11] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5,
];
