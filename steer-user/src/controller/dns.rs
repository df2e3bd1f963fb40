//! Queries: the programs, the names of the plan, and which resolver of each breakout is asked.
//!
//! Whatever fails here is told and leaves queries to go where clients send them; traffic is steered
//! all the same. The kernel stops asking a dead resolver by itself; this only picks the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::util::KernelVersion;
use steer_common::dns::{DnsTable, REWRITING};
use tracing::{info, warn};

use super::{Controller, ControllerError};
use crate::{
    api::{DnsStatus, ResolverStatus},
    config::{Breakout, Config, Mode},
    datapath::{DatapathError, Dns, DnsMaps, LogLevel, PinDir, monotonic_ns},
    policy::Plan,
};

/// After this long a resolver that was taken for dead gets another chance.
const SECOND_CHANCE: Duration = Duration::from_mins(1);

/// Indexes of resolvers end before this; 0 is none.
const PLACES: u8 = 64;
const _: () = assert!(PLACES as u32 == steer_common::dns::RESOLVERS);

/// Steering of queries, if there is any.
#[derive(Default)]
pub(super) struct Steering {
    dns: Option<Dns>,
    resolvers: Vec<Known>,
    trouble: Option<String>,
}

/// A resolver of a breakout, and its place in the kernel.
struct Known {
    path: u8,
    breakout: String,
    address: IpAddr,
    index: u8,
    dead_since: Option<Instant>,
}

impl Controller {
    /// Brings programs, names and resolvers in line with configuration and plan. `anew`: the LAN's
    /// interfaces may be others.
    pub(super) fn steer_queries(&mut self, anew: bool) {
        let result = self.try_to_steer_queries(anew);
        self.dns.trouble = result.err().map(|error| error.to_string());
        if let Some(trouble) = &self.dns.trouble {
            warn!("queries are not steered: {trouble}. They go where clients send them");
            // Programs with names of another plan would be worse than none.
            let pins = PinDir::new(&self.config.system.pin_dir);
            if let Err(error) = Dns::detach_others(&pins, &[]) {
                warn!("{error}");
            }
            self.dns.dns = None;
        }
    }

    fn try_to_steer_queries(&mut self, anew: bool) -> Result<(), QueryError> {
        let pins = PinDir::new(&self.config.system.pin_dir);
        if !self.config.select.names.steer {
            self.dns.dns = None;
            self.dns.resolvers.clear();
            return Ok(Dns::detach_others(&pins, &[])?);
        }
        // Nothing there would route a client's query by its mark.
        if self.config.mode == Mode::Redirect {
            return Err(QueryError::Mode);
        }
        // Older kernels have no link that goes with its pin, at egress.
        if KernelVersion::current().is_ok_and(|it| it < KernelVersion::new(6, 6, 0)) {
            return Err(QueryError::Kernel);
        }
        let attach = anew || self.dns.dns.is_none();
        let log = if self.options.log_packets {
            LogLevel::Debug
        } else {
            LogLevel::Off
        };
        let ports = self.view.ports.clone();
        let mut dns = match self.dns.dns.take() {
            Some(dns) if !attach => dns,
            _ => Dns::load(self.config.mode, pins.clone(), ports.clone(), log)?,
        };
        let maps = dns.maps_mut();
        maps.publish_names(self.plan.names())?;
        self.dns.resolvers = places(maps, &self.config)?;
        maps.set_table(&table(&self.dns.resolvers))?;
        if attach {
            for at in dns.attach()? {
                info!("{}: {} by {}", at.interface, at.program, at.hook);
            }
            let indexes: Vec<u32> = ports.iter().map(|port| port.ifindex).collect();
            Dns::detach_others(&pins, &indexes)?;
        }
        self.dns.dns = Some(dns);
        for name in self.plan.names_left_out() {
            warn!("queries for {name} are left alone: the kernel cannot look it up");
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error("that needs Linux 6.6; leave breakout.resolvers out on this kernel")]
    Kernel,
    #[error("that needs mode = \"mark\"; leave breakout.resolvers out in redirect mode")]
    Mode,
}

impl Steering {
    /// Picks the next resolver where one died, and gives dead ones another chance.
    pub(super) fn watch(&mut self, config: &Config) {
        if !config.select.names.steer {
            return;
        }
        if let Err(error) = self.try_to_watch() {
            warn!("resolvers: {error}");
        }
    }

