//! fluxctl against real daemons: captures that other tools read, figures, exit codes.

use fluxcap_e2e::payload::Headers;
use fluxcap_e2e::{Generator, Lab, need_root, wait_until};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

fn tap_to_ring() -> Lab {
    let lab = Lab::new(1, 0);
    lab.ctl(&["ring", "create", "cisco", "--size", "16m"]);
    lab.ctl(&["rx", "add", "tap0", "cisco"]);
    lab.wait_running();
    lab
}

fn published(lab: &Lab) -> Option<u64> {
    lab.json(&["ring", "show", "cisco"])["status"]["published_frames"].as_u64()
}

#[test]
fn a_capture_is_read_by_tcpdump_and_tshark() {
    need_root!();
    let lab = tap_to_ring();
    let headers = Headers {
        udp: Some((1000, 2000)),
        tags: vec![(0x88a8, 100), (0x8100, 0xa007)],
        ..Headers::default()
    };
    lab.taps[0].send(&Generator::new(1).size(200).headers(headers).count(50));
    wait_until(SOON, "in the ring", || published(&lab) == Some(50));
    let read_by = |program: &str, args: &[&str]| {
        let mut capture = lab
            .fluxctl
            .command(&[
                "capture", "cisco", "-w", "-", "--from", "oldest", "-c", "50",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start fluxctl");
        let stdin = capture.stdout.take().expect("piped");
        let output = Command::new(program)
            .args(args)
            .stdin(stdin)
            .output()
            .expect(program);
        assert!(capture.wait().expect("fluxctl").success());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let lines = read_by("tcpdump", &["-ner", "-"]);
    assert_eq!(lines.lines().count(), 50);
    assert!(
        lines
            .lines()
            .all(|line| line.contains("vlan 7, p 5") && line.contains(".1000 > ")),
        "{lines}"
    );
    let fields = [
        "-r",
        "-",
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "frame.len",
        "-e",
        "udp.dstport",
    ];
    let lines = read_by("tshark", &fields);
    assert!(
        lines.lines().all(|line| line == "tap0\t200\t2000"),
        "{lines}"
    );
}

#[test]
fn a_capture_takes_a_filter_and_ends_quietly_when_its_reader_does() {
    need_root!();
    let lab = tap_to_ring();
    for port in [2000, 2001] {
        let headers = Headers {
            udp: Some((1000, port)),
            ..Headers::default()
        };
        lab.taps[0].send(&Generator::new(port).size(100).headers(headers).count(100));
    }
    wait_until(SOON, "in the ring", || published(&lab) == Some(200));
    let file = lab.dirs.run().join("out.pcapng");
    let path = file.to_str().expect("text");
    lab.ctl(&[
        "capture",
        "cisco",
        "-w",
        path,
        "--from",
        "oldest",
        "--filter",
        "udp port 2001",
        "-c",
        "100",
    ]);
    let listed = Command::new("tcpdump")
        .args(["-nr", path])
        .output()
        .expect("tcpdump");
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout)
            .matches("2001: UDP")
            .count(),
        100
    );
    let mut capture = lab
        .fluxctl
        .command(&["capture", "cisco", "-w", "-", "--from", "oldest"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start fluxctl");
    drop(capture.stdout.take());
    lab.taps[0].send(&Generator::new(3).count(100));
    wait_until(SOON, "the capture ends", || {
        capture.try_wait().expect("wait").is_some()
    });
    assert!(capture.wait().expect("wait").success());
    wait_until(SOON, "its place in the ring is free", || {
        lab.json(&["ring", "show", "cisco"])["status"]["readers"]
            .as_array()
            .is_none_or(Vec::is_empty)
    });
}

#[test]
fn io_and_status_tell_what_happens() {
    need_root!();
    let lab = tap_to_ring();
    let sending = lab.taps[0].start(&Generator::new(1).rate(10_000).endless());
    wait_until(SOON, "frames", || published(&lab) > Some(1_000));
    let io = lab.json(&["io", "cisco", "--once"]);
    sending.stop();
    let text = io.to_string();
    assert!(text.contains("cisco"), "{text}");
    let status = lab.json(&["status"]).to_string();
    for part in ["ringd", "rxd", "txd", "cisco-tap0"] {
        assert!(status.contains(part), "{part}: {status}");
    }
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    need_root!();
    let mut lab = tap_to_ring();
    let code = |args: &[&str]| lab.fluxctl.try_run(args).code;
    assert_eq!(code(&["rx", "add", "tap0"]), 2);
    assert_eq!(code(&["ring", "create", "x", "--size", "10KB"]), 2);
    assert_eq!(code(&["ring", "show", "nothing"]), 3);
    assert_eq!(code(&["rx", "delete", "nothing"]), 3);
    assert_eq!(code(&["capture", "nothing"]), 3);
    assert_eq!(code(&["ring", "create", "cisco", "--size", "1m"]), 4);
    assert_eq!(code(&["rx", "add", "tap0", "cisco", "--name", "second"]), 4);
    assert_eq!(code(&["ring", "create", "cisco", "--size", "16m"]), 0);
    lab.rxd.kill();
    let refused = lab.fluxctl.try_run(&["rx", "list", "-o", "json"]);
    assert_eq!(refused.code, 5);
    assert!(refused.stderr.contains("\"hint\""), "{refused:?}");
}

#[test]
fn audit_names_the_stage_where_frames_vanished() {
    need_root!();
    let lab = tap_to_ring();
    lab.taps[0].send(&Generator::new(1).count(1_000));
    wait_until(SOON, "in the ring", || published(&lab) == Some(1_000));
    lab.audit();
    // A frame that the kernel handed to rxd, and that rxd neither published nor dropped by name: one more in the ring's table
    // of sources. That is its third page; of an entry, word 6 counts the kernel's frames, and words 8 and 9 those received.
    let ring = std::fs::File::options()
        .read(true)
        .write(true)
        .open(lab.dirs.rings().join("cisco"))
        .expect("open the ring");
    for place in [6, 8, 9].map(|word| 2 * 4096 + 8 * word) {
        wait_until(SOON, "the books are up to date", || {
            let mut word = [0; 8];
            ring.read_exact_at(&mut word, place).expect("read");
            u64::from_ne_bytes(word) == 1_000
        });
        ring.write_all_at(&1_001_u64.to_ne_bytes(), place)
            .expect("write");
    }
    let audit = lab.fluxctl.try_run(&["audit"]);
    assert_eq!(audit.code, 1, "{audit:?}");
    assert!(audit.stderr.contains("I2 rxd of ring cisco"), "{audit:?}");
}
