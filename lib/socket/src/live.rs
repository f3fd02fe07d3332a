//! Sending by XDP live frames, the fastest way to a veth: `bpf/live.bpf.c`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aya::maps::{DevMap, MapData};
use aya::programs::{BtfTracePoint, Program, Xdp, XdpMode};
use aya::{Btf, Ebpf};

use crate::anchor::Anchor;
use crate::area::{ATTEMPTS, Area};
use crate::bpf::{self, Run, TRACE};
use crate::sendmmsg::SETTLE;
use crate::transmit::{clear, places};
use crate::{Error, Fate, MAX_OUTPUTS, Origin, Outgoing, SendReport, Sendmmsg, Transmitter};

/// BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18.
const LIVE_FRAMES: u32 = 2;
/// Frames that the kernel makes, sends and has its softirqs deal with at a time. More overrun the queue of a veth.
const BATCH: u32 = 64;
/// Bytes of an empty frame, as the program has it.
const TEMPLATE: usize = 1536;
/// The longest frame, as the program has it.
const LONGEST: usize = 3408;
/// Errors of the system for want of memory before the frames left are given up.
const PATIENCE: u32 = 3;
/// Pause before what found no room in a queue of the peer is tried again: about as long as the peer takes to empty it.
const ROOM_PAUSE: Duration = Duration::from_micros(50);
/// Pauses of one call, 2 ms together, after which frames that find no room are dropped: other outputs wait too.
const ROOM_PAUSES: u32 = 16;

/// A transmitter by live frames.
///
/// The interface must take redirected frames: a veth does when its peer has GRO on or a native XDP program attached. When it does
/// not, or no longer, frames are [`Fate::Unreachable`], and none of them is lost. Calls with few frames, for which the
/// fixed cost of a run does not pay, and frames longer than 3408 bytes go through packet sockets, in order.
///
/// Frames sent this way pass no queueing discipline, and packet sockets on the same interface (tcpdump) do not see them.
pub struct Live {
    ebpf: Ebpf,
    outputs: DevMap<MapData>,
    area: Area,
    /// Places with an interface, by bit.
    places: u16,
    few: Sendmmsg,
    path: Path,
    /// The last call went by live frames.
    went_live: bool,
    template: [u8; TEMPLATE],
    _anchor: Anchor,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("few", &self.few)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Live {
    /// Loads the programs. Their descriptors are all that is needed from then on.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON); [`Error::System`] when the kernel does not know
    /// live frames (before 5.18), has no BTF, or there is no `/dev/net/tun`.
    pub fn new() -> Result<Live, Error> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/live.bpf.o"));
        let btf = Btf::from_sys_fs().map_err(bpf::failed("read the kernel's BTF", TRACE))?;
        let mut ebpf = bpf::load(object, Some(&btf), TRACE)?;
        let area = Area::new(bpf::array(&mut ebpf, "frames")?)?;
        let outputs = bpf::map(&mut ebpf, "outputs")?;
        let outputs =
            DevMap::try_from(outputs).map_err(bpf::failed("use the map of outputs", TRACE))?;
        for (name, tracepoint) in [
            ("not_queued", "xdp_redirect_err"),
            ("flushed", "xdp_devmap_xmit"),
        ] {
            let program: &mut BtfTracePoint = bpf::program(&mut ebpf, name)?;
            program
                .load(tracepoint, &btf)
                .map_err(bpf::failed("load a BPF program for a tracepoint", TRACE))?;
            program
                .attach()
                .map_err(bpf::failed("attach to a tracepoint", TRACE))?;
        }
        let anchor = Anchor::new()?;
        let program: &mut Xdp = bpf::program(&mut ebpf, "live")?;
        program
            .load()
            .map_err(bpf::failed("load an XDP program", TRACE))?;
        program
            .attach(anchor.name(), XdpMode::Skb)
            .map_err(bpf::failed("attach an XDP program", TRACE))?;
        drop(btf);
        bpf::trim_memory();
        Ok(Live {
            ebpf,
            outputs,
            area,
            places: 0,
            few: Sendmmsg::new(false),
            path: Path::Few,
            went_live: false,
            template: [0; TEMPLATE],
            _anchor: anchor,
        })
    }

