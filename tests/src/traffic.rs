//! What the client does: single flows that are probed, and fleets of long-lived ones that report
//! what happened to them.

use std::{
    collections::HashMap,
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket, sockopt,
    },
};
use serde::Serialize;

use crate::{
    namespace::Namespace,
    server::{Site, parse_answer},
};

/// How long a probe waits: far more than any round trip in the lab, and enough for the kernel to
/// send a first packet again.
const PATIENCE: Duration = Duration::from_secs(5);

/// After this long an unanswered datagram is sent again: several round trips.
const RETRANSMIT: Duration = Duration::from_millis(500);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP: QUIC-like on port 443, STUN-like (Teams media) on 3478 to 3481, bare elsewhere.
    Udp,
}

impl Protocol {
    /// The number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Where a client talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The front end's address.
    pub destination: IpAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The front end's port.
    pub port: u16,
    /// The client address to use; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
}

impl Flow {
    /// A TCP flow.
    pub const fn tcp(destination: IpAddr, port: u16) -> Self {
        Self {
            destination,
            protocol: Protocol::Tcp,
            port,
            source: None,
        }
    }

    /// A UDP flow.
    pub const fn udp(destination: IpAddr, port: u16) -> Self {
        Self {
            destination,
            protocol: Protocol::Udp,
            port,
            source: None,
        }
    }

    /// The same flow from a certain client address.
    pub const fn from(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// Opens the flow as a new one, exchanges three messages and closes it. The round trip is the
    /// quickest of the three.
    pub fn probe(self, client: &Namespace) -> Result<Answer> {
        let mut open = Open::new(self, client)?;
        let deadline = Instant::now() + PATIENCE;
        let mut best: Option<Answer> = None;
        for number in 0..3_u64 {
            let answer = open
                .exchange(number, deadline)
                .with_context(|| format!("{self} from {}", open.local))?;
            if best
                .as_ref()
                .is_none_or(|best| answer.round_trip < best.round_trip)
            {
                best = Some(answer);
            }
        }
        best.context("no exchange")
    }
}

/// Probes all flows at the same time; the answers come in the order of the flows.
pub fn probe_each(client: &Namespace, flows: &[Flow]) -> Vec<Result<Answer>> {
    thread::scope(|scope| {
        let probes: Vec<_> = flows
            .iter()
            .map(|flow| scope.spawn(|| flow.probe(client)))
            .collect();
        let answers = probes.into_iter().map(|probe| match probe.join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        answers.collect()
    })
}

/// Probes all flows at the same time. Fails with the first that got no answer.
pub fn probe_all(client: &Namespace, flows: &[Flow]) -> Result<Vec<Answer>> {
    probe_each(client, flows).into_iter().collect()
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} port {}",
            self.protocol, self.destination, self.port
        )
    }
}

/// What a probe learned.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The flow that was probed.
    pub flow: Flow,
    /// The client's own address and port.
    pub local: SocketAddr,
    /// Who answered.
    pub site: Site,
    /// The client's address as the front end saw it: translated or not.
    pub seen_source: SocketAddr,
    /// From a request to its answer.
    pub round_trip: Duration,
}

/// An open flow of the client.
struct Open {
    flow: Flow,
    local: SocketAddr,
    channel: Channel,
    received: Vec<u8>,
    /// Bytes that a message of TCP carries there and back.
    load: usize,
    /// The next message of TCP that must be answered.
    next: u64,
}

enum Channel {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Open {
    fn new(flow: Flow, client: &Namespace) -> Result<Self> {
        let remote = SocketAddr::new(flow.destination, flow.port);
        let channel = client.run(|| {
            let kind = match flow.protocol {
                Protocol::Tcp => SockType::Stream,
                Protocol::Udp => SockType::Datagram,
            };
            let family = match remote {
                SocketAddr::V4(_) => AddressFamily::Inet,
                SocketAddr::V6(_) => AddressFamily::Inet6,
            };
            let descriptor = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
            if let Some(source) = flow.source {
                let local = SockaddrStorage::from(SocketAddr::new(source, 0));
                bind(descriptor.as_raw_fd(), &local)
                    .with_context(|| format!("the client has no address {source}"))?;
            }
            // A hang guard for connect.
            let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
            nix::sys::socket::setsockopt(&descriptor, sockopt::SendTimeout, &patience)?;
            connect(descriptor.as_raw_fd(), &SockaddrStorage::from(remote))
                .with_context(|| format!("connect by {flow}"))?;
            Ok(match flow.protocol {
                Protocol::Tcp => Channel::Tcp(TcpStream::from(descriptor)),
                Protocol::Udp => Channel::Udp(UdpSocket::from(descriptor)),
            })
        })?;
        let local = match &channel {
            Channel::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                stream.local_addr()?
            }
            Channel::Udp(socket) => {
                socket.set_nonblocking(true)?;
                socket.local_addr()?
            }
        };
        Ok(Self {
            flow,
            local,
            channel,
            received: vec![],
            load: 0,
            next: 0,
        })
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.channel {
            Channel::Tcp(stream) => stream.as_fd(),
            Channel::Udp(socket) => socket.as_fd(),
        }
    }

