//! The identity on rings made by hand.

use super::identity::{Line, Moment, Verdict};
use super::*;
use fluxcap_ring::{
    Backing, Mode, Outcome, ProducerInfo, ReaderStats, RingInfo, RingState, SourceStats,
};

/// A ring whose books close: 110 frames at the kernel, 100 received, 90 published, 40 delivered, one of them to two interfaces.
fn sound() -> RingStats {
    let info = RingInfo {
        name: "cisco".parse().unwrap(),
        epoch: 1,
        capacity: 1 << 20,
        mode: Mode::Overwrite,
        backing: Backing::Ramfs,
        footprint: 1 << 20,
        created_ns: 0,
        base_pos: 0,
    };
    let source = SourceStats {
        index: 0,
        name: "eth1".into(),
        kernel_frames: 110,
        kernel_drops: 10,
        received: 100,
        received_at_read: 100,
        published: 90,
        missed: 0,
        uncertain: 0,
        unwatched_ns: 0,
        place: None,
    };
    let reader = ReaderStats {
        slot: 0,
        label: "txd".into(),
        pid: 1,
        live: true,
        attach_seq: 31,
        next_seq: 81,
        delivered: 40,
        delivered_bytes: 4000,
        lapped: 7,
        corrupt: 2,
        skipped: 1,
        lag_frames: 10,
        lag_bytes: 1000,
        outcomes: vec![
            (Outcome::Sent, 36),
            (Outcome::Oversize, 5),
            (Outcome::Truncated, 3),
            (Outcome::Copied, 1),
        ],
        outputs: Vec::new(),
    };
    RingStats {
        info,
        state: RingState::Live,
        producer: Some(ProducerInfo {
            holder: "rxd".into(),
            pid: 1,
            live: true,
        }),
        first_seq: 1,
        last_seq: 90,
        published_frames: 90,
        published_bytes: 9000,
        committed_bytes: 12_000,
        last_timestamp_ns: 0,
        late_frames: 0,
        drops: vec![(fluxcap_ring::DropReason::Filtered, 10)],
        sources: vec![source],
        readers: vec![reader],
        gone: fluxcap_ring::GoneReaders::default(),
    }
}

/// With all daemons answering.
fn lines(a: &RingStats, b: &RingStats, moment: Moment) -> Vec<Line> {
    identity::lines(a, b, &[], moment, |_| false)
}

fn verdicts(a: &RingStats, b: &RingStats, moment: Moment) -> Vec<(&'static str, Verdict)> {
    lines(a, b, moment)
        .iter()
        .map(|line| (line.stage, line.verdict))
        .collect()
}

/// The stages of a still ring that are not closed.
fn open(ring: &RingStats) -> Vec<(&'static str, Verdict)> {
    let mut open = verdicts(ring, ring, Moment::Still);
    open.retain(|(_, verdict)| *verdict != Verdict::Ok);
    open
}

#[test]
fn the_books_of_a_sound_ring_close_at_all_stages() {
    let lines = lines(&sound(), &sound(), Moment::Still);
    assert_eq!(lines.len(), 7);
    assert!(
        lines
            .iter()
            .all(|line| line.residual == 0 && line.bound == 0),
        "{lines:?}"
    );
}

#[test]
fn frames_behind_later_ones_are_told_and_are_no_fault() {
    let mut ring = sound();
    let order = |ring: &RingStats| lines(ring, ring, Moment::Still).pop();
    assert_eq!(order(&ring).map(|line| line.verdict), Some(Verdict::Ok));
    ring.late_frames = 1500;
    let line = order(&ring).expect("a line on order");
    assert_eq!((line.stage, line.verdict), ("order", Verdict::Info));
    assert!(
        line.note.starts_with(&crate::output::count(1500)),
        "{line:?}"
    );
    assert_eq!(line.residual, 0);
}

