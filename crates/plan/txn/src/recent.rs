//! What was written a moment ago, still in memory.

use alloc::vec::Vec;
use instar_storage::{Storage, StorageError};

/// Writes: offset and bytes.
pub type Writes = Vec<(u64, Vec<u8>)>;

/// A store as it is after some writes, which may be on their way to it.
#[derive(Debug)]
pub struct Recent<'r, S> {
    /// The store.
    pub storage: &'r S,
    /// Lists of writes, the oldest first. Those of one list do not overlap.
    pub writes: [&'r Writes; 2],
}

impl<S: Storage> Storage for Recent<'_, S> {
    fn len_bytes(&self) -> u64 {
        let writes = self.writes.iter().copied().flatten();
        let ends = writes.map(|(at, bytes)| at.saturating_add(bytes.len() as u64));
        ends.max().unwrap_or(0).max(self.storage.len_bytes())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let lists = self.writes.iter().copied();
        let hit = |(at, bytes): &(u64, Vec<u8>)| part(*at, bytes, offset, buf.len()).is_some();
        if !lists.clone().flatten().any(hit) {
            self.storage.read_at(offset, buf)?;
        }
        for (at, bytes) in lists.flatten() {
            overlay(*at, bytes, offset, buf);
        }
        Ok(())
    }
}

/// The `len` bytes at `offset`, if they are all in the write of `bytes` at `at`.
fn part(at: u64, bytes: &[u8], offset: u64, len: usize) -> Option<&[u8]> {
    let start = usize::try_from(offset.checked_sub(at)?).ok()?;
    bytes.get(start..start.checked_add(len)?)
}

/// Puts into `buf`, which was read at `offset`, what the write of `bytes` at `at` makes of it.
fn overlay(at: u64, bytes: &[u8], offset: u64, buf: &mut [u8]) {
    let skip = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let bytes = bytes.get(skip(at, offset)..).unwrap_or_default();
    let buf = buf.get_mut(skip(offset, at)..).unwrap_or_default();
    let len = buf.len().min(bytes.len());
    if let (Some(to), Some(from)) = (buf.get_mut(..len), bytes.get(..len)) {
        to.copy_from_slice(from);
    }
}
