//! tunneld receives: every kind, into the right ring, byte for byte; what it does not take is counted by name.

mod kit;
mod lab;
mod packets;

use fluxcap_e2e::{RingReader, Veth, need_root, wait_until};
use fluxcap_ring::Direction;
use lab::{Lab, SOON, WIRE, bytes, drops, inner, plug};
use packets::{
    Outer, erspan2, erspan3, from4, geneve, gre, gretap, gue, ip, tzsp, udp, udp_from, vxlan,
};
use std::time::{SystemTime, UNIX_EPOCH};

const BOTH: [Outer; 2] = [Outer::V4, Outer::V6];
const GRE: u8 = 47;
/// What stands before an IP packet that came without an Ethernet header.
const SYNTHESIZED: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// An IPv4 packet, and the frame that is to be made of it.
fn inner_ip(number: u16, size: usize) -> (Vec<u8>, Vec<u8>) {
    let frame = inner(number, size);
    let made = [&SYNTHESIZED, &frame[12..]].concat();
    (frame[14..].to_vec(), made)
}

/// An IPv6 packet that says it is UDP, and the frame that is to be made of it.
fn inner_ip6() -> (Vec<u8>, Vec<u8>) {
    let mut packet = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
    packet.extend([0x20; 32]);
    packet.extend([7; 12]);
    let made = [&SYNTHESIZED[..], &[0x86, 0xdd], &packet].concat();
    (packet, made)
}

/// Receives with these options into `ring`, and compares what comes out with what is to come out of these payloads of IP or UDP.
fn check(options: &str, packet: impl Fn(Outer, &[u8]) -> Vec<u8>, cases: &[(Vec<u8>, Vec<u8>)]) {
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive(options);
    for outer in BOTH {
        let frames: Vec<_> = cases
            .iter()
            .map(|(payload, _)| packet(outer, payload))
            .collect();
        lab.send(&frames);
        let got = bytes(ring.take(frames.len(), SOON));
        let expected: Vec<_> = cases.iter().map(|(_, frame)| frame.clone()).collect();
        assert_eq!(got, expected, "{options} {outer:?}");
    }
    lab.after(2 * cases.len() as u64);
    lab.audit();
}

#[test]
fn frames_in_gre_and_erspan_arrive_byte_for_byte() {
    need_root!();
    let over_gre = |outer, payload: &[u8]| ip(outer, GRE, payload);
    let sizes = [14_usize, 60, 64, 1514, 8000].map(|size| inner(3, size));
    let with = |encap: &dyn Fn(&[u8]) -> Vec<u8>| -> Vec<_> {
        sizes
            .iter()
            .map(|frame| (encap(frame), frame.clone()))
            .collect()
    };
    check(
        "gretap ring",
        over_gre,
        &with(&|f| gre(0x6558, false, None, None, f)),
    );
    let keyed = with(&|f| gre(0x6558, true, Some(0), Some(7), f));
    check("gretap ring --key 0 --csum", over_gre, &keyed[..1]);
    check(
        "nvgre ring --vni 5000",
        over_gre,
        &with(&|f| gretap(5000 << 8 | 0xab, f)),
    );
    let erspan1 = with(&|f| gre(0x88be, false, None, None, f));
    check("erspan ring --session none", over_gre, &erspan1);
    check(
        "erspan ring --session 100",
        over_gre,
        &with(&|f| erspan2(1, 100, 0, 0, f)),
    );
    check(
        "erspan ring --session 1023",
        over_gre,
        &with(&|f| erspan3(1, 1023, 5, false, f)),
    );
    check(
        "erspan ring --session 0",
        over_gre,
        &with(&|f| erspan3(1, 0, 5, true, f)),
    );
}

#[test]
fn frames_in_udp_arrive_byte_for_byte() {
    need_root!();
    let to = |port| move |outer, payload: &[u8]| udp(outer, port, payload);
    let sizes = [60_usize, 65, 1514, 8000].map(|size| inner(3, size));
    let with = |encap: &dyn Fn(&[u8]) -> Vec<u8>| -> Vec<_> {
        sizes
            .iter()
            .map(|frame| (encap(frame), frame.clone()))
            .collect()
    };
    check("vxlan ring --vni 42", to(4789), &with(&|f| vxlan(42, f)));
    check(
        "vxlan ring --dport 8472",
        to(8472),
        &with(&|f| vxlan(0xff_ffff, f)),
    );
    let options = [1, 2, 1, 1, 0, 0, 0, 0];
    check(
        "geneve ring --vni 7",
        to(6081),
        &with(&|f| geneve(7, false, &options, f)),
    );
    check("tzsp ring", to(37008), &with(&|f| tzsp(0, f)));
    let tapped = with(&|f| gue(GRE, &gretap(9, f)));
    check("gue ring --key 9", to(6080), &tapped);
    check(
        "fou ring --dport 5555 --inner gretap --key 9",
        to(5555),
        &with(&|f| gretap(9, f)),
    );
}

