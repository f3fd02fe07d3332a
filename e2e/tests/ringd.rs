//! Rings as the other daemons meet them: other backings, damage, deletion.

use fluxcap_e2e::{Generator, Lab, need_root, wait_until};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn a_ring_in_posix_shared_memory_carries_frames_and_outlives_its_maker() {
    need_root!();
    let mut lab = Lab::new(1, 1);
    let ring = format!("shm:flux-test-{}", std::process::id());
    lab.ctl(&["ring", "create", &ring, "--size", "4m"]);
    lab.ctl(&["rx", "add", "tap0", &ring, "--name", "in"]);
    lab.ctl(&["tx", "add", &ring, "out0", "--name", "out"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    lab.ringd.kill();
    let sent = lab.taps[0].send(&Generator::new(1).count(5_000));
    sink.wait_frames(5_000, SOON);
    sink.stop().assert_exactly(1, &sent);
    lab.ringd.restart();
    let shown = lab.json(&["ring", "show", &ring])["status"].clone();
    assert_eq!(
        (
            shown["backing"].as_str(),
            shown["published_frames"].as_u64()
        ),
        (Some("shm"), Some(5_000))
    );
    lab.ctl(&["audit", &ring]);
    lab.ctl(&["ring", "delete", "--force", &ring]);
}

#[test]
fn a_damaged_ring_stops_its_reader_with_a_reason_and_a_new_one_starts_it_again() {
    need_root!();
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "1m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(20_000).endless());
    sink.wait_frames(5_000, SOON);
    // Another process writes all over the data area.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(lab.dirs.rings().join("cisco"))
        .expect("open the ring");
    let size = file.metadata().expect("size").len();
    let status = || lab.json(&["tx", "show", "cisco-out0"])["status"].clone();
    // What was read already harms nobody, so it happens to frames that wait to be read.
    lab.txd.pause();
    let paused = sending.frames();
    wait_until(SOON, "frames that wait", || {
        sending.frames() > paused + 3_000
    });
    for place in (size - (1 << 20)..size - 64).step_by(4096) {
        file.write_at(&[0xa5; 64], place).expect("write");
    }
    lab.txd.resume();
    wait_until(SOON, "the ring is quarantined", || {
        status()["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("ring delete cisco"))
    });
    println!("{}", status()["reason"]);
    lab.ctl(&["ring", "delete", "--force", "cisco"]);
    lab.ctl(&["ring", "create", "cisco", "--size", "1m"]);
    wait_until(SOON, "running again", || status()["state"] == "running");
    let seen = sink.frames();
    wait_until(SOON, "frames again", || sink.frames() > seen + 1_000);
    sending.stop();
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    assert_eq!(
        (report.stream(1).duplicates, report.stream(1).reordered),
        (0, 0)
    );
}
