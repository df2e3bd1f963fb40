//! Configurations good and bad.

use proptest::prelude::*;

use super::*;

const GOOD: &str =
    "[[lan]]\ninterface = \"lan0\"\n[[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\n";

/// Every key, none with its default.
const FULL: &str = r#"
mode = "redirect"
feed = { file = "f.json", instance = "china" }
[select]
categories = ["default"]
service_areas = ["skype"]
exclude_sets = []
include = [{ name = "own-saas", prefixes = ["198.51.100.0/24"], protocol = "tcp", ports = "443", category = "optimize" }]
exclude = ["52.96.7.1"]
[[lan]]
interface = "lan0"
vlans = [10, "100.20"]
sources = ["10.0.0.0/8"]
exclude_sources = ["10.0.0.7"]
[backbone]
interface = "bb0"
[[breakout]]
name = "fiber"
interface = "brk0"
gateway = "192.0.2.1"
gateway6 = "fe80::1"
valid_sources = ["2001:db8::/48"]
priority = 2
weight = 3
[mark]
mask = 0x3f000000
watch_period = "1s"
routes = "external"
nat = "external"
route_tables = ["main", 52]
[redirect]
xdp = "generic"
[metrics]
listen = "192.0.2.7:9365"
allow_remote = true
[system]
pin_dir = "/p"
state_dir = "/s"
run_dir = "/r"
"#;

fn refused(text: &str) -> ConfigError {
    Config::parse("steer.toml", text).unwrap_err()
}

