use super::super::tests::{GUE_IP, encapsulate, ip_packet, kinds, open, spec, v4, v6};
use super::super::{Decap, DecapSpec, GueVariant, UdpPayload};
use super::*;
use crate::VlanTag;

/// A frame of 18 bytes: 02:00:00:00:00:0a to 02:00:00:00:00:0b, EtherType 0x88b5, "abcd".
const FRAME: &[u8; 18] = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a\x88\xb5abcd";

fn send(spec: &EncapSpec, frame: &[u8]) -> Vec<u8> {
    let facts = FrameFacts {
        flow_hash: 0x8001_2345,
        timestamp_ns: 0x0102_0304 * 100_000 + 99_999,
        direction: Some(Direction::Egress),
    };
    let frame = WireFrame::new(frame, 0);
    let mut encap = Encap::new(spec).unwrap();
    encapsulate(&mut encap, &frame, &facts, usize::MAX)
        .unwrap()
        .0
}

fn ip_frame(over_v6: bool) -> Vec<u8> {
    let ether_type = if over_v6 { [0x86, 0xdd] } else { [8, 0] };
    [&[2; 12], &ether_type[..], &ip_packet(over_v6, b"payload")].concat()
}

/// The whole packet, header checksum worked out by hand: 4500+002e+0007+402f+c000+0201+c000+0202 = 2 0967,
/// folded 0969; its complement is f696.
#[test]
fn gretap_with_a_key_over_ipv4() {
    let mut spec = spec(TunnelKind::Gretap);
    (spec.id, spec.first_identification) = (Some(77), 7);
    let header = b"\x45\0\0\x2e\0\x07\0\0\x40\x2f\xf6\x96\xc0\0\x02\x01\xc0\0\x02\x02\
        \x20\0\x65\x58\0\0\0\x4d";
    assert_eq!(send(&spec, FRAME), [&header[..], FRAME].concat());
}

/// 8000+6558 and the frame: 0200+000b+0200+000a+88b5+6162+6364 = 1 5190; all in all 1 36e9, folded 36ea.
#[test]
fn gre_checksum_covers_header_and_frame() {
    let mut spec = spec(TunnelKind::Gretap);
    spec.checksum = true;
    let packet = send(&spec, FRAME);
    assert_eq!(packet[20..28], *b"\x80\0\x65\x58\xc9\x15\0\0");
    assert_eq!(packet[28..], *FRAME);
}

#[test]
fn headers_behind_ip_are_those_of_the_specifications() {
    let gue_gretap = TunnelKind::Gue {
        payload: UdpPayload::Gretap,
        variant: GueVariant::Zero,
    };
    let mut erspan_iii = spec(TunnelKind::Erspan(ErspanType::III));
    (erspan_iii.erspan.hardware_id, erspan_iii.id) = (4, Some(200));
    let mut erspan_ii = spec(TunnelKind::Erspan(ErspanType::II));
    (erspan_ii.erspan.index, erspan_ii.id) = (0x9_1234, Some(100));
    let mut metadata = spec(TunnelKind::Geneve);
    metadata.metadata = true;
    let mut numbered = spec(TunnelKind::Gretap);
    (numbered.checksum, numbered.sequence, numbered.id) = (true, true, Some(0));
    for (spec, header) in [
        (spec(TunnelKind::Gretap), &b"\0\0\x65\x58"[..]),
        (numbered, b"\xb0\0\x65\x58\x99\x15\0\0\0\0\0\0\0\0\0\0"),
        (spec(TunnelKind::Nvgre), b"\x20\0\x65\x58\0\x01\x23\x80"),
        (spec(TunnelKind::Erspan(ErspanType::I)), b"\0\0\x88\xbe"),
        (
            erspan_ii,
            b"\x10\0\x88\xbe\0\0\0\0\x10\0\0\x64\0\x09\x12\x34",
        ),
        (
            erspan_iii,
            b"\x10\0\x22\xeb\0\0\0\0\x20\0\0\xc8\x01\x02\x03\x04\0\0\x80\x48",
        ),
        // From here on with UDP: source port 0xc000 + (0x8001 >> 2), length, no checksum.
        (
            spec(TunnelKind::Vxlan),
            b"\xe0\0\x12\xb5\0\x22\0\0\x08\0\0\0\0\x01\x23\0",
        ),
        (
            spec(TunnelKind::Geneve),
            b"\xe0\0\x17\xc1\0\x22\0\0\0\0\x65\x58\0\x01\x23\0",
        ),
        (
            metadata,
            b"\xe0\0\x17\xc1\0\x36\0\0\x05\0\x65\x58\0\x01\x23\0\
              \xff\xfc\x01\x01\0\0\0\x12\xff\xfc\x02\x02\0\0\x01\x89\xb1\xdb\x81\x1f",
        ),
        (
            spec(gue_gretap),
            b"\xe0\0\x17\xc0\0\x22\0\0\0\x2f\0\0\0\0\x65\x58",
        ),
        (
            spec(TunnelKind::Fou {
                payload: UdpPayload::Gretap,
            }),
            b"\xe0\0\x1e\x61\0\x1e\0\0\0\0\x65\x58",
        ),
    ] {
        let packet = send(&spec, FRAME);
        let (got, frame) = packet[20..].split_at(packet.len() - 20 - FRAME.len());
        assert_eq!((got, frame), (header, &FRAME[..]), "{:?}", spec.kind);
        assert_eq!(packet[9], if spec.kind.is_udp() { 17 } else { 47 });
    }
}

