//! fluxctl on real rings, without any daemon: capture, io, audit.
#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

mod tap;

use fluxcap_ring::{Batch, Consumer, DropReason, Observer, Outcome, Start};
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tap::{Ran, T0, Tap, udp};

fn blocks(file: &Path) -> Vec<Block<'static>> {
    let file = std::fs::File::open(file).unwrap();
    let mut reader = PcapNgReader::new(file).unwrap();
    let mut blocks = Vec::new();
    while let Some(block) = reader.next_block() {
        blocks.push(block.unwrap().into_owned());
    }
    blocks
}

fn packets(blocks: &[Block<'static>]) -> Vec<EnhancedPacketBlock<'static>> {
    let packet = |block: &Block<'static>| match block {
        Block::EnhancedPacket(packet) => Some(packet.clone()),
        _ => None,
    };
    blocks.iter().filter_map(packet).collect()
}

fn interfaces(blocks: &[Block<'static>]) -> Vec<String> {
    let name = |block: &Block<'static>| match block {
        Block::InterfaceDescription(interface) => {
            interface.options.iter().find_map(|option| match option {
                InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                _ => None,
            })
        }
        _ => None,
    };
    blocks.iter().filter_map(name).collect()
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn readers(tap: &Tap) -> usize {
    let stats = Observer::open(&tap.rings(), &tap.name)
        .unwrap()
        .stats()
        .unwrap();
    stats.readers.len()
}

/// A reader of the tap's ring in this process.
#[track_caller]
fn consumer(tap: &Tap, label: &str, start: Start) -> Consumer {
    Consumer::open(&tap.rings(), &tap.name, label, start, false).unwrap()
}

/// Starts a fluxctl that reads the ring, and waits until it is registered.
#[track_caller]
fn start_reader(tap: &Tap, args: &[&str]) -> Child {
    let child = tap.fluxctl(args).spawn().unwrap();
    wait_until("the reader registers", || readers(tap) == 1);
    child
}

/// The command that writes the oldest `count` frames into a file.
fn capture_oldest<'a>(count: &'a str, file: &'a Path) -> [&'a str; 8] {
    let file = file.to_str().unwrap();
    [
        "capture", "cisco", "--from", "oldest", "-c", count, "-w", file,
    ]
}

#[track_caller]
fn finish(child: Child) -> Ran {
    Ran::from(child.wait_with_output().unwrap())
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The test needs this program: deploy/test installs it.
fn need(program: &str) {
    let there = Command::new(program).arg("--version").output();
    assert!(
        there.is_ok(),
        "{program} is not on this machine; install it"
    );
}

#[test]
fn a_capture_file_holds_the_frames_of_the_ring_byte_for_byte() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 3);
    tap.publish("eth2", 2);
    let file = tap.dir.path().join("out.pcapng");
    let ran = tap.run(&capture_oldest("5", &file));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("5 frames captured"), "{ran:?}");

    let blocks = blocks(&file);
    assert_eq!(interfaces(&blocks), ["eth1", "eth2"]);
    let packets = packets(&blocks);
    assert_eq!(packets.len(), 5);
    for (n, packet) in packets.iter().enumerate() {
        assert_eq!(&*packet.data, udp(n as u64));
        assert_eq!(
            packet.timestamp,
            Duration::from_nanos(T0 + n as u64 * 1000 + 7)
        );
        assert_eq!(packet.original_len as usize, packet.data.len() + 4);
        assert_eq!(packet.interface_id, u32::from(n >= 3));
        assert_eq!(
            packet.options,
            [EnhancedPacketOption::Flags(if n % 2 == 0 { 1 } else { 2 })]
        );
    }
    assert_eq!(readers(&tap), 0, "the reader took its leave");
}

#[test]
fn tcpdump_and_tshark_read_a_capture_from_a_pipe() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 4);
    for (program, args, expected) in [
        (
            "tcpdump",
            &["-nr", "-", "--time-stamp-precision=nano"][..],
            "22:13:20.000003007 IP 10.0.0.1.1000 > 10.0.0.2.2000: UDP",
        ),
        (
            "tshark",
            &[
                "-r",
                "-",
                "-T",
                "fields",
                "-e",
                "frame.time_epoch",
                "-e",
                "frame.interface_name",
            ],
            "1700000000.000003007\teth1",
        ),
    ] {
        need(program);
        let mut capture = tap
            .fluxctl(&["capture", "cisco", "--from", "oldest", "-c", "4", "-w", "-"])
            .spawn()
            .unwrap();
        let reader = Command::new(program)
            .args(args)
            .env("TZ", "UTC")
            .stdin(capture.stdout.take().unwrap())
            .output()
            .unwrap();
        assert_eq!(finish(capture).code, 0);
        let text = String::from_utf8_lossy(&reader.stdout);
        assert_eq!(
            text.lines().count(),
            4,
            "{program}: {text} {}",
            String::from_utf8_lossy(&reader.stderr)
        );
        assert!(text.contains(expected), "{program}: {text}");
    }
}

