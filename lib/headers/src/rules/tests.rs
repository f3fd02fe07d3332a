use super::*;
use crate::VlanTag;
use Direction::{In, Out};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

fn net(text: &str, prefix: u8) -> Network {
    Network::new(text.parse().unwrap(), prefix).unwrap()
}

/// An IPv4 frame from 10.0.0.1 port 1000 to 10.9.9.9 port 80, with SYN and ACK; `fragment` is the header's field.
fn v4(protocol: u8, fragment: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 9, 9, 9]);
    frame.extend([3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12]);
    frame.extend([0; 6]);
    frame
}

fn v6(first: u8, extensions: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, first, 64]);
    frame.extend([0xfd; 16].iter().chain(&[0xfe; 16]));
    frame.extend(extensions);
    frame.extend([3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12]);
    frame
}

/// Whether one rule matches.
fn matches(rule: Rule, frame: &[u8]) -> bool {
    let set = RuleSet::new(vec![rule]).unwrap();
    let decision = set.decide(&WireFrame::new(frame, 0), In);
    let accepts = set.rules()[0].action == Action::Accept;
    assert_eq!(decision.accepted, accepts == decision.rule.is_some());
    decision.rule.is_some()
}

fn to_port(port: u16) -> Rule {
    Rule {
        destination_ports: vec![port..=port],
        ..Rule::default()
    }
}

fn excluding(rule: Rule) -> Rule {
    Rule {
        action: Action::Exclude,
        ..rule
    }
}

#[test]
fn first_rule_that_matches_decides_and_the_others_do_not() {
    let set = RuleSet::new(vec![
        excluding(to_port(22)),
        excluding(Rule {
            sources: vec![net("10.0.0.0", 24)],
            ..to_port(80)
        }),
        Rule {
            protocols: vec![TCP],
            ..Rule::default()
        },
        Rule {
            protocols: vec![ICMP],
            ..Rule::default()
        },
    ])
    .unwrap();
    let decide = |frame: &[u8]| set.decide(&WireFrame::new(frame, 0), In);
    let decision = |accepted, rule| Decision { accepted, rule };
    assert_eq!(decide(&v4(TCP, 0)), decision(false, Some(1)));
    assert_eq!(decide(&v6(TCP, &[])), decision(true, Some(2)));
    assert_eq!(decide(&v4(ICMP, 0)), decision(true, Some(3)));
    assert_eq!(decide(&v4(47, 0)), decision(false, None));
}

#[test]
fn frames_that_match_nothing_are_selected_only_if_no_rule_accepts() {
    let frame = v4(TCP, 0);
    let frame = WireFrame::new(&frame, 0);
    assert!(RuleSet::default().decide(&frame, In).accepted);
    let excludes = RuleSet::new(vec![excluding(to_port(22))]).unwrap();
    assert!(excludes.decide(&frame, In).accepted);
    let both = RuleSet::new(vec![excluding(to_port(22)), to_port(443)]).unwrap();
    assert!(!both.decide(&frame, In).accepted);
}

#[test]
fn addresses_match_by_prefix_and_by_family() {
    let from = |network| Rule {
        sources: vec![network],
        ..Rule::default()
    };
    let frame = v4(TCP, 0);
    assert!(matches(from(net("10.0.0.1", 32)), &frame));
    assert!(!matches(from(net("10.0.0.0", 32)), &frame));
    assert!(matches(from(net("10.0.0.77", 24)), &frame));
    assert!(matches(from(net("99.0.0.0", 0)), &frame));
    assert!(!matches(from(net("::", 0)), &frame));
    assert!(matches(from(net("fdfd::", 16)), &v6(UDP, &[])));
    assert!(!matches(from(net("fdfe::", 16)), &v6(UDP, &[])));
    assert!(!matches(from(net("0.0.0.0", 0)), &v6(UDP, &[])));
    let mut arp = frame;
    arp[13] = 6;
    assert!(!matches(from(net("0.0.0.0", 0)), &arp));
}

#[test]
fn ports_concern_protocols_that_have_them_and_others_only_by_name() {
    for protocol in [TCP, UDP, 33, 132, 136] {
        assert!(matches(to_port(80), &v4(protocol, 0)));
        assert!(!matches(to_port(81), &v4(protocol, 0)));
    }
    assert!(!matches(to_port(80), &v4(ICMP, 0)));
    let named = |protocols: &[u8], port| Rule {
        protocols: protocols.to_vec(),
        ..to_port(port)
    };
    assert!(matches(named(&[TCP, ICMP], 81), &v4(ICMP, 0)));
    assert!(!matches(named(&[TCP, ICMP], 81), &v4(TCP, 0)));
    assert!(!matches(named(&[TCP], 80), &v4(ICMP, 0)));
    let from = Rule {
        source_ports: vec![1..=999, 1001..=2000],
        ..Rule::default()
    };
    assert!(!matches(from, &v4(UDP, 0)));
}

