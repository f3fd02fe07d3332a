//! What sender and receiver have to agree upon, checked with an outer header parser of its own.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{VlanTag, WireFrame, flow_hash};

pub(super) const GUE_IP: TunnelKind = TunnelKind::Gue {
    payload: UdpPayload::Ip,
    variant: GueVariant::Zero,
};

/// The Internet checksum sum, byte by byte: 0xffff over data that holds its checksum.
pub(super) fn ones_sum(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// An outer packet, taken apart and verified.
#[derive(Debug)]
pub(super) struct Outer {
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) identification: Option<u16>,
    pub(super) df: bool,
    pub(super) flow_label: Option<u32>,
    pub(super) protocol: u8,
    /// Source, destination and checksum.
    pub(super) udp: Option<(u16, u16, u16)>,
    /// Behind IP and UDP.
    pub(super) payload: Vec<u8>,
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Takes a packet apart and verifies lengths and checksums.
pub(super) fn open(packet: &[u8]) -> Outer {
    let v6 = packet[0] >> 4 == 6;
    let (header, addresses) = if v6 {
        assert_eq!(usize::from(be16(&packet[4..])) + 40, packet.len());
        (40, &packet[8..40])
    } else {
        assert_eq!(packet[0], 0x45);
        assert_eq!(usize::from(be16(&packet[2..])), packet.len());
        assert_eq!(ones_sum(&packet[..20]), 0xffff, "header checksum");
        assert_eq!(be16(&packet[6..]) & 0xbfff, 0, "no fragment");
        (20, &packet[12..20])
    };
    let mut outer = Outer {
        tos: if v6 {
            packet[0] << 4 | packet[1] >> 4
        } else {
            packet[1]
        },
        ttl: if v6 { packet[7] } else { packet[8] },
        identification: (!v6).then(|| be16(&packet[4..])),
        df: !v6 && packet[6] & 0x40 != 0,
        flow_label: v6.then(|| u32::from_be_bytes([0, packet[1] & 15, packet[2], packet[3]])),
        protocol: if v6 { packet[6] } else { packet[9] },
        udp: None,
        payload: packet[header..].to_vec(),
    };
    if outer.protocol == 17 {
        let segment = outer.payload.clone();
        assert_eq!(usize::from(be16(&segment[4..])), segment.len());
        let checksum = be16(&segment[6..]);
        if checksum != 0 {
            let pseudo = [addresses, &[0, 17], &segment[4..6], &segment].concat();
            assert_eq!(ones_sum(&pseudo), 0xffff, "UDP checksum");
        }
        outer.udp = Some((be16(&segment), be16(&segment[2..]), checksum));
        outer.payload = segment[8..].to_vec();
    }
    outer
}

pub(super) fn v4(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

pub(super) fn v6(last: u8) -> IpAddr {
    let mut octets = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    octets[15] = last;
    IpAddr::from(octets)
}

/// A tunnel over IPv4 that has an identifier if it needs one, and a port.
pub(super) fn spec(kind: TunnelKind) -> EncapSpec {
    let mut spec = EncapSpec::new(kind, v4(1), v4(2));
    spec.id = kind.needs_id().then_some(0x123);
    if matches!(kind, TunnelKind::Fou { .. }) {
        spec.destination_port = Some(7777);
    }
    spec
}

/// Every kind that can be sent.
pub(super) fn kinds() -> Vec<TunnelKind> {
    let mut kinds = vec![
        TunnelKind::Gre,
        TunnelKind::Gretap,
        TunnelKind::Nvgre,
        TunnelKind::Erspan(ErspanType::I),
        TunnelKind::Erspan(ErspanType::II),
        TunnelKind::Erspan(ErspanType::III),
        TunnelKind::Vxlan,
        TunnelKind::Geneve,
        TunnelKind::Ipip,
        TunnelKind::Gue {
            payload: UdpPayload::Ip,
            variant: GueVariant::One,
        },
    ];
    for payload in [UdpPayload::Ip, UdpPayload::Gre, UdpPayload::Gretap] {
        let variant = GueVariant::Zero;
        kinds.push(TunnelKind::Gue { payload, variant });
        kinds.push(TunnelKind::Fou { payload });
    }
    kinds
}

/// Every kind over both IP versions with every option that it has.
fn specs() -> Vec<EncapSpec> {
    let mut specs = Vec::new();
    for kind in kinds() {
        for over_v6 in [false, true] {
            let mut base = spec(kind);
            if over_v6 {
                (base.source, base.destination) = (v6(1), v6(2));
            }
            for bits in 0..64u8 {
                let mut spec = base.clone();
                let bit = |at: u8| bits >> at & 1 != 0;
                spec.checksum = bit(0);
                spec.sequence = bit(1);
                spec.id = if bit(2) { Some(0xfe) } else { spec.id };
                spec.metadata = bit(3);
                spec.udp_checksum = bit(4).then_some(bit(5));
                spec.source_port = (bit(4) && bit(5)).then_some(5000);
                if spec.check().is_ok() && !specs.contains(&spec) {
                    specs.push(spec);
                }
            }
        }
    }
    specs
}

/// A frame with an IP packet, and what of it a tunnel for IP carries.
#[derive(Debug, Clone)]
struct IpFrame {
    bytes: Vec<u8>,
    packet: Vec<u8>,
    /// Length of the packet by its header.
    claimed: usize,
}

/// Frames with IP: version, inline tags, payload, padding or bytes that are missing at the end.
fn ip_frame() -> impl Strategy<Value = IpFrame> {
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    (
        any::<bool>(),
        0..=4usize,
        payload,
        0..40usize,
        any::<bool>(),
    )
        .prop_map(|(over_v6, tags, payload, odd, cut)| {
            let mut packet = ip_packet(over_v6, &payload);
            let claimed = packet.len();
            let mut bytes = vec![2, 0, 0, 0, 0, 0xb, 2, 0, 0, 0, 0, 0xa];
            for vid in 0..tags {
                bytes.extend([[0x81, 0], [0x88, 0xa8]][vid % 2]);
                bytes.extend([0x60, vid as u8 + 1]);
            }
            bytes.extend(if over_v6 { [0x86, 0xdd] } else { [8, 0] });
            if cut {
                let header = if over_v6 { 40 } else { 20 };
                packet.truncate(packet.len().saturating_sub(odd).max(header));
            }
            bytes.extend(&packet);
            if !cut {
                bytes.extend(vec![0xee; odd]);
            }
            IpFrame {
                bytes,
                packet,
                claimed,
            }
        })
}

pub(super) fn ip_packet(over_v6: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = if over_v6 {
        let mut header = vec![0x6b, 0xb0, 0, 0, 0, payload.len() as u8, 59, 7];
        header[4] = (payload.len() >> 8) as u8;
        header.extend([0x20; 32]);
        header
    } else {
        let total = (20 + payload.len()) as u16;
        let mut header = vec![0x45, 0xbb, 0, 0, 0, 7, 0x40, 0, 9, 253, 0, 0];
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        header
    };
    packet.extend(payload);
    packet
}

/// Encapsulates into a vector that has something in it already, and has room.
pub(super) fn encapsulate(
    encap: &mut Encap,
    frame: &WireFrame<'_>,
    facts: &FrameFacts,
    limit: usize,
) -> Result<(Vec<u8>, Encapsulated), Skip> {
    let mut out = Vec::with_capacity(3 + MAX_OVERHEAD + frame.len());
    out.extend(b"abc");
    let room = out.capacity();
    let result = encap.encapsulate(frame, facts, limit, &mut out);
    assert_eq!(&out[..3], b"abc");
    assert_eq!(out.capacity(), room, "must not reallocate");
    match result {
        Ok(done) => Ok((out.split_off(3), done)),
        Err(skip) => {
            assert_eq!(out.len(), 3, "nothing is appended");
            Err(skip)
        }
    }
}

fn decoder(spec: &EncapSpec) -> Decap {
    let gre = spec.kind.has_gre_options();
    Decap::new(DecapSpec {
        kind: spec.kind,
        require_checksum: gre && spec.checksum,
        require_sequence: gre && spec.sequence,
    })
    .unwrap()
}

proptest! {
    /// Ethernet kinds carry every frame of 14 bytes and more, in one or in three pieces.
    #[test]
    fn frames_come_out_as_they_went_in(
        which in 0..specs().len(),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        held in 0..3u16,
        longer in 0..100u32,
        facts in (any::<u32>(), any::<u64>()),
        limit in prop_oneof![Just(usize::MAX), 20..400usize],
    ) {
        let spec = &specs()[which];
        prop_assume!(!spec.kind.carries_ip());
        let mut encap = Encap::new(spec).unwrap();
        let mut frame = WireFrame::new(&bytes, 0);
        for vid in 0..held {
            frame.restore_tag(VlanTag { tpid: 0x8100, tci: vid });
        }
        let whole = frame.pieces().concat();
        let frame = {
            let mut same = WireFrame::new(&bytes, frame.wire_len() + longer);
            for vid in 0..held {
                same.restore_tag(VlanTag { tpid: 0x8100, tci: vid });
            }
            same
        };
        let facts = FrameFacts { flow_hash: facts.0, timestamp_ns: facts.1, direction: None };
        match encapsulate(&mut encap, &frame, &facts, limit) {
            Err(skip) => {
                prop_assert_eq!(skip == Skip::Malformed, whole.len() < 14);
                prop_assert!(skip == Skip::Malformed || limit < encap.overhead() + 8 + 14);
            }
            Ok((packet, done)) => {
                prop_assert!(packet.len() <= limit);
                prop_assert!(done.truncated || packet.len() >= encap.overhead() + whole.len());
                let outer = open(&packet);
                let decoded = decoder(spec).decode(&outer.payload).unwrap();
                let length = decoded.payload.len();
                prop_assert_eq!(decoded.payload, &whole[..length]);
                prop_assert_eq!(done.truncated, length < whole.len());
                check_facts(spec, &facts, &frame, &decoded);
            }
        }
    }

    /// IP kinds carry the packet within the frame, whatever tags are before it and padding is behind it.
    #[test]
    fn packets_come_out_without_their_frame(
        which in 0..specs().len(),
        frame in ip_frame(),
        limit in prop_oneof![Just(usize::MAX), 20..400usize],
    ) {
        let spec = &specs()[which];
        prop_assume!(spec.kind.carries_ip());
        let mut encap = Encap::new(spec).unwrap();
        let wire = WireFrame::new(&frame.bytes, 0);
        match encapsulate(&mut encap, &wire, &FrameFacts::default(), limit) {
            Err(skip) => {
                prop_assert_eq!(skip, Skip::TooLong);
                prop_assert!(limit < encap.overhead() + 40);
            }
            Ok((packet, done)) => {
                prop_assert!(packet.len() <= limit);
                let outer = open(&packet);
                let decoded = decoder(spec).decode(&outer.payload).unwrap();
                // A payload length of zero is that of a jumbogram: it claims nothing, so that padding is part of it.
                let jumbogram = frame.claimed == 40 && frame.packet[0] >> 4 == 6;
                if !jumbogram {
                    let length = decoded.payload.len();
                    prop_assert_eq!(decoded.payload, &frame.packet[..length]);
                    prop_assert_eq!(done.truncated, length < frame.packet.len());
                }
                let v6 = frame.packet[0] >> 4 == 6;
                prop_assert_eq!(decoded.link, if v6 { Link::Ipv6 } else { Link::Ipv4 });
                if frame.claimed > 40 {
                    prop_assert_eq!(decoded.original_len() as usize, frame.claimed);
                }
            }
        }
    }

    #[test]
    fn any_bytes_can_be_encapsulated_or_skipped(
        which in 0..specs().len(),
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        ether_type in prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8, 0]),
        limit in prop_oneof![Just(usize::MAX), 0..200usize],
    ) {
        let mut spec = specs()[which].clone();
        (spec.tos, spec.ttl) = (Field::Inherit, Field::Inherit);
        let mut bytes = bytes;
        if let Some(place) = bytes.get_mut(12..14) {
            place.copy_from_slice(&ether_type.to_be_bytes());
        }
        let frame = WireFrame::new(&bytes, 0);
        let mut encap = Encap::new(&spec).unwrap();
        encap.is_own(&frame);
        if let Ok((packet, _)) = encapsulate(&mut encap, &frame, &FrameFacts::default(), limit) {
            prop_assert!(decoder(&spec).decode(&open(&packet).payload).is_ok());
        }
    }

    #[test]
    fn any_bytes_can_be_decoded_or_rejected(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        start in prop::sample::select(vec![
            &[][..], &[0, 0, 0x65, 0x58], &[0x10, 0, 0x88, 0xbe, 0, 0, 0, 0, 0x10],
            &[0x10, 0, 0x22, 0xeb, 0, 0, 0, 0, 0x20], &[0, 0, 0x65, 0x58], &[8, 0, 0, 0],
            &[0x01, 0, 0x65, 0x58], &[0x01, 4, 0, 1, 0x80, 0, 0, 0], &[1, 0, 0, 1],
        ]),
    ) {
        let bytes = [start, &bytes].concat();
        for kind in kinds().into_iter().chain([TunnelKind::Tzsp]) {
            if let Ok(decoded) = Decap::new(DecapSpec::new(kind)).unwrap().decode(&bytes) {
                check_decoded(&bytes, &decoded);
            }
        }
    }
}

