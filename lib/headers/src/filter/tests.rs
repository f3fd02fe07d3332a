use super::*;
use crate::REFUSED;
use crate::VlanTag;
use proptest::prelude::*;

const EXPRESSIONS: &[&str] = &[
    "",
    "ip",
    "ip6",
    "arp",
    "tcp",
    "udp port 53",
    "tcp dst port 80 or icmp",
    "host 10.0.0.1",
    "net 10.0.0.0/8 and not port 22",
    "src host 10.0.0.1 and udp portrange 50-60",
    "ip6 and tcp port 443",
    "ether host 02:00:00:00:00:01",
    "ether broadcast or ether multicast",
    "ether proto 0x88cc",
    "greater 100",
    "less 64",
    "len > 60 and ip",
    "ip[8] < 5",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "ip[6:2] & 0x1fff != 0",
    "udp[4:2] * 3 / 2 % 7 = (ip[2:2] - 20) & 7",
    "((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0",
    "vlan",
    "vlan 5",
    "vlan and tcp port 80",
    "vlan 5 and vlan 6",
    "not vlan",
    "ip or vlan",
];

/// Frames in which the expressions above find something, and damaged ones.
fn frame_bytes() -> impl Strategy<Value = Vec<u8>> {
    let tag = (
        prop_oneof![Just(0x8100u16), Just(0x88a8), Just(0x9100)],
        prop_oneof![Just(0u16), Just(5), Just(6), Just(0xe005), any::<u16>()],
    );
    let tags = proptest::collection::vec(tag, 0..4);
    let port = prop_oneof![Just(22u16), Just(53), Just(80), Just(443), any::<u16>()];
    let last = prop_oneof![Just(1u8), Just(2)];
    let fields = (port.clone(), port, last.clone(), last, any::<[u8; 4]>());
    let protocol = prop_oneof![Just(6u8), Just(17), Just(1)];
    (tags, 0u8..6, protocol, fields, 0usize..120, 0usize..160).prop_map(
        |(tags, kind, protocol, (source, destination, a, b, noise), payload, cut)| {
            let mut frame = vec![2, 0, 0, 0, 0, a, 2, 0, 0, 0, 0, b];
            for (tpid, tci) in tags {
                frame.extend(VlanTag { tpid, tci }.to_bytes());
            }
            match kind {
                0..=2 => {
                    frame.extend([0x08, 0x00, 0x45, 0, 0]);
                    frame.extend([40 + noise[0] % 60, 0, 0]);
                    // Every third frame of this kind is a fragment.
                    frame.extend([if kind == 2 { 0x20 } else { 0x40 }, noise[1] & kind]);
                    frame.extend([noise[2] % 8, protocol, 0, 0, 10, 0, 0, a, 10, 0, 0, b]);
                }
                3 => {
                    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, protocol, 64]);
                    frame.extend([0xfd; 15].iter().chain(&[a]));
                    frame.extend([0xfd; 15].iter().chain(&[b]));
                }
                4 => frame.extend([0x08, 0x06, 0, 1, 8, 0]),
                _ => frame.extend(noise),
            }
            frame.extend(source.to_be_bytes());
            frame.extend(destination.to_be_bytes());
            frame.extend(noise);
            frame.extend(std::iter::repeat_n(noise[3], payload));
            // One in four is cut short.
            let keep = if cut < 40 { cut } else { frame.len() };
            frame.truncate(keep.min(frame.len()));
            frame
        },
    )
}

fn compile(expression: &str, vlan: FilterVlan) -> Filter {
    Filter::compile(expression, vlan).unwrap()
}

/// Without the tags at the front, at most four.
fn without_tags(bytes: &[u8]) -> Vec<u8> {
    let (rest, _) = WireFrame::new(bytes, 0).untagged();
    [&bytes[..bytes.len().min(12)], rest].concat()
}

/// What the kernel makes of a frame: the outermost tag is metadata, which programs read at offsets that
/// `bpf::run` does not know. `None` for a frame that it drops without a trace.
fn kernel_keeps(program: &[Instruction], bytes: &[u8], stripped: bool) -> Option<u32> {
    let program: Vec<_> = program
        .iter()
        .map(|i| match i.k {
            VLAN_TAG_PRESENT => instruction(code::LD | code::IMM, 0, 0, stripped.into()),
            _ => *i,
        })
        .collect();
    let view = View {
        pieces: [bytes, &[], &[]],
        wire_len: bytes.len() as u32,
    };
    bpf::run(&program, &view).filter(|kept| *kept != 0)
}

