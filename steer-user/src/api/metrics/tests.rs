use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    api::{
        BreakoutStatus, BypassStatus, ClassCounter, DeadManBreakout, DeadManFamily, DeadManStatus,
        DnsStatus, FamilyStatus, FeedStatus, LanStatus, NftStatus, PathHealth, PlanStatus,
        PreferenceHealth, PreferenceStatus, ProbeStatus, ResolverStatus, SteeringState,
        TcpQueryStatus,
    },
    endpoints::{ListReport, Report},
};

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
        (
            r#"steer_preference_classes{preference="updates"}"#.to_owned(),
            6,
        ),
        (
            r#"steer_preference_takes{preference="updates",family="IPv4",breakout="fiber"}"#
                .to_owned(),
            1,
        ),
        (
            r#"steer_preference_takes{preference="updates",family="IPv6",breakout="fiber"}"#
                .to_owned(),
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
    let documented: BTreeSet<&str> = include_str!("../../../../docs/metrics.md")
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
