//! A mirror that is a folder of this machine: a stick that somebody carries, or what rsync brought.
//!
//! It is believed no more than a server: bounded in size and time (a file system may hang), and only
//! files are read, no devices and no pipes.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ErrorKind, ServiceError};

/// A whole file of at most `most` bytes.
pub(super) async fn read(
    path: PathBuf,
    most: usize,
    timeout: Duration,
) -> Result<Vec<u8>, ServiceError> {
    let shown = path.display().to_string();
    let fail = |kind, text: String| ServiceError::new(kind, format!("{shown}: {text}"));
    let reading = tokio::task::spawn_blocking(move || whole(&path, most));
    let Ok(read) = tokio::time::timeout(timeout, reading).await else {
        let text = format!("cannot be read within {} s", timeout.as_secs_f32());
        return Err(fail(ErrorKind::Timeout, text));
    };
    let bytes = read.map_err(io::Error::other).flatten().map_err(|error| {
        let text = format!("{error}; bring the mirror's folder, or correct [feed] url");
        fail(ErrorKind::Folder, text)
    })?;
    if bytes.len() > most {
        let text = format!("more than {most} bytes, which no list has");
        return Err(fail(ErrorKind::TooLarge, text));
    }
    Ok(bytes)
}

fn whole(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // A pipe that nobody writes to must not be waited for.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is no file"));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
