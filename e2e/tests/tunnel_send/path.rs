//! The path changes, or is not there.

use crate::bed::{
    Bed, FAR, NEAR, QUIET, SOON, WIRE, arrivals, assert_ascending, assert_each_once, dropped_as,
    sent, sink,
};
use fluxcap_e2e::{Netns, Veth, need_root, wait_until};
use fluxcap_headers::tunnel::TunnelKind;

/// The longest untagged frame of an MTU of 1500.
const LONG: usize = 1514;

#[test]
fn a_change_of_the_mtu_is_followed() {
    need_root!();
    let mut bed = Bed::new(3000);
    bed.tunnel("gretap 10.0.0.2 --mtu-policy truncate");
    let lengths = |bed: &mut Bed| -> Vec<usize> {
        let sink = bed.sink();
        bed.publish(100, LONG);
        sink.wait_frames(100, SOON);
        sink.wait_quiet(QUIET);
        let arrived = arrivals(&sink.stop(), TunnelKind::Gretap);
        arrived.iter().map(|arrival| arrival.length).collect()
    };
    let outer = LONG + 24;
    assert_eq!(lengths(&mut bed), [outer; 100]);
    let status = bed.status();
    assert_eq!(
        status["send"]["path"]["missing_bytes"]
            .as_u64()
            .unwrap_or(0),
        0,
        "{status:#}"
    );
    Veth::set_mtu(&bed.near, WIRE, 1400);
    let status = bed.wait("the MTU of the interface is known", |status| {
        status["send"]["path"]["mtu"] == 1400
    });
    assert_eq!(status["send"]["path"]["missing_bytes"], outer - 1400);
    assert_eq!(status["send"]["path"]["frame_mtu"], 1400 - 24);
    assert_eq!(lengths(&mut bed), [1400; 100]);
    bed.near.ip(&[
        "route",
        "change",
        "10.0.0.0/24",
        "dev",
        WIRE,
        "src",
        NEAR[0],
        "mtu",
        "1300",
    ]);
    bed.wait("the MTU of the route is known", |status| {
        status["send"]["path"]["mtu"] == 1300
    });
    assert_eq!(lengths(&mut bed), [1300; 100]);
    let status = bed.wait_done(300);
    assert_eq!(status["send"]["truncated_frames"], 200, "{status:#}");
}

#[test]
fn while_the_mtu_changes_every_frame_is_sent_or_counted() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("vxlan 10.0.0.2 --vni 5");
    let sink = bed.sink();
    let stream = bed.stream(LONG);
    for mtu in [1400, 3000, 576, 1500] {
        stream.go_on(300);
        Veth::set_mtu(&bed.far, WIRE, mtu);
        Veth::set_mtu(&bed.near, WIRE, mtu);
        bed.wait("the MTU is known", |status| {
            status["send"]["path"]["mtu"] == mtu
        });
    }
    stream.go_on(300);
    let published = bed.stop(stream);
    let status = bed.wait_done(published);
    // What met an interface that had just become narrower, or its far end.
    let lost = dropped_as(&status, "oversize") + dropped_as(&status, "enobufs");
    assert_eq!(sent(&status) + lost, published, "{status:#}");
    sink.wait_quiet(QUIET);
    assert_eq!(sink.stop().kernel_drops, 0);
}

#[test]
fn a_change_of_the_route_is_followed() {
    need_root!();
    let mut bed = Bed::new(1500);
    Veth::pair((&bed.near, "second"), (&bed.far, "second"), 1500);
    Bed::name(&bed.near, "second", ["10.0.1.1", "fd00:1::1"]);
    Bed::name(&bed.far, "second", ["10.0.1.2", "fd00:1::2"]);
    bed.far.ip(&["addr", "add", "10.9.9.9/32", "dev", "lo"]);
    bed.near.ip(&["route", "add", "10.9.9.9/32", "via", FAR[0]]);
    bed.tunnel("gretap 10.9.9.9 --key 1");
    let (first, second) = (bed.sink(), sink(&bed.far, "second"));
    bed.publish(200, 500);
    bed.wait_done(200);
    bed.near
        .ip(&["route", "replace", "10.9.9.9/32", "via", "10.0.1.2"]);
    bed.wait("the other route is taken", |status| {
        status["send"]["path"]["device"] == "second"
    });
    bed.publish(200, 500);
    let status = bed.wait_done(400);
    assert_eq!(sent(&status), 400, "{status:#}");
    assert_eq!(status["send"]["path"]["local"], "10.0.1.1");
    assert_eq!(status["send"]["path"]["next_hop"], "10.0.1.2");
    second.wait_quiet(QUIET);
    let mut arrived = arrivals(&first.stop(), TunnelKind::Gretap);
    assert_eq!(arrived.len(), 200);
    arrived.extend(arrivals(&second.stop(), TunnelKind::Gretap));
    assert_each_once("both routes", &arrived, 400);
    bed.near
        .ip(&["route", "replace", "unreachable", "10.9.9.9/32"]);
    bed.wait("there is no route", |status| status["state"] == "waiting");
    bed.publish(10, 500);
    let status = bed.wait_done(410);
    assert_eq!(dropped_as(&status, "no_route"), 10, "{status:#}");
}

