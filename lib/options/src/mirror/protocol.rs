//! Names of IP protocols, as in protocols(5).

/// Number and name, sorted by number; the first name of a number is the one that is shown.
const PROTOCOLS: &[(u8, &str)] = &[
    (0, "hopopt"),
    (1, "icmp"),
    (2, "igmp"),
    (3, "ggp"),
    (4, "ipip"),
    (4, "ipencap"),
    (5, "st"),
    (6, "tcp"),
    (8, "egp"),
    (9, "igp"),
    (12, "pup"),
    (17, "udp"),
    (20, "hmp"),
    (22, "xns-idp"),
    (27, "rdp"),
    (29, "iso-tp4"),
    (33, "dccp"),
    (36, "xtp"),
    (37, "ddp"),
    (38, "idpr-cmtp"),
    (41, "ipv6"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (45, "idrp"),
    (46, "rsvp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (57, "skip"),
    (58, "icmp6"),
    (58, "icmpv6"),
    (58, "ipv6-icmp"),
    (59, "ipv6-nonxt"),
    (60, "ipv6-opts"),
    (73, "rspf"),
    (81, "vmtp"),
    (88, "eigrp"),
    (89, "ospf"),
    (89, "ospfigp"),
    (93, "ax.25"),
    (97, "etherip"),
    (98, "encap"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (124, "isis"),
    (132, "sctp"),
    (133, "fc"),
    (135, "mobility-header"),
    (136, "udplite"),
    (137, "mpls-in-ip"),
    (138, "manet"),
    (139, "hip"),
    (140, "shim6"),
    (141, "wesp"),
    (142, "rohc"),
    (143, "ethernet"),
];

/// The number of a name, whatever its case.
pub(super) fn protocol_number(name: &str) -> Option<u8> {
    let known = PROTOCOLS
        .iter()
        .find(|(_, it)| it.eq_ignore_ascii_case(name));
    known.map(|(number, _)| *number)
}

/// The name of a number, or its digits.
pub(super) fn protocol_name(number: u32) -> String {
    let known = PROTOCOLS.iter().find(|(it, _)| u32::from(*it) == number);
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}
