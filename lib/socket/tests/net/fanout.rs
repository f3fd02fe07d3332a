//! Several captures that share the frames of one interface.

use fluxcap_socket::{CaptureOptions, Error, PacketCapture, Sendmmsg};

use crate::namespace::*;

#[test]
fn captures_of_a_group_divide_the_frames_by_flow() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let frames: Vec<_> = (0..4000).map(|n| udp(n, (n % 40) as u16)).collect();
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        // Blocks are handed over each millisecond; nobody reads them before all is sent.
        let options = CaptureOptions {
            buffer_bytes: 64 << 20,
            ..small_buffer()
        };
        for _ in 0..3 {
            let mut group = PacketCapture::open_group(a.index, &options, 4).unwrap();
            frames
                .chunks(100)
                .for_each(|part| send(&mut transmit, part));
            // Frames that the host itself sends are nobody's.
            send(&mut Sendmmsg::open(a.index, false).unwrap(), &frames[..50]);
            let mut all = Vec::new();
            let mut busy = 0;
            for capture in &mut group {
                let packets = capture.statistics().unwrap().packets as usize;
                let seen = read(capture, packets);
                busy += usize::from(packets > 0);
                let mut ports: Vec<_> = seen.iter().map(|s| s.data[34..36].to_vec()).collect();
                ports.sort();
                ports.dedup();
                assert_eq!(packets, 100 * ports.len(), "whole flows");
                all.extend(seen.iter().map(|s| udp_number(&s.data)));
            }
            assert!(busy > 1);
            assert_eq!(all.len(), frames.len());
            for flow in 0..40 {
                let order: Vec<_> = all.iter().filter(|n| *n % 40 == flow).collect();
                assert!(order.len() == 100 && order.is_sorted());
            }
        }
    });
}

#[test]
fn group_goes_on_after_the_link_was_down_but_cannot_begin_then() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut group = PacketCapture::open_group(a.index, &small_buffer(), 2).unwrap();
        ip("link set dev a down");
        let error = PacketCapture::open_group(a.index, &small_buffer(), 2).unwrap_err();
        assert!(matches!(error, Error::LinkDown { .. }), "{error:?}");
        ip("link set dev a up");
        wait_until("carrier", || link("a").carrier && link("b").carrier);
        let frames: Vec<_> = (0..200).map(|n| udp(n, n as u16)).collect();
        send(&mut Sendmmsg::open(b.index, false).unwrap(), &frames);
        let mut all = Vec::new();
        for capture in &mut group {
            assert!(capture.take_error().is_some());
            let packets = capture.statistics().unwrap().packets as usize;
            all.extend(read(capture, packets).iter().map(|s| udp_number(&s.data)));
        }
        all.sort();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    });
}
