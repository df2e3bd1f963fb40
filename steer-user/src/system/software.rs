//! The names of software that marks packets, keeps policy rules or filters, by the chains, tables
//! and numbers that it uses unless told otherwise: an operator knows "mwan3", not its chains.

/// Who makes a chain of this name, in a table of this name.
pub(super) fn of_chain(table: &str, chain: &str) -> Option<&'static str> {
    /// The beginnings of names of tables, of names of chains, and whose they are.
    const MAKERS: [(&[&str], &[&str], &str); 14] = [
        (&[], &["mwan3_"], "mwan3"),
        (&[], &["pbr_"], "OpenWrt pbr"),
        (&["docker-"], &["DOCKER"], "Docker"),
        (&[], &["ts-"], "Tailscale"),
        (&["wg-quick-"], &[], "wg-quick"),
        (&["kube-proxy"], &["KUBE-"], "Kubernetes"),
        (&[], &["CNI-"], "a CNI plugin"),
        (&["calico"], &["cali-"], "Calico"),
        (&[], &["CILIUM_"], "Cilium"),
        (&["mullvad"], &[], "Mullvad"),
        (&["vyos_"], &["VYOS_"], "VyOS"),
        (&["firewalld"], &[], "firewalld"),
        (&["libvirt_"], &["LIBVIRT_"], "libvirt"),
        (&[], &["ufw-", "ufw6-"], "ufw"),
    ];
    let begins = |name: &str, with: &[&str]| with.iter().any(|it| name.starts_with(it));
    MAKERS
        .iter()
        .find(|(tables, chains, _)| begins(table, tables) || begins(chain, chains))
        .map(|(.., maker)| *maker)
}

/// What a policy rule says of marks and tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RuleNumbers {
    pub priority: u32,
    /// The mark that is compared, and which of its bits.
    pub mark: Option<(u32, u32)>,
    pub table: u32,
}

/// Who makes a policy rule of this kind.
pub(super) fn of_rule(rule: RuleNumbers) -> Option<&'static str> {
    let RuleNumbers {
        priority,
        mark,
        table,
    } = rule;
    let compared = mark.map(|(_, compared)| compared);
    Some(match (compared, priority, table) {
        // mmx_mask 0x3f00; rules 1001 and on by interface, 2001 and on by mark; tables 1 to 250.
        (Some(0x3f00), ..) | (None, 1001..=1250 | 3001..=3250, 1..=250) => "mwan3",
        // TS_RTM_* 5210, 5230, 5250 and 5270; fwmark mask 0xff0000, table 52.
        (_, 5210..=5270, _) | (_, _, 52) => "Tailscale",
        // fwmask 00ff0000; rules downwards from 30000; tables from 256 on.
        (Some(0x00ff_0000), ..) | (None, 29_000..=30_000, 256..=511) => "OpenWrt pbr",
        // pbrd: rules 300 and on by sequence; tables 10000 and on.
        (_, _, 10_000..=10_999) => "FRR pbrd",
        // Not marked with its port: to its own table; fwmark and table are 51820 and on.
        (_, _, 51_820..=51_839) => "wg-quick",
        (Some(0x0f00), 9..=111, _) | (_, _, 2004 | 2005) => "Cilium",
        (_, _, 0x6d6f_6c65) => "Mullvad",
        (Some(0x0800_0000), _, 2023) => "dae",
        (_, 220, 220) => "strongSwan",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_known_makes_has_no_name() {
        assert_eq!(of_chain("office", "forward"), None);
        assert_eq!(of_chain("filter", "FORWARD"), None);
        let plain = RuleNumbers {
            priority: 32_766,
            mark: None,
            table: 254,
        };
        assert_eq!(of_rule(plain), None);
    }
}
