//! One run of the inner cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use thiserror::Error;

use crate::{GuestArch, environment, flags};

/// Why guest programs could not be built.
#[derive(Debug, Error)]
pub enum GuestBuildError {
    /// The toolchain has no library for the guest's target.
    #[error(
        "the operations are built for Rust's `{target}` target, which this toolchain lacks; \
         run `rustup target add {target}`"
    )]
    TargetMissing {
        /// The Rust target.
        target: &'static str,
    },
    /// A program could not be started.
    #[error("cannot run `{program}` to build the operations: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The compiler did not say where its libraries are.
    #[error("`{program} --print` failed: {status}")]
    Compiler {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The inner cargo failed; it has said why.
    #[error("building {packages} for `{target}` failed: {status}; the messages above say why")]
    Failed {
        /// The packages.
        packages: String,
        /// The Rust target.
        target: &'static str,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A build script's variable is missing or holds an unknown value.
    #[error("`{name}` is not set as cargo sets it for build scripts")]
    Variable {
        /// Name of the variable.
        name: &'static str,
    },
    /// The host program is for a machine that has no guests.
    #[error("instar runs on x86_64 and aarch64, not on `{arch}`")]
    Machine {
        /// What cargo calls the machine.
        arch: String,
    },
}

/// What the inner cargo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Compiles and links.
    Build,
    /// Runs clippy with warnings as errors.
    Clippy,
}

/// A build of guest packages of one workspace for one machine.
#[derive(Clone, Debug)]
pub struct GuestBuild {
    root: PathBuf,
    arch: GuestArch,
    packages: Vec<String>,
    target_dir: PathBuf,
}

impl GuestBuild {
    /// A build of `packages` in the workspace at `root`, with `target_dir` as
    /// the target folder; that folder must not be the outer cargo's own.
    #[must_use]
    pub fn new(root: &Path, arch: GuestArch, packages: &[&str], target_dir: &Path) -> Self {
        Self {
            root: root.to_owned(),
            arch,
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            target_dir: target_dir.to_owned(),
        }
    }

    /// The folder that holds the linked programs after [`Verb::Build`].
    #[must_use]
    pub fn artifact_dir(&self) -> PathBuf {
        self.target_dir.join(self.arch.target()).join("operation")
    }

    /// Runs the inner cargo; its messages go to standard error.
    ///
    /// # Errors
    /// The target is not installed, cargo cannot be started, or it failed.
    pub fn run(&self, verb: Verb) -> Result<(), GuestBuildError> {
        self.require_target()?;
        let mut command = self.command(verb)?;
        let status = status_of(&mut command)?;
        if status.success() {
            return Ok(());
        }
        Err(GuestBuildError::Failed {
            packages: self.packages.join(", "),
            target: self.arch.target(),
            status,
        })
    }

    fn command(&self, verb: Verb) -> Result<Command, GuestBuildError> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = clean(&cargo);
        command.current_dir(&self.root);
        command.arg(match verb {
            Verb::Build => "build",
            Verb::Clippy => "clippy",
        });
        command.args(["--locked", "--profile", "operation"]);
        command.args(["--target", self.arch.target()]);
        command.arg("--target-dir").arg(&self.target_dir);
        for package in &self.packages {
            command.args(["-p", package]);
        }
        let manifest = self.root.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).map_err(|source| GuestBuildError::File {
            path: manifest.display().to_string(),
            source,
        })?;
        for pin in flags::profile_pins(&text) {
            command.args(["--config", &pin]);
        }
        let linker = format!("target.{}.linker=\"rust-lld\"", self.arch.target());
        command.args(["--config", &linker]);
        if verb == Verb::Clippy {
            command.args(["--", "-D", "warnings"]);
        }
        let sysroot = self.rustc_print("sysroot")?;
        let remaps = flags::Remaps::new(&self.root, cargo_home().as_deref(), Some(&sysroot));
        command.env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags::encoded(self.arch, &remaps),
        );
        Ok(command)
    }

    fn require_target(&self) -> Result<(), GuestBuildError> {
        let libraries = self.rustc_print("target-libdir")?;
        if libraries.is_dir() {
            return Ok(());
        }
        Err(GuestBuildError::TargetMissing {
            target: self.arch.target(),
        })
    }

    /// What `rustc --print WHAT` says for the guest's target.
    fn rustc_print(&self, what: &str) -> Result<PathBuf, GuestBuildError> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = clean(&rustc);
        command
            .current_dir(&self.root)
            .args(["--print", what, "--target", self.arch.target()]);
        let program = rustc.to_string_lossy().into_owned();
        let output = command.output().map_err(|source| GuestBuildError::Start {
            program: program.clone(),
            source,
        })?;
        if !output.status.success() {
            let status = output.status;
            return Err(GuestBuildError::Compiler { program, status });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(PathBuf::from(text.trim()))
    }
}

/// A command whose environment is the list of [`environment`].
fn clean(program: &OsString) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(environment::passed());
    for name in environment::EMPTIED {
        command.env(name, "");
    }
    command
}

fn status_of(command: &mut Command) -> Result<ExitStatus, GuestBuildError> {
    command.status().map_err(|source| GuestBuildError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })
}

/// Cargo's home folder, as cargo finds it.
fn cargo_home() -> Option<PathBuf> {
    let named = std::env::var_os("CARGO_HOME").filter(|path| !path.is_empty());
    named
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_names_the_missing_target() {
        let error = GuestBuildError::TargetMissing {
            target: GuestArch::X86_64.target(),
        };
        let text = error.to_string();
        assert!(
            text.ends_with("run `rustup target add x86_64-unknown-linux-musl`"),
            "{text}"
        );
    }

    #[test]
    fn command_takes_nothing_from_the_outer_build() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = crate::workspace_root(here).unwrap();
        let build = GuestBuild::new(&root, GuestArch::X86_64, &["op-info"], Path::new("/t"));
        let command = build.command(Verb::Build).unwrap();
        for (name, value) in command.get_envs() {
            let name = name.to_str().unwrap();
            let ours = environment::EMPTIED.contains(&name) || name == "CARGO_ENCODED_RUSTFLAGS";
            assert!(
                ours || environment::passes(name) || value.is_none(),
                "{name}"
            );
        }
    }
}
