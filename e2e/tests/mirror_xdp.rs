//! Mirrors in the driver's receive path: what a tap delivers is replicated to interfaces inside the kernel.

use std::time::Duration;

use fluxcap_e2e::bench::sink::{Peer, Sink as Foreign};
use fluxcap_e2e::mirrord::{Mirrord, unaccounted};
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{
    Daemon, Dirs, Fluxctl, Generator, Netns, RingReader, Sent, Sink, SinkOptions, Veth, need_root,
    published, wait_until,
};
use fluxcap_proto::v1::{
    Hook, MirrorDevice, MirrorRule, MirrorSpec, MirrorStatus, PortRange, State, VlanTag,
};

const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);
const MTU: u32 = 1500;

/// A tap and two outputs.
struct Bed {
    mirrord: Mirrord,
    dirs: Dirs,
    tap: Netns,
    far: [Netns; 2],
    host: Netns,
}

impl Bed {
    fn new() -> Bed {
        Bed::with(MTU, &[])
    }

    fn with(mtu: u32, without: &[&str]) -> Bed {
        let (host, dirs) = (Netns::new(), Dirs::new());
        let bed = Bed {
            mirrord: Mirrord::start_without(&host, &dirs, without),
            dirs,
            tap: Netns::new(),
            far: [Netns::new(), Netns::new()],
            host,
        };
        Veth::pair((&bed.tap, "wire"), (&bed.host, "tap0"), mtu);
        for n in 0..2 {
            bed.plug(n, mtu);
        }
        bed
    }

    /// Makes an output. Its other end takes redirected frames.
    fn plug(&self, n: usize, mtu: u32) {
        let name = format!("out{n}");
        Veth::pair((&self.host, &name), (&self.far[n], "wire"), mtu);
        Veth::gro(&self.far[n], "wire", true);
    }

    fn sinks(&self) -> [Sink; 2] {
        [0, 1].map(|n| self.sink(n))
    }

    fn sink(&self, n: usize) -> Sink {
        Sink::with(
            &self.far[n],
            "wire",
            SinkOptions {
                keep: 10,
                ..SinkOptions::default()
            },
        )
    }

    fn send(&self, generator: &Generator) -> Sent {
        generator.send(&self.tap, "wire")
    }

    /// Sends and returns what the mirror counts then.
    fn status_after(&self, generator: &Generator) -> MirrorStatus {
        let before = self.status();
        let sent = self.send(generator);
        let seen = before.seen_frames + sent.frames;
        wait_until(SOON, "all frames are seen", || {
            let status = self.status();
            status.seen_frames == seen && unaccounted(&status) == 0
        });
        self.status()
    }

    fn status(&self) -> MirrorStatus {
        self.mirrord.status("taps")
    }

    fn wait_output(&self, n: usize, state: State, reason: &str) {
        wait_until(SOON, reason, || {
            let status = self.status();
            let output = &status.outputs[n];
            output.state() == state && output.reason.contains(reason)
        });
    }
}

fn spec() -> MirrorSpec {
    let device = |name: &str| MirrorDevice {
        name: name.to_owned(),
        vlan_push: None,
    };
    MirrorSpec {
        interface: "tap0".to_owned(),
        hook: Hook::Xdp.into(),
        devices: vec![device("out0"), device("out1")],
        ..MirrorSpec::default()
    }
}

fn tagged(mut spec: MirrorSpec, n: usize, vid: u32) -> MirrorSpec {
    spec.devices[n].vlan_push = Some(VlanTag {
        vid,
        pcp: 3,
        ..VlanTag::default()
    });
    spec
}

fn stop(sinks: [Sink; 2]) -> [fluxcap_e2e::Report; 2] {
    sinks.map(|sink| {
        sink.wait_quiet(QUIET);
        sink.stop()
    })
}

#[test]
fn every_frame_reaches_both_outputs_and_the_host_gets_none() {
    need_root!();
    let bed = Bed::new();
    bed.mirrord.run("taps", &spec());
    let host = Sink::start(&bed.host, "tap0");
    let mut frames = 0;
    for (stream, size) in [(1, 60), (2, 508), (3, 1514)] {
        let sinks = bed.sinks();
        let sent = bed.send(&Generator::new(stream).size(size).rate(50_000).count(20_000));
        for report in stop(sinks) {
            report.assert_exactly(stream, &sent);
        }
        frames += sent.frames;
    }
    let status = bed.status();
    assert_eq!(status.attachments[0].how, "xdp (native)");
    assert_eq!(status.reason, "");
    assert_eq!(status.seen_frames, frames);
    assert_eq!(status.copied_frames, frames);
    assert_eq!(status.mirrored_frames, 2 * frames);
    assert_eq!(status.mirrored_bytes, 2 * 20_000 * (60 + 508 + 1514));
    assert!(status.outputs.iter().all(|output| output.frames == frames));
    assert_eq!(unaccounted(&status), 0);
    assert_eq!(host.stop().streams.len(), 0);
}

