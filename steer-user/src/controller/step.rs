//! What the controller decides, without a clock, a socket or a kernel: events in, effects out.
//!
//! Plan, paths and objects are three lifetimes. A path that goes down changes one word of the path
//! table; it publishes no plan and touches no nftables rule.

use std::{collections::BTreeMap, time::Duration};

use steer_common::{
    abi::{FamilyTable, PathTable, STEERING},
    mark,
};

use crate::{
    config::{Family, HealthConfig, OnPathLoss, WhenDegraded, WhenDown},
    paths::{Families, Outcome, Probe, Verdict},
    system::PathId,
};

/// What the box says about one breakout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakoutFacts {
    /// Its path.
    pub id: PathId,
    /// Lower is taken first.
    pub priority: u8,
    /// The share among breakouts of equal priority.
    pub weight: u8,
    /// Why it cannot be used, in words; none when it can.
    pub trouble: Option<String>,
    /// Why IPv4 and IPv6 alone cannot be used.
    pub lacks: [Option<String>; 2],
    /// The index of the resolved next hop in the fast path's map, for IPv4 and IPv6 (redirect mode
    /// only, else 0).
    pub next_hops: [u8; 2],
}

/// How one breakout is watched, and what its states mean.
#[derive(Clone, Debug)]
pub struct PathSetup {
    /// Its path.
    pub id: PathId,
    /// The probes and what they say.
    pub families: Families,
    /// What it being down means for new flows.
    pub when_down: WhenDown,
    /// What it being degraded means for new flows.
    pub when_degraded: WhenDegraded,
    /// What becomes of its flows when it goes down.
    pub on_path_loss: OnPathLoss,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The box was looked at.
    Facts(Vec<BreakoutFacts>),
    /// A probe was answered, or was not.
    Probed {
        /// The path it took.
        id: PathId,
        /// Its number.
        number: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// Time went by.
    Tick,
    /// New flows are to be left alone from now on.
    StopSteering,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the path table.
    SetPaths(Box<PathTable>),
    /// Tell the operator that a path is found to be something else.
    PathChanged {
        /// The path.
        id: PathId,
        /// What it is now.
        verdict: Verdict,
    },
    /// Tell the operator that a family alone cannot be used on a path, or can again.
    FamilyChanged {
        /// The path.
        id: PathId,
        /// The family.
        family: Family,
        /// What it lacks.
        lack: Option<String>,
    },
    /// Send a probe over a path.
    Probe(PathId, Probe),
    /// Delete a family's flows of a path that went down.
    ResetFlows(PathId, Family),
    /// Tell the operator that the watch period is over.
    SteeringStarts,
}

/// Where the controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connections that began before are only watched, until this time.
    Watching {
        /// Since the controller's start.
        until: Duration,
    },
    /// New flows are steered.
    Steering,
    /// New flows are not steered any more.
    Stopped,
}

/// All that the decisions depend on.
#[derive(Clone, Debug)]
pub struct State {
    phase: Phase,
    breakouts: Vec<BreakoutFacts>,
    paths: BTreeMap<PathId, Path>,
    written: Option<PathTable>,
}

/// A breakout's setup, and what the operator was told of it.
#[derive(Clone, Debug)]
struct Path {
    setup: PathSetup,
    told: Told,
}

/// What the operator was told of a path.
#[derive(Clone, Debug, Default)]
struct Told {
    verdict: Option<Verdict>,
    lacks: [Option<String>; 2],
    /// Whether each family carried flows.
    carried: [bool; 2],
}

impl Path {
    /// A path that nobody set up: only what the box says counts.
    fn unprobed(id: PathId) -> Self {
        Self::new(PathSetup {
            id,
            families: Families::new(&HealthConfig::default(), &[], [false, false], 0),
            when_down: WhenDown::default(),
            when_degraded: WhenDegraded::default(),
            on_path_loss: OnPathLoss::default(),
        })
    }

    fn new(setup: PathSetup) -> Self {
        Self {
            setup,
            told: Told::default(),
        }
    }

    fn verdict(&self, family: Family) -> Verdict {
        self.setup.families.verdict_of(family)
    }

