//! dnsmasq on the router, which asks each name where its traffic leaves.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use steer_tests::{
    lab::Lab,
    namespace::Namespace,
    server::Site,
    steer::Steer,
    traffic::{Flow, probe_all},
    unpacked,
    wire::Path,
};

use super::{book::Recipe, daemon::Daemon, office, wait_for};

/// What a resolver at 10.20.0.1 answers to a question for a name's IPv4 address.
fn ask(client: &Namespace, name: &str) -> Option<Ipv4Addr> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let answer = client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&question, SocketAddr::from(([10, 20, 0, 1], 53)))?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(answer[..length].to_vec())
    });
    let answer = answer.ok()?;
    // One answer, whose last four bytes are the address.
    let address: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
    (answer[7] == 1).then(|| address.into())
}

pub(super) fn dnsmasq(
    lab: &Lab,
    namespace: &Namespace,
    role: &str,
    arguments: &[&str],
) -> Option<Daemon> {
    let program = unpacked::find("usr/sbin/dnsmasq")?;
    let folder = lab.directory().join(role);
    fs::create_dir(&folder).unwrap();
    let pid = format!("--pid-file={}", folder.join("pid").display());
    let all = [
        &[
            "--keep-in-foreground",
            "--user=root",
            "--log-facility=-",
            "--log-queries",
            "--no-resolv",
            &pid,
        ],
        arguments,
    ]
    .concat();
    Some(Daemon::start(namespace, &folder, "", &program, &all))
}

#[test]
fn names_of_microsoft_are_asked_over_the_breakout_and_others_at_headquarters() {
    let lab = office();
    let recipe = Recipe::named("The router is the resolver");
    let file = lab.directory().join("microsoft365.conf");
    fs::write(&file, recipe.block("/etc/dnsmasq.d/microsoft365.conf")).unwrap();
    let file = format!("--conf-file={}", file.display());
    let only = "--conf-file=/dev/null";
    // The provider's resolver knows the near front door; headquarters' another one.
    let near = dnsmasq(&lab, &lab.isp, "isp", &[only, "--address=/#/52.96.1.1"]);
    let far = dnsmasq(&lab, &lab.hq, "hq", &[only, "--address=/#/40.96.1.1"]);
    lab.isp.ip("addr add 192.0.2.53/32 dev lo\n").unwrap();
    let own = dnsmasq(&lab, &lab.router, "own", &[&file]);
    let (Some(_near), Some(_far), Some(own)) = (near, far, own) else {
        return;
    };
    let steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    let captures = lab.capture().unwrap();
    let mut answer = None;
    wait_for(
        "the provider's answer",
        || own.log(),
        || {
            answer = ask(&lab.client, "outlook.office365.com");
            answer.is_some()
        },
    );
    assert_eq!(answer, Some([52, 96, 1, 1].into()));
    wait_for(
        "headquarters' answer",
        || own.log(),
        || {
            answer = ask(&lab.client, "intranet.example");
            answer.is_some()
        },
    );
    assert_eq!(answer, Some([40, 96, 1, 1].into()));
    let flow = Flow::tcp(IpAddr::from([52, 96, 1, 1]), 443);
    let answers = probe_all(&lab.client, &[flow]).unwrap();
    let wires = captures.stop().unwrap();
    assert_eq!(wires.path_of(&answers[0]), Path::BREAKOUT);
    assert_eq!(answers[0].site, Site::Near);
    let asked: Vec<_> = wires
        .breakout()
        .outbound()
        .filter(|packet| packet.destination.port() == 53)
        .collect();
    assert!(!asked.is_empty(), "no question left by the breakout");
    assert_eq!(wires.leaks(), []);
    steer.detach().unwrap();
}
