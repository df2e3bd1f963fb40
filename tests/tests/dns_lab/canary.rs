//! The names by which programs ask whether they may use resolvers of their own, answered by real
//! resolvers with what `steer export` wrote.

use std::process::Command;

use steer_tests::lab::{Lab, LabOptions};

use super::{Kind, Knowledge, PROVIDER, Question, Resolver, Software, wait_for};

const NAMES: [&str; 3] = [
    "use-application-dns.net",
    "mask.icloud.com",
    "mask-h2.icloud.com",
];
/// No such name.
const NXDOMAIN: u8 = 3;

fn export(format: &str, more: &[&str]) -> String {
    let binary = steer_tests::steer::binary().unwrap();
    let mut command = Command::new(binary);
    command.args(["export", format, "--resolver", PROVIDER[0]]);
    command.args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn canary_names_are_said_not_to_be_there_when_they_are_asked_for() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    for (software, format) in [
        (Software::Dnsmasq, "dnsmasq"),
        (Software::Unbound, "unbound"),
    ] {
        let written = Knowledge::Written(export(format, &["--canary"]));
        let own = ["127.0.0.1", "::1"];
        let resolver = Resolver::start(&lab, &lab.client, software, own, &written);
        let Some(_resolver) = resolver else { return };
        let ask = |name| Question::new(name, Kind::A).ask(&lab.client, own[0]);
        let ready = "ready.use-application-dns.net";
        wait_for("resolver", || ask(ready).is_some());
        for name in NAMES {
            assert_eq!(ask(name).unwrap().rcode, NXDOMAIN, "{software:?}: {name}");
        }
        let without = export(format, &[]);
        assert!(NAMES.iter().all(|name| !without.contains(name)), "{format}");
    }
}
