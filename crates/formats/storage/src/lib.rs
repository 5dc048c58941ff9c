//! The byte store that format code reads.
//!
//! Format and planner crates are generic over [`Storage`], so the same code
//! runs in the guest over virtio-blk, in unit tests over memory, and in fuzzers
//! over a store that injects faults. A store is a plain sequence of bytes with a
//! length; it knows nothing of clusters or formats.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

#[cfg(feature = "std")]
extern crate std;

use core::fmt;

#[cfg(feature = "std")]
mod host;
#[cfg(feature = "std")]
pub use host::{FaultyStorage, FileStorage, MemStorage};

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
            61 => "No data available",
            other => return write!(f, "Unknown error {other}"),
        })
    }
}

/// A read that the store could not do.
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
    /// The exact length in bytes when the store was opened.
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
