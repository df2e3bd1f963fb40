//! Takes steer out of the box: no new flows, wait for the old ones, then programs, rules, routes,
//! the nftables table, sysctls.

use std::{fmt, io, time::Duration};

use steer_common::abi::STEERING;
use tracing::info;

use super::{ControllerError, Lock, clsact, path_ids::PathIds, registry::RegistryFile, socket};
use crate::{
    api::Drain,
    config::{Mode, SystemConfig},
    cut,
    datapath::{DatapathError, Maps, PinDir},
    system::{Kernel, conntrack, leftovers, remove_all},
};

/// What a detach did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detached {
    /// Flows that were still using a breakout when the drain's time was over.
    pub cut: u64,
    /// Whether there was anything to remove.
    pub found: bool,
}

impl fmt::Display for Detached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.found, self.cut) {
            (false, _) => f.write_str("nothing of steer was here"),
            (true, 0) => f.write_str(
                "steer is out: no program, map, rule, route, table or sysctl of it is left",
            ),
            (true, cut) => write!(
                f,
                "steer is out: no program, map, rule, route, table or sysctl of it is left. {cut} flows still used a breakout and were cut"
            ),
        }
    }
}

/// Removes everything, when no controller runs.
pub async fn detach(system: &SystemConfig, drain: Drain) -> Result<Detached, ControllerError> {
    let _detaching = cut::operation("detach");
    let _lock = Lock::take(&system.run_dir)?;
    let mut kernel = Kernel::open(&system.state_dir)?;
    let pins = PinDir::new(&system.pin_dir);
    let mode = pins.mode();
    if pins.is_of_another_version() {
        // Its programs cannot be told to leave new flows alone. Without them there are none, and
        // in mark mode the running ones go on by their grants.
        clsact::remove(&pins, &kernel, &[]).await?;
        pins.remove()?;
    } else if let Some(mode) = mode
        && let Ok(mut maps) = Maps::open(&pins, mode)
    {
        let mut table = maps.paths()?;
        for family in &mut table.families {
            family.state &= !STEERING;
        }
        maps.set_paths(&table)?;
    }
    cut::point();
    // A socket that is gone already is as good.
    let _ = std::fs::remove_file(socket(system));
    cut::point();
    let cut = drained(system, mode, drain).await?;
    remove(system, &mut kernel, cut).await
}

/// Removes everything. New flows must have been stopped; `cut` flows still use a breakout.
pub(super) async fn remove(
    system: &SystemConfig,
    kernel: &mut Kernel,
    cut: u64,
) -> Result<Detached, ControllerError> {
    let pins = PinDir::new(&system.pin_dir);
    let objects = leftovers(kernel, &[]).await?;
    let filters = clsact::remove(&pins, kernel, &[]).await?;
    let found = filters || pins.exists() || !objects.is_empty();
    cut::point();
    pins.remove()?;
    cut::point();
    let failed = remove_all(kernel, &objects).await;
    if !failed.is_empty() {
        let lines: Vec<String> = failed
            .iter()
            .map(|(object, error)| format!("  {object}: {error}"))
            .collect();
        return Err(ControllerError::Left(lines.join("\n")));
    }
    let state = &system.state_dir;
    kernel.forget_undo_record()?;
    cut::point();
    RegistryFile::remove(state).map_err(|error: io::Error| ControllerError::Registry {
        path: state.clone(),
        reason: error.to_string(),
    })?;
    PathIds::remove(state).map_err(|source| ControllerError::PathIds {
        path: state.clone(),
        source,
    })?;
    Ok(Detached { cut, found })
}

/// Waits until no flow uses a breakout, or the time is over; says how many are left.
pub(super) async fn drained(
    system: &SystemConfig,
    mode: Option<Mode>,
    drain: Drain,
) -> Result<u64, ControllerError> {
    let pins = &PinDir::new(&system.pin_dir);
    let mut left = in_use(mode, pins)?;
    for second in 0..drain.seconds {
        if left == 0 {
            break;
        }
        if second % 10 == 0 {
            info!(
                "{left} flows still use a breakout; waiting up to {} s for them to end",
                drain.seconds - second
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        left = in_use(mode, pins)?;
    }
    Ok(left)
}

/// How many flows use a breakout.
fn in_use(mode: Option<Mode>, pins: &PinDir) -> Result<u64, ControllerError> {
    match mode {
        None => Ok(0),
        // Without connection tracking nothing was granted.
        Some(Mode::Mark) if conntrack::usage().is_none() => Ok(0),
        Some(Mode::Mark) => {
            let marks = pins.mark_bits()?.unwrap_or_default();
            Ok(conntrack::granted(marks)?.values().sum())
        }
        Some(Mode::Redirect) => match Maps::open(pins, Mode::Redirect) {
            Ok(maps) => Ok(maps.steered_flows()?),
            Err(DatapathError::Map { .. }) => Ok(0),
            Err(error) => Err(error.into()),
        },
    }
}
