//! The bytes of a partition.

use alloc::rc::Rc;
use core::fmt;
use instar_storage::{Storage, StorageError};

/// Errno of a read past the end.
const EIO: u32 = 5;

/// A part of a disk, which several readers may share.
#[derive(Clone)]
pub struct Part {
    disk: Rc<dyn Storage>,
    start: u64,
    len: u64,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({}+{})", self.start, self.len)
    }
}

impl Part {
    /// `len` bytes of `disk` from byte `start` on, cut at the disk's end.
    #[must_use]
    pub fn new(disk: Rc<dyn Storage>, start: u64, len: u64) -> Self {
        let left = disk.len_bytes().saturating_sub(start);
        let len = len.min(left);
        Self { disk, start, len }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// The disk's; the range does not lie in the part.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let end = offset.checked_add(buf.len() as u64);
        let place = self.start.checked_add(offset);
        match place.filter(|_| end.is_some_and(|end| end <= self.len)) {
            Some(place) => self.disk.read_at(place, buf),
            None => Err(StorageError { errno: EIO, offset }),
        }
    }
}

impl lamxfs::BlockRead for Part {
    type Error = StorageError;

    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        Self::read_at(self, offset_bytes, buf)
    }
}

impl lambutter::BlockRead for Part {
    type Error = StorageError;

    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        Self::read_at(self, offset_bytes, buf)
    }
}

impl ext4_view::Ext4Read for Part {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), alloc::boxed::Box<dyn core::error::Error + Send + Sync + 'static>> {
        self.read_at(start_byte, dst).map_err(Into::into)
    }
}
