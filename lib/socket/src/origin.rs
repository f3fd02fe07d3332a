//! By what frames that a ring was sent with are known again on this host: a value of the packet's mark.
//!
//! ```text
//!  31 30 29 28 27                    0
//!  |  |  |  |  from which ring (hash)
//!  |  |  |  from one of several rings
//!  |  |  sent from a ring
//!  |  copy of a mirror (mirrord's default)
//!  not ours
//! ```
//! A frame that leaves passes the taps of its interface, and so a capture or mirror of that interface gets what a transmit has sent there.
//! That is wanted, but for a copy that goes into the ring that the frame came from: it would be sent and copied again, for ever.
//! So each frame says from which ring it is, and who fills a ring refuses what is from there. Frames of a transmit with several rings are
//! refused by all rings: which of them it reads is not known from the mark.
//!
//! The mark stays with a frame on its way through the host: VLAN interfaces, bridges, veth within a network namespace, clones of
//! mirrors. It is lost on a wire, and in another namespace. Live frames and those of AF_XDP have none; they pass no tap.

use crate::SockFilter;

/// What is asked of a mark.
const MASK: u32 = 0x3fff_ffff;
const SENT: u32 = 1 << 29;
const SEVERAL: u32 = 1 << 28;

/// The ring that frames are from, as it stands in their mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin(u32);

impl Origin {
    /// Not told: nobody refuses such frames.
    pub const UNKNOWN: Origin = Origin(0);
    /// One of several rings.
    pub const SEVERAL: Origin = Origin(SENT | SEVERAL);
    /// Bytes that are kept of a frame that a socket refused for its origin, so that it can be counted. No frame is as short.
    pub const REFUSED_LEN: usize = 2;

    /// The ring of which this is a fingerprint; two have the same origin once in 2^28.
    pub fn ring(fingerprint: u64) -> Origin {
        let [a, b, c, d, ..] = fingerprint.to_le_bytes();
        Origin(SENT | u32::from_le_bytes([a, b, c, d]) & (SEVERAL - 1))
    }

    /// The packet's mark.
    pub fn mark(self) -> u32 {
        self.0
    }

    /// A filter for a socket that fills the ring of this origin: of frames that have it, or that are from several rings, it lets
    /// [`Origin::REFUSED_LEN`] bytes through, and to all others it applies `filter`, if there is one.
    pub fn refuse(self, filter: Option<&[SockFilter]>) -> Vec<SockFilter> {
        let step = |code, jt, jf, k| SockFilter { code, jt, jf, k };
        let mut program = vec![
            step(LOAD_WORD, 0, 0, SKF_AD_MARK),
            step(AND, 0, 0, MASK),
            step(JUMP_IF_EQUAL, 1, 0, self.0),
            step(JUMP_IF_EQUAL, 0, 1, Origin::SEVERAL.0),
            step(RETURN, 0, 0, 2),
        ];
        match filter {
            Some(filter) => program.extend_from_slice(filter),
            None => program.push(step(RETURN, 0, 0, u32::MAX)),
        }
        program
    }
}

/// BPF_LD | BPF_W | BPF_ABS
const LOAD_WORD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K
const AND: u16 = 0x54;
/// BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_EQUAL: u16 = 0x15;
/// BPF_RET | BPF_K
const RETURN: u16 = 0x06;
/// SKF_AD_OFF + SKF_AD_MARK of `linux/filter.h`
const SKF_AD_MARK: u32 = 0xffff_f000 + 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_apart_from_each_other_and_from_copies_of_mirrors() {
        let all = [
            Origin::ring(0),
            Origin::ring(1),
            Origin::ring(u64::MAX),
            Origin::SEVERAL,
            Origin::UNKNOWN,
        ];
        for (at, origin) in all.iter().enumerate() {
            assert!(!all[..at].contains(origin), "{origin:?}");
            assert_eq!(origin.mark() & !MASK, 0);
        }
        assert!(
            all[..4]
                .iter()
                .all(|origin| origin.mark() & MASK & SENT != 0)
        );
    }
}
