//! The only module that knows aya and bpf(): loads the kernel programs, pins and publishes,
//! attaches, and reads the counters.
//!
//! Everything lives below one directory of a BPF file system, named by the hash of the maps'
//! layout, so that the programs go on without a controller and the next one finds them:
//! `PIN_DIR/ABI/maps/NAME`, `PIN_DIR/ABI/links/HOOK-IFINDEX`.

mod attachment;
mod deadman;
mod dns;
mod exits;
mod lessons;
mod links;
mod load;
mod maps;
pub mod objects;
mod pins;
mod sys;
mod tc;
pub(crate) mod trial;

pub use attachment::{Attachment, Hook};
pub use deadman::{DeadMan, DeadManState, FamilyLife, PathLife};
pub use dns::{Dns, DnsMaps, LearnedAddress, PendingQuery};
pub use exits::Exit;
pub use lessons::{Lesson, Lessons};
pub use load::{Datapath, LogLevel, Mode, Port, XdpChoice};
pub use maps::{ClassCount, Maps, ReasonCount, monotonic_ns};
pub use objects::is_ours;
pub use pins::PinDir;
pub use tc::{Direction, Order, is_our_filter, remove_filter};
pub use trial::{Trial, attached_at, program_name, too_old_for_redirect, try_out, try_out_exit};

use std::path::PathBuf;

/// What can go wrong between steer and the kernel's BPF.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin directory cannot be made or read.
    #[error(
        "{path}: {source}. steer keeps its programs there; it must be on a BPF file system: mount -t bpf bpf /sys/fs/bpf"
    )]
    PinDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An object did not load.
    #[error("the kernel refuses the object {object}: {source}")]
    Load {
        /// steer-mark or steer-fast.
        object: &'static str,
        /// What aya or the kernel said.
        source: Box<aya::EbpfError>,
    },
    /// A program did not load.
    #[error("the kernel refuses the program {program} for {interface}: {source}")]
    Program {
        /// The program.
        program: &'static str,
        /// The interface it was for.
        interface: String,
        /// What aya or the kernel said, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program is not in its object.
    #[error("the object has no program {0}; this build of steer is broken")]
    Missing(&'static str),
    /// A program could not be attached.
    #[error("{interface}: cannot attach {program} ({hook}): {source}{advice}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// TCX, clsact, native or generic XDP.
        hook: Hook,
        /// What aya or the kernel said.
        source: Box<aya::programs::ProgramError>,
        /// What to do about it.
        advice: &'static str,
    },
    /// The filter of an older kernel could not be removed.
    #[error("{interface}: cannot remove steer's filter from its clsact qdisc: {source}")]
    Detach {
        /// The interface.
        interface: String,
        /// What aya or the kernel said.
        source: Box<aya::programs::ProgramError>,
    },
    /// A link could not be kept.
    #[error("{path}: cannot keep the attachment: {reason}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What aya or the kernel said.
        reason: String,
    },
    /// A map cannot be opened, read or written.
    #[error("the map {map}: {reason}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya or the kernel said.
        reason: String,
    },
}
