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
        ("ends at", ends),
    ]
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
mod tests {
    use super::*;
    use crate::output::{Report, render};
    use crate::resource::{Listed, Shown};
    use fluxcap_options::parse_rule;
    use fluxcap_proto::v1::{
        MirrorAttachment, MirrorDevice, MirrorOutput, MirrorOverlay, State, TunnelKind,
    };

    fn overlay() -> Mirror {
        let overlay = MirrorOverlay {
            kind: TunnelKind::Vxlan.into(),
            remote: "2001:db8::9".into(),
            port: 4790,
            id: Some(9001),
            ..Default::default()
        };
        let attachment = MirrorAttachment {
            direction: Direction::Out.into(),
            ifindex: 7,
            how: "tcx".into(),
            program_id: 1234,
            link_id: 56,
            reattached: 2,
            gap_ms: 1500,
        };
        let output = MirrorOutput {
            name: "2001:db8::9".into(),
            state: State::Waiting.into(),
            reason: "no route".into(),
            frames: 12_000,
            failed_frames: 45,
        };
        Mirror {
            name: "web".into(),
            spec: Some(MirrorSpec {
                interface: "eth0".into(),
                overlay: Some(overlay),
                rules: vec![
                    parse_rule("exclude src 10.0.0.0/8").unwrap(),
                    parse_rule("dport 80").unwrap(),
                ],
                lifetime_ms: 600_000,
                expires_ns: 1_700_000_000_000_000_000,
                ..Default::default()
            }),
            status: Some(MirrorStatus {
                state: State::Running.into(),
                fuse: "more than 3 errors".into(),
                seen_frames: 12_345,
                mirrored_frames: 12_000,
                rate_limited_frames: 67,
                dropped_frames: [("no_route".to_owned(), 45)].into(),
                attachments: vec![attachment],
                outputs: vec![output],
                rule_frames: vec![345, 12_000],
                filter_at: "kernel".into(),
                ..Default::default()
            }),
        }
    }

    fn devices() -> Mirror {
        let device = |name: &str| MirrorDevice {
            name: name.into(),
            vlan_push: None,
        };
        Mirror {
            name: "tap".into(),
            spec: Some(MirrorSpec {
                interface: "tap1".into(),
                hook: Hook::Xdp.into(),
                devices: vec![device("ids1"), device("ids2")],
                ring: "last".into(),
                ..Default::default()
            }),
            status: Some(MirrorStatus {
                copied_frames: 77,
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
    fn a_list_shows_what_goes_where_and_what_was_lost() {
        let text = render(&Listed(vec![overlay(), devices()]).blocks());
        let parts = [
            "eth0",
            "both",
            "vxlan:[2001:db8::9]:4790,vni=9001",
            "12,345",
            "67",
            "no_route 45",
            "fuse: more than 3 errors",
            "ingress",
            "dev:ids1,ids2 ring:last",
        ];
        assert_parts(&text, &parts);
    }

    #[test]
    fn a_shown_mirror_tells_programs_outputs_and_rules() {
        let text = render(&Shown(overlay()).blocks());
        let parts = [
            "egress",
            "tcx",
            "1234",
            "56",
            "1s 500ms",
            "waiting",
            "no route",
            "exclude src 10.0.0.0/8",
            "345",
            "accept dport 80",
            "12,000",
            "--for 10m",
            "2023-11-14T22:13:20Z",
            "kernel",
        ];
        assert_parts(&text, &parts);
        assert!(!text.contains("copied frames"), "{text}");
        assert_parts(
            &render(&Shown(devices()).blocks()),
            &["copied frames", "77", "--hook xdp"],
        );
    }

    #[test]
    fn rules_without_counters_are_shown_and_many_are_not() {
        let mut mirror = overlay();
        if let Some(spec) = &mut mirror.spec {
            spec.rules = vec![parse_rule("dport 80").unwrap(); RULES + 5];
        }
        mirror.status = None;
        let text = render(&Shown(mirror).blocks());
        assert_parts(&text, &["accept dport 80", "and 5 rules more"]);
        assert!(text.contains("unknown"), "{text}");
    }

    #[test]
    fn programs_get_words_for_numbers() {
        let value = Shown(overlay()).json();
        assert_eq!(value["spec"]["overlay"]["kind"], "vxlan");
        assert_eq!(value["spec"]["overlay"]["mtu_policy"], "truncate");
        assert_eq!(value["spec"]["hook"], "tc");
        assert_eq!(value["spec"]["attach"], "auto");
        assert_eq!(value["spec"]["rules"][0]["action"], "exclude");
        assert_eq!(value["spec"]["rules"][0]["direction"], "both");
        assert_eq!(value["status"]["attachments"][0]["direction"], "out");
        assert_eq!(value["status"]["outputs"][0]["state"], "waiting");
        assert_eq!(value["status"]["dropped_frames"]["no_route"], 45);
        assert_eq!(Shown(devices()).json()["spec"]["hook"], "xdp");
    }
}
