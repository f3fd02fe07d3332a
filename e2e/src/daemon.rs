//! Daemons as child processes.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::netns::{Netns, owner_is_gone, unique_name};
use crate::wait::wait_until;

/// Longest time in which a daemon must answer, or end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of a daemon's log a failed test shows.
const LOG_LINES: usize = 60;

/// The path of a fluxcap program, built in the same profile as this test.
///
/// # Panics
/// When it is not there.
#[must_use]
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("find the test's own path");
    let mut folder = own.parent().expect("a program is in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("deps is in the profile's folder");
    }
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --release --workspace` first",
        path.display()
    );
    path
}

/// A user that is nobody, as whom daemons run that are started as their units start them.
pub const UNIT_USER: u32 = 65534;

/// The capabilities that the unit of a daemon grants, as setpriv(1) calls them: what tests run with is what installations have.
///
/// # Panics
/// When the unit does not say.
#[must_use]
#[track_caller]
pub fn unit_capabilities(daemon: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../deploy/systemd/fluxcap-{daemon}.service"));
    let unit = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let granted = unit
        .lines()
        .find_map(|line| line.strip_prefix("AmbientCapabilities="))
        .unwrap_or_else(|| panic!("{} grants no capabilities", path.display()));
    let names = granted.split_whitespace();
    names
        .map(|name| name.trim_start_matches("CAP_").to_lowercase())
        .collect()
}

/// The directories that one set of daemons shares. Removed on drop, with what is mounted there.
#[derive(Debug)]
pub struct Dirs {
    root: PathBuf,
}

impl Dirs {
    /// Makes new directories.
    #[must_use]
    #[track_caller]
    pub fn new() -> Dirs {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep_leftovers);
        let dirs = Dirs {
            root: std::env::temp_dir().join(unique_name()),
        };
        for dir in [dirs.run(), dirs.rings(), dirs.state(), dirs.logs()] {
            fs::create_dir_all(&dir)
                .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        }
        dirs
    }

    /// New directories that are [`UNIT_USER`]'s, with a tmpfs for the rings, since that user cannot mount.
    #[must_use]
    #[track_caller]
    pub fn of_unit_user() -> Dirs {
        let dirs = Dirs::new();
        let none: Option<&str> = None;
        mount(
            Some("rings"),
            &dirs.rings(),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .expect("mount a tmpfs");
        for dir in [dirs.run(), dirs.rings(), dirs.state()] {
            chown(&dir, Some(UNIT_USER), Some(UNIT_USER))
                .unwrap_or_else(|error| panic!("cannot give away {}: {error}", dir.display()));
        }
        dirs
    }

    /// `--run-dir`: the sockets.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// `--ring-dir`: the rings. ringd mounts a ramfs there.
    #[must_use]
    pub fn rings(&self) -> PathBuf {
        self.root.join("rings")
    }

    /// `--state-dir`: what survives a restart.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// What the daemons wrote to standard error, a file for each start.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The variables that move daemons and fluxctl here.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("FLUXCAP_RUN_DIR", self.run()),
            ("FLUXCAP_RING_DIR", self.rings()),
            ("FLUXCAP_STATE_DIR", self.state()),
        ]
    }
}

impl Default for Dirs {
    fn default() -> Self {
        Dirs::new()
    }
}

impl Drop for Dirs {
    fn drop(&mut self) {
        remove(&self.root);
    }
}

/// Removes a directory of [`Dirs`]; detaches the mount in it first, since a busy ramfs would stay for ever.
fn remove(root: &Path) {
    while umount2(&root.join("rings"), MntFlags::MNT_DETACH).is_ok() {}
    let _ = fs::remove_dir_all(root);
}

/// Removes the directories of test processes that no longer exist.
fn sweep_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if owner_is_gone(&entry.file_name().to_string_lossy()) {
            remove(&entry.path());
        }
    }
}

/// A running ringd, rxd or txd. Killed on drop; a failing test prints its log.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    args: Vec<String>,
    /// Capabilities that it has to do without, as setpriv(1) takes them.
    without: Vec<String>,
    /// It runs as [`UNIT_USER`], with the capabilities that it has all the same.
    as_user: bool,
    /// What it sees as /etc/hosts.
    hosts: Option<PathBuf>,
    /// Most descriptors, where they are bounded.
    descriptors: Option<u32>,
    namespace: PathBuf,
    run_dir: PathBuf,
    environment: [(&'static str, PathBuf); 3],
    logs: Vec<PathBuf>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts the daemon `name` inside `netns` with these arguments (besides the directories, which go by environment) and waits until it
    /// answers on its socket.
    #[must_use]
    #[track_caller]
    pub fn start(name: &str, netns: &Netns, dirs: &Dirs, args: &[&str]) -> Daemon {
        Daemon::start_without(name, netns, dirs, args, &[])
    }

    /// The same with another file in the place of /etc/hosts, which may be written to meanwhile.
    #[must_use]
    #[track_caller]
    pub fn start_with_hosts(
        name: &str,
        netns: &Netns,
        dirs: &Dirs,
        args: &[&str],
        hosts: &Path,
    ) -> Daemon {
        let mut daemon = Daemon::new(name, netns, dirs, args);
        daemon.hosts = Some(hosts.to_owned());
        daemon.launch(&dirs.logs());
        daemon.wait_ready();
        daemon
    }

    /// The same without these capabilities ("bpf", "net_admin"), root or not.
    #[must_use]
    #[track_caller]
    pub fn start_without(
        name: &str,
        netns: &Netns,
        dirs: &Dirs,
        args: &[&str],
        capabilities: &[&str],
    ) -> Daemon {
        let mut daemon = Daemon::new(name, netns, dirs, args);
        daemon.without = capabilities.iter().map(|name| format!("-{name}")).collect();
        daemon.launch(&dirs.logs());
        daemon.wait_ready();
        daemon
    }

    /// The same with these capabilities and no other.
    #[must_use]
    #[track_caller]
    pub fn start_with_only(
        name: &str,
        netns: &Netns,
        dirs: &Dirs,
        args: &[&str],
        capabilities: &[&str],
    ) -> Daemon {
        let mut daemon = Daemon::new(name, netns, dirs, args);
        let wanted = capabilities.iter().map(|name| format!("+{name}"));
        daemon.without = ["-all".to_owned()].into_iter().chain(wanted).collect();
        daemon.launch(&dirs.logs());
        daemon.wait_ready();
        daemon
    }

    /// The same with at most so many descriptors, which it cannot raise.
    #[must_use]
    #[track_caller]
    pub fn start_with_descriptors(
        name: &str,
        netns: &Netns,
        dirs: &Dirs,
        args: &[&str],
        descriptors: u32,
    ) -> Daemon {
        let mut daemon = Daemon::new(name, netns, dirs, args);
        daemon.descriptors = Some(descriptors);
        daemon.launch(&dirs.logs());
        daemon.wait_ready();
        daemon
    }

    /// The same with exactly the capabilities that its unit grants, as root still: files of root are its own.
    #[must_use]
    #[track_caller]
    pub fn start_with_unit_capabilities(
        name: &str,
        netns: &Netns,
        dirs: &Dirs,
        args: &[&str],
    ) -> Daemon {
        let capabilities = unit_capabilities(name);
        let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
        Daemon::start_with_only(name, netns, dirs, args, &capabilities)
    }

    /// The same as [`UNIT_USER`], as the unit runs it. The directories have to be that user's ([`Dirs::of_unit_user`]).
    #[must_use]
    #[track_caller]
    pub fn start_as_unit(name: &str, netns: &Netns, dirs: &Dirs, args: &[&str]) -> Daemon {
        let mut daemon = Daemon::new(name, netns, dirs, args);
        let wanted = unit_capabilities(name)
            .into_iter()
            .map(|it| format!("+{it}"));
        daemon.without = ["-all".to_owned()].into_iter().chain(wanted).collect();
        daemon.as_user = true;
        daemon.launch(&dirs.logs());
        daemon.wait_ready();
        daemon
    }

    fn new(name: &str, netns: &Netns, dirs: &Dirs, args: &[&str]) -> Daemon {
        Daemon {
            name: name.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            without: Vec::new(),
            as_user: false,
            hosts: None,
            descriptors: None,
            namespace: netns.path(),
            run_dir: dirs.run(),
            environment: dirs.environment(),
            logs: Vec::new(),
            child: None,
        }
    }

    /// Starts the process, its standard error into a new file of `folder`.
    #[track_caller]
    fn launch(&mut self, folder: &Path) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let log = folder.join(format!(
            "{}-{}.log",
            self.name,
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let file = File::create(&log)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", log.display()));
        let mut command = Command::new("nsenter");
        command.args([&format!("--net={}", self.namespace.display()), "--"]);
        if let Some(hosts) = &self.hosts {
            let mount = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
            command.args(["unshare", "--mount", "sh", "-c", mount]);
            command.arg(hosts);
        }
        if let Some(limit) = self.descriptors {
            command.args(["prlimit", &format!("--nofile={limit}:{limit}")]);
        }
        // A test that is killed takes its daemons with it.
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        if !self.without.is_empty() {
            let capabilities = self.without.join(",");
            command.args(["--bounding-set", &capabilities, "--inh-caps", &capabilities]);
            if self.as_user {
                let user = UNIT_USER.to_string();
                command.args(["--ambient-caps", &capabilities, "--clear-groups"]);
                command.args(["--reuid", &user, "--regid", &user]);
            }
        }
        command.arg("--").arg(binary(&self.name));
        command.args(&self.args).envs(self.environment.clone());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        self.logs.push(log);
        self.child = Some(child);
    }

    /// Waits until the health service says SERVING; panics with the log when the daemon ends before.
    #[track_caller]
    fn wait_ready(&mut self) {
        let started = Instant::now();
        let what = format!("{} answers on its socket", self.name);
        wait_until(PATIENCE, &what, || {
            if let Some(status) = self.ended() {
                panic!(
                    "{} ended with {status} after {:?}:\n{}",
                    self.name,
                    started.elapsed(),
                    self.log()
                );
            }
            self.is_healthy()
        });
    }

    /// The daemon's exit status when it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()
            .and_then(|child| child.try_wait().expect("ask for the state of a child"))
    }

    /// Whether the daemon says by `grpc.health.v1` that it serves.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let socket = self.socket();
        let answer = self.rpc(async |channel| {
            let mut client = HealthClient::new(channel);
            client
                .check(HealthCheckRequest {
                    service: String::new(),
                })
                .await
        });
        socket.exists()
            && answer.is_some_and(|reply| {
                reply.is_ok_and(|reply| reply.into_inner().status() == ServingStatus::Serving)
            })
    }

    /// Connects to the daemon and runs `call` with that connection; None when it cannot be reached. For tests that speak gRPC themselves.
    pub fn rpc<T>(&self, call: impl AsyncFnOnce(Channel) -> T) -> Option<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("make a runtime");
        runtime.block_on(async {
            let address = format!("unix://{}", self.socket().display());
            let endpoint = Endpoint::try_from(address)
                .expect("a path makes an address")
                .connect_timeout(PATIENCE);
            let channel = endpoint.timeout(PATIENCE).connect().await.ok()?;
            Some(call(channel).await)
        })
    }

    /// The socket on which the daemon serves.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(format!("{}.sock", self.name))
    }

    /// The process id.
    ///
    /// # Panics
    /// When the daemon has been stopped.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon was started").id()
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id is an i32"));
        kill(pid, signal)
            .unwrap_or_else(|error| panic!("cannot send {signal} to {}: {error}", self.name));
    }

    /// SIGSTOP: the daemon stands still until [`Daemon::resume`]. Returns when it does.
    #[track_caller]
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until(PATIENCE, "the process is stopped", || {
            fs::read_to_string(&stat).is_ok_and(|stat| {
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('T'))
            })
        });
    }

    /// SIGCONT.
    #[track_caller]
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, and waits until the process is gone. [`Daemon::restart`] starts it again.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon was started");
        child.kill().expect("kill the daemon");
        let status = child.wait().expect("wait for the daemon");
        assert_eq!(
            status.signal(),
            Some(Signal::SIGKILL as i32),
            "{} ended by itself:\n{}",
            self.name,
            self.log()
        );
    }

    /// SIGTERM; returns the exit status and how long it took.
    #[track_caller]
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        let took = wait_until(
            PATIENCE,
            &format!("{} ends after SIGTERM", self.name),
            || {
                status = self.ended();
                status.is_some()
            },
        );
        self.child = None;
        (status.expect("waited for it"), took)
    }

    /// Starts the daemon again as it was started first, killing it when it still runs. Returns when it answers.
    #[track_caller]
    pub fn restart(&mut self) {
        self.relaunch();
        self.wait_ready();
    }

    /// The same without waiting until it answers.
    #[track_caller]
    pub fn relaunch(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        let folder = self
            .logs
            .last()
            .and_then(|log| log.parent())
            .expect("it was started before")
            .to_owned();
        self.launch(&folder);
    }

    /// What the daemon wrote to standard error, of all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        self.logs
            .iter()
            .filter_map(|log| fs::read_to_string(log).ok())
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- log of {} (last {LOG_LINES} of {} lines)",
                self.name,
                lines.len()
            );
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}
