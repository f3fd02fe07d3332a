//! Who sends into a tunnel, and what the network lost on the way: a bounded table of the streams that come in.

use fluxcap_headers::tunnel::{Decoded, Granularity, SenderTime, Step};
use fluxcap_proto::v1;
use std::collections::HashMap;
use std::net::IpAddr;

/// Most streams in the table.
const MOST: usize = 1024;
/// A number so far behind, or ahead, is that of a sender that began anew; nothing between the two was lost.
const RESTART_BEHIND: u32 = 1024;
const RESTART_AHEAD: u32 = 1 << 24;
/// Most identifiers without a ring that are told apart.
const MOST_UNKNOWN: usize = 64;

/// The streams, each of one address and one identifier.
#[derive(Debug, Default)]
pub(crate) struct Senders {
    places: HashMap<(IpAddr, Option<u32>), usize>,
    streams: Vec<Stream>,
    /// The place of the last packet's stream.
    last: usize,
    /// Packets of streams for which there was no room.
    unlisted: u64,
}

#[derive(Debug)]
struct Stream {
    key: (IpAddr, Option<u32>),
    packets: u64,
    /// Highest number so far.
    sequence: Option<u32>,
    missing: u64,
    late: u64,
    /// Time of the sender's clock, and its unit in nanoseconds; 0 when that is not known.
    ticks: Option<(u32, u32)>,
    seen_ns: u64,
}

impl Senders {
    /// Enters a packet. True when a later one of its stream came before it.
    #[inline]
    pub(crate) fn note(&mut self, address: IpAddr, decoded: &Decoded<'_>, now_ns: u64) -> bool {
        let Some(stream) = self.find((address, decoded.id)) else {
            self.unlisted += 1;
            return false;
        };
        stream.packets += 1;
        stream.seen_ns = now_ns;
        if let Some(SenderTime::Ticks(ticks, unit)) = decoded.time {
            stream.ticks = Some((ticks, nanoseconds(unit)));
        }
        decoded.sequence.is_some_and(|now| stream.follow(now))
    }

    fn find(&mut self, key: (IpAddr, Option<u32>)) -> Option<&mut Stream> {
        if self
            .streams
            .get(self.last)
            .is_none_or(|last| last.key != key)
        {
            self.last = match self.places.get(&key) {
                Some(place) => *place,
                None if self.streams.len() < MOST => self.add(key),
                None => return None,
            };
        }
        self.streams.get_mut(self.last)
    }

    #[cold]
    fn add(&mut self, key: (IpAddr, Option<u32>)) -> usize {
        let place = self.streams.len();
        self.places.insert(key, place);
        self.streams.push(Stream {
            key,
            packets: 0,
            sequence: None,
            missing: 0,
            late: 0,
            ticks: None,
            seen_ns: 0,
        });
        place
    }

    /// Enters the table into a status.
    pub(crate) fn show(&self, status: &mut v1::TunnelReceiveStatus) {
        status.unlisted_packets = self.unlisted;
        status.missing_packets = self.streams.iter().map(|stream| stream.missing).sum();
        status.reordered_packets = self.streams.iter().map(|stream| stream.late).sum();
        status.senders = self.streams.iter().map(Stream::to_message).collect();
    }
}

impl Stream {
    /// Takes note of the number of a packet. True when it comes late, or again.
    fn follow(&mut self, now: u32) -> bool {
        let Some(highest) = self.sequence.replace(now) else {
            return false;
        };
        match Step::between(highest, now) {
            Step::Next => false,
            Step::Gap(missing) => {
                if missing < RESTART_AHEAD {
                    self.missing += u64::from(missing);
                }
                false
            }
            Step::Behind(behind) if behind > RESTART_BEHIND => false,
            Step::Behind(behind) => {
                self.sequence = Some(highest);
                self.late += 1;
                // What comes late was taken for missing; what comes again was not.
                self.missing = self.missing.saturating_sub(u64::from(behind != 0));
                true
            }
        }
    }

    fn to_message(&self) -> v1::TunnelSender {
        let (address, id) = self.key;
        v1::TunnelSender {
            address: address.to_string(),
            id,
            packets: self.packets,
            last_sequence: self.sequence,
            missing_packets: self.missing,
            reordered_packets: self.late,
            last_timestamp: self.ticks.map(|(ticks, _)| ticks),
            timestamp_unit_ns: self.ticks.map_or(0, |(_, unit)| unit),
            last_seen_ns: self.seen_ns,
        }
    }
}

