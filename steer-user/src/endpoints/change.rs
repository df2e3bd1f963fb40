//! Change management: what becomes of an answer of the service, when, and on whose word.
//!
//! An answer is believed whole or not at all (validation), may be held back (policy, pin, guards, the
//! operator's hook, the plan), and is in use only after its plan was published. Additions come at
//! once; what was removed is steered on for a delay, because clients use it longer than the list has
//! it. Until then the entries are laid over the newer list.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    Client, Difference, Digest, EndpointSet, ErrorKind, Feed, FeedVersion, Guards, Hooks,
    ServiceError, Store, StoreError,
    explanation::Explanation,
    hooks::{self, Told},
    journal::{Deed, Entry},
    special::overlap,
    store::{Header, Key, Leaving, Pinned, Stored, Waiting, to_json},
    validate,
};
use crate::cut;

/// How answers of the service come into use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The service is never asked.
    #[default]
    Off,
    /// When the guards let them pass.
    Automatic,
    /// When an operator approves them.
    Approve,
    /// Not at all; they are shown.
    Pinned,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Off, Self::Automatic, Self::Approve, Self::Pinned];

    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Automatic => "automatic",
            Self::Approve => "approve",
            Self::Pinned => "pinned",
        }
    }
}

/// What a change must keep to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How answers come into use.
    pub policy: Policy,
    /// What holds them back.
    pub guards: Guards,
    /// How long entries that are gone from the list are steered still.
    pub removal_delay: Duration,
    /// How many versions stay on disk.
    pub keep: usize,
    /// The operator's commands.
    pub hooks: Hooks,
}

/// Who wants a change, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// `steer`, or a user.
    pub who: String,
    /// Why, in words.
    pub why: String,
}

impl By {
    /// steer itself.
    pub fn steer(why: impl Into<String>) -> Self {
        Self {
            who: "steer".into(),
            why: why.into(),
        }
    }
}

/// Puts a list to use: compiles the plan and publishes it.
pub trait Publish {
    /// Gives the generation it became, if a controller runs. Fails with why the list cannot be used;
    /// then nothing was changed.
    fn publish(&mut self, feed: Feed) -> impl Future<Output = Result<Option<u64>, String>>;
}

/// What became of an order or of a look at the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The list in use is the service's.
    Current,
    /// Something was changed, in words.
    Done(String),
    /// A list is held back, in words.
    Held(String),
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The service's answer cannot be used.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The order makes no sense now.
    #[error("{0}")]
    Order(String),
}

/// Keeps the list.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    rules: Rules,
    base: Feed,
}

/// The state of change management, for people and for the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The policy's word.
    pub policy: String,
    /// Microsoft's version of the list in use; none: the list to start with.
    pub version: Option<String>,
    /// When that list was fetched, in Unix time.
    pub fetched: Option<u64>,
    /// How old it is, in seconds by this machine's clock.
    pub age: Option<u64>,
    /// When the service was last asked with success, in Unix time.
    pub checked: Option<u64>,
    /// Looks at the service that failed in a row.
    pub failures: u64,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Failed looks since the controller's start, by a word.
    pub errors: BTreeMap<String, u64>,
    /// The version that is held back.
    pub waiting: Option<String>,
    /// Why it is.
    pub reasons: Vec<String>,
    /// Who holds the list in use, and why.
    pub pinned: Option<String>,
    /// Prefixes and names that are gone from the list and steered still.
    pub leaving: usize,
    /// Changes in the journal.
    pub changes: u64,
}

impl Keeper {
    /// `base` is the list to start with.
    pub fn new(store: Store, rules: Rules, base: Feed) -> Self {
        Self { store, rules, base }
    }

    /// Other rules from now on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What is to be steered: the list in use, and what is leaving.
    pub fn current(&self) -> Feed {
        self.overlaid(self.latest(), &self.store.state().leaving)
    }

    /// The state, without what only the one who asks the service knows.
    pub fn report(&self) -> Report {
        let state = self.store.state();
        let active = self.store.active();
        let fetched = active.as_ref().map(|stored| stored.header.fetched);
        let leaving = state
            .leaving
            .iter()
            .filter_map(|it| validate::part(&it.part));
        Report {
            policy: self.rules.policy.as_str().into(),
            version: active.map(|stored| stored.key.version.to_string()),
            fetched,
            age: fetched.map(|at| now().saturating_sub(at)),
            checked: state.checked,
            waiting: state.waiting.as_ref().map(|it| it.key.version.to_string()),
            reasons: state
                .waiting
                .as_ref()
                .map_or_else(Vec::new, |it| it.reasons.clone()),
            pinned: state
                .pinned
                .as_ref()
                .map(|it| format!("{}: {}", it.who, it.why)),
            leaving: leaving
                .map(|part| part.prefixes.len() + part.names.len())
                .sum(),
            changes: state.last.as_ref().map_or(0, |entry| entry.number),
            ..Report::default()
        }
    }

