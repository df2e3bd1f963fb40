//! The programs that see queries and answers (`steer-dns`), and their maps.
//!
//! They run at TC in both modes: XDP has no checksum metadata, and an answer goes out, where there
//! is no XDP. The maps of learned addresses belong to the classifiers' objects, too, which have to
//! be loaded first.

use std::{collections::HashMap as StdMap, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues,
        lpm_trie::Key as LpmKey,
    },
    programs::{SchedClassifier, TcAttachType},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LPM_TRIE;
use steer_common::{
    dns::{
        self, Address, Asker, DnsEvent, DnsTable, Learned, Pending, PendingKey, Resolver,
        ResolverCount, ResolverState,
    },
    names::{Key, MAX_NAMES, NameRule, NameTable, RULE_BYTES, TRIE_KEY_BYTES},
};

use super::{
    DatapathError, LogLevel, Mode, PinDir, Port,
    attachment::Attachment,
    load,
    maps::{self, map_error, open},
    objects,
    tc::{self, TcPlace},
};

/// The maps of `steer-dns` alone.
const OWN: [&str; 12] = [
    "NAMES",
    "DNS_TABLE",
    "RESOLVERS",
    "RESOLVER_STATE",
    "RESOLVER_COUNTS",
    "PENDING",
    "ASKED",
    "FOREIGN",
    "ASKING",
    "NAME_BUDGETS",
    "CLIENT_BUDGETS",
    "DNS_EVENTS",
];
/// The pins that say that a filter is there, and that the qdisc is ours (clsact): others than those of
/// the classifier, which say that mark mode steers.
pub(super) const FILTER_MARK: &str = "dns-filter";
/// See [`FILTER_MARK`].
pub(super) const QDISC_MARK: &str = "dns-qdisc";
/// A trie allocates a node when it needs one (linux/bpf.h).
const BPF_F_NO_PREALLOC: u32 = 1;

/// A query whose answer is awaited, or was given lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingQuery {
    /// Who asked.
    pub client: IpAddr,
    /// The client's port.
    pub port: u16,
    /// Whom the client asked.
    pub server: IpAddr,
    /// Who was asked instead; the server itself for a query that was not rewritten.
    pub resolver: IpAddr,
    /// Time, class, flags.
    pub value: Pending,
}

/// A learned address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedAddress {
    /// The address.
    pub address: IpAddr,
    /// Class, life, the name and the client that it was learned from.
    pub value: Learned,
}

impl LearnedAddress {
    /// The name that it was learned from; of a long one the last 64 octets, after an ellipsis.
    pub fn name(&self) -> String {
        steer_common::names::readable(&self.value.name)
    }
}

/// The pinned maps of queries, answers and learned addresses.
pub struct DnsMaps {
    names: ArrayOfMaps<MapData, LpmTrie<MapData, Key, NameRule>>,
    table: Array<MapData, DnsTable>,
    resolvers: Array<MapData, Resolver>,
    states: Array<MapData, ResolverState>,
    counts: PerCpuArray<MapData, ResolverCount>,
    pending: HashMap<MapData, PendingKey, Pending>,
    learned: HashMap<MapData, Address, Learned>,
    askers: HashMap<MapData, u64, Asker>,
    events: PerCpuArray<MapData, u64>,
}

