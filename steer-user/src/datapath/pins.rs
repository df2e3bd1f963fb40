//! Where maps and links are pinned.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use steer_common::{flow, layout, mark};

use super::{DatapathError, Mode, dns, exits, links, load, tc};
use crate::cut;

/// The name of the pin that says where steer's bits stand in marks begins so; their lowest follows.
const MARK_BITS: &str = "MARK_BITS_";

/// The directory of this version's pins, below the configured one.
#[derive(Clone, Debug)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// Names the directory; nothing is made yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The configured directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories.
    pub fn create(&self) -> Result<(), DatapathError> {
        for path in [self.maps(), self.links()] {
            fs::create_dir_all(&path).map_err(|source| DatapathError::PinDir { path, source })?;
            cut::point();
        }
        Ok(())
    }

    /// Whether anything of steer is pinned here.
    pub fn exists(&self) -> bool {
        self.root.exists()
    }

    /// Detaches the programs and removes every pin, and with the pins the maps.
    pub fn remove(&self) -> Result<(), DatapathError> {
        for pin in self.link_pins()? {
            links::forget(&pin)?;
            cut::point();
        }
        for version in self.versions()? {
            remove_version(&version)?;
        }
        remove_dir(&self.root).map_err(failed(&self.root))
    }

    /// Removes this version's pins if it has attached nothing.
    pub fn forget_unused(&self) -> Result<(), DatapathError> {
        let links = self.links();
        if mode_of(&entries(&links).map_err(failed(&links))?).is_none() {
            remove_version(&self.version())?;
        }
        Ok(())
    }

    /// Removes the pins of other versions of steer: what they held was taken over.
    pub(super) fn forget_other_versions(&self) -> Result<(), DatapathError> {
        let own = self.version();
        self.versions()?
            .iter()
            .filter(|version| **version != own)
            .try_for_each(|it| remove_version(it))
    }

    /// The mode of the programs that are attached, by whichever version of steer: what their links
    /// are pinned as. The maps would not tell: those of a start that was cut short may be anybody's.
    pub fn mode(&self) -> Option<Mode> {
        mode_of(&self.link_pins().unwrap_or_default())
    }

    /// Whether programs of another version of steer are attached, and none of this one's.
    pub fn is_of_another_version(&self) -> bool {
        let own = entries(&self.links()).unwrap_or_default();
        mode_of(&own).is_none() && self.mode().is_some()
    }

    /// Whether the flow table that is pinned here, by whichever version, is one that this version
    /// reads.
    pub fn has_flow_table(&self) -> bool {
        self.holders("FLOWS").next().is_some()
    }

    /// The pins of a map of this name in every version, this one first.
    pub(super) fn holders(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        let own = self.map(name);
        let file = own.file_name().map(ToOwned::to_owned).unwrap_or_default();
        let others = self.versions().unwrap_or_default().into_iter();
        std::iter::once(own)
            .chain(others.map(move |version| version.join("maps").join(&file)))
            .filter(|pin| pin.exists())
    }

    /// The bits of marks that the attached programs use, of whatever version they are; none if
    /// nothing is attached: what a start that was cut short pinned binds nobody.
    pub fn mark_bits(&self) -> Result<Option<mark::Bits>, DatapathError> {
        for version in self.versions()? {
            let links = version.join("links");
            if mode_of(&entries(&links).map_err(failed(&links))?).is_none() {
                continue;
            }
            let path = version.join("maps");
            let pins = entries(&path).map_err(failed(&path))?;
            let named = pins.iter().find_map(|pin| {
                let shift = pin.file_name()?.to_str()?.strip_prefix(MARK_BITS)?;
                shift.parse().ok()
            });
            if let Some(shift) = named {
                return Ok(Some(mark::Bits::at(shift)));
            }
            // A version that knew no others.
            if !pins.is_empty() {
                return Ok(Some(mark::Bits::DEFAULT));
            }
        }
        Ok(None)
    }

    /// The pin that says which bits of marks the programs use.
    pub(super) fn mark_bits_pin(&self, bits: mark::Bits) -> PathBuf {
        self.map(&format!("{MARK_BITS}{}", bits.shift()))
    }

    fn versions(&self) -> Result<Vec<PathBuf>, DatapathError> {
        entries(&self.root).map_err(failed(&self.root))
    }

    /// Every link pin of every version, for what attaches and detaches.
    pub fn link_pins(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let versions = entries(&self.root).map_err(|source| DatapathError::PinDir {
            path: self.root.clone(),
            source,
        })?;
        let mut pins = Vec::new();
        for version in versions {
            let path = version.join("links");
            pins.extend(entries(&path).map_err(|source| DatapathError::PinDir { path, source })?);
        }
        Ok(pins)
    }

    /// The interfaces, by index, at which a filter of ours was left, and whether the clsact qdisc
    /// there is ours, too.
    pub fn filters(&self) -> Result<BTreeMap<u32, bool>, DatapathError> {
        let mut found = BTreeMap::new();
        for pin in self.link_pins()? {
            let name = pin
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Some((kind, Ok(index))) = name
                .rsplit_once('-')
                .map(|(kind, index)| (kind, index.parse()))
            else {
                continue;
            };
            match kind {
                tc::FILTER_MARK | exits::FILTER_MARK | dns::FILTER_MARK => {
                    found.entry(index).or_insert(false)
                }
                tc::QDISC_MARK | exits::QDISC_MARK | dns::QDISC_MARK => {
                    found.entry(index).insert_entry(true).into_mut()
                }
                _ => continue,
            };
        }
        Ok(found)
    }

    /// Detaches one hook's link at one interface and removes its pins, of every version; whether
    /// there was one.
    pub(super) fn forget_link(&self, hook: &str, ifindex: u32) -> Result<bool, DatapathError> {
        let name = self.link(hook, ifindex);
        let mut found = false;
        for pin in self.link_pins()? {
            if pin.file_name() == name.file_name() {
                links::forget(&pin)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Detaches this version's links of some kinds at interfaces with other indexes, and removes their
    /// pins.
    pub(super) fn forget_other_links(
        &self,
        is_meant: impl Fn(&str) -> bool,
        indexes: &[u32],
    ) -> Result<(), DatapathError> {
        let path = self.links();
        for pin in entries(&path).map_err(failed(&path))? {
            let name = pin
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let (kind, index) = name.rsplit_once('-').unwrap_or_default();
            let stays = index.parse().is_ok_and(|index| indexes.contains(&index));
            if is_meant(kind) && !stays {
                links::forget(&pin)?;
                cut::point();
            }
        }
        Ok(())
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        match name {
            // They may outlive the rest of their version.
            "FLOWS" | "CLOCK" => self.maps().join(format!("{name}-{:016x}", flow::LAYOUT)),
            _ => self.maps().join(name),
        }
    }

    /// BPF file systems refuse names with dots, and interfaces (VLANs) have them: so by index.
    pub(super) fn link(&self, hook: &str, ifindex: u32) -> PathBuf {
        self.links().join(format!("{hook}-{ifindex}"))
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("{:016x}", layout::HASH))
    }

    fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    fn links(&self) -> PathBuf {
        self.version().join("links")
    }
}

/// The mode that the programs of these links are of, those on the LAN.
fn mode_of(links: &[PathBuf]) -> Option<Mode> {
    links.iter().find_map(|pin| {
        let (kind, _) = pin.file_name()?.to_str()?.rsplit_once('-')?;
        match kind {
            tc::FILTER_MARK => Some(Mode::Mark),
            kind if tc::Order::is_pin(kind) => Some(Mode::Mark),
            load::NATIVE_LINK | load::GENERIC_LINK => Some(Mode::Redirect),
            _ => None,
        }
    })
}

/// Removes the pins of one version; a link that is pinned elsewhere stays attached. Links go first: a program without its maps' pins still works,
/// but nobody could read its counters.
fn remove_version(version: &Path) -> Result<(), DatapathError> {
    for part in ["links", "maps"] {
        let part = version.join(part);
        for pin in entries(&part).map_err(failed(&part))? {
            fs::remove_file(&pin).map_err(failed(&pin))?;
            cut::point();
        }
        remove_dir(&part).map_err(failed(&part))?;
        cut::point();
    }
    remove_dir(version).map_err(failed(version))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::PinDir {
        path: path.to_path_buf(),
        source,
    }
}

fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_say_where_a_filter_is_and_whose_the_qdisc_is() {
        let root = tempfile::tempdir().unwrap();
        let pins = PinDir::new(root.path());
        pins.create().unwrap();
        for (kind, index) in [("filter", 3), ("filter", 40), ("qdisc", 40), ("tc", 5)] {
            fs::write(pins.link(kind, index), "").unwrap();
        }
        let expected = BTreeMap::from([(3, false), (40, true)]);
        assert_eq!(pins.filters().unwrap(), expected);
    }
}
