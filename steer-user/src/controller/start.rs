//! What a start puts into the box and the kernel, in an order that never leaves packets between two
//! chairs, and how a failed one is taken back.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{
    ControllerError, Options, clsact, deadman, look::View, preflight, transition::Transition,
};
use crate::{
    config::{Config, Mode},
    datapath::{self, Attachment, Datapath, LogLevel, PinDir},
    policy::Plan,
    system::{self, Kernel, Object, owners::Owners},
};

/// Puts everything into the box and the kernel but the attachments: programs come last, when all
/// that they need is there, the state of the paths included.
pub(super) async fn load(
    config: &Config,
    options: &Options,
    kernel: &mut Kernel,
    objects: &[Object],
    view: &View,
    (plan, transition): (&Plan, &mut Transition),
) -> Result<(Datapath, u64), ControllerError> {
    for (object, error) in system::reconcile(kernel, objects).await.failed {
        match object {
            // A link that is down takes no route; its path is down until then, too.
            Object::Route(_) | Object::Gateway(_) => {
                warn!("`{object}` waits for its link: {error}");
            }
            _ => return Err(error.into()),
        }
    }
    // Of a LAN that is no longer in the configuration. The links of newer kernels go with their pins.
    let exits = deadman::exits(view);
    let ports = view.ports.iter().map(|port| port.ifindex);
    let keep: Vec<u32> = ports.chain(exits.iter().map(|exit| exit.ifindex)).collect();
    clsact::remove(&PinDir::new(&config.system.pin_dir), kernel, &keep).await?;
    let mut datapath = load_programs(config, options, view)?;
    let generation = transition.publish(datapath.maps_mut(), plan)?;
    Ok((datapath, generation))
}

/// Loads programs for the ports of a view and attaches them, with the maps that are there.
pub(super) fn attach(
    config: &Config,
    options: &Options,
    view: &View,
) -> Result<(Datapath, Vec<Attachment>), ControllerError> {
    let mut datapath = load_programs(config, options, view)?;
    let attachments = attach_programs(config, view, &mut datapath)?;
    Ok((datapath, attachments))
}

fn load_programs(
    config: &Config,
    options: &Options,
    view: &View,
) -> Result<Datapath, ControllerError> {
    let log = if options.log_packets {
        LogLevel::Debug
    } else {
        LogLevel::Off
    };
    let pins = PinDir::new(&config.system.pin_dir);
    Ok(Datapath::load(
        config.mode,
        pins,
        view.ports.clone(),
        flow_seed()?,
        log,
    )?)
}

pub(super) fn attach_programs(
    config: &Config,
    view: &View,
    datapath: &mut Datapath,
) -> Result<Vec<Attachment>, ControllerError> {
    let attachments = datapath.attach(preflight::xdp_choice(config, view))?;
    for at in &attachments {
        let adopted = at.adopted_in_words();
        info!("{}: {} by {}{adopted}", at.interface, at.program, at.hook);
    }
    Ok(attachments)
}

/// Whether an earlier controller's programs steer in this mode already.
///
/// What another version of steer wrote down about its steering cannot be read; that its programs
/// are attached must do, and in redirect mode that its memory of the flows is one that we read.
pub(super) fn adoptable(config: &Config) -> bool {
    let pins = PinDir::new(&config.system.pin_dir);
    if pins.mode() != Some(config.mode) {
        return false;
    }
    if pins.is_of_another_version() {
        return config.mode == Mode::Mark || pins.has_flow_table();
    }
    datapath::Maps::open(&pins, config.mode)
        .and_then(|maps| maps.paths())
        .is_ok_and(|paths| paths.families[0].state & steer_common::abi::STEERING != 0)
}

/// How long flows that began before are only watched.
///
/// Mark mode needs no watch where connection tracking knew the flows already; where an earlier
/// controller steered, its memory is still there.
pub(super) fn watch_period(config: &Config, owners: &Owners, adopting: bool) -> Duration {
    let tracked = config.mode == Mode::Mark && owners.conntrack_in_use(system::conntrack::usage());
    if adopting || tracked {
        Duration::ZERO
    } else {
        config.mark.watch_period
    }
}

/// Takes back what a failed start left: everything, or, where an earlier controller's programs
/// steer on, what nobody uses.
pub(super) async fn undo(kernel: &mut Kernel, config: &Config, adopting: bool) {
    let pins = PinDir::new(&config.system.pin_dir);
    if adopting {
        if let Err(error) = pins.forget_unused() {
            error!("after the failed start: {error}");
        }
        return;
    }
    if let Err(error) = clsact::remove(&pins, kernel, &[]).await {
        error!("after the failed start: {error}");
    }
    if let Err(error) = pins.remove() {
        error!("after the failed start: {error}");
    }
    match system::leftovers(kernel, &[]).await {
        Ok(objects) => {
            for (object, error) in system::remove_all(kernel, &objects).await {
                error!("after the failed start `{object}` could not be removed: {error}");
            }
        }
        Err(error) => error!("after the failed start: {error}"),
    }
}

/// Clients cannot foresee where their flows lie.
fn flow_seed() -> Result<u64, ControllerError> {
    use std::io::Read as _;
    let mut seed = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut seed))
        .map_err(ControllerError::Random)?;
    Ok(u64::from_ne_bytes(seed))
}
