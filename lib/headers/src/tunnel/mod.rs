//! Tunnel formats as pure functions over bytes, with the outer IP and UDP headers.
//!
//! ```text
//!   WireFrame --> Encap::encapsulate --> one outer IP packet --> Fragmenter::fragment, if it is longer than the path takes
//!
//!   [ IPv4 or IPv6 | UDP | tunnel header | frame, or the IP packet within ]
//!   '------------ Encap::overhead ------'
//!
//!   what follows the outer IP or UDP header --> Decap::decode --> frame or IP packet, borrowed, and what its headers tell
//! ```
//!
//! Each format has its bits drawn in its own file. Sent and received are all but TZSP, which is received only.
//!
//! | kind | outer | carries | identifier | overhead over IPv4 | over IPv6 |
//! |---|---|---|---|---|---|
//! | gre | protocol 47 | IP | key, optional | 24 | 44 |
//! | gretap | 47 | Ethernet | key, optional | 24 | 44 |
//! | gre, gretap: each of key, checksum, sequence | | | | +4 | +4 |
//! | nvgre | 47 | Ethernet | VSID, 24 bits | 28 | 48 |
//! | erspan type I | 47 | Ethernet | none | 24 | 44 |
//! | erspan type II | 47 | Ethernet | session, 10 bits | 36 | 56 |
//! | erspan type III | 47 | Ethernet | session, 10 bits | 40 | 60 |
//! | vxlan | UDP 4789 | Ethernet | VNI, 24 bits | 36 | 56 |
//! | geneve | UDP 6081 | Ethernet | VNI, 24 bits | 36 | 56 |
//! | geneve with metadata | UDP 6081 | Ethernet | VNI, 24 bits | 56 | 76 |
//! | gue, IP within | UDP 6080 | IP | none | 32 | 52 |
//! | gue variant 1 | UDP 6080 | IP | none | 28 | 48 |
//! | gue, gre or gretap within | UDP 6080 | IP or Ethernet | key, optional | 36 | 56 |
//! | fou, IP within | UDP | IP | none | 28 | 48 |
//! | fou, gre or gretap within | UDP | IP or Ethernet | key, optional | 32 | 52 |
//! | ipip | protocol 4 or 41 | IP | none | 20 | 40 |
//! | tzsp | UDP 37008 | Ethernet | none | | |
//!
//! Overhead counts from the first byte of the outer IP header to the first one of the frame or packet. With a path that takes
//! IP packets of `M` bytes, whole frames of `M - overhead` bytes fit, their Ethernet header and tags counted; kinds that carry
//! IP lose 14 bytes and the tags of each frame. A frame of 1514 bytes in VXLAN over IPv4 is a packet of 1550 bytes:
//! [`Encap::packet_len`] tells.
//!
//! Guarantees, tested with random bytes and every shorter form of valid packets, and fuzzed (`fuzz/` of the repository):
//!
//! * No function panics or allocates on any input, as long as the caller reserved [`MAX_OVERHEAD`] and the frame.
//! * A packet that is not sent or not delivered leaves nothing behind but its reason, [`Skip`] or [`Reject`].
//! * What [`Encap`] makes, [`Decap`] of the same kind takes, and gives the same bytes.
//! * A decoder looks into one tunnel only; a tunnel within the payload is payload.
//!
//! Deliberately absent: which identifiers and senders are welcome, reassembly of fragments and the verification of outer
//! checksums. The first is up to who receives, the others up to the kernel.

mod decap;
mod encap;
mod erspan;
mod fragment;
mod geneve;
mod gre;
mod gue;
mod inner;
mod kind;
mod outer;
mod sequence;
mod spec;
mod template;
mod tzsp;
mod vxlan;

pub use decap::{Decap, Decoded, Granularity, Link, Patch, Reject, SenderTime};
pub use encap::{Encap, Encapsulated, FrameFacts, MAX_OVERHEAD, Skip};
pub use fragment::Fragmenter;
pub use inner::claimed_len;
pub use kind::{ErspanType, GueVariant, TunnelKind, UdpPayload};
pub use sequence::Step;
pub use spec::{DecapSpec, Direction, EncapSpec, ErspanFields, Field, InvalidTunnel, check_id};

#[cfg(test)]
mod tests;
