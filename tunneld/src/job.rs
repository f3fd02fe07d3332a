//! A tunnel as a worker: what its spec has to be, and which of the two ways it goes.

use crate::stats::TunnelLive;
use crate::{receive, send};
use fluxcap_proto::v1::TunnelSpec;
use fluxcap_ring::RingDir;
use fluxcap_service::{Job, Refusal, State, Worker};

/// The worker of a tunnel.
pub(crate) type TunnelWorker = Worker<TunnelSpec, TunnelLive>;

/// The work of tunneld.
#[derive(Debug)]
pub(crate) struct TunnelJob {
    /// Where the rings are.
    pub(crate) rings: RingDir,
}

impl Job for TunnelJob {
    const KIND: &'static str = "tunnel";
    type Spec = TunnelSpec;
    type Live = TunnelLive;

    fn validate(
        &self,
        _name: &str,
        spec: &TunnelSpec,
        _others: &[(String, TunnelSpec)],
    ) -> Result<(), Refusal> {
        match (&spec.send, &spec.receive) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => Err(Refusal::invalid("send", "set one of send and receive")),
        }
    }

    fn run(&self, worker: &TunnelWorker) {
        let spec = worker.spec();
        match (&spec.send, &spec.receive) {
            (Some(_), _) => send::run(self, worker),
            (None, Some(_)) => receive::run(self, worker),
            // Refused by `validate`.
            (None, None) => worker.set_state(State::Failed, "neither sends nor receives"),
        }
    }
}
