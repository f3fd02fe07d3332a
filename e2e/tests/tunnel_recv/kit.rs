//! About 500 packets by an independent generator, correct, wrong and hostile, with what is to become of each: `../shared/kit/gen-tunnels`.

use crate::lab::{Lab, SOON, WIRE};
use fluxcap_e2e::{RingReader, kit_or_skip, need_root, send_frames, wait_until};
use pcap_file::pcap::PcapReader;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Tunnels that take what the kernel's devices take for which the set was made: name, which is that of its ring too, and options.
const TUNNELS: [(&str, &str); 10] = [
    ("tap77", "gretap tap77 --key 77"),
    ("tap78", "gretap tap78 --key 78 --csum"),
    ("tap79", "gretap tap79 --key 79 --seq"),
    ("tap0", "gretap tap0"),
    ("gre70", "gre gre70 --key 70"),
    ("erspan", "erspan --map none=erspan,100=erspan,200=erspan"),
    ("vx42", "vxlan vx42 --vni 42"),
    ("gn7", "geneve gn7 --vni 7"),
    ("gue", "gue --map none=gue,77=gue --dport 6080"),
    ("ipip", "ipip ipip"),
];
/// How many of them, the first ones, get all packets of GRE.
const GRE: usize = 6;
/// Seeds of the random cases, and of the order of fragments; none takes the generator's own.
const SEEDS: [Option<u32>; 4] = [None, Some(1), Some(20), Some(300)];
/// Counters of the kernel about packets that reach no socket: file, protocol, names.
const KERNEL: [(&str, &str, &[&str]); 3] = [
    (
        "snmp",
        "Ip:",
        &[
            "InHdrErrors",
            "InAddrErrors",
            "InUnknownProtos",
            "InDiscards",
            "ReasmFails",
        ],
    ),
    ("snmp", "Udp:", &["NoPorts", "InErrors", "InCsumErrors"]),
    (
        "netstat",
        "IpExt:",
        &["InTruncatedPkts", "InCsumErrors", "InNoRoutes"],
    ),
];

/// The reasons under which a case that is to be dropped may be counted; none: the kernel's.
fn reasons(name: &str) -> &'static [&'static str] {
    let table: [(&str, &'static [&'static str]); 20] = [
        ("seq goes back", &["out_of_order"]),
        ("bad checksum", &["checksum"]),
        ("checksum absent", &["checksum_missing"]),
        ("seq absent", &["sequence_missing"]),
        ("wrong key", &["unknown_id"]),
        ("IPv6 wrong key", &["unknown_id"]),
        ("wrong session", &["unknown_id"]),
        ("wrong vni", &["unknown_id"]),
        ("wrong outer source", &["src_denied"]),
        ("version", &["version"]),
        ("flag bit", &["flags"]),
        ("I flag clear", &["flags"]),
        // Of a flag that nobody knows it cannot be said what it needs.
        ("flags need", &["flags", "short", "option_length"]),
        ("hlen beyond", &["short", "option_length"]),
        ("opt len past", &["short", "option_length"]),
        ("control message", &["control"]),
        ("protocol", &["protocol"]),
        ("proto", &["protocol"]),
        ("O=1 but truncated", &["short"]),
        ("truncated to", &["short", "inner_short"]),
    ];
    let known = table.iter().find(|(prefix, _)| name.starts_with(prefix));
    match known {
        Some((_, reasons)) => reasons,
        None if name.starts_with("type I inner truncated") => &["inner_short"],
        None => &[],
    }
}

/// One case of the set.
struct Case {
    id: u32,
    encap: String,
    name: String,
    expect: String,
    frames: Vec<Vec<u8>>,
    /// What is to be delivered.
    inner: Option<Vec<u8>>,
}

/// Makes a set. None, and why, when the generator cannot run here.
fn generate(kit: &Path, out: &Path, seed: Option<u32>) -> Result<Vec<Case>, String> {
    let mut command = Command::new(kit.join("gen-tunnels"));
    command.arg(out);
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let output = command.output().expect("run gen-tunnels");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    println!(
        "seed {seed:?}: {}",
        String::from_utf8_lossy(&output.stdout).trim()
    );
    let pcap = File::open(out.join("all.pcap")).expect("all.pcap");
    let mut reader = PcapReader::new(pcap).expect("a pcap file");
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.expect("a sound packet").data.to_vec());
    }
    let manifest = std::fs::read_to_string(out.join("manifest.jsonl")).expect("manifest.jsonl");
    let lines = manifest
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    Ok(lines.map(|case| read(&case, &frames)).collect())
}