#[test]
fn one_frame_too_few_or_too_many_is_found_at_its_stage() {
    let with = |change: fn(&mut RingStats)| {
        let mut ring = sound();
        change(&mut ring);
        open(&ring)
    };
    assert_eq!(
        with(|ring| ring.sources[0].kernel_frames += 1),
        [("I1 kernel", Verdict::Failed)]
    );
    assert_eq!(
        with(|ring| ring.sources[0].received += 1),
        [("I2 rxd", Verdict::Failed)]
    );
    assert_eq!(
        with(|ring| ring.drops[0].1 += 1),
        [("I2 rxd", Verdict::Failed)]
    );
    let published = with(|ring| {
        ring.published_frames += 1;
        ring.last_seq += 1;
    });
    assert_eq!(published, [("I3 ring", Verdict::Failed)]);
    assert_eq!(
        with(|ring| ring.readers[0].lapped += 1),
        [("I4 reader", Verdict::Failed)]
    );
    assert_eq!(
        with(|ring| ring.readers[0].outcomes[0].1 -= 1),
        [("I5 output", Verdict::Failed)]
    );
    assert_eq!(
        with(|ring| ring.readers[0].outcomes[3].1 += 1),
        [("I5 output", Verdict::Failed)]
    );
}

#[test]
fn a_reader_ahead_of_its_ring_is_found() {
    let mut ring = sound();
    ring.readers[0].next_seq += 20;
    ring.readers[0].lapped += 20;
    assert_eq!(open(&ring), [("I4 reader", Verdict::Failed)]);
}

#[test]
fn frames_on_the_way_are_no_hole_while_traffic_flows() {
    let mut later = sound();
    later.sources[0].received += 50;
    later.sources[0].published += 40;
    later.published_frames += 40;
    later.last_seq += 40;
    let stages = verdicts(&sound(), &later, Moment::Moving);
    assert!(
        stages.contains(&("I2 rxd", Verdict::InFlight)),
        "{stages:?}"
    );
    assert!(
        stages
            .iter()
            .all(|(_, verdict)| *verdict != Verdict::Failed),
        "{stages:?}"
    );
}

#[test]
fn frames_out_of_nowhere_are_found_while_traffic_flows() {
    let mut later = sound();
    later.sources[0].published += 40;
    let mut earlier = sound();
    earlier.sources[0].published += 41;
    let stages = verdicts(&earlier, &later, Moment::Moving);
    assert!(stages.contains(&("I2 rxd", Verdict::Failed)), "{stages:?}");
}

#[test]
fn what_died_with_a_process_is_explained_but_not_without_limit() {
    let mut ring = sound();
    ring.readers[0].live = false;
    ring.readers[0].outcomes[0].1 -= 5;
    ring.sources[0].uncertain = 1;
    ring.sources[0].kernel_frames -= 5;
    assert_eq!(
        open(&ring),
        [
            ("I1 kernel", Verdict::Explained),
            ("I5 output", Verdict::Explained)
        ]
    );
    ring.readers[0].delivered = 10_000_000;
    assert!(open(&ring).contains(&("I5 output", Verdict::Failed)));
}

#[test]
fn a_ring_replaced_between_the_looks_is_an_account_of_its_own() {
    let mut later = sound();
    later.info.epoch = 2;
    let mut earlier = sound();
    earlier.published_frames = 1_000_000;
    assert!(
        lines(&earlier, &later, Moment::Still)
            .iter()
            .all(|line| line.verdict == Verdict::Ok)
    );
}

#[test]
fn the_failure_names_stage_ring_object_and_sum() {
    let mut ring = sound();
    ring.readers[0].outcomes[0].1 += 2;
    let stages: Vec<Line> = lines(&ring, &ring, Moment::Still);
    let failure = Account {
        quiet: true,
        waited_seconds: 0.1,
        stages,
        silence: None,
    }
    .verdict()
    .unwrap_err();
    assert_eq!(
        failure.message,
        "I5 output of ring cisco (txd): 2 frames too many came out: 41 in, 38 out, 5 dropped by name"
    );
    assert_eq!(failure.code, Code::Failed);
}

