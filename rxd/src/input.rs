//! One interface of a capture: found by name, followed by its index, lost and found again.

use crate::datapath::{Path, Pumped, Wanted};
use crate::stats::CaptureLive;
use fluxcap_options::{SpecError, compile_edits};
use fluxcap_proto::v1;
use fluxcap_ring::{DropReason, Producer, SourceCounters};
use fluxcap_service::State;
use fluxcap_socket::{CaptureOptions, Link, LinkWatch, PacketCapture, SockFilter, offloads};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Size of the kernel's buffer for each interface, unless the spec says otherwise.
pub(crate) const BUFFER_BYTES: u64 = 32 << 20;
/// Size of one block of that buffer. It bounds the longest frame.
pub(crate) const BLOCK_BYTES: u32 = 256 << 10;
/// Time after which the kernel hands over a block that is not full.
const BLOCK_RETIRE: Duration = Duration::from_millis(1);
/// How long an interface that is let go is still read.
const DRAIN: Duration = Duration::from_secs(1);

/// An interface that a capture wants, attached or not.
#[derive(Debug)]
pub(crate) struct Input {
    /// Name in the spec.
    name: String,
    path: Path,
    options: CaptureOptions,
    attached: Option<Attached>,
    status: v1::CaptureInterfaceStatus,
}

#[derive(Debug)]
struct Attached {
    socket: PacketCapture,
    link: Link,
    /// What the operator should know about the interface; often nothing.
    remark: &'static str,
    /// Frames that the kernel has counted as taken, less those that it handed over. Below 0 between two looks at the
    /// kernel's counters.
    waiting: i64,
    /// Frames counted by the kernel for which the books of no ring have been charged yet.
    owed: u64,
}

impl Input {
    /// The interface at `index` of the spec, not attached yet.
    ///
    /// # Errors
    /// When the filter or a tag of the spec cannot be used.
    pub(crate) fn new(spec: &v1::CaptureSpec, index: usize) -> Result<Input, SpecError> {
        let name = spec
            .interfaces
            .get(index)
            .map(|i| i.name.clone())
            .unwrap_or_default();
        let mut input = Input {
            path: Path {
                source: 0,
                wanted: wanted(spec),
                edits: Default::default(),
            },
            options: options(spec),
            attached: None,
            status: v1::CaptureInterfaceStatus {
                name: name.clone(),
                ..Default::default()
            },
            name,
        };
        input.set_state(State::Waiting, "not attached yet");
        input.set_edits(spec, index)?;
        Ok(input)
    }

    /// Takes over filter, sampling and changes from the spec; an attached socket gets the new filter at once, and loses no
    /// frame by it.
    pub(crate) fn set_edits(
        &mut self,
        spec: &v1::CaptureSpec,
        index: usize,
    ) -> Result<(), SpecError> {
        let mut edits = spec.edits.clone().unwrap_or_default();
        if let Some(tag) = spec.interfaces.get(index).and_then(|i| i.vlan_push) {
            edits.vlan_push = Some(tag);
        }
        self.path.edits = compile_edits(&edits)?;
        self.options.filter = self.kernel_filter();
        if let Some(attached) = &mut self.attached
            && let Err(error) = attached.socket.set_filter(self.options.filter.as_deref())
        {
            tracing::warn!(interface = %self.name, %error, "the kernel does not take the filter, it runs in rxd alone");
            self.options.filter = None;
        }
        Ok(())
    }

    /// The filter as a program for the socket. rxd applies the filter once more to what gets through: some frames carry tags
    /// that the kernel's program cannot look behind.
    fn kernel_filter(&self) -> Option<Vec<SockFilter>> {
        let program = self.path.edits.filter.as_ref()?.kernel_program()?;
        Some(
            program
                .iter()
                .map(|i| SockFilter {
                    code: i.code,
                    jt: i.jt,
                    jf: i.jf,
                    k: i.k,
                })
                .collect(),
        )
    }

