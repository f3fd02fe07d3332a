//! How the threads of a capture or a transmit are run, written back as the options that ask for it.

use crate::names;
use crate::words::Words;
use fluxcap_options::CpuList;
use fluxcap_proto::v1::Scheduling;
use std::time::Duration;

/// Latency and scheduling as options; empty when there is nothing but defaults.
pub(crate) fn options(latency: i32, scheduling: Option<&Scheduling>) -> String {
    let mut words = Words::default();
    if names::latency(latency) == "low" {
        words.text("--latency", "low");
    }
    if let Some(scheduling) = scheduling {
        words.text("--cpu", &CpuList(scheduling.cpus.clone()).to_string());
        words.number("--priority", scheduling.priority);
        words.time("--spin", Duration::from_micros(scheduling.spin_us.into()));
    }
    words.line()
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