#[test]
fn only_frames_that_match_are_captured_and_cut_as_asked() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 4);
    let file = tap.dir.path().join("out.pcapng");
    // The payload of frame 2 ends in 2: byte 49 of the frame.
    let filters = ["--filter", "udp", "--filter", "ether[49] = 2"];
    let args = [
        &capture_oldest("1", &file)[..],
        &["--snaplen", "40"],
        &filters,
    ]
    .concat();
    let ran = tap.run(&args);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.contains("1 frames captured, 2 did not match"),
        "{ran:?}"
    );
    let packets = packets(&blocks(&file));
    assert_eq!(packets.len(), 1);
    assert_eq!(*packets[0].data, udp(2)[..40]);
    assert_eq!(packets[0].original_len, 54);
}

#[test]
fn frames_that_the_kernel_dropped_are_told_with_the_next_one() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 1);
    tap.kernel_drop("eth1", 9);
    tap.publish("eth1", 1);
    let file = tap.dir.path().join("out.pcapng");
    // Frames and the loss come in one batch or in two; the drops are told before the end either way.
    let ran = tap.run(&capture_oldest("2", &file));
    assert!(ran.stderr.contains("9 dropped by the kernel"), "{ran:?}");
    let told: Vec<_> = packets(&blocks(&file))
        .into_iter()
        .flat_map(|packet| packet.options)
        .collect();
    assert!(
        told.contains(&EnhancedPacketOption::DropCount(9)),
        "{told:?}"
    );
}

#[test]
fn a_capture_that_is_too_slow_tells_exactly_what_it_lost() {
    const FRAMES: u64 = 30_000;
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 1);
    let file = tap.dir.path().join("out.pcapng");
    let args = ["capture", "cisco", "-w", file.to_str().unwrap()];
    let child = start_reader(&tap, &args);
    signal(&child, Signal::STOP);
    tap.publish("eth1", FRAMES);
    signal(&child, Signal::CONT);
    let stats = || {
        let stats = Observer::open(&tap.rings(), &tap.name).unwrap().stats();
        stats.unwrap().readers.remove(0)
    };
    wait_until("it has caught up", || stats().lag_frames == 0);
    signal(&child, Signal::INT);
    let ran = finish(child);
    let packets = packets(&blocks(&file));
    let lost: u64 = packets
        .iter()
        .flat_map(|packet| &packet.options)
        .fold(0, |sum, option| match option {
            EnhancedPacketOption::DropCount(frames) => sum + frames,
            _ => sum,
        });
    assert!(lost > 0, "{ran:?}");
    assert_eq!(packets.len() as u64 + lost, FRAMES, "{ran:?}");
}

#[test]
fn a_live_capture_shows_frames_as_they_come_and_ends_on_ctrl_c() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 1);
    let mut child = start_reader(&tap, &["capture", "cisco"]);
    tap.publish("eth1", 2);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(
        first.contains(
            "22:13:20.000001007 eth1 out 02:00:00:00:00:01 > 02:00:00:00:00:02, IPv4, length 54"
        ),
        "{first}"
    );
    assert!(
        first.ends_with("(50 captured): 10.0.0.1.1000 > 10.0.0.2.2000 UDP"),
        "{first}"
    );
    lines.next().unwrap().unwrap();
    signal(&child, Signal::INT);
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("2 frames captured"), "{ran:?}");
    assert_eq!(readers(&tap), 0);
}

#[test]
fn frames_as_json_are_one_array_and_as_jsonl_one_object_on_each_line() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 2);
    let capture = ["capture", "cisco", "--from", "oldest", "-c", "2", "-o"];
    let lines = tap.run(&[&capture[..], &["jsonl"]].concat());
    let line: serde_json::Value =
        serde_json::from_str(lines.stdout.lines().nth(1).unwrap()).unwrap();
    // Beyond what JavaScript and jq can tell apart.
    assert_eq!(line["time_ns"], (T0 + 1007).to_string());
    assert_eq!(line["direction"], "out");
    assert_eq!(line["port_destination"], 2000);
    let array = tap.run(&[&capture[..], &["json"]].concat()).json();
    assert_eq!(array.as_array().map(Vec::len), Some(2));
    assert_eq!(array[1], line);
    let none = ["capture", "cisco", "--duration", "50ms", "-j"];
    assert_eq!(tap.run(&none).json(), serde_json::json!([]));
}

