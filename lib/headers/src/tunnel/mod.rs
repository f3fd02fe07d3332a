//! Tunnel formats: GRE, ERSPAN, VXLAN, Geneve, GUE, FOU, IP in IP, TZSP, and the outer IP and UDP headers.

mod decap;
mod encap;
mod fragment;
mod kind;
mod spec;

pub use decap::{Decap, Decoded, Granularity, Link, Patch, Reject, SenderTime, claimed_len};
pub use encap::{Encap, Encapsulated, FrameFacts, MAX_OVERHEAD, Skip};
pub use fragment::Fragmenter;
pub use kind::{ErspanType, GueVariant, TunnelKind, UdpPayload};
pub use spec::{DecapSpec, Direction, EncapSpec, ErspanFields, Field, InvalidTunnel, check_id};