#[test]
fn a_neighbour_that_takes_another_address_is_found_again() {
    need_root!();
    let mut bed = Bed::new(1500);
    // As fast as it goes: stale after half a second to one and a half, verified after one.
    for (key, value) in [
        ("base_reachable_time_ms", "500"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "100"),
    ] {
        bed.near
            .sysctl(&format!("net/ipv4/neigh/{WIRE}/{key}"), value);
    }
    bed.tunnel("gretap 10.0.0.2");
    let sink = bed.sink();
    let stream = bed.stream(200);
    stream.go_on(500);
    bed.far
        .ip(&["link", "set", WIRE, "address", "02:00:00:00:77:77"]);
    bed.wait("the new address is known", |status| {
        status["send"]["path"]["next_hop_mac"] == "02:00:00:00:77:77"
    });
    stream.go_on(500);
    let published = bed.stop(stream);
    let status = bed.wait_done(published);
    let unreachable = dropped_as(&status, "unreachable");
    assert_eq!(sent(&status) + unreachable, published, "{status:#}");
    sink.wait_quiet(QUIET);
    let arrived = arrivals(&sink.stop(), TunnelKind::Gretap);
    let count = assert_ascending("with another neighbour", &arrived);
    assert_eq!(count, sent(&status), "{status:#}");
    let runs = arrived
        .chunk_by(|a, b| a.mac == b.mac)
        .map(|run| run[0].mac[4]);
    assert_eq!(
        runs.skip(1).collect::<Vec<_>>(),
        [0x77],
        "one change of the address"
    );
}

#[test]
fn frames_for_a_neighbour_that_does_not_answer_are_counted_and_it_resumes() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.far.ip(&["link", "set", WIRE, "arp", "off"]);
    bed.far.ip(&["addr", "del", "10.0.0.2/24", "dev", WIRE]);
    bed.tunnel("gretap 10.0.0.2");
    let sink = bed.sink();
    let stream = bed.stream(200);
    let status = bed.wait("it waits for the neighbour", |status| {
        status["state"] == "waiting" && dropped_as(status, "unreachable") > 100
    });
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("nobody answers for 10.0.0.2 on wire"),
        "{reason}"
    );
    bed.far.ip(&["link", "set", WIRE, "arp", "on"]);
    bed.far.ip(&["addr", "add", "10.0.0.2/24", "dev", WIRE]);
    bed.wait("it runs", |status| status["state"] == "running");
    stream.go_on(500);
    let published = bed.stop(stream);
    let status = bed.wait_done(published);
    assert_eq!(
        sent(&status) + dropped_as(&status, "unreachable"),
        published,
        "{status:#}"
    );
    sink.wait_quiet(QUIET);
    let arrived = arrivals(&sink.stop(), TunnelKind::Gretap);
    let count = assert_ascending("after the wait", &arrived);
    assert_eq!(
        count,
        sent(&status),
        "what was counted as sent has arrived: {status:#}"
    );
}

#[test]
fn the_first_frames_wait_for_the_neighbour_and_none_is_lost() {
    need_root!();
    for outer in [0, 1] {
        let mut bed = Bed::new(1500);
        bed.tunnel(&format!("gretap {}", FAR[outer]));
        let sink = bed.sink();
        // More than the kernel would keep while it asks.
        bed.publish(5_000, 1000);
        let status = bed.wait_done(5_000);
        assert_eq!(sent(&status), 5_000, "{status:#}");
        sink.wait_quiet(QUIET);
        assert_each_once(
            "the first",
            &arrivals(&sink.stop(), TunnelKind::Gretap),
            5_000,
        );
    }
}

