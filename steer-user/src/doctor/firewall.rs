//! The forward policy: does what steer grants pass the firewall?

use super::{
    Patient, Verdict,
    synthetic::{Outcome, Proof},
};
use crate::{
    config::{Breakout, InterfaceName, Mode},
    system::owners::ForwardChain,
};

pub(super) fn forward_policy(patient: &Patient) -> Vec<Verdict> {
    let Ok(owners) = &patient.owners else {
        return Vec::new();
    };
    if patient.config.mode == Mode::Redirect {
        return Vec::new();
    }
    let filters: Vec<&ForwardChain> = owners
        .forward_chains
        .iter()
        .filter(|chain| chain.may_drop())
        .collect();
    if filters.is_empty() {
        return vec![Verdict::ok("nothing filters what is forwarded")];
    }
    let lans = patient
        .view
        .as_ref()
        .map_or(&[][..], |view| &view.wanted.lan);
    let mut found: Vec<Verdict> = patient
        .config
        .breakouts
        .iter()
        .flat_map(|breakout| lans.iter().map(move |lan| (breakout, lan)))
        .filter_map(|(breakout, lan)| stopped(patient, lan, breakout, &filters))
        .collect();
    // iptables' own tables are not in the copy.
    let unread = filters.iter().filter(|chain| chain.rules.is_none());
    found.extend(unread.map(|chain| {
        Verdict::note(format!(
            "{} filters what is forwarded and cannot be read; nothing is proved for it",
            chain.name
        ))
        .remedy("iptables-legacy -S FORWARD")
    }));
    let unproved = patient
        .proofs
        .iter()
        .find_map(|proof| match &proof.outcome {
            Outcome::Unproved(why) => Some(why),
            _ => None,
        });
    if let Some(why) = unproved {
        let names: Vec<&str> = filters.iter().map(|chain| chain.name.as_str()).collect();
        found.push(Verdict::note(format!(
            "not proved ({why}): read whether {} accept LAN to breakout",
            names.join(", ")
        )));
    }
    if patient.proofs.is_empty() {
        found.push(Verdict::note(
            "not proved: no breakout has a gateway, or no client is known",
        ));
    }
    if found.is_empty() {
        let names: Vec<String> = patient.proofs.iter().map(Proof::to_string).collect();
        found.push(Verdict::ok(format!(
            "proved by connections through a copy of the ruleset: {}",
            names.join(", ")
        )));
    }
    found
}

/// What does not get from a LAN out by a breakout.
fn stopped(
    patient: &Patient,
    lan: &InterfaceName,
    breakout: &Breakout,
    filters: &[&ForwardChain],
) -> Option<Verdict> {
    let proofs: Vec<String> = patient
        .proofs
        .iter()
        .filter(|it| it.outcome == Outcome::Stopped)
        .filter(|it| it.lan == lan.as_str() && it.breakout == breakout.name)
        .map(Proof::to_string)
        .collect();
    if proofs.is_empty() {
        return None;
    }
    let names: Vec<&str> = filters.iter().map(|chain| chain.name.as_str()).collect();
    let verdict = Verdict::wrong(format!(
        "the firewall ({}) stops {}",
        names.join(", "),
        proofs.join(", ")
    ));
    // A chain that drops by default needs a rule that accepts.
    let by_default = filters.iter().find(|chain| chain.drops_by_default);
    let chain = by_default.or(filters.first())?;
    Some(verdict.remedy(format!(
        "nft insert rule {} iifname \"{lan}\" oifname \"{}\" accept",
        chain.name, breakout.interface
    )))
}
