//! Routes and neighbours as the kernel knows them.

use std::net::{IpAddr, UdpSocket};

use fluxcap_socket::{
    Error, IcmpEvent, IcmpReason, IcmpWatch, Neighbour, NeighbourState, Route, RouteKind, Sendmmsg,
};

use crate::namespace::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn lookup(destination: &str) -> Route {
    Route::lookup(address(destination), None, None).unwrap()
}

/// A veth pair `a`, `b`, of which `a` has addresses of both versions.
fn addressed_pair() {
    veth_pair();
    with_ipv6("a");
    ip("address add 192.0.2.1/24 dev a");
    ip("address add 2001:db8::1/64 dev a nodad");
}

#[test]
fn route_tells_interface_gateway_source_and_mtu() {
    in_namespace(|| {
        addressed_pair();
        let a = link("a").index;
        let on_link = lookup("192.0.2.7");
        let expected = Route {
            kind: RouteKind::Unicast,
            ifindex: a,
            gateway: None,
            source: Some(address("192.0.2.1")),
            mtu: 1500,
        };
        assert_eq!(on_link, expected);
        assert_eq!(on_link.next_hop(address("192.0.2.7")), address("192.0.2.7"));
        ip("route add default via 192.0.2.254");
        ip("route add 198.51.100.0/24 via 192.0.2.253 mtu 1300");
        let far = lookup("203.0.113.1");
        assert_eq!(far.next_hop(address("203.0.113.1")), address("192.0.2.254"));
        assert_eq!(lookup("198.51.100.1").mtu, 1300);
        ip("link set dev a mtu 1200");
        assert_eq!(lookup("203.0.113.1").mtu, 1200);
    });
}

#[test]
fn route_over_ipv6_is_told_as_well() {
    in_namespace(|| {
        addressed_pair();
        let on_link = lookup("2001:db8::7");
        assert_eq!(
            (on_link.kind, on_link.ifindex),
            (RouteKind::Unicast, link("a").index)
        );
        assert_eq!(on_link.source, Some(address("2001:db8::1")));
        assert_eq!((on_link.gateway, on_link.mtu), (None, 1500));
        ip("-6 route add 2001:db8:1::/48 via 2001:db8::fe mtu 1290");
        let far = lookup("2001:db8:1::1");
        assert_eq!(
            (far.gateway, far.mtu),
            (Some(address("2001:db8::fe")), 1290)
        );
        assert_eq!(lookup("2001:db8::1").kind, RouteKind::Local);
        assert_eq!(lookup("2001:db8:2::1").kind, RouteKind::Unreachable);
        ip("-6 route add prohibit 2001:db8:3::/48");
        assert_eq!(lookup("2001:db8:3::1").kind, RouteKind::Prohibited);
    });
}

#[test]
fn destinations_that_packets_do_not_get_to_are_named() {
    in_namespace(|| {
        addressed_pair();
        assert_eq!(lookup("203.0.113.1").kind, RouteKind::Unreachable);
        for (kind, expected) in [
            ("unreachable", RouteKind::Unreachable),
            ("prohibit", RouteKind::Prohibited),
            ("blackhole", RouteKind::Blackhole),
        ] {
            ip(&format!("route add {kind} 198.51.100.0/24"));
            let route = lookup("198.51.100.1");
            assert_eq!((route.kind, route.ifindex), (expected, 0));
            ip("route del 198.51.100.0/24");
        }
        assert_eq!(lookup("192.0.2.1").kind, RouteKind::Local);
        assert_eq!(lookup("192.0.2.255").kind, RouteKind::Broadcast);
        assert_eq!(lookup("224.0.0.5").kind, RouteKind::Unreachable);
        ip("link set dev a down");
        assert_eq!(lookup("192.0.2.7").kind, RouteKind::Unreachable);
    });
}

#[test]
fn source_and_device_decide_with_and_must_exist() {
    in_namespace(|| {
        addressed_pair();
        let to = address("192.0.2.7");
        ip("address add 192.0.2.2/24 dev a");
        let second = address("192.0.2.2");
        ip("rule add from 192.0.2.2 lookup 100");
        ip("route add unreachable default table 100");
        let route = Route::lookup(to, Some(second), None).unwrap();
        assert_eq!(route.kind, RouteKind::Unreachable);
        let absent = address("192.0.2.99");
        let refused = Route::lookup(to, Some(absent), None).unwrap_err();
        assert!(matches!(refused, Error::NoAddress { address } if address == absent));
        let (a, b) = (link("a").index, link("b").index);
        assert_eq!(Route::lookup(to, None, Some(a)).unwrap().ifindex, a);
        // The kernel believes whoever names an interface.
        assert_eq!(Route::lookup(to, None, Some(b)).unwrap().ifindex, b);
        let refused = Route::lookup(to, None, Some(4000)).unwrap_err();
        assert!(
            matches!(refused, Error::NoInterface { ifindex: 4000 }),
            "{refused}"
        );
    });
}

