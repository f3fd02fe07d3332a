//! Captures what arrives and judges it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fluxcap_socket::{CaptureOptions, Packet, PacketCapture};

use crate::generator::{Sent, index_of};
use crate::netns::{Netns, enter};
use crate::payload::{self, Identity, Verdict};
use crate::wait::wait_until;

/// Longest time without a look at the stop flag.
const POLL: Duration = Duration::from_millis(10);

/// What a sink does besides judging.
#[derive(Clone, Copy, Debug)]
pub struct SinkOptions {
    /// Kernel buffer in bytes. Large, so that a busy machine costs no frame here.
    pub buffer_bytes: u64,
    /// How many frames to keep as they came, tags in place, for comparison byte for byte.
    pub keep: usize,
}

impl Default for SinkOptions {
    fn default() -> Self {
        SinkOptions {
            buffer_bytes: 128 << 20,
            keep: 0,
        }
    }
}

/// A capture at the far end of a wire, running until [`Sink::stop`].
#[derive(Debug)]
pub struct Sink {
    frames: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Report>>,
}

impl Sink {
    /// Captures on interface `device` of `netns`. Returns when the socket is open.
    #[must_use]
    #[track_caller]
    pub fn start(netns: &Netns, device: &str) -> Sink {
        Sink::with(netns, device, SinkOptions::default())
    }

    /// The same with options.
    #[must_use]
    #[track_caller]
    pub fn with(netns: &Netns, device: &str, options: SinkOptions) -> Sink {
        let (name, index) = (device.to_owned(), netns.run(|| index_of(device)));
        let socket = netns.run(|| open(index, options.buffer_bytes));
        let mut socket = Input {
            socket: socket.unwrap_or_else(|error| panic!("cannot capture on {device}: {error}")),
            index,
            name,
            options,
        };
        let (frames, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, asked, path) = (Arc::clone(&frames), Arc::clone(&stop), netns.path());
        let thread = thread::Builder::new().name(format!("sink-{device}"));
        let thread = thread.spawn(move || {
            enter(&path);
            run(&mut socket, &count, &asked)
        });
        Sink {
            frames,
            stop,
            thread: Some(thread.expect("start a thread")),
        }
    }

