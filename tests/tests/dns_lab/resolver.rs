//! Real resolvers of the distribution, each with names of its own.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use steer_tests::{lab::Lab, namespace::Namespace, unpacked};

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    Dnsmasq,
    Unbound,
}

impl Software {
    fn program(self) -> Option<PathBuf> {
        unpacked::find(match self {
            Self::Dnsmasq => "usr/sbin/dnsmasq",
            Self::Unbound => "usr/sbin/unbound",
        })
    }
}

/// What a resolver knows.
#[derive(Clone, Debug)]
pub enum Knowledge {
    /// These addresses of every name, and those of certain names instead.
    Zone {
        every: [&'static str; 2],
        names: Vec<(String, IpAddr)>,
    },
    /// It asks others, the first by IPv4.
    Forward([&'static str; 2]),
    /// What another text says, and nothing else.
    Written(String),
    /// Nothing: dnsmasq answers REFUSED then, unbound SERVFAIL.
    Nothing,
}

impl Knowledge {
    pub const fn every(addresses: [&'static str; 2]) -> Self {
        Self::Zone {
            every: addresses,
            names: vec![],
        }
    }
}

/// A resolver that runs until this is dropped.
pub struct Resolver(Child);

impl Resolver {
    /// Starts one at two addresses of a namespace; none where the program is missing.
    pub fn start(
        lab: &Lab,
        namespace: &Namespace,
        software: Software,
        addresses: [&str; 2],
        knowledge: &Knowledge,
    ) -> Option<Self> {
        let program = software.program()?;
        let folder = tempfile::tempdir_in(lab.directory()).unwrap().keep();
        let file = folder.join("conf");
        let (text, arguments): (_, &[&str]) = match software {
            Software::Dnsmasq => (
                dnsmasq(addresses, knowledge, &folder),
                &["--keep-in-foreground", "--log-facility=-", "-C"],
            ),
            Software::Unbound => (unbound(addresses, knowledge, &folder), &["-d", "-c"]),
        };
        fs::write(&file, text).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command: Command = namespace.command(program);
        let child = command
            .env("LD_LIBRARY_PATH", unpacked::libraries())
            .args(arguments)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self(child))
    }

    /// It takes queries still and answers none, as a machine that swaps does.
    pub fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It answers what it has been asked, and on.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dnsmasq(addresses: [&str; 2], knowledge: &Knowledge, folder: &Path) -> String {
    let mut text = format!(
        "user=root\nno-resolv\nno-hosts\nbind-interfaces\ncache-size=0\npid-file={}\n",
        folder.join("pid").display()
    );
    for address in addresses {
        writeln!(text, "listen-address={address}").unwrap();
    }
    match knowledge {
        Knowledge::Zone { every, names } => {
            for address in every {
                writeln!(text, "address=/#/{address}").unwrap();
            }
            for (name, address) in names {
                writeln!(text, "host-record={name},{address}").unwrap();
            }
        }
        Knowledge::Forward(servers) => {
            for server in servers {
                writeln!(text, "server={server}").unwrap();
            }
        }
        Knowledge::Written(more) => text += more,
        Knowledge::Nothing => {}
    }
    text
}

fn unbound(addresses: [&str; 2], knowledge: &Knowledge, folder: &Path) -> String {
    let mut text = format!(
        "server:\n username: \"\"\n chroot: \"\"\n directory: \"{folder}\"\n\
         pidfile: \"{folder}/pid\"\n use-syslog: no\n do-daemonize: no\n\
         module-config: \"iterator\"\n num-threads: 1\n outgoing-range: 16\n\
         access-control: 0.0.0.0/0 allow\n access-control: ::/0 allow\n\
         edns-buffer-size: 1232\n max-udp-size: 1232\n",
        folder = folder.display()
    );
    for address in addresses {
        writeln!(text, " interface: {address}").unwrap();
    }
    match knowledge {
        Knowledge::Zone { every, names } => {
            let kind = |address: &IpAddr| if address.is_ipv4() { "A" } else { "AAAA" };
            writeln!(text, " local-zone: \".\" redirect").unwrap();
            for address in every {
                let address: IpAddr = address.parse().unwrap();
                let kind = kind(&address);
                writeln!(text, " local-data: \". 60 IN {kind} {address}\"").unwrap();
            }
            let mut known = std::collections::BTreeSet::new();
            for (name, address) in names {
                let kind = kind(address);
                if known.insert(name) {
                    writeln!(text, " local-zone: \"{name}.\" static").unwrap();
                }
                writeln!(text, " local-data: \"{name}. 60 IN {kind} {address}\"").unwrap();
            }
        }
        Knowledge::Forward(servers) => {
            writeln!(text, "forward-zone:\n name: \".\"").unwrap();
            for server in servers {
                writeln!(text, " forward-addr: {server}").unwrap();
            }
        }
        Knowledge::Written(more) => text += more,
        // Whom it must not ask (do-not-query-localhost).
        Knowledge::Nothing => {
            text += "forward-zone:\n name: \".\"\n forward-addr: 127.0.0.1\n";
        }
    }
    text
}
