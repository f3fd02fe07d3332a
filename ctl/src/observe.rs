//! Rings by name, without any daemon.

use crate::exit::{Code, Failure};
use crate::ring::missing_hint;
use fluxcap_ring::{Error, Observer, RingDir, RingName, RingStats};
use std::error::Error as _;

/// The rings to look at: `wanted`, each of which must be there, or all that there are.
pub(crate) fn names(dir: &RingDir, wanted: &[RingName]) -> Result<Vec<RingName>, Failure> {
    for name in wanted {
        open(dir, name)?;
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let all = list(dir)?;
    if all.is_empty() {
        let failure = Failure::new(
            Code::NotFound,
            format!("there are no rings in {}", dir.path().display()),
        );
        return Err(failure.hint(
            "make one: fluxctl ring create NAME --size 100m; or say where they are: --ring-dir",
        ));
    }
    Ok(all)
}

/// All rings.
pub(crate) fn list(dir: &RingDir) -> Result<Vec<RingName>, Failure> {
    dir.list().map_err(|error| failure(dir, &error))
}

/// A ring to look at.
pub(crate) fn open(dir: &RingDir, name: &RingName) -> Result<Observer, Failure> {
    Observer::open(dir, name).map_err(|error| failure(dir, &error))
}

/// The counters of a ring. It is opened anew, so that one that was replaced is followed by its name.
pub(crate) fn stats(dir: &RingDir, name: &RingName) -> Result<RingStats, Failure> {
    open(dir, name)?
        .stats()
        .map_err(|error| failure(dir, &error))
}

/// The counters of the earlier epochs of a ring that readers have not passed yet, oldest first.
pub(crate) fn past(dir: &RingDir, name: &RingName) -> Vec<RingStats> {
    let epochs = Observer::open_earlier(dir, name);
    epochs
        .iter()
        .filter_map(|epoch| epoch.stats().ok())
        .collect()
}

/// An error of a ring for the person at the keyboard.
pub(crate) fn failure(dir: &RingDir, error: &Error) -> Failure {
    let mut message = error.to_string();
    let mut denied = false;
    let mut cause = error.source();
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        denied |= inner
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied);
        cause = inner.source();
    }
    match error {
        _ if denied => Failure::new(Code::Denied, message)
            .hint("become root, or join the group that owns the rings"),
        Error::NotFound { name, .. } => {
            let known: Vec<String> = dir
                .list()
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect();
            Failure::new(Code::NotFound, message)
                .hint(missing_hint(name, known.iter().map(String::as_str)))
        }
        Error::InvalidName { .. } => Failure::new(Code::Usage, message),
        Error::Exists { .. }
        | Error::Busy { .. }
        | Error::Retired { .. }
        | Error::NotEnoughMemory { .. } => Failure::new(Code::Refused, message),
        _ => Failure::new(Code::Failed, message),
    }
}
