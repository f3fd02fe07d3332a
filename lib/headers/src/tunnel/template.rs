//! The header of a tunnel's packets as far as it is the same for all of them, and where the rest goes.

use super::encap::MAX_OVERHEAD;
use super::erspan;
use super::geneve;
use super::gre::{GreLayout, push_gre};
use super::gue;
use super::kind::{ETHERTYPE_TEB, ErspanType, GueVariant, TunnelKind, UdpPayload};
use super::outer::{self, IPV4_MAX, IPV6_MAX};
use super::spec::EncapSpec;
use super::vxlan;

/// The field that says whether IPv4 or IPv6 is carried; by its place in the header.
#[derive(Debug, Clone, Copy)]
pub(super) enum InnerVersion {
    /// None, or the packet itself tells.
    Nowhere,
    /// An IP protocol number: 4 or 41.
    Protocol(usize),
    /// An EtherType: 0x0800 or 0x86dd.
    EtherType(usize),
}

/// Header and places.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// From the first byte of the outer IP header on; all that changes is zero.
    pub(super) bytes: Vec<u8>,
    /// Length of the outer IP header.
    pub(super) ip_len: usize,
    /// The longest packet that the outer IP version can have.
    pub(super) max_packet: usize,
    /// The GRE header, when there is one.
    pub(super) gre: Option<GreLayout>,
    /// Where the last header before the payload begins.
    pub(super) last: usize,
    pub(super) inner_version: InnerVersion,
    /// Whether UDP checksums are computed; false without UDP.
    pub(super) udp_checksum: bool,
    /// Whether packets of one flow may overtake those of another: not when sequence numbers count all of them.
    pub(super) spread: bool,
}

impl Template {
    /// Expects a spec that was checked.
    pub(super) fn new(spec: &EncapSpec, destination_port: u16) -> Template {
        let kind = spec.kind;
        let v6 = spec.destination.is_ipv6();
        let mut bytes = Vec::with_capacity(MAX_OVERHEAD);
        let protocol = kind.ip_protocols().first().copied().unwrap_or_default();
        outer::push_ip(
            &mut bytes,
            spec.source,
            spec.destination,
            protocol,
            spec.dont_fragment,
        );
        let ip_len = bytes.len();
        if kind.is_udp() {
            outer::push_udp(&mut bytes, destination_port);
        }
        let mut template = Template {
            last: bytes.len(),
            bytes,
            ip_len,
            max_packet: if v6 { IPV6_MAX } else { IPV4_MAX },
            gre: None,
            inner_version: InnerVersion::Nowhere,
            udp_checksum: kind.is_udp() && spec.udp_checksum.unwrap_or(v6),
            spread: true,
        };
        template.push_tunnel(spec);
        template.spread = template.gre.is_none_or(|gre| gre.sequence.is_none());
        template
    }

    fn push_tunnel(&mut self, spec: &EncapSpec) {
        let id = spec.id.unwrap_or_default();
        match spec.kind {
            TunnelKind::Gre => self.push_payload(spec, UdpPayload::Gre),
            TunnelKind::Gretap => self.push_payload(spec, UdpPayload::Gretap),
            TunnelKind::Nvgre => {
                self.push_gre(ETHERTYPE_TEB, Some(id << 8), false, false);
            }
            TunnelKind::Erspan(ErspanType::I) => {
                self.push_gre(erspan::PROTOCOL_II, None, false, false);
            }
            TunnelKind::Erspan(ErspanType::II) => {
                self.push_gre(erspan::PROTOCOL_II, None, false, true);
                erspan::push_ii(&mut self.bytes, id, spec.erspan.index);
            }
            TunnelKind::Erspan(ErspanType::III) => {
                self.push_gre(erspan::PROTOCOL_III, None, false, true);
                erspan::push_iii(&mut self.bytes, id, spec.erspan.hardware_id);
            }
            TunnelKind::Vxlan => vxlan::push(&mut self.bytes, id),
            TunnelKind::Geneve => geneve::push(&mut self.bytes, ETHERTYPE_TEB, id),
            TunnelKind::Gue {
                payload,
                variant: GueVariant::Zero,
            } => {
                gue::push(&mut self.bytes, gue_protocol(payload));
                self.inner_version = InnerVersion::Protocol(self.last + 1);
                self.push_payload(spec, payload);
            }
            TunnelKind::Gue { payload, .. } | TunnelKind::Fou { payload } => {
                self.push_payload(spec, payload);
            }
            TunnelKind::Ipip => {
                let at = if self.ip_len == outer::IPV4_LEN { 9 } else { 6 };
                self.inner_version = InnerVersion::Protocol(at);
            }
            TunnelKind::Tzsp => {}
        }
    }

    /// What UDP and raw GRE have in common.
    fn push_payload(&mut self, spec: &EncapSpec, payload: UdpPayload) {
        match payload {
            UdpPayload::Ip => {}
            UdpPayload::Gre => {
                let start = self.push_gre(0, spec.id, spec.checksum, spec.sequence);
                self.inner_version = InnerVersion::EtherType(start + 2);
            }
            UdpPayload::Gretap => {
                self.push_gre(ETHERTYPE_TEB, spec.id, spec.checksum, spec.sequence);
                self.inner_version = InnerVersion::Nowhere;
            }
        }
    }

    /// Appends a GRE header and says where it begins.
    fn push_gre(
        &mut self,
        protocol: u16,
        key: Option<u32>,
        checksum: bool,
        sequence: bool,
    ) -> usize {
        let layout = push_gre(&mut self.bytes, protocol, key, checksum, sequence);
        self.gre = Some(layout);
        self.last = self.bytes.len();
        layout.start
    }
}

/// What a GUE header names as its payload; for IP it is set with each packet.
fn gue_protocol(payload: UdpPayload) -> u8 {
    match payload {
        UdpPayload::Ip => 0,
        UdpPayload::Gre | UdpPayload::Gretap => super::kind::GRE,
    }
}
