//! Waiting for several descriptors at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::Error;

/// Most descriptors in one [`poll`].
pub const MAX_POLL: usize = 640;
/// Of which there are usually no more than so many.
const FEW: usize = 64;

/// Which descriptors have something to say, by their place in the call; of the first 64 each, of all others together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    readable: u64,
    failed: u64,
    /// One of those that come after the first 64.
    others: bool,
}

impl Ready {
    /// Whether there is something to read.
    #[inline]
    pub fn readable(self, index: usize) -> bool {
        bit(self.readable, index)
    }

    /// Whether the descriptor reports an error or a hang-up.
    #[inline]
    pub fn failed(self, index: usize) -> bool {
        bit(self.failed, index)
    }

    /// Whether the time passed, or a signal came, with nothing to report.
    pub fn is_empty(self) -> bool {
        self.readable | self.failed == 0 && !self.others
    }

    /// Whether a descriptor from the place `index` on reports an error or a hang-up, or may do so.
    pub fn any_failed_from(self, index: usize) -> bool {
        let mask = u32::try_from(index)
            .ok()
            .and_then(|index| u64::MAX.checked_shl(index));
        self.failed & mask.unwrap_or(0) != 0 || self.others
    }
}

/// Waits until one of `fds` is readable or failed, or `timeout` has passed. A signal ends the wait early.
///
/// # Errors
/// [`Error::Option`] for more than [`MAX_POLL`] descriptors; [`Error::System`] if the system has no memory.
pub fn poll(fds: &[BorrowedFd<'_>], timeout: Duration) -> Result<Ready, Error> {
    if fds.len() <= FEW {
        return poll_among(&mut [UNUSED; FEW], fds, timeout);
    }
    if fds.len() > MAX_POLL {
        return Err(Error::Option {
            option: "number of descriptors to wait for",
            value: fds.len() as u64,
            advice: "use at most 640",
        });
    }
    poll_among(&mut [UNUSED; MAX_POLL], fds, timeout)
}

/// The same with room for that many.
fn poll_among(
    entries: &mut [libc::pollfd],
    fds: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<Ready, Error> {
    for (entry, fd) in entries.iter_mut().zip(fds) {
        entry.fd = fd.as_raw_fd();
    }
    wait(&mut entries[..fds.len()], timeout).map_err(|source| Error::system("poll", source))?;
    let mut ready = Ready::default();
    let entries = entries.get(..fds.len()).unwrap_or_default();
    let (first, others) = entries.split_at(entries.len().min(FEW));
    ready.others = others.iter().any(|entry| entry.revents != 0);
    for (index, entry) in first.iter().enumerate() {
        if entry.revents & libc::POLLIN != 0 {
            ready.readable |= 1 << index;
        }
        if entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
            ready.failed |= 1 << index;
        }
    }
    Ok(ready)
}

fn wait(entries: &mut [libc::pollfd], timeout: Duration) -> io::Result<()> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: entries and timeout are valid for the call; no signal mask is given.
    let result = unsafe {
        libc::ppoll(
            entries.as_mut_ptr(),
            entries.len() as libc::nfds_t,
            &timeout,
            std::ptr::null(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        // The system leaves the results undefined then.
        entries.iter_mut().for_each(|entry| entry.revents = 0);
    }
    Ok(())
}

#[inline]
fn bit(bits: u64, index: usize) -> bool {
    u32::try_from(index)
        .ok()
        .and_then(|index| bits.checked_shr(index))
        .is_some_and(|bits| bits & 1 != 0)
}

const UNUSED: libc::pollfd = libc::pollfd {
    fd: -1,
    events: libc::POLLIN,
    revents: 0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_descriptors_with_something_to_say_are_reported() {
        let (quiet, _keep) = UnixStream::pair().unwrap();
        let (readable, mut writer) = UnixStream::pair().unwrap();
        let (closed, other_end) = UnixStream::pair().unwrap();
        writer.write_all(b"x").unwrap();
        drop(other_end);
        let fds = [quiet.as_fd(), readable.as_fd(), closed.as_fd()];
        let ready = poll(&fds, Duration::from_secs(5)).unwrap();
        assert!(!ready.readable(0) && ready.readable(1) && ready.failed(2));
        assert!(!ready.failed(0) && !ready.failed(1) && !ready.readable(64));
        assert!(
            poll(&fds[..1], Duration::from_micros(200))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn more_descriptors_than_fit_are_refused() {
        let (a, _b) = UnixStream::pair().unwrap();
        let ready = poll(&[a.as_fd(); FEW + 1], Duration::ZERO).unwrap();
        assert!(ready.is_empty());
        let fds = [a.as_fd(); MAX_POLL + 1];
        assert!(matches!(
            poll(&fds, Duration::ZERO),
            Err(Error::Option { .. })
        ));
    }
}
