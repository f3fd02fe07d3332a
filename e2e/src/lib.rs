//! What the end-to-end tests stand on: hosts made of network namespaces, daemons run as their users run them, traffic that
//! knows itself, and a judge of what arrived.
//!
//! ```text
//!   switch namespaces            namespace "host"                             sink namespaces
//!   +------------+      +---------------------------------------+      +------------+
//!   | wire  -----|------| tap0 -> rxd -> ring -> txd -> out0 ---|------| wire       |
//!   | Generator  |      |        ringd, fluxctl                 |      | Sink       |
//!   +------------+      +---------------------------------------+      +------------+
//! ```
//!
//! [`Lab`] makes that picture in one call. Its parts are usable alone: [`Netns`] and [`Veth`] for other topologies, [`Daemon`] for
//! odd command lines, [`Generator`] and [`Sink`] for traffic. A frame of a [`Generator`] carries its stream, its number, the time at
//! which it was sent and a hash over all of it ([`payload`]), so a [`Sink`] can tell missing, duplicate, reordered, cut and
//! corrupt frames apart without knowing what was sent.
//!
//! Everything here panics instead of returning errors, and says what it was doing: its only callers are tests. Everything it
//! creates carries the name of the process that made it and goes away on drop, also when a test panics; what a killed test
//! left behind is swept up by the next one.
//!
//! Tests need root. Without it they fail, unless `FLUXCAP_TEST_SKIP_ROOT` is set: then each prints one line that begins
//! with `skipped:` and passes ([`need_root!`]).

pub mod bench;
mod checksum;
mod ctl;
mod daemon;
mod generator;
pub mod kernel_peer;
mod kit;
mod lab;
mod link;
pub mod mirror;
pub mod mirrord;
mod netns;
pub mod payload;
mod ring;
mod sink;
mod wait;

pub use checksum::checksum_is_right;
pub use ctl::{Fluxctl, Output};
pub use daemon::{Daemon, Dirs, UNIT_USER, binary, unit_capabilities};
pub use generator::{Generator, Sending, Sent, send_frames};
pub use kit::kit_or_skip;
pub use lab::{Lab, LabOptions, Port};
pub use link::{End, LinkCounters, Veth};
pub use netns::{Netns, root_or_skip, skipped};
pub use ring::{RingReader, RingWriter, published};
pub use sink::{Latency, Report, Sink, SinkOptions, StreamReport};
pub use wait::{wait_for, wait_until};

/// Returns from the test when it is not run as root and `FLUXCAP_TEST_SKIP_ROOT` allows that; panics when it does not.
#[macro_export]
macro_rules! need_root {
    () => {
        if !$crate::root_or_skip() {
            return;
        }
    };
}
