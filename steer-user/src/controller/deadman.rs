//! The controller's part of the dead-man: it has answers heard on every breakout, and tells the kernel
//! that somebody watches.

use tracing::{info, warn};

use super::{Controller, ControllerError, View, path_ids::name_of};
use crate::{
    api::{DeadManBreakout, DeadManFamily, DeadManStatus},
    config::Breakout,
    datapath::{Attachment, Exit, Maps},
    system::Family,
};

/// Where answers come in.
pub(super) fn exits(view: &View) -> Vec<Exit> {
    let exits = view.breakouts.iter();
    exits.filter_map(|it| it.exit.clone()).collect()
}

/// What the dead-man says. `attached` are the programs that hear, as far as they are known.
pub(super) fn status(
    maps: &Maps,
    breakouts: &[Breakout],
    attached: &[Attachment],
) -> Result<DeadManStatus, ControllerError> {
    let state = maps.dead_man().state()?;
    let paths = state.paths.into_iter();
    let breakouts = paths.map(|life| {
        let interface = breakouts
            .iter()
            .find(|it| it.id == life.path)
            .map(|it| it.interface.as_str());
        let at = attached
            .iter()
            .find(|at| Some(at.interface.as_str()) == interface);
        DeadManBreakout {
            breakout: name_of(breakouts, life.path).unwrap_or_default(),
            heard: life.heard,
            hook: at.map(|at| at.hook.to_string()),
            verified_instructions: at.and_then(|at| at.verified_instructions),
            families: Family::BOTH
                .map(|family| {
                    let life = life.families[family.index()];
                    DeadManFamily {
                        family: family.name().into(),
                        down: life.down,
                        openings: life.openings,
                    }
                })
                .into(),
        }
    });
    Ok(DeadManStatus {
        acts: state.acts,
        breakouts: breakouts.collect(),
    })
}

impl Controller {
    /// Has answers heard where the view says.
    pub(super) fn hear(&mut self) {
        self.exits.clear();
        self.chores.exits = exits(&self.view);
        for attached in self.datapath.attach_exits(&self.chores.exits) {
            match attached {
                Ok(at) => {
                    let adopted = at.adopted_in_words();
                    info!("{}: {} by {}{adopted}", at.interface, at.program, at.hook);
                    self.exits.push(at);
                }
                Err(error) => warn!(
                    "{error}. Answers by this breakout are not heard: should no controller run, the kernel cannot tell whether it is dead"
                ),
            }
        }
        self.beat();
    }

    /// A sign of life. Without one for 10 s the dead-man takes over, which then is right.
    pub(super) fn beat(&mut self) {
        if let Err(error) = self.datapath.beat() {
            warn!("{error}. The dead-man believes that no controller runs");
        }
    }
}
