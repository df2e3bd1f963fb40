//! Files that outlive the controller: either the old text or the new one survives a crash, never
//! half of one.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::cut;

/// Puts a text in place of a file's. The directory is made if need be.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let unfinished = unfinished(path);
    let mut file = fs::File::create(&unfinished)?;
    cut::point();
    file.write_all(text)?;
    file.sync_all()?;
    cut::point();
    fs::rename(&unfinished, path)?;
    cut::point();
    fs::File::open(directory)?.sync_all()
}

/// Removes a file, and what a [`replace`] that was cut short left beside it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for path in [&unfinished(path), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => cut::point(),
        }
    }
    Ok(())
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_file_that_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/undo.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::write(unfinished(&path), "th").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("made")).unwrap().count(), 0);
    }
}
