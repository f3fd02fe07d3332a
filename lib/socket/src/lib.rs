//! Packet sockets, link watch and interface queries of Linux, on plain system calls.
//!
//! ```text
//!   Receiver       bursts of frames from an interface, read where the kernel wrote them
//!     PacketCapture  AF_PACKET, TPACKET_V3, blocks of frames
//!     XdpCapture     AF_XDP, a socket for each receive queue, before the network stack
//!   Transmitter    a burst of frames out of one or several interfaces:
//!     Live         BPF live frames, the fastest way to a veth
//!     Tc           clones by a BPF program for traffic control, every driver
//!     Xsk          AF_XDP sockets, for drivers that send without copies
//!     Sendmmsg     packet sockets, works everywhere
//!   LinkWatch      which interfaces exist, and what becomes of them (rtnetlink)
//!   offloads()     what the driver does to frames before a capture sees them (ethtool)
//!   place_thread() CPU and priority of a thread
//!   poll()         sleeps until one of several descriptors has something to say
//! ```
//!
//! Invariants:
//!
//! * Everything happens in the network namespace of the thread that opens the object. The object stays
//!   there when the thread moves on.
//! * Lengths and offsets in shared blocks and in netlink messages are checked before use, in every
//!   build: a wrong one ends the block or the message, never the process.
//! * After every [`Transmitter::send`] each frame of the call is counted exactly once, whatever happened.
//! * Receiving a block allocates nothing; nor does sending a burst, once its report has grown to hold the
//!   refusals of one.
//!
//! Deliberately absent: VLAN logic, rings, threads, retries over seconds. Whoever owns the loop decides.

#![expect(
    unsafe_code,
    reason = "system calls on packet sockets and the memory that the kernel shares through them"
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "a failed test may panic, and its numbers are small"
    )
)]

mod anchor;
mod area;
mod block;
mod bpf;
mod capture;
mod error;
mod fanout;
mod link;
mod link_watch;
mod live;
mod mapping;
mod netlink;
mod offloads;
mod poll;
mod receive;
mod sendmmsg;
mod sys;
mod tc;
mod thread;
mod transmit;
mod xsk;

pub use block::{Block, Packet, Packets};
pub use capture::{CaptureOptions, CaptureStatistics, PacketCapture, SockFilter};
pub use error::Error;
pub use link::Link;
pub use link_watch::{LinkEvent, LinkWatch};
pub use live::Live;
pub use offloads::{Offloads, offloads};
pub use poll::{MAX_POLL, Ready, poll};
pub use receive::{Received, ReceivedPackets, Receiver};
pub use sendmmsg::Sendmmsg;
pub use tc::Tc;
pub use thread::{Affinity, pin_thread, place_thread, set_thread_priority};
pub use transmit::{Fate, MAX_OUTPUTS, Outgoing, SendReport, Transmitter};
pub use xsk::{XdpBurst, XdpCapture, XdpPackets, Xsk};
