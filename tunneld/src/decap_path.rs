//! The data path of a tunnel that receives: socket -> decapsulation -> ring by identifier -> edits -> burst. What happens for each
//! packet is in [`DecapPath::admit`] and [`DecapPath::push`]; nothing here logs, locks, or allocates for each packet, and it
//! sleeps only for a ring in wait mode.

use crate::rings::{Rings, Target};
use crate::senders::{Senders, UnknownIds};
use crate::stats::{Cause, ReceiveLive};
use fluxcap_datapath::recycle;
use fluxcap_headers::tunnel::{Decap, Decoded, Direction as Seen, Link, Reject, TunnelKind};
use fluxcap_headers::{Edited, Edits, WireFrame};
use fluxcap_options::Network;
use fluxcap_ring::{
    Burst, Direction, DropReason, Flags, Meta, Mode, Producer, SOURCES, record_size,
};
use fluxcap_socket::{Datagram, Datagrams, Error, TunnelReceiver};
use std::net::IpAddr;
use std::time::Duration;

/// Packets that are dealt with together: each ring gets one burst of what came for it among them.
const CHUNK: usize = 512;
/// Bytes reserved in a ring at a time.
const BURST_BYTES: usize = 64 << 10;
/// What an Ethernet header, a restored and a pushed VLAN tag can add to a frame.
const ADDED_BYTES: usize = 22;
/// Longest frame: an IP packet behind an Ethernet header.
const FRAME_MAX: usize = 65_536 + 14;
/// Longest wait for the consumers of a ring in wait mode before stop is looked for.
const WAIT: Duration = Duration::from_millis(10);
/// The end of a list of packets.
const NONE: usize = usize::MAX;

/// What a receiver takes, and where it puts it.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The format.
    pub(crate) decap: Decap,
    /// Senders that are listened to; empty listens to all.
    pub(crate) from: Vec<Network>,
    /// Drops what comes late (RFC 2890 2.2).
    pub(crate) in_order: bool,
    /// The place of the ring of each identifier, sorted.
    pub(crate) ids: Vec<(Option<u32>, usize)>,
    /// The place of the ring of all others.
    pub(crate) default: Option<usize>,
    /// Destination and source of the Ethernet header that IP packets get.
    pub(crate) macs: [u8; 12],
}

impl Rules {
    fn welcomes(&self, address: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|network| network.contains(address))
    }

    fn ring_of(&self, id: Option<u32>) -> Option<usize> {
        let found = self.ids.binary_search_by_key(&id, |(id, _)| *id);
        let named = found.ok().and_then(|at| self.ids.get(at));
        named.map(|(_, place)| *place).or(self.default)
    }
}

/// The way of packets into rings, and what is known of their senders.
#[derive(Debug)]
pub(crate) struct DecapPath {
    rules: Rules,
    edits: Edits,
    tunnel: String,
    pub(crate) senders: Senders,
    pub(crate) unknown: UnknownIds,
    /// The sender that was let in last.
    welcome: Option<IpAddr>,
    /// The place of the ring that the last identifier has.
    last_id: Option<(Option<u32>, Option<usize>)>,
    /// Memory for the packets of a chunk.
    entries: Vec<Entry<'static>>,
    /// First and last packet of each ring, by the ring's place.
    lists: Vec<(usize, usize)>,
    /// Rings for which there are packets.
    touched: Vec<usize>,
    /// Room for a frame that is put together.
    scratch: Vec<u8>,
}

/// A packet on its way into a ring.
#[derive(Debug, Clone, Copy)]
struct Entry<'b> {
    decoded: Decoded<'b>,
    address: IpAddr,
    timestamp_ns: u64,
    /// Place of its sender in the ring's source table.
    source: u16,
    /// The next packet for the same ring.
    next: usize,
}

/// What became of the packets of a chunk.
#[derive(Debug)]
struct Tally {
    packets: u64,
    bytes: u64,
    published: u64,
    truncated: u64,
    drops: [u32; Cause::COUNT],
}

/// What became of the packets of one burst; the ring's books have it too.
#[derive(Debug, Default)]
struct RingTally {
    bytes: u64,
    truncated: u64,
    drops: [u32; DropReason::ALL.len()],
}

impl DecapPath {
    /// A path for `rings` rings.
    pub(crate) fn new(tunnel: &str, rules: Rules, edits: Edits, rings: usize) -> DecapPath {
        DecapPath {
            rules,
            edits,
            tunnel: tunnel.to_owned(),
            senders: Senders::default(),
            unknown: UnknownIds::default(),
            welcome: None,
            last_id: None,
            entries: Vec::with_capacity(CHUNK),
            lists: vec![(NONE, NONE); rings],
            touched: Vec::with_capacity(rings.min(CHUNK)),
            scratch: Vec::with_capacity(FRAME_MAX),
        }
    }

