//! The controller's state as `steer status` shows it.

use std::collections::BTreeMap;

use super::{
    Controller, ControllerError, FeedTask, ListTask, Phase, View, deadman,
    path_ids::name_of,
    preferences::{numbered, preferring},
    registry::RegistryFile,
};
use crate::{
    api::{
        BreakoutStatus, ClassCounter, FamilyStatus, FeedStatus, LanStatus, NftStatus, PathHealth,
        PlanStatus, PreferenceHealth, PreferenceStatus, Status, SteeringState,
    },
    config::{Breakout, Config, Mode, SystemConfig},
    datapath::{Maps, PinDir},
    paths::{Families, PreferenceId, Verdict},
    policy::{ClassRegistry, Plan},
    system::{self, Family, InterfaceName, Object, PathId, Sysctl, nft},
};

const METRICS_OFF: &str =
    "[metrics] listen: the address cannot be had, see the log; nobody can read metrics";

/// Everything that a configuration puts into the box, programs and pins apart.
///
/// Redirect mode only needs the answers to be let in: they arrive on a link that the main table
/// would not send to. Probes, which the router sends itself, need routes as well, and so do clients'
/// queries to a breakout's resolver, which the kernel routes by their mark.
pub fn objects(config: &Config, view: &View) -> Vec<Object> {
    match config.mode {
        Mode::Mark => system::objects(&view.wanted),
        Mode::Redirect => {
            let existing = view.wanted.paths.iter().filter(|path| path.exists);
            let sysctls = existing.map(|path| loose_reverse_path(&path.interface));
            let routing = if config.select.names.steer {
                system::routing(&view.wanted)
            } else if config.health.probes {
                system::own_routing(&view.wanted)
            } else {
                Vec::new()
            };
            let gateways = system::gateways(&view.wanted);
            sysctls.chain(gateways).chain(routing).collect()
        }
    }
}

fn loose_reverse_path(interface: &InterfaceName) -> Object {
    Object::Sysctl(Sysctl::of_interface(Family::V4, interface, "rp_filter", 2))
}

impl Controller {
    /// What the controller is doing.
    pub(super) async fn status(&self) -> Status {
        let mut problems = [
            &self.problems[..],
            &self.view.problems,
            &self.prober.problems,
        ]
        .concat();
        let mut note = |error: ControllerError| problems.push(error.to_string());
        let maps = self.datapath.maps();
        let counters = counters(
            maps,
            &self.config.breakouts,
            &self.registry,
            Some(&self.plan),
        );
        let counters = counters.unwrap_or_else(|error| {
            note(error);
            Vec::new()
        });
        let reasons = reasons(maps).unwrap_or_else(|error| {
            note(error);
            BTreeMap::new()
        });
        let dead_man = deadman::status(maps, &self.config.breakouts, &self.exits)
            .map_err(&mut note)
            .ok();
        let nftables = nftables(self.config.mode, &self.config.breakouts)
            .await
            .unwrap_or_else(|error| {
                note(error);
                None
            });
        let dns = self
            .dns
            .status(&self.config, &self.view, &self.plan)
            .await
            .unwrap_or_else(|error| {
                note(error);
                None
            });
        problems.extend(self.dns.problems());
        if self.metrics.listening() != self.config.metrics.listen {
            problems.push(METRICS_OFF.into());
        }
        let feed = self.plan.feed();
        let size = self.plan.size();
        let (state, watching_for) = match self.state.phase() {
            Phase::Watching { until } => {
                let left = until.saturating_sub(self.started.elapsed());
                (SteeringState::Watching, Some(left.as_secs() + 1))
            }
            Phase::Steering => (SteeringState::Steering, None),
            Phase::Stopped => (SteeringState::Draining, None),
        };
        Status {
            state,
            mode: Some(self.config.mode.to_string()),
            pid: Some(std::process::id()),
            started: self.started_at,
            watching_for,
            feed: Some(FeedStatus {
                source: feed.origin.to_string(),
                instance: feed.instance.to_string(),
                version: feed.version().map(|version| version.to_string()),
                sets: feed.sets.len(),
                update: self.feed_task.as_ref().map(FeedTask::report),
            }),
            lists: self.list_tasks.iter().map(ListTask::report).collect(),
            plan: Some(PlanStatus {
                generation: self.generation,
                sets: size.sets + size.own,
                prefixes: size.prefixes_v4 + size.prefixes_v6,
            }),
            lan: self
                .attachments
                .iter()
                .map(|at| LanStatus {
                    interface: at.interface.clone(),
                    hook: at.hook.to_string(),
                    verified_instructions: at.verified_instructions,
                })
                .collect(),
            breakouts: self.breakouts(),
            preferences: self.preferences(),
            counters,
            reasons,
            nftables,
            dead_man,
            dns,
            problems,
            ..Status::off()
        }
    }
}