#[test]
fn later_fragments_match_what_accepts_and_nothing_that_excludes_by_ports() {
    let later = v4(TCP, 0x2001);
    assert!(matches(to_port(1), &later));
    assert!(!matches(excluding(to_port(80)), &later));
    let syn = Rule {
        tcp_flags: 0x02,
        tcp_flags_mask: 0x02,
        ..Rule::default()
    };
    assert!(matches(syn.clone(), &later));
    assert!(!matches(syn.clone(), &v4(UDP, 1)));
    assert!(!matches(excluding(syn), &later));
    assert!(matches(excluding(Rule::default()), &later));
    assert!(!matches(to_port(80), &v4(ICMP, 1)));
    // The first one has ports.
    assert!(matches(to_port(80), &v4(TCP, 0x2000)));
    assert!(!matches(to_port(81), &v4(TCP, 0x2000)));
    let part = |offset: u16| {
        let [a, b] = offset.to_be_bytes();
        v6(44, &[TCP, 0, a, b, 0, 0, 0, 9])
    };
    assert!(matches(to_port(81), &part(8)));
    assert!(!matches(to_port(81), &part(1)));
    assert!(matches(to_port(80), &part(1)));
}

#[test]
fn extension_headers_are_followed_eight_times() {
    let destination_options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |count: usize| {
        let mut bytes = vec![];
        for _ in 1..count {
            bytes.extend(destination_options(60));
        }
        bytes.extend(destination_options(TCP));
        v6(60, &bytes)
    };
    assert!(matches(to_port(80), &chain(8)));
    assert!(!matches(to_port(80), &chain(9)));
    let by_number = Rule {
        protocols: vec![60],
        ..Rule::default()
    };
    assert!(matches(by_number, &chain(9)));
}

#[test]
fn frames_without_the_bytes_of_ports_or_flags_match_no_condition_on_them() {
    let whole = v4(TCP, 0);
    let flags = Rule {
        tcp_flags: 0x12,
        tcp_flags_mask: 0xff,
        ..Rule::default()
    };
    for (rule, needed) in [(to_port(80), 14 + 24), (flags, 14 + 34)] {
        assert!(matches(rule.clone(), &whole[..needed]));
        assert!(!matches(rule.clone(), &whole[..needed - 1]));
        assert!(!matches(excluding(rule), &whole[..needed - 1]));
    }
}

#[test]
fn vlan_conditions_look_at_the_outer_two_tags_wherever_these_are() {
    let tag = |vid| VlanTag {
        tpid: 0x8100,
        tci: 0xe000 | vid,
    };
    let tagged = |vids: &[u16]| {
        let mut frame = v4(TCP, 0);
        let tags: Vec<u8> = vids.iter().flat_map(|vid| tag(*vid).to_bytes()).collect();
        frame.splice(12..12, tags);
        frame
    };
    let vlans = |vlans: &[u16], untagged| Rule {
        vlans: vlans.to_vec(),
        untagged,
        ..Rule::default()
    };
    assert!(matches(vlans(&[5], false), &tagged(&[5])));
    assert!(matches(vlans(&[5], false), &tagged(&[6, 5])));
    assert!(!matches(vlans(&[5], false), &tagged(&[6, 7, 5])));
    assert!(!matches(vlans(&[5], false), &tagged(&[])));
    assert!(matches(vlans(&[5], true), &tagged(&[])));
    assert!(matches(vlans(&[5], true), &tagged(&[5])));
    assert!(!matches(vlans(&[], true), &tagged(&[5])));
    assert!(matches(vlans(&[], true), &tagged(&[])));
    assert!(matches(to_port(80), &tagged(&[1, 2, 3, 4])));
    let bytes = tagged(&[5]);
    let mut frame = WireFrame::new(&bytes, 0);
    frame.restore_tag(tag(6));
    for (vlan, expected) in [(6, Some(0)), (5, Some(0)), (7, None)] {
        let set = RuleSet::new(vec![vlans(&[vlan], false)]).unwrap();
        assert_eq!(set.decide(&frame, In).rule, expected);
    }
}

#[test]
fn a_direction_is_a_condition_like_others() {
    let set = RuleSet::new(vec![Rule {
        direction: Some(Out),
        ..Rule::default()
    }])
    .unwrap();
    let frame = v4(TCP, 0);
    let frame = WireFrame::new(&frame, 0);
    assert!(set.decide(&frame, Out).accepted);
    assert!(!set.decide(&frame, In).accepted);
}

#[test]
#[allow(clippy::reversed_empty_ranges, reason = "a range that is refused")]
fn rules_that_cannot_be_used_are_refused_by_number() {
    let refusal = |rule| RuleSet::new(vec![Rule::default(), rule]).unwrap_err();
    let ports = Rule {
        source_ports: vec![5..=4],
        ..Rule::default()
    };
    let (rule, first, last) = (2, 5, 4);
    assert_eq!(refusal(ports), InvalidRule::Ports { rule, first, last });
    let vlan = Rule {
        vlans: vec![4095],
        ..Rule::default()
    };
    assert_eq!(refusal(vlan), InvalidRule::Vlan { rule, vlan: 4095 });
    let flags = Rule {
        tcp_flags: 3,
        tcp_flags_mask: 2,
        ..Rule::default()
    };
    assert_eq!(refusal(flags), InvalidRule::Flags { rule });
    let many = vec![Rule::default(); MAX_RULES + 1];
    assert_eq!(RuleSet::new(many), Err(InvalidRule::TooMany(MAX_RULES + 1)));
    assert!(Network::new("10.0.0.0".parse().unwrap(), 33).is_err());
    assert!(Network::new("::".parse().unwrap(), 128).is_ok());
}