    /// Goes by other rules, with `rings` rings, from now on.
    pub(crate) fn set(&mut self, rules: Rules, edits: Edits, rings: usize) {
        let known = std::mem::take(&mut self.senders);
        let unknown = std::mem::take(&mut self.unknown);
        let tunnel = std::mem::take(&mut self.tunnel);
        *self = DecapPath::new(&tunnel, rules, edits, rings);
        (self.senders, self.unknown) = (known, unknown);
    }

    /// Moves a batch from a socket into rings. `stop` ends the wait for the consumers of a ring in wait mode; what is left is then
    /// counted as `paused`.
    ///
    /// # Errors
    /// When the sockets cannot be read.
    pub(crate) fn pump(
        &mut self,
        receiver: &mut TunnelReceiver,
        rings: &mut Rings,
        live: &ReceiveLive,
        stop: impl Fn() -> bool,
    ) -> Result<Pumped, Error> {
        let Some(mut datagrams) = receiver.receive()? else {
            return Ok(Pumped::default());
        };
        let mut pumped = Pumped {
            socket: datagrams.socket(),
            more: datagrams.is_full(),
            packets: 0,
        };
        let now_ns = fluxcap_service::realtime_ns();
        loop {
            let mut tally = Tally::default();
            let entries = recycle(std::mem::take(&mut self.entries));
            let mut entries = self.admit_chunk(entries, &mut datagrams, now_ns, &mut tally);
            // Before they are published: nobody shall see more published than received.
            live.packets.add(tally.packets);
            live.bytes.add(tally.bytes);
            pumped.packets += tally.packets;
            let is_last = tally.packets < CHUNK as u64;
            for at in 0..self.touched.len() {
                self.publish(self.touched[at], &mut entries, rings, &mut tally, &stop);
            }
            self.touched.clear();
            self.entries = recycle(entries);
            live.published.add(tally.published);
            live.truncated.add(tally.truncated);
            live.drops.add(&tally.drops);
            if is_last {
                return Ok(pumped);
            }
        }
    }

