//! The two families of a breakout. IPv6 may be dead where IPv4 works: no address, no route, or probes
//! that only fail in the one. Each has a [`Watch`] and targets of its own; a family that nobody probes
//! is taken for as good as the other.

use std::time::Duration;

use super::{Outcome, Probe, TargetReport, Verdict, Watch};
use crate::config::{Family, HealthConfig};

/// One breakout under watch, in both families.
#[derive(Clone, Debug)]
pub struct Families {
    watches: [Watch; 2],
    /// Where each family's targets are in the list that both share.
    places: [Vec<usize>; 2],
    /// Why the box says that a family alone cannot be used.
    lacks: [Option<String>; 2],
}

impl Families {
    /// Watches a breakout whose targets are of these families; without any, only the box is asked.
    /// `taken`: an earlier controller found the family up, and flows take it.
    pub fn new(rules: &HealthConfig, targets: &[Family], taken: [bool; 2], seed: u64) -> Self {
        let places = Family::BOTH.map(|family| {
            let own = targets.iter().enumerate().filter(|(_, it)| **it == family);
            own.map(|(place, _)| place).collect::<Vec<_>>()
        });
        let watch = |family: Family| {
            let (index, rules) = (family.index(), rules.clone());
            let seed = seed.wrapping_add(index as u64 * 2);
            Watch::new(rules, places[index].len(), taken[index], seed)
        };
        Self {
            watches: Family::BOTH.map(watch),
            places,
            lacks: [None, None],
        }
    }

    /// What the box says: `trouble` of the whole link, and what each family alone lacks.
    pub fn facts(&mut self, trouble: Option<&str>, lacks: [Option<String>; 2], now: Duration) {
        for (watch, lack) in self.watches.iter_mut().zip(&lacks) {
            let trouble = trouble.map(str::to_owned).or_else(|| lack.clone());
            watch.facts(trouble, now);
        }
        self.lacks = lacks;
    }

    /// A probe was answered, or was not.
    pub fn outcome(&mut self, number: u64, outcome: Outcome, now: Duration) {
        let watch = &mut self.watches[usize::from(number % 2 == 1)];
        watch.outcome(number / 2, outcome, now);
    }

