//! Puts a load on a proxy and takes the figures. A wrong answer, a lost event or a load that does not get
//! on ends the bench.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::Outcome;
use super::backend::{Backend, Clock};
use super::client::{Client, Protocol, Target};
use super::message::{Message, Tick};
use super::peers::Running;
use super::results::Figure;
use super::work::{Load, Turn, Work};

/// What a round says.
pub(crate) type Figures = Vec<(Figure, f64)>;

/// A proxy that runs, and what is before and behind it.
pub(crate) struct Stage<'a> {
    pub(crate) running: &'a mut Running,
    pub(crate) backend: &'a Backend,
    pub(crate) tls: &'a Arc<rustls::ClientConfig>,
    pub(crate) clock: Clock,
}

impl Stage<'_> {
    /// One round of `work`, as soon as the proxy answers.
    pub(crate) async fn measure(&mut self, work: &Work) -> Outcome<Figures> {
        let target = self.target(work.protocol);
        let start = self.until_ready(&target).await?;
        let measured = async {
            match work.load {
                Load::Turns { clients, turn } => self.turns(&target, clients, turn).await,
                Load::Paced { clients, rate } => self.paced(&target, clients, rate).await,
                Load::Streams { streams, period } => self.streams(&target, streams, period).await,
                Load::Start => Ok(vec![(Figure::Start, start.as_secs_f64())]),
            }
        };
        let measured = timeout(PATIENCE, measured).await;
        self.running.is_alive()?;
        measured.map_err(|_| format!("no end after {PATIENCE:?}"))?
    }

    /// Waits for a right answer, and says how long after the start it came.
    async fn until_ready(&mut self, target: &Target) -> Outcome<Duration> {
        let end = Instant::now() + PATIENCE;
        loop {
            let answered = async { Client::connect(target).await?.initialize().await };
            let Err(error) = answered.await else {
                return Ok(self.running.started.elapsed());
            };
            self.running.is_alive()?;
            if Instant::now() > end {
                return Err(format!("no answer after {PATIENCE:?}: {error}").into());
            }
            // Nothing else is to be done on this thread, and the runtime counts in milliseconds.
            thread::sleep(Duration::from_micros(100));
        }
    }

    fn target(&self, protocol: Protocol) -> Target {
        Target {
            address: match protocol {
                Protocol::Http1 => self.running.plain,
                Protocol::Http1OverTls | Protocol::Http2 => self.running.tls,
            },
            protocol,
            tls: Arc::clone(self.tls),
        }
    }

    async fn turns(&self, target: &Target, clients: usize, turn: Turn) -> Outcome<Figures> {
        let clients = with_sessions(target, clients).await?;
        let window = Window::from_now();
        let done = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for mut client in clients {
            let (target, done, over) = (target.clone(), Arc::clone(&done), Arc::clone(&over));
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    take(turn, &mut client, &target).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                    if start >= window.begin {
                        latencies.push(start.elapsed());
                    }
                }
                Outcome::Ok(latencies)
            });
        }
        let watched = self.watch(window, &done).await;
        over.store(true, Ordering::Relaxed);
        figures(watched, tasks).await
    }

    async fn paced(&self, target: &Target, clients: usize, rate: u32) -> Outcome<Figures> {
        let clients = with_sessions(target, clients).await?;
        let window = Window::from_now();
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let mut senders = Vec::new();
        for mut client in clients {
            let (sender, mut due) = mpsc::unbounded_channel();
            senders.push(sender);
            let done = Arc::clone(&done);
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while let Some(due) = due.recv().await {
                    client.call(Message::Call).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                    if due >= window.begin {
                        latencies.push(Instant::elapsed(&due));
                    }
                }
                Outcome::Ok(latencies)
            });
        }
        // A thread sleeps to the microsecond, a task to the millisecond.
        thread::spawn(move || {
            let mut due = Instant::now();
            for sender in senders.iter().cycle() {
                due += Duration::from_secs(1) / rate;
                if due >= window.end {
                    return;
                }
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // The task has failed, and says why.
                let _ = sender.send(due);
            }
        });
        let watched = self.watch(window, &done).await;
        figures(watched, tasks).await
    }

    async fn streams(&self, target: &Target, streams: usize, period: Duration) -> Outcome<Figures> {
        self.backend.end_streams();
        let processes = self.running.processes()?;
        let memory = || processes.as_ref().map(|p| p.memory()).transpose();
        let before = memory()?;
        let mut open: Vec<_> = stream::iter(0..streams)
            .map(|_| async {
                let mut client = Client::connect(target).await?;
                client.initialize().await?;
                let body = client.listen().await?;
                Outcome::Ok((client, body))
            })
            .buffer_unordered(OPENED_AT_A_TIME)
            .try_collect()
            .await?;
        tokio::time::sleep(SETTLED_AFTER).await;
        let idle = memory()?;
        if self.backend.streams() != streams {
            return Err(format!("the backend has {} streams", self.backend.streams()).into());
        }

        // Whole rounds of events, after one that nothing is taken from, and before one that keeps the
        // streams open: a client leaves with its last event.
        let measured = (SLICE_OF_STREAMS.as_secs_f64() / period.as_secs_f64()).ceil() as u32;
        let rounds = u64::from(measured) + 2;
        let length = period * measured;
        let window = Window::with(period, length);
        let begin = self.clock.now() + period.as_nanos() as u64;
        let taken = begin..begin + length.as_nanos() as u64;
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for (client, body) in open.drain(..) {
            let (clock, done, taken) = (self.clock, Arc::clone(&done), taken.clone());
            tasks.spawn(async move {
                let delays = read(body, rounds, clock, &done).await?;
                // With its client the connection would go.
                drop(client);
                let delays = delays.into_iter().filter(|(sent, _)| taken.contains(sent));
                Outcome::Ok(delays.map(|(_, delay)| delay).collect())
            });
        }
        let sending = self.backend.send_events(period, rounds);
        let watched = self.watch(window, &done).await;
        let busy = memory()?;
        sending.await?;
        let mut figures = figures(watched, tasks).await?;
        for (figure, after) in [(Figure::IdleStream, idle), (Figure::BusyStream, busy)] {
            if let (Some(before), Some(after)) = (before, after) {
                let added = after.saturating_sub(before) as f64;
                figures.push((figure, added / streams as f64));
            }
        }
        Ok(figures)
    }

    /// What the proxy uses in `window` for what is `done` in it. Where that is next to nothing, as on a
    /// machine with other work, the window is longer.
    async fn watch(&self, window: Window, done: &AtomicU64) -> Outcome<Figures> {
        let processes = self.running.processes()?;
        let read = || {
            let used = processes.as_ref().map(|p| p.processor_time()).transpose()?;
            Outcome::Ok((Instant::now(), used, done.load(Ordering::Relaxed)))
        };
        sleep_until(window.begin.into()).await;
        let (begin, used_before, done_before) = read()?;
        sleep_until(window.end.into()).await;
        for _ in 0..MOST_MORE_SLICES {
            if done.load(Ordering::Relaxed) >= done_before + FEWEST {
                break;
            }
            tokio::time::sleep(SLICE).await;
        }
        let (end, used, done) = read()?;
        let done = (done - done_before) as f64;
        if done == 0.0 {
            return Err("nothing was done".into());
        }
        let mut figures = vec![(Figure::Rate, done / (end - begin).as_secs_f64())];
        if let (Some(before), Some(after)) = (used_before, used) {
            figures.push((Figure::Processor, (after - before).as_secs_f64() / done));
        }
        if let Some(processes) = &processes {
            figures.push((Figure::Memory, processes.memory()? as f64));
        }
        Ok(figures)
    }
}

