//! The controller: looks at the box, lets [`step`] decide, and carries the decisions out.
//!
//! It starts in an order that never leaves a half-way state in which packets could be lost: the
//! objects in the box first (they do nothing without wishes), then the plan, then the programs.
//! When it ends, steering goes on without it; [`detach`] takes everything away.

mod chores;
mod clsact;
mod deadman;
mod detach;
mod dns;
mod error;
pub(crate) mod feed;
mod health;
mod hops;
mod lists;
mod lock;
pub(crate) mod look;
mod missing;
mod path_ids;
mod polling;
mod preferences;
pub(crate) mod preflight;
mod preview;
mod registry;
mod reload;
pub(crate) mod report;
mod resolvers;
mod start;
pub mod step;
mod supervisor;
mod transition;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use steer_common::abi::PathTable;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};
use tracing::{debug, info, warn};

use self::{
    chores::Chores,
    feed::FeedTask,
    health::Prober,
    hops::NextHops,
    lists::ListTask,
    look::{View, look},
    missing::Missing,
    path_ids::PathIds,
    start::{adoptable, attach, attach_programs, load, undo, watch_period},
    step::{BreakoutFacts, Effect, Event, Phase, State},
    transition::Transition,
};
pub use self::{
    detach::{Detached, detach},
    error::ControllerError,
    lock::{Lock, LockError},
    preview::{Preview, preview},
    registry::RegistryFile,
    report::unattended,
};
use crate::{
    api::{self, Answer, Command, Drain, Metrics},
    config::{Config, Mode, OwnInclude, SystemConfig},
    cut,
    datapath::{Attachment, Datapath, PinDir},
    endpoints::Feed,
    policy::{ClassRegistry, Plan, Site},
    system::{self, Kernel, Object, PathId, files, monitor::Monitor, owners::Owners},
};

/// How often the box is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often every object is compared with the box.
const SWEEP: Duration = Duration::from_secs(10);

/// What `steer run` was told besides the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file, read again on reload.
    pub config: PathBuf,
    /// Whether the programs log odd packets.
    pub log_packets: bool,
}

/// Where a controller's socket is.
pub fn socket(system: &SystemConfig) -> PathBuf {
    system.run_dir.join("steer.sock")
}

/// Reads the feed that a configuration names.
pub fn read_feed(config: &Config) -> Result<Feed, crate::endpoints::FeedError> {
    match &config.feed.file {
        Some(file) => Feed::read(file, config.feed.instance),
        None => Feed::builtin(),
    }
}

/// Runs until a signal or `steer detach` ends it. Steering goes on after a signal.
///
/// Fails when it cannot start; then nothing of it stays in the box, unless an earlier controller's
/// programs were there, which steer on.
pub async fn run(config: Config, options: Options) -> Result<Ended, ControllerError> {
    let starting = cut::operation("start");
    let lock = Lock::take(&config.system.run_dir)?;
    let (sender, mut commands) = mpsc::channel(16);
    let start = Controller::start(config, options, sender.clone());
    let mut controller = Box::pin(start).await?;
    let socket = socket(&controller.config.system);
    let server = api::serve(&socket, sender).map_err(|source| ControllerError::Socket {
        path: socket.clone(),
        source,
    })?;
    cut::point();
    supervisor::ready();
    drop(starting);
    let end = controller.serve(&mut commands).await?;
    let (outcome, answer) = match end {
        End::Stopped => {
            info!(
                "steer stops; the programs steer on without it. `steer run` takes over again, `steer detach` removes them"
            );
            (Ok(Ended::Stopped), None)
        }
        End::Detach(drain, answer) => {
            let draining = controller.detach(drain, &mut commands);
            let outcome = supervisor::alive_during("draining", draining).await;
            let message = match &outcome {
                Ok(detached) => Answer::done(detached.to_string()),
                Err(error) => Answer::refused(error.to_string()),
            };
            (outcome.map(|_| Ended::Detached), Some((answer, message)))
        }
    };
    // Socket, lock, answer, in this order: whoever hears the answer may start another controller,
    // which puts its own socket in this place. A socket that is gone already is as good.
    let _ = std::fs::remove_file(socket);
    drop(lock);
    if let Some((answer, message)) = answer {
        // Nobody listening any more changes nothing.
        let _ = answer.send(message);
    }
    // Requests that still wait hear that the controller ends.
    drop(commands);
    server.finish().await;
    outcome
}

