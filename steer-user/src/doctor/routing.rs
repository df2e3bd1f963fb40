//! Addresses, routes, rules and what the kernel does with packets in between.

use super::{Fix, Patient, Verdict};
use crate::{
    config::{Mode, Owner},
    system::{Family, Object, facts},
};

pub(super) fn lan(patient: &Patient) -> Vec<Verdict> {
    let view = match &patient.view {
        Ok(view) => view,
        Err(error) => return vec![Verdict::wrong(error)],
    };
    let mut found = Vec::new();
    for lan in &patient.config.lans {
        let name = lan.interface.as_str();
        let Some(link) = patient.facts.link(name) else {
            continue;
        };
        if !link.up || !link.carrier {
            let what = if link.up { "has no carrier" } else { "is down" };
            found.push(
                Verdict::wrong(format!("{name} {what}")).remedy(format!("ip link set {name} up")),
            );
        }
    }
    if view.sources.is_empty() {
        found.push(Verdict::wrong(
            "no client is known: the LAN has no address and [[lan]] sources is empty",
        ));
    }
    if found.is_empty() {
        let names: Vec<_> = view.ports.iter().map(|it| it.interface.as_str()).collect();
        let clients: Vec<_> = view.sources.iter().map(ToString::to_string).collect();
        found.push(Verdict::ok(format!(
            "{}: clients {}",
            names.join(", "),
            clients.join(", ")
        )));
    }
    found
}

pub(super) fn breakouts(patient: &Patient) -> Vec<Verdict> {
    let Ok(view) = &patient.view else {
        return Vec::new();
    };
    let configured = patient.config.breakouts.iter();
    configured
        .zip(&view.breakouts)
        .map(|(it, seen)| {
            let name = &it.interface;
            if let Some(trouble) = &seen.trouble {
                return Verdict::wrong(format!("{} is down: {trouble}", it.name)).remedy(format!(
                    "ip link set {name} up; ip address show dev {name}; ip route show dev {name}"
                ));
            }
            let gateways: Vec<_> = [&seen.gateway, &seen.gateway6]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
            Verdict::ok(format!(
                "{}: {name} via {}",
                it.name,
                gateways.join(" and ")
            ))
        })
        .collect()
}

pub(super) fn backbone(patient: &Patient) -> Vec<Verdict> {
    let Some(name) = patient.backbone() else {
        return vec![Verdict::note(
            "no default route of the main table leads anywhere but to a breakout",
        )];
    };
    let Some(link) = patient.facts.link(name) else {
        return vec![
            Verdict::wrong(format!("there is no interface {name}"))
                .remedy("correct [backbone] interface"),
        ];
    };
    if !link.up || !link.carrier {
        return vec![
            Verdict::wrong(format!("{name} is down or has no carrier"))
                .remedy(format!("ip link set {name} up")),
        ];
    }
    let default = patient.defaults.iter().any(|it| it.interface == name);
    vec![if default {
        Verdict::ok(format!("{name} has a default route"))
    } else {
        Verdict::note(format!("{name} has no default route in the main table"))
            .remedy(format!("ip route show dev {name}"))
    }]
}

pub(super) fn forwarding(patient: &Patient) -> Vec<Verdict> {
    let mut found = Vec::new();
    if !facts::forwarding(Family::V4) {
        found.push(
            Verdict::wrong("IPv4 forwarding is off").remedy("sysctl -w net.ipv4.ip_forward=1"),
        );
    }
    let lan6 = patient
        .view
        .as_ref()
        .is_ok_and(|view| view.sources.iter().any(|it| it.addr().is_ipv6()));
    if facts::ipv6_available() && !facts::forwarding(Family::V6) {
        let text = "IPv6 forwarding is off";
        let verdict = if lan6 {
            Verdict::wrong(text)
        } else {
            Verdict::note(format!("{text}, and the LAN has no IPv6"))
        };
        found.push(verdict.remedy("sysctl -w net.ipv6.conf.all.forwarding=1"));
    }
    if found.is_empty() {
        found.push(Verdict::ok("packets are forwarded"));
    }
    found
}

pub(super) fn reverse_path(patient: &Patient) -> Vec<Verdict> {
    let ours = patient.config.mode == Mode::Mark && patient.config.mark.routes == Owner::Steer;
    let mut found = Vec::new();
    for breakout in &patient.config.breakouts {
        let name = breakout.interface.as_str();
        if patient.facts.link(name).is_none() {
            continue;
        }
        let Some(seen) = patient.reverse_path.get(name) else {
            continue;
        };
        let drops = match (patient.config.mode, seen.filter) {
            (_, 0) => false,
            (Mode::Mark, _) => !seen.with_mark,
            // Redirected answers come in without a mark.
            (Mode::Redirect, filter) => filter == 1,
        };
        let kind = ["off", "strict", "loose"][seen.filter.min(2) as usize];
        let mark = if seen.with_mark { "with" } else { "without" };
        let text = format!("{name}: {kind}, {mark} the packet's mark");
        if !drops {
            found.push(Verdict::ok(text));
        } else if ours && !patient.steering {
            found.push(
                Verdict::note(format!("{text}; steer sets it when it starts"))
                    .fix(sysctls_of(patient, name)),
            );
        } else if ours {
            found.push(Verdict::wrong(text).fix(sysctls_of(patient, name)));
        } else {
            let key = if patient.config.mode == Mode::Mark {
                "src_valid_mark=1"
            } else {
                "rp_filter=2"
            };
            let command = format!("sysctl -w net/ipv4/conf/{name}/{key}");
            found.push(Verdict::wrong(text).remedy(command));
        }
    }
    found
}

