//! The state of each breakout, out of what the box says of its link and what probes over it say:
//! up, degraded or down, each with its reason. Pure: time and outcomes come in, probes to send and
//! a verdict come out.
//!
//! While a breakout is up its targets are probed one after the other, evenly over the interval. The
//! first probe of a good target that is late starts an *inquiry*: all targets are probed at once, in
//! rounds as long as a late probe is late. A quorum of answers ends it; `down_after` rounds without
//! one take the breakout down. While it is down, all targets are probed once an interval, with a
//! whole handshake; it is up again after `up_after` good rounds in a row, and not before the hold
//! is over, which doubles with every fall that follows soon.

mod families;
mod preference;
mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::target::Tracked;
pub use self::target::{Outcome, TargetReport};
pub use self::{families::Families, preference::PreferenceId};
use crate::config::HealthConfig;

/// How late is late, at least. Three rounds of it and one before are 0.6 s: an answer that comes
/// within 0.45 s, as through a full queue, still shows that the path lives.
const LATE: Duration = Duration::from_millis(150);
/// How long an answer is waited for, at least; what comes later counts as lost. The kernel sends a
/// TCP connection's first packet again after 1 s: an answer to that would hide the loss, and be taken
/// for a slow line.
const PATIENCE: Duration = Duration::from_millis(900);
/// A link that is back is asked this often, and for so long, before it is asked once an interval: the
/// first packets may be too early for the gateway, or for the kernel.
const EAGER: Duration = Duration::from_millis(200);
const EAGER_FOR: Duration = Duration::from_secs(1);
/// How often a target is asked for a whole handshake while all is well.
const DEEP: Duration = Duration::from_secs(30);
/// So long must a measure be above its threshold for a breakout to be degraded.
const SUSTAINED: Duration = Duration::from_secs(5);
/// And below this share of it, for as long as the hold, for it to be well again.
const WELL: f64 = 0.75;

/// A probe to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Unique for the breakout; goes with the outcome.
    pub number: u64,
    /// Which target, from 0.
    pub target: usize,
    /// Whether a whole handshake is wanted, or the first answer is enough.
    pub deep: bool,
    /// When to give up waiting for the first answer.
    pub first: Duration,
    /// When to give up on the whole.
    pub patience: Duration,
}

/// What a breakout is found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It carries packets.
    Up,
    /// It does, but badly; the reason.
    Degraded(String),
    /// It does not; the reason.
    Down(String),
}

impl Verdict {
    /// The worse one of two; of two alike the first.
    pub fn worse(self, other: Self) -> Self {
        let badness = |it: &Self| match it {
            Self::Up => 0,
            Self::Degraded(_) => 1,
            Self::Down(_) => 2,
        };
        if badness(&other) > badness(&self) {
            other
        } else {
            self
        }
    }
}

/// One family of a breakout under watch. Times are counted from any one moment.
#[derive(Clone, Debug)]
pub struct Watch {
    rules: HealthConfig,
    targets: Vec<Tracked>,
    /// Why the box itself says that it cannot be used.
    trouble: Option<String>,
    state: State,
    sent: Vec<Sent>,
    numbers: u64,
    /// When the next probe, or round, is due.
    next: Duration,
    cursor: usize,
    /// Falls that followed soon after another, since the last that did not; none before the first.
    falls: Option<u32>,
    up_since: Option<Duration>,
    dice: u64,
}

#[derive(Clone, Debug)]
enum State {
    Up(Up),
    Down(Down),
}

#[derive(Clone, Debug, Default)]
struct Up {
    inquiry: Option<Round>,
    /// Rounds of the inquiry that ended without a quorum.
    failed: u8,
    degraded: Option<String>,
    /// Since when measures say other than `degraded`.
    changing: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Down {
    why: String,
    /// Good rounds that are needed, and since the first of them the time.
    needed: u8,
    hold: Duration,
    good: u8,
    good_since: Option<Duration>,
    round: Option<Round>,
    /// Until when a link that is back is asked more often.
    eager_until: Duration,
}

/// All targets asked at once.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// A bit for each target that answered.
    answered: u32,
    began: Duration,
    ends: Duration,
    deep: bool,
    /// Whether its probes have gone.
    asked: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    target: usize,
    late_at: Duration,
    late: bool,
}

impl Watch {
    /// Watches a breakout with so many targets; without any, only the box is asked. `taken`: an
    /// earlier controller found it up, and flows take it.
    pub fn new(rules: HealthConfig, targets: usize, taken: bool, seed: u64) -> Self {
        let state = if taken || targets == 0 {
            State::Up(Up::default())
        } else {
            State::Down(Down {
                why: "no target has answered a probe yet".into(),
                needed: 1,
                hold: Duration::ZERO,
                good: 0,
                good_since: None,
                round: None,
                eager_until: Duration::ZERO,
            })
        };
        Self {
            rules,
            targets: vec![Tracked::default(); targets.min(u32::BITS as usize)],
            trouble: None,
            state,
            sent: Vec::new(),
            numbers: 0,
            next: Duration::ZERO,
            cursor: 0,
            falls: None,
            up_since: None,
            dice: seed | 1,
        }
    }

