//! A host with traffic through it, and mirrord beside that traffic.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fluxcap_proto::v1::mirror_service_client::MirrorServiceClient;
use fluxcap_proto::v1::{
    CreateMirrorRequest, DeleteMirrorRequest, Direction, GetMirrorRequest, Mirror, MirrorDevice,
    MirrorOverlay, MirrorSpec, MirrorStatus, State, TunnelKind, UpdateMirrorRequest,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Status;

use crate::daemon::{Daemon, Dirs, UNIT_USER};
use crate::generator::{Generator, Sent};
use crate::link::Veth;
use crate::netns::{Netns, unique_name};
use crate::sink::Sink;
use crate::wait::wait_until;

/// Name of the outer end of every wire.
const WIRE: &str = "wire";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// No frame for so long: there are no more.
const QUIET: Duration = Duration::from_millis(300);
/// Where bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// Addresses of `mon0`, and those of the collector beyond it.
pub const OURS: [&str; 2] = ["192.0.2.1/24", "2001:db8::1/64"];
/// See [`OURS`].
pub const COLLECTOR: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// How a daemon is started: [`Daemon::start`] or a closure over its kin.
pub type StartDaemon = fn(&str, &Netns, &Dirs, &[&str]) -> Daemon;

/// A bridge that forwards production traffic from `eth0` to `eth1`, and `mon0` where copies go, each with a wire to a namespace outside.
///
/// ```text
///   left --wire-- eth0 | br0 | eth1 --wire-- right
///                      | mon0 ------wire-- monitor
/// ```
#[derive(Debug)]
pub struct MirrorLab {
    /// The daemon.
    pub mirrord: Daemon,
    /// Makes rings.
    pub ringd: Daemon,
    /// Where everything runs.
    pub host: Netns,
    /// Beyond `eth0`.
    pub left: Netns,
    /// Beyond `eth1`.
    pub right: Netns,
    /// Beyond `mon0`.
    pub monitor: Netns,
    /// The daemons' directories.
    pub dirs: Dirs,
    /// The folder of pins.
    pub bpffs: Bpffs,
}

/// A folder in the bpffs of this machine, or a bpffs of its own. Removed on drop, with all that is pinned there.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// A bpffs of its own, for [`UNIT_USER`] alone.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn of_unit_user() -> Bpffs {
        let path = std::env::temp_dir().join(format!("{}-bpffs", unique_name()));
        fs::create_dir(&path).expect("make a folder");
        let none: Option<&str> = None;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none).expect("mount a bpffs");
        std::os::unix::fs::chown(&path, Some(UNIT_USER), Some(UNIT_USER)).expect("give it away");
        Bpffs(path)
    }
}

