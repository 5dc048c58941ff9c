//! ext2, ext3 and ext4, by the crate `ext4-view`.

use crate::part::Part;
use crate::{FileSystem, FsError, MAX_ENTRIES, Node, NodeKind};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use ext4_view::{Ext4, Ext4Error, File, FileType, Path};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Where the superblock is. Linux, `Documentation/filesystems/ext4/super.rst`.
pub const SUPERBLOCK: u64 = 1024;
/// Magic number of the superblock.
pub const MAGIC: u16 = 0xef53;
/// Most block groups, of which the reader keeps a descriptor each: 32 TiB with blocks of 4 KiB.
const MAX_GROUPS: u64 = 1 << 18;
/// Largest `s_log_block_size`: blocks of 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;
/// Feature "extents": ext4 rather than its predecessors.
const INCOMPAT_EXTENTS: u32 = 0x40;
/// Feature "has a journal": ext3.
const COMPAT_JOURNAL: u32 = 0x4;

/// The beginning of the superblock.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Superblock {
    inodes: U32,
    blocks_low: U32,
    unused: [u8; 12],
    first_data_block: U32,
    log_block_size: U32,
    log_cluster_size: U32,
    blocks_per_group: U32,
    unused_too: [u8; 20],
    magic: U16,
    state: [u8; 34],
    feature_compat: U32,
    feature_incompat: U32,
}
const _: () = assert!(core::mem::offset_of!(Superblock, magic) == 0x38);
const _: () = assert!(core::mem::offset_of!(Superblock, feature_incompat) == 0x60);

/// A file system that is open.
pub struct Ext4Fs {
    fs: Ext4,
    name: &'static str,
    /// The file that was read last: files are read from front to back.
    last: RefCell<Option<(Vec<u8>, File)>>,
}

impl Ext4Fs {
    /// Opens the file system in `part`.
    ///
    /// # Errors
    /// It is damaged, or has features that are not read.
    pub fn open(part: Part) -> Result<Self, FsError> {
        let mut head = [0; size_of::<Superblock>()];
        let read = part.read_at(SUPERBLOCK, &mut head);
        read.map_err(|e| broken("ext4", e.to_string()))?;
        let superblock = Superblock::read_from_bytes(&head).ok();
        let name = match superblock {
            Some(s) if s.feature_incompat.get() & INCOMPAT_EXTENTS != 0 => "ext4",
            Some(s) if s.feature_compat.get() & COMPAT_JOURNAL != 0 => "ext3",
            _ => "ext2",
        };
        if !superblock.is_some_and(|s| plausible(&s, &part)) {
            let reason = "its size is wrong".to_string();
            return Err(broken(name, reason));
        }
        let fs = Ext4::load(Box::new(part)).map_err(|e| broken(name, e.to_string()))?;
        Ok(Self {
            fs,
            name,
            last: RefCell::new(None),
        })
    }

    fn path<'p>(path: &'p [u8]) -> Result<Path<'p>, FsError> {
        let path: &'p [u8] = if path.is_empty() { b"/" } else { path };
        Path::try_from(path).map_err(|_| FsError::NotFound)
    }

    fn error(&self, error: Ext4Error) -> FsError {
        match error {
            Ext4Error::NotFound => FsError::NotFound,
            Ext4Error::NotADirectory => FsError::NotAFolder,
            Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FsError::NotAFile,
            Ext4Error::NotASymlink => FsError::NotALink,
            Ext4Error::TooManySymlinks => FsError::TooManyLinks,
            Ext4Error::PathTooLong => FsError::PathTooLong,
            other => broken(self.name, other.to_string()),
        }
    }
}

/// Whether all of the file system lies in its partition: the reader makes tables as large as it says it is.
fn plausible(superblock: &Superblock, part: &Part) -> bool {
    let (log, per_group) = (
        superblock.log_block_size.get(),
        superblock.blocks_per_group.get(),
    );
    if log > MAX_LOG_BLOCK_SIZE || per_group == 0 {
        return false;
    }
    let block = 1024_u64.checked_shl(log).unwrap_or(u64::MAX);
    let blocks = u64::from(superblock.blocks_low.get());
    let fits = blocks.checked_mul(block);
    let groups = blocks.div_ceil(per_group.into());
    fits.is_some_and(|bytes| bytes <= part.len_bytes()) && groups <= MAX_GROUPS
}

fn broken(name: &'static str, reason: String) -> FsError {
    FsError::Broken { name, reason }
}

impl FileSystem for Ext4Fs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn uuid(&self) -> String {
        self.fs.uuid().to_string()
    }

    fn label(&self) -> String {
        self.fs.label().to_str().unwrap_or("").to_string()
    }

    fn node(&self, path: &[u8]) -> Result<Node, FsError> {
        let found = self.fs.symlink_metadata(Self::path(path)?);
        let metadata = found.map_err(|e| self.error(e))?;
        let kind = match metadata.file_type() {
            FileType::Regular => NodeKind::File,
            FileType::Directory => NodeKind::Folder,
            FileType::Symlink => NodeKind::Link,
            _ => NodeKind::Other,
        };
        let len = metadata.len();
        Ok(Node { kind, len })
    }

    fn link(&self, path: &[u8]) -> Result<Vec<u8>, FsError> {
        let target = self.fs.read_link(Self::path(path)?);
        let target = target.map_err(|e| self.error(e))?;
        Ok(target.as_ref().to_vec())
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let mut names = Vec::new();
        let entries = self.fs.read_dir(Self::path(path)?);
        for entry in entries.map_err(|e| self.error(e))? {
            let entry = entry.map_err(|e| self.error(e))?;
            let name = entry.file_name();
            if name != "." && name != ".." {
                names.push(name.as_ref().to_vec());
            }
            if names.len() > MAX_ENTRIES {
                return Err(FsError::TooManyEntries);
            }
        }
        Ok(names)
    }

    fn read(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let mut last = self.last.borrow_mut();
        let file = match &mut *last {
            Some((open, file)) if open == path => file,
            other => {
                let file = self.fs.open(Self::path(path)?);
                let file = file.map_err(|e| self.error(e))?;
                &mut other.insert((path.to_vec(), file)).1
            }
        };
        if file.position() != offset {
            file.seek_to(offset).map_err(|e| self.error(e))?;
        }
        file.read_bytes(buf).map_err(|e| self.error(e))
    }
}
