//! What a capture does so that no frame goes round: it refuses those that its own ring was sent with, and captures on no interface by which
//! they would come back in another way.

use fluxcap_datapath::SourceGuard;
use fluxcap_proto::v1::CaptureSpec;
use fluxcap_ring::RingDir;
use fluxcap_service::Refusal;
use fluxcap_socket::{Origin, SockFilter};

/// What to do about a loop.
const ADVICE: &str = "capture on another interface, or say --allow-loop if nothing comes back";

/// For the interface of that name of a capture.
pub(crate) fn guard(
    dir: &RingDir,
    capture: &str,
    spec: &CaptureSpec,
    interface: &str,
) -> SourceGuard {
    SourceGuard {
        dir: dir.clone(),
        ring: spec.ring.clone(),
        holder: holder(capture),
        interface: interface.to_owned(),
        direction: spec.direction(),
        allowed: spec.allow_loop,
    }
}

/// The same for another spec of that capture.
pub(crate) fn renewed(guard: &SourceGuard, spec: &CaptureSpec) -> SourceGuard {
    SourceGuard {
        ring: spec.ring.clone(),
        direction: spec.direction(),
        allowed: spec.allow_loop,
        ..guard.clone()
    }
}

/// What would go round, and what to do; none: nothing. `ifindex` is 0 when the interface is to be looked for.
pub(crate) fn look(guard: &SourceGuard, ifindex: u32) -> Option<String> {
    let looped = guard.look(ifindex)?;
    Some(format!("{looped}; {ADVICE}"))
}

/// A filter that refuses frames of the own ring, before `filter` has its say.
pub(crate) fn guarded(
    guard: &SourceGuard,
    filter: Option<&[SockFilter]>,
) -> Option<Vec<SockFilter>> {
    match guard.origin() {
        Origin::UNKNOWN => filter.map(<[SockFilter]>::to_vec),
        origin => Some(origin.refuse(filter)),
    }
}

/// Refuses a capture by which frames would go round.
pub(crate) fn admit(dir: &RingDir, capture: &str, spec: &CaptureSpec) -> Result<(), Refusal> {
    let names = spec.interfaces.iter().map(|it| it.name.as_str());
    let mut loops = names.filter_map(|name| look(&guard(dir, capture, spec, name), 0));
    loops
        .next()
        .map_or(Ok(()), |looped| Err(Refusal::Precondition(looped)))
}

/// The name under which rings know a capture.
pub(crate) fn holder(capture: &str) -> String {
    format!("rxd {capture}")
}
