//! What people are told about rings.

use fluxcap_ring::{Error, RingDir, RingName, is_being_made};

/// Why a ring cannot be had, and what to do about it.
#[must_use]
pub fn ring_advice(name: &str, error: &Error) -> String {
    match error {
        Error::NotFound { dir, .. } => {
            let making = |ring| is_being_made(&RingDir::new(dir), &ring);
            if RingName::parse(name).is_ok_and(making) {
                return format!("ring {name} is being made");
            }
            format!("ring {name} does not exist: fluxctl ring create {name} --size 100m")
        }
        other => other.to_string(),
    }
}
