//! Microsoft's endpoint list: the sets of names, prefixes and ports behind Microsoft 365, read from
//! the web service's JSON or from the snapshot built into the binary.
//!
//! A feed decides where an office's traffic goes, so it is believed only whole: one entry that is
//! wrong or dangerous refuses everything in the file, and what is in use stays in use.

#[cfg(any(test, feature = "test-cases"))]
pub mod cases;
mod change;
mod copy;
mod difference;
mod error;
mod explanation;
mod fetch;
mod folder;
#[cfg(test)]
pub(crate) mod fuzz;
mod guards;
mod hooks;
mod journal;
mod names;
mod ports;
mod sealed;
mod service;
mod signer;
mod snapshot;
mod special;
mod store;
mod validate;
mod version;
mod vocabulary;

use std::{fmt, path::Path};

use ipnet::IpNet;

pub use self::{
    change::{By, ChangeError, Keeper, Outcome, Policy, Publish, Report, Rules},
    copy::{COPY_BYTES, Copy, CopyHeader, ListClient, ListReport, Remote},
    difference::{Changed, Difference, Extent, Kind, ServiceParts, SetDifference},
    error::{FeedError, FeedProblem, Place},
    explanation::Explanation,
    fetch::{Access, ErrorKind, Fetched, ServiceError, Validators},
    guards::{Guards, Objection},
    hooks::Hooks,
    journal::{Deed, Entry, Journal},
    names::NamePattern,
    ports::{PortRange, Ports, PortsError},
    sealed::StoreError,
    service::{Client, FOLDER, MICROSOFT, Service},
    signer::Signer,
    snapshot::render as render_snapshot,
    special::{documentation, never_steered},
    store::{Header, Key, Leaving, Pinned, State, Store, Stored, Waiting},
    validate::limits,
    version::{FeedVersion, NoVersion},
    vocabulary::{Category, Instance, ServiceArea, SetId, UnknownWord},
};

/// One accepted endpoint list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// The cloud the list belongs to. The file does not say it, so the reader must.
    pub instance: Instance,
    /// Where the list was read.
    pub origin: Origin,
    /// Tells one content from another: FNV-1a over the bytes that were read.
    pub digest: Digest,
    /// The sets in ascending order of their ids.
    pub sets: Vec<EndpointSet>,
}

/// One record of the endpoint web service: alternatives (names, prefixes) for one group of servers,
/// and the ports that hold for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSet {
    /// Microsoft's number, stable over versions; each instance has its own.
    pub id: SetId,
    /// The service it belongs to.
    pub service_area: ServiceArea,
    /// How much Microsoft wants this traffic to take the short way.
    pub category: Category,
    /// Names, lower case. Empty for sets that are addresses only.
    pub names: Vec<NamePattern>,
    /// Prefixes without host bits, sorted, each once. Empty for sets that are names only.
    pub prefixes: Vec<IpNet>,
    /// Destination ports over TCP; empty = none.
    pub tcp: Ports,
    /// Destination ports over UDP; empty = none.
    pub udp: Ports,
    /// Whether Microsoft 365 fails without it.
    pub required: bool,
}

/// Where a feed came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The snapshot in the binary.
    Snapshot {
        /// The day the web service gave that answer, `YYYY-MM-DD`.
        date: String,
    },
    /// A file in the web service's JSON.
    File(String),
    /// An answer of the web service, or of a mirror.
    Service {
        /// Microsoft's version.
        version: FeedVersion,
        /// Where it was fetched.
        source: String,
    },
}

/// A fingerprint of a feed's bytes; not cryptographic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Feed {
    /// The snapshot that is part of the binary (Worldwide).
    ///
    /// Fails only when the binary was built with a damaged snapshot; a test keeps that from happening.
    pub fn builtin() -> Result<Self, FeedError> {
        snapshot::parse(snapshot::TEXT)
    }

    /// Reads and validates a file in the web service's JSON.
    ///
    /// Fails when the file cannot be read or anything in it is wrong; the error lists all that is.
    pub fn read(path: &Path, instance: Instance) -> Result<Self, FeedError> {
        let name = path.display().to_string();
        let refuse = |reason: String, remedy| {
            Err(FeedError::new(
                &name,
                vec![FeedProblem::of_the_file(reason, remedy)],
            ))
        };
        // The size first: a path that points at a disk image must not fill the memory.
        let size = match std::fs::metadata(path) {
            Ok(facts) if facts.is_dir() => {
                return refuse("is a directory".into(), "name the JSON file in it");
            }
            Ok(facts) => facts.len(),
            Err(error) => {
                return refuse(
                    format!("cannot be read: {error}"),
                    "check the path and that steer may read it",
                );
            }
        };
        if size > limits::FILE_BYTES {
            return refuse(
                format!(
                    "has {size} bytes, more than the {} steer reads",
                    limits::FILE_BYTES
                ),
                validate::FETCH_AGAIN,
            );
        }
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&name, &bytes, instance),
            Err(error) => refuse(
                format!("cannot be read: {error}"),
                "check the path and that steer may read it",
            ),
        }
    }

    /// Validates an answer of the web service's endpoints method. `name` is what errors call it.
    ///
    /// Fails with everything that is wrong in it.
    pub fn parse(name: &str, bytes: &[u8], instance: Instance) -> Result<Self, FeedError> {
        let sets = validate::json(bytes).map_err(|problems| FeedError::new(name, problems))?;
        let origin = Origin::File(name.to_owned());
        Ok(Self {
            instance,
            origin,
            digest: Digest::of(bytes),
            sets,
        })
    }

    /// Refuses the feed if one of its prefixes overlaps a network of the office, unless `exclude`
    /// holds what both have in common: steering it would cut hosts of the office off from each
    /// other.
    pub fn check_against(&self, office: &[IpNet], exclude: &[IpNet]) -> Result<(), FeedError> {
        let problems = validate::overlaps(&self.sets, office, exclude);
        if problems.is_empty() {
            return Ok(());
        }
        Err(FeedError::new(&self.origin.to_string(), problems))
    }

    /// Microsoft's version of the list, if it is known.
    pub fn version(&self) -> Option<FeedVersion> {
        match &self.origin {
            Origin::Service { version, .. } => Some(*version),
            Origin::Snapshot { .. } | Origin::File(_) => None,
        }
    }

    /// The day of the snapshot, as a version: changes since then are newer.
    fn day(&self) -> Option<FeedVersion> {
        match &self.origin {
            Origin::Snapshot { date } => FeedVersion::of_day(date),
            Origin::File(_) | Origin::Service { .. } => self.version(),
        }
    }

    /// The set with this id.
    pub fn set(&self, id: SetId) -> Option<&EndpointSet> {
        self.sets
            .binary_search_by_key(&id, |set| set.id)
            .ok()
            .map(|index| &self.sets[index])
    }
}

impl EndpointSet {
    /// All ports of one transport protocol; `None` for a protocol the feed does not know.
    pub fn ports(&self, protocol: u8) -> Option<&Ports> {
        match protocol {
            6 => Some(&self.tcp),
            17 => Some(&self.udp),
            _ => None,
        }
    }
}

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        Self(fnv1a(bytes))
    }
}

/// 64-bit FNV-1a: stable over releases and machines, unlike the standard library's hasher.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot { date } => write!(f, "built-in snapshot of {date}"),
            Self::File(path) => f.write_str(path),
            Self::Service { version, source } => write!(f, "version {version} from {source}"),
        }
    }
}

#[cfg(test)]
mod tests;
