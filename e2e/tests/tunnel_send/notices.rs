//! What the far end says, and where it is by its name.

use crate::bed::{Bed, FAR, NEAR, QUIET, SOON, WIRE, arrivals, assert_each_once, sent};
use fluxcap_e2e::{Netns, need_root};
use fluxcap_headers::tunnel::TunnelKind;
use std::io::Write as _;

#[test]
fn a_far_end_that_only_listens_in_is_no_reason_to_stop() {
    need_root!();
    for outer in [0, 1] {
        for (words, kind, what) in [
            ("vxlan ADDR --vni 5", TunnelKind::Vxlan, "port"),
            ("gretap ADDR", TunnelKind::Gretap, "protocol"),
        ] {
            let mut bed = Bed::new(1500);
            bed.far.sysctl("net/ipv6/icmp/ratelimit", "0");
            bed.tunnel(&words.replace("ADDR", FAR[outer]));
            let sink = bed.sink();
            bed.publish(100, 200);
            let status = bed.wait("the far end has said so", |status| {
                status["send"]["icmp_events"][what]
                    .as_u64()
                    .is_some_and(|n| n > 0)
            });
            assert_eq!(status["state"], "running", "{status:#}");
            bed.publish(100, 200);
            let status = bed.wait_done(200);
            assert_eq!(sent(&status), 200, "{status:#}");
            sink.wait_quiet(QUIET);
            assert_each_once(words, &arrivals(&sink.stop(), kind), 200);
        }
    }
}

/// Puts the far end's name into a file like /etc/hosts.
fn write_hosts(file: &tempfile::NamedTempFile, address: &str) {
    // In place: tunneld sees this very file.
    let mut open = std::fs::File::create(file.path()).expect("write a hosts file");
    writeln!(open, "{address} far.test").expect("write a hosts file");
}

#[test]
fn a_name_is_resolved_again_when_nothing_gets_there() {
    need_root!();
    let [near, far] = [Netns::new(), Netns::new()];
    Bed::plug(&near, &far, 1500);
    far.ip(&["addr", "add", "10.0.0.3/24", "dev", WIRE]);
    let hosts = tempfile::NamedTempFile::new().expect("make a file");
    write_hosts(&hosts, FAR[0]);
    let path = hosts.path().to_string_lossy().into_owned();
    let mut bed = Bed::with(near, far, &[&path]);
    bed.tunnel("gretap far.test");
    let sink = bed.sink();
    let status = bed.wait("the name is known", |status| {
        status["send"]["path"]["remote"] == FAR[0]
    });
    assert_eq!(status["send"]["path"]["local"], NEAR[0]);
    bed.publish(100, 200);
    bed.wait_done(100);
    sink.wait_frames(100, SOON);

    write_hosts(&hosts, "10.0.0.3");
    bed.near.ip(&["route", "add", "unreachable", "10.0.0.2/32"]);
    bed.wait("the other address is known", |status| {
        status["send"]["path"]["remote"] == "10.0.0.3"
    });
    bed.wait("it runs", |status| status["state"] == "running");
    bed.publish(100, 200);
    let status = bed.wait_done(200);
    assert_eq!(sent(&status), 200, "{status:#}");
    sink.wait_quiet(QUIET);
    assert_each_once("by name", &arrivals(&sink.stop(), TunnelKind::Gretap), 200);
}

#[test]
fn a_name_that_nobody_knows_is_waited_for() {
    need_root!();
    let [near, far] = [Netns::new(), Netns::new()];
    Bed::plug(&near, &far, 1500);
    let hosts = tempfile::NamedTempFile::new().expect("make a file");
    let path = hosts.path().to_string_lossy().into_owned();
    let mut bed = Bed::with(near, far, &[&path]);
    bed.tunnel("gretap far.test");
    let status = bed.wait("it waits", |status| status["state"] == "waiting");
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("far.test"), "{reason}");
    bed.publish(10, 200);
    let status = bed.wait_done(10);
    assert_eq!(status["dropped_frames"]["no_route"], 10, "{status:#}");
    write_hosts(&hosts, FAR[0]);
    bed.wait("it runs", |status| status["state"] == "running");
}
