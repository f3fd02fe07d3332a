//! From a frame to a whole outer IP packet.

use super::kind::TunnelKind;
use super::spec::{Direction, EncapSpec, InvalidTunnel};
use crate::WireFrame;

/// The longest header, from the first byte of the outer IP header to the payload: Geneve over IPv6 with both
/// of our options.
pub const MAX_OVERHEAD: usize = 76;

/// What is known of a frame besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameFacts {
    /// [`crate::flow_hash`] of the frame: source port, NVGRE flow, IPv6 flow label.
    pub flow_hash: u32,
    /// When it was captured, in nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Which way it went.
    pub direction: Option<Direction>,
}

/// What was done to a frame to carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulated {
    /// Bytes at its end were left out so that it fits.
    pub truncated: bool,
}

/// Why a frame cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skip {
    /// Not an IP packet, and the tunnel carries nothing else.
    NotIp,
    /// Too short to be a frame, or an IP header that contradicts itself.
    Malformed,
    /// Longer than an IP packet can be, or no room at all below the limit.
    TooLong,
}

impl Skip {
    /// The name for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Skip::NotIp => "not_ip",
            Skip::Malformed => "malformed",
            Skip::TooLong => "too_long",
        }
    }
}

/// An encoder for one tunnel: a prepared header and the counters that go into it.
#[derive(Debug, Clone)]
pub struct Encap {
    spec: EncapSpec,
}

impl Encap {
    /// An encoder; sequence numbers start at 0.
    ///
    /// # Errors
    /// What the format cannot do.
    pub fn new(spec: &EncapSpec) -> Result<Encap, InvalidTunnel> {
        spec.check()?;
        Ok(Encap { spec: spec.clone() })
    }

    /// Goes on with other settings, such as another source address. Identifications and sequence numbers continue.
    ///
    /// # Errors
    /// What the format cannot do; then nothing changes.
    pub fn update(&mut self, spec: &EncapSpec) -> Result<(), InvalidTunnel> {
        spec.check()?;
        self.spec = spec.clone();
        Ok(())
    }

    /// The settings in use.
    pub fn spec(&self) -> &EncapSpec {
        &self.spec
    }

    /// The kind of tunnel.
    pub fn kind(&self) -> TunnelKind {
        self.spec.kind
    }

    /// Bytes from the first one of the outer IP header to the payload, for a frame that was captured whole.
    /// At most [`MAX_OVERHEAD`].
    pub fn overhead(&self) -> usize {
        0
    }

    /// The EtherType of the outer packet.
    pub fn ether_type(&self) -> u16 {
        if self.spec.destination.is_ipv4() {
            0x0800
        } else {
            0x86dd
        }
    }

    /// The UDP destination port; none for kinds without UDP.
    pub fn destination_port(&self) -> Option<u16> {
        self.spec.destination_port.or(self.spec.kind.default_port())
    }

    /// Whether a frame is an outer packet of this very tunnel, or a fragment of one: it must not be sent again.
    pub fn is_own(&self, frame: &WireFrame<'_>) -> bool {
        let _ = frame;
        false
    }

    /// Appends one whole outer IP packet that carries `frame` to `out`: at most [`MAX_OVERHEAD`] bytes and the frame.
    ///
    /// `limit` is the longest IP packet that is wanted: the payload of a longer one is cut so that it fits, and the
    /// format tells so where it can. `usize::MAX` cuts nothing.
    ///
    /// # Errors
    /// Why the frame cannot be carried; then nothing is appended.
    pub fn encapsulate(
        &mut self,
        frame: &WireFrame<'_>,
        facts: &FrameFacts,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<Encapsulated, Skip> {
        let _ = (frame, facts, limit, out);
        Err(Skip::Malformed)
    }
}
