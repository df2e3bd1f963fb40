//! What [`Status`] knows as OpenMetrics over HTTP, for a monitoring system. Read-only, and off unless
//! the configuration names an address.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::Instant,
};

use super::{
    BreakoutStatus, BypassStatus, Command, DeadManBreakout, DeadManStatus, DnsStatus, LanStatus,
    NftStatus, PathHealth, PlanStatus, PreferenceStatus, ProbeStatus, ResolverStatus, Status,
    SteeringState, TcpQueryStatus, server::ask,
};
use crate::endpoints::{ListReport, Report};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Whoever asks more often gets the same answer: the control loop has better things to do.
const FRESH: Duration = Duration::from_secs(1);

/// The server, which may be off.
#[derive(Debug)]
pub struct Metrics {
    commands: mpsc::Sender<Command>,
    listening: Option<(SocketAddr, JoinHandle<()>)>,
}

impl Metrics {
    /// Off, at first.
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self {
            commands,
            listening: None,
        }
    }

    /// Where it answers.
    pub fn listening(&self) -> Option<SocketAddr> {
        let (address, task) = self.listening.as_ref()?;
        (!task.is_finished()).then_some(*address)
    }

    /// Answers at `wanted` from now on, or nowhere. Fails when the address cannot be had; then it
    /// answers nowhere.
    pub async fn listen(&mut self, wanted: Option<SocketAddr>) -> io::Result<()> {
        if self.listening() == wanted {
            return Ok(());
        }
        if let Some((_, old)) = self.listening.take() {
            old.abort();
            // It was cancelled: the address is free again.
            let _ = old.await;
        }
        let Some(address) = wanted else { return Ok(()) };
        let listener = TcpListener::bind(address).await?;
        let scrapes = Arc::new(Scrapes {
            commands: self.commands.clone(),
            last: Mutex::new(None),
        });
        let router = Router::new()
            .route("/metrics", get(scrape))
            .with_state(scrapes);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!("metrics on {address}: {error}");
            }
        });
        self.listening = Some((address, task));
        Ok(())
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.listening {
            task.abort();
        }
    }
}

struct Scrapes {
    commands: mpsc::Sender<Command>,
    last: Mutex<Option<(Instant, String)>>,
}

