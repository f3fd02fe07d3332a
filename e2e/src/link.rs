//! Pairs of virtual Ethernet interfaces between namespaces.

use std::process::Command;

use serde_json::Value;

use crate::netns::{Netns, must_run};

/// One end of a [`Veth`]: which namespace, and the interface's name there.
pub type End<'a> = (&'a Netns, &'a str);

/// Makes and changes veth pairs. The pair goes away with either of its namespaces.
#[derive(Debug)]
pub struct Veth;

impl Veth {
    /// Makes a pair, both ends up, offloads off and with this MTU.
    #[track_caller]
    pub fn pair(a: End<'_>, b: End<'_>, mtu: u32) {
        let mtu = mtu.to_string();
        let (one, other) = (["name", a.1, "mtu", &mtu], ["name", b.1, "mtu", &mtu]);
        let mut args = vec!["link", "add"];
        args.extend(one);
        args.extend(["type", "veth", "peer"]);
        args.extend(other);
        args.extend(["netns", b.0.name()]);
        a.0.ip(&args);
        for (netns, name) in [a, b] {
            // GRO merges frames and TSO hands out giants: off, so that what is sent is what is seen.
            Veth::offload(netns, name, false);
            netns.ip(&["link", "set", name, "up"]);
        }
    }

    /// Switches segmentation, receive merging and checksum offloads of one end.
    #[track_caller]
    pub fn offload(netns: &Netns, name: &str, on: bool) {
        let state = if on { "on" } else { "off" };
        let mut command = netns.command("ethtool");
        command.args(["-K", name]);
        for feature in ["gro", "gso", "tso", "rx", "tx"] {
            command.args([feature, state]);
        }
        must_run(&mut command);
    }

    /// Switches the merging of received frames of one end.
    #[track_caller]
    pub fn gro(netns: &Netns, name: &str, on: bool) {
        let state = if on { "on" } else { "off" };
        must_run(netns.command("ethtool").args(["-K", name, "gro", state]));
    }

    /// Takes one end up.
    #[track_caller]
    pub fn up(netns: &Netns, name: &str) {
        netns.ip(&["link", "set", name, "up"]);
    }

    /// Takes one end down; the other end loses its carrier.
    #[track_caller]
    pub fn down(netns: &Netns, name: &str) {
        netns.ip(&["link", "set", name, "down"]);
    }

    /// Deletes the pair of which `name` is one end.
    #[track_caller]
    pub fn delete(netns: &Netns, name: &str) {
        netns.ip(&["link", "del", name]);
    }

    /// Gives one end another name.
    #[track_caller]
    pub fn rename(netns: &Netns, name: &str, to: &str) {
        netns.ip(&["link", "set", name, "down"]);
        netns.ip(&["link", "set", name, "name", to, "up"]);
    }

    /// Moves one end to another namespace, where it is down until [`Veth::up`].
    #[track_caller]
    pub fn move_to(netns: &Netns, name: &str, to: &Netns) {
        netns.ip(&["link", "set", name, "netns", to.name()]);
    }

    /// Sets the MTU of one end.
    #[track_caller]
    pub fn set_mtu(netns: &Netns, name: &str, mtu: u32) {
        netns.ip(&["link", "set", name, "mtu", &mtu.to_string()]);
    }

    /// The kernel's counters of one end.
    #[must_use]
    #[track_caller]
    pub fn counters(netns: &Netns, name: &str) -> LinkCounters {
        counters(netns.name(), name)
            .unwrap_or_else(|| panic!("no interface {name} in {}", netns.name()))
    }
}

/// The kernel's counters of an interface; None when it is gone.
pub(crate) fn counters(netns: &str, name: &str) -> Option<LinkCounters> {
    let output = Command::new("ip")
        .args(["-n", netns, "-s", "-j", "link", "show", "dev", name])
        .output()
        .ok()?;
    let links: Value = serde_json::from_slice(&output.stdout).ok()?;
    let count = |side: &str, which: &str| links[0]["stats64"][side][which].as_u64();
    Some(LinkCounters {
        rx_frames: count("rx", "packets")?,
        rx_dropped: count("rx", "dropped")?,
        tx_frames: count("tx", "packets")?,
        tx_dropped: count("tx", "dropped")?,
    })
}

/// Frames that the kernel counted on an interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames that came in.
    pub rx_frames: u64,
    /// Incoming frames that the kernel dropped.
    pub rx_dropped: u64,
    /// Frames that went out.
    pub tx_frames: u64,
    /// Outgoing frames that the driver dropped; for a veth, those that its peer had no room for.
    pub tx_dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_pair_carries_no_frame_of_its_own() {
        crate::need_root!();
        let (a, b) = (Netns::new(), Netns::new());
        Veth::pair((&a, "left"), (&b, "right"), 1500);
        Veth::down(&a, "left");
        Veth::up(&a, "left");
        Veth::rename(&b, "right", "other");
        assert_eq!(Veth::counters(&a, "left"), LinkCounters::default());
        assert_eq!(Veth::counters(&b, "other"), LinkCounters::default());
        Veth::delete(&a, "left");
        assert!(!b.ip(&["link"]).contains("other"));
    }
}
