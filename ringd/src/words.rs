//! What is said of rings that cannot be had, used or deleted.

use crate::status;
use fluxcap_proto::v1::{Ring, RingMode, RingStatus, State};
use fluxcap_ring::{Error, RingName, RingStats};
use fluxcap_service::{Refusal, format_size};
use std::error::Error as _;

/// Who works with a ring right now, for the log and the client.
pub(crate) fn attached(stats: &RingStats) -> String {
    let producer = stats
        .producer
        .iter()
        .filter(|producer| producer.live)
        .map(|p| format!("producer {}", p.holder));
    let readers = stats
        .readers
        .iter()
        .filter(|reader| reader.live)
        .map(|r| format!("reader {} (pid {})", r.label, r.pid));
    producer.chain(readers).collect::<Vec<_>>().join(", ")
}

pub(crate) fn broken(name: &RingName, error: &Error) -> Ring {
    let status = RingStatus {
        state: State::Failed.into(),
        reason: format!(
            "{}; make it anew (fluxctl ring create), or delete it",
            explain(error)
        ),
        ..RingStatus::default()
    };
    Ring {
        name: name.to_string(),
        spec: None,
        status: Some(status),
    }
}

pub(crate) fn different(name: &RingName, stats: &RingStats) -> Refusal {
    let spec = status::spec(&stats.info);
    let mode = if spec.mode() == RingMode::Wait {
        "wait"
    } else {
        "overwrite"
    };
    Refusal::AlreadyExists(format!(
        "ring {name} exists with {} in mode {mode}; to change it: fluxctl ring resize {name}, or create it with --replace \
         (what is in it is lost, workers follow by themselves)",
        format_size(spec.size_bytes)
    ))
}

/// The error with its causes.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What a client is told of an error of a ring.
pub(crate) fn refusal(error: Error) -> Refusal {
    let text = explain(&error);
    match error {
        Error::InvalidName { .. } => Refusal::invalid("name", text),
        Error::InvalidCapacity { .. } => Refusal::invalid("spec.size_bytes", text),
        Error::Exists { .. } => {
            Refusal::AlreadyExists(format!("{text}; choose another name, or replace it"))
        }
        Error::NotFound { .. } => Refusal::NotFound(format!(
            "{text}; fluxctl ring list shows the rings, fluxctl ring create makes one"
        )),
        Error::NotEnoughMemory {
            name,
            needed,
            available,
        } => Refusal::Exhausted(format!(
            "ring {name} needs {}, but only {} of memory can be taken now; delete or shrink a ring, end other programs, or \
             ask for less",
            format_size(needed),
            format_size(available)
        )),
        Error::Foreign { .. } => Refusal::Precondition(text),
        Error::Cancelled { .. } => Refusal::Unavailable(text),
        Error::Damaged { .. } | Error::Poisoned { .. } => Refusal::Precondition(format!(
            "{text}; make it anew: fluxctl ring create; or delete it"
        )),
        Error::Retired { .. } | Error::Busy { .. } | Error::Locked { .. } => {
            Refusal::Precondition(format!("{text}; try again in a moment"))
        }
        _ => Refusal::Internal(text),
    }
}
