//! One transmit with several interfaces, by each way of sending.

use fluxcap_e2e::{Generator, Lab, LabOptions, Veth, need_root, wait_until};
use serde_json::Value;
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);

/// A tap and outputs behind one transmit, named `all`, with these options.
fn replicating(options: &LabOptions<'_>, transmit: &[&str]) -> Lab {
    let lab = Lab::with(options);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco", "--buffer", "128M"]);
    let outputs: Vec<_> = lab.outputs.iter().map(|port| port.name.as_str()).collect();
    let outputs = outputs.join(",");
    lab.ctl(&[&["tx", "add", "cisco", &outputs, "--name", "all"], transmit].concat());
    lab.wait_running();
    lab
}

fn outputs(count: usize) -> LabOptions<'static> {
    LabOptions {
        outputs: count,
        ..LabOptions::default()
    }
}

fn interface(lab: &Lab, place: usize) -> Value {
    lab.json(&["tx", "show", "all"])["status"]["interfaces"][place].clone()
}

fn wait_io(lab: &Lab, place: usize, io: &str) {
    wait_until(SOON, io, || interface(lab, place)["io"] == io);
}

/// Every byte of every frame at both outputs, at a rate at which batches are large.
fn replicates(lab: &Lab, io: &str) {
    for place in 0..2 {
        wait_io(lab, place, io);
    }
    for (stream, size) in [(1, 60), (2, 508), (3, 1514)] {
        let sinks = [lab.outputs[0].sink(), lab.outputs[1].sink()];
        let sent = lab.taps[0].send(&Generator::new(stream).size(size).rate(60_000).count(60_000));
        for sink in sinks {
            sink.wait_quiet(QUIET);
            sink.stop().assert_exactly(stream, &sent);
        }
    }
    let status = lab.json(&["tx", "show", "all"])["status"].clone();
    assert_eq!(status["delivered_frames"], 180_000);
    assert_eq!(status["copied_frames"], 180_000);
    assert_eq!(status["sent_frames"], 360_000);
    for place in 0..2 {
        let interface = interface(lab, place);
        assert_eq!(interface["sent_frames"], 180_000, "{interface}");
        assert_eq!(interface["io"], io, "{interface}");
    }
    lab.audit();
}

#[test]
fn live_frames_reach_both_outputs_and_are_what_auto_takes_on_a_veth() {
    need_root!();
    let lab = replicating(&outputs(2), &[]);
    lab.outputs.iter().for_each(|port| port.queue(true));
    replicates(&lab, "live");
}

#[test]
fn clones_reach_both_outputs_when_asked_for() {
    need_root!();
    replicates(&replicating(&outputs(2), &["--io", "tc"]), "tc");
}

#[test]
fn packet_sockets_reach_both_outputs_when_asked_for() {
    need_root!();
    replicates(&replicating(&outputs(2), &["--io", "sendmmsg"]), "sendmmsg");
}

#[test]
fn af_xdp_sockets_reach_both_outputs_when_asked_for() {
    need_root!();
    let lab = replicating(&outputs(2), &["--io", "af_xdp"]);
    replicates(&lab, "af_xdp");
    let why = interface(&lab, 0)["io_reason"].clone();
    assert!(
        why.as_str()
            .is_some_and(|why| why.contains("copied by the kernel")),
        "{why}"
    );
}

/// One peer takes live frames and the other does not, and later they change places: nothing is lost or out of order.
#[test]
fn auto_finds_out_what_each_peer_takes_without_losing_a_frame() {
    need_root!();
    let lab = replicating(&outputs(2), &[]);
    lab.outputs[0].queue(true);
    wait_io(&lab, 0, "live");
    wait_io(&lab, 1, "tc");
    let sinks = [lab.outputs[0].sink(), lab.outputs[1].sink()];
    let sending = lab.taps[0].start(&Generator::new(1).rate(60_000).count(600_000));
    assert!(
        interface(&lab, 1)["io_reason"]
            .as_str()
            .is_some_and(|why| why.contains("fluxctl output prepare"))
    );
    assert_eq!(interface(&lab, 0)["io"], "live");
    lab.outputs[1].queue(true);
    wait_until(
        Duration::from_secs(8),
        "live frames are tried again",
        || interface(&lab, 1)["io"] == "live",
    );
    let sent = sending.join();
    for sink in sinks {
        sink.wait_quiet(QUIET);
        sink.stop().assert_exactly(1, &sent);
    }
    lab.audit();
}

