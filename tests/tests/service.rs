//! steer as a service: what the service manager hears, and the rights that the unit leaves it.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as the tests do"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use steer_tests::{
    lab::{Lab, LabOptions},
    scenario::flows,
    server::Site,
    steer::{Mode, Settings, Steer},
    traffic::probe_all,
};

const UNIT: &str = include_str!("../../packaging/steer.service");

/// The value of a key of the unit.
fn unit(key: &str) -> &'static str {
    let prefix = format!("{key}=");
    UNIT.lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .unwrap()
}

/// Starts a program with the capabilities of the unit, and no way to get more.
fn with_the_rights_of_the_unit() -> Vec<String> {
    let capabilities: Vec<String> = unit("CapabilityBoundingSet")
        .split(' ')
        .map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        &format!("--bounding-set=-all{}", capabilities.concat()),
    ]
    .map(str::to_owned)
    .into()
}

/// The whole life of a controller: start, repair, reload, restart, detach.
fn lives_with_the_rights_of_the_unit(mode: Mode) {
    let lab = Lab::start(mode.office()).unwrap();
    let settings = Settings {
        mode,
        under: with_the_rights_of_the_unit(),
        ..Settings::default()
    };
    let mut steer = Steer::start(&lab, &settings).unwrap();
    assert_steered(&lab);
    if mode == Mode::Mark {
        let mut flush = lab.router.command("nft");
        assert!(flush.args(["flush", "ruleset"]).status().unwrap().success());
        until("the table is there again", || {
            let mut list = lab.router.command("nft");
            list.args(["list", "table", "inet", "steer"]);
            list.output().unwrap().status.success()
        });
    }
    let reload = steer.command(&["reload"]).unwrap();
    assert!(reload.status.success(), "{reload:?}");
    steer.kill().unwrap();
    steer.run().unwrap();
    steer.wait_until_steering(Duration::from_mins(1)).unwrap();
    assert_steered(&lab);
    assert_eq!(complaints(&steer.log()), "");
    steer.detach().unwrap();
}

fn assert_steered(lab: &Lab) {
    for answer in probe_all(&lab.client, &flows(5, 5)).unwrap() {
        assert_eq!(answer.site, Site::Near, "{answer:?}");
    }
}

/// What the controller could not do.
fn complaints(log: &str) -> String {
    let wrong = |line: &&str| {
        let line = line.to_lowercase();
        ["permission", "not permitted", "cannot", "error"]
            .iter()
            .any(|word| line.contains(word))
    };
    log.lines().filter(wrong).collect::<Vec<_>>().join("\n")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_or(what, || if holds() { Ok(()) } else { Err(String::new()) });
}

