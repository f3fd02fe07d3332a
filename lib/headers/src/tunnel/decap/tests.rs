use super::super::tests::{GUE_IP, check_decoded, ip_packet};
use super::super::{ErspanType, GueVariant};
use super::*;

/// A frame of 18 bytes: 02:00:00:00:00:0a to 02:00:00:00:00:0b, EtherType 0x88b5, "abcd".
const FRAME: &[u8; 18] = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a\x88\xb5abcd";
const ERSPAN: TunnelKind = TunnelKind::Erspan(ErspanType::II);

fn decode(kind: TunnelKind, packet: &[u8]) -> Result<Decoded<'_>, Reject> {
    Decap::new(DecapSpec::new(kind)).unwrap().decode(packet)
}

fn reject(kind: TunnelKind, header: &[u8], payload: &[u8]) -> Reject {
    decode(kind, &[header, payload].concat()).expect_err("must be rejected")
}

/// What decoding `header` and a frame gives besides the frame.
fn facts(kind: TunnelKind, header: &[u8]) -> Decoded<'static> {
    let packet = [header, FRAME].concat();
    let decoded = decode(kind, &packet).unwrap();
    assert_eq!(decoded.payload, FRAME);
    Decoded {
        payload: FRAME,
        ..decoded
    }
}

fn plain() -> Decoded<'static> {
    Decoded::new(FRAME, Link::Ethernet)
}

/// Headers written down from the diagrams of the specifications, and what each means.
fn golden() -> Vec<(TunnelKind, &'static [u8], Decoded<'static>)> {
    let ticks = |unit| Some(SenderTime::Ticks(0x0102_0304, unit));
    let id = |id| Decoded {
        id: Some(id),
        ..plain()
    };
    let second = Decoded {
        sequence: Some(5),
        ..id(100)
    };
    let third = Decoded {
        time: ticks(Granularity::HundredMicroseconds),
        direction: Some(Direction::Ingress),
        ..Decoded {
            id: Some(200),
            ..second
        }
    };
    vec![
        (TunnelKind::Gretap, b"\0\0\x65\x58", plain()),
        (TunnelKind::Gretap, b"\x20\0\x65\x58\0\0\0\0", id(0)),
        (TunnelKind::Gretap, b"\x20\0\x65\x58\0\0\0\x4d", id(77)),
        (
            TunnelKind::Gretap,
            b"\x30\0\x65\x58\0\0\0\x64\0\0\0\x05",
            second,
        ),
        // Reserved bits that a receiver ignores.
        (TunnelKind::Gretap, b"\x03\xf8\x65\x58", plain()),
        (
            TunnelKind::Nvgre,
            b"\x20\0\x65\x58\xff\xff\xff\x12",
            id(0xff_ffff),
        ),
        (ERSPAN, b"\0\0\x88\xbe", plain()),
        (
            ERSPAN,
            b"\x10\0\x88\xbe\0\0\0\x05\x10\0\0\x64\xff\xff\xff\xff",
            second,
        ),
        (
            ERSPAN,
            b"\x10\0\x88\xbe\0\0\0\x05\x1f\xff\xfc\x64\0\0\0\x09",
            Decoded {
                truncated: true,
                ..second
            },
        ),
        // En = 2: VLAN 0xabc and COS 5 were taken out.
        (
            ERSPAN,
            b"\x10\0\x88\xbe\0\0\0\x05\x1a\xbc\xb0\x64\0\0\0\x09",
            Decoded {
                restore_tag: Some(VlanTag {
                    tpid: 0x8100,
                    tci: 0xaabc,
                }),
                ..second
            },
        ),
        (
            ERSPAN,
            b"\x10\0\x22\xeb\0\0\0\x05\x20\0\0\xc8\x01\x02\x03\x04\0\0\x80\x40",
            third,
        ),
        // Bad frame, cut, hardware 63, egress, granularity 2.
        (
            ERSPAN,
            b"\x10\0\x22\xeb\0\0\0\x05\x2f\xff\xfc\xc8\x01\x02\x03\x04\xff\xff\x83\xfc",
            Decoded {
                truncated: true,
                direction: Some(Direction::Egress),
                time: ticks(Granularity::Ieee1588),
                ..third
            },
        ),
        // O: a platform sub-header.
        (
            ERSPAN,
            b"\x10\0\x22\xeb\0\0\0\x05\x20\0\0\xc8\x01\x02\x03\x04\0\0\x80\x47\
              \x14\0\0\x01\0\0\0\x02",
            Decoded {
                time: ticks(Granularity::UserDefined),
                ..third
            },
        ),
        (TunnelKind::Vxlan, b"\x08\0\0\0\0\0\x2a\0", id(42)),
        (
            TunnelKind::Vxlan,
            b"\xfb\xff\xff\xff\xff\xff\xff\xff",
            id(0xff_ffff),
        ),
        (TunnelKind::Geneve, b"\0\0\x65\x58\0\0\x07\0", id(7)),
        (
            TunnelKind::Geneve,
            b"\x03\x3f\x65\x58\0\0\x07\xff\x01\x02\x01\x01\0\0\0\0\xff\xff\x7f\xe0",
            id(7),
        ),
        (
            TunnelKind::Geneve,
            b"\x05\0\x65\x58\0\0\x07\0\xff\xfc\x01\x01\0\0\x05\xea\
              \xff\xfc\x02\x02\0\0\0\x01\0\0\0\x02",
            Decoded {
                wire_len: Some(1514),
                truncated: true,
                time: Some(SenderTime::Nanoseconds(0x1_0000_0002)),
                ..id(7)
            },
        ),
        // Not our option: another length.
        (
            TunnelKind::Geneve,
            b"\x03\0\x65\x58\0\0\x07\0\xff\xfc\x01\x02\0\0\x05\xea\0\0\0\0",
            id(7),
        ),
        (GUE_IP, b"\0\x2f\0\0\x20\0\x65\x58\0\0\0\x4d", id(77)),
        // Surplus bytes.
        (GUE_IP, b"\x02\x2f\0\0abcdefgh\0\0\x65\x58", plain()),
        // No private flag.
        (GUE_IP, b"\x01\x2f\0\x01\0\0\0\0\0\0\x65\x58", plain()),
        (
            TunnelKind::Fou {
                payload: UdpPayload::Gre,
            },
            b"\x20\0\x65\x58\0\0\0\x4d",
            id(77),
        ),
        (TunnelKind::Tzsp, b"\x01\0\0\x01\x01", plain()),
        (
            TunnelKind::Tzsp,
            b"\x01\x01\0\x01\0\0\x29\x02\x05\xea\x3c\x06abcdef\x01",
            Decoded {
                wire_len: Some(1514),
                truncated: true,
                ..plain()
            },
        ),
    ]
}

