use super::*;
use crate::VlanTag;
use proptest::prelude::*;
use std::collections::HashSet;

const V4: [u8; 2] = [0x08, 0x00];
const V6: [u8; 2] = [0x86, 0xdd];

#[derive(Clone, Debug)]
struct Flow {
    source: Vec<u8>,
    destination: Vec<u8>,
    ports: [u16; 2],
    protocol: u8,
}

impl Flow {
    fn back(&self) -> Flow {
        Flow {
            source: self.destination.clone(),
            destination: self.source.clone(),
            ports: [self.ports[1], self.ports[0]],
            protocol: self.protocol,
        }
    }

    /// The frame of this flow; `extensions` is a chain for IPv6 or the fragment field for IPv4.
    fn frame(&self, extensions: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if self.source.len() == 4 {
            frame.extend(V4);
            frame.extend([0x45, 0, 0, 48, 1, 2]);
            frame.extend(if extensions.is_empty() {
                &[0x40, 0]
            } else {
                extensions
            });
            frame.extend([64, self.protocol, 0, 0]);
        } else {
            frame.extend(V6);
            let next = extensions.first().map_or(self.protocol, |&first| first);
            frame.extend([0x60, 0, 0, 0, 0, 80, next, 64]);
        }
        frame.extend(self.source.iter().chain(&self.destination));
        if self.source.len() == 16 {
            frame.extend(extensions.get(1..).unwrap_or_default());
        }
        frame.extend(self.ports.iter().flat_map(|port| port.to_be_bytes()));
        frame.extend([7; 24]);
        frame
    }
}

fn v4() -> Flow {
    Flow {
        source: vec![10, 0, 0, 1],
        destination: vec![10, 0, 0, 2],
        ports: [1234, 80],
        protocol: 6,
    }
}

fn v6() -> Flow {
    Flow {
        source: [&[0xfd; 15][..], &[1]].concat(),
        destination: [&[0xfd; 15][..], &[2]].concat(),
        ports: [1234, 80],
        protocol: 17,
    }
}

fn hash(bytes: &[u8]) -> u32 {
    flow_hash(&WireFrame::new(bytes, 0))
}

#[test]
fn ports_addresses_and_protocol_all_count() {
    for flow in [v4(), v6()] {
        let mut others = vec![flow.clone(); 5];
        others[0].ports[0] += 1;
        others[1].ports[1] += 1;
        *others[2].source.last_mut().unwrap() = 9;
        *others[3].destination.last_mut().unwrap() = 9;
        others[4].protocol = 132;
        let hashes: HashSet<_> = others
            .iter()
            .chain([&flow])
            .map(|f| hash(&f.frame(&[])))
            .collect();
        assert_eq!(hashes.len(), 6);
    }
}

#[test]
fn pairs_that_add_up_alike_are_told_apart() {
    let mut a = v4();
    let mut b = v4();
    (a.ports, b.ports) = ([1000, 2000], [2000, 1000]);
    assert_ne!(hash(&a.frame(&[])), hash(&b.frame(&[])));
}

#[test]
fn tags_do_not_change_the_hash() {
    for flow in [v4(), v6()] {
        let plain = flow.frame(&[]);
        let mut tagged = plain.clone();
        tagged.splice(12..12, [0x88, 0xa8, 0x20, 5, 0x81, 0, 0, 6, 0x91, 0, 0, 7]);
        assert_eq!(hash(&plain), hash(&tagged));
        let mut restored = WireFrame::new(&tagged, 0);
        restored.restore_tag(VlanTag {
            tpid: 0x8100,
            tci: 1,
        });
        assert_eq!(flow_hash(&restored), hash(&plain));
    }
}

