//! The options that change frames, the same for captures and transmits.

use crate::{FilterArgs, SampleArgs, TagArg, UsageError, VlanPushArg};
use clap::Args;
use fluxcap_proto::v1::{Edits, VlanTag};

/// Edits of each frame. They are applied in the order of the fields here, whatever the order on the command line.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Edits, always applied in this order")]
pub struct EditArgs {
    /// Which frames stay.
    #[command(flatten)]
    pub filter: FilterArgs,

    /// How many of them.
    #[command(flatten)]
    pub sample: SampleArgs,

    /// Take off the N outermost VLAN tags (one when N is left out); 0 clears
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u32).range(0..=4))]
    pub vlan_pop: Option<u32>,

    /// Tags to push.
    // The help stands apart because rustdoc would take its brackets for links.
    #[arg(
        long,
        value_name = "[IFACE=]TAG",
        value_delimiter = ',',
        help = "Put a VLAN tag outside of all others: VID or TPID:VID[:PCP[:DEI]]; for one interface of a capture IFACE=TAG; '' clears"
    )]
    pub vlan_push: Vec<VlanPushArg>,

    /// Put a VLAN tag in the place of the outermost one, or push it where there is none; '' clears
    #[arg(long, value_name = "TAG", conflicts_with = "vlan_push")]
    pub vlan_replace: Option<TagArg>,

    /// Cut this many bytes from the end of each frame; 0 clears
    #[arg(long, value_name = "BYTES")]
    pub trim: Option<u32>,

    /// Keep at most this many bytes of each frame; 0 keeps all
    #[arg(long, value_name = "BYTES")]
    pub snaplen: Option<u32>,
}

impl EditArgs {
    /// The edits as the API takes them; what is not given is not set.
    ///
    /// Tags for single interfaces are no part of them: [`crate::CaptureArgs::to_specs`] puts those where they belong.
    pub fn to_edits(&self) -> Result<Edits, UsageError> {
        Ok(Edits {
            filter: self.filter.expression().unwrap_or_default(),
            filter_vlan: self.filter.vlan().into(),
            sample: self.sample.to_sample(),
            vlan_pop: self.vlan_pop.unwrap_or(0),
            vlan_push: self.common_push()?.flatten(),
            vlan_replace: self.vlan_replace.clone().and_then(|tag| tag.0),
            trim: self.trim.unwrap_or(0),
            snaplen: self.snaplen.unwrap_or(0),
        })
    }

