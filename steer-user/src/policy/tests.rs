//! Plans against a naive model that knows nothing of tables, and the questions operators ask.

use std::{cmp::Reverse, collections::BTreeSet, net::Ipv6Addr};

use proptest::prelude::*;
use steer_common::{
    chunk::SourceKind,
    image::{ImageError, MAX_CLAIMS},
    rule::{TCP, UDP},
};

use super::*;
use crate::{
    config::{ClassSelection, NameSelection, OwnInclude},
    endpoints::{Category, EndpointSet, Instance, Ports, ServiceArea, SetId, never_steered},
};

fn builtin(change: impl FnOnce(&mut Selection, &mut Site)) -> Plan {
    let mut select = Selection::default_for(Instance::Worldwide);
    let mut site = Site::default();
    change(&mut select, &mut site);
    compile(Feed::builtin().unwrap(), select, site).unwrap()
}

fn compile(feed: Feed, select: Selection, site: Site) -> Result<Plan, PlanError> {
    Plan::compile(feed, select, site, &mut ClassRegistry::new())
}

fn own(name: &str, prefixes: &[&str], ports: &str) -> OwnInclude {
    OwnInclude {
        name: name.into(),
        prefixes: prefixes
            .iter()
            .map(|prefix| prefix.parse().unwrap())
            .collect(),
        names: Vec::new(),
        tcp: ports.parse().unwrap(),
        udp: Ports::default(),
        category: Category::Allow,
    }
}

fn flow(destination: &str, protocol: u8, port: u16) -> Flow {
    Flow {
        destination: destination.parse().unwrap(),
        protocol,
        port,
        source: None,
    }
}

fn from(source: &str, destination: &str) -> Flow {
    Flow {
        source: Some(source.parse().unwrap()),
        ..flow(destination, TCP, 443)
    }
}

#[track_caller]
fn assert_steers(plan: &Plan, flow: &Flow, label: &str, prefix: &str) {
    match plan.decide(flow) {
        Verdict::Steer(matched) => {
            assert_eq!(matched.class.label.to_string(), label);
            assert_eq!(matched.prefix.to_string(), prefix);
        }
        Verdict::Pass(pass) => panic!("passes: {pass}"),
    }
}

#[track_caller]
fn assert_passes(plan: &Plan, flow: &Flow, reason: &str) {
    match plan.decide(flow) {
        Verdict::Pass(pass) => assert_eq!(pass.to_string(), reason),
        Verdict::Steer(matched) => panic!("steers: {matched}"),
    }
}

#[test]
fn the_same_prefix_belongs_to_another_set_on_another_port() {
    let plan = builtin(|_, _| {});
    assert_steers(&plan, &flow("52.96.1.1", TCP, 443), "set 1", "52.96.0.0/14");
    assert_steers(&plan, &flow("52.96.1.1", UDP, 443), "set 1", "52.96.0.0/14");
    assert_steers(&plan, &flow("52.96.1.1", TCP, 993), "set 2", "52.96.0.0/14");
    assert_steers(
        &plan,
        &flow("52.112.0.1", UDP, 3479),
        "set 11",
        "52.112.0.0/14",
    );
    assert_steers(
        &plan,
        &flow("52.112.0.1", TCP, 443),
        "set 12",
        "52.112.0.0/14",
    );
    assert_steers(
        &plan,
        &flow("2603:1063::1", UDP, 3481),
        "set 11",
        "2603:1063::/38",
    );
    assert_steers(
        &plan,
        &flow("2620:1ec:4::152", TCP, 80),
        "set 1",
        "2620:1ec:4::152/128",
    );
}

#[test]
fn what_is_not_steered_says_why() {
    let plan = builtin(|select, _| {
        select.categories.remove(&Category::Allow);
        select.exclude.push("52.96.7.0/24".parse().unwrap());
    });
    for (flow, reason) in [
        (
            flow("192.168.1.1", TCP, 443),
            "private addresses are never steered",
        ),
        (
            flow("ff02::1", UDP, 443),
            "multicast addresses are never steered",
        ),
        (
            flow("8.8.8.8", TCP, 443),
            "no endpoint set lists this destination",
        ),
        (
            flow("52.96.1.1", TCP, 22),
            "set 1 lists this destination, but not this port",
        ),
        (flow("52.96.1.1", 1, 0), "only TCP and UDP are steered"),
        (
            flow("52.96.7.1", TCP, 443),
            "select.exclude has 52.96.7.0/24",
        ),
        (
            flow("52.96.1.1", TCP, 993),
            "set 2 lists this destination, but its category Allow is not among select.categories",
        ),
        (
            flow("40.107.1.1", TCP, 25),
            "set 10 lists this destination, but it is among select.exclude_sets",
        ),
        (
            flow("20.190.128.1", TCP, 443),
            "set 56 lists this destination, but its category Allow is not among select.categories",
        ),
    ] {
        assert_passes(&plan, &flow, reason);
    }
}

