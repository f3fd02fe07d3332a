//! fluxctl against a real tunneld: tunnels made, shown, changed, kept and deleted; exit codes; the books of both directions.

use fluxcap_e2e::{Daemon, Generator, Lab, Veth, need_root, wait_until};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);
const FRAMES: u64 = 1_000;

/// A host with a tap, and tunneld beside the other daemons.
fn lab() -> (Lab, Daemon) {
    let lab = Lab::new(1, 0);
    let tunneld = Daemon::start("tunneld", &lab.host, &lab.dirs, &[]);
    (lab, tunneld)
}

fn show(lab: &Lab, tunnel: &str) -> Value {
    lab.json(&["tunnel", "show", tunnel])
}

fn names(lab: &Lab) -> Vec<String> {
    let tunnels = lab.json(&["tunnel", "list"]);
    let tunnels = tunnels.as_array().expect("a list");
    let name = |tunnel: &Value| tunnel["name"].as_str().expect("a name").to_owned();
    tunnels.iter().map(name).collect()
}

#[track_caller]
fn wait_running(lab: &Lab, tunnels: &[&str]) {
    for tunnel in tunnels {
        let what = format!("{tunnel} runs");
        wait_until(SOON, &what, || {
            show(lab, tunnel)["status"]["state"] == "running"
        });
    }
}

/// From the tap into the ring `cisco`, through a tunnel over the loopback into the ring `back`, `options` at both ends.
fn loop_back(lab: &Lab, kind: &str, options: &[&str]) {
    for ring in ["cisco", "back"] {
        lab.ctl(&["ring", "create", ring, "--size", "16m"]);
    }
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    let recv = ["tunnel", "recv", kind, "back", "--name", "in"];
    lab.ctl(&[&recv, options].concat());
    let send = [
        "tunnel",
        "send",
        "cisco",
        kind,
        "127.0.0.1",
        "--name",
        "out",
    ];
    lab.ctl(&[&send, options].concat());
    lab.wait_running();
    wait_running(lab, &["in", "out"]);
}

