//! The command line: options, log, configuration, server.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use mimalloc::MiMalloc;
use pingora_core::server::configuration::Opt;
use pingora_mcp::config::Settings;
use pingora_mcp::early_signals::EarlySignals;
use pingora_mcp::{logging, server, start};

/// It takes a tenth less of the processor than the system's, and less memory once streams have come and
/// gone.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// An edge proxy for MCP servers, on Cloudflare's Pingora.
#[derive(Parser)]
#[command(name = "pingora-mcp", version, after_help = EXAMPLES)]
struct CommandLine {
    #[command(flatten)]
    pingora: Opt,
}

fn main() -> ExitCode {
    // First of all: until then both end the process.
    let early = match EarlySignals::keep() {
        Ok(early) => early,
        Err(error) => {
            eprintln!("signals cannot be listened to: {error}");
            return ExitCode::FAILURE;
        }
    };
    let options = parse_command_line().pingora;
    let _last_lines = logging::start();
    let Some(path) = options.conf.as_deref() else {
        eprintln!("no configuration: name its file with -c FILE; --help says more");
        return ExitCode::from(EX_USAGE);
    };
    let read = match options.test {
        true => Settings::check(path),
        false => Settings::load(path),
    };
    let checked = read.and_then(|settings| start::check(&options, &settings).map(|()| settings));
    let settings = match checked {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EX_USAGE);
        }
    };
    if options.test {
        eprintln!("{path}: the configuration is good");
        return ExitCode::SUCCESS;
    }
    match server::run(options, settings, early) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Pingora's options, described for who runs this proxy.
fn parse_command_line() -> CommandLine {
    let command = CommandLine::command()
        .mut_arg("conf", |arg| {
            arg.value_name("FILE").help("The configuration file")
        })
        .mut_arg("test", |arg| {
            arg.help(
                "Check the whole configuration file, with -d and -u for such a start, and exit",
            )
        })
        .mut_arg("daemon", |arg| arg.help("Run in the background"))
        .mut_arg("upgrade", |arg| {
            arg.help("Take the listening sockets over from a running server (see 'upgrade_sock')")
        });
    let matches = command.get_matches();
    CommandLine::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

const EXAMPLES: &str = "\
Examples:
  pingora-mcp -t -c edge.yaml    check the configuration
  pingora-mcp -c edge.yaml       run in the foreground; Ctrl-C ends it
  RUST_LOG=debug pingora-mcp -c edge.yaml

Signals: SIGHUP reads the configuration again, SIGTERM ends after the requests under way, SIGINT at
once, SIGQUIT hands the listening sockets over to a new process that was started with -u.

Exit codes: 0 success, 1 an address cannot be listened on or no running server be replaced, 2 an
unknown option, 64 a bad configuration or none.";

/// sysexits.h: the command was used wrongly.
const EX_USAGE: u8 = 64;
