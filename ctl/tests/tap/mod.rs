//! A ring in a temporary directory with somebody who fills it, and fluxctl to look at it.

use fluxcap_ring::{
    CreateOptions, Direction, Meta, Mode, Producer, RingDir, RingName, create, record_size,
};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// 2023-11-14T22:13:20Z, in nanoseconds.
pub(crate) const T0: u64 = 1_700_000_000_000_000_000;

/// A ring with a live producer.
pub(crate) struct Tap {
    pub(crate) dir: TempDir,
    pub(crate) producer: Producer,
    pub(crate) name: RingName,
    sent: u64,
}

impl Tap {
    pub(crate) fn new(name: &str) -> Tap {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let name: RingName = name.parse().expect("a ring name");
        make(&dir, &name, false);
        let producer =
            Producer::open(&RingDir::new(dir.path()), &name, "test").expect("the producer");
        Tap {
            dir,
            producer,
            name,
            sent: 0,
        }
    }

    pub(crate) fn rings(&self) -> RingDir {
        RingDir::new(self.dir.path())
    }

    /// Puts a new epoch in the place of the ring.
    pub(crate) fn replace(&mut self) {
        make(&self.dir, &self.name, true);
        self.producer = Producer::open(&self.rings(), &self.name, "test").expect("the producer");
    }

    /// Publishes `count` frames from a source, all counted as received. Frame n of the tap has n in its UDP payload
    /// and T0 + n microseconds + 7 ns as its time.
    pub(crate) fn publish(&mut self, source: &str, count: u64) {
        let source = self.producer.register_source(source).expect("a source");
        self.producer.source(source).add_received(count);
        for _ in 0..count {
            let frame = udp(self.sent);
            let meta = Meta {
                timestamp_ns: T0 + self.sent * 1000 + 7,
                wire_len: u32::try_from(frame.len()).expect("a short frame") + 4,
                source,
                direction: if self.sent.is_multiple_of(2) {
                    Direction::In
                } else {
                    Direction::Out
                },
                ..Meta::default()
            };
            let mut burst = self
                .producer
                .reserve(record_size(frame.len()))
                .expect("space")
                .expect("space");
            assert!(burst.push(&meta, &[&frame]));
            burst.commit();
            self.sent += 1;
        }
    }

    /// Notes that the kernel dropped frames of a source.
    pub(crate) fn kernel_drop(&mut self, source: &str, count: u64) {
        let source = self.producer.register_source(source).expect("a source");
        self.producer.source(source).add_kernel(count, count);
        let mut burst = self
            .producer
            .reserve(record_size(0))
            .expect("space")
            .expect("space");
        assert!(burst.push_loss(source, count, T0));
        burst.commit();
    }

    /// fluxctl for this ring's directory, without any daemon.
    pub(crate) fn fluxctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fluxctl"));
        command
            .args(args)
            .env("FLUXCAP_RING_DIR", self.dir.path())
            .env("FLUXCAP_RUN_DIR", self.dir.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.fluxctl(args).output().expect("fluxctl runs"))
    }
}

fn make(dir: &TempDir, name: &RingName, replace: bool) {
    let options = CreateOptions {
        capacity: 1 << 20,
        mode: Mode::Overwrite,
        replace,
        file_mode: 0o660,
        base_pos: None,
        ..CreateOptions::default()
    };
    create(&RingDir::new(dir.path()), name, &options).expect("a ring");
}

/// What a run of fluxctl gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A UDP frame 10.0.0.1:1000 > 10.0.0.2:2000 with `number` as its payload.
pub(crate) fn udp(number: u64) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    frame.extend([
        0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0x66, 0xc7, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame.extend([0x03, 0xe8, 0x07, 0xd0, 0, 16, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame
}
