//! The established-flow contract: each row of the table in `docs/restarts.md`, in both modes, with
//! long TCP transfers and UDP flows like those of QUIC, IPv4 and IPv6. The judges are the wires and
//! the flows' own bytes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod table;

use std::{
    fs,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    steer::{self, Mode, Settings, Steer},
    traffic::{Fleet, Flow, Protocol, Record, probe_all},
    wire::{Captures, Path},
};
use table::{Born, CONTRACT, Change, Fate};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(2);
const PERIOD: Duration = Duration::from_millis(100);
/// Bytes of a message of a transfer; they go there and back.
const LOAD: usize = 4_000;

#[test]
fn the_document_says_what_is_tested() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/restarts.md");
    let page = fs::read_to_string(page).unwrap();
    let table = table::document();
    assert!(page.contains(&table), "docs/restarts.md must have\n{table}");
}

#[test]
fn running_flows_keep_the_contract_in_mark_mode() {
    keep_the_contract(Mode::Mark);
}

#[test]
fn running_flows_keep_the_contract_in_redirect_mode() {
    keep_the_contract(Mode::Redirect);
}

/// Prefixes that every list has, that one list has, and that the next one has.
const ALWAYS: [&str; 2] = ["52.96.0.0/14", "2603:1006::/40"];
const LEAVING: [&str; 2] = ["40.96.0.0/13", "2603:1016::/36"];
const COMING: [&str; 2] = ["104.146.0.0/17", "2620:1ec::/36"];

fn keep_the_contract(mode: Mode) {
    let lab = Lab::start(LabOptions {
        breakouts: 2,
        firewall: false,
        ..mode.office()
    })
    .unwrap();
    let mut office = Office::new(&lab, mode);
    office.configure(&[ALWAYS, LEAVING], "", "keep");
    let old = office.open(ALWAYS, Path::Backbone);

    let wires = lab.capture().unwrap();
    let mut steer = Steer::start(&lab, &office.settings).unwrap();
    office.holds(Change::FirstStart, Born::Backbone, &old, &wires);
    restarts(&mut office, &mut steer, &old);
    reloads(&mut office, &steer, &old);
    let others = outages(&mut office, &steer, &old);
    detach(&mut office, &steer, &old, others);
    office.is_complete();
}

fn restarts(office: &mut Office<'_>, steer: &mut Steer<'_>, old: &Flows) {
    let steered = office.open(ALWAYS, Path::BREAKOUT);
    let wires = office.lab.capture().unwrap();
    for kill in [true, false] {
        if kill {
            steer.kill().unwrap();
        } else {
            steer.stop().unwrap();
        }
        for flows in [&steered, old] {
            flows.fleet.wait_for_answers(PATIENCE).unwrap();
        }
        steer.run().unwrap();
        steer.wait_until_steering(PATIENCE).unwrap();
    }
    wait_for(steer, ["up", "up"]);
    office.holds(Change::Restart, Born::Breakout, &steered, &wires);
    office.holds(Change::Restart, Born::Backbone, old, &wires);
}

fn reloads(office: &mut Office<'_>, steer: &Steer<'_>, old: &Flows) {
    let steered = office.open(ALWAYS, Path::BREAKOUT);
    let wires = office.lab.capture().unwrap();
    office.configure(&[ALWAYS, LEAVING], "exclude = [\"150.171.0.0/16\"]", "keep");
    reload(steer);
    office.holds(Change::Reload, Born::Breakout, &steered, &wires);
    office.holds(Change::Reload, Born::Backbone, old, &wires);

    let leaving = office.open(LEAVING, Path::BREAKOUT);
    let coming = office.open(COMING, Path::Backbone);
    let wires = office.lab.capture().unwrap();
    office.configure(&[ALWAYS, COMING], "", "keep");
    reload(steer);
    office.holds(Change::NewList, Born::Breakout, &steered, &wires);
    office.holds(Change::NewList, Born::Backbone, old, &wires);
    office.holds(Change::ListWithout, Born::Breakout, &leaving, &wires);
    office.holds(Change::ListWith, Born::Backbone, &coming, &wires);
}

