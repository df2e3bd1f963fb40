//! A guest: a kernel, its modules, the lab and `steer` in one initial file system, and the
//! emulator that boots it.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{find, program, workspace};

/// The first process.
const INIT: &str = include_str!("init.sh");

/// The programs that the lab and steer start.
const PROGRAMS: &[&str] = &["ip", "tc", "nft", "bpftool", "ethtool", "kmod"];

/// The modules that they may need; what a module depends on comes along. A kernel that has one
/// built in, or under another name, does not mind.
const MODULES: &[&str] = &[
    "veth",
    "tun",
    "8021q",
    "bridge",
    "bonding",
    "vxlan",
    "ip_gre",
    "vrf",
    "ppp_generic",
    "pppox",
    "pppoe",
    "ppp_async",
    "nfnetlink",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_objref",
    "nft_quota",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_socket",
    "nf_log_syslog",
    "sch_ingress",
    "sch_fq_codel",
    "cls_bpf",
    "cls_u32",
    "act_bpf",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
];

/// How long a guest may take: a guard against hanging, many times what it needs.
const PATIENCE: Duration = Duration::from_mins(15);

/// What one check of the guest found.
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub detail: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok" } else { "FAILED" };
        write!(f, "{}: {verdict}: {}", self.name, self.detail)
    }
}

/// What a guest found.
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether every check was made and passed.
    pub fn passed(&self) -> bool {
        let ended = self
            .checks
            .last()
            .is_some_and(|check| check.name == "ended" && check.detail == "0");
        ended && self.checks.iter().all(|check| check.passed)
    }

    fn parse(text: &str) -> Self {
        let checks = text.lines().filter_map(|line| {
            let mut fields = line.trim().splitn(3, '\t');
            let (name, verdict, detail) = (fields.next()?, fields.next()?, fields.next()?);
            Some(Check {
                name: name.to_owned(),
                passed: verdict == "ok",
                detail: detail.replace("\\n", "\n"),
            })
        });
        Self {
            checks: checks.collect(),
        }
    }
}

/// A guest that can be booted.
pub struct Guest {
    directory: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Packs the guest's files for a kernel that is unpacked in `directory/root`.
pub fn prepare(directory: &Path, release: &str) -> Result<Guest> {
    let (root, files) = (directory.join("root"), directory.join("guest"));
    if files.exists() {
        fs::remove_dir_all(&files)?;
    }
    skeleton(&files)?;
    for name in PROGRAMS {
        let path = find(name).with_context(|| format!("{name} is not installed"))?;
        copy_program(&path, &files.join("usr/bin").join(name), &files)?;
    }
    symlink("kmod", files.join("usr/bin/modprobe"))?;
    copy_dialler(&files)?;
    let busybox = find("busybox").context("busybox is not installed")?;
    copy_program(&busybox, &files.join("usr/bin/busybox"), &files)?;
    for name in ["steer", "steer-guest"] {
        let stripped = directory.join(name);
        // Debug information is most of a binary, and the guest's memory holds it.
        program("strip")
            .args(["--strip-debug", "-o"])
            .arg(&stripped)
            .arg(workspace().join("target/debug").join(name))
            .run()?;
        copy_program(&stripped, &files.join("usr/bin").join(name), &files)?;
    }
    copy_modules(&root, release, &files)?;

    let initrd = directory.join("initrd");
    program("sh")
        .args([
            "-c",
            "find . -print0 | cpio --quiet --null --create --format=newc --owner=0:0 > \"$1\"",
            "sh",
        ])
        .arg(&initrd)
        .in_directory(&files)
        .run()?;
    fs::remove_dir_all(&files)?;
    // Newer packages have the image beside the modules.
    let kernel = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        root.join("lib/modules").join(release).join("vmlinuz"),
    ];
    let kernel = kernel.into_iter().find(|path| path.exists());
    Ok(Guest {
        directory: directory.to_owned(),
        kernel: kernel.context("the package has no kernel image")?,
        initrd,
    })
}

