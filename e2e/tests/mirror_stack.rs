//! Mirrors of what this host's own stack sends and receives, into rings: with checksums that the sender has left to the network card, in packets that
//! nobody has cut yet, and of interfaces without Ethernet header.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::time::Duration;

use fluxcap_e2e::mirror::{MirrorLab, assert_closes, to_ring};
use fluxcap_e2e::{Fluxctl, Netns, RingReader, Veth, checksum_is_right, need_root};
use fluxcap_proto::v1::{Attach, MirrorRule, MirrorSpec};
use fluxcap_ring::{Direction, Flags};

const SOON: Duration = Duration::from_secs(5);
const BYTES: usize = 4 << 20;
const DATAGRAMS: usize = 500;

/// IPv6 is off in namespaces of tests, so that nobody speaks of himself.
fn with_v6(netns: &Netns, interfaces: &[&str]) {
    for scope in ["all", "default"].iter().chain(interfaces) {
        netns.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0");
    }
}

/// Bytes from one end to the other over TCP.
fn transfer(from: &Netns, to: &Netns, address: &str) {
    let listener = to.run(|| TcpListener::bind(address).expect("listen"));
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("read");
        received.len()
    });
    from.run(|| {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.write_all(&vec![7; BYTES]).expect("write");
    });
    assert_eq!(receiver.join().expect("the receiver"), BYTES);
}

/// Datagrams of all lengths up to the MTU.
fn datagrams(from: &Netns, address: &str) {
    from.run(|| {
        let any = if address.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = UdpSocket::bind(any).expect("a socket");
        for n in 0..DATAGRAMS {
            socket
                .send_to(&vec![9; 1 + n * 1400 / DATAGRAMS], address)
                .expect("send");
        }
    });
}

#[test]
fn checksums_that_a_local_sender_left_open_are_made() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    ctl.run(&["ring", "create", "own", "--size", "128m"]);
    for (netns, name, host) in [(&lab.host, "mon0", 1), (&lab.monitor, "wire", 2)] {
        with_v6(netns, &[name]);
        Veth::offload(netns, name, true);
        for address in [
            format!("10.2.0.{host}/24"),
            format!("2001:db8:2::{host}/64"),
        ] {
            netns.ip(&["addr", "add", &address, "dev", name, "nodad"]);
        }
    }
    let sinks = [
        "10.2.0.2:9",
        "[2001:db8:2::2]:9",
        "10.2.0.1:9",
        "[2001:db8:2::1]:9",
    ];
    let _open: Vec<UdpSocket> = sinks
        .iter()
        .map(|at| {
            let netns = if at.contains("2:9") || at.contains("2]:9") {
                &lab.monitor
            } else {
                &lab.host
            };
            netns.run(|| UdpSocket::bind(at).expect("a socket"))
        })
        .collect();
    let mut reader = RingReader::open(&lab.dirs, "own");
    for attach in [Attach::Tcx, Attach::Clsact] {
        let spec = MirrorSpec {
            attach: attach.into(),
            buffer_bytes: 64 << 20,
            ..to_ring("mon0", "own")
        };
        lab.mirror("m", spec);
        transfer(&lab.host, &lab.monitor, "10.2.0.2:7000");
        transfer(&lab.host, &lab.monitor, "[2001:db8:2::2]:7000");
        transfer(&lab.monitor, &lab.host, "10.2.0.1:7000");
        for to in &sinks[..2] {
            datagrams(&lab.host, to);
        }
        for to in &sinks[2..] {
            datagrams(&lab.monitor, to);
        }
        let status = lab.wait_status("m", "all is in the ring", |s| {
            s.published_frames > 4 * DATAGRAMS as u64 && s.published_frames == s.seen_frames
        });
        assert_closes(&status);
        let frames = reader.take(usize::try_from(status.seen_frames).expect("few"), SOON);
        // The hosts go on asking for routers.
        assert!(frames.len() as u64 >= status.seen_frames);
        // Both directions, which pass on whichever CPU.
        assert!(frames.is_sorted_by_key(|(meta, _)| meta.timestamp_ns));
        for way in [Direction::In, Direction::Out] {
            let judged: Vec<_> = frames
                .iter()
                .filter(|(meta, _)| meta.direction == way)
                .filter_map(|(_, frame)| {
                    Some((frame[12..14].to_vec(), frame, checksum_is_right(frame)?))
                })
                .collect();
            let wrong = judged.iter().filter(|(_, _, right)| !right).count();
            assert_eq!(wrong, 0, "{way:?}: of {}", judged.len());
            for kind in [[0x08, 0x00], [0x86, 0xdd]] {
                let of_kind = judged.iter().filter(|(it, _, _)| *it == kind);
                let udp =
                    of_kind.filter(|(_, frame, _)| frame[if kind[0] == 8 { 23 } else { 20 }] == 17);
                assert_eq!(udp.count(), DATAGRAMS, "{way:?} {kind:?}");
            }
        }
        let giants = frames
            .iter()
            .filter(|(meta, _)| meta.flags.contains(Flags::GSO));
        assert!(giants.count() > 0, "the sender did not use its offloads");
        lab.delete("m");
    }
}