/// Leaves flows on the second breakout, and on the backbone that began there in between.
fn outages(office: &mut Office<'_>, steer: &Steer<'_>, old: &Flows) -> [Flows; 2] {
    let lab = office.lab;
    let [first, second] = [lab.breakouts()[0], lab.breakouts()[1]];
    let own = office.open(ALWAYS, Path::BREAKOUT);
    let wires = lab.capture().unwrap();
    lab.black_hole(&[first]).unwrap();
    wait_for(steer, ["down", "up"]);
    let other = office.open(ALWAYS, Path::Breakout(2));
    office.holds(Change::Down, Born::ThatBreakout, &own, &wires);
    office.holds(Change::Down, Born::Backbone, old, &wires);

    let wires = lab.capture().unwrap();
    lab.black_hole(&[]).unwrap();
    wait_for(steer, ["up", "up"]);
    office.holds(Change::Back, Born::ThatBreakout, &own, &wires);
    office.holds(Change::Back, Born::OtherBreakout, &other, &wires);

    let wires = lab.capture().unwrap();
    lab.black_hole(&[first]).unwrap();
    wait_for(steer, ["down", "up"]);
    office.holds(Change::Down, Born::OtherBreakout, &other, &wires);
    lab.black_hole(&[first, second]).unwrap();
    wait_for(steer, ["down", "down"]);
    let meanwhile = office.open(ALWAYS, Path::Backbone);
    let wires = lab.capture().unwrap();
    lab.black_hole(&[]).unwrap();
    wait_for(steer, ["up", "up"]);
    office.holds(Change::Back, Born::BackboneMeanwhile, &meanwhile, &wires);

    if office.mode == Mode::Redirect {
        // What was on the second breakout went with it.
        return [office.open(ALWAYS, Path::BREAKOUT), meanwhile];
    }
    office.configure(&[ALWAYS, COMING], "", "reset");
    reload(steer);
    let own = office.open(ALWAYS, Path::BREAKOUT);
    let wires = lab.capture().unwrap();
    lab.black_hole(&[first]).unwrap();
    wait_for(steer, ["down", "up"]);
    office.holds(Change::DownReset, Born::ThatBreakout, &own, &wires);
    office.holds(Change::DownReset, Born::OtherBreakout, &other, &wires);
    lab.black_hole(&[]).unwrap();
    wait_for(steer, ["up", "up"]);
    [other, meanwhile]
}

fn detach(office: &mut Office<'_>, steer: &Steer<'_>, old: &Flows, others: [Flows; 2]) {
    let [steered, meanwhile] = others;
    let wires = office.lab.capture().unwrap();
    let said = thread::scope(|scope| {
        let detach = scope.spawn(|| steer.command(&["detach", "--drain", "120"]).unwrap());
        let draining = |status: &Value| status["state"] == "draining";
        steer.wait_for("steer drains", draining).unwrap();
        for answer in probe_all(&office.lab.client, &office.flows(ALWAYS)).unwrap() {
            assert_eq!(answer.site, Site::Far, "a new flow: {}", answer.flow);
        }
        office.holds(Change::Detach, Born::Breakout, &steered, &wires);
        office.holds(Change::Detach, Born::Backbone, old, &wires);
        office.holds(Change::Detach, Born::Backbone, &meanwhile, &wires);
        steered.fleet.stop();
        detach.join().unwrap()
    });
    assert!(said.status.success(), "{said:?}");
    // Nothing of steer is there any more.
    office.holds(Change::Detach, Born::Backbone, old, &wires);
    assert_eq!(wires.stop().unwrap().leaks(), []);
}

