use super::*;
use fluxcap_proto::v1::{Edits, TunnelMapping};

fn sending(
    kind: v1::TunnelKind,
    change: impl FnOnce(&mut TunnelSpec, &mut TunnelSend),
) -> TunnelSpec {
    let mut send = TunnelSend {
        rings: vec!["cisco".into()],
        remote: "192.0.2.9".into(),
        ..Default::default()
    };
    let mut spec = TunnelSpec {
        kind: kind.into(),
        ..Default::default()
    };
    change(&mut spec, &mut send);
    spec.send = Some(send);
    spec
}

fn receiving(
    kind: v1::TunnelKind,
    change: impl FnOnce(&mut TunnelSpec, &mut TunnelReceive),
) -> TunnelSpec {
    let mut receive = TunnelReceive {
        default_ring: "cisco".into(),
        ..Default::default()
    };
    let mut spec = TunnelSpec {
        kind: kind.into(),
        receive: Some(receive.clone()),
        ..Default::default()
    };
    change(&mut spec, &mut receive);
    spec.receive = Some(receive);
    spec
}

fn mapping(id: Option<u32>, ring: &str) -> TunnelMapping {
    TunnelMapping {
        id,
        ring: ring.into(),
    }
}

/// The field that is refused and why; empty when nothing is.
fn problem(spec: &TunnelSpec) -> String {
    let problem = validate_tunnel(spec).err();
    problem.map(|error| error.to_string()).unwrap_or_default()
}

/// Checks that a spec is refused at `field`, with a text that holds `says`.
#[track_caller]
fn assert_refused(spec: &TunnelSpec, field: &str, says: &str) {
    let problem = problem(spec);
    let begins = problem.starts_with(&format!("{field}: "));
    assert!(begins && problem.contains(says), "{problem:?}");
}

use v1::TunnelKind as Kind;

#[test]
fn every_kind_can_be_sent_and_received_but_tzsp_which_nobody_sends() {
    for kind in [
        Kind::Gre,
        Kind::Gretap,
        Kind::Nvgre,
        Kind::Erspan,
        Kind::Vxlan,
        Kind::Geneve,
        Kind::Gue,
        Kind::Fou,
        Kind::Ipip,
        Kind::Tzsp,
    ] {
        let needs_id = matches!(
            kind,
            Kind::Nvgre | Kind::Erspan | Kind::Vxlan | Kind::Geneve
        );
        let port = if kind == Kind::Fou { 5555 } else { 0 };
        let send = sending(kind, |spec, send| {
            spec.port = port;
            send.id = needs_id.then_some(5);
        });
        let receive = receiving(kind, |spec, _| spec.port = port);
        if kind == Kind::Tzsp {
            assert_refused(&send, "kind", "received only");
        } else {
            assert_eq!(problem(&send), "", "{kind:?}");
        }
        assert_eq!(problem(&receive), "", "{kind:?}");
    }
}

#[test]
fn an_identifier_has_to_fit_into_its_field() {
    for (kind, most) in [
        (Kind::Vxlan, 0xff_ffff),
        (Kind::Geneve, 0xff_ffff),
        (Kind::Nvgre, 0xff_ffff),
        (Kind::Erspan, 0x3ff),
    ] {
        let send = |id| sending(kind, |_, send| send.id = id);
        assert_eq!(problem(&send(Some(most))), "");
        assert_refused(&send(Some(most + 1)), "send.id", &format!("0 to {most}"));
        assert_refused(&send(None), "send.id", "needs");
        let receive = |id| receiving(kind, |_, r| r.map = vec![mapping(Some(id), "a")]);
        assert_eq!(problem(&receive(most)), "");
        assert_refused(&receive(most + 1), "receive.map", &format!("0 to {most}"));
    }
    let ipip = sending(Kind::Ipip, |_, send| send.id = Some(0));
    assert_refused(&ipip, "send.id", "leave it out");
    let ipip = receiving(Kind::Ipip, |_, r| r.map = vec![mapping(Some(0), "a")]);
    assert_refused(&ipip, "receive.map", "leave it out");
    let erspan_i = sending(Kind::Erspan, |_, send| {
        (send.erspan_version, send.id) = (Some(0), Some(1));
    });
    assert_refused(&erspan_i, "send.id", "leave it out");
}

