//! New flows at 1 kHz: one datagram each, IPv4 and IPv6 in turn. Who answers a flow tells its way; a
//! flow without an answer is lost.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{socket::setsockopt, socket::sockopt, time::TimeSpec},
};

use super::super::STOPPED;
use crate::{
    namespace::Namespace,
    server::{Site, parse_answer},
};

/// Between two flows.
pub const PERIOD: Duration = Duration::from_millis(1);
/// An answer by the backbone takes a tenth of this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Only a guard against hanging.
const FOR_EVER: Duration = Duration::from_mins(2);
/// The first bytes of a QUIC Initial.
const INITIAL: [u8; 8] = [0xc0, 0, 0, 0, 1, 8, 1, 2];

/// What became of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer {
    /// When it was sent.
    pub at: Instant,
    /// Who answered.
    pub site: Option<Site>,
}

/// Flows that are being opened.
#[derive(Debug)]
pub struct Stream {
    newcomers: Arc<Mutex<Vec<Newcomer>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Stream {
    /// Opens flows from the client to Microsoft 365 until it is finished.
    pub fn start(client: &Namespace) -> Result<Self> {
        // A new port each time: no flow is one of an earlier stream.
        let sockets = client.run(|| {
            ["0.0.0.0:0", "[::]:0"]
                .into_iter()
                .map(|any| {
                    let socket = UdpSocket::bind(any)?;
                    socket.set_nonblocking(true)?;
                    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
                    Ok(socket)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let newcomers = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("stream".into()).spawn({
            let (newcomers, stop) = (Arc::clone(&newcomers), Arc::clone(&stop));
            move || run(&sockets, &newcomers, &stop)
        })?;
        Ok(Self {
            newcomers,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until the newest answers, so many of them, all came from there, without a loss between.
    pub fn wait_for(&self, site: Site, count: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            if STOPPED.load(Ordering::Relaxed) {
                bail!("stopped");
            }
            let newcomers = lock(&self.newcomers);
            let newest = newcomers.iter().rposition(|it| it.site.is_some());
            let end = newest.map_or(0, |newest| newest + 1);
            let steady = end >= count
                && newcomers[end - count..end]
                    .iter()
                    .all(|it| it.site == Some(site));
            drop(newcomers);
            if steady {
                return Ok(());
            }
            if started.elapsed() > FOR_EVER {
                bail!("new flows are not answered by the {site} front door within {FOR_EVER:?}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Opens no more flows, waits for the last answers, and says what became of each.
    pub fn finish(mut self) -> Result<Vec<Newcomer>> {
        self.end()?;
        Ok(std::mem::take(&mut *lock(&self.newcomers)))
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn lock(newcomers: &Mutex<Vec<Newcomer>>) -> MutexGuard<'_, Vec<Newcomer>> {
    newcomers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(sockets: &[UdpSocket], newcomers: &Mutex<Vec<Newcomer>>, stop: &AtomicBool) -> Result<()> {
    let begin = Instant::now();
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let due = begin + PERIOD * number;
        if Instant::now() >= due {
            // Written down before it is sent: the answer must find it.
            lock(newcomers).push(Newcomer {
                at: Instant::now(),
                site: None,
            });
            send(sockets, number)?;
            number += 1;
        } else {
            hear(sockets, newcomers, due)?;
        }
    }
    let over = Instant::now() + PATIENCE;
    let missing = || lock(newcomers).iter().any(|it| it.site.is_none());
    while missing() && Instant::now() < over {
        hear(sockets, newcomers, Instant::now() + 5 * PERIOD)?;
    }
    Ok(())
}

/// Each to an address that no flow went to before.
fn send(sockets: &[UdpSocket], number: u32) -> Result<()> {
    let [.., high, low] = (number / 2).to_be_bytes();
    let extra = u8::try_from(number >> 17 & 3)?;
    let (socket, address) = if number.is_multiple_of(2) {
        (&sockets[0], IpAddr::from([52, 96 + extra, high, low]))
    } else {
        let last = u16::from_be_bytes([high, low]);
        let address = [0x2603, 0x1006, 0, 0, 0, 2, extra.into(), last];
        (&sockets[1], IpAddr::from(address))
    };
    let text = [&INITIAL[..], format!("#{number}").as_bytes()].concat();
    // An error is an ICMP message about a flow of the past, or a full queue: a loss, as on the wire.
    let _ = socket.send_to(&text, SocketAddr::new(address, 443));
    Ok(())
}

/// Takes down answers until then.
fn hear(sockets: &[UdpSocket], newcomers: &Mutex<Vec<Newcomer>>, until: Instant) -> Result<()> {
    let mut polled: Vec<_> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    let wait = until.saturating_duration_since(Instant::now());
    ppoll(&mut polled, Some(TimeSpec::from_duration(wait)), None).context("wait for answers")?;
    let mut buffer = [0; 256];
    for socket in sockets {
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            if let Some((site, _, token)) = parse_answer(&text)
                && let Ok(number) = token.parse::<usize>()
                && let Some(newcomer) = lock(newcomers).get_mut(number)
            {
                newcomer.site = Some(site);
            }
        }
    }
    Ok(())
}

/// From the first flow that was lost to the first one after the last that was.
pub fn gap(newcomers: &[Newcomer]) -> Duration {
    let first = newcomers.iter().find(|it| it.site.is_none());
    let last = newcomers.iter().rposition(|it| it.site.is_none());
    let after = last.and_then(|last| newcomers.get(last + 1).or(newcomers.last()));
    match (first, after) {
        (Some(first), Some(after)) => after.at - first.at,
        _ => Duration::ZERO,
    }
}

/// How long after `since` flows still went another way than to `site`, or were lost.
pub fn until_all_reach(newcomers: &[Newcomer], site: Site, since: Instant) -> Duration {
    let last = newcomers.iter().rposition(|it| it.site != Some(site));
    let after = last.and_then(|last| newcomers.get(last + 1).or(newcomers.last()));
    after.map_or(Duration::ZERO, |it| it.at.saturating_duration_since(since))
}

/// How often the way of new flows changed, in the family in which it changed more often.
pub fn changes(newcomers: &[Newcomer]) -> usize {
    let of_family = |family: usize| {
        let answered: Vec<Site> = newcomers
            .iter()
            .skip(family)
            .step_by(2)
            .filter_map(|it| it.site)
            .collect();
        answered
            .windows(2)
            .filter(|pair| pair[0] != pair[1])
            .count()
    };
    of_family(0).max(of_family(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow each millisecond: n(ear), f(ar), or lost.
    fn newcomers(text: &str) -> (Instant, Vec<Newcomer>) {
        let begin = Instant::now();
        let newcomers = (0..).zip(text.chars()).map(|(number, letter)| Newcomer {
            at: begin + PERIOD * number,
            site: match letter {
                'n' => Some(Site::Near),
                'f' => Some(Site::Far),
                _ => None,
            },
        });
        (begin, newcomers.collect())
    }

    #[test]
    fn a_gap_reaches_from_the_first_loss_to_the_first_flow_after_the_last() {
        let gap_of = |text| gap(&newcomers(text).1).as_millis();
        assert_eq!(gap_of("nnnfff"), 0);
        assert_eq!(gap_of("nn--ff"), 2);
        assert_eq!(gap_of("nn-f-ff"), 3);
        assert_eq!(gap_of("nn--"), 1);
    }

    #[test]
    fn all_reach_a_site_after_the_last_flow_that_did_not() {
        let (begin, flows) = newcomers("nffn-fnnn");
        let since = begin + 3 * PERIOD;
        assert_eq!(until_all_reach(&flows, Site::Near, since), 3 * PERIOD);
        assert_eq!(
            until_all_reach(&flows, Site::Near, begin + 8 * PERIOD),
            Duration::ZERO
        );
    }

    #[test]
    fn changes_are_counted_by_family() {
        assert_eq!(changes(&newcomers("nnnnffff").1), 1);
        // IPv6 a little later, and a loss: no change of its own.
        assert_eq!(changes(&newcomers("nnfnfnf-ffff").1), 1);
        assert_eq!(changes(&newcomers("nnffnnff").1), 3);
    }
}