/// The breakout's own sysctls that are not as they should be.
fn sysctls_of(patient: &Patient, interface: &str) -> Fix {
    let of_interface =
        |object: &&Object| matches!(object, Object::Sysctl(it) if it.interface() == interface);
    let objects = patient.objects.iter().map(|(object, _)| object);
    Fix::Objects(objects.filter(of_interface).cloned().collect())
}

pub(super) fn default_routes(patient: &Patient) -> Vec<Verdict> {
    let backbone = patient.backbone();
    let mut found = Vec::new();
    for it in &patient.defaults {
        let name = &it.interface;
        if !patient.is_breakout(name) || backbone == Some(name) {
            continue;
        }
        let best = patient
            .defaults
            .iter()
            .filter(|other| other.family == it.family && !patient.is_breakout(&other.interface))
            .map(|other| other.route.metric)
            .min();
        let gateway = it.route.gateway;
        let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
        let route = format!("{} default{via} dev {name}", it.family);
        let metric = it.route.metric;
        let origin = match it.route.protocol {
            16 => " (DHCP)",
            9 => " (router advertisement)",
            _ => "",
        };
        let text = format!("the main table has {route} metric {metric}{origin}");
        found.push(match best {
            Some(best) if metric > best => Verdict::note(format!(
                "{text}, behind the backbone's {best}: if that goes, everything leaves by {name}"
            )),
            Some(best) => Verdict::wrong(format!(
                "{text}, not behind the backbone's {best}: everything leaves by {name}"
            ))
            .remedy(demoted(it.family, &via, name, metric, best)),
            None if patient.config.backbone.is_none() => {
                Verdict::note(format!("{text}, and no other default route"))
            }
            None => Verdict::wrong(format!(
                "{text}, and the backbone has none: everything leaves by {name}"
            ))
            .remedy(demoted(it.family, &via, name, metric, metric.max(1024))),
        });
    }
    if found.is_empty() {
        found.push(Verdict::ok(
            "no default route of a breakout in the main table",
        ));
    }
    found
}

/// The same route behind all others, as commands: for now. For good it is the address service's.
fn demoted(family: Family, via: &str, device: &str, metric: u32, best: u32) -> String {
    let behind = best.saturating_add(4096);
    format!(
        "ip {family} route add default{via} dev {device} metric {behind} && ip {family} route del default{via} dev {device} metric {metric}; for good: the route metric of its DHCP client or network manager"
    )
}

pub(super) fn shared_link(patient: &Patient) -> Vec<Verdict> {
    let overlay = &patient.overlay;
    let Some(name) = &overlay.interface else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (peer, device) in &overlay.peers {
        if let Some(device) = device
            && patient.is_breakout(device)
        {
            found.push(Verdict::note(format!(
                "{name}'s packets to {peer} leave by the breakout {device}: backbone and breakout share one link"
            )));
        }
    }
    if overlay.unknown {
        found.push(
            Verdict::note(format!("{name} is a tunnel whose other end cannot be read"))
                .remedy("ip route get ADDRESS OF THE TUNNEL'S OTHER END"),
        );
    }
    if found.is_empty() {
        found.push(Verdict::ok(format!("{name} does not run over a breakout")));
    }
    found
}

pub(super) fn ipv6(patient: &Patient) -> Vec<Verdict> {
    let Ok(view) = &patient.view else {
        return Vec::new();
    };
    let lan6: Vec<String> = view
        .sources
        .iter()
        .filter(|it| it.addr().is_ipv6())
        .map(ToString::to_string)
        .collect();
    if lan6.is_empty() {
        return vec![Verdict::ok("the LAN has no IPv6")];
    }
    let without: Vec<&str> = view
        .wanted
        .paths
        .iter()
        .filter(|path| path.next_hop6.is_none())
        .map(|path| path.name.as_str())
        .collect();
    vec![if without.is_empty() {
        Verdict::ok("every breakout carries IPv6")
    } else {
        Verdict::note(format!(
            "the LAN has {}, and IPv6 does not leave by {}",
            lan6.join(", "),
            without.join(", ")
        ))
    }]
}

pub(super) fn rules(patient: &Patient) -> Vec<Verdict> {
    let Ok(owners) = &patient.owners else {
        return Vec::new();
    };
    if owners.early_rules.is_empty() {
        return vec![Verdict::ok("no rule of others is asked before steer's")];
    }
    let rules: Vec<&str> = owners.early_rules.iter().map(String::as_str).collect();
    vec![Verdict::note(format!(
        "asked before or among steer's: {}",
        rules.join(", ")
    ))]
}