#[test]
fn no_key_and_key_zero_are_two_specs() {
    let source = "192.0.2.1".parse().unwrap();
    let destination = "192.0.2.9".parse().unwrap();
    let id = |id| {
        let spec = sending(Kind::Gretap, |_, send| send.id = id);
        encap_spec(&spec, source, destination).unwrap().id
    };
    assert_eq!([id(None), id(Some(0))], [None, Some(0)]);
    let both = receiving(Kind::Gretap, |_, r| {
        r.map = vec![mapping(None, "a"), mapping(Some(0), "b")];
    });
    assert_eq!(problem(&both), "");
}

#[test]
fn an_identifier_has_one_ring() {
    for id in [None, Some(7)] {
        let twice = receiving(Kind::Gretap, |_, r| {
            r.map = vec![mapping(id, "a"), mapping(Some(1), "b"), mapping(id, "c")];
        });
        assert_refused(&twice, "receive.map", "two rings");
    }
    let nowhere = receiving(Kind::Gretap, |_, r| r.default_ring.clear());
    assert_refused(&nowhere, "receive.map", "at least one ring");
}

#[test]
fn what_only_some_kinds_have_is_refused_for_the_others() {
    let vxlan = |change: fn(&mut TunnelSpec, &mut TunnelSend)| {
        sending(Kind::Vxlan, |spec, send| {
            send.id = Some(5);
            change(spec, send);
        })
    };
    assert_refused(&vxlan(|spec, _| spec.checksum = true), "checksum", "vxlan");
    assert_refused(&vxlan(|spec, _| spec.sequence = true), "sequence", "vxlan");
    assert_refused(&vxlan(|_, s| s.metadata = true), "send.metadata", "vxlan");
    assert_refused(
        &vxlan(|_, s| s.erspan_version = Some(1)),
        "send.erspan_version",
        "erspan",
    );
    assert_refused(
        &vxlan(|_, s| s.erspan_index = 1),
        "send.erspan_index",
        "vxlan",
    );
    assert_refused(&vxlan(|_, s| s.gue_variant = 1), "send.gue_variant", "gue");
    let with_inner = vxlan(|spec, _| spec.inner = InnerProtocol::Gretap.into());
    assert_refused(&with_inner, "inner", "gue and fou");
    let gretap = sending(Kind::Gretap, |spec, _| spec.port = 5);
    assert_refused(&gretap, "port", "gretap");
    let gretap = receiving(Kind::Gretap, |spec, _| spec.port = 5);
    assert_refused(&gretap, "port", "not in UDP");
    let gretap = receiving(Kind::Gretap, |_, r| r.zero_udp6_checksum = true);
    assert_refused(&gretap, "receive.zero_udp6_checksum", "not in UDP");
    let gretap = sending(Kind::Gretap, |_, s| s.udp_checksum = Some(true));
    assert_refused(&gretap, "send.udp_checksum", "gretap");
    let vxlan = receiving(Kind::Vxlan, |spec, _| spec.checksum = true);
    assert_refused(&vxlan, "checksum", "vxlan");
}

#[test]
fn numbers_have_to_fit_into_their_fields() {
    let erspan = |version, change: fn(&mut TunnelSend)| {
        sending(Kind::Erspan, |_, send| {
            (send.erspan_version, send.id) = (Some(version), Some(1));
            change(send);
        })
    };
    assert_eq!(problem(&erspan(1, |s| s.erspan_index = 0xf_ffff)), "");
    assert_refused(
        &erspan(1, |s| s.erspan_index = 0x10_0000),
        "send.erspan_index",
        "1048575",
    );
    assert_refused(&erspan(2, |s| s.erspan_hwid = 64), "send.erspan_hwid", "63");
    assert_refused(&erspan(3, |_| {}), "send.erspan_version", "0, 1 or 2");
    let gretap = |change: fn(&mut TunnelSend)| sending(Kind::Gretap, |_, send| change(send));
    assert_refused(&gretap(|s| s.ttl = 256), "send.ttl", "255");
    assert_refused(&gretap(|s| s.tos = 256), "send.tos", "255");
    assert_refused(
        &gretap(|s| s.merge_window_us = 10_000_001),
        "send.merge_window_us",
        "10 s",
    );
    assert_refused(&gretap(|s| s.io = "dpdk".into()), "send.io", "sendmmsg");
    assert_refused(&gretap(|s| s.rings.clear()), "send.rings", "1 to 16");
    let port = sending(Kind::Gue, |spec, _| spec.port = 65_536);
    assert_refused(&port, "port", "65535");
    let fou = sending(Kind::Fou, |_, _| {});
    assert_refused(&fou, "port", "fou");
    let fou = receiving(Kind::Fou, |_, _| {});
    assert_refused(&fou, "port", "fou");
}

