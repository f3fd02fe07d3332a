//! Classic BPF, which libpcap makes, as an eBPF program for traffic control.
//!
//! The kernel translates classic programs itself, but only for sockets. What this makes runs among other programs: it ends by a tail
//! call to one program for frames that match, and to another for those that do not.
//!
//! ```text
//!  registers  r6 the socket buffer    r7 A    r8 X    r9 how far the bytes behind the tags are from where the program looks
//!  stack      [ M, 64 | window, 16 | LEN, 8 | room for one load, 8 ]
//! ```
//!
//! The program sees frames as [`Filter::matches`](crate::Filter::matches) does: without any tags, or with all of them, the one that
//! the kernel holds apart included. The `window` has the bytes 8 to 23 of that view. Loads before it are from the same place in the
//! frame; loads behind it are `r9` bytes further on (tags to skip) or further in front (a tag that is not in the bytes). A load that
//! leaves the frame ends the program: no match.

mod assembler;

use crate::bpf::{Instruction, code};
use crate::filter::FilterVlan;
use assembler::{Assembler, Label, Reg, Size, Wide};

/// Where a translated filter goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailCalls {
    /// Descriptor of the array of programs (BPF_MAP_TYPE_PROG_ARRAY), in the process that loads the filter.
    pub programs: i32,
    /// Which of them goes on with frames that match.
    pub matched: u32,
    /// And with all others.
    pub refused: u32,
}

/// What the program returns when there is no program to go on: TC_ACT_UNSPEC, TCX_NEXT.
const NEXT: i32 = -1;

const SKB_LOAD_BYTES: i32 = 26;
const TAIL_CALL: i32 = 12;

/// Fields of `struct __sk_buff`.
mod skb {
    pub(super) const LEN: i16 = 0;
    pub(super) const VLAN_PRESENT: i16 = 20;
    pub(super) const VLAN_TCI: i16 = 24;
    pub(super) const VLAN_PROTO: i16 = 28;
}

const CONTEXT: Reg = Reg(6);
const A: Reg = Reg(7);
const X: Reg = Reg(8);
const SHIFT: Reg = Reg(9);
const FRAME: Reg = Reg(10);

/// Places on the stack.
const LOADED: i16 = -8;
const LEN: i16 = -16;
const WINDOW: i16 = -32;
const MEMORY: i16 = -96;

/// What of the view is in the window.
const WINDOW_START: u32 = 8;
const WINDOW_END: u32 = 24;
/// Where tags begin.
const MACS: u32 = 12;
/// From here on bytes are shifted, and never among the tag that is held apart.
const SHIFTED: u32 = 16;
/// Most inline tags that are looked through.
const TAGS: u32 = 4;

/// Translates a program. The error is the reason why that cannot be.
pub(crate) fn translate(
    program: &[Instruction],
    vlan: FilterVlan,
    calls: &TailCalls,
) -> Result<Vec<[u8; 8]>, &'static str> {
    let mut translator = Translator {
        asm: Assembler::default(),
        matched: Label::default(),
        refused: Label::default(),
        places: Vec::new(),
        vlan,
    };
    translator.matched = translator.asm.label();
    translator.refused = translator.asm.label();
    translator.places = program.iter().map(|_| translator.asm.label()).collect();
    translator.prologue(program);
    let reached = reachable(program).ok_or("it jumps out of itself")?;
    for (index, instruction) in program.iter().enumerate() {
        // The kernel refuses programs with instructions that are never reached.
        if reached.get(index) == Some(&true) {
            translator.asm.place(translator.places[index]);
            translator.instruction(index, instruction)?;
        }
    }
    translator.epilogue(calls);
    translator
        .asm
        .finish()
        .ok_or("it is too long; rules take thousands of networks and ports")
}

/// Which instructions can be reached. `None` when one lies outside.
fn reachable(program: &[Instruction]) -> Option<Vec<bool>> {
    let mut reached = vec![false; program.len()];
    *reached.first_mut()? = true;
    for (index, i) in program.iter().enumerate() {
        if !reached[index] {
            continue;
        }
        for next in successors(index, i) {
            *reached.get_mut(next)? = true;
        }
    }
    Some(reached)
}

/// Where an instruction leads. Jumps only go forward.
fn successors(index: usize, i: &Instruction) -> Vec<usize> {
    let next = index + 1;
    match i.code & 0x07 {
        code::RET => vec![],
        code::JMP if i.code & 0xf0 == code::JA => {
            vec![next.saturating_add(usize::try_from(i.k).unwrap_or(usize::MAX))]
        }
        code::JMP => vec![next + usize::from(i.jt), next + usize::from(i.jf)],
        _ if divides_by_zero(i) => vec![],
        _ => vec![next],
    }
}

