//! The lab must be able to tell right from wrong: what one would write first works in the simple
//! case and fails each of the scenarios that steer has to stand.

use std::time::Duration;

use steer_tests::{
    lab::{Lab, LabOptions},
    scenario::{Repair, born_while_down, first_enable, flows, ruleset_flushed},
    server::Site,
    steering::Steering,
    traffic::probe_all,
    wire::Path,
};

#[test]
fn the_naive_ruleset_works_in_the_simple_case() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let _enabled = Steering::Naive.enable(&lab).unwrap();
    let captures = lab.capture().unwrap();
    let answers = probe_all(&lab.client, &flows(10, 10)).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
}

#[test]
fn the_naive_ruleset_moves_running_flows_when_it_is_first_enabled() {
    let outcome = first_enable(&Steering::Naive, 50, 20).unwrap();
    println!("{outcome}");
    assert!(
        outcome.moved.iter().any(|record| record.broken.is_some()),
        "a TCP flow is reset"
    );
    assert!(
        outcome.moved.iter().any(|record| record.sources.len() > 1),
        "a UDP flow moves"
    );
}

#[test]
fn the_naive_ruleset_moves_and_leaks_flows_that_began_while_the_breakout_was_down() {
    let outcome = born_while_down(&Steering::Naive, 5, 5).unwrap();
    println!("{outcome}");
    assert!(!outcome.moved.is_empty(), "{outcome}");
    assert!(!outcome.leaks.is_empty(), "{outcome}");
}

#[test]
fn the_naive_ruleset_leaks_when_somebody_flushes_nftables() {
    for repair in [Repair::Nobody, Repair::Script] {
        let (every, duration) = (Duration::from_millis(50), Duration::from_secs(2));
        let outcome = ruleset_flushed(&Steering::Naive, repair, every, duration).unwrap();
        println!("{repair:?}: {outcome}");
        assert!(!outcome.leaks.is_empty(), "{outcome}");
    }
}