/// A TUN interface `tun0` that is up as long as this lives; what is written to it arrives there. Its other end is a process in which nothing needs
/// `unsafe`.
struct Tun(Child);

const HOLD_TUN: &str = "
import fcntl, os, struct, sys
fd = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'tun0', 0x1001))
print('ready', flush=True)
for line in sys.stdin:
    os.write(fd, bytes.fromhex(line))
";

impl Tun {
    #[track_caller]
    fn new(host: &Netns) -> Tun {
        let mut command = host.command("python3");
        command
            .args(["-c", HOLD_TUN])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("run python3");
        let mut ready = [0; 6];
        let out = child.stdout.as_mut().expect("a pipe");
        out.read_exact(&mut ready).expect("a TUN interface");
        assert_eq!(&ready, b"ready\n");
        with_v6(host, &["tun0"]);
        for address in ["10.9.0.1/24", "2001:db8:9::1/64"] {
            host.ip(&["addr", "add", address, "dev", "tun0", "nodad"]);
        }
        host.ip(&["link", "set", "tun0", "up"]);
        Tun(child)
    }

    #[track_caller]
    fn receive(&mut self, packet: &[u8]) {
        let mut line: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        line.push('\n');
        let pipe = self.0.stdin.as_mut().expect("a pipe");
        pipe.write_all(line.as_bytes()).expect("write");
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A packet of UDP to the host, without data; its checksum is wrong.
fn packet(v6: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    if v6 {
        packet.extend([0x60, 0, 0, 0, 0, 8, 17, 64]);
        for host in [2, 1] {
            packet.extend([
                0x20, 0x01, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, host,
            ]);
        }
    } else {
        packet.extend([
            0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1,
        ]);
    }
    packet.extend([0, 7, 0, 9, 0, 8, 0xab, 0xcd]);
    packet
}

#[test]
fn an_interface_without_ethernet_header_is_copied_into_a_ring() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    ctl.run(&["ring", "create", "ip", "--size", "16m"]);
    let mut reader = RingReader::open(&lab.dirs, "ip");
    let mut tun = Tun::new(&lab.host);
    for attach in [Attach::Tcx, Attach::Clsact] {
        let rule = MirrorRule {
            sources: vec!["10.9.0.0/24".into(), "2001:db8:9::/64".into()],
            protocols: vec![17],
            ..MirrorRule::default()
        };
        let spec = MirrorSpec {
            attach: attach.into(),
            rules: vec![rule],
            ..to_ring("tun0", "ip")
        };
        lab.mirror("m", spec);
        for v6 in [false, true] {
            tun.receive(&packet(v6));
        }
        datagrams(&lab.host, "10.9.0.2:9");
        datagrams(&lab.host, "[2001:db8:9::2]:9");
        let wanted = 2 + 2 * DATAGRAMS;
        let status = lab.wait_status("m", "all is in the ring", |s| {
            s.published_frames >= wanted as u64
        });
        assert_closes(&status);
        assert_eq!(status.mirrored_frames, wanted as u64, "{status:#?}");
        let frames = reader.take(wanted, SOON);
        assert_eq!(frames.len(), wanted);
        for (meta, frame) in &frames {
            assert_eq!(frame[..12], [0; 12]);
            assert_eq!(frame.len(), meta.wire_len as usize);
        }
        let (received, sent): (Vec<_>, Vec<_>) = frames
            .iter()
            .partition(|(meta, _)| meta.direction == Direction::In);
        // As they came, wrong checksum included.
        let packets: Vec<_> = received.iter().map(|(_, frame)| &frame[14..]).collect();
        assert_eq!(packets, [packet(false), packet(true)]);
        assert_eq!(received[0].1[12..14], [0x08, 0x00]);
        assert_eq!(received[1].1[12..14], [0x86, 0xdd]);
        let right = sent
            .iter()
            .filter(|(_, frame)| checksum_is_right(frame) == Some(true));
        assert_eq!(right.count(), 2 * DATAGRAMS);
        lab.delete("m");
    }
}
