//! Transmit: every frame is sent or counted, whatever happens to the interface.

use fluxcap_socket::{CaptureOptions, PacketCapture, Sendmmsg, Transmitter};

use crate::namespace::*;

/// The numbers in captured frames of [`numbered`].
fn numbers(seen: &[Seen]) -> Vec<u32> {
    seen.iter()
        .map(|s| u32::from_be_bytes(*s.data[14..].first_chunk().unwrap()))
        .collect()
}

#[test]
fn oversize_and_runt_frames_in_a_batch_do_not_stop_the_others() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        for bypass in [false, true] {
            let mut capture = capture_on(&a);
            let mut transmit = Sendmmsg::open(b.index, bypass).unwrap();
            let frames: Vec<_> = (0..300u32)
                .map(|n| match n % 10 {
                    3 => numbered(n, 1515),
                    4 => numbered(n, 9000),
                    7 => vec![0; 13],
                    8 => numbered(n, 1514),
                    _ => numbered(n, 60),
                })
                .collect();
            let report = try_send(&mut transmit, &frames);
            assert_eq!(
                (report.sent, report.oversize, report.malformed),
                (210, 60, 30)
            );
            let expected: Vec<_> = (0..300).filter(|n| !matches!(n % 10, 3 | 4 | 7)).collect();
            let seen = read(&mut capture, 210);
            assert_eq!(numbers(&seen), expected);
            let bytes: usize = seen.iter().map(|s| s.data.len()).sum();
            assert_eq!(report.sent_bytes, bytes as u64);
        }
    });
}

#[test]
fn empty_call_and_empty_frame_are_harmless() {
    in_namespace(|| {
        let (_a, b) = veth_pair();
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        send(&mut transmit, &[]);
        let report = try_send(&mut transmit, &[Vec::new()]);
        assert_eq!(report.malformed, 1);
        assert_eq!(transmit.name(), "sendmmsg");
        assert!(transmit.max_frame() > 65_535);
    });
}

#[test]
fn interface_down_ends_the_call_with_every_frame_counted_and_up_heals_it() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        for round in 0..3 {
            send(&mut transmit, &[numbered(round, 60)]);
            assert_eq!(numbers(&read(&mut capture, 1)), [round]);
            ip("link set dev b down");
            let frames: Vec<_> = (0..200).map(|n| numbered(n, 60)).collect();
            for _ in 0..2 {
                let report = try_send(&mut transmit, &frames);
                assert_eq!((report.sent, report.link_down), (0, 200));
            }
            ip("link set dev b up");
            wait_until("carrier", || link("a").carrier && link("b").carrier);
        }
    });
}

#[test]
fn deleted_interface_ends_the_call_with_every_frame_counted() {
    in_namespace(|| {
        let (_a, b) = veth_pair();
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        ip("link del dev b");
        let frames: Vec<_> = (0..200).map(|n| numbered(n, 60)).collect();
        let report = try_send(&mut transmit, &frames);
        assert_eq!((report.sent, report.no_interface), (0, 200));
    });
}

#[test]
fn full_queue_is_retried_within_bounds_then_counted() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        run(
            "tc",
            "qdisc add dev b root tbf rate 1mbit burst 3000 limit 20000",
        );
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let frames: Vec<_> = (0..500).map(|n| numbered(n, 1000)).collect();
        let start = std::time::Instant::now();
        let report = try_send(&mut transmit, &frames);
        let took = start.elapsed();
        assert!(report.enobufs > 0 && report.sent > 0, "{report:?}");
        assert_eq!(report.retries, 3);
        assert_eq!(report.sent + report.enobufs, 500);
        assert!(took.as_millis() < 200, "{took:?}");
        // What the kernel took arrives, in order.
        run(
            "tc",
            "qdisc change dev b root tbf rate 1gbit burst 30000 limit 20000",
        );
        let got = numbers(&read(&mut capture, report.sent as usize));
        assert!(got.is_sorted());
        assert_eq!(capture.statistics().unwrap().packets, report.sent);
    });
}

#[test]
fn frames_sent_without_carrier_are_refused_or_shown_as_dropped_by_the_driver() {
    in_namespace(|| {
        let (_a, b) = veth_pair();
        for bypass in [false, true] {
            let mut transmit = Sendmmsg::open(b.index, bypass).unwrap();
            let before = link("b").tx_dropped;
            ip("link set dev a down");
            wait_until("loss of carrier", || !link("b").carrier);
            let frames: Vec<_> = (0..64).map(|n| numbered(n, 60)).collect();
            let report = try_send(&mut transmit, &frames);
            let dropped = link("b").tx_dropped - before;
            println!(
                "without carrier, bypass {bypass}: {report:?}, dropped by the driver {dropped}"
            );
            assert!(report.refused() + dropped >= 64);
            ip("link set dev a up");
            wait_until("carrier", || link("b").carrier);
        }
    });
}

#[test]
fn transmitter_receives_nothing() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let transmit = Sendmmsg::open(b.index, false).unwrap();
        let mut capture = capture_on(&b);
        send(
            &mut Sendmmsg::open(a.index, false).unwrap(),
            &vec![numbered(1, 60); 100],
        );
        assert_eq!(read(&mut capture, 100).len(), 100);
        // Columns: address, references, type, protocol, interface, running, bytes received, user, inode.
        let sockets = std::fs::read_to_string("/proc/thread-self/net/packet").unwrap();
        let silent = sockets
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let silent: Vec<_> = silent.filter(|columns| columns[3] == "0000").collect();
        assert!(
            !silent.is_empty() && silent.iter().all(|columns| columns[6] == "0"),
            "{sockets}"
        );
        drop(transmit);
    });
}

#[test]
fn tagged_frames_leave_as_they_are() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let options = CaptureOptions {
            ignore_outgoing: false,
            ..small_buffer()
        };
        let mut capture = PacketCapture::open(a.index, &options).unwrap();
        let mut frame = numbered(5, 1514);
        frame.splice(12..12, [0x81, 0x00, 0xe0, 0x64]);
        send(&mut Sendmmsg::open(b.index, true).unwrap(), &[frame]);
        let seen = read(&mut capture, 1);
        assert_eq!(seen[0].vlan, Some((0x8100, 0xe064)));
        assert_eq!(seen[0].data, numbered(5, 1514));
    });
}
