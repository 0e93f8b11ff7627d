//! A page in a real browser: Chromium, and the official TypeScript SDK on a page of another origin.

mod support;

#[path = "support/demo.rs"]
mod demo;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use axum::Router;
use axum::response::Html;
use axum::routing::{get, post};
use demo::demo_server;
use serde_json::{Value, json};
use support::process::{Program, ProxyProcess, scratch_file};
use support::tls::{Authority, listener};
use support::{Backend, Proxy, raw, route, until, until_asked, unused_address, within};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use Speaks::*;

#[tokio::test]
async fn a_page_of_an_allowed_origin_uses_the_server_in_both_eras() {
    let mut page = Page::serve().await;
    let proxy = Proxy::with(&(route(&[demo_server("demo").await]) + &page.allowed()));

    page.sees_all(&proxy.url("/mcp"), Http1).await;
}

#[tokio::test]
async fn a_page_uses_the_server_by_http2_over_tls() {
    let mut page = Page::serve().await;
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let routes = route(&[demo_server("demo").await]) + &page.allowed();
    let proxy = Proxy::listening(&listener(&[&own], None), &routes);
    let url = format!("https://localhost:{}/mcp", proxy.address.port());
    page.sees_all(&url, Http2OverTls).await;
}

#[tokio::test]
async fn a_page_of_another_origin_gets_nothing_and_reaches_no_backend() {
    let (mut stranger, other) = (Page::serve().await, Page::serve().await);
    let backend = Backend::with_session("id").await;
    let admin = unused_address();
    let mcp = route(&[backend.address]) + &other.allowed();
    let proxy = ProxyProcess::start(&format!("{mcp}  admin: {{ address: {admin} }}\n")).await;
    for era in ["legacy", "auto"] {
        let before = refused_origins(admin).await;
        let facts = stranger.open(&proxy.url("/mcp"), era, Http1).await;
        assert!(facts["error"].is_string(), "{facts}");
        // By the proxy, and for this reason: the error is the same where nobody answers.
        until_asked("its refusal", async || {
            refused_origins(admin).await > before
        })
        .await;
    }
    assert_eq!(backend.seen().len(), 0);
}

/// How many requests the proxy has refused for their origin.
async fn refused_origins(admin: SocketAddr) -> u64 {
    let metrics = raw(admin, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let refusals = r#"pingora_mcp_refusals_total{reason="origin-forbidden"} "#;
    let count = metrics.lines().find_map(|line| line.strip_prefix(refusals));
    count.map_or(0, |count| count.parse().unwrap())
}

/// How a page's browser comes to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2OverTls,
}

/// A site with one page, and what the page has reported.
struct Page {
    address: SocketAddr,
    reports: UnboundedReceiver<Value>,
}

impl Page {
    async fn serve() -> Self {
        let (report, reports) = unbounded_channel();
        let receive = move |body: String| async move {
            report.send(serde_json::from_str(&body).unwrap()).unwrap();
        };
        let script = bundle();
        let site = Router::new()
            .route(
                "/page.html",
                get(Html("<script type=module src=page.js></script>")),
            )
            .route(
                "/page.js",
                get(([("content-type", "text/javascript")], script)),
            )
            .route("/report", post(receive));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, site).await });
        Self { address, reports }
    }

    /// The YAML that lets this page's origin in, and no other.
    fn allowed(&self) -> String {
        format!("  cors: {{ origins: [\"http://{}\"] }}\n", self.address)
    }

    /// Uses the server at `url` in both eras, and sees all that there is to see.
    async fn sees_all(&mut self, url: &str, speaks: Speaks) {
        let mut facts = self.open(url, "legacy", speaks).await;
        let id = facts.as_object_mut().unwrap().remove("sessionId");
        let id = id.as_ref().and_then(Value::as_str);
        assert_eq!(id.map(str::len), Some(32), "{facts}");
        assert_eq!(
            facts,
            json!({ "era": "legacy", "counted": "counted to 3", "progress": [1, 2, 3], "announced": "dinner" })
        );

        let facts = self.open(url, "auto", speaks).await;
        assert_eq!(
            facts,
            json!({ "era": "modern", "counted": "counted to 3", "progress": [1, 2, 3] })
        );
    }

    /// Opens the page in a browser of its own, and returns what it reports.
    async fn open(&mut self, url: &str, era: &str, speaks: Speaks) -> Value {
        let page = self.address;
        let _one_at_a_time = BROWSER.lock().await;
        let profile = scratch_file("profile");
        std::fs::create_dir(&profile).unwrap();
        let log = profile.join("network.json");
        let mut chromium = Command::new(chromium());
        chromium
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.display()));
        if speaks == Http2OverTls {
            chromium
                .arg("--ignore-certificate-errors")
                .arg(format!("--log-net-log={}", log.display()));
        }
        chromium.arg(format!("http://{page}/page.html?url={url}&era={era}"));
        let browser = Program::start(&mut chromium);
        let report = within("the page's report", self.reports.recv()).await;
        if speaks == Http2OverTls {
            // It is killed, and what of its log waits to be written goes with it.
            until("HTTP/2 in its log", || {
                let log = std::fs::read(&log).unwrap_or_default();
                String::from_utf8_lossy(&log).contains(r#""next_proto":"h2""#)
            })
            .await;
        }
        drop(browser);
        // Its helpers may still write for a moment.
        until("the end of its helpers", || {
            std::fs::remove_dir_all(&profile).is_ok()
        })
        .await;
        report.unwrap()
    }
}

/// Several at once are slow to start, on a small machine.
static BROWSER: Mutex<()> = Mutex::const_new(());

/// The page's script and the SDK in one file.
fn bundle() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/typescript");
    let mut esbuild = Command::new("node");
    esbuild.args([
        "node_modules/esbuild/bin/esbuild",
        "--bundle",
        "--format=esm",
    ]);
    let bundled = esbuild
        .arg("page.mjs")
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&bundled.stderr);
    assert!(
        bundled.status.success(),
        "run `make test`, which installs what is missing: {error}"
    );
    bundled.stdout
}

fn chromium() -> &'static str {
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let found = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(is_there);
    found.expect("Chromium is missing: run `make test`, which installs it")
}

/// Headless, and no word to anybody but the page's site and the proxy. Without its sandbox, as root
/// can have none.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
