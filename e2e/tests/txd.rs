//! Transmit: laps, restarts, kills, and outputs that come and go.

use fluxcap_e2e::{Generator, Lab, Veth, need_root, wait_until};
use serde_json::Value;
use std::time::Duration;

const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);

fn tap_to_output(ring: &str, transmit: &[&str]) -> Lab {
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", ring]);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    lab.ctl(&[&["tx", "add", "cisco", "out0"], transmit].concat());
    lab.wait_running();
    lab
}

fn transmit(lab: &Lab) -> Value {
    lab.json(&["tx", "show", "cisco-out0"])["status"].clone()
}

fn reader(lab: &Lab) -> Value {
    lab.json(&["ring", "show", "cisco"])["status"]["readers"][0].clone()
}

/// Point 3: delivered + lapped = published, exactly.
#[test]
fn a_transmit_that_stood_still_counts_exactly_what_it_lost() {
    need_root!();
    let lab = tap_to_output("4m", &[]);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(50_000).count(300_000));
    sink.wait_frames(20_000, SOON);
    lab.txd.pause();
    let stopped = sending.frames();
    wait_until(SOON, "three seconds of frames", || {
        sending.frames() >= stopped + 150_000
    });
    lab.txd.resume();
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    report.stream(1).assert_sound();
    let reader = reader(&lab);
    let (delivered, lapped) = (
        reader["delivered_frames"].as_u64(),
        reader["lapped_frames"].as_u64(),
    );
    let published = lab.json(&["ring", "show", "cisco"])["status"]["published_frames"].as_u64();
    println!("published {published:?} = delivered {delivered:?} + lapped {lapped:?}");
    assert_eq!(published, Some(sent.on_wire()));
    assert_eq!(delivered.zip(lapped).map(|(d, l)| d + l), published);
    assert_eq!(lapped, Some(report.stream(1).missing(&sent)));
    assert!(lapped > Some(50_000));
    lab.audit();
}

#[test]
fn nothing_is_replayed_after_a_restart_and_nothing_lost() {
    need_root!();
    let mut lab = tap_to_output("32m", &[]);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(20_000).count(80_000));
    for round in 1..=3 {
        sink.wait_frames(10_000 * round, SOON);
        let (status, took) = lab.txd.stop();
        assert!(
            status.success() && took < Duration::from_secs(2),
            "{status} after {took:?}"
        );
        lab.txd.restart();
    }
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    lab.audit();
}

/// Point 4 for txd: what a kill leaves unknown is at most a batch, and it is counted.
#[test]
fn a_kill_doubles_nothing_and_what_it_costs_is_counted() {
    need_root!();
    let mut lab = tap_to_output("32m", &[]);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(20_000).count(100_000));
    for round in 1..=5 {
        sink.wait_frames(10_000 * round, SOON);
        lab.txd.kill();
        lab.txd.restart();
    }
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    report.stream(1).assert_sound();
    let missing = report.stream(1).missing(&sent);
    let killed = reader(&lab)["outcomes"]["killed"].as_u64().unwrap_or(0);
    println!(
        "missing {missing}, counted as killed {killed}, longest silence {:?}",
        report.stream(1).longest_silence
    );
    assert!(
        missing <= killed && killed <= 5 * 512,
        "missing {missing}, killed {killed}"
    );
    lab.audit();
}

#[test]
fn frames_beyond_the_mtu_are_skipped_and_counted_and_do_not_stop_the_others() {
    need_root!();
    let lab = tap_to_output("16m", &[]);
    Veth::set_mtu(&lab.host, "out0", 1000);
    wait_until(SOON, "the MTU is seen", || {
        transmit(&lab)["interfaces"][0]["mtu"] == 1000
    });
    let sink = lab.outputs[0].sink();
    lab.taps[0].send(&Generator::new(1).size(1014).count(500));
    lab.taps[0].send(&Generator::new(2).size(1015).count(500));
    lab.taps[0].send(&Generator::new(3).size(60).count(500));
    sink.wait_frames(1_000, SOON);
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    assert_eq!(
        [1, 2, 3].map(|stream| report.stream(stream).received),
        [500, 0, 500]
    );
    assert_eq!(transmit(&lab)["dropped_frames"]["oversize"], 500);
    lab.audit();
}

