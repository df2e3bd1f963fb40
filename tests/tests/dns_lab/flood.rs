//! Floods on the wire: answers that nobody asked for, and names that nobody has asked for before, while
//! a client goes on with its work.
//!
//! `STEER_DNS_FLOOD` is how many seconds each lasts, `STEER_DNS_FLOOD_RATE` how many packets a second
//! are sent at most; what was sent, and how the client fared, is printed.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use steer_tests::{
    lab::LabOptions,
    namespace::Namespace,
    scenario::flows,
    server::Site,
    steer::{BpfObject, Steer},
    traffic::probe_all,
};

use super::{HEADQUARTERS, Kind, Knowledge, NEAR, Office, PROVIDER, Question, Software, of, start};

/// What is sent by, and to, so many ports of each client: connection tracking has room for them.
const PORTS: u16 = 64;
/// A server at headquarters that swallows what it is asked.
const SILENT: &str = "93.184.216.99";
/// What answers that nobody asked for would teach: the first half of the addresses.
const LIES: [u8; 2] = [23, 66];

fn setting(name: &str, default: u64) -> u64 {
    let wanted = std::env::var(name).ok();
    wanted.map_or(default, |it| it.parse().unwrap())
}

/// Sends what `packet` makes of a number, as often as the settings say; how often that was.
fn send(
    from: &Namespace,
    sockets: &[UdpSocket],
    packet: impl Fn(u64) -> (Vec<u8>, SocketAddr) + Sync,
) -> u64 {
    let time = Duration::from_secs(setting("STEER_DNS_FLOOD", 3));
    let rate = u128::from(setting("STEER_DNS_FLOOD_RATE", 50_000));
    let started = Instant::now();
    from.run(|| {
        let mut sent = 0;
        while started.elapsed() < time {
            let due = started.elapsed().as_micros() * rate / 1_000_000;
            if u128::from(sent) >= due {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            let (message, to) = packet(sent);
            let socket = &sockets[usize::try_from(sent).unwrap() % sockets.len()];
            // A full queue loses packets, as floods do.
            let _ = socket.send_to(&message, to);
            sent += 1;
        }
        Ok(sent)
    })
    .unwrap()
}

/// How a client fared.
#[derive(Debug, Default)]
struct Fared {
    asked: u32,
    near: u32,
    again: u32,
    slowest: Duration,
}

/// A client asks for one name after another until `over`; every one of them must resolve.
fn goes_on(office: &Namespace, over: &AtomicBool) -> Fared {
    let mut fared = Fared::default();
    while !over.load(Ordering::Relaxed) {
        let name = format!("work{}.msftauth.net", fared.asked);
        let reply = Question::new(&name, Kind::A).ask(office, HEADQUARTERS[0]);
        assert!(reply.is_some(), "{name} has no answer");
        let reply = reply.unwrap();
        assert_eq!(reply.rcode, 0, "{name}");
        fared.asked += 1;
        fared.near += u32::from(reply.addresses == of(NEAR)[0]);
        fared.again += u32::from(reply.tries > 1);
        fared.slowest = fared.slowest.max(reply.time);
        thread::sleep(Duration::from_millis(5));
    }
    fared
}

/// The controller's resident memory, in KiB.
fn resident(steer: &Steer<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", steer.pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

/// The kernel's memory for each map that the controller holds, in bytes.
fn maps(steer: &Steer<'_>) -> Vec<(BpfObject, u64)> {
    let mut found = vec![];
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", steer.pid().unwrap())).unwrap() {
        let Ok(text) = fs::read_to_string(entry.unwrap().path()) else {
            continue;
        };
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|it| it.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            found.push((BpfObject::Map(id.try_into().unwrap()), bytes));
        }
    }
    found.sort_unstable();
    found
}

/// The learned addresses.
fn learned(steer: &Steer<'_>) -> BTreeSet<IpAddr> {
    let output = steer.command(&["dns", "--learned", "--json"]).unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = shown["learned"].as_array().unwrap().iter();
    all.map(|it| it["address"].as_str().unwrap().parse().unwrap())
        .collect()
}

/// Sockets of a namespace at these addresses.
fn bind(namespace: &Namespace, at: &[SocketAddr]) -> Vec<UdpSocket> {
    let all = namespace.run(|| Ok(at.iter().map(UdpSocket::bind).collect::<Result<_, _>>()?));
    all.unwrap()
}

/// Says what the two floods cost, and that nothing grew.
fn is_flat(before: &(Vec<(BpfObject, u64)>, u64), steer: &Steer<'_>) {
    let after = (maps(steer), resident(steer));
    let bytes: u64 = after.0.iter().map(|(_, bytes)| bytes).sum();
    println!(
        "{} maps: {bytes} bytes; the controller: {} KiB before, {} after",
        after.0.len(),
        before.1,
        after.1
    );
    assert_eq!(before.0, after.0);
    // What a flood would fill is thousands of times as much.
    assert!(
        after.1 < before.1 + 8192,
        "{} KiB, then {}",
        before.1,
        after.1
    );
}

