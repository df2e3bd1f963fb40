//! What `cargo xtask kernels` runs inside a booted kernel: the programs in their variants, then
//! the office of the lab with the real `steer`, in every way of attaching. The judge is the wire.
//!
//! A line of the report on standard output is `CHECK<tab>ok|FAILED<tab>DETAIL`.

#[path = "steer-guest/answers.rs"]
mod answers;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::programs::loaded_programs;
use serde_json::Value;
use steer_tests::{
    dnsrun::{self, DnsBench},
    lab::Lab,
    links::{Kind, steers_over},
    m365::examples,
    residue::Snapshot,
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
    testrun::{Bench, Variant},
    traffic::{Fleet, probe_all},
    wire::Path,
};
use steer_user::datapath;

/// The longest wait for something that takes a moment. Only a guard against hanging: the guest is
/// emulated.
const PATIENCE: Duration = Duration::from_mins(4);

fn main() {
    let mut report = Report::default();
    report.check("mark program", || programs(datapath::Mode::Mark));
    report.check("redirect program", || programs(datapath::Mode::Redirect));
    report.check("breakout program", breakout_program);
    let mut answers = Err(anyhow!("the query program came first"));
    report.check("query program", || {
        let [query, answer] = dns_programs()?;
        answers = Ok(answer);
        Ok(query)
    });
    report.check("answer program", || answers);
    report.check("mark mode", || steers(Mode::Mark, "auto"));
    report.check("neighbour", leaves_a_neighbour_alone);
    report.check("redirect mode", || steers(Mode::Redirect, "auto"));
    report.check("redirect, generic", || steers(Mode::Redirect, "generic"));
    report.check("queries", || queries(Mode::Mark));
    report.check("queries, redirect", || queries(Mode::Redirect));
    report.check("kinds of links", steers_over_every_kind);
    std::process::exit(i32::from(report.failed));
}

#[derive(Default)]
struct Report {
    failed: bool,
}

impl Report {
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<String>) {
        let (word, detail) = match check() {
            Ok(detail) => ("ok", detail),
            Err(error) => {
                self.failed = true;
                ("FAILED", format!("{error:#}"))
            }
        };
        let detail = detail.replace('\t', " ").replace('\n', "\\n");
        println!("{name}\t{word}\t{detail}");
        // Whoever reads a report that ends early wants what there is.
        let _ = std::io::stdout().flush();
    }
}

/// Loads a mode's program in its variants; the verified instructions of the least and the most
/// demanding one.
fn programs(mode: datapath::Mode) -> Result<String> {
    let full: Vec<(u16, u16)> = (1..=8).map(|id| (id, id + 100)).collect();
    let mut variants = vec![
        Variant::new(mode),
        Variant::new(mode).vlans(&full),
        Variant {
            log: true,
            ..Variant::new(mode).vlans(&full)
        },
    ];
    if mode == datapath::Mode::Mark {
        variants.push(Variant {
            bare_ip: true,
            ..Variant::new(mode)
        });
    }
    let mut counts = Vec::new();
    for variant in &variants {
        let mut bench = Bench::load(variant)?;
        let objects = bench.datapath().objects_mut();
        for object in objects {
            for (_, program) in object.programs() {
                counts.extend(program.info()?.verified_instruction_count());
            }
        }
    }
    let (Some(least), Some(most)) = (counts.iter().min(), counts.iter().max()) else {
        return Ok(format!("{} variants, not counted", variants.len()));
    };
    Ok(format!("{} variants, {least} to {most}", variants.len()))
}

/// Loads what hears answers on breakouts, with and without Ethernet header.
fn breakout_program() -> Result<String> {
    let mut counts = Vec::new();
    for bare_ip in [true, false] {
        let exit = datapath::Exit {
            path: 1,
            interface: "guest".into(),
            ifindex: 1,
            bare_ip,
        };
        counts.push(datapath::try_out_exit(&exit)?.verified_instructions);
    }
    Ok(match counts[..] {
        [Some(bare), Some(ethernet)] => format!("2 variants, {bare} and {ethernet}"),
        _ => "2 variants, not counted".into(),
    })
}

/// Loads the programs for queries and for answers in their variants, and lets them see a question
/// and its answer.
fn dns_programs() -> Result<[String; 2]> {
    let full: Vec<(u16, u16)> = (1..=8).map(|id| (id, id + 100)).collect();
    let variants = [
        Variant::new(datapath::Mode::Mark),
        Variant::new(datapath::Mode::Mark).vlans(&full),
        Variant {
            bare_ip: true,
            ..Variant::new(datapath::Mode::Mark)
        },
        Variant::new(datapath::Mode::Redirect),
    ];
    let near: SocketAddr = dnsrun::NEAR4.parse()?;
    let mut counts = [Vec::new(), Vec::new()];
    for variant in &variants {
        let mut bench = DnsBench::load(variant, &[near.ip()], &dnsrun::names()?)
            .with_context(|| format!("{variant:?}"))?;
        // A test run takes whatever it is given for an Ethernet frame, and this one for untagged.
        if !variant.bare_ip && variant.vlans.is_empty() {
            dnsrun::teaches(&mut bench).with_context(|| format!("{variant:?}"))?;
        }
        for (counts, count) in counts.iter_mut().zip(bench.verified_instructions()?) {
            counts.extend(count);
        }
    }
    Ok(
        counts.map(|counts| match (counts.iter().min(), counts.iter().max()) {
            (Some(least), Some(most)) => format!("{} variants, {least} to {most}", variants.len()),
            _ => format!("{} variants, not counted", variants.len()),
        }),
    )
}

