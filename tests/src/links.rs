//! Breakouts of every kind of interface: the lab's veth link becomes what carries another device,
//! which takes its name, so that everything else of the lab stays as it is.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Breakout, Lab, LabOptions},
    namespace::Namespace,
    pppoe::{self, Session},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
    traffic::probe_all,
    wan::{Conditions, Wan},
    wire::Path,
};

/// Only a guard against hanging; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_mins(4);

/// A kind of breakout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VLAN of the provider's port.
    Vlan,
    /// A bridge with the provider's port.
    Bridge,
    /// A bond with the provider's port.
    Bond,
    /// A VXLAN tunnel over the provider's port.
    Vxlan,
    /// A TUN device: IP packets without a header before them, as PPP has.
    Tun,
    /// A GRE tunnel over the provider's port: no header before the IP packets either.
    Gre,
    /// The provider's port in a VRF.
    Vrf,
    /// A PPPoE session over the provider's port, which the router dials.
    Pppoe,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Vlan,
        Self::Bridge,
        Self::Bond,
        Self::Vxlan,
        Self::Tun,
        Self::Gre,
        Self::Vrf,
        Self::Pppoe,
    ];

    /// Whether packets on it begin with the IP header.
    pub fn is_bare(self) -> bool {
        matches!(self, Self::Tun | Self::Gre | Self::Pppoe)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vlan => "VLAN",
            Self::Bridge => "bridge",
            Self::Bond => "bond",
            Self::Vxlan => "VXLAN",
            Self::Tun => "TUN",
            Self::Gre => "GRE",
            Self::Vrf => "VRF",
            Self::Pppoe => "PPPoE",
        })
    }
}

/// Keeps what was laid.
#[derive(Debug)]
pub struct Laid {
    _line: Option<Wan>,
    session: Option<Session>,
}

impl Laid {
    /// Takes the link away, in the way of its kind.
    pub fn lose(&self, lab: &Lab) -> Result<()> {
        match &self.session {
            Some(session) => session.cut(lab),
            None => lab.link_down(&lab.breakouts()[0]),
        }
    }

    /// Brings it back.
    pub fn restore(&self, lab: &Lab) -> Result<()> {
        match &self.session {
            Some(session) => session.repair(lab),
            None => lab.link_up(&lab.breakouts()[0]),
        }
    }
}

/// Makes the lab's first breakout one of that kind; `None` if this kernel has no such devices.
pub fn lay(lab: &Lab, kind: Kind) -> Result<Option<Laid>> {
    let breakout = lab.breakouts()[0];
    let Breakout {
        interface,
        isp_interface,
        ..
    } = breakout;
    let (router, isp) = (&lab.router, &lab.isp);
    if !is_available(router, kind) {
        return Ok(None);
    }
    let mut line = None;
    match kind {
        Kind::Tun => {
            router.ip(&format!("link del {interface}\n"))?;
            let ends = ((router, interface), (isp, isp_interface));
            let delay = Conditions::delay(Duration::from_millis(1));
            line = Some(Wan::start(ends.0, ends.1, delay)?);
        }
        Kind::Vrf => {
            let lines = recipe("VRF for the breakout")?.lines();
            let lines: Option<Vec<_>> = lines.map(|line| line.strip_prefix("ip ")).collect();
            let lines = lines.context("the recipe is lines of `ip`")?;
            router.ip(&(lines.join("\n") + "\n"))?;
        }
        Kind::Pppoe => {
            move_aside(router, interface)?;
            move_aside(isp, isp_interface)?;
            let session = Some(Session::dial(lab)?);
            return Ok(Some(Laid {
                _line: None,
                session,
            }));
        }
        Kind::Bridge | Kind::Bond => {
            move_aside(router, interface)?;
            let mode = if kind == Kind::Bond {
                "bond mode active-backup miimon 10"
            } else {
                "bridge"
            };
            router.ip(&format!(
                "link add {interface} type {mode}\nlink set port0 down\n\
                 link set port0 master {interface}\nlink set port0 up\n"
            ))?;
        }
        Kind::Vlan => {
            for (namespace, name) in [(router, interface), (isp, isp_interface)] {
                move_aside(namespace, name)?;
                namespace.ip(&format!("link add link port0 name {name} type vlan id 7\n"))?;
            }
        }
        Kind::Vxlan | Kind::Gre => {
            let ends = [
                (router, interface, "100.64.0.2", "100.64.0.1"),
                (isp, isp_interface, "100.64.0.1", "100.64.0.2"),
            ];
            for (namespace, name, local, remote) in ends {
                move_aside(namespace, name)?;
                let tunnel = if kind == Kind::Gre {
                    "gre"
                } else {
                    "vxlan id 7 dstport 4789"
                };
                namespace.ip(&format!(
                    "addr add {local}/30 dev port0\n\
                     link add {name} type {tunnel} local {local} remote {remote}\n"
                ))?;
            }
        }
    }
    let (v4, v6) = breakout.gateway;
    isp.ip(&format!(
        "link set {isp_interface} up\naddr replace {v4}/30 dev {isp_interface}\n\
         addr replace {v6}/64 dev {isp_interface} nodad\n"
    ))?;
    lab.link_up(&breakout)
        .with_context(|| format!("bring the {kind} up"))?;
    Ok(Some(Laid {
        _line: line,
        session: None,
    }))
}

