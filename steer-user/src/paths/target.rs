//! What is known of one target: smoothed times (as RFC 6298 does) and losses.

use std::time::Duration;

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The first answer came after this time.
    Answered(Duration),
    /// It did not, or was not the answer that a target gives.
    Failed {
        /// Why, in words.
        why: String,
        /// Whether there was an answer, but the handshake failed.
        in_handshake: bool,
    },
}

/// A target for display.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetReport {
    /// The smoothed time to an answer; none before the first.
    pub rtt: Option<Duration>,
    /// The smoothed deviation from it.
    pub jitter: Option<Duration>,
    /// The share of the latest probes that got no answer, 0.0 to 1.0.
    pub loss: f64,
    /// Probes that were answered.
    pub answered: u64,
    /// Probes that were not.
    pub lost: u64,
    /// Why the last one was not; none if it was.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tracked {
    smoothed: Option<(Duration, Duration)>,
    loss: f64,
    answered: u64,
    lost: u64,
    /// Failures in a row.
    failures: u32,
    why: Option<String>,
    failed_deep: bool,
    deep_due: Duration,
}

/// The weight of the newest probe in the loss: the memory is about 16 probes.
const LOSS_WEIGHT: f64 = 1.0 / 16.0;
/// After so many failures in a row a target is no measure of time any more.
const SILENT: u32 = 5;

impl Tracked {
    /// Takes an outcome in; says whether it was an answer.
    pub(super) fn take(&mut self, outcome: Outcome) -> bool {
        let lost = match outcome {
            Outcome::Answered(rtt) => {
                self.smooth(rtt);
                self.answered += 1;
                self.failures = 0;
                self.why = None;
                self.failed_deep = false;
                false
            }
            Outcome::Failed { why, in_handshake } => {
                self.lost += 1;
                self.failures = self.failures.saturating_add(1);
                self.why = Some(why);
                self.failed_deep = in_handshake;
                true
            }
        };
        self.loss += (f64::from(u8::from(lost)) - self.loss) * LOSS_WEIGHT;
        !lost
    }

    fn smooth(&mut self, rtt: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((mean, deviation)) => (
                (mean * 7 + rtt) / 8,
                (deviation * 3 + rtt.abs_diff(mean)) / 4,
            ),
        });
    }

    /// Whether it did not fail the last time, so that silence is news.
    pub(super) fn is_good(&self) -> bool {
        self.failures == 0
    }

    pub(super) fn is_silent(&self) -> bool {
        self.failures >= SILENT
    }

    pub(super) fn failed_deep(&self) -> bool {
        self.failed_deep
    }

    /// When an answer is late; none before the first.
    pub(super) fn lateness(&self) -> Option<Duration> {
        let (mean, deviation) = self.smoothed?;
        Some(mean * 2 + deviation * 4)
    }

    /// A handshake is due, or the only thing that can show that it is well again.
    pub(super) fn wants_deep(&self, now: Duration) -> bool {
        self.failures > 0 || self.deep_due <= now
    }

    pub(super) fn went_deep(&mut self, next: Duration) {
        self.deep_due = next;
    }

    pub(super) fn forget_losses(&mut self) {
        self.loss = 0.0;
    }

    pub(super) fn loss(&self) -> f64 {
        self.loss
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        self.smoothed.map(|(mean, _)| mean)
    }

    pub(super) fn jitter(&self) -> Option<Duration> {
        self.smoothed.map(|(_, deviation)| deviation)
    }

    pub(super) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    pub(super) fn report(&self) -> TargetReport {
        TargetReport {
            rtt: self.rtt(),
            jitter: self.jitter(),
            loss: self.loss,
            answered: self.answered,
            lost: self.lost,
            trouble: self.why.clone(),
        }
    }
}
