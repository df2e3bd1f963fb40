//! A provider that delegates an IPv6 prefix, and the router's client for it: Debian's `dhcp6s` and `dhcpcd`,
//! each with folders of its own for what it keeps.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::Ipv6Addr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{lab::Lab, namespace::Namespace, unpacked};

/// By which the provider knows the office.
const DUID: &str = "00:03:00:01:02:00:00:00:00:07";

/// A daemon that ends with this.
#[derive(Debug)]
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

/// Both ends, on the lab's first link. The client puts its part of the prefix on `lan0`.
#[derive(Debug)]
pub struct Delegation {
    // The client first: what it gives back is answered.
    _client: Daemon,
    server: Option<Daemon>,
    program: PathBuf,
}

impl Delegation {
    /// Starts both; `None`, and a line that says so, where this machine has not both.
    pub fn start(lab: &Lab, prefix: Ipv6Addr) -> Result<Option<Self>> {
        let [server, client] = ["usr/sbin/dhcp6s", "usr/sbin/dhcpcd"].map(unpacked::find);
        let (Some(program), Some(client)) = (server, client) else {
            return Ok(None);
        };
        let link = lab.breakouts()[0].interface;
        let config = lab.directory().join("dhcpcd.conf");
        let mut text = format!("duid {DUID}\nipv6only\nnoipv6rs\nscript /bin/true\n");
        write!(
            text,
            "allowinterfaces {link}\ninterface {link}\n  iaid 1\n  ia_pd 1 lan0/1/64\n"
        )?;
        fs::write(&config, text)?;
        let server = serve(lab, &program, prefix)?;
        let words = ["-B", "-d", "-f", &config.display().to_string(), link].map(str::to_owned);
        let client = start(lab, &lab.router, &client, &words)?;
        Ok(Some(Self {
            _client: client,
            server: Some(server),
            program,
        }))
    }

    /// From now on the provider delegates another prefix. The client hears of it when it renews.
    pub fn delegate(&mut self, lab: &Lab, prefix: Ipv6Addr) -> Result<()> {
        // One at a time has the port.
        self.server = None;
        self.server = Some(serve(lab, &self.program, prefix)?);
        Ok(())
    }
}

/// The office's prefix is to be used for 10 s, so that it is renewed every 5 s.
fn serve(lab: &Lab, program: &Path, prefix: Ipv6Addr) -> Result<Daemon> {
    let config = lab.directory().join("dhcp6s.conf");
    fs::write(
        &config,
        format!("host office {{ duid {DUID}; prefix {prefix}/48 10 3600; }};\n"),
    )?;
    let pid = lab.directory().join("dhcp6s.pid");
    let words = [
        "-f",
        "-D",
        "-c",
        &config.display().to_string(),
        "-P",
        &pid.display().to_string(),
        lab.breakouts()[0].isp_interface,
    ];
    start(lab, &lab.isp, program, &words.map(str::to_owned))
}

/// Starts a daemon that finds its folders empty, whatever the machine has in them.
fn start(lab: &Lab, at: &Namespace, program: &Path, words: &[String]) -> Result<Daemon> {
    const FOLDERS: &str = "mount -t tmpfs none /var/lib && mount -t tmpfs none /run && \
                           mkdir /var/lib/dhcpcd /var/lib/dhcpv6 && exec \"$@\"";
    let name = program.file_name().context("the daemon has no name")?;
    let log = lab.directory().join(name).with_extension("log");
    let said = File::options().create(true).append(true).open(log)?;
    let child = at
        .command("unshare")
        .args(["--mount", "sh", "-c", FOLDERS, "sh"])
        .arg(program)
        .args(words)
        .env("LD_LIBRARY_PATH", unpacked::libraries())
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(Daemon(child))
}
