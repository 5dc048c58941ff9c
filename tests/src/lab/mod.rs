//! Machines that QEMU interprets, where this one's processor or its KVM are not what is needed.

pub mod arm64;
pub mod x86_64;

pub use arm64::{Answer, Arm64};
pub use x86_64::X86_64;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// A file below the target folder; `how` says who makes it.
fn built(path: &str, how: &str) -> Result<PathBuf> {
    let path = target_folder()?.join(path);
    ensure!(path.is_file(), "{} is not there: {how}", path.display());
    Ok(path)
}

/// Cargo's target folder, in which this test is.
fn target_folder() -> Result<PathBuf> {
    let this = std::env::current_exe().context("where this test is")?;
    let folder = this.ancestors().nth(3).map(PathBuf::from);
    folder.context("this test is not in a target folder")
}