#[test]
fn set_10_is_off_until_asked_for() {
    let smtp = flow("40.107.1.1", TCP, 25);
    let reason = "set 10 lists this destination, but it is among select.exclude_sets";
    assert_passes(&builtin(|_, _| {}), &smtp, reason);
    let plan = builtin(|select, _| select.exclude_sets.clear());
    assert_steers(&plan, &smtp, "set 10", "40.107.0.0/16");
}

#[test]
fn own_includes_are_classes_and_own_exclusions_beat_everything() {
    let plan = builtin(|select, _| {
        select.include.push(own(
            "saas",
            &["198.51.100.0/24", "52.96.8.0/24"],
            "443,993,8443",
        ));
        select.exclude.push("198.51.100.128/25".parse().unwrap());
    });
    assert_steers(
        &plan,
        &flow("198.51.100.1", TCP, 8443),
        "include \"saas\"",
        "198.51.100.0/24",
    );
    assert_passes(
        &plan,
        &flow("198.51.100.129", TCP, 8443),
        "select.exclude has 198.51.100.128/25",
    );
    // Optimize beats the longer prefix; among Allow the longer prefix wins.
    assert_steers(&plan, &flow("52.96.8.1", TCP, 443), "set 1", "52.96.0.0/14");
    assert_steers(
        &plan,
        &flow("52.96.8.1", TCP, 993),
        "include \"saas\"",
        "52.96.8.0/24",
    );
}

#[test]
fn names_are_decided_by_sets_and_lists_and_the_operator_s_word_beats_both() {
    let crm = OwnInclude {
        names: vec!["*.crm.example.com".parse().unwrap()],
        ..own("saas/crm", &[], "443")
    };
    let plan = |steer, learn| {
        builtin(|select, _| {
            select.include.push(crm.clone());
            select.names = NameSelection {
                steer,
                learn,
                exclude: vec!["left.sharepoint.com".parse().unwrap()],
                ..NameSelection::default()
            };
        })
    };
    let decide = |plan: &Plan, name: &str| match plan.decide_name(name, None) {
        NameVerdict::Steer(it) => format!("{} {} {}", it.class.label, it.pattern, it.learns),
        other => other.to_string(),
    };
    let on = plan(true, true);
    for (name, expected) in [
        ("outlook.office.com", "set 1 outlook.office.com false"),
        ("Contoso.SharePoint.com", "set 31 *.sharepoint.com false"),
        (
            "a.crm.example.com",
            "service \"saas/crm\" *.crm.example.com true",
        ),
        ("left.sharepoint.com", "dns.exclude has left.sharepoint.com"),
        (
            "example.com",
            "no selected endpoint set or list has this name",
        ),
    ] {
        assert_eq!(decide(&on, name), expected);
    }
    // Nothing would steer what has no prefixes.
    let deaf = plan(true, false);
    assert_eq!(
        decide(&deaf, "a.crm.example.com"),
        "no selected endpoint set or list has this name"
    );
    let off = plan(false, true);
    assert_eq!(
        off.decide_name("outlook.office.com", None),
        NameVerdict::Off
    );
    assert!(off.names().is_empty());
}

#[test]
fn where_all_else_is_equal_microsofts_list_comes_first() {
    let mut feed = Feed::builtin().unwrap();
    feed.sets.retain(|set| set.id == SetId(12));
    feed.sets[0].id = SetId(u16::MAX);
    let mut select = Selection::default_for(Instance::Worldwide);
    select.include.push(own("teams", &["52.112.0.0/14"], "443"));
    assert!(own_id("teams") < u16::MAX);
    let plan = compile(feed, select, Site::default()).unwrap();
    let teams = flow("52.112.0.1", TCP, 443);
    assert_steers(&plan, &teams, "set 65535", "52.112.0.0/14");
}

