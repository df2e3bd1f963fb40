//! The state machine against simulated paths, and against random events.

use proptest::prelude::*;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

/// What a target over a simulated path does with a probe sent at a time: the time to its answer, or
/// none.
type Line<'a> = &'a dyn Fn(Duration, usize) -> Option<Duration>;

/// A watch with a clock and a path.
struct Simulation {
    watch: Watch,
    now: Duration,
    answers: Vec<(Duration, u64, Outcome)>,
    sent: u64,
    /// When the verdict changed, and to what.
    changes: Vec<(Duration, Verdict)>,
}

impl Simulation {
    fn new(targets: usize, taken: bool, seed: u64) -> Self {
        Self::with(HealthConfig::default(), targets, taken, seed)
    }

    fn with(rules: HealthConfig, targets: usize, taken: bool, seed: u64) -> Self {
        Self {
            watch: Watch::new(rules, targets, taken, seed),
            now: Duration::ZERO,
            answers: Vec::new(),
            sent: 0,
            changes: Vec::new(),
        }
    }

    fn note(&mut self) {
        let verdict = self.watch.verdict();
        if self.changes.last().map(|(_, last)| last) != Some(&verdict) {
            self.changes.push((self.now, verdict));
        }
    }

    fn facts(&mut self, trouble: Option<&str>) {
        self.watch.facts(trouble.map(Into::into), self.now);
        self.note();
    }

    /// Lets time go by.
    fn run(&mut self, until: Duration, line: Line<'_>) {
        self.note();
        loop {
            for probe in self.watch.poll(self.now) {
                self.sent += 1;
                let (at, outcome) = match line(self.now, probe.target) {
                    Some(rtt) if rtt <= probe.patience => (rtt, Outcome::Answered(rtt)),
                    _ => (probe.patience, lost()),
                };
                self.answers.push((self.now + at, probe.number, outcome));
            }
            self.note();
            self.answers.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
            let next = self.answers.last().map(|(at, ..)| *at);
            let Some(next) = next.into_iter().chain(self.watch.due()).min() else {
                break;
            };
            if next > until {
                break;
            }
            assert!(next >= self.now, "time runs backwards");
            self.now = next;
            while let Some((_, number, outcome)) = self.answers.pop_if(|(at, ..)| *at <= next) {
                self.watch.outcome(number, outcome, self.now);
            }
        }
        self.now = until;
    }

    fn is_up(&self) -> bool {
        self.watch.verdict() == Verdict::Up
    }

    fn rises(&self) -> usize {
        let pairs = self.changes.windows(2);
        pairs
            .filter(|pair| matches!(pair[0].1, Verdict::Down(_)) && pair[1].1 == Verdict::Up)
            .count()
    }
}

