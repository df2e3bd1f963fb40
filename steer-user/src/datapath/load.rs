//! Loads one program for each LAN interface and attaches it there.

use std::fmt;

use aya::{
    Ebpf, EbpfLoader, Pod,
    programs::{ProgramError, SchedClassifier, Xdp, XdpMode, xdp::XdpLink},
};
use aya_log::EbpfLogger;
use steer_common::mark;

use super::{
    DatapathError, Maps, PinDir,
    attachment::{Attachment, Hook},
    exits::{self, Exit},
    links, maps, objects,
    tc::{self, Order, TcPlace},
};
use crate::cut;

/// How packets are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// TC marks, the kernel routes and translates.
    Mark,
    /// XDP forwards past the stack.
    Redirect,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mark => "mark",
            Self::Redirect => "redirect",
        })
    }
}

impl Mode {
    const fn object(self) -> (&'static str, &'static [u8]) {
        match self {
            Self::Mark => ("steer-mark", objects::MARK),
            Self::Redirect => ("steer-fast", objects::FAST),
        }
    }

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Mark => objects::LAN_INGRESS,
            Self::Redirect => objects::LAN_REDIRECT,
        }
    }
}

/// Where XDP may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    /// In the driver, else in the stack.
    Auto,
    /// In the driver only.
    Native,
    /// In the stack.
    Generic,
}

/// What the programs log of rare events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing; the verifier removes the code.
    Off,
    /// Odd packets.
    Debug,
}

/// A LAN interface, as a program has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The Ethernet address that clients send to; none where packets begin with the IP header.
    pub mac: Option<[u8; 6]>,
    /// The VLANs whose frames are steered: outer id << 16 | inner id, 0 for untagged frames. At
    /// most 8; none means untagged only.
    pub vlans: Vec<u32>,
    /// The bits of marks that are steer's.
    pub marks: mark::Bits,
    /// Where among others' programs at TC ours is.
    pub order: Order,
}

impl Port {
    fn vlans(&self) -> [u32; 8] {
        let mut vlans = [u32::MAX; 8];
        vlans[0] = 0;
        for (place, vlan) in vlans.iter_mut().zip(&self.vlans) {
            *place = *vlan;
        }
        vlans
    }
}

/// The loaded programs and their maps.
pub struct Datapath {
    mode: Mode,
    pins: PinDir,
    programs: Vec<(Port, Ebpf)>,
    maps: Maps,
    /// The paths whose answers are heard.
    heard: Vec<u8>,
    logs: Vec<EbpfLogger<&'static dyn log::Log>>,
}

