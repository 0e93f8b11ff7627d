//! The order of things: in each round the work is done through each proxy in turn.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use super::backend::{Backend, Clock};
use super::drive::{Figures, Stage};
use super::peers::{Folder, Peer, Running};
use super::results::{Results, Sample};
use super::work::Work;

/// What all rounds have in common.
pub(crate) struct Bench {
    backend: Backend,
    clock: Clock,
    folder: Folder,
    tls: Arc<rustls::ClientConfig>,
    runtime: runtime::Runtime,
    rounds: usize,
}

impl Bench {
    /// Starts the backend. What the proxies are run with is written into `folder`.
    pub(crate) fn prepare(folder: &Path, rounds: usize) -> Outcome<Self> {
        let clock = Clock::start();
        let folder = Folder::create(folder)?;
        let mut roots = RootCertStore::empty();
        roots.add(folder.authority.clone())?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            backend: Backend::start(Peer::HundredBackends.backends(), clock)?,
            clock,
            folder,
            tls: Arc::new(tls),
            runtime: runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            rounds,
        })
    }

    /// All rounds of `work`, each through all `peers`.
    pub(crate) fn measure(
        &self,
        work: &Work,
        peers: &[Peer],
        results: &mut Results,
    ) -> Outcome<()> {
        let mut kept = Vec::new();
        for round in 0..self.rounds {
            for peer in peers {
                let (name, of) = (peer.name(), self.rounds);
                eprint!("\r{}: round {} of {of}, {name:<30}", work.name, round + 1);
                let measured = self.round(work, *peer, &mut kept);
                let figures = measured
                    .map_err(|problem| format!("{} through {name}: {problem}", work.name))?;
                let samples = figures.into_iter().map(|(figure, value)| Sample {
                    work: work.name.clone(),
                    round,
                    peer: *peer,
                    figure,
                    value,
                });
                results.samples.extend(samples);
            }
        }
        eprint!("\r{:70}\r", "");
        Ok(())
    }

    /// One round of `work` through `peer`, in a new process or in the one that is `kept`.
    fn round(&self, work: &Work, peer: Peer, kept: &mut Vec<Running>) -> Outcome<Figures> {
        let known = kept.iter().position(|running| running.peer == peer);
        let mut running = match known {
            Some(known) => kept.swap_remove(known),
            None => {
                let backends = &self.backend.addresses()[..peer.backends()];
                peer.start(backends, &self.folder)?
            }
        };
        let mut stage = Stage {
            running: &mut running,
            backend: &self.backend,
            tls: &self.tls,
            clock: self.clock,
        };
        let figures = unless_ended(stage.measure(work));
        let figures = self.runtime.block_on(figures)?;
        if !work.wants_new_process() {
            kept.push(running);
        }
        Ok(figures)
    }
}

/// Waits for `work`, and gives it up on a signal: the proxies then end before this process does.
async fn unless_ended<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    }
}
