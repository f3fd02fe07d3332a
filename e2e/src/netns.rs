//! Network namespaces that live as long as their guard.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// First part of the name of everything that the tests create.
pub(crate) const PREFIX: &str = "flux";

/// Where ip(8) keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Whether the caller may make namespaces. Prints a line that begins with `skipped:` and returns false when it may not and
/// `FLUXCAP_TEST_SKIP_ROOT` is set; panics when it may not and the variable is not set.
#[must_use]
pub fn root_or_skip() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let test = thread::current().name().unwrap_or("test").to_owned();
    assert!(
        std::env::var_os("FLUXCAP_TEST_SKIP_ROOT").is_some(),
        "{test} needs root to make network namespaces; set FLUXCAP_TEST_SKIP_ROOT=1 to skip such tests"
    );
    skipped("needs root");
    false
}

/// Tells why the test that the calling thread runs is passed over.
pub fn skipped(reason: &str) {
    let test = thread::current().name().unwrap_or("test").to_owned();
    // Not println: the line must be seen although the test passes. It must be a line of its own, and a lone test's name may stand in front.
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {reason}");
}

/// A name that no other test, in this process or another, uses: `flux-PID-N`.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{PREFIX}-{}-{}",
        process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Runs `program` to its end; panics with its error output when it fails.
#[track_caller]
pub(crate) fn must_run(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    output.stdout
}

/// A network namespace of its own, without IPv6 and with its loopback up. Removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with a name of its own.
    #[must_use]
    #[track_caller]
    pub fn new() -> Netns {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep_leftovers);
        let netns = Netns {
            name: unique_name(),
        };
        must_run(Command::new("ip").args(["netns", "add", &netns.name]));
        // Router solicitations and duplicate address detection would mix with the frames that a test sends.
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    /// The name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the namespace open.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `work` inside the namespace, on a thread of its own since a namespace belongs to a thread. Sockets that it opens stay
    /// in the namespace wherever they are used afterwards.
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(&path);
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs inside the namespace. The process is `program` itself, not a child of a wrapper, so its id and
    /// its signals are real. The mounts stay those of the caller.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // Not `ip netns exec`: that gives each process mounts of its own, and one would not see a ramfs that another mounts.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `ip` with these arguments inside the namespace and returns what it printed; panics when it fails.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) -> String {
        let printed = must_run(Command::new("ip").args(["-n", &self.name]).args(args));
        String::from_utf8_lossy(&printed).into_owned()
    }

    /// Sets a kernel parameter of this namespace, for instance `net/ipv4/ip_forward`. A parameter that this kernel has not is
    /// passed over.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let file = Path::new("/proc/sys").join(key);
        self.run(|| {
            if file.exists() {
                fs::write(&file, value)
                    .unwrap_or_else(|error| panic!("cannot set {}: {error}", file.display()));
            }
        });
    }
}

impl Default for Netns {
    fn default() -> Self {
        Netns::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Moves the calling thread into the namespace at `path`.
pub(crate) fn enter(path: &Path) {
    let file =
        File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    setns(file, CloneFlags::CLONE_NEWNET)
        .unwrap_or_else(|error| panic!("cannot enter {}: {error}", path.display()));
}

/// Removes namespaces of test processes that no longer exist: a killed test cannot clean up.
fn sweep_leftovers() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner_is_gone(&name) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Whether `name` is one of ours, made by a process that has ended.
pub(crate) fn owner_is_gone(name: &str) -> bool {
    let mut parts = name.split('-');
    let owner = match (parts.next(), parts.next()) {
        (Some(PREFIX), Some(pid)) => pid.parse::<u32>().ok(),
        _ => None,
    };
    owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_goes_away_with_its_guard() {
        crate::need_root!();
        let netns = Netns::new();
        let path = netns.path();
        assert!(path.exists());
        drop(netns);
        assert!(!path.exists());
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        crate::need_root!();
        let netns = Netns::new();
        let own = || fs::read_link("/proc/thread-self/ns/net").expect("read the own namespace");
        let outside = own();
        assert_ne!(netns.run(own), outside);
        assert_eq!(own(), outside);
        let listed = must_run(netns.command("readlink").arg("/proc/self/ns/net"));
        assert_eq!(
            String::from_utf8_lossy(&listed).trim(),
            netns.run(own).to_string_lossy()
        );
    }

    #[test]
    fn only_names_of_ended_test_processes_are_swept() {
        assert!(!owner_is_gone(&unique_name()));
        assert!(owner_is_gone(&format!("{PREFIX}-4294967295-0")));
        assert!(!owner_is_gone("blue"));
        assert!(!owner_is_gone("flux"));
    }
}
