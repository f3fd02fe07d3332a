//! How the frames of an interface are taken from the kernel: which way, and why.

use crate::loops;
use crate::takers::victim;
use fluxcap_datapath::SourceGuard;
use fluxcap_options::{CaptureIo, MERGE_WINDOW_LOW_US, MERGE_WINDOW_US};
use fluxcap_proto::v1::{CaptureSpec, Direction, Latency};
use fluxcap_socket::{CaptureOptions, Error, Link, PacketCapture, Receiver, XdpCapture};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::thread::Builder;
use std::time::Duration;

/// Size of the kernel's buffer for each interface, unless the spec says otherwise.
pub(crate) const BUFFER_BYTES: u64 = 32 << 20;
/// Size of one block of that buffer. It bounds the longest frame.
pub(crate) const BLOCK_BYTES: u32 = 256 << 10;
/// Time after which the kernel hands over a block that is not full. The kernel knows no shorter one.
const BLOCK_RETIRE: Duration = Duration::from_millis(1);

/// What the spec says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    io: CaptureIo,
    low_latency: bool,
    both: bool,
    /// What keeps frames from going round.
    pub(crate) guard: SourceGuard,
    threads: usize,
    exclusive: bool,
    pub(crate) options: CaptureOptions,
}

/// An open interface.
#[derive(Debug)]
pub(crate) struct Opened {
    /// For one thread each.
    pub(crate) receivers: Vec<Receiver>,
    /// Why it is done that way.
    pub(crate) reason: String,
}

impl Plan {
    /// Of a spec that was validated.
    pub(crate) fn new(spec: &CaptureSpec, guard: SourceGuard) -> Plan {
        let or = |given: u64, default: u64| if given == 0 { default } else { given };
        let only_in = matches!(spec.direction(), Direction::Unspecified | Direction::In);
        Plan {
            io: CaptureIo::from_spec(&spec.io).unwrap_or_default(),
            low_latency: spec.latency() == Latency::Low,
            both: spec.direction() == Direction::Both,
            guard,
            threads: threads(spec),
            exclusive: spec.exclusive,
            options: CaptureOptions {
                buffer_bytes: or(spec.buffer_bytes, BUFFER_BYTES),
                block_bytes: match spec.block_bytes {
                    0 => BLOCK_BYTES,
                    bytes => bytes,
                },
                block_retire: match spec.block_retire_us {
                    0 => BLOCK_RETIRE,
                    us => Duration::from_micros(us.into()),
                },
                promiscuous: !spec.no_promiscuous,
                ignore_outgoing: only_in,
                stamped: false,
                filter: None,
            },
        }
    }

    /// The same for sockets that take the place of others.
    pub(crate) fn of_successor(&self) -> Plan {
        let mut plan = self.clone();
        plan.options.stamped = true;
        plan
    }

    /// Whether sockets opened by the other plan do as well.
    pub(crate) fn is_like(&self, other: &Plan) -> bool {
        let without_filter = |plan: &Plan| {
            let mut plan = plan.clone();
            plan.options.filter = None;
            // It is part of the filter.
            plan.guard = self.guard.clone();
            plan
        };
        without_filter(self) == without_filter(other)
    }

    /// Whether sockets of the other plan would have to go before those of this one can be had: an interface has one AF_XDP capture.
    pub(crate) fn excludes(&self, other: &Plan) -> bool {
        self.io == CaptureIo::AfXdp && other.io == CaptureIo::AfXdp
    }

    /// Why an interface is not to be opened in this way, if there is a reason: others would suffer, and nobody has said that they may.
    pub(crate) fn harm(&self, link: &Link) -> Option<String> {
        if self.io != CaptureIo::AfXdp || self.exclusive {
            return None;
        }
        let victim = victim(link)?;
        let name = &link.name;
        Some(format!(
            "af_xdp would take all frames of {name} from the host, and {victim}; --io auto leaves them, --exclusive takes them"
        ))
    }

