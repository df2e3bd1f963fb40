//! Configurations that are refused, for the tests of this module and for those of a running
//! controller.

/// The smallest good file.
pub const GOOD: &str =
    "[[lan]]\ninterface = \"lan0\"\n[[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\n";

/// A bad configuration: what it is, the text with `@` where the error must point, the key, parts of the message.
pub type Case = (&'static str, String, &'static str, [&'static str; 2]);

/// Every bad configuration of one mistake.
pub fn bad() -> Vec<Case> {
    let mut cases = bad_values();
    cases.extend(bad_feeds());
    cases.extend(bad_names());
    cases.extend(bad_preferences());
    cases.extend(bad_delegations());
    cases.extend(bad_shapes());
    cases
}

/// The smallest good file with a line before it.
pub fn top(line: &str) -> String {
    format!("{line}\n{GOOD}")
}

/// The smallest good file with lines after it.
pub fn last(lines: &str) -> String {
    format!("{GOOD}{lines}\n")
}

fn lan(line: &str) -> String {
    GOOD.replace("[[breakout]]", &format!("{line}\n[[breakout]]"))
}

fn include(fields: &str) -> String {
    top(&format!("[select]\ninclude = [{{ {fields} }}]"))
}

#[rustfmt::skip] // one case, one line
fn bad_names() -> Vec<Case> {
    vec![
        ("resolver by name", last("resolvers = [@\"dns.example\"]"), "breakout[0].resolvers[0]", ["is no address", "192.0.2.53"]),
        ("resolver that cannot be one", last("resolvers = [@\"127.0.0.53\"]"), "breakout[0].resolvers[0]", ["cannot be a resolver", "provider's resolver"]),
        ("TCP queries in redirect mode", format!("mode = \"redirect\"\n{}", last("[dns]\ntcp = @\"forward\"")), "dns.tcp", ["mark mode only", "write \"pass\""]),
        ("unknown way for TCP queries", last("[dns]\ntcp = @\"proxy\""), "dns.tcp", ["pass, forward", "leave the key out"]),
        ("public resolver by name", last("[dns]\npublic = [@\"dns.example\"]"), "dns.public[0]", ["is no address", "192.0.2.53"]),
        ("public resolvers of a link", last("[dns]\npublic = [@\"link\"]"), "dns.public[0]", ["is no address", "for a breakout's"]),
        ("resolvers of the link twice", last("resolvers = [\"link\", @\"link\"]"), "breakout[0].resolvers[1]", ["is there twice", "write it once"]),
        ("resolver twice", last("resolvers = [\"192.0.2.53\", @\"192.0.2.53\"]"), "breakout[0].resolvers[1]", ["is there twice", "write it once"]),
        ("too many resolvers", last("resolvers = [\"192.0.2.1\", \"192.0.2.2\", \"192.0.2.3\", \"192.0.2.4\", @\"192.0.2.5\"]"), "breakout[0].resolvers[4]", ["more than 4", "leave the others out"]),
        ("shared addresses", last("[dns]\nshared = @\"all\""), "dns.shared", ["not one of askers, refuse", "choose one"]),
        ("queries", last("[dns]\nqueries = @\"true\""), "dns.queries", ["not one of steer, leave", "choose one"]),
        ("excluded name", last("[dns]\nexclude = [@\"a b.example\"]"), "dns.exclude[0]", ["is no host name", "*.corp.example.com"]),
        ("excluded name twice", last("[dns]\nexclude = [\"a.example\", @\"A.example\"]"), "dns.exclude[1]", ["is there twice", "write it once"]),
    ]
}

fn preference(lines: &str) -> String {
    last(&format!("[[preference]]\n{lines}"))
}

#[rustfmt::skip] // one case, one line
fn bad_preferences() -> Vec<Case> {
    vec![
        ("preference without classes", preference("name = @\"a\"\nbreakouts = [\"fiber\"]"), "preference[0].name", ["is about no class", "service_areas"]),
        ("preference for nothing", preference("name = @\"a\"\nsets = [1]"), "preference[0].name", ["prefers nothing", "when_degraded"]),
        ("preference for no breakout", preference("name = \"a\"\nsets = [1]\nbreakouts = @[]"), "preference[0].breakouts", ["names no breakout", "[select]"]),
        ("preference for an unknown breakout", preference("name = \"a\"\nsets = [1]\nbreakouts = [@\"cable\"]"), "preference[0].breakouts[0]", ["no breakout is called \"cable\"", "the name of one"]),
        ("preferred breakout twice", preference("name = \"a\"\nsets = [1]\nbreakouts = [\"fiber\", @\"fiber\"]"), "preference[0].breakouts[1]", ["is there twice", "write it once"]),
        ("preference twice", preference("name = \"a\"\nsets = [1]\nwhen_degraded = \"keep\"\n[[preference]]\nname = @\"a\"\nsets = [2]\nwhen_degraded = \"keep\""), "preference[1].name", ["names two preferences", "its own name"]),
        ("preference of an unknown area", preference("name = \"a\"\nservice_areas = [@\"mail\"]\nwhen_degraded = \"keep\""), "preference[0].service_areas[0]", ["mail", "correct the spelling"]),
        ("preference with a bad threshold", preference("name = \"a\"\nsets = [1]\nlatency = @\"0s\""), "preference[0].latency", ["out of range", "1ms to 1h"]),
    ]
}

#[rustfmt::skip] // one case, one line
fn bad_delegations() -> Vec<Case> {
    vec![
        ("delegated word", last("delegated = @\"yes\""), "breakout[0].delegated", ["is not one of auto, off", "choose one"]),
        ("delegated range", last("delegated_from = [@\"x\"]"), "breakout[0].delegated_from[0]", ["is not a prefix", "write an address"]),
        ("delegated IPv4", last("delegated_from = @[\"192.0.2.0/24\"]"), "breakout[0].delegated_from", ["only IPv6 prefixes are delegated", "name the provider's IPv6 ranges"]),
        ("delegated nowhere", last("delegated_from = @[]"), "breakout[0].delegated_from", ["is empty", "leave the key out"]),
        ("delegated twice", last("delegated = \"off\"\ndelegated_from = @[\"2001:db8::/32\"]"), "breakout[0].delegated_from", ["delegated is \"off\"", "leave the key out"]),
    ]
}

#[rustfmt::skip] // one case, one line
fn bad_feeds() -> Vec<Case> {
    vec![
        ("instance", top("[feed]\ninstance = @\"germany\""), "feed.instance", ["not one of worldwide, china, usgovdod, usgovgcchigh", "choose one of them"]),
        ("instance without a list", top("[feed]\ninstance = @\"china\""), "feed.instance", ["the built-in snapshot is Worldwide's, not China's", "feed.file"]),
        ("empty file", top("[feed]\nfile = @\"\""), "feed.file", ["is empty", "built-in snapshot"]),
        ("update policy", top("[feed]\nupdate = @\"sometimes\""), "feed.update", ["not one of off, automatic, approve, pinned", "choose one"]),
        ("asked too often", top("[feed]\ninterval = @\"5m\""), "feed.interval", ["not between 1h and a year", "once an hour at most"]),
        ("no TLS", top("[feed]\nurl = @\"http://mirror.example\""), "feed.url", ["begins with https://", "write one such as"]),
        ("via nothing", top("[feed]\nvia = @\"cable\""), "feed.via", ["\"cable\" is no breakout", "name of a [[breakout]]"]),
        ("guard out of range", top("[feed.guards]\nshrink = @101"), "feed.guards.shrink", ["not a number of 0 to 100", "correct the number"]),
        ("no public key", top("[feed]\nurl = \"https://m.example\"\npublic_key = @\"RWQ\""), "feed.public_key", ["\"RWQ\"", "second line of the .pub file"]),
        ("an unsigned folder", top("[feed]\nurl = @\"file:///var/lib/m365\""), "feed.url", ["only believed when it is signed", "public_key"]),
        ("no folder", top("[feed]\nurl = @\"file://m365\"\npublic_key = \"RWQzV9Hq6gyifvsAksgXXZrSDGvtSp4HX+1MH890gpRXncHyApymYeU9\""), "feed.url", ["no folder's address", "file:///var/lib/m365"]),
        ("a signer without a mirror", top("[feed]\npublic_key = @\"RWQzV9Hq6gyifvsAksgXXZrSDGvtSp4HX+1MH890gpRXncHyApymYeU9\""), "feed.public_key", ["Microsoft signs no lists", "name the mirror"]),
    ]
}

#[rustfmt::skip] // one case, one line
fn bad_values() -> Vec<Case> {
    vec![
        ("mode", top(r#"mode = @"tunnel""#), "mode", ["\"tunnel\" is not one of mark, redirect", "choose one of them"]),
        ("tenant", top("[feed]\ntenant = @\"contoso.onmicrosoft.com\""), "feed.tenant", ["is no tenant", "before .onmicrosoft.com"]),
        ("category", top("[select]\ncategories = [\"allow\", @\"best\"]"), "select.categories[1]", ["\"best\" is not one of optimize, allow, default", "correct the spelling"]),
        ("category twice", top("[select]\ncategories = [\"allow\", @\"Allow\"]"), "select.categories[1]", ["is there twice", "write it once"]),
        ("service area", top("[select]\nservice_areas = [@\"teams\"]"), "select.service_areas[0]", ["\"teams\" is not one of common, exchange, sharepoint, skype", "correct the spelling"]),
        ("nothing selected", top("[select]\ncategories = @[]"), "select.categories", ["nothing is selected", "leave the key out"]),
        ("set id", top("[select]\nexclude_sets = [10, @0]"), "select.exclude_sets[1]", ["0 is no set id", "steer endpoints list"]),
        ("set id twice", top("[select]\nexclude_sets = [10, @10]"), "select.exclude_sets[1]", ["set 10 is there twice", "write it once"]),
        ("host bits", top("[select]\nexclude = [@\"52.96.7.1/24\"]"), "select.exclude[0]", ["bits set after the first 24", "write 52.96.7.0/24 for the network or 52.96.7.1 for the host"]),
        ("prefix twice", top("[select]\nexclude = [\"52.96.7.0/24\", @\"52.96.7.0/24\"]"), "select.exclude[1]", ["is there twice", "write it once"]),
        ("no prefix", top("[select]\nexclude = [@\"outlook.office.com\"]"), "select.exclude[0]", ["is not a prefix", "write an address"]),
        ("list without a source", top("[[list]]\nname = @\"saas\""), "list[0].name", ["has no source", "add `file`, `url` or `builtin`"]),
        ("list with two sources", top("[[list]]\nname = \"saas\"\nbuiltin = @\"microsoft-updates\"\nfile = \"a.toml\""), "list[0].builtin", ["stands beside `file`", "keep one of the two"]),
        ("list from a URL and a file", top("[[list]]\nname = \"saas\"\nurl = \"https://x.example/\"\nfile = @\"a.toml\""), "list[0].file", ["stands beside `url`", "keep one of the two"]),
        ("list from a URL in the clear", top("[[list]]\nname = \"saas\"\nurl = @\"http://x.example/\""), "list[0].url", ["https", "https"]),
        ("list from a file that is asked for", top("[[list]]\nname = \"saas\"\nfile = \"a.toml\"\ninterval = @\"1h\""), "list[0].interval", ["stands without `url`", "leave it out"]),
        ("list that does not exist", top("[[list]]\nname = \"saas\"\nbuiltin = @\"adobe\""), "list[0].builtin", ["\"adobe\" is not one of microsoft-updates", "choose one"]),
        ("list in no file", top("[[list]]\nname = \"saas\"\nfile = @\"\""), "list[0].file", ["is empty", "name a file"]),
        ("list twice", top("[[list]]\nname = \"a\"\nbuiltin = \"microsoft-updates\"\n[[list]]\nname = @\"a\"\nfile = \"b\""), "list[1].name", ["names two lists", "its own name"]),
        ("include without prefixes", include(r#"name = "a", prefixes = @[]"#), "select.include[0].prefixes", ["holds no prefix", "name at least one"]),
        ("include of everything", include(r#"name = "a", prefixes = [@"0.0.0.0/0"]"#), "select.include[0].prefixes[0]", ["wider than /8", "default route"]),
        ("include of a private prefix", include(r#"name = "a", prefixes = [@"10.1.0.0/16"]"#), "select.include[0].prefixes[0]", ["private addresses", "public destinations"]),
        ("include with a bad name", include(r#"name = @"a b", prefixes = ["198.51.100.0/24"]"#), "select.include[0].name", ["\"a b\" is no name", "1 to 32 letters"]),
        ("include with a bad protocol", include(r#"name = "a", prefixes = ["198.51.100.0/24"], protocol = @"icmp""#), "select.include[0].protocol", ["not one of any, tcp, udp", "choose one"]),
        ("include with a bad port", include(r#"name = "a", prefixes = ["198.51.100.0/24"], ports = @"443,0""#), "select.include[0].ports", ["\"0\" is not a port", "3478-3481"]),
        ("include without a port", include(r#"name = "a", prefixes = ["198.51.100.0/24"], ports = @"""#), "select.include[0].ports", ["holds no port", "leave the key out"]),
        ("include with a bad category", include(r#"name = "a", prefixes = ["198.51.100.0/24"], category = @"vip""#), "select.include[0].category", ["\"vip\" is not one of", "write optimize"]),
        ("path id", last("[[breakout]]\nid = @16\nname = \"lte\"\ninterface = \"wwan0\""), "breakout[1].id", ["16 is no path id", "write 1 to 15"]),
        ("path id twice", last("[[breakout]]\nid = 1\nname = @\"lte\"\ninterface = \"wwan0\""), "breakout[1].name", ["\"fiber\" and \"lte\" have path id 1", "an `id` of its own"]),
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
        ("queries of host bits", lan("leave_queries_of = [@\"10.0.0.7/24\"]"), "lan[0].leave_queries_of[0]", ["bits set", "10.0.0.7 for the host"]),
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
        ("mask", last("[mark]\nmask = @0xff"), "mark.mask", ["0xff is not six bits", "0x003f0000"]),
        ("mask of scattered bits", last("[mark]\nmask = @0x1f100000"), "mark.mask", ["0x1f100000 is not six bits", "0xfc000000"]),
        ("order", last("[mark]\norder = @\"before\""), "mark.order", ["not one of last, first", "choose one"]),
        ("watch period", last("[mark]\nwatch_period = @\"soon\""), "mark.watch_period", ["\"soon\" is no duration", "130s"]),
        ("watch period too long", last("[mark]\nwatch_period = @\"2h\""), "mark.watch_period", ["longer than an hour", "130s"]),
        ("routes", last("[mark]\nroutes = @\"me\""), "mark.routes", ["not one of steer, external", "choose one"]),
        ("nat", last("[mark]\nnat = @\"none\""), "mark.nat", ["not one of steer, external", "choose one"]),
        ("no route table", last("[mark]\nroute_tables = @[]"), "mark.route_tables", ["names no table", "[\"main\"]"]),
        ("route table", last("[mark]\nroute_tables = [\"main\", @\"vpn\"]"), "mark.route_tables[1]", ["is no routing table", "a number"]),
        ("own route table", last("[mark]\nroute_tables = [@36501]"), "mark.route_tables[0]", ["steer's own", "other software"]),
        ("route table twice", last("[mark]\nroute_tables = [254, @\"main\"]"), "mark.route_tables[1]", ["is there twice", "write it once"]),
        ("xdp", last("[redirect]\nxdp = @\"offload\""), "redirect.xdp", ["not one of auto, native, generic", "choose one"]),
        ("probes", last("[health]\nprobes = @\"true\""), "health.probes", ["not one of on, off", "choose one"]),
        ("target without a kind", last("[health]\ntargets = [@{ name = \"a\" }]"), "health.targets[0]", ["is no target", "{ stun = "]),
        ("target of two kinds", last("[health]\ntargets = [@{ tls = \"192.0.2.1\", stun = \"192.0.2.1\" }]"), "health.targets[0]", ["is no target", "{ stun = "]),
        ("target by name", last("[health]\ntargets = [{ tls = @\"outlook.office.com\" }]"), "health.targets[0].tls", ["is no address", "13.107.6.152"]),
        ("target's name", last("[health]\ntargets = [{ tls = \"192.0.2.1\", name = @\"a b\" }]"), "health.targets[0].name", ["is no host name", "outlook.office365.com"]),
        ("target twice", last("[health]\ntargets = [{ tls = \"192.0.2.1\" }, { tls = @\"192.0.2.1:443\" }]"), "health.targets[1].tls", ["is there twice", "write it once"]),
        ("probes too often", last("[health]\ninterval = @\"10ms\""), "health.interval", ["10ms is out of range", "200ms to 1h"]),
        ("probes of one breakout too seldom", last("probe_interval = @\"2h\""), "breakout[0].probe_interval", ["2h is out of range", "200ms to 1h"]),
        ("quorum of more than there are", last("[health]\ntargets = [{ tls = \"192.0.2.1\" }]\nquorum = @2"), "health.quorum", ["2 is out of range", "write 1 to 1"]),
        ("down after nothing", last("[health]\ndown_after = @0"), "health.down_after", ["0 is out of range", "1 to 20"]),
        ("hold", last("[health]\nhold = @\"long\""), "health.hold", ["is no duration", "30s"]),
        ("hold above its end", last("[health]\nhold = \"60s\"\nmax_hold = @\"30s\""), "health.max_hold", ["is shorter than hold", "at least as much"]),
        ("loss", last("[health]\nloss_percent = @101"), "health.loss_percent", ["101 is out of range", "1 to 100"]),
        ("when degraded", last("[health]\nwhen_degraded = @\"drop\""), "health.when_degraded", ["not one of next, keep, backbone", "choose one"]),
        ("when down", last("when_down = @\"drop\""), "breakout[0].when_down", ["not one of next, backbone, hold", "choose one"]),
        ("reset in redirect mode", format!("mode = \"redirect\"\n{}", last("[health]\non_path_loss = @\"reset\"")), "health.on_path_loss", ["needs mode = \"mark\"", "another word"]),
        ("trust", last("[health]\ntrust = @\"ca.pem\""), "health.trust", ["absolute path", "/etc/steer/trust.pem"]),
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
        ("unknown section", last("[@dnss]\nx = 1"), "dnss", ["unknown field `dnss`", "correct its spelling"]),
        ("number for text", top("mode = @1"), "mode", ["invalid type: integer `1`, expected a string", "--sample"]),
        ("text for number", last("weight = @\"heavy\""), "breakout[0].weight", ["invalid type: string", "--sample"]),
        ("text for list", top("[select]\nexclude = @\"52.96.7.0/24\""), "select.exclude", ["invalid type: string", "--sample"]),
        ("bool for VLAN", lan("vlans = @[true]"), "lan[0].vlans", ["neither a number nor a text", "--sample"]),
        ("section for sections", "@[lan]\ninterface = \"lan0\"\n".into(), "lan", ["invalid type: map", "--sample"]),
        ("missing name", last("@[[breakout]]\ninterface = \"brk1\""), "breakout[1]", ["missing field `name`", "add the key"]),
    ]
}
