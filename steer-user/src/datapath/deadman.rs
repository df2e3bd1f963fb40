//! The dead-man's maps: the controller's heartbeat, and what the kernel found out without it.

use aya::maps::{Array, MapData};
use steer_common::{
    deadman::{self, Heartbeat, LIVES as LIVES_COUNT, Life, Open},
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
    /// The same for IPv4 and IPv6 by themselves.
    pub families: [FamilyLife; 2],
}

/// What the dead-man says of a family on one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyLife {
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
        for family in 0..2 {
            self.open
                .set(family, Open::default(), 0)
                .map_err(map_error(OPEN))?;
        }
        for place in (0_u32..).take(LIVES_COUNT) {
            let life = self.lives.get(&place, 0).map_err(map_error(LIVES))?;
            self.lives
                .set(place, life.rested(), 0)
                .map_err(map_error(LIVES))?;
        }
        Ok(())
    }

    /// What the dead-man says now.
    pub fn state(&self) -> Result<DeadManState, DatapathError> {
        let heartbeat = self.heartbeat()?;
        let acts = !heartbeat.is_fresh(monotonic_ns());
        let mut paths = Vec::new();
        for path in (0_u8..).take(mark::PATHS) {
            let [v4, v6] = [0, 1].map(|family| self.family(path, family, acts));
            let families = [v4?, v6?];
            let heard = heartbeat.heard & (1 << path) != 0;
            if heard || families.iter().any(|it| it.openings != 0) {
                paths.push(PathLife {
                    path,
                    heard,
                    families,
                });
            }
        }
        Ok(DeadManState { acts, paths })
    }

    fn family(&self, path: u8, family: u32, acts: bool) -> Result<FamilyLife, DatapathError> {
        let open = self.open.get(&family, 0).map_err(map_error(OPEN))?;
        let place = deadman::life(path, family as usize);
        let life = self.lives.get(&place, 0).map_err(map_error(LIVES))?;
        Ok(FamilyLife {
            // An answered one is up from its next packet on.
            down: acts && open.0[usize::from(path)] != 0 && life.answered == 0,
            openings: life.waiting.openings,
        })
    }

    fn heartbeat(&self) -> Result<Heartbeat, DatapathError> {
        self.heartbeat.get(&0, 0).map_err(map_error(HEARTBEAT))
    }
}
