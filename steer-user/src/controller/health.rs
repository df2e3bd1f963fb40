//! The probes of a running controller: what is asked over which breakout, by whom it is believed,
//! and the tasks that ask.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use super::{
    Controller,
    look::View,
    preferences::numbered,
    step::{Event, PathSetup, State},
};
use crate::{
    api::ProbeStatus,
    config::{Breakout, Config, HealthConfig, ProbeKind, Target},
    endpoints::Feed,
    paths::{Families, PreferenceId, Probe, Verdict},
    probe::{self, Trust, TrustError, Via},
    system::{Family, PathId, conntrack},
};

/// More outcomes than can wait at a time: 16 targets of 15 breakouts and 8 preferences, twice.
const WAITING: usize = 4096;

/// Over which path, and for whom.
type WatchId = (PathId, PreferenceId);

/// Sends probes; their outcomes are events.
pub(super) struct Prober {
    trust: Arc<Trust>,
    ways: BTreeMap<WatchId, Way>,
    sender: mpsc::Sender<Event>,
    outcomes: mpsc::Receiver<Event>,
    /// Flows that were reset, by path.
    resets: BTreeMap<PathId, u64>,
    /// What the operator should know.
    pub(super) problems: Vec<String>,
}

/// How a breakout is probed.
#[derive(Clone, Debug)]
struct Way {
    via: Via,
    targets: Vec<Target>,
    rules: HealthConfig,
}

impl Way {
    fn new(
        config: &Config,
        rules: &HealthConfig,
        view: &View,
        feed: &Feed,
        breakout: &Breakout,
        id: PathId,
    ) -> Self {
        let mut rules = rules.clone();
        rules.interval = breakout.probe_interval.unwrap_or(rules.interval);
        let targets = if !rules.probes {
            Vec::new()
        } else if rules.targets.is_empty() {
            let doors = families(view)
                .iter()
                .map(|it| probe::front_doors(feed, *it));
            doors.flatten().collect()
        } else {
            rules.targets.clone()
        };
        Self {
            via: Via {
                device: breakout.interface.clone(),
                mark: id.grant(config.mark.bits),
            },
            targets,
            rules,
        }
    }

    /// Whether what was found over the one holds for the other.
    fn same(&self, other: &Self) -> bool {
        self.via.device == other.via.device
            && self.targets == other.targets
            && self.rules == other.rules
    }
}

/// What is probed over the device and not configured: both families if the kernel has both. One that
/// the device has not now it may have later.
fn families(view: &View) -> &'static [Family] {
    if view.wanted.ipv6 {
        &Family::BOTH
    } else {
        &[Family::V4]
    }
}

impl Prober {
    /// Nothing to probe yet. Fails when the file of trusted certificates cannot be used.
    pub(super) fn new(config: &HealthConfig) -> Result<Self, TrustError> {
        let (sender, outcomes) = mpsc::channel(WAITING);
        let (trust, problems) = trust(config)?;
        Ok(Self {
            trust,
            ways: BTreeMap::new(),
            sender,
            outcomes,
            resets: BTreeMap::new(),
            problems,
        })
    }

