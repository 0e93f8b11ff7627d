//! `/status`: what the proxy is and does now, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::backend::{Backend, Timeouts};
use crate::gateway::Gateway;
use crate::limits::{ClientLimits, ClientTimeouts};
use crate::metrics::Standing;
use crate::route::{Route, RouteLimits};
use crate::session::{Census, SessionSettings};
use crate::setting::Period;

/// The proxy at one moment. What is configured has the keys and the units of the configuration file.
#[derive(Debug, Serialize)]
pub(super) struct Status<'s> {
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_ready_because: Option<&'static str>,
    store_reached: bool,
    sessions: SessionsStatus<'s>,
    connections: ConnectionsStatus,
    open_requests: usize,
    open_streams: usize,
    limits: ClientLimits,
    timeouts: ClientTimeouts,
    routes: Vec<RouteStatus>,
}

#[derive(Debug, Serialize)]
struct SessionsStatus<'s> {
    /// `None` where the store does not know.
    live: Option<u64>,
    #[serde(flatten)]
    settings: &'s SessionSettings,
}

/// Of clients.
#[derive(Debug, Serialize)]
struct ConnectionsStatus {
    open: usize,
    /// Before there was a request, by reason.
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct RouteStatus {
    path: String,
    limits: RouteLimits,
    timeouts: Timeouts,
    backends: Vec<BackendStatus>,
    /// Backends whose host names stand for nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unresolved: Vec<String>,
}

#[derive(Debug, Serialize)]
struct BackendStatus {
    name: String,
    url: String,
    #[serde(skip)]
    standing: Standing,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_for_seconds: Option<u64>,
    weight: u64,
    /// Which part of its weight counts, while it comes back.
    share: f64,
    /// As far as is known here.
    sessions: u64,
    requests_in_flight: usize,
    /// Those of all addresses of its name.
    open_streams: i64,
}

impl<'s> Status<'s> {
    /// The status of `gateway`, whose sessions `census` counted.
    pub(super) fn new(
        uptime: Duration,
        not_ready_because: Option<&'static str>,
        gateway: &Gateway,
        census: Census,
        sessions: &'s SessionSettings,
    ) -> Self {
        let (load, rules) = (gateway.load(), gateway.rules());
        let refused = load.refused_connections();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: uptime.as_secs(),
            ready: not_ready_because.is_none(),
            not_ready_because,
            store_reached: gateway.store().is_reached(),
            sessions: SessionsStatus {
                live: census.live,
                settings: sessions,
            },
            connections: ConnectionsStatus {
                open: load.connections(),
                refused: refused
                    .map(|(reason, count)| (reason.name(), count))
                    .collect(),
            },
            open_requests: load.requests(),
            open_streams: load.streams(),
            limits: rules.limits,
            timeouts: rules.timeouts,
            routes: rules
                .routes
                .iter()
                .map(|route| RouteStatus::new(route, gateway))
                .collect(),
        }
    }