#[test]
fn gue_is_received_with_whatever_its_header_says() {
    for inner in [InnerProtocol::Unspecified, InnerProtocol::Ip] {
        let keyed = receiving(Kind::Gue, |spec, r| {
            spec.inner = inner.into();
            r.map = vec![mapping(Some(u32::MAX), "a")];
        });
        assert_eq!(problem(&keyed), "");
    }
}

#[test]
fn gue_without_a_header_carries_ip_only() {
    let gue = |inner: InnerProtocol| {
        sending(Kind::Gue, |spec, send| {
            spec.inner = inner.into();
            send.gue_variant = 1;
        })
    };
    assert_eq!(problem(&gue(InnerProtocol::Ip)), "");
    assert_refused(&gue(InnerProtocol::Gretap), "send.gue_variant", "variant 0");
}

#[test]
fn a_packet_that_may_be_fragmented_has_no_df() {
    let spec = |policy: MtuPolicy, df| {
        sending(Kind::Gretap, |_, send| {
            (send.mtu_policy, send.df) = (policy.into(), df);
        })
    };
    assert_refused(
        &spec(MtuPolicy::Unspecified, Some(true)),
        "send.df",
        "truncate or drop",
    );
    let sets_df = |spec: &TunnelSpec, remote: &str| {
        let address: IpAddr = remote.parse().unwrap();
        encap_spec(spec, address, address).unwrap().dont_fragment
    };
    for (policy, df, over_ipv4) in [
        (MtuPolicy::Fragment, None, false),
        (MtuPolicy::Truncate, None, true),
        (MtuPolicy::Drop, None, true),
        (MtuPolicy::Drop, Some(false), false),
    ] {
        let spec = spec(policy, df);
        assert_eq!(problem(&spec), "");
        assert_eq!(sets_df(&spec, "192.0.2.9"), over_ipv4, "{policy:?} {df:?}");
        assert!(
            !sets_df(&spec, "2001:db8::9"),
            "routers never fragment there"
        );
    }
}

#[test]
fn addresses_must_be_of_one_family_and_of_a_host() {
    let spec = |local: &str, remote: &str| {
        sending(Kind::Gretap, |spec, send| {
            (spec.local, send.remote) = (local.into(), remote.into());
        })
    };
    assert_eq!(problem(&spec("192.0.2.1", "collector")), "");
    assert_eq!(problem(&spec("2001:db8::1", "2001:db8::9")), "");
    assert_refused(&spec("2001:db8::1", "192.0.2.9"), "local", "both");
    assert_refused(&spec("host", "192.0.2.9"), "local", "no address");
    assert_refused(&spec("0.0.0.0", "192.0.2.9"), "local", "no address");
    assert_refused(&spec("", ""), "send.remote", "neither");
    assert_refused(&spec("", "239.0.0.1"), "send.remote", "multicast");
}

#[test]
fn a_receiver_is_told_senders_and_ethernet_addresses_that_can_be() {
    let spec = |change: fn(&mut TunnelReceive)| receiving(Kind::Gre, |_, receive| change(receive));
    assert_eq!(
        problem(&spec(|r| r.from = vec!["192.0.2.0/24".into(), "::1".into()])),
        ""
    );
    assert_refused(
        &spec(|r| r.from = vec!["x".into()]),
        "receive.from",
        "192.0.2.0/24",
    );
    assert_refused(
        &spec(|r| r.from = vec!["::1".into(); 257]),
        "receive.from",
        "256",
    );
    assert_eq!(
        problem(&spec(|r| r.mac_source = "02:00:00:00:00:05".into())),
        ""
    );
    assert_refused(
        &spec(|r| r.mac_destination = "x".into()),
        "receive.mac_destination",
        "Ethernet",
    );
    assert_refused(
        &spec(|r| r.buffer_bytes = 2 << 30),
        "receive.buffer_bytes",
        "1 GiB",
    );
}

