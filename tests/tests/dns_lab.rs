//! Names in a whole office: headquarters and the provider give different answers; what clients get,
//! and where their flows leave, is judged on the wire. The resolvers are real dnsmasqs.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use steer_tests::{
    lab::{Lab, LabOptions},
    namespace::Namespace,
    steer::{Settings, Steer},
    traffic::{Flow, probe_all},
    unpacked,
    wire::Path,
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
/// The resolver at headquarters, which clients ask, and the provider's.
const HEADQUARTERS: [&str; 2] = ["93.184.216.53", "2606:4700::53"];
const PROVIDER: [&str; 2] = ["192.0.2.53", "2001:db8:53::53"];
/// What they answer to every name: addresses that no set of Microsoft's publishes.
const FAR: [&str; 2] = ["23.1.1.1", "2a02:26f0::f"];
const NEAR: [&str; 2] = ["23.2.2.2", "2a02:26f0::a"];

struct Resolver(Child);

impl Resolver {
    fn start(lab: &Lab, namespace: &Namespace, role: &str, answers: [&str; 2]) -> Option<Self> {
        let Some(program) = dnsmasq() else {
            eprintln!("skipped: there is no dnsmasq");
            return None;
        };
        let folder = lab.directory().join(role);
        fs::create_dir(&folder).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = namespace
            .command(program)
            .env("LD_LIBRARY_PATH", unpacked::libraries())
            .args(["--keep-in-foreground", "--user=root", "--no-resolv"])
            .args(["--no-hosts", "--conf-file=/dev/null", "--log-facility=-"])
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .args(answers.map(|it| format!("--address=/#/{it}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self(child))
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dnsmasq() -> Option<PathBuf> {
    unpacked::find("usr/sbin/dnsmasq")
}

/// An office with both resolvers; none where there is no dnsmasq.
fn office() -> Option<(Lab, [Resolver; 2])> {
    let lab = Lab::start(LabOptions::default()).unwrap();
    for (namespace, [v4, v6]) in [(&lab.hq, HEADQUARTERS), (&lab.isp, PROVIDER)] {
        let lines = format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n");
        namespace.ip(&lines).unwrap();
    }
    let far = Resolver::start(&lab, &lab.hq, "far", FAR)?;
    let near = Resolver::start(&lab, &lab.isp, "near", NEAR)?;
    for (namespace, servers) in [(&lab.client, HEADQUARTERS), (&lab.isp, PROVIDER)] {
        for server in servers {
            wait_for("resolver", || ask(namespace, server, "a.example").is_some());
        }
    }
    Some((lab, [far, near]))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "no {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Asks as a resolver library does, again if there is no answer: for A over IPv4, for AAAA over
/// IPv6, with EDNS.
fn ask(client: &Namespace, server: &str, name: &str) -> Option<IpAddr> {
    let server: IpAddr = server.parse().unwrap();
    let v6 = server.is_ipv6();
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, if v6 { 28 } else { 1 }, 0, 1]);
    let end = query.len();
    query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    let answer = client.run(|| {
        let local: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse()?;
        let socket = UdpSocket::bind(local)?;
        // An answer from anybody else is not heard.
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut answer = vec![0; 1232];
        for _ in 0..2 {
            let received = socket.send(&query).and_then(|_| socket.recv(&mut answer));
            if let Ok(length) = received {
                answer.truncate(length);
                return Ok(answer);
            }
        }
        anyhow::bail!("no answer")
    });
    let answer = answer.ok()?;
    assert_eq!(answer[..2], query[..2]);
    // The first answer: a pointer, type, class, TTL, length, address.
    let data = answer.get(end + 12..)?;
    match (answer[7] > 0, v6) {
        (false, _) => None,
        (true, false) => Some(<[u8; 4]>::try_from(data.get(..4)?).unwrap().into()),
        (true, true) => Some(<[u8; 16]>::try_from(data.get(..16)?).unwrap().into()),
    }
}

/// Starts steer with the provider's resolvers.
fn start(lab: &Lab) -> Steer<'_> {
    let more = "[select]\ncategories = [\"optimize\", \"allow\", \"default\"]\n\
                [dns]\nexclude = [\"left.sharepoint.com\"]\n";
    let settings = Settings {
        more: more.into(),
        ..Settings::default()
    };
    let mut steer = Steer::prepare(lab, &settings).unwrap();
    let text = fs::read_to_string(steer.config()).unwrap();
    let resolvers = format!("[[breakout]]\nresolvers = {PROVIDER:?}\n");
    fs::write(steer.config(), text.replace("[[breakout]]\n", &resolvers)).unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    steer
}

fn asked(lab: &Lab, name: &str) -> [Option<IpAddr>; 2] {
    HEADQUARTERS.map(|server| ask(&lab.client, server, name))
}

fn of(answers: [&str; 2]) -> [Option<IpAddr>; 2] {
    answers.map(|it| Some(it.parse().unwrap()))
}

#[test]
fn names_of_the_plan_get_the_near_answer_and_the_first_packet_to_it_leaves_near() {
    let Some((lab, _resolvers)) = office() else {
        return;
    };
    assert_eq!(asked(&lab, "outlook.office.com"), of(FAR));
    let steer = start(&lab);
    let captures = lab.capture().unwrap();
    for name in [
        "outlook.office.com",
        "OutLook.Office.com",
        "contoso.sharepoint.com",
    ] {
        assert_eq!(asked(&lab, name), of(NEAR), "{name}: {}", steer.log());
    }
    for name in [
        "www.example.com",
        "left.sharepoint.com",
        "office.com.example",
    ] {
        assert_eq!(asked(&lab, name), of(FAR), "{name}");
    }
    // What was answered for names outside the plan is shared, what is near is not.
    // A name of a set without prefixes: its addresses are steered from the first packet on.
    assert_eq!(asked(&lab, "one.msftauth.net"), of(NEAR), "{}", steer.log());
    let flows = NEAR.map(|it| Flow::tcp(it.parse().unwrap(), 443));
    let answers = probe_all(&lab.client, &flows).unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
    let status = steer.status().unwrap();
    assert_eq!(status["dns"]["learned"], 2, "{status}");
    steer.detach().unwrap();
    assert_eq!(asked(&lab, "outlook.office.com"), of(FAR));
}

#[test]
fn every_name_resolves_while_the_near_resolver_is_dead_and_no_controller_runs() {
    let Some((lab, [_far, near])) = office() else {
        return;
    };
    let mut steer = start(&lab);
    assert_eq!(
        asked(&lab, "outlook.office.com"),
        of(NEAR),
        "{}",
        steer.log()
    );
    drop(near);
    for number in 0..3 {
        assert_eq!(asked(&lab, &format!("n{number}.sharepoint.com")), of(FAR));
    }
    steer.kill().unwrap();
    for number in 3..6 {
        assert_eq!(asked(&lab, &format!("n{number}.sharepoint.com")), of(FAR));
    }
    let _near = Resolver::start(&lab, &lab.isp, "again", NEAR).unwrap();
    let mut number = 0;
    wait_for("near answer again", || {
        number += 1;
        asked(&lab, &format!("m{number}.sharepoint.com")) == of(NEAR)
    });
    steer.run().unwrap();
    steer.wait_until_steering(PATIENCE).unwrap();
    assert_eq!(asked(&lab, "teams.sharepoint.com"), of(NEAR));
    steer.detach().unwrap();
}

#[test]
fn queries_follow_when_the_breakout_dies() {
    let Some((lab, _resolvers)) = office() else {
        return;
    };
    let steer = start(&lab);
    assert_eq!(
        asked(&lab, "outlook.office.com"),
        of(NEAR),
        "{}",
        steer.log()
    );
    lab.link_down(&lab.breakouts()[0]).unwrap();
    wait_for("answer of headquarters", || {
        asked(&lab, "outlook.office.com") == of(FAR)
    });
    steer.detach().unwrap();
}
