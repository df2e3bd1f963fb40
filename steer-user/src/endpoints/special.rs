//! Address space that is never a public service: what steer refuses in a feed.

use ipnet::IpNet;

/// Never steered, whoever asks for it: not reachable over an Internet connection at all. From the
/// IANA special-purpose registries (RFC 6890 and its updates), and from that of IPv6 address space,
/// where only 2000::/3 is global unicast.
const NEVER_STEERED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "\"this network\""),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared (carrier NAT)"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved for protocols"),
    ("192.168.0.0/16", "private"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/8", "unspecified, loopback or IPv4-mapped"),
    ("100::/8", "discard-only"),
    ("fc00::/7", "private (unique local)"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "private (site-local)"),
    ("ff00::/8", "multicast"),
    ("::/3", "unassigned"),
    ("4000::/2", "unassigned"),
    ("8000::/1", "unassigned"),
];

/// Reserved for documentation and benchmarks: never Microsoft's, so a feed that holds it is a test
/// file or a fake. An operator may still name them as prefixes of the site's own.
const DOCUMENTATION: &[(&str, &str)] = &[
    ("192.0.2.0/24", "documentation"),
    ("198.18.0.0/15", "benchmark"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("2001:db8::/32", "documentation"),
    ("3fff::/20", "documentation"),
];

/// What kind of never-steered space the prefix touches, if any.
pub fn never_steered(prefix: &IpNet) -> Option<&'static str> {
    touches(prefix, NEVER_STEERED)
}

/// What kind of documentation or benchmark space the prefix touches, if any.
pub fn documentation(prefix: &IpNet) -> Option<&'static str> {
    touches(prefix, DOCUMENTATION)
}

fn touches(prefix: &IpNet, list: &[(&str, &'static str)]) -> Option<&'static str> {
    list.iter()
        .find(|(net, _)| net.parse().is_ok_and(|net: IpNet| overlap(&net, prefix)))
        .map(|(_, kind)| *kind)
}

/// Whether two prefixes have an address in common.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_the_tables_is_a_prefix_without_host_bits() {
        for (text, _) in NEVER_STEERED.iter().chain(DOCUMENTATION) {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(net, net.trunc(), "{text}");
        }
    }

    #[test]
    fn a_prefix_that_only_touches_private_space_is_found() {
        for (text, kind) in [
            ("10.1.2.0/24", Some("private")),
            ("8.0.0.0/6", Some("private")),
            ("172.31.255.255/32", Some("private")),
            ("172.32.0.0/16", None),
            ("52.96.0.0/14", None),
            ("2603:1006::/40", None),
            ("fe80::1/128", Some("link-local")),
            ("fe00::/32", Some("unassigned")),
            ("1fff:ffff::/32", Some("unassigned")),
            ("4000::/32", Some("unassigned")),
        ] {
            assert_eq!(never_steered(&text.parse().unwrap()), kind, "{text}");
        }
    }
}
