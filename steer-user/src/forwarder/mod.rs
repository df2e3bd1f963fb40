//! Queries over TCP: nftables hands the LAN's connections to port 53 to this listener, and those for
//! names of the plan are asked at the resolver of their breakout. Everything else goes on, word for
//! word and in the client's name, to the server that the client asked.
//!
//! What fails here lets connections go as if there was no listener: nftables hands over only to a
//! socket that is there, so the end of the controller, or too many connections, are enough.

mod connection;
mod knowledge;
mod message;
mod upstream;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tracing::{debug, warn};

pub use self::knowledge::{Knowledge, Way};
use crate::system::nft::QUERIES_TO;

/// Connections at a time. With so many, nobody listens: more of them go where clients send them.
const MOST: usize = 512;
/// When there are so few again, they are handed over again.
const FEW: usize = MOST * 3 / 4;
/// Connections of one client at a time; more are closed at once.
const MOST_OF_ONE: usize = 64;
const BACKLOG: u32 = 128;
const AGAIN: Duration = Duration::from_secs(5);

/// The listener and its connections; dropping it ends them.
pub struct Forwarder {
    knowledge: watch::Sender<Arc<Knowledge>>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

/// What was counted since the start.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    near: AtomicU64,
    fell_back: AtomicU64,
    passed: AtomicU64,
    turned_away: AtomicU64,
    learned: AtomicU64,
}

/// The values of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Connections that came.
    pub connections: u64,
    /// Queries that a breakout's resolver answered.
    pub near: u64,
    /// Queries that it did not answer, or with a failure, and that went where the client sent them.
    pub fell_back: u64,
    /// Other messages, which went where the client sent them.
    pub passed: u64,
    /// Connections of clients that had too many.
    pub turned_away: u64,
    /// Addresses that answers taught.
    pub learned: u64,
}

impl Forwarder {
    /// Listens. Must be called inside a tokio runtime.
    ///
    /// Fails when the address is taken.
    pub fn start(knowledge: Knowledge) -> io::Result<Self> {
        let listeners = Listeners::open()?;
        let (knowledge, known) = watch::channel(Arc::new(knowledge));
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(listen(listeners, known, Arc::clone(&counts)));
        Ok(Self {
            knowledge,
            counts,
            task,
        })
    }

    /// From the next query on this holds.
    pub fn know(&self, knowledge: Knowledge) {
        self.knowledge.send_replace(Arc::new(knowledge));
    }

    /// What was counted.
    pub fn count(&self) -> Count {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Count {
            connections: of(&self.counts.connections),
            near: of(&self.counts.near),
            fell_back: of(&self.counts.fell_back),
            passed: of(&self.counts.passed),
            turned_away: of(&self.counts.turned_away),
            learned: of(&self.counts.learned),
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Listeners {
    v4: TcpListener,
    /// None where the kernel has no IPv6.
    v6: Option<TcpListener>,
}

impl Listeners {
    fn open() -> io::Result<Self> {
        let [v4, v6] = QUERIES_TO;
        Ok(Self {
            v4: listener(v4)?,
            v6: match listener(v6) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                v6 => v6.ok(),
            },
        })
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.v6 {
            Some(v6) => tokio::select! {
                accepted = self.v4.accept() => accepted,
                accepted = v6.accept() => accepted,
            },
            None => self.v4.accept().await,
        }
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = upstream::socket(address)?;
    socket.set_reuseaddr(true)?;
    // Only such a socket is handed connections to other addresses.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens until it is ended.
async fn listen(
    listeners: Listeners,
    knowledge: watch::Receiver<Arc<Knowledge>>,
    counts: Arc<Counts>,
) {
    let mut listeners = Some(listeners);
    let mut connections = JoinSet::new();
    let mut clients: HashMap<IpAddr, usize> = HashMap::new();
    loop {
        if connections.len() >= MOST && listeners.take().is_some() {
            warn!(
                "{MOST} connections with queries at once: more of them go where clients send them"
            );
        }
        if listeners.is_none() && connections.len() <= FEW {
            listeners = Listeners::open()
                .inspect_err(|error| warn!("queries over TCP are not read: {error}"))
                .ok();
        }
        tokio::select! {
            Some(ended) = connections.join_next() => {
                if let Ok(client) = ended {
                    left(&mut clients, client);
                }
            }
            accepted = next(listeners.as_ref()) => {
                let Some(Ok((stream, client))) = accepted else {
                    continue;
                };
                let client = client.ip().to_canonical();
                add(&counts.connections);
                let of_one = clients.entry(client).or_default();
                if *of_one >= MOST_OF_ONE {
                    add(&counts.turned_away);
                    continue;
                }
                *of_one += 1;
                let (knowledge, counts) = (knowledge.clone(), Arc::clone(&counts));
                connections.spawn(async move {
                    if let Err(error) = connection::serve(stream, knowledge, &counts).await {
                        debug!("{client}: {error}");
                    }
                    client
                });
            }
        }
    }
}

fn left(clients: &mut HashMap<IpAddr, usize>, client: IpAddr) {
    if let Some(count) = clients.get_mut(&client) {
        *count -= 1;
        if *count == 0 {
            clients.remove(&client);
        }
    }
}

/// The next connection; none: it is time to look whether somebody can listen again.
async fn next(listeners: Option<&Listeners>) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    let Some(listeners) = listeners else {
        tokio::time::sleep(AGAIN).await;
        return None;
    };
    let accepted = listeners.accept().await;
    if accepted.is_err() {
        // Out of descriptors, most likely.
        tokio::time::sleep(AGAIN / 100).await;
    }
    Some(accepted)
}
