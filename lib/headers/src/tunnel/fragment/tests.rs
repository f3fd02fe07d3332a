use std::iter;

use proptest::prelude::*;

use super::super::tests::{ip_packet, ones_sum};
use super::*;

fn fragment(packet: &[u8], mtu: usize, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Skip> {
    let mut out = b"before".to_vec();
    let mut pieces: Vec<_> = iter::once(0..6).collect();
    let result = Fragmenter::new(0xa1b2_c3d4).fragment(packet, mtu, prefix, &mut out, &mut pieces);
    assert_eq!((&out[..6], &pieces[0]), (&b"before"[..], &(0..6)));
    if let Err(skip) = result {
        assert_eq!((out.len(), pieces.len()), (6, 1), "nothing is appended");
        return Err(skip);
    }
    // Pieces follow one another and cover everything.
    for pair in pieces.windows(2) {
        assert_eq!(pair[0].end, pair[1].start);
    }
    assert_eq!(pieces.last().unwrap().end, out.len());
    Ok(pieces[1..]
        .iter()
        .map(|piece| out[piece.clone()].to_vec())
        .collect())
}

fn be16(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Puts fragments together as a receiver does; checks that all but the last are a multiple of 8.
fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let first = &fragments[0];
    let v6 = first[0] >> 4 == 6;
    let mut payload = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        let more = index + 1 != fragments.len();
        let part = if v6 {
            assert_eq!(be16(&fragment[4..]) + 40, fragment.len());
            assert_eq!((fragment[6], fragment[41]), (44, 0));
            assert_eq!(fragment[44..48], [0xa1, 0xb2, 0xc3, 0xd4]);
            assert_eq!(be16(&fragment[42..]), payload.len() | usize::from(more));
            assert_eq!(
                (&fragment[..4], &fragment[7..41]),
                (&first[..4], &first[7..41])
            );
            &fragment[48..]
        } else {
            assert_eq!(be16(&fragment[2..]), fragment.len());
            assert_eq!(ones_sum(&fragment[..20]), 0xffff);
            let flag = if more { 0x2000 } else { 0 };
            assert_eq!(be16(&fragment[6..]), (payload.len() / 8) | flag);
            assert_eq!(
                (&fragment[4..6], &fragment[8..10]),
                (&first[4..6], &first[8..10])
            );
            assert_eq!(fragment[12..20], first[12..20]);
            &fragment[20..]
        };
        assert!(!more || part.len() % 8 == 0);
        payload.extend_from_slice(part);
    }
    let header = first[..if v6 { 40 } else { 20 }].to_vec();
    let mut packet = [header, payload].concat();
    let length = packet.len();
    if v6 {
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        packet[6] = first[40];
    } else {
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&[0, 0]);
        packet[10..12].copy_from_slice(&[0, 0]);
    }
    packet
}

fn packet(over_v6: bool, payload: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload).map(|n| (n / 8) as u8).collect();
    let mut packet = ip_packet(over_v6, &payload);
    if !over_v6 {
        packet[6] = 0;
    }
    packet
}

proptest! {
    #[test]
    fn fragments_fit_and_make_the_packet_again(
        over_v6: bool,
        payload in prop_oneof![0..3000usize, 65000..65516usize],
        mtu in prop_oneof![56..200usize, 1200..1600usize],
        prefix in prop::sample::select(vec![&b""[..], b"ethernet header"]),
    ) {
        let packet = packet(over_v6, payload);
        let pieces = fragment(&packet, mtu, prefix).unwrap();
        let mut fragments = Vec::new();
        for piece in &pieces {
            prop_assert!(piece.starts_with(prefix));
            prop_assert!(piece.len() - prefix.len() <= mtu);
            fragments.push(piece[prefix.len()..].to_vec());
        }
        if packet.len() <= mtu {
            prop_assert_eq!(fragments, vec![packet]);
        } else {
            prop_assert!(fragments.len() > 1);
            // As few as there can be.
            let header = if over_v6 { 48 } else { 20 };
            prop_assert_eq!(fragments.len(), payload.div_ceil((mtu - header) / 8 * 8));
            prop_assert_eq!(reassemble(&fragments), packet);
        }
    }

    #[test]
    fn any_bytes_can_be_cut_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        start in prop::sample::select(vec![&b""[..], b"\x45\0\0\x50", b"\x60\0\0\0\0\x50"]),
        mtu in 0..200usize,
    ) {
        let bytes = [start, &bytes].concat();
        if let Ok(pieces) = fragment(&bytes, mtu, b"") {
            prop_assert!(pieces.iter().all(|piece| piece.len() <= mtu));
        }
    }
}

