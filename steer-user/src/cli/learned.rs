//! What the kernel learned of an address, for `steer explain`.

use std::{fmt, net::IpAddr};

use serde::Serialize;
use steer_common::{
    dns::{self, SECOND, SHARED},
    names,
};

use crate::{
    config::Config,
    controller::RegistryFile,
    datapath::{DnsMaps, PinDir, monotonic_ns},
    policy::ClassKey,
};

/// What is pinned here, and what its class numbers mean.
pub(super) struct Learned {
    maps: DnsMaps,
    registry: RegistryFile,
}

/// A learned address.
#[derive(Debug, Serialize)]
pub(super) struct Lesson {
    /// The name that it was learned from.
    name: String,
    /// Who asked for it first.
    client: IpAddr,
    /// In seconds.
    expires_in: u64,
    /// Whether names outside the class were answered with it, too.
    shared: bool,
    #[serde(skip)]
    pub(super) class: Option<ClassKey>,
}

impl Learned {
    /// None where no query is steered, or without the right to look.
    pub(super) fn open(config: &Config) -> Option<Self> {
        let maps = DnsMaps::open(&PinDir::new(&config.system.pin_dir)).ok()?;
        let registry = RegistryFile::open(&config.system.state_dir).ok()?;
        Some(Self { maps, registry })
    }

    /// What is known of an address now.
    pub(super) fn lesson(&self, address: IpAddr) -> Option<Lesson> {
        let value = self.maps.learned_address(address)?;
        let left = value.expires.checked_sub(monotonic_ns())?;
        Some(Lesson {
            name: names::readable(&value.name),
            client: dns::ip(value.client),
            expires_in: left / SECOND,
            shared: value.flags & SHARED != 0,
            class: self.registry.get().key(value.class),
        })
    }
}

impl fmt::Display for Lesson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            client,
            expires_in,
            ..
        } = self;
        write!(
            f,
            "learned for {name}, which {client} asked for first, for another {expires_in} s"
        )?;
        if self.shared {
            f.write_str("; other names have the address, too: only for the clients that asked")?;
        }
        Ok(())
    }
}
