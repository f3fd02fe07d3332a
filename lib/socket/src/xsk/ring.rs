//! The rings of an AF_XDP socket (`linux/if_xdp.h`, `net/xdp/xsk_queue.h` in the kernel).
//!
//! ```text
//!  one page or more:  [ producer u32 | .. | consumer u32 | .. | flags u32 | .. | entry | entry | ... 2^n of them ]
//! ```
//!
//! Both numbers run freely and wrap at 2^32; an entry's place is its number modulo 2^n. Of each ring the kernel has one end
//! and we have the other. Our own number is kept here and never read back, and the kernel's is held against it: what does
//! not fit between 0 and 2^n entries is taken for none.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mapping::Mapping;

/// `struct xdp_desc`: a frame in the receive or transmit ring.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Where it begins, in bytes from the start of the UMEM.
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) options: u32,
}

/// What a ring can hold: plain integers, valid with any bytes.
pub(crate) trait Entry: Copy {}
impl Entry for Descriptor {}
/// An address in the UMEM, in the fill and completion rings.
impl Entry for u64 {}

/// One mapped ring.
#[derive(Debug)]
struct Ring<T> {
    _mapping: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    /// A power of two.
    len: u32,
}

// SAFETY: the pointers lead into the mapping, which belongs to this value alone.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Maps a ring of `len` entries, a power of two, whose parts are where the kernel says.
    fn map(
        fd: BorrowedFd<'_>,
        page: libc::off_t,
        offset: &libc::xdp_ring_offset,
        len: u32,
    ) -> io::Result<Ring<T>> {
        let bad = || io::Error::from_raw_os_error(libc::EPROTO);
        let at = |offset: u64| usize::try_from(offset).map_err(|_| bad());
        let bytes = len as usize * size_of::<T>();
        let end = at(offset.desc)?.checked_add(bytes).ok_or_else(bad)?;
        let mapping = Mapping::of_fd_at(fd, page, end)?;
        let word = |offset: u64| {
            let place = mapping.at(at(offset)?, size_of::<AtomicU32>());
            let place = place.map(NonNull::cast::<AtomicU32>);
            place.filter(|place| place.is_aligned()).ok_or_else(bad)
        };
        let entries = mapping.at(at(offset.desc)?, bytes).map(NonNull::cast::<T>);
        let entries = entries.filter(|place| place.is_aligned() && len.is_power_of_two());
        Ok(Ring {
            producer: word(offset.producer)?,
            consumer: word(offset.consumer)?,
            flags: word(offset.flags)?,
            entries: entries.ok_or_else(bad)?,
            len,
            _mapping: mapping,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: within the mapping and aligned, as `map` has checked; the kernel's accesses are atomic too.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as above.
        let flags = unsafe { self.flags.as_ref() };
        // Only a hint, which orders nothing.
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// The place of an entry.
    fn entry(&self, number: u32) -> NonNull<T> {
        // SAFETY: the index is below `len`, and so many entries are mapped.
        unsafe { self.entries.add((number & (self.len - 1)) as usize) }
    }

    fn read(&self, number: u32) -> T {
        // SAFETY: mapped and aligned; any bytes are an Entry. Volatile, because the memory is shared: what is read is copied
        // once, and checked by the caller.
        unsafe { self.entry(number).read_volatile() }
    }

    fn write(&self, number: u32, value: T) {
        // SAFETY: mapped and aligned; no reference to it is ever made.
        unsafe { self.entry(number).write_volatile(value) };
    }
}

/// A ring that the kernel empties: fill, transmit.
#[derive(Debug)]
pub(crate) struct Producing<T> {
    ring: Ring<T>,
    /// Number of the entry to be written next.
    next: u32,
    /// What the kernel's number was last.
    consumed: u32,
}

impl<T: Entry> Producing<T> {
    /// See [`Ring::map`].
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        page: libc::off_t,
        offset: &libc::xdp_ring_offset,
        len: u32,
    ) -> io::Result<Producing<T>> {
        let ring = Ring::map(fd, page, offset, len)?;
        let next = ring.producer().load(Ordering::Relaxed);
        Ok(Producing {
            ring,
            next,
            consumed: next,
        })
    }

    /// Entries that have been written and, as far as the kernel tells, not been read yet.
    pub(crate) fn used(&mut self) -> u32 {
        // SYNC POINT: entry freed, the kernel's to ours. Acquire: it has read the entries before it moved the number
        // (smp_store_release in __xskq_cons_release).
        let consumed = self.ring.consumer().load(Ordering::Acquire);
        // Numbers that go back, or beyond what there is, are not believed.
        if self.next.wrapping_sub(consumed) <= self.next.wrapping_sub(self.consumed) {
            self.consumed = consumed;
        }
        self.next.wrapping_sub(self.consumed)
    }

    /// Adds an entry, to be published later. False when the ring is full.
    #[inline]
    pub(crate) fn push(&mut self, value: T) -> bool {
        let len = self.ring.len;
        if self.next.wrapping_sub(self.consumed) >= len && self.used() >= len {
            return false;
        }
        self.ring.write(self.next, value);
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the kernel what was added.
    pub(crate) fn publish(&mut self) {
        // SYNC POINT: entry handed over, ours to the kernel's. Release: entries come before the number (smp_load_acquire in
        // __xskq_cons_peek), and so do our last accesses to the buffers that they name.
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Overwrites all entries that the kernel has not read. It must not be reading: only while it reads at nobody's call
    /// but ours.
    pub(crate) fn overwrite(&mut self, value: T) {
        for back in 1..=self.used() {
            self.ring.write(self.next.wrapping_sub(back), value);
        }
    }

    /// Whether the kernel wants a system call to go on.
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// A ring that the kernel fills: receive, completion.
#[derive(Debug)]
pub(crate) struct Consuming<T> {
    ring: Ring<T>,
    /// Number of the entry to be read next.
    next: u32,
}

impl<T: Entry> Consuming<T> {
    /// See [`Ring::map`].
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        page: libc::off_t,
        offset: &libc::xdp_ring_offset,
        len: u32,
    ) -> io::Result<Consuming<T>> {
        let ring = Ring::map(fd, page, offset, len)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        Ok(Consuming { ring, next })
    }

    /// The kernel's number: entries that it has ever written, modulo 2^32.
    pub(crate) fn produced(&self) -> u32 {
        // SYNC POINT: entry handed over, the kernel's to ours. Acquire: entries, and the buffers that they name, were written
        // before the number (smp_store_release in __xskq_prod_submit).
        self.ring.producer().load(Ordering::Acquire)
    }

    /// Entries that can be read; none when the kernel's number makes no sense.
    #[inline]
    pub(crate) fn available(&self) -> u32 {
        let available = self.produced().wrapping_sub(self.next);
        if available > self.ring.len {
            return 0;
        }
        available
    }

    /// The next entry. Only so often as [`Consuming::available`] said.
    #[inline]
    pub(crate) fn pop(&mut self) -> T {
        let value = self.ring.read(self.next);
        self.next = self.next.wrapping_add(1);
        value
    }

    /// Gives the entries that were read back to the kernel.
    pub(crate) fn release(&mut self) {
        // SYNC POINT: entry freed, ours to the kernel's. Release: we have read before (smp_load_acquire in xskq_prod_nb_free).
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
