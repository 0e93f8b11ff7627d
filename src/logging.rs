//! The log on standard error.

use env_logger::{Builder, Env, Logger};
use log::{Level, Log, Metadata, Record};

/// Starts the log. `RUST_LOG` sets its levels, for this proxy's own modules at will. What the client
/// of the session store has to say, this proxy says in one line.
pub(crate) fn start() {
    let environment = Env::default().default_filter_or("warn,redis=off,pingora_mcp=info");
    let logger = Builder::from_env(environment).build();
    log::set_max_level(logger.filter());
    log::set_boxed_logger(Box::new(Discreet(logger))).expect("no log was started before");
}

/// Keeps Pingora at `warn`, whatever is asked for: below, it prints whole requests and answers,
/// with the ids and tokens in them.
struct Discreet(Logger);

impl Log for Discreet {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        let is_pingora = target.starts_with("pingora") && !target.starts_with("pingora_mcp");
        !(is_pingora && metadata.level() > Level::Warn) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if is_failed_handshake(record) {
            let mut told = Record::builder();
            told.level(Level::Info).target("pingora_mcp::connections");
            self.0.log(&told.args(*record.args()).build());
        } else {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// An error to Pingora, of HTTP/2. It is a client's, and nobody must act.
fn is_failed_handshake(record: &Record<'_>) -> bool {
    record.target() == "pingora_core::apps"
        && record.args().to_string().starts_with("H2 handshake error")
}
