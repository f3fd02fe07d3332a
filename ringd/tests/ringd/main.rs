//! The built ringd, driven over its socket.

mod daemon;

use daemon::{Dirs, PATIENCE, Ringd, until};
use fluxcap_proto::v1::{
    CreateRingRequest, DeleteRingRequest, GetRingRequest, Ring, RingMode, RingSpec, State,
    UpdateRingRequest, WatchRingsRequest,
};
use fluxcap_ring::{Batch, Consumer, Direction, Flags, Meta, Producer, RingDir, RingName, Start};
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, Instant},
};
use tonic::{Code, Status};

const M: u64 = 1 << 20;

fn spec(size_bytes: u64) -> RingSpec {
    RingSpec {
        size_bytes,
        mode: RingMode::Overwrite.into(),
    }
}

fn request(name: &str, size_bytes: u64) -> CreateRingRequest {
    CreateRingRequest {
        name: name.to_owned(),
        spec: Some(spec(size_bytes)),
        ..CreateRingRequest::default()
    }
}

async fn create(ringd: &Ringd<'_>, request: CreateRingRequest) -> Result<Ring, Status> {
    Ok(ringd
        .client()
        .await
        .create_ring(request)
        .await?
        .into_inner()
        .ring
        .expect("ring"))
}

async fn resize(
    ringd: &Ringd<'_>,
    name: &str,
    spec: RingSpec,
    mask: &[&str],
) -> Result<Ring, Status> {
    let paths = mask.iter().map(|path| (*path).to_owned()).collect();
    let request = UpdateRingRequest {
        name: name.to_owned(),
        spec: Some(spec),
        update_mask: Some(prost_types::FieldMask { paths }),
        validate_only: false,
    };
    Ok(ringd
        .client()
        .await
        .update_ring(request)
        .await?
        .into_inner()
        .ring
        .expect("ring"))
}

async fn delete(ringd: &Ringd<'_>, name: &str) -> Result<Option<String>, Status> {
    let answer = ringd
        .client()
        .await
        .delete_ring(DeleteRingRequest {
            name: name.to_owned(),
        })
        .await?;
    Ok(answer
        .metadata()
        .get("fluxcap-attached")
        .map(|value| value.to_str().expect("text").to_owned()))
}

fn epoch(ring: &Ring) -> u64 {
    ring.status.as_ref().expect("status").epoch
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = result.expect_err("refused");
    assert_eq!(status.code(), code, "{status:?}");
    for part in parts {
        assert!(
            status.message().contains(part),
            "no \"{part}\" in: {}",
            status.message()
        );
    }
}

#[tokio::test]
async fn a_ring_is_created_listed_shown_and_deleted() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &[]).await;
    let made = create(&ringd, request("cisco", M + 1))
        .await
        .expect("create");
    assert_eq!(made.spec, Some(spec(M + 4096)), "rounded up to pages");
    let status = made.status.clone().expect("status");
    assert_eq!(status.state(), State::Running);
    assert!(status.footprint_bytes > M && status.created_ns > 0 && status.epoch > 0);
    assert_eq!(
        fs::metadata(dirs.rings().join("cisco"))
            .expect("data file")
            .permissions()
            .mode()
            & 0o777,
        0o660
    );

    create(&ringd, request("aaa", M)).await.expect("create");
    assert_eq!(ringd.names().await, ["aaa", "cisco"]);
    assert_eq!(ringd.get("cisco").await, made);
    assert_eq!(delete(&ringd, "cisco").await.expect("delete"), None);
    assert_eq!(ringd.names().await, ["aaa"]);
    assert!(!dirs.rings().join("cisco").exists() && !dirs.rings().join(".cisco.readers").exists());
    assert_eq!(dirs.saved(), ["aaa"]);
}

