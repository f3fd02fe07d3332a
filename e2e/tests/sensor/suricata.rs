//! Suricata behind every kind of other end, by every way of sending: the flows, transactions and alerts that it finds in what the tap saw.

use crate::sniffer::{Sniffer, replay};
use crate::traffic::{self, Conversation};
use crate::{Bed, GRO, PLAIN, PREPARED, assert_warned};
use fluxcap_e2e::{Netns, need_root, skipped, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// It takes seconds to start, and many on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
const WAYS: [&str; 5] = ["live", "tc", "af_xdp", "sendmmsg", "auto"];
const FETCHES: u8 = 6;

const RULES: &str = "alert http any any -> any any (msg:\"fetched\"; content:\"/needle\"; http_uri; sid:1; rev:1;)\n\
    alert tcp any any -> any any (msg:\"long\"; dsize:>1460; sid:2; rev:1;)\n";

/// As little as there can be. It leaves the interface as it is, or there would be no end with GRO: by itself it turns GRO off. Checksums and gaps are looked at, so that what is not as it was is found.
fn settings(folder: &Path) -> String {
    format!(
        "%YAML 1.1\n---\nvars:\n  address-groups:\n    HOME_NET: \"any\"\n    EXTERNAL_NET: \"any\"\n\
         default-log-dir: {folder}\nmax-pending-packets: 1024\ncapture:\n  disable-offloading: false\n\
         outputs:\n  - eve-log:\n      enabled: yes\n      filetype: regular\n      filename: eve.json\n      types:\n        - alert\n        - http\n        - flow\n\
         app-layer:\n  protocols:\n    http:\n      enabled: yes\n\
         af-packet:\n  - interface: wire\n    threads: 1\n    cluster-id: 99\n    cluster-type: cluster_flow\n    defrag: yes\n    tpacket-v3: yes\n    ring-size: 60000\n    checksum-checks: yes\n\
         stream:\n  checksum-validation: yes\n  midstream: false\n  reassembly:\n    depth: 0\n\
         classification-file: {folder}/none\nreference-config-file: {folder}/none\n\
         default-rule-path: {folder}\nrule-files:\n  - test.rules\n",
        folder = folder.display()
    )
}

/// A folder with settings and rules.
fn folder(bed: &Bed, name: &str) -> PathBuf {
    let folder = bed.path(name);
    fs::create_dir(&folder).expect("make a folder");
    fs::write(folder.join("test.rules"), RULES).expect("write");
    fs::write(folder.join("none"), "").expect("write");
    fs::write(folder.join("suricata.yaml"), settings(&folder)).expect("write");
    folder
}

fn suricata(mut command: Command, folder: &Path) -> Command {
    let log = fs::File::create(folder.join("log")).expect("make a log");
    command
        .arg("-c")
        .arg(folder.join("suricata.yaml"))
        .arg("-l")
        .arg(folder);
    command.arg("--pidfile").arg(folder.join("pid"));
    command
        .stdin(Stdio::null())
        .stderr(log.try_clone().expect("a log"))
        .stdout(log);
    command
}

/// A Suricata that listens.
struct Sensor {
    child: Child,
    folder: PathBuf,
}

impl Sensor {
    fn start(bed: &Bed, place: usize) -> Sensor {
        let folder = folder(bed, &format!("sensor-{place}"));
        let netns: &Netns = &bed.lab.outputs[place].outside;
        let mut command = suricata(netns.command("suricata"), &folder);
        let child = command
            .arg("--af-packet=wire")
            .spawn()
            .expect("run suricata");
        Sensor { child, folder }
    }

    fn wait(&self) {
        wait_until(PATIENCE, "Suricata listens", || {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            log.contains("Engine started") || log.contains("engine started")
        });
    }

    fn stop(mut self) -> Found {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("stop suricata");
        self.child.wait().expect("wait for suricata");
        Found::read(&self.folder)
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a Suricata has found, by the client's address.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Packets and bytes both ways.
    flows: BTreeMap<String, [u64; 4]>,
    fetched: BTreeMap<String, usize>,
    alerts: BTreeMap<(String, u64), usize>,
}

impl Found {
    fn read(folder: &Path) -> Found {
        let mut found = Found::default();
        for line in fs::read_to_string(folder.join("eve.json"))
            .expect("eve.json")
            .lines()
        {
            let event: Value = serde_json::from_str(line).expect("JSON");
            let client = ["src_ip", "dest_ip"]
                .iter()
                .filter_map(|key| event[key].as_str())
                .find(|address| address.starts_with("10."));
            let client = format!(
                "{} {}",
                client.unwrap_or("?"),
                event["src_port"]
                    .as_u64()
                    .unwrap_or(0)
                    .max(event["dest_port"].as_u64().unwrap_or(0))
            );
            match event["event_type"].as_str() {
                Some("flow") => {
                    let of = |key: &str| event["flow"][key].as_u64().unwrap_or(0);
                    let counts = [
                        "pkts_toserver",
                        "pkts_toclient",
                        "bytes_toserver",
                        "bytes_toclient",
                    ];
                    found.flows.insert(client, counts.map(of));
                }
                Some("http") => *found.fetched.entry(client).or_default() += 1,
                Some("alert") => {
                    let rule = event["alert"]["signature_id"].as_u64().unwrap_or(0);
                    *found.alerts.entry((client, rule)).or_default() += 1;
                }
                _ => {}
            }
        }
        found
    }
}

#[test]
fn suricata_finds_what_it_finds_on_the_tap() {
    need_root!();
    let there = Command::new("suricata").arg("-V").output();
    if !there.is_ok_and(|output| output.status.success()) {
        return skipped("suricata is not installed");
    }
    let bed = Bed::new();
    let sensors = [PLAIN, GRO, PREPARED].map(|place| Sensor::start(&bed, place));
    let tap = Sniffer::start(&bed.lab.host, "tap0", &bed.path("tap.pcap"));
    sensors.iter().for_each(Sensor::wait);
    let (mut total, mut bytes, mut complete) = (0, 0, Vec::new());
    for (way, io) in (0..).zip(WAYS) {
        bed.transmit(io);
        let frames: Vec<Vec<u8>> = (0..FETCHES)
            .flat_map(|n| {
                let port = 40_000 + u16::from(n);
                let path = if n % 2 == 0 { "/needle" } else { "/hay" };
                Conversation::new([10, 0, way, 1], port)
                    .fetch(path)
                    .fetch("/more")
                    .close()
            })
            .collect();
        let file = bed.path(&format!("{io}.pcap"));
        traffic::write(&file, &frames);
        replay(&bed.lab.taps[0].outside, "wire", &file, 40_000);
        total += frames.len();
        bytes += frames.iter().map(Vec::len).sum::<usize>();
        let sent = bed.settle(frames.len());
        assert_warned(&bed.status(), "out1");
        let all = |place: usize| sent[place] == frames.len() as u64;
        assert!(all(PREPARED), "{io}: {sent:?}");
        // Live frames by name are refused by an end that is not prepared, and counted.
        assert!(all(PLAIN) || io == "live", "{io}: {sent:?}");
        complete.push(all(PLAIN));
        bed.lab.ctl(&["tx", "delete", "all"]);
    }
    let seen = tap.stop(Some((total, bytes)));
    assert_eq!(seen.len(), total);
    let judge = folder(&bed, "judge");
    let mut command = suricata(Command::new("suricata"), &judge);
    let status = command
        .arg("-r")
        .arg(bed.path("tap.pcap"))
        .status()
        .expect("run suricata");
    assert!(status.success());
    let truth = Found::read(&judge);
    assert_eq!(
        truth.flows.len(),
        WAYS.len() * usize::from(FETCHES),
        "{truth:?}"
    );
    assert_eq!(
        truth.alerts.len(),
        WAYS.len() * usize::from(FETCHES) / 2,
        "{truth:?}"
    );
    assert!(
        truth.fetched.values().all(|fetched| *fetched == 2),
        "{truth:?}"
    );
    let [plain, gro, prepared] = sensors.map(Sensor::stop);
    assert_eq!(prepared, truth);
    if complete.iter().all(|complete| *complete) {
        assert_eq!(plain, truth);
    } else {
        let flows = |found: &Found| {
            let flows = found.flows.clone().into_iter();
            flows
                .filter(|(client, _)| !client.starts_with("10.0.0."))
                .collect::<Vec<_>>()
        };
        assert_eq!(flows(&plain), flows(&truth));
    }
    // What the host of this one has joined; `tx show` has warned of it every time.
    println!(
        "behind GRO: {} flows, {} of them as on the tap",
        gro.flows.len(),
        gro.flows
            .iter()
            .filter(|(client, counts)| truth.flows.get(*client) == Some(counts))
            .count()
    );
    assert_ne!(gro.flows, truth.flows);
}
