//! A bpffs that somebody mounts over the one where the programs of mirrors have their names: mirrord, started again, does not find them. No frame
//! is copied twice, and what cannot be mended is said.

use std::path::Path;
use std::time::Duration;

use fluxcap_e2e::mirror::{COLLECTOR, MirrorLab, assert_closes, to_collector, to_device};
use fluxcap_e2e::{Fluxctl, Generator, Sink, need_root, wait_until};
use fluxcap_proto::v1::{Attach, Direction, Hook, MirrorSpec, State};
use fluxcap_socket::{BpfLink, LinkHook, LinkWatch};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const SOON: Duration = Duration::from_secs(5);

/// Another bpffs over a folder, until it is dropped.
struct Cover<'p>(&'p Path);

impl Cover<'_> {
    #[track_caller]
    fn mount(path: &Path) -> Cover<'_> {
        let none: Option<&str> = None;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), none).expect("mount a bpffs");
        Cover(path)
    }

    /// Takes it away, if nobody uses it.
    fn unmount(&self) -> bool {
        umount2(self.0, MntFlags::empty()).is_ok()
    }
}

impl Drop for Cover<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// Links at an interface of the host, by way.
fn links(lab: &MirrorLab, interface: &str) -> [usize; 2] {
    lab.host.run(|| {
        let ifindex = nix::net::if_::if_nametoindex(interface).expect("the interface");
        [LinkHook::TcxIngress, LinkHook::TcxEgress]
            .map(|hook| BpfLink::attached(ifindex, hook).expect("ask").len())
    })
}

fn ingress(spec: MirrorSpec) -> MirrorSpec {
    MirrorSpec {
        direction: Direction::In.into(),
        attach: Attach::Tcx.into(),
        ..spec
    }
}

/// Production arrives, and one copy of each frame beyond `mon0`.
#[track_caller]
fn one_copy_each(lab: &MirrorLab) {
    let copies = lab.copies();
    let sent = lab.produce(&Generator::new(1).count(1_000));
    copies.wait_frames(sent.frames, SOON);
    copies.wait_quiet(Duration::from_millis(100));
    copies.stop().assert_exactly(1, &sent);
}

#[test]
fn whoever_may_takes_over_what_is_hidden() {
    need_root!();
    let mut lab = MirrorLab::as_root();
    for direction in [Direction::In, Direction::Both] {
        let spec = MirrorSpec {
            direction: direction.into(),
            ..ingress(to_device("eth0", "mon0"))
        };
        let wanted = [1, usize::from(direction == Direction::Both)];
        lab.mirror("m", spec);
        lab.mirrord.kill();
        let path = lab.bpffs.path().to_owned();
        let cover = Cover::mount(&path);
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
        assert_eq!(links(&lab, "eth0"), wanted);
        one_copy_each(&lab);
        assert_closes(&lab.status("m"));
        // The next life finds them by their names.
        lab.mirrord.restart();
        lab.wait_state("m", State::Running);
        assert_eq!(links(&lab, "eth0"), wanted);
        lab.delete("m");
        assert_eq!(links(&lab, "eth0"), [0, 0]);
        drop(cover);
    }
}

#[test]
fn whoever_may_not_says_so_and_attaches_nothing() {
    need_root!();
    let mut lab = MirrorLab::with(&["sys_admin"]);
    lab.mirror("m", ingress(to_device("eth0", "mon0")));
    lab.mirrord.kill();
    let path = lab.bpffs.path().to_owned();
    let cover = Cover::mount(&path);
    lab.mirrord.restart();
    lab.wait_status("m", "it says what is wrong", |s| {
        s.state() == State::Waiting && s.reason.contains("unmount what was mounted over")
    });
    let ctl = Fluxctl::new(&lab.dirs);
    let listed = ctl.run(&["mirror", "list"]);
    assert!(
        listed.stdout.contains("attached already, by link"),
        "{}",
        listed.stdout
    );
    assert_eq!(links(&lab, "eth0"), [1, 0]);
    one_copy_each(&lab);
    let refused = ctl.try_run(&["mirror", "delete", "m"]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("attached already"),
        "{}",
        refused.stderr
    );
    assert_eq!(links(&lab, "eth0"), [1, 0]);
    // With the cover away it goes on by itself.
    wait_until(SOON, "nobody uses the cover", || cover.unmount());
    lab.wait_state("m", State::Running);
    assert_eq!(links(&lab, "eth0"), [1, 0]);
    one_copy_each(&lab);
    assert_eq!(lab.status("m").mirrored_frames, 2_000);
    lab.delete("m");
    assert_eq!(links(&lab, "eth0"), [0, 0]);
}

