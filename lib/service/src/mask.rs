//! Field masks on specs, without code for each field: specs are serde values.

use crate::Refusal;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// `current` with the fields named by `paths` taken from `new`, for instance `snaplen` or `edits.snaplen`; no path takes
/// all of `new`. A path that `S` does not have is refused with the names that it has there.
///
/// `S` must serialize all of its fields and accept missing ones (`#[serde(default)]`), as the messages of fluxcap_proto do.
pub fn apply_mask<S>(current: &S, new: &S, paths: &[String]) -> Result<S, Refusal>
where
    S: Clone + Serialize + DeserializeOwned,
{
    if paths.is_empty() {
        return Ok(new.clone());
    }
    let mut merged = to_object(current)?;
    let source = to_object(new)?;
    for path in paths {
        check_path::<S>(&source, path)?;
        let steps: Vec<&str> = path.split('.').collect();
        copy(&mut merged, &source, &steps);
    }
    from_object(merged)
}

/// Copies one field. What `source` does not have on the way is removed from `target`, which makes it the default.
fn copy(target: &mut Map<String, Value>, source: &Map<String, Value>, steps: &[&str]) {
    let Some((first, rest)) = steps.split_first() else {
        return;
    };
    let theirs = source.get(*first).unwrap_or(&Value::Null);
    if rest.is_empty() {
        target.insert((*first).to_owned(), theirs.clone());
        return;
    }
    let empty = Map::new();
    let inner = theirs.as_object().unwrap_or(&empty);
    match target.get_mut(*first) {
        Some(Value::Object(ours)) if inner.contains_key(rest[0]) => copy(ours, inner, rest),
        Some(Value::Object(ours)) => remove(ours, rest),
        // Neither side has the message that the path leads through.
        _ if theirs.is_null() => {}
        _ => {
            let mut ours = Map::new();
            copy(&mut ours, inner, rest);
            target.insert((*first).to_owned(), Value::Object(ours));
        }
    }
}

fn remove(target: &mut Map<String, Value>, steps: &[&str]) {
    match steps {
        [] => {}
        [last] => {
            target.remove(*last);
        }
        [first, rest @ ..] => {
            if let Some(Value::Object(inner)) = target.get_mut(*first) {
                remove(inner, rest);
            }
        }
    }
}

/// Walks `path` through the fields that `S` has. Messages that are not set are filled in by serde on a copy, so that
/// their fields are known too.
fn check_path<S: Serialize + DeserializeOwned>(
    like: &Map<String, Value>,
    path: &str,
) -> Result<(), Refusal> {
    let steps: Vec<&str> = path.split('.').collect();
    let mut full = like.clone();
    for depth in 1..steps.len() {
        let unset =
            steps[..depth]
                .iter()
                .try_fold(&mut full, |map, step| match map.get_mut(*step) {
                    Some(value @ Value::Null) => {
                        *value = Value::Object(Map::new());
                        value.as_object_mut()
                    }
                    Some(value) => value.as_object_mut(),
                    None => None,
                });
        if unset.is_none() {
            return Err(unknown(path, &full, &steps[..depth]));
        }
        full = to_object(&from_object::<S>(full)?)?;
    }
    let parent = steps[..steps.len() - 1]
        .iter()
        .try_fold(&full, |map, step| map.get(*step)?.as_object());
    match parent {
        Some(map) if steps.last().is_some_and(|last| map.contains_key(*last)) => Ok(()),
        _ => Err(unknown(path, &full, &steps)),
    }
}

fn unknown(path: &str, full: &Map<String, Value>, steps: &[&str]) -> Refusal {
    let parents = &steps[..steps.len().saturating_sub(1)];
    let known = parents
        .iter()
        .try_fold(full, |map, step| map.get(*step)?.as_object());
    let names: Vec<&str> = known
        .map(|map| map.keys().map(String::as_str).collect())
        .unwrap_or_default();
    Refusal::invalid(
        "update_mask",
        format!(
            "there is no field \"{path}\"; there are: {}",
            names.join(", ")
        ),
    )
}

fn to_object<S: Serialize>(spec: &S) -> Result<Map<String, Value>, Refusal> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Refusal::Internal("a spec is not a message".to_owned())),
        Err(error) => Err(Refusal::Internal(format!(
            "cannot write a spec as JSON: {error}"
        ))),
    }
}

