//! pcapng files with nanosecond times, as Wireshark and tcpdump read them (draft-ietf-opsawg-pcapng).
//!
//! One interface description for each source of the ring, enhanced packet blocks with direction and drops, and
//! interface statistics at the end.

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};
use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

/// The longest frame that libpcap and Wireshark accept (`MAXIMUM_SNAPLEN` of libpcap); the rest of a longer one is cut.
pub(super) const LONGEST: usize = 262_144;

/// 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// A frame to write.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub(super) timestamp_ns: u64,
    /// Length on the wire in bytes.
    pub(super) wire_len: u32,
    pub(super) outgoing: bool,
    /// Key, network or session of the tunnel that it came through; 0 when there was none.
    pub(super) id: u32,
    pub(super) data: &'a [u8],
}

/// What is known of an interface at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Totals {
    name: String,
    /// Frames that the ring delivered, before the filter.
    seen: u64,
    written: u64,
    /// Dropped by the kernel before they reached the ring.
    kernel_drops: u64,
    /// Overwritten in the ring before they were read.
    lapped: u64,
    /// Drops not yet told, for the next packet.
    untold: u64,
}

/// Writes a capture file, one interface for each name.
pub(super) struct Writer<W: Write> {
    file: PcapNgWriter<W>,
    filter: String,
    interfaces: Vec<Totals>,
    started_ns: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file. `filter` is noted with each interface when it is not empty.
    pub(super) fn new(output: W, filter: &str, started_ns: u64) -> io::Result<Writer<W>> {
        let section = SectionHeaderBlock {
            // Fixed, so that files are the same whatever host writes them.
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(
                concat!("fluxctl ", env!("CARGO_PKG_VERSION")),
            ))],
            ..SectionHeaderBlock::default()
        };
        let file = PcapNgWriter::with_section_header(output, section).map_err(to_io)?;
        Ok(Writer {
            file,
            filter: filter.to_owned(),
            interfaces: Vec::new(),
            started_ns,
        })
    }

    /// The number of the interface called `name`, which is described in the file when it is new.
    pub(super) fn interface(&mut self, name: &str) -> io::Result<usize> {
        if let Some(known) = self
            .interfaces
            .iter()
            .position(|interface| interface.name == name)
        {
            return Ok(known);
        }
        let mut options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        if !self.filter.is_empty() {
            // A leading 0 byte says: a string of libpcap.
            let filter = [&[0], self.filter.as_bytes()].concat();
            options.push(InterfaceDescriptionOption::IfFilter(Cow::Owned(filter)));
        }
        // libpcap wants the same snap length for all interfaces of a file.
        let snaplen = u32::try_from(LONGEST).unwrap_or(u32::MAX);
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen,
            options,
        };
        self.file.write_pcapng_block(block).map_err(to_io)?;
        self.interfaces.push(Totals {
            name: name.to_owned(),
            ..Totals::default()
        });
        Ok(self.interfaces.len() - 1)
    }

    /// Counts a frame that the ring delivered, whether it is written or not.
    pub(super) fn seen(&mut self, interface: usize) {
        if let Some(totals) = self.interfaces.get_mut(interface) {
            totals.seen += 1;
        }
    }

    /// Counts frames that the kernel dropped on an interface; the next packet from there tells of them.
    pub(super) fn kernel_drops(&mut self, interface: usize, frames: u64) {
        if let Some(totals) = self.interfaces.get_mut(interface) {
            totals.kernel_drops = totals.kernel_drops.saturating_add(frames);
            totals.untold = totals.untold.saturating_add(frames);
        }
    }

    /// Counts frames that were lost in the ring; the next packet of this interface tells of them.
    pub(super) fn lapped(&mut self, interface: usize, frames: u64) {
        if let Some(totals) = self.interfaces.get_mut(interface) {
            totals.lapped = totals.lapped.saturating_add(frames);
            totals.untold = totals.untold.saturating_add(frames);
        }
    }

    /// Writes a packet.
    pub(super) fn packet(&mut self, interface: usize, packet: &Packet<'_>) -> io::Result<()> {
        let Some(totals) = self.interfaces.get_mut(interface) else {
            return Ok(());
        };
        let mut options = vec![EnhancedPacketOption::Flags(if packet.outgoing {
            2
        } else {
            1
        })];
        if totals.untold > 0 {
            options.push(EnhancedPacketOption::DropCount(totals.untold));
        }
        if packet.id != 0 {
            let comment = format!("tunnel id {}", packet.id);
            options.push(EnhancedPacketOption::Comment(Cow::Owned(comment)));
        }
        let block = EnhancedPacketBlock {
            interface_id: u32::try_from(interface).unwrap_or(u32::MAX),
            timestamp: Duration::from_nanos(packet.timestamp_ns),
            original_len: packet.wire_len,
            data: Cow::Borrowed(&packet.data[..packet.data.len().min(LONGEST)]),
            options,
        };
        self.file.write_pcapng_block(block).map_err(to_io)?;
        totals.untold = 0;
        totals.written += 1;
        Ok(())
    }

    /// Hands on what was written so far.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.get_mut().flush()
    }

    /// Ends the file with the statistics of each interface. A file without any interface could not be read, so it
    /// gets one called `default_name`.
    pub(super) fn finish(&mut self, default_name: &str, now_ns: u64) -> io::Result<()> {
        if self.interfaces.is_empty() {
            self.interface(default_name)?;
        }
        for (interface, totals) in self.interfaces.iter().enumerate() {
            use InterfaceStatisticsOption::{
                IsbEndTime, IsbFilterAccept, IsbIfDrop, IsbIfRecv, IsbOsDrop, IsbStartTime,
                IsbUsrDeliv,
            };
            let block = InterfaceStatisticsBlock {
                interface_id: u32::try_from(interface).unwrap_or(u32::MAX),
                timestamp: two_words(now_ns),
                options: vec![
                    IsbStartTime(two_words(self.started_ns)),
                    IsbEndTime(two_words(now_ns)),
                    IsbIfRecv(
                        totals
                            .seen
                            .saturating_add(totals.kernel_drops)
                            .saturating_add(totals.lapped),
                    ),
                    IsbIfDrop(totals.kernel_drops),
                    IsbFilterAccept(totals.written),
                    IsbOsDrop(totals.lapped),
                    IsbUsrDeliv(totals.written),
                ],
            };
            self.file.write_pcapng_block(block).map_err(to_io)?;
        }
        self.flush()
    }
}

