//! The receive side of a tunnel: gets its sockets and its rings, runs the data path, waits for what is missing and resumes.

use crate::decap_path::{DecapPath, Rules};
use crate::job::{TunnelJob, TunnelWorker};
use crate::rings::Rings;
use crate::stats::Details;
use fluxcap_datapath::{DRAIN, Device, Placement, SHOW};
use fluxcap_headers::tunnel::{Decap, TunnelKind};
use fluxcap_options::{Network, compile_edits, decap_spec, parse_mac};
use fluxcap_proto::v1::{self, TunnelReceive, TunnelSpec};
use fluxcap_service::{State, format_size};
use fluxcap_socket::{
    Error, LinkWatch, NetCounters, Transport, TunnelOptions, TunnelReceiver, TunnelSocket, poll,
};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Memory of each socket for packets that wait, unless the spec says otherwise.
const BUFFER_BYTES: u32 = 32 << 20;
/// Longest sleep: rings that are retired while nothing comes are noticed within this time.
const TICK: Duration = Duration::from_millis(50);
/// Time between two attempts to open sockets.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two looks at the counters of the namespace.
const COUNT: Duration = Duration::from_secs(1);
/// Batches moved before other things have their turn.
const BATCHES: usize = 16;
/// Addresses of the Ethernet header that IP packets get: destination, source.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]];

/// Runs until the worker is told to stop.
pub(crate) fn run(job: &TunnelJob, worker: &TunnelWorker) {
    match Receiver::new(job, worker) {
        Ok(mut receiver) => receiver.run(),
        Err(reason) => worker.set_state(State::Failed, reason),
    }
}

/// A tunnel that receives.
struct Receiver<'w> {
    worker: &'w TunnelWorker,
    generation: u64,
    spec: TunnelSpec,
    wanted: Wanted,
    rings: Rings,
    path: DecapPath,
    placement: Placement,
    sockets: Option<Sockets>,
    /// Why there are none.
    missing: String,
    /// When they were tried last; not yet.
    tried: Option<Instant>,
    /// Tells of the interface that the spec names.
    links: Option<LinkWatch>,
    /// That interface.
    device: Device,
    counters: Counters,
    /// Packets when the status was shown last; `None` when something else has changed.
    shown: Option<u64>,
    looked: Instant,
}

/// The sockets that a spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    options: TunnelOptions,
    device: String,
}

/// Open sockets.
#[derive(Debug)]
struct Sockets {
    receiver: TunnelReceiver,
    /// Packets that came by each.
    packets: Vec<u64>,
}

/// Counters of the network namespace, and what they were when the tunnel began.
#[derive(Debug)]
struct Counters {
    before: Option<NetCounters>,
    now: NetCounters,
    read: Instant,
}

/// What [`Receiver::turn`] did.
#[derive(Debug, Default, Clone, Copy)]
struct Turn {
    /// Something had come.
    moved: bool,
    /// There is more at hand than one turn deals with.
    more: bool,
}

