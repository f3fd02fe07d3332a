//! tcpdump at an interface, and tcpreplay into one.

use crate::traffic;
use fluxcap_e2e::{Netns, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// A packet file that has not grown for so long is complete, where nobody knows how long it will be.
const QUIET: Duration = Duration::from_millis(700);

/// A running tcpdump.
pub(crate) struct Sniffer {
    child: Child,
    file: PathBuf,
}

impl Sniffer {
    /// Sniffs what arrives at an interface; returns when it does.
    pub(crate) fn start(netns: &Netns, device: &str, file: &Path) -> Sniffer {
        let log = file.with_extension("log");
        let errors = fs::File::create(&log).expect("make a log");
        let mut command = netns.command("tcpdump");
        command.args([
            "-i", device, "-nn", "-s", "0", "-B", "131072", "-Q", "in", "-U",
        ]);
        command.args(["-Z", "root", "-w"]).arg(file);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let child = command.spawn().expect("run tcpdump");
        wait_until(PATIENCE, "tcpdump listens", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"))
        });
        Sniffer {
            child,
            file: file.to_owned(),
        }
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |file| file.len())
    }

    /// What it has seen, when nothing more comes; `expected` frames of so many bytes are waited for longer than others.
    pub(crate) fn stop(mut self, expected: Option<(usize, usize)>) -> Vec<Vec<u8>> {
        let enough = expected.map_or(u64::MAX, |(frames, bytes)| {
            (24 + 16 * frames + bytes) as u64
        });
        let started = Instant::now();
        let (mut last, mut since) = (self.length(), Instant::now());
        let patience = if expected.is_some() { 5 * QUIET } else { QUIET };
        while last < enough && since.elapsed() < patience && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            if self.length() != last {
                (last, since) = (self.length(), Instant::now());
            }
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGINT).expect("stop tcpdump");
        self.child.wait().expect("wait for tcpdump");
        let log = fs::read_to_string(self.file.with_extension("log")).unwrap_or_default();
        assert!(log.contains("\n0 packets dropped by kernel"), "{log}");
        traffic::read(&self.file)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a packet file at a rate.
pub(crate) fn replay(netns: &Netns, device: &str, file: &Path, rate: u32) {
    let mut command = netns.command("tcpreplay");
    command
        .args(["-q", "-K", "-i", device, &format!("--pps={rate}")])
        .arg(file);
    let output = command.output().expect("run tcpreplay");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