#[test]
fn several_measurements_are_one_json_value_or_a_line_for_each_ring() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 2);
    let io = ["io", "-c", "2", "--interval", "10ms", "-o"];
    let array = tap.run(&[&io[..], &["json"]].concat()).json();
    assert_eq!(array.as_array().map(Vec::len), Some(2), "{array:#}");
    assert_eq!(array[1][0]["name"], "cisco");
    let lines = tap.run(&[&io[..], &["jsonl"]].concat()).stdout;
    let rings: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rings.len(), 2);
    assert!(rings.iter().all(|ring| ring["name"] == "cisco"), "{lines}");
}

#[test]
fn a_closed_pipe_ends_a_capture_quietly_even_without_traffic() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 1);
    let mut child = start_reader(&tap, &["capture", "cisco", "-w", "-"]);
    let mut head = [0; 4];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut head).unwrap();
    assert_eq!(head, [0x0a, 0x0d, 0x0d, 0x0a]);
    drop(stdout);
    let ran = finish(child);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(readers(&tap), 0);
}

#[test]
fn a_capture_follows_a_ring_that_is_replaced() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 1);
    let file = tap.dir.path().join("out.pcapng");
    let child = start_reader(&tap, &capture_oldest("4", &file));
    tap.publish("eth1", 1);
    tap.replace();
    tap.publish("eth2", 2);
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{ran:?}");
    let blocks = blocks(&file);
    assert_eq!(interfaces(&blocks), ["eth1", "eth2"]);
    let numbers: Vec<u8> = packets(&blocks)
        .iter()
        .map(|packet| packet.data[49])
        .collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
}

#[test]
fn a_deleted_ring_ends_a_capture() {
    let tap = Tap::new("cisco");
    let child = start_reader(&tap, &["capture", "cisco"]);
    let (rings, name) = (tap.rings(), tap.name.clone());
    let Tap { dir, producer, .. } = tap;
    producer.close();
    fluxcap_ring::delete(&rings, &name).unwrap();
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("ring cisco was deleted"), "{ran:?}");
    drop(dir);
}

#[test]
fn a_missing_ring_is_not_found_and_the_nearest_name_is_offered() {
    let tap = Tap::new("cisco");
    let ran = tap.run(&["capture", "csico"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("did you mean cisco?"), "{ran:?}");
    let ran = tap.run(&["io", "dell", "-o", "json"]);
    assert_eq!(ran.code, 3);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["code"], "not_found");
    assert_eq!(
        error["error"]["hint"],
        "make it: fluxctl ring create dell --size 100m"
    );
}

