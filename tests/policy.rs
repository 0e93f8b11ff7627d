//! What a route's policy lets pass and what it refuses, on the wire: by the body of every message,
//! and by the headers of the stateless era, which must not lie.

mod support;

use http::{HeaderMap, Method};
use pingora_mcp::message::{Body, Message};
use pingora_mcp::{Admission, Connection, Exchange, Rejection, Settings, server};
use proptest::option::of;
use proptest::prelude::*;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::wire::Wire;
use support::{
    Backend, Proxy, answer, ask, header, open_session, post, raw_in_turn, route, unused_address,
    within,
};

#[tokio::test]
async fn an_allow_list_lets_nothing_else_pass() {
    let policy = "      methods:\n        allow: [initialize, tools/call, ping]\n      \
                  tools:\n        allow: [echo]\n";
    let (backend, proxy) = guarded(policy).await;
    for (method, tool, refusal) in [
        ("ping", None, None),
        ("initialize", None, None),
        ("tools/call", Some("echo"), None),
        ("tools/call", Some("Echo"), Some("tool-forbidden")),
        ("tools/call", Some(""), Some("tool-forbidden")),
        ("tools/list", None, Some("method-forbidden")),
        ("prompts/get", Some("echo"), Some("method-forbidden")),
        ("Ping", None, Some("method-forbidden")),
        ("notifications/initialized", None, Some("method-forbidden")),
    ] {
        for request in [
            session_era(&proxy, method, tool),
            stateless(&proxy, method, tool),
        ] {
            assert_told(&backend, request, refusal.map(|name| (403, name))).await;
        }
    }
}

#[tokio::test]
async fn a_deny_list_lets_all_else_pass_and_wins() {
    let policy = "      methods:\n        deny: [prompts/get]\n      tools:\n        \
                  allow: [echo, delete]\n        deny: [delete]\n";
    let (backend, proxy) = guarded(policy).await;
    for (method, tool, refusal) in [
        ("ping", None, None),
        ("tools/call", Some("echo"), None),
        ("tools/call", Some("delete"), Some("tool-forbidden")),
        ("tools/call", Some("count"), Some("tool-forbidden")),
        ("prompts/get", Some("echo"), Some("method-forbidden")),
        ("resources/read", Some("demo://delete"), None),
    ] {
        for request in [
            session_era(&proxy, method, tool),
            stateless(&proxy, method, tool),
        ] {
            assert_told(&backend, request, refusal.map(|name| (403, name))).await;
        }
    }
}

#[tokio::test]
async fn a_session_is_judged_by_bodies_whatever_headers_say() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let url = proxy.url("/mcp");
    let id = open_session(&url).await;
    let bound = |body: &str| {
        post(&url)
            .header("mcp-session-id", &id)
            .body(body.to_owned())
    };
    assert_eq!(ask(&url, &id).await.status(), 200);
    let denied = call("delete").to_string();
    let allowed = call("echo").to_string();
    for (header, tool) in [("mcp-name", "echo"), ("mcp-method", "ping")] {
        let request = bound(&denied).header(header, tool);
        assert_told(&backend, request, Some((403, "tool-forbidden"))).await;
        let request = bound(&denied).header("mcp-protocol-version", "2025-11-25");
        let request = request.header(header, tool);
        assert_told(&backend, request, Some((403, "tool-forbidden"))).await;
    }
    let request = bound(&allowed).header("mcp-name", "delete");
    assert_told(&backend, request, None).await;
    // An answer to the server's question, and a notification of a method that may not be used.
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"method":"tools/call","name":"delete"}}"#;
    assert_told(&backend, bound(answer), None).await;
    let notification = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"delete"}}"#;
    assert_told(&backend, bound(notification), Some((403, "tool-forbidden"))).await;
    assert_eq!(ask(&url, &id).await.status(), 200);
}

#[tokio::test]
async fn each_message_of_a_batch_is_judged() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let batch = |last: Value| json!([call("echo"), { "id": 1, "result": {} }, last]).to_string();
    let url = proxy.url("/mcp");
    assert_told(&backend, post(&url).body(batch(call("count"))), None).await;
    let denied = post(&url).body(batch(call("delete")));
    assert_told(&backend, denied, Some((403, "tool-forbidden"))).await;
    for body in ["[]", "[1]", "[[]]", r#"[{"method":"ping"},"#] {
        assert_told(&backend, post(&url).body(body), MALFORMED).await;
    }
    // Headers speak of one message.
    let headers = stateless(&proxy, "tools/call", Some("echo"));
    assert_told(&backend, headers.body(batch(call("echo"))), MALFORMED).await;
}

