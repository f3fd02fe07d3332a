//! What can be wrong with a setting. Frames never produce errors, only outcomes.

/// A setting that this crate refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libpcap cannot compile the expression.
    #[error("filter {expression:?}: {message}; {advice}")]
    Syntax {
        /// The text as it was given.
        expression: String,
        /// What libpcap says.
        message: String,
        /// What to do next.
        advice: &'static str,
    },
    /// The expression is so long that compiling it would take seconds or minutes.
    #[error(
        "filter of {bytes} bytes: at most {limit} are taken; use networks instead of single hosts, or ranges of ports"
    )]
    TooLong {
        /// Length of the text.
        bytes: usize,
        /// The longest that is taken.
        limit: usize,
    },
    /// The expression takes longer to compile than anybody waits.
    #[error(
        "filter of {bytes} bytes: it takes longer than {seconds} s to compile; use ranges (portrange 1-350) and networks instead of single ports and hosts"
    )]
    TooSlow {
        /// Length of the text.
        bytes: usize,
        /// How long was waited.
        seconds: u64,
    },
    /// The expression asks for something that is not in a frame, such as its direction.
    #[error("filter {expression:?} looks at data outside of the frame; {advice}")]
    OutsideFrame {
        /// The text as it was given.
        expression: String,
        /// What to do next.
        advice: &'static str,
    },
    /// The expression cannot run in the kernel as eBPF.
    #[error("filter {expression:?} cannot run in the kernel: {reason}")]
    NotForKernel {
        /// The text as it was given.
        expression: String,
        /// What stands in the way.
        reason: &'static str,
    },
    /// A VLAN tag that cannot be put on a frame.
    #[error(transparent)]
    Vlan(#[from] InvalidVlan),
}

/// A field of a VLAN tag that is out of its range (IEEE 802.1Q, clause 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidVlan {
    /// The VLAN identifier has 12 bits, and 4095 is reserved.
    #[error("VLAN id {0} is out of range: use 0 to 4094")]
    Vid(u16),
    /// The priority has 3 bits.
    #[error("VLAN priority {0} is out of range: use 0 to 7")]
    Pcp(u8),
    /// Not an EtherType that announces a tag.
    #[error("{0:#06x} is not a VLAN EtherType: use 0x8100, 0x88a8 or 0x9100")]
    Tpid(u16),
}
