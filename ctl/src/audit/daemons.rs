//! Whom an audit has to ask besides the rings, and what it means when somebody does not answer.
//!
//! Books of rings are in shared memory, whoever lives. But only tunneld knows what it received, only mirrord what the programs of its mirrors
//! counted, only rxd what waits for it in the kernel, and only txd what it has in hand. One that is stopped, dead or out of reach must not take its
//! part of the account with it: what shows that it has one is looked for without its help.

use super::identity::Line;
use crate::connect::{Globals, block_on, is_there};
use crate::exit::{Code, Failure};
use crate::resource::{self, Kind, Reply};
use fluxcap_proto::v1::daemon_service_client::DaemonServiceClient;
use fluxcap_proto::v1::{GetDaemonRequest, Mirror, Tunnel};
use fluxcap_ring::RingStats;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Longest state file that is looked at.
const STATE_MAX: u64 = 16 << 20;

/// A daemon with a part of the account of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Rxd,
    Txd,
    Tunneld,
    Mirrord,
}

impl Who {
    const ALL: [Who; 4] = [Who::Rxd, Who::Txd, Who::Tunneld, Who::Mirrord];

    pub(super) fn name(self) -> &'static str {
        match self {
            Who::Rxd => "rxd",
            Who::Txd => "txd",
            Who::Tunneld => "tunneld",
            Who::Mirrord => "mirrord",
        }
    }

    /// The stage that nobody else can tell of.
    fn stage(self) -> &'static str {
        match self {
            Who::Rxd => "I1 kernel",
            Who::Txd => "I5 output",
            Who::Tunneld => "I6 decap",
            Who::Mirrord => "I8 mirror",
        }
    }

    /// What is not known without it.
    fn untold(self) -> &'static str {
        match self {
            Who::Rxd => {
                "what passes its interfaces, waits for it in the kernel or was dropped there is not known"
            }
            Who::Txd => "what becomes of the frames that it has in hand is not known",
            Who::Tunneld => "what it received and did not publish is not known",
            Who::Mirrord => "mirrors work without it; what they count is not known",
        }
    }

    /// Whether its work goes on, or its counters are gone, when it has ended in order.
    fn is_missed(self) -> bool {
        self != Who::Txd
    }

    /// What this daemon calls itself in a ring: the name of its work.
    fn work(self, label: &str) -> Option<&str> {
        label.strip_prefix(self.name())?.strip_prefix(' ')
    }
}

/// What the daemons say in one look.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) mirrors: Vec<Mirror>,
}

/// Asks the daemons. One that has failed to answer once is not asked again: each time may take as long as the time-out.
#[derive(Debug, Default)]
pub(super) struct Daemons {
    silent: RefCell<BTreeMap<Who, Failure>>,
}

impl Daemons {
    /// What those that there are say now.
    pub(super) fn ask(&self, globals: &Globals) -> Result<Answers, Failure> {
        let mut answers = Answers::default();
        let failed = block_on(async {
            let (rxd, txd, tunnels, mirrors) = tokio::join!(
                self.hear(globals, Who::Rxd, lives(globals, Who::Rxd)),
                self.hear(globals, Who::Txd, lives(globals, Who::Txd)),
                self.hear(globals, Who::Tunneld, all::<Tunnel>(globals)),
                self.hear(globals, Who::Mirrord, all::<Mirror>(globals)),
            );
            let failed = [rxd.err(), txd.err()];
            let tunnels = tunnels.map(|all| answers.tunnels = all.unwrap_or_default());
            let mirrors = mirrors.map(|all| answers.mirrors = all.unwrap_or_default());
            Ok(failed
                .into_iter()
                .chain([tunnels.err(), mirrors.err()])
                .flatten()
                .collect::<Vec<_>>())
        })?;
        self.silent.borrow_mut().extend(failed);
        Ok(answers)
    }

    /// One daemon's answer: none when there is no such daemon, or it has failed to answer before.
    async fn hear<T>(
        &self,
        globals: &Globals,
        who: Who,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Option<T>, (Who, Failure)> {
        let silent = self.silent.borrow().contains_key(&who);
        if silent || !is_there(&globals.socket(who.name())) {
            return Ok(None);
        }
        answer.await.map(Some).map_err(|failure| (who, failure))
    }

    /// Whether one of this name, of which there are traces, does not answer.
    pub(super) fn is_silent(&self, name: &str) -> bool {
        self.silent.borrow().keys().any(|who| who.name() == name)
    }

    /// The first failure of one that does not answer, for the end of the command.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.silent.borrow().values().next().cloned()
    }

    /// A line for each part of the account that nobody tells. `all`: not only what concerns these rings.
    pub(super) fn unknown(&self, globals: &Globals, rings: &[RingStats], all: bool) -> Vec<Line> {
        let lines = Who::ALL.into_iter().flat_map(|who| {
            let why = self.silence(globals, who)?;
            let mut work = of_rings(who, rings);
            if all {
                let known: BTreeSet<String> = work.iter().map(|(_, name)| name.clone()).collect();
                let kept = traces(globals, who).into_iter();
                work.extend(
                    kept.filter(|name| !known.contains(name))
                        .map(|name| (String::new(), name)),
                );
                // A socket, or a lock, and no trace of what it does.
                if work.is_empty() && self.is_silent(who.name()) {
                    work.insert((String::new(), String::new()));
                }
            }
            let note = format!("{why}: {}", who.untold());
            Some(work.into_iter().map(move |(ring, name)| {
                let object = format!("{} {name}", who.name());
                Line::unknown(who.stage(), ring, object.trim_end(), note.clone())
            }))
        });
        lines.flatten().collect()
    }

