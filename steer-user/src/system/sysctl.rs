//! Kernel settings of one interface, each with an undo record: the previous value is on disk before
//! the new one is written, and comes back only if the value is still ours.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::{Change, Family, InterfaceName, Kernel, Presence, SystemError, file};
use crate::cut;

/// One value below `/proc/sys/net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Below `/proc/sys`, with slashes: interface names may contain dots.
    key: String,
    interface: String,
    value: String,
}

impl Sysctl {
    /// `net.FAMILY.conf.INTERFACE.NAME = value`. Never `all` or `default`: those are the box's.
    pub fn of_interface(family: Family, interface: &InterfaceName, name: &str, value: u32) -> Self {
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        Self {
            key: format!("net/{family}/conf/{interface}/{name}"),
            interface: interface.as_str().into(),
            value: value.to_string(),
        }
    }

    /// The interface it is about.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether both are about the same key.
    pub fn same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }

    pub(super) fn present(&self) -> Result<Presence, SystemError> {
        Ok(match self.read()? {
            None if self.is_unknown() => Presence::Present,
            None => Presence::Absent,
            Some(value) if value == self.value => Presence::Present,
            Some(value) => Presence::Different(format!("its value is {value}")),
        })
    }

    pub(super) fn apply(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        let Some(previous) = self.read()? else {
            if self.is_unknown() {
                return Ok(Change::None);
            }
            return Err(SystemError::LinkMissing {
                interface: self.interface.clone(),
                what: self.to_string(),
            });
        };
        if previous == self.value {
            return Ok(Change::None);
        }
        kernel.undo_record().edit(|sysctls| {
            sysctls.insert(
                self.key.clone(),
                Undo {
                    interface: self.interface.clone(),
                    index: index_of(&self.interface),
                    previous,
                    ours: self.value.clone(),
                },
            );
        })?;
        cut::point();
        self.write(&self.value)?;
        Ok(Change::Made)
    }

    pub(super) fn remove(&self, kernel: &Kernel) -> Result<Change, SystemError> {
        let record = kernel.undo_record();
        let Some(undo) = record.read()?.remove(&self.key) else {
            return Ok(Change::None);
        };
        // An interface that was made anew has its own values, and somebody who changed the value
        // after us wants theirs.
        let same_interface = undo.index == index_of(&self.interface);
        let mut change = Change::None;
        if same_interface && self.read()?.is_some_and(|now| now == undo.ours) {
            self.write(&undo.previous)?;
            change = Change::Made;
        }
        cut::point();
        record.edit(|sysctls| {
            sysctls.remove(&self.key);
        })?;
        Ok(change)
    }

    /// Whether there is an interface, but no such setting: a kernel without IPv6 privacy, or an MTU
    /// that is too small for IPv6. Then there is nothing to set.
    fn is_unknown(&self) -> bool {
        self.key.starts_with("net/ipv6/") && index_of(&self.interface).is_some()
    }

    fn path(&self) -> PathBuf {
        Path::new("/proc/sys").join(&self.key)
    }

    /// `None` if there is no such key, which is so when the interface is not there.
    fn read(&self) -> Result<Option<String>, SystemError> {
        match fs::read_to_string(self.path()) {
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn write(&self, value: &str) -> Result<(), SystemError> {
        fs::write(self.path(), value).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> SystemError {
        SystemError::Sysctl {
            key: self.key.clone(),
            source,
        }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl -w {}={}", self.key, self.value)
    }
}

fn index_of(interface: &str) -> Option<u32> {
    if_nametoindex(interface).ok()
}

/// The file with the values that were there before steer.
#[derive(Debug)]
pub(super) struct UndoRecord {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    /// After a reboot every value is what the box's own start made it; the record means nothing.
    boot: String,
    sysctls: BTreeMap<String, Undo>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Undo {
    interface: String,
    index: Option<u32>,
    previous: String,
    ours: String,
}

impl UndoRecord {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn sysctls(&self) -> Result<Vec<Sysctl>, SystemError> {
        let sysctls = self.read()?.into_iter().map(|(key, undo)| Sysctl {
            key,
            interface: undo.interface,
            value: undo.ours,
        });
        Ok(sysctls.collect())
    }

    fn read(&self) -> Result<BTreeMap<String, Undo>, SystemError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(self.failed(source)),
        };
        let file: File = serde_json::from_slice(&text).map_err(|e| self.failed(e.into()))?;
        if file.boot == self.boot()? {
            Ok(file.sysctls)
        } else {
            Ok(BTreeMap::new())
        }
    }

    fn edit(&self, edit: impl FnOnce(&mut BTreeMap<String, Undo>)) -> Result<(), SystemError> {
        let mut sysctls = self.read()?;
        edit(&mut sysctls);
        let written = if sysctls.is_empty() {
            file::remove(&self.path)
        } else {
            let file = File {
                boot: self.boot()?,
                sysctls,
            };
            serde_json::to_vec_pretty(&file)
                .map_err(io::Error::from)
                .and_then(|text| file::replace(&self.path, &text))
        };
        written.map_err(|source| self.failed(source))
    }

    /// Removes the file when it says nothing any more, and what a crash left of one.
    pub(super) fn remove_if_empty(&self) -> Result<(), SystemError> {
        if self.read()?.is_empty() {
            file::remove(&self.path).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    fn boot(&self) -> Result<String, SystemError> {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> SystemError {
        SystemError::Undo {
            path: self.path.clone(),
            source,
        }
    }
}