#[tokio::test]
async fn a_header_that_lies_or_lacks_is_400_with_the_requests_id() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let delete = &call("delete");
    let echo = &call("echo");
    let read = &message("resources/read", Some("demo://greeting"));
    let version = ("mcp-protocol-version", "2026-07-28");
    let method = ("mcp-method", "tools/call");
    let name = ("mcp-name", "echo");
    let other_revision = &json!({ "id": 7, "method": "tools/call", "params": { "name": "echo",
        "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-12-01" } } });
    let lies: &[(&[_], &Value)] = &[
        (&[version, method, name], delete),
        (&[version, method, ("mcp-name", "delete")], echo),
        (&[version, ("mcp-method", "ping"), name], echo),
        (&[version, ("mcp-method", "tools/list")], echo),
        (&[version, ("mcp-method", "TOOLS/CALL"), name], echo),
        (&[version, method, ("mcp-name", "Echo")], echo),
        (&[version, method], echo),
        (&[version, name], echo),
        (&[version], echo),
        (&[version], &json!({ "id": 7, "method": "ping" })),
        (&[version, method, name, name], echo),
        (&[version, method, name], other_revision),
        (&[version, ("mcp-method", "resources/read"), name], read),
        (
            &[version, method, name],
            &json!({ "id": 7, "method": "tools/call" }),
        ),
        (&[version, method, ("mcp-name", "=?base64?ZWNobw?=")], echo),
        (&[version, method, ("mcp-name", "=?base64?/w==?=")], echo),
        (
            &[version, method, ("mcp-name", "=?BASE64?ZWNobw==?=")],
            echo,
        ),
    ];
    for (headers, body) in lies {
        let request = with(&proxy, headers, &body.to_string());
        assert_eq!(mismatch(&backend, request).await["id"], 7, "{headers:?}");
    }
    for id in ["-1", "9007199254740993123", "\"a\\u0000 \\\"\"", "1.50"] {
        let body = format!(r#"{{"method":"ping","id":{id}}}"#);
        let request = with(&proxy, &[version, ("mcp-method", "x")], &body);
        let error = request.send().await.unwrap().text().await.unwrap();
        assert!(error.ends_with(&format!(",\"id\":{id}}}")), "{error}");
    }
    // What is not answered has no id, or that of a request of the server's.
    for body in [r#"{"method":"notifications/a"}"#, r#"{"id":1,"result":{}}"#] {
        let request = with(&proxy, &[version, ("mcp-method", "notifications/b")], body);
        let error = mismatch(&backend, request).await;
        assert_eq!(error.get("id"), None);
    }
}

#[tokio::test]
async fn headers_that_say_what_the_body_says_pass() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let version = ("mcp-protocol-version", "2026-07-28");
    let method = ("mcp-method", "tools/call");
    let accented = &call("\u{e9}cho");
    let truths: &[(&[_], &Value)] = &[
        (&[version, method, ("mcp-name", "echo")], &call("echo")),
        (&[version, method, ("mcp-name", "  echo\t")], &call("echo")),
        (
            &[version, method, ("mcp-name", "=?base64?ZWNobw==?=")],
            &call("echo"),
        ),
        (
            &[version, method, ("mcp-name", "=?base64?w6ljaG8=?=")],
            accented,
        ),
        (&[version, method, ("mcp-name", "=?base64??=")], &call("")),
        (
            &[version, method, ("mcp-name", "=?BASE64?x?=")],
            &call("=?BASE64?x?="),
        ),
        (
            &[version, method, ("mcp-name", "echo")],
            &with_revision("echo"),
        ),
        (&[version], &json!({ "method": "notifications/cancelled" })),
        // An extension's own use of the header.
        (
            &[version, ("mcp-method", "tasks/get"), ("mcp-name", "task-1")],
            &json!({ "id": 1, "method": "tasks/get", "params": { "taskId": "task-1" } }),
        ),
    ];
    for (headers, body) in truths {
        assert_told(&backend, with(&proxy, headers, &body.to_string()), None).await;
    }
}