impl<'w> Receiver<'w> {
    fn new(job: &'w TunnelJob, worker: &'w TunnelWorker) -> Result<Receiver<'w>, String> {
        let (generation, spec) = worker.current();
        let names = ring_names(&spec);
        let edits = compile_edits(&spec.edits.clone().unwrap_or_default());
        let edits = edits.map_err(|error| error.to_string())?;
        let mut receiver = Receiver {
            worker,
            generation,
            wanted: wanted(&spec)?,
            path: DecapPath::new(worker.name(), rules(&spec, &names)?, edits, names.len()),
            rings: Rings::new(&job.rings, worker.name(), &names),
            placement: Placement::new(spec.latency(), spec.scheduling.as_ref()),
            sockets: None,
            missing: String::new(),
            tried: None,
            links: None,
            device: Device::default(),
            counters: Counters::new(),
            shown: None,
            looked: Instant::now(),
            spec: TunnelSpec::clone(&spec),
        };
        receiver.watch_device();
        Ok(receiver)
    }

    /// Receives until told to stop.
    fn run(&mut self) {
        while !self.worker.stop_requested() {
            if self.worker.generation() != self.generation
                && let Err(reason) = self.take_spec()
            {
                self.rings.close();
                return self.worker.set_state(State::Failed, reason);
            }
            self.rings.follow();
            self.open();
            self.show();
            if !self.turn().more {
                self.wait();
            }
        }
        self.finish();
    }

    /// A changed spec: rules, edits, rings and scheduling are taken over on the fly; sockets only if they are to be others.
    fn take_spec(&mut self) -> Result<(), String> {
        let (generation, spec) = self.worker.current();
        self.generation = generation;
        let names = ring_names(&spec);
        let edits = compile_edits(&spec.edits.clone().unwrap_or_default());
        let edits = edits.map_err(|error| error.to_string())?;
        let rules = rules(&spec, &names)?;
        let wanted = wanted(&spec)?;
        self.rings.set_names(&names);
        self.path.set(rules, edits, names.len());
        self.placement
            .apply(spec.latency(), spec.scheduling.as_ref());
        self.spec = TunnelSpec::clone(&spec);
        if wanted != self.wanted {
            self.wanted = wanted;
            self.close();
            self.watch_device();
        }
        self.shown = None;
        Ok(())
    }

    /// Opens the sockets if there are none and it is time to.
    fn open(&mut self) {
        let due = self.tried.is_none_or(|tried| tried.elapsed() >= RETRY);
        if self.sockets.is_some() || !due {
            return;
        }
        self.tried = Some(Instant::now());
        let opened = self.find_device().and_then(|device| {
            let options = TunnelOptions {
                device,
                ..self.wanted.options.clone()
            };
            TunnelReceiver::open(&options).map_err(|error| self.advice(&error))
        });
        let missing = match opened {
            Ok(mut receiver) => {
                tracing::info!(tunnel = self.worker.name(), "receiving");
                self.sockets = Some(Sockets {
                    packets: vec![0; receiver.sockets().count()],
                    receiver,
                });
                String::new()
            }
            Err(reason) => reason,
        };
        if missing != self.missing || self.sockets.is_some() {
            (self.missing, self.shown) = (missing, None);
        }
    }

    /// The interface that the spec names, if it does.
    fn find_device(&mut self) -> Result<Option<u32>, String> {
        let name = &self.wanted.device;
        if name.is_empty() {
            return Ok(None);
        }
        let Some(links) = &mut self.links else {
            return Err("cannot watch interfaces".to_owned());
        };
        match self.device.look(name, links) {
            Ok(Some(link)) => {
                self.wanted.options.device = Some(link.index);
                Ok(Some(link.index))
            }
            Ok(None) => Err(format!("interface {name} does not exist")),
            Err(error) => Err(with_source(&error)),
        }
    }

    fn watch_device(&mut self) {
        self.links = None;
        if !self.wanted.device.is_empty() {
            self.links = LinkWatch::open()
                .inspect_err(|error| tracing::warn!(tunnel = self.worker.name(), %error, "cannot watch interfaces"))
                .ok();
        }
    }

    /// An interface came, went or changed: sockets of one that is gone hear nothing any more.
    fn take_news(&mut self) {
        let Some(links) = &mut self.links else { return };
        if let Err(error) = links.drain(|_| {}) {
            tracing::warn!(tunnel = self.worker.name(), %error, "cannot watch interfaces");
        }
        let found = self.device.look(&self.wanted.device, links).ok().flatten();
        if found.map(|link| link.index) != self.wanted.options.device || self.sockets.is_none() {
            self.close();
        }
    }

    /// Closes the sockets, having read what is in them, and tries to open others at once.
    fn close(&mut self) {
        self.drain();
        (self.sockets, self.tried, self.shown) = (None, None, None);
        self.wanted.options.device = None;
    }

    /// Moves what has come.
    fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        let Some(sockets) = &mut self.sockets else {
            return turn;
        };
        let (worker, live) = (self.worker, &self.worker.live().receive);
        for _ in 0..BATCHES {
            let stop = || worker.stop_requested();
            match self
                .path
                .pump(&mut sockets.receiver, &mut self.rings, live, stop)
            {
                Ok(pumped) => {
                    if let Some(count) = sockets.packets.get_mut(pumped.socket) {
                        *count += pumped.packets;
                    }
                    turn.moved |= pumped.packets > 0;
                    if !pumped.more {
                        return turn;
                    }
                }
                Err(error) => {
                    tracing::warn!(tunnel = worker.name(), %error, "opening the sockets again");
                    self.sockets = None;
                    return turn;
                }
            }
        }
        turn.more = true;
        turn
    }

    /// Sleeps until something has come, an interface has changed, somebody wants something, or the tick is over. With low latency
    /// looks for packets a while before that.
    fn wait(&mut self) {
        let end = Instant::now() + self.placement.spin();
        while Instant::now() < end {
            if self.turn().moved {
                return;
            }
            std::hint::spin_loop();
        }
        let wake = self.worker.wake_fd();
        let links = self.links.as_ref().map_or(wake, LinkWatch::as_fd);
        let sockets = self.sockets.as_ref().map_or(wake, |s| s.receiver.as_fd());
        match poll(&[wake, links, sockets], TICK) {
            Ok(ready) if self.links.is_some() && (ready.readable(1) || ready.failed(1)) => {
                self.take_news();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(tunnel = self.worker.name(), %error, "poll");
                std::thread::sleep(TICK); // rather than spin on an error that stays
            }
        }
    }

    /// Takes in what the sockets still hold, bounded in time.
    fn drain(&mut self) {
        let end = Instant::now() + DRAIN;
        while self.turn().moved && Instant::now() < end {}
    }

    /// The end: what the kernel still holds goes into the rings, bounded in time.
    fn finish(&mut self) {
        self.drain();
        self.shown = None;
        self.show();
        self.rings.close();
    }

    /// Shows what has changed, a few times a second.
    fn show(&mut self) {
        let packets = self.worker.live().receive.packets.get();
        let changed = self.rings.take_changed() || self.shown.is_none();
        let counted = self.counters.look();
        let moved = self.shown != Some(packets) && self.looked.elapsed() >= SHOW;
        if !changed && !moved && !counted {
            return;
        }
        (self.shown, self.looked) = (Some(packets), Instant::now());
        let status = self.status();
        self.worker.live().set_details(Details::Receive(status));
        let rings = self.rings.reason();
        let state = if self.missing.is_empty() && rings.is_empty() {
            State::Running
        } else {
            State::Waiting
        };
        let remarks = [&self.missing, &rings, self.placement.remark()];
        let reasons = remarks.into_iter().filter(|text| !text.is_empty());
        let reasons: Vec<&str> = reasons.collect();
        self.worker.set_state(state, reasons.join("; "));
    }

    fn status(&mut self) -> v1::TunnelReceiveStatus {
        let since = self.counters.since();
        let mut status = v1::TunnelReceiveStatus {
            udp_checksum_errors: since.udp_checksum + since.udp6_checksum,
            reassembly_failures: since.reassembly + since.reassembly6,
            rings: self.rings.statuses(),
            device_changes: self.device.changes(),
            ..Default::default()
        };
        if let Some(sockets) = &mut self.sockets {
            let all = sockets.receiver.sockets().zip(&sockets.packets);
            let wanted = self.wanted.options.buffer_bytes;
            let statuses = all.map(|(socket, packets)| {
                socket_status(&socket, *packets, wanted, &self.wanted.options.transport)
            });
            status.sockets = statuses.collect();
        }
        let dropped = status.sockets.iter().map(|it| it.kernel_dropped_packets);
        status.kernel_dropped_packets = dropped.sum();
        self.path.senders.show(&mut status);
        self.path.unknown.show(&mut status);
        status
    }

    /// What keeps the sockets from being opened, and what to do about it.
    fn advice(&self, error: &Error) -> String {
        match error {
            Error::PortInUse { port } => format!(
                "{error}; stop that, receive on another --dport, or on another address with --local (ss -lunp 'sport = {port}' \
                 and ip -d link tell who has it)"
            ),
            Error::NoAddress { .. } => format!("{error}; add it, or leave --local out"),
            other => with_source(other),
        }
    }
}

