//! Proves whether the box's firewall lets through what steer grants, without touching the box: its
//! ruleset is loaded into a router made of network namespaces, and connections are made through it.
//!
//! ```text
//!   client ── lan0 [ copy of the ruleset ] brk0 ── server
//! ```
//!
//! The devices have the names they have in the box, the client an address of the LAN's, the server
//! one of Microsoft's. Instead of the program at the LAN, a rule sets the wish. The same connections
//! are made before the ruleset is loaded: only what worked then can be stopped by it.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use crate::{
    config::Config,
    controller::{self, look::View},
    endpoints::EndpointSet,
    system::{Family, InterfaceName, Mark, MarkBits, PathSpec, SystemError, facts::Facts, nft},
};

/// How one kind of connection fared on its way to a breakout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) lan: String,
    pub(super) breakout: String,
    protocol: Protocol,
    client: IpAddr,
    server: SocketAddr,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Stopped,
    /// The copy could not be made; why.
    Unproved(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(
            f,
            "{protocol} {} ({}) to {} by {}",
            self.client, self.lan, self.server, self.breakout
        )
    }
}

/// One breakout and family: what the copy must look like.
#[derive(Clone, Debug)]
struct Case {
    path: PathSpec,
    marks: MarkBits,
    lan: String,
    client: IpAddr,
    /// Who serves HTTPS, and who serves Teams' media.
    web: IpAddr,
    media: IpAddr,
    router: Vec<IpAddr>,
    /// Devices that the ruleset names besides.
    others: Vec<String>,
}

const HTTPS: u16 = 443;
/// Teams' media.
const MEDIA: u16 = 3478;
/// Each case has a few threads, mostly waiting.
const AT_ONCE: usize = 8;
/// The wires of the copy answer within a millisecond; a busy box may not.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes the connections for every breakout and family that it carries.
pub(super) async fn prove(
    config: &Config,
    view: &View,
    facts: &Facts,
    our_table: &str,
) -> Vec<Proof> {
    let mut ruleset = match nft::ruleset_text().await {
        Ok(text) => text,
        Err(error) => format!("# {error}"),
    };
    // Our table as it should be, not as it is: what is wrong with it is `objects`' to say.
    ruleset += "add table inet steer\ndelete table inet steer\n";
    ruleset += our_table;
    let cases = cases(config, view, facts, &ruleset);
    let (sender, receiver) = oneshot::channel();
    // Threads of their own: their network namespaces go with them.
    thread::spawn(move || {
        let mut proofs = Vec::new();
        for cases in cases.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let ruleset = &ruleset;
                let threads: Vec<_> = cases
                    .iter()
                    .map(|case| scope.spawn(move || case.prove(ruleset)))
                    .collect();
                // A thread that panicked has printed why; its case is missing.
                proofs.extend(
                    threads
                        .into_iter()
                        .filter_map(|it| it.join().ok())
                        .flatten(),
                );
            });
        }
        // Nobody waiting any more needs no answer.
        let _ = sender.send(proofs);
    });
    receiver.await.unwrap_or_default()
}

/// Every LAN, breakout and family that the breakout carries.
fn cases(config: &Config, view: &View, facts: &Facts, ruleset: &str) -> Vec<Case> {
    let mut found = Vec::new();
    for lan in &view.wanted.lan {
        for path in &view.wanted.paths {
            for (family, carried) in [
                (Family::V4, path.next_hop4.is_some()),
                (Family::V6, path.next_hop6.is_some()),
            ] {
                let (true, Some(client), Some((web, media))) = (
                    carried,
                    a_client(view, facts, lan, family),
                    servers(config, family),
                ) else {
                    continue;
                };
                let router = path.addresses.iter().copied();
                let others = facts.links.iter().map(|link| link.name.clone());
                found.push(Case {
                    path: path.clone(),
                    marks: view.wanted.marks,
                    lan: lan.to_string(),
                    client,
                    web,
                    media,
                    router: router.filter(|&it| Family::of(it) == family).collect(),
                    others: others
                        .filter(|name| {
                            name != "lo"
                                && name != lan.as_str()
                                && name != path.interface.as_str()
                                && ruleset.contains(&format!("\"{name}\""))
                        })
                        .collect(),
                });
            }
        }
    }
    found
}

