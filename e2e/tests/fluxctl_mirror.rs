//! fluxctl against a real mirrord: mirrors made, shown, changed, kept and deleted; exit codes; the books; the capabilities that it takes.

use std::time::Duration;

use fluxcap_e2e::mirror::MirrorLab;
use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Daemon, Fluxctl, Generator, need_root, wait_until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const FRAMES: u64 = 1_000;

/// Frames of UDP in IPv4.
fn udp(stream: u16) -> Generator {
    let headers = Headers {
        udp: Some((1000, 2000)),
        ..Headers::default()
    };
    Generator::new(stream)
        .headers(headers)
        .size(100)
        .count(FRAMES)
}

/// The lab, fluxctl for it, and a ring `web`.
fn lab() -> (MirrorLab, Fluxctl) {
    let lab = MirrorLab::new();
    let ctl = Fluxctl::new(&lab.dirs);
    ctl.run(&["ring", "create", "web", "--size", "16m"]);
    (lab, ctl)
}

fn json(ctl: &Fluxctl, args: &[&str]) -> Value {
    ctl.run(&[args, &["-o", "json"]].concat()).json()
}

fn show(ctl: &Fluxctl, mirror: &str) -> Value {
    json(ctl, &["mirror", "show", mirror])
}

fn names(ctl: &Fluxctl) -> Vec<String> {
    let mirrors = json(ctl, &["mirror", "list"]);
    let mirrors = mirrors.as_array().expect("a list");
    let name = |mirror: &Value| mirror["name"].as_str().expect("a name").to_owned();
    mirrors.iter().map(name).collect()
}

#[track_caller]
fn wait_running(ctl: &Fluxctl, mirror: &str) {
    wait_until(SOON, &format!("{mirror} runs"), || {
        show(ctl, mirror)["status"]["state"] == "running"
    });
}

/// Waits until a counter of a mirror has this value.
#[track_caller]
fn wait_count(ctl: &Fluxctl, mirror: &str, counter: &str, value: u64) {
    wait_until(SOON, &format!("{counter} is {value}"), || {
        show(ctl, mirror)["status"][counter] == json!(value)
    });
}