/// What holds for everything that is decoded.
pub(super) fn check_decoded(packet: &[u8], decoded: &Decoded<'_>) {
    assert!(packet.ends_with(decoded.payload));
    let minimum = match decoded.link {
        Link::Ethernet => 14,
        Link::Ipv4 => 20,
        Link::Ipv6 => 40,
    };
    assert!(decoded.payload.len() >= minimum);
    assert!(decoded.original_len() as usize >= decoded.payload.len());
    assert!(
        decoded
            .patch
            .is_none_or(|patch| patch.at + 2 <= decoded.payload.len())
    );
    claimed_len(decoded.link, decoded.payload);
}

/// Identifier, order, time and length are told as far as the format can.
fn check_facts(spec: &EncapSpec, facts: &FrameFacts, frame: &WireFrame<'_>, decoded: &Decoded<'_>) {
    assert_eq!(decoded.id, spec.id);
    assert_eq!(decoded.link, Link::Ethernet);
    let cut = (decoded.payload.len() as u32) < frame.wire_len();
    let erspan = matches!(spec.kind, TunnelKind::Erspan(kind) if kind != ErspanType::I);
    assert_eq!(decoded.sequence, (spec.sequence || erspan).then_some(0));
    match spec.kind {
        TunnelKind::Geneve => {
            let expected = (cut || spec.metadata).then_some(frame.wire_len());
            assert_eq!((decoded.wire_len, decoded.truncated), (expected, cut));
            let time = spec.metadata.then_some(facts.timestamp_ns);
            assert_eq!(decoded.time, time.map(SenderTime::Nanoseconds));
            assert!(!cut || decoded.original_len() == frame.wire_len());
        }
        TunnelKind::Erspan(ErspanType::III) => {
            let ticks = (facts.timestamp_ns / 100_000) as u32;
            let unit = Granularity::HundredMicroseconds;
            assert_eq!(decoded.time, Some(SenderTime::Ticks(ticks, unit)));
            assert_eq!(decoded.direction, Some(Direction::Ingress));
            assert_eq!(decoded.truncated, cut);
        }
        _ => {
            assert_eq!(decoded.truncated, cut && erspan);
            assert_eq!((decoded.time, decoded.wire_len), (None, None));
        }
    }
    assert_eq!((decoded.restore_tag, decoded.patch), (None, None));
}