#[tokio::test]
async fn a_denied_name_is_found_however_it_is_written() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    for body in [
        r#"{"method":"tools\/call","params":{"name":"delete"}}"#,
        r#"{"method":"\u0074ools/call","params":{"name":"\u0064elete"}}"#,
        r#"{"m\u0065thod":"tools/call","p\u0061rams":{"n\u0061me":"delete"}}"#,
        "\r\n\t {\r\n \"params\" : { \"name\" :\t\"delete\" } , \"method\" : \"tools/call\" }\n",
        r#"{"params":{"arguments":{"name":"echo"},"name":"delete"},"method":"tools/call"}"#,
    ] {
        let request = post(&proxy.url("/mcp")).body(body);
        assert_told(&backend, request, Some((403, "tool-forbidden"))).await;
    }
}

#[tokio::test]
async fn what_parsers_may_read_in_several_ways_is_refused() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let deep = format!(
        r#"{{"method":"tools/call","params":{}"delete"{}}}"#,
        "[".repeat(30_000),
        "]".repeat(30_000)
    );
    for body in [
        "",
        " ",
        "null",
        "1",
        "\"tools/call\"",
        "{",
        "{}{}",
        "{\"method\":\"ping\"}\n{\"method\":\"ping\"}",
        "{\"method\":\"ping\",}",
        "{'method':'ping'}",
        "{\"method\":\"ping\"} // comment",
        "\u{feff}{\"method\":\"ping\"}",
        r#"{"method":"ping","method":"tools/call"}"#,
        r#"{"method":"tools/call","m\u0065thod":"ping"}"#,
        r#"{"method":"ping","Method":"tools/call"}"#,
        r#"{"method":"tools/call","params":{"name":"echo"},"params":{"name":"delete"}}"#,
        r#"{"method":"tools/call","params":{"name":"echo"},"param\u017f":{"name":"delete"}}"#,
        r#"{"method":"tools/call","params":{"name":"echo","name":"delete"}}"#,
        r#"{"method":"tools/call","params":{"name":"echo","NAME":"delete"}}"#,
        r#"{"method":"tools/call","id":1,"id":2,"params":{"name":"echo"}}"#,
        r#"{"method":null}"#,
        r#"{"method":["tools/call"]}"#,
        r#"{"method":"\ud800"}"#,
        r#"{"method":"tools/call"}"#,
        r#"{"method":"tools/call","params":["delete"]}"#,
        r#"{"method":"tools/call","params":{"name":["delete"]}}"#,
        r#"{"method":"tools/call","params":{"name":"\ud800"}}"#,
        &deep,
    ] {
        let request = post(&proxy.url("/mcp")).body(body.to_owned());
        assert_told(&backend, request, MALFORMED).await;
    }
    for bytes in [
        b"{\"method\":\"ping\",\"x\":\"\xc3\"}".as_slice(),
        b"{\"method\":\"ping\xff\"}",
        b"{\x00\"\x00m\x00e\x00t\x00h\x00o\x00d\x00\"\x00:\x001\x00}\x00",
    ] {
        let request = post(&proxy.url("/mcp")).body(bytes);
        assert_told(&backend, request, MALFORMED).await;
    }
}

#[tokio::test]
async fn what_is_only_deep_or_odd_elsewhere_passes() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let deep = format!(
        r#"{{"method":"tools/call","params":{{"name":"echo","arguments":{}{}}}}}"#,
        "[".repeat(30_000),
        "]".repeat(30_000)
    );
    for body in [
        "{}",
        r#"{"method":"x/y","params":{"name":{"a":1},"uri":null}}"#,
        r#"{"method":"x/y","params":[1,2],"id":null}"#,
        r#"{"method":"ping","extra":{"a":1,"a":2,"Method":3}}"#,
        &deep,
    ] {
        let request = post(&proxy.url("/mcp")).body(body.to_owned());
        assert_told(&backend, request, None).await;
        assert_eq!(backend.last().body, body);
    }
}

