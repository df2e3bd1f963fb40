//! Queries: the programs, the names of the plan, and which resolver of each breakout is asked.
//!
//! Whatever fails here is told and leaves queries to go where clients send them; traffic is steered
//! all the same. The kernel stops asking a dead resolver by itself; this only picks the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use steer_common::dns::{DnsTable, REFUSE_SHARED, REWRITING};
use tracing::{info, warn};

use super::{
    Controller, ControllerError, View,
    look::asking_site,
    resolvers::{Choice, Chosen, choose},
};
use crate::{
    api::{BypassStatus, DnsStatus, ResolverStatus},
    bypass::Bypass,
    config::{Config, Shared},
    datapath::{DatapathError, Dns, DnsMaps, LogLevel, PinDir, Port, monotonic_ns},
    forwarder::{Forwarder, Knowledge},
    policy::Plan,
    system::nft::{self, QUERIES_TO},
};

/// After this long a resolver that was taken for dead gets another chance.
const SECOND_CHANCE: Duration = Duration::from_mins(1);

/// What was seen of connections is told again for so long: looking costs a millisecond for a thousand of
/// them.
const FRESH: Duration = Duration::from_secs(5);

/// Indexes of resolvers end before this; 0 is none.
const PLACES: u8 = 64;
const _: () = assert!(PLACES as u32 == steer_common::dns::RESOLVERS);

/// Steering of queries, if there is any.
#[derive(Default)]
pub(super) struct Steering {
    dns: Option<Dns>,
    /// Where its programs are.
    ports: Vec<Port>,
    resolvers: Vec<Known>,
    choice: Choice,
    trouble: Option<String>,
    forwarding: Forwarding,
    /// Who asks past the office's resolvers, and when that was looked at.
    bypass: Mutex<Option<(Instant, Option<BypassStatus>)>>,
}

/// The forwarder of queries over TCP, if there is one.
#[derive(Default)]
struct Forwarding {
    forwarder: Option<Forwarder>,
    trouble: Option<String>,
    /// Connections that nftables handed over, and that arrived, when the latter last grew; and
    /// whether there were many more of the former a sweep ago.
    seen: (u64, u64),
    suspicious: bool,
}

/// So many connections are handed over and none arrives: something else drops them.
const LOST: u64 = 3;

