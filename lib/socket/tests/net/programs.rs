//! Transmit by BPF programs: what arrives is what was sent, and what does not is counted.

use fluxcap_socket::{Live, PacketCapture, Tc, Transmitter};

use crate::namespace::*;

/// Frames of mixed lengths, each with its number.
fn mixed(count: u32) -> Vec<Vec<u8>> {
    let lengths = [60, 61, 64, 128, 511, 512, 513, 1000, 1514];
    let frame = |n: u32| numbered(n, lengths[n as usize % lengths.len()]);
    (0..count).map(frame).collect()
}

/// Two pairs: frames sent to the second of a pair arrive at the first.
fn two_pairs() -> [(fluxcap_socket::Link, fluxcap_socket::Link); 2] {
    let first = veth_pair();
    ip("link add c type veth peer name d");
    ip("link set dev c up");
    ip("link set dev d up");
    wait_until("carrier", || link("c").carrier && link("d").carrier);
    [first, (link("c"), link("d"))]
}

fn assert_arrives(capture: &mut PacketCapture, frames: &[Vec<u8>]) {
    let seen = read(capture, frames.len());
    for (seen, frame) in seen.iter().zip(frames) {
        assert_eq!(&seen.data, frame);
    }
    assert_eq!(seen.len(), frames.len());
}

fn replicates(transmit: &mut dyn Transmitter, count: u32) {
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
