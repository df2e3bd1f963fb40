//! IPv6 prefixes that the breakout's provider delegated: their packets leave untranslated as long as
//! the lease says so. The routes and addresses are those that DHCPv6 clients make (systemd-networkd,
//! dhcpcd); the provider's wire judges.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::Value;
use steer_tests::{
    delegation::Delegation,
    lab::{Breakout, Lab, LabOptions},
    server::Site,
    steer::{Settings, Steer},
    traffic::{Fleet, Flow, probe_all},
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
const PERIOD: Duration = Duration::from_millis(100);

/// Of the provider's range 2001:db8:700::/40.
const OLD: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x700, 0, 0, 0, 0, 0);
const NEW: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x7ab, 0, 0, 0, 0, 0);

fn office(breakouts: u8) -> Lab {
    Lab::start(LabOptions {
        breakouts,
        ..LabOptions::default()
    })
    .unwrap()
}

/// The first LAN's part of a delegated prefix: its `last` host.
fn host(delegated: Ipv6Addr, last: u16) -> Ipv6Addr {
    let [a, b, c, ..] = delegated.segments();
    Ipv6Addr::new(a, b, c, 1, 0, 0, 0, last)
}

fn client(delegated: Ipv6Addr) -> IpAddr {
    host(delegated, 0x10).into()
}

/// The provider gives the prefix out: routes it here, and takes it for valid.
fn gives(lab: &Lab, breakout: &Breakout, delegated: Ipv6Addr) {
    let via = breakout.address.1;
    lab.isp
        .ip(&format!("route add {delegated}/48 via {via}\n"))
        .unwrap();
    let prefix: IpNet = format!("{delegated}/48").parse().unwrap();
    lab.accept_source(breakout, prefix).unwrap();
}

/// The provider takes the prefix back: from now on its judge writes down who sends from it.
fn takes_back(lab: &Lab, breakout: &Breakout, delegated: Ipv6Addr) {
    let link = breakout.isp_interface;
    lab.isp
        .nft(&format!(
            "delete element inet lab_judge {link}6 {{ {delegated}/48 }}"
        ))
        .unwrap();
    lab.isp
        .ip(&format!("route replace blackhole {delegated}/48\n"))
        .unwrap();
}

/// What the box's DHCPv6 client does with a lease, and the LAN's clients with what they hear of it.
fn lease(lab: &Lab, delegated: Ipv6Addr) {
    lab.router
        .ip(&format!(
            "route add unreachable {delegated}/48 dev lo proto dhcp metric 1024\n"
        ))
        .unwrap();
    on_lan(lab, delegated);
}

fn on_lan(lab: &Lab, delegated: Ipv6Addr) {
    let router = host(delegated, 1);
    lab.router
        .ip(&format!("addr add {router}/64 dev lan0 nodad\n"))
        .unwrap();
    client_has(lab, delegated);
}

/// What a client of the LAN makes of the advertisement.
fn client_has(lab: &Lab, delegated: Ipv6Addr) {
    let client = client(delegated);
    lab.client
        .ip(&format!("addr add {client}/64 dev eth0 nodad\n"))
        .unwrap();
}

/// The lease is over: the route is gone, and the addresses are not to be used any more.
fn expire(lab: &Lab, delegated: Ipv6Addr) {
    let (router, client) = (host(delegated, 1), host(delegated, 0x10));
    lab.router
        .ip(&format!(
            "route del unreachable {delegated}/48 dev lo proto dhcp metric 1024\n\
             addr change {router}/64 dev lan0 preferred_lft 0\n"
        ))
        .unwrap();
    lab.client
        .ip(&format!(
            "addr change {client}/64 dev eth0 preferred_lft 0\n"
        ))
        .unwrap();
}

/// A router advertisement came in by this breakout.
fn advertise(lab: &Lab, breakout: &Breakout) {
    let (gateway, link) = (breakout.gateway.1, breakout.interface);
    let metric = if link == "brk0" { 2000 } else { 2001 };
    lab.router
        .ip(&format!(
            "route add default via {gateway} dev {link} proto ra metric {metric}\n"
        ))
        .unwrap();
}

/// Waits until the first breakout's delegated prefixes are these, which the table then has.
fn wait_for(steer: &Steer<'_>, what: &str, delegated: &[Ipv6Addr]) {
    let wanted: Vec<String> = delegated.iter().map(|it| format!("{it}/48")).collect();
    let are = |status: &Value| {
        let seen = status["breakouts"][0]["delegated"].as_array();
        let seen = seen.into_iter().flatten().filter_map(Value::as_str);
        seen.eq(wanted.iter().map(String::as_str))
    };
    steer.wait_for(what, are).unwrap();
}

fn flows(source: IpAddr) -> Vec<Flow> {
    let to = |last| Ipv6Addr::new(0x2603, 0x1006, 0, 0, 0, 0, 2, last).into();
    [
        Flow::tcp(to(1), 443),
        Flow::tcp(to(2), 443),
        Flow::udp(to(3), 443),
    ]
    .map(|flow| flow.from(source))
    .into()
}

/// New flows from this client leave by the breakout, and the front door sees this source.
fn assert_leaves_as(lab: &Lab, client: IpAddr, seen: IpAddr) {
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(client)).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
        assert_eq!(answer.seen_source.ip(), seen, "{}", answer.flow);
    }
}

