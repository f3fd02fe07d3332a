//! Sizes in bytes as text.

use crate::UsageError;

/// Bytes from `4096`, `64K`, `100m`, `1GiB`: the units are powers of 1024. `64KB` is refused, as it may mean either.
pub(crate) fn parse_size(text: &str) -> Result<u64, UsageError> {
    let bad = |problem| UsageError::Size {
        text: text.to_owned(),
        problem,
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "kb" | "mb" | "gb" | "tb" => return Err(bad("ambiguous, 1000 or 1024")),
        _ => return Err(bad("unknown unit")),
    };
    let number: u64 = digits.parse().map_err(|_| bad("not a number"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| bad("too large"))
}
