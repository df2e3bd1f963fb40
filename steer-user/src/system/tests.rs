//! The list of objects in a real network namespace: applied, damaged, repaired, removed.

use std::{fs, net::UdpSocket, path::Path};

use super::{
    MarkBits,
    testing::{assert_same, in_namespace, link, sh},
    *,
};

fn interface(name: &str) -> InterfaceName {
    InterfaceName::new(name).unwrap()
}

/// A breakout that `links` made: `brk0` is number 1.
pub(super) fn path(number: u8) -> PathSpec {
    let n = number - 1;
    PathSpec {
        id: PathId::new(number).unwrap(),
        name: format!("fiber{n}"),
        interface: interface(&format!("brk{n}")),
        exists: true,
        mtu: 1492,
        next_hop4: Some(NextHop::Via(
            format!("192.0.2.{}", n * 16 + 1).parse().unwrap(),
        )),
        next_hop6: Some(NextHop::Via("fe80::1".parse().unwrap())),
        addresses: vec![
            format!("192.0.2.{}", n * 16 + 2).parse().unwrap(),
            format!("2001:db8:{n}::2").parse().unwrap(),
            "fe80::2".parse().unwrap(),
        ],
        valid4: Vec::new(),
        valid6: Vec::new(),
    }
}

pub(super) fn wanted(paths: u8) -> Wanted {
    Wanted {
        marks: MarkBits::DEFAULT,
        lan: vec![interface("lan0")],
        paths: (1..=paths).map(path).collect(),
        route_tables: vec![TableId::MAIN],
        routes: Owner::Steer,
        nat: Owner::Steer,
        forward_queries: vec![],
        ipv6: true,
        keep_gateways: true,
    }
}

/// A router with two breakouts, and things of other owners of every kind that steer uses.
fn links() {
    link("lan0");
    sh("ip addr add 10.1.0.1/24 dev lan0");
    for n in 0..2 {
        link(&format!("brk{n}"));
        sh(&format!(
            "ip addr add 192.0.2.{}/28 dev brk{n}; ip addr add 2001:db8:{n}::2/64 dev brk{n} nodad
             # The kernel makes its route a little later, even without duplicate detection.
             until ip -6 route show table local dev brk{n} | grep -q 2001:; do sleep 0.01; done",
            n * 16 + 2
        ));
    }
    sh("ip rule add pref 600 fwmark 0x100/0x3f00 lookup 100
        ip rule add pref 605 from 10.1.0.7 lookup 100 protocol 86
        ip rule add pref 1600 fwmark 0x21000000/0x3f000000 lookup 36501
        ip -6 rule add pref 610 oif lan0 lookup 100
        ip route add default via 10.1.0.2 metric 50
        ip neighbour add 192.0.2.9 dev brk0 lladdr 02:00:00:00:00:09 nud permanent
        ip neighbour add 192.0.2.10 dev brk0 lladdr 02:00:00:00:00:0a nud permanent protocol 86
        ip route add 198.51.100.0/24 via 192.0.2.1 table 36501
        ip route add default via 192.0.2.1 table 100
        nft -f - <<END
table inet filter { chain forward { type filter hook forward priority 0; policy drop; accept; }; }
table ip steer { counter c { }; }
END");
}

/// Everything steer may change, as text.
fn everything() -> String {
    sh(
        "ip rule; ip -6 rule; ip neighbour show nud permanent; ip neighbour show nud all proto 86; ip route show table all; ip -6 route show table all; nft list ruleset
        cd /proc/sys/net; grep -r . ipv4/conf ipv6/conf | grep -v -e stable_secret -e /mtu: | sort",
    )
}

async fn apply(kernel: &mut Kernel, list: &[Object]) -> Change {
    apply_all(kernel, list).await.unwrap()
}

async fn all_present(kernel: &mut Kernel, list: &[Object]) {
    for object in list {
        let presence = object.present(kernel).await.unwrap();
        assert_eq!(presence, Presence::Present, "{object}");
    }
}

#[test]
fn the_list_reads_like_the_commands_it_equals() {
    let mut wanted = wanted(2);
    wanted.paths[1].next_hop4 = Some(NextHop::Device);
    wanted.paths[1].next_hop6 = None;
    wanted.paths[0].next_hop4 = Some(NextHop::ViaOnLink([203, 0, 113, 1].into()));
    wanted.route_tables.push(TableId(52));
    wanted.forward_queries = vec![interface("lan0")];
    let text: Vec<_> = objects(&wanted).iter().map(Object::to_string).collect();
    golden("objects.txt", &(text.join("\n") + "\n"));
}

#[test]
fn the_ruleset_for_one_path_is_the_tested_one() {
    golden("one-path.nft", NftTable::new(&wanted(1)).text());
}

#[test]
fn the_ruleset_for_two_paths_is_the_tested_one() {
    let mut wanted = wanted(2);
    wanted.paths[0].valid4 = vec![
        "203.0.113.0/25".parse().unwrap(),
        "203.0.113.128/25".parse().unwrap(),
    ];
    wanted.paths[0].valid6 = vec!["2001:db8:100::/56".parse().unwrap()];
    wanted.nat = Owner::External;
    golden("two-paths-external-nat.nft", NftTable::new(&wanted).text());
    wanted.nat = Owner::Steer;
    golden("two-paths.nft", NftTable::new(&wanted).text());
    wanted.forward_queries = vec![interface("lan0")];
    golden("forwarded-queries.nft", NftTable::new(&wanted).text());
}

/// Compares with the file in `golden/`. `STEER_BLESS=1` writes the file instead.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/system/golden")
        .join(name);
    if std::env::var_os("STEER_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(
        expected == text,
        "{name} differs from what is rendered now:\n{text}"
    );
}

