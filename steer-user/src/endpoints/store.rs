//! Versions of the list on disk, what is in use of them, and the journal of what moved.
//!
//! ```text
//! STATE_DIR/feed/guid            who this machine is to the web service
//! STATE_DIR/feed/state           what is in use, what waits, what is leaving
//! STATE_DIR/feed/journal.jsonl   one JSON object for each change, the oldest first
//! STATE_DIR/feed/versions/       lists that were in use
//! STATE_DIR/feed/waiting/        the list that is held back
//! ```
//!
//! Every file but the journal begins with the SHA-256 of the rest and is replaced whole. The state
//! carries the latest journal entry, so that a crash between the two loses none and doubles none.
//! What is damaged is skipped with a word.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    EndpointSet, Feed, FeedVersion, Instance, Origin,
    explanation::Explanation,
    journal::{Entry, Journal},
    sealed::{StoreError, digest, failed, replace, unseal},
};
use crate::{cut, system::file};

/// The feed directory of a state directory.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    instance: Instance,
    /// What the last write left.
    state: State,
}

/// What is in use, what waits, and what is leaving.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The list in use; none: the one to start with (a file, or the built-in snapshot).
    pub active: Option<Key>,
    /// What was in use before, the latest last; `None` is the one to start with.
    #[serde(default)]
    pub before: Vec<Option<Key>>,
    /// What is held back.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// Whether the operator holds the list in use.
    #[serde(default)]
    pub pinned: Option<Pinned>,
    /// Entries that are gone from the list and steered still.
    #[serde(default)]
    pub leaving: Vec<Leaving>,
    /// When the service was last asked with success, in Unix time by this machine's clock.
    #[serde(default)]
    pub checked: Option<u64>,
    /// The latest journal entry.
    #[serde(default)]
    pub last: Option<Entry>,
}

/// Names a version on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Microsoft's version.
    pub version: FeedVersion,
    /// The first 12 digits of the list's SHA-256: a mirror may correct a list without a new version.
    pub digest: String,
}

/// A list that is held back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Which.
    pub key: Key,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// Whether an operator can have it applied by approving it.
    pub can_be_approved: bool,
}

/// The list in use is held by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// By whom.
    pub who: String,
    /// Why.
    pub why: String,
}

/// What a change took out of a set, and how long it is steered still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The part of the set, as the service writes a set.
    pub part: serde_json::Value,
    /// The version that has it no more.
    pub since: FeedVersion,
    /// In seconds of running time: a wrong clock ends nothing early.
    pub left: u64,
}

/// What is known of a version besides its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The cloud.
    pub instance: String,
    /// Microsoft's version.
    pub version: FeedVersion,
    /// Where it was fetched.
    pub source: String,
    /// When, in Unix time by this machine's clock.
    pub fetched: u64,
    /// The service's own words about what moved.
    #[serde(default)]
    pub explained: Vec<Explanation>,
}

/// A version as read from disk.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name.
    pub key: Key,
    /// What is known of it.
    pub header: Header,
    /// The list.
    pub feed: Feed,
}

impl Store {
    /// Opens the store of a state directory, and completes what a crash left undone.
    ///
    /// Fails when the directory cannot be used at all; damaged files are skipped with a word.
    pub fn open(state_dir: &Path, instance: Instance) -> Result<Self, StoreError> {
        let mut store = Self::look(state_dir, instance);
        for part in [VERSIONS, WAITING] {
            let folder = store.folder.join(part);
            fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
        }
        store.finish_journal()?;
        if let Some(waiting) = &store.state.waiting
            && let Err(error) = store.read(WAITING, &waiting.key)
        {
            warn!("{error}: it is fetched again");
            store.state.waiting = None;
        }
        Ok(store)
    }

    /// Reads what is there, and writes nothing.
    pub fn look(state_dir: &Path, instance: Instance) -> Self {
        let folder = state_dir.join("feed");
        let mut store = Self {
            folder,
            instance,
            state: State::default(),
        };
        store.state = store.read_state();
        store
    }

