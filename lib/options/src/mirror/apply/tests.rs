use super::*;
use crate::mirror::{parse_rule, validate_mirror};
use clap::Parser;
use fluxcap_proto::v1::{
    FilterVlan, MirrorFuse, MirrorRate, MirrorRule, Sample, SampleMode, Scheduling, TunnelKind,
    VlanTag,
};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: MirrorArgs,
    #[command(flatten)]
    classic: ClassicArgs,
}

fn parse(args: &[&str]) -> Result<Cli, String> {
    Cli::try_parse_from([&["x"], args].concat()).map_err(|error| error.to_string())
}

fn try_spec(args: &[&str]) -> Result<MirrorSpec, String> {
    let cli = parse(args)?;
    let spec = cli.options.to_spec("eth0", None, &cli.classic);
    spec.map_err(|error| error.to_string())
}

#[track_caller]
fn spec(args: &[&str]) -> MirrorSpec {
    let spec = try_spec(args).unwrap();
    assert_eq!(validate_mirror(&spec), Ok(()));
    spec
}

fn changes(current: &MirrorSpec, args: &[&str]) -> (MirrorSpec, Vec<&'static str>) {
    parse(args).unwrap().options.changes(current).unwrap()
}

fn rule(text: &str) -> MirrorRule {
    parse_rule(text).unwrap()
}

#[test]
fn a_target_is_enough() {
    let expected = MirrorSpec {
        interface: "eth0".into(),
        ring: "cisco".into(),
        ..Default::default()
    };
    assert_eq!(spec(&["--to", "ring:cisco"]), expected);
    assert!(try_spec(&[]).is_err_and(|error| error.contains("--to ring:NAME")));
}

