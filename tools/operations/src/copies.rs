//! The proof that the build is reproducible: two copies of the workspace in
//! folders of different length, each with a cargo home and an environment of
//! its own that tries to change the result, give the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use instar_guest_build::GuestArch;

use crate::{budget, build, elf};
use instar_guest_build::operations::programs;

/// What is not copied: results of builds, and git's own folder.
const LEFT_OUT: &[&str] = &[".git", "dist", "fuzz"];

/// Cargo configuration in the second home that would change every binary.
const HOSTILE_CONFIG: &str = r#"
[build]
rustflags = ["-Copt-level=0", "-Cdebuginfo=2"]
rustc-wrapper = "no-such-wrapper"
[target.x86_64-unknown-linux-musl]
linker = "no-such-linker"
rustflags = ["-Cstrip=symbols"]
[profile.release]
lto = false
debug = true
codegen-units = 16
overflow-checks = true
[profile.operation]
opt-level = 0
"#;

/// Environment of the second build that would change every binary.
const HOSTILE_ENVIRONMENT: &[(&str, &str)] = &[
    ("RUSTFLAGS", "-Copt-level=1 -Cdebuginfo=1"),
    ("CARGO_ENCODED_RUSTFLAGS", "-Copt-level=2"),
    ("CARGO_BUILD_RUSTFLAGS", "-Copt-level=s"),
    ("CARGO_PROFILE_OPERATION_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_INCREMENTAL", "1"),
    ("RUSTC_WRAPPER", "no-such-wrapper"),
    ("RUSTC_WORKSPACE_WRAPPER", "no-such-wrapper"),
    (
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER",
        "no-such-linker",
    ),
    ("SOURCE_DATE_EPOCH", "1"),
    ("TZ", "Asia/Tokyo"),
    ("LC_ALL", "C"),
];

/// Builds twice, compares, and holds the sizes against the budget.
pub fn check(root: &Path) -> Result<()> {
    let limits = budget::parse(
        &std::fs::read_to_string(root.join("tools/operations/budget.txt"))
            .context("tools/operations/budget.txt")?,
    )?;
    let scratch = tempfile::Builder::new().prefix("instar-sizes-").tempdir()?;
    let plain = Place::new(scratch.path().join("a"), root, None)?;
    let long = scratch
        .path()
        .join("another-and-much-longer-folder-name/with a space/b");
    let hostile = Place::new(long, root, Some(HOSTILE_CONFIG))?;
    plain.build(&[])?;
    hostile.build(HOSTILE_ENVIRONMENT)?;
    let mut problems = Vec::new();
    for program in programs() {
        let (one, other) = (plain.program(program)?, hostile.program(program)?);
        if one != other {
            problems.push(format!("{program} differs: {}", difference(&one, &other)));
        }
        let sizes = elf::sizes(&one).with_context(|| program.to_owned())?;
        match budget::judge(&limits, program, sizes.loadable) {
            Ok(limit) => println!(
                "{program}: {} loadable bytes of {limit}, {} in memory, file {}",
                sizes.loadable,
                sizes.memory,
                one.len()
            ),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if problems.is_empty() {
        println!("both builds are byte-identical");
        return Ok(());
    }
    bail!("{}", problems.join("; "))
}

/// One copy of the workspace with its cargo home and target folder.
struct Place {
    tree: PathBuf,
    home: PathBuf,
    target_dir: PathBuf,
}

impl Place {
    fn new(folder: PathBuf, root: &Path, config: Option<&str>) -> Result<Self> {
        let place = Self {
            tree: folder.join("tree"),
            home: folder.join("cargo-home"),
            target_dir: folder.join("target"),
        };
        copy_tree(root, &place.tree)?;
        std::fs::create_dir_all(&place.home)?;
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
            .context("there is no home folder")?;
        let registry = home.join("registry");
        ensure!(registry.is_dir(), "{} is missing", registry.display());
        // Crates that the first build of the workspace has fetched serve both.
        std::os::unix::fs::symlink(registry, place.home.join("registry"))?;
        if let Some(config) = config {
            std::fs::write(place.home.join("config.toml"), config)?;
        }
        Ok(place)
    }

    fn build(&self, environment: &[(&str, &str)]) -> Result<()> {
        let status = Command::new(std::env::current_exe()?)
            .arg("build-copy")
            .arg(&self.target_dir)
            .current_dir(&self.tree)
            .envs(environment.iter().copied())
            .env("CARGO_HOME", &self.home)
            .status()?;
        ensure!(
            status.success(),
            "the build in {} failed",
            self.tree.display()
        );
        Ok(())
    }

    fn program(&self, name: &str) -> Result<Vec<u8>> {
        let folder = build(&self.tree, GuestArch::X86_64, &self.target_dir).artifact_dir();
        std::fs::read(folder.join(name)).with_context(|| name.to_owned())
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let kind = entry.file_type()?;
        // Sources may be called `target.rs`; folders of builds are `target`, `target-…`.
        let built = kind.is_dir() && text.starts_with("target");
        if LEFT_OUT.contains(&text.as_ref()) || built {
            continue;
        }
        if kind.is_dir() {
            copy_tree(&entry.path(), &to.join(&name))?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(&name))?;
        }
    }
    Ok(())
}

/// Where two files part, and the text around that place.
fn difference(one: &[u8], other: &[u8]) -> String {
    let at = one
        .iter()
        .zip(other)
        .position(|(a, b)| a != b)
        .unwrap_or(one.len().min(other.len()));
    let around = |bytes: &[u8]| {
        let end = bytes.len().min(at + 40);
        String::from_utf8_lossy(bytes.get(at.saturating_sub(20)..end).unwrap_or_default())
            .escape_debug()
            .to_string()
    };
    format!(
        "{} and {} bytes, first difference at {at}: {} | {}",
        one.len(),
        other.len(),
        around(one),
        around(other)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_names_the_first_byte() {
        assert!(difference(b"same", b"samX").contains("first difference at 3"));
        assert!(difference(b"same", b"same more").contains("first difference at 4"));
    }

    #[test]
    fn copy_tree_leaves_builds_out() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        for name in [".git", "target", "target-x", "src"] {
            std::fs::create_dir_all(from.join(name)).unwrap();
            std::fs::write(from.join(name).join("file"), name).unwrap();
        }
        std::fs::write(from.join("src/target.rs"), "").unwrap();
        let to = dir.path().join("to");
        copy_tree(&from, &to).unwrap();
        assert!(to.join("src/file").is_file());
        assert!(to.join("src/target.rs").is_file());
        for name in [".git", "target", "target-x"] {
            assert!(!to.join(name).exists(), "{name}");
        }
    }
}
