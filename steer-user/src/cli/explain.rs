//! `steer explain`: what happens to traffic to a destination, or to queries for a name, and why.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufWriter, IsTerminal, Write},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::{Context, bail};
use serde::Serialize;
use steer_common::{
    names::Pattern,
    reason::Reason,
    rule::{TCP, UDP},
};

use super::{
    learned::{Learned, Lesson},
    output::{self, FeedFacts},
    source::SourceArgs,
    ways::{Flows, Way, Ways},
};

use crate::{
    config::Preference,
    endpoints::ServiceArea,
    policy::{Class, ClassLabel, Flow, NameVerdict, Pass, Plan, Verdict},
    system::Family,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Addresses or names; without any, lines of standard input: ADDRESS [PROTOCOL PORT [SOURCE]] or
    /// NAME
    #[arg(value_name = "DESTINATION")]
    destinations: Vec<String>,
    /// tcp, udp or a protocol number
    #[arg(long, default_value = "tcp", value_parser = protocol)]
    protocol: u8,
    /// The destination port
    #[arg(long, default_value_t = 443)]
    port: u16,
    /// The client's address [default: some client]
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    #[command(flatten)]
    from: SourceArgs,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// An answer as JSON has it.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    destination: IpAddr,
    protocol: String,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    /// `steer` or `pass`.
    verdict: &'static str,
    #[serde(flatten)]
    about: About<'a>,
    matched: Option<String>,
    /// What an answer taught.
    #[serde(skip_serializing_if = "Option::is_none")]
    learned: Option<&'a Lesson>,
    reason: String,
    /// The reason counter of the kernel programs that such packets raise.
    counter: Option<&'static str>,
    /// What the breakouts are for packets to it now; none where no controller says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    breakouts: Vec<Way<'a>>,
    feed: &'a FeedFacts,
}

/// The same for a name.
#[derive(Debug, Serialize)]
struct NameAnswer<'a> {
    /// The name that is asked for.
    query: &'a str,
    /// `steer` or `pass`.
    verdict: &'static str,
    /// Whether the addresses of the answer are steered, too.
    learns: bool,
    #[serde(flatten)]
    about: About<'a>,
    /// The pattern.
    matched: Option<&'a str>,
    reason: String,
    /// What the breakouts are for each family now; none where no controller says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    breakouts: Vec<Way<'a>>,
    feed: &'a FeedFacts,
}

/// The class that matched.
#[derive(Debug, Serialize)]
struct About<'a> {
    /// Which list the set is of: `worldwide`, …, or `own`.
    list: Option<&'static str>,
    set: Option<u16>,
    /// The name of an include of the operator's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    category: Option<&'static str>,
    service_area: Option<&'a str>,
}