#[test]
fn headers_mean_what_the_specifications_say() {
    for (kind, header, expected) in golden() {
        assert_eq!(facts(kind, header), expected, "{kind:?} {header:02x?}");
    }
}

#[test]
fn every_shorter_packet_is_rejected_or_gives_a_shorter_frame() {
    for (kind, header, _) in golden() {
        let packet = [header, FRAME].concat();
        for length in 0..packet.len() {
            match decode(kind, &packet[..length]) {
                Ok(decoded) => {
                    check_decoded(&packet[..length], &decoded);
                    assert_eq!(decoded.payload, &packet[header.len()..length]);
                }
                Err(Reject::InnerShort) => {
                    assert!(length >= header.len() && length < header.len() + 14);
                }
                Err(reject) => {
                    assert!(length < header.len(), "{kind:?} at {length}: {reject:?}");
                    let short = matches!(reject, Reject::Short | Reject::OptionLength);
                    assert!(short, "{kind:?} at {length}: {reject:?}");
                }
            }
        }
    }
}

/// With a checksum, no shorter packet passes.
#[test]
fn every_shorter_packet_with_a_checksum_is_rejected() {
    let packet = [b"\x80\0\x65\x58\xc9\x15\0\0", &FRAME[..]].concat();
    assert_eq!(decode(TunnelKind::Gretap, &packet).unwrap().payload, FRAME);
    for length in 0..packet.len() {
        let rejected = decode(TunnelKind::Gretap, &packet[..length]).unwrap_err();
        assert_eq!(rejected == Reject::Short, length < 8);
    }
    for byte in 0..packet.len() {
        let mut packet = packet.clone();
        packet[byte] ^= 0x20;
        assert!(decode(TunnelKind::Gretap, &packet).is_err(), "byte {byte}");
    }
}

/// The two packets that killed the C programs, and the one that misled them.
#[test]
fn packets_that_killed_others_are_rejected() {
    let gre = b"\x80\0\x65\x58\0\0";
    assert_eq!(decode(TunnelKind::Gretap, gre), Err(Reject::Short));
    assert_eq!(decode(ERSPAN, b"\x80\0\x88\xbe\0\0"), Err(Reject::Short));
    let erspan = b"\x10\0\x22\xeb\0\0\0\x05\x20\0\0\xc8\x01\x02\x03\x04\0\0\x80\x41\x14\0\0";
    assert_eq!(decode(ERSPAN, erspan), Err(Reject::Short));
    // Type I, whose destination address begins like a type II header.
    let mut frame = *FRAME;
    frame[0] = 0x10;
    let packet = [b"\0\0\x88\xbe", &frame[..]].concat();
    assert_eq!(decode(ERSPAN, &packet).unwrap().payload, frame);
}