    fn send(&mut self, number: u64) -> std::io::Result<()> {
        let request = request(self.flow, number, self.load);
        match &mut self.channel {
            Channel::Tcp(stream) => stream.write_all(&request),
            Channel::Udp(socket) => socket.send(&request).map(drop),
        }
    }

    /// Every answer that has arrived: site, source as seen, number.
    fn receive(&mut self) -> std::io::Result<Vec<(Site, SocketAddr, u64)>> {
        let mut answers = vec![];
        let mut buffer = [0; 4096];
        loop {
            let result = match &mut self.channel {
                Channel::Tcp(stream) => stream.read(&mut buffer),
                Channel::Udp(socket) => socket.recv(&mut buffer),
            };
            match (result, &self.channel) {
                (Ok(0), Channel::Tcp(_)) => {
                    return Err(std::io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "closed by the peer",
                    ));
                }
                (Ok(length), Channel::Tcp(_)) => self.received.extend_from_slice(&buffer[..length]),
                (Ok(length), Channel::Udp(_)) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    self.received.push(b'\n');
                }
                (Err(error), _) if error.kind() == ErrorKind::WouldBlock => break,
                (Err(error), _) if error.kind() == ErrorKind::Interrupted => {}
                (Err(error), _) => return Err(error),
            }
        }
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some((site, source, token)) = parse_answer(&line)
                && let Some(number) = token.split(':').next().and_then(|it| it.parse().ok())
            {
                if self.flow.protocol == Protocol::Tcp {
                    self.check(number, token)?;
                }
                answers.push((site, source, number));
            }
        }
        Ok(answers)
    }

    /// A stream comes back whole: every message, in order, with the bytes that were sent.
    fn check(&mut self, number: u64, token: &str) -> std::io::Result<()> {
        if number != self.next || token != self::token(number, self.load) {
            let what = format!("message {} came back as {token:.40}", self.next);
            return Err(std::io::Error::new(ErrorKind::InvalidData, what));
        }
        self.next += 1;
        Ok(())
    }

    fn exchange(&mut self, number: u64, deadline: Instant) -> Result<Answer> {
        let mut sent = Instant::now();
        self.send(number)?;
        loop {
            for (site, seen_source, answered) in self.receive()? {
                if answered == number {
                    let round_trip = sent.elapsed();
                    let Self { flow, local, .. } = *self;
                    return Ok(Answer {
                        flow,
                        local,
                        site,
                        seen_source,
                        round_trip,
                    });
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no answer within {PATIENCE:?}");
            }
            // QUIC and STUN send again what is not answered, as the kernel does for TCP.
            let mut wait = left;
            if self.flow.protocol == Protocol::Udp {
                if sent.elapsed() >= RETRANSMIT {
                    self.send(number)?;
                    sent = Instant::now();
                }
                wait = wait.min(RETRANSMIT);
            }
            let mut polled = [PollFd::new(self.descriptor(), PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
            poll(&mut polled, wait)?;
        }
    }
}

/// A message as the protocol's first bytes would look, then `#number`.
fn request(flow: Flow, number: u64, load: usize) -> Vec<u8> {
    let mut bytes = match (flow.protocol, flow.port) {
        (Protocol::Tcp, _) => return format!("hello #{}\n", token(number, load)).into_bytes(),
        // QUIC version 1: an Initial with its long header, padded to 1,200 bytes (RFC 9000, 14.1),
        // then short headers.
        (Protocol::Udp, 443) if number == 0 => {
            let mut initial = vec![0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0];
            initial.resize(1_190, 0);
            initial
        }
        (Protocol::Udp, 443) => vec![0x40, 1, 2, 3, 4, 5, 6, 7, 8],
        // A STUN binding request (RFC 8489): type, length, magic cookie, transaction.
        (Protocol::Udp, 3478..=3481) => {
            let mut stun = vec![0x00, 0x01, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42];
            stun.extend_from_slice(&[7; 12]);
            stun
        }
        (Protocol::Udp, _) => vec![],
    };
    bytes.extend_from_slice(format!("#{number}").as_bytes());
    bytes
}

/// What is sent back of a message of TCP: its number, and bytes that no other message has.
fn token(number: u64, load: usize) -> String {
    let mut token = number.to_string();
    if load > 0 {
        token.push(':');
        let mut words = number;
        while token.len() < load {
            words = words.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            token += &words.to_string();
        }
    }
    token
}

/// What happened to one long-lived flow so far.
#[derive(Clone, Debug)]
pub struct Record {
    /// The flow.
    pub flow: Flow,
    /// The client's own address and port.
    pub local: SocketAddr,
    /// Messages sent.
    pub sent: u64,
    /// Messages that were answered.
    pub answered: u64,
    /// The newest message that was answered.
    pub newest_answered: Option<u64>,
    /// Who answered, every change in order.
    pub sites: Vec<Site>,
    /// The sources that front ends saw, every change in order.
    pub sources: Vec<SocketAddr>,
    /// The error that ended it: a reset, an end of file, an ICMP error.
    pub broken: Option<String>,
}

impl Record {
    /// Whether the flow changed its way, its source or broke.
    pub fn was_moved(&self) -> bool {
        self.broken.is_some() || self.sites.len() > 1 || self.sources.len() > 1
    }
}

/// Long-lived flows that send a message each per period, on one thread.
#[derive(Debug)]
pub struct Fleet {
    records: Arc<Mutex<Vec<Record>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Opens all flows (TCP: connects) and starts to send.
    pub fn open(client: &Namespace, flows: &[Flow], period: Duration) -> Result<Self> {
        Self::transfer(client, flows, period, 0)
    }

    /// The same with long transfers: each message of TCP carries a load of bytes that must come
    /// back as they were sent, and follows once the one before has come back.
    pub fn transfer(
        client: &Namespace,
        flows: &[Flow],
        period: Duration,
        load: usize,
    ) -> Result<Self> {
        let open: Vec<Open> = flows
            .iter()
            .map(|flow| {
                let open = Open::new(*flow, client)?;
                Ok(Open { load, ..open })
            })
            .collect::<Result<_>>()?;
        let records = open.iter().map(|open| Record {
            flow: open.flow,
            local: open.local,
            sent: 0,
            answered: 0,
            newest_answered: None,
            sites: vec![],
            sources: vec![],
            broken: None,
        });
        let records = Arc::new(Mutex::new(records.collect()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("fleet".into()).spawn({
            let (records, stop) = (Arc::clone(&records), Arc::clone(&stop));
            move || sail(open, &records, &stop, period)
        })?;
        Ok(Self {
            records,
            stop,
            thread: Some(thread),
        })
    }

    /// What happened so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// Waits until every flow that is not broken got an answer to a message sent after this call.
    /// Returns those that stayed silent for `patience`.
    pub fn wait_for_silent(&self, patience: Duration) -> Vec<Record> {
        let sent: Vec<u64> = self.records().iter().map(|record| record.sent).collect();
        let deadline = Instant::now() + patience;
        loop {
            let records = self.records().into_iter().zip(&sent);
            let silent: Vec<_> = records
                .filter(|(record, sent)| {
                    record.broken.is_none() && record.newest_answered.is_none_or(|new| new < **sent)
                })
                .map(|(record, _)| record)
                .collect();
            if silent.is_empty() || Instant::now() > deadline {
                return silent;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until every flow got an answer to a message sent after this call.
    pub fn wait_for_answers(&self, patience: Duration) -> Result<()> {
        if let Some(silent) = self.wait_for_silent(patience).first() {
            bail!(
                "{} from {} is silent since {patience:?}",
                silent.flow,
                silent.local
            );
        }
        match self
            .records()
            .into_iter()
            .find(|record| record.broken.is_some())
        {
            Some(broken) => bail!(
                "{} from {} broke: {:?}",
                broken.flow,
                broken.local,
                broken.broken
            ),
            None => Ok(()),
        }
    }

    /// Ends all flows and returns what happened to them.
    pub fn stop(mut self) -> Vec<Record> {
        self.end();
        self.records()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(records: &Mutex<Vec<Record>>) -> std::sync::MutexGuard<'_, Vec<Record>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sail(mut open: Vec<Open>, records: &Mutex<Vec<Record>>, stop: &AtomicBool, period: Duration) {
    let index: HashMap<RawFd, usize> = open
        .iter()
        .enumerate()
        .map(|(i, open)| (open.descriptor().as_raw_fd(), i))
        .collect();
    // The flows speak one after the other, spread over the period, as real ones would: whatever
    // happens to the router meets some of them between a question and its answer, and some idle.
    let begin = Instant::now();
    let share = period / u32::try_from(open.len()).unwrap_or(u32::MAX).max(1);
    let mut due: Vec<Instant> = (0..).zip(&open).map(|(i, _)| begin + share * i).collect();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        for ((open, record), due) in open.iter_mut().zip(lock(records).iter_mut()).zip(&mut due) {
            let busy = open.load > 0
                && record.flow.protocol == Protocol::Tcp
                && record.answered < record.sent;
            if now >= *due && record.broken.is_none() && !busy {
                *due = now + period;
                note(record, open.send(record.sent));
                record.sent += 1;
            }
        }
        let ready: Vec<usize> = {
            let alive: Vec<bool> = lock(records).iter().map(|r| r.broken.is_none()).collect();
            let alive = open.iter().zip(alive).filter(|(_, alive)| *alive);
            let mut polled: Vec<_> = alive
                .map(|(open, _)| PollFd::new(open.descriptor(), PollFlags::POLLIN))
                .collect();
            // Short, so that a sender is late by little.
            let wait = share.clamp(Duration::from_millis(1), Duration::from_millis(10));
            let _ = poll(
                &mut polled,
                PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO),
            );
            let ready = polled.iter().filter(|p| p.any().unwrap_or(false));
            ready
                .filter_map(|p| index.get(&p.as_fd().as_raw_fd()).copied())
                .collect()
        };
        let mut records = lock(records);
        for i in ready {
            let record = &mut records[i];
            match open[i].receive() {
                Ok(answers) => answers
                    .into_iter()
                    .for_each(|answer| take_down(record, answer)),
                Err(error) => note(record, Err(error)),
            }
        }
    }
}

fn take_down(record: &mut Record, (site, source, number): (Site, SocketAddr, u64)) {
    record.answered += 1;
    record.newest_answered = record.newest_answered.max(Some(number));
    if record.sites.last() != Some(&site) {
        record.sites.push(site);
    }
    if record.sources.last() != Some(&source) {
        record.sources.push(source);
    }
}

fn note(record: &mut Record, result: std::io::Result<()>) {
    if let Err(error) = result {
        record.broken = Some(error.to_string());
    }
}

/// Sends a packet from the client exactly as it is: `packet` starts at its IP header. For what no
/// socket would send, such as segments outside of any window.
pub fn inject(client: &Namespace, packets: &[Vec<u8>]) -> Result<()> {
    client.run(|| {
        // nix names no IPPROTO_RAW for IPv6; the socket is the plain system call.
        let raw = |family| -> Result<OwnedFd> {
            // SAFETY: socket takes no pointers.
            let descriptor = unsafe { libc::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW) };
            if descriptor < 0 {
                return Err(std::io::Error::last_os_error()).context("open a raw socket");
            }
            // SAFETY: the descriptor is new and nobody else's.
            Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
        };
        let (v4, v6) = (raw(libc::AF_INET)?, raw(libc::AF_INET6)?);
        for packet in packets {
            let (socket, to) = match packet.first().map(|byte| byte >> 4) {
                Some(4) if packet.len() >= 20 => {
                    let bytes: [u8; 4] = packet[16..20].try_into()?;
                    (&v4, IpAddr::from(bytes))
                }
                Some(6) if packet.len() >= 40 => {
                    let bytes: [u8; 16] = packet[24..40].try_into()?;
                    (&v6, IpAddr::from(bytes))
                }
                _ => bail!("not an IP packet: {packet:02x?}"),
            };
            let to = SockaddrStorage::from(SocketAddr::new(to, 0));
            let flags = nix::sys::socket::MsgFlags::empty();
            match nix::sys::socket::sendto(socket.as_raw_fd(), packet, &to, flags) {
                // A full queue or a missing route loses a packet, as a network may.
                Ok(_) | Err(nix::Error::ENOBUFS | nix::Error::ENETUNREACH) => {}
                Err(error) => return Err(error).context("inject a packet"),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_like_their_protocols_and_end_with_the_token() {
        let to = "52.112.0.9".parse().unwrap();
        let initial = request(Flow::udp(to, 443), 0, 0);
        assert_eq!(initial[0] & 0xf0, 0xc0, "QUIC long header, Initial");
        assert!(initial.ends_with(b"#0"));
        assert_eq!(
            request(Flow::udp(to, 443), 7, 0)[0] & 0xc0,
            0x40,
            "QUIC short header"
        );
        let stun = request(Flow::udp(to, 3478), 12, 0);
        assert_eq!(stun[4..8], [0x21, 0x12, 0xa4, 0x42], "magic cookie");
        assert!(stun.ends_with(b"#12"));
        assert_eq!(request(Flow::tcp(to, 443), 3, 0), b"hello #3\n");
    }
}