#[test]
fn every_option_arrives_in_its_field() {
    let args = "--to gue:192.0.2.9:7080 --l2 --local 192.0.2.1 --dev eth1 --ttl 9 --tos 0x10 --sport 5 --mtu-policy drop \
                --direction ingress --filter tcp --filter-vlan exact --sample 1/10 --sample-by flow --seed 7 --snaplen 96 \
                --rate 10kpps,1Gbit --burst 50ms --fuse-errors 3 --fuse-rate 1Mpps --for 10m \
                --attach tcx --order before:7 --mark 0x100 --cpu 1 --hook tc";
    let mut words: Vec<&str> = args.split_whitespace().collect();
    words.extend(["--rule", "exclude proto udp", "--rule", "dport 80"]);
    let expected = MirrorSpec {
        interface: "eth0".into(),
        direction: Direction::In.into(),
        hook: Hook::Tc.into(),
        overlay: Some(MirrorOverlay {
            kind: TunnelKind::Gue.into(),
            inner: InnerProtocol::Gretap.into(),
            remote: "192.0.2.9".into(),
            local: "192.0.2.1".into(),
            device: "eth1".into(),
            port: 7080,
            source_port: 5,
            ttl: 9,
            tos: 0x10,
            mtu_policy: MtuPolicy::Drop.into(),
            ..Default::default()
        }),
        rules: vec![rule("exclude proto udp"), rule("dport 80")],
        filter: "tcp".into(),
        filter_vlan: FilterVlan::Exact.into(),
        sample: Some(Sample {
            one_in: 10,
            kept: 0,
            mode: SampleMode::Flow.into(),
            seed: 7,
        }),
        snaplen: 96,
        rate: Some(MirrorRate {
            frames_per_second: 10_000,
            bits_per_second: 1_000_000_000,
            burst_ms: 50,
        }),
        fuse: Some(MirrorFuse {
            errors_per_second: 3,
            frames_per_second: 1_000_000,
            bits_per_second: 0,
        }),
        lifetime_ms: 600_000,
        attach: Attach::Tcx.into(),
        order: "before:7".into(),
        mark: 0x100,
        scheduling: Some(Scheduling {
            cpus: vec![1],
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(spec(&words), expected);
}

#[test]
fn tags_are_pushed_for_one_interface_or_all() {
    let tag = |vid| VlanTag {
        vid,
        tpid: 0x8100,
        ..Default::default()
    };
    let args = [
        "--hook",
        "xdp",
        "--to",
        "dev:a,b",
        "--to",
        "ring:r",
        "--vlan-push",
        "5,b=6",
    ];
    let spec = spec(&args);
    let tags: Vec<_> = spec
        .devices
        .iter()
        .map(|it| (&*it.name, it.vlan_push))
        .collect();
    assert_eq!(tags, [("a", Some(tag(5))), ("b", Some(tag(6)))]);
    assert_eq!(spec.ring, "r");
    let (changed, mask) = changes(&spec, &["--to", "dev:b,c"]);
    let tags: Vec<_> = changed
        .devices
        .iter()
        .map(|it| (&*it.name, it.vlan_push))
        .collect();
    assert_eq!(
        (tags, mask),
        (vec![("b", Some(tag(6))), ("c", None)], vec!["devices"])
    );
    let (changed, mask) = changes(&spec, &["--vlan-push", "a="]);
    assert_eq!(
        (changed.devices[0].vlan_push, mask),
        (None, vec!["devices"])
    );
    for push in ["c=5", "5,6", "a=1,a=2"] {
        let args = ["--hook", "xdp", "--to", "dev:a,b", "--vlan-push", push];
        assert!(try_spec(&args).is_err(), "{push}");
    }
}

#[test]
fn only_what_is_given_is_changed() {
    let current = spec(&[
        "--to",
        "vxlan:192.0.2.9,vni=5,ttl=7",
        "--rule",
        "dport 80",
        "--rate",
        "1kpps",
    ]);
    let (changed, mask) = changes(
        &current,
        &["--ttl", "9", "--rule", "dport 443", "--burst", "5ms"],
    );
    assert_eq!(mask, ["overlay.ttl", "rate.burst_ms", "rules"]);
    assert_eq!(changed.rules, [rule("dport 443")]);
    let rate = changed.rate.unwrap();
    assert_eq!((rate.frames_per_second, rate.burst_ms), (1000, 5));
    let (changed, mask) = changes(
        &current,
        &["--rule", "", "--filter", "", "--rate", "0", "--for", "0s"],
    );
    let cleared = [
        "filter",
        "lifetime_ms",
        "rate.bits_per_second",
        "rate.frames_per_second",
        "rules",
    ];
    assert_eq!((changed.rules, mask), (Vec::new(), cleared.to_vec()));
}

#[test]
fn a_new_collector_leaves_the_way_there_alone() {
    let current = spec(&["--to", "vxlan:192.0.2.9,vni=5,ttl=7,dev=eth1"]);
    let (changed, mask) = changes(&current, &["--to", "vxlan:192.0.2.10:4790,vni=6,tos=8"]);
    let overlay = changed.overlay.unwrap();
    let found = (
        &*overlay.remote,
        overlay.port,
        overlay.id,
        overlay.ttl,
        overlay.tos,
        &*overlay.device,
    );
    assert_eq!(found, ("192.0.2.10", 4790, Some(6), 7, 8, "eth1"));
    let expected = [
        "overlay.id",
        "overlay.kind",
        "overlay.port",
        "overlay.remote",
        "overlay.tos",
    ];
    assert_eq!(mask, expected);
}

#[test]
fn options_for_collectors_are_refused_elsewhere() {
    let error = try_spec(&["--to", "ring:r", "--ttl", "5"]).unwrap_err();
    assert!(
        error.contains("overlay.ttl") && error.contains("--to gue"),
        "{error}"
    );
    assert!(try_spec(&["--to", "dev:a", "--l2"]).is_err());
    assert!(try_spec(&["--to", "ring:a", "--to", "ring:b"]).is_err_and(|it| it.contains("each")));
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    for (args, says) in [
        (["--mark", "3"], "one bit"),
        (["--tos", "256"], "0 to 255"),
        (["--burst", "11s"], "10s"),
        (["--burst", "5us"], "whole milliseconds"),
        (["--for", "forever"], "10m"),
        (["--buffer", "5G"], "8M"),
        (["--rate", "5"], "10kpps"),
        (["--rule", "dport x"], "'x' is no port"),
        (["--to", "eth1"], "ring:NAME"),
        (["--direction", "sideways"], "both"),
    ] {
        assert!(
            parse(&args).is_err_and(|error| error.contains(says)),
            "{args:?}"
        );
    }
}

#[test]
fn names_of_the_old_tool_make_a_rule_and_a_target() {
    let args = "--direction=ingress --src-address 10.0.0.0/8 --dst-port=0 --protocol=tcp \
                --tunnel-remote-address 192.0.2.9 --tunnel-local-port=6000 --tunnel-remote-port=7080";
    let args: Vec<&str> = args.split_whitespace().collect();
    let made = spec(&args);
    assert_eq!(made.rules, [rule("src 10.0.0.0/8 proto tcp")]);
    let overlay = made.overlay.unwrap();
    let found = (
        overlay.kind(),
        &*overlay.remote,
        overlay.port,
        overlay.source_port,
    );
    assert_eq!(found, (TunnelKind::Gue, "192.0.2.9", 7080, 6000));
    assert!(
        try_spec(&[
            "--to",
            "gue:192.0.2.9",
            "--tunnel-remote-address",
            "192.0.2.9"
        ])
        .is_err()
    );
}

#[test]
fn mirrors_are_named_by_interface_and_target() {
    for (target, name) in [
        ("ring:shm:x", "eth0-shm-x"),
        ("dev:a,b.5", "eth0-a-b-5"),
        ("gue:[2001:db8::9]:7080", "eth0-gue-2001-db8--9"),
    ] {
        assert_eq!(default_mirror_name(&spec(&["--to", target])), name);
    }
}