#[test]
fn gre_is_rejected_for_a_reason() {
    let gretap = TunnelKind::Gretap;
    for version in 1..8 {
        assert_eq!(
            reject(gretap, &[0, version, 0x65, 0x58], FRAME),
            Reject::Version
        );
    }
    for flags in [0x40, 0x08, 0x04] {
        assert_eq!(
            reject(gretap, &[flags, 0, 0x65, 0x58], FRAME),
            Reject::Flags
        );
    }
    for protocol in [0, 0x0800, 0x0806, 0x6559, 0x8100, 0x880b, 0x86dd, 0x88be] {
        let [high, low] = u16::to_be_bytes(protocol);
        assert_eq!(reject(gretap, &[0, 0, high, low], FRAME), Reject::Protocol);
    }
    let bad = b"\x80\0\x65\x58\xc9\x16\0\0";
    assert_eq!(reject(gretap, bad, FRAME), Reject::Checksum);
    assert_eq!(
        reject(TunnelKind::Gre, b"\0\0\x65\x58", FRAME),
        Reject::Protocol
    );
    assert_eq!(
        reject(TunnelKind::Gre, b"\0\0\x08\0", b""),
        Reject::InnerShort
    );
    for (require_checksum, require_sequence, reject) in [
        (true, false, Reject::ChecksumMissing),
        (false, true, Reject::SequenceMissing),
    ] {
        let decap = Decap::new(DecapSpec {
            kind: gretap,
            require_checksum,
            require_sequence,
        });
        let packet = [b"\0\0\x65\x58", &FRAME[..]].concat();
        assert_eq!(decap.unwrap().decode(&packet), Err(reject));
    }
    let nvgre = TunnelKind::Nvgre;
    assert_eq!(reject(nvgre, b"\0\0\x65\x58", FRAME), Reject::KeyMissing);
    assert_eq!(
        reject(nvgre, b"\x20\0\x08\0\0\0\x2a\0", FRAME),
        Reject::Protocol
    );
    let numbered = b"\x30\0\x65\x58\0\0\x2a\0\0\0\0\0";
    assert_eq!(reject(nvgre, numbered, FRAME), Reject::Flags);
}

#[test]
fn erspan_is_rejected_for_a_reason() {
    for version in [0, 2, 3, 7, 15] {
        let header = [
            0x10,
            0,
            0x88,
            0xbe,
            0,
            0,
            0,
            5,
            version << 4,
            0,
            0,
            100,
            0,
            0,
            0,
            9,
        ];
        assert_eq!(reject(ERSPAN, &header, FRAME), Reject::Version);
    }
    let third = b"\x10\0\x22\xeb\0\0\0\x05\x10\0\0\xc8\x01\x02\x03\x04\0\0\x80\x40";
    assert_eq!(reject(ERSPAN, third, FRAME), Reject::Version);
    assert_eq!(reject(ERSPAN, b"\0\0\x65\x58", FRAME), Reject::Protocol);
    let checksum = b"\x90\0\x88\xbe\0\0\0\0\0\0\0\x05\x10\0\0\x64\0\0\0\x09";
    assert_eq!(reject(ERSPAN, checksum, FRAME), Reject::Checksum);
}

#[test]
fn erspan_can_carry_ip_and_keeps_a_tag_that_is_there() {
    // Frame type 2.
    let header = b"\x10\0\x22\xeb\0\0\0\x05\x20\0\0\xc8\x01\x02\x03\x04\0\0\x88\x40";
    let packet = [&header[..], &ip_packet(true, b"x")].concat();
    assert_eq!(decode(ERSPAN, &packet).unwrap().link, Link::Ipv6);
    // En = 2, but the frame has a tag.
    let mut frame = *FRAME;
    frame[12..14].copy_from_slice(&[0x81, 0]);
    let packet = [
        b"\x10\0\x88\xbe\0\0\0\x05\x1a\xbc\xb0\x64\0\0\0\x09",
        &frame[..],
    ]
    .concat();
    assert_eq!(decode(ERSPAN, &packet).unwrap().restore_tag, None);
}

