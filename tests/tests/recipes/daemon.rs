//! Programs of others that run in a router of the lab, with folders and accounts of their own, so
//! that the machine's stay as they are.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use steer_tests::{namespace::Namespace, unpacked};

/// A program that runs until this is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program in a namespace, and in a mount namespace of its own in which `prepare` (sh)
    /// has been run. `folder` is for its log.
    pub fn start(
        namespace: &Namespace,
        folder: &Path,
        prepare: &str,
        program: &Path,
        arguments: &[&str],
    ) -> Self {
        let name = program.file_name().unwrap().to_str().unwrap();
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).unwrap();
        let script = format!("set -e; mount --make-rprivate /; {prepare}\nexec \"$@\"");
        let mut command = namespace.command("unshare");
        command
            .args(["--mount", "sh", "-c", &script, "sh"])
            .arg(program)
            .args(arguments)
            .env("LD_LIBRARY_PATH", unpacked::libraries())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        // It may have ended by itself; the test then sees what is missing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
