//! `fluxctl status`: all daemons at a glance.

use crate::connect::{Globals, JOIN_GROUP, block_on, is_there};
use crate::exit::{Code, Failure};
use crate::json;
use crate::names;
use crate::output::{Block, Report, print};
use crate::resource::{self, Kind};
use clap::Args;
use fluxcap_proto::v1::daemon_service_client::DaemonServiceClient;
use fluxcap_proto::v1::{Capture, Daemon, GetDaemonRequest, Mirror, Ring, State, Transmit, Tunnel};
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const DAEMONS: [&str; 5] = ["ringd", "rxd", "txd", "tunneld", "mirrord"];

/// `fluxctl status`: exits 0 when every daemon that is started serves and nothing has failed; a daemon that was not
/// started is no failure as long as another one runs.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {}

/// Runs the command.
pub(crate) fn run(globals: &Globals, _args: &StatusArgs) -> Result<(), Failure> {
    let status = block_on(async {
        let (ringd, rxd, txd, tunneld, mirrord) = tokio::join!(
            ask(globals, DAEMONS[0]),
            ask(globals, DAEMONS[1]),
            ask(globals, DAEMONS[2]),
            ask(globals, DAEMONS[3]),
            ask(globals, DAEMONS[4])
        );
        Ok(Status {
            daemons: vec![ringd, rxd, txd, tunneld, mirrord],
        })
    })?;
    print(globals.output, &status)?;
    status.verdict()
}

/// What `status` shows.
#[derive(Debug, Serialize)]
struct Status {
    daemons: Vec<DaemonStatus>,
}

/// One daemon.
#[derive(Debug, Default, Serialize)]
struct DaemonStatus {
    name: String,
    socket: String,
    /// Whether there is a socket at all.
    started: bool,
    /// serving, not_serving, unreachable or stopped.
    health: &'static str,
    /// Why it cannot be reached.
    error: Option<String>,
    version: String,
    pid: u32,
    uptime_seconds: u64,
    running: u32,
    waiting: u32,
    failed: u32,
    notices: Vec<String>,
    resources: Vec<Resource>,
    #[serde(skip)]
    code: Option<Code>,
}

/// A ring, a capture, a transmit, a tunnel or a mirror.
#[derive(Debug, Serialize)]
struct Resource {
    kind: &'static str,
    name: String,
    state: &'static str,
    reason: String,
}

impl Resource {
    fn new(kind: &'static str, name: &str, status: Option<(State, &str)>) -> Resource {
        let (state, reason) = status.unwrap_or_default();
        Resource {
            kind,
            name: name.to_owned(),
            state: names::state(state.into()),
            reason: reason.to_owned(),
        }
    }
}

async fn ask(globals: &Globals, name: &'static str) -> DaemonStatus {
    let socket = globals.socket(name);
    let mut status = DaemonStatus {
        name: name.to_owned(),
        socket: socket.display().to_string(),
        started: is_there(&socket),
        health: "stopped",
        ..DaemonStatus::default()
    };
    if let Err(failure) = fill(globals, name, &mut status).await {
        if status.started {
            status.health = "unreachable";
            status.code = Some(failure.code);
        }
        status.error = Some(failure.message);
    }
    status
}

async fn fill(globals: &Globals, name: &str, status: &mut DaemonStatus) -> Result<(), Failure> {
    let channel = globals.connect(name).await?;
    let reply = DaemonServiceClient::new(channel.clone())
        .get_daemon(GetDaemonRequest {})
        .await;
    let daemon = reply
        .map_err(|error| Failure::from_status(name, &error))?
        .into_inner()
        .daemon
        .unwrap_or_default();
    status.health = health(channel.clone()).await?;
    describe(status, daemon);
    status.resources = resources(name, channel).await?;
    Ok(())
}

