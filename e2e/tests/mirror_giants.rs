//! Traffic that is in a tunnel of this host already, in frames that the stack has joined (GSO), mirrored to a collector: all bytes arrive.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fluxcap_e2e::mirror::{COLLECTOR, MirrorLab, assert_closes, to_collector};
use fluxcap_e2e::{Sink, SinkOptions, Veth, need_root};
use fluxcap_proto::v1::{Direction, InnerProtocol, MirrorSpec, TunnelKind};

/// Bytes of one transfer.
const BYTES: usize = 2 << 20;
/// Behind the outer Ethernet header: the inner tunnel's IPv4, UDP, VXLAN, and the Ethernet header in that.
const IN_VXLAN: usize = 20 + 8 + 8 + 14;

/// A collector: kind, what is inside, address, and where the mirrored IPv4 packet begins.
const COLLECTORS: [(TunnelKind, InnerProtocol, &str, usize); 6] = [
    (
        TunnelKind::Vxlan,
        InnerProtocol::Unspecified,
        COLLECTOR[0],
        14 + 20 + 16 + 14,
    ),
    (
        TunnelKind::Vxlan,
        InnerProtocol::Unspecified,
        COLLECTOR[1],
        14 + 40 + 16 + 14,
    ),
    (
        TunnelKind::Geneve,
        InnerProtocol::Unspecified,
        COLLECTOR[0],
        14 + 20 + 16 + 14,
    ),
    (
        TunnelKind::Gue,
        InnerProtocol::Unspecified,
        COLLECTOR[0],
        14 + 20 + 8 + 4,
    ),
    (
        TunnelKind::Gue,
        InnerProtocol::Gretap,
        COLLECTOR[1],
        14 + 40 + 8 + 4 + 4 + 14,
    ),
    (
        TunnelKind::Gretap,
        InnerProtocol::Unspecified,
        COLLECTOR[0],
        14 + 20 + 4 + 14,
    ),
];

/// Left and right with a VXLAN device each, and offloads all the way.
fn lab() -> MirrorLab {
    let lab = MirrorLab::new();
    lab.add_collector();
    let ends = [
        (&lab.left, "10.1.0.1", "10.1.0.2", "10.9.0.1/24"),
        (&lab.right, "10.1.0.2", "10.1.0.1", "10.9.0.2/24"),
    ];
    for (netns, local, remote, inner) in ends {
        netns.ip(&["addr", "add", &format!("{local}/24"), "dev", "wire"]);
        netns.ip(&[
            "link", "add", "in0", "type", "vxlan", "id", "5", "local", local, "remote", remote,
            "dstport", "8472",
        ]);
        netns.ip(&["addr", "add", inner, "dev", "in0"]);
        netns.ip(&["link", "set", "in0", "up"]);
    }
    for (netns, name) in [
        (&lab.left, "wire"),
        (&lab.host, "eth0"),
        (&lab.host, "eth1"),
        (&lab.right, "wire"),
    ] {
        Veth::offload(netns, name, true);
    }
    lab
}

fn spec(collector: (TunnelKind, InnerProtocol, &str, usize), outgoing: bool) -> MirrorSpec {
    let (kind, inner, remote, _) = collector;
    let (interface, direction) = match outgoing {
        false => ("eth0", Direction::In),
        true => ("eth1", Direction::Out),
    };
    let mut spec = MirrorSpec {
        interface: interface.to_owned(),
        direction: direction.into(),
        ..to_collector(remote)
    };
    let overlay = spec.overlay.as_mut().expect("an overlay");
    (overlay.kind, overlay.inner) = (kind.into(), inner.into());
    match kind {
        TunnelKind::Vxlan | TunnelKind::Geneve => {}
        _ => (overlay.id, overlay.port) = (None, 0),
    }
    spec
}

