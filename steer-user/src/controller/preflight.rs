//! What is checked before anything is changed.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::{
    ControllerError,
    look::{BreakoutView, Sends, View},
};
use crate::{
    config::{Config, Mode, Owner, XdpChoice},
    datapath,
    system::{
        conntrack,
        owners::{Access, Owners},
    },
};

/// Above this share of connection tracking in use the operator is warned, in percent.
pub(crate) const CONNTRACK_WARN: u64 = 60;
/// Above this share steer does not start, in percent.
pub(crate) const CONNTRACK_REFUSE: u64 = 85;

/// Checks the box; gives what the operator should know.
///
/// Fails where steer would break something.
pub fn check(
    config: &Config,
    view: &View,
    owners: &Owners,
    adopting: bool,
) -> Result<Vec<String>, ControllerError> {
    let mut problems = Vec::new();
    match config.mode {
        Mode::Mark => {
            if !adopting {
                problems.extend(conntrack_headroom()?);
            }
            problems.extend(mark_conflicts(owners)?);
            problems.extend(nobody_translates(config, view, owners));
        }
        Mode::Redirect => {
            if let Some(release) = datapath::too_old_for_redirect() {
                return Err(ControllerError::NotForRedirect {
                    why: format!(
                        "it needs Linux 5.15 or newer, and this is {release}, where generic XDP \
                         takes no device map that can name programs, and veth links lose what is \
                         redirected to them"
                    ),
                    or_else: "",
                });
            }
            breakouts_take_frames(config, view)?;
            no_translation_needed(config, view)?;
            no_forward_firewall(owners)?;
            // Queries are routed by their mark.
            if config.select.names.steer {
                problems.extend(mark_conflicts(owners)?);
            }
        }
    }
    Ok(problems)
}

/// Our table switches connection tracking on for everything that the box forwards.
fn conntrack_headroom() -> Result<Option<String>, ControllerError> {
    let Some(usage) = conntrack::usage() else {
        return Ok(None);
    };
    let percent = usage.percent();
    if percent > CONNTRACK_REFUSE {
        return Err(ControllerError::ConntrackFull {
            entries: usage.entries,
            max: usage.max,
        });
    }
    Ok((percent > CONNTRACK_WARN).then(|| {
        format!(
            "connection tracking is {percent} % full ({} of {} entries); raise net.netfilter.nf_conntrack_max before it drops new flows",
            usage.entries, usage.max
        )
    }))
}

/// With `nat = "external"` the guard stays: what the box does not translate must be valid as it is.
pub(crate) fn nobody_translates(config: &Config, view: &View, owners: &Owners) -> Option<String> {
    let external = config.mark.nat == Owner::External && owners.translations.is_empty();
    let source = view
        .sources
        .iter()
        .find(|source| !valid_everywhere(config, source))?;
    external.then(|| {
        format!(
            "[mark] nat is \"external\", but nothing on this box translates, and {source} is in no \
             [[breakout]] valid_sources: the guard stops its packets at the breakout. Add a \
             translation, or the prefix"
        )
    })
}

/// Whether packets of these clients may leave every breakout as they are.
fn valid_everywhere(config: &Config, source: &IpNet) -> bool {
    let valid = |nets: &[IpNet]| nets.iter().any(|net| net.contains(source));
    config
        .breakouts
        .iter()
        .all(|breakout| valid(&breakout.valid_sources))
}

/// Redirect mode makes Ethernet frames, and hands them to the driver unless XDP is generic.
pub(crate) fn breakouts_take_frames(config: &Config, view: &View) -> Result<(), ControllerError> {
    for (seen, breakout) in view.breakouts.iter().zip(&config.breakouts) {
        let (name, interface) = (&breakout.name, &breakout.interface);
        let (why, or_else) = match &seen.sends {
            Sends::Nothing => (
                format!(
                    "the breakout {name} ({interface}) carries IP packets without Ethernet headers \
                     (PPP, a tunnel), and redirect mode sends frames"
                ),
                "",
            ),
            Sends::GenericOnly(kind) if config.redirect.xdp == XdpChoice::Native => (
                format!(
                    "the breakout {name} ({interface}) is a {kind}, whose driver takes no frames \
                     from native XDP: they would be lost"
                ),
                "; or [redirect] xdp = \"auto\" or \"generic\"",
            ),
            _ => continue,
        };
        return Err(ControllerError::NotForRedirect { why, or_else });
    }
    Ok(())
}

/// Where the program may sit: what native XDP cannot send leaves by generic XDP.
pub(crate) fn xdp_choice(config: &Config, view: &View) -> XdpChoice {
    let generic_only = |it: &BreakoutView| matches!(it.sends, Sends::GenericOnly(_));
    if config.redirect.xdp == XdpChoice::Auto && view.breakouts.iter().any(generic_only) {
        XdpChoice::Generic
    } else {
        config.redirect.xdp
    }
}

/// Redirected packets are not translated, so the clients' addresses must be valid on the breakout.
pub(crate) fn no_translation_needed(config: &Config, view: &View) -> Result<(), ControllerError> {
    let unusable = |source: &&IpNet| is_private(source) && !valid_everywhere(config, source);
    match view.sources.iter().find(unusable) {
        None => Ok(()),
        Some(source) => Err(ControllerError::NotForRedirect {
            why: format!(
                "the clients in {source} have private addresses, which must be translated, and redirected packets pass the kernel's translation by"
            ),
            or_else: "; or, if a device upstream translates them, name their prefix in [[breakout]] valid_sources",
        }),
    }
}

/// Redirected packets pass the forward chains by: a firewall that filters there would be open.
pub(crate) fn no_forward_firewall(owners: &Owners) -> Result<(), ControllerError> {
    match owners.forward_chains.iter().find(|chain| chain.may_drop()) {
        None => Ok(()),
        Some(chain) => Err(ControllerError::NotForRedirect {
            why: format!(
                "{} filters what the router forwards, and redirected packets pass it by",
                chain.name
            ),
            or_else: "",
        }),
    }
}

/// Whoever writes our bits moves our flows, and we theirs.
fn mark_conflicts(owners: &Owners) -> Result<Vec<String>, ControllerError> {
    if let Some(conflict) = owners
        .mark_uses
        .iter()
        .find(|it| it.access == Access::Writes)
    {
        return Err(ControllerError::MarkConflict {
            conflict: conflict.to_string(),
        });
    }
    Ok(owners
        .mark_uses
        .iter()
        .map(|it| format!("{it}, which are steer's: see that both get along"))
        .chain(owners.flow_tables.iter().map(|table| {
            format!("{table} takes established flows past steer: what it holds is neither steered nor counted")
        }))
        .collect())
}

pub(crate) fn is_private(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => {
            // RFC 1918 and RFC 6598.
            let shared = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
            net.addr().is_private() || shared.contains(net)
        }
        // RFC 4193.
        IpNet::V6(net) => net.addr().is_unique_local(),
    }
}