#[test]
fn vxlan_and_geneve_are_rejected_for_a_reason() {
    let vxlan = TunnelKind::Vxlan;
    assert_eq!(reject(vxlan, b"\0\0\0\0\0\0\x2a\0", FRAME), Reject::Flags);
    // VXLAN-GPE.
    assert_eq!(
        reject(vxlan, b"\x0c\0\0\x03\0\0\x2a\0", FRAME),
        Reject::Flags
    );
    for (header, expected) in [
        (&b"\x40\0\x65\x58\0\0\x07\0"[..], Reject::Version),
        (b"\0\x80\x65\x58\0\0\x07\0", Reject::Control),
        (b"\0\0\x08\x06\0\0\x07\0", Reject::Protocol),
        (b"\0\0\x08\0\0\0\x07\0", Reject::InnerVersion),
        (b"\x3f\0\x65\x58\0\0\x07\0", Reject::Short),
        // An option that runs past the others, and one whose header does.
        (
            b"\x01\0\x65\x58\0\0\x07\0\x01\x02\x01\x01",
            Reject::OptionLength,
        ),
        // Critical: announced and there, only there, only announced.
        (
            b"\x01\x40\x65\x58\0\0\x07\0\x01\x02\x81\0",
            Reject::CriticalOption,
        ),
        (
            b"\x01\0\x65\x58\0\0\x07\0\x01\x02\x81\0",
            Reject::CriticalOption,
        ),
        (b"\0\x40\x65\x58\0\0\x07\0", Reject::CriticalOption),
    ] {
        assert_eq!(
            reject(TunnelKind::Geneve, header, FRAME),
            expected,
            "{header:02x?}"
        );
    }
}

#[test]
fn ip_is_told_from_the_version_that_the_header_names() {
    let (v4, v6) = (ip_packet(false, b"four"), ip_packet(true, b"six"));
    let gue_one = TunnelKind::Gue {
        payload: UdpPayload::Ip,
        variant: GueVariant::One,
    };
    let fou = |payload| TunnelKind::Fou { payload };
    for (kind, over_v4, over_v6, strict) in [
        (
            TunnelKind::Gre,
            &b"\0\0\x08\0"[..],
            &b"\0\0\x86\xdd"[..],
            true,
        ),
        (
            TunnelKind::Geneve,
            b"\0\0\x08\0\0\0\0\0",
            b"\0\0\x86\xdd\0\0\0\0",
            true,
        ),
        (GUE_IP, b"\0\x04\0\0", b"\0\x29\0\0", true),
        (
            GUE_IP,
            b"\0\x2f\0\0\0\0\x08\0",
            b"\0\x2f\0\0\0\0\x86\xdd",
            true,
        ),
        (
            fou(UdpPayload::Gretap),
            b"\0\0\x08\0",
            b"\0\0\x86\xdd",
            true,
        ),
        (gue_one, b"", b"", false),
        (fou(UdpPayload::Ip), b"", b"", false),
        (TunnelKind::Ipip, b"", b"", false),
    ] {
        let packet = [over_v4, &v4].concat();
        let decoded = decode(kind, &packet).unwrap();
        assert_eq!((decoded.payload, decoded.link), (&v4[..], Link::Ipv4));
        for length in 0..packet.len() {
            let decoded = decode(kind, &packet[..length]);
            assert_eq!(decoded.is_ok(), length >= over_v4.len() + 20, "{kind:?}");
        }
        let packet = [over_v6, &v6].concat();
        let decoded = decode(kind, &packet).unwrap();
        assert_eq!((decoded.payload, decoded.link), (&v6[..], Link::Ipv6));
        for length in 0..packet.len() {
            let decoded = decode(kind, &packet[..length]);
            assert_eq!(decoded.is_ok(), length >= over_v6.len() + 40, "{kind:?}");
        }
        if strict {
            assert_eq!(reject(kind, over_v4, &v6), Reject::InnerVersion);
            assert_eq!(reject(kind, over_v6, &v4), Reject::InnerVersion);
        } else if !matches!(kind, TunnelKind::Gue { .. }) {
            assert_eq!(reject(kind, b"\x55", &v4), Reject::InnerVersion);
        }
    }
    assert_eq!(reject(gue_one, b"\x55", &v4), Reject::InnerVersion);
}

