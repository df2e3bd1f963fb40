//! Builds the packages, and tries what an administrator does with them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    process::{Root, cargo, find, program, say, workspace},
    setup,
};

const OUT: &str = "target/dist";
const GENERATED: &str = "target/dist/generated";
/// The same with a higher revision, to upgrade to.
const NEWER: &str = "target/dist/newer";

/// A .deb and an .rpm in `target/dist`.
pub fn build() -> Result<()> {
    setup::install_for_building()?;
    setup::install_packagers()?;
    let out = workspace().join(OUT);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    let bins = ["--bin", "steer", "--bin", "steer-packaging"];
    cargo(["build", "--locked", "--release"])
        .args(["--package", "steer-user", "--package", "steer-packaging"])
        .args(bins)
        .run()?;
    let generator = workspace().join("target/release/steer-packaging");
    program(generator)
        .args([GENERATED, "CHANGELOG.md"])
        .arg(last_change()?)
        .run()?;
    pack(OUT, "1")?;
    for package in packages(&out)? {
        let kib = fs::metadata(&package)?.len() / 1024;
        say(&format!("{} ({kib} KiB)", package.display()));
    }
    Ok(())
}

/// Both packages of a revision, from what is built.
fn pack(out: &str, revision: &str) -> Result<()> {
    fs::create_dir_all(workspace().join(out))?;
    let tools = workspace().join("target/tools/bin");
    program(tools.join("cargo-deb"))
        .args(["--package", "steer-packaging", "--no-build", "--locked"])
        .args(["--deb-revision", revision, "--output", out])
        .run()?;
    program(tools.join("cargo-generate-rpm"))
        .args(["--package", "packaging", "--output", out])
        .args(["--set-metadata", &format!("release = \"{revision}\"")])
        .run()
}

/// Install, upgrade, remove and purge on a copy of this machine.
pub fn try_them(root: &Root) -> Result<()> {
    ensure!(
        find("dpkg").is_some(),
        "the packages are tried with dpkg, and this machine has none"
    );

    pack(NEWER, "2")?;
    let [first, newer] = [OUT, NEWER].map(|dir| packages(&workspace().join(dir)));
    let ([deb, rpm], [newer_deb, newer_rpm]) = (first?, newer?);
    root.program("sh")
        .arg("packaging/try")
        .args([&deb, &newer_deb, &rpm, &newer_rpm])
        .run()?;
    if !Path::new("/lib/systemd/systemd").exists() {
        say("there is no systemd on this machine: the service is not tried under it");
        return Ok(());
    }
    root.program("sh")
        .arg("packaging/try-service")
        .args([deb, newer_deb])
        .run()
}

/// The same sources give the same packages: the date is the newest commit's, or the epoch where
/// there is no history.
fn last_change() -> Result<String> {
    const EPOCH: &str = "Thu, 01 Jan 1970 00:00:00 +0000";
    let log = || program("git").args(["log", "--max-count=1", "--format=%cD"]);
    if !log().succeeds() {
        return Ok(EPOCH.to_owned());
    }
    let date = log().output()?;
    Ok(date.trim().to_owned())
}

/// The .deb and the .rpm of a directory.
fn packages(dir: &Path) -> Result<[PathBuf; 2]> {
    let one = |extension: &str| -> Result<PathBuf> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == extension) {
                return Ok(path);
            }
        }
        bail!("there is no .{extension} in {}", dir.display())
    };
    Ok([one("deb")?, one("rpm")?])
}