/// Bytes that TCP or UDP to this port carries in the packets that came to the collector, and the longest frame. What the mirror has cut does not count.
fn carried(kept: &[Vec<u8>], begin: usize) -> (usize, usize) {
    let number =
        |bytes: &[u8], at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let mut bytes = 0;
    for frame in kept {
        let Some(packet) = frame
            .get(begin + IN_VXLAN..)
            .filter(|packet| packet.len() > 40)
        else {
            continue;
        };
        let (length, header) = (number(packet, 2), usize::from(packet[0] & 15) * 4);
        if packet[0] >> 4 != 4 || length > packet.len() || number(packet, header + 2) != 7000 {
            continue;
        }
        let upper = match packet[9] {
            6 => usize::from(packet[header + 12] >> 4) * 4,
            _ => 8,
        };
        let payload = &packet[header + upper..length];
        assert!(payload.iter().all(|byte| *byte == 7));
        bytes += payload.len();
    }
    (bytes, kept.iter().map(Vec::len).max().unwrap_or(0))
}

#[test]
fn joined_packets_that_are_in_a_tunnel_arrive_with_all_bytes() {
    need_root!();
    let lab = lab();
    for (n, collector) in COLLECTORS.into_iter().enumerate() {
        for mtu in [1500, 1700] {
            for (way, transfer) in [("tcp", tcp as fn(&MirrorLab)), ("udp", udp)] {
                // Datagrams keep their sizes, and are cut where they do not fit.
                if way == "udp" && mtu == 1500 {
                    continue;
                }
                Veth::set_mtu(&lab.host, "mon0", mtu);
                Veth::set_mtu(&lab.monitor, "wire", mtu);
                let outgoing = (n + usize::from(mtu == 1500)) % 2 == 1;
                let what = format!("{way} to {collector:?}, MTU {mtu}, outgoing {outgoing}");
                lab.mirror("m", spec(collector, outgoing));
                let options = SinkOptions {
                    keep: usize::MAX,
                    buffer_bytes: 32 << 20,
                };
                let sink = Sink::with(&lab.monitor, "wire", options);
                transfer(&lab);
                sink.wait_quiet(Duration::from_millis(300));
                let kept = sink.stop().kept;
                let (bytes, longest) = carried(&kept, collector.3);
                let status = lab.status("m");
                println!(
                    "{what}: {} packets, {bytes} bytes, longest {longest}",
                    kept.len()
                );
                assert!(longest <= 14 + mtu as usize, "{what}: {longest}");
                assert_closes(&status);
                // A packet that a sender made alone is cut where it does not fit.
                let cut = usize::try_from(status.truncated_frames).expect("few") * 1448;
                assert!(mtu == 1500 || cut == 0, "{what}: {status:#?}");
                assert!(
                    bytes + cut >= BYTES && bytes > BYTES / 2,
                    "{what}: {bytes} {status:#?}"
                );
                assert!(status.dropped_frames.is_empty(), "{what}: {status:#?}");
                lab.delete("m");
            }
        }
    }
}

/// TCP from the left to the right, in the tunnel.
fn tcp(lab: &MirrorLab) {
    let listener = lab
        .right
        .run(|| TcpListener::bind("10.9.0.2:7000").expect("listen"));
    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        let (mut stream, _) = listener.accept().expect("accept");
        stream.read_to_end(&mut received).expect("read");
        received.len()
    });
    lab.left.run(|| {
        let mut stream = TcpStream::connect("10.9.0.2:7000").expect("connect");
        stream.write_all(&vec![7; BYTES]).expect("write");
    });
    assert_eq!(receiver.join().expect("the receiver"), BYTES);
}

/// UDP in the tunnel, of a sender that has the kernel cut (UDP_SEGMENT).
fn udp(lab: &MirrorLab) {
    let _receiver = lab
        .right
        .run(|| UdpSocket::bind("10.9.0.2:7000").expect("bind"));
    lab.left.run(|| {
        let socket = UdpSocket::bind("10.9.0.1:0").expect("bind");
        socket.connect("10.9.0.2:7000").expect("connect");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1200)
            .expect("UDP_SEGMENT");
        let mut left = BYTES;
        while left > 0 {
            let piece = left.min(40 * 1200);
            socket.send(&vec![7; piece]).expect("send");
            left -= piece;
        }
    });
}
