//! What the controller decides, without a clock, a socket or a kernel: events in, effects out.
//!
//! Plan, paths and objects are three lifetimes. A path that goes down changes one word of the path
//! table; it publishes no plan and touches no nftables rule.

use std::{collections::BTreeMap, time::Duration};

use steer_common::{
    abi::{CLASSES, Choice, FamilyTable, PREFERENCES, PathTable, STEERING},
    mark,
};

use crate::{
    config::{Family, HealthConfig, OnPathLoss, WhenDegraded, WhenDown},
    paths::{Families, Outcome, PreferenceId, Probe, Verdict},
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
    /// The same for the preferences that have probes of their own.
    pub preferences: BTreeMap<PreferenceId, Families>,
    /// What it being down means for new flows.
    pub when_down: WhenDown,
    /// What becomes of its flows when it goes down.
    pub on_path_loss: OnPathLoss,
}

/// Where the new flows of some classes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preference {
    /// The paths that they may take, the best one first; none: all, by their priority and weight.
    pub paths: Option<Vec<PathId>>,
    /// What a degraded path means for them.
    pub when_degraded: WhenDegraded,
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
        /// For whom it was sent.
        preference: PreferenceId,
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
    /// Tell the operator that a path is found to be something else for a preference with probes of its
    /// own.
    PreferenceChanged {
        /// The path.
        id: PathId,
        /// The preference.
        preference: PreferenceId,
        /// What its probes find.
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
    Probe(PathId, PreferenceId, Probe),
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
    preferences: [Preference; PREFERENCES],
    classes: Box<[u8; CLASSES as usize]>,
    written: Option<Box<PathTable>>,
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
    preferences: BTreeMap<PreferenceId, Verdict>,
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
            preferences: BTreeMap::new(),
            when_down: WhenDown::default(),
            on_path_loss: OnPathLoss::default(),
        })
    }

    fn new(setup: PathSetup) -> Self {
        Self {
            setup,
            told: Told::default(),
        }
    }

    /// Every watch over it, the one that is about all its flows first.
    fn watches(&mut self) -> impl Iterator<Item = (PreferenceId, &mut Families)> {
        let own = self.setup.preferences.iter_mut();
        let all = [(PreferenceId::DEFAULT, &mut self.setup.families)];
        all.into_iter().chain(own.map(|(id, it)| (*id, it)))
    }

    fn watch(&self, preference: PreferenceId) -> &Families {
        let own = self.setup.preferences.get(&preference);
        own.unwrap_or(&self.setup.families)
    }

    /// Whether flows that took it may go on there.
    fn carries(&self, family: Family) -> bool {
        let verdict = self.setup.families.verdict_of(family);
        !matches!(verdict, Verdict::Down(_)) || self.is_held(family)
    }

    /// Whether new flows are held to it though it is down; where the box itself could not send them, they
    /// are not.
    fn is_held(&self, family: Family) -> bool {
        self.setup.when_down == WhenDown::Hold && !self.setup.families.is_impossible(family)
    }
}

/// A path as the new flows of one family and preference see it.
struct Prospect<'a> {
    breakout: &'a BreakoutFacts,
    path: &'a Path,
    family: Family,
    verdict: Verdict,
    when_degraded: WhenDegraded,
    /// The lower the better.
    priority: usize,
}

