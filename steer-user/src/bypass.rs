//! Clients that ask resolvers past the office's: over TLS or QUIC (port 853), or over HTTPS at a public
//! resolver whose addresses are known. Their queries cannot be read, so none is steered.
//!
//! Seen in the kernel's table of connections, where somebody wants to know: no packet pays for it, what a
//! firewall stops is not there, and it says which clients they are. Their entries outlive the
//! connections by a minute or two.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use tokio::task::spawn_blocking;

use crate::{
    policy::Site,
    system::{
        SystemError,
        conntrack::{self, Flow},
    },
};

/// DNS over TLS and over QUIC (RFC 7858, 3.1; RFC 9250, 4.1.1).
const TLS: u16 = 853;
/// DNS over HTTPS.
const HTTPS: u16 = 443;

/// What clients were seen to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bypass(BTreeSet<Sighting>);

/// A client that asks a resolver past the office's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// The resolver.
    pub resolver: IpAddr,
    /// How it is asked.
    pub over: Over,
    /// Who asks.
    pub client: IpAddr,
}

/// A resolver that was asked past the office's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The resolver.
    pub resolver: IpAddr,
    /// Whose it is, if that is known.
    pub operator: Option<&'static str>,
    /// How it is asked.
    pub over: Over,
    /// Who asked; at least one.
    pub clients: Vec<IpAddr>,
}

/// What hides the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// TLS or QUIC, on a port of their own.
    Tls,
    /// HTTPS.
    Https,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "TLS",
            Self::Https => "HTTPS",
        })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        write!(f, "{}", self.resolver)?;
        if let Some(operator) = self.operator {
            write!(f, " ({operator})")?;
        }
        let shown: Vec<String> = self
            .clients
            .iter()
            .take(SHOWN)
            .map(ToString::to_string)
            .collect();
        write!(f, " over {} by {}", self.over, shown.join(", "))?;
        match self.clients.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl Bypass {
    /// Looks at the connections of this site's clients; none where none are tracked. Takes about a
    /// millisecond per thousand entries of the table. Must be called inside a tokio runtime.
    pub async fn look(site: Site) -> Result<Option<Self>, SystemError> {
        if conntrack::usage().is_none() {
            return Ok(None);
        }
        let look = move || {
            let known = Known::new();
            let mut seen = BTreeSet::new();
            let ports = [TLS, HTTPS];
            conntrack::for_each_flow(&ports, |flow| seen.extend(known.sighting(&flow, &site)))?;
            Ok(Some(Self(seen)))
        };
        spawn_blocking(look)
            .await
            .map_err(|ended| SystemError::Conntrack(ended.into()))?
    }

    /// Each resolver that was asked, and who asked.
    pub fn resolvers(&self) -> Vec<Asked> {
        let known = Known::new();
        let mut resolvers: BTreeMap<(IpAddr, Over), Vec<IpAddr>> = BTreeMap::new();
        for it in &self.0 {
            let asked = resolvers.entry((it.resolver, it.over)).or_default();
            asked.push(it.client);
        }
        let asked = resolvers.into_iter();
        asked
            .map(|((resolver, over), clients)| Asked {
                resolver,
                operator: known.operator(resolver),
                over,
                clients,
            })
            .collect()
    }

    /// How many clients ask past the office's resolvers this way.
    pub fn clients(&self, over: Over) -> usize {
        let these = self.0.iter().filter(|it| it.over == over);
        these.map(|it| it.client).collect::<BTreeSet<_>>().len()
    }
}

