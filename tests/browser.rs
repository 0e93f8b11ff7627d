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
use support::process::{Program, scratch_file};
use support::tls::{Authority, listener};
use support::{Backend, Proxy, route, within};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

#[tokio::test]
async fn a_page_of_an_allowed_origin_uses_the_server_in_both_eras() {
    let mut page = Page::serve().await;
    let proxy = Proxy::with(&(route(&[demo_server("demo").await]) + &page.allowed()));

    page.sees_all(&proxy.url("/mcp"), &[]).await;
}

#[tokio::test]
async fn a_page_uses_the_server_by_http2_over_tls() {
    let mut page = Page::serve().await;
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let routes = route(&[demo_server("demo").await]) + &page.allowed();
    let proxy = Proxy::listening(&listener(&[&own], None), &routes);
    let log = scratch_file("network.json");
    let flags = [
        "--ignore-certificate-errors".to_owned(),
        format!("--log-net-log={}", log.display()),
    ];
    let url = format!("https://localhost:{}/mcp", proxy.address.port());
    page.sees_all(&url, &flags).await;
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains(r#""next_proto":"h2""#));
}

#[tokio::test]
async fn a_page_of_another_origin_gets_nothing_and_reaches_no_backend() {
    let (mut stranger, other) = (Page::serve().await, Page::serve().await);
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + &other.allowed()));
    for era in ["legacy", "auto"] {
        let facts = stranger.open(&proxy.url("/mcp"), era, &[]).await;
        assert!(facts["error"].is_string(), "{facts}");
    }
    assert_eq!(backend.seen().len(), 0);
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
    async fn sees_all(&mut self, url: &str, flags: &[String]) {
        let mut facts = self.open(url, "legacy", flags).await;
        let id = facts.as_object_mut().unwrap().remove("sessionId");
        let id = id.as_ref().and_then(Value::as_str);
        assert_eq!(id.map(str::len), Some(32), "{facts}");
        assert_eq!(
            facts,
            json!({ "era": "legacy", "counted": "counted to 3", "progress": [1, 2, 3], "announced": "dinner" })
        );

        let facts = self.open(url, "auto", flags).await;
        assert_eq!(
            facts,
            json!({ "era": "modern", "counted": "counted to 3", "progress": [1, 2, 3] })
        );
    }

    /// Opens the page in a browser of its own, with `flags`, and returns what it reports.
    async fn open(&mut self, url: &str, era: &str, flags: &[String]) -> Value {
        let page = self.address;
        let profile = scratch_file("profile");
        let mut chromium = Command::new(chromium());
        chromium
            .args(FLAGS)
            .args(flags)
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("http://{page}/page.html?url={url}&era={era}"));
        let browser = Program::start(&mut chromium);
        let report = within("the page's report", self.reports.recv()).await;
        drop(browser);
        // Its helpers may still write for a moment.
        let _ = std::fs::remove_dir_all(profile);
        report.unwrap()
    }
}

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