    /// Runs the program until it has made every attempt, or the kernel refuses to go on.
    fn run(&mut self) -> Result<(), i32> {
        self.area.end();
        let Some(Program::Xdp(program)) = self.ebpf.program("live") else {
            return Err(libc::ENOENT);
        };
        let fd = program.fd().map_err(|_| libc::EBADF)?;
        loop {
            let left = self.area.attempts() - self.area.attempted();
            if left == 0 {
                return Ok(());
            }
            let run = Run {
                data: &self.template,
                context: &[],
                repeat: u32::try_from(left).unwrap_or(0),
                flags: LIVE_FRAMES,
                batch: BATCH,
            };
            match bpf::run(fd.as_fd(), run) {
                Ok(_) => {}
                // The program's own cursor says how far it came.
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
    }

    /// Sends all frames by live frames, but for those that are too long.
    fn send_many(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]) {
        let mut todo = Todo::new(self.places);
        let mut patience = PATIENCE;
        while let Some(first) = todo.first(frames.len()) {
            self.area.begin();
            let mut end = first;
            while let Some(frame) = frames.get(end) {
                let outputs = todo.outputs(frame, end);
                let fits = frame.len() <= LONGEST && self.area.attempts() + MAX_OUTPUTS <= ATTEMPTS;
                if outputs != 0 && !(fits && self.area.push(frame, outputs)) {
                    break;
                }
                end += 1;
            }
            if self.area.attempts() == 0 {
                self.send_long(frames, end, &mut todo, reports);
                continue;
            }
            if let Err(errno) = self.run() {
                patience -= 1;
                if patience == 0 {
                    self.settle(frames, first..end, &mut todo, reports);
                    return todo.refuse_all(frames, errno, reports);
                }
            }
            self.settle(frames, first..end, &mut todo, reports);
            todo.wait_for_room();
        }
    }

    /// Counts what became of the frames of a run, and sets from where to go on at each output.
    fn settle(
        &self,
        frames: &[Outgoing<'_>],
        run: std::ops::Range<usize>,
        todo: &mut Todo,
        reports: &mut [SendReport],
    ) {
        let clean = self.area.is_clean();
        let mut attempt = 0;
        let mut position = [0; MAX_OUTPUTS];
        let before = *todo;
        todo.next = before.next.map(|next| next.max(run.end));
        for (place, frame) in (run.start..).zip(frames.get(run).unwrap_or_default()) {
            let mut outputs = before.outputs(frame, place);
            let bytes = frame.len() as u64;
            while outputs != 0 {
                let output = outputs.trailing_zeros() as usize;
                outputs &= outputs - 1;
                let Some(report) = reports.get_mut(output) else {
                    continue;
                };
                attempt += 1;
                if clean {
                    report.add_sent(bytes);
                } else if attempt > self.area.attempted() {
                    todo.next[output] = todo.next[output].min(place);
                } else {
                    self.judge(output, position[output], place, bytes, todo, report);
                    position[output] += 1;
                }
            }
        }
        todo.give_up_ended(frames, reports);
    }

    /// What became of one attempt, the `position`-th at this output, when not all went well.
    fn judge(
        &self,
        output: usize,
        position: usize,
        place: usize,
        bytes: u64,
        todo: &mut Todo,
        report: &mut SendReport,
    ) {
        let ran = self.area.ran(output);
        if todo.ended[output].is_some() || todo.next[output] <= place {
            return; // dealt with in one go, or by the next run
        }
        if position >= ran.queued {
            match whole(ran.refused) {
                Some(fate) => todo.end(output, fate, place),
                // Not tried, because those before it found no room.
                None if ran.refused == libc::ENOBUFS => todo.next[output] = place,
                None => {
                    report.refuse(place, ran.refused);
                    todo.next[output] = place + 1;
                }
            }
            return;
        }
        let event = self
            .area
            .events()
            .find(|event| event.covers(output, position));
        match event.map(|event| event.errno()) {
            None if position < ran.flushed => report.add_sent(bytes),
            // A run ends with all queues flushed: that was not seen, and nothing may count as sent unseen.
            None => report.fail(place, Fate::Other),
            Some(0) if todo.may_wait() && self.is_last(output, position) => {
                todo.retry(output, place);
                report.retries += 1;
            }
            Some(0) => report.fail(place, Fate::NoBuffer),
            Some(errno) => match whole(errno).filter(|_| self.is_last(output, position)) {
                Some(fate) => todo.end(output, fate, place),
                None => report.refuse(place, errno),
            },
        }
    }

    /// Whether all frames from this position on were dropped too. A frame behind one that left would come too late.
    fn is_last(&self, output: usize, position: usize) -> bool {
        let dropped = |position| {
            let mut events = self.area.events();
            events.any(|event| event.covers(output, position))
        };
        (position..self.area.ran(output).flushed).all(dropped)
    }

    /// Sends one frame that is too long for live frames, when all before it have arrived.
    fn send_long(
        &mut self,
        frames: &[Outgoing<'_>],
        place: usize,
        todo: &mut Todo,
        reports: &mut [SendReport],
    ) {
        let Some(frame) = frames.get(place) else {
            return todo.next.fill(frames.len());
        };
        self.path.wait();
        let outputs = todo.outputs(frame, place);
        for (output, report) in reports.iter_mut().enumerate() {
            if outputs & (1 << output) != 0 {
                let until = frames.get(..=place).unwrap_or_default();
                self.few.send_alone(output, until, report);
            }
        }
        for next in &mut todo.next {
            *next = (*next).max(place + 1);
        }
    }
}

impl Transmitter for Live {
    fn name(&self) -> &'static str {
        "live"
    }

    fn set_interfaces(&mut self, ifindexes: &[u32]) -> Result<(), Error> {
        self.few.set_interfaces(ifindexes)?;
        self.path.wait(); // what is sent in another way from now on must not overtake live frames
        let used = (0..).zip(ifindexes.iter().take(MAX_OUTPUTS));
        for (place, ifindex) in used.filter(|(_, ifindex)| **ifindex != 0) {
            self.outputs
                .set(place, *ifindex, None, 0)
                .map_err(bpf::failed("redirect to the interface", TRACE))?;
        }
        self.area.set_interfaces(ifindexes);
        self.places = places(ifindexes);
        Ok(())
    }

    fn send(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]) {
        let attempts = frames
            .iter()
            .map(|frame| (frame.outputs & self.places).count_ones());
        let attempts = attempts.sum::<u32>() as usize;
        let drained = || (0..MAX_OUTPUTS).all(|output| self.few.is_drained(output));
        self.went_live = attempts > 0 && self.path.choose(attempts, drained);
        if self.went_live {
            clear(reports, self.places);
            self.send_many(frames, reports);
            self.path.took_live();
        } else {
            self.few.send(frames, reports);
        }
    }

    fn last_way(&self) -> &'static str {
        match self.went_live {
            true => self.name(),
            false => self.few.name(),
        }
    }