    fn try_to_watch(&mut self) -> Result<(), DatapathError> {
        let Some(dns) = &mut self.dns else {
            return Ok(());
        };
        let maps = dns.maps_mut();
        let before = maps.table()?;
        let now = monotonic_ns();
        for it in &mut self.resolvers {
            let dead = maps.resolver_state(it.index)?.is_dead(now);
            match (dead, it.dead_since) {
                (false, Some(_)) => {
                    info!("{}: resolver {} answers again", it.breakout, it.address);
                    it.dead_since = None;
                }
                (true, None) => {
                    warn!(
                        "{}: resolver {} does not answer; queries go to the next one, or where clients send them",
                        it.breakout, it.address
                    );
                    it.dead_since = Some(Instant::now());
                }
                (true, Some(since)) if since.elapsed() > SECOND_CHANCE && !it.is_in(&before) => {
                    maps.forgive(it.index)?;
                    it.dead_since = None;
                }
                _ => {}
            }
        }
        let after = table(&self.resolvers);
        if after != before {
            maps.set_table(&after)?;
        }
        Ok(())
    }

    /// What the operator should know.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let trouble = self.trouble.iter();
        trouble.map(|it| format!("queries are not steered: {it}"))
    }

    pub(super) fn status(
        &self,
        config: &Config,
        plan: &Plan,
    ) -> Result<Option<DnsStatus>, ControllerError> {
        let Some(dns) = &self.dns else {
            return Ok(None);
        };
        if !config.select.names.steer {
            return Ok(None);
        }
        let maps = dns.maps();
        let (table, now) = (maps.table()?, monotonic_ns());
        let learned = maps.learned()?;
        let alive = learned.iter().filter(|it| it.value.expires > now).count();
        let mut resolvers = Vec::new();
        for it in &self.resolvers {
            let state = maps.resolver_state(it.index)?;
            let count = maps.resolver_count(it.index)?;
            resolvers.push(ResolverStatus {
                breakout: it.breakout.clone(),
                address: it.address.to_string(),
                active: it.is_in(&table),
                dead: state.is_dead(now),
                queries: count.queries,
                answers: count.answers,
                failures: count.failures,
                unanswered: state.unanswered,
                mean_us: count.waited.checked_div(count.answers).map(|ns| ns / 1000),
            });
        }
        let events = maps.events()?.into_iter();
        let events: BTreeMap<String, u64> = events
            .map(|(event, count)| (event.name().into(), count))
            .collect();
        Ok(Some(DnsStatus {
            names: plan.names().len(),
            learned: alive,
            resolvers,
            events,
        }))
    }
}

impl Known {
    fn new(breakout: &Breakout, address: IpAddr, index: u8) -> Self {
        Self {
            path: breakout.id,
            breakout: breakout.name.clone(),
            address,
            index,
            dead_since: None,
        }
    }

    fn family(&self) -> usize {
        usize::from(self.address.is_ipv6())
    }

    fn is_in(&self, table: &DnsTable) -> bool {
        table.active[usize::from(self.path & 0x0f)][self.family()] == self.index
    }
}

/// Gives every resolver of the configuration a place in the kernel. One that has a place keeps it,
/// with what is known of it; a place that is in use is never given to another address.
fn places(maps: &mut DnsMaps, config: &Config) -> Result<Vec<Known>, DatapathError> {
    let active = maps.table()?.active;
    let mut there: BTreeMap<u8, IpAddr> = BTreeMap::new();
    for index in 1..PLACES {
        if let Some(address) = maps.resolver(index)? {
            there.insert(index, address);
        }
    }
    let wanted = config
        .breakouts
        .iter()
        .flat_map(|breakout| breakout.resolvers.iter().map(move |it| (breakout, *it)));
    let mut taken = BTreeSet::new();
    let (mut kept, mut new) = (Vec::new(), Vec::new());
    for (order, (breakout, address)) in wanted.enumerate() {
        let place = there
            .iter()
            .find(|(index, it)| **it == address && !taken.contains(*index))
            .map(|(index, _)| *index);
        taken.extend(place);
        match place {
            Some(index) => kept.push((order, Known::new(breakout, address, index))),
            None => new.push((order, breakout, address)),
        }
    }
    for (order, breakout, address) in new {
        let in_use = |index: &u8| taken.contains(index) || active.as_flattened().contains(index);
        let mut free = (1..PLACES).filter(|index| !in_use(index));
        let empty = free.clone().find(|index| !there.contains_key(index));
        // More addresses than places at once, over reloads: the kernel asks nobody instead.
        let Some(index) = empty.or_else(|| free.next()) else {
            continue;
        };
        maps.set_resolver(index, address)?;
        taken.insert(index);
        kept.push((order, Known::new(breakout, address, index)));
    }
    kept.sort_by_key(|(order, _)| *order);
    Ok(kept.into_iter().map(|(_, known)| known).collect())
}

/// For each path and family the first resolver that lives, or else the first.
fn table(resolvers: &[Known]) -> DnsTable {
    let mut table = DnsTable {
        flags: REWRITING,
        ..DnsTable::default()
    };
    let (dead, alive): (Vec<&Known>, Vec<&Known>) =
        resolvers.iter().partition(|it| it.dead_since.is_some());
    for it in alive.into_iter().chain(dead) {
        let place = &mut table.active[usize::from(it.path & 0x0f)][it.family()];
        if *place == 0 {
            *place = it.index;
        }
    }
    table
}