#[tokio::test]
async fn what_is_not_plain_json_is_415() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let typed = |content_type: &str| {
        let request = reqwest::Client::new().post(proxy.url("/mcp"));
        request
            .header("content-type", content_type)
            .body(r#"{"method":"ping"}"#)
    };
    for good in [
        "application/json",
        "Application/JSON ; Charset=UTF-8",
        "application/json;charset=\"utf-8\"",
    ] {
        assert_told(&backend, typed(good), None).await;
    }
    let without = reqwest::Client::new().post(proxy.url("/mcp"));
    assert_told(&backend, without.body(r#"{"method":"ping"}"#), None).await;
    for bad in [
        "application/json; charset=utf-7",
        "application/json; charset=utf-16",
        "application/json; charset=utf-8; charset=utf-7",
        "application/json; x=\";charset=utf-8\"",
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
    ] {
        assert_told(&backend, typed(bad), Some((415, "message-not-json"))).await;
    }
    for (coding, refusal) in [
        ("gzip", Some((415, "message-not-json"))),
        ("identity, gzip", Some((415, "message-not-json"))),
        ("identity", None),
    ] {
        let request = post(&proxy.url("/mcp")).header("content-encoding", coding);
        assert_told(&backend, request, refusal).await;
    }
}

#[tokio::test]
async fn a_message_of_64_kib_passes_and_one_byte_more_is_413() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let url = proxy.url("/mcp");
    for (length, refusal) in [(65_536, None), (65_537, Some((413, "message-too-large")))] {
        let body = padded(length);
        assert_told(&backend, post(&url).body(body.clone()), refusal).await;
        let pieces: Vec<_> = body.as_bytes().chunks(1000).map(<[u8]>::to_vec).collect();
        let pieces = futures::stream::iter(pieces.into_iter().map(std::io::Result::Ok));
        let chunked = post(&url).body(reqwest::Body::wrap_stream(pieces));
        assert_told(&backend, chunked, refusal).await;
        if refusal.is_none() {
            assert_eq!(backend.last().body, body);
            assert_eq!(header(&backend.last().headers, "content-length"), None);
        }
    }
    // Its header alone is enough.
    let mut client = Wire::connect(proxy.address).await;
    let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n";
    client.send(head).await;
    let refused = client.receive("it is checked first.\"}").await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_asked() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    for (tool, status) in [("echo", "200"), ("delete", "403"), ("echo", "200")] {
        let mut client = Wire::connect(proxy.address).await;
        let body = call(tool).to_string();
        let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
        client
            .send(&format!("{head}Content-Length: {}\r\n\r\n", body.len()))
            .await;
        let asked = client.receive("\r\n\r\n").await;
        assert!(asked.starts_with("HTTP/1.1 100 "), "{asked}");
        client.send(&body).await;
        let answer = client.receive("\r\n\r\n").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(!answer.contains("Connection: close"), "{answer}");
    }
    assert_eq!(backend.seen().len(), 2);
    assert_eq!(backend.last().header("expect"), None);
    // One that would be refused anyway is not asked.
    let mut client = Wire::connect(proxy.address).await;
    let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
    client
        .send(&format!("{head}Content-Length: 65537\r\n\r\n"))
        .await;
    let refused = client.receive("\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    assert!(refused.contains("Connection: close"), "{refused}");
}

#[tokio::test]
async fn the_connection_goes_on_after_a_refusal() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let request = |headers: &str, body: &str| {
        let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\n";
        format!(
            "{head}{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let good = request("", &call("echo").to_string());
    let requests = [
        request("", &call("delete").to_string()),
        good.clone(),
        request(
            "MCP-Protocol-Version: 2026-07-28\r\n",
            &call("echo").to_string(),
        ),
        good.clone(),
        request("", "nonsense"),
        good.clone(),
        request("Content-Encoding: gzip\r\n", "compressed"),
        good.clone(),
        request("", &padded(65_537)),
        good.clone(),
    ];
    let requests: Vec<_> = requests.iter().map(String::as_str).collect();
    let answers = within("the answers", raw_in_turn(proxy.address, &requests)).await;
    let statuses: Vec<_> = answers.iter().map(|answer| &answer[9..12]).collect();
    let expected = [
        "403", "200", "400", "200", "400", "200", "415", "200", "413", "200",
    ];
    assert_eq!(statuses, expected);
    assert_eq!(backend.seen().len(), 5);
}

#[tokio::test]
async fn a_page_can_read_why_it_is_refused() {
    let (_backend, proxy) = guarded(NO_DELETE).await;
    let request = post(&proxy.url("/mcp")).header("origin", "http://localhost:6274");
    let refused = request
        .body(call("delete").to_string())
        .send()
        .await
        .unwrap();
    let allowed = header(refused.headers(), "access-control-allow-origin");
    assert_eq!(allowed, Some("http://localhost:6274"));
}

#[tokio::test]
async fn a_client_that_leaves_within_its_message_reaches_no_backend() {
    let (backend, proxy) = guarded(NO_DELETE).await;
    let mut client = Wire::connect(proxy.address).await;
    let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n";
    client.send(&format!("{head}{{\"method\":")).await;
    client.close().await;
    let request = session_era(&proxy, "ping", None);
    assert_told(&backend, request, None).await;
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn a_judged_message_reaches_the_next_backend_whole() {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let yaml = route(&[unused_address(), backend.address]) + NO_DELETE;
    let proxy = Proxy::with(&yaml);
    for length in [100, 65_536] {
        let body = padded(length);
        let request = post(&proxy.url("/mcp")).body(body.clone());
        assert_told(&backend, request, None).await;
        assert_eq!(backend.last().body, body);
    }
}

#[tokio::test]
async fn only_posts_are_judged() {
    let (backend, proxy) = guarded("      methods:\n        allow: []\n").await;
    let client = reqwest::Client::new();
    let discovery = "/.well-known/oauth-protected-resource/mcp";
    for (method, path) in [(Method::GET, "/mcp"), (Method::GET, discovery)] {
        let request = client.request(method, proxy.url(path));
        let answered = request.header("accept", "text/event-stream").send().await;
        assert_eq!(answered.unwrap().status(), 200, "{path}");
    }
    assert_eq!(backend.seen().len(), 2);
    let preflight = client.request(Method::OPTIONS, proxy.url("/mcp"));
    assert_eq!(preflight.send().await.unwrap().status(), 200);
    let delete = client
        .delete(proxy.url("/mcp"))
        .header("mcp-protocol-version", "2026-07-28");
    assert_eq!(delete.send().await.unwrap().status(), 200);
    let request = session_era(&proxy, "initialize", None);
    assert_told(&backend, request, Some((403, "method-forbidden"))).await;
    let below = post(&proxy.url("/mcp/below"));
    assert_told(&backend, below, Some((403, "method-forbidden"))).await;
}

/// A policy of one route is none of another's, and the default is none.
#[tokio::test]
async fn a_route_without_a_policy_looks_at_no_body() {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let backends = format!(
        "      backends:\n        - name: a\n          url: http://{}/mcp\n",
        backend.address
    );
    let defaults = "      methods:\n        allow: null\n        deny: []\n";
    let yaml = format!(
        "  routes:\n    - path: /open\n{backends}{defaults}    - path: /guarded\n{backends}{NO_DELETE}"
    );
    let proxy = Proxy::with(&yaml);
    let lie = |path: &str| {
        let request = post(&proxy.url(path)).header("mcp-protocol-version", "2026-07-28");
        let request = request
            .header("mcp-method", "ping")
            .header("content-encoding", "gzip");
        request.body("x".repeat(200_000))
    };
    assert_told(&backend, lie("/open"), None).await;
    assert_eq!(backend.last().body.len(), 200_000);
    assert_told(&backend, lie("/guarded"), Some((415, "message-not-json"))).await;

    // Its header arrives before its body is sent.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client
        .send("POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        .await;
    let (mut arrived, _) = Wire::accept(&listener).await;
    client.send("{\"method\"").await;
    arrived.receive("{\"method\"").await;
}

/// An embedder that knows nothing of policies must not let a message pass.
#[tokio::test]
async fn the_gateway_gives_no_backend_for_a_message_that_was_not_judged() {
    let yaml = route(&["127.0.0.1:1".parse().unwrap()]) + NO_DELETE;
    let yaml = format!("mcp:\n  listeners:\n    - address: 127.0.0.1:8080\n{yaml}");
    let settings = Settings::parse("test.yaml", &yaml, Default::default()).unwrap();
    let gateway = server::gateway(settings.mcp);
    let mut request = pingora::http::RequestHeader::build("POST", b"/mcp", None).unwrap();
    request.insert_header("host", "localhost").unwrap();
    let body = |tool: &str| call(tool).to_string();
    for (body, judged, routed) in [
        (None, Ok(()), Err(Rejection::Internal)),
        (Some(body("echo")), Ok(()), Ok(())),
        (
            Some(body("delete")),
            Err(Rejection::ToolForbidden),
            Err(Rejection::Internal),
        ),
    ] {
        let mut exchange = Exchange::default();
        let admitted = gateway
            .admit(&request, Connection::default(), &mut exchange)
            .await;
        assert_eq!(admitted, Ok(Admission::Judge));
        if let Some(body) = body {
            let said = gateway.judge(&request, Some(body.as_bytes()), &mut exchange);
            assert_eq!(said.await, judged);
            assert_eq!(exchange.rejection(), judged.err());
        }
        assert_eq!(gateway.route(&mut exchange).map(drop), routed);
    }
}

proptest! {
    #[test]
    fn no_bytes_are_more_than_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Body::parse(&bytes);
    }

    #[test]
    fn what_is_judged_is_what_any_parser_reads(
        body in body(),
        cut in of((any::<prop::sample::Index>(), "[]{}\",:\\\\ a\u{e9}\u{0}]{0,2}")),
        is_pretty in any::<bool>(),
    ) {
        let write = if is_pretty { serde_json::to_string_pretty } else { serde_json::to_string };
        let mut text = write(&body).unwrap();
        if let Some((position, insert)) = cut {
            let positions: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
            text.insert_str(*position.get(&positions), &insert);
        }
        let expected = serde_json::from_str::<Value>(&text).ok();
        match Body::parse(text.as_bytes()) {
            Ok(judged) => {
                let expected = expected.unwrap();
                let messages = match &expected {
                    Value::Array(messages) => messages.as_slice(),
                    message => std::slice::from_ref(message),
                };
                prop_assert_eq!(judged.messages().len(), messages.len());
                for (judged, expected) in judged.messages().iter().zip(messages) {
                    assert_same(judged, expected)?;
                }
            }
            // Of what is JSON, only what no server would understand is refused.
            Err(_) => prop_assert!(expected.is_none_or(|body| !is_judged(&body)), "{}", text),
        }
    }
}

fn assert_same(judged: &Message, expected: &Value) -> Result<(), TestCaseError> {
    let method = expected.get("method").and_then(Value::as_str);
    prop_assert_eq!(judged.method(), method);
    let key = match method {
        Some("tools/call" | "prompts/get") => "name",
        Some("resources/read") => "uri",
        _ => "none",
    };
    let params = expected.get("params").and_then(Value::as_object);
    let name = params.and_then(|params| params.get(key)?.as_str());
    prop_assert_eq!(judged.name(), name);
    let id = expected
        .get("id")
        .filter(|id| id.is_string() || id.is_number());
    let id = id.filter(|_| method.is_some());
    let judged_id = judged
        .id()
        .map(|id| serde_json::from_str(&id.to_string()).unwrap());
    prop_assert_eq!(judged_id.as_ref(), id);
    Ok(())
}

fn is_judged(body: &Value) -> bool {
    let is_message = |message: &Value| {
        let Some(keys) = message.as_object() else {
            return false;
        };
        keys.get("method").is_none_or(Value::is_string)
    };
    match body {
        Value::Array(messages) => !messages.is_empty() && messages.iter().all(is_message),
        message => is_message(message),
    }
}

fn body() -> impl Strategy<Value = Value> {
    let batch = proptest::collection::vec(any_message(), 0..3).prop_map(Value::Array);
    prop_oneof![8 => any_message(), 1 => batch, 1 => any_value()]
}

fn any_message() -> impl Strategy<Value = Value> {
    let method = prop_oneof![
        Just(json!("tools/call")),
        Just(json!("prompts/get")),
        Just(json!("resources/read")),
        any::<String>().prop_map(Value::String),
        any_value(),
    ];
    let params =
        proptest::collection::btree_map("name|uri|_meta|arguments|[a-z]{8}", any_value(), 0..5)
            .prop_map(|params| json!(params));
    let params = prop_oneof![4 => params, 1 => any_value()];
    (of(method), of(params), of(any_value()), any_value()).prop_map(
        |(method, params, id, other)| {
            let mut message = serde_json::Map::new();
            for (key, value) in [("id", id), ("params", params), ("method", method)] {
                message.extend(value.map(|value| (key.to_owned(), value)));
            }
            message.insert("result".to_owned(), other);
            Value::Object(message)
        },
    )
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::btree_map("method|name|params|[a-z]{3}", inner, 0..3)
                .prop_map(|object| json!(object)),
        ]
    })
}

/// Sends `request`: it is refused as `refusal` says and reaches no backend, or it is answered by
/// the backend.
async fn assert_told(backend: &Backend, request: RequestBuilder, refusal: Option<(u16, &str)>) {
    let before = backend.seen().len();
    let (status, headers, body) = tell(request).await;
    let Some((expected, name)) = refusal else {
        assert_eq!(status, 200, "{body}");
        assert_eq!(backend.seen().len(), before + 1);
        return;
    };
    assert_eq!(status, expected, "{body}");
    assert_eq!(
        header(&headers, "content-type"),
        Some("application/problem+json")
    );
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["type"], format!("urn:pingora-mcp:problem:{name}"));
    assert_eq!(backend.seen().len(), before);
}