fn lost() -> Outcome {
    Outcome::Failed {
        why: "no answer".into(),
        in_handshake: false,
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[expect(clippy::unnecessary_wraps, reason = "a line may lose probes")]
fn good(_: Duration, _: usize) -> Option<Duration> {
    Some(20 * MILLISECOND)
}

fn dead(_: Duration, _: usize) -> Option<Duration> {
    None
}

#[test]
fn a_new_path_is_up_with_the_first_quorum_and_not_before() {
    let mut path = Simulation::new(4, false, 1);
    path.facts(None);
    path.run(seconds(5), &dead);
    assert!(matches!(path.watch.verdict(), Verdict::Down(_)));
    let found = path.now;
    path.run(found + seconds(2), &good);
    assert!(path.is_up(), "{:?}", path.changes);
}

#[test]
fn without_targets_only_the_box_decides() {
    let mut path = Simulation::new(0, false, 1);
    path.facts(Some("no carrier"));
    assert_eq!(path.watch.verdict(), Verdict::Down("no carrier".into()));
    path.facts(None);
    assert!(path.is_up());
    assert_eq!(path.watch.due(), None);
}

#[test]
fn a_black_hole_takes_the_path_down_within_a_second_at_any_moment() {
    // 1,000 moments between two probes, on lines of 5 and of 30 ms.
    for rtt in [5, 30] {
        let mut gaps: Vec<Duration> = (0..1000_u64)
            .map(|moment| {
                let mut path = Simulation::new(4, true, moment * 7919 + 1);
                let begins = seconds(60) + Duration::from_micros(moment * 300);
                path.facts(None);
                path.run(seconds(100), &|at, _| {
                    (at < begins).then_some(rtt * MILLISECOND)
                });
                let (down, verdict) = &path.changes[1];
                assert!(matches!(verdict, Verdict::Down(_)), "{:?}", path.changes);
                down.saturating_sub(begins)
            })
            .collect();
        gaps.sort();
        // Also what the answers that were still under way took.
        assert!(gaps[999] <= 950 * MILLISECOND, "{:?}", gaps[999]);
    }
}

#[test]
fn answers_that_suddenly_take_long_do_not_take_the_path_down() {
    let mut path = Simulation::new(4, true, 3);
    path.facts(None);
    path.run(seconds(60), &good);
    // A queue fills up in an instant.
    path.run(seconds(120), &|_, _| Some(430 * MILLISECOND));
    assert!(
        path.changes
            .iter()
            .all(|(_, verdict)| !matches!(verdict, Verdict::Down(_))),
        "{:?}",
        path.changes
    );
    assert!(matches!(path.watch.verdict(), Verdict::Degraded(_)));
}

#[test]
fn one_dead_target_does_not_take_the_path_down_nor_degrade_it() {
    let mut path = Simulation::new(3, true, 5);
    path.facts(None);
    path.run(seconds(600), &|at, target| {
        (target != 1 || at < seconds(30)).then_some(20 * MILLISECOND)
    });
    assert_eq!(path.changes.len(), 1, "{:?}", path.changes);
    assert!(path.watch.targets().nth(1).unwrap().trouble.is_some());
}

#[test]
fn a_path_that_returns_is_up_after_the_hold_and_not_before() {
    let mut path = Simulation::new(4, true, 7);
    path.facts(None);
    path.run(seconds(60), &good);
    path.run(seconds(70), &dead);
    path.run(seconds(200), &good);
    let (back, verdict) = path.changes.last().unwrap();
    assert_eq!(*verdict, Verdict::Up);
    assert!((seconds(100)..seconds(103)).contains(back), "{back:?}");
}

#[test]
fn a_link_that_returns_is_up_with_the_first_answers_once_and_held_back_the_next_time() {
    let mut path = Simulation::new(4, true, 9);
    path.facts(None);
    path.run(seconds(60), &good);
    path.facts(Some("no carrier"));
    path.run(seconds(61), &good);
    path.facts(None);
    path.run(seconds(62), &good);
    assert!(path.is_up(), "{:?}", path.changes);
    path.facts(Some("no carrier"));
    path.run(seconds(63), &good);
    path.facts(None);
    path.run(seconds(90), &good);
    assert!(!path.is_up());
    assert!(
        path.watch
            .waits_for(path.now)
            .unwrap()
            .contains("more good rounds")
    );
    path.run(seconds(97), &good);
    assert!(path.is_up());
}

/// The first packets over a link that is made anew get lost: its gateway is not ready yet.
#[test]
fn a_link_that_returns_is_up_soon_even_if_the_first_probes_are_lost() {
    let mut path = Simulation::new(4, true, 9);
    path.facts(None);
    path.run(seconds(60), &good);
    path.facts(Some("no carrier"));
    path.run(seconds(61), &good);
    path.facts(None);
    let ready = seconds(61) + 250 * MILLISECOND;
    path.run(seconds(70), &|now, _| {
        (now >= ready).then_some(20 * MILLISECOND)
    });
    assert!(path.is_up(), "{:?}", path.changes);
    let (up, _) = path.changes.last().unwrap();
    assert!(*up <= ready + 250 * MILLISECOND, "{:?}", path.changes);
}

#[test]
fn a_link_that_flaps_every_second_for_a_minute_is_taken_once_more_and_then_left_alone() {
    let mut path = Simulation::new(4, true, 11);
    path.facts(None);
    path.run(seconds(10), &good);
    for second in 10..70 {
        path.facts(if second % 2 == 0 {
            Some("no carrier")
        } else {
            None
        });
        path.run(seconds(second + 1), &good);
    }
    assert_eq!(path.rises(), 1, "{:?}", path.changes);
    path.run(seconds(200), &good);
    assert_eq!(path.rises(), 2);
}

#[test]
fn a_black_hole_that_comes_and_goes_is_held_back_longer_each_time() {
    let mut path = Simulation::new(4, true, 13);
    path.facts(None);
    path.run(seconds(10), &good);
    let mut holds = Vec::new();
    for _ in 0..6 {
        let now = path.now;
        path.run(now + seconds(3), &dead);
        let returned = path.now;
        while !path.is_up() {
            let now = path.now;
            path.run(now + seconds(1), &good);
        }
        holds.push(path.now.saturating_sub(returned).as_secs());
        let now = path.now;
        path.run(now + seconds(20), &good);
    }
    for (hold, wanted) in holds.iter().zip([30, 60, 120, 240, 300, 300]) {
        assert!((wanted..wanted + 4).contains(hold), "{holds:?}");
    }
}

#[test]
fn loss_degrades_and_its_end_is_seen_after_the_hold() {
    let mut path = Simulation::new(4, true, 17);
    path.facts(None);
    // Every fifth probe of a target.
    let count = std::cell::Cell::new(0_u64);
    path.run(seconds(120), &|_, _| {
        count.set(count.get() + 1);
        (!count.get().is_multiple_of(5)).then_some(20 * MILLISECOND)
    });
    let Verdict::Degraded(why) = path.watch.verdict() else {
        panic!("{:?}", path.changes);
    };
    assert!(why.contains("% of the probes"), "{why}");
    path.run(seconds(300), &good);
    assert!(path.is_up());
    assert_eq!(path.rises(), 0);
}

#[test]
fn a_portal_in_front_of_every_target_takes_the_path_down() {
    let mut path = Simulation::new(4, true, 19);
    path.facts(None);
    path.run(seconds(60), &good);
    // Connects work, handshakes do not.
    let mut late = Vec::new();
    while path.is_up() {
        let now = path.now;
        for probe in path.watch.poll(now) {
            let outcome = if probe.deep {
                Outcome::Failed {
                    why: "its certificate is for other names".into(),
                    in_handshake: true,
                }
            } else {
                Outcome::Answered(20 * MILLISECOND)
            };
            late.push((probe.number, outcome));
        }
        path.now += 20 * MILLISECOND;
        for (number, outcome) in late.drain(..) {
            path.watch.outcome(number, outcome, path.now);
        }
        assert!(path.now < seconds(100), "not within 40 s");
    }
}

#[test]
fn probing_is_modest() {
    let mut path = Simulation::new(4, true, 23);
    path.facts(None);
    path.run(seconds(3600), &good);
    // Four targets once a second, and a handshake with each every 30 s.
    assert!((14_400..15_100).contains(&path.sent), "{}", path.sent);
    let mut path = Simulation::new(4, true, 23);
    path.facts(None);
    path.run(seconds(3600), &dead);
    assert!(path.sent < 15_100, "{} into a black hole", path.sent);
}

#[derive(Clone, Debug)]
enum Step {
    Facts(bool),
    Outcomes { good: bool, count: usize },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Facts),
        (any::<bool>(), 0_usize..20).prop_map(|(good, count)| Step::Outcomes { good, count }),
        (0_u64..20_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_trouble_is_down_and_rises_are_held_apart(
        steps in proptest::collection::vec(step(), 1..200),
        targets in 0_usize..6,
        taken: bool,
        seed: u64,
    ) {
        let mut watch = Watch::new(HealthConfig::default(), targets, taken, seed);
        let mut now = Duration::ZERO;
        let mut waiting = Vec::new();
        let mut rises: Vec<Duration> = Vec::new();
        let mut was_up = watch.verdict() == Verdict::Up;
        for step in steps {
            let mut trouble = watch.is_impossible();
            match step {
                Step::Facts(bad) => {
                    trouble = bad;
                    watch.facts(bad.then(|| "no carrier".into()), now);
                }
                Step::Outcomes { good, count } => {
                    for number in waiting.drain(..count.min(waiting.len())) {
                        let outcome = if good { Outcome::Answered(9 * MILLISECOND) } else { lost() };
                        watch.outcome(number, outcome, now);
                    }
                }
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
            }
            for probe in watch.poll(now) {
                prop_assert!(probe.target < targets);
                prop_assert!(!trouble, "probes over a dead link");
                waiting.push(probe.number);
            }
            prop_assert!(watch.poll(now).is_empty(), "the same probes twice");
            let verdict = watch.verdict();
            prop_assert_eq!(watch.is_impossible(), trouble);
            prop_assert!(!trouble || matches!(&verdict, Verdict::Down(why) if why == "no carrier"));
            let up = !matches!(verdict, Verdict::Down(_));
            if up && !was_up {
                rises.push(now);
            }
            was_up = up;
        }
        // The first two rises may be at once (never tried; the first return of a link); each of the
        // others is held back.
        if targets > 0 {
            for pair in rises.windows(3) {
                prop_assert!(pair[2] >= pair[0] + seconds(30), "{rises:?}");
            }
        }
    }
}
