//! mirrord alone, with a folder of its own in a bpffs, spoken to by gRPC.

use std::time::Duration;

use fluxcap_proto::v1::mirror_service_client::MirrorServiceClient;
use fluxcap_proto::v1::{
    CreateMirrorRequest, DeleteMirrorRequest, GetMirrorRequest, MirrorSpec, MirrorStatus, State,
    UpdateMirrorRequest,
};
use tonic::Code;

use crate::daemon::{Daemon, Dirs};
use crate::mirror::Bpffs;
use crate::netns::Netns;
use crate::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running mirrord. What is pinned goes with it.
#[derive(Debug)]
pub struct Mirrord {
    /// The daemon.
    pub daemon: Daemon,
    /// Its folder.
    pub bpffs: Bpffs,
}

/// Why a request was refused.
pub type Refusal = (Code, String);

impl Mirrord {
    /// Starts it inside `netns`.
    #[must_use]
    #[track_caller]
    pub fn start(netns: &Netns, dirs: &Dirs) -> Mirrord {
        Mirrord::start_without(netns, dirs, &[])
    }

    /// The same without these capabilities.
    #[must_use]
    #[track_caller]
    pub fn start_without(netns: &Netns, dirs: &Dirs, capabilities: &[&str]) -> Mirrord {
        let bpffs = Bpffs::new();
        let args = ["--bpffs", &bpffs.path().to_string_lossy()];
        let daemon = Daemon::start_without("mirrord", netns, dirs, &args, capabilities);
        Mirrord { daemon, bpffs }
    }

    /// Makes a mirror.
    ///
    /// # Errors
    /// What mirrord says.
    #[track_caller]
    pub fn create(&self, name: &str, spec: &MirrorSpec) -> Result<(), Refusal> {
        let request = CreateMirrorRequest {
            name: name.to_owned(),
            spec: Some(spec.clone()),
            validate_only: false,
        };
        self.call(async |mut client| client.create_mirror(request).await.map(drop))
    }

    /// Gives a mirror another spec, all of it.
    ///
    /// # Errors
    /// What mirrord says.
    #[track_caller]
    pub fn update(&self, name: &str, spec: &MirrorSpec) -> Result<(), Refusal> {
        let request = UpdateMirrorRequest {
            name: name.to_owned(),
            spec: Some(spec.clone()),
            ..UpdateMirrorRequest::default()
        };
        self.call(async |mut client| client.update_mirror(request).await.map(drop))
    }

    /// Ends a mirror.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        let deleted = self.try_delete(name);
        deleted.unwrap_or_else(|error| panic!("cannot delete {name}: {error:?}"));
    }

    /// Ends a mirror, if there is such a one.
    ///
    /// # Errors
    /// What mirrord says.
    #[track_caller]
    pub fn try_delete(&self, name: &str) -> Result<(), Refusal> {
        let request = DeleteMirrorRequest {
            name: name.to_owned(),
        };
        self.call(async |mut client| client.delete_mirror(request).await.map(drop))
    }

    /// What a mirror tells of itself.
    ///
    /// # Panics
    /// When there is no such mirror.
    #[must_use]
    #[track_caller]
    pub fn status(&self, name: &str) -> MirrorStatus {
        let request = GetMirrorRequest {
            name: name.to_owned(),
        };
        let mirror = self.call(async |mut client| {
            let reply = client.get_mirror(request).await?;
            Ok(reply.into_inner().mirror.and_then(|mirror| mirror.status))
        });
        match mirror {
            Ok(Some(status)) => status,
            other => panic!("no status of {name}: {other:?}"),
        }
    }

    /// Makes a mirror and waits until it runs.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn run(&self, name: &str, spec: &MirrorSpec) {
        if let Err(error) = self.create(name, spec) {
            panic!("cannot create {name}: {error:?}");
        }
        self.wait_state(name, State::Running);
    }

    /// Waits until a mirror is in this state.
    #[track_caller]
    pub fn wait_state(&self, name: &str, state: State) {
        let mut last = MirrorStatus::default();
        let what = format!("{name} is {state:?}");
        wait_until(PATIENCE, &what, || {
            last = self.status(name);
            last.state() == state
        });
    }

    #[track_caller]
    fn call<T>(
        &self,
        call: impl AsyncFnOnce(
            MirrorServiceClient<tonic::transport::Channel>,
        ) -> Result<T, tonic::Status>,
    ) -> Result<T, Refusal> {
        let reply = self
            .daemon
            .rpc(async |channel| call(MirrorServiceClient::new(channel)).await);
        reply
            .expect("mirrord answers")
            .map_err(|status| (status.code(), status.message().to_owned()))
    }
}

/// Copies and frames of a mirror that are counted under no name; 0: the books close.
#[must_use]
pub fn unaccounted(status: &MirrorStatus) -> i128 {
    let counted: u64 = [
        status.mirrored_frames,
        status.not_selected_frames,
        status.sampled_out_frames,
        status.rate_limited_frames,
    ]
    .into_iter()
    .chain(status.dropped_frames.values().copied())
    .sum();
    i128::from(status.seen_frames) + i128::from(status.copied_frames) - i128::from(counted)
}