    /// How good it is for a family's new flows; the lower the better, none if it is none.
    fn rank(&self, family: Family) -> Option<u8> {
        match (self.verdict(family), self.setup.when_degraded) {
            (Verdict::Up, _) | (Verdict::Degraded(_), WhenDegraded::Keep) => Some(0),
            (Verdict::Degraded(_), WhenDegraded::Next) => Some(1),
            (Verdict::Degraded(_), WhenDegraded::Backbone) => None,
            // The box itself could not send them there.
            (Verdict::Down(_), _) => (self.setup.when_down == WhenDown::Hold
                && !self.setup.families.is_impossible(family))
            .then_some(0),
        }
    }

    /// Whether flows that took it may go on there.
    fn carries(&self, family: Family) -> bool {
        self.rank(family).is_some() || matches!(self.verdict(family), Verdict::Degraded(_))
    }

    /// Whether new flows are to take the backbone rather than a breakout of lower rank.
    fn ends_search(&self, family: Family) -> bool {
        matches!(self.verdict(family), Verdict::Down(_))
            && self.setup.when_down == WhenDown::Backbone
    }
}

impl State {
    /// A controller that watches for `watch` first; zero steers at once.
    pub fn new(watch: Duration) -> Self {
        let phase = if watch.is_zero() {
            Phase::Steering
        } else {
            Phase::Watching { until: watch }
        };
        Self {
            phase,
            breakouts: Vec::new(),
            paths: BTreeMap::new(),
            written: None,
        }
    }

    /// Watches the breakouts like this from now on; a path that is not named is not probed.
    pub fn set_up(&mut self, paths: impl IntoIterator<Item = PathSetup>) {
        self.paths = paths
            .into_iter()
            .map(|setup| {
                let old = self.paths.get(&setup.id);
                let told = old.map(|old| old.told.clone()).unwrap_or_default();
                (setup.id, Path { setup, told })
            })
            .collect();
    }

    /// How a path is watched.
    pub fn families(&self, id: PathId) -> Option<&Families> {
        self.paths.get(&id).map(|path| &path.setup.families)
    }

    /// Whether new flows of a family take a path now, all or some of them.
    pub fn takes_new_flows(&self, id: PathId, family: Family) -> bool {
        self.phase == Phase::Steering && self.chosen(family).iter().any(|it| it.id == id)
    }

    /// When [`Event::Tick`] is due, unless something happens before.
    pub fn due(&self) -> Option<Duration> {
        self.paths
            .values()
            .filter_map(|it| it.setup.families.due())
            .min()
    }

    /// Where the controller is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The breakouts as they were seen last.
    pub fn breakouts(&self) -> &[BreakoutFacts] {
        &self.breakouts
    }

