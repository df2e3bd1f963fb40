//! Installs what building and testing need and this machine lacks, and says what and why.
//!
//! Nothing is downloaded, and nothing is asked, when all of it is there.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::process::{Root, cargo, find, program, say, workspace};

/// The linker of the kernel programs; the version that goes with the toolchain's LLVM.
const BPF_LINKER: &str = "0.10.3";
const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.1";

/// A command that is needed, and the package that brings it, by its name on Debian.
pub struct Tool {
    pub command: &'static str,
    pub package: &'static str,
    pub why: &'static str,
}

/// Daemons and tools of routers that tests run: where they are in a file system, and their
/// package. They are unpacked, not installed: nothing starts on this machine, now or when it boots.
const DAEMONS: &[(&str, &str, &str)] = &[
    (
        "usr/lib/frr/pbrd",
        "frr",
        "a test has FRR route what steer grants",
    ),
    (
        "usr/sbin/keepalived",
        "keepalived",
        "a test has a standby router take over",
    ),
    ("usr/bin/vtysh", "frr", "it judges the exported routes"),
    ("usr/sbin/bird", "bird2", "it judges the exported routes"),
    ("usr/sbin/ipset", "ipset", "it loads the exported sets"),
    (
        "usr/sbin/unbound-checkconf",
        "unbound",
        "it judges the exported forwarders",
    ),
    (
        "lib/systemd/systemd-resolved",
        "systemd-resolved",
        "a test has it beside steer as the router's resolver",
    ),
    ("usr/bin/duk", "duktape", "it runs the exported PAC file"),
    (
        "usr/sbin/pppd",
        "ppp",
        "a router of the lab dials its provider",
    ),
    (
        "usr/sbin/pppoe-server",
        "pppoe",
        "a provider of the lab is dialled",
    ),
    (
        "usr/sbin/dhcp6s",
        "wide-dhcpv6-server",
        "a provider of the lab delegates IPv6 prefixes",
    ),
    (
        "usr/sbin/dhcpcd",
        "dhcpcd-base",
        "a router of the lab asks for IPv6 prefixes",
    ),
    (
        "usr/bin/minisign",
        "minisign",
        "it signs the lists of a mirror",
    ),
];

const TOOLS: &[Tool] = &[
    Tool {
        command: "nft",
        package: "nftables",
        why: "the router of the lab grants and translates with nftables",
    },
    Tool {
        command: "ip",
        package: "iproute2",
        why: "the lab builds its namespaces, links and routes with it",
    },
    Tool {
        command: "ethtool",
        package: "ethtool",
        why: "the lab sets the offloads of its links",
    },
    Tool {
        command: "bpftool",
        package: "bpftool",
        why: "tests look for programs and maps that were left behind",
    },
    Tool {
        command: "dnsmasq",
        package: "dnsmasq-base",
        why: "resolvers of the lab; without a service",
    },
    Tool {
        command: "systemd-analyze",
        package: "systemd",
        why: "a test judges how little the service's unit exposes",
    },
];

/// Everything: to build, and to run the lab as root.
pub fn install_missing() -> Result<Root> {
    let root = Root::find()?;
    install_for_building()?;
    install(&root, TOOLS)?;
    unpack_daemons(&root)?;
    mount_bpffs(&root)?;
    Ok(root)
}

/// What `cargo build` needs.
pub fn install_for_building() -> Result<()> {
    install_rust_src()?;
    install_bpf_linker()
}

/// A component of the toolchain whose command `probe` shows it is there.
pub fn install_component(component: &str, probe: &[&str], why: &str) -> Result<()> {
    if cargo([]).args(probe).succeeds() {
        return Ok(());
    }
    add_component(component, why)
}

/// The sources of `core`: the kernel programs are built for a target that has no ready-made one.
fn install_rust_src() -> Result<()> {
    let sysroot = program("rustc").args(["--print", "sysroot"]).output()?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if source.is_dir() {
        return Ok(());
    }
    add_component(
        "rust-src",
        "the kernel programs are built with their own `core`",
    )
}

fn add_component(component: &str, why: &str) -> Result<()> {
    say(&format!("installing the toolchain's {component}: {why}"));
    if find("rustup").is_none() {
        bail!(
            "rustup is not installed, so {component} of this toolchain has to come from where the \
             toolchain came from (Debian: the package {component})"
        );
    }
    program("rustup")
        .args(["component", "add", component])
        .run()
}

