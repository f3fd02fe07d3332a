//! What people are told about rings.

use fluxcap_ring::Error;

/// Why a ring cannot be had, and what to do about it.
#[must_use]
pub fn ring_advice(name: &str, error: &Error) -> String {
    match error {
        Error::NotFound { .. } => {
            format!("ring {name} does not exist: fluxctl ring create {name} --size 100m")
        }
        other => other.to_string(),
    }
}
