//! Builds, lints and measures the operation binaries.
//!
//! ```text
//! operations build x86_64|aarch64   builds the operations for a machine
//! operations clippy                 lints them as they are for the guest
//! operations sizes                  proves the build reproducible and small
//! ```
//!
//! It works in the workspace of the current folder.

mod budget;
mod copies;
mod elf;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use instar_guest_build::{GuestArch, GuestBuild, Verb, workspace_root};

/// The operations: package and program have the same name. Some packages have a second program ([`KEYED`],
/// [`WRITING`]).
pub const OPERATIONS: &[&str] = &[
    "op-info",
    "op-check",
    "op-commit",
    "op-compare",
    "op-map",
    "op-repair",
    "op-snapshot",
    "op-resize",
    "op-amend",
    "op-bitmap",
    "op-bench",
    "op-convert",
    "op-convert-into",
    "op-rebase",
    "op-create",
    "op-measure",
];

/// Operations with the ciphers of encrypted images.
pub const KEYED: &[&str] = &[
    "op-amend-keyed",
    "op-commit-keyed",
    "op-compare-keyed",
    "op-convert-keyed",
    "op-convert-into-keyed",
    "op-create-keyed",
    "op-map-keyed",
    "op-measure-keyed",
    "op-rebase-keyed",
];

/// Operations that have a program of their own for what writes.
pub const WRITING: &[&str] = &["op-bench-write"];

/// All programs of the operations.
pub fn programs() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().chain(KEYED).chain(WRITING).copied()
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("operations: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let root = workspace_root(&std::env::current_dir()?)?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["build", name] => {
            let arch = GuestArch::from_cargo(name).context("the machines: x86_64, aarch64")?;
            Ok(build(&root, arch, &target_dir(&root)).run(Verb::Build)?)
        }
        ["clippy"] => Ok(build(&root, GuestArch::X86_64, &target_dir(&root)).run(Verb::Clippy)?),
        ["sizes"] => copies::check(&root),
        // The child process of `sizes`, in a copy of the workspace.
        ["build-copy", target_dir] => {
            Ok(build(&root, GuestArch::X86_64, Path::new(target_dir)).run(Verb::Build)?)
        }
        _ => bail!("usage: operations build MACHINE | clippy | sizes"),
    }
}

/// The build of all operations.
pub fn build(root: &Path, arch: GuestArch, target_dir: &Path) -> GuestBuild {
    GuestBuild::new(root, arch, OPERATIONS, target_dir)
}

/// The folder that the build script of `instar-op-images` uses as well.
fn target_dir(root: &Path) -> PathBuf {
    let outer = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root.join(outer.unwrap_or_else(|| "target".into()))
        .join("guests")
}
