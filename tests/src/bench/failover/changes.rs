//! What else than an outage happens to a breakout's link: it is made anew, its address, its gateway or
//! an Ethernet address changes. The configuration names no gateway, so steer has it from the kernel's
//! route, as with DHCP.

use std::{
    fmt, fs,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    lab::{Breakout, Lab},
    steer::{Settings, Steer},
};

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The interface is deleted and made again: another index, another Ethernet address.
    Anew,
    /// Another address of the router, as with another lease.
    Address,
    /// Another gateway; the old one is gone.
    Gateway,
    /// Another Ethernet address of the router's interface.
    Mac,
    /// Another Ethernet address of the gateway, which it announces.
    GatewayMac,
    /// Switched off and on again before steer can look, which costs it its routes.
    Blink,
    /// Another interface, address and gateway at once.
    Everything,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Anew,
        Self::Address,
        Self::Gateway,
        Self::Mac,
        Self::GatewayMac,
        Self::Blink,
        Self::Everything,
    ];
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Anew => "interface deleted and made again",
            Self::Address => "another address",
            Self::Gateway => "another gateway",
            Self::Mac => "another Ethernet address",
            Self::GatewayMac => "another Ethernet address of the gateway",
            Self::Blink => "switched off and on again",
            Self::Everything => "another interface, address and gateway",
        })
    }
}

/// The lab's first breakout with room for two routers and two gateways.
pub struct Link<'lab> {
    lab: &'lab Lab,
    breakout: Breakout,
    /// Which of two.
    address: bool,
    gateway: bool,
    macs: u8,
}

const LENGTHS: (u8, u8) = (24, 64);

impl<'lab> Link<'lab> {
    /// Gives the link its addresses.
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let breakout = lab.breakouts()[0];
        let link = Self {
            lab,
            breakout,
            address: false,
            gateway: false,
            macs: 0,
        };
        for second in [false, true] {
            let (v4, v6) = router(breakout, second);
            lab.accept_source(&breakout, format!("{v4}/32").parse()?)?;
            lab.accept_source(&breakout, format!("{v6}/128").parse()?)?;
        }
        for (namespace, name) in [
            (&lab.router, breakout.interface),
            (&lab.isp, breakout.isp_interface),
        ] {
            namespace.ip(&format!("addr flush dev {name} scope global\n"))?;
        }
        link.set_gateway()?;
        lab.router.ip(&link.router_commands())?;
        Ok(link)
    }

    /// Starts steer without a word of the gateway.
    pub fn steer(&self, health: &str) -> Result<Steer<'lab>> {
        let settings = Settings {
            health: health.to_owned(),
            ..Settings::default()
        };
        let mut steer = Steer::prepare(self.lab, &settings)?;
        let text = fs::read_to_string(steer.config())?;
        let kept = text.lines().filter(|line| !line.starts_with("gateway"));
        let kept: Vec<&str> = kept.collect();
        ensure!(kept.len() + 2 == text.lines().count(), "{text}");
        fs::write(steer.config(), kept.join("\n"))?;
        steer.run()?;
        steer.wait_until_steering(Duration::from_mins(1))?;
        Ok(steer)
    }

    /// Changes it, and returns when the router's owner's scripts would.
    pub fn change(&mut self, change: Change) -> Result<()> {
        let (lab, name) = (self.lab, self.breakout.interface);
        let old = router(self.breakout, self.address);
        match change {
            Change::Anew => {
                lab.renew_breakout(&self.breakout)?;
                self.set_gateway()?;
                lab.router.ip(&self.router_commands())
            }
            Change::Address => {
                self.address ^= true;
                lab.router.ip(&format!(
                    "addr del {}/{} dev {name}\naddr del {}/{} dev {name}\n",
                    old.0, LENGTHS.0, old.1, LENGTHS.1
                ))?;
                lab.router.ip(&self.router_commands())
            }
            Change::Gateway => {
                self.gateway ^= true;
                self.set_gateway()?;
                lab.router.ip(&self.router_commands())
            }
            Change::Mac => {
                let mac = self.next_mac();
                lab.router.ip(&format!("link set {name} address {mac}\n"))
            }
            Change::GatewayMac => {
                let mac = self.next_mac();
                let name = self.breakout.isp_interface;
                lab.isp.ip(&format!("link set {name} address {mac}\n"))
            }
            Change::Blink => lab
                .router
                .ip(&format!("link set {name} down\n{}", self.router_commands())),
            Change::Everything => {
                self.address ^= true;
                self.gateway ^= true;
                lab.renew_breakout(&self.breakout)?;
                self.set_gateway()?;
                lab.router.ip(&self.router_commands())
            }
        }
    }

    fn next_mac(&mut self) -> String {
        self.macs = self.macs.wrapping_add(1);
        format!("02:00:00:00:01:{:02x}", self.macs)
    }

    /// The provider's side: this gateway and no other.
    fn set_gateway(&self) -> Result<()> {
        let name = self.breakout.isp_interface;
        let (new, old) = (
            gateway(self.breakout, self.gateway),
            gateway(self.breakout, !self.gateway),
        );
        for key in [
            "ipv4.conf.{}.arp_notify",
            "ipv6.conf.{}.ndisc_notify",
            // The new address must not go with the old one.
            "ipv4.conf.{}.promote_secondaries",
        ] {
            let key = format!("net.{}", key.replace("{}", name));
            self.lab.isp.sysctl(&key, 1)?;
        }
        // A provider's router has been up for long: it may ask for its neighbours at once.
        self.lab
            .isp
            .sysctl(&format!("net.ipv6.conf.{name}.accept_dad"), 0)?;
        self.lab.isp.ip(&format!(
            "link set {name} up\naddr replace {}/{} dev {name}\naddr replace {}/{} dev {name} nodad\n",
            new.0, LENGTHS.0, new.1, LENGTHS.1
        ))?;
        // There may be none.
        for old in [
            format!("addr del {}/{} dev {name}\n", old.0, LENGTHS.0),
            format!("addr del {}/{} dev {name}\n", old.1, LENGTHS.1),
        ] {
            let _ = self.lab.isp.ip(&old);
        }
        Ok(())
    }

    /// The router's side, as its owner's scripts would have it: addresses, and default routes that the
    /// backbone's are preferred to.
    fn router_commands(&self) -> String {
        let name = self.breakout.interface;
        let address = router(self.breakout, self.address);
        let gateway = gateway(self.breakout, self.gateway);
        format!(
            "link set {name} up\naddr replace {}/{} dev {name}\n\
             addr replace {}/{} dev {name} nodad\n\
             route replace default via {} dev {name} metric 1000\n\
             route replace default via {} dev {name} metric 2000\n",
            address.0, LENGTHS.0, address.1, LENGTHS.1, gateway.0, gateway.1
        )
    }
}

/// The one or the other address of the router.
fn router(breakout: Breakout, second: bool) -> (Ipv4Addr, Ipv6Addr) {
    moved(breakout.address, if second { 8 } else { 0 })
}

/// The one or the other gateway.
fn gateway(breakout: Breakout, second: bool) -> (Ipv4Addr, Ipv6Addr) {
    moved(breakout.gateway, if second { 16 } else { 0 })
}

fn moved((v4, v6): (Ipv4Addr, Ipv6Addr), by: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::from_bits(v4.to_bits() + u32::from(by)),
        Ipv6Addr::from_bits(v6.to_bits() + u128::from(by)),
    )
}
