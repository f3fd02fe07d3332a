//! A tunnel for people: its row in the list, and everything about it.

use crate::output::{Block, by_reason, count};
use crate::{edits, names, scheduling, tx};
use fluxcap_options::tunnel_kind_word;
use fluxcap_proto::v1::{
    ErspanDirection, InnerProtocol, MtuPolicy, Tunnel, TunnelMapping, TunnelPath, TunnelReceive,
    TunnelReceiveStatus, TunnelSend, TunnelSendStatus, TunnelSender, TunnelSpec, TunnelStatus,
};
use fluxcap_service::format_size;
use std::time::{Duration, UNIX_EPOCH};

/// Most senders that are shown to people; programs get them all.
const SENDERS: usize = 32;

/// The row of a tunnel, as `Tunnel::HEADER` says. IN and OUT are frames: taken from rings and sent, or received and published;
/// LOST are those overwritten in a ring, or dropped by the kernel, before the tunnel could take them.
pub(super) fn row(tunnel: &Tunnel) -> Vec<String> {
    let spec = tunnel.spec.clone().unwrap_or_default();
    let status = tunnel.status.clone().unwrap_or_default();
    let send = status.send.clone().unwrap_or_default();
    let receive = status.receive.clone().unwrap_or_default();
    let (peer, io, lost) = match &spec.send {
        Some(to) => (
            format!("-> {}", to.remote),
            send.path.map_or(String::new(), |path| path.io),
            send.lapped_frames,
        ),
        None => (
            format!("<- {}", senders(&spec)),
            String::new(),
            receive.kernel_dropped_packets,
        ),
    };
    vec![
        tunnel.name.clone(),
        kind(&spec),
        names::distinct(rings(&spec).iter().map(String::as_str)),
        peer,
        names::state(status.state).to_owned(),
        io,
        count(send.delivered_frames + receive.received_packets),
        count(send.sent_frames + receive.published_frames),
        count(lost),
        by_reason(&status.dropped_frames),
        status.reason,
    ]
}

/// Everything about a tunnel.
pub(super) fn blocks(tunnel: &Tunnel) -> Vec<Block> {
    let spec = tunnel.spec.clone().unwrap_or_default();
    let status = tunnel.status.clone().unwrap_or_default();
    let mut facts = common_facts(&tunnel.name, &spec, &status);
    let mut blocks = Vec::new();
    if let Some(send) = &spec.send {
        let told = status.send.clone().unwrap_or_default();
        facts.extend(send_facts(send, &told));
        blocks.push(tx::rings(&told.rings));
    }
    if let Some(receive) = &spec.receive {
        let told = status.receive.clone().unwrap_or_default();
        facts.extend(receive_facts(receive, &told));
        blocks.extend(receive_blocks(receive, &told));
    }
    facts.push(("dropped", by_reason(&status.dropped_frames)));
    blocks.insert(0, Block::Facts(facts));
    blocks
}

/// The kind with what else makes the format: "gue/gretap", "erspan 2".
fn kind(spec: &TunnelSpec) -> String {
    let word = tunnel_kind_word(spec.kind());
    match spec.inner() {
        InnerProtocol::Unspecified => {}
        inner => return format!("{word}/{}", names::inner(inner.into())),
    }
    match spec.send.as_ref().and_then(|send| send.erspan_version) {
        Some(version) => format!("{word} {version}"),
        None => word.to_owned(),
    }
}

fn rings(spec: &TunnelSpec) -> Vec<String> {
    if let Some(send) = &spec.send {
        return send.rings.clone();
    }
    let receive = spec.receive.clone().unwrap_or_default();
    let mapped = receive.map.into_iter().map(|mapping| mapping.ring);
    mapped.chain([receive.default_ring]).collect()
}

fn senders(spec: &TunnelSpec) -> String {
    let from = spec.receive.as_ref().map_or(&[][..], |it| &it.from);
    match from {
        [] => "any".to_owned(),
        from => from.join(","),
    }
}

