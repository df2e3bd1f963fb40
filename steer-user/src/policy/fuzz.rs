//! Plans of made-up, mutated and random answers of the service: whatever list is accepted, its tables
//! steer nothing to what must never be steered.
//!
//! A plan takes as long as a thousand answers: of `STEER_FUZZ` answers, one in a thousand is compiled.

use super::{ClassRegistry, Flow, Plan, Site, Verdict};
use crate::{
    config::Selection,
    endpoints::{
        Feed, Instance,
        fuzz::{DENIED, Source},
    },
};

/// No address at an edge of what is denied is steered by the tables.
fn judge(feed: Feed) {
    let select = Selection::default_for(Instance::Worldwide);
    let plan = Plan::compile(feed, select, Site::default(), &mut ClassRegistry::new());
    let Ok(plan) = plan else { return };
    for (first, last) in DENIED {
        for address in [first, last] {
            for protocol in [6, 17] {
                let flow = Flow {
                    destination: address.parse().unwrap(),
                    protocol,
                    port: 443,
                    source: None,
                };
                let verdict = plan.decide(&flow);
                assert!(
                    matches!(verdict, Verdict::Pass(_)),
                    "{address}: {verdict:?}"
                );
            }
        }
    }
}

#[test]
fn no_plan_steers_to_what_is_denied() {
    let (mut source, answers) = Source::from_environment();
    let mut plans = 0;
    while plans < answers.div_ceil(1000) {
        if let Ok(feed) = Feed::parse("fuzz", &source.answer(), Instance::Worldwide) {
            judge(feed);
            plans += 1;
        }
    }
    println!("{plans} plans: nothing denied is steered to");
}
