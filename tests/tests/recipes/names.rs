//! Resolvers of the office beside steer, which takes the clients' queries for names of the plan to the
//! provider's: each with the real daemon.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path as File,
    time::Duration,
};

use steer_tests::{
    lab::Lab,
    server::Site,
    steer::Steer,
    traffic::{Flow, probe_all},
    unpacked,
    wire::Path,
};

use super::{PATIENCE, book::Recipe, daemon::Daemon, office, resolver::dnsmasq, wait_for};

const ROUTER: &str = "10.20.0.1";
/// What the provider's resolver says to everything, and headquarters'.
const NEAR: [u8; 4] = [52, 96, 1, 1];
const FAR: [u8; 4] = [40, 96, 1, 1];
const A: u8 = 1;
const SRV: u8 = 33;

/// The answer of a server to a client's question, if it is a good one.
fn ask(lab: &Lab, server: &str, name: &str, kind: u8) -> Option<Vec<u8>> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.extend([0, 0, kind, 0, 1]);
    let server: IpAddr = server.parse().unwrap();
    let answer = lab.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(SocketAddr::new(server, 53))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(&question)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(answer[..length].to_vec())
    });
    let answer = answer.ok()?;
    // No failure, and one answer or more.
    let rcode = answer[3] & 0x0f;
    (rcode == 0 && answer[7] > 0).then_some(answer)
}

/// Waits for the only address that a server says.
fn address(lab: &Lab, server: &str, name: &str, log: impl Fn() -> String) -> [u8; 4] {
    let mut answer = None;
    wait_for(name, log, || {
        answer = ask(lab, server, name, A);
        answer.is_some()
    });
    let answer = answer.unwrap();
    answer[answer.len() - 4..].try_into().unwrap()
}

/// Resolvers at the provider and at headquarters.
struct Others {
    near: Daemon,
    far: Daemon,
}

impl Others {
    fn start(lab: &Lab) -> Option<Self> {
        let only = "--conf-file=/dev/null";
        // Beside the domain controller's.
        let (at, alone) = ("--listen-address=10.99.2.1", "--bind-interfaces");
        lab.isp.ip("addr add 192.0.2.53/32 dev lo\n").unwrap();
        Some(Self {
            near: dnsmasq(lab, &lab.isp, "isp", &[only, "--address=/#/52.96.1.1"])?,
            far: dnsmasq(
                lab,
                &lab.hq,
                "hq",
                &[only, at, alone, "--address=/#/40.96.1.1"],
            )?,
        })
    }
}

/// Before steer the router's resolver says what headquarters says; with it names of the plan get the
/// near answer, whose flows leave by the breakout, and others what they got; after it all is as it was.
fn queries_for_the_plan_leave_by_the_breakout(lab: &Lab, recipe: &Recipe, own: &Daemon) {
    let log = || own.log();
    let say = |name| address(lab, ROUTER, name, log);
    assert_eq!(say("before.sharepoint.com"), FAR);
    assert_eq!(say("intranet.corp.example"), FAR);
    let mut steer = Steer::start_with(lab, recipe.steer()).unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    let captures = lab.capture().unwrap();
    // The one that the resolver has in its cache, too.
    for name in ["before.sharepoint.com", "outlook.office365.com"] {
        assert_eq!(say(name), NEAR, "{name}: {}", steer.log());
    }
    assert_eq!(say("www.corp.example"), FAR);
    let flow = Flow::tcp(IpAddr::from(NEAR), 443);
    let answers = probe_all(&lab.client, &[flow]).unwrap();
    let wires = captures.stop().unwrap();
    assert_eq!(wires.path_of(&answers[0]), Path::BREAKOUT);
    assert_eq!(answers[0].site, Site::Near);
    let asked = wires.breakout().outbound();
    let asked = asked.filter(|it| it.destination.port() == 53);
    assert_eq!(asked.count(), 2, "one for each name");
    assert_eq!(wires.leaks(), []);
    steer.detach().unwrap();
    assert_eq!(say("after.sharepoint.com"), FAR);
}

/// Starts unbound with a configuration, its folders in `folder`.
fn unbound(lab: &Lab, at_router: bool, folder: &File, text: &str) -> Option<Daemon> {
    let program = unpacked::find("usr/sbin/unbound")?;
    fs::create_dir(folder).unwrap();
    let file = folder.join("unbound.conf");
    // What Debian's own files say in another way: where things are, and no DNSSEC here.
    let around = format!(
        "server:\n username: \"\"\n chroot: \"\"\n directory: \"{here}\"\n pidfile: \"\"\n\
         use-syslog: no\n module-config: \"iterator\"\n num-threads: 1\n outgoing-range: 16\n{text}",
        here = folder.display()
    );
    fs::write(&file, around).unwrap();
    let namespace = if at_router { &lab.router } else { &lab.hq };
    let arguments = ["-d", "-c", file.to_str().unwrap()];
    Some(Daemon::start(namespace, folder, "", &program, &arguments))
}

