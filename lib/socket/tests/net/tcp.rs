//! Real TCP over a veth pair: super-frames and checksums that nobody computed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use fluxcap_headers::complete_checksum;
use fluxcap_socket::{CaptureOptions, PacketCapture};
use nix::sched::{CloneFlags, unshare};

use crate::namespace::*;

const BYTES: usize = 4 << 20;

#[test]
fn super_frames_are_captured_whole_and_their_checksums_can_be_completed() {
    in_namespace(|| {
        let (a, _b) = veth_pair();
        let (tid_send, tid) = mpsc::channel();
        let (moved_send, moved) = mpsc::channel();
        let (ready_send, ready) = mpsc::channel();
        let server = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            without_ipv6();
            tid_send.send(nix::unistd::gettid()).unwrap();
            moved.recv().unwrap();
            ip("address add 10.9.0.2/24 dev b");
            ip("link set dev b up");
            let listener = TcpListener::bind("10.9.0.2:4000").unwrap();
            ready_send.send(()).unwrap();
            let mut received = vec![0; BYTES];
            listener
                .accept()
                .unwrap()
                .0
                .read_exact(&mut received)
                .unwrap();
        });
        ip(&format!("link set dev b netns {}", tid.recv().unwrap()));
        moved_send.send(()).unwrap();
        ip("address add 10.9.0.1/24 dev a");
        ready.recv().unwrap();
        let options = CaptureOptions {
            ignore_outgoing: false,
            ..CaptureOptions::default()
        };
        let mut capture = PacketCapture::open(a.index, &options).unwrap();
        let mut stream = TcpStream::connect("10.9.0.2:4000").unwrap();
        stream.write_all(&vec![0x42; BYTES]).unwrap();
        server.join().unwrap();
        let stats = capture.statistics().unwrap();
        assert_eq!(stats.drops, 0);
        check(&mut read(&mut capture, stats.packets as usize));
    });
}

fn check(seen: &mut [Seen]) {
    let largest = seen.iter().map(|s| s.data.len()).max().unwrap_or(0);
    let giants = seen.iter().filter(|s| s.gso).count();
    let partial = seen.iter().filter(|s| s.checksum_partial).count();
    println!(
        "{} frames, {giants} giants, largest {largest} B, {partial} partial",
        seen.len()
    );
    assert!(largest > 1514 && giants > 0 && partial > 0);
    // What stands in the place of a checksum is right by chance, once in 65,536 frames.
    let (mut payload, mut wrong) = (0, 0);
    for frame in seen {
        assert_eq!(frame.data.len(), frame.wire_len as usize, "cut");
        assert!(frame.data.len() <= 1514 || frame.gso);
        if frame.checksum_partial {
            wrong += usize::from(!checksum_is_valid(&frame.data));
            assert!(complete_checksum(&mut frame.data, 0));
            assert!(checksum_is_valid(&frame.data));
        }
        if frame.outgoing {
            payload += tcp_payload(&frame.data);
        }
    }
    assert!(wrong + 3 >= partial, "{wrong} of {partial} had no checksum");
    assert!(payload >= BYTES, "{payload} of {BYTES} bytes seen");
}

/// Length of the data behind IPv4 and TCP headers; 0 for other frames.
fn tcp_payload(frame: &[u8]) -> usize {
    if frame[12..14] != [0x08, 0x00] {
        return 0;
    }
    frame.len() - 34 - usize::from(frame[46] >> 4) * 4
}

fn checksum_is_valid(frame: &[u8]) -> bool {
    let mut bytes = frame[26..34].to_vec();
    bytes.extend([0, 6]);
    bytes.extend(((frame.len() - 34) as u16).to_be_bytes());
    bytes.extend(&frame[34..]);
    let mut sum = 0u64;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u64::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}
