//! The built binary under many sessions, under bodies larger than its memory, and with a log that
//! says everything: nothing is mixed up, nothing is kept, nothing is told.

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures::stream::{self, Stream, StreamExt};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::process::ProxyProcess;
use support::wire::Wire;
use support::{Backend, Seen, answer, header, post, route, unused_address, within};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn each_of_200_sessions_at_a_time_is_answered_by_the_backend_that_opened_it() {
    let backends = [
        counting_backend("alpha").await,
        counting_backend("beta").await,
    ];
    let proxy = ProxyProcess::start(&route(&[backends[0].address, backends[1].address])).await;
    let clients = [reqwest::Client::new(), reqwest::Client::new()];
    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        let client = clients[number % clients.len()].clone();
        sessions.spawn(one_session(client, proxy.url("/mcp")));
    }
    let sessions = within("the end of all sessions", sessions.join_all()).await;

    // Each session is one of its backend's own, and no two clients had the same.
    let mut opened: Vec<_> = sessions.iter().map(|session| &session.opened).collect();
    opened.sort();
    opened.dedup();
    assert_eq!(opened.len(), SESSIONS);
    for (name, backend) in ["alpha", "beta"].iter().zip(&backends) {
        let here = opened.iter().filter(|opened| opened.contains(name)).count();
        assert!(here > 0, "{name} got no session");
        assert_eq!(backend.seen().len(), here * (1 + CALLS));
    }
    for session in sessions {
        assert!(!session.heard.contains("secret"), "{}", session.heard);
    }
}

/// What the client of one session was told.
struct Session {
    /// The backend and its number of the session.
    opened: String,
    /// All headers and bodies.
    heard: String,
}

/// Opens a session and makes its calls, each of which must be answered by the session's own
/// backend and to this call.
async fn one_session(client: reqwest::Client, url: String) -> Session {
    let call = async |id: &str, number: usize| {
        let body = json!({ "jsonrpc": "2.0", "id": number, "method": "tools/call" });
        let request = client
            .post(&url)
            .header("accept", "application/json, text/event-stream");
        let request = match id {
            "" => request,
            _ => request.header("mcp-session-id", id),
        };
        let answered = request.body(body.to_string()).send().await.unwrap();
        assert_eq!(answered.status(), 200);
        let headers = answered.headers().clone();
        (headers, answered.text().await.unwrap())
    };
    let (headers, body) = call("", 0).await;
    let id = header(&headers, "mcp-session-id").unwrap().to_owned();
    let opened: Value = serde_json::from_str(&body).unwrap();
    let mut heard = format!("{headers:?}{body}");
    for number in 1..=CALLS {
        let (headers, body) = call(&id, number).await;
        assert_eq!(header(&headers, "mcp-session-id"), Some(&*id));
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer, json!({ "id": number, "result": opened["result"] }));
        heard += &format!("{headers:?}{body}");
    }
    Session {
        opened: opened["result"].to_string(),
        heard,
    }
}

