//! Which sample says what of the status.

use std::{collections::BTreeMap, fmt, time::Duration};

use prometheus_client::{
    collector::Collector, encoding::DescriptorEncoder, metrics::MetricType, registry::Unit,
};

use crate::{
    api::{
        BreakoutStatus, BypassStatus, DeadManBreakout, DeadManStatus, DnsStatus, LanStatus,
        NftStatus, PathHealth, PlanStatus, PreferenceStatus, ProbeStatus, ResolverStatus, Status,
        SteeringState, TcpQueryStatus,
    },
    endpoints::{ListReport, Report},
};

type Labels = Vec<(&'static str, String)>;

impl Collector for Status {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Every field by name: a new one has to be thought of here.
        let Self {
            state,
            mode,
            version,
            pid: _,
            started,
            watching_for,
            feed,
            lists,
            plan,
            lan,
            breakouts,
            preferences,
            counters: _,
            reasons,
            nftables,
            dead_man,
            dns,
            problems,
        } = self;
        let mut out = Families(encoder);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        out.info(
            "controller",
            "The controller that answers",
            &vec![("version", version.clone()), ("mode", text(mode))],
        )?;
        if let Some(started) = started {
            out.gauge(
                "controller_start_time",
                "When the controller started, in Unix time; each change is a restart",
                Some(&Unit::Seconds),
                [(vec![], *started)],
            )?;
        }
        out.gauge(
            "state",
            "1 for the state that steering is in",
            None,
            STATES.map(|(name, which)| {
                (vec![("state", name.to_owned())], u64::from(which == *state))
            }),
        )?;
        out.gauge(
            "watching",
            "How long the watch period lasts still",
            Some(&Unit::Seconds),
            [(vec![], watching_for.unwrap_or(0))],
        )?;
        out.gauge(
            "problems",
            "How many notes `steer status` has for the operator",
            None,
            [(vec![], problems.len() as u64)],
        )?;
        if let Some(feed) = feed {
            let labels = vec![
                ("source", feed.source.clone()),
                ("instance", feed.instance.clone()),
                ("version", text(&feed.version)),
            ];
            out.info("feed", "Where the endpoint list comes from", &labels)?;
            out.gauge(
                "feed_sets",
                "Endpoint sets in the list",
                None,
                [(vec![], feed.sets as u64)],
            )?;
            if let Some(update) = &feed.update {
                out.update(update)?;
            }
        }
        if !lists.is_empty() {
            out.lists(lists)?;
        }
        if let Some(plan) = plan {
            out.plan(*plan)?;
        }
        out.lan(lan)?;
        out.breakouts(breakouts)?;
        out.preferences(preferences, breakouts)?;
        out.traffic(self)?;
        out.counter(
            "passed",
            "Packets that might have been steered and were not, by reason",
            Some(&packets()),
            reasons
                .iter()
                .map(|(reason, packets)| (vec![("reason", reason.clone())], *packets)),
        )?;
        if let Some(nft) = nftables {
            out.nftables(nft)?;
        }
        dead_man.as_ref().map_or(Ok(()), |it| out.dead_man(it))?;
        dns.as_ref().map_or(Ok(()), |it| out.dns(it))
    }
}

const STATES: [(&str, SteeringState); 5] = [
    ("off", SteeringState::Off),
    ("watching", SteeringState::Watching),
    ("steering", SteeringState::Steering),
    ("draining", SteeringState::Draining),
    ("unattended", SteeringState::Unattended),
];