impl Bpffs {
    /// A name of its own; mirrord makes the folder. Mounts the bpffs if it is not there.
    #[must_use]
    pub fn new() -> Bpffs {
        if !fs::read_to_string("/proc/self/mounts")
            .unwrap_or_default()
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(BPFFS))
        {
            let none: Option<&str> = None;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
                .expect("mount the bpffs");
        }
        Bpffs(Path::new(BPFFS).join(unique_name()))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Everything in it, folders without their contents, sorted.
    #[must_use]
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(folder)).into_iter().flatten();
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Default for Bpffs {
    fn default() -> Self {
        Bpffs::new()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        for mirror in self.names("") {
            for pin in self.names(&mirror) {
                let _ = fs::remove_file(self.0.join(&mirror).join(pin));
            }
            let path = self.0.join(mirror);
            let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        }
        if !self.0.starts_with(BPFFS) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

impl MirrorLab {
    /// The host, forwarding, with mirrord idle; it has the capabilities that its unit grants, and no others.
    #[must_use]
    #[track_caller]
    pub fn new() -> MirrorLab {
        let start: StartDaemon = Daemon::start_with_unit_capabilities;
        MirrorLab::started(Dirs::new(), Bpffs::new(), start, Daemon::start)
    }

    /// The same, with mirrord and ringd as their units run them: not as root.
    #[must_use]
    #[track_caller]
    pub fn as_units() -> MirrorLab {
        let (dirs, bpffs) = (Dirs::of_unit_user(), Bpffs::of_unit_user());
        MirrorLab::started(dirs, bpffs, Daemon::start_as_unit, Daemon::start_as_unit)
    }

    /// The same with root's mirrord, which may do everything.
    #[must_use]
    #[track_caller]
    pub fn as_root() -> MirrorLab {
        MirrorLab::with(&[])
    }

    /// The same, with root's mirrord lacking capabilities.
    #[must_use]
    #[track_caller]
    pub fn with(without: &[&str]) -> MirrorLab {
        let start = |name: &str, netns: &Netns, dirs: &Dirs, args: &[&str]| {
            Daemon::start_without(name, netns, dirs, args, without)
        };
        MirrorLab::started(Dirs::new(), Bpffs::new(), start, Daemon::start)
    }

    #[track_caller]
    fn started(
        dirs: Dirs,
        bpffs: Bpffs,
        mirrord: impl Fn(&str, &Netns, &Dirs, &[&str]) -> Daemon,
        ringd: StartDaemon,
    ) -> MirrorLab {
        let host = Netns::new();
        let [left, right, monitor] = [(); 3].map(|()| Netns::new());
        for (name, outside) in [("eth0", &left), ("eth1", &right), ("mon0", &monitor)] {
            Veth::pair((&host, name), (outside, WIRE), 1500);
        }
        host.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ]);
        for name in ["eth0", "eth1"] {
            host.ip(&["link", "set", name, "master", "br0"]);
        }
        host.ip(&["link", "set", "br0", "up"]);
        let path = bpffs.path().to_str().expect("a path of ASCII").to_owned();
        let args = ["--bpffs", path.as_str()];
        MirrorLab {
            mirrord: mirrord("mirrord", &host, &dirs, &args),
            ringd: ringd("ringd", &host, &dirs, &[]),
            host,
            left,
            right,
            monitor,
            dirs,
            bpffs,
        }
    }

    /// Starts another mirrord, with these arguments, in the place of the one that has ended.
    #[track_caller]
    pub fn start_mirrord(&mut self, args: &[&str], start: StartDaemon) {
        let path = self
            .bpffs
            .path()
            .to_str()
            .expect("a path of ASCII")
            .to_owned();
        let args = [&["--bpffs", path.as_str()], args].concat();
        self.mirrord = start("mirrord", &self.host, &self.dirs, &args);
    }

    /// Runs `tc` in the host; panics when it fails.
    #[track_caller]
    pub fn tc(&self, args: &[&str]) {
        crate::netns::must_run(self.host.command("tc").args(args));
    }

    /// Makes a mirror and waits until it runs.
    #[track_caller]
    pub fn mirror(&self, name: &str, spec: MirrorSpec) {
        self.create(name, spec).expect("the mirror is made");
        self.wait_state(name, State::Running);
    }

    /// Asks for a mirror.
    pub fn create(&self, name: &str, spec: MirrorSpec) -> Result<Mirror, Box<Status>> {
        let request = CreateMirrorRequest {
            name: name.to_owned(),
            spec: Some(spec),
            validate_only: false,
        };
        let answer = self.mirrord.rpc(async |channel| {
            MirrorServiceClient::new(channel)
                .create_mirror(request)
                .await
        });
        let answer = answer.expect("mirrord answers")?;
        Ok(answer.into_inner().mirror.expect("a mirror"))
    }

    /// Changes a mirror.
    pub fn update(
        &self,
        name: &str,
        spec: MirrorSpec,
        paths: &[&str],
    ) -> Result<Mirror, Box<Status>> {
        let request = UpdateMirrorRequest {
            name: name.to_owned(),
            spec: Some(spec),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            }),
            validate_only: false,
        };
        let answer = self.mirrord.rpc(async |channel| {
            MirrorServiceClient::new(channel)
                .update_mirror(request)
                .await
        });
        let answer = answer.expect("mirrord answers")?;
        Ok(answer.into_inner().mirror.expect("a mirror"))
    }

    /// Deletes a mirror.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        let request = DeleteMirrorRequest {
            name: name.to_owned(),
        };
        let answer = self.mirrord.rpc(async |channel| {
            MirrorServiceClient::new(channel)
                .delete_mirror(request)
                .await
        });
        answer
            .expect("mirrord answers")
            .expect("the mirror is deleted");
    }

    /// What a mirror says of itself; `None` when there is none, or no mirrord.
    #[must_use]
    pub fn try_status(&self, name: &str) -> Option<MirrorStatus> {
        let request = GetMirrorRequest {
            name: name.to_owned(),
        };
        let answer = self
            .mirrord
            .rpc(async |channel| MirrorServiceClient::new(channel).get_mirror(request).await);
        answer?.ok()?.into_inner().mirror?.status
    }

    /// What a mirror says of itself.
    #[must_use]
    #[track_caller]
    pub fn status(&self, name: &str) -> MirrorStatus {
        self.try_status(name).expect("the mirror is there")
    }

    /// Waits for a state.
    #[track_caller]
    pub fn wait_state(&self, name: &str, state: State) {
        let mut last = None;
        let started = std::time::Instant::now();
        while started.elapsed() < PATIENCE {
            last = self.try_status(name);
            if last.as_ref().is_some_and(|s| s.state() == state) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the mirror is not {state:?}: {last:#?}");
    }

    /// Waits until a status is as wanted, and returns it.
    #[track_caller]
    pub fn wait_status(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&MirrorStatus) -> bool,
    ) -> MirrorStatus {
        let mut last = MirrorStatus::default();
        let started = std::time::Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.try_status(name) {
                if wanted(&status) {
                    return status;
                }
                last = status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{what}: not so after {PATIENCE:?}: {last:#?}");
    }

    /// Sends frames from the left to the right and checks that all of them arrive there; nothing else counts as production.
    #[track_caller]
    pub fn produce(&self, generator: &Generator) -> Sent {
        let sink = Sink::start(&self.right, WIRE);
        let sent = generator.send(&self.left, WIRE);
        assert_eq!(
            sent.frames,
            sent.on_wire(),
            "the test's own wire lost frames"
        );
        wait_until(PATIENCE, "production traffic arrives", || {
            sink.frames() >= sent.frames
        });
        let report = sink.stop();
        assert_eq!(report.kernel_drops, 0);
        for stream in report.streams.values() {
            stream.assert_complete(&sent);
        }
        sent
    }

    /// Gives `mon0` addresses, and makes a collector beyond it that takes VXLAN apart: devices `vx4` and `vx6` in `monitor`.
    #[track_caller]
    pub fn add_collector(&self) {
        for netns in [&self.host, &self.monitor] {
            for scope in ["all", "default", "mon0", "wire"] {
                let key = format!("net/ipv6/conf/{scope}/disable_ipv6");
                if netns.run(|| Path::new("/proc/sys").join(&key).exists()) {
                    netns.sysctl(&key, "0");
                }
            }
        }
        let theirs = ["192.0.2.2/24", "2001:db8::2/64"];
        for (address, theirs) in OURS.iter().zip(theirs) {
            let add = ["addr", "add"];
            self.host
                .ip(&[&add[..], &[address, "dev", "mon0", "nodad"]].concat());
            self.monitor
                .ip(&[&add[..], &[theirs, "dev", "wire", "nodad"]].concat());
        }
        let devices = [
            ("vx4", COLLECTOR[0], "192.0.2.1", "4789"),
            ("vx6", COLLECTOR[1], "2001:db8::1", "4790"),
        ];
        for (name, local, remote, port) in devices {
            self.monitor.ip(&[
                "link", "add", name, "type", "vxlan", "id", "77", "local", local, "remote", remote,
                "dstport", port,
            ]);
            self.monitor
                .sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
            self.monitor.ip(&["link", "set", name, "mtu", "9000", "up"]);
        }
    }

    /// Panics unless all frames that were sent have come to `production` and, copied by the mirror, to `copies`, each once, and the
    /// mirror says the same.
    #[track_caller]
    pub fn assert_all_copied(
        &self,
        mirror: &str,
        production: Sink,
        copies: Sink,
        sent: &Sent,
    ) -> MirrorStatus {
        production.wait_frames(sent.frames, PATIENCE);
        copies.wait_quiet(QUIET);
        production.stop().assert_exactly(1, sent);
        copies.stop().assert_exactly(1, sent);
        let status = self.status(mirror);
        assert_eq!(
            (status.seen_frames, status.mirrored_frames),
            (sent.frames, sent.frames)
        );
        assert_closes(&status);
        status
    }

    /// A sink for copies.
    #[must_use]
    #[track_caller]
    pub fn copies(&self) -> Sink {
        Sink::start(&self.monitor, WIRE)
    }
}

impl Default for MirrorLab {
    fn default() -> Self {
        MirrorLab::new()
    }
}

/// A spec that copies what `interface` receives and sends to a device.
#[must_use]
pub fn to_device(interface: &str, device: &str) -> MirrorSpec {
    MirrorSpec {
        interface: interface.to_owned(),
        devices: vec![MirrorDevice {
            name: device.to_owned(),
            vlan_push: None,
        }],
        ..MirrorSpec::default()
    }
}

/// A spec that copies what arrives at `eth0` to one of [`COLLECTOR`]'s addresses, see [`MirrorLab::add_collector`].
#[must_use]
pub fn to_collector(remote: &str) -> MirrorSpec {
    let v6 = remote.contains(':');
    MirrorSpec {
        interface: "eth0".to_owned(),
        direction: Direction::In.into(),
        overlay: Some(MirrorOverlay {
            kind: TunnelKind::Vxlan.into(),
            remote: remote.to_owned(),
            id: Some(77),
            port: if v6 { 4790 } else { 0 },
            ..MirrorOverlay::default()
        }),
        ..MirrorSpec::default()
    }
}

/// A spec that copies what `interface` receives and sends into a ring.
#[must_use]
pub fn to_ring(interface: &str, ring: &str) -> MirrorSpec {
    MirrorSpec {
        interface: interface.to_owned(),
        ring: ring.to_owned(),
        ..MirrorSpec::default()
    }
}

/// Panics unless each frame is counted once: seen + copied = mirrored + not selected + sampled out + rate limited + dropped.
#[track_caller]
pub fn assert_closes(status: &MirrorStatus) {
    let dropped: u64 = status.dropped_frames.values().sum();
    assert_eq!(
        status.seen_frames + status.copied_frames,
        status.mirrored_frames
            + status.not_selected_frames
            + status.sampled_out_frames
            + status.rate_limited_frames
            + dropped,
        "{status:#?}"
    );
}
