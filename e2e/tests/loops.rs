//! Nothing goes round: who would make a loop is refused, in whatever order it is made; what could not be known before waits; and beneath
//! both, what was sent from a ring does not come into it again.

use fluxcap_e2e::mirrord::Mirrord;
use fluxcap_e2e::{Generator, Lab, Sent, need_root, wait_until};
use fluxcap_ring::{RingDir, RingName};
use fluxcap_socket::{Origin, Outgoing, SendReport, Sendmmsg, Transmitter};
use serde_json::Value;
use std::time::Duration;

const QUIET: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(20);

/// A host with all daemons that interfaces and rings need.
fn lab(taps: usize, outputs: usize) -> (Lab, Mirrord) {
    let lab = Lab::new(taps, outputs);
    let mirrord = Mirrord::start(&lab.host, &lab.dirs);
    for ring in ["a", "b"] {
        lab.ctl(&["ring", "create", ring, "--size", "1m"]);
    }
    (lab, mirrord)
}

fn status(lab: &Lab, noun: &str, name: &str) -> Value {
    lab.json(&[noun, "show", name])["status"].clone()
}

fn is(lab: &Lab, noun: &str, name: &str, state: &str) -> bool {
    status(lab, noun, name)["state"] == state
}

/// One part of what could go round: a command, and the name of what it makes.
type Part<'p> = (&'p str, &'p str, &'p [&'p str]);

const TX_A: Part<'_> = ("tx", "a-out0", &["a", "out0"]);
const TX_B: Part<'_> = ("tx", "b-out1", &["b", "out1"]);

fn command<'p>((noun, _, args): Part<'p>) -> Vec<&'p str> {
    [&[noun, "add"], args].concat()
}