fn reload(steer: &Steer<'_>) {
    let output = steer.command(&["reload"]).unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn wait_for(steer: &Steer<'_>, states: [&str; 2]) {
    let are = |status: &Value| {
        (0..)
            .zip(states)
            .all(|(index, state): (usize, _)| status["breakouts"][index]["state"] == state)
    };
    steer
        .wait_for(&format!("the breakouts are {states:?}"), are)
        .unwrap();
}

/// Flows that began together, and the way that they took then.
struct Flows {
    fleet: Fleet,
    way: Path,
}

impl Flows {
    /// Asserts that this is what becomes of them.
    fn meet(&self, fate: Fate, wires: &Captures) {
        match fate {
            Fate::Stay => self.stay(wires),
            Fate::Wait => {
                let silent = self.fleet.records();
                self.each("tries its way", |it| {
                    wires.look().path_of_record(it) == self.way
                });
                for (before, now) in silent.iter().zip(self.fleet.records()) {
                    assert!(
                        !now.was_moved() && now.answered == before.answered,
                        "{now:?}"
                    );
                }
            }
            Fate::Backbone => {
                self.each("is on the backbone", |it| match it.flow.protocol {
                    Protocol::Tcp => was_reset(it),
                    Protocol::Udp => it.sites == [Site::Near, Site::Far],
                });
            }
            Fate::Reset => self.each("is reset, or begins anew", |it| match it.flow.protocol {
                Protocol::Tcp => was_reset(it),
                Protocol::Udp => it.sources.len() == 2 && it.sites == [Site::Near],
            }),
            Fate::Return => {
                self.each("is back", |it| {
                    it.flow.protocol == Protocol::Tcp || it.sites.last() == Some(&Site::Near)
                });
                for udp in self.all(Protocol::Udp) {
                    assert!(udp.broken.is_none(), "{udp:?}");
                }
            }
            Fate::None => unreachable!("this mode has no such change"),
        }
    }

    fn stay(&self, wires: &Captures) {
        self.fleet.wait_for_answers(PATIENCE).unwrap();
        let wires = wires.look();
        for record in self.fleet.records() {
            assert!(!record.was_moved(), "{record:?}");
            assert_eq!(wires.path_of_record(&record), self.way, "{record:?}");
        }
    }

    fn all(&self, protocol: Protocol) -> impl Iterator<Item = Record> {
        let records = self.fleet.records().into_iter();
        records.filter(move |record| record.flow.protocol == protocol)
    }

    /// Waits until it holds for every flow.
    fn each(&self, what: &str, holds: impl Fn(&Record) -> bool) {
        let started = Instant::now();
        while let Some(late) = self.fleet.records().into_iter().find(|it| !holds(it)) {
            assert!(started.elapsed() < PATIENCE, "not yet: {what}: {late:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn was_reset(record: &Record) -> bool {
    let broken = record.broken.as_ref();
    broken.is_some_and(|error| error.contains("reset"))
}

/// An office whose flows are watched, and which rows were seen to hold.
struct Office<'lab> {
    lab: &'lab Lab,
    mode: Mode,
    settings: Settings,
    opened: u16,
    held: Vec<(Change, Born)>,
}

impl<'lab> Office<'lab> {
    fn new(lab: &'lab Lab, mode: Mode) -> Self {
        Self {
            lab,
            mode,
            settings: Settings {
                mode,
                ..Settings::default()
            },
            opened: 0,
            held: vec![],
        }
    }

    /// Writes a list of these prefixes, and a configuration.
    fn configure(&mut self, list: &[[&str; 2]], select: &str, on_path_loss: &str) {
        let sets = (1..).zip(list).map(|(id, prefixes): (u16, _)| {
            json!({
                "id": id, "serviceArea": "Exchange", "category": "Optimize", "required": true,
                "ips": prefixes, "tcpPorts": "443", "udpPorts": "443",
            })
        });
        let feed = self.lab.directory().join("feed.json");
        fs::write(&feed, sets.collect::<Value>().to_string()).unwrap();
        let file = feed.display();
        self.settings.more = format!("[feed]\nfile = \"{file}\"\n[select]\n{select}\n");
        // A loaded machine delays packets: only those that nobody answers count.
        self.settings.health = format!(
            "targets = [{{ stun = \"52.112.0.9\" }}, {{ stun = \"2603:1063::9\" }}, \
             {{ tls = \"13.107.6.152\", name = \"outlook.office365.com\" }}]\n\
             loss_percent = 100\nlatency = \"1h\"\njitter = \"1h\"\n\
             hold = \"1s\"\nup_after = 2\non_path_loss = \"{on_path_loss}\"\n"
        );
        steer::write_config(self.lab, &self.settings).unwrap();
    }

    /// New flows to these prefixes, no two alike.
    fn flows(&mut self, [v4, v6]: [&str; 2]) -> Vec<Flow> {
        let address = |prefix: &str| prefix.split('/').next().unwrap().parse::<IpAddr>().unwrap();
        let mut flows = vec![];
        for _ in 0..2 {
            self.opened += 1;
            let v4 = match address(v4) {
                IpAddr::V4(v4) => {
                    IpAddr::from((v4.to_bits() + u32::from(self.opened)).to_be_bytes())
                }
                IpAddr::V6(_) => unreachable!("{v4}"),
            };
            let v6 = match address(v6) {
                IpAddr::V6(v6) => {
                    IpAddr::from((v6.to_bits() + u128::from(self.opened)).to_be_bytes())
                }
                IpAddr::V4(_) => unreachable!("{v6}"),
            };
            for to in [v4, v6] {
                flows.extend([Flow::tcp(to, 443), Flow::udp(to, 443)]);
            }
        }
        flows
    }

    /// Opens flows, which all take this way.
    fn open(&mut self, prefixes: [&str; 2], way: Path) -> Flows {
        let flows = self.flows(prefixes);
        let wires = self.lab.capture().unwrap();
        let fleet = Fleet::transfer(&self.lab.client, &flows, PERIOD, LOAD).unwrap();
        fleet.wait_for_answers(PATIENCE).unwrap();
        let wires = wires.stop().unwrap();
        for record in fleet.records() {
            assert_eq!(wires.path_of_record(&record), way, "{record:?}");
        }
        Flows { fleet, way }
    }

    /// Asserts that the flows have the fate that the row gives them; `wires` saw the change.
    fn holds(&mut self, change: Change, born: Born, flows: &Flows, wires: &Captures) {
        let row = CONTRACT
            .iter()
            .find(|row| (row.change, row.born) == (change, born));
        let fate = row.unwrap().fate(self.mode);
        println!("{change:?}, {born:?}: {fate:?}");
        flows.meet(fate, wires);
        self.held.push((change, born));
    }

    /// Every row of this mode was seen to hold.
    fn is_complete(&self) {
        for row in CONTRACT
            .iter()
            .filter(|row| row.fate(self.mode) != Fate::None)
        {
            assert!(
                self.held.contains(&(row.change, row.born)),
                "not seen: {row:?}"
            );
        }
        println!("{} rows hold, {} flows", self.held.len(), 4 * self.opened);
    }
}