#[test]
fn an_output_gets_its_own_tag_and_all_get_the_slice() {
    need_root!();
    let bed = Bed::new();
    let mut wanted = tagged(spec(), 1, 100);
    bed.mirrord.run("taps", &wanted);
    let sinks = bed.sinks();
    let sent = bed.send(&Generator::new(1).size(200).rate(10_000).count(2_000));
    let [plain, tagged] = stop(sinks);
    plain.assert_exactly(1, &sent);
    tagged.assert_exactly(1, &sent);
    assert_eq!(tagged.tags[&vec![(0x8100, 3 << 13 | 100)]], sent.frames);

    wanted.snaplen = 100;
    bed.mirrord.update("taps", &wanted).expect("update");
    let sinks = bed.sinks();
    let before = bed.status();
    let status = bed.status_after(&Generator::new(2).size(200).rate(1_000).count(50));
    let [plain, tagged] = stop(sinks);
    assert!(plain.kept.len() == 10 && tagged.kept.len() == 10);
    for (plain, tagged) in plain.kept.iter().zip(&tagged.kept) {
        assert_eq!((plain.len(), tagged.len()), (100, 100));
        assert_eq!(tagged[12..16], [0x81, 0, 0x60, 100]);
        assert_eq!([&tagged[..12], &tagged[16..]].concat(), plain[..96]);
    }
    assert_eq!(status.truncated_frames - before.truncated_frames, 100);
    assert_eq!(status.mirrored_bytes - before.mirrored_bytes, 100 * 100);
}

#[test]
fn what_no_rule_selects_goes_on_to_the_host() {
    need_root!();
    let bed = Bed::new();
    let rule = MirrorRule {
        destination_ports: vec![PortRange {
            first: 53,
            last: 53,
        }],
        protocols: vec![17],
        ..MirrorRule::default()
    };
    let wanted = MirrorSpec {
        rules: vec![rule],
        ..spec()
    };
    bed.mirrord.run("taps", &wanted);
    let udp = |stream: u16, port: u16| {
        let headers = Headers {
            udp: Some((4000, port)),
            ..Headers::default()
        };
        Generator::new(stream)
            .size(120)
            .rate(10_000)
            .count(1_000)
            .headers(headers)
    };
    let (host, sinks) = (Sink::start(&bed.host, "tap0"), bed.sinks());
    let other = bed.send(&udp(1, 80));
    let status = bed.status_after(&udp(2, 53));
    host.wait_quiet(QUIET);
    host.stop().assert_exactly(1, &other);
    for report in stop(sinks) {
        assert_eq!(report.stream(1).received, 0);
    }
    assert_eq!(status.not_selected_frames, 1_000);
    assert_eq!(status.mirrored_frames, 2_000);
    assert_eq!(status.rule_frames, [1_000]);
}

#[test]
fn a_ring_gets_the_same_frames_beside_the_outputs() {
    need_root!();
    let bed = Bed::new();
    let _ringd = Daemon::start("ringd", &bed.host, &bed.dirs, &[]);
    Fluxctl::new(&bed.dirs).run(&["ring", "create", "last", "--size", "64m"]);
    let wanted = MirrorSpec {
        ring: "last".to_owned(),
        ..tagged(spec(), 0, 7)
    };
    bed.mirrord.run("taps", &wanted);
    let mut reader = RingReader::open(&bed.dirs, "last");
    let sinks = bed.sinks();
    let sent = bed.send(&Generator::new(1).size(300).rate(10_000).count(5_000));
    for report in stop(sinks) {
        report.assert_exactly(1, &sent);
    }
    let frames = reader.take(5_000, SOON);
    assert_eq!(frames.len(), 5_000);
    assert!(
        frames
            .iter()
            .all(|(meta, data)| meta.wire_len == 300 && data.len() == 300)
    );
    assert_eq!(published(&bed.dirs, "last"), 5_000);
    let status = bed.status();
    assert_eq!((status.seen_frames, status.copied_frames), (5_000, 10_000));
    assert_eq!(status.mirrored_frames, 15_000);
    assert_eq!(status.published_frames, 5_000);
    assert_eq!(status.outputs[2].frames, 5_000);
    assert_eq!(unaccounted(&status), 0);
}

