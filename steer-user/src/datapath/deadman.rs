//! The dead-man's maps: the controller's heartbeat, and what the kernel found out without it.

use aya::maps::{Array, MapData};
use steer_common::{
    deadman::{Heartbeat, Life, Open},
    mark,
};

use super::{
    DatapathError, PinDir,
    maps::{map_error, monotonic_ns, open},
};

const HEARTBEAT: &str = "HEARTBEAT";
const OPEN: &str = "OPEN";
const LIVES: &str = "LIVES";

/// The maps.
pub struct DeadMan {
    heartbeat: Array<MapData, Heartbeat>,
    open: Array<MapData, Open>,
    lives: Array<MapData, Life>,
}

/// What the dead-man says of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathLife {
    /// The path.
    pub path: u8,
    /// Whether its answers are heard: without that it is never taken for down.
    pub heard: bool,
    /// Whether it is taken for down now.
    pub down: bool,
    /// How often it was taken for down since steer's maps were made.
    pub openings: u32,
}

/// What the dead-man says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadManState {
    /// Whether it acts: no controller has given a sign of life for some time.
    pub acts: bool,
    /// The paths that are heard, or were taken for down once.
    pub paths: Vec<PathLife>,
}

impl DeadMan {
    pub(super) fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self {
            heartbeat: open(pins, HEARTBEAT)?,
            open: open(pins, OPEN)?,
            lives: open(pins, LIVES)?,
        })
    }

    /// Says that a controller watches, and which paths are heard. The first time after a while, it
    /// forgets what the dead-man found out: the controller knows better.
    pub(super) fn beat(&mut self, heard: &[u8]) -> Result<(), DatapathError> {
        let before = self.heartbeat()?;
        let now = Heartbeat {
            at: monotonic_ns(),
            heard: heard.iter().fold(0, |bits, path| bits | 1 << (path & 0x0f)),
        };
        self.heartbeat
            .set(0, now, 0)
            .map_err(map_error(HEARTBEAT))?;
        if before.is_fresh(now.at) && before.heard == now.heard {
            return Ok(());
        }
        self.open
            .set(0, Open::default(), 0)
            .map_err(map_error(OPEN))?;
        for path in (0_u32..).take(mark::PATHS) {
            let life = self.lives.get(&path, 0).map_err(map_error(LIVES))?;
            self.lives
                .set(path, life.rested(), 0)
                .map_err(map_error(LIVES))?;
        }
        Ok(())
    }

    /// What the dead-man says now.
    pub fn state(&self) -> Result<DeadManState, DatapathError> {
        let heartbeat = self.heartbeat()?;
        let acts = !heartbeat.is_fresh(monotonic_ns());
        let open = self.open.get(&0, 0).map_err(map_error(OPEN))?;
        let mut paths = Vec::new();
        for (path, is_open) in (0_u8..).zip(open.0) {
            let life = self.lives.get(&path.into(), 0).map_err(map_error(LIVES))?;
            let heard = heartbeat.heard & (1 << path) != 0;
            if heard || life.waiting.openings != 0 {
                paths.push(PathLife {
                    path,
                    heard,
                    // An answered one is up from its next packet on.
                    down: acts && is_open != 0 && life.answered == 0,
                    openings: life.waiting.openings,
                });
            }
        }
        Ok(DeadManState { acts, paths })
    }

    fn heartbeat(&self) -> Result<Heartbeat, DatapathError> {
        self.heartbeat.get(&0, 0).map_err(map_error(HEARTBEAT))
    }
}
