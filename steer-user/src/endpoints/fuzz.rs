//! Made-up, mutated and random answers: whatever comes, nothing panics, and no list is accepted that
//! covers what must never be steered. Judged by arithmetic on addresses, not by the validator's own
//! helpers.
//!
//! `STEER_FUZZ=10000000` says how many answers (20,000 unless told), `STEER_SEED` repeats a run.

use std::{collections::BTreeSet, net::IpAddr};

use fastrand::Rng;
use ipnet::IpNet;

use super::{Feed, Guards, Instance, SetId, cases, explanation, store, validate};

/// The first and the last address of what no list may cover, retyped from the IANA registries.
pub(crate) const DENIED: &[(&str, &str)] = &[
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "255.255.255.255"),
    ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
];

fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u32::from(v4).into()),
        IpAddr::V6(v6) => (true, v6.into()),
    }
}

/// The first and the last address of a prefix.
fn range(prefix: &IpNet) -> (bool, u128, u128) {
    let (v6, first) = number(prefix.addr());
    let width = if v6 { 128 } else { 32 };
    let hosts = width - u32::from(prefix.prefix_len());
    let last = first | 1_u128.checked_shl(hosts).map_or(u128::MAX, |it| it - 1);
    (v6, first, last)
}

fn denied() -> Vec<(bool, u128, u128)> {
    let address = |text: &str| number(text.parse().unwrap());
    let range = |(first, last): &(&str, &str)| {
        let (v6, first) = address(first);
        (v6, first, address(last).1)
    };
    DENIED.iter().map(range).collect()
}

fn overlap(one: (bool, u128, u128), other: (bool, u128, u128)) -> bool {
    one.0 == other.0 && one.1 <= other.2 && other.1 <= one.2
}

/// Where answers come from.
pub(crate) struct Source {
    rng: Rng,
    /// What mutations begin with.
    corpus: Vec<Vec<u8>>,
}

impl Source {
    /// As many answers as the environment wants, with its seed; both are printed.
    pub(crate) fn from_environment() -> (Self, u64) {
        let number = |name: &str, otherwise: u64| {
            std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
        };
        let answers = number("STEER_FUZZ", 20_000);
        let seed = number("STEER_SEED", fastrand::u64(..));
        println!("STEER_FUZZ={answers} STEER_SEED={seed}");
        (Self::new(seed), answers)
    }