impl Controller {
    fn breakouts(&self) -> Vec<BreakoutStatus> {
        let pairs = self.config.breakouts.iter().zip(&self.view.breakouts);
        pairs
            .map(|(configured, seen)| {
                let families = self.state.families(seen.id, PreferenceId::DEFAULT);
                let (state, reason) = health(families.map(Families::verdict));
                let notes = [
                    families.and_then(|it| it.waits_for(self.started.elapsed())),
                    seen.silent_gateway
                        .filter(|_| state == PathHealth::Down && seen.trouble.is_none())
                        .map(|it| format!("its gateway {it} does not answer either")),
                ];
                BreakoutStatus {
                    id: configured.id,
                    name: configured.name.clone(),
                    interface: configured.interface.to_string(),
                    state,
                    reason,
                    families: Family::BOTH
                        .map(|family| {
                            let verdict = families.map(|it| it.verdict_of(family));
                            let (state, reason) = health(verdict);
                            FamilyStatus {
                                family: family.name().into(),
                                state,
                                reason,
                                takes_new_flows: self
                                    .state
                                    .taken(PreferenceId::DEFAULT, family)
                                    .contains(&seen.id),
                            }
                        })
                        .into(),
                    delegated: seen.delegated.iter().map(ToString::to_string).collect(),
                    notes: notes.into_iter().flatten().collect(),
                    gateway: seen.gateway.clone(),
                    gateway6: seen.gateway6.clone(),
                    probes: self
                        .prober
                        .report(seen.id, PreferenceId::DEFAULT, &self.state),
                    preferences: self.found_for(seen.id),
                    flows_reset: self.prober.resets(seen.id),
                }
            })
            .collect()
    }
}

impl Controller {
    /// What the preferences with probes of their own find out about a breakout.
    fn found_for(&self, id: PathId) -> Vec<PreferenceHealth> {
        let found = numbered(&self.config).filter_map(|(number, it)| {
            let families = self.state.families(id, number)?;
            let (state, reason) = health(Some(families.verdict()));
            Some(PreferenceHealth {
                preference: it.name.clone(),
                state,
                reason,
                probes: self.prober.report(id, number, &self.state),
            })
        });
        found.collect()
    }

    /// Where the new flows of each preference go.
    fn preferences(&self) -> Vec<PreferenceStatus> {
        let name = |id: PathId| name_of(&self.config.breakouts, id.get());
        let taken = |number, family| {
            let paths = self.state.taken(number, family).into_iter();
            paths.filter_map(name).collect()
        };
        let classes: Vec<PreferenceId> = preferring(&self.config, &self.plan)
            .map(|(_, number)| number)
            .collect();
        let status = numbered(&self.config).map(|(number, it)| PreferenceStatus {
            name: it.name.clone(),
            classes: classes.iter().filter(|of| **of == number).count(),
            ipv4: taken(number, Family::V4),
            ipv6: taken(number, Family::V6),
        });
        status.collect()
    }
}

