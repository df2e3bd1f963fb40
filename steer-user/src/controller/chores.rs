//! What can wait when the box changed. New flows are led elsewhere, or back, at once; loading the
//! program that hears answers, a new plan for the router's addresses, and comparing the nftables table take a
//! hundred times as long, and a link that is made anew changes several times within milliseconds.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{Controller, ControllerError, View, compile, deadman, site};
use crate::{cut, datapath::Exit, policy::Site, system::Object};

/// So long must nothing have changed.
const QUIET: Duration = Duration::from_millis(300);
/// A box that never rests does not put them off for longer.
const AT_MOST: Duration = Duration::from_secs(1);

/// For which state of the box they were done, and since when there are any.
#[derive(Debug)]
pub(super) struct Chores {
    /// Where answers are heard.
    pub(super) exits: Vec<Exit>,
    /// What is in the box, and beside it nothing else of steer's.
    pub(super) objects: Vec<Object>,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    changed: Instant,
}

impl Chores {
    /// When these objects have just been put into the box.
    pub(super) fn after(objects: &[Object]) -> Self {
        Self {
            exits: Vec::new(),
            objects: objects.to_vec(),
            waiting: None,
        }
    }
}

impl Controller {
    /// Sees whether there are any, after something changed.
    pub(super) fn note_chores(&mut self) {
        let any = self.chores.exits != deadman::exits(&self.view)
            || self.chores.objects != self.objects
            || *self.plan.site() != site(&self.view);
        let changed = Instant::now();
        self.chores.waiting = any.then(|| Waiting {
            since: self.chores.waiting.map_or(changed, |it| it.since),
            changed,
        });
    }

    /// When they are to be done, if there are any.
    pub(super) fn chores_due(&self) -> Option<tokio::time::Instant> {
        let Waiting { since, changed } = self.chores.waiting?;
        Some((changed + QUIET).min(since + AT_MOST).into())
    }

    /// Does them. What fails is tried again after the next look.
    pub(super) async fn do_chores(&mut self) {
        let _adapting = cut::operation("adapt");
        self.chores.waiting = None;
        if self.chores.exits != deadman::exits(&self.view) {
            self.hear();
        }
        let view = self.view.clone();
        if *self.plan.site() != site(&view)
            && let Err(error) = self.follow_site(&view)
        {
            warn!("{error}. steer keeps the plan that it has");
        }
        if self.chores.objects != self.objects {
            self.sweep().await;
        }
    }

    /// Publishes a plan for other clients at once: those of a LAN that is made anew are waiting. The
    /// router's own addresses can wait.
    pub(super) fn follow_clients(&mut self, view: &View) -> Result<(), ControllerError> {
        let (seen, planned) = (site(view), self.plan.site());
        let clients = |site: &Site| Site {
            router: Vec::new(),
            ..site.clone()
        };
        if clients(&seen) == clients(planned) {
            return Ok(());
        }
        self.follow_site(view)
    }

    fn follow_site(&mut self, view: &View) -> Result<(), ControllerError> {
        let feed = self.plan.feed().clone();
        let plan = compile(&feed, &self.config, view, self.registry.get_mut())?;
        self.publish(plan)?;
        self.forward_queries();
        info!(
            "the router's or the clients' addresses changed: generation {}",
            self.generation
        );
        Ok(())
    }
}
