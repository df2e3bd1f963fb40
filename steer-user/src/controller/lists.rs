//! The tasks that keep lists from URLs current, one for each: fetched, validated whole, guarded, put
//! to use by the loop, and only then the copy that the next start finds.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::{info, warn};

use super::polling::{after_failure, after_success, first_wait, unix_now};
use crate::{
    api::Command,
    config::{Config, List, ListSource, OwnInclude},
    cut,
    endpoints::{
        Access, Copy, Deed, Difference, Entry, ErrorKind, Guards, ListClient, ListReport, Remote,
        ServiceError, ServiceParts, StoreError,
    },
};

/// A running task. Dropping it ends it; what it has not finished is as if it had not begun.
#[derive(Debug)]
pub(super) struct ListTask {
    report: watch::Receiver<ListReport>,
    task: JoinHandle<()>,
}

impl Drop for ListTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A task for each list of the configuration that comes from a URL.
pub(super) fn spawn(config: &Config, loop_: &mpsc::Sender<Command>) -> Vec<ListTask> {
    let remote = |list: &List| match &list.source {
        ListSource::Url { remote, interval } => Some((list.clone(), remote.clone(), *interval)),
        ListSource::BuiltIn(_) | ListSource::File(_) => None,
    };
    let lists = config.lists.iter().filter_map(remote);
    lists
        .map(|(list, remote, interval)| {
            let in_use = list.services_in(&config.select.include).cloned().collect();
            let copy = Copy::read(&config.system.state_dir, &list.name, &remote.url);
            if let Some(copy) = &copy
                && let Err(error) = copy.finish_journal(&config.system.state_dir, &list.name)
            {
                warn!(
                    "list {}: {error}. Its journal lacks the latest entry",
                    list.name
                );
            }
            let report = ListReport {
                name: list.name.clone(),
                url: remote.url.clone(),
                ..ListReport::default()
            };
            let (sender, receiver) = watch::channel(report.clone());
            let running = Running {
                list,
                remote,
                interval,
                access: config.feed.service.access.clone(),
                guards: config.feed.rules.guards.clone(),
                state_dir: config.system.state_dir.clone(),
                client: None,
                copy,
                in_use,
                loop_: loop_.clone(),
                report,
                sender,
            };
            ListTask {
                report: receiver,
                task: tokio::spawn(running.run()),
            }
        })
        .collect()
}

impl ListTask {
    pub(super) fn report(&self) -> ListReport {
        let mut report = self.report.borrow().clone();
        report.age = report.fetched.map(|at| unix_now().saturating_sub(at));
        report
    }
}

struct Running {
    list: List,
    remote: Remote,
    interval: Duration,
    access: Access,
    guards: Guards,
    state_dir: PathBuf,
    client: Option<ListClient>,
    copy: Option<Copy>,
    in_use: Vec<OwnInclude>,
    loop_: mpsc::Sender<Command>,
    report: ListReport,
    sender: watch::Sender<ListReport>,
}

impl Running {
    async fn run(mut self) {
        if self.copy.is_some() {
            self.tell();
            tokio::time::sleep(first_wait(self.interval)).await;
        }
        loop {
            let changing = cut::operation("list");
            let result = self.look().await;
            drop(changing);
            let next = Instant::now() + self.note(result);
            self.tell();
            tokio::time::sleep_until(next).await;
        }
    }

    async fn look(&mut self) -> Result<(), ServiceError> {
        let client = if let Some(client) = &self.client {
            client
        } else {
            let (remote, access) = (self.remote.clone(), self.access.clone());
            let client = ListClient::new(&self.list.name, remote, access)?;
            self.client.insert(client)
        };
        let known = self.copy.as_ref().map(|copy| &copy.header);
        let Some(mut copy) = client.newer(known).await? else {
            return Ok(());
        };
        copy.header.fetched = unix_now();
        let refuse = |text: String| ServiceError::new(ErrorKind::List, text);
        let services = self
            .list
            .read_answer(&self.remote.url, &copy.list)
            .map_err(|error| refuse(error.to_string()))?;
        if let Err(held) = self.judge(&services) {
            self.note_held(&held, &copy);
            return Err(held);
        }
        if services != self.in_use {
            let moved = Difference::between_services(&parts(&self.in_use), &parts(&services));
            let generation = self.publish(&services).await.map_err(refuse)?;
            cut::point();
            info!("list {}: {}", self.list.name, moved.extent());
            self.in_use = services;
            let entry = self.entry(Deed::Applied, "the server has another list", &copy);
            copy.header.last = Some(Entry {
                moved,
                generation: Some(generation),
                ..entry
            });
        }
        self.keep(copy)
            .map_err(|error| ServiceError::new(ErrorKind::Disk, error.to_string()))
    }