/// Waits until it succeeds, and tells why it did not.
fn until_or(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while let Err(why) = holds() {
        assert!(
            Instant::now() < deadline,
            "waited in vain until {what}: {why}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn mark_mode_needs_no_more_rights_than_the_unit_gives() {
    lives_with_the_rights_of_the_unit(Mode::Mark);
}

#[test]
fn redirect_mode_needs_no_more_rights_than_the_unit_gives() {
    lives_with_the_rights_of_the_unit(Mode::Redirect);
}

/// The service manager's side of the notification socket.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_mins(1)))
            .unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// Hears messages until one has this line, which it returns.
    fn hear(&mut self, beginning: &str) -> String {
        let mut message = [0; 1024];
        loop {
            let length = self.socket.recv(&mut message).unwrap_or_else(|error| {
                panic!(
                    "waited in vain for {beginning} ({error}) after {:?}",
                    self.heard
                )
            });
            let text = String::from_utf8(message[..length].to_vec()).unwrap();
            let found = text.lines().find(|line| line.starts_with(beginning));
            let found = found.map(str::to_owned);
            self.heard.push(text);
            if let Some(line) = found {
                return line;
            }
        }
    }
}

#[test]
fn the_service_manager_hears_ready_alive_reloading_and_what_steer_is_doing() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let socket = lab.directory().join("notify");
    let mut manager = Manager::listen(&socket);
    let settings = Settings {
        under: vec!["env".into(), format!("NOTIFY_SOCKET={}", socket.display())],
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    manager.hear("READY=1");
    assert!(
        !manager.heard.concat().contains("WATCHDOG"),
        "alive before ready: {:?}",
        manager.heard
    );
    let status = manager.hear("STATUS=steering; generation 1; 1 of 1 breakouts up");
    assert!(!status.is_empty());
    for _ in 0..3 {
        manager.hear("WATCHDOG=1");
    }
    assert!(steer.command(&["reload"]).unwrap().status.success());
    manager.hear("RELOADING=1");
    manager.hear("READY=1");
    manager.hear("STATUS=steering; generation 2");
    steer.detach().unwrap();
    manager.hear("STATUS=draining");
}

#[test]
fn the_end_by_detach_differs_from_the_end_by_a_signal() {
    assert_eq!(unit("Restart"), "always");
    let lab = Lab::start(LabOptions::default()).unwrap();
    let code = lab.directory().join("code");
    let settings = Settings {
        under: ["sh", "-c", "\"$@\"; echo $? > \"$0\""]
            .map(str::to_owned)
            .into_iter()
            .chain([code.display().to_string()])
            .collect(),
        ..Settings::default()
    };
    Steer::start(&lab, &settings).unwrap().detach().unwrap();
    let code = fs::read_to_string(code).unwrap();
    let prevented: Vec<_> = unit("RestartPreventExitStatus").split(' ').collect();
    assert!(
        prevented.contains(&code.trim()),
        "{code:?} is not among {prevented:?}"
    );
}

/// What a monitoring system on the router would read.
fn scrape(lab: &Lab, address: &'static str) -> String {
    let answer = lab.router.run(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: steer\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    answer.unwrap()
}

/// The samples that a status must lead to.
fn samples(status: &Value) -> Vec<String> {
    let mut lines = vec![
        r#"steer_state{state="steering"} 1"#.to_owned(),
        format!("steer_plan_generation {}", status["plan"]["generation"]),
        format!("steer_controller_start_time_seconds {}", status["started"]),
        format!(
            r#"steer_granted_flows_total{{breakout="isp-1"}} {}"#,
            status["nftables"]["granted"]["isp-1"]
        ),
    ];
    let counters = status["counters"].as_array().unwrap();
    assert!(!counters.is_empty(), "{status}");
    for counter in counters {
        let word = |key: &str| counter[key].as_str().unwrap_or_default().to_owned();
        let labels = format!(
            r#"{{list="{}",set="{}",category="{}",service_area="{}",breakout="{}"}}"#,
            word("list"),
            counter["set"],
            word("category"),
            word("service_area"),
            word("path"),
        );
        for what in ["packets", "bytes"] {
            lines.push(format!(
                "steer_traffic_{what}_total{labels} {}",
                counter[what]
            ));
        }
    }
    lines
}

#[test]
fn metrics_tell_what_status_tells_and_follow_a_reload() {
    const ADDRESS: &str = "127.0.0.1:9365";
    let lab = Lab::start(LabOptions::default()).unwrap();
    let settings = Settings {
        more: format!("[metrics]\nlisten = \"{ADDRESS}\"\n"),
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    assert_steered(&lab);
    // Connections that end still send packets, and a scrape may be a second old.
    until_or("metrics tell what status tells", || {
        let status = steer.status().unwrap();
        let answer = scrape(&lab, ADDRESS);
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.contains("application/openmetrics-text"), "{head}");
        let absent = |line: &String| !text.contains(&format!("\n{line}\n"));
        let missing: Vec<_> = samples(&status).into_iter().filter(absent).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("{missing:#?} are not in\n{text}"))
        }
    });

    let config = fs::read_to_string(steer.config()).unwrap();
    fs::write(
        steer.config(),
        config.replace("[metrics]\nlisten", "[metrics]\n#"),
    )
    .unwrap();
    assert!(steer.command(&["reload"]).unwrap().status.success());
    let refused = lab.router.run(|| Ok(TcpStream::connect(ADDRESS).is_err()));
    assert!(refused.unwrap(), "metrics are still there");
    steer.detach().unwrap();
}

#[test]
fn the_unit_exposes_little() {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=25"])
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../packaging/steer.service"
        ))
        .output()
        .expect("systemd-analyze (package systemd) judges the unit");
    let text = String::from_utf8_lossy(&output.stdout);
    let judgement = text.lines().last().unwrap_or_default();
    assert!(output.status.success(), "{judgement}");
}