#[tokio::test]
async fn creating_is_idempotent_and_replacing_makes_a_new_epoch() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &[]).await;
    let first = create(&ringd, request("cisco", M)).await.expect("create");
    let again = create(&ringd, request("cisco", M - 1))
        .await
        .expect("rounds up to the same");
    assert_eq!(epoch(&first), epoch(&again));
    let different = create(&ringd, request("cisco", 2 * M)).await;
    assert_refused(
        different,
        Code::AlreadyExists,
        &["cisco", "1 MiB", "--replace", "fluxctl ring resize cisco"],
    );

    let replace = |size| CreateRingRequest {
        replace: true,
        ..request("cisco", size)
    };
    let same = create(&ringd, replace(M))
        .await
        .expect("equal, so nothing to replace");
    assert_eq!(epoch(&first), epoch(&same));
    let second = create(&ringd, replace(2 * M)).await.expect("replace");
    assert!(epoch(&second) > epoch(&first));
    assert_eq!(second.spec, Some(spec(2 * M)));
    create(
        &ringd,
        CreateRingRequest {
            replace: true,
            ..request("new", M)
        },
    )
    .await
    .expect("nothing to replace");
}

#[tokio::test]
async fn resizing_makes_a_new_epoch_that_workers_are_told_of() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    let before = ringd.get("cisco").await;
    let producer = open_producer(&dirs, "cisco");

    let kept = resize(&ringd, "cisco", spec(M), &["size_bytes"])
        .await
        .expect("same size");
    assert_eq!(epoch(&kept), epoch(&before));
    assert!(producer.retired().is_none());

    let wait = RingSpec {
        size_bytes: 7 * M,
        mode: RingMode::Wait.into(),
    };
    let changed = resize(&ringd, "cisco", wait, &["mode"])
        .await
        .expect("mode");
    assert_eq!(
        changed.spec,
        Some(RingSpec {
            size_bytes: M,
            ..wait
        }),
        "only the mode was named"
    );
    let retired = producer.retired().expect("retired");
    assert_eq!(retired.successor, Some(epoch(&changed)));

    let resized = resize(&ringd, "cisco", spec(2 * M), &[])
        .await
        .expect("all fields");
    assert_eq!(resized.spec, Some(spec(2 * M)));
    assert!(epoch(&resized) > epoch(&changed));
    assert_refused(
        resize(&ringd, "cisco", spec(M), &["size"]).await,
        Code::InvalidArgument,
        &["size_bytes"],
    );
    assert_refused(
        resize(&ringd, "dell", spec(M), &[]).await,
        Code::NotFound,
        &["dell", "ring create"],
    );
}

#[tokio::test]
async fn wrong_requests_are_refused_with_what_would_be_right() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &[]).await;
    for name in ["", "Cisco", "../x", "a/b", "-a", &"x".repeat(64)] {
        assert_refused(
            create(&ringd, request(name, M)).await,
            Code::InvalidArgument,
            &["a-z 0-9"],
        );
    }
    assert_refused(
        create(&ringd, request("a", 0)).await,
        Code::InvalidArgument,
        &["spec.size_bytes"],
    );
    assert_refused(
        create(&ringd, request("a", 1)).await,
        Code::InvalidArgument,
        &["spec.size_bytes"],
    );
    let mode = CreateRingRequest {
        spec: Some(RingSpec { mode: 9, ..spec(M) }),
        ..request("a", M)
    };
    assert_refused(
        create(&ringd, mode).await,
        Code::InvalidArgument,
        &["spec.mode"],
    );
    let none = CreateRingRequest {
        spec: None,
        ..request("a", M)
    };
    assert_refused(
        create(&ringd, none).await,
        Code::InvalidArgument,
        &["spec.size_bytes"],
    );
    assert_refused(delete(&ringd, "a").await, Code::NotFound, &["ring list"]);
    let get = ringd
        .client()
        .await
        .get_ring(GetRingRequest {
            name: "a".to_owned(),
        })
        .await;
    assert_refused(get, Code::NotFound, &["a does not exist"]);
    let watch = WatchRingsRequest {
        names: vec!["a".to_owned()],
        interval_ms: 0,
    };
    assert_refused(
        ringd.client().await.watch_rings(watch).await.map(|_| ()),
        Code::NotFound,
        &[],
    );
    let watch = WatchRingsRequest {
        names: vec![],
        interval_ms: 1,
    };
    assert_refused(
        ringd.client().await.watch_rings(watch).await.map(|_| ()),
        Code::InvalidArgument,
        &["100"],
    );
    assert!(ringd.list().await.is_empty());
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--memory-budget", "8m"]).await;
    let dry = |name, size| CreateRingRequest {
        validate_only: true,
        ..request(name, size)
    };
    let shown = create(&ringd, dry("cisco", M)).await.expect("valid");
    assert!(shown.status.expect("status").footprint_bytes > M);
    assert!(ringd.list().await.is_empty());
    assert_refused(
        create(&ringd, dry("cisco", 8 * M)).await,
        Code::ResourceExhausted,
        &["budget"],
    );

    let made = create(&ringd, request("cisco", M)).await.expect("create");
    assert_refused(
        create(&ringd, dry("cisco", 2 * M)).await,
        Code::AlreadyExists,
        &[],
    );
    let replace = CreateRingRequest {
        replace: true,
        ..dry("cisco", 2 * M)
    };
    create(&ringd, replace).await.expect("valid");
    let update = UpdateRingRequest {
        name: "cisco".to_owned(),
        spec: Some(spec(2 * M)),
        validate_only: true,
        ..UpdateRingRequest::default()
    };
    ringd
        .client()
        .await
        .update_ring(update)
        .await
        .expect("valid");
    assert_eq!(ringd.get("cisco").await, made);
}

