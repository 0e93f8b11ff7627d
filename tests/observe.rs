//! What can be seen of the proxy: metrics, the access log, and the admin listener's pages.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use futures::StreamExt;
use http::Method;
use pingora_core::services::Service;
use pingora_mcp::host::HostPolicy;
use pingora_mcp::observe::{Admin, Observer};
use pingora_mcp::{Settings, server};
use prometheus_parse::{Sample, Scrape, Value as MetricValue};
use serde_json::{Value, json};
use support::process::ProxyProcess;
use support::redis::{KEY, Redis};
use support::tls::{Authority, Http2};
use support::wire::Wire;
use support::{Backend, answer, ask, header, initialize, open_session, post, raw, route};
use support::{until, until_asked, unused_address, within};
use tokio::net::TcpListener;
use tokio::sync::watch;

#[tokio::test]
async fn a_request_is_counted_by_route_backend_method_status_and_era() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let watched = Watched::start(&route(&[backend.address])).await;
    let id = open_session(&watched.url("/mcp")).await;
    for (bodies, bytes) in [("request", 58.0), ("response", 36.0)] {
        let labels = r#"route="/mcp",backend="b0""#;
        let sample = format!("pingora_mcp_{bodies}_body_bytes_total{{{labels}}}");
        watched.until(&sample, bytes).await;
    }
    ask(&watched.url("/mcp"), &id).await;
    stateless(&watched.url("/mcp"), "tools/list")
        .send()
        .await
        .unwrap();
    raw(
        watched.proxy.address,
        "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    .await;

    let labels = r#"route="/mcp",backend="b0",method="POST",status="2xx""#;
    let requests = "pingora_mcp_requests_total";
    watched
        .until(&format!(r#"{requests}{{{labels},era="session"}}"#), 2.0)
        .await;
    watched
        .until(&format!(r#"{requests}{{{labels},era="stateless"}}"#), 1.0)
        .await;
    let preflight = r#"route="",backend="",method="OPTIONS",status="2xx",era="""#;
    watched
        .until(&format!("{requests}{{{preflight}}}"), 1.0)
        .await;
    let operation = r#"mcp_method_name="tools/list",gen_ai_tool_name="",error_type="""#;
    let operations = "mcp_server_operation_duration_seconds_count";
    watched
        .until(&format!("{operations}{{{operation}}}"), 1.0)
        .await;
}

#[tokio::test]
async fn refusals_are_counted_by_their_reason() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let watched = Watched::start(&route(&[backend.address])).await;
    post(&watched.url("/other")).send().await.unwrap();
    ask(&watched.url("/mcp"), &"0".repeat(32)).await;
    for reason in ["unknown-path", "unknown-session"] {
        let refusals = format!(r#"pingora_mcp_refusals_total{{reason="{reason}"}}"#);
        watched.until(&refusals, 1.0).await;
    }
    let missing = r#"pingora_mcp_store_lookup_duration_seconds_count{outcome="missing"}"#;
    watched.until(missing, 1.0).await;
}

/// `rate` sees nothing of a first burst that is not preceded by zero.
#[tokio::test]
async fn what_is_counted_by_a_closed_set_is_there_at_zero_from_the_start() {
    let watched = Watched::start(&route(&[unused_address()])).await;
    let samples = parse(&watched.scrape().await).samples;
    let set = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
    for (metric, label, values) in [
        ("pingora_mcp_refusals_total", "reason", reasons()),
        ("pingora_mcp_limits_hit_total", "limit", documented_limits()),
        (
            "pingora_mcp_sessions_ended_total",
            "cause",
            set(&["deleted", "lost", "idle", "lifetime", "capacity"]),
        ),
        (
            "pingora_mcp_sessions_reaped_total",
            "outcome",
            set(&["ended", "gone", "refused", "failed", "dropped"]),
        ),
    ] {
        let of_metric = samples.iter().filter(|sample| sample.metric == metric);
        let at_zero = of_metric.filter(|sample| number(&sample.value) == Some(0.0));
        let found: BTreeSet<_> = at_zero.map(|sample| sample.labels[label].clone()).collect();
        assert_eq!(found, values, "{metric}");
    }
}

#[tokio::test]
async fn sessions_are_counted_from_their_opening_to_their_end() {
    let backend = Backend::start(|request| {
        let is_lost = request.uri.path() == "/mcp/lost";
        answer(
            if is_lost { 404 } else { 200 },
            &[("mcp-session-id", "the-backends-own-id")],
            "{}",
        )
    })
    .await;
    let limits = "  sessions:\n    capacity: 3\n    evict: oldest\n    idle_timeout: 5s\n";
    let watched = Watched::start(&(route(&[backend.address]) + limits)).await;
    let url = watched.url("/mcp");
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(open_session(&url).await);
    }
    let delete = reqwest::Client::new()
        .delete(&url)
        .header("mcp-session-id", &ids[4]);
    assert_eq!(delete.send().await.unwrap().status(), 200);
    ask(&watched.url("/mcp/lost"), &ids[3]).await;

    let opened = r#"pingora_mcp_sessions_opened_total{route="/mcp",backend="b0"}"#;
    watched.until(opened, 5.0).await;
    for (cause, count) in [
        ("capacity", 2.0),
        ("deleted", 1.0),
        ("lost", 1.0),
        ("idle", 1.0),
        ("lifetime", 0.0),
    ] {
        let ended = format!(r#"pingora_mcp_sessions_ended_total{{cause="{cause}"}}"#);
        watched.until(&ended, count).await;
    }
    watched.until("pingora_mcp_sessions_live", 0.0).await;
    let limit = r#"pingora_mcp_limits_hit_total{limit="sessions"}"#;
    watched.until(limit, 2.0).await;
}

#[tokio::test]
async fn a_stream_is_counted_for_as_long_as_it_counts_in_its_bound() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mcp = route(&[backend.local_addr().unwrap()]) + "  limits: { max_streams: 1 }\n";
    let watched = Watched::start(&mcp).await;
    let open = r#"pingora_mcp_open_streams{route="/mcp",backend="b0"}"#;
    let is_full = async || {
        let answer = raw(watched.proxy.address, GET).await;
        assert!(answer.contains("streams-full"), "{answer}");
        watched.until(open, 1.0).await;
        assert_eq!(watched.status().await["open_streams"], 1);
    };
    let mut client = Wire::connect(watched.proxy.address).await;
    client.send(GET).await;
    let (mut wire, _) = Wire::accept(&backend).await;
    is_full().await;
    wire.send(STREAM).await;
    client.receive("\r\n\r\n").await;
    is_full().await;
    drop(client);
    wire.until_closed().await;
    watched.until(open, 0.0).await;
}

#[tokio::test]
async fn connections_to_backends_are_counted_as_new_reused_or_failed() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let dead = "    - path: /dead\n      backends:\n        - name: dead\n          url: http://";
    let mcp = format!("{}{dead}{}\n", route(&[backend.address]), unused_address());
    let watched = Watched::start(&mcp).await;
    for _ in 0..2 {
        initialize(&watched.url("/mcp")).send().await.unwrap();
    }
    let dead = initialize(&watched.url("/dead")).send().await.unwrap();
    assert_eq!(dead.status(), 502);
    for connection in ["new", "reused"] {
        let labels = format!(r#"{{route="/mcp",backend="b0",connection="{connection}"}}"#);
        let connections = format!("pingora_mcp_backend_connections_total{labels}");
        watched.until(&connections, 1.0).await;
    }
    let failures = r#"pingora_mcp_backend_connect_failures_total{route="/dead",backend="dead"}"#;
    watched.until(failures, 1.0).await;
    let status = watched.status().await;
    let state = |route: usize| status["routes"][route]["backends"][0]["state"].clone();
    assert_eq!((state(0), state(1)), (json!("up"), json!("up")));

    // A third failure in a row takes it down.
    for _ in 0..2 {
        initialize(&watched.url("/dead")).send().await.unwrap();
    }
    let addresses = r#"pingora_mcp_backend_addresses{route="/dead",backend="dead",state="down"}"#;
    watched.until(addresses, 1.0).await;
    let sessions = r#"pingora_mcp_backend_sessions{route="/mcp",backend="b0"}"#;
    watched.until(sessions, 2.0).await;
    let status = watched.status().await;
    let dead = &status["routes"][0]["backends"][0];
    assert_eq!(dead["state"], "down", "{status}");
    assert!(dead["down_for_seconds"].is_u64(), "{status}");
}

#[tokio::test]
async fn tools_are_told_apart_up_to_the_cap_and_once_they_have_worked() {
    let backend = Backend::start(|request| match request.header("mcp-name") {
        Some("broken") => answer(500, &[], ""),
        _ => answer(200, &[], "{}"),
    })
    .await;
    let cap = "  metrics:\n    tool_names: 2\n";
    let watched = Watched::start(&(route(&[backend.address]) + cap)).await;
    for tool in [
        "broken",
        "no name",
        "add",
        "multiply",
        "one-too-many",
        "add",
    ] {
        let call = stateless(&watched.url("/mcp"), "tools/call").header("mcp-name", tool);
        call.send().await.unwrap();
    }
    let count = |tool: &str, error: &str| {
        format!(
            "mcp_server_operation_duration_seconds_count{{mcp_method_name=\"tools/call\",\
             gen_ai_tool_name=\"{tool}\",error_type=\"{error}\"}}"
        )
    };
    watched.until(&count("add", ""), 2.0).await;
    watched.until(&count("multiply", ""), 1.0).await;
    watched.until(&count("_OTHER", ""), 2.0).await;
    watched.until(&count("_OTHER", "5xx"), 1.0).await;
}

/// Whatever clients and backends say, a label has one of the values that are known beforehand.
#[tokio::test]
async fn no_label_has_a_value_that_a_client_or_a_backend_made_up() {
    let watched = Watched::busy().await;
    let hostile = stateless(&watched.url("/mcp?s3cret"), "s3cret");
    let hostile = hostile.header("mcp-name", "s3cret");
    let hostile = hostile.header("mcp-session-id", "s3cret").send();
    hostile.await.unwrap().text().await.unwrap();
    let odd = "S3CRET /s3cret HTTP/1.1\r\nHost: localhost\r\n\r\n";
    raw(watched.proxy.address, odd).await;
    let other = "mcp_server_operation_duration_seconds_count{mcp_method_name=\"_OTHER\",\
                 gen_ai_tool_name=\"\",error_type=\"\"}";
    watched.until(other, 1.0).await;

    let (limits, reasons) = (documented_limits(), reasons());
    let scrape = watched.scrape().await;
    assert!(!scrape.to_lowercase().contains("s3cret"), "{scrape}");
    assert!(!scrape.contains(&watched.proxy.address.to_string()));
    for sample in parse(&scrape).samples {
        for (label, value) in sample.labels.iter() {
            let known: &[&str] = match label.as_str() {
                "route" => &["", "/mcp", "/dead"],
                "backend" => &["", "b0", "dead"],
                "method" => &["GET", "POST", "DELETE", "OPTIONS", "_OTHER"],
                "status" => &["", "1xx", "2xx", "3xx", "4xx", "5xx"],
                "era" => &["", "session", "stateless"],
                "connection" => &["new", "reused"],
                "version" => &[env!("CARGO_PKG_VERSION")],
                "state" => &["up", "down", "draining", "unresolved"],
                "cause" => &["deleted", "lost", "idle", "lifetime", "capacity"],
                "outcome" => &[
                    "found", "missing", "error", "ok", "ended", "gone", "refused", "failed",
                    "dropped",
                ],
                "operation" => &["find", "insert", "remove", "claim", "settle"],
                "reason" => {
                    assert!(reasons.contains(value), "{label}={value}");
                    continue;
                }
                "limit" => {
                    assert!(limits.contains(value), "{label}={value}");
                    continue;
                }
                "mcp_method_name" => &["tools/call", "_OTHER"],
                "gen_ai_tool_name" => &["", "add"],
                "error_type" => &["", "4xx", "5xx", "client_left", "backend_left", "limit"],
                _ => panic!("{label} is in no list"),
            };
            assert!(known.contains(&value.as_str()), "{label}={value}");
        }
    }
}

#[tokio::test]
async fn the_metrics_are_those_of_the_documentation_with_their_types_and_labels() {
    let scrape = Watched::busy().await.scrape().await;
    let mut types = BTreeMap::new();
    for line in scrape.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap();
            types.insert(name.to_owned(), kind.to_owned());
        }
    }
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for sample in parse(&scrape).samples {
        let name = family(&sample.metric, &types);
        let labels = sample.labels.keys().cloned().collect();
        found.insert(name.to_owned(), (types[name].clone(), labels));
    }
    assert_eq!(found, documented_metrics());
}

#[tokio::test]
async fn prometheus_takes_what_is_scraped_and_finds_no_fault_with_its_names() {
    let scrape = Watched::busy().await.scrape().await;
    let file = support::process::scratch_file("metrics");
    std::fs::write(&file, scrape).unwrap();
    let mut promtool = Command::new("promtool");
    promtool.stdin(std::fs::File::open(&file).unwrap());
    promtool.args(["check", "metrics"]);
    assert_eq!(told(&mut promtool), "");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn prometheus_understands_each_query_of_the_dashboard_and_each_alert() {
    let queries = dashboard_targets().into_iter();
    let queries = queries.map(|(query, _)| in_place_of_grafana(&query));
    let mut rules = Vec::new();
    for query in queries.chain(documented_alerts()) {
        rules.push(json!({ "record": format!("query:{}", rules.len()), "expr": query }));
    }
    let file = support::process::scratch_file("yaml");
    let groups = json!({ "groups": [{ "name": "all", "rules": rules }] });
    std::fs::write(&file, groups.to_string()).unwrap();
    let told = told(Command::new("promtool").args(["check", "rules"]).arg(&file));
    assert!(
        told.contains(&format!("SUCCESS: {} rules found", rules.len())),
        "{told}"
    );
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_each_metric_by_labels_that_it_has() {
    let mut metrics = documented_metrics();
    // What Prometheus adds.
    for (_, labels) in metrics.values_mut() {
        labels.insert("instance".to_owned());
    }
    let mut shown = BTreeSet::new();
    let alerts = documented_alerts().into_iter();
    let alerts = alerts.map(|query| (query, String::new()));
    let variables = dashboard_variables().into_iter();
    let variables = variables.map(|query| (query, String::new()));
    let targets = dashboard_targets();
    let count = targets.len();
    let all = targets.into_iter().chain(variables).chain(alerts);
    for (position, (query, legend)) in all.enumerate() {
        // What stands in quotes is a value.
        let plain: String = query.split('"').step_by(2).collect();
        let grouping = grouping(&plain);
        let asked = asked(&plain);
        assert!(!asked.is_empty(), "{query}");
        for (name, selected) in asked {
            let parts = ["_bucket", "_count", "_sum"].into_iter();
            let mut families = parts.filter_map(|part| name.strip_suffix(part));
            let family = families.find(|family| {
                metrics
                    .get(*family)
                    .is_some_and(|(kind, _)| kind == "histogram")
            });
            let family = family.unwrap_or(name);
            let Some((kind, labels)) = metrics.get(family) else {
                panic!("{name} of {query}");
            };
            assert_eq!(kind == "histogram", family != name, "{name} of {query}");
            for label in selected.iter().chain(&grouping) {
                let is_bucket = *label == "le" && name.ends_with("_bucket");
                assert!(
                    is_bucket || labels.contains(*label),
                    "{label} of {name} in {query}"
                );
            }
            if position < count {
                shown.insert(family.to_owned());
            }
        }
        for label in legend.split("{{").skip(1) {
            let label = label.split("}}").next().unwrap().trim();
            assert!(grouping.contains(&label), "{label} of {legend}, of {query}");
        }
    }
    assert_eq!(shown, metrics.into_keys().collect());
}

#[tokio::test]
async fn the_dashboard_has_its_numbers_of_a_proxy_without_traffic_and_of_sessions_in_redis() {
    let quiet = Watched::start(&route(&[unused_address()])).await;
    let stats: Vec<_> = dashboard_stats().collect();
    let of = |query: &str, value: u8| json!({ "query": query, "value": value });
    let is_number = |(title, query): &(String, String)| {
        // There is none without TLS.
        let is_there = !title.starts_with("Certificate");
        of(
            &format!("({query}) >= bool 0 or vector(0)"),
            is_there.into(),
        )
    };
    let quiet = quiet.scrape().await;
    let quiet = evaluated(&quiet, &quiet, stats.iter().map(is_number));

    let busy = Watched::busy().await.scrape().await;
    let sessions = stats.iter().filter(|(title, _)| title == "Live sessions");
    let sessions = sessions.map(|(_, query)| of(&format!("{query} > bool 0"), 1));
    let busy = evaluated(&busy, &busy, sessions);
    hold(&[quiet, busy]);
}

/// Of series that a proxy has in trouble, and not of those that it has in none.
#[tokio::test]
async fn each_alert_fires_where_it_should_and_nowhere_else() {
    let backend = Backend::start(|request| {
        if request.method == "GET" {
            let silence = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
            let kind = [("content-type", "text/event-stream")];
            return answer(200, &kind, Body::from_stream(silence));
        }
        let status = match (request.method.as_str(), request.uri.path()) {
            ("DELETE", _) => 500,
            (_, "/mcp/lost") => 404,
            _ => 200,
        };
        answer(status, &[("mcp-session-id", "the-backends-own-id")], "{}")
    })
    .await;
    let plain = route(&[backend.address]);
    let other = |address: &str| {
        let backends = "      backends:\n        - name: other\n";
        format!("{plain}    - path: /other\n{backends}          url: http://{address}/mcp\n")
    };
    let mut cases = Vec::new();

    let watched = Watched::start(&other(&unused_address().to_string())).await;
    let id = open_session(&watched.url("/mcp")).await;
    let healthy = watched.scrape().await;
    cases.push(alerts(&healthy, &healthy, &[]));
    ask(&watched.url("/mcp/lost"), &id).await;
    let lost = r#"pingora_mcp_sessions_ended_total{cause="lost"}"#;
    watched.until(lost, 1.0).await;
    let lost = watched.scrape().await;
    cases.push(alerts(&healthy, &lost, &["cause=\"lost\""]));
    for _ in 0..3 {
        post(&watched.url("/other")).send().await.unwrap();
    }
    let unreachable = r#"pingora_mcp_refusals_total{reason="backend-unreachable"}"#;
    watched.until(unreachable, 3.0).await;
    let down = ["refusals_total", "state=\"down\"", "state!=\"up\""];
    cases.push(alerts(&lost, &watched.scrape().await, &down));

    // No name server is asked for a label of more than 63 letters.
    let watched = Watched::start(&other(&"x".repeat(64))).await;
    let unresolved = watched.scrape().await;
    cases.push(alerts(&healthy, &unresolved, &["state!=\"up\""]));
    post(&watched.url("/other")).send().await.unwrap();
    let no_backend = r#"pingora_mcp_refusals_total{reason="no-backend"}"#;
    watched.until(no_backend, 1.0).await;
    let refused = ["refusals_total", "state!=\"up\""];
    cases.push(alerts(&unresolved, &watched.scrape().await, &refused));

    let full = format!("{plain}  sessions: {{ capacity: 1, evict: oldest }}\n");
    let watched = Watched::start(&full).await;
    let healthy = watched.scrape().await;
    for _ in 0..2 {
        open_session(&watched.url("/mcp")).await;
    }
    let failed = r#"pingora_mcp_sessions_reaped_total{outcome="failed"}"#;
    watched.until(failed, 1.0).await;
    let full = [
        "cause=\"capacity\"",
        "limits_hit_total",
        "reaped_total",
        "sessions_live",
    ];
    cases.push(alerts(&healthy, &watched.scrape().await, &full));

    let few = "  limits: { max_connections: 2, max_requests: 1, max_streams: 1 }\n";
    let one = "  sessions: { capacity: 1 }\n";
    let watched = Watched::start(&format!("{plain}{few}{one}")).await;
    let healthy = watched.scrape().await;
    open_session(&watched.url("/mcp")).await;
    watched.until("pingora_mcp_open_connections", 0.0).await;
    let _idle = Wire::connect(watched.proxy.address).await;
    let mut stream = Wire::connect(watched.proxy.address).await;
    stream.send(GET).await;
    stream.receive("\r\n\r\n").await;
    watched.until("pingora_mcp_open_connections", 2.0).await;
    let nearly_full = watched.scrape().await;
    cases.push(alerts(&healthy, &nearly_full, &["/ on (instance)"]));

    let log = "  access_log: { format: text, path: /dev/full }\n";
    let watched = Watched::start(&(plain.clone() + log)).await;
    let healthy = watched.scrape().await;
    open_session(&watched.url("/mcp")).await;
    watched
        .until("pingora_mcp_access_log_lines_dropped_total", 1.0)
        .await;
    cases.push(alerts(
        &healthy,
        &watched.scrape().await,
        &["lines_dropped"],
    ));

    let mut redis = Redis::start().await;
    let store = format!("{{ redis: {{ url: \"{}\", keys: [{KEY}] }} }}", redis.url());
    let mcp = format!("{plain}  sessions: {{ store: {store} }}\n");
    let watched = Watched::start(&mcp).await;
    watched.until("pingora_mcp_store_reached", 1.0).await;
    let healthy = watched.scrape().await;
    redis.kill().await;
    watched.until("pingora_mcp_store_reached", 0.0).await;
    cases.push(alerts(
        &healthy,
        &watched.scrape().await,
        &["store_reached"],
    ));

    let (authority, day) = (Authority::new(), Duration::from_secs(24 * 60 * 60));
    let issue = |days| authority.issue_until("own", SystemTime::now() + days * day);
    let keys = support::tls::listener(&[&issue(15)], None);
    let admin = unused_address();
    let mcp = format!("{plain}  admin: {{ address: {admin} }}\n");
    let mut watched = Watched {
        proxy: ProxyProcess::listening(&keys, &mcp, &[]).await,
        admin,
        _store: None,
    };
    let healthy = watched.scrape().await;
    issue(13);
    let is_read = |log: String| log.contains("read again");
    assert!(watched.proxy.until(is_read).await);
    cases.push(alerts(&healthy, &watched.scrape().await, &["certificate"]));

    hold(&cases);
}

#[tokio::test]
async fn the_admin_pages_are_not_on_the_public_listener() {
    let backend = Backend::start(|_| answer(200, &[], "the backend's")).await;
    let watched = Watched::start(&route(&[backend.address])).await;
    for page in PAGES {
        let public = reqwest::get(watched.url(page)).await.unwrap();
        assert_eq!(public.status(), 404, "{page}");
        let own = watched.get(page).send().await.unwrap();
        assert_eq!(own.status(), 200, "{page}");
        assert_eq!(header(own.headers(), "cache-control"), Some("no-store"));
        let allowed = header(own.headers(), "access-control-allow-origin");
        assert_eq!(allowed, None);
    }
    let written = watched.post("/metrics").send().await.unwrap();
    assert_eq!(written.status(), 405);
    assert_eq!(header(written.headers(), "allow"), Some("GET, HEAD"));
    let unknown = watched.get("/other").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn the_admin_listener_is_told_from_names_that_were_made_to_point_to_it() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let hosts = "    allowed_hosts:\n      - proxy.internal\n";
    let watched = Watched::with_admin(&route(&[backend.address]), hosts).await;
    for (host, status) in [
        ("attacker.example", 403),
        ("localhost.attacker.example:80", 403),
        ("localhost:9090", 200),
        ("10.0.0.1:9090", 200),
        ("[fd00::1]:9090", 200),
        ("proxy.internal", 200),
    ] {
        let answered = watched.get("/metrics").header("host", host).send().await;
        assert_eq!(answered.unwrap().status(), status, "{host}");
    }
}

#[tokio::test]
async fn status_is_a_page_for_people_and_json_for_programs() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let route = route(&[backend.address]).replace("/mcp\n      b", "/m'c&amp;p\n      b");
    let watched = Watched::start(&route).await;
    open_session(&watched.url("/m'c&amp;p")).await;

    let status = watched.status().await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["ready"], true);
    assert!(status["open_requests"].is_u64(), "{status}");
    assert_eq!(status["sessions"]["live"], 1);
    assert_eq!(status["routes"][0]["path"], "/m'c&amp;p");
    let shown = &status["routes"][0]["backends"][0];
    assert_eq!(shown["name"], "b0");
    assert_eq!(shown["state"], "up");
    assert_eq!(shown["sessions"], 1);

    let page = watched.get("/status").send().await.unwrap();
    let kind = header(page.headers(), "content-type");
    assert_eq!(kind, Some("text/html; charset=utf-8"));
    let policy = header(page.headers(), "content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let page = page.text().await.unwrap();
    for part in [
        "<title>ready - pingora-mcp</title>",
        "1 of 1 backends up",
        "<h2 id=route-0>/m&#39;c&amp;amp;p</h2>",
        "role=region aria-labelledby=route-0 tabindex=0><table aria-labelledby=route-0>",
        "<dt>open requests</dt><dd>",
        " of 8000</dd>",
        "href=\"/status?refresh=5\"",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
    assert!(!page.contains("<script"), "{page}");
    // It takes what is scrolled, focused and selected: only where that is asked for.
    let refresh = "<meta http-equiv=refresh content=5>";
    assert!(!page.contains(refresh), "{page}");
    let page = watched.get("/status?refresh=5").send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains(refresh), "{page}");
    assert!(page.contains("href=/status>"), "{page}");
}

/// What is shown can be put into the file as it is.
#[tokio::test]
async fn status_has_each_limit_that_holds_as_the_configuration_file_has_it() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let mut watched = Watched::start(&route(&[backend.address])).await;
    let edge = std::fs::read_to_string("conf/edge.yaml").unwrap();
    let edge: Value = serde_saphyr::from_str(&edge).unwrap();
    let mut shown = limits(&watched.status().await);
    assert_eq!(keys(&shown), keys(&limits(&edge["mcp"])));

    let sessions = shown["sessions"].clone();
    for (key, value) in [
        ("/limits/max_streams", json!("none")),
        ("/limits/max_connections", json!(7)),
        ("/limits/max_header_size", json!("9KiB")),
        ("/timeouts/body", json!("none")),
        ("/timeouts/header", json!("1m 1s")),
        ("/timeouts/write", json!("31d")),
        ("/timeouts/keep_alive", json!("400d 1h")),
        ("/sessions/capacity", json!(7)),
        ("/routes/0/limits/max_body", json!("1025B")),
        ("/routes/0/timeouts/max_stream_age", json!("2d")),
    ] {
        *shown.pointer_mut(key).unwrap() = value;
    }
    let own = &shown["routes"][0];
    let mcp = format!(
        "{}      limits: {}\n      timeouts: {}\n  limits: {}\n  timeouts: {}\n  sessions: {}\n",
        route(&[backend.address]),
        own["limits"],
        own["timeouts"],
        shown["limits"],
        shown["timeouts"],
        shown["sessions"],
    );
    watched.proxy.reload(&mcp).await;
    for (limit, most) in [
        ("connections", 7.0),
        ("requests", 8000.0),
        ("sessions", 100_000.0),
    ] {
        let sample = format!(r#"pingora_mcp_limit{{limit="{limit}"}}"#);
        watched.until(&sample, most).await;
    }
    let scrape = watched.scrape().await;
    assert!(
        !scrape.contains(r#"pingora_mcp_limit{limit="streams"}"#),
        "{scrape}"
    );
    // What takes a restart does not hold yet.
    shown["sessions"] = sessions;
    assert_eq!(limits(&watched.status().await), shown);
    let page = watched.get("/status").send().await.unwrap();
    let page = page.text().await.unwrap();
    for key in [
        "<dt>limits.max_streams</dt><dd>none</dd>",
        "<dt>limits.max_body</dt><dd>1025B</dd>",
        "<dt>timeouts.max_stream_age</dt><dd>2d</dd>",
        "<dt>sessions.reap.max_per_second</dt><dd>100</dd>",
    ] {
        assert!(page.contains(key), "{key} is not in\n{page}");
    }
}

/// Or who holds them open would take the descriptors of clients.
#[tokio::test]
async fn connections_to_the_admin_listener_are_bounded() {
    let watched = Watched::start(&route(&[unused_address()])).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut wire = Wire::connect(watched.admin).await;
        wire.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        wire.receive("ok\n").await;
        open.push(wire);
    }
    Wire::connect(watched.admin).await.until_closed().await;
    open.pop();
    let is_served = async || watched.get("/healthz").send().await.is_ok();
    until_asked("a place that was left", is_served).await;
}

/// A policy that forbade the page's own style would show on the console.
#[tokio::test]
async fn a_browser_shows_the_status_page_and_has_nothing_to_complain_of() {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let is_there = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
    let browser = browsers.iter().find(is_there);
    let browser = browser.expect("Chromium is missing: run `make test`, which installs it");
    let backend = Backend::with_session("the-backends-own-id").await;
    let watched = Watched::start(&route(&[backend.address])).await;
    open_session(&watched.url("/mcp")).await;
    let profile = support::process::scratch_file("profile");
    let mut command = tokio::process::Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
        ])
        .args([
            "--disable-sync",
            "--disable-quic",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("http://{}/status", watched.admin))
        .kill_on_drop(true);
    let shown = within("the page in the browser", command.output())
        .await
        .unwrap();
    let page = String::from_utf8_lossy(&shown.stdout);
    assert!(page.contains(r#"<td class="good">up</td>"#), "{page}");
    assert!(
        page.contains("<dt>live sessions</dt><dd>1 of 100000</dd>"),
        "{page}"
    );
    let console = String::from_utf8_lossy(&shown.stderr);
    assert!(!console.contains("CONSOLE"), "{console}");
    let _ = std::fs::remove_dir_all(profile);
}

#[tokio::test]
async fn readiness_is_lost_where_the_process_ends_and_health_is_not() {
    let settings = Settings::load("conf/minimal.yaml").unwrap();
    let sessions = settings.mcp.sessions.clone();
    let gateway = Arc::new(server::gateway(settings.mcp));
    let (drain, begun) = watch::channel(false);
    let admin = Admin::new(
        HostPolicy::default(),
        gateway,
        Observer::default(),
        sessions,
        begun,
    );
    let (address, fds) = support::listen(support::LOOPBACK);
    let mut service = server::admin_service(admin, address);
    let (_running, shutdown) = watch::channel(false);
    tokio::spawn(async move { service.start_service(Some(fds), shutdown, 1).await });

    let get = async |page: &str| {
        let answered = reqwest::get(format!("http://{address}{page}")).await;
        let answered = answered.unwrap();
        (answered.status().as_u16(), answered.text().await.unwrap())
    };
    assert_eq!(get("/readyz").await, (200, "ready\n".to_owned()));
    drain.send_replace(true);
    assert_eq!(get("/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(get("/healthz").await, (200, "ok\n".to_owned()));
    let page = get("/status").await.1;
    assert!(page.contains("<b class=bad>draining</b>"), "{page}");
    assert!(page.contains("<title>draining - "), "{page}");
}

#[tokio::test]
async fn the_admin_listener_says_not_ready_while_what_is_under_way_finishes() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut watched = Watched::start(&route(&[backend.local_addr().unwrap()])).await;
    let ready = watched.get("/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 200);
    let asked = tokio::spawn(post(&watched.url("/mcp")).send());
    let (mut wire, _) = Wire::accept(&backend).await;

    watched.proxy.signal("TERM");
    let is_ending = |log: String| log.contains("ending: ");
    assert!(watched.proxy.until(is_ending).await);
    let draining = async {
        while watched.get("/readyz").send().await.unwrap().status() != 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the end of readiness", draining).await;
    // A connection that stays open keeps nobody waiting.
    let _idle = Wire::connect(watched.admin).await;
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        .await;
    let answered = within("the answer", asked).await.unwrap().unwrap();
    assert_eq!(answered.text().await.unwrap(), "late");
    assert_eq!(watched.proxy.ended().await, Some(0));
}

#[tokio::test]
async fn counts_go_on_over_a_reload_and_begin_for_what_is_new() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let old = route(&[backend.address]);
    let mut watched = Watched::start(&old).await;
    open_session(&watched.url("/mcp")).await;
    let admin = format!("  admin:\n    address: {}\n", watched.admin);
    let new = format!(
        "    - path: /new\n      backends:\n        - name: new\n          url: http://{}/mcp\n",
        backend.address
    );
    watched.proxy.reload(&(old + &new + &admin)).await;
    let log = watched.proxy.log();
    assert!(!log.contains("needs a restart"), "{log}");

    let state = watched.status().await["routes"].clone();
    assert_eq!(state[0]["backends"][0]["sessions"], 1, "{state}");
    open_session(&watched.url("/mcp")).await;
    open_session(&watched.url("/new")).await;
    for (target, count) in [
        (r#"route="/mcp",backend="b0""#, 2.0),
        (r#"route="/new",backend="new""#, 1.0),
    ] {
        let opened = format!("pingora_mcp_sessions_opened_total{{{target}}}");
        watched.until(&opened, count).await;
    }
    watched.proxy.reload(&route(&[backend.address])).await;
    let log = watched.proxy.log();
    assert!(log.contains("needs a restart: mcp.admin"), "{log}");
    assert_eq!(watched.get("/readyz").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn each_limit_is_counted_by_its_name_and_a_refusal_by_its_reason() {
    let authority = Authority::new();
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let https = route(&[mute.local_addr().unwrap()]).replace("http:", "https:");
    let tls = format!("          tls: {{ ca: {} }}\n", authority.file().display());
    let backend = Backend::start(|request| {
        if request.uri.path() == "/mcp/endless" {
            let part = || Ok::<_, std::io::Error>(vec![b' '; 64 * 1024]);
            return answer(
                200,
                &[],
                Body::from_stream(futures::stream::repeat_with(part)),
            );
        }
        if request.method == "GET" || request.uri.path() == "/mcp/silent" {
            let silence = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
            let kind = [("content-type", "text/event-stream")];
            return answer(200, &kind, Body::from_stream(silence));
        }
        answer(200, &[("mcp-session-id", "the-backends-own-id")], "{}")
    })
    .await;
    let plain = route(&[backend.address]);
    let below = |path: &str| POST.replace("/mcp", path);
    let of_session = GET.replace("\r\n\r\n", "\r\nMcp-Session-Id: {id}\r\n\r\n");
    let long = POST.replace(": 2\r\n\r\n{}", ": 65537\r\n\r\n");

    // The limit, the refusal's reason, the configuration, and what is sent.
    let rows = [
        (
            "silence",
            "",
            "      timeouts: { post: 100ms }\n",
            vec![below("/mcp/silent")],
        ),
        (
            "client_read",
            "request-timeout",
            "  timeouts: { header: 100ms }\n",
            vec!["GET".into()],
        ),
        (
            "client_write",
            "",
            "  timeouts: { write: 100ms }\n",
            vec![below("/mcp/endless")],
        ),
        (
            "stream_age",
            "",
            "      timeouts: { max_stream_age: 100ms }\n",
            vec![GET.into()],
        ),
        (
            "sessions",
            "sessions-full",
            "  sessions: { capacity: 1 }\n",
            vec![POST.into(); 2],
        ),
        (
            "client_sessions",
            "client-sessions",
            "  sessions: { max_per_client: 1 }\n",
            vec![POST.into(); 2],
        ),
        // Pipelined, so that two are in one second.
        (
            "client_session_rate",
            "client-session-rate",
            "  sessions: { max_new_per_client: 1 }\n",
            vec![POST.repeat(9)],
        ),
        (
            "connections",
            "connections-full",
            "  limits: { max_connections: 1 }\n",
            vec![GET.into(); 2],
        ),
        (
            "requests",
            "requests-full",
            "  limits: { max_requests: 1 }\n",
            vec![GET.into(); 2],
        ),
        (
            "streams",
            "streams-full",
            "  limits: { max_streams: 1 }\n",
            vec![GET.into(); 2],
        ),
        (
            "session_streams",
            "session-streams",
            "  limits: { max_streams_per_session: 1 }\n",
            vec![POST.into(), of_session.clone(), of_session],
        ),
        (
            "header",
            "header-too-large",
            "  limits: { max_headers: 2 }\n",
            vec![POST.into()],
        ),
        (
            "body",
            "body-too-large",
            "      limits: { max_body: 1B }\n",
            vec![POST.into()],
        ),
        (
            "message",
            "message-too-large",
            "      tools: { deny: [add] }\n",
            vec![long],
        ),
        (
            "backend",
            "backend-full",
            "      limits: { max_requests_per_backend: 1 }\n",
            vec![GET.into(); 2],
        ),
        (
            "connect",
            "backend-unreachable",
            "      timeouts: { connect: 100ms }\n",
            vec![POST.into()],
        ),
    ];
    let counted = rows.map(|(limit, reason, keys, requests)| {
        let mcp = match limit {
            "connect" => format!("{https}{tls}{keys}"),
            _ => format!("{plain}{keys}"),
        };
        async move {
            hit(&mcp, requests, limit, reason).await;
            limit.to_owned()
        }
    });
    let counted = futures::stream::iter(counted).buffer_unordered(4);
    let mut counted: BTreeSet<_> = counted.collect().await;
    // There is no request yet: `tests/tls.rs` has it.
    counted.insert("tls_handshake".to_owned());
    assert_eq!(counted, documented_limits());
}

#[tokio::test]
async fn a_line_tells_a_stream_that_its_age_ended_from_one_that_a_shutdown_did() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mcp = route(&[backend.local_addr().unwrap()]);
    for (limits, ended) in [
        ("      timeouts: { max_stream_age: 2s }\n", "limit"),
        ("  drain: { streams_after: 100ms }\n", "drain"),
    ] {
        let mut logged = Logged::start(&(mcp.clone() + limits)).await;
        let mut client = Wire::connect(logged.proxy.address).await;
        client.send(GET).await;
        let (mut wire, _) = Wire::accept(&backend).await;
        wire.send(STREAM).await;
        client.receive("\r\n\r\n").await;
        logged.proxy.signal("TERM");
        client.until_closed().await;
        assert_eq!(logged.proxy.ended().await, Some(0));
        // The last lines are written before the process is gone.
        let line: Value = serde_json::from_str(&logged.text()).unwrap();
        assert_eq!(
            (&line["ended"], &line["status"]),
            (&json!(ended), &json!(200))
        );
    }
}

#[tokio::test]
async fn a_line_tells_what_became_of_a_request_and_joins_those_of_a_session() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let logged = Logged::start(&route(&[backend.address])).await;
    let id = open_session(&logged.proxy.url("/mcp")).await;
    ask(&logged.proxy.url("/mcp"), &id).await;
    let call = stateless(&logged.proxy.url("/mcp/x?s3cret"), "tools/call");
    let call = call.header("mcp-session-id", &id).body("s3cret");
    call.send().await.unwrap();
    post(&logged.proxy.url("/s3cret")).send().await.unwrap();
    let end = reqwest::Client::new().delete(logged.proxy.url("/mcp"));
    end.header("mcp-session-id", &id).send().await.unwrap();
    ask(&logged.proxy.url("/mcp"), &id).await;

    let lines = logged.lines(6).await;
    let kept = |line: &Value| {
        let mut line = line.as_object().unwrap().clone();
        for measured in ["time", "duration"] {
            line.remove(measured).unwrap();
        }
        if let Some(first_byte) = line.remove("first_byte") {
            assert!(first_byte.as_f64().unwrap() > 0.0);
        }
        Value::Object(line)
    };
    let session = lines[0]["session"].as_str().unwrap();
    assert_eq!(session.len(), 12);
    assert!(!id.contains(session));
    let opened = json!({
        "client": "127.0.0.1", "route": "/mcp", "method": "POST", "era": "session",
        "status": 200, "backend": "b0", "received": 58, "sent": 36, "session": session,
        "outcome": "opened", "ended": "complete",
    });
    assert_eq!(kept(&lines[0]), opened);
    assert_eq!(lines[1]["session"], session);
    assert_eq!(lines[1]["outcome"], "kept");
    let stateless = json!({
        "client": "127.0.0.1", "route": "/mcp", "method": "POST", "era": "stateless",
        "mcp_method": "tools/call", "status": 200, "backend": "b0", "received": 6, "sent": 36,
        "ended": "complete",
    });
    assert_eq!(kept(&lines[2]), stateless);
    let refused = json!({
        "client": "127.0.0.1", "method": "POST", "status": 404, "received": 0,
        "sent": lines[3]["sent"], "refusal": "unknown-path", "ended": "complete",
    });
    assert_eq!(kept(&lines[3]), refused);
    assert_eq!(lines[4]["session"], session);
    assert_eq!(lines[4]["outcome"], "ended");
    assert_eq!(lines[5]["session"], session);
    assert_eq!(lines[5]["refusal"], "unknown-session");
    let log = logged.text();
    for hidden in ["s3cret", &id, "the-backends-own-id"] {
        assert!(!log.contains(hidden), "{log}");
    }
}

#[tokio::test]
async fn a_line_tells_by_whom_a_session_ended() {
    let backend = Backend::start(|request| {
        let is_lost = request.uri.path() == "/mcp/lost";
        let headers = [("mcp-session-id", "the-backends-own-id")];
        answer(if is_lost { 404 } else { 200 }, &headers, "{}")
    })
    .await;
    let logged = Logged::start(&route(&[backend.address])).await;
    let (url, lost) = (logged.proxy.url("/mcp"), logged.proxy.url("/mcp/lost"));
    let id = open_session(&url).await;
    let delete = reqwest::Client::new().delete(&url);
    delete.header("mcp-session-id", &id).send().await.unwrap();
    ask(&lost, &open_session(&url).await).await;
    let lines = logged.lines(4).await;
    let outcomes: Vec<_> = lines.iter().map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, ["opened", "ended", "opened", "lost"]);
}

/// As a process without descriptors is, or one that cannot have the address that it is to use.
#[tokio::test]
async fn a_line_tells_what_the_proxy_itself_failed_in_from_what_a_backend_did() {
    let backend = Backend::with_session("the-backends-own-id").await;
    // RFC 5737: nobody's address.
    let keys = "client_bind_to_ipv4: [192.0.2.1]\n";
    let logged = Logged::start(&(route(&[backend.address]) + keys)).await;
    let refused = post(&logged.proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(refused.status(), 502);
    assert_eq!(logged.lines(1).await[0]["ended"], "failed");
}

#[tokio::test]
async fn a_line_tells_who_left() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let timeouts = "      timeouts: { post: 300ms }\n";
    let logged = Logged::start(&(route(&[backend.local_addr().unwrap()]) + timeouts)).await;
    let stream = async || {
        let mut client = Wire::connect(logged.proxy.address).await;
        client.send(GET).await;
        let (mut wire, _) = Wire::accept(&backend).await;
        wire.send(STREAM).await;
        wire.send_chunk(b": 1\n\n").await;
        client.receive(": 1\n\n").await;
        (client, wire)
    };
    let (client, wire) = stream().await;
    drop(client);
    wire.until_closed().await;
    let line = logged.lines(1).await.remove(0);
    assert_eq!(
        (&line["ended"], &line["status"]),
        (&json!("client_left"), &json!(200))
    );
    assert_eq!(line["sent"], 5);

    let (client, wire) = stream().await;
    wire.reset();
    client.until_closed().await;
    assert_eq!(logged.lines(2).await[1]["ended"], "backend_left");

    let (answered, wire) = tokio::join!(
        post(&logged.proxy.url("/mcp")).send(),
        Wire::accept(&backend)
    );
    assert_eq!(answered.unwrap().status(), 504);
    wire.0.until_closed().await;
    let line = logged.lines(3).await.remove(2);
    assert_eq!(
        (&line["ended"], &line["refusal"]),
        (&json!("limit"), &json!("backend-timeout"))
    );
}

#[tokio::test]
async fn a_line_says_the_same_of_a_backend_that_is_asked_in_vain_and_of_one_that_is_known_to_be_down()
 {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let health = "      health: { max_failures: 1, backoff: 10m, max_backoff: 10m }\n";
    let logged = Logged::start(&(route(&[backend.local_addr().unwrap()]) + health)).await;
    let url = logged.proxy.url("/mcp");
    let open = async {
        let (mut wire, _) = Wire::accept(&backend).await;
        let opened = "HTTP/1.1 200 OK\r\nMcp-Session-Id: own\r\nContent-Length: 0\r\n";
        wire.send(&format!("{opened}Connection: close\r\n\r\n"))
            .await;
    };
    let (id, ()) = tokio::join!(open_session(&url), open);
    drop(backend);
    for _ in 0..2 {
        assert_eq!(ask(&url, &id).await.status(), 502);
    }
    for line in &logged.lines(3).await[1..] {
        assert_eq!(line["refusal"], "backend-unreachable");
        assert_eq!(line["ended"], "backend_left", "{line}");
    }
}

#[tokio::test]
async fn a_line_tells_who_left_over_http_2() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = route(&[backend.local_addr().unwrap()]);
    let logged = Logged::listening("      h2c: true\n", &routes).await;
    let client = Http2::connect(logged.proxy.address).await;

    let unanswered = client.post().body(()).unwrap();
    let unanswered = client.send.clone().send_request(unanswered, true).unwrap();
    let (wire, _) = Wire::accept(&backend).await;
    drop(unanswered);
    wire.until_closed().await;

    let stream = async || {
        let open = async {
            let (mut wire, _) = Wire::accept(&backend).await;
            wire.send(STREAM).await;
            wire
        };
        tokio::join!(client.send(client.request(Method::GET, "/mcp"), ""), open)
    };
    let (answered, wire) = stream().await;
    drop(answered);
    wire.until_closed().await;

    let (answered, wire) = stream().await;
    drop((client, answered));
    wire.until_closed().await;

    let lines = logged.lines(3).await;
    for (line, status) in lines.iter().zip([Value::Null, json!(200), json!(200)]) {
        assert_eq!(line["ended"], "client_left", "{line}");
        assert_eq!((&line["status"], &line["refusal"]), (&status, &Value::Null));
    }
}

/// What a client writes is not in a line, so that it cannot write one.
#[tokio::test]
async fn a_client_cannot_write_a_line_of_its_own() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let logged = Logged::start(&route(&[backend.address])).await;
    let forged = "POST /mcp/%0a%22forged HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\
                  MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: x\t\"forged\"\r\n\
                  User-Agent: forged\r\nReferer: forged\r\nX-Forwarded-For: forged\r\n\r\n";
    raw(logged.proxy.address, forged).await;
    raw(
        logged.proxy.address,
        "FORGED /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    .await;
    let lines = logged.lines(2).await;
    assert_eq!(lines[0]["mcp_method"], "_OTHER");
    assert_eq!(lines[1]["method"], "_OTHER");
    assert!(!logged.text().to_lowercase().contains("forged"));
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_begun_anew() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let logged = Logged::start(&route(&[backend.address])).await;
    initialize(&logged.proxy.url("/mcp")).send().await.unwrap();
    logged.lines(1).await;
    let moved = logged.path.with_extension("1");
    std::fs::rename(&logged.path, &moved).unwrap();
    initialize(&logged.proxy.url("/mcp")).send().await.unwrap();
    logged.lines(1).await;
    let before = std::fs::read_to_string(&moved).unwrap();
    assert_eq!(before.lines().count(), 1);
    std::fs::remove_file(moved).unwrap();
}

/// As on a disk that is full for a while: the file may have no more than 4 KiB, and ends within a line.
#[tokio::test]
async fn where_the_file_takes_no_more_what_is_lost_is_counted_and_no_other_line_is_broken() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let (admin, path) = (unused_address(), support::process::scratch_file("access"));
    let mcp = format!(
        "{}  admin: {{ address: {admin} }}\n  access_log: {{ format: json, path: {} }}\n",
        route(&[backend.address]),
        path.display()
    );
    let proxy = ProxyProcess::limited("", &mcp, "trap '' XFSZ && ulimit -f 8").await;
    let watched = Watched {
        proxy,
        admin,
        _store: None,
    };
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    let whole = || {
        let is_whole = |line: &&str| serde_json::from_str::<Value>(line).is_ok();
        text().lines().filter(is_whole).count()
    };
    for _ in 0..60 {
        post(&watched.url("/mcp")).send().await.unwrap();
    }
    let all_are_counted = async || {
        let scrape = watched.scrape().await;
        let mut lines = scrape.lines();
        let dropped =
            lines.find_map(|line| line.strip_prefix("pingora_mcp_access_log_lines_dropped_total "));
        whole() + dropped.unwrap().parse::<usize>().unwrap() == 60
    };
    until_asked("a count of each line", all_are_counted).await;
    assert!(whole() < 60);

    // There is room again, behind a line that was cut.
    let cut = usize::from(!text().ends_with('\n'));
    let end = text().match_indices('\n').nth(1).unwrap().0 + 1;
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((end + cut) as u64).unwrap();
    post(&watched.url("/mcp")).send().await.unwrap();
    until("another line", || whole() == 3).await;
    assert_eq!(text().lines().count(), 3 + cut, "{}", text());
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn text_lines_go_to_standard_output() {
    let backend = Backend::with_session("the-backends-own-id").await;
    let log = "  access_log: { format: text }\n";
    let proxy = ProxyProcess::start(&(route(&[backend.address]) + log)).await;
    open_session(&proxy.url("/mcp")).await;
    let line = async {
        loop {
            let log = proxy.log();
            if let Some(line) = log.lines().find(|line| line.starts_with("time=")) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let line = within("a line", line).await;
    let fields: Vec<_> = line
        .split(' ')
        .map(|field| field.split_once('=').unwrap())
        .collect();
    assert_eq!(
        fields[1..6],
        [
            ("client", "127.0.0.1"),
            ("route", "/mcp"),
            ("method", "POST"),
            ("era", "session"),
            ("status", "200"),
        ]
    );
    assert_eq!(fields.last(), Some(&("ended", "complete")));
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_keeps_the_proxy_from_its_start() {
    let path = format!("{}/configuration.yaml", env!("CARGO_TARGET_TMPDIR"));
    let minimal = std::fs::read_to_string("conf/minimal.yaml").unwrap();
    let minimal = minimal.replace("127.0.0.1:8080", &unused_address().to_string());
    let log = "  access_log: { format: json, path: /there/is/no/such/folder }\n";
    std::fs::write(&path, minimal + log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pingora-mcp"));
    let ended = command.args(["-c", &path]).output().unwrap();
    assert_eq!(ended.status.code(), Some(64));
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(
        told.contains("mcp.access_log.path: cannot be written: "),
        "{told}"
    );
}

/// A proxy as it is shipped, with an access log in a file.
struct Logged {
    proxy: ProxyProcess,
    path: PathBuf,
}

impl Logged {
    /// A proxy with `mcp`, the YAML below `mcp:` but for its listeners.
    async fn start(mcp: &str) -> Self {
        Self::listening("", mcp).await
    }

    /// The same, its listener with `keys` beside its address.
    async fn listening(keys: &str, mcp: &str) -> Self {
        let path = support::process::scratch_file("access");
        let log = format!(
            "  access_log: {{ format: json, path: {} }}\n",
            path.display()
        );
        let proxy = ProxyProcess::listening(keys, &(log + mcp), &[]).await;
        Self { proxy, path }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// Waits for so many lines: they are written after their answers.
    async fn lines(&self, count: usize) -> Vec<Value> {
        let written = async {
            while self.text().lines().count() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("a line of the access log", written).await;
        let text = self.text();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A proxy as it is shipped, with its admin listener.
struct Watched {
    proxy: ProxyProcess,
    admin: SocketAddr,
    /// Where its sessions are, if not in its memory.
    _store: Option<Redis>,
}

impl Watched {
    /// A proxy with `mcp`, the YAML below `mcp:` but for its listeners.
    async fn start(mcp: &str) -> Self {
        Self::with_admin(mcp, "").await
    }

    /// As [`start`](Self::start), with `admin`, the YAML below `admin:` but for its address.
    async fn with_admin(mcp: &str, admin: &str) -> Self {
        let address = unused_address();
        let mcp = format!("{mcp}  admin:\n    address: {address}\n{admin}");
        let proxy = ProxyProcess::start(&mcp).await;
        Self {
            proxy,
            admin: address,
            _store: None,
        }
    }

    /// A proxy of which each metric has counted something, those of a shared store too.
    async fn busy() -> Self {
        let backend = Backend::start(|request| {
            if request.header("x-slow").is_some() {
                let never = futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
                return answer(200, &[], Body::from_stream(never));
            }
            let headers = [
                ("mcp-session-id", "backend-s3cret"),
                ("content-type", "text/event-stream"),
            ];
            answer(200, &headers, ": s3cret\n\n")
        })
        .await;
        let dead = "      timeouts: { post: 2s }\n    - path: /dead\n      backends:\n        \
                    - name: dead\n          url: http://";
        let redis = Redis::start().await;
        // It answers, however slow the machine is.
        let store = format!(
            "{{ redis: {{ url: \"{}\", keys: [{KEY}], timeout: 10s }} }}",
            redis.url()
        );
        let mcp = format!(
            "{}{dead}{}\n  metrics:\n    tool_names: 1\n  sessions:\n    store: {store}\n",
            route(&[backend.address]),
            unused_address()
        );
        let mut watched = Self::start(&mcp).await;
        watched._store = Some(redis);
        let url = watched.url("/mcp");
        let id = open_session(&url).await;
        ask(&url, &id).await;
        let call = stateless(&url, "tools/call").header("mcp-name", "add");
        call.send().await.unwrap().text().await.unwrap();
        let stream = reqwest::Client::new()
            .get(&url)
            .header("accept", "text/event-stream");
        stream.send().await.unwrap().text().await.unwrap();
        let slow = post(&url).header("x-slow", "1").send().await.unwrap();
        slow.text().await.unwrap_err();
        post(&watched.url("/dead")).send().await.unwrap();
        post(&watched.url("/other")).send().await.unwrap();
        let silence = r#"pingora_mcp_limits_hit_total{limit="silence"}"#;
        watched.until(silence, 1.0).await;
        let unknown = r#"pingora_mcp_refusals_total{reason="unknown-path"}"#;
        watched.until(unknown, 1.0).await;
        watched
    }

    fn url(&self, path: &str) -> String {
        self.proxy.url(path)
    }

    fn get(&self, page: &str) -> reqwest::RequestBuilder {
        reqwest::Client::new().get(format!("http://{}{page}", self.admin))
    }

    fn post(&self, page: &str) -> reqwest::RequestBuilder {
        reqwest::Client::new().post(format!("http://{}{page}", self.admin))
    }

    async fn scrape(&self) -> String {
        let scraped = self.get("/metrics").send().await.unwrap();
        let kind = header(scraped.headers(), "content-type");
        assert_eq!(kind, Some("text/plain; version=0.0.4"));
        scraped.text().await.unwrap()
    }

    async fn status(&self) -> Value {
        let status = self.get("/status").header("accept", "application/json");
        let status = status.send().await.unwrap();
        let kind = header(status.headers(), "content-type");
        assert_eq!(kind, Some("application/json"));
        serde_json::from_str(&status.text().await.unwrap()).unwrap()
    }

    /// Scrapes until `sample`, labels included, is `value`: a request is counted after its answer
    /// is sent.
    async fn until(&self, sample: &str, value: f64) {
        let line = format!("{sample} {value}");
        let wanted = &parse(&line).samples[0];
        let is_wanted = |found: &Sample| {
            let is_same = found.metric == wanted.metric && found.labels == wanted.labels;
            is_same && number(&found.value) == Some(value)
        };
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            let scrape = self.scrape().await;
            if parse(&scrape).samples.iter().any(is_wanted) {
                return;
            }
            assert!(Instant::now() < limit, "{line} is not in\n{scrape}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A POST of the stateless era.
fn stateless(url: &str, method: &str) -> reqwest::RequestBuilder {
    post(url)
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", method)
}

fn number(value: &MetricValue) -> Option<f64> {
    match value {
        MetricValue::Counter(number) | MetricValue::Gauge(number) => Some(*number),
        MetricValue::Untyped(number) => Some(*number),
        MetricValue::Histogram(_) | MetricValue::Summary(_) => None,
    }
}

fn parse(scrape: &str) -> Scrape {
    Scrape::parse(scrape.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

/// The metric that a sample belongs to: a histogram's sums and counts have names of their own.
fn family<'m>(sample: &'m str, types: &BTreeMap<String, String>) -> &'m str {
    let stripped = ["_sum", "_count"]
        .iter()
        .find_map(|suffix| sample.strip_suffix(suffix));
    stripped
        .filter(|name| types.contains_key(*name))
        .unwrap_or(sample)
}

/// The metrics of the tables in `docs/metrics.md`: type and labels of each.
fn documented_metrics() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = std::fs::read_to_string("docs/metrics.md").unwrap();
    let mut metrics = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["", name, kind, _unit, labels, _, ""] = cells.as_slice()
            && let Some(name) = name.strip_prefix('`')
        {
            let labels = labels
                .split(',')
                .map(|label| label.trim().trim_matches('`'));
            let labels = labels.filter(|label| !label.is_empty());
            let labels = labels.map(str::to_owned).collect();
            let name = name.trim_end_matches('`').to_owned();
            metrics.insert(name, ((*kind).to_owned(), labels));
        }
    }
    metrics
}

/// What bounds clients, of `mcp` in the configuration file or of the status.
fn limits(of: &Value) -> Value {
    let route = &of["routes"][0];
    let mut sessions = of["sessions"].clone();
    // A count, and what holds secrets.
    for other in ["live", "store", "seal"] {
        sessions.as_object_mut().unwrap().remove(other);
    }
    json!({
        "limits": of["limits"],
        "timeouts": of["timeouts"],
        "sessions": sessions,
        "routes": [{ "limits": route["limits"], "timeouts": route["timeouts"] }],
    })
}

/// The same with nothing but the keys.
fn keys(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let keys = entries.iter();
            keys.map(|(key, value)| (key.clone(), self::keys(value)))
                .collect()
        }
        Value::Array(entries) => entries.iter().map(keys).collect(),
        _ => Value::Null,
    }
}

/// A proxy with `mcp` counts `limit` and no other, and a refusal for `reason` if there is one, once
/// `requests` are sent, each on a connection of its own when the one before is answered. Where a limit
/// of time ends an answer, a slow machine may not have got one, and be refused.
async fn hit(mcp: &str, requests: Vec<String>, limit: &str, reason: &str) {
    let watched = Watched::start(mcp).await;
    let mut clients = Vec::new();
    let mut id = String::new();
    for request in requests {
        let mut client = Wire::connect(watched.proxy.address).await;
        client.send(&request.replace("{id}", &id)).await;
        let told = client.receive("\r\n\r\n").await.to_lowercase();
        if let Some((_, rest)) = told.split_once("mcp-session-id: ") {
            id = rest[..32].to_owned();
        }
        clients.push(client);
    }
    let reason = (!reason.is_empty()).then_some(reason);
    let counted = async || {
        let samples = parse(&watched.scrape().await).samples;
        let label = |metric: &str, label: &str| -> Vec<String> {
            let counted = |sample: &&Sample| number(&sample.value) != Some(0.0);
            let samples = samples.iter().filter(|sample| sample.metric == metric);
            let samples = samples.filter(counted);
            samples.map(|sample| sample.labels[label].clone()).collect()
        };
        let refused = label("pingora_mcp_refusals_total", "reason");
        label("pingora_mcp_limits_hit_total", "limit") == [limit]
            && reason.is_none_or(|reason| refused == [reason])
    };
    until_asked(limit, counted).await;
    if let ("client_read" | "connections", Some(reason)) = (limit, reason) {
        let status = watched.status().await;
        assert_eq!(status["connections"]["refused"][reason], 1);
    }
}

/// The values of the label `limit`, of the table in `docs/metrics.md`.
fn documented_limits() -> BTreeSet<String> {
    let text = std::fs::read_to_string("docs/metrics.md").unwrap();
    let row = text.lines().find(|line| line.starts_with("| `limit` |"));
    let clauses = row.unwrap().split('|').nth(2).unwrap().split(';');
    // Each says what its names stand for.
    let names = clauses.flat_map(|clause| {
        clause
            .split(':')
            .next()
            .unwrap()
            .split('`')
            .skip(1)
            .step_by(2)
    });
    names.map(str::to_owned).collect()
}

/// The values of the label `reason`, of the table in `src/rejection.rs`.
fn reasons() -> BTreeSet<String> {
    let text = std::fs::read_to_string("src/rejection.rs").unwrap();
    let strings = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","));
    let is_name = |text: &&str| {
        text.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    };
    strings.filter(is_name).map(str::to_owned).collect()
}

/// The expressions of the table in `docs/operations.md`.
fn documented_alerts() -> Vec<String> {
    let text = std::fs::read_to_string("docs/operations.md").unwrap();
    let (_, table) = text.split_once("What to be woken by:").unwrap();
    let (table, _) = table.split_once("\n### ").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let alerts = rows.map(|row| row.split('`').next().unwrap().replace("\\|", "|"));
    let alerts: Vec<_> = alerts.collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    alerts
}

/// What `promtool` is to find: the alerts that have one of `words` fire, and no other.
fn alerts(before: &str, now: &str, words: &[&str]) -> Value {
    let expected = documented_alerts().into_iter().map(|alert| {
        let fires = words.iter().any(|word| alert.contains(word));
        let query = format!("count({alert}) > bool 0 or vector(0)");
        json!({ "query": query, "value": u8::from(fires) })
    });
    evaluated(before, now, expected)
}

/// The same of what each `query` without labels is `expected` to have as its `value`, where a proxy was
/// scraped as `before` for five minutes, and as `now` for three.
fn evaluated(before: &str, now: &str, expected: impl Iterator<Item = Value>) -> Value {
    let (before, now) = (series(before), series(now));
    let input = now.iter().map(|(series, value)| {
        let before = before.get(series).map_or("_".to_owned(), f64::to_string);
        json!({ "series": series, "values": format!("{before}x5 {value}x5") })
    });
    let expected = expected.map(|expected| {
        json!({
            "expr": expected["query"],
            "eval_time": "8m",
            "exp_samples": [{ "labels": "{}", "value": expected["value"] }],
        })
    });
    json!({
        "interval": "1m",
        "input_series": input.collect::<Vec<_>>(),
        "promql_expr_test": expected.collect::<Vec<_>>(),
    })
}

/// Has `promtool` find all of this.
fn hold(tests: &[Value]) {
    let file = support::process::scratch_file("yaml");
    std::fs::write(&file, json!({ "tests": tests }).to_string()).unwrap();
    told(Command::new("promtool").args(["test", "rules"]).arg(&file));
    std::fs::remove_file(file).unwrap();
}

/// The counters and gauges of a scrape, each with its labels.
fn series(scrape: &str) -> BTreeMap<String, f64> {
    // Where time begins for `promtool`.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs_f64();
    let samples = parse(scrape).samples.into_iter();
    let numbers = samples.filter_map(|sample| {
        let value = number(&sample.value)?;
        let labels = sample.labels.iter();
        let labels: Vec<_> = labels
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        let is_moment = sample.metric.contains("_timestamp_") && value > 0.0;
        let value = if is_moment { value - now } else { value };
        Some((format!("{}{{{}}}", sample.metric, labels.join(",")), value))
    });
    numbers.collect()
}

fn dashboard() -> Value {
    let dashboard = std::fs::read_to_string("docs/grafana/pingora-mcp.json").unwrap();
    serde_json::from_str(&dashboard).unwrap()
}

/// The queries of the dashboard's panels, each with its legend.
fn dashboard_targets() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    targets
        .map(|target| (text(&target["expr"]), text(&target["legendFormat"])))
        .collect()
}

/// The panels that show one number each: the title and the query.
fn dashboard_stats() -> impl Iterator<Item = (String, String)> {
    let panels = dashboard()["panels"].as_array().unwrap().clone();
    let stats = panels.into_iter().filter(|panel| panel["type"] == "stat");
    stats.map(|panel| {
        let query = panel["targets"][0]["expr"].as_str().unwrap();
        let title = panel["title"].as_str().unwrap().to_owned();
        (title, in_place_of_grafana(query))
    })
}

/// A query with the values of its variables.
fn in_place_of_grafana(query: &str) -> String {
    let query = query.replace("$instance", ".*").replace("$route", ".*");
    let query = query.replace("$__rate_interval", "1m");
    query.replace("$__range", "1h")
}

/// The queries of its variables.
fn dashboard_variables() -> Vec<String> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let queries = variables.filter_map(|variable| variable["query"]["query"].as_str());
    queries.map(str::to_owned).collect()
}

/// The metrics of a query without its quoted values, each with the labels that it is selected by.
fn asked(query: &str) -> Vec<(&str, Vec<&str>)> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut asked = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(is_of_name) {
        let word = &rest[start..];
        let (name, after) = word.split_at(
            word.find(|letter| !is_of_name(letter))
                .unwrap_or(word.len()),
        );
        let selector = after
            .strip_prefix('{')
            .and_then(|after| after.split_once('}'));
        let (selector, after) = selector.unwrap_or(("", after));
        let families = ["pingora_mcp_", "mcp_server_", "process_"];
        if families.iter().any(|family| name.starts_with(family)) {
            let labels = selector.split(',').filter(|matcher| !matcher.is_empty());
            asked.push((
                name,
                labels
                    .map(|matcher| matcher.split(['=', '!']).next().unwrap())
                    .collect(),
            ));
        }
        rest = after;
    }
    asked
}

/// The labels that a query without its quoted values groups by, or lists the values of.
fn grouping(query: &str) -> Vec<&str> {
    let lists = ["by (", "without ("].into_iter();
    let lists = lists.flat_map(|word| query.split(word).skip(1));
    let lists = lists.map(|rest| rest.split(')').next().unwrap());
    let listed = query.strip_prefix("label_values(");
    let listed = listed.and_then(|rest| rest.trim_end_matches(')').split_once(','));
    let lists = lists.chain(listed.map(|(_, label)| label));
    lists
        .flat_map(|list| list.split(',').map(str::trim))
        .collect()
}

/// What `promtool` says, content.
fn told(promtool: &mut Command) -> String {
    let output = promtool.output();
    let output = output.expect("promtool is missing: run `make test`, which gets it");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "{told}");
    told
}

const PAGES: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/status"];

const GET: &str = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                      Transfer-Encoding: chunked\r\n\r\n";

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                    Content-Length: 2\r\n\r\n{}";