fn read(case: &Value, frames: &[Vec<u8>]) -> Case {
    let text = |field: &str| case[field].as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| usize::try_from(value.as_u64().expect("a number")).expect("small");
    let range = number(&case["frames"][0])..=number(&case["frames"][1]);
    let inner = case["inner"].as_str().map(bytes_of);
    let is_ip = case["l3"] == true;
    Case {
        id: u32::try_from(number(&case["id"])).expect("small"),
        encap: text("encap"),
        name: text("name"),
        expect: text("expect"),
        frames: frames[range].to_vec(),
        inner: inner.map(|inner| if is_ip { with_ethernet(&inner) } else { inner }),
    }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16);
    digits
        .map(|pair| byte(pair).expect("hexadecimal digits"))
        .collect()
}

/// What is to be made of an IP packet without an Ethernet header.
fn with_ethernet(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(if packet.first().is_some_and(|b| b >> 4 == 6) {
        [0x86, 0xdd]
    } else {
        [8, 0]
    });
    frame.extend(packet);
    frame
}

/// The number of the case that a frame comes from.
fn case_of(frame: &[u8]) -> Option<u32> {
    let at = frame.windows(3).position(|word| word == b"RVK")?;
    let digits = frame.get(at + 3..at + 9)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What the tunnels and the kernel have counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Counts {
    /// Drops by tunnel and reason.
    tunnels: BTreeMap<(String, String), u64>,
    /// Packets that each tunnel has received.
    received: BTreeMap<String, u64>,
    kernel: BTreeMap<String, u64>,
}

impl Counts {
    fn read(lab: &Lab) -> Counts {
        let mut counts = Counts::default();
        for tunnel in lab
            .fluxctl
            .json(&["tunnel", "list"])
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = tunnel["name"].as_str().unwrap_or_default();
            let status = &tunnel["status"];
            let received = status["receive"]["received_packets"].as_u64();
            counts
                .received
                .insert(name.to_owned(), received.unwrap_or(0));
            for (reason, n) in status["dropped_frames"].as_object().into_iter().flatten() {
                let key = (name.to_owned(), reason.clone());
                counts.tunnels.insert(key, n.as_u64().unwrap_or(0));
            }
        }
        counts.kernel = lab.host.run(kernel);
        counts
    }

    /// Whether each packet has come to all sockets that it comes to.
    fn is_even(&self) -> bool {
        let gre = TUNNELS[..GRE]
            .iter()
            .map(|(name, _)| self.received.get(*name));
        let mut counts: Vec<_> = gre.collect();
        counts.dedup();
        counts.len() == 1
    }

    /// What has grown since `before`: reasons of tunnels, names of the kernel.
    fn since(&self, before: &Counts) -> (Vec<&str>, Vec<&str>) {
        let grown = self
            .tunnels
            .iter()
            .filter(|(key, n)| before.tunnels.get(*key) != Some(n));
        let kernel = self
            .kernel
            .iter()
            .filter(|(key, n)| before.kernel.get(*key) != Some(n));
        (
            grown.map(|((_, reason), _)| &**reason).collect(),
            kernel.map(|(name, _)| &**name).collect(),
        )
    }
}

/// The kernel's counters of the calling thread's namespace.
fn kernel() -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    for (file, protocol, names) in KERNEL {
        let text =
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("counters");
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with(protocol))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let pairs = lines[0]
            .iter()
            .zip(&lines[1])
            .filter(|(name, _)| names.contains(name));
        counters
            .extend(pairs.map(|(name, n)| (format!("{protocol}{name}"), n.parse().unwrap_or(0))));
    }
    counters
}

/// Whether fragments wait for others.
fn has_fragments() -> bool {
    let text = std::fs::read_to_string("/proc/thread-self/net/sockstat").expect("sockstat");
    let line = text
        .lines()
        .find(|line| line.starts_with("FRAG:"))
        .unwrap_or_default();
    line.split_whitespace().nth(2) != Some("0")
}

/// Waits until nothing is on the way any more; the counters then.
fn settle(lab: &Lab) -> Counts {
    let mut last = Counts::default();
    wait_until(SOON, "all is quiet", || {
        let now = Counts::read(lab);
        let quiet = now == last && now.is_even() && !lab.host.run(has_fragments);
        last = now;
        quiet
    });
    last
}

