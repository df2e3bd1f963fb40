//! The journal of a list: what moved, when, by whom and why, one JSON object a line, the oldest first.
//!
//! Whoever changes the list keeps the latest entry with it, and has the journal completed afterwards
//! and at the next start: a crash between the two loses none and doubles none.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    Difference,
    explanation::Explanation,
    sealed::{StoreError, failed},
};
use crate::cut;

/// A journal beyond this is set aside as `….old.jsonl`.
const JOURNAL_BYTES: u64 = 8 << 20;

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up from 1.
    pub number: u64,
    /// Unix time by this machine's clock.
    pub time: u64,
    /// Who: `steer`, or a user.
    pub who: String,
    /// What was done.
    pub what: Deed,
    /// Why.
    pub why: String,
    /// The version in use before.
    pub from: String,
    /// The version that it is about.
    pub to: String,
    /// What moved in what is steered.
    #[serde(default, skip_serializing_if = "Difference::is_empty")]
    pub moved: Difference,
    /// The service's own words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explained: Vec<Explanation>,
    /// The generation that it became, if a controller ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// What a journal entry says was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// A list came into use.
    Applied,
    /// A list was held back.
    Held,
    /// An earlier list came into use again.
    RolledBack,
    /// The operator holds the list in use.
    Pinned,
    /// He does so no more.
    Unpinned,
    /// The delay of removed entries was over.
    Left,
}

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// In this file, whose name ends in `.jsonl`; it need not be there.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The entries, the oldest first; lines that cannot be read are skipped with a word.
    pub fn entries(&self) -> Vec<Entry> {
        let text = fs::read(&self.path).unwrap_or_default();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|it| !it.is_empty());
        lines
            .filter_map(|line| {
                serde_json::from_slice(line)
                    .inspect_err(|error| {
                        warn!("{}: a line is skipped: {error}", self.path.display());
                    })
                    .ok()
            })
            .collect()
    }

    /// Appends an entry if the journal lacks it.
    pub fn keep(&self, entry: &Entry) -> Result<(), StoreError> {
        let entries = self.entries();
        if entries
            .last()
            .is_some_and(|last| last.number >= entry.number)
        {
            return Ok(());
        }
        let append = || -> io::Result<()> {
            let mut line = Vec::new();
            match fs::read(&self.path) {
                Ok(text) if text.len() as u64 > JOURNAL_BYTES => {
                    fs::rename(&self.path, self.path.with_extension("old.jsonl"))?;
                }
                // A line that a crash cut short stays a line of its own.
                Ok(text) if text.last().is_some_and(|last| *last != b'\n') => line.push(b'\n'),
                _ => {}
            }
            serde_json::to_writer(&mut line, entry)?;
            line.push(b'\n');
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)?;
            cut::point();
            file.write_all(&line)?;
            cut::point();
            file.sync_all()
        };
        append().map_err(|error| failed(&self.path, &error))
    }
}