    /// What the service announced for a day: the day, the set, the entries.
    pub fn calendar(&self) -> Vec<(String, u64, Vec<String>)> {
        let stored = self.store.active().into_iter().chain(self.store.waiting());
        let mut days: Vec<_> = stored
            .flat_map(|stored| stored.header.explained)
            .filter_map(|it| Some((it.effective?, it.set, it.added)))
            .collect();
        days.sort();
        days.dedup();
        days
    }

    /// Asks the service, and does what policy and guards say with its answer. `again` fetches a list
    /// that is held back once more.
    pub async fn update(
        &mut self,
        client: &Client,
        source: &str,
        publish: &mut impl Publish,
        by: &By,
        again: bool,
    ) -> Result<Outcome, ChangeError> {
        let version = client.version().await?;
        let state = self.store.state();
        let in_use = state.active.as_ref().map(|key| key.version);
        // What a signer once signed stays signed, so that one who can only replay it must not bring
        // anything back, not even after a rollback.
        let newest = if client.is_signed() {
            self.store.newest().max(in_use)
        } else {
            in_use
        };
        if let Some(newest) = newest
            && version < newest
        {
            let text = format!(
                "{source} says version {version}, which is older than {newest}, which this machine has already: a mirror that is not kept, or an old answer from a cache"
            );
            return Err(ServiceError::new(ErrorKind::Older, text).into());
        }
        if in_use == Some(version) {
            self.note_checked(None)?;
            return Ok(Outcome::Current);
        }
        let waits = state
            .waiting
            .as_ref()
            .is_some_and(|it| it.key.version == version);
        if !waits || again {
            self.fetch(client, source, version).await?;
        }
        self.judge(publish, by, false).await
    }

    /// Fetches a list and keeps it beside the one in use.
    async fn fetch(
        &mut self,
        client: &Client,
        source: &str,
        version: FeedVersion,
    ) -> Result<(), ChangeError> {
        let since = self.store.state().active.as_ref().map(|key| key.version);
        let since = since.or_else(|| self.base.day());
        let list = client.endpoints(version).await?;
        let instance = self.base.instance;
        let name = format!("version {version} of {source}");
        // A list of the largest size takes a moment, in which the rest of steer goes on.
        let (list, parsed) = tokio::task::spawn_blocking(move || {
            let parsed = Feed::parse(&name, &list, instance);
            (list, parsed)
        })
        .await
        .map_err(|error| ServiceError::new(ErrorKind::List, error.to_string()))?;
        parsed.map_err(|error| ServiceError::new(ErrorKind::List, error.to_string()))?;
        let explained = match since {
            Some(since) => client.changes(since).await.unwrap_or_else(|error| {
                info!("{error}. The list is used without the service's explanation");
                Vec::new()
            }),
            None => Vec::new(),
        };
        let header = Header {
            instance: instance.as_str().into(),
            version,
            source: source.to_owned(),
            fetched: now(),
            explained,
        };
        let key = self.store.put(&header, &list)?;
        cut::point();
        let old = self.store.state().waiting.clone();
        let old = old.filter(|it| it.key == key);
        self.note_checked(Some(old.unwrap_or(Waiting {
            key,
            reasons: Vec::new(),
            can_be_approved: true,
        })))?;
        Ok(())
    }

    /// The service answered; `waiting` is what it brought.
    fn note_checked(&mut self, waiting: Option<Waiting>) -> Result<(), StoreError> {
        let mut state = self.store.state().clone();
        state.checked = Some(now());
        state.waiting = waiting;
        self.store.save(state)
    }

