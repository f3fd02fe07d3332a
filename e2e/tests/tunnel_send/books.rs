//! No frame is sent twice, none ends without a reason, and no packet comes back in.

use crate::bed::{Bed, QUIET, SOON, WIRE, arrivals, assert_ascending, dropped_as, sent};
use fluxcap_e2e::{Daemon, need_root, wait_until};
use fluxcap_headers::tunnel::TunnelKind;
use serde_json::Value;

/// The tunnel's slot in the ring, whose figures outlive the daemon.
fn reader(bed: &Bed) -> Value {
    let ring = bed.fluxctl.json(&["ring", "show", "ring"]);
    let readers = ring["status"]["readers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let ours = readers
        .into_iter()
        .find(|reader| reader["name"] == "tunneld out");
    ours.expect("the tunnel reads the ring")
}

fn outcome(reader: &Value, name: &str) -> u64 {
    reader["outcomes"][name].as_u64().unwrap_or(0)
}

#[test]
fn killed_it_sends_nothing_twice_and_counts_what_it_held() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("gretap 10.0.0.2 --key 3");
    let sink = bed.sink();
    let stream = bed.stream(300);
    for _ in 0..5 {
        stream.go_on(500);
        bed.tunneld.restart();
    }
    stream.go_on(500);
    let published = bed.stop(stream);
    let done = |reader: &Value| {
        let ended = reader["outcomes"].as_object().map_or(0, |outcomes| {
            outcomes
                .iter()
                .filter(|(name, _)| *name != "truncated")
                .filter_map(|(_, n)| n.as_u64())
                .sum()
        });
        reader["delivered_frames"].as_u64() == Some(published) && ended == published
    };
    wait_until(SOON, "the books close", || done(&reader(&bed)));
    sink.wait_quiet(QUIET);
    let arrived = assert_ascending(
        "over five kills",
        &arrivals(&sink.stop(), TunnelKind::Gretap),
    );
    let reader = reader(&bed);
    let (sent, killed) = (outcome(&reader, "sent"), outcome(&reader, "killed"));
    assert_eq!(sent + killed, published, "{reader:#}");
    // What a killed one held may have left or not.
    assert!(
        (sent..=sent + killed).contains(&arrived),
        "{arrived} arrived: {reader:#}"
    );
    bed.fluxctl.run(&["audit"]);
}

#[test]
fn every_reason_is_counted_once_for_each_frame() {
    need_root!();
    let mut bed = Bed::new(1500);
    bed.tunnel("gre 10.0.0.2 --mtu-policy drop --filter=not(udp[0:2]=10001)");
    bed.publish(100, 1514);
    bed.publish(100, 200);
    let status = bed.wait_done(200);
    // One of fifty flows is filtered out.
    assert_eq!(dropped_as(&status, "filtered"), 4, "{status:#}");
    assert_eq!(dropped_as(&status, "oversize"), 98, "{status:#}");
    assert_eq!(sent(&status), 98, "{status:#}");
    let reader = reader(&bed);
    for reason in ["sent", "filtered", "oversize"] {
        let live = if reason == "sent" {
            sent(&status)
        } else {
            dropped_as(&status, reason)
        };
        assert_eq!(outcome(&reader, reason), live, "{reason}");
    }
    bed.fluxctl.run(&["audit"]);
}

#[test]
fn a_tunnel_out_of_an_interface_that_feeds_its_ring_is_refused_or_guarded() {
    need_root!();
    let bed = Bed::new(1500);
    let _rxd = Daemon::start("rxd", &bed.near, &bed.dirs, &[]);
    // Of both directions: what the tunnel sends is captured too.
    bed.fluxctl.run(&["ring", "create", "loop", "--size", "4m"]);
    bed.fluxctl
        .run(&["rx", "add", WIRE, "loop", "--direction", "both"]);
    wait_until(SOON, "the capture runs", || {
        bed.fluxctl.json(&["rx", "show", "loop-wire"])["status"]["state"] == "running"
    });
    let command = [
        "tunnel", "send", "loop", "vxlan", "10.0.0.2", "--vni", "1", "--name", "out",
    ];
    // Else what the far end says of a port that nobody has opened would be captured, and sent there.
    let _open = bed.far.run(|| std::net::UdpSocket::bind("10.0.0.2:4789"));
    let refused = bed.fluxctl.try_run(&command);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("feeds ring loop"),
        "{}",
        refused.stderr
    );

    bed.fluxctl.run(&[&command[..], &["--allow-loop"]].concat());
    bed.wait("the tunnel reads the ring", |status| {
        status["send"]["rings"][0]["state"] == "running"
    });
    // One frame from outside: it is sent once, and its copy that comes back is not sent again.
    fluxcap_e2e::send_frames(&bed.far, WIRE, &[crate::bed::frame(0, 200)]);
    // A copy that was sent again would be one more that was sent, and not dropped.
    let after = bed.wait("the copy of each packet is dropped", |status| {
        let dropped = dropped_as(status, "loop_guard");
        dropped > 0 && dropped == sent(status)
    });
    // The frame, and questions and answers of ARP: no more than a few.
    assert!(sent(&after) < 10, "nothing goes round: {after:#}");
}