impl Counters {
    fn new() -> Counters {
        let before = NetCounters::read().ok();
        Counters {
            before,
            now: before.unwrap_or_default(),
            read: Instant::now(),
        }
    }

    /// Reads them when it is time to; whether they have changed.
    fn look(&mut self) -> bool {
        if self.read.elapsed() < COUNT {
            return false;
        }
        self.read = Instant::now();
        let last = self.now;
        self.now = NetCounters::read().unwrap_or(last);
        self.now != last
    }

    fn since(&self) -> NetCounters {
        self.now.since(&self.before.unwrap_or(self.now))
    }
}

fn receiving(spec: &TunnelSpec) -> TunnelReceive {
    spec.receive.clone().unwrap_or_default()
}

/// The rings that a spec names, each once.
fn ring_names(spec: &TunnelSpec) -> Vec<String> {
    let receive = receiving(spec);
    let mut names: Vec<String> = receive.map.into_iter().map(|it| it.ring).collect();
    names.extend(Some(receive.default_ring).filter(|ring| !ring.is_empty()));
    names.sort_unstable();
    names.dedup();
    names
}

/// What a spec says is to be received, into rings of these names, which are sorted.
fn rules(spec: &TunnelSpec, names: &[String]) -> Result<Rules, String> {
    let receive = receiving(spec);
    let place = |ring: &String| names.binary_search(ring).ok();
    let mapped = receive.map.iter();
    let mut ids: Vec<_> = mapped
        .filter_map(|mapping| Some((mapping.id, place(&mapping.ring)?)))
        .collect();
    ids.sort_unstable();
    let from: Result<Vec<Network>, _> = receive.from.iter().map(|text| text.parse()).collect();
    let macs = [
        parse_mac(&receive.mac_destination).unwrap_or(MACS[0]),
        parse_mac(&receive.mac_source).unwrap_or(MACS[1]),
    ];
    let decap = decap_spec(spec).map_err(|error| error.to_string())?;
    Ok(Rules {
        decap: Decap::new(decap).map_err(|error| error.to_string())?,
        from: from.map_err(|error| error.to_string())?,
        in_order: spec.sequence,
        ids,
        default: place(&receive.default_ring),
        macs: macs.concat().try_into().unwrap_or_default(),
    })
}