    /// Applies the list that waits, or says why it goes on waiting.
    async fn judge(
        &mut self,
        publish: &mut impl Publish,
        by: &By,
        approved: bool,
    ) -> Result<Outcome, ChangeError> {
        let Some(stored) = self.store.waiting() else {
            return Err(ChangeError::Order("no list is held back".into()));
        };
        let (mut reasons, mut can_be_approved) = (Vec::new(), true);
        let latest = self.latest();
        for it in self
            .rules
            .guards
            .objections(&latest.sets, &stored.feed.sets)
        {
            if !approved || !it.can_be_approved {
                can_be_approved &= it.can_be_approved;
                reasons.push(it.reason);
            }
        }
        if !approved && latest.sets != stored.feed.sets {
            let word = match (&self.store.state().pinned, self.rules.policy) {
                (Some(pinned), _) => Some(format!(
                    "the list in use is pinned by {} ({})",
                    pinned.who, pinned.why
                )),
                (None, Policy::Approve) => Some("an operator has to approve it".into()),
                (None, Policy::Pinned) => Some("the configuration pins the list in use".into()),
                (None, Policy::Off | Policy::Automatic) => None,
            };
            reasons.extend(word);
        }
        if reasons.is_empty() {
            let version = stored.key.version;
            match self.apply(Some(stored), Deed::Applied, publish, by).await {
                Err(ChangeError::Order(reason)) => {
                    (reasons, can_be_approved) = (vec![reason], false);
                }
                done => {
                    return Ok(Outcome::Done(format!(
                        "version {version} is in use: {}",
                        done?
                    )));
                }
            }
        }
        self.hold(reasons, can_be_approved, by)
    }

    /// The list that waits goes on waiting.
    fn hold(
        &mut self,
        reasons: Vec<String>,
        can_be_approved: bool,
        by: &By,
    ) -> Result<Outcome, ChangeError> {
        let mut state = self.store.state().clone();
        state.checked = Some(now());
        let Some(waiting) = &mut state.waiting else {
            return Ok(Outcome::Current);
        };
        let version = waiting.key.version;
        let text = format!("version {version} is held back: {}", reasons.join("; "));
        let remedy = if can_be_approved {
            "; `steer endpoints approve` applies it"
        } else {
            ""
        };
        if waiting.reasons != reasons {
            waiting.reasons = reasons;
            waiting.can_be_approved = can_be_approved;
            warn!("{text}. The list in use stays{remedy}");
            let why = waiting.reasons.join("; ");
            let entry = self.entry(
                &By {
                    who: by.who.clone(),
                    why,
                },
                Deed::Held,
                version.to_string(),
            );
            state.last = Some(entry);
        }
        self.store.save(state)?;
        Ok(Outcome::Held(text + remedy))
    }

    /// Applies the list that is held back, whatever policy and guards say; not what is never to be.
    pub async fn approve(
        &mut self,
        version: Option<FeedVersion>,
        publish: &mut impl Publish,
        by: &By,
    ) -> Result<Outcome, ChangeError> {
        let waiting = self.store.state().waiting.as_ref().map(|it| it.key.version);
        match (waiting, version) {
            (None, _) => return Err(ChangeError::Order("no list is held back".into())),
            (Some(waits), Some(wanted)) if waits != wanted => {
                let text = format!(
                    "version {waits} is held back, not {wanted}: `steer endpoints show` says why"
                );
                return Err(ChangeError::Order(text));
            }
            _ => {}
        }
        if let Some(pinned) = &self.store.state().pinned {
            let text = format!(
                "the list in use is pinned by {}: `steer endpoints unpin` first",
                pinned.who
            );
            return Err(ChangeError::Order(text));
        }
        self.judge(publish, by, true).await
    }

    /// Goes back to an earlier version, at once and whole, and holds it.
    pub async fn roll_back(
        &mut self,
        version: Option<FeedVersion>,
        publish: &mut impl Publish,
        by: &By,
    ) -> Result<Outcome, ChangeError> {
        let state = self.store.state();
        let key = match version {
            Some(version) => Some(self.find(version)?),
            None => match state.before.last() {
                Some(key) => key.clone(),
                None => {
                    return Err(ChangeError::Order(
                        "no list was in use before this one".into(),
                    ));
                }
            },
        };
        let stored = key.map(|key| self.store.version(&key)).transpose()?;
        let name = stored.as_ref().map_or_else(
            || self.base.origin.to_string(),
            |it| format!("version {}", it.key.version),
        );
        let moved = self.apply(stored, Deed::RolledBack, publish, by).await?;
        Ok(Outcome::Done(format!(
            "{name} is in use again and pinned: {moved}. `steer endpoints unpin` lets newer ones come"
        )))
    }