#[tokio::test]
async fn the_memory_budget_holds_for_the_sum_of_all_rings() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--memory-budget", "5m"]).await;
    create(&ringd, request("a", 2 * M)).await.expect("create");
    let refused = create(&ringd, request("b", 4 * M)).await;
    assert_refused(
        refused,
        Code::ResourceExhausted,
        &["ring b needs 4.", "budget of 5 MiB", "--memory-budget"],
    );
    assert_refused(
        resize(&ringd, "a", spec(5 * M), &[]).await,
        Code::ResourceExhausted,
        &["ring a"],
    );
    create(&ringd, request("b", M))
        .await
        .expect("what fits is made");
    resize(&ringd, "a", spec(M), &[])
        .await
        .expect("shrinking is always possible");
    assert_eq!(ringd.names().await, ["a", "b"]);
    drop(ringd);

    // Rings that are there count, also when the budget is smaller than they are.
    let ringd = Ringd::start(&dirs, &["--memory-budget", "1m"]).await;
    assert_eq!(ringd.names().await, ["a", "b"]);
    assert_refused(
        create(&ringd, request("c", 65_536)).await,
        Code::ResourceExhausted,
        &["0 B is left"],
    );
}

#[tokio::test]
async fn a_restart_adopts_rings_and_changes_nothing_in_them() {
    let dirs = Dirs::new();
    let arguments = ["--create", "cisco:1m", "--create", "dell:2m:wait"];
    let ringd = Ringd::start(&dirs, &arguments).await;
    let before = ringd.list().await;
    let mut producer = open_producer(&dirs, "cisco");
    publish(&mut producer, 10);
    assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
    assert!(!dirs.socket().exists());

    publish(&mut producer, 10);
    let ringd = Ringd::start(&dirs, &arguments).await;
    let after = ringd.list().await;
    assert_eq!(
        after.iter().map(epoch).collect::<Vec<_>>(),
        before.iter().map(epoch).collect::<Vec<_>>()
    );
    assert_eq!(
        after[0].status.as_ref().expect("status").published_frames,
        20
    );
    assert_eq!(ringd.end(Signal::SIGINT).await.code(), Some(0));

    // Also when ringd never heard of them.
    let ringd = Ringd::start(&dirs, &["--ephemeral"]).await;
    assert_eq!(ringd.names().await, ["cisco", "dell"]);
    publish(&mut producer, 10);
    assert_eq!(
        ringd
            .get("cisco")
            .await
            .status
            .expect("status")
            .published_frames,
        30
    );
    assert!(producer.retired().is_none());
}

#[tokio::test]
async fn killed_again_and_again_ringd_is_back_at_once_with_the_same_rings() {
    let dirs = Dirs::new();
    let mut ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    let inode = || {
        fs::metadata(dirs.rings().join("cisco"))
            .expect("data file")
            .ino()
    };
    let (epoch_before, inode_before) = (epoch(&ringd.get("cisco").await), inode());
    let mut producer = open_producer(&dirs, "cisco");
    for round in 1..=20 {
        ringd.end(Signal::SIGKILL).await;
        publish(&mut producer, 5);
        let begin = Instant::now();
        ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "ready within a second"
        );
        let ring = ringd.get("cisco").await;
        assert_eq!((epoch(&ring), inode()), (epoch_before, inode_before));
        assert_eq!(ring.status.expect("status").published_frames, 5 * round);
    }
    assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
}

