//! Where reading begins in a ring, as text.

use crate::UsageError;
use fluxcap_proto::v1::{Start, start::At};
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads `newest`, `oldest`, `seq:N` or `time:RFC3339` (UTC; `time:2026-01-31 12:00:00` will do).
pub fn parse_start(text: &str) -> Result<Start, UsageError> {
    let bad = || UsageError::Start {
        text: text.to_owned(),
    };
    let at = match text.split_once(':') {
        None if text == "newest" => At::Newest(true),
        None if text == "oldest" => At::Oldest(true),
        Some(("seq", number)) => At::Seq(number.parse().map_err(|_| bad())?),
        Some(("time", time)) => At::TimeNs(
            humantime::parse_rfc3339_weak(time)
                .ok()
                .and_then(nanoseconds)
                .ok_or_else(bad)?,
        ),
        _ => return Err(bad()),
    };
    Ok(Start { at: Some(at) })
}

fn nanoseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_start_is_read() {
        let at = |text| parse_start(text).map(|start| start.at);
        assert_eq!(at("newest"), Ok(Some(At::Newest(true))));
        assert_eq!(at("oldest"), Ok(Some(At::Oldest(true))));
        assert_eq!(at("seq:18446744073709551615"), Ok(Some(At::Seq(u64::MAX))));
        assert_eq!(
            at("time:1970-01-01T00:00:01.5Z"),
            Ok(Some(At::TimeNs(1_500_000_000)))
        );
        assert_eq!(
            at("time:1970-01-01 00:00:02"),
            Ok(Some(At::TimeNs(2_000_000_000)))
        );
    }

    #[test]
    fn other_starts_are_refused_with_the_choices() {
        for text in [
            "",
            "new",
            "seq:",
            "seq:-1",
            "time:now",
            "time:1960-01-01T00:00:00Z",
        ] {
            let error = parse_start(text).map_err(|error| error.to_string());
            assert!(
                error.clone().is_err_and(|error| error.contains("seq:N")),
                "{text}: {error:?}"
            );
        }
    }
}
