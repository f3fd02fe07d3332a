//! The edits of a capture or a transmit, written back as the options that make them.

use crate::words::Words;
use fluxcap_proto::v1::Edits;

/// The edits as options, in the order in which they are applied; empty when there are none.
pub(crate) fn options(edits: Option<&Edits>) -> String {
    let mut words = Words::default();
    if let Some(edits) = edits {
        words.filter(&edits.filter, edits.filter_vlan);
        words.sample(edits.sample.as_ref());
        words.number("--vlan-pop", edits.vlan_pop);
        words.tag("--vlan-push", edits.vlan_push.as_ref());
        words.tag("--vlan-replace", edits.vlan_replace.as_ref());
        words.number("--trim", edits.trim);
        words.number("--snaplen", edits.snaplen);
    }
    words.line()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_proto::v1::{FilterVlan, Sample, SampleMode, VlanTag};

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
                kept: 0,
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
}
