//! From `main` to the end of the process.

use crate::{
    Error, Jobs, Notices, Refusal, ServiceArgs, StateFile, Watches,
    instance::{InstanceLock, create_directory},
    logging, realtime_ns, reserve, server, socket_path, systemd,
};
use anyhow::Context;
use fluxcap_proto::v1::{
    Daemon as DaemonMessage, GetDaemonRequest, GetDaemonResponse,
    daemon_service_server::{DaemonService, DaemonServiceServer, SERVICE_NAME},
};
use sd_notify::NotifyState;
use std::{
    cell::RefCell,
    fs,
    future::Future,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    runtime::{self, Runtime},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::{ServingStatus, server::health_reporter};

/// Longest request that a service should accept: give it to `max_decoding_message_size` of the generated server.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// How long the workers may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long clients that are being answered hold up the end.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);
const CONTROL_THREADS: usize = 2;
const BLOCKING_THREADS: usize = 16;
/// Those of them that are there from the start on, and stay: later the workers may have taken all threads there are.
const BLOCKING_RESERVE: usize = 4;
/// For ever, as far as anybody will see.
const KEEP: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A daemon that is the only instance in its run directory.
#[derive(Debug)]
pub struct Daemon {
    /// Its name: ringd, rxd, txd, ...
    pub name: &'static str,
    /// The options it was started with.
    pub args: ServiceArgs,
    /// Longest time that a request may take; ten minutes unless changed: how long a client waits is for the client to say (the deadline
    /// of its call). Streams are not bound by it.
    pub rpc_timeout: Duration,
    notices: Notices,
    watches: Watches,
    started_ns: u64,
    runtime: Option<Runtime>,
    _lock: InstanceLock,
}

impl Daemon {
    /// Sets up logging, makes a panic abort the process, creates the run directory (0750 unless it exists), and takes
    /// the lock that makes this the only instance there. Call it first in `main`.
    pub fn start(name: &'static str, args: &ServiceArgs) -> anyhow::Result<Daemon> {
        logging::init(args)?;
        logging::abort_on_panic();
        let mut daemon = Daemon::open(name, args)?;
        // Before any work begins, which may need all there is.
        reserve::prepare()?;
        daemon.runtime = Some(control_runtime()?);
        tracing::info!(
            daemon = name,
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            run_dir = %args.run_dir.display(),
            ring_dir = %args.ring_dir().display(),
            "starting"
        );
        Ok(daemon)
    }

    pub(crate) fn open(name: &'static str, args: &ServiceArgs) -> Result<Daemon, Error> {
        create_directory(&args.run_dir)?;
        Ok(Daemon {
            name,
            args: args.clone(),
            rpc_timeout: Duration::from_secs(600),
            notices: Notices::default(),
            watches: Watches::default(),
            started_ns: realtime_ns(),
            runtime: None,
            _lock: InstanceLock::acquire(&args.run_dir, name)?,
        })
    }

    /// Where this daemon's notices to the operator go.
    pub fn notices(&self) -> Notices {
        self.notices.clone()
    }

    /// For `interval_stream` in the Watch methods.
    pub fn watches(&self) -> Watches {
        self.watches.clone()
    }

    /// The state file, or none with `--ephemeral`.
    pub fn state_file(&self) -> anyhow::Result<Option<StateFile>> {
        if self.args.ephemeral {
            return Ok(None);
        }
        let dir = self.args.state_dir(self.name);
        let file = StateFile::open(&dir, self.name, &self.notices)
            .context("no state directory; give a writable one by --state-dir, or keep nothing with --ephemeral")?;
        if dir != self.args.state_dir {
            take_over(&self.args.state_dir, file.path());
        }
        Ok(Some(file))
    }

    /// Tells systemd that the daemon will serve only after up to `time`, so that it is not taken for hung.
    pub fn announce_slow_start(&self, time: Duration) {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        systemd::notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// Serves `routes` on the control socket until SIGTERM or SIGINT, then ends in order: the jobs, at most 5 s, then the
    /// server. `service_names` are the full names of the services in `routes` (the generated `SERVICE_NAME`s), for
    /// health and reflection; health, reflection and `DaemonService` are added here.
    pub fn serve(
        mut self,
        routes: Routes,
        service_names: &[&str],
        jobs: Arc<dyn Jobs>,
    ) -> anyhow::Result<()> {
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => control_runtime()?,
        };
        let served = runtime.block_on(async {
            let stop = stop_signal()?;
            self.serve_until(routes, service_names, jobs, stop).await
        });
        // Blocking work of a request that nobody waits for any more must not hold the process.
        runtime.shutdown_timeout(DRAIN_DEADLINE);
        served
    }

    /// As `serve`, with the request to stop injected; what it returns is logged.
    pub(crate) async fn serve_until(
        self,
        routes: Routes,
        service_names: &[&str],
        jobs: Arc<dyn Jobs>,
        stop: impl Future<Output = &'static str>,
    ) -> anyhow::Result<()> {
        let path = socket_path(&self.args.run_dir, self.name);
        let (health, health_service) = health_reporter();
        let names: Vec<&str> = service_names
            .iter()
            .copied()
            .chain([SERVICE_NAME])
            .collect();
        for name in &names {
            health
                .set_service_status(*name, ServingStatus::Serving)
                .await;
        }
        let routes = with_reflection(routes, &names)?
            .add_service(health_service)
            .add_service(
                DaemonServiceServer::new(self.identity(&jobs))
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            );

        let (connections, incoming) = mpsc::channel(1);
        // Saved work may have taken all descriptors there are, but for the reserve.
        let listener = reserve::lend(1, || server::bind(&path))?;
        let accepting = tokio::spawn(server::accept(listener, connections));
        let (end_server, server_ends) = oneshot::channel::<()>();
        let mut serving = tokio::spawn(
            server::builder(self.rpc_timeout)
                .add_routes(routes)
                .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
                    // An error means that the sender is gone, which asks for the end just as well.
                    let _ = server_ends.await;
                }),
        );
        tracing::info!(socket = %path.display(), "serving");
        let reporting = tokio::spawn(systemd::report(Arc::clone(&jobs)));
        systemd::notify(&[NotifyState::Ready]);

        let unasked = tokio::select! {
            why = stop => {
                tracing::info!(why, "stopping");
                None
            }
            ended = &mut serving => Some(ended),
        };
        systemd::notify(&[NotifyState::Stopping]);
        reporting.abort();
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        for name in &names {
            health
                .set_service_status(*name, ServingStatus::NotServing)
                .await;
        }
        self.watches.end();
        stop_jobs(jobs).await;
        accepting.abort();
        if let Some(ended) = unasked {
            let reason = ended.map(|result| result.err().map(|error| format!("{error:#}")));
            anyhow::bail!("the control server ended by itself: {reason:?}");
        }
        let _ = end_server.send(());
        if timeout(DRAIN_DEADLINE, serving).await.is_err() {
            tracing::debug!("clients were still connected");
        }
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the control socket");
        }
        tracing::info!("stopped");
        Ok(())
    }

    fn identity(&self, jobs: &Arc<dyn Jobs>) -> Identity {
        let state_dir = if self.args.ephemeral {
            String::new()
        } else {
            self.args.state_dir(self.name).display().to_string()
        };
        Identity {
            fixed: DaemonMessage {
                name: self.name.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started_ns: self.started_ns,
                ring_dir: self.args.ring_dir().display().to_string(),
                state_dir,
                ..DaemonMessage::default()
            },
            jobs: Arc::clone(jobs),
            notices: self.notices.clone(),
        }
    }
}