/// When what happens counts: after some time in which everything gets warm.
#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    end: Instant,
}

impl Window {
    fn from_now() -> Self {
        Self::with(WARM_AFTER, SLICE)
    }

    fn with(before: Duration, length: Duration) -> Self {
        let begin = Instant::now() + before;
        let end = begin + length;
        Self { begin, end }
    }
}

async fn take(turn: Turn, client: &mut Client, target: &Target) -> Outcome<()> {
    match turn {
        Turn::Call(message) => client.call(message).await,
        Turn::Session => {
            client.initialize().await?;
            client.call(Message::End).await
        }
        Turn::Connection => {
            let fresh = Client::connect(target).await?;
            let mut fresh = fresh.with_session(client.session());
            fresh.call_and_close(Message::Call).await
        }
    }
}

/// Clients with a session each. Where the protocol has room for several on a connection, each connection
/// has [`CLIENTS_OF_A_CONNECTION`].
async fn with_sessions(target: &Target, count: usize) -> Outcome<Vec<Client>> {
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..count {
        let shared = match number % CLIENTS_OF_A_CONNECTION {
            0 => None,
            _ => clients.last().and_then(Client::share),
        };
        let mut client = match shared {
            Some(client) => client,
            None => Client::connect(target).await?,
        };
        client.initialize().await?;
        clients.push(client);
    }
    Ok(clients)
}