/// An address of a client behind this LAN that is steered and is not the router's own.
fn a_client(view: &View, facts: &Facts, lan: &InterfaceName, family: Family) -> Option<IpAddr> {
    let excluded = |address: &IpAddr| view.left_out.iter().any(|net| net.contains(address));
    let connected = facts
        .link(lan.as_str())
        .map_or_else(Vec::new, |link| facts.connected(link.index));
    let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let behind = |net: &IpNet| connected.iter().any(|it| overlap(it, net));
    // Clients behind a router of the LAN's may be behind any of several LANs.
    let only_lan = view.wanted.lan.len() == 1;
    view.sources
        .iter()
        .filter(|net| Family::of(net.addr()) == family && (only_lan || behind(net)))
        // Past the first few, which routers like to have.
        .flat_map(|net| net.hosts().take(512).collect::<Vec<_>>().into_iter().rev())
        .find(|address| !view.own_addresses.contains(address) && !excluded(address))
}

/// Addresses of Microsoft's that serve HTTPS and Teams' media.
fn servers(config: &Config, family: Family) -> Option<(IpAddr, IpAddr)> {
    let feed = controller::read_feed(config).ok()?;
    let first = |serves: &dyn Fn(&EndpointSet) -> bool| {
        let sets = feed.sets.iter().filter(|set| serves(set));
        let mut prefixes = sets
            .flat_map(|set| &set.prefixes)
            .filter(|net| Family::of(net.addr()) == family);
        prefixes.find_map(|net| net.hosts().nth(1).or_else(|| net.hosts().next()))
    };
    let web = first(&|set| set.tcp.contains(HTTPS))?;
    Some((web, first(&|set| set.udp.contains(MEDIA)).unwrap_or(web)))
}

impl Case {
    /// Both, or one that does both.
    fn servers(&self) -> Vec<IpAddr> {
        let mut servers = vec![self.web, self.media];
        servers.dedup();
        servers
    }

    fn prove(&self, ruleset: &str) -> Vec<Proof> {
        let outcomes = match self.outcomes(ruleset) {
            Ok(outcomes) => outcomes,
            Err(why) => [Outcome::Unproved(why.clone()), Outcome::Unproved(why)],
        };
        let to = [
            (Protocol::Tcp, SocketAddr::new(self.web, HTTPS)),
            (Protocol::Udp, SocketAddr::new(self.media, MEDIA)),
        ];
        to.into_iter()
            .zip(outcomes)
            .map(|((protocol, server), outcome)| Proof {
                lan: self.lan.clone(),
                breakout: self.path.name.clone(),
                protocol,
                client: self.client,
                server,
                outcome,
            })
            .collect()
    }

    fn outcomes(&self, ruleset: &str) -> Result<[Outcome; 2], String> {
        let said = |error: io::Error| error.to_string();
        // nft shows what it cannot express, but does not read it, or reads it as a comment.
        let unreadable = ["xt match", "xt target", "# xt"];
        if unreadable.iter().any(|it| ruleset.contains(it)) {
            return Err("the ruleset has iptables extensions that cannot be copied".into());
        }
        let [client, router, server] = [new_namespace()?, new_namespace()?, new_namespace()?];
        self.connect(&client, &router, &server)?;
        let stop = Arc::new(AtomicBool::new(false));
        let serving = inside(&server, || Server::bind(self.web, self.media)).map_err(said)?;
        let serving = serving.run(&stop);
        let attempt = || {
            // Twice: a busy box may be slow once.
            let tcp = || inside(&client, || tcp(self.web));
            let udp = || inside(&client, || udp(self.client, self.media));
            [tcp().or_else(|_| tcp()), udp().or_else(|_| udp())]
        };
        let before = attempt();
        let loaded = inside(&router, || {
            let loaded = nft::load(ruleset).and_then(|()| nft::load(&self.wish()));
            loaded.map_err(|error: SystemError| io::Error::other(error))
        });
        let after = match loaded {
            Ok(()) => Ok(attempt()),
            Err(error) => Err(format!("the copy of the ruleset does not load: {error}")),
        };
        stop.store(true, Ordering::Relaxed);
        // The server sees the stop within its time limit; an error of its was seen by the client.
        let _ = serving.join();
        if let Some(error) = before.into_iter().find_map(Result::err) {
            return Err(format!(
                "the copy does not even work without rules: {error}"
            ));
        }
        Ok(after?.map(|attempt| match attempt {
            Ok(()) => Outcome::Passed,
            Err(_) => Outcome::Stopped,
        }))
    }

    /// What the program at the LAN does, as a rule.
    fn wish(&self) -> String {
        format!(
            "table inet steer-doctor {{ chain wish {{ type filter hook prerouting priority -300; \
             iifname \"{}\" meta mark set meta mark & {} | {}; }}; }}\n",
            self.lan,
            Mark::mask(self.marks).others(),
            self.path.id.wish(self.marks),
        )
    }