    fn new(seed: u64) -> Self {
        let bad = cases::bad().into_iter().map(|(_, feed, _)| feed);
        let short = bad.filter(|feed| feed.len() < 2000);
        let mut corpus: Vec<Vec<u8>> = short.map(String::into_bytes).collect();
        corpus.push(br#"[{"id":3,"endpointSetId":1,"disposition":"Change","impact":"AddedIp","version":"2026070100","add":{"effectiveDate":"20260801","ips":["40.126.0.0/18"]}}]"#.to_vec());
        Self {
            rng: Rng::with_seed(seed),
            corpus,
        }
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.usize(..of.len())]
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    pub(crate) fn answer(&mut self) -> Vec<u8> {
        match self.rng.u8(..10) {
            0..=6 => self.list(),
            7..=8 => {
                let mut text = if self.chance(50) {
                    self.list()
                } else {
                    let place = self.rng.usize(..self.corpus.len());
                    self.corpus[place].clone()
                };
                for _ in 0..self.rng.u8(1..8) {
                    self.mutate(&mut text);
                }
                text
            }
            _ => self.soup(),
        }
    }

    fn mutate(&mut self, text: &mut Vec<u8>) {
        let place = self.rng.usize(..=text.len());
        let end = text.len().min(place + self.rng.usize(..16));
        match self.rng.u8(..6) {
            0 => text.truncate(place),
            1 => text.insert(place, self.rng.u8(..)),
            2 => drop(text.drain(place..end)),
            3 => {
                let again = text[place..end].to_vec();
                text.splice(place..place, again);
            }
            4 => {
                if let Some(byte) = text.get_mut(place) {
                    *byte ^= 1 << self.rng.u8(..8);
                }
            }
            _ => {
                if let Some(byte) = text.get_mut(place) {
                    *byte = self
                        .one(&["0", "9", "/", ".", ":", "\"", ",", "]"])
                        .as_bytes()[0];
                }
            }
        }
    }

    fn soup(&mut self) -> Vec<u8> {
        const TOKENS: &[&str] = &[
            "[",
            "]",
            "{",
            "}",
            "\"",
            ",",
            ":",
            "\"id\":",
            "\"ips\":",
            "\"urls\":",
            "1",
            "-1",
            "1e9",
            "null",
            "true",
            "\"443\"",
            "\"10.0.0.0/8\"",
            "\"::/0\"",
            "\\u0000",
            "\\ud800",
            "\u{feff}",
            "<html>",
            " ",
            "\n",
        ];
        let many = self.rng.usize(..40);
        let words = (0..many).map(|_| self.one(TOKENS));
        let text: String = words.collect();
        text.into_bytes()
    }

    /// A list, most of them sane.
    fn list(&mut self) -> Vec<u8> {
        let oddity = if self.chance(60) { 0 } else { 10 };
        let sets: Vec<String> = (0..self.rng.u16(1..4))
            .map(|place| self.set(place, oddity))
            .collect();
        format!("[{}]", sets.join(",")).into_bytes()
    }

    /// A set, each field of which is odd with that chance in percent.
    fn set(&mut self, place: u16, oddity: u8) -> String {
        let mut fields = Vec::new();
        let id = if self.chance(oddity) {
            self.one(&["0", "-1", "1", "65535", "65536", "1.5", "\"1\"", "null"])
                .into()
        } else {
            (1 + place * 7).to_string()
        };
        fields.push(format!("\"id\":{id}"));
        for (key, good, odd) in [
            (
                "serviceArea",
                ["\"Common\"", "\"Exchange\""],
                ["7", "\"\"", "\"<b>\""],
            ),
            (
                "category",
                ["\"Allow\"", "\"Optimize\""],
                ["\"Urgent\"", "null", "[]"],
            ),
            (
                "tcpPorts",
                ["\"443, 80\"", "\"3478-3481\""],
                ["\"0\"", "443", "\"9-1,\""],
            ),
            (
                "udpPorts",
                ["\"\"", "\"443\""],
                ["\"65536\"", "\"-\"", "\"1-\""],
            ),
            ("required", ["true", "false"], ["\"true\"", "0", "{}"]),
        ] {
            let value = if self.chance(oddity) {
                self.one(&odd)
            } else {
                self.one(&good)
            };
            fields.push(format!("\"{key}\":{value}"));
        }
        let many = self.rng.usize(..3);
        let names: Vec<String> = (0..many)
            .map(|_| format!("\"{}\"", self.name(oddity)))
            .collect();
        fields.push(format!("\"urls\":[{}]", names.join(",")));
        let many = self.rng.usize(1..4);
        let ips: Vec<String> = (0..many)
            .map(|_| format!("\"{}\"", self.prefix(oddity)))
            .collect();
        fields.push(format!("\"ips\":[{}]", ips.join(",")));
        self.rng.shuffle(&mut fields);
        format!("{{{}}}", fields.join(","))
    }

    fn name(&mut self, oddity: u8) -> &'static str {
        if self.chance(oddity) {
            return self.one(&[
                "",
                "*",
                "*.",
                "com",
                "a..b",
                "https://a.example",
                "a b",
                "\u{e9}.example",
                "-.x.y",
            ]);
        }
        self.one(&[
            "a.example.com",
            "*.b.example.com",
            "*cdn.c.example",
            "d.*.example.com",
            "A.Example.COM",
        ])
    }

