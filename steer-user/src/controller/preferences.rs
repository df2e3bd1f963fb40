//! Preferences as the configuration has them, for the state machine: numbers, paths, classes.

use super::step;
use crate::{
    config::{Config, Preference},
    paths::PreferenceId,
    policy::Plan,
    system::PathId,
};

/// The configured preferences with their numbers.
pub(super) fn numbered(config: &Config) -> impl Iterator<Item = (PreferenceId, &Preference)> {
    let preferences = (1..).zip(&config.preferences);
    preferences.filter_map(|(number, it)| Some((PreferenceId::at(number)?, it)))
}

/// What new flows prefer, by number.
pub(super) fn rules(config: &Config) -> Vec<step::Preference> {
    let paths = |ids: &Vec<u8>| ids.iter().filter_map(|id| PathId::new(*id)).collect();
    let default = step::Preference {
        paths: None,
        when_degraded: config.health.when_degraded,
    };
    let own = config.preferences.iter().map(|it| step::Preference {
        paths: it.breakouts.as_ref().map(paths),
        when_degraded: it.when_degraded,
    });
    [default].into_iter().chain(own).collect()
}

/// The classes of a plan with the first preference that has them.
pub(super) fn preferring(
    config: &Config,
    plan: &Plan,
) -> impl Iterator<Item = (u16, PreferenceId)> {
    plan.classes().iter().filter_map(|class| {
        let place = class.preference(&config.preferences)?;
        Some((class.index, PreferenceId::at(place + 1)?))
    })
}
