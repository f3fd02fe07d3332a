//! Frames that know who they are.
//!
//! ```text
//!  0        12       14 (42 in UDP)                                              +32
//! +---------+--------+--------+--------+--------+---------+---------+---------+---- ...
//! | MACs    | type   | magic  | stream | length | seq     | sent_ns | hash    | filler, a function of seq
//! |         | 0x88b5 | u32    | u16    | u16    | u64     | u64     | u64     |
//! +---------+--------+--------+--------+--------+---------+---------+---------+---- ...
//! ```
//!
//! All fields are big-endian. `length` counts from `magic` to the end of the frame; `hash` covers everything there but itself. VLAN
//! tags may stand between the MACs and the type. In UDP form, Ethernet type 0x0800 with 28 bytes of IPv4 and UDP come first,
//! so that filters have something to match.

/// EtherType of frames without IP: IEEE 802 "local experimental 1".
pub const ETHERTYPE: u16 = 0x88b5;

/// Bytes of the fields above, without filler.
pub const FIELDS: usize = 32;

const MAGIC: u32 = 0x666c_7578;
const IPV4: u16 = 0x0800;
const IPV4_AND_UDP: usize = 28;
const TPIDS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// What stands before the payload of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// VLAN tags, the outer one first: (TPID, TCI).
    pub tags: Vec<(u16, u16)>,
    /// UDP ports (source, destination) when the payload goes in IPv4 and UDP, from 192.0.2.1 to 198.51.100.1.
    pub udp: Option<(u16, u16)>,
}

impl Default for Headers {
    fn default() -> Self {
        Headers {
            destination: [2, 0, 0, 0, 0, 2],
            source: [2, 0, 0, 0, 0, 1],
            tags: Vec::new(),
            udp: None,
        }
    }
}

impl Headers {
    /// Length of these headers in bytes.
    #[expect(clippy::len_without_is_empty, reason = "headers are never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        14 + 4 * self.tags.len() + if self.udp.is_some() { IPV4_AND_UDP } else { 0 }
    }

    /// A frame of `size` bytes (without FCS; tags count) with these headers, still without identity: see [`stamp`].
    ///
    /// # Panics
    /// When the fields do not fit into `size`.
    #[must_use]
    pub fn frame(&self, size: usize) -> Vec<u8> {
        assert!(
            size >= self.len() + FIELDS,
            "a frame of {size} bytes cannot hold {} of headers and {FIELDS} of payload",
            self.len()
        );
        let mut frame = Vec::with_capacity(size);
        frame.extend(self.destination);
        frame.extend(self.source);
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        if let Some(ports) = self.udp {
            frame.extend(IPV4.to_be_bytes());
            frame.extend(ipv4_and_udp(size - self.len(), ports));
        } else {
            frame.extend(ETHERTYPE.to_be_bytes());
        }
        frame.resize(size, 0);
        frame
    }

    /// The same, with 0, 1, 2, ... behind Ethernet header and tags: every byte of it can be told from its neighbours.
    ///
    /// # Panics
    /// As [`Headers::frame`].
    #[must_use]
    pub fn counted_frame(&self, size: usize) -> Vec<u8> {
        let mut frame = self.frame(size);
        let filler = (0_u8..=255).cycle();
        let body = frame.iter_mut().skip(14 + 4 * self.tags.len());
        body.zip(filler).for_each(|(byte, fill)| *byte = fill);
        frame
    }
}

/// IPv4 and UDP headers around `payload` bytes; the UDP checksum is 0, "none".
fn ipv4_and_udp(payload: usize, (source, destination): (u16, u16)) -> Vec<u8> {
    let length = |n: usize| {
        u16::try_from(n)
            .expect("a frame fits an IPv4 packet")
            .to_be_bytes()
    };
    let mut header = vec![0x45, 0];
    header.extend(length(payload + IPV4_AND_UDP));
    header.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let checksum = !(sum.wrapping_add(sum >> 16) & 0xffff);
    header[10..12].copy_from_slice(&checksum.to_be_bytes()[2..]);
    header.extend(source.to_be_bytes());
    header.extend(destination.to_be_bytes());
    header.extend(length(payload + 8));
    header.extend([0, 0]);
    header
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which generator sent it.
    pub stream: u16,
    /// Its number in the stream, from 0.
    pub seq: u64,
    /// CLOCK_REALTIME at which it was handed to the kernel, in nanoseconds since 1970.
    pub sent_ns: u64,
}

/// Writes an identity into the payload that begins at `at`, and everything that depends on it.
///
/// # Panics
/// When less than [`FIELDS`] bytes follow `at`.
pub fn stamp(frame: &mut [u8], at: usize, identity: Identity) {
    let payload = &mut frame[at..];
    let length = u16::try_from(payload.len()).expect("payloads are shorter than 64 KiB");
    payload[0..4].copy_from_slice(&MAGIC.to_be_bytes());
    payload[4..6].copy_from_slice(&identity.stream.to_be_bytes());
    payload[6..8].copy_from_slice(&length.to_be_bytes());
    payload[8..16].copy_from_slice(&identity.seq.to_be_bytes());
    payload[16..24].copy_from_slice(&identity.sent_ns.to_be_bytes());
    fill(&mut payload[FIELDS..], identity.seq);
    let hash = hash(payload);
    payload[24..32].copy_from_slice(&hash.to_be_bytes());
}