    fn prefix(&mut self, oddity: u8) -> String {
        if self.chance(oddity) {
            return self
                .one(&[
                    "",
                    "1.2.3.4",
                    "1.2.3.4/33",
                    "::/129",
                    "a/8",
                    "1.2.3.0/-1",
                    "1.2.3.4/24",
                    "::ffff:10.0.0.0/104",
                    "010.0.0.0/8",
                    "fe80::1%1/64",
                ])
                .into();
        }
        // Any, or one beside, around or inside what is denied.
        let near = self.chance(if oddity == 0 { 3 } else { 40 });
        let address = if near {
            let (first, last) = DENIED[self.rng.usize(..DENIED.len())];
            let edge: IpAddr = if self.rng.bool() { first } else { last }.parse().unwrap();
            let step = self.rng.i8(-1..=1);
            match edge {
                IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).wrapping_add_signed(step.into()).into()),
                IpAddr::V6(v6) => {
                    IpAddr::V6(u128::from(v6).wrapping_add_signed(step.into()).into())
                }
            }
        } else if self.rng.bool() {
            IpAddr::V4(self.rng.u32(..).into())
        } else {
            IpAddr::V6((0x2_u128 << 124 | self.rng.u128(..) >> 4).into())
        };
        let (widest, longest) = match address {
            IpAddr::V4(_) => (validate::limits::WIDEST_V4, 32),
            IpAddr::V6(_) => (validate::limits::WIDEST_V6, 128),
        };
        let widest = if oddity == 0 { widest } else { 0 };
        let length = self.rng.u8(widest..=longest);
        let prefix = IpNet::new(address, length).unwrap();
        if self.chance(oddity) {
            prefix
        } else {
            prefix.trunc()
        }
        .to_string()
    }
}

/// What must hold of every accepted list.
fn judge(feed: &Feed, denied: &[(bool, u128, u128)], source: &mut Source) {
    let ids: BTreeSet<SetId> = feed.sets.iter().map(|set| set.id).collect();
    assert_eq!(ids.len(), feed.sets.len());
    let deny: IpNet = source.prefix(0).parse().unwrap();
    let guards = Guards {
        required: BTreeSet::new(),
        shrink: 100,
        growth: 10_000,
        widest_v4: 0,
        widest_v6: 0,
        deny: vec![deny],
    };
    let mut touches = false;
    for prefix in feed.sets.iter().flat_map(|set| &set.prefixes) {
        let range = range(prefix);
        assert!(
            !denied.iter().any(|it| overlap(*it, range)),
            "{prefix} is denied"
        );
        assert_eq!(*prefix, prefix.trunc(), "{prefix}");
        let widest = if range.0 { 24 } else { 10 };
        assert!(prefix.prefix_len() >= widest, "{prefix} is too wide");
        touches |= overlap(range, self::range(&deny));
    }
    let objections = guards.objections(&feed.sets, &feed.sets);
    assert_eq!(!objections.is_empty(), touches, "{deny}");
    // What is written again reads the same: removals wait on disk in that form.
    for set in &feed.sets {
        assert_eq!(validate::part(&store::to_json(set)).as_ref(), Some(set));
    }
}

#[test]
fn no_answer_panics_and_no_accepted_list_covers_what_is_denied() {
    let (mut source, answers) = Source::from_environment();
    let denied = denied();
    let (mut accepted, mut prefixes) = (0_u64, 0);
    for _ in 0..answers {
        let answer = source.answer();
        explanation::read(&answer);
        let Ok(feed) = Feed::parse("fuzz", &answer, Instance::Worldwide) else {
            continue;
        };
        judge(&feed, &denied, &mut source);
        prefixes += feed
            .sets
            .iter()
            .map(|set| set.prefixes.len())
            .sum::<usize>();
        accepted += 1;
    }
    println!(
        "{answers} answers: {accepted} accepted with {prefixes} prefixes; no panic, nothing denied covered"
    );
    assert!(
        accepted * 10 > answers && accepted * 10 < answers * 9,
        "{accepted} of {answers}"
    );
}
