//! Policies, guards, hooks, pins and the journal, as an operator meets them.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};
use steer_tests::webservice::Reply;

use super::{Alone, edited, entries, list, moved, serve};

#[test]
fn versions_come_wait_are_approved_pinned_and_rolled_back() {
    let alone = Alone::start("manage", "update = \"approve\"\nremoval_delay = \"0s\"");
    let (first, second) = (
        edited(&["150.171.64.0/22"], &[]),
        edited(&[], &["132.245.0.0/16"]),
    );
    serve(&alone.service, "2026070100", first.clone());
    alone.refused(&["update"], "an operator has to approve it");
    assert_eq!(alone.version(), Value::Null);
    assert_eq!(alone.json(&["show"])["report"]["waiting"], "2026070100");
    assert_eq!(alone.json(&["show"])["calendar"][0][0], "20270101");
    alone.refused(&["approve", "2026070101"], "2026070100 is held back");
    alone.fine(&["approve", "--why", "change 7"]);
    assert_eq!(alone.version(), "2026070100");
    serve(&alone.service, "2026080100", second.clone());
    alone.refused(&["update"], "approve");
    alone.fine(&["approve"]);
    let difference = alone.json(&["diff", "2026070100", "2026080100"]);
    let (old, new) = (entries(&first), entries(&second));
    let wanted = [&new - &old, &old - &new];
    assert_eq!(moved(&difference), wanted);
    let journal = alone.json(&["show"])["journal"].clone();
    let last = journal.as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["what"], moved(&last["moved"])),
        (&json!("applied"), wanted)
    );

    alone.fine(&["rollback"]);
    assert_eq!(alone.version(), "2026070100");
    serve(&alone.service, "2026090100", second);
    alone.refused(&["update"], "pinned by");
    alone.refused(&["approve"], "unpin");
    alone.fine(&["unpin"]);
    alone.fine(&["approve"]);
    assert_eq!(alone.version(), "2026090100");
    alone.fine(&["pin", "2026070100"]);
    assert_eq!(alone.version(), "2026070100");
    let shown = alone.json(&["show", "--journal", "100"]);
    let whats: Vec<&str> = shown["journal"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        whats,
        [
            "held",
            "applied",
            "held",
            "applied",
            "rolled_back",
            "held",
            "unpinned",
            "applied",
            "rolled_back"
        ]
    );
    // One GUID for all of it, and the list only when the version moved.
    let asked = alone.service.asked();
    let guids: BTreeSet<&str> = asked
        .iter()
        .map(|it| &it.split("ClientRequestId=").nth(1).unwrap()[..36])
        .collect();
    assert_eq!(guids.len(), 1, "{asked:?}");
    alone
        .service
        .say(|_| Reply::json(&json!({"instance": "Worldwide", "latest": "2026070100"})));
    alone.fine(&["update"]);
    assert_eq!(alone.service.asked().len(), 1);
}

#[test]
fn guards_and_hooks_hold_a_list_back_and_say_why() {
    let guards = "guards = { deny = [\"8.8.8.0/24\"], widest_v4 = 12 }\nupdate = \"automatic\"";
    let alone = Alone::start("guards", guards);
    let without_11: Vec<Value> = list().into_iter().filter(|set| set["id"] != 11).collect();
    let mut short = list();
    short.truncate(8);
    for (version, list, why, approved) in [
        (
            "2026070100",
            without_11.into(),
            "set 11, which is required, is missing",
            true,
        ),
        ("2026070101", Value::from(short), "at most 30 %", true),
        (
            "2026070102",
            edited(&["8.8.8.8/32"], &[]),
            "denylist",
            false,
        ),
        (
            "2026070103",
            edited(&["24.0.0.0/11"], &[]),
            "wider than /12",
            false,
        ),
    ] {
        serve(&alone.service, version, list);
        alone.refused(&["update"], why);
        assert_eq!(alone.version(), Value::Null, "{why}");
        if approved {
            continue;
        }
        alone.refused(&["approve"], why);
    }
    serve(
        &alone.service,
        "2026070200",
        edited(&["150.171.64.0/22"], &[]),
    );
    let config = alone.folder.path().join("steer.toml");
    let good = fs::read_to_string(&config).unwrap();
    for (hook, why) in [
        ("[\"/bin/false\"]", "ended with"),
        ("[\"/bin/sleep\", \"60\"]", "longer than"),
    ] {
        let hooks = format!("hooks = {{ before = {hook}, timeout = \"300ms\" }}\n[[lan]]");
        fs::write(&config, good.replacen("[[lan]]", &hooks, 1)).unwrap();
        alone.refused(&["update"], why);
    }
    let out = alone.folder.path().join("told");
    let hooks = format!(
        "hooks = {{ after = [\"/bin/sh\", \"-c\", \"cat > {}\"] }}\n[[lan]]",
        out.display()
    );
    fs::write(&config, good.replacen("[[lan]]", &hooks, 1)).unwrap();
    alone.fine(&["update"]);
    let told: Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
    assert_eq!(told["to"], "2026070200");
    assert_eq!(
        moved(&told["moved"])[0],
        BTreeSet::from([(1, "150.171.64.0/22".into())])
    );
}