#[test]
fn live_frames_asked_for_by_name_that_the_peer_does_not_take_are_counted_and_it_says_so() {
    need_root!();
    let lab = replicating(&outputs(1), &["--io", "live"]);
    wait_io(&lab, 0, "live");
    let sent = lab.taps[0].send(&Generator::new(1).rate(60_000).count(20_000));
    wait_until(SOON, "all are counted", || {
        let interface = interface(&lab, 0);
        let refused = interface["dropped_frames"]["refused"].as_u64().unwrap_or(0);
        let frames = interface["sent_frames"].as_u64().unwrap_or(0);
        refused > 0 && frames + refused == sent.frames
    });
    wait_until(SOON, "the reason", || {
        let why = interface(&lab, 0)["io_reason"].clone();
        why.as_str()
            .is_some_and(|why| why.contains("fluxctl output prepare"))
    });
    lab.audit();
}

#[test]
fn an_output_that_goes_away_under_load_costs_the_other_nothing_and_is_served_again() {
    need_root!();
    let lab = replicating(&outputs(2), &[]);
    lab.outputs.iter().for_each(|port| port.queue(true));
    wait_io(&lab, 0, "live");
    let (steady, flapping) = (lab.outputs[0].sink(), lab.outputs[1].sink());
    let sending = lab.taps[0].start(&Generator::new(1).rate(60_000).count(360_000));
    for round in 1..=3 {
        flapping.wait_frames(round * 20_000, SOON);
        lab.outputs[1].unplug(&lab.host);
        wait_until(SOON, "it is missed", || {
            interface(&lab, 1)["reason"] == "interface out1 does not exist"
        });
        lab.outputs[1].plug(&lab.host);
        lab.outputs[1].queue(true);
    }
    let sent = sending.join();
    steady.wait_quiet(QUIET);
    steady.stop().assert_exactly(1, &sent);
    flapping.wait_quiet(QUIET);
    flapping.stop().stream(1).assert_sound();
    let interface = interface(&lab, 1);
    let dropped = interface["dropped_frames"].as_object().map(|counts| {
        let counts = counts.values().filter_map(Value::as_u64);
        counts.sum::<u64>()
    });
    let accounted = interface["sent_frames"].as_u64().zip(dropped);
    assert_eq!(
        accounted.map(|(s, d)| s + d),
        Some(sent.frames),
        "{interface}"
    );
    lab.audit();
}

#[test]
fn an_output_that_is_renamed_goes_on_and_says_so() {
    need_root!();
    let lab = replicating(&outputs(2), &[]);
    let sinks: Vec<_> = lab.outputs.iter().map(|port| port.sink()).collect();
    Veth::rename(&lab.host, "out1", "out9");
    wait_until(SOON, "the new name is shown", || {
        interface(&lab, 1)["reason"] == "out1 is renamed to out9"
    });
    let status = lab.json(&["tx", "show", "all"])["status"].clone();
    assert_eq!(status["state"], "running", "{status}");
    assert_eq!(status["reason"], "out1 is renamed to out9");
    let sent = lab.taps[0].send(&Generator::new(1).rate(20_000).count(2_000));
    for sink in sinks {
        sink.wait_quiet(QUIET);
        sink.stop().assert_exactly(1, &sent);
    }
    Veth::rename(&lab.host, "out9", "out1");
    wait_until(SOON, "the remark is gone", || {
        interface(&lab, 1)["reason"] == ""
    });
    lab.audit();
}

#[test]
fn frames_are_cut_for_the_output_with_the_smaller_mtu_only() {
    need_root!();
    let lab = replicating(&outputs(2), &["--oversize", "truncate"]);
    lab.outputs.iter().for_each(|port| port.queue(true));
    Veth::set_mtu(&lab.host, "out1", 1000);
    wait_until(SOON, "the MTU is seen", || {
        interface(&lab, 1)["mtu"] == 1000
    });
    let (whole, cut) = (lab.outputs[0].sink(), lab.outputs[1].sink_keeping(1));
    let sent = lab.taps[0].send(&Generator::new(1).size(1514).rate(20_000).count(20_000));
    whole.wait_quiet(QUIET);
    whole.stop().assert_exactly(1, &sent);
    cut.wait_quiet(QUIET);
    let report = cut.stop();
    assert_eq!(report.stream(1).cut, sent.frames);
    assert_eq!(report.kept[0].len(), 1014);
    lab.audit();
}