/// Runs a daemon, and says in one line why it ended, if it did not end on request. What the command line asked for and cannot be is the
/// fault of the command line: 2, as for an option that does not exist.
pub fn main(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{name}: {error:#}");
    let refused = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Refusal>());
    match refused {
        Some(Refusal::Invalid { .. } | Refusal::Precondition(_) | Refusal::AlreadyExists(_)) => {
            ExitCode::from(2)
        }
        _ => ExitCode::FAILURE,
    }
}

/// The threads of the control side, with those that requests need.
fn control_runtime() -> anyhow::Result<Runtime> {
    reserve::try_threads(CONTROL_THREADS + BLOCKING_RESERVE)?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    // Each waits for the others, so that there are as many.
    let all = Arc::new(Barrier::new(BLOCKING_RESERVE + 1));
    for _ in 0..BLOCKING_RESERVE {
        let all = Arc::clone(&all);
        runtime.spawn_blocking(move || all.wait());
    }
    all.wait();
    Ok(runtime)
}

/// Daemons that were started by hand used to keep their state beside the directories of the units.
fn take_over(before: &Path, path: &Path) {
    let Some(name) = path.file_name() else { return };
    let old = before.join(name);
    if !path.exists() && old.exists() {
        match fs::rename(&old, path) {
            Ok(()) => {
                tracing::info!(from = %old.display(), to = %path.display(), "took over the state")
            }
            Err(error) => {
                tracing::warn!(from = %old.display(), %error, "cannot take over the state")
            }
        }
    }
}

