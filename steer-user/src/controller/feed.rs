//! The task that keeps the endpoint list current, beside the control loop: it asks the service, runs
//! the operator's hooks and keeps the disk; the loop only compiles and publishes what it is handed.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::warn;

use super::{
    ControllerError,
    polling::{after_failure, after_success, first_wait, unix_now},
    read_feed,
};
use crate::{
    api::{Action, Answer, Command, Order},
    config::{Config, FeedConfig},
    cut,
    endpoints::{
        By, ChangeError, Client, Feed, Keeper, Outcome, Policy, Publish, Report, ServiceError,
        Store,
    },
    system::files::{self, Files},
};

/// Opens what the configuration keeps on disk; none when the service is never asked.
///
/// Fails when the list to start with is refused, or the disk cannot be used.
pub(crate) fn open(config: &Config) -> Result<(Feed, Option<Keeper>), ControllerError> {
    let base = read_feed(config)?;
    if config.feed.rules.policy == Policy::Off {
        return Ok((base, None));
    }
    let store = Store::open(&config.system.state_dir, config.feed.instance)?;
    let keeper = Keeper::new(store, config.feed.rules.clone(), base);
    Ok((keeper.current(), Some(keeper)))
}

/// Carries out an order. The list it leads to is handed to `publish`.
pub(crate) async fn carry_out(
    order: &Order,
    keeper: &mut Keeper,
    config: &FeedConfig,
    publish: &mut impl Publish,
) -> Result<Outcome, ChangeError> {
    let by = By {
        who: order.who.clone(),
        why: order.why.clone(),
    };
    match order.action {
        Action::Update => {
            let client = client(config, keeper)?;
            let source = &config.service.base;
            keeper.update(&client, source, publish, &by, true).await
        }
        Action::Approve => keeper.approve(order.version, publish, &by).await,
        Action::Rollback => keeper.roll_back(order.version, publish, &by).await,
        Action::Pin => keeper.pin(order.version, publish, &by).await,
        Action::Unpin => keeper.unpin(&by),
    }
}

/// What the operator hears.
pub(crate) fn answer(result: &Result<Outcome, ChangeError>) -> Answer {
    match result {
        Ok(Outcome::Current) => Answer::done("the list in use is the service's latest"),
        Ok(Outcome::Done(text)) => Answer::done(text),
        Ok(Outcome::Held(text)) => Answer::refused(format!("{text}\nthe list in use stays")),
        Err(error) => Answer::refused(format!("{error}\nthe list in use stays")),
    }
}

fn client(config: &FeedConfig, keeper: &Keeper) -> Result<Client, ChangeError> {
    let guid = keeper.store().guid()?;
    Ok(Client::new(config.service.clone(), guid)?)
}

/// The running task. Dropping it ends it; what it has not finished is as if it had not begun.
#[derive(Debug)]
pub(super) struct FeedTask {
    orders: mpsc::Sender<(Order, oneshot::Sender<Answer>)>,
    report: watch::Receiver<Report>,
    task: JoinHandle<()>,
}

impl FeedTask {
    pub(super) fn spawn(keeper: Keeper, config: FeedConfig, loop_: mpsc::Sender<Command>) -> Self {
        let (orders, incoming) = mpsc::channel(4);
        let (sender, report) = watch::channel(keeper.report());
        let running = Running {
            keeper,
            config,
            client: None,
            publish: ToLoop(loop_),
            failures: 0,
            error: None,
            errors: BTreeMap::new(),
            report: sender,
        };
        Self {
            orders,
            report,
            task: tokio::spawn(running.run(incoming)),
        }
    }

    /// Hands an order over; the answer comes when it is carried out.
    pub(super) fn order(&self, order: Order, answer: oneshot::Sender<Answer>) {
        if let Err(error) = self.orders.try_send((order, answer)) {
            let (_, answer) = error.into_inner();
            // Nobody listening any more changes nothing.
            let _ = answer.send(Answer::refused(
                "another change of the list goes on; try again",
            ));
        }
    }

    pub(super) fn report(&self) -> Report {
        let mut report = self.report.borrow().clone();
        report.age = report.fetched.map(|at| unix_now().saturating_sub(at));
        report
    }
}

impl Drop for FeedTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct ToLoop(mpsc::Sender<Command>);

