//! What `run` would put into this box, without touching it.

use super::{ControllerError, look::look, preflight, report};
use crate::{
    config::{Config, Mode},
    datapath::PinDir,
    system::{Kernel, owners::Owners},
};

/// What `run` would put into this box.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Preview {
    /// The objects, in the order of applying, as the commands they equal.
    pub objects: Vec<String>,
    /// The programs and where they are attached.
    pub programs: Vec<String>,
    /// What the operator should know.
    pub problems: Vec<String>,
}

/// Looks at the box and lists what `run` would do.
///
/// Fails where `run` would refuse to start here.
pub async fn preview(config: &Config) -> Result<Preview, ControllerError> {
    let kernel = Kernel::open(&config.system.state_dir)?;
    let view = look(&kernel, config, &[]).await?;
    let owners = Owners::gather(&kernel, config.mark.bits).await?;
    let mut problems = preflight::check(config, &view, &owners, false)?;
    problems.extend(view.problems.iter().cloned());
    problems.extend(
        view.breakouts
            .iter()
            .zip(&config.breakouts)
            .filter_map(|(seen, it)| {
                let trouble = seen.trouble.as_ref()?;
                Some(format!("breakout {} is down: {trouble}", it.name))
            }),
    );
    let hook = match config.mode {
        Mode::Mark => "lan_ingress at TC ingress (TCX, or clsact before Linux 6.6)",
        Mode::Redirect => "lan_redirect at XDP",
    };
    let pins = PinDir::new(&config.system.pin_dir);
    Ok(Preview {
        objects: report::objects(config, &view)
            .iter()
            .map(ToString::to_string)
            .collect(),
        programs: view
            .ports
            .iter()
            .map(|port| format!("{}: {hook}", port.interface))
            .chain([format!(
                "maps and links pinned below {}",
                pins.root().display()
            )])
            .collect(),
        problems,
    })
}
