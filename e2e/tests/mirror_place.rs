//! Where the programs of a mirror are: among those of others at an interface where they are told to be, whatever happens, and by links or as filters.

use std::os::fd::AsFd;
use std::time::Duration;

use fluxcap_e2e::mirror::{COLLECTOR, MirrorLab, assert_closes, to_collector, to_device};
use fluxcap_e2e::{Generator, Sink, need_root};
use fluxcap_proto::v1::{Attach, Direction, MirrorSpec, State};
use fluxcap_socket::{BpfLink, Classifier, LinkHook, LinkOrder};
use tonic::Code;

const SOON: Duration = Duration::from_secs(5);
/// TCX_NEXT and TCX_DROP (`linux/bpf.h`).
const PASS: i32 = -1;
const DROP: i32 = 2;

/// A program of somebody else at `eth0`, which has an opinion on every frame.
struct Other {
    link: BpfLink,
    id: u32,
}

impl Other {
    #[track_caller]
    fn attach(lab: &MirrorLab, hook: LinkHook, verdict: i32) -> Other {
        let [a, b, c, d] = verdict.to_ne_bytes();
        // r0 = verdict; exit
        let code = [[0xb7, 0, 0, 0, a, b, c, d], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let program = Classifier::load("other", &code).expect("a program");
        let link = lab.host.run(|| {
            let ifindex = nix::net::if_::if_nametoindex("eth0").expect("the interface");
            BpfLink::attach(program.as_fd(), ifindex, hook, LinkOrder::Last).expect("attach")
        });
        let id = link.info().expect("a link").program_id;
        Other { link, id }
    }
}

/// Programs at `eth0` in their order; 0 is the mirror's.
fn order(lab: &MirrorLab, hook: LinkHook, others: &[&Other]) -> Vec<u32> {
    let found = lab.host.run(|| {
        let ifindex = nix::net::if_::if_nametoindex("eth0").expect("the interface");
        BpfLink::attached(ifindex, hook).expect("ask")
    });
    let known = |id| others.iter().any(|other| other.id == id);
    let ids = found.into_iter().map(|it| it.program_id);
    ids.map(|id| if known(id) { id } else { 0 }).collect()
}

fn ordered(order: String, direction: Direction) -> MirrorSpec {
    MirrorSpec {
        order,
        direction: direction.into(),
        ..to_device("eth0", "mon0")
    }
}

#[test]
fn a_mirror_is_where_it_is_told_to_be_and_stays_there() {
    need_root!();
    let mut lab = MirrorLab::new();
    for (hook, direction, pin) in [
        (LinkHook::TcxIngress, Direction::In, "ingress"),
        (LinkHook::TcxEgress, Direction::Out, "egress"),
    ] {
        let others = [(); 3].map(|()| Other::attach(&lab, hook, PASS));
        let [a, b, c] = others.each_ref().map(|other| other.id);
        let all: Vec<&Other> = others.iter().collect();
        lab.mirror("m", ordered(format!("before:{b}"), direction));
        assert_eq!(order(&lab, hook, &all), [a, 0, b, c]);
        for (wanted, place) in [
            (format!("after:{b}"), [a, b, 0, c]),
            (format!("before:{a}"), [0, a, b, c]),
            (format!("after:{c}"), [a, b, c, 0]),
            ("first".to_owned(), [0, a, b, c]),
            ("last".to_owned(), [a, b, c, 0]),
            (format!("before:{c}"), [a, b, 0, c]),
        ] {
            lab.update("m", ordered(wanted, direction), &["order"])
                .expect("it moves");
            assert_eq!(order(&lab, hook, &all), place);
        }
        // Other settings, another life, somebody who takes it off: the place is the same.
        let sliced = MirrorSpec {
            snaplen: 100,
            ..ordered(format!("before:{c}"), direction)
        };
        lab.update("m", sliced, &["snaplen"])
            .expect("it is changed");
        assert_eq!(order(&lab, hook, &all), [a, b, 0, c]);
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
        assert_eq!(order(&lab, hook, &all), [a, b, 0, c]);
        let link = BpfLink::open(&lab.bpffs.path().join("m").join(pin)).expect("the link");
        link.detach().expect("detach it");
        lab.wait_status("m", "it is attached again", |s| {
            s.attachments[0].reattached == 1
        });
        assert_eq!(order(&lab, hook, &all), [a, b, 0, c]);
        lab.delete("m");
        assert_eq!(order(&lab, hook, &all), [a, b, c]);
    }
}

#[test]
fn in_front_of_a_program_that_drops_there_are_copies_and_behind_it_none() {
    need_root!();
    let lab = MirrorLab::new();
    let other = Other::attach(&lab, LinkHook::TcxIngress, DROP);
    for (wanted, copied) in [("before", 500), ("after", 0)] {
        lab.mirror(
            "m",
            ordered(format!("{wanted}:{}", other.id), Direction::In),
        );
        let copies = lab.copies();
        let sent = Generator::new(1).count(500).send(&lab.left, "wire");
        copies.wait_frames(copied, SOON);
        copies.wait_quiet(Duration::from_millis(100));
        let report = copies.stop();
        let status = lab.status("m");
        assert_closes(&status);
        assert_eq!(status.mirrored_frames, copied, "{status:#?}");
        assert_eq!(report.streams.len(), usize::from(copied != 0));
        if copied != 0 {
            report.assert_exactly(1, &sent);
        }
        lab.delete("m");
    }
}

#[test]
fn an_order_by_a_program_that_is_not_there_is_refused_with_those_that_are() {
    need_root!();
    let lab = MirrorLab::new();
    let other = Other::attach(&lab, LinkHook::TcxIngress, PASS);
    let refused = |spec: MirrorSpec| {
        let refused = lab.create("m", spec).expect_err("it is refused");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        refused.message().to_owned()
    };
    let missing = refused(ordered("before:4000000000".to_owned(), Direction::In));
    assert!(missing.contains(&format!("but {}", other.id)), "{missing}");
    // It is at one of both ways only.
    let both = refused(ordered(format!("after:{}", other.id), Direction::Both));
    assert!(both.contains("eth0 egress, but none"), "{both}");
    // A mirror that runs goes on as it was.
    let spec = ordered(format!("after:{}", other.id), Direction::In);
    lab.mirror("m", spec.clone());
    lab.update(
        "m",
        ordered("after:4000000000".to_owned(), Direction::In),
        &["order"],
    )
    .expect_err("it is refused");
    assert_eq!(order(&lab, LinkHook::TcxIngress, &[&other]), [other.id, 0]);
    // Without the other one it stays; attached again, it waits for a place.
    let id = other.id;
    drop(other.link);
    assert_eq!(order(&lab, LinkHook::TcxIngress, &[]), [0]);
    assert_eq!(lab.status("m").state(), State::Running);
    let link = BpfLink::open(&lab.bpffs.path().join("m/ingress")).expect("the link");
    link.detach().expect("detach it");
    lab.wait_status("m", "it says what is missing", |s| {
        s.state() == State::Waiting && s.reason.contains(&format!("no program {id}"))
    });
    let last = ordered("last".to_owned(), Direction::In);
    lab.update("m", last, &["order"]).expect("it is changed");
    assert_eq!(lab.status("m").state(), State::Running);
    assert_eq!(order(&lab, LinkHook::TcxIngress, &[]), [0]);
}

/// TCX links at the egress of the interface to clone to.
fn relay_links(lab: &MirrorLab) -> usize {
    let links = lab.host.ip(&["-o", "link"]);
    let helper = links
        .split_whitespace()
        .find(|word| word.starts_with("fxm"));
    let helper = helper.expect("a helper").trim_end_matches(':').to_owned();
    lab.host.run(|| {
        let ifindex = nix::net::if_::if_nametoindex(&*helper).expect("the interface");
        let attached = BpfLink::attached(ifindex, LinkHook::TcxEgress);
        attached.expect("ask").len()
    })
}

#[test]
fn the_relay_is_attached_as_the_mirror_is() {
    need_root!();
    let mut lab = MirrorLab::new();
    lab.add_collector();
    let spec = |attach: Attach| MirrorSpec {
        attach: attach.into(),
        ..to_collector(COLLECTOR[0])
    };
    lab.mirror("m", spec(Attach::Clsact));
    let sink = Sink::start(&lab.monitor, "vx4");
    let sending = Generator::new(1)
        .rate(5_000)
        .endless()
        .start(&lab.left, "wire");
    for attach in [
        Attach::Clsact,
        Attach::Tcx,
        Attach::Clsact,
        Attach::Unspecified,
    ] {
        let changed = lab.update("m", spec(attach), &["attach"]).expect("changed");
        let status = changed.status.expect("a status");
        assert_eq!(status.state(), State::Running, "{status:#?}");
        let as_filter = attach == Attach::Clsact;
        assert_eq!(status.attachments[0].how == "clsact", as_filter);
        assert_eq!(relay_links(&lab), usize::from(!as_filter), "{attach:?}");
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
        assert_eq!(relay_links(&lab), usize::from(!as_filter), "{attach:?}");
    }
    let sent = sending.stop();
    sink.wait_quiet(Duration::from_millis(200));
    let stream = sink.stop().stream(1);
    println!("{} frames, {stream:?}", sent.frames);
    let status = lab.status("m");
    assert_closes(&status);
    // Nothing is copied while the mirror itself changes its place, and nothing twice.
    assert_eq!(stream.received, status.mirrored_frames);
    assert!(status.mirrored_frames > sent.frames * 9 / 10, "{status:#?}");
    lab.delete("m");
    assert_eq!(lab.bpffs.names(""), ["tunnels"]);
}

/// Frames pass, and the mirror sees none of them because of what runs before it.
#[test]
fn what_ends_the_way_of_frames_before_a_mirror_is_named() {
    need_root!();
    let lab = MirrorLab::new();
    let sending = Generator::new(1)
        .rate(200)
        .endless()
        .start(&lab.left, "wire");
    let in_only = |spec: MirrorSpec, attach: Attach| MirrorSpec {
        attach: attach.into(),
        direction: Direction::In.into(),
        ..spec
    };
    let blind = |text: &str| {
        let status = lab.wait_status("m", "it says so", |s| s.reason.contains(text));
        assert_eq!(status.state(), State::Waiting, "{status:#?}");
        assert_eq!(status.seen_frames, 0, "{status:#?}");
        status
    };
    let other = Other::attach(&lab, LinkHook::TcxIngress, DROP);
    let text = format!("TCX program {}", other.id);
    for attach in [Attach::Unspecified, Attach::Clsact] {
        lab.mirror("m", in_only(to_device("eth0", "mon0"), attach));
        let status = blind(&text);
        assert!(status.reason.contains("--order first"), "{status:#?}");
        assert!(status.attachments[0].before.contains(&text), "{status:#?}");
        if attach == Attach::Unspecified {
            // As advised.
            let first = ordered("first".to_owned(), Direction::In);
            lab.update("m", first, &["order"]).expect("it moves");
            // What is before it is looked at once a second.
            lab.wait_status("m", "frames, and nobody before it", |s| {
                s.seen_frames > 0 && s.attachments[0].before.is_empty()
            });
            lab.wait_state("m", State::Running);
        }
        lab.delete("m");
    }
    drop(other);
    // A filter of traffic control before one of ours.
    lab.tc(&["qdisc", "add", "dev", "eth0", "clsact"]);
    lab.tc(&[
        "filter", "add", "dev", "eth0", "ingress", "pref", "7", "protocol", "all", "u32", "match",
        "u32", "0", "0", "flowid", "1:1",
    ]);
    lab.mirror("m", in_only(to_device("eth0", "mon0"), Attach::Clsact));
    blind("u32 filter with pref 7");
    lab.tc(&["filter", "del", "dev", "eth0", "ingress", "pref", "7"]);
    lab.wait_status("m", "frames", |s| s.seen_frames > 0);
    lab.wait_state("m", State::Running);
    lab.delete("m");
    // What is behind it is its own.
    lab.mirror("m", ordered(String::new(), Direction::In));
    lab.wait_status("m", "frames", |s| s.seen_frames > 400);
    assert_eq!(lab.status("m").state(), State::Running);
    sending.stop();
}
