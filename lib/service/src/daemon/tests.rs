use super::*;
use crate::{Counts, LogFormat, WatchStream, interval_stream};
use fluxcap_proto::v1::{
    CreateRingRequest, CreateRingResponse, DeleteRingRequest, DeleteRingResponse, GetRingRequest,
    GetRingResponse, ListRingsRequest, ListRingsResponse, UpdateRingRequest, UpdateRingResponse,
    WatchRingsRequest, WatchRingsResponse,
    daemon_service_client::DaemonServiceClient,
    ring_service_client::RingServiceClient,
    ring_service_server::{self, RingService, RingServiceServer},
};
use std::{os::unix::fs::PermissionsExt, path::Path, sync::Mutex, time::Instant};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

pub(crate) fn args(dir: &Path) -> ServiceArgs {
    ServiceArgs {
        run_dir: dir.join("run"),
        ring_dir: Some(dir.join("rings")),
        state_dir: dir.join("state"),
        ephemeral: false,
        log_level: "info".to_owned(),
        log_format: LogFormat::Text,
    }
}

#[derive(Default)]
struct Work(Mutex<Option<Duration>>);

impl Jobs for Work {
    fn stop(&self, deadline: Duration) {
        *crate::lock(&self.0) = Some(deadline);
    }

    fn counts(&self) -> Counts {
        Counts {
            running: 3,
            waiting: 2,
            failed: 1,
        }
    }
}

/// A service whose Watch streams and whose List never ends.
struct Rings(Watches);

#[tonic::async_trait]
impl RingService for Rings {
    type WatchRingsStream = WatchStream<WatchRingsResponse>;

    async fn watch_rings(
        &self,
        request: Request<WatchRingsRequest>,
    ) -> Result<Response<Self::WatchRingsStream>, Status> {
        let next = || Ok(WatchRingsResponse::default());
        Ok(Response::new(interval_stream(
            request.get_ref().interval_ms,
            &self.0,
            next,
        )?))
    }

    async fn list_rings(
        &self,
        _: Request<ListRingsRequest>,
    ) -> Result<Response<ListRingsResponse>, Status> {
        std::future::pending().await
    }

    async fn create_ring(
        &self,
        _: Request<CreateRingRequest>,
    ) -> Result<Response<CreateRingResponse>, Status> {
        Err(Refusal::Exhausted("no room".to_owned()).into())
    }

    async fn get_ring(
        &self,
        _: Request<GetRingRequest>,
    ) -> Result<Response<GetRingResponse>, Status> {
        Err(Refusal::NotFound("no ring".to_owned()).into())
    }

    async fn update_ring(
        &self,
        _: Request<UpdateRingRequest>,
    ) -> Result<Response<UpdateRingResponse>, Status> {
        Err(Refusal::invalid("spec", "wrong").into())
    }

    async fn delete_ring(
        &self,
        _: Request<DeleteRingRequest>,
    ) -> Result<Response<DeleteRingResponse>, Status> {
        blocking(|| Err(Refusal::Precondition("not now".to_owned()))).await
    }
}

struct Running {
    dir: tempfile::TempDir,
    work: Arc<Work>,
    notices: Notices,
    stop: oneshot::Sender<&'static str>,
    served: JoinHandle<anyhow::Result<()>>,
}

async fn start() -> Running {
    start_in(tempfile::tempdir().expect("temporary directory")).await
}

