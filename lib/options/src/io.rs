//! The ways in which frames come from and go to the kernel, by name.

use crate::SpecError;
use clap::ValueEnum;

/// `--io` of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum CaptureIo {
    /// The one that leaves the frames to the host, too.
    #[default]
    Auto,
    /// A packet socket with a ring of blocks (`TPACKET_V3`).
    Packet,
    /// An XDP program that redirects all frames to AF_XDP sockets.
    AfXdp,
}

/// `--io` of a transmit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TransmitIo {
    /// The fastest one that is safe and works.
    #[default]
    Auto,
    /// Frames made by the kernel from a BPF map, live: an XDP program under `BPF_PROG_TEST_RUN`.
    Live,
    /// Frames cloned to the interface by a BPF program for tc, under `BPF_PROG_TEST_RUN`.
    Tc,
    /// An AF_XDP socket.
    AfXdp,
    /// sendmmsg(2) on a packet socket.
    Sendmmsg,
}

/// `--io` of a tunnel that sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TunnelIo {
    /// The fastest one that is safe and works; the stack where the next hop is not known.
    #[default]
    Auto,
    /// Frames to the next hop, as [`TransmitIo::Live`].
    Live,
    /// The same by [`TransmitIo::Tc`].
    Tc,
    /// The same by [`TransmitIo::AfXdp`].
    AfXdp,
    /// The same by [`TransmitIo::Sendmmsg`].
    Sendmmsg,
    /// IP packets to the kernel's stack by raw sockets.
    Ip,
}

impl CaptureIo {
    /// The word for it on the command line and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CaptureIo::Auto => "auto",
            CaptureIo::Packet => "packet",
            CaptureIo::AfXdp => "af_xdp",
        }
    }

    /// What `CaptureSpec.io` says; empty means auto.
    ///
    /// # Errors
    /// Another word.
    pub fn from_spec(word: &str) -> Result<CaptureIo, SpecError> {
        from_spec(word)
    }
}

impl TransmitIo {
    /// The word for it on the command line and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TransmitIo::Auto => "auto",
            TransmitIo::Live => "live",
            TransmitIo::Tc => "tc",
            TransmitIo::AfXdp => "af_xdp",
            TransmitIo::Sendmmsg => "sendmmsg",
        }
    }

    /// What `TransmitSpec.io` says; empty means auto.
    ///
    /// # Errors
    /// Another word.
    pub fn from_spec(word: &str) -> Result<TransmitIo, SpecError> {
        from_spec(word)
    }
}

impl TunnelIo {
    /// The word for it on the command line and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TunnelIo::Auto => "auto",
            TunnelIo::Live => "live",
            TunnelIo::Tc => "tc",
            TunnelIo::AfXdp => "af_xdp",
            TunnelIo::Sendmmsg => "sendmmsg",
            TunnelIo::Ip => "ip",
        }
    }

    /// What `TunnelSend.io` says; empty means auto.
    ///
    /// # Errors
    /// Another word.
    pub fn from_spec(word: &str) -> Result<TunnelIo, SpecError> {
        from_spec(word)
    }
}

fn from_spec<T: ValueEnum + Default>(word: &str) -> Result<T, SpecError> {
    if word.is_empty() {
        return Ok(T::default());
    }
    T::from_str(word, false).map_err(|_| {
        let known: Vec<String> = T::value_variants()
            .iter()
            .filter_map(T::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        SpecError::new(
            "io",
            format!(
                "there is no \"{}\"; there are: {}",
                word.escape_debug(),
                known.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_found_by_its_word() {
        for io in CaptureIo::value_variants() {
            assert_eq!(CaptureIo::from_spec(io.as_str()), Ok(*io));
        }
        for io in TransmitIo::value_variants() {
            assert_eq!(TransmitIo::from_spec(io.as_str()), Ok(*io));
        }
        for io in TunnelIo::value_variants() {
            assert_eq!(TunnelIo::from_spec(io.as_str()), Ok(*io));
        }
        assert_eq!(TransmitIo::from_spec(""), Ok(TransmitIo::Auto));
    }

    #[test]
    fn another_word_is_refused_with_those_that_there_are() {
        let error = CaptureIo::from_spec("live").unwrap_err().to_string();
        assert_eq!(
            error,
            "io: there is no \"live\"; there are: auto, packet, af_xdp"
        );
        assert!(TransmitIo::from_spec("AUTO").is_err());
    }
}
