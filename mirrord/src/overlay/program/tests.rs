//! The relay program is run by the kernel on frames, and what it makes of them is compared with what tunneld makes of the same ones.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use super::super::format::encap_spec;
use super::*;
use aya::programs::{TestRun, TestRunOptions};
use fluxcap_headers::tunnel::{Encap, EncapSpec, FrameFacts, MAX_OVERHEAD};
use fluxcap_headers::{WireFrame, flow_hash};
use fluxcap_proto::v1::{InnerProtocol, MirrorOverlay, MtuPolicy, TunnelKind};
use std::net::IpAddr;

const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
/// Any interface: the program is run, and nothing is sent.
const IFINDEX: u32 = 1;
const LARGE: u32 = 9000;

struct Relay {
    program: RelayProgram,
    maps: RelayMaps,
}

/// Loads the program; none, and a line that says so, for users who may not.
fn load(overlay: &MirrorOverlay, snaplen: u32) -> Option<Relay> {
    if !rustix::process::geteuid().is_root() && std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some()
    {
        eprintln!("skipped: programs are loaded by root");
        return None;
    }
    let orders = Orders {
        task: Task::Encapsulate(Form::of(overlay)),
        mark: 0,
        snaplen,
        fuse_errors: 0,
    };
    let mut program = RelayProgram::load(orders, None).unwrap();
    let mut map = |name| program.0.take_map(name).unwrap();
    let maps = RelayMaps {
        ways: map("ways").try_into().unwrap(),
        in_use: map("way_in_use").try_into().unwrap(),
        devices: map("devices").try_into().unwrap(),
    };
    Some(Relay { program, maps })
}

fn overlay(kind: TunnelKind, inner: InnerProtocol, id: Option<u32>) -> MirrorOverlay {
    MirrorOverlay {
        kind: kind.into(),
        inner: inner.into(),
        id,
        ..Default::default()
    }
}

fn overlays() -> Vec<MirrorOverlay> {
    use InnerProtocol::{Gretap, Unspecified};
    let gue = overlay(TunnelKind::Gue, Unspecified, None);
    let fixed = MirrorOverlay {
        source_port: 5555,
        port: 666,
        ttl: 3,
        tos: 0xb8,
        ..gue.clone()
    };
    vec![
        gue,
        fixed,
        overlay(TunnelKind::Gue, Gretap, None),
        overlay(TunnelKind::Vxlan, Unspecified, Some(0xab_cdef)),
        overlay(TunnelKind::Geneve, Unspecified, Some(7)),
        overlay(TunnelKind::Gretap, Unspecified, None),
        overlay(TunnelKind::Gretap, Unspecified, Some(0x8001_0203)),
    ]
}

fn spec(overlay: &MirrorOverlay, v6: bool) -> EncapSpec {
    let address = |last| match v6 {
        false => IpAddr::from([192, 0, 2, last]),
        true => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]),
    };
    encap_spec(overlay, address(1), address(2))
}

/// An IP packet of `length` bytes: UDP, and counting bytes.
fn packet(v6: bool, length: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
    let [p_high, p_low] = u16::try_from(length.saturating_sub(40))
        .unwrap()
        .to_be_bytes();
    let mut packet = match v6 {
        true => [&[0x60, 0, 0, 0, p_high, p_low, 17, 9][..], &[0x20; 32]].concat(),
        false => [
            &[0x45, 0, high, low, 1, 2, 0, 0, 9, 17, 0, 0][..],
            &[10, 0, 0, 1, 10, 0, 0, 2],
        ]
        .concat(),
    };
    packet.extend([0x12, 0x34, 0x00, 0x35, 0, 0, 0, 0]);
    packet.extend((0..length).map(|n| u8::try_from(n % 251).unwrap()));
    packet.truncate(length);
    packet
}

fn frame(tags: &[u8], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let macs = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let mut frame = [&macs[..], tags, &ether_type.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Frames of all sorts.
fn frames() -> Vec<Vec<u8>> {
    let one: &[u8] = &[0x81, 0, 0x60, 7];
    let two: &[u8] = &[0x88, 0xa8, 0, 9, 0x81, 0, 0x0f, 0xff];
    let mut frames = Vec::new();
    for tags in [&[], one, two] {
        for length in [30, 46, 100, 1400, 1500, 2500] {
            frames.push(frame(tags, 0x0800, &packet(false, length)));
            frames.push(frame(tags, 0x86dd, &packet(true, length + 40)));
        }
        // ARP, something unknown of full length, and a length as of spanning tree.
        frames.push(frame(tags, 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]));
        frames.push(frame(tags, 0x88b5, &[5; 1500]));
        frames.push(frame(tags, 38, &[0x42, 0x42, 3, 0, 0]));
    }
    // To everybody, and to a group.
    let mut arp = frame(&[], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]);
    arp[..6].fill(0xff);
    frames.push(arp);
    let mut group = frame(one, 0x0800, &packet(false, 200));
    group[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 1]);
    frames.push(group);
    frames
}