impl Prospect<'_> {
    /// How good it is; the lower the better, none if it is none.
    fn rank(&self) -> Option<u8> {
        match (&self.verdict, self.when_degraded) {
            (Verdict::Up, _) | (Verdict::Degraded(_), WhenDegraded::Keep) => Some(0),
            (Verdict::Degraded(_), WhenDegraded::Next) => Some(1),
            (Verdict::Degraded(_), WhenDegraded::Backbone) => None,
            (Verdict::Down(_), _) => self.path.is_held(self.family).then_some(0),
        }
    }

    /// Whether new flows are to take the backbone rather than a breakout of lower priority.
    fn ends_search(&self) -> bool {
        matches!(self.verdict, Verdict::Down(_)) && self.path.setup.when_down == WhenDown::Backbone
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
            preferences: std::array::from_fn(|_| Preference::default()),
            classes: Box::new([0; CLASSES as usize]),
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

    /// Sends new flows by these preferences from now on, the default one first; those that are not
    /// named are like the default one.
    pub fn prefer(&mut self, preferences: &[Preference]) {
        let default = preferences.first().cloned().unwrap_or_default();
        self.preferences = std::array::from_fn(|place| {
            let own = preferences.get(place);
            own.unwrap_or(&default).clone()
        });
    }

    /// Which preference each class has from now on.
    pub fn classify(&mut self, classes: impl IntoIterator<Item = (u16, PreferenceId)>) {
        *self.classes = [0; CLASSES as usize];
        for (class, preference) in classes {
            if let Some(place) = self.classes.get_mut(usize::from(class)) {
                *place = preference.get();
            }
        }
    }

    /// How a path is watched, for everybody or for a preference with probes of its own.
    pub fn families(&self, id: PathId, preference: PreferenceId) -> Option<&Families> {
        let setup = &self.paths.get(&id)?.setup;
        if preference == PreferenceId::DEFAULT {
            Some(&setup.families)
        } else {
            setup.preferences.get(&preference)
        }
    }

    /// Which paths the new flows of a preference take now; none while they take the backbone.
    pub fn taken(&self, preference: PreferenceId, family: Family) -> Vec<PathId> {
        if self.phase != Phase::Steering {
            return Vec::new();
        }
        let chosen = self.chosen(preference, family);
        chosen.into_iter().map(|breakout| breakout.id).collect()
    }

    /// When [`Event::Tick`] is due, unless something happens before.
    pub fn due(&self) -> Option<Duration> {
        let setups = self.paths.values().map(|it| &it.setup);
        setups
            .flat_map(|it| it.preferences.values().chain([&it.families]))
            .filter_map(Families::due)
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
                    for (_, families) in path.watches() {
                        families.facts(new.trouble.as_deref(), new.lacks.clone(), now);
                    }
                }
                self.breakouts = facts;
            }
            Event::Probed {
                id,
                preference,
                number,
                outcome,
            } => {
                let watches = self.paths.get_mut(&id).into_iter().flat_map(Path::watches);
                for (_, families) in watches.filter(|(of, _)| *of == preference) {
                    families.outcome(number, outcome.clone(), now);
                }
            }
            Event::Tick => {}
            Event::StopSteering => self.phase = Phase::Stopped,
        }
        for (&id, path) in &mut self.paths {
            for (preference, families) in path.watches() {
                let probes = families.poll(now).into_iter();
                effects.extend(probes.map(|probe| Effect::Probe(id, preference, probe)));
            }
        }
        if let Phase::Watching { until } = self.phase
            && now >= until
        {
            self.phase = Phase::Steering;
            effects.push(Effect::SteeringStarts);
        }
        let table = Box::new(self.path_table());
        if self.written.as_ref() != Some(&table) {
            effects.push(Effect::SetPaths(table.clone()));
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
            // What else a link that is gone lacks is no news.
            if matches!(verdict, Verdict::Down(_)) {
                continue;
            }
            for (&preference, families) in &path.setup.preferences {
                let verdict = families.verdict();
                let told = path.told.preferences.insert(preference, verdict.clone());
                if told.as_ref() != Some(&verdict) {
                    effects.push(Effect::PreferenceChanged {
                        id,
                        preference,
                        verdict,
                    });
                }
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
        for family in Family::BOTH {
            let place = family.index();
            for breakout in self.carrying(family) {
                next_hops[usize::from(breakout.id.get())][place] = breakout.next_hops[place];
            }
        }
        PathTable {
            families: Family::BOTH.map(|family| self.family_table(family)),
            next_hops,
            preferences: *self.classes,
        }
    }

    fn family_table(&self, family: Family) -> FamilyTable {
        let steering = if self.phase == Phase::Steering {
            STEERING
        } else {
            0
        };
        let carrying = self.carrying(family);
        FamilyTable {
            state: carrying.fold(steering, |state, breakout| state | bit(breakout)),
            choices: std::array::from_fn(|place| {
                PreferenceId::at(place).map_or(NOWHERE, |id| self.choice(id, family))
            }),
        }
    }

    /// The breakouts whose flows of a family may go on.
    fn carrying(&self, family: Family) -> impl Iterator<Item = &BreakoutFacts> {
        self.breakouts.iter().filter(move |it| {
            let path = self.paths.get(&it.id);
            path.is_some_and(|path| path.carries(family))
        })
    }

    /// Where the new flows of a preference go. What they fall back to in the kernel are the other paths
    /// that they may take; where they take the backbone, there are none.
    fn choice(&self, preference: PreferenceId, family: Family) -> Choice {
        let chosen = self.chosen(preference, family);
        if chosen.is_empty() {
            return NOWHERE;
        }
        let prospects = self.prospects(preference, family);
        let carrying = prospects.iter().filter(|it| {
            let degraded = matches!(it.verdict, Verdict::Degraded(_));
            it.path.carries(family) && (degraded || it.rank().is_some())
        });
        Choice {
            paths: carrying.fold(0, |paths, it| paths | bit(it.breakout)),
            buckets: buckets(&chosen),
        }
    }

    /// The breakouts that the new flows of a preference take: of those that are well, else of those that
    /// are degraded, the ones of the best priority.
    fn chosen(&self, preference: PreferenceId, family: Family) -> Vec<&BreakoutFacts> {
        let prospects = self.prospects(preference, family);
        for wanted in [0, 1] {
            for equals in prospects.chunk_by(|a, b| a.priority == b.priority) {
                let good = equals.iter().filter(|it| it.rank() == Some(wanted));
                let good: Vec<&BreakoutFacts> = good.map(|it| it.breakout).collect();
                if !good.is_empty() {
                    return good;
                }
                if equals.iter().any(Prospect::ends_search) {
                    return Vec::new();
                }
            }
        }
        Vec::new()
    }

    /// The breakouts that the new flows of a preference may take, the first choice first.
    fn prospects(&self, preference: PreferenceId, family: Family) -> Vec<Prospect<'_>> {
        let rules = &self.preferences[preference.index()];
        let prospect = |breakout| self.prospect(breakout, preference, rules, family);
        let mut prospects: Vec<_> = self.breakouts.iter().filter_map(prospect).collect();
        prospects.sort_by_key(|it| it.priority);
        prospects
    }

    fn prospect<'a>(
        &'a self,
        breakout: &'a BreakoutFacts,
        preference: PreferenceId,
        rules: &Preference,
        family: Family,
    ) -> Option<Prospect<'a>> {
        let path = self.paths.get(&breakout.id)?;
        let priority = match &rules.paths {
            None => usize::from(breakout.priority),
            Some(paths) => paths.iter().position(|id| *id == breakout.id)?,
        };
        let shared = path.setup.families.verdict_of(family);
        let own = path.watch(preference).verdict_of(family);
        Some(Prospect {
            breakout,
            path,
            family,
            verdict: shared.worse(own),
            when_degraded: rules.when_degraded,
            priority,
        })
    }
}

