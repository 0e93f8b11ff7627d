//! TLS on both sides: whose certificate is shown, who is let in, which backends are believed, and
//! files that change while the proxy runs.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use pingora_mcp::Settings;
use rustls::version::{TLS12, TLS13};
use support::process::ProxyProcess;
use support::tls::{Authority, Files, TlsBackend, TlsClient, listener, next};
use support::wire::Wire;
use support::{
    Backend, Proxy, header, post, raw_in_turn, route, until, until_asked, unused_address, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_session_is_swapped_over_tls_by_http2_and_by_http1() {
    let authority = Authority::new();
    let backend = Backend::with_session("backends-own").await;
    let own = authority.issue("own", &["localhost"]);
    let proxy = Proxy::listening(&listener(&[&own], None), &route(&[backend.address]));
    let client = TlsClient::trusting(&authority);

    let http2 = client.http2(proxy.address, "localhost").await;
    let opened = http2.send(http2.post(), INITIALIZE).await;
    assert_eq!(opened.status(), 200);
    let id = header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    assert_ne!(id, "backends-own");
    assert_eq!(backend.last().header("x-forwarded-proto"), Some("https"));

    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {id}\r\nContent-Length: 2\r\n\
         Connection: close\r\n\r\n{{}}"
    );
    let answered = client.raw(proxy.address, &request).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    assert_eq!(
        backend.last().header("mcp-session-id"),
        Some("backends-own")
    );
    assert_eq!(backend.last().header("x-forwarded-proto"), Some("https"));
}

#[tokio::test]
async fn events_arrive_one_by_one_and_a_client_that_leaves_closes_the_backends_stream() {
    let authority = Authority::new();
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = authority.issue("own", &["localhost"]);
    let routes = route(&[backend.local_addr().unwrap()]);
    let proxy = Proxy::listening(&listener(&[&own], None), &routes);
    let client = TlsClient::trusting(&authority)
        .http2(proxy.address, "localhost")
        .await;

    let open = async {
        let (mut wire, _) = Wire::accept(&backend).await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        wire
    };
    let get = client.send(client.request(Method::GET, "/mcp"), "");
    let (mut wire, mut answered) = tokio::join!(open, get);
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        wire.send_chunk(event.as_bytes()).await;
        assert_eq!(next(answered.body_mut()).await.unwrap(), event);
    }
    drop(answered);
    wire.until_closed().await;
}

#[tokio::test]
async fn the_name_that_a_client_asks_for_picks_the_certificate() {
    let authority = Authority::new();
    let first = authority.issue("first", &["first.example", "localhost"]);
    let second = authority.issue("second", &["second.example", "*.wild.example"]);
    let proxy = Proxy::listening(&listener(&[&first, &second], None), &route(&[NOBODY]));
    let client = TlsClient::trusting(&authority);
    for (name, files) in [
        ("first.example", &first),
        ("localhost", &first),
        ("second.example", &second),
        ("SECOND.example", &second),
        ("a.wild.example", &second),
    ] {
        let shown = client.certificate_of(proxy.address, name).await;
        assert_eq!(shown, files.chain()[0], "{name}");
    }
}

