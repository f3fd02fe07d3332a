//! The command lines of both predecessors, for a fluxctl that is called by their names (a symbolic link will do): `fluxcap` of fluxcap 3.2 and
//! `mirroring` of the L3AF Traffic Mirroring Tool.
//!
//! ```text
//!  fluxcap -cr -s 100m cisco      ->  fluxctl ring create cisco --size 100m --replace
//!  fluxcap -rx -i eth1 cisco      ->  fluxctl rx add eth1 cisco ..., until it is told to end; then fluxctl rx delete
//!  mirroring --iface=eth0 ...     ->  fluxctl mirror add --iface=eth0 ...
//! ```

use crate::exit::{Code, Failure};
use std::path::Path;

/// What getopt(3) was told by fluxcap 3.2: letters, and a colon behind those with a value.
const LETTERS: &str = "t:r:c:vi:hV:s:D:E:B:S:Z:Qd:K:Rqkf:";
/// Blocks of the kernel's buffer, and the binary logarithm of their size, unless they are given.
const BLOCKS: (u64, u32) = (64, 22);

/// What is done under an old name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Old {
    /// This command of fluxctl, at once.
    Once(Vec<String>),
    /// One that adds something, which is taken away by the second when the program is told to end.
    Until(Vec<String>, Vec<String>),
}

/// What the words of a command line ask for, if the first one is an old name.
pub(crate) fn read(words: &[String]) -> Option<Result<(Old, Vec<String>), Failure>> {
    let (program, words) = words.split_first()?;
    match Path::new(program).file_name()?.to_str()? {
        "mirroring" => {
            let add = ["fluxctl", "mirror", "add"].map(str::to_owned);
            let command = add.into_iter().chain(words.iter().cloned()).collect();
            Some(Ok((Old::Once(command), Vec::new())))
        }
        "fluxcap" => Some(Fluxcap::read(words).and_then(|old| old.translate())),
        _ => None,
    }
}

/// A command line of fluxcap 3.2.
#[derive(Debug, Default)]
struct Fluxcap {
    /// Letters with their values, in order.
    options: Vec<(char, String)>,
    rings: Vec<String>,
}