/// A backend that gives each session a number, and answers with its own name and this number.
async fn counting_backend(name: &'static str) -> Backend {
    let opened = Arc::new(AtomicUsize::new(0));
    Backend::start(move |request: Seen| {
        let prefix = format!("secret-{name}-");
        let session = match request.header("mcp-session-id") {
            None => opened.fetch_add(1, Ordering::Relaxed).to_string(),
            Some(id) => match id.strip_prefix(&prefix) {
                Some(session) => session.to_owned(),
                None => return answer(404, &[], "the session of another backend"),
            },
        };
        let call: Value = serde_json::from_slice(&request.body).unwrap();
        let result = json!({ "id": call["id"], "result": format!("{name} {session}") });
        let id = prefix + &session;
        answer(200, &[("mcp-session-id", &id)], result.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(target_os = "linux"), ignore = "memory is read from /proc")]
async fn memory_does_not_follow_a_request_body() {
    let endless = "      limits: { max_body: none }\n";
    let proxy = ProxyProcess::start(&(route(&[vast_backend().await]) + endless)).await;
    warm_up(&proxy).await;
    let before = proxy.peak_resident();
    let upload = post(&proxy.url("/mcp/upload")).body(reqwest::Body::wrap_stream(zeros(BODY)));
    let answered = within("the answer to the upload", upload.send())
        .await
        .unwrap();
    assert_eq!(answered.text().await.unwrap(), BODY.to_string());
    assert_peak(&proxy, before);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(target_os = "linux"), ignore = "memory is read from /proc")]
async fn memory_does_not_follow_an_answers_body() {
    let proxy = ProxyProcess::start(&route(&[vast_backend().await])).await;
    warm_up(&proxy).await;
    for (path, length) in [
        ("/mcp/chunked", BODY),
        ("/mcp/sized", BODY),
        ("/mcp/events", EVENTS),
    ] {
        let before = proxy.peak_resident();
        let mut answered = post(&proxy.url(path)).send().await.unwrap();
        let mut received = 0;
        while let Some(piece) = within("the next bytes", answered.chunk()).await.unwrap() {
            received += piece.len();
        }
        assert_eq!(received, length);
        assert_peak(&proxy, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(target_os = "linux"), ignore = "memory is read from /proc")]
async fn memory_does_not_follow_an_answer_that_the_client_does_not_take() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let pushing = move |_: Seen| {
        let counter = Arc::clone(&counter);
        let events = zeros(BODY).inspect(move |piece| {
            counter.fetch_add(piece.as_ref().unwrap().len(), Ordering::Relaxed);
        });
        answer(
            200,
            &[("content-type", "text/event-stream")],
            Body::from_stream(events),
        )
    };
    let backend = Backend::start(pushing).await;
    let proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let before = proxy.peak_resident();
    let answered = post(&proxy.url("/mcp")).send().await.unwrap();
    // The backend sends what the proxy takes from it, until that is no more.
    let mut taken = 0;
    let mut unchanged = 0;
    while unchanged < 20 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let now = sent.load(Ordering::Relaxed);
        unchanged = if now == taken { unchanged + 1 } else { 0 };
        taken = now;
    }
    assert!(
        taken < BODY / 2,
        "the proxy took {taken} bytes that nobody reads"
    );
    assert_peak(&proxy, before);
    drop(answered);
}

/// A first request, so that what is allocated once counts as before.
async fn warm_up(proxy: &ProxyProcess) {
    let upload = post(&proxy.url("/mcp/upload")).body("x");
    assert_eq!(upload.send().await.unwrap().text().await.unwrap(), "1");
}

fn assert_peak(proxy: &ProxyProcess, before: u64) {
    let peak = proxy.peak_resident();
    println!("at most {peak} KiB, {before} KiB before");
    assert!(peak < before + 16 * 1024, "{before} KiB became {peak} KiB");
}

/// A backend that counts what it is sent, or sends a body that it never holds whole.
async fn vast_backend() -> SocketAddr {
    let vast = async |request: Request| {
        let path = request.uri().path().to_owned();
        let mut received = 0;
        let mut body = request.into_body().into_data_stream();
        while let Some(piece) = body.next().await {
            received += piece.unwrap().len();
        }
        let length = ("content-length", &*BODY.to_string());
        let events = ("content-type", "text/event-stream");
        match path.as_str() {
            "/mcp/upload" => answer(200, &[], received.to_string()),
            "/mcp/sized" => answer(200, &[length], Body::from_stream(zeros(BODY))),
            "/mcp/events" => answer(200, &[events], Body::from_stream(zeros(EVENTS))),
            _ => answer(200, &[], Body::from_stream(zeros(BODY))),
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(vast)).await });
    address
}

type Piece = Result<Bytes, Infallible>;

fn zeros(length: usize) -> impl Stream<Item = Piece> + Send + 'static {
    const PIECE: Bytes = Bytes::from_static(&[0; 64 * 1024]);
    stream::iter(std::iter::repeat_n(Ok(PIECE), length / PIECE.len()))
}

