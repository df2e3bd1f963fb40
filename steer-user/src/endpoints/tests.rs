//! Feeds good and bad.

use proptest::prelude::*;

use super::{
    cases::{set_7, with},
    *,
};

fn refused(feed: &[u8]) -> String {
    Feed::parse("feed.json", feed, Instance::Worldwide)
        .unwrap_err()
        .to_string()
}

#[test]
fn every_bad_feed_is_refused_with_the_place_and_the_remedy() {
    for (what, feed, expected) in cases::bad() {
        let message = refused(feed.as_bytes());
        for part in expected {
            assert!(
                message.contains(part),
                "{what}: {part:?} is missing in\n{message}"
            );
        }
        assert!(
            message.contains("feed.json") && message.contains("refused whole"),
            "{message}"
        );
    }
    assert!(refused(b"\xff\xfe[\0]\0").contains("UTF-16"));
}

#[test]
fn a_refusal_lists_every_mistake_at_once() {
    let message =
        refused(set_7(r#""ips":["10.0.0.0/8","x"],"urls":["*"],"tcpPorts":"0""#).as_bytes());
    for part in ["10.0.0.0/8", "\"x\"", "\"*\"", "tcpPorts"] {
        assert!(message.contains(part), "{part} is missing in\n{message}");
    }
}

#[test]
fn what_the_real_service_does_is_accepted() {
    let feed = with(
        r#"{"id":26,"serviceArea":"O365Default","serviceAreaDisplayName":"x","category":"default",
            "urls":["*cdn.onenote.net","autodiscover.*.onmicrosoft.com","*-my.sharepoint.com","A.Example.COM"],
            "ips":null,"tcpPorts":"143, 587","udpPorts":"","notes":"","newField":{"a":1},"expressRoute":false}"#,
    );
    let bom = [b"\xef\xbb\xbf".as_slice(), feed.as_bytes()].concat();
    let feed = Feed::parse("feed.json", &bom, Instance::Worldwide).unwrap();
    let set = feed.set(SetId(26)).unwrap();
    assert_eq!(set.service_area, ServiceArea::Other("O365Default".into()));
    assert_eq!(set.category, Category::Default);
    assert_eq!(set.tcp.to_string(), "143,587");
    assert!(set.udp.is_empty() && set.prefixes.is_empty() && !set.required);
    assert_eq!(set.names.len(), 4);
    assert!(
        set.names
            .iter()
            .any(|name| name.as_str() == "a.example.com")
    );
}

#[test]
fn a_feed_that_overlaps_the_office_is_refused() {
    let feed = Feed::parse(
        "feed.json",
        with(r#"{"id":7,"serviceArea":"Common","category":"Allow","ips":["40.126.0.0/18"]}"#)
            .as_bytes(),
        Instance::Worldwide,
    )
    .unwrap();
    for (office, overlaps) in [
        ("192.168.0.0/16", false),
        ("40.126.1.0/24", true),
        ("40.0.0.0/8", true),
        ("40.126.64.0/18", false),
    ] {
        let outcome = feed.check_against(&[office.parse().unwrap()], &[]);
        assert_eq!(outcome.is_err(), overlaps, "{office}");
        if let Err(error) = outcome {
            let message = error.to_string();
            for part in ["set 7: ips \"40.126.0.0/18\"", office, "select.exclude"] {
                assert!(message.contains(part), "{part} is missing in\n{message}");
            }
        }
    }
}

#[test]
fn an_overlap_that_is_excluded_is_accepted() {
    let feed = Feed::builtin().unwrap();
    let lan = "40.126.1.0/24".parse().unwrap();
    for (exclude, accepted) in [
        ("40.126.1.0/24", true),
        ("40.126.0.0/16", true),
        ("40.126.1.0/25", false),
        ("40.127.0.0/16", false),
    ] {
        let outcome = feed.check_against(&[lan], &[exclude.parse().unwrap()]);
        assert_eq!(outcome.is_ok(), accepted, "{exclude}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    for (path, part) in [
        (folder.path().join("absent.json"), "cannot be read"),
        (folder.path().to_owned(), "is a directory"),
    ] {
        let message = Feed::read(&path, Instance::Worldwide)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(part) && message.contains("remedy:"),
            "{message}"
        );
    }
    let file = folder.path().join("large.json");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(limits::FILE_BYTES + 1)
        .unwrap();
    let message = Feed::read(&file, Instance::Worldwide)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("more than the 16777216 steer reads"),
        "{message}"
    );
}

#[test]
fn the_built_in_snapshot_is_the_worldwide_list() {
    let feed = Feed::builtin().unwrap();
    assert_eq!(feed.instance, Instance::Worldwide);
    assert_eq!(feed.sets.len(), 63);
    let media = feed.set(SetId(11)).unwrap();
    assert_eq!(
        (media.category, &media.service_area, media.required),
        (Category::Optimize, &ServiceArea::Skype, true)
    );
    assert_eq!(
        (media.tcp.to_string(), media.udp.to_string()),
        (String::new(), "3478-3481".into())
    );
    let nets: Vec<String> = media.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["52.112.0.0/14", "52.122.0.0/15", "2603:1063::/38"]);
    assert!(media.names.is_empty());
}

