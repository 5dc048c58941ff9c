//! File systems that boot loaders read: ext2 to ext4, FAT, XFS and btrfs, behind one small read-only trait.
//!
//! [`probe`] says what a partition holds and opens it. [`Files`] is what callers use: it follows symbolic links, in
//! bounds, whatever the file system. The readers of ext4 (`ext4-view`), XFS (`lamxfs`) and btrfs (`lambutter`) are
//! crates of others; FAT is read here. What they allocate for hostile sizes is checked first where it can be; what a
//! damaged file system makes them do is the guest's own failure.
//!
//! Modules:
//! - `part`: the bytes of a partition; `cache`: the last ones that were read.
//! - `probe`: what a partition holds.
//! - `files`: paths and symbolic links.
//! - `ext4`, `fat`, `xfs`, `btrfs`: the file systems.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod btrfs;
mod cache;
mod ext4;
mod fat;
mod files;
mod part;
mod probe;
mod xfs;

pub use cache::Cached;
pub use files::{File, Files};
pub use part::Part;
pub use probe::{Content, probe};

use alloc::string::String;
use alloc::vec::Vec;

/// Most entries of a folder that are looked at.
pub const MAX_ENTRIES: usize = 4096;
/// Longest path, in bytes, as in Linux.
pub const MAX_PATH: usize = 4096;
/// Most symbolic links that a path leads through, as in Linux.
pub const MAX_LINKS: usize = 40;

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a socket or a pipe.
    Other,
}

impl NodeKind {
    /// The kind of which a file system says these.
    pub(crate) const fn of(file: bool, folder: bool, link: bool) -> Self {
        match (file, folder, link) {
            (true, _, _) => Self::File,
            (_, true, _) => Self::Folder,
            (_, _, true) => Self::Link,
            _ => Self::Other,
        }
    }
}

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Length of a file in bytes.
    pub len: u64,
}

/// A file system, opened for reading.
///
/// Paths are absolute, without empty components, `.` and `..`, and lead through no symbolic link: [`Files`] sees to
/// that. `/` alone is the empty path.
pub trait FileSystem {
    /// Its name as `blkid` prints it: `ext4`, `vfat`, `xfs`, `btrfs`.
    fn name(&self) -> &'static str;
    /// Its identifier as `blkid` prints it.
    fn uuid(&self) -> String;
    /// Its label; empty for none.
    fn label(&self) -> String;
    /// What is at a path; a link is not followed.
    ///
    /// # Errors
    /// There is nothing, or the file system is damaged.
    fn node(&self, path: &[u8]) -> Result<Node, FsError>;
    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// It is none, or the file system is damaged.
    fn link(&self, path: &[u8]) -> Result<Vec<u8>, FsError>;
    /// The names in a folder without `.` and `..`, at most [`MAX_ENTRIES`].
    ///
    /// # Errors
    /// It is none, has more, or the file system is damaged.
    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError>;
    /// Fills `buf` from byte `offset` of a file, up to its end; returns how many bytes that are.
    ///
    /// # Errors
    /// It is none, or the file system is damaged.
    fn read(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize, FsError>;
}

/// Why something in a file system cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// Nothing has that name.
    #[error("There is no such file")]
    NotFound,
    /// A path goes on behind a file, or a folder was asked for.
    #[error("It is not a folder")]
    NotAFolder,
    /// A regular file was asked for.
    #[error("It is not a regular file")]
    NotAFile,
    /// A symbolic link was asked for.
    #[error("It is not a symbolic link")]
    NotALink,
    /// More than [`MAX_LINKS`] symbolic links.
    #[error("Too many symbolic links")]
    TooManyLinks,
    /// More than [`MAX_PATH`] bytes.
    #[error("The path is too long")]
    PathTooLong,
    /// More than [`MAX_ENTRIES`] entries.
    #[error("The folder has too many entries")]
    TooManyEntries,
    /// A file is larger than the caller takes.
    #[error("It has {len} bytes, more than the {max} that are read")]
    TooLarge {
        /// Its length in bytes.
        len: u64,
        /// What the caller takes.
        max: u64,
    },
    /// The file system is damaged, or has a feature that is not read.
    #[error("The {name} file system cannot be read: {reason}")]
    Broken {
        /// Its name.
        name: &'static str,
        /// The reader's words.
        reason: String,
    },
}
