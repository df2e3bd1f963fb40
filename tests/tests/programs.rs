//! Every kernel program loads in every variant, within its budget of the verifier's work, and is off
//! its interface when its removal returns.
#![expect(clippy::panic, reason = "a test fails by panicking")]

use steer_tests::{
    namespace::Namespace,
    testrun::{Bench, Pins, Variant},
};
use steer_user::datapath::{Datapath, Exit, LogLevel, Mode, XdpChoice, attached_at, try_out_exit};

/// The verifier gives up at 1,000,000 instructions, and it follows other ways in other kernels:
/// growth has to be somebody's decision.
const MARK_BUDGET: u32 = 60_000;
/// See [`MARK_BUDGET`].
const REDIRECT_BUDGET: u32 = 230_000;

/// See [`MARK_BUDGET`].
const BREAKOUT_BUDGET: u32 = 5_000;

fn variants(mode: Mode) -> Vec<Variant> {
    let full: Vec<(u16, u16)> = (1..=8).map(|id| (id, id + 100)).collect();
    let mut variants = Vec::new();
    for log in [false, true] {
        for vlans in [&[][..], &[(10, 0)], &[(0, 0), (10, 0), (100, 20)], &full] {
            let ethernet = Variant {
                log,
                ..Variant::new(mode).vlans(vlans)
            };
            variants.push(ethernet);
        }
        if mode == Mode::Mark {
            variants.push(Variant {
                log,
                bare_ip: true,
                ..Variant::new(mode)
            });
        }
    }
    variants
}

fn every_variant_loads_within(mode: Mode, budget: u32) {
    let mut largest = 0;
    for variant in variants(mode) {
        let instructions = Bench::load(&variant)
            .and_then(|mut bench| bench.verified_instructions())
            .unwrap_or_else(|error| panic!("{variant:?}: {error:#}"));
        println!("{instructions:>8} verified instructions: {variant:?}");
        largest = largest.max(instructions);
    }
    assert!(
        largest <= budget,
        "the verifier looks at {largest} instructions of the {mode:?} program, {budget} are budgeted"
    );
}

#[test]
fn the_mark_program_loads_in_every_variant() {
    every_variant_loads_within(Mode::Mark, MARK_BUDGET);
}

#[test]
fn the_redirect_program_loads_in_every_variant() {
    every_variant_loads_within(Mode::Redirect, REDIRECT_BUDGET);
}

#[test]
fn the_program_on_breakouts_loads_in_every_variant() {
    for bare_ip in [false, true] {
        let exit = Exit {
            path: 1,
            interface: "test".into(),
            ifindex: 1,
            bare_ip,
        };
        let trial = try_out_exit(&exit).unwrap_or_else(|error| panic!("{exit:?}: {error}"));
        let instructions = trial.verified_instructions.unwrap_or(0);
        println!("{instructions:>8} verified instructions: {exit:?}");
        assert!(instructions <= BREAKOUT_BUDGET, "{instructions}");
    }
}

#[test]
fn a_program_is_off_its_interface_when_its_removal_returns() {
    let namespace = Namespace::create(&format!("steer-off-{}", std::process::id())).unwrap();
    namespace
        .ip("link add lan0 type veth peer name lan1")
        .unwrap();
    let ifindex = namespace.interface_index("lan0").unwrap();
    let port = Variant::new(Mode::Mark).port("lan0", ifindex);
    let pins = Pins::unique();
    let attached = || attached_at("lan0").map(|it| it.len());
    let attach_and_remove = || {
        let dir = pins.dir().clone();
        let mut datapath = Datapath::load(Mode::Mark, dir, vec![port.clone()], 1, LogLevel::Off)?;
        datapath.attach(XdpChoice::Auto)?;
        let before = attached();
        pins.dir().remove()?;
        Ok((before, attached()))
    };
    for _ in 0..5 {
        match namespace.run(attach_and_remove).unwrap() {
            (None, _) => {
                return println!("skipped: kernels before 6.6 attach filters, which go at once");
            }
            before_and_after => assert_eq!(before_and_after, (Some(1), Some(0))),
        }
    }
}