/// A question, or the answer to it with a lie.
fn message(id: u16, name: &str, lie: Option<[u8; 2]>) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let (flags, answers) = if lie.is_some() {
        (0x8180_u16, 1)
    } else {
        (0x0100, 0)
    };
    let [flags, more] = flags.to_be_bytes();
    let mut message = vec![high, low, flags, more, 0, 1, 0, answers, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    if let Some(lie) = lie {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4]);
        message.extend([LIES[0], LIES[1], lie[0], lie[1]]);
    }
    message
}

#[test]
fn floods_teach_nothing_leave_the_plan_alone_and_the_client_gets_its_answers() {
    // Its owner's firewall would keep the answers out that nobody asked for.
    let options = LabOptions {
        firewall: false,
        ..LabOptions::default()
    };
    let near = Knowledge::every(NEAR);
    let office = Office::with(options, Software::Dnsmasq, Software::Unbound, &near);
    let Some(office) = office else { return };
    let lab = &office.lab;
    let (lan4, _) = lab.lan();
    let floods: Vec<Ipv4Addr> = (0..4_u32)
        .map(|host| Ipv4Addr::from_bits(lan4.network().to_bits() + 100 + host))
        .collect();
    for flood in &floods {
        let line = format!("addr add {flood}/24 dev eth0\n");
        lab.client.ip(&line).unwrap();
    }
    // Headquarters pretends to be the provider's resolver.
    let lines = format!(
        "addr add {SILENT}/32 dev lo\naddr add {}/32 dev lo\n",
        PROVIDER[0]
    );
    lab.hq.ip(&lines).unwrap();
    let clients: Vec<SocketAddr> = floods
        .iter()
        .flat_map(|client| {
            (20_000..20_000 + PORTS).map(|port| SocketAddr::new((*client).into(), port))
        })
        .collect();
    // Nobody reads what comes to them.
    let victims = bind(&lab.client, &clients);
    let provider = SocketAddr::new(PROVIDER[0].parse().unwrap(), 53);
    let silent = SocketAddr::new(SILENT.parse().unwrap(), 53);
    let [liar, _silence] = [bind(&lab.hq, &[provider]), bind(&lab.hq, &[silent])];
    let steer = start(lab, &PROVIDER);
    // What is learned rightly, from the first question on.
    assert_eq!(
        office.asked("one.msftauth.net"),
        of(NEAR),
        "{}",
        steer.log()
    );
    let known = learned(&steer);
    let before = (maps(&steer), resident(&steer));
    let over = AtomicBool::new(false);
    let under = |what: &str, flood: &(dyn Fn() -> u64 + Sync)| {
        over.store(false, Ordering::Relaxed);
        let started = Instant::now();
        let (sent, fared) = thread::scope(|scope| {
            let client = scope.spawn(|| goes_on(&lab.client, &over));
            let sent = flood();
            let elapsed = started.elapsed();
            over.store(true, Ordering::Relaxed);
            println!("{what}: {sent} in {elapsed:?}");
            (sent, client.join().unwrap())
        });
        println!("{what}: the client: {fared:?}");
        assert!(sent > 0 && fared.asked > 0, "{what}");
        assert_eq!(learned(&steer), known, "{what}");
        let plan = flows(3, 3);
        let replies = probe_all(&lab.client, &plan).unwrap();
        assert!(replies.iter().all(|it| it.site == Site::Near), "{what}");
    };
    under("answers that nobody asked for", &|| {
        send(&lab.hq, &liar, |number| {
            let [.., a, b] = number.to_be_bytes();
            let name = format!("work{}.msftauth.net", number % 100);
            let id = u16::from_be_bytes([b, a]);
            let to = clients[usize::try_from(number).unwrap() % clients.len()];
            (message(id, &name, Some([a, b])), to)
        })
    });
    // They went through the router, and nobody reads them but here.
    assert!(victims.iter().any(|it| {
        it.set_nonblocking(true).unwrap();
        it.recv(&mut [0; 512]).is_ok()
    }));
    under("names that nobody has asked for", &|| {
        send(&lab.client, &victims, |number| {
            let name = format!("n{number}.msftauth.net");
            let [.., a, b] = number.to_be_bytes();
            (message(u16::from_be_bytes([a, b]), &name, None), silent)
        })
    });
    is_flat(&before, &steer);
    let events = &steer.status().unwrap()["dns"]["events"];
    println!("events: {events}");
    steer.detach().unwrap();
}
