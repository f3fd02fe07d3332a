//! Both ends of a ring in memory that two mappings share, without a kernel.

use super::*;
use std::ffi::c_uint;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

const LEN: u32 = 8;
const OFFSETS: libc::xdp_ring_offset = libc::xdp_ring_offset {
    producer: 0,
    consumer: 64,
    desc: 192,
    flags: 128,
};

/// Memory in which both numbers stand at `start`.
fn memory(start: u32) -> OwnedFd {
    // SAFETY: a name and flags; the descriptor is new and ours.
    let fd = unsafe {
        let fd = libc::memfd_create(c"ring".as_ptr(), 0 as c_uint);
        assert!(fd >= 0 && libc::ftruncate(fd, 4096) == 0);
        OwnedFd::from_raw_fd(fd)
    };
    let ring: Ring<u64> = Ring::map(fd.as_fd(), 0, &OFFSETS, LEN).unwrap();
    ring.producer().store(start, Ordering::Relaxed);
    ring.consumer().store(start, Ordering::Relaxed);
    fd
}

fn pair(fd: &OwnedFd) -> (Producing<u64>, Consuming<u64>) {
    let end = fd.as_fd();
    (
        Producing::map(end, 0, &OFFSETS, LEN).unwrap(),
        Consuming::map(end, 0, &OFFSETS, LEN).unwrap(),
    )
}

#[test]
fn entries_come_out_as_they_went_in_also_where_numbers_wrap() {
    for start in [0, 5, u32::MAX - 3, u32::MAX] {
        let fd = memory(start);
        let (mut to, mut from) = pair(&fd);
        let (mut written, mut read) = (0_u64, 0_u64);
        for round in 0..100_u64 {
            for _ in 0..=round % 9 {
                written += u64::from(to.push(written));
            }
            assert_eq!(u64::from(from.available()), 0);
            to.publish();
            assert_eq!(u64::from(from.available()), written - read);
            for _ in 0..from.available().min((round % 5) as u32 + 4) {
                assert_eq!(from.pop(), read);
                read += 1;
            }
            assert_eq!(u64::from(to.used() > 0), u64::from(written > 0));
            from.release();
            assert_eq!(u64::from(to.used()), written - read);
            while from.available() > 0 {
                assert_eq!(from.pop(), read);
                read += 1;
            }
            from.release();
        }
        assert!(written > 300 && written == read);
    }
}

#[test]
fn full_ring_takes_no_more() {
    let fd = memory(7);
    let (mut to, mut from) = pair(&fd);
    assert_eq!((0..20).filter(|n| to.push(*n)).count(), 8);
    to.publish();
    from.pop();
    from.release();
    assert!(to.push(8) && !to.push(9));
}

#[test]
fn unpublished_and_unread_entries_can_be_overwritten() {
    let fd = memory(u32::MAX);
    let (mut to, mut from) = pair(&fd);
    (0..6).for_each(|n| assert!(to.push(n)));
    to.publish();
    assert_eq!((from.pop(), from.pop()), (0, 1));
    from.release();
    to.overwrite(99);
    assert_eq!(from.available(), 4);
    assert!((0..4).all(|_| from.pop() == 99));
}

#[test]
fn numbers_that_make_no_sense_are_not_believed() {
    let fd = memory(100);
    let (mut to, from) = pair(&fd);
    assert!(to.push(1));
    to.publish();
    for nonsense in [99, 102, 0, 1 << 31, u32::MAX] {
        from.ring.consumer().store(nonsense, Ordering::Relaxed);
        assert_eq!(to.used(), 1, "{nonsense}");
    }
    for nonsense in [99, 109, 0, 1 << 31, u32::MAX] {
        to.ring.producer().store(nonsense, Ordering::Relaxed);
        assert_eq!(from.available(), 0, "{nonsense}");
    }
}

#[test]
fn offsets_that_do_not_fit_are_refused() {
    let fd = memory(0);
    let refused = |change: fn(&mut libc::xdp_ring_offset)| {
        let mut offsets = OFFSETS;
        change(&mut offsets);
        Ring::<Descriptor>::map(fd.as_fd(), 0, &offsets, LEN).is_err()
    };
    assert!(refused(|o| o.producer = 1 << 20));
    assert!(refused(|o| o.consumer = 2));
    assert!(refused(|o| o.flags = u64::MAX));
    assert!(refused(|o| o.desc = u64::MAX - 8));
    assert!(refused(|o| o.desc = 4));
    assert!(Ring::<Descriptor>::map(fd.as_fd(), 0, &OFFSETS, 7).is_err());
    assert!(!refused(|_| {}));
}
