//! What is added and changed by fluxctl: names, waiting, taking the place of another one; lists of which items come and go while what stays
//! loses nothing, by the count of the generator and of the sink.

use fluxcap_e2e::{Daemon, Generator, Lab, Sink, need_root, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);

fn names(lab: &Lab, noun: &str) -> Vec<String> {
    let all = lab.json(&[noun, "list"]);
    let all = all.as_array().expect("a list");
    let name = |one: &Value| one["name"].as_str().expect("a name").to_owned();
    all.iter().map(name).collect()
}

/// Runs these changes in turn, again and again, until the sink has got so many frames.
fn change_until(lab: &Lab, sink: &Sink, frames: u64, changes: &[&[&str]]) -> usize {
    let mut done = 0;
    for change in changes.iter().cycle() {
        lab.ctl(change);
        done += 1;
        if sink.frames() >= frames {
            break;
        }
    }
    done
}

#[test]
fn outputs_and_rings_of_a_transmit_come_and_go_and_what_stays_loses_nothing() {
    need_root!();
    let lab = Lab::new(2, 3);
    lab.ctl(&["ring", "create", "a", "b", "--size", "32m"]);
    lab.ctl(&["rx", "add", "tap0", "a"]);
    lab.ctl(&["rx", "add", "tap1", "b"]);
    lab.ctl(&["tx", "add", "a", "out0", "--name", "t"]);
    lab.wait_running();
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(20_000).count(60_000));
    let changes: [&[&str]; 6] = [
        &["tx", "set", "t", "--interfaces-add", "out1,out2"],
        &["tx", "set", "t", "--rings-add", "b"],
        &["tx", "set", "t", "--interfaces-remove", "out1"],
        &["tx", "set", "t", "--interfaces", "out2,out0"],
        &["tx", "set", "t", "--rings-remove", "b"],
        &["tx", "set", "t", "--interfaces", "out0"],
    ];
    let done = change_until(&lab, &sink, 50_000, &changes);
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    println!("{done} changes, {} frames", sent.on_wire());
    assert!(done >= changes.len(), "only {done} changes");
    let status = lab.json(&["tx", "show", "t"])["status"].clone();
    let output = status["interfaces"].as_array().expect("interfaces");
    let output = output.iter().find(|it| it["name"] == "out0");
    assert_eq!(
        output.map(|it| &it["sent_frames"]),
        Some(&json!(sent.on_wire()))
    );
    // What came to stay gets what is sent from then on.
    lab.ctl(&["tx", "set", "t", "--interfaces", "out1", "--rings", "b"]);
    lab.wait_running();
    let sink = lab.outputs[1].sink();
    let sent = lab.taps[1].send(&Generator::new(2).rate(20_000).count(5_000));
    sink.wait_frames(sent.on_wire(), SOON);
    sink.stop().assert_exactly(2, &sent);
    lab.audit();
}