/// The sockets that a spec asks for.
fn wanted(spec: &TunnelSpec) -> Result<Wanted, String> {
    let receive = receiving(spec);
    let kind = decap_spec(spec).map_err(|error| error.to_string())?.kind;
    Ok(Wanted {
        options: TunnelOptions {
            transport: transport(spec, kind, &receive)?,
            local: spec.local.parse().ok(),
            device: None,
            buffer_bytes: match u32::try_from(receive.buffer_bytes) {
                Ok(0) => BUFFER_BYTES,
                Ok(bytes) => bytes,
                Err(_) => u32::MAX,
            },
            gro: true,
        },
        device: spec.device.clone(),
    })
}

fn transport(
    spec: &TunnelSpec,
    kind: TunnelKind,
    receive: &TunnelReceive,
) -> Result<Transport, String> {
    if !kind.is_udp() {
        return Ok(Transport::Ip(kind.ip_protocols().to_vec()));
    }
    let given = u16::try_from(spec.port).ok().filter(|port| *port != 0);
    let port = given.or(kind.default_port()).ok_or("port: is missing")?;
    Ok(Transport::Udp {
        port,
        zero_checksum: receive.zero_udp6_checksum,
    })
}

fn socket_status(
    socket: &TunnelSocket,
    packets: u64,
    wanted_bytes: u32,
    transport: &Transport,
) -> v1::TunnelSocketStatus {
    let local = socket.local;
    let short = socket.buffer_bytes < u64::from(wanted_bytes);
    v1::TunnelSocketStatus {
        name: match transport {
            Transport::Udp { port, .. } => format!("{local} udp {port}"),
            Transport::Ip(_) => format!("{local} protocol {}", socket.protocol),
        },
        state: v1::State::from(State::Running).into(),
        reason: if short {
            format!(
                "its buffer is {} instead of {}: raise net.core.rmem_max, or grant CAP_NET_ADMIN",
                format_size(socket.buffer_bytes),
                format_size(wanted_bytes.into())
            )
        } else {
            String::new()
        },
        buffer_bytes: socket.buffer_bytes,
        received_packets: packets,
        kernel_dropped_packets: socket.kernel_drops,
    }
}

/// An error with what the system says.
fn with_source(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
