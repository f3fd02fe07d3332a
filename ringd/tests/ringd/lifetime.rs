//! Starts, ends and everything in between that a ring must not notice.

use crate::*;

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
        Some(2)
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
async fn the_service_manager_is_told_of_start_work_and_end() {
    let dirs = Dirs::new();
    let socket = dirs.root().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&socket).expect("bind");
    let mut command = dirs.command(&["--create", "cisco:1m"]);
    command
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "200000");
    let ringd = Ringd::start_command(&dirs, command).await;
    let told = async |what: &str| {
        let mut buffer = [0; 4096];
        loop {
            let received = tokio::time::timeout(PATIENCE, manager.recv(&mut buffer)).await;
            let length = received
                .unwrap_or_else(|_| panic!("not told {what}"))
                .expect("receive");
            if String::from_utf8_lossy(&buffer[..length])
                .lines()
                .any(|line| line == what)
            {
                return;
            }
        }
    };
    told("READY=1").await;
    told("STATUS=1 running, 0 waiting, 0 failed").await;
    let begin = Instant::now();
    for _ in 0..5 {
        told("WATCHDOG=1").await;
    }
    assert!(
        begin.elapsed() >= Duration::from_millis(300),
        "at half the interval, not more often"
    );
    ringd.signal(Signal::SIGTERM);
    told("STOPPING=1").await;
    assert_eq!(ringd.ended().await.code(), Some(0));
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
