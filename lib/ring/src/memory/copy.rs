//! Copies between private and shared memory.
//!
//! Another process may write the shared side at the same time. A plain `memcpy` would then be a data
//! race, which is undefined behaviour in Rust even when the result is thrown away. So
//! every access to shared bytes here is an instruction that the compiler cannot see into (x86-64), or
//! a relaxed atomic word (elsewhere).

use std::sync::atomic::{AtomicU64, Ordering};

/// Copies at least this long use `rep movsb`.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 64 << 10;

/// Copies private bytes into shared memory.
///
/// # Safety
/// `to` is valid for writes of `head` and all `pieces`, rounded up to 16 bytes, and aligned to 16.
#[inline]
pub(crate) unsafe fn write_record(to: *mut u8, head: &[u64], pieces: &[&[u8]]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the destination has room for head and pieces and is aligned for the words, which
    // everybody accesses atomically; each source is a live slice.
    unsafe {
        // Word by word: the head has just been made in registers, wider loads would wait for it.
        for (i, &word) in head.iter().enumerate() {
            AtomicU64::from_ptr(to.cast::<u64>().add(i)).store(word, Ordering::Relaxed);
        }
        let mut to = to.add(size_of_val(head));
        for piece in pieces {
            copy_bytes(to, piece.as_ptr(), piece.len());
            to = to.add(piece.len());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let mut to = to.cast::<u64>();
        crate::protocol::pack(head, pieces, |word| {
            // SAFETY: `to` stays within the rounded-up length, is aligned to 8, and is only
            // accessed atomically by everybody.
            unsafe {
                AtomicU64::from_ptr(to).store(word, Ordering::Relaxed);
                to = to.add(1);
            }
        });
    }
}

/// Copies shared words into private memory.
///
/// # Safety
/// `from` is valid for reads of `into.len()` words and aligned to 8.
#[inline]
pub(crate) unsafe fn read_words(from: *const u8, into: &mut [u64]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the source is valid for that many bytes, the destination is a live slice.
    unsafe {
        copy_bytes(into.as_mut_ptr().cast(), from, size_of_val(into));
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (i, word) in into.iter_mut().enumerate() {
        // SAFETY: within the source, aligned, and only accessed atomically by everybody.
        *word = unsafe {
            AtomicU64::from_ptr(from.cast::<u64>().cast_mut().add(i)).load(Ordering::Relaxed)
        };
    }
}

/// Copies `len` bytes with instructions that the compiler cannot see into.
///
/// # Safety
/// `to` is valid for writes and `from` for reads of `len` bytes; they do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_bytes(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: every access below is within `len` bytes of the pointers, which the caller vouches
    // for; the steps overlap at the end instead of running over it.
    unsafe {
        match len {
            LONG.. => copy_string(to, from, len),
            256.. if std::arch::is_x86_feature_detected!("avx") => {
                let wide = len & !127;
                copy_wide(to, from, wide);
                if wide < len {
                    copy_64(to.add(len - 64), from.add(len - 64));
                    copy_64(to.add(len - 128), from.add(len - 128));
                }
            }
            64.. => {
                let mut at = 0;
                while at + 64 <= len {
                    copy_64(to.add(at), from.add(at));
                    at += 64;
                }
                if at < len {
                    copy_64(to.add(len - 64), from.add(len - 64));
                }
            }
            16.. => {
                let mut at = 0;
                while at + 16 <= len {
                    copy_16(to.add(at), from.add(at));
                    at += 16;
                }
                if at < len {
                    copy_16(to.add(len - 16), from.add(len - 16));
                }
            }
            8.. => {
                copy_8(to, from);
                copy_8(to.add(len - 8), from.add(len - 8));
            }
            _ => {
                for at in 0..len {
                    copy_1(to.add(at), from.add(at));
                }
            }
        }
    }
}

/// # Safety
/// As [`copy_bytes`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_string(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: copies `len` bytes forward; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// As [`copy_bytes`], with a length that is a multiple of 128 and not 0, on a processor with AVX.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_wide(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: reads and writes 128 bytes in each of len / 128 rounds. The upper halves of the
    // registers, which the compiler does not know of, are cleared in the end.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu ymm0, [{s}]",
            "vmovdqu ymm1, [{s} + 32]",
            "vmovdqu ymm2, [{s} + 64]",
            "vmovdqu ymm3, [{s} + 96]",
            "vmovdqu [{t}], ymm0",
            "vmovdqu [{t} + 32], ymm1",
            "vmovdqu [{t} + 64], ymm2",
            "vmovdqu [{t} + 96], ymm3",
            "add {s}, 128",
            "add {t}, 128",
            "sub {n}, 128",
            "jnz 2b",
            "vzeroupper",
            s = inout(reg) from => _, t = inout(reg) to => _, n = inout(reg) len => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            options(nostack)
        );
    }
}

/// # Safety
/// As [`copy_bytes`] with 64 bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_64(to: *mut u8, from: *const u8) {
    // SAFETY: reads and writes 64 bytes. SSE2 belongs to every x86-64.
    unsafe {
        std::arch::asm!(
            "movdqu {a}, [{s}]",
            "movdqu {b}, [{s} + 16]",
            "movdqu {c}, [{s} + 32]",
            "movdqu {d}, [{s} + 48]",
            "movdqu [{t}], {a}",
            "movdqu [{t} + 16], {b}",
            "movdqu [{t} + 32], {c}",
            "movdqu [{t} + 48], {d}",
            s = in(reg) from, t = in(reg) to,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// As [`copy_bytes`] with 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_16(to: *mut u8, from: *const u8) {
    // SAFETY: reads and writes 16 bytes.
    unsafe {
        std::arch::asm!(
            "movdqu {a}, [{s}]",
            "movdqu [{t}], {a}",
            s = in(reg) from, t = in(reg) to, a = out(xmm_reg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// As [`copy_bytes`] with 8 bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_8(to: *mut u8, from: *const u8) {
    // SAFETY: reads and writes 8 bytes.
    unsafe {
        std::arch::asm!(
            "mov {a}, [{s}]",
            "mov [{t}], {a}",
            s = in(reg) from, t = in(reg) to, a = out(reg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// As [`copy_bytes`] with one byte.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_1(to: *mut u8, from: *const u8) {
    // SAFETY: reads and writes one byte.
    unsafe {
        std::arch::asm!(
            "mov {a}, byte ptr [{s}]",
            "mov byte ptr [{t}], {a}",
            s = in(reg) from, t = in(reg) to, a = out(reg_byte) _,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_is_copied_exactly() {
        let source: Vec<u8> = (0..2000u32).map(|i| (i * 7 % 251) as u8).collect();
        for len in (0..700).chain([1024, 1514, 1900]) {
            for skew in [0, 1, 7, 13] {
                let pieces = [
                    &source[skew..skew + len / 3],
                    &source[skew + len / 3..skew + len],
                ];
                let mut to = vec![0u128; 160];
                let head = [0x0101_0101_0101_0101, 2];
                // SAFETY: `to` is aligned to 16 and longer than head and pieces.
                unsafe { write_record(to.as_mut_ptr().cast(), &head, &pieces) };
                let mut back = vec![0u64; 2 + len.div_ceil(8)];
                // SAFETY: `to` is aligned and longer than `back`.
                unsafe { read_words(to.as_ptr().cast(), &mut back) };
                let bytes: Vec<u8> = back.iter().flat_map(|w| w.to_ne_bytes()).collect();
                assert_eq!(back[..2], head);
                assert_eq!(
                    bytes[16..16 + len],
                    source[skew..skew + len],
                    "len {len} skew {skew}"
                );
            }
        }
    }
}
