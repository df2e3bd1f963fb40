//! Hears that somebody wrote one of a few files, so that nobody has to say "reload".
//!
//! Folders are watched, not files: an editor and a configuration manager put a new file in the old
//! one's place.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::Instant;

/// How long the files must stay as they are: who writes two of them gets one reload.
const QUIET: Duration = Duration::from_millis(300);

/// A file that was closed after writing, or put in place whole. Not one that is gone: whoever
/// deletes a file says nothing about what it should hold.
const WRITTEN: WatchMask = WatchMask::CLOSE_WRITE.union(WatchMask::MOVED_TO);

/// A watch on files, some of which may not be there yet.
pub struct Files {
    paths: BTreeSet<PathBuf>,
    watched: Vec<(WatchDescriptor, OsString)>,
    events: EventStream<Vec<u8>>,
    /// When the files have been quiet for long enough, once one was written.
    settled: Option<Instant>,
}

impl Files {
    /// Watches files. Must be called inside a tokio runtime.
    ///
    /// Fails when the kernel gives no more watches, or a file's folder cannot be read.
    pub fn watch(paths: BTreeSet<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mut watched = Vec::new();
        for path in &paths {
            let Some(name) = path.file_name() else {
                continue;
            };
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            watched.push((inotify.watches().add(folder, WRITTEN)?, name.to_owned()));
        }
        // Many times the largest event: a name has at most 255 bytes.
        let events = inotify.into_event_stream(vec![0; 4096])?;
        Ok(Self {
            paths,
            watched,
            events,
            settled: None,
        })
    }

    /// The files.
    pub fn paths(&self) -> &BTreeSet<PathBuf> {
        &self.paths
    }

    /// Waits until one was written and all have been quiet for a moment. Dropping the future loses
    /// nothing.
    pub async fn written(&mut self) {
        loop {
            let event = match self.settled {
                None => self.events.next().await,
                Some(settled) => {
                    let Ok(event) = tokio::time::timeout_at(settled, self.events.next()).await
                    else {
                        self.settled = None;
                        return;
                    };
                    event
                }
            };
            match event {
                Some(Ok(event)) if !self.is_ours(&event) => {}
                // What could not be read may have been ours: a reload too many does no harm.
                Some(_) => self.settled = Some(Instant::now() + QUIET),
                None => std::future::pending().await,
            }
        }
    }

    fn is_ours(&self, event: &inotify::Event<OsString>) -> bool {
        // Without a folder it says that events were lost.
        event.mask.contains(inotify::EventMask::Q_OVERFLOW)
            || self
                .watched
                .iter()
                .any(|(folder, name)| *folder == event.wd && event.name.as_ref() == Some(name))
    }
}

/// Waits until a watched file was written; for ever if none is watched.
pub async fn written(files: &mut Option<Files>) {
    match files {
        Some(files) => files.written().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Far more than it takes, so that a wait without end fails instead of hanging.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn hears(files: &mut Files) {
        tokio::time::timeout(PATIENCE, files.written())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_file_is_heard_when_it_is_written_and_when_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("steer.toml");
        fs::write(&file, "1").unwrap();
        let mut files = Files::watch([file.clone()].into()).unwrap();
        fs::write(&file, "2").unwrap();
        hears(&mut files).await;
        fs::write(dir.path().join("new"), "3").unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        hears(&mut files).await;
    }

    #[tokio::test]
    async fn several_files_of_several_folders_are_heard_once_when_they_are_quiet() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = [
            one.path().join("a"),
            one.path().join("b"),
            two.path().join("c"),
        ];
        let mut files = Files::watch(paths.clone().into()).unwrap();
        for path in &paths {
            fs::write(path, "x").unwrap();
        }
        hears(&mut files).await;
        assert_eq!(files.settled, None);
        assert!(unheard(&mut files).await);
    }

    #[tokio::test]
    async fn the_neighbours_of_a_file_and_its_end_are_not_heard() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("steer.toml");
        fs::write(&file, "1").unwrap();
        let mut files = Files::watch([file.clone()].into()).unwrap();
        fs::write(dir.path().join("steer.toml.swp"), "2").unwrap();
        fs::remove_file(&file).unwrap();
        assert!(unheard(&mut files).await);
    }

    /// Whether nothing is there to be heard now: the kernel queues events before a write returns.
    async fn unheard(files: &mut Files) -> bool {
        tokio::select! {
            biased;
            () = files.written() => false,
            () = tokio::task::yield_now() => files.settled.is_none(),
        }
    }
}