/// Sends `request`, which is refused as one whose headers lie, and returns the JSON-RPC error.
async fn mismatch(backend: &Backend, request: RequestBuilder) -> Value {
    let before = backend.seen().len();
    let (status, headers, body) = tell(request).await;
    assert_eq!(status, 400, "{body}");
    assert_eq!(header(&headers, "content-type"), Some("application/json"));
    assert_eq!(backend.seen().len(), before);
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(error["jsonrpc"], "2.0");
    assert_eq!(error["error"]["code"], -32020);
    assert!(error["error"]["message"].is_string(), "{error}");
    error
}

async fn tell(request: RequestBuilder) -> (u16, HeaderMap, String) {
    let answered = within("the answer", request.send()).await.unwrap();
    let (status, headers) = (answered.status().as_u16(), answered.headers().clone());
    (status, headers, answered.text().await.unwrap())
}

fn session_era(proxy: &Proxy, method: &str, name: Option<&str>) -> RequestBuilder {
    with(proxy, &[], &message(method, name).to_string())
}

fn stateless(proxy: &Proxy, method: &str, name: Option<&str>) -> RequestBuilder {
    let request = session_era(proxy, method, name);
    let request = request.header("mcp-protocol-version", "2026-07-28");
    let request = request.header("mcp-method", method);
    match name {
        Some(name) => request.header("mcp-name", name),
        None => request,
    }
}