#[tokio::test]
async fn rings_that_vanished_are_made_again() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(
        &dirs,
        &[
            "--create",
            "cisco:1m",
            "--create",
            "dell:2m:wait",
            "--create",
            "big:8m",
        ],
    )
    .await;
    let old = epoch(&ringd.get("cisco").await);
    delete(&ringd, "big").await.expect("delete");
    assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
    fs::remove_dir_all(dirs.rings()).expect("as a restart of the machine does");

    let ringd = Ringd::start(&dirs, &[]).await;
    until("made again", || async {
        let rings = ringd.list().await;
        rings.len() == 2 && rings.iter().all(|ring| epoch(ring) > 0)
    })
    .await;
    let (cisco, dell) = (ringd.get("cisco").await, ringd.get("dell").await);
    assert_eq!(cisco.spec, Some(spec(M)));
    assert_eq!(
        dell.spec,
        Some(RingSpec {
            size_bytes: 2 * M,
            mode: RingMode::Wait.into()
        })
    );
    assert!(epoch(&cisco) > old);
}

#[tokio::test]
async fn a_vanished_ring_that_finds_no_room_is_shown_as_failed_and_can_be_deleted() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:4m"]).await;
    assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
    fs::remove_dir_all(dirs.rings()).expect("as a restart of the machine does");

    let ringd = Ringd::start(&dirs, &["--memory-budget", "1m"]).await;
    let state = || async { ringd.get("cisco").await.status.expect("status") };
    until("failed", || async {
        state().await.state() == State::Failed
    })
    .await;
    assert!(
        state().await.reason.contains("budget"),
        "{}",
        state().await.reason
    );
    assert_eq!(ringd.identity().await.failed, 1);
    assert_eq!(dirs.saved(), ["cisco"], "not forgotten");
    delete(&ringd, "cisco").await.expect("delete");
    assert!(ringd.list().await.is_empty() && dirs.saved().is_empty());
}

#[tokio::test]
async fn a_second_instance_is_refused_and_told_who_is_there() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    let second = dirs.command(&[]).status().expect("start");
    assert_eq!(second.code(), Some(1));
    let told = format!("already running with pid {}", ringd.pid());
    assert!(dirs.log_text().contains(&told), "{}", dirs.log_text());
    assert_eq!(ringd.names().await, ["cisco"], "the first serves on");
}

#[tokio::test]
async fn rings_of_the_command_line_replace_only_when_told_to() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    let before = epoch(&ringd.get("cisco").await);
    ringd.end(Signal::SIGTERM).await;
    assert_eq!(
        dirs.command(&["--create", "cisco:2m"])
            .status()
            .expect("start")
            .code(),
        Some(1)
    );
    assert!(
        dirs.log_text()
            .contains("--create cisco: ring cisco exists"),
        "{}",
        dirs.log_text()
    );
    let ringd = Ringd::start(&dirs, &["--create", "cisco:2m", "--replace"]).await;
    assert!(epoch(&ringd.get("cisco").await) > before);
    assert_eq!(
        dirs.command(&["--create", "cisco"])
            .status()
            .expect("start")
            .code(),
        Some(2),
        "usage"
    );
}