/// IP kinds say which version they carry.
#[test]
fn headers_of_packets_name_the_version_within() {
    let variant_one = TunnelKind::Gue {
        payload: UdpPayload::Ip,
        variant: GueVariant::One,
    };
    let gue_gre = TunnelKind::Gue {
        payload: UdpPayload::Gre,
        variant: GueVariant::Zero,
    };
    for (kind, udp, over_v4, over_v6) in [
        (TunnelKind::Gre, 0, &b"\0\0\x08\0"[..], &b"\0\0\x86\xdd"[..]),
        (GUE_IP, 8, b"\0\x04\0\0", b"\0\x29\0\0"),
        (variant_one, 8, b"", b""),
        (
            gue_gre,
            8,
            b"\0\x2f\0\0\0\0\x08\0",
            b"\0\x2f\0\0\0\0\x86\xdd",
        ),
        (
            TunnelKind::Fou {
                payload: UdpPayload::Ip,
            },
            8,
            b"",
            b"",
        ),
        (TunnelKind::Ipip, 0, b"", b""),
    ] {
        for (inner_v6, header) in [(false, over_v4), (true, over_v6)] {
            let frame = ip_frame(inner_v6);
            let packet = send(&spec(kind), &frame);
            let behind_udp = &packet[20 + udp..];
            assert_eq!(behind_udp, [header, &frame[14..]].concat(), "{kind:?}");
            let mut outer_v6 = spec(kind);
            (outer_v6.source, outer_v6.destination) = (v6(1), v6(2));
            let packet = send(&outer_v6, &frame);
            assert_eq!(packet[40 + udp..], [header, &frame[14..]].concat());
            if kind == TunnelKind::Ipip {
                assert_eq!(packet[6], if inner_v6 { 41 } else { 4 });
                assert_eq!(open(&send(&spec(kind), &frame)).protocol, packet[6]);
            }
        }
    }
}

#[test]
fn erspan_tells_the_tag_of_the_frame_and_keeps_it() {
    let untagged = WireFrame::new(FRAME, 0);
    let mut tagged = untagged;
    let tag = VlanTag::new(0x8100, 0xabc, 5, true).unwrap();
    assert!(tagged.restore_tag(tag));
    let inline = tagged.pieces().concat();
    for (kind, word) in [
        (ErspanType::II, 0x1abc_b923u32),
        (ErspanType::III, 0x2abc_a123),
    ] {
        let spec = spec(TunnelKind::Erspan(kind));
        for frame in [tagged, WireFrame::new(&inline, 0)] {
            let mut encap = Encap::new(&spec).unwrap();
            let facts = FrameFacts::default();
            let (packet, _) = encapsulate(&mut encap, &frame, &facts, usize::MAX).unwrap();
            assert_eq!(packet[28..32], word.to_be_bytes());
            assert!(packet.ends_with(&inline));
            // A header of the next frame does not remember the tag.
            let (packet, _) = encapsulate(&mut encap, &untagged, &facts, usize::MAX).unwrap();
            assert_eq!(packet[28..32], (word & 0xf000_03ff).to_be_bytes());
        }
    }
}

