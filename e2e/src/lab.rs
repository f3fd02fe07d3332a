//! A host with taps and outputs, its daemons, and the wires to the outside.

use std::time::Duration;

use fluxcap_proto::v1::capture_service_client::CaptureServiceClient;
use fluxcap_proto::v1::transmit_service_client::TransmitServiceClient;
use fluxcap_proto::v1::{ListCapturesRequest, ListTransmitsRequest, State};
use serde_json::Value;

use crate::ctl::{Fluxctl, Output};
use crate::daemon::{Daemon, Dirs};
use crate::generator::{Generator, Sending, Sent, send_frames};
use crate::link::Veth;
use crate::netns::Netns;
use crate::sink::{Sink, SinkOptions};
use crate::wait::wait_until;

/// Name of the outer end of every port, in a namespace of its own.
const WIRE: &str = "wire";

/// How a [`Lab`] is made.
#[derive(Clone, Copy, Debug)]
pub struct LabOptions<'a> {
    /// Interfaces `tap0`, `tap1`, ... of the host.
    pub taps: usize,
    /// Interfaces `out0`, `out1`, ... of the host.
    pub outputs: usize,
    /// MTU of all wires.
    pub mtu: u32,
    /// Arguments of ringd, besides the directories.
    pub ringd: &'a [&'a str],
    /// Arguments of rxd.
    pub rxd: &'a [&'a str],
    /// Arguments of txd.
    pub txd: &'a [&'a str],
    /// Capabilities that the daemons have to do without.
    pub without: &'a [&'a str],
}

impl Default for LabOptions<'_> {
    fn default() -> Self {
        LabOptions {
            taps: 1,
            outputs: 1,
            mtu: 1500,
            ringd: &[],
            rxd: &[],
            txd: &[],
            without: &[],
        }
    }
}

/// A host namespace with ringd, rxd and txd in it. Everything goes away on drop, the daemons first.
#[derive(Debug)]
pub struct Lab {
    /// The ring daemon.
    pub ringd: Daemon,
    /// The capture daemon.
    pub rxd: Daemon,
    /// The transmit daemon.
    pub txd: Daemon,
    /// Where frames come in: `tap0`, `tap1`, ...
    pub taps: Vec<Port>,
    /// Where frames go out: `out0`, `out1`, ...
    pub outputs: Vec<Port>,
    /// The namespace in which the daemons run.
    pub host: Netns,
    /// fluxctl for these daemons.
    pub fluxctl: Fluxctl,
    /// The daemons' directories.
    pub dirs: Dirs,
}

impl Lab {
    /// A host with this many taps and outputs of MTU 1500, its daemons running and idle.
    #[must_use]
    #[track_caller]
    pub fn new(taps: usize, outputs: usize) -> Lab {
        Lab::with(&LabOptions {
            taps,
            outputs,
            ..LabOptions::default()
        })
    }

    /// The same with options.
    #[must_use]
    #[track_caller]
    pub fn with(options: &LabOptions<'_>) -> Lab {
        let (host, dirs) = (Netns::new(), Dirs::new());
        let ports = |kind: &str, count: usize| {
            (0..count)
                .map(|n| Port::new(&host, &format!("{kind}{n}"), options.mtu))
                .collect()
        };
        let (taps, outputs) = (ports("tap", options.taps), ports("out", options.outputs));
        Lab {
            ringd: Daemon::start("ringd", &host, &dirs, options.ringd),
            rxd: Daemon::start_without("rxd", &host, &dirs, options.rxd, options.without),
            txd: Daemon::start_without("txd", &host, &dirs, options.txd, options.without),
            taps,
            outputs,
            fluxctl: Fluxctl::new(&dirs),
            host,
            dirs,
        }
    }

