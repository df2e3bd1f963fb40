//! What is in the files: pure, and never an error. Who reads another's file takes what he
//! understands.

use std::{net::IpAddr, time::SystemTime};

/// The words behind a key of a file of assignments. Several lines of it count.
pub(super) fn assignments(text: &str, key: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let values = lines.filter(|(name, _)| name.trim() == key);
    values.flat_map(|(_, value)| words(value)).collect()
}

/// The name servers of a resolv.conf.
pub(super) fn resolv_conf(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::split_whitespace);
    lines
        .filter_map(|mut words| (words.next()? == "nameserver").then(|| words.next())?)
        .map(str::to_owned)
        .collect()
}

/// The name servers of an interface's last lease of each family, unless it is over.
///
/// dhclient writes a lease behind the last one, and all of them anew from time to time.
pub(super) fn dhclient(text: &str, interface: &str, now: SystemTime) -> Vec<String> {
    let mut last = [None, None];
    let mut lease: Option<Lease> = None;
    let mut depth = 0_usize;
    for line in text.lines().map(str::trim) {
        if line.ends_with('{') {
            depth += 1;
            match line {
                "lease {" => lease = Some(Lease::default()),
                "lease6 {" => {
                    lease = Some(Lease {
                        v6: true,
                        ..Lease::default()
                    });
                }
                _ => {}
            }
            continue;
        }
        if line == "}" {
            depth = depth.saturating_sub(1);
            if depth == 0
                && let Some(lease) = lease.take()
                && lease.interface == interface
            {
                let family = usize::from(lease.v6);
                last[family] = Some(lease);
            }
            continue;
        }
        if let (Some(lease), Some(statement)) = (&mut lease, line.strip_suffix(';')) {
            lease.take(statement, now);
        }
    }
    let last = last.into_iter().flatten().filter(|lease| !lease.is_over);
    last.flat_map(|lease| lease.servers).collect()
}

#[derive(Default)]
struct Lease {
    v6: bool,
    interface: String,
    servers: Vec<String>,
    is_over: bool,
}

impl Lease {
    fn take(&mut self, statement: &str, now: SystemTime) {
        let Some((key, value)) = statement.split_once(' ') else {
            self.is_over |= statement == "released";
            return;
        };
        match key {
            "interface" => value.trim_matches('"').clone_into(&mut self.interface),
            "expire" => self.is_over |= ended(value, now),
            "option" => {
                let list = ["domain-name-servers ", "dhcp6.name-servers "];
                if let Some(list) = list.iter().find_map(|name| value.strip_prefix(name)) {
                    self.servers = list.split(',').flat_map(words).collect();
                }
            }
            _ => {}
        }
    }
}

/// Whether a lease's end, `WEEKDAY YEAR/MONTH/DAY HOUR:MINUTE:SECOND`, is past. `never`, `epoch`
/// and what cannot be read is not.
fn ended(value: &str, now: SystemTime) -> bool {
    let mut words = value.split_whitespace().skip(1);
    let (Some(day), Some(time)) = (words.next(), words.next()) else {
        return false;
    };
    let text = format!("{} {time}", day.replace('/', "-"));
    humantime::parse_rfc3339_weak(&text).is_ok_and(|end| end <= now)
}

/// An address that clients' queries can be sent to, or why it is none. Of `ADDRESS#NAME`,
/// `ADDRESS:PORT` and `[ADDRESS]:PORT%LINK` (systemd) only port 53 and the address count.
pub(super) fn address(word: &str) -> Result<IpAddr, &'static str> {
    let plain = word.split_once('#').map_or(word, |(address, _)| address);
    let plain = plain.split_once('%').map_or(plain, |(address, _)| address);
    let address = match plain.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => match plain.parse::<std::net::SocketAddr>() {
            Ok(at) if at.port() == 53 => at.ip(),
            Ok(_) => return Err("is not on port 53"),
            Err(_) => return Err("is no address"),
        },
    };
    let address = address.to_canonical();
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Err("is link-local: clients' queries cannot be routed there");
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err("cannot be a resolver behind a breakout");
    }
    Ok(address)
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace()
        .map(|word| word.trim_matches('"').to_owned())
}
