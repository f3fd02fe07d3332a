use super::*;
use proptest::prelude::*;

/// A block in plain memory, as the kernel would have written it.
struct Fake {
    status: AtomicU32,
    bytes: Vec<u8>,
    next: usize,
    cursor: Option<Cursor>,
}

impl Fake {
    fn with(bytes: Vec<u8>) -> Fake {
        Fake {
            status: AtomicU32::new(libc::TP_STATUS_USER),
            bytes,
            next: 3,
            cursor: None,
        }
    }

    fn block(&mut self) -> Block<'_> {
        Block {
            status: &self.status,
            bytes: &mut self.bytes[COUNTS_OFFSET..],
            next: &mut self.next,
            blocks: 4,
            start: COUNTS_OFFSET,
            cursor: &mut self.cursor,
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// A block of two frames of 60 bytes, the second with a tag, sent by this host.
fn two_frames() -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    put(&mut bytes, COUNTS_OFFSET, 2);
    put(&mut bytes, COUNTS_OFFSET + 4, 48);
    for (at, next) in [(48usize, 160u32), (208, 0)] {
        put(&mut bytes, at, next);
        put(&mut bytes, at + 4, 1_700_000_000);
        put(&mut bytes, at + 8, 999_999_999);
        put(&mut bytes, at + 12, 60);
        put(&mut bytes, at + 16, 9000);
        bytes[at + 24..at + 26].copy_from_slice(&82u16.to_ne_bytes());
        bytes[at + 82..at + 142].fill(at as u8);
    }
    let status =
        libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID | libc::TP_STATUS_LOSING;
    put(&mut bytes, 208 + 20, status);
    put(&mut bytes, 208 + 32, 0xe005);
    bytes[208 + 36..208 + 38].copy_from_slice(&0x88a8u16.to_ne_bytes());
    bytes[208 + 58] = libc::PACKET_OUTGOING;
    bytes
}

#[test]
fn frames_and_their_metadata_are_read_where_the_kernel_puts_them() {
    let mut fake = Fake::with(two_frames());
    let mut block = fake.block();
    assert_eq!(
        (block.len(), block.is_empty(), block.losing()),
        (2, false, false)
    );
    let mut packets = block.packets();
    let first = packets.next().unwrap();
    let second = packets.next().unwrap();
    assert_eq!(first.timestamp_ns, 1_700_000_000_999_999_999);
    assert_eq!(
        (first.wire_len, first.vlan, first.outgoing),
        (9000, None, false)
    );
    assert_eq!((&first.data[..], first.losing), (&[48u8; 60][..], false));
    assert_eq!(
        (second.vlan, second.outgoing),
        (Some((0x88a8, 0xe005)), true)
    );
    assert_eq!((&second.data[..], second.losing), (&[208u8; 60][..], true));
    assert!(packets.next().is_none() && !packets.damaged());
    drop(block);
    assert_eq!(fake.status.load(Ordering::Relaxed), libc::TP_STATUS_KERNEL);
    assert_eq!(fake.next, 0, "the ring begins again");
}

#[test]
fn frames_that_are_taken_one_at_a_time_are_the_same_and_the_rest_stays_in_the_block() {
    let mut fake = Fake::with(two_frames());
    let mut cursor = Cursor::first(&fake.bytes[COUNTS_OFFSET..], COUNTS_OFFSET);
    let head = cursor.head(&fake.bytes[COUNTS_OFFSET..]).unwrap();
    assert_eq!(
        (head.timestamp_ns, head.len),
        (1_700_000_000_999_999_999, 60)
    );
    let first = cursor.take(&mut fake.bytes[COUNTS_OFFSET..]).unwrap();
    assert_eq!(
        (first.timestamp_ns, &first.data[..]),
        (head.timestamp_ns, &[48u8; 60][..])
    );
    fake.cursor = Some(cursor);
    let mut block = fake.block();
    assert_eq!(block.len(), 1);
    assert_eq!(
        block.packets().map(|p| p.data[0]).collect::<Vec<_>>(),
        [208]
    );
    drop(block);
    assert_eq!(fake.cursor, None);
    let second = cursor.take(&mut fake.bytes[COUNTS_OFFSET..]).unwrap();
    assert_eq!(second.vlan, Some((0x88a8, 0xe005)));
    assert_eq!(cursor.left, 0);
    assert!(cursor.head(&fake.bytes[COUNTS_OFFSET..]).is_none());
    assert!(cursor.take(&mut fake.bytes[COUNTS_OFFSET..]).is_none());
}

#[test]
fn tag_without_a_tpid_is_8100_and_a_tci_of_zero_counts() {
    assert_eq!(
        vlan(libc::TP_STATUS_VLAN_VALID, 0, 0x88a8),
        Some((0x8100, 0))
    );
    assert_eq!(vlan(libc::TP_STATUS_VLAN_TPID_VALID, 5, 0x88a8), None);
}

#[test]
fn impossible_lengths_end_the_block_and_are_told() {
    // (offset of a field of the first frame, impossible value, frames that are still good)
    for (at, value, good) in [
        (48, 40, 0),      // next frame within the header
        (48, 0, 0),       // no next frame, but two were announced
        (48, 100_000, 0), // next frame behind the block
        (48 + 12, 79, 0), // captured bytes reach into the next frame
        (48 + 12, u32::MAX, 0),
        (48 + 24, 50, 0), // frame begins within its own metadata
        (48 + 24, 60_000, 0),
        (208 + 12, 1000, 1),   // captured bytes reach behind the block
        (208, 77, 1),          // last frame cut short
        (COUNTS_OFFSET, 3, 1), // the second frame says that it is the last
        (COUNTS_OFFSET + 4, 8, 0),
        (COUNTS_OFFSET + 4, u32::MAX, 0),
    ] {
        let mut bytes = two_frames();
        put(&mut bytes, at, value);
        let mut fake = Fake::with(bytes);
        let mut block = fake.block();
        let announced = block.len();
        let mut packets = block.packets();
        assert_eq!(packets.by_ref().count(), good, "{at}: {value}");
        assert!(packets.damaged(), "{at}: {value}");
        assert_eq!(packets.left(), announced - good);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_walked_without_a_panic_and_within_the_block(
        noise in proptest::collection::vec((0usize..1020, prop_oneof![0u32..300, any::<u32>()]), 0..12),
        random in any::<bool>(), seed in any::<[u8; 32]>(),
    ) {
        let mut bytes = two_frames();
        if random {
            bytes = seed.iter().cycle().take(1024).copied().collect();
            put(&mut bytes, COUNTS_OFFSET + 4, 48);
        }
        for (at, value) in noise {
            put(&mut bytes, at, value);
        }
        let mut fake = Fake::with(bytes);
        let whole = fake.bytes.as_ptr_range();
        let mut block = fake.block();
        let mut end = whole.start;
        for packet in block.packets() {
            let range = packet.data.as_ptr_range();
            prop_assert!(end <= range.start && range.end <= whole.end);
            end = range.end;
        }
    }
}