    /// Frames captured until now, of whatever kind.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until at least this many frames were captured; panics after `timeout`.
    #[track_caller]
    pub fn wait_frames(&self, frames: u64, timeout: Duration) {
        let started = Instant::now();
        while self.frames() < frames {
            assert!(
                started.elapsed() < timeout,
                "{} of {frames} frames arrived within {timeout:?}",
                self.frames()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until no frame has arrived for `quiet`.
    #[track_caller]
    pub fn wait_quiet(&self, quiet: Duration) {
        let (mut last, mut since) = (self.frames(), Instant::now());
        wait_until(Duration::from_secs(60), "frames stop arriving", || {
            let now = self.frames();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() >= quiet
        });
    }

    /// Takes what is still in the kernel's buffer, and returns the verdict.
    #[must_use]
    #[track_caller]
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .expect("a sink is stopped once")
            .join()
            .expect("the sink ended well")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What arrived.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By stream number.
    pub streams: BTreeMap<u16, StreamReport>,
    /// Frames that no generator sent.
    pub foreign: u64,
    /// Frames that the sink's own socket dropped: the judge was too slow, and the test proves nothing.
    pub kernel_drops: u64,
    /// Frames by the VLAN tags in front of them, the outer one first: (TPID, TCI).
    pub tags: BTreeMap<Vec<(u16, u16)>, u64>,
    /// The first frames as they came, tags in place; see [`SinkOptions::keep`].
    pub kept: Vec<Vec<u8>>,
}

impl Report {
    /// What arrived of one stream; empty when nothing did.
    #[must_use]
    pub fn stream(&self, stream: u16) -> StreamReport {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }

    /// Panics unless exactly this stream arrived: every frame of it once, in order, unharmed, and nothing else.
    #[track_caller]
    pub fn assert_exactly(&self, stream: u16, sent: &Sent) {
        assert_eq!(self.kernel_drops, 0, "the sink itself lost frames");
        assert_eq!(self.foreign, 0, "frames arrived that nobody sent");
        assert!(
            self.streams.keys().all(|&other| other == stream),
            "other streams arrived: {:?}",
            self.streams.keys()
        );
        self.stream(stream).assert_complete(sent);
    }
}

/// What arrived of one stream.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Different frames that arrived unharmed.
    pub received: u64,
    /// Unharmed frames that had arrived before.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Frames shorter or longer than they were sent.
    pub cut: u64,
    /// Frames of the right length with other bytes.
    pub corrupt: u64,
    /// Longest time between the arrivals of two frames.
    pub longest_silence: Duration,
    /// From the sender's clock to the arrival at the sink's interface.
    pub latency: Latency,
    seen: Vec<u64>,
    next: u64,
    last_ns: u64,
}

impl StreamReport {
    /// Frames that were sent and did not arrive.
    #[must_use]
    pub fn missing(&self, sent: &Sent) -> u64 {
        sent.frames - self.received
    }

    /// Numbers of the frames that did not arrive, in runs.
    #[must_use]
    pub fn missing_runs(&self, sent: &Sent) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for seq in (0..sent.frames).filter(|&seq| !self.has(seq)) {
            match runs.last_mut() {
                Some(run) if run.end == seq => run.end += 1,
                _ => runs.push(seq..seq + 1),
            }
        }
        runs
    }

    /// Panics unless every frame arrived once, in order, unharmed.
    #[track_caller]
    pub fn assert_complete(&self, sent: &Sent) {
        self.assert_sound();
        let runs = self.missing_runs(sent);
        assert!(
            runs.is_empty(),
            "{} of {} frames missing (refused by the kernel {}, dropped on the first wire {}), first runs {:?}",
            self.missing(sent),
            sent.frames,
            sent.refused,
            sent.dropped,
            &runs[..runs.len().min(5)]
        );
    }

    /// Panics when a frame arrived twice, late, cut or corrupt. Frames may be missing.
    #[track_caller]
    pub fn assert_sound(&self) {
        let faults = [self.duplicates, self.reordered, self.cut, self.corrupt];
        assert_eq!(
            faults, [0; 4],
            "duplicate, reordered, cut, corrupt frames arrived"
        );
    }

    /// Whether frame number `seq` arrived.
    #[must_use]
    pub fn has(&self, seq: u64) -> bool {
        let (word, bit) = place(seq);
        self.seen.get(word).is_some_and(|word| word & bit != 0)
    }

    fn add(&mut self, identity: Identity, arrived_ns: u64) {
        if self.last_ns != 0 {
            let silence = Duration::from_nanos(arrived_ns.saturating_sub(self.last_ns));
            self.longest_silence = self.longest_silence.max(silence);
        }
        self.last_ns = arrived_ns;
        if self.has(identity.seq) {
            self.duplicates += 1;
            return;
        }
        let (word, bit) = place(identity.seq);
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        self.seen[word] |= bit;
        self.received += 1;
        self.reordered += u64::from(identity.seq < self.next);
        self.next = self.next.max(identity.seq + 1);
        self.latency
            .add(arrived_ns.saturating_sub(identity.sent_ns));
    }
}

/// Where the mark of frame number `seq` is.
fn place(seq: u64) -> (usize, u64) {
    (
        usize::try_from(seq / 64).expect("a test sends fewer frames than that"),
        1 << (seq % 64),
    )
}

/// Latencies of single frames.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    samples_ns: Vec<u64>,
}

impl Latency {
    fn add(&mut self, nanoseconds: u64) {
        self.samples_ns.push(nanoseconds);
    }

    /// The latency that this share of the frames did not exceed: `percentile(0.99)`; zero without frames.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Duration {
        let mut sorted = self.samples_ns.clone();
        sorted.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index within the samples"
        )]
        let index =
            (sorted.len().saturating_sub(1) as f64 * share.clamp(0.0, 1.0)).round() as usize;
        Duration::from_nanos(sorted.get(index).copied().unwrap_or(0))
    }
}

/// Where a sink captures. Its thread is in the interface's namespace.
struct Input {
    name: String,
    index: u32,
    socket: PacketCapture,
    options: SinkOptions,
}

