//! Sends frames that know who they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use fluxcap_socket::{Outgoing, SendReport, Sendmmsg, Transmitter};

use crate::link::counters;
use crate::netns::{Netns, enter};
use crate::payload::{Headers, Identity, stamp};

/// Frames handed to the kernel at once, at most.
const BURST: u64 = 64;

/// Shortest pause between two bursts: at high rates frames go out in small bursts, as they do from a real sender.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);

/// How far a generator may fall behind its rate before it gives up catching up: a machine that stood still must not answer with a
/// flood that no tap would carry.
const LONGEST_LAG: Duration = Duration::from_millis(5);

/// A stream of numbered frames, described by chaining: `Generator::new(1).size(60).rate(100_000).count(1_000_000)`.
#[derive(Clone, Debug)]
pub struct Generator {
    stream: u16,
    headers: Headers,
    size: usize,
    rate: Option<u32>,
    count: u64,
}

/// What a generator sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames numbered and handed to the kernel: the stream's numbers are 0 to this.
    pub frames: u64,
    /// Those of them that the kernel refused.
    pub refused: u64,
    /// Those of them that the interface dropped, by its counters; for a veth, for want of room at the other end.
    pub dropped: u64,
    /// From the first frame to the last.
    pub elapsed: Duration,
}

impl Sent {
    /// Frames that arrived at the other end of the wire.
    #[must_use]
    pub fn on_wire(&self) -> u64 {
        self.frames - self.refused - self.dropped
    }

