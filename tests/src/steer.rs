//! Runs the real `steer` binary in the lab's router, with a configuration that fits the lab.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::lab::{Lab, LabOptions, LanKind};

/// How steer takes packets to the breakout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Marks, nftables and policy routing.
    #[default]
    Mark,
    /// XDP.
    Redirect,
}

impl Mode {
    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Redirect => "redirect",
        }
    }

    /// The office that the mode is made for. Redirected packets pass neither a translation nor a firewall.
    pub fn office(self) -> LabOptions {
        match self {
            Self::Mark => LabOptions::default(),
            Self::Redirect => LabOptions {
                lan: LanKind::Public,
                firewall: false,
                ..LabOptions::default()
            },
        }
    }
}

/// What a lab's configuration file says beyond the office's interfaces and addresses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mark or redirect.
    pub mode: Mode,
    /// Whether a written configuration or feed is reloaded without a word.
    pub reload_on_change: bool,
    /// How long steer watches flows before it steers new ones, where conntrack was not in use.
    pub watch_period: Duration,
    /// More lines for the `[[lan]]` table, such as `exclude_sources`.
    pub lan: String,
    /// The lines of `[health]`. The default switches probes off: a test that is not about them
    /// wants no packets but its own.
    pub health: String,
    /// More lines for the end of the file, such as `[select]` or `[feed]`.
    pub more: String,
    /// What starts `steer run`, such as `setpriv` with its options; empty: nothing.
    pub under: Vec<String>,
    /// More arguments of `steer run`.
    pub arguments: Vec<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        // Long enough for every flow of a lab to be heard of: they speak ten times a second.
        let watch_period = Duration::from_secs(3);
        Self {
            mode: Mode::Mark,
            reload_on_change: false,
            watch_period,
            lan: String::new(),
            health: NO_PROBES.into(),
            more: String::new(),
            under: Vec::new(),
            arguments: vec![],
        }
    }
}

const NO_PROBES: &str = "probes = \"off\"";

impl Settings {
    /// Whether breakouts are probed, so that they are up only once a target has answered.
    fn probes(&self) -> bool {
        !self.health.contains(NO_PROBES)
    }
}

/// The longest that a start may take beyond the watch period. Only a guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

/// A `steer` that runs in the router. Dropping it kills it and detaches.
#[derive(Debug)]
pub struct Steer<'lab> {
    lab: &'lab Lab,
    child: Option<Child>,
    config: PathBuf,
    arguments: Vec<&'static str>,
    log: PathBuf,
    under: Vec<String>,
    /// What runs: this build's `steer`, unless a test changes versions.
    binary: PathBuf,
    cut: Option<String>,
    detached: bool,
}

impl<'lab> Steer<'lab> {
    /// Writes the configuration, starts `steer run` and waits until it is steering.
    pub fn start(lab: &'lab Lab, settings: &Settings) -> Result<Self> {
        let mut steer = Self::prepare(lab, settings)?;
        steer.run()?;
        steer.wait_until_steering(settings.watch_period + PATIENCE)?;
        if settings.probes() {
            steer.wait_for("every breakout is up", |status| {
                let breakouts = status["breakouts"].as_array();
                breakouts.is_some_and(|all| all.iter().all(|it| it["state"] == "up"))
            })?;
        }
        Ok(steer)
    }

    /// Writes the configuration; nothing runs yet.
    pub fn prepare(lab: &'lab Lab, settings: &Settings) -> Result<Self> {
        let config = write_config(lab, settings)?;
        Ok(Self {
            lab,
            child: None,
            config,
            arguments: settings.arguments.clone(),
            log: lab.directory().join("steer.log"),
            under: settings.under.clone(),
            binary: binary()?.to_owned(),
            cut: None,
            detached: false,
        })
    }

    /// The same with a configuration file as an operator would write it: what is added is only where
    /// this lab's steer keeps its things, and a short watch period.
    pub fn start_with(lab: &'lab Lab, text: &str) -> Result<Self> {
        let config = lab.directory().join("steer.toml");
        let places = Places {
            pins: lab.pin_directory(),
            directory: lab.directory().to_owned(),
        };
        fs::write(&config, places.fill_in(text))?;
        let mut steer = Self {
            lab,
            child: None,
            config,
            arguments: vec![],
            log: lab.directory().join("steer.log"),
            under: vec![],
            binary: binary()?.to_owned(),
            cut: None,
            detached: false,
        };
        steer.run()?;
        steer.wait_until_steering(PATIENCE)?;
        Ok(steer)
    }

    /// Starts the controller without waiting. It must not be running.
    pub fn run(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "steer is already running");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = match self.under.split_first() {
            None => self.lab.router.command(&self.binary),
            Some((program, arguments)) => {
                let mut command = self.lab.router.command(program);
                command.args(arguments).arg(&self.binary);
                command
            }
        };
        command.arg("run").arg("--config").arg(&self.config);
        command
            .args(&self.arguments)
            .envs(self.cut.iter().map(|cut| ("STEER_CUT", cut)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().context("start steer")?);
        Ok(())
    }

