//! `steer doctor`.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use serde::Serialize;

use super::{ConfigOption, Failure, block_on, print_json, read_config};
use crate::{
    config::Config,
    doctor::{self, Area, Finding, Fix, Patient, State},
};

/// Looks at the box and says what keeps steer from working well, why it matters, and what to do.
/// Changes nothing unless told to.
///
/// Exit code 1 when anything is wrong.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigOption,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Apply the safe remedies, and say what was done.
    #[arg(long)]
    fix: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    let (findings, done) = block_on(visit(&config, args.fix))??;
    let wrong =
        findings.iter().any(|it| it.state == State::Wrong) || done.iter().any(Result::is_err);
    if args.json {
        print_json(&report(&findings, &done, !wrong))?;
    } else {
        print!("{}", text(&findings, &done)?);
    }
    Ok(if wrong {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

type Done = Vec<Result<String, String>>;

/// What is found; after the remedies, if they are wanted.
async fn visit(config: &Config, fix: bool) -> Result<(Vec<Finding>, Done), Failure> {
    let examine = async || -> Result<Vec<Finding>, Failure> {
        let patient = Patient::examine(config, Path::new("/")).await?;
        Ok(doctor::diagnose(&patient))
    };
    let findings = examine().await?;
    let fixes: Vec<Fix> = findings.iter().filter_map(|it| it.fix.clone()).collect();
    if !fix || fixes.is_empty() {
        return Ok((findings, Vec::new()));
    }
    let done = doctor::fix(config, &fixes).await;
    Ok((examine().await?, done))
}

fn text(findings: &[Finding], done: &Done) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for done in done {
        match done {
            Ok(what) => writeln!(out, "fixed: {what}")?,
            Err(why) => writeln!(out, "not fixed: {why}")?,
        }
    }
    let mut area = None;
    for finding in findings {
        if area != Some(finding.check.area) {
            area = Some(finding.check.area);
            writeln!(out, "{}", finding.check.area)?;
        }
        let state = match finding.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Wrong => "WRONG",
        };
        writeln!(
            out,
            "  {state:<5}  {:<16}  {}",
            finding.check.name,
            finding.found.replace('\n', "\n           ")
        )?;
        if finding.state == State::Ok {
            continue;
        }
        writeln!(out, "         why: {}", finding.check.why)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "         do:  {remedy}")?;
        }
        if finding.fix.is_some() {
            writeln!(out, "         or:  steer doctor --fix")?;
        }
    }
    let count = |state| findings.iter().filter(|it| it.state == state).count();
    writeln!(
        out,
        "{} wrong, {} to be known, {} fine",
        count(State::Wrong),
        count(State::Note),
        count(State::Ok)
    )?;
    Ok(out)
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    findings: Vec<Reported<'a>>,
    fixed: Vec<&'a str>,
    not_fixed: Vec<&'a str>,
}

#[derive(Serialize)]
struct Reported<'a> {
    check: &'static str,
    area: Area,
    state: State,
    found: &'a str,
    why: &'static str,
    remedy: Option<&'a str>,
    can_be_fixed: bool,
}

fn report<'a>(findings: &'a [Finding], done: &'a Done, ok: bool) -> Report<'a> {
    Report {
        ok,
        findings: findings
            .iter()
            .map(|it| Reported {
                check: it.check.name,
                area: it.check.area,
                state: it.state,
                found: &it.found,
                why: it.check.why,
                remedy: it.remedy.as_deref(),
                can_be_fixed: it.fix.is_some(),
            })
            .collect(),
        fixed: done.iter().filter_map(|it| it.as_deref().ok()).collect(),
        not_fixed: done
            .iter()
            .filter_map(|it| it.as_ref().err().map(String::as_str))
            .collect(),
    }
}
