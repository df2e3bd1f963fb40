//! What this kernel can do, found out by trying, and whose programs are where. Nothing is attached or
//! pinned, and nothing stays.

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, loaded_programs},
    util::KernelVersion,
};

use super::{
    DatapathError, LogLevel, Mode, Port,
    exits::{self, Exit},
    load, objects,
};

/// How a program loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Trial {
    /// The program.
    pub program: &'static str,
    /// How many instructions the verifier looked at; none before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// The size of the machine code, in bytes; 0 if the kernel interprets the program.
    pub machine_code: u32,
}

/// Loads the mode's program as it would be loaded for the port, and drops it.
pub fn try_out(mode: Mode, port: &Port) -> Result<Trial, DatapathError> {
    let ebpf = load::load_program(mode, None, port, 0, LogLevel::Off)?;
    tried(&ebpf, mode.program(), &port.interface)
}

/// Loads the program that hears answers on breakouts, and drops it.
pub fn try_out_exit(exit: &Exit) -> Result<Trial, DatapathError> {
    let ebpf = exits::load(exit, None)?;
    tried(&ebpf, objects::BREAKOUT_RX, &exit.interface)
}

fn tried(ebpf: &Ebpf, program: &'static str, interface: &str) -> Result<Trial, DatapathError> {
    let info = ebpf
        .program(program)
        .ok_or(DatapathError::Missing(program))?
        .info()
        .map_err(|source| DatapathError::Program {
            program,
            interface: interface.into(),
            source: Box::new(source),
        })?;
    Ok(Trial {
        program,
        verified_instructions: info.verified_instruction_count(),
        machine_code: info.size_jitted(),
    })
}

/// The names of the TCX programs at an interface's ingress, the first first; none if the kernel has
/// no TCX (before Linux 6.6) or the interface is not there.
pub fn attached_at(interface: &str) -> Option<Vec<String>> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).ok()?;
    let name = |it: &aya::programs::ProgramInfo| it.name_as_str().unwrap_or("unnamed").to_owned();
    Some(programs.iter().map(name).collect())
}

/// The release of this kernel, if it is too old for redirect mode.
///
/// Before Linux 5.15 `generic_xdp_install` refuses every program with a device map whose entries
/// have room for a program, as ours have (net/core/dev.c), and before 5.13 `veth_xdp_xmit` drops
/// unless the peer runs XDP, too (drivers/net/veth.c).
pub fn too_old_for_redirect() -> Option<String> {
    let old = KernelVersion::current().is_ok_and(|it| it < KernelVersion::new(5, 15, 0));
    let release = || nix::sys::utsname::uname().map(|it| it.release().display().to_string());
    old.then(|| release().unwrap_or_else(|_| "older".into()))
}

/// The name of a loaded program.
pub fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().flatten().find(|it| it.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

/// Programs of somebody else, for tests of who is told about them: steer's own under another name.
#[cfg(test)]
pub(crate) mod foreign {
    use aya::{
        Ebpf,
        programs::{
            LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
            tc::{NlOptions, TcAttachOptions},
        },
    };

    use super::super::objects;

    /// The object with a program's name replaced by one as long.
    fn renamed(object: &[u8], from: &str, to: &str) -> Ebpf {
        assert_eq!(from.len(), to.len());
        let mut bytes = object.to_vec();
        for start in 0..bytes.len() - from.len() {
            if bytes[start..].starts_with(from.as_bytes()) {
                bytes[start..start + to.len()].copy_from_slice(to.as_bytes());
            }
        }
        Ebpf::load(&bytes).unwrap()
    }

    /// Attaches `foreign_prog` at XDP; it goes when what is returned goes.
    pub fn xdp(interface: &str) -> Ebpf {
        let mut ebpf = renamed(objects::FAST, "lan_redirect", "foreign_prog");
        let program: &mut Xdp = ebpf
            .program_mut("foreign_prog")
            .unwrap()
            .try_into()
            .unwrap();
        program.load().unwrap();
        program.attach(interface, XdpMode::Skb).unwrap();
        ebpf
    }

    /// Attaches `foreign_tcx` at TCX ingress; it goes when what is returned goes.
    pub fn tcx(interface: &str) -> Ebpf {
        attach(interface, TcAttachOptions::TcxOrder(LinkOrder::last()))
    }

    /// Attaches `foreign_tcx` as a filter of a clsact qdisc that is there.
    pub fn clsact(interface: &str) -> Ebpf {
        attach(interface, TcAttachOptions::Netlink(NlOptions::default()))
    }

    fn attach(interface: &str, options: TcAttachOptions) -> Ebpf {
        let mut ebpf = renamed(objects::MARK, "lan_ingress", "foreign_tcx");
        let program: &mut SchedClassifier =
            ebpf.program_mut("foreign_tcx").unwrap().try_into().unwrap();
        program.load().unwrap();
        program
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .unwrap();
        ebpf
    }
}
