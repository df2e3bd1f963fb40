//! Names in a whole office: headquarters and the provider give different answers; what clients get,
//! and where their flows leave, is judged on the wire. The resolvers are the distribution's.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod answers;
mod ask;
mod bypass;
mod canary;
mod failures;
mod flood;
mod hooks;
mod learned;
mod link;
mod resolver;
mod tcp;

use std::{
    cell::RefCell,
    fs,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use steer_tests::{
    lab::{Lab, LabOptions},
    steer::{Settings, Steer},
};

use self::{
    ask::{Kind, Question, Reply},
    resolver::{Knowledge, Resolver, Software},
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(2);
/// The resolver at headquarters, which clients ask, and the provider's.
const HEADQUARTERS: [&str; 2] = ["93.184.216.53", "2606:4700::53"];
const PROVIDER: [&str; 2] = ["192.0.2.53", "2001:db8:53::53"];
/// The provider's other one.
const RESERVE: [&str; 2] = ["192.0.2.54", "2001:db8:53::54"];
/// What they answer to every name: addresses that no set of Microsoft's publishes.
const FAR: [&str; 2] = ["23.1.1.1", "2a02:26f0::f"];
const NEAR: [&str; 2] = ["23.2.2.2", "2a02:26f0::a"];
const SECOND: [&str; 2] = ["23.3.3.3", "2a02:26f0::b"];
const KINDS: [Kind; 2] = [Kind::A, Kind::Aaaa];

/// An office with a resolver at headquarters and one at the provider.
struct Office {
    // Before the lab: they live in its namespaces.
    _far: Resolver,
    near: RefCell<Option<Resolver>>,
    lab: Lab,
}

impl Office {
    /// None where a program is missing.
    fn start(far: Software, near: Software, near_knows: &Knowledge) -> Option<Self> {
        Self::with(LabOptions::default(), far, near, near_knows)
    }

    fn with(
        options: LabOptions,
        far: Software,
        near: Software,
        near_knows: &Knowledge,
    ) -> Option<Self> {
        let lab = Lab::start(options).unwrap();
        for (namespace, [v4, v6]) in [
            (&lab.hq, HEADQUARTERS),
            (&lab.isp, PROVIDER),
            (&lab.isp, RESERVE),
        ] {
            let lines = format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n");
            namespace.ip(&lines).unwrap();
        }
        let far = Resolver::start(&lab, &lab.hq, far, HEADQUARTERS, &Knowledge::every(FAR))?;
        let near = Resolver::start(&lab, &lab.isp, near, PROVIDER, near_knows)?;
        let office = Self {
            _far: far,
            near: RefCell::new(Some(near)),
            lab,
        };
        for server in HEADQUARTERS {
            wait_for("resolver at headquarters", || {
                office.ask("a.example", Kind::A, server).is_some()
            });
        }
        office.wait_for_provider(PROVIDER);
        Some(office)
    }

    /// Runs another resolver in place of the provider's.
    fn replace_near(&self, software: Software, knowledge: &Knowledge) {
        drop(self.near.take());
        let lab = &self.lab;
        let near = Resolver::start(lab, &lab.isp, software, PROVIDER, knowledge);
        *self.near.borrow_mut() = near;
        self.wait_for_provider(PROVIDER);
    }

    /// Waits until the provider's resolver is there.
    fn wait_for_provider(&self, servers: [&str; 2]) {
        for server in servers {
            wait_for("resolver of the provider", || {
                let question = Question::new("a.example", Kind::A);
                question.ask(&self.lab.isp, server).is_some()
            });
        }
    }

    /// A client asks.
    fn ask(&self, name: &str, kind: Kind, server: &str) -> Option<Reply> {
        Question::new(name, kind).ask(&self.lab.client, server)
    }

    /// What headquarters' resolver says of a name, for all a client knows: over IPv4 for its IPv4
    /// address, over IPv6 for its IPv6 address.
    fn asked(&self, name: &str) -> [Vec<IpAddr>; 2] {
        let ask = |at: usize| {
            let reply = self.ask(name, KINDS[at], HEADQUARTERS[at]);
            reply.map_or(vec![], |reply| reply.addresses)
        };
        [ask(0), ask(1)]
    }
}

/// Every category, a list of the project's, and a name that is left alone; the table `[dns]` is open.
const SELECT: &str = "[select]\ncategories = [\"optimize\", \"allow\", \"default\"]\n\
                      [[list]]\nname = \"updates\"\nbuiltin = \"microsoft-updates\"\n\
                      [dns]\nexclude = [\"left.sharepoint.com\"]\n";

/// Starts steer with resolvers of the provider, for every category.
fn start<'lab>(lab: &'lab Lab, resolvers: &[&str]) -> Steer<'lab> {
    start_with(lab, resolvers, "")
}

/// The same with more lines for `[dns]`.
fn start_with<'lab>(lab: &'lab Lab, resolvers: &[&str], dns: &str) -> Steer<'lab> {
    let settings = Settings {
        more: format!("{SELECT}{dns}"),
        ..Settings::default()
    };
    start_as(lab, resolvers, &settings)
}

/// The same with other settings.
fn start_as<'lab>(lab: &'lab Lab, resolvers: &[&str], settings: &Settings) -> Steer<'lab> {
    let mut steer = Steer::prepare(lab, settings).unwrap();
    let text = fs::read_to_string(steer.config()).unwrap();
    let resolvers = format!("[[breakout]]\nresolvers = {resolvers:?}\n");
    fs::write(steer.config(), text.replace("[[breakout]]\n", &resolvers)).unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    steer
}

fn of(answers: [&str; 2]) -> [Vec<IpAddr>; 2] {
    answers.map(|it| vec![it.parse().unwrap()])
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "no {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
