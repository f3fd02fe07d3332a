//! What the packets of an overlay look like.

use fluxcap_headers::tunnel::{EncapSpec, Field, GueVariant, TunnelKind, UdpPayload};
use fluxcap_proto::v1::{self, InnerProtocol, MirrorOverlay, MtuPolicy};
use std::net::IpAddr;

/// Room for an outer header, `MAX_HEADER` of `bpf/relay.bpf.c`.
pub(super) const MAX_HEADER: usize = 80;

/// What a relay program is told before it is loaded, beside the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Whole frames are carried, else IP packets.
    pub(super) carries_frames: bool,
    /// GUE: its header says which version of IP follows.
    pub(super) names_version: bool,
    /// GRE follows the outer IP header, else UDP.
    pub(super) over_gre: bool,
    /// The UDP source port tells the flow.
    pub(super) spread_ports: bool,
    /// What is longer than the path's MTU is not sent, else it is cut.
    pub(super) drop_oversize: bool,
}

impl Form {
    pub(super) fn of(overlay: &MirrorOverlay) -> Form {
        let kind = kind(overlay);
        Form {
            carries_frames: !kind.carries_ip(),
            names_version: kind.carries_ip(),
            over_gre: !kind.is_udp(),
            spread_ports: kind.is_udp() && overlay.source_port == 0,
            drop_oversize: overlay.mtu_policy() == MtuPolicy::Drop,
        }
    }
}

/// The format. A spec that was checked has no other ones.
pub(super) fn kind(overlay: &MirrorOverlay) -> TunnelKind {
    match (overlay.kind(), overlay.inner()) {
        (v1::TunnelKind::Vxlan, _) => TunnelKind::Vxlan,
        (v1::TunnelKind::Geneve, _) => TunnelKind::Geneve,
        (v1::TunnelKind::Gretap, _) => TunnelKind::Gretap,
        (_, InnerProtocol::Gretap) => gue(UdpPayload::Gretap),
        _ => gue(UdpPayload::Ip),
    }
}

fn gue(payload: UdpPayload) -> TunnelKind {
    let variant = GueVariant::Zero;
    TunnelKind::Gue { payload, variant }
}

/// How frames are encapsulated between these two addresses. As in tunneld, packets that are not to be cut into fragments are not to be cut by
/// routers either.
pub(super) fn encap_spec(
    overlay: &MirrorOverlay,
    source: IpAddr,
    destination: IpAddr,
) -> EncapSpec {
    let small = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
    let port = |value: u32| u16::try_from(value).ok().filter(|port| *port != 0);
    let kind = kind(overlay);
    EncapSpec {
        id: overlay.id,
        ttl: Field::Fixed(match overlay.ttl {
            0 => 64,
            ttl => small(ttl),
        }),
        tos: Field::Fixed(small(overlay.tos)),
        dont_fragment: destination.is_ipv4(),
        destination_port: port(overlay.port).filter(|_| kind.is_udp()),
        source_port: port(overlay.source_port).filter(|_| kind.is_udp()),
        ..EncapSpec::new(kind, source, destination)
    }
}