    /// Decodes at most [`CHUNK`] packets and enters them into the lists of their rings.
    fn admit_chunk<'b>(
        &mut self,
        mut entries: Vec<Entry<'b>>,
        datagrams: &mut Datagrams<'b>,
        now_ns: u64,
        tally: &mut Tally,
    ) -> Vec<Entry<'b>> {
        for datagram in datagrams.take(CHUNK) {
            tally.packets += 1;
            tally.bytes += datagram.bytes.len() as u64;
            let (place, entry) = match self.admit(&datagram, now_ns) {
                Ok(admitted) => admitted,
                Err(cause) => {
                    tally.drop(cause);
                    continue;
                }
            };
            let at = entries.len();
            entries.push(entry);
            let Some((first, last)) = self.lists.get_mut(place) else {
                continue; // cannot be: rules and rings are set together
            };
            match entries.get_mut(*last) {
                Some(before) => before.next = at,
                None => {
                    *first = at;
                    self.touched.push(place);
                }
            }
            *last = at;
        }
        entries
    }

    /// One packet: whether it is wanted, what is in it, and the place of its ring.
    #[inline]
    fn admit<'b>(
        &mut self,
        datagram: &Datagram<'b>,
        now_ns: u64,
    ) -> Result<(usize, Entry<'b>), Cause> {
        let address = datagram.source;
        if self.welcome != Some(address) {
            if !self.rules.welcomes(address) {
                return Err(Cause::Sender);
            }
            self.welcome = Some(address);
        }
        if datagram.truncated {
            return Err(Cause::Ring(DropReason::Oversize));
        }
        let decoded = self.decode(datagram).map_err(Cause::Reject)?;
        let Some(place) = self.ring_of(decoded.id) else {
            self.unknown.count(decoded.id);
            return Err(Cause::UnknownId);
        };
        let timestamp_ns = match datagram.timestamp_ns {
            0 => now_ns,
            kernel => kernel,
        };
        let late = self.senders.note(address, &decoded, timestamp_ns);
        if late && self.rules.in_order {
            return Err(Cause::OutOfOrder);
        }
        let entry = Entry {
            decoded,
            address,
            timestamp_ns,
            source: 0,
            next: NONE,
        };
        Ok((place, entry))
    }

    fn decode<'b>(&self, datagram: &Datagram<'b>) -> Result<Decoded<'b>, Reject> {
        /// IPv4 in IP, and IPv6 in IP.
        const PROTOCOLS: [u8; 2] = [4, 41];
        let decoded = self.rules.decap.decode(datagram.bytes)?;
        // The decoder is not told what the outer header announces.
        let announced = match decoded.link {
            Link::Ipv4 => PROTOCOLS[0],
            Link::Ipv6 => PROTOCOLS[1],
            Link::Ethernet => return Ok(decoded),
        };
        if self.rules.decap.kind() == TunnelKind::Ipip && announced != datagram.protocol {
            return Err(Reject::InnerVersion);
        }
        Ok(decoded)
    }

    #[inline]
    fn ring_of(&mut self, id: Option<u32>) -> Option<usize> {
        if let Some((last, place)) = self.last_id
            && last == id
        {
            return place;
        }
        let place = self.rules.ring_of(id);
        self.last_id = Some((id, place));
        place
    }

    /// Publishes the packets of one ring.
    fn publish(
        &mut self,
        place: usize,
        entries: &mut [Entry<'_>],
        rings: &mut Rings,
        tally: &mut Tally,
        stop: &impl Fn() -> bool,
    ) {
        let list = self.lists.get_mut(place);
        let mut at = list.map_or(NONE, |list| std::mem::replace(list, (NONE, NONE)).0);
        let Some(target) = rings.ready(place) else {
            return tally.drop_rest(entries, at, DropReason::RingAbsent);
        };
        self.receive(target, entries, at);
        while at != NONE {
            let Some(ring) = target.producer() else {
                return tally.drop_rest(entries, at, DropReason::RingAbsent);
            };
            let mut books = RingTally::default();
            let published = match self.burst(ring, entries, &mut at, &mut books, stop) {
                Ok(published) => published,
                Err(error) => {
                    books.drop_rest(entries, at, DropReason::RingAbsent);
                    books.settle(ring, tally);
                    tracing::error!(tunnel = %self.tunnel, %error, "cannot write to the ring");
                    return target.fail(&error);
                }
            };
            books.settle(ring, tally);
            tally.published += published;
            target.add_published(published, books.bytes);
        }
    }

    /// Enters the packets of a ring into its books, before they are published: a successor must never find more published than
    /// received.
    fn receive(&self, target: &mut Target, entries: &mut [Entry<'_>], first: usize) {
        // By place in the table; those at work have different ones, whatever their numbers.
        let mut received = [(0_u16, 0_u32); SOURCES];
        let mut at = first;
        while let Some(entry) = entries.get_mut(at) {
            entry.source = target.source(&self.tunnel, entry.address);
            let (source, count) = &mut received[usize::from(entry.source) % SOURCES];
            *source = entry.source;
            *count += 1;
            at = entry.next;
        }
        let Some(ring) = target.producer() else {
            return;
        };
        for (source, count) in received {
            if count != 0 {
                ring.source(source).add_received(count.into());
            }
        }
    }

    /// Publishes packets from `at` on, as many as go into one burst; how many those are.
    fn burst(
        &mut self,
        ring: &mut Producer,
        entries: &[Entry<'_>],
        at: &mut usize,
        books: &mut RingTally,
        stop: &impl Fn() -> bool,
    ) -> Result<u64, fluxcap_ring::Error> {
        let longest = ring.max_frame();
        let needed = |entry: &Entry<'_>| {
            record_size((entry.decoded.payload.len() + ADDED_BYTES).min(longest))
        };
        let least = entries.get(*at).map_or(0, needed);
        let room = BURST_BYTES.min(ring.max_burst()).max(least);
        if !wait_room(ring, room, stop)? {
            *at = books.drop_rest(entries, *at, DropReason::Paused);
            return Ok(0);
        }
        let Some(mut burst) = ring.reserve(room)? else {
            *at = books.drop_rest(entries, *at, DropReason::Paused);
            return Ok(0);
        };
        while let Some(entry) = entries.get(*at) {
            if burst.room() < needed(entry) {
                break;
            }
            if let Err(reason) = self.push(entry, &mut burst, longest, books) {
                books.drops[reason.index()] += 1;
            }
            *at = entry.next;
        }
        Ok(burst.commit())
    }

    /// One packet: put its frame together, edit it, copy it into the burst.
    #[inline]
    fn push(
        &mut self,
        entry: &Entry<'_>,
        burst: &mut Burst<'_>,
        longest: usize,
        books: &mut RingTally,
    ) -> Result<(), DropReason> {
        let decoded = &entry.decoded;
        let mut cut = decoded.truncated || decoded.original_len() as usize > decoded.payload.len();
        let frame = put_together(decoded, &self.rules.macs, &mut self.scratch);
        let mut frame = match self.edits.apply(frame) {
            Edited::Keep(frame) => frame,
            Edited::Filtered => return Err(DropReason::Filtered),
            Edited::SampledOut => return Err(DropReason::SampledOut),
            Edited::Malformed => return Err(DropReason::Malformed),
        };
        if frame.len() > longest {
            frame.slice(u32::try_from(longest).unwrap_or(u32::MAX));
            cut = true;
        }
        let meta = Meta {
            timestamp_ns: entry.timestamp_ns,
            wire_len: frame.wire_len(),
            source: entry.source,
            direction: match decoded.direction {
                Some(Seen::Egress) => Direction::Out,
                Some(Seen::Ingress) | None => Direction::In,
            },
            vlan_count: frame.vlan_count(),
            flow_hash: 0,
            id: decoded.id.unwrap_or(0),
            flags: if cut { Flags::TRUNCATED } else { Flags::NONE },
        };
        if !burst.push(&meta, &frame.pieces()) {
            return Err(DropReason::Oversize); // cannot be: the room was checked
        }
        books.bytes += frame.len() as u64;
        books.truncated += u64::from(cut);
        Ok(())
    }
}

/// What [`DecapPath::pump`] did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Pumped {
    /// By which socket the packets came: a place in `TunnelReceiver::sockets`.
    pub(crate) socket: usize,
    /// Packets that were read.
    pub(crate) packets: u64,
    /// There may well be more at once.
    pub(crate) more: bool,
}

