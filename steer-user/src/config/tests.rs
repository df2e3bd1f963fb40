//! Configurations good and bad.

use proptest::prelude::*;

use super::{
    cases::{GOOD, bad, last, top},
    *,
};
use crate::endpoints::{Access, Guards, Hooks, Policy, Rules, Service};

/// Every key, none with its default.
const FULL: &str = r#"
reload_on_change = false
mode = "redirect"
[feed]
file = "f.json"
instance = "china"
update = "approve"
url = "https://mirror.example:8443/m365/"
interval = "10m"
timeout = "5s"
via = "fiber"
proxy = "http://user:word@proxy.example:3128"
ca_file = "/ca.pem"
public_key = "RWQzV9Hq6gyifvsAksgXXZrSDGvtSp4HX+1MH890gpRXncHyApymYeU9"
tenant = "contoso"
areas = ["exchange"]
ipv6 = false
removal_delay = "7s"
keep = 3
guards = { required_sets = [1], shrink = 10, growth = 20, widest_v4 = 12, widest_v6 = 32, deny = ["198.51.100.0/24"] }
hooks = { before = ["/b", "x"], after = ["/a"], timeout = "2s" }
[select]
categories = ["default"]
service_areas = ["skype"]
exclude_sets = []
include = [{ name = "own-saas", prefixes = ["198.51.100.0/24"], protocol = "tcp", ports = "443", category = "optimize" }]
exclude = ["52.96.7.1"]
[[list]]
name = "updates"
builtin = "microsoft-updates"
[[list]]
name = "saas"
file = "saas.toml"
[[lan]]
interface = "lan0"
vlans = [10, "100.20"]
sources = ["10.0.0.0/8"]
exclude_sources = ["10.0.0.7"]
leave_queries_of = ["10.0.0.8"]
queries = "leave"
[backbone]
interface = "bb0"
[[breakout]]
name = "fiber"
interface = "brk0"
gateway = "192.0.2.1"
gateway6 = "fe80::1"
valid_sources = ["2001:db8::/48"]
delegated_from = ["2001:db8:100::/40"]
priority = 2
weight = 3
when_down = "hold"
probe_interval = "10s"
resolvers = ["192.0.2.53", "link", "2001:db8::53"]
[[preference]]
name = "media"
categories = ["optimize"]
service_areas = ["skype"]
sets = [11]
lists = ["saas"]
breakouts = ["fiber"]
when_degraded = "backbone"
targets = [{ stun = "192.0.2.9" }]
loss_percent = 2
latency = "50ms"
jitter = "9ms"
[mark]
mask = 0x3f000000
watch_period = "1s"
routes = "external"
nat = "external"
route_tables = ["main", 52]
[redirect]
xdp = "generic"
[health]
probes = "off"
targets = [{ tls = "2001:db8::1", name = "a.example" }, { stun = "192.0.2.9:3479" }]
interval = "500ms"
quorum = 2
down_after = 4
up_after = 6
hold = "2s"
max_hold = "4s"
loss_percent = 10
latency = "7ms"
jitter = "8ms"
when_degraded = "keep"
on_path_loss = "keep"
identity = "any"
trust = "/t.pem"
[dns]
queries = "steer"
learn = false
exclude = ["*.corp.example.com"]
public = ["9.9.9.9", "2620:fe::fe"]
tcp = "pass"
shared = "refuse"
[dns.leave]
categories = ["default"]
service_areas = ["skype"]
sets = [31]
lists = ["updates"]
[metrics]
listen = "192.0.2.7:9365"
allow_remote = true
[system]
pin_dir = "/p"
state_dir = "/s"
run_dir = "/r"
"#;

fn refused(text: &str) -> ConfigError {
    Config::parse("steer.toml", text).unwrap_err()
}

