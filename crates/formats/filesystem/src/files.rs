//! Paths of a file system, and where they lead.

use crate::{FileSystem, FsError, MAX_LINKS, MAX_PATH, Node, NodeKind};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// A file system by the paths of its files. Symbolic links are followed; they and `..` do not lead out of it.
pub struct Files {
    fs: Box<dyn FileSystem>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Files({})", self.fs.name())
    }
}

/// A regular file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it is, behind all links.
    path: Vec<u8>,
    /// Its length in bytes.
    pub len: u64,
}

impl Files {
    /// The files of `fs`.
    #[must_use]
    pub fn new(fs: Box<dyn FileSystem>) -> Self {
        Self { fs }
    }

    /// The file system.
    #[must_use]
    pub fn fs(&self) -> &dyn FileSystem {
        &*self.fs
    }

    /// Finds a regular file.
    ///
    /// # Errors
    /// There is none at `path`.
    pub fn open(&self, path: &[u8]) -> Result<File, FsError> {
        let (path, node) = self.resolve(path)?;
        match node.kind {
            NodeKind::File => Ok(File {
                path,
                len: node.len,
            }),
            _ => Err(FsError::NotAFile),
        }
    }

    /// Fills `buf` from byte `offset` of a file, up to its end; returns how many bytes that are.
    ///
    /// # Errors
    /// The file system is damaged.
    pub fn read(&self, file: &File, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let left = usize::try_from(file.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (buf, _) = buf.split_at_mut(left.min(buf.len()));
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.fs.read(&file.path, at, rest)? {
                0 => break,
                more => done = done.saturating_add(more),
            }
        }
        Ok(done)
    }

    /// All bytes of the file at `path`, which are at most `max`.
    ///
    /// # Errors
    /// There is none, or it is larger.
    pub fn read_all(&self, path: &[u8], max: u64) -> Result<Vec<u8>, FsError> {
        let file = self.open(path)?;
        let too_large = FsError::TooLarge { len: file.len, max };
        let len = usize::try_from(file.len).map_err(|_| too_large.clone())?;
        if file.len > max {
            return Err(too_large);
        }
        let mut bytes = vec![0; len];
        let done = self.read(&file, 0, &mut bytes)?;
        bytes.truncate(done);
        Ok(bytes)
    }

    /// The names in the folder at `path`, sorted.
    ///
    /// # Errors
    /// There is none, or it has too many.
    pub fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let (path, node) = self.resolve(path)?;
        if node.kind != NodeKind::Folder {
            return Err(FsError::NotAFolder);
        }
        let mut names = self.fs.list(&path)?;
        names.sort_unstable();
        Ok(names)
    }

    /// What is at `path`, behind all links.
    ///
    /// # Errors
    /// There is nothing.
    pub fn node(&self, path: &[u8]) -> Result<Node, FsError> {
        Ok(self.resolve(path)?.1)
    }

    /// Where a path leads.
    fn resolve(&self, path: &[u8]) -> Result<(Vec<u8>, Node), FsError> {
        let mut todo = components(path)?;
        let mut at = Vec::new();
        let mut node = self.fs.node(&at)?;
        let mut links = 0_usize;
        while let Some(name) = todo.pop() {
            if name == b".." {
                at.truncate(parent(&at));
                node = self.fs.node(&at)?;
                continue;
            }
            if node.kind != NodeKind::Folder {
                return Err(FsError::NotAFolder);
            }
            let folder = at.len();
            at.push(b'/');
            at.extend_from_slice(&name);
            if at.len() > MAX_PATH {
                return Err(FsError::PathTooLong);
            }
            node = self.fs.node(&at)?;
            if node.kind == NodeKind::Link {
                links = links.saturating_add(1);
                if links > MAX_LINKS {
                    return Err(FsError::TooManyLinks);
                }
                let target = self.fs.link(&at)?;
                at.truncate(if target.starts_with(b"/") { 0 } else { folder });
                todo.extend(components(&target)?);
                node = self.fs.node(&at)?;
            }
        }
        Ok((at, node))
    }
}

/// The components of a path, the last first.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
    if path.len() > MAX_PATH {
        return Err(FsError::PathTooLong);
    }
    let parts = path.split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    Ok(parts.rev().map(<[u8]>::to_vec).collect())
}

/// Length of the path of the folder that `path` is in.
fn parent(path: &[u8]) -> usize {
    path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)
}
