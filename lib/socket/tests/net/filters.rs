//! Filters: kernel and user space agree on every frame.

use fluxcap_headers::{Filter, FilterVlan, VlanTag, WireFrame};
use fluxcap_socket::{PacketCapture, Sendmmsg, SockFilter};

use crate::namespace::*;

fn program(filter: &Filter) -> Vec<SockFilter> {
    let program = filter.kernel_program().unwrap();
    let copy = program.iter().map(|i| SockFilter {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    });
    copy.collect()
}

/// IPv4 frames of several protocols and ports, ARP, and noise, under up to two tags, each with a number at
/// its end.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for protocol in [1u8, 6, 17] {
        for port in [22u16, 53, 80] {
            let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9];
            frame.extend([
                0x08, 0x00, 0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0,
            ]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, port as u8]);
            frame.extend(port.to_be_bytes());
            frame.extend(4000u16.to_be_bytes());
            frame.resize(74, 0x5a);
            frames.push(frame);
        }
    }
    let mut arp = frames[0].clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    frames.push(arp);
    // Too short for what filters look at.
    for cut in [14, 20, 23, 24, 34, 36] {
        frames.push(frames[0][..cut].to_vec());
    }
    frames.push(numbered(0, 64));
    let tag = |tpid, tci| VlanTag { tpid, tci }.to_bytes().to_vec();
    let tags = [
        Vec::new(),
        tag(0x8100, 5),
        tag(0x8100, 0xe006),
        tag(0x88a8, 5),
        tag(0x9100, 5),
        tag(0x8100, 0),
        [tag(0x88a8, 5), tag(0x8100, 6)].concat(),
        [tag(0x8100, 5), tag(0x8100, 6)].concat(),
    ];
    let mut all = Vec::new();
    for tag in &tags {
        for frame in &frames {
            let mut frame = frame.clone();
            frame.splice(12..12, tag.iter().copied());
            frame.extend((all.len() as u32).to_be_bytes());
            all.push(frame);
        }
    }
    all
}

fn whole(frame: &[u8]) -> WireFrame<'_> {
    WireFrame::new(frame, frame.len() as u32)
}

const EXPRESSIONS: [&str; 19] = [
    "",
    "ip",
    "arp",
    "tcp",
    "udp port 53",
    "tcp dst port 4000 or icmp",
    "host 10.0.0.22",
    "not port 80",
    "ether multicast",
    "greater 80",
    "less 79",
    "ip[9] = 17",
    "ip6",
    "vlan",
    "vlan 5",
    "not vlan",
    "vlan 5 and vlan 6",
    "vlan 5 and udp port 53",
    "ip or vlan",
];

#[test]
fn kernel_and_user_space_agree_for_every_filter_and_every_tag() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let mut everything = capture_on(&a);
        let mut filtered = capture_on(&a);
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        let frames = frames();
        let mut rechecked = 0;
        for text in EXPRESSIONS {
            for vlan in [FilterVlan::Any, FilterVlan::Exact] {
                let filter = Filter::compile(text, vlan).unwrap();
                filtered.set_filter(Some(&program(&filter))).unwrap();
                send(&mut transmit, &frames);
                read(&mut everything, frames.len());
                // Not one is left out: what the filter refuses comes as a byte.
                let mut passed = Vec::new();
                for seen in read(&mut filtered, frames.len()) {
                    if seen.data.len() == 1 {
                        continue;
                    }
                    let mut frame = WireFrame::new(&seen.data, seen.data.len() as u32 + 4);
                    if let Some((tpid, tci)) = seen.vlan {
                        frame.restore_tag(VlanTag { tpid, tci });
                    } else {
                        frame = whole(&seen.data);
                    }
                    assert_eq!(seen.data.len(), seen.wire_len as usize, "cut by {text}");
                    let matches = filter.matches(&frame);
                    assert!(
                        matches || filter.needs_user_check(&frame),
                        "{text} kept too much"
                    );
                    rechecked += usize::from(filter.needs_user_check(&frame));
                    if matches {
                        passed.push(frame.pieces().concat());
                    }
                }
                let expected = frames.iter().filter(|f| filter.matches(&whole(f)));
                assert!(
                    passed.iter().eq(expected),
                    "{text:?} {vlan:?}: {} passed",
                    passed.len()
                );
            }
        }
        let counted = filtered.statistics().unwrap();
        let sent = 2 * EXPRESSIONS.len() * frames.len();
        assert_eq!((counted.packets as usize, counted.drops), (sent, 0));
        assert!(rechecked > 100);
    });
}

#[test]
fn filter_can_be_changed_and_removed_while_capturing() {
    in_namespace(|| {
        let (a, b) = veth_pair();
        let nothing = [SockFilter {
            code: 6,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        let options = fluxcap_socket::CaptureOptions {
            filter: Some(nothing.to_vec()),
            ..small_buffer()
        };
        let mut capture = PacketCapture::open(a.index, &options).unwrap();
        let mut transmit = Sendmmsg::open(b.index, false).unwrap();
        send(&mut transmit, &[numbered(1, 60)]);
        capture.set_filter(None).unwrap();
        capture.set_filter(None).unwrap();
        send(&mut transmit, &[numbered(2, 60)]);
        assert_eq!(read(&mut capture, 1)[0].data, numbered(2, 60));
        let jump_into_nowhere = [SockFilter {
            code: 5,
            jt: 0,
            jf: 0,
            k: 100,
        }];
        let error = capture.set_filter(Some(&jump_into_nowhere)).unwrap_err();
        assert!(
            error.to_string().contains("set the socket filter"),
            "{error}"
        );
    });
}
