//! The ways to receive: AF_XDP, several threads, and what becomes of wishes that cannot be granted.

use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{
    Daemon, Generator, Lab, LabOptions, Report, Sending, Sent, Veth, need_root, wait_until,
};
use serde_json::Value;
use std::time::Duration;

const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);
/// Flows of the tests with several threads; each is a stream.
const FLOWS: u16 = 8;

/// A tap, a ring and an output, all in order.
fn tap_to_output(capture: &[&str]) -> Lab {
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&[&["rx", "add", "tap0", "cisco"], capture].concat());
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    lab
}

fn capture(lab: &Lab) -> Value {
    lab.json(&["rx", "show", "cisco-tap0"])["status"].clone()
}

fn has(value: &Value, wanted: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(wanted))
}

fn flow(stream: u16) -> Generator {
    let headers = Headers {
        udp: Some((1000 + stream, 2000)),
        ..Headers::default()
    };
    Generator::new(stream).size(100).headers(headers)
}

fn start_flows(lab: &Lab, rate: u32, count: u64) -> Vec<Sending> {
    (1..=FLOWS)
        .map(|stream| lab.taps[0].start(&flow(stream).rate(rate).count(count)))
        .collect()
}

/// Panics unless all flows arrived in order and whole, but for what the kernel dropped for want of CPU time, to the frame.
fn assert_flows(lab: &Lab, report: &Report, sent: &[Sent]) {
    let lost = lab.json(&["tx", "show", "cisco-out0"])["status"]["dropped_frames"].clone();
    assert_eq!(
        (report.kernel_drops, lost.to_string()),
        (0, "{}".to_owned())
    );
    let mut missing = 0;
    for (stream, sent) in (1..).zip(sent) {
        report.stream(stream).assert_sound();
        missing += report.stream(stream).missing(sent);
    }
    wait_until(SOON, "what is missing was dropped by the kernel", || {
        capture(lab)["kernel_dropped_frames"].as_u64() == Some(missing)
    });
    println!("{missing} frames dropped by the kernel");
}

/// Threads of rxd that read besides a capture's own.
fn helpers(lab: &Lab) -> Vec<String> {
    let tasks = format!("/proc/{}/task", lab.rxd.pid());
    let tasks = std::fs::read_dir(tasks).expect("the process lives");
    let named = tasks.flatten().filter(|task| {
        std::fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name.starts_with("capture "))
    });
    named
        .map(|task| task.path().to_string_lossy().into_owned())
        .collect()
}

fn all_arrive_by(lab: &Lab, way: &str, mode: &str) {
    let status = &capture(lab)["interfaces"][0];
    assert_eq!(status["io"], way);
    assert!(has(&status["io_reason"], mode), "{status}");
    let sink = lab.outputs[0].sink();
    let sent = lab.taps[0].send(&Generator::new(1).size(200).rate(30_000).count(30_000));
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    lab.audit();
}

#[test]
fn all_frames_arrive_in_order_by_af_xdp() {
    need_root!();
    let lab = tap_to_output(&["--io", "af_xdp"]);
    all_arrive_by(&lab, "af_xdp", "in the driver, copied once");
    assert!(
        lab.host
            .ip(&["-d", "link", "show", "tap0"])
            .contains("prog/xdp")
    );
    lab.ctl(&["rx", "delete", "cisco-tap0"]);
    assert!(
        !lab.host
            .ip(&["-d", "link", "show", "tap0"])
            .contains("prog/xdp")
    );
}

