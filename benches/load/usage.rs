//! A process with its children: what they have used of processor time and memory, as the operating system
//! counts it, and their end.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::Outcome;

/// A process and those that it has started, as they are when this is made.
#[derive(Clone, Debug)]
pub(crate) struct Processes(Vec<Pid>);

impl Processes {
    /// The process `id` and its children, and theirs.
    pub(crate) fn of(id: u32) -> Outcome<Self> {
        let mut found = vec![Pid::from_raw(id.try_into()?)];
        let mut next = 0;
        while let Some(pid) = found.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            for child in children.split_whitespace() {
                found.push(Pid::from_raw(child.parse()?));
            }
            next += 1;
        }
        Ok(Self(found))
    }

    /// The processor time of all their threads so far, in user mode and in the kernel.
    pub(crate) fn processor_time(&self) -> Outcome<Duration> {
        let mut sum = Duration::ZERO;
        for pid in &self.0 {
            sum += Duration::from(ClockId::pid_cpu_clock_id(*pid)?.now()?);
        }
        Ok(sum)
    }

    /// The resident memory of all, in bytes; pages that several have count once. What the kernel has
    /// for their sockets is not in it.
    pub(crate) fn memory(&self) -> Outcome<u64> {
        let mut sum = 0;
        for pid in &self.0 {
            let path = format!("/proc/{pid}/smaps_rollup");
            let rollup = fs::read_to_string(&path)?;
            let kilobytes = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"))
                .ok_or_else(|| format!("{path} has no Pss"))?;
            sum += kilobytes.parse::<u64>()? * 1024;
        }
        Ok(sum)
    }

    /// Ends all of them at once.
    pub(crate) fn kill(&self) {
        for pid in &self.0 {
            // One may have ended with the one before.
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }
}