#[tokio::test]
async fn the_first_certificate_is_for_who_asks_for_no_name_or_for_another() {
    let authority = Authority::new();
    let first = authority.issue("first", &["127.0.0.1"]);
    let second = authority.issue("second", &["second.example"]);
    let proxy = Proxy::listening(&listener(&[&first, &second], None), &route(&[NOBODY]));
    let client = TlsClient::trusting(&authority);
    // A client asks for no address (RFC 6066 3).
    let shown = client.certificate_of(proxy.address, "127.0.0.1").await;
    assert_eq!(shown, first.chain()[0]);
    let refused = client.connect(proxy.address, "unknown.example").await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    assert!(error.contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn with_client_ca_only_its_clients_are_let_in() {
    let authority = Authority::new();
    let other = Authority::new();
    let backend = Backend::with_session("id").await;
    let own = authority.issue("own", &["localhost"]);
    let keys = listener(&[&own], Some(&authority.file()));
    let proxy = Proxy::listening(&keys, &route(&[backend.address]));
    let client = TlsClient::trusting(&authority);

    let known = client.clone().with(&authority.issue("client", &["client"]));
    let answered = known.raw(proxy.address, REQUEST).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    assert_eq!(backend.seen().len(), 1);

    let without = client.raw(proxy.address, REQUEST).await;
    assert!(
        without
            .unwrap_err()
            .to_string()
            .contains("CertificateRequired")
    );
    let stranger = client.with(&other.issue("client", &["client"]));
    let stranger = stranger.raw(proxy.address, REQUEST).await;
    assert!(stranger.unwrap_err().to_string().contains("UnknownCA"));
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn older_versions_are_refused() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let proxy = Proxy::listening(&listener(&[&own], None), &route(&[NOBODY]));
    // RFC 8446 6.2: an alert (21), fatal (2), protocol_version (70).
    let refused = [21, 3, 3, 0, 2, 2, 70];
    for minor in [0, 1, 2] {
        let answer = hello(proxy.address, minor).await;
        assert_eq!(answer[0], 21, "SSL 3.{minor}: {answer:?}");
        assert_eq!(answer[5..7], refused[5..7], "SSL 3.{minor}: {answer:?}");
    }
    // The same of TLS 1.2 is answered with a handshake (22), server_hello (2).
    let answer = hello(proxy.address, 3).await;
    assert_eq!((answer[0], answer[5]), (22, 2), "{answer:?}");
}

#[tokio::test]
async fn a_stalled_handshake_holds_no_other_up() {
    let authority = Authority::new();
    let backend = Backend::with_session("id").await;
    let own = authority.issue("own", &["localhost"]);
    let proxy = Proxy::listening(&listener(&[&own], None), &route(&[backend.address]));
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let mut silent = TcpStream::connect(proxy.address).await.unwrap();
        silent.write_all(&client_hello(3)[..40]).await.unwrap();
        stalled.push(silent);
    }
    let client = TlsClient::trusting(&authority)
        .http2(proxy.address, "localhost")
        .await;
    assert_eq!(client.send(client.post(), INITIALIZE).await.status(), 200);
}

#[tokio::test]
async fn a_stalled_handshake_is_given_up_when_its_time_is_up() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let limits = "  timeouts: { tls_handshake: 200ms, first_byte: 10m }\n";
    let proxy = Proxy::listening(&listener(&[&own], None), &(route(&[NOBODY]) + limits));
    for sent in [0, 40] {
        let mut stalled = TcpStream::connect(proxy.address).await.unwrap();
        stalled.write_all(&client_hello(3)[..sent]).await.unwrap();
        let read = within("the end", stalled.read(&mut [0])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    until("the end of both", || proxy.load.connections() == 0).await;
}

#[tokio::test]
async fn half_a_preface_of_http2_is_given_up_when_a_headers_time_is_up() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let limits = "  timeouts: { first_byte: 200ms, header: 200ms }\n";
    let proxy = Proxy::listening(&listener(&[&own], None), &(route(&[NOBODY]) + limits));
    let client = TlsClient::trusting(&authority);
    for sent in ["", "PRI * HTTP/2.0"] {
        let mut stalled = client.connect(proxy.address, "localhost").await.unwrap();
        stalled.write_all(sent.as_bytes()).await.unwrap();
        let _ = within("the end", stalled.read_to_end(&mut Vec::new())).await;
    }
    until("the end of both", || proxy.load.connections() == 0).await;
}

#[tokio::test]
async fn a_connection_counts_from_before_its_handshake() {
    let authority = Authority::new();
    let backend = Backend::with_session("id").await;
    let own = authority.issue("own", &["localhost"]);
    let limits = "  limits: { max_connections: 1 }\n";
    let routes = route(&[backend.address]) + limits;
    let proxy = Proxy::listening(&listener(&[&own], None), &routes);
    let stalled = TcpStream::connect(proxy.address).await.unwrap();
    until("its count", || proxy.load.connections() == 1).await;
    let client = TlsClient::trusting(&authority);
    let told = client.raw(proxy.address, REQUEST).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:connections-full"));

    drop(stalled);
    until("a free connection", || proxy.load.connections() == 0).await;
    let answer = client.raw(proxy.address, REQUEST).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn each_listener_has_its_own_tls_or_none() {
    let authority = Authority::new();
    let backend = Backend::with_session("id").await;
    let own = authority.issue("own", &["localhost"]);
    let of_all = authority.issue("all", &["localhost"]);
    let (all, plain) = (unused_address(), unused_address());
    let keys = [
        listener(&[&own], None),
        format!("    - address: 0.0.0.0:{}\n", all.port()),
        listener(&[&of_all], None),
        format!("    - address: {plain}\n"),
    ];
    let routes = route(&[backend.address]);
    let proxy = ProxyProcess::listening(&keys.concat(), &routes, &[]).await;
    let client = TlsClient::trusting(&authority);
    for (address, files) in [(proxy.address, own), (all, of_all)] {
        let shown = client.certificate_of(address, "localhost").await;
        assert_eq!(shown, files.chain()[0]);
        // Nothing is served there without.
        let mut without = TcpStream::connect(address).await.unwrap();
        without.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within("the end", without.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    let answers = raw_in_turn(plain, &[REQUEST]).await;
    assert!(answers[0].starts_with("HTTP/1.1 200 OK\r\n"), "{answers:?}");
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn a_backend_is_believed_whose_certificate_its_ca_signed() {
    let authority = Authority::new();
    let backend = TlsBackend::start(&authority.issue("backend", &["127.0.0.1"]), None).await;
    let tls = format!("            ca: {}\n", authority.file().display());
    let proxy = Proxy::with(&https(backend.address, &tls));
    for _ in 0..2 {
        let answered = post(&proxy.url("/mcp")).send().await.unwrap();
        assert_eq!(answered.status(), 200);
        assert!(
            answered.bytes().await.unwrap().is_empty(),
            "it was shown a certificate"
        );
    }
}

#[tokio::test]
async fn a_backend_that_cannot_be_believed_is_502_and_logged() {
    let authority = Authority::new();
    let other = Authority::new();
    let of_other = other.issue("backend", &["127.0.0.1"]);
    let of_other_name = authority.issue("backend", &["other.example"]);
    for (identity, cause) in [
        (of_other, "UnknownIssuer"),
        (of_other_name, "not valid for name"),
    ] {
        let backend = TlsBackend::start(&identity, None).await;
        let tls = format!("            ca: {}\n", authority.file().display());
        let proxy = ProxyProcess::start(&https(backend.address, &tls)).await;
        let answered = post(&proxy.url("/mcp")).send().await.unwrap();
        assert_eq!(answered.status(), 502);
        for text in ["backend-unreachable: backend a", cause] {
            within(text, logged(&proxy, text)).await;
        }
    }
}

/// What `tests/invalid` cannot hold, as it takes good files: no key is kept in a repository.
#[test]
fn files_that_do_not_fit_are_refused() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let other = authority.issue("other", &["localhost"]);
    let broken = authority.issue("broken", &["localhost"]);
    std::fs::write(&broken.certificate, BROKEN_CERTIFICATE).unwrap();
    std::fs::write(&broken.key, BROKEN_KEY).unwrap();
    let mixed = Files {
        certificate: own.certificate.clone(),
        key: other.key.clone(),
    };
    let swapped = Files {
        certificate: own.key.clone(),
        key: own.certificate.clone(),
    };
    let unsupported = Files {
        certificate: own.certificate.clone(),
        key: broken.key.clone(),
    };
    for (keys, error) in [
        (
            listener(&[&mixed], None),
            "7:13: mcp.listeners[0].tls.certificates[0]: the key is of another certificate: expected the certificate's own",
        ),
        (
            listener(&[&swapped], None),
            "7:13: mcp.listeners[0].tls.certificates[0].certificate: no certificate in it: expected one or more in PEM",
        ),
        (
            listener(&[&broken], None),
            "7:13: mcp.listeners[0].tls.certificates[0].certificate: a certificate in it is broken: expected whole ones in PEM",
        ),
        (
            listener(&[&unsupported], None),
            "8:13: mcp.listeners[0].tls.certificates[0].key: a key of a kind that is not supported: expected RSA, ECDSA (P-256, P-384) or Ed25519",
        ),
        (
            listener(&[&own, &own], None),
            "9:13: mcp.listeners[0].tls.certificates[1]: duplicate certificate: expected each once",
        ),
        (
            listener(&[&own], None) + "      h2c: true\n",
            "3:3: mcp.listeners: 'h2c' where there is 'tls': expected it on others only",
        ),
    ] {
        assert_eq!(refused(&keys, &route(&[NOBODY])), error);
    }
    let alone = format!(
        "            ca: {}\n            certificate: {}\n",
        authority.file().display(),
        own.certificate.display()
    );
    assert_eq!(
        refused("", &https(NOBODY, &alone)),
        "8:11: mcp.routes[0].backends[0]: one of 'certificate' and 'key' alone: expected both"
    );
}

/// Without `ca`, the system's authorities are believed, and they alone.
#[tokio::test]
async fn a_backend_is_believed_whose_certificate_the_system_knows() {
    let authority = Authority::new();
    let backend = TlsBackend::start(&authority.issue("backend", &["127.0.0.1"]), None).await;
    let routes = https(backend.address, "");
    let other = Authority::new();
    for (system, status) in [(&authority, 200), (&other, 502)] {
        let system = system.file();
        let environment = [("SSL_CERT_FILE", system.to_str().unwrap())];
        let proxy = ProxyProcess::with_environment(&routes, &environment).await;
        let answered = post(&proxy.url("/mcp")).send().await.unwrap();
        assert_eq!(answered.status(), status);
    }
}

#[test]
fn without_the_systems_authorities_a_backend_needs_its_own() {
    let file = support::process::scratch_file("yaml");
    let mcp = https(NOBODY, "");
    std::fs::write(
        &file,
        format!("mcp:\n  listeners:\n    - address: {NOBODY}\n{mcp}"),
    )
    .unwrap();
    for (name, value) in [
        ("SSL_CERT_FILE", "/dev/null"),
        ("SSL_CERT_FILE", "/missing"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pingora-mcp"));
        command.arg("-t").arg("-c").arg(&file);
        command.env_remove("SSL_CERT_DIR").env(name, value);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(
            error.contains("this system has no list of authorities"),
            "{error}"
        );
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_backend_is_shown_the_proxys_certificate() {
    let authority = Authority::new();
    let identity = authority.issue("backend", &["127.0.0.1"]);
    let backend = TlsBackend::start(&identity, Some(&authority)).await;
    let own = authority.issue("proxy", &["proxy"]);
    let tls = client_tls(&authority.file(), &own);
    let proxy = Proxy::with(&https(backend.address, &tls));
    let shown = post(&proxy.url("/mcp"))
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(*shown, *own.chain()[0]);

    // The next one, once its files are there; no connection with the old one is used again.
    let next = authority.issue("proxy", &["proxy"]);
    proxy.certificates.look();
    let shown = post(&proxy.url("/mcp"))
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(*shown, *next.chain()[0]);

    let tls = format!("            ca: {}\n", authority.file().display());
    let without = Proxy::with(&https(backend.address, &tls));
    let answered = post(&without.url("/mcp")).send().await.unwrap();
    assert_eq!(answered.status(), 502);
}

#[tokio::test]
async fn a_changed_ca_is_believed_from_the_next_request_on() {
    let old = Authority::new();
    let new = Authority::new();
    let backend = TlsBackend::start(&old.issue("backend", &["127.0.0.1"]), None).await;
    let tls = format!("            ca: {}\n", old.file().display());
    let proxy = Proxy::with(&https(backend.address, &tls));
    let status = async || post(&proxy.url("/mcp")).send().await.unwrap().status();
    assert_eq!(status().await, 200);
    std::fs::write(old.file(), new.pem()).unwrap();
    proxy.certificates.look();
    assert_eq!(status().await, 502);
}

#[tokio::test]
async fn changed_files_are_shown_from_the_next_connection_on_and_bad_ones_never() {
    let authority = Authority::new();
    let old = authority.issue("own", &["localhost"]);
    let shown_before = old.chain()[0].clone();
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::listening(&listener(&[&old], None), &route(&[backend.address]));
    let client = TlsClient::trusting(&authority);
    let shown = async || client.certificate_of(proxy.address, "localhost").await;
    let open = client.http2(proxy.address, "localhost").await;

    let bad: [&dyn Fn(&Files); 5] = [
        &|files| std::fs::write(&files.certificate, "").unwrap(),
        &|files| std::fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap(),
        &|files| std::fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\n").unwrap(),
        // The key is written after the certificate.
        &|files| {
            let next = authority.issue("next", &["localhost"]);
            std::fs::rename(next.certificate, &files.certificate).unwrap();
        },
        &|files| std::fs::remove_file(&files.key).unwrap(),
    ];
    for spoil in bad {
        spoil(&old);
        proxy.certificates.look();
        assert_eq!(shown().await, shown_before);
    }
    let next = authority.issue("own", &["localhost"]);
    proxy.certificates.look();
    assert_eq!(shown().await, next.chain()[0]);
    assert_ne!(shown().await, shown_before);
    // What was open before goes on.
    assert_eq!(open.send(open.post(), INITIALIZE).await.status(), 200);
}

#[tokio::test]
async fn a_changed_client_ca_decides_on_the_next_connection() {
    let old = Authority::new();
    let new = Authority::new();
    let backend = Backend::with_session("id").await;
    let own = old.issue("own", &["localhost"]);
    let file = old.file();
    let proxy = Proxy::listening(&listener(&[&own], Some(&file)), &route(&[backend.address]));
    let of_old = TlsClient::trusting(&old).with(&old.issue("client", &["client"]));
    let of_new = TlsClient::trusting(&old).with(&new.issue("client", &["client"]));
    assert!(of_old.raw(proxy.address, REQUEST).await.is_ok());
    assert!(of_new.raw(proxy.address, REQUEST).await.is_err());

    let link = file.with_extension("new");
    std::os::unix::fs::symlink(new.file(), &link).unwrap();
    std::fs::rename(link, &file).unwrap();
    proxy.certificates.look();
    assert!(of_new.raw(proxy.address, REQUEST).await.is_ok());
    let of_old = TlsClient::trusting(&old).with(&old.issue("client", &["client"]));
    assert!(of_old.raw(proxy.address, REQUEST).await.is_err());
}

#[tokio::test]
async fn a_session_that_a_former_client_ca_let_in_is_not_resumed() {
    for version in [&TLS12, &TLS13] {
        let old = Authority::new();
        let new = Authority::new();
        let backend = Backend::with_session("id").await;
        let own = old.issue("own", &["localhost"]);
        let file = old.file();
        let keys = listener(&[&own], Some(&file));
        let proxy = Proxy::listening(&keys, &route(&[backend.address]));
        let client = TlsClient::speaking(&[version], &old);
        let client = client.with(&old.issue("client", &["client"]));
        assert!(client.raw(proxy.address, REQUEST).await.is_ok());
        assert!(client.resumes(proxy.address).await);
        assert!(client.raw(proxy.address, REQUEST).await.is_ok());

        std::fs::write(&file, new.pem()).unwrap();
        proxy.certificates.look();
        assert!(client.raw(proxy.address, REQUEST).await.is_err());
        assert_eq!(backend.seen().len(), 2);

        // What is said of the same file again changes nothing.
        let of_new = TlsClient::speaking(&[version], &old);
        let of_new = of_new.with(&new.issue("client", &["client"]));
        assert!(of_new.raw(proxy.address, REQUEST).await.is_ok());
        proxy.certificates.look();
        assert!(of_new.resumes(proxy.address).await);
    }
}

#[tokio::test]
async fn a_silent_stream_of_a_backend_is_believed_as_a_call_is_and_ends_in_order_at_its_age() {
    let authority = Authority::new();
    let backend = TlsBackend::start(&authority.issue("backend", &["127.0.0.1"]), None).await;
    let proxy_of = |ca: &Authority| {
        let limits = "      timeouts: { max_stream_age: 2s }\n";
        Proxy::with(&(https_of(backend.address, ca) + limits))
    };
    let stream = async |proxy: &Proxy| {
        let stream = reqwest::Client::new().get(proxy.url("/mcp"));
        let stream = stream.header("accept", "text/event-stream").send();
        within("a header", stream).await.unwrap()
    };
    let proxy = proxy_of(&authority);
    // No connection of a stream is a call's, nor the other way round.
    for _ in 0..2 {
        let called = post(&proxy.url("/mcp")).send().await.unwrap();
        assert_eq!(called.status(), 200);
        let events = stream(&proxy).await.text();
        assert_eq!(within("the end", events).await.unwrap(), "data: 1\n\n");
    }
    let unbelieving = proxy_of(&Authority::new());
    assert_eq!(stream(&unbelieving).await.status(), 502);
}

#[tokio::test]
async fn a_reload_changes_whom_backends_must_prove_to_be() {
    let (old, new) = (Authority::new(), Authority::new());
    let backend = TlsBackend::start(&new.issue("backend", &["127.0.0.1"]), None).await;
    let mut proxy = ProxyProcess::start(&https_of(backend.address, &old)).await;
    let url = proxy.url("/mcp");
    let status = async || post(&url).send().await.unwrap().status();
    assert_eq!(status().await, 502);
    proxy.reload(&https_of(backend.address, &new)).await;
    assert_eq!(status().await, 200);
    // Its files are looked at from now on.
    std::fs::write(new.file(), old.pem()).unwrap();
    within("a line on the file", logged(&proxy, "read again")).await;
    assert_eq!(status().await, 502);
}

#[tokio::test]
async fn another_file_of_a_listener_needs_a_restart_and_a_changed_one_does_not() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let routes = route(&[NOBODY]);
    let mut proxy = ProxyProcess::listening(&listener(&[&own], None), &routes, &[]).await;
    authority.issue("own", &["localhost"]);
    proxy.reload(&routes).await;
    assert!(!proxy.log().contains("restart"), "{}", proxy.log());

    proxy.keys = listener(&[&authority.issue("other", &["localhost"])], None);
    proxy.reload(&routes).await;
    let told = "but what needs a restart: mcp.listeners\n";
    assert!(proxy.log().contains(told), "{}", proxy.log());
}

#[tokio::test]
async fn a_new_process_takes_the_listener_over() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let backend = Backend::with_session("id").await;
    let keys = listener(&[&own], None);
    let mut old = ProxyProcess::listening(&keys, &route(&[backend.address]), &[]).await;
    let new = old.successor();
    old.signal("QUIT");
    assert_eq!(old.ended().await, Some(0));
    let client = TlsClient::trusting(&authority);
    let answer = client.raw(new.address, REQUEST).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// As it is shipped: nobody tells it to look.
#[tokio::test]
async fn the_binary_looks_at_its_files_by_itself_and_says_what_it_finds() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let proxy = ProxyProcess::listening(&listener(&[&own], None), &route(&[NOBODY]), &[]).await;
    let client = TlsClient::trusting(&authority);
    let before = client.certificate_of(proxy.address, "localhost").await;
    assert_eq!(before, own.chain()[0]);

    std::fs::write(&own.key, "-----BEGIN PRIVATE KEY-----\ns3cret").unwrap();
    within(
        "a line on the bad file",
        logged(&proxy, "the old ones stay"),
    )
    .await;
    assert!(!proxy.log().contains("s3cret"), "{}", proxy.log());
    assert_eq!(
        client.certificate_of(proxy.address, "localhost").await,
        before
    );

    let next = authority.issue("own", &["localhost"]);
    within("a line on the good one", logged(&proxy, "read again")).await;
    let shown = client.certificate_of(proxy.address, "localhost").await;
    assert_eq!(shown, next.chain()[0]);
    assert_eq!(proxy.log().matches("the old ones stay").count(), 1);
}

#[tokio::test]
async fn a_certificate_that_has_expired_or_will_soon_is_told_and_the_first_date_is_a_metric() {
    let authority = Authority::new();
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    let good = authority.issue_until("good", now + 15 * day);
    let bad = authority.issue_until("bad", now + 13 * day);
    let admin = unused_address();
    let routes = route(&[NOBODY]) + &format!("  admin: {{ address: {admin} }}\n");
    let keys = listener(&[&good, &bad], None);
    let mut proxy = ProxyProcess::listening(&keys, &routes, &[]).await;
    let line = |verb: &str, end| {
        let end = humantime::format_rfc3339_seconds(end);
        format!("WARN  pingora_mcp::tls::watch] certificate {verb} at {end}: [\"")
    };
    let soon = line("expires", now + 13 * day);
    assert!(proxy.until(|log| log.contains(&soon)).await);
    assert!(proxy.log().contains("bad.pem"), "{}", proxy.log());
    assert!(!proxy.log().contains("good.pem"), "{}", proxy.log());
    let expires = async || {
        let metrics = reqwest::get(format!("http://{admin}/metrics")).await;
        let metrics = metrics.unwrap().text().await.unwrap();
        let value = metrics.lines().find_map(|line| {
            line.strip_prefix("pingora_mcp_certificate_expiry_timestamp_seconds ")
        });
        SystemTime::UNIX_EPOCH + Duration::from_secs(value.unwrap().parse().unwrap())
    };
    let is_second = |shown: SystemTime, end: SystemTime| {
        shown <= end && end.duration_since(shown).unwrap() < Duration::from_secs(1)
    };
    assert!(is_second(expires().await, now + 13 * day));

    authority.issue_until("bad", now - day);
    let expired = line("expired", now - day);
    assert!(proxy.until(|log| log.contains(&expired)).await);
    assert!(is_second(expires().await, now - day));
    authority.issue("bad", &["localhost"]);
    let again = |log: String| log.matches("read again").count() == 2;
    assert!(proxy.until(again).await);
    assert!(is_second(expires().await, now + 15 * day));
    assert_eq!(proxy.log().matches("certificate expire").count(), 2);
}

#[tokio::test]
async fn a_handshake_that_fails_is_told_and_no_error() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let keys = listener(&[&own], Some(&authority.file()));
    let level = [("RUST_LOG", "info,pingora_mcp::connections=debug")];
    let proxy = ProxyProcess::listening(&keys, &route(&[NOBODY]), &level).await;
    let client = TlsClient::trusting(&authority);
    assert!(client.raw(proxy.address, REQUEST).await.is_err());
    let told = "INFO  pingora_mcp::connections] TLS handshake failed: 127.0.0.1:";
    within("a line on the handshake", logged(&proxy, told)).await;
    within("its reason", logged(&proxy, "peer sent no certificates")).await;
    // One that leaves where HTTP/2 begins.
    let client = client.with(&authority.issue("client", &["client"]));
    let mut stream = client.connect(proxy.address, "localhost").await.unwrap();
    stream.write_all(b"PRI").await.unwrap();
    stream.flush().await.unwrap();
    drop(stream);
    let told = "DEBUG pingora_mcp::connections] H2 handshake error";
    within("a line on the end", logged(&proxy, told)).await;
    assert!(!proxy.log().contains("ERROR"), "{}", proxy.log());
}

/// No cipher without encryption or without a certificate, none that lets who has the key read what was
/// said before, and none of CBC.
#[tokio::test]
async fn openssl_gets_in_by_tls_1_2_and_1_3_alone_and_by_no_weak_cipher() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let everything = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    let of_1_2 = openssl(&["ciphers", "-s", "-tls1_2", everything]).await;
    let mut of_1_2: Vec<_> = of_1_2.trim().split(':').collect();
    for weak in [
        "NULL-SHA256",
        "ADH-AES128-GCM-SHA256",
        "AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-SHA",
    ] {
        assert!(of_1_2.contains(&weak), "{weak} is not in {of_1_2:?}");
    }
    of_1_2.push("@SECLEVEL=0");
    for (kind, certificate) in [("ECDSA", own), ("RSA", rsa(&authority).await)] {
        let routes = route(&[NOBODY]);
        let proxy = Proxy::listening(&listener(&[&certificate], None), &routes);
        for version in ["-tls1", "-tls1_1"] {
            let told = s_client(proxy.address, &[version, "-cipher", everything]).await;
            assert!(
                told.contains("Cipher is (NONE)") && told.contains("SSL alert number"),
                "{told}"
            );
        }
        let taken = taken(&proxy, "-tls1_2", "-cipher", of_1_2.clone()).await;
        let strong = [
            "AES128-GCM-SHA256",
            "AES256-GCM-SHA384",
            "CHACHA20-POLY1305",
        ];
        assert_eq!(
            taken,
            strong.map(|cipher| format!("ECDHE-{kind}-{cipher}")).into()
        );
        let taken = self::taken(&proxy, "-tls1_3", "-ciphersuites", OF_1_3.into()).await;
        assert_eq!(
            taken,
            OF_1_3[..3]
                .iter()
                .map(|cipher| cipher.to_string())
                .collect()
        );
    }
}

#[tokio::test]
async fn handshakes_that_fail_are_counted_and_told_once_a_second_or_each_at_debug() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    for level in ["info", "info,pingora_mcp::connections=debug"] {
        let admin = unused_address();
        let more =
            format!("  admin: {{ address: {admin} }}\n  timeouts: {{ tls_handshake: 1s }}\n");
        let (keys, mcp) = (listener(&[&own], None), route(&[NOBODY]) + &more);
        let mut proxy = ProxyProcess::listening(&keys, &mcp, &[("RUST_LOG", level)]).await;
        let begun = Instant::now();
        let _stalled = TcpStream::connect(proxy.address).await.unwrap();
        for _ in 0..40 {
            let mut no_tls = Wire::connect(proxy.address).await;
            no_tls.send(REQUEST).await;
            no_tls.until_closed().await;
        }
        for counted in [
            r#"refusals_total{reason="tls-handshake"} 40"#,
            r#"refusals_total{reason="tls-handshake-timeout"} 1"#,
            r#"limits_hit_total{limit="tls_handshake"} 1"#,
        ] {
            let is_counted = async || {
                let metrics = reqwest::get(format!("http://{admin}/metrics")).await;
                metrics.unwrap().text().await.unwrap().contains(counted)
            };
            until_asked(counted, is_counted).await;
        }
        proxy.signal("TERM");
        assert_eq!(proxy.ended().await, Some(0));
        let log = proxy.log();
        let told = log.matches("TLS handshake failed: 127.0.0.1:").count();
        match level.contains("debug") {
            true => assert_eq!(told, 41, "{log}"),
            false => {
                let seconds = begun.elapsed().as_secs() as usize;
                assert!((1..=2 + seconds).contains(&told), "{log}");
            }
        }
        let reasons =
            ["received corrupt message", "not within 1s"].map(|it| log.matches(it).count());
        assert_eq!(reasons.iter().sum::<usize>(), told, "{log}");
    }
}

#[tokio::test]
async fn a_name_that_is_none_is_not_quoted() {
    let authority = Authority::new();
    let own = authority.issue("own", &["localhost"]);
    let keys = listener(&[&own], None);
    let mut proxy = ProxyProcess::listening(&keys, &route(&[NOBODY]), &[]).await;
    for name in ["s3cret..example", "127.0.0.1"] {
        s_client(proxy.address, &["-servername", name]).await;
    }
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await, Some(0));
    let log = proxy.log();
    assert!(!log.contains("s3cret") && !log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn curl_speaks_http2_over_tls() {
    let authority = Authority::new();
    let backend = Backend::with_session("id").await;
    let own = authority.issue("own", &["localhost"]);
    let proxy = Proxy::listening(&listener(&[&own], None), &route(&[backend.address]));
    let mut curl = tokio::process::Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--include",
        "--http2",
        "--cacert",
    ]);
    curl.arg(authority.file()).args(["--json", INITIALIZE]);
    curl.arg(format!("https://localhost:{}/mcp", proxy.address.port()));
    let output = within("curl", curl.output()).await;
    let output = output.expect("curl is missing: run `make test`, which installs it");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.starts_with("HTTP/2 200"), "{answer} {output:?}");
    assert!(answer.contains("mcp-session-id: "), "{answer}");
}