/// A resolver of a breakout, and its place in the kernel.
struct Known {
    chosen: Chosen,
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
        self.forward_queries();
    }

    /// Has queries over TCP read as the configuration says, by the plan as it is now.
    pub(super) fn forward_queries(&mut self) {
        let forwarding = &mut self.dns.forwarding;
        if !self.config.forwards_queries() || self.dns.dns.is_none() {
            *forwarding = Forwarding::default();
            return;
        }
        let told = Knowledge::new(&self.config, &self.plan)
            .map_err(|error| error.to_string())
            .and_then(|knowledge| match &forwarding.forwarder {
                Some(forwarder) => {
                    forwarder.know(knowledge);
                    Ok(())
                }
                None => Forwarder::start(knowledge)
                    .map(|forwarder| forwarding.forwarder = Some(forwarder))
                    .map_err(|error| format!("{}: {error}", QUERIES_TO[0])),
            });
        forwarding.trouble = told.err();
        if let Some(trouble) = &forwarding.trouble {
            warn!("queries over TCP are not read: {trouble}. They go where clients send them");
            forwarding.forwarder = None;
        }
    }

    /// Sees whether what is handed to the forwarder arrives there. Where it does not, nobody listens
    /// any more, so that it goes on as without steer.
    pub(super) async fn check_forwarder(&mut self) {
        let Some(forwarder) = &self.dns.forwarding.forwarder else {
            return;
        };
        let handed = match nft::counters().await {
            Ok(counters) => counters.map_or(0, |it| it.queries.packets),
            Err(error) => return warn!("{error}"),
        };
        let arrived = forwarder.count().connections;
        let forwarding = &mut self.dns.forwarding;
        if arrived != forwarding.seen.1 || handed < forwarding.seen.0 {
            forwarding.seen = (handed, arrived);
            forwarding.suspicious = false;
        } else if handed - forwarding.seen.0 < LOST {
        } else if !forwarding.suspicious {
            // They may be on their way still.
            forwarding.suspicious = true;
        } else {
            let trouble = "connections of clients do not reach steer: let TCP port 53 from the LAN in, \
                           whatever the destination (input, not only forward), then `steer reload`";
            warn!("queries over TCP are not read: {trouble}. They go where clients send them");
            *forwarding = Forwarding {
                trouble: Some(trouble.into()),
                ..Forwarding::default()
            };
        }
    }

    /// Where queries are steered.
    fn query_ports(&self) -> Vec<Port> {
        let ports = self.view.ports.iter().zip(&self.config.lans);
        let steered = ports.filter(|(_, lan)| lan.steer_queries);
        steered.map(|(port, _)| port.clone()).collect()
    }

    fn try_to_steer_queries(&mut self, anew: bool) -> Result<(), DatapathError> {
        let pins = PinDir::new(&self.config.system.pin_dir);
        let ports = self.query_ports();
        if !self.config.select.names.steer || ports.is_empty() {
            self.dns.dns = None;
            self.dns.resolvers.clear();
            return Dns::detach_others(&pins, &[]);
        }
        let attach = anew || self.dns.dns.is_none() || self.dns.ports != ports;
        let log = if self.options.log_packets {
            LogLevel::Debug
        } else {
            LogLevel::Off
        };
        let mut dns = match self.dns.dns.take() {
            Some(dns) if !attach => dns,
            _ => Dns::load(self.config.mode, pins.clone(), ports.clone(), log)?,
        };
        let maps = dns.maps_mut();
        maps.publish_names(self.plan.names())?;
        self.dns.choice = choose(&self.config, &self.view, &self.dns.choice);
        self.dns.resolvers = places(maps, &self.dns.choice.resolvers, &self.dns.resolvers)?;
        maps.set_table(&table(&self.dns.resolvers, self.config.dns.shared))?;
        if attach {
            for at in dns.attach()? {
                let adopted = at.adopted_in_words();
                info!("{}: {}{adopted}", at.interface, at.program);
            }
            let indexes: Vec<u32> = ports.iter().map(|port| port.ifindex).collect();
            Dns::detach_others(&pins, &indexes)?;
        }
        self.dns.dns = Some(dns);
        self.dns.ports = ports;
        for name in self.plan.names_left_out() {
            warn!("queries for {name} are left alone: the kernel cannot look it up");
        }
        Ok(())
    }
}

impl Steering {
    /// Follows the resolvers of the links, picks the next one where one died, and gives dead ones
    /// another chance.
    pub(super) fn watch(&mut self, config: &Config, view: &View) {
        if !config.select.names.steer {
            return;
        }
        if let Err(error) = self.try_to_watch(config, view) {
            warn!("resolvers: {error}");
        }
    }

    fn try_to_watch(&mut self, config: &Config, view: &View) -> Result<(), DatapathError> {
        let Some(dns) = &mut self.dns else {
            return Ok(());
        };
        let maps = dns.maps_mut();
        let choice = choose(config, view, &self.choice);
        if choice.resolvers != self.choice.resolvers {
            self.resolvers = places(maps, &choice.resolvers, &self.resolvers)?;
        }
        self.choice = choice;
        let before = maps.table()?;
        let now = monotonic_ns();
        for it in &mut self.resolvers {
            let dead = maps.resolver_state(it.index)?.is_dead(now);
            match (dead, it.dead_since) {
                (false, Some(_)) => {
                    info!(
                        "{}: resolver {} answers again",
                        it.chosen.breakout, it.chosen.address
                    );
                    it.dead_since = None;
                }
                (true, None) => {
                    warn!(
                        "{}: resolver {} does not answer; queries go to the next one, or where clients send them",
                        it.chosen.breakout, it.chosen.address
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
        let after = table(&self.resolvers, config.dns.shared);
        if after != before {
            maps.set_table(&after)?;
        }
        Ok(())
    }

    /// What the operator should know.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let trouble = self.trouble.iter();
        let trouble = trouble.map(|it| format!("queries are not steered: {it}"));
        let tcp = self.forwarding.trouble.iter();
        let tcp = tcp.map(|it| format!("queries over TCP are not read: {it}"));
        trouble
            .chain(tcp)
            .chain(self.choice.problems.iter().cloned())
    }

    /// Who asks past the office's resolvers.
    async fn bypass(&self, view: &View) -> Option<BypassStatus> {
        let known = || self.bypass.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, status)) = &*known()
            && at.elapsed() < FRESH
        {
            return status.clone();
        }
        let looked = Bypass::look(asking_site(view)).await;
        let looked = looked.inspect_err(|error| warn!("who asks past the resolvers: {error}"));
        let status = looked.ok().flatten().as_ref().map(BypassStatus::from);
        *known() = Some((Instant::now(), status.clone()));
        status
    }

    pub(super) async fn status(
        &self,
        config: &Config,
        view: &View,
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
                breakout: it.chosen.breakout.clone(),
                address: it.chosen.address.to_string(),
                origin: it.chosen.origin.to_string(),
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
            tcp: self
                .forwarding
                .forwarder
                .as_ref()
                .map(|it| it.count().into()),
            bypass: self.bypass(view).await,
        }))
    }
}

