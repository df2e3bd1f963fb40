//! Which breakout has which path id, on disk: connections carry the id in their marks, so a name that
//! gets another id takes the flows of one link to another.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::ControllerError;
use crate::{
    config::{Breakout, Config},
    system::file,
};

/// The ids by name, and their file.
#[derive(Debug)]
pub struct PathIds {
    path: PathBuf,
    ids: BTreeMap<String, u8>,
}

impl PathIds {
    /// Reads the ids of a state directory; empty if steer left none.
    pub fn open(state_dir: &Path) -> Result<Self, ControllerError> {
        let path = path(state_dir);
        let ids = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        match ids {
            Ok(ids) => Ok(Self { path, ids }),
            Err(source) => Err(ControllerError::PathIds { path, source }),
        }
    }

    /// Refuses a configuration that gives a breakout another id. A breakout that is new may have
    /// the id of one that is gone: its flows then take the new one's link, as when it is renamed.
    pub fn check(&self, config: &Config) -> Result<(), ControllerError> {
        for breakout in &config.breakouts {
            if let Some(&was) = self.ids.get(&breakout.name)
                && was != breakout.id
            {
                return Err(ControllerError::PathMoved {
                    name: breakout.name.clone(),
                    was,
                    is: breakout.id,
                });
            }
        }
        Ok(())
    }

    /// Writes the ids of a configuration down.
    pub fn keep(&mut self, config: &Config) -> Result<(), ControllerError> {
        let named = config.breakouts.iter().map(|it| (it.name.clone(), it.id));
        let ids: BTreeMap<_, _> = named.collect();
        if ids != self.ids {
            serde_json::to_vec(&ids)
                .map_err(io::Error::from)
                .and_then(|text| file::replace(&self.path, &text))
                .map_err(|source| ControllerError::PathIds {
                    path: self.path.clone(),
                    source,
                })?;
            self.ids = ids;
        }
        Ok(())
    }

    /// Removes the file: no flow carries an id any more.
    pub fn remove(state_dir: &Path) -> io::Result<()> {
        file::remove(&path(state_dir))
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("paths.json")
}

/// The operator's name for a path; none for the path id 0, "none was up".
pub(super) fn name_of(breakouts: &[Breakout], id: u8) -> Option<String> {
    let named = breakouts.iter().find(|it| it.id == id);
    named
        .map(|it| it.name.clone())
        .or_else(|| (id != 0).then(|| format!("path {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(breakouts: &str) -> Config {
        let text = format!("[[lan]]\ninterface = \"lan0\"\n{breakouts}");
        Config::parse("steer.toml", &text).unwrap()
    }

    fn breakout(name: &str, more: &str) -> String {
        format!("[[breakout]]\nname = \"{name}\"\ninterface = \"{name}0\"\n{more}\n")
    }

    #[test]
    fn a_breakout_keeps_its_id_over_a_restart_whatever_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut ids = PathIds::open(dir.path()).unwrap();
        let first = config(&(breakout("fiber", "") + &breakout("lte", "")));
        ids.check(&first).unwrap();
        ids.keep(&first).unwrap();

        let ids = PathIds::open(dir.path()).unwrap();
        let turned = config(&(breakout("lte", "") + &breakout("fiber", "")));
        let error = ids.check(&turned).unwrap_err().to_string();
        assert!(
            error.contains("lte") && error.contains("`id = 2`"),
            "{error}"
        );
        let written = config(&(breakout("lte", "id = 2") + &breakout("fiber", "id = 1")));
        ids.check(&written).unwrap();
        let renamed = config(&(breakout("cable", "") + &breakout("lte", "")));
        ids.check(&renamed).unwrap();
    }

    #[test]
    fn nothing_is_known_after_a_detach() {
        let dir = tempfile::tempdir().unwrap();
        let mut ids = PathIds::open(dir.path()).unwrap();
        ids.keep(&config(&breakout("fiber", ""))).unwrap();
        PathIds::remove(dir.path()).unwrap();
        assert!(PathIds::open(dir.path()).unwrap().ids.is_empty());
    }
}
