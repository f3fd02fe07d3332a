use super::*;
use crate::mirror::{TargetArg, parse_rule};
use fluxcap_proto::v1::{MirrorDevice, MirrorRate, Scheduling, VlanTag};

fn mirror(target: &str) -> MirrorSpec {
    let mut spec = MirrorSpec {
        interface: "eth0".into(),
        ..Default::default()
    };
    match target.parse() {
        Ok(TargetArg::Ring(ring)) => spec.ring = ring,
        Ok(TargetArg::Devices(names)) => spec.devices = names.into_iter().map(device).collect(),
        Ok(TargetArg::Overlay(arg)) => spec.overlay = Some(arg.overlay),
        Err(error) => panic!("{error}"),
    }
    spec
}

fn device(name: String) -> MirrorDevice {
    MirrorDevice {
        name,
        vlan_push: None,
    }
}

fn problem(spec: &MirrorSpec) -> String {
    let error = validate_mirror(spec).err();
    error.map_or(String::new(), |error| error.to_string())
}

#[track_caller]
fn assert_refused(target: &str, change: impl Fn(&mut MirrorSpec), begin: &str) {
    let mut spec = mirror(target);
    change(&mut spec);
    let problem = problem(&spec);
    assert!(problem.starts_with(begin), "{begin}: {problem}");
}

#[test]
fn each_kind_of_target_is_accepted_alone() {
    for target in [
        "ring:cisco",
        "dev:eth1,eth2",
        "gue:192.0.2.9:7080,sport=9,ttl=255,tos=255",
        "gue:192.0.2.9,l2,local=192.0.2.1,dev=eth1,mtu=drop",
        "vxlan:2001:db8::9,vni=0",
        "geneve:192.0.2.9,vni=16777215",
        "gretap:192.0.2.9",
        "gretap:192.0.2.9,key=4294967295",
    ] {
        assert_eq!(problem(&mirror(target)), "", "{target}");
    }
}

#[test]
fn a_mirror_has_one_kind_of_target() {
    assert_refused("ring:a", |it| it.ring.clear(), "ring: say where");
    assert_refused(
        "dev:eth1",
        |it| it.ring = "a".into(),
        "devices: a mirror has one",
    );
    assert_refused(
        "gue:192.0.2.9",
        |it| it.ring = "a".into(),
        "overlay: a mirror has one",
    );
    assert_refused(
        "ring:a",
        |it| it.hook = Hook::Xdp.into(),
        "devices: name the interfaces",
    );
    assert_refused(
        "gue:192.0.2.9",
        |it| it.hook = Hook::Xdp.into(),
        "overlay: hook xdp",
    );
    let mut both = mirror("dev:eth1");
    (both.hook, both.ring) = (Hook::Xdp.into(), "a".into());
    assert_eq!(problem(&both), "");
}

#[test]
fn interfaces_are_legal_and_not_the_source() {
    assert_refused("ring:a", |it| it.interface = "a/b".into(), "interface: ");
    assert_refused("dev:eth1,eth0", |_| {}, "devices: eth0 is the mirror's own");
    assert_refused("dev:eth1,eth1", |_| {}, "devices: eth1 is named twice");
    let many =
        |it: &mut MirrorSpec| it.devices = (0..17).map(|n| device(format!("e{n}"))).collect();
    assert_refused("dev:eth1", many, "devices: name 1 to 16");
    let tag = |vid| {
        Some(VlanTag {
            vid,
            ..Default::default()
        })
    };
    assert_refused(
        "dev:eth1",
        |it| it.devices[0].vlan_push = tag(5),
        "devices: tags are pushed",
    );
    let xdp = |it: &mut MirrorSpec| {
        it.hook = Hook::Xdp.into();
        it.devices[0].vlan_push = tag(4095);
    };
    assert_refused("dev:eth1", xdp, "devices: ");
}

