//! Capture: nothing is lost, doubled, reordered or changed without being told.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fluxcap_headers::{VlanTag, WireFrame};
use fluxcap_socket::{CaptureOptions, Error, PacketCapture, Sendmmsg, poll};

use crate::namespace::*;

#[test]
fn ten_thousand_frames_arrive_whole_in_order_and_once() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let frames: Vec<_> = (0..10_000u32)
            .map(|n| numbered(n, 60 + n as usize % 1455))
            .collect();
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_nanos() as u64
        };
        let before = clock();
        let mut seen = Vec::new();
        for part in frames.chunks(500) {
            send(&mut transmit, part);
            seen.extend(read(&mut capture, part.len()));
        }
        let after = clock();
        assert_eq!(seen.len(), frames.len());
        for (frame, seen) in frames.iter().zip(&seen) {
            assert_eq!(&seen.data, frame);
            assert_eq!(seen.wire_len as usize, frame.len());
            assert!(seen.vlan.is_none() && !seen.outgoing && !seen.losing && !seen.gso);
        }
        assert!(seen.is_sorted_by_key(|s| s.timestamp_ns));
        assert!(before <= seen[0].timestamp_ns && seen[9999].timestamp_ns <= after);
        let stats = capture.statistics().unwrap();
        assert_eq!((stats.packets, stats.drops, stats.freezes), (10_000, 0, 0));
        assert_eq!(
            capture.statistics().unwrap().packets,
            0,
            "counters are deltas"
        );
    });
}

#[test]
fn every_vlan_tag_comes_back_byte_exact() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let mut frames = vec![numbered(0, 60)];
        let tpids = [0x8100u16, 0x88a8, 0x9100];
        for outer in tpids {
            for tci in [
                0x0000u16, 0x0001, 0x0ffe, 0x0fff, 0x1000, 0xe000, 0xa00a, 0xffff,
            ] {
                for inner in [None, Some(0x8100u16), Some(0x88a8), Some(0x9100)] {
                    let mut frame = numbered(frames.len() as u32, 60);
                    if let Some(tpid) = inner {
                        frame.splice(12..12, VlanTag { tpid, tci: 0x6005 }.to_bytes());
                    }
                    frame.splice(12..12, VlanTag { tpid: outer, tci }.to_bytes());
                    frames.push(frame);
                }
            }
        }
        send(&mut transmit, &frames);
        let seen = read(&mut capture, frames.len());
        for (frame, seen) in frames.iter().zip(&seen) {
            // The kernel takes out what it knows as a tag, which 0x9100 is not.
            let kernel_knows = matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]);
            assert_eq!(seen.vlan.is_some(), kernel_knows);
            let tag_len = if seen.vlan.is_some() { 4 } else { 0 };
            let mut restored = WireFrame::new(&seen.data, seen.wire_len + tag_len);
            if let Some((tpid, tci)) = seen.vlan {
                assert!(restored.restore_tag(VlanTag { tpid, tci }));
            }
            assert_eq!(&restored.pieces().concat(), frame);
            assert_eq!(restored.wire_len() as usize, frame.len());
        }
        assert_eq!(seen.len(), 97);
    });
}

#[test]
fn a_capture_that_takes_no_more_still_has_what_came_before() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let frames: Vec<_> = (0..40).map(|n| numbered(n, 60)).collect();
        send(&mut transmit, &frames[..20]);
        wait_until("the first half is with the capture", || {
            link("a").rx_packets == 20
        });
        capture.take_no_more().unwrap();
        send(&mut transmit, &frames[20..]);
        wait_until("the other half has come, too", || {
            link("a").rx_packets == 40
        });
        let seen = read(&mut capture, 20);
        let seen: Vec<_> = seen.iter().map(|seen| seen.data.clone()).collect();
        assert_eq!(seen, frames[..20]);
        assert_eq!(capture.statistics().unwrap().packets, 20);
    });
}