#[test]
fn without_the_capabilities_it_falls_back_and_says_which_would_give_what() {
    need_root!();
    let lab = replicating(
        &LabOptions {
            without: &["bpf", "perfmon", "sys_admin"],
            ..outputs(2)
        },
        &[],
    );
    lab.outputs.iter().for_each(|port| port.queue(true));
    let why = |part: &str| {
        wait_until(SOON, part, || {
            let why = interface(&lab, 0)["io_reason"].clone();
            why.as_str().is_some_and(|why| why.contains(part))
        });
    };
    why("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    why("tc: ");
    replicates(&lab, "sendmmsg");
}

/// A killed txd with two interfaces: nothing is doubled, and the books close.
#[test]
fn a_kill_is_accounted_for_with_two_interfaces() {
    need_root!();
    let mut lab = replicating(&outputs(2), &[]);
    lab.outputs.iter().for_each(|port| port.queue(true));
    let sinks = [lab.outputs[0].sink(), lab.outputs[1].sink()];
    let sending = lab.taps[0].start(&Generator::new(1).rate(40_000).count(200_000));
    for round in 1..=4 {
        sinks[0].wait_frames(20_000 * round, SOON);
        lab.txd.kill();
        lab.txd.restart();
    }
    let sent = sending.join();
    for sink in sinks {
        sink.wait_quiet(QUIET);
        let report = sink.stop();
        report.stream(1).assert_sound();
        let missing = report.stream(1).missing(&sent);
        assert!(missing <= 4 * 512, "missing {missing}");
    }
    lab.audit();
}

/// More than packet sockets can pass on: what is lost is lost under its name, what arrives is whole and in order, and control works.
#[test]
fn overload_is_counted_and_leaves_control_alone() {
    need_root!();
    let mut lab = replicating(&outputs(4), &["--io", "sendmmsg"]);
    let sinks = [lab.outputs[0].sink(), lab.outputs[3].sink()];
    let sending = lab.taps[0].start(&Generator::new(1).size(1000).full_rate().count(800_000));
    let mut slowest = Duration::ZERO;
    while sending.frames() < 800_000 {
        let asked = Instant::now();
        let _ = lab.json(&["tx", "show", "all"]);
        slowest = slowest.max(asked.elapsed());
    }
    let sent = sending.join();
    for sink in sinks {
        sink.wait_quiet(QUIET);
        let report = sink.stop();
        let stream = report.stream(1);
        stream.assert_sound();
        println!("missing {} of {}", stream.missing(&sent), sent.frames);
        assert!(stream.missing(&sent) > 0, "this was no overload");
    }
    println!("slowest fluxctl {slowest:?}");
    lab.audit();
    let (status, took) = lab.txd.stop();
    assert!(
        status.success() && took < Duration::from_secs(1),
        "{status} after {took:?}"
    );
}

/// An output behind a slow line takes what it can; the transmit next to it does not notice.
#[test]
fn a_slow_line_slows_no_other_transmit() {
    need_root!();
    let lab = Lab::new(1, 2);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco", "--buffer", "128M"]);
    for output in ["out0", "out1"] {
        lab.ctl(&["tx", "add", "cisco", output, "--io", "sendmmsg"]);
    }
    let mut command = lab.host.command("tc");
    command.args([
        "qdisc", "add", "dev", "out0", "root", "tbf", "rate", "1mbit",
    ]);
    command.args(["burst", "3000", "limit", "20000"]);
    assert!(command.status().is_ok_and(|status| status.success()));
    lab.wait_running();
    let sinks = [lab.outputs[0].sink(), lab.outputs[1].sink()];
    let sent = lab.taps[0].send(&Generator::new(1).size(500).rate(20_000).count(60_000));
    let [slow, fast] = sinks;
    fast.wait_quiet(QUIET);
    fast.stop().assert_exactly(1, &sent);
    slow.wait_quiet(QUIET);
    slow.stop().stream(1).assert_sound();
    let status = lab.json(&["tx", "show", "cisco-out0"])["status"].clone();
    assert!(
        status["dropped_frames"]["enobufs"].as_u64() > Some(0),
        "{status}"
    );
}
