//! Sends a row's packets, and measures what they cost.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, PerCpuArray, xdp::DevMap},
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, xdp::XdpMode},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use steer_user::datapath::objects::BENCH;

use super::{
    router::{FAR, Far, LAN, NEAR, Router, mac},
    rows::Way,
    traffic::{FLOWS, FRAME, Flow, Kind},
};
use crate::namespace::Namespace;

/// Frames that go through the router together, as a network card's driver hands them over.
const BATCH: u32 = 64;
/// Sent before each measurement, so that caches, conntrack and the neighbours know the flows.
const WARM_UP: u32 = 8192;
/// When nothing arrives any more for that long, the rest was lost.
const SETTLED: Duration = Duration::from_millis(50);

/// What one row cost in one round.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Processor time of the thread that sends and, in softirqs, of everything behind it.
    pub cpu_ns: u64,
    pub sent: u64,
    /// At the sink where the row's packets belong. Equal to `sent` for the generator alone.
    pub arrived: u64,
    /// The last packet there; `None` for the generator alone.
    pub last: Option<Last>,
}

/// A packet, as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    pub source: Ipv4Addr,
    pub ttl: u8,
}

impl Sample {
    /// Nanoseconds for each packet that arrived, the generator's included.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn ns(&self) -> f64 {
        self.cpu_ns as f64 / self.arrived.max(1) as f64
    }

    /// 1 when nothing was lost.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn arrived_share(&self) -> f64 {
        self.arrived as f64 / self.sent.max(1) as f64
    }
}

/// The generator's setting, as the program reads it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Setting {
    first: u32,
    ifindex: u32,
}

// SAFETY: two words without padding.
unsafe impl Pod for Setting {}

/// A sink's count, as the program writes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arrived {
    packets: u64,
    source: [u8; 4],
    ttl: u8,
    pad: [u8; 3],
}

// SAFETY: 16 octets, the padding is a member.
unsafe impl Pod for Arrived {}

/// The benchmark's programs, and the processor they run on.
pub struct Generator<'far> {
    far: &'far Far,
    object: Ebpf,
    setting: Array<MapData, Setting>,
    arrived: PerCpuArray<MapData, Arrived>,
    softirqd: Option<Pid>,
}

impl<'far> Generator<'far> {
    /// Loads the programs and keeps this thread, and those that it starts, on one processor. The
    /// flows are those of one kind, and then perhaps those of the other.
    pub fn new(far: &'far Far, flows: impl Iterator<Item = Flow>) -> Result<Self> {
        let cpu = pin()?;
        let mut object = Ebpf::load(BENCH).context("the benchmark's programs do not load")?;
        for name in [
            "generate",
            "sink_wan",
            "sink_breakout",
            "sink_lan",
            "redirect",
        ] {
            program(&mut object, name)?
                .load()
                .with_context(|| name.to_owned())?;
        }
        let mut frames: Array<_, [u64; FRAME / 8]> = Array::try_from(take(&mut object, "FRAMES")?)?;
        for (index, flow) in (0..).zip(flows) {
            frames.set(index, flow.frame(mac(LAN, NEAR), mac(LAN, FAR))?, 0)?;
        }
        Ok(Self {
            far,
            setting: Array::try_from(take(&mut object, "GENERATOR")?)?,
            arrived: PerCpuArray::try_from(take(&mut object, "ARRIVED")?)?,
            object,
            softirqd: softirqd(cpu)?,
        })
    }

    /// Puts the sinks at the far ends of a router's WAN and breakout.
    pub fn attach_sinks(&mut self, router: &Router) -> Result<()> {
        for (name, link) in [("sink_wan", router.wan), ("sink_breakout", router.breakout)] {
            attach(&self.far.namespace, &mut self.object, name, link.far)?;
        }
        Ok(())
    }

    /// Drops at the router's LAN interface, to know what the harness itself costs.
    pub fn attach_sink_to_lan(&mut self, router: &Router) -> Result<()> {
        attach(
            &router.namespace,
            &mut self.object,
            "sink_lan",
            router.lan.near,
        )
    }

    /// Redirects everything from the LAN to the breakout, unseen.
    pub fn attach_bare_redirect(&mut self, router: &Router) -> Result<()> {
        let mut macs = [0; 16];
        macs[..6].copy_from_slice(&router.breakout.far_mac);
        macs[6..12].copy_from_slice(&router.breakout.near_mac);
        let mut hop: Array<_, [u8; 16]> = Array::try_from(take(&mut self.object, "NEXT_HOP")?)?;
        hop.set(0, macs, 0)?;
        let mut out = DevMap::try_from(take(&mut self.object, "OUT")?)?;
        // The index means the interface of the namespace that this is done in.
        router
            .namespace
            .run(|| Ok(out.set(0, router.breakout.near, None, 0)?))?;
        attach(
            &router.namespace,
            &mut self.object,
            "redirect",
            router.lan.near,
        )
    }

