//! Which captures make sense.

use crate::lane::MAX_INTERFACES;
use crate::open::{BLOCK_BYTES, BUFFER_BYTES};
use fluxcap_options::{
    CaptureIo, SpecError, compile_edits, validate_interfaces, validate_merge_window,
    validate_scheduling, validate_threads, vlan_tag,
};
use fluxcap_proto::v1::{CaptureSpec, Direction};
use fluxcap_ring::RingName;
use fluxcap_service::{Refusal, format_size};

/// Checks a spec, in view of those of the other captures.
pub(crate) fn validate(
    spec: &CaptureSpec,
    others: &[(String, CaptureSpec)],
) -> Result<(), Refusal> {
    validate_taps(spec)?;
    let ring = RingName::parse(&spec.ring).map_err(|e| Refusal::invalid("ring", e.to_string()))?;
    if let Some((other, _)) = others.iter().find(|(_, other)| other.ring == spec.ring) {
        return Err(Refusal::Precondition(format!(
            "capture \"{other}\" feeds ring {ring} already, and a ring has one producer; \
             give one capture several interfaces (eth1,eth2), or each its own ring"
        )));
    }
    compile_edits(&spec.edits.clone().unwrap_or_default()).map_err(refused)?;
    validate_io(spec)?;
    validate_others(spec, others)?;
    validate_threads(spec.threads).map_err(refused)?;
    validate_merge_window(spec.merge_window_us).map_err(refused)?;
    validate_scheduling(&spec.scheduling.clone().unwrap_or_default()).map_err(refused)?;
    validate_buffer(spec)
}

fn refused(error: SpecError) -> Refusal {
    Refusal::invalid(error.field, error.problem)
}

fn validate_taps(spec: &CaptureSpec) -> Result<(), Refusal> {
    let names = spec.interfaces.iter().map(|i| i.name.as_str());
    validate_interfaces(names, MAX_INTERFACES).map_err(refused)?;
    for interface in &spec.interfaces {
        if let Some(tag) = &interface.vlan_push {
            vlan_tag("interfaces.vlan_push", tag).map_err(refused)?;
            if spec
                .edits
                .as_ref()
                .is_some_and(|e| e.vlan_replace.is_some())
            {
                return Err(Refusal::invalid(
                    "interfaces.vlan_push",
                    "cannot be combined with edits.vlan_replace",
                ));
            }
        }
    }
    Ok(())
}

fn validate_io(spec: &CaptureSpec) -> Result<(), Refusal> {
    let io = CaptureIo::from_spec(&spec.io).map_err(refused)?;
    if io == CaptureIo::AfXdp && matches!(spec.direction(), Direction::Out | Direction::Both) {
        return Err(Refusal::invalid(
            "direction",
            "must be in with af_xdp, which does not see what the host sends",
        ));
    }
    Ok(())
}

/// A capture by AF_XDP takes an interface from all others.
fn validate_others(spec: &CaptureSpec, others: &[(String, CaptureSpec)]) -> Result<(), Refusal> {
    let takes = CaptureIo::from_spec(&spec.io) == Ok(CaptureIo::AfXdp);
    if !takes || spec.exclusive {
        return Ok(());
    }
    let also = |other: &CaptureSpec| {
        let names = other.interfaces.iter().map(|it| it.name.clone());
        names
            .into_iter()
            .find(|name| spec.interfaces.iter().any(|it| it.name == *name))
    };
    let shared = others
        .iter()
        .find_map(|(name, other)| Some((name, also(other)?)));
    match shared {
        None => Ok(()),
        Some((other, interface)) => Err(Refusal::Precondition(format!(
            "af_xdp takes all frames of {interface}, and capture \"{other}\" would get none any more; \
             leave io at auto, or say --exclusive"
        ))),
    }
}

fn validate_buffer(spec: &CaptureSpec) -> Result<(), Refusal> {
    let block = if spec.block_bytes == 0 {
        BLOCK_BYTES
    } else {
        spec.block_bytes
    };
    let buffer = if spec.buffer_bytes == 0 {
        BUFFER_BYTES
    } else {
        spec.buffer_bytes
    };
    if !block.is_power_of_two() || !(128 << 10..=1 << 30).contains(&block) {
        return Err(Refusal::invalid(
            "block_bytes",
            "must be a power of two from 128K to 1G",
        ));
    }
    if buffer < 2 * u64::from(block) || buffer > 4 << 30 {
        let least = format_size(2 * u64::from(block));
        return Err(Refusal::invalid(
            "buffer_bytes",
            format!("must be from two blocks ({least}) to 4 GiB"),
        ));
    }
    if !spec.block_retire_us.is_multiple_of(1000) || spec.block_retire_us > 1_000_000 {
        return Err(Refusal::invalid(
            "block_retire_us",
            "must be whole milliseconds, at most 1 s",
        ));
    }
    Ok(())
}