/// Which of the ciphers `offered` the proxy takes: each is left out once it is taken.
async fn taken(
    proxy: &Proxy,
    version: &str,
    option: &str,
    mut offered: Vec<&str>,
) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    loop {
        let told = s_client(proxy.address, &[version, option, &offered.join(":")]).await;
        let chosen = told
            .split("Cipher is ")
            .nth(1)
            .unwrap_or_else(|| panic!("{told}"));
        let chosen = chosen.lines().next().unwrap();
        if chosen == "(NONE)" {
            assert!(told.contains("alert handshake failure"), "{told}");
            return taken;
        }
        offered.retain(|cipher| *cipher != chosen);
        taken.insert(chosen.to_owned());
    }
}

/// What OpenSSL's client says of a connection to `proxy`.
async fn s_client(proxy: SocketAddr, options: &[&str]) -> String {
    let address = proxy.to_string();
    openssl(&[&["s_client", "-connect", &address], options].concat()).await
}

/// What OpenSSL's command says.
async fn openssl(arguments: &[&str]) -> String {
    let mut openssl = tokio::process::Command::new("openssl");
    openssl
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within("openssl", openssl.output()).await;
    let output = output.expect("openssl is missing: run `make test`, which installs it");
    let told = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&told).into_owned()
}

/// A certificate with a key of RSA.
async fn rsa(authority: &Authority) -> Files {
    let files = Files {
        certificate: authority.file().with_file_name("rsa.pem"),
        key: authority.file().with_file_name("rsa.key"),
    };
    let told = openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        files.key.to_str().unwrap(),
        "-out",
        files.certificate.to_str().unwrap(),
    ])
    .await;
    assert!(files.certificate.exists(), "{told}");
    files
}