fn nanoseconds(unit: Granularity) -> u32 {
    match unit {
        Granularity::HundredMicroseconds => 100_000,
        Granularity::HundredNanoseconds => 100,
        Granularity::Ieee1588 | Granularity::UserDefined => 0,
    }
}

/// Identifiers of packets for which no ring is named, the first ones that came.
#[derive(Debug, Default)]
pub(crate) struct UnknownIds(Vec<(Option<u32>, u64)>);

impl UnknownIds {
    /// Counts a packet.
    pub(crate) fn count(&mut self, id: Option<u32>) {
        if let Some((_, packets)) = self.0.iter_mut().find(|(known, _)| *known == id) {
            *packets += 1;
        } else if self.0.len() < MOST_UNKNOWN {
            self.0.push((id, 1));
        }
    }

    /// Enters the list into a status.
    pub(crate) fn show(&self, status: &mut v1::TunnelReceiveStatus) {
        let unknown = self.0.iter();
        status.unknown_ids = unknown
            .map(|&(id, packets)| v1::TunnelIdStatus { id, packets })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        let mut senders = Senders::default();
        senders.add((IpAddr::from([192, 0, 2, 1]), Some(7)));
        senders.streams.remove(0)
    }

    /// What is missing and what came late after these numbers.
    fn follow(numbers: &[u32]) -> (u64, u64) {
        let mut stream = stream();
        for number in numbers {
            stream.follow(*number);
        }
        (stream.missing, stream.late)
    }

    #[test]
    fn gaps_are_counted_across_the_wrap_and_closed_by_what_comes_late() {
        assert_eq!(follow(&[5, 6, 7]), (0, 0));
        assert_eq!(follow(&[0, 3]), (2, 0));
        assert_eq!(follow(&[u32::MAX - 1, 1]), (2, 0));
        assert_eq!(follow(&[0, 3, 1, 2, 4]), (0, 2));
        assert_eq!(follow(&[0, 3, 3, 3]), (2, 2));
        assert_eq!(follow(&[0, 1, 0]), (0, 1));
    }

    #[test]
    fn sender_that_begins_anew_has_lost_nothing() {
        assert_eq!(follow(&[50_000, 0, 1, 2]), (0, 0));
        assert_eq!(follow(&[5, 0x4000_0000, 0x4000_0001]), (0, 0));
        assert_eq!(follow(&[5, 0x8000_0009, 0x8000_000a]), (0, 0));
        let mut late = stream();
        assert!(!late.follow(2000) && late.follow(976) && !late.follow(975));
        assert!(!late.follow(976));
    }

    #[test]
    fn full_table_counts_what_has_no_place_in_it() {
        let mut senders = Senders::default();
        let mut status = v1::TunnelReceiveStatus::default();
        let decoder = fluxcap_headers::tunnel::Decap::new(fluxcap_headers::tunnel::DecapSpec::new(
            fluxcap_headers::tunnel::TunnelKind::Vxlan,
        ));
        let mut packet = [0; 60];
        packet[0] = 8;
        for round in 1..=2 {
            for number in 0..1030_u32 {
                packet[4..8].copy_from_slice(&(number << 8).to_be_bytes());
                let decoded = decoder.as_ref().map(|it| it.decode(&packet));
                let Ok(Ok(decoded)) = decoded else {
                    panic!("{decoded:?}");
                };
                assert!(!senders.note(IpAddr::from([192, 0, 2, 1]), &decoded, 5));
            }
            senders.show(&mut status);
            assert_eq!(
                (status.senders.len(), status.unlisted_packets),
                (1024, 6 * round)
            );
            assert!(status.senders.iter().all(|sender| sender.packets == round));
        }
        assert_eq!(status.senders[7].id, Some(7));
    }

    #[test]
    fn first_unknown_identifiers_are_told_apart() {
        let mut unknown = UnknownIds::default();
        for _ in 0..2 {
            (0..100).for_each(|id| unknown.count(Some(id).filter(|id| *id != 0)));
        }
        let mut status = v1::TunnelReceiveStatus::default();
        unknown.show(&mut status);
        let ids = status.unknown_ids;
        assert_eq!((ids.len(), ids[0].id, ids[63].id), (64, None, Some(63)));
        assert!(ids.iter().all(|id| id.packets == 2));
    }
}