#[test]
fn what_was_hidden_is_detached_by_somebody_and_the_mirror_goes_on() {
    need_root!();
    let mut lab = MirrorLab::with(&["sys_admin"]);
    lab.mirror("m", ingress(to_device("eth0", "mon0")));
    let hidden = BpfLink::open(&lab.bpffs.path().join("m/ingress")).expect("the link");
    lab.mirrord.kill();
    let path = lab.bpffs.path().to_owned();
    let _cover = Cover::mount(&path);
    lab.mirrord.restart();
    lab.wait_status("m", "it waits", |s| {
        s.reason.contains("bpftool link detach")
    });
    hidden.detach().expect("detach it");
    lab.wait_state("m", State::Running);
    one_copy_each(&lab);
    assert_eq!(links(&lab, "eth0"), [1, 0]);
    lab.delete("m");
}

#[test]
fn a_mirror_that_was_forgotten_while_it_was_hidden_is_swept() {
    need_root!();
    let mut lab = MirrorLab::as_root();
    lab.mirror("m", ingress(to_device("eth0", "mon0")));
    lab.mirrord.kill();
    let path = lab.bpffs.path().to_owned();
    let _cover = Cover::mount(&path);
    for entry in std::fs::read_dir(lab.dirs.state())
        .expect("the state")
        .flatten()
    {
        std::fs::remove_file(entry.path()).expect("forget what was there");
    }
    lab.mirrord.restart();
    wait_until(SOON, "the program goes", || links(&lab, "eth0") == [0, 0]);
}

#[test]
fn a_filter_is_found_whatever_is_hidden() {
    need_root!();
    let mut lab = MirrorLab::with(&["sys_admin"]);
    let spec = MirrorSpec {
        attach: Attach::Clsact.into(),
        ..ingress(to_device("eth0", "mon0"))
    };
    lab.mirror("m", spec);
    lab.mirrord.kill();
    let path = lab.bpffs.path().to_owned();
    let _cover = Cover::mount(&path);
    lab.mirrord.restart();
    lab.wait_state("m", State::Running);
    one_copy_each(&lab);
    lab.delete("m");
    let copies = lab.copies();
    lab.produce(&Generator::new(1).count(100));
    copies.wait_quiet(Duration::from_millis(100));
    assert_eq!(copies.stop().streams.len(), 0);
}

#[test]
fn replication_by_xdp_waits_for_what_is_hidden() {
    need_root!();
    let mut lab = MirrorLab::as_root();
    let spec = MirrorSpec {
        hook: Hook::Xdp.into(),
        direction: Direction::In.into(),
        ..to_device("eth0", "mon0")
    };
    let program = |lab: &MirrorLab| {
        let found = lab
            .host
            .run(|| LinkWatch::open().and_then(|mut all| all.find("eth0")));
        found.expect("ask").expect("the interface").xdp_program
    };
    lab.create("m", spec).expect("the mirror is made");
    let before = program(&lab);
    assert_ne!(before, 0);
    lab.mirrord.kill();
    let path = lab.bpffs.path().to_owned();
    let cover = Cover::mount(&path);
    lab.mirrord.restart();
    lab.wait_status("m", "it says why it waits", |s| {
        s.state() == State::Waiting && s.reason.contains("mounted over its bpffs")
    });
    assert_eq!(program(&lab), before);
    drop(cover);
    // It holds the folder that is gone, until it is started again.
    lab.mirrord.restart();
    lab.wait_status("m", "it has its program again", |s| {
        !s.attachments.is_empty() && s.attachments[0].program_id != 0
    });
    lab.delete("m");
    assert_eq!(program(&lab), 0);
}

#[test]
fn a_relay_that_is_hidden_is_made_anew() {
    need_root!();
    let mut lab = MirrorLab::as_root();
    lab.add_collector();
    lab.mirror("m", ingress(to_collector(COLLECTOR[0])));
    lab.mirrord.kill();
    let path = lab.bpffs.path().to_owned();
    let _cover = Cover::mount(&path);
    lab.mirrord.restart();
    lab.wait_state("m", State::Running);
    let sink = Sink::start(&lab.monitor, "vx4");
    let sent = lab.produce(&Generator::new(1).size(200).count(1_000));
    sink.wait_frames(sent.frames, SOON);
    sink.wait_quiet(Duration::from_millis(100));
    sink.stop().assert_exactly(1, &sent);
    let status = lab.status("m");
    assert_closes(&status);
    assert_eq!(status.outputs[0].frames, sent.frames, "{status:#?}");
    lab.delete("m");
}
