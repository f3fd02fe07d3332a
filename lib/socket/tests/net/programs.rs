//! Transmit by BPF programs: what arrives is what was sent, and what does not is counted.

use fluxcap_socket::{
    CaptureOptions, Fate, Live, Outgoing, PacketCapture, SendReport, Tc, Transmitter,
};

use crate::namespace::*;

/// Frames of mixed lengths, each with its number.
pub(crate) fn mixed(count: u32) -> Vec<Vec<u8>> {
    let lengths = [60, 61, 64, 128, 511, 512, 513, 1000, 1514];
    let frame = |n: u32| numbered(n, lengths[n as usize % lengths.len()]);
    (0..count).map(frame).collect()
}

/// Two pairs: frames sent to the second of a pair arrive at the first.
pub(crate) fn two_pairs() -> [(fluxcap_socket::Link, fluxcap_socket::Link); 2] {
    let first = veth_pair();
    ip("link add c type veth peer name d");
    ip("link set dev c up");
    ip("link set dev d up");
    wait_until("carrier", || link("c").carrier && link("d").carrier);
    [first, (link("c"), link("d"))]
}

pub(crate) fn assert_arrives(capture: &mut PacketCapture, frames: &[Vec<u8>]) {
    let seen = read(capture, frames.len());
    for (seen, frame) in seen.iter().zip(frames) {
        assert_eq!(&seen.data, frame);
    }
    assert_eq!(seen.len(), frames.len());
}

pub(crate) fn replicates(transmit: &mut dyn Transmitter, count: u32) {
    let [(a, b), (c, d)] = two_pairs();
    run("ethtool", "-K a gro on");
    run("ethtool", "-K c gro on");
    transmit.set_interfaces(&[b.index, d.index]).unwrap();
    let mut captures = [capture_on(&a), capture_on(&c)];
    let frames = mixed(count);
    let outputs: Vec<u16> = (0..count as u16)
        .map(|n| [3, 1, 2, 3][n as usize % 4])
        .collect();
    for _ in 0..3 {
        let reports = send_to::<2>(transmit, &frames, &outputs);
        for (output, report) in reports.iter().enumerate() {
            assert_eq!(report.refused(), 0, "{report:?}");
            let wanted: Vec<_> = frames
                .iter()
                .zip(&outputs)
                .filter(|(_, outputs)| **outputs & (1 << output) != 0)
                .map(|(frame, _)| frame.clone())
                .collect();
            let bytes: usize = wanted.iter().map(Vec::len).sum();
            assert_eq!(report.sent_bytes, bytes as u64);
            assert_arrives(&mut captures[output], &wanted);
        }
    }
}

#[test]
fn live_frames_arrive_at_several_interfaces_as_they_were_sent() {
    in_namespace(|| replicates(&mut Live::new().unwrap(), 400));
}

#[test]
fn clones_arrive_at_several_interfaces_as_they_were_sent() {
    in_namespace(|| replicates(&mut Tc::new().unwrap(), 400));
}

/// The numbers of the frames that came.
fn numbers(seen: &[Seen]) -> Vec<u32> {
    let number = |seen: &Seen| u32::from_be_bytes(*seen.data[14..].first_chunk().unwrap());
    seen.iter().map(number).collect()
}

fn small(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers.map(|n| numbered(n, 60)).collect()
}

fn one_bad_frame_does_not_stop_the_others(transmit: &mut dyn Transmitter) {
    let [(a, b), (c, d)] = two_pairs();
    run("ethtool", "-K a gro on");
    run("ethtool", "-K c gro on");
    ip("link set dev c mtu 9000");
    ip("link set dev d mtu 9000");
    transmit.set_interfaces(&[b.index, d.index]).unwrap();
    let mut captures = [capture_on(&a), capture_on(&c)];
    let frames: Vec<_> = (0..300_u32)
        .map(|n| match n % 10 {
            3 => numbered(n, 1519), // one more than the MTU, an Ethernet header and the four bytes that XDP allows
            4 => numbered(n, 9000),
            7 => vec![0; 13],
            8 => numbered(n, 1514),
            _ => numbered(n, 60),
        })
        .collect();
    let [first, second] = send_to::<2>(transmit, &frames, &[3; 300]);
    assert_eq!((first.oversize, first.malformed), (60, 30), "{first:?}");
    assert_eq!((second.oversize, second.malformed), (0, 30), "{second:?}");
    let sent = |skipped: &[u32]| -> Vec<u32> {
        (0..300).filter(|n| !skipped.contains(&(n % 10))).collect()
    };
    assert_eq!(numbers(&read(&mut captures[0], 210)), sent(&[3, 4, 7]));
    assert_eq!(numbers(&read(&mut captures[1], 270)), sent(&[7]));
}

#[test]
fn frames_that_live_frames_cannot_be_do_not_stop_the_others() {
    in_namespace(|| one_bad_frame_does_not_stop_the_others(&mut Live::new().unwrap()));
}

fn an_output_that_goes_down_or_away_does_not_stop_the_other(transmit: &mut dyn Transmitter) {
    let [(a, b), (c, d)] = two_pairs();
    run("ethtool", "-K a gro on");
    run("ethtool", "-K c gro on");
    transmit.set_interfaces(&[b.index, d.index]).unwrap();
    let mut capture = capture_on(&c);
    capture_on(&a);
    for (round, command) in [(0, "link set dev b down"), (1, "link del dev b")] {
        ip(command);
        let frames = small(round * 200..round * 200 + 200);
        for _ in 0..2 {
            let [first, second] = send_to::<2>(transmit, &frames, &[3; 200]);
            let (down, gone) = (first.link_down, first.no_interface);
            assert_eq!(first.sent, 0, "{first:?}");
            assert_eq!([down, gone][round as usize], 200, "{first:?}");
            assert_eq!(second.sent, 200, "{second:?}");
            let expected: Vec<_> = (round * 200..round * 200 + 200).collect();
            assert_eq!(numbers(&read(&mut capture, 200)), expected);
        }
    }
}