    /// Watches the breakouts of a configuration. What is known of those that are probed as before
    /// stays known; `taken` says which others carry flows already.
    ///
    /// Fails when the file of trusted certificates cannot be used; then nothing has changed.
    pub(super) fn set_up(
        &mut self,
        state: &mut State,
        config: &Config,
        view: &View,
        feed: &Feed,
        taken: impl Fn(PathId) -> [bool; 2],
    ) -> Result<(), TrustError> {
        (self.trust, self.problems) = trust(&config.health)?;
        let mut ways = BTreeMap::new();
        let mut setups = Vec::new();
        for breakout in &config.breakouts {
            let Some(id) = PathId::new(breakout.id) else {
                continue;
            };
            let way = Way::new(config, &config.health, view, feed, breakout, id);
            if config.health.probes && way.targets.is_empty() {
                self.problems.push(format!(
                    "breakout {} is not probed: the endpoint list names no single front door. Name \
                     some: [health] targets",
                    breakout.name
                ));
            }
            let mut watch = |preference, way: Way| {
                let families = self.families(state, (id, preference), &way, taken(id));
                ways.insert((id, preference), way);
                families
            };
            let families = watch(PreferenceId::DEFAULT, way);
            let mut preferences = BTreeMap::new();
            for (preference, rules) in probed_for(config, breakout) {
                let way = Way::new(config, rules, view, feed, breakout, id);
                preferences.insert(preference, watch(preference, way));
            }
            setups.push(PathSetup {
                id,
                families,
                preferences,
                when_down: breakout.when_down,
                on_path_loss: config.health.on_path_loss,
            });
        }
        self.ways = ways;
        state.set_up(setups);
        Ok(())
    }

    /// The watch of a path: what is known, where it is probed as before.
    fn families(&self, state: &State, id: WatchId, way: &Way, taken: [bool; 2]) -> Families {
        let old = self.ways.get(&id);
        let known = old
            .filter(|old| old.same(way))
            .and_then(|_| state.families(id.0, id.1));
        let other_device = old.is_some_and(|old| old.via.device != way.via.device);
        known.cloned().unwrap_or_else(|| {
            let taken = taken.map(|taken| taken && !other_device);
            let targets = way.targets.iter().map(|it| Family::of(it.address.ip()));
            let targets: Vec<Family> = targets.collect();
            Families::new(&way.rules, &targets, taken, seed())
        })
    }

    /// Sends a probe; its outcome comes as an event.
    pub(super) fn send(&self, id: PathId, preference: PreferenceId, probe: Probe) {
        let Some(way) = self.ways.get(&(id, preference)) else {
            return;
        };
        let Some(target) = way.targets.get(probe.target).cloned() else {
            return;
        };
        let (via, trust) = (way.via.clone(), Arc::clone(&self.trust));
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let outcome = probe::probe(&via, &target, probe, &trust).await;
            // A controller that ends wants to know nothing any more.
            let _ = sender
                .send(Event::Probed {
                    id,
                    preference,
                    number: probe.number,
                    outcome,
                })
                .await;
        });
    }

    /// The next outcome.
    pub(super) async fn outcome(&mut self) -> Option<Event> {
        self.outcomes.recv().await
    }

    /// The outcomes that are there.
    pub(super) async fn outcomes(&mut self) -> Vec<Event> {
        // Tasks whose answers have come have their turn before the clock says that they are late.
        tokio::task::yield_now().await;
        let mut events = Vec::new();
        while let Ok(event) = self.outcomes.try_recv() {
            events.push(event);
        }
        events
    }

    /// How many flows of a path were reset.
    pub(super) fn resets(&self, id: PathId) -> u64 {
        self.resets.get(&id).copied().unwrap_or(0)
    }

    /// The targets of a path, with what is known of them.
    pub(super) fn report(
        &self,
        id: PathId,
        preference: PreferenceId,
        state: &State,
    ) -> Vec<ProbeStatus> {
        let way = self.ways.get(&(id, preference));
        let (Some(way), Some(families)) = (way, state.families(id, preference)) else {
            return Vec::new();
        };
        let pairs = way.targets.iter().zip(families.targets());
        pairs
            .map(|(target, report)| ProbeStatus {
                target: target.address.to_string(),
                kind: match target.kind {
                    ProbeKind::Tls => "tls".into(),
                    ProbeKind::Stun => "stun".into(),
                },
                name: target.names.first().cloned(),
                rtt_ms: report.rtt.map(milliseconds),
                jitter_ms: report.jitter.map(milliseconds),
                loss: report.loss,
                answered: report.answered,
                lost: report.lost,
                trouble: report.trouble,
            })
            .collect()
    }
}

