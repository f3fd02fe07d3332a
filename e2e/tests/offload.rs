//! Traffic of a real TCP sender whose offloads are on: frames far beyond the MTU, with checksums that nobody computed.

use fluxcap_e2e::{Lab, LabOptions, Veth, checksum_is_right, need_root, wait_until};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const BYTES: usize = 4 << 20;

#[test]
fn giants_of_tcp_are_forwarded_whole_or_counted_and_their_checksums_are_completed() {
    need_root!();
    let lab = Lab::with(&LabOptions {
        outputs: 2,
        ..LabOptions::default()
    });
    Veth::offload(&lab.host, "tap0", true);
    Veth::offload(&lab.taps[0].outside, "wire", true);
    lab.host.ip(&["addr", "add", "192.0.2.1/24", "dev", "tap0"]);
    lab.taps[0]
        .outside
        .ip(&["addr", "add", "192.0.2.2/24", "dev", "wire"]);
    for (netns, name) in [(&lab.host, "out1"), (&lab.outputs[1].outside, "wire")] {
        Veth::set_mtu(netns, name, 65_535);
    }
    lab.ctl(&["ring", "create", "tcp", "--size", "64m"]);
    lab.ctl(&["rx", "add", "tap0", "tcp", "--direction", "both"]);
    lab.ctl(&["tx", "add", "tcp", "out0"]);
    lab.ctl(&["tx", "add", "tcp", "out1"]);
    lab.wait_running();
    let reason = lab.json(&["rx", "show", "tcp-tap0"])["status"]["reason"].to_string();
    assert!(reason.contains("gro off"), "the operator is told: {reason}");
    let sink = lab.outputs[1].sink_keeping(1_000_000);
    let listener = lab
        .host
        .run(|| TcpListener::bind("192.0.2.1:7000").expect("listen"));
    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        listener
            .accept()
            .expect("accept")
            .0
            .read_to_end(&mut received)
            .expect("read");
        received.len()
    });
    lab.taps[0].outside.run(|| {
        let mut stream = TcpStream::connect("192.0.2.1:7000").expect("connect");
        stream.write_all(&vec![7; BYTES]).expect("write");
    });
    assert_eq!(
        receiver.join().expect("receiver"),
        BYTES,
        "the copied traffic itself was not harmed"
    );
    sink.wait_quiet(Duration::from_millis(500));
    let kept = sink.stop().kept;
    let tcp: Vec<_> = kept
        .iter()
        .filter(|f| f[12..14] == [8, 0] && f[23] == 6)
        .collect();
    let giants = kept.iter().filter(|frame| frame.len() > 1514).count();
    println!(
        "{} frames, {giants} giants, longest {:?}",
        kept.len(),
        kept.iter().map(Vec::len).max()
    );
    assert!(giants > 0, "the sender did not use its offloads");
    let right = |frame: &&&Vec<u8>| checksum_is_right(frame) == Some(true);
    assert_eq!(tcp.iter().filter(right).count(), tcp.len());
    let show = |name: &str| lab.json(&["tx", "show", name])["status"].clone();
    assert_eq!(
        show("tcp-out1")["sent_frames"].as_u64(),
        Some(kept.len() as u64)
    );
    wait_until(
        Duration::from_secs(5),
        "every giant is counted at the small output",
        || show("tcp-out0")["dropped_frames"]["oversize"].as_u64() == Some(giants as u64),
    );
    assert_eq!(
        show("tcp-out0")["sent_frames"].as_u64(),
        Some((kept.len() - giants) as u64)
    );
    lab.audit();
}