/// What is said of a configuration, but for its file's name.
fn refused(keys: &str, mcp: &str) -> String {
    let yaml = format!("version: 1\nmcp:\n  listeners:\n    - address: {NOBODY}\n{keys}{mcp}");
    let error = Settings::parse("x", &yaml, HashMap::new())
        .unwrap_err()
        .to_string();
    error.strip_prefix("x:").unwrap().to_owned()
}

/// The YAML of one route to a backend `a`, `tls` below its `tls`.
fn https(address: SocketAddr, tls: &str) -> String {
    let mut yaml = format!(
        "  routes:\n    - path: /mcp\n      backends:\n        - name: a\n          \
         url: https://{address}/mcp\n"
    );
    if !tls.is_empty() {
        yaml += &format!("          tls:\n{tls}");
    }
    yaml
}

/// As [`https`], `authority` believed.
fn https_of(address: SocketAddr, authority: &Authority) -> String {
    https(
        address,
        &format!("            ca: {}\n", authority.file().display()),
    )
}

fn client_tls(ca: &Path, Files { certificate, key }: &Files) -> String {
    format!(
        "            ca: {}\n            certificate: {}\n            key: {}\n",
        ca.display(),
        certificate.display(),
        key.display()
    )
}

async fn logged(proxy: &ProxyProcess, text: &str) {
    while !proxy.log().contains(text) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What comes back first for a ClientHello of 3.`minor`: TLS 1.2 is 3.3.
async fn hello(proxy: SocketAddr, minor: u8) -> [u8; 7] {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&client_hello(minor)).await.unwrap();
    let mut answer = [0; 7];
    within("an answer", stream.read_exact(&mut answer))
        .await
        .unwrap();
    answer
}

/// RFC 5246 7.4.1.2, with what any server of 3.0 to 3.3 may choose from.
fn client_hello(minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    body.push(0);
    let suites = [0xc02b, 0xc02f, 0xc009, 0xc013, 0x002f_u16];
    body.extend((2 * suites.len() as u16).to_be_bytes());
    body.extend(suites.iter().flat_map(|suite| suite.to_be_bytes()));
    body.extend([1, 0]);
    // supported_groups: x25519, P-256; ec_point_formats; signature_algorithms: ECDSA, RSA-PSS.
    let extensions = [
        0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 6, 0, 4, 4, 3, 8, 4,
    ];
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, minor.min(1)];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;

const REQUEST: &str =
    "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";

const BROKEN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

const BROKEN_KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

/// The discard port: a backend that is not asked.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// All that there are (RFC 8446 B.4).
const OF_1_3: [&str; 5] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
    "TLS_AES_128_CCM_8_SHA256",
];