async fn start_in(dir: tempfile::TempDir) -> Running {
    let mut daemon = Daemon::open("testd", &args(dir.path())).expect("daemon");
    daemon.rpc_timeout = Duration::from_millis(300);
    let notices = daemon.notices();
    let routes = Routes::new(RingServiceServer::new(Rings(daemon.watches())));
    let work = Arc::new(Work::default());
    let jobs = Arc::clone(&work) as Arc<dyn Jobs>;
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(async move {
        let stop = async { stopped.await.unwrap_or("test is gone") };
        daemon
            .serve_until(routes, &[ring_service_server::SERVICE_NAME], jobs, stop)
            .await
    });
    let path = socket_path(&dir.path().join("run"), "testd");
    // A client connects only after the socket was published; a stale file of a test refuses connections.
    let end = Instant::now() + Duration::from_secs(5);
    while tokio::net::UnixStream::connect(&path).await.is_err() {
        assert!(
            !served.is_finished() && Instant::now() < end,
            "does not serve"
        );
        tokio::task::yield_now().await;
    }
    Running {
        dir,
        work,
        notices,
        stop,
        served,
    }
}

impl Running {
    async fn connect(&self) -> Channel {
        let path = socket_path(&self.dir.path().join("run"), "testd");
        let endpoint = Endpoint::try_from(format!("unix://{}", path.display())).expect("endpoint");
        endpoint.connect().await.expect("connect")
    }

