//! The files as Debian 12's daemons wrote them: networkd 252, dhclient 4.4.3.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use super::*;

const NETWORKD_LINK: &str = "# This is private data. Do not parse.
ADMIN_STATE=configured
OPER_STATE=routable
NETWORK_FILE=/etc/systemd/network/50.network
DNS=192.0.2.99 192.0.2.53 192.0.2.54 2001:db8:7::53 2001:db8:7::53
NTP=
DOMAINS=
DHCP_LEASE=/run/systemd/netif/leases/2
";

const NETWORKD_LEASE: &str = "# This is private data. Do not parse.
ADDRESS=192.0.2.192
ROUTER=192.0.2.1
DNS=192.0.2.53 192.0.2.54
HOSTNAME=vm
";

const DHCLIENT: &str = r#"lease {
  interface "wan0";
  fixed-address 192.0.2.191;
  option domain-name-servers 192.0.2.51;
  expire 1 2026/11/23 06:59:33;
}
lease {
  interface "wan0";
  fixed-address 192.0.2.192;
  option subnet-mask 255.255.255.0;
  option domain-name-servers 192.0.2.53,192.0.2.54;
  option domain-name "example.net";
  renew 1 2026/11/23 07:28:13;
  expire 1 2026/11/23 07:59:33;
}
lease {
  interface "wan1";
  option domain-name-servers 198.51.100.53;
  expire never;
}
"#;

const DHCLIENT6: &str = r#"default-duid "\000\001\000\0012\226\240\325\202\247m\002\256\247";
lease6 {
  interface "wan0";
  ia-na 6d:02:ae:a7 {
    starts 1795417175;
    iaaddr 2001:db8:7::138 {
      starts 1795417175;
      max-life 3600;
    }
  }
  option dhcp6.client-id 0:1:0:1:32:96:a0:d5:82:a7:6d:2:ae:a7;
  option dhcp6.name-servers 2001:db8:7::53;
  option dhcp6.status-code success "success";
}
"#;

fn at(time: &str) -> SystemTime {
    humantime::parse_rfc3339_weak(time).unwrap()
}

fn addresses(words: &[String]) -> Vec<IpAddr> {
    let addresses = words.iter().map(|word| parse::address(word));
    addresses.map(|it| it.unwrap()).collect()
}

fn list(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|it| it.parse().unwrap()).collect()
}

#[test]
fn of_networkd_every_server_counts_in_its_order() {
    assert_eq!(
        parse::assignments(NETWORKD_LINK, "DNS").join(" "),
        "192.0.2.99 192.0.2.53 192.0.2.54 2001:db8:7::53 2001:db8:7::53"
    );
    assert_eq!(
        addresses(&parse::assignments(NETWORKD_LEASE, "DNS")),
        list(&["192.0.2.53", "192.0.2.54"])
    );
    assert_eq!(parse::assignments(NETWORKD_LINK, "SERVERS"), [""; 0]);
}

#[test]
fn of_dhclient_the_last_lease_of_the_interface_counts_until_its_end() {
    let during = at("2026-11-23 07:59:32");
    let servers = |interface, now| addresses(&parse::dhclient(DHCLIENT, interface, now));
    assert_eq!(servers("wan0", during), list(&["192.0.2.53", "192.0.2.54"]));
    assert_eq!(servers("wan0", during + Duration::from_secs(1)), list(&[]));
    assert_eq!(
        servers("wan1", during + Duration::from_hours(24 * 3650)),
        list(&["198.51.100.53"])
    );
    assert_eq!(servers("wan", during), list(&[]));
    assert_eq!(
        addresses(&parse::dhclient(DHCLIENT6, "wan0", during)),
        list(&["2001:db8:7::53"])
    );
    // Given back, and half of a lease that is just being written.
    let released = DHCLIENT6.replace("  option dhcp6.c", "  released;\n  option dhcp6.c");
    assert_eq!(parse::dhclient(&released, "wan0", during), [""; 0]);
    for end in 0..DHCLIENT.len() {
        let words = parse::dhclient(&DHCLIENT[..end], "wan0", during);
        assert!(addresses(&words).iter().all(IpAddr::is_ipv4));
    }
}

#[test]
fn of_a_resolv_conf_the_name_servers_count() {
    let text = "# made by a script\nsearch example.net\nnameserver 192.0.2.53\n\
                 nameserver\t2001:db8::53 # the other\nnameserver\noptions edns0\n";
    assert_eq!(
        addresses(&parse::resolv_conf(text)),
        list(&["192.0.2.53", "2001:db8::53"])
    );
}

#[test]
fn an_address_is_one_that_clients_queries_can_be_sent_to() {
    for (word, address) in [
        ("192.0.2.53", "192.0.2.53"),
        ("192.0.2.53#dns.example", "192.0.2.53"),
        ("[2001:db8::53]:53#dns.example", "2001:db8::53"),
        ("2001:db8::53%wan0", "2001:db8::53"),
        ("::ffff:192.0.2.53", "192.0.2.53"),
        ("10.0.0.138", "10.0.0.138"),
    ] {
        assert_eq!(
            parse::address(word).unwrap(),
            address.parse::<IpAddr>().unwrap()
        );
    }
    for (word, why) in [
        ("fe80::1%wan0", "link-local"),
        ("127.0.0.53", "behind a breakout"),
        ("0.0.0.0", "behind a breakout"),
        ("ff02::1", "behind a breakout"),
        ("192.0.2.53:5353", "port 53"),
        ("dns.example", "no address"),
        ("", "no address"),
    ] {
        let said = parse::address(word).unwrap_err();
        assert!(said.contains(why), "{word}: {said}");
    }
}