/// What a recipe does on the router, as `docs/recipes.md` says it.
fn recipe(heading: &str) -> Result<&'static str> {
    let book = include_str!("../../docs/recipes.md");
    let commands = book
        .split_once(&format!("\n## {heading}\n"))
        .and_then(|(_, rest)| rest.split_once("```sh router\n"))
        .and_then(|(_, rest)| rest.split_once("\n```"));
    let (commands, _) = commands.with_context(|| format!("there is no recipe {heading:?}"))?;
    Ok(commands)
}

/// Gives the lab's link another name: the new device gets its own.
fn move_aside(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.ip(&format!(
        "link set {name} down\naddr flush dev {name}\nlink set {name} name port0\nlink set port0 up\n"
    ))
}

/// Tries whether the kernel makes such a device.
fn is_available(namespace: &Namespace, kind: Kind) -> bool {
    let words = match kind {
        Kind::Tun => return true,
        Kind::Pppoe => return pppoe::is_available(),
        Kind::Vlan => "link lan0 name try0 type vlan id 7",
        Kind::Bridge => "try0 type bridge",
        Kind::Bond => "try0 type bond",
        Kind::Vxlan => "try0 type vxlan id 7 dstport 4788",
        Kind::Gre => "try0 type gre local 192.0.2.99 remote 192.0.2.98",
        Kind::Vrf => "try0 type vrf table 99",
    };
    namespace
        .ip(&format!("link add {words}\nlink del try0\n"))
        .is_ok()
}

/// An office for one of these breakouts.
pub fn office(mode: Mode) -> Result<Lab> {
    Lab::start(LabOptions {
        firewall: false,
        ..mode.office()
    })
}

/// Steers over such a breakout, loses it, and has it back. False if this kernel has no such devices.
pub fn steers_over(kind: Kind, mode: Mode) -> Result<bool> {
    let lab = office(mode)?;
    let Some(laid) = lay(&lab, kind)? else {
        return Ok(false);
    };
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let mut steer = Steer::start(&lab, &settings)?;
    if kind.is_bare() {
        let text = without_gateways(&std::fs::read_to_string(steer.config())?);
        steer.stop()?;
        std::fs::write(steer.config(), text)?;
        steer.run()?;
        steer.wait_until_steering(PATIENCE)?;
    }
    wait_until_it_is(&steer, "up")?;
    assert_steered(&lab)?;

    laid.lose(&lab)?;
    wait_until_it_is(&steer, "down")?;
    for answer in probe_all(&lab.client, &flows(2, 2))? {
        ensure!(answer.site == Site::Far, "while it is down: {answer:?}");
    }
    laid.restore(&lab)?;
    wait_until_it_is(&steer, "up")?;
    // The link is back before the neighbours at both ends are.
    let started = Instant::now();
    loop {
        let answers = probe_all(&lab.client, &flows(2, 2));
        if answers.is_ok_and(|all| all.iter().all(|answer| answer.site == Site::Near)) {
            break;
        }
        let late = started.elapsed() > PATIENCE;
        ensure!(!late, "new flows do not come back:\n{}", steer.log());
    }
    assert_steered(&lab)?;
    steer.detach()?;
    Ok(true)
}

/// A configuration that names no gateway: a point-to-point device needs none, and others' is the one
/// that the kernel has a default route to.
fn without_gateways(steer: &str) -> String {
    let lines = steer.lines().filter(|line| !line.starts_with("gateway"));
    lines.collect::<Vec<_>>().join("\n")
}

fn wait_until_it_is(steer: &Steer<'_>, state: &str) -> Result<()> {
    let is = |status: &serde_json::Value| status["breakouts"][0]["state"] == state;
    steer.wait_for(&format!("the breakout is {state}"), is)?;
    Ok(())
}

fn assert_steered(lab: &Lab) -> Result<()> {
    let captures = lab.capture()?;
    let answers = probe_all(&lab.client, &flows(6, 6))?;
    let wires = captures.stop()?;
    for answer in answers {
        let taken = wires.path_of(&answer);
        ensure!(
            taken == Path::BREAKOUT && answer.site == Site::Near,
            "{} took the {taken}",
            answer.flow
        );
    }
    ensure!(wires.leaks().is_empty(), "{:?}", wires.leaks());
    Ok(())
}
