//! Addresses that answers over TCP taught. The kernel's programs see answers over UDP only, so these
//! are written from here, by the same rules and into the same maps (`steer-ebpf/src/answer.rs`).

use std::net::IpAddr;

use aya::maps::{Array, HashMap, MapData};
use steer_common::{
    dns::{
        self, Address, Asker, Budget, CLIENT_BUDGET, DnsEvent, FOREIGN_LIFE, Learned, NAME_BUDGET,
        REFUSE_SHARED, SECOND, SHARED, WINDOW_SHIFT,
    },
    names::WholeName,
};

use super::{
    DatapathError, PinDir,
    dns::DnsMaps,
    maps::{map_error, monotonic_ns, open},
};

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// Who asked.
    pub client: IpAddr,
    /// For which name.
    pub name: WholeName,
    /// Its class.
    pub class: u16,
}

/// What learned addresses are written to.
pub struct Lessons {
    maps: DnsMaps,
    foreign: HashMap<MapData, Address, u64>,
    names: Array<MapData, Budget>,
    clients: Array<MapData, Budget>,
}

impl Lessons {
    /// Opens the pinned maps. Fails when [`super::Dns`] was never loaded.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self {
            maps: DnsMaps::open(pins)?,
            foreign: open(pins, "FOREIGN")?,
            names: open(pins, "NAME_BUDGETS")?,
            clients: open(pins, "CLIENT_BUDGETS")?,
        })
    }

    /// Learns an address that is in no plan, with the answer's time to live in seconds. Says what became
    /// of it, as the kernel's programs count it.
    pub fn teach(
        &mut self,
        lesson: &Lesson,
        address: IpAddr,
        ttl: u32,
    ) -> Result<DnsEvent, DatapathError> {
        let (now, key) = (monotonic_ns(), dns::address(address));
        if !dns::is_plausible(&key, address.is_ipv6()) {
            return Ok(DnsEvent::Implausible);
        }
        let refuse = self.maps.table()?.flags & REFUSE_SHARED != 0;
        let seen = self.foreign.get(&key, 0).ok();
        let foreign = seen.is_some_and(|seen| now.wrapping_sub(seen) < FOREIGN_LIFE);
        if foreign && refuse {
            return Ok(DnsEvent::Shared);
        }
        let life = dns::life(ttl);
        let expires = now + u64::from(life) * SECOND;
        let known = self.maps.learned_address(address);
        let known = known.filter(|known| known.expires > now);
        let event = if known.is_some() {
            DnsEvent::Refreshed
        } else if self.spend(lesson, now >> WINDOW_SHIFT)? {
            DnsEvent::Learned
        } else {
            return Ok(DnsEvent::OverBudget);
        };
        let mut value = known.unwrap_or(Learned {
            expires,
            learned: now,
            client: dns::address(lesson.client),
            name: lesson.name.key,
            life,
            class: lesson.class,
            flags: 0,
        });
        let shared = foreign || value.class != lesson.class;
        if shared {
            value.flags |= SHARED;
        }
        if shared && refuse {
            value.expires = 0;
        } else if !refuse && value.expires < expires {
            (value.life, value.expires) = (life, expires);
        }
        self.maps.insert_learned(address, &value)?;
        let asker = Asker {
            expires,
            class: lesson.class,
            reserved: [0; 3],
        };
        self.maps.insert_asker(lesson.client, address, asker)?;
        Ok(event)
    }

    /// A name outside the plan has the address: it is shared from now on.
    pub fn claim(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let failed = map_error("FOREIGN");
        self.foreign
            .insert(dns::address(address), monotonic_ns(), 0)
            .map_err(failed)?;
        let Some(mut value) = self.maps.learned_address(address) else {
            return Ok(());
        };
        value.flags |= SHARED;
        if self.maps.table()?.flags & REFUSE_SHARED != 0 {
            value.expires = 0;
        }
        self.maps.insert_learned(address, &value)
    }

    /// Takes one from the budgets of the client and of the name, if both have one left.
    fn spend(&mut self, lesson: &Lesson, window: u64) -> Result<bool, DatapathError> {
        let client = Budget::place(dns::client(&dns::address(lesson.client)));
        let name = Budget::place(lesson.name.hash);
        let failed = map_error("CLIENT_BUDGETS");
        let of_client = self.clients.get(&client, 0).map_err(failed)?;
        let of_name = self
            .names
            .get(&name, 0)
            .map_err(map_error("NAME_BUDGETS"))?;
        if !of_client.allows(CLIENT_BUDGET, window) || !of_name.allows(NAME_BUDGET, window) {
            return Ok(false);
        }
        self.clients
            .set(client, of_client.spent(window), 0)
            .map_err(failed)?;
        self.names
            .set(name, of_name.spent(window), 0)
            .map_err(map_error("NAME_BUDGETS"))?;
        Ok(true)
    }
}
