//! Where a command that needs no controller takes feed and selection from.

use std::path::{Path, PathBuf};

use crate::{
    config::{Config, Selection},
    endpoints::{Feed, Instance, Keeper, Policy, Store},
    policy::{ClassRegistry, Plan, Site},
};

/// The configuration of this machine.
pub(super) const DEFAULT_CONFIG: &str = "/etc/steer/steer.toml";

#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// The configuration [default: /etc/steer/steer.toml if there is one, else the defaults]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// An endpoint list in the web service's JSON, instead of the configuration's
    #[arg(long, value_name = "FILE", global = true)]
    feed: Option<PathBuf>,
    /// The cloud of that list: worldwide, china, usgovdod or usgovgcchigh
    #[arg(
        long,
        value_name = "NAME",
        global = true,
        requires = "feed",
        conflicts_with = "config"
    )]
    instance: Option<Instance>,
}

/// What a plan is made of.
pub(super) struct Source {
    pub feed: Feed,
    pub select: Selection,
    pub site: Site,
}

impl SourceArgs {
    /// Reads configuration and feed.
    pub(super) fn read(&self) -> anyhow::Result<Source> {
        if let Some(path) = self.config_path() {
            return Source::of(&Config::read(path)?, self.feed.as_deref());
        }
        let instance = self.instance.unwrap_or_default();
        let feed = match &self.feed {
            Some(path) => Feed::read(path, instance)?,
            None => Feed::builtin()?,
        };
        Ok(Source {
            feed,
            select: Selection::default_for(instance),
            site: Site::default(),
        })
    }

    /// The configuration itself, if there is one.
    pub(super) fn config(&self) -> anyhow::Result<Option<Config>> {
        Ok(self.config_path().map(Config::read).transpose()?)
    }

    /// A feed that is named alone is looked at by itself, whatever this machine is configured for.
    fn config_path(&self) -> Option<&Path> {
        let default = Path::new(DEFAULT_CONFIG);
        self.config
            .as_deref()
            .or((self.feed.is_none() && default.exists()).then_some(default))
    }
}

impl Source {
    /// What a configuration names, or the same with another feed.
    pub(super) fn of(config: &Config, named: Option<&Path>) -> anyhow::Result<Self> {
        let feed = match named.or(config.feed.file.as_deref()) {
            Some(path) => Feed::read(path, config.feed.instance)?,
            None => Feed::builtin()?,
        };
        let feed = if named.is_none() && config.feed.rules.policy != Policy::Off {
            let store = Store::look(&config.system.state_dir, config.feed.instance);
            Keeper::new(store, config.feed.rules.clone(), feed).current()
        } else {
            feed
        };
        Ok(Self::with(config, feed))
    }

    /// What a configuration names, with this feed.
    pub(super) fn with(config: &Config, feed: Feed) -> Self {
        // What the interfaces are connected to is the kernel's to say, not the configuration's.
        let site = Site::of(config, |_| None, Vec::new());
        Self {
            feed,
            select: config.select.clone(),
            site,
        }
    }

    /// The plan. Class numbers are this process's own.
    pub(super) fn plan(self) -> anyhow::Result<Plan> {
        Ok(Plan::compile(
            self.feed,
            self.select,
            self.site,
            &mut ClassRegistry::new(),
        )?)
    }
}