fn with(proxy: &Proxy, headers: &[(&str, &str)], body: &str) -> RequestBuilder {
    let mut request = post(&proxy.url("/mcp")).body(body.to_owned());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

fn call(tool: &str) -> Value {
    message("tools/call", Some(tool))
}

fn message(method: &str, name: Option<&str>) -> Value {
    let key = if method == "resources/read" {
        "uri"
    } else {
        "name"
    };
    json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": { key: name } })
}

fn with_revision(tool: &str) -> Value {
    let mut call = call(tool);
    call["params"]["_meta"] = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28" });
    call
}

/// A call that is allowed, of so many bytes.
fn padded(length: usize) -> String {
    let call = r#"{"method":"tools/call","params":{"name":"echo","arguments":""}}"#;
    let (start, end) = call.split_at(call.len() - 3);
    format!("{start}{}{end}", "x".repeat(length - call.len()))
}

async fn guarded(policy: &str) -> (Backend, Proxy) {
    let headers = [("mcp-session-id", "backend-id"), ("content-length", "0")];
    let backend = Backend::start(move |_| answer(200, &headers, "")).await;
    let proxy = Proxy::with(&(route(&[backend.address]) + policy));
    (backend, proxy)
}

const NO_DELETE: &str = "      tools:\n        deny: [delete]\n";

const MALFORMED: Option<(u16, &str)> = Some((400, "message-malformed"));
