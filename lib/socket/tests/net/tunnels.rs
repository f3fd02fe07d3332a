//! What carries tunnels: whole IP packets out, datagrams in.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use fluxcap_socket::{
    Error, Fate, NetCounters, Outgoing, RawIp, SendReport, Transport, TunnelOptions,
    TunnelReceiver, poll,
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::namespace::*;

const VXLAN: u16 = 4789;
const GRE: u8 = 47;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn options(transport: Transport) -> TunnelOptions {
    TunnelOptions {
        transport,
        local: None,
        device: None,
        buffer_bytes: 4 << 20,
        gro: true,
    }
}

fn udp_options() -> TunnelOptions {
    options(Transport::Udp {
        port: VXLAN,
        zero_checksum: false,
    })
}

/// A loopback interface with addresses of both versions.
fn loopback() {
    with_ipv6("lo");
    ip("link set dev lo up");
    ip("address add 192.0.2.1/32 dev lo");
    ip("address add 2001:db8::1/128 dev lo nodad");
}

/// A received datagram, copied out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    source: IpAddr,
    source_port: u16,
    protocol: u8,
    bytes: Vec<u8>,
}

/// Receives until `count` datagrams have come, and what else is there by then.
fn receive(receiver: &mut TunnelReceiver, count: usize) -> Vec<Got> {
    let mut got = Vec::new();
    wait_until("datagrams", || {
        while let Some(datagrams) = receiver.receive().unwrap() {
            for datagram in datagrams {
                assert!(!datagram.truncated && datagram.timestamp_ns > 1_600_000_000_000_000_000);
                got.push(Got {
                    source: datagram.source,
                    source_port: datagram.source_port,
                    protocol: datagram.protocol,
                    bytes: datagram.bytes.to_vec(),
                });
            }
        }
        got.len() >= count || {
            poll(&[receiver.as_fd()], Duration::from_millis(20)).unwrap();
            false
        }
    });
    got
}

fn raw_to(destination: &str) -> RawIp {
    RawIp::open(address(destination), None, None).unwrap()
}

/// Sends whole IP packets; each is accounted for.
fn send_ip(raw: &mut RawIp, packets: &[Vec<u8>]) -> SendReport {
    let outgoing = packets.iter().map(|packet| Outgoing {
        pieces: [
            &packet[..packet.len().min(20)],
            &packet[packet.len().min(20)..],
            &[],
        ],
        outputs: 1,
    });
    let outgoing: Vec<_> = outgoing.collect();
    let mut report = SendReport::default();
    raw.send(&outgoing, &mut report);
    assert_eq!(report.total(), packets.len() as u64, "{report:?}");
    report
}

#[test]
fn datagrams_of_both_ip_versions_come_with_their_sender() {
    in_namespace(|| {
        loopback();
        let mut receiver = TunnelReceiver::open(&udp_options()).unwrap();
        assert!(receiver.receive().unwrap().is_none());
        for (local, to) in [("192.0.2.1:0", "127.0.0.1"), ("[2001:db8::1]:0", "::1")] {
            let socket = UdpSocket::bind(local).unwrap();
            let from = socket.local_addr().unwrap();
            for length in [0_usize, 1, 1500, 60_000] {
                socket
                    .send_to(&vec![length as u8; length], (address(to), VXLAN))
                    .unwrap();
            }
            let got = receive(&mut receiver, 4);
            let lengths: Vec<_> = got.iter().map(|got| got.bytes.len()).collect();
            assert_eq!(lengths, [0, 1, 1500, 60_000]);
            for got in got {
                assert!(got.bytes.iter().all(|byte| *byte == got.bytes.len() as u8));
                assert_eq!((got.source, got.source_port), (from.ip(), from.port()));
                assert_eq!(got.protocol, 17);
            }
        }
        assert_eq!(receiver.kernel_drops(), 0);
        let sockets: Vec<_> = receiver.sockets().collect();
        let locals: Vec<_> = sockets.iter().map(|socket| socket.local).collect();
        assert_eq!(locals, [address("0.0.0.0"), address("::")]);
        assert!(
            sockets
                .iter()
                .all(|s| s.protocol == 17 && s.buffer_bytes >= 4 << 20)
        );
    });
}

