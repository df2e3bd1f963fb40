//! What a query has to be judged by: the plan's names and clients, and the kernel's own tables of
//! paths and resolvers, so that TCP and UDP go the same way.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::op::Message;
use steer_common::{
    dns::{DnsEvent, REWRITING},
    flow,
    names::{LEARN, NameAction, REWRITE, WholeName},
};
use tracing::debug;

use super::message;

use crate::{
    config::{Config, Mode},
    datapath::{DatapathError, DnsMaps, Lesson, Lessons, Maps, PinDir, monotonic_ns},
    policy::Plan,
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
    plan: Plan,
    ways: HashMap<u8, Way>,
    paths: Maps,
    dns: DnsMaps,
    lessons: Mutex<Lessons>,
    failed: Mutex<HashMap<IpAddr, Instant>>,
}

/// Where a query goes instead.
pub(super) struct Near<'a> {
    pub(super) way: &'a Way,
    pub(super) resolver: IpAddr,
}

/// What an answer says of its addresses.
pub(super) enum Meaning {
    /// A client will go there for what it asked.
    Learned(Lesson),
    /// A name outside the plan has them, too.
    Foreign,
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
            plan: plan.clone(),
            ways: ways.collect(),
            paths: Maps::open(&pins, Mode::Mark)?,
            dns: DnsMaps::open(&pins)?,
            lessons: Mutex::new(Lessons::open(&pins)?),
            failed: Mutex::default(),
        })
    }

    /// Where a client's query for a name goes instead of where it was sent; none: nowhere.
    pub(super) fn near(&self, client: IpAddr, server: IpAddr, name: &str) -> Option<Near<'_>> {
        let action = self.action(client, name, REWRITE)?;
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

    /// What the answer to a client's query for a name says of its addresses; none: nothing.
    pub(super) fn meaning(&self, client: IpAddr, name: &str) -> Option<Meaning> {
        if self.plan.names().find(name).is_none() {
            return Some(Meaning::Foreign);
        }
        let action = self.action(client, name, LEARN)?;
        Some(Meaning::Learned(Lesson {
            client,
            name: WholeName::of(name)?,
            class: action.class,
        }))
    }

    /// What the plan has in mind for a client's query, if this is among it.
    fn action(&self, client: IpAddr, name: &str, wanted: u16) -> Option<NameAction> {
        let action = self.plan.names().find(name)?;
        let wants = action.flags & wanted != 0 && self.plan.site().may_ask(client);
        wants.then_some(action)
    }

    /// Learns from an answer before the client has it, so that its first packet is led accordingly; how
    /// many addresses are new.
    pub(super) fn teach(&self, meaning: &Meaning, answer: &Message) -> u64 {
        let (addresses, ttl) = message::addresses(answer);
        let mut lessons = self.lessons.lock().unwrap_or_else(PoisonError::into_inner);
        let taught = addresses.into_iter().map(|address| match meaning {
            Meaning::Foreign => lessons.claim(address).map(|()| false),
            Meaning::Learned(_) if self.plan.knows(address) => Ok(false),
            Meaning::Learned(lesson) => {
                let event = lessons.teach(lesson, address, ttl)?;
                Ok(event == DnsEvent::Learned)
            }
        });
        let learned = taught.filter(|taught| match taught {
            Ok(new) => *new,
            Err(error) => {
                debug!("an address is not learned: {error}");
                false
            }
        });
        learned.count() as u64
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