    fn set_origin(&mut self, origin: Origin) {
        self.few.set_origin(origin);
    }

    fn settle_down(&mut self) {
        self.path.wait();
        self.few.settle_down();
    }

    fn max_frame(&self) -> usize {
        self.few.max_frame()
    }
}

/// The fate of all frames from the one on that met this errno; `None` when it says something about that one only.
fn whole(errno: i32) -> Option<Fate> {
    match errno {
        // The interface takes no redirected frames; its peer has no queue for them.
        libc::EOPNOTSUPP | libc::ENXIO => Some(Fate::Unreachable),
        libc::ENETDOWN => Some(Fate::LinkDown),
        libc::ENODEV => Some(Fate::NoInterface),
        _ => None,
    }
}

/// What is left to be sent in a call, for each output.
#[derive(Debug, Clone, Copy)]
struct Todo {
    /// Outputs that still take frames, by bit.
    alive: u16,
    /// Place of the next frame.
    next: [usize; MAX_OUTPUTS],
    /// What becomes of all frames from a place on.
    ended: [Option<(Fate, usize)>; MAX_OUTPUTS],
    /// An output had no room in the last run.
    full: bool,
    /// Pauses that are left for such outputs.
    pauses: u32,
}

impl Todo {
    fn new(places: u16) -> Todo {
        Todo {
            alive: places,
            next: [0; MAX_OUTPUTS],
            ended: [None; MAX_OUTPUTS],
            full: false,
            pauses: ROOM_PAUSES,
        }
    }

    /// Whether what finds no room can be tried again.
    fn may_wait(&self) -> bool {
        self.pauses > 0
    }