#[test]
fn only_clients_that_are_not_left_out_are_steered() {
    let plan = builtin(|_, site| {
        site.clients = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        site.left_out = vec!["10.1.0.0/16".parse().unwrap()];
        site.router = vec!["52.96.0.9".parse().unwrap()];
    });
    assert_steers(
        &plan,
        &from("10.0.0.1", "52.96.1.1"),
        "set 1",
        "52.96.0.0/14",
    );
    let (left_out, foreign) = (
        "exclude_sources of a LAN has 10.1.0.0/16",
        "the source is not among the clients of a LAN",
    );
    assert_passes(&plan, &from("10.1.0.1", "52.96.1.1"), left_out);
    assert_passes(&plan, &from("192.0.2.7", "52.96.1.1"), foreign);
    let router = "this is an address of the router itself";
    assert_passes(&plan, &flow("52.96.0.9", TCP, 443), router);
}

#[test]
fn queries_are_steered_of_clients_whose_queries_are_not_left_alone() {
    let plan = builtin(|select, site| {
        select.names.steer = true;
        site.clients = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        site.left_out = vec!["10.1.0.0/16".parse().unwrap()];
        site.queries_left = vec!["10.2.0.0/15".parse().unwrap()];
    });
    let word = |client: &str| {
        let client = client.parse().unwrap();
        plan.decide_name("outlook.office.com", Some(client))
            .to_string()
    };
    assert!(
        word("10.0.0.1").starts_with("set 1 "),
        "{}",
        word("10.0.0.1")
    );
    assert_eq!(
        word("10.3.0.1"),
        "leave_queries_of of a LAN has 10.2.0.0/15"
    );
    assert_eq!(word("10.1.0.1"), "exclude_sources of a LAN has 10.1.0.0/16");
    let nobody = "the source is not among the clients of a LAN";
    assert_eq!(word("192.0.2.7"), nobody);
    assert_steers(
        &plan,
        &from("10.3.0.1", "52.96.1.1"),
        "set 1",
        "52.96.0.0/14",
    );
}

#[test]
fn where_clients_are_not_known_every_source_counts_but_those_left_out() {
    let plan = builtin(|_, site| site.left_out = vec!["10.1.0.0/16".parse().unwrap()]);
    assert_steers(
        &plan,
        &from("192.0.2.7", "52.96.1.1"),
        "set 1",
        "52.96.0.0/14",
    );
    let left_out = "exclude_sources of a LAN has 10.1.0.0/16";
    assert_passes(&plan, &from("10.1.0.1", "52.96.1.1"), left_out);
}

