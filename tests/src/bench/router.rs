//! The routers that are measured, one namespace for each row, and the namespace of everything
//! around them.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// The router's address on the breakout, which masquerading puts in place of the client's.
pub const BREAKOUT_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The routing table of the breakout in rows that use `ip rule`.
pub const BREAKOUT_TABLE: u32 = 100;

/// A frame's way: who sends it and who receives it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The router's interface.
    pub near: u32,
    pub near_mac: [u8; 6],
    /// The other end, in the namespace around the routers.
    pub far: u32,
    pub far_mac: [u8; 6],
}

/// The namespace of the clients and of both next hops of every router. Nothing in it routes.
pub struct Far {
    pub namespace: Namespace,
}

impl Far {
    pub fn create() -> Result<Self> {
        Ok(Self {
            namespace: Namespace::create(&format!("{PREFIX}{}-far", process::id()))?,
        })
    }
}

/// A router with a LAN, a WAN that is its default route, and a breakout.
pub struct Router {
    pub namespace: Namespace,
    pub lan: Link,
    pub wan: Link,
    pub breakout: Link,
}

impl Router {
    pub fn create(far: &Far, id: usize) -> Result<Self> {
        let namespace = Namespace::create(&format!("{PREFIX}{}-{id}", process::id()))?;
        let far_name = &far.namespace.name;
        let mut links = Vec::new();
        for (number, near) in [(LAN, "lan0"), (WAN, "wan0"), (BREAKOUT, "brk0")] {
            let (near_mac, far_mac) = (mac(number, NEAR), mac(number, FAR));
            let far_name_of_link = format!("{near}-{id}");
            namespace.ip(&format!(
                "link add {near} address {} type veth peer name {far_name_of_link} address {} \
                 netns {far_name}\nlink set {near} up",
                text(near_mac),
                text(far_mac),
            ))?;
            far.namespace
                .ip(&format!("link set {far_name_of_link} up"))?;
            links.push(Link {
                near: namespace.index_of(near)?,
                near_mac,
                far: far.namespace.index_of(&far_name_of_link)?,
                far_mac,
            });
        }
        let [lan, wan, breakout] = links[..] else {
            bail!("three links were made")
        };
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.ip(&format!(
            "address add 10.20.0.1/16 dev lan0\n\
             address add 172.16.0.1/30 dev wan0\n\
             address add {BREAKOUT_ADDRESS}/30 dev brk0\n\
             neigh replace 172.16.0.2 lladdr {} dev wan0 nud permanent\n\
             neigh replace 192.0.2.2 lladdr {} dev brk0 nud permanent\n\
             route add default via 172.16.0.2\n\
             route add default via 192.0.2.2 table {BREAKOUT_TABLE}",
            text(wan.far_mac),
            text(breakout.far_mac),
        ))?;
        // With GRO, as a router has it, a veth device receives with NAPI, which takes the
        // generator's frames and works them off in batches.
        namespace.command("ethtool", &["-K", "lan0", "gro", "on"], "")?;
        Ok(Self {
            namespace,
            lan,
            wan,
            breakout,
        })
    }
}

/// Every router has the same addresses, so that one set of frames serves all.
pub const fn mac(link: u8, end: u8) -> [u8; 6] {
    [2, 0, 0, 0, link, end]
}

/// Links of [`mac`].
pub const LAN: u8 = 1;
const WAN: u8 = 2;
const BREAKOUT: u8 = 3;
/// Ends of [`mac`]: the router's, and the other.
pub const NEAR: u8 = 1;
pub const FAR: u8 = 2;

const PREFIX: &str = "steer-bench-";

/// Removes the namespaces of runs that were killed.
pub fn remove_stale() -> Result<()> {
    let Ok(names) = fs::read_dir("/run/netns") else {
        return Ok(());
    };
    for name in names {
        let name = name?.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(pid) = pid
            && !Path::new("/proc").join(pid).exists()
        {
            ip(&["netns", "del", &name], "")?;
        }
    }
    Ok(())
}

/// A network namespace, deleted when dropped.
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name], "")?;
        let handle = File::open(Path::new("/run/netns").join(name))
            .with_context(|| format!("cannot open the namespace {name}"))?;
        let namespace = Self {
            name: name.into(),
            handle,
        };
        // The harness sends nothing of its own.
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        Ok(namespace)
    }

    /// Puts this thread into the namespace until the guard is dropped.
    pub fn enter(&self) -> Result<Inside> {
        let before = File::open("/proc/thread-self/ns/net").context("no network namespaces")?;
        setns(&self.handle, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the namespace {}", self.name))?;
        Ok(Inside { before })
    }

    /// Runs a batch of `ip` commands inside.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip(&["-netns", &self.name, "-batch", "-"], batch)
    }

    /// Runs a program inside; `input` goes to its standard input.
    pub fn command(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let _inside = self.enter()?;
        command(program, args, input)
    }

    /// Writes a kernel parameter, by its path below `/proc/sys`.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let _inside = self.enter()?;
        fs::write(Path::new("/proc/sys").join(path), value)
            .with_context(|| format!("cannot set {path} in {}", self.name))
    }

    fn index_of(&self, interface: &str) -> Result<u32> {
        let _inside = self.enter()?;
        nix::net::if_::if_nametoindex(interface)
            .with_context(|| format!("no interface {interface} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name], "") {
            eprintln!("warning: {error:#}");
        }
    }
}

/// While it lives, the thread is in another namespace.
pub struct Inside {
    before: File,
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.before, CloneFlags::CLONE_NEWNET) {
            // Every later step would act on the wrong namespace.
            eprintln!("error: cannot return to the first namespace: {error}");
            process::abort();
        }
    }
}

fn ip(args: &[&str], input: &str) -> Result<()> {
    command("ip", args, input)
}

fn command(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}", args.join(" "), said.trim());
    }
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
