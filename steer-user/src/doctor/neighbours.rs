//! Firewalls, programs and services of others.

use std::collections::BTreeSet;

use super::{
    Patient, Verdict,
    patient::{Manager, PortFacts},
};
use crate::{config::Mode, controller::preflight, datapath, system::owners::Access};

pub(super) fn xdp(patient: &Patient) -> Vec<Verdict> {
    let foreign = |port: &PortFacts| {
        let name = port.xdp.as_ref().filter(|name| !datapath::is_ours(name))?;
        let text = format!("{}: the XDP program {name} runs first", port.interface);
        let verdict = match patient.config.mode {
            Mode::Mark => Verdict::note(text),
            Mode::Redirect => Verdict::wrong(text),
        };
        Some(verdict.remedy(format!(
            "ip link show dev {}; use mode = \"mark\" there",
            port.interface
        )))
    };
    if patient.ports.is_empty() {
        return Vec::new();
    }
    or_ok(
        patient.ports.iter().filter_map(foreign).collect(),
        "no XDP program of others on the LAN",
    )
}

pub(super) fn tc_programs(patient: &Patient) -> Vec<Verdict> {
    let mut found = Vec::new();
    for port in &patient.ports {
        let tcx = port.tcx.iter().flatten().map(|name| (name.clone(), "TCX"));
        let filters = port.filters.iter().map(|filter| {
            let name = filter
                .program
                .clone()
                .unwrap_or_else(|| filter.kind.clone());
            (name, "clsact")
        });
        // u32 lists each of its tables.
        let names: BTreeSet<String> = tcx
            .chain(filters)
            .filter(|(name, _)| !datapath::is_ours(name))
            .map(|(name, hook)| format!("{name} ({hook})"))
            .collect();
        if !names.is_empty() {
            let device = &port.interface;
            let names: Vec<String> = names.into_iter().collect();
            found.push(
                Verdict::note(format!("{device}: {} beside steer's", names.join(", "))).remedy(
                    format!("tc filter show dev {device} ingress; bpftool net show dev {device}"),
                ),
            );
        }
    }
    if patient.ports.is_empty() {
        return Vec::new();
    }
    or_ok(found, "no TC program of others at the LAN's ingress")
}

pub(super) fn marks(patient: &Patient) -> Vec<Verdict> {
    if let Err(error) = &patient.owners {
        return vec![Verdict::wrong(format!(
            "rules and rulesets of others cannot be read, so nothing is said about them: {error}"
        ))
        .remedy("nft list ruleset; ip rule show: both must work for this user")];
    }
    let uses = patient.owners.iter().flat_map(|it| &it.mark_uses);
    let found = uses
        .map(|it| match it.access {
            Access::Writes => Verdict::wrong(it.to_string()),
            Access::Compares | Access::Unknown => Verdict::note(it.to_string()),
        })
        .collect();
    or_ok(
        found,
        &format!(
            "nobody else uses bits {:#010x} of marks",
            patient.config.mark.bits.mask()
        ),
    )
}

pub(super) fn flow_tables(patient: &Patient) -> Vec<Verdict> {
    let Ok(owners) = &patient.owners else {
        return Vec::new();
    };
    let tables = owners.flow_tables.iter();
    let found = tables
        .map(|table| Verdict::note(format!("{table} takes established flows past steer")))
        .collect();
    or_ok(found, "no flow tables")
}

pub(super) fn translation(patient: &Patient) -> Vec<Verdict> {
    let (Ok(view), Ok(owners)) = (&patient.view, &patient.owners) else {
        return Vec::new();
    };
    if patient.config.mode == Mode::Redirect {
        return Vec::new();
    }
    let found = preflight::nobody_translates(&patient.config, view, owners)
        .map(Verdict::wrong)
        .into_iter()
        .collect();
    or_ok(found, "sources are translated, or need not be")
}

pub(super) fn redirect_mode(patient: &Patient) -> Vec<Verdict> {
    let (Ok(view), Ok(owners)) = (&patient.view, &patient.owners) else {
        return Vec::new();
    };
    if patient.config.mode == Mode::Mark {
        return Vec::new();
    }
    let found = [
        preflight::breakouts_take_frames(&patient.config, view),
        preflight::no_translation_needed(&patient.config, view),
        preflight::no_forward_firewall(owners),
    ];
    let found = found
        .into_iter()
        .filter_map(Result::err)
        .map(|error| Verdict::wrong(error.to_string()))
        .collect();
    or_ok(
        found,
        "nothing on the way that redirected packets would bypass",
    )
}

pub(super) fn managers(patient: &Patient) -> Vec<Verdict> {
    let found = patient.managers.iter().filter_map(|manager| match manager {
        Manager::Networkd {
            keeps_rules: true,
            keeps_routes: true,
        } => None,
        Manager::Networkd { .. } => Some(
            Verdict::note("systemd-networkd deletes rules and routes of others when it restarts")
                .remedy(
                    "printf '[Network]\\nManageForeignRoutingPolicyRules=no\\nManageForeignRoutes=no\\n' > /etc/systemd/networkd.conf.d/steer.conf && systemctl restart systemd-networkd",
                ),
        ),
        Manager::DesktopNetwork => Some(
            Verdict::note(
                "NetworkManager runs: it sets addresses and routes of the devices it manages anew when they come back",
            )
            .remedy("nmcli device; give breakouts ipv4.route-metric behind the backbone's"),
        ),
        Manager::FlushingNftables => Some(
            Verdict::note(
                "nftables.service flushes the whole ruleset when it starts or reloads, steer's table with it",
            )
            .remedy(
                "in /etc/nftables.conf destroy your own tables instead of `flush ruleset`",
            ),
        ),
    });
    or_ok(found.collect(), "no service that deletes rules of others")
}

fn or_ok(found: Vec<Verdict>, otherwise: &str) -> Vec<Verdict> {
    if found.is_empty() {
        vec![Verdict::ok(otherwise)]
    } else {
        found
    }
}
