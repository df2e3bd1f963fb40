//! The resolvers that a link brought along: what DHCP, router advertisements or PPP gave, out of the
//! files in which the box's own daemons keep it. Nothing is asked, and nothing is written.
//!
//! Which daemon configures a link is the operator's business, so every file that may be there is
//! read; the order is `sources`'. What cannot be read or used is told and passed over.

mod parse;

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A file larger than this is none of a daemon's.
const LARGEST: u64 = 1 << 20;

/// The resolvers of a link, and what was odd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkResolvers {
    /// The resolvers in the order of their files, each once.
    pub found: Vec<LinkResolver>,
    /// What was passed over and why, with the file.
    pub problems: Vec<String>,
}

/// A resolver of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkResolver {
    /// Its address.
    pub address: IpAddr,
    /// The file that names it.
    pub file: PathBuf,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `KEY=ADDRESS ADDRESS`, as systemd writes.
    Assignments(&'static str),
    /// `nameserver ADDRESS`, as resolv.conf(5) says.
    ResolvConf,
    /// Leases of ISC's dhclient, for all interfaces or one.
    Dhclient,
}

/// Reads what is known of a link's resolvers now. `root` is `/`; `own` a folder whose files,
/// named as interfaces, scripts of the operator's write.
pub fn look(root: &Path, own: &Path, interface: &str, ifindex: Option<u32>) -> LinkResolvers {
    let mut resolvers = LinkResolvers::default();
    for (file, form) in sources(root, own, interface, ifindex) {
        match read(&file) {
            Ok(text) => resolvers.add(&file, parsed(&text, form, interface)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => resolvers.tell(&file, &error.to_string()),
        }
    }
    resolvers
}

/// The files, the most certain first.
fn sources(root: &Path, own: &Path, interface: &str, ifindex: Option<u32>) -> Vec<(PathBuf, Form)> {
    let mut list = vec![(own.join(interface), Form::ResolvConf)];
    if let Some(index) = ifindex {
        let of = |folder: &str, key| {
            let file = root.join(folder).join(index.to_string());
            (file, Form::Assignments(key))
        };
        list.extend([
            // What networkd uses: DHCP, advertisements and its configuration.
            of("run/systemd/netif/links", "DNS"),
            // What DHCP gave, also where networkd is told not to use it.
            of("run/systemd/netif/leases", "DNS"),
            // What NetworkManager and resolvectl told resolved.
            of("run/systemd/resolve/netif", "SERVERS"),
        ]);
    }
    // dhcpcd's, and those of Debian's resolvconf and openresolv: eth0.dhcp, eth0.ra, eth0.dhclient.
    let dotted = format!("{interface}.");
    for folder in [
        "run/dhcpcd/hook-state/resolv.conf",
        "run/dhcpcd/resolv.conf",
        "run/resolvconf/interface",
        "run/resolvconf/interfaces",
    ] {
        let files = files_in(&root.join(folder), |name| {
            name == interface || name.starts_with(&dotted)
        });
        list.extend(files.into_iter().map(|file| (file, Form::ResolvConf)));
    }
    for folder in [
        "run",
        "run/dhclient",
        "var/lib/dhcp",
        "var/lib/dhclient",
        "var/lib/NetworkManager",
    ] {
        let files = files_in(&root.join(folder), |name| {
            name.starts_with("dhclient") && name.contains(".lease")
        });
        list.extend(files.into_iter().map(|file| (file, Form::Dhclient)));
    }
    // pppd has one for all its links, which is right for all but offices with several.
    if interface.starts_with("ppp") {
        list.extend(["run/ppp/resolv.conf", "etc/ppp/resolv.conf"].map(|file| {
            let file = root.join(file);
            (file, Form::ResolvConf)
        }));
    }
    list
}

/// The files of a folder whose names are wanted, in their order; of none that is not there.
fn files_in(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let names: BTreeSet<String> = names.filter(|name| wanted(name)).collect();
    names.into_iter().map(|name| folder.join(name)).collect()
}

fn read(file: &Path) -> io::Result<String> {
    let meta = fs::metadata(file)?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(io::Error::other("it is no file of a reasonable size"));
    }
    fs::read_to_string(file)
}

fn parsed(text: &str, form: Form, interface: &str) -> Vec<String> {
    match form {
        Form::Assignments(key) => parse::assignments(text, key),
        Form::ResolvConf => parse::resolv_conf(text),
        Form::Dhclient => parse::dhclient(text, interface, SystemTime::now()),
    }
}

impl LinkResolvers {
    fn add(&mut self, file: &Path, words: Vec<String>) {
        for word in words {
            match parse::address(&word) {
                Ok(address) if self.found.iter().any(|it| it.address == address) => {}
                Ok(address) => self.found.push(LinkResolver {
                    address,
                    file: file.to_owned(),
                }),
                Err(why) => self.tell(file, &format!("{word:?} {why}")),
            }
        }
    }

    fn tell(&mut self, file: &Path, what: &str) {
        self.problems.push(format!("{}: {what}", file.display()));
    }
}

#[cfg(test)]
mod tests;
