//! Specs on disk: `<state-dir>/<daemon>.json`, `{"version":1,"entries":{"NAME":SPEC,...}}`.
//!
//! The file is judged entry by entry. What this program does not understand (an entry that is no spec, a field of a later
//! version) is left out, told in a notice, and written again with every change, so that a program that does understand
//! it finds it. A file that is none at all is moved aside and kept; as long as it is there, the state is not
//! [complete](StateFile::is_complete), and nobody may conclude from a name's absence that it is not wanted.

use crate::{Error, Notices, instance::create_directory, lock, realtime_ns, reserve};
use rustix::fs::{Mode, OFlags, open};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

const VERSION: u64 = 1;
/// Longest file that is read: some ten thousand captures.
const MAX_BYTES: u64 = 16 << 20;
/// What a file that cannot be understood is called from then on.
const ASIDE: &str = "json.corrupt-";
/// Names of bad entries and fields that a notice tells; further ones are counted.
const NAMED: usize = 5;

/// Keeps named specs over a restart. A write replaces the whole file or nothing of it.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    notices: Notices,
    kept: Mutex<Kept>,
}

/// What was in the file and is not for this program to change.
#[derive(Debug, Default)]
struct Kept {
    /// Fields beside `version`, `entries` and `command_line`.
    fields: Map<String, Value>,
    /// Entries that are no specs.
    entries: BTreeMap<String, Value>,
    /// Of entries that are, what is in no spec of this version.
    unknown: BTreeMap<String, Value>,
    /// Entries that the command line asked for.
    command_line: BTreeSet<String>,
    /// There is a file of this daemon that was moved aside.
    aside: bool,
}

