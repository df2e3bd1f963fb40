//! What a client's resolver library does: asks, waits, asks again.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    slice,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use steer_tests::namespace::Namespace;

/// As glibc has it (resolv.conf(5), timeout).
const TIMEOUT: Duration = Duration::from_secs(5);
/// One more than a client needs at worst.
const TRIES: u32 = 3;

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    A = 1,
    Aaaa = 28,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub name: &'a str,
    pub kind: Kind,
    /// The size of datagrams that EDNS announces; none: no EDNS.
    pub edns: Option<u16>,
    /// The client's address; none: the kernel's choice.
    pub source: Option<IpAddr>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    pub rcode: u8,
    pub truncated: bool,
    /// Those of the answer section.
    pub addresses: Vec<IpAddr>,
    /// How often the question was sent.
    pub tries: u32,
    /// From the first question to the answer that counts.
    pub time: Duration,
}

impl<'a> Question<'a> {
    /// As resolver libraries ask today.
    pub const fn new(name: &'a str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            edns: Some(1232),
            source: None,
        }
    }

    pub const fn edns(mut self, edns: Option<u16>) -> Self {
        self.edns = edns;
        self
    }

    pub const fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    fn message(&self) -> Vec<u8> {
        static IDS: AtomicU16 = AtomicU16::new(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let additional = self.edns.is_some().into();
        let mut message = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        for label in self.name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.bytes());
        }
        message.extend([0, 0, self.kind as u8, 0, 1]);
        if let Some(size) = self.edns {
            let [high, low] = size.to_be_bytes();
            message.extend([0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        }
        message
    }

    /// Asks over UDP. Asks again after 5 s of silence, and after SERVFAIL or REFUSED, as glibc does.
    /// None: no answer at all.
    pub fn ask(&self, client: &Namespace, server: &str) -> Option<Reply> {
        let server: IpAddr = server.parse().unwrap();
        let message = self.message();
        let any: IpAddr = match server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let local = SocketAddr::new(self.source.unwrap_or(any), 0);
        let started = Instant::now();
        let reply = client.run(|| {
            let socket = UdpSocket::bind(local)?;
            // An answer from anybody else is not heard.
            socket.connect((server, 53))?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            let mut reply = None;
            for tries in 1..=TRIES {
                let mut answer = vec![0; 4096];
                let received = socket.send(&message).and_then(|_| socket.recv(&mut answer));
                let Ok(length) = received else { continue };
                answer.truncate(length);
                let got = parse(&message, &answer, tries, started.elapsed());
                let good = matches!(got.rcode, 0 | 3);
                reply = Some(got);
                if good {
                    break;
                }
            }
            Ok(reply)
        });
        reply.unwrap()
    }

    /// Asks over TCP.
    pub fn ask_tcp(&self, client: &Namespace, server: &str) -> Reply {
        let mut connection = Connection::open(client, server);
        connection.ask(slice::from_ref(self)).remove(0)
    }
}

/// A connection to a server, for any number of questions.
pub struct Connection(TcpStream);

impl Connection {
    pub fn open(client: &Namespace, server: &str) -> Self {
        let server: IpAddr = server.parse().unwrap();
        let stream = client.run(|| Ok(TcpStream::connect((server, 53))?));
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(stream)
    }

    /// Asks all questions at once; the replies in their order, whatever that of the answers.
    pub fn ask(&mut self, questions: &[Question<'_>]) -> Vec<Reply> {
        let started = Instant::now();
        let messages: Vec<_> = questions.iter().map(Question::message).collect();
        let framed = messages.iter().flat_map(|message| {
            let length = u16::try_from(message.len()).unwrap().to_be_bytes();
            [&length[..], &message[..]].concat()
        });
        let framed: Vec<u8> = framed.collect();
        self.0.write_all(&framed).unwrap();
        let mut answers: Vec<Vec<u8>> = questions.iter().map(|_| self.read()).collect();
        let replies = messages.iter().map(|message| {
            let at = answers.iter().position(|it| it[..2] == message[..2]);
            let answer = answers.remove(at.unwrap());
            parse(message, &answer, 1, started.elapsed())
        });
        replies.collect()
    }

    fn read(&mut self) -> Vec<u8> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        self.0.read_exact(&mut answer).unwrap();
        answer
    }
}

fn parse(question: &[u8], answer: &[u8], tries: u32, time: Duration) -> Reply {
    assert_eq!(answer[..2], question[..2], "another message's id");
    let half = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
    let name_end = |mut at: usize| loop {
        match answer[at] {
            0 => break at + 1,
            length if length >= 0xc0 => break at + 2,
            length => at += 1 + usize::from(length),
        }
    };
    let mut at = 12;
    for _ in 0..half(4) {
        at = name_end(at) + 4;
    }
    let mut addresses = vec![];
    for _ in 0..half(6) {
        at = name_end(at);
        let (kind, length) = (half(at), usize::from(half(at + 8)));
        let data = &answer[at + 10..at + 10 + length];
        match kind {
            1 => addresses.push(<[u8; 4]>::try_from(data).unwrap().into()),
            28 => addresses.push(<[u8; 16]>::try_from(data).unwrap().into()),
            _ => {}
        }
        at += 10 + length;
    }
    Reply {
        rcode: answer[3] & 0x0f,
        truncated: answer[2] & 2 != 0,
        addresses,
        tries,
        time,
    }
}
