//! Programs at TC: links where the kernel has TCX (Linux 6.6), else filters of a clsact qdisc.

use std::io;

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcHandle,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
    },
    util::KernelVersion,
};
use nix::net::if_::if_indextoname;

use super::{DatapathError, PinDir, attachment::Hook, links, maps, objects::is_ours};

/// Where among the programs of others at TC ingress ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Behind those that are there when it comes.
    Last,
    /// Before those that are there: one that ends with a final verdict would hide packets from it.
    First,
}

impl Order {
    /// The name of its link's pin: a link keeps its place, so another order is another link.
    pub(super) const fn pin(self) -> &'static str {
        match self {
            Self::Last => "tc",
            Self::First => "tc_first",
        }
    }

    /// Whether a pin of this kind is a link of ours on a LAN.
    pub(super) fn is_pin(kind: &str) -> bool {
        [Self::Last, Self::First].iter().any(|it| it.pin() == kind)
    }

    const fn other(self) -> Self {
        match self {
            Self::Last => Self::First,
            Self::First => Self::Last,
        }
    }

    /// The priority of our filter on kernels without TCX: fixed, so that the next controller finds
    /// it; the kernel gives its own from 49,152 downwards.
    const fn filter_priority(self) -> u16 {
        match self {
            Self::Last => 49_000,
            Self::First => 1,
        }
    }

    fn link(self) -> LinkOrder {
        match self {
            Self::Last => LinkOrder::last(),
            Self::First => LinkOrder::first(),
        }
    }
}

/// The handle of our filter on kernels without TCX.
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x365);
/// The pins that say of an interface that our filter is there, and that the clsact qdisc is ours.
pub(super) const FILTER_MARK: &str = "filter";
/// See [`FILTER_MARK`].
pub(super) const QDISC_MARK: &str = "qdisc";

/// A program at an interface, and what its pins are called.
pub(super) struct TcPlace<'a> {
    /// The program.
    pub program: &'static str,
    /// The interface.
    pub interface: &'a str,
    /// Its index.
    pub ifindex: u32,
    /// Ingress or egress.
    pub direction: TcAttachType,
    /// Added to the priority of its filter (clsact): 0, or [`BEHIND`] behind another one of ours.
    pub behind: u16,
    /// The pin of its link (TCX).
    pub link: &'static str,
    /// Where among the programs of others.
    pub order: Order,
    /// The pin that says that our filter is there (clsact).
    pub filter: &'static str,
    /// The pin that says that the qdisc is ours (clsact).
    pub qdisc: &'static str,
}

/// See [`TcPlace::behind`].
pub(super) const BEHIND: u16 = 1;

impl TcPlace<'_> {
    fn filter_priority(&self) -> u16 {
        self.order.filter_priority() + self.behind
    }
}

/// Attaches a loaded program, in place of what an earlier controller left there; says how, and whether
/// there was one.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    place: &TcPlace<'_>,
    pins: &PinDir,
) -> Result<(Hook, bool), DatapathError> {
    let program = ebpf
        .program_mut(place.program)
        .and_then(|program| <&mut SchedClassifier>::try_from(program).ok())
        .ok_or(DatapathError::Missing(place.program))?;
    let path = pins.link(place.link, place.ifindex);
    let failed = |hook| {
        move |source: ProgramError| DatapathError::Attach {
            program: place.program,
            interface: place.interface.into(),
            hook,
            source: Box::new(source),
            advice: "",
        }
    };
    if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0)) {
        let adopted = attach_filter(program, place, pins, failed(Hook::Clsact))?;
        return Ok((Hook::Clsact, adopted));
    }
    let failed = failed(Hook::Tcx);
    if let Some((old, pin)) = links::adopt(pins, &path)
        && let Ok(link) = SchedClassifierLink::try_from(old)
        && let Ok(id) = program.attach_to_link(link)
    {
        let link = program.take_link(id).map_err(failed)?;
        if pin != path {
            links::keep(link, path)?;
        }
        return Ok((Hook::Tcx, true));
    }
    let link = program
        .attach_with_options(
            place.interface,
            place.direction,
            TcAttachOptions::TcxOrder(place.order.link()),
        )
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    links::keep(link, path)?;
    // The new one is there already; what both see, the second finds marked, and passes.
    let elsewhere = place.link == place.order.pin()
        && pins.forget_link(place.order.other().pin(), place.ifindex)?;
    Ok((Hook::Tcx, elsewhere))
}

