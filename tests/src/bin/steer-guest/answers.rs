//! Servers that answer every query with their own addresses: an emulated guest has no room for a real
//! resolver.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use steer_tests::{lab::Lab, namespace::Namespace};

/// The server at headquarters, which clients ask.
pub const FAR: [&str; 2] = ["93.184.216.53", "2606:4700::53"];
/// The provider's.
pub const NEAR: [&str; 2] = ["192.0.2.53", "2001:db8:53::53"];
/// An emulated guest may take long; only a guard against hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers at two addresses of a namespace until it is dropped.
pub struct Server {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Namespace, addresses: [&'static str; 2]) -> Result<Self> {
        let [v4, v6] = addresses;
        let lines = format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n");
        namespace.ip(&lines)?;
        let mut server = Self {
            over: Arc::default(),
            threads: vec![],
        };
        for address in addresses {
            let address: IpAddr = address.parse()?;
            let socket = namespace.run(|| Ok(UdpSocket::bind((address, 53))?))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let over = Arc::clone(&server.over);
            server.threads.push(thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut query = [0; 512];
                    if let Ok((length, client)) = socket.recv_from(&mut query) {
                        // One that cannot be sent is a lost answer.
                        let _ = socket.send_to(&answer(&query[..length], address), client);
                    }
                }
            }));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The query with one record, the server's own address.
fn answer(query: &[u8], own: IpAddr) -> Vec<u8> {
    let mut answer = query.to_vec();
    if let Some(header) = answer.get_mut(..12) {
        header[2] = 0x81;
        header[3] = 0x80;
        header[7] = 1;
    }
    let (kind, octets) = match own {
        IpAddr::V4(it) => (1, it.octets().to_vec()),
        IpAddr::V6(it) => (28, it.octets().to_vec()),
    };
    let length = u8::try_from(octets.len()).unwrap_or_default();
    answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, length]);
    answer.extend(octets);
    answer
}

/// A client that asks headquarters gets the answers of these servers, over both families.
pub fn by(lab: &Lab, name: &str, servers: [&str; 2]) -> Result<()> {
    for (number, asked, wanted) in [(1, FAR[0], servers[0]), (28, FAR[1], servers[1])] {
        let mut query = vec![7, number, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len())?);
            query.extend(label.bytes());
        }
        query.extend([0, 0, number, 0, 1]);
        let got = lab.client.run(|| {
            let any = if number == 1 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            // An answer from anybody else is not heard.
            socket.connect((asked.parse::<IpAddr>()?, 53))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(&query)?;
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer)?;
            Ok(answer[..length].to_vec())
        });
        let got = got.with_context(|| format!("{asked} did not answer"))?;
        ensure!(
            got == answer(&query, wanted.parse()?),
            "{name}: {asked} gave another answer than {wanted}: {got:02x?}"
        );
    }
    Ok(())
}
