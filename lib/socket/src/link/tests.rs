use super::*;
use crate::netlink::{Message, Wanted, link_request, messages};
use proptest::prelude::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn payload(family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![family, 0, 1, 0, 7, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0];
    bytes.extend(attributes.concat());
    bytes
}

#[test]
fn known_attributes_are_taken_and_unknown_ones_passed_over() {
    let bytes = payload(
        0,
        &[
            attribute(4000, &[1, 2, 3]),
            attribute(libc::IFLA_IFNAME, b"eth1\0"),
            attribute(libc::IFLA_MTU, &1500u32.to_ne_bytes()),
            attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
            attribute(libc::IFLA_STATS64, &11u64.to_ne_bytes()),
            attribute(
                libc::IFLA_PROP_LIST | 0x8000,
                &attribute(libc::IFLA_ALT_IFNAME, b"tap-one\0"),
            ),
        ],
    );
    let link = Link::parse(&bytes).unwrap();
    assert_eq!(
        (link.index, link.mtu, link.mac),
        (7, 1500, [2, 0, 0, 0, 0, 1])
    );
    assert!(link.up && link.carrier && link.ethernet);
    assert_eq!((link.rx_packets, link.tx_packets), (11, 0));
    assert!(link.is_called("eth1") && link.is_called("tap-one") && !link.is_called("eth"));
}

#[test]
fn messages_of_bridges_and_nameless_ones_are_not_interfaces() {
    let name = attribute(libc::IFLA_IFNAME, b"eth1\0");
    assert!(Link::parse(&payload(0, std::slice::from_ref(&name))).is_some());
    assert!(Link::parse(&payload(7, &[name])).is_none());
    assert!(Link::parse(&payload(0, &[])).is_none());
}

#[test]
fn requests_are_well_formed_messages() {
    for (wanted, index) in [
        (Wanted::All, 0u32),
        (Wanted::Index(9), 9),
        (Wanted::Name("eth1"), 0),
    ] {
        let request = link_request(wanted).unwrap();
        assert_eq!(request.len() % 4, 0);
        let walked: Vec<_> = messages(&request).collect();
        assert_eq!(walked, [(0, false, Message::Other)]);
        assert_eq!(request[20..24], index.to_ne_bytes());
    }
    assert!(link_request(Wanted::Name("")).is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        Link::parse(&bytes);
        for (_, _, message) in messages(&bytes) {
            if let Message::NewLink(payload) | Message::DelLink(payload) = message {
                Link::parse(payload);
            }
        }
    }

    #[test]
    fn damaged_messages_are_parsed_without_a_panic(
        at in 0usize..90, value in any::<u8>(), cut in 0usize..90,
    ) {
        let body = payload(0, &[
            attribute(libc::IFLA_IFNAME, b"eth1\0"),
            attribute(libc::IFLA_STATS64, &[9; 20]),
            attribute(libc::IFLA_PROP_LIST, &attribute(libc::IFLA_ALT_IFNAME, b"x")),
        ]);
        let mut bytes = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
        bytes.extend(libc::RTM_NEWLINK.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        if let Some(slot) = bytes.get_mut(at) {
            *slot = value;
        }
        bytes.truncate(cut.max(1));
        for (_, _, message) in messages(&bytes) {
            if let Message::NewLink(payload) = message {
                Link::parse(payload);
            }
        }
    }
}
