//! Names of interfaces and of hosts, and what becomes of work when they come to mean something else.

use fluxcap_e2e::mirrord::Mirrord;
use fluxcap_e2e::{Daemon, Generator, Lab, Netns, Port, Veth, need_root, wait_until};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_millis(300);

fn status(lab: &Lab, noun: &str, name: &str) -> Value {
    lab.json(&[noun, "show", name])["status"].clone()
}

/// A number of the API, which may be text where JavaScript would round it.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn swap(host: &Netns, one: &str, other: &str) {
    Veth::rename(host, one, "aside");
    Veth::rename(host, other, one);
    Veth::rename(host, "aside", other);
}

/// Waits until something counts one change of the device behind a name, and says so.
fn wait_told(lab: &Lab, noun: &str, name: &str, place: impl Fn(&Value) -> Value) {
    wait_until(SOON, "the change is counted and told", || {
        let status = status(lab, noun, name);
        let counted = number(&place(&status)["device_changes"]) == Some(1);
        counted && status.to_string().contains("is another device than before")
    });
}

#[test]
fn the_name_of_an_interface_decides_when_two_swap_theirs() {
    need_root!();
    let lab = Lab::new(2, 2);
    let _mirrord = Mirrord::start(&lab.host, &lab.dirs);
    lab.ctl(&["ring", "create", "a", "--size", "4m"]);
    lab.ctl(&["ring", "create", "b", "--size", "4m"]);
    lab.ctl(&["rx", "add", "tap0", "a"]);
    lab.ctl(&["tx", "add", "a", "out0"]);
    lab.ctl(&[
        "mirror",
        "add",
        "tap0",
        "--to",
        "ring:b",
        "--direction",
        "ingress",
    ]);
    lab.wait_running();
    wait_until(SOON, "the mirror runs", || {
        status(&lab, "mirror", "tap0-b")["state"] == "running"
    });
    let through = |from: &Port, to: &Port, stream: u16| {
        let sink = to.sink();
        let sent = from.send(&Generator::new(stream).count(200));
        sink.wait_frames(sent.frames, SOON);
        sink.wait_quiet(QUIET);
        sink.stop().assert_exactly(stream, &sent);
    };
    through(&lab.taps[0], &lab.outputs[0], 1);

    swap(&lab.host, "tap0", "tap1");
    swap(&lab.host, "out0", "out1");
    let first = |status: &Value| status["interfaces"][0].clone();
    wait_told(&lab, "rx", "a-tap0", first);
    wait_told(&lab, "tx", "a-out0", first);
    wait_told(&lab, "mirror", "tap0-b", Value::clone);
    lab.wait_running();
    // The devices that have the names now.
    through(&lab.taps[1], &lab.outputs[1], 2);
    let seen = |lab: &Lab| number(&status(lab, "mirror", "tap0-b")["seen_frames"]);
    wait_until(SOON, "the mirror has seen them", || seen(&lab) == Some(400));
    // And not the others.
    let sinks = [lab.outputs[0].sink(), lab.outputs[1].sink()];
    lab.taps[0].send(&Generator::new(3).count(50));
    for sink in sinks {
        sink.wait_quiet(QUIET);
        assert_eq!(sink.stop().stream(3).received, 0);
    }
    assert_eq!(seen(&lab), Some(400));
    lab.audit();
}

#[test]
fn a_filter_with_a_host_name_waits_for_it_after_a_restart() {
    need_root!();
    let mut lab = Lab::new(1, 1);
    lab.rxd.stop();
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = folder.path().join("hosts");
    let known = "127.0.0.1 localhost\n192.0.2.77 known.example\n";
    std::fs::write(&hosts, known).expect("write");
    let mut rxd = Daemon::start_with_hosts("rxd", &lab.host, &lab.dirs, &[], &hosts);
    lab.ctl(&["ring", "create", "a", "--size", "4m"]);
    lab.ctl(&["rx", "add", "tap0", "a", "--filter", "host known.example"]);
    let is = |state: &str| status(&lab, "rx", "a-tap0")["state"] == state;
    wait_until(SOON, "it runs", || is("running"));
    rxd.stop();
    std::fs::write(&hosts, "127.0.0.1 localhost\n").expect("write");
    rxd.restart();
    wait_until(SOON, "it says so", || {
        let status = status(&lab, "rx", "a-tap0");
        let reason = status["reason"].as_str().unwrap_or_default();
        status["state"] != "running" && reason.contains("known.example")
    });
    std::fs::write(&hosts, known).expect("write");
    wait_until(SOON, "it runs again", || is("running"));
}