    /// Takes an event at `now`, counted from the controller's start.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Facts(facts) => {
                let configured = |id: &PathId| facts.iter().any(|new| new.id == *id);
                self.paths.retain(|id, _| configured(id));
                for new in &facts {
                    let path = self.paths.entry(new.id);
                    let path = path.or_insert_with(|| Path::unprobed(new.id));
                    let families = &mut path.setup.families;
                    families.facts(new.trouble.as_deref(), new.lacks.clone(), now);
                }
                self.breakouts = facts;
            }
            Event::Probed {
                id,
                number,
                outcome,
            } => {
                if let Some(path) = self.paths.get_mut(&id) {
                    path.setup.families.outcome(number, outcome, now);
                }
            }
            Event::Tick => {}
            Event::StopSteering => self.phase = Phase::Stopped,
        }
        for (&id, path) in &mut self.paths {
            let probes = path.setup.families.poll(now);
            effects.extend(probes.into_iter().map(|probe| Effect::Probe(id, probe)));
        }
        if let Phase::Watching { until } = self.phase
            && now >= until
        {
            self.phase = Phase::Steering;
            effects.push(Effect::SteeringStarts);
        }
        let table = self.path_table();
        if self.written.as_ref() != Some(&table) {
            effects.push(Effect::SetPaths(Box::new(table)));
            self.written = Some(table);
        }
        // The table first: new flows are what is urgent.
        effects.extend(self.path_changes());
        effects
    }

    fn path_changes(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (&id, path) in &mut self.paths {
            for family in Family::BOTH {
                let now = path.carries(family);
                let before = std::mem::replace(&mut path.told.carried[family.index()], now);
                if before && !now && path.setup.on_path_loss == OnPathLoss::Reset {
                    effects.push(Effect::ResetFlows(id, family));
                }
            }
            let verdict = path.setup.families.verdict();
            if path.told.verdict.as_ref() != Some(&verdict) {
                path.told.verdict = Some(verdict.clone());
                effects.push(Effect::PathChanged {
                    id,
                    verdict: verdict.clone(),
                });
            }
            // What a link that is gone lacks besides is no news.
            if matches!(verdict, Verdict::Down(_)) {
                continue;
            }
            for family in Family::BOTH {
                let lack = path.setup.families.lack(family).map(str::to_owned);
                let told = &mut path.told.lacks[family.index()];
                if *told != lack {
                    told.clone_from(&lack);
                    effects.push(Effect::FamilyChanged { id, family, lack });
                }
            }
        }
        effects
    }

    /// The path table that the facts, the probes and the phase ask for.
    fn path_table(&self) -> PathTable {
        let mut next_hops = [[0; 2]; mark::PATHS];
        let families = Family::BOTH.map(|family| self.family_table(family, &mut next_hops));
        PathTable {
            families,
            next_hops,
        }
    }

    fn family_table(&self, family: Family, next_hops: &mut [[u8; 2]; mark::PATHS]) -> FamilyTable {
        let steering = if self.phase == Phase::Steering {
            STEERING
        } else {
            0
        };
        let chosen = self.chosen(family);
        // Where new flows take the backbone, no path may look like a way for them.
        let carrying: Vec<&BreakoutFacts> = self
            .breakouts
            .iter()
            .filter(|it| {
                !chosen.is_empty() && self.path(it).is_some_and(|path| path.carries(family))
            })
            .collect();
        let state = carrying
            .iter()
            .fold(steering, |state, breakout| state | 1 << breakout.id.get());
        for breakout in carrying {
            let place = family.index();
            next_hops[usize::from(breakout.id.get())][place] = breakout.next_hops[place];
        }
        FamilyTable {
            state,
            buckets: buckets(&chosen),
        }
    }

    fn path(&self, breakout: &BreakoutFacts) -> Option<&Path> {
        self.paths.get(&breakout.id)
    }

    /// The breakouts that a family's new flows take: of those that are well, else of those that are degraded,
    /// the ones of the best priority.
    fn chosen(&self, family: Family) -> Vec<&BreakoutFacts> {
        let mut sorted: Vec<&BreakoutFacts> = self.breakouts.iter().collect();
        sorted.sort_by_key(|breakout| breakout.priority);
        for wanted in [0, 1] {
            for group in sorted.chunk_by(|a, b| a.priority == b.priority) {
                let path = |it: &&BreakoutFacts| self.path(it);
                let good: Vec<&BreakoutFacts> = group
                    .iter()
                    .filter(|it| path(it).and_then(|path| path.rank(family)) == Some(wanted))
                    .copied()
                    .collect();
                if !good.is_empty() {
                    return good;
                }
                let ends_search = |path: &Path| path.ends_search(family);
                if group.iter().filter_map(path).any(ends_search) {
                    return Vec::new();
                }
            }
        }
        Vec::new()
    }
}

/// Gives each breakout a share of the buckets by its weight.
///
/// Which breakout a bucket goes to depends on the bucket and the breakout alone (rendezvous
/// hashing), so that a breakout which goes or comes moves no client between the others.
fn buckets(breakouts: &[&BreakoutFacts]) -> [u8; 64] {
    let mut buckets = [0; 64];
    for (number, bucket) in (0_u64..).zip(&mut buckets) {
        let winner = breakouts.iter().max_by(|a, b| {
            share(number, a)
                .total_cmp(&share(number, b))
                .then(b.id.cmp(&a.id))
        });
        *bucket = winner.map_or(0, |breakout| breakout.id.get());
    }
    buckets
}