#[tokio::test]
async fn neither_the_log_nor_any_answer_tells_an_id_or_a_secret() {
    for level in LEVELS {
        let mut talk = Talk::start(level).await;
        for (answer, ending) in ANSWERS {
            talk.hear_of(talk.bound("/mcp"), answer, ending).await;
        }
        let long = "s3cret".repeat(999);
        let too_long = format!("HTTP/1.1 200 OK\r\nMcp-Session-Id: {long}\r\n\r\n");
        talk.hear_of(talk.ask("/mcp"), &too_long, Ending::Closed)
            .await;
        talk.hear(talk.ask("/closed")).await;
        talk.hear(talk.bound("/closed")).await;
        talk.hear(talk.ask("/mcp").header("mcp-session-id", "forged-s3cret"))
            .await;
        talk.assert_nothing_told().await;
    }
}

#[tokio::test]
async fn a_malformed_answer_of_a_backend_is_not_told_to_anybody() {
    for level in LEVELS {
        let mut talk = Talk::start(level).await;
        for malformed in [
            "no header\r\n\r\n",
            "no header: but a name\r\n\r\n",
            "\0\r\n\r\n",
        ] {
            let answer =
                format!("HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-s3cret\r\n{malformed}");
            talk.hear_of(talk.bound("/mcp"), &answer, Ending::Closed)
                .await;
        }
        talk.assert_nothing_told().await;
    }
}

#[tokio::test]
async fn a_query_is_not_written_to_the_log() {
    for level in LEVELS {
        let mut talk = Talk::start(level).await;
        let request = talk.bound("/mcp?api_key=s3cret");
        talk.hear_of(request, "", Ending::Closed).await;
        talk.assert_nothing_told().await;
    }
}

#[tokio::test]
async fn no_log_level_of_a_module_makes_pingora_write_headers() {
    let level = "info,pingora_core::protocols=trace,pingora_proxy::proxy_h1=trace";
    let mut talk = Talk::start(level).await;
    talk.hear_of(talk.bound("/mcp"), OPENING, Ending::Closed)
        .await;
    talk.assert_nothing_told().await;
}

#[tokio::test]
async fn a_client_that_is_malformed_or_leaves_is_not_told_of() {
    for level in LEVELS {
        let mut talk = Talk::start(level).await;
        let header = format!(
            "POST /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {}\r\n\
             Authorization: Bearer client-s3cret\r\n",
            talk.client_id
        );
        let mut malformed = Wire::connect(talk.proxy.address).await;
        malformed.send(&format!("{header}no header\r\n\r\n")).await;
        talk.heard += &malformed.receive("\r\n\r\n").await;

        let mut leaving = Wire::connect(talk.proxy.address).await;
        leaving
            .send(&format!("{header}Content-Length: 99\r\n\r\ns3cret"))
            .await;
        let (backend, _) = Wire::accept(&talk.backend).await;
        drop(leaving);
        backend.until_closed().await;
        talk.assert_nothing_told().await;
    }
}

/// A session through a proxy, all of whose secrets contain `s3cret`: the backend's id, the
/// client's `Authorization`, the headers of the configuration, the requests' bodies.
struct Talk {
    proxy: ProxyProcess,
    admin: SocketAddr,
    backend: TcpListener,
    /// The address of a second backend, which nobody listens on and nobody else can take.
    _closed: TcpSocket,
    client_id: String,
    /// All answers to the client.
    heard: String,
}

