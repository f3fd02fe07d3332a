//! What a tunnel end is asked to do, and what of it is refused.

use std::net::IpAddr;

use super::kind::{ErspanType, GueVariant, TunnelKind, UdpPayload};

/// A field of the outer IP header that can follow the inner one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Always this value.
    Fixed(u8),
    /// As in the IP packet within; a fixed value when there is none.
    Inherit,
}

/// Which way a mirrored frame went at the mirroring switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received by the monitored port.
    Ingress,
    /// Sent by it.
    Egress,
}

/// Fields that only ERSPAN has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErspanFields {
    /// Type II: port index, 20 bits.
    pub index: u32,
    /// Type III: direction of every frame; none: as each frame says, [`Direction::Ingress`] when it does not.
    pub direction: Option<Direction>,
    /// Type III: which engine of the switch mirrored, 6 bits.
    pub hardware_id: u8,
}

/// How frames are to be encapsulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncapSpec {
    /// The format.
    pub kind: TunnelKind,
    /// Outer source address, of the same family as the destination.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// Key, VSID, VNI or session; "none" and 0 differ. See [`TunnelKind::max_id`].
    pub id: Option<u32>,
    /// Outer time to live or hop limit, 1 to 255. Inherited: 64 for frames without an IP packet.
    pub ttl: Field,
    /// Outer DSCP and ECN. Inherited: 0 for frames without an IP packet, and ECT(0) for CE (RFC 3168, 9.1.1).
    pub tos: Field,
    /// Sets DF: routers must not fragment. IPv4 only; over IPv6 they never do.
    pub dont_fragment: bool,
    /// GRE: sends checksums.
    pub checksum: bool,
    /// GRE: sends sequence numbers, the first one is 0. ERSPAN II and III always have them.
    pub sequence: bool,
    /// UDP destination port; none: [`TunnelKind::default_port`].
    pub destination_port: Option<u16>,
    /// UDP source port; none: 49152 to 65535 by the flow of each frame.
    pub source_port: Option<u16>,
    /// Whether UDP checksums are computed; none: over IPv6 only (RFC 6935 allows to leave them out for tunnels).
    pub udp_checksum: Option<bool>,
    /// ERSPAN fields.
    pub erspan: ErspanFields,
    /// Geneve: tells wire length and capture time of each frame in options of our own.
    pub metadata: bool,
    /// Where the counter of IPv4 identifications starts, 0 counts as 1. A random value keeps fragments of two senders
    /// apart.
    pub first_identification: u16,
}

impl EncapSpec {
    /// A tunnel with a TTL of 64 and everything else off.
    pub fn new(kind: TunnelKind, source: IpAddr, destination: IpAddr) -> EncapSpec {
        EncapSpec {
            kind,
            source,
            destination,
            id: None,
            ttl: Field::Fixed(64),
            tos: Field::Fixed(0),
            dont_fragment: false,
            checksum: false,
            sequence: false,
            destination_port: None,
            source_port: None,
            udp_checksum: None,
            erspan: ErspanFields::default(),
            metadata: false,
            first_identification: 0,
        }
    }

    /// Checks that the format can do what is asked.
    ///
    /// # Errors
    /// The first thing that it cannot.
    pub fn check(&self) -> Result<(), InvalidTunnel> {
        let kind = self.kind;
        if kind == TunnelKind::Tzsp {
            return Err(InvalidTunnel::ReceiveOnly);
        }
        if self.source.is_ipv4() != self.destination.is_ipv4() {
            return Err(InvalidTunnel::Families);
        }
        check_id(kind, self.id)?;
        if kind.needs_id() && self.id.is_none() {
            return Err(InvalidTunnel::IdMissing(kind.as_str(), kind.id_name()));
        }
        if self.ttl == Field::Fixed(0) {
            return Err(InvalidTunnel::Ttl);
        }
        self.check_ports()?;
        self.check_erspan()?;
        let gre = kind.has_gre_options();
        let erspan = matches!(kind, TunnelKind::Erspan(t) if t != ErspanType::I);
        for (wanted, possible, option) in [
            (self.checksum, gre, "csum"),
            (self.sequence, gre || erspan, "seq"),
            (self.metadata, kind == TunnelKind::Geneve, "metadata"),
            (
                self.dont_fragment,
                self.destination.is_ipv4(),
                "df (over IPv6, where routers never fragment)",
            ),
        ] {
            if wanted && !possible {
                return Err(InvalidTunnel::NotForKind(kind.as_str(), option));
            }
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), InvalidTunnel> {
        let kind = self.kind;
        if !kind.is_udp() {
            for (port, option) in [
                (self.destination_port, "dport"),
                (self.source_port, "sport"),
            ] {
                if port.is_some() {
                    return Err(InvalidTunnel::NotForKind(kind.as_str(), option));
                }
            }
            if self.udp_checksum.is_some() {
                return Err(InvalidTunnel::NotForKind(kind.as_str(), "udp-csum"));
            }
            return Ok(());
        }
        match self.destination_port.or(kind.default_port()) {
            None => Err(InvalidTunnel::PortMissing(kind.as_str())),
            Some(0) => Err(InvalidTunnel::PortZero),
            Some(_) => check_variant(kind),
        }
    }

    fn check_erspan(&self) -> Result<(), InvalidTunnel> {
        let fields = self.erspan;
        if fields.index > 0xf_ffff {
            return Err(InvalidTunnel::Index(fields.index));
        }
        if fields.hardware_id > 0x3f {
            return Err(InvalidTunnel::HardwareId(fields.hardware_id));
        }
        for (wanted, has, option) in [
            (fields.index != 0, ErspanType::II, "index"),
            (fields.direction.is_some(), ErspanType::III, "direction"),
            (fields.hardware_id != 0, ErspanType::III, "hwid"),
        ] {
            if wanted && self.kind != TunnelKind::Erspan(has) {
                return Err(InvalidTunnel::NotForKind(self.kind.as_str(), option));
            }
        }
        Ok(())
    }
}

/// How packets are to be decapsulated. Which identifiers are welcome is decided by who demultiplexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecapSpec {
    /// The format.
    pub kind: TunnelKind,
    /// GRE: packets without a checksum are refused. A checksum that is there is always verified.
    pub require_checksum: bool,
    /// GRE: packets without a sequence number are refused.
    pub require_sequence: bool,
}