#[test]
fn collectors_fit_their_kind() {
    for (target, begin) in [
        ("vxlan:192.0.2.9", "overlay.id: vxlan needs"),
        (
            "vxlan:192.0.2.9,vni=16777216",
            "overlay.id: 16777216 is out of range",
        ),
        (
            "geneve:192.0.2.9,vni=16777216",
            "overlay.id: 16777216 is out of range",
        ),
        ("gue:192.0.2.9,key=5", "overlay.id: gue has no"),
        ("gretap:192.0.2.9:5", "overlay.port: gretap is not in UDP"),
        ("gretap:192.0.2.9,sport=5", "overlay.source_port: gretap"),
        (
            "vxlan:192.0.2.9,vni=5,inner=ip",
            "overlay.inner: vxlan always",
        ),
        ("gue:collector", "overlay.remote: \"collector\" is a name"),
        ("gue:0.0.0.0", "overlay.remote: \"0.0.0.0\" is no address"),
        (
            "gue:239.0.0.1",
            "overlay.remote: \"239.0.0.1\" is a multicast",
        ),
        (
            "gue:192.0.2.9,local=2001:db8::1",
            "overlay.local: 2001:db8::1 and",
        ),
        (
            "gue:192.0.2.9,local=192.0.2.9",
            "overlay.local: is the collector's",
        ),
        ("gue:192.0.2.9,local=::", "overlay.local: "),
        ("gue:192.0.2.9,dev=a/b", "overlay.device: "),
    ] {
        assert_refused(target, |_| {}, begin);
    }
    fn overlay(spec: &mut MirrorSpec) -> &mut MirrorOverlay {
        spec.overlay.get_or_insert_default()
    }
    let gue = "gue:192.0.2.9";
    assert_refused(gue, |it| overlay(it).kind = 0, "overlay.kind: say which");
    assert_refused(
        gue,
        |it| overlay(it).kind = TunnelKind::Erspan.into(),
        "overlay.kind: erspan",
    );
    assert_refused(
        gue,
        |it| overlay(it).inner = InnerProtocol::Gre.into(),
        "overlay.inner: ",
    );
    assert_refused(gue, |it| overlay(it).port = 65_536, "overlay.port: 65536");
    assert_refused(
        gue,
        |it| overlay(it).source_port = 65_536,
        "overlay.source_port: 65536",
    );
    assert_refused(gue, |it| overlay(it).ttl = 256, "overlay.ttl: ");
    assert_refused(gue, |it| overlay(it).tos = 256, "overlay.tos: ");
    let fragment = MtuPolicy::Fragment.into();
    assert_refused(
        gue,
        |it| overlay(it).mtu_policy = fragment,
        "overlay.mtu_policy: ",
    );
}

#[test]
fn tunnel_devices_are_for_ip_in_gue() {
    let device = |tunnel: &'static str, gateway: &'static str, by: &'static str| {
        move |it: &mut MirrorSpec| {
            let overlay = it.overlay.get_or_insert_default();
            overlay.tunnel_device = tunnel.into();
            overlay.gateway = gateway.into();
            overlay.gateway_device = by.into();
        }
    };
    let gue = "gue:192.0.2.9";
    let mut spec = mirror(gue);
    device("gue1", "192.0.2.1", "eth1")(&mut spec);
    assert_eq!(problem(&spec), "");
    assert_refused(
        gue,
        device("", "192.0.2.1", "eth1"),
        "overlay.gateway: is for a tunnel",
    );
    assert_refused(
        gue,
        device("", "", "eth1"),
        "overlay.gateway_device: is for a tunnel",
    );
    assert_refused(gue, device("gue1", "", "eth1"), "overlay.gateway: name");
    assert_refused(
        gue,
        device("gue1", "192.0.2.1", ""),
        "overlay.gateway_device: name",
    );
    assert_refused(
        gue,
        device("gue1", "2001:db8::1", "eth1"),
        "overlay.gateway: 2001",
    );
    assert_refused(gue, device("gue1", "x", "eth1"), "overlay.gateway: \"x\"");
    assert_refused(gue, device("a/b", "", ""), "overlay.tunnel_device: ");
    assert_refused(
        gue,
        device("eth0", "", ""),
        "overlay.tunnel_device: is the mirror's",
    );
    assert_refused(
        gue,
        device("a234567890123456", "", ""),
        "overlay.tunnel_device: must have",
    );
    assert_refused(
        "gue:192.0.2.9,l2",
        device("gue1", "", ""),
        "overlay.tunnel_device: tunnel devices",
    );
    assert_refused(
        "vxlan:192.0.2.9,vni=1",
        device("v1", "", ""),
        "overlay.tunnel_device: ",
    );
}

