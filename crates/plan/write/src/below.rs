//! What lies below an image that takes writes.

use crate::WriteError;
use instar_layers::{Chain, Decompress};
use instar_storage::Storage;

/// What lies below the image.
pub trait Below {
    /// Fills `buf` with what a guest would read at `guest`; zeros past the end.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_below(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError>;

    /// Whether the `len` bytes at `guest` are known to be zeros without being read.
    fn is_zero(&self, _guest: u64, _len: u64) -> bool {
        false
    }
}

/// No backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NothingBelow;

impl Below for NothingBelow {
    fn read_below(&mut self, _guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        buf.fill(0);
        Ok(())
    }

    fn is_zero(&self, _guest: u64, _len: u64) -> bool {
        true
    }
}

/// A backing chain, and what its compressed clusters need.
impl<S: Storage, D: Decompress> Below for (Chain<S>, D) {
    fn read_below(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        let left = self.0.len_bytes().saturating_sub(guest);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let (inside, past) = buf.split_at_mut(len);
        past.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        Ok(self.0.read_at(guest, inside, &mut self.1)?)
    }
}