    /// Waits until the controller says that it steers.
    pub fn wait_until_steering(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let said = match self.status() {
                Ok(status) if status["state"] == "steering" => return Ok(()),
                Ok(status) => format!("state {}", status["state"]),
                Err(error) => format!("{error:#}"),
            };
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("steer ended with {status}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!(
                    "steer is not steering after {patience:?} ({said}):\n{}",
                    self.log()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the status is as wanted, and returns it.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "not within {PATIENCE:?}: {what}: {status:#}\n{}",
                    self.log()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// `steer status --json`. It exits with 1 when it has found something wrong, and says what.
    pub fn status(&self) -> Result<Value> {
        let output = self.command(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            format!("steer status --json ended with {}: {said}", output.status)
        })
    }

    /// Runs another `steer` command with this router's configuration, to its end.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        self.start_command(arguments)
            .output()
            .with_context(|| format!("run steer {}", arguments.join(" ")))
    }

    fn start_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.router.command(&self.binary);
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .envs(self.cut.iter().map(|cut| ("STEER_CUT", cut)))
            .stdin(Stdio::null());
        command
    }

    /// From now on controller and commands run this binary.
    pub fn use_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// From now on the controller and commands are cut, as by a crash, at the `point`-th place of an
    /// operation (start, reload, adapt, detach) where that is possible; `None`: nowhere.
    pub fn cut_at(&mut self, place: Option<(&str, u32)>) {
        self.cut = place.map(|(operation, point)| format!("{operation} {point}"));
    }

    /// Runs the controller until it is cut (true), or steers (false).
    pub fn run_until_cut(&mut self) -> Result<bool> {
        self.run()?;
        match self.wait_until_steering(PATIENCE) {
            Ok(()) => Ok(false),
            // A controller that ended was waited for; anything but the cut is a failure.
            Err(error) if self.child.is_none() => match format!("{error:#}") {
                said if said.contains("SIGKILL") => Ok(true),
                said => bail!(said),
            },
            Err(error) => Err(error),
        }
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The controller's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Has the controller read its files again, as `systemctl reload` would (SIGHUP).
    pub fn hang_up(&self) -> Result<()> {
        let pid = self.pid().context("steer is not running")?;
        Ok(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGHUP)?)
    }

    /// Kills the controller as a crash would; what it set up stays.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks the controller to end (SIGTERM) and waits for it.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            let status = child.wait()?;
            ensure!(
                status.success(),
                "steer ended with {status}:\n{}",
                self.log()
            );
        }
        Ok(())
    }

    /// `steer detach` at once: takes everything back that steer put into the router, and cuts
    /// flows that still use a breakout.
    pub fn detach(mut self) -> Result<()> {
        let output = self.command(&["detach", "--drain", "0"])?;
        self.detached = output.status.success();
        ensure!(
            output.status.success(),
            "steer detach failed with {}: {}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        // A detach that went well stopped the controller, too.
        self.wait_until_ended()?;
        Ok(())
    }

    /// Waits for a controller that ends by itself, as after `steer detach`. `None`: none ran.
    pub fn wait_until_ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("steer did not end:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The kernel's ids of the programs, maps and links that the running controller holds. The kernel gives ids that count up, so one that is gone never comes back.
    pub fn bpf_objects(&self) -> Result<BTreeSet<BpfObject>> {
        let mut objects = BTreeSet::new();
        if let Some(pid) = self.pid() {
            for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
                // A descriptor may be closed while the directory is read.
                let Ok(text) = fs::read_to_string(entry?.path()) else {
                    continue;
                };
                objects.extend(text.lines().filter_map(BpfObject::parse));
            }
        }
        Ok(objects)
    }

    /// All that the controller said.
    pub fn whole_log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    /// The end of what the controller said.
    pub fn log(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Steer<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("the lab could not end steer: {error:#}");
        }
        // The namespaces go with the lab; links and pins of a killed steer must not stay.
        if !self.detached {
            let _ = self.command(&["detach", "--drain", "0"]);
        }
    }
}

/// Runs a `steer` command in the router with this configuration, to its end.
pub fn command(lab: &Lab, config: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = lab.router.command(binary()?);
    command
        .args(arguments)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null());
    command
        .output()
        .with_context(|| format!("run steer {}", arguments.join(" ")))
}

/// A program, map or link in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BpfObject {
    /// A program.
    Program(u32),
    /// A map.
    Map(u32),
    /// A link: the attachment of a program.
    Link(u32),
}

impl BpfObject {
    /// A line of a descriptor's fdinfo.
    fn parse(line: &str) -> Option<Self> {
        let (key, id) = line.split_once(':')?;
        let id = id.trim().parse().ok()?;
        match key {
            "prog_id" => Some(Self::Program(id)),
            "map_id" => Some(Self::Map(id)),
            "link_id" => Some(Self::Link(id)),
            _ => None,
        }
    }

