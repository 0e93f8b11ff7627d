//! Signals that come before there is a runtime to hear them: they are kept until there is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGQUIT};
use signal_hook::flag::register;

/// Whether signals that would end the process, and are to do something else, have come.
#[derive(Debug)]
pub struct EarlySignals {
    pub(crate) hangup: Arc<AtomicBool>,
    pub(crate) quit: Arc<AtomicBool>,
}

impl EarlySignals {
    /// From here on neither SIGHUP nor SIGQUIT ends the process.
    ///
    /// # Errors
    /// The system refuses.
    pub fn keep() -> io::Result<Self> {
        let (hangup, quit) = (Arc::default(), Arc::default());
        register(SIGHUP, Arc::clone(&hangup))?;
        register(SIGQUIT, Arc::clone(&quit))?;
        Ok(Self { hangup, quit })
    }
}