#[test]
fn gue_is_rejected_for_a_reason() {
    let v4 = ip_packet(false, b"four");
    for (header, expected) in [
        (&b"\x80\x04\0\0"[..], Reject::Version),
        (b"\xc0\x04\0\0", Reject::Version),
        (b"\x20\x01\0\0", Reject::Control),
        (b"\x1f\x04\0\0", Reject::Short),
        (b"\0\x3b\0\0", Reject::Protocol),
        (b"\0\x61\0\0", Reject::Protocol),
        (b"\x02\x04\x80\0abcdefgh", Reject::Flags),
        (b"\x02\x04\x01\0abcdefgh", Reject::Flags),
        // Private flags: none there, an unknown one, the known one without its value.
        (b"\0\x04\0\x01", Reject::OptionLength),
        (b"\x01\x04\0\x01\x40\0\0\0", Reject::Flags),
        (b"\x01\x04\0\x01\x80\0\0\0", Reject::OptionLength),
        // A checksum beyond the packet.
        (
            b"\x02\x04\0\x01\x80\0\0\0\0\0\x00\x17",
            Reject::OptionLength,
        ),
        (
            b"\x02\x04\0\x01\x80\0\0\0\xff\xff\0\x02",
            Reject::OptionLength,
        ),
    ] {
        assert_eq!(reject(GUE_IP, header, &v4), expected, "{header:02x?}");
    }
}

/// Remote checksum offload: UDP over IPv4 whose checksum field holds the sum of the pseudo header.
#[test]
fn gue_completes_a_checksum_that_was_left_to_the_receiver() {
    let mut inner = ip_packet(false, b"\x04\xd2\x00\x35\0\x0b\0\0abc");
    inner[9] = 17;
    // 0a00+0001+0a00+0002 + 0011+000b = 141f
    inner[26..28].copy_from_slice(&[0x14, 0x1f]);
    let header = b"\x02\x04\0\x01\x80\0\0\0\0\x14\0\x1a";
    let packet = [&header[..], &inner].concat();
    // ... + 04d2+0035+000b+6162+6300 = dd93, whose complement is 226c.
    let patch = Patch {
        at: 26,
        bytes: [0x22, 0x6c],
    };
    assert_eq!(decode(GUE_IP, &packet).unwrap().patch, Some(patch));
    // Behind a GRE header, places count from the end of the GUE header.
    let header = b"\x02\x2f\0\x01\x80\0\0\0\0\x18\0\x1e\0\0\x08\0";
    let packet = [&header[..], &inner].concat();
    assert_eq!(decode(GUE_IP, &packet).unwrap().patch, Some(patch));
    let in_gre = b"\x02\x2f\0\x01\x80\0\0\0\0\0\0\x03\0\0\x08\0";
    assert_eq!(reject(GUE_IP, in_gre, &inner), Reject::OptionLength);
}

#[test]
fn tzsp_is_rejected_for_a_reason() {
    for (header, expected) in [
        (&b"\x02\0\0\x01\x01"[..], Reject::Version),
        (b"\x01\x04\0\x01\x01", Reject::Control),
        (b"\x01\0\0\x12\x01", Reject::Protocol),
    ] {
        assert_eq!(reject(TunnelKind::Tzsp, header, FRAME), expected);
    }
    let endless = [&b"\x01\0\0\x01"[..], &[0; 2000]].concat();
    assert_eq!(decode(TunnelKind::Tzsp, &endless), Err(Reject::Short));
    let beyond = b"\x01\0\0\x01\x0a\xff";
    assert_eq!(
        reject(TunnelKind::Tzsp, beyond, FRAME),
        Reject::OptionLength
    );
}

#[test]
fn wire_length_is_told_claimed_or_that_of_the_payload() {
    let told = |wire_len, truncated, link, payload| Decoded {
        wire_len,
        truncated,
        ..Decoded::new(payload, link)
    };
    let mut ip = ip_packet(false, &[7; 100]);
    let frame = [&[2; 12][..], &[0x81, 0, 0, 1], &[8, 0], &ip[..]].concat();
    assert_eq!(frame.len(), 138);
    for (wire_len, truncated, bytes, expected) in [
        (None, false, 60, 60),
        (None, true, 60, 138),
        (Some(99), true, 60, 99),
        (Some(99), true, 138, 138),
    ] {
        let decoded = told(wire_len, truncated, Link::Ethernet, &frame[..bytes]);
        assert_eq!(decoded.original_len(), expected);
    }
    ip.truncate(30);
    assert_eq!(told(None, false, Link::Ipv4, &ip).original_len(), 120);
    let v6 = ip_packet(true, &[7; 100]);
    assert_eq!(told(None, false, Link::Ipv6, &v6[..40]).original_len(), 140);
    assert_eq!(claimed_len(Link::Ethernet, FRAME), None);
    assert_eq!(claimed_len(Link::Ipv4, &v6), None);
}

#[test]
fn names_and_places_of_rejects_are_unique() {
    let mut names: Vec<_> = Reject::ALL.iter().map(|reject| reject.as_str()).collect();
    for (place, reject) in Reject::ALL.into_iter().enumerate() {
        assert_eq!(reject.index(), place);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reject::ALL.len());
}