#[test]
fn the_ruleset_loads_for_every_number_of_paths_and_is_recognised() {
    in_namespace(async || {
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        for paths in [0, 1, 2, 15, 3] {
            let table = Object::NftTable(NftTable::new(&wanted(paths)));
            assert_eq!(table.apply(&mut kernel).await.unwrap(), Change::Made);
            assert_eq!(table.present(&mut kernel).await.unwrap(), Presence::Present);
            assert_eq!(table.apply(&mut kernel).await.unwrap(), Change::None);
        }
    });
}

#[test]
fn applying_twice_changes_nothing_and_removing_leaves_no_trace() {
    in_namespace(async || {
        links();
        let before = everything();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let list = objects(&Wanted {
            forward_queries: vec![interface("lan0")],
            ..wanted(2)
        });
        for object in &list {
            // The one value that is right by default.
            if !object.to_string().contains("use_tempaddr") {
                let presence = object.present(&mut kernel).await.unwrap();
                assert_ne!(presence, Presence::Present, "{object}");
            }
        }

        assert_eq!(apply(&mut kernel, &list).await, Change::Made);
        all_present(&mut kernel, &list).await;
        let applied = everything();
        assert_ne!(before, applied);
        assert!(leftovers(&mut kernel, &list).await.unwrap().is_empty());
        assert_eq!(apply(&mut kernel, &list).await, Change::None);
        let again = reconcile(&mut kernel, &list).await;
        assert!(
            again.repaired.is_empty() && again.failed.is_empty(),
            "{again:?}"
        );
        assert_same(&everything(), &applied);

        assert!(remove_all(&mut kernel, &list).await.is_empty());
        assert_same(&everything(), &before);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
        assert!(remove_all(&mut kernel, &list).await.is_empty());
    });
}