#[test]
fn overflow_is_counted_to_the_frame_and_capture_goes_on() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let options = CaptureOptions {
            buffer_bytes: 256 << 10,
            block_bytes: 128 << 10,
            ..CaptureOptions::default()
        };
        let mut capture = PacketCapture::open(a.index, &options).unwrap();
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let frames: Vec<_> = (0..20_000).map(|n| numbered(n, 200)).collect();
        frames
            .chunks(500)
            .for_each(|part| send(&mut transmit, part));
        wait_until("all frames counted by the driver", || {
            link("a").rx_packets == 20_000
        });
        let mut seen = Vec::new();
        // Blocks come until the last one is retired; the statistics say how many frames that makes.
        let stats = capture.statistics().unwrap();
        wait_until("all kept frames read", || {
            read_available(&mut capture, &mut seen);
            seen.len() as u64 == stats.packets - stats.drops
        });
        assert_eq!(stats.packets, 20_000);
        assert_eq!(seen.len() as u64 + stats.drops, 20_000);
        assert!(stats.drops > 15_000 && stats.freezes >= 1, "{stats:?}");
        let kept: Vec<_> = seen.iter().map(|s| s.data.clone()).collect();
        assert_eq!(kept[..], frames[..kept.len()], "the first are kept");

        send(&mut transmit, &frames[..100]);
        let seen = read(&mut capture, 100);
        assert_eq!(seen[99].data, frames[99]);
        let stats = capture.statistics().unwrap();
        assert_eq!((stats.packets, stats.drops), (100, 0));
    });
}

#[test]
fn block_says_that_frames_are_being_lost_until_the_statistics_are_read() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let options = CaptureOptions {
            buffer_bytes: 256 << 10,
            block_bytes: 128 << 10,
            ..CaptureOptions::default()
        };
        let mut capture = PacketCapture::open(a.index, &options).unwrap();
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let frames: Vec<_> = (0..3000).map(|n| numbered(n, 200)).collect();
        send(&mut transmit, &frames);
        wait_until("all frames counted by the driver", || {
            link("a").rx_packets == 3000
        });
        read_available(&mut capture, &mut Vec::new());
        send(&mut transmit, &frames[..10]);
        let mut losing = None;
        wait_until("a block after the overflow", || {
            losing = capture.next_block().map(|block| block.losing());
            losing.is_some()
        });
        assert_eq!(losing, Some(true));
        assert!(capture.statistics().unwrap().drops > 0);
        send(&mut transmit, &frames[..10]);
        wait_until("a block after reading the statistics", || {
            losing = capture.next_block().map(|block| block.losing());
            losing.is_some()
        });
        assert_eq!(losing, Some(false));
    });
}

#[test]
fn link_down_is_told_once_and_the_same_socket_works_after_up() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        assert!(capture.take_error().is_none());
        for round in 0..3 {
            ip("link set dev a down");
            let ready = poll(&[capture.as_fd()], Duration::from_secs(5)).unwrap();
            assert!(ready.failed(0));
            let error = capture.take_error().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
            assert!(capture.take_error().is_none());
            assert!(
                poll(&[capture.as_fd()], Duration::from_millis(5))
                    .unwrap()
                    .is_empty()
            );
            ip("link set dev a up");
            wait_until("carrier", || link("a").carrier && link("b").carrier);
            send(&mut transmit, &[numbered(round, 60)]);
            assert_eq!(read(&mut capture, 1)[0].data, numbered(round, 60));
        }
    });
}

#[test]
fn interface_that_is_down_can_be_opened_and_delivers_once_it_is_up() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        ip("link set dev a down");
        let mut capture = capture_on(&a);
        assert_eq!(
            capture.take_error().and_then(|e| e.raw_os_error()),
            Some(libc::ENETDOWN)
        );
        ip("link set dev a up");
        wait_until("carrier", || link("b").carrier);
        send(
            &mut Sendmmsg::open(b.index, false).unwrap(),
            &[numbered(1, 60)],
        );
        assert_eq!(read(&mut capture, 1)[0].data, numbered(1, 60));
    });
}