impl DnsMaps {
    /// Opens the pinned maps. Fails when [`Dns`] was never loaded.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self {
            names: open(pins, "NAMES")?,
            table: open(pins, "DNS_TABLE")?,
            resolvers: open(pins, "RESOLVERS")?,
            states: open(pins, "RESOLVER_STATE")?,
            counts: open(pins, "RESOLVER_COUNTS")?,
            pending: open(pins, "PENDING")?,
            learned: open(pins, "LEARNED")?,
            askers: open(pins, "ASKERS")?,
            events: open(pins, "DNS_EVENTS")?,
        })
    }

    /// Makes a table of names the active one with one write: a query sees one table.
    pub fn publish_names(&mut self, table: &NameTable) -> Result<(), DatapathError> {
        let failed = map_error("NAMES");
        let mut inner = Map::from_map_data(new_names()?)
            .and_then(LpmTrie::<MapData, Key, NameRule>::try_from)
            .map_err(failed)?;
        for (bits, key, rule) in table.entries() {
            inner
                .insert(&LpmKey::new(bits, key), *rule, 0)
                .map_err(failed)?;
        }
        self.names.set(0, &inner, 0).map_err(failed)
    }

    /// Which resolver each path uses.
    pub fn table(&self) -> Result<DnsTable, DatapathError> {
        self.table.get(&0, 0).map_err(map_error("DNS_TABLE"))
    }

    /// Replaces it; queries see it at once.
    pub fn set_table(&mut self, table: &DnsTable) -> Result<(), DatapathError> {
        self.table.set(0, table, 0).map_err(map_error("DNS_TABLE"))
    }

    /// Writes a resolver at an index (1 to 63) that the table does not name, with a clean health and
    /// nothing counted.
    pub fn set_resolver(&mut self, index: u8, address: IpAddr) -> Result<(), DatapathError> {
        let resolver = Resolver {
            address: dns::address(address),
        };
        self.forgive(index)?;
        let counts = self.counts.get(&index.into(), 0);
        let counts = counts.map_err(map_error("RESOLVER_COUNTS"))?;
        let nothing = vec![ResolverCount::default(); counts.len()];
        PerCpuValues::try_from(nothing)
            .map_err(aya::maps::MapError::from)
            .and_then(|nothing| self.counts.set(index.into(), nothing, 0))
            .map_err(map_error("RESOLVER_COUNTS"))?;
        self.resolvers
            .set(index.into(), resolver, 0)
            .map_err(map_error("RESOLVERS"))
    }

    /// Forgets that a resolver left queries unanswered.
    pub fn forgive(&mut self, index: u8) -> Result<(), DatapathError> {
        self.states
            .set(index.into(), ResolverState::default(), 0)
            .map_err(map_error("RESOLVER_STATE"))
    }

    /// The resolver at an index, if one was written.
    pub fn resolver(&self, index: u8) -> Result<Option<IpAddr>, DatapathError> {
        let resolver = self
            .resolvers
            .get(&index.into(), 0)
            .map_err(map_error("RESOLVERS"))?;
        Ok((resolver.address != Address::default()).then(|| dns::ip(resolver.address)))
    }

    /// What the programs know of a resolver's health.
    pub fn resolver_state(&self, index: u8) -> Result<ResolverState, DatapathError> {
        self.states
            .get(&index.into(), 0)
            .map_err(map_error("RESOLVER_STATE"))
    }

    /// What was counted of a resolver since its index was first used, summed over the CPUs.
    pub fn resolver_count(&self, index: u8) -> Result<ResolverCount, DatapathError> {
        let values = self
            .counts
            .get(&index.into(), 0)
            .map_err(map_error("RESOLVER_COUNTS"))?;
        Ok(values
            .iter()
            .fold(ResolverCount::default(), |sum, it| ResolverCount {
                queries: sum.queries + it.queries,
                answers: sum.answers + it.answers,
                failures: sum.failures + it.failures,
                waited: sum.waited + it.waited,
            }))
    }

    /// What became of queries and answers: the events that were counted, summed over the CPUs.
    pub fn events(&self) -> Result<Vec<(DnsEvent, u64)>, DatapathError> {
        let mut events = Vec::new();
        for &event in DnsEvent::ALL {
            let values = self
                .events
                .get(&(event as u32), 0)
                .map_err(map_error("DNS_EVENTS"))?;
            let count = values.iter().sum();
            if count != 0 {
                events.push((event, count));
            }
        }
        Ok(events)
    }

    /// The queries that are remembered. Entries come and go while they are read: one may be there
    /// twice or missing, as in every list of the kernel's hashes.
    pub fn pending(&self) -> Result<Vec<PendingQuery>, DatapathError> {
        let mut found = Vec::new();
        for entry in &self.pending {
            let (key, value) = entry.map_err(map_error("PENDING"))?;
            found.push(PendingQuery {
                client: dns::ip(key.client),
                port: u16::from_be_bytes(key.port),
                server: dns::ip(value.server),
                resolver: dns::ip(key.resolver),
                value,
            });
        }
        Ok(found)
    }

    /// The learned addresses, those that ran out lately included.
    pub fn learned(&self) -> Result<Vec<LearnedAddress>, DatapathError> {
        let mut found = StdMap::new();
        for entry in &self.learned {
            let (address, value) = entry.map_err(map_error("LEARNED"))?;
            found.insert(address, value);
        }
        Ok(found
            .into_iter()
            .map(|(address, value)| LearnedAddress {
                address: dns::ip(address),
                value,
            })
            .collect())
    }

    /// One learned address.
    pub fn learned_address(&self, address: IpAddr) -> Option<Learned> {
        self.learned.get(&dns::address(address), 0).ok()
    }

    /// Puts a learned address (back) in place.
    pub fn insert_learned(
        &mut self,
        address: IpAddr,
        value: &Learned,
    ) -> Result<(), DatapathError> {
        self.learned
            .insert(dns::address(address), value, 0)
            .map_err(map_error("LEARNED"))
    }

    /// Forgets a learned address; one that is not there is fine.
    pub fn forget_learned(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        match self.learned.remove(&dns::address(address)) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map_error("LEARNED")(error)),
        }
    }

    /// Remembers that a client asked for a learned address.
    pub(super) fn insert_asker(
        &mut self,
        client: IpAddr,
        address: IpAddr,
        asker: Asker,
    ) -> Result<(), DatapathError> {
        let key = dns::asker(&dns::address(client), &dns::address(address));
        self.askers
            .insert(key, asker, 0)
            .map_err(map_error("ASKERS"))
    }

    /// Who asked for shared addresses, by a hash of client and address.
    pub fn askers(&self) -> Result<usize, DatapathError> {
        let mut count = 0;
        for key in self.askers.keys() {
            key.map_err(map_error("ASKERS"))?;
            count += 1;
        }
        Ok(count)
    }
}

