//! `steer explain` against an oracle that reads the web service's JSON by itself: on every real
//! answer in the folder `STEER_DATA` (or `../shared/data` beside the checkout), and on the
//! built-in snapshot.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose helpers cannot go on has failed"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use steer_tests::steer::binary;

const QUESTIONS: usize = 12_000;

// The oracle: plain integers and the words of the JSON, none of the product's types.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    v4: bool,
    bits: u128,
    length: u32,
}

impl Prefix {
    fn parse(text: &str) -> Self {
        let (address, length) = text.split_once('/').unwrap();
        let (v4, bits) = bits_of(address.parse().unwrap());
        Self {
            v4,
            bits,
            length: length.parse().unwrap(),
        }
    }

    fn host_bits(self) -> u32 {
        (if self.v4 { 32 } else { 128 }) - self.length
    }

    fn contains(self, (v4, bits): (bool, u128)) -> bool {
        let shift = |bits: u128| bits.checked_shr(self.host_bits()).unwrap_or(0);
        self.v4 == v4 && shift(self.bits) == shift(bits)
    }

    fn last(self) -> u128 {
        self.bits
            | (1_u128
                .checked_shl(self.host_bits())
                .unwrap_or(0)
                .wrapping_sub(1))
    }
}

fn bits_of(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (true, address.to_bits().into()),
        IpAddr::V6(address) => (false, address.to_bits()),
    }
}

fn address_of(v4: bool, bits: u128) -> IpAddr {
    if v4 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "one step over the end wraps around"
        )]
        return Ipv4Addr::from_bits(bits as u32).into();
    }
    Ipv6Addr::from_bits(bits).into()
}

/// What `steer explain` should answer: set, category, service area and prefix, or nothing.
fn oracle(feed: &Value, question: &Question) -> Option<(u64, String, String, String)> {
    let rank = |set: &Value| {
        ["Allow", "Optimize"]
            .iter()
            .position(|word| set["category"] == *word)
    };
    let known_area = |set: &Value| {
        ["Common", "Exchange", "SharePoint", "Skype"].contains(&text(set, "serviceArea"))
    };
    let mut best: Option<((usize, u32, i64), &Value, &str)> = None;
    for set in feed.as_array().unwrap() {
        let Some(rank) = rank(set) else { continue };
        let field = match question.protocol {
            "tcp" => "tcpPorts",
            "udp" => "udpPorts",
            _ => continue,
        };
        if set["id"] == 10 || !known_area(set) || !has_port(text(set, field), question.port) {
            continue;
        }
        for ip in set["ips"].as_array().into_iter().flatten() {
            let ip = ip.as_str().unwrap();
            let prefix = Prefix::parse(ip);
            let key = (rank, prefix.length, -set["id"].as_i64().unwrap());
            if prefix.contains(bits_of(question.destination))
                && best.is_none_or(|(other, ..)| key > other)
            {
                best = Some((key, set, ip));
            }
        }
    }
    best.map(|(_, set, ip)| {
        let word = |field| text(set, field).to_owned();
        (
            set["id"].as_u64().unwrap(),
            word("category"),
            word("serviceArea"),
            ip.to_owned(),
        )
    })
}

fn text<'a>(set: &'a Value, field: &str) -> &'a str {
    set[field].as_str().unwrap_or_default()
}

fn has_port(ports: &str, port: u16) -> bool {
    ports
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .any(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&port)
        })
}

// The questions: random, most of them at or near the edge of a prefix and of a port list.

#[derive(Debug)]
struct Question {
    destination: IpAddr,
    protocol: &'static str,
    port: u16,
}

/// `SplitMix64`: the same questions in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.next() % items.len() as u64).unwrap()]
    }
}

fn questions(feed: &Value) -> Vec<Question> {
    let sets = feed.as_array().unwrap();
    // Each prefix with the ports of one of its sets, and those beside them.
    let mut places = Vec::new();
    let mut ports = vec![0, 1, 22, 53, 65535];
    for set in sets {
        let near = ports_near(set);
        ports.extend(&near);
        for ip in set["ips"].as_array().into_iter().flatten() {
            places.push((Prefix::parse(ip.as_str().unwrap()), near.clone()));
        }
    }
    let mut random = Random(365);
    (0..QUESTIONS)
        .map(|_| {
            let place = random.next() % places.len() as u64;
            let (prefix, near) = &places[usize::try_from(place).unwrap()];
            let far = random.next().is_multiple_of(4);
            let inside = random.wide() & (prefix.bits ^ prefix.last());
            let bits = match random.next() % 8 {
                0 => prefix.bits,
                1 => prefix.last(),
                2 => prefix.bits.wrapping_sub(1),
                3 => prefix.last().wrapping_add(1),
                4 => random.wide(),
                _ => prefix.bits | inside,
            };
            Question {
                destination: address_of(prefix.v4, bits),
                protocol: random.pick(&["tcp", "tcp", "tcp", "udp", "udp", "132"]),
                port: random.pick(if far || near.is_empty() { &ports } else { near }),
            }
        })
        .collect()
}

fn ports_near(set: &Value) -> Vec<u16> {
    let lists = [text(set, "tcpPorts"), text(set, "udpPorts")].join(",");
    lists
        .split([',', '-', ' '])
        .filter_map(|number| number.parse::<u16>().ok())
        .flat_map(|number| [number - 1, number, number, number, number + 1])
        .collect()
}

// steer.

fn steer(args: &[&str], input: Stdio) -> Output {
    Command::new(binary().unwrap())
        .args(args)
        .stdin(input)
        .output()
        .unwrap()
}

