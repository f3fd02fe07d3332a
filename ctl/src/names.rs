//! Enumerations of the API as the words that people use.

use crate::json;
use fluxcap_options::tunnel_kind_word;
use fluxcap_proto::v1::{
    Attach, Direction, ErspanDirection, FilterVlan, Hook, InnerProtocol, Latency, MtuPolicy,
    OversizePolicy, RingMode, RuleAction, SampleMode, State, TunnelKind,
};
use serde::Serialize;
use serde_json::{Map, Value};

/// A message of the API as JSON, with the numbers of its enumerations replaced by words: `"state": "running"`.
pub(crate) fn json(message: &impl Serialize) -> Value {
    let mut value = json::value(message);
    name_enums("", &mut value);
    value
}

/// Replaces enumerations below the member `parent`, recursively.
fn name_enums(parent: &str, value: &mut Value) {
    match value {
        Value::Object(members) => {
            leave_out_inner(members);
            for (key, member) in members {
                match member
                    .as_i64()
                    .and_then(|number| i32::try_from(number).ok())
                {
                    Some(number) => {
                        if let Some(word) = word(parent, key, number) {
                            *member = Value::from(word);
                        }
                    }
                    None => name_enums(key, member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| name_enums(parent, item)),
        _ => {}
    }
}

/// Only GUE and FOU have a choice of what they carry; "ip" would not be true of the others.
fn leave_out_inner(members: &mut Map<String, Value>) {
    let kind = members.get("kind").and_then(Value::as_i64);
    let kind = kind.and_then(|kind| i32::try_from(kind).ok());
    let chooses = kind.is_none_or(|kind| {
        [TunnelKind::Gue, TunnelKind::Fou]
            .map(i32::from)
            .contains(&kind)
    });
    if let Some(inner) = members.get_mut("inner").filter(|_| !chooses)
        && inner.as_i64() == Some(0)
    {
        *inner = Value::Null;
    }
}

fn word(parent: &str, key: &str, number: i32) -> Option<&'static str> {
    match (parent, key) {
        (_, "state") => Some(state(number)),
        // A rule without a direction is for both.
        ("rules", "direction") if number == 0 => Some("both"),
        (_, "direction") => Some(direction(number)),
        (_, "action") => Some(rule_action(number)),
        (_, "hook") => Some(hook(number)),
        (_, "attach") => Some(attach(number)),
        (_, "filter_vlan") => Some(filter_vlan(number)),
        (_, "oversize") => Some(oversize(number)),
        (_, "latency") => Some(latency(number)),
        (_, "kind") => TunnelKind::try_from(number).ok().map(tunnel_kind_word),
        (_, "inner") => Some(inner(number)),
        // Mirrors do not fragment.
        ("overlay", "mtu_policy") if number == 0 => Some("truncate"),
        (_, "mtu_policy") => Some(mtu_policy(number)),
        (_, "erspan_direction") => Some(erspan_direction(number)),
        ("sample", "mode") => Some(sample_mode(number)),
        (_, "mode") => Some(ring_mode(number)),
        _ => None,
    }
}

pub(crate) fn state(number: i32) -> &'static str {
    match State::try_from(number) {
        Ok(State::Starting) => "starting",
        Ok(State::Running) => "running",
        Ok(State::Waiting) => "waiting",
        Ok(State::Failed) => "failed",
        Ok(State::Ended) => "ended",
        Ok(State::Unspecified) | Err(_) => "unknown",
    }
}

pub(crate) fn direction(number: i32) -> &'static str {
    match Direction::try_from(number) {
        Ok(Direction::Out) => "out",
        Ok(Direction::Both) => "both",
        _ => "in",
    }
}

fn rule_action(number: i32) -> &'static str {
    match RuleAction::try_from(number) {
        Ok(RuleAction::Exclude) => "exclude",
        _ => "accept",
    }
}

fn hook(number: i32) -> &'static str {
    match Hook::try_from(number) {
        Ok(Hook::Xdp) => "xdp",
        _ => "tc",
    }
}

pub(crate) fn attach(number: i32) -> &'static str {
    match Attach::try_from(number) {
        Ok(Attach::Tcx) => "tcx",
        Ok(Attach::Clsact) => "clsact",
        _ => "auto",
    }
}

pub(crate) fn filter_vlan(number: i32) -> &'static str {
    match FilterVlan::try_from(number) {
        Ok(FilterVlan::Exact) => "exact",
        _ => "any",
    }
}

pub(crate) fn oversize(number: i32) -> &'static str {
    match OversizePolicy::try_from(number) {
        Ok(OversizePolicy::Truncate) => "truncate",
        _ => "drop",
    }
}

