//! A mirror as a worker: what its spec has to be, and what of it cannot be changed.

use crate::loops;
use crate::mirror;
use crate::program::boottime_ns;
use crate::stats::MirrorLive;
use fluxcap_options::validate_mirror;
use fluxcap_proto::v1::{Direction, Hook, MirrorSpec};
use fluxcap_ring::{RingDir, RingName};
use fluxcap_service::{Job, Refusal, Registry, Worker, realtime_ns};
use std::path::PathBuf;
use std::sync::LazyLock;

/// The worker of a mirror.
pub(crate) type MirrorWorker = Worker<MirrorSpec, MirrorLive>;

/// The work of mirrord.
#[derive(Debug)]
pub(crate) struct MirrorJob {
    /// Folder in a bpffs where links and maps are pinned. Names of mirrors may hold dots, names in a bpffs may not
    /// (`bpf_lookup` in `kernel/bpf/inode.c`).
    pub(crate) bpffs: PathBuf,
    /// Where links are noted, see `known.rs`.
    pub(crate) known: PathBuf,
    /// Where the rings are.
    pub(crate) rings: RingDir,
    /// No mirror outlives this process, whatever its spec says.
    pub(crate) ephemeral: bool,
    /// Number of the state directory, which is noted in what is pinned: what belongs to another one is left alone.
    pub(crate) owner: u64,
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

    fn admit(&self, name: &str, spec: &MirrorSpec) -> Result<(), Refusal> {
        loops::admit(&self.rings, name, spec)
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

/// Says what a client left to the daemon, so that what is shown is what is done.
pub(crate) fn fill_in(spec: &mut MirrorSpec) {
    if spec.direction() == Direction::Unspecified {
        spec.direction = match spec.hook() {
            Hook::Xdp => Direction::In.into(),
            Hook::Unspecified | Hook::Tc => Direction::Both.into(),
        };
    }
}

/// Sets the time at which a mirror ends.
pub(crate) fn start_lifetime(spec: &mut MirrorSpec) {
    let lifetime = spec.lifetime_ms.saturating_mul(1_000_000);
    let after = |now: u64| match lifetime {
        0 => 0,
        ns => now.saturating_add(ns),
    };
    spec.expires_ns = after(realtime_ns());
    spec.expires_boottime_ns = after(boottime_ns());
    spec.boot_id = match lifetime {
        0 => String::new(),
        _ => boot_id().to_owned(),
    };
}

/// What tells this boot from others; empty where the system does not say.
fn boot_id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map(|id| id.trim().to_owned()).unwrap_or_default()
    });
    &ID
}

/// How long a mirror still has, in nanoseconds; none: for ever. The clock that goes on evenly says so, for somebody may set the other one. After a
/// boot only that one is left; where boots cannot be told apart, the end must not be further away than it ever was.
pub(crate) fn time_left(spec: &MirrorSpec) -> Option<u64> {
    left_at(spec, realtime_ns(), boottime_ns(), boot_id())
}

fn left_at(spec: &MirrorSpec, realtime: u64, boottime: u64, boot: &str) -> Option<u64> {
    if spec.expires_ns == 0 {
        return None;
    }
    let even = spec.expires_boottime_ns.saturating_sub(boottime);
    let longest = spec.lifetime_ms.saturating_mul(1_000_000);
    Some(match spec.expires_boottime_ns {
        1.. if spec.boot_id == boot && even <= longest => even,
        _ => spec.expires_ns.saturating_sub(realtime).min(longest),
    })
}

/// Whether the time of a mirror is over.
pub(crate) fn is_over(spec: &MirrorSpec) -> bool {
    time_left(spec) == Some(0)
}