/// How a controller's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By a signal: the programs steer on.
    Stopped,
    /// By `steer detach`: nothing of steer is left, and nobody should start it again by himself.
    Detached,
}

/// Why the loop ended.
enum End {
    /// By a signal.
    Stopped,
    /// By `steer detach`.
    Detach(Drain, oneshot::Sender<Answer>),
}

/// A running controller.
struct Controller {
    config: Config,
    options: Options,
    kernel: Kernel,
    datapath: Datapath,
    attachments: Vec<Attachment>,
    /// Where answers are heard.
    exits: Vec<Attachment>,
    missing: Missing,
    chores: Chores,
    /// Something that a breakout needs went missing, or is back.
    look_again: bool,
    registry: RegistryFile,
    path_ids: PathIds,
    feed_task: Option<FeedTask>,
    list_tasks: Vec<ListTask>,
    plan: Plan,
    transition: Transition,
    generation: u64,
    objects: Vec<Object>,
    view: View,
    state: State,
    hops: NextHops,
    prober: Prober,
    dns: dns::Steering,
    devices: Vec<(PathId, u32)>,
    problems: Vec<String>,
    heard: supervisor::Heard,
    metrics: Metrics,
    commands: mpsc::Sender<Command>,
    started: Instant,
    /// The same in seconds of Unix time, if the clock knows it.
    started_at: Option<u64>,
}

impl Controller {
    async fn start(
        config: Config,
        options: Options,
        commands: mpsc::Sender<Command>,
    ) -> Result<Self, ControllerError> {
        let (feed, keeper) = feed::open(&config)?;
        if let Some(other) = PinDir::new(&config.system.pin_dir).mode()
            && other != config.mode
        {
            return Err(ControllerError::OtherMode { other });
        }
        let steering = PinDir::new(&config.system.pin_dir).mark_bits()?;
        if let (Some(marks), Mode::Mark) = (steering, config.mode)
            && marks != config.mark.bits
        {
            return Err(ControllerError::OtherMarks { marks });
        }
        let mut kernel = Kernel::open(&config.system.state_dir)?;
        let view = look(&kernel, &config, &[]).await?;
        let mut registry = RegistryFile::open(&config.system.state_dir)?;
        let mut path_ids = PathIds::open(&config.system.state_dir)?;
        path_ids.check(&config)?;
        let plan = compile(&feed, &config, &view, registry.get_mut())?;
        let adopting = adoptable(&config);
        let unreadable = PinDir::new(&config.system.pin_dir).is_of_another_version();
        let owners = Owners::gather(&kernel, config.mark.bits).await?;
        let problems = preflight::check(&config, &view, &owners, adopting)?;
        registry.save()?;
        let prober = Prober::new(&config.health)?;

        // Before our own table switches connection tracking on for the whole box.
        let watch = watch_period(&config, &owners, adopting);
        let objects = report::objects(&config, &view);
        let mut transition = Transition::new(&config);
        let what = (&plan, &mut transition);
        let result = load(&config, &options, &mut kernel, &objects, &view, what).await;
        let (datapath, generation) = match result {
            Ok(loaded) => loaded,
            Err(error) => {
                undo(&mut kernel, &config, adopting).await;
                return Err(error);
            }
        };
        if let Err(error) = path_ids.keep(&config) {
            undo(&mut kernel, &config, adopting).await;
            return Err(error);
        }
        if watch.is_zero() {
            info!("steering starts");
        } else {
            info!(
                "nothing here remembers the flows that began before: they are watched for {} s, then steering starts",
                watch.as_secs()
            );
        }
        for problem in problems.iter().chain(&view.problems) {
            warn!("{problem}");
        }
        let before = datapath.maps().paths()?;
        let in_use = before.next_hops.into_iter().flatten();
        let feed_task = keeper.map(|it| FeedTask::spawn(it, config.feed.clone(), commands.clone()));
        let list_tasks = lists::spawn(&config, &commands);
        let mut controller = Self {
            hops: NextHops::new(in_use),
            prober,
            dns: dns::Steering::default(),
            config,
            options,
            kernel,
            datapath,
            attachments: Vec::new(),
            exits: Vec::new(),
            missing: Missing::default(),
            chores: Chores::after(&objects),
            look_again: false,
            registry,
            path_ids,
            feed_task,
            list_tasks,
            plan,
            transition,
            generation,
            objects,
            view: view.clone(),
            state: State::new(watch),
            devices: Vec::new(),
            problems,
            heard: supervisor::Heard::default(),
            metrics: Metrics::new(commands.clone()),
            commands,
            started: Instant::now(),
            started_at: unix_time(),
        };
        // What another version found of a path cannot be read; that it is up is refuted soon.
        let taken = |id: PathId| {
            let up = was_up(&before, id);
            up.map(|up| adopting && (unreadable || up))
        };
        if let Err(error) = controller.steer(view, taken) {
            undo(&mut controller.kernel, &controller.config, adopting).await;
            return Err(error);
        }
        Ok(controller)
    }

