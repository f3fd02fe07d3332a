//! How the frames of an interface are taken from the kernel: which way, and why.

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
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    io: CaptureIo,
    low_latency: bool,
    only_in: bool,
    threads: usize,
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
    pub(crate) fn new(spec: &CaptureSpec) -> Plan {
        let or = |given: u64, default: u64| if given == 0 { default } else { given };
        let only_in = matches!(spec.direction(), Direction::Unspecified | Direction::In);
        Plan {
            io: CaptureIo::from_spec(&spec.io).unwrap_or_default(),
            low_latency: spec.latency() == Latency::Low,
            only_in,
            threads: threads(spec),
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
                filter: None,
            },
        }
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
            CaptureIo::Auto => {
                let why = if self.only_in {
                    match self.open_xdp(link) {
                        Ok(opened) => return Ok(opened),
                        Err(error) => error.to_string(),
                    }
                } else {
                    "it does not see what the host sends".to_owned()
                };
                let options = CaptureOptions {
                    block_retire: BLOCK_RETIRE,
                    ..self.options.clone()
                };
                let reason = format!("blocks of 1 ms, for want of af_xdp: {why}");
                self.open_packet(link, &options, reason)
            }
        }
    }

    fn open_packet(
        &self,
        link: &Link,
        options: &CaptureOptions,
        reason: String,
    ) -> Result<Opened, Error> {
        let captures = PacketCapture::open_group(link.index, options, self.threads)?;
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
    pub(crate) result: Result<Opened, Error>,
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
            let result = plan.open(&link);
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
