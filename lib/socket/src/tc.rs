//! Sending by a BPF program for traffic control that clones one socket buffer: `bpf/tc.bpf.c`.

use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::{Program, SchedClassifier};

use crate::area::{Area, RESULTS};
use crate::bpf::{self, LOAD, Run};
use crate::sendmmsg::SETTLE;
use crate::transmit::{clear, places};
use crate::{Error, Fate, MAX_OUTPUTS, Origin, Outgoing, SendReport, Sendmmsg, Transmitter};

/// The longest frame, as the program has it.
const LONGEST: usize = 15 << 10;
/// Bytes of the socket buffer at first: the shortest that the kernel makes, and some room.
const TEMPLATE: usize = 64;
/// Results beyond errors (`linux/netdevice.h`): the frame was dropped; a frame was dropped.
const NET_XMIT_DROP: i32 = 1;
const NET_XMIT_CN: i32 = 2;

/// A transmitter by clones of a socket buffer; works with every driver.
///
/// At most 64 frames are sent in one system call: more would overrun the queue behind a veth, which the kernel only empties
/// at the end. Frames longer than 15 KiB go through packet sockets.
#[derive(Debug)]
pub struct Tc {
    ebpf: Ebpf,
    area: Area,
    /// Places with an interface, by bit.
    places: u16,
    origin: Origin,
    long: Sendmmsg,
}

impl Tc {
    /// Loads the program. Its descriptor is all that is needed from then on.
    ///
    /// # Errors
    /// [`Error::Permission`] (CAP_BPF, CAP_NET_ADMIN); [`Error::System`] when the kernel is too old (before 5.17).
    pub fn new() -> Result<Tc, Error> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tc.bpf.o"));
        let mut ebpf = bpf::load(object, None, LOAD)?;
        let area = Area::new(bpf::array(&mut ebpf, "frames")?)?;
        let program: &mut SchedClassifier = bpf::program(&mut ebpf, "send")?;
        program
            .load()
            .map_err(bpf::failed("load a BPF program for traffic control", LOAD))?;
        bpf::trim_memory();
        Ok(Tc {
            ebpf,
            area,
            places: 0,
            origin: Origin::UNKNOWN,
            long: Sendmmsg::new(false),
        })
    }

    /// One system call: as many of the frames from `first` on as fit. Returns the place behind them.
    fn send_some(
        &mut self,
        frames: &[Outgoing<'_>],
        first: usize,
        reports: &mut [SendReport],
    ) -> usize {
        self.area.begin();
        let mut end = first;
        while let Some(frame) = frames.get(end) {
            let outputs = frame.outputs & self.places;
            let fits = frame.len() <= LONGEST
                && self.area.attempts() + outputs.count_ones() as usize <= RESULTS;
            if outputs != 0 && !(fits && self.area.push(frame, outputs)) {
                break;
            }
            end += 1;
        }
        if end == first {
            return self.send_long(frames, first, reports);
        }
        let errno = self.run().err().unwrap_or(libc::EIO);
        let mut attempt = 0;
        for (place, frame) in (first..end).zip(frames.get(first..end).unwrap_or_default()) {
            for (output, report) in reports.iter_mut().enumerate().take(MAX_OUTPUTS) {
                if frame.outputs & self.places & (1 << output) == 0 {
                    continue;
                }
                if attempt < self.area.attempted() {
                    let closed = || self.long.is_down(output);
                    count(self.area.result(attempt), place, frame, closed, report);
                } else {
                    report.refuse(place, errno);
                }
                attempt += 1;
            }
        }
        end
    }

    fn send_long(
        &mut self,
        frames: &[Outgoing<'_>],
        place: usize,
        reports: &mut [SendReport],
    ) -> usize {
        let one = frames.get(..=place).unwrap_or_default();
        for (output, report) in reports.iter_mut().enumerate().take(MAX_OUTPUTS) {
            self.long.send_to(output, one, place, report);
        }
        place + 1
    }

    fn run(&mut self) -> Result<(), i32> {
        self.area.end();
        let Some(Program::SchedClassifier(program)) = self.ebpf.program("send") else {
            return Err(libc::ENOENT);
        };
        let fd = program.fd().map_err(|_| libc::EBADF)?;
        let run = Run {
            data: &[0; TEMPLATE],
            context: &context(self.origin),
            repeat: 1,
            flags: 0,
            batch: 0,
        };
        bpf::run(fd.as_fd(), run)
            .map(drop)
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// The front of a `struct __sk_buff` (`linux/bpf.h`): length, packet type, mark. The clones have the buffer's mark.
fn context(origin: Origin) -> [u8; 12] {
    let mut context = [0; 12];
    context[8..].copy_from_slice(&origin.mark().to_ne_bytes());
    context
}

/// Counts a frame by what the kernel said of its clone. `closed` tells whether the interface is down.
fn count(
    result: i32,
    place: usize,
    frame: &Outgoing<'_>,
    closed: impl Fn() -> bool,
    report: &mut SendReport,
) {
    match result {
        0 => report.add_sent(frame.len() as u64),
        NET_XMIT_DROP => report.fail(place, Fate::NoBuffer),
        // The queueing discipline of an interface that is down says so of each frame, which it drops (net/sched/sch_generic.c).
        NET_XMIT_CN if closed() => report.fail(place, Fate::LinkDown),
        // It has dropped this frame or another one of the same flow: one less is sent.
        NET_XMIT_CN => report.fail(place, Fate::NoBuffer),
        error => match error.saturating_neg() {
            libc::ENOMEM => report.fail(place, Fate::NoBuffer),
            errno => report.refuse(place, errno),
        },
    }
}

impl Transmitter for Tc {
    fn name(&self) -> &'static str {
        "tc"
    }

    fn set_interfaces(&mut self, ifindexes: &[u32]) -> Result<(), Error> {
        self.long.set_interfaces(ifindexes)?;
        self.area.set_interfaces(ifindexes);
        self.places = places(ifindexes);
        Ok(())
    }

    fn send(&mut self, frames: &[Outgoing<'_>], reports: &mut [SendReport]) {
        clear(reports, self.places);
        let mut next = 0;
        while next < frames.len() {
            next = self.send_some(frames, next, reports);
        }
    }

    fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
        self.long.set_origin(origin);
    }

    fn settle_down(&mut self) {
        // There is no asking what has become of clones.
        std::thread::sleep(SETTLE);
        self.long.settle_down();
    }

    fn max_frame(&self) -> usize {
        self.long.max_frame()
    }
}
