//! From the payload of an outer packet to the frame that it carries.

use super::erspan::{self, Erspan};
use super::geneve::Geneve;
use super::gre::Gre;
use super::gue::Gue;
use super::inner::{ETHERNET_LEN, MACS_LEN, claimed_len};
use super::kind::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_TEB, GRE, IPV4, IPV6, TunnelKind, UdpPayload,
};
use super::outer::{IPV4_LEN, IPV6_LEN};
use super::spec::{DecapSpec, Direction, InvalidTunnel};
use super::{tzsp, vxlan};
use crate::VlanTag;
use crate::vlan::is_tpid;

/// Why a packet is refused. Nothing of it is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Ends within a tunnel header.
    Short,
    /// A version of the format that nobody defined or that is not understood here.
    Version,
    /// A flag that must be set is not, or one that may not be set is.
    Flags,
    /// The GRE checksum is wrong.
    Checksum,
    /// No GRE checksum where one is required.
    ChecksumMissing,
    /// No GRE sequence number where one is required.
    SequenceMissing,
    /// No key where the format needs one (NVGRE).
    KeyMissing,
    /// Options or extensions do not fit into the room that the header gives them.
    OptionLength,
    /// An option that must be understood and is not.
    CriticalOption,
    /// A control message, not data.
    Control,
    /// What is carried is of a type that this kind of tunnel does not take.
    Protocol,
    /// What is carried is shorter than its own header.
    InnerShort,
    /// What is carried is not the IP version that the header announces.
    InnerVersion,
}

impl Reject {
    /// All of them, in the order of [`Reject::index`].
    pub const ALL: [Reject; 13] = [
        Reject::Short,
        Reject::Version,
        Reject::Flags,
        Reject::Checksum,
        Reject::ChecksumMissing,
        Reject::SequenceMissing,
        Reject::KeyMissing,
        Reject::OptionLength,
        Reject::CriticalOption,
        Reject::Control,
        Reject::Protocol,
        Reject::InnerShort,
        Reject::InnerVersion,
    ];

    /// The name for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Reject::Short => "short",
            Reject::Version => "version",
            Reject::Flags => "flags",
            Reject::Checksum => "checksum",
            Reject::ChecksumMissing => "checksum_missing",
            Reject::SequenceMissing => "sequence_missing",
            Reject::KeyMissing => "key_missing",
            Reject::OptionLength => "option_length",
            Reject::CriticalOption => "critical_option",
            Reject::Control => "control",
            Reject::Protocol => "protocol",
            Reject::InnerShort => "inner_short",
            Reject::InnerVersion => "inner_version",
        }
    }

    /// Its place in [`Reject::ALL`], for an array of counters.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What a payload begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet frame without frame check sequence, at least 14 bytes.
    Ethernet,
    /// An IPv4 packet, at least 20 bytes.
    Ipv4,
    /// An IPv6 packet, at least 40 bytes.
    Ipv6,
}

/// What one tick of an ERSPAN III timestamp is (field "Gra").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// 100 microseconds.
    HundredMicroseconds,
    /// 100 nanoseconds.
    HundredNanoseconds,
    /// IEEE 1588: nanoseconds.
    Ieee1588,
    /// Defined by the sender; the platform sub-header may say.
    UserDefined,
}

/// When the far end captured a frame, as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderTime {
    /// ERSPAN III: a counter that wraps.
    Ticks(u32, Granularity),
    /// Our Geneve option: nanoseconds since 1970.
    Nanoseconds(u64),
}

/// Two bytes to be put over those of a payload: a checksum that the sender left to the receiver
/// (GUE remote checksum offload).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// Where, from the beginning of the payload; both bytes are within it.
    pub at: usize,
    /// What, in network byte order.
    pub bytes: [u8; 2],
}

/// What a packet carries and what its headers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The frame or packet.
    pub payload: &'a [u8],
    /// What `payload` begins with.
    pub link: Link,
    /// Key, VSID, VNI or session; "none" and 0 differ.
    pub id: Option<u32>,
    /// Sequence number of GRE.
    pub sequence: Option<u32>,
    /// When the frame was captured.
    pub time: Option<SenderTime>,
    /// The sender says that the frame was cut.
    pub truncated: bool,
    /// Which way the frame went at the mirroring switch.
    pub direction: Option<Direction>,
    /// Length on the wire as the sender tells it, of the same thing that `payload` is; not below its length.
    pub wire_len: Option<u32>,
    /// The tag that the mirroring switch took out of the frame (ERSPAN II, En = 2).
    pub restore_tag: Option<VlanTag>,
    /// A checksum that is to be completed.
    pub patch: Option<Patch>,
}

