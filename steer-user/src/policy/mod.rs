//! Feed + configuration -> plan: which traffic is steered, and as which class. Pure.
//!
//! For a destination, protocol and port, every selected set whose prefix and ports match is a
//! candidate; the highest category wins, then the longest prefix, then the lowest id. A plan holds
//! the tables that the kernel programs read, and answers from those same tables.

mod class;
mod compile;
mod decide;
mod error;
mod explain;
#[cfg(test)]
mod fuzz;
mod names;
mod want;

use std::net::IpAddr;

use ipnet::IpNet;
use steer_common::{chunk, image::Image, names::NameTable};

pub use self::{
    class::{Class, ClassKey, ClassLabel, ClassRegistry, RegistryFull, SourceList, own_id},
    decide::{Flow, Match, Pass, Unselected, Verdict, unselected},
    error::PlanError,
    names::{NameMatch, NameVerdict},
};
use crate::{
    config::{Config, InterfaceName, Lan, Selection},
    endpoints::Feed,
};

/// What is steered: the tables for the kernel, and what they mean.
#[derive(Debug, Clone)]
pub struct Plan {
    feed: Feed,
    select: Selection,
    site: Site,
    classes: Vec<Class>,
    image: Image,
    names: names::Names,
    size: Size,
}

/// What the plan has to know of the office and its router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// The clients' prefixes; `None`: not known here, so that every source counts as a client.
    pub clients: Option<Vec<IpNet>>,
    /// Clients that are left out; the most specific prefix of both lists wins.
    pub left_out: Vec<IpNet>,
    /// Clients whose queries are left alone.
    pub queries_left: Vec<IpNet>,
    /// Addresses of the router itself: never steered.
    pub router: Vec<IpAddr>,
}

/// How large a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Endpoint sets of Microsoft's that are steered.
    pub sets: usize,
    /// Includes of the operator's own.
    pub own: usize,
    /// Different IPv4 prefixes of both.
    pub prefixes_v4: usize,
    /// Different IPv6 prefixes of both.
    pub prefixes_v6: usize,
    /// Different lists of port rules, of at most [`chunk::MAX_ENTRIES`].
    pub entries: u32,
    /// Blocks of the tables in use, of [`chunk::CHUNKS`].
    pub chunks: usize,
}

impl Site {
    /// Whether an address is a client's whose traffic is steered.
    pub fn is_client(&self, address: IpAddr) -> bool {
        self.has_clients_around(&address.into())
    }

    /// Whether an address is a client's whose queries are steered.
    pub fn may_ask(&self, address: IpAddr) -> bool {
        let left = |prefix: &IpNet| prefix.contains(&address);
        self.is_client(address) && !self.queries_left.iter().any(left)
    }

    /// Whether clients whose traffic is steered are all there is around a prefix.
    fn has_clients_around(&self, prefix: &IpNet) -> bool {
        let longest = |prefixes: &[IpNet]| {
            let holding = prefixes.iter().filter(|it| it.contains(prefix));
            holding.map(IpNet::prefix_len).max()
        };
        let left_out = longest(&self.left_out);
        match &self.clients {
            None => left_out.is_none(),
            Some(clients) => longest(clients) > left_out,
        }
    }
}

impl Plan {
    /// Compiles a plan. Classes that are new are added to `registry`.
    ///
    /// Fails when the feed overlaps the office, an include is one that is never steered, or the
    /// plan does not fit into the tables; `registry` is then as it was.
    pub fn compile(
        feed: Feed,
        select: Selection,
        site: Site,
        registry: &mut ClassRegistry,
    ) -> Result<Self, PlanError> {
        compile::plan(feed, select, site, registry)
    }

    /// What happens to a flow, by the tables of this plan.
    pub fn decide(&self, flow: &Flow) -> Verdict<'_> {
        decide::verdict(self, flow)
    }

    /// The class that a flow belongs to whose destination is a learned address of the class `key`, if
    /// it is steered.
    pub fn decide_learned(&self, key: ClassKey, flow: &Flow) -> Option<&Class> {
        decide::learned(self, key, flow)
    }

    /// Whether an address has its place in the tables, so that no answer teaches it.
    pub fn knows(&self, address: IpAddr) -> bool {
        decide::is_known(self, address)
    }

    /// What happens to a client's query for a name, by the tables of this plan; `None`: some client
    /// whose queries are steered.
    pub fn decide_name(&self, name: &str, client: Option<IpAddr>) -> NameVerdict<'_> {
        names::verdict(self, name, client)
    }

    /// The names for the kernel; empty when no query is touched.
    pub fn names(&self) -> &NameTable {
        &self.names.table
    }

    /// Names of selected sets that cannot be looked up in the kernel: queries for them are left
    /// alone.
    pub fn names_left_out(&self) -> &[String] {
        &self.names.left_out
    }

    /// The site that it was compiled for.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The tables for the kernel.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The classes that packets can turn out to be, in the order of precedence.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The class with this index in the registry.
    pub fn class(&self, index: u16) -> Option<&Class> {
        self.classes.iter().find(|class| class.index == index)
    }

    /// The feed it was made from.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// What was selected of it.
    pub fn selection(&self) -> &Selection {
        &self.select
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }
}

impl Site {
    /// The site as the configuration has it. `connected` gives the prefixes that an interface is
    /// connected to, for LANs without `sources`, or `None` where that is not known; `router` are
    /// the router's own addresses.
    pub fn of(
        config: &Config,
        mut connected: impl FnMut(&InterfaceName) -> Option<Vec<IpNet>>,
        router: Vec<IpAddr>,
    ) -> Self {
        let mut clients = Some(Vec::new());
        for lan in &config.lans {
            let sources = if lan.sources.is_empty() {
                connected(&lan.interface)
            } else {
                Some(lan.sources.clone())
            };
            clients = clients.zip(sources).map(|(mut all, more)| {
                all.extend(more);
                all
            });
        }
        let of_lans = |prefixes: fn(&Lan) -> &Vec<IpNet>| {
            let lans = config.lans.iter();
            lans.flat_map(|lan| prefixes(lan).clone()).collect()
        };
        Self {
            clients,
            left_out: of_lans(|lan| &lan.exclude_sources),
            queries_left: of_lans(|lan| &lan.leave_queries_of),
            router,
        }
    }
}

impl Size {
    /// Memory of one generation in the kernel, in bytes; the same for every plan.
    pub const fn generation_bytes() -> usize {
        chunk::CHUNKS as usize * size_of::<chunk::Chunk>()
    }
}

#[cfg(test)]
mod tests;
