//! A network namespace for each test, and the small things that tests do in it.

use std::io::Write;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use fluxcap_socket::{
    CaptureOptions, Link, LinkWatch, Outgoing, Packet, PacketCapture, SendReport, Transmitter,
    XdpCapture, poll,
};
use nix::sched::{CloneFlags, unshare};
use std::os::fd::AsFd;

/// How long a test waits for something that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a test in a thread with a new network namespace, which ends with the thread and its sockets.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    let thread = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            without_ipv6();
            test();
        }
        Err(error) if std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some() => {
            // Past the capture of the test harness: a skip must be seen.
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {name} (new network namespace: {error})"
            );
        }
        Err(error) => panic!(
            "a new network namespace needs root ({error}); set FLUXCAP_TEST_SKIP_ROOT to skip"
        ),
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Router solicitations and the like would be counted with the frames of the test.
pub(crate) fn without_ipv6() {
    for scope in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
}

/// Runs `ip` with these words; it must succeed.
pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

pub(crate) fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
}

/// Whether the command succeeds.
pub(crate) fn succeeds(program: &str, arguments: &str) -> bool {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output();
    output.is_ok_and(|output| output.status.success())
}

/// A veth pair `a`, `b`, both up.
pub(crate) fn veth_pair() -> (Link, Link) {
    ip("link add name a type veth peer name b");
    ip("link set dev a up");
    ip("link set dev b up");
    (link("a"), link("b"))
}

pub(crate) fn link(name: &str) -> Link {
    let found = LinkWatch::open().unwrap().find(name).unwrap();
    found.unwrap_or_else(|| panic!("no interface {name}"))
}

pub(crate) fn small_buffer() -> CaptureOptions {
    CaptureOptions {
        buffer_bytes: 8 << 20,
        ..CaptureOptions::default()
    }
}

pub(crate) fn capture_on(link: &Link) -> PacketCapture {
    PacketCapture::open(link.index, &small_buffer()).unwrap()
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::yield_now();
    }
}

/// A captured frame, copied out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) data: Vec<u8>,
    pub(crate) wire_len: u32,
    pub(crate) timestamp_ns: u64,
    pub(crate) vlan: Option<(u16, u16)>,
    pub(crate) outgoing: bool,
    pub(crate) checksum_partial: bool,
    pub(crate) gso: bool,
    pub(crate) losing: bool,
}

impl Seen {
    fn of(packet: Packet<'_>) -> Seen {
        Seen {
            data: packet.data.to_vec(),
            wire_len: packet.wire_len,
            timestamp_ns: packet.timestamp_ns,
            vlan: packet.vlan,
            outgoing: packet.outgoing,
            checksum_partial: packet.checksum_partial,
            gso: packet.gso,
            losing: packet.losing,
        }
    }
}

/// What frames can be read from.
pub(crate) trait Reads: AsFd {
    /// Copies what there is now.
    fn read_available(&mut self, seen: &mut Vec<Seen>);
}

impl Reads for PacketCapture {
    fn read_available(&mut self, seen: &mut Vec<Seen>) {
        while let Some(mut block) = self.next_block() {
            let mut packets = block.packets();
            seen.extend(packets.by_ref().map(Seen::of));
            assert!(!packets.damaged() && packets.left() == 0);
        }
    }
}

impl Reads for XdpCapture {
    fn read_available(&mut self, seen: &mut Vec<Seen>) {
        while let Some(mut burst) = self.next_burst() {
            let len = burst.len();
            let mut packets = burst.packets();
            let before = seen.len();
            seen.extend(packets.by_ref().map(Seen::of));
            assert!(packets.left() == 0 && seen.len() - before == len);
        }
    }
}

/// Copies what the capture holds now.
pub(crate) fn read_available(capture: &mut impl Reads, seen: &mut Vec<Seen>) {
    capture.read_available(seen);
}

/// Reads until `count` frames have come.
pub(crate) fn read(capture: &mut impl Reads, count: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < count {
        capture.read_available(&mut seen);
        assert!(
            Instant::now() < deadline,
            "only {} of {count} frames came",
            seen.len()
        );
        if seen.len() < count {
            poll(&[capture.as_fd()], Duration::from_millis(20)).unwrap();
        }
    }
    seen
}

/// A frame of `len` bytes that carries its number.
pub(crate) fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5,
    ];
    frame.extend(number.to_be_bytes());
    frame.resize(len, (number % 251) as u8);
    frame
}

/// Sends whole frames to the only interface of the transmitter; returns the report.
pub(crate) fn try_send(transmit: &mut dyn Transmitter, frames: &[Vec<u8>]) -> SendReport {
    let outputs = vec![1; frames.len()];
    let [report] = send_to(transmit, frames, &outputs);
    report
}

/// Sends whole frames, each to the interfaces given by bits; returns the reports.
pub(crate) fn send_to<const N: usize>(
    transmit: &mut dyn Transmitter,
    frames: &[Vec<u8>],
    outputs: &[u16],
) -> [SendReport; N] {
    let mut reports: [SendReport; N] = std::array::from_fn(|_| SendReport::default());
    // Cut at odd places: the pieces must not show on the wire.
    let outgoing: Vec<Outgoing<'_>> = frames
        .iter()
        .zip(outputs)
        .map(|(f, outputs)| {
            let (a, b) = (f.len().min(12), f.len().min(16));
            Outgoing {
                pieces: [&f[..a], &f[a..b], &f[b..]],
                outputs: *outputs,
            }
        })
        .collect();
    transmit.send(&outgoing, &mut reports);
    for (output, report) in reports.iter().enumerate() {
        let wanted = outgoing.iter().filter(|frame| frame.goes_to(output));
        assert_eq!(report.total(), wanted.count() as u64, "{report:?}");
    }
    reports
}

/// Sends whole frames, all of which must be taken.
pub(crate) fn send(transmit: &mut dyn Transmitter, frames: &[Vec<u8>]) {
    let report = try_send(transmit, frames);
    assert_eq!(report.sent, frames.len() as u64, "{report:?}");
}

/// A UDP frame of a flow with a number.
pub(crate) fn udp(number: u32, port: u16) -> Vec<u8> {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9];
    frame.extend([0x08, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend((1000 + port).to_be_bytes());
    frame.extend([0x07, 0xd0, 0, 30, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame.resize(64, 0);
    frame
}

/// The number in such a frame.
pub(crate) fn udp_number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame[42..].first_chunk().unwrap())
}

/// Gives one interface IPv6 back, which the namespace begins without.
pub(crate) fn with_ipv6(interface: &str) {
    let settings = format!("/proc/sys/net/ipv6/conf/{interface}");
    std::fs::write(format!("{settings}/accept_dad"), "0").unwrap();
    std::fs::write(format!("{settings}/disable_ipv6"), "0").unwrap();
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// An IPv4 packet without options.
pub(crate) fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
pub(crate) fn ipv6(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    for address in [from, to] {
        match address {
            IpAddr::V6(address) => packet.extend(address.octets()),
            IpAddr::V4(_) => panic!("{address} is not of IPv6"),
        }
    }
    packet.extend(payload);
    packet
}