fn install_bpf_linker() -> Result<()> {
    install_tool("bpf-linker", BPF_LINKER, "it links the kernel programs").context(
        "bpf-linker could not be installed; building it needs a C compiler and the crate registry",
    )
}

/// What makes packages, for `dist` only.
pub fn install_packagers() -> Result<()> {
    install_tool("cargo-deb", CARGO_DEB, "it makes the .deb")?;
    install_tool(
        "cargo-generate-rpm",
        CARGO_GENERATE_RPM,
        "it makes the .rpm",
    )
}

/// A program from the crate registry, in `target/tools`.
fn install_tool(name: &str, version: &str, why: &str) -> Result<()> {
    let tools = workspace().join("target/tools");
    let tool = tools.join("bin").join(name);
    let found = tool
        .is_file()
        .then(|| program(&tool).arg("--version").output());
    if let Some(Ok(found)) = found
        && found.trim().ends_with(version)
    {
        return Ok(());
    }
    say(&format!(
        "installing {name} {version} into target/tools: {why} (this takes a minute or two, once)"
    ));
    cargo(["install", name, "--version", version, "--locked", "--force"])
        .arg("--root")
        .arg(&tools)
        .run()
}

/// Those of the tools that are not there.
pub fn install(root: &Root, tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| find(tool.command).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for Tool {
        command,
        package,
        why,
    } in &missing
    {
        say(&format!("missing: {command} (package {package}): {why}"));
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if find("apt-get").is_none() {
        bail!(
            "this is not a distribution with apt-get: install {} with its package manager, then \
             try again",
            packages.join(", ")
        );
    }
    say(&format!("installing {} with apt-get", packages.join(", ")));
    let install = || {
        root.program("env")
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install"])
            .args(["--yes", "--no-install-recommends"])
            .args(&packages)
    };
    // A fresh machine has no package lists, an old one has stale ones.
    if packages.iter().all(|package| has_candidate(package)) && install().run().is_ok() {
        return Ok(());
    }
    root.program("apt-get").arg("update").run()?;
    install().run()
}

/// Unpacks what the lab runs below `target/tools/lab`, with the libraries that this machine lacks.
fn unpack_daemons(root: &Root) -> Result<()> {
    let lab = workspace().join("target/tools/lab");
    let here = |place: &str| lab.join(place).is_file() || Path::new("/").join(place).is_file();
    let missing: Vec<_> = DAEMONS.iter().filter(|(place, ..)| !here(place)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (_, package, why) in &missing {
        say(&format!(
            "unpacking {package} into target/tools/lab (not installed, nothing starts): {why}"
        ));
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    if find("apt-get").is_none() {
        bail!(
            "this is not a distribution with apt-get: install {} with its package manager, then \
             try again",
            packages.join(", ")
        );
    }
    let archives = workspace().join("target/tools/archives");
    fs::create_dir_all(archives.join("partial"))
        .with_context(|| format!("cannot make {}", archives.display()))?;
    let download = || {
        root.program("apt-get")
            .args(["--yes", "--no-install-recommends", "--download-only"])
            .arg("--option")
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .arg("install")
            .args(&packages)
    };
    if !(packages.iter().all(|package| has_candidate(package)) && download().run().is_ok()) {
        root.program("apt-get").arg("update").run()?;
        download().run()?;
    }
    let failed = || format!("cannot read {}", archives.display());
    for entry in fs::read_dir(&archives).with_context(failed)? {
        let file = entry.with_context(failed)?.path();
        if file.extension().is_some_and(|it| it == "deb") {
            program("dpkg-deb")
                .arg("--extract")
                .arg(&file)
                .arg(&lab)
                .run()?;
        }
    }
    // Root's, where root had to be asked for.
    root.program("rm").args(["-rf"]).arg(&archives).run()
}

/// Whether the package lists know the package.
fn has_candidate(package: &str) -> bool {
    program("apt-cache")
        .args(["show", "--no-all-versions", package])
        .succeeds()
}

/// steer pins its maps and programs there; systemd mounts it, a container or a small VM may not.
fn mount_bpffs(root: &Root) -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if mounted {
        return Ok(());
    }
    say(&format!(
        "mounting the BPF file system on {BPFFS}: steer pins its programs there"
    ));
    root.program("mount")
        .args(["-t", "bpf", "bpf", BPFFS])
        .run()
        .context("the BPF file system cannot be mounted; a container needs a privileged one for it")
}