/// A case: what it is, the text with `@` where the error must point, the key, parts of the message.
type Case = (&'static str, String, &'static str, [&'static str; 2]);

fn top(line: &str) -> String {
    format!("{line}\n{GOOD}")
}

fn last(lines: &str) -> String {
    format!("{GOOD}{lines}\n")
}

fn lan(line: &str) -> String {
    GOOD.replace("[[breakout]]", &format!("{line}\n[[breakout]]"))
}

fn include(fields: &str) -> String {
    top(&format!("[select]\ninclude = [{{ {fields} }}]"))
}

#[rustfmt::skip] // one case, one line
fn bad_values() -> Vec<Case> {
    vec![
        ("mode", top(r#"mode = @"tunnel""#), "mode", ["\"tunnel\" is not one of mark, redirect", "choose one of them"]),
        ("instance", top("[feed]\ninstance = @\"germany\""), "feed.instance", ["not one of worldwide, china, usgovdod, usgovgcchigh", "choose one of them"]),
        ("instance without a list", top("[feed]\ninstance = @\"china\""), "feed.instance", ["the built-in snapshot is Worldwide's, not China's", "feed.file"]),
        ("empty file", top("[feed]\nfile = @\"\""), "feed.file", ["is empty", "built-in snapshot"]),
        ("category", top("[select]\ncategories = [\"allow\", @\"best\"]"), "select.categories[1]", ["\"best\" is not one of optimize, allow, default", "correct the spelling"]),
        ("category twice", top("[select]\ncategories = [\"allow\", @\"Allow\"]"), "select.categories[1]", ["is there twice", "write it once"]),
        ("service area", top("[select]\nservice_areas = [@\"teams\"]"), "select.service_areas[0]", ["\"teams\" is not one of common, exchange, sharepoint, skype", "correct the spelling"]),
        ("nothing selected", top("[select]\ncategories = @[]"), "select.categories", ["nothing is selected", "leave the key out"]),
        ("set id", top("[select]\nexclude_sets = [10, @0]"), "select.exclude_sets[1]", ["0 is no set id", "steer endpoints list"]),
        ("set id twice", top("[select]\nexclude_sets = [10, @10]"), "select.exclude_sets[1]", ["set 10 is there twice", "write it once"]),
        ("host bits", top("[select]\nexclude = [@\"52.96.7.1/24\"]"), "select.exclude[0]", ["bits set after the first 24", "write 52.96.7.0/24 for the network or 52.96.7.1 for the host"]),
        ("prefix twice", top("[select]\nexclude = [\"52.96.7.0/24\", @\"52.96.7.0/24\"]"), "select.exclude[1]", ["is there twice", "write it once"]),
        ("no prefix", top("[select]\nexclude = [@\"outlook.office.com\"]"), "select.exclude[0]", ["is not a prefix", "write an address"]),
        ("include without prefixes", include(r#"name = "a", prefixes = @[]"#), "select.include[0].prefixes", ["holds no prefix", "name at least one"]),
        ("include of everything", include(r#"name = "a", prefixes = [@"0.0.0.0/0"]"#), "select.include[0].prefixes[0]", ["wider than /8", "default route"]),
        ("include of a private prefix", include(r#"name = "a", prefixes = [@"10.1.0.0/16"]"#), "select.include[0].prefixes[0]", ["private addresses", "public destinations"]),
        ("include with a bad name", include(r#"name = @"a b", prefixes = ["198.51.100.0/24"]"#), "select.include[0].name", ["\"a b\" is no name", "1 to 32 letters"]),
        ("include with a bad protocol", include(r#"name = "a", prefixes = ["198.51.100.0/24"], protocol = @"icmp""#), "select.include[0].protocol", ["not one of any, tcp, udp", "choose one"]),
        ("include with a bad port", include(r#"name = "a", prefixes = ["198.51.100.0/24"], ports = @"443,0""#), "select.include[0].ports", ["\"0\" is not a port", "3478-3481"]),
        ("include without a port", include(r#"name = "a", prefixes = ["198.51.100.0/24"], ports = @"""#), "select.include[0].ports", ["holds no port", "leave the key out"]),
        ("include with a bad category", include(r#"name = "a", prefixes = ["198.51.100.0/24"], category = @"vip""#), "select.include[0].category", ["\"vip\" is not one of", "write optimize"]),
        ("include twice", top("[select]\ninclude = [{ name = \"a\", prefixes = [\"198.51.100.0/24\"] }, { name = @\"a\", prefixes = [\"203.0.113.0/24\"] }]"), "select.include[1].name", ["names two includes", "its own name"]),
        ("interface too long", GOOD.replace("\"lan0\"", "@\"enp0s31f6u1u2.100\""), "lan[0].interface", ["longer than the 15", "ip link"]),
        ("interface with a slash", GOOD.replace("\"lan0\"", "@\"lan/0\""), "lan[0].interface", ["no interface name", "ip link"]),
        ("interface with a blank", GOOD.replace("\"lan0\"", "@\"lan 0\""), "lan[0].interface", ["holds a blank", "ip link"]),
        ("empty interface", GOOD.replace("\"lan0\"", "@\"\""), "lan[0].interface", ["is empty", "ip link"]),
        ("VLAN 0", lan("vlans = [10, @0]"), "lan[0].vlans[1]", ["is no VLAN", "1 to 4094"]),
        ("VLAN 4095", lan("vlans = [@4095]"), "lan[0].vlans[0]", ["is no VLAN", "1 to 4094"]),
        ("QinQ", lan("vlans = [@\"100.5000\"]"), "lan[0].vlans[0]", ["is no VLAN", "OUTER.INNER"]),
        ("VLAN twice", lan("vlans = [\"100.20\", @\"100.20\"]"), "lan[0].vlans[1]", ["VLAN 100.20 is there twice", "write it once"]),
        ("sources of everything", lan("sources = [@\"0.0.0.0/0\"]"), "lan[0].sources[0]", ["cannot be the clients", "leave the key out"]),
        ("multicast sources", lan("sources = [@\"ff00::/8\"]"), "lan[0].sources[0]", ["cannot be the clients", "leave the key out"]),
        ("left-out host bits", lan("exclude_sources = [@\"10.0.0.7/24\"]"), "lan[0].exclude_sources[0]", ["bits set", "10.0.0.7 for the host"]),
        ("LAN twice", last("[[lan]]\ninterface = @\"lan0\""), "lan[1].interface", ["in two [[lan]] sections", "merge"]),
        ("breakout name twice", last("[[breakout]]\nname = @\"fiber\"\ninterface = \"brk1\""), "breakout[1].name", ["names two breakouts", "its own name"]),
        ("breakout interface twice", last("[[breakout]]\nname = \"lte\"\ninterface = @\"brk0\""), "breakout[1].interface", ["interface of two breakouts", "VLAN or link for each"]),
        ("breakout is LAN", last("[[breakout]]\nname = \"lte\"\ninterface = @\"lan0\""), "breakout[1].interface", ["a LAN and a breakout", "name the right interface"]),
        ("backbone is breakout", last("[backbone]\ninterface = @\"brk0\""), "backbone.interface", ["the backbone and a breakout", "leave [backbone] out"]),
        ("gateway of the other family", last("gateway = @\"fe80::1\""), "breakout[0].gateway", ["is an IPv6 address", "gateway6"]),
        ("gateway6 of the other family", last("gateway6 = @\"192.0.2.1\""), "breakout[0].gateway6", ["is an IPv4 address", "write it as gateway"]),
        ("gateway with a length", last("gateway = @\"192.0.2.1/24\""), "breakout[0].gateway", ["is not an IPv4 address", "without a length"]),
        ("gateway unspecified", last("gateway = @\"0.0.0.0\""), "breakout[0].gateway", ["cannot be a next hop", "provider's router"]),
        ("gateway6 multicast", last("gateway6 = @\"ff02::1\""), "breakout[0].gateway6", ["cannot be a next hop", "provider's router"]),
        ("valid sources", last("valid_sources = [@\"x\"]"), "breakout[0].valid_sources[0]", ["is not a prefix", "write an address"]),
        ("priority", last("priority = @0"), "breakout[0].priority", ["0 is out of range", "1 to 100"]),
        ("weight", last("weight = @101"), "breakout[0].weight", ["101 is out of range", "1 to 100"]),
        ("mask", last("[mark]\nmask = @0xff"), "mark.mask", ["0xff is not the one", "0x3f000000"]),
        ("watch period", last("[mark]\nwatch_period = @\"soon\""), "mark.watch_period", ["\"soon\" is no duration", "130s"]),
        ("watch period too long", last("[mark]\nwatch_period = @\"2h\""), "mark.watch_period", ["longer than an hour", "130s"]),
        ("routes", last("[mark]\nroutes = @\"me\""), "mark.routes", ["not one of steer, external", "choose one"]),
        ("nat", last("[mark]\nnat = @\"none\""), "mark.nat", ["not one of steer, external", "choose one"]),
        ("no route table", last("[mark]\nroute_tables = @[]"), "mark.route_tables", ["names no table", "[\"main\"]"]),
        ("route table", last("[mark]\nroute_tables = [\"main\", @\"vpn\"]"), "mark.route_tables[1]", ["is no routing table", "a number"]),
        ("own route table", last("[mark]\nroute_tables = [@36501]"), "mark.route_tables[0]", ["steer's own", "other software"]),
        ("route table twice", last("[mark]\nroute_tables = [254, @\"main\"]"), "mark.route_tables[1]", ["is there twice", "write it once"]),
        ("xdp", last("[redirect]\nxdp = @\"offload\""), "redirect.xdp", ["not one of auto, native, generic", "choose one"]),
        ("metrics without a port", last("[metrics]\nlisten = @\"127.0.0.1\""), "metrics.listen", ["invalid socket address", "127.0.0.1:9365"]),
        ("metrics on port 0", last("[metrics]\nlisten = @\"[::1]:0\""), "metrics.listen", ["port 0", "127.0.0.1:9365"]),
        ("metrics for everybody", last("[metrics]\nlisten = @\"0.0.0.0:9365\""), "metrics.listen", ["0.0.0.0 is no loopback address", "allow_remote = true"]),
        ("relative path", last("[system]\npin_dir = @\"bpf\""), "system.pin_dir", ["absolute path", "/sys/fs/bpf/steer"]),
        ("path upwards", last("[system]\nstate_dir = @\"/var/../x\""), "system.state_dir", ["absolute path", "/var/lib/steer"]),
        ("root", last("[system]\nrun_dir = @\"/\""), "system.run_dir", ["absolute path", "/run/steer"]),
    ]
}

#[rustfmt::skip] // one case, one line
fn bad_shapes() -> Vec<Case> {
    vec![
        ("not TOML", "<html>@".into(), "", ["expected `=`", "correct it"]),
        ("unclosed text", top("mode = \"mark@"), "", ["expected `\"`", "correct it"]),
        ("key twice", top("mode = \"mark\"\n@mode = \"mark\""), "", ["duplicate key", "correct it"]),
        ("unknown key", top("@moode = \"mark\""), "moode", ["unknown field `moode`", "correct its spelling"]),
        ("unknown key deep", last("@gatway = \"192.0.2.1\""), "breakout[0].gatway", ["unknown field `gatway`, expected one of `name`, `interface`", "correct its spelling"]),
        ("unknown section", last("[@dns]\nx = 1"), "dns", ["unknown field `dns`", "correct its spelling"]),
        ("number for text", top("mode = @1"), "mode", ["invalid type: integer `1`, expected a string", "--sample"]),
        ("text for number", last("weight = @\"heavy\""), "breakout[0].weight", ["invalid type: string", "--sample"]),
        ("text for list", top("[select]\nexclude = @\"52.96.7.0/24\""), "select.exclude", ["invalid type: string", "--sample"]),
        ("bool for VLAN", lan("vlans = @[true]"), "lan[0].vlans", ["neither a number nor a text", "--sample"]),
        ("section for sections", "@[lan]\ninterface = \"lan0\"\n".into(), "lan", ["invalid type: map", "--sample"]),
        ("missing name", last("@[[breakout]]\ninterface = \"brk1\""), "breakout[1]", ["missing field `name`", "add the key"]),
    ]
}

#[test]
fn every_mistake_is_named_with_place_key_and_remedy() {
    for (what, marked, key, parts) in bad_values().into_iter().chain(bad_shapes()) {
        let offset = marked.find('@').unwrap();
        let error = refused(&marked.replacen('@', "", 1));
        let [problem] = error.problems() else {
            panic!("{what}: not one problem:\n{error}")
        };
        let line = marked[..offset].matches('\n').count() + 1;
        let column = marked[..offset].rsplit('\n').next().unwrap().len() + 1;
        assert_eq!(
            (problem.line, problem.column),
            (line, column),
            "{what}:\n{error}"
        );
        assert_eq!(problem.key, key, "{what}:\n{error}");
        let message = error.to_string();
        assert!(
            message.contains(&format!("steer.toml:{line}:{column}")),
            "{what}:\n{message}"
        );
        for part in parts {
            assert!(
                message.contains(part),
                "{what}: {part:?} is missing in\n{message}"
            );
        }
    }
}

#[test]
fn a_file_without_lan_or_breakout_is_refused() {
    let message = refused("").to_string();
    for part in [
        "no [[lan]]",
        "no [[breakout]]",
        "add [[breakout]]",
        "2 mistakes",
    ] {
        assert!(message.contains(part), "{part:?} is missing in\n{message}");
    }
}

#[test]
fn a_sixteenth_breakout_is_refused() {
    let many = |count: usize| {
        let more = (1..count)
            .map(|n| format!("[[breakout]]\nname = \"b{n}\"\ninterface = \"brk{n}\""))
            .collect::<Vec<_>>();
        last(&more.join("\n"))
    };
    assert_eq!(
        Config::parse("steer.toml", &many(15))
            .unwrap()
            .breakouts
            .len(),
        15
    );
    assert!(
        refused(&many(16))
            .to_string()
            .contains("breakout 16 of at most 15")
    );
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_and_shown() {
    let error = refused(
        "mode = \"x\"\n[[lan]]\ninterface = \"a/b\"\n[[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\ngateway = \"::1\"\n",
    );
    assert_eq!(error.problems().len(), 3);
    let shown = "steer.toml:7:11: breakout[0].gateway: \"::1\" is an IPv6 address\n   |\n 7 | gateway = \"::1\"\n   |           ^^^^^\n   remedy: write it as gateway6";
    assert!(error.to_string().contains(shown), "{error}");
}

#[test]
fn an_unreadable_file_says_so() {
    let message = Config::read(Path::new("/nonexistent/steer.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("/nonexistent/steer.toml") && message.contains("--config FILE"),
        "{message}"
    );
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let config = Config::parse("steer.toml", GOOD).unwrap();
    assert_eq!(config.mode, Mode::Mark);
    assert_eq!(
        config.feed,
        FeedConfig {
            file: None,
            instance: Instance::Worldwide
        }
    );
    assert_eq!(config.select, Selection::default_for(Instance::Worldwide));
    assert_eq!(config.select.exclude_sets, BTreeSet::from([SetId(10)]));
    assert_eq!(
        (
            config.breakouts[0].id,
            config.breakouts[0].weight,
            config.breakouts[0].priority
        ),
        (1, 1, 1)
    );
    assert_eq!(config.mark.watch_period, Duration::from_secs(130));
    assert_eq!(config.mark.route_tables, [254]);
    assert_eq!(config.system.pin_dir, Path::new("/sys/fs/bpf/steer"));
}

#[test]
fn every_key_arrives() {
    let config = Config::parse("steer.toml", FULL).unwrap();
    let expected = Config {
        mode: Mode::Redirect,
        feed: FeedConfig {
            file: Some("f.json".into()),
            instance: Instance::China,
        },
        select: Selection {
            categories: BTreeSet::from([Category::Default]),
            service_areas: BTreeSet::from([ServiceArea::Skype]),
            exclude_sets: BTreeSet::new(),
            include: vec![OwnInclude {
                name: "own-saas".into(),
                prefixes: vec!["198.51.100.0/24".parse().unwrap()],
                tcp: "443".parse().unwrap(),
                udp: Ports::default(),
                category: Category::Optimize,
            }],
            exclude: vec!["52.96.7.1/32".parse().unwrap()],
        },
        lans: vec![Lan {
            interface: "lan0".parse().unwrap(),
            vlans: vec![Vlan::Single(10), Vlan::Stacked(100, 20)],
            sources: vec!["10.0.0.0/8".parse().unwrap()],
            exclude_sources: vec!["10.0.0.7/32".parse().unwrap()],
        }],
        backbone: Some("bb0".parse().unwrap()),
        breakouts: vec![Breakout {
            id: 1,
            name: "fiber".into(),
            interface: "brk0".parse().unwrap(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            gateway6: Some("fe80::1".parse().unwrap()),
            valid_sources: vec!["2001:db8::/48".parse().unwrap()],
            priority: 2,
            weight: 3,
        }],
        mark: MarkConfig {
            watch_period: Duration::from_secs(1),
            routes: Owner::External,
            nat: Owner::External,
            route_tables: vec![254, 52],
        },
        redirect: RedirectConfig {
            xdp: XdpChoice::Generic,
        },
        metrics: MetricsConfig {
            listen: Some("192.0.2.7:9365".parse().unwrap()),
        },
        system: SystemConfig {
            pin_dir: "/p".into(),
            state_dir: "/s".into(),
            run_dir: "/r".into(),
        },
    };
    assert_eq!(config, expected);
}

#[test]
fn a_relative_feed_path_is_relative_to_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steer.toml");
    for (file, expected) in [
        ("f.json", folder.path().join("f.json")),
        ("/f.json", "/f.json".into()),
    ] {
        std::fs::write(&path, top(&format!("[feed]\nfile = \"{file}\""))).unwrap();
        assert_eq!(Config::read(&path).unwrap().feed.file, Some(expected));
    }
}

/// The sample with every commented default written out is the same configuration.
#[test]
fn the_sample_parses_and_its_comments_show_the_defaults() {
    let sample = Config::parse("sample", SAMPLE).unwrap();
    let is_key = |line: &str| {
        line.strip_prefix("# ").is_some_and(|rest| {
            rest.split_once(" = ").is_some_and(|(key, _)| {
                key.bytes()
                    .all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'6'))
            })
        })
    };
    let examples = ["# file =", "# gateway6 =", "# include = [\n", "# listen ="];
    let written_out: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key)
                if is_key(line) && !examples.iter().any(|e| format!("{line}\n").starts_with(e)) =>
            {
                format!("{key}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(written_out.contains("\ninclude = []\n") && written_out.contains("\nrun_dir = "));
    assert_eq!(Config::parse("sample", &written_out).unwrap(), sample);
    for key in [
        "instance",
        "exclude_sets",
        "vlans",
        "valid_sources",
        "weight",
        "watch_period",
        "xdp",
        "allow_remote",
        "pin_dir",
    ] {
        assert!(written_out.contains(&format!("\n{key} = ")), "{key}");
    }
}

proptest! {
    /// However a file is damaged, the answer is a configuration or a mistake with a place in the file.
    #[test]
    fn a_damaged_file_is_refused_with_a_place_that_exists(
        edits in prop::collection::vec((0..FULL.len(), any::<char>()), 1..4),
        cut in prop::option::of(0..FULL.len()),
    ) {
        let mut text: Vec<char> = FULL.chars().collect();
        text.truncate(cut.unwrap_or(usize::MAX));
        for (place, edit) in edits {
            if let Some(old) = text.get_mut(place) {
                *old = edit;
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = Config::parse("steer.toml", &text) {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                prop_assert!(problem.line <= text.split('\n').count(), "{error}");
                prop_assert!(!problem.reason.is_empty() && !problem.remedy.is_empty(), "{error}");
            }
        }
    }
}
