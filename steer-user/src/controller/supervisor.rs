//! What the service manager hears (`Type=notify`): ready, alive, reloading, and what steer is doing.
//! Without one, nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

use super::{Controller, Phase};
use crate::paths::{PreferenceId, Verdict};

/// How often a waiting controller says that it is alive; far below any sensible `WatchdogSec`.
const ALIVE: Duration = Duration::from_secs(1);

/// Starting, or a reload, is over.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => debug!("the clock: {error}"),
    }
}

/// Says that steer is alive while `work` takes longer than a round of the loop.
pub(super) async fn alive_during<T>(status: &str, work: impl Future<Output = T>) -> T {
    send(&[NotifyState::Status(status)]);
    let mut ticks = tokio::time::interval(ALIVE);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = ticks.tick() => send(&[NotifyState::Watchdog]),
        }
    }
}

/// What the service manager heard last.
#[derive(Debug, Default)]
pub(super) struct Heard(String);

impl Heard {
    /// The control loop goes round; `status` is what `systemctl status` shows.
    pub(super) fn alive(&mut self, status: String) {
        if status == self.0 {
            send(&[NotifyState::Watchdog]);
        } else {
            send(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
            self.0 = status;
        }
    }
}

impl Controller {
    /// In one line, what steer is doing.
    pub(super) fn headline(&self) -> String {
        let doing = match self.state.phase() {
            Phase::Watching { .. } => "watching the flows that began before",
            Phase::Steering => "steering",
            Phase::Stopped => "draining",
        };
        let breakouts = &self.view.breakouts;
        let up = breakouts
            .iter()
            .filter_map(|it| self.state.families(it.id, PreferenceId::DEFAULT))
            .filter(|families| families.verdict() == Verdict::Up)
            .count();
        format!(
            "{doing}; generation {}; {up} of {} breakouts up",
            self.generation,
            breakouts.len()
        )
    }
}

/// A service manager that does not listen changes nothing.
fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("the service manager cannot be told: {error}");
    }
}