#[test]
fn a_cut_frame_is_marked_where_the_format_can() {
    let frame = WireFrame::new(FRAME, 0);
    let short = WireFrame::new(FRAME, 1500);
    let facts = FrameFacts::default();
    for kind in [ErspanType::II, ErspanType::III] {
        let spec = spec(TunnelKind::Erspan(kind));
        let mut encap = Encap::new(&spec).unwrap();
        let limit = encap.overhead() + 15;
        for (frame, limit, cut, marked) in [
            (&frame, usize::MAX, false, false),
            (&frame, encap.overhead() + 18, false, false),
            (&frame, limit, true, true),
            (&short, usize::MAX, false, true),
        ] {
            let (packet, done) = encapsulate(&mut encap, frame, &facts, limit).unwrap();
            assert_eq!((done.truncated, packet[30] & 4 != 0), (cut, marked));
        }
        assert_eq!(
            encapsulate(&mut encap, &frame, &facts, limit - 2),
            Err(Skip::TooLong)
        );
    }
    let mut encap = Encap::new(&spec(TunnelKind::Geneve)).unwrap();
    let decap = Decap::new(DecapSpec::new(TunnelKind::Geneve)).unwrap();
    let (packet, _) = encapsulate(&mut encap, &short, &facts, usize::MAX).unwrap();
    let decoded = open(&packet);
    let decoded = decap.decode(&decoded.payload).unwrap();
    assert_eq!((decoded.wire_len, decoded.truncated), (Some(1500), true));
    // The option takes 8 bytes off the frame.
    let limit = encap.overhead() + 8 + 14;
    let long = [&FRAME[..], &[0; 100]].concat();
    let (packet, done) = encapsulate(&mut encap, &WireFrame::new(&long, 0), &facts, limit).unwrap();
    assert_eq!((packet.len(), done.truncated), (limit, true));
    let decoded = open(&packet);
    assert_eq!(decap.decode(&decoded.payload).unwrap().wire_len, Some(118));
}

#[test]
fn fields_are_fixed_or_inherited() {
    for outer_v6 in [false, true] {
        for kind in [TunnelKind::Vxlan, TunnelKind::Gretap, TunnelKind::Ipip] {
            let mut spec = spec(kind);
            if outer_v6 {
                (spec.source, spec.destination) = (v6(1), v6(2));
            }
            (spec.tos, spec.ttl) = (Field::Fixed(0xb8), Field::Fixed(3));
            let outer = open(&send(&spec, &ip_frame(false)));
            assert_eq!((outer.tos, outer.ttl), (0xb8, 3));
            (spec.tos, spec.ttl) = (Field::Inherit, Field::Inherit);
            // 0xbb is EF with CE: ECT(0) outside.
            let outer = open(&send(&spec, &ip_frame(false)));
            assert_eq!((outer.tos, outer.ttl), (0xba, 9));
            let outer = open(&send(&spec, &ip_frame(true)));
            assert_eq!((outer.tos, outer.ttl), (0xba, 7));
            let mut dying = ip_frame(false);
            (dying[14 + 8], dying[14 + 1]) = (0, 0x29);
            let outer = open(&send(&spec, &dying));
            assert_eq!((outer.tos, outer.ttl), (0x29, 64));
            if kind != TunnelKind::Ipip {
                let outer = open(&send(&spec, FRAME));
                assert_eq!((outer.tos, outer.ttl), (0, 64));
            }
        }
    }
}

#[test]
fn flow_label_spreads_only_streams_that_are_not_numbered() {
    let mut spec = spec(TunnelKind::Gretap);
    (spec.source, spec.destination) = (v6(1), v6(2));
    assert_eq!(open(&send(&spec, FRAME)).flow_label, Some(0x1_2345));
    assert!(Encap::new(&spec).unwrap().uses_flow());
    spec.sequence = true;
    assert_eq!(open(&send(&spec, FRAME)).flow_label, Some(0));
    assert!(!Encap::new(&spec).unwrap().uses_flow());
}