/// Bytes that differ from frame to frame, so that a piece of another frame is seen.
fn fill(bytes: &mut [u8], seq: u64) {
    let mut state = seq.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in bytes.chunks_mut(8) {
        state = state.rotate_left(23).wrapping_mul(0xd6e8_feb8_6659_fd93);
        chunk.copy_from_slice(&state.to_be_bytes()[..chunk.len()]);
    }
}

/// Hash of a payload except its hash field.
fn hash(payload: &[u8]) -> u64 {
    let parts = payload[..24].chunks(8).chain(payload[FIELDS..].chunks(8));
    parts.fold(0xcbf2_9ce4_8422_2325, |hash: u64, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash.rotate_left(29) ^ u64::from_le_bytes(word)).wrapping_mul(0x9fb2_1c65_1e98_df25)
    })
}

/// What [`read`] makes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No frame of a generator.
    Foreign,
    /// Shorter or longer than it was sent.
    Cut(Identity),
    /// Of the right length, with other bytes.
    Corrupt(Identity),
    /// Byte for byte what was sent, from the payload's first byte to the last.
    Good(Identity),
}

/// Reads a frame, its tags in place.
#[must_use]
pub fn read(frame: &[u8]) -> Verdict {
    let Some(payload) = payload(frame) else {
        return Verdict::Foreign;
    };
    let word = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    let identity = Identity {
        stream: half(4),
        seq: word(8),
        sent_ns: word(16),
    };
    if usize::from(half(6)) != payload.len() {
        Verdict::Cut(identity)
    } else if word(24) != hash(payload) {
        Verdict::Corrupt(identity)
    } else {
        Verdict::Good(identity)
    }
}

/// The VLAN tags in front of a frame, the outer one first: (TPID, TCI).
#[must_use]
pub fn tags(frame: &[u8]) -> Vec<(u16, u16)> {
    let mut tags = Vec::new();
    let mut rest = frame.get(12..).unwrap_or_default();
    while let [a, b, c, d, tail @ ..] = rest {
        let tpid = u16::from_be_bytes([*a, *b]);
        if !TPIDS.contains(&tpid) {
            break;
        }
        tags.push((tpid, u16::from_be_bytes([*c, *d])));
        rest = tail;
    }
    tags
}

/// From the magic on, when it is there and all fields are.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    let kind = loop {
        let kind = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        if !TPIDS.contains(&kind) {
            break kind;
        }
        at += 4;
    };
    at += 2;
    if kind == IPV4 {
        at += IPV4_AND_UDP;
    }
    let payload = frame.get(at..)?;
    (payload.len() >= FIELDS && payload[..4] == MAGIC.to_be_bytes()).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Identity = Identity {
        stream: 7,
        seq: u64::MAX - 1,
        sent_ns: 123,
    };

    fn stamped(headers: &Headers, size: usize) -> Vec<u8> {
        let mut frame = headers.frame(size);
        stamp(&mut frame, headers.len(), ID);
        frame
    }

    #[test]
    fn frames_of_every_form_and_size_are_recognised() {
        for tags in [
            vec![],
            vec![(0x8100, 5)],
            vec![(0x88a8, 0xe001), (0x8100, 2)],
        ] {
            for udp in [None, Some((1, 2))] {
                let headers = Headers {
                    tags: tags.clone(),
                    udp,
                    ..Headers::default()
                };
                for size in (headers.len() + FIELDS..200).chain([1514, 9014]) {
                    let frame = stamped(&headers, size);
                    assert_eq!(frame.len(), size);
                    assert_eq!(read(&frame), Verdict::Good(ID));
                    assert_eq!(super::tags(&frame), tags);
                }
            }
        }
    }

    #[test]
    fn any_flipped_bit_of_the_payload_is_seen() {
        let frame = stamped(&Headers::default(), 100);
        for bit in 14 * 8..frame.len() * 8 {
            let mut wrong = frame.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(read(&wrong), Verdict::Good(_)), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_seen() {
        let frame = stamped(&Headers::default(), 100);
        for len in 0..frame.len() {
            let expected = if len < 14 + FIELDS {
                Verdict::Foreign
            } else {
                Verdict::Cut(ID)
            };
            assert_eq!(read(&frame[..len]), expected, "{len} bytes");
        }
    }

    #[test]
    fn the_ipv4_header_has_a_right_checksum() {
        let frame = stamped(
            &Headers {
                udp: Some((1000, 2000)),
                ..Headers::default()
            },
            80,
        );
        let sum: u32 = frame[14..34]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