#[test]
fn a_tunnel_goes_one_way_and_has_a_kind() {
    assert_refused(&TunnelSpec::default(), "kind", "say which");
    let neither = TunnelSpec {
        kind: Kind::Gre.into(),
        ..Default::default()
    };
    assert_refused(&neither, "send", "either");
    let mut both = sending(Kind::Gre, |_, _| {});
    both.receive = Some(TunnelReceive::default());
    assert_refused(&both, "send", "either");
}

#[test]
fn what_all_daemons_check_is_checked_here_too() {
    let filter = |filter: &str| {
        sending(Kind::Gre, |spec, _| {
            spec.edits = Some(Edits {
                filter: filter.into(),
                ..Default::default()
            });
        })
    };
    assert_refused(&filter("porrt 5"), "edits.filter", "");
    let device = sending(Kind::Gre, |spec, _| spec.device = "a/b".into());
    assert_refused(&device, "device", "no interface name");
}

#[test]
fn an_erspan_of_type_two_is_sent_unless_another_is_named() {
    let address: IpAddr = "192.0.2.9".parse().unwrap();
    for (version, erspan) in [
        (None, ErspanType::II),
        (Some(0), ErspanType::I),
        (Some(1), ErspanType::II),
        (Some(2), ErspanType::III),
    ] {
        let spec = sending(Kind::Erspan, |_, send| {
            send.erspan_version = version;
            send.id = (version != Some(0)).then_some(9);
        });
        let kind = encap_spec(&spec, address, address).unwrap().kind;
        assert_eq!(kind, TunnelKind::Erspan(erspan));
    }
}

#[test]
fn headers_are_as_long_as_the_readme_says() {
    use fluxcap_headers::tunnel::Encap;
    let overhead = |spec: &TunnelSpec, remote: &str| {
        let address: IpAddr = remote.parse().unwrap();
        let encap = Encap::new(&encap_spec(spec, address, address).unwrap()).unwrap();
        encap.overhead()
    };
    let plain = |kind| sending(kind, |_, send| send.id = Some(1));
    let unkeyed = |kind| sending(kind, |_, _| {});
    let full_gre = sending(Kind::Gretap, |spec, send| {
        (spec.checksum, spec.sequence, send.id) = (true, true, Some(1));
    });
    let erspan = |version| {
        sending(Kind::Erspan, |_, send| {
            send.erspan_version = Some(version);
            send.id = (version != 0).then_some(1);
        })
    };
    let metadata = sending(Kind::Geneve, |_, send| {
        (send.id, send.metadata) = (Some(1), true);
    });
    let udp = |kind, inner: InnerProtocol, variant| {
        sending(kind, |spec, send| {
            (spec.inner, spec.port, send.gue_variant) = (inner.into(), 6080, variant);
        })
    };
    let (ip, gre) = (InnerProtocol::Ip, InnerProtocol::Gre);
    let gretap = InnerProtocol::Gretap;
    for (spec, bytes) in [
        (unkeyed(Kind::Gre), 24),
        (unkeyed(Kind::Gretap), 24),
        (full_gre, 24 + 3 * 4),
        (plain(Kind::Nvgre), 28),
        (erspan(0), 24),
        (erspan(1), 36),
        (erspan(2), 40),
        (plain(Kind::Vxlan), 36),
        (plain(Kind::Geneve), 36),
        (metadata, 36 + 20),
        (udp(Kind::Gue, ip, 0), 32),
        (udp(Kind::Gue, ip, 1), 28),
        (udp(Kind::Gue, gre, 0), 36),
        (udp(Kind::Gue, gretap, 0), 36),
        (udp(Kind::Fou, ip, 0), 28),
        (udp(Kind::Fou, gre, 0), 32),
        (udp(Kind::Fou, gretap, 0), 32),
        (unkeyed(Kind::Ipip), 20),
    ] {
        assert_eq!(overhead(&spec, "192.0.2.9"), bytes, "{spec:?}");
        assert_eq!(overhead(&spec, "2001:db8::9"), bytes + 20, "{spec:?}");
    }
}