/// Every expression, compiled once here and once by libpcap alone.
fn compiled(vlan: FilterVlan) -> Vec<(&'static str, Filter, pcap::BpfProgram)> {
    let handle = pcap::Capture::dead(pcap::Linktype::ETHERNET).unwrap();
    let oracle = |expression| handle.compile(expression, true).unwrap();
    EXPRESSIONS
        .iter()
        .map(|&e| (e, compile(e, vlan), oracle(e)))
        .collect()
}

thread_local! {
    static EXACT: Vec<(&'static str, Filter, pcap::BpfProgram)> = compiled(FilterVlan::Exact);
    static ANY: Vec<(&'static str, Filter, pcap::BpfProgram)> = compiled(FilterVlan::Any);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn exact_filters_agree_with_libpcap(bytes in frame_bytes()) {
        let frame = WireFrame::new(&bytes, bytes.len() as u32);
        EXACT.with(|all| {
            for (expression, filter, oracle) in all {
                prop_assert_eq!(filter.matches(&frame), oracle.filter(&bytes), "{}", expression);
            }
            Ok(())
        })?;
    }

    #[test]
    fn default_filters_agree_with_libpcap_on_the_frame_without_tags(bytes in frame_bytes()) {
        let frame = WireFrame::new(&bytes, bytes.len() as u32);
        let untagged = without_tags(&bytes);
        ANY.with(|all| {
            for (expression, filter, oracle) in all {
                if filter.vlan() == FilterVlan::Any {
                    prop_assert_eq!(filter.matches(&frame), oracle.filter(&untagged), "{}", expression);
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn restored_and_inline_tags_give_the_same_answer(bytes in frame_bytes()) {
        let Some((stripped, tag)) = strip(&bytes) else { return Ok(()) };
        let inline = WireFrame::new(&bytes, bytes.len() as u32);
        let mut restored = WireFrame::new(&stripped, bytes.len() as u32);
        restored.restore_tag(tag);
        for list in [&ANY, &EXACT] {
            list.with(|all| {
                for (expression, filter, _) in all {
                    prop_assert_eq!(filter.matches(&restored), filter.matches(&inline), "{}", expression);
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn kernel_form_passes_all_matches_and_more_only_where_a_check_is_asked_for(bytes in frame_bytes()) {
        // A received frame has at least its link header.
        prop_assume!(bytes.len() >= 14);
        let (stripped, tag) = match strip(&bytes) {
            Some((stripped, tag)) => (stripped, Some(tag)),
            None => (bytes.clone(), None),
        };
        // As received with the tag left in, and with the tag taken out by the kernel.
        for (bytes, tag) in [(&bytes, None), (&stripped, tag)] {
            let mut frame = WireFrame::new(bytes, 0);
            if let Some(tag) = tag {
                frame.restore_tag(tag);
            }
            for list in [&ANY, &EXACT] {
                list.with(|all| {
                    for (expression, filter, _) in all {
                        let program = filter.kernel_program().unwrap();
                        let kept = kernel_keeps(&program, bytes, tag.is_some());
                        prop_assert!(matches!(kept, Some(WHOLE | REFUSED)), "not counted by {}", expression);
                        let kernel = kept == Some(WHOLE);
                        let user = filter.matches(&frame);
                        let check = filter.needs_user_check(&frame);
                        prop_assert!(kernel || !user, "lost by {}", expression);
                        prop_assert!(user || !kernel || check, "kept by {}", expression);
                    }
                    Ok(())
                })?;
            }
        }
    }
}

/// The frame as the kernel delivers it, and the tag that the kernel took out.
fn strip(bytes: &[u8]) -> Option<(Vec<u8>, VlanTag)> {
    // With at least an EtherType behind the tag.
    let whole = bytes.get(..18).map(|_| bytes)?;
    let tag = WireFrame::new(whole, 0).outer_tag()?;
    Some(([&bytes[..12], &bytes[16..]].concat(), tag))
}

#[test]
fn lengths_are_those_on_the_wire_not_those_captured() {
    let bytes = [0u8; 60];
    let filter = compile("greater 1000", FilterVlan::Any);
    assert!(filter.matches(&WireFrame::new(&bytes, 1000)));
    assert!(!filter.matches(&WireFrame::new(&bytes, 999)));
    let mut tagged = WireFrame::new(&bytes, 1000);
    tagged.restore_tag(VlanTag {
        tpid: 0x8100,
        tci: 1,
    });
    assert!(!filter.matches(&tagged), "without its tag it has 996 bytes");
    assert!(compile("greater 1000", FilterVlan::Exact).matches(&tagged));
}

#[test]
fn word_vlan_makes_a_filter_exact_and_other_words_with_it_do_not() {
    assert_eq!(compile("vlan 5", FilterVlan::Any).vlan(), FilterVlan::Exact);
    assert_eq!(compile("(vlan)", FilterVlan::Any).vlan(), FilterVlan::Exact);
    assert_eq!(compile("!vlan", FilterVlan::Any).vlan(), FilterVlan::Exact);
    assert_eq!(compile("tcp", FilterVlan::Any).vlan(), FilterVlan::Any);
    assert_eq!(compile("tcp", FilterVlan::Exact).vlan(), FilterVlan::Exact);
}

#[test]
fn results_keep_frames_beyond_the_snapshot_length_of_libpcap() {
    let program = compile("ip", FilterVlan::Any).kernel_program().unwrap();
    let results = program.iter().filter(|i| i.code & 0x07 == code::RET);
    assert!(results.clone().count() >= 2);
    assert!(results.into_iter().all(|i| i.k == WHOLE || i.k == REFUSED));
}

#[test]
fn errors_say_what_is_wrong_and_what_to_do() {
    for (expression, expected) in [
        ("ip.addr == 10.0.0.1", "Wireshark"),
        ("tcp.port == 80", "Wireshark"),
        ("(tcp port 80", "parentheses"),
        ("tcp port", "pcap-filter(7)"),
        ("port htttp", "spelling"),
        ("tcp and udp", "no frame can match"),
        ("a\0b", "NUL"),
        ("inbound", "option for the direction"),
        ("ifname eth0", "option for the direction"),
        ("ip6 protochain 6", "loop"),
    ] {
        let error = Filter::compile(expression, FilterVlan::Any).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{expression}: {text}");
        assert!(!text.contains("  "), "{text}");
    }
}

#[test]
fn compiling_in_many_threads_gives_the_programs_of_one() {
    fn assert_send<T: Send + Sync + 'static>(_: &T) {}
    let alone: Vec<_> = EXPRESSIONS
        .iter()
        .map(|e| compile(e, FilterVlan::Any).program)
        .collect();
    std::thread::scope(|scope| {
        for offset in 0..8 {
            let alone = &alone;
            scope.spawn(move || {
                for round in 0..20 * EXPRESSIONS.len() {
                    let index = (round + offset * 3) % EXPRESSIONS.len();
                    let filter = compile(EXPRESSIONS[index], FilterVlan::Any);
                    assert_send(&filter);
                    assert_eq!(filter.program, alone[index]);
                    assert!(Filter::compile("tcp and )", FilterVlan::Any).is_err());
                }
            });
        }
    });
}

#[test]
fn program_too_long_for_the_kernel_stays_in_user_space() {
    let hosts = |count: u32| {
        let address = |n| std::net::Ipv4Addr::from(0x0a00_0000 + n * 7).to_string();
        let addresses: Vec<_> = (0..count).map(address).collect();
        format!("host ({})", addresses.join(" or "))
    };
    let filter = compile(&hosts(280), FilterVlan::Any);
    assert!(filter.kernel_program().is_none());
    let mut bytes = vec![2; 12];
    bytes.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0]);
    bytes.extend([10, 0, 0, 7, 9, 9, 9, 9]);
    assert!(filter.matches(&WireFrame::new(&bytes, 34)));
    let error = Filter::compile(&hosts(1000), FilterVlan::Any).unwrap_err();
    assert!(matches!(error, Error::TooLong { limit: 4096, .. }));
}
