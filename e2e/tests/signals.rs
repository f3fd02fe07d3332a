//! Signals that must not end a daemon.

use std::time::Duration;

use fluxcap_e2e::mirror::Bpffs;
use fluxcap_e2e::{Daemon, Dirs, Netns, need_root, wait_until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_terminal_that_is_closed_ends_no_daemon() {
    need_root!();
    let (dirs, netns, bpffs) = (Dirs::new(), Netns::new(), Bpffs::new());
    let folder = bpffs.path().to_string_lossy();
    for name in ["ringd", "rxd", "txd", "tunneld", "mirrord"] {
        let args: &[&str] = match name {
            "mirrord" => &["--bpffs", &folder],
            _ => &[],
        };
        let mut daemon = Daemon::start(name, &netns, &dirs, args);
        daemon.signal(Signal::SIGHUP);
        wait_until(SOON, "the signal has come", || {
            daemon.log().contains("SIGHUP")
        });
        assert!(daemon.is_healthy(), "{name} ended");
        let (status, _) = daemon.stop();
        assert!(status.success(), "{name}: {status}");
    }
}