/// What the program returns, and makes of a frame.
fn run(relay: &mut Relay, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; 8192];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    let result = relay.program.program().unwrap().test_run(options).unwrap();
    out.truncate(usize::try_from(result.data_size_out).unwrap());
    (result.return_value, out)
}

/// What tunneld makes of a frame.
fn expected(spec: &EncapSpec, frame: &[u8], snaplen: u32, limit: u32) -> Option<Vec<u8>> {
    let mut wire = WireFrame::new(frame, u32::try_from(frame.len()).unwrap());
    let facts = FrameFacts {
        flow_hash: flow_hash(&wire),
        ..FrameFacts::default()
    };
    if snaplen != 0 {
        wire.slice(snaplen);
    }
    let mut out = Vec::with_capacity(MAX_OVERHEAD + frame.len());
    let limit = usize::try_from(limit).unwrap();
    let done = Encap::new(spec)
        .unwrap()
        .encapsulate(&wire, &facts, limit, &mut out);
    done.ok().map(|_| out)
}

fn set_way(relay: &mut Relay, spec: &EncapSpec, mtu: u32) {
    let way = Way {
        ifindex: IFINDEX,
        mtu,
        silent: false,
        cutter: 0,
        header: Encap::new(spec).unwrap().header(),
    };
    relay.maps.set_way(&way).unwrap();
}

/// Runs the program on a frame and compares. Returns whether it was carried.
fn compare(relay: &mut Relay, spec: &EncapSpec, frame: &[u8], snaplen: u32, mtu: u32) -> bool {
    set_way(relay, spec, mtu);
    let (verdict, made) = run(relay, frame);
    let about = format!("{spec:?}, snaplen {snaplen}, MTU {mtu}, frame {frame:02x?}");
    let mut spec = spec.clone();
    if let Some(&[high, low]) = made.get(18..).and_then(|made| made.first_chunk())
        && spec.destination.is_ipv4()
    {
        spec.first_identification = u16::from_be_bytes([high, low]);
    }
    let Some(expected) = expected(&spec, frame, snaplen, mtu) else {
        assert_eq!(verdict, TC_ACT_SHOT, "{about}");
        return false;
    };
    assert_eq!(verdict, TC_ACT_REDIRECT, "{about}");
    // An Ethernet header that the kernel completes: to one host, and of the right type.
    assert_eq!(made[..12], [0; 12]);
    assert_eq!(
        made[12..14],
        if spec.destination.is_ipv4() {
            [8, 0]
        } else {
            [0x86, 0xdd]
        }
    );
    assert!(
        made[14..] == expected,
        "made     {:02x?}\nexpected {expected:02x?}\n{about}",
        &made[14..]
    );
    true
}

#[test]
fn packets_are_those_that_tunneld_makes() {
    let mut carried = 0;
    for overlay in overlays() {
        let Some(mut relay) = load(&overlay, 0) else {
            return;
        };
        for v6 in [false, true] {
            let spec = spec(&overlay, v6);
            for frame in frames() {
                carried += u32::from(compare(&mut relay, &spec, &frame, 0, LARGE));
            }
        }
    }
    assert!(carried > 500, "{carried}");
}

#[test]
fn packets_are_cut_as_tunneld_cuts_them() {
    // tunneld notes in Geneve how long a frame was, in an option of ours.
    let geneve = i32::from(TunnelKind::Geneve);
    for overlay in overlays().into_iter().filter(|o| o.kind != geneve) {
        for snaplen in [0, 60, 96, 300, 2000] {
            let Some(mut relay) = load(&overlay, snaplen) else {
                return;
            };
            for v6 in [false, true] {
                let spec = spec(&overlay, v6);
                for mtu in [100, 150, 576, 1500, 9000] {
                    for frame in frames().iter().step_by(2) {
                        compare(&mut relay, &spec, frame, snaplen, mtu);
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_too_long_is_dropped_if_that_is_asked_for() {
    let overlay = MirrorOverlay {
        mtu_policy: MtuPolicy::Drop.into(),
        ..overlay(TunnelKind::Vxlan, InnerProtocol::Unspecified, Some(1))
    };
    let Some(mut relay) = load(&overlay, 0) else {
        return;
    };
    let spec = spec(&overlay, false);
    for (mtu, verdict) in [(1550, TC_ACT_REDIRECT), (1549, TC_ACT_SHOT)] {
        let frame = frame(&[], 0x0800, &packet(false, 1500));
        set_way(&mut relay, &spec, mtu);
        assert_eq!(run(&mut relay, &frame).0, verdict, "MTU {mtu}");
    }
}

#[test]
fn without_a_way_nothing_is_sent() {
    let overlay = overlay(TunnelKind::Gretap, InnerProtocol::Unspecified, None);
    let Some(mut relay) = load(&overlay, 0) else {
        return;
    };
    let frame = frame(&[], 0x0800, &packet(false, 100));
    assert_eq!(run(&mut relay, &frame).0, TC_ACT_SHOT);
    relay.maps.set_way(&Way::default()).unwrap();
    assert_eq!(run(&mut relay, &frame).0, TC_ACT_SHOT);
}