    /// Attaches the programs. The state of the paths comes first: programs that take the place of
    /// another version's steer with their own maps from their first packet on.
    fn steer(
        &mut self,
        view: View,
        taken: impl Fn(PathId) -> [bool; 2],
    ) -> Result<(), ControllerError> {
        self.hear();
        self.set_up_probes(&view, taken)?;
        self.see(view)?;
        self.attachments = attach_programs(&self.config, &self.view, &mut self.datapath)?;
        self.steer_queries(true);
        Ok(())
    }

    async fn serve(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<End, ControllerError> {
        let signals = |kind| signal(kind).map_err(ControllerError::Signal);
        let (mut interrupt, mut terminate, mut hangup) = (
            signals(SignalKind::interrupt())?,
            signals(SignalKind::terminate())?,
            signals(SignalKind::hangup())?,
        );
        let mut monitor = Monitor::subscribe(self.config.mode == Mode::Redirect)?;
        let mut files = self.watch_files();
        let mut looks = tokio::time::interval(LOOK);
        let mut sweeps = tokio::time::interval(SWEEP);
        for timer in [&mut looks, &mut sweeps] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let (due, chores) = (self.due(), self.chores_due());
            let transition = self.transition.due();
            tokio::select! {
                Some(event) = self.prober.outcome() => self.take(event),
                () = health::at(due) => self.tick().await,
                () = health::at(chores) => self.do_chores().await,
                () = health::at(transition) => self.go_on_with_transition(),
                _ = looks.tick() => {
                    self.beat();
                    self.look().await;
                    let headline = self.headline();
                    self.heard.alive(headline);
                }
                _ = sweeps.tick() => self.sweep().await,
                changed = monitor.changed() => {
                    if changed.table {
                        self.sweep().await;
                    } else {
                        self.look().await;
                        // The kernel tells nobody of the routes that go with a link.
                        self.sweep_routing().await;
                    }
                }
                _ = interrupt.recv() => return Ok(End::Stopped),
                _ = terminate.recv() => return Ok(End::Stopped),
                _ = hangup.recv() => drop(self.reload_and_watch(&mut files).await),
                () = files::written(&mut files) => drop(self.reload_and_watch(&mut files).await),
                Some(command) = commands.recv() => match command {
                    // Nobody listening any more changes nothing.
                    Command::Status(answer) => drop(answer.send(self.status().await)),
                    Command::Reload(answer) => {
                        drop(answer.send(self.reload_and_watch(&mut files).await));
                    }
                    Command::Endpoints(order, answer) => self.order(order, answer),
                    Command::UseFeed(feed, answer) => self.use_feed(&feed, answer),
                    Command::UseList(name, services, answer) => {
                        self.use_list(&name, services, answer);
                    }
                    Command::Detach(drain, answer) => return Ok(End::Detach(drain, answer)),
                },
            }
            if self.look_again {
                self.look().await;
            }
        }
    }

