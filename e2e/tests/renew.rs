//! `fluxctl rx set` of what makes rxd open its sockets anew: every frame of a running stream comes out exactly once.

use std::time::Duration;

use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Generator, Lab, Report, Sent, need_root, wait_until};
use serde_json::Value;

const QUIET: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(10);
/// Frames a second, each way.
const RATE: u32 = 5_000;

fn stream(number: u16) -> Generator {
    let headers = Headers {
        udp: Some((1000 + number, 2000)),
        ..Headers::default()
    };
    let stream = Generator::new(number).headers(headers);
    stream.size(100).rate(RATE).endless()
}

fn lab(capture: &[&str]) -> Lab {
    let lab = Lab::new(2, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    lab.ctl(&[&["rx", "add", "tap0", "cisco", "--name", "c"], capture].concat());
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    lab
}

fn status(lab: &Lab) -> Value {
    lab.json(&["rx", "show", "c"])["status"].clone()
}

fn attached(lab: &Lab) -> u64 {
    status(lab)["interfaces"][0]["attached"]
        .as_u64()
        .unwrap_or(0)
}

/// Changes the capture, and waits until new sockets have taken the place of those before.
fn set(lab: &Lab, options: &[&str]) {
    let before = attached(lab);
    lab.ctl(&[&["rx", "set", "c"], options].concat());
    wait_until(SOON, &options.join(" "), || attached(lab) > before);
}

/// Every frame arrived once and in order, or was dropped by the kernel for want of CPU time and counted.
#[track_caller]
fn assert_once(lab: &Lab, report: &Report, sent: &[(u16, Sent)]) {
    assert_eq!(report.kernel_drops, 0, "the sink itself lost frames");
    let mut missing = 0;
    for (stream, sent) in sent {
        report.stream(*stream).assert_sound();
        missing += report.stream(*stream).missing(sent) - sent.refused - sent.dropped;
    }
    let dropped = || status(lab)["kernel_dropped_frames"].as_u64().unwrap_or(0);
    wait_until(SOON, "what is missing was dropped by the kernel", || {
        dropped() == missing
    });
    println!("{sent:?}: {missing} dropped by the kernel");
    assert!(missing < u64::from(RATE), "{missing} frames dropped");
    lab.audit();
}

#[test]
fn sockets_are_opened_anew_without_a_frame_lost_or_doubled() {
    need_root!();
    for filter in [&[][..], &["--filter", "udp"]] {
        let lab = lab(&[&["--direction", "both"], filter].concat());
        let sink = lab.outputs[0].sink();
        let arriving = lab.taps[0].start(&stream(1));
        let leaving = stream(2).start(&lab.host, "tap0");
        sink.wait_frames(2_000, SOON);
        for options in [
            &["--buffer", "16M"][..],
            &["--threads", "3"],
            &["--block-retire", "2ms"],
            &["--no-promiscuous"],
            &["--threads", "2", "--block-size", "128K"],
            &[
                "--threads",
                "1",
                "--no-promiscuous=false",
                "--snaplen",
                "90000",
            ],
        ] {
            set(&lab, options);
            sink.wait_frames(sink.frames() + 500, SOON);
        }
        let sent = [(1, arriving.stop()), (2, leaving.stop())];
        sink.wait_quiet(QUIET);
        assert_once(&lab, &sink.stop(), &sent);
    }
}

#[test]
fn a_direction_that_stays_is_captured_without_a_break() {
    need_root!();
    let lab = lab(&["--direction", "in"]);
    let sink = lab.outputs[0].sink();
    let arriving = lab.taps[0].start(&stream(1));
    sink.wait_frames(1_000, SOON);
    for direction in ["both", "in", "both"] {
        set(&lab, &["--direction", direction]);
        sink.wait_frames(sink.frames() + 500, SOON);
    }
    let sent = [(1, arriving.stop())];
    sink.wait_quiet(QUIET);
    assert_once(&lab, &sink.stop(), &sent);
    let sink = lab.outputs[0].sink();
    let leaving = stream(2).start(&lab.host, "tap0");
    sink.wait_frames(1_000, SOON);
    for direction in ["out", "both", "out"] {
        set(&lab, &["--direction", direction]);
        sink.wait_frames(sink.frames() + 500, SOON);
    }
    let sent = [(2, leaving.stop())];
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    report.stream(2).assert_sound();
    let missing = report.stream(2).missing(&sent[0].1) - sent[0].1.dropped;
    let dropped = status(&lab)["kernel_dropped_frames"].as_u64().unwrap_or(0);
    assert!(missing <= dropped, "{missing} missing, {dropped} dropped");
    lab.audit();
}

#[test]
fn a_buffer_that_cannot_be_had_leaves_the_capture_as_it_was() {
    need_root!();
    let lab = lab(&[]);
    let sink = lab.outputs[0].sink();
    let arriving = lab.taps[0].start(&stream(1));
    sink.wait_frames(1_000, SOON);
    // Frames that a driver cannot hand to AF_XDP with such an MTU are a matter for packet sockets.
    fluxcap_e2e::Veth::set_mtu(&lab.host, "tap0", 65_535);
    lab.ctl(&["rx", "set", "c", "--io", "af_xdp"]);
    wait_until(SOON, "the reason", || {
        status(&lab)["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("goes on as before"))
    });
    sink.wait_frames(sink.frames() + 1_000, SOON);
    let sent = [(1, arriving.stop())];
    sink.wait_quiet(QUIET);
    assert_once(&lab, &sink.stop(), &sent);
}

/// All frames that the books of the ring know of.
fn counted(lab: &Lab) -> u64 {
    let status = lab.json(&["ring", "show", "cisco"])["status"].clone();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let dropped = status["dropped_frames"].as_object().cloned();
    let missed = status["sources"].as_array().cloned().unwrap_or_default();
    let dropped: u64 = dropped.iter().flatten().map(|(_, n)| number(n)).sum();
    let missed: u64 = missed.iter().map(|it| number(&it["missed_frames"])).sum();
    println!("{status}");
    number(&status["published_frames"])
        + number(&status["kernel_dropped_frames"])
        + dropped
        + missed
}

#[test]
fn what_passes_while_nobody_captures_is_missed_or_the_audit_does_not_close() {
    need_root!();
    for (options, leaves) in [
        (
            &["--direction", "in", "--filter", "udp port 1001"][..],
            false,
        ),
        (&["--direction", "out"], true),
        (&["--direction", "both", "--filter", "udp port 1002"], true),
    ] {
        let mut lab = lab(options);
        let arriving = lab.taps[0].start(&stream(1));
        let leaving = leaves.then(|| stream(2).start(&lab.host, "tap0"));
        for _ in 0..3 {
            let received = || status(&lab)["received_frames"].as_u64().unwrap_or(0);
            wait_until(SOON, "frames", || received() > 500);
            let (at, arrived) = (arriving.frames(), || arriving.frames());
            lab.rxd.kill();
            wait_until(SOON, "frames while nobody captures", || {
                arrived() > at + 500
            });
            lab.rxd.restart();
            lab.wait_running();
        }
        let mut sent = arriving.stop().on_wire();
        if let Some(leaving) = leaving {
            // What the driver drops has been seen by the capture.
            let leaving = leaving.stop();
            sent += leaving.frames - leaving.refused;
        }
        // What is in the books is not in flight any more, once they say so.
        wait_until(SOON, "the books are still", || {
            let before = counted(&lab);
            std::thread::sleep(QUIET);
            counted(&lab) == before
        });
        let audit = lab.fluxctl.try_run(&["audit"]);
        println!(
            "{options:?}: {sent} sent, {} counted, {audit:?}",
            counted(&lab)
        );
        assert!(
            audit.stdout.contains("passed while nobody captured"),
            "{audit:?}"
        );
        assert!(audit.code != 0 || counted(&lab) == sent, "{sent} sent");
        assert!(counted(&lab).abs_diff(sent) <= sent / 100, "{sent} sent");
    }
}

#[test]
fn time_in_which_nobody_can_tell_what_passed_is_not_proven() {
    need_root!();
    let mut lab = lab(&[]);
    lab.taps[0].send(&stream(1).count(500));
    wait_until(SOON, "in the ring", || counted(&lab) == 500);
    lab.audit();
    lab.rxd.kill();
    lab.taps[0].unplug(&lab.host);
    lab.taps[0].plug(&lab.host);
    lab.taps[0].send(&stream(2).count(500));
    lab.rxd.restart();
    lab.wait_running();
    let audit = lab.fluxctl.try_run(&["audit", "-o", "json"]);
    assert_eq!(audit.code, 5, "{audit:?}");
    assert_eq!(audit.json()["verdict"], "unknown", "{audit:?}");
    assert!(audit.stdout.contains("not watched for"), "{audit:?}");
    let unwatched = status(&lab)["interfaces"][0]["unwatched_ns"].as_u64();
    assert!(unwatched.is_some_and(|ns| ns > 0), "{unwatched:?}");
}