#[test]
fn ip_packets_get_an_ethernet_header() {
    need_root!();
    let ((v4, made), (v6, made6)) = (inner_ip(5, 60), inner_ip6());
    let gre_of = |protocol, packet: &[u8]| gre(protocol, false, Some(70), None, packet);
    let cases = [
        (gre_of(0x800, &v4), made.clone()),
        (gre_of(0x86dd, &v6), made6.clone()),
    ];
    check(
        "gre ring --key 70",
        |outer, payload| ip(outer, GRE, payload),
        &cases,
    );
    let to = |port| move |outer, payload: &[u8]| udp(outer, port, payload);
    let cases = [
        (gue(4, &v4), made.clone()),
        (gue(41, &v6), made6.clone()),
        (v4.clone(), made.clone()),
        (v6.clone(), made6.clone()),
    ];
    check("gue ring --dport 7080", to(7080), &cases);
    let cases = [(v4.clone(), made.clone()), (v6.clone(), made6.clone())];
    check("fou ring --dport 5555", to(5555), &cases);
    let protocol = |payload: &[u8]| if payload[0] >> 4 == 4 { 4 } else { 41 };
    let in_ip = |outer, payload: &[u8]| ip(outer, protocol(payload), payload);
    check("ipip ring", in_ip, &cases);
    let macs = "--mac-destination 0e:00:00:00:00:01 --mac-source 0e:00:00:00:00:02";
    let own = [[0x0e, 0, 0, 0, 0, 1], [0x0e, 0, 0, 0, 0, 2]].concat();
    let own = [&own, &made[12..]].concat();
    check(&format!("ipip ring {macs}"), in_ip, &[(v4, own)]);
}

#[test]
fn outer_facts_travel_with_the_frame() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("erspan ring --session any");
    let before = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    let (plain, tagged) = (inner(1, 100), inner(2, 100));
    lab.send(&[
        ip(Outer::V4, GRE, &erspan3(7, 200, 0x0102_0304, false, &plain)),
        ip(Outer::V6, GRE, &erspan2(9, 100, 123, 2, &tagged)),
    ]);
    let got = ring.take(2, SOON);
    let restored = [&tagged[..12], &[0x81, 0, 0xa0, 123], &tagged[12..]].concat();
    assert_eq!((&got[0].1, &got[1].1), (&plain, &restored));
    let facts: Vec<_> = got
        .iter()
        .map(|(m, _)| (m.id, m.direction, m.vlan_count, m.wire_len))
        .collect();
    assert_eq!(
        facts,
        [(200, Direction::Out, 0, 100), (100, Direction::In, 1, 104)]
    );
    let seen = u128::from(got[0].0.timestamp_ns);
    assert!(seen >= before.as_nanos() && seen < before.as_nanos() + 5_000_000_000);
    let sources = lab.fluxctl.json(&["ring", "show", "ring"])["status"]["sources"].take();
    let names: Vec<_> = sources
        .as_array()
        .into_iter()
        .flatten()
        .map(|s| &s["name"])
        .collect();
    assert_eq!(names, ["in", "in 10.99.0.1", "in fd00:99::1"]);
    assert_eq!((got[0].0.source, got[1].0.source), (1, 2));
    let status = lab.after(2);
    let senders = &status["receive"]["senders"];
    assert_eq!(senders[0]["address"], "10.99.0.1");
    assert_eq!(senders[0]["last_sequence"], 7);
    assert_eq!(senders[0]["last_timestamp"], 0x0102_0304);
    assert_eq!(senders[0]["timestamp_unit_ns"], 100);
    assert_eq!(
        (&senders[1]["id"], &senders[1]["last_sequence"]),
        (&100.into(), &9.into())
    );
    lab.audit();
}

