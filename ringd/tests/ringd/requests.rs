//! What clients ask for.

use crate::*;

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
    let same = create(&ringd, replace(M)).await.expect("replace");
    assert!(
        epoch(&same) > epoch(&first),
        "equal, and a new epoch all the same"
    );
    let second = create(&ringd, replace(2 * M)).await.expect("replace");
    assert!(epoch(&second) > epoch(&same));
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
    for name in ["", "cis co", "../x", "a/b", "-a", &"x".repeat(64)] {
        assert_refused(
            create(&ringd, request(name, M)).await,
            Code::InvalidArgument,
            &["a-z 0-9"],
        );
    }
    assert_refused(
        create(&ringd, request("a", 0)).await,
        Code::InvalidArgument,
        &["size: "],
    );
    assert_refused(
        create(&ringd, request("a", 1)).await,
        Code::InvalidArgument,
        &["size: "],
    );
    let mode = CreateRingRequest {
        spec: Some(RingSpec { mode: 9, ..spec(M) }),
        ..request("a", M)
    };
    assert_refused(create(&ringd, mode).await, Code::InvalidArgument, &["mode"]);
    let none = CreateRingRequest {
        spec: None,
        ..request("a", M)
    };
    assert_refused(
        create(&ringd, none).await,
        Code::InvalidArgument,
        &["size: "],
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
    let replace = CreateRingRequest {
        replace: true,
        ..request("notes", M)
    };
    for refused in [
        create(&ringd, replace).await.map(drop),
        resize(&ringd, "notes", spec(2 * M), &[]).await.map(drop),
        delete(&ringd, "notes").await.map(drop),
    ] {
        let refused = refused.expect_err("refused");
        assert!(refused.message().contains("notes"), "{refused:?}");
    }
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
    assert!(status.reason.contains("make it anew"), "{}", status.reason);
    let made = create(&ringd, request("cisco", M)).await;
    made.expect("nobody can want what is left of it");
    assert_eq!(
        ringd.list().await[0]
            .status
            .as_ref()
            .expect("status")
            .state(),
        State::Running
    );
}

#[tokio::test]
async fn what_was_answered_as_failed_is_not_made() {
    let dirs = Dirs::new();
    let rings = format!("/dev/shm/fluxcap-test-late-{}", std::process::id());
    let ringd = Ringd::start(&dirs, &["--ring-dir", &rings]).await;
    let mut client = ringd.client().await;
    let mut late = tonic::Request::new(request("late", 1024 * M));
    late.set_timeout(Duration::from_millis(50));
    let refused = client.create_ring(late).await.expect_err("in vain");
    assert!(
        matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{refused:?}"
    );
    // It was given up once it is not being made any more.
    let begin = Instant::now();
    while !ringd.names().await.is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = fs::read_dir(&rings).expect("read").count();
    // Who is in no hurry gets it.
    create(&ringd, request("late", M)).await.expect("create");
    assert_eq!(ringd.names().await, ["late"]);
    drop(ringd);
    fs::remove_dir_all(&rings).expect("clean up");
    assert_eq!(left, 0, "leftovers");
}

#[tokio::test]
async fn a_ring_whose_files_were_removed_is_told_of_and_made_anew() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "Core.East:1m"]).await;
    let before = epoch(&ringd.get("Core.East").await);
    let producer = open_producer(&dirs, "Core.East");
    fs::remove_file(dirs.rings().join("Core.East")).expect("remove");
    fs::remove_file(dirs.rings().join(".Core.East.readers")).expect("remove");
    let status = ringd.get("Core.East").await.status.expect("status");
    assert_eq!(status.state(), State::Failed, "{status:?}");
    assert!(
        status.reason.contains("somebody has removed them"),
        "{status:?}"
    );
    create(&ringd, request("Core.East", M))
        .await
        .expect("create");
    assert!(epoch(&ringd.get("Core.East").await) > before);
    let begin = Instant::now();
    while producer.retired().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(5), "not noticed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_ring_in_use_is_deleted_only_by_those_who_mean_it() {
    let dirs = Dirs::new();
    let ringd = Ringd::start(&dirs, &["--create", "cisco:1m"]).await;
    let producer = open_producer(&dirs, "cisco");
    let careful = || DeleteRingRequest {
        name: "cisco".to_owned(),
        only_unused: true,
    };
    let refused = ringd.client().await.delete_ring(careful()).await;
    assert_refused(
        refused,
        Code::FailedPrecondition,
        &["ring cisco is in use: producer test"],
    );
    drop(producer);
    let deleted = ringd.client().await.delete_ring(careful()).await;
    deleted.expect("nobody uses it");
}

#[tokio::test]
async fn earlier_epochs_count_against_the_budget_and_give_way() {
    let dirs = Dirs::new();
    let arguments = ["--create", "cisco:4m", "--memory-budget", "16m"];
    let ringd = Ringd::start(&dirs, &arguments).await;
    let dir = RingDir::new(dirs.rings());
    let name = RingName::parse("cisco").expect("name");
    let reader = || Consumer::open(&dir, &name, "txd a", Start::Newest, true).expect("reader");
    drop(reader());
    for _ in 0..3 {
        let mut producer = open_producer(&dirs, "cisco");
        publish(&mut producer, 100);
        producer.close();
        let replace = CreateRingRequest {
            replace: true,
            ..request("cisco", 4 * M)
        };
        create(&ringd, replace).await.expect("replace");
    }
    let status = ringd.get("cisco").await.status.expect("status");
    let told = "2 earlier epochs (8.";
    assert!(status.remarks[0].contains(told), "{:?}", status.remarks);
    assert!(status.remarks[0].contains("txd a"), "{:?}", status.remarks);
    // Another ring needs the memory.
    create(&ringd, request("dell", 8 * M))
        .await
        .expect("create");
    let status = ringd.get("cisco").await.status.expect("status");
    assert_eq!(status.remarks, Vec::<String>::new());
    let stats = reader().stats();
    assert_eq!((stats.lapped, stats.delivered), (300, 0));
}