fn common_facts(
    name: &str,
    spec: &TunnelSpec,
    status: &TunnelStatus,
) -> Vec<(&'static str, String)> {
    vec![
        ("name", name.to_owned()),
        ("kind", kind(spec)),
        (
            "rings",
            names::distinct(rings(spec).iter().map(String::as_str)),
        ),
        ("state", names::state(status.state).to_owned()),
        ("reason", status.reason.clone()),
        ("options", options(spec)),
        (
            "scheduling",
            scheduling::options(spec.latency, spec.scheduling.as_ref()),
        ),
        ("edits", edits::options(spec.edits.as_ref())),
    ]
}

fn send_facts(send: &TunnelSend, status: &TunnelSendStatus) -> Vec<(&'static str, String)> {
    let path = status.path.clone().unwrap_or_default();
    let merge_window = match (send.rings.len(), send.merge_window_us) {
        (0 | 1, _) => String::new(),
        (_, 0) => "default".to_owned(),
        (_, us) => humantime::format_duration(Duration::from_micros(us.into())).to_string(),
    };
    let in_use = match path.io.as_str() {
        "" => String::new(),
        io => format!("{io}: {}", path.io_reason),
    };
    vec![
        ("far end", send.remote.clone()),
        ("path", path_text(&path)),
        ("path mtu", mtu_text(&path)),
        ("warning", path.warning.clone()),
        (
            "longer frames",
            names::mtu_policy(send.mtu_policy).to_owned(),
        ),
        ("io", names::io(&send.io).to_owned()),
        ("io in use", in_use),
        ("begins at", tx::start(send.start.as_ref())),
        ("merge window", merge_window),
        ("delivered frames", count(status.delivered_frames)),
        ("lapped frames", count(status.lapped_frames)),
        ("sent frames", count(status.sent_frames)),
        ("sent bytes", count(status.sent_bytes)),
        ("truncated frames", count(status.truncated_frames)),
        ("fragmented frames", count(status.fragmented_frames)),
        ("fragments", count(status.fragments)),
        ("icmp", by_reason(&status.icmp_events)),
    ]
}

/// "192.0.2.1 -> 192.0.2.9 by eth0, next hop 192.0.2.254 02:00:00:00:00:05 reachable".
fn path_text(path: &TunnelPath) -> String {
    if path.remote.is_empty() {
        return String::new();
    }
    let mut text = format!("{} -> {}", path.local, path.remote);
    if !path.device.is_empty() {
        text = format!("{text} by {}", path.device);
    }
    if !path.next_hop.is_empty() {
        let hop = [&path.next_hop, &path.next_hop_mac, &path.neighbour];
        let known: Vec<&str> = hop.iter().map(|it| it.as_str()).collect();
        let known: Vec<&str> = known.into_iter().filter(|it| !it.is_empty()).collect();
        text = format!("{text}, next hop {}", known.join(" "));
    }
    text
}

fn mtu_text(path: &TunnelPath) -> String {
    match (path.mtu, path.frame_mtu) {
        (0, _) => String::new(),
        (mtu, frame) => format!("{mtu}, which leaves {frame} for what is inside"),
    }
}

fn receive_facts(
    receive: &TunnelReceive,
    status: &TunnelReceiveStatus,
) -> Vec<(&'static str, String)> {
    let default_ring = match receive.default_ring.as_str() {
        "" => "none: counted and dropped".to_owned(),
        ring => ring.to_owned(),
    };
    let or_default = |text: &str, default: &str| match text {
        "" => default.to_owned(),
        text => text.to_owned(),
    };
    vec![
        ("senders", or_default(&receive.from.join(", "), "any")),
        ("ring of other ids", default_ring),
        ("received packets", count(status.received_packets)),
        ("received bytes", count(status.received_bytes)),
        ("published frames", count(status.published_frames)),
        ("kernel drops", count(status.kernel_dropped_packets)),
        ("truncated frames", count(status.truncated_frames)),
        ("missing packets", count(status.missing_packets)),
        ("reordered packets", count(status.reordered_packets)),
        (
            "host: udp checksum errors",
            count(status.udp_checksum_errors),
        ),
        (
            "host: reassembly failures",
            count(status.reassembly_failures),
        ),
    ]
}