#[test]
fn outputs_go_and_come_back_and_what_they_miss_is_counted() {
    need_root!();
    let bed = Bed::new();
    bed.mirrord.run("taps", &spec());
    let burst = Generator::new(1).size(100).rate(10_000).count(500);

    Veth::down(&bed.host, "out1");
    bed.wait_output(1, State::Waiting, "out1 is down");
    let status = bed.status_after(&burst);
    assert_eq!(status.dropped_frames["link_down"], 500);
    assert_eq!(status.outputs[0].frames, 500);
    Veth::up(&bed.host, "out1");
    bed.wait_output(1, State::Running, "");

    Veth::delete(&bed.host, "out1");
    bed.wait_output(1, State::Waiting, "does not exist");
    let status = bed.status_after(&burst);
    assert_eq!(status.dropped_frames["no_interface"], 500);
    assert_eq!(status.outputs[1].failed_frames, 1_000);
    bed.plug(1, MTU);
    bed.wait_output(1, State::Running, "");

    Veth::gro(&bed.far[1], "wire", false);
    bed.wait_output(1, State::Waiting, "output prepare");
    let status = bed.status_after(&burst);
    assert_eq!(status.dropped_frames["not_taken"], 500);
    Veth::gro(&bed.far[1], "wire", true);
    bed.wait_output(1, State::Running, "");

    let sinks = bed.sinks();
    let sent = bed.send(&Generator::new(2).size(100).rate(10_000).count(500));
    for report in stop(sinks) {
        report.assert_exactly(2, &sent);
    }
    let status = bed.status();
    assert_eq!(unaccounted(&status), 0);
    assert!(
        !status.dropped_frames.contains_key("redirect_failed"),
        "{status:?}"
    );
}

#[test]
fn copies_that_do_not_fit_an_output_are_counted_by_who_refuses_them() {
    need_root!();
    let bed = Bed::new();
    bed.mirrord.run("taps", &tagged(spec(), 1, 5));
    // The kernel's bound has room for one tag; the tag that is pushed is a second one.
    let one_tag = Headers {
        tags: vec![(0x8100, 9)],
        ..Headers::default()
    };
    let longest = Generator::new(1).size(1518).rate(10_000).count(300);
    let status = bed.status_after(&longest.clone().headers(one_tag));
    assert_eq!(status.dropped_frames["oversize"], 300, "{status:?}");
    assert_eq!(status.outputs[0].frames, 300);
    assert_eq!(status.outputs[1].failed_frames, 300);

    // The output's other end takes less than the output promises: the driver drops it.
    Veth::set_mtu(&bed.far[0], "wire", 600);
    let status = bed.status_after(&Generator::new(2).size(1000).rate(10_000).count(300));
    assert_eq!(status.dropped_frames["congested"], 300, "{status:?}");
    assert_eq!(status.outputs[0].frames, 300);
    assert_eq!(status.outputs[0].failed_frames, 300);
    assert_eq!(status.outputs[1].frames, 300);

    // The output itself takes less, and the kernel does not even try.
    Veth::set_mtu(&bed.host, "out0", 600);
    let oversize = status.dropped_frames["oversize"];
    wait_until(SOON, "mirrord knows the new MTU", || {
        let status = bed.status_after(&Generator::new(3).size(1000).rate(10_000).count(1));
        status.dropped_frames["oversize"] > oversize
    });
    let before = bed.status();
    let status = bed.status_after(&Generator::new(4).size(1000).rate(10_000).count(300));
    assert_eq!(
        status.dropped_frames["oversize"] - before.dropped_frames["oversize"],
        300
    );
}

#[test]
fn replication_goes_on_without_mirrord_and_is_taken_over_by_the_next_one() {
    need_root!();
    let mut bed = Bed::new();
    bed.mirrord.run("taps", &spec());
    let sinks = bed.sinks();
    let sending = Generator::new(1)
        .size(100)
        .rate(20_000)
        .endless()
        .start(&bed.tap, "wire");
    let link = bed.status().attachments[0].link_id;
    for _ in 0..5 {
        bed.mirrord.daemon.kill();
        let before = sending.frames();
        wait_until(SOON, "frames go on", || sending.frames() > before + 2_000);
        bed.mirrord.daemon.restart();
        bed.mirrord.wait_state("taps", State::Running);
        assert_eq!(bed.status().attachments[0].link_id, link);
    }
    let sent = sending.stop();
    for report in stop(sinks) {
        report.assert_exactly(1, &sent);
    }
    let status = bed.status();
    assert_eq!(status.seen_frames, sent.frames);
    assert_eq!(status.mirrored_frames, 2 * sent.frames);
    assert_eq!(unaccounted(&status), 0);

    bed.mirrord.delete("taps");
    assert!(!has_program(&bed));
}

fn has_program(bed: &Bed) -> bool {
    bed.host.ip(&["-d", "link", "show", "tap0"]).contains("xdp")
}