impl<'a> Decoded<'a> {
    fn new(payload: &'a [u8], link: Link) -> Decoded<'a> {
        Decoded {
            payload,
            link,
            id: None,
            sequence: None,
            time: None,
            truncated: false,
            direction: None,
            wire_len: None,
            restore_tag: None,
            patch: None,
        }
    }

    /// The length on the wire of what `payload` is: what the sender told; or what the IP header within claims, for a
    /// frame that is said to be cut and for IP packets without a frame. At least the length of `payload`.
    pub fn original_len(&self) -> u32 {
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let may_be_cut = self.truncated || self.link != Link::Ethernet;
        let claimed = || claimed_len(self.link, self.payload).filter(|_| may_be_cut);
        self.wire_len.or_else(claimed).unwrap_or_default().max(len)
    }
}

/// A decoder for one kind of tunnel. Never allocates, never panics, whatever the bytes are. Looks into one tunnel
/// only: a tunnel within the payload is payload.
#[derive(Debug, Clone, Copy)]
pub struct Decap {
    spec: DecapSpec,
}

/// What a receiver takes out of GRE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Ip,
    Ethernet,
    /// Within UDP, where nobody else listens to the port.
    Both,
}

impl Decap {
    /// A decoder.
    ///
    /// # Errors
    /// What the format cannot do.
    pub fn new(spec: DecapSpec) -> Result<Decap, InvalidTunnel> {
        spec.check()?;
        Ok(Decap { spec })
    }

    /// The kind that it decodes.
    pub fn kind(&self) -> TunnelKind {
        self.spec.kind
    }

    /// Decodes what follows the outer IP header or, for kinds over UDP, the UDP header. Both are verified by the
    /// kernel before, and the bytes end where the outer headers say.
    ///
    /// # Errors
    /// Why nothing of it can be delivered.
    pub fn decode<'a>(&self, packet: &'a [u8]) -> Result<Decoded<'a>, Reject> {
        match self.spec.kind {
            TunnelKind::Gre => self.gre(packet, Takes::Ip),
            TunnelKind::Gretap => self.gre(packet, Takes::Ethernet),
            TunnelKind::Nvgre => nvgre(packet),
            TunnelKind::Erspan(_) => erspan(packet),
            TunnelKind::Vxlan => {
                let (vni, frame) = vxlan::parse(packet)?;
                Ok(Decoded {
                    id: Some(vni),
                    ..ethernet(frame)?
                })
            }
            TunnelKind::Geneve => geneve(packet),
            TunnelKind::Gue { .. } => self.gue(packet),
            TunnelKind::Fou { payload } => match payload {
                UdpPayload::Ip => ip(packet, None),
                UdpPayload::Gre | UdpPayload::Gretap => self.gre(packet, Takes::Both),
            },
            TunnelKind::Ipip => ip(packet, None),
            TunnelKind::Tzsp => {
                let (frame, original) = tzsp::parse(packet)?;
                Ok(ethernet(frame)?.told(original.map(u32::from)))
            }
        }
    }

    fn gre<'a>(&self, packet: &'a [u8], takes: Takes) -> Result<Decoded<'a>, Reject> {
        let gre = Gre::parse(packet)?;
        if self.spec.require_checksum && !gre.has_checksum() {
            return Err(Reject::ChecksumMissing);
        }
        if self.spec.require_sequence && gre.sequence().is_none() {
            return Err(Reject::SequenceMissing);
        }
        if !gre.checksum_holds() {
            return Err(Reject::Checksum);
        }
        let decoded = match gre.protocol() {
            ETHERTYPE_TEB if takes != Takes::Ip => ethernet(gre.payload())?,
            ETHERTYPE_IPV4 if takes != Takes::Ethernet => ip(gre.payload(), Some(Link::Ipv4))?,
            ETHERTYPE_IPV6 if takes != Takes::Ethernet => ip(gre.payload(), Some(Link::Ipv6))?,
            _ => return Err(Reject::Protocol),
        };
        Ok(Decoded {
            id: gre.key(),
            sequence: gre.sequence(),
            ..decoded
        })
    }

    fn gue<'a>(&self, packet: &'a [u8]) -> Result<Decoded<'a>, Reject> {
        let (protocol, payload, patch) = match Gue::parse(packet)? {
            Gue::Direct(payload) => return ip(payload, None),
            Gue::Protocol {
                protocol,
                payload,
                patch,
            } => (protocol, payload, patch),
        };
        let decoded = match protocol {
            IPV4 => ip(payload, Some(Link::Ipv4))?,
            IPV6 => ip(payload, Some(Link::Ipv6))?,
            GRE => self.gre(payload, Takes::Both)?,
            _ => return Err(Reject::Protocol),
        };
        // The patch counts from the end of the GUE header, the payload may begin behind a GRE header.
        let before = payload.len() - decoded.payload.len();
        let patch = match patch {
            Some(Patch { at, bytes }) => Some(Patch {
                at: at.checked_sub(before).ok_or(Reject::OptionLength)?,
                bytes,
            }),
            None => None,
        };
        Ok(Decoded { patch, ..decoded })
    }
}