    /// Holds the list in use, or goes to a version that was in use and holds that.
    pub async fn pin(
        &mut self,
        version: Option<FeedVersion>,
        publish: &mut impl Publish,
        by: &By,
    ) -> Result<Outcome, ChangeError> {
        let in_use = self.store.state().active.as_ref().map(|key| key.version);
        if version.is_some() && version != in_use {
            return self.roll_back(version, publish, by).await;
        }
        let mut state = self.store.state().clone();
        state.pinned = Some(Pinned {
            who: by.who.clone(),
            why: by.why.clone(),
        });
        state.last = Some(self.entry(by, Deed::Pinned, self.in_use()));
        self.store.save(state)?;
        Ok(Outcome::Done(format!("{} is pinned", self.in_use())))
    }

    /// Lets newer lists come again.
    pub fn unpin(&mut self, by: &By) -> Result<Outcome, ChangeError> {
        let mut state = self.store.state().clone();
        if state.pinned.take().is_none() {
            return Err(ChangeError::Order(
                "the list in use is not pinned by `steer endpoints pin`".into(),
            ));
        }
        // What was held because of the pin is looked at anew.
        if let Some(waiting) = &mut state.waiting {
            waiting.reasons.clear();
        }
        state.last = Some(self.entry(by, Deed::Unpinned, self.in_use()));
        self.store.save(state)?;
        Ok(Outcome::Done(
            "the pin is off: the policy decides again".into(),
        ))
    }

    /// Time passes for what is leaving.
    pub async fn pass(
        &mut self,
        time: Duration,
        publish: &mut impl Publish,
    ) -> Result<Option<Outcome>, ChangeError> {
        if self.store.state().leaving.is_empty() || time.as_secs() == 0 {
            return Ok(None);
        }
        let mut state = self.store.state().clone();
        for leaving in &mut state.leaving {
            leaving.left = leaving.left.saturating_sub(time.as_secs());
        }
        if state.leaving.iter().all(|it| it.left > 0) {
            self.store.save(state)?;
            return Ok(None);
        }
        let before = self.current();
        state.leaving.retain(|it| it.left > 0);
        let after = self.overlaid(self.latest(), &state.leaving);
        let moved = Difference::between(&before.sets, &after.sets);
        let generation = publish.publish(after).await.map_err(ChangeError::Order)?;
        cut::point();
        let by = By::steer("the delay of removed entries is over");
        let text = format!("removed entries are steered no more: {}", moved.extent());
        state.last = Some(Entry {
            moved,
            generation,
            ..self.entry(&by, Deed::Left, self.in_use())
        });
        self.store.save(state)?;
        Ok(Some(Outcome::Done(text)))
    }

    /// Publishes a list and makes it the one in use. `None` is the list to start with.
    async fn apply(
        &mut self,
        stored: Option<Stored>,
        deed: Deed,
        publish: &mut impl Publish,
        by: &By,
    ) -> Result<String, ChangeError> {
        let feed = stored
            .as_ref()
            .map_or_else(|| self.base.clone(), |it| it.feed.clone());
        let key = stored.as_ref().map(|it| it.key.clone());
        let before = self.current();
        let leaving = match (&key, deed) {
            (Some(key), Deed::Applied) => self.leaving(&feed.sets, key.version),
            _ => Vec::new(),
        };
        let after = self.overlaid(feed, &leaving);
        let moved = Difference::between(&before.sets, &after.sets);
        let to = key.as_ref().map_or_else(
            || self.base.origin.to_string(),
            |key| key.version.to_string(),
        );
        let told = Told {
            from: &self.in_use(),
            to: &to,
            why: &by.why,
            moved: &moved,
        };
        let Hooks {
            before: first,
            after: then,
            timeout,
        } = self.rules.hooks.clone();
        hooks::run(&first, timeout, &told)
            .await
            .map_err(|why| ChangeError::Order(format!("the hook before refuses it: {why}")))?;
        let generation = publish.publish(after).await.map_err(ChangeError::Order)?;
        cut::point();
        let mut state = self.store.state().clone();
        if let (Some(key), true) = (&key, deed == Deed::Applied) {
            self.store.accept(key)?;
            cut::point();
            state.waiting = None;
        }
        if deed == Deed::Applied {
            state.before.push(state.active.clone());
            let many = state.before.len().saturating_sub(self.rules.keep);
            state.before.drain(..many);
        } else {
            state.pinned = Some(Pinned {
                who: by.who.clone(),
                why: by.why.clone(),
            });
            if let Some(place) = state.before.iter().rposition(|it| *it == key) {
                state.before.truncate(place);
            }
        }
        let extent = moved.extent().to_string();
        state.last = Some(Entry {
            moved: moved.clone(),
            explained: stored.map_or_else(Vec::new, |it| it.header.explained),
            generation,
            ..self.entry(by, deed, to.clone())
        });
        state.active = key;
        state.leaving = leaving;
        self.store.save(state)?;
        info!(
            "endpoints: {to} is in use ({extent}), by {}: {}",
            by.who, by.why
        );
        if let Err(error) = self.store.prune(self.rules.keep) {
            warn!("{error}: an old version stays on disk");
        }
        if let Err(why) = hooks::run(
            &then,
            timeout,
            &Told {
                from: told.from,
                to: &to,
                why: &by.why,
                moved: &moved,
            },
        )
        .await
        {
            warn!("the hook after the change to {to}: {why}");
        }
        Ok(extent)
    }

