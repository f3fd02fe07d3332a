//! Transmit by AF_XDP: every frame is sent or counted, and what counts as sent arrives.

use fluxcap_socket::{Error, Fate, SendReport, Transmitter, Xsk};

use crate::namespace::*;
use crate::programs::replicates;

fn open(link: &fluxcap_socket::Link) -> Xsk {
    let mut transmit = Xsk::new();
    transmit.set_interfaces(&[link.index]).unwrap();
    transmit
}

fn assert_same(seen: &[Seen], frames: &[Vec<u8>]) {
    assert_eq!(seen.len(), frames.len());
    for (seen, frame) in seen.iter().zip(frames) {
        assert_eq!(&seen.data, frame);
    }
}

#[test]
fn frames_arrive_at_several_interfaces_as_they_were_sent() {
    in_namespace(|| replicates(&mut Xsk::new(), 1000));
}

#[test]
fn long_frames_take_another_way_in_order() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        ip("link set dev a mtu 9000");
        ip("link set dev b mtu 9000");
        let mut capture = capture_on(&a);
        let mut transmit = open(&b);
        assert_eq!(transmit.mode(), "copied by the kernel");
        let frames: Vec<_> = (0..500_u32)
            .map(|n| {
                numbered(
                    n,
                    match n % 25 {
                        3 => 4096,
                        4 => 4097,
                        5 | 6 => 9014,
                        _ => 60,
                    },
                )
            })
            .collect();
        send(&mut transmit, &frames);
        assert_same(&read(&mut capture, frames.len()), &frames);
    });
}

#[test]
fn oversize_and_runt_frames_do_not_stop_the_others() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = open(&b);
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
        assert_eq!(kept(&frames, &report).len(), 210);
        assert_same(&read(&mut capture, 210), &kept(&frames, &report));
        // With a tag, four bytes more.
        let mut frame = numbered(5, 1514);
        frame.splice(12..12, [0x81, 0x00, 0xe0, 0x64]);
        send(&mut transmit, &[frame]);
        assert_eq!(read(&mut capture, 1)[0].data, numbered(5, 1514));
    });
}

/// The frames that the report calls sent.
fn kept(frames: &[Vec<u8>], report: &SendReport) -> Vec<Vec<u8>> {
    let kept = frames.iter().enumerate();
    let kept = kept.filter(|(place, _)| report.fate(*place) == Fate::Sent);
    kept.map(|(_, frame)| frame.clone()).collect()
}

/// The transmitter learns of the smaller MTU by frames that the kernel drops in the middle of a run.
#[test]
fn frames_that_the_kernel_drops_are_known_one_by_one() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = open(&b);
        for round in 0..5_u32 {
            ip("link set dev a mtu 1000");
            ip("link set dev b mtu 1000");
            let frames: Vec<_> = (0..700_u32)
                .map(|n| {
                    let long = matches!(n % (50 + round), 0 | 7 | 8 | 49);
                    numbered(n, if long { 1019 + n as usize % 490 } else { 200 })
                })
                .collect();
            let report = try_send(&mut transmit, &frames);
            let long = frames.iter().filter(|frame| frame.len() > 200).count() as u64;
            assert_eq!(
                (report.oversize, report.sent),
                (long, 700 - long),
                "{report:?}"
            );
            let kept = kept(&frames, &report);
            assert!(kept.iter().all(|frame| frame.len() == 200));
            assert_same(&read(&mut capture, kept.len()), &kept);
            ip("link set dev a mtu 1500");
            ip("link set dev b mtu 1500");
            let frames = [numbered(1, 1514), numbered(2, 1514)];
            send(&mut transmit, &frames);
            assert_same(&read(&mut capture, 2), &frames);
        }
    });
}

#[test]
fn interface_down_ends_the_call_with_every_frame_counted_and_up_heals_it() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = open(&b);
        for round in 0..3 {
            send(&mut transmit, &[numbered(round, 60)]);
            assert_eq!(read(&mut capture, 1)[0].data, numbered(round, 60));
            ip("link set dev b down");
            let frames: Vec<_> = (0..200).map(|n| numbered(n, 60)).collect();
            // More in all than the ring has entries.
            for _ in 0..15 {
                let report = try_send(&mut transmit, &frames);
                assert_eq!((report.sent, report.link_down), (0, 200), "{report:?}");
            }
            ip("link set dev b up");
            wait_until("carrier", || link("a").carrier && link("b").carrier);
        }
        assert_eq!(capture.statistics().unwrap().packets, 3);
    });
}

