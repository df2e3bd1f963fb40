//! The pinned maps, opened by whoever wants to write or read them: the controller, `status`.

use std::{fs, io, os::fd::AsFd as _, path::PathBuf};

use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray, xdp::DevMap};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use steer_common::{
    abi::{self, Count, NextHop, PathTable},
    chunk::{CHUNK_BYTES, CHUNKS, Chunk},
    flow::{self, Bucket, Entry},
    image::Image,
    reason::Reason,
};

use super::{DatapathError, DeadMan, Mode, PinDir, sys};
use crate::cut;

/// The key of an array.
const KEY_BYTES: u32 = 4;
/// Programs may only read the map (linux/bpf.h).
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// Packets and bytes of one class on one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ClassCount {
    /// The class, an index of the class registry.
    pub class: u16,
    /// The path id; 0: no path was up.
    pub path: u8,
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// How often packets passed for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// The reason.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
}

/// The maps of a loaded object.
pub struct Maps {
    pins: PinDir,
    generation: ArrayOfMaps<MapData, Array<MapData, Chunk>>,
    paths: Array<MapData, PathTable>,
    counts: PerCpuArray<MapData, Count>,
    reasons: PerCpuArray<MapData, u64>,
    dead_man: DeadMan,
    fast: Option<FastMaps>,
}

struct FastMaps {
    next_hops: Array<MapData, NextHop>,
    devices: DevMap<MapData>,
    flows: Array<MapData, Bucket>,
    clock: Array<MapData, u64>,
}

/// The maps of every object.
pub(super) const SHARED: [&str; 9] = [
    "GENERATION",
    "PATHS",
    "COUNTS",
    "REASONS",
    "HEARTBEAT",
    "OPEN",
    "LIVES",
    "LEARNED",
    "ASKERS",
];
/// The newest plan, which is the map that `GENERATION` holds.
const PLAN: &str = "PLAN";
/// The same while it is put in place.
const PLAN_NEXT: &str = "PLAN_NEXT";
/// The maps of redirect mode.
pub(super) const FAST: [&str; 4] = ["NEXT_HOPS", "DEVICES", "FLOWS", "CLOCK"];

impl Maps {
    /// Opens the pinned maps of a mode. Fails when steer is not loaded.
    pub fn open(pins: &PinDir, mode: Mode) -> Result<Self, DatapathError> {
        Ok(Self {
            pins: pins.clone(),
            generation: open(pins, "GENERATION")?,
            paths: open(pins, "PATHS")?,
            counts: open(pins, "COUNTS")?,
            reasons: open(pins, "REASONS")?,
            dead_man: DeadMan::open(pins)?,
            fast: match mode {
                Mode::Mark => None,
                Mode::Redirect => Some(FastMaps {
                    next_hops: open(pins, "NEXT_HOPS")?,
                    devices: open(pins, "DEVICES")?,
                    flows: open(pins, "FLOWS")?,
                    clock: open(pins, "CLOCK")?,
                }),
            },
        })
    }

    /// Makes an image the active generation with one write, and gives its number.
    ///
    /// The chunks go into a map of their own first; a packet that began with the old generation
    /// ends with it, and the kernel frees it when the last one is through.
    pub fn publish(&mut self, mut image: Image) -> Result<u64, DatapathError> {
        let failed = map_error("GENERATION");
        let number = self.generation_number()?.map_or(1, |number| number + 1);
        image.set_number(number);
        let data = new_plan()?;
        self.pin_plan(&data)?;
        cut::point();
        let refused = |error| DatapathError::Map {
            map: "steer_plan",
            reason: format!("cannot make the generation immutable: {error}"),
        };
        let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(refused)?;
        let mut inner = Map::from_map_data(data)
            .and_then(Array::<MapData, Chunk>::try_from)
            .map_err(failed)?;
        for (index, chunk) in image.written() {
            inner.set(index, chunk, 0).map_err(failed)?;
        }
        cut::point();
        sys::freeze(descriptor.as_fd()).map_err(refused)?;
        cut::point();
        self.name_plan()?;
        cut::point();
        self.generation.set(0, &inner, 0).map_err(failed)?;
        cut::point();
        Ok(number)
    }

    /// The number of the newest generation, if there is one.
    ///
    /// It is read from the plan's own pin: the map that `GENERATION` holds is only found by its id,
    /// which the kernel lets nobody do without CAP_SYS_ADMIN.
    pub fn generation_number(&self) -> Result<Option<u64>, DatapathError> {
        if !self.pins.map(PLAN).exists() {
            return Ok(None);
        }
        let plan: Array<MapData, Chunk> = open(&self.pins, PLAN)?;
        let first = plan.get(&0, 0).map_err(map_error(PLAN))?;
        Ok(Some(first.header().number))
    }

