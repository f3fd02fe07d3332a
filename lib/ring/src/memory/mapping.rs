//! A file mapped into memory; the only owner of raw addresses.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::copy;
use super::sigbus::Guard;

/// A shared mapping of a file whose tail, `ring` bytes long, is mapped a second time right behind itself.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The reserved address range.
    reserved: NonNull<u8>,
    reserved_len: usize,
    /// First byte of the file within it.
    base: NonNull<u8>,
    /// Bytes from `base` on that are mapped.
    len: usize,
    /// Where the doubled tail begins.
    ring_at: usize,
    ring: usize,
    /// Dropped before the range is unmapped.
    guard: Option<Guard>,
}

// SAFETY: the mapping is plain memory that belongs to no thread; all access goes through atomics
// or through copies that tolerate concurrent writes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file_len` bytes of `file`, on pages of `unit` bytes, and its last `ring` bytes twice.
    pub(crate) fn new(
        file: impl AsFd,
        file_len: u64,
        ring: u64,
        unit: u64,
        writable: bool,
    ) -> io::Result<Self> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let file_len = usize::try_from(file_len).map_err(too_large)?;
        let ring = usize::try_from(ring).map_err(too_large)?;
        let unit = usize::try_from(unit).map_err(too_large)?;
        if ring > file_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = file_len + ring;
        // Huge pages must lie on their own boundaries, so reserve one more and align by hand.
        let reserved_len = len + unit;
        // SAFETY: a new private mapping without access at an address of the kernel's choice.
        let reserved = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                reserved_len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let padding = reserved.as_ptr().align_offset(unit);
        // SAFETY: `padding` is less than `unit`, which the reservation includes.
        let base = unsafe { reserved.add(padding) };
        let mut mapping = Self {
            reserved,
            reserved_len,
            base,
            len,
            ring_at: file_len - ring,
            ring,
            guard: None,
        };
        mapping.place(&file, 0, 0, file_len, writable)?;
        if ring > 0 {
            mapping.place(&file, file_len, file_len - ring, ring, writable)?;
        }
        mapping.guard = Some(Guard::new(base.as_ptr() as usize, len));
        Ok(mapping)
    }

    /// Whether the file was cut short and the memory is gone.
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::poisoned)
    }

    /// Maps `len` bytes of the file from `offset` on over the reservation at `at`.
    fn place(
        &self,
        file: impl AsFd,
        at: usize,
        offset: usize,
        len: usize,
        writable: bool,
    ) -> io::Result<()> {
        let protection = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: MAP_FIXED replaces pages of our own reservation only: at + len <= self.len, and
        // nothing refers to them yet.
        unsafe {
            mmap(
                self.base.as_ptr().add(at).cast(),
                len,
                protection,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                offset as u64,
            )?;
        }
        Ok(())
    }

    /// Makes the kernel provide every page of the file now, writable. Tells `progress` of each step, and ends early when that says so.
    pub(crate) fn populate(&self, progress: impl Fn(u64) -> bool) -> io::Result<()> {
        let len = self.ring_at + self.ring;
        // In steps, so that a shortage or a change of mind is noticed early.
        const STEP: usize = 64 << 20;
        for at in (0..len).step_by(STEP) {
            let step = STEP.min(len - at);
            // SAFETY: the range lies within the mapping; populating changes no content.
            let done = unsafe {
                rustix::mm::madvise(
                    self.base.as_ptr().add(at).cast(),
                    step,
                    rustix::mm::Advice::LinuxPopulateWrite,
                )
            };
            match done {
                // A kernel before 5.14: touch the pages by hand.
                Err(rustix::io::Errno::INVAL) => self.touch(at, step),
                other => other?,
            }
            if !progress(step as u64) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    }

    fn touch(&self, at: usize, len: usize) {
        for at in (at..at + len).step_by(4096) {
            self.word(at as u64).fetch_add(0, Ordering::Relaxed);
        }
    }

    /// The word at byte offset `at`.
    ///
    /// Offsets come from the layout, never from shared memory; one outside of the mapping is a
    /// defect of this crate and ends the program rather than touch foreign memory.
    #[inline]
    pub(crate) fn word(&self, at: u64) -> &AtomicU64 {
        let at = self.checked(at, 8);
        // SAFETY: `checked` proved that eight aligned bytes lie within the mapping, which lives
        // as long as `self`. Everybody accesses them atomically.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    /// The low half of the word at `at`, which the futex system call uses.
    pub(crate) fn low_half(&self, at: u64) -> &AtomicU32 {
        let at = self.checked(at, 8) + if cfg!(target_endian = "big") { 4 } else { 0 };
        // SAFETY: as for `word`. Only the kernel accesses the half by itself.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    /// Address of `len` bytes at `at`, for an object that accesses them atomically.
    pub(crate) fn address(&self, at: u64, len: usize) -> *mut u8 {
        let at = self.checked(at, len);
        // SAFETY: within the mapping.
        unsafe { self.base.as_ptr().add(at) }
    }

    #[inline]
    fn checked(&self, at: u64, len: usize) -> usize {
        let fits =
            at.is_multiple_of(8) && at <= self.len as u64 && self.len as u64 - at >= len as u64;
        assert!(fits, "offset {at} lies outside of the mapping");
        // Cannot be cut off: not more than `self.len`.
        usize::try_from(at).unwrap_or(0)
    }

    /// Value of a word that has one writer.
    pub(crate) fn get(&self, at: u64) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    /// Sets a word that has one writer.
    pub(crate) fn set(&self, at: u64, value: u64) {
        self.word(at).store(value, Ordering::Relaxed);
    }

    /// Adds to a word that has one writer; cheaper than an atomic addition.
    pub(crate) fn bump(&self, at: u64, by: u64) {
        let word = self.word(at);
        word.store(
            word.load(Ordering::Relaxed).wrapping_add(by),
            Ordering::Relaxed,
        );
    }

    /// Writes a record at `offset` of the doubled tail; nothing when it does not fit.
    #[inline]
    pub(crate) fn write_record(&self, offset: u64, head: &[u64], pieces: &[&[u8]]) {
        let bytes = pieces
            .iter()
            .fold(size_of_val(head), |sum, p| sum.saturating_add(p.len()));
        if let Some(at) = self.in_ring(offset, bytes) {
            // SAFETY: `in_ring` proved that the bytes, rounded up to 16, lie within the two images of
            // the tail; the offset is a multiple of 16 and the tail begins on a page.
            unsafe { copy::write_record(self.base.as_ptr().add(at), head, pieces) };
        }
    }

    /// Copies words from `offset` of the doubled tail; zeroes when they do not lie there.
    #[inline]
    pub(crate) fn read_words(&self, offset: u64, into: &mut [u64]) {
        match self.in_ring(offset, size_of_val(into)) {
            // SAFETY: `in_ring` proved that the words lie within the two images of the tail.
            Some(at) => unsafe { copy::read_words(self.base.as_ptr().add(at), into) },
            None => into.fill(0),
        }
    }

    #[inline]
    fn in_ring(&self, offset: u64, bytes: usize) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        let fits = offset.is_multiple_of(16)
            && offset < self.ring
            && bytes <= self.ring
            && bytes.next_multiple_of(16) <= 2 * self.ring - offset;
        fits.then_some(self.ring_at + offset)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the range was reserved by `new` and is unmapped once; references into it
        // borrow `self` and are gone.
        let unmapped = unsafe { munmap(self.reserved.as_ptr().cast(), self.reserved_len) };
        debug_assert!(unmapped.is_ok());
    }
}
