//! Systems that are programs of others.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::c_binary;
use crate::bench::bed::Bed;
use crate::netns::{Netns, unique_name};

/// How long a program has to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// Programs, ended on drop, and a directory of theirs.
#[derive(Debug)]
pub struct Processes {
    children: Vec<Child>,
    dir: TempDir,
}

impl Processes {
    /// None yet. The directory is in memory.
    fn new() -> Result<Processes> {
        let dir = tempfile::Builder::new()
            .prefix(&unique_name())
            .tempdir_in("/dev/shm");
        Ok(Processes {
            children: Vec::new(),
            dir: dir.context("make a directory in /dev/shm")?,
        })
    }

    /// Starts one more.
    fn spawn<S: AsRef<OsStr>>(&mut self, netns: &Netns, program: &Path, args: &[S]) -> Result<()> {
        let log = File::create(self.dir.path().join(format!("{}.log", self.children.len())))?;
        // A bench that is killed takes them with it.
        let mut command = netns.command("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        self.children.push(child);
        Ok(())
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    pub(super) fn log(&self) -> String {
        let logs = (0..self.children.len()).map(|n| self.dir.path().join(format!("{n}.log")));
        logs.filter_map(|log| fs::read_to_string(log).ok())
            .collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &self.children {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let deadline = Instant::now() + GRACE;
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One ring, a receiver for each input, a transmitter for each output.
pub(super) fn fluxcap_c(bed: &Bed) -> Result<Processes> {
    /// Smaller ones make it end under load, as its author's test found.
    const RING: &str = "200m";
    let program = c_binary().context("no binary")?;
    let mut processes = Processes::new()?;
    let ring = processes.dir.path().join("ring").display().to_string();
    must_succeed(Command::new(&program).args(["-cr", "-s", RING, &ring]))?;
    for input in bed.shape.input_names() {
        processes.spawn(&bed.host, &program, &["-rx", "-i", &input, &ring])?;
    }
    for output in bed.shape.output_names() {
        processes.spawn(&bed.host, &program, &["-tx", "-i", &output, &ring])?;
    }
    Ok(processes)
}

pub(super) fn daemonlogger(bed: &Bed) -> Result<Processes> {
    let mut processes = Processes::new()?;
    let program = find("daemonlogger").context("not installed")?;
    processes.spawn(&bed.host, &program, &["-i", "in0", "-o", "out0"])?;
    Ok(processes)
}

pub(super) fn tcpbridge(bed: &Bed) -> Result<Processes> {
    let mut processes = Processes::new()?;
    let program = find("tcpbridge").context("not installed")?;
    processes.spawn(
        &bed.host,
        &program,
        &["--unidir", "--intf1=in0", "--intf2=out0"],
    )?;
    Ok(processes)
}

/// A program of the search path.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders = std::env::split_paths(&path);
    folders.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))
}

/// Runs a command to its end.
pub(crate) fn must_succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