fn describe(status: &mut DaemonStatus, daemon: Daemon) {
    let started = UNIX_EPOCH + Duration::from_nanos(daemon.started_ns);
    status.version = daemon.version;
    status.pid = daemon.pid;
    status.uptime_seconds = SystemTime::now()
        .duration_since(started)
        .map_or(0, |uptime| uptime.as_secs());
    status.running = daemon.running;
    status.waiting = daemon.waiting;
    status.failed = daemon.failed;
    status.notices = daemon.notices;
}

async fn health(channel: Channel) -> Result<&'static str, Failure> {
    let reply = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    let reply = reply
        .map_err(|error| Failure::from_status("health", &error))?
        .into_inner();
    Ok(if reply.status() == ServingStatus::Serving {
        "serving"
    } else {
        "not_serving"
    })
}

async fn resources(daemon: &str, channel: Channel) -> Result<Vec<Resource>, Failure> {
    match daemon {
        "ringd" => all::<Ring>(channel).await,
        "rxd" => all::<Capture>(channel).await,
        "tunneld" => all::<Tunnel>(channel).await,
        "mirrord" => all::<Mirror>(channel).await,
        _ => all::<Transmit>(channel).await,
    }
}

async fn all<K: Kind>(channel: Channel) -> Result<Vec<Resource>, Failure> {
    let all = resource::all::<K>(&mut K::client(channel)).await?;
    let all = all.iter();
    Ok(all
        .map(|it| Resource::new(K::NOUN, it.name(), it.state()))
        .collect())
}

impl Status {
    /// How the command ends, worst first.
    fn verdict(&self) -> Result<(), Failure> {
        let ill = self.daemons.iter().find_map(|daemon| {
            let code = daemon.code?;
            let hint = match code {
                Code::Denied => JOIN_GROUP.to_owned(),
                _ => restart_hint(&daemon.name),
            };
            Some(Failure::new(code, daemon.error.clone().unwrap_or_default()).hint(hint))
        });
        if let Some(failure) = ill {
            return Err(failure);
        }
        if !self.daemons.iter().any(|daemon| daemon.started) {
            let failure = Failure::new(Code::Unreachable, "no daemon is running");
            return Err(failure.hint("systemctl start fluxcap.target, or give --run-dir"));
        }
        if let Some(daemon) = self
            .daemons
            .iter()
            .find(|daemon| daemon.health == "not_serving")
        {
            return Err(Failure::new(
                Code::Failed,
                format!("{} says that it does not serve", daemon.name),
            ));
        }
        let failed = self
            .daemons
            .iter()
            .flat_map(|daemon| &daemon.resources)
            .find(|it| it.state == names::state(State::Failed.into()));
        match failed {
            Some(it) => Err(Failure::new(
                Code::Failed,
                format!("{} {} has failed: {}", it.kind, it.name, it.reason),
            )),
            None => Ok(()),
        }
    }
}

fn restart_hint(daemon: &str) -> String {
    format!("look at it: systemctl status fluxcap-{daemon}; journalctl -u fluxcap-{daemon}")
}

impl Report for Status {
    fn json(&self) -> Value {
        json::value(self)
    }

    fn blocks(&self) -> Vec<Block> {
        let header = &[
            "DAEMON", "HEALTH", "VERSION", ">PID", "UP", ">RUNNING", ">WAITING", ">FAILED",
            "SOCKET",
        ];
        let mut blocks = vec![Block::Rows(
            header,
            self.daemons.iter().map(daemon_row).collect(),
        )];
        let resources: Vec<Vec<String>> = self
            .daemons
            .iter()
            .flat_map(|daemon| &daemon.resources)
            .map(resource_row)
            .collect();
        if !resources.is_empty() {
            blocks.push(Block::Rows(&["KIND", "NAME", "STATE", "REASON"], resources));
        }
        for daemon in &self.daemons {
            blocks.extend(
                daemon
                    .notices
                    .iter()
                    .map(|notice| Block::Line(format!("{}: {notice}", daemon.name))),
            );
        }
        blocks
    }
}