/// Whether two specs are equal but for the time at which the mirror ends, which clients do not set.
pub(crate) fn same_request(a: &MirrorSpec, b: &MirrorSpec) -> bool {
    MirrorSpec {
        expires_ns: b.expires_ns,
        expires_boottime_ns: b.expires_boottime_ns,
        boot_id: b.boot_id.clone(),
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
    fill_in(&mut spec);
    start_lifetime(&mut spec);
    if let Ok(existing) = mirrors.get(name) {
        let kept = existing.spec();
        if same_request(&kept, &spec) && !is_over(&kept) {
            return Ok(());
        }
        if !same_place(&kept, &spec) {
            mirrors.delete(name)?;
        }
    }
    mirrors.put(name, spec).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_options::TargetArg;
    use fluxcap_proto::v1::MirrorDevice;

    fn spec(target: &str) -> MirrorSpec {
        let mut spec = MirrorSpec {
            interface: "eth0".into(),
            ..Default::default()
        };
        match target.parse() {
            Ok(TargetArg::Ring(ring)) => spec.ring = ring,
            Ok(TargetArg::Devices(names)) => {
                let device = |name| MirrorDevice {
                    name,
                    vlan_push: None,
                };
                spec.devices = names.into_iter().map(device).collect();
            }
            Ok(TargetArg::Overlay(arg)) => spec.overlay = Some(arg.overlay),
            Err(error) => panic!("{error}"),
        }
        spec
    }

    #[test]
    fn what_a_mirror_keeps_is_interface_hook_and_kind_of_target() {
        let ring = spec("ring:a");
        assert!(same_place(&ring, &spec("ring:b")));
        assert!(!same_place(&ring, &spec("dev:a")));
        assert!(!same_place(&ring, &spec("gue:192.0.2.9")));
        assert!(same_place(
            &spec("gue:192.0.2.9"),
            &spec("vxlan:192.0.2.9,vni=5")
        ));
        let elsewhere = MirrorSpec {
            interface: "eth1".into(),
            ..ring.clone()
        };
        assert!(!same_place(&ring, &elsewhere));
        let tc = spec("dev:a");
        let mut xdp = MirrorSpec {
            hook: Hook::Xdp.into(),
            ..tc.clone()
        };
        assert!(!same_place(&tc, &xdp));
        let before = xdp.clone();
        xdp.ring = "beside".into();
        assert!(same_place(&before, &xdp));
    }

    #[test]
    fn the_same_request_later_is_the_same() {
        let mut first = spec("ring:a");
        first.lifetime_ms = 60_000;
        let mut later = first.clone();
        start_lifetime(&mut first);
        assert!(first.expires_ns > realtime_ns());
        assert!(same_request(&first, &later));
        later.lifetime_ms += 1;
        assert!(!same_request(&first, &later));
        first.lifetime_ms = 0;
        start_lifetime(&mut first);
        assert_eq!((first.expires_ns, first.expires_boottime_ns), (0, 0));
    }

    #[test]
    fn a_step_of_the_clock_does_not_end_a_mirror_and_a_boot_does_not_keep_it() {
        const S: u64 = 1_000_000_000;
        let ends = MirrorSpec {
            lifetime_ms: 600_000,
            expires_ns: 10_000 * S,
            expires_boottime_ns: 900 * S,
            boot_id: "a".into(),
            ..MirrorSpec::default()
        };
        // Set back and forth by a day.
        for realtime in [0, 9_700 * S, 96_400 * S] {
            assert_eq!(left_at(&ends, realtime, 600 * S, "a"), Some(300 * S));
        }
        assert_eq!(left_at(&ends, 0, 900 * S, "a"), Some(0));
        // After a boot the even clock begins again.
        assert_eq!(left_at(&ends, 9_900 * S, 20 * S, "a"), Some(100 * S));
        assert_eq!(left_at(&ends, 10_001 * S, 20 * S, "a"), Some(0));
        assert_eq!(left_at(&ends, 9_900 * S, 600 * S, "b"), Some(100 * S));
        // The clock is wrong: not for longer than was asked for.
        assert_eq!(left_at(&ends, 0, 20 * S, "a"), Some(600 * S));
        // Of an earlier version.
        let old = MirrorSpec {
            expires_boottime_ns: 0,
            ..ends
        };
        assert_eq!(left_at(&old, 9_700 * S, 600 * S, "a"), Some(300 * S));
        assert_eq!(left_at(&MirrorSpec::default(), 1, 1, "a"), None);
    }

    #[test]
    fn a_direction_that_is_left_out_is_filled_in() {
        let mut tc = spec("ring:a");
        fill_in(&mut tc);
        assert_eq!(tc.direction(), Direction::Both);
        let mut xdp = spec("dev:a");
        xdp.hook = Hook::Xdp.into();
        fill_in(&mut xdp);
        assert_eq!(xdp.direction(), Direction::In);
        let mut out = spec("ring:a");
        out.direction = Direction::Out.into();
        fill_in(&mut out);
        assert_eq!(out.direction(), Direction::Out);
    }
}
