//! From the API's edits to those that run on frames.

use crate::SpecError;
use fluxcap_headers::{self as headers, Filter, FilterVlan, SampleBy, Sampler, VlanEdit, VlanTag};
use fluxcap_proto::v1;
use std::hash::{BuildHasher, RandomState};

/// Most VLAN tags that can be taken off a frame.
const MAX_POP: u32 = 4;

/// Checks the edits of a spec and makes them ready to run: compiles the filter, seeds the sampler.
///
/// A seed of 0 takes another one each time.
///
/// # Errors
/// The first field that cannot be used.
pub fn compile_edits(edits: &v1::Edits) -> Result<headers::Edits, SpecError> {
    let vlan = match (&edits.vlan_push, &edits.vlan_replace) {
        (Some(_), Some(_)) => {
            return Err(SpecError::new(
                "edits.vlan_replace",
                "a tag cannot be pushed and replaced at once; use one of the two, or vlan_pop and vlan_push",
            ));
        }
        (Some(tag), None) => Some(VlanEdit::Push(vlan_tag("edits.vlan_push", tag)?)),
        (None, Some(tag)) => Some(VlanEdit::Replace(vlan_tag("edits.vlan_replace", tag)?)),
        (None, None) => None,
    };
    Ok(headers::Edits {
        filter: compile_filter("edits.filter", &edits.filter, edits.filter_vlan())?,
        sample: edits.sample.as_ref().and_then(sampler),
        vlan_pop: u8::try_from(edits.vlan_pop.min(MAX_POP)).unwrap_or(u8::MAX),
        vlan,
        trim: edits.trim,
        snaplen: edits.snaplen,
    })
}

/// A tag of the API as bytes for the wire; a TPID of 0 means 0x8100. `field` names it in the error.
pub fn vlan_tag(field: &'static str, tag: &v1::VlanTag) -> Result<VlanTag, SpecError> {
    let tpid = if tag.tpid == 0 { 0x8100 } else { tag.tpid };
    let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    VlanTag::new(
        narrow(tpid),
        narrow(tag.vid),
        u8::try_from(tag.pcp).unwrap_or(u8::MAX),
        tag.dei,
    )
    .map_err(|error| SpecError::new(field, error))
}

/// A pcap-filter(7) expression, compiled; `None` for an empty one. `field` names it in the error.
///
/// # Errors
/// What libpcap says.
pub fn compile_filter(
    field: &'static str,
    expression: &str,
    vlan: v1::FilterVlan,
) -> Result<Option<Filter>, SpecError> {
    if expression.trim().is_empty() {
        return Ok(None);
    }
    let vlan = match vlan {
        v1::FilterVlan::Unspecified | v1::FilterVlan::Any => FilterVlan::Any,
        v1::FilterVlan::Exact => FilterVlan::Exact,
    };
    Filter::compile(expression, vlan)
        .map(Some)
        .map_err(|error| SpecError::new(field, error))
}

fn sampler(sample: &v1::Sample) -> Option<Sampler> {
    if sample.kept.max(1) >= sample.one_in {
        return None;
    }
    let by = match sample.mode() {
        v1::SampleMode::Unspecified | v1::SampleMode::Random => SampleBy::Random,
        v1::SampleMode::Flow => SampleBy::Flow,
    };
    let seed = match sample.seed {
        0 => RandomState::new().hash_one(sample.one_in),
        seed => seed,
    };
    Some(Sampler::new(sample.kept, sample.one_in, by, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_that_say_nothing_change_nothing() {
        assert!(compile_edits(&v1::Edits::default()).unwrap().is_empty());
    }

    #[test]
    fn the_error_names_the_field() {
        let bad = |edits| compile_edits(&edits).unwrap_err().field;
        let tag = |vid, tpid| {
            Some(v1::VlanTag {
                vid,
                tpid,
                ..Default::default()
            })
        };
        assert_eq!(
            bad(v1::Edits {
                filter: "tcp prt 80".into(),
                ..Default::default()
            }),
            "edits.filter"
        );
        assert_eq!(
            bad(v1::Edits {
                vlan_push: tag(4095, 0),
                ..Default::default()
            }),
            "edits.vlan_push"
        );
        assert_eq!(
            bad(v1::Edits {
                vlan_replace: tag(1, 0x800),
                ..Default::default()
            }),
            "edits.vlan_replace"
        );
        assert_eq!(
            bad(v1::Edits {
                vlan_push: tag(1, 0),
                vlan_replace: tag(2, 0),
                ..Default::default()
            }),
            "edits.vlan_replace"
        );
    }

    #[test]
    fn a_tag_without_a_tpid_is_an_802_1q_tag() {
        let tag = v1::VlanTag {
            vid: 100,
            pcp: 5,
            dei: true,
            tpid: 0,
        };
        assert_eq!(
            vlan_tag("x", &tag).unwrap().to_bytes(),
            [0x81, 0x00, 0xb0, 0x64]
        );
    }
}
