//! What fluxcap does to a frame, as pure functions over bytes: no I/O, no clock, no `unsafe`.
//!
//! ```text
//!   captured bytes + the tag that the kernel took out
//!        |
//!    WireFrame    the frame as it was on the wire, in three pieces, nothing copied
//!        |            [ MAC addresses, 12 | tags held apart, 0 to 16 | the rest ]
//!      Edits      in this order, each optional:
//!                 filter -> sample -> VLAN pop -> VLAN push or replace -> trim -> slice
//!        |
//!   WireFrame::pieces(), ready for writev, sendmmsg or a copy into a ring
//! ```
//!
//! Next to it: [`flow_hash`], one value for both directions of a flow, and [`complete_checksum`],
//! for frames that a local sender left to a network card that never saw them. [`tunnel`] puts frames into
//! outer packets and takes them out. [`rules`] selects frames by addresses, ports, protocols and tags.
//!
//! Guarantees, all of them tested with random bytes:
//!
//! * Every function is total. Truncated, corrupt and empty frames give a defined answer, never a panic.
//! * Nothing here allocates once a [`Filter`] is compiled and a tunnel's header prepared.
//! * `wire_len() >= len()` holds for every [`WireFrame`].
//! * Which frames pass does not depend on where a filter runs: [`Filter::kernel_program`] lets
//!   through at least what [`Filter::matches`] accepts, [`Filter::needs_user_check`] names the
//!   frames for which it may let through more, and of the others it leaves [`REFUSED`] bytes to be counted.
//!
//! Deliberately absent: sockets, rings, clocks.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "a failed test may panic, and its numbers are small"
    )
)]

mod bpf;
mod checksum;
mod counted;
mod ebpf;
mod edits;
mod error;
mod filter;
mod flow;
mod frame;
mod ip;
pub mod rules;
mod sampler;
pub mod tunnel;
mod vlan;

pub use bpf::Instruction;
pub use checksum::{complete_checksum, has_partial_checksum};
pub use counted::REFUSED;
pub use ebpf::TailCalls;
pub use edits::{Edited, Edits, VlanEdit};
pub use error::{Error, InvalidVlan};
pub use filter::{Filter, FilterVlan, filter_doubt};
pub use flow::flow_hash;
pub use frame::WireFrame;
pub use sampler::{SampleBy, Sampler};
pub use vlan::{VlanTag, is_tpid};