/// The score of a breakout for a bucket: weight / -ln(uniform), the highest of which wins with a
/// probability in proportion to its weight.
fn share(bucket: u64, breakout: &BreakoutFacts) -> f64 {
    let hash = steer_common::flow::finish(bucket << 8 | u64::from(breakout.id.get()));
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits are uniform enough for 64 buckets"
    )]
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(breakout.weight) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breakout(id: u8, priority: u8, weight: u8) -> BreakoutFacts {
        let id = PathId::new(id).unwrap();
        BreakoutFacts {
            id,
            priority,
            weight,
            trouble: None,
            lacks: [None, None],
            next_hops: [0; 2],
        }
    }

    fn down(mut breakout: BreakoutFacts) -> BreakoutFacts {
        breakout.trouble = Some("no carrier".into());
        breakout
    }

    fn tables(effects: &[Effect]) -> &PathTable {
        effects
            .iter()
            .find_map(|effect| match effect {
                Effect::SetPaths(table) => Some(&**table),
                _ => None,
            })
            .unwrap()
    }

    /// That of both families, which must be alike.
    fn table(effects: &[Effect]) -> &FamilyTable {
        let [v4, v6] = &tables(effects).families;
        assert_eq!(v4, v6);
        v4
    }

    fn share_of(table: &FamilyTable, path: u8) -> usize {
        let ours = |bucket: &&u8| **bucket == path;
        table.buckets.iter().filter(ours).map(|_| 1).sum()
    }

    const START: Duration = Duration::ZERO;

    #[test]
    fn nothing_is_steered_until_the_watch_period_is_over() {
        let mut state = State::new(Duration::from_secs(130));
        let effects = state.step(Event::Facts(vec![breakout(1, 1, 1)]), START);
        assert_eq!(table(&effects).state, 0b10);
        assert_eq!(state.step(Event::Tick, Duration::from_secs(129)), []);
        let effects = state.step(Event::Tick, Duration::from_secs(130));
        assert!(effects.contains(&Effect::SteeringStarts));
        assert_eq!(table(&effects).state, 0b10 | STEERING);
    }

    #[test]
    fn without_a_watch_period_steering_begins_with_the_first_facts() {
        let mut state = State::new(Duration::ZERO);
        let effects = state.step(Event::Facts(vec![breakout(1, 1, 1)]), START);
        assert_eq!(table(&effects).state, 0b10 | STEERING);
        assert_eq!(share_of(table(&effects), 1), 64);
    }

    #[test]
    fn the_same_facts_again_change_nothing() {
        let mut state = State::new(Duration::ZERO);
        state.step(Event::Facts(vec![breakout(1, 1, 1)]), START);
        assert_eq!(state.step(Event::Facts(vec![breakout(1, 1, 1)]), START), []);
    }

    #[test]
    fn a_path_that_goes_down_is_reported_and_left_out() {
        let mut state = State::new(Duration::ZERO);
        state.step(
            Event::Facts(vec![breakout(1, 1, 1), breakout(2, 2, 1)]),
            START,
        );
        let effects = state.step(
            Event::Facts(vec![down(breakout(1, 1, 1)), breakout(2, 2, 1)]),
            START,
        );
        let id = PathId::new(1).unwrap();
        assert!(effects.contains(&Effect::PathChanged {
            id,
            verdict: Verdict::Down("no carrier".into())
        }));
        assert_eq!(table(&effects).state, 0b100 | STEERING);
        assert_eq!(share_of(table(&effects), 2), 64);
    }

    #[test]
    fn no_path_up_leaves_every_bucket_empty() {
        let mut state = State::new(Duration::ZERO);
        let effects = state.step(Event::Facts(vec![down(breakout(1, 1, 1))]), START);
        assert_eq!(table(&effects).state, STEERING);
        assert_eq!(share_of(table(&effects), 0), 64);
    }

    #[test]
    fn the_better_priority_takes_every_client() {
        let mut state = State::new(Duration::ZERO);
        let effects = state.step(
            Event::Facts(vec![breakout(1, 2, 9), breakout(2, 1, 1)]),
            START,
        );
        assert_eq!(share_of(table(&effects), 2), 64);
        assert_eq!(table(&effects).state, 0b110 | STEERING);
    }

    #[test]
    fn weights_share_the_clients_and_a_lost_path_moves_only_its_own() {
        let mut state = State::new(Duration::ZERO);
        let all = vec![breakout(1, 1, 1), breakout(2, 1, 1), breakout(3, 1, 2)];
        let before = *table(&state.step(Event::Facts(all.clone()), START));
        for (path, least) in [(1, 8), (2, 8), (3, 22)] {
            assert!(share_of(&before, path) >= least, "{:?}", before.buckets);
        }
        let without = vec![all[0].clone(), down(all[1].clone()), all[2].clone()];
        let after = *table(&state.step(Event::Facts(without), START));
        for (old, new) in before.buckets.iter().zip(&after.buckets) {
            assert!(old == new || *old == 2, "{old} -> {new}");
        }
    }

    #[test]
    fn a_family_that_lacks_something_takes_the_next_breakout_and_the_other_stays() {
        let mut state = State::new(Duration::ZERO);
        // The next one by priority is not the one with the lowest number.
        let all = [breakout(1, 3, 1), breakout(2, 1, 1), breakout(3, 2, 1)];
        state.step(Event::Facts(all.to_vec()), START);
        let mut without = all.clone();
        without[1].lacks = [None, Some("no IPv6 address".into())];
        let effects = state.step(Event::Facts(without.to_vec()), START);
        let id = PathId::new(2).unwrap();
        assert!(effects.contains(&Effect::FamilyChanged {
            id,
            family: Family::V6,
            lack: Some("no IPv6 address".into())
        }));
        let told = |it: &Effect| matches!(it, Effect::PathChanged { .. });
        assert!(!effects.iter().any(told), "the breakout is up");
        let [v4, v6] = &tables(&effects).families;
        assert_eq!((v4.state, v6.state), (0b1110 | STEERING, 0b1010 | STEERING));
        assert_eq!((share_of(v4, 2), share_of(v6, 3)), (64, 64));

        // A cable that is pulled is told once, and what is lacking still is no news afterwards.
        let mut pulled = without.clone();
        pulled[1].trouble = Some("no carrier".into());
        for facts in [pulled, without] {
            let effects = state.step(Event::Facts(facts.to_vec()), START);
            let family = |it: &Effect| matches!(it, Effect::FamilyChanged { .. });
            assert!(!effects.iter().any(family), "{effects:?}");
        }
        let effects = state.step(Event::Facts(all.to_vec()), START);
        assert_eq!(share_of(table(&effects), 2), 64);
    }

    #[test]
    fn only_the_flows_of_the_family_that_went_down_are_reset() {
        let mut state = State::new(Duration::ZERO);
        let id = PathId::new(1).unwrap();
        let mut path = Path::unprobed(id);
        path.setup.on_path_loss = OnPathLoss::Reset;
        state.set_up([path.setup]);
        let up = breakout(1, 1, 1);
        state.step(Event::Facts(vec![up.clone()]), START);
        let mut without = up;
        without.lacks[0] = Some("no IPv4 route".into());
        let resets = |effects: Vec<Effect>| -> Vec<Effect> {
            let reset = |it: &Effect| matches!(it, Effect::ResetFlows(..));
            effects.into_iter().filter(reset).collect()
        };
        let effects = state.step(Event::Facts(vec![without.clone()]), START);
        assert_eq!(resets(effects), [Effect::ResetFlows(id, Family::V4)]);
        let effects = state.step(Event::Facts(vec![down(without)]), START);
        assert_eq!(resets(effects), [Effect::ResetFlows(id, Family::V6)]);
    }

    #[test]
    fn stopping_keeps_the_paths_but_starts_no_flow() {
        let mut state = State::new(Duration::ZERO);
        state.step(Event::Facts(vec![breakout(1, 1, 1)]), START);
        let effects = state.step(Event::StopSteering, START);
        assert_eq!(table(&effects).state, 0b10);
    }
}