thread_local! {
    /// Set on a thread that works for a request: whether the client has gone.
    static ABANDONED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Refuses when the client of the request that this thread works for waits no longer: it was told, or takes it, that the request
/// has failed, so that must be true. Ask right before something is made. Anywhere else than in [`blocking`] the answer is yes.
pub fn still_wanted() -> Result<(), Refusal> {
    let abandoned = ABANDONED.with_borrow(|it| it.as_ref().is_some_and(|it| it.load(Relaxed)));
    match abandoned {
        false => Ok(()),
        true => Err(Refusal::Unavailable(
            "the client has not waited, nothing was done".to_owned(),
        )),
    }
}

/// Tells the thread that works for a request that nobody waits any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs work that may block (a file, a thread to wait for) away from the control threads, for use in a gRPC method. It goes on when the
/// client goes away, and learns of that by [`still_wanted`].
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Status> {
    let waiting = Waiting(Arc::default());
    let abandoned = Arc::clone(&waiting.0);
    let work = move || {
        ABANDONED.set(Some(abandoned));
        let done = work();
        ABANDONED.set(None);
        done
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Status::from),
        Err(error) => Err(Status::internal(format!(
            "the request was not finished: {error}"
        ))),
    }
}

/// Completes with the name of the first signal that asks for the end. SIGHUP does not: a terminal that is closed must not end a capture,
/// and there are no settings that could be read again.
fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let install = |kind| signal(kind).context("cannot install a signal handler");
    let mut terminate = install(SignalKind::terminate())?;
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut hangup = install(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return "SIGTERM",
                _ = interrupt.recv() => return "SIGINT",
                Some(()) = hangup.recv() => tracing::info!("SIGHUP: going on"),
            }
        }
    })
}

async fn stop_jobs(jobs: Arc<dyn Jobs>) {
    let stopping = tokio::task::spawn_blocking(move || jobs.stop(STOP_DEADLINE));
    if timeout(STOP_DEADLINE + DRAIN_DEADLINE, stopping)
        .await
        .is_err()
    {
        tracing::error!("the workers do not stop, leaving them behind");
    }
}

/// Adds server reflection, v1 and the v1alpha that older clients speak, for exactly the services that are served.
fn with_reflection(routes: Routes, names: &[&str]) -> anyhow::Result<Routes> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(fluxcap_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        names
            .iter()
            .fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let v1 = builder()
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .build_v1();
    let v1alpha = builder()
        .with_service_name("grpc.reflection.v1alpha.ServerReflection")
        .build_v1alpha();
    Ok(routes
        .add_service(v1.context("cannot set up reflection")?)
        .add_service(v1alpha.context("cannot set up reflection")?))
}

/// `DaemonService`: what does not change, and where the rest comes from.
struct Identity {
    fixed: DaemonMessage,
    jobs: Arc<dyn Jobs>,
    notices: Notices,
}

#[tonic::async_trait]
impl DaemonService for Identity {
    async fn get_daemon(
        &self,
        _: Request<GetDaemonRequest>,
    ) -> Result<Response<GetDaemonResponse>, Status> {
        let counts = self.jobs.counts();
        let daemon = DaemonMessage {
            running: counts.running,
            waiting: counts.waiting,
            failed: counts.failed,
            notices: self.notices.list(),
            ..self.fixed.clone()
        };
        Ok(Response::new(GetDaemonResponse {
            daemon: Some(daemon),
        }))
    }
}

#[cfg(test)]
pub(crate) mod tests;