    /// What the box says of link, address and gateway: none when all is there.
    pub fn facts(&mut self, trouble: Option<String>, now: Duration) {
        if let (State::Up(_), Some(why)) = (&self.state, &trouble) {
            self.fall(why.clone(), Fall::Box, now);
        }
        if let State::Down(down) = &mut self.state {
            if trouble.is_some() {
                down.good = 0;
                down.good_since = None;
                down.round = None;
                self.sent.clear();
            } else if self.trouble.is_some() || self.targets.is_empty() {
                // It came back: ask at once.
                self.next = now;
                if down.hold.is_zero() {
                    down.eager_until = now + EAGER_FOR;
                }
                down.why = "the link is back, and probes have yet to prove it".into();
                if self.targets.is_empty() {
                    self.rise(now);
                }
            }
        }
        self.trouble = trouble;
    }

    /// A probe was answered, or was not.
    pub fn outcome(&mut self, number: u64, outcome: Outcome, now: Duration) {
        let Some(place) = self.sent.iter().position(|sent| sent.number == number) else {
            return;
        };
        let sent = self.sent.swap_remove(place);
        let Some(target) = self.targets.get_mut(sent.target) else {
            return;
        };
        let was_good = target.is_good();
        let answered = target.take(outcome);
        if answered {
            self.count_answer(sent.target, now);
        } else if was_good && !sent.late {
            self.suspect(sent.target, now);
        }
        self.measure(now);
    }

    /// What to send now. To be asked after every event and when [`Watch::due`] says so.
    pub fn poll(&mut self, now: Duration) -> Vec<Probe> {
        if self.trouble.is_some() || self.targets.is_empty() {
            return Vec::new();
        }
        self.find_late(now);
        self.end_round(now);
        let round = match &mut self.state {
            State::Up(up) => up.inquiry.as_mut(),
            State::Down(down) => down.round.as_mut(),
        };
        if let Some(round) = round {
            if round.asked {
                return Vec::new();
            }
            round.asked = true;
            let deep = round.deep;
            return (0..self.targets.len())
                .map(|target| self.send(target, deep, now))
                .collect();
        }
        if now < self.next {
            return Vec::new();
        }
        if matches!(self.state, State::Up(_)) {
            let target = self.cursor % self.targets.len();
            self.cursor = target + 1;
            self.next = now + self.spread(self.spacing());
            let tracked = &self.targets[target];
            let (good, deep) = (tracked.is_good(), tracked.wants_deep(now));
            // Beside a handshake, which takes its time, silence must show as soon as ever.
            let asked = [(false, good || !deep), (true, deep)];
            return asked
                .into_iter()
                .filter(|(_, wanted)| *wanted)
                .map(|(deep, _)| self.send(target, deep, now))
                .collect();
        }
        let eager = matches!(&self.state, State::Down(down) if now < down.eager_until);
        let (pause, round) = if eager {
            (EAGER, EAGER)
        } else {
            let pause = self.spread(self.rules.interval);
            (pause, self.lateness().max(PATIENCE))
        };
        self.next = now + pause;
        if let State::Down(down) = &mut self.state {
            down.round = Some(Round::new(now, now + round, true));
        }
        self.poll(now)
    }

    /// When to ask [`Watch::poll`] next, unless something happens before.
    pub fn due(&self) -> Option<Duration> {
        if self.trouble.is_some() || self.targets.is_empty() {
            return None;
        }
        let round = match &self.state {
            State::Up(up) => up.inquiry,
            State::Down(down) => down.round,
        };
        let late = self.sent.iter().filter(|it| !it.late).map(|it| it.late_at);
        let own = round.map_or(self.next, |it| if it.asked { it.ends } else { it.began });
        late.chain([own]).min()
    }

    /// What the breakout is found to be. The text changes with the verdict only.
    pub fn verdict(&self) -> Verdict {
        match &self.state {
            State::Up(up) => match &up.degraded {
                Some(why) => Verdict::Degraded(why.clone()),
                None => Verdict::Up,
            },
            State::Down(down) => {
                Verdict::Down(self.trouble.clone().unwrap_or_else(|| down.why.clone()))
            }
        }
    }

    /// Whether the box itself says that it cannot be used.
    pub fn is_impossible(&self) -> bool {
        self.trouble.is_some()
    }

