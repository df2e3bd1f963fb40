//! Reloading: the configuration and the feed once more, whole or not at all.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use tracing::{error, info, warn};

use super::{
    Controller, ControllerError, compile,
    feed::{self, FeedTask},
    health::Prober,
    lists,
    look::look,
    report, supervisor, was_up,
};
use crate::{api::Answer, config::Config, cut, system::files::Files};

impl Controller {
    /// Reloads, and watches the files that the next reload reads. What was written before this one
    /// needs no second.
    pub(super) async fn reload_and_watch(&mut self, files: &mut Option<Files>) -> Answer {
        *files = self.watch_files();
        let answer = self.reload().await;
        if files.as_ref().map(Files::paths) != self.files().as_ref() {
            *files = self.watch_files();
        }
        log_answer(&answer);
        answer
    }

    pub(super) fn watch_files(&self) -> Option<Files> {
        Files::watch(self.files()?)
            .inspect_err(|error| {
                warn!("changed files are not noticed: {error}. Say `steer reload` after a change");
            })
            .ok()
    }

    /// The files that a reload reads; none if they are not to be watched.
    fn files(&self) -> Option<BTreeSet<PathBuf>> {
        let more = self.config.files().map(Path::to_owned);
        let files = [self.options.config.clone()].into_iter().chain(more);
        self.config.reload_on_change.then(|| files.collect())
    }

    /// Reads configuration and feed again: everything is checked before anything changes.
    async fn reload(&mut self) -> Answer {
        supervisor::reloading();
        let _reloading = cut::operation("reload");
        let answer = match self.try_reload().await {
            Ok(message) => Answer::done(message),
            Err(error) => Answer::refused(format!("{error}\nnothing was changed")),
        };
        supervisor::ready();
        answer
    }

    async fn try_reload(&mut self) -> Result<String, ControllerError> {
        let config = Config::read(&self.options.config)?;
        if let Some(what) = needs_restart(&self.config, &config) {
            return Err(ControllerError::NeedsRestart { what });
        }
        self.path_ids.check(&config)?;
        let view = look(&self.kernel, &config, &[]).await?;
        // From here to the new task nothing waits, so that the old one changes nothing on disk meanwhile.
        let (feed, keeper) = feed::open(&config)?;
        let plan = compile(&feed, &config, &view, self.registry.get_mut())?;
        let before = self.plan.size();
        let changes = self.config.written.changes(&config.written);
        // What may be refused, before anything changes.
        Prober::new(&config.health)?;
        self.path_ids.keep(&config)?;
        self.publish(plan)?;
        let commands = self.commands.clone();
        self.feed_task = keeper.map(|it| FeedTask::spawn(it, config.feed.clone(), commands));
        self.list_tasks = lists::spawn(&config, &self.commands);
        self.config = config;
        let table = self.datapath.maps().paths()?;
        self.set_up_probes(&view, |id| was_up(&table, id))?;
        self.objects = report::objects(&self.config, &view);
        self.sweep().await;
        self.see(view)?;
        self.steer_queries(false);
        let after = self.plan.size();
        let mut answer = format!(
            "configuration and feed reloaded: generation {}, {} sets with {} prefixes (before: {} with {})",
            self.generation,
            after.sets + after.own,
            after.prefixes_v4 + after.prefixes_v6,
            before.sets + before.own,
            before.prefixes_v4 + before.prefixes_v6,
        );
        for change in changes {
            let _ = write!(answer, "\n  {change}");
        }
        Ok(answer)
    }
}

/// What a reload cannot change under running programs.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let ports = |config: &Config| -> Vec<_> {
        config
            .lans
            .iter()
            .map(|lan| (lan.interface.clone(), lan.vlans.clone()))
            .collect()
    };
    if old.mode != new.mode {
        Some("mode")
    } else if ports(old) != ports(new) {
        Some("[[lan]] interface or vlans")
    } else if old.system != new.system {
        Some("[system]")
    } else if old.redirect != new.redirect {
        Some("[redirect]")
    } else if old.mark.bits != new.mark.bits {
        Some("[mark] mask")
    } else if old.mark.order != new.mark.order {
        Some("[mark] order")
    } else {
        None
    }
}

fn log_answer(answer: &Answer) {
    if answer.done {
        info!("{}", answer.message);
    } else {
        error!("{}", answer.message);
    }
}
