//! The edits of a capture, a transmit or a tunnel, in their fixed order.

use crate::{Filter, Sampler, VlanTag, WireFrame};

/// What to do with the outermost VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanEdit {
    /// Add a tag in front of those that are there.
    Push(VlanTag),
    /// Put this tag in the place of the outermost one; add it when there is none.
    Replace(VlanTag),
}

/// Edits, applied in the order of the fields. The default changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// Frames that do not match are left out. Sees the frame as it was on the wire.
    pub filter: Option<Filter>,
    /// Keeps one in N of what the filter let through.
    pub sample: Option<Sampler>,
    /// Outermost tags to remove; a frame with fewer loses those it has.
    pub vlan_pop: u8,
    /// The tag to put on what is left.
    pub vlan: Option<VlanEdit>,
    /// Bytes to remove from the end on the wire (a trailer of a tap or a switch). A frame that is
    /// not longer than this is left whole.
    pub trim: u32,
    /// Most bytes to keep, counted after everything else; 0 keeps all.
    pub snaplen: u32,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy)]
pub enum Edited<'a> {
    /// Goes on, edited.
    Keep(WireFrame<'a>),
    /// The filter does not match.
    Filtered,
    /// The sampler left it out.
    SampledOut,
    /// Too short for the VLAN edit that was asked for.
    Malformed,
}

impl Edits {
    /// Whether every frame passes unchanged.
    pub fn is_empty(&self) -> bool {
        self.filter.is_none()
            && self.sample.is_none()
            && !self.edits_tags()
            && self.trim == 0
            && self.snaplen == 0
    }