    async fn stop(self) -> Duration {
        let begin = Instant::now();
        self.stop.send("told to").expect("serving");
        self.served.await.expect("join").expect("orderly end");
        assert_eq!(*crate::lock(&self.work.0), Some(STOP_DEADLINE));
        assert!(!socket_path(&self.dir.path().join("run"), "testd").exists());
        begin.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_service_tells_counts_and_notices() {
    let running = start().await;
    running.notices.set("b", "rings may be swapped");
    running.notices.set("a", "state not saved");
    let mut client = DaemonServiceClient::new(running.connect().await);
    let daemon = client
        .get_daemon(GetDaemonRequest {})
        .await
        .expect("answer")
        .into_inner()
        .daemon
        .expect("daemon");
    assert_eq!(
        (daemon.name.as_str(), daemon.pid),
        ("testd", std::process::id())
    );
    assert_eq!((daemon.running, daemon.waiting, daemon.failed), (3, 2, 1));
    assert_eq!(daemon.notices, ["state not saved", "rings may be swapped"]);
    assert!(daemon.ring_dir.ends_with("/rings") && daemon.state_dir.ends_with("/state"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_the_group_and_its_directory_for_nobody_else() {
    let running = start().await;
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    let run_dir = running.dir.path().join("run");
    assert_eq!(
        (mode(&run_dir), mode(&socket_path(&run_dir, "testd"))),
        (0o750, 0o660)
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_and_half_bound_ones_are_taken_over() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run_dir = dir.path().join("run");
    fs::create_dir(&run_dir).expect("run directory");
    // A listener that is closed leaves its file behind, as a killed daemon does.
    for name in ["testd.sock", "testd.sock.tmp.1"] {
        drop(std::os::unix::net::UnixListener::bind(run_dir.join(name)).expect("bind"));
    }
    let running = start_in(dir).await;
    DaemonServiceClient::new(running.connect().await)
        .get_daemon(GetDaemonRequest {})
        .await
        .expect("answer");
    assert!(!run_dir.join("testd.sock.tmp.1").exists());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_is_refused_and_the_first_serves_on() {
    let running = start().await;
    let refused = Daemon::open("testd", &args(running.dir.path())).expect_err("second instance");
    assert!(
        matches!(&refused, Error::AlreadyRunning { holder: Some(pid), .. } if *pid == std::process::id())
    );
    DaemonServiceClient::new(running.connect().await)
        .get_daemon(GetDaemonRequest {})
        .await
        .expect("answer");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_knows_the_daemon_and_each_service() {
    let running = start().await;
    let mut client = HealthClient::new(running.connect().await);
    for name in ["", "fluxcap.v1.RingService", "fluxcap.v1.DaemonService"] {
        let request = HealthCheckRequest {
            service: name.to_owned(),
        };
        let status = client.check(request).await.expect(name).into_inner().status;
        assert_eq!(status, 1, "{name:?} is not SERVING");
    }
    let request = HealthCheckRequest {
        service: "fluxcap.v1.CaptureService".to_owned(),
    };
    assert_eq!(
        client
            .check(request)
            .await
            .expect_err("not served here")
            .code(),
        tonic::Code::NotFound
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let running = start().await;
    let mut client = ServerReflectionClient::new(running.connect().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("stream")
        .into_inner();
    let answer = answers
        .message()
        .await
        .expect("answer")
        .expect("answer")
        .message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "fluxcap.v1.DaemonService",
            "fluxcap.v1.RingService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection"
        ]
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_become_the_status_codes_they_mean() {
    let running = start().await;
    let mut client = RingServiceClient::new(running.connect().await);
    let code = |result: Result<_, Status>| result.map(|_: ()| ()).expect_err("refused").code();
    use tonic::Code;
    let create = client
        .create_ring(CreateRingRequest::default())
        .await
        .map(|_| ());
    assert_eq!(code(create), Code::ResourceExhausted);
    let get = client.get_ring(GetRingRequest::default()).await.map(|_| ());
    assert_eq!(code(get), Code::NotFound);
    let update = client
        .update_ring(UpdateRingRequest::default())
        .await
        .map(|_| ());
    assert_eq!(code(update), Code::InvalidArgument);
    let delete = client
        .delete_ring(DeleteRingRequest::default())
        .await
        .map(|_| ());
    assert_eq!(code(delete), Code::FailedPrecondition);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_ended_and_a_stream_is_not() {
    let running = start().await;
    let mut client = RingServiceClient::new(running.connect().await);
    let mut stream = client
        .watch_rings(WatchRingsRequest {
            interval_ms: 200,
            ..WatchRingsRequest::default()
        })
        .await
        .expect("stream")
        .into_inner();
    let begin = Instant::now();
    client
        .list_rings(ListRingsRequest::default())
        .await
        .expect_err("deadline");
    assert!(begin.elapsed() < Duration::from_secs(3));
    for _ in 0..4 {
        stream.message().await.expect("report").expect("report");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_do_not_hold_the_shutdown() {
    let running = start().await;
    let mut client = RingServiceClient::new(running.connect().await);
    let mut watch = client
        .watch_rings(WatchRingsRequest::default())
        .await
        .expect("stream")
        .into_inner();
    watch.message().await.expect("report").expect("report");
    let mut health = HealthClient::new(running.connect().await)
        .watch(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .expect("stream")
        .into_inner();
    assert_eq!(
        health
            .message()
            .await
            .expect("status")
            .expect("status")
            .status,
        1
    );
    let _idle =
        tokio::net::UnixStream::connect(socket_path(&running.dir.path().join("run"), "testd"))
            .await;
    let took = running.stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(matches!(watch.message().await, Ok(None) | Err(_)));
    assert_eq!(
        health
            .message()
            .await
            .expect("status")
            .expect("status")
            .status,
        2,
        "NOT_SERVING comes first"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_turned_away_and_closed_ones_make_room() {
    let running = start().await;
    let path = socket_path(&running.dir.path().join("run"), "testd");
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(
            tokio::net::UnixStream::connect(&path)
                .await
                .expect("connect"),
        );
    }
    // All but the connection that `start` probed with, which is closed, are held: the next one finds no room.
    let extra = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connect");
    let mut byte = [0; 1];
    let end = async {
        loop {
            extra.readable().await.expect("readable");
            match extra.try_read(&mut byte) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    timeout(Duration::from_secs(5), end)
        .await
        .expect("turned away");
    drop(open);
    let begin = Instant::now();
    loop {
        let endpoint = Endpoint::try_from(format!("unix://{}", path.display())).expect("endpoint");
        if let Ok(channel) = endpoint.connect().await
            && DaemonServiceClient::new(channel)
                .get_daemon(GetDaemonRequest {})
                .await
                .is_ok()
        {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "no room again");
    }
    running.stop().await;
}
