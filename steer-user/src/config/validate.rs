//! From the file as written to a [`Config`], or to the list of everything that is wrong with it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    time::Duration,
};

use ipnet::IpNet;
use steer_common::mark;
use toml::Spanned;

use super::{
    Breakout, Config, ConfigProblem, Delegated, InterfaceName, Lan, MarkBits, MarkConfig,
    MetricsConfig, Mode, NameSelection, Order, OwnInclude, Owner, RedirectConfig, Selection,
    SystemConfig, Vlan, Written, XdpChoice,
    checker::{Checker, WIDEST_OWN},
    defaults,
    schema::{
        RawBreakout, RawConfig, RawInclude, RawLan, RawMark, RawMetrics, RawSelect, RawSystem,
    },
    values::{Number, NumberOrText, Text},
};
use crate::endpoints::{Instance, Ports, SetId, never_steered};

/// Path ids have four bits; 0 means "no path".
const MAX_BREAKOUTS: usize = mark::PATHS - 1;
const MAX_PATH_ID: u8 = 15;
const _: () = assert!(MAX_PATH_ID as usize == MAX_BREAKOUTS);
const MAX_WATCH_PERIOD: Duration = Duration::from_hours(1);
/// The main table.
const MAIN: u32 = 254;
/// The routing tables that steer makes, one for each path id and one for itself.
const OWN_TABLES: std::ops::RangeInclusive<u32> = 36501..=36516;

pub(super) fn config(text: &str, raw: RawConfig) -> Result<Config, Vec<ConfigProblem>> {
    let mut checker = Checker::new(text);
    let config = checker.config(raw);
    checker.result(config)
}

