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
use instar_guest_build::operations::PACKAGES;
use instar_guest_build::{GuestArch, GuestBuild, Verb, workspace_root};

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
    GuestBuild::new(root, arch, PACKAGES, target_dir)
}

/// The folder that the build script of `instar-op-images` uses as well.
fn target_dir(root: &Path) -> PathBuf {
    let outer = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root.join(outer.unwrap_or_else(|| "target".into()))
        .join("guests")
}
