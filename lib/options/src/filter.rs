//! The options that say which frames are wanted, the same for edits and for mirrors.

use crate::UsageError;
use clap::{Args, ValueEnum};
use fluxcap_proto::v1::{FilterVlan, Sample, SampleMode};
use std::str::FromStr;

/// Frames by what is in them.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct FilterArgs {
    /// Only frames that match this pcap-filter(7) expression; several must all match; '' is no filter
    #[arg(long, short = 'f', value_name = "EXPR")]
    pub filter: Vec<String>,

    /// How the filter sees VLAN tags: as if they were not there (any), or byte for byte (exact) [default: any]
    #[arg(long, value_name = "any|exact", hide_possible_values = true)]
    pub filter_vlan: Option<FilterVlanArg>,
}

/// One in so many frames.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct SampleArgs {
    /// Only one in N of them, K in N (3/4), or so many percent (75%); '' clears
    #[arg(long, value_name = "1/N|K/N|P%")]
    pub sample: Option<SampleArg>,

    /// Pick frames at random, or whole conversations [default: random]
    #[arg(
        long,
        value_name = "random|flow",
        requires = "sample",
        hide_possible_values = true
    )]
    pub sample_by: Option<SampleByArg>,

    /// Seed of the choice: the same seed picks the same conversations, and outside of mirrors the same frames [default: another one each time]
    #[arg(long, value_name = "N", requires = "sample")]
    pub seed: Option<u64>,
}

impl FilterArgs {
    /// One expression that is true where all that were given are; empty to clear, `None` when none was given.
    #[must_use]
    pub fn expression(&self) -> Option<String> {
        let filters = self.filter.iter().map(|filter| filter.trim());
        let filters: Vec<&str> = filters.filter(|filter| !filter.is_empty()).collect();
        match filters[..] {
            _ if self.filter.is_empty() => None,
            [only] => Some(only.to_owned()),
            _ => {
                let each = filters.iter().map(|filter| format!("({filter})"));
                Some(each.collect::<Vec<_>>().join(" and "))
            }
        }
    }

    /// How it sees VLAN tags.
    #[must_use]
    pub fn vlan(&self) -> FilterVlan {
        self.filter_vlan.map(FilterVlan::from).unwrap_or_default()
    }
}

impl SampleArgs {
    /// The choice as the API takes it; `None` to keep everything, or when none was given.
    pub(crate) fn to_sample(&self) -> Option<Sample> {
        let sample = self.sample.filter(|sample| sample.kept < sample.one_in)?;
        let mode = self.sample_by.map(SampleMode::from);
        Some(Sample {
            one_in: sample.one_in,
            // 1 is what is meant by nothing: specs of before stay equal to what is typed today.
            kept: if sample.kept == 1 { 0 } else { sample.kept },
            mode: mode.unwrap_or_default().into(),
            seed: self.seed.unwrap_or(0),
        })
    }
}

/// `--filter-vlan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FilterVlanArg {
    /// As if tags were not there.
    Any,
    /// Byte for byte.
    Exact,
}

impl From<FilterVlanArg> for FilterVlan {
    fn from(arg: FilterVlanArg) -> Self {
        match arg {
            FilterVlanArg::Any => FilterVlan::Any,
            FilterVlanArg::Exact => FilterVlan::Exact,
        }
    }
}

/// `--sample-by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SampleByArg {
    /// Each frame for itself.
    Random,
    /// Whole conversations.
    Flow,
}

impl From<SampleByArg> for SampleMode {
    fn from(arg: SampleByArg) -> Self {
        match arg {
            SampleByArg::Random => SampleMode::Random,
            SampleByArg::Flow => SampleMode::Flow,
        }
    }
}

/// `--sample`: `1/N`, `K/N` or `P%`; or the empty text to keep everything (1 of 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleArg {
    /// K, 1 to N.
    pub kept: u32,
    /// N, at least 1.
    pub one_in: u32,
}

impl FromStr for SampleArg {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let parts = match text.strip_suffix('%') {
            _ if text.is_empty() => Some(("1", "1")),
            Some(percent) => Some((percent, "100")),
            None => text.split_once('/'),
        };
        let number = |text: &str| match text.bytes().all(|digit| digit.is_ascii_digit()) {
            true => text.parse().ok(),
            false => None,
        };
        parts
            .and_then(|(kept, one_in)| Some((number(kept)?, number(one_in)?)))
            .filter(|(kept, one_in)| (1..=*one_in).contains(kept))
            .map(|(kept, one_in)| SampleArg { kept, one_in })
            .ok_or_else(|| UsageError::Sample {
                text: text.to_owned(),
            })
    }
}
