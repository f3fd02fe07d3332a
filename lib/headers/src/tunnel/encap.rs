//! From a frame to a whole outer IP packet.

use super::erspan;
use super::geneve::{self, TIME_OPTION, WIRE_LEN_OPTION};
use super::inner::{ETHERNET_LEN, InnerIp};
use super::kind::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ErspanType, IPV4, IPV6, TunnelKind, UDP};
use super::outer::{self, Fields, IPV4_LEN, IPV6_LEN};
use super::spec::{Direction, EncapSpec, Field, InvalidTunnel};
use super::template::{InnerVersion, Template};
use crate::WireFrame;
use crate::checksum::{fold, sum_words};
use crate::ip::IpPacket;

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
    template: Template,
    destination_port: u16,
    next_sequence: u32,
    next_identification: u16,
}

/// The TTL of frames that have none to inherit.
const DEFAULT_TTL: u8 = 64;
/// First of the dynamic ports (RFC 6335): source ports are spread from here to the last one.
const FIRST_SOURCE_PORT: u16 = 49152;

impl Encap {
    /// An encoder; sequence numbers start at 0.
    ///
    /// # Errors
    /// What the format cannot do.
    pub fn new(spec: &EncapSpec) -> Result<Encap, InvalidTunnel> {
        spec.check()?;
        let port = spec.destination_port.or(spec.kind.default_port());
        let destination_port = port.unwrap_or_default();
        Ok(Encap {
            template: Template::new(spec, destination_port),
            destination_port,
            next_sequence: 0,
            next_identification: spec.first_identification.max(1),
            spec: spec.clone(),
        })
    }

    /// Goes on with other settings, such as another source address. Identifications and sequence numbers continue.
    ///
    /// # Errors
    /// What the format cannot do; then nothing changes.
    pub fn update(&mut self, spec: &EncapSpec) -> Result<(), InvalidTunnel> {
        *self = Encap {
            next_sequence: self.next_sequence,
            next_identification: self.next_identification,
            ..Encap::new(spec)?
        };
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
        let metadata = if self.spec.metadata {
            WIRE_LEN_OPTION + TIME_OPTION
        } else {
            0
        };
        self.template.bytes.len() + metadata
    }

    /// What every packet begins with, from the first byte of the outer IP header to the payload, for those who complete it themselves. Zero
    /// is what differs from packet to packet: lengths, checksums, identification, flow label, sequence number, a UDP source port by
    /// flow, and the version of IP within where that is named. Of what is inherited, it has the value of frames without IP.
    pub fn header(&self) -> Vec<u8> {
        let mut header = self.template.bytes.clone();
        let fixed = |field, otherwise| match field {
            Field::Fixed(value) => value,
            Field::Inherit => otherwise,
        };
        let (tos, ttl) = (fixed(self.spec.tos, 0), fixed(self.spec.ttl, DEFAULT_TTL));
        outer::start_ip(&mut header, tos, ttl);
        if let Some(port) = self.spec.source_port
            && let Some(field) = header.get_mut(self.template.ip_len..self.template.ip_len + 2)
        {
            field.copy_from_slice(&port.to_be_bytes());
        }
        header
    }

    /// The length of the outer IP packet for an untagged Ethernet frame of `frame_len` bytes (without frame check
    /// sequence): what the path must take so that nothing is cut.
    pub fn packet_len(&self, frame_len: usize) -> usize {
        let lost = if self.spec.kind.carries_ip() {
            ETHERNET_LEN
        } else {
            0
        };
        self.overhead() + frame_len.saturating_sub(lost)
    }

    /// The EtherType of the outer packet.
    pub fn ether_type(&self) -> u16 {
        if self.spec.destination.is_ipv4() {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        }
    }

    /// Whether anything in the packet depends on [`FrameFacts::flow_hash`].
    pub fn uses_flow(&self) -> bool {
        let port = self.spec.kind.is_udp() && self.spec.source_port.is_none();
        let label = self.spec.destination.is_ipv6() && self.template.spread;
        port || label || self.spec.kind == TunnelKind::Nvgre
    }

