//! Taps to outputs, through rings, under load and under change.

use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Daemon, Generator, Lab, need_root};
use fluxcap_proto::v1::capture_service_client::CaptureServiceClient;
use fluxcap_proto::v1::daemon_service_client::DaemonServiceClient;
use fluxcap_proto::v1::ring_service_client::RingServiceClient;
use fluxcap_proto::v1::transmit_service_client::TransmitServiceClient;
use fluxcap_proto::v1::{
    GetDaemonRequest, ListCapturesRequest, ListRingsRequest, ListTransmitsRequest,
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_millis(300);

/// One tap, `outputs` outputs, one ring between them.
fn replicating(outputs: usize) -> Lab {
    let lab = Lab::new(1, outputs);
    lab.ctl(&["ring", "create", "cisco", "--size", "64m"]);
    // Room for half a second: what is tested is not how long a busy machine may stand still.
    lab.ctl(&["rx", "add", "tap0", "cisco", "--buffer", "128M"]);
    for output in &lab.outputs {
        lab.ctl(&["tx", "add", "cisco", &output.name]);
    }
    lab.wait_running();
    lab
}

#[test]
fn a_tap_is_replicated_to_two_outputs_byte_for_byte_and_in_order() {
    need_root!();
    let lab = replicating(2);
    let sinks: Vec<_> = lab.outputs.iter().map(|output| output.sink()).collect();
    for size in [60, 61, 512, 1514] {
        let stream = u16::try_from(size).expect("small");
        lab.taps[0].send(&Generator::new(stream).size(size).rate(20_000).count(5_000));
    }
    for sink in sinks {
        sink.wait_quiet(QUIET);
        let report = sink.stop();
        assert_eq!((report.foreign, report.kernel_drops), (0, 0));
        for size in [60, 61, 512, 1514] {
            let stream = report.stream(size);
            stream.assert_sound();
            assert_eq!(stream.received, 5_000, "{size} bytes");
        }
    }
    lab.audit();
}

/// Point 2 of what a tap must do: a million frames of 64 bytes (60 without FCS) at 100,000 a second.
#[test]
fn a_million_small_frames_at_100_kpps_reach_both_outputs() {
    need_root!();
    let lab = replicating(2);
    let sinks: Vec<_> = lab.outputs.iter().map(|output| output.sink()).collect();
    let sent = lab.taps[0].send(&Generator::new(1).size(60).rate(100_000).count(1_000_000));
    for (output, sink) in lab.outputs.iter().zip(sinks) {
        sink.wait_quiet(QUIET);
        let report = sink.stop();
        let stream = report.stream(1);
        println!(
            "{}: {} of {} frames in {:?}, latency p50 {:?} p99 {:?}",
            output.name,
            stream.received,
            sent.frames,
            sent.elapsed,
            stream.latency.percentile(0.5),
            stream.latency.percentile(0.99)
        );
        report.assert_exactly(1, &sent);
    }
    lab.audit();
}

#[test]
fn latency_at_1_kpps_is_shown() {
    need_root!();
    let lab = replicating(2);
    let sink = lab.outputs[1].sink();
    let sent = lab.taps[0].send(&Generator::new(1).size(60).rate(1_000).count(5_000));
    sink.wait_frames(5_000, Duration::from_secs(5));
    let report = sink.stop();
    report.assert_exactly(1, &sent);
    let latency = report.stream(1).latency;
    let shown = [0.5, 0.9, 0.99, 0.999].map(|share| latency.percentile(share));
    println!(
        "latency at 1 kpps: p50 {:?} p90 {:?} p99 {:?} p99.9 {:?}",
        shown[0], shown[1], shown[2], shown[3]
    );
}

#[test]
fn several_interfaces_into_one_ring_keep_their_own_tags() {
    need_root!();
    let lab = Lab::new(2, 1);
    lab.ctl(&["ring", "create", "both", "--size", "16m"]);
    lab.ctl(&[
        "rx",
        "add",
        "tap0,tap1",
        "both",
        "--vlan-push",
        "tap0=100,tap1=200",
    ]);
    lab.ctl(&["tx", "add", "both", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let first = lab.taps[0].start(&Generator::new(1).rate(10_000).count(10_000));
    let second = lab.taps[1].start(&Generator::new(2).rate(10_000).count(10_000));
    let sent = [first.join(), second.join()];
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    assert_eq!(report.foreign, 0);
    report.stream(1).assert_complete(&sent[0]);
    report.stream(2).assert_complete(&sent[1]);
    let tags: Vec<_> = report
        .tags
        .iter()
        .map(|(tags, n)| (tags.clone(), *n))
        .collect();
    assert_eq!(
        tags,
        [(vec![(0x8100, 100)], 10_000), (vec![(0x8100, 200)], 10_000)]
    );
    lab.audit();
}

#[test]
fn several_rings_are_merged_into_one_output_by_time() {
    need_root!();
    let lab = Lab::new(2, 1);
    for (ring, tap) in [("cisco", "tap0"), ("dell", "tap1")] {
        lab.ctl(&["ring", "create", ring, "--size", "16m"]);
        lab.ctl(&["rx", "add", tap, ring]);
    }
    lab.ctl(&["tx", "add", "cisco,dell", "out0", "--merge-window", "50ms"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink_keeping(4_000);
    let first = lab.taps[0].start(&Generator::new(1).rate(2_000).count(2_000));
    let second = lab.taps[1].start(&Generator::new(2).rate(2_000).count(2_000));
    let sent = [first.join(), second.join()];
    sink.wait_quiet(QUIET);
    let report = sink.stop();
    report.stream(1).assert_complete(&sent[0]);
    report.stream(2).assert_complete(&sent[1]);
    // In the order in which they were sent, but for the time between sending and the capture's time stamp.
    let times: Vec<u64> = report
        .kept
        .iter()
        .filter_map(|frame| sent_at(frame))
        .collect();
    assert_eq!(times.len(), 4_000);
    let slack = 2_000_000;
    let late = times
        .windows(2)
        .filter(|pair| pair[1] + slack < pair[0])
        .count();
    assert!(late <= 40, "{late} of 4000 frames out of order");
    lab.audit();
}

fn sent_at(frame: &[u8]) -> Option<u64> {
    match fluxcap_e2e::payload::read(frame) {
        fluxcap_e2e::payload::Verdict::Good(identity) => Some(identity.sent_ns),
        _ => None,
    }
}

#[test]
fn edits_are_applied_in_their_order_on_both_sides() {
    need_root!();
    let lab = Lab::new(1, 3);
    lab.ctl(&["ring", "create", "cisco", "--size", "16m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    lab.ctl(&[
        "tx",
        "add",
        "cisco",
        "out0",
        "--trim",
        "4",
        "--snaplen",
        "100",
    ]);
    lab.ctl(&[
        "tx",
        "add",
        "cisco",
        "out1",
        "--filter",
        "udp dst port 2000",
        "--vlan-pop",
        "--vlan-push",
        "0x88a8:7:5:1",
    ]);
    lab.ctl(&[
        "tx", "add", "cisco", "out2", "--sample", "1/4", "--seed", "9",
    ]);
    lab.wait_running();
    let sinks: Vec<_> = lab
        .outputs
        .iter()
        .map(|output| output.sink_keeping(10_000))
        .collect();
    let tagged = |port| Headers {
        udp: Some((1000, port)),
        tags: vec![(0x8100, 55)],
        ..Headers::default()
    };
    lab.taps[0].send(
        &Generator::new(1)
            .size(514)
            .headers(tagged(1000))
            .count(1_000),
    );
    lab.taps[0].send(
        &Generator::new(2)
            .size(514)
            .headers(tagged(2000))
            .count(1_000),
    );
    let reports: Vec<_> = sinks
        .into_iter()
        .map(|sink| {
            sink.wait_quiet(QUIET);
            sink.stop()
        })
        .collect();
    assert!(reports[0].kept.iter().all(|frame| frame.len() == 100));
    assert_eq!(reports[0].kept.len(), 2_000);
    assert!(
        reports[1]
            .kept
            .iter()
            .all(|frame| frame[12..16] == [0x88, 0xa8, 0xb0, 0x07] && frame[16..18] == [8, 0])
    );
    assert_eq!(reports[1].kept.len(), 1_000);
    let sampled = reports[2].kept.len();
    assert!(
        (350..650).contains(&sampled),
        "1 in 4 of 2000 frames is {sampled}"
    );
    let shown = lab.json(&["tx", "show", "cisco-out1"]);
    assert_eq!(shown["status"]["dropped_frames"]["filtered"], 1_000);
    lab.audit();
}

#[test]
fn a_ring_is_resized_under_load_without_loss() {
    need_root!();
    let lab = replicating(1);
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(20_000).count(60_000));
    for size in ["32m", "128m", "64m"] {
        sink.wait_frames(sink.frames() + 10_000, Duration::from_secs(5));
        lab.ctl(&["ring", "resize", "cisco", "--size", size]);
    }
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    lab.audit();
}

#[test]
fn the_control_path_never_disturbs_the_data_path() {
    need_root!();
    let mut lab = replicating(2);
    let sinks: Vec<_> = lab.outputs.iter().map(|output| output.sink()).collect();
    let sending = lab.taps[0].start(&Generator::new(1).rate(30_000).count(120_000));
    while sending.frames() < 40_000 {
        lab.ctl(&["status"]);
        lab.ctl(&["rx", "set", "cisco-tap0", "--snaplen", "2000"]);
        lab.ctl(&["tx", "set", "cisco-out0", "--trim", "0"]);
        lab.ctl(&["ring", "list"]);
        lab.ctl(&["ring", "create", "other", "--size", "1m"]);
        lab.ctl(&["ring", "delete", "--force", "other"]);
    }
    lab.ringd.kill();
    while sending.frames() < 80_000 {
        lab.ctl(&["rx", "list"]);
    }
    lab.ringd.restart();
    let sent = sending.join();
    for sink in sinks {
        sink.wait_quiet(QUIET);
        sink.stop().assert_exactly(1, &sent);
    }
    let ring = lab.json(&["ring", "show", "cisco"]);
    assert_eq!(
        ring["status"]["published_frames"], 120_000,
        "the ring was adopted, not made again"
    );
    lab.audit();
}

#[test]
fn a_slow_output_does_not_slow_another() {
    need_root!();
    let lab = Lab::new(1, 2);
    lab.ctl(&["ring", "create", "small", "--size", "1m"]);
    lab.ctl(&["rx", "add", "tap0", "small"]);
    lab.ctl(&["tx", "add", "small", "out0"]);
    // A reader that never reads: a capture into a pipe that nobody empties.
    let mut stuck = lab
        .fluxctl
        .command(&["capture", "small", "-w", "-"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start fluxctl");
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let sent = lab.taps[0].send(&Generator::new(1).size(1000).rate(20_000).count(40_000));
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    stuck.kill().expect("kill fluxctl");
    stuck.wait().expect("reap fluxctl");
    lab.audit();
}

#[test]
fn a_ring_in_wait_mode_loses_nothing_to_a_slow_reader() {
    need_root!();
    let lab = Lab::new(1, 1);
    lab.ctl(&[
        "ring", "create", "patient", "--size", "1m", "--mode", "wait",
    ]);
    lab.ctl(&[
        "rx",
        "add",
        "tap0",
        "patient",
        "--buffer",
        "256M",
        "--block-size",
        "128K",
    ]);
    lab.ctl(&["tx", "add", "patient", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).size(1000).rate(10_000).count(20_000));
    sink.wait_frames(2_000, Duration::from_secs(5));
    lab.txd.pause();
    let paused = sending.frames();
    // Several rings full; meanwhile the frames wait in the kernel's buffer. It hands over a block each millisecond, however
    // few frames are in it, so it is the number of blocks that tells for how long it lasts.
    fluxcap_e2e::wait_until(Duration::from_secs(5), "the ring is full", || {
        sending.frames() > paused + 8_000
    });
    lab.txd.resume();
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    lab.audit();
}

#[test]
fn sampling_by_flow_keeps_both_directions_of_a_conversation() {
    need_root!();
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "16m"]);
    lab.ctl(&[
        "rx",
        "add",
        "tap0",
        "cisco",
        "--sample",
        "1/4",
        "--sample-by",
        "flow",
        "--seed",
        "3",
    ]);
    lab.ctl(&["tx", "add", "cisco", "out0"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink_keeping(10_000);
    let mut frames = Vec::new();
    for flow in 0..200_u16 {
        for (source, destination) in [(10_000 + flow, 80), (80, 10_000 + flow)] {
            let mut frame = Headers {
                udp: Some((source, destination)),
                ..Headers::default()
            }
            .frame(100);
            if source == 80 {
                let (a, b) = (frame[26..30].to_vec(), frame[30..34].to_vec());
                frame[26..30].copy_from_slice(&b);
                frame[30..34].copy_from_slice(&a);
            }
            frames.push(frame);
        }
    }
    lab.taps[0].send_frames(&frames);
    sink.wait_quiet(QUIET);
    let kept = sink.stop().kept;
    let port = |frame: &[u8]| {
        u16::from_be_bytes([frame[34], frame[35]]).max(u16::from_be_bytes([frame[36], frame[37]]))
    };
    let mut seen = std::collections::BTreeMap::<u16, usize>::new();
    kept.iter()
        .for_each(|frame| *seen.entry(port(frame)).or_default() += 1);
    assert!(
        (20..90).contains(&seen.len()),
        "1 in 4 of 200 flows is {}",
        seen.len()
    );
    assert!(seen.values().all(|frames| *frames == 2), "{seen:?}");
    lab.audit();
}

/// Clients that ask as fast as they can, of every daemon at once.
#[test]
fn hammering_the_api_loses_no_frame() {
    need_root!();
    let lab = replicating(2);
    let sinks: Vec<_> = lab.outputs.iter().map(|output| output.sink()).collect();
    let sending = lab.taps[0].start(&Generator::new(1).rate(20_000).count(80_000));
    let (asked, slowest) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for daemon in [&lab.ringd, &lab.rxd, &lab.txd] {
            scope.spawn(|| hammer(daemon, &asked, &slowest, || sending.frames() < 80_000));
        }
    });
    let sent = sending.join();
    for sink in sinks {
        sink.wait_quiet(QUIET);
        sink.stop().assert_exactly(1, &sent);
    }
    let slowest = Duration::from_micros(slowest.into_inner());
    println!(
        "{} calls while {} frames went through, the slowest took {slowest:?}",
        asked.into_inner(),
        sent.frames
    );
    lab.audit();
}

/// Asks a daemon for itself and for all services' lists, whoever serves them, as long as `on` says.
fn hammer(daemon: &Daemon, asked: &AtomicU64, slowest: &AtomicU64, on: impl Fn() -> bool) {
    daemon.rpc(async |channel| {
        while on() {
            let begun = Instant::now();
            let about = DaemonServiceClient::new(channel.clone())
                .get_daemon(GetDaemonRequest {})
                .await;
            assert!(about.is_ok(), "{about:?}");
            let _ = RingServiceClient::new(channel.clone())
                .list_rings(ListRingsRequest::default())
                .await;
            let _ = CaptureServiceClient::new(channel.clone())
                .list_captures(ListCapturesRequest::default())
                .await;
            let _ = TransmitServiceClient::new(channel.clone())
                .list_transmits(ListTransmitsRequest::default())
                .await;
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            slowest.fetch_max(took / 4, Relaxed);
            asked.fetch_add(4, Relaxed);
        }
    });
}