#[test]
fn joined_datagrams_are_handed_out_one_by_one() {
    in_namespace(|| {
        loopback();
        let mut receiver = TunnelReceiver::open(&udp_options()).unwrap();
        for to in ["127.0.0.1", "::1"] {
            let socket = UdpSocket::bind((address(to), 0)).unwrap();
            setsockopt(&socket, UdpGsoSegment, &100).unwrap();
            let bytes: Vec<u8> = (0..950_usize).map(|i| i as u8).collect();
            for _ in 0..3 {
                socket.send_to(&bytes, (address(to), VXLAN)).unwrap();
            }
            let mut messages = 0;
            let mut lengths = Vec::new();
            let mut joined: Vec<u8> = Vec::new();
            wait_until("segments", || {
                while let Some(datagrams) = receiver.receive().unwrap() {
                    messages += datagrams.messages();
                    for datagram in datagrams {
                        lengths.push(datagram.bytes.len());
                        joined.extend(datagram.bytes);
                    }
                }
                lengths.len() >= 30
            });
            let one = [100, 100, 100, 100, 100, 100, 100, 100, 100, 50];
            assert_eq!(lengths, one.repeat(3));
            assert_eq!(joined, bytes.repeat(3));
            assert!(messages < 30, "the kernel has joined nothing: {messages}");
        }
    });
}

#[test]
fn port_address_and_interface_that_cannot_be_had_are_named() {
    in_namespace(|| {
        loopback();
        let taken = UdpSocket::bind(("192.0.2.1", VXLAN)).unwrap();
        let refused = TunnelReceiver::open(&udp_options()).unwrap_err();
        assert!(
            matches!(refused, Error::PortInUse { port: VXLAN }),
            "{refused}"
        );
        let mut elsewhere = udp_options();
        elsewhere.local = Some(address("127.0.0.1"));
        drop(TunnelReceiver::open(&elsewhere).unwrap());
        drop(taken);
        let first = TunnelReceiver::open(&udp_options()).unwrap();
        assert!(TunnelReceiver::open(&udp_options()).is_err());
        drop(first);
        for local in ["203.0.113.1", "2001:db8::99"] {
            for transport in [udp_options().transport, Transport::Ip(vec![GRE])] {
                let mut absent = options(transport);
                absent.local = Some(address(local));
                let refused = TunnelReceiver::open(&absent).unwrap_err();
                assert!(matches!(refused, Error::NoAddress { .. }), "{refused}");
            }
        }
        let mut absent = udp_options();
        absent.device = Some(4000);
        let refused = TunnelReceiver::open(&absent).unwrap_err();
        assert!(
            matches!(refused, Error::NoInterface { ifindex: 4000 }),
            "{refused}"
        );
    });
}

#[test]
fn receiver_of_one_interface_hears_no_other() {
    in_namespace(|| {
        loopback();
        let (a, _b) = veth_pair();
        let mut deaf = udp_options();
        deaf.device = Some(a.index);
        let mut deaf = TunnelReceiver::open(&deaf).unwrap();
        let mut hears = udp_options();
        hears.device = Some(link("lo").index);
        let mut hears = TunnelReceiver::open(&hears).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", ("127.0.0.1", VXLAN)).unwrap();
        assert_eq!(receive(&mut hears, 1).len(), 1);
        assert!(deaf.receive().unwrap().is_none());
    });
}

#[test]
fn what_does_not_fit_is_counted_to_the_datagram() {
    in_namespace(|| {
        loopback();
        let mut small = udp_options();
        small.buffer_bytes = 64 << 10;
        let mut receiver = TunnelReceiver::open(&small).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for round in 1..=3 {
            for _ in 0..500 {
                socket.send_to(&[7; 1000], ("127.0.0.1", VXLAN)).unwrap();
            }
            let got = receive(&mut receiver, 1).len() as u64;
            let drops = receiver.kernel_drops();
            assert!(got < 500);
            assert_eq!(
                drops % (500 - got),
                0,
                "{drops} of round {round}, got {got}"
            );
            assert_eq!(drops, (500 - got) * round);
        }
    });
}

