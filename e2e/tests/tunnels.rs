//! Two tunneld at the ends of a wire whose MTU is shorter than what they send.

use std::time::Duration;

use fluxcap_e2e::payload::{Headers, Identity, stamp};
use fluxcap_e2e::{
    Daemon, Dirs, Fluxctl, Netns, RingReader, RingWriter, Veth, need_root, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// The longest untagged frame of an MTU of 1500.
const LONG: usize = 1514;
const FRAMES: u64 = 50;
/// What a receiver of IP packets puts in front of them.
const SYNTHESIZED: [u8; 14] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];

/// Kinds and options of `fluxctl tunnel send` and `recv`, whether they carry IP only.
const KINDS: [(&str, &str, bool); 13] = [
    ("gre --key 5", "gre --key 5", true),
    ("gretap", "gretap", false),
    (
        "gretap --key 7 --csum --seq",
        "gretap --key 7 --csum --seq",
        false,
    ),
    ("nvgre --vni 5000", "nvgre --vni 5000", false),
    ("erspan --erspan-ver 0", "erspan --session none", false),
    (
        "erspan --erspan-ver 1 --session 1",
        "erspan --session 1",
        false,
    ),
    (
        "erspan --erspan-ver 2 --session 2",
        "erspan --session 2",
        false,
    ),
    ("vxlan --vni 42", "vxlan --vni 42", false),
    ("geneve --vni 42", "geneve --vni 42", false),
    ("gue", "gue", true),
    ("gue --inner gretap --key 9", "gue --key 9", false),
    ("fou --dport 5555", "fou --dport 5555", true),
    ("ipip", "ipip", true),
];

/// A namespace with ringd and tunneld.
struct Host {
    _tunneld: Daemon,
    _ringd: Daemon,
    fluxctl: Fluxctl,
    dirs: Dirs,
    _netns: Netns,
    /// IPv4 and IPv6.
    addresses: [String; 2],
}

impl Host {
    fn status(&self, tunnel: &str) -> Value {
        self.fluxctl.json(&["tunnel", "show", tunnel])["status"].take()
    }
}

/// Two hosts and the wire between them, MTU 1500.
fn pair() -> [Host; 2] {
    let [near, far] = [Netns::new(), Netns::new()];
    for netns in [&near, &far] {
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "0");
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0");
    }
    Veth::pair((&near, "wire"), (&far, "wire"), 1500);
    let host = |netns: Netns, number: u8| {
        let addresses = [format!("10.0.0.{number}"), format!("fd00::{number}")];
        for (address, prefix) in addresses.iter().zip([24, 64]) {
            netns.ip(&["addr", "add", &format!("{address}/{prefix}"), "dev", "wire"]);
        }
        let dirs = Dirs::new();
        Host {
            _ringd: Daemon::start("ringd", &netns, &dirs, &[]),
            _tunneld: Daemon::start("tunneld", &netns, &dirs, &[]),
            fluxctl: Fluxctl::new(&dirs),
            dirs,
            _netns: netns,
            addresses,
        }
    };
    [host(near, 1), host(far, 2)]
}

/// One tunnel between the two.
struct Tunnel<'h> {
    near: &'h Host,
    far: &'h Host,
    from: RingWriter,
    to: RingReader,
    carries_ip: bool,
    what: String,
}

impl<'h> Tunnel<'h> {
    fn new(
        [near, far]: &'h [Host; 2],
        kind: (&str, &str, bool),
        outer: usize,
        policy: &str,
    ) -> Tunnel<'h> {
        let (send, receive, carries_ip) = kind;
        for host in [near, far] {
            host.fluxctl
                .run(&["ring", "create", "ring", "--size", "4m"]);
        }
        let (name, options) = words(receive);
        far.fluxctl.run(
            &[
                &["tunnel", "recv", name, "ring", "--name", "in"],
                &options[..],
            ]
            .concat(),
        );
        let (name, options) = words(send);
        let remote = &far.addresses[outer];
        let command = [
            "tunnel",
            "send",
            "ring",
            name,
            remote,
            "--mtu-policy",
            policy,
            "--name",
            "out",
        ];
        near.fluxctl.run(&[&command, &options[..]].concat());
        let tunnel = Tunnel {
            near,
            far,
            from: RingWriter::open(&near.dirs, "ring"),
            to: RingReader::open(&far.dirs, "ring"),
            carries_ip,
            what: format!("{send} to {remote}, {policy}"),
        };
        wait_until(SOON, &format!("{} runs", tunnel.what), || {
            near.status("out")["state"] == "running" && far.status("in")["state"] == "running"
        });
        tunnel
    }

    /// What the receiver makes of a frame.
    fn received(&self, frame: &[u8]) -> Vec<u8> {
        if self.carries_ip {
            [&SYNTHESIZED, &frame[14..]].concat()
        } else {
            frame.to_vec()
        }
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        for (host, tunnel) in [(self.near, "out"), (self.far, "in")] {
            let _ = host.fluxctl.try_run(&["tunnel", "delete", tunnel]);
            let _ = host.fluxctl.try_run(&["ring", "delete", "--force", "ring"]);
        }
    }
}