#[test]
fn frame_that_the_sender_cut_keeps_its_length_on_the_wire() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("tzsp ring");
    lab.send(&[udp(Outer::V4, 37008, &tzsp(1514, &inner(1, 1514)[..100]))]);
    let got = ring.take(1, SOON);
    assert_eq!((got[0].1.len(), got[0].0.wire_len), (100, 1514));
    assert!(got[0].0.flags.contains(fluxcap_ring::Flags::TRUNCATED));
    assert_eq!(lab.after(1)["receive"]["truncated_frames"], 1);
    lab.audit();
}

#[test]
fn one_socket_feeds_a_ring_for_each_identifier() {
    need_root!();
    let lab = Lab::new();
    let mut rings = ["a", "b", "rest"].map(|name| lab.ring(name));
    lab.receive("vxlan --map 1=a,2=b,3=a");
    let vnis = [1, 2, 3, 4, 5, 4, 1];
    let frames = |from: u16| {
        (from..)
            .zip(vnis)
            .map(|(number, vni)| udp(Outer::V4, 4789, &vxlan(vni, &inner(number, 60))))
    };
    lab.send(&frames(0).collect::<Vec<_>>());
    let status = lab.after(7);
    assert_eq!(drops(&status), [("unknown_id".to_owned(), 3)]);
    let unknown = &status["receive"]["unknown_ids"];
    assert_eq!(
        (&unknown[0]["id"], &unknown[0]["packets"]),
        (&4.into(), &2.into())
    );
    assert_eq!(
        (&unknown[1]["id"], &unknown[1]["packets"]),
        (&5.into(), &1.into())
    );
    lab.ctl("tunnel set in --default-ring rest");
    wait_until(SOON, "the third ring", || {
        lab.status()["receive"]["rings"]
            .as_array()
            .is_some_and(|rings| rings.len() == 3)
    });
    lab.send(&frames(100).collect::<Vec<_>>());
    let [a, b, rest] = &mut rings;
    let numbers = |ring: &mut RingReader, count| -> Vec<u8> {
        bytes(ring.take(count, SOON))
            .iter()
            .map(|frame| frame[50])
            .collect()
    };
    assert_eq!(numbers(a, 6), [0, 2, 6, 100, 102, 106]);
    assert_eq!(numbers(b, 2), [1, 101]);
    assert_eq!(numbers(rest, 3), [103, 104, 105]);
    assert_eq!(drops(&lab.after(14)), [("unknown_id".to_owned(), 3)]);
    lab.audit();
}

#[test]
fn senders_that_nobody_asked_for_are_counted_and_do_not_disturb_others() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("vxlan ring --from 10.99.0.0/25 --from fd00:99::1");
    let packet = |source, number| udp_from(source, 4789, &vxlan(9, &inner(number, 60)));
    lab.host.ip(&["route", "add", "192.0.2.0/24", "dev", WIRE]);
    lab.send(&[
        packet([192, 0, 2, 1], 1),
        packet([10, 99, 0, 1], 2),
        packet([10, 99, 0, 128], 3),
        packet([10, 99, 0, 127], 4),
        udp(Outer::V6, 4789, &vxlan(9, &inner(5, 60))),
    ]);
    let mut got = bytes(ring.take(3, SOON));
    got.sort_unstable();
    assert_eq!(got, [2, 4, 5].map(|number| inner(number, 60)));
    assert_eq!(drops(&lab.after(5)), [("src_denied".to_owned(), 2)]);
    lab.audit();
}

#[test]
fn bad_packets_are_counted_by_name_and_leave_their_neighbours_alone() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("gretap ring --key 5 --csum");
    let frame = inner(1, 60);
    let good = gre(0x6558, true, Some(5), None, &frame);
    let changed = |at: usize, to: u8| {
        let mut packet = good.clone();
        packet[at] = to;
        packet
    };
    let bad = [
        ("short", good[..7].to_vec()),
        ("short", Vec::new()),
        ("version", changed(1, 1)),
        ("flags", changed(0, 0xe0)),
        ("checksum", changed(20, 0xff)),
        ("checksum_missing", gretap(5, &frame)),
        ("protocol", gre(0x88be, true, Some(5), None, &frame)),
        (
            "inner_short",
            gre(0x6558, true, Some(5), None, &frame[..13]),
        ),
        ("unknown_id", gre(0x6558, true, Some(6), None, &frame)),
        ("unknown_id", gre(0x6558, true, None, None, &frame)),
    ];
    let packets = bad.iter().flat_map(|(_, payload)| [payload, &good]);
    let packets: Vec<_> = packets.map(|payload| ip(Outer::V4, GRE, payload)).collect();
    lab.send(&packets);
    let got = bytes(ring.take(bad.len(), SOON));
    assert_eq!(got, vec![frame; bad.len()]);
    let counted: Vec<_> = drops(&lab.after(2 * bad.len() as u64));
    let mut expected: Vec<(String, u64)> = Vec::new();
    for (reason, _) in &bad {
        match expected.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => expected.push(((*reason).to_owned(), 1)),
        }
    }
    expected.sort_unstable();
    assert_eq!(counted, expected);
    lab.audit();
}