#[test]
fn a_feed_that_overlaps_the_clients_makes_no_plan() {
    let site = Site {
        clients: Some(vec!["52.96.0.0/16".parse().unwrap()]),
        ..Site::default()
    };
    let select = Selection::default_for(Instance::Worldwide);
    let error = compile(Feed::builtin().unwrap(), select, site)
        .unwrap_err()
        .to_string();
    for part in [
        "set 1: ips \"52.96.0.0/14\"",
        "overlaps 52.96.0.0/16",
        "remedy:",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_include_of_private_space_makes_no_plan_even_unchecked() {
    let mut select = Selection::default_for(Instance::Worldwide);
    select.include.push(own("inside", &["10.0.0.0/24"], "443"));
    let error = compile(Feed::builtin().unwrap(), select, Site::default()).unwrap_err();
    assert!(matches!(error, PlanError::NeverSteered { .. }), "{error}");
}

#[test]
fn a_plan_that_does_not_fit_names_the_limit_and_the_culprit_and_leaves_the_registry_alone() {
    let every_other_port: Vec<String> = (0..33).map(|n| (1000 + 2 * n).to_string()).collect();
    let hosts: Vec<String> = (0..=MAX_CLAIMS)
        .map(|n| format!("20.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255))
        .collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    for (include, parts) in [
        (
            own("ports", &["198.51.100.0/24"], &every_other_port.join(",")),
            [
                "33 port rules meet at 198.51.100.0, 32 fit",
                "include \"ports\"",
            ],
        ),
        (
            own("hosts", &hosts, "443"),
            ["16384 fit", "most of them (16385) in include \"hosts\""],
        ),
    ] {
        let mut select = Selection::default_for(Instance::Worldwide);
        select.include.push(include);
        let mut registry = ClassRegistry::new();
        let error = Plan::compile(
            Feed::builtin().unwrap(),
            select,
            Site::default(),
            &mut registry,
        )
        .unwrap_err();
        assert!(matches!(error, PlanError::Tables { .. }));
        for part in parts {
            assert!(
                error.to_string().contains(part),
                "{part:?} is missing in {error}"
            );
        }
        assert!(registry.is_empty());
    }
    // The type says what the message does.
    assert_eq!(
        ImageError::Claims { found: 1 }.to_string(),
        "1 claims on prefixes, 16384 fit"
    );
}

#[test]
fn a_class_keeps_its_number_over_feeds_and_restarts() {
    let mut registry = ClassRegistry::new();
    let everything = Feed::builtin().unwrap();
    let select = Selection::default_for(Instance::Worldwide);
    let before = Plan::compile(
        everything.clone(),
        select.clone(),
        Site::default(),
        &mut registry,
    );
    let before: Vec<Class> = before.unwrap().classes().to_vec();

    let saved = serde_json::to_string(&registry).unwrap();
    let mut registry: ClassRegistry = serde_json::from_str(&saved).unwrap();
    let mut fewer = everything;
    fewer.sets.retain(|set| set.id.0 > 2);
    let after = Plan::compile(fewer, select, Site::default(), &mut registry).unwrap();
    assert_eq!(after.classes().len(), before.len() - 2);
    for class in after.classes() {
        assert!(before.contains(class), "{class:?}");
    }
    let key = ClassKey {
        list: SourceList::Worldwide,
        id: 1,
    };
    assert_eq!(registry.key(registry.index(key).unwrap()), Some(key));
}

#[test]
fn the_registry_hands_out_1_to_511_and_then_says_no() {
    let mut registry = ClassRegistry::new();
    for id in 1..=511 {
        assert_eq!(
            registry.assign(ClassKey {
                list: SourceList::Worldwide,
                id
            }),
            Ok(id)
        );
    }
    assert_eq!(
        registry.assign(ClassKey {
            list: SourceList::Own,
            id: 1
        }),
        Err(RegistryFull)
    );
    assert_eq!(
        registry.assign(ClassKey {
            list: SourceList::Worldwide,
            id: 7
        }),
        Ok(7)
    );
    assert_eq!(registry.key(0), None);
    for damaged in [
        r#"[{"list":"own","id":1},{"list":"own","id":1}]"#.to_owned(),
        format!("[{}]", vec![r#"{"list":"own","id":1}"#; 512].join(",")),
    ] {
        assert!(serde_json::from_str::<ClassRegistry>(&damaged).is_err());
    }
}

#[test]
fn each_instance_has_its_own_classes() {
    let mut registry = ClassRegistry::new();
    let mut feed = Feed::builtin().unwrap();
    let mut numbers = Vec::new();
    for instance in Instance::ALL {
        feed.instance = instance;
        let select = Selection::default_for(instance);
        let plan = Plan::compile(feed.clone(), select, Site::default(), &mut registry).unwrap();
        numbers.extend(plan.classes().iter().map(|class| class.index));
    }
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
}

// The naive model.

/// Which list and set a flow belongs to, straight from feed and selection.
fn model(feed: &Feed, select: &Selection, site: &Site, flow: &Flow) -> Option<(ClassLabel, IpNet)> {
    let has = |prefixes: &[IpNet], address| prefixes.iter().any(|prefix| prefix.contains(&address));
    if has(&select.exclude, flow.destination) || site.router.contains(&flow.destination) {
        return None;
    }
    if let Some(source) = flow.source {
        let best = |list: &[IpNet]| {
            list.iter()
                .filter(|p| p.contains(&source))
                .map(IpNet::prefix_len)
                .max()
        };
        let client = best(site.clients.as_ref().unwrap());
        if client.is_none() || best(&site.left_out) >= client {
            return None;
        }
    }
    let sets = feed
        .sets
        .iter()
        .filter(|set| {
            select.categories.contains(&set.category)
                && select.service_areas.contains(&set.service_area)
                && !select.exclude_sets.contains(&set.id)
        })
        .map(|set| {
            let rank = (0, set.id.0);
            (
                ClassLabel::Set(set.id),
                rank,
                set.category,
                &set.prefixes,
                &set.tcp,
                &set.udp,
            )
        });
    let own = select.include.iter().map(|include| {
        let rank = (1, own_id(&include.name));
        let label = ClassLabel::Own(include.name.clone());
        (
            label,
            rank,
            include.category,
            &include.prefixes,
            &include.tcp,
            &include.udp,
        )
    });
    sets.chain(own)
        .filter(|(.., tcp, udp)| match flow.protocol {
            TCP => tcp.contains(flow.port),
            UDP => udp.contains(flow.port),
            _ => false,
        })
        .flat_map(|(label, id, category, prefixes, ..)| {
            prefixes
                .iter()
                .map(move |prefix| (label.clone(), id, category, *prefix))
        })
        .filter(|(.., prefix)| prefix.contains(&flow.destination))
        .max_by_key(|(_, id, category, prefix)| (*category, prefix.prefix_len(), Reverse(*id)))
        .map(|(label, .., prefix)| (label, prefix))
}

/// Addresses that crowd in two corners of the address space, so that prefixes nest and touch.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u32..0x4000).prop_map(|bits| IpAddr::from((0x3460_0000 | bits << 4).to_be_bytes())),
        (0_u128..0x4000, 0_u32..7).prop_map(|(bits, place)| {
            IpAddr::from(Ipv6Addr::from_bits(0x2603 << 112 | bits << (place * 14)))
        }),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0_u8..=22).prop_map(|(address, shorter)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let shorter = if address.is_ipv4() {
            shorter
        } else {
            shorter * 4
        };
        IpNet::new(address, longest - shorter).unwrap().trunc()
    })
}

fn prefixes(most: usize) -> impl Strategy<Value = Vec<IpNet>> {
    prop::collection::vec(prefix(), 0..most)
}

fn ports() -> impl Strategy<Value = Ports> {
    let texts = [
        "",
        "443",
        "80,443",
        "25",
        "3478-3481",
        "440-445,80",
        "1-65535",
    ];
    prop::sample::select(texts.to_vec()).prop_map(|text| text.parse().unwrap())
}

#[test]
fn names_of_a_list_go_to_the_resolver_and_teach_where_there_are_no_prefixes() {
    let list = |name: &str, prefixes: &[&str], names: &[&str]| OwnInclude {
        names: names.iter().map(|it| it.parse().unwrap()).collect(),
        ..own(name, prefixes, "443")
    };
    let plan = |steer, learn| {
        builtin(|select, _| {
            select.names = NameSelection {
                steer,
                learn,
                exclude: Vec::new(),
                ..NameSelection::default()
            };
            select.include = vec![
                list("saas/crm", &["203.0.113.0/24"], &["*.crm.example"]),
                list("saas/cdn", &[], &["cdn.example"]),
            ];
        })
    };
    let words = |plan: &Plan| {
        ["a.crm.example", "cdn.example", "b.example"]
            .map(|it| plan.decide_name(it, None).to_string())
    };
    let learns = "; the addresses of the answer are steered, too";
    let nobody = "no selected endpoint set or list has this name".to_owned();
    let crm = "service \"saas/crm\" (Allow) lists *.crm.example".to_owned();
    let cdn = format!("service \"saas/cdn\" (Allow) lists cdn.example{learns}");
    let all = plan(true, true);
    assert_eq!(words(&all), [crm.clone(), cdn, nobody.clone()]);
    assert_eq!((all.size().own, plan(true, false).size().own), (2, 1));
    assert_eq!(words(&plan(true, false)), [crm, nobody.clone(), nobody]);
    let off = plan(false, true);
    assert_eq!(words(&off), [(); 3].map(|()| NameVerdict::Off.to_string()));
}

/// Ids below and above those that names of includes get.
fn id() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..20, 65_515_u16..=65_535]
}

fn category() -> impl Strategy<Value = Category> {
    prop::sample::select(Category::ALL.to_vec())
}

fn area() -> impl Strategy<Value = ServiceArea> {
    prop::sample::select(ServiceArea::KNOWN.to_vec())
}

prop_compose! {
    fn feed()(
        sets in prop::collection::btree_map(
            id(),
            (area(), category(), prefixes(6), ports(), ports()),
            1..10,
        ),
    ) -> Feed {
        let set = |(id, (service_area, category, prefixes, tcp, udp))| EndpointSet {
            id: SetId(id), service_area, category, names: Vec::new(), prefixes, tcp, udp,
            required: false,
        };
        Feed { sets: sets.into_iter().map(set).collect(), ..Feed::builtin().unwrap() }
    }
}

prop_compose! {
    fn selection()(
        categories in prop::collection::btree_set(category(), 0..4),
        service_areas in prop::collection::btree_set(area(), 2..5),
        exclude_sets in prop::collection::btree_set(id().prop_map(SetId), 0..6),
        include in prop::collection::btree_map(
            "[a-c]",
            (prefixes(4), ports(), ports(), category()),
            0..3,
        ),
        exclude in prefixes(3),
    ) -> Selection {
        let own = |(name, (prefixes, tcp, udp, category))| {
            OwnInclude { name, prefixes, names: Vec::new(), tcp, udp, category }
        };
        let include = include.into_iter().map(own).collect();
        Selection { categories, service_areas, exclude_sets, include, exclude, names: NameSelection::default() }
    }
}

/// An office of private prefixes: they never overlap the feeds above.
fn site() -> impl Strategy<Value = Site> {
    let source = (0_u8..4, 9_u8..=16).prop_map(|(net, length)| {
        let address = IpAddr::from([10, net * 64, 0, 0]);
        IpNet::new(address, length).unwrap().trunc()
    });
    let list = || prop::collection::vec(source.clone(), 0..4);
    let router = prop::collection::vec(address(), 0..2);
    (list(), list(), list(), router).prop_map(|(clients, left_out, queries_left, router)| Site {
        clients: Some(clients),
        left_out,
        queries_left,
        router,
    })
}

fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let source = prop::option::of(any::<(u8, u8)>().prop_map(|(a, b)| [10, a, b, 1].into()));
    let port = prop::sample::select(vec![
        0_u16, 25, 79, 80, 443, 445, 446, 3478, 3481, 3482, 65535,
    ]);
    let protocol = prop::sample::select(vec![TCP, UDP, 1, 58, 132]);
    let flow =
        (address(), protocol, port, source).prop_map(|(destination, protocol, port, source)| {
            Flow {
                destination,
                protocol,
                port,
                source,
            }
        });
    prop::collection::vec(flow, 60)
}

