//! Two routers, one address: keepalived on both, steer on both.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use serde_json::Value;
use steer_tests::{
    lab::Lab,
    namespace::{Namespace, execute},
    scenario::flows,
    server::Site,
    steer::{Places, binary},
    traffic::{Fleet, Flow, Protocol, probe_all, probe_each},
    unpacked,
    wire::Capture,
};

use super::{PATIENCE, book::Recipe, daemon::Daemon, office, other, wait_for};

/// One router of the pair: keepalived and steer.
struct Router<'lab> {
    namespace: &'lab Namespace,
    folder: PathBuf,
    keepalived: Daemon,
    steer: Child,
}

impl<'lab> Router<'lab> {
    fn start(lab: &Lab, namespace: &'lab Namespace, role: &str, recipe: &Recipe) -> Option<Self> {
        let program = unpacked::find("usr/sbin/keepalived")?;
        let folder = lab.directory().join(role);
        fs::create_dir(&folder).unwrap();
        let file = folder.join("keepalived.conf");
        fs::write(&file, recipe.block("/etc/keepalived/keepalived.conf")).unwrap();
        let keepalived = Daemon::start(
            namespace,
            &folder,
            "mount -t tmpfs tmpfs /run",
            &program,
            &["-n", "-l", "-P", "-f", file.to_str().unwrap()],
        );
        let places = Places {
            pins: lab.pin_directory().with_extension(role),
            directory: folder.clone(),
        };
        let config = folder.join("steer.toml");
        // The names of pins have no dots.
        let places = Places {
            pins: PathBuf::from(places.pins.display().to_string().replace('.', "-")),
            ..places
        };
        fs::write(&config, places.fill_in(recipe.steer())).unwrap();
        let log = fs::File::create(folder.join("steer.log")).unwrap();
        let mut command = namespace.command(binary().unwrap());
        command.args(["run", "--config"]).arg(&config);
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let steer = command.spawn().unwrap();
        let router = Self {
            namespace,
            folder,
            keepalived,
            steer,
        };
        router.wait_for("steering", |status| status["state"] == "steering");
        Some(router)
    }

    fn steer(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.namespace.command(binary().unwrap());
        command.args(arguments).arg("--config");
        command
            .arg(self.folder.join("steer.toml"))
            .output()
            .unwrap()
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let said = || {
            let log = fs::read_to_string(self.folder.join("steer.log"));
            log.unwrap_or_default() + &self.keepalived.log()
        };
        wait_for(what, said, || {
            let status = self.steer(&["status", "--json"]).stdout;
            serde_json::from_slice(&status).is_ok_and(|status| holds(&status))
        });
    }

    fn has_the_address(&self) -> bool {
        let shown = self.namespace.output("ip", &["-4", "-o", "addr"]).unwrap();
        ["10.20.0.1/16", "192.0.2.2/30", "10.99.0.2/30"]
            .iter()
            .all(|address| shown.contains(address))
    }
}

impl Drop for Router<'_> {
    fn drop(&mut self) {
        let _ = self.steer(&["detach", "--drain", "0"]);
        let _ = self.steer.kill();
        let _ = self.steer.wait();
    }
}

/// A second router beside the lab's, on the same three wires; the lab's own addresses go.
fn second_router(lab: &Lab) -> Namespace {
    let second = Namespace::create(&format!("{}-second", lab.prefix)).unwrap();
    second.sysctl("net.ipv4.ip_forward", 1).unwrap();
    let wires = [
        (&lab.client, "eth0", "lan0", "office"),
        (&lab.isp, "wan0", "brk0", "isp"),
        (&lab.backbone, "branch0", "bb0", "wide"),
    ];
    for (other, port, own, switch) in wires {
        let shown = other
            .output("ip", &["-4", "-o", "addr", "show", "dev", port])
            .unwrap();
        let addresses = shown.lines().map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            format!("addr add {} dev {switch}\n", words[3])
        });
        let addresses: String = addresses.collect();
        let (inside, outside) = (second.name(), other.name());
        execute(std::process::Command::new("ip").args([
            "link", "add", own, "netns", inside, "type", "veth", "peer", "name", "second0",
            "netns", outside,
        ]))
        .unwrap();
        other
            .ip(&format!(
                "addr flush dev {port}\nlink add {switch} type bridge\nlink set {port} master {switch}\n\
                 link set second0 master {switch}\nlink set second0 up\nlink set {switch} up\n{addresses}"
            ))
            .unwrap();
        second.ip(&format!("link set {own} up\n")).unwrap();
        lab.router.ip(&format!("addr flush dev {own}\n")).unwrap();
    }
    // What went with the addresses.
    lab.client
        .ip("route replace default via 10.20.0.1\n")
        .unwrap();
    lab.isp.ip("route replace blackhole 10.0.0.0/8\n").unwrap();
    lab.backbone
        .ip("route replace 10.20.0.0/16 via 10.99.0.2\n")
        .unwrap();
    lab.router.ip("addr add 10.20.0.2/16 dev lan0\n").unwrap();
    second.ip("addr add 10.20.0.3/16 dev lan0\n").unwrap();
    second
}

