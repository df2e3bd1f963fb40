//! How redirect mode goes from one plan to the next: flows of what comes are watched first, flows of
//! what goes are led on. Mark mode needs none of it: connection tracking remembers every flow.

use std::time::{Duration, Instant};

use steer_common::image::{Image, Newcomers};
use tracing::{info, warn};

use super::Controller;
use crate::{
    config::{Config, Mode},
    datapath::{DatapathError, Maps},
    policy::Plan,
};

/// So long are flows led on whose destination or client the plan has lost: a working day, and the
/// night before the next one.
const LEAVES: Duration = Duration::from_hours(24);

/// Where a controller is between two plans.
#[derive(Debug)]
pub(super) struct Transition {
    mode: Mode,
    /// How long flows that may have begun before are watched.
    watch: Duration,
    next: Option<(Instant, Step)>,
}

/// One generation of a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Flows of what is new are watched.
    Watch,
    /// What is new is taken in.
    Admit,
    /// What went is forgotten: the plan as it is.
    Forget,
}

impl Transition {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            mode: config.mode,
            watch: config.mark.watch_period,
            next: None,
        }
    }

    /// When it goes on, if it does.
    pub(super) fn due(&self) -> Option<tokio::time::Instant> {
        self.next.map(|(at, _)| at.into())
    }

    /// Makes a plan the one in force, beside what the flows of the one before need, and gives the
    /// generation's number.
    pub(super) fn publish(&mut self, maps: &mut Maps, plan: &Plan) -> Result<u64, DatapathError> {
        let first = match self.mode {
            Mode::Mark => Step::Forget,
            Mode::Redirect if self.watch.is_zero() => Step::Admit,
            Mode::Redirect => Step::Watch,
        };
        let generation = self.take(first, maps, plan)?;
        if let Some((_, Step::Admit)) = self.next {
            info!(
                "flows that the new plan would move stay where they are; what is new in it is \
                 watched for {} s",
                self.watch.as_secs()
            );
        }
        Ok(generation)
    }

    fn take(&mut self, step: Step, maps: &mut Maps, plan: &Plan) -> Result<u64, DatapathError> {
        let (between, wait, next) = match step {
            Step::Watch => (
                between(maps, plan, Newcomers::Watch)?,
                self.watch,
                Step::Admit,
            ),
            Step::Admit => (between(maps, plan, Newcomers::Admit)?, LEAVES, Step::Forget),
            Step::Forget => (None, Duration::ZERO, Step::Forget),
        };
        self.next = between.is_some().then(|| (Instant::now() + wait, next));
        maps.publish(between.unwrap_or_else(|| plan.image().clone()))
    }
}

/// The generation between the one in the kernel and a plan, if there has to be one.
fn between(maps: &Maps, plan: &Plan, newcomers: Newcomers) -> Result<Option<Image>, DatapathError> {
    let Some(before) = maps.generation()? else {
        return Ok(None);
    };
    let between = plan.image().after(&before, newcomers);
    Ok(between.unwrap_or_else(|error| {
        warn!(
            "the old plan and the new one do not fit beside each other ({error}): flows of what \
             changed move with the plan"
        );
        None
    }))
}

impl Controller {
    /// Takes the transition's next step. One that fails is not tried again: what is in force steers
    /// new flows as the plan says.
    pub(super) fn go_on_with_transition(&mut self) {
        let Some((_, step)) = self.transition.next.take() else {
            return;
        };
        let maps = self.datapath.maps_mut();
        match self.transition.take(step, maps, &self.plan) {
            Ok(generation) => {
                self.generation = generation;
                info!("generation {generation}: what the last change brought is taken in");
            }
            Err(error) => warn!("{error}. steer keeps the plan that it has"),
        }
    }
}
