//! Small reads at ascending offsets, served from one buffer.
//!
//! A read of a store in the guest costs a doorbell, so headers, extensions and
//! table entries are taken from a buffer that slides forward with the reader.

use alloc::vec::Vec;
use instar_storage::{Storage, StorageError};

/// Bytes that one read of the store brings.
pub(crate) const WINDOW_BYTES: usize = 4096;

/// What a windowed read can fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowError {
    /// The store failed.
    Storage(StorageError),
    /// The buffer could not be allocated.
    OutOfMemory,
}

impl From<StorageError> for WindowError {
    fn from(e: StorageError) -> Self {
        Self::Storage(e)
    }
}

/// A sliding read buffer over a store.
pub(crate) struct Window<'s, S> {
    storage: &'s S,
    start: u64,
    buf: Vec<u8>,
    filled: bool,
}

impl<'s, S: Storage> Window<'s, S> {
    /// A window that has read nothing yet.
    pub(crate) fn new(storage: &'s S) -> Result<Self, WindowError> {
        let buf = zeroed(WINDOW_BYTES).ok_or(WindowError::OutOfMemory)?;
        Ok(Self {
            storage,
            start: 0,
            buf,
            filled: false,
        })
    }

    /// The store behind the window.
    pub(crate) const fn storage(&self) -> &'s S {
        self.storage
    }

    /// Fills `out` from byte `offset`; past the end of the store come zeros.
    pub(crate) fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StorageError> {
        if out.len() > WINDOW_BYTES {
            return self.storage.read_at(offset, out);
        }
        if let Some(hit) = self.cached(offset, out.len()) {
            out.copy_from_slice(hit);
            return Ok(());
        }
        self.filled = false;
        self.storage.read_at(offset, &mut self.buf)?;
        self.start = offset;
        self.filled = true;
        if let Some(hit) = self.cached(offset, out.len()) {
            out.copy_from_slice(hit);
        }
        Ok(())
    }

    fn cached(&self, offset: u64, len: usize) -> Option<&[u8]> {
        if !self.filled {
            return None;
        }
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.buf.get(from..from.checked_add(len)?)
    }

    /// Reads `len` bytes into a new vector; the caller has checked its cap.
    pub(crate) fn read_vec(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, WindowError> {
        let mut bytes = zeroed(len).ok_or(WindowError::OutOfMemory)?;
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// `len` zero bytes, `None` if there is no memory for them.
pub(crate) fn zeroed(len: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).ok()?;
    bytes.resize(len, 0);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_storage::{FaultyStorage, MemStorage};

    #[test]
    fn ascending_reads_cost_one_read_of_the_store() {
        let bytes: Vec<u8> = (0..=255).cycle().take(8192).collect();
        let store = FaultyStorage::new(MemStorage::new(bytes.clone()), u64::MAX, 5);
        let mut window = Window::new(&store).unwrap();
        for at in (0..4096).step_by(8) {
            let mut out = [0; 8];
            window.read(at as u64, &mut out).unwrap();
            assert_eq!(out, bytes[at..at + 8]);
        }
        assert_eq!(store.reads(), 1);
        assert_eq!(window.read_vec(4090, 12).unwrap(), bytes[4090..4102]);
        assert_eq!(store.reads(), 2);
    }

    #[test]
    fn failed_read_leaves_nothing_in_the_window() {
        let store = FaultyStorage::new(MemStorage::new(alloc::vec![7; 8192]), 1, 5);
        let mut window = Window::new(&store).unwrap();
        let mut out = [0; 4];
        window.read(0, &mut out).unwrap();
        assert!(window.read(5000, &mut out).is_err());
        window.read(0, &mut out).unwrap();
        assert_eq!(out, [7; 4]);
    }
}