fn nvgre(packet: &[u8]) -> Result<Decoded<'_>, Reject> {
    let gre = Gre::parse(packet)?;
    if gre.has_checksum() || gre.sequence().is_some() {
        return Err(Reject::Flags);
    }
    let key = gre.key().ok_or(Reject::KeyMissing)?;
    match gre.protocol() {
        ETHERTYPE_TEB => Ok(Decoded {
            id: Some(key >> 8),
            ..ethernet(gre.payload())?
        }),
        _ => Err(Reject::Protocol),
    }
}

fn erspan(packet: &[u8]) -> Result<Decoded<'_>, Reject> {
    let gre = Gre::parse(packet)?;
    if !gre.checksum_holds() {
        return Err(Reject::Checksum);
    }
    let header = match (gre.protocol(), gre.sequence()) {
        (erspan::PROTOCOL_II, None) => return ethernet(gre.payload()),
        (erspan::PROTOCOL_II, Some(_)) => Erspan::parse_ii(gre.payload())?,
        (erspan::PROTOCOL_III, _) => Erspan::parse_iii(gre.payload())?,
        _ => return Err(Reject::Protocol),
    };
    let decoded = if header.carries_ip() {
        ip(header.payload(), None)?
    } else {
        ethernet(header.payload())?
    };
    let tagged = matches!(decoded.payload.get(MACS_LEN..), Some([a, b, ..]) if is_tpid(u16::from_be_bytes([*a, *b])));
    Ok(Decoded {
        id: Some(header.session()),
        sequence: gre.sequence(),
        time: header
            .timestamp()
            .map(|(ticks, unit)| SenderTime::Ticks(ticks, unit)),
        truncated: header.truncated(),
        direction: header.direction(),
        restore_tag: header.removed_tag().filter(|_| !tagged),
        ..decoded
    })
}

fn geneve(packet: &[u8]) -> Result<Decoded<'_>, Reject> {
    let geneve = Geneve::parse(packet)?;
    let decoded = match geneve.protocol {
        ETHERTYPE_TEB => ethernet(geneve.payload)?,
        ETHERTYPE_IPV4 => ip(geneve.payload, Some(Link::Ipv4))?,
        ETHERTYPE_IPV6 => ip(geneve.payload, Some(Link::Ipv6))?,
        _ => return Err(Reject::Protocol),
    };
    Ok(Decoded {
        id: Some(geneve.vni),
        time: geneve.time.map(SenderTime::Nanoseconds),
        ..decoded.told(geneve.wire_len)
    })
}

impl Decoded<'_> {
    /// Takes over a length on the wire that the sender told; one below the length at hand is none.
    fn told(self, wire_len: Option<u32>) -> Self {
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let wire_len = wire_len.filter(|&told| told >= len);
        Decoded {
            wire_len,
            truncated: wire_len.is_some_and(|told| told > len),
            ..self
        }
    }
}

fn ethernet(frame: &[u8]) -> Result<Decoded<'_>, Reject> {
    if frame.len() < ETHERNET_LEN {
        return Err(Reject::InnerShort);
    }
    Ok(Decoded::new(frame, Link::Ethernet))
}

/// An IP packet, of the announced version if one is announced.
fn ip(packet: &[u8], announced: Option<Link>) -> Result<Decoded<'_>, Reject> {
    let (link, header) = match packet.first().ok_or(Reject::InnerShort)? >> 4 {
        4 => (Link::Ipv4, IPV4_LEN),
        6 => (Link::Ipv6, IPV6_LEN),
        _ => return Err(Reject::InnerVersion),
    };
    if announced.is_some_and(|announced| announced != link) {
        return Err(Reject::InnerVersion);
    }
    if packet.len() < header {
        return Err(Reject::InnerShort);
    }
    Ok(Decoded::new(packet, link))
}

#[cfg(test)]
mod tests;
