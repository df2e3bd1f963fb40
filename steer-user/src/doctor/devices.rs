//! Network devices: what happens to packets before steer sees them, and how large they may be.

use super::{Patient, Verdict};
use crate::{config::Mode, controller::preflight, datapath::XdpChoice, system::xdp::XdpFeatures};

pub(super) fn offloads(patient: &Patient) -> Vec<Verdict> {
    let mut found = Vec::new();
    for port in &patient.ports {
        let name = &port.interface;
        let Some(features) = &port.features else {
            found.push(
                Verdict::note(format!("the kernel does not tell the offloads of {name}"))
                    .remedy(format!("ethtool -k {name}")),
            );
            continue;
        };
        let on = |feature| features.contains(feature);
        let gro = if on("rx-gro") { "on" } else { "off" };
        if on("rx-lro") {
            let text = format!("{name}: LRO is on");
            let verdict = match patient.config.mode {
                Mode::Mark => Verdict::note(text),
                // XDP in the driver does not start with it.
                Mode::Redirect => Verdict::wrong(text),
            };
            found.push(verdict.remedy(format!("ethtool -K {name} lro off")));
        }
        if on("hw-tc-offload") {
            found.push(
                Verdict::note(format!("{name}: TC hardware offload is on"))
                    .remedy(format!("ethtool -K {name} hw-tc-offload off")),
            );
        }
        if !on("rx-lro") && !on("hw-tc-offload") {
            found.push(Verdict::ok(format!(
                "{name}: LRO and TC hardware offload are off, GRO is {gro}"
            )));
        }
    }
    found
}

/// What the drivers do for redirect mode, as the kernel tells it.
pub(super) fn driver(patient: &Patient) -> Vec<Verdict> {
    let (Ok(view), Mode::Redirect) = (&patient.view, patient.config.mode) else {
        return Vec::new();
    };
    let features = |name: &str| patient.drivers.get(name).copied().flatten();
    let choice = preflight::xdp_choice(&patient.config, view);
    let mut found = Vec::new();
    let mut native = false;
    for port in &patient.ports {
        let name = &port.interface;
        let in_driver =
            choice != XdpChoice::Generic && features(name).is_some_and(XdpFeatures::runs_programs);
        native |= in_driver;
        found.push(if in_driver {
            Verdict::ok(format!("{name}: the driver runs XDP programs"))
        } else if choice == XdpChoice::Generic {
            Verdict::ok(format!("{name}: generic XDP, which any driver has"))
        } else if features(name).is_none() {
            Verdict::note(format!(
                "{name}: the kernel does not tell what its driver does with XDP"
            ))
            .remedy("steer status: it says whether XDP is native or generic")
        } else if choice == XdpChoice::Native {
            Verdict::wrong(format!("{name}: the driver runs no XDP programs"))
        } else {
            Verdict::note(format!(
                "{name}: the driver runs no XDP programs; the kernel does, later (generic XDP)"
            ))
        });
    }
    for breakout in &patient.config.breakouts {
        let name = breakout.interface.as_str();
        let Some(features) = features(name) else {
            continue;
        };
        found.push(if features.takes_frames() {
            Verdict::ok(format!("{name}: the driver takes frames from XDP"))
        } else if native {
            Verdict::wrong(format!(
                "{name}: the driver takes no frames from native XDP now, and the kernel drops them"
            ))
        } else {
            Verdict::ok(format!("{name}: generic XDP sends by the stack"))
        });
    }
    found
}

pub(super) fn mtu(patient: &Patient) -> Vec<Verdict> {
    /// The least that IPv6 needs (RFC 8200).
    const IPV6_LEAST: u32 = 1280;
    let mtu_of = |name: &str| patient.facts.link(name).map(|link| link.mtu);
    let lan = patient
        .config
        .lans
        .iter()
        .filter_map(|lan| mtu_of(lan.interface.as_str()))
        .max();
    let backbone = patient
        .backbone()
        .and_then(|name| Some((name, mtu_of(name)?)));
    let Some(lan) = lan else { return Vec::new() };
    let beside = backbone.map_or_else(String::new, |(name, mtu)| {
        format!("; the backbone {name} has {mtu}")
    });
    let mut found = Vec::new();
    for breakout in &patient.config.breakouts {
        let name = breakout.interface.as_str();
        let Some(mtu) = mtu_of(name) else { continue };
        let text = format!("{name} has an MTU of {mtu}, the LAN {lan}{beside}");
        found.push(if mtu < IPV6_LEAST {
            Verdict::wrong(format!("{text}: too small for IPv6"))
        } else if mtu < lan && patient.config.mode == Mode::Redirect {
            Verdict::note(format!("{text}: larger packets take the backbone"))
        } else if mtu < lan && lan > 1500 {
            Verdict::note(format!("{text}: TCP is clamped, UDP needs ICMP"))
        } else {
            Verdict::ok(text)
        });
    }
    found
}

pub(super) fn bridge_netfilter(patient: &Patient) -> Vec<Verdict> {
    let bridges: Vec<&str> = patient
        .ports
        .iter()
        .filter(|port| port.bridge)
        .map(|port| port.interface.as_str())
        .collect();
    if bridges.is_empty() || patient.config.mode == Mode::Redirect {
        return Vec::new();
    }
    let bridges = bridges.join(", ");
    vec![if patient.bridge_netfilter {
        Verdict::wrong(format!(
            "{bridges}: bridged packets pass the firewall before steer sees them"
        ))
    } else {
        Verdict::ok(format!("{bridges}: steer sees packets before the firewall"))
    }]
}