fn words(text: &str) -> (&str, Vec<&str>) {
    let mut words = text.split(' ');
    (words.next().unwrap_or_default(), words.collect())
}

/// UDP in IPv4, each of another flow.
fn frames(size: usize) -> Vec<Vec<u8>> {
    let frame = |seq| {
        let headers = Headers {
            udp: Some((10_000 + u16::try_from(seq).unwrap_or(0), 9)),
            ..Headers::default()
        };
        let mut frame = headers.frame(size);
        let identity = Identity {
            stream: 1,
            seq,
            sent_ns: 0,
        };
        stamp(&mut frame, headers.len(), identity);
        frame
    };
    (0..FRAMES).map(frame).collect()
}

#[test]
fn frames_that_do_not_fit_arrive_whole_in_fragments() {
    need_root!();
    let hosts = pair();
    for outer in [0, 1] {
        for kind in KINDS {
            let mut tunnel = Tunnel::new(&hosts, kind, outer, "fragment");
            let sent = frames(LONG);
            tunnel.from.publish(sent.iter().map(|frame| &**frame));
            let wanted: Vec<_> = sent.iter().map(|frame| tunnel.received(frame)).collect();
            let arrived = tunnel.to.take(wanted.len(), SOON);
            let whole = arrived
                .iter()
                .all(|(meta, frame)| meta.wire_len as usize == frame.len());
            let arrived: Vec<_> = arrived.into_iter().map(|(_, frame)| frame).collect();
            assert!(
                arrived == wanted && whole,
                "{}: {} of {} arrived; {:#} {:#}",
                tunnel.what,
                arrived.len(),
                wanted.len(),
                tunnel.near.status("out"),
                tunnel.far.status("in")
            );
            settled(&tunnel, |status| {
                status["send"]["fragmented_frames"] == FRAMES
            });
        }
    }
}

#[test]
fn frames_that_do_not_fit_are_cut_and_keep_their_length_where_the_format_can_tell() {
    need_root!();
    let hosts = pair();
    for outer in [0, 1] {
        for kind in KINDS {
            let mut tunnel = Tunnel::new(&hosts, kind, outer, "truncate");
            let sent = frames(LONG);
            tunnel.from.publish(sent.iter().map(|frame| &**frame));
            let arrived = tunnel.to.take(sent.len(), SOON);
            assert_eq!(arrived.len(), sent.len(), "{}", tunnel.what);
            // IP says its own length; ERSPAN II and III say that a frame was cut, and IP in it how long it was; Geneve has our option.
            let (options, _, carries_ip) = kind;
            let tells =
                carries_ip || options.contains("--session") || options.starts_with("geneve");
            for ((meta, frame), sent) in arrived.iter().zip(&sent) {
                let whole = tunnel.received(sent);
                assert!(
                    frame.len() < whole.len() && whole.starts_with(frame),
                    "{}",
                    tunnel.what
                );
                let wire_len = if tells { LONG } else { frame.len() };
                assert_eq!(meta.wire_len as usize, wire_len, "{}", tunnel.what);
            }
            settled(&tunnel, |status| {
                status["send"]["truncated_frames"] == FRAMES
                    && status["send"]["fragmented_frames"] == 0
            });
        }
    }
}

#[test]
fn frames_that_do_not_fit_are_counted_when_they_are_to_be_dropped() {
    need_root!();
    let hosts = pair();
    for kind in KINDS {
        let mut tunnel = Tunnel::new(&hosts, kind, 0, "drop");
        let [long, short] = [LONG, 1000].map(frames);
        tunnel
            .from
            .publish(long.iter().chain(&short).map(|frame| &**frame));
        let arrived = tunnel.to.take(short.len(), SOON);
        assert_eq!(arrived.len(), short.len(), "{}", tunnel.what);
        settled(&tunnel, |status| {
            status["dropped_frames"]["oversize"] == FRAMES
                && status["send"]["sent_frames"] == FRAMES
        });
    }
}

/// Waits until the sender's status is as it should be: figures are shown some times a second.
#[track_caller]
fn settled(tunnel: &Tunnel<'_>, holds: impl Fn(&Value) -> bool) {
    let mut status = Value::Null;
    wait_until(
        SOON,
        &format!("{}: the figures are right", tunnel.what),
        || {
            status = tunnel.near.status("out");
            holds(&status)
        },
    );
}