#[test]
fn frames_for_an_output_that_is_down_or_gone_are_counted_and_it_resumes() {
    need_root!();
    let lab = tap_to_output("16m", &[]);
    let reason = |part: &str| {
        wait_until(SOON, part, || {
            transmit(&lab)["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains(part))
        });
    };
    let running = || {
        wait_until(SOON, "running", || transmit(&lab)["state"] == "running");
    };
    let dropped = |name: &str, frames: u64| {
        wait_until(SOON, name, || {
            transmit(&lab)["dropped_frames"][name].as_u64() == Some(frames)
        });
    };
    Veth::down(&lab.host, "out0");
    reason("is down");
    lab.taps[0].send(&Generator::new(1).count(100));
    dropped("link_down", 100);
    Veth::up(&lab.host, "out0");
    running();
    Veth::down(&lab.outputs[0].outside, "wire");
    reason("no carrier");
    lab.taps[0].send(&Generator::new(2).count(100));
    dropped("no_carrier", 100);
    Veth::up(&lab.outputs[0].outside, "wire");
    running();
    lab.outputs[0].unplug(&lab.host);
    reason("does not exist");
    lab.taps[0].send(&Generator::new(3).count(100));
    dropped("no_interface", 100);
    lab.outputs[0].plug(&lab.host);
    running();
    let sink = lab.outputs[0].sink();
    let sent = lab.taps[0].send(&Generator::new(4).count(100));
    sink.wait_frames(100, SOON);
    sink.stop().assert_exactly(4, &sent);
    lab.audit();
}

#[test]
fn a_ring_that_is_missing_is_waited_for_and_one_made_anew_is_followed() {
    need_root!();
    let lab = Lab::new(1, 1);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    wait_until(SOON, "waiting", || {
        transmit(&lab)["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("fluxctl ring create cisco"))
    });
    let sink = lab.outputs[0].sink();
    for round in 1..=3 {
        lab.ctl(&["ring", "create", "cisco", "--size", "4m"]);
        lab.wait_running();
        lab.taps[0].send(&Generator::new(round).count(500));
        sink.wait_frames(500 * u64::from(round), SOON);
        lab.ctl(&["ring", "delete", "--force", "cisco"]);
        wait_until(SOON, "waiting", || transmit(&lab)["state"] == "waiting");
    }
    let report = sink.stop();
    (1..=3).for_each(|round| assert_eq!(report.stream(round).received, 500));
}

#[test]
fn a_loop_is_refused_unless_it_is_allowed() {
    need_root!();
    let lab = tap_to_output("4m", &[]);
    let refused = lab.fluxctl.try_run(&["tx", "add", "cisco", "tap0"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("--allow-loop"), "{refused:?}");
    lab.ctl(&["tx", "add", "cisco", "tap0", "--allow-loop"]);
    let sink = lab.taps[0].sink();
    let sent = lab.taps[0].send(&Generator::new(1).count(100));
    sink.wait_quiet(QUIET);
    // Sent back once; what rxd's own host sends is not captured again.
    assert_eq!(sink.stop().stream(1).received, sent.frames);
}

#[test]
fn a_ring_without_traffic_does_not_throttle_the_one_that_is_merged_with_it() {
    need_root!();
    let lab = Lab::new(2, 1);
    for (ring, tap) in [("busy", "tap0"), ("idle", "tap1")] {
        lab.ctl(&["ring", "create", ring, "--size", "64m"]);
        lab.ctl(&["rx", "add", tap, ring, "--buffer", "128M"]);
    }
    lab.ctl(&["tx", "add", "busy,idle", "out0", "--merge-window", "20ms"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let sent = lab.taps[0].send(&Generator::new(1).rate(100_000).count(200_000));
    // With a window of 20 ms for each batch of 256 frames, this would take 15 s.
    sink.wait_frames(200_000, Duration::from_secs(3));
    let report = sink.stop();
    report.assert_exactly(1, &sent);
    println!(
        "latency p50 {:?}, p99 {:?}",
        report.stream(1).latency.percentile(0.5),
        report.stream(1).latency.percentile(0.99)
    );
    lab.audit();
}
