//! What a sensor sees behind an output: with the other end of the wire as it comes, with GRO, and prepared.

mod preparation;
mod sniffer;
mod suricata;
mod traffic;

use fluxcap_e2e::mirror::Bpffs;
use fluxcap_e2e::{Lab, LabOptions, Output, Port, binary, kit_or_skip, need_root, wait_until};
use serde_json::Value;
use sniffer::{Sniffer, replay};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use traffic::Conversation;

const SOON: Duration = Duration::from_secs(15);
/// Places of the outputs, by what is at the other end.
const PLAIN: usize = 0;
const GRO: usize = 1;
const PREPARED: usize = 2;

/// A tap, and an output to each kind of other end: a veth as it comes, one with GRO, one that is prepared.
struct Bed {
    lab: Lab,
    files: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        let _bpffs = Bpffs::new();
        let lab = Lab::with(&LabOptions {
            outputs: 3,
            ..LabOptions::default()
        });
        // As veth pairs are: what is behind an output is not, or is, prepared by the user alone.
        lab.outputs[GRO].queue(true);
        let shown = output(&lab, &lab.outputs[PREPARED], &["prepare", "wire"]);
        assert_eq!(shown.code, 0, "{}", shown.stderr);
        lab.ctl(&["ring", "create", "tap", "--size", "64m"]);
        lab.ctl(&["rx", "add", "tap0", "tap", "--buffer", "128M"]);
        let files = tempfile::tempdir().expect("a folder");
        Bed { lab, files }
    }

    /// One transmit to all of them.
    fn transmit(&self, io: &str) {
        self.lab.ctl(&[
            "tx",
            "add",
            "tap",
            "out0,out1,out2",
            "--name",
            "all",
            "--io",
            io,
        ]);
        self.lab.wait_running();
        wait_until(SOON, "ways are chosen", || {
            let wanted = if io == "auto" { "live" } else { io };
            self.interface(PREPARED)["io"] == wanted
        });
    }

    fn status(&self) -> Value {
        self.lab.json(&["tx", "show", "all"])["status"].clone()
    }

    fn interface(&self, place: usize) -> Value {
        self.status()["interfaces"][place].clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn sniffers(&self, round: &str) -> [Sniffer; 3] {
        [PLAIN, GRO, PREPARED].map(|place| {
            let file = self.path(&format!("{round}-{place}.pcap"));
            Sniffer::start(&self.lab.outputs[place].outside, "wire", &file)
        })
    }

    /// Waits until all of `frames` have come to an end at all outputs; what each has sent.
    fn settle(&self, frames: usize) -> [u64; 3] {
        let mut sent = [0; 3];
        wait_until(
            Duration::from_secs(30),
            "every frame has come to an end",
            || {
                let status = self.status();
                [PLAIN, GRO, PREPARED].iter().all(|place| {
                    let interface = &status["interfaces"][*place];
                    sent[*place] = interface["sent_frames"].as_u64().unwrap_or(0);
                    let dropped = interface["dropped_frames"].as_object();
                    let dropped = dropped.map_or(0, |counts| {
                        counts.values().filter_map(Value::as_u64).sum::<u64>()
                    });
                    sent[*place] + dropped == frames as u64
                })
            },
        );
        sent
    }

    /// Sends these frames by this way at these rates, and compares what is seen with what was seen at the tap. True when the end with
    /// GRO saw joined frames.
    fn compare(&self, io: &str, round: &str, parts: &[(PathBuf, u32)]) -> bool {
        let sniffers = self.sniffers(round);
        let tap = Sniffer::start(
            &self.lab.host,
            "tap0",
            &self.path(&format!("{round}-tap.pcap")),
        );
        self.transmit(io);
        let mut frames = Vec::new();
        for (file, rate) in parts {
            replay(&self.lab.taps[0].outside, "wire", file, *rate);
            frames.extend(traffic::read(file));
        }
        let bytes = frames.iter().map(Vec::len).sum();
        let seen_at_tap = tap.stop(Some((frames.len(), bytes)));
        assert_eq!(
            seen_at_tap.len(),
            frames.len(),
            "the tap itself has lost frames"
        );
        let sent = self.settle(frames.len());
        let status = self.status();
        let mut joined = false;
        for (place, sniffer) in sniffers.into_iter().enumerate() {
            let interface = &status["interfaces"][place];
            println!(
                "{round} {io}: {} {} {}",
                interface["name"], interface["last_io"], sent[place]
            );
            if place == GRO {
                assert_eq!(interface["far_end"], "gro");
                assert_warned(&status, "out1");
                joined |= sniffer.stop(None).len() < usize::try_from(sent[place]).expect("few");
                continue;
            }
            let expected = usize::try_from(sent[place]).expect("few");
            let whole = (expected == frames.len()).then_some((expected, bytes));
            let seen = sniffer.stop(whole);
            assert_seen(
                &seen,
                &seen_at_tap,
                expected,
                &format!("{round} {io} {place}"),
            );
            // Nobody is warned of what is as it should be.
            let name = format!("out{place}:");
            assert!(!status["remarks"].to_string().contains(&name), "{status}");
        }
        self.lab.audit();
        self.lab.ctl(&["tx", "delete", "all"]);
        joined
    }
}

