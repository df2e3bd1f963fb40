//! steer's own programs on a router that is measured.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use steer_common::{
    abi::{FamilyTable, NextHop, PathTable, STEERING},
    image::Image,
    mark,
};
use steer_user::{
    datapath::{Datapath, LogLevel, Maps, Mode, Order, PinDir, Port, XdpChoice},
    system::{
        self, InterfaceName, Kernel, MarkBits, NextHop as HopTo, Owner, PathId, PathSpec, TableId,
        Wanted,
    },
};

use super::router::{self, Router};

/// The breakout's path.
pub const PATH: u8 = 1;

/// steer on one router, until it is dropped.
pub struct Steer {
    pins: PinDir,
    mode: Mode,
}

impl Steer {
    /// Loads the programs of a mode, publishes the plan, and attaches to the LAN.
    pub fn start(router: &Router, mode: Mode, plan: &Image) -> Result<Self> {
        let pins = Path::new("/sys/fs/bpf").join(router.namespace.name());
        let steer = Self {
            pins: PinDir::new(pins),
            mode,
        };
        // Interface indexes mean those of this namespace.
        router.namespace.run(|| steer.attach(router, plan))?;
        Ok(steer)
    }

    /// The pinned maps, opened once more: as a controller has them that starts again.
    pub fn maps(&self) -> Result<Maps> {
        Ok(Maps::open(&self.pins, self.mode)?)
    }

    /// Puts freshly loaded programs in the place of those that run, as a controller's start does.
    pub fn swap(&self, router: &Router) -> Result<()> {
        router.namespace.run(|| {
            let attachments = self.load(router)?.attach(XdpChoice::Native)?;
            let in_place = attachments.iter().all(|at| at.adopted);
            ensure!(in_place, "attached anew: {attachments:?}");
            Ok(())
        })
    }

    fn load(&self, router: &Router) -> Result<Datapath> {
        let port = Port {
            interface: "lan0".into(),
            ifindex: router.lan.near,
            mac: Some(router.lan.near_mac),
            vlans: Vec::new(),
            marks: MarkBits::DEFAULT,
            order: Order::Last,
        };
        let pins = self.pins.clone();
        let ports = vec![port];
        Ok(Datapath::load(
            self.mode,
            pins,
            ports,
            0x0365,
            LogLevel::Off,
        )?)
    }

    fn attach(&self, router: &Router, plan: &Image) -> Result<()> {
        let mode = self.mode;
        let mut datapath = self.load(router)?;
        let maps = datapath.maps_mut();
        maps.publish(plan.clone())?;
        let mut table = PathTable::of(
            [FamilyTable::of(STEERING | 1 << PATH, PATH); 2],
            [[0; 2]; mark::PATHS],
        );
        if mode == Mode::Redirect {
            const HOP: u8 = 1;
            let mut hop = NextHop {
                macs: [0; 12],
                device: PATH.into(),
                mtu: 1500,
            };
            hop.macs[..6].copy_from_slice(&router.breakout.far_mac);
            hop.macs[6..].copy_from_slice(&router.breakout.near_mac);
            maps.set_device(PATH, router.breakout.near)?;
            maps.set_next_hop(HOP, &hop)?;
            table.next_hops[usize::from(PATH)] = [HOP, 0];
        }
        maps.set_paths(&table)?;
        datapath.attach(XdpChoice::Native)?;
        Ok(())
    }
}

/// Puts everything into the router that mark mode puts into a box: nftables, routes and rules.
pub fn apply_system(router: &Router) -> Result<()> {
    let path = PathSpec {
        id: PathId::new(PATH).context("no such path")?,
        name: "breakout".into(),
        interface: InterfaceName::new("brk0")?,
        exists: true,
        mtu: 1500,
        next_hop4: Some(HopTo::Via(router::BREAKOUT_GATEWAY)),
        next_hop6: None,
        addresses: vec![router::BREAKOUT_ADDRESS.into()],
        valid4: Vec::new(),
        valid6: Vec::new(),
    };
    let wanted = Wanted {
        marks: MarkBits::DEFAULT,
        lan: vec![InterfaceName::new("lan0")?],
        paths: vec![path],
        route_tables: vec![TableId::MAIN],
        routes: Owner::Steer,
        nat: Owner::Steer,
        forward_queries: vec![],
        ipv6: false,
        keep_gateways: false,
    };
    // The way back is to delete the namespace.
    let undo = tempfile::tempdir()?;
    router.namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut kernel = Kernel::open(undo.path())?;
            system::apply_all(&mut kernel, &system::objects(&wanted)).await
        })?;
        Ok(())
    })
}

impl Drop for Steer {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove() {
            eprintln!("warning: {error}");
        }
    }
}
