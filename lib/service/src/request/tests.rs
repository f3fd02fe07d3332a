use super::*;
use fluxcap_proto::v1::{
    CaptureSpec, CreateCaptureRequest, CreateMirrorRequest, MirrorRule, MirrorSpec,
};
use prost_reflect::MessageDescriptor;
use tonic::Code;
use tonic_types::StatusExt;

/// A number that no enumeration has.
const UNKNOWN: i32 = 9_999;

/// Messages of this kind with one enumeration field, at whatever depth, set to `UNKNOWN`, each with the field's path.
fn with_an_unknown_value(kind: &MessageDescriptor) -> Vec<(String, DynamicMessage)> {
    let mut found = Vec::new();
    for field in kind.fields() {
        let values: Vec<(String, Value)> = match field.kind() {
            Kind::Enum(_) => vec![(String::new(), Value::EnumNumber(UNKNOWN))],
            Kind::Message(inner) if !field.is_map() => with_an_unknown_value(&inner)
                .into_iter()
                .map(|(path, message)| (format!(".{path}"), Value::Message(message)))
                .collect(),
            _ => Vec::new(),
        };
        for (within, value) in values {
            let mut message = DynamicMessage::new(kind.clone());
            let (value, index) = match field.is_list() {
                true => (Value::List(vec![value]), "[0]"),
                false => (value, ""),
            };
            message.set_field(&field, value);
            found.push((format!("{}{index}{within}", field.name()), message));
        }
    }
    found
}

#[test]
fn every_enumeration_field_of_every_request_is_checked() {
    let pool = POOL.as_ref().expect("descriptors");
    let mut paths = Vec::new();
    for method in pool.services().flat_map(|service| {
        let methods: Vec<_> = service.methods().collect();
        methods
    }) {
        let input = method.input();
        for (path, message) in with_an_unknown_value(&input) {
            let refused = check_message(&message, "").expect_err(&path);
            assert!(
                matches!(&refused, Refusal::Invalid { field, .. } if *field == path),
                "{path}: {refused}"
            );
            paths.push(format!("{}.{path}", input.name()));
        }
    }
    for known in [
        "CreateCaptureRequest.spec.direction",
        "UpdateCaptureRequest.spec.edits.sample.mode",
        "CreateMirrorRequest.spec.rules[0].action",
        "CreateRingRequest.spec.mode",
    ] {
        assert!(paths.iter().any(|path| path == known), "{known}: {paths:?}");
    }
}

#[test]
fn an_unknown_value_is_refused_with_the_field_for_programs_and_the_values_for_people() {
    let mut spec = MirrorSpec::default();
    spec.rules.push(MirrorRule::default());
    spec.rules.push(MirrorRule {
        action: 7,
        ..MirrorRule::default()
    });
    let request = CreateMirrorRequest {
        spec: Some(spec),
        ..CreateMirrorRequest::default()
    };
    let status = checked(Request::new(request)).expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("RULE_ACTION_EXCLUDE (2)"),
        "{status}"
    );
    let details = status.get_details_bad_request().expect("details");
    assert_eq!(details.field_violations[0].field, "spec.rules[1].action");
}

#[test]
fn known_values_pass_and_the_message_is_as_it_was() {
    let request = CreateCaptureRequest {
        name: "a".to_owned(),
        spec: Some(CaptureSpec {
            direction: 3,
            latency: 2,
            ..CaptureSpec::default()
        }),
        validate_only: true,
    };
    assert_eq!(
        checked(Request::new(request.clone())).expect("taken"),
        request
    );
}

#[test]
fn pages_have_everything_once_whatever_is_deleted_between_them() {
    let names: Vec<String> = (0..100).map(|i| format!("n{i:03}")).collect();
    let message = |name: &str| CreateCaptureRequest {
        name: name.to_owned(),
        ..CreateCaptureRequest::default()
    };
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        // The last one of the page before is gone when the next page is asked for.
        let there = names.iter().filter(|name| **name != token);
        let all = there.map(|name| (name.as_str(), || message(name)));
        let (page, next) = page(all, 7, &token);
        assert!(page.len() <= 7);
        seen.extend(page.into_iter().map(|message| message.name));
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, names);
}

#[test]
fn a_page_without_a_size_is_as_much_as_a_client_takes() {
    let names: Vec<String> = (0..100).map(|i| format!("n{i:03}")).collect();
    let message = || CreateCaptureRequest {
        name: "x".repeat(100_000),
        ..CreateCaptureRequest::default()
    };
    let all = || names.iter().map(|name| (name.as_str(), message));
    let (first, token) = page(all(), 0, "");
    let bytes: usize = first.iter().map(Message::encoded_len).sum();
    assert!((3 << 20..4 << 20).contains(&bytes), "{bytes}");
    let (mut count, mut token) = (first.len(), token);
    while !token.is_empty() {
        let (more, next) = page(all(), 0, &token);
        (count, token) = (count + more.len(), next);
    }
    assert_eq!(count, 100);
}
