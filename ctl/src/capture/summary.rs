//! One line for each frame, after the manner of `tcpdump -e`.

use serde::Serialize;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, UNIX_EPOCH};

/// What a frame is, as far as one line tells.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub(super) struct Summary {
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub(super) time_ns: u64,
    /// Sequence number in the ring.
    pub(super) seq: u64,
    /// Interface that it came from.
    pub(super) source: String,
    /// in or out.
    pub(super) direction: &'static str,
    /// Key, network or session of the tunnel that it came through; 0 when there was none.
    pub(super) id: u32,
    /// Length on the wire, and how much of it is there.
    pub(super) wire_len: u32,
    pub(super) len: u32,
    #[serde(flatten)]
    pub(super) headers: Headers,
}

#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub(super) struct Headers {
    mac_source: String,
    mac_destination: String,
    /// Tags from the outermost, as VIDs.
    vlans: Vec<u16>,
    /// The EtherType behind the tags; below 0x600 it is a length (IEEE 802.3).
    ethertype: Option<u16>,
    ip_source: Option<String>,
    ip_destination: Option<String>,
    /// IP protocol number.
    protocol: Option<u8>,
    port_source: Option<u16>,
    port_destination: Option<u16>,
}

impl Summary {
    /// Looks into a frame; `line` has what the ring says of it.
    pub(super) fn of(frame: &[u8], line: Summary) -> Summary {
        Summary {
            headers: headers(frame),
            ..line
        }
    }

    /// The line.
    pub(super) fn text(&self) -> String {
        let time = humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(self.time_ns))
            .to_string();
        let clock = time.get(11..29).unwrap_or(&time);
        let headers = &self.headers;
        let mut text = format!(
            "{clock} {} {:3} {} > {}",
            self.source, self.direction, headers.mac_source, headers.mac_destination
        );
        if self.id != 0 {
            text.push_str(&format!(", id {}", self.id));
        }
        for vid in &headers.vlans {
            text.push_str(&format!(", vlan {vid}"));
        }
        if let Some(ethertype) = headers.ethertype {
            text.push_str(&format!(", {}", ethertype_name(ethertype)));
        }
        text.push_str(&format!(", length {}", self.wire_len));
        if self.len < self.wire_len {
            text.push_str(&format!(" ({} captured)", self.len));
        }
        if let (Some(source), Some(destination)) = (&headers.ip_source, &headers.ip_destination) {
            let port = |port: Option<u16>| port.map(|port| format!(".{port}")).unwrap_or_default();
            let (from, to) = (port(headers.port_source), port(headers.port_destination));
            text.push_str(&format!(": {source}{from} > {destination}{to}"));
        }
        if let Some(protocol) = headers.protocol {
            text.push_str(&format!(" {}", protocol_name(protocol)));
        }
        text
    }
}

fn headers(frame: &[u8]) -> Headers {
    let mut headers = Headers {
        mac_destination: mac(frame.get(..6)),
        mac_source: mac(frame.get(6..12)),
        ..Headers::default()
    };
    let mut at = 12;
    while let Some(ethertype) = word(frame, at) {
        at += 2;
        if !matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) || headers.vlans.len() == 4 {
            headers.ethertype = Some(ethertype);
            break;
        }
        let Some(tci) = word(frame, at) else { break };
        headers.vlans.push(tci & 0xfff);
        at += 2;
    }
    let rest = frame.get(at..).unwrap_or_default();
    match headers.ethertype {
        Some(0x0800) => ipv4(rest, &mut headers),
        Some(0x86dd) => ipv6(rest, &mut headers),
        Some(0x0806) => arp(rest, &mut headers),
        _ => {}
    }
    headers
}

/// RFC 791.
fn ipv4(packet: &[u8], headers: &mut Headers) {
    let Some(fixed) = packet.first_chunk::<20>() else {
        return;
    };
    headers.protocol = Some(fixed[9]);
    headers.ip_source = Some(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).to_string());
    headers.ip_destination =
        Some(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).to_string());
    let fragment_offset = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff;
    let length = usize::from(fixed[0] & 0xf) * 4;
    if fragment_offset == 0 && length >= 20 {
        ports(packet.get(length..).unwrap_or_default(), headers);
    }
}

/// RFC 8200; extension headers are named but not looked through.
fn ipv6(packet: &[u8], headers: &mut Headers) {
    let Some(fixed) = packet.first_chunk::<40>() else {
        return;
    };
    let address = |at: usize| {
        fixed[at..]
            .first_chunk::<16>()
            .map(|bytes| Ipv6Addr::from(*bytes).to_string())
    };
    headers.protocol = Some(fixed[6]);
    headers.ip_source = address(8);
    headers.ip_destination = address(24);
    ports(&packet[40..], headers);
}

