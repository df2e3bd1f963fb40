//! What is no good answer leaves the plan alone, says why, and heals without help.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    traffic::{Flow, probe_all},
    webservice::{Proof, Reply},
};
use steer_user::endpoints::cases;

use super::{METRICS, PATIENCE, edited, list, office, serve, text};

/// An answer that must change nothing.
struct Bad {
    what: String,
    proof: Proof,
    reply: Reply,
    /// A part of the reason that is told.
    why: &'static str,
    /// The label that it is counted under.
    kind: &'static str,
}

impl Bad {
    fn reply(what: impl Into<String>, reply: Reply, kind: &'static str, why: &'static str) -> Self {
        Self {
            what: what.into(),
            proof: Proof::Good,
            reply,
            why,
            kind,
        }
    }

    fn status(status: &str, headers: &str, kind: &'static str, why: &'static str) -> Self {
        Self::reply(
            format!("{status} {headers}"),
            Reply::http(status, headers, b""),
            kind,
            why,
        )
    }

    fn proof(proof: Proof, why: &'static str) -> Self {
        Self {
            proof,
            ..Self::reply(
                format!("{proof:?}"),
                Reply::json(&Value::from(list())),
                "tls",
                why,
            )
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// What goes wrong below the list.
#[expect(clippy::too_many_lines, reason = "a table")]
fn broken_answers() -> Vec<Bad> {
    let good = Value::from(list()).to_string().into_bytes();
    let half = &good[..good.len() / 2];
    let length = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", good.len());
    let cut = |end: usize| [length.as_bytes(), &good[..end]].concat();
    let packed = |body: &[u8]| Reply::http("200 OK", "content-encoding: gzip\r\n", body);
    let gz = gzip(&good);
    let to = |location: &str| format!("location: {location}\r\n");
    let mut bad = vec![
        Bad::status("201 Created", "", "status", "answered 201"),
        Bad::status("204 No Content", "", "status", "answered 204"),
        Bad::status("304 Not Modified", "", "status", "answered 304"),
        Bad::status("400 Bad Request", "", "status", "answered 400"),
        Bad::status("401 Unauthorized", "", "status", "answered 401"),
        Bad::status("403 Forbidden", "", "status", "answered 403"),
        Bad::status("404 Not Found", "", "status", "answered 404"),
        Bad::status(
            "407 Proxy Authentication Required",
            "",
            "status",
            "answered 407",
        ),
        Bad::status("500 Internal Server Error", "", "status", "answered 500"),
        Bad::status("502 Bad Gateway", "", "status", "answered 502"),
        Bad::status(
            "503 Service Unavailable",
            "retry-after: 9\r\n",
            "status",
            "answered 503",
        ),
        Bad::status(
            "429 Too Many Requests",
            "",
            "rate_limited",
            "asked again in 3600 s",
        ),
        Bad::status(
            "429 Too Many Requests",
            "retry-after: 7\r\n",
            "rate_limited",
            "asked again in 7 s",
        ),
        Bad::status(
            "429 Too Many Requests",
            "retry-after: 99999999\r\n",
            "rate_limited",
            "asked again in 86400 s",
        ),
        Bad::status(
            "302 Found",
            &to("/endpoints/Worldwide"),
            "redirect",
            "more than 4 redirections",
        ),
        Bad::status(
            "301 Moved Permanently",
            &to("http://127.0.0.1/"),
            "redirect",
            "not HTTPS",
        ),
        Bad::status(
            "307 Temporary Redirect",
            &to("ftp://x/"),
            "redirect",
            "not HTTPS",
        ),
        Bad::status("302 Found", "", "redirect", "redirects to nowhere"),
        Bad::proof(Proof::Expired, "certificate expired"),
        Bad::proof(Proof::Early, "compare this machine's clock"),
        Bad::proof(Proof::OtherName, "not valid for name"),
        Bad::proof(Proof::UnknownAuthority, "a box between opens TLS"),
        Bad::proof(Proof::Plain, "TLS: "),
        Bad::reply(
            "half a list that says it is whole",
            Reply::http("200 OK", "", half),
            "list",
            "ends too early",
        ),
        Bad::reply(
            "nothing at all",
            Reply::Raw(Vec::new()),
            "broken",
            "connection closed",
        ),
        Bad::reply(
            "no HTTP",
            Reply::Raw(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()),
            "broken",
            "invalid HTTP",
        ),
        Bad::reply(
            "silence",
            Reply::Stall(Vec::new()),
            "timeout",
            "no whole answer",
        ),
        Bad::reply(
            "half, then silence",
            Reply::Stall(cut(half.len())),
            "timeout",
            "no whole answer",
        ),
        Bad::reply(
            "byte after byte",
            Reply::Drip(cut(0)),
            "timeout",
            "no whole answer",
        ),
        Bad::reply(
            "huge",
            Reply::http("200 OK", "", &vec![b' '; (16 << 20) + 1]),
            "too_large",
            "no list has",
        ),
        Bad::reply(
            "a bomb",
            packed(&gzip(&vec![b' '; 64 << 20])),
            "too_large",
            "no list has",
        ),
        Bad::reply(
            "not packed",
            packed(&good),
            "encoding",
            "cannot be unpacked",
        ),
        Bad::reply(
            "packed and cut",
            packed(&gz[..gz.len() / 2]),
            "encoding",
            "cannot be unpacked",
        ),
        Bad::reply(
            "packed otherwise",
            Reply::http("200 OK", "content-encoding: br\r\n", &good),
            "encoding",
            "not asked for",
        ),
    ];
    bad.extend((0..good.len()).step_by(1024).map(|end| {
        let what = format!("cut short after {end} bytes");
        Bad::reply(what, Reply::Raw(cut(end)), "broken", "cut short")
    }));
    bad
}

/// Whole answers that are no list, or a dangerous one.
fn refused_lists() -> Vec<Bad> {
    let cases = cases::bad()
        .into_iter()
        .filter(|(_, feed, _)| feed.len() < 1 << 20);
    cases
        .map(|(what, feed, _)| {
            let reply = Reply::http("200 OK", "content-type: text/html\r\n", feed.as_bytes());
            Bad::reply(what, reply, "list", "is refused whole")
        })
        .collect()
}

/// What a monitoring system on the router would read.
fn scrape(lab: &Lab) -> String {
    let answer = lab.router.run(|| {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: steer\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    answer.unwrap()
}

/// Metrics may be a second old.
fn until_metrics_have(lab: &Lab, lines: &[String]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let scraped = scrape(lab);
        let missing = lines
            .iter()
            .find(|line| !scraped.contains(&format!("\n{line}\n")));
        let Some(missing) = missing else { return };
        assert!(Instant::now() < deadline, "{missing} is not in\n{scraped}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn bad_answers_leave_the_plan_alone_with_a_reason_and_good_ones_are_taken_again() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let office = office(
        &lab,
        "update = \"automatic\"\nremoval_delay = \"0s\"\ntimeout = \"2s\"",
    );
    serve(
        &office.service,
        "2026070100",
        edited(&["150.171.64.0/22"], &[]),
    );
    assert!(office.update().status.success(), "{}", office.steer.log());
    let before = office.steer.status().unwrap();
    let mut bad = broken_answers();
    bad.extend(refused_lists());
    assert!(bad.len() >= 40, "{}", bad.len());
    // The controller's own first look comes at a random moment: perhaps before there was a list.
    let mut kinds: BTreeMap<String, u64> =
        serde_json::from_value(before["feed"]["update"]["errors"].clone()).unwrap();
    for Bad {
        what,
        proof,
        reply,
        why,
        kind,
    } in &bad
    {
        *kinds.entry((*kind).to_owned()).or_default() += 1;
        office.service.prove(*proof).unwrap();
        let reply = reply.clone();
        office.service.say(move |target| {
            if target.starts_with("/version/") {
                Reply::json(&json!({"instance": "Worldwide", "latest": "2026080100"}))
            } else {
                reply.clone()
            }
        });
        let output = office.update();
        assert_eq!(output.status.code(), Some(1), "{what}: {}", text(&output));
        assert!(
            text(&output).contains(why),
            "{what}: {why:?} is missing in {}",
            text(&output)
        );
        let status = office.steer.status().unwrap();
        assert_eq!(status["plan"], before["plan"], "{what}");
        let error = status["feed"]["update"]["error"].as_str().unwrap();
        assert!(error.contains(why), "{what}: {error}");
        assert!(
            office
                .steer
                .whole_log()
                .unwrap()
                .contains(error.lines().next().unwrap()),
            "{what}"
        );
    }
    let status = office.steer.status().unwrap();
    assert_eq!(status["feed"]["update"]["errors"], json!(kinds));
    let mut lines: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("steer_feed_errors_total{{kind=\"{kind}\"}} {count}"))
        .collect();
    lines.push(format!("steer_feed_failures {}", bad.len()));
    until_metrics_have(&lab, &lines);
    println!("{} bad answers: {kinds:?}", bad.len());

    office.service.prove(Proof::Good).unwrap();
    serve(
        &office.service,
        "2026080100",
        edited(&["150.171.72.0/22"], &[]),
    );
    assert!(office.update().status.success(), "{}", office.steer.log());
    let status = office.steer.status().unwrap();
    assert_eq!(status["feed"]["version"], "2026080100");
    assert_eq!(status["feed"]["update"]["error"], Value::Null);
    let flow = [Flow::tcp("150.171.72.9".parse().unwrap(), 443)];
    assert_eq!(probe_all(&lab.client, &flow).unwrap()[0].site, Site::Near);
    // An older version is refused, too.
    serve(&office.service, "2026070100", edited(&[], &[]));
    assert!(text(&office.update()).contains("older than 2026080100"));
}

#[test]
fn a_service_that_is_well_again_is_asked_without_help() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let feed = "update = \"automatic\"\ninterval = \"100ms\"\ntimeout = \"2s\"";
    let office = office(&lab, feed);
    office
        .service
        .say(|_| Reply::http("503 Service Unavailable", "", b""));
    let failed_often = |status: &Value| status["feed"]["update"]["failures"].as_u64() >= Some(4);
    office
        .steer
        .wait_for("looks have failed", failed_often)
        .unwrap();
    serve(
        &office.service,
        "2026070100",
        edited(&["150.171.64.0/22"], &[]),
    );
    let healed = |status: &Value| {
        status["feed"]["version"] == "2026070100" && status["feed"]["update"]["failures"] == 0
    };
    office
        .steer
        .wait_for("the new version is in use", healed)
        .unwrap();
    until_metrics_have(&lab, &["steer_feed_failures 0".into()]);
}
