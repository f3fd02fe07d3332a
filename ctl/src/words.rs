//! Settings written back as the options that ask for them, so that what is shown can be typed again.

use crate::names;
use fluxcap_proto::v1::{Sample, VlanTag};
use std::time::Duration;

/// Options with their values, in the order in which they were added.
#[derive(Debug, Default)]
pub(crate) struct Words(Vec<String>);

impl Words {
    /// A flag without a value, if it is set.
    pub(crate) fn flag(&mut self, option: &str, set: bool) {
        if set {
            self.0.push(option.to_owned());
        }
    }

    /// An option with its value, unless that is empty.
    pub(crate) fn text(&mut self, option: &str, value: &str) {
        if !value.is_empty() {
            self.0.push(format!("{option} {value}"));
        }
    }

    /// An option with its value, unless that is zero.
    pub(crate) fn number(&mut self, option: &str, value: impl Into<u64>) {
        let value = value.into();
        if value != 0 {
            self.0.push(format!("{option} {value}"));
        }
    }

    /// A size in bytes, unless it is zero; in the largest unit in which it is a whole number.
    pub(crate) fn size(&mut self, option: &str, bytes: u64) {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        if bytes != 0 {
            let unit = (bytes.trailing_zeros() / 10).min(4);
            let text = format!("{}{}", bytes >> (10 * unit), UNITS[unit as usize]);
            self.text(option, &text);
        }
    }

    /// A time, unless it is zero.
    pub(crate) fn time(&mut self, option: &str, time: Duration) {
        if !time.is_zero() {
            let text = humantime::format_duration(time).to_string();
            self.text(option, &text.replace(' ', ""));
        }
    }

    /// A VLAN tag, if there is one.
    pub(crate) fn tag(&mut self, option: &str, tag: Option<&VlanTag>) {
        self.text(option, &tag.map(tag_text).unwrap_or_default());
    }

    /// A filter, and how it sees VLAN tags.
    pub(crate) fn filter(&mut self, expression: &str, vlan: i32) {
        if !expression.is_empty() {
            self.text("--filter", &quoted(expression));
            if names::filter_vlan(vlan) == "exact" {
                self.text("--filter-vlan", "exact");
            }
        }
    }

    /// A choice of one in so many frames.
    pub(crate) fn sample(&mut self, sample: Option<&Sample>) {
        if let Some(sample) = sample {
            let (kept, one_in) = (sample.kept.max(1), sample.one_in);
            self.text("--sample", &format!("{kept}/{one_in}"));
            if names::sample_mode(sample.mode) == "flow" {
                self.text("--sample-by", "flow");
            }
            self.number("--seed", sample.seed);
        }
    }

    /// All of them on one line; empty when there are none.
    pub(crate) fn line(&self) -> String {
        self.0.join(" ")
    }
}

/// A tag in the shortest form that the options take.
pub(crate) fn tag_text(tag: &VlanTag) -> String {
    let tpid = if tag.tpid == 0 { 0x8100 } else { tag.tpid };
    match (tpid, tag.pcp, tag.dei) {
        (0x8100, 0, false) => tag.vid.to_string(),
        (_, 0, false) => format!("{tpid:04x}:{}", tag.vid),
        (_, pcp, false) => format!("{tpid:04x}:{}:{pcp}", tag.vid),
        (_, pcp, true) => format!("{tpid:04x}:{}:{pcp}:1", tag.vid),
    }
}

/// In single quotes, as a shell takes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_options::TagArg;

    #[test]
    fn what_is_not_set_is_not_told() {
        let mut words = Words::default();
        words.flag("--a", false);
        words.text("--b", "");
        words.number("--c", 0_u32);
        words.size("--d", 0);
        words.time("--e", Duration::ZERO);
        words.tag("--f", None);
        words.filter("", 2);
        words.sample(None);
        assert_eq!(words.line(), "");
    }

    #[test]
    fn sizes_are_written_without_loss() {
        for (bytes, text) in [
            (64 << 20, "64MiB"),
            (1 << 40, "1TiB"),
            (1536 << 20, "1536MiB"),
            (33_000_000, "33000000B"),
        ] {
            let mut words = Words::default();
            words.size("--buffer", bytes);
            assert_eq!(words.line(), format!("--buffer {text}"));
            assert_eq!(fluxcap_service::parse_size(text).ok(), Some(bytes));
        }
    }

    #[test]
    fn a_tag_is_written_as_it_can_be_read() {
        for text in ["0", "100", "88a8:7", "8100:7:3", "9100:4094:7:1"] {
            let tag: TagArg = text.parse().unwrap();
            assert_eq!(tag.0.as_ref().map(tag_text), Some(text.to_owned()));
        }
    }
}
