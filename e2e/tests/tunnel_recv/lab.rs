//! A host with ringd and tunneld, and a wire from a sender.

use crate::packets::{HOST_MAC, SENDER_MAC};
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{
    Daemon, Dirs, Fluxctl, Netns, RingReader, Veth, send_frames, wait_for, wait_until,
};
use fluxcap_ring::Meta;
use serde_json::Value;
use std::time::Duration;

pub(crate) const SOON: Duration = Duration::from_secs(5);
/// The wire, at both ends.
pub(crate) const WIRE: &str = "wire";

pub(crate) struct Lab {
    // In the order in which they have to go away.
    pub(crate) tunneld: Daemon,
    _ringd: Daemon,
    pub(crate) fluxctl: Fluxctl,
    pub(crate) dirs: Dirs,
    pub(crate) host: Netns,
    pub(crate) sender: Netns,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let [host, sender] = [Netns::new(), Netns::new()];
        for (netns, name) in [(&host, "all"), (&host, "default")] {
            netns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0");
            netns.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0");
        }
        // Senders with foreign addresses are to be refused by tunneld, not by the kernel.
        for name in ["all", "default"] {
            host.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
        }
        // Fragments without their others are given up soon.
        host.sysctl("net/ipv4/ipfrag_time", "1");
        host.sysctl("net/ipv6/ip6frag_time", "1");
        plug(&host, &sender);
        let dirs = Dirs::new();
        Lab {
            _ringd: Daemon::start("ringd", &host, &dirs, &[]),
            tunneld: Daemon::start("tunneld", &host, &dirs, &[]),
            fluxctl: Fluxctl::new(&dirs),
            dirs,
            host,
            sender,
        }
    }

    pub(crate) fn ctl(&self, line: &str) {
        self.fluxctl.run(&line.split(' ').collect::<Vec<_>>());
    }

    pub(crate) fn ring(&self, name: &str) -> RingReader {
        self.ctl(&format!("ring create {name} --size 4m"));
        RingReader::open(&self.dirs, name)
    }

    /// Makes a tunnel `in` that receives, and waits until it does.
    pub(crate) fn receive(&self, options: &str) {
        self.ctl(&format!("tunnel recv {options} --name in"));
        self.wait_state("running", "");
    }

    pub(crate) fn status(&self) -> Value {
        self.fluxctl.json(&["tunnel", "show", "in"])["status"].take()
    }

    pub(crate) fn wait_state(&self, state: &str, reason: &str) {
        wait_until(SOON, &format!("{state}: {reason}"), || {
            let status = self.status();
            let says = status["reason"].as_str().unwrap_or_default();
            let fits = if reason.is_empty() {
                says.is_empty()
            } else {
                says.contains(reason)
            };
            status["state"] == state && fits
        });
    }

    /// Waits for the status after that many packets have been received.
    pub(crate) fn after(&self, packets: u64) -> Value {
        wait_for(SOON, &format!("{packets} packets"), || {
            let status = self.status();
            let received = status["receive"]["received_packets"].as_u64();
            // Senders and rings are shown some time after the totals.
            let sockets = status["receive"]["sockets"].as_array();
            let shown = sockets.map(|sockets| {
                let counts = sockets.iter().map(|it| it["received_packets"].as_u64());
                counts.map(Option::unwrap_or_default).sum::<u64>()
            });
            (received == Some(packets) && shown == Some(packets)).then_some(status)
        })
    }

    pub(crate) fn send(&self, frames: &[Vec<u8>]) {
        send_frames(&self.sender, WIRE, frames);
    }

    /// Every frame is accounted for.
    pub(crate) fn audit(&self) {
        let mut said = String::new();
        let balanced = || {
            let output = self.fluxctl.try_run(&["audit"]);
            said = output.stdout + &output.stderr;
            output.code == 0
        };
        let balanced = std::iter::repeat_with(balanced).take(20).any(|ok| ok);
        assert!(
            balanced,
            "the audit finds frames that are not accounted for: {said}"
        );
    }
}

/// Puts the wire between the two.
pub(crate) fn plug(host: &Netns, sender: &Netns) {
    Veth::pair((host, WIRE), (sender, WIRE), 9000);
    for (netns, mac) in [(host, HOST_MAC), (sender, SENDER_MAC)] {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        netns.ip(&["link", "set", WIRE, "address", &mac]);
    }
    for address in ["10.99.0.2/24", "fd00:99::2/64"] {
        host.ip(&["addr", "add", address, "dev", WIRE]);
    }
}

/// An Ethernet frame of this number with UDP in IPv4.
pub(crate) fn inner(number: u16, size: usize) -> Vec<u8> {
    let headers = Headers {
        udp: Some((10_000 + number, 9)),
        ..Headers::default()
    };
    let mut frame = headers.frame(size.max(headers.len() + 32));
    frame[headers.len()..].fill(number.to_be_bytes()[1]);
    frame
}

/// The bytes of frames.
pub(crate) fn bytes(frames: Vec<(Meta, Vec<u8>)>) -> Vec<Vec<u8>> {
    frames.into_iter().map(|(_, bytes)| bytes).collect()
}

/// Why packets were dropped: pairs of reason and number.
pub(crate) fn drops(status: &Value) -> Vec<(String, u64)> {
    let drops = status["dropped_frames"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let drops = drops.into_iter();
    drops
        .map(|(reason, n)| (reason, n.as_u64().unwrap_or_default()))
        .collect()
}
