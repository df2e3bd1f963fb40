//! Network namespaces: made by `ip netns`, entered with setns.
//!
//! `ip netns exec` is not used: it mounts a fresh /sys, which hides the bpffs and its pins.

use std::{
    ffi::OsStr,
    fmt::Display,
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace of the lab. Dropping it deletes its name; the kernel frees it once the
/// last process, socket and TUN device in it is gone.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: Arc<File>,
}

impl Namespace {
    /// Makes a namespace with its loopback up. IPv6 duplicate address detection is off in it, so
    /// that addresses are usable at once.
    pub fn create(name: &str) -> Result<Self> {
        execute(Command::new("ip").args(["netns", "add", name]))?;
        let path = Self::path_of(name);
        let handle = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let namespace = Self {
            name: name.to_owned(),
            handle: Arc::new(handle),
        };
        namespace.sysctl("net.ipv6.conf.default.accept_dad", 0)?;
        namespace.sysctl("net.ipv6.conf.default.dad_transmits", 0)?;
        namespace.sysctl("net.ipv6.conf.default.accept_ra", 0)?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Self::path_of(&self.name)
    }

    fn path_of(name: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(name)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it opens belong to
    /// the namespace for ever, wherever they are used later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter namespace {}", self.name))?;
                work()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will run inside the namespace. It is killed when the thread that spawned
    /// it ends: a lab must not leave programs behind, even when it is killed itself.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let handle = Arc::clone(&self.handle);
        let mut command = Command::new(program);
        let enter = move || {
            setns(&*handle, CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: setns and prctl are plain system calls; the closure allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program inside and returns its standard output. Fails with what it said.
    pub fn output<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Result<String> {
        execute(self.command(program).args(arguments))
    }

    /// Carries out `ip` commands, one per line, in one process.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Carries out an nftables script in one transaction.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], script)
    }

    /// Runs a program inside with `input` as its standard input.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(input.as_bytes())
                .with_context(|| format!("write to {program}"))?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{program} in {} failed: {}\nits input was:\n{input}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Writes a sysctl under `net`, named with dots; interface names must hold none.
    pub fn sysctl(&self, name: &str, value: impl Display) -> Result<()> {
        let path = sysctl_path(name);
        let value = value.to_string();
        self.run(|| fs::write(&path, value).with_context(|| format!("write {}", path.display())))
    }

    /// Reads a file of /proc/sys/net as this namespace sees it.
    pub fn read_sysctl(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name);
        self.run(|| {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(text.trim().to_owned())
        })
    }

    /// The index of an interface in this namespace.
    pub fn interface_index(&self, interface: &str) -> Result<u32> {
        self.run(|| {
            nix::net::if_::if_nametoindex(interface)
                .map_err(|error| anyhow!("interface {interface}: {error}"))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = execute(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!(
                "the lab could not delete namespace {}: {error:#}",
                self.name
            );
        }
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

/// Runs a command to its end and returns its standard output.
pub fn execute(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
