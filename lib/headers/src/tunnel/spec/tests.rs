use super::super::tests::{GUE_IP, kinds, spec, v6};
use super::*;

#[test]
fn every_kind_can_be_sent_and_received_with_its_defaults() {
    for kind in kinds() {
        assert_eq!(spec(kind).check(), Ok(()), "{kind:?}");
        assert_eq!(DecapSpec::new(kind).check(), Ok(()), "{kind:?}");
    }
    assert_eq!(DecapSpec::new(TunnelKind::Tzsp).check(), Ok(()));
    assert_eq!(
        spec(TunnelKind::Tzsp).check(),
        Err(InvalidTunnel::ReceiveOnly)
    );
}

#[test]
fn identifiers_keep_to_the_room_that_the_format_has() {
    let erspan = TunnelKind::Erspan(ErspanType::II);
    for (kind, max) in [
        (TunnelKind::Vxlan, 0xff_ffff),
        (TunnelKind::Geneve, 0xff_ffff),
        (TunnelKind::Nvgre, 0xff_ffff),
        (erspan, 1023),
    ] {
        let mut spec = spec(kind);
        for (id, expected) in [
            (Some(0), Ok(())),
            (Some(max), Ok(())),
            (
                None,
                Err(InvalidTunnel::IdMissing(kind.as_str(), kind.id_name())),
            ),
            (
                Some(max + 1),
                Err(InvalidTunnel::Id {
                    kind: kind.as_str(),
                    id: max + 1,
                    max,
                }),
            ),
        ] {
            spec.id = id;
            assert_eq!(spec.check(), expected);
        }
    }
    for kind in [TunnelKind::Ipip, GUE_IP, TunnelKind::Erspan(ErspanType::I)] {
        let mut spec = spec(kind);
        spec.id = Some(0);
        assert_eq!(spec.check(), Err(InvalidTunnel::NoId(kind.as_str())));
    }
    assert_eq!(
        check_id(erspan, Some(1024)).unwrap_err().to_string(),
        "identifier 1024 is out of range for erspan: use 0 to 1023"
    );
}

#[test]
fn settings_that_a_format_does_not_have_are_refused() {
    type Change = fn(&mut EncapSpec);
    let cases: [(TunnelKind, &str, Change); 12] = [
        (TunnelKind::Vxlan, "csum", |s| s.checksum = true),
        (TunnelKind::Nvgre, "csum", |s| s.checksum = true),
        (GUE_IP, "seq", |s| s.sequence = true),
        (TunnelKind::Gretap, "dport", |s| {
            s.destination_port = Some(1)
        }),
        (TunnelKind::Gretap, "sport", |s| s.source_port = Some(1)),
        (TunnelKind::Ipip, "udp-csum", |s| {
            s.udp_checksum = Some(false)
        }),
        (TunnelKind::Vxlan, "metadata", |s| s.metadata = true),
        (TunnelKind::Gretap, "index", |s| s.erspan.index = 1),
        (TunnelKind::Erspan(ErspanType::III), "index", |s| {
            s.erspan.index = 1;
        }),
        (TunnelKind::Erspan(ErspanType::II), "hwid", |s| {
            s.erspan.hardware_id = 1;
        }),
        (TunnelKind::Erspan(ErspanType::II), "direction", |s| {
            s.erspan.direction = Some(Direction::Ingress);
        }),
        (
            TunnelKind::Gretap,
            "df (over IPv6, where routers never fragment)",
            |s| {
                (s.source, s.destination) = (v6(1), v6(2));
                s.dont_fragment = true;
            },
        ),
    ];
    for (kind, option, change) in cases {
        let mut spec = spec(kind);
        change(&mut spec);
        let expected = InvalidTunnel::NotForKind(kind.as_str(), option);
        assert_eq!(spec.check(), Err(expected));
    }
    let mut decap = DecapSpec::new(TunnelKind::Vxlan);
    decap.require_checksum = true;
    assert_eq!(
        decap.check(),
        Err(InvalidTunnel::NotForKind("vxlan", "csum"))
    );
}

#[test]
fn values_out_of_range_are_refused() {
    let gue_one = TunnelKind::Gue {
        payload: UdpPayload::Gretap,
        variant: GueVariant::One,
    };
    let second = TunnelKind::Erspan(ErspanType::II);
    let third = TunnelKind::Erspan(ErspanType::III);
    type Change = fn(&mut EncapSpec);
    let cases: [(TunnelKind, InvalidTunnel, Change); 7] = [
        (TunnelKind::Gre, InvalidTunnel::Families, |s| {
            s.source = v6(1)
        }),
        (TunnelKind::Gre, InvalidTunnel::Ttl, |s| {
            s.ttl = Field::Fixed(0)
        }),
        (TunnelKind::Vxlan, InvalidTunnel::PortZero, |s| {
            s.destination_port = Some(0);
        }),
        (
            TunnelKind::Fou {
                payload: UdpPayload::Ip,
            },
            InvalidTunnel::PortMissing("fou"),
            |s| s.destination_port = None,
        ),
        (second, InvalidTunnel::Index(0x10_0000), |s| {
            s.erspan.index = 0x10_0000;
        }),
        (third, InvalidTunnel::HardwareId(64), |s| {
            s.erspan.hardware_id = 64;
        }),
        (gue_one, InvalidTunnel::Variant, |_| {}),
    ];
    for (kind, expected, change) in cases {
        let mut spec = spec(kind);
        change(&mut spec);
        assert_eq!(spec.check(), Err(expected));
    }
}
