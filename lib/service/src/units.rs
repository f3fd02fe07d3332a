//! Sizes and durations as people write them.

use crate::Error;
use std::time::Duration;

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Bytes from text such as `64K`, `100m`, `1g`, `1t`, `64KiB` or `4096`: units are powers of 1024, case does not matter.
///
/// `64KB` is refused: some read it as 64,000 and some as 65,536.
pub fn parse_size(text: &str) -> Result<u64, Error> {
    let wrong = |reason| Error::Size {
        text: text.to_owned(),
        reason,
    };
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = match number {
        "" => {
            return Err(wrong(
                "write a whole number and a unit, for instance 64K, 100M or 1G",
            ));
        }
        number => number.parse().map_err(|_| wrong("too large"))?,
    };
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        "kb" | "mb" | "gb" | "tb" => {
            return Err(wrong(
                "KB, MB, GB and TB are ambiguous; write K, M, G or T for powers of 1024",
            ));
        }
        _ => return Err(wrong("units are K, M, G and T, powers of 1024")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| wrong("too large"))
}

/// Bytes for people: `64 MiB`, `1.5 GiB`, `100 B`; one decimal, none when it is exact.
pub fn format_size(bytes: u64) -> String {
    let (unit, shift) = UNITS
        .into_iter()
        .find(|(_, shift)| bytes >> shift != 0)
        .unwrap_or(("B", 0));
    let whole = bytes >> shift;
    let rest = bytes - (whole << shift);
    // Rounded to the nearest tenth; `rest` is below 2^40, so this does not overflow.
    let tenths = if shift == 0 {
        0
    } else {
        (rest * 10 + (1 << (shift - 1))) >> shift
    };
    match (rest, tenths) {
        (0, _) => format!("{whole} {unit}"),
        (_, 10) => format!("{}.0 {unit}", whole + 1),
        _ => format!("{whole}.{tenths} {unit}"),
    }
}

/// A duration from text such as `500us`, `10ms`, `2s`, `1m 30s`; a plain number, as `2` or `0.5`, is one of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, Error> {
    let trimmed = text.trim();
    let plain = !trimmed.is_empty() && trimmed.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let parsed = match plain {
        true => trimmed
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        false => humantime::parse_duration(trimmed).ok(),
    };
    parsed.ok_or_else(|| Error::Duration {
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("100b", 100),
            ("64K", 64 << 10),
            ("64 KiB", 64 << 10),
            ("100m", 100 << 20),
            ("64Mi", 64 << 20),
            ("1g", 1 << 30),
            (" 2GiB ", 2 << 30),
            ("1t", 1 << 40),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
    }

    #[test]
    fn ambiguous_and_senseless_sizes_are_refused() {
        for text in [
            "",
            "m",
            "64KB",
            "1gb",
            "-1",
            "1.5g",
            "1e9",
            "0x10",
            "16777216T",
            "18446744073709551616",
            "1 0",
            "1k1",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(
            parse_size("64KB")
                .expect_err("ambiguous")
                .to_string()
                .contains("ambiguous")
        );
    }

    #[test]
    fn formatted_sizes_have_one_decimal_at_most() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (100 << 20, "100 MiB"),
            ((1 << 30) - 1, "1024.0 MiB"),
            ((1 << 30) + 1, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn whole_sizes_survive_formatting() {
        for bytes in [1, 4096, 64 << 20, 3 << 30, 5 << 40] {
            assert_eq!(parse_size(&format_size(bytes)).expect("size"), bytes);
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(
            parse_duration("500us").expect("duration"),
            Duration::from_micros(500)
        );
        assert_eq!(
            parse_duration("1m 30s").expect("duration"),
            Duration::from_secs(90)
        );
        assert_eq!(
            parse_duration("5").expect("seconds"),
            Duration::from_secs(5)
        );
        assert_eq!(
            parse_duration(" 0.25 ").expect("seconds"),
            Duration::from_millis(250)
        );
        for text in [
            "fast",
            "",
            ".",
            "1.2.3",
            "-1",
            "1e3",
            "99999999999999999999999999",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
