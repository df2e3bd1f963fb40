//! What the kernel and the tools can do.

use super::{Fix, Patient, Verdict};
use crate::config::Mode;

/// Bits of `CapEff` (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

const AS_ROOT: &str = "run it as root, or as the packaged unit does";

fn may_load(patient: &Patient) -> bool {
    let has = |bits| patient.capabilities & bits == bits;
    has(SYS_ADMIN) || has(BPF | PERFMON | NET_ADMIN)
}

pub(super) fn privileges(patient: &Patient) -> Vec<Verdict> {
    let has = |bit| patient.capabilities & bit != 0;
    let admin = has(SYS_ADMIN);
    let missing: Vec<&str> = [
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        // To compare the nftables table in a network namespace of its own.
        ("CAP_SYS_ADMIN", admin),
        ("CAP_BPF", has(BPF) || admin),
        ("CAP_PERFMON", has(PERFMON) || admin),
    ]
    .into_iter()
    .filter_map(|(name, there)| (!there).then_some(name))
    .collect();
    vec![if missing.is_empty() {
        Verdict::ok("every capability that steer needs")
    } else {
        Verdict::wrong(format!("missing here: {}", missing.join(", ")))
    }]
}

pub(super) fn programs(patient: &Patient) -> Vec<Verdict> {
    let release = &patient.release;
    vec![match &patient.trial {
        Ok(trial) => {
            let verified = trial
                .verified_instructions
                .map_or_else(String::new, |count| {
                    format!(", {count} instructions verified")
                });
            Verdict::ok(format!("Linux {release} loads {}{verified}", trial.program))
        }
        Err(error) => {
            let verdict = Verdict::wrong(format!("Linux {release}: {error}"));
            if may_load(patient) {
                verdict
            } else {
                verdict.remedy(AS_ROOT)
            }
        }
    }]
}

pub(super) fn jit(patient: &Patient) -> Vec<Verdict> {
    // Without a program there is nothing to see; `programs` says so.
    let trial = patient.trial.iter();
    trial
        .map(|trial| match trial.machine_code {
            0 => Verdict::wrong(format!("{} is interpreted", trial.program)),
            bytes => Verdict::ok(format!(
                "{} is compiled to {bytes} bytes of machine code",
                trial.program
            )),
        })
        .collect()
}

pub(super) fn hook(patient: &Patient) -> Vec<Verdict> {
    // Without the privilege the kernel does not say.
    if patient.config.mode == Mode::Redirect || patient.capabilities & NET_ADMIN == 0 {
        return Vec::new();
    }
    // All ports are on one kernel.
    let port = patient.ports.first();
    port.map(|port| match port.tcx {
        Some(_) => Verdict::ok("TC programs attach by TCX"),
        None => Verdict::note("this kernel has no TCX; the program attaches as a clsact filter"),
    })
    .into_iter()
    .collect()
}

pub(super) fn btf(patient: &Patient) -> Vec<Verdict> {
    vec![if patient.kernel_btf {
        Verdict::ok("the kernel has type information (BTF)")
    } else {
        Verdict::note("the kernel has no type information (BTF)")
    }]
}

pub(super) fn bpffs(patient: &Patient) -> Vec<Verdict> {
    let dir = patient.bpffs.pin_dir.display();
    if patient.bpffs.mounted {
        return vec![Verdict::ok(format!("{dir} is on a BPF file system"))];
    }
    let found = format!("{dir} is not on a BPF file system");
    vec![match Fix::mount_for(&patient.bpffs.pin_dir) {
        Some(fix) => Verdict::wrong(found).fix(fix),
        None => Verdict::wrong(found).remedy(format!("mkdir -p {dir} && mount -t bpf bpf {dir}")),
    }]
}

pub(super) fn nftables(patient: &Patient) -> Vec<Verdict> {
    if patient.config.mode == Mode::Redirect {
        return Vec::new();
    }
    vec![match (&patient.nft, &patient.table) {
        (Err(error), _) => Verdict::wrong(error),
        (Ok(version), Some(Err(error))) => {
            Verdict::wrong(format!("{version} does not take steer's table: {error}"))
        }
        (Ok(version), Some(Ok(()))) => Verdict::ok(format!("{version} takes steer's table")),
        (Ok(version), None) => Verdict::ok(format!("{version}; what it would load is not known")),
    }]
}