/// Sends all cases. Those to be dropped one at a time, so that it can be seen what counts them; what is wrong with that.
fn send(lab: &Lab, cases: &[Case]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let mut before = settle(lab);
    for case in cases {
        if case.expect != "drop" {
            pending.extend(case.frames.iter().cloned());
            continue;
        }
        if !pending.is_empty() {
            send_frames(&lab.sender, WIRE, &std::mem::take(&mut pending));
            before = settle(lab);
        }
        send_frames(&lab.sender, WIRE, &case.frames);
        let after = settle_after(lab, &before);
        let (tunnels, kernel) = after.since(&before);
        let wanted = reasons(&case.name);
        let counted = match wanted {
            [] => !kernel.is_empty() || !tunnels.is_empty(),
            wanted => tunnels.iter().any(|reason| wanted.contains(reason)),
        };
        if !counted {
            faults.push(format!(
                "#{} {}: {}: counted by tunnels under {tunnels:?}, by the kernel under {kernel:?}, wanted {wanted:?}",
                case.id, case.encap, case.name
            ));
        }
        before = after;
    }
    send_frames(&lab.sender, WIRE, &pending);
    settle(lab);
    faults
}

/// Waits until something has been counted, and all is quiet again. That nothing is counted is found out by who asked.
fn settle_after(lab: &Lab, before: &Counts) -> Counts {
    let begun = std::time::Instant::now();
    loop {
        let now = settle(lab);
        if now != *before || begun.elapsed() > Duration::from_secs(2) {
            return now;
        }
    }
}

/// What was delivered that should not have been, or not as it should have been.
fn judge(cases: &[Case], rings: &mut [RingReader]) -> Vec<String> {
    let mut got: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    for (_, frame) in rings.iter_mut().flat_map(|ring| ring.take(0, SOON)) {
        got.entry(case_of(&frame).unwrap_or(0))
            .or_default()
            .push(frame);
    }
    let verdict = |case: &Case| {
        let delivered = got.get(&case.id).map_or(&[][..], |frames| frames);
        let wrong = match case.expect.as_str() {
            "accept" => delivered.iter().ne(case.inner.iter()),
            "drop" => !delivered.is_empty(),
            _ => false,
        };
        wrong.then(|| {
            let lengths: Vec<_> = delivered.iter().map(Vec::len).collect();
            let wanted = case.inner.as_ref().map(Vec::len);
            format!(
                "#{} {}: {}: {} expected, frames of {lengths:?} bytes delivered; its own has {wanted:?}",
                case.id, case.encap, case.name, case.expect
            )
        })
    };
    cases.iter().filter_map(verdict).collect()
}

#[test]
fn each_packet_of_an_independent_generator_is_delivered_or_counted() {
    need_root!();
    let Some(kit) = kit_or_skip("gen-tunnels") else {
        return;
    };
    let out = tempfile::tempdir().expect("a directory");
    for seed in SEEDS {
        let cases = match generate(&kit, out.path(), seed) {
            Ok(cases) => cases,
            Err(reason) => return fluxcap_e2e::skipped(&format!("gen-tunnels: {reason}")),
        };
        let mut lab = Lab::new();
        let mut rings: Vec<_> = TUNNELS.iter().map(|(name, _)| lab.ring(name)).collect();
        for (name, options) in TUNNELS {
            let from = "--from 10.99.0.1 --from fd00:99::1";
            lab.ctl(&format!("tunnel recv {options} {from} --name {name}"));
        }
        wait_until(SOON, "all tunnels run", || {
            let tunnels = lab.fluxctl.json(&["tunnel", "list"]);
            tunnels
                .as_array()
                .into_iter()
                .flatten()
                .all(|it| it["status"]["state"] == "running")
        });
        // Mutants say that they are the case that they were made of, so what comes of them is not looked at.
        let first = cases
            .iter()
            .position(|case| case.encap.starts_with("mutant"));
        let (cases, mutants) = cases.split_at(first.unwrap_or(cases.len()));
        let mut faults = send(&lab, cases);
        faults.extend(judge(cases, &mut rings));
        faults.extend(send(&lab, mutants));
        assert!(lab.tunneld.ended().is_none(), "tunneld has ended");
        lab.audit();
        assert!(faults.is_empty(), "seed {seed:?}:\n{}", faults.join("\n"));
    }
}
