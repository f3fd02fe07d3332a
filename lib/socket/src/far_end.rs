//! What the other end of a veth does with frames that come to it, told from this end: the other one may be in a network namespace that
//! nobody here can look into.

use crate::{Error, Features, Link, XdpFeatures};

/// How the other end of a veth takes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FarEnd {
    /// As socket buffers only.
    Plain,
    /// GRO is on there, and no XDP program: it takes redirected frames, and its host joins frames of a flow before a sensor sees them.
    Gro,
    /// It has a native XDP program, and takes redirected frames.
    Program,
}

impl FarEnd {
    /// Of an interface of this network namespace; `None` when it is no veth, or the kernel does not tell (before 6.3).
    ///
    /// # Errors
    /// [`Error::System`] when the interface is gone.
    pub fn of(link: &Link) -> Result<Option<FarEnd>, Error> {
        if link.kind != "veth" {
            return Ok(None);
        }
        let Some(xdp) = XdpFeatures::of(link.index)? else {
            return Ok(None);
        };
        if !xdp.takes_redirected() {
            return Ok(Some(FarEnd::Plain));
        }
        // While a program is attached there, this end may not hand over frames that are not cut yet (`veth_xdp_set`).
        let features = Features::of(link.index)?;
        let cuts = features.map(|features| features.get("tx-tcp-segmentation").changeable);
        Ok(cuts.map(|cuts| match cuts {
            true => FarEnd::Gro,
            false => FarEnd::Program,
        }))
    }
}
