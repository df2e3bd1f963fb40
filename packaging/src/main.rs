//! Writes what the packages hold besides files of the repository: man pages and shell completions,
//! both from the command line's own definition, and the changelog in Debian's form.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap_complete::{Shell, generate_to};

/// What clap does not know, for the end of steer(1).
const MORE_OF_STEER_1: &str = include_str!("../man/steer.1.more");

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let usage = "usage: steer-packaging DIRECTORY CHANGELOG DATE";
    let out = PathBuf::from(arguments.next().context(usage)?);
    let changelog = PathBuf::from(arguments.next().context(usage)?);
    let date = arguments.next().context(usage)?;

    let man = directory(&out, "man")?;
    clap_mangen::generate_to(steer_user::cli::command(), &man)?;
    let first = man.join("steer.1");
    let page = fs::read_to_string(&first)?;
    fs::write(&first, page + MORE_OF_STEER_1)?;

    let completions = directory(&out, "completions")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(
            shell,
            &mut steer_user::cli::command(),
            "steer",
            &completions,
        )?;
    }

    let text = fs::read_to_string(&changelog)
        .with_context(|| format!("cannot read {}", changelog.display()))?;
    let text = debian_changelog(&text, &date.to_string_lossy());
    fs::write(out.join("changelog.Debian"), text)?;
    Ok(())
}

fn directory(out: &Path, name: &str) -> Result<PathBuf> {
    let path = out.join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// The newest part of CHANGELOG.md as Debian writes it; the whole of it is beside it.
fn debian_changelog(markdown: &str, date: &str) -> String {
    let newest = markdown
        .lines()
        .skip_while(|line| !line.starts_with("## "))
        .skip(1)
        .take_while(|line| !line.starts_with("## "));
    let entries: Vec<String> = newest
        .filter_map(|line| line.strip_prefix("- "))
        .map(|line| format!("  * {line}\n"))
        .collect();
    format!(
        "steer ({}-1) unstable; urgency=medium\n\n{}\n -- {}  {date}\n",
        env!("CARGO_PKG_VERSION"),
        entries.concat(),
        "The steer developers <steer@packages.invalid>",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_changes_become_debians_changelog() {
        let markdown = "# Changelog\n- no entry\n## [Unreleased]\n### Added\n- One `thing`.\n- Two.\n## [0.0.1]\n- Old.\n";
        let text = debian_changelog(markdown, "Thu, 01 Jan 1970 00:00:00 +0000");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2..4], ["  * One `thing`.", "  * Two."]);
        assert!(lines[0].starts_with("steer (") && lines[0].ends_with("unstable; urgency=medium"));
        assert!(
            lines[5].starts_with(" -- ")
                && lines[5].ends_with(">  Thu, 01 Jan 1970 00:00:00 +0000")
        );
        assert!(!text.contains("Old"));
    }
}
