//! Compares every byte of every frame at the far ends.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use fluxcap_socket::{CaptureOptions, PacketCapture};

use crate::bench::bed::Bed;
use crate::bench::frame::{HEADER, Mix, Pool, Stamp};
use crate::generator::index_of;
use crate::netns::{Netns, enter};

/// Kernel buffer: a busy machine must cost no frame here.
const BUFFER: u64 = 64 << 20;
/// Longest time without a look at the stop flag.
const LOOK: Duration = Duration::from_millis(5);

/// What one far end saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    /// Frames with every byte as it was sent.
    pub good: u64,
    /// Other frames.
    pub bad: u64,
    /// Frames that the checker itself lost: it proves nothing then.
    pub missed: u64,
}

/// A capture at each far end.
#[derive(Debug)]
pub struct Checker {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Checked>>>,
}

impl Checker {
    /// Begins to check frames of run `run`. The sinks must pass them on.
    ///
    /// # Errors
    /// When a capture cannot be opened.
    pub fn start(bed: &Bed, mix: Mix, run: u16) -> Result<Checker> {
        let mut checker = Checker {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for n in 0..bed.shape.outputs {
            let mut capture = open(&bed.far, &format!("wire{n}"))?;
            let (stop, path) = (Arc::clone(&checker.stop), bed.far.path());
            let thread = thread::Builder::new().name(format!("checker-{n}"));
            checker.threads.push(thread.spawn(move || {
                enter(&path);
                check(&mut capture, mix, run, &stop)
            })?);
        }
        Ok(checker)
    }

    /// What was seen, when nothing more comes.
    ///
    /// # Errors
    /// When a capture fails.
    pub fn stop(self) -> Result<Vec<Checked>> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Result<Checked>>| {
            thread.join().map_err(|_| anyhow!("a checker failed"))?
        };
        self.threads.into_iter().map(join).collect()
    }
}

fn open(netns: &Netns, device: &str) -> Result<PacketCapture> {
    let options = CaptureOptions {
        buffer_bytes: BUFFER,
        ..CaptureOptions::default()
    };
    Ok(netns.run(|| PacketCapture::open(index_of(device), &options))?)
}

fn check(capture: &mut PacketCapture, mix: Mix, run: u16, stop: &AtomicBool) -> Result<Checked> {
    let pool = Pool::new();
    let mut checked = Checked::default();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        fluxcap_socket::poll(&[capture.as_fd()], LOOK)?;
        while let Some(mut block) = capture.next_block() {
            for packet in block.packets() {
                match is_good(packet.data, mix, run, &pool) {
                    true => checked.good += 1,
                    false => checked.bad += 1,
                }
            }
        }
        if stopping {
            checked.missed = capture.statistics()?.drops;
            return Ok(checked);
        }
    }
}

fn is_good(frame: &[u8], mix: Mix, run: u16, pool: &Pool) -> bool {
    let Some(stamp) = Stamp::read(frame) else {
        return false;
    };
    let len = mix.length(stamp.seq);
    stamp.run == run
        && frame.len() == len
        && frame.get(HEADER..) == Some(pool.filler(stamp.seq, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::frame::MIXES;

    #[test]
    fn a_frame_with_one_other_byte_or_of_another_run_is_bad() {
        let (pool, mix) = (Pool::new(), MIXES[1]);
        let stamp = Stamp {
            run: 1,
            stream: 0,
            seq: 9,
            sent_ns: 5,
        };
        let mut frame = stamp.header(508).to_vec();
        frame.extend(pool.filler(9, 508));
        assert!(is_good(&frame, mix, 1, &pool));
        assert!(!is_good(&frame, mix, 2, &pool));
        frame[507] ^= 1;
        assert!(!is_good(&frame, mix, 1, &pool));
    }
}