#[test]
fn low_latency_never_takes_the_interface_from_the_host_unless_told_by_name() {
    need_root!();
    let lab = tap_to_output(&["--latency", "low", "--spin", "50us"]);
    all_arrive_by(&lab, "packet", "--io af_xdp");
    lab.ctl(&["rx", "set", "cisco-tap0", "--io", "af_xdp"]);
    wait_until(SOON, "by name", || {
        capture(&lab)["interfaces"][0]["io"] == "af_xdp"
    });
    lab.wait_running();
    all_arrive_by(&lab, "af_xdp", "in the driver");
    lab.ctl(&["rx", "set", "cisco-tap0", "--io", "auto"]);
    wait_until(SOON, "the packet socket", || {
        capture(&lab)["interfaces"][0]["io"] == "packet"
    });
    lab.ctl(&["rx", "set", "cisco-tap0", "--direction", "both"]);
    lab.wait_running();
    let refused = lab
        .fluxctl
        .try_run(&["rx", "set", "cisco-tap0", "--io", "af_xdp"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("direction"), "{refused:?}");
}

#[test]
fn an_interface_is_not_taken_from_others_unless_that_is_said() {
    need_root!();
    let lab = Lab::new(2, 0);
    for ring in ["cisco", "dell", "hp"] {
        lab.ctl(&["ring", "create", ring, "--size", "4m"]);
    }
    let show = |name: &str| lab.json(&["rx", "show", name])["status"].clone();
    // An address of the host.
    lab.host.ip(&["addr", "add", "192.0.2.1/24", "dev", "tap0"]);
    lab.ctl(&[
        "rx", "add", "tap0", "cisco", "--name", "c", "--io", "af_xdp",
    ]);
    wait_until(SOON, "the reason", || {
        let status = show("c");
        status["state"] == "waiting" && has(&status["reason"], "192.0.2.1")
    });
    lab.ctl(&["rx", "set", "c", "--exclusive"]);
    wait_until(SOON, "taken", || {
        show("c")["interfaces"][0]["io"] == "af_xdp"
    });
    // Another capture of it: told by whom it is starved, until that ends.
    lab.ctl(&["rx", "add", "tap0", "dell", "--name", "d"]);
    wait_until(SOON, "starved", || {
        let status = show("d");
        status["state"] == "waiting" && has(&status["reason"], "capture \"c\" takes all frames")
    });
    lab.ctl(&["rx", "delete", "c"]);
    wait_until(SOON, "fed again", || show("d")["state"] == "running");
    lab.taps[0].send(&Generator::new(1).count(100));
    wait_until(SOON, "frames", || show("d")["received_frames"] == 100);
    // Taking it from that one is refused.
    let add = [
        "rx", "add", "tap0", "cisco", "--name", "c", "--io", "af_xdp",
    ];
    let refused = lab.fluxctl.try_run(&add);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("--exclusive"), "{refused:?}");
    // A port of a bridge.
    lab.host.ip(&["link", "add", "br0", "type", "bridge"]);
    lab.host.ip(&["link", "set", "tap1", "master", "br0"]);
    lab.ctl(&["rx", "add", "tap1", "hp", "--name", "h", "--io", "af_xdp"]);
    wait_until(SOON, "the bridge", || {
        has(&show("h")["reason"], "a port of br0")
    });
}

#[test]
fn without_the_capability_low_latency_works_and_af_xdp_by_name_waits() {
    need_root!();
    let mut lab = Lab::new(2, 1);
    lab.rxd.kill();
    let without = ["bpf", "sys_admin", "sys_nice"];
    lab.rxd = Daemon::start_without("rxd", &lab.host, &lab.dirs, &[], &without);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&["ring", "create", "dell", "--size", "4m"]);
    lab.ctl(&[
        "rx",
        "add",
        "tap0",
        "cisco",
        "--latency",
        "low",
        "--priority",
        "5",
    ]);
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    all_arrive_by(&lab, "packet", "blocks of 1 ms");
    let reason = &capture(&lab)["reason"];
    assert!(has(reason, "CAP_SYS_NICE"), "{reason}");
    lab.ctl(&["rx", "add", "tap1", "dell", "--io", "af_xdp"]);
    wait_until(SOON, "the reason", || {
        let status = lab.json(&["rx", "show", "dell-tap1"])["status"].clone();
        status["state"] == "waiting" && has(&status["reason"], "CAP_BPF")
    });
}