impl StateFile {
    /// The state file of `daemon` in `dir`, which is created (mode 0750) when it is not there.
    pub fn open(dir: &Path, daemon: &str, notices: &Notices) -> Result<StateFile, Error> {
        create_directory(dir)?;
        Ok(StateFile {
            path: dir.join(format!("{daemon}.json")),
            notices: notices.clone(),
            kept: Mutex::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entries; none when there is no file. What cannot be understood is kept and told in a notice; a file of
    /// another version is an error.
    pub fn load<S: Serialize + DeserializeOwned>(&self) -> Result<BTreeMap<String, S>, Error> {
        let (content, why) = match self.read() {
            Ok(content) => (content.unwrap_or_default(), None),
            Err(why) => {
                self.move_aside(&why);
                (Map::new(), Some(why))
            }
        };
        if let Some(version) = content.get("version")
            && version.as_u64() != Some(VERSION)
        {
            return Err(Error::StateVersion {
                path: self.path.clone(),
                version: version.as_u64().unwrap_or(0),
            });
        }
        let mut kept = Kept {
            aside: self.tell_of_files_aside(why.as_deref()),
            ..Kept::default()
        };
        let mut specs = BTreeMap::new();
        let mut told = Vec::new();
        for (field, value) in content {
            match (field.as_str(), value) {
                ("version", _) => {}
                ("entries", Value::Object(entries)) => {
                    for (name, value) in entries {
                        if let Some(spec) = read_entry(&name, value, &mut kept, &mut told) {
                            specs.insert(name, spec);
                        }
                    }
                }
                ("command_line", Value::Array(names)) => {
                    let names = names.iter().filter_map(Value::as_str);
                    kept.command_line = names.map(str::to_owned).collect();
                }
                (_, value) => {
                    told.push(format!("the field {}", field.escape_debug()));
                    kept.fields.insert(field, value);
                }
            }
        }
        self.tell_of_what_is_kept(&told);
        *lock(&self.kept) = kept;
        Ok(specs)
    }

    /// Whether all that the file said was understood. If not, a name that is in no entry may still be wanted.
    pub fn is_complete(&self) -> bool {
        let kept = lock(&self.kept);
        kept.entries.is_empty() && !kept.aside
    }

    /// The entries that a command line asked for.
    pub fn command_line(&self) -> BTreeSet<String> {
        lock(&self.kept).command_line.clone()
    }

    /// Notes that a command line asks for an entry, or that it was deleted since; written with the next `save`.
    pub fn mark_command_line(&self, name: &str, asked: bool) {
        let mut kept = lock(&self.kept);
        match asked {
            true => kept.command_line.insert(name.to_owned()),
            false => kept.command_line.remove(name),
        };
    }

    /// Forgets an entry that could not be understood, from the next `save` on; false when there is none of that name.
    pub fn forget(&self, name: &str) -> bool {
        let mut kept = lock(&self.kept);
        kept.unknown.remove(name);
        kept.entries.remove(name).is_some()
    }

    /// What the file says; nothing when there is none.
    fn read(&self) -> Result<Option<Map<String, Value>>, String> {
        // A pipe without a writer must not hold the daemon.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match open(&self.path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(format!("it cannot be opened: {}", io::Error::from(errno))),
        };
        let unreadable = |error: io::Error| format!("it cannot be read: {error}");
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err("it is no regular file".to_owned());
        }
        if metadata.len() > MAX_BYTES {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        let limited = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        if u64::try_from(limited.map_err(unreadable)?).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(too_long());
        }
        let content: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        match (content.get("version"), content.get("entries")) {
            (Some(Value::Number(version)), _) if version.as_u64() != Some(VERSION) => {}
            (Some(Value::Number(_)), Some(Value::Object(_))) => {}
            _ => return Err("it has no version or no entries".to_owned()),
        }
        Ok(Some(content))
    }

    /// What was not understood stays on the disk.
    fn move_aside(&self, why: &str) {
        let aside = self
            .path
            .with_extension(format!("{ASIDE}{}", realtime_ns()));
        let path = self.path.display();
        match fs::rename(&self.path, &aside) {
            Ok(()) => {
                tracing::error!(%path, aside = %aside.display(), why, "state file was not understood, starting without it")
            }
            Err(error) => {
                tracing::error!(%path, why, %error, "state file was not understood, and cannot be moved aside");
            }
        }
    }

    /// Tells of files that were not understood, now (`why`) or at an earlier start; whether there are any.
    fn tell_of_files_aside(&self, why: Option<&str>) -> bool {
        let name = self.path.with_extension(ASIDE);
        let prefix = name.file_name().unwrap_or_default().to_string_lossy();
        let entries = self.path.parent().and_then(|dir| fs::read_dir(dir).ok());
        let aside = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&*prefix))
            .map(|entry| entry.path())
            .max();
        if aside.is_none() && why.is_none() {
            return false;
        }
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        let aside = aside.unwrap_or_else(|| self.path.clone());
        self.notices.set(
            "state-corrupt",
            format!(
                "a state file was not understood{why} and is kept as {}: create what is missing again, then remove that file; \
                 as long as it is there, nothing that it may have asked for is cleaned up",
                aside.display()
            ),
        );
        true
    }

    fn tell_of_what_is_kept(&self, told: &[String]) {
        if told.is_empty() {
            return;
        }
        let named = &told[..told.len().min(NAMED)];
        let rest = match told.len() - named.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        self.notices.set(
            "state-unknown",
            format!(
                "the state file {} has what this version does not understand, which is left alone and kept: {}{rest}",
                self.path.display(),
                named.join("; ")
            ),
        );
    }

    /// Replaces the entries on disk. A failure (disk full, read-only) is logged and shown as a notice until a later
    /// write succeeds; the daemon goes on with what it has in memory. True when the entries are on disk.
    pub fn save<S: Serialize>(&self, entries: &BTreeMap<String, S>) -> bool {
        let temporary = self.path.with_extension("json.tmp");
        // A file for the entries, and one for the directory.
        match reserve::lend(2, || self.write(&temporary, entries)) {
            Ok(()) => {
                self.notices.clear("state");
                true
            }
            Err(error) => {
                // Free the space of a half-written file; it may not even exist.
                let _ = fs::remove_file(&temporary);
                tracing::error!(path = %self.path.display(), %error, "cannot save state");
                self.notices.set(
                    "state",
                    format!(
                        "state not saved: {}: {error}; what was changed since is lost at a restart, make room and change something again",
                        self.path.display()
                    ),
                );
                false
            }
        }
    }

    fn write<S: Serialize>(
        &self,
        temporary: &Path,
        entries: &BTreeMap<String, S>,
    ) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&self.document(entries)?)?;
        bytes.push(b'\n');
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(io::Error::other(too_long()));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    /// The entries, and what is kept beside them. An entry takes the place of one of its name that was not understood.
    fn document<S: Serialize>(&self, entries: &BTreeMap<String, S>) -> io::Result<Value> {
        let mut kept = lock(&self.kept);
        kept.entries.retain(|name, _| !entries.contains_key(name));
        kept.unknown.retain(|name, _| entries.contains_key(name));
        let mut all: Map<String, Value> = kept
            .entries
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        for (name, spec) in entries {
            let mut value = serde_json::to_value(spec)?;
            if let Some(unknown) = kept.unknown.get(name) {
                add(&mut value, unknown);
            }
            all.insert(name.clone(), value);
        }
        let mut document = kept.fields.clone();
        document.insert("version".to_owned(), VERSION.into());
        document.insert("entries".to_owned(), Value::Object(all));
        let marked = kept.command_line.iter();
        let marked: Vec<String> = marked
            .filter(|name| entries.contains_key(*name))
            .cloned()
            .collect();
        if !marked.is_empty() {
            document.insert("command_line".to_owned(), marked.into());
        }
        Ok(Value::Object(document))
    }
}

