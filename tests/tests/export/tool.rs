//! The tools that read the exports.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use steer_tests::{namespace::Namespace, unpacked};
use tempfile::TempDir;

/// A program that is here.
pub struct Tool(PathBuf);

impl Tool {
    /// By its place in a file system; none, and a line that says so, where there is none.
    pub fn find(place: &str) -> Option<Self> {
        unpacked::find(place).map(Self)
    }

    /// What it prints, or how it complains.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        outcome(Command::new(&self.0), arguments)
    }

    pub fn run_in(&self, namespace: &Namespace, arguments: &[&str]) -> Result<String, String> {
        outcome(namespace.command(&self.0), arguments)
    }
}

fn outcome(mut command: Command, arguments: &[&str]) -> Result<String, String> {
    let output = command
        .args(arguments)
        .env("LD_LIBRARY_PATH", unpacked::libraries())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.success() {
        return Ok(text);
    }
    Err(text + &String::from_utf8_lossy(&output.stderr))
}

/// A tool takes the text, and refuses it with a line that makes no sense: it does read it.
pub fn assert_judged(
    text: &str,
    folder: &TempDir,
    mut judge: impl FnMut(&str) -> Result<String, String>,
) {
    let mut judged = |text: &str| {
        let file = folder.path().join("judged");
        std::fs::write(&file, text).unwrap();
        judge(file.to_str().unwrap())
    };
    judged(text).unwrap();
    let broken = judged(&format!("{text}\nno-such-word of any tool\n"));
    assert!(broken.is_err(), "it would take anything");
}