/// The backbone for everything.
const NOWHERE: Choice = Choice {
    paths: 0,
    buckets: [0; 64],
};

const fn bit(breakout: &BreakoutFacts) -> u32 {
    1 << breakout.id.get()
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
        table.choices[0]
            .buckets
            .iter()
            .filter(ours)
            .map(|_| 1)
            .sum()
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
        // Six of eight for the third; without weights it would be a third.
        let all = vec![breakout(1, 1, 1), breakout(2, 1, 1), breakout(3, 1, 6)];
        let before = *table(&state.step(Event::Facts(all.clone()), START));
        for (path, least) in [(1, 3), (2, 3), (3, 40)] {
            assert!(
                share_of(&before, path) >= least,
                "{:?}",
                before.choices[0].buckets
            );
        }
        let without = vec![all[0].clone(), down(all[1].clone()), all[2].clone()];
        let after = *table(&state.step(Event::Facts(without), START));
        for (old, new) in before.choices[0]
            .buckets
            .iter()
            .zip(&after.choices[0].buckets)
        {
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

    /// Three breakouts of falling priority, of which the second is probed for preference 1 besides.
    fn office(preferences: &[Preference]) -> State {
        const TARGETS: [Family; 3] = [Family::V4; 3];
        let rules = HealthConfig::default();
        let watch = || Families::new(&rules, &TARGETS, [false, false], 7);
        let mut state = State::new(Duration::ZERO);
        state.set_up((1..=3).map(|id| {
            let mut path = Path::unprobed(PathId::new(id).unwrap());
            path.setup.families = watch();
            if id == 2 {
                path.setup
                    .preferences
                    .insert(PreferenceId::at(1).unwrap(), watch());
            }
            path.setup
        }));
        state.prefer(preferences);
        state.classify([(5, PreferenceId::at(1).unwrap())]);
        state.step(
            Event::Facts(vec![
                breakout(1, 1, 1),
                breakout(2, 2, 1),
                breakout(3, 3, 1),
            ]),
            START,
        );
        state
    }

    /// Answers every probe for some seconds, in a time that depends on the path and for whom it is
    /// sent; none: not at all.
    fn run(
        state: &mut State,
        from: u64,
        seconds: u64,
        rtt: impl Fn(u8, u8) -> Option<u64>,
    ) -> PathTable {
        for step in 0..seconds * 100 {
            let now = Duration::from_secs(from) + Duration::from_millis(step * 10);
            for effect in state.step(Event::Tick, now) {
                let Effect::Probe(id, preference, probe) = effect else {
                    continue;
                };
                let Some(rtt) = rtt(id.get(), preference.get()) else {
                    continue;
                };
                let outcome = Outcome::Answered(Duration::from_millis(rtt));
                let number = probe.number;
                state.step(
                    Event::Probed {
                        id,
                        preference,
                        number,
                        outcome,
                    },
                    now,
                );
            }
        }
        state.path_table()
    }

    /// The paths that each preference may take, and its first choice.
    fn choice(table: &PathTable, preference: usize) -> (u32, u8) {
        let choice = &table.families[0].choices[preference];
        (choice.paths, choice.buckets[0])
    }

    #[test]
    fn a_preference_has_its_own_breakouts_in_its_own_order() {
        let path = |id| PathId::new(id).unwrap();
        let own = Preference {
            paths: Some(vec![path(3), path(1)]),
            ..Preference::default()
        };
        let mut state = office(&[Preference::default(), own]);
        let table = run(&mut state, 0, 3, |_, _| Some(20));
        assert_eq!(table.preferences[5], 1);
        assert_eq!(table.preferences[4], 0);
        assert_eq!(choice(&table, 0), (0b1110, 1));
        assert_eq!(choice(&table, 1), (0b1010, 3));
        assert_eq!(choice(&table, 2), choice(&table, 0), "as everybody");
        let preference = PreferenceId::at(1).unwrap();
        assert_eq!(state.taken(preference, Family::V4), [path(3)]);

        let table = run(&mut state, 3, 3, |path, _| (path != 3).then_some(20));
        assert_eq!(choice(&table, 1), (0b0010, 1));
        assert_eq!(table.families[0].state, 0b0110 | STEERING);
    }

    #[test]
    fn a_preference_leaves_a_degraded_breakout_before_the_others_do() {
        let rules = |when_degraded| Preference {
            paths: None,
            when_degraded,
        };
        let slow = |path, _| Some(if path == 1 { 500 } else { 20 });
        for (own, expected) in [
            (WhenDegraded::Keep, (0b1110, 1)),
            (WhenDegraded::Next, (0b1110, 2)),
            (WhenDegraded::Backbone, (0b1110, 2)),
        ] {
            let mut state = office(&[rules(WhenDegraded::Keep), rules(own)]);
            run(&mut state, 0, 3, |_, _| Some(20));
            let table = run(&mut state, 3, 30, slow);
            assert_eq!(choice(&table, 0), (0b1110, 1));
            assert_eq!(choice(&table, 1), expected, "{own:?}");
            assert_eq!(table.families[0].state, 0b1110 | STEERING);
        }
    }

    #[test]
    fn new_flows_that_take_the_backbone_have_no_way_and_established_ones_stay() {
        let only = Preference {
            paths: Some(vec![PathId::new(1).unwrap()]),
            when_degraded: WhenDegraded::Backbone,
        };
        let mut state = office(&[Preference::default(), only]);
        run(&mut state, 0, 3, |_, _| Some(20));
        let table = run(&mut state, 3, 30, |path, _| {
            Some(if path == 1 { 500 } else { 20 })
        });
        assert_eq!(choice(&table, 1), (0, 0));
        assert_eq!(choice(&table, 0), (0b1110, 2));
        assert_eq!(table.families[0].state, 0b1110 | STEERING);
        assert!(
            state
                .taken(PreferenceId::at(1).unwrap(), Family::V4)
                .is_empty()
        );
    }

    #[test]
    fn the_probes_of_a_preference_move_its_classes_alone() {
        let own = Preference {
            paths: Some(vec![PathId::new(2).unwrap(), PathId::new(1).unwrap()]),
            ..Preference::default()
        };
        let mut state = office(&[Preference::default(), own]);
        let table = run(&mut state, 0, 3, |_, _| Some(20));
        assert_eq!(choice(&table, 1), (0b0110, 2));
        let dead = |_, preference| (preference == 0).then_some(20);
        let table = run(&mut state, 3, 3, dead);
        assert_eq!(choice(&table, 1), (0b0010, 1));
        assert_eq!(choice(&table, 0), (0b1110, 1));
        assert_eq!(table.families[0].state, 0b1110 | STEERING);
        // And where everybody's probes fail, its own do not help.
        let table = run(&mut state, 6, 60, |path, preference| {
            (path != 2 || preference == 1).then_some(20)
        });
        assert_eq!(choice(&table, 1), (0b0010, 1));
    }

    #[test]
    fn stopping_keeps_the_paths_but_starts_no_flow() {
        let mut state = State::new(Duration::ZERO);
        state.step(Event::Facts(vec![breakout(1, 1, 1)]), START);
        let effects = state.step(Event::StopSteering, START);
        assert_eq!(table(&effects).state, 0b10);
    }
}