fn v4(flows: Vec<Flow>) -> Vec<Flow> {
    let v4 = flows.into_iter().filter(|flow| flow.destination.is_ipv4());
    v4.collect()
}

#[test]
fn the_standby_is_idle_and_steers_new_flows_as_soon_as_it_takes_over() {
    let lab = office();
    let recipe = Recipe::named("A VRRP pair");
    let second = second_router(&lab);
    let Some(mut first) = Router::start(&lab, &lab.router, "a", &recipe) else {
        return;
    };
    wait_for(
        "the first router's address",
        || first.keepalived.log(),
        || first.has_the_address(),
    );
    first.wait_for("the first breakout", |status| {
        status["breakouts"][0]["state"] == "up"
    });
    let standby = Router::start(&lab, &second, "b", &recipe).unwrap();
    standby.wait_for("the idle breakout", |status| {
        status["breakouts"][0]["state"] == "down"
    });

    let idle = Capture::start(&lab.isp, "second0").unwrap();
    let period = Duration::from_millis(200);
    let steered = Fleet::open(&lab.client, &v4(flows(4, 4)), period).unwrap();
    steered.wait_for_answers(PATIENCE).unwrap();
    let others = Fleet::open(&lab.client, &[other(), other()], period).unwrap();
    others.wait_for_answers(PATIENCE).unwrap();
    for record in steered.records() {
        assert_eq!(record.sites, [Site::Near], "{record:?}");
    }
    let from_standby = idle
        .packets()
        .iter()
        .filter(|it| it.from_router && matches!(it.protocol, 6 | 17) && it.source.is_ipv4())
        .count();
    assert_eq!(
        from_standby, 0,
        "the standby sent something to the provider"
    );

    // The first router dies as a whole: nothing of it answers any more.
    first.keepalived.kill();
    lab.router
        .ip("link set lan0 down\nlink set brk0 down\nlink set bb0 down\n")
        .unwrap();
    wait_for(
        "the take-over",
        || standby.keepalived.log(),
        || standby.has_the_address(),
    );
    standby.wait_for("the standby's breakout", |status| {
        status["breakouts"][0]["state"] == "up"
    });
    // New flows: as soon as the switches and neighbours know the new place.
    let flow = v4(flows(2, 0))[0];
    wait_for(
        "a new flow",
        || standby.keepalived.log(),
        || {
            probe_each(&lab.client, &[flow])[0]
                .as_ref()
                .is_ok_and(|answer| answer.site == Site::Near)
        },
    );
    let answers = probe_all(&lab.client, &v4(flows(6, 6))).unwrap();
    for answer in answers {
        assert_eq!(answer.site, Site::Near, "{}", answer.flow);
        assert_eq!(answer.seen_source.ip(), IpAddr::from([192, 0, 2, 2]));
    }
    // Flows that began before: what was not translated goes on; translated TCP ends with a reset;
    // UDP goes on, by the backbone if it spoke before the standby's breakout was up.
    others.wait_for_answers(PATIENCE).unwrap();
    wait_for(
        "the resets",
        || format!("{:?}", steered.records()),
        || {
            let tcp = |it: &steer_tests::traffic::Record| it.flow.protocol == Protocol::Tcp;
            steered
                .records()
                .iter()
                .filter(|it| tcp(it))
                .all(|it| it.broken.is_some())
        },
    );
    assert_eq!(steered.wait_for_silent(PATIENCE).len(), 0);
    for record in steered.stop() {
        let expected = record.flow.protocol == Protocol::Udp;
        assert_eq!(record.broken.is_none(), expected, "{record:?}");
        assert_eq!(record.sites[0], Site::Near, "{record:?}");
    }
    for record in others.stop() {
        assert!(!record.was_moved(), "{record:?}");
    }
    let wire = idle.stop().unwrap();
    let invalid = wire.iter().filter(|it| {
        it.from_router && it.source.is_ipv4() && it.source.ip() != IpAddr::from([192, 0, 2, 2])
    });
    assert_eq!(invalid.count(), 0);
}