    /// The newest generation as it lies in the kernel, if there is one.
    pub fn generation(&self) -> Result<Option<Image>, DatapathError> {
        if !self.pins.map(PLAN).exists() {
            return Ok(None);
        }
        let plan: Array<MapData, Chunk> = open(&self.pins, PLAN)?;
        let chunks: Result<_, MapError> = plan.iter().collect();
        Ok(Some(Image::from_chunks(chunks.map_err(map_error(PLAN))?)))
    }

    /// Gives a plan a pin of its own, beside the one of the plan before.
    fn pin_plan(&self, plan: &MapData) -> Result<(), DatapathError> {
        let next = self.pins.map(PLAN_NEXT);
        let failed = |reason: String| DatapathError::Map { map: PLAN, reason };
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(format!("{}: {error}", next.display())));
            }
            _ => {}
        }
        plan.pin(&next)
            .map_err(|error| failed(format!("cannot be pinned: {error}")))
    }

    /// Puts the new pin in place of the old one. This comes before the plan is published, so that
    /// no number is given twice, whenever the controller dies.
    fn name_plan(&self) -> Result<(), DatapathError> {
        fs::rename(self.pins.map(PLAN_NEXT), self.pins.map(PLAN)).map_err(|error| {
            DatapathError::Map {
                map: PLAN,
                reason: format!("cannot rename the pin: {error}"),
            }
        })
    }

    /// The state of the paths.
    pub fn paths(&self) -> Result<PathTable, DatapathError> {
        self.paths.get(&0, 0).map_err(map_error("PATHS"))
    }

    /// Replaces the state of the paths; packets see it at once, the plan stays as it is.
    pub fn set_paths(&mut self, table: &PathTable) -> Result<(), DatapathError> {
        self.paths.set(0, table, 0).map_err(map_error("PATHS"))
    }

    /// What the dead-man knows.
    pub fn dead_man(&self) -> &DeadMan {
        &self.dead_man
    }

    /// The same, to write to.
    pub(super) fn dead_man_mut(&mut self) -> &mut DeadMan {
        &mut self.dead_man
    }

    /// Writes a next hop (redirect mode only). Index 0 is never used, and an index that the path
    /// table names must not be changed.
    pub fn set_next_hop(&mut self, index: u8, hop: &NextHop) -> Result<(), DatapathError> {
        let failed = map_error("NEXT_HOPS");
        let fast = self
            .fast
            .as_mut()
            .ok_or_else(|| failed(MapError::KeyNotFound))?;
        fast.next_hops.set(index.into(), hop, 0).map_err(failed)
    }

    /// Names the device of a path (redirect mode only).
    pub fn set_device(&mut self, path: u8, ifindex: u32) -> Result<(), DatapathError> {
        let missing = map_error("DEVICES");
        let fast = self
            .fast
            .as_mut()
            .ok_or_else(|| missing(MapError::KeyNotFound))?;
        fast.devices
            .set(path.into(), ifindex, None, 0)
            .map_err(|error| DatapathError::Map {
                map: "DEVICES",
                reason: error.to_string(),
            })
    }

    /// Writes down the seed of the flow table's hashes (redirect mode only).
    pub(super) fn keep_flow_seed(&mut self, seed: u64) -> Result<(), DatapathError> {
        match &mut self.fast {
            None => Ok(()),
            Some(fast) => fast
                .clock
                .set(flow::CLOCK_SEED, seed, 0)
                .map_err(map_error("CLOCK")),
        }
    }

    /// How many flows went out by a breakout lately (redirect mode only): those whose entry was
    /// seen in this epoch or the one before, 9 to 17 s.
    pub fn steered_flows(&self) -> Result<u64, DatapathError> {
        let Some(fast) = &self.fast else { return Ok(0) };
        let now = flow::epoch(monotonic_ns());
        let mut count = 0;
        for bucket in fast.flows.iter() {
            let bucket = bucket.map_err(map_error("FLOWS"))?;
            let entries = bucket.entries.map(Entry::from_raw);
            count += entries
                .iter()
                .filter(|entry| !entry.is_empty() && entry.path() != 0 && entry.age(now) <= 1)
                .count() as u64;
        }
        Ok(count)
    }

    /// The counters that are not 0, summed over the CPUs.
    pub fn counts(&self) -> Result<Vec<ClassCount>, DatapathError> {
        let mut counts = Vec::new();
        for counter in 0..abi::COUNTERS {
            let values = self.counts.get(&counter, 0).map_err(map_error("COUNTS"))?;
            let (packets, bytes) = values.iter().fold((0, 0), |sum, count| {
                (sum.0 + count.packets, sum.1 + count.bytes)
            });
            if packets != 0 {
                let (class, path) = abi::counted(counter);
                counts.push(ClassCount {
                    class,
                    path,
                    packets,
                    bytes,
                });
            }
        }
        Ok(counts)
    }

    /// The reasons that were counted, summed over the CPUs.
    pub fn reasons(&self) -> Result<Vec<ReasonCount>, DatapathError> {
        let mut counts = Vec::new();
        for &reason in Reason::ALL {
            let values = self
                .reasons
                .get(&(reason as u32), 0)
                .map_err(map_error("REASONS"))?;
            let packets = values.iter().sum();
            if packets != 0 {
                counts.push(ReasonCount { reason, packets });
            }
        }
        Ok(counts)
    }
}

