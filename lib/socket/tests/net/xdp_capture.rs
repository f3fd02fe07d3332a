//! Capture by AF_XDP: nothing is lost, doubled or reordered without being told, and nothing stays behind.

use std::os::fd::AsFd;
use std::time::Duration;

use fluxcap_socket::{CaptureOptions, Error, Link, Sendmmsg, XdpCapture, poll};

use crate::namespace::*;
use crate::programs::mixed;

fn options(buffer_bytes: u64) -> CaptureOptions {
    CaptureOptions {
        buffer_bytes,
        ..CaptureOptions::default()
    }
}

fn open(link: &Link) -> XdpCapture {
    let mut parts = XdpCapture::open(link.index, &options(8 << 20), 1).unwrap();
    assert_eq!(parts.len(), 1);
    parts.remove(0)
}

/// A driver does not take the program when frames of its peer may be too long for a page. The program of a capture that was closed
/// may still be leaving, and as long as it is there the peer takes no such MTU.
fn without_native_mode() {
    wait_until("the program of the last capture is gone", || {
        succeeds("ip", "link set dev b mtu 9000")
    });
}

fn ten_thousand_frames(a: &Link, b: &Link, mode: &str) {
    let mut capture = open(a);
    assert!(capture.mode().contains(mode), "{}", capture.mode());
    let mut transmit = Sendmmsg::open(b.index, false).unwrap();
    let frames = mixed(10_000);
    let mut seen = Vec::new();
    for part in frames.chunks(200) {
        send(&mut transmit, part);
        seen.extend(read(&mut capture, part.len()));
    }
    assert_eq!(seen.len(), frames.len());
    for (frame, seen) in frames.iter().zip(&seen) {
        assert_eq!(&seen.data, frame);
        assert_eq!(seen.wire_len as usize, frame.len());
        assert!(seen.vlan.is_none() && !seen.outgoing && !seen.losing && !seen.gso);
    }
    assert!(seen.is_sorted_by_key(|s| s.timestamp_ns));
    let stats = capture.statistics().unwrap();
    assert_eq!((stats.packets, stats.drops), (10_000, 0));
    let again = capture.statistics().unwrap();
    assert_eq!(again, Default::default(), "counters are deltas");
    assert_eq!(capture.passed(), 0);
}

#[test]
fn frames_arrive_whole_in_order_and_once_from_the_driver() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        ten_thousand_frames(&a, &b, "in the driver");
    });
}

#[test]
fn frames_arrive_whole_in_order_and_once_from_behind_the_driver() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        without_native_mode();
        ten_thousand_frames(&a, &b, "generic");
    });
}

fn overflow(a: &Link, b: &Link) {
    // The smallest.
    let mut capture = XdpCapture::open(a.index, &options(0), 1).unwrap().remove(0);
    let mut transmit = Sendmmsg::open(b.index, false).unwrap();
    let frames: Vec<_> = (0..5000).map(|n| numbered(n, 200)).collect();
    for round in 1..=3 {
        let sent: u64 = frames
            .chunks(100)
            .map(|part| try_send(&mut transmit, part).sent)
            .sum();
        let stats = capture.statistics().unwrap();
        let mut seen = Vec::new();
        read_available(&mut capture, &mut seen);
        assert_eq!(sent, stats.packets);
        assert_eq!(seen.len() as u64 + stats.drops, sent);
        assert!(stats.drops > 3000 && stats.freezes > 0, "{stats:?}");
        let kept: Vec<_> = seen.iter().map(|s| s.data.clone()).collect();
        assert_eq!(
            kept[..],
            frames[..kept.len()],
            "round {round}: the first are kept"
        );
    }
    send(&mut transmit, &frames[..100]);
    assert_eq!(read(&mut capture, 100)[99].data, frames[99]);
    let stats = capture.statistics().unwrap();
    assert_eq!((stats.packets, stats.drops), (100, 0));
}

#[test]
fn overflow_is_counted_to_the_frame_and_capture_goes_on() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        overflow(&a, &b);
        without_native_mode();
        overflow(&a, &b);
    });
}

