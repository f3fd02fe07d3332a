//! `fluxctl audit` says what it knows, and never that something closes of which nobody told it.

use std::time::Duration;

use fluxcap_e2e::mirror::MirrorLab;
use fluxcap_e2e::{Daemon, Fluxctl, Generator, need_root, wait_until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// Exit code, the verdict and the stages.
fn audit(ctl: &Fluxctl) -> (i32, String, Vec<Value>) {
    let ran = ctl.try_run(&["audit", "--timeout", "1s", "--wait", "1s", "-o", "json"]);
    let account = ran.json();
    let stages = account["stages"].as_array().cloned().unwrap_or_default();
    let verdict = account["verdict"].as_str().unwrap_or_default().to_owned();
    (ran.code, verdict, stages)
}

/// The objects of a stage of which nothing is known.
fn unknown(stages: &[Value], stage: &str) -> Vec<String> {
    let lines = stages.iter().filter(|line| line["verdict"] == "unknown");
    lines
        .filter(|line| line["stage"] == stage)
        .map(|line| line["object"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[track_caller]
fn wait_closes(ctl: &Fluxctl) {
    wait_until(SOON, "the audit closes", || audit(ctl).0 == 0);
}

/// The audit must not close without the daemon, and names what is missing.
#[track_caller]
fn assert_unknown(ctl: &Fluxctl, what: &str, stage: &str, object: &str) {
    let (code, verdict, stages) = audit(ctl);
    assert_eq!(
        (code, verdict.as_str()),
        (5, "unknown"),
        "{what}: {stages:#?}"
    );
    assert_eq!(unknown(&stages, stage), [object], "{what}: {stages:#?}");
    let shown = ctl.try_run(&["audit", "--timeout", "1s", "--wait", "1s"]);
    assert!(
        !shown.stdout.contains("the account closes"),
        "{what}: {shown:?}"
    );
    assert!(shown.stdout.contains("unknown"), "{what}: {shown:?}");
}

#[test]
fn mirrors_are_audited_without_a_ring_and_never_vanish() {
    need_root!();
    let mut lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    let nothing = ctl.try_run(&["audit"]);
    assert_eq!(nothing.code, 3, "{nothing:?}");
    ctl.run(&["mirror", "add", "eth0", "--to", "dev:mon0", "--name", "mon"]);
    lab.wait_state("mon", fluxcap_proto::v1::State::Running);
    lab.produce(&Generator::new(1).count(500));
    wait_until(SOON, "mirrored, and audited without a ring", || {
        let (code, _, stages) = audit(&ctl);
        code == 0 && stages.len() == 1 && stages[0]["upstream"] == 500
    });
    lab.mirrord.pause();
    assert_unknown(&ctl, "stopped", "I8 mirror", "mirrord mon");
    lab.mirrord.resume();
    wait_closes(&ctl);
    lab.mirrord.kill();
    assert_unknown(&ctl, "killed", "I8 mirror", "mirrord mon");
    lab.mirrord.restart();
    wait_closes(&ctl);
    // Ended in order: no socket is left, and the mirror goes on.
    lab.mirrord.stop();
    assert_unknown(&ctl, "ended", "I8 mirror", "mirrord mon");
    lab.mirrord.restart();
    wait_closes(&ctl);
}

#[test]
fn what_only_a_daemon_can_tell_is_unknown_without_it() {
    need_root!();
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    let start = |name: &str| Daemon::start(name, &lab.host, &lab.dirs, &[]);
    let mut daemons = ["rxd", "txd", "tunneld"].map(start);
    for (ring, command) in [
        ("web", "rx add eth0 web --name tap"),
        ("far", "tunnel recv vxlan far --vni 5 --name in"),
    ] {
        ctl.run(&["ring", "create", ring, "--size", "4m"]);
        ctl.run(&command.split(' ').collect::<Vec<_>>());
    }
    ctl.run(&["tx", "add", "web", "mon0", "--name", "out"]);
    wait_until(SOON, "everything is at its ring", || {
        let readers = ctl.json(&["ring", "show", "web"])["status"]["readers"].clone();
        readers.as_array().is_some_and(|readers| readers.len() == 1)
    });
    lab.produce(&Generator::new(1).count(300));
    wait_closes(&ctl);
    let told = [
        ("I1 kernel", "rxd tap"),
        ("I5 output", "txd out"),
        ("I6 decap", "tunneld in"),
    ];
    for (daemon, (stage, object)) in daemons.iter_mut().zip(told) {
        daemon.pause();
        assert_unknown(&ctl, &format!("{object} stopped"), stage, object);
        daemon.resume();
        wait_closes(&ctl);
    }
    let [_, _, tunneld] = &mut daemons;
    tunneld.kill();
    assert_unknown(&ctl, "tunneld killed", "I6 decap", "tunneld in");
    tunneld.restart();
    wait_closes(&ctl);
    tunneld.stop();
    assert_unknown(&ctl, "tunneld ended", "I6 decap", "tunneld in");
    // The ring of the capture has nothing to do with it.
    let web = ctl.try_run(&["audit", "web"]);
    assert_eq!(web.code, 0, "{web:?}");
}
