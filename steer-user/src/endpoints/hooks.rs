//! The operator's commands before and after a change of the list.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::Difference;

/// What is run before and after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Before: any exit code but 0 holds the list back. A program and its arguments; empty: nothing.
    pub before: Vec<String>,
    /// After: its exit code is only logged.
    pub after: Vec<String>,
    /// How long either may take.
    pub timeout: Duration,
}

/// What a hook is told, as `STEER_FROM` and `STEER_TO`, and on its standard input as JSON.
#[derive(Debug, serde::Serialize)]
pub(super) struct Told<'a> {
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    pub(super) why: &'a str,
    pub(super) moved: &'a Difference,
}

/// Runs a hook. Fails with what an operator should know.
pub(super) async fn run(
    command: &[String],
    timeout: Duration,
    told: &Told<'_>,
) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let text = serde_json::to_vec(told).map_err(|error| error.to_string())?;
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .env("STEER_FROM", told.from)
            .env("STEER_TO", told.to)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program} cannot be started: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A hook need not read.
            let _ = stdin.write_all(&text).await;
        }
        let output = child
            .wait_with_output()
            .await
            .map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(200).collect();
        Err(format!("{program} ended with {}: {said}", output.status))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "{program} took longer than {} s",
            timeout.as_secs_f32()
        )),
    }
}
