//! The edits of a capture or a transmit, written back as the options that make them.

use crate::names;
use fluxcap_proto::v1::{Edits, VlanTag};

/// The edits as options, in the order in which they are applied; empty when there are none.
pub(crate) fn options(edits: Option<&Edits>) -> String {
    let Some(edits) = edits else {
        return String::new();
    };
    let mut parts = Vec::new();
    if !edits.filter.is_empty() {
        parts.push(format!("--filter {}", quoted(&edits.filter)));
        if names::filter_vlan(edits.filter_vlan) == "exact" {
            parts.push("--filter-vlan exact".to_owned());
        }
    }
    if let Some(sample) = &edits.sample {
        parts.push(format!("--sample 1/{}", sample.one_in));
        if names::sample_mode(sample.mode) == "flow" {
            parts.push("--sample-by flow".to_owned());
        }
        if sample.seed != 0 {
            parts.push(format!("--seed {}", sample.seed));
        }
    }
    if edits.vlan_pop != 0 {
        parts.push(format!("--vlan-pop {}", edits.vlan_pop));
    }
    parts.extend(
        edits
            .vlan_push
            .as_ref()
            .map(|tag| format!("--vlan-push {}", tag_text(tag))),
    );
    parts.extend(
        edits
            .vlan_replace
            .as_ref()
            .map(|tag| format!("--vlan-replace {}", tag_text(tag))),
    );
    if edits.trim != 0 {
        parts.push(format!("--trim {}", edits.trim));
    }
    if edits.snaplen != 0 {
        parts.push(format!("--snaplen {}", edits.snaplen));
    }
    parts.join(" ")
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
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_options::TagArg;
    use fluxcap_proto::v1::{FilterVlan, Sample, SampleMode};

    #[test]
    fn no_edits_are_no_options() {
        assert_eq!(options(None), "");
        assert_eq!(options(Some(&Edits::default())), "");
    }

    #[test]
    fn all_edits_come_in_their_order() {
        let edits = Edits {
            filter: "host 'a'".into(),
            filter_vlan: FilterVlan::Exact.into(),
            sample: Some(Sample {
                one_in: 10,
                mode: SampleMode::Flow.into(),
                seed: 3,
            }),
            vlan_pop: 1,
            vlan_push: Some(VlanTag {
                vid: 5,
                pcp: 2,
                dei: true,
                tpid: 0x88a8,
            }),
            vlan_replace: None,
            trim: 4,
            snaplen: 96,
        };
        let expected = r"--filter 'host '\''a'\''' --filter-vlan exact --sample 1/10 --sample-by flow --seed 3 --vlan-pop 1 --vlan-push 88a8:5:2:1 --trim 4 --snaplen 96";
        assert_eq!(options(Some(&edits)), expected);
    }

    #[test]
    fn a_tag_is_written_as_it_can_be_read() {
        for text in ["0", "100", "88a8:7", "8100:7:3", "9100:4094:7:1"] {
            let tag: TagArg = text.parse().unwrap();
            assert_eq!(tag.0.as_ref().map(tag_text), Some(text.to_owned()));
        }
    }
}