#[test]
fn missing_and_late_packets_are_counted_for_each_sender() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("erspan ring --session any");
    lab.host.ip(&["addr", "add", "10.98.0.2/24", "dev", WIRE]);
    let packet =
        |source, session, seq| from4(source, GRE, &erspan2(seq, session, 0, 0, &inner(1, 60)));
    let (a, b) = ([10, 99, 0, 1], [10, 98, 0, 1]);
    // 3 and 4 are lost, 6 comes late, 9 twice.
    let numbers = [0, 1, 2, 5, 7, 6, 8, 9, 9];
    let frames = numbers.iter().flat_map(|seq| {
        [
            packet(a, 1, *seq),
            packet(a, 2, seq / 9),
            packet(b, 1, *seq),
        ]
    });
    let frames: Vec<_> = frames.collect();
    lab.send(&frames);
    assert_eq!(ring.take(frames.len(), SOON).len(), frames.len());
    let status = lab.after(frames.len() as u64);
    let senders = status["receive"]["senders"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let counts = |sender: &serde_json::Value| {
        let number = |field: &str| sender[field].as_u64().unwrap_or(0);
        (
            number("packets"),
            number("missing_packets"),
            number("reordered_packets"),
        )
    };
    let counts: Vec<_> = senders.iter().map(counts).collect();
    assert_eq!(counts, [(9, 2, 2), (9, 0, 7), (9, 2, 2)], "{senders:#?}");
    assert_eq!(status["receive"]["missing_packets"], 4);
    lab.audit();
}

#[test]
fn late_packets_are_dropped_where_order_is_asked_for() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("gretap ring --key 5 --seq");
    let packet = |seq: Option<u32>| {
        ip(
            Outer::V4,
            GRE,
            &gre(0x6558, false, Some(5), seq, &inner(1, 60)),
        )
    };
    let numbers = [Some(1), Some(3), Some(2), None, Some(3), Some(4)];
    lab.send(&numbers.map(packet));
    assert_eq!(ring.take(3, SOON).len(), 3);
    let expected = [
        ("out_of_order".to_owned(), 2),
        ("sequence_missing".to_owned(), 1),
    ];
    assert_eq!(drops(&lab.after(6)), expected);
    lab.audit();
}

#[test]
fn port_that_is_taken_and_an_address_that_is_missing_are_waited_for() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    let taken = lab
        .host
        .run(|| std::net::UdpSocket::bind("10.99.0.2:4789"))
        .expect("a free port");
    lab.ctl("tunnel recv vxlan ring --name in --local 10.99.0.2");
    lab.wait_state("waiting", "UDP port 4789 is in use");
    lab.wait_state("waiting", "--dport");
    drop(taken);
    lab.wait_state("running", "");
    lab.ctl("tunnel set in --local 10.99.0.9");
    lab.wait_state("waiting", "10.99.0.9 is not configured on this host");
    lab.host.ip(&["addr", "add", "10.99.0.9/24", "dev", WIRE]);
    lab.wait_state("running", "");
    lab.ctl("tunnel set in --local 10.99.0.2");
    lab.wait_state("running", "");
    wait_until(SOON, "the other socket", || {
        lab.status()["receive"]["sockets"][0]["name"] == "10.99.0.2 udp 4789"
    });
    lab.send(&[udp(Outer::V4, 4789, &vxlan(1, &inner(1, 60)))]);
    assert_eq!(bytes(ring.take(1, SOON)), [inner(1, 60)]);
    lab.audit();
}