/// The frame of a packet: as it is where it is one, else copied behind what belongs before it.
#[inline]
fn put_together<'f>(
    decoded: &Decoded<'f>,
    macs: &[u8; 12],
    scratch: &'f mut Vec<u8>,
) -> WireFrame<'f> {
    let ether_type: &[u8] = match decoded.link {
        Link::Ethernet => &[],
        Link::Ipv4 => &[0x08, 0x00],
        Link::Ipv6 => &[0x86, 0xdd],
    };
    let original = decoded.original_len();
    if ether_type.is_empty() && decoded.patch.is_none() {
        let Some(tag) = decoded.restore_tag else {
            return WireFrame::new(decoded.payload, original);
        };
        let mut frame = WireFrame::new(decoded.payload, original.saturating_add(4));
        frame.restore_tag(tag);
        return frame;
    }
    scratch.clear();
    if !ether_type.is_empty() {
        scratch.extend_from_slice(macs);
        scratch.extend_from_slice(ether_type);
    }
    let before = scratch.len();
    scratch.extend_from_slice(decoded.payload);
    if let Some(patch) = decoded.patch {
        let at = before + patch.at;
        if let Some(field) = scratch.get_mut(at..at + patch.bytes.len()) {
            field.copy_from_slice(&patch.bytes);
        }
    }
    let wire_len = original.saturating_add(u32::try_from(before).unwrap_or(0));
    WireFrame::new(scratch, wire_len)
}

/// Waits until a burst of that many bytes can be reserved: for the consumers of a ring in wait mode, not at all for others. False
/// when told to stop meanwhile.
fn wait_room(
    ring: &mut Producer,
    bytes: usize,
    stop: &impl Fn() -> bool,
) -> Result<bool, fluxcap_ring::Error> {
    while ring.info().mode == Mode::Wait && ring.reserve(bytes)?.is_none() {
        if stop() {
            return Ok(false);
        }
        ring.wait_space(WAIT)?;
    }
    Ok(true)
}

/// How many packets a list has from `at` on.
fn left(entries: &[Entry<'_>], at: usize) -> u32 {
    let next = |entry: &&Entry<'_>| entries.get(entry.next);
    let list = std::iter::successors(entries.get(at), next);
    u32::try_from(list.count()).unwrap_or(u32::MAX)
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            packets: 0,
            bytes: 0,
            published: 0,
            truncated: 0,
            drops: [0; Cause::COUNT],
        }
    }
}

impl Tally {
    fn drop(&mut self, cause: Cause) {
        self.drops[cause.index()] += 1;
    }

    /// Counts the packets of a list that no ring has in its books.
    fn drop_rest(&mut self, entries: &[Entry<'_>], at: usize, reason: DropReason) {
        self.drops[Cause::Ring(reason).index()] += left(entries, at);
    }
}

impl RingTally {
    /// Counts the packets of a list from `at` on; the end of the list.
    fn drop_rest(&mut self, entries: &[Entry<'_>], at: usize, reason: DropReason) -> usize {
        self.drops[reason.index()] += left(entries, at);
        NONE
    }

    /// Adds the burst's figures to the ring's counters, which outlive the process, and to those of the tunnel.
    fn settle(&self, ring: &Producer, tally: &mut Tally) {
        tally.truncated += self.truncated;
        for (reason, &n) in DropReason::ALL.iter().zip(&self.drops) {
            if n != 0 {
                ring.add_drop(*reason, n.into());
                tally.drops[Cause::Ring(*reason).index()] += n;
            }
        }
    }
}
