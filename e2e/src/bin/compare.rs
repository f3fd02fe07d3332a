//! Compares frames that were captured at an output with the capture files that were replayed into the taps: same frames, same
//! order, same bytes, and the VLAN tag that was pushed.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pcap_file::pcap::PcapReader;

/// Compare a capture of an output, frame by frame, with what was replayed.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  compare --loops 20 out1.pcap cisco.pcap\n  compare --loops 20 out3.pcap 100:cisco.pcap 200:dell.pcap"
)]
struct Args {
    /// What came out.
    output: PathBuf,
    /// What went in, as `[VID:]FILE`; with VID, the tag that must stand in front of each of its frames.
    #[arg(required = true)]
    sources: Vec<Source>,
    /// How many times each file was replayed.
    #[arg(long, default_value_t = 1)]
    loops: usize,
}

/// One replayed file, and the tag that its frames were given.
#[derive(Clone)]
struct Source {
    vid: Option<u16>,
    path: PathBuf,
}

impl FromStr for Source {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            Some((vid, path)) => Source {
                vid: Some(vid.parse()?),
                path: path.into(),
            },
            None => Source {
                vid: None,
                path: text.into(),
            },
        })
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything came out as it went in.
fn run(args: &Args) -> Result<bool> {
    let mut streams: HashMap<Option<u16>, Stream> = HashMap::new();
    for source in &args.sources {
        let stream = Stream::open(&source.path, args.loops)?;
        if streams.insert(source.vid, stream).is_some() {
            bail!("two sources with the same tag cannot be told apart");
        }
    }
    if streams.len() > 1 && streams.contains_key(&None) {
        bail!("of several sources each needs a tag");
    }
    let by_tag = !streams.contains_key(&None);
    let mut stray = 0;
    for_each_frame(&args.output, |frame| {
        let (vid, frame) = if by_tag {
            untag(frame)
        } else {
            (None, frame.to_vec())
        };
        match streams.get_mut(&vid) {
            Some(stream) => stream.arrive(&frame),
            None => stray += 1,
        }
    })?;
    Ok(report(args, &streams, stray))
}

/// Prints a line for each source; true when all is well.
fn report(args: &Args, streams: &HashMap<Option<u16>, Stream>, stray: u64) -> bool {
    let output = name(&args.output);
    let mut well = stray == 0;
    for source in &args.sources {
        let Some(stream) = streams.get(&source.vid) else {
            continue;
        };
        let tag = source
            .vid
            .map(|vid| format!(" behind VLAN tag {vid}"))
            .unwrap_or_default();
        let what = format!(
            "{output}: {} of {} frames of {}{tag}",
            stream.equal,
            stream.total(),
            name(&source.path)
        );
        if stream.is_complete() {
            println!("{what}, in order, byte for byte");
        } else {
            println!(
                "{what}; missing {}, other than sent {}",
                stream.total() - stream.equal,
                stream.foreign
            );
            well = false;
        }
        if let Some(text) = &stream.first_fault {
            println!("{output}: {text}");
        }
    }
    if stray > 0 {
        println!("{output}: {stray} frames without the tag of any source");
    }
    well
}