impl Publish for ToLoop {
    async fn publish(&mut self, feed: Feed) -> Result<Option<u64>, String> {
        let (sender, receiver) = oneshot::channel();
        let ending = || "the controller is ending".to_owned();
        let command = Command::UseFeed(Box::new(feed), sender);
        self.0.send(command).await.map_err(|_| ending())?;
        receiver.await.map_err(|_| ending())?.map(Some)
    }
}

struct Running {
    keeper: Keeper,
    config: FeedConfig,
    client: Option<Client>,
    publish: ToLoop,
    failures: u32,
    error: Option<String>,
    errors: BTreeMap<String, u64>,
    report: watch::Sender<Report>,
}

impl Running {
    async fn run(mut self, mut orders: mpsc::Receiver<(Order, oneshot::Sender<Answer>)>) {
        let mut next = Instant::now() + self.first_wait();
        let mut passed = Instant::now();
        let mut files = self.watch();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    // Anew, and before the look: the folder may be another one under the same name.
                    files = self.watch();
                    let changing = cut::operation("feed");
                    let result = self.look().await;
                    drop(changing);
                    next = Instant::now() + self.note(&result);
                }
                () = files::written(&mut files) => next = Instant::now(),
                order = orders.recv() => {
                    let Some((order, sender)) = order else { return };
                    let changing = cut::operation("feed");
                    let result = carry_out(&order, &mut self.keeper, &self.config, &mut self.publish).await;
                    drop(changing);
                    if order.action == Action::Update {
                        next = Instant::now() + self.note(&result);
                    }
                    self.tell();
                    // Nobody listening any more changes nothing.
                    let _ = sender.send(answer(&result));
                }
            }
            let time = passed.elapsed();
            if time >= self.config.interval.min(Duration::from_hours(1)) {
                passed = Instant::now();
                if let Err(error) = self.keeper.pass(time, &mut self.publish).await {
                    warn!("removed entries of the endpoint list are steered still: {error}");
                }
            }
            self.tell();
        }
    }

    /// Hears changes of a mirror that is a folder. One that is not there is looked for again.
    fn watch(&self) -> Option<Files> {
        let files = self.config.service.files();
        if files.is_empty() {
            return None;
        }
        Files::watch(files.into_iter().collect()).ok()
    }

    async fn look(&mut self) -> Result<Outcome, ChangeError> {
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(client(&self.config, &self.keeper)?),
        };
        let by = By::steer("the service has another version");
        let source = &self.config.service.base;
        self.keeper
            .update(client, source, &mut self.publish, &by, false)
            .await
    }

    /// Notes what became of a look, and says how long to wait for the next one.
    fn note(&mut self, result: &Result<Outcome, ChangeError>) -> Duration {
        let interval = self.config.interval;
        let (kind, asked) = match result {
            Ok(_) => {
                self.failures = 0;
                self.error = None;
                return after_success(interval);
            }
            Err(ChangeError::Service(ServiceError {
                kind, retry_after, ..
            })) => (kind.as_str(), *retry_after),
            Err(ChangeError::Store(_)) => ("disk", None),
            Err(ChangeError::Order(_)) => ("order", None),
        };
        self.failures = self.failures.saturating_add(1);
        *self.errors.entry(kind.into()).or_default() += 1;
        let wait = after_failure(interval, self.failures, asked);
        if let Err(error) = result {
            let text = error.to_string();
            if self.error.as_ref() != Some(&text) {
                warn!(
                    "endpoints: {text}. The list in use stays; asked again in {} s",
                    wait.as_secs()
                );
            }
            self.error = Some(text);
        }
        wait
    }

    /// A restart does not ask again before the hour is over; a clock that went back does. A folder
    /// may be looked at whenever.
    fn first_wait(&self) -> Duration {
        if self.config.service.folder().is_some() {
            return Duration::ZERO;
        }
        let interval = self.config.interval;
        let checked = self.keeper.store().state().checked;
        let since = checked
            .and_then(|at| unix_now().checked_sub(at))
            .map(Duration::from_secs);
        let left = since.map_or(Duration::ZERO, |since| interval.saturating_sub(since));
        left + first_wait(interval)
    }

    fn tell(&self) {
        let report = Report {
            failures: self.failures.into(),
            error: self.error.clone(),
            errors: self.errors.clone(),
            ..self.keeper.report()
        };
        // Whoever reads it is the loop, which outlives this task.
        let _ = self.report.send(report);
    }
}
