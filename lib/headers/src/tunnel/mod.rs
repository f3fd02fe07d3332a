//! Tunnel formats: GRE, ERSPAN, VXLAN, Geneve, GUE, FOU, IP in IP, TZSP, and the outer IP and UDP headers.

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
