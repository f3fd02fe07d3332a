//! What every method does with a request before anything else, and how long answers are cut.

use crate::Refusal;
use fluxcap_proto::FILE_DESCRIPTOR_SET;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, Kind, Value};
use std::sync::LazyLock;
use tonic::{Request, Status};

/// Bytes of resources after which a page ends. Clients take messages of up to 4 MiB unless they say otherwise.
const PAGE_BYTES: usize = 3 << 20;

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).ok());

/// The message of a request. One with an enumeration value that this daemon does not know is refused, at whatever depth
/// it stands: it would be taken for the default, which is not what the client wants.
pub fn checked<T: Message + Name>(request: Request<T>) -> Result<T, Status> {
    let message = request.into_inner();
    check_enumerations(&message)?;
    Ok(message)
}

fn check_enumerations<T: Message + Name>(message: &T) -> Result<(), Refusal> {
    let described = POOL
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(&T::full_name()))
        .and_then(|kind| DynamicMessage::decode(kind, message.encode_to_vec().as_slice()).ok());
    match described {
        Some(message) => check_message(&message, ""),
        // The generated code and the descriptors come from the same files.
        None => Err(Refusal::Internal(format!(
            "{} is not described",
            T::full_name()
        ))),
    }
}

/// Recursion is bounded: prost decodes no message that is nested more than 100 deep.
fn check_message(message: &DynamicMessage, within: &str) -> Result<(), Refusal> {
    for (field, value) in message.fields() {
        let path = match within {
            "" => field.name().to_owned(),
            within => format!("{within}.{}", field.name()),
        };
        let mut kind = field.kind();
        // The entries of a map are messages of a key and a value.
        if let (Kind::Message(entry), Value::Map(_)) = (&kind, value)
            && let Some(values) = entry.get_field_by_name("value")
        {
            kind = values.kind();
        }
        match value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(i, item)| check_value(&kind, item, &format!("{path}[{i}]")))?,
            Value::Map(entries) => entries.iter().try_for_each(|(key, item)| {
                check_value(&kind, item, &format!("{path}[{key:?}]"))
            })?,
            single => check_value(&kind, single, &path)?,
        }
    }
    Ok(())
}

fn check_value(kind: &Kind, value: &Value, path: &str) -> Result<(), Refusal> {
    match (kind, value) {
        (Kind::Enum(values), &Value::EnumNumber(number)) if values.get_value(number).is_none() => {
            Err(unknown_value(values, number, path))
        }
        (_, Value::Message(inner)) => check_message(inner, path),
        _ => Ok(()),
    }
}

fn unknown_value(values: &EnumDescriptor, number: i32, path: &str) -> Refusal {
    let known: Vec<String> = values
        .values()
        .map(|value| format!("{} ({})", value.name(), value.number()))
        .collect();
    Refusal::invalid(
        path,
        format!(
            "{} has no value {number}; there are {}",
            values.name(),
            known.join(", ")
        ),
    )
}

/// The resources behind the one that `token` names, `size` of them or as many as go into a message (also when 0), and
/// the token of what follows; empty at the end. `all` is sorted by name.
///
/// The token is a name: what is made or deleted between two pages moves nothing from one to the other.
pub fn page<'a, M: Message>(
    all: impl Iterator<Item = (&'a str, impl FnOnce() -> M)>,
    size: u32,
    token: &str,
) -> (Vec<M>, String) {
    let size = match size {
        0 => usize::MAX,
        size => usize::try_from(size).unwrap_or(usize::MAX),
    };
    let (mut messages, mut bytes, mut last) = (Vec::new(), 0, "");
    for (name, message) in all.filter(|(name, _)| token.is_empty() || *name > token) {
        if messages.len() >= size || bytes >= PAGE_BYTES {
            return (messages, last.to_owned());
        }
        let message = message();
        bytes += message.encoded_len();
        messages.push(message);
        last = name;
    }
    (messages, String::new())
}

#[cfg(test)]
mod tests;
