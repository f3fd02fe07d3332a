//! A stock Linux kernel in a virtual machine at the far end of a wire: the other implementation of every tunnel.
//!
//! ```text
//!   namespace of the test                               guest
//!   +--------------------------------+                 +------------------------------------+
//!   | tunneld ...        WIRE (tap) -|-----------------|- eth0                              |
//!   |                                |                 |        tunnel devices              |
//!   | frames, Sink       SIDE (tap) -|-----------------|- eth1                              |
//!   +--------------------------------+                 +------------------------------------+
//! ```
//!
//! It is the independent tool `../shared/kit/kernel-peer` that makes it, with qemu and a kernel of Debian; where these cannot be had, tests that want
//! it are skipped. No acceleration is needed: it boots in some seconds, and takes some ten thousand packets a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::kit::kit_or_skip;
use crate::netns::{Netns, must_run, skipped};

/// The wire that tunnels go through, at our end.
pub const WIRE: &str = "kpt0";
/// The wire for inner frames, at our end. It has no addresses on either side.
pub const SIDE: &str = "kpt0b";
/// MTU of both wires when the guest has started.
pub const MTU: u32 = 9000;

/// The guest ends by itself after so many seconds: a test that is killed cannot end it.
const LIFETIME: u32 = 900;

/// Addresses with prefix lengths: ours and the guest's.
const ADDRESSES: [(&str, &str); 4] = [
    ("--host-ip", "10.99.0.1/16"),
    ("--peer-ip", "10.99.0.2/16"),
    ("--host-ip6", "fd00:99::1/64"),
    ("--peer-ip6", "fd00:99::2/64"),
];

/// A running guest. It ends on drop.
#[derive(Debug)]
pub struct KernelPeer {
    program: PathBuf,
    /// What the tool knows of its guests.
    state: TempDir,
    /// Ethernet address of the guest's end of [`WIRE`].
    pub mac: String,
    /// Release of its kernel.
    pub kernel: String,
}

impl KernelPeer {
    /// Boots a guest, with both wires into `netns`. None, and a line that begins with `skipped:`, when this machine has not what that takes.
    ///
    /// # Panics
    /// When everything is there and the guest does not start.
    #[must_use]
    #[track_caller]
    pub fn start(netns: &Netns) -> Option<KernelPeer> {
        KernelPeer::start_kernel(netns, "6.1")
    }

    /// The same with this kernel: 6.1 or 6.12.
    ///
    /// # Panics
    /// When everything is there and the guest does not start.
    #[must_use]
    #[track_caller]
    pub fn start_kernel(netns: &Netns, kernel: &str) -> Option<KernelPeer> {
        let program = kit_or_skip("kernel-peer")?.join("kernel-peer");
        // Installs qemu, fetches a kernel and makes an image of it, the first time.
        let build = Command::new(&program)
            .args(["build", "--kernel", kernel])
            .output();
        let build = build.expect("run kernel-peer");
        if !build.status.success() {
            let said = String::from_utf8_lossy(&build.stderr);
            let reason = said.lines().next().unwrap_or_default();
            skipped(&format!("no guest can be made here: {reason}"));
            return None;
        }
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        let mut peer = KernelPeer {
            program,
            state: tempfile::tempdir().expect("make a directory"),
            mac: String::new(),
            kernel: String::new(),
        };
        let mut start = peer.tool("start");
        start.args(["--netns", netns.name(), "--tap", WIRE, "--kernel", kernel]);
        // A dozen mirrors that start at once have the kernel verify a dozen programs at once, which takes more than 256 MB.
        start.args(["--mtu", &MTU.to_string(), "--mem", "1024"]);
        start.args(
            ADDRESSES
                .iter()
                .flat_map(|&(option, value)| [option, value]),
        );
        let about: Value =
            serde_json::from_slice(&must_run(&mut start)).expect("JSON of kernel-peer");
        let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
        (peer.mac, peer.kernel) = (text("peer_mac"), text("kernel"));
        peer.run(&format!("(sleep {LIFETIME}; reboot -f) >/dev/null 2>&1 &"));
        Some(peer)
    }

    /// Runs a shell script in the guest and returns what it printed; panics when it fails.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let printed = must_run(self.tool("exec").arg(script));
        String::from_utf8_lossy(&printed).into_owned()
    }

    /// Gives the guest programs, with the libraries that they need, in a folder that it sees as `/host/bin`; libraries are in `/host/bin/lib`.
    ///
    /// # Panics
    /// When they cannot be copied.
    #[track_caller]
    pub fn give_programs(&self, programs: &[PathBuf]) {
        let folder = self.state.path().join("kp0/share/bin");
        fs::create_dir_all(folder.join("lib")).expect("make a folder");
        let copy = |from: &Path, folder: &Path| {
            let to = folder.join(from.file_name().expect("a file"));
            fs::copy(from, to)
                .unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
        };
        for program in programs {
            copy(program, &folder);
            let needed = must_run(Command::new("ldd").arg(program));
            let needed = String::from_utf8_lossy(&needed).into_owned();
            for library in needed
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
            {
                copy(Path::new(library), &folder.join("lib"));
            }
        }
    }

    /// Runs a shell script in the guest for so many seconds at most; its exit status and what it printed.
    #[track_caller]
    pub fn try_run(&self, script: &str, seconds: u32) -> (bool, String) {
        let mut command = self.tool("exec");
        command
            .args(["--timeout", &seconds.to_string()])
            .arg(script);
        let output = command.output().expect("run kernel-peer");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), printed)
    }

    /// Sets the MTU of both ends of [`WIRE`].
    #[track_caller]
    pub fn set_mtu(&self, netns: &Netns, mtu: u32) {
        netns.ip(&["link", "set", WIRE, "mtu", &mtu.to_string()]);
        self.run(&format!("ip link set eth0 mtu {mtu}"));
    }

    fn tool(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(verb)
            .env("KERNEL_PEER_STATE", self.state.path());
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for KernelPeer {
    fn drop(&mut self) {
        let _ = self.tool("stop").output();
    }
}