fn explain(args: &[&str], questions: &[Question]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("questions");
    let lines: Vec<String> = questions
        .iter()
        .map(|it| format!("{} {} {}\n", it.destination, it.protocol, it.port))
        .collect();
    fs::write(&path, lines.concat()).unwrap();
    let output = steer(
        &[&["explain", "--json"], args].concat(),
        fs::File::open(&path).unwrap().into(),
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answers = String::from_utf8(output.stdout).unwrap();
    answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Asks and compares; the number of steered ones.
fn compare(name: &str, feed: &Value, args: &[&str]) -> usize {
    let questions = questions(feed);
    let answers = explain(args, &questions);
    assert_eq!(answers.len(), questions.len(), "{name}");
    let mut by_set: BTreeMap<u64, usize> = BTreeMap::new();
    for (question, answer) in questions.iter().zip(&answers) {
        let expected = match oracle(feed, question) {
            None => json!(["pass", null, null, null, null]),
            Some((set, category, area, prefix)) => {
                *by_set.entry(set).or_default() += 1;
                json!(["steer", set, category, area, prefix])
            }
        };
        let found = ["verdict", "set", "category", "service_area", "matched"]
            .map(|key| answer[key].clone());
        assert_eq!(json!(found), expected, "{name}: {question:?}: {answer}");
    }
    let steered: usize = by_set.values().sum();
    println!(
        "{name}: {} answers agree, {steered} of them steer, by {} sets",
        answers.len(),
        by_set.len()
    );
    // Neither side is trivial.
    assert!(
        steered > QUESTIONS / 20 && steered < QUESTIONS * 19 / 20,
        "{name}: {steered}"
    );
    steered
}

/// The folder with real answers, or why there is none.
fn data() -> Result<PathBuf, String> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = env::var_os("STEER_DATA").map_or(beside, PathBuf::from);
    let m365 = folder.join("m365");
    let folder = if m365.is_dir() { m365 } else { folder };
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(format!(
        "skipped: {} is no folder; name one with real answers of the endpoint service in STEER_DATA",
        folder.display()
    ))
}

/// The JSON files of the folder with their content; those that are no JSON with null.
fn files(folder: &Path) -> Vec<(PathBuf, Value)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| {
            let value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or(Value::Null);
            (path, value)
        })
        .collect();
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    files
}

fn is_feed(value: &Value) -> bool {
    value.as_array().is_some_and(|sets| {
        sets.iter()
            .all(|set| set["serviceArea"].is_string() && set["id"].is_u64())
    })
}

#[test]
fn explain_agrees_with_the_oracle_on_every_real_feed() {
    let folder = match data() {
        Ok(folder) => folder,
        Err(why) => return println!("{why}"),
    };
    let files = files(&folder);
    let feeds: Vec<_> = files.iter().filter(|(_, value)| is_feed(value)).collect();
    assert!(
        !feeds.is_empty(),
        "{} holds no answer of the endpoints method",
        folder.display()
    );
    for (path, feed) in feeds {
        let path = path.to_str().unwrap();
        compare(path, feed, &["--feed", path]);
    }
}

#[test]
fn explain_agrees_with_the_oracle_on_the_built_in_snapshot() {
    let output = steer(
        &[
            "endpoints",
            "list",
            "--json",
            "--config",
            sample().to_str().unwrap(),
        ],
        Stdio::null(),
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    // In the words of the service.
    let feed = listing["sets"].as_array().unwrap().iter().map(|set| {
        json!({
            "id": set["id"], "serviceArea": set["service_area"], "category": set["category"],
            "tcpPorts": set["tcp_ports"], "udpPorts": set["udp_ports"], "ips": set["prefixes"],
        })
    });
    compare(
        "snapshot",
        &feed.collect(),
        &["--config", sample().to_str().unwrap()],
    );
}

/// A configuration without anything of its own.
fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../steer-user/steer.toml")
}

#[test]
fn what_is_no_endpoint_list_is_refused_with_exit_code_2() {
    let folder = match data() {
        Ok(folder) => folder,
        Err(why) => return println!("{why}"),
    };
    for (path, _) in files(&folder).iter().filter(|(_, value)| !is_feed(value)) {
        let path = path.to_str().unwrap();
        let output = steer(&["explain", "--feed", path, "52.96.0.1"], Stdio::null());
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{path}: {message}");
        assert!(
            message.contains("refused whole") && message.contains("remedy:"),
            "{path}: {message}"
        );
    }
}

#[test]
fn addresses_of_azure_outside_of_microsoft_365_pass() {
    let list = match data() {
        Ok(folder) => folder.join("azure-prefixes-not-m365-20260814.txt"),
        Err(why) => return println!("{why}"),
    };
    let Ok(prefixes) = fs::read_to_string(&list) else {
        return println!("skipped: there is no {}", list.display());
    };
    let prefixes = prefixes
        .lines()
        .map(str::trim)
        .filter(|line| line.contains('/'));
    let questions: Vec<Question> = prefixes
        .map(Prefix::parse)
        .flat_map(|prefix| [prefix.bits, prefix.last()].map(|bits| address_of(prefix.v4, bits)))
        .map(|destination| Question {
            destination,
            protocol: "tcp",
            port: 443,
        })
        .collect();
    assert!(questions.len() > 1000);
    for answer in explain(&["--config", sample().to_str().unwrap()], &questions) {
        assert_eq!(answer["verdict"], "pass", "{answer}");
    }
}