    /// Looks at the box and acts on what changed. A failure changes nothing: the next look comes.
    async fn look(&mut self) {
        self.datapath.flush_log();
        let result = match look(&self.kernel, &self.config, &self.view.lans).await {
            Ok(view) => self.adapt(view).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            warn!(
                "{error}. steer keeps what it has and looks again in {} s",
                LOOK.as_secs()
            );
        }
    }

    /// Brings programs, plan, objects and paths in line with a new view of the box.
    async fn adapt(&mut self, view: View) -> Result<(), ControllerError> {
        for problem in new_in(&view.problems, &self.view.problems) {
            warn!("{problem}");
        }
        for problem in new_in(&self.view.problems, &view.problems) {
            info!("this is over: {problem}");
        }
        self.tell_of_delegations(&view);
        let _adapting = cut::operation("adapt");
        let mut ports_changed = false;
        // Before programs at a LAN's new interface see its clients: they have one plan from the first on.
        self.follow_clients(&view)?;
        if self.view.ports != view.ports {
            let (datapath, attachments) = attach(&self.config, &self.options, &view)?;
            (self.datapath, self.attachments) = (datapath, attachments);
            self.chores.exits.clear();
            ports_changed = true;
        }
        let objects = report::objects(&self.config, &view);
        let new = new_in(&objects, &self.objects).cloned().collect();
        self.objects = objects;
        self.repair(new).await;
        self.see(view)?;
        if ports_changed {
            self.steer_queries(true);
        }
        self.dns.watch(&self.config, &self.view);
        self.note_chores();
        Ok(())
    }

    /// Tells the operator which delegated prefixes are new or gone.
    fn tell_of_delegations(&self, view: &View) {
        for (seen, before) in view.breakouts.iter().zip(&self.view.breakouts) {
            let name = self
                .config
                .breakout(seen.id.get())
                .map_or("?", |it| &it.name);
            for prefix in new_in(&seen.delegated, &before.delegated) {
                info!(
                    "breakout {name}: its provider delegated {prefix}, which leaves untranslated"
                );
            }
            for prefix in new_in(&before.delegated, &seen.delegated) {
                info!("breakout {name}: {prefix} is delegated no more and does not leave as it is");
            }
        }
    }

    /// Probes what the configuration says.
    fn set_up_probes(
        &mut self,
        view: &View,
        taken: impl Fn(PathId) -> [bool; 2],
    ) -> Result<(), ControllerError> {
        let feed = self.plan.feed();
        self.prober
            .set_up(&mut self.state, &self.config, view, feed, taken)?;
        self.state.prefer(&preferences::rules(&self.config));
        let classes = preferences::preferring(&self.config, &self.plan);
        self.state.classify(classes);
        Ok(())
    }

    /// Lets the state machine see the breakouts, and carries out what it decides.
    fn see(&mut self, mut view: View) -> Result<(), ControllerError> {
        self.missing.mark(&mut view);
        self.look_again = false;
        let mut facts = Vec::new();
        for (seen, configured) in view.breakouts.iter().zip(&self.config.breakouts) {
            let mut next_hops = [0; 2];
            for (family, hop) in seen.hops.iter().enumerate() {
                let Some(hop) = *hop else { continue };
                let (place, write) = self.hops.place((seen.id, family), hop);
                if write {
                    self.datapath.maps_mut().set_next_hop(place, &hop)?;
                    cut::point();
                }
                next_hops[family] = place;
            }
            if let (Mode::Redirect, Some(ifindex)) = (self.config.mode, seen.ifindex)
                && !self.devices.contains(&(seen.id, ifindex))
            {
                self.datapath
                    .maps_mut()
                    .set_device(seen.id.get(), ifindex)?;
                self.devices.retain(|(id, _)| *id != seen.id);
                self.devices.push((seen.id, ifindex));
                cut::point();
            }
            facts.push(BreakoutFacts {
                id: seen.id,
                priority: configured.priority,
                weight: configured.weight,
                trouble: seen.trouble.clone(),
                lacks: seen.lacks.clone(),
                next_hops,
            });
        }
        self.view = view;
        self.decide(Event::Facts(facts))
    }