    /// Applies the edits: filter, sample, pop, push or replace, trim, slice.
    #[inline]
    pub fn apply<'a>(&mut self, mut frame: WireFrame<'a>) -> Edited<'a> {
        if self.filter.as_ref().is_some_and(|f| !f.matches(&frame)) {
            return Edited::Filtered;
        }
        if self.sample.as_mut().is_some_and(|s| !s.keep(&frame)) {
            return Edited::SampledOut;
        }
        if self.edits_tags() && self.edit_tags(&mut frame).is_none() {
            return Edited::Malformed;
        }
        if self.trim != 0 {
            frame.trim(self.trim);
        }
        if self.snaplen != 0 {
            frame.slice(self.snaplen);
        }
        Edited::Keep(frame)
    }

    fn edits_tags(&self) -> bool {
        self.vlan_pop != 0 || self.vlan.is_some()
    }

    fn edit_tags(&self, frame: &mut WireFrame<'_>) -> Option<()> {
        for _ in 0..self.vlan_pop {
            frame.pop_tag()?;
        }
        match self.vlan {
            None => Some(()),
            Some(VlanEdit::Push(tag)) => frame.push_tag(tag),
            Some(VlanEdit::Replace(tag)) => {
                frame.pop_tag()?;
                frame.push_tag(tag)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FilterVlan, SampleBy};

    fn numbered(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    fn kept(edits: &mut Edits, frame: WireFrame<'_>) -> (Vec<u8>, u32) {
        match edits.apply(frame) {
            Edited::Keep(frame) => (frame.pieces().concat(), frame.wire_len()),
            other => panic!("not kept: {other:?}"),
        }
    }

    fn tag(vid: u16) -> VlanTag {
        VlanTag::new(0x8100, vid, 0, false).unwrap()
    }

    #[test]
    fn trim_comes_before_slice() {
        let bytes = vec![5u8; 514];
        let mut edits = Edits {
            snaplen: 100,
            trim: 4,
            ..Edits::default()
        };
        let (data, wire) = kept(&mut edits, WireFrame::new(&bytes, 514));
        assert_eq!((data.len(), wire), (100, 510));
        let (data, wire) = kept(&mut edits, WireFrame::new(&bytes[..102], 102));
        assert_eq!((data.len(), wire), (98, 98));
    }

    #[test]
    fn pop_comes_before_push_so_that_both_replace() {
        let mut bytes = numbered(60);
        bytes[12..16].copy_from_slice(&[0x81, 0x00, 0x00, 0x05]);
        let mut edits = Edits {
            vlan_pop: 1,
            vlan: Some(VlanEdit::Push(tag(100))),
            ..Edits::default()
        };
        let (data, wire) = kept(&mut edits, WireFrame::new(&bytes, 60));
        assert_eq!(data[12..16], [0x81, 0x00, 0x00, 100]);
        assert_eq!((&data[16..], wire), (&bytes[16..], 60));
    }

    #[test]
    fn replace_adds_the_tag_when_there_is_none() {
        let bytes = numbered(60);
        let mut edits = Edits {
            vlan: Some(VlanEdit::Replace(tag(7))),
            ..Edits::default()
        };
        let (data, wire) = kept(&mut edits, WireFrame::new(&bytes, 60));
        assert_eq!((data.len(), wire), (64, 64));
        assert_eq!(data[12..16], [0x81, 0, 0, 7]);
        assert_eq!(data[16..], bytes[12..]);
    }

    #[test]
    fn push_stacks_on_a_restored_tag() {
        let bytes = numbered(60);
        let mut frame = WireFrame::new(&bytes, 64);
        frame.restore_tag(tag(5));
        let mut edits = Edits {
            vlan: Some(VlanEdit::Push(VlanTag {
                tpid: 0x88a8,
                tci: 0xb00a,
            })),
            ..Edits::default()
        };
        let (data, wire) = kept(&mut edits, frame);
        assert_eq!(data[12..20], [0x88, 0xa8, 0xb0, 0x0a, 0x81, 0, 0, 5]);
        assert_eq!((data.len(), wire), (68, 68));
    }

    #[test]
    fn slice_counts_pushed_tags_and_may_cut_within_one() {
        let bytes = numbered(60);
        let mut edits = Edits {
            vlan: Some(VlanEdit::Push(tag(7))),
            snaplen: 14,
            ..Edits::default()
        };
        let (data, wire) = kept(&mut edits, WireFrame::new(&bytes, 60));
        assert_eq!((data.len(), wire), (14, 64));
        assert_eq!(data[12..], [0x81, 0x00]);
    }

    #[test]
    fn filter_sees_the_tag_that_pop_removes_and_comes_before_the_sampler() {
        let mut bytes = numbered(60);
        bytes[12..18].copy_from_slice(&[0x81, 0x00, 0x00, 0x05, 0x08, 0x06]);
        let mut edits = Edits {
            filter: Some(Filter::compile("vlan 5 and arp", FilterVlan::Any).unwrap()),
            sample: Some(Sampler::new(1, u32::MAX, SampleBy::Random, 1)),
            vlan_pop: 1,
            ..Edits::default()
        };
        assert!(matches!(
            edits.apply(WireFrame::new(&bytes, 60)),
            Edited::SampledOut
        ));
        edits.sample = None;
        assert_eq!(kept(&mut edits, WireFrame::new(&bytes, 60)).0.len(), 56);
        bytes[15] = 6;
        assert!(matches!(
            edits.apply(WireFrame::new(&bytes, 60)),
            Edited::Filtered
        ));
    }

    #[test]
    fn runts_pass_without_vlan_edits_and_are_malformed_with_them() {
        let bytes = numbered(9);
        let mut edits = Edits::default();
        assert!(edits.is_empty());
        assert_eq!(
            kept(&mut edits, WireFrame::new(&bytes, 9)),
            (bytes.clone(), 9)
        );
        for (vlan_pop, vlan) in [
            (1, None),
            (0, Some(VlanEdit::Push(tag(1)))),
            (0, Some(VlanEdit::Replace(tag(1)))),
        ] {
            let mut edits = Edits {
                vlan_pop,
                vlan,
                ..Edits::default()
            };
            assert!(matches!(
                edits.apply(WireFrame::new(&bytes, 9)),
                Edited::Malformed
            ));
        }
    }

    #[test]
    fn pop_of_more_tags_than_there_are_leaves_an_untagged_frame() {
        let bytes = numbered(60);
        let mut edits = Edits {
            vlan_pop: 3,
            ..Edits::default()
        };
        assert_eq!(
            kept(&mut edits, WireFrame::new(&bytes, 60)),
            (bytes.clone(), 60)
        );
    }
}