/// Directories, and the first process.
fn skeleton(files: &Path) -> Result<()> {
    for directory in [
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "etc",
        "var",
    ] {
        fs::create_dir_all(files.join(directory))?;
    }
    for (name, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("usr/sbin", "bin"),
        ("var/run", "../run"),
    ] {
        symlink(target, files.join(name))?;
    }
    let init = files.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Where programs of the lab are unpacked that this machine does not have.
fn unpacked() -> PathBuf {
    workspace().join("target/tools/lab")
}

/// Copies a program, and the libraries that it is linked with to the places where it looks.
fn copy_program(from: &Path, to: &Path, files: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    let folders = ["usr/lib", "lib"].map(|it| unpacked().join(it).join("x86_64-linux-gnu"));
    let folders = folders.map(|it| it.display().to_string()).join(":");
    // ldd fails for what needs no library.
    let ldd = program("ldd").env("LD_LIBRARY_PATH", folders).arg(from);
    let Ok(libraries) = ldd.quiet_output() else {
        return Ok(());
    };
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for library in paths {
        let place = Path::new(library);
        let place = place
            .strip_prefix(unpacked())
            .or_else(|_| place.strip_prefix("/"));
        let to = files.join(place?);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        if !to.exists() {
            fs::copy(library, &to).with_context(|| format!("copy {library}"))?;
        }
    }
    Ok(())
}

/// Copies what dials and is dialled, unpacked or of this machine, with the plugin by which both reach the
/// kernel's PPPoE.
fn copy_dialler(files: &Path) -> Result<()> {
    let find = |place: &str| {
        let places = [unpacked().join(place), Path::new("/").join(place)];
        let found = places.into_iter().find(|path| path.exists());
        found.with_context(|| format!("there is no {place}; `cargo xtask setup` brings it"))
    };
    for name in ["pppd", "pppoe-server", "pppoe"] {
        let path = find(&format!("usr/sbin/{name}"))?;
        copy_program(&path, &files.join("usr/bin").join(name), files)?;
    }
    // pppd starts its mover through a shell.
    symlink("busybox", files.join("usr/bin/sh"))?;
    // Below a folder for the version, and only one of it is there.
    let versions = find("usr/lib/pppd")?;
    let version = fs::read_dir(&versions)?
        .next()
        .with_context(|| format!("{} is empty", versions.display()))??;
    let plugins = files.join("etc/ppp/plugins");
    fs::create_dir_all(&plugins)?;
    let plugin = version.path().join("pppoe.so");
    fs::copy(&plugin, plugins.join("rp-pppoe.so"))
        .with_context(|| format!("copy {}", plugin.display()))?;
    Ok(())
}

/// Copies the modules, and makes the list by which the kernel's requests find them.
fn copy_modules(root: &Path, release: &str, files: &Path) -> Result<()> {
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib"))?;
    }
    let below = Path::new("lib/modules").join(release);
    let depmod = |tree: &Path| {
        program("depmod")
            .arg("--basedir")
            .arg(tree)
            .arg(release)
            .quiet_output()
            .map(drop)
    };
    depmod(root)?;
    let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
    for module in MODULES {
        let order = program("modprobe")
            .arg("--dirname")
            .arg(root)
            .args(["--set-version", release, "--show-depends", module])
            .quiet_output();
        // Not every kernel has every one.
        for line in order.unwrap_or_default().lines() {
            let path = line
                .strip_prefix("insmod ")
                .and_then(|rest| rest.split_whitespace().next());
            wanted.extend(path.map(PathBuf::from));
        }
    }
    for path in &wanted {
        let inside = path.strip_prefix(root).unwrap_or(path);
        let to = files.join(inside);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(path, &to).with_context(|| format!("copy {}", path.display()))?;
    }
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        let from = root.join(&below).join(list);
        if from.exists() {
            fs::create_dir_all(files.join(&below))?;
            fs::copy(from, files.join(&below).join(list))?;
        }
    }
    depmod(files)
}

impl Guest {
    /// Boots it, and waits for its report.
    pub fn boot(&self) -> Result<Report> {
        let (console, report) = (
            self.directory.join("console.log"),
            self.directory.join("report"),
        );
        let serial = |path: &Path| format!("file:{}", path.display());
        // One thread: with more the emulation of some kernels is not reliable. /dev/kvm is not
        // looked at: where the machine is a guest itself it may be there and hang.
        let mut emulator = Command::new("qemu-system-x86_64");
        emulator
            .args(["-accel", "tcg,thread=single", "-cpu", "max", "-m", "1024"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-nic", "none"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args(["-append", "console=ttyS0 loglevel=5 panic=-1"])
            .args(["-serial", &serial(&console)])
            .args(["-serial", &serial(&report)])
            .stdin(Stdio::null());
        let mut child = emulator.spawn().context("start qemu-system-x86_64")?;
        let deadline = Instant::now() + PATIENCE;
        let mut hung = false;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                hung = true;
                child.kill()?;
                child.wait()?;
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        let mut report = Report::parse(&read(&report)?);
        if report.checks.is_empty() {
            bail!(
                "the kernel did not boot; its last words are in {}",
                console.display()
            );
        }
        if hung
            || report
                .checks
                .last()
                .is_none_or(|check| check.name != "ended")
        {
            report.checks.push(Check {
                name: "end".into(),
                passed: false,
                detail: format!(
                    "the guest {}; its console is in {}",
                    if hung { "hung" } else { "died" },
                    console.display()
                ),
            });
        }
        Ok(report)
    }
}

fn read(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