impl Fluxcap {
    /// Takes the words apart as getopt(3) does, which finds options behind other words, too.
    fn read(words: &[String]) -> Result<Fluxcap, Failure> {
        let mut old = Fluxcap::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                old.rings.extend(words.by_ref().map(|ring| ring_name(ring)));
                break;
            }
            let Some(mut letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                old.rings.push(ring_name(word));
                continue;
            };
            while let Some(letter) = letters.chars().next() {
                letters = &letters[letter.len_utf8()..];
                let known = LETTERS.find(letter).filter(|_| letter != ':');
                let at = known.ok_or_else(|| usage(&format!("there is no option -{letter}")))?;
                let mut value = "";
                if LETTERS[at + 1..].starts_with(':') {
                    value = match std::mem::take(&mut letters) {
                        "" => words
                            .next()
                            .map(String::as_str)
                            .ok_or_else(|| usage(&format!("option -{letter} has no value")))?,
                        rest => rest,
                    };
                }
                old.options.push((letter, value.to_owned()));
            }
        }
        Ok(old)
    }

    /// The last value of a letter.
    fn get(&self, letter: char) -> Option<&str> {
        let mut all = self.options.iter().rev();
        all.find(|(known, _)| *known == letter)
            .map(|(_, value)| value.as_str())
    }

    /// The interface: -i, unless its value is the one of -io.
    fn interface(&self) -> Option<&str> {
        let mut all = self.options.iter().rev();
        all.find(|(letter, value)| *letter == 'i' && value != "o")
            .map(|(_, value)| value.as_str())
    }

    fn translate(&self) -> Result<(Old, Vec<String>), Failure> {
        let mode = |letter: char, rest: &str| match self.get(letter) {
            Some(value) => value == rest,
            None => false,
        };
        let watches = self
            .options
            .iter()
            .any(|(l, value)| *l == 'i' && value == "o");
        let modes = [mode('c', "r"), mode('r', "x"), mode('t', "x"), watches];
        match modes {
            [true, false, false, false] => self.create(),
            [false, true, false, false] => self.receive(),
            [false, false, true, false] => self.transmit(),
            [false, false, false, true] => self.watch(),
            _ => Err(usage("give one of -cr, -rx, -tx and -io")),
        }
    }

    fn create(&self) -> Result<(Old, Vec<String>), Failure> {
        let size = self.get('s').ok_or_else(|| usage("-cr needs -s SIZE"))?;
        if self.rings.is_empty() {
            return Err(usage("-cr needs the names of rings"));
        }
        let mut words = command(&["ring", "create"]);
        words.extend(self.rings.iter().cloned());
        words.extend(["--size".to_owned(), size.to_owned()]);
        if self.get('k').is_none() {
            words.push("--replace".to_owned());
        }
        Ok((Old::Once(words), Vec::new()))
    }

    fn watch(&self) -> Result<(Old, Vec<String>), Failure> {
        let mut words = command(&["io"]);
        words.extend(self.rings.iter().cloned());
        Ok((Old::Once(words), Vec::new()))
    }

    fn receive(&self) -> Result<(Old, Vec<String>), Failure> {
        let ring = self.ring()?;
        let Some(encap) = self.get('E') else {
            let interface = self.interface().ok_or_else(|| usage("-rx needs -i NIC"))?;
            let mut words = command(&["rx", "add", interface, ring]);
            words.extend(self.edits(false)?);
            let (buffer, block) = self.buffer()?;
            words.extend(buffer.map(|bytes| format!("--buffer={bytes}")));
            words.extend(block.map(|bytes| format!("--block-size={bytes}")));
            return Ok((
                until("rx", &format!("{ring}-{interface}"), words),
                self.idle("RqZ"),
            ));
        };
        let (kind, local) = encap.split_once(':').unwrap_or((encap, ""));
        let mut words = command(&["tunnel", "recv", kind, ring]);
        if !local.is_empty() {
            words.push(format!("--local={local}"));
        }
        words.extend(self.interface().map(|device| format!("--dev={device}")));
        words.extend(self.key(kind)?);
        words.extend(self.edits(false)?);
        let name = self.tunnel_name(&[ring, kind]);
        Ok((until("tunnel", &name, words), self.idle("RqZBS")))
    }

    fn transmit(&self) -> Result<(Old, Vec<String>), Failure> {
        let ring = self.ring()?;
        let Some(encap) = self.get('E') else {
            let interface = self.interface().ok_or_else(|| usage("-tx needs -i NIC"))?;
            let mut words = command(&["tx", "add", ring, interface]);
            words.extend(self.edits(true)?);
            if self.get('q').is_some() {
                words.push("--qdisc-bypass".to_owned());
            }
            return Ok((
                until("tx", &format!("{ring}-{interface}"), words),
                self.idle("RZBSQ"),
            ));
        };
        let (kind, remote) = encap.split_once(':').unwrap_or((encap, ""));
        if remote.is_empty() {
            return Err(usage("-tx -E needs the far end, as in -E gretap:192.0.2.9"));
        }
        let mut words = command(&["tunnel", "send", ring, kind, remote]);
        words.extend(self.key(kind)?);
        words.extend(self.edits(true)?);
        let name = self.tunnel_name(&[ring, kind, remote]);
        Ok((until("tunnel", &name, words), self.idle("RqZBSQi")))
    }

    fn ring(&self) -> Result<&str, Failure> {
        match &self.rings[..] {
            [ring] => Ok(ring),
            [] => Err(usage("name the ring")),
            _ => Err(usage(
                "name one ring: the old program took the first and ignored the others",
            )),
        }
    }

    /// The key of GRE or the network of VXLAN. Without one a receiver takes packets without a key, and those with key 0 no more.
    fn key(&self, kind: &str) -> Result<Option<String>, Failure> {
        let option = if kind == "vxlan" { "--vni" } else { "--key" };
        match self.get('K') {
            // The old program took 0 for none.
            Some("0") if kind != "vxlan" => Ok(None),
            Some(key) => Ok(Some(format!("{option}={key}"))),
            None if kind == "vxlan" && self.get('t').is_some() => Ok(Some("--vni=0".to_owned())),
            None => Ok(None),
        }
    }

    fn tunnel_name(&self, parts: &[&str]) -> String {
        let parts = parts.iter().copied().chain(self.get('K'));
        fluxcap_options::default_name(parts)
    }

    /// Filter, sample, tags, trim and slice.
    fn edits(&self, sends: bool) -> Result<Vec<String>, Failure> {
        let mut words = Vec::new();
        let value = |letter| self.get(letter).map(str::to_owned);
        words.extend(value('f').map(|filter| format!("--filter={filter}")));
        if let Some(percent) = self.get('d') {
            let percent: u32 = percent
                .parse()
                .map_err(|_| usage("-d is a percentage, 1 to 100"))?;
            words.push(match percent {
                1..=100 if 100 % percent == 0 => format!("--sample=1/{}", 100 / percent),
                _ => format!("--sample={percent}%"),
            });
        }
        match (self.get('Q'), self.get('V')) {
            // It won over -V in the old program.
            (Some(_), _) if !sends => words.push("--vlan-pop=1".to_owned()),
            (_, Some(vid)) if sends => words.push(format!("--vlan-push={vid}")),
            (_, Some(vid)) => words.push(format!("--vlan-replace={vid}")),
            (_, None) => {}
        }
        words.extend(value('D').map(|bytes| format!("--trim={bytes}")));
        words.extend(value('s').map(|bytes| format!("--snaplen={bytes}")));
        Ok(words)
    }

    /// Kernel buffer and its blocks in bytes, where -B and -S say so.
    fn buffer(&self) -> Result<(Option<u64>, Option<u64>), Failure> {
        if self.get('B').or(self.get('S')).is_none() {
            return Ok((None, None));
        }
        let (blocks, log2) = BLOCKS;
        let number = |letter, default: u64| match self.get(letter) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| usage(&format!("-{letter} is a number"))),
        };
        let log2 = u32::try_from(number('S', log2.into())?).ok();
        let block = log2
            .and_then(|log2| 1u64.checked_shl(log2))
            .filter(|bytes| *bytes < 1 << 32);
        let block = block.ok_or_else(|| usage("-S is the binary logarithm of a size below 4G"))?;
        let buffer = block.checked_mul(number('B', blocks)?);
        let buffer = buffer.ok_or_else(|| usage("-B and -S make too large a buffer"))?;
        Ok((Some(buffer), Some(block)))
    }

    /// What was given and has no meaning here.
    fn idle(&self, letters: &str) -> Vec<String> {
        let given = letters.chars().filter(|letter| match letter {
            'i' => self.interface().is_some(),
            letter => self.get(*letter).is_some(),
        });
        let why = |letter| match letter {
            'R' => "-R has no meaning here: --io says how frames are sent",
            'Z' => "-Z has no meaning here: frames of any length up to a block are kept",
            'Q' => "-Q has no meaning here: tags are taken off by the receiver",
            'i' => "-i has no meaning here: the kernel's routes lead to the far end",
            'q' => "-q has no meaning here",
            _ => "-B and -S have no meaning here",
        };
        given.map(|letter| why(letter).to_owned()).collect()
    }
}