/// `fluxctl output` at the far end of an output.
fn output(lab: &Lab, port: &Port, args: &[&str]) -> Output {
    output_in(lab, &port.outside, args)
}

/// The same in any namespace.
fn output_in(lab: &Lab, netns: &fluxcap_e2e::Netns, args: &[&str]) -> Output {
    let mut command = netns.command(binary("fluxctl"));
    command
        .arg("output")
        .args(args)
        .arg("--run-dir")
        .arg(lab.dirs.run());
    run(&mut command)
}

fn run(command: &mut Command) -> Output {
    let done = command.stdin(Stdio::null()).output().expect("run it");
    Output {
        code: done.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// `tx show` warns of GRO at the other end, and says what to run there.
fn assert_warned(status: &Value, output: &str) {
    let remarks = status["remarks"].to_string();
    for part in [output, "GRO is on", "joined", "fluxctl output prepare"] {
        assert!(remarks.contains(part), "{part}: {remarks}");
    }
}

/// `seen` is what the tap saw, byte for byte and in that order, but for what was counted as not sent. Frames of different protocols may
/// change places: the host of a sensor takes frames from its driver eight at a time, and those of protocols that it does not know itself
/// come to its packet sockets behind the others of the eight, whatever is at the other end of the wire.
fn assert_seen(seen: &[Vec<u8>], tap: &[Vec<u8>], expected: usize, what: &str) {
    assert_eq!(seen.len(), expected, "{what}");
    let protocols: BTreeSet<Vec<u8>> = seen.iter().map(|frame| protocol(frame)).collect();
    for wanted in protocols {
        let of = |frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
            let frames = frames.iter();
            frames
                .filter(|frame| protocol(frame) == wanted)
                .cloned()
                .collect()
        };
        let (seen, tap) = (of(seen), of(tap));
        let mut tap = tap.iter();
        for (n, frame) in seen.iter().enumerate() {
            assert!(
                tap.any(|other| other == frame),
                "{what}: frame {n} of protocol {wanted:x?}, {} bytes, is not one of the tap's, or out of order",
                frame.len()
            );
        }
    }
}

/// The types of a frame, and of what is behind its first tag.
fn protocol(frame: &[u8]) -> Vec<u8> {
    let tagged = matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]);
    let inner = if tagged { &frame[16..18] } else { &frame[..0] };
    [&frame[12..14], inner].concat()
}

