//! Links that outlive the controller: kept by their pins, taken over by the next one.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use aya::programs::links::{FdLink, PinnedLink};

use tracing::debug;

use super::{DatapathError, PinDir, sys};
use crate::cut;

/// The link that an earlier controller pinned, and its pin: of this version, or else of another one.
/// The pin stays, so that the program stays attached whatever becomes of us. A dead link (its
/// interface is gone) fails the update that follows.
pub(super) fn adopt(pins: &PinDir, path: &Path) -> Option<(FdLink, PathBuf)> {
    let others = pins.link_pins().unwrap_or_default();
    let same_name = others
        .into_iter()
        .filter(|pin| pin.file_name() == path.file_name());
    std::iter::once(path.to_path_buf())
        .chain(same_name)
        .find_map(|pin| Some((FdLink::from(PinnedLink::from_pin(&pin).ok()?), pin)))
}

/// Pins a link, in place of what was pinned there.
pub(super) fn keep<L>(link: L, path: PathBuf) -> Result<(), DatapathError>
where
    FdLink: TryFrom<L>,
    <FdLink as TryFrom<L>>::Error: fmt::Display,
{
    let link = FdLink::try_from(link).map_err(|error| DatapathError::Pin {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    cut::point();
    // A pin that is still there holds a dead link.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(DatapathError::PinDir {
                path,
                source: error,
            });
        }
        _ => {}
    }
    cut::point();
    // The pin keeps the program attached; the descriptor is not needed any more.
    link.pin(&path)
        .map(drop)
        .map_err(|error| DatapathError::Pin {
            path,
            reason: error.to_string(),
        })
}

/// Detaches the link that is pinned at `pin`, whatever other pins it has, and removes the pin: when
/// this returns, the program sees no new packet.
pub(super) fn forget(pin: &Path) -> Result<(), DatapathError> {
    // What is not a link (a mark), or dead with its interface, has nothing to detach.
    if let Err(error) = sys::detach_link(pin) {
        debug!("{}: not detached: {error}", pin.display());
    }
    std::fs::remove_file(pin).map_err(|source| DatapathError::PinDir {
        path: pin.to_path_buf(),
        source,
    })
}