/// The table in the documentation of the module.
#[test]
fn overheads_are_those_of_the_table() {
    let gue = |payload, variant| TunnelKind::Gue { payload, variant };
    let fou = |payload| TunnelKind::Fou { payload };
    for (kind, over_v4) in [
        (TunnelKind::Gre, 24),
        (TunnelKind::Gretap, 24),
        (TunnelKind::Nvgre, 28),
        (TunnelKind::Erspan(ErspanType::I), 24),
        (TunnelKind::Erspan(ErspanType::II), 36),
        (TunnelKind::Erspan(ErspanType::III), 40),
        (TunnelKind::Vxlan, 36),
        (TunnelKind::Geneve, 36),
        (GUE_IP, 32),
        (gue(UdpPayload::Ip, GueVariant::One), 28),
        (gue(UdpPayload::Gre, GueVariant::Zero), 36),
        (gue(UdpPayload::Gretap, GueVariant::Zero), 36),
        (fou(UdpPayload::Ip), 28),
        (fou(UdpPayload::Gre), 32),
        (fou(UdpPayload::Gretap), 32),
        (TunnelKind::Ipip, 20),
    ] {
        let mut spec = spec(kind);
        assert_eq!(Encap::new(&spec).unwrap().overhead(), over_v4, "{kind:?}");
        (spec.source, spec.destination) = (v6(1), v6(2));
        let encap = Encap::new(&spec).unwrap();
        assert_eq!(encap.overhead(), over_v4 + 20, "{kind:?} over IPv6");
        let lost = if kind.carries_ip() { 14 } else { 0 };
        assert_eq!(encap.packet_len(1514), over_v4 + 20 + 1514 - lost);
    }
    let vxlan = Encap::new(&spec(TunnelKind::Vxlan)).unwrap();
    assert_eq!(vxlan.packet_len(1514), 1550);
    let mut gre = spec(TunnelKind::Gretap);
    (gre.id, gre.checksum, gre.sequence) = (Some(0), true, true);
    assert_eq!(Encap::new(&gre).unwrap().overhead(), 36);
    let mut geneve = spec(TunnelKind::Geneve);
    geneve.metadata = true;
    assert_eq!(Encap::new(&geneve).unwrap().overhead(), 56);
    let longest = specs()
        .iter()
        .map(|s| Encap::new(s).unwrap().overhead())
        .max();
    assert_eq!(longest, Some(MAX_OVERHEAD));
}

/// Both directions of a flow leave by the same port, and many flows by many ports.
#[test]
fn source_ports_follow_the_flow() {
    let mut encap = Encap::new(&spec(TunnelKind::Vxlan)).unwrap();
    let mut port_of = |a: u8, b: u8| {
        let mut bytes = [vec![2; 12], vec![8, 0], ip_packet(false, &[0, 9, 0, 9])].concat();
        bytes[14 + 9] = 17;
        (bytes[14 + 15], bytes[14 + 19]) = (a, b);
        let frame = WireFrame::new(&bytes, 0);
        let facts = FrameFacts {
            flow_hash: flow_hash(&frame),
            ..FrameFacts::default()
        };
        let (packet, _) = encapsulate(&mut encap, &frame, &facts, usize::MAX).unwrap();
        open(&packet).udp.unwrap().0
    };
    let mut ports: Vec<u16> = (1..=100).map(|host| port_of(host, 200)).collect();
    assert!(ports.iter().all(|&port| port >= 49152));
    assert_eq!(port_of(200, 7), ports[6]);
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() > 90, "{} ports for 100 flows", ports.len());
}
