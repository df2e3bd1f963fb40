//! The routers that are measured, one namespace for each row, and the namespace of everything
//! around them.

use std::{net::Ipv4Addr, process};

use anyhow::{Result, bail};

use crate::namespace::Namespace;

/// The router's address on the breakout, which masquerading puts in place of the client's.
pub const BREAKOUT_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The breakout's next hop.
pub const BREAKOUT_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The routing table of the breakout in rows that use `ip rule`.
pub const BREAKOUT_TABLE: u32 = 100;

/// The LAN's prefix.
pub const CLIENTS: &str = "10.20.0.0/16";

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
        let namespace = namespace("far")?;
        Ok(Self { namespace })
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
        let namespace = namespace(&id.to_string())?;
        let far_name = far.namespace.name();
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
                near: namespace.interface_index(near)?,
                near_mac,
                far: far.namespace.interface_index(&far_name_of_link)?,
                far_mac,
            });
        }
        let [lan, wan, breakout] = links[..] else {
            bail!("three links were made")
        };
        namespace.sysctl("net.ipv4.ip_forward", 1)?;
        namespace.ip(&format!(
            "address add 10.20.0.1/16 dev lan0\n\
             address add 172.16.0.1/30 dev wan0\n\
             address add {BREAKOUT_ADDRESS}/30 dev brk0\n\
             neigh replace 172.16.0.2 lladdr {} dev wan0 nud permanent\n\
             neigh replace {BREAKOUT_GATEWAY} lladdr {} dev brk0 nud permanent\n\
             route add default via 172.16.0.2\n\
             route add default via {BREAKOUT_GATEWAY} table {BREAKOUT_TABLE}",
            text(wan.far_mac),
            text(breakout.far_mac),
        ))?;
        // With GRO, as a router has it, a veth device receives with NAPI, which takes the
        // generator's frames and works them off in batches.
        namespace.output("ethtool", &["-K", "lan0", "gro", "on"])?;
        Ok(Self {
            namespace,
            lan,
            wan,
            breakout,
        })
    }
}

/// A namespace that a later run removes, should this one be killed; see [`crate::lab::sweep`].
fn namespace(role: &str) -> Result<Namespace> {
    let namespace = Namespace::create(&format!("{}-{role}", prefix()))?;
    // The harness must be the only one that sends.
    for scope in ["all", "default"] {
        namespace.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), 1)?;
        namespace.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), 0)?;
    }
    Ok(namespace)
}

/// What the names of everything that this process makes begin with.
pub fn prefix() -> String {
    format!("steer-{}-bench", process::id())
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

fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