    /// What is in use, what waits, and what is leaving.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The list in use, without what is leaving; none: the one to start with.
    pub fn active(&self) -> Option<Stored> {
        let key = self.state.active.as_ref()?;
        match self.read(VERSIONS, key) {
            Ok(stored) => Some(stored),
            Err(error) => {
                warn!("{error}: the last good version is used instead");
                self.versions().into_iter().next_back()
            }
        }
    }

    /// Every good version that was in use, the oldest first. Damaged ones are skipped with a word.
    pub fn versions(&self) -> Vec<Stored> {
        let mut stored: Vec<Stored> = self
            .keys(VERSIONS)
            .into_iter()
            .filter_map(|key| {
                self.read(VERSIONS, &key)
                    .inspect_err(|error| warn!("{error}: skipped"))
                    .ok()
            })
            .collect();
        stored.sort_by_key(|it| (it.key.version, it.header.fetched));
        stored
    }

    /// The newest version that was ever taken, in use or held back, of those that are kept; by the
    /// files' names.
    pub fn newest(&self) -> Option<FeedVersion> {
        let keys = [VERSIONS, WAITING].map(|part| self.keys(part));
        keys.iter().flatten().map(|key| key.version).max()
    }

    /// The list that is held back.
    pub fn waiting(&self) -> Option<Stored> {
        let waiting = self.state.waiting.as_ref()?;
        self.read(WAITING, &waiting.key).ok()
    }

    /// Keeps a list that is not in use yet, in place of any other that waits.
    pub fn put(&self, header: &Header, list: &[u8]) -> Result<Key, StoreError> {
        let key = Key {
            version: header.version,
            digest: digest(list)[..12].to_owned(),
        };
        let old = self.keys(WAITING);
        let mut text = serde_json::to_vec(header).map_err(|e| failed(&self.folder, &e.into()))?;
        text.push(b'\n');
        text.extend_from_slice(list);
        replace(&self.path(WAITING, &key), &text)?;
        for old in old.iter().filter(|old| **old != key) {
            Self::remove(&self.path(WAITING, old))?;
        }
        Ok(key)
    }

    /// Takes a list from those that wait to those that are used. It is in use once the state that
    /// names it is saved.
    pub fn accept(&self, key: &Key) -> Result<(), StoreError> {
        let (from, to) = (self.path(WAITING, key), self.path(VERSIONS, key));
        fs::rename(&from, &to).map_err(|error| failed(&from, &error))?;
        cut::point();
        for part in [VERSIONS, WAITING] {
            let folder = self.folder.join(part);
            fs::File::open(&folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| failed(&folder, &error))?;
        }
        Ok(())
    }

    /// Reads a version that was in use.
    pub fn version(&self, key: &Key) -> Result<Stored, StoreError> {
        self.read(VERSIONS, key)
    }

    /// Writes the state, and then its journal entry if it has a new one.
    pub fn save(&mut self, state: State) -> Result<(), StoreError> {
        let text = serde_json::to_vec(&state).map_err(|e| failed(&self.folder, &e.into()))?;
        replace(&self.folder.join("state"), &text)?;
        let new = state.last != self.state.last;
        self.state = state;
        if new {
            cut::point();
            self.finish_journal()?;
        }
        Ok(())
    }

    /// Removes the oldest versions beyond `most` that are neither in use nor the one before.
    pub fn prune(&self, most: usize) -> Result<(), StoreError> {
        let versions = self.versions();
        let needed = |key: &Key| {
            let before = self.state.before.last().and_then(Option::as_ref);
            self.state.active.as_ref() == Some(key) || before == Some(key)
        };
        let many = versions.len().saturating_sub(most);
        for old in versions.iter().take(many).filter(|it| !needed(&it.key)) {
            Self::remove(&self.path(VERSIONS, &old.key))?;
        }
        Ok(())
    }

    /// What moved so far.
    pub fn journal(&self) -> Journal {
        Journal::at(self.folder.join(JOURNAL))
    }

    /// This machine's GUID: made once, from the kernel's randomness.
    pub fn guid(&self) -> Result<String, StoreError> {
        let path = self.folder.join("guid");
        let is_guid = |text: &str| {
            text.len() == 36 && text.bytes().all(|it| it == b'-' || it.is_ascii_hexdigit())
        };
        if let Ok(text) = fs::read_to_string(&path)
            && is_guid(text.trim())
        {
            return Ok(text.trim().to_owned());
        }
        let source = Path::new("/proc/sys/kernel/random/uuid");
        let text = fs::read_to_string(source).map_err(|error| failed(source, &error))?;
        file::replace(&path, text.as_bytes()).map_err(|error| failed(&path, &error))?;
        Ok(text.trim().to_owned())
    }