#[test]
fn tunnels_are_made_shown_changed_and_deleted() {
    need_root!();
    let (lab, _tunneld) = lab();
    let made = lab.json(&[
        "tunnel",
        "send",
        "cisco",
        "gretap",
        "192.0.2.9",
        "--key",
        "0",
    ]);
    assert_eq!(made["name"], "cisco-gretap-192-0-2-9");
    lab.ctl(&[
        "tunnel",
        "recv",
        "vxlan",
        "--map",
        "9001=edge",
        "--from",
        "192.0.2.0/24",
    ]);
    assert_eq!(names(&lab), ["cisco-gretap-192-0-2-9", "edge-vxlan"]);
    let tunnel = show(&lab, "cisco-gretap-192-0-2-9");
    assert_eq!(tunnel["spec"]["kind"], "gretap");
    assert_eq!(tunnel["spec"]["send"]["id"], 0);
    // No ring and no route: it waits, and says for what.
    assert_eq!(tunnel["status"]["state"], "waiting");
    assert!(
        tunnel["status"]["reason"]
            .as_str()
            .is_some_and(|it| !it.is_empty())
    );
    lab.ctl(&[
        "tunnel",
        "set",
        "cisco-gretap-192-0-2-9",
        "--key",
        "none",
        "--ttl",
        "9",
        "--snaplen",
        "96",
    ]);
    let spec = &show(&lab, "cisco-gretap-192-0-2-9")["spec"];
    assert_eq!(
        (&spec["send"]["id"], &spec["send"]["ttl"]),
        (&Value::Null, &json!(9))
    );
    assert_eq!(spec["edits"]["snaplen"], 96);
    assert_eq!(spec["send"]["remote"], "192.0.2.9");
    lab.ctl(&[
        "tunnel",
        "set",
        "edge-vxlan",
        "--map",
        "9001=edge,9002=core",
        "--from",
        "",
    ]);
    let receive = &show(&lab, "edge-vxlan")["spec"]["receive"];
    assert_eq!(receive["map"][1], json!({ "id": 9002, "ring": "core" }));
    assert_eq!(receive["from"], json!([]));
    let table = lab.ctl(&["tunnel", "list"]).stdout;
    for part in ["NAME", "-> 192.0.2.9", "<- any", "edge,core", "vxlan"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    lab.ctl(&["tunnel", "delete", "cisco-gretap-192-0-2-9", "edge-vxlan"]);
    assert!(names(&lab).is_empty());
}

#[test]
fn exit_codes_tell_what_is_wrong_with_a_tunnel() {
    need_root!();
    let (lab, mut tunneld) = lab();
    let run = |args: &str| {
        let words: Vec<&str> = args.split(' ').collect();
        lab.fluxctl.try_run(&[&["tunnel"], &words[..]].concat())
    };
    for (args, says) in [
        ("send a vxlan 192.0.2.9 --vni 16777216", "0 to 16777215"),
        ("send a vxlan 192.0.2.9 --key 5", "use --vni"),
        ("send a vxlan 192.0.2.9", "--vni N"),
        ("send a erspan 192.0.2.9 --session 1024", "0 to 1023"),
        (
            "send a erspan 192.0.2.9 --session 1 --index 1048576",
            "1048575",
        ),
        ("send a ipip 192.0.2.9 --key 0", "no identifier"),
        ("send a tzsp 192.0.2.9", "received only"),
        ("send a gretap 192.0.2.300", "neither an address"),
        ("send a gretap 192.0.2.9 --local ::1", "both"),
        ("send a gretap 192.0.2.9 --dport 5", "dport"),
        ("send a fou 192.0.2.9", "port"),
        ("send a gretap 192.0.2.9 --df", "truncate or drop"),
        ("send a/b gretap 192.0.2.9", "not a ring name"),
        ("recv gretap a --key any --from host", "192.0.2.0/24"),
        ("recv vxlan --map 1=a,1=b", "two rings"),
        ("recv vxlan", "--map ID=RING"),
    ] {
        let refused = run(args);
        assert_eq!(refused.code, 2, "{args}: {refused:?}");
        assert!(refused.stderr.contains(says), "{args}: {refused:?}");
    }
    assert!(names(&lab).is_empty());
    assert_eq!(run("send a gretap 192.0.2.9 --name x --dry-run").code, 0);
    assert!(names(&lab).is_empty(), "a dry run makes nothing");
    assert_eq!(run("send a gretap 192.0.2.9 --name x").code, 0);
    assert_eq!(
        run("send a gretap 192.0.2.9 --name x").code,
        0,
        "the same again"
    );
    assert_eq!(run("send b gretap 192.0.2.9 --name x").code, 4);
    assert_eq!(run("set x --map 1=a").code, 2);
    assert_eq!(run("set x").code, 2);
    assert_eq!(run("set y --ttl 5").code, 3);
    assert_eq!(run("show y").code, 3);
    assert_eq!(run("delete y").code, 3);
    tunneld.kill();
    let unreachable = run("list -o json");
    assert_eq!(unreachable.code, 5);
    assert!(
        unreachable.stderr.contains("fluxcap-tunneld"),
        "{unreachable:?}"
    );
}

#[test]
fn a_tunnel_that_would_feed_its_own_ring_is_refused() {
    need_root!();
    let (lab, _tunneld) = lab();
    lab.ctl(&["ring", "create", "cisco", "--size", "16m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    lab.wait_running();
    lab.host.ip(&["addr", "add", "192.0.2.1/24", "dev", "tap0"]);
    let send = ["tunnel", "send", "cisco", "gretap", "192.0.2.9"];
    for way in [&[][..], &["--dev", "tap0"]] {
        let refused = lab.fluxctl.try_run(&[&send, way].concat());
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.stderr.contains("interface tap0"), "{refused:?}");
    }
    lab.ctl(&[&send, &["--allow-loop"][..]].concat());
}

#[test]
fn a_path_that_is_too_narrow_is_told_at_once_with_the_bytes_that_are_missing() {
    need_root!();
    let (lab, _tunneld) = lab();
    lab.ctl(&["ring", "create", "cisco", "--size", "16m"]);
    Veth::pair((&lab.host, "way"), (&lab.taps[0].outside, "far"), 1500);
    lab.host.ip(&["addr", "add", "192.0.2.1/24", "dev", "way"]);
    let far = &lab.taps[0].outside;
    far.ip(&["addr", "add", "192.0.2.9/24", "dev", "far"]);
    let send = [
        "tunnel",
        "send",
        "cisco",
        "gretap",
        "192.0.2.9",
        "--key",
        "1",
    ];
    let made = lab.ctl(&[&send, &["--name", "long"][..]].concat());
    // 20 bytes of IP, 8 of GRE with a key, and a frame of 1514.
    assert!(made.stderr.contains("warning: "), "{made:?}");
    assert!(made.stderr.contains("42 fewer"), "{made:?}");
    let path = &show(&lab, "long")["status"]["send"]["path"];
    assert_eq!(
        (&path["missing_bytes"], &path["frame_mtu"]),
        (&json!(42), &json!(1472))
    );
    let made = lab.ctl(&[&send, &["--name", "short", "--snaplen", "1472"][..]].concat());
    assert!(!made.stderr.contains("warning"), "{made:?}");
}

#[test]
fn both_directions_account_for_every_frame() {
    need_root!();
    let (lab, _tunneld) = lab();
    loop_back(&lab, "gretap", &["--key", "7", "--seq"]);
    lab.taps[0].send(&Generator::new(1).size(200).count(FRAMES));
    wait_until(SOON, "through the tunnel", || {
        let receive = &show(&lab, "in")["status"]["receive"];
        receive["published_frames"] == json!(FRAMES)
    });
    let sent = show(&lab, "out")["status"].clone();
    assert_eq!(sent["send"]["sent_frames"], json!(FRAMES), "{sent}");
    let audit = lab.json(&["audit"]);
    let stages: Vec<(String, u64)> = audit["stages"]
        .as_array()
        .expect("stages")
        .iter()
        .map(|line| {
            let stage = line["stage"].as_str().expect("a stage").to_owned();
            (stage, line["upstream"].as_u64().expect("a count"))
        })
        .collect();
    for stage in ["I2 rxd", "I2 tunneld", "I6 decap", "I7 encap"] {
        assert!(
            stages.contains(&(stage.to_owned(), FRAMES)),
            "{stage}: {audit:#}"
        );
    }
    assert_eq!(audit["verdict"], "ok", "{audit:#}");
    let io = lab.json(&["io", "back", "cisco", "--once"]).to_string();
    assert!(
        io.contains("tunneld out") && io.contains("tunneld in"),
        "{io}"
    );
    let status = lab.json(&["status"]).to_string();
    for part in ["tunneld", "\"out\"", "\"in\""] {
        assert!(status.contains(part), "{part}: {status}");
    }
}

#[test]
fn a_capture_file_has_the_sender_and_the_identifier_of_each_frame() {
    need_root!();
    let (lab, _tunneld) = lab();
    loop_back(&lab, "vxlan", &["--vni", "9001"]);
    lab.taps[0].send(&Generator::new(1).size(200).count(20));
    wait_until(SOON, "through the tunnel", || {
        show(&lab, "in")["status"]["receive"]["published_frames"] == 20
    });
    let file = lab.dirs.run().join("back.pcapng");
    let path = file.to_str().expect("text");
    lab.ctl(&[
        "capture", "back", "-w", path, "--from", "oldest", "-c", "20",
    ]);
    let fields = ["frame.interface_name", "frame.comment", "frame.len"];
    let fields = fields.iter().flat_map(|field| ["-e", field]);
    let read = Command::new("tshark")
        .args(["-r", path, "-T", "fields"])
        .args(fields)
        .output()
        .expect("tshark");
    let lines = String::from_utf8_lossy(&read.stdout);
    assert_eq!(lines.lines().count(), 20, "{read:?}");
    let expected = "in 127.0.0.1\ttunnel id 9001\t200";
    assert!(lines.lines().all(|line| line == expected), "{lines}");
}

#[test]
fn what_nobody_wants_is_counted_by_name_and_the_books_still_close() {
    need_root!();
    let (lab, _tunneld) = lab();
    loop_back(&lab, "gretap", &["--key", "7"]);
    lab.ctl(&["tunnel", "set", "out", "--key", "8"]);
    lab.taps[0].send(&Generator::new(1).count(FRAMES));
    wait_until(SOON, "counted", || {
        show(&lab, "in")["status"]["dropped_frames"]["unknown_id"] == json!(FRAMES)
    });
    wait_until(SOON, "told by identifier", || {
        let unknown = &show(&lab, "in")["status"]["receive"]["unknown_ids"];
        *unknown == json!([{ "id": 8, "packets": FRAMES }])
    });
    lab.audit();
    lab.ctl(&[
        "tunnel",
        "set",
        "in",
        "--map",
        "7=back",
        "--from",
        "192.0.2.0/24",
    ]);
    lab.taps[0].send(&Generator::new(2).count(FRAMES));
    wait_until(SOON, "counted", || {
        show(&lab, "in")["status"]["dropped_frames"]["src_denied"] == json!(FRAMES)
    });
    lab.audit();
}

#[test]
fn tunnels_come_back_after_a_restart() {
    need_root!();
    let (lab, mut tunneld) = lab();
    loop_back(&lab, "vxlan", &["--vni", "9001"]);
    let specs = |lab: &Lab| ["in", "out"].map(|name| show(lab, name)["spec"].clone());
    let before = specs(&lab);
    tunneld.kill();
    tunneld.restart();
    assert_eq!(specs(&lab), before);
    wait_running(&lab, &["in", "out"]);
    lab.taps[0].send(&Generator::new(1).count(FRAMES));
    wait_until(SOON, "through the tunnel", || {
        let receive = &show(&lab, "in")["status"]["receive"];
        receive["published_frames"] == json!(FRAMES)
    });
}

#[test]
fn tunnels_can_be_named_on_the_daemons_command_line() {
    need_root!();
    let lab = Lab::new(1, 0);
    for ring in ["cisco", "back"] {
        lab.ctl(&["ring", "create", ring, "--size", "16m"]);
    }
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    let args = [
        "--send",
        "cisco:gue:127.0.0.1",
        "--recv",
        "gue:back",
        "--dport",
        "7080",
        "--inner",
        "gretap",
        "--ephemeral",
    ];
    let _tunneld = Daemon::start("tunneld", &lab.host, &lab.dirs, &args);
    let tunnels = ["back-gue", "cisco-gue-127-0-0-1"];
    assert_eq!(names(&lab), tunnels);
    lab.wait_running();
    wait_running(&lab, &tunnels);
    lab.taps[0].send(&Generator::new(1).size(200).count(FRAMES));
    wait_until(SOON, "through the tunnel", || {
        let receive = &show(&lab, "back-gue")["status"]["receive"];
        receive["published_frames"] == json!(FRAMES)
    });
    assert_eq!(show(&lab, "back-gue")["spec"]["port"], 7080);
}