    fn decide(&mut self, event: Event) -> Result<(), ControllerError> {
        for effect in self.state.step(event, self.started.elapsed()) {
            match effect {
                Effect::SetPaths(table) => {
                    self.datapath.maps_mut().set_paths(&table)?;
                    cut::point();
                }
                Effect::SteeringStarts => info!("the watch period is over: new flows are steered"),
                Effect::Probe(id, preference, probe) => self.prober.send(id, preference, probe),
                Effect::ResetFlows(id, family) => self.reset_flows(id, family),
                Effect::PathChanged { id, verdict } => self.tell(id, &verdict),
                Effect::PreferenceChanged {
                    id,
                    preference,
                    verdict,
                } => self.tell_of_preference(id, preference, &verdict),
                Effect::FamilyChanged { id, family, lack } => {
                    self.tell_of_family(id, family, lack.as_deref());
                }
            }
        }
        Ok(())
    }

    /// Answers metrics where the configuration says, or tries to.
    async fn keep_metrics(&mut self) {
        let listen = self.config.metrics.listen;
        if let (Err(error), Some(address)) = (self.metrics.listen(listen).await, listen) {
            warn!(
                "metrics on {address}: {error}. steer tries again in {} s",
                SWEEP.as_secs()
            );
        }
    }

    /// Puts back what others removed from the box.
    async fn sweep(&mut self) {
        self.keep_metrics().await;
        self.check_forwarder().await;
        self.repair(self.objects.clone()).await;
        self.chores.objects.clone_from(&self.objects);
        match system::leftovers(&mut self.kernel, &self.objects).await {
            Ok(old) => {
                for (object, error) in system::remove_all(&mut self.kernel, &old).await {
                    warn!("`{object}` is not needed any more and cannot be removed: {error}");
                }
            }
            Err(error) => warn!("{error}"),
        }
    }

    /// Puts back all but the nftables table; that costs little, so it is done whenever anything
    /// changes.
    async fn sweep_routing(&mut self) {
        let routing = |object: &&Object| !matches!(object, Object::NftTable(_));
        let objects = self.objects.iter().filter(routing).cloned().collect();
        self.repair(objects).await;
    }

    async fn repair(&mut self, objects: Vec<Object>) {
        let result = system::reconcile(&mut self.kernel, &objects).await;
        for (object, found) in result.repaired {
            // A gateway goes with its link, and when the kernel cleans up.
            if matches!(object, Object::Gateway(_)) {
                debug!("`{object}` was {found:?}: applied again");
            } else {
                warn!("`{object}` was {found:?}: applied again");
            }
        }
        self.look_again |= self.missing.note(&self.objects, &objects, &result.failed);
        for (object, error) in result.failed {
            warn!(
                "`{object}` cannot be applied: {error}. steer tries again in {} s",
                SWEEP.as_secs()
            );
        }
    }

    fn publish(&mut self, plan: Plan) -> Result<(), ControllerError> {
        self.registry.save()?;
        // Packets of a class that is new go by its preference from the first one on.
        let before = preferences::preferring(&self.config, &self.plan);
        let classes = before.chain(preferences::preferring(&self.config, &plan));
        self.state.classify(classes);
        self.decide(Event::Tick)?;
        self.generation = self.transition.publish(self.datapath.maps_mut(), &plan)?;
        self.plan = plan;
        Ok(())
    }

