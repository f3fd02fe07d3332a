//! One guest with a tunnel device for each case.
//!
//! ```text
//!            WIRE                          guest                               SIDE
//!   tunneld -----> eth0 --> decapsulated by --> device of the case --> eth1 ----------> Sink
//!   tunneld <----- eth0 <-- encapsulated by <-- device of the case <-- eth1 <---------- frames
//! ```
//!
//! tc in the guest leads what comes out of a tunnel device to the side wire, and what comes in from the side wire to the device that the last byte
//! of its Ethernet destination says. The guest's own stack sees none of it. Each case has addresses of its own at both ends, so
//! that all of them live side by side, even those that Linux could not tell apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fluxcap_e2e::Netns;
use fluxcap_e2e::kernel_peer::{KernelPeer, WIRE};

use crate::cases::{Case, FOU_PORTS};

/// Longest inner frame that fits the devices, and IP packet without the Ethernet header.
const INNER_MTU: usize = 8900;

/// Our address and the guest's of a case.
pub(crate) fn ends(outer: u8, number: u8) -> (String, String) {
    (address(outer, 1, number), address(outer, 2, number))
}

fn address(outer: u8, end: u8, number: u8) -> String {
    if outer == 4 {
        format!("10.99.{end}.{number}")
    } else {
        format!("fd00:99::{end}:{number:x}")
    }
}

/// Gives both ends the addresses of all cases, and the guest the devices.
pub(crate) fn set_up(host: &Netns, peer: &KernelPeer, cases: &BTreeMap<u8, Case>) {
    let (mut addresses, mut links, mut rules) = (String::new(), String::new(), String::new());
    let (mut quiet, mut own) = (String::new(), String::new());
    rules += "qdisc add dev eth1 clsact\n";
    for (number, case) in cases {
        let (remote, local) = ends(case.outer, *number);
        let (length, nodad) = if case.outer == 4 {
            (16, "")
        } else {
            (64, "nodad")
        };
        let ends = format!("local {local} remote {remote}");
        let link = case
            .link
            .replace("{ends}", &ends)
            .replace("{remote}", &remote);
        let _ = writeln!(own, "addr add {remote}/{length} dev {WIRE} {nodad}");
        let _ = writeln!(addresses, "addr add {local}/{length} dev eth0 {nodad}");
        let _ = writeln!(
            links,
            "link add t{number} type {link}\nlink set t{number} mtu {INNER_MTU}\nlink set t{number} up"
        );
        let _ = writeln!(
            quiet,
            "echo 1 > /proc/sys/net/ipv6/conf/t{number}/disable_ipv6"
        );
        let _ = writeln!(
            rules,
            "filter add dev eth1 ingress protocol all pref 1 flower dst_mac 02:00:00:00:cc:{number:02x} action mirred egress redirect dev t{number}
             qdisc add dev t{number} clsact
             filter add dev t{number} ingress matchall action mirred egress redirect dev eth1"
        );
    }
    for line in own.lines() {
        host.ip(&line.split_whitespace().collect::<Vec<_>>());
    }
    peer.run(&format!(
        "set -e\n{FOU_PORTS}\nip -batch - <<'.'\n{addresses}{links}.\n{quiet}tc -batch - <<'.'\n{rules}."
    ));
}

/// What the guest counted at the device of a case, when that is more than packets: errors and drops.
pub(crate) fn complaints(peer: &KernelPeer, number: u8) -> String {
    peer.run(&format!(
        "ip -s -s link show dev t{number}; nstat -az | grep -v ' 0  ' || true"
    ))
}
