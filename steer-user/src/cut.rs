//! Points at which a test ends the controller, as a crash would: between any two things that an
//! operation changes.
//!
//! With `STEER_CUT="start 7"`, the seventh point that is passed while the operation `start` goes on
//! is the last thing this process does. A test that counts up until the operation ends well has cut
//! it at every point there is. Without the feature `cut-points`, which only the tests' build has,
//! nothing of this is compiled.

/// While this lives, points count for the operation.
#[must_use]
pub(crate) struct Operation {
    #[cfg(feature = "cut-points")]
    wanted: bool,
}

/// Begins an operation; one of a name at a time. The end of another that goes on beside it ends
/// nothing.
pub(crate) fn operation(name: &str) -> Operation {
    #[cfg(not(feature = "cut-points"))]
    let _ = name;
    Operation {
        #[cfg(feature = "cut-points")]
        wanted: armed::begin(name),
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        #[cfg(feature = "cut-points")]
        if self.wanted {
            armed::end();
        }
    }
}

/// Here the process may end.
#[inline(always)]
pub(crate) fn point() {
    #[cfg(feature = "cut-points")]
    armed::point();
}

#[cfg(feature = "cut-points")]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    /// How many points are left before the last one; 0: none is counted.
    static LEFT: AtomicU32 = AtomicU32::new(0);

    static WANTED: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let value = std::env::var("STEER_CUT").ok()?;
        let (operation, point) = value.split_once(' ')?;
        Some((operation.into(), point.parse().ok()?))
    });

    /// Whether this is the operation in which the process ends.
    pub(super) fn begin(name: &str) -> bool {
        let Some((_, point)) = WANTED.as_ref().filter(|(wanted, _)| wanted == name) else {
            return false;
        };
        LEFT.store(*point, Ordering::Relaxed);
        true
    }

    pub(super) fn end() {
        LEFT.store(0, Ordering::Relaxed);
    }

    pub(super) fn point() {
        let less = |left: u32| left.checked_sub(1);
        if LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) == Ok(1) {
            // This process always exists; the signal cannot be refused.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}
