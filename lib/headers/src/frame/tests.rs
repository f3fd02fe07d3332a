use super::*;
use proptest::prelude::*;

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

fn frame_with(after_macs: &[u8]) -> Vec<u8> {
    [&MACS[..], after_macs].concat()
}

fn joined(frame: &WireFrame<'_>) -> Vec<u8> {
    frame.pieces().concat()
}

#[test]
fn restored_tag_stands_between_addresses_and_ether_type_for_every_tag() {
    for tpid in [0x8100u16, 0x88a8, 0x9100] {
        for tci in [0x0000u16, 0x0001, 0xe000, 0x1000, 0xf00a, 0x0ffe, 0xffff] {
            let stripped = frame_with(&[0x08, 0x00, 1, 2, 3]);
            let mut frame = WireFrame::new(&stripped, 21);
            assert!(frame.restore_tag(VlanTag { tpid, tci }));
            let [a, b] = tpid.to_be_bytes();
            let [c, d] = tci.to_be_bytes();
            assert_eq!(
                joined(&frame),
                frame_with(&[a, b, c, d, 0x08, 0x00, 1, 2, 3])
            );
            assert_eq!(
                (frame.len(), frame.wire_len(), frame.vlan_count()),
                (21, 21, 1)
            );
        }
    }
}

#[test]
fn restored_service_tag_keeps_the_inline_customer_tag_behind_it() {
    let stripped = frame_with(&[0x81, 0x00, 0x20, 0x05, 0x08, 0x00, 9]);
    let mut frame = WireFrame::new(&stripped, 23);
    assert!(frame.restore_tag(VlanTag {
        tpid: 0x88a8,
        tci: 0xb064
    }));
    let expected = frame_with(&[
        0x88, 0xa8, 0xb0, 0x64, 0x81, 0x00, 0x20, 0x05, 0x08, 0x00, 9,
    ]);
    assert_eq!(joined(&frame), expected);
    assert_eq!(frame.vlan_count(), 2);
    assert_eq!(
        frame.outer_tag(),
        Some(VlanTag {
            tpid: 0x88a8,
            tci: 0xb064
        })
    );
}

#[test]
fn pop_takes_held_tags_first_then_inline_ones_then_leaves_the_frame_alone() {
    let stripped = frame_with(&[0x81, 0x00, 0x20, 0x05, 0x08, 0x00, 9]);
    let mut frame = WireFrame::new(&stripped, 23);
    assert!(frame.restore_tag(VlanTag {
        tpid: 0x88a8,
        tci: 1
    }));
    assert_eq!(frame.pop_tag(), Some(()));
    assert_eq!((joined(&frame), frame.wire_len()), (stripped.clone(), 19));
    assert_eq!(frame.pop_tag(), Some(()));
    assert_eq!(joined(&frame), frame_with(&[0x08, 0x00, 9]));
    assert_eq!(frame.pop_tag(), Some(()));
    assert_eq!(
        (joined(&frame), frame.wire_len()),
        (frame_with(&[0x08, 0x00, 9]), 15)
    );
}

#[test]
fn runts_and_tags_cut_in_the_middle_are_reported_not_guessed() {
    let runt = &MACS[..11];
    assert!(!WireFrame::new(runt, 60).restore_tag(VlanTag {
        tpid: 0x8100,
        tci: 1
    }));
    assert_eq!(WireFrame::new(runt, 60).pop_tag(), None);
    assert_eq!(WireFrame::new(&MACS, 60).pop_tag(), None);
    let cut = frame_with(&[0x81, 0x00, 0x00]);
    let mut frame = WireFrame::new(&cut, 60);
    assert_eq!(frame.pop_tag(), None);
    assert_eq!((frame.vlan_count(), frame.outer_tag()), (0, None));
}

#[test]
fn fifth_held_tag_is_refused() {
    let bytes = frame_with(&[0x08, 0x00]);
    let mut frame = WireFrame::new(&bytes, 30);
    for tci in 0..4 {
        assert!(frame.restore_tag(VlanTag { tpid: 0x8100, tci }));
    }
    assert!(!frame.restore_tag(VlanTag {
        tpid: 0x8100,
        tci: 9
    }));
    assert_eq!((frame.vlan_count(), frame.len()), (4, 30));
}

#[test]
fn trim_counts_from_the_end_on_the_wire_not_from_the_captured_end() {
    let bytes = [7u8; 64];
    let mut part = WireFrame::new(&bytes, 100);
    part.trim(4);
    assert_eq!((part.len(), part.wire_len()), (64, 96));
    part.trim(40);
    assert_eq!((part.len(), part.wire_len()), (56, 56));
    part.trim(56);
    assert_eq!((part.len(), part.wire_len()), (56, 56));
}

proptest! {
    #[test]
    fn no_sequence_of_edits_breaks_the_length_invariant(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        wire in any::<u32>(),
        ops in proptest::collection::vec((0u8..5, any::<u16>(), any::<u16>()), 0..12),
    ) {
        let mut frame = WireFrame::new(&bytes, wire);
        for (op, a, b) in ops {
            let before = frame.len();
            match op {
                0 => { frame.restore_tag(VlanTag { tpid: a, tci: b }); }
                1 => { frame.pop_tag(); }
                2 => { frame.push_tag(VlanTag { tpid: 0x8100, tci: b }); }
                3 => frame.trim(u32::from(a)),
                _ => { frame.slice(u32::from(a % 100)); prop_assert!(frame.len() <= before); }
            }
            prop_assert!(frame.wire_len() as usize >= frame.len());
            prop_assert_eq!(joined(&frame).len(), frame.len());
            prop_assert!(frame.vlan_count() <= 4);
        }
    }

    #[test]
    fn push_then_pop_gives_back_the_same_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 12..80), tci in any::<u16>(),
    ) {
        let mut frame = WireFrame::new(&bytes, 80);
        prop_assert_eq!(frame.push_tag(VlanTag { tpid: 0x88a8, tci }), Some(()));
        prop_assert_eq!(frame.pop_tag(), Some(()));
        prop_assert_eq!(frame.wire_len(), 80);
        prop_assert_eq!(joined(&frame), bytes.clone());
    }
}