    /// The list in use, without what is leaving.
    fn latest(&self) -> Feed {
        self.store
            .active()
            .map_or_else(|| self.base.clone(), |stored| stored.feed)
    }

    fn in_use(&self) -> String {
        let active = self.store.state().active.as_ref();
        active.map_or_else(
            || self.base.origin.to_string(),
            |key| key.version.to_string(),
        )
    }

    fn find(&self, version: FeedVersion) -> Result<Key, ChangeError> {
        let versions = self.store.versions();
        let found = versions
            .into_iter()
            .rev()
            .find(|it| it.key.version == version);
        found.map(|it| it.key).ok_or_else(|| {
            ChangeError::Order(format!("version {version} was never in use here, or is not kept any more: `steer endpoints show` lists those that are"))
        })
    }

    /// What leaves when `new` comes: what of it left already, and what goes now.
    fn leaving(&self, new: &[EndpointSet], since: FeedVersion) -> Vec<Leaving> {
        let delay = self.rules.removal_delay.as_secs();
        if delay == 0 {
            return Vec::new();
        }
        let old = self.store.state().leaving.iter().filter_map(|it| {
            let part = without(validate::part(&it.part)?, new)?;
            Some(Leaving {
                part: to_json(&part),
                ..it.clone()
            })
        });
        let latest = self.latest();
        let gone = latest.sets.into_iter().filter_map(|set| {
            Some(Leaving {
                part: to_json(&without(set, new)?),
                since,
                left: delay,
            })
        });
        old.chain(gone).collect()
    }

    /// A list with what is leaving laid over it.
    fn overlaid(&self, mut feed: Feed, leaving: &[Leaving]) -> Feed {
        let denied = |prefix: &IpNet| {
            self.rules
                .guards
                .deny
                .iter()
                .any(|deny| overlap(deny, prefix))
        };
        for mut part in leaving.iter().filter_map(|it| validate::part(&it.part)) {
            part.prefixes.retain(|prefix| !denied(prefix));
            match feed.sets.binary_search_by_key(&part.id, |set| set.id) {
                Err(place) => feed.sets.insert(place, part),
                Ok(place) => {
                    let set = &mut feed.sets[place];
                    set.prefixes.append(&mut part.prefixes);
                    set.prefixes.sort_unstable();
                    set.prefixes.dedup();
                    set.names.append(&mut part.names);
                    set.names.sort_unstable();
                    set.names.dedup();
                }
            }
        }
        if !leaving.is_empty() {
            let text: String = feed
                .sets
                .iter()
                .map(|set| to_json(set).to_string())
                .collect();
            feed.digest = Digest::of(text.as_bytes());
        }
        feed
    }

    fn entry(&self, by: &By, what: Deed, to: String) -> Entry {
        Entry {
            number: self
                .store
                .state()
                .last
                .as_ref()
                .map_or(0, |last| last.number)
                + 1,
            time: now(),
            who: by.who.clone(),
            what,
            why: by.why.clone(),
            from: self.in_use(),
            to,
            moved: Difference::default(),
            explained: Vec::<Explanation>::new(),
            generation: None,
        }
    }
}

/// What of a set the lists `new` do not have under the same id; none if they have all of it.
fn without(mut set: EndpointSet, new: &[EndpointSet]) -> Option<EndpointSet> {
    if let Some(new) = new.iter().find(|it| it.id == set.id) {
        set.prefixes.retain(|prefix| !new.prefixes.contains(prefix));
        set.names.retain(|name| !new.names.contains(name));
    }
    (!set.prefixes.is_empty() || !set.names.is_empty()).then_some(set)
}

/// Unix time; 0 by a clock that does not know it.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |it| it.as_secs())
}
