//! From the payload of an outer packet to the frame that it carries.

use super::kind::TunnelKind;
use super::spec::{DecapSpec, Direction, InvalidTunnel};
use crate::VlanTag;

/// Why a packet is refused. Nothing of it is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Ends within a tunnel header.
    Short,
    /// A version of the format that nobody defined or that is not understood here.
    Version,
    /// A flag that must be set is not, or one that may not be set is.
    Flags,
    /// The GRE checksum is wrong.
    Checksum,
    /// No GRE checksum where one is required.
    ChecksumMissing,
    /// No GRE sequence number where one is required.
    SequenceMissing,
    /// No key where the format needs one (NVGRE).
    KeyMissing,
    /// Options or extensions do not fit into the room that the header gives them.
    OptionLength,
    /// An option that must be understood and is not.
    CriticalOption,
    /// A control message, not data.
    Control,
    /// What is carried is of a type that this kind of tunnel does not take.
    Protocol,
    /// What is carried is shorter than its own header.
    InnerShort,
    /// What is carried is not the IP version that the header announces.
    InnerVersion,
}

impl Reject {
    /// All of them, in the order of [`Reject::index`].
    pub const ALL: [Reject; 13] = [
        Reject::Short,
        Reject::Version,
        Reject::Flags,
        Reject::Checksum,
        Reject::ChecksumMissing,
        Reject::SequenceMissing,
        Reject::KeyMissing,
        Reject::OptionLength,
        Reject::CriticalOption,
        Reject::Control,
        Reject::Protocol,
        Reject::InnerShort,
        Reject::InnerVersion,
    ];

    /// The name for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Reject::Short => "short",
            Reject::Version => "version",
            Reject::Flags => "flags",
            Reject::Checksum => "checksum",
            Reject::ChecksumMissing => "checksum_missing",
            Reject::SequenceMissing => "sequence_missing",
            Reject::KeyMissing => "key_missing",
            Reject::OptionLength => "option_length",
            Reject::CriticalOption => "critical_option",
            Reject::Control => "control",
            Reject::Protocol => "protocol",
            Reject::InnerShort => "inner_short",
            Reject::InnerVersion => "inner_version",
        }
    }

    /// Its place in [`Reject::ALL`], for an array of counters.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What a payload begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet frame without frame check sequence, at least 14 bytes.
    Ethernet,
    /// An IPv4 packet, at least 20 bytes.
    Ipv4,
    /// An IPv6 packet, at least 40 bytes.
    Ipv6,
}

/// What one tick of an ERSPAN III timestamp is (field "Gra").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// 100 microseconds.
    HundredMicroseconds,
    /// 100 nanoseconds.
    HundredNanoseconds,
    /// IEEE 1588: nanoseconds.
    Ieee1588,
    /// Defined by the sender; the platform sub-header may say.
    UserDefined,
}

/// When the far end captured a frame, as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderTime {
    /// ERSPAN III: a counter that wraps.
    Ticks(u32, Granularity),
    /// Our Geneve option: nanoseconds since 1970.
    Nanoseconds(u64),
}

/// Two bytes to be put over those of a payload: a checksum that the sender left to the receiver
/// (GUE remote checksum offload).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// Where, from the beginning of the payload; both bytes are within it.
    pub at: usize,
    /// What, in network byte order.
    pub bytes: [u8; 2],
}

/// What a packet carries and what its headers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The frame or packet.
    pub payload: &'a [u8],
    /// What `payload` begins with.
    pub link: Link,
    /// Key, VSID, VNI or session; "none" and 0 differ.
    pub id: Option<u32>,
    /// Sequence number of GRE.
    pub sequence: Option<u32>,
    /// When the frame was captured.
    pub time: Option<SenderTime>,
    /// The sender says that the frame was cut.
    pub truncated: bool,
    /// Which way the frame went at the mirroring switch.
    pub direction: Option<Direction>,
    /// Length on the wire as the sender tells it, of the same thing that `payload` is; not below its length.
    pub wire_len: Option<u32>,
    /// The tag that the mirroring switch took out of the frame (ERSPAN II, En = 2).
    pub restore_tag: Option<VlanTag>,
    /// A checksum that is to be completed.
    pub patch: Option<Patch>,
}

impl Decoded<'_> {
    /// The length on the wire of `payload`, at least its own: what the sender told, else what the IP header within
    /// claims when the payload is shorter than that.
    pub fn original_len(&self) -> u32 {
        todo_len(self.payload)
    }
}

fn todo_len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The length that a frame or packet has by the account of the IP header in it, Ethernet header and tags included.
/// None: no IP, no complete header, or it does not say.
pub fn claimed_len(link: Link, payload: &[u8]) -> Option<u32> {
    let _ = (link, payload);
    None
}

/// A decoder for one kind of tunnel. Never allocates, never panics.
#[derive(Debug, Clone, Copy)]
pub struct Decap {
    spec: DecapSpec,
}

impl Decap {
    /// A decoder.
    ///
    /// # Errors
    /// What the format cannot do.
    pub fn new(spec: DecapSpec) -> Result<Decap, InvalidTunnel> {
        spec.check()?;
        Ok(Decap { spec })
    }

    /// The kind that it decodes.
    pub fn kind(&self) -> TunnelKind {
        self.spec.kind
    }

    /// Decodes what follows the outer IP header or, for kinds over UDP, the UDP header.
    ///
    /// # Errors
    /// Why nothing of it can be delivered.
    pub fn decode<'a>(&self, payload: &'a [u8]) -> Result<Decoded<'a>, Reject> {
        let _ = payload;
        Err(Reject::Short)
    }
}