#[test]
fn a_snapshot_reads_back_as_it_was_written() {
    let feed = Feed::builtin().unwrap();
    let Origin::Snapshot { date } = &feed.origin else {
        panic!("not a snapshot")
    };
    let text = render_snapshot(&feed, date);
    assert!(
        text == snapshot::TEXT,
        "snapshot.txt is not what `cargo xtask snapshot` writes"
    );
    assert!(snapshot::parse(&text).unwrap() == feed);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    for (text, part) in [
        ("", "no `snapshot` line"),
        ("snapshot worldwide 2026-05-29\n", "no prefix in any set"),
        ("snapshot worldwide 2026-05-29\nnets 52.96.0.0/14", "line 2"),
        ("snapshot worldwide 2026-05-29\nset 1 Exchange", "line 2"),
        (
            "snapshot worldwide 2026-05-29\nset 1 Exchange Allow sctp 443",
            "line 2",
        ),
        (
            "snapshot worldwide 2026-05-29\nset 1 Exchange Allow tcp 443\n nets 10.0.0.0/8",
            "set 1: ips",
        ),
    ] {
        let message = snapshot::parse(text).unwrap_err().to_string();
        assert!(message.contains(part), "{part:?} is missing in\n{message}");
    }
}

/// A feed with every field, for mutations.
const WHOLE: &str = r#"[{"id":1,"serviceArea":"Exchange","category":"Optimize","urls":["*.a.example.com"],
    "ips":["52.96.0.0/14","2603:1006::/40"],"tcpPorts":"80,443","udpPorts":"3478-3481","required":true}]"#;

proptest! {
    /// No bytes make the parser panic, and what it accepts keeps its promises.
    #[test]
    fn whatever_the_bytes_the_answer_is_a_sound_feed_or_a_refusal(
        edits in prop::collection::vec((0..WHOLE.len(), prop::option::of(any::<u8>())), 0..4),
        digits in prop::collection::vec((0..WHOLE.len(), b'0'..=b'9'), 0..4),
    ) {
        let mut bytes = WHOLE.as_bytes().to_vec();
        for (place, digit) in digits {
            if bytes[place].is_ascii_digit() {
                bytes[place] = digit;
            }
        }
        for (place, edit) in edits {
            match edit {
                Some(byte) => bytes[place] = byte,
                None => bytes.truncate(place),
            }
            bytes.resize(WHOLE.len(), b' ');
        }
        if let Ok(feed) = Feed::parse("feed.json", &bytes, Instance::Worldwide) {
            for prefix in feed.sets.iter().flat_map(|set| &set.prefixes) {
                prop_assert_eq!(*prefix, prefix.trunc());
                prop_assert_eq!(never_steered(prefix), None);
                prop_assert!(prefix.prefix_len() >= 10);
            }
        }
    }
}