/// The name of a ring: people are in its directory, or write it in front.
fn ring_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn command(words: &[&str]) -> Vec<String> {
    let words = ["fluxctl"].iter().chain(words);
    words.map(|word| (*word).to_owned()).collect()
}

/// Added under a name that the same command line has each time; one of that name that is left from a killed program is taken over.
fn until(noun: &str, name: &str, mut add: Vec<String>) -> Old {
    let name = fluxcap_options::default_name([name]);
    add.extend([format!("--name={name}"), "--replace".to_owned()]);
    Old::Until(add, command(&[noun, "delete", &name]))
}

fn usage(problem: &str) -> Failure {
    Failure::new(Code::Usage, format!("fluxcap: {problem}")).hint(
        "fluxcap -cr -s SIZE RING...; fluxcap -rx -i NIC RING; fluxcap -tx -i NIC RING; fluxcap -io RING...; README.md has a table of all options",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn old(line: &str) -> Result<(Old, Vec<String>), Failure> {
        let words: Vec<String> = line.split(' ').map(|word| word.replace('_', " ")).collect();
        read(&words).unwrap()
    }

    /// The command of fluxctl, which fluxctl itself understands.
    fn made(line: &str) -> String {
        let (words, more) = match old(line).unwrap().0 {
            Old::Once(words) => (words, Vec::new()),
            Old::Until(words, then) => (words, then),
        };
        for command in [&words, &more] {
            let parsed = Cli::try_parse_from(command);
            assert!(command.is_empty() || parsed.is_ok(), "{line}: {command:?}");
        }
        words[1..].join(" ")
    }

    #[test]
    fn every_example_of_the_readme_is_understood() {
        for (line, expected) in [
            (
                "fluxcap -cr -s 100m cisco",
                "ring create cisco --size 100m --replace",
            ),
            (
                "fluxcap -cr -s 100m cisco dell",
                "ring create cisco dell --size 100m --replace",
            ),
            (
                "fluxcap -rx -i eth1 cisco",
                "rx add eth1 cisco --name=cisco-eth1 --replace",
            ),
            (
                "fluxcap -tx -i eth2 cisco",
                "tx add cisco eth2 --name=cisco-eth2 --replace",
            ),
            ("fluxcap -io cisco dell", "io cisco dell"),
            (
                "/usr/local/bin/fluxcap -rx -i enp1 -V 100 cisco",
                "rx add enp1 cisco --vlan-replace=100 --name=cisco-enp1 --replace",
            ),
            (
                "fluxcap -tx -E gretap:192.168.102.100 ring",
                "tunnel send ring gretap 192.168.102.100 --name=ring-gretap-192-168-102-100 --replace",
            ),
            (
                "fluxcap -tx -E vxlan:192.168.102.100 -K 1234 ring",
                "tunnel send ring vxlan 192.168.102.100 --vni=1234 --name=ring-vxlan-192-168-102-100-1234 --replace",
            ),
            (
                "fluxcap -rx -E gretap ring",
                "tunnel recv gretap ring --name=ring-gretap --replace",
            ),
            (
                "fluxcap -rx -E gretap:127.0.0.1 -i lo ring",
                "tunnel recv gretap ring --local=127.0.0.1 --dev=lo --name=ring-gretap --replace",
            ),
            (
                "fluxcap -tx -s 1476 -E gretap:192.168.102.100 ring",
                "tunnel send ring gretap 192.168.102.100 --snaplen=1476 --name=ring-gretap-192-168-102-100 --replace",
            ),
        ] {
            assert_eq!(made(line), expected, "{line}");
        }
    }

    #[test]
    fn every_letter_arrives() {
        let line =
            "fluxcap -rx -i eth1 -s100 -D 4 -Q -V 9 -f vlan_7 -d 10 -B 8 -S 20 -vv /ram/cisco";
        let expected = "rx add eth1 cisco --filter=vlan 7 --sample=1/10 --vlan-pop=1 --trim=4 --snaplen=100 --buffer=8388608 --block-size=1048576 --name=cisco-eth1 --replace";
        assert_eq!(made(line), expected);
        let line = "fluxcap cisco -tx -q -i eth2 -V 5";
        assert_eq!(
            made(line),
            "tx add cisco eth2 --vlan-push=5 --qdisc-bypass --name=cisco-eth2 --replace"
        );
        assert_eq!(made("fluxcap -cr -k -s 1g -- a"), "ring create a --size 1g");
        let (_, notes) = old("fluxcap -tx -R -Z 4096 -i eth2 cisco").unwrap();
        assert_eq!(notes.len(), 2, "{notes:?}");
        let key = "fluxcap -rx -E gretap -K 1.2.3.4 ring";
        assert!(made(key).contains("--key=1.2.3.4"));
        assert!(!made("fluxcap -rx -E gretap -K 0 ring").contains("--key"));
    }

    #[test]
    fn what_the_old_program_refused_or_should_have_is_refused() {
        for line in [
            "fluxcap",
            "fluxcap -h",
            "fluxcap -cr cisco",
            "fluxcap -cr -s 100m",
            "fluxcap -rx cisco",
            "fluxcap -rx -tx -i eth1 cisco",
            "fluxcap -tx -i eth1 a b",
            "fluxcap -tx -E gretap a",
            "fluxcap -x",
            "fluxcap -rx -i",
            "fluxcap -rx -i eth1 -d half a",
            "fluxcap -rx -i eth1 -S 40 a",
        ] {
            assert_eq!(old(line).map_err(|it| it.code), Err(Code::Usage), "{line}");
        }
        assert_eq!(read(&["fluxctl".to_owned(), "status".to_owned()]), None);
    }

    #[test]
    fn the_mirroring_tool_becomes_mirror_add() {
        let line = "mirroring --iface=eth0 --direction=ingress --src-address=0.0.0.0 --tunnel-remote-address=192.0.2.9";
        assert!(made(line).starts_with("mirror add --iface=eth0 --direction=ingress"));
    }
}
