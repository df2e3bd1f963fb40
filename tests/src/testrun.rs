//! One kernel program with maps of its own, and packets put through it by `BPF_PROG_TEST_RUN`:
//! no interface, no traffic, just the verdict.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use steer_common::{
    abi::{self, Count},
    flow::{self, Bucket, Entry},
    mark,
    reason::Reason,
};
use steer_user::datapath::{Datapath, LogLevel, Maps, Mode, Order, PinDir, Port};

/// The Ethernet address of the router under test.
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The shortest packet that the kernel takes for a test run.
pub const SHORTEST: usize = 14;
/// The longest packet that fits into a test run's page, rounded down.
pub const LONGEST: usize = 3000;

/// How the program is loaded: what a LAN interface would ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Mark (TC) instead of redirect (XDP).
    pub mark: bool,
    /// Packets begin with the IP header.
    pub bare_ip: bool,
    /// The VLANs that are steered: outer id << 16 | inner id; none means untagged only.
    pub vlans: Vec<u32>,
    /// The bits of marks that are steer's.
    pub marks: mark::Bits,
    /// Odd packets are logged.
    pub log: bool,
}

impl Variant {
    /// An Ethernet interface whose untagged frames are steered.
    pub fn new(mode: Mode) -> Self {
        Self {
            mark: mode == Mode::Mark,
            bare_ip: false,
            vlans: Vec::new(),
            marks: mark::Bits::DEFAULT,
            log: false,
        }
    }

    /// The same with steer's bits of marks elsewhere.
    pub fn marks(mut self, bits: mark::Bits) -> Self {
        self.marks = bits;
        self
    }

    /// The same for frames of these VLANs (outer id, inner id).
    pub fn vlans(mut self, vlans: &[(u16, u16)]) -> Self {
        self.vlans = vlans
            .iter()
            .map(|&(outer, inner)| u32::from(outer) << 16 | u32::from(inner))
            .collect();
        self
    }

    /// The mode it is for.
    pub fn mode(&self) -> Mode {
        if self.mark {
            Mode::Mark
        } else {
            Mode::Redirect
        }
    }

    /// The interface as the loader wants to know it.
    pub fn port(&self, interface: &str, ifindex: u32) -> Port {
        Port {
            interface: interface.to_owned(),
            ifindex,
            mac: (!self.bare_ip).then_some(ROUTER),
            vlans: self.vlans.clone(),
            marks: self.marks,
            order: Order::Last,
        }
    }
}

/// What a program told the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// TC: the next program, then the stack.
    Next,
    /// XDP: the stack.
    Pass,
    /// XDP: another device.
    Redirect,
    /// Anything else, by its number: always a bug.
    Other(u32),
}

/// One packet after the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What is to become of it.
    pub action: Action,
    /// Its mark (mark mode; else 0).
    pub mark: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What the counters did since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Reasons, with how often.
    pub reasons: Vec<(Reason, u64)>,
    /// Class, path, packets and bytes.
    pub counts: Vec<(u16, u8, Count)>,
}

/// The classes that [`Bench::observe`] looks at.
pub const CLASSES: u16 = 16;

/// Pins that are removed with their owner.
#[derive(Debug)]
pub struct Pins(PinDir);

impl Pins {
    /// Names a directory that nobody else uses.
    pub fn unique() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(PinDir::new(format!(
            "/sys/fs/bpf/steer-testrun-{}-{number}",
            std::process::id()
        )))
    }

    /// The directory.
    pub fn dir(&self) -> &PinDir {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            eprintln!("the pins of a test stay behind: {error}");
        }
    }
}

/// A loaded program with maps of its own.
pub struct Bench {
    datapath: Datapath,
    mode: Mode,
    counts: PerCpuArray<MapData, Count>,
    reasons: PerCpuArray<MapData, u64>,
    flows: Option<Array<MapData, Bucket>>,
    seen_reasons: Vec<u64>,
    seen_counts: Vec<Count>,
    pins: Pins,
}

impl Bench {
    /// Loads the program for an interface like `variant`; no plan is active yet.
    pub fn load(variant: &Variant) -> Result<Self> {
        /// Any constant: the same connections share a bucket in every run.
        const FLOW_SEED: u64 = 0x5eed_0f57_ee12_0001;
        let (pins, mode) = (Pins::unique(), variant.mode());
        let log = if variant.log {
            LogLevel::Debug
        } else {
            LogLevel::Off
        };
        let ports = vec![variant.port("test", 1)];
        let datapath = Datapath::load(mode, pins.dir().clone(), ports, FLOW_SEED, log)
            .with_context(|| format!("load {variant:?}"))?;
        let flows = match mode {
            Mode::Mark => None,
            Mode::Redirect => Some(open(pins.dir(), "FLOWS")?),
        };
        Ok(Self {
            datapath,
            mode,
            counts: open(pins.dir(), "COUNTS")?,
            reasons: open(pins.dir(), "REASONS")?,
            flows,
            seen_reasons: vec![0; Reason::ALL.len()],
            seen_counts: vec![Count::default(); usize::from(CLASSES) * mark::PATHS],
            pins,
        })
    }

    /// The maps that the controller writes.
    pub fn maps(&mut self) -> &mut Maps {
        self.datapath.maps_mut()
    }

    /// The datapath, to attach it.
    pub fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &PinDir {
        self.pins.dir()
    }

    /// The same maps once more, for another thread.
    pub fn second_maps(&self) -> Result<Maps> {
        Ok(Maps::open(self.pins.dir(), self.mode)?)
    }