#[test]
fn hostile_counters_do_not_overflow() {
    let mut ring = sound();
    ring.sources[0] = SourceStats {
        received: u64::MAX,
        published: u64::MAX,
        kernel_frames: u64::MAX,
        ..ring.sources[0].clone()
    };
    ring.sources.push(ring.sources[0].clone());
    ring.readers[0].delivered = u64::MAX;
    ring.readers[0].attach_seq = u64::MAX;
    ring.readers[0].outcomes = vec![(Outcome::Sent, u64::MAX), (Outcome::Other, u64::MAX)];
    ring.last_seq = u64::MAX;
    assert!(!open(&ring).is_empty());
}

#[test]
fn the_stages_of_a_tunnel_are_called_by_its_names() {
    let mut ring = sound();
    ring.readers[0].label = "tunneld x".into();
    ring.readers[0].outcomes[0].1 += 1;
    ring.sources[0].received += 1;
    if let Some(producer) = &mut ring.producer {
        producer.holder = "tunneld y".into();
    }
    let expected = [
        ("I2 tunneld", Verdict::Failed),
        ("I7 encap", Verdict::Failed),
    ];
    assert_eq!(open(&ring), expected);
    if let Some(producer) = &mut ring.producer {
        producer.holder = "mirrord m".into();
    }
    assert!(open(&ring).contains(&("I2 mirrord", Verdict::Failed)));
}

fn receiving(received: u64, published: u64, unknown: u64) -> Tunnel {
    use fluxcap_proto::v1::{TunnelReceiveStatus, TunnelStatus};
    let receive = TunnelReceiveStatus {
        received_packets: received,
        published_frames: published,
        ..Default::default()
    };
    Tunnel {
        name: "y".into(),
        spec: None,
        status: Some(TunnelStatus {
            dropped_frames: [("unknown_id".to_owned(), unknown)].into(),
            receive: Some(receive),
            ..Default::default()
        }),
    }
}

#[test]
fn what_a_tunnel_received_is_published_or_dropped_by_name() {
    let verdict = |a: &Tunnel, b: &Tunnel, moment| {
        let line = identity::decap(a, b, moment).unwrap();
        (line.residual, line.verdict)
    };
    let sound = receiving(100, 90, 10);
    assert_eq!(verdict(&sound, &sound, Moment::Still), (0, Verdict::Ok));
    let lost = receiving(100, 89, 10);
    assert_eq!(verdict(&lost, &lost, Moment::Still), (1, Verdict::Failed));
    let twice = receiving(100, 91, 10);
    assert_eq!(
        verdict(&twice, &twice, Moment::Moving),
        (-1, Verdict::Failed)
    );
    let later = receiving(150, 140, 10);
    assert_eq!(
        verdict(&sound, &later, Moment::Moving),
        (50, Verdict::InFlight)
    );
}

#[test]
fn a_tunnel_that_sends_is_judged_by_its_place_in_the_ring_alone() {
    let tunnel = Tunnel::default();
    assert_eq!(identity::decap(&tunnel, &tunnel, Moment::Still), None);
}

#[test]
fn a_tunnel_whose_books_do_not_close_is_named_with_the_way_to_see_it() {
    let tunnel = receiving(100, 89, 10);
    let stages = vec![identity::decap(&tunnel, &tunnel, Moment::Still).unwrap()];
    let account = Account {
        quiet: true,
        waited_seconds: 1.0,
        stages,
        silence: None,
    };
    let failure = account.verdict().unwrap_err();
    assert!(
        failure
            .message
            .starts_with("I6 decap (tunneld y): 1 frames are missing"),
        "{failure:?}"
    );
    assert!(
        failure.hint.contains("fluxctl tunnel show y"),
        "{failure:?}"
    );
}

