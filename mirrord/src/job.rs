//! A mirror as a worker: what its spec has to be, and what of it cannot be changed.

use crate::mirror;
use crate::stats::MirrorLive;
use fluxcap_options::validate_mirror;
use fluxcap_proto::v1::{Hook, MirrorSpec};
use fluxcap_ring::{RingDir, RingName};
use fluxcap_service::{Job, Refusal, Registry, Worker, realtime_ns};
use std::path::PathBuf;

/// The worker of a mirror.
pub(crate) type MirrorWorker = Worker<MirrorSpec, MirrorLive>;

/// The work of mirrord.
#[derive(Debug)]
pub(crate) struct MirrorJob {
    /// Folder in a bpffs where links and maps are pinned. Names of mirrors may hold dots, names in a bpffs may not
    /// (`bpf_lookup` in `kernel/bpf/inode.c`).
    pub(crate) bpffs: PathBuf,
    /// Where the rings are.
    pub(crate) rings: RingDir,
    /// No mirror outlives this process, whatever its spec says.
    pub(crate) ephemeral: bool,
}

impl Job for MirrorJob {
    const KIND: &'static str = "mirror";
    type Spec = MirrorSpec;
    type Live = MirrorLive;

    fn validate(
        &self,
        _name: &str,
        spec: &MirrorSpec,
        _others: &[(String, MirrorSpec)],
    ) -> Result<(), Refusal> {
        validate_mirror(spec).map_err(|error| Refusal::invalid(error.field, error.problem))?;
        match spec.ring.as_str() {
            "" => Ok(()),
            ring => RingName::parse(ring)
                .map(|_| ())
                .map_err(|error| Refusal::invalid("ring", error.to_string())),
        }
    }

    fn run(&self, worker: &MirrorWorker) {
        mirror::run(self, worker);
    }

    fn removed(&self, name: &str, spec: &MirrorSpec) {
        mirror::remove(self, name, spec);
    }

    fn kept(&self, spec: &MirrorSpec) -> bool {
        !spec.ephemeral
    }
}

/// Sets the time at which a mirror ends.
pub(crate) fn start_lifetime(spec: &mut MirrorSpec) {
    spec.expires_ns = match spec.lifetime_ms {
        0 => 0,
        ms => realtime_ns().saturating_add(ms.saturating_mul(1_000_000)),
    };
}

/// Whether two specs are equal but for the time at which the mirror ends, which clients do not set.
pub(crate) fn same_request(a: &MirrorSpec, b: &MirrorSpec) -> bool {
    MirrorSpec {
        expires_ns: b.expires_ns,
        ..a.clone()
    } == *b
}

/// Whether interface, hook and kind of target are the same: what cannot be changed in a running mirror.
pub(crate) fn same_place(a: &MirrorSpec, b: &MirrorSpec) -> bool {
    let target = |spec: &MirrorSpec| {
        (
            spec.ring.is_empty(),
            spec.devices.is_empty(),
            spec.overlay.is_none(),
        )
    };
    let xdp = |spec: &MirrorSpec| spec.hook() == Hook::Xdp;
    // With XDP a ring beside the devices may come and go.
    a.interface == b.interface && xdp(a) == xdp(b) && (xdp(a) || target(a) == target(b))
}

/// Starts a mirror that the command line asks for. One of the same name is given this spec, or makes room.
pub(crate) fn put(
    mirrors: &Registry<MirrorJob>,
    name: &str,
    mut spec: MirrorSpec,
) -> Result<(), Refusal> {
    start_lifetime(&mut spec);
    if let Ok(existing) = mirrors.get(name) {
        let kept = existing.spec();
        if same_request(&kept, &spec) {
            return Ok(());
        }
        if !same_place(&kept, &spec) {
            mirrors.delete(name)?;
        }
    }
    mirrors.put(name, spec).map(|_| ())
}
