//! The forward policy: does what steer grants pass the firewall?

use super::{
    Patient, Verdict,
    synthetic::{Outcome, Proof},
};
use crate::{
    config::{Breakout, Mode},
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
    let mut found: Vec<Verdict> = patient
        .config
        .breakouts
        .iter()
        .filter_map(|breakout| stopped(patient, breakout, &filters))
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
    if found.is_empty() {
        let names: Vec<String> = patient.proofs.iter().map(Proof::to_string).collect();
        found.push(Verdict::ok(format!(
            "proved by connections through a copy of the ruleset: {}",
            names.join(", ")
        )));
    }
    found
}

/// What does not get out by a breakout.
fn stopped(patient: &Patient, breakout: &Breakout, filters: &[&ForwardChain]) -> Option<Verdict> {
    let proofs: Vec<String> = patient
        .proofs
        .iter()
        .filter(|proof| proof.outcome == Outcome::Stopped && proof.breakout == breakout.name)
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
    let lan = patient.view.as_ref().ok()?.wanted.lan.first()?;
    Some(verdict.remedy(format!(
        "nft insert rule {} iifname \"{lan}\" oifname \"{}\" accept",
        chain.name, breakout.interface
    )))
}
