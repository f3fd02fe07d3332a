//! The memory below the ring directory.

use crate::*;
use std::io::Write;

/// True when this process may mount. Otherwise a failure, or a line that deploy/test counts where `FLUXCAP_TEST_SKIP_ROOT` is set.
fn may_mount(test: &str) -> bool {
    let may = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !may {
        assert!(
            std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some(),
            "{test} needs root to mount; set FLUXCAP_TEST_SKIP_ROOT=1 to skip such tests"
        );
        // Past the capture of the test harness: a skip must be seen.
        let _ = writeln!(std::io::stderr(), "skipped: {test} needs root to mount");
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

#[tokio::test]
async fn nothing_is_mounted_over_memory_that_is_good_or_over_rings() {
    if !may_mount("nothing_is_mounted_over_memory_that_is_good_or_over_rings") {
        return;
    }
    let dirs = Dirs::new();
    fs::create_dir(dirs.rings()).expect("ring directory");
    let inner = dirs.rings().join("inner");
    for (kind, place) in [("ramfs", &inner), ("tmpfs", &dirs.rings())] {
        let script = format!(
            "mount -t {kind} none {} && exec \"$0\" \"$@\"",
            dirs.rings().display()
        );
        let ring_dir = ["--ephemeral", "--ring-dir", place.to_str().expect("text")];
        let command = dirs.command_by("unshare", &["--mount", "sh", "-c", &script], &ring_dir);
        let ringd = Ringd::start_command(&dirs, command).await;
        let made = create(&ringd, request("cisco", M)).await.expect("create");
        assert_eq!(made.status.expect("status").backing, kind);
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", ringd.pid())).expect("mounts");
        let ours = mounts.matches(&dirs.rings().display().to_string()).count();
        assert_eq!(ours, 1, "{mounts}");
        let notices = ringd.identity().await.notices;
        assert_eq!(
            notices.iter().any(|text| text.contains("tmpfs")),
            kind == "tmpfs",
            "{notices:?}"
        );
        assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
    }

    let ringd = Ringd::start(&dirs, &["--create", "old:1m"]).await;
    assert_eq!(ringd.end(Signal::SIGTERM).await.code(), Some(0));
    let command = dirs.command_by("unshare", &["--mount"], &[]);
    let ringd = Ringd::start_command(&dirs, command).await;
    assert_eq!(ringd.names().await, ["old"]);
    let notices = ringd.identity().await.notices.join("\n");
    assert!(
        notices.contains("nothing is mounted over them"),
        "{notices}"
    );
}