impl Datapath {
    /// Loads a program for each port; the maps are those that are pinned already, or new ones.
    /// Nothing is attached yet. `flow_seed` is for a new flow table; one that is there keeps its
    /// own, or none of its connections would be found again.
    pub fn load(
        mode: Mode,
        pins: PinDir,
        ports: Vec<Port>,
        flow_seed: u64,
        log: LogLevel,
    ) -> Result<Self, DatapathError> {
        pins.create()?;
        maps::prepare(&pins)?;
        if mode == Mode::Redirect {
            maps::take_flow_table_over(&pins)?;
        }
        cut::point();
        let flow_seed = maps::flow_seed(&pins, mode).unwrap_or(flow_seed);
        let mut programs = ports
            .into_iter()
            .map(|port| {
                let ebpf = load_program(mode, Some(&pins), &port, flow_seed, log)?;
                cut::point();
                Ok((port, ebpf))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(port) = programs.first().map(|(port, _)| port) {
            maps::pin_mark(&pins, pins.mark_bits_pin(port.marks))?;
        }
        let mut maps = Maps::open(&pins, mode)?;
        maps.keep_flow_seed(flow_seed)?;
        cut::point();
        let mut logs = Vec::new();
        if log == LogLevel::Debug {
            for (_, ebpf) in &mut programs {
                logs.push(EbpfLogger::init(ebpf).map_err(|error| DatapathError::Map {
                    map: "AYA_LOGS",
                    reason: error.to_string(),
                })?);
            }
        }
        Ok(Self {
            mode,
            pins,
            programs,
            maps,
            heard: Vec::new(),
            logs,
        })
    }

    /// Passes what the programs logged since the last call on to our log.
    pub fn flush_log(&mut self) {
        for log in &mut self.logs {
            log.flush();
        }
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, to write to.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// The objects, one for each port in the order given: for test runs and for the programs' log.
    pub fn objects_mut(&mut self) -> impl Iterator<Item = &mut Ebpf> {
        self.programs.iter_mut().map(|(_, ebpf)| ebpf)
    }

    /// Attaches the programs and pins their links. What an earlier controller left on the same
    /// interface is replaced in place, so that no packet sees a gap.
    pub fn attach(&mut self, xdp: XdpChoice) -> Result<Vec<Attachment>, DatapathError> {
        let (mode, pins) = (self.mode, &self.pins);
        let attachments = self
            .programs
            .iter_mut()
            .map(|(port, ebpf)| {
                let verified_instructions = objects::verified_instructions(ebpf, mode.program());
                let (hook, adopted) = match mode {
                    Mode::Mark => tc::attach(ebpf, &lan_place(port), pins)?,
                    Mode::Redirect => attach_xdp(ebpf, port, pins, xdp)?,
                };
                cut::point();
                Ok(Attachment {
                    interface: port.interface.clone(),
                    ifindex: port.ifindex,
                    program: mode.program(),
                    hook,
                    adopted,
                    verified_instructions,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        // An interface that was deleted and made again has another index.
        let indexes: Vec<u32> = attachments.iter().map(|it| it.ifindex).collect();
        pins.forget_other_links(|kind| !exits::is_kind(kind), &indexes)?;
        pins.forget_other_versions()?;
        Ok(attachments)
    }

    /// Attaches what hears the answers to the breakouts' interfaces, each for itself: a device that
    /// takes no such program costs the dead-man of its path, nothing else.
    pub fn attach_exits(&mut self, exits: &[Exit]) -> Vec<Result<Attachment, DatapathError>> {
        let attached: Vec<_> = exits
            .iter()
            .map(|it| exits::attach(it, &self.pins))
            .collect();
        let heard = exits.iter().zip(&attached).filter(|(_, it)| it.is_ok());
        self.heard = heard.map(|(exit, _)| exit.path).collect();
        let indexes: Vec<u32> = exits.iter().map(|it| it.ifindex).collect();
        let forgotten = self.pins.forget_other_links(exits::is_kind, &indexes);
        attached
            .into_iter()
            .chain(forgotten.err().map(Err))
            .collect()
    }

    /// Tells the kernel that a controller watches: the dead-man leaves the paths to it.
    pub fn beat(&mut self) -> Result<(), DatapathError> {
        self.maps.dead_man_mut().beat(&self.heard)
    }
}

pub(super) fn load_program(
    mode: Mode,
    pins: Option<&PinDir>,
    port: &Port,
    flow_seed: u64,
    log: LogLevel,
) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    let globals = Globals::of(port, log);
    globals.set(&mut loader);
    loader.override_global("FLOW_SEED", &flow_seed, false);
    let fast: &[&str] = if mode == Mode::Redirect {
        &maps::FAST
    } else {
        &[]
    };
    if let Some(pins) = pins {
        for name in maps::SHARED.iter().chain(fast) {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let (object, bytes) = mode.object();
    let mut ebpf = loader.load(bytes).map_err(|source| DatapathError::Load {
        object,
        source: Box::new(source),
    })?;
    let program = ebpf
        .program_mut(mode.program())
        .ok_or(DatapathError::Missing(mode.program()))?;
    let result = match mode {
        Mode::Mark => <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load),
        Mode::Redirect => <&mut Xdp>::try_from(program).and_then(Xdp::load),
    };
    result.map_err(|source| DatapathError::Program {
        program: mode.program(),
        interface: port.interface.clone(),
        source: Box::new(source),
    })?;
    Ok(ebpf)
}

/// What a program knows of its interface.
pub(super) struct Globals {
    bare_ip: u8,
    vlans: Vlans,
    mac: [u8; 8],
    mark_shift: u8,
    level: u8,
}

impl Globals {
    pub(super) fn of(port: &Port, log: LogLevel) -> Self {
        let mut mac = [0; 8];
        mac[..6].copy_from_slice(&port.mac.unwrap_or_default());
        Self {
            bare_ip: u8::from(port.mac.is_none()),
            vlans: Vlans(port.vlans()),
            mac,
            mark_shift: port.marks.shift(),
            level: match log {
                LogLevel::Off => 0,
                LogLevel::Debug => aya_log_level_debug(),
            },
        }
    }

    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("BARE_IP", &self.bare_ip, false)
            .override_global("VLANS", &self.vlans, false)
            .override_global("ROUTER_MAC", &self.mac, false)
            .override_global("MARK_SHIFT", &self.mark_shift, false)
            .override_global("AYA_LOG_LEVEL", &self.level, false);
    }
}

/// aya-log's number for "debug".
const fn aya_log_level_debug() -> u8 {
    4
}

/// The VLANs as the program's global.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Vlans([u32; 8]);

// SAFETY: an array of integers: every byte pattern is valid and there is no padding.
unsafe impl Pod for Vlans {}

/// The pins of links: XDP in the driver, XDP in the stack.
pub(super) const NATIVE_LINK: &str = "xdp-native";
/// See [`NATIVE_LINK`].
pub(super) const GENERIC_LINK: &str = "xdp-generic";

/// Where the program of mark mode goes.
fn lan_place(port: &Port) -> TcPlace<'_> {
    TcPlace {
        program: Mode::Mark.program(),
        interface: &port.interface,
        ifindex: port.ifindex,
        direction: aya::programs::TcAttachType::Ingress,
        behind: 0,
        link: port.order.pin(),
        order: port.order,
        filter: tc::FILTER_MARK,
        qdisc: tc::QDISC_MARK,
    }
}

fn attach_xdp(
    ebpf: &mut Ebpf,
    port: &Port,
    pins: &PinDir,
    choice: XdpChoice,
) -> Result<(Hook, bool), DatapathError> {
    const PROGRAM: &str = "lan_redirect";
    let program = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| <&mut Xdp>::try_from(program).ok())
        .ok_or(DatapathError::Missing(PROGRAM))?;
    let failed = |hook| {
        move |source: ProgramError| {
            let busy = std::error::Error::source(&source)
                .and_then(|source| source.downcast_ref::<std::io::Error>())
                .is_some_and(|error| error.raw_os_error() == Some(libc::EBUSY));
            DatapathError::Attach {
                program: PROGRAM,
                interface: port.interface.clone(),
                hook,
                source: Box::new(source),
                advice: if busy {
                    ". Another XDP program owns the interface and was left alone; use mode = \"mark\" there"
                } else {
                    ". Use xdp = \"auto\" or mode = \"mark\""
                },
            }
        }
    };
    for (hook, name, allowed) in [
        (Hook::NativeXdp, NATIVE_LINK, choice != XdpChoice::Generic),
        (Hook::GenericXdp, GENERIC_LINK, choice != XdpChoice::Native),
    ] {
        let path = pins.link(name, port.ifindex);
        if !allowed {
            // Two programs of one interface cannot be in both places.
            pins.forget_link(name, port.ifindex)?;
            continue;
        }
        if let Some((old, pin)) = links::adopt(pins, &path)
            && let Ok(link) = XdpLink::try_from(old)
            && let Ok(id) = program.attach_to_link(link)
        {
            let link = program.take_link(id).map_err(failed(hook))?;
            if pin != path {
                links::keep(link, path)?;
            }
            return Ok((hook, true));
        }
    }
    let order: &[(Hook, &str, XdpMode)] = match choice {
        XdpChoice::Auto => &[
            (Hook::NativeXdp, NATIVE_LINK, XdpMode::Driver),
            (Hook::GenericXdp, GENERIC_LINK, XdpMode::Skb),
        ],
        XdpChoice::Native => &[(Hook::NativeXdp, NATIVE_LINK, XdpMode::Driver)],
        XdpChoice::Generic => &[(Hook::GenericXdp, GENERIC_LINK, XdpMode::Skb)],
    };
    let mut refused = None;
    for &(hook, name, mode) in order {
        let attached = program
            .attach_to_if_index(port.ifindex, mode)
            .and_then(|id| program.take_link(id));
        match attached {
            Ok(link) => {
                links::keep(link, pins.link(name, port.ifindex))?;
                return Ok((hook, false));
            }
            Err(error) => refused = Some(failed(hook)(error)),
        }
    }
    Err(refused.unwrap_or(DatapathError::Missing(PROGRAM)))
}
