//! A running ringd with directories of its own.

use fluxcap_proto::v1::{Daemon, GetDaemonRequest, GetRingRequest, ListRingsRequest};
use fluxcap_proto::v1::{
    Ring, daemon_service_client::DaemonServiceClient, ring_service_client::RingServiceClient,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Directories that one ringd after the other may use.
pub(crate) struct Dirs(TempDir);

impl Dirs {
    pub(crate) fn new() -> Dirs {
        Dirs(tempfile::tempdir().expect("temporary directory"))
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn rings(&self) -> PathBuf {
        self.0.path().join("rings")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("run/ringd.sock")
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    /// The state file's ring names.
    pub(crate) fn saved(&self) -> Vec<String> {
        let bytes = fs::read(self.0.path().join("state/ringd.json")).expect("state file");
        let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        value["entries"]
            .as_object()
            .expect("entries")
            .keys()
            .cloned()
            .collect()
    }

    /// The ringd of this build, set up for these directories; nothing is mounted.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.configure(
            Command::new(env!("CARGO_BIN_EXE_ringd")),
            &[&["--no-mount"], arguments].concat(),
        )
    }

    /// As `command`, started by another program.
    pub(crate) fn command_by(&self, program: &str, before: &[&str], arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(before).arg(env!("CARGO_BIN_EXE_ringd"));
        self.configure(command, arguments)
    }

    fn configure(&self, mut command: Command, arguments: &[&str]) -> Command {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .expect("log");
        command
            .env("FLUXCAP_RUN_DIR", self.0.path().join("run"))
            .env("FLUXCAP_STATE_DIR", self.0.path().join("state"))
            .env("FLUXCAP_RING_DIR", self.rings())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}

/// Killed on drop; shows its log when the test fails.
pub(crate) struct Ringd<'a> {
    child: Child,
    dirs: &'a Dirs,
}

impl<'a> Ringd<'a> {
    /// Starts ringd and waits until it serves.
    pub(crate) async fn start(dirs: &'a Dirs, arguments: &[&str]) -> Ringd<'a> {
        Ringd::start_command(dirs, dirs.command(arguments)).await
    }

    pub(crate) async fn start_command(dirs: &'a Dirs, mut command: Command) -> Ringd<'a> {
        let child = command.spawn().expect("start ringd");
        let mut ringd = Ringd { child, dirs };
        let end = Instant::now() + PATIENCE;
        while !is_serving(&dirs.socket()).await {
            let ended = ringd.child.try_wait().expect("wait for ringd");
            assert!(
                ended.is_none() && Instant::now() < end,
                "ringd does not serve: {ended:?}"
            );
            tick().await;
        }
        ringd
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn channel(&self) -> Channel {
        let uri = format!("unix://{}", self.dirs.socket().display());
        Endpoint::try_from(uri)
            .expect("endpoint")
            .connect()
            .await
            .expect("connect")
    }

    pub(crate) async fn client(&self) -> RingServiceClient<Channel> {
        RingServiceClient::new(self.channel().await)
    }

    pub(crate) async fn identity(&self) -> Daemon {
        let mut client = DaemonServiceClient::new(self.channel().await);
        client
            .get_daemon(GetDaemonRequest {})
            .await
            .expect("GetDaemon")
            .into_inner()
            .daemon
            .expect("daemon")
    }

    /// The rings in the ring directory. Ones in POSIX shared memory belong to the whole machine, other tests included.
    pub(crate) async fn list(&self) -> Vec<Ring> {
        let rings = self
            .client()
            .await
            .list_rings(ListRingsRequest::default())
            .await
            .expect("ListRings")
            .into_inner()
            .rings;
        rings
            .into_iter()
            .filter(|ring| !ring.name.starts_with("shm:"))
            .collect()
    }

    pub(crate) async fn names(&self) -> Vec<String> {
        self.list()
            .await
            .into_iter()
            .map(|ring| ring.name)
            .collect()
    }

    pub(crate) async fn get(&self, name: &str) -> Ring {
        let request = GetRingRequest {
            name: name.to_owned(),
        };
        self.client()
            .await
            .get_ring(request)
            .await
            .expect("GetRing")
            .into_inner()
            .ring
            .expect("ring")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("pid"));
        kill(pid, signal).expect("signal");
    }

    pub(crate) async fn end(self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended().await
    }

    /// Waits for the end after a signal.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for ringd") {
                return status;
            }
            assert!(Instant::now() < end, "ringd does not end");
            tick().await;
        }
    }
}

impl Drop for Ringd<'_> {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of ringd\n{}", self.dirs.log_text());
        }
    }
}

/// Asks again until the answer is yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "timed out: {what}");
        tick().await;
    }
}

async fn tick() {
    let mut interval = tokio::time::interval(Duration::from_millis(5));
    interval.tick().await;
    interval.tick().await;
}

async fn is_serving(socket: &Path) -> bool {
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).expect("endpoint");
    let Ok(channel) = endpoint.connect().await else {
        return false;
    };
    let request = HealthCheckRequest {
        service: "fluxcap.v1.RingService".to_owned(),
    };
    HealthClient::new(channel)
        .check(request)
        .await
        .is_ok_and(|answer| answer.into_inner().status == 1)
}
