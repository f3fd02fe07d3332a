//! Mirrors: the options and the checks of a spec.

use crate::{SpecError, validate_interfaces};
use fluxcap_proto::v1::MirrorSpec;

/// Checks what a spec alone can tell.
///
/// # Errors
/// The first field that will not do.
pub fn validate_mirror(spec: &MirrorSpec) -> Result<(), SpecError> {
    validate_interfaces([spec.interface.as_str()], 1)
        .map_err(|error| SpecError::new("interface", error.problem))
}
