//! The XDP program that passes every frame on: `bpf/pass.bpf.c`.

use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::Xdp;

use crate::bpf::{self, LOAD};
use crate::{BpfLink, Error, LinkHook, LinkOrder};

/// XDP_FLAGS_DRV_MODE (`linux/if_link.h`): in the driver, or not at all.
const IN_THE_DRIVER: u32 = 1 << 2;

/// The program, loaded.
pub struct PassAll {
    ebpf: Ebpf,
    name: &'static str,
}

impl std::fmt::Debug for PassAll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassAll")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl PassAll {
    /// Loads it: for frames in several pieces, where the kernel knows such (Linux 5.18).
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_BPF, CAP_NET_ADMIN), [`Error::System`].
    pub fn load() -> Result<PassAll, Error> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pass.bpf.o"));
        let mut ebpf = bpf::load(object, None, LOAD)?;
        let mut refused = None;
        for name in ["fluxcap_pass", "fluxcap_pass_1"] {
            let program: &mut Xdp = bpf::program(&mut ebpf, name)?;
            match program.load() {
                Ok(()) => return Ok(PassAll { ebpf, name }),
                Err(error) => refused = Some(error),
            }
        }
        Err(match refused {
            Some(error) => bpf::failed("load an XDP program", LOAD)(error),
            None => Error::system("load an XDP program", std::io::ErrorKind::NotFound.into()),
        })
    }

    /// Attaches it in the driver of an interface; it stays as long as somebody holds the link.
    ///
    /// # Errors
    /// [`Error::Permission`]; [`Error::Interface`]: EBUSY or EEXIST when the interface has a program, ERANGE when frames of a veth's other
    /// end may be too long, ENOSPC when a veth has fewer receive queues than its other end has transmit queues, EOPNOTSUPP when the driver
    /// runs no programs.
    pub fn attach(&mut self, ifindex: u32) -> Result<BpfLink, Error> {
        let program: &mut Xdp = bpf::program(&mut self.ebpf, self.name)?;
        let fd = program
            .fd()
            .map_err(bpf::failed("use an XDP program", LOAD))?;
        let hook = LinkHook::Xdp(IN_THE_DRIVER);
        BpfLink::attach(fd.as_fd(), ifindex, hook, LinkOrder::Last)
    }
}
