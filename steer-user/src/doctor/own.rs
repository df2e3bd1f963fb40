//! What steer itself has put into the box.

use super::{Fix, Patient, Verdict};
use crate::{
    datapath,
    system::{Object, Presence},
};

pub(super) fn controller(patient: &Patient) -> Vec<Verdict> {
    vec![match (patient.controller, patient.steering) {
        (Some(pid), _) => Verdict::ok(format!("running, process {pid}")),
        (None, true) => Verdict::wrong("none runs; the programs steer on alone"),
        (None, false) => Verdict::note("steer is not running here"),
    }]
}

pub(super) fn attachments(patient: &Patient) -> Vec<Verdict> {
    if !patient.steering {
        return Vec::new();
    }
    let ports = patient.ports.iter();
    ports
        .map(|port| {
            let names = port
                .tcx
                .iter()
                .flatten()
                .chain(port.filters.iter().filter_map(|it| it.program.as_ref()))
                .chain(&port.xdp);
            let ours = names.filter(|name| datapath::is_ours(name)).count();
            let name = &port.interface;
            match ours {
                0 => Verdict::wrong(format!("steer's program is not attached to {name}")),
                1 => Verdict::ok(format!("steer's program is attached to {name}")),
                _ => Verdict::wrong(format!("{ours} programs of steer are attached to {name}"))
                    .remedy("steer detach && steer run"),
            }
        })
        .collect()
}

pub(super) fn objects(patient: &Patient) -> Vec<Verdict> {
    if patient.view.is_err() {
        return Vec::new();
    }
    let all = patient.objects.len();
    let unlike: Vec<&(Object, Result<Presence, String>)> = patient
        .objects
        .iter()
        .filter(|(_, presence)| *presence != Ok(Presence::Present))
        .collect();
    if !patient.steering {
        return vec![if unlike.is_empty() || all == 0 {
            Verdict::ok(format!("{all} objects"))
        } else {
            Verdict::note(format!(
                "{} of {all} objects are not in the box; `steer run` puts them there",
                unlike.len()
            ))
        }];
    }
    if unlike.is_empty() {
        return vec![Verdict::ok(format!(
            "all {all} objects are as they should be"
        ))];
    }
    let mut found: Vec<Verdict> = unlike
        .iter()
        .map(|(object, presence)| {
            let how = match presence {
                Ok(Presence::Absent) => "absent".to_owned(),
                Ok(Presence::Different(what)) => format!("altered: {what}"),
                Ok(Presence::Present) => return Verdict::ok(object.to_string()),
                Err(error) => format!("cannot be looked at: {error}"),
            };
            let text = format!("`{object}` is {how}");
            // The kernel finds a gateway out when a packet is for it.
            let verdict = if matches!(object, Object::Gateway(_)) {
                Verdict::note(text)
            } else {
                Verdict::wrong(text)
            };
            match (patient.controller, presence) {
                // Its own sweep is at most 10 s away.
                (Some(_), _) => verdict.remedy("steer status; the controller puts it back"),
                (None, Ok(_)) => verdict.fix(Fix::Objects(vec![object.clone()])),
                (None, Err(_)) => verdict,
            }
        })
        .collect();
    // A whole table of rules is one story.
    if found.len() > 12 {
        let rest = found.len() - 11;
        let fix = Fix::Objects(unlike[11..].iter().map(|it| it.0.clone()).collect());
        found.truncate(11);
        let verdict = Verdict::wrong(format!("{rest} more objects are absent or altered"));
        found.push(if patient.controller.is_none() {
            verdict.fix(fix)
        } else {
            verdict.remedy("steer status; the controller puts them back")
        });
    }
    found
}

pub(super) fn leftovers(patient: &Patient) -> Vec<Verdict> {
    let list: Vec<String> = patient
        .leftovers
        .iter()
        .map(|it| format!("`{it}`"))
        .collect();
    // The undo record of sysctls stays as long as steer does.
    vec![if list.is_empty() {
        Verdict::ok("nothing of an earlier configuration")
    } else {
        Verdict::note(format!("not needed: {}", list.join(", ")))
    }]
}