fn receive_blocks(receive: &TunnelReceive, status: &TunnelReceiveStatus) -> Vec<Block> {
    let mut blocks = vec![sockets(status), ring_table(receive, status)];
    if !status.unknown_ids.is_empty() {
        let unknown = status.unknown_ids.iter();
        let rows = unknown.map(|it| vec![id_text(it.id), count(it.packets)]);
        blocks.push(Block::Rows(&["UNKNOWN ID", ">PACKETS"], rows.collect()));
    }
    if !status.senders.is_empty() {
        blocks.push(sender_table(&status.senders));
    }
    let more = status.senders.len().saturating_sub(SENDERS);
    if more > 0 {
        let text = format!("and {more} senders more, which -o json shows");
        blocks.push(Block::Line(text));
    }
    if status.unlisted_packets > 0 {
        let packets = count(status.unlisted_packets);
        blocks.push(Block::Line(format!(
            "{packets} packets came from senders for which the table had no room"
        )));
    }
    blocks
}

fn sockets(status: &TunnelReceiveStatus) -> Block {
    let header = &[
        "SOCKET",
        "STATE",
        ">BUFFER",
        ">RECEIVED",
        ">KERNEL DROPS",
        "REASON",
    ];
    let rows = status.sockets.iter().map(|socket| {
        vec![
            socket.name.clone(),
            names::state(socket.state).to_owned(),
            format_size(socket.buffer_bytes),
            count(socket.received_packets),
            count(socket.kernel_dropped_packets),
            socket.reason.clone(),
        ]
    });
    Block::Rows(header, rows.collect())
}

fn ring_table(receive: &TunnelReceive, status: &TunnelReceiveStatus) -> Block {
    let header = &[
        "RING",
        "IDS",
        "STATE",
        ">EPOCH",
        ">PUBLISHED",
        ">BYTES",
        "REASON",
    ];
    let rows = status.rings.iter().map(|ring| {
        vec![
            ring.name.clone(),
            ids(receive, &ring.name),
            names::state(ring.state).to_owned(),
            ring.epoch.to_string(),
            count(ring.published_frames),
            count(ring.published_bytes),
            ring.reason.clone(),
        ]
    });
    Block::Rows(header, rows.collect())
}

/// Which identifiers go into a ring: "none,9001,others".
fn ids(receive: &TunnelReceive, ring: &str) -> String {
    let own = |mapping: &&TunnelMapping| mapping.ring == ring;
    let mut ids: Vec<String> = receive
        .map
        .iter()
        .filter(own)
        .map(|mapping| id_text(mapping.id))
        .collect();
    if receive.default_ring == ring {
        ids.push(
            if receive.map.is_empty() {
                "any"
            } else {
                "others"
            }
            .to_owned(),
        );
    }
    ids.join(",")
}

fn sender_table(senders: &[TunnelSender]) -> Block {
    let header = &[
        "SENDER",
        "ID",
        ">PACKETS",
        ">LAST SEQ",
        ">MISSING",
        ">REORDERED",
        ">ERSPAN TIME",
        "LAST SEEN",
    ];
    let number = |value: Option<u32>| value.map_or(String::new(), |it| it.to_string());
    let rows = senders.iter().take(SENDERS).map(|sender| {
        let seen = UNIX_EPOCH + Duration::from_nanos(sender.last_seen_ns);
        vec![
            sender.address.clone(),
            id_text(sender.id),
            count(sender.packets),
            number(sender.last_sequence),
            count(sender.missing_packets),
            count(sender.reordered_packets),
            number(sender.last_timestamp),
            humantime::format_rfc3339_millis(seen).to_string(),
        ]
    });
    Block::Rows(header, rows.collect())
}