#[tokio::test]
async fn statistics_come_from_shared_memory_and_deletion_names_who_is_attached() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    let (dir, name) = (
        RingDir::new(dirs.rings()),
        RingName::parse("cisco").expect("name"),
    );
    let mut producer = open_producer(&dirs, "cisco");
    let mut consumer = Consumer::open(&dir, &name, "ids", Start::Newest, false).expect("consumer");
    publish(&mut producer, 100);
    consumer.poll(&mut Batch::new(1 << 20, 60)).expect("poll");

    let status = ringd.get("cisco").await.status.expect("status");
    assert_eq!(
        (status.published_frames, status.published_bytes),
        (100, 100 * 64)
    );
    assert!(
        status.producer_live && status.producer.contains("test"),
        "{}",
        status.producer
    );
    let reader = &status.readers[0];
    assert_eq!(
        (reader.name.as_str(), reader.pid, reader.live),
        ("ids", std::process::id(), true)
    );
    assert_eq!(
        (
            reader.delivered_frames,
            reader.lag_frames,
            reader.lapped_frames
        ),
        (60, 40, 0)
    );

    let watch = WatchRingsRequest {
        names: vec!["cisco".to_owned()],
        interval_ms: 100,
    };
    let mut stream = ringd
        .client()
        .await
        .watch_rings(watch)
        .await
        .expect("watch")
        .into_inner();
    let report = stream.message().await.expect("report").expect("report");
    assert_eq!(report.rings[0].status, Some(status));
    publish(&mut producer, 1);
    let seen = async {
        while let Some(report) = stream.message().await.expect("report") {
            if report.rings[0]
                .status
                .as_ref()
                .expect("status")
                .published_frames
                == 101
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("the stream follows");

    let attached = delete(&ringd, "cisco")
        .await
        .expect("delete")
        .expect("somebody is attached");
    assert!(
        attached.contains("producer test") && attached.contains("reader ids (pid "),
        "{attached}"
    );
    assert!(
        producer
            .retired()
            .is_some_and(|retired| retired.successor.is_none())
    );
}

#[tokio::test]
async fn open_streams_do_not_hold_the_end() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &[]).await;
    let mut stream = ringd
        .client()
        .await
        .watch_rings(WatchRingsRequest::default())
        .await
        .expect("watch")
        .into_inner();
    stream.message().await.expect("report").expect("report");
    let begin = Instant::now();
    assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn others_are_answered_while_a_large_ring_is_made() {
    let dirs = Dirs::new();
    let rings = format!("/dev/shm/fluxcap-test-{}", std::process::id());
    let ringd = Ringd::start(&dirs, &["--ring-dir", &rings]).await;
    let mut client = ringd.client().await;
    let large = tokio::spawn(async move {
        client
            .create_ring(request("large", 1024 * M))
            .await
            .map(|_| ())
    });
    let mut answered = 0;
    while !large.is_finished() {
        let begin = Instant::now();
        ringd.list().await;
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
        answered += 1;
    }
    let made = large.await.expect("join");
    drop(ringd);
    fs::remove_dir_all(&rings).expect("clean up");
    made.expect("create");
    assert!(answered > 1, "{answered}");
}

#[tokio::test]
async fn a_file_that_is_no_ring_is_left_alone_and_a_damaged_ring_is_shown() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    fs::write(dirs.rings().join("notes"), "not a ring").expect("write");
    assert_eq!(ringd.names().await, ["cisco"]);
    let refused = create(&ringd, request("notes", M))
        .await
        .expect_err("refused");
    assert!(
        matches!(
            refused.code(),
            Code::FailedPrecondition | Code::AlreadyExists
        ),
        "{refused:?}"
    );
    assert_eq!(
        fs::read_to_string(dirs.rings().join("notes")).expect("read"),
        "not a ring"
    );

    let path = dirs.rings().join("cisco");
    let mut bytes = fs::read(&path).expect("read");
    bytes[64..128].fill(0xff);
    fs::write(&path, bytes).expect("write");
    let status = ringd.list().await.remove(0).status.expect("status");
    assert_eq!(status.state(), State::Failed, "{status:?}");
    assert!(
        status.reason.contains("replace or delete"),
        "{}",
        status.reason
    );
    create(
        &ringd,
        CreateRingRequest {
            replace: true,
            ..request("cisco", M)
        },
    )
    .await
    .expect("replace");
    assert_eq!(
        ringd.list().await[0]
            .status
            .as_ref()
            .expect("status")
            .state(),
        State::Running
    );
}

/// True when this process may mount; says so when it may not.
fn may_mount(test: &str) -> bool {
    let may = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !may {
        eprintln!("SKIP {test}: no right to mount");
    }
    may
}

