//! Values for programs, in the mapping of protobuf's JSON: integers of 64 bits are strings, always, because jq, JavaScript and
//! others read numbers as doubles and would round those beyond 2^53 (times in nanoseconds are, and counters become so).

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::Formatter;
use std::io;

/// The value of some data.
pub(crate) fn value(data: &impl Serialize) -> Value {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Quoted);
    // Plain data with text keys: it always serializes.
    let done = data.serialize(&mut serializer);
    done.ok()
        .and_then(|()| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Puts integers of 64 bits between quotes. They are told from shorter ones by their type, not by their value.
struct Quoted;

impl Formatter for Quoted {
    fn write_u64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        write!(writer, "\"{value}\"")
    }

    fn write_i64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: i64) -> io::Result<()> {
        write!(writer, "\"{value}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_of_64_bits_are_strings_whatever_their_value() {
        #[derive(Serialize)]
        struct Data {
            long: u64,
            signed: i64,
            small: u64,
            short: u32,
            share: f64,
        }
        let data = Data {
            long: u64::MAX,
            signed: -1,
            small: 0,
            short: 5,
            share: 0.5,
        };
        let expected = json!({"long": "18446744073709551615", "signed": "-1", "small": "0", "short": 5, "share": 0.5});
        assert_eq!(value(&data), expected);
    }
}
