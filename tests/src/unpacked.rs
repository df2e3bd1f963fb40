//! Programs of routers that `cargo xtask setup` unpacked, without installing them.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/lab")
}

/// The value of `LD_LIBRARY_PATH` with which its programs run; the folders need not be there.
pub fn libraries() -> String {
    let mut folders = Vec::new();
    for base in [root(), PathBuf::from("/")] {
        for below in ["usr/lib", "lib"] {
            let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
            let folder = base.join(below).join(triplet);
            folders.push(folder.join("frr").display().to_string());
            folders.push(folder.display().to_string());
        }
    }
    folders.join(":")
}

/// A program of the lab or of the machine, by its place in a file system; none, and a line that says
/// so, where neither has it.
pub fn find(place: &str) -> Option<PathBuf> {
    let found = [root(), PathBuf::from("/")]
        .iter()
        .map(|base| base.join(place))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: there is no {place} here; `cargo xtask setup` brings it");
    }
    found
}
