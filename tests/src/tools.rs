//! Finds the oracle and the program under test.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::run::Run;

/// The version of QEMU whose words this project repeats.
const ORACLE: &str = "10.0.";

/// `qemu-img`, of the version that the tests compare with.
pub fn qemu_img() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    once(&FOUND, "qemu-img")
}

/// `qemu-io`, of the same version.
pub fn qemu_io() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    once(&FOUND, "qemu-io")
}

/// The program under test: `INSTAR_BIN`, or the newest `instar` that cargo
/// built beside this test (release, or the test's own profile) or this tool.
pub fn instar() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("INSTAR_BIN") {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        return in_path(&path).with_context(|| {
            format!(
                "INSTAR_BIN names {}, which is not a program",
                path.display()
            )
        });
    }
    let this = std::env::current_exe().context("where this test is")?;
    let built = this
        .ancestors()
        .nth(3)
        .context("this test is not in a target folder")?;
    let mine = this.ancestors().nth(2).map(|folder| folder.join("instar"));
    let beside = this.with_file_name("instar");
    let found = [Some(built.join("release/instar")), mine, Some(beside)]
        .into_iter()
        .flatten()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max();
    match found {
        Some((_, path)) => Ok(path),
        None => bail!(
            "there is no instar under {}: run `cargo build --release -p instar` \
             (or `make test`, which does), or set INSTAR_BIN",
            built.display()
        ),
    }
}

/// The Python that has the packages of `scripts/python.txt`: `INSTAR_PYTHON`, or that of the target folder.
pub fn python() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("INSTAR_PYTHON") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().context("where this test is")?;
    let built = this.ancestors().nth(3).context("a target folder")?;
    let path = built.join("python/bin/python3");
    if !path.exists() {
        bail!(
            "there is no {}: `make setup` makes it, with oslo.utils",
            path.display()
        );
    }
    Ok(path)
}

/// Whether the program under test is the oracle itself.
pub fn subject_is_oracle() -> bool {
    instar().is_ok_and(|path| path.file_name().is_some_and(|name| name == "qemu-img"))
}

/// Asks for the version once per process.
fn once(found: &OnceLock<PathBuf>, name: &str) -> Result<PathBuf> {
    if let Some(path) = found.get() {
        return Ok(path.clone());
    }
    let path = oracle(name)?;
    Ok(found.get_or_init(|| path).clone())
}

fn oracle(name: &str) -> Result<PathBuf> {
    let path = in_path(Path::new(name)).with_context(|| {
        format!("{name} is not installed: `make setup` installs version {ORACLE}x")
    })?;
    let said = Run::new(&path, Path::new("/")).args(["--version"]).go()?;
    let text = said.out();
    if !text.starts_with(&format!("{name} version {ORACLE}")) {
        bail!(
            "the tests need {name} {ORACLE}x, which `make setup` installs; this one says: {}",
            text.lines().next().unwrap_or("nothing")
        );
    }
    Ok(path)
}

/// Looks a program up in `PATH`, and in the folders of system programs.
pub fn in_path(name: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{} is not in PATH", name.display()))
}