/// The public resolvers that are known.
struct Known(Vec<(IpNet, &'static str)>);

impl Known {
    fn new() -> Self {
        Self::read(include_str!("bypass/resolvers.txt"))
    }

    /// What cannot be read is passed over: a test reads every word.
    fn read(text: &'static str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let named = lines.filter_map(|line| line.split_once(": "));
        let all = named.flat_map(|(operator, addresses)| {
            let prefixes = addresses.split(' ').filter_map(prefix);
            prefixes.map(move |prefix| (prefix, operator))
        });
        Self(all.collect())
    }

    fn operator(&self, resolver: IpAddr) -> Option<&'static str> {
        let found = self.0.iter().find(|(net, _)| net.contains(&resolver));
        found.map(|(_, operator)| *operator)
    }

    /// What a flow of a client's says. Resolvers of the office's own are none past it: what they ask
    /// themselves is seen.
    fn sighting(&self, flow: &Flow, site: &Site) -> Option<Sighting> {
        let (resolver, client) = (flow.destination.ip(), flow.source);
        let over = match flow.destination.port() {
            TLS => Over::Tls,
            HTTPS if self.operator(resolver).is_some() => Over::Https,
            _ => return None,
        };
        let outside = !site.router.contains(&resolver) && !site.is_client(resolver);
        let served = flow.answered && !flow.reset;
        (served && outside && site.may_ask(client)).then_some(Sighting {
            resolver,
            over,
            client,
        })
    }
}

fn prefix(word: &str) -> Option<IpNet> {
    let address = || word.parse::<IpAddr>().ok().map(IpNet::from);
    word.parse().ok().or_else(address)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn every_word_of_the_list_is_a_public_address_of_one_operator() {
        let mut count = 0;
        for line in include_str!("bypass/resolvers.txt").lines() {
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            let (operator, addresses) = line.split_once(": ").unwrap();
            for word in addresses.split(' ') {
                let prefix = prefix(word).unwrap_or_else(|| panic!("{operator}: {word}"));
                assert_eq!(prefix, prefix.trunc(), "{word}");
                assert_eq!(crate::endpoints::never_steered(&prefix), None, "{word}");
                count += 1;
            }
        }
        let known = Known::new();
        assert_eq!(known.0.len(), count);
        for (prefix, operator) in &known.0 {
            assert_eq!(known.operator(prefix.addr()), Some(*operator), "{prefix}");
            let holding = known.0.iter().filter(|(it, _)| it.contains(prefix));
            assert_eq!(holding.count(), 1, "{prefix} twice");
        }
    }

    #[test]
    fn a_client_that_is_answered_outside_the_office_is_seen_and_nobody_else() {
        let site = Site {
            clients: Some(vec!["10.20.0.0/16".parse().unwrap()]),
            left_out: vec!["10.20.9.0/24".parse().unwrap()],
            queries_left: Vec::new(),
            router: vec!["192.0.2.2".parse().unwrap()],
        };
        let known = Known::new();
        let seen = |change: fn(&mut Flow)| {
            let mut flow = Flow {
                protocol: 6,
                source: "10.20.0.7".parse().unwrap(),
                destination: SocketAddr::new("8.8.8.8".parse().unwrap(), 853),
                answered: true,
                reset: false,
            };
            change(&mut flow);
            known.sighting(&flow, &site).map(|it| it.over)
        };
        assert_eq!(seen(|_| ()), Some(Over::Tls));
        assert_eq!(seen(|it| it.destination.set_port(443)), Some(Over::Https));
        let elsewhere = |it: &mut Flow| it.destination.set_ip([93, 184, 216, 34].into());
        assert_eq!(seen(elsewhere), Some(Over::Tls), "853 is for nothing else");
        let nobody: [fn(&mut Flow); 7] = [
            |it| it.destination = "93.184.216.34:443".parse().unwrap(),
            |it| it.destination.set_port(53),
            |it| it.source = [10, 21, 0, 7].into(),
            |it| it.source = [10, 20, 9, 7].into(),
            |it| it.destination.set_ip([192, 0, 2, 2].into()),
            |it| it.destination.set_ip([10, 20, 0, 53].into()),
            |it| it.answered = false,
        ];
        for (number, change) in nobody.into_iter().enumerate() {
            assert_eq!(seen(change), None, "{number}");
        }
        assert_eq!(seen(|it| it.reset = true), None);
    }
}
