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
//!     RawIp        whole IP packets, for which the kernel finds the way; no Transmitter, but counts like one
//!   TunnelReceiver batches of datagrams of a tunnel, behind the outer headers: UDP or raw IP sockets
//!   Route, Neighbour  which way the host takes to an address, and who is next on it (rtnetlink)
//!   IcmpWatch      what routers and receivers say about packets that did not arrive
//!   NetCounters    what the kernel has thrown away before a socket saw it
//!   BpfLink        a BPF program at an interface, held by a link that may have a name in a bpffs
//!   TrafficControl  the clsact qdisc and BPF programs as its filters
//!   LinkWatch      which interfaces exist, and what becomes of them (rtnetlink)
//!   create_link()  makes interfaces; set_up(), set_alias(), delete_link(), HostRoute change and remove what was made (rtnetlink)
//!   interface_addresses()  the IP addresses of an interface (rtnetlink)
//!   offloads()     what the driver does to frames before a capture sees them (ethtool)
//!   Features       what `ethtool -k` lists, set_features() switches (generic netlink)
//!   XdpFeatures    whether the driver sends what XDP programs redirect to it (generic netlink)
//!   FarEnd         what the other end of a veth does with frames, told from this end
//!   PassAll        an XDP program that passes every frame on
//!   place_thread() CPU and priority of a thread
//!   Starvation   has a thread leave a CPU that others take for themselves
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
//! * Receiving a block or a batch allocates nothing; nor does sending a burst, once its report has grown to hold the
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

mod address;
mod addresses;
mod anchor;
mod area;
mod block;
mod bpf;
mod bpf_link;
mod capture;
mod classifier;
mod clsact;
mod error;
mod fanout;
mod far_end;
mod features;
mod generic;
mod icmp;
mod link;
mod link_edit;
mod link_watch;
mod live;
mod mapping;
mod mmsg;
mod namespace;
mod neighbour;
mod net_counters;
mod netlink;
mod offloads;
mod origin;
mod pass;
mod poll;
mod raw_ip;
mod receive;
mod route;
mod sendmmsg;
mod starvation;
mod sys;
mod tc;
mod thread;
mod transmit;
mod tunnel;
mod xdp_features;
mod xsk;

pub use addresses::interface_addresses;
pub use block::{Block, FrameHead, Packet, Packets};
pub use bpf::{private_bpffs, trim_memory};
pub use bpf_link::{BpfLink, BpfLinkInfo, LinkHook, LinkOrder};
pub use capture::{CaptureNotes, CaptureOptions, CaptureStatistics, PacketCapture, SockFilter};
pub use classifier::{Classifier, run_classifier};
pub use clsact::{TcFilter, TcHook, TrafficControl};
pub use error::Error;
pub use far_end::FarEnd;
pub use features::{Feature, Features, set_features};
pub use icmp::{IcmpEvent, IcmpReason, IcmpWatch};
pub use link::{Link, network_namespace};
pub use link_edit::{
    HostRoute, LinkKind, TunnelLink, create_link, delete_link, load_gue, set_alias, set_arp,
    set_carrier_only, set_multicast, set_up,
};
pub use link_watch::{LinkEvent, LinkWatch};
pub use live::Live;
pub use namespace::namespace_cookie;
pub use neighbour::{Neighbour, NeighbourState};
pub use net_counters::NetCounters;
pub use offloads::{Offloads, make_checksums_in_software, offloads};
pub use origin::Origin;
pub use pass::PassAll;
pub use poll::{MAX_POLL, Ready, poll};
pub use raw_ip::RawIp;
pub use receive::{Received, ReceivedPackets, Receiver};
pub use route::{Route, RouteKind};
pub use sendmmsg::Sendmmsg;
pub use starvation::Starvation;
pub use tc::Tc;
pub use thread::{Affinity, pin_thread, place_thread, set_thread_priority};
pub use transmit::{Fate, MAX_OUTPUTS, Outgoing, SendReport, Transmitter};
pub use tunnel::{Datagram, Datagrams, Transport, TunnelOptions, TunnelReceiver, TunnelSocket};
pub use xdp_features::XdpFeatures;
pub use xsk::{XdpBurst, XdpCapture, XdpPackets, Xsk};