fn guarded(steer: &Steer<'_>) -> u64 {
    let status = steer.status().unwrap();
    status["nftables"]["guard"].as_u64().unwrap()
}

#[test]
fn a_delegated_prefix_leaves_untranslated_and_is_followed_as_the_lease_changes() {
    let lab = office(1);
    let link = lab.breakouts()[0];
    let own = IpAddr::V6(link.address.1);
    on_lan(&lab, OLD);
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    // Nobody says whose it is.
    assert_leaves_as(&lab, client(OLD), own);

    gives(&lab, &link, OLD);
    advertise(&lab, &link);
    lab.router
        .ip(&format!(
            "route add unreachable {OLD}/48 dev lo proto dhcp metric 1024\n"
        ))
        .unwrap();
    wait_for(&steer, "the delegated prefix", &[OLD]);
    assert_leaves_as(&lab, client(OLD), client(OLD));
    let fleet = Fleet::open(&lab.client, &flows(client(OLD)), PERIOD).unwrap();
    fleet.wait_for_answers(PATIENCE).unwrap();
    assert_eq!(guarded(&steer), 0);

    // Another lease: from now on the provider takes packets from the old prefix for forged, and the lab
    // fails at its end if there was one.
    gives(&lab, &link, NEW);
    expire(&lab, OLD);
    lease(&lab, NEW);
    wait_for(&steer, "the new prefix", &[NEW]);
    takes_back(&lab, &link, OLD);
    assert_leaves_as(&lab, client(NEW), client(NEW));
    assert_leaves_as(&lab, client(OLD), own);
    let deadline = Instant::now() + PATIENCE;
    while guarded(&steer) == 0 {
        assert!(Instant::now() < deadline, "flows of the old prefix go on");
        std::thread::sleep(PERIOD);
    }
    drop(fleet.stop());
    let log = steer.whole_log().unwrap();
    assert!(
        log.contains(&format!("{OLD}/48 is delegated no more")),
        "{log}"
    );

    expire(&lab, NEW);
    wait_for(&steer, "no prefix", &[]);
    takes_back(&lab, &link, NEW);
    assert_leaves_as(&lab, client(NEW), own);
    assert_eq!(lab.leaks().unwrap(), "");
    steer.detach().unwrap();
}

#[test]
fn a_real_client_of_a_real_server_is_followed_as_the_lease_changes() {
    let lab = office(1);
    let link = lab.breakouts()[0];
    let own = IpAddr::V6(link.address.1);
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    advertise(&lab, &link);
    gives(&lab, &link, OLD);
    let Some(mut provider) = Delegation::start(&lab, OLD).unwrap() else {
        return;
    };
    wait_for(&steer, "the delegated prefix", &[OLD]);
    client_has(&lab, OLD);
    assert_leaves_as(&lab, client(OLD), client(OLD));

    gives(&lab, &link, NEW);
    provider.delegate(&lab, NEW).unwrap();
    wait_for(&steer, "the new prefix", &[NEW]);
    takes_back(&lab, &link, OLD);
    client_has(&lab, NEW);
    assert_leaves_as(&lab, client(NEW), client(NEW));
    assert_leaves_as(&lab, client(OLD), own);

    // The client ends and takes everything with it.
    drop(provider);
    wait_for(&steer, "no prefix", &[]);
    assert_eq!(lab.leaks().unwrap(), "");
    steer.detach().unwrap();
}

#[test]
fn with_two_providers_a_prefix_is_followed_by_the_range_that_one_delegates_from() {
    let lab = office(2);
    let [first, second] = lab.breakouts() else {
        panic!("two breakouts")
    };
    let own = IpAddr::V6(first.address.1);
    for link in [first, second] {
        advertise(&lab, link);
    }
    lease(&lab, OLD);
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    let status = steer.status().unwrap();
    let problems = status["problems"].to_string();
    assert!(problems.contains("delegated_from"), "{problems}");
    assert_leaves_as(&lab, client(OLD), own);

    let config = std::fs::read_to_string(steer.config()).unwrap();
    let ranges = config.replacen(
        "priority = 1\n",
        "priority = 1\ndelegated_from = [\"2001:db8:700::/40\"]\n",
        1,
    );
    assert_ne!(config, ranges);
    std::fs::write(steer.config(), ranges).unwrap();
    gives(&lab, first, OLD);
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success(), "{reload:?}");
    let of_first = |status: &Value| {
        status["breakouts"][0]["delegated"]
            .to_string()
            .contains("/48")
    };
    let status = steer.wait_for("the prefix in the range", of_first).unwrap();
    assert_eq!(status["breakouts"][1]["delegated"], Value::Null);
    assert_leaves_as(&lab, client(OLD), client(OLD));
    // The other provider does not know the prefix: there it is translated.
    lab.cable(first, false).unwrap();
    let down = |status: &Value| status["breakouts"][0]["state"] == "down";
    steer.wait_for("the first is down", down).unwrap();
    for answer in probe_all(&lab.client, &flows(client(OLD))).unwrap() {
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
        assert_eq!(answer.seen_source.ip(), IpAddr::V6(second.address.1));
    }
    assert_eq!(lab.leaks().unwrap(), "");
    steer.detach().unwrap();
}