impl DecapSpec {
    /// Takes packets with and without checksums and sequence numbers.
    pub fn new(kind: TunnelKind) -> DecapSpec {
        DecapSpec {
            kind,
            require_checksum: false,
            require_sequence: false,
        }
    }

    /// Checks that the format can do what is asked.
    ///
    /// # Errors
    /// The first thing that it cannot.
    pub fn check(&self) -> Result<(), InvalidTunnel> {
        let gre = self.kind.has_gre_options();
        for (wanted, option) in [
            (self.require_checksum, "csum"),
            (self.require_sequence, "seq"),
        ] {
            if wanted && !gre {
                return Err(InvalidTunnel::NotForKind(self.kind.as_str(), option));
            }
        }
        check_variant(self.kind)
    }
}

/// Checks an identifier against the room that the format has for it.
///
/// # Errors
/// [`InvalidTunnel::Id`] or [`InvalidTunnel::NoId`].
pub fn check_id(kind: TunnelKind, id: Option<u32>) -> Result<(), InvalidTunnel> {
    match (id, kind.max_id()) {
        (Some(_), None) => Err(InvalidTunnel::NoId(kind.as_str())),
        (Some(id), Some(max)) if id > max => Err(InvalidTunnel::Id {
            kind: kind.as_str(),
            id,
            max,
        }),
        _ => Ok(()),
    }
}

fn check_variant(kind: TunnelKind) -> Result<(), InvalidTunnel> {
    match kind {
        TunnelKind::Gue {
            payload: UdpPayload::Gre | UdpPayload::Gretap,
            variant: GueVariant::One,
        } => Err(InvalidTunnel::Variant),
        _ => Ok(()),
    }
}

/// Why a tunnel cannot be as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTunnel {
    /// Source and destination are not of one family.
    #[error("the local and the remote address must both be IPv4 or both be IPv6")]
    Families,
    /// The identifier has more bits than the field.
    #[error("identifier {id} is out of range for {kind}: use 0 to {max}")]
    Id {
        /// Name of the format.
        kind: &'static str,
        /// What was asked for.
        id: u32,
        /// The largest that fits.
        max: u32,
    },
    /// The format has no identifier.
    #[error("{0} has no key, VNI or session: leave it out")]
    NoId(&'static str),
    /// The format cannot be sent without an identifier: name of the format, name of its identifier.
    #[error("{0} needs a {1}: --{1} N")]
    IdMissing(&'static str, &'static str),
    /// A packet with a TTL of zero does not leave the host.
    #[error("a TTL of 0 is of no use: use 1 to 255 or inherit")]
    Ttl,
    /// FOU has no port of its own.
    #[error("{0} needs a destination port")]
    PortMissing(&'static str),
    /// Port 0 cannot be sent to.
    #[error("destination port 0 cannot be sent to")]
    PortZero,
    /// More than 20 bits.
    #[error("ERSPAN index {0} is out of range: use 0 to 1048575")]
    Index(u32),
    /// More than 6 bits.
    #[error("ERSPAN hardware id {0} is out of range: use 0 to 63")]
    HardwareId(u8),
    /// GUE without a header can carry IP only.
    #[error("GUE variant 1 carries IP packets only: use variant 0")]
    Variant,
    /// A setting that the format does not have: name of the format, name of the setting.
    #[error("{0} has no {1}")]
    NotForKind(&'static str, &'static str),
    /// Nobody sends TZSP to a tunnel.
    #[error("tzsp can be received only")]
    ReceiveOnly,
}

#[cfg(test)]
mod tests;
