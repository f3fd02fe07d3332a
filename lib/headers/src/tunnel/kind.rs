//! The kinds of tunnels and what is fixed for each of them.

/// Which type of ERSPAN (draft-foschiano-erspan-03). `ip link` counts them as `erspan_ver` 0, 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErspanType {
    /// GRE protocol 0x88be without a sequence number, no ERSPAN header.
    I,
    /// GRE protocol 0x88be with a sequence number, header of 8 bytes.
    II,
    /// GRE protocol 0x22eb with a sequence number, header of 12 bytes, with a timestamp.
    III,
}

/// What GUE or FOU carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpPayload {
    /// An IPv4 or IPv6 packet (`ip link add ... type ipip|sit encap gue`).
    Ip,
    /// GRE with an IPv4 or IPv6 packet in it.
    Gre,
    /// GRE with an Ethernet frame in it (`ip link add ... type gretap encap gue`).
    Gretap,
}

/// The form of a GUE header (draft-ietf-intarea-gue-09, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GueVariant {
    /// A header of 4 bytes and more. What Linux sends.
    Zero,
    /// No header: the IP packet follows the UDP header. IP only.
    One,
}

/// A tunnel format. All of them run over IPv4 and IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// An IP packet in GRE (RFC 2784, 2890, 7676).
    Gre,
    /// An Ethernet frame in GRE, protocol 0x6558.
    Gretap,
    /// An Ethernet frame in GRE with a 24-bit subnet and an 8-bit flow in the key (RFC 7637).
    Nvgre,
    /// An Ethernet frame in ERSPAN. A receiver takes all three types, whichever is named.
    Erspan(ErspanType),
    /// An Ethernet frame in VXLAN (RFC 7348).
    Vxlan,
    /// An Ethernet frame in Geneve (RFC 8926). A receiver takes IP packets as well.
    Geneve,
    /// Generic UDP encapsulation as Linux does it. A receiver takes every payload and both variants.
    Gue {
        /// What a sender puts in.
        payload: UdpPayload,
        /// The form that a sender uses.
        variant: GueVariant,
    },
    /// The payload right behind the UDP header; what it is both ends know.
    Fou {
        /// What is in it. A receiver takes IP and Ethernet in GRE alike.
        payload: UdpPayload,
    },
    /// An IP packet in IP: protocol 4 for IPv4, 41 for IPv6 (`ipip`, `sit` and `ip6tnl` of `ip link`).
    Ipip,
    /// TaZmen Sniffer Protocol. Can be received only.
    Tzsp,
}

impl TunnelKind {
    /// The name of the kind, without its parameters.
    pub fn as_str(self) -> &'static str {
        match self {
            TunnelKind::Gre => "gre",
            TunnelKind::Gretap => "gretap",
            TunnelKind::Nvgre => "nvgre",
            TunnelKind::Erspan(_) => "erspan",
            TunnelKind::Vxlan => "vxlan",
            TunnelKind::Geneve => "geneve",
            TunnelKind::Gue { .. } => "gue",
            TunnelKind::Fou { .. } => "fou",
            TunnelKind::Ipip => "ipip",
            TunnelKind::Tzsp => "tzsp",
        }
    }

    /// Whether the outer packet is UDP.
    pub fn is_udp(self) -> bool {
        self.ip_protocols() == [UDP]
    }

    /// Protocol numbers of the outer IP packet: one, or two for IP in IP.
    pub fn ip_protocols(self) -> &'static [u8] {
        match self {
            TunnelKind::Gre | TunnelKind::Gretap | TunnelKind::Nvgre | TunnelKind::Erspan(_) => {
                &[GRE]
            }
            TunnelKind::Ipip => &[IPV4, IPV6],
            TunnelKind::Vxlan
            | TunnelKind::Geneve
            | TunnelKind::Gue { .. }
            | TunnelKind::Fou { .. }
            | TunnelKind::Tzsp => &[UDP],
        }
    }

    /// The UDP port that IANA assigned, or that is in use everywhere; none for FOU and for what is not UDP.
    pub fn default_port(self) -> Option<u16> {
        match self {
            TunnelKind::Vxlan => Some(4789),
            TunnelKind::Geneve => Some(6081),
            TunnelKind::Gue { .. } => Some(6080),
            TunnelKind::Tzsp => Some(37008),
            _ => None,
        }
    }

    /// Whether a sender of this kind carries IP packets only, without their Ethernet header.
    pub fn carries_ip(self) -> bool {
        match self {
            TunnelKind::Gre | TunnelKind::Ipip => true,
            TunnelKind::Gue { payload, .. } | TunnelKind::Fou { payload } => {
                payload != UdpPayload::Gretap
            }
            _ => false,
        }
    }

    /// The largest identifier (key, VSID, VNI, session) that the format has room for; none: it has no identifier.
    pub fn max_id(self) -> Option<u32> {
        match self {
            TunnelKind::Gre | TunnelKind::Gretap => Some(u32::MAX),
            TunnelKind::Gue { payload, .. } | TunnelKind::Fou { payload } => {
                (payload != UdpPayload::Ip).then_some(u32::MAX)
            }
            TunnelKind::Nvgre | TunnelKind::Vxlan | TunnelKind::Geneve => Some(0xff_ffff),
            TunnelKind::Erspan(ErspanType::II | ErspanType::III) => Some(0x3ff),
            TunnelKind::Erspan(ErspanType::I) | TunnelKind::Ipip | TunnelKind::Tzsp => None,
        }
    }

    /// What the format calls its identifier: "key", "vni" (NVGRE: VSID) or "session".
    pub fn id_name(self) -> &'static str {
        match self {
            TunnelKind::Nvgre | TunnelKind::Vxlan | TunnelKind::Geneve => "vni",
            TunnelKind::Erspan(_) => "session",
            _ => "key",
        }
    }

    /// Whether a sender cannot do without an identifier.
    pub fn needs_id(self) -> bool {
        self.max_id().is_some_and(|max| max != u32::MAX)
    }

    /// Whether the packets have a GRE header of which key, checksum and sequence number can be chosen.
    pub fn has_gre_options(self) -> bool {
        self.max_id() == Some(u32::MAX)
    }
}

/// IP protocol numbers that tunnels use.
pub(crate) const IPV4: u8 = 4;
pub(crate) const UDP: u8 = 17;
pub(crate) const IPV6: u8 = 41;
pub(crate) const GRE: u8 = 47;

/// EtherTypes, which GRE and Geneve use as protocol types.
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Transparent Ethernet bridging: an Ethernet frame.
pub(crate) const ETHERTYPE_TEB: u16 = 0x6558;
