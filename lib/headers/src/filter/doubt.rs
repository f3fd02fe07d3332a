//! Expressions that libpcap takes and that do not say what they seem to say.

/// Words after which pcap-filter(7) reads everything further behind a tag or a label, "for the remainder of the expression".
const SHIFTING: [&str; 4] = ["vlan", "mpls", "pppoes", "geneve"];

/// One group of parentheses: which shifting word stands in it so far.
type Group = Option<&'static str>;

/// Why an expression most likely does not match what its author means, with the form that does; `None` when nothing speaks against it.
///
/// In `vlan 10 or vlan 20` the second half is looked for behind the tag of the first, although the frame has no such tag then:
/// "or" does not take back what `vlan` has moved.
pub fn filter_doubt(expression: &str) -> Option<String> {
    let mut groups: Vec<Group> = vec![None];
    for word in words(expression) {
        match word {
            "(" => groups.push(None),
            ")" => {
                let inner = groups.pop().flatten();
                match groups.last_mut() {
                    Some(outer) => *outer = outer.or(inner),
                    None => groups.push(inner),
                }
            }
            "or" | "||" => {
                if let Some(shifting) = groups.last().copied().flatten() {
                    return Some(doubt(shifting));
                }
            }
            word => {
                let shifting = SHIFTING.into_iter().find(|it| *it == word);
                if let Some(group) = groups.last_mut() {
                    *group = group.or(shifting);
                }
            }
        }
    }
    None
}

fn doubt(word: &str) -> String {
    let several = match word {
        "vlan" => {
            "; several VLANs: 'vlan and (ether[14:2] & 0xfff = 10 or ether[14:2] & 0xfff = 20)'"
        }
        _ => "",
    };
    format!(
        "what follows 'or' is looked for behind the tag of '{word}', as pcap-filter(7) has it, and will hardly match: put the part with \
         '{word}' last, for instance 'udp or ({word} and tcp)'{several}"
    )
}

/// Words, operators and parentheses.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    let apart = |c: char| c.is_whitespace() || matches!(c, '(' | ')' | '|' | '&' | '!');
    expression
        .split_inclusive(apart)
        .flat_map(move |piece| {
            let word = piece.trim_end_matches(apart);
            let rest = &piece[word.len()..];
            [word, rest.trim()]
        })
        .filter(|word| !word.is_empty())
        // The second stroke of "||" says the same once more.
        .map(|word| if word == "|" { "||" } else { word })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filter, FilterVlan, WireFrame};

    #[test]
    fn what_follows_or_behind_a_tag_is_doubted() {
        for text in [
            "vlan 10 or vlan 20",
            "vlan 10 || vlan 20",
            "(vlan 10) or (vlan 20)",
            "vlan and tcp or udp",
            "not vlan or tcp",
            "tcp and (vlan 10 or udp)",
            "mpls or ip",
            "pppoes or tcp",
        ] {
            let doubt = filter_doubt(text);
            assert!(
                doubt.is_some_and(|it| it.contains("put the part")),
                "{text}"
            );
        }
    }

    #[test]
    fn what_means_what_it_says_is_not() {
        for text in [
            "",
            "tcp or udp",
            "vlan 10",
            "vlan 10 and vlan 20",
            "vlan 10 and (tcp or udp)",
            "udp or (vlan 10 and tcp)",
            "tcp port 80 or vlan",
            "vlan and (ether[14:2] & 0xfff = 10 or ether[14:2] & 0xfff = 20)",
            "host vlan.example or host other",
        ] {
            assert_eq!(filter_doubt(text), None, "{text}");
        }
    }

    /// A UDP datagram to port 53, in a VLAN or in none.
    fn frame(vlan: Option<u16>) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 53, 0, 8, 0, 0]);
        frame
    }

    fn matched(expression: &str) -> Vec<bool> {
        let filter = Filter::compile(expression, FilterVlan::Any).expect("a filter");
        let frames = [Some(10), Some(20), Some(30), None].map(frame);
        let matches = |bytes: &Vec<u8>| {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            filter.matches(&WireFrame::new(bytes, length))
        };
        frames.iter().map(matches).collect()
    }

    /// The doubt is justified, and the advice is right.
    #[test]
    fn the_forms_that_are_advised_match() {
        assert_eq!(matched("vlan 10 or vlan 20"), [true, false, false, false]);
        assert_eq!(
            matched("vlan and (ether[14:2] & 0xfff = 10 or ether[14:2] & 0xfff = 20)"),
            [true, true, false, false]
        );
        // The datagram without a tag is one of UDP all the same.
        assert_eq!(matched("vlan 10 or udp"), [true, true, true, false]);
        assert_eq!(matched("udp or vlan 10"), [true, false, false, true]);
    }
}
