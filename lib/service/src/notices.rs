//! Things that the operator should know while a daemon serves.

use crate::lock;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Texts shown in `DaemonService` and by `fluxctl status`, each under a key so that it can be replaced and taken back.
/// Clones share the same texts.
#[derive(Debug, Clone, Default)]
pub struct Notices(Arc<Mutex<BTreeMap<String, String>>>);

impl Notices {
    /// Shows `text` under `key` and logs it, unless it is shown already.
    pub fn set(&self, key: &str, text: impl Into<String>) {
        let text = text.into();
        let mut shown = lock(&self.0);
        if shown.get(key) != Some(&text) {
            tracing::warn!(notice = key, "{text}");
            shown.insert(key.to_owned(), text);
        }
    }

    /// Takes back what is shown under `key`.
    pub fn clear(&self, key: &str) {
        if lock(&self.0).remove(key).is_some() {
            tracing::info!(notice = key, "notice no longer applies");
        }
    }

    /// The texts, in the order of their keys.
    pub fn list(&self) -> Vec<String> {
        lock(&self.0).values().cloned().collect()
    }
}