fn id_text(id: Option<u32>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

/// What is not default, written back as the options that ask for it.
fn options(spec: &TunnelSpec) -> String {
    let mut parts = Vec::new();
    let mut text = |option: &str, value: &str| {
        if !value.is_empty() {
            parts.push(format!("{option} {value}"));
        }
    };
    let number = |value: u32| match value {
        0 => String::new(),
        value => value.to_string(),
    };
    text("--local", &spec.local);
    text("--dev", &spec.device);
    text("--dport", &number(spec.port));
    if let Some(send) = &spec.send {
        let id = send.id.map_or(String::new(), |id| id.to_string());
        text(id_option(spec), &id);
        let inherit = |inherit: bool, value| match inherit {
            true => "inherit".to_owned(),
            false => number(value),
        };
        text("--ttl", &inherit(send.ttl_inherit, send.ttl));
        text("--tos", &inherit(send.tos_inherit, send.tos));
        text("--sport", &number(send.source_port));
        text("--index", &number(send.erspan_index));
        if send.erspan_direction() != ErspanDirection::Unspecified {
            text(
                "--erspan-dir",
                names::erspan_direction(send.erspan_direction),
            );
        }
        text("--erspan-hwid", &number(send.erspan_hwid));
        text("--variant", &number(send.gue_variant));
        if send.mtu_policy() != MtuPolicy::Unspecified {
            text("--mtu-policy", names::mtu_policy(send.mtu_policy));
        }
    }
    if let Some(receive) = &spec.receive {
        text("--mac-destination", &receive.mac_destination);
        text("--mac-source", &receive.mac_source);
        if receive.buffer_bytes != 0 {
            text(
                "--buffer",
                &format_size(receive.buffer_bytes).replace(' ', ""),
            );
        }
    }
    parts.extend(flags(spec));
    parts.join(" ")
}

fn flags(spec: &TunnelSpec) -> Vec<String> {
    let send = spec.send.clone().unwrap_or_default();
    let receive = spec.receive.clone().unwrap_or_default();
    let given = |flag: bool| flag.then_some(true);
    [
        ("--csum", given(spec.checksum)),
        ("--seq", given(spec.sequence)),
        ("--df", send.df),
        ("--udp-csum", send.udp_checksum),
        ("--metadata", given(send.metadata)),
        ("--allow-loop", given(send.allow_loop)),
        ("--udp6zerocsumrx", given(receive.zero_udp6_checksum)),
    ]
    .into_iter()
    .filter_map(|(option, value)| match value? {
        true => Some(option.to_owned()),
        false => Some(format!("{option}=false")),
    })
    .collect()
}

/// The option for the identifier of a sender.
fn id_option(spec: &TunnelSpec) -> &'static str {
    use fluxcap_proto::v1::TunnelKind;
    match spec.kind() {
        TunnelKind::Nvgre | TunnelKind::Vxlan | TunnelKind::Geneve => "--vni",
        TunnelKind::Erspan => "--session",
        _ => "--key",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Report, render};
    use crate::resource::{Listed, Shown};
    use fluxcap_proto::v1::{
        State, TransmitRingStatus, TunnelIdStatus, TunnelKind, TunnelRingStatus, TunnelSocketStatus,
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

    #[track_caller]
    fn assert_parts(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
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
        assert_parts(&text, &parts);
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
        assert_parts(&text, &parts);
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
        assert_parts(&text, &parts);
    }

    #[test]
    fn programs_get_words_for_numbers() {
        let value = Shown(sender()).json();
        assert_eq!(value["spec"]["kind"], "gretap");
        assert_eq!(value["spec"]["send"]["mtu_policy"], "truncate");
        assert_eq!(value["spec"]["send"]["id"], 0);
        assert_eq!(value["status"]["state"], "running");
        assert_eq!(value["status"]["send"]["icmp_events"]["port"], 3);
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
}
