//! A tunnel for people: its row in the list, and everything about it.

use super::options::options;
use crate::output::{Block, by_reason, count};
use crate::{edits, names, scheduling, tx};
use fluxcap_options::tunnel_kind_word;
use fluxcap_proto::v1::{
    InnerProtocol, Tunnel, TunnelMapping, TunnelPath, TunnelReceive, TunnelReceiveStatus,
    TunnelSend, TunnelSendStatus, TunnelSender, TunnelSpec, TunnelStatus,
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
        (
            "merge window",
            tx::merge_window(send.rings.len(), send.merge_window_us),
        ),
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

#[cfg(test)]
mod tests;