#[test]
fn af_xdp_follows_links_that_go_and_come_back() {
    need_root!();
    let lab = tap_to_output(&["--io", "af_xdp"]);
    let sink = lab.outputs[0].sink();
    for round in 1..=3_u16 {
        Veth::down(&lab.host, "tap0");
        wait_until(SOON, "down", || has(&capture(&lab)["reason"], "is down"));
        Veth::up(&lab.host, "tap0");
        lab.wait_running();
        let sent = lab.taps[0].send(&Generator::new(round).count(500));
        sink.wait_frames(sink.frames().max(u64::from(round - 1) * 1000 + 500), SOON);
        assert_eq!(sent.on_wire(), 500);
        lab.taps[0].unplug(&lab.host);
        wait_until(SOON, "gone", || {
            has(&capture(&lab)["reason"], "does not exist")
        });
        lab.taps[0].plug(&lab.host);
        lab.wait_running();
        lab.taps[0].send(&Generator::new(100 + round).count(500));
        sink.wait_frames(u64::from(round) * 1000, SOON);
    }
    let report = sink.stop();
    for stream in [1, 2, 3, 101, 102, 103] {
        report.stream(stream).assert_sound();
        assert_eq!(report.stream(stream).received, 500);
    }
    lab.audit();
}

#[test]
fn what_af_xdp_drops_is_counted_exactly() {
    need_root!();
    let lab = tap_to_output(&["--io", "af_xdp", "--buffer", "2M"]);
    let sink = lab.outputs[0].sink();
    lab.rxd.pause();
    let sent = lab.taps[0].send(&Generator::new(1).size(1000).rate(50_000).count(5_000));
    lab.rxd.resume();
    sink.wait_quiet(QUIET);
    let dropped = || capture(&lab)["kernel_dropped_frames"].as_u64().unwrap_or(0);
    wait_until(SOON, "the drops are counted", || dropped() > 0);
    lab.audit();
    let report = sink.stop();
    report.stream(1).assert_sound();
    assert!(dropped() > 1_000, "{}", dropped());
    assert_eq!(report.stream(1).received + dropped(), sent.on_wire());
    let ring = &lab.json(&["ring", "show", "cisco"])["status"];
    assert_eq!(ring["kernel_dropped_frames"].as_u64(), Some(dropped()));
}

#[test]
fn an_af_xdp_capture_filters_in_rxd() {
    need_root!();
    let lab = tap_to_output(&["--io", "af_xdp", "--filter", "udp port 1001"]);
    assert_eq!(capture(&lab)["filter_at"], "rxd");
    let sink = lab.outputs[0].sink();
    lab.taps[0].send(&flow(1).count(500));
    lab.taps[0].send(&flow(2).count(300));
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    assert_eq!(report.stream(1).received, 500);
    assert_eq!(report.stream(2).received, 0);
    assert_eq!(capture(&lab)["dropped_frames"]["filtered"], 300);
    lab.audit();
}

#[test]
fn flows_stay_in_order_over_several_threads() {
    need_root!();
    let lab = tap_to_output(&["--threads", "4", "--merge-window", "0"]);
    wait_until(SOON, "the other threads", || helpers(&lab).len() == 3);
    let sink = lab.outputs[0].sink();
    let flows = start_flows(&lab, 4_000, 8_000);
    let sent: Vec<_> = flows.into_iter().map(Sending::join).collect();
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    assert_flows(&lab, &report, &sent);
    let total = report.streams.values().map(|stream| stream.received).sum();
    // The figures of an interface are shown some time after.
    wait_until(SOON, "the status", || {
        let shown = capture(&lab);
        shown["published_frames"].as_u64() == Some(total)
            && shown["interfaces"][0]["received_frames"].as_u64() == Some(total)
    });
    lab.audit();
}

