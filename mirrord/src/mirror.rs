//! The worker of a mirror.

use crate::job::{MirrorJob, MirrorWorker};
use fluxcap_proto::v1::MirrorSpec;
use fluxcap_service::{Refusal, Registry, State};
use std::time::Duration;

/// Copies traffic until the worker is asked to stop.
pub(crate) fn run(_job: &MirrorJob, worker: &MirrorWorker) {
    while !worker.stop_requested() {
        let _ = worker.spec();
        worker.set_state(State::Waiting, "not there yet");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Asks the kernel whether it would take the programs of this spec; nothing stays of them. Called where clients wait, before a
/// mirror is made or changed.
pub(crate) fn check(_job: &MirrorJob, _name: &str, _spec: &MirrorSpec) -> Result<(), Refusal> {
    Ok(())
}

/// Removes all that a deleted mirror has in the kernel. Its thread has ended.
pub(crate) fn remove(_job: &MirrorJob, _name: &str, _spec: &MirrorSpec) {}

/// Removes what mirrors that are none of these have left in the kernel. Called once, at start.
pub(crate) fn sweep(_mirrors: &Registry<MirrorJob>) {}