#[test]
fn rules_are_named_by_their_number() {
    let with = |change: fn(&mut MirrorRule)| {
        move |spec: &mut MirrorSpec| {
            let mut bad = MirrorRule::default();
            change(&mut bad);
            spec.rules = vec![parse_rule("proto tcp").unwrap_or_default(), bad];
        }
    };
    let cases: [fn(&mut MirrorRule); 9] = [
        |it| it.sources = vec!["host".into()],
        |it| it.destinations = vec!["10.0.0.0/33".into()],
        |it| it.source_ports = vec![PortRange { first: 9, last: 8 }],
        |it| {
            it.destination_ports = vec![PortRange {
                first: 9,
                last: 65_536,
            }]
        },
        |it| it.protocols = vec![256],
        |it| it.vlans = vec![4095],
        |it| it.tcp_flags_mask = 256,
        |it| it.tcp_flags = 256,
        |it| (it.tcp_flags, it.tcp_flags_mask) = (3, 2),
    ];
    for case in cases {
        assert_refused("ring:a", with(case), "rules: rule 2: ");
    }
    let many = |it: &mut MirrorSpec| it.rules = vec![MirrorRule::default(); 1025];
    assert_refused("ring:a", many, "rules: at most 1024");
}

#[test]
fn the_rest_is_within_its_bounds() {
    let ring = "ring:a";
    assert_refused(ring, |it| it.filter = "tcp prt 80".into(), "filter: ");
    let rate = MirrorRate {
        burst_ms: 10_001,
        ..Default::default()
    };
    assert_refused(ring, |it| it.rate = Some(rate), "rate.burst_ms: ");
    assert_refused(ring, |it| it.lifetime_ms = u64::MAX, "lifetime_ms: ");
    assert_refused(ring, |it| it.mark = 3, "mark: ");
    assert_refused(ring, |it| it.mark = 0x2000_0000, "mark: ");
    for bytes in [2048, 12_288, 1 << 31] {
        assert_refused(ring, |it| it.buffer_bytes = bytes, "buffer_bytes: must be");
    }
    assert_refused(
        "dev:eth1",
        |it| it.buffer_bytes = 4096,
        "buffer_bytes: is for",
    );
    let scheduling = Scheduling {
        priority: 100,
        ..Default::default()
    };
    assert_refused(
        ring,
        |it| it.scheduling = Some(scheduling.clone()),
        "scheduling.priority: ",
    );
}

#[test]
fn programs_have_their_places() {
    for order in ["", "first", "last", "before:7", "after:4294967295"] {
        let mut spec = mirror("ring:a");
        spec.order = order.into();
        assert_eq!(problem(&spec), "", "{order}");
    }
    for order in ["middle", "before:", "before:0", "after:-1", "after:x"] {
        assert_refused("ring:a", |it| it.order = order.into(), "order: ");
    }
    let clsact = |it: &mut MirrorSpec| {
        it.attach = Attach::Clsact.into();
        it.order = "first".into();
    };
    assert_refused("ring:a", clsact, "order: is for attach tcx");
    let xdp = |change: fn(&mut MirrorSpec)| {
        move |it: &mut MirrorSpec| {
            it.hook = Hook::Xdp.into();
            change(it);
        }
    };
    let both = xdp(|it| it.direction = Direction::Both.into());
    assert_refused("dev:eth1", both, "direction: hook xdp");
    let attach = xdp(|it| it.attach = Attach::Tcx.into());
    assert_refused("dev:eth1", attach, "attach: is for hook tc");
    assert_refused(
        "dev:eth1",
        xdp(|it| it.order = "first".into()),
        "order: is for hook tc",
    );
}