    /// Puts one packet through the program. `mark` is that of the packet before (mark mode only).
    pub fn run(&mut self, packet: &[u8], mark: u32) -> Result<Ran> {
        /// The mark's place in `struct __sk_buff` (linux/bpf.h).
        const MARK: std::ops::Range<usize> = 8..12;
        /// `sizeof(struct __sk_buff)`.
        const SK_BUFF: usize = 192;
        let mode = self.mode;
        let object = self.datapath.objects_mut().next().context("no object")?;
        let mut bytes = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut bytes),
            ..TestRunOptions::default()
        };
        let (result, mark) = match mode {
            Mode::Mark => {
                let program = object.program_mut("lan_ingress").context("no program")?;
                let program: &mut SchedClassifier = program.try_into()?;
                let (mut before, mut after) = ([0; SK_BUFF], [0; SK_BUFF]);
                before[MARK].copy_from_slice(&mark.to_ne_bytes());
                let result = program.test_run(TestRunOptions {
                    ctx_in: Some(&before),
                    ctx_out: Some(&mut after),
                    ..options
                })?;
                (result, u32::from_ne_bytes(after[MARK].try_into()?))
            }
            Mode::Redirect => {
                let program = object.program_mut("lan_redirect").context("no program")?;
                let program: &mut Xdp = program.try_into()?;
                (program.test_run(options)?, 0)
            }
        };
        bytes.truncate(result.data_size_out as usize);
        Ok(Ran {
            action: match (mode, result.return_value) {
                (Mode::Mark, u32::MAX) => Action::Next,
                (Mode::Redirect, 2) => Action::Pass,
                (Mode::Redirect, 4) => Action::Redirect,
                (_, other) => Action::Other(other),
            },
            mark,
            bytes,
        })
    }

    /// How often packets passed for a reason, since the program was loaded.
    pub fn reason(&self, reason: Reason) -> Result<u64> {
        Ok(self.reasons.get(&(reason as u32), 0)?.iter().sum())
    }

    /// What was counted for a class on a path, since the program was loaded.
    pub fn count(&self, class: u16, path: u8) -> Result<Count> {
        let values = self.counts.get(&abi::counter(class, path), 0)?;
        Ok(values.iter().fold(Count::default(), |sum, count| Count {
            packets: sum.packets + count.packets,
            bytes: sum.bytes + count.bytes,
        }))
    }

    /// Every counter that moved since the last call; only classes below [`CLASSES`].
    pub fn observe(&mut self) -> Result<Observed> {
        let mut observed = Observed::default();
        for (place, &reason) in Reason::ALL.iter().enumerate() {
            let now = self.reason(reason)?;
            let before = std::mem::replace(&mut self.seen_reasons[place], now);
            if now != before {
                observed.reasons.push((reason, now - before));
            }
        }
        let paths = (0..CLASSES).flat_map(|class| (0..16_u8).map(move |path| (class, path)));
        for (place, (class, path)) in paths.enumerate() {
            let now = self.count(class, path)?;
            let before = std::mem::replace(&mut self.seen_counts[place], now);
            if now != before {
                let delta = Count {
                    packets: now.packets - before.packets,
                    bytes: now.bytes - before.bytes,
                };
                observed.counts.push((class, path, delta));
            }
        }
        Ok(observed)
    }

    /// Forgets every connection (redirect mode).
    pub fn forget_flows(&mut self) -> Result<()> {
        self.change_flows(|_| 0)
    }

    /// Makes every connection look as if it had been silent for `epochs` more.
    pub fn age_flows(&mut self, epochs: u8) -> Result<()> {
        self.change_flows(|raw| {
            let entry = Entry::from_raw(raw);
            if entry.is_empty() {
                0
            } else {
                entry.seen(entry.epoch().wrapping_sub(epochs)).raw()
            }
        })
    }

    fn change_flows(&mut self, change: impl Fn(u64) -> u64) -> Result<()> {
        let Some(flows) = self.flows.as_mut() else {
            return Ok(());
        };
        for index in 0..flow::BUCKETS {
            let mut bucket = flows.get(&index, 0)?;
            if bucket.entries != [0; flow::WAYS] {
                bucket.entries = bucket.entries.map(&change);
                flows.set(index, bucket, 0)?;
            }
        }
        Ok(())
    }

    /// How many instructions the verifier looked at.
    pub fn verified_instructions(&mut self) -> Result<u32> {
        let object = self.datapath.objects_mut().next().context("no object")?;
        let mut programs = object.programs();
        let (_, program) = programs.next().context("no program")?;
        program
            .info()?
            .verified_instruction_count()
            .context("this kernel does not count verified instructions (Linux 5.16 does)")
    }
}

pub(crate) fn open<T: TryFrom<Map, Error = MapError>>(pins: &PinDir, name: &str) -> Result<T> {
    let data = MapData::from_pin(pins.map(name)).with_context(|| format!("open the map {name}"))?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}

/// Bytes as a person reads them, 16 a line.
pub fn hex_dump(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).enumerate().map(|(line, bytes)| {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("  {:04x}  {}\n", line * 16, bytes.join(" "))
    });
    lines.collect()
}

/// The folder of real captures and feeds: `$STEER_DATA`, or `../shared/data` beside the checkout.
/// None, with the reason printed, when it is not there.
pub fn real_data(part: &str) -> Option<PathBuf> {
    let root = std::env::var_os("STEER_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        PathBuf::from,
    );
    let folder = root.join(part);
    if File::open(&folder).is_ok() {
        return Some(folder);
    }
    eprintln!(
        "skipped: no real data at {}; set STEER_DATA to a folder with {part}/",
        folder.display()
    );
    None
}