    /// Frames per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure to show")]
        let frames = self.frames as f64;
        frames / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Generator {
    /// The stream with this number: 1,000 frames of 60 bytes at 10,000 frames a second, if nothing else is said.
    #[must_use]
    pub fn new(stream: u16) -> Generator {
        Generator {
            stream,
            headers: Headers::default(),
            size: 60,
            rate: Some(10_000),
            count: 1_000,
        }
    }

    /// Length of a frame in bytes, without FCS; 60 is the shortest on Ethernet.
    #[must_use]
    pub fn size(mut self, bytes: usize) -> Generator {
        self.size = bytes;
        self
    }

    /// Frames per second.
    #[must_use]
    pub fn rate(mut self, frames_per_second: u32) -> Generator {
        self.rate = Some(frames_per_second.max(1));
        self
    }

    /// As fast as the interface takes them.
    #[must_use]
    pub fn full_rate(mut self) -> Generator {
        self.rate = None;
        self
    }

    /// How many frames.
    #[must_use]
    pub fn count(mut self, frames: u64) -> Generator {
        self.count = frames;
        self
    }

    /// No end: until [`Sending::stop`].
    #[must_use]
    pub fn endless(self) -> Generator {
        self.count(u64::MAX)
    }

    /// Addresses, VLAN tags, UDP ports.
    #[must_use]
    pub fn headers(mut self, headers: Headers) -> Generator {
        self.headers = headers;
        self
    }

    /// Sends everything from interface `device` of `netns`, and returns when it is out.
    #[track_caller]
    pub fn send(&self, netns: &Netns, device: &str) -> Sent {
        self.start(netns, device).join()
    }

    /// Sends the stream over several interfaces, each frame over one of them that looks random, from one thread on one CPU: the
    /// kernel gets the frames in the order of their numbers. They look like `templates` in turn, in which the identity stands at
    /// `at`.
    #[track_caller]
    pub fn send_over(
        &self,
        wires: &[(&Netns, &str)],
        mut templates: Vec<Vec<u8>>,
        at: usize,
    ) -> Sent {
        let mut sockets: Vec<Sendmmsg> = wires
            .iter()
            .map(|(netns, device)| netns.run(|| open(device)))
            .collect();
        let dropped = || -> u64 {
            let wires = wires.iter();
            wires
                .map(|(netns, device)| drops(netns.name(), device))
                .sum()
        };
        let before = dropped();
        let work = || {
            // Frames that wait at two CPUs reach the taps as these get to them.
            fluxcap_socket::pin_thread(0).expect("there is a CPU 0");
            let (mut sent, begun) = (Sent::default(), Instant::now());
            let mut schedule = begun;
            let (wires, kinds) = (sockets.len() as u64, templates.len() as u64);
            while sent.frames < self.count {
                let due = self.due(&mut schedule, sent.frames);
                for _ in 0..due.min(BURST).min(self.count - sent.frames) {
                    let seq = sent.frames;
                    let wire = (seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % wires;
                    let place = |n: u64| usize::try_from(n).expect("few");
                    let frame = &mut templates[place(seq % kinds)];
                    let identity = Identity {
                        stream: self.stream,
                        seq,
                        sent_ns: now_ns(),
                    };
                    stamp(frame, at, identity);
                    let report = transmit(&mut sockets[place(wire)], std::slice::from_ref(frame));
                    sent.refused += 1 - report.sent;
                    sent.frames += 1;
                }
                if due == 0 {
                    let next = schedule + self.time_of(sent.frames + 1);
                    let pause = next.saturating_duration_since(Instant::now());
                    thread::sleep(pause.max(SHORTEST_PAUSE));
                }
            }
            sent.elapsed = begun.elapsed();
            sent
        };
        let sent = thread::scope(|scope| scope.spawn(work).join());
        let sent = sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Sent {
            dropped: dropped().saturating_sub(before),
            ..sent
        }
    }

    /// Sends in the background. Returns when the socket is open.
    #[must_use]
    #[track_caller]
    pub fn start(&self, netns: &Netns, device: &str) -> Sending {
        // Made here, so that a size that cannot be is the caller's panic.
        let burst = vec![self.headers.frame(self.size); usize::try_from(BURST).expect("small")];
        let socket = netns.run(|| open(device));
        let mut output = Output {
            device: device.to_owned(),
            socket: Some(socket),
        };
        let before = drops(netns.name(), device);
        let (progress, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, asked) = (Arc::clone(&progress), Arc::clone(&stop));
        let (generator, name, path) = (self.clone(), netns.name().to_owned(), netns.path());
        let thread = thread::Builder::new().name(format!("generator-{}", self.stream));
        let thread = thread.spawn(move || {
            enter(&path);
            let sent = generator.run(&mut output, burst, &count, &asked);
            Sent {
                dropped: drops(&name, &output.device).saturating_sub(before),
                ..sent
            }
        });
        Sending {
            progress,
            stop,
            thread: Some(thread.expect("start a thread")),
        }
    }

    /// The loop: how many frames are due by now, at most a burst of them, then sleep until the next is due.
    fn run(
        &self,
        output: &mut Output,
        mut frames: Vec<Vec<u8>>,
        progress: &AtomicU64,
        stop: &AtomicBool,
    ) -> Sent {
        let mut sent = Sent::default();
        let begun = Instant::now();
        let mut schedule = begun;
        while sent.frames < self.count && !stop.load(Ordering::Relaxed) {
            let due = self.due(&mut schedule, sent.frames);
            if due == 0 {
                let next = schedule + self.time_of(sent.frames + 1);
                thread::sleep(
                    next.saturating_duration_since(Instant::now())
                        .max(SHORTEST_PAUSE),
                );
                continue;
            }
            let burst = due.min(BURST).min(self.count - sent.frames);
            sent.refused += burst - self.send_burst(output, &mut frames, sent.frames, burst);
            sent.frames += burst;
            progress.store(sent.frames, Ordering::Relaxed);
        }
        sent.elapsed = begun.elapsed();
        sent
    }

    /// Time from the start of the schedule until frame number `frame` is due.
    fn time_of(&self, frame: u64) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs(frame / u64::from(rate))
                + Duration::from_secs(frame % u64::from(rate)) / rate
        })
    }

    /// Frames that should be out by now and are not. Moves the schedule when it has fallen too far behind.
    fn due(&self, schedule: &mut Instant, sent: u64) -> u64 {
        let Some(rate) = self.rate else { return BURST };
        let elapsed = schedule.elapsed();
        let behind = elapsed.saturating_sub(self.time_of(sent + 1));
        if behind > LONGEST_LAG {
            *schedule += behind;
            return 1;
        }
        let due = elapsed.as_nanos() * u128::from(rate) / 1_000_000_000;
        u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(sent)
    }

    /// Stamps and sends frames `first` to `first + count`; returns how many the kernel took.
    fn send_burst(
        &self,
        output: &mut Output,
        frames: &mut [Vec<u8>],
        first: u64,
        count: u64,
    ) -> u64 {
        let sent_ns = now_ns();
        let frames = &mut frames[..usize::try_from(count).expect("a burst is small")];
        for (frame, seq) in frames.iter_mut().zip(first..) {
            stamp(
                frame,
                self.headers.len(),
                Identity {
                    stream: self.stream,
                    seq,
                    sent_ns,
                },
            );
        }
        output.send(frames)
    }
}

/// A generator at work. It is told to stop when this is dropped.
#[derive(Debug)]
pub struct Sending {
    progress: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Sent>>,
}

impl Sending {
    /// Frames sent until now.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Waits until everything is out.
    #[track_caller]
    pub fn join(mut self) -> Sent {
        let thread = self.thread.take().expect("a generator is joined once");
        thread.join().expect("the generator ended well")
    }