    /// For programs.
    pub(super) fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self);
        json.expect("plain fields with texts as keys can be written") + "\n"
    }

    /// For people. The `query` may be [`REFRESH`]; else the page stays as it is, with what is scrolled,
    /// focused and selected (WCAG 2.2, F41).
    pub(super) fn to_html(&self, query: Option<&str>) -> String {
        let mut page = String::new();
        self.write(&mut page, query == Some(REFRESH))
            .expect("a string takes all that is written");
        page
    }

    fn write(&self, page: &mut String, is_refreshed: bool) -> fmt::Result {
        let Self {
            sessions,
            limits,
            timeouts,
            ..
        } = self;
        let uptime = period(self.uptime_seconds as f64);
        let (class, readiness) = match self.not_ready_because {
            None => ("good", "ready"),
            Some(reason) => ("bad", reason),
        };
        let readiness = Escaped(readiness);
        let routes = self.routes.iter();
        let up = routes.clone().map(RouteStatus::up).sum::<usize>();
        let all = routes.map(RouteStatus::all).sum::<usize>();
        let backends_class = if up == all { "" } else { "bad" };
        page.push_str(HEAD);
        if is_refreshed {
            page.push_str("<meta http-equiv=refresh content=5>");
        }
        write!(page, "<title>{readiness} - pingora-mcp</title>{STYLE}")?;
        write!(page, "<h1>pingora-mcp <small>{}</small></h1>", self.version)?;
        write!(
            page,
            "<p><b class={class}>{readiness}</b>, up for {uptime}, "
        )?;
        write!(
            page,
            "<span class=\"{backends_class}\">{up} of {all} backends up</span></p>"
        )?;
        if !self.store_reached {
            page.push_str("<p class=bad>The session store is away.</p>");
        }
        page.push_str("<dl>");
        let live = sessions.live.map_or_else(
            || "unknown".to_owned(),
            |live| of(live, Some(sessions.settings.capacity.0)),
        );
        for (name, value) in [
            ("live sessions", live),
            (
                "open requests",
                of(self.open_requests, limits.max_requests.0),
            ),
            ("open streams", of(self.open_streams, limits.max_streams.0)),
            (
                "open connections",
                of(self.connections.open, limits.max_connections.0),
            ),
            (
                "refused connections",
                self.connections.refused.values().sum::<u64>().to_string(),
            ),
        ] {
            write!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>")?;
        }
        page.push_str("</dl>");
        for (position, route) in self.routes.iter().enumerate() {
            route.write(page, position)?;
        }
        page.push_str("<section><h2>limits of all routes</h2><dl class=keys>");
        write_keys(page, "limits", &json(limits))?;
        write_keys(page, "timeouts", &json(timeouts))?;
        write_keys(page, "sessions", &json(sessions.settings))?;
        page.push_str("</dl></section>");
        let refresh = match is_refreshed {
            true => "<a href=/status>do not refresh</a>".to_owned(),
            false => format!("<a href=\"/status?{REFRESH}\">refresh every 5 s</a>"),
        };
        writeln!(
            page,
            "<footer>{refresh} <a href=/metrics>metrics</a></footer></main></html>"
        )
    }
}

impl RouteStatus {
    fn new(route: &Route, gateway: &Gateway) -> Self {
        let backends = route.pool.iter().map(|backend| {
            let sessions = gateway.store().sessions_at(&route.path, backend.name());
            BackendStatus::new(&backend, sessions)
        });
        let unresolved = route.pool.unresolved();
        Self {
            path: route.path.to_string(),
            limits: route.limits,
            timeouts: route.timeouts,
            backends: backends.collect(),
            unresolved: unresolved.map(|profile| profile.to_string()).collect(),
        }
    }

    fn up(&self) -> usize {
        let backends = self.backends.iter();
        let up = backends.filter(|backend| backend.standing == Standing::Up);
        up.count()
    }

    fn all(&self) -> usize {
        self.backends.len() + self.unresolved.len()
    }

    fn write(&self, page: &mut String, position: usize) -> fmt::Result {
        let name = format!("aria-labelledby=route-{position}");
        write!(
            page,
            "<section><h2 id=route-{position}>{}</h2>\
             <div class=wide role=region {name} tabindex=0><table {name}>",
            Escaped(&self.path)
        )?;
        page.push_str(TABLE_HEAD);
        for backend in &self.backends {
            let class = match backend.standing {
                Standing::Up => "good",
                Standing::Down | Standing::Unresolved => "bad",
                Standing::Draining => "",
            };
            let since = backend
                .down_for_seconds
                .map_or_else(String::new, |seconds| {
                    format!(" for {}", period(seconds as f64))
                });
            let share = match backend.share {
                1.0 => String::new(),
                share => format!("<br><small>coming back, {:.0} %</small>", share * 100.0),
            };
            write!(
                page,
                "<tr><th scope=row>{}<br><small>{}</small></th><td class=\"{class}\">{}</td>\
                 <td>{}</td><td>{}</td><td>{}</td></tr>",
                Escaped(&backend.name),
                Escaped(&backend.url),
                format_args!("{}{since}{share}", backend.state),
                backend.sessions,
                backend.requests_in_flight,
                backend.open_streams,
            )?;
        }
        for backend in &self.unresolved {
            write!(
                page,
                "<tr><th scope=row>{}</th><td class=bad colspan=4>does not resolve</td></tr>",
                Escaped(backend)
            )?;
        }
        page.push_str("</tbody></table></div><dl class=keys>");
        write_keys(page, "limits", &json(&self.limits))?;
        write_keys(page, "timeouts", &json(&self.timeouts))?;
        page.push_str("</dl></section>");
        Ok(())
    }
}