#[test]
fn what_a_killed_controller_left_is_found_and_removed_without_its_configuration() {
    in_namespace(async || {
        links();
        let before = everything();
        let state = tempfile::tempdir().unwrap();
        let mut list = objects(&Wanted {
            forward_queries: vec![interface("lan0")],
            ..wanted(2)
        });
        apply(&mut Kernel::open(state.path()).unwrap(), &list).await;

        let mut kernel = Kernel::open(state.path()).unwrap();
        let mut found = leftovers(&mut kernel, &[]).await.unwrap();
        assert!(remove_all(&mut kernel, &found).await.is_empty());
        assert_same(&everything(), &before);
        found.sort_by_key(ToString::to_string);
        list.sort_by_key(ToString::to_string);
        // A value that was right before is not on record, and the table found is an unread one.
        list.retain(|o| {
            !matches!(o, Object::NftTable(_)) && !o.to_string().contains("use_tempaddr")
        });
        found.retain(|o| !matches!(o, Object::NftTable(_)));
        assert_eq!(found, list);
    });
}

#[test]
fn a_path_less_leaves_only_the_other_in_the_box() {
    in_namespace(async || {
        links();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let one = objects(&wanted(1));
        apply(&mut kernel, &one).await;
        let with_one = everything();

        let two = objects(&wanted(2));
        apply(&mut kernel, &two).await;
        apply(&mut kernel, &one).await;
        let surplus = leftovers(&mut kernel, &one).await.unwrap();
        assert!(remove_all(&mut kernel, &surplus).await.is_empty());
        all_present(&mut kernel, &one).await;
        assert_same(&everything(), &with_one);
    });
}

#[test]
fn damage_of_every_kind_is_seen_and_repaired() {
    in_namespace(async || {
        links();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let list = objects(&wanted(2));
        apply(&mut kernel, &list).await;
        let applied = everything();
        // The first of a pair does the damage; the second undoes side effects on what is not ours.
        for damage in [
            "nft delete table inet steer",
            "nft flush chain inet steer nat",
            "nft flush table inet steer",
            "nft delete rule inet steer guard handle $(nft -a list chain inet steer guard | \
             sed -n 's/.*goto check # handle //p' | head -1)",
            "nft insert rule inet steer guard accept",
            "nft add rule inet steer pre counter",
            "nft replace rule inet steer check handle $(nft -a list chain inet steer check | \
             sed -n 's/.*fib.*# handle //p') accept",
            "nft add element inet steer lan '{ \"eth7\" }'",
            "nft delete element inet steer brk '{ \"brk1\" }'",
            "nft add element inet steer valid4_1 '{ 10.0.0.0/8, 172.16.0.1-172.16.0.9 }'",
            "nft add element inet steer valid6_2 '{ fd00::/8, 2001:db8::7 }'",
            "nft add chain inet steer mine; nft add rule inet steer post jump mine",
            "nft add set inet steer mine '{ type mark; }'",
            "nft add map inet steer mine '{ type mark : verdict; }'",
            "nft add counter inet steer mine",
            "nft add table inet steer '{ flags dormant; }'",
            "nft chain inet steer nat '{ policy drop; }'",
            "ip rule del pref 601",
            "ip -6 rule del pref 600",
            "ip rule del pref 597; ip -6 rule del pref 599",
            "ip route del default table 36501",
            "ip route replace default via 192.0.2.3 dev brk0 table 36501 proto 86",
            "ip route replace default dev brk0 table 36501 proto 86",
            "ip -6 route flush table 36502",
            "echo 1 > /proc/sys/net/ipv4/conf/brk1/rp_filter",
        ] {
            sh(damage);
            let mut changed = 0;
            for object in &list {
                changed +=
                    u32::from(object.present(&mut kernel).await.unwrap() != Presence::Present);
            }
            assert!(changed > 0, "`{damage}` was not seen");
            let result = reconcile(&mut kernel, &list).await;
            assert!(result.failed.is_empty(), "{damage}: {result:?}");
            assert!(!result.repaired.is_empty(), "{damage}");
            all_present(&mut kernel, &list).await;
        }
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines.join("\n")
        };
        assert_same(&sorted(&everything()), &sorted(&applied));
    });
}

