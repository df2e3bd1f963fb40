//! Sends probes over a given path: TCP and, where wanted, a TLS handshake with a look at the
//! certificate; or a STUN binding request. Nothing of the data path is needed.
//!
//! A probe is the router's own packet, bound to the breakout's device and marked with its grant, so
//! that steer's rules, or the box's own ones, send it to the breakout's gateway.

mod defaults;
mod stun;
mod tls;

use std::{io, net::SocketAddr, time::Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

pub use self::{
    defaults::front_doors,
    tls::{Trust, TrustError},
};
use crate::{
    config::{ProbeKind, Target},
    paths::{Outcome, Probe},
    system::{InterfaceName, Mark},
};

/// The way a probe takes.
#[derive(Clone, Debug)]
pub struct Via {
    /// The breakout's device.
    pub device: InterfaceName,
    /// Its grant.
    pub mark: Mark,
}

/// Sends a probe and waits for what becomes of it, no longer than its patience.
pub async fn probe(via: &Via, target: &Target, probe: Probe, trust: &Trust) -> Outcome {
    let began = Instant::now();
    let late = || {
        format!(
            "{}: no answer for {} ms",
            target.address,
            probe.first.as_millis()
        )
    };
    let first = match target.kind {
        ProbeKind::Tls => timeout(probe.first, connect(via, target.address))
            .await
            .map(|it| it.map(Some)),
        ProbeKind::Stun => timeout(probe.first, ask_stun(via, target.address))
            .await
            .map(|it| it.map(|()| None)),
    };
    let rtt = began.elapsed();
    let stream = match first {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(format!("{}: {error}", target.address), false),
        Err(_) => return failed(late(), false),
    };
    if rtt > probe.first {
        // The clock was looked at too late: by now the kernel has asked twice.
        return failed(late(), false);
    }
    if let (Some(stream), true) = (stream, probe.deep) {
        let left = probe.patience.saturating_sub(rtt);
        match timeout(left, trust.handshake(stream, &target.names)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return failed(format!("{}: {why}", target.address), true),
            Err(_) => {
                let why = format!("{}: connects, but no TLS answer", target.address);
                return failed(why, true);
            }
        }
    }
    Outcome::Answered(rtt)
}

fn failed(why: String, in_handshake: bool) -> Outcome {
    Outcome::Failed { why, in_handshake }
}

async fn connect(via: &Via, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.bind_device(Some(via.device.as_str().as_bytes()))?;
    setsockopt(&socket, sockopt::Mark, &via.mark.bits())?;
    // Ends with a reset: one packet, and nothing is left on either side.
    socket.set_zero_linger()?;
    socket.connect(address).await
}

async fn ask_stun(via: &Via, address: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = if address.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.bind_device(Some(via.device.as_str().as_bytes()))?;
    setsockopt(&socket, sockopt::Mark, &via.mark.bits())?;
    socket.connect(address).await?;
    let request = stun::Request::new()?;
    socket.send(request.bytes()).await?;
    let mut buffer = [0; 512];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if request.is_answered_by(&buffer[..length]) {
            return Ok(());
        }
    }
}

/// Random bytes of the kernel's.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