fn daemon_row(daemon: &DaemonStatus) -> Vec<String> {
    let known = !daemon.version.is_empty();
    let number = |value: u32| {
        if known {
            value.to_string()
        } else {
            "-".to_owned()
        }
    };
    vec![
        daemon.name.clone(),
        daemon.health.replace('_', " "),
        if known {
            daemon.version.clone()
        } else {
            "-".to_owned()
        },
        number(daemon.pid),
        match known {
            true => {
                humantime::format_duration(Duration::from_secs(daemon.uptime_seconds)).to_string()
            }
            false => "-".to_owned(),
        },
        number(daemon.running),
        number(daemon.waiting),
        number(daemon.failed),
        daemon.socket.clone(),
    ]
}

fn resource_row(resource: &Resource) -> Vec<String> {
    vec![
        resource.kind.to_owned(),
        resource.name.clone(),
        resource.state.to_owned(),
        resource.reason.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{assert_shows, render};

    fn serving(name: &str) -> DaemonStatus {
        DaemonStatus {
            name: name.to_owned(),
            started: true,
            health: "serving",
            version: "0.1.0".into(),
            uptime_seconds: 90,
            ..Default::default()
        }
    }

    fn stopped(name: &str) -> DaemonStatus {
        DaemonStatus {
            name: name.to_owned(),
            health: "stopped",
            ..Default::default()
        }
    }

    fn code(daemons: Vec<DaemonStatus>) -> Option<Code> {
        Status { daemons }
            .verdict()
            .err()
            .map(|failure| failure.code)
    }

    #[test]
    fn a_daemon_that_was_not_started_is_no_failure() {
        assert_eq!(
            code(vec![serving("ringd"), serving("rxd"), stopped("txd")]),
            None
        );
    }

    #[test]
    fn no_daemon_at_all_is_unreachable() {
        assert_eq!(
            code(vec![stopped("ringd"), stopped("rxd"), stopped("txd")]),
            Some(Code::Unreachable)
        );
    }

    #[test]
    fn a_dead_daemon_behind_a_socket_is_unreachable() {
        let dead = DaemonStatus {
            code: Some(Code::Unreachable),
            health: "unreachable",
            started: true,
            ..stopped("rxd")
        };
        assert_eq!(code(vec![serving("ringd"), dead]), Some(Code::Unreachable));
    }

    #[test]
    fn a_socket_that_may_not_be_used_is_no_matter_for_systemd() {
        let denied = DaemonStatus {
            code: Some(Code::Denied),
            health: "unreachable",
            started: true,
            ..stopped("rxd")
        };
        let status = Status {
            daemons: vec![denied],
        };
        let hint = status.verdict().map_err(|failure| failure.hint);
        assert_eq!(hint, Err(JOIN_GROUP.to_owned()));
    }

    #[test]
    fn a_failed_resource_is_a_failure_with_its_reason() {
        let resource = Resource::new("capture", "a", Some((State::Failed, "no")));
        let status = Status {
            daemons: vec![DaemonStatus {
                resources: vec![resource],
                ..serving("rxd")
            }],
        };
        assert_eq!(
            status.verdict(),
            Err(Failure::new(Code::Failed, "capture a has failed: no"))
        );
    }

    #[test]
    fn notices_and_reasons_are_shown() {
        let resource = Resource::new("capture", "a", Some((State::Waiting, "no interface eth9")));
        let notices = vec!["rings are on tmpfs".to_owned()];
        let status = Status {
            daemons: vec![
                DaemonStatus {
                    resources: vec![resource],
                    notices,
                    ..serving("rxd")
                },
                stopped("txd"),
            ],
        };
        let text = render(&status.blocks());
        assert_shows(
            &text,
            &[
                "serving",
                "1m 30s",
                "waiting",
                "no interface eth9",
                "rxd: rings are on tmpfs",
                "stopped",
            ],
        );
    }
}