fn name(path: &Path) -> String {
    path.file_stem()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// The frames of one file, as often as it was replayed, and how far they have been seen to arrive.
struct Stream {
    frames: Vec<Vec<u8>>,
    loops: usize,
    next: usize,
    equal: usize,
    foreign: u64,
    first_fault: Option<String>,
}

impl Stream {
    fn open(path: &Path, loops: usize) -> Result<Stream> {
        let mut frames = Vec::new();
        for_each_frame(path, |frame| frames.push(frame.to_vec()))?;
        if frames.is_empty() {
            bail!("{} has no frames", path.display());
        }
        Ok(Stream {
            frames,
            loops,
            next: 0,
            equal: 0,
            foreign: 0,
            first_fault: None,
        })
    }

    fn total(&self) -> usize {
        self.frames.len() * self.loops
    }

    fn is_complete(&self) -> bool {
        self.equal == self.total() && self.foreign == 0
    }

    /// Number `index` of all that was sent.
    fn sent(&self, index: usize) -> Option<&[u8]> {
        (index < self.total()).then(|| self.frames[index % self.frames.len()].as_slice())
    }

    /// Takes the next frame that came out. What does not fit is looked for within one replay ahead: then those between are
    /// missing; else it is a frame that was never sent.
    fn arrive(&mut self, frame: &[u8]) {
        let ahead = self.next..self.next + self.frames.len();
        match ahead.clone().find(|&index| self.sent(index) == Some(frame)) {
            Some(index) => {
                if index > self.next {
                    let (next, missing) = (self.next, index - self.next);
                    self.fault(|| {
                        format!("{missing} frames missing before frame {index}, from {next} on")
                    });
                }
                self.next = index + 1;
                self.equal += 1;
            }
            None => {
                self.foreign += 1;
                let (next, expected) = (self.next, self.sent(self.next).map(<[u8]>::to_vec));
                self.fault(|| match expected {
                    Some(expected) => format!("frame {next}: {}", difference(&expected, frame)),
                    None => format!("a frame more than was sent, {} bytes long", frame.len()),
                });
            }
        }
    }

    fn fault(&mut self, text: impl FnOnce() -> String) {
        if self.first_fault.is_none() {
            self.first_fault = Some(format!("first fault: {}", text()));
        }
    }
}

/// Where two frames differ first.
fn difference(sent: &[u8], came: &[u8]) -> String {
    let lengths = format!("sent {} bytes, came {}", sent.len(), came.len());
    match sent.iter().zip(came).position(|(a, b)| a != b) {
        Some(at) => format!(
            "{lengths}; byte {at} is {:02x}, was {:02x}",
            came[at], sent[at]
        ),
        None => lengths,
    }
}

/// Takes off the outer 802.1Q tag when it has priority 0; the VID, and the frame without it.
fn untag(frame: &[u8]) -> (Option<u16>, Vec<u8>) {
    match frame.get(12..16) {
        Some(&[0x81, 0x00, high, low]) if high < 0x10 => (
            Some(u16::from_be_bytes([high, low])),
            [&frame[..12], &frame[16..]].concat(),
        ),
        _ => (None, frame.to_vec()),
    }
}

/// Calls `each` for every frame of a pcap file; a frame that the file holds only a part of is an error.
fn for_each_frame(path: &Path, mut each: impl FnMut(&[u8])) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut reader = PcapReader::new(BufReader::new(file))
        .with_context(|| format!("read {}", path.display()))?;
    while let Some(packet) = reader.next_packet() {
        let packet = packet.with_context(|| format!("read {}", path.display()))?;
        if packet.data.len() != usize::try_from(packet.orig_len)? {
            bail!(
                "{} holds frames that were cut when captured",
                path.display()
            );
        }
        each(&packet.data);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frames: &[&str], loops: usize) -> Stream {
        let frames = frames
            .iter()
            .map(|frame| frame.as_bytes().to_vec())
            .collect();
        Stream {
            frames,
            loops,
            next: 0,
            equal: 0,
            foreign: 0,
            first_fault: None,
        }
    }

    fn arrive(stream: &mut Stream, frames: &[&str]) {
        for frame in frames {
            stream.arrive(frame.as_bytes());
        }
    }

    #[test]
    fn every_frame_of_every_replay_in_order_is_complete() {
        let mut s = stream(&["a", "b", "b"], 2);
        arrive(&mut s, &["a", "b", "b", "a", "b", "b"]);
        assert!(s.is_complete());
    }

    #[test]
    fn a_missing_a_changed_and_a_late_frame_are_each_a_fault() {
        for wrong in [
            &["a", "c"][..],
            &["a", "b", "x"],
            &["b", "a", "c"],
            &["a", "b", "c", "c"],
            &["a", "b"],
        ] {
            let mut s = stream(&["a", "b", "c"], 1);
            arrive(&mut s, wrong);
            assert!(!s.is_complete(), "{wrong:?}");
        }
    }

    #[test]
    fn the_first_different_byte_is_named() {
        assert_eq!(
            difference(&[1, 2, 3], &[1, 9]),
            "sent 3 bytes, came 2; byte 1 is 09, was 02"
        );
    }

    #[test]
    fn only_the_outer_tag_is_taken_off() {
        let tagged = [&[0; 12][..], &[0x81, 0, 0, 100, 0x81, 0, 0, 7, 8, 0]].concat();
        assert_eq!(
            untag(&tagged),
            (Some(100), [&[0; 12][..], &[0x81, 0, 0, 7, 8, 0]].concat())
        );
        assert_eq!(untag(&[0; 20]).0, None);
    }
}