#[test]
fn every_mistake_is_named_with_place_key_and_remedy() {
    for (what, marked, key, parts) in bad() {
        let offset = marked.find('@').unwrap();
        let error = refused(&marked.replacen('@', "", 1));
        let [problem] = error.problems() else {
            panic!("{what}: not one problem:\n{error}")
        };
        let line = marked[..offset].matches('\n').count() + 1;
        let column = marked[..offset].rsplit('\n').next().unwrap().len() + 1;
        assert_eq!(
            (problem.line, problem.column),
            (line, column),
            "{what}:\n{error}"
        );
        assert_eq!(problem.key, key, "{what}:\n{error}");
        let message = error.to_string();
        assert!(
            message.contains(&format!("steer.toml:{line}:{column}")),
            "{what}:\n{message}"
        );
        for part in parts {
            assert!(
                message.contains(part),
                "{what}: {part:?} is missing in\n{message}"
            );
        }
    }
}

#[test]
fn a_file_without_lan_or_breakout_is_refused() {
    let message = refused("").to_string();
    for part in [
        "no [[lan]]",
        "no [[breakout]]",
        "add [[breakout]]",
        "2 mistakes",
    ] {
        assert!(message.contains(part), "{part:?} is missing in\n{message}");
    }
}

#[test]
fn a_sixteenth_breakout_is_refused() {
    let many = |count: usize| {
        let more = (1..count)
            .map(|n| format!("[[breakout]]\nname = \"b{n}\"\ninterface = \"brk{n}\""))
            .collect::<Vec<_>>();
        last(&more.join("\n"))
    };
    assert_eq!(
        Config::parse("steer.toml", &many(15))
            .unwrap()
            .breakouts
            .len(),
        15
    );
    assert!(
        refused(&many(16))
            .to_string()
            .contains("breakout 16 of at most 15")
    );
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_and_shown() {
    let error = refused(
        "mode = \"x\"\n[[lan]]\ninterface = \"a/b\"\n[[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\ngateway = \"::1\"\n",
    );
    assert_eq!(error.problems().len(), 3);
    let shown = "steer.toml:7:11: breakout[0].gateway: \"::1\" is an IPv6 address\n   |\n 7 | gateway = \"::1\"\n   |           ^^^^^\n   remedy: write it as gateway6";
    assert!(error.to_string().contains(shown), "{error}");
}

#[test]
fn an_unreadable_file_says_so() {
    let message = Config::read(Path::new("/nonexistent/steer.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("/nonexistent/steer.toml") && message.contains("--config FILE"),
        "{message}"
    );
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let config = Config::parse("steer.toml", GOOD).unwrap();
    assert_eq!(config.mode, Mode::Mark);
    assert_eq!(
        (&config.feed.file, config.feed.instance),
        (&None, Instance::Worldwide)
    );
    assert_eq!(config.feed.rules.policy, Policy::Off);
    assert_eq!(config.feed.service.base, "https://endpoints.office.com");
    assert_eq!(config.feed.interval, Duration::from_hours(1));
    assert_eq!(config.feed.rules.removal_delay, Duration::from_hours(720));
    assert_eq!(config.select, Selection::default_for(Instance::Worldwide));
    assert_eq!(config.select.exclude_sets, BTreeSet::from([SetId(10)]));
    assert_eq!(
        (
            config.breakouts[0].id,
            config.breakouts[0].weight,
            config.breakouts[0].priority
        ),
        (1, 1, 1)
    );
    assert_eq!(config.mark.watch_period, Duration::from_secs(130));
    assert_eq!(config.mark.route_tables, [254]);
    assert_eq!(config.system.pin_dir, Path::new("/sys/fs/bpf/steer"));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_key_arrives() {
    let config = Config::parse("steer.toml", FULL).unwrap();
    let health = HealthConfig {
        probes: false,
        targets: vec![
            Target {
                kind: ProbeKind::Tls,
                address: "[2001:db8::1]:443".parse().unwrap(),
                names: vec!["a.example".into()],
            },
            Target {
                kind: ProbeKind::Stun,
                address: "192.0.2.9:3479".parse().unwrap(),
                names: vec![],
            },
        ],
        interval: Duration::from_millis(500),
        quorum: Some(2),
        down_after: 4,
        up_after: 6,
        hold: Duration::from_secs(2),
        max_hold: Duration::from_secs(4),
        loss: 0.1,
        latency: Duration::from_millis(7),
        jitter: Duration::from_millis(8),
        when_degraded: WhenDegraded::Keep,
        on_path_loss: OnPathLoss::Keep,
        identity: Identity::Any,
        trust: Some("/t.pem".into()),
    };
    let expected = Config {
        reload_on_change: false,
        mode: Mode::Redirect,
        feed: FeedConfig {
            file: Some("f.json".into()),
            instance: Instance::China,
            service: Service {
                base: "https://mirror.example:8443/m365".into(),
                instance: Instance::China,
                tenant: Some("contoso".into()),
                areas: vec![ServiceArea::Exchange],
                ipv6: false,
                access: Access {
                    device: Some("brk0".into()),
                    proxy: Some("http://user:word@proxy.example:3128".parse().unwrap()),
                    ca_file: Some("/ca.pem".into()),
                    timeout: Duration::from_secs(5),
                },
                signer: Some(
                    "RWQzV9Hq6gyifvsAksgXXZrSDGvtSp4HX+1MH890gpRXncHyApymYeU9"
                        .parse()
                        .unwrap(),
                ),
            },
            via: Some("fiber".into()),
            interval: Duration::from_mins(10),
            rules: Rules {
                policy: Policy::Approve,
                guards: Guards {
                    required: [SetId(1)].into(),
                    shrink: 10,
                    growth: 20,
                    widest_v4: 12,
                    widest_v6: 32,
                    deny: vec!["198.51.100.0/24".parse().unwrap()],
                },
                removal_delay: Duration::from_secs(7),
                keep: 3,
                hooks: Hooks {
                    before: vec!["/b".into(), "x".into()],
                    after: vec!["/a".into()],
                    timeout: Duration::from_secs(2),
                },
            },
        },
        select: Selection {
            categories: BTreeSet::from([Category::Default]),
            service_areas: BTreeSet::from([ServiceArea::Skype]),
            exclude_sets: BTreeSet::new(),
            include: vec![OwnInclude {
                name: "own-saas".into(),
                prefixes: vec!["198.51.100.0/24".parse().unwrap()],
                names: vec![],
                tcp: "443".parse().unwrap(),
                udp: Ports::default(),
                category: Category::Optimize,
            }],
            exclude: vec!["52.96.7.1/32".parse().unwrap()],
            names: NameSelection {
                steer: true,
                learn: false,
                exclude: vec!["*.corp.example.com".parse().unwrap()],
                leave: ClassSelection {
                    categories: [Category::Default].into(),
                    service_areas: [ServiceArea::Skype].into(),
                    sets: [SetId(31)].into(),
                    lists: ["updates".to_owned()].into(),
                },
            },
        },
        lists: vec![
            List {
                name: "updates".into(),
                source: ListSource::BuiltIn(BuiltIn::MicrosoftUpdates),
            },
            List {
                name: "saas".into(),
                source: ListSource::File("saas.toml".into()),
            },
        ],
        lans: vec![Lan {
            interface: "lan0".parse().unwrap(),
            vlans: vec![Vlan::Single(10), Vlan::Stacked(100, 20)],
            sources: vec!["10.0.0.0/8".parse().unwrap()],
            exclude_sources: vec!["10.0.0.7/32".parse().unwrap()],
            steer_queries: false,
            leave_queries_of: vec!["10.0.0.8/32".parse().unwrap()],
        }],
        backbone: Some("bb0".parse().unwrap()),
        breakouts: vec![Breakout {
            id: 1,
            name: "fiber".into(),
            interface: "brk0".parse().unwrap(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            gateway6: Some("fe80::1".parse().unwrap()),
            valid_sources: vec!["2001:db8::/48".parse().unwrap()],
            delegated: Delegated::From(vec!["2001:db8:100::/40".parse().unwrap()]),
            priority: 2,
            weight: 3,
            when_down: WhenDown::Hold,
            probe_interval: Some(Duration::from_secs(10)),
            resolvers: vec![
                ResolverChoice::Address("192.0.2.53".parse().unwrap()),
                ResolverChoice::Link,
                ResolverChoice::Address("2001:db8::53".parse().unwrap()),
            ],
        }],
        preferences: vec![Preference {
            name: "media".into(),
            classes: ClassSelection {
                categories: [Category::Optimize].into(),
                service_areas: [ServiceArea::Skype].into(),
                sets: [SetId(11)].into(),
                lists: ["saas".to_owned()].into(),
            },
            breakouts: Some(vec![1]),
            when_degraded: WhenDegraded::Backbone,
            health: Some(HealthConfig {
                targets: vec![Target {
                    kind: ProbeKind::Stun,
                    address: "192.0.2.9:3478".parse().unwrap(),
                    names: vec![],
                }],
                quorum: None,
                loss: 0.02,
                latency: Duration::from_millis(50),
                jitter: Duration::from_millis(9),
                ..health.clone()
            }),
        }],
        mark: MarkConfig {
            bits: MarkBits::DEFAULT,
            order: Order::Last,
            watch_period: Duration::from_secs(1),
            routes: Owner::External,
            nat: Owner::External,
            route_tables: vec![254, 52],
        },
        redirect: RedirectConfig {
            xdp: XdpChoice::Generic,
        },
        health,
        dns: DnsConfig {
            tcp: TcpQueries::Pass,
            public: vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()],
            shared: Shared::Refuse,
        },
        metrics: MetricsConfig {
            listen: Some("192.0.2.7:9365".parse().unwrap()),
        },
        system: SystemConfig {
            pin_dir: "/p".into(),
            state_dir: "/s".into(),
            run_dir: "/r".into(),
        },
        written: Written::of(FULL),
    };
    assert_eq!(config, expected);
}

#[test]
fn a_relative_feed_path_is_relative_to_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steer.toml");
    for (file, expected) in [
        ("f.json", folder.path().join("f.json")),
        ("/f.json", "/f.json".into()),
    ] {
        std::fs::write(&path, top(&format!("[feed]\nfile = \"{file}\""))).unwrap();
        assert_eq!(Config::read(&path).unwrap().feed.file, Some(expected));
    }
}

/// The sample with every commented default written out is the same configuration.
#[test]
fn the_sample_parses_and_its_comments_show_the_defaults() {
    let sample = Config::parse("sample", SAMPLE).unwrap();
    let is_key = |line: &str| {
        line.strip_prefix("# ").is_some_and(|rest| {
            rest.split_once(" = ").is_some_and(|(key, _)| {
                key.bytes()
                    .all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'6'))
            })
        })
    };
    let examples = [
        "# file =",
        "# id =",
        "# name =",
        "# builtin =",
        "# url =",
        "# via =",
        "# proxy =",
        "# ca_file =",
        "# public_key =",
        "# tenant =",
        "# deny =",
        "# gateway6 =",
        "# include = [\n",
        "# listen =",
        "# targets = [\n",
        "# delegated_from =",
        "# probe_interval =",
        "# resolvers =",
        "# quorum =",
        "# trust =",
        "# lists = [\"updates\"]",
        "# breakouts =",
        "# when_degraded = \"backbone\"",
        "# latency = \"100ms\"",
    ];
    let written_out: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key)
                if is_key(line) && !examples.iter().any(|e| format!("{line}\n").starts_with(e)) =>
            {
                format!("{key}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(written_out.contains("\ninclude = []\n") && written_out.contains("\nrun_dir = "));
    let expected = Config {
        written: Written::of(&written_out),
        ..sample
    };
    assert_eq!(Config::parse("sample", &written_out).unwrap(), expected);
    for key in [
        "instance",
        "exclude_sets",
        "vlans",
        "valid_sources",
        "delegated",
        "weight",
        "watch_period",
        "xdp",
        "when_down",
        "max_hold",
        "on_path_loss",
        "allow_remote",
        "pin_dir",
    ] {
        assert!(written_out.contains(&format!("\n{key} = ")), "{key}");
    }
}

proptest! {
    /// However a file is damaged, the answer is a configuration or a mistake with a place in the file.
    #[test]
    fn a_damaged_file_is_refused_with_a_place_that_exists(
        edits in prop::collection::vec((0..FULL.len(), any::<char>()), 1..4),
        cut in prop::option::of(0..FULL.len()),
    ) {
        let mut text: Vec<char> = FULL.chars().collect();
        text.truncate(cut.unwrap_or(usize::MAX));
        for (place, edit) in edits {
            if let Some(old) = text.get_mut(place) {
                *old = edit;
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = Config::parse("steer.toml", &text) {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                prop_assert!(problem.line <= text.split('\n').count(), "{error}");
                prop_assert!(!problem.reason.is_empty() && !problem.remedy.is_empty(), "{error}");
            }
        }
    }
}

#[test]
fn a_list_must_have_the_sets_of_the_areas_that_are_asked_for() {
    let required = |feed: &str| -> Vec<u16> {
        let text = format!("{GOOD}[feed]\n{feed}\n");
        let config = Config::parse("test", &text).unwrap();
        let ids = config.feed.rules.guards.required.iter();
        ids.map(|id| id.0).collect()
    };
    assert_eq!(required(""), [1, 11, 31]);
    assert_eq!(required("areas = [\"skype\", \"common\"]"), [11]);
    let own = "areas = [\"skype\"]\nguards = { required_sets = [1] }";
    assert_eq!(required(own), [1]);
}

#[test]
fn queries_over_tcp_are_read_where_queries_are_steered_at_all() {
    let config = |resolvers: &str, tcp: &str| {
        let text = format!(
            "[[lan]]\ninterface = \"lan0\"\n[[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\n\
             resolvers = [{resolvers}]\n[dns]\n{tcp}\n"
        );
        Config::parse("test", &text).unwrap()
    };
    assert!(config("\"link\"", "tcp = \"forward\"").forwards_queries());
    assert!(!config("\"link\"", "").forwards_queries());
    assert!(!config("", "tcp = \"forward\"").forwards_queries());
}

#[test]
fn a_preference_inherits_what_it_does_not_say() {
    let text = last(
        "[health]\nwhen_degraded = \"keep\"\nlatency = \"40ms\"\n\
         [[preference]]\nname = \"a\"\nsets = [1]\nbreakouts = [\"fiber\"]\n\
         [[preference]]\nname = \"b\"\nsets = [2]\njitter = \"5ms\"",
    );
    let config = Config::parse("steer.toml", &text).unwrap();
    let [a, b] = &config.preferences[..] else {
        panic!("{:?}", config.preferences)
    };
    assert_eq!((&a.breakouts, &b.breakouts), (&Some(vec![1]), &None));
    assert_eq!(a.when_degraded, WhenDegraded::Keep);
    assert_eq!(a.health, None);
    let expected = HealthConfig {
        jitter: Duration::from_millis(5),
        ..config.health.clone()
    };
    assert_eq!(b.health, Some(expected));
}

#[test]
fn an_eighth_preference_is_refused() {
    let many = |count: usize| {
        let sections = (0..count).map(|n| {
            format!("[[preference]]\nname = \"p{n}\"\nsets = [1]\nwhen_degraded = \"keep\"")
        });
        last(&sections.collect::<Vec<_>>().join("\n"))
    };
    let seven = Config::parse("steer.toml", &many(7)).unwrap();
    assert_eq!(seven.preferences.len(), 7);
    assert!(refused(&many(8)).to_string().contains("more than 7"));
}
