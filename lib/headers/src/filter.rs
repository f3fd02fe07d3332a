//! pcap-filter(7) expressions: compiled by libpcap, run here or in the kernel.
//!
//! The kernel takes the outermost VLAN tag out of a frame before a socket filter sees it, and libpcap's
//! programs know nothing of that. Two rules make filters mean the same everywhere:
//!
//! * By default an expression is evaluated as if the frame had no tags at all. `tcp port 80` finds
//!   port 80 in every VLAN.
//! * Exact filters, and every expression that uses the word `vlan`, see the frame as on the wire.
//!
//! In the kernel a prologue lets through the frames for which the kernel's view differs; those are
//! checked again in user space, see [`Filter::needs_user_check`]. What it refuses there it marks, see
//! [`REFUSED`](crate::REFUSED).

mod compile;
mod doubt;

pub use doubt::filter_doubt;

use crate::bpf::{self, Instruction, View, code};
use crate::counted::counted;
use crate::ebpf::{self, TailCalls};
use crate::{Error, WireFrame};

/// A return value that keeps the whole frame. libpcap would write its snapshot length of 65,535 there,
/// and the kernel would cut larger frames.
const WHOLE: u32 = u32::MAX;
/// From here on offsets mean something else than bytes of the frame (`SKF_LL_OFF` in `linux/filter.h`).
pub(crate) const OUTSIDE_FRAME: u32 = 0x8000_0000;
/// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT` (`linux/filter.h`).
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
const MAX_KERNEL_INSTRUCTIONS: usize = 4096;

/// Longest expression. The time that libpcap takes grows with the square of it: 340 hosts fit in, for
/// which it needs less than a second, and 2000 would take half a minute.
const MAX_EXPRESSION: usize = 4096;
/// Longest program that libpcap is asked to optimise, for which the time grows with the cube: 0.2 s here,
/// a minute for 800 hosts.
const MAX_OPTIMISED: usize = 3000;

/// How an expression sees VLAN tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilterVlan {
    /// As if the frame had none.
    #[default]
    Any,
    /// As they were on the wire.
    Exact,
}

/// A compiled pcap-filter(7) expression.
///
/// Owns its program: it can be cloned and sent to the thread that runs it.
#[derive(Debug, Clone)]
pub struct Filter {
    expression: String,
    vlan: FilterVlan,
    program: Vec<Instruction>,
}

impl Filter {
    /// Compiles an expression; the empty one matches every frame.
    ///
    /// An expression that uses the word `vlan` is exact, whatever `vlan` says. Names of hosts in an
    /// expression are looked up now, which may take as long as the resolver does.
    ///
    /// # Errors
    /// [`Error::Syntax`] with libpcap's message and advice; [`Error::OutsideFrame`] for an expression
    /// on something that no frame carries (`inbound`, `ifname`); [`Error::TooLong`] beyond 4096 bytes;
    /// [`Error::TooSlow`] when it takes longer than a client waits.
    pub fn compile(expression: &str, vlan: FilterVlan) -> Result<Filter, Error> {
        let program = compile::in_time(expression)?;
        if program.iter().any(loads_outside_frame) {
            return Err(Error::OutsideFrame {
                expression: expression.to_owned(),
                advice: "use the option for the direction or the interface instead",
            });
        }
        if program.iter().any(jumps_back) {
            return Err(Error::Syntax {
                expression: expression.to_owned(),
                message: "it needs a loop".to_owned(),
                advice: "protochain cannot be used; name the extension header or the protocol by proto",
            });
        }
        let vlan = if words(expression).any(|word| word == "vlan") {
            FilterVlan::Exact
        } else {
            vlan
        };
        Ok(Filter {
            expression: expression.to_owned(),
            vlan,
            program,
        })
    }

    /// The text that was compiled.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// How this filter sees VLAN tags.
    pub fn vlan(&self) -> FilterVlan {
        self.vlan
    }

    /// Whether the frame matches. A frame that was captured only in part does not match when the answer
    /// lies in the missing part, as in tcpdump.
    #[inline]
    pub fn matches(&self, frame: &WireFrame<'_>) -> bool {
        let view = match self.vlan {
            FilterVlan::Exact => View {
                pieces: frame.pieces(),
                wire_len: frame.wire_len(),
            },
            FilterVlan::Any => {
                let (rest, inline) = frame.untagged();
                let tags = frame.held_bytes() + inline * crate::vlan::TAG_LEN;
                View {
                    pieces: [frame.macs(), &[], rest],
                    wire_len: frame
                        .wire_len()
                        .saturating_sub(u32::try_from(tags).unwrap_or(u32::MAX)),
                }
            }
        };
        bpf::run(&self.program, &view).is_some_and(|kept| kept != 0)
    }

    /// A program for `SO_ATTACH_FILTER` on a packet socket of an Ethernet interface.
    ///
    /// It lets through every frame that [`Filter::matches`], and further ones only where
    /// [`Filter::needs_user_check`] says so. Of the others it lets through [`REFUSED`](crate::REFUSED) bytes, so that they
    /// can be counted; it never returns 0. `None` when the program is too long for the kernel: the filter then runs in user
    /// space alone.
    pub fn kernel_program(&self) -> Option<Vec<Instruction>> {
        let mut program = match self.vlan {
            // A tag that is still in the bytes: the plain program would not look behind it.
            FilterVlan::Any => vec![
                instruction(code::LD | code::H | code::ABS, 0, 0, 12),
                instruction(code::JMP | code::JEQ, 2, 0, 0x8100),
                instruction(code::JMP | code::JEQ, 1, 0, 0x88a8),
                instruction(code::JMP | code::JEQ, 0, 1, 0x9100),
                instruction(code::RET, 0, 0, WHOLE),
            ],
            // A tag that the kernel took out: the plain program would not see it.
            FilterVlan::Exact => vec![
                instruction(code::LD | code::W | code::ABS, 0, 0, VLAN_TAG_PRESENT),
                instruction(code::JMP | code::JEQ, 1, 0, 0),
                instruction(code::RET, 0, 0, WHOLE),
            ],
        };
        program.extend_from_slice(&self.program);
        let program = counted(&program)?;
        (program.len() <= MAX_KERNEL_INSTRUCTIONS).then_some(program)
    }

