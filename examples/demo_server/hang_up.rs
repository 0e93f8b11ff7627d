//! Ends an answer's stream when its tool asks for it, before the answer is on it.
//!
//! MCP 2025-11-25, Transports: a server may close a stream at will after its priming event, and the
//! client then resumes it by GET with `Last-Event-ID`. The SDK has this for its own code alone.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use tokio::sync::Notify;
use tokio::sync::broadcast::Sender;
use tokio::time::timeout;

/// In the extensions of a request: ends the stream of its answer.
#[derive(Clone)]
struct HangUp {
    asked: Arc<Notify>,
    resumed: Resumed,
}

/// The sessions of which a stream was just resumed.
pub(super) type Resumed = Sender<HeaderValue>;

/// The state of [`when_asked`], one for each server.
pub(super) fn resumed() -> Resumed {
    Resumed::new(RESUMED)
}

pub(super) async fn when_asked(
    State(resumed): State<Resumed>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let session = headers.get("last-event-id").and(headers.get(SESSION_ID));
    let session = session.cloned();
    let asked = Arc::new(Notify::new());
    request.extensions_mut().insert(HangUp {
        asked: asked.clone(),
        resumed: resumed.clone(),
    });

    let answer = next.run(request).await;
    if let Some(session) = session {
        let _nobody_waits = resumed.send(session);
    }
    answer.map(|body| {
        let primed = Arc::new(Notify::new());
        let until = {
            let primed = primed.clone();
            async move {
                primed.notified().await;
                asked.notified().await;
            }
        };
        let events = body
            .into_data_stream()
            .inspect(move |_| primed.notify_one());
        Body::from_stream(events.take_until(Box::pin(until)))
    })
}

/// Ends the stream after its first event, and waits until the client has resumed it. The SDK may
/// lose an answer that is there before that.
pub(super) async fn until_resumed(request: &Parts) {
    let hang_up = request.extensions.get::<HangUp>();
    let (Some(hang_up), Some(session)) = (hang_up, request.headers.get(SESSION_ID)) else {
        return;
    };
    let mut resumed = hang_up.resumed.subscribe();
    hang_up.asked.notify_one();
    let this_one = async { while resumed.recv().await.is_ok_and(|other| other != session) {} };
    let _it_never_came_back = timeout(LIMIT, this_one).await;
}

const SESSION_ID: &str = "mcp-session-id";
const LIMIT: Duration = Duration::from_secs(20);
/// How many resumed streams a tool that waits for its own may lag behind.
const RESUMED: usize = 16;
