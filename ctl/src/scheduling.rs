//! How the threads of a capture or a transmit are run, written back as the options that ask for it.

use crate::names;
use fluxcap_options::CpuList;
use fluxcap_proto::v1::Scheduling;
use std::time::Duration;

/// Latency and scheduling as options; empty when there is nothing but defaults.
pub(crate) fn options(latency: i32, scheduling: Option<&Scheduling>) -> String {
    let mut parts = Vec::new();
    if names::latency(latency) == "low" {
        parts.push("--latency low".to_owned());
    }
    let scheduling = scheduling.cloned().unwrap_or_default();
    if !scheduling.cpus.is_empty() {
        parts.push(format!("--cpu {}", CpuList(scheduling.cpus)));
    }
    if scheduling.priority != 0 {
        parts.push(format!("--priority {}", scheduling.priority));
    }
    if scheduling.spin_us != 0 {
        let spin = Duration::from_micros(scheduling.spin_us.into());
        parts.push(format!("--spin {}", humantime::format_duration(spin)));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluxcap_proto::v1::Latency;

    #[test]
    fn only_what_is_no_default_is_told() {
        assert_eq!(options(0, None), "");
        let plain = Some(&Scheduling::default());
        assert_eq!(options(Latency::Normal.into(), plain), "");
        let scheduling = Scheduling {
            cpus: vec![0, 2, 3],
            priority: 5,
            spin_us: 50,
        };
        assert_eq!(
            options(Latency::Low.into(), Some(&scheduling)),
            "--latency low --cpu 0,2-3 --priority 5 --spin 50us"
        );
    }
}
