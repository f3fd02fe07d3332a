//! The memory that the frames of an AF_XDP socket are in: chunks of equal size, each at any time either ours or the kernel's.

use std::io;
use std::ptr::NonNull;

use crate::mapping::Mapping;

/// Chunks of anonymous memory.
#[derive(Debug)]
pub(crate) struct Umem {
    mapping: Mapping,
    /// Bytes of a chunk, a power of two.
    chunk: usize,
    /// One bit for each chunk: set while the kernel has it.
    lent: Box<[u64]>,
}

impl Umem {
    /// `count` chunks, all of them ours.
    pub(crate) fn new(chunk: usize, count: usize) -> io::Result<Umem> {
        let bytes = chunk
            .checked_mul(count)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Umem {
            mapping: Mapping::anonymous(bytes)?,
            chunk,
            lent: vec![0; count.div_ceil(64)].into(),
        })
    }

    /// As XDP_UMEM_REG wants it.
    pub(crate) fn registration(&self) -> libc::xdp_umem_reg {
        let start = self
            .mapping
            .at(0, 0)
            .map_or(0, |start| start.as_ptr().expose_provenance() as u64);
        libc::xdp_umem_reg {
            addr: start,
            len: self.mapping.len() as u64,
            chunk_size: u32::try_from(self.chunk).unwrap_or(0),
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        }
    }

    /// Where a chunk begins.
    pub(crate) fn addr(&self, chunk: u32) -> u64 {
        u64::from(chunk) * self.chunk as u64
    }

    /// Gives a chunk to the kernel.
    #[inline]
    pub(crate) fn lend(&mut self, chunk: u32) {
        if let Some(word) = self.lent.get_mut(chunk as usize / 64) {
            *word |= 1 << (chunk % 64);
        }
    }

    /// Takes a chunk back of which the kernel says that it has done with it: it contains `addr`, and `len` bytes from there
    /// on. `None` when there is no such chunk, or the kernel did not have it, or the bytes go beyond its end.
    #[inline]
    pub(crate) fn take_back(&mut self, addr: u64, len: u32) -> Option<u32> {
        let at = usize::try_from(addr).ok()?;
        let within = at & (self.chunk - 1);
        let chunk = at / self.chunk;
        let word = self.lent.get_mut(chunk / 64)?;
        let bit = 1_u64 << (chunk % 64);
        if *word & bit == 0 || within + len as usize > self.chunk {
            return None;
        }
        *word &= !bit;
        u32::try_from(chunk).ok()
    }

    /// The memory of a chunk that is ours; `offset` bytes from its begin, `len` of them.
    pub(crate) fn bytes(&self, chunk: u32, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.chunk {
            return None;
        }
        self.mapping.at(chunk as usize * self.chunk + offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_gives_back_only_what_it_was_given_and_only_once() {
        let mut umem = Umem::new(2048, 100).unwrap();
        assert_eq!(umem.take_back(0, 0), None);
        umem.lend(0);
        umem.lend(99);
        assert_eq!(umem.take_back(99 * 2048 + 256, 1792), Some(99));
        assert_eq!(umem.take_back(99 * 2048 + 256, 1792), None);
        assert_eq!(umem.take_back(256, 1793), None);
        assert_eq!(umem.take_back(100 * 2048, 1), None);
        assert_eq!(umem.take_back(1000 * 2048, 1), None);
        assert_eq!(umem.take_back(u64::MAX, u32::MAX), None);
        assert_eq!(umem.take_back(2047, 1), Some(0));
    }

    #[test]
    fn bytes_of_a_chunk_end_with_it() {
        let umem = Umem::new(4096, 4).unwrap();
        assert!(umem.bytes(3, 0, 4096).is_some());
        assert!(umem.bytes(3, 1, 4096).is_none());
        assert!(umem.bytes(4, 0, 1).is_none());
        assert!(umem.bytes(0, usize::MAX, 2).is_none());
        assert_eq!(umem.registration().len, 16384);
    }
}