fn mirroring(seen: u64, mirrored: u64, no_route: u64) -> Mirror {
    use fluxcap_proto::v1::MirrorStatus;
    Mirror {
        name: "m".into(),
        spec: None,
        status: Some(MirrorStatus {
            seen_frames: seen,
            copied_frames: 5,
            mirrored_frames: mirrored,
            not_selected_frames: 10,
            sampled_out_frames: 4,
            rate_limited_frames: 1,
            dropped_frames: [("no_route".to_owned(), no_route)].into(),
            ..Default::default()
        }),
    }
}

#[test]
fn what_a_mirror_saw_is_mirrored_not_wanted_or_dropped_by_name() {
    let verdict = |a: &Mirror, b: &Mirror, moment| {
        let line = identity::mirror(a, b, moment);
        (line.residual, line.verdict)
    };
    let sound = mirroring(100, 87, 3);
    assert_eq!(verdict(&sound, &sound, Moment::Still), (0, Verdict::Ok));
    let lost = mirroring(100, 86, 3);
    assert_eq!(verdict(&lost, &lost, Moment::Still), (1, Verdict::Failed));
    let twice = mirroring(100, 88, 3);
    assert_eq!(
        verdict(&twice, &twice, Moment::Moving),
        (-1, Verdict::Failed)
    );
    let later = mirroring(150, 137, 3);
    assert_eq!(
        verdict(&sound, &later, Moment::Moving),
        (50, Verdict::InFlight)
    );
    // A mirror that was not there at the first look.
    assert_eq!(
        verdict(&Mirror::default(), &sound, Moment::Still),
        (0, Verdict::Ok)
    );
}

#[test]
fn a_mirror_whose_books_do_not_close_is_named_with_the_way_to_see_it() {
    let mirror = mirroring(100, 86, 3);
    let stages = vec![identity::mirror(&mirror, &mirror, Moment::Still)];
    let account = Account {
        quiet: true,
        waited_seconds: 1.0,
        stages,
        silence: None,
    };
    let failure = account.verdict().unwrap_err();
    let begin = "I8 mirror (mirrord m): 1 frames are missing";
    assert!(failure.message.starts_with(begin), "{failure:?}");
    assert!(
        failure.hint.contains("fluxctl mirror show m"),
        "{failure:?}"
    );
}

/// The account of the reader over all epochs: what it passed, got, and lost.
fn reader(ring: &RingStats, past: &[RingStats]) -> (u64, u64, u64, i64) {
    let lines = identity::lines(ring, ring, past, Moment::Still, |_| false);
    let mut of_reader = lines.iter().filter(|line| line.stage == "I4 reader");
    let line = of_reader.next().unwrap();
    assert_eq!(of_reader.next(), None, "one line for each reader");
    (line.upstream, line.downstream, line.drops, line.residual)
}

#[test]
fn the_books_of_a_reader_are_summed_over_epochs() {
    // It is still in the epoch before: there is a place for it in this one.
    let past = sound();
    let mut ring = sound();
    ring.readers[0] = ReaderStats {
        attach_seq: 1,
        next_seq: 1,
        delivered: 0,
        lapped: 0,
        corrupt: 0,
        skipped: 0,
        outcomes: Vec::new(),
        ..ring.readers[0].clone()
    };
    assert_eq!(reader(&ring, std::slice::from_ref(&past)), (50, 40, 10, 0));
    // It has taken its books along: 60 frames of the epoch before lie ahead of the first of this one.
    let mut later = sound();
    later.readers[0].attach_seq = 1_u64.wrapping_sub(60);
    later.readers[0].next_seq = 11;
    (later.readers[0].delivered, later.readers[0].lapped) = (60, 7);
    assert_eq!(reader(&later, &[]), (70, 60, 10, 0));
    // It has gone on without having passed the epoch before: 10 frames of that are missing.
    later.readers[0].attach_seq = 1;
    (later.readers[0].delivered, later.readers[0].lapped) = (7, 0);
    assert_eq!(
        reader(&later, std::slice::from_ref(&past)),
        (70, 47, 13, 10)
    );
    // It has no place in the ring of today.
    ring.readers.clear();
    assert_eq!(reader(&ring, &[past]), (50, 40, 10, 0));
}
