//! A TAP interface that nobody uses, for XDP programs to be attached to.
//!
//! Running an XDP program that is attached nowhere makes the kernel rewrite its XDP dispatcher, which takes 30 ms, at the
//! beginning and at the end of each run (`bpf_prog_change_xdp` in `kernel/bpf/dispatcher.c`). Attached somewhere, it stays in the
//! dispatcher. A TAP interface needs CAP_NET_ADMIN and `/dev/net/tun`, is down, and goes away with the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use crate::{Error, sys};

/// The name that the interface gets, with a number of the kernel's choice.
const NAME: &[u8] = b"fluxcap%d\0";

/// The interface; it exists as long as this value.
#[derive(Debug)]
pub(crate) struct Anchor {
    _tap: File,
    name: String,
}

/// `struct ifreq` with flags in its union.
#[repr(C)]
struct TapRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The rest of the union, which is as large as `struct ifmap`.
    padding: [u8; 22],
}

const _: () = assert!(size_of::<TapRequest>() >= size_of::<libc::ifreq>());

impl Anchor {
    /// Makes the interface in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_NET_ADMIN), [`Error::System`] when `/dev/net/tun` cannot be opened.
    pub(crate) fn new() -> Result<Anchor, Error> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Error::Permission {
                operation: "make a TAP interface",
                capability: "CAP_NET_ADMIN",
                source,
            },
            _ => Error::system("make a TAP interface", source),
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun");
        let tap = opened.map_err(|source| Error::system("open /dev/net/tun", source))?;
        let mut request = TapRequest {
            name: [0; libc::IFNAMSIZ],
            flags: libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap_or_default(),
            padding: [0; 22],
        };
        request.name[..NAME.len()].copy_from_slice(NAME);
        // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is at least as large as.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        sys::check(result).map_err(failed)?;
        let name = request.name.iter().take_while(|byte| **byte != 0);
        Ok(Anchor {
            _tap: tap,
            name: name.map(|byte| char::from(*byte)).collect(),
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}
