//! Classic BPF over a frame in pieces, after `bpf_filter` of libpcap.
//!
//! libpcap compiles; this runs. The frame never has to be made contiguous, lengths come from the wire,
//! and every program ends, because jumps only go forward.

/// One instruction of a classic BPF program, as in `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Constant.
    pub k: u32,
}

/// The fields of an instruction code (`linux/bpf_common.h`).
pub(crate) mod code {
    pub(crate) const LD: u16 = 0x00;
    pub(crate) const LDX: u16 = 0x01;
    pub(crate) const ST: u16 = 0x02;
    pub(crate) const STX: u16 = 0x03;
    pub(crate) const ALU: u16 = 0x04;
    pub(crate) const JMP: u16 = 0x05;
    pub(crate) const RET: u16 = 0x06;
    pub(crate) const MISC: u16 = 0x07;
    pub(crate) const W: u16 = 0x00;
    pub(crate) const H: u16 = 0x08;
    pub(crate) const B: u16 = 0x10;
    pub(crate) const IMM: u16 = 0x00;
    pub(crate) const ABS: u16 = 0x20;
    pub(crate) const IND: u16 = 0x40;
    pub(crate) const MEM: u16 = 0x60;
    pub(crate) const LEN: u16 = 0x80;
    pub(crate) const MSH: u16 = 0xa0;
    pub(crate) const X: u16 = 0x08;
    pub(crate) const A: u16 = 0x10;
    pub(crate) const DIV: u16 = 0x30;
    pub(crate) const LSH: u16 = 0x60;
    pub(crate) const RSH: u16 = 0x70;
    pub(crate) const NEG: u16 = 0x80;
    pub(crate) const MOD: u16 = 0x90;
    pub(crate) const XOR: u16 = 0xa0;
    pub(crate) const JA: u16 = 0x00;
    pub(crate) const JEQ: u16 = 0x10;
    pub(crate) const JSET: u16 = 0x40;
    pub(crate) const TXA: u16 = 0x80;
}

/// What a program sees: captured bytes in up to three pieces, and the length on the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) pieces: [&'a [u8]; 3],
    pub(crate) wire_len: u32,
}

impl View<'_> {
    /// `N` bytes at `offset`; `None` when they were not all captured.
    #[inline]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let [macs, tags, rest] = self.pieces;
        let offset = usize::try_from(offset).ok()?;
        // Nearly all loads are behind the MAC addresses and the tags.
        match offset.checked_sub(macs.len() + tags.len()) {
            Some(at) => rest.get(at..)?.first_chunk().copied(),
            None => self.load_in_front(offset),
        }
    }

    /// A load that begins in one of the first two pieces, and may end in a later one.
    #[cold]
    #[inline(never)]
    fn load_in_front<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let [macs, tags, rest] = self.pieces;
        if let Some(bytes) = macs.get(offset..).and_then(|bytes| bytes.first_chunk()) {
            return Some(*bytes);
        }
        let mut bytes = macs.iter().chain(tags).chain(rest).skip(offset);
        let mut loaded = [0; N];
        for slot in &mut loaded {
            *slot = *bytes.next()?;
        }
        Some(loaded)
    }

    /// A load of the size that the instruction asks for, extended to 32 bits.
    #[inline]
    fn sized(&self, size: u16, offset: u32) -> Option<u32> {
        match size {
            code::W => self.load(offset).map(u32::from_be_bytes),
            code::H => self.load(offset).map(|b| u32::from(u16::from_be_bytes(b))),
            code::B => self.load(offset).map(|[b]| u32::from(b)),
            _ => None,
        }
    }
}

/// The machine: accumulator, index register and scratch memory.
#[derive(Default)]
struct Machine {
    a: u32,
    x: u32,
    memory: [u32; 16],
}

/// Runs a program. `None`, as 0: a load outside of the frame, a division by zero, or an instruction
/// that is none; in all of these the frame does not match.
pub(crate) fn run(program: &[Instruction], view: &View<'_>) -> Option<u32> {
    const LOAD_HALF: u16 = code::LD | code::H | code::ABS;
    const LOAD_BYTE: u16 = code::LD | code::B | code::ABS;
    const LOAD_WORD: u16 = code::LD | code::W | code::ABS;
    const JUMP_EQUAL: u16 = code::JMP | code::JEQ;
    let mut machine = Machine::default();
    let mut rest = program.iter();
    loop {
        let i = rest.next()?;
        // The first arms are what filters mostly consist of, in the order of their frequency.
        let skip = match i.code {
            JUMP_EQUAL => usize::from(if machine.a == i.k { i.jt } else { i.jf }),
            LOAD_HALF => machine.set(view.load(i.k).map(|b| u16::from_be_bytes(b).into())?),
            LOAD_BYTE => machine.set(view.load(i.k).map(|[b]| b.into())?),
            LOAD_WORD => machine.set(view.load(i.k).map(u32::from_be_bytes)?),
            _ => match i.code & 0x07 {
                code::RET => return machine.result(i),
                code::JMP => machine.jump(i)?,
                _ => machine.step(i, view)?,
            },
        };
        if skip > 0 {
            rest.nth(skip - 1)?;
        }
    }
}