/// A division by the constant 0, which ends the program.
fn divides_by_zero(i: &Instruction) -> bool {
    let divides = matches!(i.code & 0xf0, code::DIV | code::MOD);
    i.code & 0x07 == code::ALU && divides && i.code & code::X == 0 && i.k == 0
}

struct Translator {
    asm: Assembler,
    matched: Label,
    refused: Label,
    /// Of the classic instructions.
    places: Vec<Label>,
    vlan: FilterVlan,
}

impl Translator {
    /// Sets up registers, window and length.
    fn prologue(&mut self, program: &[Instruction]) {
        let asm = &mut self.asm;
        asm.copy(CONTEXT, Reg(1));
        for reg in [A, X, SHIFT] {
            asm.set(reg, 0);
        }
        if program.iter().any(uses_memory) {
            for slot in 0..8 {
                asm.store_zero(MEMORY + slot * 8);
            }
        }
        asm.load(Size::Word, Reg(0), CONTEXT, skb::LEN);
        asm.store(Size::Word, LEN, Reg(0));
        self.fill_window(WINDOW_START);
        match self.vlan {
            FilterVlan::Any => self.skip_tags(),
            FilterVlan::Exact => self.insert_tag(),
        }
    }

    /// Copies what the frame has for the window from the place `start` of the view on; what it has not is 0.
    fn fill_window(&mut self, start: u32) {
        let asm = &mut self.asm;
        let place = WINDOW + distance(start - WINDOW_START);
        let (done, whole) = (asm.label(), asm.label());
        for slot in (place..WINDOW + distance(WINDOW_END - WINDOW_START)).step_by(4) {
            asm.store_zero_word(slot);
        }
        let size = WINDOW_END - start;
        asm.load(Size::Word, Reg(4), FRAME, LEN);
        asm.jump_unless_more(Reg(4), start, done);
        asm.subtract(Reg(4), start);
        asm.jump_unless_more(Reg(4), size, whole);
        asm.set(Reg(4), size);
        asm.place(whole);
        asm.set(Reg(2), start);
        asm.wide_register(Wide::Add, Reg(2), SHIFT);
        asm.load_bytes(CONTEXT, place);
        asm.place(done);
    }

    /// Counts the tags at the front, and moves the window behind them.
    fn skip_tags(&mut self) {
        let (none, counted) = (self.asm.label(), self.asm.label());
        self.asm.load(Size::Word, Reg(0), FRAME, LEN);
        self.asm.jump_unless_more(Reg(0), MACS + 3, none);
        let first = WINDOW + distance(MACS - WINDOW_START);
        self.asm.load(Size::Half, Reg(0), FRAME, first);
        self.asm.jump_unless_tpid(Reg(0), none);
        for tag in 1..=TAGS {
            self.asm.set(SHIFT, tag * 4);
            if tag == TAGS {
                break;
            }
            self.asm.set(Reg(2), MACS + tag * 4);
            self.asm.set(Reg(4), 4);
            self.asm.load_bytes(CONTEXT, LOADED);
            self.asm.jump_if_not_zero(Reg(0), counted);
            self.asm.load(Size::Half, Reg(0), FRAME, LOADED);
            self.asm.jump_unless_tpid(Reg(0), counted);
        }
        self.asm.place(counted);
        self.asm.load(Size::Word, Reg(0), FRAME, LEN);
        self.asm.wide_register(Wide::Subtract, Reg(0), SHIFT);
        self.asm.store(Size::Word, LEN, Reg(0));
        self.fill_window(MACS);
        self.asm.place(none);
    }

    /// Puts the tag that is held apart, if there is one, into the window.
    fn insert_tag(&mut self) {
        let asm = &mut self.asm;
        let none = asm.label();
        let at = |offset: u32| WINDOW + distance(offset - WINDOW_START);
        asm.load(Size::Word, Reg(0), CONTEXT, skb::VLAN_PRESENT);
        asm.jump_if_zero(Reg(0), none);
        for offset in [MACS + 4, MACS] {
            asm.load(Size::Word, Reg(0), FRAME, at(offset));
            asm.store(Size::Word, at(offset + 4), Reg(0));
        }
        // In network byte order already.
        asm.load(Size::Word, Reg(0), CONTEXT, skb::VLAN_PROTO);
        asm.store(Size::Half, at(MACS), Reg(0));
        asm.load(Size::Word, Reg(0), CONTEXT, skb::VLAN_TCI);
        asm.swap(Size::Half, Reg(0));
        asm.store(Size::Half, at(MACS + 2), Reg(0));
        asm.set(SHIFT, 4);
        asm.load(Size::Word, Reg(0), FRAME, LEN);
        asm.wide_register(Wide::Add, Reg(0), SHIFT);
        asm.store(Size::Word, LEN, Reg(0));
        asm.place(none);
    }

