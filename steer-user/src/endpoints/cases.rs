//! Feeds that are refused, for the tests of this module and for those of a running controller.

use super::limits;

/// A bad feed: what it is, what is fed, and what the message must hold: the place, the reason,
/// the remedy.
pub type Case = (&'static str, String, [&'static str; 3]);

/// Every bad feed.
pub fn bad() -> Vec<Case> {
    let many_sets = format!("[{}]", vec!["{}"; limits::SETS + 1].join(","));
    let many_prefixes = set_7(&format!(
        r#""ips":[{}]"#,
        vec![r#""40.126.0.0/18""#; limits::PREFIXES + 1].join(",")
    ));
    let many_names = set_7(&format!(
        r#""urls":[{}]"#,
        vec![r#""a.example.com""#; limits::NAMES + 1].join(",")
    ));
    let huge = " ".repeat(usize::try_from(limits::FILE_BYTES).map_or(0, |most| most + 1));
    #[rustfmt::skip] // one case, one line
    let cases = vec![
        ("empty", String::new(), ["the file", "is empty", "fetch it again"]),
        ("only blanks", " \n".into(), ["the file", "is empty", "fetch it again"]),
        ("HTML", "<!DOCTYPE html><html>".into(), ["the file", "HTML", "fetch it again"]),
        ("not JSON", "id,serviceArea\n1,Exchange".into(), ["the file", "not JSON: expected value at line 1", "fetch it again"]),
        ("cut off", set_7(r#""ips":["#).trim_end_matches(['}', ']']).into(), ["the file", "broken download", "fetch it again"]),
        ("an object", "{}".into(), ["the file", "not the list of sets", "fetch it again"]),
        ("a number", "7".into(), ["the file", "not the list of sets", "fetch it again"]),
        ("no sets", "[]".into(), ["the file", "has no sets", "fetch it again"]),
        ("version answer", r#"{"instance":"Worldwide","latest":"2018063000"}"#.into(), ["the file", "version method", "endpoints/INSTANCE"]),
        ("versions of all", r#"[{"instance":"Worldwide","latest":"2018063000"}]"#.into(), ["the file", "version method", "endpoints/INSTANCE"]),
        ("changes answer", r#"[{"id":3,"endpointSetId":33,"disposition":"Change"}]"#.into(), ["the file", "changes method", "endpoints/INSTANCE"]),
        ("absurd size", huge, ["the file", "16777217 bytes", "fetch it again"]),
        ("too many sets", many_sets, ["the file", "1001 sets", "fetch it again"]),
        ("too many prefixes", many_prefixes, ["the file", "10002 prefixes", "fetch it again"]),
        ("too many names", many_names, ["the file", "10001 names", "fetch it again"]),
        ("names only", r#"[{"id":1,"serviceArea":"Common","category":"Allow","urls":["a.example.com"]}]"#.into(), ["the file", "no prefix in any set", "fetch it again"]),
        ("record no object", with("7"), ["record 2", "not an object", "fetch it again"]),
        ("no id", with(r#"{"serviceArea":"Common"}"#), ["record 2", "has no id", "fetch it again"]),
        ("id a string", with(r#"{"id":"7"}"#), ["record 2", "\"7\"", "fetch it again"]),
        ("id zero", with(r#"{"id":0}"#), ["record 2", "1 to 65535", "fetch it again"]),
        ("id negative", with(r#"{"id":-1}"#), ["record 2", "1 to 65535", "fetch it again"]),
        ("id too large", with(r#"{"id":65536}"#), ["record 2", "1 to 65535", "fetch it again"]),
        ("duplicate id", with(r#"{"id":1,"serviceArea":"Common","category":"Allow","ips":["40.126.0.0/18"]}"#), ["set 1:", "there twice", "fetch the file again"]),
        ("ips a string", set_7(r#""ips":"52.96.0.0/14""#), ["set 7:", "wrong shape", "fetch it again"]),
        ("ips of numbers", set_7(r#""ips":[1]"#), ["set 7:", "wrong shape", "fetch it again"]),
        ("ports a number", set_7(r#""ips":["40.126.0.0/18"],"tcpPorts":443"#), ["set 7:", "wrong shape", "fetch it again"]),
        ("empty set", set_7(r#""tcpPorts":"443""#), ["set 7:", "neither names nor prefixes", "fetch it again"]),
        ("unknown category", with(r#"{"id":7,"serviceArea":"Common","category":"Urgent","ips":["40.126.0.0/18"]}"#), ["set 7: category", "\"Urgent\" is not one of optimize", "update steer"]),
        ("no category", with(r#"{"id":7,"serviceArea":"Common","ips":["40.126.0.0/18"]}"#), ["set 7: category", "is not one of", "update steer"]),
        ("no service area", with(r#"{"id":7,"category":"Allow","ips":["40.126.0.0/18"]}"#), ["set 7: serviceArea", "is not a word", "fetch it again"]),
        ("odd service area", with(r#"{"id":7,"serviceArea":"<b>","category":"Allow","ips":["40.126.0.0/18"]}"#), ["set 7: serviceArea", "is not a word", "fetch it again"]),
        ("everything", ips("0.0.0.0/0"), ["set 7: ips \"0.0.0.0/0\"", "wider than /10", "do not trust the file"]),
        ("everything, IPv6", ips("::/0"), ["set 7: ips \"::/0\"", "wider than /24", "do not trust the file"]),
        ("half of IPv4", ips("128.0.0.0/1"), ["set 7: ips \"128.0.0.0/1\"", "link-local", "do not trust the file"]),
        ("too wide", ips("52.0.0.0/9"), ["set 7: ips \"52.0.0.0/9\"", "wider than /10", "do not trust the file"]),
        ("too wide, IPv6", ips("2600::/23"), ["set 7: ips \"2600::/23\"", "wider than /24", "do not trust the file"]),
        ("private", ips("10.0.0.0/24"), ["set 7: ips \"10.0.0.0/24\"", "private", "do not trust the file"]),
        ("private 172", ips("172.16.5.0/24"), ["set 7: ips \"172.16.5.0/24\"", "private", "do not trust the file"]),
        ("private 192", ips("192.168.1.1/32"), ["set 7: ips \"192.168.1.1/32\"", "private", "do not trust the file"]),
        ("carrier NAT", ips("100.64.0.0/16"), ["set 7: ips \"100.64.0.0/16\"", "carrier NAT", "do not trust the file"]),
        ("loopback", ips("127.0.0.1/32"), ["set 7: ips \"127.0.0.1/32\"", "loopback", "do not trust the file"]),
        ("link-local", ips("169.254.0.0/16"), ["set 7: ips \"169.254.0.0/16\"", "link-local", "do not trust the file"]),
        ("multicast", ips("224.0.0.0/24"), ["set 7: ips \"224.0.0.0/24\"", "multicast", "do not trust the file"]),
        ("broadcast", ips("255.255.255.255/32"), ["set 7: ips \"255.255.255.255/32\"", "reserved", "do not trust the file"]),
        ("documentation", ips("203.0.113.0/24"), ["set 7: ips \"203.0.113.0/24\"", "documentation", "do not trust the file"]),
        ("loopback, IPv6", ips("::1/128"), ["set 7: ips \"::1/128\"", "loopback", "do not trust the file"]),
        ("IPv4-mapped", ips("::ffff:52.96.0.0/110"), ["set 7: ips", "IPv4-mapped", "do not trust the file"]),
        ("unique local", ips("fd00::/32"), ["set 7: ips \"fd00::/32\"", "private", "do not trust the file"]),
        ("link-local, IPv6", ips("fe80::/64"), ["set 7: ips \"fe80::/64\"", "link-local", "do not trust the file"]),
        ("multicast, IPv6", ips("ff02::/64"), ["set 7: ips \"ff02::/64\"", "multicast", "do not trust the file"]),
        ("documentation, IPv6", ips("2001:db8::/48"), ["set 7: ips \"2001:db8::/48\"", "documentation", "do not trust the file"]),
        ("host bits", ips("52.97.0.0/14"), ["set 7: ips \"52.97.0.0/14\"", "the network is 52.96.0.0/14", "fetch it again"]),
        ("host bits, IPv6", ips("2603:1006::1/40"), ["set 7: ips \"2603:1006::1/40\"", "the network is 2603:1006::/40", "fetch it again"]),
        ("length 33", ips("52.96.0.0/33"), ["set 7: ips \"52.96.0.0/33\"", "not a prefix", "fetch it again"]),
        ("no length", ips("52.96.0.1"), ["set 7: ips \"52.96.0.1\"", "not a prefix", "fetch it again"]),
        ("a netmask", ips("52.96.0.0/255.252.0.0"), ["set 7: ips", "not a prefix", "fetch it again"]),
        ("a range", ips("52.96.0.0-52.96.0.9"), ["set 7: ips", "not a prefix", "fetch it again"]),
        ("blank prefix", ips(""), ["set 7: ips \"\"", "not a prefix", "fetch it again"]),
        ("port 0", set_7(r#""ips":["40.126.0.0/18"],"tcpPorts":"0""#), ["set 7: tcpPorts", "\"0\" is not a port", "fetch it again"]),
        ("port 70000", set_7(r#""ips":["40.126.0.0/18"],"udpPorts":"443,70000""#), ["set 7: udpPorts", "\"70000\" is not a port", "fetch it again"]),
        ("backward range", set_7(r#""ips":["40.126.0.0/18"],"udpPorts":"3481-3478""#), ["set 7: udpPorts", "ends before it begins", "fetch it again"]),
        ("port name", set_7(r#""ips":["40.126.0.0/18"],"tcpPorts":"https""#), ["set 7: tcpPorts", "\"https\" is not a port", "fetch it again"]),
        ("URL", urls("https://outlook.office.com/"), ["set 7: urls", "is a URL", "fetch it again"]),
        ("wildcard of all", urls("*"), ["set 7: urls \"*\"", "no domain", "fetch it again"]),
        ("wildcard of a TLD", urls("*.com"), ["set 7: urls \"*.com\"", "last two labels", "fetch it again"]),
        ("empty label", urls("a..example.com"), ["set 7: urls", "empty or overlong label", "fetch it again"]),
        ("empty name", urls(""), ["set 7: urls \"\"", "1 to 253", "fetch it again"]),
        ("odd character", urls("a b.example.com"), ["set 7: urls", "no host name", "fetch it again"]),
        ("address as name", urls("52.96.0.1"), ["set 7: urls", "an address", "fetch it again"]),
    ];
    cases
}

/// A feed of one good set and whatever the case adds.
pub fn with(extra: &str) -> String {
    format!(
        r#"[{{"id":1,"serviceArea":"Exchange","category":"Optimize","ips":["52.96.0.0/14"],"tcpPorts":"443"}},{extra}]"#
    )
}

/// A second set, 7, with these fields besides id, service area and category.
pub fn set_7(fields: &str) -> String {
    with(&format!(
        r#"{{"id":7,"serviceArea":"Common","category":"Allow",{fields}}}"#
    ))
}

fn ips(entry: &str) -> String {
    set_7(&format!(
        r#""ips":["40.126.0.0/18","{entry}"],"tcpPorts":"443""#
    ))
}

fn urls(entry: &str) -> String {
    set_7(&format!(
        r#""urls":["a.example.com","{entry}"],"tcpPorts":"443""#
    ))
}