    /// Whether the kernel still has it.
    pub fn exists(self) -> Result<bool> {
        let (kind, id) = match self {
            Self::Program(id) => ("prog", id),
            Self::Map(id) => ("map", id),
            Self::Link(id) => ("link", id),
        };
        let output = Command::new("bpftool")
            .args([kind, "show", "id", &id.to_string()])
            .output()
            .context("run bpftool")?;
        Ok(output.status.success())
    }
}

/// Where one steer keeps its things.
#[derive(Clone, Debug)]
pub struct Places {
    /// Pinned kernel objects.
    pub pins: PathBuf,
    /// State and sockets.
    pub directory: PathBuf,
}

impl Places {
    /// Adds them to a configuration, and a watch period that a test can wait for; without probes, as
    /// [`Settings::health`] has it.
    pub fn fill_in(&self, text: &str) -> String {
        let watch = "[mark]\nwatch_period = \"1s\"\n";
        let text = if text.contains("[mark]\n") {
            text.replace("[mark]\n", watch)
        } else {
            format!("{text}\n{watch}")
        };
        format!(
            "{text}\n[health]\n{NO_PROBES}\n[system]\npin_dir = \"{}\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\n",
            self.pins.display(),
            self.directory.join("state").display(),
            self.directory.join("run").display(),
        )
    }
}

/// Writes a configuration for this lab and returns its path.
pub fn write_config(lab: &Lab, settings: &Settings) -> Result<PathBuf> {
    let path = lab.directory().join("steer.toml");
    // Whole or not at all: a controller may be about to read it.
    let new = path.with_extension("toml.new");
    fs::write(&new, config_text(lab, settings))
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn config_text(lab: &Lab, settings: &Settings) -> String {
    let Settings {
        mode,
        reload_on_change,
        watch_period,
        lan,
        health,
        more,
        under: _,
        arguments: _,
    } = settings;
    let (lan4, lan6) = lab.lan();
    let valid = match lab.options.lan {
        LanKind::Private => String::new(),
        LanKind::Public => format!(r#""{lan4}", "{lan6}""#),
    };
    let breakouts: Vec<String> = lab
        .breakouts()
        .iter()
        .enumerate()
        .map(|(index, breakout)| {
            let (gateway, gateway6) = breakout.gateway;
            format!(
                "[[breakout]]\nname = \"isp-{number}\"\ninterface = \"{}\"\n\
                 gateway = \"{gateway}\"\ngateway6 = \"{gateway6}\"\n\
                 valid_sources = [{valid}]\npriority = {number}\n",
                breakout.interface,
                number = index + 1,
            )
        })
        .collect();
    let directory = lab.directory();
    format!(
        "mode = \"{mode}\"\nreload_on_change = {reload_on_change}\n\
         [[lan]]\ninterface = \"lan0\"\n{lan}\n\
         [backbone]\ninterface = \"bb0\"\n\
         {breakouts}\
         [mark]\nwatch_period = \"{watch}ms\"\n\
         [health]\ntrust = \"{authority}\"\n{health}\n\
         [system]\npin_dir = \"{pins}\"\nstate_dir = \"{state}\"\nrun_dir = \"{run}\"\n\
         {more}\n",
        mode = mode.name(),
        breakouts = breakouts.concat(),
        watch = watch_period.as_millis(),
        authority = lab.authority().display(),
        pins = lab.pin_directory().display(),
        state = directory.join("state").display(),
        run = directory.join("run").display(),
    )
}

/// The `steer` binary: `STEER_BIN`, else the one of this build. Under `cargo test` it is built
/// first, so that no test ever judges an old one.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| find_binary().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

/// `cargo build` with the profile of this test, if cargo runs it.
pub fn cargo_build() -> Option<Command> {
    let mut build = Command::new(env::var_os("CARGO")?);
    build.args(["build", "--quiet"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    // Where it differs from the outer cargo's, crates whose build scripts look at it are built anew.
    build.env_remove("CARGO_MANIFEST_DIR");
    Some(build)
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("STEER_BIN") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    // target/<profile>/deps/<test> or target/<profile>/steer-lab
    let directory = own.parent().context("this program is in no directory")?;
    let is_test = directory.file_name().is_some_and(|name| name == "deps");
    let directory = if is_test {
        directory.parent().unwrap_or(directory)
    } else {
        directory
    };
    if is_test && let Some(mut build) = cargo_build() {
        // Both packages together: the same features, so nothing is built twice.
        build.args(["-p", "steer-user", "-p", "steer-tests", "--bin", "steer"]);
        ensure!(build.status()?.success(), "steer does not build");
    }
    let path = directory.join("steer");
    ensure!(
        path.exists(),
        "{} does not exist: build it with `cargo build`, or name one with STEER_BIN",
        path.display()
    );
    Ok(path)
}

/// The end of a file for an error message; what cannot be read is said in its place.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path)
        .with_context(|| format!("read {}", path.display()))
        .unwrap_or_else(|error| format!("{error:#}"));
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
