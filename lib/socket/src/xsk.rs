//! AF_XDP: frames by rings in memory that is shared with the kernel, past the network stack.
//!
//! ```text
//!   receive    fill ring --chunk--> kernel --descriptor--> receive ring --chunk, copied out--> fill ring
//!   transmit   transmit ring --descriptor--> kernel --chunk--> completion ring
//! ```
//!
//! A chunk of the UMEM belongs either to us or to the kernel, and [`umem::Umem`] knows which. Nothing that stands in a ring is used
//! before it was held against that: the kernel is believed when it gives back what it was lent.

mod port;
mod program;
mod receive;
mod ring;
mod socket;
mod transmit;
mod umem;

pub use receive::{XdpBurst, XdpCapture, XdpPackets};
pub use transmit::Xsk;
