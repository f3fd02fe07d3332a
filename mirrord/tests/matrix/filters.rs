//! pcap-filter expressions, translated for the kernel.

use crate::program::{Programs, may_load};
use crate::random::Random;
use crate::rules::Tables;
use fluxcap_headers::{Filter, FilterVlan, TailCalls};
use fluxcap_socket::Classifier;
use std::os::fd::AsRawFd;

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
    "ip6 host 2001:db8::1 or ip6 net fd00::/8",
    "sctp port 22 or sctp port 80",
    "ip proto 47 or ip6 proto 50",
    "icmp6",
    "ether host 02:00:00:00:00:01",
    "ether src 02:00:00:00:00:02 and ether dst 02:00:00:00:00:01",
    "ether broadcast or ether multicast",
    "ether proto 0x88cc",
    "greater 100",
    "less 64",
    "len > 60 and ip",
    "len = 14",
    "ip[8] < 5",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "ip[6:2] & 0x1fff != 0",
    "udp[4:2] * 3 / 2 % 7 = (ip[2:2] - 20) & 7",
    "((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0",
    "ether[12:4] & 0xff / (ether[5] - 1) > 0",
    "ether[12] % (ether[5] - 1) = 0",
    "1 << ether[5] >> (ether[11] << 5) = 1",
    "ether[0:4] >> (ether[14] & 63) = 1 or ether[0:4] << (ether[15] & 63) = 0",
    "-ether[5] = 0xffffffff",
    "ether[5] ^ ether[11] = 3",
    "vlan",
    "vlan 5",
    "vlan and tcp port 80",
    "vlan 5 and vlan 6",
    "not vlan",
    "ip or vlan",
    "vlan and vlan and ip6",
    "pppoes",
];

/// An expression with loads at every kind of place: before, at and behind the tags, from constants and from other loads.
fn arithmetic(random: &mut Random) -> String {
    let size = random.pick(&[1, 2, 4]);
    let place = match random.below(3) {
        0 => format!("{}", random.below(30)),
        // The first byte of every frame is 2.
        1 => format!("ether[0] + {}", random.below(26)),
        _ => format!("ether[{}]", random.below(40)),
    };
    let operation = random.pick(&["&", "|", "+", "-", "*", "^"]);
    let operand = random.next() as u32 >> random.below(32);
    let bit = random.below(8 * size);
    format!("(ether[{place}:{size}] {operation} {operand}) >> {bit} & 1 = 0")
}

struct Bed {
    programs: Programs,
    calls: TailCalls,
}

impl Bed {
    fn new() -> Bed {
        let mut programs = Programs::load(&Tables::compile(&[]).unwrap());
        let calls = TailCalls {
            programs: programs.stages().as_raw_fd(),
            matched: 1,
            refused: 2,
        };
        Bed { programs, calls }
    }

    /// Has the frames that come go through a filter.
    fn install(&mut self, filter: &Filter) {
        let instructions = filter.classifier(&self.calls).unwrap();
        let expression = filter.expression();
        let program = Classifier::load("filter", &instructions)
            .unwrap_or_else(|error| panic!("{expression}: {error:?}"));
        program.put_into(self.programs.stages(), 0).unwrap();
    }
}

#[test]
fn translated_filters_match_what_the_filters_match() {
    if !may_load() {
        return;
    }
    let frames = crate::frames(5, 3000);
    let mut random = Random::new(6);
    let arithmetic: Vec<String> = (0..60).map(|_| arithmetic(&mut random)).collect();
    let expressions = EXPRESSIONS.iter().copied();
    let expressions = expressions.chain(arithmetic.iter().map(String::as_str));
    let mut bed = Bed::new();
    let (mut telling, mut all) = (0, 0);
    for expression in expressions {
        for vlan in [FilterVlan::Any, FilterVlan::Exact] {
            // libpcap finds out that some can never match, and refuses them.
            let Ok(filter) = Filter::compile(expression, vlan) else {
                assert!(!EXPRESSIONS.contains(&expression), "{expression}");
                continue;
            };
            bed.install(&filter);
            let mut matches = 0;
            for frame in &frames {
                let expected = filter.matches(&frame.wire());
                let got = bed.programs.run("filter", frame);
                assert_eq!(
                    got,
                    i32::from(expected),
                    "{expression} ({vlan:?}) {:?} {:02x?}",
                    frame.tag,
                    frame.bytes
                );
                matches += usize::from(expected);
            }
            all += 1;
            telling += usize::from(matches > 0 && matches < frames.len());
        }
    }
    println!("{all} filters, of which {telling} match some frames");
    assert!(telling * 3 > all * 2);
}

#[test]
fn longest_expressions_pass_the_verifier() {
    if !may_load() {
        return;
    }
    let mut bed = Bed::new();
    let hosts = |count: u32| {
        let address = |n| std::net::Ipv4Addr::from(0x0a00_0000 + n * 7).to_string();
        let addresses: Vec<_> = (0..count).map(address).collect();
        format!("host ({})", addresses.join(" or "))
    };
    let ports: Vec<_> = (1..40)
        .map(|n| format!("portrange {}-{}", n * 100, n * 100 + 7))
        .collect();
    for expression in [
        hosts(20),
        hosts(280),
        format!("tcp and ({})", ports.join(" or ")),
    ] {
        let filter = Filter::compile(&expression, FilterVlan::Any).unwrap();
        bed.install(&filter);
        for frame in crate::frames(7, 300) {
            let got = bed.programs.run("filter", &frame);
            assert_eq!(got, i32::from(filter.matches(&frame.wire())));
        }
    }
}

#[test]
fn a_program_that_the_kernel_refuses_comes_with_its_reason() {
    if !may_load() {
        return;
    }
    // Exit, without a result.
    let error = Classifier::load("bad", &[[0x95, 0, 0, 0, 0, 0, 0, 0]]).unwrap_err();
    let text = format!("{:?}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("R0 !read_ok"), "{text}");
}