    /// The UDP destination port; none for kinds without UDP.
    pub fn destination_port(&self) -> Option<u16> {
        self.spec.kind.is_udp().then_some(self.destination_port)
    }

    /// Whether a frame is an outer packet of this very tunnel, or a fragment of one: it must not be sent again.
    /// Addresses, protocol and UDP destination port decide.
    pub fn is_own(&self, frame: &WireFrame<'_>) -> bool {
        let (bytes, _) = frame.untagged();
        let Some(ip) = IpPacket::parse(bytes) else {
            return false;
        };
        // The addresses end an IP header.
        let header = &self.template.bytes[..self.template.ip_len];
        let same_version = (ip.source.len() == 4) == self.spec.destination.is_ipv4();
        let same_ends = header
            .strip_suffix(ip.destination)
            .is_some_and(|rest| rest.ends_with(ip.source));
        let port = bytes.get(2 + ip.upper + 2..2 + ip.upper + 4);
        let port_differs = ip.protocol == UDP
            && !ip.fragment
            && port.is_some_and(|port| port != self.destination_port.to_be_bytes());
        let same_protocol = self.spec.kind.ip_protocols().contains(&ip.protocol);
        same_version && same_ends && same_protocol && !port_differs
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
        let content = self.content(frame)?;
        let whole = self.template.bytes.len() + content.len <= limit;
        let options = self.option_bytes(content.len < content.wire_len || !whole);
        let header = self.template.bytes.len() + options;
        let keep = content
            .len
            .min(limit.checked_sub(header).ok_or(Skip::TooLong)?);
        if keep < content.minimum || header + keep > self.template.max_packet {
            return Err(Skip::TooLong);
        }
        let start = out.len();
        out.extend_from_slice(&self.template.bytes);
        if options != 0 {
            let wire_len = u32::try_from(content.wire_len).unwrap_or(u32::MAX);
            let time = self.spec.metadata.then_some(facts.timestamp_ns);
            geneve::push_options(out, start + self.template.last, wire_len, time);
        }
        let mut left = keep;
        for piece in content.pieces {
            let part = &piece[..piece.len().min(left)];
            out.extend_from_slice(part);
            left -= part.len();
        }
        let truncated = keep < content.wire_len;
        self.complete(&mut out[start..], frame, facts, &content, truncated);
        Ok(Encapsulated {
            truncated: keep < content.len,
        })
    }

    /// Bytes of our Geneve options.
    fn option_bytes(&self, cut: bool) -> usize {
        match self.spec.kind {
            TunnelKind::Geneve if self.spec.metadata => WIRE_LEN_OPTION + TIME_OPTION,
            TunnelKind::Geneve if cut => WIRE_LEN_OPTION,
            _ => 0,
        }
    }

    /// What of a frame is carried.
    #[inline]
    fn content<'a>(&self, frame: &'a WireFrame<'_>) -> Result<Content<'a>, Skip> {
        let inherits = self.spec.tos == Field::Inherit || self.spec.ttl == Field::Inherit;
        if self.spec.kind.carries_ip() {
            let ip = InnerIp::parse(frame.untagged().0)?;
            return Ok(Content {
                pieces: [ip.packet, &[], &[]],
                len: ip.packet.len(),
                wire_len: ip.claimed.unwrap_or(ip.packet.len()),
                minimum: if ip.v6 { IPV6_LEN } else { IPV4_LEN },
                ip: Some(ip),
            });
        }
        if frame.len() < ETHERNET_LEN {
            return Err(Skip::Malformed);
        }
        let ip = inherits.then(|| InnerIp::parse(frame.untagged().0).ok());
        Ok(Content {
            pieces: frame.pieces(),
            len: frame.len(),
            wire_len: usize::try_from(frame.wire_len()).unwrap_or(usize::MAX),
            minimum: ETHERNET_LEN,
            ip: ip.flatten(),
        })
    }