impl Checker<'_> {
    fn config(&mut self, raw: RawConfig) -> Config {
        let mode = self.one_of(
            raw.mode,
            &[("mark", Mode::Mark), ("redirect", Mode::Redirect)],
            defaults::MODE,
        );
        let via = raw.feed.via_span();
        let mut feed = self.feed(raw.feed);
        let mut select = self.selection(raw.select, feed.instance);
        let xdp = [
            ("auto", XdpChoice::Auto),
            ("native", XdpChoice::Native),
            ("generic", XdpChoice::Generic),
        ];

        let spans: Vec<Range<usize>> = raw.lan.iter().map(|lan| lan.interface.span()).collect();
        let lans: Vec<Lan> = raw.lan.into_iter().map(|lan| self.lan(lan)).collect();
        let backbone = raw.backbone.map(|backbone| {
            (
                backbone.interface.span(),
                self.interface(backbone.interface),
            )
        });
        let named: Vec<[Range<usize>; 2]> = raw
            .breakout
            .iter()
            .map(|it| [it.name.span(), it.interface.span()])
            .collect();
        let breakouts: Vec<Breakout> = (1_u8..)
            .zip(raw.breakout)
            .map(|(id, breakout)| self.breakout(id, breakout))
            .collect();

        let mut raw_dns = raw.dns;
        let dns = self.dns(mode, &mut raw_dns);
        select.names = self.names(raw_dns, &breakouts);
        self.lans_are_distinct(&lans, &spans);
        self.breakouts_are_distinct(&breakouts, &named);
        self.feed_goes_via(&mut feed, via, &breakouts);
        self.roles_are_distinct(&lans, &breakouts, &named, backbone.as_ref());

        let health = self.health(raw.health, mode);
        let preferences = self.preferences(raw.preference, &breakouts, &health);

        Config {
            reload_on_change: raw.reload_on_change.unwrap_or(defaults::RELOAD_ON_CHANGE),
            mode,
            feed,
            select,
            lists: self.lists(raw.list),
            lans,
            backbone: backbone.map(|(_, interface)| interface),
            breakouts,
            preferences,
            mark: self.mark(raw.mark),
            redirect: RedirectConfig {
                xdp: self.one_of(raw.redirect.xdp, &xdp, defaults::XDP),
            },
            health,
            dns,
            metrics: self.metrics(raw.metrics),
            system: self.system(raw.system),
            written: Written::of(self.text()),
        }
    }

    fn selection(&mut self, raw: RawSelect, instance: Instance) -> Selection {
        let defaults = Selection::default_for(instance);
        let empty = [&raw.categories, &raw.service_areas]
            .into_iter()
            .flatten()
            .find(|list| list.get_ref().is_empty())
            .map(Spanned::span);
        let selection = Selection {
            categories: raw
                .categories
                .map_or(defaults.categories, |list| self.words(list.into_inner())),
            service_areas: raw
                .service_areas
                .map_or(defaults.service_areas, |list| self.words(list.into_inner())),
            exclude_sets: raw
                .exclude_sets
                .map_or(defaults.exclude_sets, |list| self.set_ids(list)),
            include: self.includes(raw.include),
            exclude: self.prefixes(raw.exclude),
            names: NameSelection::default(),
        };
        if let Some(span) = empty
            && selection.include.is_empty()
        {
            self.wrong(
                span,
                "nothing is selected: no set of Microsoft's and no prefix of your own",
                "name at least one, or leave the key out",
            );
        }
        selection
    }

    pub(super) fn set_ids(&mut self, numbers: Vec<Number>) -> BTreeSet<SetId> {
        let mut ids = BTreeSet::new();
        for number in numbers {
            match u16::try_from(*number.get_ref()) {
                Ok(id) if id != 0 => {
                    if !ids.insert(SetId(id)) {
                        self.wrong(
                            number.span(),
                            format!("set {id} is there twice"),
                            "write it once",
                        );
                    }
                }
                _ => self.wrong(
                    number.span(),
                    format!("{} is no set id", number.get_ref()),
                    "ids are 1 to 65535; `steer endpoints list` shows them",
                ),
            }
        }
        ids
    }

    fn includes(&mut self, raw: Vec<RawInclude>) -> Vec<OwnInclude> {
        let mut names = BTreeSet::new();
        let mut includes = Vec::with_capacity(raw.len());
        for raw in raw {
            let span = raw.name.span();
            let name = self.name(raw.name);
            if !names.insert(name.clone()) {
                self.wrong(
                    span,
                    format!("{name:?} names two includes"),
                    "give each its own name",
                );
            }
            includes.push(OwnInclude {
                prefixes: self.own_prefixes(raw.prefixes),
                category: raw
                    .category
                    .and_then(|word| self.parsed(&word, "write optimize, allow or default"))
                    .unwrap_or(defaults::OWN_CATEGORY),
                ..self.transport(name, raw.protocol, raw.ports)
            });
        }
        includes
    }

    fn transport(
        &mut self,
        name: String,
        protocol: Option<Text>,
        ports: Option<Text>,
    ) -> OwnInclude {
        let ports = match ports {
            None => Ports::all(),
            Some(text) => {
                let remedy = "write ports such as \"443\", \"80,443\" or \"3478-3481\"";
                let ports: Ports = self.parsed(&text, remedy).unwrap_or_else(Ports::all);
                if ports.is_empty() {
                    self.wrong(
                        text.span(),
                        "holds no port",
                        "name ports, or leave the key out for all",
                    );
                }
                ports
            }
        };
        let words = [
            ("any", (true, true)),
            ("tcp", (true, false)),
            ("udp", (false, true)),
        ];
        let (tcp, udp) = self.one_of(protocol, &words, (true, true));
        let only = |wanted: bool| {
            if wanted {
                ports.clone()
            } else {
                Ports::default()
            }
        };
        OwnInclude {
            name,
            prefixes: Vec::new(),
            names: Vec::new(),
            tcp: only(tcp),
            udp: only(udp),
            category: defaults::OWN_CATEGORY,
        }
    }

    fn own_prefixes(&mut self, raw: Spanned<Vec<Text>>) -> Vec<IpNet> {
        let span = raw.span();
        let raw = raw.into_inner();
        if raw.is_empty() {
            self.wrong(
                span,
                "holds no prefix",
                "name at least one, or remove this include",
            );
        }
        let spans: Vec<Range<usize>> = raw.iter().map(Spanned::span).collect();
        let prefixes = self.prefixes(raw);
        // With a mistake among them the lists differ in length, and that mistake is told already.
        for (prefix, span) in prefixes.iter().zip(spans) {
            let widest = if matches!(prefix, IpNet::V4(_)) {
                WIDEST_OWN.0
            } else {
                WIDEST_OWN.1
            };
            if prefix.prefix_len() < widest {
                self.wrong(
                    span,
                    format!("{prefix} is wider than /{widest}: steer breaks single services out, not the Internet"),
                    "name narrower prefixes; for everything else use a default route",
                );
            } else if let Some(kind) = never_steered(prefix) {
                self.wrong(
                    span,
                    format!("{prefix} holds {kind} addresses, which are never steered"),
                    "name public destinations",
                );
            }
        }
        prefixes
    }

    fn lan(&mut self, raw: RawLan) -> Lan {
        let source_spans: Vec<Range<usize>> = raw.sources.iter().map(Spanned::span).collect();
        let sources = self.prefixes(raw.sources);
        for (prefix, span) in sources.iter().zip(source_spans) {
            let odd = prefix.addr().is_multicast() || prefix.addr().is_loopback();
            if prefix.prefix_len() == 0 || odd {
                self.wrong(
                    span,
                    format!("{prefix} cannot be the clients of a LAN"),
                    "name the prefixes of the office's clients, or leave the key out for those the interface is connected to",
                );
            }
        }
        Lan {
            interface: self.interface(raw.interface),
            vlans: self.vlans(raw.vlans),
            sources,
            exclude_sources: self.prefixes(raw.exclude_sources),
            steer_queries: self.one_of(raw.queries, &[("steer", true), ("leave", false)], true),
            leave_queries_of: self.prefixes(raw.leave_queries_of),
        }
    }

    fn vlans(&mut self, raw: Vec<Spanned<NumberOrText>>) -> Vec<Vlan> {
        let mut vlans = Vec::with_capacity(raw.len());
        for item in raw {
            let span = item.span();
            match vlan(item.get_ref()) {
                None => self.wrong(
                    span,
                    "is no VLAN",
                    "write an id of 1 to 4094, or \"OUTER.INNER\" for QinQ",
                ),
                Some(vlan) if vlans.contains(&vlan) => {
                    self.wrong(span, format!("VLAN {vlan} is there twice"), "write it once");
                }
                Some(vlan) => vlans.push(vlan),
            }
        }
        vlans
    }

    fn breakout(&mut self, position: u8, raw: RawBreakout) -> Breakout {
        Breakout {
            id: self.path_id(raw.id, position),
            name: self.name(raw.name),
            interface: self.interface(raw.interface),
            gateway: raw.gateway.and_then(|text| self.gateway(&text)),
            gateway6: raw.gateway6.and_then(|text| self.gateway6(&text)),
            valid_sources: self.prefixes(raw.valid_sources),
            delegated: self.delegated(raw.delegated, raw.delegated_from),
            priority: self.within_100(raw.priority, defaults::PRIORITY),
            weight: self.within_100(raw.weight, defaults::WEIGHT),
            when_down: self.when_down(raw.when_down),
            probe_interval: raw.probe_interval.map(|text| self.probe_interval(&text)),
            resolvers: self.resolvers(raw.resolvers),
        }
    }

    fn delegated(&mut self, word: Option<Text>, from: Option<Spanned<Vec<Text>>>) -> Delegated {
        let off = self.one_of(word, &[("auto", false), ("off", true)], false);
        let Some(from) = from else {
            return if off { Delegated::Off } else { Delegated::Auto };
        };
        let span = from.span();
        let nowhere = from.get_ref().is_empty();
        let ranges = self.prefixes(from.into_inner());
        let reason = if off {
            "delegated is \"off\""
        } else if nowhere {
            "is empty"
        } else if ranges.iter().any(|it| it.addr().is_ipv4()) {
            "names an IPv4 prefix; only IPv6 prefixes are delegated"
        } else {
            return Delegated::From(ranges);
        };
        self.wrong(
            span,
            reason,
            "name the provider's IPv6 ranges, or leave the key out",
        );
        Delegated::Auto
    }

    fn path_id(&mut self, id: Option<Number>, position: u8) -> u8 {
        let Some(id) = id else { return position };
        if let Ok(value @ 1..=MAX_PATH_ID) = u8::try_from(*id.get_ref()) {
            return value;
        }
        let reason = format!("{} is no path id", id.get_ref());
        self.wrong(id.span(), reason, "write 1 to 15");
        position
    }

    fn gateway(&mut self, text: &Text) -> Option<Ipv4Addr> {
        let usable = |address: &Ipv4Addr| {
            !(address.is_unspecified()
                || address.is_multicast()
                || address.is_loopback()
                || address.is_broadcast())
        };
        let (reason, remedy) = match text.get_ref().parse() {
            Ok(IpAddr::V4(address)) if usable(&address) => return Some(address),
            Ok(IpAddr::V4(_)) => (
                "cannot be a next hop",
                "write the address of the provider's router",
            ),
            Ok(IpAddr::V6(_)) => ("is an IPv6 address", "write it as gateway6"),
            Err(_) => (
                "is not an IPv4 address",
                "write one such as \"192.0.2.1\", without a length",
            ),
        };
        self.wrong(
            text.span(),
            format!("{:?} {reason}", text.get_ref()),
            remedy,
        );
        None
    }

    fn gateway6(&mut self, text: &Text) -> Option<Ipv6Addr> {
        let usable = |address: &Ipv6Addr| {
            !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
        };
        let (reason, remedy) = match text.get_ref().parse() {
            Ok(IpAddr::V6(address)) if usable(&address) => return Some(address),
            Ok(IpAddr::V6(_)) => (
                "cannot be a next hop",
                "write the address of the provider's router",
            ),
            Ok(IpAddr::V4(_)) => ("is an IPv4 address", "write it as gateway"),
            Err(_) => (
                "is not an IPv6 address",
                "write one such as \"fe80::1\", without a length and a zone",
            ),
        };
        self.wrong(
            text.span(),
            format!("{:?} {reason}", text.get_ref()),
            remedy,
        );
        None
    }

    fn within_100(&mut self, number: Option<Number>, default: u8) -> u8 {
        let Some(number) = number else { return default };
        if let Ok(value @ 1..=100) = u8::try_from(*number.get_ref()) {
            return value;
        }
        let reason = format!("{} is out of range", number.get_ref());
        self.wrong(number.span(), reason, "write 1 to 100");
        default
    }

    fn mark(&mut self, raw: RawMark) -> MarkConfig {
        let owners = [("steer", Owner::Steer), ("external", Owner::External)];
        MarkConfig {
            bits: raw
                .mask
                .map_or(MarkBits::DEFAULT, |mask| self.mark_bits(&mask)),
            order: self.one_of(
                raw.order,
                &[("last", Order::Last), ("first", Order::First)],
                Order::Last,
            ),
            watch_period: raw
                .watch_period
                .map_or(defaults::WATCH_PERIOD, |text| self.duration(&text)),
            routes: self.one_of(raw.routes, &owners, defaults::OWNER),
            nat: self.one_of(raw.nat, &owners, defaults::OWNER),
            route_tables: raw
                .route_tables
                .map_or(defaults::ROUTE_TABLES.into(), |list| {
                    self.route_tables(list)
                }),
        }
    }

    fn mark_bits(&mut self, mask: &Number) -> MarkBits {
        let bits = u32::try_from(*mask.get_ref())
            .ok()
            .and_then(MarkBits::of_mask);
        bits.unwrap_or_else(|| {
            self.wrong(
                mask.span(),
                format!("the mask {:#x} is not six bits next to each other", mask.get_ref()),
                format!(
                    "write {:#010x} moved to bits that nobody else uses, such as 0x003f0000 or 0xfc000000, or leave the key out",
                    MarkBits::DEFAULT.mask()
                ),
            );
            MarkBits::DEFAULT
        })
    }

    fn duration(&mut self, text: &Text) -> Duration {
        match text.get_ref().parse::<humantime::Duration>() {
            Ok(period) if *period <= MAX_WATCH_PERIOD => *period,
            Ok(_) => {
                self.wrong(
                    text.span(),
                    "is longer than an hour",
                    "130s covers the longest UDP timeout of conntrack",
                );
                defaults::WATCH_PERIOD
            }
            Err(error) => {
                self.wrong(
                    text.span(),
                    format!("{:?} is no duration: {error}", text.get_ref()),
                    "write one such as \"130s\" or \"2m 10s\"",
                );
                defaults::WATCH_PERIOD
            }
        }
    }

    fn route_tables(&mut self, list: Spanned<Vec<Spanned<NumberOrText>>>) -> Vec<u32> {
        if list.get_ref().is_empty() {
            self.wrong(
                list.span(),
                "names no table",
                "write [\"main\"]: without it no more specific route would win",
            );
        }
        let mut tables = Vec::new();
        for item in list.into_inner() {
            let table = match item.get_ref() {
                NumberOrText::Text(text) if text == "main" => Some(MAIN),
                NumberOrText::Text(text) => text.parse().ok(),
                NumberOrText::Number(number) => u32::try_from(*number).ok(),
            };
            match table {
                None | Some(0 | 255) => {
                    self.wrong(
                        item.span(),
                        "is no routing table",
                        "write \"main\" or a number of 1 to 4294967295 except 255 (local)",
                    );
                }
                Some(table) if OWN_TABLES.contains(&table) => {
                    self.wrong(
                        item.span(),
                        format!("table {table} is steer's own"),
                        "name the tables of other software",
                    );
                }
                Some(table) if tables.contains(&table) => {
                    self.wrong(
                        item.span(),
                        format!("table {table} is there twice"),
                        "write it once",
                    );
                }
                Some(table) => tables.push(table),
            }
        }
        tables
    }

    fn metrics(&mut self, raw: RawMetrics) -> MetricsConfig {
        let allow_remote = raw.allow_remote.unwrap_or(false);
        let listen = raw.listen.and_then(|text| {
            let remedy = "write an address and a port, such as \"127.0.0.1:9365\" or \"[::1]:9365\"";
            let listen: SocketAddr = self.parsed(&text, remedy)?;
            if listen.port() == 0 {
                self.wrong(text.span(), "port 0 would be another one each time", remedy);
            } else if !listen.ip().is_loopback() && !allow_remote {
                self.wrong(
                    text.span(),
                    format!("{} is no loopback address: everyone who reaches it could read the metrics", listen.ip()),
                    "listen on 127.0.0.1 or [::1], or add allow_remote = true and let the firewall decide who may ask",
                );
            }
            Some(listen)
        });
        MetricsConfig { listen }
    }

    fn system(&mut self, raw: RawSystem) -> SystemConfig {
        SystemConfig {
            pin_dir: self.folder(raw.pin_dir, defaults::PIN_DIR),
            state_dir: self.folder(raw.state_dir, defaults::STATE_DIR),
            run_dir: self.folder(raw.run_dir, defaults::RUN_DIR),
        }
    }

    fn lans_are_distinct(&mut self, lans: &[Lan], spans: &[Range<usize>]) {
        if lans.is_empty() {
            let remedy = "add [[lan]] with interface = \"NAME\": only its clients are steered";
            self.missing("there is no [[lan]]", remedy);
        }
        for (index, (lan, span)) in lans.iter().zip(spans).enumerate() {
            if lans[..index]
                .iter()
                .any(|other| other.interface == lan.interface)
            {
                let reason = format!("{} is in two [[lan]] sections", lan.interface);
                self.wrong(
                    span.clone(),
                    reason,
                    "merge their vlans and sources into one",
                );
            }
        }
    }

    fn breakouts_are_distinct(&mut self, breakouts: &[Breakout], named: &[[Range<usize>; 2]]) {
        if breakouts.is_empty() {
            let remedy =
                "add [[breakout]] with name and interface of the office's own Internet link";
            self.missing("there is no [[breakout]]", remedy);
        }
        for (index, (breakout, [name, interface])) in breakouts.iter().zip(named).enumerate() {
            let earlier = &breakouts[..index];
            if index == MAX_BREAKOUTS {
                let reason = format!("is breakout {} of at most {MAX_BREAKOUTS}", index + 1);
                self.wrong(name.clone(), reason, "remove the ones you need least");
            }
            if earlier.iter().any(|other| other.name == breakout.name) {
                let reason = format!("{:?} names two breakouts", breakout.name);
                self.wrong(name.clone(), reason, "give each its own name");
            }
            if let Some(other) = earlier.iter().find(|other| other.id == breakout.id) {
                let reason = format!(
                    "{:?} and {:?} have path id {}",
                    other.name, breakout.name, breakout.id
                );
                self.wrong(
                    name.clone(),
                    reason,
                    "write an `id` of its own into each; without one, the position in the file counts",
                );
            }
            if earlier
                .iter()
                .any(|other| other.interface == breakout.interface)
            {
                let reason = format!("{} is the interface of two breakouts", breakout.interface);
                self.wrong(
                    interface.clone(),
                    reason,
                    "a breakout is an interface of its own: use one VLAN or link for each",
                );
            }
        }
    }

    fn roles_are_distinct(
        &mut self,
        lans: &[Lan],
        breakouts: &[Breakout],
        named: &[[Range<usize>; 2]],
        backbone: Option<&(Range<usize>, InterfaceName)>,
    ) {
        for (breakout, [_, span]) in breakouts.iter().zip(named) {
            if lans.iter().any(|lan| lan.interface == breakout.interface) {
                let reason = format!("{} is a LAN and a breakout", breakout.interface);
                self.wrong(
                    span.clone(),
                    reason,
                    "a breakout leads to the Internet, a LAN to clients: name the right interface",
                );
            }
        }
        let Some((span, interface)) = backbone else {
            return;
        };
        if breakouts
            .iter()
            .any(|breakout| breakout.interface == *interface)
        {
            let reason = format!("{interface} is the backbone and a breakout");
            self.wrong(
                span.clone(),
                reason,
                "name the interface that leads to the headquarters, or leave [backbone] out",
            );
        }
    }

    fn interface(&mut self, text: Text) -> InterfaceName {
        text.get_ref().parse().unwrap_or_else(|reason| {
            let remedy = "write the name that `ip link` shows";
            self.wrong(
                text.span(),
                format!("{:?} {reason}", text.get_ref()),
                remedy,
            );
            InterfaceName::refused(text.into_inner())
        })
    }
}

fn vlan(raw: &NumberOrText) -> Option<Vlan> {
    let id = |id: u16| (1..=4094).contains(&id).then_some(id);
    match raw {
        NumberOrText::Number(number) => Some(Vlan::Single(id(u16::try_from(*number).ok()?)?)),
        NumberOrText::Text(text) => {
            let (outer, inner) = text.split_once('.')?;
            Some(Vlan::Stacked(
                id(outer.parse().ok()?)?,
                id(inner.parse().ok()?)?,
            ))
        }
    }
}
