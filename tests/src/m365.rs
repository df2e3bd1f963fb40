//! Addresses of Microsoft 365 and of others that the lab's front ends hold, retyped as facts from
//! the endpoint service's worldwide answer, with what it says about them.

use std::{fmt, net::IpAddr};

use serde::Serialize;

use crate::traffic::{Flow, Protocol};

/// What the endpoint service calls a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// Few, stable, delay-sensitive: break out locally.
    Optimize,
    /// Needed, less sensitive: break out locally by default.
    Allow,
    /// Names without published prefixes: ordinary Internet traffic.
    Default,
    /// Not Microsoft 365.
    Other,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Optimize => "Optimize",
            Self::Allow => "Allow",
            Self::Default => "Default",
            Self::Other => "other",
        })
    }
}

/// One conversation of an office worker's day.
#[derive(Clone, Debug)]
pub struct Example {
    /// What a person would call it.
    pub name: &'static str,
    /// Where it goes.
    pub flow: Flow,
    /// What Microsoft publishes about it.
    pub category: Category,
    /// The endpoint set that matches; `None` for destinations without published prefixes.
    pub set: Option<u16>,
}

impl Example {
    /// Whether steer's default selection (Optimize and Allow) sends it out of the breakout.
    pub fn is_steered(&self) -> bool {
        matches!(self.category, Category::Optimize | Category::Allow)
    }
}

/// Destinations that the front ends answer for: covers every prefix of the worldwide instance,
/// and neighbours that are not in it.
pub const FRONT_END_PREFIXES: &[&str] = &[
    "1.1.1.0/24",
    "2.16.0.0/13",
    "13.64.0.0/11",
    "13.107.0.0/16",
    "20.0.0.0/8",
    "23.0.0.0/8",
    "40.64.0.0/10",
    "52.0.0.0/8",
    "93.184.216.0/24",
    "104.40.0.0/13",
    "104.146.0.0/15",
    "131.253.33.0/24",
    "132.245.0.0/16",
    "150.171.0.0/16",
    "204.79.197.0/24",
    "2603:1000::/24",
    "2606:4700::/32",
    "2620:1ec::/32",
    "2a01:111::/32",
    "2a02:26f0::/29",
];

/// The conversations of the demo. Categories and sets: endpoint service, worldwide.
pub fn examples() -> Vec<Example> {
    use Category::{Allow, Default, Optimize, Other};
    use Protocol::{Tcp, Udp};
    let row = |name, destination, protocol, port, category, set: u16| Example {
        name,
        flow: Flow {
            destination,
            protocol,
            port,
            source: None,
        },
        category,
        set: (set != 0).then_some(set),
    };
    let v4 = |a, b, c, d| IpAddr::from([a, b, c, d]);
    let v6 = |a, b, c, last| IpAddr::from([a, b, c, 0, 0, 0, 0, last]);
    vec![
        row("Outlook", v4(52, 96, 1, 1), Tcp, 443, Optimize, 1),
        row("Outlook", v6(0x2603, 0x1006, 0, 1), Tcp, 443, Optimize, 1),
        row("Outlook, QUIC", v4(40, 96, 7, 20), Udp, 443, Optimize, 1),
        row(
            "Outlook, QUIC",
            v6(0x2603, 0x1016, 0, 20),
            Udp,
            443,
            Optimize,
            1,
        ),
        row("SharePoint", v4(13, 107, 136, 9), Tcp, 443, Optimize, 31),
        row(
            "OneDrive, QUIC",
            v6(0x2603, 0x1061, 0x1300, 9),
            Udp,
            443,
            Optimize,
            31,
        ),
        row("Teams call", v4(52, 112, 0, 9), Udp, 3478, Optimize, 11),
        row(
            "Teams call",
            v6(0x2603, 0x1063, 0, 9),
            Udp,
            3478,
            Optimize,
            11,
        ),
        row("Teams chat", v4(52, 112, 0, 9), Tcp, 443, Allow, 12),
        row("Sign-in", v4(20, 190, 128, 1), Tcp, 443, Allow, 56),
        row(
            "Sign-in",
            v6(0x2603, 0x1006, 0x2000, 9),
            Tcp,
            443,
            Allow,
            56,
        ),
        row("Mailbox, IMAP", v4(52, 96, 1, 1), Tcp, 993, Allow, 2),
        row("Office pages, CDN", v4(2, 16, 241, 9), Tcp, 443, Default, 0),
        row(
            "Office pages, CDN",
            v6(0x2a02, 0x26f0, 0, 9),
            Tcp,
            443,
            Default,
            0,
        ),
        row("Azure storage", v4(52, 239, 1, 1), Tcp, 443, Other, 0),
        row("Outlook, odd port", v4(52, 96, 1, 1), Tcp, 8443, Other, 0),
        row("A news site", v4(93, 184, 216, 34), Tcp, 443, Other, 0),
        row(
            "A news site, QUIC",
            v6(0x2606, 0x4700, 0, 0x1111),
            Udp,
            443,
            Other,
            0,
        ),
    ]
}

/// Ports that the front ends answer on, TCP.
pub const TCP_PORTS: &[u16] = &[25, 53, 80, 143, 443, 587, 993, 995, 8443];
/// Ports that the front ends answer on, UDP.
pub const UDP_PORTS: &[u16] = &[53, 80, 443, 3478, 3479, 3480, 3481, 4433];
