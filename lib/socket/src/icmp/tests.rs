use super::*;
use proptest::prelude::*;

const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

fn vxlan() -> Ours {
    Ours {
        remote: REMOTE.into(),
        protocol: 17,
        port: Some(4789),
    }
}

/// A router at 198.51.100.1 quotes the first 28 bytes of a UDP datagram to 192.0.2.9:4789.
fn message(code: u8, mtu: u16) -> Vec<u8> {
    let mut bytes = vec![
        0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 198, 51, 100, 1, 10, 0, 0, 1, // IPv4
        3, code, 0, 0, 0, 0,
    ];
    bytes.extend(mtu.to_be_bytes());
    bytes.extend([0x45, 0, 5, 0xdc, 0, 1, 0, 0, 63, 17, 0, 0, 10, 0, 0, 1]);
    bytes.extend(REMOTE.octets());
    bytes.extend([0xc0, 0, 0x12, 0xb5, 5, 0xc8, 0, 0]);
    bytes
}

/// The same with ICMPv6, which sockets get without the IPv6 header.
fn message6(kind: u8, code: u8, mtu: u32, behind: &[u8], next: u8) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(mtu.to_be_bytes());
    bytes.extend([0x60, 0, 0, 0, 5, 0xb4, next, 63]);
    bytes.extend([0; 16]);
    bytes.extend(REMOTE6.octets());
    bytes.extend(behind);
    bytes
}

#[test]
fn codes_of_rfc_792_and_1812_are_told_apart() {
    let reason = |code| vxlan().reason(&message(code, 0));
    for code in [0, 1, 5, 6, 7, 8, 11, 12] {
        assert_eq!(reason(code), Some(IcmpReason::NetOrHost), "{code}");
    }
    assert_eq!(reason(2), Some(IcmpReason::Protocol));
    assert_eq!(reason(3), Some(IcmpReason::Port));
    for code in [9, 10, 13, 14, 15] {
        assert_eq!(reason(code), Some(IcmpReason::Prohibited), "{code}");
    }
    assert_eq!(reason(16), None);
}

#[test]
fn mtu_is_at_least_what_the_kernel_believes() {
    let mtu = |mtu| vxlan().reason(&message(4, mtu));
    assert_eq!(mtu(1400), Some(IcmpReason::TooBig(1400)));
    assert_eq!(mtu(68), Some(IcmpReason::TooBig(552)));
    assert_eq!(mtu(0), Some(IcmpReason::TooBig(576)));
}

#[test]
fn messages_about_other_packets_are_not_ours() {
    let told = message(3, 0);
    for (at, what) in [
        (20, "type"),
        (28 + 9, "protocol"),
        (28 + 19, "remote"),
        (28 + 23, "port"),
        (0, "version"),
        (28, "version of the quoted packet"),
    ] {
        let mut other = told.clone();
        other[at] ^= 0x10;
        assert_eq!(vxlan().reason(&other), None, "{what}");
    }
    assert_eq!(vxlan().reason(&told), Some(IcmpReason::Port));
}

#[test]
fn port_is_looked_for_behind_options_and_not_in_later_fragments() {
    let mut options = message(3, 0);
    options[28] = 0x46;
    options.splice(48..48, [1, 1, 1, 1]);
    assert_eq!(vxlan().reason(&options), Some(IcmpReason::Port));
    let mut fragment = message(4, 1400);
    fragment[28 + 7] = 3;
    fragment[28 + 23] ^= 1;
    assert_eq!(vxlan().reason(&fragment), Some(IcmpReason::TooBig(1400)));
    let gre = Ours {
        protocol: 47,
        port: None,
        ..vxlan()
    };
    let mut without = message(2, 0);
    without[28 + 9] = 47;
    without.truncate(48);
    assert_eq!(gre.reason(&without), Some(IcmpReason::Protocol));
}

#[test]
fn messages_of_icmpv6_are_understood_also_about_fragments() {
    let ours = Ours {
        remote: REMOTE6.into(),
        ..vxlan()
    };
    let udp = [0xc0, 0, 0x12, 0xb5, 5, 0xc8, 0, 0];
    let reason = |kind, code, mtu| ours.reason(&message6(kind, code, mtu, &udp, 17));
    assert_eq!(reason(1, 0, 0), Some(IcmpReason::NetOrHost));
    assert_eq!(reason(1, 3, 0), Some(IcmpReason::NetOrHost));
    assert_eq!(reason(1, 1, 0), Some(IcmpReason::Prohibited));
    assert_eq!(reason(1, 4, 0), Some(IcmpReason::Port));
    assert_eq!(reason(2, 0, 1400), Some(IcmpReason::TooBig(1400)));
    assert_eq!(reason(2, 0, 100), Some(IcmpReason::TooBig(1280)));
    assert_eq!(reason(4, 1, 6), Some(IcmpReason::Protocol));
    assert_eq!(reason(4, 0, 6), None);
    assert_eq!(reason(3, 0, 0), None);
    let mut first = vec![17, 0, 0, 1, 0, 0, 0, 7];
    first.extend(udp);
    let told = ours.reason(&message6(2, 0, 1300, &first, 44));
    assert_eq!(told, Some(IcmpReason::TooBig(1300)));
    first[8 + 3] ^= 1;
    assert_eq!(ours.reason(&message6(2, 0, 1300, &first, 44)), None);
    let later = [17, 0, 0, 9, 0, 0, 0, 7];
    let told = ours.reason(&message6(2, 0, 1300, &later, 44));
    assert_eq!(told, Some(IcmpReason::TooBig(1300)));
}

#[test]
fn every_shorter_prefix_of_a_message_is_none() {
    let whole = message(3, 0);
    for length in 0..whole.len() {
        // The last four bytes of the quote, length and checksum of UDP, are not looked at.
        let expected = (length >= whole.len() - 4).then_some(IcmpReason::Port);
        assert_eq!(vxlan().reason(&whole[..length]), expected, "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
        let remote = if v6 { IpAddr::V6(REMOTE6) } else { REMOTE.into() };
        Ours { remote, protocol: 17, port: Some(1) }.reason(&bytes);
    }
}
