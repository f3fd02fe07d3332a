//! The send side of a tunnel.

use crate::job::{TunnelJob, TunnelWorker};
use crate::stats::Details;
use fluxcap_proto::v1;
use fluxcap_service::State;

/// Runs until the worker is told to stop.
pub(crate) fn run(job: &TunnelJob, worker: &TunnelWorker) {
    let _ = &job.rings;
    let details = Details::Send(v1::TunnelSendStatus::default());
    worker.live().set_details(details);
    worker.set_state(State::Failed, "not built");
}