#[test]
fn a_link_that_is_down_or_gone_is_waited_for() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("gretap 10.0.0.2 --dev wire");
    let first = bed.sink();
    bed.publish(100, 200);
    bed.wait_done(100);
    Veth::down(&bed.far, WIRE);
    bed.wait("there is no carrier", |status| status["state"] == "waiting");
    bed.publish(100, 200);
    let status = bed.wait_done(200);
    assert_eq!(dropped_as(&status, "no_carrier"), 100, "{status:#}");
    Veth::up(&bed.far, WIRE);
    bed.wait("it runs again", |status| status["state"] == "running");
    bed.publish(100, 200);
    let status = bed.wait_done(300);
    assert_eq!(sent(&status), 200, "{status:#}");
    first.wait_quiet(QUIET);
    let arrived = arrivals(&first.stop(), TunnelKind::Gretap);
    assert_eq!(assert_ascending("before and after", &arrived), 200);

    Veth::delete(&bed.near, WIRE);
    bed.wait("the interface is gone", |status| {
        status["state"] == "waiting"
    });
    bed.publish(100, 200);
    let status = bed.wait_done(400);
    assert_eq!(dropped_as(&status, "no_interface"), 100, "{status:#}");
    Bed::plug(&bed.near, &bed.far, 1500);
    bed.wait("it runs with the new interface", |status| {
        status["state"] == "running"
    });
    let second = bed.sink();
    bed.publish(100, 200);
    let status = bed.wait_done(500);
    assert_eq!(sent(&status), 300, "{status:#}");
    second.wait_frames(100, SOON);
}

#[test]
fn what_the_host_sends_to_itself_goes_by_its_stack() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("vxlan 127.0.0.1 --vni 3");
    let sink = sink(&bed.near, "lo");
    bed.publish(100, LONG);
    let status = bed.wait_done(100);
    assert_eq!(sent(&status), 100, "{status:#}");
    assert_eq!(status["send"]["path"]["io"], "ip");
    sink.wait_quiet(QUIET);
    let mut arrived = arrivals(&sink.stop(), TunnelKind::Vxlan);
    // A capture on the loopback interface may see each packet twice: as it leaves and as it comes.
    arrived.dedup();
    assert_each_once("to itself", &arrived, 100);
}

/// Near and far with a router between; the MTU behind it is 1200. The far end has the address 10.0.2.2.
fn behind_a_router() -> (Bed, Netns) {
    let [near, router, far] = [Netns::new(), Netns::new(), Netns::new()];
    Veth::pair((&near, WIRE), (&router, "in"), 1500);
    Veth::pair((&router, "out"), (&far, WIRE), 1200);
    near.ip(&["addr", "add", "10.0.1.1/24", "dev", WIRE]);
    router.ip(&["addr", "add", "10.0.1.254/24", "dev", "in"]);
    router.ip(&["addr", "add", "10.0.2.254/24", "dev", "out"]);
    far.ip(&["addr", "add", "10.0.2.2/24", "dev", WIRE]);
    router.sysctl("net/ipv4/ip_forward", "1");
    near.ip(&["route", "add", "default", "via", "10.0.1.254"]);
    far.ip(&["route", "add", "default", "via", "10.0.2.254"]);
    (Bed::with(near, far, &[]), router)
}

#[test]
fn a_router_that_tells_its_mtu_is_heard() {
    need_root!();
    let (mut bed, _router) = behind_a_router();
    bed.tunnel("gretap 10.0.2.2 --mtu-policy truncate");
    let sink = bed.sink();
    bed.publish(1, LONG);
    bed.wait("the MTU behind the router is known", |status| {
        status["send"]["path"]["mtu"] == 1200
    });
    bed.publish(100, LONG);
    let status = bed.wait_done(101);
    assert_eq!(sent(&status), 101, "{status:#}");
    assert!(
        status["send"]["icmp_events"]["too_big"]
            .as_u64()
            .is_some_and(|n| n > 0),
        "{status:#}"
    );
    sink.wait_quiet(QUIET);
    let arrived = arrivals(&sink.stop(), TunnelKind::Gretap);
    let lengths: Vec<usize> = arrived.iter().map(|arrival| arrival.length).collect();
    assert_eq!(lengths, [1200; 100]);
}

#[test]
fn a_router_that_knows_no_way_pauses_it() {
    need_root!();
    let (mut bed, router) = behind_a_router();
    router.sysctl("net/ipv4/icmp_ratelimit", "0");
    bed.tunnel("gretap 10.0.2.2");
    let sink = bed.sink();
    bed.publish(100, 200);
    bed.wait_done(100);
    sink.wait_frames(100, SOON);
    router.ip(&["route", "add", "unreachable", "10.0.2.2/32"]);
    let stream = bed.stream(200);
    let status = bed.wait("it pauses", |status| {
        status["state"] == "waiting" && dropped_as(status, "unreachable") > 100
    });
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("10.0.1.254 says that there is no way to 10.0.2.2"),
        "{reason}"
    );
    router.ip(&["route", "del", "unreachable", "10.0.2.2/32"]);
    let before = sink.frames();
    wait_until(SOON, "frames arrive again", || sink.frames() > before + 500);
    let published = bed.stop(stream);
    let status = bed.wait_done(published);
    assert_eq!(status["state"], "running", "{status:#}");
    assert_eq!(
        sent(&status) + dropped_as(&status, "unreachable"),
        published,
        "{status:#}"
    );
}
