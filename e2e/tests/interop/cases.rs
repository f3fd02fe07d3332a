//! The matrix: what the guest has, and what tunneld is told to be its other end.

/// What a kind of tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Ethernet frames.
    Ethernet,
    /// IP packets of both versions.
    Ip,
    /// IPv4 packets.
    Ipv4,
    /// IPv6 packets.
    Ipv6,
}

/// One kind of tunnel with one set of options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// What it is called in the output.
    pub(crate) name: &'static str,
    /// What `ip link add NAME type` wants for it. `{ends}` is "local ADDRESS remote ADDRESS", `{remote}` the latter alone.
    pub(crate) link: &'static str,
    /// Version of the outer packets.
    pub(crate) outer: u8,
    /// What goes inside.
    pub(crate) carries: Carries,
    /// Kind and options of `fluxctl tunnel send`.
    pub(crate) send: &'static str,
    /// Kind and options of `fluxctl tunnel recv`.
    pub(crate) receive: &'static str,
    /// What the receiver notes as the identifier of each frame.
    pub(crate) id: u32,
    /// Whether Linux cuts outer packets that are too long: it does not when it would be those of IPv6.
    pub(crate) linux_fragments: bool,
}

use Carries::{Ethernet, Ip, Ipv4, Ipv6};

/// Rows: name, outer version, inside, link, send, receive, identifier, whether Linux fragments.
type Row = (
    &'static str,
    u8,
    Carries,
    &'static str,
    &'static str,
    &'static str,
    u32,
    bool,
);