fn packets() -> Unit {
    Unit::Other("packets".into())
}

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn plan(&mut self, plan: PlanStatus) -> fmt::Result {
        let PlanStatus {
            generation,
            sets,
            prefixes,
        } = plan;
        for (name, help, value) in [
            (
                "plan_generation",
                "The number of the active plan",
                generation,
            ),
            ("plan_sets", "Endpoint sets that are steered", sets as u64),
            (
                "plan_prefixes",
                "Prefixes that are steered",
                prefixes as u64,
            ),
        ] {
            self.gauge(name, help, None, [(vec![], value)])?;
        }
        Ok(())
    }

    fn update(&mut self, update: &Report) -> fmt::Result {
        let Report {
            policy: _,
            version: _,
            fetched: _,
            age,
            checked,
            failures,
            error: _,
            errors,
            waiting,
            reasons: _,
            pinned,
            leaving,
            changes,
        } = update;
        let (seconds, one) = (Some(Unit::Seconds), |value: u64| [(vec![], value)]);
        if let Some(age) = age {
            self.gauge(
                "feed_age",
                "How old the endpoint list in use is",
                seconds.as_ref(),
                one(*age),
            )?;
        }
        if let Some(checked) = checked {
            let help = "When the service was last asked with success, in Unix time";
            self.gauge("feed_checked", help, seconds.as_ref(), one(*checked))?;
        }
        for (name, help, value) in [
            (
                "feed_failures",
                "Looks at the service that failed in a row",
                *failures,
            ),
            (
                "feed_held",
                "1 while a newer list is held back",
                waiting.is_some().into(),
            ),
            (
                "feed_pinned",
                "1 while an operator holds the list in use",
                pinned.is_some().into(),
            ),
            (
                "feed_leaving",
                "Entries that are gone from the list and steered still",
                *leaving as u64,
            ),
        ] {
            self.gauge(name, help, None, one(value))?;
        }
        self.counter(
            "feed_changes",
            "Entries of the list's journal",
            None,
            one(*changes),
        )?;
        self.counter(
            "feed_errors",
            "Looks at the service that failed, by kind",
            None,
            errors
                .iter()
                .map(|(kind, count)| (vec![("kind", kind.clone())], *count)),
        )
    }

    fn lists(&mut self, lists: &[ListReport]) -> fmt::Result {
        let of = |value: fn(&ListReport) -> Option<u64>| {
            let sample = move |it: &ListReport| Some((vec![("list", it.name.clone())], value(it)?));
            lists.iter().filter_map(sample)
        };
        self.gauge(
            "list_age",
            "How long ago a list that comes from a URL was fetched",
            Some(&Unit::Seconds),
            of(|it| it.age),
        )?;
        self.gauge(
            "list_entries",
            "Prefixes and names of a list that comes from a URL",
            None,
            of(|it| Some(it.entries as u64)),
        )?;
        self.gauge(
            "list_failures",
            "Looks for a list that failed in a row",
            None,
            of(|it| Some(it.failures)),
        )?;
        let errors = lists.iter().flat_map(|it| {
            it.errors.iter().map(|(kind, count)| {
                let labels = vec![("list", it.name.clone()), ("kind", kind.clone())];
                (labels, *count)
            })
        });
        self.counter(
            "list_errors",
            "Looks for a list that failed, by kind",
            None,
            errors,
        )
    }

    fn lan(&mut self, lan: &[LanStatus]) -> fmt::Result {
        let labels = |it: &LanStatus| {
            vec![
                ("interface", it.interface.clone()),
                ("hook", it.hook.clone()),
            ]
        };
        self.gauge(
            "lan_attached",
            "1 for each interface where packets are classified",
            None,
            lan.iter().map(|it| (labels(it), 1)),
        )?;
        self.gauge(
            "lan_verified_instructions",
            "Instructions that the kernel's verifier looked at",
            None,
            lan.iter()
                .filter_map(|it| Some((labels(it), it.verified_instructions?.into()))),
        )
    }

    fn breakouts(&mut self, breakouts: &[BreakoutStatus]) -> fmt::Result {
        let named = |it: &BreakoutStatus| {
            vec![
                ("id", it.id.to_string()),
                ("breakout", it.name.clone()),
                ("interface", it.interface.clone()),
            ]
        };
        let is = |state| move |it: &BreakoutStatus| u64::from(it.state == state);
        self.gauge(
            "breakout_up",
            "Whether the breakout is up; `steer status` says why not",
            None,
            breakouts
                .iter()
                .map(|it| (named(it), is(PathHealth::Up)(it))),
        )?;
        self.gauge(
            "breakout_degraded",
            "Whether the breakout carries packets, but badly",
            None,
            breakouts
                .iter()
                .map(|it| (named(it), is(PathHealth::Degraded)(it))),
        )?;
        self.gauge(
            "breakout_family_up",
            "Whether new flows of a family (IPv4, IPv6) take the breakout, well or badly",
            None,
            breakouts.iter().flat_map(|it| {
                it.families.iter().map(move |family| {
                    let mut labels = named(it);
                    labels.push(("family", family.family.clone()));
                    (labels, u64::from(family.state != PathHealth::Down))
                })
            }),
        )?;
        self.gauge(
            "breakout_delegated_prefixes",
            "IPv6 prefixes that the breakout's provider delegated and that leave untranslated",
            None,
            breakouts
                .iter()
                .map(|it| (named(it), it.delegated.len() as u64)),
        )?;
        self.counter(
            "reset",
            "Flows that were reset because their breakout went down",
            Some(&Unit::Other("flows".into())),
            breakouts.iter().map(|it| (named(it), it.flows_reset)),
        )?;
        self.probes(breakouts)
    }

    fn preferences(
        &mut self,
        preferences: &[PreferenceStatus],
        breakouts: &[BreakoutStatus],
    ) -> fmt::Result {
        self.gauge(
            "preference_classes",
            "Classes of the plan that have the preference",
            None,
            preferences
                .iter()
                .map(|it| (vec![("preference", it.name.clone())], it.classes as u64)),
        )?;
        let taken = preferences.iter().flat_map(|preference| {
            let families = [("IPv4", &preference.ipv4), ("IPv6", &preference.ipv6)];
            families.into_iter().flat_map(move |(family, taken)| {
                breakouts.iter().map(move |breakout| {
                    let labels = vec![
                        ("preference", preference.name.clone()),
                        ("family", family.to_owned()),
                        ("breakout", breakout.name.clone()),
                    ];
                    (labels, u64::from(taken.contains(&breakout.name)))
                })
            })
        });
        self.gauge(
            "preference_takes",
            "Whether new flows of the preference's classes take the breakout now; the backbone if none",
            None,
            taken,
        )
    }

    fn probes(&mut self, breakouts: &[BreakoutStatus]) -> fmt::Result {
        let labeled = |breakout: &BreakoutStatus, probe: &ProbeStatus| {
            vec![
                ("breakout", breakout.name.clone()),
                ("kind", probe.kind.clone()),
                ("target", probe.target.clone()),
            ]
        };
        let all = || {
            breakouts.iter().flat_map(move |it| {
                let shared = it
                    .probes
                    .iter()
                    .map(move |probe| (labeled(it, probe), probe));
                let own = it.preferences.iter().flat_map(move |preference| {
                    preference.probes.iter().map(move |probe| {
                        let mut labels = labeled(it, probe);
                        labels.push(("preference", preference.preference.clone()));
                        (labels, probe)
                    })
                });
                shared.chain(own)
            })
        };
        self.fractions(
            "probe_rtt",
            "The smoothed time to a target's answer",
            Some(&Unit::Seconds),
            all().filter_map(|(labels, it)| Some((labels, it.rtt_ms? / 1000.0))),
        )?;
        self.fractions(
            "probe_jitter",
            "The smoothed deviation from that time",
            Some(&Unit::Seconds),
            all().filter_map(|(labels, it)| Some((labels, it.jitter_ms? / 1000.0))),
        )?;
        self.fractions(
            "probe_loss_ratio",
            "The share of the latest probes without an answer",
            None,
            all().map(|(labels, it)| (labels, it.loss)),
        )?;
        self.counter(
            "answered",
            "Probes that were answered",
            Some(&Unit::Other("probes".into())),
            all().map(|(labels, it)| (labels, it.answered)),
        )?;
        self.counter(
            "lost",
            "Probes that got no answer, or a wrong one",
            Some(&Unit::Other("probes".into())),
            all().map(|(labels, it)| (labels, it.lost)),
        )
    }

    fn traffic(&mut self, status: &Status) -> fmt::Result {
        // Breakouts that the configuration names no more have no name: their counts become one.
        let mut traffic = BTreeMap::<Labels, (u64, u64)>::new();
        for it in &status.counters {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let labels = vec![
                ("list", it.list.clone()),
                ("set", it.set.to_string()),
                ("category", text(&it.category)),
                ("service_area", text(&it.service_area)),
                ("breakout", text(&it.path)),
            ];
            let sum = traffic.entry(labels).or_default();
            *sum = (sum.0 + it.packets, sum.1 + it.bytes);
        }
        self.counter(
            "traffic",
            "Packets that matched a set, by the breakout they were meant for; none while no path was up",
            Some(&packets()),
            traffic.iter().map(|(labels, sum)| (labels.clone(), sum.0)),
        )?;
        self.counter(
            "traffic",
            "The same in bytes, from the IP header on",
            Some(&Unit::Bytes),
            traffic.iter().map(|(labels, sum)| (labels.clone(), sum.1)),
        )
    }

    fn nftables(&mut self, nft: &NftStatus) -> fmt::Result {
        let NftStatus {
            granted,
            refused,
            rewish,
            guard,
        } = nft;
        self.counter(
            "granted",
            "Flows that left by the breakout",
            Some(&Unit::Other("flows".into())),
            granted
                .iter()
                .map(|(path, flows)| (vec![("breakout", path.clone())], *flows)),
        )?;
        for (name, help, value) in [
            (
                "refused",
                "Packets of flows that began elsewhere and stayed there",
                refused,
            ),
            (
                "rewish",
                "Packets of unanswered flows that followed their wish to another path",
                rewish,
            ),
            (
                "guard",
                "Packets stopped because their source was not valid on the breakout",
                guard,
            ),
        ] {
            self.counter(name, help, Some(&packets()), [(vec![], *value)])?;
        }
        Ok(())
    }

    fn dead_man(&mut self, dead_man: &DeadManStatus) -> fmt::Result {
        let breakouts = || {
            let labels = |it: &DeadManBreakout| vec![("breakout", it.breakout.clone())];
            dead_man.breakouts.iter().map(move |it| (labels(it), it))
        };
        self.gauge(
            "dead_man_hears",
            "Whether answers by the breakout are heard, so that it can be judged without a controller",
            None,
            breakouts().map(|(labels, it)| (labels, it.heard.into())),
        )?;
        self.counter(
            "dead_man_openings",
            "How often the kernel took a family of the breakout for down while no controller ran",
            None,
            breakouts().flat_map(|(labels, it)| {
                it.families.iter().map(move |family| {
                    let mut labels = labels.clone();
                    labels.push(("family", family.family.clone()));
                    (labels, family.openings.into())
                })
            }),
        )
    }

    fn tcp_queries(&mut self, tcp: Option<&TcpQueryStatus>) -> fmt::Result {
        let tcp_queries = tcp.iter().flat_map(|it| {
            [
                ("near", it.near),
                ("fell-back", it.fell_back),
                ("passed", it.passed),
            ]
            .map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count))
        });
        self.counter(
            "dns_tcp_queries",
            "What became of queries over TCP",
            None,
            tcp_queries,
        )?;
        self.counter(
            "dns_tcp_learned_addresses",
            "Addresses that answers over TCP taught",
            None,
            tcp.iter().map(|it| (vec![], it.learned)),
        )?;
        let connections = tcp.iter().flat_map(|it| {
            [
                ("read", it.connections - it.turned_away),
                ("turned-away", it.turned_away),
            ]
            .map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count))
        });
        self.counter(
            "dns_tcp_connections",
            "Connections of clients with queries",
            None,
            connections,
        )
    }

    fn bypass(&mut self, bypass: Option<&BypassStatus>) -> fmt::Result {
        let clients = bypass.iter().flat_map(|it| {
            [("tls", it.tls), ("https", it.https)]
                .map(|(over, clients)| (vec![("over", over.to_owned())], clients as u64))
        });
        self.gauge(
            "dns_bypass_clients",
            "Clients that ask resolvers past the office's, so that their queries cannot be steered",
            None,
            clients,
        )
    }

    fn dns(&mut self, dns: &DnsStatus) -> fmt::Result {
        let DnsStatus {
            names,
            learned,
            resolvers,
            events,
            tcp,
            bypass,
        } = dns;
        for (name, help, value) in [
            (
                "dns_names",
                "Names and patterns whose queries are steered",
                *names,
            ),
            (
                "dns_learned_addresses",
                "Addresses that answers taught and that are not forgotten yet",
                *learned,
            ),
        ] {
            self.gauge(name, help, None, [(vec![], value as u64)])?;
        }
        let events = events
            .iter()
            .map(|(event, count)| (vec![("event", event.clone())], *count));
        self.counter(
            "dns_events",
            "What became of queries and answers",
            None,
            events,
        )?;
        self.tcp_queries(tcp.as_ref())?;
        self.bypass(bypass.as_ref())?;
        let resolvers = || {
            let labels = |it: &ResolverStatus| {
                let (breakout, address) = (it.breakout.clone(), it.address.clone());
                vec![("breakout", breakout), ("resolver", address)]
            };
            resolvers.iter().map(move |it| (labels(it), it))
        };
        for (name, help, value) in [
            (
                "resolver_active",
                "Whether queries go to the resolver",
                (|it| it.active.into()) as fn(&ResolverStatus) -> u64,
            ),
            (
                "resolver_dead",
                "Whether the resolver left queries unanswered and is only tried",
                |it| it.dead.into(),
            ),
        ] {
            let samples = resolvers().map(|(labels, it)| (labels, value(it)));
            self.gauge(name, help, None, samples)?;
        }
        for (name, help, value) in [
            (
                "resolver_queries",
                "Queries sent to the resolver",
                (|it| it.queries) as fn(&ResolverStatus) -> u64,
            ),
            ("resolver_answers", "Answers of the resolver", |it| {
                it.answers
            }),
            (
                "resolver_failures",
                "Answers of the resolver that say SERVFAIL, REFUSED or the like",
                |it| it.failures,
            ),
        ] {
            let samples = resolvers().map(|(labels, it)| (labels, value(it)));
            self.counter(name, help, None, samples)?;
        }
        let mean = |it: &ResolverStatus| {
            it.mean_us
                .map(|mean| Duration::from_micros(mean).as_secs_f64())
        };
        self.fractions(
            "resolver_mean",
            "The mean time to the resolver's answers",
            Some(&Unit::Seconds),
            resolvers().filter_map(|(labels, it)| Some((labels, mean(it)?))),
        )
    }

    fn info(&mut self, name: &str, help: &str, labels: &Labels) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        family.encode_info(labels)
    }

    fn fractions(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            // An empty pair of braces would be right, but odd.
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_counter::<Labels, u64, u64>(&value, None)?;
            } else {
                family
                    .encode_family(&labels)?
                    .encode_counter::<Labels, u64, u64>(&value, None)?;
            }
        }
        Ok(())
    }
}