pub(crate) fn latency(number: i32) -> &'static str {
    match Latency::try_from(number) {
        Ok(Latency::Low) => "low",
        _ => "normal",
    }
}

/// What GUE and FOU carry.
pub(crate) fn inner(number: i32) -> &'static str {
    match InnerProtocol::try_from(number) {
        Ok(InnerProtocol::Gre) => "gre",
        Ok(InnerProtocol::Gretap) => "gretap",
        _ => "ip",
    }
}

pub(crate) fn mtu_policy(number: i32) -> &'static str {
    match MtuPolicy::try_from(number) {
        Ok(MtuPolicy::Truncate) => "truncate",
        Ok(MtuPolicy::Drop) => "drop",
        _ => "fragment",
    }
}

pub(crate) fn erspan_direction(number: i32) -> &'static str {
    match ErspanDirection::try_from(number) {
        Ok(ErspanDirection::Ingress) => "ingress",
        Ok(ErspanDirection::Egress) => "egress",
        _ => "auto",
    }
}

/// The wanted backend of a spec.
pub(crate) fn io(word: &str) -> &str {
    if word.is_empty() { "auto" } else { word }
}

/// The words with commas between, each once, without those that are empty.
pub(crate) fn distinct<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = Vec::new();
    for word in words {
        if !word.is_empty() && !known.contains(&word) {
            known.push(word);
        }
    }
    known.join(",")
}

pub(crate) fn sample_mode(number: i32) -> &'static str {
    match SampleMode::try_from(number) {
        Ok(SampleMode::Flow) => "flow",
        _ => "random",
    }
}

pub(crate) fn ring_mode(number: i32) -> &'static str {
    match RingMode::try_from(number) {
        Ok(RingMode::Wait) => "wait",
        _ => "overwrite",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_proto::v1::{
        Capture, CaptureSpec, CaptureStatus, Edits, Ring, RingSpec, Sample, TunnelSpec,
    };

    #[test]
    fn enumerations_become_words_at_every_depth() {
        let sample = Sample {
            one_in: 2,
            kept: 0,
            mode: SampleMode::Flow.into(),
            seed: 1,
        };
        let edits = Edits {
            sample: Some(sample),
            filter_vlan: FilterVlan::Exact.into(),
            ..Default::default()
        };
        let spec = CaptureSpec {
            direction: Direction::Both.into(),
            latency: Latency::Low.into(),
            edits: Some(edits),
            ..Default::default()
        };
        let status = CaptureStatus {
            state: State::Waiting.into(),
            ..Default::default()
        };
        let value = json(&Capture {
            name: "a".into(),
            spec: Some(spec),
            status: Some(status),
        });
        assert_eq!(value["status"]["state"], "waiting");
        assert_eq!(value["spec"]["direction"], "both");
        assert_eq!(value["spec"]["latency"], "low");
        assert_eq!(value["spec"]["edits"]["filter_vlan"], "exact");
        assert_eq!(value["spec"]["edits"]["sample"]["mode"], "flow");
        assert_eq!(value["spec"]["edits"]["sample"]["one_in"], 2);
    }

    #[test]
    fn unset_enumerations_say_what_they_mean() {
        let ring = Ring {
            spec: Some(RingSpec::default()),
            ..Default::default()
        };
        assert_eq!(json(&ring)["spec"]["mode"], "overwrite");
    }

    #[test]
    fn only_gue_and_fou_have_a_choice_of_what_they_carry() {
        let inner = |kind: TunnelKind, inner: InnerProtocol| {
            let spec = TunnelSpec {
                kind: kind.into(),
                inner: inner.into(),
                ..Default::default()
            };
            json(&spec)["inner"].clone()
        };
        assert_eq!(inner(TunnelKind::Gue, InnerProtocol::Unspecified), "ip");
        assert_eq!(inner(TunnelKind::Fou, InnerProtocol::Gretap), "gretap");
        let vxlan = inner(TunnelKind::Vxlan, InnerProtocol::Unspecified);
        assert_eq!(vxlan, Value::Null);
    }

    #[test]
    fn counts_by_reason_stay_counts_whatever_the_reason_is_called() {
        let dropped_frames = [("direction".to_owned(), 2), ("oversize".to_owned(), 1)].into();
        let status = CaptureStatus {
            dropped_frames,
            ..Default::default()
        };
        let value = json(&Capture {
            status: Some(status),
            ..Default::default()
        });
        assert_eq!(value["status"]["dropped_frames"]["direction"], "2");
        assert_eq!(value["status"]["dropped_frames"]["oversize"], "1");
    }
}
