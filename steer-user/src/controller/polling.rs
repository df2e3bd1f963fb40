//! When a server is asked again. A fleet of routers must not ask together, nor more often the worse
//! the server is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first look after a start comes within this time: a fleet that starts together does not ask
/// together.
const FIRST: Duration = Duration::from_mins(1);

/// A random part of the first minute, or of a shorter interval.
pub(super) fn first_wait(interval: Duration) -> Duration {
    FIRST.min(interval).mul_f64(fastrand::f64())
}

/// The wait after a good answer.
pub(super) fn after_success(interval: Duration) -> Duration {
    interval.mul_f64(1.0 + fastrand::f64() / 10.0)
}

/// The wait after so many failures in a row: at first short, then longer than usual; never before
/// the server wants it.
pub(super) fn after_failure(
    interval: Duration,
    failures: u32,
    asked: Option<Duration>,
) -> Duration {
    let doubled = (interval / 12).saturating_mul(1 << failures.min(10));
    let wait = doubled
        .min(interval * 6)
        .mul_f64(0.75 + fastrand::f64() / 2.0);
    wait.max(asked.unwrap_or_default())
}

/// Unix time by this machine's clock, in seconds.
pub(super) fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |it| it.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn failures_are_tried_again_soon_then_ever_more_seldom_but_never_before_the_server_wants() {
        let minutes = |failures| after_failure(HOUR, failures, None).as_secs() / 60;
        assert!((7..=12).contains(&minutes(1)), "{}", minutes(1));
        assert!((60 * 6 * 3 / 4..=60 * 6 * 5 / 4).contains(&minutes(u32::MAX)));
        assert!(after_failure(HOUR, 1, Some(HOUR * 24)) >= HOUR * 24);
    }
}
