//! A hop behind the breakout takes smaller packets than the office sends: its errors reach the client,
//! in both modes and families, and TCP gets through. Where it is the breakout itself, both ends of a
//! TCP connection are told while it begins.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use steer_tests::{
    lab::{Lab, LabOptions},
    server::{Site, parse_answer},
    steer::{Mode, Settings, Steer},
};

/// Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);
/// What the ISP's next hop takes. IPv6 asks for 1,280.
const MTU: &str = "1300";

fn errors_of_a_narrow_hop_reach_the_client(mode: Mode) {
    let lab = Lab::start(LabOptions {
        firewall: false,
        ..mode.office()
    })
    .unwrap();
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let steer = Steer::start(&lab, &settings).unwrap();
    lab.isp.ip(&format!("link set near0 mtu {MTU}\n")).unwrap();
    let captures = lab.capture().unwrap();
    // Each protocol its own address: what one learned would spare the other the error.
    for (udp, tcp) in [
        ("52.96.3.1", "52.96.3.2"),
        ("2603:1006::3:1", "2603:1006::3:2"),
    ] {
        datagram_is_told(&lab, udp.parse().unwrap());
        long_message_gets_through(&lab, tcp.parse().unwrap());
    }
    assert_eq!(captures.stop().unwrap().leaks(), []);
    steer.detach().unwrap();
}

/// Sends datagrams that are too large until the client knows that they are.
fn datagram_is_told(lab: &Lab, to: IpAddr) {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = lab
        .client
        .run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect((to, 443))?;
            Ok(socket)
        })
        .unwrap();
    let started = Instant::now();
    let known = || {
        let route = lab.client.output("ip", &["route", "get", &to.to_string()]);
        route.unwrap().contains(&format!("mtu {MTU}"))
    };
    while !known() {
        assert!(
            started.elapsed() < PATIENCE,
            "nobody told the client about {to}"
        );
        // It may fail with the error that was received for the one before.
        let _ = socket.send(&[0x40; 1400]);
        thread::sleep(Duration::from_millis(50));
    }
}

/// A message of many full segments is answered by the near front door.
fn long_message_gets_through(lab: &Lab, to: IpAddr) {
    let address = SocketAddr::new(to, 443);
    let answer = lab
        .client
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut message = vec![b'a'; 60_000];
            message.extend_from_slice(b"#1\n");
            stream.write_all(&message)?;
            let mut answer = Vec::new();
            let mut byte = [0];
            while byte != *b"\n" {
                stream.read_exact(&mut byte)?;
                answer.extend_from_slice(&byte);
            }
            Ok(String::from_utf8(answer)?)
        })
        .unwrap();
    let (site, _, token) = parse_answer(&answer).unwrap();
    assert_eq!((site, token), (Site::Near, "1"), "{to}: {answer}");
}

#[test]
fn errors_of_a_narrow_hop_reach_the_client_in_mark_mode() {
    errors_of_a_narrow_hop_reach_the_client(Mode::Mark);
}

#[test]
fn errors_of_a_narrow_hop_reach_the_client_in_redirect_mode() {
    errors_of_a_narrow_hop_reach_the_client(Mode::Redirect);
}

#[test]
fn both_ends_of_a_connection_are_told_what_the_breakout_takes() {
    let lab = Lab::start(LabOptions::default()).unwrap();
    let steer = Steer::start(&lab, &Settings::default()).unwrap();
    lab.router
        .ip(&format!("link set brk0 mtu {MTU}\n"))
        .unwrap();
    let started = Instant::now();
    let chain = ["list", "chain", "inet", "steer", "clamp"];
    while !lab.router.output("nft", &chain).unwrap().contains("1260") {
        assert!(started.elapsed() < PATIENCE, "steer does not see the MTU");
        thread::sleep(Duration::from_millis(50));
    }
    // What arrives at the provider, and at the client; nobody else is on the way.
    for (namespace, flags) in [(&lab.isp, "syn"), (&lab.client, "syn | ack")] {
        namespace
            .nft(&format!(
                "table inet judge {{
                    counter clamped {{ }}
                    counter large {{ }}
                    chain look {{
                        type filter hook prerouting priority 0; policy accept;
                        tcp flags & (syn | ack) != {flags} return
                        meta nfproto ipv4 tcp option maxseg size <= 1260 counter name clamped return
                        meta nfproto ipv6 tcp option maxseg size <= 1240 counter name clamped return
                        tcp option maxseg size > 0 counter name large
                    }}
                }}\n"
            ))
            .unwrap();
    }
    for to in ["52.96.3.3", "2603:1006::3:3"] {
        long_message_gets_through(&lab, to.parse().unwrap());
    }
    for (who, namespace) in [("provider", &lab.isp), ("client", &lab.client)] {
        let counters = namespace
            .output("nft", &["list", "counters", "table", "inet", "judge"])
            .unwrap();
        let packets: Vec<u64> = counters
            .lines()
            .filter_map(|line| line.trim().strip_prefix("packets "))
            .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
            .collect();
        let [clamped, large] = packets[..] else {
            panic!("{counters}")
        };
        assert!(clamped >= 2 && large == 0, "{who}: {counters}");
    }
    steer.detach().unwrap();
}