    /// Where the filter runs: `kernel`, `rxd`, or nothing when there is none.
    pub(crate) fn filter_at(&self) -> &'static str {
        match (&self.path.edits.filter, &self.options.filter) {
            (None, _) => "",
            (Some(_), Some(_)) => "kernel",
            (Some(_), None) => "rxd",
        }
    }

    /// Whether this input is attached to the interface with that index.
    pub(crate) fn is_attached_to(&self, ifindex: u32) -> bool {
        self.attached
            .as_ref()
            .is_some_and(|a| a.link.index == ifindex)
    }

    /// Whether a socket is open.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// The socket to poll.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.attached.as_ref().map(|a| a.socket.as_fd())
    }

    /// What is shown of this input.
    pub(crate) fn status(&self) -> &v1::CaptureInterfaceStatus {
        &self.status
    }

    /// Takes note of a link as it is now: attaches to it when it is the one that is wanted, follows its name and state when
    /// it is attached to already.
    pub(crate) fn see(&mut self, link: &Link, ring: &mut Producer) {
        if let Some(attached) = &mut self.attached {
            if attached.link.index == link.index {
                attached.link = link.clone();
                self.show_link();
            }
        } else if link.is_called(&self.name) {
            self.attach(link, ring);
        }
    }

    /// Says that there is no interface of the wanted name.
    pub(crate) fn set_absent(&mut self) {
        self.set_state(
            State::Waiting,
            format!("interface {} does not exist", self.name),
        );
    }

    fn attach(&mut self, link: &Link, ring: &mut Producer) {
        if !link.ethernet {
            return self.set_state(
                State::Waiting,
                format!("interface {} is not an Ethernet interface", self.name),
            );
        }
        let opened = PacketCapture::open(link.index, &self.options);
        let socket = match opened {
            Ok(socket) => socket,
            Err(error) => {
                return self.set_state(
                    State::Waiting,
                    format!("cannot capture on {}: {error}", self.name),
                );
            }
        };
        if let Err(error) = self.register(ring) {
            return self.set_state(State::Waiting, error.to_string());
        }
        // As it is now that the socket is open: that took its time, and frames went by.
        let seen = LinkWatch::open().and_then(|mut links| links.find_index(link.index));
        if let Ok(Some(now)) = seen {
            self.count_missed(&now, ring);
        }
        self.status.attached += 1;
        self.attached = Some(Attached {
            socket,
            link: link.clone(),
            remark: remark(&link.name),
            waiting: 0,
            owed: 0,
        });
        self.show_link();
        tracing::info!(interface = %link.name, ifindex = link.index, "attached");
    }

    /// Enters the interface into the ring's table of sources; again for each ring.
    pub(crate) fn register(&mut self, ring: &mut Producer) -> Result<(), fluxcap_ring::Error> {
        self.path.source = ring.register_source(&self.name)?;
        Ok(())
    }

    /// Frames that passed the interface while nobody captured: from the interface's own counter, so an estimate, and only
    /// where that counts the frames that are captured.
    fn count_missed(&self, link: &Link, ring: &mut Producer) {
        let source = ring.source(self.path.source);
        if self.path.wanted == Wanted::In && self.options.filter.is_none() {
            source.add_missed(missed(&source, link));
            source
                .set_interface_count(link.index, link.rx_packets.wrapping_sub(accounted(&source)));
        } else {
            source.set_interface_count(0, 0);
        }
    }

    fn show_link(&mut self) {
        let Some(attached) = &self.attached else {
            return;
        };
        let (link, name) = (&attached.link, &self.name);
        let remark = if link.name == *name {
            attached.remark.to_owned()
        } else {
            format!("renamed to {}", link.name)
        };
        let (state, reason) = match (link.up, link.carrier) {
            (false, _) => (
                State::Waiting,
                format!("interface {} is down: ip link set {0} up", link.name),
            ),
            (true, false) => (
                State::Waiting,
                format!("interface {} has no carrier", link.name),
            ),
            (true, true) => (State::Running, remark),
        };
        self.status.ifindex = link.index;
        self.set_state(state, reason);
    }

    fn set_state(&mut self, state: State, reason: impl Into<String>) {
        self.status.state = v1::State::from(state).into();
        self.status.reason = reason.into();
    }

    /// Moves frames that are ready into the ring.
    pub(crate) fn pump(
        &mut self,
        ring: &mut Producer,
        live: &CaptureLive,
        stop: impl Fn() -> bool,
    ) -> Result<Pumped, fluxcap_ring::Error> {
        let Some(attached) = &mut self.attached else {
            return Ok(Pumped::default());
        };
        let pumped = self.path.pump(&mut attached.socket, ring, live, stop)?;
        attached.waiting -= signed(pumped.frames);
        if pumped.frames == 0 {
            // "Network is down" stays until it is read, and keeps poll from sleeping.
            attached.socket.take_error();
        }
        self.status.received_frames += pumped.frames;
        Ok(pumped)
    }

    /// Reads the kernel's counters, which it forgets by that, and puts a loss into the ring at this place.
    pub(crate) fn read_statistics(&mut self, ring: &mut Producer, live: &CaptureLive) {
        self.count(ring, live, Backlog::ComesHere);
    }

    /// The last look at the counters before the frames go into another ring.
    pub(crate) fn leave(&mut self, ring: &mut Producer, live: &CaptureLive) {
        self.count(ring, live, Backlog::GoesElsewhere);
    }

    fn count(&mut self, ring: &mut Producer, live: &CaptureLive, backlog: Backlog) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        let read = match attached.socket.statistics() {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(interface = %self.name, %error, "cannot read the kernel's counters");
                return;
            }
        };
        let (taken, mut drops) = (read.packets, read.drops);
        attached.waiting += signed(taken.saturating_sub(drops));
        let waiting = u64::try_from(attached.waiting).unwrap_or(0);
        let mut packets = taken + std::mem::take(&mut attached.owed);
        match backlog {
            Backlog::ComesHere => {}
            Backlog::GoesElsewhere => {
                attached.owed = waiting.min(packets);
                packets -= attached.owed;
            }
            Backlog::IsLost => drops += waiting,
        }
        ring.source(self.path.source).add_kernel(packets, drops);
        self.status.kernel_frames += taken;
        self.status.kernel_dropped_frames += drops;
        self.status.kernel_freezes += read.freezes;
        live.kernel_dropped.add(drops);
        if drops > 0 {
            publish_loss(ring, self.path.source, drops);
        }
    }

    /// Takes what the socket still holds, bounded in time, and closes it. The interface is gone, or not wanted any more.
    pub(crate) fn detach(&mut self, ring: &mut Producer, live: &CaptureLive) {
        let end = Instant::now() + DRAIN;
        while Instant::now() < end
            && self
                .pump(ring, live, || true)
                .is_ok_and(|pumped| pumped.frames > 0)
        {}
        self.count(ring, live, Backlog::IsLost);
        self.attached = None;
        self.set_absent();
    }
}

