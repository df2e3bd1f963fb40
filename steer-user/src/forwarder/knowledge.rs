//! What a query has to be judged by: the plan's names and clients, and the kernel's own tables of
//! paths and resolvers, so that TCP and UDP go the same way.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use steer_common::{
    dns::REWRITING,
    flow,
    names::{LEARN, NameTable, REWRITE},
};

use crate::{
    config::{Config, Mode},
    datapath::{DatapathError, DnsMaps, Maps, PinDir, monotonic_ns},
    policy::{Plan, Site},
    system::{InterfaceName, Mark, PathId},
};

/// A resolver that failed over TCP is asked again after this time.
const AGAIN: Duration = Duration::from_secs(30);

/// How to leave by a breakout.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its device.
    pub device: InterfaceName,
    /// Its grant.
    pub mark: Mark,
}

/// What queries are judged by.
pub struct Knowledge {
    names: NameTable,
    site: Site,
    ways: HashMap<u8, Way>,
    paths: Maps,
    dns: DnsMaps,
    failed: Mutex<HashMap<IpAddr, Instant>>,
}

/// Where a query goes instead.
pub(super) struct Near<'a> {
    pub(super) way: &'a Way,
    pub(super) resolver: IpAddr,
}

impl Knowledge {
    /// Fails when the maps of queries are not there.
    pub fn new(config: &Config, plan: &Plan) -> Result<Self, DatapathError> {
        let pins = PinDir::new(&config.system.pin_dir);
        let ways = config.breakouts.iter().filter_map(|breakout| {
            let way = Way {
                device: breakout.interface.clone(),
                mark: PathId::new(breakout.id)?.grant(config.mark.bits),
            };
            Some((breakout.id, way))
        });
        Ok(Self {
            names: plan.names().clone(),
            site: plan.site().clone(),
            ways: ways.collect(),
            paths: Maps::open(&pins, Mode::Mark)?,
            dns: DnsMaps::open(&pins)?,
            failed: Mutex::default(),
        })
    }

    /// Where a client's query for a name goes instead of where it was sent; none: nowhere.
    pub(super) fn near(&self, client: IpAddr, server: IpAddr, name: &str) -> Option<Near<'_>> {
        let action = self.names.find(name)?;
        // Answers over TCP teach nothing, and a near answer alone would lead by the far way.
        if action.flags & REWRITE == 0 || action.flags & LEARN != 0 || !self.site.is_client(client)
        {
            return None;
        }
        let table = self.dns.table().ok()?;
        let family = usize::from(client.is_ipv6());
        let paths = self.paths.paths().ok()?;
        let ways = paths.ways(family, action.class, hash(client));
        if table.flags & REWRITING == 0 || !ways.is_steering() {
            return None;
        }
        let path = ways.choose_without(0)?;
        let index = table.active[usize::from(path & 0x0f)][family];
        if index == 0 || self.dns.resolver_state(index).ok()?.is_dead(monotonic_ns()) {
            return None;
        }
        let resolver = self.dns.resolver(index).ok()??;
        let way = self.ways.get(&path)?;
        (resolver != server && !self.failed_lately(resolver)).then_some(Near { way, resolver })
    }

    fn failed_lately(&self, resolver: IpAddr) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(&resolver).is_some_and(|at| at.elapsed() < AGAIN)
    }

    /// A resolver does not answer over TCP.
    pub(super) fn note_failure(&self, resolver: IpAddr) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(resolver, Instant::now());
    }
}

/// The number that stands for a client where its path is chosen, as in the kernel.
fn hash(client: IpAddr) -> u64 {
    flow::finish(match client {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => {
            let words = v6.segments().map(u64::from);
            let half = |words: &[u64]| words.iter().fold(0, |all, word| all << 16 | word);
            flow::mix(half(&words[..4]), half(&words[4..]))
        }
    })
}
