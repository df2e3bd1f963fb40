//! The class registry on disk: what the numbers in the counters mean after a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::ControllerError;
use crate::{policy::ClassRegistry, system::file};

/// The registry and its file.
#[derive(Debug)]
pub struct RegistryFile {
    path: PathBuf,
    registry: ClassRegistry,
}

impl RegistryFile {
    /// Reads the registry of a state directory; an empty one if there is none.
    pub fn open(state_dir: &Path) -> Result<Self, ControllerError> {
        let path = state_dir.join("classes.json");
        let wrap = |reason: String| ControllerError::Registry {
            path: path.clone(),
            reason,
        };
        let registry = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| wrap(error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => ClassRegistry::new(),
            Err(error) => return Err(wrap(error.to_string())),
        };
        Ok(Self { path, registry })
    }

    /// The registry.
    pub fn get(&self) -> &ClassRegistry {
        &self.registry
    }

    /// The registry, to add to.
    pub fn get_mut(&mut self) -> &mut ClassRegistry {
        &mut self.registry
    }

    /// Writes it down, whole or not at all; before a plan that needs it is published.
    pub fn save(&self) -> Result<(), ControllerError> {
        serde_json::to_vec(&self.registry)
            .map_err(io::Error::from)
            .and_then(|text| file::replace(&self.path, &text))
            .map_err(|error| ControllerError::Registry {
                path: self.path.clone(),
                reason: error.to_string(),
            })
    }

    /// Removes the file: without maps the numbers mean nothing.
    pub fn remove(state_dir: &Path) -> io::Result<()> {
        file::remove(&state_dir.join("classes.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{ClassKey, SourceList};

    #[test]
    fn numbers_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let key = |id| ClassKey {
            list: SourceList::Worldwide,
            id,
        };
        let mut file = RegistryFile::open(dir.path()).unwrap();
        assert_eq!(file.get_mut().assign(key(11)).unwrap(), 1);
        assert_eq!(file.get_mut().assign(key(1)).unwrap(), 2);
        file.save().unwrap();
        let again = RegistryFile::open(dir.path()).unwrap();
        assert_eq!(again.get().index(key(1)), Some(2));
    }

    #[test]
    fn a_damaged_registry_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("classes.json"), "[").unwrap();
        let error = RegistryFile::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("classes.json"), "{error}");
    }
}