#[test]
fn interface_that_is_down_can_be_opened() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        ip("link set dev b down");
        let mut transmit = open(&b);
        let report = try_send(&mut transmit, &[numbered(1, 60)]);
        assert_eq!(report.link_down, 1);
        ip("link set dev b up");
        wait_until("carrier", || link("a").carrier && link("b").carrier);
        send(&mut transmit, &[numbered(2, 60)]);
        assert_eq!(read(&mut capture, 1)[0].data, numbered(2, 60));
    });
}

#[test]
fn peer_that_is_down_loses_frames_by_name_and_none_leaves_late() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut capture = capture_on(&a);
        let mut transmit = open(&b);
        ip("link set dev a down");
        wait_until("loss of carrier", || !link("b").carrier);
        let frames: Vec<_> = (0..200).map(|n| numbered(n, 60)).collect();
        let report = try_send(&mut transmit, &frames);
        assert_eq!((report.sent, report.enobufs), (0, 200), "{report:?}");
        assert_eq!(report.retries, 3);
        ip("link set dev a up");
        wait_until("carrier", || link("a").carrier && link("b").carrier);
        send(&mut transmit, &[numbered(2, 60)]);
        assert_eq!(read(&mut capture, 1)[0].data, numbered(2, 60));
    });
}

#[test]
fn deleted_interface_ends_the_call_and_does_not_keep_frames_from_others() {
    in_namespace(|| {
        let [(_a, b), (c, d)] = crate::programs::two_pairs();
        let mut capture = capture_on(&c);
        let mut transmit = Xsk::new();
        transmit.set_interfaces(&[b.index, d.index]).unwrap();
        ip("link del dev b");
        let frames: Vec<_> = (0..200).map(|n| numbered(n, 60)).collect();
        for _ in 0..2 {
            let [gone, there] = send_to::<2>(&mut transmit, &frames, &[3; 200]);
            assert_eq!((gone.sent, gone.no_interface), (0, 200), "{gone:?}");
            assert_eq!(there.sent, 200);
            assert_same(&read(&mut capture, 200), &frames);
        }
        let error = transmit.set_interfaces(&[d.index, 4_000_000]).unwrap_err();
        assert!(matches!(error, Error::NoInterface { .. }), "{error:?}");
        transmit.set_interfaces(&[d.index]).unwrap();
        send(&mut transmit, &frames);
        assert_same(&read(&mut capture, 200), &frames);
    });
}

#[test]
fn queue_of_another_socket_is_refused_and_free_again_when_that_is_closed() {
    in_namespace(|| {
        let (_a, b) = veth_pair();
        for _ in 0..5 {
            let first = open(&b);
            let error = Xsk::new().set_interfaces(&[b.index]).unwrap_err();
            assert!(error.to_string().contains("another one"), "{error}");
            drop(first);
        }
    });
}

/// Much more than the peer can take, from all CPUs at once.
#[test]
fn overload_is_counted_to_the_frame() {
    in_namespace(|| {
        let [(a, b), (c, d)] = crate::programs::two_pairs();
        std::thread::scope(|scope| {
            for (to, from) in [(a, b), (c, d)] {
                scope.spawn(move || {
                    let mut capture = capture_on(&to);
                    let mut transmit = open(&from);
                    let frames: Vec<_> = (0..512).map(|n| numbered(n, 60)).collect();
                    let (mut sent, mut refused, mut retries) = (0, 0, 0);
                    for _ in 0..200 {
                        let report = try_send(&mut transmit, &frames);
                        sent += report.sent;
                        refused += report.enobufs;
                        retries += report.retries;
                        assert_eq!(report.refused(), report.enobufs);
                    }
                    println!("sent {sent}, refused {refused}, retries {retries}");
                    let mut arrived = 0;
                    wait_until("all arrived", || {
                        arrived += capture.statistics().unwrap().packets;
                        arrived >= sent
                    });
                    assert_eq!(arrived, sent);
                });
            }
        });
    });
}