#[test]
fn ip_protocols_come_without_their_outer_header() {
    in_namespace(|| {
        loopback();
        let mut receiver = TunnelReceiver::open(&options(Transport::Ip(vec![4, GRE]))).unwrap();
        let mut packets = vec![
            ipv4([192, 0, 2, 1], [127, 0, 0, 1], GRE, b"plain"),
            ipv4([192, 0, 2, 1], [127, 0, 0, 1], 4, b"other"),
            ipv4([192, 0, 2, 1], [127, 0, 0, 1], 132, b"neither"),
        ];
        // Four bytes of options that say nothing.
        let mut with_options = ipv4(
            [192, 0, 2, 1],
            [127, 0, 0, 1],
            GRE,
            b"\x01\x01\x01\x01options",
        );
        with_options[0] = 0x46;
        packets.push(with_options);
        assert_eq!(send_ip(&mut raw_to("127.0.0.1"), &packets).sent, 4);
        let packet6 = ipv6(address("2001:db8::1"), address("::1"), GRE, b"six");
        assert_eq!(send_ip(&mut raw_to("::1"), &[packet6]).sent, 1);
        let mut got = receive(&mut receiver, 4);
        got.sort_by_key(|got| got.bytes.clone());
        let seen: Vec<_> = got
            .iter()
            .map(|g| (&g.bytes[..], g.protocol, g.source))
            .collect();
        let (v4, v6) = (address("192.0.2.1"), address("2001:db8::1"));
        let expected: [(&[u8], u8, IpAddr); 4] = [
            (b"options", GRE, v4),
            (b"other", 4, v4),
            (b"plain", GRE, v4),
            (b"six", GRE, v6),
        ];
        assert_eq!(seen, expected);
    });
}

#[test]
fn fragments_come_as_one_and_failures_are_counted_by_the_namespace() {
    in_namespace(|| {
        loopback();
        let before = NetCounters::read().unwrap();
        let mut receiver = TunnelReceiver::open(&options(Transport::Ip(vec![GRE]))).unwrap();
        let payload: Vec<u8> = (0..4000_usize).map(|i| (i / 7) as u8).collect();
        let fragments = payload.chunks(1480).enumerate().map(|(number, part)| {
            let mut packet = ipv4([192, 0, 2, 1], [127, 0, 0, 1], GRE, part);
            packet[4..6].copy_from_slice(&77_u16.to_be_bytes());
            let more = if number < 2 { 0x2000 } else { 0 };
            let field = more | (number * 1480 / 8) as u16;
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            packet
        });
        let mut fragments: Vec<_> = fragments.collect();
        fragments.swap(0, 2);
        let mut raw = raw_to("127.0.0.1");
        send_ip(&mut raw, &fragments);
        let got = receive(&mut receiver, 1);
        assert_eq!((got.len(), &got[0].bytes), (1, &payload));
        assert_eq!(
            NetCounters::read().unwrap().since(&before),
            NetCounters::default()
        );
        // The kernel gives up on the rest after a second.
        std::fs::write("/proc/sys/net/ipv4/ipfrag_time", "1").unwrap();
        fragments[0][4..6].copy_from_slice(&78_u16.to_be_bytes());
        send_ip(&mut raw, &fragments[..1]);
        let mut wrong = vec![0x10, 0, 0x12, 0xb5, 0, 12, 0xbe, 0xef, 1, 2, 3, 4];
        let mut listener = TunnelReceiver::open(&udp_options()).unwrap();
        send_ip(
            &mut raw,
            &[ipv4([192, 0, 2, 1], [127, 0, 0, 1], 17, &wrong)],
        );
        wrong[7] = 0;
        let over6 = ipv6(address("2001:db8::1"), address("::1"), 17, &wrong);
        send_ip(&mut raw_to("::1"), &[over6]);
        wait_until("errors", || {
            assert!(listener.receive().unwrap().is_none());
            let since = NetCounters::read().unwrap().since(&before);
            (since.reassembly, since.udp_checksum, since.udp6_checksum) == (1, 1, 1)
        });
    });
}

