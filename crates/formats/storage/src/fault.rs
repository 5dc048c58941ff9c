//! A store that fails when it is told to.

use crate::{Extent, Reserve, Storage, StorageError, StorageMut};
use std::cell::Cell;

/// The calls that a [`Fault`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Reads; of a batch, each one.
    Reads,
    /// Writes; of a batch, each one.
    Writes,
    /// Flushes.
    Flushes,
    /// New lengths.
    SetLens,
    /// Everything but reads: writes, zeroes, discards, reservations, lengths and flushes.
    Changes,
    /// Everything.
    Any,
}

/// Which call fails, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is counted.
    pub calls: Calls,
    /// The one of them that fails, counted from 0.
    pub nth: u64,
    /// Its errno (Linux numbering): 5 EIO, 28 ENOSPC, 122 EDQUOT.
    pub errno: u32,
    /// Whether all of them after that one fail as well, as they do when a disk is full or gone.
    pub lasting: bool,
}

/// A store with a [`Fault`]. The first half of a write that fails reaches the store: of one of a sector or more,
/// whole sectors of 512 bytes.
#[derive(Debug)]
pub struct FaultyStorage<S> {
    inner: S,
    fault: Fault,
    reads: Cell<u64>,
    /// Calls of the fault's kind so far.
    counted: Cell<u64>,
}

impl<S: Storage> FaultyStorage<S> {
    /// Wraps `inner`: its `fail_at`th read, counted from 0, fails with `errno`.
    pub const fn new(inner: S, fail_at: u64, errno: u32) -> Self {
        let fault = Fault {
            calls: Calls::Reads,
            nth: fail_at,
            errno,
            lasting: false,
        };
        Self::with(inner, fault)
    }

    /// Wraps `inner` with a fault of any kind.
    pub const fn with(inner: S, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            reads: Cell::new(0),
            counted: Cell::new(0),
        }
    }

    /// How many reads were asked for so far.
    pub const fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// How many calls of the fault's kind were asked for so far.
    ///
    /// With `nth` of `u64::MAX` a run counts how many calls there are to fail.
    pub const fn counted(&self) -> u64 {
        self.counted.get()
    }

    /// Whether the fault has struck.
    pub const fn struck(&self) -> bool {
        self.counted.get() > self.fault.nth
    }

    /// What is wrapped.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Counts a call; fails if it is the one.
    fn call(&self, kind: Calls, offset: u64) -> Result<(), StorageError> {
        let counts = match self.fault.calls {
            Calls::Any => true,
            Calls::Changes => kind != Calls::Reads,
            calls => calls == kind,
        };
        if !counts {
            return Ok(());
        }
        let n = self.counted.get();
        self.counted.set(n.saturating_add(1));
        if n == self.fault.nth || (self.fault.lasting && n > self.fault.nth) {
            let errno = self.fault.errno;
            return Err(StorageError { errno, offset });
        }
        Ok(())
    }
}

impl<S: Storage> Storage for FaultyStorage<S> {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.reads.set(self.reads.get().saturating_add(1));
        self.call(Calls::Reads, offset)?;
        self.inner.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        self.inner.extent_at(offset)
    }
}

impl<S: StorageMut> StorageMut for FaultyStorage<S> {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        self.call(Calls::Writes, offset).inspect_err(|_| {
            let half = buf.len() / 2;
            let whole = if buf.len() < 512 { half } else { half & !511 };
            let (half, _) = buf.split_at(whole);
            let _ = self.inner.write_at(offset, half);
        })?;
        self.inner.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.call(Calls::Changes, offset)?;
        self.inner.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.call(Calls::Changes, offset)?;
        self.inner.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        self.call(Calls::Changes, offset)?;
        self.inner.allocate(offset, len, how)
    }

    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.call(Calls::SetLens, len)?;
        self.inner.set_len(len)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.call(Calls::Flushes, 0)?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStorage;

    #[test]
    fn faulty_store_fails_only_the_chosen_read() {
        let store = FaultyStorage::new(MemStorage::new(std::vec![7; 8]), 1, 5);
        let mut buf = [0; 1];
        let error = StorageError {
            errno: 5,
            offset: 3,
        };
        assert!(store.read_at(0, &mut buf).is_ok());
        assert_eq!(store.read_at(3, &mut buf), Err(error));
        assert!(store.read_at(0, &mut buf).is_ok());
        assert_eq!(store.reads(), 3);
        assert!(store.write_at(0, b"x").is_ok());
    }

    #[test]
    fn a_lasting_fault_of_changes_spares_reads_and_leaves_half_a_write() {
        let fault = Fault {
            calls: Calls::Changes,
            nth: 1,
            errno: 28,
            lasting: true,
        };
        let store = FaultyStorage::with(MemStorage::default(), fault);
        store.set_len(2).unwrap();
        assert!(!store.struck());
        assert_eq!(store.write_at(0, b"abcd").unwrap_err().errno, 28);
        assert!(store.flush().is_err() && store.struck());
        assert!(store.read_at(0, &mut [0]).is_ok());
        assert_eq!(store.counted(), 3);
        assert_eq!(store.into_inner().to_vec(), b"ab");
    }
}
