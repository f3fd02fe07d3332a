//! Memory that is shared with the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;

/// Shared memory: what a descriptor offers (the ring of a socket, the value of an array map), or pages of our own that the kernel
/// is told of. Unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is not bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes.
    pub(crate) fn of_fd(fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapping> {
        Mapping::of_fd_at(fd, 0, len)
    }

    /// Maps `len` bytes from `offset` on, which says what is wanted of some sockets.
    pub(crate) fn of_fd_at(
        fd: BorrowedFd<'_>,
        offset: libc::off_t,
        len: usize,
    ) -> io::Result<Mapping> {
        Mapping::new(libc::MAP_SHARED, fd.as_raw_fd(), offset, len)
    }

    /// New pages of zeros.
    pub(crate) fn anonymous(len: usize) -> io::Result<Mapping> {
        Mapping::new(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0, len)
    }

    fn new(flags: i32, fd: RawFd, offset: libc::off_t, len: usize) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping { start, len })
    }

    /// The address of `offset`; `None` when `len` bytes from there are not all mapped.
    pub(crate) fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        // SAFETY: offset <= end <= self.len, so the address is within the mapping.
        (end <= self.len).then(|| unsafe { self.start.add(offset) })
    }

    /// Bytes that are mapped.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and len are those of the mapping, and nothing borrows from it any more.
        // An error would mean that they are not; there is nothing to do about it here.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