/// A time as pcapng has it: two 32-bit words, the upper one first. The library writes it as one 64-bit word, which in a
/// little-endian file has the lower one first.
fn two_words(ns: u64) -> u64 {
    ns.rotate_left(32)
}

fn to_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcapng::{Block, PcapNgReader};

    const NOW: u64 = 1_700_000_000_123_456_789;

    fn blocks(file: &[u8]) -> Vec<Block<'static>> {
        let mut reader = PcapNgReader::new(file).unwrap();
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block() {
            blocks.push(block.unwrap().into_owned());
        }
        blocks
    }

    fn written(fill: impl FnOnce(&mut Writer<&mut Vec<u8>>)) -> Vec<Block<'static>> {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "tcp", NOW).unwrap();
        fill(&mut writer);
        writer.finish("cisco", NOW).unwrap();
        blocks(&file)
    }

    #[test]
    fn packets_keep_time_length_direction_and_bytes() {
        let data: Vec<u8> = (0..61).collect();
        let packet = Packet {
            timestamp_ns: NOW,
            wire_len: 9000,
            outgoing: true,
            id: 9001,
            data: &data,
        };
        let blocks = written(|writer| {
            let eth1 = writer.interface("eth1").unwrap();
            assert_eq!(writer.interface("eth1").unwrap(), eth1);
            writer.packet(eth1, &packet).unwrap();
        });
        let Block::InterfaceDescription(description) = &blocks[0] else {
            panic!("{:?}", blocks[0])
        };
        assert!(
            description
                .options
                .contains(&InterfaceDescriptionOption::IfName("eth1".into()))
        );
        assert!(
            description
                .options
                .contains(&InterfaceDescriptionOption::IfTsResol(9))
        );
        let Block::EnhancedPacket(read) = &blocks[1] else {
            panic!("{:?}", blocks[1])
        };
        assert_eq!(read.timestamp, Duration::from_nanos(NOW));
        assert_eq!((read.original_len, &*read.data), (9000, &data[..]));
        let comment = EnhancedPacketOption::Comment("tunnel id 9001".into());
        assert_eq!(read.options, [EnhancedPacketOption::Flags(2), comment]);
    }

    #[test]
    fn drops_are_told_once_with_the_next_packet_of_their_interface() {
        let packet = Packet {
            timestamp_ns: NOW,
            wire_len: 1,
            id: 0,
            outgoing: false,
            data: &[0],
        };
        let blocks = written(|writer| {
            let (a, b) = (
                writer.interface("a").unwrap(),
                writer.interface("b").unwrap(),
            );
            writer.kernel_drops(a, 5);
            writer.packet(b, &packet).unwrap();
            writer.lapped(a, 2);
            writer.packet(a, &packet).unwrap();
            writer.packet(a, &packet).unwrap();
        });
        let drops: Vec<Option<u64>> = blocks
            .iter()
            .filter_map(|block| match block {
                Block::EnhancedPacket(packet) => {
                    Some(packet.options.iter().find_map(|option| match option {
                        EnhancedPacketOption::DropCount(frames) => Some(*frames),
                        _ => None,
                    }))
                }
                _ => None,
            })
            .collect();
        assert_eq!(drops, [None, Some(7), None]);
    }

    #[test]
    fn the_end_has_statistics_of_each_interface() {
        let packet = Packet {
            timestamp_ns: NOW,
            wire_len: 1,
            id: 0,
            outgoing: false,
            data: &[0],
        };
        let blocks = written(|writer| {
            let a = writer.interface("a").unwrap();
            writer.seen(a);
            writer.seen(a);
            writer.kernel_drops(a, 3);
            writer.packet(a, &packet).unwrap();
        });
        let Some(Block::InterfaceStatistics(end)) = blocks.last() else {
            panic!("{:?}", blocks.last())
        };
        assert_eq!(end.timestamp, two_words(NOW));
        assert!(
            end.options
                .contains(&InterfaceStatisticsOption::IsbIfRecv(5))
        );
        assert!(
            end.options
                .contains(&InterfaceStatisticsOption::IsbIfDrop(3))
        );
        assert!(
            end.options
                .contains(&InterfaceStatisticsOption::IsbUsrDeliv(1))
        );
    }

    #[test]
    fn a_file_without_frames_still_has_an_interface() {
        let blocks = written(|_| ());
        assert!(matches!(
            &blocks[..],
            [
                Block::InterfaceDescription(_),
                Block::InterfaceStatistics(_)
            ]
        ));
    }

    #[test]
    fn frames_longer_than_readers_take_are_cut() {
        let data = vec![0; LONGEST + 1];
        let packet = Packet {
            timestamp_ns: 0,
            wire_len: 300_000,
            id: 0,
            outgoing: false,
            data: &data,
        };
        let blocks = written(|writer| {
            let a = writer.interface("a").unwrap();
            writer.packet(a, &packet).unwrap();
        });
        let Block::EnhancedPacket(read) = &blocks[1] else {
            panic!("{:?}", blocks[1])
        };
        assert_eq!((read.data.len(), read.original_len), (LONGEST, 300_000));
    }
}
