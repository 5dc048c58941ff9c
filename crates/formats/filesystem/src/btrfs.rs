//! btrfs on one device, by the crate `lambutter`. Paths begin at the top level, as in GRUB; subvolumes are folders.

use crate::part::Part;
use crate::{FileSystem, FsError, MAX_ENTRIES, Node, NodeKind};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt::Write;
use lambutter::{Btrfs, Error, Inode, Path};

/// Where the first superblock is. btrfs documentation, "On-disk Format", "Superblock".
const SUPERBLOCK: u64 = 0x1_0000;
/// Where its magic number is.
pub const MAGIC_AT: u64 = SUPERBLOCK + 0x40;
/// The magic number.
pub const MAGIC: [u8; 8] = *b"_BHRfS_M";
/// Where its identifier is.
const UUID_AT: u64 = SUPERBLOCK + 0x20;
/// Where its label is.
const LABEL_AT: u64 = SUPERBLOCK + 0x12b;
/// Length of the label's field in bytes.
const LABEL_LEN: usize = 256;

/// A file system that is open.
pub struct BtrfsFs {
    fs: RefCell<Btrfs<Part>>,
    uuid: String,
    label: String,
    /// The inode of the file that was read last.
    last: RefCell<Option<(Vec<u8>, Inode)>>,
}

impl BtrfsFs {
    /// Opens the file system in `part`.
    ///
    /// # Errors
    /// It is damaged, lies on several devices, or has features that are not read.
    pub fn open(part: Part) -> Result<Self, FsError> {
        let (mut uuid, mut label) = ([0; 16], [0; LABEL_LEN]);
        let read = part.read_at(UUID_AT, &mut uuid);
        let read = read.and_then(|()| part.read_at(LABEL_AT, &mut label));
        read.map_err(|e| broken(e.to_string()))?;
        let label = label.split(|byte| *byte == 0).next().unwrap_or(&[]);
        let label = String::from_utf8_lossy(label).into_owned();
        let len = part.len_bytes();
        let root = Path::new(b"/").ok_or(FsError::NotFound)?;
        let fs = Btrfs::open_subvol_path(part, len, root).map_err(error)?;
        Ok(Self {
            fs: RefCell::new(fs),
            uuid: uuid_text(&uuid),
            label,
            last: RefCell::new(None),
        })
    }

    fn path(path: &[u8]) -> Result<Path<'_>, FsError> {
        let path: &[u8] = if path.is_empty() { b"/" } else { path };
        Path::new(path).ok_or(FsError::NotFound)
    }
}

/// An identifier as `blkid` prints it.
pub fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn broken(reason: String) -> FsError {
    FsError::Broken {
        name: "btrfs",
        reason,
    }
}

fn error(error: Error) -> FsError {
    match error {
        Error::NotFound => FsError::NotFound,
        Error::NotARegularFile => FsError::NotAFile,
        Error::NotASymlink => FsError::NotALink,
        other => broken(other.to_string()),
    }
}

impl FileSystem for BtrfsFs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn node(&self, path: &[u8]) -> Result<Node, FsError> {
        let mut fs = self.fs.borrow_mut();
        let inode = fs.resolve(Self::path(path)?).map_err(error)?;
        let metadata = fs.metadata(&inode).map_err(error)?;
        let (file, folder) = (metadata.is_file(), metadata.is_dir());
        let kind = NodeKind::of(file, folder, metadata.is_symlink());
        let len = metadata.size;
        Ok(Node { kind, len })
    }

    fn link(&self, path: &[u8]) -> Result<Vec<u8>, FsError> {
        let mut fs = self.fs.borrow_mut();
        fs.read_link(Self::path(path)?).map_err(error)
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let mut fs = self.fs.borrow_mut();
        let entries = fs.read_dir(Self::path(path)?).map_err(error)?;
        if entries.len() > MAX_ENTRIES {
            return Err(FsError::TooManyEntries);
        }
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn read(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let mut fs = self.fs.borrow_mut();
        let mut last = self.last.borrow_mut();
        let inode = match &mut *last {
            Some((open, inode)) if open == path => *inode,
            other => {
                let inode = fs.resolve(Self::path(path)?).map_err(error)?;
                other.insert((path.to_vec(), inode)).1
            }
        };
        fs.read_file_at(&inode, offset, buf).map_err(error)
    }
}

impl core::fmt::Debug for BtrfsFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&format!("BtrfsFs({})", self.uuid))
    }
}