    /// Hands an order to the task that keeps the list.
    fn order(&self, order: api::Order, answer: oneshot::Sender<Answer>) {
        match &self.feed_task {
            Some(task) => task.order(order, answer),
            // Nobody listening any more changes nothing.
            None => drop(answer.send(Answer::refused(
                "the endpoint list is not kept current: [feed] update is \"off\"",
            ))),
        }
    }

    /// Publishes the plan of a list. One that nobody waits for any more is left alone: its task was
    /// ended, and has not made it the one in use.
    fn use_feed(&mut self, feed: &Feed, answer: oneshot::Sender<Result<u64, String>>) {
        if answer.is_closed() {
            return;
        }
        let plan = compile(feed, &self.config, &self.view, self.registry.get_mut());
        let published = plan.and_then(|plan| self.publish(plan));
        if published.is_ok() {
            self.steer_queries(false);
        }
        let result = published
            .map(|()| self.generation)
            .map_err(|error| error.to_string());
        // As above: whoever asked is gone since, and asks again.
        let _ = answer.send(result);
    }

    /// Publishes the plan with these services of a list; as above.
    fn use_list(
        &mut self,
        name: &str,
        services: Vec<OwnInclude>,
        answer: oneshot::Sender<Result<u64, String>>,
    ) {
        if answer.is_closed() {
            return;
        }
        let mut config = self.config.clone();
        config.select.replace_list(name, services);
        let feed = self.plan.feed().clone();
        let plan = compile(&feed, &config, &self.view, self.registry.get_mut());
        let published = plan.and_then(|plan| self.publish(plan));
        if published.is_ok() {
            self.config = config;
            self.steer_queries(false);
        }
        let result = published
            .map(|()| self.generation)
            .map_err(|error| error.to_string());
        // As above: whoever asked is gone since, and asks again.
        let _ = answer.send(result);
    }

    /// Ends steering: no new flows, wait for the old ones, take everything away.
    async fn detach(
        &mut self,
        drain: Drain,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Detached, ControllerError> {
        let _detaching = cut::operation("detach");
        self.decide(Event::StopSteering)?;
        let system = self.config.system.clone();
        let drained = detach::drained(&system, Some(self.config.mode), drain);
        tokio::pin!(drained);
        let cut = loop {
            tokio::select! {
                cut = &mut drained => break cut?,
                Some(command) = commands.recv() => self.answer_while_draining(command).await,
            }
        };
        detach::remove(&system, &mut self.kernel, cut).await
    }

    async fn answer_while_draining(&self, command: Command) {
        let refused = || Answer::refused("steer is being detached");
        // Nobody listening any more changes nothing.
        match command {
            Command::Status(answer) => drop(answer.send(self.status().await)),
            Command::Reload(answer)
            | Command::Endpoints(_, answer)
            | Command::Detach(_, answer) => drop(answer.send(refused())),
            Command::UseFeed(_, answer) | Command::UseList(_, _, answer) => {
                drop(answer.send(Err(refused().message)));
            }
        }
    }
}

/// Whether a path was up in each family.
fn was_up(table: &PathTable, id: PathId) -> [bool; 2] {
    table.families.map(|it| it.state & 1 << id.get() != 0)
}

/// What is in the one list and not in the other.
fn new_in<'a, T: PartialEq>(now: &'a [T], before: &'a [T]) -> impl Iterator<Item = &'a T> {
    now.iter().filter(|it| !before.contains(it))
}

fn site(view: &View) -> Site {
    Site {
        clients: Some(view.sources.clone()),
        left_out: view.left_out.clone(),
        queries_left: view.queries_left.clone(),
        router: view.own_addresses.iter().copied().collect(),
    }
}

fn compile(
    feed: &Feed,
    config: &Config,
    view: &View,
    registry: &mut ClassRegistry,
) -> Result<Plan, ControllerError> {
    Ok(Plan::compile(
        feed.clone(),
        config.select.clone(),
        site(view),
        registry,
    )?)
}

fn unix_time() -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs())
}
