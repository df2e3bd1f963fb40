//! A wide-area network between two namespaces, emulated in userspace: a TUN device on either side
//! and a thread that carries packets between them with delay, jitter, loss and a bottleneck.
//!
//! It stands in for netem, which not every kernel has, and it needs no root qdisc on a device
//! that a test wants for itself.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::namespace::Namespace;

/// How a wide-area network treats packets, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much is added to the delay of a packet. Packets are never reordered.
    pub jitter: Duration,
    /// The share of packets that is lost, 0.0 to 1.0.
    pub loss: f64,
    /// The bottleneck in bits per second; `None` is no bottleneck.
    pub rate: Option<u64>,
}

impl Conditions {
    /// A clean line with this one-way delay.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: None,
        }
    }
}

/// Longest queue in front of a bottleneck; what does not fit is dropped, as a router does.
const LONGEST_QUEUE: Duration = Duration::from_millis(200);
/// How often the thread looks whether it shall end.
const IDLE: Duration = Duration::from_millis(50);

/// A running emulator. Dropping it removes both TUN devices.
#[derive(Debug)]
pub struct Wan {
    conditions: Arc<Mutex<Conditions>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wan {
    /// Makes a TUN device in each of two namespaces (up, without addresses) and joins them.
    pub fn start(
        left: (&Namespace, &str),
        right: (&Namespace, &str),
        conditions: Conditions,
    ) -> Result<Self> {
        let ends = [open_tun(left.0, left.1)?, open_tun(right.0, right.1)?];
        let conditions = Arc::new(Mutex::new(conditions));
        let stop = Arc::new(AtomicBool::new(false));
        let relay = Relay {
            ends,
            queues: [Queue::default(), Queue::default()],
            conditions: Arc::clone(&conditions),
            random: Random(0x9e37_79b9_7f4a_7c15),
        };
        let thread = thread::Builder::new().name("wan".into()).spawn({
            let stop = Arc::clone(&stop);
            move || relay.run(&stop)
        })?;
        Ok(Self {
            conditions,
            stop,
            thread: Some(thread),
        })
    }

    /// Changes the conditions for packets that arrive from now on.
    pub fn set(&self, conditions: Conditions) {
        *self
            .conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = conditions;
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The way one direction goes.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// When the bottleneck has sent what it holds.
    busy_until: Option<Instant>,
    last_due: Option<Instant>,
}

struct Relay {
    ends: [File; 2],
    /// `queues[i]` holds what came in at `ends[i]`.
    queues: [Queue; 2],
    conditions: Arc<Mutex<Conditions>>,
    random: Random,
}

impl Relay {
    fn run(mut self, stop: &AtomicBool) {
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let next = self
                .queues
                .iter()
                .filter_map(|q| q.waiting.front())
                .map(|(due, _)| *due);
            let wait = next
                .min()
                .map_or(IDLE, |due| due.saturating_duration_since(now).min(IDLE));
            let mut polled = [
                PollFd::new(self.ends[0].as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ends[1].as_fd(), PollFlags::POLLIN),
            ];
            let _ = ppoll(&mut polled, Some(TimeSpec::from_duration(wait)), None);
            for side in [0, 1] {
                self.take_in(side, &mut buffer);
                self.give_out(side);
            }
        }
    }

    fn take_in(&mut self, side: usize, buffer: &mut [u8]) {
        let conditions = *self
            .conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            let length = match (&self.ends[side]).read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if self.random.fraction() < conditions.loss {
                continue;
            }
            let jitter = conditions.jitter.mul_f64(self.random.fraction());
            let now = Instant::now();
            let queue = &mut self.queues[side];
            let mut sent = now;
            if let Some(rate) = conditions.rate {
                let start = queue.busy_until.map_or(now, |busy| busy.max(now));
                if start - now > LONGEST_QUEUE {
                    continue;
                }
                let bits = 8 * length as u64;
                sent =
                    start + Duration::from_nanos(bits.saturating_mul(1_000_000_000) / rate.max(1));
                queue.busy_until = Some(sent);
            }
            let mut due = sent + conditions.delay + jitter;
            due = queue.last_due.map_or(due, |last| last.max(due));
            queue.last_due = Some(due);
            queue.waiting.push_back((due, buffer[..length].to_vec()));
        }
    }

    fn give_out(&mut self, side: usize) {
        let now = Instant::now();
        while let Some((_, packet)) = self.queues[side]
            .waiting
            .pop_front_if(|(due, _)| *due <= now)
        {
            // A device that is down refuses packets: on a real line they would be lost as well.
            let _ = (&self.ends[1 - side]).write(&packet);
        }
    }
}

/// A small repeatable generator (xorshift): loss and jitter are the same in every run.
struct Random(u64);

impl Random {
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        f64::from((self.0 >> 40) as u32 & 0x00ff_ffff) / f64::from(1_u32 << 24)
    }
}

mod tun {
    nix::ioctl_write_int!(set_interface, b'T', 202);
}

/// Makes a TUN device in a namespace and sets it up: what is written to the file arrives there.
pub fn open_tun(namespace: &Namespace, name: &str) -> Result<File> {
    let device = namespace.run(|| {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("open /dev/net/tun: the lab needs the kernel's TUN driver")?;
        if name.len() >= libc::IFNAMSIZ {
            bail!("interface name {name} is too long");
        }
        // SAFETY: an ifreq of zeros is valid; every field is plain data.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::try_from(from).context("interface names are ASCII")?;
        }
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).context("TUN flags")?;
        let argument = (&raw const request).expose_provenance() as u64;
        // SAFETY: TUNSETIFF reads one ifreq from the address, which lives until the call ends.
        unsafe { tun::set_interface(device.as_raw_fd(), argument) }
            .with_context(|| format!("make TUN device {name} in {}", namespace.name()))?;
        Ok(device)
    })?;
    namespace.ip(&format!("link set {name} up txqueuelen 5000"))?;
    Ok(device)
}