fn from_object<S: DeserializeOwned>(map: Map<String, Value>) -> Result<S, Refusal> {
    serde_json::from_value(Value::Object(map)).map_err(|error| {
        Refusal::invalid(
            "update_mask",
            format!("the masked fields do not fit together: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_proto::v1::{CaptureSpec, Edits, Start, TransmitSpec, VlanTag, start::At};

    fn merge<S: Clone + Serialize + DeserializeOwned>(
        current: &S,
        new: &S,
        paths: &[&str],
    ) -> Result<S, Refusal> {
        apply_mask(
            current,
            new,
            &paths
                .iter()
                .map(|path| (*path).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    fn capture(ring: &str, edits: Option<Edits>) -> CaptureSpec {
        CaptureSpec {
            ring: ring.to_owned(),
            edits,
            buffer_bytes: 1 << 40,
            ..CaptureSpec::default()
        }
    }

    #[test]
    fn no_path_takes_everything() {
        let (old, new) = (capture("a", Some(Edits::default())), capture("b", None));
        assert_eq!(merge(&old, &new, &[]).expect("merge"), new);
    }

    #[test]
    fn only_the_named_fields_change() {
        let old = capture(
            "a",
            Some(Edits {
                snaplen: 64,
                trim: 4,
                ..Edits::default()
            }),
        );
        let new = capture(
            "b",
            Some(Edits {
                snaplen: 128,
                trim: 8,
                ..Edits::default()
            }),
        );
        let merged = merge(&old, &new, &["edits.snaplen"]).expect("merge");
        assert_eq!(
            merged,
            capture(
                "a",
                Some(Edits {
                    snaplen: 128,
                    trim: 4,
                    ..Edits::default()
                })
            )
        );
        let merged = merge(&old, &new, &["ring", "edits"]).expect("merge");
        assert_eq!(merged, new);
    }

    #[test]
    fn a_field_of_a_message_that_is_not_set_can_be_set_and_reset() {
        let tag = VlanTag {
            vid: 7,
            ..VlanTag::default()
        };
        let plain = capture("a", None);
        let tagged = capture(
            "b",
            Some(Edits {
                vlan_push: Some(tag),
                ..Edits::default()
            }),
        );
        let merged = merge(&plain, &tagged, &["edits.vlan_push.vid"]).expect("merge");
        assert_eq!(merged, capture("a", tagged.edits.clone()));
        let merged = merge(&tagged, &plain, &["edits.vlan_push"]).expect("merge");
        assert_eq!(merged, capture("b", Some(Edits::default())));
        let merged = merge(&tagged, &plain, &["edits.vlan_push.vid"]).expect("merge");
        assert_eq!(
            merged.edits.and_then(|edits| edits.vlan_push),
            Some(VlanTag::default())
        );
        assert_eq!(
            merge(&plain, &plain, &["edits.vlan_push.vid"]).expect("merge"),
            plain
        );
    }

    #[test]
    fn unknown_paths_are_refused_with_the_known_ones() {
        let spec = capture("a", None);
        for path in [
            "",
            "rings",
            "edits.",
            "edits.snap",
            "edits.snaplen.x",
            ".ring",
            "ring.x",
            "interfaces.0",
            "edits..trim",
        ] {
            let refusal = merge(&spec, &spec, &[path]).expect_err(path);
            assert!(
                matches!(&refusal, Refusal::Invalid { field, .. } if field == "update_mask"),
                "{path}: {refusal}"
            );
        }
        assert!(
            merge(&spec, &spec, &["edits.snap"])
                .expect_err("unknown field")
                .to_string()
                .contains("snaplen")
        );
    }

    #[test]
    fn a_oneof_is_taken_as_a_whole() {
        let old = TransmitSpec {
            start: Some(Start {
                at: Some(At::Newest(true)),
            }),
            ..TransmitSpec::default()
        };
        let new = TransmitSpec {
            start: Some(Start {
                at: Some(At::Seq(u64::MAX)),
            }),
            ..TransmitSpec::default()
        };
        assert_eq!(merge(&old, &new, &["start"]).expect("merge"), new);
        assert_eq!(merge(&old, &new, &["start.at"]).expect("merge"), new);
    }
}
