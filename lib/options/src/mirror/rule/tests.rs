use super::*;

fn rule(text: &str) -> MirrorRule {
    parse_rule(text).unwrap()
}

fn problem(text: &str) -> String {
    parse_rule(text).unwrap_err().to_string()
}

fn range(first: u32, last: u32) -> PortRange {
    PortRange { first, last }
}

#[test]
fn every_condition_arrives_in_its_field() {
    let text = "exclude src 10.0.0.0/8,2001:db8::/32 dst 192.0.2.7 sport 1024-65535 dport 80,443,8000-8100 \
                proto tcp,udp,47 vlan 5,6,untagged flags syn/syn,ack dir ingress";
    let expected = MirrorRule {
        action: RuleAction::Exclude.into(),
        sources: vec!["10.0.0.0/8".into(), "2001:db8::/32".into()],
        destinations: vec!["192.0.2.7".into()],
        source_ports: vec![range(1024, 65535)],
        destination_ports: vec![range(80, 80), range(443, 443), range(8000, 8100)],
        protocols: vec![6, 17, 47],
        vlans: vec![5, 6],
        untagged: true,
        tcp_flags: 0x02,
        tcp_flags_mask: 0x12,
        direction: Direction::In.into(),
    };
    assert_eq!(rule(text), expected);
}

#[test]
fn a_rule_accepts_unless_it_excludes() {
    assert_eq!(rule("proto tcp"), rule("accept proto tcp"));
    assert_eq!(rule("accept"), rule("src any dport any vlan any flags any"));
    assert_eq!(rule("exclude").action(), RuleAction::Exclude);
    assert_eq!(rule("accept dir both"), rule("accept"));
}

#[test]
fn lists_may_have_spaces_around_commas_and_repeat_themselves() {
    assert_eq!(
        rule("dport 80, 443 ,80 proto tcp"),
        rule("dport 80,443 proto tcp")
    );
}

#[test]
fn protocols_have_names_and_numbers() {
    for (text, number) in [
        ("TCP", 6),
        ("icmp", 1),
        ("icmp6", 58),
        ("ipv6-icmp", 58),
        ("0", 0),
        ("255", 255),
    ] {
        assert_eq!(rule(&format!("proto {text}")).protocols, [number], "{text}");
    }
}

#[test]
fn flags_are_those_that_are_set_among_those_looked_at() {
    for (text, value, mask) in [
        ("syn", 0x02, 0x02),
        ("syn,ack", 0x12, 0x12),
        ("none", 0, 0xff),
        ("none/syn,rst", 0, 0x06),
        ("0x02/0x3f", 0x02, 0x3f),
        ("any", 0, 0),
    ] {
        let rule = rule(&format!("flags {text}"));
        assert_eq!(
            (rule.tcp_flags, rule.tcp_flags_mask),
            (value, mask),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_rule_is_refused_with_what_would_do() {
    for (text, says) in [
        ("", "accept or exclude"),
        ("drop src 10.0.0.1", "is no condition; there are src"),
        ("src", "value is missing"),
        ("accept accept", "goes first"),
        ("src 10.0.0.0/33", "'10.0.0.0/33' is no address"),
        ("src 10.0.0.1,", "missing at a comma"),
        ("src 10.0.0.1 src 10.0.0.2", "twice"),
        ("dport 65536", "'65536' is no port"),
        ("dport +80", "'+80' is no port"),
        ("dport 90-80", "lower port"),
        ("proto 256", "no protocol"),
        ("proto foo", "icmp6"),
        ("vlan 4095", "0 to 4094"),
        ("flags syn/ack", "syn is not among"),
        ("flags syn/none", "behind the slash"),
        ("flags sin", "fin, syn"),
        ("dir sideways", "ingress, egress"),
        ("untagged 5", "is no condition"),
    ] {
        assert!(problem(text).contains(says), "{text}: {}", problem(text));
    }
}

#[test]
fn a_rule_is_shown_as_it_is_written() {
    for text in [
        "accept",
        "exclude src 10.0.0.0/8,2001:db8::1 sport 1-2,7 dst 192.0.2.0/24 dport 80 proto tcp,gre,99",
        "accept vlan 5,6,untagged",
        "accept vlan untagged",
        "accept flags syn dir ingress",
        "accept flags syn/syn,ack dir egress",
        "accept flags none",
        "accept flags none/syn,rst",
        "accept flags cwr/fin,syn,rst,psh,ack,urg,ece,cwr",
    ] {
        assert_eq!(rule_text(&rule(text)), text);
    }
}

#[test]
fn a_file_has_a_rule_on_each_line() {
    let text = "# web\naccept dport 80,443 proto tcp # both\n\n  exclude src 10.0.0.0/8\n";
    let rules = parse_rules(text).unwrap();
    assert_eq!(
        rules,
        [
            rule("dport 80,443 proto tcp"),
            rule("exclude src 10.0.0.0/8")
        ]
    );
    let error = parse_rules("accept\n\nproto x").unwrap_err().to_string();
    assert!(
        error.contains("line 3") && error.contains("proto x"),
        "{error}"
    );
    let none: Result<RulesFileArg, _> = "/nowhere/rules".parse();
    assert!(none.is_err_and(|error| error.to_string().contains("/nowhere/rules")));
}

#[test]
fn each_protocol_that_has_a_name_is_found_by_it() {
    for number in 0..=255 {
        let name = protocol_name(number);
        let found = digits(&name)
            .or_else(|| protocol_number(&name))
            .map(u32::from);
        assert_eq!(found, Some(number), "{name}");
    }
}
