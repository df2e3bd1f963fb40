//! A tiny TC program that marks packets to Microsoft 365: what an operator would write first.
//!
//! The lab's counter-examples need one that survives `nft flush ruleset`, as any TC program does.
//! It is written in BPF instructions here so that it shares nothing with the product it is
//! compared to. Addresses and ports are at fixed places: it knows no IP options.

use std::{
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;

/// Destinations that it marks: the first 32 bits of an address, and the mask.
const IPV4: &[(u32, u32)] = &[
    (0x3460_0000, 0xfffc_0000), // 52.96.0.0/14
    (0x3470_0000, 0xfffc_0000), // 52.112.0.0/14
    (0x2860_0000, 0xfff8_0000), // 40.96.0.0/13
    (0x0d6b_8800, 0xffff_fc00), // 13.107.136.0/22
    (0x14be_8000, 0xffff_c000), // 20.190.128.0/18
];
const IPV6: &[(u32, u32)] = &[
    (0x2603_1006, 0xffff_ffff),
    (0x2603_1016, 0xffff_ffff),
    (0x2603_1061, 0xffff_ffff),
    (0x2603_1063, 0xffff_ffff),
];
const PORTS: &[u32] = &[80, 443, 993, 3478, 3479, 3480, 3481];

/// The attached program. Dropping it detaches it.
#[derive(Debug)]
pub struct Marker {
    _link: OwnedFd,
}

impl Marker {
    /// Attaches at TC ingress of an interface: matching packets get those bits of `mark`.
    pub fn attach(namespace: &Namespace, interface: &str, mark: u32, bits: u32) -> Result<Self> {
        Self::attach_program(namespace, interface, &program(mark, bits))
    }

    /// Attaches a program that does nothing and ends with a final verdict: those behind it do not
    /// see the packet.
    pub fn attach_final(namespace: &Namespace, interface: &str) -> Result<Self> {
        let mut asm = Assembler::default();
        asm.push(SET, 0, 0, 0); // TCX_PASS
        asm.push(EXIT, 0, 0, 0);
        Self::attach_program(namespace, interface, &asm.finish())
    }

    fn attach_program(
        namespace: &Namespace,
        interface: &str,
        program: &[Instruction],
    ) -> Result<Self> {
        let index = namespace.interface_index(interface)?;
        let program = load(program)?;
        let link = namespace.run(|| {
            let attributes = LinkCreate {
                program: program.as_raw_fd(),
                target: index,
                attach_type: TCX_INGRESS,
                ..LinkCreate::default()
            };
            bpf(BPF_LINK_CREATE, &attributes).context("attach the lab's marker to TC ingress")
        })?;
        Ok(Self { _link: link })
    }
}

/// One BPF instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    /// Destination register in the low, source register in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Where a jump goes.
#[derive(Clone, Copy, PartialEq)]
enum Label {
    Ipv6,
    Ports,
    Mark,
    End,
}

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn push(&mut self, code: u8, registers: u8, offset: i16, immediate: u32) {
        let immediate = immediate.cast_signed();
        self.code.push(Instruction {
            code,
            registers,
            offset,
            immediate,
        });
    }

    fn jump(&mut self, code: u8, registers: u8, immediate: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(code, registers, 0, immediate);
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (from, to) in self.jumps {
            let target = self.labels.iter().find(|(label, _)| *label == to);
            let distance = target.map_or(0, |(_, at)| at - from - 1);
            self.code[from].offset = i16::try_from(distance).unwrap_or_default();
        }
        self.code
    }
}

// Instruction codes of Documentation/bpf/standardization/instruction-set.rst.
const LOAD_BYTE: u8 = 0x30; // r0 = packet[immediate], needs the context in r6
const LOAD_HALF: u8 = 0x28;
const LOAD_WORD: u8 = 0x20;
const LOAD_FIELD: u8 = 0x61; // dst = *(u32 *)(src + offset)
const STORE_FIELD: u8 = 0x63;
const MOVE: u8 = 0xbf;
const MOVE_32: u8 = 0xbc;
const SET: u8 = 0xb4;
const AND: u8 = 0x54;
const OR: u8 = 0x44;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;
/// Offset of `mark` in struct __sk_buff.
const MARK: i16 = 8;