fn signed(frames: u64) -> i64 {
    i64::try_from(frames).unwrap_or(i64::MAX)
}

/// Frames that the kernel has counted and not handed over yet.
enum Backlog {
    /// Goes into this ring, later.
    ComesHere,
    /// Goes into the next ring, whose books shall have it.
    GoesElsewhere,
    /// Goes away with the socket: lost in the kernel.
    IsLost,
}

impl Input {
    /// Closes the socket while there is no ring. What it still holds is counted, there is nowhere to put it.
    pub(crate) fn close(&mut self, live: &CaptureLive) {
        let Some(mut attached) = self.attached.take() else {
            return;
        };
        while let Some(block) = attached.socket.next_block() {
            live.received.add(block.len() as u64);
            live.add_drop(DropReason::RingAbsent, block.len() as u64);
        }
        self.set_state(State::Waiting, "waits for the ring");
    }
}

/// Bytes of a LOSS record.
const LOSS_RECORD: usize = 48;

/// A word on offloads that change frames before they are captured. An interface that cannot be asked is not remarked on.
fn remark(name: &str) -> &'static str {
    match offloads(name) {
        Ok(on) if on.gro && on.lro => {
            "frames may come glued together: ethtool -K IFACE gro off lro off"
        }
        Ok(on) if on.gro => "frames may come glued together: ethtool -K IFACE gro off",
        Ok(on) if on.lro => "frames may come glued together: ethtool -K IFACE lro off",
        _ => "",
    }
}

/// Puts a LOSS record into the ring; a ring in wait mode that is full goes without, the counters have it anyway.
fn publish_loss(ring: &mut Producer, source: u16, frames: u64) {
    let now = fluxcap_service::realtime_ns();
    if let Ok(Some(mut burst)) = ring.reserve(LOSS_RECORD) {
        burst.push_loss(source, frames, now);
        burst.commit();
    }
}

/// All frames of an interface that the ring's counters know of.
fn accounted(source: &SourceCounters) -> u64 {
    source
        .received()
        .wrapping_add(source.kernel_drops())
        .wrapping_add(source.missed())
}

/// Frames that the interface counted since the last attachment and the ring's counters do not know; 0 for another interface.
fn missed(source: &SourceCounters, link: &Link) -> u64 {
    let (ifindex, base) = source.interface_count();
    if ifindex != link.index {
        return 0;
    }
    let missed = link
        .rx_packets
        .wrapping_sub(accounted(source))
        .wrapping_sub(base);
    // A counter that went backwards belongs to an interface that was made anew.
    if missed > u64::MAX / 2 { 0 } else { missed }
}

fn wanted(spec: &v1::CaptureSpec) -> Wanted {
    match spec.direction() {
        v1::Direction::Unspecified | v1::Direction::In => Wanted::In,
        v1::Direction::Out => Wanted::Out,
        v1::Direction::Both => Wanted::Both,
    }
}

fn options(spec: &v1::CaptureSpec) -> CaptureOptions {
    let or = |given: u64, default: u64| if given == 0 { default } else { given };
    CaptureOptions {
        buffer_bytes: or(spec.buffer_bytes, BUFFER_BYTES),
        block_bytes: if spec.block_bytes == 0 {
            BLOCK_BYTES
        } else {
            spec.block_bytes
        },
        block_retire: match spec.block_retire_us {
            0 => BLOCK_RETIRE,
            us => Duration::from_micros(us.into()),
        },
        promiscuous: !spec.no_promiscuous,
        ignore_outgoing: wanted(spec) == Wanted::In,
        filter: None,
    }
}
