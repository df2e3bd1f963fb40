//! systemd-networkd in the router: Debian's own, with folders of its own, without a bus or udev.

use std::fs;

use steer_tests::{lab::Lab, residue::Snapshot, steer::Steer, unpacked};

use super::{assert_steered, book::Recipe, daemon::Daemon, office, wait_for};

/// A router's networkd.
struct Networkd {
    daemon: Daemon,
}

impl Networkd {
    /// Starts it with these files below `/etc/systemd`.
    fn start(lab: &Lab, files: &[(&str, &str)]) -> Option<Self> {
        let program = [
            "usr/lib/systemd/systemd-networkd",
            "lib/systemd/systemd-networkd",
        ]
        .iter()
        .find_map(|place| unpacked::find(place))?;
        let folder = lab.directory().join("networkd");
        let etc = folder.join("etc");
        for (name, text) in files {
            let file = etc.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        // A read-only /sys says that there is no udev; links are taken as they are.
        let prepare = format!(
            "mount --bind {} /etc/systemd
             mount -t tmpfs tmpfs /run
             mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
             chown -R systemd-network: /run/systemd/netif
             mount -t sysfs -o ro sysfs /sys
             export SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=debug",
            etc.display()
        );
        let daemon = Daemon::start(&lab.router, &folder, &prepare, &program, &[]);
        Some(Self { daemon })
    }

    /// Waits until it has configured an interface.
    fn wait_until_configured(&self, lab: &Lab, interface: &str) {
        let configured = format!("{interface}: State changed: configuring -> configured");
        wait_for(
            "networkd",
            || {
                let rules = lab.router.output("ip", &["rule"]).unwrap();
                format!("{}\n{rules}", self.daemon.log())
            },
            || self.daemon.log().contains(&configured),
        );
    }
}

#[test]
fn networkd_routes_what_steer_grants() {
    let lab = office();
    let recipe = Recipe::named("systemd-networkd routes");
    lab.router.ip("addr flush dev brk0 scope global").unwrap();
    let file = "network/50-brk0.network";
    let text = recipe.block("/etc/systemd/network/50-brk0.network");
    let Some(networkd) = Networkd::start(&lab, &[(file, text)]) else {
        return;
    };
    networkd.wait_until_configured(&lab, "brk0");
    recipe.run_on_router(&lab);
    let before = Snapshot::take(&lab).unwrap();
    let steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    assert_steered(&lab);
    steer.detach().unwrap();
    assert_eq!(before.difference(&Snapshot::take(&lab).unwrap()), "");
}

/// Which of steer's rules and routes are there.
fn own_routing(lab: &Lab) -> Vec<String> {
    let mut own = Vec::new();
    for family in ["-4", "-6"] {
        let rules = lab.router.output("ip", &[family, "rule"]).unwrap();
        let ours = rules.lines().filter(|line| line.ends_with("proto 86"));
        own.extend(ours.map(str::to_owned));
        let arguments = [family, "route", "show", "table", "all", "proto", "86"];
        let routes = lab.router.output("ip", &arguments).unwrap();
        own.extend(routes.lines().map(str::to_owned));
    }
    own
}

#[test]
fn networkd_starts_again_and_leaves_steers_rules_and_routes_alone() {
    let lab = office();
    lab.router.ip("addr flush dev brk0 scope global").unwrap();
    let recipe = Recipe::named("systemd-networkd beside steer");
    let link = (
        "network/50-brk0.network",
        recipe.block("/etc/systemd/network/50-brk0.network"),
    );
    let drop_in = "networkd.conf.d/steer.conf";
    let told = (
        drop_in,
        recipe.block("/etc/systemd/networkd.conf.d/steer.conf"),
    );
    let start = |files: &[(&str, &str)]| {
        let networkd = Networkd::start(&lab, files)?;
        networkd.wait_until_configured(&lab, "brk0");
        Some(networkd)
    };
    let Some(networkd) = start(&[link, told]) else {
        return;
    };
    let mut steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    assert_steered(&lab);
    // Nobody puts anything back.
    steer.kill().unwrap();
    let before = own_routing(&lab);
    drop(networkd);
    let networkd = start(&[link, told]).unwrap();
    assert_eq!(own_routing(&lab), before);
    assert_steered(&lab);
    // It has understood every line.
    let said = networkd.daemon.log();
    assert!(!said.contains("Unknown"), "{said}");
    drop(networkd);
    steer.detach().unwrap();
}
