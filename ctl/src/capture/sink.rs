//! Where captured frames go.

use super::pcapng::{Packet, Writer};
use super::summary::Summary;
use crate::exit::{Code, Failure};
use crate::json;
use crate::output::{Format, note, printable};
use fluxcap_ring::{Consumer, Frame, RingName};
use fluxcap_service::realtime_ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// A file, a pipe or the terminal.
pub(super) struct Sink {
    form: Form,
    /// Standard output, or the name of the file.
    target: PathBuf,
    to_stdout: bool,
    /// Sources of the present epoch by their index.
    sources: HashMap<u16, Source>,
    /// Frames lost in the ring, not yet told.
    lapped: u64,
}

enum Form {
    Pcapng(Writer<BufWriter<Box<dyn Write>>>),
    Text(BufWriter<Box<dyn Write>>),
    Json(Objects),
}

/// Frames as the elements of one array, or one on each line.
struct Objects {
    output: BufWriter<Box<dyn Write>>,
    lines: bool,
    begun: bool,
}

impl Objects {
    fn write(&mut self, frame: &Summary) -> io::Result<()> {
        let before = match (self.lines, std::mem::replace(&mut self.begun, true)) {
            (true, _) => "",
            (false, false) => "[\n",
            (false, true) => ",\n",
        };
        let after = if self.lines { "\n" } else { "" };
        write!(self.output, "{before}{}{after}", json::value(frame))
    }

    fn finish(&mut self) -> io::Result<()> {
        match (self.lines, self.begun) {
            (true, _) => {}
            (false, true) => self.output.write_all(b"\n]\n")?,
            (false, false) => self.output.write_all(b"[]\n")?,
        }
        self.output.flush()
    }
}

#[derive(Clone)]
struct Source {
    name: String,
    interface: usize,
}

impl Sink {
    /// Opens the output: a pcapng file or `-`, or lines of text or JSON when `path` is not given.
    pub(super) fn open(path: Option<&Path>, format: Format, filter: &str) -> Result<Sink, Failure> {
        let to_stdout = path.is_none_or(|path| path == Path::new("-"));
        if path.is_some() && to_stdout && io::stdout().is_terminal() {
            let failure = Failure::new(Code::Usage, "pcapng does not belong on a terminal");
            return Err(failure
                .hint("give -w a file, or pipe it: fluxctl capture RING -w - | tcpdump -nr -"));
        }
        let target = path
            .filter(|_| !to_stdout)
            .unwrap_or(Path::new("standard output"))
            .to_owned();
        let fail =
            |error: io::Error| Failure::from_io(&format!("write {}", target.display()), &error);
        let output: Box<dyn Write> = match to_stdout {
            true => Box::new(io::stdout()),
            false => Box::new(File::create(&target).map_err(fail)?),
        };
        let output = BufWriter::with_capacity(256 << 10, output);
        let form = match (path, format) {
            (Some(_), _) => Form::Pcapng(Writer::new(output, filter, realtime_ns()).map_err(fail)?),
            (None, Format::Table) => Form::Text(output),
            (None, Format::Json | Format::Jsonl) => Form::Json(Objects {
                output,
                lines: format == Format::Jsonl,
                begun: false,
            }),
        };
        Ok(Sink {
            form,
            target,
            to_stdout,
            sources: HashMap::new(),
            lapped: 0,
        })
    }

    /// Begins with a ring or a new epoch of it: its sources are known by other numbers than before.
    pub(super) fn begin(&mut self, consumer: &Consumer, ring: &RingName) -> Result<(), Failure> {
        self.sources.clear();
        for index in consumer.sources() {
            self.source(consumer, index)?;
        }
        if self.sources.is_empty() {
            note(&format!(
                "ring {ring} has no source yet; waiting for frames"
            ));
        }
        self.flush()
    }

    /// The source with that index, described in the file when it is new.
    fn source(&mut self, consumer: &Consumer, index: u16) -> Result<Source, Failure> {
        if let Some(known) = self.sources.get(&index) {
            return Ok(known.clone());
        }
        // The name comes out of shared memory and goes to terminals and into files.
        let name = consumer
            .source_name(index)
            .map_or_else(|| format!("source{index}"), |name| printable(&name));
        let interface = match &mut self.form {
            Form::Pcapng(writer) => writer.interface(&name),
            Form::Text(_) | Form::Json(_) => Ok(0),
        };
        let source = Source {
            name,
            interface: interface.map_err(|error| self.failure(&error))?,
        };
        self.sources.insert(index, source.clone());
        Ok(source)
    }

