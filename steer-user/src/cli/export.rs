//! `steer export`: the plan for other tools.

use std::{net::IpAddr, process::ExitCode};

use super::{output, source::SourceArgs};
use crate::{
    export::{self, Format, NextHop, Word},
    system::InterfaceName,
};

#[derive(Debug, clap::Args)]
#[command(subcommand_value_name = "FORMAT", subcommand_help_heading = "Formats")]
pub(super) struct Args {
    #[command(subcommand)]
    format: Command,
    #[command(flatten)]
    from: SourceArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Sets of address, protocol and port for rules of your own
    Nftables {
        /// The table of family inet that holds the sets
        #[arg(long, value_name = "NAME", default_value = "steer_export")]
        table: Word,
    },
    /// Sets of the type hash:net,port, for `ipset restore`
    Ipset {
        /// What the names of the sets begin with
        #[arg(long, value_name = "NAME", default_value = "steer")]
        prefix: Word,
    },
    /// `server=` lines for the names
    Dnsmasq(Resolvers),
    /// Forward zones for the names
    Unbound(Resolvers),
    /// Prefix lists; with a gateway, static routes
    Frr {
        #[command(flatten)]
        routes: Routes,
        /// The kernel's routing table for the routes [default: the main one]
        #[arg(long, value_name = "NUMBER")]
        table: Option<u32>,
    },
    /// Prefix sets for BIRD 2; with a gateway, static routes
    Bird {
        #[command(flatten)]
        routes: Routes,
    },
    /// A proxy auto-configuration file: direct for what is steered
    Pac {
        /// What the file answers for everything else
        #[arg(
            long,
            value_name = "ANSWER",
            default_value = "PROXY proxy.example.com:8080"
        )]
        other: String,
    },
    /// Everything, by set and include
    Json,
}

#[derive(Debug, clap::Args)]
struct Resolvers {
    /// Who answers for the names; may be given several times
    #[arg(long = "resolver", value_name = "ADDRESS", required = true)]
    resolvers: Vec<IpAddr>,
    /// Say that there are no canary names, so that Firefox and iCloud Private Relay use this resolver
    #[arg(long)]
    canary: bool,
}

#[derive(Debug, clap::Args)]
struct Routes {
    /// What the names of lists and tables begin with
    #[arg(long, value_name = "NAME", default_value = "steer")]
    prefix: Word,
    /// The IPv4 next hop
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<std::net::Ipv4Addr>,
    /// The IPv6 next hop
    #[arg(long, value_name = "ADDRESS")]
    gateway6: Option<std::net::Ipv6Addr>,
    /// The interface of the next hops
    #[arg(long, value_name = "NAME")]
    interface: Option<InterfaceName>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let format = format(args.format)?;
    let plan = args.from.read()?.plan()?;
    let export = export::render(&plan, &format);
    for note in &export.notes {
        eprintln!("steer: note: {note}");
    }
    output::print(&export.text)?;
    Ok(ExitCode::SUCCESS)
}

fn format(command: Command) -> anyhow::Result<Format> {
    Ok(match command {
        Command::Nftables { table } => Format::Nftables { table },
        Command::Ipset { prefix } => Format::Ipset { prefix },
        Command::Dnsmasq(Resolvers { resolvers, canary }) => Format::Dnsmasq { resolvers, canary },
        Command::Unbound(Resolvers { resolvers, canary }) => Format::Unbound { resolvers, canary },
        Command::Frr { routes, table } => {
            let (prefix, next_hop) = routes.next_hop()?;
            Format::Frr {
                prefix,
                next_hop,
                table,
            }
        }
        Command::Bird { routes } => {
            let (prefix, next_hop) = routes.next_hop()?;
            Format::Bird { prefix, next_hop }
        }
        Command::Pac { other } => Format::Pac { other },
        Command::Json => Format::Json,
    })
}

impl Routes {
    fn next_hop(self) -> anyhow::Result<(Word, NextHop)> {
        let local = self
            .gateway6
            .is_some_and(|gateway| gateway.is_unicast_link_local());
        if local && self.interface.is_none() {
            anyhow::bail!("a link-local gateway needs its link: add --interface NAME");
        }
        let next_hop = NextHop {
            gateway: self.gateway,
            gateway6: self.gateway6,
            interface: self.interface,
        };
        Ok((self.prefix, next_hop))
    }
}