    /// The frame at this place found no room at the output; it and those after it are to be tried again.
    fn retry(&mut self, output: usize, place: usize) {
        self.next[output] = place;
        self.full = true;
    }

    /// Gives the peers time to empty their queues, if one was full.
    fn wait_for_room(&mut self) {
        if std::mem::take(&mut self.full) {
            self.pauses -= 1;
            std::thread::sleep(ROOM_PAUSE);
        }
    }

    fn is_alive(&self, output: usize) -> bool {
        self.alive & (1 << output) != 0
    }

    /// Place of the first frame that is left, of `len`.
    fn first(&self, len: usize) -> Option<usize> {
        let next = self.next.iter().enumerate();
        let next = next.filter(|(output, _)| self.is_alive(*output));
        next.map(|(_, next)| *next)
            .min()
            .filter(|first| *first < len)
    }

    /// The outputs for which the frame at a place is left.
    fn outputs(&self, frame: &Outgoing<'_>, place: usize) -> u16 {
        let mut outputs = frame.outputs & self.alive;
        if outputs != 0 && self.next.iter().any(|next| *next > place) {
            for (output, _) in self
                .next
                .iter()
                .enumerate()
                .filter(|(_, next)| **next > place)
            {
                outputs &= !(1 << output);
            }
        }
        outputs
    }

    /// All frames from a place on end in the same way.
    fn end(&mut self, output: usize, fate: Fate, place: usize) {
        self.ended[output] = Some((fate, place));
    }

    /// Counts the frames of outputs that take no more.
    fn give_up_ended(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]) {
        for (output, report) in reports.iter_mut().enumerate().take(MAX_OUTPUTS) {
            let Some((fate, from)) = self.ended[output].take() else {
                continue;
            };
            self.alive &= !(1 << output);
            for (place, frame) in frames.iter().enumerate().skip(from) {
                if frame.goes_to(output) {
                    report.fail(place, fate);
                }
            }
        }
    }

    /// Counts all that is left as refused.
    fn refuse_all(&self, frames: &[Outgoing<'_>], errno: i32, reports: &mut [SendReport]) {
        for (output, report) in reports.iter_mut().enumerate().take(MAX_OUTPUTS) {
            let left = frames.iter().enumerate().skip(self.next[output]);
            for (place, _) in left.filter(|(_, f)| self.is_alive(output) && f.goes_to(output)) {
                report.refuse(place, errno);
            }
        }
    }
}

/// Attempts below which packet sockets are cheaper than a run: its fixed cost is about 20 us, theirs about 2 us for each frame.
const MANY: usize = 16;
/// After so many small bursts in a row, they are sent through packet sockets.
const SMALL_BURSTS: u32 = 64;
/// After such a pause, too.
const PAUSE: Duration = Duration::from_millis(20);

/// Which of the two ways frames take. They lead through different queues of the peer, so a change waits until those are empty.
#[derive(Debug, Clone, Copy)]
enum Path {
    /// Packet sockets.
    Few,
    /// Live frames.
    Many {
        /// When the last run ended.
        last: Instant,
        /// Small bursts since the last large one.
        small: u32,
    },
}

impl Path {
    /// Whether a burst is to be sent by live frames. `drained` tells whether all that went through the packet sockets has arrived.
    fn choose(&mut self, attempts: usize, drained: impl Fn() -> bool) -> bool {
        match self {
            Path::Few => attempts >= MANY && drained(),
            Path::Many { last, small } => {
                *small = if attempts >= MANY { 0 } else { *small + 1 };
                if *small > SMALL_BURSTS || (*small > 0 && last.elapsed() >= PAUSE) {
                    self.wait();
                    *self = Path::Few;
                    return false;
                }
                true
            }
        }
    }

    fn took_live(&mut self) {
        let small = match self {
            Path::Few => 0,
            Path::Many { small, .. } => *small,
        };
        let last = Instant::now();
        *self = Path::Many { last, small };
    }

    /// Waits until the last live frames have been passed on. The kernel does that at the end of a run; under load its own
    /// thread does, and there is no way to ask whether it has.
    fn wait(&self) {
        if let Path::Many { last, .. } = self {
            std::thread::sleep(SETTLE.saturating_sub(last.elapsed()));
        }
    }
}