#[test]
fn neighbours_are_told_with_their_state() {
    in_namespace(|| {
        addressed_pair();
        let a = link("a").index;
        for to in ["192.0.2.7", "2001:db8::7"] {
            let look = || Neighbour::lookup(a, address(to)).unwrap();
            assert_eq!(look(), None);
            for (state, expected) in [
                ("permanent", NeighbourState::Reachable),
                ("noarp", NeighbourState::Reachable),
                ("reachable", NeighbourState::Reachable),
                ("stale", NeighbourState::Stale),
            ] {
                ip(&format!(
                    "neighbour replace {to} lladdr 02:00:00:00:00:07 dev a nud {state}"
                ));
                let neighbour = look().unwrap();
                assert_eq!(neighbour.mac, Some([2, 0, 0, 0, 0, 7]));
                assert_eq!(neighbour.state, expected, "{state}");
            }
        }
        assert!(matches!(
            Neighbour::lookup(4000, address("192.0.2.7")),
            Err(Error::NoInterface { ifindex: 4000 })
        ));
    });
}

#[test]
fn neighbour_that_does_not_answer_is_incomplete_then_failed() {
    in_namespace(|| {
        addressed_pair();
        // `b` has no address: nobody answers.
        let to = address("192.0.2.7");
        std::fs::write("/proc/sys/net/ipv4/neigh/a/retrans_time_ms", "20").unwrap();
        UdpSocket::bind("192.0.2.1:0")
            .unwrap()
            .send_to(b"?", (to, 9))
            .unwrap();
        let look = || Neighbour::lookup(link("a").index, to).unwrap();
        let first = look().unwrap();
        assert_eq!((first.mac, first.state), (None, NeighbourState::Incomplete));
        wait_until("failure", || {
            look().is_some_and(|n| n.state == NeighbourState::Failed)
        });
    });
}

/// An Ethernet frame to `a`: a router says why a UDP datagram to 203.0.113.1 did not arrive.
fn icmp(code: u8, mtu: u16, ports: [u16; 2]) -> Vec<u8> {
    let mut quoted = ipv4([192, 0, 2, 1], [203, 0, 113, 1], 17, &[0; 1400]);
    quoted.truncate(20);
    quoted.extend(ports[0].to_be_bytes());
    quoted.extend(ports[1].to_be_bytes());
    quoted.extend([5, 0x80, 0, 0]);
    let mut body = vec![3, code, 0, 0, 0, 0];
    body.extend(mtu.to_be_bytes());
    body.extend(quoted);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = link("a").mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend(ipv4([192, 0, 2, 254], [192, 0, 2, 1], 1, &body));
    frame
}

#[test]
fn messages_of_routers_are_heard_and_change_the_mtu_of_the_route() {
    in_namespace(|| {
        addressed_pair();
        ip("route add default via 192.0.2.254");
        ip("neighbour add 192.0.2.254 lladdr 02:00:00:00:00:09 dev a nud permanent");
        let remote = address("203.0.113.1");
        let mut watch = IcmpWatch::open(remote, 17, Some(4789)).unwrap();
        // The kernel believes what a message says of a socket that it knows.
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.connect((remote, 4789)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut transmit = Sendmmsg::open(link("b").index, false).unwrap();
        let told = [
            icmp(1, 0, [port, 4789]),
            icmp(4, 1400, [port, 53]),
            icmp(4, 1400, [port, 4789]),
            icmp(3, 0, [port, 4789]),
        ];
        send(&mut transmit, &told);
        let mut heard = Vec::new();
        wait_until("messages", || {
            watch.drain(|event| heard.push(event)).unwrap();
            heard.len() >= 3
        });
        let reasons = [
            IcmpReason::NetOrHost,
            IcmpReason::TooBig(1400),
            IcmpReason::Port,
        ];
        let from = address("192.0.2.254");
        assert_eq!(heard, reasons.map(|reason| IcmpEvent { reason, from }));
        wait_until("path MTU", || lookup("203.0.113.1").mtu == 1400);
    });
}
