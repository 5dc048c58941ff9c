//! What build scripts do with guest programs.

use std::path::{Path, PathBuf};

use crate::{GuestArch, GuestBuild, GuestBuildError, Verb};

/// What the operations are made of, relative to the workspace.
pub const OPERATION_INPUTS: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "crates/formats",
    "crates/plan",
    "guest-ops",
    "operations",
    "rust-toolchain.toml",
    "shared",
];

/// Builds `packages` and copies each of `programs` to `OUT_DIR/NAME.elf`.
///
/// For build scripts. `inputs` are further paths relative to the workspace
/// whose change asks for a new build; [`OPERATION_INPUTS`] always do. The
/// guest's machine is the one that the host program is compiled for.
///
/// # Errors
/// As [`GuestBuild::run`]; or a variable of build scripts is missing, or a
/// program cannot be copied.
pub fn embed(packages: &[&str], programs: &[&str], inputs: &[&str]) -> Result<(), GuestBuildError> {
    let root = workspace_root(&variable("CARGO_MANIFEST_DIR")?)?;
    let out_dir = variable("OUT_DIR")?;
    let name = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let arch = GuestArch::from_cargo(&name).ok_or(GuestBuildError::Machine { arch: name })?;
    println!("cargo::rerun-if-changed=build.rs");
    for input in OPERATION_INPUTS.iter().chain(inputs) {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let build = GuestBuild::new(&root, arch, packages, &inner_target_dir(&out_dir));
    build.run(Verb::Build)?;
    for program in programs {
        let from = build.artifact_dir().join(program);
        std::fs::copy(&from, out_dir.join(format!("{program}.elf"))).map_err(|source| {
            GuestBuildError::File {
                path: from.display().to_string(),
                source,
            }
        })?;
    }
    Ok(())
}

fn variable(name: &'static str) -> Result<PathBuf, GuestBuildError> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or(GuestBuildError::Variable { name })
}

/// The workspace that holds the package at `manifest_dir`: the nearest folder
/// above it with a `Cargo.lock`.
///
/// # Errors
/// There is none.
pub fn workspace_root(manifest_dir: &Path) -> Result<PathBuf, GuestBuildError> {
    manifest_dir
        .ancestors()
        .find(|folder| folder.join("Cargo.lock").is_file())
        .map(Path::to_owned)
        .ok_or_else(|| GuestBuildError::File {
            path: manifest_dir.join("Cargo.lock").display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        })
}

/// The inner cargo's target folder: beside the profiles of the outer one, so
/// that all profiles and targets share it; in `out_dir` if that is elsewhere.
fn inner_target_dir(out_dir: &Path) -> PathBuf {
    out_dir
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .unwrap_or(out_dir)
        .join("guests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_target_dir_is_shared_by_profiles() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("release/build/x-1/out");
        std::fs::create_dir_all(&out).unwrap();
        assert_eq!(inner_target_dir(&out), out.join("guests"));
        std::fs::write(dir.path().join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(inner_target_dir(&out), dir.path().join("guests"));
    }

    #[test]
    fn workspace_root_is_the_folder_of_the_lock_file() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = workspace_root(here).unwrap();
        assert!(here.starts_with(&root));
        for input in OPERATION_INPUTS {
            assert!(root.join(input).exists(), "{input}");
        }
        assert!(workspace_root(Path::new("/")).is_err());
    }
}