fn too_long() -> String {
    format!("it is longer than {} MiB", MAX_BYTES >> 20)
}

/// The spec in an entry. What is no spec is kept whole; of what is one, the fields that no spec has.
fn read_entry<S: Serialize + DeserializeOwned>(
    name: &str,
    value: Value,
    kept: &mut Kept,
    told: &mut Vec<String>,
) -> Option<S> {
    let spec: S = match serde_json::from_value(value.clone()) {
        Ok(spec) => spec,
        Err(error) => {
            told.push(format!("\"{}\": {error}", name.escape_debug()));
            kept.entries.insert(name.to_owned(), value);
            return None;
        }
    };
    // Specs write all of their fields, so what is not written again was not read.
    let known = serde_json::to_value(&spec).unwrap_or_default();
    if let Some(unknown) = beyond(&value, &known) {
        let mut fields = Vec::new();
        paths(&unknown, "", &mut fields);
        told.push(format!(
            "\"{}\" has {}",
            name.escape_debug(),
            fields.join(", ")
        ));
        kept.unknown.insert(name.to_owned(), unknown);
    }
    Some(spec)
}

/// What `all` has at places that `known` does not have.
fn beyond(all: &Value, known: &Value) -> Option<Value> {
    match (all, known) {
        (Value::Object(all), Value::Object(known)) => {
            let left: Map<String, Value> = all
                .iter()
                .filter_map(|(key, value)| {
                    let left = match known.get(key) {
                        None => Some(value.clone()),
                        Some(known) => beyond(value, known),
                    };
                    left.map(|left| (key.clone(), left))
                })
                .collect();
            (!left.is_empty()).then_some(Value::Object(left))
        }
        (Value::Array(all), Value::Array(known)) if all.len() == known.len() => {
            let left: Vec<Value> = all
                .iter()
                .zip(known)
                .map(|(all, known)| beyond(all, known).unwrap_or_default())
                .collect();
            let some = left.iter().any(|left| !left.is_null());
            some.then_some(Value::Array(left))
        }
        _ => None,
    }
}

/// Puts `unknown` back to where it was, as far as that place is still there.
fn add(value: &mut Value, unknown: &Value) {
    match (value, unknown) {
        (Value::Object(value), Value::Object(unknown)) => {
            for (key, unknown) in unknown {
                match value.get_mut(key) {
                    None => {
                        value.insert(key.clone(), unknown.clone());
                    }
                    Some(inner) => add(inner, unknown),
                }
            }
        }
        (Value::Array(value), Value::Array(unknown)) if value.len() == unknown.len() => {
            for (value, unknown) in value.iter_mut().zip(unknown) {
                add(value, unknown);
            }
        }
        _ => {}
    }
}

/// The fields of a tree, by their paths.
fn paths(value: &Value, within: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = match within {
                    "" => key.clone(),
                    within => format!("{within}.{key}"),
                };
                match value {
                    Value::Object(_) | Value::Array(_) => paths(value, &path, found),
                    _ => found.push(path),
                }
            }
            if fields.is_empty() {
                found.push(within.to_owned());
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate().filter(|(_, item)| !item.is_null()) {
                paths(item, &format!("{within}[{at}]"), found);
            }
        }
        _ => found.push(within.to_owned()),
    }
}

#[cfg(test)]
mod tests;
