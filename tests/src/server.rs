//! What answers in the front ends: on every local address, TCP and UDP.
//!
//! Every request ends with `#` and a token (a line of it in TCP, a datagram of it in UDP); the
//! answer is `<site> <source address and port as seen here> #<token>`. A request without `#` gets
//! no answer: that is one-way traffic. TCP connections stay open for more lines.
//!
//! What begins as a TLS hello is shaken hands with, with a certificate of the lab's own authority
//! ([`authority`]), and a STUN binding request is answered: that is what steer probes with.

use std::{
    collections::HashMap,
    fmt,
    io::{ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
        sockopt::Ipv6RecvPacketInfo,
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde::Serialize;

use crate::namespace::Namespace;

/// Which front end answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Site {
    /// Reached by the breakout.
    Near,
    /// Reached by the backbone.
    Far,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Near => "near",
            Self::Far => "far",
        })
    }
}

/// A running responder. Dropping it closes all connections.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on these ports of every address of the namespace.
    pub fn start(
        namespace: &Namespace,
        site: Site,
        tcp_ports: &[u16],
        udp_ports: &[u16],
    ) -> Result<Self> {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let responder = namespace.run(|| {
            let mut responder = Responder {
                site,
                listeners: vec![],
                sockets: vec![],
                connections: HashMap::new(),
            };
            for port in tcp_ports {
                let listener = TcpListener::bind(any(*port))
                    .with_context(|| format!("listen on TCP port {port}"))?;
                listener.set_nonblocking(true)?;
                responder.listeners.push(listener);
            }
            for port in udp_ports {
                let socket = UdpSocket::bind(any(*port))
                    .with_context(|| format!("listen on UDP port {port}"))?;
                socket.set_nonblocking(true)?;
                setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
                responder.sockets.push(socket);
            }
            Ok(responder)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new()
            .name(format!("server-{site}"))
            .spawn({
                let stop = Arc::clone(&stop);
                move || responder.run(&stop)
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to a request, or nothing for one-way traffic.
fn answer(site: Site, source: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let token = &request[request.iter().rposition(|byte| *byte == b'#')?..];
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    Some([format!("{site} {source} ").as_bytes(), token].concat())
}

/// Who the front doors' certificates are by, and the front doors' own side of TLS.
#[derive(Debug)]
pub struct Authority {
    /// Its certificate, in PEM.
    pub pem: String,
    tls: Arc<rustls::ServerConfig>,
}

/// The first byte of a TLS record with a part of a handshake.
const HANDSHAKE: u8 = 22;

/// The names that the front doors' certificates hold.
const NAMES: [&str; 3] = [
    "outlook.cloud.microsoft",
    "outlook.office.com",
    "outlook.office365.com",
];

/// The lab's authority, one for the process.
pub fn authority() -> Result<&'static Authority> {
    static AUTHORITY: OnceLock<Result<Authority, String>> = OnceLock::new();
    AUTHORITY
        .get_or_init(|| Authority::make().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

impl Authority {
    fn make() -> Result<Self> {
        let mut parameters = CertificateParams::new(vec![])?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names: Vec<String> = NAMES.map(Into::into).into();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        Ok(Self {
            pem: issuer.pem(),
            tls: Arc::new(tls),
        })
    }
}

/// The success of a STUN binding request (RFC 8489) without attributes; nothing for anything else, as
/// for what the lab's clients say to a media relay.
fn stun_answer(request: &[u8]) -> Option<Vec<u8>> {
    let header: &[u8; 20] = request.try_into().ok()?;
    let is_request = header[..2] == [0, 1] && header[4..8] == [0x21, 0x12, 0xa4, 0x42];
    is_request.then(|| [&[1, 1, 0, 0], &header[4..]].concat())
}

struct Responder {
    site: Site,
    listeners: Vec<TcpListener>,
    sockets: Vec<UdpSocket>,
    connections: HashMap<RawFd, Connection>,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    pending: Vec<u8>,
    tls: Option<rustls::ServerConnection>,
}

impl Responder {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let ready: Vec<RawFd> = {
                let sources = self.listeners.iter().map(TcpListener::as_fd);
                let sources = sources.chain(self.sockets.iter().map(UdpSocket::as_fd));
                let sources = sources.chain(self.connections.values().map(|c| c.stream.as_fd()));
                let mut polled: Vec<_> = sources
                    .map(|source| PollFd::new(source, PollFlags::POLLIN))
                    .collect();
                let _ = poll(&mut polled, PollTimeout::from(50_u8));
                let ready = polled.iter().filter(|p| p.any().unwrap_or(false));
                ready.map(|p| p.as_fd().as_raw_fd()).collect()
            };
            for descriptor in ready {
                if let Some(connection) = self.connections.get_mut(&descriptor) {
                    if !connection.serve(self.site) {
                        self.connections.remove(&descriptor);
                    }
                } else if let Some(socket) = self
                    .sockets
                    .iter()
                    .find(|socket| socket.as_raw_fd() == descriptor)
                {
                    serve_datagrams(self.site, socket);
                } else {
                    self.accept(descriptor);
                }
            }
        }
    }

    fn accept(&mut self, descriptor: RawFd) {
        let Some(listener) = self.listeners.iter().find(|l| l.as_raw_fd() == descriptor) else {
            return;
        };
        while let Ok((stream, peer)) = listener.accept() {
            if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            let descriptor = stream.as_raw_fd();
            self.connections.insert(
                descriptor,
                Connection {
                    stream,
                    peer,
                    pending: vec![],
                    tls: None,
                },
            );
        }
    }
}

impl Connection {
    /// Answers what has arrived; false when the connection is over.
    fn serve(&mut self, site: Site) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if self.tls.is_some() || self.pending.first() == Some(&HANDSHAKE) {
            return self.shake_hands().is_ok();
        }
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            // Answers are a few bytes: a full send buffer means that the client reads nothing.
            let reply = answer(site, self.peer, &line);
            if reply.is_some_and(|reply| self.stream.write_all(&reply).is_err()) {
                return false;
            }
        }
        true
    }
}

impl Connection {
    /// Takes in what has arrived of a TLS handshake and answers it.
    fn shake_hands(&mut self) -> Result<()> {
        if self.tls.is_none() {
            let config = Arc::clone(&authority()?.tls);
            self.tls = Some(rustls::ServerConnection::new(config)?);
        }
        let tls = self.tls.as_mut().context("it was made before")?;
        let arrived = std::mem::take(&mut self.pending);
        let mut arrived = &arrived[..];
        while !arrived.is_empty() {
            tls.read_tls(&mut arrived)?;
            tls.process_new_packets()?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }
}

/// Answers from the address that was asked: a wildcard socket alone would choose another.
fn serve_datagrams(site: Site, socket: &UdpSocket) {
    loop {
        let mut buffer = [0; 2048];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        let (length, peer, info) = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let Ok(message) = recvmsg::<SockaddrIn6>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            ) else {
                return;
            };
            let info = message.cmsgs().ok().and_then(|mut messages| {
                messages.find_map(|control| match control {
                    ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
                    _ => None,
                })
            });
            (message.bytes, message.address, info)
        };
        let (Some(peer), Some(mut info)) = (peer, info) else {
            continue;
        };
        // The route decides the interface, as it would for TCP.
        info.ipi6_ifindex = 0;
        let source = SocketAddr::V6(SocketAddrV6::from(peer));
        let request = &buffer[..length];
        let Some(reply) = stun_answer(request).or_else(|| answer(site, source, request)) else {
            continue;
        };
        let _ = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&reply)],
            &[ControlMessage::Ipv6PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&peer),
        );
    }
}

/// Reads an answer: who gave it, the source it saw, and the token.
pub fn parse_answer(answer: &str) -> Option<(Site, SocketAddr, &str)> {
    let mut words = answer.split_ascii_whitespace();
    let site = match words.next()? {
        "near" => Site::Near,
        "far" => Site::Far,
        _ => return None,
    };
    let source: SocketAddr = words.next()?.parse().ok()?;
    Some((site, source, words.next()?.strip_prefix('#')?))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn an_answer_names_the_site_the_canonical_source_and_the_last_token() {
        let mapped: IpAddr = "::ffff:10.20.0.10".parse().unwrap();
        let reply = answer(Site::Near, SocketAddr::new(mapped, 4000), b"a#1 b#22\n").unwrap();
        let reply = String::from_utf8(reply).unwrap();
        assert_eq!(reply, "near 10.20.0.10:4000 #22\n");
        let expected = (Site::Near, "10.20.0.10:4000".parse().unwrap(), "22");
        assert_eq!(parse_answer(&reply), Some(expected));
    }

    #[test]
    fn a_request_without_a_token_is_one_way() {
        let source = "[fd00::1]:1".parse().unwrap();
        assert_eq!(answer(Site::Far, source, b"hello"), None);
    }
}
