//! `steer dns`.

use std::{fmt::Write as _, process::ExitCode};

use serde::Serialize;
use steer_common::dns::{ANSWERED, REWRITTEN};

use super::{ControllerOptions, Failure, print_json};
use crate::datapath::{DnsMaps, PinDir};

/// Shows pending queries and learned addresses, from the kernel's own tables; no controller is
/// needed. Without an option: both.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: ControllerOptions,
    /// Queries whose answer is awaited.
    #[arg(long)]
    pending: bool,
    /// Addresses that answers taught.
    #[arg(long)]
    learned: bool,
}

#[derive(Serialize, Default)]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Vec<Pending>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learned: Option<Vec<Learned>>,
}

#[derive(Serialize)]
struct Pending {
    client: String,
    /// Whom the client asked.
    server: String,
    /// Who was asked instead; the server itself if nobody was.
    resolver: String,
    rewritten: bool,
}

#[derive(Serialize)]
struct Learned {
    address: String,
    name: String,
    client: String,
    class: u16,
    /// How long it lives after an answer or a packet, in seconds.
    life: u32,
}

pub(super) fn main(args: &Args) -> Result<ExitCode, Failure> {
    let (system, _) = args.options.read_system()?;
    let shown = read(&PinDir::new(&system.pin_dir), args).map_err(anyhow::Error::from)?;
    if args.options.json {
        print_json(&shown)?;
    } else {
        print!("{}", text(&shown)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn read(pins: &PinDir, args: &Args) -> Result<Shown, crate::datapath::DatapathError> {
    let both = args.pending == args.learned;
    let maps = DnsMaps::open(pins)?;
    let mut shown = Shown::default();
    if both || args.pending {
        let awaited = maps.pending()?.into_iter();
        let awaited = awaited.filter(|it| it.value.flags & ANSWERED == 0);
        let mut pending: Vec<Pending> = awaited
            .map(|it| Pending {
                client: it.client.to_string(),
                server: it.server.to_string(),
                resolver: it.resolver.to_string(),
                rewritten: it.value.flags & REWRITTEN != 0,
            })
            .collect();
        pending.sort_by(|a, b| a.client.cmp(&b.client));
        shown.pending = Some(pending);
    }
    if both || args.learned {
        let mut learned: Vec<Learned> = maps
            .learned()?
            .into_iter()
            .map(|it| Learned {
                address: it.address.to_string(),
                name: it.name(),
                client: dns_ip(it.value.client),
                class: it.value.class,
                life: it.value.life,
            })
            .collect();
        learned.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        shown.learned = Some(learned);
    }
    Ok(shown)
}

fn dns_ip(address: steer_common::dns::Address) -> String {
    steer_common::dns::ip(address).to_string()
}

fn text(shown: &Shown) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for it in shown.pending.iter().flatten() {
        writeln!(
            out,
            "pending   {} asked {}, sent to {}",
            it.client, it.server, it.resolver
        )?;
    }
    for it in shown.learned.iter().flatten() {
        writeln!(
            out,
            "learned   {} for {}, asked by {}",
            it.address, it.name, it.client
        )?;
    }
    Ok(out)
}