impl Talk {
    /// Opens the session through a proxy that logs at `level`.
    async fn start(level: &str) -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let admin = unused_address();
        let secret = "          headers: { x-api-key: configured-s3cret }\n";
        let mcp = [
            &*route(&[backend.local_addr().unwrap()]),
            secret,
            "      timeouts: { post: 300ms }\n",
            "    - path: /closed\n      backends:\n        - name: closed\n",
            &format!("          url: http://{}\n", closed.local_addr().unwrap()),
            secret,
            &format!("  admin:\n    address: {admin}\n"),
            "  access_log: { format: json }\n",
        ];
        let log_level = [("RUST_LOG", level)];
        let proxy = ProxyProcess::with_environment(&mcp.concat(), &log_level).await;
        let mut talk = Self {
            proxy,
            admin,
            backend,
            _closed: closed,
            client_id: String::new(),
            heard: String::new(),
        };
        let backend = reply(&talk.backend, OPENING, Ending::Closed);
        let (opened, ()) = tokio::join!(talk.ask("/mcp").send(), backend);
        let opened = opened.unwrap();
        talk.client_id = header(opened.headers(), "mcp-session-id")
            .unwrap()
            .to_owned();
        talk
    }

    /// A request without a session.
    fn ask(&self, path: &str) -> RequestBuilder {
        post(&self.proxy.url(path))
            .header("authorization", "Bearer client-s3cret")
            .body(r#"{"method":"tools/call","params":"s3cret"}"#)
    }

    /// A request of the session.
    fn bound(&self, path: &str) -> RequestBuilder {
        self.ask(path).header("mcp-session-id", &self.client_id)
    }

    async fn hear(&mut self, request: RequestBuilder) {
        self.heard += &told(request).await;
    }

    /// As [`hear`](Self::hear), where the backend answers with `answer`.
    async fn hear_of(&mut self, request: RequestBuilder, answer: &str, ending: Ending) {
        let backend = reply(&self.backend, answer, ending);
        let (told, ()) = tokio::join!(told(request), backend);
        self.heard += &told;
    }

    /// Neither the log, nor the access log among its lines, nor the admin's pages, nor an answer.
    async fn assert_nothing_told(&mut self) {
        let line = async {
            while !self.proxy.log().contains(r#""ended":"#) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("a line of the access log", line).await;
        let mut pages = String::new();
        for page in ["metrics", "status"] {
            let page = reqwest::get(format!("http://{}/{page}", self.admin)).await;
            pages += &page.unwrap().text().await.unwrap();
        }
        self.proxy.signal("INT");
        assert_eq!(self.proxy.ended().await, Some(0));
        let log = self.proxy.log() + &pages;
        assert!(log.contains("/mcp -> b0"), "there is no log: {log}");
        assert!(log.contains("pingora_mcp_sessions_live 1"), "{log}");
        for secret in ["s3cret", &self.client_id] {
            assert!(!log.contains(secret), "{secret} is in the log: {log}");
            assert!(
                !self.heard.contains(secret),
                "{secret} is in {}",
                self.heard
            );
        }
    }
}

/// All that a client learns from the answer to `request`, but for its session's id.
async fn told(request: RequestBuilder) -> String {
    let answered = match within("an answer", request.send()).await {
        Ok(answered) => answered,
        Err(error) => return format!("{:?}", error.without_url()),
    };
    let mut headers = answered.headers().clone();
    headers.remove("mcp-session-id");
    format!("{headers:?}{:?}", answered.text().await)
}

/// How a backend's connection ends.
#[derive(Clone, Copy)]
enum Ending {
    Closed,
    Reset,
    /// By the proxy, which waits no longer.
    Silent,
}

async fn reply(backend: &TcpListener, answer: &str, ending: Ending) {
    let (mut backend, _) = Wire::accept(backend).await;
    backend.send(answer).await;
    match ending {
        Ending::Closed => backend.close().await,
        Ending::Reset => backend.reset(),
        Ending::Silent => backend.until_closed().await,
    }
}

const LEVELS: [&str; 3] = [
    "warn,pingora_mcp=info",
    "trace",
    "trace,pingora_core=trace,pingora_proxy=trace",
];

const OPENING: &str =
    "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-s3cret\r\nContent-Length: 2\r\n\r\n{}";

/// A whole answer, and all ways in which one can break off.
const ANSWERS: [(&str, Ending); 8] = [
    (OPENING, Ending::Closed),
    (
        "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-s3cret\r\nContent-Length: 9\r\n\r\n{",
        Ending::Closed,
    ),
    (
        "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-s3cret\r\nContent-Length: 9\r\n\r\n{",
        Ending::Reset,
    ),
    (
        "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-s3cret\r\nTransfer-Encoding: chunked\r\n\r\nx",
        Ending::Closed,
    ),
    (
        "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-s3cret\r\n",
        Ending::Closed,
    ),
    ("", Ending::Closed),
    ("", Ending::Reset),
    ("", Ending::Silent),
];

const SESSIONS: usize = 200;

const CALLS: usize = 20;

const BODY: usize = 256 * 1024 * 1024;

const EVENTS: usize = 64 * 1024 * 1024;