/// Rings, specs and links change under load: the threads stand still for that.
#[test]
fn threads_stand_still_for_changes() {
    need_root!();
    let lab = Lab::new(2, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&[
        "rx",
        "add",
        "tap0,tap1",
        "cisco",
        "--threads",
        "3",
        "--merge-window",
        "0",
        "--buffer",
        "64M",
        "--name",
        "cisco-tap0",
    ]);
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let flows = start_flows(&lab, 2_000, 12_000);
    for round in 0..6 {
        let size = ["32m", "48m", "64m"][round % 3];
        lab.ctl(&["ring", "resize", "cisco", "--size", size]);
        let snaplen = ["0", "2000"][round % 2];
        lab.ctl(&["rx", "set", "cisco-tap0", "--snaplen", snaplen]);
        lab.ctl(&["rx", "set", "cisco-tap0", "--spin", "20us", "--cpu", "0"]);
        lab.taps[1].unplug(&lab.host);
        wait_until(SOON, "gone", || {
            has(&capture(&lab)["reason"], "does not exist")
        });
        lab.taps[1].plug(&lab.host);
        lab.wait_running();
    }
    for task in helpers(&lab) {
        let status = std::fs::read_to_string(format!("{task}/status")).expect("status");
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }
    let sent: Vec<_> = flows.into_iter().map(Sending::join).collect();
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    assert_flows(&lab, &report, &sent);
    lab.audit();
}

#[test]
fn threads_wait_for_an_interface_that_is_down_and_end_in_a_full_ring_soon() {
    need_root!();
    let mut lab = Lab::new(1, 1);
    Veth::down(&lab.host, "tap0");
    lab.ctl(&["ring", "create", "cisco", "--size", "1m", "--mode", "wait"]);
    lab.ctl(&["rx", "add", "tap0", "cisco", "--threads", "4"]);
    wait_until(SOON, "down", || has(&capture(&lab)["reason"], "is down"));
    Veth::up(&lab.host, "tap0");
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    lab.txd.pause();
    let flows = start_flows(&lab, 3_000, 6_000);
    wait_until(SOON, "more than the ring holds", || {
        flows.iter().map(Sending::frames).sum::<u64>() > 20_000
    });
    lab.txd.resume();
    flows.into_iter().map(Sending::join).for_each(|_| {});
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    (1..=FLOWS).for_each(|stream| report.stream(stream).assert_sound());
    lab.audit();
    lab.txd.pause();
    let flows = start_flows(&lab, 3_000, 6_000);
    wait_until(SOON, "more than the ring holds", || {
        flows.iter().map(Sending::frames).sum::<u64>() > 20_000
    });
    let (status, took) = lab.rxd.stop();
    assert!(
        status.success() && took < Duration::from_secs(2),
        "{took:?}"
    );
    flows.into_iter().map(Sending::stop).for_each(|_| {});
    lab.txd.resume();
    // Nobody says that all is well while nobody watches.
    assert_eq!(lab.fluxctl.try_run(&["audit"]).code, 5);
    lab.rxd.restart();
    lab.wait_running();
    lab.audit();
}

/// Twice killed and started again in traffic, by AF_XDP: nothing of it stays in the interface's way.
#[test]
fn a_killed_capture_leaves_no_program_behind() {
    need_root!();
    let mut lab = tap_to_output(&["--latency", "low", "--io", "af_xdp"]);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(10_000).endless());
    for _ in 0..2 {
        sink.wait_frames(sink.frames() + 2_000, SOON);
        lab.rxd.kill();
        wait_until(SOON, "the program is gone", || {
            !lab.host
                .ip(&["-d", "link", "show", "tap0"])
                .contains("prog/xdp")
        });
        lab.rxd.restart();
        lab.wait_running();
        assert_eq!(capture(&lab)["interfaces"][0]["io"], "af_xdp");
    }
    sink.wait_frames(sink.frames() + 2_000, SOON);
    sending.stop();
    sink.wait_quiet(QUIET);
    sink.stop().stream(1).assert_sound();
    lab.audit();
}

/// A frame that is too long for AF_XDP must not be lost for the wish of low latency, which is the packet socket's.
#[test]
fn interfaces_with_long_frames_keep_the_packet_socket() {
    need_root!();
    let lab = Lab::with(&LabOptions {
        mtu: 9000,
        ..LabOptions::default()
    });
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco", "--latency", "low"]);
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    all_arrive_by(&lab, "packet", "--io af_xdp");
    let sink = lab.outputs[0].sink();
    let sent = lab.taps[0].send(&Generator::new(2).size(9_000).rate(5_000).count(1_000));
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(2, &sent);
}
