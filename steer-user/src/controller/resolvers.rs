//! Which resolvers each breakout has, the preferred one first: those of the configuration, those
//! that its link brought along, and last the public ones.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::View;
use crate::{
    config::{Breakout, Config, ResolverChoice},
    system::link_resolvers::{self, LinkResolvers},
};

/// The most resolvers of a link that are taken.
const OF_A_LINK: usize = 4;

/// The resolvers of every breakout, and what the operator should know of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) resolvers: Vec<Chosen>,
    pub(super) problems: Vec<String>,
}

/// A resolver of a breakout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The breakout's path id.
    pub(super) path: u8,
    /// Its name.
    pub(super) breakout: String,
    pub(super) address: IpAddr,
    pub(super) origin: Origin,
}

/// Where a resolver is known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Configured,
    /// A file of what the link brought along.
    Link(PathBuf),
    Public,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("configured"),
            Self::Link(file) => write!(f, "of the link, {}", file.display()),
            Self::Public => f.write_str("public, the last choice"),
        }
    }
}

/// Chooses the resolvers, with a look at the links where the configuration says so, and tells what
/// is new since `before`.
pub(super) fn choose(config: &Config, view: &View, before: &Choice) -> Choice {
    let own = config.system.run_dir.join("resolvers");
    let choice = list(config, |breakout| {
        let mut seen = view.breakouts.iter();
        let seen = seen.find(|it| it.id.get() == breakout.id);
        let ifindex = seen.and_then(|it| it.ifindex);
        link_resolvers::look(Path::new("/"), &own, breakout.interface.as_str(), ifindex)
    });
    for problem in choice
        .problems
        .iter()
        .filter(|it| !before.problems.contains(it))
    {
        warn!("{problem}");
    }
    for it in &choice.resolvers {
        if matches!(it.origin, Origin::Link(_)) && !before.resolvers.contains(it) {
            info!("{}: resolver {} ({})", it.breakout, it.address, it.origin);
        }
    }
    choice
}

fn list(config: &Config, of_link: impl Fn(&Breakout) -> LinkResolvers) -> Choice {
    let mut choice = Choice::default();
    let with_resolvers = config
        .breakouts
        .iter()
        .filter(|it| !it.resolvers.is_empty());
    for breakout in with_resolvers {
        let mut add = |address, origin| {
            let chosen = Chosen {
                path: breakout.id,
                breakout: breakout.name.clone(),
                address,
                origin,
            };
            let mut known = choice.resolvers.iter();
            if !known.any(|it| (it.path, it.address) == (breakout.id, address)) {
                choice.resolvers.push(chosen);
            }
        };
        for entry in &breakout.resolvers {
            match entry {
                ResolverChoice::Address(address) => add(*address, Origin::Configured),
                ResolverChoice::Link => {
                    let of_link = of_link(breakout);
                    if of_link.found.is_empty() {
                        choice.problems.push(format!(
                            "{}: nothing here says which resolvers its link {} brought along \
                             (docs/dns.md says where steer looks)",
                            breakout.name, breakout.interface
                        ));
                    }
                    for it in of_link.found.into_iter().take(OF_A_LINK) {
                        add(it.address, Origin::Link(it.file));
                    }
                    let problems = of_link.problems.into_iter();
                    choice
                        .problems
                        .extend(problems.map(|it| format!("{}: {it}", breakout.name)));
                }
            }
        }
        for address in &config.dns.public {
            add(*address, Origin::Public);
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::link_resolvers::LinkResolver;

    fn config(resolvers: &str, public: &str) -> Config {
        let text = format!(
            "[[lan]]\ninterface = \"lan0\"\n\
             [[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\nresolvers = [{resolvers}]\n\
             [[breakout]]\nname = \"lte\"\ninterface = \"wwan0\"\n\
             [dns]\npublic = [{public}]\n"
        );
        Config::parse("test", &text).unwrap()
    }

    fn found(addresses: &[&str]) -> LinkResolvers {
        let resolver = |address: &&str| LinkResolver {
            address: address.parse().unwrap(),
            file: "/run/lease".into(),
        };
        LinkResolvers {
            found: addresses.iter().map(resolver).collect(),
            problems: vec![],
        }
    }

    fn chosen(config: &Config, of_link: &[&str]) -> Vec<String> {
        let choice = list(config, |_| found(of_link));
        let text = |it: &Chosen| format!("{} {} {}", it.breakout, it.address, it.origin);
        choice.resolvers.iter().map(text).collect()
    }

    #[test]
    fn those_of_the_link_stand_where_the_file_has_the_word_and_public_ones_last() {
        assert_eq!(
            chosen(
                &config(
                    "\"192.0.2.1\", \"link\", \"192.0.2.9\"",
                    "\"9.9.9.9\", \"192.0.2.1\""
                ),
                &["192.0.2.2", "192.0.2.1", "2001:db8::2"]
            ),
            [
                "fiber 192.0.2.1 configured",
                "fiber 192.0.2.2 of the link, /run/lease",
                "fiber 2001:db8::2 of the link, /run/lease",
                "fiber 192.0.2.9 configured",
                "fiber 9.9.9.9 public, the last choice",
            ]
        );
    }

    #[test]
    fn a_breakout_without_resolvers_gets_no_public_ones() {
        assert_eq!(chosen(&config("", "\"9.9.9.9\""), &["192.0.2.2"]), [""; 0]);
    }

    #[test]
    fn a_link_that_brought_nothing_is_told() {
        let choice = list(&config("\"link\"", ""), |_| LinkResolvers {
            problems: vec!["/run/lease: \"x\" is no address".into()],
            ..LinkResolvers::default()
        });
        assert_eq!(choice.resolvers, []);
        assert!(choice.problems[0].starts_with("fiber: nothing here says"));
        assert_eq!(choice.problems[1], "fiber: /run/lease: \"x\" is no address");
    }

    #[test]
    fn four_of_a_link_are_taken() {
        let many: Vec<String> = (1..=9).map(|it| format!("192.0.2.{it}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(chosen(&config("\"link\"", ""), &many).len(), OF_A_LINK);
    }
}