/// Bulk TCP at rates at which bursts are single frames, dozens and hundreds, by every way of sending.
#[test]
fn a_sniffer_sees_bulk_tcp_as_on_the_tap_whichever_way_it_comes() {
    need_root!();
    let bed = Bed::new();
    let parts: Vec<(PathBuf, u32)> = [(1_500, 3_000), (10_000, 40_000), (20_000, 100_000)]
        .into_iter()
        .enumerate()
        .map(|(n, (frames, rate))| {
            let file = bed.path(&format!("bulk-{n}.pcap"));
            let client = [198, 51, 100, u8::try_from(n).expect("few")];
            let conversation = Conversation::new(client, 40_000).transfer(frames);
            traffic::write(&file, &conversation.close());
            (file, rate)
        })
        .collect();
    let mut joined = Vec::new();
    for io in ["live", "auto", "tc", "af_xdp", "sendmmsg"] {
        if bed.compare(io, io, &parts) {
            joined.push(io);
        }
    }
    println!("joined behind GRO: {joined:?}");
    assert!(
        joined.contains(&"live"),
        "this other end joins no frames: {joined:?}"
    );
}

/// Traffic of others: every capture that the machine can collect, and the samples of this repository.
#[test]
fn a_sniffer_sees_collected_captures_as_on_the_tap() {
    need_root!();
    let bed = Bed::new();
    let folder = bed.path("captures");
    std::fs::create_dir(&folder).expect("make a folder");
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples");
    let mut files = traffic::files(&samples);
    if let Some(kit) = kit_or_skip("collect-captures") {
        let collected = run(Command::new(kit.join("collect-captures")).arg(&folder));
        assert_eq!(collected.code, 0, "{}", collected.stderr);
        files.extend(traffic::files(&folder));
        assert!(files.len() > 10, "too few: {files:?}");
    }
    // What does not fit is not for a wire: too long for its MTU, or cut.
    let mut frames = Vec::new();
    for file in &files {
        let fits = traffic::read(file).into_iter();
        frames.extend(
            fits.filter(|frame| (60..=1514).contains(&frame.len()))
                .take(2_000),
        );
    }
    println!("{} frames of {} captures", frames.len(), files.len());
    let all = bed.path("all.pcap");
    traffic::write(&all, &frames);
    bed.compare("auto", "captures", &[(all, 40_000)]);
}

/// An output that has refused live frames does not say that it is fast while nothing is sent; once it is prepared it is, and says so.
#[test]
fn what_is_shown_is_the_way_that_the_last_frames_took() {
    need_root!();
    let _bpffs = Bpffs::new();
    let lab = Lab::new(1, 1);
    lab.ctl(&["ring", "create", "tap", "--size", "64m"]);
    lab.ctl(&["rx", "add", "tap0", "tap", "--buffer", "128M"]);
    lab.ctl(&["tx", "add", "tap", "out0", "--name", "all"]);
    lab.wait_running();
    let show = || lab.json(&["tx", "show", "all"])["status"]["interfaces"][0].clone();
    wait_until(SOON, "the best way that works", || show()["io"] == "tc");
    assert_eq!(show()["last_io"], "");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let frames = Conversation::new([198, 51, 100, 1], 40_000)
        .transfer(5_000)
        .close();
    traffic::write(file.path(), &frames);
    let mut sent = 0;
    let mut send = || {
        replay(&lab.taps[0].outside, "wire", file.path(), 40_000);
        sent += frames.len() as u64;
        wait_until(SOON, "all are sent", || show()["sent_frames"] == sent);
    };
    send();
    wait_until(SOON, "what took them is shown", || {
        show()["last_io"] == "tc"
    });
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_secs(7) {
        let shown = show();
        assert_eq!(
            (&shown["io"], &shown["last_io"]),
            (&"tc".into(), &"tc".into()),
            "{shown}"
        );
        let why = shown["io_reason"].as_str().unwrap_or_default();
        assert!(
            why.contains("output prepare IFACE (the interface with index"),
            "{why}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(output(&lab, &lab.outputs[0], &["prepare", "wire"]).code, 0);
    wait_until(SOON, "it is prepared", || show()["io"] == "live");
    assert_eq!(
        show()["last_io"],
        "tc",
        "no frame has taken another way yet"
    );
    send();
    wait_until(SOON, "what took them is shown", || {
        show()["last_io"] == "live"
    });
    assert_eq!(
        output(&lab, &lab.outputs[0], &["prepare", "wire", "--undo"]).code,
        0
    );
    wait_until(SOON, "it is as it was", || show()["io"] == "tc");
    // Two at a time are cheaper by packet socket, whatever the way is.
    lab.audit();
}