    /// Opens the interface.
    pub(crate) fn open(&self, link: &Link) -> Result<Opened, Error> {
        match self.io {
            CaptureIo::AfXdp => self.open_xdp(link),
            CaptureIo::Packet => self.open_packet(link, &self.options, "as asked for".to_owned()),
            CaptureIo::Auto if !self.low_latency => {
                let reason = "takes many frames at a time".to_owned();
                self.open_packet(link, &self.options, reason)
            }
            // AF_XDP would be faster, and takes the frames from the host: nobody gets that who has not asked for it by name.
            CaptureIo::Auto => {
                let options = CaptureOptions {
                    block_retire: BLOCK_RETIRE,
                    ..self.options.clone()
                };
                let reason =
                    "blocks of 1 ms; --io af_xdp is faster, and takes all frames from the host";
                self.open_packet(link, &options, reason.to_owned())
            }
        }
    }

    fn open_packet(
        &self,
        link: &Link,
        options: &CaptureOptions,
        reason: String,
    ) -> Result<Opened, Error> {
        // On the loopback interface each frame that is sent arrives, too: the copy that arrives is enough.
        let options = CaptureOptions {
            ignore_outgoing: options.ignore_outgoing || (link.loopback && self.both),
            filter: loops::guarded(&self.guard, options.filter.as_deref()),
            ..options.clone()
        };
        let captures = PacketCapture::open_group(link.index, &options, self.threads)?;
        Ok(Opened {
            receivers: captures.into_iter().map(Receiver::Packet).collect(),
            reason,
        })
    }

    fn open_xdp(&self, link: &Link) -> Result<Opened, Error> {
        let captures = XdpCapture::open(link.index, &self.options, self.threads)?;
        let mode = captures.first().map_or("", XdpCapture::mode);
        Ok(Opened {
            reason: format!("{mode}; the host does not get these frames"),
            receivers: captures.into_iter().map(Receiver::Xdp).collect(),
        })
    }
}

/// Opens interfaces beside the threads that move frames: it takes tens of milliseconds, in which other interfaces go on.
#[derive(Debug)]
pub(crate) struct Opener {
    sender: mpsc::Sender<Attempt>,
    attempts: mpsc::Receiver<Attempt>,
    call: PipeWriter,
    calls: PipeReader,
}

/// An attempt that has ended.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// The interface's place in the spec.
    pub(crate) input: usize,
    pub(crate) link: Link,
    pub(crate) result: Result<Opened, NotOpened>,
}

/// Why an interface is not open.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// It cannot be.
    Error(Error),
    /// Frames would go round: which, and what to do.
    Loop(String),
}

impl Opener {
    pub(crate) fn new() -> io::Result<Opener> {
        let (sender, attempts) = mpsc::channel();
        let (calls, call) = io::pipe()?;
        Ok(Opener {
            sender,
            attempts,
            call,
            calls,
        })
    }

    /// Begins to open an interface. When nobody is there any more to ask for it, it is closed again.
    pub(crate) fn start(&self, input: usize, plan: &Plan, link: &Link) -> io::Result<()> {
        let (plan, link, sender) = (plan.clone(), link.clone(), self.sender.clone());
        let call = self.call.try_clone()?;
        let open = move || {
            let result = match loops::look(&plan.guard, link.index) {
                Some(looped) => Err(NotOpened::Loop(looped)),
                None => plan.open(&link).map_err(NotOpened::Error),
            };
            let attempt = Attempt {
                input,
                link,
                result,
            };
            if sender.send(attempt).is_ok() {
                let _ = (&call).write_all(&[0]);
            }
        };
        Builder::new().name("open".to_owned()).spawn(open)?;
        Ok(())
    }

    /// Readable when an attempt has ended.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.calls.as_fd()
    }

    /// The next attempt that has ended.
    pub(crate) fn next(&self) -> Option<Attempt> {
        let attempt = self.attempts.try_recv().ok()?;
        // Its byte, which was written or is about to be.
        let _ = (&self.calls).read_exact(&mut [0]);
        Some(attempt)
    }
}

/// How long a frame waits for an earlier one of another socket.
pub(crate) fn window(spec: &CaptureSpec) -> Duration {
    let default = match spec.latency() {
        Latency::Low => MERGE_WINDOW_LOW_US,
        _ => MERGE_WINDOW_US,
    };
    Duration::from_micros(spec.merge_window_us.unwrap_or(default).into())
}

/// Sockets of each interface, and threads that read them as long as they are not merged.
pub(crate) fn threads(spec: &CaptureSpec) -> usize {
    spec.threads.max(1) as usize
}