#[test]
fn udp_checksum_is_off_over_ipv4_and_on_over_ipv6() {
    let mut spec = spec(TunnelKind::Vxlan);
    let checksum = |spec: &EncapSpec| open(&send(spec, FRAME)).udp.unwrap().2;
    assert_eq!(checksum(&spec), 0);
    spec.udp_checksum = Some(true);
    assert_ne!(checksum(&spec), 0);
    (spec.source, spec.destination) = (v6(1), v6(2));
    assert_ne!(checksum(&spec), 0);
    spec.udp_checksum = None;
    assert_ne!(checksum(&spec), 0);
    spec.udp_checksum = Some(false);
    assert_eq!(checksum(&spec), 0);
}

/// RFC 768: a sum of all ones is sent as such, for its complement means "none".
#[test]
fn udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let mut spec = spec(TunnelKind::Vxlan);
    (spec.udp_checksum, spec.source_port) = (Some(true), Some(1000));
    let mut frame = *FRAME;
    frame[16..18].copy_from_slice(&[0, 0]);
    let packet = send(&spec, &frame);
    // What is missing to all ones, put into the frame.
    frame[16..18].copy_from_slice(&packet[26..28]);
    assert_eq!(send(&spec, &frame)[26..28], [0xff, 0xff]);
}

#[test]
fn counters_start_where_they_should_and_survive_an_update() {
    let mut spec = spec(TunnelKind::Gretap);
    (spec.sequence, spec.first_identification) = (true, 0xffff);
    let mut encap = Encap::new(&spec).unwrap();
    let frame = WireFrame::new(FRAME, 0);
    let next = |encap: &mut Encap| {
        let facts = FrameFacts::default();
        let (packet, _) = encapsulate(encap, &frame, &facts, usize::MAX).unwrap();
        (packet[4..6].to_vec(), packet[24..28].to_vec())
    };
    assert_eq!(next(&mut encap), (vec![0xff, 0xff], vec![0, 0, 0, 0]));
    // 0 would have raw sockets choose a number.
    assert_eq!(next(&mut encap), (vec![0, 1], vec![0, 0, 0, 1]));
    spec.dont_fragment = true;
    encap.update(&spec).unwrap();
    assert_eq!(next(&mut encap), (vec![0, 2], vec![0, 0, 0, 2]));
    spec.ttl = Field::Fixed(0);
    assert_eq!(encap.update(&spec), Err(InvalidTunnel::Ttl));
    assert_eq!(next(&mut encap), (vec![0, 3], vec![0, 0, 0, 3]));
    // A frame that is skipped takes no number.
    let runt = WireFrame::new(&FRAME[..13], 0);
    let facts = FrameFacts::default();
    let skipped = encapsulate(&mut encap, &runt, &facts, usize::MAX);
    assert_eq!(skipped, Err(Skip::Malformed));
    assert_eq!(next(&mut encap), (vec![0, 4], vec![0, 0, 0, 4]));
}

#[test]
fn df_is_set_when_asked_for() {
    let mut spec = spec(TunnelKind::Vxlan);
    assert!(!open(&send(&spec, FRAME)).df);
    spec.dont_fragment = true;
    let outer = open(&send(&spec, FRAME));
    assert!(outer.df && outer.identification == Some(1));
}

#[test]
fn what_no_ip_kind_can_carry_is_skipped_by_name() {
    let facts = FrameFacts::default();
    let mut encap = Encap::new(&spec(TunnelKind::Gre)).unwrap();
    let v4 = ip_frame(false);
    let mut five_tags = v4.clone();
    five_tags.splice(12..12, [0x81, 0, 0, 1].repeat(5));
    let broken = |at: usize, value: u8| {
        let mut frame = v4.clone();
        frame[14 + at] = value;
        frame
    };
    for (frame, skip) in [
        (FRAME.to_vec(), Skip::NotIp),
        (five_tags, Skip::NotIp),
        (vec![], Skip::Malformed),
        (v4[..13].to_vec(), Skip::Malformed),
        (v4[..33].to_vec(), Skip::Malformed),
        // Version, header length, total length below the header.
        (broken(0, 0x65), Skip::Malformed),
        (broken(0, 0x44), Skip::Malformed),
        (broken(3, 19), Skip::Malformed),
        (ip_frame(true)[..53].to_vec(), Skip::Malformed),
    ] {
        let wire = WireFrame::new(&frame, 0);
        let result = encapsulate(&mut encap, &wire, &facts, usize::MAX);
        assert_eq!(result, Err(skip), "{frame:02x?}");
    }
    // Left to the network card to cut up: no length of its own.
    let packet = send(&spec(TunnelKind::Gre), &broken(3, 0));
    assert_eq!(packet[24..], broken(3, 0)[14..]);
}

