//! Plans are published and programs swapped under full load, and the wire is the judge: every packet
//! arrives, by the way that one whole plan says.
//!
//! `STEER_SWAPS=1000` says how often programs are swapped (30 times unless told).
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    env,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use steer_tests::bench::publications::{Carrier, Change, Load, run};

const PUBLICATIONS: u64 = 1_000;
/// A guard against hanging: 1,000 publications take some 45 s on two processors.
const AT_MOST: Duration = Duration::from_mins(10);

/// One at a time: the generator takes a whole processor.
static GENERATOR: Mutex<()> = Mutex::new(());

fn under_load(carrier: Carrier) -> Load {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let load = run(carrier, Change::Plan, PUBLICATIONS, AT_MOST).unwrap();
    println!(
        "{carrier:?}: {} publications while {} packets ran, in {:.1} s: {} arrived by the breakout, {} by the WAN; classes {:?}",
        load.changes,
        load.sent,
        load.duration.as_secs_f64(),
        load.at_breakout,
        load.at_wan,
        load.by_class,
    );
    assert!(
        load.changes >= PUBLICATIONS,
        "too few plans were published while packets ran: {load:?}"
    );
    assert!(
        load.generation > load.changes,
        "the first plan is generation 1: {load:?}"
    );
    assert_eq!(
        load.at_breakout + load.at_wan,
        load.sent,
        "packets were lost: {load:?}"
    );
    let [a, b, only_a, only_b, other] = load.by_class;
    assert_eq!(other, 0, "packets saw parts of two plans: {load:?}");
    assert_eq!(
        a + b,
        load.steered_by_both,
        "packets that both plans steer passed, or others did not: {load:?}"
    );
    assert!(a > 0 && b > 0, "the plans did not alternate: {load:?}");
    assert_eq!(
        load.at_breakout,
        a + b + only_a + only_b,
        "packets did not go where the plan sent them: {load:?}"
    );
    load
}

/// Every packet is judged by itself: those of one plan's clients go with the plan.
fn packets_go_where_one_whole_plan_says(carrier: Carrier) {
    let load = under_load(carrier);
    let [_, _, only_a, only_b, _] = load.by_class;
    assert!(only_a > 0 && only_b > 0, "{load:?}");
    let of_one_plan = load.sent - load.steered_by_both - load.steered_by_none;
    assert_eq!(
        only_a + only_b + load.not_clients,
        of_one_plan,
        "packets of one plan's clients were judged by parts of both: {load:?}"
    );
    assert_eq!(
        load.at_wan,
        load.steered_by_none + load.not_clients,
        "{load:?}"
    );
}

#[test]
fn redirect_mode_loses_and_mis_steers_nothing_while_plans_are_published() {
    packets_go_where_one_whole_plan_says(Carrier::Redirect);
}

#[test]
fn marks_lose_and_mis_steer_nothing_while_plans_are_published() {
    packets_go_where_one_whole_plan_says(Carrier::Wish);
}

#[test]
fn mark_mode_with_its_whole_ruleset_loses_and_mis_steers_nothing_while_plans_are_published() {
    let load = under_load(Carrier::MarkMode);
    assert_eq!(load.at_wan, load.steered_by_none, "{load:?}");
}

/// A packet sees the old program or the new one, and either sends it where the plan says.
fn no_packet_notices_that_programs_are_swapped(carrier: Carrier) {
    let swaps = env::var("STEER_SWAPS").map_or(30, |text| text.parse().unwrap());
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    // A guard against hanging: a swap takes a fraction of a second.
    let at_most = AT_MOST + Duration::from_secs(5 * swaps);
    let load = run(carrier, Change::Programs, swaps, at_most).unwrap();
    println!(
        "{carrier:?}: {} swaps while {} packets ran, in {:.1} s: {} arrived by the breakout, {} by the WAN",
        load.changes,
        load.sent,
        load.duration.as_secs_f64(),
        load.at_breakout,
        load.at_wan,
    );
    assert!(load.changes >= swaps, "too few swaps: {load:?}");
    assert_eq!(
        load.at_breakout + load.at_wan,
        load.sent,
        "packets were lost: {load:?}"
    );
    assert_eq!(
        load.at_breakout,
        load.steered_by_both + load.steered_by_first,
        "packets were not steered: {load:?}"
    );
    let [both, _, first, _, _] = load.by_class;
    assert_eq!(
        [both, first],
        [load.steered_by_both, load.steered_by_first],
        "the programs count on in the same maps: {load:?}"
    );
}

#[test]
fn redirect_mode_loses_and_mis_steers_nothing_while_programs_are_swapped() {
    no_packet_notices_that_programs_are_swapped(Carrier::Redirect);
}

#[test]
fn marks_lose_and_mis_steer_nothing_while_programs_are_swapped() {
    no_packet_notices_that_programs_are_swapped(Carrier::Wish);
}

#[test]
fn mark_mode_with_its_whole_ruleset_loses_and_mis_steers_nothing_while_programs_are_swapped() {
    no_packet_notices_that_programs_are_swapped(Carrier::MarkMode);
}