/// When each of the `rounds` events of a stream was sent, and how long it took.
async fn read(
    mut body: Incoming,
    rounds: u64,
    clock: Clock,
    done: &AtomicU64,
) -> Outcome<Vec<(u64, Duration)>> {
    let mut delays = Vec::new();
    let mut unread = String::new();
    while (delays.len() as u64) < rounds {
        let frame = body.frame().await.ok_or("a stream ended")??;
        let data = frame.into_data().map_err(|_| "a stream ended")?;
        let now = clock.now();
        unread.push_str(std::str::from_utf8(&data)?);
        while let Some(end) = unread.find("\n\n") {
            let event: String = unread.drain(..end + 2).collect();
            let tick = Tick::read(&event).ok_or_else(|| format!("not an event: {event}"))?;
            if tick.number != delays.len() as u64 {
                return Err(
                    format!("event {} came as number {}", tick.number, delays.len()).into(),
                );
            }
            done.fetch_add(1, Ordering::Relaxed);
            delays.push((
                tick.sent,
                Duration::from_nanos(now.saturating_sub(tick.sent)),
            ));
        }
    }
    Ok(delays)
}

/// What was watched, and how long it took the clients. A client that has failed says more of why nothing was
/// done than that nothing was.
async fn figures(
    watched: Outcome<Figures>,
    mut clients: JoinSet<Outcome<Vec<Duration>>>,
) -> Outcome<Figures> {
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    let mut figures = watched?;
    latencies.sort_unstable();
    let last = latencies.len().checked_sub(1).ok_or("nothing was done")?;
    let at = |part: f64| latencies[(last as f64 * part).round() as usize].as_secs_f64();
    figures.extend([
        (Figure::P50, at(0.5)),
        (Figure::P99, at(0.99)),
        (Figure::P999, at(0.999)),
    ]);
    Ok(figures)
}

/// What is not taken into account at the beginning of a load, and what is then.
const WARM_AFTER: Duration = Duration::from_millis(150);
const SLICE: Duration = Duration::from_millis(600);

/// What has to be done in a slice, or there are more of them.
const FEWEST: u64 = 50;
const MOST_MORE_SLICES: usize = 10;

/// How long events are counted, at the least.
const SLICE_OF_STREAMS: Duration = Duration::from_secs(1);

const OPENED_AT_A_TIME: usize = 64;

/// From the last stream's header to when all that it took is in the process's memory.
const SETTLED_AFTER: Duration = Duration::from_millis(200);

/// HTTP/2 alone has room for them.
const CLIENTS_OF_A_CONNECTION: usize = 16;

/// How long a round may take in all.
const PATIENCE: Duration = Duration::from_secs(60);