/// A verdict as status has it; nobody watches a breakout that has none.
fn health(verdict: Option<Verdict>) -> (PathHealth, Option<String>) {
    match verdict {
        Some(Verdict::Up) | None => (PathHealth::Up, None),
        Some(Verdict::Degraded(why)) => (PathHealth::Degraded, Some(why)),
        Some(Verdict::Down(why)) => (PathHealth::Down, Some(why)),
    }
}

/// What is going on where no controller answers: the programs may steer on by themselves.
/// `breakouts` gives the paths their names.
pub async fn unattended(
    system: &SystemConfig,
    breakouts: &[Breakout],
) -> Result<Status, ControllerError> {
    let pins = PinDir::new(&system.pin_dir);
    let Some(mode) = pins.mode() else {
        return Ok(Status::off());
    };
    if pins.is_of_another_version() {
        return Ok(Status {
            state: SteeringState::Unattended,
            mode: Some(mode.to_string()),
            nftables: nftables(mode, breakouts).await?,
            problems: vec![
                "no controller runs: the programs of another version of steer steer on with the \
                 last plan, but nobody watches the breakouts, and this version cannot read their \
                 counters. Start it, and it takes over: steer run"
                    .into(),
            ],
            ..Status::off()
        });
    }
    let maps = Maps::open(&pins, mode)?;
    let registry = RegistryFile::open(&system.state_dir)?;
    let generation = maps.generation_number()?.unwrap_or(0);
    Ok(Status {
        state: SteeringState::Unattended,
        mode: Some(mode.to_string()),
        plan: Some(PlanStatus {
            generation,
            sets: 0,
            prefixes: 0,
        }),
        counters: counters(&maps, breakouts, &registry, None)?,
        reasons: reasons(&maps)?,
        nftables: nftables(mode, breakouts).await?,
        dead_man: Some(deadman::status(&maps, breakouts, &[])?),
        problems: vec![
            "no controller runs: the programs steer on with the last plan, and only the kernel's \
             dead-man watches the breakouts. Start it: steer run"
                .into(),
        ],
        ..Status::off()
    })
}

fn counters(
    maps: &Maps,
    breakouts: &[Breakout],
    registry: &RegistryFile,
    plan: Option<&Plan>,
) -> Result<Vec<ClassCounter>, ControllerError> {
    let registry: &ClassRegistry = registry.get();
    let counts = maps.counts()?;
    Ok(counts
        .into_iter()
        .filter_map(|count| {
            let key = registry.key(count.class)?;
            let class = plan.and_then(|plan| plan.class(count.class));
            Some(ClassCounter {
                list: key.list.as_str().into(),
                set: key.id,
                category: class.map(|class| class.category.to_string()),
                service_area: class
                    .and_then(|class| class.service_area.as_ref())
                    .map(ToString::to_string),
                path: name_of(breakouts, count.path),
                packets: count.packets,
                bytes: count.bytes,
            })
        })
        .collect())
}

fn reasons(maps: &Maps) -> Result<BTreeMap<String, u64>, ControllerError> {
    let reasons = maps.reasons()?;
    Ok(reasons
        .into_iter()
        .map(|count| (count.reason.name().into(), count.packets))
        .collect())
}

async fn nftables(
    mode: Mode,
    breakouts: &[Breakout],
) -> Result<Option<NftStatus>, ControllerError> {
    if mode != Mode::Mark {
        return Ok(None);
    }
    let name = |id: u8| name_of(breakouts, id).unwrap_or_default();
    Ok(nft::counters().await?.map(|counters| NftStatus {
        granted: counters
            .granted
            .into_iter()
            .map(|(id, count)| (name(id.get()), count.packets))
            .collect(),
        refused: counters.refused.packets,
        rewish: counters.rewish.packets,
        guard: counters.guard.packets,
    }))
}
