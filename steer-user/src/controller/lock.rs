//! One controller at a time: a lock in the run directory that the kernel gives back whatever
//! becomes of its owner.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use crate::cut;

/// The lock, held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another controller has it.
    #[error("{path}: another steer holds the lock{}. Stop it first, or give this one directories of its own ([system] run_dir, state_dir, pin_dir)", owner(*.pid))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Its process, if the file says so.
        pid: Option<u32>,
    },
    /// The file cannot be made or read.
    #[error("{path}: {source}. steer needs [system] run_dir to be writable")]
    File {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl Lock {
    /// Takes the lock of a run directory, which is made if need be.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("steer.lock");
        let wrap = |source| LockError::File {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(run_dir).map_err(wrap)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(wrap)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who it is is a courtesy; an unreadable file does not change the answer.
                let _ = file.read_to_string(&mut text);
                return Err(LockError::Held {
                    path,
                    pid: text.trim().parse().ok(),
                });
            }
            Err(fs::TryLockError::Error(source)) => return Err(wrap(source)),
        }
        cut::point();
        file.set_len(0).map_err(wrap)?;
        cut::point();
        file.rewind().map_err(wrap)?;
        writeln!(file, "{}", std::process::id()).map_err(wrap)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_controller_is_told_who_the_first_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(process {})", std::process::id())),
            "{error}"
        );
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
