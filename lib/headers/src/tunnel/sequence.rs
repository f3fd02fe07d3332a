//! Order of a numbered stream.

/// Where a sequence number stands against the highest one so far (RFC 2890, section 3.2: numbers wrap, one of the
/// last 2^31 is old).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next one.
    Next,
    /// So many are missing before it.
    Gap(u32),
    /// Repeated, or overtaken by a later one; how far behind, 0 for a repetition. RFC 2890 discards it.
    Behind(u32),
}

impl Step {
    /// The step from `highest` to `now`.
    pub fn between(highest: u32, now: u32) -> Step {
        match now.wrapping_sub(highest) {
            1 => Step::Next,
            ahead @ 2..=0x7fff_ffff => Step::Gap(ahead - 1),
            behind => Step::Behind(behind.wrapping_neg()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_apart_across_the_wrap() {
        assert_eq!(Step::between(7, 8), Step::Next);
        assert_eq!(Step::between(u32::MAX, 0), Step::Next);
        assert_eq!(Step::between(7, 10), Step::Gap(2));
        assert_eq!(Step::between(u32::MAX - 1, 1), Step::Gap(2));
        assert_eq!(Step::between(7, 7), Step::Behind(0));
        assert_eq!(Step::between(1, u32::MAX), Step::Behind(2));
        assert_eq!(Step::between(0, 0x7fff_ffff), Step::Gap(0x7fff_fffe));
        assert_eq!(Step::between(0, 0x8000_0000), Step::Behind(0x8000_0000));
    }
}