    /// Sends packets from the interface at the far end of a LAN, and waits until they arrived.
    pub fn measure(&mut self, from: u32, kind: Kind, way: Way, packets: u32) -> Result<Sample> {
        let first = match kind {
            Kind::Hit => 0,
            Kind::Miss => u32::try_from(FLOWS)?,
        };
        let ifindex = if way == Way::Generator { 0 } else { from };
        self.choose(first, ifindex)?;
        self.send(WARM_UP)?;
        self.settle(way, u64::MAX)?;

        let (before, _) = self.arrived(way)?;
        let cpu_before = self.softirqd_ns()?;
        let thread = self.send(packets)?;
        let sent = u64::from(packets);
        self.settle(way, before + sent)?;
        let (after, last) = self.arrived(way)?;
        let thread_ns = u64::try_from(thread.as_nanos())?;
        let cpu_ns = thread_ns + (self.softirqd_ns()? - cpu_before);
        let arrived = if way == Way::Generator {
            sent
        } else {
            after - before
        };
        Ok(Sample {
            cpu_ns,
            sent,
            arrived,
            last,
        })
    }

    /// Says what to send, and from which interface.
    pub fn choose(&mut self, first: u32, ifindex: u32) -> Result<()> {
        Ok(self.setting.set(0, Setting { first, ifindex }, 0)?)
    }

    /// How many frames were sent so far, also while they are being sent.
    pub fn sent(&mut self) -> Result<Array<MapData, u64>> {
        Ok(Array::try_from(take(&mut self.object, "SENT")?)?)
    }

    /// Sends, and returns the processor time of the thread that did.
    pub fn send(&mut self, packets: u32) -> Result<Duration> {
        let generate = program(&mut self.object, "generate")?;
        // The generator's interface index means the one of this namespace.
        self.far.namespace.run(|| {
            let options = TestRunOptions {
                data_in: Some(&[0; FRAME]),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            };
            let started = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
            generate
                .test_run(options)
                .context("the generator does not run")?;
            let ended = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
            Ok(Duration::from(ended - started))
        })
    }

    /// Waits until the count is reached, or nothing arrives any more.
    fn settle(&self, way: Way, wanted: u64) -> Result<()> {
        let (mut count, mut since) = (self.arrived(way)?.0, Instant::now());
        while count < wanted && since.elapsed() < SETTLED {
            thread::yield_now();
            let (now, _) = self.arrived(way)?;
            if now != count {
                (count, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// What arrived at the row's sink so far, and the last packet.
    pub fn arrived(&self, way: Way) -> Result<(u64, Option<Last>)> {
        let sink = match way {
            Way::Generator => return Ok((0, None)),
            Way::Wan => 0,
            Way::Breakout => 1,
            Way::Lan => 2,
        };
        let by_cpu = self.arrived.get(&sink, 0)?;
        let packets = by_cpu.iter().map(|arrived| arrived.packets).sum();
        // All is done on one processor; the others count nothing.
        let busiest = by_cpu.iter().max_by_key(|arrived| arrived.packets);
        let last = busiest.map(|arrived| Last {
            source: arrived.source.into(),
            ttl: arrived.ttl,
        });
        Ok((packets, last))
    }

    /// Processor time of the kernel thread that takes over softirqs when there are many.
    fn softirqd_ns(&self) -> Result<u64> {
        let Some(pid) = self.softirqd else {
            return Ok(0);
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/schedstat"))
            .context("this kernel does not tell what ksoftirqd uses (CONFIG_SCHED_INFO)")?;
        let ran = stat
            .split_whitespace()
            .next()
            .context("schedstat is empty")?;
        Ok(ran.parse()?)
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn take(object: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    object
        .take_map(name)
        .with_context(|| format!("no map {name}"))
}

/// Attaches to an interface of a namespace, until the object goes.
fn attach(namespace: &Namespace, object: &mut Ebpf, name: &str, ifindex: u32) -> Result<()> {
    let program = program(object, name)?;
    namespace.run(|| {
        program
            .attach_to_if_index(ifindex, XdpMode::Driver)
            .with_context(|| format!("cannot attach {name}"))
    })?;
    Ok(())
}

/// Keeps this thread, and those it starts, on the last processor it may use: the first ones get the interrupts.
fn pin() -> Result<usize> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let last = last.context("no processor to run on")?;
    let mut only = CpuSet::new();
    only.set(last)?;
    sched_setaffinity(this, &only)?;
    Ok(last)
}

fn softirqd(cpu: usize) -> Result<Option<Pid>> {
    let wanted = format!("ksoftirqd/{cpu}");
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim() == wanted {
            return Ok(Some(Pid::from_raw(pid)));
        }
    }
    // Not visible from a process namespace; then its share cannot be counted.
    eprintln!("warning: {wanted} is not visible here, its time is not counted");
    Ok(None)
}
