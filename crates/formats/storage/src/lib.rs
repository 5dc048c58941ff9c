//! The byte store that format code reads and planners change.
//!
//! Format and planner crates are generic over [`Storage`], so the same code
//! runs in the guest over virtio-blk, in unit tests over memory, and in fuzzers
//! over a store that injects faults. A store is a plain sequence of bytes with a
//! length; it knows nothing of clusters or formats. [`Storage`] reads it,
//! [`StorageMut`] changes it.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

use core::fmt;

pub mod bytes;
pub mod cipher;
#[cfg(feature = "std")]
pub mod crash;
#[cfg(feature = "std")]
mod fault;
#[cfg(feature = "std")]
mod host;
#[cfg(feature = "std")]
mod mem;
pub mod overlap;
pub use cipher::{Cipher, DataPlace};
#[cfg(feature = "std")]
pub use crash::CrashStorage;
#[cfg(feature = "std")]
pub use fault::{Calls, Fault, FaultyStorage};
#[cfg(feature = "std")]
pub use host::FileStorage;
#[cfg(feature = "std")]
pub use mem::MemStorage;

/// An errno (Linux numbering) in the C library's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "Operation not permitted",
            5 => "Input/output error",
            9 => "Bad file descriptor",
            12 => "Cannot allocate memory",
            13 => "Permission denied",
            22 => "Invalid argument",
            27 => "File too large",
            28 => "No space left on device",
            30 => "Read-only file system",
            61 => "No data available",
            95 => "Operation not supported",
            122 => "Disk quota exceeded",
            other => return write!(f, "Unknown error {other}"),
        })
    }
}

/// A request that the store could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} at offset {offset}", Errno(*errno))]
pub struct StorageError {
    /// The host's errno (Linux numbering), e.g. 5 for EIO.
    pub errno: u32,
    /// Byte offset of the request that failed.
    pub offset: u64,
}

/// One read of a batch: `buf.len()` bytes from `offset`.
#[derive(Debug)]
pub struct Read<'a> {
    /// Byte offset in the store; any alignment.
    pub offset: u64,
    /// Where the bytes go; its length is the length of the read.
    pub buf: &'a mut [u8],
}

/// A run of the store that is either all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the run.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// True if the run may hold data, false if it is a hole (reads as zeros).
    pub data: bool,
}

/// A read-only sequence of bytes.
///
/// Reads past the end give zeros, as a sparse file's hole would: an image whose
/// tables point past its end is the format code's finding, not an I/O error.
pub trait Storage {
    /// The exact length in bytes; of a store that others may change, when it was opened.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` from byte `offset`, whatever the alignment.
    ///
    /// # Errors
    /// The store's errno with the offset of the request.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError>;

    /// Does all reads of the batch; a store with queues does them at once.
    ///
    /// # Errors
    /// The first error met; the contents of all buffers are then unspecified.
    fn read_batch(&self, reads: &mut [Read<'_>]) -> Result<(), StorageError> {
        for read in reads {
            self.read_at(read.offset, read.buf)?;
        }
        Ok(())
    }

    /// The run of data or hole that holds byte `offset`, cut at the store's end.
    ///
    /// `None` at or past the end. A store that cannot tell says all data.
    ///
    /// # Errors
    /// The store's errno.
    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        let len = self.len_bytes();
        Ok(len
            .checked_sub(offset)
            .filter(|left| *left > 0)
            .map(|left| Extent {
                offset,
                len: left,
                data: true,
            }))
    }
}

/// One write of a batch: all of `buf` at `offset`.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Byte offset in the store; any alignment.
    pub offset: u64,
    /// The bytes.
    pub buf: &'a [u8],
}

/// How [`StorageMut::allocate`] reserves space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Blocks of the host's file system, as `fallocate` does; contents stay as they are.
    Blocks,
    /// By writing zeros; the range must not hold data.
    WrittenZeros,
}

/// A sequence of bytes that can be changed.
///
/// Takes `&self`, as reads do: a store has its own interior state. A write past
/// the end makes the store longer. Nothing is durable before [`StorageMut::flush`]
/// returns; until then any part of what was written, in units of 512 bytes, may
/// be lost in any combination.
pub trait StorageMut: Storage {
    /// False if the length is given, as that of a block device: writes past the end fail then.
    fn can_grow(&self) -> bool {
        true
    }

    /// Writes all of `buf` at byte `offset`, whatever the alignment.
    ///
    /// # Errors
    /// The store's errno with the offset; a part may have been written.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError>;

    /// Does all writes of the batch, in any order; a store with queues does them at once.
    ///
    /// # Errors
    /// The first error met; any part of the batch may have been written.
    fn write_batch(&self, writes: &[Write<'_>]) -> Result<(), StorageError> {
        for write in writes {
            self.write_at(write.offset, write.buf)?;
        }
        Ok(())
    }

    /// Makes the store at least `min_len` bytes long, does all writes of the batch in any order, and makes
    /// everything that was written durable as [`Self::flush`] does; a store with queues does it in one go.
    ///
    /// # Errors
    /// The first error met; any part of this may have been done, and what was written since the last flush
    /// may be lost.
    fn write_through(&self, writes: &[Write<'_>], min_len: u64) -> Result<(), StorageError> {
        if self.len_bytes() < min_len {
            self.set_len(min_len)?;
        }
        self.write_batch(writes)?;
        self.flush()
    }

    /// Makes the range read as zeros; its blocks may be given back. Past the end the store grows.
    ///
    /// # Errors
    /// The store's errno.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError>;

    /// Gives the range back to the host if it can: a hint, after which its bytes are anything.
    ///
    /// # Errors
    /// The store's errno; a store that cannot discard has done so successfully.
    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError>;

    /// Reserves space for the range, and makes the store that long if it is shorter.
    ///
    /// # Errors
    /// The store's errno: ENOSPC, or EOPNOTSUPP where the host has no such call.
    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError>;

    /// Cuts the store, or extends it with zeros, to exactly `len` bytes.
    ///
    /// # Errors
    /// The store's errno.
    fn set_len(&self, len: u64) -> Result<(), StorageError>;

    /// Makes everything that was written durable: nothing after this call reaches the
    /// store before what was written ahead of it.
    ///
    /// # Errors
    /// The store's errno; what was written since the last flush may then be lost.
    fn flush(&self) -> Result<(), StorageError>;
}

impl<S: StorageMut + ?Sized> StorageMut for &S {
    fn can_grow(&self) -> bool {
        (**self).can_grow()
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        (**self).write_at(offset, buf)
    }
    fn write_batch(&self, writes: &[Write<'_>]) -> Result<(), StorageError> {
        (**self).write_batch(writes)
    }
    fn write_through(&self, writes: &[Write<'_>], min_len: u64) -> Result<(), StorageError> {
        (**self).write_through(writes, min_len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        (**self).write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        (**self).discard(offset, len)
    }
    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        (**self).allocate(offset, len, how)
    }
    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        (**self).set_len(len)
    }
    fn flush(&self) -> Result<(), StorageError> {
        (**self).flush()
    }
}

impl<S: Storage + ?Sized> Storage for &S {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        (**self).read_at(offset, buf)
    }
    fn read_batch(&self, reads: &mut [Read<'_>]) -> Result<(), StorageError> {
        (**self).read_batch(reads)
    }
    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        (**self).extent_at(offset)
    }
}
