//! Tests against the kernel: each in a network namespace of its own, over veth pairs.
//!
//! They need root. Without it they fail, unless FLUXCAP_TEST_SKIP_ROOT is set.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failed test may panic, and its numbers are small"
)]

mod capture;
mod fanout;
mod filters;
mod links;
mod namespace;
mod programs;
mod routes;
mod tcp;
mod transmit;
mod tunnels;
mod xdp_capture;
mod xdp_transmit;