    /// The two ends, as far as they are reached.
    fn epilogue(&mut self, calls: &TailCalls) {
        let ends = [(self.matched, calls.matched), (self.refused, calls.refused)];
        for (label, index) in ends {
            if !self.asm.is_used(label) {
                continue;
            }
            self.asm.place(label);
            self.asm.copy(Reg(1), CONTEXT);
            self.asm.set_map(Reg(2), calls.programs);
            self.asm.set(Reg(3), index);
            self.asm.call(TAIL_CALL);
            self.asm.exit(NEXT);
        }
    }

    fn instruction(&mut self, index: usize, i: &Instruction) -> Result<(), &'static str> {
        match i.code & 0x07 {
            code::LD => return self.load(A, i),
            code::LDX => return self.load(X, i),
            code::ST => self.asm.store(Size::Word, memory(i.k)?, A),
            code::STX => self.asm.store(Size::Word, memory(i.k)?, X),
            code::ALU => return self.compute(i),
            code::JMP => self.jump(index, i)?,
            code::RET => self.end(i)?,
            _ if i.code & code::TXA != 0 => self.asm.copy(A, X),
            _ => self.asm.copy(X, A),
        }
        Ok(())
    }

    fn load(&mut self, to: Reg, i: &Instruction) -> Result<(), &'static str> {
        match i.code & 0xe0 {
            code::ABS if to == A => self.load_at(to, size(i)?, i.k),
            code::IND if to == A => self.load_behind_x(size(i)?, i.k),
            // The header length of IPv4, for which this was made.
            code::MSH if to == X => {
                self.load_at(X, Size::Byte, i.k);
                self.asm.and(X, 0x0f);
                self.asm.shift_left(X, 2);
            }
            code::IMM => self.asm.set(to, i.k),
            code::MEM => self.asm.load(Size::Word, to, FRAME, memory(i.k)?),
            code::LEN => self.asm.load(Size::Word, to, FRAME, LEN),
            _ => return Err(UNKNOWN),
        }
        Ok(())
    }

    /// A load at a place of the view.
    fn load_at(&mut self, to: Reg, size: Size, offset: u32) {
        let end = offset.saturating_add(size.bytes());
        if WINDOW_START <= offset && end <= WINDOW_END {
            self.asm.load(Size::Word, Reg(0), FRAME, LEN);
            self.asm.jump_unless_more(Reg(0), end - 1, self.refused);
            self.load_window(to, size, offset);
            return;
        }
        self.asm.set(Reg(2), offset);
        if offset >= SHIFTED {
            self.shift();
        }
        self.load_bytes(to, size);
    }

    /// A load at X and some more.
    fn load_behind_x(&mut self, size: Size, offset: u32) {
        let [shifted, direct, loaded] = [(); 3].map(|()| self.asm.label());
        self.asm.set(Reg(2), offset);
        self.asm.wide_register(Wide::Add, Reg(2), X);
        // The kernel would take the lower half of a larger sum.
        self.asm.jump_if_beyond_frames(Reg(2), self.refused);
        self.asm.jump_if_more(Reg(2), SHIFTED - 1, shifted);
        let last = MACS - size.bytes();
        self.asm.jump_unless_more(Reg(2), last, direct);
        self.load_across(size);
        self.asm.jump(loaded);
        self.asm.place(shifted);
        self.shift();
        self.asm.place(direct);
        self.load_bytes(A, size);
        self.asm.place(loaded);
    }

    /// A load from the window at the place in register 2, at that of tags or across it. Nobody does that, but it has a meaning.
    fn load_across(&mut self, size: Size) {
        let (end, front, back) = (Reg(0), Reg(1), Reg(3));
        self.asm.copy(end, Reg(2));
        self.asm.wide(Wide::Add, end, size.bytes());
        self.asm.load(Size::Word, Reg(4), FRAME, LEN);
        self.asm.jump_if_more_than(end, Reg(4), self.refused);
        // Both halves of the window as numbers of 64 bits; the second slides in behind the first.
        for (reg, place) in [(front, WINDOW), (back, WINDOW + 8)] {
            self.asm.load(Size::Double, reg, FRAME, place);
            self.asm.swap(Size::Double, reg);
        }
        self.asm.wide(Wide::Subtract, Reg(2), WINDOW_START);
        self.asm.wide(Wide::ShiftLeft, Reg(2), 3);
        self.asm.wide_register(Wide::ShiftLeft, front, Reg(2));
        self.asm.set(Reg(4), 64);
        self.asm.wide_register(Wide::Subtract, Reg(4), Reg(2));
        self.asm.wide_register(Wide::ShiftRight, back, Reg(4));
        self.asm.wide_register(Wide::Or, front, back);
        self.asm
            .wide(Wide::ShiftRight, front, 64 - 8 * size.bytes());
        self.asm.copy(A, front);
    }

    /// From a place of the view, in register 2, to one of the bytes that the program has.
    fn shift(&mut self) {
        match self.vlan {
            FilterVlan::Any => self.asm.wide_register(Wide::Add, Reg(2), SHIFT),
            FilterVlan::Exact => self.asm.wide_register(Wide::Subtract, Reg(2), SHIFT),
        }
    }

    /// A load at the place in register 2.
    fn load_bytes(&mut self, to: Reg, size: Size) {
        self.asm.set(Reg(4), size.bytes());
        self.asm.load_bytes(CONTEXT, LOADED);
        self.asm.jump_if_not_zero(Reg(0), self.refused);
        self.asm.load(size, to, FRAME, LOADED);
        self.asm.swap(size, to);
    }

    fn load_window(&mut self, to: Reg, size: Size, offset: u32) {
        let place = WINDOW + distance(offset - WINDOW_START);
        if offset.is_multiple_of(size.bytes()) {
            self.asm.load(size, to, FRAME, place);
            self.asm.swap(size, to);
            return;
        }
        // The kernel wants loads from the stack to be aligned.
        self.asm.set(to, 0);
        for byte in (place..).take(usize::try_from(size.bytes()).unwrap_or(0)) {
            self.asm.load(Size::Byte, Reg(0), FRAME, byte);
            self.asm.wide(Wide::ShiftLeft, to, 8);
            self.asm.wide_register(Wide::Or, to, Reg(0));
        }
    }

    fn compute(&mut self, i: &Instruction) -> Result<(), &'static str> {
        let operation = i.code & 0xf0;
        let by_x = i.code & code::X != 0;
        match operation {
            _ if divides_by_zero(i) => self.asm.jump(self.refused),
            code::LSH | code::RSH if by_x => {
                let (small, done) = (self.asm.label(), self.asm.label());
                self.asm.jump_unless_more(X, 31, small);
                self.asm.set(A, 0);
                self.asm.jump(done);
                self.asm.place(small);
                self.asm.compute_register(operation, A, X);
                self.asm.place(done);
            }
            code::LSH | code::RSH if i.k > 31 => self.asm.set(A, 0),
            code::NEG => self.asm.compute(code::NEG, A, 0),
            _ if operation > code::XOR => return Err(UNKNOWN),
            _ if by_x => {
                if matches!(operation, code::DIV | code::MOD) {
                    self.asm.jump_if_zero(X, self.refused);
                }
                self.asm.compute_register(operation, A, X);
            }
            _ => self.asm.compute(operation, A, i.k),
        }
        Ok(())
    }

    fn jump(&mut self, index: usize, i: &Instruction) -> Result<(), &'static str> {
        let mut next = successors(index, i).into_iter().map(|at| self.places[at]);
        let (Some(holds), otherwise) = (next.next(), next.next()) else {
            return Err(UNKNOWN);
        };
        let condition = i.code & 0xf0;
        match otherwise {
            None => self.asm.jump(holds),
            Some(_) if condition > code::JSET => return Err(UNKNOWN),
            Some(otherwise) => {
                if i.code & code::X != 0 {
                    self.asm.jump_register(condition, A, X, holds);
                } else {
                    self.asm.jump_constant(condition, A, i.k, holds);
                }
                if i.jf > 0 {
                    self.asm.jump(otherwise);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, i: &Instruction) -> Result<(), &'static str> {
        match i.code & 0x18 {
            0 if i.k == 0 => self.asm.jump(self.refused),
            0 => self.asm.jump(self.matched),
            result @ (code::A | code::X) => {
                let reg = if result == code::A { A } else { X };
                self.asm.jump_if_not_zero(reg, self.matched);
                self.asm.jump(self.refused);
            }
            _ => return Err(UNKNOWN),
        }
        Ok(())
    }
}

const UNKNOWN: &str = "it has an instruction that is none";

fn size(i: &Instruction) -> Result<Size, &'static str> {
    match i.code & 0x18 {
        code::W => Ok(Size::Word),
        code::H => Ok(Size::Half),
        code::B => Ok(Size::Byte),
        _ => Err(UNKNOWN),
    }
}

/// Where a word of the scratch memory is.
fn memory(index: u32) -> Result<i16, &'static str> {
    if index > 15 {
        return Err("it uses more memory than there is");
    }
    Ok(MEMORY + distance(index * 4))
}

fn uses_memory(i: &Instruction) -> bool {
    match i.code & 0x07 {
        code::LD | code::LDX => i.code & 0xe0 == code::MEM,
        class => matches!(class, code::ST | code::STX),
    }
}

/// A small distance on the stack.
fn distance(bytes: u32) -> i16 {
    i16::try_from(bytes).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests;