#[test]
fn mirrors_are_made_shown_changed_and_deleted() {
    need_root!();
    let (lab, ctl) = lab();
    let made = json(
        &ctl,
        &[
            "mirror",
            "add",
            "eth0",
            "--direction",
            "ingress",
            "--to",
            "ring:web",
            "--rule",
            "exclude proto tcp",
        ],
    );
    assert_eq!(made["name"], "eth0-web");
    assert_eq!(made["spec"]["direction"], "in");
    ctl.run(&[
        "mirror", "add", "eth1", "--to", "dev:mon0", "--name", "mon", "--for", "1h",
    ]);
    assert_eq!(names(&ctl), ["eth0-web", "mon"]);
    wait_running(&ctl, "eth0-web");
    wait_running(&ctl, "mon");
    let mon = show(&ctl, "mon");
    assert_eq!(mon["spec"]["direction"], "both");
    assert!(
        mon["spec"]["expires_ns"].as_u64().is_some_and(|ns| ns > 0),
        "{mon:#}"
    );
    assert_eq!(
        mon["status"]["attachments"].as_array().map(Vec::len),
        Some(2)
    );
    lab.produce(&udp(1));
    wait_count(&ctl, "eth0-web", "published_frames", FRAMES);
    wait_count(&ctl, "mon", "mirrored_frames", FRAMES);
    let set = [
        "mirror",
        "set",
        "eth0-web",
        "--rule",
        "exclude proto udp",
        "--rule",
        "accept",
        "--snaplen",
        "96",
    ];
    let changed = json(&ctl, &set);
    assert_eq!(changed["spec"]["rules"].as_array().map(Vec::len), Some(2));
    // They decide from now on.
    assert_eq!(changed["status"]["state"], json!("running"));
    assert_eq!(changed["status"]["rule_frames"], json!([0, 0]));
    lab.produce(&udp(2));
    wait_until(SOON, "the new rules decide", || {
        let status = show(&ctl, "eth0-web")["status"].clone();
        status["seen_frames"] == json!(2 * FRAMES)
    });
    let status = show(&ctl, "eth0-web")["status"].clone();
    assert_eq!(status["mirrored_frames"], json!(FRAMES), "{status:#}");
    assert_eq!(status["not_selected_frames"], json!(FRAMES), "{status:#}");
    assert_eq!(status["rule_frames"], json!([FRAMES, 0]), "{status:#}");
    let table = ctl.run(&["mirror", "list"]).stdout;
    for part in ["NAME", "ring:web", "dev:mon0", "ingress", "both", "running"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let shown = ctl.run(&["mirror", "show", "eth0-web"]).stdout;
    for part in [
        "exclude proto udp",
        "accept",
        "1,000",
        "--snaplen 96",
        "tcx",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    ctl.run(&["mirror", "delete", "eth0-web", "mon"]);
    assert!(names(&ctl).is_empty());
    assert_eq!(lab.bpffs.names(""), ["tunnels"]);
}

#[test]
fn exit_codes_tell_what_is_wrong_with_a_mirror() {
    need_root!();
    let (mut lab, ctl) = lab();
    let run = |args: &str| {
        let words: Vec<&str> = args.split(' ').collect();
        ctl.try_run(&[&["mirror"], &words[..]].concat())
    };
    for (args, says) in [
        ("add eth0", "--to ring:NAME"),
        ("add eth0 --to web", "ring:NAME"),
        ("add eth0 --to dev:eth0", "own interface"),
        ("add eth0 --to vxlan:192.0.2.9", "vni=N"),
        (
            "add eth0 --to vxlan:192.0.2.9,vni=16777216",
            "0 to 16777215",
        ),
        ("add eth0 --to gue:collector", "address of the collector"),
        ("add eth0 --to gretap:192.0.2.9 --sport 5", "not in UDP"),
        ("add eth0 --to ring:web --ttl 5", "without a collector"),
        ("add eth0 --to ring:a/b", "ring: "),
        ("add eth0 --to ring:web --rule dport", "value is missing"),
        ("add eth0 --to ring:web --filter foo", "filter: "),
        ("add eth0 --to ring:web --order middle", "before:ID"),
        ("add eth0 --to ring:web --hook xdp", "devices: "),
        (
            "add eth0 --to dev:mon0 --hook xdp --direction both",
            "direction: ",
        ),
        (
            "add --iface=eth0 --redirect-to=mon0 --src-port=x",
            "--src-port",
        ),
    ] {
        let refused = run(args);
        assert_eq!(refused.code, 2, "{args}: {refused:?}");
        assert!(refused.stderr.contains(says), "{args}: {refused:?}");
    }
    assert!(names(&ctl).is_empty());
    assert_eq!(run("add eth0 --to ring:web --name x --dry-run").code, 0);
    assert!(names(&ctl).is_empty(), "a dry run makes nothing");
    assert_eq!(run("add eth0 --to ring:web --name x --for 1h").code, 0);
    assert_eq!(
        run("add eth0 --to ring:web --name x --for 1h").code,
        0,
        "the same again"
    );
    assert_eq!(run("add eth1 --to ring:web --name x").code, 4);
    assert_eq!(run("set x").code, 2);
    assert_eq!(run("set x --ttl 5").code, 2);
    let moved = run("set x --to dev:mon0");
    assert!(moved.code == 2 || moved.code == 4, "{moved:?}");
    assert_eq!(run("set y --snaplen 5").code, 3);
    assert_eq!(run("show y").code, 3);
    assert_eq!(run("delete y").code, 3);
    let failed = run("show X");
    assert!(failed.stderr.contains("did you mean x?"), "{failed:?}");
    lab.mirrord.kill();
    let unreachable = run("list -o json");
    assert_eq!(unreachable.code, 5);
    assert!(
        unreachable.stderr.contains("fluxcap-mirrord"),
        "{unreachable:?}"
    );
}

#[test]
fn the_books_of_a_mirror_and_of_its_ring_close() {
    need_root!();
    let (lab, ctl) = lab();
    ctl.run(&[
        "mirror", "add", "eth0", "--to", "ring:web", "--sample", "1/4",
    ]);
    ctl.run(&[
        "mirror", "add", "eth1", "--to", "dev:mon0", "--name", "mon", "--rate", "500pps",
    ]);
    wait_running(&ctl, "eth0-web");
    wait_running(&ctl, "mon");
    lab.produce(&udp(1));
    wait_count(&ctl, "mon", "seen_frames", FRAMES);
    let audit = json(&ctl, &["audit"]);
    assert_eq!(audit["verdict"], "ok", "{audit:#}");
    let stages = audit["stages"].as_array().expect("stages");
    let upstream = |stage: &str, object: &str| {
        let line = stages
            .iter()
            .find(|it| it["stage"] == stage && it["object"] == object);
        line.map(|it| it["upstream"].clone())
    };
    assert_eq!(
        upstream("I8 mirror", "mirrord eth0-web"),
        Some(json!(FRAMES)),
        "{audit:#}"
    );
    assert_eq!(
        upstream("I8 mirror", "mirrord mon"),
        Some(json!(FRAMES)),
        "{audit:#}"
    );
    let mirrored = show(&ctl, "eth0-web")["status"]["mirrored_frames"].clone();
    assert_eq!(
        upstream("I2 mirrord", "all sources"),
        Some(mirrored),
        "{audit:#}"
    );
    let limited = show(&ctl, "mon")["status"]["rate_limited_frames"].as_u64();
    assert!(limited.is_some_and(|frames| frames > 0), "{limited:?}");
    let status = json(&ctl, &["status"]).to_string();
    for part in ["mirrord", "\"eth0-web\"", "\"mon\""] {
        assert!(status.contains(part), "{part}: {status}");
    }
}

#[test]
fn mirrors_come_back_after_a_restart_and_ephemeral_ones_do_not() {
    need_root!();
    let (mut lab, ctl) = lab();
    ctl.run(&[
        "mirror",
        "add",
        "eth0",
        "--to",
        "ring:web",
        "--for",
        "1h",
        "--direction",
        "ingress",
    ]);
    ctl.run(&["mirror", "add", "eth1", "--to", "dev:mon0", "--ephemeral"]);
    wait_running(&ctl, "eth0-web");
    wait_running(&ctl, "eth1-mon0");
    let programs = |ctl: &Fluxctl| {
        let mirror = show(ctl, "eth0-web");
        (
            mirror["spec"].clone(),
            mirror["status"]["attachments"][0]["program_id"].clone(),
        )
    };
    let before = programs(&ctl);
    assert_eq!(lab.bpffs.names("").len(), 3);
    lab.mirrord.kill();
    lab.mirrord.restart();
    assert_eq!(names(&ctl), ["eth0-web"]);
    wait_running(&ctl, "eth0-web");
    assert_eq!(programs(&ctl), before);
    assert_eq!(lab.bpffs.names(""), ["eth0-web", "tunnels"]);
    lab.produce(&udp(1));
    wait_count(&ctl, "eth0-web", "published_frames", FRAMES);
}

#[test]
fn mirrors_can_be_named_on_the_daemons_command_line_and_by_old_names() {
    need_root!();
    let (mut lab, ctl) = lab();
    let args = [
        "--mirror",
        "eth0:ring:web",
        "--direction",
        "ingress",
        "--rule",
        "proto udp",
        "--ephemeral",
    ];
    lab.mirrord.stop();
    lab.start_mirrord(&args, Daemon::start);
    assert_eq!(names(&ctl), ["eth0-web"]);
    wait_running(&ctl, "eth0-web");
    let old = [
        "mirror",
        "add",
        "--iface=eth1",
        "--direction=egress",
        "--redirect-to",
        "mon0",
        "--dst-address=0.0.0.0",
        "--src-port=0",
        "--protocol=udp,icmp",
    ];
    ctl.run(&old);
    wait_running(&ctl, "eth1-mon0");
    lab.produce(&udp(1));
    wait_count(&ctl, "eth0-web", "published_frames", FRAMES);
    wait_count(&ctl, "eth1-mon0", "mirrored_frames", FRAMES);
    lab.mirrord.stop();
    // With --ephemeral nothing outlives the daemon.
    assert_eq!(lab.bpffs.names(""), ["tunnels"]);
}

#[test]
fn two_capabilities_are_enough() {
    need_root!();
    let (mut lab, ctl) = lab();
    lab.mirrord.stop();
    lab.start_mirrord(&[], |name, netns, dirs, args| {
        Daemon::start_with_only(name, netns, dirs, args, &["bpf", "net_admin"])
    });
    ctl.run(&[
        "mirror",
        "add",
        "eth0",
        "--to",
        "ring:web",
        "--direction",
        "ingress",
        "--rule",
        "proto udp",
        "--filter",
        "udp",
    ]);
    ctl.run(&[
        "mirror",
        "add",
        "eth0",
        "--to",
        "dev:mon0",
        "--attach",
        "clsact",
        "--direction",
        "ingress",
    ]);
    wait_running(&ctl, "eth0-web");
    wait_running(&ctl, "eth0-mon0");
    lab.produce(&udp(1));
    wait_count(&ctl, "eth0-web", "published_frames", FRAMES);
    wait_count(&ctl, "eth0-mon0", "mirrored_frames", FRAMES);
    // One that is there already is adopted with no more than that.
    lab.mirrord.kill();
    lab.mirrord.restart();
    wait_running(&ctl, "eth0-web");
    ctl.run(&["mirror", "set", "eth0-web", "--rule", "exclude proto udp"]);
    ctl.run(&["mirror", "delete", "eth0-web", "eth0-mon0"]);
    assert_eq!(lab.bpffs.names(""), ["tunnels"]);
}

#[test]
fn a_capability_that_is_missing_is_named() {
    need_root!();
    let (mut lab, ctl) = lab();
    ctl.run(&["mirror", "add", "eth0", "--to", "ring:web"]);
    for (missing, name) in [("net_admin", "CAP_BPF"), ("bpf", "CAP_NET_ADMIN")] {
        let start: fn(&str, &_, &_, &[&str]) -> Daemon = match missing {
            "bpf" => |n, s, d, a| Daemon::start_with_only(n, s, d, a, &["bpf"]),
            _ => |n, s, d, a| Daemon::start_with_only(n, s, d, a, &["net_admin"]),
        };
        // What is in the kernel already is taken over without any; so that it is not there.
        lab.mirrord.stop();
        let _ = std::fs::remove_dir_all(lab.bpffs.path().join("eth0-web"));
        lab.start_mirrord(&[], start);
        let refused = ctl.try_run(&["mirror", "add", "eth1", "--to", "ring:web"]);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.stderr.contains(name), "{name}: {refused:?}");
        wait_until(SOON, "the kept mirror says it too", || {
            let reason = show(&ctl, "eth0-web")["status"]["reason"].to_string();
            reason.contains(name)
        });
    }
}