/// RFC 826: who asks for whom.
fn arp(packet: &[u8], headers: &mut Headers) {
    let Some(fixed) = packet.first_chunk::<28>() else {
        return;
    };
    if fixed[..6] == [0, 1, 8, 0, 6, 4] {
        headers.ip_source =
            Some(Ipv4Addr::new(fixed[14], fixed[15], fixed[16], fixed[17]).to_string());
        headers.ip_destination =
            Some(Ipv4Addr::new(fixed[24], fixed[25], fixed[26], fixed[27]).to_string());
    }
}

/// TCP, UDP, UDP-Lite, DCCP and SCTP all begin with two ports.
fn ports(segment: &[u8], headers: &mut Headers) {
    if matches!(headers.protocol, Some(6 | 17 | 33 | 132 | 136)) {
        headers.port_source = word(segment, 0);
        headers.port_destination = word(segment, 2);
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk::<2>()
        .map(|word| u16::from_be_bytes(*word))
}

fn mac(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else {
        return "?".to_owned();
    };
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn ethertype_name(ethertype: u16) -> String {
    match ethertype {
        0x0800 => "IPv4".to_owned(),
        0x86dd => "IPv6".to_owned(),
        0x0806 => "ARP".to_owned(),
        0x88cc => "LLDP".to_owned(),
        0x8847 => "MPLS".to_owned(),
        length @ 0..0x600 => format!("802.3 length {length}"),
        other => format!("ethertype 0x{other:04x}"),
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".to_owned(),
        2 => "IGMP".to_owned(),
        4 => "IPIP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        47 => "GRE".to_owned(),
        50 => "ESP".to_owned(),
        58 => "ICMPv6".to_owned(),
        89 => "OSPF".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP 10.0.0.1:1234 > 10.0.0.2:53 with the given tags.
    fn udp(tags: &[[u8; 4]]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(tags.iter().flatten());
        frame.extend([
            0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend([0x04, 0xd2, 0x00, 0x35, 0, 8, 0, 0]);
        frame
    }

    fn text(frame: &[u8], wire_len: u32) -> String {
        let line = Summary {
            time_ns: 1_000_000_001,
            source: "eth1".into(),
            direction: "in",
            wire_len,
            len: u32::try_from(frame.len()).unwrap(),
            ..Summary::default()
        };
        Summary::of(frame, line).text()
    }

    #[test]
    fn a_udp_frame_is_told_with_addresses_and_ports() {
        assert_eq!(
            text(&udp(&[]), 42),
            "00:00:01.000000001 eth1 in  02:00:00:00:00:01 > 02:00:00:00:00:02, IPv4, length 42: 10.0.0.1.1234 > 10.0.0.2.53 UDP"
        );
    }

    #[test]
    fn what_came_through_a_tunnel_is_told_with_its_identifier() {
        let line = Summary {
            id: 9001,
            ..Summary::default()
        };
        let text = Summary::of(&udp(&[[0x81, 0x00, 0x00, 0x07]]), line).text();
        assert!(
            text.contains("02:00:00:00:00:02, id 9001, vlan 7, IPv4"),
            "{text}"
        );
    }

    #[test]
    fn tags_are_told_from_the_outermost() {
        let text = text(
            &udp(&[[0x88, 0xa8, 0x20, 0x64], [0x81, 0x00, 0x00, 0x07]]),
            100,
        );
        assert!(
            text.contains(", vlan 100, vlan 7, IPv4, length 100 (50 captured): 10.0.0.1.1234"),
            "{text}"
        );
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut frame = udp(&[]);
        frame[21] = 1;
        assert!(text(&frame, 42).ends_with("10.0.0.1 > 10.0.0.2 UDP"));
    }

    #[test]
    fn arp_says_who_asks_for_whom() {
        let mut frame = vec![255; 6];
        frame.extend([
            2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1,
        ]);
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 9]);
        assert!(
            text(&frame, 42).ends_with("ARP, length 42: 10.0.0.1 > 10.0.0.9"),
            "{}",
            text(&frame, 42)
        );
    }

    #[test]
    fn every_shorter_frame_is_told_too() {
        let frame = udp(&[[0x81, 0, 0, 1]]);
        for length in 0..frame.len() {
            let text = text(&frame[..length], 46);
            assert!(text.contains("length 46"), "{length}: {text}");
        }
    }
}
