//! What must hold for any input, as the fuzz targets check it: functions that panic when it does not.

use std::net::IpAddr;
use std::ops::Range;

use fluxcap_headers::tunnel::{
    Decap, DecapSpec, Direction, Encap, EncapSpec, ErspanType, Field, Fragmenter, FrameFacts,
    GueVariant, Link, MAX_OVERHEAD, TunnelKind, UdpPayload, claimed_len,
};
use fluxcap_headers::{VlanTag, WireFrame};

/// Decodes a packet; what comes out is a part of it that is long enough for what it says to be.
pub fn decode(kind: TunnelKind, packet: &[u8]) {
    let decap = Decap::new(DecapSpec::new(kind)).expect("every kind can be received");
    let Ok(decoded) = decap.decode(packet) else {
        return;
    };
    let payload = decoded.payload;
    assert!(packet.as_ptr_range().end == payload.as_ptr_range().end);
    assert!(payload.len() <= packet.len());
    let minimum = match decoded.link {
        Link::Ethernet => 14,
        Link::Ipv4 => 20,
        Link::Ipv6 => 40,
    };
    assert!(payload.len() >= minimum);
    assert!(decoded.original_len() as usize >= payload.len());
    assert!(
        decoded
            .patch
            .is_none_or(|patch| patch.at + 2 <= payload.len())
    );
    let max_id = match kind {
        // Whatever payload is named, GRE with a key is taken.
        TunnelKind::Gue { .. } | TunnelKind::Fou { .. } => Some(u32::MAX),
        kind => kind.max_id(),
    };
    assert!(decoded.id <= max_id);
    claimed_len(decoded.link, payload);
}

/// A tunnel by 8 bytes of settings, then a frame.
pub fn round_trip(input: &[u8]) {
    let Some((settings, bytes)) = input.split_first_chunk::<8>() else {
        return;
    };
    let spec = spec(settings);
    let Ok(mut encap) = Encap::new(&spec) else {
        return;
    };
    let mut frame = WireFrame::new(bytes, u32::from(settings[6]) * 8);
    for _ in 0..settings[5] & 3 {
        frame.restore_tag(VlanTag {
            tpid: 0x8100,
            tci: 0xa123,
        });
    }
    let limit = match settings[7] {
        0 => usize::MAX,
        limit => usize::from(limit) * 8,
    };
    encap.is_own(&frame);
    let facts = FrameFacts {
        flow_hash: u32::from(settings[5]) << 24,
        timestamp_ns: u64::MAX / u64::from(settings[5] | 1),
        direction: Some(Direction::Egress),
    };
    let mut out = Vec::with_capacity(MAX_OVERHEAD + frame.len());
    let room = out.capacity();
    let Ok(done) = encap.encapsulate(&frame, &facts, limit, &mut out) else {
        assert!(out.is_empty());
        return;
    };
    assert_eq!(out.capacity(), room);
    assert!(out.len() <= limit);
    let decap = Decap::new(DecapSpec::new(spec.kind)).expect("what can be sent can be received");
    let header = if spec.destination.is_ipv4() { 20 } else { 40 };
    let udp = if spec.kind.is_udp() { 8 } else { 0 };
    let decoded = decap
        .decode(&out[header + udp..])
        .expect("own packets are taken");
    assert_eq!(decoded.id, spec.id);
    let whole = frame.pieces().concat();
    if spec.kind.carries_ip() {
        // The packet stands behind the Ethernet header and the tags, and before padding.
        let place = whole
            .windows(decoded.payload.len())
            .any(|part| part == decoded.payload);
        assert!(place);
    } else {
        assert_eq!(decoded.payload, &whole[..decoded.payload.len()]);
        assert_eq!(done.truncated, decoded.payload.len() < whole.len());
    }
}

fn spec(settings: &[u8; 8]) -> EncapSpec {
    let &[kind, bits, id, fields, extra, ..] = settings;
    let bit = |at: u8| bits >> at & 1 != 0;
    let payload = [UdpPayload::Ip, UdpPayload::Gre, UdpPayload::Gretap][usize::from(extra % 3)];
    let variant = [GueVariant::Zero, GueVariant::One][usize::from(extra >> 7)];
    let kind = match kind % 12 {
        0 => TunnelKind::Gre,
        1 => TunnelKind::Gretap,
        2 => TunnelKind::Nvgre,
        3 => TunnelKind::Erspan(ErspanType::I),
        4 => TunnelKind::Erspan(ErspanType::II),
        5 => TunnelKind::Erspan(ErspanType::III),
        6 => TunnelKind::Vxlan,
        7 => TunnelKind::Geneve,
        8 => TunnelKind::Gue { payload, variant },
        9 => TunnelKind::Fou { payload },
        10 => TunnelKind::Ipip,
        _ => TunnelKind::Tzsp,
    };
    let address = |last: u8| {
        if bit(0) {
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])
        } else {
            IpAddr::from([192, 0, 2, last])
        }
    };
    let mut spec = EncapSpec::new(kind, address(1), address(2));
    spec.id = (bit(1) || kind.needs_id()).then_some(u32::from(id));
    spec.checksum = bit(2);
    spec.sequence = bit(3);
    spec.metadata = bit(4);
    spec.udp_checksum = bit(5).then_some(bit(6));
    spec.dont_fragment = bit(7);
    spec.destination_port = matches!(kind, TunnelKind::Fou { .. }).then_some(7777);
    if fields & 1 != 0 {
        spec.tos = Field::Inherit;
    }
    if fields & 2 != 0 {
        spec.ttl = Field::Inherit;
    }
    if kind == TunnelKind::Erspan(ErspanType::II) {
        spec.erspan.index = u32::from(fields) << 12;
    }
    spec
}

/// Two bytes MTU, one whose lowest bit makes the lengths right, then a packet.
pub fn fragment(input: &[u8]) {
    let Some((&[high, low, mend], packet)) = input.split_first_chunk::<3>() else {
        return;
    };
    let mtu = usize::from(u16::from_be_bytes([high, low]));
    let mut packet = packet.to_vec();
    if mend & 1 != 0 {
        mend_lengths(&mut packet);
    }
    let (mut out, mut pieces) = (vec![7; 5], Vec::<Range<usize>>::new());
    let prefix = &[9; 14][..usize::from(mend >> 1 & 7) * 2];
    let result = Fragmenter::new(1).fragment(&packet, mtu, prefix, &mut out, &mut pieces);
    if result.is_err() {
        assert_eq!((out.len(), pieces.len()), (5, 0));
        return;
    }
    let v6 = packet[0] >> 4 == 6;
    let header = match (v6, pieces.len()) {
        (false, _) => 20,
        (true, 1) => 40,
        (true, _) => 48,
    };
    let mut payload = Vec::new();
    for piece in &pieces {
        let fragment = &out[piece.start + prefix.len()..piece.end];
        assert!(fragment.len() <= mtu);
        payload.extend_from_slice(&fragment[header..]);
    }
    assert_eq!(payload, &packet[if v6 { 40 } else { 20 }..]);
}

/// Makes the length fields say how long a packet is.
fn mend_lengths(packet: &mut [u8]) {
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    match packet {
        [0x45, _, high, low, ..] => [*high, *low] = length.to_be_bytes(),
        [first, _, _, _, high, low, ..] if *first >> 4 == 6 => {
            [*high, *low] = length.saturating_sub(40).to_be_bytes();
        }
        _ => {}
    }
}
