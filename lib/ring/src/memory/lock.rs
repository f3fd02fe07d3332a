//! Liveness by file locks: the kernel frees them when a process dies, however it dies.
//!
//! Open-file-description locks (fcntl(2), `F_OFD_SETLK`) on single bytes of the readers file. They
//! belong to the descriptor that took them, not to the process, so threads of one process are
//! told apart, and closing some other descriptor of the file frees nothing.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Byte that the producer locks.
pub(crate) const PRODUCER: u64 = 0;
/// Byte that the consumer in slot 0 locks.
pub(crate) const SLOT_0: u64 = 16;

/// Tries to lock one byte for writing. False when somebody else holds it.
pub(crate) fn try_lock(file: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK, libc::F_WRLCK, byte) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Frees a byte.
pub(crate) fn unlock(file: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    control(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(|_| ())
}

/// Whether another descriptor holds the byte.
pub(crate) fn held_by_other(file: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let found = control(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "lock types and SEEK_SET are 0 to 2"
)]
fn control(
    file: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    byte: u64,
) -> io::Result<libc::flock> {
    let start = libc::off_t::try_from(byte).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open for the length of the borrow; `lock` is a valid flock that
        // the kernel reads and, for F_OFD_GETLK, overwrites.
        let rc = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
        if rc == 0 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