    /// What to send now; see [`Watch::poll`].
    pub fn poll(&mut self, now: Duration) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (family, watch) in (0..).zip(&mut self.watches) {
            let places = &self.places[usize::from(family != 0)];
            probes.extend(watch.poll(now).into_iter().map(|probe| Probe {
                number: probe.number * 2 + family,
                target: places.get(probe.target).copied().unwrap_or(usize::MAX),
                ..probe
            }));
        }
        probes
    }

    /// When to ask [`Families::poll`] next, unless something happens before.
    pub fn due(&self) -> Option<Duration> {
        self.watches.iter().filter_map(Watch::due).min()
    }

    /// What a family is found to be.
    pub fn verdict_of(&self, family: Family) -> Verdict {
        self.judge(family).verdict()
    }

    /// What a family alone lacks; none when it has all that it needs.
    pub fn lack(&self, family: Family) -> Option<&str> {
        self.lacks[family.index()].as_deref()
    }

    /// What the breakout is found to be: up when every family is that the box has on it.
    pub fn verdict(&self) -> Verdict {
        let has = |family| self.lack(family).is_none();
        let [v4, v6] = Family::BOTH.map(|family| self.verdict_of(family));
        if !has(Family::V6) || v4 == v6 {
            return v4;
        }
        if !has(Family::V4) {
            return v6;
        }
        match (v4, v6) {
            (Verdict::Down(why), Verdict::Down(_)) => Verdict::Down(why),
            (Verdict::Down(why), _) => Verdict::Degraded(format!("IPv4 is down: {why}")),
            (_, Verdict::Down(why)) => Verdict::Degraded(format!("IPv6 is down: {why}")),
            (Verdict::Degraded(why), Verdict::Degraded(_)) => Verdict::Degraded(why),
            (Verdict::Degraded(why), _) => Verdict::Degraded(format!("IPv4: {why}")),
            (_, Verdict::Degraded(why)) => Verdict::Degraded(format!("IPv6: {why}")),
            (Verdict::Up, Verdict::Up) => Verdict::Up,
        }
    }

    /// Whether the box itself says that a family cannot be used.
    pub fn is_impossible(&self, family: Family) -> bool {
        self.watches[family.index()].is_impossible()
    }

    /// What a breakout that is down waits for, for display.
    pub fn waits_for(&self, now: Duration) -> Option<String> {
        self.watches.iter().find_map(|watch| watch.waits_for(now))
    }

    /// What is known of each target, in their order.
    pub fn targets(&self) -> Vec<TargetReport> {
        let reports = self.places.iter().zip(&self.watches);
        let mut reports: Vec<_> = reports
            .flat_map(|(places, watch)| places.iter().zip(watch.targets()))
            .collect();
        reports.sort_by_key(|(place, _)| **place);
        reports.into_iter().map(|(_, report)| report).collect()
    }

    /// Who judges a family: its own watch, or the other one's if only that is probed.
    fn judge(&self, family: Family) -> &Watch {
        let (own, other) = (family.index(), family.other().index());
        let follows = self.places[own].is_empty() && !self.places[other].is_empty();
        if follows && !self.watches[own].is_impossible() && !self.watches[other].is_impossible() {
            &self.watches[other]
        } else {
            &self.watches[own]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: usize = 0;
    const V6: usize = 1;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A breakout, and what answers its probes; the clock is simulated.
    struct Office {
        families: Families,
        targets: Vec<Family>,
        answers: [bool; 2],
        now: Duration,
        sent: [u32; 2],
    }

    impl Office {
        fn new(targets: &[Family]) -> Self {
            let mut families =
                Families::new(&HealthConfig::default(), targets, [false, false], 4711);
            families.facts(None, [None, None], Duration::ZERO);
            Self {
                families,
                targets: targets.to_vec(),
                answers: [true, true],
                now: Duration::ZERO,
                sent: [0, 0],
            }
        }

        fn facts(&mut self, trouble: Option<&str>, lacks: [Option<&str>; 2]) {
            let lacks = lacks.map(|lack| lack.map(str::to_owned));
            self.families.facts(trouble, lacks, self.now);
        }

        /// Answers take 20 ms; lost probes are given up when their time is over.
        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            let mut flying: Vec<(Duration, u64, Outcome)> = Vec::new();
            while self.now < end {
                for probe in self.families.poll(self.now) {
                    let family = self.targets[probe.target].index();
                    self.sent[family] += 1;
                    let rtt = Duration::from_millis(20);
                    flying.push(if self.answers[family] {
                        (self.now + rtt, probe.number, Outcome::Answered(rtt))
                    } else {
                        let why = "no answer".into();
                        let lost = Outcome::Failed {
                            why,
                            in_handshake: false,
                        };
                        (self.now + probe.first, probe.number, lost)
                    });
                }
                flying.sort_by_key(|(when, ..)| *when);
                let next = flying.first().map(|(when, ..)| *when);
                let due = self.families.due();
                self.now = next.into_iter().chain(due).min().unwrap_or(end).min(end);
                while flying.first().is_some_and(|(when, ..)| *when <= self.now) {
                    let (_, number, outcome) = flying.remove(0);
                    self.families.outcome(number, outcome, self.now);
                }
            }
        }

        fn is_up(&self) -> [bool; 2] {
            Family::BOTH.map(|family| self.families.verdict_of(family) == Verdict::Up)
        }
    }

    /// Mixed, as an operator may write them.
    const TARGETS: [Family; 6] = [
        Family::V4,
        Family::V6,
        Family::V6,
        Family::V4,
        Family::V4,
        Family::V6,
    ];

    #[test]
    fn a_family_that_dies_alone_goes_down_alone_and_comes_back() {
        for dead in [V4, V6] {
            let mut office = Office::new(&TARGETS);
            office.run(seconds(5));
            assert_eq!(office.is_up(), [true, true]);
            assert_eq!(office.families.verdict(), Verdict::Up);
            office.answers[dead] = false;
            office.run(seconds(2));
            let mut expected = [true, true];
            expected[dead] = false;
            assert_eq!(office.is_up(), expected);
            let name = ["IPv4", "IPv6"][dead];
            let Verdict::Degraded(why) = office.families.verdict() else {
                panic!("{:?}", office.families.verdict())
            };
            assert!(why.starts_with(&format!("{name} is down: 0 of 3")), "{why}");
            office.answers[dead] = true;
            office.run(seconds(60));
            assert_eq!(office.families.verdict(), Verdict::Up);
        }
    }

    #[test]
    fn both_dead_is_down() {
        let mut office = Office::new(&TARGETS);
        office.run(seconds(5));
        office.answers = [false, false];
        office.run(seconds(2));
        assert!(matches!(office.families.verdict(), Verdict::Down(_)));
    }

    #[test]
    fn a_family_without_targets_follows_the_other() {
        let mut office = Office::new(&[Family::V4; 3]);
        office.run(seconds(5));
        assert_eq!(office.is_up(), [true, true]);
        office.answers[V4] = false;
        office.run(seconds(2));
        assert_eq!(office.is_up(), [false, false]);
        assert!(matches!(office.families.verdict(), Verdict::Down(_)));
        // Where the other one cannot be asked, only the box is.
        office.facts(None, [Some("no IPv4 address"), None]);
        assert_eq!(office.is_up(), [false, true]);
        assert_eq!(office.families.verdict(), Verdict::Up);
    }

    #[test]
    fn what_a_family_lacks_takes_it_down_at_once_and_is_no_fault_of_the_breakout() {
        let mut office = Office::new(&TARGETS);
        office.run(seconds(5));
        office.facts(None, [None, Some("no IPv6 address")]);
        assert_eq!(office.is_up(), [true, false]);
        assert!(office.families.is_impossible(Family::V6));
        assert_eq!(office.families.verdict(), Verdict::Up);
        let before = office.sent[V6];
        office.run(seconds(5));
        assert_eq!(office.sent[V6], before, "nothing can leave by it");
        office.facts(None, [None, None]);
        office.run(seconds(2));
        assert_eq!(office.is_up(), [true, true]);
    }

    #[test]
    fn trouble_of_the_link_is_trouble_of_both() {
        let mut office = Office::new(&TARGETS);
        office.run(seconds(5));
        office.facts(Some("no carrier"), [None, None]);
        assert_eq!(
            office.families.verdict(),
            Verdict::Down("no carrier".into())
        );
        assert_eq!(office.is_up(), [false, false]);
    }

    #[test]
    fn each_target_has_its_own_report() {
        let mut office = Office::new(&TARGETS);
        office.answers[V6] = false;
        office.run(seconds(10));
        let answered = office.families.targets().into_iter();
        let answered: Vec<bool> = answered.map(|it| it.answered > 0).collect();
        let v4 = |family: &Family| *family == Family::V4;
        assert_eq!(answered, TARGETS.iter().map(v4).collect::<Vec<_>>());
    }
}
