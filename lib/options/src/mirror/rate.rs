//! Rates as text: frames and bits per second, in powers of 1000.

use crate::UsageError;
use std::str::FromStr;

/// `--rate`, `--fuse-rate`: `10kpps`, `100Mbit`, or both with a comma between; `0` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateArg {
    /// Frames per second; 0 for no bound.
    pub frames: u64,
    /// Bits per second; 0 for no bound.
    pub bits: u64,
}

const UNITS: [(&str, u64); 5] = [
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1000),
    ("", 1),
];

impl FromStr for RateArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let bad = |problem| UsageError::Rate {
            text: text.to_owned(),
            problem,
        };
        let mut rate = RateArg::default();
        if text.is_empty() || text == "0" {
            return Ok(rate);
        }
        for part in text.split(',') {
            let part = part.trim();
            let number = part.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '/');
            let unit = &part[number.len()..];
            let (prefix, kind) = split_unit(unit).map_err(bad)?;
            let field = match kind {
                Kind::Frames => &mut rate.frames,
                Kind::Bits => &mut rate.bits,
            };
            if *field != 0 {
                return Err(bad("the same is bounded twice"));
            }
            *field = scaled(number.trim_end(), prefix)
                .filter(|value| *value > 0)
                .ok_or_else(|| bad("the number cannot be used"))?;
        }
        Ok(rate)
    }
}

enum Kind {
    Frames,
    Bits,
}

/// Factor and kind of a unit such as `kpps` or `Mbit/s`.
fn split_unit(unit: &str) -> Result<(u64, Kind), &'static str> {
    let ends = [
        ("pps", Kind::Frames),
        ("bit/s", Kind::Bits),
        ("bit", Kind::Bits),
    ];
    for (end, kind) in ends {
        if let Some(prefix) = unit.strip_suffix(end) {
            let factor = UNITS.iter().find(|(it, _)| it.eq_ignore_ascii_case(prefix));
            let (_, factor) = factor.ok_or("prefixes are k, M, G and T, powers of 1000")?;
            return Ok((*factor, kind));
        }
    }
    match unit.to_ascii_lowercase().ends_with("bps") {
        true => Err("bps is read as bits by some and as bytes by others"),
        false if unit.is_empty() => Err("the unit is missing"),
        false => Err("units are pps and bit, with k, M, G or T before them"),
    }
}

/// A decimal number times a factor, when that is whole.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(rest) || rest.len() > 12 {
        return None;
    }
    let places = 10_u64.checked_pow(u32::try_from(rest.len()).ok()?)?;
    let part = u128::from(rest.parse::<u64>().ok()?) * u128::from(factor);
    let part = (part % u128::from(places) == 0).then(|| part / u128::from(places))?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// Bounds as the text that gives them; empty for none.
#[must_use]
pub fn rate_text(frames: u64, bits: u64) -> String {
    let one = |value: u64, unit: &str| {
        let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor);
        let (prefix, factor) = UNITS.iter().find(fits).unwrap_or(&("", 1));
        (value != 0).then(|| format!("{}{prefix}{unit}", value / factor))
    };
    let both = [one(frames, "pps"), one(bits, "bit")];
    both.into_iter().flatten().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Result<(u64, u64), String> {
        let rate: Result<RateArg, _> = text.parse();
        rate.map(|rate| (rate.frames, rate.bits))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn frames_and_bits_are_bounded_alone_or_together() {
        for (text, frames, bits) in [
            ("10kpps", 10_000, 0),
            ("100Mbit", 0, 100_000_000),
            ("2.5Gbit/s", 0, 2_500_000_000),
            ("500pps,1Gbit", 500, 1_000_000_000),
            ("1Mbit, 10 Kpps", 10_000, 1_000_000),
            ("0.5kpps", 500, 0),
            ("0", 0, 0),
            ("", 0, 0),
        ] {
            assert_eq!(rate(text), Ok((frames, bits)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, says) in [
            ("10", "unit"),
            ("10bps", "bytes"),
            ("10MBps", "bytes"),
            ("10xpps", "prefixes"),
            ("-1pps", "number"),
            ("pps", "number"),
            ("0.0001pps", "number"),
            ("1.pps", "number"),
            ("18446744073709551615Tbit", "number"),
            ("1pps,2pps", "twice"),
            ("0pps", "number"),
        ] {
            assert!(rate(text).is_err_and(|it| it.contains(says)), "{text}");
        }
    }

    #[test]
    fn a_rate_is_shown_as_it_is_written() {
        for text in ["10kpps", "2500Mbit", "1500pps,1Gbit", "7pps", ""] {
            let rate: RateArg = text.parse().unwrap();
            assert_eq!(rate_text(rate.frames, rate.bits), text);
        }
    }
}