/// A whole first and last fragment, header checksums worked out by hand.
#[test]
fn fragments_of_ipv4_are_those_of_rfc_791() {
    let mut packet = packet(false, 30);
    packet[1] = 0;
    let pieces = fragment(&packet, 49, b"").unwrap();
    // 4500+002c+0007+2000+09fd+0a00+0001+0a00+0002 = 8333, and 4500+001a+0007+0003+09fd+... = 6324.
    let first = b"\x45\0\0\x2c\0\x07\x20\0\x09\xfd\x7c\xcc\x0a\0\0\x01\x0a\0\0\x02";
    let last = b"\x45\0\0\x1a\0\x07\0\x03\x09\xfd\x9c\xdb\x0a\0\0\x01\x0a\0\0\x02";
    assert_eq!(pieces[0], [&first[..], &packet[20..44]].concat());
    assert_eq!(pieces[1], [&last[..], &packet[44..50]].concat());
    assert_eq!(pieces.len(), 2);
}

#[test]
fn fragments_of_ipv6_have_an_identification_of_their_own() {
    let packet = packet(true, 30);
    let mut fragmenter = Fragmenter::new(u32::MAX);
    let (mut out, mut pieces) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        fragmenter
            .fragment(&packet, 64, b"", &mut out, &mut pieces)
            .unwrap();
    }
    let fragment_headers: Vec<_> = pieces
        .iter()
        .map(|piece| &out[piece.start + 40..][..8])
        .collect();
    assert_eq!(
        fragment_headers,
        [
            b"\x3b\0\0\x01\xff\xff\xff\xff",
            b"\x3b\0\0\x10\xff\xff\xff\xff",
            b"\x3b\0\0\x01\0\0\0\0",
            b"\x3b\0\0\x10\0\0\0\0",
        ]
    );
}

#[test]
fn what_may_not_be_cut_is_refused() {
    let whole = packet(false, 100);
    let mut df = whole.clone();
    df[6] = 0x40;
    assert_eq!(fragment(&df, 119, b""), Err(Skip::TooLong));
    assert_eq!(fragment(&df, 120, b"").unwrap(), [df]);
    assert_eq!(fragment(&whole, 27, b""), Err(Skip::TooLong));
    assert_eq!(fragment(&whole, 28, b"").unwrap().len(), 13);
    assert_eq!(fragment(&packet(true, 100), 55, b""), Err(Skip::TooLong));
    assert_eq!(fragment(&packet(true, 100), 56, b"").unwrap().len(), 13);
    let changed = |over_v6, at: usize, value| {
        let mut packet = packet(over_v6, 100);
        packet[at] = value;
        packet
    };
    for malformed in [
        Vec::new(),
        whole[..19].to_vec(),
        whole[..119].to_vec(),
        // Options, a fragment already, another length.
        changed(false, 0, 0x46),
        changed(false, 7, 1),
        changed(false, 3, 119),
        changed(true, 6, 0),
        changed(true, 6, 44),
        changed(true, 5, 99),
    ] {
        assert_eq!(fragment(&malformed, 64, b""), Err(Skip::Malformed));
    }
}