fn program(mark: u32, bits: u32) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    asm.push(MOVE, 0x16, 0, 0); // r6 = r1, the context
    asm.push(LOAD_HALF, 0, 0, 12);
    asm.jump(JUMP_UNLESS_EQUAL, 0, 0x0800, Label::Ipv6);
    transport(&mut asm, 14 + 9);
    asm.push(LOAD_HALF, 0, 0, 14 + 20 + 2);
    asm.push(MOVE_32, 0x08, 0, 0); // r8 = port
    destination(&mut asm, 14 + 16, IPV4);
    asm.label(Label::Ipv6);
    asm.jump(JUMP_UNLESS_EQUAL, 0, 0x86dd, Label::End);
    transport(&mut asm, 14 + 6);
    asm.push(LOAD_HALF, 0, 0, 14 + 40 + 2);
    asm.push(MOVE_32, 0x08, 0, 0);
    destination(&mut asm, 14 + 24, IPV6);
    asm.label(Label::Ports);
    for port in PORTS {
        asm.jump(JUMP_IF_EQUAL, 8, *port, Label::Mark);
    }
    asm.jump(JUMP, 0, 0, Label::End);
    asm.label(Label::Mark);
    asm.push(LOAD_FIELD, 0x60, MARK, 0);
    asm.push(AND, 0, 0, !bits);
    asm.push(OR, 0, 0, mark & bits);
    asm.push(STORE_FIELD, 0x06, MARK, 0);
    asm.label(Label::End);
    asm.push(SET, 0, 0, u32::MAX); // TCX_NEXT
    asm.push(EXIT, 0, 0, 0);
    asm.finish()
}

/// Ends the program unless the protocol at `offset` is TCP or UDP.
fn transport(asm: &mut Assembler, offset: u32) {
    asm.push(LOAD_BYTE, 0, 0, offset);
    // Over the next instruction when it is TCP.
    asm.push(JUMP_IF_EQUAL, 0, 1, 6);
    asm.jump(JUMP_UNLESS_EQUAL, 0, 17, Label::End);
}

/// Goes to the ports when the address at `offset` is in the list, else ends the program.
fn destination(asm: &mut Assembler, offset: u32, list: &[(u32, u32)]) {
    asm.push(LOAD_WORD, 0, 0, offset);
    asm.push(MOVE_32, 0x07, 0, 0);
    for (network, mask) in list {
        asm.push(MOVE_32, 0x70, 0, 0);
        asm.push(AND, 0, 0, *mask);
        asm.jump(JUMP_IF_EQUAL, 0, *network, Label::Ports);
    }
    asm.jump(JUMP, 0, 0, Label::End);
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The beginning of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: i32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    _padding: u32,
    expected_revision: u64,
}

fn load(instructions: &[Instruction]) -> Result<OwnedFd> {
    let license = c"GPL";
    let mut log = vec![0_u8; 65_536];
    let mut attributes = ProgramLoad {
        kind: SCHED_CLS,
        instruction_count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len())?,
        log: log.as_mut_ptr().expose_provenance() as u64,
        ..ProgramLoad::default()
    };
    attributes.name[..10].copy_from_slice(b"lab_marker");
    bpf(BPF_PROG_LOAD, &attributes).with_context(|| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        format!(
            "load the lab's marker: {}",
            String::from_utf8_lossy(&log[..end])
        )
    })
}

/// A bpf() call that returns a descriptor.
fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the attributes are a structure of that size, and what they point to outlives the
    // call: the callers own the buffers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let descriptor = i32::try_from(result)?;
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: both commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