    /// What a breakout that is down waits for, for display.
    pub fn waits_for(&self, now: Duration) -> Option<String> {
        let (State::Down(down), None) = (&self.state, &self.trouble) else {
            return None;
        };
        let since = down.good_since?;
        let left = down.hold.saturating_sub(now.saturating_sub(since));
        let rounds = down.needed.saturating_sub(down.good);
        Some(format!(
            "answers again; taken after {rounds} more good rounds and {} s",
            left.as_secs_f64().ceil()
        ))
    }

    /// What is known of each target, in their order.
    pub fn targets(&self) -> impl Iterator<Item = TargetReport> {
        self.targets.iter().map(Tracked::report)
    }

    fn quorum(&self) -> u32 {
        let count = self.targets.len();
        let wanted = self.rules.quorum.map_or(count.div_ceil(2), usize::from);
        u32::try_from(wanted.clamp(1, count.max(1))).unwrap_or(1)
    }

    /// The time between two probes while all is well.
    fn spacing(&self) -> Duration {
        let count = u32::try_from(self.targets.len()).unwrap_or(1).max(1);
        self.rules.interval / count
    }

    /// 80 to 120 percent of a time, so that routers do not probe in step.
    fn spread(&mut self, time: Duration) -> Duration {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let percent = 80 + u32::try_from(self.dice % 41).unwrap_or(20);
        time * percent / 100
    }

    /// When an answer is late: by the slowest target that answers at all.
    fn lateness(&self) -> Duration {
        let answering = self.targets.iter().filter(|target| !target.is_silent());
        let slowest = answering.filter_map(Tracked::lateness).max();
        slowest.unwrap_or(PATIENCE).max(LATE)
    }

    fn send(&mut self, target: usize, deep: bool, now: Duration) -> Probe {
        let tracked = &mut self.targets[target];
        let late = tracked.lateness().unwrap_or(PATIENCE).max(LATE);
        // A handshake takes two or three times as long as the first answer.
        let first = PATIENCE.max(late * 2);
        let patience = if deep { first.max(late * 3) } else { first };
        let late = if deep { patience } else { late };
        if deep {
            tracked.went_deep(now + DEEP);
        }
        self.numbers += 1;
        self.sent.push(Sent {
            number: self.numbers,
            target,
            late_at: now + late,
            late: false,
        });
        Probe {
            number: self.numbers,
            target,
            deep,
            first,
            patience,
        }
    }

    /// Late probes of good targets start an inquiry.
    fn find_late(&mut self, now: Duration) {
        let late: Vec<usize> = self
            .sent
            .iter_mut()
            .filter(|sent| !sent.late && sent.late_at <= now)
            .map(|sent| {
                sent.late = true;
                sent.target
            })
            .collect();
        for target in late {
            if self.targets[target].is_good() {
                self.suspect(target, now);
            }
        }
    }

    /// Asks all targets at once, because one that answered so far does not.
    fn suspect(&mut self, target: usize, now: Duration) {
        // What the first answer does not show, only a handshake can clear up.
        let deep = self.targets[target].failed_deep();
        let ends = now + self.round_time(deep);
        if let State::Up(up) = &mut self.state
            && up.inquiry.is_none()
        {
            up.inquiry = Some(Round::new(now, ends, deep));
            up.failed = 0;
        }
    }

    fn round_time(&self, deep: bool) -> Duration {
        let late = self.lateness();
        if deep { PATIENCE.max(late * 3) } else { late }
    }

    fn count_answer(&mut self, target: usize, now: Duration) {
        let quorum = self.quorum();
        let round = match &mut self.state {
            State::Up(up) => up.inquiry.as_mut(),
            State::Down(down) => down.round.as_mut(),
        };
        let Some(round) = round else { return };
        round.answered |= 1 << target;
        if round.answered.count_ones() < quorum {
            return;
        }
        match &mut self.state {
            State::Up(up) => {
                up.inquiry = None;
                self.next = now + self.spread(self.spacing());
            }
            State::Down(down) => {
                down.round = None;
                down.good = down.good.saturating_add(1);
                down.good_since.get_or_insert(now);
                self.rise_if_held(now);
            }
        }
    }

    /// A round whose time is over had no quorum.
    fn end_round(&mut self, now: Duration) {
        let over = |round: Round| round.asked && round.ends <= now;
        match &mut self.state {
            State::Up(up) => {
                let Some(round) = up.inquiry.filter(|it| over(*it)) else {
                    return;
                };
                up.failed += 1;
                if up.failed >= self.rules.down_after {
                    let why = self.silence(round.answered);
                    self.fall(why, Fall::Probes, now);
                    return;
                }
                let ends = now + self.round_time(round.deep);
                if let State::Up(up) = &mut self.state {
                    // An answer that comes late counts for the rounds after, too.
                    up.inquiry = Some(Round {
                        answered: round.answered,
                        ..Round::new(now, ends, round.deep)
                    });
                }
            }
            State::Down(down) => {
                let Some(round) = down.round.filter(|it| over(*it)) else {
                    return;
                };
                down.round = None;
                down.good = 0;
                down.good_since = None;
                let why = self.silence(round.answered);
                if let State::Down(down) = &mut self.state
                    && self.up_since.is_none()
                {
                    down.why = why;
                }
            }
        }
    }