/// Ports that the guest decapsulates: protocol, port, what for.
pub(crate) const FOU_PORTS: &str = "ip fou add port 6080 gue; ip -6 fou add port 6080 gue
    ip fou add port 5554 ipproto 4; ip fou add port 5547 ipproto 47; ip -6 fou add port 5541 ipproto 41";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("gretap",              4, Ethernet, "gretap {ends} nopmtudisc ignore-df", "gretap", "gretap", 0, true),
    ("gretap key 0",        4, Ethernet, "gretap {ends} nopmtudisc ignore-df key 0", "gretap --key 0", "gretap --key 0", 0, true),
    ("gretap key",          4, Ethernet, "gretap {ends} nopmtudisc ignore-df key 77", "gretap --key 77", "gretap --key 77", 77, true),
    ("gretap csum",         4, Ethernet, "gretap {ends} nopmtudisc ignore-df csum", "gretap --csum", "gretap --csum", 0, true),
    ("gretap seq",          4, Ethernet, "gretap {ends} nopmtudisc ignore-df seq", "gretap --seq", "gretap --seq", 0, true),
    ("gretap key csum seq", 4, Ethernet, "gretap {ends} nopmtudisc ignore-df key 4294967295 csum seq", "gretap --key 255.255.255.255 --csum --seq", "gretap --key 4294967295 --csum --seq", 0xffff_ffff, true),
    ("gre",                 4, Ip,       "gre {ends} nopmtudisc ignore-df", "gre", "gre", 0, true),
    ("gre key csum seq",    4, Ip,       "gre {ends} nopmtudisc ignore-df key 70 csum seq", "gre --key 70 --csum --seq", "gre --key 70 --csum --seq", 70, true),
    ("erspan v0",           4, Ethernet, "erspan {ends} nopmtudisc ignore-df erspan_ver 0", "erspan --erspan-ver 0", "erspan --session none", 0, true),
    ("erspan v1",           4, Ethernet, "erspan {ends} nopmtudisc ignore-df seq key 100 erspan_ver 1 erspan 9", "erspan --erspan-ver 1 --session 100 --index 9", "erspan --session 100", 100, true),
    ("erspan v2",           4, Ethernet, "erspan {ends} nopmtudisc ignore-df seq key 1023 erspan_ver 2 erspan_dir egress erspan_hwid 4", "erspan --erspan-ver 2 --session 1023 --erspan-dir egress --erspan-hwid 4", "erspan --session 1023", 1023, true),
    ("vxlan",               4, Ethernet, "vxlan {ends} id 42 dstport 4789", "vxlan --vni 42", "vxlan --vni 42", 42, true),
    ("vxlan udpcsum",       4, Ethernet, "vxlan {ends} id 16777215 dstport 4789 udpcsum", "vxlan --vni 16777215 --udp-csum", "vxlan --vni 16777215", 0xff_ffff, true),
    ("geneve",              4, Ethernet, "geneve id 7 remote {remote} dstport 6081", "geneve --vni 7", "geneve --vni 7", 7, true),
    ("gretap in gue",       4, Ethernet, "gretap {ends} nopmtudisc ignore-df key 9 encap gue encap-sport auto encap-dport 6080", "gue --inner gretap --key 9", "gue --key 9", 9, true),
    ("gretap in gue, no key", 4, Ethernet, "gretap {ends} nopmtudisc ignore-df encap gue encap-sport auto encap-dport 6080", "gue --inner gretap", "gue", 0, true),
    ("gretap in fou",       4, Ethernet, "gretap {ends} nopmtudisc ignore-df encap fou encap-sport auto encap-dport 5547", "fou --inner gretap --dport 5547", "fou --inner gretap --dport 5547", 0, true),
    ("ipip in gue",         4, Ipv4,     "ipip {ends} nopmtudisc encap gue encap-sport auto encap-dport 6080", "gue", "gue", 0, true),
    ("ipip in gue, csum",   4, Ipv4,     "ipip {ends} nopmtudisc encap gue encap-sport 40000 encap-dport 6080 encap-csum", "gue --sport 40000 --udp-csum", "gue", 0, true),
    ("ipip in gue 1",       4, Ipv4,     "ipip {ends} nopmtudisc encap gue encap-sport auto encap-dport 6080", "gue --variant 1", "gue", 0, true),
    ("ipip in fou",         4, Ipv4,     "ipip {ends} nopmtudisc encap fou encap-sport auto encap-dport 5554", "fou --dport 5554", "fou --dport 5554", 0, true),
    ("sit in gue",          4, Ipv6,     "sit {ends} nopmtudisc encap gue encap-sport auto encap-dport 6080", "gue", "gue", 0, true),
    ("ipip",                4, Ipv4,     "ipip {ends} nopmtudisc", "ipip", "ipip", 0, true),
    ("sit",                 4, Ipv6,     "sit {ends} nopmtudisc", "ipip", "ipip", 0, true),
    ("ip6gretap",           6, Ethernet, "ip6gretap {ends}", "gretap", "gretap", 0, false),
    ("ip6gretap key csum seq", 6, Ethernet, "ip6gretap {ends} key 77 csum seq", "gretap --key 77 --csum --seq", "gretap --key 77 --csum --seq", 77, false),
    ("ip6gre",              6, Ip,       "ip6gre {ends} key 5", "gre --key 5", "gre --key 5", 5, false),
    ("ip6erspan v1",        6, Ethernet, "ip6erspan {ends} seq key 100 erspan_ver 1 erspan 9", "erspan --erspan-ver 1 --session 100 --index 9", "erspan --session 100", 100, false),
    ("ip6erspan v2",        6, Ethernet, "ip6erspan {ends} seq key 200 erspan_ver 2 erspan_dir ingress erspan_hwid 63", "erspan --erspan-ver 2 --session 200 --erspan-hwid 63", "erspan --session 200", 200, false),
    ("vxlan over IPv6",     6, Ethernet, "vxlan {ends} id 43 dstport 4789", "vxlan --vni 43", "vxlan --vni 43", 43, false),
    ("geneve over IPv6",    6, Ethernet, "geneve id 8 remote {remote} dstport 6081", "geneve --vni 8", "geneve --vni 8", 8, false),
    ("ip6gretap in gue",    6, Ethernet, "ip6gretap {ends} key 9 encaplimit none encap gue encap-sport auto encap-dport 6080", "gue --inner gretap --key 9", "gue --key 9", 9, false),
    ("ip6gretap in gue, no key", 6, Ethernet, "ip6gretap {ends} encaplimit none encap gue encap-sport auto encap-dport 6080", "gue --inner gretap", "gue", 0, false),
    ("ip6tnl in gue",       6, Ip,       "ip6tnl {ends} mode any encaplimit none encap gue encap-sport auto encap-dport 6080", "gue", "gue", 0, false),
    ("ip6tnl in fou",       6, Ipv6,     "ip6tnl {ends} mode ip6ip6 encaplimit none encap fou encap-sport auto encap-dport 5541", "fou --dport 5541", "fou --dport 5541", 0, false),
    ("ip6tnl",              6, Ip,       "ip6tnl {ends} mode any", "ipip", "ipip", 0, false),
];

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let case = |&(name, outer, carries, link, send, receive, id, linux_fragments): &Row| Case {
        name,
        link,
        outer,
        carries,
        send,
        receive,
        id,
        linux_fragments,
    };
    ROWS.iter().map(case).collect()
}
