//! File systems from folders, and partitioned disks of them.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::tools::in_path;

/// Where the first partition begins, in MiB.
const FIRST_MIB: u64 = 1;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fs {
    /// ext4, by mke2fs.
    Ext4,
    /// ext2, by mke2fs.
    Ext2,
    /// FAT, by mkfs.vfat and mcopy.
    Vfat,
    /// XFS, by mkfs.xfs.
    Xfs,
    /// btrfs, by mkfs.btrfs.
    Btrfs,
    /// Nothing.
    None,
}

/// A folder that becomes a file system.
#[derive(Debug)]
pub struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    /// An empty folder.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("instar-tree-").tempdir()?;
        Ok(Self { folder })
    }

    /// Adds a file, and the folders above it.
    pub fn file(self, path: &str, bytes: impl AsRef<[u8]>) -> Result<Self> {
        std::fs::write(self.place(path)?, bytes)?;
        Ok(self)
    }

    /// Adds a symbolic link, and the folders above it.
    pub fn link(self, path: &str, target: &str) -> Result<Self> {
        symlink(target, self.place(path)?)?;
        Ok(self)
    }

    fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.folder.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().context("a folder")?)?;
        Ok(place)
    }
}

/// A partition of a disk.
#[derive(Debug)]
pub struct Part {
    /// Its number.
    pub number: u32,
    /// Its size in MiB. XFS wants 320 at least, btrfs 128.
    pub mib: u64,
    /// Its type, as sfdisk takes it.
    pub kind: &'static str,
    /// What it holds.
    pub fs: Fs,
    /// The UUID of the file system; of FAT the first eight digits count.
    pub uuid: &'static str,
    /// The label of the file system.
    pub label: &'static str,
    /// Its files.
    pub tree: Tree,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// `gpt`, `dos`, or nothing for one file system on the whole disk.
    pub table: &'static str,
    /// Its partitions.
    pub parts: Vec<Part>,
}

impl Disk {
    /// Makes the raw image.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path)?;
        let mut at = if self.table.is_empty() { 0 } else { FIRST_MIB };
        let mut script = format!("label: {}\n", self.table);
        let mut places = Vec::new();
        for part in &self.parts {
            let line = format!(
                "{}: start={}, size={}, type={}\n",
                part.number,
                at * 2048,
                part.mib * 2048,
                part.kind
            );
            script.push_str(&line);
            places.push(at);
            at += part.mib;
        }
        file.set_len((at + FIRST_MIB) << 20)?;
        if !self.table.is_empty() {
            let program = Command::new(in_path(Path::new("sfdisk"))?);
            feed(
                program,
                &["-q", "--no-reread", "--no-tell-kernel"],
                path,
                &script,
            )?;
        }
        for (part, mib) in self.parts.iter().zip(places) {
            let made = tempfile::NamedTempFile::new()?;
            made.as_file().set_len(part.mib << 20)?;
            part.make(made.path())?;
            copy_data(made.as_file(), &file, mib << 20)?;
        }
        Ok(())
    }
}

impl Part {
    /// Makes the file system in a file of the right length.
    pub fn make(&self, path: &Path) -> Result<()> {
        let root = self.tree.folder.path();
        let root_name = root.to_str().context("a name")?;
        match self.fs {
            Fs::None => Ok(()),
            Fs::Ext4 | Fs::Ext2 => {
                let kind = if self.fs == Fs::Ext4 { "ext4" } else { "ext2" };
                let options = [
                    "-q", "-F", "-t", kind, "-U", self.uuid, "-L", self.label, "-d", root_name,
                ];
                run("mke2fs", &options, path)
            }
            Fs::Btrfs => {
                let options = [
                    "-q",
                    "-U",
                    self.uuid,
                    "-L",
                    self.label,
                    "--rootdir",
                    root_name,
                ];
                run("mkfs.btrfs", &options, path)
            }
            Fs::Xfs => {
                let mut lines = vec!["/".to_owned(), "0 0".to_owned(), "d--755 0 0".to_owned()];
                prototype(root, &mut lines)?;
                lines.push("$".to_owned());
                let file = tempfile::NamedTempFile::new()?;
                std::fs::write(file.path(), lines.join("\n") + "\n")?;
                let name = file.path().to_str().context("a name")?;
                let uuid = format!("uuid={}", self.uuid);
                run(
                    "mkfs.xfs",
                    &["-q", "-f", "-m", &uuid, "-L", self.label, "-p", name],
                    path,
                )
            }
            Fs::Vfat => {
                let serial: String = self.uuid.chars().filter(|c| *c != '-').take(8).collect();
                run("mkfs.vfat", &["-i", &serial, "-n", self.label], path)?;
                for entry in std::fs::read_dir(root)? {
                    let image = path.to_str().context("a name")?;
                    let from = entry?.path();
                    let from = from.to_str().context("a name")?;
                    let mut command = Command::new(in_path(Path::new("mcopy"))?);
                    command.args(["-s", "-i", image, from, "::/"]);
                    ensure!(command.status()?.success(), "mcopy failed");
                }
                Ok(())
            }
        }
    }
}

/// Lines of mkfs.xfs's prototype for what is in a folder.
fn prototype(folder: &Path, lines: &mut Vec<String>) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name().into_string().ok().context("a name")?;
        if kind.is_dir() {
            lines.push(format!("{name} d--755 0 0"));
            prototype(&path, lines)?;
            lines.push("$".to_owned());
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path)?;
            lines.push(format!("{name} l--777 0 0 {}", target.display()));
        } else {
            lines.push(format!("{name} ---644 0 0 {}", path.display()));
        }
    }
    Ok(())
}

fn run(program: &str, options: &[&str], path: &Path) -> Result<()> {
    let mut command = Command::new(in_path(Path::new(program))?);
    let said = command
        .args(options)
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{program} failed: {text}");
    Ok(())
}

fn feed(mut program: Command, options: &[&str], path: &Path, text: &str) -> Result<()> {
    let mut child = program
        .args(options)
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("its input")?
        .write_all(text.as_bytes())?;
    ensure!(
        child.wait()?.success(),
        "a program that takes '{text}' failed"
    );
    Ok(())
}

/// Copies what is not zeros.
fn copy_data(from: &File, to: &File, at: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let len = from.metadata()?.len();
    for offset in (0..len).step_by(buffer.len()) {
        let read = from.read_at(&mut buffer, offset)?;
        if buffer[..read].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..read], at + offset)?;
        }
    }
    Ok(())
}