/// An empty map for a plan.
fn new_plan() -> Result<MapData, DatapathError> {
    let layout = aya_obj::Map::new_from_params(
        BPF_MAP_TYPE_ARRAY as u32,
        KEY_BYTES,
        CHUNK_BYTES,
        CHUNKS,
        BPF_F_RDONLY_PROG,
    );
    MapData::create(layout, "steer_plan", None).map_err(map_error("steer_plan"))
}

/// Makes and pins the map of the active generation, if it is not there.
///
/// The loader would make one whose inner map has type information (BTF), which that of
/// [`Maps::publish`] has not. Linux 6.1 and older take that for another kind of map and refuse it
/// with EINVAL: `bpf_map_meta_equal` of kernel/bpf/map_in_map.c compares `timer_off` there, which is
/// -EINVAL without type information and -ENOENT with it.
pub(super) fn prepare(pins: &PinDir) -> Result<(), DatapathError> {
    prepare_outer(pins, "GENERATION", new_plan)
}

/// The same for any map of one map like `template`.
pub(super) fn prepare_outer(
    pins: &PinDir,
    name: &'static str,
    template: impl FnOnce() -> Result<MapData, DatapathError>,
) -> Result<(), DatapathError> {
    let path = pins.map(name);
    if path.exists() {
        return Ok(());
    }
    let refused = |error: &dyn std::fmt::Display| DatapathError::Map {
        map: name,
        reason: format!("cannot make or pin it: {error}"),
    };
    let template = template()?;
    sys::array_of_maps(name, template.fd().as_fd())
        .map_err(|error| refused(&error))
        .and_then(|map| MapData::from_fd(map).map_err(map_error(name)))
        .and_then(|map| map.pin(&path).map_err(|error| refused(&error)))
}

/// Leaves a mark below the pins that lasts as long as they do: the map of the paths once more, for a
/// BPF file system holds nothing but BPF objects.
pub(super) fn pin_mark(pins: &PinDir, path: PathBuf) -> Result<(), DatapathError> {
    if path.exists() {
        return Ok(());
    }
    MapData::from_pin(pins.map("PATHS"))
        .map_err(map_error("PATHS"))?
        .pin(&path)
        .map_err(|error| DatapathError::Pin {
            path,
            reason: error.to_string(),
        })
}

/// Pins the flow table and the clock of another version of steer as this one's, too: connections
/// stay where they are, and while both programs run, both see the same ones.
pub(super) fn take_flow_table_over(pins: &PinDir) -> Result<(), DatapathError> {
    for name in ["CLOCK", "FLOWS"] {
        let path = pins.map(name);
        let Some(held) = pins.holders(name).find(|held| *held != path) else {
            continue;
        };
        if path.exists() {
            continue;
        }
        MapData::from_pin(&held)
            .map_err(map_error(name))?
            .pin(&path)
            .map_err(|error| DatapathError::Pin {
                path,
                reason: error.to_string(),
            })?;
        cut::point();
    }
    Ok(())
}

/// The seed of the flow table that is pinned already; none where there is no table yet.
pub(super) fn flow_seed(pins: &PinDir, mode: Mode) -> Option<u64> {
    if mode == Mode::Mark {
        return None;
    }
    let clock: Array<MapData, u64> = open(pins, "CLOCK").ok()?;
    clock
        .get(&flow::CLOCK_SEED, 0)
        .ok()
        .filter(|seed| *seed != 0)
}

/// The clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let now = std::time::Duration::from(now);
        now.as_secs() * 1_000_000_000 + u64::from(now.subsec_nanos())
    })
}

pub(super) fn open<T: TryFrom<Map, Error = MapError>>(
    pins: &PinDir,
    map: &'static str,
) -> Result<T, DatapathError> {
    MapData::from_pin(pins.map(map))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(map_error(map))
}

/// aya's errors name the system call; the operator also wants to know the map.
pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> DatapathError + Copy {
    move |error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        DatapathError::Map {
            map,
            reason: format!("{error}{}", source.unwrap_or_default()),
        }
    }
}
