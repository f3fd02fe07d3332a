use super::*;
use crate::output::{Report, assert_shows, render};
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
        before: Vec::new(),
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
    assert_shows(&text, &parts);
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
    assert_shows(&text, &parts);
    assert!(!text.contains("copied frames"), "{text}");
    assert_shows(
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
    assert_shows(&text, &["accept dport 80", "and 5 rules more"]);
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
    assert_eq!(value["status"]["dropped_frames"]["no_route"], "45");
    assert_eq!(Shown(devices()).json()["spec"]["hook"], "xdp");
}