    /// An entry of the journal about a list.
    fn entry(&self, what: Deed, why: &str, to: &Copy) -> Entry {
        let last = self.copy.as_ref().and_then(|it| it.header.last.as_ref());
        let before = self.copy.as_ref().map(Copy::version);
        Entry {
            number: last.map_or(0, |last| last.number) + 1,
            time: unix_now(),
            who: "steer".into(),
            what,
            why: why.into(),
            from: before.unwrap_or_else(|| "none".into()),
            to: to.version(),
            moved: Difference::default(),
            explained: Vec::new(),
            generation: None,
        }
    }

    /// Tells the journal once that a list is held back.
    fn note_held(&mut self, held: &ServiceError, new: &Copy) {
        let Some(mut copy) = self.copy.clone() else {
            return;
        };
        if self.report.error.as_ref() == Some(&held.text) {
            return;
        }
        copy.header.last = Some(self.entry(Deed::Held, &held.text, new));
        if let Err(error) = self.keep(copy) {
            warn!(
                "list {}: {error}. The journal lacks an entry",
                self.list.name
            );
        }
    }

    /// Makes a copy the one that the next start finds, and tells the journal.
    fn keep(&mut self, copy: Copy) -> Result<(), StoreError> {
        copy.write(&self.state_dir, &self.list.name)?;
        cut::point();
        copy.finish_journal(&self.state_dir, &self.list.name)?;
        self.copy = Some(copy);
        Ok(())
    }

    /// The guards of the feed, as far as they are about any list.
    fn judge(&self, new: &[OwnInclude]) -> Result<(), ServiceError> {
        let mut reasons = Vec::new();
        if !self.in_use.is_empty() {
            reasons = self.guards.extent(&entries(&self.in_use), &entries(new));
        }
        let prefixes = new.iter().flat_map(|it| &it.prefixes);
        reasons.extend(prefixes.filter_map(|it| self.guards.denied(it)));
        if reasons.is_empty() {
            return Ok(());
        }
        let text = format!(
            "{}: the list is held back: {}. Correct it, or change [feed.guards]",
            self.remote.url,
            reasons.join("; ")
        );
        Err(ServiceError::new(ErrorKind::Held, text))
    }

    async fn publish(&self, services: &[OwnInclude]) -> Result<u64, String> {
        let (sender, receiver) = oneshot::channel();
        let ending = |()| "the controller is ending".to_owned();
        let command = Command::UseList(self.list.name.clone(), services.to_vec(), sender);
        self.loop_.send(command).await.map_err(|_| ending(()))?;
        receiver.await.map_err(|_| ending(()))?
    }

    /// Notes what became of a look, and says how long to wait for the next one.
    fn note(&mut self, result: Result<(), ServiceError>) -> Duration {
        let Err(error) = result else {
            self.report.failures = 0;
            self.report.error = None;
            return after_success(self.interval);
        };
        self.report.failures += 1;
        let kind = error.kind.as_str().to_owned();
        *self.report.errors.entry(kind).or_default() += 1;
        let failures = u32::try_from(self.report.failures).unwrap_or(u32::MAX);
        let wait = after_failure(self.interval, failures, error.retry_after);
        if self.report.error.as_ref() != Some(&error.text) {
            warn!(
                "list {}: {error}. The list in use stays; asked again in {} s",
                self.list.name,
                wait.as_secs()
            );
        }
        self.report.error = Some(error.text);
        wait
    }

    fn tell(&mut self) {
        self.report.services = self.in_use.len();
        self.report.entries = entries(&self.in_use).iter().map(BTreeSet::len).sum();
        self.report.fetched = self.copy.as_ref().map(|copy| copy.header.fetched);
        // Whoever reads it is the loop, which outlives this task.
        let _ = self.sender.send(self.report.clone());
    }
}

/// The prefixes and the names.
fn entries(services: &[OwnInclude]) -> [BTreeSet<String>; 2] {
    let prefixes = services.iter().flat_map(|it| &it.prefixes);
    let names = services.iter().flat_map(|it| &it.names);
    [
        prefixes.map(ToString::to_string).collect(),
        names.map(ToString::to_string).collect(),
    ]
}

/// What of services the journal tells.
fn parts(services: &[OwnInclude]) -> Vec<ServiceParts> {
    let part = |it: &OwnInclude| ServiceParts {
        name: it.name.clone(),
        prefixes: it.prefixes.clone(),
        names: it.names.iter().map(ToString::to_string).collect(),
        fields: vec![
            ("category", it.category.to_string()),
            ("tcpPorts", it.tcp.to_string()),
            ("udpPorts", it.udp.to_string()),
        ],
    };
    services.iter().map(part).collect()
}
