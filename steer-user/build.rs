//! Builds the kernel programs for the BPF target, so that the binary can embed them.
//!
//! This is a small cargo call of our own rather than `aya-build`: the flags decide what the
//! verifier sees, and the stable toolchain with `RUSTC_BOOTSTRAP` is all that it needs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest directory")?)
        .parent()
        .ok_or("the crate has no parent directory")?
        .to_path_buf();
    for watched in ["steer-ebpf", "steer-common", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");

    let target_dir = out.join("bpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|e| e.to_string())?;
    // btf_maps need BTF, and BTF needs debug information.
    let flags = [
        "--cfg",
        &format!("bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ]
    .join("\x1f");
    let next_abi = env::var_os("CARGO_FEATURE_NEXT_ABI").is_some();
    let features: &[&str] = if next_abi {
        &["--features", "next-abi"]
    } else {
        &[]
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&root)
        .args(["build", "--release", "--package", "steer-ebpf", "--bins"])
        .args([
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(&target_dir)
        .args(features)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("PATH", path_with_linker(&root)?)
        // Set by clippy and by RUSTFLAGS users; they are meant for the host.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS");
    let status = cargo
        .status()
        .map_err(|e| format!("cannot start cargo: {e}"))?;
    if !status.success() {
        return Err(
            "the kernel programs did not build (see above). If the linker or the rust-src \
             component is missing, `cargo xtask setup` installs it."
                .into(),
        );
    }
    for object in [
        "steer-mark",
        "steer-fast",
        "steer-breakout",
        "steer-dns",
        "steer-bench",
    ] {
        let from = target_dir.join("bpfel-unknown-none/release").join(object);
        std::fs::copy(&from, out.join(object)).map_err(|e| format!("{}: {e}", from.display()))?;
    }
    Ok(())
}

/// `cargo xtask setup` installs bpf-linker into `target/tools`; one on the PATH serves as well.
fn path_with_linker(root: &Path) -> Result<std::ffi::OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(root.join("target/tools/bin")).chain(env::split_paths(&path));
    env::join_paths(dirs).map_err(|e| e.to_string())
}