#[test]
fn live_frames_go_on_when_one_output_goes_down_or_away() {
    in_namespace(|| {
        an_output_that_goes_down_or_away_does_not_stop_the_other(&mut Live::new().unwrap())
    });
}

#[test]
fn clones_go_on_when_one_output_goes_down_or_away() {
    in_namespace(|| {
        an_output_that_goes_down_or_away_does_not_stop_the_other(&mut Tc::new().unwrap())
    });
}

/// What the peer does not take can be sent in another way: nothing is lost, nothing is out of order.
#[test]
fn a_peer_that_takes_no_live_frames_costs_none() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        run("ethtool", "-K a gro off");
        let mut live = Live::new().unwrap();
        live.set_interfaces(&[b.index]).unwrap();
        let mut otherwise = Tc::new().unwrap();
        otherwise.set_interfaces(&[b.index]).unwrap();
        let mut capture = capture_on(&a);
        let (mut next, mut by_live) = (0, 0);
        for round in 0..60 {
            let gro = if round % 2 == 0 { "off" } else { "on" };
            run("ethtool", &format!("-K a gro {gro}"));
            let frames = small(next..next + 200);
            let report = try_send(&mut live, &frames);
            assert_eq!(report.sent + report.unreachable, 200, "{report:?}");
            assert_eq!(report.sent, if gro == "on" { 200 } else { 0 });
            by_live += report.sent;
            send(&mut otherwise, &frames[report.sent as usize..]);
            let expected: Vec<_> = (next..next + 200).collect();
            assert_eq!(numbers(&read(&mut capture, 200)), expected);
            next += 200;
        }
        assert_eq!(by_live, 30 * 200);
    });
}

/// Few frames take another way than many, and order is kept at each change.
#[test]
fn bursts_of_any_size_arrive_in_order() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        run("ethtool", "-K a gro on");
        let mut transmit = Live::new().unwrap();
        transmit.set_interfaces(&[b.index]).unwrap();
        let mut capture = capture_on(&a);
        let mut next = 0;
        let mut state = 1_u32;
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let size = match state >> 28 {
                0 => 1 + (state >> 8) % 900,
                1..4 => 16 + (state >> 8) % 100,
                _ => 1 + (state >> 8) % 15,
            };
            send(&mut transmit, &small(next..next + size));
            let expected: Vec<_> = (next..next + size).collect();
            assert_eq!(numbers(&read(&mut capture, size as usize)), expected);
            next += size;
        }
    });
}

/// Two threads overrun the queue of one peer: what each of them counts as sent arrives, and nothing else. Hardly anything is dropped,
/// because what finds no room is tried again.
#[test]
fn what_the_peer_has_no_room_for_is_tried_again_and_counted() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        run("ethtool", "-K a gro on");
        let large = CaptureOptions {
            buffer_bytes: 256 << 20,
            ..CaptureOptions::default()
        };
        let mut capture = PacketCapture::open(a.index, &large).unwrap();
        let index = b.index;
        let sender = move |stream: u32| {
            let mut transmit = Live::new().unwrap();
            transmit.set_interfaces(&[index]).unwrap();
            let (mut sent, mut dropped) = (Vec::new(), 0);
            for round in 0..200 {
                let first = stream * 1_000_000 + round * 1000;
                let frames = small(first..first + 1000);
                let outgoing: Vec<_> = frames
                    .iter()
                    .map(|frame| Outgoing {
                        pieces: [frame, &[], &[]],
                        outputs: 1,
                    })
                    .collect();
                let mut report = SendReport::default();
                transmit.send(&outgoing, std::slice::from_mut(&mut report));
                assert_eq!(report.sent + report.enobufs, 1000, "{report:?}");
                dropped += report.enobufs;
                let fates = (0..1000).filter(|at| report.fate(*at) == Fate::Sent);
                sent.extend(fates.map(|at| first + at as u32));
            }
            (sent, dropped)
        };
        let threads = [1, 2].map(|stream| std::thread::spawn(move || sender(stream)));
        let results = threads.map(|thread| thread.join().unwrap());
        println!("dropped: {}, {}", results[0].1, results[1].1);
        assert!(results[0].1 + results[1].1 < 40_000, "of 400,000");
        let total = results.iter().map(|(sent, _)| sent.len()).sum();
        let came = numbers(&read(&mut capture, total));
        assert_eq!(came.len(), total);
        for (stream, (sent, _)) in (1..).zip(&results) {
            let of_stream = came.iter().filter(|n| **n / 1_000_000 == stream);
            assert!(of_stream.eq(sent), "stream {stream}");
        }
    });
}

#[test]
fn clones_of_all_lengths_arrive_and_what_cannot_is_counted() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        ip("link set dev a mtu 65535");
        ip("link set dev b mtu 65535");
        let mut transmit = Tc::new().unwrap();
        transmit.set_interfaces(&[0, b.index]).unwrap();
        let mut capture = capture_on(&a);
        let lengths = [18, 60, 1514, 4096, 9000, 15_360, 15_361, 40_000, 65_000];
        let mut frames: Vec<_> = (0..90_u32)
            .map(|n| numbered(n, lengths[n as usize % lengths.len()]))
            .collect();
        frames.insert(45, vec![1; 13]);
        let reports = send_to::<2>(&mut transmit, &frames, &[2; 91]);
        assert_eq!((reports[1].sent, reports[1].malformed), (90, 1));
        frames.remove(45);
        assert_arrives(&mut capture, &frames);
    });
}
