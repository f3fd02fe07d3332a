//! Frames of every kind that the programs take apart, whole and damaged.

use crate::random::Random;
use fluxcap_headers::{VlanTag, WireFrame};

/// A frame as traffic control has it.
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    /// The tag that is not among the bytes.
    pub(crate) tag: Option<VlanTag>,
}

impl Frame {
    /// As it was on the wire.
    pub(crate) fn wire(&self) -> WireFrame<'_> {
        let tag_len = self.tag.map_or(0, |_| 4);
        let wire_len = self.bytes.len() + tag_len;
        let mut frame = WireFrame::new(&self.bytes, wire_len as u32);
        if let Some(tag) = self.tag {
            assert!(frame.restore_tag(tag));
        }
        frame
    }

    /// The tag, as the programs want to be told of it.
    pub(crate) fn held(&self) -> u32 {
        self.tag
            .map_or(0, |tag| u32::from(tag.tpid) << 16 | u32::from(tag.tci))
    }
}

pub(crate) const PORTS: [u16; 12] = [
    0, 1, 22, 53, 80, 255, 256, 443, 8080, 33_000, 65_534, 65_535,
];
pub(crate) const PROTOCOLS: [u8; 14] = [6, 6, 6, 17, 17, 17, 1, 58, 132, 33, 136, 47, 50, 60];
pub(crate) const VIDS: [u16; 7] = [0, 5, 6, 7, 100, 4094, 4095];
pub(crate) const FLAGS: [u8; 7] = [0x02, 0x12, 0x10, 0x18, 0x04, 0x11, 0xc2];
/// An Ethernet header.
const SHORTEST: usize = 14;
/// Extension headers of IPv6.
const EXTENSIONS: [u8; 10] = [0, 43, 60, 60, 51, 44, 44, 135, 139, 140];

pub(crate) fn v4_address(random: &mut Random) -> [u8; 4] {
    match random.below(4) {
        0 => [10, 0, 0, random.pick(&[0, 1, 2, 255])],
        1 => [10, random.pick(&[0, 1, 128]), random.byte() % 4, 1],
        2 => [192, 0, 2, random.byte()],
        _ => [random.byte(), random.byte(), 0, 1],
    }
}

pub(crate) fn v6_address(random: &mut Random) -> [u8; 16] {
    let mut address = [0; 16];
    let front: &[u8] = random.pick(&[
        &[0x20, 0x01, 0x0d, 0xb8],
        &[0xfd, 0],
        &[0xfe, 0x80],
        // A mapped IPv4 address stays one of IPv6.
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0],
    ]);
    address[..front.len()].copy_from_slice(front);
    if random.once_in(3) {
        address[5] = random.byte() % 4;
    }
    address[15] = random.pick(&[0, 1, 2, 255]);
    address
}

fn port(random: &mut Random) -> [u8; 2] {
    let any = random.next() as u16;
    let port = random.pick(&PORTS);
    if random.once_in(4) { any } else { port }.to_be_bytes()
}

fn tag(random: &mut Random, tpids: &[u16]) -> VlanTag {
    let flags = random.pick(&[0u16, 0x1000, 0xe000]);
    VlanTag {
        tpid: random.pick(tpids),
        tci: flags | random.pick(&VIDS),
    }
}

/// One frame, of at least [`SHORTEST`] bytes.
pub(crate) fn frame(random: &mut Random) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, random.byte() % 3];
    bytes.extend([2, 0, 0, 0, 0, random.byte() % 3]);
    for _ in 0..random.pick(&[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5]) {
        bytes.extend(tag(random, &[0x8100, 0x88a8, 0x9100]).to_bytes());
    }
    match random.below(20) {
        0..10 => v4(random, &mut bytes),
        10..18 => v6(random, &mut bytes),
        18 => {
            bytes.extend([0x08, 0x06]);
            bytes.extend(random.bytes(28));
        }
        _ => {
            bytes.extend(random.pick(&[[0x88, 0xcc], [0x08, 0x00], [0x86, 0xdd], [0, 40]]));
            let count = random.below(60);
            bytes.extend(random.bytes(count));
        }
    }
    if random.once_in(4) {
        let cut = SHORTEST + random.below(bytes.len() - SHORTEST + 1);
        bytes.truncate(cut);
    }
    let held = random.once_in(3);
    Frame {
        bytes,
        // Other tags the kernel leaves where they are.
        tag: held.then(|| tag(random, &[0x8100, 0x88a8])),
    }
}

/// RFC 791.
fn v4(random: &mut Random, frame: &mut Vec<u8>) {
    let words = random.pick(&[5u8, 5, 5, 5, 6, 7, 10, 15, 4, 0]);
    let version = if random.once_in(40) { 6 } else { 4 };
    let offset: u16 = match random.below(10) {
        0 => 0x2000,
        1 => 0x2000 | (1 + random.below(100) as u16),
        2 => 0x0001,
        3 => 0x8000,
        _ => random.pick(&[0, 0x4000]),
    };
    let protocol = random.pick(&PROTOCOLS);
    frame.extend([0x08, 0x00, version << 4 | words, 0, 0, 100, 1, 2]);
    frame.extend(offset.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(v4_address(random));
    frame.extend(v4_address(random));
    let options = usize::from(words.saturating_sub(5)) * 4;
    frame.extend(random.bytes(options));
    upper(random, protocol, frame);
}

/// RFC 8200.
fn v6(random: &mut Random, frame: &mut Vec<u8>) {
    let count = random.pick(&[0, 0, 0, 0, 1, 1, 1, 2, 3, 7, 8, 9, 10]);
    let chain: Vec<u8> = (0..count).map(|_| random.pick(&EXTENSIONS)).collect();
    let protocol = random.pick(&PROTOCOLS);
    let version = if random.once_in(40) { 4 } else { 6 };
    let first = chain.first().copied().unwrap_or(protocol);
    frame.extend([0x86, 0xdd, version << 4, 0, 0, 0, 0, 100, first, 64]);
    frame.extend(v6_address(random));
    frame.extend(v6_address(random));
    for (place, header) in chain.iter().enumerate() {
        let next = chain.get(place + 1).copied().unwrap_or(protocol);
        let length = random.pick(&[0u8, 0, 0, 1, 2, 9]);
        let rest = match header {
            44 => {
                let offset: u16 = random.pick(&[0, 1, 8, 9, 0x0006, 0xfff8]);
                let [a, b] = offset.to_be_bytes();
                vec![next, length, a, b, 0, 0, 0, 1]
            }
            51 => {
                let mut rest = random.bytes((usize::from(length) + 2) * 4);
                (rest[0], rest[1]) = (next, length);
                rest
            }
            _ => {
                let mut rest = random.bytes((usize::from(length) + 1) * 8);
                (rest[0], rest[1]) = (next, length);
                rest
            }
        };
        frame.extend(rest);
    }
    upper(random, protocol, frame);
}

fn upper(random: &mut Random, protocol: u8, frame: &mut Vec<u8>) {
    match protocol {
        6 | 17 | 33 | 132 | 136 => {
            frame.extend(port(random));
            frame.extend(port(random));
            frame.extend(random.bytes(8));
            frame.extend([0x50, random.pick(&FLAGS)]);
        }
        _ => frame.extend(random.bytes(8)),
    }
    let payload = random.below(40);
    frame.extend(random.bytes(payload));
}