#[test]
fn datagrams_without_checksum_over_ipv6_come_when_asked_for() {
    in_namespace(|| {
        loopback();
        let mut lenient = options(Transport::Udp {
            port: VXLAN,
            zero_checksum: true,
        });
        lenient.local = Some(address("::1"));
        let mut lenient = TunnelReceiver::open(&lenient).unwrap();
        let mut strict = udp_options();
        strict.local = Some(address("2001:db8::1"));
        let mut strict = TunnelReceiver::open(&strict).unwrap();
        let udp = [0x10, 0, 0x12, 0xb5, 0, 12, 0, 0, 1, 2, 3, 4];
        let from = address("2001:db8::1");
        send_ip(&mut raw_to("2001:db8::1"), &[ipv6(from, from, 17, &udp)]);
        send_ip(&mut raw_to("::1"), &[ipv6(from, address("::1"), 17, &udp)]);
        let got = receive(&mut lenient, 1);
        assert_eq!(
            (got[0].source_port, &got[0].bytes[..]),
            (4096, &[1, 2, 3, 4][..])
        );
        assert!(strict.receive().unwrap().is_none());
    });
}

/// A veth pair `a`, `b`; `a` has addresses and neighbours behind `b`.
fn way_out() {
    veth_pair();
    with_ipv6("a");
    ip("address add 192.0.2.1/24 dev a");
    ip("address add 2001:db8::1/64 dev a nodad");
    for to in ["192.0.2.7", "2001:db8::7"] {
        ip(&format!(
            "neighbour add {to} lladdr 02:00:00:00:00:07 dev a nud permanent"
        ));
    }
}

/// A packet of `length` bytes to the neighbour, of the version of `to`.
fn packet(to: IpAddr, number: u32, length: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    match to {
        IpAddr::V4(to) => {
            payload.resize(length - 20, 9);
            ipv4([192, 0, 2, 1], to.octets(), GRE, &payload)
        }
        IpAddr::V6(_) => {
            payload.resize(length - 40, 9);
            ipv6(address("2001:db8::1"), to, GRE, &payload)
        }
    }
}

#[test]
fn whole_packets_leave_as_they_are_and_long_ones_do_not_stop_the_others() {
    in_namespace(|| {
        way_out();
        for to in [address("192.0.2.7"), address("2001:db8::7")] {
            let mut capture = capture_on(&link("b"));
            let mut raw = RawIp::open(to, None, None).unwrap();
            let length = |n: u32| match n % 10 {
                3 => 1501,
                4 => 9000,
                8 => 1500,
                _ => 60 + n as usize,
            };
            let packets: Vec<_> = (0..300).map(|n| packet(to, n, length(n))).collect();
            let report = send_ip(&mut raw, &packets);
            assert_eq!((report.sent, report.oversize), (240, 60), "{report:?}");
            assert!(
                (0..300).all(|n| (report.fate(n) == Fate::Oversize) == matches!(n % 10, 3 | 4))
            );
            let expected = packets.iter().filter(|packet| packet.len() <= 1500);
            let bytes: usize = expected.clone().map(Vec::len).sum();
            assert_eq!(report.sent_bytes, bytes as u64);
            let gre = |seen: &Seen| {
                let at = if to.is_ipv4() { 14 + 9 } else { 14 + 6 };
                seen.data[at] == GRE
            };
            let mut seen = Vec::new();
            wait_until("packets", || {
                read_available(&mut capture, &mut seen);
                seen.iter().filter(|s| gre(s)).count() == 240
            });
            for (seen, expected) in seen.iter().filter(|s| gre(s)).zip(expected) {
                assert_eq!(seen.data[..6], [2, 0, 0, 0, 0, 7]);
                assert_eq!(seen.data[14..], expected[..]);
            }
        }
    });
}

