//! Lists that are fetched from a URL, and their last good answers on disk: `STATE_DIR/lists/NAME`,
//! sealed and replaced whole as the feed's files are, with `NAME.jsonl`, the journal.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    Access, ErrorKind, FeedVersion, Fetched, ServiceError, Signer, StoreError, Validators,
    fetch::Fetcher,
    journal::{Entry, Journal},
    sealed::{digest, failed, replace, unseal},
    signer::SIGNATURE_BYTES,
};

/// The largest list that is read.
pub const COPY_BYTES: usize = 1 << 20;

/// Where a list is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `https` only.
    pub url: String,
    /// Who must have signed it; none: nobody.
    pub signer: Option<Signer>,
}

/// An answer that was good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What is known of it.
    pub header: CopyHeader,
    /// The list as it was sent.
    pub list: Vec<u8>,
}

/// What is known of an answer besides its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyHeader {
    /// Where it was fetched.
    pub url: String,
    /// When, in Unix time by this machine's clock.
    pub fetched: u64,
    /// The signer's version of it.
    #[serde(default)]
    pub version: Option<FeedVersion>,
    /// What the server said of it.
    #[serde(default)]
    pub validators: Validators,
    /// The latest entry of the list's journal.
    #[serde(default)]
    pub last: Option<Entry>,
}

/// How such a list is kept current, for people and for the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReport {
    /// The list's name.
    pub name: String,
    /// Where it is fetched.
    pub url: String,
    /// Services of the list in use; 0 before the first was fetched.
    pub services: usize,
    /// Prefixes and names of those.
    pub entries: usize,
    /// When it was fetched, in Unix time.
    pub fetched: Option<u64>,
    /// How long ago that is, in seconds by this machine's clock.
    pub age: Option<u64>,
    /// Looks that failed in a row.
    pub failures: u64,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Failed looks since the controller's start, by a word.
    pub errors: BTreeMap<String, u64>,
}

impl Copy {
    /// The copy of this list from there, if there is a good one; else with a word why not.
    pub fn read(state_dir: &Path, name: &str, url: &str) -> Option<Self> {
        let path = path(state_dir, name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!("{}: {error}: the list is fetched again", path.display());
                return None;
            }
        };
        let copy = unseal(&text).and_then(Self::parse);
        if copy.is_none() {
            warn!("{} is damaged: the list is fetched again", path.display());
        }
        copy.filter(|copy| copy.header.url == url)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let end = text.iter().position(|byte| *byte == b'\n')?;
        Some(Self {
            header: serde_json::from_slice(&text[..end]).ok()?,
            list: text[end + 1..].to_owned(),
        })
    }

    /// What the journal calls it: the signer's version, else the first digits of its SHA-256.
    pub fn version(&self) -> String {
        let version = self.header.version.map(|it| it.to_string());
        version.unwrap_or_else(|| digest(&self.list)[..12].to_owned())
    }

    /// Completes the list's journal with the latest entry.
    pub fn finish_journal(&self, state_dir: &Path, name: &str) -> Result<(), StoreError> {
        let last = self.header.last.as_ref();
        last.map_or(Ok(()), |entry| Self::journal(state_dir, name).keep(entry))
    }

    /// What moved in a list so far.
    pub fn journal(state_dir: &Path, name: &str) -> Journal {
        Journal::at(path(state_dir, name).with_extension("jsonl"))
    }

    /// Puts it in place of the one before.
    pub fn write(&self, state_dir: &Path, name: &str) -> Result<(), StoreError> {
        let path = path(state_dir, name);
        let mut text = serde_json::to_vec(&self.header).map_err(|e| failed(&path, &e.into()))?;
        text.push(b'\n');
        text.extend_from_slice(&self.list);
        replace(&path, &text)
    }
}

fn path(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("lists").join(name)
}

/// Asks for a list.
pub struct ListClient {
    name: String,
    remote: Remote,
    server: Fetcher,
}

impl ListClient {
    /// Fails when no certificate authority can be read.
    pub fn new(name: &str, remote: Remote, access: Access) -> Result<Self, ServiceError> {
        Ok(Self {
            name: name.to_owned(),
            remote,
            server: Fetcher::new(access)?,
        })
    }

    /// Another list than the one that is known, if there is one; signed, if it has to be.
    pub async fn newer(&self, known: Option<&CopyHeader>) -> Result<Option<Copy>, ServiceError> {
        let url = &self.remote.url;
        let validators = known.map(|it| it.validators.clone()).unwrap_or_default();
        let fetched = self.server.get_newer(url, url, COPY_BYTES, &validators);
        let Fetched::New(list, validators) = fetched.await? else {
            return Ok(None);
        };
        let version = match &self.remote.signer {
            Some(signer) => Some(self.signed(signer, &list, known).await?),
            None => None,
        };
        Ok(Some(Copy {
            header: CopyHeader {
                url: url.clone(),
                fetched: 0,
                version,
                validators,
                last: known.and_then(|it| it.last.clone()),
            },
            list,
        }))
    }

    /// The version that the signer says it is: never an older one than the one in use.
    async fn signed(
        &self,
        signer: &Signer,
        list: &[u8],
        known: Option<&CopyHeader>,
    ) -> Result<FeedVersion, ServiceError> {
        let url = format!("{}.minisig", self.remote.url);
        let signature = self.server.get(&url, &url, SIGNATURE_BYTES).await?;
        let refuse = |reason: String| {
            let text = format!("{url}: the list is not signed by its public_key: {reason}");
            ServiceError::new(ErrorKind::Signature, text)
        };
        let word = signer.word(list, &signature).map_err(refuse)?;
        let version = word
            .strip_prefix(&self.name)
            .and_then(|rest| rest.strip_prefix(' ')?.parse::<FeedVersion>().ok())
            .ok_or_else(|| {
                refuse(format!(
                    "it was signed as {word:?}, not as \"{} VERSION\", a version being ten digits",
                    self.name
                ))
            })?;
        match known.and_then(|it| it.version) {
            Some(newest) if version < newest => {
                let text = format!("{url}: version {version} is older than {newest}, in use here");
                Err(ServiceError::new(ErrorKind::Older, text))
            }
            _ => Ok(version),
        }
    }
}