    /// Runs fluxctl; panics when it fails.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> Output {
        self.fluxctl.run(args)
    }

    /// Runs fluxctl with `-o json`; panics when it fails.
    #[must_use]
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.fluxctl.json(args)
    }

    /// Waits until every capture and every transmit is in state RUNNING.
    #[track_caller]
    pub fn wait_running(&self) {
        wait_until(
            Duration::from_secs(10),
            "all captures and transmits run",
            || {
                self.worker_states().is_some_and(|states| {
                    states.iter().all(|&state| state == State::Running as i32)
                })
            },
        );
    }

    /// States of all captures and transmits; None when a daemon does not answer.
    fn worker_states(&self) -> Option<Vec<i32>> {
        let captures = self
            .rxd
            .rpc(async |channel| {
                CaptureServiceClient::new(channel)
                    .list_captures(ListCapturesRequest::default())
                    .await
            })?
            .ok()?;
        let transmits = self
            .txd
            .rpc(async |channel| {
                TransmitServiceClient::new(channel)
                    .list_transmits(ListTransmitsRequest::default())
                    .await
            })?
            .ok()?;
        let captures = captures
            .into_inner()
            .captures
            .into_iter()
            .map(|capture| capture.status.map_or(0, |status| status.state));
        let transmits = transmits
            .into_inner()
            .transmits
            .into_iter()
            .map(|transmit| transmit.status.map_or(0, |status| status.state));
        Some(captures.chain(transmits).collect())
    }

    /// Asks `fluxctl audit` whether every frame is accounted for, again until it says so: frames may still be on their way.
    #[track_caller]
    pub fn audit(&self) {
        let mut last = None;
        let deadline = std::time::Instant::now() + Duration::from_secs(3);
        while std::time::Instant::now() < deadline {
            let output = self.fluxctl.try_run(&["audit"]);
            if output.code == 0 {
                return;
            }
            last = Some(output);
        }
        panic!("the audit finds frames that are not accounted for: {last:#?}");
    }
}

/// One interface of the host and the wire to its namespace outside.
#[derive(Debug)]
pub struct Port {
    /// Name of the interface in the host.
    pub name: String,
    /// The namespace at the other end of the wire.
    pub outside: Netns,
    mtu: u32,
}

impl Port {
    fn new(host: &Netns, name: &str, mtu: u32) -> Port {
        let port = Port {
            name: name.to_owned(),
            outside: Netns::new(),
            mtu,
        };
        port.plug(host);
        port
    }

    /// Makes the interface again after [`Port::unplug`], with another index and under its old name.
    #[track_caller]
    pub fn plug(&self, host: &Netns) {
        Veth::pair((host, &self.name), (&self.outside, WIRE), self.mtu);
    }

    /// Deletes the interface.
    #[track_caller]
    pub fn unplug(&self, host: &Netns) {
        Veth::delete(host, &self.name);
    }

    /// Name of the interface outside.
    #[must_use]
    pub fn wire(&self) -> &'static str {
        WIRE
    }

    /// Has the outer end take frames in a queue of its own (GRO), as live frames need it. Frames of TCP and UDP flows may be merged there.
    #[track_caller]
    pub fn queue(&self, on: bool) {
        Veth::gro(&self.outside, WIRE, on);
    }

    /// Sends a stream into the host and returns when it is out.
    #[track_caller]
    pub fn send(&self, generator: &Generator) -> Sent {
        generator.send(&self.outside, WIRE)
    }

    /// Sends a stream into the host in the background.
    #[must_use]
    #[track_caller]
    pub fn start(&self, generator: &Generator) -> Sending {
        generator.start(&self.outside, WIRE)
    }

    /// Sends these frames into the host, byte for byte.
    #[track_caller]
    pub fn send_frames(&self, frames: &[Vec<u8>]) {
        send_frames(&self.outside, WIRE, frames);
    }

    /// Judges what comes out of the host here.
    #[must_use]
    #[track_caller]
    pub fn sink(&self) -> Sink {
        Sink::start(&self.outside, WIRE)
    }

    /// The same, and keeps the first frames byte for byte.
    #[must_use]
    #[track_caller]
    pub fn sink_keeping(&self, frames: usize) -> Sink {
        Sink::with(
            &self.outside,
            WIRE,
            SinkOptions {
                keep: frames,
                ..SinkOptions::default()
            },
        )
    }
}