/// Attaches as a filter of the clsact qdisc, and says whether it took the place of an earlier one.
fn attach_filter(
    program: &mut SchedClassifier,
    place: &TcPlace<'_>,
    pins: &PinDir,
    failed: impl Fn(ProgramError) -> DatapathError + Copy,
) -> Result<bool, DatapathError> {
    let interface = place.interface;
    // An earlier controller's marks, perhaps those of another version of steer.
    let known = pins.filters()?.get(&place.ifindex).copied();
    // A qdisc that is there already is what we want, and stays when we go. Any other error comes
    // again when the filter is added.
    if tc::qdisc_add_clsact(interface).is_ok() || known == Some(true) {
        maps::pin_mark(pins, pins.link(place.qdisc, place.ifindex))?;
    }
    let mark = pins.link(place.filter, place.ifindex);
    if known.is_some() {
        let old = clsact_filter(interface, place.direction, place.filter_priority())
            .map_err(|error| failed(error.into()))?;
        if let Ok(id) = program.attach_to_link(old) {
            let link = program.take_link(id).map_err(failed)?;
            // The filter is the kernel's; dropping the link would take it away.
            std::mem::forget(link);
            maps::pin_mark(pins, mark)?;
            return Ok(true);
        }
    }
    // A filter of ours whose pins somebody removed, or in another order.
    let adopted = tc::qdisc_detach_program(interface, place.direction, place.program).is_ok();
    let options = NlOptions {
        priority: place.filter_priority(),
        handle: FILTER_HANDLE,
        classid: None,
    };
    let link = program
        .attach_with_options(
            interface,
            place.direction,
            TcAttachOptions::Netlink(options),
        )
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    std::mem::forget(link);
    maps::pin_mark(pins, mark)?;
    Ok(adopted)
}

/// Our filter at an interface, as aya addresses it: whether it is there is not known.
fn clsact_filter(
    interface: &str,
    direction: TcAttachType,
    priority: u16,
) -> Result<SchedClassifierLink, TcError> {
    SchedClassifierLink::attached(interface, direction, priority, FILTER_HANDLE, None)
        .map_err(TcError::IoError)
}

/// Which of a clsact qdisc's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl Direction {
    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// Whether a filter of a clsact qdisc is ours.
pub fn is_our_filter(priority: u16, handle: u32, program: Option<&str>) -> bool {
    [Order::Last, Order::First]
        .map(Order::filter_priority)
        .iter()
        .any(|first| priority == *first || priority == first + BEHIND)
        && handle == u32::from(FILTER_HANDLE)
        && program.is_some_and(is_ours)
}

/// Removes our filter of a priority: ask [`is_our_filter`] first.
pub fn remove_filter(
    interface: &str,
    direction: Direction,
    priority: u16,
) -> Result<(), DatapathError> {
    clsact_filter(interface, direction.attach_type(), priority)
        .map_err(ProgramError::from)
        .and_then(aya::programs::links::Link::detach)
        .map_err(|source| not_removed(interface, source))
}

/// Removes the filters of some programs of ours from every interface where a filter of ours was left,
/// but for those of `keep`. Filters that are not there are fine.
pub(super) fn forget_filters(
    pins: &PinDir,
    programs: &[(&str, TcAttachType)],
    keep: &[u32],
) -> Result<(), DatapathError> {
    for index in pins.filters()?.into_keys().filter(|it| !keep.contains(it)) {
        // An interface that is gone took them along.
        let Ok(interface) = if_indextoname(index) else {
            continue;
        };
        let interface = interface.to_string_lossy();
        for (program, direction) in programs {
            match tc::qdisc_detach_program(&interface, *direction, program) {
                Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(|error| not_removed(&interface, error.into()))?,
            }
        }
    }
    Ok(())
}

fn not_removed(interface: &str, source: ProgramError) -> DatapathError {
    DatapathError::Detach {
        interface: interface.into(),
        source: Box::new(source),
    }
}
