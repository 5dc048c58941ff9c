//! Where images lie while a case is measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// That of temporary files.
    Disk,
    /// Memory: nothing is ever written back. Files of 4 GiB would make the kernel slow writers down elsewhere.
    Memory,
    /// A new xfs (package xfsprogs) on a loop device over a file in memory.
    Xfs,
    /// A new btrfs (btrfs-progs), likewise.
    Btrfs,
}

/// Where file systems in memory are.
const MEMORY: &str = "/dev/shm";
/// Size of a file system on a loop device, in bytes.
const LOOP_BYTES: u64 = 4 << 30;

/// A folder for images; it goes away with the value.
pub struct Ground {
    /// Unmounted before the folder goes.
    mounted: Option<PathBuf>,
    folder: TempDir,
}

impl Ground {
    /// A new folder in `place`.
    ///
    /// # Errors
    /// Why there is none: a loop device needs root and `mkfs` of that kind.
    pub fn new(place: Place) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("instar-bench-");
        let folder = match place {
            Place::Disk => builder.tempdir()?,
            Place::Memory | Place::Xfs | Place::Btrfs => builder.tempdir_in(MEMORY)?,
        };
        let mut ground = Self {
            mounted: None,
            folder,
        };
        match place {
            Place::Disk | Place::Memory => {}
            Place::Xfs => ground.mount("mkfs.xfs", &["-q", "-m", "reflink=1"])?,
            Place::Btrfs => ground.mount("mkfs.btrfs", &["-q"])?,
        }
        Ok(ground)
    }

    /// The folder, empty at first.
    pub fn folder(&self) -> &Path {
        self.mounted
            .as_deref()
            .unwrap_or_else(|| self.folder.path())
    }

    fn mount(&mut self, mkfs: &str, options: &[&str]) -> Result<()> {
        let file = self.folder.path().join("disk");
        std::fs::File::create(&file)?.set_len(LOOP_BYTES)?;
        run(Command::new(mkfs).args(options).arg(&file))?;
        let target = self.folder.path().join("mounted");
        std::fs::create_dir(&target)?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(&target))?;
        self.mounted = Some(target);
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(target) = &self.mounted
            && let Err(error) = run(Command::new("umount").arg(target))
        {
            eprintln!("instar-bench: {error:#}");
        }
    }
}

/// Runs a program that must succeed; `/usr/sbin` and `/sbin` are looked through, too.
fn run(command: &mut Command) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{name} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", said.trim());
    Ok(())
}
