//! The books of a ring go on when it is made anew, under the daemons: the truth is what the generator sent and the sink got.

use fluxcap_e2e::payload::{self, Verdict};
use fluxcap_e2e::{Generator, Lab, need_root, wait_until};
use fluxcap_ring::{Batch, Consumer, Observer, Outcome, Poll, RingDir, RingName, RingStats, Start};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
const FRAMES: u64 = 6_000;

/// One tap, one output, and a ring between them.
fn lab(ring: &[&str], rx: &[&str]) -> Lab {
    let lab = Lab::new(1, 1);
    lab.ctl(&[&["ring", "create", "r"], ring].concat());
    // What is tested is not how long the kernel can wait for rxd.
    lab.ctl(&[&["rx", "add", "tap0", "r", "--buffer", "128M"], rx].concat());
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

/// Stops txd, but not within the microseconds in which it has the lock of the ring directory: until it goes on nobody could make a
/// ring, which says so after 5 s and is not what is tested.
fn pause(lab: &Lab) {
    wait_until(SOON, "txd stands outside of the lock", || {
        lab.txd.pause();
        let rings = fs::File::open(lab.dirs.rings()).expect("the directory");
        // Others have it for a moment, too.
        let free = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(1));
            rings.try_lock().is_ok()
        });
        if !free {
            lab.txd.resume();
        }
        free
    });
}

#[test]
fn a_transmit_that_stands_still_loses_nothing_of_any_epoch() {
    need_root!();
    for resizes in [1, 2] {
        let mut lab = lab(&["--size", "16m"], &[]);
        let sink = lab.outputs[0].sink();
        let sending = lab.taps[0].start(&generator());
        sink.wait_frames(500, SOON);
        pause(&lab);
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
    // How long the kernel can wait for rxd is at such a rate a matter of how many blocks it has, not of bytes: one of them is closed
    // each time that a frame has waited in it for long enough. 1024 times 8 ms are far more than the generator takes.
    let blocks = ["--block-size", "128K", "--block-retire", "8ms"];
    // Far less than the frames take.
    let lab = lab(&["--size", "256k", "--mode", "wait"], &blocks);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&generator());
    sink.wait_frames(500, SOON);
    pause(&lab);
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
    let mut lab = lab(&["--size", "64k"], &[]);
    let sink = lab.outputs[0].sink();
    let (dir, name) = (
        RingDir::new(lab.dirs.rings()),
        RingName::parse("r").expect("a name"),
    );
    let sending = lab.taps[0].start(&generator().rate(3_000).endless());
    let (mut late, mut late_by) = (None, 0);
    for turn in 0..40 {
        match turn % 10 {
            2 => pause(&lab),
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
        if turn == 20 {
            late_by = sending.frames();
        }
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
    // The late one has never read anything: it goes on in the epoch in which it registered, or the oldest that is left, and can
    // account for all that came since.
    assert_eq!(sent.on_wire(), sent.frames, "the numbers have no gaps");
    let mut late = Consumer::open(&dir, &name, "late", Start::Newest, true).expect("its place");
    assert_eq!(late.stats().delivered, 0);
    let (mut batch, mut first, mut next) = (Batch::new(1 << 20, 1024), None, 0);
    wait_until(SOON, "the late one has read all", || {
        match late.poll(&mut batch).expect("a sound ring") {
            Poll::Frames(frames) => {
                for frame in batch.frames() {
                    let Verdict::Good(identity) = payload::read(frame.data) else {
                        panic!("a frame that nobody sent");
                    };
                    assert!(identity.seq >= next, "a frame twice, or late");
                    next = identity.seq + 1;
                }
                late.add_outcome(Outcome::Written, frames as u64);
                let stats = late.stats();
                // By each frame, whatever was overwritten or cut off before it.
                let begun = next - stats.delivered - stats.lapped;
                assert_eq!(*first.get_or_insert(begun), begun, "{stats:?}");
            }
            Poll::Empty => {}
            Poll::Retired => {
                late.advance().expect("advanced");
            }
        }
        next == sent.frames
    });
    let first = first.expect("frames");
    assert!(0 < first && first <= late_by, "{first}, {late_by}");
    lab.audit();
}

#[test]
fn files_that_are_removed_under_live_workers_are_noticed_by_all_within_a_second() {
    need_root!();
    let lab = lab(&["--size", "4m"], &[]);
    let sink = lab.outputs[0].sink();
    let before = lab.taps[0].send(&Generator::new(1).count(100));
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
    // The same sink had those before, too.
    let report = sink.stop();
    assert_eq!((report.kernel_drops, report.foreign), (0, 0));
    assert!(report.streams.keys().eq(&[1, 2]), "{:?}", report.streams);
    report.stream(1).assert_complete(&before);
    report.stream(2).assert_complete(&sent);
    lab.audit();
}