/// The flows, and their like to the addresses where a prefix begins and ends and next to those.
fn with_edges(flows: &[Flow], prefixes: &[IpNet]) -> Vec<Flow> {
    let mut all = flows.to_vec();
    for (prefix, flow) in prefixes.iter().zip(flows.iter().cycle()) {
        let (first, last) = (prefix.network(), prefix.broadcast());
        for destination in [first, last, before(first), after(last)] {
            all.push(Flow {
                destination,
                ..*flow
            });
            all.push(Flow {
                destination,
                protocol: TCP,
                port: 443,
                source: None,
            });
        }
    }
    all
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            std::net::Ipv4Addr::from_bits(address.to_bits().wrapping_sub(1)).into()
        }
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().wrapping_sub(1)).into(),
    }
}

fn after(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            std::net::Ipv4Addr::from_bits(address.to_bits().wrapping_add(1)).into()
        }
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().wrapping_add(1)).into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_plan_decides_as_the_naive_model(
        feed in feed(), select in selection(), site in site(), flows in flows(),
    ) {
        let sets = feed.sets.iter().flat_map(|set| set.prefixes.clone());
        let own = select.include.iter().flat_map(|include| include.prefixes.clone());
        let edges: Vec<IpNet> = sets.chain(own).chain(select.exclude.clone()).collect();
        let plan = compile(feed.clone(), select.clone(), site.clone()).unwrap();
        for flow in with_edges(&flows, &edges) {
            let expected = model(&feed, &select, &site, &flow);
            let found = match plan.decide(&flow) {
                Verdict::Steer(matched) => Some((matched.class.label.clone(), matched.prefix)),
                Verdict::Pass(_) => None,
            };
            prop_assert_eq!(found, expected, "{:?}", flow);
            if let Some(source) = flow.source {
                let kind = decide::source_kind(&plan, source);
                prop_assert_eq!(SourceKind::may_ask(kind), site.may_ask(source), "{}", source);
            }
        }
    }

    /// Whatever a feed holds: if it is accepted, nothing private, multicast or link-local is steered.
    #[test]
    fn no_accepted_feed_steers_what_is_never_steered(
        entries in prop::collection::vec((any::<u32>(), any::<u128>(), 0_u8..=32, 0_u8..=128), 1..4),
        probes in prop::collection::vec(any::<(u32, u128)>(), 50),
    ) {
        // Bias: half of the entries and of the probes lie in special-purpose space.
        let special = ["10.0.0.0", "127.0.0.0", "169.254.0.0", "172.16.0.0", "192.168.0.0", "224.0.0.0", "100.64.0.0"];
        let special: Vec<u32> = special.iter().map(|text| text.parse::<std::net::Ipv4Addr>().unwrap().to_bits()).collect();
        let near = |bits: u32| if bits.is_multiple_of(2) { special[bits as usize / 2 % special.len()] | bits >> 18 } else { bits };
        let near6 = |bits: u128| if bits.is_multiple_of(2) { bits >> 8 | 0xfe << 120 } else { bits };

        let ips: Vec<String> = entries
            .iter()
            .flat_map(|(v4, v6, length4, length6)| {
                let v4 = IpNet::new(std::net::Ipv4Addr::from_bits(near(*v4)).into(), *length4).unwrap();
                let v6 = IpNet::new(Ipv6Addr::from_bits(near6(*v6)).into(), *length6).unwrap();
                [v4.trunc().to_string(), v6.trunc().to_string()]
            })
            .collect();
        // One entry at a time: a single bad one would refuse the rest.
        for entry in &ips {
            let json = format!(r#"[{{"id":1,"serviceArea":"Common","category":"Optimize","ips":["{entry}"],"tcpPorts":"443"}}]"#);
            let Ok(feed) = Feed::parse("feed.json", json.as_bytes(), Instance::Worldwide) else { continue };
            let plan = compile(feed, Selection::default_for(Instance::Worldwide), Site::default()).unwrap();
            let net: IpNet = entry.parse().unwrap();
            let probes = probes.iter().flat_map(|(v4, v6)| {
                [std::net::Ipv4Addr::from_bits(near(*v4)).into(), Ipv6Addr::from_bits(near6(*v6)).into()]
            });
            for destination in probes.chain([net.network(), net.broadcast()]) {
                let flow = Flow { destination, protocol: TCP, port: 443, source: None };
                if let Verdict::Steer(matched) = plan.decide(&flow) {
                    prop_assert!(naively_public(destination), "{} steers {}", matched.prefix, destination);
                    prop_assert_eq!(never_steered(&destination.into()), None);
                }
            }
        }
    }
}

