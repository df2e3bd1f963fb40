//! The safe remedies.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::{
    config::Config,
    controller::{Lock, LockError},
    system::{self, Kernel, Object},
};

/// Where the BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";

/// Something that cannot make matters worse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// Mount a BPF file system there.
    MountBpf(PathBuf),
    /// Apply objects of steer's: sysctls keep their previous value in the undo record.
    Objects(Vec<Object>),
}

impl Fix {
    /// The mount that a pin directory needs; none if it does not lie where the file system belongs.
    pub(super) fn mount_for(pin_dir: &Path) -> Option<Self> {
        let place = Path::new(BPFFS);
        (pin_dir.starts_with(place) && place.exists()).then(|| Self::MountBpf(place.into()))
    }
}

/// Applies remedies; says for each what was done, or why not.
///
/// Objects are left to a running controller: it repairs them itself, and two must not write one undo
/// record.
pub async fn fix(config: &Config, fixes: &[Fix]) -> Vec<Result<String, String>> {
    let mut done = Vec::new();
    for fix in fixes {
        match fix {
            Fix::MountBpf(place) => done.push(mount_bpf(place)),
            Fix::Objects(objects) => done.extend(apply(config, objects).await),
        }
    }
    done
}

fn mount_bpf(place: &Path) -> Result<String, String> {
    mount(
        Some("bpf"),
        place,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map(|()| format!("mounted a BPF file system at {}", place.display()))
    .map_err(|error| format!("{}: cannot mount: {error}", place.display()))
}

async fn apply(config: &Config, objects: &[Object]) -> Vec<Result<String, String>> {
    let _lock = match Lock::take(&config.system.run_dir) {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => {
            return vec![Err(
                "a controller runs and repairs steer's objects itself: nothing was done".into(),
            )];
        }
        Err(error) => return vec![Err(error.to_string())],
    };
    let mut kernel = match Kernel::open(&config.system.state_dir) {
        Ok(kernel) => kernel,
        Err(error) => return vec![Err(error.to_string())],
    };
    let result = system::reconcile(&mut kernel, objects).await;
    let repaired = result.repaired.iter();
    let failed = result.failed.iter();
    repaired
        .map(|(object, _)| Ok(format!("applied `{object}`")))
        .chain(failed.map(|(object, error)| Err(format!("`{object}`: {error}"))))
        .collect()
}
