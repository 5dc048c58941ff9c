//! Data that lies encrypted in a store.
//!
//! Code that moves an image's data knows nothing of algorithms and keys. It has a [`Cipher`] from whoever does, or
//! none, and so a program that never makes one carries none.

use crate::{Storage, StorageError, StorageMut};
use core::fmt;

/// Bytes of the unit that is encrypted by itself.
pub const SECTOR_BYTES: u64 = 512;

/// Where data lies and what it is: a cipher counts by one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPlace {
    /// First byte in the file that it lies in.
    pub host: u64,
    /// First byte in the disk that the image's guest sees.
    pub guest: u64,
}

impl DataPlace {
    /// The place `by` bytes further on.
    #[must_use]
    pub const fn advanced(self, by: u64) -> Self {
        Self {
            host: self.host.saturating_add(by),
            guest: self.guest.saturating_add(by),
        }
    }
}

/// Enciphers and deciphers the data of one image, with its key. What is compressed is not encrypted.
///
/// Whatever reads or writes an image has it as a `&'static dyn Cipher`: an operation opens a handful of images, and its
/// keys end with its machine.
pub trait Cipher: fmt::Debug + Send + Sync {
    /// Deciphers `buf`, which was read from `at`, in place: whole sectors.
    ///
    /// # Errors
    /// EIO: place or length are not whole sectors.
    fn decipher(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError>;

    /// Enciphers `buf`, which is to be written to `at`, in place: whole sectors.
    ///
    /// # Errors
    /// EIO: place or length are not whole sectors.
    fn encipher(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError>;

    /// Reads and deciphers what lies at `at` in `store`, whatever the alignment.
    ///
    /// # Errors
    /// The store's.
    fn read(&self, store: &dyn Storage, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError>;

    /// Enciphers `bytes` and writes them to `at` in `store`, whatever the alignment; of a sector that is written in
    /// part the rest stays.
    ///
    /// # Errors
    /// The store's; a part may have been written.
    fn write(
        &self,
        store: &dyn StorageMut,
        at: DataPlace,
        bytes: &[u8],
    ) -> Result<(), StorageError>;
}