#[test]
fn ring_that_is_missing_is_waited_for_and_one_that_is_replaced_is_followed() {
    need_root!();
    let lab = Lab::new();
    lab.ctl("tunnel recv vxlan --map 1=there,2=missing --name in");
    lab.wait_state("waiting", "fluxctl ring create");
    let mut there = lab.ring("there");
    wait_until(SOON, "the first ring", || {
        let reason = lab.status()["reason"].take();
        reason == "ring missing does not exist: fluxctl ring create missing --size 100m"
    });
    let packet = |vni, number| udp(Outer::V4, 4789, &vxlan(vni, &inner(number, 60)));
    lab.send(&[packet(1, 1), packet(2, 2)]);
    assert_eq!(bytes(there.take(1, SOON)), [inner(1, 60)]);
    assert_eq!(drops(&lab.after(2)), [("ring_absent".to_owned(), 1)]);
    let mut missing = lab.ring("missing");
    lab.wait_state("running", "");
    lab.send(&[packet(2, 3)]);
    assert_eq!(bytes(missing.take(1, SOON)), [inner(3, 60)]);
    lab.audit();
    // The next epoch: nothing is lost on the way.
    for round in 0..20_u16 {
        lab.send(&[packet(1, round), packet(2, round)]);
        if round % 5 == 2 {
            lab.ctl(&format!("ring resize there --size {}m", 4 + round));
        }
    }
    let status = lab.after(43);
    assert_eq!(drops(&status), [("ring_absent".to_owned(), 1)]);
    assert_eq!(bytes(missing.take(20, SOON)).len(), 20);
    lab.ctl("ring delete --force missing");
    lab.wait_state("waiting", "ring missing does not exist");
    lab.audit();
}

#[test]
fn edits_change_while_packets_come() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("gre ring --key 5 --vlan-push 100 --snaplen 64");
    let (packet, made) = inner_ip(7, 200);
    let payload = gre(0x800, false, Some(5), None, &packet);
    lab.send(&[ip(Outer::V4, GRE, &payload)]);
    let got = ring.take(1, SOON);
    let pushed = [&made[..12], &[0x81, 0, 0, 100], &made[12..]].concat();
    assert_eq!(
        (&got[0].1, got[0].0.wire_len),
        (&pushed[..64].to_vec(), 204)
    );
    lab.ctl("tunnel set in --snaplen 0 --filter icmp");
    lab.send(&[ip(Outer::V4, GRE, &payload)]);
    wait_until(SOON, "the filter", || {
        lab.send(&[ip(Outer::V4, GRE, &payload)]);
        !drops(&lab.status()).is_empty()
    });
    lab.audit();
}

#[test]
fn packets_that_the_kernel_cannot_keep_are_counted_exactly() {
    need_root!();
    let lab = Lab::new();
    lab.ctl("ring create ring --size 16m");
    lab.receive("vxlan ring --buffer 256k");
    let packet = udp(Outer::V4, 4789, &vxlan(1, &inner(1, 60)));
    lab.tunneld.pause();
    lab.send(&vec![packet; 5000]);
    lab.tunneld.resume();
    wait_until(SOON, "all packets", || {
        let status = lab.status()["receive"].take();
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        let (received, dropped) = (count("received_packets"), count("kernel_dropped_packets"));
        received > 0 && dropped > 0 && received + dropped == 5000
    });
    lab.audit();
}

#[test]
fn interface_that_goes_away_is_found_again() {
    need_root!();
    let lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("vxlan ring --dev wire");
    for number in 0..3 {
        lab.send(&[udp(Outer::V4, 4789, &vxlan(1, &inner(number, 60)))]);
        assert_eq!(bytes(ring.take(1, SOON)), [inner(number, 60)]);
        Veth::delete(&lab.host, WIRE);
        lab.wait_state("waiting", "interface wire does not exist");
        plug(&lab.host, &lab.sender);
        lab.wait_state("running", "");
    }
    lab.audit();
}

#[test]
fn tunnels_come_back_after_a_restart_and_closed_books_stay_closed() {
    need_root!();
    let mut lab = Lab::new();
    let mut ring = lab.ring("ring");
    lab.receive("gretap ring --key 5");
    for number in 0..3 {
        lab.send(&[ip(Outer::V4, GRE, &gretap(5, &inner(number, 60)))]);
        assert_eq!(bytes(ring.take(1, SOON)), [inner(number, 60)]);
        if number == 0 {
            lab.tunneld.stop();
        }
        lab.tunneld.restart();
        lab.wait_state("running", "");
    }
    lab.audit();
}
