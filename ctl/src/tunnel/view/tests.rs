use super::*;
use crate::output::{Report, assert_shows, render};
use crate::resource::{Listed, Shown};
use fluxcap_proto::v1::{
    MtuPolicy, State, TransmitRingStatus, TunnelIdStatus, TunnelKind, TunnelRingStatus,
    TunnelSocketStatus,
};

fn sender() -> Tunnel {
    let send = TunnelSend {
        rings: vec!["a".into(), "b".into()],
        remote: "ids.example".into(),
        id: Some(0),
        tos_inherit: true,
        df: Some(false),
        mtu_policy: MtuPolicy::Truncate.into(),
        ..Default::default()
    };
    let path = TunnelPath {
        remote: "192.0.2.9".into(),
        local: "192.0.2.1".into(),
        device: "eth0".into(),
        next_hop: "192.0.2.254".into(),
        next_hop_mac: "02:00:00:00:00:05".into(),
        neighbour: "reachable".into(),
        mtu: 1500,
        frame_mtu: 1472,
        missing_bytes: 42,
        warning: "42 bytes are missing".into(),
        io: "live".into(),
        io_reason: "the fastest".into(),
        ..Default::default()
    };
    let told = TunnelSendStatus {
        delivered_frames: 12_345,
        sent_frames: 12_340,
        lapped_frames: 6,
        fragments: 17,
        icmp_events: [("port".to_owned(), 3)].into(),
        rings: vec![TransmitRingStatus {
            name: "a".into(),
            lag_frames: 1000,
            ..Default::default()
        }],
        path: Some(path),
        ..Default::default()
    };
    Tunnel {
        name: "x".into(),
        spec: Some(TunnelSpec {
            kind: TunnelKind::Gretap.into(),
            sequence: true,
            send: Some(send),
            ..Default::default()
        }),
        status: Some(TunnelStatus {
            state: State::Running.into(),
            dropped_frames: [("not_ip".to_owned(), 5)].into(),
            send: Some(told),
            ..Default::default()
        }),
    }
}

fn receiver() -> Tunnel {
    let mapping = |id, ring: &str| TunnelMapping {
        id,
        ring: ring.into(),
    };
    let receive = TunnelReceive {
        map: vec![mapping(Some(9001), "edge"), mapping(None, "edge")],
        default_ring: "rest".into(),
        from: vec!["192.0.2.0/24".into()],
        buffer_bytes: 64 << 20,
        ..Default::default()
    };
    let ring = |name: &str| TunnelRingStatus {
        name: name.into(),
        published_frames: 90,
        ..Default::default()
    };
    let sender = TunnelSender {
        address: "192.0.2.7".into(),
        id: Some(9001),
        packets: 95,
        last_sequence: Some(94),
        missing_packets: 1234,
        last_seen_ns: 1_000_000,
        ..Default::default()
    };
    let told = TunnelReceiveStatus {
        received_packets: 100,
        published_frames: 90,
        kernel_dropped_packets: 2,
        sockets: vec![TunnelSocketStatus {
            name: "0.0.0.0 udp 4789".into(),
            buffer_bytes: 1 << 20,
            ..Default::default()
        }],
        rings: vec![ring("edge"), ring("rest")],
        unknown_ids: vec![TunnelIdStatus {
            id: Some(77),
            packets: 10,
        }],
        senders: vec![sender; SENDERS + 5],
        unlisted_packets: 3,
        ..Default::default()
    };
    Tunnel {
        name: "y".into(),
        spec: Some(TunnelSpec {
            kind: TunnelKind::Vxlan.into(),
            receive: Some(receive),
            ..Default::default()
        }),
        status: Some(TunnelStatus {
            dropped_frames: [("unknown_id".to_owned(), 10)].into(),
            receive: Some(told),
            ..Default::default()
        }),
    }
}

#[test]
fn a_list_shows_both_directions_alike() {
    let text = render(&Listed(vec![sender(), receiver()]).blocks());
    let parts = [
        "-> ids.example",
        "12,345",
        "not_ip 5",
        "live",
        "<- 192.0.2.0/24",
        "edge,rest",
        "unknown_id 10",
    ];
    assert_shows(&text, &parts);
}

#[test]
fn a_shown_sender_tells_its_path_and_what_is_missing() {
    let text = render(&Shown(sender()).blocks());
    let parts = [
        "192.0.2.1 -> 192.0.2.9 by eth0, next hop 192.0.2.254 02:00:00:00:00:05 reachable",
        "1500, which leaves 1472",
        "42 bytes are missing",
        "live: the fastest",
        "truncate",
        "port 3",
        "1,000",
        "--key 0 --tos inherit --mtu-policy truncate --seq --df=false",
    ];
    assert_shows(&text, &parts);
}

#[test]
fn a_shown_receiver_tells_sockets_rings_unknown_ids_and_senders() {
    let text = render(&Shown(receiver()).blocks());
    let parts = [
        "0.0.0.0 udp 4789",
        "9001,none",
        "others",
        "77",
        "1,234",
        "1970-01-01T00:00:00.001Z",
        "and 5 senders more",
        "3 packets came from senders",
        "--buffer 64MiB",
    ];
    assert_shows(&text, &parts);
}

#[test]
fn programs_get_words_for_numbers() {
    let value = Shown(sender()).json();
    assert_eq!(value["spec"]["kind"], "gretap");
    assert_eq!(value["spec"]["send"]["mtu_policy"], "truncate");
    assert_eq!(value["spec"]["send"]["id"], 0);
    assert_eq!(value["status"]["state"], "running");
    assert_eq!(value["status"]["send"]["icmp_events"]["port"], "3");
    assert!(Shown(receiver()).json()["spec"]["send"].is_null());
}

#[test]
fn kinds_are_shown_with_what_is_inside() {
    let mut spec = TunnelSpec {
        kind: TunnelKind::Gue.into(),
        inner: InnerProtocol::Gretap.into(),
        ..Default::default()
    };
    assert_eq!(kind(&spec), "gue/gretap");
    spec = TunnelSpec {
        kind: TunnelKind::Erspan.into(),
        send: Some(TunnelSend {
            erspan_version: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(kind(&spec), "erspan 2");
}
