//! Resolvers that a link brought along, and public ones as the last choice.

use std::fs;

use serde_json::Value;

use super::{
    FAR, Knowledge, NEAR, Office, PROVIDER, RESERVE, Resolver, SECOND, Software, of, start_with,
    wait_for,
};

/// Which resolvers are in use, by origin.
fn in_use(status: &Value) -> Vec<(String, String)> {
    let resolvers = status["dns"]["resolvers"].as_array().unwrap();
    let active = resolvers.iter().filter(|it| it["active"] == true);
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    active
        .map(|it| (text(it, "address"), text(it, "origin")))
        .collect()
}

#[test]
fn resolvers_of_the_link_are_followed_and_public_ones_are_the_last_choice() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let public = Knowledge::every(SECOND);
    let public = Resolver::start(lab, &lab.isp, Software::Dnsmasq, RESERVE, &public);
    let Some(_public) = public else { return };
    office.wait_for_provider(RESERVE);
    let last = format!("public = {RESERVE:?}\n");
    let steer = start_with(lab, &["link"], &last);
    let mut number = 0;
    let mut wait_for_answers = |what: &str, wanted: [&str; 2]| {
        wait_for(what, || {
            number += 1;
            office.asked(&format!("l{number}.sharepoint.com")) == of(wanted)
        });
    };
    // Nothing says what the link brought along.
    wait_for_answers("answer of the public resolver", SECOND);
    let status = steer.status().unwrap();
    let origins = |of: [&str; 2], origin: &str| of.map(|it| (it.to_owned(), origin.to_owned()));
    assert_eq!(in_use(&status), origins(RESERVE, "public, the last choice"));
    let problems = status["problems"].to_string();
    assert!(
        problems.contains("which resolvers its link brk0 brought along"),
        "{problems}"
    );
    // A script writes it down, one address that cannot be used among them.
    let folder = lab.directory().join("run/resolvers");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("brk0");
    let [v4, v6] = PROVIDER;
    let text = format!("nameserver fe80::53%brk0\nnameserver {v4}\nnameserver {v6}\n");
    fs::write(folder.join("new"), text).unwrap();
    fs::rename(folder.join("new"), &file).unwrap();
    wait_for_answers("answer of the link's resolver", NEAR);
    let status = steer.status().unwrap();
    let origin = format!("of the link, {}", file.display());
    assert_eq!(in_use(&status), origins(PROVIDER, &origin));
    let problems = status["problems"].to_string();
    assert!(problems.contains("is link-local"), "{problems}");
    // The lease is over, and without it nothing is known.
    fs::remove_file(&file).unwrap();
    wait_for_answers("answer of the public resolver again", SECOND);
    steer.detach().unwrap();
    wait_for_answers("answer of headquarters", FAR);
}