    /// Counts a frame that did not match.
    pub(super) fn seen(&mut self, consumer: &Consumer, index: u16) -> Result<(), Failure> {
        let source = self.source(consumer, index)?;
        if let Form::Pcapng(writer) = &mut self.form {
            writer.seen(source.interface);
        }
        Ok(())
    }

    /// Counts frames that were lost in the ring.
    pub(super) fn lapped(&mut self, frames: u64) {
        self.lapped = self.lapped.saturating_add(frames);
    }

    /// Counts frames that the kernel dropped.
    pub(super) fn kernel_drops(
        &mut self,
        consumer: &Consumer,
        index: u16,
        frames: u64,
    ) -> Result<(), Failure> {
        let source = self.source(consumer, index)?;
        match &mut self.form {
            Form::Pcapng(writer) => writer.kernel_drops(source.interface, frames),
            Form::Text(_) | Form::Json(_) => note(&format!(
                "{}: the kernel dropped {frames} frames",
                source.name
            )),
        }
        Ok(())
    }

    /// Writes a frame, at most `snaplen` bytes of it unless that is 0.
    pub(super) fn frame(
        &mut self,
        consumer: &Consumer,
        frame: &Frame<'_>,
        outgoing: bool,
        snaplen: u32,
    ) -> Result<(), Failure> {
        let source = self.source(consumer, frame.meta.source)?;
        let keep = if snaplen == 0 {
            frame.data.len()
        } else {
            frame.data.len().min(snaplen as usize)
        };
        let data = &frame.data[..keep];
        let lapped = std::mem::take(&mut self.lapped);
        let written = match &mut self.form {
            Form::Pcapng(writer) => {
                writer.seen(source.interface);
                writer.lapped(source.interface, lapped);
                let packet = Packet {
                    timestamp_ns: frame.meta.timestamp_ns,
                    wire_len: frame.meta.wire_len,
                    outgoing,
                    id: frame.meta.id,
                    data,
                };
                writer.packet(source.interface, &packet)
            }
            Form::Text(output) => {
                tell_lapped(lapped);
                writeln!(
                    output,
                    "{}",
                    summary(frame, data, source.name, outgoing).text()
                )
            }
            Form::Json(output) => {
                tell_lapped(lapped);
                output.write(&summary(frame, data, source.name, outgoing))
            }
        };
        written.map_err(|error| self.failure(&error))
    }

    /// Hands on what was written, and looks whether anybody still reads it.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let flushed = match &mut self.form {
            Form::Pcapng(writer) => writer.flush(),
            Form::Text(output) => output.flush(),
            Form::Json(objects) => objects.output.flush(),
        };
        flushed.map_err(|error| self.failure(&error))?;
        if self.to_stdout && closed(&io::stdout()) {
            return Err(self.failure(&io::ErrorKind::BrokenPipe.into()));
        }
        Ok(())
    }

    /// Ends the file.
    pub(super) fn finish(&mut self, ring: &RingName) -> Result<(), Failure> {
        let done = match &mut self.form {
            Form::Pcapng(writer) => writer.finish(ring.as_str(), realtime_ns()),
            Form::Text(output) => output.flush(),
            Form::Json(objects) => objects.finish(),
        };
        done.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure::from_io(&format!("write {}", self.target.display()), error)
    }
}

fn tell_lapped(frames: u64) {
    if frames > 0 {
        note(&format!(
            "{frames} frames were overwritten before they could be read"
        ));
    }
}

fn summary(frame: &Frame<'_>, data: &[u8], source: String, outgoing: bool) -> Summary {
    let line = Summary {
        time_ns: frame.meta.timestamp_ns,
        seq: frame.seq,
        source,
        direction: if outgoing { "out" } else { "in" },
        id: frame.meta.id,
        wire_len: frame.meta.wire_len,
        // A frame is shorter than 1 MiB.
        len: u32::try_from(data.len()).unwrap_or(u32::MAX),
        ..Summary::default()
    };
    Summary::of(data, line)
}

/// Whether the other end of a pipe is closed: without traffic no write would find out.
fn closed(stdout: &io::Stdout) -> bool {
    let mut fds = [PollFd::new(stdout, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}