fn write(root: &Path, file: &str, text: &str) {
    let file = root.join(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// What is found with these files in the box, each address with its file.
fn found(files: &[(&str, &str)], interface: &str) -> (Vec<String>, Vec<String>) {
    let box_ = tempfile::tempdir().unwrap();
    let root = box_.path();
    for (file, text) in files {
        write(root, file, text);
    }
    let seen = look(root, &root.join("run/steer/resolvers"), interface, Some(2));
    let relative = |it: &str| it.replace(&format!("{}/", root.display()), "");
    let of = |it: &LinkResolver| format!("{} {}", it.address, it.file.display());
    (
        seen.found.iter().map(|it| relative(&of(it))).collect(),
        seen.problems.iter().map(|it| relative(it)).collect(),
    )
}

#[test]
fn every_daemons_files_are_found_and_an_address_counts_where_it_is_named_first() {
    let never = DHCLIENT.replace("expire 1 2026/11/23 07:59:33", "expire never");
    let (resolvers, problems) = found(
        &[
            ("run/steer/resolvers/wan0", "nameserver 203.0.113.1\n"),
            ("run/systemd/netif/links/2", NETWORKD_LINK),
            ("run/systemd/netif/links/3", "DNS=203.0.113.66\n"),
            ("run/systemd/netif/leases/2", "DNS=192.0.2.53 203.0.113.2\n"),
            ("run/systemd/resolve/netif/2", "SERVERS=203.0.113.3 ::1\n"),
            (
                "run/dhcpcd/hook-state/resolv.conf/wan0.ra",
                "nameserver 2001:db8::4\n",
            ),
            (
                "run/dhcpcd/hook-state/resolv.conf/wan00.ra",
                "nameserver 2001:db8::66\n",
            ),
            (
                "run/resolvconf/interface/wan0.udhcpc",
                "nameserver 203.0.113.5\n",
            ),
            ("run/resolvconf/interfaces/wan0", "nameserver 203.0.113.6\n"),
            ("var/lib/dhcp/dhclient.wan0.leases", &never),
            ("etc/ppp/resolv.conf", "nameserver 203.0.113.77\n"),
        ],
        "wan0",
    );
    assert_eq!(
        resolvers,
        [
            "203.0.113.1 run/steer/resolvers/wan0",
            "192.0.2.99 run/systemd/netif/links/2",
            "192.0.2.53 run/systemd/netif/links/2",
            "192.0.2.54 run/systemd/netif/links/2",
            "2001:db8:7::53 run/systemd/netif/links/2",
            "203.0.113.2 run/systemd/netif/leases/2",
            "203.0.113.3 run/systemd/resolve/netif/2",
            "2001:db8::4 run/dhcpcd/hook-state/resolv.conf/wan0.ra",
            "203.0.113.5 run/resolvconf/interface/wan0.udhcpc",
            "203.0.113.6 run/resolvconf/interfaces/wan0",
        ]
    );
    assert_eq!(
        problems,
        ["run/systemd/resolve/netif/2: \"::1\" cannot be a resolver behind a breakout"]
    );
}

#[test]
fn leases_and_pppds_file_are_found_where_daemons_keep_them() {
    let never = DHCLIENT.replace("expire 1 2026/11/23 07:59:33", "expire never");
    for file in [
        "var/lib/dhcp/dhclient.leases",
        "var/lib/dhclient/dhclient--wan0.lease",
        "var/lib/NetworkManager/dhclient-6fc1-wan0.lease",
        "run/dhclient/dhclient_wan0.leases",
        "run/dhclient.wan0.leases",
    ] {
        let (resolvers, problems) = found(&[(file, &never)], "wan0");
        assert_eq!(
            resolvers,
            [format!("192.0.2.53 {file}"), format!("192.0.2.54 {file}")]
        );
        assert_eq!(problems, [""; 0]);
    }
    let ppp = [("etc/ppp/resolv.conf", "nameserver 203.0.113.77\n")];
    assert_eq!(found(&ppp, "ppp0").0, ["203.0.113.77 etc/ppp/resolv.conf"]);
    assert_eq!(found(&[], "ppp0"), (vec![], vec![]));
}

#[test]
fn what_cannot_be_read_is_told_with_its_file() {
    let box_ = tempfile::tempdir().unwrap();
    let root = box_.path();
    fs::create_dir_all(root.join("run/systemd/netif/links/2")).unwrap();
    fs::create_dir_all(root.join("run/systemd/netif/leases")).unwrap();
    fs::write(root.join("run/systemd/netif/leases/2"), [0xff, 0xfe]).unwrap();
    let seen = look(root, &root.join("none"), "wan0", Some(2));
    assert_eq!(seen.found, []);
    assert!(
        seen.problems[0].contains("links/2: it is no file"),
        "{seen:?}"
    );
    assert!(seen.problems[1].contains("leases/2"), "{seen:?}");
}
