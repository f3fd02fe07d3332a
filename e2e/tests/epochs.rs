//! The books of a ring go on when it is made anew, under the daemons: the truth is what the generator sent and the sink got.

use fluxcap_e2e::{Generator, Lab, need_root, wait_until};
use fluxcap_ring::{Consumer, Observer, RingDir, RingName, RingStats, Start};
use std::fs;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
const FRAMES: u64 = 6_000;

/// One tap, one output, and a ring between them.
fn lab(ring: &[&str]) -> Lab {
    let lab = Lab::new(1, 1);
    lab.ctl(&[&["ring", "create", "r"], ring].concat());
    // What is tested is not how long the kernel can wait for rxd.
    lab.ctl(&["rx", "add", "tap0", "r", "--buffer", "128M"]);
    lab.ctl(&["tx", "add", "r", "out0"]);
    lab.wait_running();
    lab
}

fn generator() -> Generator {
    Generator::new(1).size(200).rate(4_000).count(FRAMES)
}

fn resize(lab: &Lab, size: &str) {
    lab.ctl(&["ring", "resize", "r", "--size", size]);
}

#[test]
fn a_transmit_that_stands_still_loses_nothing_of_any_epoch() {
    need_root!();
    for resizes in [1, 2] {
        let mut lab = lab(&["--size", "16m"]);
        let sink = lab.outputs[0].sink();
        let sending = lab.taps[0].start(&generator());
        sink.wait_frames(500, SOON);
        lab.txd.pause();
        for n in 0..resizes {
            resize(&lab, if n == 0 { "8m" } else { "16m" });
            // Something into each epoch.
            let before = sending.frames();
            wait_until(SOON, "frames", || sending.frames() > before + 1000);
        }
        let sent = sending.join();
        lab.txd.resume();
        sink.wait_frames(sent.on_wire(), SOON);
        sink.stop().assert_exactly(1, &sent);
        lab.audit();
        // The same over an upgrade.
        let sink = lab.outputs[0].sink();
        let sending = lab.taps[0].start(&generator());
        sink.wait_frames(500, SOON);
        lab.txd.stop();
        resize(&lab, "12m");
        let before = sending.frames();
        wait_until(SOON, "frames", || sending.frames() > before + 1000);
        lab.txd.restart();
        let sent = sending.join();
        sink.wait_frames(sent.on_wire(), SOON);
        sink.stop().assert_exactly(1, &sent);
        lab.audit();
    }
}

#[test]
fn a_ring_in_wait_mode_waits_for_a_transmit_that_is_in_the_epoch_before() {
    need_root!();
    // Far less than the frames take.
    let lab = lab(&["--size", "256k", "--mode", "wait"]);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&generator());
    sink.wait_frames(500, SOON);
    lab.txd.pause();
    resize(&lab, "128k");
    let sent = sending.join();
    lab.txd.resume();
    sink.wait_frames(sent.on_wire(), SOON);
    sink.stop().assert_exactly(1, &sent);
    lab.audit();
}

#[test]
fn many_resizes_before_readers_that_are_stopped_killed_and_late_leave_no_frame_uncounted() {
    need_root!();
    let mut lab = lab(&["--size", "64k"]);
    let sink = lab.outputs[0].sink();
    let (dir, name) = (
        RingDir::new(lab.dirs.rings()),
        RingName::parse("r").expect("a name"),
    );
    let sending = lab.taps[0].start(&generator().rate(3_000).endless());
    let mut late = None;
    for turn in 0..40 {
        match turn % 10 {
            2 => lab.txd.pause(),
            5 => lab.txd.resume(),
            7 => lab.txd.kill(),
            9 => lab.txd.restart(),
            _ => {}
        }
        if turn == 20 {
            let begun = Consumer::open(&dir, &name, "late", Start::Newest, true);
            late = Some(begun.expect("a place"));
        }
        let before = sending.frames();
        resize(&lab, ["64k", "128k", "96k"][turn % 3]);
        wait_until(SOON, "frames", || sending.frames() > before + 50);
    }
    drop(late);
    lab.wait_running();
    let sent = sending.stop();
    sink.wait_quiet(Duration::from_millis(500));
    let report = sink.stop();
    report.stream(1).assert_sound();
    let got = report.stream(1).received;
    let stats = Observer::open(&dir, &name).and_then(|ring| ring.stats());
    let stats = stats.expect("a sound ring");
    let reader = |stats: &RingStats, label: &str| {
        let mut readers = stats.readers.iter();
        readers
            .find(|it| it.label.starts_with(label))
            .expect("a reader")
            .clone()
    };
    let txd = reader(&stats, "txd ");
    let killed = txd.outcomes.iter().find(|(it, _)| it.as_str() == "killed");
    let killed = killed.map_or(0, |(_, frames)| *frames);
    let missed = sent.on_wire() - got;
    // Of those in hand when txd was killed some may have left.
    assert!(
        txd.lapped <= missed && missed <= txd.lapped + killed,
        "{missed} missed: {txd:?}"
    );
    assert_eq!(txd.delivered + txd.lapped, sent.on_wire(), "{txd:?}");
    lab.audit();
    // The late one has never read anything, and can account for all that came since it registered.
    let late = Consumer::open(&dir, &name, "late", Start::Newest, true).expect("its place");
    let stats = late.stats();
    assert_eq!(stats.delivered, 0);
    assert!(stats.lapped > 0, "{stats:?}");
    assert!(stats.lapped + stats.lag_frames < sent.on_wire());
}

#[test]
fn files_that_are_removed_under_live_workers_are_noticed_by_all_within_a_second() {
    need_root!();
    let lab = lab(&["--size", "4m"]);
    let sink = lab.outputs[0].sink();
    lab.taps[0].send(&Generator::new(1).count(100));
    sink.wait_frames(100, SOON);
    for file in ["r", ".r.readers"] {
        fs::remove_file(lab.dirs.rings().join(file)).expect("removed");
    }
    let begun = Instant::now();
    let waits = |list: &[&str]| {
        let workers = lab.json(list);
        let states = workers.as_array().expect("a list").iter();
        states.clone().count() > 0 && states.clone().all(|it| it["status"]["state"] == "waiting")
    };
    wait_until(SOON, "all wait", || {
        waits(&["rx", "list"]) && waits(&["tx", "list"])
    });
    // A second, and what a busy machine takes for the questions.
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    let told = lab.json(&["ring", "list"]);
    assert_eq!(told[0]["status"]["state"], "failed", "{told}");
    lab.ctl(&["ring", "create", "r", "--size", "4m"]);
    lab.wait_running();
    let sent = lab.taps[0].send(&Generator::new(2).count(500));
    sink.wait_frames(600, SOON);
    sink.stop().assert_exactly(2, &sent);
    lab.audit();
}
