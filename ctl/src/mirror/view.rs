//! A mirror for people: its row in the list, and everything about it.

use super::options;
use crate::output::{Block, by_reason, count};
use crate::{names, scheduling};
use fluxcap_options::rule_text;
use fluxcap_proto::v1::{Direction, Hook, Mirror, MirrorSpec, MirrorStatus};
use std::time::{Duration, UNIX_EPOCH};

/// Most rules that are shown to people; programs get them all.
const RULES: usize = 64;

/// The row of a mirror, as `Mirror::HEADER` says.
pub(super) fn row(mirror: &Mirror) -> Vec<String> {
    let spec = mirror.spec.clone().unwrap_or_default();
    let status = mirror.status.clone().unwrap_or_default();
    vec![
        mirror.name.clone(),
        spec.interface.clone(),
        direction(&spec).to_owned(),
        options::target(&spec),
        names::state(status.state).to_owned(),
        count(status.seen_frames),
        count(status.mirrored_frames),
        count(status.rate_limited_frames),
        by_reason(&status.dropped_frames),
        reason(&status),
    ]
}

/// Everything about a mirror.
pub(super) fn blocks(mirror: &Mirror) -> Vec<Block> {
    let spec = mirror.spec.clone().unwrap_or_default();
    let status = mirror.status.clone().unwrap_or_default();
    let mut facts = what(&mirror.name, &spec, &status);
    facts.extend(counters(&spec, &status));
    let mut blocks = vec![Block::Facts(facts)];
    if !status.attachments.is_empty() {
        blocks.push(attachments(&status));
    }
    if !status.outputs.is_empty() {
        blocks.push(outputs(&status));
    }
    blocks.extend(rules(&spec, &status));
    blocks
}

/// The reason of the state, or why the fuse is off.
fn reason(status: &MirrorStatus) -> String {
    match (status.reason.as_str(), status.fuse.as_str()) {
        ("", "") => String::new(),
        ("", fuse) => format!("fuse: {fuse}"),
        (reason, _) => reason.to_owned(),
    }
}

fn direction(spec: &MirrorSpec) -> &'static str {
    match (spec.direction(), spec.hook()) {
        (Direction::In, _) | (Direction::Unspecified, Hook::Xdp) => "ingress",
        (Direction::Out, _) => "egress",
        (Direction::Both | Direction::Unspecified, _) => "both",
    }
}

fn what(name: &str, spec: &MirrorSpec, status: &MirrorStatus) -> Vec<(&'static str, String)> {
    let ends = match spec.expires_ns {
        0 => String::new(),
        ns => {
            let end = UNIX_EPOCH + Duration::from_nanos(ns);
            humantime::format_rfc3339_seconds(end).to_string()
        }
    };
    vec![
        ("name", name.to_owned()),
        ("interface", spec.interface.clone()),
        ("direction", direction(spec).to_owned()),
        ("to", options::target(spec)),
        ("state", names::state(status.state).to_owned()),
        ("reason", status.reason.clone()),
        ("fuse", status.fuse.clone()),
        ("options", options::options(spec)),
        (
            "scheduling",
            scheduling::options(0, spec.scheduling.as_ref()),
        ),
        ("filter runs in", status.filter_at.clone()),
        ("runs behind", behind(status)),
        ("remarks", status.remarks.join("; ")),
        ("ends at", ends),
    ]
}

/// What runs before the mirror.
fn behind(status: &MirrorStatus) -> String {
    let before = status.attachments.iter().flat_map(|it| &it.before);
    before.cloned().collect::<Vec<_>>().join(", ")
}

fn counters(spec: &MirrorSpec, status: &MirrorStatus) -> Vec<(&'static str, String)> {
    let several = |frames: u64| match spec.devices.len() {
        0 | 1 => String::new(),
        _ => count(frames),
    };
    let into_ring = |frames: u64| match spec.ring.as_str() {
        "" => String::new(),
        _ => count(frames),
    };
    vec![
        ("seen frames", count(status.seen_frames)),
        ("copied frames", several(status.copied_frames)),
        ("mirrored frames", count(status.mirrored_frames)),
        ("mirrored bytes", count(status.mirrored_bytes)),
        ("published frames", into_ring(status.published_frames)),
        ("not selected frames", count(status.not_selected_frames)),
        ("sampled out frames", count(status.sampled_out_frames)),
        ("rate limited frames", count(status.rate_limited_frames)),
        ("truncated frames", count(status.truncated_frames)),
        ("dropped", by_reason(&status.dropped_frames)),
    ]
}

fn attachments(status: &MirrorStatus) -> Block {
    let header = &[
        "DIRECTION",
        ">IFINDEX",
        "HOW",
        ">PROGRAM",
        ">LINK",
        ">REATTACHED",
        ">GAP",
    ];
    let number = |value: u32| match value {
        0 => "-".to_owned(),
        value => value.to_string(),
    };
    let rows = status.attachments.iter().map(|it| {
        let direction = match it.direction() {
            Direction::Out => "egress",
            _ => "ingress",
        };
        let how = match it.how.as_str() {
            "" => "not attached",
            how => how,
        };
        vec![
            direction.to_owned(),
            number(it.ifindex),
            how.to_owned(),
            number(it.program_id),
            number(it.link_id),
            count(it.reattached),
            humantime::format_duration(Duration::from_millis(it.gap_ms)).to_string(),
        ]
    });
    Block::Rows(header, rows.collect())
}

fn outputs(status: &MirrorStatus) -> Block {
    let header = &["OUTPUT", "STATE", ">FRAMES", ">FAILED", "REASON"];
    let rows = status.outputs.iter().map(|it| {
        vec![
            it.name.clone(),
            names::state(it.state).to_owned(),
            count(it.frames),
            count(it.failed_frames),
            it.reason.clone(),
        ]
    });
    Block::Rows(header, rows.collect())
}

fn rules(spec: &MirrorSpec, status: &MirrorStatus) -> Vec<Block> {
    if spec.rules.is_empty() {
        return Vec::new();
    }
    let counts = status
        .rule_frames
        .iter()
        .map(Some)
        .chain(std::iter::repeat(None));
    let rows = spec.rules.iter().zip(counts).enumerate().take(RULES);
    let rows = rows.map(|(index, (rule, frames))| {
        let frames = frames.map_or(String::new(), |frames| count(*frames));
        vec![(index + 1).to_string(), rule_text(rule), frames]
    });
    let mut blocks = vec![Block::Rows(&[">#", "RULE", ">FRAMES"], rows.collect())];
    let more = spec.rules.len().saturating_sub(RULES);
    if more > 0 {
        let text = format!("and {more} rules more, which -o json shows");
        blocks.push(Block::Line(text));
    }
    blocks
}

#[cfg(test)]
mod tests;
