//! Counters of the network namespace about datagrams that never reach a socket (proc_net(5), snmp and snmp6).

use crate::Error;

/// What the kernel has thrown away before any receiver saw it, since the namespace exists, whoever it was for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// UDP datagrams over IPv4 with a wrong checksum.
    pub udp_checksum: u64,
    /// UDP datagrams over IPv6 with a wrong checksum.
    pub udp6_checksum: u64,
    /// Failures to put IPv4 fragments together.
    pub reassembly: u64,
    /// Failures to put IPv6 fragments together.
    pub reassembly6: u64,
}

impl NetCounters {
    /// Reads them, in the network namespace of the calling thread. Those of IPv6 are 0 on a host without.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel does not show them.
    pub fn read() -> Result<NetCounters, Error> {
        let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let failed = |source| Error::system("read the counters of the network namespace", source);
        let snmp = read("snmp").map_err(failed)?;
        let snmp6 = match read("snmp6") {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.map_err(failed)?,
        };
        Ok(NetCounters::parse(&snmp, &snmp6))
    }

    /// What was added since `before`.
    pub fn since(&self, before: &NetCounters) -> NetCounters {
        NetCounters {
            udp_checksum: self.udp_checksum.saturating_sub(before.udp_checksum),
            udp6_checksum: self.udp6_checksum.saturating_sub(before.udp6_checksum),
            reassembly: self.reassembly.saturating_sub(before.reassembly),
            reassembly6: self.reassembly6.saturating_sub(before.reassembly6),
        }
    }

    fn parse(snmp: &str, snmp6: &str) -> NetCounters {
        NetCounters {
            udp_checksum: column(snmp, "Udp:", "InCsumErrors"),
            udp6_checksum: line(snmp6, "Udp6InCsumErrors"),
            reassembly: column(snmp, "Ip:", "ReasmFails"),
            reassembly6: line(snmp6, "Ip6ReasmFails"),
        }
    }
}

/// A counter of snmp: a line of names, then a line of values, each beginning with the protocol. 0 when it is not there.
fn column(text: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return 0;
    };
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let found = pairs.find(|(known, _)| *known == name);
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// A counter of snmp6: a name and a value in each line.
fn line(text: &str, name: &str) -> u64 {
    let words = |line: &'_ str| -> Option<u64> {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    };
    text.lines().find_map(words).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names_whatever_the_order() {
        let snmp = "Ip: Forwarding ReasmTimeout ReasmFails\nIp: 1 3 7\n\
            UdpLite: InCsumErrors\nUdpLite: 99\nUdp: InDatagrams InCsumErrors IgnoredMulti\nUdp: 5 11 0\n";
        let snmp6 = "Ip6InReceives 4\nIp6ReasmFails\t13\nUdp6InCsumErrors   17\n";
        let counters = NetCounters::parse(snmp, snmp6);
        assert_eq!((counters.reassembly, counters.udp_checksum), (7, 11));
        assert_eq!((counters.reassembly6, counters.udp6_checksum), (13, 17));
        assert_eq!(
            NetCounters::parse("", "Ip6ReasmFails"),
            NetCounters::default()
        );
        assert_eq!(counters.since(&counters), NetCounters::default());
    }

    #[test]
    fn this_host_shows_its_counters() {
        NetCounters::read().unwrap();
    }
}