#[test]
fn all_fragments_of_both_directions_agree() {
    let flow = v4();
    let first = hash(&flow.frame(&[0x20, 0]));
    let mut later = flow.clone();
    later.ports = [0xdead, 0xbeef];
    assert_eq!(hash(&later.frame(&[0x20, 100])), first);
    assert_eq!(hash(&later.back().frame(&[0x00, 100])), first);
    let flow = v6();
    let first = hash(&flow.frame(&[44, 17, 0, 0, 1, 0, 0, 0, 9]));
    let mut later = flow.clone();
    later.ports = [0xdead, 0xbeef];
    assert_eq!(hash(&later.frame(&[44, 17, 0, 8, 0, 0, 0, 0, 9])), first);
    assert_eq!(
        hash(&later.back().frame(&[44, 17, 0, 8, 1, 0, 0, 0, 8])),
        first
    );
}

#[test]
fn extension_headers_are_looked_through() {
    let flow = v6();
    let plain = hash(&flow.frame(&[]));
    // Hop-by-hop, then destination options.
    let options = [&[0, 60, 0][..], &[0; 6], &[17, 0], &[0; 6]].concat();
    assert_eq!(hash(&flow.frame(&options)), plain);
    // Authentication header of 24 bytes.
    let authentication = [&[51, 17, 4][..], &[0; 22]].concat();
    assert_eq!(hash(&flow.frame(&authentication)), plain);
    // Atomic fragment: offset 0, no more to come.
    assert_eq!(hash(&flow.frame(&[44, 17, 0, 0, 0, 0, 0, 0, 9])), plain);
}

#[test]
fn other_frames_hash_their_address_pair_both_ways() {
    let arp = |a: u8, b: u8| vec![2, 0, 0, 0, 0, a, 2, 0, 0, 0, 0, b, 0x08, 0x06, 1, 2, 3];
    assert_eq!(hash(&arp(1, 2)), hash(&arp(2, 1)));
    assert_ne!(hash(&arp(1, 2)), hash(&arp(1, 3)));
}

#[test]
fn hash_spreads_evenly_over_few_and_many_buckets() {
    for buckets in [4usize, 64] {
        let mut counts = vec![0u32; buckets];
        for n in 0..16_000u16 {
            let mut flow = v4();
            flow.ports = [n, 443];
            flow.source[3] = (n >> 8) as u8;
            counts[hash(&flow.frame(&[])) as usize % buckets] += 1;
        }
        let mean = 16_000.0 / buckets as f64;
        let chi: f64 = counts
            .iter()
            .map(|&c| (f64::from(c) - mean).powi(2) / mean)
            .sum();
        // Far out in the tail for 3 as for 63 degrees of freedom.
        assert!(
            chi < buckets as f64 + 10.0 * f64::sqrt(2.0 * buckets as f64),
            "{chi}"
        );
    }
}

proptest! {
    #[test]
    fn any_flow_hashes_alike_in_both_directions(
        addresses in prop_oneof![Just(4usize), Just(16)].prop_flat_map(|n| (
            proptest::collection::vec(any::<u8>(), n), proptest::collection::vec(any::<u8>(), n))),
        ports in any::<[u16; 2]>(), protocol in prop_oneof![Just(6u8), Just(17), Just(132), Just(1)],
    ) {
        let mut flow = Flow { source: addresses.0, destination: addresses.1, ports, protocol };
        prop_assert_eq!(hash(&flow.frame(&[])), hash(&flow.back().frame(&[])));
        flow.protocol = 17;
        prop_assert_eq!(hash(&flow.frame(&[])), hash(&flow.back().frame(&[])));
    }

    #[test]
    fn any_bytes_have_a_hash(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0u8..3) {
        let mut bytes = bytes;
        if let (Some(slot), true) = (bytes.get_mut(12..14), kind > 0) {
            slot.copy_from_slice(if kind == 1 { &V4 } else { &V6 });
        }
        hash(&bytes);
    }

    #[test]
    fn every_shorter_frame_has_a_hash(cut in 0usize..90) {
        for flow in [v4().frame(&[]), v6().frame(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 17, 9])] {
            hash(&flow[..cut.min(flow.len())]);
        }
    }
}
