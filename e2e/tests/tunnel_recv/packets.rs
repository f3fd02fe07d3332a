//! Packets of tunnels, put together by hand from the RFCs: nothing here knows the code under test.

/// Ethernet addresses of the wire: the sender's and the host's.
pub(crate) const SENDER_MAC: [u8; 6] = [0x52, 0x54, 0, 0x4b, 0x50, 1];
pub(crate) const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x4b, 0x50, 2];
/// IP addresses of the same.
pub(crate) const SENDER: [u8; 4] = [10, 99, 0, 1];
pub(crate) const HOST: [u8; 4] = [10, 99, 0, 2];
/// fd00:99::1 and fd00:99::2.
pub(crate) const SENDER6: [u8; 16] = ip6(1);
pub(crate) const HOST6: [u8; 16] = ip6(2);

const fn ip6(host: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

/// IP version of the outer packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outer {
    V4,
    V6,
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, a, b] = (!sum).to_be_bytes();
    [a, b]
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes)
        .expect("a packet is short")
        .to_be_bytes()
}

/// A frame for the wire: an IP packet of this protocol to the host.
pub(crate) fn ip(outer: Outer, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match outer {
        Outer::V4 => from4(SENDER, protocol, payload),
        Outer::V6 => {
            let mut frame = [&HOST_MAC[..], &SENDER_MAC, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
            frame.extend(length(payload.len()));
            frame.extend([protocol, 64]);
            frame.extend(SENDER6);
            frame.extend(HOST6);
            frame.extend(payload);
            frame
        }
    }
}

/// The same over IPv4 from any address.
pub(crate) fn from4(source: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(length(20 + payload.len()));
    header.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
    header.extend(source);
    header.extend(HOST);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&HOST_MAC[..], &SENDER_MAC, &[8, 0], &header, payload].concat()
}

/// A UDP datagram to this port of the host; without a checksum over IPv4.
pub(crate) fn udp(outer: Outer, port: u16, payload: &[u8]) -> Vec<u8> {
    let datagram = datagram(port, payload);
    match outer {
        Outer::V4 => ip(outer, 17, &datagram),
        Outer::V6 => {
            let mut pseudo = [&SENDER6[..], &HOST6, &[0, 0], &length(datagram.len())].concat();
            pseudo.extend([0, 0, 0, 17]);
            pseudo.extend(&datagram);
            let mut datagram = datagram;
            datagram[6..8].copy_from_slice(&checksum(&pseudo));
            ip(outer, 17, &datagram)
        }
    }
}

/// The same over IPv4 from any address.
pub(crate) fn udp_from(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    from4(source, 17, &datagram(port, payload))
}

fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0xc0, 7];
    datagram.extend(port.to_be_bytes());
    datagram.extend(length(8 + payload.len()));
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// GRE (RFC 2784, RFC 2890) with what is given of checksum, key and sequence number.
pub(crate) fn gre(
    protocol: u16,
    csum: bool,
    key: Option<u32>,
    seq: Option<u32>,
    inner: &[u8],
) -> Vec<u8> {
    let flags = u8::from(csum) << 7 | u8::from(key.is_some()) << 5 | u8::from(seq.is_some()) << 4;
    let mut packet = vec![flags, 0];
    packet.extend(protocol.to_be_bytes());
    packet.extend([0; 4].iter().filter(|_| csum));
    for word in [key, seq].into_iter().flatten() {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(inner);
    if csum {
        let sum = checksum(&packet);
        packet[4..6].copy_from_slice(&sum);
    }
    packet
}

/// GRETAP with a key.
pub(crate) fn gretap(key: u32, inner: &[u8]) -> Vec<u8> {
    gre(0x6558, false, Some(key), None, inner)
}

/// ERSPAN type II in GRE, `en` as in draft-foschiano-erspan-03.
pub(crate) fn erspan2(seq: u32, session: u16, vlan: u16, en: u32, inner: &[u8]) -> Vec<u8> {
    let word = 1 << 28 | u32::from(vlan) << 16 | 5 << 13 | en << 11 | u32::from(session);
    let header = [word.to_be_bytes(), [0, 0, 0, 9]].concat();
    gre(0x88be, false, None, Some(seq), &[&header, inner].concat())
}

/// ERSPAN type III in GRE, egress, with a granularity of 100 ns; the platform sub-header if wanted.
pub(crate) fn erspan3(
    seq: u32,
    session: u16,
    ticks: u32,
    sub_header: bool,
    inner: &[u8],
) -> Vec<u8> {
    let word = 2 << 28 | u32::from(session);
    let flags = 1_u16 << 15 | 4 << 4 | 1 << 3 | 1 << 1 | u16::from(sub_header);
    let mut header = [word.to_be_bytes(), ticks.to_be_bytes()].concat();
    header.extend([0, 0]);
    header.extend(flags.to_be_bytes());
    header.extend([0x14, 0, 0, 1, 0, 0, 0, 2].iter().filter(|_| sub_header));
    gre(0x22eb, false, None, Some(seq), &[&header, inner].concat())
}

/// VXLAN (RFC 7348).
pub(crate) fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0], &(vni << 8).to_be_bytes()[..], inner].concat()
}

/// Geneve (RFC 8926) with these options.
pub(crate) fn geneve(vni: u32, critical: bool, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).expect("options are short");
    let head = [words, u8::from(critical) << 6, 0x65, 0x58];
    [&head, &(vni << 8).to_be_bytes()[..], options, inner].concat()
}

/// GUE variant 0 (draft-ietf-intarea-gue-09) around this protocol.
pub(crate) fn gue(protocol: u8, inner: &[u8]) -> Vec<u8> {
    [&[0, protocol, 0, 0], inner].concat()
}

/// TZSP with a padding tag, a signal tag, and the original length.
pub(crate) fn tzsp(original: u16, inner: &[u8]) -> Vec<u8> {
    let [a, b] = original.to_be_bytes();
    [&[1, 0, 0, 1, 0, 10, 1, 0xd8, 41, 2, a, b, 1][..], inner].concat()
}
