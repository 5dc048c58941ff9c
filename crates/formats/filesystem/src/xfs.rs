//! XFS, by the crate `lamxfs`.

use crate::part::Part;
use crate::{FileSystem, FsError, MAX_ENTRIES, Node, NodeKind};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use lamxfs::{Error, Inode, Path, Xfs};

/// What the superblock begins with. *XFS Algorithms & Data Structures*, "Superblocks".
pub const MAGIC: [u8; 4] = *b"XFSB";

/// A file system that is open.
pub struct XfsFs {
    fs: RefCell<Xfs<Part>>,
    /// The inode of the file that was read last.
    last: RefCell<Option<(Vec<u8>, Inode)>>,
}

impl XfsFs {
    /// Opens the file system in `part`.
    ///
    /// # Errors
    /// It is damaged, or has features that are not read.
    pub fn open(part: Part) -> Result<Self, FsError> {
        let len = part.len_bytes();
        let fs = RefCell::new(Xfs::open(part, len).map_err(error)?);
        let last = RefCell::new(None);
        Ok(Self { fs, last })
    }
}

fn error(error: Error) -> FsError {
    match error {
        Error::NotFound {
            component: "not_a_directory",
        } => FsError::NotAFolder,
        Error::NotFound { .. } => FsError::NotFound,
        Error::NotARegularFile => FsError::NotAFile,
        Error::NotASymlink => FsError::NotALink,
        Error::FileTooLarge { size, max } => FsError::TooLarge { len: size, max },
        other => FsError::Broken {
            name: "xfs",
            reason: other.token().to_string(),
        },
    }
}

impl FileSystem for XfsFs {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn uuid(&self) -> String {
        let bytes = self.fs.borrow().uuid();
        crate::btrfs::uuid_text(&bytes)
    }

    fn label(&self) -> String {
        self.fs.borrow().label().unwrap_or("").to_string()
    }

    fn node(&self, path: &[u8]) -> Result<Node, FsError> {
        let mut fs = self.fs.borrow_mut();
        let inode = fs.resolve(Path::new(path)).map_err(error)?;
        let metadata = fs.metadata(&inode).map_err(error)?;
        let (file, folder) = (metadata.is_file(), metadata.is_dir());
        let kind = NodeKind::of(file, folder, metadata.is_symlink());
        let len = metadata.size();
        Ok(Node { kind, len })
    }

    fn link(&self, path: &[u8]) -> Result<Vec<u8>, FsError> {
        let mut fs = self.fs.borrow_mut();
        fs.read_link(Path::new(path)).map_err(error)
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let mut fs = self.fs.borrow_mut();
        let entries = fs.read_dir(Path::new(path)).map_err(error)?;
        if entries.len() > MAX_ENTRIES {
            return Err(FsError::TooManyEntries);
        }
        let names = entries.into_iter().map(|entry| entry.name);
        Ok(names.filter(|name| name != b"." && name != b"..").collect())
    }

    fn read(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let mut fs = self.fs.borrow_mut();
        let mut last = self.last.borrow_mut();
        let inode = match &mut *last {
            Some((open, inode)) if open == path => *inode,
            other => {
                let inode = fs.resolve(Path::new(path)).map_err(error)?;
                other.insert((path.to_vec(), inode)).1
            }
        };
        fs.read_file_at(&inode, offset, buf).map_err(error)
    }
}

impl core::fmt::Debug for XfsFs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&format!("XfsFs({})", self.uuid()))
    }
}
