//! The MCP server behind each proxy: as fast as it can be, and strict. What a proxy has lost or changed on
//! the way is answered by 400 or 404.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Handle};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::Outcome;
use super::message::{EVENTS, METHOD, Message, NAME, SESSION, Tick, progress};

/// The backend, on a thread of its own and on many addresses. All are one server to the sessions.
pub(crate) struct Backend {
    addresses: Vec<SocketAddr>,
    runtime: Handle,
    state: Arc<State>,
}

impl Backend {
    pub(crate) fn start(addresses: usize, clock: Clock) -> Outcome<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listeners: Vec<_> = (0..addresses)
            .map(|_| runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))))
            .collect::<Result<_, _>>()?;
        let backend = Self {
            addresses: listeners
                .iter()
                .map(TcpListener::local_addr)
                .collect::<Result<_, _>>()?,
            runtime: runtime.handle().clone(),
            state: Arc::new(State {
                clock,
                sessions: Mutex::default(),
                streams: Mutex::default(),
            }),
        };
        for listener in listeners {
            runtime.spawn(serve(listener, Arc::clone(&backend.state)));
        }
        thread::Builder::new()
            .name("backend".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(backend)
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Drops the streams that are open: those of the proxy before.
    pub(crate) fn end_streams(&self) {
        lock(&self.state.streams).clear();
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        lock(&self.state.streams).len()
    }

    /// Sends an event on each open stream in each `period`, evenly spread over it, `rounds` times.
    pub(crate) fn send_events(&self, period: Duration, rounds: u64) -> JoinHandle<()> {
        let state = Arc::clone(&self.state);
        self.runtime.spawn(async move {
            let streams = lock(&state.streams).clone();
            let (start, count) = (Instant::now(), streams.len() as u64);
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut sent, all) = (0, count * rounds);
            while sent < all {
                ticks.tick().await;
                let passed = start.elapsed().as_secs_f64() / period.as_secs_f64();
                let due = all.min((passed * count as f64) as u64);
                for event in sent..due {
                    let tick = Tick {
                        number: event / count,
                        sent: state.clock.now(),
                    };
                    // One that is gone is missed at the other end.
                    let _ = streams[(event % count) as usize].send(tick.write());
                }
                sent = due;
            }
        })
    }
}

/// Time as both ends count it.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// In nanoseconds.
    pub(crate) fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

struct State {
    clock: Clock,
    sessions: Mutex<HashSet<HeaderValue>>,
    streams: Mutex<Vec<UnboundedSender<Bytes>>>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn serve(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is left, until a connection ends.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        tokio::spawn(serve_connection(stream, Arc::clone(&state)));
    }
}

async fn serve_connection(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { state.answer(request).await }
    });
    // Clients and proxies leave as they like.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let Some(message) = Message::read(&head.method, &body) else {
            return Ok(refusal(StatusCode::BAD_REQUEST));
        };
        let mut session = head.headers.get(SESSION).cloned();
        match (message, &session) {
            (Message::Initialize, None) => session = Some(self.open()),
            (Message::StatelessCall, None) => {
                if !(head.headers.contains_key(METHOD) && head.headers.contains_key(NAME)) {
                    return Ok(refusal(StatusCode::BAD_REQUEST));
                }
            }
            (Message::End, Some(id)) => {
                if !lock(&self.sessions).remove(id) {
                    return Ok(refusal(StatusCode::NOT_FOUND));
                }
            }
            (_, Some(id)) => {
                if !lock(&self.sessions).contains(id) {
                    return Ok(refusal(StatusCode::NOT_FOUND));
                }
            }
            (_, None) => return Ok(refusal(StatusCode::BAD_REQUEST)),
        }
        let body = match message {
            Message::Listen => self.listen(),
            Message::CallWithEvents => events(),
            Message::Initialize
            | Message::Call
            | Message::StatelessCall
            | Message::Upload
            | Message::Download
            | Message::End => Full::new(message.answer()).boxed_unsync(),
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.extend(message.content_type().map(|value| (CONTENT_TYPE, value)));
        headers.extend(session.map(|id| (SESSION, id)));
        Ok(response)
    }

    fn open(&self) -> HeaderValue {
        let id = Uuid::new_v4().to_string();
        let id = HeaderValue::try_from(id).expect("hex digits and dashes are a header's value");
        lock(&self.sessions).insert(id.clone());
        id
    }

    fn listen(&self) -> Body {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.streams).push(sender);
        let events = stream::unfold(receiver, async |mut receiver| {
            let event = receiver.recv().await?;
            Some((Ok(Frame::data(event)), receiver))
        });
        StreamBody::new(events).boxed_unsync()
    }
}

/// The events come one after the other, each when the one before has left.
fn events() -> Body {
    let events = stream::unfold(0, async |number| {
        if number == EVENTS {
            return None;
        }
        tokio::task::yield_now().await;
        Some((Ok(Frame::data(progress(number))), number + 1))
    });
    StreamBody::new(events).boxed_unsync()
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
