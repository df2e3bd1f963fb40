//! What the packages document is what steer has.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use steer_user::config::Config;

const MANUAL: &str = include_str!("../man/steer.toml.5");

/// The keys that a table knows, as the schema itself lists them when it meets an unknown one; `None`
/// if there is no such table.
fn keys(table: &str) -> Option<Vec<String>> {
    const UNKNOWN: &str = "a-key-that-nobody-knows";
    let headers = match table {
        "" => vec![String::new()],
        _ => vec![format!("[{table}]\n"), format!("[[{table}]]\n")],
    };
    headers.into_iter().find_map(|header| {
        let text = format!("{header}{UNKNOWN} = 1\n");
        let error = Config::parse("test", &text).unwrap_err();
        let problem = &error.problems()[0];
        let known = problem
            .reason
            .strip_prefix(&format!("unknown field `{UNKNOWN}`, expected "))?;
        let names = known.split('`').skip(1).step_by(2);
        Some(names.map(str::to_owned).collect())
    })
}

/// Every key that is no table, with its tables before it.
fn leaves(table: &str) -> Vec<String> {
    let mut leaves = Vec::new();
    for key in keys(table).unwrap() {
        let path = match table {
            "" => key,
            _ => format!("{table}.{key}"),
        };
        match keys(&path) {
            Some(_) => leaves.extend(self::leaves(&path)),
            None => leaves.push(path),
        }
    }
    leaves
}

#[test]
fn the_manual_of_the_configuration_has_every_key_and_no_other() {
    let schema: BTreeSet<String> = leaves("").into_iter().collect();
    assert!(schema.contains("select.include.ports"), "{schema:?}");
    let mut lines = MANUAL.lines();
    let mut documented = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line != ".TP" {
            continue;
        }
        let tag = lines.next().unwrap();
        let (_, key) = tag.split_once(' ').unwrap();
        let key = key.split(' ').next().unwrap();
        assert!(documented.insert(key.to_owned()), "{key} twice");
    }
    // Tables may have an entry of their own.
    documented.retain(|key| keys(key).is_none());
    assert_eq!(documented, schema);
}

#[test]
fn every_command_has_a_page_and_every_shell_its_completions() {
    let out = tempfile::tempdir().unwrap();
    let changelog = concat!(env!("CARGO_MANIFEST_DIR"), "/../CHANGELOG.md");
    let date = "Thu, 01 Jan 1970 00:00:00 +0000";
    let status = Command::new(env!("CARGO_BIN_EXE_steer-packaging"))
        .arg(out.path())
        .args([changelog, date])
        .status()
        .unwrap();
    assert!(status.success());
    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
    let command = steer_user::cli::command();
    for subcommand in command.get_subcommands() {
        let name = subcommand.get_name();
        let page = read(&format!("man/steer-{name}.1"));
        assert!(page.contains(&format!("steer\\-{name}")), "{page}");
    }
    for name in ["steer.bash", "_steer", "steer.fish"] {
        let text = read(&format!("completions/{name}"));
        for subcommand in command.get_subcommands() {
            assert!(text.contains(subcommand.get_name()), "{name}: {subcommand}");
        }
    }
    let first = read("man/steer.1");
    assert!(first.contains("EXIT STATUS") && first.contains("steer.toml"));
    assert!(read("changelog.Debian").contains(date));
    for page in fs::read_dir(out.path().join("man")).unwrap() {
        renders(&page.unwrap().path());
    }
    renders(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/man/steer.toml.5"
    )));
}

/// Where there is a `man`, it has nothing to complain about.
fn renders(page: &Path) {
    let output = Command::new("man")
        .args(["--warnings", "--encoding=UTF-8", "--local-file"])
        .arg(page)
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8")
        .output();
    let Ok(output) = output else {
        eprintln!("there is no `man` here: {} is not rendered", page.display());
        return;
    };
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && warnings.is_empty(),
        "{}: {warnings}",
        page.display()
    );
}