    /// A program for traffic control on an Ethernet interface, as instructions in the form of `struct bpf_insn`, in the byte order of
    /// this machine. It tells frames apart exactly as [`Filter::matches`] does.
    ///
    /// # Errors
    /// [`Error::NotForKernel`] with the reason.
    pub fn classifier(&self, calls: &TailCalls) -> Result<Vec<[u8; 8]>, Error> {
        ebpf::translate(&self.program, self.vlan, calls).map_err(|reason| Error::NotForKernel {
            expression: self.expression.clone(),
            reason,
        })
    }

    /// Whether the kernel may have let this frame through although it does not match.
    ///
    /// The frame must be as it was captured, before any edit.
    #[inline]
    pub fn needs_user_check(&self, frame: &WireFrame<'_>) -> bool {
        match self.vlan {
            FilterVlan::Any => frame.has_inline_tpid(),
            FilterVlan::Exact => frame.held_bytes() > 0,
        }
    }
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The words of an expression, in the sense of libpcap's scanner.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')))
}

/// libpcap reaches beyond the frame by offsets that stand for metadata of the kernel.
fn loads_outside_frame(i: &Instruction) -> bool {
    let class = i.code & 0x07;
    let mode = i.code & 0xe0;
    (class == code::LD && mode == code::ABS || class == code::LDX && mode == code::MSH)
        && i.k >= OUTSIDE_FRAME
}

/// Only `protochain` makes loops, which the kernel never took for filters.
fn jumps_back(i: &Instruction) -> bool {
    i.code == code::JMP | code::JA && i.k.cast_signed() < 0
}

/// Compiles for Ethernet, with no device at hand, and rewrites the results to whole frames.
fn libpcap_program(expression: &str) -> Result<Vec<Instruction>, Error> {
    if expression.len() > MAX_EXPRESSION {
        return Err(Error::TooLong {
            bytes: expression.len(),
            limit: MAX_EXPRESSION,
        });
    }
    let refused = |source: pcap::Error| syntax_error(expression, &source);
    let handle = pcap::Capture::dead(pcap::Linktype::ETHERNET).map_err(refused)?;
    let mut compiled = handle.compile(expression, false).map_err(refused)?;
    if compiled.get_instructions().len() <= MAX_OPTIMISED {
        compiled = handle.compile(expression, true).map_err(refused)?;
    }
    // The crate keeps the fields to itself; its text form "code jt jf k" is the way to them.
    let instructions = compiled.get_instructions().iter();
    let program: Option<Vec<_>> = instructions
        .map(|i| parse_instruction(&i.to_string()))
        .collect();
    program.ok_or_else(|| refused(pcap::Error::InvalidString))
}

fn parse_instruction(text: &str) -> Option<Instruction> {
    let mut fields = text.split_ascii_whitespace();
    let code: u16 = fields.next()?.parse().ok()?;
    let jt = fields.next()?.parse().ok()?;
    let jf = fields.next()?.parse().ok()?;
    let k: u32 = fields.next()?.parse().ok()?;
    let k = if code == code::RET && k != 0 {
        WHOLE
    } else {
        k
    };
    fields
        .next()
        .is_none()
        .then_some(Instruction { code, jt, jf, k })
}

fn syntax_error(expression: &str, source: &pcap::Error) -> Error {
    let message = match source {
        pcap::Error::PcapError(text) => text
            .trim_start_matches("can't parse filter expression: ")
            .to_owned(),
        pcap::Error::InvalidInputString => "it contains a NUL character".to_owned(),
        other => other.to_string(),
    };
    Error::Syntax {
        advice: advice(expression, &message),
        expression: expression.to_owned(),
        message,
    }
}

/// What went wrong, for the mistakes that people make.
fn advice(expression: &str, message: &str) -> &'static str {
    let count = |c| expression.matches(c).count();
    let display_filter = [
        "ip.", "tcp.", "udp.", "eth.", "vlan.", "frame.", "arp.", "icmp.", "ipv6.",
    ]
    .iter()
    .any(|field| words(expression).any(|word| word.starts_with(field)));
    if count('(') != count(')') {
        "the parentheses do not match"
    } else if display_filter {
        "this looks like a Wireshark display filter; capture filters are written as in \"host 10.0.0.1 and tcp port 80\", see pcap-filter(7)"
    } else if message.contains("rejects all packets") {
        "no frame can match, so something in it contradicts the rest"
    } else if message.contains("unknown") {
        "check the spelling, or write the number"
    } else if message.contains("inbound/outbound") || message.contains("only on PF") {
        "use the option for the direction or the interface instead"
    } else {
        "see pcap-filter(7); an example: \"host 10.0.0.1 and tcp port 80\""
    }
}

#[cfg(test)]
mod tests;