#[test]
fn a_wrong_filter_is_a_matter_of_usage() {
    let tap = Tap::new("cisco");
    let ran = tap.run(&["capture", "cisco", "--filter", "tcp prt 80"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(readers(&tap), 0);
}

#[test]
fn a_capture_may_be_given_more_time_than_there_is() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 1);
    let ran = tap.run(&[
        "capture",
        "cisco",
        "--from",
        "oldest",
        "-c",
        "1",
        "--duration",
        "500000000000y",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn io_measures_rates_lag_and_drops() {
    let mut tap = Tap::new("cisco");
    tap.kernel_drop("eth1", 9);
    let _reader = consumer(&tap, "slow", Start::Newest);
    let child = tap
        .fluxctl(&["io", "cisco", "-o", "json", "--interval", "300ms"])
        .spawn()
        .unwrap();
    // Frames all along, whenever the two looks are taken.
    let mut child = child;
    while child.try_wait().unwrap().is_none() {
        tap.publish("eth1", 10);
        std::thread::sleep(Duration::from_millis(5));
    }
    let ran = finish(child);
    let ring = &ran.json()[0];
    assert_eq!(ring["name"], "cisco");
    assert!(
        ring["frames_per_second"].as_f64().unwrap() > 100.0,
        "{ring:#}"
    );
    let bits =
        ring["bits_per_second"].as_f64().unwrap() / ring["frames_per_second"].as_f64().unwrap();
    assert!((bits - 400.0).abs() < 1.0, "50 bytes a frame: {bits}");
    assert_eq!(ring["kernel_dropped_frames"], "9");
    assert_eq!(ring["producer_live"], true);
    assert_eq!(ring["sources"][0]["name"], "eth1");
    assert_eq!(ring["readers"][0]["name"], "slow");
    assert!(
        ring["readers"][0]["lag_frames"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 10,
        "{ring:#}"
    );
}

#[test]
fn io_prints_a_table_as_often_as_told_when_there_is_no_terminal() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 10);
    let ran = tap.run(&["io", "--count", "2", "--interval", "20ms"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout.matches("cisco").count(), 2, "{ran:?}");
    assert_eq!(tap.run(&["top", "--once", "--interval", "20ms"]).code, 0);
}

#[test]
fn io_leaves_the_terminal_as_it_found_it() {
    need("script");
    let tap = Tap::new("cisco");
    let fluxctl = env!("CARGO_BIN_EXE_fluxctl");
    let shell = format!("stty > before; {fluxctl} io --interval 50ms; echo rc=$?; stty > after");
    let mut script = Command::new("script")
        .args(["-qec", &shell, "/dev/null"])
        .current_dir(tap.dir.path())
        .env("FLUXCAP_RING_DIR", tap.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = script.stdin.take().unwrap();
    let mut screen = script.stdout.take().unwrap();
    let (mut seen, mut chunk) = (String::new(), [0; 4096]);
    while !seen.contains("cisco") {
        let length = screen.read(&mut chunk).unwrap();
        assert!(length > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..length]));
    }
    std::io::Write::write_all(&mut keys, b"q").unwrap();
    screen.read_to_string(&mut seen).unwrap();
    script.wait().unwrap();
    assert!(seen.starts_with("\x1b[?1049h"), "{seen:?}");
    assert!(
        seen.contains("\x1b[?1049l") && seen.contains("rc=0"),
        "{seen:?}"
    );
    let stty = |name: &str| std::fs::read_to_string(tap.dir.path().join(name)).unwrap();
    assert_eq!(stty("before"), stty("after"));
}

#[test]
fn the_books_of_a_sound_ring_close() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 100);
    tap.kernel_drop("eth2", 5);
    tap.producer.source(0).add_received(3);
    tap.producer.add_drop(DropReason::Filtered, 3);
    let mut reader = consumer(&tap, "reader", Start::Oldest);
    let mut batch = Batch::new(1 << 20, 64);
    reader.poll(&mut batch).unwrap();
    reader.add_outcome(Outcome::Sent, batch.len() as u64 - 1);
    reader.add_outcome(Outcome::Oversize, 1);
    let ran = tap.run(&["audit", "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let account = ran.json();
    assert_eq!(account["verdict"], "ok");
    assert_eq!(account["quiet"], true);
    let stages = account["stages"].as_array().unwrap();
    let names: Vec<&str> = stages
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "I0 wire",
            "I1 kernel",
            "I2 rxd",
            "I3 ring",
            "I4 reader",
            "I5 output",
            "order"
        ]
    );
    assert!(
        stages.iter().all(|stage| stage["residual"] == "0"),
        "{account:#}"
    );
    let ran = tap.run(&["audit"]);
    assert!(ran.stdout.contains("the account closes"), "{ran:?}");
}

#[test]
fn a_hole_in_the_producers_books_is_found_and_its_stage_named() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 100);
    tap.producer.source(0).add_received(1);
    let ran = tap.run(&["audit"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr
            .contains("I2 rxd of ring cisco (all sources): 1 frames are missing: 101 in, 100 out"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("FAILED"), "{ran:?}");
}

#[test]
fn a_frame_counted_twice_by_a_reader_is_found_and_its_stage_named() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 10);
    let mut reader = consumer(&tap, "reader", Start::Oldest);
    let mut batch = Batch::new(1 << 20, 64);
    reader.poll(&mut batch).unwrap();
    reader.add_outcome(Outcome::Sent, 11);
    let ran = tap.run(&["audit", "-o", "json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("I5 output of ring cisco (reader): 1 frames too many came out"),
        "{message}"
    );
    assert_eq!(ran.json()["verdict"], "failed");
}

#[test]
fn a_reader_that_was_killed_is_explained() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 10);
    let mut reader = consumer(&tap, "reader", Start::Oldest);
    reader.poll(&mut Batch::new(1 << 20, 64)).unwrap();
    drop(reader);
    let ran = tap.run(&["audit"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("the reader is gone"), "{ran:?}");
}

#[test]
fn traffic_that_does_not_pause_is_audited_within_what_is_in_flight() {
    let mut tap = Tap::new("cisco");
    tap.publish("eth1", 10);
    let mut reader = consumer(&tap, "reader", Start::Newest);
    let mut batch = Batch::new(1 << 20, 64);
    let mut child = tap
        .fluxctl(&["audit", "-o", "json", "--wait", "1s"])
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() {
        tap.publish("eth1", 20);
        reader.poll(&mut batch).unwrap();
        // One batch behind, as a transmit is.
        std::thread::sleep(Duration::from_millis(1));
        reader.add_outcome(Outcome::Sent, batch.len() as u64);
    }
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["quiet"], false, "{ran:?}");
}