#[test]
fn beside_unbound() {
    let lab = office();
    let recipe = Recipe::named("steer beside unbound on the router");
    let text = recipe.block("/etc/unbound/unbound.conf.d/office.conf");
    let folder = lab.directory().join("unbound");
    let (Some(_others), Some(own)) = (Others::start(&lab), unbound(&lab, true, &folder, text))
    else {
        return;
    };
    queries_for_the_plan_leave_by_the_breakout(&lab, &recipe, &own);
}

/// Debian's systemd-resolved with folders and accounts of its own, without a bus.
fn resolved(lab: &Lab, text: &str) -> Option<Daemon> {
    let places = [
        "lib/systemd/systemd-resolved",
        "usr/lib/systemd/systemd-resolved",
    ];
    let program = places.iter().find_map(|it| unpacked::find(it))?;
    let folder = lab.directory().join("resolved");
    let etc = folder.join("etc");
    fs::create_dir_all(etc.join("resolved.conf.d")).unwrap();
    fs::write(etc.join("resolved.conf.d/office.conf"), text).unwrap();
    let prepare = format!(
        "for file in passwd group; do
             grep -v ^systemd-resolve: /etc/$file > {folder}/$file
         done
         echo systemd-resolve:x:992:992::/:/usr/sbin/nologin >> {folder}/passwd
         echo systemd-resolve:x:992: >> {folder}/group
         for file in passwd group; do mount --bind {folder}/$file /etc/$file; done
         mount --bind {etc} /etc/systemd
         mount -t tmpfs tmpfs /run
         mkdir -p /run/systemd/resolve; chown 992:992 /run/systemd/resolve
         export SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=debug",
        folder = folder.display(),
        etc = etc.display()
    );
    let daemon = Daemon::start(&lab.router, &folder, &prepare, &program, &[]);
    Some(daemon)
}

#[test]
fn beside_systemd_resolved() {
    let lab = office();
    let recipe = Recipe::named("steer beside systemd-resolved on the router");
    let text = recipe.block("/etc/systemd/resolved.conf.d/office.conf");
    let (Some(_others), Some(own)) = (Others::start(&lab), resolved(&lab, text)) else {
        return;
    };
    queries_for_the_plan_leave_by_the_breakout(&lab, &recipe, &own);
    let said = own.log();
    assert!(!said.contains("Unknown key"), "{said}");
}

/// What a domain controller's DNS knows: its own records and a split-brain name.
const DIRECTORY: &str = " interface: 10.99.2.53
 access-control: 0.0.0.0/0 allow
 local-zone: \"corp.example.\" static
 local-data: \"_ldap._tcp.dc._msdcs.corp.example. 600 IN SRV 0 100 389 dc1.corp.example.\"
 local-data: \"dc1.corp.example. 600 IN A 10.99.2.53\"
 local-zone: \"portal.sharepoint.com.\" static
 local-data: \"portal.sharepoint.com. 600 IN A 10.99.2.80\"
forward-zone:
 name: \".\"
 forward-addr: 10.99.2.1
";

#[test]
fn beside_a_directory() {
    let lab = office();
    let recipe = Recipe::named("Active Directory");
    let file = lab.directory().join("directory.conf");
    fs::write(&file, recipe.block("/etc/dnsmasq.d/directory.conf")).unwrap();
    let file = format!("--conf-file={}", file.display());
    lab.hq.ip("addr add 10.99.2.53/32 dev lo\n").unwrap();
    let controller = unbound(&lab, false, &lab.directory().join("dc"), DIRECTORY);
    let own = dnsmasq(&lab, &lab.router, "own", &[&file]);
    let (Some(others), Some(controller), Some(own)) = (Others::start(&lab), controller, own) else {
        return;
    };
    let log = || own.log() + &controller.log();
    let mut steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    let members = ["_ldap._tcp.dc._msdcs.corp.example", "dc1.corp.example"];
    for server in [ROUTER, "10.99.2.53"] {
        let say = |name| address(&lab, server, name, log);
        assert_eq!(say("dc1.corp.example"), [10, 99, 2, 53], "{server}");
        let answer = ask(&lab, server, members[0], SRV).unwrap();
        assert!(answer.windows(4).any(|it| it == b"\x03dc1"), "{server}");
        assert_eq!(say("portal.sharepoint.com"), [10, 99, 2, 80], "{server}");
        assert_eq!(say("www.example.com"), FAR, "{server}");
        assert_eq!(say("team.sharepoint.com"), NEAR, "{server}");
    }
    // Nothing of the directory was asked outside, and nothing of the plan inside.
    let near = others.near.log();
    assert!(near.contains("query[A] team.sharepoint.com"), "{near}");
    assert!(
        !near.contains("corp.example") && !near.contains("portal"),
        "{near}"
    );
    assert!(!others.far.log().contains("team.sharepoint.com"));
    steer.detach().unwrap();
}
