//! TCP as a bulk transfer and as HTTP, in frames that GRO joins wherever it is on; packet files of them.

use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const SYN: u8 = 0x02;
const FIN: u8 = 0x01;

/// Bytes of data in a full frame.
const FULL: usize = 1460;

/// One conversation of a client with a server, frame by frame.
pub(crate) struct Conversation {
    client: [u8; 4],
    port: u16,
    /// Next sequence numbers of the client and of the server.
    seq: [u32; 2],
    pub(crate) frames: Vec<Vec<u8>>,
}

impl Conversation {
    /// Begins with the handshake.
    pub(crate) fn new(client: [u8; 4], port: u16) -> Conversation {
        let mut conversation = Conversation {
            client,
            port,
            seq: [1000, 500_000],
            frames: Vec::new(),
        };
        conversation.say(0, SYN, &[]);
        conversation.say(1, SYN | ACK, &[]);
        conversation.say(0, ACK, &[]);
        conversation
    }

    /// A frame of side 0, the client, or 1, the server.
    fn say(&mut self, side: usize, flags: u8, data: &[u8]) {
        let server = [192, 0, 2, 80];
        let (from, to) = if side == 0 {
            (self.client, server)
        } else {
            (server, self.client)
        };
        let ports = if side == 0 {
            [self.port, 80]
        } else {
            [80, self.port]
        };
        let mut tcp = Vec::new();
        tcp.extend(ports[0].to_be_bytes());
        tcp.extend(ports[1].to_be_bytes());
        tcp.extend(self.seq[side].to_be_bytes());
        let seen = if flags & ACK != 0 {
            self.seq[1 - side]
        } else {
            0
        };
        tcp.extend(seen.to_be_bytes());
        tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(data);
        let length = u16::try_from(tcp.len()).expect("a frame is short");
        let mut pseudo = [from, to].concat();
        pseudo.extend([0, 6]);
        pseudo.extend(length.to_be_bytes());
        pseudo.extend(&tcp);
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let number = u16::try_from(self.frames.len() % 65_536).expect("below 65,536");
        let mut ip = vec![0x45, 0];
        ip.extend((length + 20).to_be_bytes());
        ip.extend(number.to_be_bytes());
        ip.extend([0x40, 0, 64, 6, 0, 0]);
        ip.extend([from, to].concat());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![2, 0, 0, 0, 0, if side == 0 { 2 } else { 1 }];
        frame.extend([2, 0, 0, 0, 0, if side == 0 { 1 } else { 2 }, 8, 0]);
        frame.extend(ip);
        frame.extend(tcp);
        // Shorter ones would be padded on a real wire.
        frame.resize(frame.len().max(60), 0);
        let more = u32::from(flags & (SYN | FIN) != 0) + u32::try_from(data.len()).expect("short");
        self.seq[side] = self.seq[side].wrapping_add(more);
        self.frames.push(frame);
    }

    /// Bulk data of the client, in full frames, which the server acknowledges now and then.
    pub(crate) fn transfer(mut self, frames: usize) -> Conversation {
        for n in 0..frames {
            let data: Vec<u8> = (0..FULL).map(|at| (n * 7 + at).to_le_bytes()[0]).collect();
            self.say(0, ACK, &data);
            if n % 16 == 15 {
                self.say(1, ACK, &[]);
            }
        }
        self
    }

    /// A request, and an answer of several frames.
    pub(crate) fn fetch(mut self, path: &str) -> Conversation {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: fluxcap.example\r\nUser-Agent: test\r\n\r\n");
        self.say(0, ACK | PSH, request.as_bytes());
        let body = vec![b'x'; 20 * FULL];
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = [head.as_bytes(), &body].concat();
        for part in answer.chunks(FULL) {
            self.say(1, ACK, part);
        }
        self.say(0, ACK, &[]);
        self
    }

    /// The end.
    pub(crate) fn close(mut self) -> Vec<Vec<u8>> {
        self.say(0, ACK | FIN, &[]);
        self.say(1, ACK | FIN, &[]);
        self.say(0, ACK, &[]);
        self.frames
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or(0);
        u64::from(u16::from_be_bytes([word[0], low]))
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// Writes a packet file.
pub(crate) fn write(path: &Path, frames: &[Vec<u8>]) {
    let file = BufWriter::new(File::create(path).expect("make a packet file"));
    let mut writer = PcapWriter::new(file).expect("write a packet file");
    for (n, frame) in (0..).zip(frames) {
        let length = u32::try_from(frame.len()).expect("short");
        let packet = PcapPacket::new(Duration::from_micros(n), length, frame);
        writer.write_packet(&packet).expect("write a packet");
    }
}

/// The frames of a packet file.
pub(crate) fn read(path: &Path) -> Vec<Vec<u8>> {
    let file = BufReader::new(File::open(path).expect("open a packet file"));
    let mut reader = PcapReader::new(file).expect("read a packet file");
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.expect("a packet").data.into_owned());
    }
    frames
}

/// Packet files of Ethernet in a folder that this reader knows.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("list captures");
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "pcap"))
        .filter(|path| {
            let file = File::open(path).expect("open a packet file");
            let reader = PcapReader::new(BufReader::new(file));
            reader.is_ok_and(|reader| u32::from(reader.header().datalink) == 1)
        })
        .collect();
    files.sort();
    files
}
