//! Who may come in: the tables of `docs/configuration.md`, for each kind of listener, both eras
//! and preflights.
//!
//! MCP 2025-11-25, Transports, Security Warning 1; MCP 2026-07-28, Streamable HTTP, Security. It
//! is what the conformance suite's scenario `dns-rebinding-protection` asks for.

mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use pingora::http::RequestHeader;
use pingora_mcp::host::Reach;
use pingora_mcp::{Connection, Exchange, Settings, server};
use support::{Backend, Proxy, answer, raw, route};

#[tokio::test]
async fn over_loopback_by_default_loopback_names_and_their_pages_come_in() {
    for (host, origin, expected) in [
        (Some("localhost:8080"), None, IN),
        (Some("127.0.0.1:8080"), None, IN),
        (Some("127.9.9.9"), None, IN),
        (Some("[::1]:8080"), None, IN),
        (Some("LOCALHOST"), None, IN),
        (None, None, IN),
        (Some("localhost:8080"), Some("http://localhost:8080"), IN),
        (Some("localhost:8080"), Some("http://127.0.0.1:6274"), IN),
        (Some("localhost:8080"), Some("https://[::1]"), IN),
        (Some("localhost:8080"), Some("http://evil.example"), ORIGIN),
        (Some("localhost:8080"), Some("null"), ORIGIN),
        (
            Some("localhost:8080"),
            Some("http://localhost.evil.example"),
            ORIGIN,
        ),
        (Some("evil.example"), None, HOST),
        (Some("evil.example:8080"), Some("http://localhost"), HOST),
        (Some("localhost.evil.example"), None, HOST),
        (Some("10.0.0.1"), None, HOST),
        (Some("0.0.0.0:8080"), None, HOST),
        (Some(""), None, HOST),
        (Some("evil.example"), Some("http://evil.example"), ORIGIN),
    ] {
        expect(DEFAULT, Reach::Loopback, host, origin, expected).await;
    }
}

#[tokio::test]
async fn over_the_network_by_default_any_name_and_no_page_comes_in() {
    for (host, origin, expected) in [
        (Some("mcp.example"), None, IN),
        (Some("10.0.0.1:8080"), None, IN),
        (Some("localhost:8080"), None, IN),
        (None, None, IN),
        (Some("mcp.example"), Some("https://mcp.example"), ORIGIN),
        (
            Some("localhost:8080"),
            Some("http://localhost:8080"),
            ORIGIN,
        ),
        (Some("mcp.example"), Some("null"), ORIGIN),
    ] {
        expect(DEFAULT, Reach::Network, host, origin, expected).await;
    }
}

#[tokio::test]
async fn a_public_name_is_reached_by_that_name_alone() {
    for (host, origin, expected) in [
        (Some("mcp.example"), None, IN),
        (Some("MCP.example:443"), None, IN),
        (None, None, IN),
        (Some("mcp.example"), Some("https://app.example"), IN),
        (Some("mcp.example"), Some("https://mcp.example"), ORIGIN),
        (Some("mcp.example"), Some("http://localhost"), ORIGIN),
        (Some("other.example"), None, HOST),
        (Some("mcp.example.evil.example"), None, HOST),
        (Some("other.example"), Some("https://app.example"), HOST),
    ] {
        for reach in [Reach::Loopback, Reach::Network] {
            expect(PUBLIC, reach, host, origin, expected).await;
        }
    }
    // A reverse proxy or a health check on this machine.
    for (reach, expected) in [(Reach::Loopback, IN), (Reach::Network, HOST)] {
        expect(PUBLIC, reach, Some("localhost:8080"), None, expected).await;
        expect(PUBLIC, reach, Some("127.0.0.1"), None, expected).await;
    }
}

#[tokio::test]
async fn all_pages_or_none_come_in_where_the_configuration_says_so() {
    for reach in [Reach::Loopback, Reach::Network] {
        for origin in ["http://localhost", "https://evil.example", "null"] {
            let host = Some("localhost");
            expect(
                "  cors: { origins: ['*'] }\n",
                reach,
                host,
                Some(origin),
                IN,
            )
            .await;
            expect(
                "  cors: { origins: [] }\n",
                reach,
                host,
                Some(origin),
                ORIGIN,
            )
            .await;
        }
    }
}

