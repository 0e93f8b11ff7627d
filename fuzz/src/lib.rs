//! What must hold of any input, by target. `fuzz_targets/` calls these functions with what libFuzzer
//! makes up, `tests/corpus.rs` with what is kept in `corpus/`.

mod admission;
mod configuration;
mod discovery;
mod exchange;
mod input;
mod message;
mod path;
mod session_ids;

pub use admission::{host, origin};
pub use configuration::configuration;
pub use discovery::discovery;
pub use exchange::exchange;
pub use message::message;
pub use path::path;
pub use session_ids::session_ids;

/// A function that panics where something does not hold, by the name of its target.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("configuration", configuration),
    ("discovery", discovery),
    ("exchange", exchange),
    ("host", host),
    ("message", message),
    ("origin", origin),
    ("path", path),
    ("session_ids", session_ids),
];
