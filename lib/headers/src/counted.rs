//! Classic BPF programs that refuse no frame without a trace.
//!
//! The kernel drops frames for which a socket's program returns 0, and counts them nowhere. So what a filter refuses is let through with one byte:
//! whoever reads the socket counts it, and nobody takes it for a frame, because none is that short. A program also returns 0 when it
//! loads something from behind the end of the frame: here each such load is preceded by a look at the length.

use crate::bpf::{Instruction, code};

/// What the program returns for frames that the filter refuses: the number of bytes that the kernel keeps.
pub const REFUSED: u32 = 1;

/// Bytes that every frame has that the kernel hands to a socket.
const LINK_HEADER: u32 = 14;

const LOAD_LENGTH: Instruction = plain(code::LD | code::W | code::LEN, 0);
const REFUSE: Instruction = plain(code::RET, REFUSED);
const TO_X: Instruction = plain(code::MISC, 0);
const FROM_X: Instruction = plain(code::MISC | code::TXA, 0);

/// The program with marks in the place of refusals. `None` when that cannot be: it is then too long, or divides by what may be 0.
pub(crate) fn counted(program: &[Instruction]) -> Option<Vec<Instruction>> {
    let mut lengths = vec![u32::MAX; program.len()];
    *lengths.first_mut()? = LINK_HEADER;
    let mut marked: Vec<Instruction> = Vec::with_capacity(program.len() * 2);
    // Where each instruction has come to lie, and the jumps with the place that each was at.
    let (mut places, mut jumps) = (Vec::with_capacity(program.len()), Vec::new());
    for (index, instruction) in program.iter().enumerate() {
        places.push(marked.len());
        let mut length = lengths[index];
        match instruction.code & 0x07 {
            code::LD | code::LDX => {
                if let Some(end) = guard(instruction, length, &mut marked) {
                    length = length.max(end);
                }
            }
            code::RET if instruction.code & 0x18 != 0 => return None,
            code::RET if instruction.k == 0 => {
                marked.push(REFUSE);
                continue;
            }
            code::ALU if may_divide_by_zero(instruction) => return None,
            code::JMP => jumps.push((index, marked.len())),
            _ => {}
        }
        marked.push(*instruction);
        for next in successors(index, instruction) {
            let known = lengths.get_mut(next)?;
            *known = length.min(*known);
        }
    }
    for (index, place) in jumps {
        let target = |offset: usize| {
            let to = *places.get(index.checked_add(1)?.checked_add(offset)?)?;
            to.checked_sub(place + 1)
        };
        let instruction = marked.get_mut(place)?;
        if instruction.code & 0xf0 == code::JA {
            instruction.k = u32::try_from(target(usize::try_from(instruction.k).ok()?)?).ok()?;
        } else {
            instruction.jt = u8::try_from(target(instruction.jt.into())?).ok()?;
            instruction.jf = u8::try_from(target(instruction.jf.into())?).ok()?;
        }
    }
    Some(marked)
}

/// Puts a look at the length in front of a load, unless it is known to be within `length` bytes; how many there are behind it.
fn guard(i: &Instruction, length: u32, marked: &mut Vec<Instruction>) -> Option<u32> {
    let size = match (i.code & 0x07, i.code & 0x18) {
        (code::LDX, _) => 1, // the header length of IPv4
        (_, code::W) => 4,
        (_, code::H) => 2,
        _ => 1,
    };
    let end = i.k.saturating_add(size);
    let at_least = |k| jump(0x30, k);
    match i.code & 0xe0 {
        // What is no place in the frame can always be loaded.
        code::ABS | code::MSH if i.k >= crate::filter::OUTSIDE_FRAME || end <= length => None,
        code::ABS => {
            marked.extend([LOAD_LENGTH, at_least(end), REFUSE]);
            Some(end)
        }
        code::MSH => {
            // X is about to be replaced: it keeps A meanwhile.
            marked.extend([TO_X, LOAD_LENGTH, at_least(end), REFUSE, FROM_X]);
            Some(end)
        }
        code::IND => {
            let behind = plain(code::ALU | 0x10, end);
            let index = jump(0x30 | code::X, 0);
            marked.extend([LOAD_LENGTH, at_least(end), REFUSE, behind, index, REFUSE]);
            Some(end)
        }
        _ => None,
    }
}

/// Skips the next instruction when A compares like this.
fn jump(compare: u16, k: u32) -> Instruction {
    Instruction {
        code: code::JMP | compare,
        jt: 1,
        jf: 0,
        k,
    }
}

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn may_divide_by_zero(i: &Instruction) -> bool {
    let divides = matches!(i.code & 0xf0, code::DIV | code::MOD);
    divides && (i.code & code::X != 0 || i.k == 0)
}

/// Where an instruction leads; jumps only go forward.
fn successors(index: usize, i: &Instruction) -> impl Iterator<Item = usize> {
    let next = index + 1;
    let (one, other) = match i.code & 0x07 {
        code::RET => (None, None),
        code::JMP if i.code & 0xf0 == code::JA => (
            next.checked_add(usize::try_from(i.k).unwrap_or(usize::MAX)),
            None,
        ),
        code::JMP => (
            Some(next + usize::from(i.jt)),
            Some(next + usize::from(i.jf)),
        ),
        _ => (Some(next), None),
    };
    one.into_iter().chain(other)
}