#[test]
fn want_of_a_route_is_counted_for_every_packet_and_ends_by_itself() {
    in_namespace(|| {
        way_out();
        for to in [address("192.0.2.7"), address("2001:db8::7")] {
            let mut raw = RawIp::open(to, None, None).unwrap();
            let packets: Vec<_> = (0..200).map(|n| packet(to, n, 100)).collect();
            for _ in 0..2 {
                assert_eq!(send_ip(&mut raw, &packets).sent, 200);
                let family = if to.is_ipv4() { "-4" } else { "-6" };
                let prefix = if to.is_ipv4() {
                    "192.0.2.0/24"
                } else {
                    "2001:db8::/64"
                };
                ip(&format!(
                    "{family} route replace prohibit {prefix} metric 1"
                ));
                if to.is_ipv4() {
                    ip("-4 route del 192.0.2.0/24 dev a");
                }
                assert_eq!(send_ip(&mut raw, &packets).denied, 200);
                ip(&format!("{family} route del prohibit {prefix} metric 1"));
                ip(&format!("{family} route flush {prefix}"));
                let report = send_ip(&mut raw, &packets);
                assert_eq!((report.no_route, report.fate(199)), (200, Fate::NoRoute));
                ip(&format!("{family} route add {prefix} dev a"));
            }
        }
    });
}

#[test]
fn interface_that_is_down_or_gone_is_counted_for_every_packet() {
    in_namespace(|| {
        way_out();
        let to = address("192.0.2.7");
        let mut raw = RawIp::open(to, None, Some(link("a").index)).unwrap();
        let packets: Vec<_> = (0..200).map(|n| packet(to, n, 100)).collect();
        assert_eq!(send_ip(&mut raw, &packets).sent, 200);
        ip("link set dev a down");
        let report = send_ip(&mut raw, &packets);
        assert_eq!(report.no_route + report.link_down, 200, "{report:?}");
        ip("link del dev a");
        let report = send_ip(&mut raw, &packets);
        assert_eq!((report.no_interface, report.sent), (200, 0), "{report:?}");
        let gone = RawIp::open(to, None, Some(4000)).unwrap_err();
        assert!(
            matches!(gone, Error::NoInterface { ifindex: 4000 }),
            "{gone}"
        );
    });
}

#[test]
fn full_queue_of_an_interface_is_told() {
    in_namespace(|| {
        way_out();
        run(
            "tc",
            "qdisc add dev a root tbf rate 1mbit burst 3000 limit 20000",
        );
        for to in [address("192.0.2.7"), address("2001:db8::7")] {
            let mut raw = RawIp::open(to, None, None).unwrap();
            let packets: Vec<_> = (0..300).map(|n| packet(to, n, 1000)).collect();
            let report = send_ip(&mut raw, &packets);
            assert!(report.enobufs > 100, "{report:?}");
            assert_eq!(report.sent + report.enobufs, 300);
        }
    });
}

#[test]
fn raw_sender_receives_nothing() {
    in_namespace(|| {
        loopback();
        let mut raw = raw_to("127.0.0.1");
        // The protocol that such a socket is opened with.
        let own = ipv4([127, 0, 0, 1], [127, 0, 0, 1], 255, &[1; 100]);
        send_ip(&mut raw, &vec![own; 10]);
        // Columns: number, local, remote, state, transmit and receive queue, ...
        let sockets = std::fs::read_to_string("/proc/thread-self/net/raw").unwrap();
        let queues: Vec<_> = sockets
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(4).unwrap().to_owned())
            .collect();
        assert!(
            !queues.is_empty() && queues.iter().all(|q| q.ends_with(":00000000")),
            "{sockets}"
        );
    });
}

#[test]
fn source_decides_on_the_way_where_the_host_has_rules() {
    in_namespace(|| {
        way_out();
        let to = address("192.0.2.7");
        ip("rule add from 192.0.2.1 lookup 100");
        ip("route add unreachable default table 100");
        let packets = vec![packet(to, 1, 100)];
        assert_eq!(send_ip(&mut raw_to("192.0.2.7"), &packets).sent, 1);
        let source = Some(address("192.0.2.1"));
        let mut raw = RawIp::open(to, source, None).unwrap();
        assert_eq!(send_ip(&mut raw, &packets).no_route, 1);
        assert_eq!(raw.destination(), to);
        // An address that the host does not have is no obstacle.
        let foreign = Some(address("203.0.113.1"));
        let mut raw = RawIp::open(to, foreign, None).unwrap();
        assert_eq!(send_ip(&mut raw, &packets).sent, 1);
    });
}