/// A whole life: steer, kill, steer on, take over, detach. How it was attached.
fn steers(mode: Mode, xdp: &str) -> Result<String> {
    let lab = Lab::start(mode.office())?;
    let before = Snapshot::take(&lab)?;
    let settings = Settings {
        mode,
        more: match mode {
            Mode::Mark => String::new(),
            Mode::Redirect => format!("[redirect]\nxdp = \"{xdp}\""),
        },
        ..Settings::default()
    };
    if let (Mode::Redirect, Some(_)) = (mode, datapath::too_old_for_redirect()) {
        return refused(&lab, &settings, &before);
    }
    let mut steer = Steer::start(&lab, &settings).context("start")?;
    let outcome = live(&lab, &mut steer, mode);
    let log = steer.log();
    let hook = outcome.with_context(|| format!("steer's log:\n{log}"))?;

    let objects = steer.bpf_objects()?;
    steer.detach()?;
    let left = before.difference(&Snapshot::take(&lab)?);
    ensure!(left.is_empty(), "detach left behind:\n{left}");
    ensure!(!objects.is_empty(), "the controller held no BPF object");
    let mut left: BTreeSet<_> = objects;
    // The kernel frees programs a moment after their last user.
    wait_until("programs, maps and links are gone after detach", || {
        let mut still = BTreeSet::new();
        for object in std::mem::take(&mut left) {
            if object.exists()? {
                still.insert(object);
            }
        }
        left = still;
        Ok(left.is_empty() && ours_loaded() == 0)
    })?;
    Ok(hook)
}

/// Queries follow the breakout, with and without a controller, and not after detach.
fn queries(mode: Mode) -> Result<String> {
    if let (Mode::Redirect, Some(_)) = (mode, datapath::too_old_for_redirect()) {
        return Ok("no redirect mode".into());
    }
    let lab = Lab::start(mode.office())?;
    let _far = answers::Server::start(&lab.hq, answers::FAR)?;
    let _near = answers::Server::start(&lab.isp, answers::NEAR)?;
    let before = Snapshot::take(&lab)?;
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let mut steer = Steer::prepare(&lab, &settings)?;
    let text = std::fs::read_to_string(steer.config())?;
    let resolvers = format!("[[breakout]]\nresolvers = {:?}\n", answers::NEAR);
    std::fs::write(steer.config(), text.replace("[[breakout]]\n", &resolvers))?;
    steer.run()?;
    steer.wait_until_steering(PATIENCE)?;
    let go = |steer: &mut Steer<'_>| -> Result<()> {
        answers::by(&lab, "outlook.office.com", answers::NEAR).context("with a controller")?;
        answers::by(&lab, "www.example.com", answers::FAR)?;
        steer.kill()?;
        answers::by(&lab, "outlook.office.com", answers::NEAR).context("after kill -9")?;
        steer.run()?;
        steer.wait_until_steering(PATIENCE)?;
        for program in ["dns_query", "dns_answer"] {
            let adopted = format!("{program}, in place of the one that was there");
            ensure!(steer.log().contains(&adopted), "{program} was not adopted");
        }
        answers::by(&lab, "outlook.office.com", answers::NEAR).context("after the restart")
    };
    let outcome = go(&mut steer);
    let log = steer.log();
    outcome.with_context(|| format!("steer's log:\n{log}"))?;
    steer.detach()?;
    let left = before.difference(&Snapshot::take(&lab)?);
    ensure!(left.is_empty(), "detach left behind:\n{left}");
    answers::by(&lab, "outlook.office.com", answers::FAR).context("after detach")?;
    wait_until("no program of steer is loaded", || Ok(ours_loaded() == 0))?;
    Ok("steered".into())
}

/// steer refuses to start, says what it needs, and leaves nothing behind.
fn refused(lab: &Lab, settings: &Settings, before: &Snapshot) -> Result<String> {
    let Err(error) = Steer::start(lab, settings) else {
        bail!("redirect mode started in a kernel that is too old for it");
    };
    let said = format!("{error:#}");
    ensure!(said.contains("needs Linux 5.15"), "no clear reason: {said}");
    let left = before.difference(&Snapshot::take(lab)?);
    ensure!(left.is_empty(), "the refusal left behind:\n{left}");
    Ok("refused: needs Linux 5.15".into())
}

/// Breakouts on devices that the machine which runs the tests may lack: steer, lose the link, have
/// it back.
fn steers_over_every_kind() -> Result<String> {
    let mut names = Vec::new();
    for kind in Kind::ALL {
        let had = steers_over(kind, Mode::Mark).with_context(|| kind.to_string())?;
        ensure!(had, "this kernel makes no {kind} device");
        names.push(kind.to_string());
    }
    Ok(names.join(", "))
}