// A listener on all addresses is reached over both; the connection says over which.
#[tokio::test]
async fn a_listener_on_any_address_judges_by_the_connection() {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let any = "0.0.0.0:0".parse().unwrap();
    let proxy = Proxy::listening_on(any, &route(&[backend.address]));
    let reach = |ip: IpAddr| SocketAddr::new(ip, proxy.address.port());
    let loopback = reach([127, 0, 0, 1].into());
    let foreign = request("POST", Some("evil.example"), None, "");
    assert_eq!(outcome(&raw(loopback, &foreign).await), HOST);
    // A machine without a network has no such address.
    if let Some(own) = own_network_address() {
        assert_eq!(outcome(&raw(reach(own), &foreign).await), IN);
        let page = request("POST", Some("localhost"), Some("http://localhost"), "");
        assert_eq!(outcome(&raw(reach(own), &page).await), ORIGIN);
    }
}

/// Asserts what a request gets, in each era and as a preflight: over loopback on the wire, over
/// the network by the gateway, as a test machine need not have one.
async fn expect(
    policy: &str,
    reach: Reach,
    host: Option<&str>,
    origin: Option<&str>,
    expected: &str,
) {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let mcp = route(&[backend.address]) + policy;
    let proxy = Proxy::with(&mcp);
    for method in ["POST", "OPTIONS"] {
        for version in ["", "2025-11-25", "2026-07-28"] {
            let found = match reach {
                Reach::Loopback => {
                    let request = request(method, host, origin, version);
                    outcome(&raw(proxy.address, &request).await)
                }
                Reach::Network => admitted(&mcp, method, host, origin, version).await,
            };
            let what = format!("{policy}{reach:?}: {method} {host:?} {origin:?} {version}");
            assert_eq!(found, expected, "{what}");
        }
    }
    if expected != IN {
        assert_eq!(backend.seen().len(), 0);
    }
}

fn request(method: &str, host: Option<&str>, origin: Option<&str>, version: &str) -> String {
    // Only with HTTP/1.0 may there be none (RFC 9112 3.2).
    let http = host.map_or("HTTP/1.0", |_| "HTTP/1.1");
    let mut request = format!("{method} /mcp {http}\r\n");
    let version = Some(version).filter(|version| !version.is_empty());
    for (name, value) in [
        ("Host", host),
        ("Origin", origin),
        ("MCP-Protocol-Version", version),
    ] {
        if let Some(value) = value {
            request += &format!("{name}: {value}\r\n");
        }
    }
    request + "\r\n"
}

fn outcome(answer: &str) -> &'static str {
    let problems = [ORIGIN, HOST];
    let (_, status) = answer.split_once(' ').unwrap();
    if status.starts_with("200 ") {
        return IN;
    }
    assert!(status.starts_with("403 "), "{answer}");
    problems
        .into_iter()
        .find(|name| answer.contains(name))
        .unwrap()
}

async fn admitted(
    mcp: &str,
    method: &str,
    host: Option<&str>,
    origin: Option<&str>,
    version: &str,
) -> &'static str {
    let yaml = format!("mcp:\n  listeners: [{{ address: \"0.0.0.0:8080\" }}]\n{mcp}");
    let settings = Settings::parse("test.yaml", &yaml, Default::default()).unwrap();
    let gateway = server::gateway(settings.mcp);
    let connection = Connection {
        reach: Reach::Network,
        ..Connection::default()
    };
    let mut request = RequestHeader::build(method, b"/mcp", None).unwrap();
    if host.is_none() {
        request.set_version(http::Version::HTTP_10);
    }
    let version = Some(version).filter(|version| !version.is_empty());
    for (name, value) in [
        ("host", host),
        ("origin", origin),
        ("mcp-protocol-version", version),
    ] {
        if let Some(value) = value {
            request.insert_header(name, value).unwrap();
        }
    }
    let mut exchange = Exchange::default();
    let admitted = gateway.admit(&request, connection, &mut exchange).await;
    admitted.map_or_else(|rejection| rejection.name(), |_| IN)
}

/// The address by which this machine is on a network. Nothing is sent to find it.
fn own_network_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback()).then_some(own)
}

const IN: &str = "in";
const ORIGIN: &str = "origin-forbidden";
const HOST: &str = "host-forbidden";

const DEFAULT: &str = "";

const PUBLIC: &str =
    "  allowed_hosts: [mcp.example]\n  cors: { origins: [\"https://app.example\"] }\n";