    /// Builds the wires, addresses and routes.
    fn connect(&self, client: &File, router: &File, server: &File) -> Result<(), String> {
        let path_of = |it: &File| format!("/proc/{}/fd/{}", std::process::id(), it.as_raw_fd());
        let (lan, brk) = (&self.lan, self.path.interface.as_str());
        let v4 = self.client.is_ipv4();
        // Gateways that collide with nothing of the box's.
        let (to_client, to_server, at_server, whole, nodad) = if v4 {
            ("169.254.77.1", "169.254.78.1", "169.254.78.2", 32, "")
        } else {
            ("fe80::77:1", "fe80::78:1", "fe80::78:2", 128, " nodad")
        };
        for (namespace, sysctls) in [
            (client, &[][..]),
            (
                router,
                &[
                    ("ipv4/ip_forward", "1"),
                    ("ipv6/conf/all/forwarding", "1"),
                    ("ipv4/conf/all/rp_filter", "0"),
                    ("ipv4/conf/default/rp_filter", "0"),
                ],
            ),
            (server, &[]),
        ] {
            inside(namespace, || {
                for (key, value) in sysctls {
                    std::fs::write(format!("/proc/sys/net/{key}"), value)?;
                }
                Ok(())
            })
            .map_err(|error| error.to_string())?;
        }
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!(
                "link add name {lan} type veth peer name peer netns {}",
                path_of(client)
            ),
            format!(
                "link add name {brk} type veth peer name peer netns {}",
                path_of(server)
            ),
        ];
        lines.extend(self.others.iter().enumerate().map(|(number, other)| {
            format!("link add name {other} type veth peer name steer-o{number}")
        }));
        lines.extend(
            self.router
                .iter()
                .map(|address| format!("addr add {address}/{whole} dev {brk}{nodad}")),
        );
        lines.extend([
            format!("addr add {to_client}/{whole} dev {lan}{nodad}"),
            format!("addr add {to_server}/{whole} dev {brk}{nodad}"),
            format!("link set {lan} up"),
            format!("link set {brk} up"),
            format!("route add {}/{whole} dev {lan}", self.client),
            format!("route add default via {at_server} dev {brk} onlink"),
        ]);
        ip(router, &lines)?;
        ip(
            client,
            &[
                format!("addr add {}/{whole} dev peer{nodad}", self.client),
                "link set peer up".into(),
                format!("route add default via {to_client} dev peer onlink"),
            ],
        )?;
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(
            self.servers()
                .iter()
                .map(|address| format!("addr add {address}/{whole} dev lo{nodad}")),
        );
        lines.extend([
            format!("addr add {at_server}/{whole} dev peer{nodad}"),
            "link set peer up".into(),
            format!("route add default via {to_server} dev peer onlink"),
        ]);
        ip(server, &lines)?;
        Ok(())
    }
}

fn tcp(to: IpAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, HTTPS), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)
}

fn udp(from: IpAddr, to: IpAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((to, MEDIA))?;
    socket.send(b"?")?;
    socket.recv(&mut [0]).map(drop)
}

/// Answers whatever comes.
struct Server {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Server {
    fn bind(web: IpAddr, media: IpAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind((web, HTTPS))?;
        let udp = UdpSocket::bind((media, MEDIA))?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(Self { tcp, udp })
    }

    /// The sockets stay in the namespace they were made in.
    fn run(self, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
        const REST: Duration = Duration::from_millis(1);
        let stop = Arc::clone(stop);
        thread::spawn(move || {
            let mut buffer = [0; 1];
            while !stop.load(Ordering::Relaxed) {
                let mut idle = true;
                if let Ok((mut stream, _)) = self.tcp.accept() {
                    idle = false;
                    // What fails here the client sees.
                    let _ = stream
                        .set_nonblocking(false)
                        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
                        .and_then(|()| stream.read_exact(&mut buffer))
                        .and_then(|()| stream.write_all(&buffer));
                }
                if let Ok((_, from)) = self.udp.recv_from(&mut buffer) {
                    idle = false;
                    let _ = self.udp.send_to(&buffer, from);
                }
                if idle {
                    thread::sleep(REST);
                }
            }
        })
    }
}

fn new_namespace() -> Result<File, String> {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    });
    match made.join() {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => Err(format!("cannot make a network namespace: {error}")),
        Err(_) => Err("cannot make a network namespace".into()),
    }
}

/// Runs `work` on a thread inside the namespace.
fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        match thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread ended")),
        }
    })
}

/// Carries out `ip` commands.
fn ip(namespace: &File, lines: &[String]) -> Result<(), String> {
    let lines = lines.join("\n") + "\n";
    let run = || {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A failure to write is ip's early end; it says why below.
            let _ = stdin.write_all(lines.as_bytes());
        }
        child.wait_with_output()
    };
    match inside(namespace, run) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "ip: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("ip: {error}")),
    }
}