/// The standard library's notion, independent of the product's table.
fn naively_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_private()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_unspecified())
        }
        IpAddr::V6(a) => {
            !(a.is_unique_local()
                || a.is_loopback()
                || a.is_unicast_link_local()
                || a.is_multicast()
                || a.is_unspecified())
        }
    }
}

#[test]
fn queries_of_left_classes_are_left_alone_unless_another_class_is_more_specific() {
    let plan = |leave: ClassSelection| {
        builtin(|select, _| {
            select.categories = Category::ALL.into();
            select.names = NameSelection {
                steer: true,
                learn: true,
                leave,
                ..NameSelection::default()
            };
            select.include = vec![OwnInclude {
                name: "saas/crm".into(),
                prefixes: vec!["203.0.113.0/24".parse().unwrap()],
                names: vec!["a.sharepoint.com".parse().unwrap()],
                tcp: "443".parse().unwrap(),
                udp: Ports::default(),
                category: Category::Allow,
            }];
        })
    };
    let word = |plan: &Plan, name: &str| match plan.decide_name(name, None) {
        NameVerdict::Steer(_) => "steer",
        NameVerdict::Left(_) => "left",
        _ => "other",
    };
    let words = |leave: ClassSelection| {
        let plan = plan(leave);
        ["b.sharepoint.com", "a.sharepoint.com", "one.msftauth.net"].map(|name| word(&plan, name))
    };
    let none = ClassSelection::default;
    assert_eq!(words(none()), ["steer"; 3]);
    let sharepoint = ClassSelection {
        service_areas: [ServiceArea::SharePoint].into(),
        ..none()
    };
    assert_eq!(words(sharepoint), ["left", "steer", "steer"]);
    let lists = ClassSelection {
        lists: ["saas".to_owned()].into(),
        ..none()
    };
    assert_eq!(words(lists), ["steer", "left", "steer"]);
    let default = ClassSelection {
        categories: [Category::Default].into(),
        ..none()
    };
    assert_eq!(words(default), ["steer", "steer", "left"]);
    let by_set = ClassSelection {
        sets: [SetId(31)].into(),
        ..none()
    };
    assert_eq!(words(by_set), ["left", "steer", "steer"]);
}