/// A clsact qdisc that was there before, with a filter of somebody else, is there after detach.
fn leaves_a_neighbour_alone() -> Result<String> {
    let lab = Lab::start(Mode::Mark.office())?;
    let tc = |arguments: &str| {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        lab.router.output("tc", &words)
    };
    tc("qdisc add dev lan0 clsact")?;
    let hooks = || -> Result<String> {
        Ok(tc("filter show dev lan0 ingress")? + &tc("filter show dev lan0 egress")?)
    };
    for hook in ["ingress", "egress"] {
        tc(&format!(
            "filter add dev lan0 {hook} pref 50000 protocol all u32 match u32 0 0 classid 1:1"
        ))?;
    }
    let before = (Snapshot::take(&lab)?, hooks()?, tc("qdisc show dev lan0")?);
    let steer = Steer::start(&lab, &Settings::default())?;
    exchange(&lab)?;
    steer.detach()?;
    let (filters, qdiscs) = (hooks()?, tc("qdisc show dev lan0")?);
    let left = before.0.difference(&Snapshot::take(&lab)?);
    ensure!(
        left.is_empty() && filters == before.1 && qdiscs == before.2,
        "not as it was before:\n{left}\n{filters}\n{qdiscs}"
    );
    ensure!(
        filters.matches("pref 50000").count() >= 2,
        "the neighbour's filters were never there"
    );
    Ok("left alone".into())
}

fn live(lab: &Lab, steer: &mut Steer<'_>, mode: Mode) -> Result<String> {
    let hook = hook(&steer.status()?)?;
    exchange(lab).context("with a controller")?;
    attached_once(lab, mode)?;

    let fleet = Fleet::open(&lab.client, &flows(3, 3), Duration::from_millis(200))?;
    fleet.wait_for_answers(PATIENCE)?;
    steer.kill()?;
    exchange(lab).context("after kill -9 of the controller")?;
    steer.run()?;
    steer.wait_until_steering(PATIENCE)?;
    ensure!(
        steer.log().contains("in place of the one that was there"),
        "the second controller did not adopt the program of the first"
    );
    let again = self::hook(&steer.status()?)?;
    ensure!(again == hook, "attached by {hook}, adopted by {again}");
    exchange(lab).context("after the restart")?;
    attached_once(lab, mode)?;

    let silent = fleet.wait_for_silent(PATIENCE);
    let mut moved = String::new();
    for record in fleet.stop() {
        if record.was_moved() || record.sites != [Site::Near] {
            writeln!(moved, "{record:?}")?;
        }
    }
    ensure!(silent.is_empty(), "flows went silent: {silent:?}");
    ensure!(
        moved.is_empty(),
        "flows were moved by the restart:\n{moved}"
    );
    Ok(hook)
}

/// How the status says the program is attached.
fn hook(status: &Value) -> Result<String> {
    let hook = status["lan"][0]["hook"].as_str();
    Ok(hook.context("the status names no hook")?.to_owned())
}

/// Every example conversation, opened as a new one, takes the way that the feed asks for.
fn exchange(lab: &Lab) -> Result<()> {
    let examples = examples();
    let captures = lab.capture()?;
    let wanted: Vec<_> = examples.iter().map(|example| example.flow).collect();
    let answers = probe_all(&lab.client, &wanted)?;
    let wires = captures.stop()?;
    for (example, answer) in examples.iter().zip(answers) {
        let (path, site) = if example.is_steered() {
            (Path::BREAKOUT, Site::Near)
        } else {
            (Path::Backbone, Site::Far)
        };
        let taken = wires.path_of(&answer);
        if taken != path || answer.site != site {
            bail!(
                "{}: {} took the {taken} and was answered by the {} front door",
                example.name,
                example.flow,
                answer.site
            );
        }
    }
    let leaks = wires.leaks();
    ensure!(leaks.is_empty(), "left un-translated: {leaks:?}");
    Ok(())
}

/// Exactly one program of steer is loaded for the LAN and for each breakout, and the LAN's is attached
/// once.
fn attached_once(lab: &Lab, mode: Mode) -> Result<()> {
    let wanted = 1 + lab.breakouts().len();
    wait_until("one program of steer is loaded for each interface", || {
        Ok(ours_loaded() == wanted)
    })?;
    if mode == Mode::Redirect {
        // An interface has room for one.
        return Ok(());
    }
    let links = lab
        .router
        .run(|| Ok(datapath::attached_at("lan0").unwrap_or_default()))?;
    let filters = lab
        .router
        .output("tc", &["filter", "show", "dev", "lan0", "ingress"])?;
    let filters = filters.lines().filter(|line| line.contains("lan_ingress"));
    let count = links.len() + filters.count();
    ensure!(count == 1, "the program is attached {count} times");
    Ok(())
}

fn ours_loaded() -> usize {
    loaded_programs()
        .flatten()
        .filter(|program| program.name_as_str().is_some_and(datapath::is_ours))
        .count()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "not true in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
