//! `[[preference]]`: which breakouts the new flows of some classes take, when they leave one, and what
//! is probed for them besides.

use std::collections::BTreeSet;

use serde::Deserialize;
use steer_common::abi::PREFERENCES;
use toml::Spanned;

use super::{
    Breakout, ClassSelection, HealthConfig, WhenDegraded,
    checker::Checker,
    classes::RawClasses,
    health::{RawTargets, RawThresholds},
    values::{Number, Text},
};

/// Besides the default one.
const MOST: usize = PREFERENCES - 1;

/// What the new flows of some classes prefer.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// The operator's name for it, unique.
    pub name: String,
    /// Whose.
    pub classes: ClassSelection,
    /// The path ids of the breakouts that they may take, the best one first; none: all, by priority and
    /// weight.
    pub breakouts: Option<Vec<u8>>,
    /// What a degraded breakout means for them.
    pub when_degraded: WhenDegraded,
    /// How breakouts are probed for them besides; none: what everybody's probes find is enough.
    pub health: Option<HealthConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPreference {
    name: Text,
    #[serde(default)]
    categories: Vec<Text>,
    #[serde(default)]
    service_areas: Vec<Text>,
    #[serde(default)]
    sets: Vec<Number>,
    #[serde(default)]
    lists: Vec<Text>,
    breakouts: Option<Spanned<Vec<Text>>>,
    when_degraded: Option<Text>,
    targets: Option<RawTargets>,
    loss_percent: Option<Number>,
    latency: Option<Text>,
    jitter: Option<Text>,
}

impl Checker<'_> {
    /// Every preference; what it leaves out is as `health` has it.
    pub(super) fn preferences(
        &mut self,
        raw: Vec<RawPreference>,
        breakouts: &[Breakout],
        health: &HealthConfig,
    ) -> Vec<Preference> {
        let mut names = BTreeSet::new();
        let mut preferences = Vec::with_capacity(raw.len());
        for (place, raw) in raw.into_iter().enumerate() {
            let span = raw.name.span();
            if place == MOST {
                self.wrong(
                    span.clone(),
                    format!("more than {MOST} preferences"),
                    "let classes that want the same share one",
                );
            }
            let preference = self.preference(raw, breakouts, health);
            if !names.insert(preference.name.clone()) {
                self.wrong(
                    span,
                    format!("{:?} names two preferences", preference.name),
                    "give each its own name",
                );
            }
            preferences.push(preference);
        }
        preferences
    }

    fn preference(
        &mut self,
        raw: RawPreference,
        breakouts: &[Breakout],
        health: &HealthConfig,
    ) -> Preference {
        let span = raw.name.span();
        let classes = RawClasses {
            categories: raw.categories,
            service_areas: raw.service_areas,
            sets: raw.sets,
            lists: raw.lists,
        };
        let thresholds = RawThresholds {
            loss_percent: raw.loss_percent,
            latency: raw.latency,
            jitter: raw.jitter,
        };
        let probed = raw.targets.is_some() || thresholds.is_any();
        let plain = raw.breakouts.is_none() && raw.when_degraded.is_none() && !probed;
        if classes.is_empty() {
            self.wrong(
                span,
                "is about no class",
                "name categories, service_areas, sets or lists",
            );
        } else if plain {
            self.wrong(
                span,
                "prefers nothing",
                "name breakouts, when_degraded, targets, loss_percent, latency or jitter, or remove it",
            );
        }
        let mut own = self.thresholds(thresholds, health);
        if let Some(targets) = raw.targets {
            own.targets = self.targets(targets);
            // Half of them: the quorum that the file names is about other targets.
            own.quorum = None;
        }
        Preference {
            name: self.name(raw.name),
            classes: self.classes(classes),
            breakouts: raw
                .breakouts
                .map(|names| self.preferred_breakouts(names, breakouts)),
            when_degraded: self.when_degraded(raw.when_degraded, health.when_degraded),
            health: probed.then_some(own),
        }
    }

    fn preferred_breakouts(
        &mut self,
        names: Spanned<Vec<Text>>,
        breakouts: &[Breakout],
    ) -> Vec<u8> {
        if names.get_ref().is_empty() {
            self.wrong(
                names.span(),
                "names no breakout",
                "name at least one; classes that are to stay on the backbone are left out of [select]",
            );
        }
        let mut ids = Vec::new();
        for name in names.into_inner() {
            let known = breakouts.iter().find(|it| it.name == *name.get_ref());
            match known.map(|it| it.id) {
                None => self.wrong(
                    name.span(),
                    format!("no breakout is called {:?}", name.get_ref()),
                    "write the name of one",
                ),
                Some(id) if ids.contains(&id) => self.wrong(
                    name.span(),
                    format!("{:?} is there twice", name.get_ref()),
                    "write it once",
                ),
                Some(id) => ids.push(id),
            }
        }
        ids
    }
}
