//! The commands that need no controller, as an operator and a script meet them.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose helpers cannot go on has failed"
)]

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = r#"
[select]
include = [{ name = "own-saas", prefixes = ["198.51.100.0/24"], protocol = "tcp", ports = "443" }]
exclude = ["52.96.7.0/24"]
[[lan]]
interface = "lan0"
sources = ["10.0.0.0/8"]
exclude_sources = ["10.0.0.7"]
[[breakout]]
name = "fiber"
interface = "brk0"
"#;

struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn of(args: &[&str], input: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_steer"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input closes it; that is no failure.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        Self {
            code: status.code().unwrap(),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    fn json(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn file(name: &str, text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn one_destination_gives_one_object_with_every_field() {
    let (_folder, config) = file("steer.toml", CONFIG);
    let args = [
        "explain",
        "52.96.1.1",
        "--protocol",
        "tcp",
        "--port",
        "443",
        "--json",
        "-c",
        &config,
    ];
    let run = Run::of(&args, "");
    assert_eq!(run.code, 0, "{}", run.err);
    let [answer] = run.json().try_into().unwrap();
    for (key, value) in [
        ("destination", "52.96.1.1"),
        ("protocol", "tcp"),
        ("verdict", "steer"),
        ("list", "worldwide"),
        ("category", "Optimize"),
        ("service_area", "Exchange"),
        ("matched", "52.96.0.0/14"),
        (
            "reason",
            "set 1 (Optimize, Exchange) lists 52.96.0.0/14 with this port",
        ),
    ] {
        assert_eq!(answer[key], value, "{answer}");
    }
    assert_eq!((&answer["port"], &answer["set"]), (&443.into(), &1.into()));
    assert_eq!(answer["feed"]["instance"], "Worldwide");
}

#[test]
fn lines_of_standard_input_are_answered_in_their_order() {
    let (_folder, config) = file("steer.toml", CONFIG);
    let input = "52.96.1.1\n\n52.96.7.1 tcp 443\n198.51.100.1 TCP 443 10.0.0.1\n\
                 198.51.100.1 tcp 443 10.0.0.7\n198.51.100.1 tcp 443 192.0.2.1\n::1 47 0\n";
    let run = Run::of(&["explain", "--json", "--config", &config], input);
    assert_eq!(run.code, 0, "{}", run.err);
    let verdicts: Vec<String> = run
        .json()
        .iter()
        .map(|it| format!("{} {} {}", it["verdict"], it["counter"], it["reason"]))
        .collect();
    assert_eq!(
        verdicts,
        [
            r#""steer" null "set 1 (Optimize, Exchange) lists 52.96.0.0/14 with this port""#,
            r#""pass" "excluded" "select.exclude has 52.96.7.0/24""#,
            r#""steer" null "include \"own-saas\" (Allow) lists 198.51.100.0/24 with this port""#,
            r#""pass" "source-excluded" "exclude_sources of a LAN has 10.0.0.7/32""#,
            r#""pass" "not-lan" "the source is not among the clients of a LAN""#,
            r#""pass" null "unspecified, loopback or IPv4-mapped addresses are never steered""#,
        ]
    );
}

#[test]
fn an_own_destination_has_its_name_and_no_service_area() {
    let (_folder, config) = file("steer.toml", CONFIG);
    let [answer] = Run::of(&["explain", "198.51.100.9", "--json", "-c", &config], "")
        .json()
        .try_into()
        .unwrap();
    assert_eq!(answer["list"], "own");
    assert_eq!(answer["name"], "own-saas");
    assert_eq!(answer["service_area"], Value::Null);
}

#[test]
fn what_cannot_be_used_ends_with_2_and_says_what_to_do() {
    let (_bad, bad_config) = file("steer.toml", "mode = \"tunnel\"\n");
    let (_html, bad_feed) = file("feed.json", "<html>");
    let cases: [(&[&str], &str, &str); 8] = [
        (
            &["explain", "outlook.office.com", "--feed", &bad_feed],
            "",
            "refused whole",
        ),
        (&["explain", "--feed", "/nonexistent"], "", "check the path"),
        (
            &["explain", "1.1.1.1", "-c", &bad_config],
            "",
            "choose one of them",
        ),
        (
            &["explain", "1.1.1.1", "--protocol", "quic"],
            "",
            "protocol number",
        ),
        (&["explain", "1.1.1.1", "--instance", "china"], "", "--feed"),
        (&["explain"], "1.1.1.1\n1.1.1.1 tcp\n", "line 2"),
        (&["check", "-c", &bad_config], "", ":1:8: mode"),
        (
            &["endpoints", "list", "--feed", &bad_feed],
            "",
            "fetch it again",
        ),
    ];
    for (args, input, part) in cases {
        let run = Run::of(args, input);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(
            run.err.contains(part),
            "{args:?}: {part:?} is missing in\n{}",
            run.err
        );
    }
}

#[test]
fn check_tells_machines_what_is_wrong_and_where() {
    let (_folder, config) = file("steer.toml", "mode = \"tunnel\"\n");
    let run = Run::of(&["check", "--json", "-c", &config], "");
    assert_eq!(run.code, 2);
    let [answer] = run.json().try_into().unwrap();
    assert_eq!(answer["ok"], false);
    let first = &answer["problems"][0];
    assert_eq!(
        (&first["line"], &first["column"], &first["key"]),
        (&1.into(), &8.into(), &"mode".into())
    );
}

#[test]
fn check_shows_the_plan_of_a_good_configuration() {
    let (_folder, config) = file("steer.toml", CONFIG);
    let run = Run::of(&["check", "-c", &config], "");
    assert_eq!(run.code, 0, "{}", run.err);
    for part in [
        "is fine",
        "lan0; clients 10.0.0.0/8; without 10.0.0.7/32",
        "1 fiber: brk0",
        "include \"own-saas\"",
    ] {
        assert!(
            run.out.contains(part),
            "{part:?} is missing in\n{}",
            run.out
        );
    }
    let [answer] = Run::of(&["check", "--json", "-c", &config], "")
        .json()
        .try_into()
        .unwrap();
    assert_eq!(answer["ok"], true);
    assert_eq!(answer["plan"]["includes"], 1);
}

#[test]
fn the_printed_sample_is_a_configuration() {
    let sample = Run::of(&["check", "--sample"], "");
    assert_eq!(sample.code, 0);
    let (_folder, path) = file("steer.toml", &sample.out);
    assert_eq!(Run::of(&["check", "-c", &path], "").code, 0);
}

#[test]
fn the_snapshot_command_writes_the_compact_form() {
    let json = r#"[{"id":1,"serviceArea":"Exchange","category":"Optimize","ips":["52.96.0.0/14"],"tcpPorts":"443, 80"}]"#;
    let (_folder, feed) = file("worldwide-20260529.json", json);
    let run = Run::of(&["endpoints", "snapshot", &feed], "");
    assert_eq!(run.code, 0, "{}", run.err);
    let statements: Vec<&str> = run
        .out
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert_eq!(
        statements,
        [
            "snapshot worldwide 2026-05-29",
            "set 1 Exchange Optimize tcp 80,443",
            " nets 52.96.0.0/14"
        ]
    );
}

#[test]
fn an_export_takes_its_options_before_and_after_the_format_and_is_the_same_each_time() {
    let (_folder, config) = file("steer.toml", CONFIG);
    let before = Run::of(&["export", "-c", &config, "nftables"], "");
    let after = Run::of(&["export", "nftables", "-c", &config], "");
    assert_eq!((before.code, after.code), (0, 0), "{}", before.err);
    assert_eq!(before.out, after.out);
    assert!(
        after.out.contains("198.51.100.0/24 . tcp . 443"),
        "{}",
        after.out
    );

    for args in [
        &["export", "unbound"][..],
        &["export", "nftables", "--table", "a b"],
        &["export", "ipset", "--prefix", "seventeen_letters"],
        &["export", "frr", "--gateway6", "fe80::1"],
        &["export", "json", "--feed", "/nonexistent"],
    ] {
        let run = Run::of(args, "");
        assert_eq!(
            (run.code, run.out.as_str()),
            (2, ""),
            "{args:?}: {}",
            run.err
        );
    }
}
