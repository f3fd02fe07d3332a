//! Instructions of eBPF with labels for the places that jumps go to (`linux/bpf.h`, RFC 9669).
//!
//! Arithmetic and comparisons are of 32 bits unless said otherwise, which needs Linux 5.1; they clear the upper halves of registers.

/// A register, 0 to 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reg(pub(super) u8);

/// A place in the program that is perhaps not known yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Label(usize);

/// Width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Byte,
    Half,
    Word,
    Double,
}

/// Arithmetic on all 64 bits.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Wide {
    Add = 0x00,
    Subtract = 0x10,
    Or = 0x40,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
}

impl Size {
    pub(super) fn bytes(self) -> u32 {
        match self {
            Size::Byte => 1,
            Size::Half => 2,
            Size::Word => 4,
            Size::Double => 8,
        }
    }

    fn code(self) -> u8 {
        match self {
            Size::Byte => 0x10,
            Size::Half => 0x08,
            Size::Word => 0x00,
            Size::Double => DOUBLE,
        }
    }
}

/// Classes.
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU32: u8 = 0x04;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
/// Modes and operations.
const MEM: u8 = 0x60;
const DOUBLE: u8 = 0x18;
const REGISTER: u8 = 0x08;
const SUB: u8 = 0x10;
const AND: u8 = 0x50;
const LSH: u8 = 0x60;
const MOV: u8 = 0xb0;
const TO_BIG_ENDIAN: u8 = 0xd8;
const JEQ: u8 = 0x10;
const JGT: u8 = 0x20;
const JNE: u8 = 0x50;
const JLE: u8 = 0xb0;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
const LOAD_IMMEDIATE: u8 = 0x18;
/// The immediate value is the descriptor of a map.
const PSEUDO_MAP_FD: Reg = Reg(1);

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    instructions: Vec<[u8; 8]>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps, with their labels.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label here.
    pub(super) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    /// Whether a jump goes there.
    pub(super) fn is_used(&self, label: Label) -> bool {
        self.jumps.iter().any(|(_, used)| used.0 == label.0)
    }

    /// The program; `None` when a jump reaches too far.
    pub(super) fn finish(mut self) -> Option<Vec<[u8; 8]>> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0]?;
            let offset = target.checked_sub(at + 1)?;
            let [a, b] = i16::try_from(offset).ok()?.to_ne_bytes();
            let instruction = self.instructions.get_mut(*at)?;
            (instruction[2], instruction[3]) = (a, b);
        }
        Some(self.instructions)
    }

    fn emit(&mut self, code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) {
        let registers = if cfg!(target_endian = "little") {
            from.0 << 4 | to.0
        } else {
            to.0 << 4 | from.0
        };
        let [c, d] = offset.to_ne_bytes();
        let [e, f, g, h] = immediate.to_ne_bytes();
        self.instructions.push([code, registers, c, d, e, f, g, h]);
    }

    fn emit_jump(&mut self, code: u8, a: Reg, b: Reg, immediate: u32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(code, a, b, 0, immediate.cast_signed());
    }

    /// Sets all of a register, the upper half to 0.
    pub(super) fn set(&mut self, reg: Reg, value: u32) {
        self.compute(MOV.into(), reg, value);
    }

    pub(super) fn copy(&mut self, to: Reg, from: Reg) {
        self.emit(ALU64 | REGISTER | MOV, to, from, 0, 0);
    }

    /// `operation` as in classic BPF.
    pub(super) fn compute(&mut self, operation: u16, reg: Reg, value: u32) {
        let operation = operation.to_le_bytes()[0];
        self.emit(ALU32 | operation, reg, Reg(0), 0, value.cast_signed());
    }

    pub(super) fn compute_register(&mut self, operation: u16, reg: Reg, operand: Reg) {
        let operation = operation.to_le_bytes()[0];
        self.emit(ALU32 | REGISTER | operation, reg, operand, 0, 0);
    }

    pub(super) fn and(&mut self, reg: Reg, value: u32) {
        self.compute(AND.into(), reg, value);
    }

    pub(super) fn shift_left(&mut self, reg: Reg, bits: u32) {
        self.compute(LSH.into(), reg, bits);
    }

    pub(super) fn subtract(&mut self, reg: Reg, value: u32) {
        self.compute(SUB.into(), reg, value);
    }

    /// All 64 bits of a register, and a constant below 2^31.
    pub(super) fn wide(&mut self, operation: Wide, reg: Reg, value: u32) {
        let code = ALU64 | operation as u8;
        self.emit(code, reg, Reg(0), 0, value.cast_signed());
    }

    pub(super) fn wide_register(&mut self, operation: Wide, reg: Reg, operand: Reg) {
        self.emit(ALU64 | REGISTER | operation as u8, reg, operand, 0, 0);
    }

    /// Between network byte order and that of the machine.
    pub(super) fn swap(&mut self, size: Size, reg: Reg) {
        let bits = match size {
            Size::Byte => return,
            Size::Half => 16,
            Size::Word => 32,
            Size::Double => 64,
        };
        self.emit(ALU32 | TO_BIG_ENDIAN, reg, Reg(0), 0, bits);
    }

    pub(super) fn load(&mut self, size: Size, to: Reg, from: Reg, offset: i16) {
        self.emit(LDX | MEM | size.code(), to, from, offset, 0);
    }

    /// Stores on the stack.
    pub(super) fn store(&mut self, size: Size, offset: i16, from: Reg) {
        self.emit(STX | MEM | size.code(), Reg(10), from, offset, 0);
    }

    /// Eight bytes on the stack.
    pub(super) fn store_zero(&mut self, offset: i16) {
        self.emit(ST | MEM | DOUBLE, Reg(10), Reg(0), offset, 0);
    }

    /// Four bytes on the stack.
    pub(super) fn store_zero_word(&mut self, offset: i16) {
        self.emit(ST | MEM | Size::Word.code(), Reg(10), Reg(0), offset, 0);
    }

    /// Sets a register to a map; takes the room of two instructions.
    pub(super) fn set_map(&mut self, reg: Reg, map: i32) {
        self.emit(LOAD_IMMEDIATE, reg, PSEUDO_MAP_FD, 0, map);
        self.emit(0, Reg(0), Reg(0), 0, 0);
    }

    /// Copies bytes of the frame to a place on the stack: from the offset in register 2 on, as many as register 4 says.
    /// Register 0 is not 0 when the frame has not all of them.
    pub(super) fn load_bytes(&mut self, context: Reg, to: i16) {
        self.copy(Reg(1), context);
        self.copy(Reg(3), Reg(10));
        self.emit(ALU64 | Wide::Add as u8, Reg(3), Reg(0), 0, to.into());
        self.call(super::SKB_LOAD_BYTES);
    }

    pub(super) fn call(&mut self, helper: i32) {
        self.emit(JMP | CALL, Reg(0), Reg(0), 0, helper);
    }

    pub(super) fn exit(&mut self, value: i32) {
        self.set(Reg(0), value.cast_unsigned());
        self.emit(JMP | EXIT, Reg(0), Reg(0), 0, 0);
    }

    pub(super) fn jump(&mut self, label: Label) {
        self.emit_jump(JMP, Reg(0), Reg(0), 0, label);
    }

    /// `condition` as in classic BPF.
    pub(super) fn jump_constant(&mut self, condition: u16, reg: Reg, value: u32, label: Label) {
        let condition = condition.to_le_bytes()[0];
        self.emit_jump(JMP32 | condition, reg, Reg(0), value, label);
    }

    pub(super) fn jump_register(&mut self, condition: u16, reg: Reg, other: Reg, label: Label) {
        let condition = condition.to_le_bytes()[0];
        self.emit_jump(JMP32 | REGISTER | condition, reg, other, 0, label);
    }

    pub(super) fn jump_if_zero(&mut self, reg: Reg, label: Label) {
        self.jump_constant(JEQ.into(), reg, 0, label);
    }

    pub(super) fn jump_if_not_zero(&mut self, reg: Reg, label: Label) {
        self.jump_constant(JNE.into(), reg, 0, label);
    }

    pub(super) fn jump_if_more_than(&mut self, reg: Reg, other: Reg, label: Label) {
        self.jump_register(JGT.into(), reg, other, label);
    }

    pub(super) fn jump_if_more(&mut self, reg: Reg, value: u32, label: Label) {
        self.jump_constant(JGT.into(), reg, value, label);
    }

    pub(super) fn jump_unless_more(&mut self, reg: Reg, value: u32, label: Label) {
        self.jump_constant(JLE.into(), reg, value, label);
    }

    /// When an offset, in 64 bits, is none that a frame could have.
    pub(super) fn jump_if_beyond_frames(&mut self, reg: Reg, label: Label) {
        self.emit_jump(JMP | JGT, reg, Reg(0), i32::MAX.cast_unsigned(), label);
    }

    /// When two bytes, as they are in a frame, do not announce a VLAN tag.
    pub(super) fn jump_unless_tpid(&mut self, reg: Reg, label: Label) {
        let yes = self.label();
        let [first, second, third] =
            [0x8100u16, 0x88a8, 0x9100].map(|tpid| u32::from(tpid.to_be()));
        self.jump_constant(JEQ.into(), reg, first, yes);
        self.jump_constant(JEQ.into(), reg, second, yes);
        self.jump_constant(JNE.into(), reg, third, label);
        self.place(yes);
    }
}
