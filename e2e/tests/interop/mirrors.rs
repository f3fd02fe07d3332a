//! What mirrors encapsulate in the kernel, without any tunnel device, the stock kernel decapsulates.
//!
//! ```text
//!   frames --> GEN --veth-- TAP --> mirror --> relay program --> WIRE --> the guest's device of the case --> SIDE
//! ```

use std::time::{Duration, Instant};

use fluxcap_e2e::kernel_peer::{MTU, SIDE};
use fluxcap_e2e::{Netns, Sink, SinkOptions, Veth, send_frames};

use crate::frames::{Inner, frames};
use crate::{Lab, PATIENCE, SMALL_MTU, guest};

/// The interface that is mirrored, and the one that feeds it.
const TAP: &str = "tap0";
const GEN: &str = "gen0";

/// Case, where a mirror sends to (`{remote}` is the guest's address), bytes in front of what it carries.
#[rustfmt::skip]
const TARGETS: &[(&str, &str, usize)] = &[
    ("gretap",                   "gretap:{remote}",       24),
    ("gretap key",               "gretap:{remote},key=77", 28),
    ("vxlan",                    "vxlan:{remote},vni=42", 36),
    ("geneve",                   "geneve:{remote},vni=7", 36),
    ("gretap in gue, no key",    "gue:{remote},l2",       36),
    ("ipip in gue",              "gue:{remote}",          32),
    ("sit in gue",               "gue:{remote}",          32),
    ("ip6gretap",                "gretap:{remote}",       44),
    ("vxlan over IPv6",          "vxlan:{remote},vni=43", 56),
    ("geneve over IPv6",         "geneve:{remote},vni=8", 56),
    ("ip6gretap in gue, no key", "gue:{remote},l2",       56),
    ("ip6tnl in gue",            "gue:{remote}",          52),
];

/// The wire with traffic to be mirrored, and nobody who would add to it.
pub(crate) fn set_up(host: &Netns) {
    Veth::pair((host, TAP), (host, GEN), MTU);
    for name in [TAP, GEN] {
        host.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
    }
}

impl Lab {
    /// Mirrors send, the guest decapsulates: what comes out of its devices is what was mirrored; cut or left out when the wire is too small.
    pub(crate) fn mirrors_encapsulate(&mut self, mtu: u32) {
        let policies: &[&str] = match mtu {
            SMALL_MTU => &["truncate", "drop"],
            _ => &["truncate"],
        };
        for &(name, target, overhead) in TARGETS {
            let number = self.cases.iter().find(|(_, case)| case.name == name);
            let number = *number.expect("a case of this name").0;
            for policy in policies {
                self.mirror(number, target, policy);
                let room = usize::try_from(mtu).expect("small") - overhead;
                self.compare(number, mtu, policy, room);
                self.fluxctl.run(&["mirror", "delete", "m"]);
            }
        }
    }

    fn mirror(&self, number: u8, target: &str, policy: &str) {
        let outer = self.cases[&number].outer;
        let (ours, theirs) = guest::ends(outer, number);
        let theirs = if outer == 6 {
            format!("[{theirs}]")
        } else {
            theirs
        };
        let target = target.replace("{remote}", &theirs);
        let to = format!("{target},local={ours},mtu={policy}");
        let command = [
            "mirror",
            "add",
            TAP,
            "--name",
            "m",
            "--direction",
            "in",
            "--to",
            &to,
        ];
        self.fluxctl.run(&command);
        fluxcap_e2e::wait_until(PATIENCE, &format!("a mirror runs to {to}"), || {
            self.fluxctl.json(&["mirror", "show", "m"])["status"]["state"] == "running"
        });
    }

    /// Sends the frames of a case past the mirror. `room` is the longest that it can carry whole.
    fn compare(&mut self, number: u8, mtu: u32, policy: &str, room: usize) {
        let carries = self.cases[&number].carries;
        let inner = frames(number, carries);
        let carried = inner.iter().filter_map(|inner| inner.carried(carries));
        let wanted: Vec<Vec<u8>> = match policy {
            "drop" => carried
                .filter(|bytes| bytes.len() <= room)
                .map(<[u8]>::to_vec)
                .collect(),
            _ => carried
                .map(|bytes| bytes[..bytes.len().min(room)].to_vec())
                .collect(),
        };
        let options = SinkOptions {
            keep: usize::MAX,
            buffer_bytes: 16 << 20,
        };
        let side = Sink::with(&self.host, SIDE, options);
        let sent: Vec<Vec<u8>> = inner.into_iter().map(|Inner { frame, .. }| frame).collect();
        send_frames(&self.host, GEN, &sent);
        let begun = Instant::now();
        while side.frames() < wanted.len() as u64 && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        side.wait_quiet(Duration::from_millis(50));
        let arrived = side.stop().kept;
        let way = format!("mirrored, {policy}");
        if wanted != arrived {
            println!("{:#}", self.fluxctl.json(&["mirror", "show", "m"]));
        }
        self.judge(&way, mtu, number, &wanted, &arrived);
        let status = &self.fluxctl.json(&["mirror", "show", "m"])["status"];
        let figure = |name: &str| status[name].as_u64().unwrap_or(0);
        let dropped = status["dropped_frames"].as_object();
        let dropped: u64 = dropped.map_or(0, |d| d.values().filter_map(|n| n.as_u64()).sum());
        if figure("seen_frames") != figure("mirrored_frames") + dropped {
            self.faults.push(format!(
                "{way}: the books of the mirror do not close: {status:#}"
            ));
        }
    }
}