/// An empty trie of names.
fn new_names() -> Result<MapData, DatapathError> {
    let layout = aya_obj::Map::new_from_params(
        BPF_MAP_TYPE_LPM_TRIE as u32,
        TRIE_KEY_BYTES,
        RULE_BYTES,
        MAX_NAMES,
        BPF_F_NO_PREALLOC,
    );
    MapData::create(layout, "steer_names", None).map_err(map_error("steer_names"))
}

/// The loaded programs for queries and answers.
pub struct Dns {
    pins: PinDir,
    programs: Vec<(Port, Ebpf)>,
    maps: DnsMaps,
}

/// One of the two places where they are attached.
struct Place {
    program: &'static str,
    direction: TcAttachType,
    behind: u16,
    link: &'static str,
}

const PLACES: [Place; 2] = [
    Place {
        program: objects::DNS_QUERY,
        direction: TcAttachType::Ingress,
        behind: tc::BEHIND,
        link: "dns-query",
    },
    Place {
        program: objects::DNS_ANSWER,
        direction: TcAttachType::Egress,
        behind: 0,
        link: "dns-answer",
    },
];

impl Dns {
    /// Loads the programs for each port; the maps are those that are pinned already, or new ones.
    /// Nothing is attached yet. The mode's own programs ([`super::Datapath`]) must be loaded.
    pub fn load(
        mode: Mode,
        pins: PinDir,
        ports: Vec<Port>,
        log: LogLevel,
    ) -> Result<Self, DatapathError> {
        maps::prepare_outer(&pins, "NAMES", new_names)?;
        let programs = ports
            .into_iter()
            .map(|port| load_dns(mode, Some(&pins), &port, log).map(|ebpf| (port, ebpf)))
            .collect::<Result<Vec<_>, _>>()?;
        let maps = DnsMaps::open(&pins)?;
        Ok(Self {
            pins,
            programs,
            maps,
        })
    }

    /// The maps.
    pub fn maps(&self) -> &DnsMaps {
        &self.maps
    }

    /// Takes the programs of every interface but those of `ifindexes` away; the maps stay.
    pub fn detach_others(pins: &PinDir, ifindexes: &[u32]) -> Result<(), DatapathError> {
        let filters = PLACES.map(|place| (place.program, place.direction));
        tc::forget_filters(pins, &filters, ifindexes)?;
        let is_ours =
            |kind: &str| kind == FILTER_MARK || PLACES.iter().any(|place| place.link == kind);
        pins.forget_other_links(is_ours, ifindexes)
    }

    /// The maps, to write to.
    pub fn maps_mut(&mut self) -> &mut DnsMaps {
        &mut self.maps
    }

    /// The objects, one for each port in the order given: for test runs.
    pub fn objects_mut(&mut self) -> impl Iterator<Item = &mut Ebpf> {
        self.programs.iter_mut().map(|(_, ebpf)| ebpf)
    }

    /// Attaches the programs at ingress and egress and pins their links. What an earlier controller
    /// left on the same interface is replaced in place.
    pub fn attach(&mut self) -> Result<Vec<Attachment>, DatapathError> {
        let pins = &self.pins;
        let mut attachments = Vec::new();
        for (port, ebpf) in &mut self.programs {
            for place in &PLACES {
                attachments.push(attach(ebpf, place, port, pins)?);
            }
        }
        Ok(attachments)
    }
}

fn attach(
    ebpf: &mut Ebpf,
    place: &Place,
    port: &Port,
    pins: &PinDir,
) -> Result<Attachment, DatapathError> {
    let verified_instructions = objects::verified_instructions(ebpf, place.program);
    let place = TcPlace {
        program: place.program,
        interface: &port.interface,
        ifindex: port.ifindex,
        direction: place.direction,
        behind: place.behind,
        order: tc::Order::Last,
        link: place.link,
        filter: FILTER_MARK,
        qdisc: QDISC_MARK,
    };
    let (hook, adopted) = tc::attach(ebpf, &place, pins)?;
    Ok(Attachment {
        interface: port.interface.clone(),
        ifindex: port.ifindex,
        program: place.program,
        hook,
        adopted,
        verified_instructions,
    })
}

pub(super) fn load_dns(
    mode: Mode,
    pins: Option<&PinDir>,
    port: &Port,
    log: LogLevel,
) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    let globals = load::Globals::of(port, log);
    globals.set(&mut loader);
    let routed: u8 = match mode {
        Mode::Mark => 0,
        Mode::Redirect => 1,
    };
    loader.override_global("SET_GRANT", &routed, true);
    if let Some(pins) = pins {
        for name in maps::SHARED.iter().chain(&OWN) {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader
        .load(objects::DNS)
        .map_err(|source| DatapathError::Load {
            object: "steer-dns",
            source: Box::new(source),
        })?;
    for place in &PLACES {
        let program = ebpf
            .program_mut(place.program)
            .ok_or(DatapathError::Missing(place.program))?;
        <&mut SchedClassifier>::try_from(program)
            .and_then(SchedClassifier::load)
            .map_err(|source| DatapathError::Program {
                program: place.program,
                interface: port.interface.clone(),
                source: Box::new(source),
            })?;
    }
    Ok(ebpf)
}