    /// Why a daemon tells nothing; none when it does, or need not.
    fn silence(&self, globals: &Globals, who: Who) -> Option<String> {
        if let Some(failure) = self.silent.borrow().get(&who) {
            return Some(match failure.code {
                Code::Denied => failure.message.clone(),
                _ => format!("{} does not answer", who.name()),
            });
        }
        if is_there(&globals.socket(who.name())) {
            return None;
        }
        let lives = is_locked(&globals.run_dir.join(format!("{}.lock", who.name())));
        (lives || who.is_missed()).then(|| format!("{} is not running", who.name()))
    }
}

async fn all<K: Kind>(globals: &Globals) -> Result<Vec<K>, Failure> {
    let mut client = resource::connect::<K>(globals).await?;
    resource::all::<K>(&mut client).await
}

/// Whether a daemon answers at all.
async fn lives(globals: &Globals, who: Who) -> Result<(), Failure> {
    let mut client = DaemonServiceClient::new(globals.connect(who.name()).await?);
    let reply: Reply<_> = client.get_daemon(GetDaemonRequest {}).await;
    let refused = |status| Failure::from_status(who.name(), &status);
    reply.map(drop).map_err(refused)
}

/// What a daemon does at these rings, with the ring, as they have it in their books. One that has ended left those that it wrote to:
/// their producer is what it was.
fn of_rings(who: Who, rings: &[RingStats]) -> BTreeSet<(String, String)> {
    let work = rings.iter().flat_map(|ring| {
        let producer = ring.producer.iter().filter(|it| it.live || who.is_missed());
        let readers = ring.readers.iter().filter(|it| it.live && who == Who::Txd);
        producer
            .map(|it| it.holder.as_str())
            .chain(readers.map(|it| it.label.as_str()))
            .filter_map(move |label| {
                Some((ring.info.name.to_string(), who.work(label)?.to_owned()))
            })
    });
    work.collect()
}

/// Names of what a daemon keeps: in its state file and, for mirrors, in the bpffs and in the run directory. Where one may not look, there are none.
fn traces(globals: &Globals, who: Who) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if let Some(dir) = globals.state_dir() {
        let file = format!("{}.json", who.name());
        // As the units have it, and as it is by hand.
        names.extend(kept(&dir.join(who.name()).join(&file)));
        names.extend(kept(&dir.join(&file)));
    }
    if who == Who::Mirrord {
        let notes = globals.run_dir.join("mirrord.links");
        names.extend(entries(&notes, |_| true));
        let pins = globals.bpffs();
        names.extend(pins.iter().flat_map(|dir| entries(dir, Path::is_dir)));
    }
    names
}

/// Names in a folder, without what is being written.
fn entries(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| wanted(path))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| !name.ends_with('~') && !name.starts_with('.'))
        .collect()
}

/// Names of what receives or copies in a state file.
fn kept(file: &Path) -> Vec<String> {
    #[derive(Deserialize)]
    struct Document {
        entries: BTreeMap<String, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        /// Only of tunnels.
        send: Option<IgnoredAny>,
    }
    let mut bytes = Vec::new();
    let read = open(file).map(|file| file.take(STATE_MAX).read_to_end(&mut bytes));
    let document = match read {
        Some(Ok(_)) => serde_json::from_slice::<Document>(&bytes).ok(),
        _ => None,
    };
    let entries = document.map(|document| document.entries);
    entries
        .into_iter()
        .flatten()
        .filter(|(_, entry)| entry.send.is_none())
        .map(|(name, _)| name)
        .collect()
}

/// Whether a process holds the lock of a daemon's run directory.
fn is_locked(lock: &Path) -> bool {
    open(lock).is_some_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// A plain file, if it may be read. Others may write to these directories: nothing there makes this wait.
fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    file.metadata().is_ok_and(|it| it.is_file()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_known_by_what_a_daemon_calls_itself() {
        assert_eq!(Who::Mirrord.work("mirrord web"), Some("web"));
        assert_eq!(Who::Mirrord.work("mirrord2 web"), None);
        assert_eq!(Who::Txd.work("tunneld x"), None);
    }

    #[test]
    fn a_state_file_tells_what_receives_and_never_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tunneld.json");
        assert!(kept(&file).is_empty());
        let text = r#"{"version":1,"entries":{"in":{"receive":{}},"out":{"send":{"ring":"x"}},"later":{"send":null}}}"#;
        fs::write(&file, text).unwrap();
        assert_eq!(kept(&file), ["in", "later"]);
        for text in ["", "{", "[]", "{\"entries\":[1]}"] {
            fs::write(&file, text).unwrap();
            assert!(kept(&file).is_empty(), "{text}");
        }
        assert!(kept(dir.path()).is_empty());
    }
}