impl Input {
    /// Moves to the interface that now has the name, when it is another one than before.
    fn follow(&mut self) {
        let index = nix::net::if_::if_nametoindex(self.name.as_str()).ok();
        if let Some(index) = index.filter(|&index| index != self.index)
            && let Ok(socket) = open(index, self.options.buffer_bytes)
        {
            (self.socket, self.index) = (socket, index);
        }
    }
}

/// A capturing socket on an interface of the calling thread's namespace.
fn open(index: u32, buffer_bytes: u64) -> Result<PacketCapture, fluxcap_socket::Error> {
    let options = CaptureOptions {
        buffer_bytes,
        promiscuous: true,
        ignore_outgoing: true,
        ..CaptureOptions::default()
    };
    PacketCapture::open(index, &options)
}

/// The capture loop: until told to stop and nothing is left.
fn run(input: &mut Input, frames: &AtomicU64, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut judge = Judge {
        keep: input.options.keep,
        frame: Vec::new(),
    };
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        fluxcap_socket::poll(&[input.socket.as_fd()], POLL).expect("poll the sink's socket");
        let mut count = 0;
        while let Some(mut block) = input.socket.next_block() {
            for packet in block.packets() {
                judge.add(&packet, &mut report);
                count += 1;
            }
            drop(block);
            frames.fetch_add(std::mem::take(&mut count), Ordering::Relaxed);
        }
        report.kernel_drops += input
            .socket
            .statistics()
            .expect("read the sink's statistics")
            .drops;
        if stopping {
            return report;
        }
        // A socket with an error pending would never sleep.
        let _ = input.socket.take_error();
        input.follow();
    }
}

/// Turns packets into counts; its buffers are used again for each.
struct Judge {
    keep: usize,
    frame: Vec<u8>,
}

impl Judge {
    fn add(&mut self, packet: &Packet<'_>, report: &mut Report) {
        self.frame.clear();
        // The kernel takes the outer tag out of the frame; it belongs behind the addresses.
        match packet.vlan {
            Some((tpid, tci)) if packet.data.len() >= 12 => {
                self.frame.extend(&packet.data[..12]);
                self.frame.extend(tpid.to_be_bytes());
                self.frame.extend(tci.to_be_bytes());
                self.frame.extend(&packet.data[12..]);
            }
            _ => self.frame.extend(&*packet.data),
        }
        *report.tags.entry(payload::tags(&self.frame)).or_default() += 1;
        if report.kept.len() < self.keep {
            report.kept.push(self.frame.clone());
        }
        match payload::read(&self.frame) {
            Verdict::Foreign => report.foreign += 1,
            Verdict::Cut(identity) => report.streams.entry(identity.stream).or_default().cut += 1,
            Verdict::Corrupt(identity) => {
                report.streams.entry(identity.stream).or_default().corrupt += 1
            }
            Verdict::Good(identity) => report
                .streams
                .entry(identity.stream)
                .or_default()
                .add(identity, packet.timestamp_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(numbers: &[u64]) -> StreamReport {
        let mut report = StreamReport::default();
        for (&seq, at) in numbers.iter().zip(1..) {
            report.add(
                Identity {
                    stream: 0,
                    seq,
                    sent_ns: 0,
                },
                at * 1000,
            );
        }
        report
    }

    const FIVE: Sent = Sent {
        frames: 5,
        refused: 0,
        dropped: 0,
        elapsed: Duration::ZERO,
    };

    #[test]
    fn a_whole_stream_in_order_is_complete() {
        arrivals(&[0, 1, 2, 3, 4]).assert_complete(&FIVE);
    }

    #[test]
    fn missing_duplicate_and_late_frames_are_told_apart() {
        let report = arrivals(&[0, 3, 3, 1]);
        assert_eq!(
            (report.received, report.duplicates, report.reordered),
            (3, 1, 1)
        );
        assert_eq!(report.missing(&FIVE), 2);
        assert_eq!(report.missing_runs(&FIVE), [2..3, 4..5]);
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let report = arrivals(&(0..101).collect::<Vec<_>>());
        assert_eq!(report.latency.percentile(0.5), Duration::from_micros(51));
        assert_eq!(report.latency.percentile(1.0), Duration::from_micros(101));
        assert_eq!(Latency::default().percentile(0.5), Duration::ZERO);
    }
}