    /// Completes the journal with the state's entry.
    fn finish_journal(&self) -> Result<(), StoreError> {
        let last = self.state.last.as_ref();
        last.map_or(Ok(()), |entry| self.journal().keep(entry))
    }

    /// The state; if it is lost, the newest good version that was in use is in use again.
    fn read_state(&self) -> State {
        let path = self.folder.join("state");
        let reason = match fs::read(&path) {
            Ok(text) => match unseal(&text).map(serde_json::from_slice::<State>) {
                Some(Ok(state)) => return state,
                Some(Err(error)) => error.to_string(),
                None => "is damaged".into(),
            },
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && self.keys(VERSIONS).is_empty() =>
            {
                return State::default();
            }
            Err(error) => error.to_string(),
        };
        let versions = self.versions();
        let active = versions.last().map(|stored| stored.key.clone());
        warn!(
            "{}: {reason}. The newest good version is taken as the one in use: {}",
            path.display(),
            active
                .as_ref()
                .map_or_else(|| "none".into(), |key| key.version.to_string()),
        );
        State {
            active,
            last: self.journal().entries().pop(),
            ..State::default()
        }
    }

    fn read(&self, part: &str, key: &Key) -> Result<Stored, StoreError> {
        let path = self.path(part, key);
        let text = fs::read(&path).map_err(|error| failed(&path, &error))?;
        let damaged = |reason: &str| StoreError {
            path: path.clone(),
            reason: reason.into(),
        };
        let rest = unseal(&text).ok_or_else(|| damaged("is damaged or cut short"))?;
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| damaged("has no header"))?;
        let header: Header = serde_json::from_slice(&rest[..end])
            .map_err(|error| damaged(&format!("has a bad header: {error}")))?;
        if header.instance != self.instance.as_str() {
            return Err(damaged(&format!("belongs to {}", header.instance)));
        }
        let name = format!("version {}", header.version);
        let mut feed = Feed::parse(&name, &rest[end + 1..], self.instance)
            .map_err(|error| damaged(&error.to_string()))?;
        feed.origin = Origin::Service {
            version: header.version,
            source: header.source.clone(),
        };
        Ok(Stored {
            key: key.clone(),
            header,
            feed,
        })
    }

    /// The names of the files of this cloud.
    fn keys(&self, part: &str) -> Vec<Key> {
        let Ok(entries) = fs::read_dir(self.folder.join(part)) else {
            return Vec::new();
        };
        let names = entries
            .flatten()
            .filter_map(|it| it.file_name().into_string().ok());
        let key = |name: String| {
            let rest = name
                .strip_prefix(self.instance.as_str())?
                .strip_prefix('-')?;
            let (version, digest) = rest.strip_suffix(".list")?.split_once('-')?;
            Some(Key {
                version: version.parse().ok()?,
                digest: digest.to_owned(),
            })
        };
        names.filter_map(key).collect()
    }

    fn path(&self, part: &str, key: &Key) -> PathBuf {
        let name = format!("{}-{}-{}.list", self.instance, key.version, key.digest);
        self.folder.join(part).join(name)
    }

    fn remove(path: &Path) -> Result<(), StoreError> {
        file::remove(path).map_err(|error| failed(path, &error))
    }
}

const VERSIONS: &str = "versions";
const WAITING: &str = "waiting";
const JOURNAL: &str = "journal.jsonl";

/// Sets as the service writes them.
pub(super) fn to_json(set: &EndpointSet) -> serde_json::Value {
    let names: Vec<&str> = set.names.iter().map(super::NamePattern::as_str).collect();
    serde_json::json!({
        "id": set.id.0,
        "serviceArea": set.service_area.as_str(),
        "category": set.category.as_str(),
        "urls": names,
        "ips": set.prefixes,
        "tcpPorts": set.tcp.to_string(),
        "udpPorts": set.udp.to_string(),
        "required": set.required,
    })
}
