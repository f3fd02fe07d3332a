//! Mirrors: production traffic comes to no harm, whatever becomes of the copies; and every copy is counted.

use std::time::Duration;

use fluxcap_e2e::mirror::{MirrorLab, assert_closes, to_device, to_ring};
use fluxcap_e2e::{Fluxctl, Generator, RingReader, need_root};
use fluxcap_proto::v1::{Attach, Direction, MirrorSpec};

const SOON: Duration = Duration::from_secs(5);

/// The ways to attach, and the directions with the interface that production passes in them.
fn ways() -> Vec<(Attach, Direction, &'static str)> {
    let mut ways = Vec::new();
    for attach in [Attach::Tcx, Attach::Clsact] {
        ways.push((attach, Direction::In, "eth0"));
        ways.push((attach, Direction::Out, "eth1"));
    }
    ways
}

fn spec(of: MirrorSpec, attach: Attach, direction: Direction) -> MirrorSpec {
    MirrorSpec {
        attach: attach.into(),
        direction: direction.into(),
        ..of
    }
}

#[test]
fn copies_reach_a_device_once_each() {
    need_root!();
    let lab = MirrorLab::new();
    for (attach, direction, interface) in ways() {
        lab.mirror("m", spec(to_device(interface, "mon0"), attach, direction));
        let copies = lab.copies();
        let sent = lab.produce(&Generator::new(1).count(2_000));
        copies.wait_frames(sent.frames, SOON);
        copies.stop().assert_exactly(1, &sent);
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(status.mirrored_frames, sent.frames, "{status:#?}");
        lab.delete("m");
        assert_eq!(lab.bpffs.names(""), ["tunnels"]);
    }
}

#[test]
fn copies_reach_a_ring_once_each() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    ctl.run(&["ring", "create", "web", "--size", "16m"]);
    for (attach, direction, interface) in ways() {
        lab.mirror("m", spec(to_ring(interface, "web"), attach, direction));
        let before = fluxcap_e2e::published(&lab.dirs, "web");
        let sent = lab.produce(&Generator::new(1).count(2_000));
        let status = lab.wait_status("m", "all frames are in the ring", |status| {
            status.published_frames == sent.frames
        });
        assert_closes(&status);
        let after = fluxcap_e2e::published(&lab.dirs, "web");
        assert_eq!(after - before, sent.frames);
        lab.delete("m");
    }
    let mut reader = RingReader::open(&lab.dirs, "web");
    assert_eq!(reader.take(8_000, SOON).len(), 8_000);
}
