//! A breakout that the router dials: the provider's access concentrator and the router's client are those
//! of Debian (`pppoe-server`, `pppd`); the router's session is the kernel's. A line that is cut ends the session at
//! both ends, and the client dials again: the interface that comes back is another one.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    lab::{Breakout, Lab},
    namespace::Namespace,
    unpacked,
};

/// By which `pppd` reaches the kernel's PPPoE. (Debian's `pppoe-server` moves packets itself.)
const PLUGIN: &str = "/etc/ppp/plugins/rp-pppoe.so";

/// Only a guard against hanging; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_mins(4);

/// What both ends say of the link. A session is over when 10 s of the other end's are missing.
const COMMON: [&str; 8] = [
    "noauth",
    "nodefaultroute",
    "+ipv6",
    "mtu 1492",
    "mru 1492",
    "lcp-echo-interval 2",
    "lcp-echo-failure 5",
    "debug",
];

/// Whether this machine has all that it needs.
pub fn is_available() -> bool {
    let kernel = Path::new("/dev/ppp").exists();
    kernel && Path::new(PLUGIN).exists() && programs().is_some()
}

fn programs() -> Option<[PathBuf; 3]> {
    let [daemon, server, mover] =
        ["pppd", "pppoe-server", "pppoe"].map(|name| unpacked::find(&format!("usr/sbin/{name}")));
    Some([daemon?, server?, mover?])
}

/// Both ends, over the lab's first link, whose ends are called `port0` now.
#[derive(Debug)]
pub struct Session {
    server: Child,
    client: Child,
    logs: [PathBuf; 2],
}

impl Session {
    /// Dials, and waits until packets can pass.
    pub fn dial(lab: &Lab) -> Result<Self> {
        let [daemon, server, mover] = programs().context("pppd and pppoe-server are missing")?;
        let breakout = lab.breakouts()[0];
        let logs = ["pppoe-server.log", "pppoe-client.log"].map(|it| lab.directory().join(it));
        let (v4, gateway4) = (
            breakout.address.0.to_string(),
            breakout.gateway.0.to_string(),
        );
        let options = lab.directory().join("pppoe-server-options");
        fs::write(&options, lines(breakout.isp_interface, &logs[0]).join("\n"))?;
        let mut server = lab.isp.command(server);
        server
            .args(["-F", "-I", "port0", "-N", "1", "-L", &gateway4, "-R", &v4])
            .arg("-O")
            .arg(&options)
            .arg("-q")
            .arg(&daemon)
            .arg("-Q")
            .arg(&mover);
        let mut client = lab.router.command(&daemon);
        client
            .args(["plugin", PLUGIN, "nic-port0", "nodetach"])
            .args(["persist", "maxfail", "0", "holdoff", "1"])
            .args(
                lines(breakout.interface, &logs[1])
                    .iter()
                    .flat_map(|line| line.split(' ')),
            );
        let session = Self {
            server: start(&mut server, &logs[0])?,
            client: start(&mut client, &logs[1])?,
            logs,
        };
        session.wait_until_up(lab)?;
        Ok(session)
    }

    /// Cuts the line, and waits until both ends have noticed.
    pub fn cut(&self, lab: &Lab) -> Result<()> {
        lab.isp.ip("link set port0 down\n")?;
        let breakout = lab.breakouts()[0];
        self.wait("the session to end at both ends", || {
            ends(lab, &breakout)
                .iter()
                .all(|(at, name)| at.interface_index(name).is_err())
        })
    }

    /// Repairs the line, and waits until the client has dialled.
    pub fn repair(&self, lab: &Lab) -> Result<()> {
        lab.isp.ip("link set port0 up\n")?;
        self.wait_until_up(lab)
    }

    /// IPv4 comes with the session; IPv6 is what DHCPv6 would bring.
    fn wait_until_up(&self, lab: &Lab) -> Result<()> {
        let breakout = lab.breakouts()[0];
        let addresses = [
            (breakout.address.0, breakout.address.1),
            (breakout.gateway.0, breakout.gateway.1),
        ];
        for ((at, name), (v4, v6)) in ends(lab, &breakout).into_iter().zip(addresses) {
            self.wait(&format!("{name} to have {v4}"), || {
                let shown = at.output("ip", &["-4", "address", "show", "dev", name, "up"]);
                shown.is_ok_and(|text| text.contains(&format!("inet {v4} peer ")))
            })?;
            at.ip(&format!("addr replace {v6}/64 dev {name} nodad\n"))?;
        }
        Ok(())
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) -> Result<()> {
        let begin = Instant::now();
        while !is_so() {
            ensure!(
                begin.elapsed() < PATIENCE,
                "waited in vain for {what}:\n{}",
                self.logs
                    .each_ref()
                    .map(|log| fs::read_to_string(log).unwrap_or_default())
                    .join("\n")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.server] {
            // Both end what they started when they are asked to.
            if let Ok(id) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            }
            let _ = child.wait();
        }
    }
}

fn ends<'lab>(lab: &'lab Lab, breakout: &Breakout) -> [(&'lab Namespace, &'static str); 2] {
    [
        (&lab.router, breakout.interface),
        (&lab.isp, breakout.isp_interface),
    ]
}

fn lines(interface: &str, log: &Path) -> Vec<String> {
    let own = [
        format!("ifname {interface}"),
        format!("logfile {}", log.display()),
    ];
    COMMON.iter().map(|&it| it.to_owned()).chain(own).collect()
}

fn start(command: &mut Command, log: &Path) -> Result<Child> {
    let said = File::options().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()
        .with_context(|| format!("start {command:?}"))
}
