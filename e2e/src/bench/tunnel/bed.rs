//! Where the two directions of a tunnel are measured.
//!
//! ```text
//!   namespace "near"            namespace "host"                              namespace "far"
//!   +--------------+     +------------------------------------+     +------------------------+
//!   | live frames -|-----|- in0 --> tunnel recv --> ring      |     |                        |
//!   |              |     |  ring or loop --> tunnel --> out0 -|-----|-wire0  Counter         |
//!   +--------------+     +------------------------------------+     +------------------------+
//! ```

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Btf, Ebpf, EbpfLoader};

use super::packets::Ends;
use crate::bench::sink::Peer;
use crate::link::Veth;
use crate::netns::Netns;

/// MTU of both wires.
const MTU: u32 = 1500;
/// Ends of what is sent.
pub const SENT: Ends = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
/// Ends of what is received.
pub const RECEIVED: Ends = (Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 1, 1));
/// Ethernet address of the host's interface `in0`.
pub const INPUT: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// Namespaces, wires and the counter. Everything goes away on drop.
#[derive(Debug)]
pub struct Bed {
    /// Where the daemons and the loop are.
    pub host: Netns,
    /// Where received packets come from, at `wire0`.
    pub near: Netns,
    /// How the far end takes frames.
    pub peer: Peer,
    /// What arrives at the far end.
    pub counter: Counter,
    _far: Netns,
}

impl Bed {
    /// Makes everything.
    ///
    /// # Errors
    /// When the kernel has not what the counter needs.
    pub fn new(peer: Peer) -> Result<Bed> {
        let (near, host, far) = (Netns::new(), Netns::new(), Netns::new());
        Veth::pair((&near, "wire0"), (&host, "in0"), MTU);
        // Live frames reach a veth whose other end has GRO.
        Veth::gro(&host, "in0", true);
        host.ip(&["link", "set", "in0", "address", &text(INPUT)]);
        Veth::pair((&host, "out0"), (&far, "wire0"), MTU);
        Veth::gro(&far, "wire0", peer == Peer::Gro);
        for (netns, device, address) in [
            (&host, "out0", SENT.0),
            (&far, "wire0", SENT.1),
            (&host, "in0", RECEIVED.1),
        ] {
            netns.ip(&["addr", "add", &format!("{address}/24"), "dev", device]);
        }
        Ok(Bed {
            counter: Counter::attach(&far, "wire0", peer)?,
            host,
            near,
            peer,
            _far: far,
        })
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Packets and bytes on each CPU, `struct counts` of `bpf/count.bpf.c`.
type Counts = [u64; 2];

/// An eBPF program that counts IPv4 packets and drops them. It goes away on drop.
pub struct Counter {
    counts: PerCpuArray<MapData, Counts>,
    _ebpf: Ebpf,
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counter").finish_non_exhaustive()
    }
}

impl Counter {
    /// Attaches the program to interface `device` of `netns`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(netns: &Netns, device: &str, peer: Peer) -> Result<Counter> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/count.bpf.o"));
        let btf = Btf::from_sys_fs().ok();
        let mut ebpf = EbpfLoader::new().btf(btf.as_ref()).load(object)?;
        let counts = match ebpf.take_map("counts") {
            Some(map @ Map::PerCpuArray(_)) => PerCpuArray::try_from(map)?,
            _ => return Err(anyhow!("the counting program has no counters")),
        };
        let attached = netns.run(|| match peer {
            Peer::Xdp => attach_xdp(&mut ebpf, device),
            Peer::Gro | Peer::Plain | Peer::Prepared => attach_tc(&mut ebpf, device),
        });
        attached.with_context(|| format!("cannot attach the counting program to {device}"))?;
        Ok(Counter {
            counts,
            _ebpf: ebpf,
        })
    }

    /// Packets and bytes of their frames that have arrived since it was made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arrived(&self) -> Result<(u64, u64)> {
        let counts: PerCpuValues<Counts> = self.counts.get(&0, 0).context("read the counter")?;
        let sum = |at: usize| counts.iter().map(|counts| counts[at]).sum();
        Ok((sum(0), sum(1)))
    }
}

fn attach_xdp(ebpf: &mut Ebpf, device: &str) -> Result<()> {
    let program = ebpf.program_mut("count_xdp").context("no program")?;
    let program: &mut Xdp = program.try_into()?;
    program.load()?;
    program.attach(device, XdpMode::Driver)?;
    Ok(())
}

fn attach_tc(ebpf: &mut Ebpf, device: &str) -> Result<()> {
    let program = ebpf.program_mut("count_tc").context("no program")?;
    let program: &mut SchedClassifier = program.try_into()?;
    program.load()?;
    program.attach(device, TcAttachType::Ingress)?;
    Ok(())
}
