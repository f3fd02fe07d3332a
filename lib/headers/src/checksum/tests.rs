use super::*;
use proptest::prelude::*;

/// A UDP datagram over IPv4 with the checksum 0x226c, worked out by hand below (RFC 768, RFC 1071).
const UDP_V4: &[u8] = &[
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, //
    0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, //
    0x04, 0xd2, 0x00, 0x35, 0, 11, 0xff, 0xff, b'a', b'b', b'c',
];

/// One's complement sum over pseudo-header and segment, byte by byte: 0xffff for a valid packet.
fn verify(packet: &[u8]) -> u16 {
    let v6 = packet[0] >> 4 == 6;
    let (addresses, upper, protocol) = if v6 {
        (&packet[8..40], &packet[40..], packet[6])
    } else {
        let end = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        (&packet[12..20], &packet[20..end], packet[9])
    };
    let mut bytes = addresses.to_vec();
    bytes.extend((upper.len() as u32).to_be_bytes());
    bytes.extend([0, protocol]);
    bytes.extend(upper);
    let mut sum = 0u32;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn known_datagram_gets_its_checksum() {
    let mut frame = UDP_V4.to_vec();
    assert!(complete_checksum(&mut frame, 0));
    // 0a00+0001+0a00+0002 + 0011+000b + 04d2+0035+000b + 6162+6300 = 0xdd93 (no carries); ~ = 0x226c
    assert_eq!(frame[40..42], [0x22, 0x6c]);
    assert_eq!(verify(&frame[14..]), 0xffff);
}

#[test]
fn tags_an_offset_and_padding_do_not_change_it() {
    let mut frame = UDP_V4.to_vec();
    frame.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
    frame.splice(0..0, [9; 3]);
    frame.extend([0xee; 13]);
    let before = frame.clone();
    assert!(complete_checksum(&mut frame, 3));
    assert_eq!(frame[51..53], [0x22, 0x6c]);
    assert_eq!((&frame[..51], &frame[53..]), (&before[..51], &before[53..]));
}

#[test]
fn udp_checksum_of_zero_is_sent_as_ones_and_that_of_tcp_is_not() {
    let mut frame = UDP_V4.to_vec();
    // Two bytes that make the sum 0xffff.
    frame[30..34].copy_from_slice(&[10, 0, 0, 2]);
    let mut probe = frame.clone();
    assert!(complete_checksum(&mut probe, 0));
    let missing = u16::from_be_bytes([probe[40], probe[41]]);
    frame[42..44].copy_from_slice(&(u16::from_be_bytes([b'a', b'b']) + missing).to_be_bytes());
    assert!(complete_checksum(&mut frame, 0));
    assert_eq!(frame[40..42], [0xff, 0xff]);
}

#[test]
fn what_cannot_be_computed_is_left_alone() {
    let mut fragment = UDP_V4.to_vec();
    fragment[20] = 0x20;
    let mut icmp = UDP_V4.to_vec();
    icmp[23] = 1;
    let mut longer_than_captured = UDP_V4.to_vec();
    longer_than_captured[17] = 40;
    let mut shorter_than_udp = UDP_V4.to_vec();
    shorter_than_udp[17] = 27;
    for mut frame in [fragment, icmp, longer_than_captured, shorter_than_udp] {
        let before = frame.clone();
        assert!(!complete_checksum(&mut frame, 0));
        assert_eq!(frame, before);
    }
    for cut in 0..UDP_V4.len() {
        let mut frame = UDP_V4[..cut].to_vec();
        assert!(!complete_checksum(&mut frame, 0), "{cut}");
    }
    assert!(!complete_checksum(&mut UDP_V4.to_vec(), usize::MAX));
}

proptest! {
    #[test]
    fn completed_frames_verify(
        v6 in any::<bool>(), tcp in any::<bool>(), addresses in any::<[u8; 32]>(),
        body in proptest::collection::vec(any::<u8>(), 20..600),
    ) {
        let mut frame = vec![2; 12];
        let protocol = if tcp { 6 } else { 17 };
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((body.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(addresses);
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + body.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(&addresses[..8]);
        }
        frame.extend(&body);
        prop_assert!(complete_checksum(&mut frame, 0));
        prop_assert_eq!(verify(&frame[14..]), 0xffff);
    }

    #[test]
    fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), offset in 0usize..130) {
        if let Some(slot) = bytes.get_mut(12..16) {
            slot.copy_from_slice(&[0x08, 0x00, 0x45, 0]);
        }
        complete_checksum(&mut bytes, offset);
        complete_checksum(&mut bytes, 0);
    }
}