#[test]
fn a_mirror_that_is_ephemeral_ends_with_mirrord() {
    need_root!();
    let mut bed = Bed::new();
    let wanted = MirrorSpec {
        ephemeral: true,
        ..spec()
    };
    bed.mirrord.run("taps", &wanted);
    assert!(has_program(&bed));
    bed.mirrord.daemon.kill();
    wait_until(SOON, "the program is gone", || !has_program(&bed));
}

#[test]
fn a_new_spec_takes_the_place_of_the_old_one_between_two_frames() {
    need_root!();
    let bed = Bed::new();
    bed.mirrord.run("taps", &spec());
    let sinks = bed.sinks();
    let sending = Generator::new(1)
        .size(100)
        .rate(20_000)
        .endless()
        .start(&bed.tap, "wire");
    for n in 0..10 {
        let wanted = tagged(spec(), 1, 1 + n % 2);
        let program = bed.status().attachments[0].program_id;
        bed.mirrord.update("taps", &wanted).expect("update");
        assert_ne!(bed.status().attachments[0].program_id, program);
    }
    let sent = sending.stop();
    for report in stop(sinks) {
        report.assert_exactly(1, &sent);
    }
    assert_eq!(unaccounted(&bed.status()), 0);
}

#[test]
fn the_program_of_somebody_else_is_left_alone() {
    need_root!();
    let bed = Bed::new();
    let foreign = Foreign::attach(&bed.host, "tap0", Peer::Xdp).expect("attach");
    let before = bed.host.ip(&["-d", "link", "show", "tap0"]);
    let (_, reason) = bed
        .mirrord
        .create("taps", &spec())
        .expect_err("it is taken");
    assert!(
        reason.contains("an XDP program of somebody else"),
        "{reason}"
    );
    assert_eq!(bed.host.ip(&["-d", "link", "show", "tap0"]), before);
    drop(foreign);
    bed.mirrord.run("taps", &spec());
}

#[test]
fn an_input_that_comes_again_is_replicated_again() {
    need_root!();
    let bed = Bed::new();
    bed.mirrord.run("taps", &spec());
    Veth::delete(&bed.host, "tap0");
    bed.mirrord.wait_state("taps", State::Waiting);
    Veth::pair((&bed.tap, "wire"), (&bed.host, "tap0"), MTU);
    bed.mirrord.wait_state("taps", State::Running);
    let sinks = bed.sinks();
    let sent = bed.send(&Generator::new(1).size(100).rate(10_000).count(1_000));
    for report in stop(sinks) {
        report.assert_exactly(1, &sent);
    }
    let attachment = &bed.status().attachments[0];
    assert_eq!(attachment.reattached, 1);
    assert!(attachment.gap_ms > 0);
}

#[test]
fn behind_the_driver_it_works_as_well_and_says_so() {
    need_root!();
    // A veth takes no program that cannot have frames in several pieces when its MTU asks for such.
    let bed = Bed::with(9000, &[]);
    bed.mirrord.run("taps", &tagged(spec(), 1, 100));
    let sinks = bed.sinks();
    let sent = bed.send(&Generator::new(1).size(5_000).rate(5_000).count(1_000));
    let [plain, tagged] = stop(sinks);
    plain.assert_exactly(1, &sent);
    tagged.assert_exactly(1, &sent);
    assert_eq!(tagged.tags[&vec![(0x8100, 3 << 13 | 100)]], sent.frames);
    let sinks = bed.sinks();
    bed.send(&Generator::new(2).size(100).rate(5_000).count(1_000));
    let [plain, tagged] = stop(sinks);
    let start = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (plain, tagged) in plain.kept.iter().zip(&tagged.kept) {
        assert_eq!((plain.len(), tagged.len()), (100, 104));
        assert_eq!((&plain[..12], &tagged[..12]), (&start[..], &start[..]));
        assert_eq!(plain[12..], tagged[16..]);
    }
    let status = bed.status();
    assert_eq!(status.attachments[0].how, "xdp (generic)");
    assert!(
        status.reason.contains("behind the driver"),
        "{}",
        status.reason
    );
    assert_eq!(unaccounted(&status), 0);
}

#[test]
fn without_the_capability_to_trace_it_says_that_drops_are_not_counted() {
    need_root!();
    let bed = Bed::with(MTU, &["perfmon", "sys_admin"]);
    bed.mirrord.run("taps", &tagged(spec(), 1, 100));
    let sinks = bed.sinks();
    let sent = bed.send(&Generator::new(1).size(100).rate(10_000).count(1_000));
    for report in stop(sinks) {
        report.assert_exactly(1, &sent);
    }
    let status = bed.status();
    assert!(status.reason.contains("not counted"), "{}", status.reason);
    assert_eq!(unaccounted(&status), 0);
}