impl Controller {
    /// When the state machine wants to be asked again.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.state.due()?;
        Some((self.started + due).into())
    }

    /// Takes in what has been answered, and lets the clock go on.
    pub(super) async fn tick(&mut self) {
        for event in self.prober.outcomes().await {
            self.take(event);
        }
        self.take(Event::Tick);
    }

    /// Acts on an event. A failure changes nothing: the next look tries again.
    pub(super) fn take(&mut self, event: Event) {
        if let Err(error) = self.decide(event) {
            warn!("{error}. steer keeps what it has");
        }
    }

    /// Deletes a family's flows of a path, and counts them.
    pub(super) fn reset_flows(&mut self, id: PathId, family: Family) {
        let name = self.name_of(id).to_owned();
        match conntrack::reset(self.config.mark.bits, id, family) {
            Ok(flows) => {
                *self.prober.resets.entry(id).or_default() += flows;
                info!(
                    "breakout {name}: {flows} {} flows were reset; clients begin anew elsewhere",
                    family.name()
                );
            }
            Err(error) => warn!("breakout {name}: its flows cannot be reset: {error}"),
        }
    }

    /// Tells the operator what a path is found to be.
    pub(super) fn tell(&self, id: PathId, verdict: &Verdict) {
        let name = self.name_of(id);
        match verdict {
            Verdict::Up => info!("breakout {name}: up"),
            Verdict::Degraded(why) => warn!("breakout {name}: degraded: {why}"),
            Verdict::Down(why) => {
                warn!("breakout {name}: down: {why}. New flows take another way");
            }
        }
    }

    /// Tells the operator what a path is found to be by the probes of a preference.
    pub(super) fn tell_of_preference(
        &self,
        id: PathId,
        preference: PreferenceId,
        verdict: &Verdict,
    ) {
        let name = self.name_of(id);
        let whose = numbered(&self.config).find(|(number, _)| *number == preference);
        let whose = whose.map_or("?", |(_, it)| &it.name);
        match verdict {
            Verdict::Up => info!("breakout {name}, preference {whose}: up"),
            Verdict::Degraded(why) => {
                warn!("breakout {name}, preference {whose}: degraded: {why}");
            }
            Verdict::Down(why) => warn!(
                "breakout {name}, preference {whose}: down: {why}. New flows of its classes take \
                 another way"
            ),
        }
    }

    /// Tells the operator what a family alone lacks on a path.
    pub(super) fn tell_of_family(&self, id: PathId, family: Family, lack: Option<&str>) {
        let (name, family) = (self.name_of(id), family.name());
        if let Some(why) = lack {
            warn!("breakout {name}: no {family}: {why}. New {family} flows take another way");
        } else {
            info!("breakout {name}: {family} is there");
        }
    }

    fn name_of(&self, id: PathId) -> &str {
        self.config.breakout(id.get()).map_or("?", |it| &it.name)
    }
}

/// The preferences that a breakout is probed for besides.
fn probed_for<'a>(
    config: &'a Config,
    breakout: &Breakout,
) -> impl Iterator<Item = (PreferenceId, &'a HealthConfig)> {
    let id = breakout.id;
    numbered(config).filter_map(move |(number, preference)| {
        let may_take = preference.breakouts.as_ref();
        let may_take = may_take.is_none_or(|breakouts| breakouts.contains(&id));
        let health = preference.health.as_ref().filter(|_| may_take)?;
        Some((number, health))
    })
}

/// Waits until then, or for ever.
pub(super) async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}

fn trust(config: &HealthConfig) -> Result<(Arc<Trust>, Vec<String>), TrustError> {
    match Trust::new(config.identity, config.trust.as_deref()) {
        Ok(trust) => Ok((Arc::new(trust), Vec::new())),
        Err(error @ TrustError::Empty) if config.probes => {
            Ok((Arc::new(Trust::any()), vec![error.to_string()]))
        }
        Err(TrustError::Empty) => Ok((Arc::new(Trust::any()), Vec::new())),
        Err(error) => Err(error),
    }
}

/// Every start probes in another rhythm.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