#[tokio::test]
async fn ramfs_is_mounted_once_and_rings_on_it_survive() {
    if !may_mount("ramfs_is_mounted_once_and_rings_on_it_survive") {
        return;
    }
    let dirs = Dirs::new();
    fs::create_dir(dirs.rings()).expect("ring directory");
    std::os::unix::fs::chown(dirs.rings(), Some(7), Some(8)).expect("chown");
    // The shell holds the mount namespace while ringd is restarted in it.
    let script = "setpriv --pdeathsig KILL \"$0\" \"$@\" & first=$!; trap 'kill $first; wait $first; exec \"$0\" \"$@\"' TERM; wait $first";
    let ringd = Ringd::start_command(
        &dirs,
        dirs.command_by("unshare", &["--mount", "sh", "-c", script], &[]),
    )
    .await;
    let made = create(&ringd, request("cisco", M)).await.expect("create");
    assert_eq!(made.status.clone().expect("status").backing, "ramfs");
    let identity = ringd.identity().await;
    assert!(identity.notices.is_empty(), "{:?}", identity.notices);
    let mounts = || fs::read_to_string(format!("/proc/{}/mounts", ringd.pid())).expect("mounts");
    let ours = |mounts: &str| -> Vec<String> {
        let place = format!(" {} ", dirs.rings().display());
        mounts
            .lines()
            .filter(|line| line.contains(&place))
            .map(str::to_owned)
            .collect()
    };
    let mounted = ours(&mounts());
    assert_eq!(mounted.len(), 1);
    assert!(
        ["ramfs", "nosuid", "nodev", "noexec", "mode=770"]
            .iter()
            .all(|o| mounted[0].contains(o)),
        "{mounted:?}"
    );
    let root = fs::metadata(format!(
        "/proc/{}/root{}",
        ringd.pid(),
        dirs.rings().display()
    ))
    .expect("metadata");
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o777), (7, 8, 0o770));

    let first = identity.pid;
    ringd.signal(Signal::SIGTERM);
    let dirs = &dirs;
    until("second ringd", || async move {
        let endpoint =
            tonic::transport::Endpoint::try_from(format!("unix://{}", dirs.socket().display()));
        let Ok(channel) = endpoint.expect("endpoint").connect().await else {
            return false;
        };
        let mut client =
            fluxcap_proto::v1::daemon_service_client::DaemonServiceClient::new(channel);
        let answer = client
            .get_daemon(fluxcap_proto::v1::GetDaemonRequest {})
            .await;
        answer.is_ok_and(|answer| {
            answer
                .into_inner()
                .daemon
                .is_some_and(|daemon| daemon.pid != first)
        })
    })
    .await;
    assert_eq!(epoch(&ringd.get("cisco").await), epoch(&made));
    assert_eq!(ours(&mounts()).len(), 1, "not mounted twice");
}

#[tokio::test]
async fn without_the_right_to_mount_ringd_serves_and_says_so() {
    if !may_mount("without_the_right_to_mount_ringd_serves_and_says_so") {
        return;
    }
    let dirs = Dirs::new();
    let without = ["--inh-caps=-all", "--bounding-set=-sys_admin"];
    let ringd = Ringd::start_command(&dirs, dirs.command_by("setpriv", &without, &[])).await;
    create(&ringd, request("cisco", M)).await.expect("create");
    let notices = ringd.identity().await.notices.join("\n");
    assert!(
        notices.contains("cannot mount ramfs") && notices.contains("CAP_SYS_ADMIN"),
        "{notices}"
    );
    assert!(notices.contains("mount -t ramfs"), "{notices}");
}

fn open_producer(dirs: &Dirs, ring: &str) -> Producer {
    let name = RingName::parse(ring).expect("name");
    Producer::open(&RingDir::new(dirs.rings()), &name, "test").expect("producer")
}

/// Publishes frames of 64 bytes.
fn publish(producer: &mut Producer, frames: usize) {
    let source = producer.register_source("eth1").expect("source");
    let meta = Meta {
        timestamp_ns: 1,
        wire_len: 64,
        source,
        direction: Direction::In,
        vlan_count: 0,
        flow_hash: 0,
        flags: Flags::default(),
    };
    let bytes = frames * fluxcap_ring::record_size(64);
    let mut burst = producer.reserve(bytes).expect("reserve").expect("room");
    for _ in 0..frames {
        assert!(burst.push(&meta, &[&[0x55; 64]]));
    }
    burst.commit();
}