#[test]
fn capture_goes_on_after_the_link_was_down() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = open(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        for round in 0..3 {
            ip("link set dev a down");
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
        let mut capture = open(&a);
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
fn deleted_interface_is_told_once_and_what_had_come_can_be_read() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = open(&a);
        send(
            &mut Sendmmsg::open(b.index, false).unwrap(),
            &[numbered(1, 60)],
        );
        ip("link del dev a");
        let mut error = None;
        wait_until("the error", || {
            error = error.take().or_else(|| capture.take_error());
            error.is_some()
        });
        let error = error.unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
        assert!(capture.take_error().is_none());
        assert_eq!(read(&mut capture, 1)[0].data, numbered(1, 60));
        assert_eq!(capture.statistics().unwrap().packets, 1);
        let error = XdpCapture::open(a.index, &options(0), 1).unwrap_err();
        assert!(matches!(error, Error::NoInterface { .. }), "{error:?}");
    });
}

fn shown(name: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(["-d", "link", "show", "dev", name])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn nothing_of_a_capture_stays_when_it_ends_and_the_next_can_begin() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        for round in 0..3 {
            let mut capture = open(&a);
            assert!(shown("a").contains("prog/xdp"), "{}", shown("a"));
            let second = XdpCapture::open(a.index, &options(0), 1).unwrap_err();
            assert!(second.to_string().contains("has one already"), "{second}");
            // A process that another test starts right now holds all descriptors for a moment.
            wait_until("one user", || link("a").promiscuity == 1);
            send(
                &mut Sendmmsg::open(b.index, false).unwrap(),
                &[numbered(round, 60)],
            );
            assert_eq!(read(&mut capture, 1)[0].data, numbered(round, 60));
            drop(capture);
            wait_until("no program", || !shown("a").contains("prog/xdp"));
            wait_until("no user", || link("a").promiscuity == 0);
        }
    });
}

#[test]
fn frames_of_several_queues_are_divided_and_none_is_missing() {
    in_namespace(|| {
        ip(
            "link add name a numrxqueues 4 numtxqueues 4 type veth peer name b numrxqueues 4 numtxqueues 4",
        );
        ip("link set dev a up");
        ip("link set dev b up");
        let mut parts = XdpCapture::open(link("a").index, &options(16 << 20), 3).unwrap();
        assert_eq!(parts.len(), 3);
        let mut transmit = Sendmmsg::open(link("b").index, false).unwrap();
        // The sender chooses a queue by the flow.
        let frames: Vec<_> = (0..1000).map(|n| udp(n, (n % 50) as u16)).collect();
        frames.chunks(50).for_each(|part| send(&mut transmit, part));
        let mut all = Vec::new();
        for part in &mut parts {
            let packets = part.statistics().unwrap().packets as usize;
            let seen = read(part, packets);
            assert!(packets > 0);
            all.extend(seen.into_iter().map(|s| s.data));
        }
        assert_eq!(all.len(), frames.len());
        for flow in 0..50 {
            let order: Vec<u32> = all
                .iter()
                .map(|frame| udp_number(frame))
                .filter(|n| n % 50 == flow)
                .collect();
            assert_eq!(order.len(), 20);
            assert!(order.is_sorted());
        }
    });
}

#[test]
fn interface_with_frames_that_do_not_fit_is_refused() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        ip("link set dev a mtu 3819");
        let error = XdpCapture::open(a.index, &options(0), 1).unwrap_err();
        assert!(error.to_string().contains("MTU"), "{error}");
        ip("link set dev a mtu 3818");
        ip("link set dev b mtu 3818");
        let mut capture = open(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let mut frames = vec![numbered(1, 3832), numbered(2, 3832), numbered(3, 60)];
        frames[1].splice(12..12, [0x81, 0x00, 0xe0, 0x64]);
        frames[1].truncate(3836);
        send(&mut transmit, &frames);
        let seen = read(&mut capture, 3);
        for (seen, frame) in seen.iter().zip(&frames) {
            assert_eq!(&seen.data, frame);
        }
    });
}
