//! Stores for tests, fuzzers and tools: memory, a file, and injected faults.

use crate::{Storage, StorageError};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::vec::Vec;

/// Bytes in memory.
#[derive(Clone, Debug, Default)]
pub struct MemStorage(pub Vec<u8>);

impl Storage for MemStorage {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.0.len());
        let have = self.0.get(start..).unwrap_or_default();
        let (filled, past_end) = buf.split_at_mut(have.len().min(buf.len()));
        filled.copy_from_slice(have.get(..filled.len()).unwrap_or_default());
        past_end.fill(0);
        Ok(())
    }
}

/// A file on the host; its length is taken once.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    len: u64,
}

impl FileStorage {
    /// Takes an open file.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn new(file: File) -> std::io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }
}

impl Storage for FileStorage {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let mut done = 0_usize;
        while done < buf.len() {
            let rest = buf.get_mut(done..).unwrap_or_default();
            let at = offset.saturating_add(done as u64);
            match self.file.read_at(rest, at) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(n) => done = done.saturating_add(n),
                Err(e) => {
                    let errno = e
                        .raw_os_error()
                        .and_then(|n| u32::try_from(n).ok())
                        .unwrap_or(5);
                    return Err(StorageError { errno, offset: at });
                }
            }
        }
        Ok(())
    }
}

/// A store whose `fail_at`th read fails with `errno` (counted from 0).
#[derive(Debug)]
pub struct FaultyStorage<S> {
    inner: S,
    fail_at: u64,
    errno: u32,
    reads: Cell<u64>,
}

impl<S: Storage> FaultyStorage<S> {
    /// Wraps `inner`.
    pub const fn new(inner: S, fail_at: u64, errno: u32) -> Self {
        Self {
            inner,
            fail_at,
            errno,
            reads: Cell::new(0),
        }
    }

    /// How many reads were asked for so far.
    pub const fn reads(&self) -> u64 {
        self.reads.get()
    }
}

impl<S: Storage> Storage for FaultyStorage<S> {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let n = self.reads.get();
        self.reads.set(n.saturating_add(1));
        if n == self.fail_at {
            return Err(StorageError {
                errno: self.errno,
                offset,
            });
        }
        self.inner.read_at(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_past_the_end_gives_zeros() {
        let mut buf = [0xff; 4];
        MemStorage(std::vec![1, 2]).read_at(1, &mut buf).unwrap();
        assert_eq!(buf, [2, 0, 0, 0]);
        MemStorage(std::vec![1, 2])
            .read_at(u64::MAX, &mut buf)
            .unwrap();
        assert_eq!(buf, [0; 4]);
    }

    #[test]
    fn faulty_store_fails_only_the_chosen_read() {
        let store = FaultyStorage::new(MemStorage(std::vec![7; 8]), 1, 5);
        let mut buf = [0; 1];
        assert!(store.read_at(0, &mut buf).is_ok());
        assert_eq!(
            store.read_at(3, &mut buf),
            Err(StorageError {
                errno: 5,
                offset: 3
            })
        );
        assert!(store.read_at(0, &mut buf).is_ok());
        assert_eq!(store.reads(), 3);
    }
}
