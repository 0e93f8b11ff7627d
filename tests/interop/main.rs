//! The interoperability matrix: each client with each server, once directly and once through the
//! built proxy, and what they see has to be the same, step by step.
//!
//! ```text
//! cargo test --test interop -- [--write] [CLIENT [SERVER]]
//! ```
//!
//! `--write` puts the outcome into docs/conformance.md; without it the outcome has to be what is
//! there. A client and a server (a part of their names) choose some of the pairs. `make interop`
//! gets what all of it needs, then runs this. It is no part of `cargo test`.

mod conversation;
mod judgement;
mod peers;
mod report;
mod rmcp;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use futures::StreamExt;
use futures::stream::iter;

use conversation::Way;
use judgement::Pair;
use peers::{CLIENTS, Era, RMCP, SERVERS};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let [RMCP, url, era] = arguments[..] {
        rmcp::run(url, Era::try_from(era).unwrap());
        return ExitCode::SUCCESS;
    }
    run(&arguments)
}

#[tokio::main]
async fn run(arguments: &[&str]) -> ExitCode {
    let names = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'));
    let names: Vec<_> = names.collect();
    let is_asked =
        |position: usize, name: &str| names.get(position).is_none_or(|part| name.contains(**part));

    let mut asked = Vec::new();
    for client in CLIENTS.iter().filter(|client| is_asked(0, client.name)) {
        for server in SERVERS.iter().filter(|server| is_asked(1, server.name)) {
            asked.push(async move {
                let direct = conversation::facts(client, server, Way::Direct).await;
                let proxied = conversation::facts(client, server, Way::Proxied).await;
                let pair = Pair {
                    client,
                    server,
                    direct,
                    proxied,
                };
                eprintln!("interop: {pair} is through");
                pair
            });
        }
    }
    let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
    let pairs: Vec<_> = iter(asked).buffered(at_a_time).collect().await;

    let is_whole = names.is_empty();
    let mut complaints: Vec<_> = pairs.iter().flat_map(Pair::complaints).collect();
    if is_whole {
        complaints.extend(judgement::unused_reasons(&pairs));
    }
    let report = report::markdown(&pairs);
    println!("{report}");
    if complaints.is_empty() && is_whole {
        complaints.extend(report::keep(&report, arguments.contains(&"--write")).err());
    }
    for complaint in &complaints {
        eprintln!("interop: {complaint}");
    }
    ExitCode::from(u8::from(!complaints.is_empty()))
}