    /// Why probes say that it is down.
    fn silence(&self, answered: u32) -> String {
        let count = self.targets.len();
        let heard = answered.count_ones();
        let last = self.targets.iter().find_map(|target| target.why());
        let why = last.map_or(String::new(), |why| format!(" ({why})"));
        format!(
            "{heard} of {count} targets answer probes, {} must{why}",
            self.quorum()
        )
    }

    fn fall(&mut self, why: String, cause: Fall, now: Duration) {
        let soon = self
            .up_since
            .is_some_and(|since| now.saturating_sub(since) < self.rules.max_hold);
        let falls = match self.falls {
            Some(falls) if soon => falls.saturating_add(1),
            _ => 0,
        };
        self.falls = Some(falls);
        // A link that was down is known to be back; what a probe could not see has to prove it.
        let doublings = match cause {
            Fall::Probes => Some(falls),
            Fall::Box => falls.checked_sub(1),
        };
        let hold = doublings.map_or(Duration::ZERO, |doublings| {
            let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
            self.rules
                .hold
                .saturating_mul(factor)
                .min(self.rules.max_hold)
        });
        self.state = State::Down(Down {
            why,
            needed: if hold.is_zero() && cause == Fall::Box {
                1
            } else {
                self.rules.up_after
            },
            hold,
            good: 0,
            good_since: None,
            round: None,
            eager_until: Duration::ZERO,
        });
        self.sent.clear();
        self.next = now + self.spread(self.rules.interval);
    }

    fn rise_if_held(&mut self, now: Duration) {
        if let State::Down(down) = &self.state
            && down.good >= down.needed
            && let Some(since) = down.good_since
            && now.saturating_sub(since) >= down.hold
        {
            self.rise(now);
        }
    }

    fn rise(&mut self, now: Duration) {
        self.state = State::Up(Up::default());
        self.up_since = Some(now);
        self.sent.clear();
        for target in &mut self.targets {
            target.forget_losses();
        }
        self.next = now + self.spread(self.spacing());
    }

    /// Compares the measures with their thresholds.
    fn measure(&mut self, now: Duration) {
        let State::Up(up) = &self.state else { return };
        let share = if up.degraded.is_some() { WELL } else { 1.0 };
        let above = self.above(share);
        let rules = &self.rules;
        let (sustained, differs) = match &up.degraded {
            None => (SUSTAINED, above.is_some()),
            Some(_) => (rules.hold, above.is_none()),
        };
        let State::Up(up) = &mut self.state else {
            return;
        };
        if !differs {
            up.changing = None;
            return;
        }
        let since = *up.changing.get_or_insert(now);
        if now.saturating_sub(since) >= sustained {
            up.degraded = above;
            up.changing = None;
        }
    }

    /// Which measure is above this share of its threshold, in words.
    fn above(&self, share: f64) -> Option<String> {
        let rules = &self.rules;
        let loss = lower_median(self.targets.iter().map(Tracked::loss))?;
        if loss > rules.loss * share {
            return Some(format!(
                "{:.0} % of the probes get no answer, more than {:.0} %",
                loss * 100.0,
                rules.loss * 100.0
            ));
        }
        let seconds = |time: Duration| time.as_secs_f64();
        let latency = lower_median(self.targets.iter().filter_map(|it| it.rtt().map(seconds)))?;
        if latency > seconds(rules.latency) * share {
            return Some(format!(
                "answers take {:.0} ms, longer than {} ms",
                latency * 1000.0,
                rules.latency.as_millis()
            ));
        }
        let jitter = lower_median(
            self.targets
                .iter()
                .filter_map(|it| it.jitter().map(seconds)),
        )?;
        (jitter > seconds(rules.jitter) * share).then(|| {
            format!(
                "answers vary by {:.0} ms, more than {} ms",
                jitter * 1000.0,
                rules.jitter.as_millis()
            )
        })
    }
}

impl Round {
    fn new(began: Duration, ends: Duration, deep: bool) -> Self {
        Self {
            answered: 0,
            began,
            ends,
            deep,
            asked: false,
        }
    }
}

/// What took a breakout down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fall {
    Probes,
    Box,
}

/// The middle value, the lower one of two: single targets that are worse than the rest do not count.
fn lower_median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}
