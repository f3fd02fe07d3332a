//! Memory that several processes share: mappings, copies that are no data races, locks.

pub(crate) mod copy;
pub(crate) mod lock;
pub(crate) mod mapping;
pub(crate) mod shared;
pub(crate) mod sigbus;
