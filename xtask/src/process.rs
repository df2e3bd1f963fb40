//! Starting other programs: cargo, and whatever needs root.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Progress goes to standard error: standard output belongs to what is run (`--json`).
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// The root of the workspace, where every command runs.
pub fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Where a command is found along `PATH` or, as for root, in the directories of system tools.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A program to start, and how to report it when it fails.
pub struct Step(Command);

/// cargo, in the workspace.
pub fn cargo<const N: usize>(args: [&str; N]) -> Step {
    let mut cargo = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Ours is that of xtask: crates whose build scripts look at it would be built anew.
    cargo.0.env_remove("CARGO_MANIFEST_DIR");
    cargo.args(args)
}

/// Any program, in the workspace.
pub fn program(name: impl AsRef<OsStr>) -> Step {
    let mut command = Command::new(name);
    command.current_dir(workspace());
    Step(command)
}

impl Step {
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Somewhere else than in the workspace's root.
    pub fn in_directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.0.current_dir(directory);
        self
    }

    /// Runs it to its end; anything but success is an error that names the whole command.
    pub fn run(mut self) -> Result<()> {
        let status = self.0.status().with_context(|| self.cannot_start())?;
        if !status.success() {
            bail!("`{}` failed ({status})", self.text());
        }
        Ok(())
    }

    /// Whether it succeeds; what it writes is not shown.
    pub fn succeeds(mut self) -> bool {
        let quiet = self.0.stdout(Stdio::null()).stderr(Stdio::null());
        quiet
            .stdin(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// What it writes to standard output.
    pub fn output(mut self) -> Result<String> {
        self.0.stderr(Stdio::inherit());
        self.quiet_output()
    }

    /// What it writes to standard output; its complaints are not shown.
    pub fn quiet_output(mut self) -> Result<String> {
        self.0.stdin(Stdio::null());
        let output = self.0.output().with_context(|| self.cannot_start())?;
        if !output.status.success() {
            bail!("`{}` failed ({})", self.text(), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Replaces this process, so that signals and exit code need no passing on. Returns only when
    /// the program cannot be started.
    pub fn become_it(mut self) -> Result<()> {
        let error = self.0.exec();
        Err(error).with_context(|| self.cannot_start())
    }

    fn cannot_start(&self) -> String {
        format!("cannot start `{}`", self.text())
    }

    fn text(&self) -> String {
        let mut text = self.0.get_program().to_string_lossy().into_owned();
        for arg in self.0.get_args() {
            let _ = write!(text, " {}", arg.to_string_lossy());
        }
        text
    }
}

/// How this process gets root's rights.
pub enum Root {
    /// It has them.
    Already,
    /// Through this sudo.
    Sudo(PathBuf),
}

impl Root {
    /// Finds a way to root, or says that there is none.
    pub fn find() -> Result<Self> {
        let uid = std::fs::metadata("/proc/self")
            .context("cannot read /proc/self")?
            .uid();
        if uid == 0 {
            return Ok(Self::Already);
        }
        match find("sudo") {
            Some(sudo) => Ok(Self::Sudo(sudo)),
            None => bail!(
                "this needs root (network namespaces, kernel programs), the user is not root, and \
                 sudo is not installed: run the command as root"
            ),
        }
    }

    /// A program that runs as root.
    pub fn program(&self, name: &str) -> Step {
        match self {
            Self::Already => program(name),
            Self::Sudo(sudo) => program(sudo).arg(name),
        }
    }

    /// Makes cargo start what it built as root; cargo itself stays the user's.
    pub fn cargo_runner(&self, step: Step) -> Step {
        let Self::Sudo(sudo) = self else { return step };
        let mut runner = OsString::from(sudo);
        // sudo replaces PATH even with -E.
        runner.push(" -E env PATH=");
        runner.push(env::var_os("PATH").unwrap_or_default());
        let target = env::consts::ARCH.to_uppercase();
        let libc = if cfg!(target_env = "musl") {
            "MUSL"
        } else {
            "GNU"
        };
        step.env(
            &format!("CARGO_TARGET_{target}_UNKNOWN_LINUX_{libc}_RUNNER"),
            runner,
        )
    }
}