#[test]
fn only_the_interface_that_was_asked_for_is_captured() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        ip("link add name c type veth peer name d");
        ip("link set dev c up");
        ip("link set dev d up");
        let mut noise = Sendmmsg::open(link("d").index, false).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    send(&mut noise, &vec![numbered(666, 60); 64]);
                }
            });
            let mut transmit = Sendmmsg::open(b.index, false).unwrap();
            for round in 0..20 {
                let mut capture = capture_on(&a);
                send(&mut transmit, &[numbered(round, 60)]);
                let seen = read(&mut capture, 1);
                assert_eq!(seen[0].data, numbered(round, 60));
                assert_eq!(capture.statistics().unwrap().packets, 1);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

#[test]
fn own_frames_are_left_out_or_marked_as_outgoing() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let mut without = capture_on(&a);
        let with = CaptureOptions {
            ignore_outgoing: false,
            ..small_buffer()
        };
        let mut with = PacketCapture::open(a.index, &with).unwrap();
        send(
            &mut Sendmmsg::open(a.index, false).unwrap(),
            &[numbered(1, 60)],
        );
        let seen = read(&mut with, 1);
        assert!(seen[0].outgoing);
        assert_eq!(seen[0].data, numbered(1, 60));
        assert_eq!(without.statistics().unwrap().packets, 0);
    });
}

#[test]
fn promiscuous_mode_ends_with_the_capture() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        assert_eq!(link("a").promiscuity, 0);
        let first = capture_on(&a);
        let second = capture_on(&a);
        assert_eq!(link("a").promiscuity, 2);
        drop(first);
        assert_eq!(link("a").promiscuity, 1);
        drop(second);
        assert_eq!(link("a").promiscuity, 0);
        let modest = CaptureOptions {
            promiscuous: false,
            ..small_buffer()
        };
        let _modest = PacketCapture::open(a.index, &modest).unwrap();
        assert_eq!(link("a").promiscuity, 0);
    });
}

#[test]
fn frames_above_64_kib_are_captured_whole() {
    in_namespace(|| {
        let (_a, _b) = veth_pair();
        ip("link set dev a mtu 65535");
        ip("link set dev b mtu 65535");
        for block_bytes in [128 << 10, 256 << 10, 1 << 20] {
            let options = CaptureOptions {
                block_bytes,
                ..small_buffer()
            };
            let mut capture = PacketCapture::open(link("a").index, &options).unwrap();
            let mut transmit = Sendmmsg::open(link("b").index, false).unwrap();
            let mut frames: Vec<_> = (0..40).map(|n| numbered(n, 65_549)).collect();
            // With a tag, which may come on top of the MTU.
            frames[7].splice(12..12, [0x81, 0, 0x60, 5]);
            send(&mut transmit, &frames);
            let seen = read(&mut capture, 40);
            for (n, (frame, seen)) in frames.iter().zip(&seen).enumerate() {
                assert_eq!(seen.data.len(), 65_549);
                assert_eq!(seen.wire_len, 65_549);
                assert_eq!(seen.vlan.is_some(), n == 7);
                assert_eq!(seen.data[14..], frame[frame.len() - 65_535..]);
            }
        }
    });
}

#[test]
fn lone_frame_is_seen_within_milliseconds() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let mut waits: Vec<_> = (0..100)
            .map(|n| {
                let start = std::time::Instant::now();
                send(&mut transmit, &[numbered(n, 60)]);
                read(&mut capture, 1);
                start.elapsed()
            })
            .collect();
        waits.sort();
        println!("lone frame: p50 {:?}, p99 {:?}", waits[50], waits[98]);
        // A block time-out that is not honoured costs tens of milliseconds each time.
        assert!(waits[50] < Duration::from_millis(15), "{:?}", waits[50]);
    });
}

#[test]
fn impossible_options_and_interfaces_are_refused_by_name() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let open = |change: fn(&mut CaptureOptions)| {
            let mut options = small_buffer();
            change(&mut options);
            PacketCapture::open(a.index, &options).unwrap_err()
        };
        for change in [
            (|o| o.block_bytes = 100_000) as fn(&mut CaptureOptions),
            |o| o.block_bytes = 4096,
            |o| o.buffer_bytes = 1 << 10,
            |o| o.buffer_bytes = 1 << 40,
            |o| o.filter = Some(Vec::new()),
        ] {
            assert!(matches!(open(change), Error::Option { .. }));
        }
        for ifindex in [4_000_000, u32::MAX] {
            let error = PacketCapture::open(ifindex, &small_buffer()).unwrap_err();
            assert!(matches!(error, Error::NoInterface { .. }), "{error:?}");
            let error = Sendmmsg::open(ifindex, false).unwrap_err();
            assert!(matches!(error, Error::NoInterface { .. }), "{error:?}");
        }
    });
}