    /// Stops after the current burst.
    #[track_caller]
    pub fn stop(self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// CLOCK_REALTIME.
fn now_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("the clock is after 1970");
    u64::try_from(now.as_nanos()).expect("before the year 2500")
}

/// Where a generator sends. Its thread is in the interface's namespace.
struct Output {
    device: String,
    socket: Option<Sendmmsg>,
}

impl Output {
    /// Frames that the kernel took. When the interface is gone, none; it is looked for again at the next call.
    fn send(&mut self, frames: &[Vec<u8>]) -> u64 {
        if self.socket.is_none() {
            let index = nix::net::if_::if_nametoindex(self.device.as_str()).ok();
            self.socket = index.and_then(|index| Sendmmsg::open(index, false).ok());
        }
        let Some(socket) = &mut self.socket else {
            return 0;
        };
        let report = transmit(socket, frames);
        if report.interrupted() {
            self.socket = None;
        }
        report.sent
    }
}

/// Sends these frames, byte for byte, from interface `device` of `netns`.
///
/// # Panics
/// When the kernel refuses one.
#[track_caller]
pub fn send_frames(netns: &Netns, device: &str, frames: &[Vec<u8>]) {
    let mut socket = netns.run(|| open(device));
    for chunk in frames.chunks(64) {
        let report = transmit(&mut socket, chunk);
        assert_eq!(
            report.refused(),
            0,
            "the kernel refused frames on {device}: {report:?}"
        );
    }
}

/// Frames that an interface has dropped until now; none when it has gone.
fn drops(netns: &str, device: &str) -> u64 {
    counters(netns, device).map_or(0, |counters| counters.tx_dropped)
}

/// A sending socket on an interface of the calling thread's namespace.
fn open(device: &str) -> Sendmmsg {
    Sendmmsg::open(index_of(device), false)
        .unwrap_or_else(|error| panic!("cannot send on {device}: {error}"))
}

/// Index of an interface in the calling thread's namespace.
pub(crate) fn index_of(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device)
        .unwrap_or_else(|error| panic!("no interface {device}: {error}"))
}

/// Hands frames to the kernel.
fn transmit(socket: &mut Sendmmsg, frames: &[Vec<u8>]) -> SendReport {
    let frames: Vec<Outgoing<'_>> = frames
        .iter()
        .map(|frame| Outgoing {
            pieces: [frame.as_slice(), &[], &[]],
            outputs: 1,
        })
        .collect();
    let mut report = SendReport::default();
    socket.send(&frames, std::slice::from_mut(&mut report));
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Veth;
    use crate::sink::Sink;

    fn wire() -> (Netns, Netns) {
        let (from, to) = (Netns::new(), Netns::new());
        Veth::pair((&from, "wire"), (&to, "wire"), 9000);
        (from, to)
    }

    #[test]
    fn a_stream_of_any_size_reaches_a_sink_whole_and_at_its_rate() {
        crate::need_root!();
        let (from, to) = wire();
        for (stream, size) in [(1, 60), (2, 1514), (3, 9014)] {
            let sink = Sink::start(&to, "wire");
            let sent = Generator::new(stream)
                .size(size)
                .rate(20_000)
                .count(4_000)
                .send(&from, "wire");
            sink.wait_frames(sent.frames, Duration::from_secs(5));
            let report = sink.stop();
            report.assert_exactly(stream, &sent);
            assert!(
                (15_000.0..21_000.0).contains(&sent.rate()),
                "{} frames/s",
                sent.rate()
            );
            assert!(report.stream(stream).latency.percentile(0.5) < Duration::from_millis(50));
        }
    }

    #[test]
    fn a_tag_and_the_bytes_behind_it_arrive_as_they_were_sent() {
        crate::need_root!();
        let (from, to) = wire();
        let sink = Sink::with(
            &to,
            "wire",
            crate::SinkOptions {
                keep: 10,
                ..Default::default()
            },
        );
        let frames: Vec<Vec<u8>> = [(0x8100, 0x0fff), (0x88a8, 0xf000), (0x8100, 0)]
            .into_iter()
            .map(|tag| {
                Headers {
                    tags: vec![tag, (0x8100, 7)],
                    ..Headers::default()
                }
                .frame(80)
            })
            .collect();
        send_frames(&from, "wire", &frames);
        sink.wait_frames(3, Duration::from_secs(5));
        assert_eq!(sink.stop().kept, frames);
    }

    #[test]
    fn generator_and_sink_follow_an_interface_that_is_made_again() {
        crate::need_root!();
        let (from, to) = wire();
        let sink = Sink::start(&to, "wire");
        let sending = Generator::new(1).endless().start(&from, "wire");
        sink.wait_frames(100, Duration::from_secs(5));
        Veth::delete(&from, "wire");
        Veth::pair((&from, "wire"), (&to, "wire"), 1500);
        let before = sink.frames();
        sink.wait_frames(before + 100, Duration::from_secs(5));
        let sent = sending.stop();
        let report = sink.stop().stream(1);
        report.assert_sound();
        assert!(report.missing(&sent) < sent.frames);
    }
}
