//! What is offered: frames into a ring, packets to a raw socket, packets to an interface. All at a rate, from threads inside a namespace.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, bail};
use fluxcap_socket::{Live, Outgoing, SendReport, Transmitter as _};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

use crate::bench::source::{Sent, become_source, paced};
use crate::generator::index_of;
use crate::netns::Netns;
use crate::ring::RingWriter;

/// How many a second, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Frames per second.
    pub rate: f64,
    /// How long.
    pub duration: Duration,
}

/// Frames into a ring, each of another flow than the one before.
///
/// # Errors
/// When the thread cannot have its priority.
pub fn publish(
    load: Load,
    netns: &Netns,
    ring: &mut RingWriter,
    frames: &[Vec<u8>],
) -> Result<Sent> {
    netns.run(|| {
        become_source()?;
        paced(load.rate, load.duration, |first, count, _| {
            ring.publish(turn(frames, first, count));
            Ok(0)
        })
    })
}

/// Whole IP packets to a raw socket, by one sendto(2) each; none at all when there is no destination.
///
/// # Errors
/// When the kernel refuses a packet.
pub fn send_each(
    load: Load,
    netns: &Netns,
    packets: &[Vec<u8>],
    to: Option<Ipv4Addr>,
) -> Result<Sent> {
    netns.run(|| {
        become_source()?;
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(ipproto::RAW),
        )?;
        paced(load.rate, load.duration, |first, count, _| {
            let Some(to) = to else { return Ok(0) };
            let to = SocketAddrV4::new(to, 0);
            for packet in turn(packets, first, count) {
                sendto(&socket, packet, SendFlags::empty(), &to)?;
            }
            Ok(0)
        })
    })
}

/// Frames to an interface whose other end has GRO on, made by the kernel.
///
/// # Errors
/// When the interface takes none.
pub fn send_live(load: Load, netns: &Netns, device: &str, frames: &[Vec<u8>]) -> Result<Sent> {
    netns.run(|| {
        let mut live = Live::new()?;
        live.set_interfaces(&[index_of(device)])?;
        become_source()?;
        let mut reports = [SendReport::default()];
        let mut burst = Vec::new();
        paced(load.rate, load.duration, |first, count, _| {
            burst.clear();
            burst.extend(turn(frames, first, count).map(|frame| Outgoing {
                pieces: [frame, &[], &[]],
                outputs: 1,
            }));
            live.send(&burst, &mut reports);
            let [report] = &reports;
            if report.refused() > report.enobufs {
                bail!("the input takes no frames: {report:?}");
            }
            Ok(report.refused())
        })
    })
}

/// Frames `first` to `first + count` of an endless sequence that has all of them in turn.
fn turn(frames: &[Vec<u8>], first: u64, count: u64) -> impl Iterator<Item = &[u8]> + Clone {
    (first..first + count).map(move |number| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below the number of frames"
        )]
        let place = (number % frames.len() as u64) as usize;
        &*frames[place]
    })
}