impl Machine {
    /// Sets the accumulator; skips nothing.
    #[inline]
    fn set(&mut self, value: u32) -> usize {
        self.a = value;
        0
    }

    /// Any instruction that neither jumps nor returns; skips nothing.
    fn step(&mut self, i: &Instruction, view: &View<'_>) -> Option<usize> {
        match i.code & 0x07 {
            code::LD => self.a = self.load(i, view)?,
            code::LDX => self.x = self.load_index(i, view)?,
            code::ST => *self.memory.get_mut(i.k as usize)? = self.a,
            code::STX => *self.memory.get_mut(i.k as usize)? = self.x,
            code::ALU => self.a = self.compute(i)?,
            code::MISC if i.code & code::TXA != 0 => self.a = self.x,
            _ => self.x = self.a,
        }
        Some(0)
    }

    #[inline]
    fn load(&self, i: &Instruction, view: &View<'_>) -> Option<u32> {
        match i.code & 0xe0 {
            code::ABS => view.sized(i.code & 0x18, i.k),
            code::IND => view.sized(i.code & 0x18, self.x.checked_add(i.k)?),
            code::IMM => Some(i.k),
            code::MEM => self.memory.get(i.k as usize).copied(),
            code::LEN => Some(view.wire_len),
            _ => None,
        }
    }

    #[inline]
    fn load_index(&self, i: &Instruction, view: &View<'_>) -> Option<u32> {
        match i.code & 0xe0 {
            // The header length of IPv4, for which this instruction was made.
            code::MSH => view.load(i.k).map(|[b]| u32::from(b & 0x0f) << 2),
            code::IMM => Some(i.k),
            code::MEM => self.memory.get(i.k as usize).copied(),
            code::LEN => Some(view.wire_len),
            _ => None,
        }
    }

    #[inline]
    fn compute(&self, i: &Instruction) -> Option<u32> {
        let operand = if i.code & code::X != 0 { self.x } else { i.k };
        Some(match i.code & 0xf0 {
            0x00 => self.a.wrapping_add(operand),
            0x10 => self.a.wrapping_sub(operand),
            0x20 => self.a.wrapping_mul(operand),
            code::DIV => self.a.checked_div(operand)?,
            0x40 => self.a | operand,
            0x50 => self.a & operand,
            code::LSH => self.a.checked_shl(operand).unwrap_or(0),
            code::RSH => self.a.checked_shr(operand).unwrap_or(0),
            code::NEG => self.a.wrapping_neg(),
            code::MOD => self.a.checked_rem(operand)?,
            code::XOR => self.a ^ operand,
            _ => return None,
        })
    }

    /// How many instructions to skip.
    #[inline]
    fn jump(&self, i: &Instruction) -> Option<usize> {
        let operand = if i.code & code::X != 0 { self.x } else { i.k };
        let holds = match i.code & 0xf0 {
            code::JA => return usize::try_from(i.k).ok(),
            code::JEQ => self.a == operand,
            0x20 => self.a > operand,
            0x30 => self.a >= operand,
            code::JSET => self.a & operand != 0,
            _ => return None,
        };
        Some(usize::from(if holds { i.jt } else { i.jf }))
    }

    #[inline]
    fn result(&self, i: &Instruction) -> Option<u32> {
        match i.code & 0x18 {
            0 => Some(i.k),
            code::X => Some(self.x),
            code::A => Some(self.a),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view<'a>(pieces: [&'a [u8]; 3]) -> View<'a> {
        let len = pieces.iter().map(|p| p.len()).sum::<usize>();
        View {
            pieces,
            wire_len: len as u32,
        }
    }

    proptest! {
        #[test]
        fn any_program_on_any_frame_ends_without_a_panic(
            program in proptest::collection::vec((0u16..0x100, any::<u8>(), any::<u8>(), prop_oneof![0u32..40, any::<u32>()]), 0..40),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            (a, b) in (0usize..40, 0usize..40),
        ) {
            let program: Vec<_> = program.into_iter()
                .map(|(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect();
            let (a, b) = (a.min(bytes.len()), b.min(bytes.len()));
            let (a, b) = (a.min(b), a.max(b));
            let whole = run(&program, &view([&bytes, &[], &[]]));
            let cut = run(&program, &view([&bytes[..a], &bytes[a..b], &bytes[b..]]));
            prop_assert_eq!(whole, cut);
        }
    }
}
