//! The other ways in which the programs are attached: as filters of a clsact qdisc, where the kernel
//! has no TCX, and in redirect mode.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use steer_tests::{
    lab::{Lab, LabOptions, LanKind},
    residue::Snapshot,
    steer::{Mode, Settings},
    traffic::{Flow, probe_all},
    wire::{Path, Wire},
};

use super::{
    FAR, HEADQUARTERS, Kind, Knowledge, NEAR, Office, PROVIDER, Question, SELECT, Software, of,
    start_as, wait_for,
};

/// The filters of steer at a hook of the LAN, by their program.
fn filters(lab: &Lab, hook: &str) -> Vec<String> {
    let text = lab
        .router
        .output("tc", &["filter", "show", "dev", "lan0", hook])
        .unwrap();
    let ours = ["lan_ingress", "dns_query", "dns_answer"];
    let of = |line: &str| {
        ours.into_iter()
            .find(|it| line.contains(&format!(" {it} ")))
    };
    text.lines().filter_map(of).map(str::to_owned).collect()
}

#[test]
fn without_tcx_filters_steer_queries_the_next_controller_takes_them_over_and_detach_removes_them() {
    let near = Knowledge::every(NEAR);
    let Some(office) = Office::start(Software::Dnsmasq, Software::Unbound, &near) else {
        return;
    };
    let lab = &office.lab;
    let before = Snapshot::take(lab).unwrap();
    let settings = Settings {
        more: SELECT.into(),
        // steer takes this kernel for Linux 2.6, which has no TCX.
        under: vec!["setarch".into(), "--uname-2.6".into()],
        ..Settings::default()
    };
    let mut steer = start_as(lab, &PROVIDER, &settings);
    let attached = || (filters(lab, "ingress"), filters(lab, "egress"));
    let all = (
        vec!["lan_ingress".to_owned(), "dns_query".to_owned()],
        vec!["dns_answer".to_owned()],
    );
    assert_eq!(attached(), all, "{}", steer.log());
    let near = |number: u32, log: &str| {
        let name = format!("n{number}.sharepoint.com");
        assert_eq!(office.asked(&name), of(NEAR), "{number}: {log}");
        assert_eq!(office.asked("www.example.com"), of(FAR), "{number}");
    };
    near(0, &steer.log());
    steer.kill().unwrap();
    near(1, &steer.log());
    // No query finds a gap while one controller's programs take the place of another's.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                let name = format!("while{asked}.sharepoint.com");
                let question = Question::new(&name, Kind::A);
                let reply = question.ask(&lab.client, HEADQUARTERS[0]).unwrap();
                assert_eq!(reply.addresses, of(NEAR)[0], "{asked}");
                asked += 1;
                // Of one client only 1,024 queries a second are remembered.
                thread::sleep(Duration::from_millis(3));
            }
            asked
        });
        steer.run().unwrap();
        let steers = steer.wait_until_steering(super::PATIENCE);
        over.store(true, Ordering::Relaxed);
        steers.unwrap();
        assert!(client.join().unwrap() > 0);
    });
    assert_eq!(attached(), all);
    for program in &all.0[1..].iter().chain(&all.1).collect::<Vec<_>>() {
        let said = format!("{program}, in place of the one that was there");
        assert!(steer.log().contains(&said), "{said}: {}", steer.log());
    }
    // Without resolvers they go, and the classifier stays.
    let text = fs::read_to_string(steer.config()).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.starts_with("resolvers"))
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(steer.config(), without).unwrap();
    steer.hang_up().unwrap();
    wait_for("reload", || attached() == (vec![all.0[0].clone()], vec![]));
    assert_eq!(office.asked("outlook.office.com"), of(FAR));
    fs::write(steer.config(), text).unwrap();
    steer.hang_up().unwrap();
    wait_for("reload", || attached() == all);
    near(2, &steer.log());
    steer.detach().unwrap();
    assert_eq!(before.difference(&Snapshot::take(lab).unwrap()), "");
    assert_eq!(office.asked("outlook.office.com"), of(FAR));
}

/// Whom packets to port 53 on a wire were for.
fn asked_servers(wire: &Wire) -> BTreeSet<IpAddr> {
    let packets = wire.outbound().map(|packet| packet.destination);
    packets
        .filter(|it| it.port() == 53)
        .map(|it| it.ip())
        .collect()
}

fn both(answers: [&str; 2]) -> BTreeSet<IpAddr> {
    of(answers).into_iter().flatten().collect()
}

#[test]
fn in_redirect_mode_queries_and_flows_to_what_they_taught_leave_together_and_the_client_sees_its_server()
 {
    // Redirected packets pass neither a translation nor a firewall.
    let options = LabOptions {
        lan: LanKind::Public,
        firewall: false,
        ..LabOptions::default()
    };
    let near = Knowledge::every(NEAR);
    let office = Office::with(options, Software::Dnsmasq, Software::Unbound, &near);
    let Some(office) = office else { return };
    let lab = &office.lab;
    let before = Snapshot::take(lab).unwrap();
    let settings = Settings {
        mode: Mode::Redirect,
        more: SELECT.into(),
        ..Settings::default()
    };
    let mut steer = start_as(lab, &PROVIDER, &settings);
    let flows = NEAR.map(|it| Flow::tcp(it.parse().unwrap(), 443));
    let round = |what: &str, log: &str| {
        let captures = lab.capture().unwrap();
        let name = format!("{what}.msftauth.net");
        // A client takes an answer from nobody but the server that it asked.
        assert_eq!(office.asked(&name), of(NEAR), "{what}: {log}");
        assert_eq!(office.asked("www.example.com"), of(FAR), "{what}");
        let replies = probe_all(&lab.client, &flows).unwrap();
        let wires = captures.stop().unwrap();
        for reply in replies {
            assert_eq!(
                wires.path_of(&reply),
                Path::BREAKOUT,
                "{what}: {}",
                reply.flow
            );
        }
        assert_eq!(asked_servers(wires.breakout()), both(PROVIDER), "{what}");
        assert_eq!(asked_servers(&wires.backbone), both(HEADQUARTERS), "{what}");
        assert_eq!(wires.leaks(), [], "{what}");
    };
    round("started", &steer.log());
    steer.kill().unwrap();
    round("killed", &steer.log());
    steer.run().unwrap();
    steer.wait_until_steering(super::PATIENCE).unwrap();
    round("again", &steer.log());
    lab.link_down(&lab.breakouts()[0]).unwrap();
    wait_for("answer of headquarters", || {
        office.asked("outlook.office.com") == of(FAR)
    });
    lab.link_up(&lab.breakouts()[0]).unwrap();
    wait_for("near answer again", || {
        office.asked("outlook.office.com") == of(NEAR)
    });
    steer.detach().unwrap();
    assert_eq!(before.difference(&Snapshot::take(lab).unwrap()), "");
    assert_eq!(office.asked("outlook.office.com"), of(FAR));
}
