//! Ends an answer's stream when its tool asks for it, before the answer is on it.
//!
//! MCP 2025-11-25, Transports: a server may close a stream at will after its priming event, and the
//! client then resumes it by GET with `Last-Event-ID`. The SDK has this for its own code alone.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use tokio::sync::Notify;

/// In the extensions of a request: ends the stream of its answer.
#[derive(Clone)]
struct HangUp(Arc<Notify>);

pub(super) async fn when_asked(mut request: Request, next: Next) -> Response {
    let asked = Arc::new(Notify::new());
    request.extensions_mut().insert(HangUp(asked.clone()));
    next.run(request).await.map(|body| {
        let until = async move { asked.notified().await };
        Body::from_stream(body.into_data_stream().take_until(Box::pin(until)))
    })
}

pub(super) fn now(request: &Parts) {
    if let Some(HangUp(asked)) = request.extensions.get() {
        asked.notify_one();
    }
}