/// Has all parts but one, and wants that to be refused, with the way round and what to do.
fn refused_as_last(lab: &Lab, parts: &[Part<'_>], last: usize) {
    let others: Vec<Part<'_>> = (parts.iter().enumerate())
        .filter(|(at, _)| *at != last)
        .map(|(_, part)| *part)
        .collect();
    for part in &others {
        lab.ctl(&command(*part));
        wait_until(SOON, "it runs", || is(lab, part.0, part.1, "running"));
    }
    let refused = lab.fluxctl.try_run(&command(parts[last]));
    assert_eq!(refused.code, 4, "{:?}: {refused:?}", parts[last]);
    for text in ["--allow-loop", "feeds ring", "ring a -> out0 ->"] {
        assert!(refused.stderr.contains(text), "{refused:?}");
    }
    for (noun, name, _) in others {
        lab.ctl(&[noun, "delete", name]);
    }
}

#[test]
fn what_closes_a_loop_is_refused_in_every_order() {
    need_root!();
    let (lab, _mirrord) = lab(0, 2);
    let sources: [Part<'_>; 4] = [
        ("rx", "a-out0", &["out0", "a", "--direction", "both"]),
        ("rx", "a-out0", &["out0", "a", "--direction", "out"]),
        ("rx", "a-out0", &["out0", "a"]),
        ("mirror", "out0-a", &["out0", "--to", "ring:a"]),
    ];
    for source in sources {
        let parts = [TX_A, source];
        (0..2).for_each(|last| refused_as_last(&lab, &parts, last));
    }
    // Through two rings.
    let parts: [Part<'_>; 4] = [
        TX_A,
        ("rx", "b-out0", &["out0", "b", "--direction", "both"]),
        TX_B,
        ("mirror", "out1-a", &["out1", "--to", "ring:a"]),
    ];
    (0..4).for_each(|last| refused_as_last(&lab, &parts, last));
    // By another name of the same interface.
    lab.host
        .ip(&["link", "property", "add", "dev", "out0", "altname", "other"]);
    let renamed: Part<'_> = ("rx", "a-other", &["other", "a", "--direction", "both"]);
    (0..2).for_each(|last| refused_as_last(&lab, &[TX_A, renamed], last));
    // What is allowed is done.
    lab.ctl(&["tx", "add", "a", "out0"]);
    for source in [sources[0], sources[3]] {
        let (noun, name, args) = source;
        lab.ctl(&[&[noun, "add"], args, &["--allow-loop"]].concat());
        wait_until(SOON, "it runs", || is(&lab, noun, name, "running"));
        lab.ctl(&[noun, "delete", name]);
    }
}

/// Two taps that are joined, each of which takes what arrives only: the way of a tap in line.
#[test]
fn two_interfaces_joined_by_two_rings_are_no_loop() {
    need_root!();
    let (lab, _mirrord) = lab(0, 2);
    lab.ctl(&["rx", "add", "out0", "a"]);
    lab.ctl(&["tx", "add", "a", "out1"]);
    lab.ctl(&["rx", "add", "out1", "b"]);
    lab.ctl(&["tx", "add", "b", "out0"]);
    lab.wait_running();
    let (left, right) = (lab.outputs[0].sink(), lab.outputs[1].sink());
    let (from_left, from_right) = (Generator::new(1).count(500), Generator::new(2).count(500));
    let sent = [
        lab.outputs[0].send(&from_left),
        lab.outputs[1].send(&from_right),
    ];
    right.wait_frames(500, SOON);
    left.wait_frames(500, SOON);
    left.wait_quiet(QUIET);
    right.stop().assert_exactly(1, &sent[0]);
    left.stop().assert_exactly(2, &sent[1]);
}

/// A loop that no ring tells of: a mirror in the kernel takes the frames from the output to an interface that feeds the ring.
fn round_by_a_mirror(io: &str) {
    let (lab, _mirrord) = lab(1, 3);
    lab.ctl(&["mirror", "add", "out0", "--to", "dev:out1"]);
    wait_until(SOON, "the mirror runs", || {
        is(&lab, "mirror", "out0-out1", "running")
    });
    lab.ctl(&["tx", "add", "a", "out0", "--io", io]);
    lab.ctl(&[
        "rx",
        "add",
        "tap0,out1",
        "a",
        "--direction",
        "both",
        "--name",
        "round",
    ]);
    // Into a ring that does not feed it, a copy of what is sent is welcome.
    lab.ctl(&["rx", "add", "out0", "b", "--direction", "both"]);
    lab.ctl(&["tx", "add", "b", "out2"]);
    lab.wait_running();
    let sinks: Vec<_> = lab.outputs.iter().map(|port| port.sink()).collect();
    let sent: Sent = lab.taps[0].send(&Generator::new(1).count(300).rate(5_000));
    for sink in &sinks {
        sink.wait_frames(sent.frames, SOON);
        sink.wait_quiet(QUIET);
    }
    for sink in sinks {
        sink.stop().assert_exactly(1, &sent);
    }
    let counted = status(&lab, "rx", "round")["dropped_frames"]["loop_guard"].clone();
    let counted = counted.as_u64().or_else(|| counted.as_str()?.parse().ok());
    assert_eq!(counted, Some(sent.frames), "{io}");
    lab.audit();
}

#[test]
fn what_was_sent_from_a_ring_by_packet_socket_does_not_come_into_it_again() {
    need_root!();
    round_by_a_mirror("sendmmsg");
}

#[test]
fn what_was_sent_from_a_ring_by_the_tc_program_does_not_come_into_it_again() {
    need_root!();
    round_by_a_mirror("tc");
}

/// Sends frames out of out0 that tell of an origin.
fn send_from(lab: &Lab, origin: Origin, count: usize) {
    let mut frame = [0xff; 60];
    (frame[12], frame[13]) = (0x88, 0xb5);
    let frame = Outgoing {
        pieces: [&frame, &[], &[]],
        outputs: 1,
    };
    lab.host.run(|| {
        let index = nix::net::if_::if_nametoindex("out0").expect("it is there");
        let mut socket = Sendmmsg::open(index, false).expect("a packet socket");
        socket.set_origin(origin);
        let mut reports = [SendReport::default()];
        socket.send(&vec![frame; count], &mut reports);
        assert_eq!(reports[0].sent, count as u64, "{reports:?}");
    });
}

#[test]
fn frames_tell_captures_and_mirrors_from_which_ring_they_are() {
    need_root!();
    let (lab, _mirrord) = lab(0, 3);
    lab.ctl(&[
        "rx",
        "add",
        "out0",
        "a",
        "--direction",
        "both",
        "--filter",
        "len < 1000",
    ]);
    lab.ctl(&["mirror", "add", "out0", "--to", "ring:b"]);
    lab.ctl(&["tx", "add", "a", "out1"]);
    lab.ctl(&["tx", "add", "b", "out2"]);
    lab.wait_running();
    wait_until(SOON, "the mirror runs", || {
        is(&lab, "mirror", "out0-b", "running")
    });
    let sinks = [lab.outputs[1].sink(), lab.outputs[2].sink()];
    let dir = RingDir::new(lab.dirs.rings());
    let ring = |name: &str| {
        let name = RingName::parse(name).expect("a name");
        Origin::ring(dir.fingerprint(&name))
    };
    send_from(&lab, ring("a"), 11);
    send_from(&lab, ring("b"), 13);
    send_from(&lab, Origin::SEVERAL, 17);
    send_from(&lab, ring("another"), 19);
    send_from(&lab, Origin::UNKNOWN, 23);
    for (sink, own) in sinks.into_iter().zip([13, 11]) {
        sink.wait_frames(own + 19 + 23, SOON);
        sink.wait_quiet(QUIET);
        assert_eq!(sink.frames(), own + 19 + 23);
    }
    lab.audit();
}

#[test]
fn a_loop_that_comes_later_waits_and_says_so() {
    need_root!();
    let (mut lab, _mirrord) = lab(0, 2);
    // It says that there is no such interface.
    let waiting = lab
        .fluxctl
        .try_run(&["tx", "add", "a", "later", "--wait=2"]);
    assert_eq!(waiting.code, 3, "{waiting:?}");
    lab.ctl(&["rx", "add", "out0", "a", "--direction", "both"]);
    wait_until(SOON, "it runs", || is(&lab, "rx", "a-out0", "running"));
    let sink = lab.outputs[0].sink();
    // The output gets a name that makes it the interface that feeds the ring.
    let name = ["dev", "out0", "altname", "later"];
    lab.host
        .ip(&[&["link", "property", "add"], &name[..]].concat());
    let waits = |lab: &Lab, noun: &str, name: &str| {
        let status = status(lab, noun, name);
        let reason = status["reason"].as_str().unwrap_or_default();
        status["state"] == "waiting" && reason.contains("--allow-loop")
    };
    wait_until(SOON, "the transmit waits", || waits(&lab, "tx", "a-later"));
    lab.outputs[0].send(&Generator::new(1).count(100));
    sink.wait_quiet(QUIET);
    assert_eq!(sink.stop().stream(1).received, 0, "nothing is sent back");
    // Over again when the name is another's.
    lab.host
        .ip(&[&["link", "property", "del"], &name[..]].concat());
    lab.host
        .ip(&["link", "property", "add", "dev", "out1", "altname", "later"]);
    wait_until(SOON, "the transmit runs", || {
        is(&lab, "tx", "a-later", "running")
    });
    lab.ctl(&["tx", "delete", "a-later"]);

    // At restore: rxd comes back to a ring that is sent to its interface by now.
    lab.rxd.stop();
    lab.ctl(&["ring", "delete", "a"]);
    lab.ctl(&["ring", "create", "a", "--size", "1m"]);
    lab.ctl(&["tx", "add", "a", "out0"]);
    wait_until(SOON, "it runs", || is(&lab, "tx", "a-out0", "running"));
    lab.rxd.restart();
    wait_until(SOON, "the capture waits", || waits(&lab, "rx", "a-out0"));
    lab.ctl(&["tx", "delete", "a-out0"]);
    wait_until(SOON, "the capture runs", || {
        is(&lab, "rx", "a-out0", "running")
    });
}