async fn scrape(State(scrapes): State<Arc<Scrapes>>) -> Response {
    let mut last = scrapes.last.lock().await;
    let text = match &*last {
        Some((when, text)) if when.elapsed() < FRESH => text.clone(),
        _ => {
            let Some(status) = ask(&scrapes.commands, Command::Status).await else {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            };
            let Ok(text) = open_metrics(status) else {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            };
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

/// The text of a scrape.
pub fn open_metrics(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("steer");
    registry.register_collector(Box::new(status));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::{ClassCounter, DeadManFamily, FamilyStatus, FeedStatus, PreferenceHealth};

    fn queries() -> DnsStatus {
        DnsStatus {
            names: 13,
            learned: 14,
            resolvers: vec![ResolverStatus {
                breakout: "fiber".into(),
                address: "192.0.2.53".into(),
                origin: "the configuration".into(),
                active: true,
                dead: false,
                queries: 15,
                answers: 16,
                failures: 17,
                unanswered: 18,
                mean_us: Some(1500),
            }],
            events: [("rewritten".to_owned(), 19)].into(),
            tcp: Some(TcpQueryStatus {
                connections: 30,
                near: 31,
                fell_back: 32,
                passed: 33,
                turned_away: 4,
                learned: 35,
            }),
            bypass: Some(BypassStatus {
                tls: 20,
                https: 21,
                resolvers: vec![],
            }),
        }
    }

    fn a_list() -> ListReport {
        ListReport {
            name: "saas".into(),
            url: "https://lists.example.com/saas.toml".into(),
            services: 2,
            entries: 3,
            age: Some(90),
            failures: 1,
            errors: BTreeMap::from([("held".into(), 4)]),
            ..ListReport::default()
        }
    }

    fn a_probe(answered: u64) -> ProbeStatus {
        ProbeStatus {
            target: "13.107.6.152:443".into(),
            kind: "tls".into(),
            name: None,
            rtt_ms: Some(8.5),
            jitter_ms: Some(0.25),
            loss: 0.25,
            answered,
            lost: 4,
            trouble: None,
        }
    }

    fn a_dead_man() -> DeadManBreakout {
        DeadManBreakout {
            breakout: "fiber".into(),
            heard: true,
            hook: None,
            verified_instructions: None,
            families: vec![DeadManFamily {
                family: "IPv6".into(),
                down: false,
                openings: 12,
            }],
        }
    }

    /// A status in which every field says something.
    fn full() -> Status {
        let counter = |path: Option<&str>, packets| ClassCounter {
            list: "microsoft".into(),
            set: 11,
            category: Some("Optimize".into()),
            service_area: Some("Skype".into()),
            path: path.map(str::to_owned),
            packets,
            bytes: packets * 100,
        };
        Status {
            state: SteeringState::Watching,
            mode: Some("mark".into()),
            version: "1.2.3".into(),
            pid: Some(7),
            started: Some(1_700_000_000),
            watching_for: Some(42),
            feed: Some(FeedStatus {
                source: "a \"file\"\\\n".into(),
                instance: "Worldwide".into(),
                version: Some("2026".into()),
                sets: 5,
                update: Some(Report {
                    age: Some(60),
                    checked: Some(1_700_000_000),
                    errors: BTreeMap::from([("timeout".into(), 2)]),
                    changes: 9,
                    ..Report::default()
                }),
            }),
            lists: vec![a_list()],
            plan: Some(PlanStatus {
                generation: 3,
                sets: 4,
                prefixes: 50,
            }),
            lan: vec![LanStatus {
                interface: "lan0".into(),
                hook: "TCX".into(),
                verified_instructions: Some(9000),
            }],
            breakouts: vec![BreakoutStatus {
                id: 1,
                name: "fiber".into(),
                interface: "brk0".into(),
                state: PathHealth::Up,
                reason: None,
                notes: vec![],
                families: [("IPv4", PathHealth::Up), ("IPv6", PathHealth::Down)]
                    .map(|(family, state)| FamilyStatus {
                        family: family.into(),
                        state,
                        reason: None,
                        takes_new_flows: state == PathHealth::Up,
                    })
                    .into(),
                delegated: vec!["2001:db8:7::/56".into()],
                gateway: None,
                gateway6: None,
                probes: vec![a_probe(12)],
                preferences: vec![PreferenceHealth {
                    preference: "updates".into(),
                    state: PathHealth::Up,
                    reason: None,
                    probes: vec![a_probe(34)],
                }],
                flows_reset: 7,
            }],
            preferences: vec![PreferenceStatus {
                name: "updates".into(),
                classes: 6,
                ipv4: vec!["fiber".into()],
                ipv6: vec![],
            }],
            counters: vec![
                counter(Some("fiber"), u64::MAX / 1000),
                counter(None, 2),
                counter(None, 3),
            ],
            reasons: [("fragment".to_owned(), 6)].into(),
            nftables: Some(NftStatus {
                granted: [("fiber".to_owned(), 8)].into(),
                refused: 9,
                rewish: 10,
                guard: 11,
            }),
            dead_man: Some(DeadManStatus {
                acts: false,
                breakouts: vec![a_dead_man()],
            }),
            dns: Some(queries()),
            problems: vec!["one".into(), "two".into()],
        }
    }

    /// Samples by name and labels as written, after checking what OpenMetrics demands.
    fn parse(text: &str) -> BTreeMap<String, String> {
        let (lines, end) = text.split_at(text.len() - "# EOF\n".len());
        assert_eq!(end, "# EOF\n");
        let mut samples = BTreeMap::new();
        let (mut family, mut kind, mut seen) = ("", "", BTreeSet::new());
        for line in lines.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", name, help] => {
                    assert!(seen.insert(name), "{name} twice");
                    assert!(!help.is_empty(), "{line}");
                    family = name;
                }
                ["#", "TYPE", name, of] => {
                    assert_eq!(name, family);
                    kind = of;
                }
                ["#", "UNIT", name, unit] => {
                    assert!(
                        name == family && name.ends_with(&format!("_{unit}")),
                        "{line}"
                    );
                }
                _ => {
                    let (name, value) = line.rsplit_once(' ').unwrap();
                    let suffix = match kind {
                        "counter" => "_total",
                        "info" => "_info",
                        _ => "",
                    };
                    let bare = name.split('{').next().unwrap();
                    assert_eq!(bare, format!("{family}{suffix}"), "{line}");
                    let double = samples.insert(name.to_owned(), value.to_owned());
                    assert_eq!(double, None, "{name} twice");
                }
            }
        }
        samples
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_number_of_the_status_is_a_sample() {
        let samples = parse(&open_metrics(full()).unwrap());
        let set = |breakout| {
            format!(
                "{{list=\"microsoft\",set=\"11\",category=\"Optimize\",service_area=\"Skype\",breakout=\"{breakout}\"}}"
            )
        };
        let most = u64::MAX / 1000;
        let probed = |preference: &str, answered: &str| {
            let labels =
                format!(r#"{{breakout="fiber",kind="tls",target="13.107.6.152:443"{preference}}}"#);
            [
                ("probe_rtt_seconds", "0.0085"),
                ("probe_jitter_seconds", "0.00025"),
                ("probe_loss_ratio", "0.25"),
                ("answered_probes_total", answered),
                ("lost_probes_total", "4"),
            ]
            .map(|(what, value)| (format!("steer_{what}{labels}"), value.to_owned()))
        };
        let probed = probed("", "12")
            .into_iter()
            .chain(probed(r#",preference="updates""#, "34"));
        let asked = [
            ("active", "1"),
            ("dead", "0"),
            ("queries_total", "15"),
            ("answers_total", "16"),
            ("failures_total", "17"),
            ("mean_seconds", "0.0015"),
        ]
        .map(|(what, value)| {
            let labels = r#"{breakout="fiber",resolver="192.0.2.53"}"#;
            (format!("steer_resolver_{what}{labels}"), value.to_owned())
        });
        let expected: BTreeMap<String, String> = [
            (r#"steer_preference_classes{preference="updates"}"#.to_owned(), 6),
            (
                r#"steer_preference_takes{preference="updates",family="IPv4",breakout="fiber"}"#.to_owned(),
                1,
            ),
            (
                r#"steer_preference_takes{preference="updates",family="IPv6",breakout="fiber"}"#.to_owned(),
                0,
            ),
            ("steer_dns_names".to_owned(), 13),
            ("steer_dns_learned_addresses".to_owned(), 14),
            (
                r#"steer_dns_tcp_connections_total{outcome="read"}"#.to_owned(),
                26,
            ),
            (
                r#"steer_dns_tcp_connections_total{outcome="turned-away"}"#.to_owned(),
                4,
            ),
            (
                r#"steer_dns_tcp_queries_total{outcome="near"}"#.to_owned(),
                31,
            ),
            (
                r#"steer_dns_tcp_queries_total{outcome="fell-back"}"#.to_owned(),
                32,
            ),
            (
                r#"steer_dns_tcp_queries_total{outcome="passed"}"#.to_owned(),
                33,
            ),
            ("steer_dns_tcp_learned_addresses_total".to_owned(), 35),
            (r#"steer_dns_bypass_clients{over="tls"}"#.to_owned(), 20),
            (r#"steer_dns_bypass_clients{over="https"}"#.to_owned(), 21),
            (
                r#"steer_dns_events_total{event="rewritten"}"#.to_owned(),
                19,
            ),
            (
                r#"steer_controller_info{version="1.2.3",mode="mark"}"#.to_owned(),
                1,
            ),
            (
                "steer_controller_start_time_seconds".to_owned(),
                1_700_000_000,
            ),
            (r#"steer_state{state="off"}"#.to_owned(), 0),
            (r#"steer_state{state="watching"}"#.to_owned(), 1),
            (r#"steer_state{state="steering"}"#.to_owned(), 0),
            (r#"steer_state{state="draining"}"#.to_owned(), 0),
            (r#"steer_state{state="unattended"}"#.to_owned(), 0),
            ("steer_watching_seconds".to_owned(), 42),
            ("steer_problems".to_owned(), 2),
            (
                r#"steer_feed_info{source="a \"file\"\\\n",instance="Worldwide",version="2026"}"#
                    .to_owned(),
                1,
            ),
            ("steer_feed_sets".to_owned(), 5),
            ("steer_feed_age_seconds".to_owned(), 60),
            ("steer_feed_checked_seconds".to_owned(), 1_700_000_000),
            ("steer_feed_failures".to_owned(), 0),
            ("steer_feed_held".to_owned(), 0),
            ("steer_feed_pinned".to_owned(), 0),
            ("steer_feed_leaving".to_owned(), 0),
            ("steer_feed_changes_total".to_owned(), 9),
            (r#"steer_feed_errors_total{kind="timeout"}"#.to_owned(), 2),
            ("steer_plan_generation".to_owned(), 3),
            ("steer_plan_sets".to_owned(), 4),
            ("steer_plan_prefixes".to_owned(), 50),
            (
                r#"steer_lan_attached{interface="lan0",hook="TCX"}"#.to_owned(),
                1,
            ),
            (r#"steer_list_age_seconds{list="saas"}"#.to_owned(), 90),
            (r#"steer_list_entries{list="saas"}"#.to_owned(), 3),
            (r#"steer_list_failures{list="saas"}"#.to_owned(), 1),
            (
                r#"steer_list_errors_total{list="saas",kind="held"}"#.to_owned(),
                4,
            ),
            (
                r#"steer_lan_verified_instructions{interface="lan0",hook="TCX"}"#.to_owned(),
                9000,
            ),
            (
                r#"steer_breakout_up{id="1",breakout="fiber",interface="brk0"}"#.to_owned(),
                1,
            ),
            (
                r#"steer_breakout_degraded{id="1",breakout="fiber",interface="brk0"}"#.to_owned(),
                0,
            ),
            (
                r#"steer_breakout_delegated_prefixes{id="1",breakout="fiber",interface="brk0"}"#
                    .to_owned(),
                1,
            ),
            (
                r#"steer_breakout_family_up{id="1",breakout="fiber",interface="brk0",family="IPv4"}"#
                    .to_owned(),
                1,
            ),
            (
                r#"steer_breakout_family_up{id="1",breakout="fiber",interface="brk0",family="IPv6"}"#
                    .to_owned(),
                0,
            ),
            (
                r#"steer_reset_flows_total{id="1",breakout="fiber",interface="brk0"}"#.to_owned(),
                7,
            ),
            (format!("steer_traffic_packets_total{}", set("fiber")), most),
            (format!("steer_traffic_packets_total{}", set("")), 5),
            (
                format!("steer_traffic_bytes_total{}", set("fiber")),
                most * 100,
            ),
            (format!("steer_traffic_bytes_total{}", set("")), 500),
            (
                r#"steer_passed_packets_total{reason="fragment"}"#.to_owned(),
                6,
            ),
            (
                r#"steer_granted_flows_total{breakout="fiber"}"#.to_owned(),
                8,
            ),
            ("steer_refused_packets_total".to_owned(), 9),
            ("steer_rewish_packets_total".to_owned(), 10),
            ("steer_guard_packets_total".to_owned(), 11),
            (r#"steer_dead_man_hears{breakout="fiber"}"#.to_owned(), 1),
            (
                r#"steer_dead_man_openings_total{breakout="fiber",family="IPv6"}"#.to_owned(),
                12,
            ),
        ]
        .map(|(name, value)| (name, value.to_string()))
        .into_iter()
        .chain(probed)
        .chain(asked)
        .collect();
        assert_eq!(samples, expected);
    }

    #[test]
    fn what_is_off_says_so() {
        let samples = parse(&open_metrics(Status::off()).unwrap());
        assert_eq!(samples[r#"steer_state{state="off"}"#], "1");
        assert!(!samples.contains_key("steer_plan_generation"));
    }

    #[test]
    fn the_documentation_names_every_metric_and_no_other() {
        let documented: BTreeSet<&str> = include_str!("../../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let text = open_metrics(full()).unwrap();
        let samples = parse(&text);
        let written: BTreeSet<&str> = samples
            .keys()
            .filter_map(|name| name.split('{').next())
            .collect();
        assert_eq!(documented, written);
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_and_another_one_is_served() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut metrics = Metrics::new(sender);
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = metrics.listen(Some(address)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(metrics.listening(), None);
        drop(taken);
        metrics.listen(Some(address)).await.unwrap();
        assert_eq!(metrics.listening(), Some(address));
        metrics.listen(None).await.unwrap();
        assert_eq!(metrics.listening(), None);
        TcpListener::bind(address).await.unwrap();
    }
}