    /// Fields of `Edits` that were given, for an update mask: `edits.filter`, `edits.snaplen`...
    ///
    /// A tag to push takes the place of one to replace and the other way round, so that giving either names both.
    #[must_use]
    pub fn changed_fields(&self) -> Vec<&'static str> {
        let push = self.vlan_push.iter().find(|push| push.interface.is_none());
        let sets_push = push.is_some_and(|push| push.tag.is_some());
        let sets_replace = self
            .vlan_replace
            .as_ref()
            .is_some_and(|tag| tag.0.is_some());
        [
            (!self.filter.filter.is_empty(), "edits.filter"),
            (self.filter.filter_vlan.is_some(), "edits.filter_vlan"),
            (self.sample.sample.is_some(), "edits.sample"),
            (self.vlan_pop.is_some(), "edits.vlan_pop"),
            (push.is_some() || sets_replace, "edits.vlan_push"),
            (
                self.vlan_replace.is_some() || sets_push,
                "edits.vlan_replace",
            ),
            (self.trim.is_some(), "edits.trim"),
            (self.snaplen.is_some(), "edits.snaplen"),
        ]
        .into_iter()
        .filter_map(|(given, field)| given.then_some(field))
        .collect()
    }

    /// The tags for single interfaces: each interface once; `None` clears.
    pub fn interface_pushes(&self) -> Result<Vec<(&str, Option<VlanTag>)>, UsageError> {
        let mut pushes: Vec<(&str, Option<VlanTag>)> = Vec::new();
        for push in &self.vlan_push {
            let Some(interface) = push.interface.as_deref() else {
                continue;
            };
            if pushes.iter().any(|(known, _)| *known == interface) {
                return Err(UsageError::DuplicatePush {
                    target: interface.to_owned(),
                });
            }
            pushes.push((interface, push.tag));
        }
        Ok(pushes)
    }

    /// The tag for all frames: outer `None` when not given, inner `None` when it is to be cleared.
    fn common_push(&self) -> Result<Option<Option<VlanTag>>, UsageError> {
        let mut pushes = self
            .vlan_push
            .iter()
            .filter(|push| push.interface.is_none());
        let first = pushes.next();
        match pushes.next() {
            Some(_) => Err(UsageError::DuplicatePush {
                target: "every interface".to_owned(),
            }),
            None => Ok(first.map(|push| push.tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use fluxcap_proto::v1::{FilterVlan, Sample, SampleMode};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        edits: EditArgs,
    }

    fn parse(args: &[&str]) -> Result<EditArgs, String> {
        Cli::try_parse_from([&["x"], args].concat())
            .map(|cli| cli.edits)
            .map_err(|error| error.to_string())
    }

    fn edits(args: &[&str]) -> Edits {
        parse(args).unwrap().to_edits().unwrap()
    }

    fn mask(args: &[&str]) -> Vec<&'static str> {
        parse(args).unwrap().changed_fields()
    }

    const VLAN_100: VlanTag = VlanTag {
        vid: 100,
        pcp: 0,
        dei: false,
        tpid: 0x8100,
    };

    #[test]
    fn no_options_change_nothing() {
        assert_eq!(edits(&[]), Edits::default());
        assert!(mask(&[]).is_empty());
    }

    #[test]
    fn every_option_arrives_in_its_field() {
        let args = [
            "--filter",
            "tcp",
            "--filter-vlan",
            "exact",
            "--sample",
            "1/10",
            "--sample-by",
            "flow",
            "--seed",
            "7",
            "--vlan-pop",
            "2",
            "--vlan-push",
            "100",
            "--trim",
            "4",
            "--snaplen",
            "96",
        ];
        let sample = Sample {
            one_in: 10,
            kept: 0,
            mode: SampleMode::Flow.into(),
            seed: 7,
        };
        let expected = Edits {
            filter: "tcp".into(),
            filter_vlan: FilterVlan::Exact.into(),
            sample: Some(sample),
            vlan_pop: 2,
            vlan_push: Some(VLAN_100),
            vlan_replace: None,
            trim: 4,
            snaplen: 96,
        };
        assert_eq!(edits(&args), expected);
        assert_eq!(mask(&args).len(), 8);
    }

    #[test]
    fn several_filters_must_all_match() {
        assert_eq!(
            edits(&["-f", "tcp or udp", "-f", "port 53"]).filter,
            "(tcp or udp) and (port 53)"
        );
        assert_eq!(edits(&["-f", "tcp or udp"]).filter, "tcp or udp");
    }

    #[test]
    fn empty_and_zero_values_clear_and_are_in_the_mask() {
        let args = [
            "--filter",
            "",
            "--sample",
            "",
            "--vlan-pop",
            "0",
            "--vlan-push",
            "",
            "--trim",
            "0",
            "--snaplen",
            "0",
        ];
        assert_eq!(edits(&args), Edits::default());
        assert_eq!(
            mask(&args),
            [
                "edits.filter",
                "edits.sample",
                "edits.vlan_pop",
                "edits.vlan_push",
                "edits.trim",
                "edits.snaplen"
            ]
        );
    }

    #[test]
    fn pushing_and_replacing_take_each_others_place() {
        assert_eq!(
            mask(&["--vlan-push", "5"]),
            ["edits.vlan_push", "edits.vlan_replace"]
        );
        assert_eq!(
            mask(&["--vlan-replace", "5"]),
            ["edits.vlan_push", "edits.vlan_replace"]
        );
        assert_eq!(mask(&["--vlan-replace", ""]), ["edits.vlan_replace"]);
        assert!(parse(&["--vlan-replace", "5", "--vlan-push", "6"]).is_err());
    }

    #[test]
    fn vlan_pop_alone_takes_one_tag() {
        assert_eq!(edits(&["--vlan-pop"]).vlan_pop, 1);
        assert!(parse(&["--vlan-pop", "5"]).is_err());
    }

    #[test]
    fn tags_for_interfaces_stand_beside_the_common_one() {
        let args = parse(&["--vlan-push", "eth1=100,eth2=", "--vlan-push", "100"]).unwrap();
        assert_eq!(
            args.to_edits().map(|edits| edits.vlan_push),
            Ok(Some(VLAN_100))
        );
        assert_eq!(
            args.interface_pushes(),
            Ok(vec![("eth1", Some(VLAN_100)), ("eth2", None)])
        );
    }

    #[test]
    fn a_tag_given_twice_is_refused() {
        assert!(parse(&["--vlan-push", "1,2"]).unwrap().to_edits().is_err());
        assert!(
            parse(&["--vlan-push", "a=1,a=2"])
                .unwrap()
                .interface_pushes()
                .is_err()
        );
    }

    #[test]
    fn a_sample_is_a_fraction_or_so_many_percent() {
        for (text, kept, one_in) in [
            ("1/10", 0, 10),
            ("3/4", 3, 4),
            ("75%", 75, 100),
            ("1%", 0, 100),
        ] {
            let sample = edits(&["--sample", text]).sample.expect(text);
            assert_eq!((sample.kept, sample.one_in), (kept, one_in), "{text}");
        }
        for all in ["", "1/1", "4/4", "100%"] {
            assert_eq!(edits(&["--sample", all]).sample, None, "{all}");
        }
    }

    #[test]
    fn sampling_wants_one_in_n() {
        for text in [
            "10",
            "11/10",
            "0/10",
            "+1/10",
            "1/0",
            "1/",
            "1/4294967296",
            "0%",
            "101%",
            "%",
            "7.5%",
        ] {
            assert!(
                parse(&["--sample", text]).is_err_and(|error| error.contains("1/10")),
                "{text}"
            );
        }
        assert!(parse(&["--seed", "7"]).is_err_and(|error| error.contains("--sample")));
    }
}