#[test]
fn longest_packet_of_each_version_fits_and_one_byte_more_does_not() {
    let mut spec = spec(TunnelKind::Vxlan);
    let frame = vec![0; 65535];
    let facts = FrameFacts::default();
    for max in [65535, 65575] {
        let mut encap = Encap::new(&spec).unwrap();
        let fits = max - encap.overhead();
        let whole = WireFrame::new(&frame[..fits], 0);
        let (packet, _) = encapsulate(&mut encap, &whole, &facts, usize::MAX).unwrap();
        open(&packet);
        let long = WireFrame::new(&frame[..fits + 1], 0);
        let result = encapsulate(&mut encap, &long, &facts, usize::MAX);
        assert_eq!(result, Err(Skip::TooLong));
        let (packet, done) = encapsulate(&mut encap, &long, &facts, max).unwrap();
        assert_eq!((packet.len(), done.truncated), (max, true));
        (spec.source, spec.destination) = (v6(1), v6(2));
    }
}

#[test]
fn own_packets_are_recognised_and_others_are_not() {
    for kind in kinds() {
        for outer_v6 in [false, true] {
            let mut spec = spec(kind);
            if outer_v6 {
                (spec.source, spec.destination) = (v6(1), v6(2));
            }
            let encap = Encap::new(&spec).unwrap();
            let ether_type = encap.ether_type().to_be_bytes();
            let frame =
                |packet: &[u8]| [&[2; 12][..], &[0x81, 0, 0, 7], &ether_type[..], packet].concat();
            let own = |packet: &[u8]| encap.is_own(&WireFrame::new(&frame(packet), 0));
            let packet = send(&spec, &ip_frame(false));
            assert!(own(&packet), "{kind:?}");
            let len = packet.len();
            let (source, protocol, port) = if outer_v6 { (23, 6, 43) } else { (15, 9, 23) };
            for (at, expected) in [(source, false), (source + 4, false), (protocol, false)] {
                let mut other = packet.clone();
                other[at] ^= 0x80;
                assert_eq!(own(&other), expected, "{kind:?} byte {at} of {len}");
            }
            let mut other = packet.clone();
            other[port] ^= 1;
            assert_eq!(own(&other), !kind.is_udp());
            // A later fragment has no port.
            if !outer_v6 {
                other[7] = 9;
                assert!(own(&other));
            }
            assert!(!encap.is_own(&WireFrame::new(FRAME, 0)));
            for inner_v6 in [false, true] {
                assert!(!encap.is_own(&WireFrame::new(&ip_frame(inner_v6), 0)));
            }
        }
    }
}

#[test]
fn flows_matter_to_what_says_so() {
    for kind in kinds() {
        for (source, destination) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            for source_port in [None, Some(5000)] {
                let mut spec = spec(kind);
                (spec.source, spec.destination) = (source, destination);
                spec.source_port = source_port.filter(|_| kind.is_udp());
                let packets = [0, u32::MAX].map(|flow_hash| {
                    let mut encap = Encap::new(&spec).unwrap();
                    let facts = FrameFacts {
                        flow_hash,
                        ..FrameFacts::default()
                    };
                    let bytes = ip_frame(false);
                    let frame = WireFrame::new(&bytes, 0);
                    encapsulate(&mut encap, &frame, &facts, usize::MAX)
                        .unwrap()
                        .0
                });
                let differ = packets[0] != packets[1];
                assert_eq!(Encap::new(&spec).unwrap().uses_flow(), differ, "{spec:?}");
            }
        }
    }
}