#[test]
fn flushes_at_any_moment_do_no_lasting_harm() {
    in_namespace(async || {
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let list = [
            Object::NftTable(NftTable::new(&wanted(1))),
            Object::NftTable(NftTable::new(&wanted(2))),
        ];
        let flusher = std::process::Command::new("sh")
            .args([
                "-c",
                "for i in $(seq 100); do nft flush ruleset; nft flush table inet steer; done",
            ])
            .stderr(std::process::Stdio::null())
            .spawn();
        let mut flusher = flusher.unwrap();
        let mut made = 0;
        // Two different rulesets in turn, so that each round has to change something.
        while flusher.try_wait().unwrap().is_none() {
            for table in &list {
                made += u32::from(table.apply(&mut kernel).await.is_ok());
            }
        }
        assert!(made > 0);
        apply(&mut kernel, &list[1..]).await;
        all_present(&mut kernel, &list[1..]).await;
        NftTable::remove().await.unwrap();
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
fn a_reload_keeps_counters_and_base_chains() {
    in_namespace(async || {
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let handles = || sh("nft -a list table inet steer | grep -E '^\\s(chain|counter|set)'");
        assert_eq!(nft::counters().await.unwrap(), None);
        NftTable::new(&wanted(2)).apply(&mut kernel).await.unwrap();
        let before = handles();
        // Steered by hand: a granted packet from an address that is not the device's own.
        link("brk0");
        sh("ip addr add 10.1.0.1/24 dev brk0
            ip addr add 10.9.0.1/32 dev lo; ip neigh add 10.1.0.2 lladdr 2:0:0:0:0:1 dev brk0
            nft add rule inet steer out meta mark set 0x21000000
            nft flush chain inet steer nat");
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        // The guard's drop reaches a local sender as an error.
        socket.send_to(&[0; 20], "10.1.0.2:9").unwrap_err();
        let counters = nft::counters().await.unwrap().unwrap();
        assert_eq!(
            counters.guard,
            nft::Count {
                packets: 1,
                bytes: 48
            }
        );
        assert_eq!(counters.granted.len(), 2);

        let mut changed = wanted(2);
        changed.lan.push(interface("lan1"));
        changed.paths[1].valid4 = vec!["203.0.113.0/24".parse().unwrap()];
        NftTable::new(&changed).apply(&mut kernel).await.unwrap();
        assert_eq!(nft::counters().await.unwrap(), Some(counters));
        assert_eq!(handles(), before);
    });
}

#[test]
fn objects_of_others_are_neither_taken_for_ours_nor_replaced() {
    in_namespace(async || {
        links();
        sh("ip route add default via 192.0.2.1 table 36501 proto static
            ip rule add pref 601 fwmark 0x21000000/0x3f000000 lookup 36501 protocol boot");
        let before = everything();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let list = objects(&wanted(1));
        // The route's place is taken; a rule may stand beside one that is alike.
        let result = reconcile(&mut kernel, &list).await;
        let failed: Vec<_> = result.failed.iter().map(|(_, e)| e.to_string()).collect();
        assert_eq!(failed.len(), 1, "{failed:#?}");
        assert!(failed[0].contains("is not steer's"), "{failed:#?}");
        assert_eq!(sh("ip rule show pref 601").lines().count(), 2);
        assert!(remove_all(&mut kernel, &list).await.is_empty());
        assert_same(&everything(), &before);
    });
}

#[test]
fn a_missing_device_fails_its_own_objects_only_and_heals_when_it_comes() {
    in_namespace(async || {
        links();
        sh("ip link del brk1");
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let list = objects(&wanted(2));
        let result = reconcile(&mut kernel, &list).await;
        assert_eq!(
            result.failed.len(),
            8,
            "six sysctls, two routes: {:#?}",
            result.failed
        );
        for (_, error) in &result.failed {
            assert!(matches!(error, SystemError::LinkMissing { .. }), "{error}");
        }
        assert!(matches!(
            apply_all(&mut kernel, &list).await,
            Err(SystemError::LinkMissing { .. })
        ));
        link("brk1");
        sh("ip addr add 192.0.2.18/28 dev brk1
            ip addr add 2001:db8:1::2/64 dev brk1 nodad");
        assert!(reconcile(&mut kernel, &list).await.failed.is_empty());
        all_present(&mut kernel, &list).await;
    });
}

#[test]
fn point_to_point_and_off_link_gateways_are_routed() {
    in_namespace(async || {
        links();
        sh(
            "ip tuntap add ppp0 mode tun; ip addr add 192.0.2.99 peer 192.0.2.100 dev ppp0
            ip link set ppp0 up",
        );
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let mut wanted = wanted(2);
        wanted.paths[0].next_hop4 = Some(NextHop::ViaOnLink([203, 0, 113, 1].into()));
        wanted.paths[0].next_hop6 = Some(NextHop::ViaOnLink("2001:db8:ffff::1".parse().unwrap()));
        wanted.paths[1].interface = interface("ppp0");
        wanted.paths[1].next_hop4 = Some(NextHop::Device);
        wanted.paths[1].next_hop6 = Some(NextHop::Device);
        let list = objects(&wanted);
        apply(&mut kernel, &list).await;
        all_present(&mut kernel, &list).await;
        assert_eq!(apply(&mut kernel, &list).await, Change::None);
        let shown = sh("ip route show table 36501; ip route show table 36502
                        ip -6 route show table 36501; ip -6 route show table 36502");
        assert_eq!(
            shown
                .lines()
                .map(|line| line.trim().replace(" dead linkdown", "")) // nobody reads the tun device
                .collect::<Vec<_>>(),
            [
                "default via 203.0.113.1 dev brk0 proto 86 onlink",
                "198.51.100.0/24 via 192.0.2.1 dev brk0",
                "default dev ppp0 proto 86 scope link",
                "default via 2001:db8:ffff::1 dev brk0 proto 86 metric 1024 onlink pref medium",
                "default dev ppp0 proto 86 metric 1024 pref medium",
            ]
        );
        assert!(remove_all(&mut kernel, &list).await.is_empty());
    });
}

#[test]
fn a_more_specific_route_wins_and_a_split_default_does_not() {
    in_namespace(async || {
        links();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        apply(&mut kernel, &objects(&wanted(1))).await;
        sh("ip route add 0.0.0.0/1 via 10.1.0.2; ip route add 52.96.0.0/14 via 10.1.0.3");
        let via = |to: &str| sh(&format!("ip route get {to} mark 0x21000000 | head -1"));
        assert!(
            via("13.107.6.152").contains("via 192.0.2.1 dev brk0"),
            "{}",
            via("13.107.6.152")
        );
        assert!(via("52.97.1.1").contains("via 10.1.0.3 dev lan0"));
        assert!(sh("ip route get 13.107.6.152").contains("dev lan0"));
        // The router's own packets: from the breakout's address, or bound to its device.
        assert!(sh("ip route get 13.107.6.152 from 192.0.2.2").contains("dev brk0"));
        assert!(sh("ip route get 13.107.6.152 oif brk0").contains("via 192.0.2.1 dev brk0"));
        assert!(!sh("ip route get 192.0.2.5 oif brk0").contains("via"));
    });
}

#[test]
fn a_sysctl_comes_back_after_a_crash_but_not_over_somebody_elses_change() {
    in_namespace(async || {
        links();
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("made/when/needed");
        let value = |n: u8| format!("/proc/sys/net/ipv4/conf/brk{n}/rp_filter");
        let read = |n| fs::read_to_string(value(n)).unwrap().trim().to_owned();
        let list = objects(&wanted(2));
        sh(&format!("echo 1 > {}; echo 1 > {}", value(0), value(1)));
        apply(&mut Kernel::open(&directory).unwrap(), &list).await;
        assert_eq!((read(0), read(1)), ("2".into(), "2".into()));

        // A new process, as after a crash.
        let mut kernel = Kernel::open(&directory).unwrap();
        sh(&format!("echo 0 > {}", value(1)));
        assert!(remove_all(&mut kernel, &list).await.is_empty());
        assert_eq!((read(0), read(1)), ("1".into(), "0".into()));
    });
}

#[test]
fn a_link_too_small_for_ipv6_is_no_obstacle() {
    in_namespace(async || {
        links();
        sh("ip link set brk0 mtu 1000");
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let mut wanted = wanted(1);
        wanted.paths[0].next_hop6 = None;
        let list = objects(&wanted);
        apply(&mut kernel, &list).await;
        all_present(&mut kernel, &list).await;
        assert!(remove_all(&mut kernel, &list).await.is_empty());
    });
}

#[test]
fn no_sysctl_changes_without_an_undo_record() {
    in_namespace(async || {
        links();
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("file");
        fs::write(&file, "").unwrap();
        let before = everything();
        let mut kernel = Kernel::open(&file).unwrap();
        let error = apply_all(&mut kernel, &objects(&wanted(1)))
            .await
            .unwrap_err();
        assert!(matches!(error, SystemError::Undo { .. }), "{error}");
        assert_same(&everything(), &before);

        fs::write(state.path().join("undo.json"), "{ \"boot\": ").unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let error = apply_all(&mut kernel, &objects(&wanted(1)))
            .await
            .unwrap_err();
        assert!(matches!(error, SystemError::Undo { .. }), "{error}");
        assert_same(&everything(), &before);
    });
}

#[test]
fn records_of_another_boot_or_of_an_interface_made_anew_are_not_restored() {
    in_namespace(async || {
        links();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let list = objects(&wanted(1));
        apply(&mut kernel, &list).await;
        sh(
            "ip link del brk0; ip link add brk0 type veth peer name brk0-p
            echo 2 > /proc/sys/net/ipv4/conf/brk0/rp_filter",
        );
        assert!(remove_all(&mut kernel, &list).await.is_empty());
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/brk0/rp_filter").trim(), "2");

        sh("echo 0 > /proc/sys/net/ipv4/conf/brk0/rp_filter");
        reconcile(&mut kernel, &list).await;
        let record = state.path().join("undo.json");
        let text = fs::read_to_string(&record).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(&record, text.replace(boot.trim(), "another")).unwrap();
        assert!(remove_all(&mut kernel, &list).await.is_empty());
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/brk0/rp_filter").trim(), "2");
    });
}

#[test]
fn external_routes_and_translation_are_left_to_the_box() {
    let mut wanted = wanted(2);
    wanted.routes = Owner::External;
    let list = objects(&wanted);
    assert!(matches!(&list[..], [Object::NftTable(table)] if table.text().contains("masquerade")));
    wanted.nat = Owner::External;
    wanted.routes = Owner::Steer;
    let list = objects(&wanted);
    let table = list.iter().find_map(|o| match o {
        Object::NftTable(table) => Some(table.text()),
        _ => None,
    });
    assert!(!table.unwrap().contains("masquerade"));
    assert!(table.unwrap().contains("counter name guard drop"));
}

#[test]
fn names_that_could_reach_beyond_their_place_are_refused() {
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "a\"b",
        "ppp*",
        "sixteen-letters!",
        "a\nb",
        "a:b",
    ] {
        assert!(InterfaceName::new(name).is_err(), "{name:?}");
    }
    for name in ["eth0.100", "br-lan", "wan@x", "{brk}", "#1"] {
        assert!(InterfaceName::new(name).is_ok(), "{name:?}");
    }
}

#[test]
fn a_name_with_dots_and_braces_works_everywhere() {
    in_namespace(async || {
        link("a.1;{b}");
        sh("ip addr add 192.0.2.2/28 dev 'a.1;{b}'");
        let before = everything();
        let state = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open(state.path()).unwrap();
        let mut wanted = wanted(1);
        wanted.paths[0].interface = interface("a.1;{b}");
        let list = objects(&wanted);
        apply(&mut kernel, &list).await;
        all_present(&mut kernel, &list).await;
        assert!(remove_all(&mut kernel, &list).await.is_empty());
        assert_same(&everything(), &before);
    });
}