#[test]
fn networks_and_senders_of_a_receiver_come_and_go_and_the_others_lose_nothing() {
    need_root!();
    let lab = Lab::new(1, 1);
    let _tunneld = Daemon::start("tunneld", &lab.host, &lab.dirs, &[]);
    lab.ctl(&["ring", "create", "cisco", "back", "core", "--size", "32m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    let recv = [
        "tunnel",
        "recv",
        "vxlan",
        "--map",
        "9001=back",
        "--from",
        "127.0.0.0/8",
    ];
    lab.ctl(&[&recv[..], &["--name", "in"]].concat());
    let send = [
        "tunnel",
        "send",
        "cisco",
        "vxlan",
        "127.0.0.1",
        "--vni",
        "9001",
    ];
    lab.ctl(&[&send[..], &["--name", "out"]].concat());
    lab.ctl(&["tx", "add", "back", "out0"]);
    lab.wait_running();
    wait_until(SOON, "the tunnels run", || {
        let all = lab.json(&["tunnel", "list"]);
        let mut all = all.as_array().expect("a list").iter();
        all.all(|it| it["status"]["state"] == "running")
    });
    let sink = lab.outputs[0].sink();
    let sending = lab.taps[0].start(&Generator::new(1).rate(10_000).count(30_000));
    let changes: [&[&str]; 4] = [
        &["tunnel", "set", "in", "--map-add", "9002=core"],
        &["tunnel", "set", "in", "--from-add", "192.0.2.7"],
        &["tunnel", "set", "in", "--map-remove", "9002"],
        &["tunnel", "set", "in", "--from-remove", "192.0.2.7"],
    ];
    change_until(&lab, &sink, 25_000, &changes);
    let sent = sending.join();
    sink.wait_quiet(QUIET);
    sink.stop().assert_exactly(1, &sent);
    let spec = |name: &str| lab.json(&["tunnel", "show", name])["spec"].clone();
    lab.ctl(&["tunnel", "set", "in", "--map-add", "9002=core"]);
    let map = spec("in")["receive"]["map"].clone();
    assert_eq!(map.as_array().map(Vec::len), Some(2), "{map}");
    // A far end that is another, and one more ring.
    lab.ctl(&[
        "tunnel",
        "set",
        "out",
        "--remote",
        "127.0.0.2",
        "--rings-add",
        "spare",
    ]);
    let send = spec("out")["send"].clone();
    assert_eq!(
        (&send["remote"], &send["rings"]),
        (&json!("127.0.0.2"), &json!(["cisco", "spare"]))
    );
}

#[test]
fn what_is_added_says_what_it_waits_for_and_what_was_meant() {
    need_root!();
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "cisco", "--size", "16m"]);
    let add = |args: &[&str]| lab.fluxctl.try_run(args);
    for (args, meant) in [
        (
            ["rx", "add", "tpa0", "cisco", "--wait=0.2"],
            "did you mean tap0?",
        ),
        (
            ["rx", "add", "tap0", "csico", "--wait=0.2"],
            "did you mean cisco?",
        ),
        (
            ["tx", "add", "cisco", "ou0", "--wait=0.2"],
            "does not exist",
        ),
        (
            ["tx", "add", "cicso", "out0", "--wait=0.2"],
            "did you mean cisco?",
        ),
    ] {
        let output = add(&args);
        assert_eq!(output.code, 3, "{args:?}: {output:?}");
        assert!(output.stderr.contains(meant), "{args:?}: {output:?}");
        assert!(output.stdout.contains("waiting"), "{args:?}: {output:?}");
        let name = match args[0] {
            "rx" => format!("{}-{}", args[3], args[2]),
            _ => format!("{}-{}", args[2], args[3]),
        };
        lab.ctl(&[args[0], "delete", &name]);
    }
    let output = add(&["tx", "add", "cisco", "ou0", "--wait=0.2", "-j"]);
    let error: Value = serde_json::from_str(&output.stderr).expect("JSON");
    assert_eq!(error["error"]["code"], "not_found");
    assert_eq!(output.json()["status"]["state"], "waiting");
    assert_eq!(add(&["tx", "add", "cisco", "ou0", "--wait=0"]).code, 0);
    // What comes in time is no failure, and nobody waits for longer than that.
    let output = add(&["rx", "add", "tap0", "cisco", "--wait=10s"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("running"), "{output:?}");
    let quiet = add(&["rx", "add", "tap0", "cisco", "-q"]);
    assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (0, "", ""));
}

#[test]
fn default_names_do_not_clash_and_the_same_work_is_not_done_twice() {
    need_root!();
    let lab = Lab::new(0, 0);
    let _tunneld = Daemon::start("tunneld", &lab.host, &lab.dirs, &[]);
    lab.ctl(&["ring", "create", "cisco", "dell", "--size", "16m"]);
    for _ in 0..2 {
        lab.ctl(&["tx", "add", "cisco", "eth1.5"]);
        lab.ctl(&["tx", "add", "cisco", "eth1-5"]);
        lab.ctl(&[
            "tunnel",
            "send",
            "cisco",
            "vxlan",
            "192.0.2.9",
            "--vni",
            "1",
        ]);
        lab.ctl(&[
            "tunnel",
            "send",
            "cisco",
            "vxlan",
            "192.0.2.9",
            "--vni",
            "2",
        ]);
    }
    assert_eq!(names(&lab, "tx"), ["cisco-eth1-5", "cisco-eth1-5-2"]);
    let tunnels = ["cisco-vxlan-192-0-2-9", "cisco-vxlan-192-0-2-9-2"];
    assert_eq!(names(&lab, "tunnel"), tunnels);
    let changed = ["tx", "add", "cisco", "eth1-5", "--snaplen", "64"];
    let refused = lab.fluxctl.try_run(&changed);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("--replace"), "{refused:?}");
    let replaced = lab.json(&[&changed[..], &["--replace"]].concat());
    assert_eq!(replaced["name"], "cisco-eth1-5-2");
    assert_eq!(replaced["spec"]["edits"]["snaplen"], 64);
    // One that has too little in common with the other is made anew.
    let other = [
        "tunnel",
        "recv",
        "gretap",
        "dell",
        "--name",
        tunnels[0],
        "--replace",
    ];
    assert_eq!(lab.json(&other)["spec"]["kind"], "gretap");
    assert_eq!(names(&lab, "tunnel"), tunnels);
    // All, one, several; what is not there is told beside what is.
    let all = lab.json(&["tunnel", "show"]);
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    assert_eq!(
        lab.json(&["tx", "show", "cisco-eth1-5"])["name"],
        "cisco-eth1-5"
    );
    let some = lab
        .fluxctl
        .try_run(&["tx", "show", "cisco-eth1-5", "cisco-eth1-6", "-j"]);
    assert_eq!(some.code, 3, "{some:?}");
    assert_eq!(some.json()[0]["name"], "cisco-eth1-5");
    lab.ctl(&["tx", "del", "cisco-eth1-5", "cisco-eth1-5-2"]);
    assert!(names(&lab, "tx").is_empty());
}