impl<'a> About<'a> {
    fn of(class: Option<&'a Class>) -> Self {
        Self {
            list: class.map(|class| class.key.list.as_str()),
            set: class.map(|class| class.key.id),
            name: class.and_then(|class| match &class.label {
                ClassLabel::Own(name) => Some(name.as_str()),
                ClassLabel::Set(_) => None,
            }),
            category: class.map(|class| class.category.as_str()),
            service_area: class
                .and_then(|class| class.service_area.as_ref())
                .map(ServiceArea::as_str),
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = args.from.read()?.plan()?;
    let asked = Asked {
        protocol: args.protocol,
        port: args.port,
        source: args.source,
    };
    let config = args.from.config()?;
    let mut printer = Printer {
        learned: config.as_ref().and_then(Learned::open),
        ways: config.as_ref().map(Ways::look),
        preferences: config.map_or(Vec::new(), |config| config.preferences),
        steered: BTreeSet::new(),
        facts: FeedFacts::of(plan.feed()),
        json: args.json,
        alone: args.destinations.len() == 1,
        out: BufWriter::new(io::stdout().lock()),
    };
    if args.destinations.is_empty() {
        if io::stdin().is_terminal() {
            bail!("name a destination, or give destinations on standard input");
        }
        for (number, line) in (1..).zip(io::stdin().lock().lines()) {
            let line = line.context("standard input cannot be read")?;
            let subject = asked
                .line(&line)
                .with_context(|| format!("line {number}: {line:?}"))?;
            if let Some(subject) = subject {
                printer.print_any(&plan, &subject)?;
            }
        }
    }
    for destination in &args.destinations {
        printer.print_any(&plan, &asked.subject(destination)?)?;
    }
    printer.print_ways()?;
    printer.out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What is asked about.
enum Subject {
    Flow(Flow),
    /// A client's queries for a name.
    Name(String, Option<IpAddr>),
}

/// What holds where a line does not say otherwise.
struct Asked {
    protocol: u8,
    port: u16,
    source: Option<IpAddr>,
}

impl Asked {
    fn flow(&self, destination: IpAddr) -> Flow {
        Flow {
            destination,
            protocol: self.protocol,
            port: self.port,
            source: self.source,
        }
    }

    fn subject(&self, text: &str) -> anyhow::Result<Subject> {
        if let Ok(address) = text.parse() {
            return Ok(Subject::Flow(self.flow(address)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.contains('*') || name.parse::<Pattern>().is_err() {
            bail!("{text:?} is neither an address nor a name");
        }
        Ok(Subject::Name(name.to_ascii_lowercase(), self.source))
    }

    /// `ADDRESS [PROTOCOL PORT [SOURCE]]` or `NAME`; none for a line of blanks.
    fn line(&self, line: &str) -> anyhow::Result<Option<Subject>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flow = match words.as_slice() {
            [] => return Ok(None),
            [subject] => return self.subject(subject).map(Some),
            [destination, protocol, port, source @ ..] if source.len() <= 1 => {
                let mut flow = self.flow(address(destination)?);
                flow.protocol = self::protocol(protocol).map_err(anyhow::Error::msg)?;
                flow.port = port
                    .parse()
                    .with_context(|| format!("{port:?} is not a port"))?;
                if let [source] = source {
                    flow.source = Some(address(source)?);
                }
                flow
            }
            _ => bail!(
                "a line is NAME, ADDRESS, ADDRESS PROTOCOL PORT, or ADDRESS PROTOCOL PORT SOURCE"
            ),
        };
        Ok(Some(Subject::Flow(flow)))
    }
}

struct Printer<W> {
    learned: Option<Learned>,
    /// None without a configuration: then nothing runs that the answers are about.
    ways: Option<Ways>,
    preferences: Vec<Preference>,
    /// What is steered, of all that was printed.
    steered: BTreeSet<Flows>,
    facts: FeedFacts,
    json: bool,
    /// There is one answer only, and room for it.
    alone: bool,
    out: W,
}

impl<W: Write> Printer<W> {
    fn print_any(&mut self, plan: &Plan, subject: &Subject) -> anyhow::Result<()> {
        match subject {
            Subject::Flow(flow) => self.print(plan, flow),
            Subject::Name(name, client) => self.print_name(plan, name, *client),
        }
    }

    /// What the breakouts are now for what is steered, for people.
    fn print_ways(&mut self) -> anyhow::Result<()> {
        if let Some(ways) = self.ways.as_ref().filter(|_| !self.json)
            && !self.steered.is_empty()
        {
            write!(self.out, "{}", ways.text(&self.steered)?)?;
        }
        Ok(())
    }

    fn ways_of<'a>(&'a self, steered: &'a [Flows]) -> Vec<Way<'a>> {
        let ways = self.ways.iter();
        ways.flat_map(|ways| steered.iter().flat_map(|flows| ways.of(flows)))
            .collect()
    }

    /// The new flows of a class in these families.
    fn flows(&self, class: &Class, families: &[Family]) -> Vec<Flows> {
        let place = class.preference(&self.preferences);
        let preference = place.map(|place| self.preferences[place].name.clone());
        let flows = families.iter().map(|&family| Flows {
            family,
            preference: preference.clone(),
        });
        flows.collect()
    }

    fn print_name(
        &mut self,
        plan: &Plan,
        name: &str,
        client: Option<IpAddr>,
    ) -> anyhow::Result<()> {
        let verdict = plan.decide_name(name, client);
        let matched = match &verdict {
            NameVerdict::Steer(matched) => Some(matched),
            _ => None,
        };
        let word = if matched.is_some() { "steer" } else { "pass" };
        let steered = matched.map_or(Vec::new(), |it| self.flows(it.class, &Family::BOTH));
        self.steered.extend(steered.iter().cloned());
        if self.json {
            let class = matched.map(|matched| matched.class);
            let answer = serde_json::to_string(&NameAnswer {
                query: name,
                verdict: word,
                learns: matched.is_some_and(|matched| matched.learns),
                about: About::of(class),
                matched: matched.map(|matched| matched.pattern),
                reason: verdict.to_string(),
                breakouts: self.ways_of(&steered),
                feed: &self.facts,
            })?;
            writeln!(self.out, "{answer}")?;
        } else if self.alone {
            writeln!(self.out, "{name} dns -> {word}")?;
            writeln!(self.out, "  because {verdict}")?;
            writeln!(self.out, "  by {}", output::feed_line(plan.feed()))?;
        } else {
            writeln!(self.out, "{name:<28} dns        {word:<5}  {verdict}")?;
        }
        Ok(())
    }

    fn print(&mut self, plan: &Plan, flow: &Flow) -> anyhow::Result<()> {
        let verdict = plan.decide(flow);
        // The plan's own prefixes come first.
        let lesson = match verdict {
            Verdict::Pass(Pass::NotListed | Pass::NotSelected { .. }) => {
                let learned = self.learned.as_ref();
                learned.and_then(|it| it.lesson(flow.destination))
            }
            _ => None,
        };
        let class = lesson.as_ref().and_then(|it| it.class);
        let class = class.and_then(|key| plan.decide_learned(key, flow));
        let reason = match (&lesson, class) {
            (Some(lesson), Some(class)) => format!("{} has it: {lesson}", class.label),
            (Some(lesson), None) => format!("{verdict}; {lesson}, but not with this port"),
            (None, _) => verdict.to_string(),
        };
        let steers = class.or(match &verdict {
            Verdict::Steer(matched) => Some(matched.class),
            Verdict::Pass(_) => None,
        });
        let families = [Family::of(flow.destination)];
        let steered = steers.map_or(Vec::new(), |class| self.flows(class, &families));
        self.steered.extend(steered.iter().cloned());
        if self.json {
            let mut answer = self.answer(flow, &verdict);
            answer.learned = lesson.as_ref();
            answer.reason = reason;
            if class.is_some() {
                answer.verdict = "steer";
                answer.about = About::of(class);
            }
            answer.breakouts = self.ways_of(&steered);
            let answer = serde_json::to_string(&answer)?;
            writeln!(self.out, "{answer}")?;
            return Ok(());
        }
        let (destination, protocol) = (flow.destination.to_string(), protocol_name(flow.protocol));
        let word = if steers.is_some() { "steer" } else { "pass" };
        if self.alone {
            writeln!(self.out, "{destination} {protocol} {} -> {word}", flow.port)?;
            writeln!(self.out, "  because {reason}")?;
            writeln!(self.out, "  by {}", output::feed_line(plan.feed()))?;
        } else {
            let port = flow.port;
            writeln!(
                self.out,
                "{destination:<28} {protocol:<4} {port:<5} {word:<5}  {reason}"
            )?;
        }
        Ok(())
    }

    fn answer<'a>(&'a self, flow: &Flow, verdict: &'a Verdict<'_>) -> Answer<'a> {
        let (matched, counter) = match verdict {
            Verdict::Steer(matched) => (Some(matched), None),
            Verdict::Pass(pass) => (None, pass.reason().map(Reason::name)),
        };
        let class = matched.map(|matched| matched.class);
        Answer {
            destination: flow.destination,
            protocol: protocol_name(flow.protocol),
            port: flow.port,
            source: flow.source,
            verdict: word(verdict),
            about: About::of(class),
            matched: matched.map(|matched| matched.prefix.to_string()),
            learned: None,
            reason: verdict.to_string(),
            counter,
            breakouts: Vec::new(),
            feed: &self.facts,
        }
    }
}

fn word(verdict: &Verdict<'_>) -> &'static str {
    match verdict {
        Verdict::Steer(_) => "steer",
        Verdict::Pass(_) => "pass",
    }
}

fn address(text: &str) -> anyhow::Result<IpAddr> {
    text.parse()
        .ok()
        .with_context(|| format!("{text:?} is not an address"))
}

/// `tcp`, `udp`, or the number in the IP header.
fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(TCP),
        "udp" => Ok(UDP),
        number => number
            .parse()
            .map_err(|_| format!("{text:?} is not tcp, udp or a protocol number")),
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        TCP => "tcp".into(),
        UDP => "udp".into(),
        number => number.to_string(),
    }
}