impl Known {
    fn new(chosen: &Chosen, index: u8, before: &[Self]) -> Self {
        let known = before.iter().find(|it| {
            it.index == index
                && (it.chosen.path, it.chosen.address) == (chosen.path, chosen.address)
        });
        Self {
            chosen: chosen.clone(),
            index,
            dead_since: known.and_then(|it| it.dead_since),
        }
    }

    fn family(&self) -> usize {
        usize::from(self.chosen.address.is_ipv6())
    }

    fn is_in(&self, table: &DnsTable) -> bool {
        table.active[usize::from(self.chosen.path & 0x0f)][self.family()] == self.index
    }
}

/// Gives every resolver a place in the kernel. One that has a place keeps it, with what is known of
/// it; a place that is in use is never given to another address.
fn places(
    maps: &mut DnsMaps,
    wanted: &[Chosen],
    before: &[Known],
) -> Result<Vec<Known>, DatapathError> {
    let active = maps.table()?.active;
    let mut there: BTreeMap<u8, IpAddr> = BTreeMap::new();
    for index in 1..PLACES {
        if let Some(address) = maps.resolver(index)? {
            there.insert(index, address);
        }
    }
    let mut taken = BTreeSet::new();
    let (mut kept, mut new) = (Vec::new(), Vec::new());
    for (order, chosen) in wanted.iter().enumerate() {
        // Its own place, where two breakouts have the same resolver.
        let own = before.iter().find(|it| {
            (it.chosen.path, it.chosen.address) == (chosen.path, chosen.address)
                && there.get(&it.index) == Some(&chosen.address)
        });
        let own = own.map(|it| it.index).filter(|it| !taken.contains(it));
        let place = own.or_else(|| {
            there
                .iter()
                .find(|(index, it)| **it == chosen.address && !taken.contains(*index))
                .map(|(index, _)| *index)
        });
        taken.extend(place);
        match place {
            Some(index) => kept.push((order, Known::new(chosen, index, before))),
            None => new.push((order, chosen)),
        }
    }
    for (order, chosen) in new {
        let in_use = |index: &u8| taken.contains(index) || active.as_flattened().contains(index);
        let mut free = (1..PLACES).filter(|index| !in_use(index));
        let empty = free.clone().find(|index| !there.contains_key(index));
        // More addresses than places at once, over reloads: the kernel asks nobody instead.
        let Some(index) = empty.or_else(|| free.next()) else {
            warn!(
                "{}: no room for resolver {}: the kernel knows {} at a time",
                chosen.breakout,
                chosen.address,
                PLACES - 1
            );
            continue;
        };
        maps.set_resolver(index, chosen.address)?;
        taken.insert(index);
        kept.push((order, Known::new(chosen, index, &[])));
    }
    kept.sort_by_key(|(order, _)| *order);
    Ok(kept.into_iter().map(|(_, known)| known).collect())
}

/// For each path and family the first resolver that lives, or else the first.
fn table(resolvers: &[Known], shared: Shared) -> DnsTable {
    let refuse = match shared {
        Shared::Askers => 0,
        Shared::Refuse => REFUSE_SHARED,
    };
    let mut table = DnsTable {
        flags: REWRITING | refuse,
        ..DnsTable::default()
    };
    let (dead, alive): (Vec<&Known>, Vec<&Known>) =
        resolvers.iter().partition(|it| it.dead_since.is_some());
    for it in alive.into_iter().chain(dead) {
        let place = &mut table.active[usize::from(it.chosen.path & 0x0f)][it.family()];
        if *place == 0 {
            *place = it.index;
        }
    }
    table
}
