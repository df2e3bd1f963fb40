//! The program that hears answers at the ingress of the breakouts, for the dead-man.

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};

use super::{
    DatapathError, PinDir,
    attachment::Attachment,
    maps, objects,
    tc::{self, TcPlace},
};

/// Its pins.
const LINK: &str = "exit";
pub(super) const FILTER_MARK: &str = "exit-filter";
pub(super) const QDISC_MARK: &str = "exit-qdisc";

/// A breakout's interface, as the program has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The path, 1 to 15.
    pub path: u8,
    /// The interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Whether packets begin with the IP header there (PPP, tunnels).
    pub bare_ip: bool,
}

/// Whether a pin of this kind is one of ours.
pub(super) fn is_kind(kind: &str) -> bool {
    [LINK, FILTER_MARK, QDISC_MARK].contains(&kind)
}

/// Loads the program, with maps of its own where no pins are given.
pub(super) fn load(exit: &Exit, pins: Option<&PinDir>) -> Result<Ebpf, DatapathError> {
    let bare_ip = u8::from(exit.bare_ip);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("BARE_IP", &bare_ip, true)
        .override_global("PATH", &exit.path, true);
    if let Some(pins) = pins {
        for name in maps::SHARED {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader
        .load(objects::BREAKOUT)
        .map_err(|source| DatapathError::Load {
            object: "steer-breakout",
            source: Box::new(source),
        })?;
    let program = ebpf
        .program_mut(objects::BREAKOUT_RX)
        .ok_or(DatapathError::Missing(objects::BREAKOUT_RX))?;
    <&mut SchedClassifier>::try_from(program)
        .and_then(SchedClassifier::load)
        .map_err(|source| DatapathError::Program {
            program: objects::BREAKOUT_RX,
            interface: exit.interface.clone(),
            source: Box::new(source),
        })?;
    Ok(ebpf)
}

/// Loads the program for a breakout and attaches it; the pins keep both.
pub(super) fn attach(exit: &Exit, pins: &PinDir) -> Result<Attachment, DatapathError> {
    let mut ebpf = load(exit, Some(pins))?;
    let verified_instructions = objects::verified_instructions(&ebpf, objects::BREAKOUT_RX);
    let place = TcPlace {
        program: objects::BREAKOUT_RX,
        interface: &exit.interface,
        ifindex: exit.ifindex,
        direction: aya::programs::TcAttachType::Ingress,
        behind: 0,
        link: LINK,
        order: tc::Order::Last,
        filter: FILTER_MARK,
        qdisc: QDISC_MARK,
    };
    let (hook, adopted) = tc::attach(&mut ebpf, &place, pins)?;
    Ok(Attachment {
        interface: exit.interface.clone(),
        ifindex: exit.ifindex,
        program: objects::BREAKOUT_RX,
        hook,
        adopted,
        verified_instructions,
    })
}
