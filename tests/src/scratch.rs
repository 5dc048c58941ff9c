//! A folder of its own for each test, removed afterwards.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A temporary folder; programs run with it as their current directory, so
/// images have short relative names and outputs do not depend on the machine.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// Makes an empty folder.
    pub fn new() -> Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    /// Makes an empty folder inside another one.
    pub fn new_in(folder: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("instar-e2e-")
            .tempdir_in(folder)
            .context("making a scratch folder")?;
        Ok(Self { dir })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Reads a whole file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        std::fs::read(self.file(name)).with_context(|| format!("reading {name}"))
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        std::fs::write(self.file(name), bytes).with_context(|| format!("writing {name}"))
    }

    /// Makes a file of `len` bytes without data (a hole), or cuts or extends one.
    pub fn set_len(&self, name: &str, len: u64) -> Result<()> {
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.file(name))
            .and_then(|file| file.set_len(len))
            .with_context(|| format!("setting the length of {name} to {len}"))
    }

    /// What a reader may not change: times, length, and the bytes of files of
    /// at most 64 MiB.
    pub fn fingerprint(&self, name: &str) -> Result<Fingerprint> {
        Fingerprint::of(&self.file(name))
    }

    /// The names of all regular files of the folder.
    pub fn names(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for entry in std::fs::read_dir(self.path())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                all.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(all)
    }

    /// Fingerprints of all regular files of the folder.
    pub fn fingerprints(&self) -> Result<Vec<(PathBuf, Fingerprint)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.path())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                all.push((entry.path(), Fingerprint::of(&entry.path())?));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }
}

/// Times, length and content hash of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    mtime: (i64, i64),
    ctime: (i64, i64),
    len: u64,
    hash: u64,
}

impl Fingerprint {
    /// Takes the fingerprint of one file.
    pub fn of(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        let mut hasher = DefaultHasher::new();
        if meta.len() <= 64 << 20 {
            hasher.write(&std::fs::read(path)?);
        }
        Ok(Self {
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            len: meta.len(),
            hash: hasher.finish(),
        })
    }
}