    /// Fills in what the template leaves open. Checksums come last, the inner ones first.
    #[inline]
    fn complete(
        &mut self,
        packet: &mut [u8],
        frame: &WireFrame<'_>,
        facts: &FrameFacts,
        content: &Content<'_>,
        truncated: bool,
    ) {
        self.set_inner_version(packet, content);
        if let TunnelKind::Erspan(kind) = self.spec.kind
            && kind != ErspanType::I
            && let Some(header) = packet.get_mut(self.template.last..)
        {
            erspan::mark(header, frame.outer_tag(), truncated, kind == ErspanType::II);
            if kind == ErspanType::III {
                let direction = self.spec.erspan.direction.or(facts.direction);
                let direction = direction.unwrap_or(Direction::Ingress);
                erspan::stamp(header, facts.timestamp_ns, direction);
            }
        }
        self.complete_gre(packet, facts.flow_hash);
        outer::finish_ip(packet, self.fields(facts.flow_hash, content.ip.as_ref()));
        if self.spec.kind.is_udp() {
            let port = self.spec.source_port;
            let port = port.unwrap_or_else(|| source_port(facts.flow_hash));
            let checksum = self.template.udp_checksum;
            outer::finish_udp(packet, self.template.ip_len, port, checksum);
        }
    }

    #[inline]
    fn set_inner_version(&self, packet: &mut [u8], content: &Content<'_>) {
        let v6 = content.ip.as_ref().is_some_and(|ip| ip.v6);
        match self.template.inner_version {
            InnerVersion::Nowhere => {}
            InnerVersion::Protocol(at) => packet[at] = if v6 { IPV6 } else { IPV4 },
            InnerVersion::EtherType(at) => {
                let value = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
                packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
            }
        }
    }

    #[inline]
    fn complete_gre(&mut self, packet: &mut [u8], flow_hash: u32) {
        let Some(gre) = self.template.gre else {
            return;
        };
        if let Some(at) = gre.sequence {
            packet[at..at + 4].copy_from_slice(&self.next_sequence.to_be_bytes());
            self.next_sequence = self.next_sequence.wrapping_add(1);
        }
        if let (TunnelKind::Nvgre, Some(at)) = (self.spec.kind, gre.key) {
            [packet[at + 3], _, _, _] = flow_hash.to_be_bytes();
        }
        if let Some(at) = gre.checksum {
            let sum = fold(sum_words(&packet[gre.start..]));
            packet[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
        }
    }

    #[inline]
    fn fields(&mut self, flow_hash: u32, ip: Option<&InnerIp<'_>>) -> Fields {
        let identification = self.next_identification;
        // Never 0: raw sockets put a number of their own there, another one for each fragment.
        self.next_identification = identification.checked_add(1).unwrap_or(1);
        Fields {
            tos: match self.spec.tos {
                Field::Fixed(tos) => tos,
                Field::Inherit => ip.map_or(0, |ip| ecn_encapsulate(ip.tos())),
            },
            ttl: match self.spec.ttl {
                Field::Fixed(ttl) => ttl,
                Field::Inherit => match ip.map_or(0, InnerIp::ttl) {
                    0 => DEFAULT_TTL,
                    ttl => ttl,
                },
            },
            identification,
            flow_label: if self.template.spread { flow_hash } else { 0 },
        }
    }
}

/// What of a frame goes into a packet.
#[derive(Debug)]
struct Content<'a> {
    pieces: [&'a [u8]; 3],
    /// Bytes in `pieces`.
    len: usize,
    /// Bytes on the wire, at least `len`.
    wire_len: usize,
    /// The least that makes sense to send.
    minimum: usize,
    /// The IP packet within, when it is of interest.
    ip: Option<InnerIp<'a>>,
}

/// A port from 49152 to 65535, by the upper 14 bits of the hash.
#[inline]
fn source_port(flow_hash: u32) -> u16 {
    let [high, low, _, _] = flow_hash.to_be_bytes();
    FIRST_SOURCE_PORT | u16::from_be_bytes([high, low]) >> 2
}

/// The outer DSCP and ECN for inner ones: as they are, but ECT(0) for CE (RFC 3168, section 9.1.1), as Linux does it
/// for `tos inherit`.
#[inline]
fn ecn_encapsulate(tos: u8) -> u8 {
    const CE: u8 = 3;
    const ECT0: u8 = 2;
    if tos & CE == CE {
        tos & !CE | ECT0
    } else {
        tos
    }
}

#[cfg(test)]
mod tests;