impl BackendStatus {
    fn new(backend: &Backend, sessions: u64) -> Self {
        Self {
            name: backend.name().to_string(),
            url: backend.url().to_string(),
            standing: backend.standing(),
            state: backend.standing().name(),
            down_for_seconds: backend.health.down_for().map(|down_for| down_for.as_secs()),
            weight: backend.weight(),
            share: backend.share(),
            sessions,
            requests_in_flight: backend.in_flight(),
            open_streams: backend.series.open_streams(),
        }
    }
}

/// How many there are of how many there may be.
fn of(count: impl fmt::Display, most: Option<impl fmt::Display>) -> String {
    match most {
        Some(most) => format!("{count} of {most}"),
        None => count.to_string(),
    }
}

fn json(settings: &impl Serialize) -> Value {
    serde_json::to_value(settings).expect("plain fields can be written")
}

/// Each key of `settings`, which stand at `path` in the configuration file.
fn write_keys(page: &mut String, path: &str, settings: &Value) -> fmt::Result {
    match settings {
        Value::Object(keys) => keys
            .iter()
            .try_for_each(|(key, value)| write_keys(page, &format!("{path}.{key}"), value)),
        Value::String(text) => write_key(page, path, text),
        plain => write_key(page, path, &plain.to_string()),
    }
}

fn write_key(page: &mut String, path: &str, value: &str) -> fmt::Result {
    let value = Escaped(value);
    write!(page, "<div><dt>{path}</dt><dd>{value}</dd></div>")
}

/// As it is written in the configuration, without the smallest units.
fn period(seconds: f64) -> String {
    let whole = match Duration::from_secs_f64(seconds) {
        short if short < Duration::from_secs(1) => Duration::from_millis(short.as_millis() as u64),
        long => Duration::from_secs(long.as_secs()),
    };
    Period(whole).to_string()
}

/// Text that is no HTML, whatever it holds.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                _ => formatter.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// The query of a page that a browser is to ask for again and again.
const REFRESH: &str = "refresh=5";

const TABLE_HEAD: &str = "<thead><tr><th scope=col>Backend</th><th scope=col>State</th>\
    <th scope=col>Sessions</th><th scope=col>In flight</th><th scope=col>Streams</th></tr></thead><tbody>";

const HEAD: &str = "<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">
";

const STYLE: &str = "
<style>
:root { color-scheme: light dark; --line: light-dark(#ddd, #3a3a3a); --dim: light-dark(#666, #999);
  --good: light-dark(#0a6b2d, #5fd38a); --bad: light-dark(#b3261e, #ff8a80) }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem 1rem }
main { max-width: 60rem; margin: auto }
h1 { font-size: 1.5rem; margin: 0 } h2 { font: 600 1rem ui-monospace, monospace; margin: 2rem 0 .5rem }
small, dt, thead th, footer { color: var(--dim); font-weight: normal; font-size: .85rem }
.good { color: var(--good) } .bad { color: var(--bad) }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1.5rem 0 }
dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.keys { display: block; columns: 18rem; column-gap: 2.5rem; margin: 1rem 0 }
.keys div { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; break-inside: avoid }
.keys dt { font: .8rem ui-monospace, monospace; overflow-wrap: anywhere } .keys dd { font-size: .85rem; white-space: nowrap }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; min-width: 34rem; table-layout: fixed; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
th:first-child { width: 34% } th:nth-child(2) { width: 20% }
tbody th { font-weight: 600 } footer { margin-top: 2rem } a { color: inherit } footer a { margin-right: 1.5rem }
@media (max-width: 36rem) { table { min-width: 22rem } th, td { padding-right: .5rem }
  thead th { white-space: nowrap; font-size: .75rem } th:first-child { width: 26% } th:nth-child(2) { width: 20% } }
</style><main>
";
