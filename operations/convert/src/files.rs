//! The files of a copy.

use instar_guest_ops::{Disk, DiskSet};
use instar_layers::FileOf;
use instar_storage::{Extent, Read, Reserve, Storage, StorageError, StorageMut, Write};
use op_chain::Layers;

/// All files of the sources, and others: those whose requests overlap.
pub fn set<'a>(
    sources: &'a [Layers],
    others: impl IntoIterator<Item = &'a Disk>,
) -> Option<DiskSet<'a>> {
    let layers = sources.iter().flat_map(|source| source.chain.layers());
    let stores = layers.flat_map(|l| [l.store(FileOf::Image), l.store(FileOf::DataFile)]);
    DiskSet::new(others.into_iter().chain(stores))
}

/// A file that is made: flushed only if the host wants it durable before it has its name.
#[derive(Debug)]
pub struct Made<'a> {
    disk: &'a Disk,
    durable: bool,
}

impl<'a> Made<'a> {
    /// A file in which nothing has been written.
    pub const fn new(disk: &'a Disk, durable: bool) -> Self {
        Self { disk, durable }
    }
}

impl Storage for Made<'_> {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.disk.read_at(offset, buf)
    }
    fn read_batch(&self, reads: &mut [Read<'_>]) -> Result<(), StorageError> {
        self.disk.read_batch(reads)
    }
    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        self.disk.extent_at(offset)
    }
}

impl StorageMut for Made<'_> {
    fn can_grow(&self) -> bool {
        self.disk.can_grow()
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        self.disk.write_at(offset, buf)
    }
    fn write_batch(&self, writes: &[Write<'_>]) -> Result<(), StorageError> {
        self.disk.write_batch(writes)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.disk.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.disk.discard(offset, len)
    }
    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        self.disk.allocate(offset, len, how)
    }
    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.disk.set_len(len)
    }
    fn flush(&self) -> Result<(), StorageError> {
        // A device keeps what is written in place, so that its order counts.
        if self.durable || !self.disk.can_grow() {
            self.disk.flush()
        } else {
            Ok(())
        }
    }
}
